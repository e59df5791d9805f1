//! Datagrams that are handed to the kernel together reach their socket one by one.

use nos_relay::data::device::{PacketOptions, PacketSocket};
use nos_shim::frame::{Checksum, GsoKind, Offload};
use nos_shim::offload::Capabilities;

use crate::harness::{
    Opened, Polled, configured, is_udp, packet, quiet, tap, taps, udp_datagram, udp_socket,
};
use crate::support::lab_test;
use crate::vlan::switched;

/// Kinds that take super-frames of UDP.
fn kinds() -> Vec<Opened> {
    let mut kinds = vec![packet(quiet("packet"), PacketOptions::default())];
    if taps() {
        kinds.push(tap(quiet("tap"), Capabilities::all()));
    }
    kinds.extend(switched(quiet("vlan"), 910, 0));
    let kinds = kinds.into_iter().map(configured);
    // Linux has no UDP super-frames on a TAP before 6.2.
    kinds
        .filter(|(_, device, _)| device.capabilities().contains(Capabilities::USO))
        .collect()
}

/// Payloads that no two datagrams share, the last one shorter.
fn payloads(len: usize) -> Vec<Vec<u8>> {
    let full = (0..39_u8).map(|n| vec![n; len]);
    full.chain([vec![99; len / 2]]).collect()
}

const KNOWN_RIGHT: Offload = Offload {
    checksum: Checksum::Verified,
    segmentation: None,
};

lab_test! {
    fn a_run_of_datagrams_arrives_as_sent() {
        for (lab, device, _others) in kinds() {
            let name = device.kind().to_string();
            let mut polled = Polled::new(device);
            let listen = || PacketSocket::open("eth0", PacketOptions::default()).unwrap();
            let mut listener = Polled::new(Box::new(lab.run(listen).unwrap()));
            let socket = udp_socket(&lab);
            for len in [2, 18, 470, 1400] {
                let sent = payloads(len);
                let frames: Vec<_> = sent
                    .iter()
                    .map(|payload| {
                        let mut frame = polled.frame(&udp_datagram(payload));
                        frame.set_offload(KNOWN_RIGHT);
                        frame
                    })
                    .collect();
                assert_eq!(polled.send(frames).frames, 40, "{name}");
                for payload in &sent {
                    let mut buffer = [0; 2000];
                    let received = socket.recv(&mut buffer).unwrap();
                    assert_eq!(&buffer[..received], payload, "{name}");
                }
                let heard = listener.receive_until(is_udp);
                let segmentation = heard.offload().segmentation.unwrap();
                assert_eq!((segmentation.kind, segmentation.size.get() as usize), (GsoKind::Udp, len), "{name}");
            }
            let counters = polled.device.counters();
            assert_eq!((counters.sent.frames, counters.sent.drops.total()), (160, 0), "{name}");
        }
    }
}

lab_test! {
    fn a_wrong_checksum_is_not_made_right() {
        for (lab, device, _others) in kinds() {
            let name = device.kind().to_string();
            let mut polled = Polled::new(device);
            let socket = udp_socket(&lab);
            let mut wrong = udp_datagram(&[1; 18]);
            wrong[50] ^= 0xff;
            let frames = [wrong, udp_datagram(&[2; 18]), udp_datagram(&[3; 18])];
            let frames = frames.map(|octets| polled.frame(&octets));
            assert_eq!(polled.send(frames).frames, 3, "{name}");
            for expected in [[2; 18], [3; 18]] {
                let mut buffer = [0; 100];
                let received = socket.recv(&mut buffer).unwrap();
                assert_eq!(buffer[..received], expected, "{name}");
            }
        }
    }
}
