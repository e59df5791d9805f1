//! A container on the link of an uplink.

use core::net::IpAddr;

use super::oversize::{NARROW, NOS, Nos, STATION, UPLINK, WIDE};
use crate::channel::Exchange;
use crate::drop::DropReason;
use crate::ident::{AttachmentId, Interface, MacAddr, UplinkId, VrfId};
use crate::packet::Packet;
use crate::ports::{
    AddressMode, Claim, ClaimKind, Policy, PortRange, Registration, RegistrationRefused, Transport,
};
use crate::test_packets::{Draft, N4, N6, Segment, X6, ip};
use crate::time::Instant;

const NEIGHBOR: &str = "fe80::2";
/// Beyond any link.
const FAR: &str = "2001:db8:9::9";
/// Of the container on the link, and of the other one.
const PORTS: [u16; 2] = [5000, 6000];
const SYN: u8 = 0x02;
const RST: u8 = 0x04;

fn registration(id: AttachmentId, port: u16, link_local: Option<UplinkId>) -> Registration {
    let claim = |transport| Claim {
        transport,
        range: PortRange::new(port, port).unwrap(),
        kind: ClaimKind::Listen,
    };
    Registration {
        attachment: id,
        name: format!("c{}", id.0).into(),
        vrf: VrfId::DEFAULT,
        network: crate::ident::NetworkId::DEFAULT,
        mode: AddressMode::Shared,
        addresses: vec![ip(N4), ip(N6)],
        link_local,
        claims: [Transport::Tcp, Transport::Udp].map(claim).into(),
        policy: Policy::default(),
        router: MacAddr([2; 6]).link_local(),
        mtu: 1500,
    }
}

/// A NOS that knows the neighbor, with the first container on its uplink's link.
fn nos() -> Nos {
    let mut nos = Nos::new();
    let register = vec![
        registration(NARROW, PORTS[0], Some(UPLINK)),
        registration(WIDE, PORTS[1], None),
    ];
    let exchange = Exchange {
        register,
        ..Exchange::default()
    };
    nos.shim.exchange(&exchange, Instant::ZERO).unwrap();
    nos.know(NEIGHBOR);
    nos
}

/// The link-local address of the uplink.
fn shared() -> String {
    NOS.link_local().to_string()
}

fn zone() -> VrfId {
    VrfId::of_link(UPLINK).unwrap()
}

fn segment(nos: &mut Nos, source: &str, destination: &str, ports: (u16, u16)) -> Packet {
    let segment = Segment {
        ports,
        flags: SYN,
        ..Segment::default()
    };
    Draft::new(source, destination).tcp_packet(&mut nos.pool, &segment)
}

/// What leaves of a segment that a container sends in a zone, and what it hears.
fn outbound(
    nos: &mut Nos,
    id: AttachmentId,
    zone: VrfId,
    destination: &str,
) -> (Vec<Packet>, Vec<Packet>) {
    let mut packet = segment(nos, &shared(), destination, (PORTS[0], 179));
    packet.set_vrf(zone);
    nos.outbound(id, packet);
    (nos.sent(), nos.delivered())
}

#[test]
fn packets_leave_by_the_link_with_all_their_hops() {
    let mut nos = nos();
    for destination in [NEIGHBOR, X6] {
        let (sent, heard) = outbound(&mut nos, NARROW, zone(), destination);
        let [packet] = &sent[..] else {
            panic!("{destination}: {sent:?}, {heard:?}");
        };
        assert_eq!(packet.destination_mac(), STATION);
        assert_eq!(packet.source_mac(), NOS);
        assert_eq!(packet.source(), ip(&shared()));
        assert_eq!(packet.ttl(), Draft::v6().ttl);
        assert_eq!(heard.len(), 0);
    }
    nos.assert_balanced();
}

#[test]
fn nothing_leaves_for_whom_the_link_is_not_shared_with() {
    let mut nos = nos();
    let before = nos.shim.ledger().drops.of(DropReason::MartianSource);
    let other = VrfId::of_link(UplinkId(1)).unwrap();
    for (id, zone) in [(WIDE, zone()), (NARROW, other)] {
        let (sent, heard) = outbound(&mut nos, id, zone, NEIGHBOR);
        assert_eq!((sent.len(), heard.len()), (0, 0));
    }
    let dropped = nos.shim.ledger().drops.of(DropReason::MartianSource);
    assert_eq!(dropped, before + 2);
    // Beyond the link nobody is reached from there.
    let (sent, heard) = outbound(&mut nos, NARROW, zone(), FAR);
    assert_eq!(sent.len(), 0);
    assert_eq!(heard[0].icmp(), Some((1, 0)));
    nos.assert_balanced();
}

#[test]
fn the_owner_of_the_port_gets_what_comes_to_the_link_local_address() {
    let mut nos = nos();
    for source in [NEIGHBOR, X6] {
        let packet = segment(&mut nos, source, &shared(), (179, PORTS[0]));
        nos.receive(packet);
        let delivered = nos.delivered();
        let [packet] = &delivered[..] else {
            panic!("{source}: {delivered:?}");
        };
        let to = Some(Interface::Attachment(NARROW));
        assert_eq!(packet.frame().interface(), to);
        assert_eq!(packet.ttl(), Draft::v6().ttl);
        // Of nobody there, although it is a container's, or the NOS's, elsewhere.
        for port in [PORTS[1], 7, 22] {
            let packet = segment(&mut nos, source, &shared(), (179, port));
            nos.receive(packet);
            assert_eq!(nos.delivered().len(), 0, "{port}");
            let sent = nos.sent();
            let [reset] = &sent[..] else {
                panic!("{source} {port}: {sent:?}");
            };
            assert_eq!(reset.tcp_flags().map(|flags| flags & RST), Some(RST));
            let ends = (reset.source(), reset.destination());
            assert_eq!(ends, (ip(&shared()), ip(source)));
        }
    }
    nos.assert_balanced();
}

#[test]
fn errors_reach_whom_they_are_about() {
    let mut nos = nos();
    for (port, reaches) in [(PORTS[0], true), (PORTS[1], false)] {
        let quoted = segment(&mut nos, &shared(), NEIGHBOR, (port, 179));
        let draft = Draft::new(NEIGHBOR, &shared());
        let error = draft.icmp_packet(&mut nos.pool, (1, 4), 0, quoted.ip());
        nos.receive(error);
        assert_eq!(nos.delivered().len(), usize::from(reaches), "{port}");
    }
    assert_eq!(nos.shim.ledger().drops.of(DropReason::IcmpUnmatched), 1);
}

#[test]
fn what_is_too_long_for_the_container_is_told_from_the_link_local_address() {
    let mut nos = nos();
    for source in [NEIGHBOR, X6] {
        let draft = Draft::new(source, &shared());
        let packet = draft.udp_packet(&mut nos.pool, (53, PORTS[0]), &[0; 3000]);
        nos.receive(packet);
        assert_eq!(nos.delivered().len(), 0);
        let sent = nos.sent();
        let [error] = &sent[..] else {
            panic!("{source}: {sent:?}");
        };
        assert_eq!(error.icmp(), Some((2, 0)));
        let ends = (error.source(), error.destination());
        assert_eq!(ends, (ip(&shared()), ip(source)));
    }
    nos.assert_balanced();
}

#[test]
fn a_link_is_shared_as_long_as_its_uplink_is_there() {
    let mut nos = nos();
    let nobody = UplinkId::new(0, 1);
    let exchange = Exchange {
        register: vec![registration(NARROW, PORTS[0], Some(nobody))],
        ..Exchange::default()
    };
    let refused = nos.shim.exchange(&exchange, Instant::ZERO).unwrap_err();
    assert_eq!(refused.reason, RegistrationRefused::UnknownLink(nobody));
    nos.shim.remove_uplink(UPLINK);
    let (sent, heard) = outbound(&mut nos, NARROW, zone(), NEIGHBOR);
    assert_eq!((sent.len(), heard.len()), (0, 0));
    nos.assert_balanced();
}

#[test]
fn a_sibling_on_the_link_is_reached_by_its_port() {
    let mut nos = nos();
    let exchange = Exchange {
        register: vec![registration(WIDE, PORTS[1], Some(UPLINK))],
        ..Exchange::default()
    };
    nos.shim.exchange(&exchange, Instant::ZERO).unwrap();
    let own: IpAddr = NOS.link_local().into();
    let mut packet = segment(&mut nos, &shared(), &own.to_string(), (PORTS[0], PORTS[1]));
    packet.set_vrf(zone());
    nos.outbound(NARROW, packet);
    let to = Some(Interface::Attachment(WIDE));
    assert_eq!(nos.delivered()[0].frame().interface(), to);
    nos.assert_balanced();
}
