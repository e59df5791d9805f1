//! Somebody else on an uplink's link uses an address of the NOS.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use nos_relay::lab::testbed::{Topology, ping::ping};
use nos_shim::arp::Arp;
use nos_shim::frame::FramePool;
use nos_shim::ident::MacAddr;
use nos_shim::ndp::{ALL_NODES, Envelope, Ndp};
use support::daemon::{LIMIT, await_that};
use support::lab_test;
use support::scenario::{FAMILIES, Scenario, Variant};
use support::wire::Wire;

const STRANGER: MacAddr = MacAddr([2, 0, 0, 0xaa, 0xbb, 0xcc]);

fn announcement() -> Vec<u8> {
    let arp = Arp::request(STRANGER, Topology::DEVICE_V4, Topology::DEVICE_V4);
    let mut frame = FramePool::new(1, 100).alloc().unwrap();
    arp.write(&mut frame, MacAddr::BROADCAST).unwrap();
    frame.bytes().to_vec()
}

fn advertisement() -> Vec<u8> {
    let advert = Ndp::NeighborAdvert {
        router: false,
        solicited: false,
        overrides: true,
        target: Topology::DEVICE_V6,
        target_link_layer: Some(STRANGER),
    };
    let mut frame = FramePool::new(1, 100).alloc().unwrap();
    let envelope = Envelope::to_group(STRANGER, Topology::DEVICE_V6, ALL_NODES);
    advert.write(&mut frame, &envelope).unwrap();
    frame.bytes().to_vec()
}

lab_test! {
    // RFC 5227 §2.4 (c): a Linux host would be silent.
    fn conflicts_are_counted_logged_and_answered_once() {
        let scenario = Scenario::new(Variant::PLAIN);
        for family in FAMILIES {
            ping(scenario.external(), family.nos, 1, LIMIT).unwrap();
        }
        let wire = Wire::open(scenario.external(), Topology::EXTERNAL_INTERFACE);
        for _ in 0..3 {
            wire.send(&announcement());
            wire.send(&advertisement());
        }
        // Whoever answers this has seen all that came before.
        ping(scenario.external(), FAMILIES[0].nos, 1, LIMIT).unwrap();
        let ours = |arp: &Arp| arp.is_announcement() && arp.sender_ip == Topology::DEVICE_V4;
        let defended = wire.arp_seen().into_iter().filter(ours).count();
        assert_eq!(defended, 1);
        let counters = scenario.daemon.counters();
        assert_eq!(counters.uplinks[0].address_conflicts, 6);
        for address in FAMILIES.map(|family| family.nos) {
            let line = format!("address={address} mac={STRANGER}");
            let log = await_that("a line in the log", || {
                let log = scenario.daemon.log();
                if log.contains(&line) { Ok(log) } else { Err(log) }
            });
            assert_eq!(log.matches(&line).count(), 1, "{log}");
        }
    }
}
