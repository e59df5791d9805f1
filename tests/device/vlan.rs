//! VLANs of a device, with kernels that put tags in and take them out by their own means.

use nos_relay::data::device::{
    CaptureOptions, CaptureWriter, Captured, FrameDevice, PacketOptions, PacketSocket, Shown,
    Tagged, open_tap,
};
use nos_relay::lab::testbed::LabNamespace;
use nos_shim::drop::DropReason;
use nos_shim::offload::Capabilities;
use nos_shim::vlan::VlanId;
use pcap_file::pcapng::{Block, PcapNgParser};

use crate::bulk::{check_bulk, host};
use crate::harness::{
    KERNEL, LIMIT, Opened, Polled, US, configured, ethernet, is_udp, packet, quiet, tap, taps,
    to_us, udp_datagram, udp_socket,
};
use crate::support::lab_test;
use crate::support::switch::{Access, Switch};
use crate::support::wire::Wire;

fn vlan(id: u16) -> VlanId {
    VlanId::new(id).unwrap()
}

fn options(id: u16) -> PacketOptions {
    PacketOptions {
        vlan: Some(vlan(id)),
        ..PacketOptions::default()
    }
}

/// A packet socket with a VLAN, whose frames have no tag at the far end: `eth0` of `lab`.
pub(crate) fn switched(lab: LabNamespace, id: u16, priority: u16) -> Option<Opened> {
    let trunk = quiet("trunk");
    let access = Access {
        vlan: id,
        priority,
        host: (&lab, "eth0"),
    };
    let switch = Switch::new((&trunk, "peer"), &[access])?;
    let open = || PacketSocket::open("peer", options(id)).unwrap();
    let device = trunk.run(open).unwrap();
    Some((lab, Box::new(device), vec![trunk, switch.keep()]))
}

lab_test! {
    fn super_frames_of_a_vlan_cross_intact() {
        let Some(one) = switched(host("one"), 910, 5) else {
            return;
        };
        let two = packet(host("two"), PacketOptions::default());
        let seen = check_bulk([one, two], 32 << 20).super_frames;
        assert!(seen.as_flattened().iter().all(|&count| count > 10), "{seen:?}");
    }
}

lab_test! {
    fn super_frames_cross_between_vlans_intact() {
        let (Some(one), Some(two)) = (switched(host("one"), 1, 0), switched(host("two"), 4094, 7)) else {
            return;
        };
        let seen = check_bulk([one, two], 32 << 20).super_frames;
        assert!(seen.as_flattened().iter().all(|&count| count > 10), "{seen:?}");
    }
}

/// A TAP whose frames have a tag on the kernel's side, where a switch takes it out.
fn tagged_tap(lab: LabNamespace, id: u16, offload: Capabilities) -> Option<Opened> {
    let trunk = quiet("trunk");
    let device = trunk.run(|| open_tap("tap0", offload).unwrap()).unwrap();
    let access = Access {
        vlan: id,
        priority: 0,
        host: (&lab, "eth0"),
    };
    let switch = Switch::behind((trunk, "tap0"), &[access])?;
    let device = Tagged::new(device, vlan(id));
    Some((lab, Box::new(device), vec![switch.keep()]))
}

lab_test! {
    fn super_frames_of_a_vlan_of_a_tap_cross_intact() {
        if !taps() {
            return;
        }
        let Some(one) = tagged_tap(host("one"), 910, Capabilities::all()) else {
            return;
        };
        let two = packet(host("two"), PacketOptions::default());
        let seen = check_bulk([one, two], 32 << 20).super_frames;
        assert!(seen.as_flattened().iter().all(|&count| count > 10), "{seen:?}");
    }
}

lab_test! {
    fn frames_of_a_vlan_of_a_plain_tap_cross_intact() {
        if !taps() {
            return;
        }
        let Some(one) = tagged_tap(host("one"), 910, Capabilities::empty()) else {
            return;
        };
        check_bulk([one, tap(host("two"), Capabilities::empty())], 4 << 20);
    }
}

/// `frame` with tags behind its addresses, the outermost first.
fn with_tags(frame: &[u8], tags: &[(u16, u16)]) -> Vec<u8> {
    let octets =
        |&(tpid, control): &(u16, u16)| [tpid.to_be_bytes(), control.to_be_bytes()].concat();
    let tags: Vec<u8> = tags.iter().flat_map(octets).collect();
    [&frame[..12], &tags, &frame[12..]].concat()
}

/// A frame that tells which it is.
fn numbered(number: u8) -> Vec<u8> {
    let mut frame = ethernet(0x88b5, &[number; 46]);
    // From the kernel to us.
    frame[..6].copy_from_slice(&US.0);
    frame[6..12].copy_from_slice(&KERNEL.0);
    frame
}

/// The tags of frames, and who is to get them.
const TAGS: [(&[(u16, u16)], &str); 14] = [
    (&[], "untagged"),
    (&[(0x8100, 0)], "untagged"),
    (&[(0x8100, 0xe000)], "untagged"),
    (&[(0x88a8, 0x2000)], "untagged"),
    (&[(0x8100, 910)], "910"),
    (&[(0x8100, 0xf000 | 910)], "910"),
    (&[(0x8100, 0x1000 | 910)], "910"),
    (&[(0x8100, 911)], "911"),
    (&[(0x8100, 912)], "nobody"),
    (&[(0x8100, 4095)], "nobody"),
    (&[(0x88a8, 910)], "nobody"),
    // What is inside is for whoever parses it.
    (&[(0x8100, 911), (0x8100, 910)], "911"),
    (&[(0x8100, 910), (0x88a8, 7)], "910"),
    (&[(0x88a8, 7), (0x8100, 910)], "nobody"),
];

/// A socket on `peer` of `host`, for a VLAN or frames without a tag, beside others.
fn beside(host: &LabNamespace, own: Option<u16>, shown: &Shown) -> Polled {
    let options = PacketOptions {
        vlan: own.map(vlan),
        ..PacketOptions::default()
    };
    let open = || PacketSocket::open_showing("peer", options, shown).unwrap();
    Polled::new(Box::new(host.run(open).unwrap()))
}

/// What a socket hands up of the frames of [`TAGS`], and how many others it was shown.
fn of_table(socket: &mut Polled, own: &str, shown: u64) -> u64 {
    let expected: Vec<_> = (0_u8..)
        .zip(TAGS)
        .filter(|(_, (_, whose))| *whose == own)
        .map(|(number, (tags, _))| {
            let inner = tags
                .get(1..)
                .filter(|_| own != "untagged")
                .unwrap_or_default();
            with_tags(&numbered(number), inner)
        })
        .collect();
    let frames = socket.account(0, shown);
    let frames: Vec<_> = frames.iter().map(|frame| frame.bytes().to_vec()).collect();
    assert_eq!(frames, expected, "{own}");
    let drops = socket.device.counters().received.drops;
    assert_eq!(drops.total(), drops.of(DropReason::Vlan));
    drops.total()
}

lab_test! {
    fn each_frame_is_shown_to_one_socket() {
        let count = |whose: &str| TAGS.iter().filter(|(_, of)| *of == whose).count() as u64;
        let nobody = count("nobody");
        for with_untagged in [true, false] {
            let (lab, trunk) = (quiet("lab"), quiet("trunk"));
            nos_relay::lab::testbed::veth((&lab, "eth0"), (&trunk, "peer")).unwrap();
            let but = |ids: &[u16]| Shown::AllBut(ids.iter().map(|&id| vlan(id)).collect());
            let mut untagged = with_untagged.then(|| beside(&trunk, None, &but(&[910, 911])));
            let chief = match with_untagged {
                true => Shown::Only(vlan(910)),
                false => but(&[911]),
            };
            let mut first = beside(&trunk, Some(910), &chief);
            let mut second = beside(&trunk, Some(911), &Shown::Only(vlan(911)));
            let wire = Wire::open(&lab, "eth0");
            for (number, (tags, _)) in (0_u8..).zip(TAGS) {
                wire.send(&with_tags(&numbered(number), tags));
            }
            let rest = match &mut untagged {
                Some(untagged) => of_table(untagged, "untagged", count("untagged") + nobody),
                None => 0,
            };
            let others = if with_untagged { 0 } else { count("untagged") + nobody };
            let dropped = of_table(&mut first, "910", count("910") + others);
            assert_eq!((rest, dropped), if with_untagged { (nobody, 0) } else { (0, others) });
            assert_eq!(of_table(&mut second, "911", count("911")), 0);
        }
    }
}

lab_test! {
    fn a_socket_can_be_told_to_show_other_frames_while_it_is_used() {
        let (lab, trunk) = (quiet("lab"), quiet("trunk"));
        nos_relay::lab::testbed::veth((&lab, "eth0"), (&trunk, "peer")).unwrap();
        let mut socket = beside(&trunk, None, &Shown::AllBut(Vec::new()));
        let wire = Wire::open(&lab, "eth0");
        let mut before = 0;
        for (shown, dropped) in [
            (None, 3),
            (Some(Shown::AllBut(vec![vlan(2)])), 2),
            (Some(Shown::AllBut(vec![vlan(1), vlan(2), vlan(3)])), 0),
            (Some(Shown::AllBut((1..=1024).map(vlan).collect())), 0),
            (Some(Shown::AllBut(Vec::new())), 3),
        ] {
            if let Some(shown) = &shown {
                socket.inspector.show(shown).unwrap();
            }
            for id in 1..=3 {
                wire.send(&with_tags(&numbered(0), &[(0x8100, id)]));
            }
            wire.send(&numbered(9));
            let frames = socket.account(before, dropped + 1);
            assert_eq!(frames.len(), 1, "{shown:?}");
            before = socket.accounted();
        }
        // What the kernel sends is none of them.
        let own = Wire::open(&trunk, "peer");
        own.send(&numbered(1));
        wire.send(&numbered(2));
        assert_eq!(socket.account(before, 1)[0].bytes(), numbered(2));
    }
}

/// What is in a capture.
fn recorded(path: &std::path::Path) -> Vec<Vec<u8>> {
    let octets = std::fs::read(path).unwrap();
    let (mut rest, mut parser) = PcapNgParser::new(&octets).unwrap();
    let mut frames = Vec::new();
    while !rest.is_empty() {
        let (next, block) = parser.next_block(rest).unwrap();
        rest = next;
        if let Block::EnhancedPacket(block) = block {
            assert_eq!(block.original_len as usize, block.data.len());
            frames.push(block.data.to_vec());
        }
    }
    frames
}

lab_test! {
    fn a_capture_has_the_frames_with_their_tag() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vlan.pcapng");
        let Some((lab, device, _others)) = switched(quiet("lab"), 910, 0).map(configured) else {
            return;
        };
        let options = CaptureOptions { vlan: Some(vlan(910)), ..CaptureOptions::default() };
        let (sink, writer) = CaptureWriter::create(&path, device.name(), options).unwrap();
        let mut polled = Polled::new(Box::new(Captured { device, sink: Some(sink) }));
        let socket = udp_socket(&lab);
        let out = udp_datagram(b"out");
        assert_eq!(polled.send_one(&out, nos_shim::frame::Offload::NONE).frames, 1);
        let mut buffer = [0; 100];
        let (length, _) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"out");
        socket.send_to(b"back", to_us()).unwrap();
        let back = polled.receive_until(is_udp).bytes().to_vec();
        drop(polled);
        writer.finish(LIMIT).unwrap();
        let frames = recorded(&path);
        let tag = [(0x8100, 910)];
        assert_eq!(frames[0], with_tags(&out, &tag));
        let last = frames.last().unwrap();
        assert_eq!(last[..16], with_tags(&back, &tag)[..16]);
        assert_eq!(last.len(), back.len() + 4);
    }
}
