//! A capture of super-frames reads as correct packets.

use std::fs;
use std::path::Path;
use std::process::Command;

use nos_relay::data::device::{
    CaptureOptions, CaptureWriter, Captured, FrameDevice, PacketOptions,
};
use nos_shim::frame::{FramePool, MAX_FRAME};
use nos_shim::offload::Capabilities;
use nos_shim::packet::Packet;
use pcap_file::pcapng::{Block, PcapNgParser};

use crate::bulk::{check_bulk, host};
use crate::harness::{LIMIT, Opened, packet, tap, taps};
use crate::support::lab_test;

/// Puts a capture around a host's device.
fn captured((lab, device, others): Opened, path: &Path) -> (Opened, CaptureWriter) {
    let options = CaptureOptions::default();
    let (sink, writer) = CaptureWriter::create(path, device.name(), options).unwrap();
    let sink = Some(sink);
    ((lab, Box::new(Captured { device, sink }), others), writer)
}

lab_test! {
    fn captured_super_frames_are_correct_packets() {
        let directory = tempfile::tempdir().unwrap();
        let paths = ["first", "second"].map(|name| directory.path().join(name));
        let first = if taps() {
            tap(host("first"), Capabilities::all())
        } else {
            packet(host("first"), PacketOptions::default())
        };
        let second = packet(host("second"), PacketOptions::default());
        let [(first, one), (second, other)] = [captured(first, &paths[0]), captured(second, &paths[1])];
        let forwarded = check_bulk([first, second], 1 << 20);
        assert!(forwarded.super_frames.as_flattened().iter().all(|&count| count > 0));
        let passed = forwarded.devices.each_ref().map(|device| {
            let counters = device.counters();
            counters.received.frames + counters.sent.frames
        });
        drop(forwarded);
        for writer in [one, other] {
            writer.finish(LIMIT).unwrap();
        }
        for (path, passed) in paths.iter().zip(passed) {
            assert_eq!(check_file(path), passed);
            check_with_tshark(path);
        }
    }
}

/// Checks every frame of a capture; returns how many there are.
fn check_file(path: &Path) -> u64 {
    let octets = fs::read(path).unwrap();
    let (mut rest, mut parser) = PcapNgParser::new(&octets).unwrap();
    let mut pool = FramePool::new(1, MAX_FRAME);
    let (mut frames, mut longest) = (0, 0);
    while !rest.is_empty() {
        let (next, block) = parser.next_block(rest).unwrap();
        rest = next;
        let Block::EnhancedPacket(block) = block else {
            continue;
        };
        frames += 1;
        longest = longest.max(block.data.len());
        // ARP is no packet.
        if let Ok(packet) = Packet::parse(pool.copy_from(&block.data).unwrap()) {
            assert!(packet.transport_checksum_ok(), "{packet:?}");
        }
    }
    assert!(longest > 9000, "no super-frame in {}", path.display());
    frames
}

/// Wireshark's opinion, where it is installed.
fn check_with_tshark(path: &Path) {
    let mut command = Command::new("tshark");
    command.arg("-r").arg(path).arg("-n");
    // No preferences of whoever runs the tests.
    command.env("HOME", path.parent().unwrap());
    for layer in ["ip", "tcp", "udp"] {
        command
            .arg("-o")
            .arg(format!("{layer}.check_checksum:TRUE"));
    }
    command.args([
        "-Y",
        // Linux writes 0xffff for zero into TCP headers too, which is the same number in ones'
        // complement; Wireshark has another opinion, once in 65,536 segments.
        "_ws.malformed || ip.checksum.status == 0 || udp.checksum.status == 0 \
         || (tcp.checksum.status == 0 && tcp.checksum != 0xffff)",
    ]);
    let Ok(output) = command.output() else {
        println!("tshark is not installed: its opinion was not asked");
        return;
    };
    let complaints = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert_eq!(complaints, "", "{errors}");
}
