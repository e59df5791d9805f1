//! What policies let pass, from both sides. The NOS answers and counts as in [`super::super::police`].

mod floods;
mod handed_over;
mod news;
mod routed;
#[cfg(feature = "stack")]
mod services;

use std::sync::Arc;

use super::oversize::Nos;
use crate::channel::Exchange;
use crate::drop::DropReason;
use crate::ident::{AttachmentId, MacAddr, VrfId};
use crate::packet::{Packet, protocol};
use crate::ports::{
    AddressMode, Claim, ClaimKind, Outside, Policy, PortRange, Registration, Restriction, Transport,
};
use crate::prefix_set::PrefixSet;
use crate::services::{Service, ServiceConfig};
use crate::shim::ShimConfig;
use crate::test_packets::{Draft, N4, N6, Segment, X4, X6, ip};
use crate::time::Instant;

const WEB: AttachmentId = AttachmentId(2);
const DB: AttachmentId = AttachmentId(3);

/// Listen ports, with and without `from`, and an `established` range.
const OPEN: u16 = 20_000;
const CLOSED: u16 = 21_000;
const EPHEMERAL: u16 = 40_000;
const OUTSIDE: u16 = 50_000;

const SYN: u8 = 2;
const ACK: u8 = 16;

/// An outsider that may not be what X is allowed to be. It is behind X's router as far as the NOS goes.
const FAR4: &str = "203.0.113.77";
const FAR6: &str = "2001:db8:1::77";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    const BOTH: [Self; 2] = [Self::V4, Self::V6];

    fn pick<T>(self, v4: T, v6: T) -> T {
        match self {
            Self::V4 => v4,
            Self::V6 => v6,
        }
    }

    fn own(self) -> &'static str {
        self.pick(N4, N6)
    }

    fn friend(self) -> &'static str {
        self.pick(X4, X6)
    }

    fn stranger(self) -> &'static str {
        self.pick(FAR4, FAR6)
    }
}

fn set(text: [&str; 2]) -> Arc<PrefixSet> {
    let prefixes = text.iter().map(|it| ip(it).into());
    Arc::new(prefixes.collect())
}

/// Friends are X on both families.
fn friends() -> Arc<PrefixSet> {
    set([X4, X6])
}

fn range(port: u16) -> PortRange {
    PortRange::new(port, port + 99).unwrap()
}

fn registration(
    id: AttachmentId,
    listen: &[u16],
    ephemeral: &[u16],
    policy: Policy,
) -> Registration {
    let claim = |transport, port, kind| Claim {
        transport,
        range: range(port),
        kind,
    };
    let both = [Transport::Tcp, Transport::Udp];
    let mut claims = Vec::new();
    for transport in both {
        let listen = listen.iter();
        claims.extend(listen.map(|&port| claim(transport, port, ClaimKind::Listen)));
        let ephemeral = ephemeral.iter();
        claims.extend(ephemeral.map(|&port| claim(transport, port, ClaimKind::Ephemeral)));
    }
    Registration {
        attachment: id,
        name: format!("c{}", id.0).into(),
        vrf: VrfId::DEFAULT,
        network: crate::ident::NetworkId::DEFAULT,
        mode: AddressMode::Shared,
        addresses: vec![ip(N4), ip(N6)],
        claims,
        policy,
        link_local: None,
        router: MacAddr([2; 6]).link_local(),
        mtu: 9000,
    }
}

fn from_friends(port: u16) -> Vec<Restriction> {
    let rule = |transport| Restriction {
        transport,
        range: range(port),
        from: friends(),
    };
    [Transport::Tcp, Transport::Udp].map(rule).into()
}

/// Both of the container's kinds of rules for what comes in.
fn guarded() -> Policy {
    Policy {
        from: from_friends(CLOSED),
        established: vec![range(EPHEMERAL)],
        ..Policy::default()
    }
}

struct World {
    nos: Nos,
}

impl World {
    fn new(policy: Policy) -> Self {
        Self::with(policy, ShimConfig::default().flows)
    }

    /// With a table of so many flows.
    fn with(policy: Policy, flows: usize) -> Self {
        let mut nos = Nos::with(flows);
        let web = registration(WEB, &[OPEN, CLOSED], &[EPHEMERAL], policy);
        nos.shim
            .exchange(&register(vec![web]), Instant::ZERO)
            .unwrap();
        for family in Family::BOTH {
            nos.know(family.stranger());
        }
        Self { nos }
    }

    fn segment(
        &mut self,
        (source, from): (&str, u16),
        (to, port): (&str, u16),
        flags: u8,
    ) -> Packet {
        let segment = Segment {
            ports: (from, port),
            flags,
            ..Segment::default()
        };
        Draft::new(source, to).tcp_packet(&mut self.nos.pool, &segment)
    }

    fn datagram(&mut self, (source, from): (&str, u16), (to, port): (&str, u16)) -> Packet {
        Draft::new(source, to).udp_packet(&mut self.nos.pool, (from, port), b"x")
    }

    /// Whether a container gets a packet from the network.
    fn arrives(&mut self, packet: Packet) -> Option<AttachmentId> {
        self.nos.receive(packet);
        let got = self.nos.delivered();
        got.first().map(|packet| match packet.frame().interface() {
            Some(crate::ident::Interface::Attachment(id)) => id,
            other => panic!("{other:?}"),
        })
    }

    /// Whether what a container sends leaves.
    fn leaves(&mut self, id: AttachmentId, packet: Packet) -> bool {
        // Answers to what came before.
        self.nos.sent();
        self.nos.outbound(id, packet);
        !self.nos.sent().is_empty()
    }

    /// ICMP type and code of what the container hears.
    fn told(&mut self) -> Option<(u8, u8)> {
        self.nos.delivered().first().and_then(Packet::icmp)
    }

    fn drops(&self, reason: DropReason) -> u64 {
        self.nos.shim.ledger().drops.of(reason)
    }
}

fn register(register: Vec<Registration>) -> Exchange {
    Exchange {
        register,
        ..Exchange::default()
    }
}

fn prohibited(family: Family) -> Option<(u8, u8)> {
    Some(family.pick((3, 13), (1, 1)))
}

#[test]
fn without_a_policy_nothing_is_remembered() {
    let mut world = World::new(Policy::default());
    for family in Family::BOTH {
        let (own, friend) = (family.own(), family.friend());
        let syn = world.segment((friend, 999), (own, OPEN), SYN);
        assert_eq!(world.arrives(syn), Some(WEB));
        let out = world.datagram((own, EPHEMERAL), (friend, 53));
        assert!(world.leaves(WEB, out));
    }
    assert_eq!(world.nos.shim.flow_count(), None, "there is no table");
    world.nos.assert_balanced();
}

#[test]
fn from_says_who_opens_flows() {
    for family in Family::BOTH {
        let mut world = World::new(guarded());
        let (own, friend, stranger) = (family.own(), family.friend(), family.stranger());
        for flags in [SYN, ACK] {
            let packet = world.segment((friend, 999), (own, CLOSED), flags);
            assert_eq!(world.arrives(packet), Some(WEB));
            let packet = world.segment((stranger, 999), (own, OPEN), flags);
            assert_eq!(world.arrives(packet), Some(WEB), "it is open to all");
        }
        let packet = world.datagram((friend, 999), (own, CLOSED));
        assert_eq!(world.arrives(packet), Some(WEB));
        assert_eq!(world.nos.shim.flow_count(), Some(0), "prefixes decide");
        // As if nobody listened.
        let packet = world.segment((stranger, 999), (own, CLOSED), SYN);
        assert_eq!(world.arrives(packet), None);
        let reset = world.nos.sent();
        assert_eq!(reset[0].tcp_flags(), Some(0x14));
        let packet = world.datagram((stranger, 999), (own, CLOSED));
        assert_eq!(world.arrives(packet), None);
        let error = world.nos.sent();
        assert_eq!(error[0].icmp(), Some(family.pick((3, 3), (1, 4))));
        assert_eq!(world.drops(DropReason::PolicyFrom), 2);
        // But what the container has opened from there is answered.
        for transport in [Transport::Tcp, Transport::Udp] {
            let (out, back) = match transport {
                Transport::Tcp => (
                    world.segment((own, CLOSED), (stranger, 80), SYN),
                    world.segment((stranger, 80), (own, CLOSED), SYN | ACK),
                ),
                Transport::Udp => (
                    world.datagram((own, CLOSED), (stranger, 80)),
                    world.datagram((stranger, 80), (own, CLOSED)),
                ),
            };
            assert!(world.leaves(WEB, out));
            assert_eq!(world.arrives(back), Some(WEB), "{transport}");
        }
        assert_eq!(world.nos.shim.flow_count(), Some(2));
        world.nos.assert_balanced();
    }
}

#[test]
fn established_ports_get_what_belongs_to_a_flow() {
    for family in Family::BOTH {
        let mut world = World::new(guarded());
        let (own, friend, stranger) = (family.own(), family.friend(), family.stranger());
        let out = world.datagram((own, EPHEMERAL), (friend, 53));
        assert!(world.leaves(WEB, out));
        let back = world.datagram((friend, 53), (own, EPHEMERAL));
        assert_eq!(world.arrives(back), Some(WEB));
        for (source, port) in [(friend, 54), (stranger, 53)] {
            let other = world.datagram((source, port), (own, EPHEMERAL));
            assert_eq!(world.arrives(other), None, "{source} {port}");
        }
        let other = world.datagram((friend, 53), (own, EPHEMERAL + 1));
        assert_eq!(world.arrives(other), None);
        // TCP: a SYN is refused, and other segments are dropped.
        world.nos.sent();
        let ack = world.segment((friend, 80), (own, EPHEMERAL), ACK);
        assert_eq!(world.arrives(ack), None);
        assert!(world.nos.sent().is_empty());
        let syn = world.segment((friend, 80), (own, EPHEMERAL), SYN);
        assert_eq!(world.arrives(syn), None);
        assert_eq!(world.nos.sent()[0].tcp_flags(), Some(0x14));
        assert_eq!(world.drops(DropReason::NoFlow), 5);
        // Both open at once.
        let out = world.segment((own, EPHEMERAL), (friend, 80), SYN);
        assert!(world.leaves(WEB, out));
        let syn = world.segment((friend, 80), (own, EPHEMERAL), SYN);
        assert_eq!(world.arrives(syn), Some(WEB));
        world.nos.assert_balanced();
    }
}

#[test]
fn to_says_where_flows_are_opened_to() {
    let policy = Policy {
        to: Some(friends()),
        ..guarded()
    };
    for family in Family::BOTH {
        let mut world = World::new(policy.clone());
        let (own, friend, stranger) = (family.own(), family.friend(), family.stranger());
        for port in [OPEN, CLOSED, EPHEMERAL] {
            let out = world.segment((own, port), (friend, 80), SYN);
            assert!(world.leaves(WEB, out));
            let out = world.segment((own, port), (stranger, 80), SYN);
            assert!(!world.leaves(WEB, out));
            assert_eq!(world.told(), prohibited(family), "{port}");
            let out = world.datagram((own, port), (stranger, 80));
            assert!(!world.leaves(WEB, out));
            assert_eq!(world.told(), prohibited(family), "{port}");
            let out = world.segment((own, port), (stranger, 80), ACK);
            assert!(!world.leaves(WEB, out));
            assert_eq!(world.told(), None, "it would open nothing");
        }
        let kind = family.pick(8, 128);
        let echo = Draft::new(own, stranger);
        let echo = echo.icmp_packet(&mut world.nos.pool, (kind, 0), 7 << 16, b"");
        assert!(!world.leaves(WEB, echo));
        assert_eq!(world.told(), prohibited(family));
        assert_eq!(world.drops(DropReason::PolicyTo), 10);
        // Who opens a flow to the container is answered.
        for transport in [Transport::Tcp, Transport::Udp] {
            let (come, answer) = match transport {
                Transport::Tcp => (
                    world.segment((stranger, 999), (own, OPEN), SYN),
                    world.segment((own, OPEN), (stranger, 999), SYN | ACK),
                ),
                Transport::Udp => (
                    world.datagram((stranger, 999), (own, OPEN)),
                    world.datagram((own, OPEN), (stranger, 999)),
                ),
            };
            assert_eq!(world.arrives(come), Some(WEB));
            assert!(world.leaves(WEB, answer), "{transport}");
        }
        // And nobody else for that.
        let out = world.datagram((own, OPEN), (stranger, 998));
        assert!(!world.leaves(WEB, out));
        world.nos.assert_balanced();
    }
}

#[test]
fn ports_of_nobody_are_learnt_and_not_stolen() {
    let learn = Policy {
        outside: Outside::Learn,
        ..Policy::default()
    };
    for family in Family::BOTH {
        let mut world = World::new(learn.clone());
        let (own, friend, stranger) = (family.own(), family.friend(), family.stranger());
        let db = registration(DB, &[30_000], &[], learn.clone());
        let services = Some(ServiceConfig {
            ping: true,
            services: vec![Service::Echo],
            ..ServiceConfig::default()
        });
        let exchange = Exchange {
            services: services.map(|config| (VrfId::DEFAULT, config)),
            ..register(vec![db])
        };
        world.nos.shim.exchange(&exchange, Instant::ZERO).unwrap();
        let out = world.datagram((own, OUTSIDE), (friend, 53));
        assert!(world.leaves(WEB, out));
        let back = world.datagram((friend, 53), (own, OUTSIDE));
        assert_eq!(world.arrives(back), Some(WEB));
        let other = world.datagram((stranger, 53), (own, OUTSIDE));
        assert_eq!(world.arrives(other), None);
        // Others' ports and the NOS's, and what another has learnt.
        for (id, port) in [(WEB, 30_000), (WEB, 7), (DB, OPEN), (DB, OUTSIDE), (WEB, 0)] {
            let out = world.datagram((own, port), (friend, 54));
            assert!(!world.leaves(id, out), "{id} {port}");
            assert_eq!(world.told(), prohibited(family), "{id} {port}");
        }
        assert_eq!(world.drops(DropReason::SourcePort), 5);
        // Whoever is given the port has it at once.
        let db = registration(DB, &[30_000, OUTSIDE], &[], learn.clone());
        world
            .nos
            .shim
            .exchange(&register(vec![db]), Instant::ZERO)
            .unwrap();
        assert_eq!(world.nos.shim.flow_count(), Some(0));
        let back = world.datagram((friend, 53), (own, OUTSIDE));
        assert_eq!(world.arrives(back), Some(DB));
        let out = world.datagram((own, OUTSIDE), (friend, 53));
        assert!(!world.leaves(WEB, out));
        world.nos.assert_balanced();
    }
}

#[test]
fn flows_end_with_what_allowed_them() {
    let learn = Policy {
        outside: Outside::Learn,
        ..guarded()
    };
    let mut world = World::new(learn.clone());
    let (own, friend) = (N4, X4);
    for port in [OUTSIDE, EPHEMERAL] {
        let out = world.datagram((own, port), (friend, 53));
        assert!(world.leaves(WEB, out));
    }
    assert_eq!(world.nos.shim.flow_count(), Some(2));
    let again = |policy| {
        register(vec![registration(
            WEB,
            &[OPEN, CLOSED],
            &[EPHEMERAL],
            policy,
        )])
    };
    world
        .nos
        .shim
        .exchange(&again(learn.clone()), Instant::ZERO)
        .unwrap();
    assert_eq!(world.nos.shim.flow_count(), Some(2), "nothing has changed");
    world
        .nos
        .shim
        .exchange(&again(guarded()), Instant::ZERO)
        .unwrap();
    assert_eq!(
        world.nos.shim.flow_count(),
        Some(1),
        "nothing is learnt any more"
    );
    let nowhere = Policy {
        to: Some(Arc::default()),
        ..guarded()
    };
    world
        .nos
        .shim
        .exchange(&again(nowhere), Instant::ZERO)
        .unwrap();
    assert_eq!(world.nos.shim.flow_count(), Some(0));
    world
        .nos
        .shim
        .exchange(&again(learn), Instant::ZERO)
        .unwrap();
    let out = world.datagram((own, OUTSIDE), (friend, 53));
    assert!(world.leaves(WEB, out));
    let gone = Exchange {
        withdraw: vec![WEB],
        ..Exchange::default()
    };
    world.nos.shim.exchange(&gone, Instant::ZERO).unwrap();
    assert_eq!(world.nos.shim.flow_count(), None, "nobody has a policy");
    let back = world.datagram((friend, 53), (own, OUTSIDE));
    assert_eq!(world.arrives(back), None);
    world.nos.assert_balanced();
}

#[test]
fn errors_about_flows_find_their_container() {
    let learn = Policy {
        outside: Outside::Learn,
        ..guarded()
    };
    for family in Family::BOTH {
        for port in [OUTSIDE, EPHEMERAL, CLOSED] {
            let mut world = World::new(learn.clone());
            let (own, stranger) = (family.own(), family.stranger());
            let router = family.friend();
            let out = world.datagram((own, port), (stranger, 53));
            let quoted = out.ip().to_vec();
            assert!(world.leaves(WEB, out));
            // Too big, with an MTU of 1280.
            let kind = family.pick((3, 4), (2, 0));
            let about = |quoted: &[u8], pool: &mut _| {
                Draft::new(router, own).icmp_packet(pool, kind, 1280, quoted)
            };
            let error = about(&quoted, &mut world.nos.pool);
            assert_eq!(world.arrives(error), Some(WEB), "{family:?} {port}");
            // Of a flow that is none of ours.
            let other = Draft::new(own, stranger).udp_packet(&mut world.nos.pool, (port, 54), b"x");
            let error = about(other.ip(), &mut world.nos.pool);
            assert_eq!(world.arrives(error), None, "{family:?} {port}");
            assert_eq!(world.drops(DropReason::IcmpUnmatched), 1);
        }
    }
}

#[test]
fn errors_of_a_container_are_about_what_came_to_it() {
    let policy = Policy {
        to: Some(friends()),
        outside: Outside::Learn,
        ..Policy::default()
    };
    for family in Family::BOTH {
        let mut world = World::new(policy.clone());
        let (own, stranger) = (family.own(), family.stranger());
        let kind = family.pick((3, 3), (1, 4));
        let come = world.datagram((stranger, 999), (own, OPEN));
        let quoted = come.ip().to_vec();
        assert_eq!(world.arrives(come), Some(WEB));
        let error = Draft::new(own, stranger).icmp_packet(&mut world.nos.pool, kind, 0, &quoted);
        assert!(world.leaves(WEB, error));
        for (port, from) in [(OPEN, 998), (OUTSIDE, 999)] {
            let never = world.datagram((stranger, from), (own, port));
            let quoted = never.ip().to_vec();
            let error =
                Draft::new(own, stranger).icmp_packet(&mut world.nos.pool, kind, 0, &quoted);
            assert!(!world.leaves(WEB, error), "{port}");
            assert_eq!(world.told(), None);
        }
        world.nos.assert_balanced();
    }
}

#[test]
fn fragments_go_with_the_first() {
    let policy = Policy {
        to: Some(friends()),
        ..guarded()
    };
    let mut world = World::new(policy);
    // In: the first belongs to a flow, or not.
    let out = world.datagram((N4, EPHEMERAL), (X4, 53));
    assert!(world.leaves(WEB, out));
    let mut fragments = |source: &str, from: u16, identification: u16| {
        let draft = Draft {
            identification,
            ..Draft::new(source, N4)
        };
        let whole = draft.udp((from, EPHEMERAL), &[7; 32]);
        let first = Draft {
            fragment: 0x2000,
            ..draft.clone()
        };
        let later = Draft {
            fragment: 3,
            ..draft
        };
        let pool = &mut world.nos.pool;
        [
            first.packet(pool, protocol::UDP, &whole[..24]),
            later.packet(pool, protocol::UDP, &whole[24..]),
        ]
    };
    let [first, later] = fragments(X4, 53, 1);
    let [foreign_first, foreign_later] = fragments(X4, 54, 2);
    assert_eq!(world.arrives(later), None, "its first is not known");
    assert_eq!(world.arrives(first), Some(WEB));
    for packet in [foreign_first, foreign_later] {
        assert_eq!(world.arrives(packet), None);
    }
    // Out: to somebody who has asked, and to somebody who has not.
    let come = world.datagram((FAR4, 999), (N4, OPEN));
    assert_eq!(world.arrives(come), Some(WEB));
    let send = |world: &mut World, port: u16, identification: u16, fragment: u16| {
        let draft = Draft {
            identification,
            fragment,
            ..Draft::new(N4, FAR4)
        };
        let whole = draft.udp((OPEN, port), &[7; 32]);
        let part = if fragment == 0x2000 {
            &whole[..24]
        } else {
            &whole[24..]
        };
        let packet = draft.packet(&mut world.nos.pool, protocol::UDP, part);
        world.leaves(WEB, packet)
    };
    assert!(!send(&mut world, 999, 5, 3), "before its first");
    assert!(send(&mut world, 999, 5, 0x2000));
    assert!(send(&mut world, 999, 5, 3));
    assert!(!send(&mut world, 998, 6, 0x2000));
    assert!(!send(&mut world, 998, 6, 3));
    world.nos.assert_balanced();
}

#[test]
fn an_ftp_server_opens_the_connection_that_was_announced() {
    let learn = Policy {
        outside: Outside::Learn,
        ..guarded()
    };
    for family in Family::BOTH {
        for (data, command) in [
            (
                EPHEMERAL + 9,
                family.pick(
                    "PORT 203,0,113,1,156,73\r\n",
                    "EPRT |2|2001:db8:1::1|40009|\r\n",
                ),
            ),
            (
                OUTSIDE + 9,
                family.pick(
                    "EPRT |1|203.0.113.1|50009|\r\n",
                    "EPRT |2|2001:db8:1::1|50009|\r\n",
                ),
            ),
        ] {
            let mut world = World::new(learn.clone());
            let (own, server, stranger) = (family.own(), family.friend(), family.stranger());
            let syn = world.segment((own, EPHEMERAL), (server, 21), SYN);
            assert!(world.leaves(WEB, syn));
            let early = world.segment((server, 20), (own, data), SYN);
            assert_eq!(world.arrives(early), None);
            let segment = Segment {
                ports: (EPHEMERAL, 21),
                sequence: 101,
                flags: ACK | 8,
                payload: command.as_bytes(),
                ..Segment::default()
            };
            let announce = Draft::new(own, server).tcp_packet(&mut world.nos.pool, &segment);
            assert!(world.leaves(WEB, announce));
            let other = world.segment((stranger, 20), (own, data), SYN);
            assert_eq!(world.arrives(other), None);
            let syn = world.segment((server, 20), (own, data), SYN);
            assert_eq!(world.arrives(syn), Some(WEB), "{command}");
            let answer = world.segment((own, data), (server, 20), SYN | ACK);
            assert!(world.leaves(WEB, answer));
            let again = world.segment((server, 22), (own, data), SYN);
            assert_eq!(world.arrives(again), None, "one was announced");
        }
    }
}

#[test]
fn siblings_are_judged_at_both_ends() {
    let mut world = World::new(guarded());
    let db = registration(DB, &[30_000], &[31_000], Policy::default());
    world
        .nos
        .shim
        .exchange(&register(vec![db]), Instant::ZERO)
        .unwrap();
    let syn = world.segment((N4, 31_000), (N4, CLOSED), SYN);
    world.nos.outbound(DB, syn);
    let answer = world.nos.delivered();
    assert_eq!(
        answer[0].tcp_flags(),
        Some(0x14),
        "the address is no friend"
    );
    let out = world.datagram((N4, EPHEMERAL), (N4, 30_000));
    world.nos.outbound(WEB, out);
    assert_eq!(world.nos.delivered().len(), 1);
    let back = world.datagram((N4, 30_000), (N4, EPHEMERAL));
    world.nos.outbound(DB, back);
    assert_eq!(world.nos.delivered().len(), 1);
    let other = world.datagram((N4, 30_001), (N4, EPHEMERAL));
    world.nos.outbound(DB, other);
    let refused = world.nos.delivered();
    assert_eq!(refused[0].icmp(), Some((3, 3)));
    world.nos.assert_balanced();
}

/// A flood of one container is refused or forgotten, and the flow of another goes on.
#[test]
fn a_flood_does_not_end_another_containers_flow() {
    let mut world = World::new(guarded());
    let db = registration(
        DB,
        &[],
        &[31_000],
        Policy {
            established: vec![range(31_000)],
            ..Policy::default()
        },
    );
    world
        .nos
        .shim
        .exchange(&register(vec![db]), Instant::ZERO)
        .unwrap();
    let [syn, back] = [
        world.segment((N4, 31_000), (X4, 80), SYN),
        world.segment((X4, 80), (N4, 31_000), SYN | ACK),
    ];
    assert!(world.leaves(DB, syn));
    assert_eq!(world.arrives(back), Some(DB));
    for port in 1..=40_000_u16 {
        let flood = world.segment((N4, EPHEMERAL + port % 100), (X4, port), SYN);
        assert!(world.leaves(WEB, flood));
    }
    let count = world.nos.shim.flow_count().unwrap();
    assert!(count < 65_536 / 4, "{count}");
    let ack = world.segment((X4, 80), (N4, 31_000), ACK);
    assert_eq!(world.arrives(ack), Some(DB));
    world.nos.assert_balanced();
}
