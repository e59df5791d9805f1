//! Interfaces that go down, come back, or are deleted.

use std::thread;
use std::time::Duration;

use nos_relay::data::device::{DeviceKind, Egress, LinkState, Next, PacketOptions};
use nos_shim::drop::DropReason;

use crate::harness::{
    LIMIT, Polled, arp_request, configured, every_kind, is_arp_reply, packet, quiet, to_us,
    udp_socket,
};
use crate::support::lab_test;

lab_test! {
    fn a_deleted_interface_is_gone_and_stays_so() {
        for (lab, device, _others) in every_kind() {
            let name = device.kind().to_string();
            let mut polled = Polled::new(device);
            polled.drain();
            assert_eq!(polled.inspector.link(), LinkState::Up);
            lab.delete_link("eth0").unwrap();
            let before = polled.calls;
            // A packet socket is told that the interface is down before it has gone, and of the rest
            // by the first frame that is sent.
            let next = polled.receive_state(|next| matches!(next, Next::Gone(_) | Next::Down));
            while polled.inspector.link() != LinkState::Gone { thread::yield_now(); }
            assert!(polled.calls - before < 10, "{name}: {} calls", polled.calls - before);
            let mut refused = 0;
            if next == Next::Down {
                assert_eq!(polled.device.kind(), DeviceKind::Packet);
                let frame = polled.frame(&arp_request());
                assert!(matches!(polled.send([frame]).egress, Egress::Gone(_)), "{name}");
                refused = 1;
            }
            for _ in 0..3 {
                polled.ready = true;
                assert!(matches!(polled.receive().1, Next::Gone(_)), "{name}");
                let frames = [polled.frame(&arp_request()), polled.frame(&arp_request())];
                let sent = polled.send(frames);
                assert!(matches!(sent.egress, Egress::Gone(_)), "{name}: {sent:?}");
                assert_eq!((sent.frames, sent.dropped), (0, 2), "{name}");
            }
            let drops = polled.device.counters().sent.drops;
            assert_eq!(drops.of(DropReason::DeviceGone), 6 + refused, "{name}");
            assert_eq!(drops.total(), 6 + refused, "{name}");
        }
    }
}

lab_test! {
    fn an_interface_may_go_down_and_come_back() {
        for (lab, device, others) in every_kind() {
            let name = device.kind().to_string();
            let mut polled = Polled::new(device);
            polled.drain();
            let (place, interface) = others.first().map_or((&lab, "eth0"), |host| (host, "peer"));
            let is_tap = others.is_empty();
            for _ in 0..3 {
                place.set_down(interface).unwrap();
                if !is_tap {
                    assert_eq!(polled.receive_state(|next| next == Next::Down), Next::Down);
                    assert_eq!(polled.inspector.link(), LinkState::Down);
                }
                let request = polled.frame(&arp_request());
                let sent = polled.send([request]);
                assert_eq!((sent.egress, sent.dropped), (Egress::Down, 1), "{name}");
                assert!(!polled.event(Duration::ZERO), "{name}: an event while down");
                place.set_up(interface).unwrap();
                place.wait_operational(interface, LIMIT).unwrap();
                lab.wait_operational("eth0", LIMIT).unwrap();
                assert_eq!(polled.inspector.link(), LinkState::Up, "{name}");
                // Frames raise events again, and the first one sent is taken.
                polled.drain();
                polled.event(Duration::ZERO);
                let request = polled.frame(&arp_request());
                assert_eq!(polled.send([request]).frames, 1, "{name}");
                polled.receive_until(is_arp_reply);
            }
            let counters = polled.device.counters();
            assert_eq!(counters.sent.drops.of(DropReason::DeviceGone), 3, "{name}");
        }
    }
}

lab_test! {
    fn an_outage_between_two_bursts_costs_nothing() {
        let (lab, device, others) = configured(packet(quiet("flap"), PacketOptions::default()));
        let mut polled = Polled::new(device);
        let host = &others[0];
        host.set_down("peer").unwrap();
        host.set_up("peer").unwrap();
        host.wait_operational("peer", LIMIT).unwrap();
        lab.wait_operational("eth0", LIMIT).unwrap();
        // ENETDOWN is still stored in the socket, and is the first answer to sending.
        let frames: Vec<_> = (0..3).map(|_| polled.frame(&arp_request())).collect();
        let sent = polled.send(frames);
        assert_eq!((sent.frames, sent.dropped, sent.egress), (3, 0, Egress::Ready));
    }
}

lab_test! {
    fn frames_behind_a_stored_error_are_received() {
        let (lab, device, others) = configured(packet(quiet("stored"), PacketOptions::default()));
        let mut polled = Polled::new(device);
        udp_socket(&lab).send_to(&[1], to_us()).unwrap();
        assert!(polled.event(LIMIT));
        others[0].set_down("peer").unwrap();
        polled.ready = true;
        let (burst, next) = polled.receive();
        assert_eq!((burst.len(), next), (1, Next::Down));
    }
}
