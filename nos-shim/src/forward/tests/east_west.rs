//! What containers send to the address that they share.

use std::sync::Arc;

use super::oversize::{NARROW, Nos, WIDE};
use super::registration;
use crate::channel::Exchange;
use crate::drop::DropReason;
use crate::ident::{AttachmentId, Interface, NetworkId};
use crate::packet::Packet;
use crate::ports::{Outside, Policy, PortRange, Registration, Restriction, Transport};
use crate::prefix_set::PrefixSet;
use crate::test_packets::{Draft, N4, N6, Segment, ip};
use crate::time::Instant;

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const RST: u8 = 0x04;
/// Of the first container, then of the second.
const LISTEN: [u16; 2] = [5000, 6000];
const EPHEMERAL: [u16; 2] = [40_000, 41_000];
const CONTAINERS: [AttachmentId; 2] = [NARROW, WIDE];
const NOBODYS: u16 = 22;
const SERVICE: u16 = 7;

fn registered(at: usize) -> Registration {
    registration(CONTAINERS[at], LISTEN[at], EPHEMERAL[at])
}

fn nos() -> Nos {
    let mut nos = Nos::new();
    let exchange = Exchange {
        withdraw: Vec::new(),
        register: vec![registered(0), registered(1)],
        services: None,
    };
    nos.shim.exchange(&exchange, Instant::ZERO).unwrap();
    nos
}

/// What comes back to whom of a segment from the first container to the shared address.
fn segment(nos: &mut Nos, address: &str, ports: (u16, u16), flags: u8) -> Vec<Packet> {
    let segment = Segment {
        ports,
        flags,
        ..Segment::default()
    };
    let packet = Draft::new(address, address).tcp_packet(&mut nos.pool, &segment);
    nos.outbound(NARROW, packet);
    assert_eq!(nos.sent().len(), 0, "nothing leaves");
    nos.delivered()
}

fn is_for(packet: &Packet, container: usize) -> bool {
    packet.frame().interface() == Some(Interface::Attachment(CONTAINERS[container]))
}

#[test]
fn each_segment_to_the_shared_address_goes_to_who_has_the_port() {
    for address in [N4, N6] {
        let mut nos = nos();
        for (port, flags, owner) in [
            // A sibling's, its own, and both of flows that were opened before.
            (LISTEN[1], SYN, 1),
            (LISTEN[0], SYN, 0),
            (EPHEMERAL[1], ACK, 1),
            (EPHEMERAL[0], ACK, 0),
            // A listener on a port that the kernel gave it is for its own programs alone.
            (EPHEMERAL[0], SYN, 0),
        ] {
            let delivered = segment(&mut nos, address, (EPHEMERAL[0], port), flags);
            let [packet] = &delivered[..] else {
                panic!("{port}: {delivered:?}");
            };
            assert!(is_for(packet, owner), "{port}");
            let ports = packet.ports().unwrap();
            assert_eq!((ports.source, ports.destination), (EPHEMERAL[0], port));
            // Both are the NOS: no router is passed.
            assert_eq!(packet.ttl(), Draft::v4().ttl, "{port}");
            assert_eq!(packet.source(), ip(address));
        }
        nos.assert_balanced();
    }
}

#[test]
fn what_is_nobodys_or_a_siblings_own_is_reset() {
    for address in [N4, N6] {
        let mut nos = nos();
        for port in [NOBODYS, EPHEMERAL[1]] {
            let delivered = segment(&mut nos, address, (EPHEMERAL[0], port), SYN);
            let [reset] = &delivered[..] else {
                panic!("{port}: {delivered:?}");
            };
            assert!(is_for(reset, 0));
            assert_eq!(
                (reset.source(), reset.destination()),
                (ip(address), ip(address))
            );
            let ports = reset.ports().unwrap();
            assert_eq!((ports.source, ports.destination), (port, EPHEMERAL[0]));
            assert_eq!(reset.transport()[13], 0x14, "RST and ACK");
        }
        nos.assert_balanced();
    }
}

#[test]
fn datagrams_to_nobody_are_refused_and_those_to_services_answered() {
    for address in [N4, N6] {
        let mut nos = nos();
        let draft = Draft::new(address, address);
        for (port, icmp) in [(NOBODYS, true), (SERVICE, false)] {
            let datagram = draft.udp_packet(&mut nos.pool, (EPHEMERAL[0], port), b"x");
            nos.outbound(NARROW, datagram);
            let delivered = nos.delivered();
            let [answer] = &delivered[..] else {
                panic!("{port}: {delivered:?}");
            };
            assert!(is_for(answer, 0));
            assert_eq!(answer.icmp().is_some(), icmp, "{port}");
            assert_eq!(answer.destination(), ip(address));
        }
        assert_eq!(nos.sent().len(), 0);
        nos.assert_balanced();
    }
}

/// A container that only an outsider may reach, that may speak to that outsider alone, and whose
/// ephemeral ports are for flows that it has opened.
#[test]
fn policies_are_about_others() {
    let outsider = |text: &str| Arc::new(PrefixSet::new([text.parse().unwrap()]));
    for (address, text) in [(N4, "198.51.100.0/24"), (N6, "2001:db8:9::/48")] {
        let mut nos = nos();
        let port = |port| PortRange::new(port, port).unwrap();
        let policy = Policy {
            from: vec![Restriction {
                transport: Transport::Tcp,
                range: port(LISTEN[0]),
                from: outsider(text),
            }],
            established: vec![port(EPHEMERAL[0])],
            to: Some(outsider(text)),
            outside: Outside::Drop,
        };
        let register = vec![Registration {
            policy,
            ..registered(0)
        }];
        let exchange = Exchange {
            register,
            ..Exchange::default()
        };
        nos.shim.exchange(&exchange, Instant::ZERO).unwrap();
        for (ports, flags) in [
            ((EPHEMERAL[0], LISTEN[0]), SYN),
            ((LISTEN[0], EPHEMERAL[0]), SYN | ACK),
            ((EPHEMERAL[0], EPHEMERAL[0]), SYN),
        ] {
            let delivered = segment(&mut nos, address, ports, flags);
            let [packet] = &delivered[..] else {
                panic!("{ports:?}: {delivered:?}");
            };
            assert!(is_for(packet, 0) && packet.icmp().is_none(), "{ports:?}");
            assert_eq!(packet.transport()[13], flags, "{ports:?}");
        }
        // A sibling is another.
        let delivered = segment(&mut nos, address, (EPHEMERAL[0], LISTEN[1]), SYN);
        assert!(
            delivered
                .iter()
                .all(|packet| is_for(packet, 0) && packet.icmp().is_some())
        );
        nos.assert_balanced();
    }
}

/// Containers of different networks are strangers on the address that they share, whatever they send.
#[test]
fn networks_are_kept_apart() {
    for address in [N4, N6] {
        let mut nos = nos();
        let in_network = |at, network| Registration {
            network: NetworkId(network),
            ..registered(at)
        };
        let put = |nos: &mut Nos, networks: [u32; 2]| {
            let [one, other] = networks;
            let exchange = Exchange {
                register: vec![in_network(0, one), in_network(1, other)],
                ..Exchange::default()
            };
            nos.shim.exchange(&exchange, Instant::ZERO).unwrap();
        };
        for (networks, apart) in [([0, 1], true), ([2, 1], true), ([1, 1], false)] {
            put(&mut nos, networks);
            for (ports, flags) in [
                ((EPHEMERAL[0], LISTEN[1]), SYN),
                ((LISTEN[0], EPHEMERAL[1]), SYN | ACK),
            ] {
                let delivered = segment(&mut nos, address, ports, flags);
                let [packet] = &delivered[..] else {
                    panic!("{ports:?}: {delivered:?}");
                };
                assert_eq!(is_for(packet, 1), !apart, "{networks:?} {ports:?}");
                if apart {
                    assert!(packet.transport()[13] & RST != 0, "as if nobody listened");
                }
            }
            let datagram = Draft::new(address, address);
            let datagram = datagram.udp_packet(&mut nos.pool, (EPHEMERAL[0], LISTEN[1]), b"x");
            nos.outbound(NARROW, datagram);
            let delivered = nos.delivered();
            assert_eq!(is_for(&delivered[0], 1), !apart, "{networks:?}");
            assert_eq!(delivered[0].icmp().is_some(), apart, "{networks:?}");
            // Its own ports are its own wherever it is, and so are services of the NOS.
            let own = segment(&mut nos, address, (EPHEMERAL[0], LISTEN[0]), SYN);
            assert!(is_for(&own[0], 0) && own[0].icmp().is_none());
            let asked = Draft::new(address, address);
            let asked = asked.udp_packet(&mut nos.pool, (EPHEMERAL[0], SERVICE), b"x");
            nos.outbound(NARROW, asked);
            let answered = nos.delivered();
            assert!(is_for(&answered[0], 0) && answered[0].icmp().is_none());
        }
        let refused = nos.shim.ledger().drops.of(DropReason::OtherNetwork);
        assert_eq!(refused, 6);
        nos.assert_balanced();
    }
}
