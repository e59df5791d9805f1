//! Crafted frames, by table: what is sent at one end must arrive at the other as the segments that a
//! Linux host would put on a wire.

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv, send};
use nos_relay::lab::testbed::LabNamespace;
use nos_shim::checksum::Sum;
use nos_shim::frame::{
    Checksum, ETHERNET_HEADER, Ecn, FramePool, GsoKind, MAX_FRAME, Offload, Segmentation,
    VNET_HEADER,
};
use nos_shim::ident::MacAddr;
use nos_shim::offload::{Capabilities, adapt};
use nos_shim::packet::Packet;

use crate::support::daemon::LIMIT;
use crate::support::scenario::{FAMILIES, Family, Scenario, Variant};
use crate::support::{lab_test, wire};

/// How the checksum of a frame stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sums {
    /// Left to the device.
    Partial,
    /// In the frame, and right.
    Complete,
    /// In the frame, and wrong: not ours to judge on the way.
    Bad,
}

/// What an outer header is put around.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encapsulation {
    None,
    Vxlan,
    Gre,
    Ipip,
}

/// The tag in front of the EtherType.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tag {
    None,
    /// VLAN 0: a priority alone (IEEE 802.1Q).
    Priority,
}

/// A kind of frame.
#[derive(Clone, Copy, Debug)]
struct Row {
    tcp: bool,
    /// Segments of 1,000 octets, or one packet.
    segmented: bool,
    sums: Sums,
    /// IPv4 options, or an IPv6 destination options header.
    options: bool,
    encapsulation: Encapsulation,
    tag: Tag,
}

impl Row {
    /// Every row of the table.
    fn all() -> Vec<Self> {
        let mut rows = Vec::new();
        for tag in [Tag::None, Tag::Priority] {
            for encapsulation in [
                Encapsulation::None,
                Encapsulation::Vxlan,
                Encapsulation::Gre,
                Encapsulation::Ipip,
            ] {
                for sums in [Sums::Partial, Sums::Complete, Sums::Bad] {
                    for bits in 0..8_u8 {
                        rows.push(Self {
                            tcp: bits & 1 != 0,
                            segmented: bits & 2 != 0,
                            sums,
                            options: bits & 4 != 0,
                            encapsulation,
                            tag,
                        });
                    }
                }
            }
        }
        rows
    }

    /// Whether the row is tried. Tunnels and priority tags are not carried yet.
    fn is_done(self) -> bool {
        let pending = self.encapsulation != Encapsulation::None || self.tag != Tag::None;
        // A packet socket's super-frame with a complete checksum is cut before it leaves the host,
        // and its checksum made right.
        let impossible = self.segmented && self.sums != Sums::Partial;
        !pending && !impossible
    }
}

const SEGMENT: u16 = 1_000;

/// One crafted frame and what the device that sends it is told.
struct Crafted {
    octets: Vec<u8>,
    offload: Offload,
}

/// Where a frame goes: MAC addresses, IP addresses and ports, source first.
#[derive(Clone, Copy)]
struct Way {
    macs: [MacAddr; 2],
    addresses: [IpAddr; 2],
    ports: [u16; 2],
}

fn craft(row: Row, way: Way, seed: u64) -> Crafted {
    let mut payload = vec![0; if row.segmented { 9_321 } else { 777 }];
    fastrand::Rng::with_seed(seed).fill(&mut payload);
    let mut transport: Vec<u8> = way
        .ports
        .iter()
        .flat_map(|port| port.to_be_bytes())
        .collect();
    let (protocol, at) = if row.tcp {
        transport.extend([1, 2, 3, 4, 5, 6, 7, 8, 0x50, 0x18, 0x7f, 0xff, 0, 0, 0, 0]);
        (6, 16)
    } else {
        let octets = u16::try_from(payload.len() + 8).unwrap();
        transport.extend(octets.to_be_bytes());
        transport.extend([0, 0]);
        (17, 6)
    };
    transport.extend(payload);
    let pseudo = pseudo_sum(way, protocol, &transport);
    let field = match row.sums {
        Sums::Partial => pseudo.folded(),
        Sums::Complete => pseudo.plus(&transport).checksum(),
        Sums::Bad => pseudo.plus(&transport).checksum() ^ 0x5500,
    };
    transport[at..at + 2].copy_from_slice(&field.to_be_bytes());
    let mut octets = [way.macs[1].0, way.macs[0].0].concat();
    octets.extend(ip_headers(row, way, protocol, transport.len()));
    let checksum = match row.sums {
        Sums::Partial => Checksum::Partial {
            start: u16::try_from(octets.len()).unwrap(),
            offset: u16::try_from(at).unwrap(),
        },
        Sums::Complete | Sums::Bad => Checksum::Complete,
    };
    let kind = match (row.tcp, way.addresses[0].is_ipv6()) {
        (false, _) => GsoKind::Udp,
        (true, false) => GsoKind::TcpV4,
        (true, true) => GsoKind::TcpV6,
    };
    let segmentation = row.segmented.then(|| Segmentation {
        kind,
        ecn: Ecn::Unmarked,
        size: NonZeroU16::new(SEGMENT).unwrap(),
        tunnel: None,
    });
    octets.extend(transport);
    Crafted {
        octets,
        offload: Offload {
            checksum,
            segmentation,
        },
    }
}

fn pseudo_sum(way: Way, protocol: u8, transport: &[u8]) -> Sum {
    match way.addresses {
        [IpAddr::V4(source), IpAddr::V4(destination)] => {
            let len = u16::try_from(transport.len()).unwrap();
            Sum::ZERO.pseudo_v4(source, destination, protocol, len)
        }
        [IpAddr::V6(source), IpAddr::V6(destination)] => {
            let len = u32::try_from(transport.len()).unwrap();
            Sum::ZERO.pseudo_v6(source, destination, protocol, len)
        }
        mixed => panic!("{mixed:?} are of two families"),
    }
}

/// The EtherType, and all headers in front of `len` octets.
fn ip_headers(row: Row, way: Way, protocol: u8, len: usize) -> Vec<u8> {
    let len = u16::try_from(len).unwrap();
    match way.addresses {
        [IpAddr::V4(source), IpAddr::V4(destination)] => {
            // Three times no operation, and the end (RFC 791 §3.1).
            let options: &[u8] = if row.options { &[1, 1, 1, 0] } else { &[] };
            let header = 20 + u16::try_from(options.len()).unwrap();
            let mut octets = vec![8, 0, 0x40 | u8::try_from(header / 4).unwrap(), 0];
            octets.extend((header + len).to_be_bytes());
            octets.extend([0x12, 0x34, 0x40, 0, 64, protocol, 0, 0]);
            octets.extend(source.octets());
            octets.extend(destination.octets());
            octets.extend(options);
            let sum = Sum::ZERO.plus(&octets[2..]).checksum();
            octets[12..14].copy_from_slice(&sum.to_be_bytes());
            octets
        }
        [IpAddr::V6(source), IpAddr::V6(destination)] => {
            // Padding of four octets (RFC 8200 §4.2).
            let extension: &[u8] = if row.options {
                &[protocol, 0, 1, 4, 0, 0, 0, 0]
            } else {
                &[]
            };
            let next = if row.options { 60 } else { protocol };
            let mut octets = vec![0x86, 0xdd, 0x60, 0, 0, 0];
            octets.extend((u16::try_from(extension.len()).unwrap() + len).to_be_bytes());
            octets.extend([next, 64]);
            octets.extend(source.octets());
            octets.extend(destination.octets());
            octets.extend(extension);
            octets
        }
        mixed => panic!("{mixed:?} are of two families"),
    }
}

/// A packet socket with virtio-net headers at one end of the way.
struct End {
    fd: OwnedFd,
    mac: MacAddr,
}

impl End {
    fn open(namespace: &LabNamespace, interface: &str) -> Self {
        let link = namespace.link(interface).unwrap().unwrap();
        Self {
            fd: wire::observe(namespace, interface),
            mac: link.mac.unwrap(),
        }
    }

    fn send(&self, crafted: &Crafted) {
        let headers = crafted.octets.len().min(128);
        let header = crafted.offload.to_virtio(u16::try_from(headers).unwrap());
        let octets = [&header[..], &crafted.octets].concat();
        let sent = send(self.fd.as_raw_fd(), &octets, MsgFlags::empty()).unwrap();
        assert_eq!(sent, octets.len());
    }

    /// The segments of what arrives for `port`, from the IP header on, until there are `count`.
    fn segments(&self, port: u16, count: usize, pool: &mut FramePool) -> Vec<Vec<u8>> {
        let deadline = Instant::now() + LIMIT;
        let mut segments = Vec::new();
        let mut buffer = vec![0; VNET_HEADER + MAX_FRAME];
        while segments.len() < count {
            self.wait(deadline);
            let Ok(octets) = recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) else {
                continue;
            };
            let offload = Offload::from_virtio(buffer.first_chunk().unwrap()).unwrap();
            let crafted = Crafted {
                octets: buffer[VNET_HEADER..octets].to_vec(),
                offload,
            };
            segments.extend(cut(&crafted, port, pool));
        }
        segments
    }

    fn wait(&self, deadline: Instant) {
        let left = deadline.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "not all segments arrived");
        let mut fds = [PollFd::new(
            std::os::fd::AsFd::as_fd(&self.fd),
            PollFlags::POLLIN,
        )];
        let left = PollTimeout::try_from(left.max(Duration::from_millis(1)));
        poll(&mut fds, left.unwrap()).unwrap();
    }
}

/// The packets that a frame for `port` is on a wire, without Ethernet headers. That they are those of
/// the kernel is what the test `offload_kernel` shows.
fn cut(crafted: &Crafted, port: u16, pool: &mut FramePool) -> Vec<Vec<u8>> {
    let mut frame = pool.copy_from(&crafted.octets).unwrap();
    frame.set_offload(crafted.offload);
    let Ok(packet) = Packet::parse(frame) else {
        return Vec::new();
    };
    if packet.ports().map(|ports| ports.destination) != Some(port) {
        return Vec::new();
    }
    let mut segments = Vec::new();
    let mut keep =
        |packet: Packet| segments.push(packet.frame().bytes()[ETHERNET_HEADER..].to_vec());
    let _ = adapt(packet, Capabilities::empty(), pool, &mut keep);
    segments
}

/// Sends every row from one end and compares what arrives at the other.
fn cross(ends: [&End; 2], macs: [MacAddr; 2], addresses: [IpAddr; 2], ports: [u16; 2]) {
    let mut pool = FramePool::new(256, MAX_FRAME);
    let way = Way {
        macs,
        addresses,
        ports,
    };
    for (seed, row) in (0..).zip(Row::all()) {
        if !row.is_done() {
            continue;
        }
        let crafted = craft(row, way, seed);
        let wanted = cut(&crafted, ports[1], &mut pool);
        assert!(!wanted.is_empty());
        ends[0].send(&crafted);
        let arrived = ends[1].segments(ports[1], wanted.len(), &mut pool);
        assert!(arrived == wanted, "{row:?} from {}", addresses[0]);
    }
}

fn scenario(variant: Variant) {
    if !variant.is_possible() {
        return;
    }
    let scenario = Scenario::new(variant);
    let web = End::open(scenario.web(), "eth0");
    let external = End::open(scenario.external(), "xh");
    let [to_web, to_external] = [
        scenario.daemon.attachment("web").link.mac,
        scenario.daemon.uplink("up0").link.mac,
    ];
    for Family {
        nos, external: far, ..
    } in FAMILIES
    {
        know_each_other(&scenario, nos, far);
        let inward = [external.mac, to_external];
        cross([&external, &web], inward, [far, nos], [7_000, 20_099]);
        // Other ports, as the kernels answer what nobody listens for.
        let outward = [web.mac, to_web];
        cross([&web, &external], outward, [nos, far], [20_097, 7_002]);
    }
    scenario.daemon.settle();
}

/// Has the daemon resolve the external host.
fn know_each_other(scenario: &Scenario, nos: IpAddr, far: IpAddr) {
    let receiver = scenario
        .external()
        .run(|| std::net::UdpSocket::bind((far, 7_001)).unwrap());
    let sender = scenario
        .web()
        .run(|| std::net::UdpSocket::bind((nos, 20_098)).unwrap());
    let receiver = receiver.unwrap();
    receiver.set_read_timeout(Some(LIMIT)).unwrap();
    sender.unwrap().send_to(b"first", (far, 7_001)).unwrap();
    assert_eq!(receiver.recv(&mut [0; 10]).unwrap(), 5);
}

macro_rules! paths {
    ($($test:ident: $device:literal, $threads:literal, $offload:expr;)+) => {
        $(lab_test! {
            fn $test() {
                scenario(Variant {
                    device: $device,
                    threads: $threads,
                    offload: $offload,
                });
            }
        })+
    };
}

paths! {
    tap: "tap", "single", [true, true];
    plain_tap: "tap", "split", [false, false];
    veth: "veth", "split", [true, true];
    plain_veth: "veth", "single", [false, false];
}
