//! What a device cannot take, and what that does to the rest.

use nos_relay::data::device::{Egress, Next, PacketOptions};
use nos_shim::drop::DropReason;
use nos_shim::frame::{
    Burst, Checksum, Ecn, Frame, FramePool, GsoKind, MAX_FRAME, Offload, Segmentation,
};
use nos_shim::offload::Capabilities;

use crate::harness::{
    Polled, arp_request, configured, every_kind, packet, quiet, tap, taps, to_us, udp_datagram,
    udp_socket,
};
use crate::support::lab_test;

lab_test! {
    fn a_full_queue_loses_frames_but_no_count() {
        let options = PacketOptions { buffer: 20_000, ..PacketOptions::default() };
        let (lab, device, _others) = configured(packet(quiet("full"), options));
        let mut polled = Polled::new(device);
        let socket = udp_socket(&lab);
        for round in 0..3_u64 {
            for _ in 0..500 {
                socket.send_to(&[0; 500], to_us()).unwrap();
            }
            assert!(!polled.account(500 * round, 500).is_empty());
            assert!(polled.inspector.kernel_drops() > 0);
        }
    }
}

lab_test! {
    fn an_empty_pool_leaves_frames_in_the_kernel() {
        for (lab, device, _others) in every_kind() {
            let name = device.kind().to_string();
            let mut polled = Polled::with_pool(device, FramePool::new(8, MAX_FRAME));
            polled.drain();
            let socket = udp_socket(&lab);
            for n in 0..20 {
                socket.send_to(&[n], to_us()).unwrap();
            }
            let (mut order, mut held, mut starved) = (vec![], vec![], 0);
            while order.len() < 20 {
                let (burst, next) = polled.receive();
                order.extend(burst.iter().map(|frame| frame.bytes()[42]));
                held.extend(burst);
                if next == Next::NoBuffer {
                    held.clear();
                    starved += 1;
                    polled.ready = true;
                }
            }
            assert!(starved >= 2, "{name}");
            assert_eq!(order, (0..20).collect::<Vec<u8>>(), "{name}");
        }
    }
}

lab_test! {
    fn frames_longer_than_the_buffer_are_dropped_alone() {
        for (lab, device, _others) in every_kind() {
            let name = device.kind().to_string();
            let mut polled = Polled::with_pool(device, FramePool::new(256, 300));
            polled.drain();
            let before = polled.accounted();
            let socket = udp_socket(&lab);
            for len in [100, 1000, 101, 1400, 102] {
                socket.send_to(&vec![0; len], to_us()).unwrap();
            }
            let lens: Vec<_> = polled.account(before, 5).iter().map(Frame::len).collect();
            assert_eq!(lens, [142, 143, 144], "{name}");
            let drops = polled.device.counters().received.drops;
            assert_eq!((drops.of(DropReason::FrameLength), drops.total()), (2, 2), "{name}");
        }
    }
}

lab_test! {
    fn one_frame_that_is_refused_does_not_lose_the_others() {
        for (lab, device, _others) in every_kind() {
            let name = device.kind().to_string();
            let mut polled = Polled::new(device);
            let socket = udp_socket(&lab);
            let frames = [
                polled.frame(&udp_datagram(b"before")),
                polled.frame(&[1, 2, 3]),
                polled.frame(&udp_datagram(b"after")),
            ];
            let sent = polled.send(frames);
            assert_eq!((sent.frames, sent.dropped, sent.egress), (2, 1, Egress::Ready), "{name}");
            assert_eq!(polled.device.counters().sent.drops.of(DropReason::DeviceError), 1);
            let mut buffer = [0; 10];
            assert_eq!(socket.recv(&mut buffer).unwrap(), 6, "{name}");
            assert_eq!(socket.recv(&mut buffer).unwrap(), 5, "{name}");
        }
    }
}

/// A super-frame of this kind around a frame that cannot be one.
fn impossible(kind: GsoKind) -> Offload {
    Offload {
        // Behind the end of the frame.
        checksum: Checksum::Partial {
            start: 5000,
            offset: 16,
        },
        segmentation: Some(Segmentation {
            kind,
            ecn: Ecn::Unmarked,
            size: 100.try_into().unwrap(),
            tunnel: None,
        }),
    }
}

lab_test! {
    fn a_kind_that_the_kernel_refuses_is_given_up_without_loss() {
        for (_lab, device, _others) in every_kind() {
            if device.capabilities().is_empty() {
                continue;
            }
            let name = device.kind().to_string();
            let mut polled = Polled::new(device);
            let before = polled.device.capabilities();
            let plain = Capabilities::all() - Capabilities::TUNNEL - Capabilities::IP_TUNNEL;
            assert!(before.contains(plain), "{name}: {before:?}");
            let mut burst = Burst::new();
            burst.push(polled.frame(&arp_request()));
            let mut refused = polled.frame(&udp_datagram(&[5; 1000]));
            refused.set_offload(impossible(GsoKind::Udp));
            burst.push(refused);
            burst.push(polled.frame(&arp_request()));
            let sent = polled.device.send_burst(&mut burst, &mut polled.pool);
            assert_eq!((sent.frames, sent.dropped, sent.egress), (1, 0, Egress::Adapt), "{name}");
            assert_eq!(burst.len(), 2, "{name}");
            let left = before - Capabilities::USO;
            assert_eq!(polled.device.capabilities(), left, "{name}");
            // As the core would: without the offload.
            burst[0].set_offload(Offload::NONE);
            let sent = polled.device.send_burst(&mut burst, &mut polled.pool);
            assert_eq!((sent.frames, sent.dropped, sent.egress), (2, 0, Egress::Ready), "{name}");
            // It is given up only once; what is refused now is the frame's fault.
            let sent = polled.send_one(&udp_datagram(&[5; 1000]), impossible(GsoKind::Udp));
            assert_eq!((sent.dropped, sent.egress), (1, Egress::Ready), "{name}");
        }
    }
}

lab_test! {
    fn unfinished_frames_are_not_for_a_plain_tap() {
        if !taps() {
            return;
        }
        let (_lab, device, _others) = tap(quiet("plain"), Capabilities::empty());
        let mut polled = Polled::new(device);
        assert!(polled.device.capabilities().is_empty());
        let offload = Offload {
            checksum: Checksum::Partial { start: 34, offset: 6 },
            segmentation: None,
        };
        let sent = polled.send_one(&udp_datagram(b"x"), offload);
        assert_eq!((sent.frames, sent.dropped), (0, 1));
        assert_eq!(polled.device.counters().sent.drops.of(DropReason::DeviceError), 1);
    }
}
