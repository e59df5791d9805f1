//! Containers that tag their frames with priorities.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use core::num::NonZeroU16;
use std::net::{IpAddr, UdpSocket};

use nos_relay::data::device::{FrameDevice, PacketOptions, PacketSocket};
use nos_shim::arp::{Arp, Operation};
use nos_shim::frame::{Burst, Checksum, Ecn, FramePool, GsoKind, MAX_FRAME, Offload, Segmentation};
use nos_shim::ident::MacAddr;
use nos_shim::packet::Packet;
use support::daemon::LIMIT;
use support::scenario::{FAMILIES, Family, Scenario, each_variant};
use support::wire::{self, Wire};

/// The container's own port.
const FROM: u16 = 40_000;
/// X's.
const TO: u16 = 9_000;
/// Octets of each datagram in a super-frame.
const EACH: usize = 100;

/// Tags in front of a frame, the outermost first.
fn tagged(frame: &[u8], tags: &[[u8; 4]]) -> Vec<u8> {
    let (addresses, behind) = frame.split_at(12);
    [addresses, tags.as_flattened(), behind].concat()
}

const PRIORITY: [u8; 4] = [0x81, 0, 0xf0, 0];
const SERVICE: [u8; 4] = [0x88, 0xa8, 0x20, 0];
const VLAN: [u8; 4] = [0x81, 0, 0, 5];

/// A container's end of its link, for frames as a program makes them.
struct Sender {
    device: PacketSocket,
    pool: FramePool,
    wire: Wire,
    relay: MacAddr,
}

impl Sender {
    fn new(scenario: &Scenario) -> Self {
        let open = || PacketSocket::open("eth0", PacketOptions::default()).unwrap();
        Self {
            device: scenario.web().run(open).unwrap(),
            pool: FramePool::new(64, MAX_FRAME),
            wire: Wire::open(scenario.web(), "eth0"),
            relay: scenario.daemon.attachment("web").link.mac,
        }
    }

    fn datagram(&self, family: Family, payload: &[u8]) -> Vec<u8> {
        let macs = (self.wire.mac(), self.relay);
        wire::udp(
            wire::ip(macs, family.nos, family.external),
            (FROM, TO),
            payload,
        )
    }

    fn send(&mut self, octets: &[u8], offload: Offload) {
        let mut frame = self.pool.copy_from(octets).unwrap();
        frame.set_offload(offload);
        let mut burst: Burst = [frame].into_iter().collect();
        let sent = self.device.send_burst(&mut burst, &mut self.pool);
        assert_eq!((sent.frames, sent.dropped), (1, 0), "{sent:?}");
    }

    /// Three datagrams in one frame, with a checksum that is left to the device.
    fn super_frame(&mut self, family: Family, tags: &[[u8; 4]], payload: &[u8]) {
        let mut octets = self.datagram(family, payload);
        let packet = Packet::parse(self.pool.copy_from(&octets).unwrap()).unwrap();
        let start = packet.transport_offset();
        let pseudo = packet.pseudo_sum(packet.transport().len()).folded();
        self.pool.free(packet.into_frame());
        octets[start + 6..start + 8].copy_from_slice(&pseudo.to_be_bytes());
        let offload = Offload {
            checksum: Checksum::Partial {
                start: u16::try_from(start + 4 * tags.len()).unwrap(),
                offset: 6,
            },
            segmentation: Some(Segmentation {
                kind: GsoKind::Udp,
                ecn: Ecn::Unmarked,
                size: NonZeroU16::new(u16::try_from(EACH).unwrap()).unwrap(),
                tunnel: None,
            }),
        };
        self.send(&tagged(&octets, tags), offload);
    }
}

/// The next datagram that comes to X.
fn receive(socket: &UdpSocket) -> Vec<u8> {
    let mut octets = vec![0; 2000];
    let (length, from) = socket.recv_from(&mut octets).unwrap();
    assert_eq!(from.port(), FROM);
    octets.truncate(length);
    octets
}

each_variant! {
    fn frames_with_priorities_are_as_those_without(variant) {
        let scenario = Scenario::new(variant);
        let mut sender = Sender::new(&scenario);
        for family in FAMILIES {
            let bind = || UdpSocket::bind(family.external_port(TO));
            let socket = scenario.external().try_run("bind", bind).unwrap();
            socket.set_read_timeout(Some(LIMIT)).unwrap();
            let rows: [&[[u8; 4]]; 4] = [&[], &[PRIORITY], &[PRIORITY; 2], &[SERVICE, PRIORITY]];
            for (number, tags) in (0_u8..).zip(rows) {
                let other = tagged(&sender.datagram(family, b"of a VLAN"), &[PRIORITY, VLAN]);
                sender.send(&other, Offload::NONE);
                let payload = [number; 33];
                let frame = tagged(&sender.datagram(family, &payload), tags);
                sender.send(&frame, Offload::NONE);
                assert_eq!(receive(&socket), payload, "{tags:x?}, {}", family.nos);
                let payload: Vec<u8> = (0_u8..251).cycle().take(3 * EACH).map(|octet| octet ^ number).collect();
                sender.super_frame(family, tags, &payload);
                for part in payload.chunks(EACH) {
                    assert_eq!(receive(&socket), part, "in one: {tags:x?}, {}", family.nos);
                }
            }
        }
        let drops = scenario.daemon.attachment("web").link.drops;
        assert_eq!(drops.get("vlan"), Some(&8), "{drops:?}");
    }
}

each_variant! {
    fn questions_with_priorities_are_answered(variant) {
        let scenario = Scenario::new(variant);
        let mut sender = Sender::new(&scenario);
        let (IpAddr::V4(own), IpAddr::V4(external)) = (FAMILIES[0].nos, FAMILIES[0].external) else {
            unreachable!()
        };
        let mac = sender.wire.mac();
        let question = [
            &[0xff; 6][..],
            &mac.0,
            &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
            &mac.0,
            &own.octets(),
            &[0; 6],
            &external.octets(),
        ]
        .concat();
        sender.wire.drain();
        for tags in [&[PRIORITY][..], &[SERVICE, PRIORITY]] {
            sender.send(&tagged(&question, tags), Offload::NONE);
            let arp = sender.wire.await_octets(LIMIT, |frame| {
                Arp::parse(frame).ok().filter(|arp| arp.operation == Operation::Reply)
            });
            assert_eq!((arp.sender_ip, arp.sender_mac), (external, sender.relay));
        }
    }
}
