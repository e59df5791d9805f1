//! Two VRFs with the same addresses, ports and neighbors: nothing of one is seen in the other.

use core::net::IpAddr;

use crate::arp::Arp;
use crate::channel::{Exchange, RelayEnd, pair};
use crate::drop::DropReason;
use crate::fib::{Action, InactiveReason, NextHop, NextHops, Route, RouteChange, Source};
use crate::frame::{FramePool, MAX_FRAME};
use crate::ident::{AttachmentId, Interface, MacAddr, UplinkId, VrfId};
use crate::ndp::{Envelope, Ndp, solicited_node};
use crate::packet::{Packet, protocol};
use crate::ports::{
    AddressMode, Claim, ClaimKind, Policy, PortOwner, PortRange, Registration, Transport,
};
use crate::services::{Service, ServiceConfig};
use crate::shim::{LinkState, Shim, ShimConfig, UplinkConfig};
use crate::test_packets::{Draft, N4, N6, X4, X6, ip};
use crate::time::{Duration, Instant};

const NOW: Instant = Instant::from_millis(5_000);
/// Both have the port in both VRFs, each in its own.
const PORT: u16 = 5000;
const NOBODYS: u16 = 6000;
const MORE: u16 = 0x2000;
const VRFS: [u16; 2] = [0, 3];

/// The uplink, the container and the outsider of a VRF have its place among [`VRFS`].
struct Twins {
    shim: Shim,
    relay: RelayEnd,
    pool: FramePool,
    now: Instant,
}

fn nos_mac(place: u32) -> MacAddr {
    MacAddr([2, 0, 0, 0, 1, place as u8])
}

fn station(place: u32) -> MacAddr {
    MacAddr([2, 0, 0, 0, 2, place as u8])
}

fn uplink(place: u32, vrf: u16) -> UplinkConfig {
    UplinkConfig {
        id: UplinkId(place),
        name: format!("up{place}").into(),
        vrf: VrfId(vrf),
        mac: nos_mac(place),
        addresses: [format!("{N4}/24"), format!("{N6}/64")]
            .map(|net| net.parse().unwrap())
            .into(),
        mtu: 1500,
        redirects: true,
    }
}

fn registration(id: u32, vrf: u16) -> Registration {
    let claim = |transport| Claim {
        transport,
        range: PortRange::new(PORT, PORT).unwrap(),
        kind: ClaimKind::Listen,
    };
    Registration {
        attachment: AttachmentId(id),
        name: format!("c{id}").into(),
        vrf: VrfId(vrf),
        network: crate::ident::NetworkId::DEFAULT,
        mode: AddressMode::Shared,
        addresses: vec![ip(N4), ip(N6)],
        claims: [Transport::Tcp, Transport::Udp].map(claim).into(),
        link_local: None,
        router: MacAddr([2; 6]).link_local(),
        mtu: 1500,
        policy: Policy::default(),
    }
}

fn default_route(place: u32, vrf: u16) -> Route {
    let hop = NextHop {
        gateway: ip(X4),
        uplink: UplinkId(place),
    };
    Route {
        vrf: VrfId(vrf),
        prefix: "0.0.0.0/0".parse().unwrap(),
        source: Source::Static { metric: 0 },
        action: Action::Via(NextHops::new([hop]).unwrap()),
    }
}

fn drafts() -> [Draft; 2] {
    [Draft::v4(), Draft::v6()]
}

impl Twins {
    fn new() -> Self {
        let (relay, end) = pair(8);
        let pool = FramePool::new(1024, MAX_FRAME);
        let shim = Shim::new(end, pool.clone(), ShimConfig::default());
        let mut twins = Self {
            shim,
            relay,
            pool,
            now: NOW,
        };
        let uplinks = (0..).zip(VRFS).map(|(place, vrf)| uplink(place, vrf));
        twins.shim.set_uplinks(uplinks.collect(), NOW).unwrap();
        let register = (0..).zip(VRFS).map(|(id, vrf)| registration(id, vrf));
        let exchange = Exchange {
            register: register.collect(),
            ..Exchange::default()
        };
        twins.shim.exchange(&exchange, Instant::ZERO).unwrap();
        for place in 0..2 {
            let id = UplinkId(place);
            twins.shim.set_link(id, LinkState::Up, NOW).unwrap();
            twins.introduce(place);
        }
        let routes = (0..)
            .zip(VRFS)
            .map(|(place, vrf)| default_route(place, vrf));
        let routes = routes.map(RouteChange::Set).collect();
        twins.shim.change_routes(routes).unwrap();
        twins.sent();
        twins
    }

    /// The outsider on an uplink asks for the NOS, and so is known to it.
    fn introduce(&mut self, place: u32) {
        let (IpAddr::V4(x4), IpAddr::V4(n4)) = (ip(X4), ip(N4)) else {
            panic!("both are IPv4");
        };
        let mut arp = self.pool.alloc().unwrap();
        let question = Arp::request(station(place), x4, n4);
        question.write(&mut arp, MacAddr::BROADCAST).unwrap();
        let (IpAddr::V6(x6), IpAddr::V6(target)) = (ip(X6), ip(N6)) else {
            panic!("both are IPv6");
        };
        let mut ndp = self.pool.alloc().unwrap();
        let question = Ndp::NeighborSolicit {
            target,
            source_link_layer: Some(station(place)),
        };
        let envelope = Envelope::to_group(station(place), x6, solicited_node(target));
        question.write(&mut ndp, &envelope).unwrap();
        let mut burst = [arp, ndp].into_iter().collect();
        self.shim
            .handle_burst(UplinkId(place), &mut burst, self.now);
    }

    fn receive(&mut self, place: u32, mut packet: Packet) {
        packet.set_link(nos_mac(place), station(place));
        let mut burst = [packet.into_frame()].into_iter().collect();
        self.shim
            .handle_burst(UplinkId(place), &mut burst, self.now);
    }

    fn outbound(&mut self, place: u32, mut packet: Packet) {
        packet.set_interface(Interface::Attachment(AttachmentId(place)));
        packet.set_vrf(VrfId(VRFS[place as usize]));
        let mut burst = [packet].into_iter().collect();
        assert!(self.relay.send_burst(&mut burst));
        self.shim.poll_channel(self.now, 1);
    }

    /// What containers get: which one, and what.
    fn delivered(&mut self) -> Vec<(u32, Packet)> {
        let bursts = core::iter::from_fn(|| self.relay.recv_burst());
        let packets = bursts
            .flatten()
            .map(|packet| match packet.frame().interface() {
                Some(Interface::Attachment(id)) => (id.0, packet),
                other => panic!("{other:?}"),
            });
        packets.collect()
    }

    fn delivered_to(&mut self) -> Vec<u32> {
        self.delivered().into_iter().map(|(id, _)| id).collect()
    }

    /// What leaves: by which uplink, and what. It goes to that uplink's outsider.
    fn sent(&mut self) -> Vec<(u32, Packet)> {
        let mut sent = Vec::new();
        while let Some((uplink, burst)) = self.shim.poll_transmit() {
            let packets = burst.drain(..).map(Packet::parse).filter_map(Result::ok);
            sent.extend(packets.map(|packet| (uplink.0, packet)));
        }
        sent
    }

    #[track_caller]
    fn sent_by(&mut self) -> Vec<u32> {
        let sent = self.sent();
        for (place, packet) in &sent {
            let frame = packet.frame().bytes();
            assert_eq!(frame[..6], station(*place).0, "the neighbor of another VRF");
            assert_eq!(frame[6..12], nos_mac(*place).0);
        }
        sent.into_iter().map(|(place, _)| place).collect()
    }

    #[track_caller]
    fn assert_balanced(&self) {
        let held = self.shim.held() as i128;
        assert_eq!(self.shim.ledger().unaccounted(), held);
    }

    fn dropped(&self, reason: DropReason) -> u64 {
        self.shim.ledger().drops.of(reason)
    }
}

#[test]
fn the_same_port_and_neighbor_have_other_owners_in_each() {
    let mut twins = Twins::new();
    for place in [0, 1, 1, 0] {
        for draft in drafts() {
            let packet = draft.udp_packet(&mut twins.pool, (9, PORT), b"to the owner");
            twins.receive(place, packet);
            assert_eq!(twins.delivered_to(), [place]);
            let back = Draft {
                source: draft.destination,
                destination: draft.source,
                ..draft.clone()
            };
            // The first goes the long way, the second what was prepared of it.
            for _ in 0..2 {
                let packet = back.udp_packet(&mut twins.pool, (PORT, 9), b"from the owner");
                twins.outbound(place, packet);
                assert_eq!(twins.sent_by(), [place]);
            }
        }
        // By the default route.
        for _ in 0..2 {
            let far = Draft::new(N4, "198.51.100.9");
            let packet = far.udp_packet(&mut twins.pool, (PORT, 9), b"far");
            twins.outbound(place, packet);
            assert_eq!(twins.sent_by(), [place]);
        }
    }
    twins.assert_balanced();
}

#[test]
fn an_address_of_one_vrf_is_none_of_another() {
    let mut twins = Twins::new();
    let mut other = uplink(1, VRFS[1]);
    other.addresses = vec!["198.51.100.1/24".parse().unwrap()];
    twins.shim.set_uplink(other, NOW).unwrap();
    twins.sent();
    // In its VRF it is a host's; in the other it is far away, where the default route leads.
    let draft = Draft::new("198.51.100.9", "198.51.100.1");
    let packet = draft.udp_packet(&mut twins.pool, (9, NOBODYS), b"?");
    twins.receive(0, packet);
    assert_eq!(twins.sent_by(), [0], "transit, back to the router");
    // As a source it is a martian in its own VRF alone.
    let draft = Draft::new("198.51.100.1", N4);
    for (place, delivered) in [(0, 1), (1, 0)] {
        let packet = draft.udp_packet(&mut twins.pool, (9, PORT), b"?");
        twins.receive(place, packet);
        assert_eq!(twins.delivered().len(), delivered);
    }
    assert_eq!(twins.dropped(DropReason::MartianSource), 1);
    twins.sent();
    twins.assert_balanced();
}

#[test]
fn echo_identifiers_are_apart() {
    let mut twins = Twins::new();
    for (draft, request, reply) in [(Draft::v4(), 8, 0), (Draft::v6(), 128, 129)] {
        let out = Draft {
            source: draft.destination,
            destination: draft.source,
            ..draft.clone()
        };
        for place in 0..2 {
            let packet = out.icmp_packet(&mut twins.pool, (request, 0), 0x7777_0001, b"ping");
            twins.outbound(place, packet);
            let sent = twins.sent();
            let [(by, sent)] = &sent[..] else {
                panic!("one request: {sent:?}");
            };
            assert_eq!(
                (*by, sent.echo_id()),
                (place, Some(0x7777)),
                "not rewritten"
            );
        }
        for place in [1, 0] {
            let packet = draft.icmp_packet(&mut twins.pool, (reply, 0), 0x7777_0001, b"ping");
            twins.receive(place, packet);
            assert_eq!(twins.delivered_to(), [place]);
        }
    }
    twins.assert_balanced();
}

#[test]
fn fragments_meet_those_of_their_vrf() {
    let mut twins = Twins::new();
    let draft = Draft::v4();
    let payloads = [[0xa0; 24], [0xb0; 24]];
    let udp = payloads.map(|payload| draft.udp((9, PORT), &payload));
    let fragment = |place: usize, offset: u16, pool: &mut FramePool| {
        let later = Draft {
            fragment: (offset / 8) | if offset == 0 { MORE } else { 0 },
            ..draft.clone()
        };
        let octets = match offset {
            0 => &udp[place][..16],
            _ => &udp[place][16..],
        };
        later.packet(pool, protocol::UDP, octets)
    };
    // The second's later one waits for its own first, not for the other's.
    for (place, offset, delivered) in [
        (1, 16, &[][..]),
        (0, 0, &[0]),
        (1, 0, &[1, 1]),
        (0, 16, &[0]),
    ] {
        let packet = fragment(place, offset, &mut twins.pool);
        twins.receive(place as u32, packet);
        let all = twins.delivered();
        for (to, packet) in &all {
            let expected = payloads[*to as usize][0];
            let last = packet.frame().bytes().last().copied();
            assert_eq!(last, Some(expected));
        }
        let to: Vec<_> = all.iter().map(|(to, _)| *to).collect();
        assert_eq!(to, delivered);
    }
    assert_eq!(twins.shim.held(), 0);
    twins.assert_balanced();
}

#[test]
fn datagrams_to_the_nos_are_put_together_in_their_vrf() {
    let mut twins = Twins::new();
    let draft = Draft::v4();
    let message = draft.icmp(8, 0, 1, &[0x55; 24]);
    let half = |twins: &mut Twins, place, offset: u16| {
        let part = Draft {
            fragment: (offset / 8) | if offset == 0 { MORE } else { 0 },
            ..draft.clone()
        };
        let octets = match offset {
            0 => &message[..16],
            _ => &message[16..],
        };
        let packet = part.packet(&mut twins.pool, protocol::ICMP, octets);
        twins.receive(place, packet);
        twins.sent_by()
    };
    assert_eq!(half(&mut twins, 0, 0), []);
    assert_eq!(half(&mut twins, 1, 16), []);
    assert_eq!(half(&mut twins, 1, 0), [1]);
    assert_eq!(half(&mut twins, 0, 16), [0]);
    twins.assert_balanced();
}

#[test]
fn errors_are_limited_in_each_alone() {
    let mut twins = Twins::new();
    for (draft, burst) in [(Draft::v4(), 6), (Draft::v6(), 6)] {
        let refused = |twins: &mut Twins, place, count| {
            for _ in 0..count {
                let packet = draft.udp_packet(&mut twins.pool, (9, NOBODYS), b"?");
                twins.receive(place, packet);
            }
            let sent = twins.sent_by();
            assert!(sent.iter().all(|by| *by == place));
            sent.len()
        };
        assert_eq!(refused(&mut twins, 0, 50), burst);
        assert_eq!(refused(&mut twins, 0, 50), 0);
        // The same peer of the other VRF has lost nothing by that.
        assert_eq!(refused(&mut twins, 1, 50), burst);
        assert_eq!(refused(&mut twins, 1, 50), 0);
        twins.now = twins.now + Duration::from_secs(60);
    }
    // Nor does a flood from everywhere take what all peers have together.
    let flood = |twins: &mut Twins, place| {
        for host in 0..=255 {
            let draft = Draft::new(&format!("198.51.100.{host}"), N4);
            let packet = draft.udp_packet(&mut twins.pool, (9, NOBODYS), b"?");
            twins.receive(place, packet);
        }
        twins.sent_by().len()
    };
    assert_eq!(flood(&mut twins, 0), 50);
    assert_eq!(flood(&mut twins, 0), 0);
    assert_eq!(flood(&mut twins, 1), 50);
    twins.assert_balanced();
}

#[test]
fn redirects_are_limited_in_each_alone() {
    let mut twins = Twins::new();
    let draft = Draft::new(X4, "203.0.113.77");
    let told = |twins: &mut Twins, place| {
        let packet = draft.udp_packet(&mut twins.pool, (9, 9), b"there is a better way");
        twins.receive(place, packet);
        let sent = twins.sent();
        let redirects = sent
            .iter()
            .filter(|(by, packet)| *by == place && packet.icmp() == Some((5, 1)));
        redirects.count()
    };
    assert_eq!([told(&mut twins, 0), told(&mut twins, 0)], [1, 0]);
    assert_eq!([told(&mut twins, 1), told(&mut twins, 1)], [1, 0]);
    twins.assert_balanced();
}

#[test]
fn what_the_nos_offers_is_each_vrfs_own() {
    let mut twins = Twins::new();
    let silent = ServiceConfig {
        ping: false,
        services: Vec::new(),
        ..ServiceConfig::default()
    };
    twins.shim.set_services(VrfId(VRFS[0]), &silent).unwrap();
    let echo = ServiceConfig {
        ping: true,
        services: vec![Service::Echo],
        ..ServiceConfig::default()
    };
    twins.shim.set_services(VrfId(VRFS[1]), &echo).unwrap();
    for (draft, request) in [(Draft::v4(), 8), (Draft::v6(), 128)] {
        for (place, answers) in [(0, &[][..]), (1, &[1])] {
            let packet = draft.icmp_packet(&mut twins.pool, (request, 0), 1, b"ping");
            twins.receive(place, packet);
            assert_eq!(twins.sent_by(), answers);
        }
    }
    let owners = VRFS.map(|vrf| {
        let address = twins.shim.ports().address(VrfId(vrf), ip(N4)).unwrap();
        twins.shim.ports().owner(address, Transport::Udp, 7)
    });
    assert_eq!(owners, [PortOwner::Nobody, PortOwner::Nos]);
    // A container of the first may have the port, one of the second may not.
    for (id, granted) in [(0, true), (1, false)] {
        let mut wanted = registration(id, VRFS[id as usize]);
        wanted.claims[1].range = PortRange::new(7, 7).unwrap();
        let exchange = Exchange {
            register: vec![wanted],
            ..Exchange::default()
        };
        assert_eq!(
            twins.shim.exchange(&exchange, Instant::ZERO).is_ok(),
            granted
        );
    }
    twins.assert_balanced();
}

/// The same flow in both VRFs: two connections, of which one ends with its VRF's service.
#[cfg(feature = "stack")]
#[test]
fn connections_of_services_are_apart() {
    use crate::test_packets::Segment;
    let mut twins = Twins::new();
    let echo = ServiceConfig {
        ping: true,
        services: vec![Service::Echo],
        ..ServiceConfig::default()
    };
    for vrf in VRFS {
        twins.shim.set_services(VrfId(vrf), &echo).unwrap();
    }
    let draft = Draft::v4();
    let open = Segment {
        ports: (4000, 7),
        ..Segment::default()
    };
    let flags = |twins: &mut Twins| -> Vec<(u32, u8)> {
        let sent = twins.sent().into_iter();
        sent.map(|(by, packet)| (by, packet.tcp_flags().unwrap_or_default()))
            .collect()
    };
    for place in 0..2 {
        let packet = draft.tcp_packet(&mut twins.pool, &open);
        twins.receive(place, packet);
        assert_eq!(flags(&mut twins), [(place, 0x12)], "SYN, ACK");
    }
    let none = ServiceConfig::default();
    twins.shim.set_services(VrfId(VRFS[1]), &none).unwrap();
    twins.shim.handle_timeout(NOW);
    let ended = flags(&mut twins);
    assert!(!ended.is_empty() && ended.iter().all(|(by, flags)| (*by, flags & 4) == (1, 4)));
    // The other one answers the same segment as before.
    let packet = draft.tcp_packet(&mut twins.pool, &open);
    twins.receive(0, packet);
    assert!(
        flags(&mut twins)
            .iter()
            .all(|(by, flags)| (*by, flags & 4) == (0, 0))
    );
    twins.assert_balanced();
}

#[test]
fn routes_use_no_uplink_of_another_vrf() {
    let mut twins = Twins::new();
    let stray = Route {
        prefix: "192.0.2.0/24".parse().unwrap(),
        ..default_route(1, VRFS[0])
    };
    twins
        .shim
        .change_routes(vec![RouteChange::Set(stray.clone())])
        .unwrap();
    let inactive = twins.shim.inactive_routes();
    let reasons: Vec<_> = inactive.iter().map(|it| (&it.route, it.reason)).collect();
    assert_eq!(reasons, [(&stray, InactiveReason::OtherVrf(UplinkId(1)))]);
    let draft = Draft::new(N4, "192.0.2.9");
    let packet = draft.udp_packet(&mut twins.pool, (PORT, 9), b"?");
    twins.outbound(0, packet);
    assert_eq!(twins.sent_by(), [0], "by the default route");
    twins.assert_balanced();
}

#[test]
fn an_uplink_that_moves_takes_nothing_along_and_leaves_no_way_back() {
    let mut twins = Twins::new();
    // What is prepared, what waits for a neighbor, for fragments and for the device.
    let far = Draft::new(N4, "198.51.100.9");
    for _ in 0..2 {
        let packet = far.udp_packet(&mut twins.pool, (PORT, 9), b"far");
        twins.outbound(0, packet);
    }
    assert_eq!(twins.sent_by(), [0, 0]);
    let packet = Draft::new(N4, "203.0.113.99").udp_packet(&mut twins.pool, (PORT, 9), b"held");
    twins.outbound(0, packet);
    twins.sent();
    let later = Draft {
        fragment: 2,
        ..Draft::v4()
    };
    let packet = later.packet(&mut twins.pool, protocol::UDP, &[7; 8]);
    twins.receive(0, packet);
    let message = Draft::v4().icmp(8, 0, 1, &[0x55; 24]);
    let first = Draft {
        fragment: MORE,
        identification: 9,
        ..Draft::v4()
    };
    let packet = first.packet(&mut twins.pool, protocol::ICMP, &message[..16]);
    twins.receive(0, packet);
    let packet = far.udp_packet(&mut twins.pool, (PORT, 9), b"waits for the device");
    twins.outbound(0, packet);
    assert_eq!(twins.shim.held(), 4);
    let before = twins.dropped(DropReason::DeviceGone);

    twins.shim.set_uplink(uplink(0, 5), NOW).unwrap();
    // Announcements.
    twins.sent();
    assert_eq!(twins.shim.held(), 0);
    assert_eq!(twins.dropped(DropReason::DeviceGone), before + 4);
    assert!(
        twins
            .shim
            .neighbors(None, NOW)
            .rows
            .iter()
            .all(|(id, _)| id.0 != 0)
    );
    twins.sent();
    // The neighbor of that name in the new VRF; nothing goes to it from the old one, prepared or
    // not, while routes are revised and after that.
    twins.introduce(0);
    twins.sent();
    for _ in 0..3 {
        let packet = far.udp_packet(&mut twins.pool, (PORT, 9), b"far");
        twins.outbound(0, packet);
        assert_eq!(twins.sent_by(), []);
        twins.shim.handle_timeout(NOW);
    }
    let draft = Draft::v4();
    let packet = draft.udp_packet(&mut twins.pool, (9, PORT), b"?");
    twins.receive(0, packet);
    assert_eq!(twins.delivered_to().len(), 3, "errors: no route");
    // Nobody has the port there; the other VRF has not noticed.
    assert_eq!(twins.sent_by(), [0], "port unreachable");
    let packet = draft.udp_packet(&mut twins.pool, (9, PORT), b"?");
    twins.receive(1, packet);
    assert_eq!(twins.delivered_to(), [1]);
    // The container follows, and its route.
    let exchange = Exchange {
        register: vec![registration(0, 5)],
        ..Exchange::default()
    };
    twins.shim.exchange(&exchange, Instant::ZERO).unwrap();
    let routes = vec![
        RouteChange::Remove((
            VrfId(VRFS[0]),
            "0.0.0.0/0".parse().unwrap(),
            Source::Static { metric: 0 },
        )),
        RouteChange::Set(default_route(0, 5)),
    ];
    twins.shim.change_routes(routes).unwrap();
    let packet = draft.udp_packet(&mut twins.pool, (9, PORT), b"?");
    twins.receive(0, packet);
    assert_eq!(twins.delivered_to(), [0]);
    assert_eq!(twins.shim.inactive_routes(), []);
    twins.assert_balanced();
}

#[test]
fn two_uplinks_swap_their_vrfs() {
    let mut twins = Twins::new();
    let swapped = vec![uplink(0, VRFS[1]), uplink(1, VRFS[0])];
    twins.shim.set_uplinks(swapped, NOW).unwrap();
    twins.sent();
    for place in 0..2 {
        twins.introduce(place);
    }
    twins.sent();
    for draft in drafts() {
        for place in [0, 1] {
            let packet = draft.udp_packet(&mut twins.pool, (9, PORT), b"to the owner");
            twins.receive(place, packet);
            assert_eq!(twins.delivered_to(), [1 - place]);
        }
    }
    twins.assert_balanced();
}

#[test]
fn a_vrf_that_is_gone_leaves_nothing() {
    let mut twins = Twins::new();
    let none = twins.shim.fib().memory();
    assert_eq!(twins.shim.fib().vrfs().count(), 2);
    let exchange = Exchange {
        withdraw: vec![AttachmentId(1)],
        ..Exchange::default()
    };
    twins.shim.exchange(&exchange, Instant::ZERO).unwrap();
    let key = (
        VrfId(VRFS[1]),
        "0.0.0.0/0".parse().unwrap(),
        Source::Static { metric: 0 },
    );
    twins
        .shim
        .change_routes(vec![RouteChange::Remove(key)])
        .unwrap();
    twins.shim.remove_uplink(UplinkId(1));
    assert_eq!(
        twins.shim.fib().vrfs().collect::<Vec<_>>(),
        [VrfId(VRFS[0])]
    );
    assert!(twins.shim.fib().memory().table <= none.table / 2 + 64);
    // What was on its way in it ends with a reason.
    let packet = Draft::new(N4, X4).udp_packet(&mut twins.pool, (PORT, 9), b"late");
    twins.outbound(1, packet);
    assert_eq!(twins.dropped(DropReason::NoRoute), 1);
    assert_eq!(twins.sent_by(), []);
    twins.assert_balanced();
}
