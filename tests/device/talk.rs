//! What a device hands up and down.

use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nos_relay::data::device::{
    Egress, FrameDevice, Next, OpenError, PacketOptions, PacketSocket, PlainTap, Tap,
    pollable_memory_pair,
};
use nos_shim::drop::DropReason;
use nos_shim::offload::Capabilities;

use crate::harness::{
    KERNEL, LIMIT, Polled, US, arp_request, configured, every_kind, is_arp_reply, is_udp, packet,
    quiet, taps, to_us, udp_datagram, udp_socket,
};
use crate::support::lab_test;

lab_test! {
    fn every_kind_talks_with_the_kernel() {
        for (lab, device, _others) in every_kind() {
            let name = device.kind().to_string();
            let mut polled = Polled::new(device);
            let request = polled.frame(&arp_request());
            let sent = polled.send([request]);
            assert_eq!((sent.frames, sent.egress), (1, Egress::Ready), "{name}");
            let reply = polled.receive_until(is_arp_reply);
            assert_eq!(reply.bytes()[..6], US.0, "{name}");

            let socket = udp_socket(&lab);
            let datagrams: Vec<_> = (0..40_u8)
                .map(|n| polled.frame(&udp_datagram(&[n; 100])))
                .collect();
            assert_eq!(polled.send(datagrams).frames, 40, "{name}");
            for n in 0..40 {
                let mut buffer = [0; 200];
                let len = socket.recv(&mut buffer).unwrap();
                assert_eq!(buffer[..len], [n; 100], "{name}");
                socket.send_to(&buffer[..len], to_us()).unwrap();
            }
            let mut seen = vec![];
            while seen.len() < 40 {
                seen.extend(polled.receive().0.into_iter().filter(is_udp));
            }
            for (n, frame) in (0_u8..).zip(&seen) {
                assert_eq!(frame.bytes()[42..], [n; 100], "{name}");
            }
            let counters = polled.device.counters();
            assert_eq!((counters.sent.frames, counters.sent.drops.total()), (41, 0), "{name}");
            assert_eq!((counters.received.frames, counters.received.drops.total()), (41, 0), "{name}");
            assert_eq!(polled.inspector.kernel_drops(), 0);
        }
    }
}

lab_test! {
    fn nothing_is_reported_when_nothing_happens() {
        for (lab, device, _others) in every_kind() {
            let mut polled = Polled::new(device);
            polled.drain();
            // What registration itself reported.
            polled.event(Duration::ZERO);
            assert!(!polled.event(Duration::ZERO));
            // One datagram, one event, and silence again.
            udp_socket(&lab).send_to(&[7], to_us()).unwrap();
            assert!(polled.event(LIMIT));
            assert_eq!(polled.drain().len(), 1);
            assert!(!polled.event(Duration::ZERO));
        }
    }
}

lab_test! {
    fn tagged_frames_are_not_taken_for_untagged_ones() {
        let (lab, device, _others) = configured(packet(quiet("tagged"), PacketOptions::default()));
        let mut polled = Polled::new(device);
        let open = || PacketSocket::open("eth0", PacketOptions::default()).unwrap();
        let mut far = Polled::new(Box::new(lab.run(open).unwrap()));
        let untagged = [&US.0[..], &KERNEL.0, &[0x88, 0xb5], &[9; 46]].concat();
        let tagged = [&US.0[..], &KERNEL.0, &[0x81, 0, 0, 5, 0x88, 0xb5], &[9; 46]].concat();
        let frames = [far.frame(&tagged), far.frame(&untagged), far.frame(&tagged)];
        assert_eq!(far.send(frames).frames, 3);
        let seen = polled.account(0, 3);
        assert_eq!(seen.len(), 1);
        assert_eq!(seen[0].bytes(), untagged);
        let drops = polled.device.counters().received.drops;
        assert_eq!((drops.of(DropReason::Vlan), drops.total()), (2, 2));
    }
}

lab_test! {
    fn what_the_kernel_sends_on_the_interface_is_not_heard() {
        let (_lab, device, others) = configured(packet(quiet("deaf"), PacketOptions::default()));
        let mut polled = Polled::new(device);
        let open = || PacketSocket::open("peer", PacketOptions::default()).unwrap();
        let mut other = Polled::new(Box::new(others[0].run(open).unwrap()));
        let request = other.frame(&arp_request());
        assert_eq!(other.send([request]).frames, 1);
        // The kernel answers; both sockets hear that, and neither the question.
        let reply = polled.receive_until(|_| true);
        assert!(is_arp_reply(&reply));
        assert!(is_arp_reply(&other.receive_until(|_| true)));
    }
}

lab_test! {
    fn an_open_descriptor_can_be_adopted() {
        if !taps() {
            return;
        }
        let lab = quiet("adopt");
        let tap = lab.run(|| Tap::open("eth0", Capabilities::CHECKSUM).unwrap()).unwrap();
        let fd = tap.fd().unwrap().try_clone_to_owned().unwrap();
        drop(tap);
        let adopted = Tap::from_fd(fd, Capabilities::all()).unwrap();
        assert_eq!(adopted.name(), "eth0");
        lab.set_up("eth0").unwrap();
        let (_lab, device, _) = configured((lab, Box::new(adopted), vec![]));
        let mut polled = Polled::new(device);
        let request = polled.frame(&arp_request());
        assert_eq!(polled.send([request]).frames, 1);
        polled.receive_until(is_arp_reply);

        let plain = quiet("plain").run(|| PlainTap::open("eth0").unwrap()).unwrap();
        let fd = plain.fd().unwrap().try_clone_to_owned().unwrap();
        let error = Tap::from_fd(fd, Capabilities::all()).unwrap_err();
        assert!(matches!(error, OpenError::NoVnetHeader(name) if name == "eth0"));
    }
}

lab_test! {
    fn errors_name_device_action_and_reason() {
        if !taps() {
            return;
        }
        let lab = quiet("errors");
        lab.run(|| {
            let _first = Tap::open("eth0", Capabilities::all()).unwrap();
            let errors = [
                Tap::open("eth0", Capabilities::all()).unwrap_err(),
                PlainTap::open("eth0").unwrap_err(),
                PacketSocket::open("eth1", PacketOptions::default()).unwrap_err(),
                Tap::open("a/b", Capabilities::all()).unwrap_err(),
            ];
            let texts = errors.map(|error| error.to_string());
            assert_eq!(texts[0], "TAP eth0: cannot create it: Device or resource busy");
            assert_eq!(texts[1], "plain TAP eth0: cannot create it: Device or resource busy");
            assert_eq!(
                texts[2],
                "packet socket eth1: cannot find the interface: No such device"
            );
            assert!(texts[3].starts_with("'a/b' is no interface name"));
            let _tun = tun_tap::Iface::without_packet_info("tun0", tun_tap::Mode::Tun).unwrap();
            let error = PacketSocket::open("tun0", PacketOptions::default()).unwrap_err();
            assert!(matches!(error, OpenError::NotEthernet { hardware: 65534, .. }), "{error}");
        }).unwrap();
    }
}

lab_test! {
    fn devices_in_memory_can_be_polled() {
        let [near, far] = pollable_memory_pair(["near", "far"], 32).unwrap();
        let far = thread::spawn(move || {
            let mut far = Polled::new(Box::new(far));
            let mut seen = 0;
            loop {
                let (burst, next) = far.receive();
                for frame in burst {
                    assert_eq!(frame.bytes(), u64::to_be_bytes(seen));
                    seen += 1;
                }
                if let Next::Gone(errno) = next {
                    assert_eq!(errno, Errno::EPIPE);
                    return seen;
                }
            }
        });
        let mut near = Polled::new(Box::new(near));
        let mut next = 0_u64;
        let deadline = Instant::now() + LIMIT;
        while next < 100_000 {
            assert!(Instant::now() < deadline);
            let batch: Vec<_> = (next..next + 8).map(|n| near.frame(&n.to_be_bytes())).collect();
            // What did not fit is sent again, so that the reader sees all in order.
            next += near.send(batch).frames as u64;
        }
        drop(near);
        assert_eq!(far.join().unwrap(), next);
    }
}
