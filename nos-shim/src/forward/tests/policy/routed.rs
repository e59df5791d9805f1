//! Containers with addresses of their own, and what their policies let pass.

use super::*;
use crate::ports::RegistrationRefused;

const OWN: AttachmentId = AttachmentId(9);
const OWN4: &str = "198.51.100.77";
const OWN6: &str = "2001:db8:77::77";
const GRE: u8 = 47;

fn all_ports_from(set: &Arc<PrefixSet>) -> Vec<Restriction> {
    let rule = |transport| Restriction {
        transport,
        range: PortRange::new(1, 65_535).unwrap(),
        from: Arc::clone(set),
    };
    [Transport::Tcp, Transport::Udp].map(rule).into()
}

fn routed(policy: Policy) -> Registration {
    Registration {
        mode: AddressMode::Routed,
        addresses: vec![ip(OWN4), ip(OWN6)],
        claims: Vec::new(),
        ..registration(OWN, &[], &[], policy)
    }
}

fn world(policy: Policy) -> World {
    let mut world = World::new(Policy::default());
    let exchange = register(vec![routed(policy)]);
    world.nos.shim.exchange(&exchange, Instant::ZERO).unwrap();
    world
}

fn own(family: Family) -> &'static str {
    family.pick(OWN4, OWN6)
}

impl World {
    fn icmp(&mut self, family: Family, (from, to): (&str, &str), reply: bool) -> Packet {
        let kind = match (family, reply) {
            (Family::V4, false) => 8,
            (Family::V4, true) => 0,
            (Family::V6, false) => 128,
            (Family::V6, true) => 129,
        };
        Draft::new(from, to).icmp_packet(&mut self.nos.pool, (kind, 0), 0x0007_0001, b"ping")
    }

    fn gre(&mut self, from: &str, to: &str) -> Packet {
        Draft::new(from, to).packet(&mut self.nos.pool, GRE, &[0; 8])
    }
}

#[test]
fn from_says_who_opens_flows_to_any_port_and_comes_at_all() {
    for family in Family::BOTH {
        let mut world = world(Policy {
            from: all_ports_from(&friends()),
            ..Policy::default()
        });
        let (own, friend, stranger) = (own(family), family.friend(), family.stranger());
        let from_friend = [
            world.segment((friend, 999), (own, 80), SYN),
            world.segment((friend, 999), (own, 65_535), ACK),
            world.datagram((friend, 999), (own, 53)),
            world.icmp(family, (friend, own), false),
            world.gre(friend, own),
        ];
        for packet in from_friend {
            assert_eq!(world.arrives(packet), Some(OWN));
        }
        // A router with a filter, as far as the stranger goes.
        let refused = [
            (world.segment((stranger, 999), (own, 80), SYN), true),
            (world.segment((stranger, 999), (own, 80), ACK), false),
            (world.datagram((stranger, 999), (own, 53)), true),
            (world.datagram((stranger, 999), (own, 0)), true),
            (world.icmp(family, (stranger, own), false), true),
            (world.gre(stranger, own), true),
        ];
        let count = refused.len() as u64;
        for (packet, told) in refused {
            world.nos.sent();
            assert_eq!(world.arrives(packet), None);
            let answer = world.nos.sent();
            let kinds: Vec<_> = answer.iter().map(Packet::icmp).collect();
            let expected: Vec<_> = told.then(|| prohibited(family)).into_iter().collect();
            assert_eq!(kinds, expected);
        }
        assert_eq!(world.drops(DropReason::PolicyFrom), count);
        // What it opens there itself is answered, pings included.
        for (out, back) in [
            (
                world.segment((own, 4000), (stranger, 80), SYN),
                world.segment((stranger, 80), (own, 4000), SYN | ACK),
            ),
            (
                world.datagram((own, 4000), (stranger, 53)),
                world.datagram((stranger, 53), (own, 4000)),
            ),
            (
                world.icmp(family, (own, stranger), false),
                world.icmp(family, (stranger, own), true),
            ),
        ] {
            assert!(world.leaves(OWN, out));
            assert_eq!(world.arrives(back), Some(OWN));
        }
        let other = world.datagram((stranger, 54), (own, 4000));
        assert_eq!(world.arrives(other), None);
        world.nos.assert_balanced();
    }
}

#[test]
fn to_says_where_it_opens_flows_and_those_opened_to_it_are_answered() {
    for family in Family::BOTH {
        let mut world = world(Policy {
            to: Some(friends()),
            ..Policy::default()
        });
        let (own, friend, stranger) = (own(family), family.friend(), family.stranger());
        for packet in [
            world.segment((own, 4000), (friend, 80), SYN),
            world.datagram((own, 4000), (friend, 53)),
            world.icmp(family, (own, friend), false),
            world.gre(own, friend),
        ] {
            assert!(world.leaves(OWN, packet));
        }
        for (packet, told) in [
            (world.segment((own, 4000), (stranger, 80), SYN), true),
            (world.segment((own, 4000), (stranger, 80), ACK), false),
            (world.datagram((own, 4000), (stranger, 53)), true),
            (world.icmp(family, (own, stranger), false), true),
        ] {
            world.nos.delivered();
            assert!(!world.leaves(OWN, packet));
            let answer = told.then(|| prohibited(family)).flatten();
            assert_eq!(world.told(), answer);
        }
        assert_eq!(world.drops(DropReason::PolicyTo), 4);
        for (request, reply) in [
            (
                world.segment((stranger, 999), (own, 80), SYN),
                world.segment((own, 80), (stranger, 999), SYN | ACK),
            ),
            (
                world.datagram((stranger, 999), (own, 53)),
                world.datagram((own, 53), (stranger, 999)),
            ),
            (
                world.icmp(family, (stranger, own), false),
                world.icmp(family, (own, stranger), true),
            ),
        ] {
            assert_eq!(world.arrives(request), Some(OWN));
            assert!(world.leaves(OWN, reply));
        }
        world.nos.assert_balanced();
    }
}

#[test]
fn errors_reach_it_about_what_it_may_have_sent() {
    for family in Family::BOTH {
        let mut world = world(Policy {
            from: all_ports_from(&friends()),
            to: Some(friends()),
            ..Policy::default()
        });
        let (own, friend, stranger) = (own(family), family.friend(), family.stranger());
        for (other, arrives) in [(friend, Some(OWN)), (stranger, None)] {
            let sent = world.datagram((own, 4000), (other, 53));
            let wire = sent.frame().bytes()[14..].to_vec();
            let unreachable = family.pick((3, 3), (1, 4));
            let draft = Draft::new(stranger, own);
            let error = draft.icmp_packet(&mut world.nos.pool, unreachable, 0, &wire);
            assert_eq!(world.arrives(error), arrives, "{other}");
        }
        assert_eq!(world.drops(DropReason::IcmpUnmatched), 1);
        world.nos.assert_balanced();
    }
}

#[test]
fn siblings_are_others_to_a_policy() {
    for family in Family::BOTH {
        let mut world = World::new(Policy::default());
        let guarded = routed(Policy {
            from: all_ports_from(&friends()),
            ..Policy::default()
        });
        let sibling = Registration {
            attachment: DB,
            name: "db".into(),
            addresses: vec![ip("198.51.100.78"), ip("2001:db8:77::78")],
            policy: Policy::default(),
            ..guarded.clone()
        };
        let exchange = register(vec![guarded, sibling]);
        world.nos.shim.exchange(&exchange, Instant::ZERO).unwrap();
        let db = family.pick("198.51.100.78", "2001:db8:77::78");
        let out = world.datagram((db, 1), (own(family), 2));
        world.nos.outbound(DB, out);
        assert_eq!(world.told(), prohibited(family));
        let out = world.datagram((own(family), 2), (db, 1));
        world.nos.outbound(OWN, out);
        assert_eq!(world.nos.delivered().len(), 1);
        let back = world.datagram((db, 1), (own(family), 2));
        world.nos.outbound(DB, back);
        let got = world.nos.delivered();
        assert_eq!(got.len(), 1);
        assert_eq!(got[0].protocol(), protocol::UDP);
        world.nos.assert_balanced();
    }
}

#[test]
fn what_is_about_shared_ports_is_refused() {
    let mut world = World::new(Policy::default());
    for (policy, what) in [
        (
            Policy {
                established: vec![range(EPHEMERAL)],
                ..Policy::default()
            },
            "established ports",
        ),
        (
            Policy {
                outside: Outside::Learn,
                ..Policy::default()
            },
            "ports to learn",
        ),
    ] {
        let exchange = register(vec![routed(policy)]);
        let refused = world.nos.shim.exchange(&exchange, Instant::ZERO);
        let reason = refused.unwrap_err().reason;
        assert_eq!(reason, RegistrationRefused::NotShared(what));
    }
}
