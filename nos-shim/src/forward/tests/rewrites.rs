//! What is kept ready against what changes.

use core::net::IpAddr;

use crate::arp::Arp;
use crate::channel::{RelayEnd, pair};
use crate::drop::DropReason;
use crate::fib::{Action, NextHop, Route, RouteChange, Source};
use crate::frame::{Burst, FramePool};
use crate::ident::{AttachmentId, Interface, MacAddr, UplinkId, VrfId};
use crate::offload::Capabilities;
use crate::shim::{LinkState, Shim, ShimConfig, UplinkConfig};
use crate::test_packets::{Draft, N4, X4, ip, pool};
use crate::time::Instant;

const NOW: Instant = Instant::from_millis(1000);
const UPLINK: UplinkId = UplinkId(0);
const SECOND: &str = "203.0.113.3";
const A: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xa1]);
const B: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xb1]);
const C: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xc1]);

struct Nos {
    shim: Shim,
    relay: RelayEnd,
    pool: FramePool,
}

impl Nos {
    fn new() -> Self {
        let (relay, end) = pair(8);
        let pool = pool();
        let shim = Shim::new(
            end,
            pool.clone(),
            ShimConfig {
                seed: 1,
                ..ShimConfig::default()
            },
        );
        let mut nos = Self { shim, relay, pool };
        nos.set_uplink(1500);
        nos.set_gateway(X4);
        nos
    }

    fn set_uplink(&mut self, mtu: usize) {
        self.place_uplink(UPLINK, N4, mtu);
    }

    fn place_uplink(&mut self, id: UplinkId, own: &str, mtu: usize) {
        let uplink = UplinkConfig {
            id,
            name: format!("up{}", id.0).into(),
            vrf: VrfId::DEFAULT,
            mac: MacAddr([2, 0, 0, 0, 0, 1]),
            addresses: vec![format!("{own}/24").parse().unwrap()],
            mtu,
            redirects: true,
        };
        self.shim.set_uplink(uplink, NOW).unwrap();
        self.shim.set_link(id, LinkState::Up, NOW).unwrap();
        self.taken();
    }

    fn set_gateway(&mut self, gateway: &str) {
        let set = route("0.0.0.0/0", 0, UPLINK, gateway);
        self.shim.change_routes(vec![set]).unwrap();
    }

    /// The station asks for the NOS, and so is known from then on.
    fn meet(&mut self, station: &str, mac: MacAddr) {
        self.meet_on(UPLINK, N4, station, mac);
    }

    fn meet_on(&mut self, uplink: UplinkId, own: &str, station: &str, mac: MacAddr) {
        let (IpAddr::V4(station), IpAddr::V4(own)) = (ip(station), ip(own)) else {
            panic!("both are IPv4");
        };
        let mut frame = self.pool.alloc().unwrap();
        let request = Arp::request(mac, station, own);
        request.write(&mut frame, MacAddr::BROADCAST).unwrap();
        let mut burst: Burst = [frame].into_iter().collect();
        self.shim.handle_burst(uplink, &mut burst, NOW);
        self.taken();
    }

    /// Destination MAC addresses of all that is to be sent.
    fn taken(&mut self) -> Vec<MacAddr> {
        let mut taken = Vec::new();
        while let Some((_, burst)) = self.shim.poll_transmit() {
            let macs = burst.iter().map(|frame| frame.bytes()[..6].try_into());
            taken.extend(macs.map(|mac| MacAddr(mac.unwrap())));
            burst.clear();
        }
        taken
    }

    /// Sends a packet of a container with so many octets of payload, twice in two bursts, and
    /// says where to.
    fn send(&mut self, payload: usize) -> Vec<MacAddr> {
        for _ in 0..2 {
            let draft = Draft {
                fragment: 0x4000,
                ..Draft::new(N4, "192.0.2.7")
            };
            let mut packet = draft.udp_packet(&mut self.pool, (1000, 53), &vec![1; payload]);
            packet.set_interface(Interface::Attachment(AttachmentId(0)));
            let mut burst = [packet].into_iter().collect();
            assert!(self.relay.send_burst(&mut burst));
            self.shim.poll_channel(NOW, 1);
        }
        self.taken()
    }

    fn is_ready(&mut self) -> bool {
        let Shim { tables, worker, .. } = &mut self.shim;
        worker.refresh_rewrites(tables);
        worker.rewrites.any()
    }
}

fn route(prefix: &str, metric: u16, uplink: UplinkId, gateway: &str) -> RouteChange {
    let hop = NextHop {
        gateway: ip(gateway),
        uplink,
    };
    RouteChange::Set(Route {
        vrf: VrfId::DEFAULT,
        prefix: prefix.parse().unwrap(),
        source: Source::Static { metric },
        action: Action::Via(hop.into()),
    })
}

#[test]
fn what_is_kept_ready_follows_every_change() {
    let mut nos = Nos::new();
    nos.meet(X4, A);
    assert_eq!(nos.send(100), [A, A]);
    assert!(nos.is_ready());

    nos.meet(X4, B);
    assert!(!nos.is_ready(), "the gateway has another MAC address");
    assert_eq!(nos.send(100), [B, B]);

    nos.meet(SECOND, C);
    assert_eq!(nos.send(100), [B, B]);
    nos.set_gateway(SECOND);
    assert!(!nos.is_ready(), "the route has another gateway");
    assert_eq!(nos.send(100), [C, C]);

    nos.set_uplink(600);
    assert_eq!(nos.send(100), [C, C]);
    assert_eq!(nos.send(1000), [], "too long for the new MTU");
    assert_eq!(nos.shim.ledger().drops.of(DropReason::TooBig), 2);

    nos.shim.set_capabilities(UPLINK, Capabilities::all());
    assert!(!nos.is_ready(), "the device takes more");
    assert_eq!(nos.send(100), [C, C]);
    assert!(nos.is_ready());

    nos.shim.remove_uplink(UPLINK);
    assert_eq!(nos.send(100), [], "nowhere to send to");
    assert_eq!(nos.shim.ledger().unaccounted(), nos.shim.held() as i128);
}

#[test]
fn what_was_kept_ready_ends_with_the_neighbor() {
    let mut nos = Nos::new();
    nos.meet(X4, A);
    assert_eq!(nos.send(100), [A, A]);
    assert!(nos.is_ready());
    // It is asked whether it is still there, and does not answer.
    for second in 2..30 {
        nos.shim.handle_timeout(Instant::from_millis(1000 * second));
        nos.taken();
    }
    assert!(!nos.is_ready());
}

/// More routes than a call may change: those that follow the link later do not keep packets.
#[test]
fn packets_go_another_way_before_all_routes_follow_a_link() {
    const ROUTES: usize = 2000;
    const LEAST_CALLS: usize = 10;
    let (other, gateway, own) = (UplinkId(1), "198.51.100.9", "198.51.100.1");
    let mut nos = Nos::new();
    nos.place_uplink(other, own, 1500);
    let number = |n: usize| u32::try_from(n).unwrap();
    let host = |n| std::net::Ipv4Addr::from(0x0a00_0000 + number(n)).to_string();
    let over_first = (0..ROUTES).map(|n| route(&format!("{}/32", host(n)), 0, UPLINK, X4));
    let worse = route("0.0.0.0/0", 5, other, gateway);
    let ours = route("192.0.2.7/32", 0, UPLINK, X4);
    let routes = over_first.chain([worse, ours]).collect();
    nos.shim.change_routes(routes).unwrap();
    nos.meet(X4, A);
    nos.meet_on(other, own, gateway, B);
    assert_eq!(nos.send(100), [A, A]);
    let due = |nos: &Nos| nos.shim.poll_at() == Some(Instant::ZERO);
    for (state, mac) in [(LinkState::Down, B), (LinkState::Up, A)] {
        nos.shim.set_link(UPLINK, state, NOW).unwrap();
        nos.taken();
        let mut calls = 0;
        while due(&nos) {
            if state == LinkState::Down {
                assert_eq!(nos.send(100), [mac, mac], "after {calls} calls");
            }
            nos.shim.handle_timeout(NOW);
            calls += 1;
        }
        assert!(calls >= LEAST_CALLS, "{calls}");
        nos.meet(X4, A);
        assert_eq!(nos.send(100), [mac, mac]);
    }
    nos.shim.remove_uplink(UPLINK);
    while due(&nos) {
        assert_eq!(nos.send(100), [B, B]);
        nos.shim.handle_timeout(NOW);
    }
    assert_eq!(nos.shim.inactive_routes(), []);
    assert_eq!(nos.shim.ledger().unaccounted(), nos.shim.held() as i128);
}
