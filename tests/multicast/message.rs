//! Messages about groups as they are seen on a wire.

use std::net::IpAddr;

use nos_shim::ident::MacAddr;

use crate::support::wire::Seen;

/// What one message says of one group.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Told {
    /// The IP header with its options, without addresses, lengths and checksum.
    pub(crate) header: Vec<u8>,
    /// Where it goes; `None` for the group itself.
    pub(crate) destination: Option<IpAddr>,
    /// Type and code of the message.
    pub(crate) kind: (u8, u8),
    /// Of a record: everything but the group.
    pub(crate) record: Option<[u8; 4]>,
}

impl Told {
    /// What `seen` says of `group`, if it comes from `host`.
    pub(crate) fn of(seen: &Seen, host: MacAddr, group: IpAddr) -> Option<Self> {
        if seen.source_mac != host {
            return None;
        }
        let v6 = group.is_ipv6();
        if seen.source.is_ipv6() != v6 {
            return None;
        }
        let at = if v6 {
            48
        } else {
            usize::from(seen.ip[0] & 0xf) * 4
        };
        let mut header = seen.ip.get(..at)?.to_vec();
        let message = seen.ip.get(at..)?;
        let is_ours = if v6 {
            (seen.protocol, header[40]) == (0, 58)
        } else {
            seen.protocol == 2
        };
        let blank: &[_] = if v6 { &[4..6, 8..40] } else { &[2..4, 10..20] };
        for range in blank {
            header[range.clone()].fill(0);
        }
        let (&kind, &code) = (message.first()?, message.get(1)?);
        let of_group = |octets: &[u8]| match group {
            IpAddr::V4(group) => octets == group.octets(),
            IpAddr::V6(group) => octets == group.octets(),
        };
        let (fixed, size) = if v6 { (8, 16) } else { (4, 4) };
        let record = match kind {
            _ if !is_ours => return None,
            143 | 0x22 => {
                let count = usize::from(u16::from_be_bytes([message[6], message[7]]));
                let records = message[8..].chunks_exact(4 + size).take(count);
                let mut of_it = records.filter(|record| of_group(&record[4..]));
                Some(of_it.next()?[..4].try_into().ok()?)
            }
            131 | 132 | 0x12 | 0x16 | 0x17 if of_group(message.get(fixed..fixed + size)?) => None,
            _ => return None,
        };
        Some(Self {
            header,
            destination: Some(seen.destination).filter(|&to| to != group),
            kind: (kind, code),
            record,
        })
    }

    /// What the record says; 0 if there is none.
    pub(crate) fn record_kind(&self) -> u8 {
        self.record.map_or(0, |record| record[0])
    }
}
