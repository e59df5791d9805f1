//! What is kept ready against what changes.

use core::net::IpAddr;

use crate::arp::Arp;
use crate::channel::{RelayEnd, pair};
use crate::drop::DropReason;
use crate::fib::{Action, NextHop, Route, Source};
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
        let shim = Shim::new(end, pool.clone(), ShimConfig { seed: 1 });
        let mut nos = Self { shim, relay, pool };
        nos.set_uplink(1500);
        nos.set_gateway(X4);
        nos
    }

    fn set_uplink(&mut self, mtu: usize) {
        let uplink = UplinkConfig {
            id: UPLINK,
            name: "up0".into(),
            vrf: VrfId::DEFAULT,
            mac: MacAddr([2, 0, 0, 0, 0, 1]),
            addresses: vec!["203.0.113.1/24".parse().unwrap()],
            mtu,
        };
        self.shim.set_uplink(uplink, NOW).unwrap();
        self.shim.set_link(UPLINK, LinkState::Up, NOW).unwrap();
        self.taken();
    }

    fn set_gateway(&mut self, gateway: &str) {
        let hop = NextHop {
            gateway: ip(gateway),
            uplink: UPLINK,
        };
        let route = Route {
            vrf: VrfId::DEFAULT,
            prefix: "0.0.0.0/0".parse().unwrap(),
            source: Source::Static { metric: 0 },
            action: Action::Via(hop.into()),
        };
        self.shim.set_routes(vec![route]).unwrap();
    }

    /// The station asks for the NOS, and so is known from then on.
    fn meet(&mut self, station: &str, mac: MacAddr) {
        let (IpAddr::V4(station), IpAddr::V4(own)) = (ip(station), ip(N4)) else {
            panic!("both are IPv4");
        };
        let mut frame = self.pool.alloc().unwrap();
        let request = Arp::request(mac, station, own);
        request.write(&mut frame, MacAddr::BROADCAST).unwrap();
        let mut burst: Burst = [frame].into_iter().collect();
        self.shim.handle_burst(UPLINK, &mut burst, NOW);
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
