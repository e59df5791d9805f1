//! To outsiders, the NOS is a plain Linux host: the same packet gets the same answer.
//!
//! The oracle is a kernel with the NOS's addresses. Both are sent the same crafted packets, and
//! their answers are compared octet by octet but for what is chosen at random: IPv4
//! identification and IPv6 flow label, and checksums over them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{IpHeaders, PacketBuilderStep};
use nos_relay::lab::{LabNamespace, Topology};
use nos_shim::ident::MacAddr;
use support::daemon::{Daemon, LIMIT};
use support::lab_test;
use support::scenario::{FAMILIES, Family, Variant, config};
use support::wire::{self, ICMP, ICMPV6, Seen, TCP, UDP, Wire};

/// Closed everywhere: neither the NOS nor a container has it.
const CLOSED: u16 = 81;

/// X's end of a link to somebody with the NOS's addresses.
struct Outside {
    daemon: Option<Daemon>,
    external: LabNamespace,
    _topology: Topology,
    wire: Wire,
    peer: MacAddr,
}

impl Outside {
    fn of_kernel() -> Self {
        let topology = Topology::new(&[]).unwrap();
        let host = &topology.device;
        host.sysctl("net/ipv6/conf/hx/disable_ipv6", "0").unwrap();
        for address in ["203.0.113.1/24", "2001:db8:1::1/64"] {
            host.add_address("hx", address.parse().unwrap()).unwrap();
        }
        // Each peer gets few errors anyhow; how many at once in all is not compared here.
        host.sysctl("net/ipv4/icmp_ratelimit", "0").unwrap();
        host.sysctl("net/ipv6/icmp/ratelimit", "0").unwrap();
        Self::new(None, topology)
    }

    fn of_nos() -> Self {
        let topology = Topology::new(&["web", "db"]).unwrap();
        let daemon = Daemon::start(&topology.device, &config(&topology, Variant::PLAIN));
        Self::new(Some(daemon), topology)
    }

    fn new(daemon: Option<Daemon>, topology: Topology) -> Self {
        let external = topology.external.clone();
        let wire = Wire::open(&external, Topology::EXTERNAL_INTERFACE);
        let mut this = Self {
            daemon,
            external,
            _topology: topology,
            wire,
            peer: MacAddr::ZERO,
        };
        for family in FAMILIES {
            nos_relay::lab::ping::ping(&this.external, family.nos, 1, LIMIT).unwrap();
        }
        let reply = this
            .wire
            .seen()
            .into_iter()
            .find(|seen| seen.source == FAMILIES[0].nos);
        this.peer = reply.expect("an echo reply").source_mac;
        this
    }

    /// What comes back when `frame` is sent by `source`.
    fn answers(&self, family: Family, source: IpAddr, frame: &[u8]) -> Vec<Seen> {
        // First of all, the other side resolves our address; at last we know that there is no more.
        self.echo(family, source, 1, |_| {});
        self.wire.send(frame);
        let mut answers = Vec::new();
        self.echo(family, source, 2, |seen| answers.push(seen.clone()));
        answers
    }

    fn echo(&self, family: Family, source: IpAddr, number: u16, mut before: impl FnMut(&Seen)) {
        let mut frame = Vec::new();
        let step = wire::ip((self.wire.mac(), self.peer), source, family.nos);
        let written = if family.is_v6() {
            step.icmpv6_echo_request(0xffff, number)
                .write(&mut frame, b"marker")
        } else {
            step.icmpv4_echo_request(0xffff, number)
                .write(&mut frame, b"marker")
        };
        written.unwrap();
        self.wire.send(&frame);
        self.wire.await_frame(LIMIT, |seen| {
            if seen.destination != source || seen.is_chatter() {
                return None;
            }
            if seen.transport().ends_with(b"marker") && matches!(seen.icmp(), Some((0 | 129, 0))) {
                return Some(());
            }
            before(seen);
            None
        });
    }
}

/// Whether the transport checksum holds.
fn checksum_holds(seen: &Seen) -> bool {
    let length = u32::try_from(seen.transport().len()).unwrap();
    let pseudo = match seen.source {
        IpAddr::V4(_) if seen.protocol == ICMP => Vec::new(),
        IpAddr::V4(_) => seen.ip[12..20].to_vec(),
        IpAddr::V6(_) => seen.ip[8..40].to_vec(),
    };
    let trailer = if pseudo.is_empty() {
        Vec::new()
    } else {
        [&length.to_be_bytes()[..], &[0, 0, 0, seen.protocol]].concat()
    };
    wire::sum(&[&pseudo, &trailer, seen.transport()].concat()) == 0xffff
}

/// Sets to zero what is random by design.
fn normal(mut seen: Seen) -> Seen {
    seen.source_mac = MacAddr::ZERO;
    if seen.protocol == TCP {
        // The kernel leaves it to the veth to sum up, which does not.
        let at = seen.ip.len() - seen.transport().len() + 16;
        seen.ip[at..at + 2].fill(0);
    }
    match seen.source {
        IpAddr::V4(_) => {
            // With DF the identification means nothing (RFC 6864); both are compared without.
            seen.ip[4..6].fill(0);
            seen.ip[10..12].fill(0);
        }
        IpAddr::V6(_) => {
            seen.ip[1] &= 0xf0;
            seen.ip[2..4].fill(0);
        }
    }
    seen
}

type Step = PacketBuilderStep<IpHeaders>;

struct Case {
    name: &'static str,
    /// What to send, given its beginning.
    craft: fn(Step) -> Vec<u8>,
    /// Whether an answer is expected, as `[IPv4, IPv6]`; `None` where the family has no such thing.
    answered: [Option<bool>; 2],
}

const BOTH: [Option<bool>; 2] = [Some(true); 2];
const SILENCE: [Option<bool>; 2] = [Some(false); 2];

fn segment(step: Step, flags: u8, payload: &[u8]) -> Vec<u8> {
    segment_to(step, CLOSED, flags, payload)
}

fn segment_to(step: Step, port: u16, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut tcp = step.tcp(50_000, port, 0x0102_0304, 1000);
    if flags & 0x01 != 0 {
        tcp = tcp.fin();
    }
    if flags & 0x02 != 0 {
        tcp = tcp.syn();
    }
    if flags & 0x04 != 0 {
        tcp = tcp.rst();
    }
    if flags & 0x08 != 0 {
        tcp = tcp.psh();
    }
    if flags & 0x10 != 0 {
        tcp = tcp.ack(0x0a0b_0c0d);
    }
    let mut frame = Vec::new();
    tcp.write(&mut frame, payload).unwrap();
    frame
}

fn datagram(step: Step, payload: &[u8]) -> Vec<u8> {
    wire::udp(step, (50_000, CLOSED), payload)
}

/// Where the transport header begins, without extension headers or options.
fn transport_at(frame: &[u8]) -> usize {
    if frame[12..14] == [0x86, 0xdd] {
        54
    } else {
        34
    }
}

fn with_octet(mut frame: Vec<u8>, of_transport: usize, change: fn(u8) -> u8) -> Vec<u8> {
    let at = transport_at(&frame) + of_transport;
    frame[at] = change(frame[at]);
    frame
}

/// An ICMP message of any type, with its checksum.
fn icmp(step: Step, v4_kind: u8, v6_kind: u8, body: &[u8]) -> Vec<u8> {
    // The protocol is told by the family that the frame turns out to have.
    let mut frame = wire::other(step, ICMPV6, &[&[0; 4], body].concat());
    let at = transport_at(&frame);
    let v6 = at == 54;
    frame[at] = if v6 { v6_kind } else { v4_kind };
    let mut summed = Vec::new();
    if v6 {
        let length = u32::try_from(frame.len() - at).unwrap();
        summed.extend(&frame[22..54]);
        summed.extend(length.to_be_bytes());
        summed.extend([0, 0, 0, ICMPV6]);
    } else {
        frame[23] = ICMP;
        wire::fix_ipv4_checksum(&mut frame);
    }
    summed.extend(&frame[at..]);
    let sum = !wire::sum(&summed);
    frame[at + 2..at + 4].copy_from_slice(&sum.to_be_bytes());
    frame
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut case = |name, craft, answered| {
        cases.push(Case {
            name,
            craft,
            answered,
        });
    };
    // TCP to nobody's port (RFC 9293 §3.5.2).
    case("SYN", |step| segment(step, 0x02, b""), BOTH);
    case("SYN with data", |step| segment(step, 0x02, b"early"), BOTH);
    case("SYN and FIN", |step| segment(step, 0x03, b""), BOTH);
    case("SYN and ACK", |step| segment(step, 0x12, b""), BOTH);
    case("ACK", |step| segment(step, 0x10, b""), BOTH);
    case("ACK with data", |step| segment(step, 0x18, b"data"), BOTH);
    case("FIN", |step| segment(step, 0x01, b""), BOTH);
    case("FIN and ACK", |step| segment(step, 0x11, b""), BOTH);
    case("no flags", |step| segment(step, 0, b""), BOTH);
    case("RST", |step| segment(step, 0x04, b""), SILENCE);
    case("RST and SYN", |step| segment(step, 0x06, b""), SILENCE);
    case("RST and ACK", |step| segment(step, 0x14, b""), SILENCE);
    case("SYN to port 0", |step| segment_to(step, 0, 0x02, b""), BOTH);
    case(
        "SYN to the last port",
        |step| segment_to(step, 65535, 0x02, b""),
        BOTH,
    );
    case(
        "SYN with a wrong checksum",
        |step| with_octet(segment(step, 0x02, b""), 16, |octet| !octet),
        SILENCE,
    );
    case(
        "SYN with a header that is too short",
        |step| with_octet(segment(step, 0x02, b""), 12, |_| 0x40),
        SILENCE,
    );
    case(
        "SYN with a header beyond its end",
        |step| with_octet(segment(step, 0x02, b""), 12, |_| 0xf0),
        SILENCE,
    );
    // UDP to nobody's port (RFC 1122 §4.1.3.1): how much is quoted depends on the length.
    case("empty datagram", |step| datagram(step, b""), BOTH);
    case("datagram of one octet", |step| datagram(step, b"1"), BOTH);
    case(
        "datagram of 600 octets",
        |step| datagram(step, &[6; 600]),
        BOTH,
    );
    case(
        "datagram of 1452 octets",
        |step| datagram(step, &[6; 1452]),
        BOTH,
    );
    case(
        "datagram with a wrong checksum",
        |step| with_octet(datagram(step, b"12"), 6, |octet| !octet),
        SILENCE,
    );
    case(
        "datagram without checksum",
        |step| with_octet(with_octet(datagram(step, b"12"), 6, |_| 0), 7, |_| 0),
        [Some(true), Some(false)],
    );
    case(
        "datagram longer than its packet",
        |step| with_octet(datagram(step, b"12"), 5, |_| 200),
        SILENCE,
    );
    case(
        "datagram shorter than its header",
        |step| with_octet(datagram(step, b"12"), 5, |_| 7),
        SILENCE,
    );
    case(
        "datagram as broadcast",
        |step| {
            let mut frame = datagram(step, b"12");
            frame[..6].fill(0xff);
            frame
        },
        SILENCE,
    );
    case(
        "SYN as broadcast",
        |step| {
            let mut frame = segment(step, 0x02, b"");
            frame[..6].fill(0xff);
            frame
        },
        SILENCE,
    );
    // Other protocols (RFC 1122 §3.2.2.1, RFC 4443 §3.4).
    case(
        "unknown protocol",
        |step| wire::other(step, 253, b"experiment"),
        BOTH,
    );
    case(
        "unknown protocol, empty",
        |step| wire::other(step, 254, b""),
        BOTH,
    );
    // Queries.
    case(
        "echo request",
        |step| icmp(step, 8, 128, b"\x12\x34\x00\x01abc"),
        BOTH,
    );
    case(
        "echo request without data",
        |step| icmp(step, 8, 128, b"\x12\x34\x00\x01"),
        BOTH,
    );
    case(
        "echo request of 1400 octets",
        |step| icmp(step, 8, 128, &[7; 1400]),
        BOTH,
    );
    case(
        "echo request with a wrong checksum",
        |step| {
            with_octet(icmp(step, 8, 128, b"\x12\x34\x00\x01abc"), 3, |octet| {
                !octet
            })
        },
        SILENCE,
    );
    case(
        "echo request with code 1",
        |step| {
            with_octet(
                with_octet(icmp(step, 8, 128, b"\x12\x34\x00\x01abc"), 1, |_| 1),
                3,
                |octet| octet.wrapping_sub(1),
            )
        },
        BOTH,
    );
    case(
        "echo reply that nobody asked for",
        |step| icmp(step, 0, 129, b"\x12\x34\x00\x01abc"),
        SILENCE,
    );
    case(
        "unknown ICMP type",
        |step| icmp(step, 41, 200, b"\x12\x34\x00\x01abc"),
        SILENCE,
    );
    case(
        "unreachable that quotes nothing",
        |step| icmp(step, 3, 1, &[0; 4]),
        SILENCE,
    );
    // Fields that come back.
    case(
        "echo request with DSCP and ECN",
        |step| {
            let mut frame = icmp(step, 8, 128, b"\x12\x34\x00\x01abc");
            if transport_at(&frame) == 54 {
                frame[14] = 0x6b;
                frame[15] |= 0xa0;
            } else {
                frame[15] = 0xba;
                wire::fix_ipv4_checksum(&mut frame);
            }
            frame
        },
        BOTH,
    );
    case(
        "datagram with TTL 1",
        |step| {
            let mut frame = datagram(step, b"12");
            if transport_at(&frame) == 54 {
                frame[21] = 1;
            } else {
                frame[22] = 1;
                wire::fix_ipv4_checksum(&mut frame);
            }
            frame
        },
        BOTH,
    );
    case(
        "datagram with options",
        |step| {
            let mut frame = datagram(step, b"12");
            if transport_at(&frame) == 34 {
                frame[14] = 0x46;
                frame[17] += 4;
                frame.splice(34..34, [1, 1, 1, 0]);
                wire::fix_ipv4_checksum(&mut frame);
            }
            frame
        },
        [Some(true), None],
    );
    cases
}

/// Each packet comes from an address of its own, so that limits to one peer do not count.
fn peer(family: Family, number: usize) -> IpAddr {
    let last = u8::try_from(number + 100).unwrap();
    if family.is_v6() {
        Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 1, u16::from(last)).into()
    } else {
        Ipv4Addr::new(203, 0, 113, last).into()
    }
}

fn give_addresses(outside: &Outside, count: usize) {
    for number in 0..count {
        for (family, length) in FAMILIES.into_iter().zip([24, 64]) {
            let address = ipnet::IpNet::new(peer(family, number), length).unwrap();
            outside
                .external
                .add_address(Topology::EXTERNAL_INTERFACE, address)
                .unwrap();
        }
    }
}

lab_test! {
    fn nos_answers_as_a_linux_host_does() {
        let outsides = [Outside::of_kernel(), Outside::of_nos()];
        let cases = cases();
        for outside in &outsides {
            give_addresses(outside, cases.len());
        }
        let mut wrong = Vec::new();
        for (number, case) in cases.iter().enumerate() {
            for (family, answered) in FAMILIES.into_iter().zip(case.answered) {
                let Some(answered) = answered else { continue };
                let source = peer(family, number);
                let [kernel, nos] = [0, 1].map(|which: usize| {
                    let outside = &outsides[which];
                    let step = wire::ip((outside.wire.mac(), outside.peer), source, family.nos);
                    let answers = outside.answers(family, source, &(case.craft)(step));
                    let of_kernel = outside.daemon.is_none();
                    assert!(answers.iter().all(|seen| of_kernel || checksum_holds(seen)), "{answers:?}");
                    answers.into_iter().map(normal).collect::<Vec<_>>()
                });
                // That the oracle was asked what we meant to ask.
                assert_eq!(!kernel.is_empty(), answered, "{}: a Linux host says {kernel:#?}", case.name);
                if kernel != nos {
                    wrong.push(format!("{} from {source}:\nLinux {}\nNOS   {}", case.name, show(&kernel), show(&nos)));
                }
            }
        }
        assert!(wrong.is_empty(), "{} answers differ:\n{}", wrong.len(), wrong.join("\n"));
    }
}

fn show(answers: &[Seen]) -> String {
    let hex = |octets: &[u8]| {
        octets
            .iter()
            .map(|octet| format!("{octet:02x}"))
            .collect::<String>()
    };
    let lines: Vec<_> = answers.iter().map(|seen| hex(&seen.ip)).collect();
    if lines.is_empty() {
        "is silent".to_owned()
    } else {
        lines.join(" and ")
    }
}

lab_test! {
    fn refused_datagram_in_fragments_is_quoted_whole() {
        let [kernel, nos] = [Outside::of_kernel(), Outside::of_nos()].map(|outside| {
            let answers = FAMILIES.map(|family| {
                let to = family.nos_port(CLOSED);
                let send = || {
                    let socket = std::net::UdpSocket::bind((family.external, 50_000)).unwrap();
                    socket.send_to(&[3; 3000], to).unwrap();
                };
                outside.external.run(send).unwrap();
                outside.wire.await_frame(LIMIT, |seen| {
                    let error = matches!(seen.icmp(), Some((3, 3) | (1, 4)));
                    error.then(|| normal(seen.clone()))
                })
            });
            answers.map(|mut answer| {
                // Of the quoted packet, the kernel of X chose identification or flow label.
                let quote = answer.ip.len() - answer.transport().len() + 8;
                if answer.source.is_ipv4() {
                    answer.ip[quote + 4..quote + 6].fill(0);
                    answer.ip[quote + 10..quote + 12].fill(0);
                } else {
                    answer.ip[quote + 1] = 0;
                    answer.ip[quote + 2..quote + 4].fill(0);
                    // The fragment header, if it is quoted.
                    answer.ip[quote + 44..quote + 48].fill(0);
                }
                let checksum = quote - 6;
                answer.ip[checksum..checksum + 2].fill(0);
                answer
            })
        });
        for (kernel, nos) in kernel.into_iter().zip(nos) {
            assert_eq!(kernel, nos, "\nLinux {}\nNOS   {}", show(std::slice::from_ref(&kernel)), show(std::slice::from_ref(&nos)));
        }
    }
}

lab_test! {
    fn errors_are_limited_resets_and_echo_replies_are_not() {
        let outside = Outside::of_nos();
        for family in FAMILIES {
            let source = family.external;
            let step = || wire::ip((outside.wire.mac(), outside.peer), source, family.nos);
            for _ in 0..20 {
                outside.wire.send(&datagram(step(), b"flood"));
                outside.wire.send(&segment(step(), 0x02, b""));
                outside.wire.send(&icmp(step(), 8, 128, b"\x12\x34\x00\x01flood"));
            }
            let mut answers = Vec::new();
            outside.echo(family, source, 3, |seen| answers.push(seen.clone()));
            let count = |what: fn(&Seen) -> bool| answers.iter().filter(|seen| what(seen)).count();
            assert_eq!(count(|seen| seen.protocol == TCP), 20);
            assert_eq!(count(|seen| matches!(seen.icmp(), Some((0 | 129, 0)))), 20);
            // Six at once, and more only as time passes.
            let errors = count(|seen| matches!(seen.icmp(), Some((3, 3) | (1, 4))));
            assert!((6..20).contains(&errors), "{errors} errors");
            assert_eq!(count(|seen| seen.protocol == UDP), 0);
        }
    }
}
