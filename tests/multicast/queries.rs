//! What is taken for a query of MLD, by the NOS and by a plain Linux host.

use std::net::Ipv6Addr;

use nos_shim::ident::MacAddr;
use nos_shim::ndp::{multicast_mac, solicited_node};

use crate::message::Told;
use crate::network::{NOS, Network, Querier, until};
use crate::support::daemon::{Daemon, LIMIT};
use crate::support::lab_test;
use crate::support::wire::{self, Wire};

/// Router alert for MLD, and padding.
const ALERT: [u8; 8] = [58, 0, 5, 2, 0, 0, 1, 0];

/// A query for one group, in a millisecond.
#[derive(Clone)]
struct Query {
    source: Ipv6Addr,
    destination: Ipv6Addr,
    hop_limit: u8,
    options: Option<[u8; 8]>,
    code: u8,
    group: Ipv6Addr,
    /// Behind the group: flags and robustness, interval, number of sources, sources.
    tail: Vec<u8>,
    checksum: bool,
}

impl Query {
    fn new(group: Ipv6Addr) -> Self {
        Self {
            source: "fe80::99".parse().unwrap(),
            destination: "ff02::1".parse().unwrap(),
            hop_limit: 1,
            options: Some(ALERT),
            code: 0,
            group,
            tail: vec![2, 125, 0, 0],
            checksum: true,
        }
    }

    fn frame(&self, from: MacAddr) -> Vec<u8> {
        let fixed = [130, self.code, 0, 0, 0, 1, 0, 0];
        let mut message = [&fixed[..], &self.group.octets(), &self.tail].concat();
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        let pseudo = [
            &self.source.octets()[..],
            &self.destination.octets(),
            &length,
            &[0, 0, 0, 58],
            &message,
        ];
        let sum = !wire::sum(&pseudo.concat());
        let sum = if self.checksum { sum } else { sum ^ 1 };
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        let (next, options) = match &self.options {
            Some(options) => (0, &options[..]),
            None => (58, &[][..]),
        };
        let length = u16::try_from(options.len() + message.len()).unwrap();
        [
            &multicast_mac(self.destination).0[..],
            &from.0,
            &[0x86, 0xdd, 0x60, 0, 0, 0],
            &length.to_be_bytes(),
            &[next, self.hop_limit],
            &self.source.octets(),
            &self.destination.octets(),
            options,
            &message,
        ]
        .concat()
    }
}

/// What makes a query another one.
type Change = fn(&mut Query);

/// Whether a host answers it.
fn cases() -> Vec<(&'static str, bool, Change)> {
    vec![
        ("as it should be", true, |_| {}),
        ("to its group", true, |query| {
            query.destination = query.group;
        }),
        ("to all routers", false, |query| {
            query.destination = "ff02::2".parse().unwrap();
        }),
        ("from a global address", false, |query| {
            query.source = "2001:db8:1::99".parse().unwrap();
        }),
        ("from nobody", false, |query| {
            query.source = Ipv6Addr::UNSPECIFIED;
        }),
        ("from farther away", false, |query| query.hop_limit = 2),
        ("with the hop limit of others", false, |query| {
            query.hop_limit = 255;
        }),
        ("without router alert", false, |query| query.options = None),
        ("with padding instead", false, |query| {
            query.options = Some([58, 0, 1, 4, 0, 0, 0, 0]);
        }),
        ("with another alert", false, |query| {
            query.options = Some([58, 0, 5, 2, 0, 1, 1, 0]);
        }),
        ("with padding in front", true, |query| {
            query.options = Some([58, 0, 1, 0, 5, 2, 0, 0]);
        }),
        ("with a wrong checksum", false, |query| {
            query.checksum = false;
        }),
        ("with a code", true, |query| query.code = 9),
        ("for no group", false, |query| {
            query.group = "2001:db8:1::1".parse().unwrap();
        }),
        ("of 25 octets", false, |query| query.tail.truncate(1)),
        ("of 27 octets", false, |query| query.tail.truncate(3)),
        ("of 29 octets", true, |query| query.tail.push(0)),
        ("for a source", true, |query| {
            query.tail = [&[2, 125, 0, 1][..], &[0x20; 16]].concat();
        }),
        ("for two sources, one missing", false, |query| {
            query.tail = [&[2, 125, 0, 2][..], &[0x20; 16]].concat();
        }),
        ("without robustness and interval", true, |query| {
            query.tail = vec![0; 4];
        }),
        ("for everybody to be silent", true, |query| {
            query.tail[0] = 0x0f;
        }),
    ]
}

/// Whether a host says that it is in the group of `query`. It is asked for its other group behind
/// that, again and again: all answers come within ten milliseconds, and the sum of twenty such
/// times is not shorter than one.
fn answers(wire: &Wire, host: MacAddr, query: &Query, other: Ipv6Addr, group: Ipv6Addr) -> bool {
    wire.drain();
    wire.send(&query.frame(wire.mac()));
    let mut answered = false;
    for _ in 0..20 {
        wire.send(&Query::new(other).frame(wire.mac()));
        wire.await_frame(LIMIT, |seen| {
            let said = |group: Ipv6Addr| {
                let told = Told::of(seen, host, group.into());
                told.is_some_and(|told| told.record_kind() == 2)
            };
            answered |= said(group);
            said(other).then_some(())
        });
    }
    answered
}

lab_test! {
    fn queries_are_checked_as_by_a_linux_host() {
        let network = Network::new(Querier::Nobody, [3, 2]);
        let _daemon = Daemon::start(&network.device, &Network::config(""));
        let wire = Wire::open(&network.router, "eth0");
        let plain = "2001:db8:1::5".parse().unwrap();
        let hosts = [("the NOS", network.nos_mac(), NOS), ("Linux", network.plain_mac(), plain)];
        for (who, mac, address) in hosts {
            let (group, other) = (solicited_node(address), solicited_node(mac.link_local()));
            // What it says unasked when it comes is said.
            until("it answers", || answers(&wire, mac, &Query::new(group), other, group));
            for (name, answered, change) in cases() {
                let mut query = Query::new(group);
                change(&mut query);
                assert_eq!(answers(&wire, mac, &query, other, group), answered, "{who}, a query {name}");
            }
        }
    }
}
