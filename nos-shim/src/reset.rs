//! TCP resets for segments that belong to nobody (RFC 9293 §3.5.2, §3.10.7.1).
//!
//! Linux does not limit their rate, and neither does this module.

use crate::drop::DropReason;
use crate::frame::FramePool;
use crate::ipv4_options;
use crate::originate::{
    Network, Originator, addresses, flow_of, is_unicast, names_one_host, traffic_class,
};
use crate::packet::{Packet, Ports, protocol};

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// Octets of a TCP header without options.
const TCP_HEADER: usize = 20;

/// Kind and length of the TCP option that carries an MD5 signature (RFC 2385 §3.0).
const MD5_SIGNATURE: [u8; 2] = [19, 18];

/// The reset that answers `segment`, or why there is none. The segment itself counts as dropped,
/// as [`DropReason::NoListener`] or for the reason given here. Ethernet addresses of the reset are
/// zero, and no interface is set.
///
/// # Errors
///
/// - [`DropReason::TransportChecksum`]: the segment is damaged.
/// - [`DropReason::MartianSource`], [`DropReason::Multicast`]: an answer would not reach one host.
/// - [`DropReason::NoListener`]: it is a reset itself, or no whole TCP segment; or it has an MD5
///   signature, so that its sender would not believe an unsigned reset.
/// - [`DropReason::NoBuffer`].
pub fn answer(
    segment: &Packet,
    originator: &mut Originator,
    pool: &mut FramePool,
) -> Result<Packet, DropReason> {
    let (Some(ports), Some(flags)) = (segment.ports(), segment.tcp_flags()) else {
        return Err(DropReason::NoListener);
    };
    if !segment.transport_checksum_ok() {
        return Err(DropReason::TransportChecksum);
    }
    if flags & RST != 0 || is_signed(segment) {
        return Err(DropReason::NoListener);
    }
    if !is_unicast(segment) {
        return Err(DropReason::Multicast);
    }
    if !names_one_host(segment.source()) {
        return Err(DropReason::MartianSource);
    }
    build(segment, ports, flags, originator, pool).ok_or(DropReason::NoBuffer)
}

fn build(
    segment: &Packet,
    ports: Ports,
    flags: u8,
    originator: &mut Originator,
    pool: &mut FramePool,
) -> Option<Packet> {
    let source = segment.destination();
    let addresses = addresses(source, segment.source())?;
    let ports = Ports {
        source: ports.destination,
        destination: ports.source,
    };
    let options = ipv4_options::echoed(segment, source);
    let network = Network {
        addresses,
        protocol: protocol::TCP,
        // Without the ECN bits: a reset is not ECN-capable (RFC 3168 §6.1.1).
        traffic_class: traffic_class(segment) & 0xfc,
        dont_fragment: true,
        options: &options,
        flow: flow_of(ports),
    };
    let (sequence, acknowledgment, flags) = numbers(segment, flags);
    let mut packet = originator.packet(&network, TCP_HEADER, pool, |tcp| {
        tcp[..2].copy_from_slice(&ports.source.to_be_bytes());
        tcp[2..4].copy_from_slice(&ports.destination.to_be_bytes());
        tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
        tcp[8..12].copy_from_slice(&acknowledgment.to_be_bytes());
        tcp[12] = 5 << 4;
        tcp[13] = flags;
        let checksum = addresses
            .pseudo_sum(protocol::TCP, TCP_HEADER)
            .plus(tcp)
            .checksum();
        tcp[16..18].copy_from_slice(&checksum.to_be_bytes());
    })?;
    packet.set_vrf(segment.frame().vrf());
    Some(packet)
}

/// Sequence number, acknowledgment number and flags of the reset (RFC 9293 §3.10.7.1).
fn numbers(segment: &Packet, flags: u8) -> (u32, u32, u8) {
    let tcp = segment.transport();
    let word = |at: usize| u32::from_be_bytes([tcp[at], tcp[at + 1], tcp[at + 2], tcp[at + 3]]);
    if flags & ACK != 0 {
        return (word(8), 0, RST);
    }
    let payload = segment.frame().len() - segment.payload_offset();
    let syn_and_fin = u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
    let length = u32::try_from(payload).unwrap_or(0) + syn_and_fin;
    (0, word(4).wrapping_add(length), RST | ACK)
}

/// Whether the segment has an MD5 signature. Malformed options do not matter here.
fn is_signed(segment: &Packet) -> bool {
    let header_len = segment.payload_offset() - segment.transport_offset();
    let tcp = segment.transport();
    let mut options = tcp.get(TCP_HEADER..header_len).unwrap_or_default();
    while let [kind, rest @ ..] = options {
        options = match (kind, rest) {
            (0, _) => return false,
            (1, _) => rest,
            (kind, [len, ..]) if [*kind, *len] == MD5_SIGNATURE => return true,
            (_, [len, ..]) if *len >= 2 => options.get(usize::from(*len)..).unwrap_or_default(),
            _ => return false,
        };
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum::Sum;
    use crate::frame::{Checksum, Ecn, GsoKind, Offload, Segmentation};
    use crate::ipv4_options::receive;
    use crate::originate::addresses;
    use crate::test_packets::{Draft, N4, N6, Segment, X4, X6, hex, ip, pool};
    use crate::time::Instant;
    use core::num::NonZeroU16;

    fn reset(segment: &Packet, pool: &mut FramePool) -> Result<Packet, DropReason> {
        answer(segment, &mut Originator::new(1), pool)
    }

    fn word(tcp: &[u8], at: usize) -> u32 {
        u32::from_be_bytes(tcp[at..at + 4].try_into().unwrap())
    }

    /// Each row was observed on Linux 6.18: flags and payload of the segment (sequence 100,
    /// acknowledgment 77); sequence, acknowledgment and flags of the reset.
    #[test]
    fn numbers_are_those_of_linux() {
        let mut pool = pool();
        let rows: &[(u8, &[u8], u32, u32, u8)] = &[
            (0x02, b"", 0, 101, 0x14),
            (0xc2, b"", 0, 101, 0x14),
            (0x02, b"xyz", 0, 104, 0x14),
            (0x03, b"xyz", 0, 105, 0x14),
            (0x10, b"", 77, 0, 0x04),
            (0x50, b"", 77, 0, 0x04),
            (0x12, b"", 77, 0, 0x04),
            (0x11, b"abc", 77, 0, 0x04),
            (0x01, b"", 0, 101, 0x14),
            (0x00, b"abc", 0, 103, 0x14),
            (0x28, b"", 0, 100, 0x14),
        ];
        for draft in [Draft::v4(), Draft::v6()] {
            for &(flags, payload, sequence, acknowledgment, reset_flags) in rows {
                let segment = Segment {
                    flags,
                    payload,
                    ..Segment::default()
                };
                let segment = draft.tcp_packet(&mut pool, &segment);
                let reset = reset(&segment, &mut pool).unwrap();
                let tcp = reset.transport();
                assert_eq!(tcp.len(), 20, "no options");
                assert_eq!(
                    reset.ports(),
                    Some(Ports {
                        source: 2000,
                        destination: 1000
                    })
                );
                assert_eq!(
                    (word(tcp, 4), word(tcp, 8), tcp[13]),
                    (sequence, acknowledgment, reset_flags),
                    "for flags {flags:#x}"
                );
                assert_eq!(word(tcp, 14 - 2) & 0xffff, 0, "no window");
                assert!(reset.transport_checksum_ok());
                assert_eq!(reset.ttl(), 64);
                assert!(reset.dont_fragment());
            }
        }
    }

    #[test]
    fn sequence_numbers_wrap() {
        let mut pool = pool();
        let segment = Segment {
            sequence: u32::MAX,
            ..Segment::default()
        };
        let segment = Draft::v4().tcp_packet(&mut pool, &segment);
        assert_eq!(word(reset(&segment, &mut pool).unwrap().transport(), 8), 0);
    }

    /// On Linux 6.18: identification 0 and DF; TOS 0xff and traffic class 0xff become 0xfc; IPv6
    /// has a flow label of its own that is the same for each reset of a flow.
    #[test]
    fn headers_are_those_of_linux() {
        let mut pool = pool();
        let mut draft = Draft::v4();
        draft.class = 0xff;
        let syn = draft.tcp_packet(&mut pool, &Segment::default());
        let rst = reset(&syn, &mut pool).unwrap();
        assert_eq!((rst.source(), rst.destination()), (ip(N4), ip(X4)));
        assert_eq!(rst.ip()[..8], hex("45fc0028 00004000"));

        let mut draft = Draft::v6();
        draft.class = 0xff;
        draft.label = 0xabcde;
        let syn = draft.tcp_packet(&mut pool, &Segment::default());
        let first = reset(&syn, &mut pool).unwrap();
        assert_eq!((first.source(), first.destination()), (ip(N6), ip(X6)));
        assert_eq!(traffic_class(&first), 0xfc);
        draft.label = 0x11111;
        let syn = draft.tcp_packet(&mut pool, &Segment::default());
        let second = reset(&syn, &mut pool).unwrap();
        assert_eq!(first.ip()[1..4], second.ip()[1..4]);
        assert_ne!(first.ip()[1..4], [0xf, 0xc0, 0]);
    }

    #[test]
    fn record_route_is_echoed() {
        let mut pool = pool();
        let mut draft = Draft::v4();
        draft.options = hex("070b04 0000000000000000 00");
        let mut syn = draft.tcp_packet(&mut pool, &Segment::default());
        receive(&mut syn, Instant::ZERO).unwrap();
        let rst = reset(&syn, &mut pool).unwrap();
        assert_eq!(rst.ip()[20..32], hex("070b0ccb007101cb00710100"));
    }

    #[test]
    fn some_segments_are_not_answered() {
        let mut pool = pool();
        for flags in [0x04, 0x14] {
            let rst = Segment {
                flags,
                ..Segment::default()
            };
            let rst = Draft::v4().tcp_packet(&mut pool, &rst);
            assert_eq!(reset(&rst, &mut pool).unwrap_err(), DropReason::NoListener);
        }
        let mut damaged = Draft::v4().tcp(&Segment::default());
        damaged[17] ^= 0x55;
        let damaged = Draft::v4().packet(&mut pool, 6, &damaged);
        assert_eq!(
            reset(&damaged, &mut pool).unwrap_err(),
            DropReason::TransportChecksum
        );
        let signature = [&[19, 18][..], &[b'a'; 16], &[1, 1]].concat();
        let signed = Segment {
            options: &signature,
            ..Segment::default()
        };
        for draft in [Draft::v4(), Draft::v6()] {
            let signed = draft.tcp_packet(&mut pool, &signed);
            assert_eq!(
                reset(&signed, &mut pool).unwrap_err(),
                DropReason::NoListener
            );
        }
        let udp = Draft::v4().udp_packet(&mut pool, (1, 2), b"");
        assert_eq!(reset(&udp, &mut pool).unwrap_err(), DropReason::NoListener);
    }

    /// All of these are answered by Linux 6.18 too.
    #[test]
    fn malformed_options_do_not_matter() {
        let mut pool = pool();
        for options in [
            "08000101", "080a0101", "01010108", "13040101", "1d040101", "1d030101",
        ] {
            let syn = Segment {
                options: &hex(options),
                ..Segment::default()
            };
            let syn = Draft::v4().tcp_packet(&mut pool, &syn);
            assert!(reset(&syn, &mut pool).is_ok(), "{options}");
        }
    }

    #[test]
    fn only_single_hosts_are_answered() {
        let mut pool = pool();
        for source in [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "224.0.0.5",
            "240.1.2.3",
            "255.255.255.255",
        ] {
            let syn = Draft::new(source, N4).tcp_packet(&mut pool, &Segment::default());
            assert_eq!(
                reset(&syn, &mut pool).unwrap_err(),
                DropReason::MartianSource
            );
        }
        for source in ["::", "::1", "ff02::5"] {
            let syn = Draft::new(source, N6).tcp_packet(&mut pool, &Segment::default());
            assert_eq!(
                reset(&syn, &mut pool).unwrap_err(),
                DropReason::MartianSource
            );
        }
        for (source, group) in [(X4, "224.0.0.1"), (X4, "255.255.255.255"), (X6, "ff02::1")] {
            let syn = Draft::new(source, group).tcp_packet(&mut pool, &Segment::default());
            assert_eq!(reset(&syn, &mut pool).unwrap_err(), DropReason::Multicast);
        }
        let mut draft = Draft::v4();
        draft.mac = [0xff; 6];
        let syn = draft.tcp_packet(&mut pool, &Segment::default());
        assert_eq!(reset(&syn, &mut pool).unwrap_err(), DropReason::Multicast);
    }

    #[test]
    fn a_super_frame_counts_with_all_its_payload() {
        let mut pool = pool();
        let draft = Draft::v4();
        let segment = Segment {
            flags: 1,
            payload: &[7; 5000],
            ..Segment::default()
        };
        let mut tcp = draft.tcp(&segment);
        let addresses = addresses(draft.source, draft.destination).unwrap();
        let pseudo: Sum = addresses.pseudo_sum(6, tcp.len());
        tcp[16..18].copy_from_slice(&pseudo.folded().to_be_bytes());
        let mut frame = pool.copy_from(&draft.frame(6, &tcp)).unwrap();
        frame.set_offload(Offload {
            checksum: Checksum::Partial {
                start: 34,
                offset: 16,
            },
            segmentation: Some(Segmentation {
                kind: GsoKind::TcpV4,
                ecn: Ecn::Unmarked,
                size: NonZeroU16::new(1000).unwrap(),
                tunnel: None,
            }),
        });
        let segment = Packet::parse(frame).unwrap();
        let rst = reset(&segment, &mut pool).unwrap();
        assert_eq!(word(rst.transport(), 8), 100 + 5000 + 1);
    }
}
