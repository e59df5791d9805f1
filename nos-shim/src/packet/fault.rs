//! IPv6 packets with a fragment header that no host gets past, and whose sender is told so.
//!
//! [`Packet::parse`] rejects them. A host answers some all the same (RFC 8200 §4.5, RFC 7112 §5), and
//! a router forwards them, as it does not look behind the IPv6 header. For both they are packets whose
//! headers are valid up to the fragment header at fault, which stands where others have their transport
//! header. The parser goes past fragment headers, so no other packet has one there.

use super::{ETHERTYPE_IPV6, IPV6_HEADER, ether_type};
use super::{Flags, Fragment, Packet, Parsed, Rejected, Walk, offset, parse_transport, protocol};
use crate::drop::DropReason;
use crate::frame::{ETHERNET_HEADER, Offload};

/// What is wrong with a fragment header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A fragment header that is cut short, or behind another one.
    FragmentHeader,
    /// The fragment would end beyond 65,535 octets of its datagram.
    FragmentBeyondEnd,
    /// More fragments follow one whose length is no multiple of eight octets.
    FragmentLength,
    /// The first fragment lacks a part of the chain of headers.
    IncompleteChain,
}

impl Fault {
    /// The name under which the packet is dropped.
    #[must_use]
    pub fn reason(self) -> DropReason {
        match self {
            Self::FragmentHeader => DropReason::Ipv6Header,
            Self::FragmentBeyondEnd | Self::FragmentLength => DropReason::IpLength,
            Self::IncompleteChain => DropReason::TinyFragment,
        }
    }
}

impl Packet {
    /// Validates a frame that [`Self::parse`] rejected up to the fragment header at fault, and cuts off what
    /// follows the packet. [`Self::fault`] says what is wrong there.
    ///
    /// # Errors
    ///
    /// The frame as it was, if something else is wrong with it.
    #[cold]
    pub fn parse_up_to_fault(rejected: Rejected) -> Result<Self, Rejected> {
        let Rejected { mut frame, reason } = rejected;
        let plain = frame.offload() == Offload::NONE;
        let Some((parsed, len)) = up_to_fault(frame.bytes()).filter(|_| plain) else {
            return Err(Rejected { frame, reason });
        };
        frame.truncate(len);
        frame.set_parsed(parsed);
        Ok(Self(frame))
    }

    /// What is wrong with the header at [`Self::transport_offset`]; `None` of a packet that
    /// [`Self::parse`] has accepted.
    #[must_use]
    #[inline]
    pub fn fault(&self) -> Option<Fault> {
        // A later fragment's protocol is what its fragment header names.
        let extension = self.protocol() == protocol::FRAGMENT && self.is_ipv6();
        if extension && self.fragment() == Fragment::Whole {
            Some(self.name_fault())
        } else {
            None
        }
    }

    #[cold]
    fn name_fault(&self) -> Fault {
        let rest = self.transport();
        let (Some(header), 0) = (rest.first_chunk::<8>(), self.parsed().fragment_header) else {
            return Fault::FragmentHeader;
        };
        let field = u16::from_be_bytes([header[2], header[3]]);
        let payload = rest.len() - header.len();
        let (start, more) = (field & !7, field & 1 != 0);
        let known = Walk {
            packet: self.frame().bytes(),
            at: self.transport_offset() + header.len(),
            next: header[0],
            parsed: Parsed::default(),
        };
        // In the order in which Linux looks at them.
        if start == 0 && more && known.is_cut_short() {
            Fault::IncompleteChain
        } else if usize::from(start) + payload > 65_535 {
            Fault::FragmentBeyondEnd
        } else {
            Fault::FragmentLength
        }
    }
}

/// What is learnt of a packet up to its header at fault, and how long its frame is.
fn up_to_fault(frame: &[u8]) -> Option<(Parsed, usize)> {
    let ip = frame.get(ETHERNET_HEADER..)?;
    let fixed = ip.first_chunk::<IPV6_HEADER>()?;
    if ether_type(frame) != Some(ETHERTYPE_IPV6) || fixed[0] >> 4 != 6 {
        return None;
    }
    let payload_len = usize::from(u16::from_be_bytes([fixed[4], fixed[5]]));
    let len = ETHERNET_HEADER + IPV6_HEADER + payload_len;
    let mut walk = Walk {
        packet: frame.get(..len)?,
        at: ETHERNET_HEADER + IPV6_HEADER,
        next: fixed[6],
        parsed: Parsed::default(),
    };
    let walked = walk.extension_headers();
    let first = walk.parsed.flags.contains(Flags::FIRST_FRAGMENT);
    let (at, next) = match walked {
        Err(DropReason::TinyFragment) => (walk.parsed.fragment_header, protocol::FRAGMENT),
        Ok(()) if first && walk.is_cut_short() => (walk.parsed.fragment_header, protocol::FRAGMENT),
        // The headers of a first fragment are judged with the whole datagram.
        Err(_) if !first && walk.is_at_fault() => (offset(walk.at), walk.next),
        _ => return None,
    };
    let mut flags = walk.parsed.flags | Flags::IPV6;
    flags.remove(Flags::FIRST_FRAGMENT);
    let parsed = Parsed {
        l4: at,
        payload: at,
        protocol: next,
        flags,
        // Of one in front of that at fault.
        fragment_header: if first {
            0
        } else {
            walk.parsed.fragment_header
        },
        ..Parsed::default()
    };
    Some((parsed, len))
}

impl Walk<'_> {
    /// Whether the walk ended at a fragment header that is wrong. Too many headers are no fault of the
    /// next one.
    fn is_at_fault(&self) -> bool {
        let mut again = Self {
            parsed: self.parsed,
            ..*self
        };
        self.next == protocol::FRAGMENT && again.step().is_err()
    }

    /// Whether the headers from here on end before those of the transport protocol do, in what is taken
    /// for a first fragment.
    fn is_cut_short(&self) -> bool {
        let mut rest = Self {
            parsed: Parsed {
                flags: Flags::IPV6 | Flags::FIRST_FRAGMENT,
                ..self.parsed
            },
            ..*self
        };
        if let Err(reason) = rest.extension_headers() {
            return reason == DropReason::TinyFragment;
        }
        let octets = rest.packet.get(rest.at..).unwrap_or_default();
        rest.parsed.protocol = rest.next;
        parse_transport(octets, &mut rest.parsed) == Err(DropReason::TinyFragment)
    }
}

#[cfg(test)]
mod tests;
