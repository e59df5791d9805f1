//! Crafted frames, by table: what is sent at one end must arrive at the other as the segments that a
//! Linux host would put on a wire, and as they arrive by way of a Linux bridge or router.
//!
//! Super-frames of tunnels are none that a packet socket can send: those of a kernel are in
//! `tests/tunnels.rs`, crafted ones in `nos-shim/src/offload/tests/tunnel.rs`.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv, send};
use nos_relay::lab::testbed::{self, LabNamespace, Topology};
use nos_shim::frame::{ETHERNET_HEADER, FramePool, MAX_FRAME, Offload, VNET_HEADER};
use nos_shim::ident::MacAddr;
use nos_shim::offload::{Capabilities, adapt};
use nos_shim::packet::Packet;

use crate::craft::{Crafted, Cwr, Encapsulation, Row, Tag, Way, craft};
use crate::plain::Plain;
use crate::support::daemon::{Daemon, LIMIT};
use crate::support::scenario::{FAMILIES, Family, Scenario, Variant, config, edited};
use crate::support::{lab_test, wire};

/// A packet socket with virtio-net headers at one end of the way.
pub(crate) struct End {
    fd: OwnedFd,
    pub(crate) mac: MacAddr,
}

impl End {
    pub(crate) fn open(namespace: &LabNamespace, interface: &str) -> Self {
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

    /// The segments of what arrives by `way`, from the IP header on, until there are `count`.
    fn segments(&self, way: Way, count: usize, pool: &mut FramePool) -> Vec<Vec<u8>> {
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
            segments.extend(cut(&crafted, way, pool));
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

/// The packets that a frame of `way` is on a wire, without Ethernet headers. That they are those of
/// the kernel is what the test `offload_kernel` shows.
fn cut(crafted: &Crafted, way: Way, pool: &mut FramePool) -> Vec<Vec<u8>> {
    let mut frame = pool.copy_from(&crafted.octets).unwrap();
    frame.set_offload(crafted.offload);
    let Ok(packet) = Packet::parse(frame) else {
        return Vec::new();
    };
    // Kernels at the ends complain about what they do not know. What has no ports is a tunnel.
    let ours = match packet.ports() {
        Some(ports) => [ports.source, ports.destination] == way.ports,
        None => matches!(packet.protocol(), 4 | 41 | 47),
    };
    if !ours || [packet.source(), packet.destination()] != way.addresses {
        return Vec::new();
    }
    let mut segments = Vec::new();
    let mut keep =
        |packet: Packet| segments.push(packet.frame().bytes()[ETHERNET_HEADER..].to_vec());
    let _ = adapt(packet, Capabilities::empty(), pool, &mut keep);
    segments
}

/// From where to where frames are sent, and the MAC address that they are sent to.
#[derive(Clone, Copy)]
pub(crate) struct Path<'a> {
    pub(crate) from: &'a End,
    pub(crate) to: &'a End,
    pub(crate) next_hop: MacAddr,
}

impl Path<'_> {
    /// Sends a frame; returns the `count` segments that arrive.
    fn carry(self, row: Row, way: Way, seed: u64, arrive: (Way, usize)) -> Vec<Vec<u8>> {
        let mut pool = FramePool::new(256, MAX_FRAME);
        let macs = [self.from.mac, self.next_hop];
        self.from.send(&craft(row, way, macs, seed));
        self.to.segments(arrive.0, arrive.1, &mut pool)
    }
}

/// Sends every row through the relay and beside it, and compares what arrives with what was sent;
/// `hops` is what the TTL loses on the way.
fn cross(rows: &[Row], relay: Path<'_>, plain: Path<'_>, way: Way, hops: u8) {
    let mut pool = FramePool::new(256, MAX_FRAME);
    for (seed, &row) in (0..).zip(rows) {
        let arriving = Way {
            ttl: way.ttl - hops,
            ..way
        };
        let untagged = Row {
            tag: Tag::None,
            ..row
        };
        let wanted = craft(untagged, arriving, [relay.from.mac, relay.next_hop], seed);
        let wanted = cut(&wanted, way, &mut pool);
        assert!(!wanted.is_empty());
        for (path, name) in [(plain, "Linux"), (relay, "the relay")] {
            let arrived = path.carry(row, way, seed, (way, wanted.len()));
            assert!(
                arrived == wanted,
                "{row:?} from {} by {name}",
                way.addresses[0]
            );
        }
    }
}

fn way(addresses: [IpAddr; 2], ports: [u16; 2]) -> Way {
    Way {
        addresses,
        ports,
        ttl: 64,
    }
}

fn scenario(variant: Variant) {
    if !variant.is_possible() {
        return;
    }
    // Containers have TCP and UDP alone.
    let rows = Row::all(&[Encapsulation::None, Encapsulation::Vxlan]);
    let scenario = Scenario::new(variant);
    let plain = Plain::bridge();
    let web = End::open(scenario.web(), "eth0");
    let external = End::open(scenario.external(), "xh");
    let inward = Path {
        from: &external,
        to: &web,
        next_hop: scenario.daemon.uplink("up0").link.mac,
    };
    let outward = Path {
        from: &web,
        to: &external,
        next_hop: scenario.daemon.attachment("web").link.mac,
    };
    let [there, back] = plain.paths();
    // For a TAP without offload the kernel of the container cuts, and here does not know such.
    let cut_before = variant.device == "tap" && !variant.offload[0];
    let mut from_web = rows.clone();
    from_web.retain(|row| !cut_before || row.cwr != Cwr::All);
    for Family {
        nos, external: far, ..
    } in FAMILIES
    {
        know_each_other(&scenario, nos, far);
        let to_web = way([far, nos], [7_000, 20_099]);
        cross(&rows, inward, there, to_web, 0);
        // Other ports, as the kernels answer what nobody listens for.
        let to_far = way([nos, far], [20_097, 7_002]);
        cross(&from_web, outward, back, to_far, 0);
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

/// From one uplink to another.
fn transit(variant: Variant) {
    let rows = Row::all(&[
        Encapsulation::None,
        Encapsulation::Vxlan,
        Encapsulation::Gre,
        Encapsulation::Ipip,
    ]);
    let topology = Topology::new(&["web", "db"]).unwrap();
    let far = LabNamespace::new("Y").unwrap();
    let (device, near) = (&topology.device, &topology.external);
    let ipv6 = "net/ipv6/conf/default/disable_ipv6";
    device.sysctl(ipv6, "1").unwrap();
    testbed::veth((device, "hy"), (&far, "yh")).unwrap();
    device.sysctl(ipv6, "0").unwrap();
    for network in ["198.51.100.2/24", "2001:db8:2::2/64"] {
        far.add_address("yh", network.parse().unwrap()).unwrap();
    }
    let more = format!(
        r#"
        [[uplink]]
        name = "up1"
        device = "packet:hy"
        addresses = ["198.51.100.1/24", "2001:db8:2::1/64"]
        offload = {}
        "#,
        variant.offload[1]
    );
    let mut text = config(&topology, variant);
    for name in ["web", "db"] {
        let from = format!("name = \"{name}\"\n");
        let to = format!("{from}addresses = [\"203.0.113.1\", \"2001:db8:1::1\"]\n");
        text = edited(&text, &from, &to);
    }
    let daemon = Daemon::start(device, &(text + &more));
    let plain = Plain::router();
    let [there, back] = plain.paths();
    let [x, y] = [End::open(near, "xh"), End::open(&far, "yh")];
    let onward = Path {
        from: &x,
        to: &y,
        next_hop: daemon.uplink("up0").link.mac,
    };
    let return_way = Path {
        from: &y,
        to: &x,
        next_hop: daemon.uplink("up1").link.mac,
    };
    for family in FAMILIES {
        let of_y = if family.is_v6() {
            "2001:db8:2::2"
        } else {
            "198.51.100.2"
        };
        let ends = [family.external, of_y.parse().unwrap()];
        let [from_x, from_y] = [ends, [ends[1], ends[0]]].map(|ends| way(ends, [7_000, 7_002]));
        cross(&rows, onward, there, from_x, 1);
        cross(&rows, return_way, back, from_y, 1);
    }
    daemon.settle();
}

macro_rules! paths {
    ($($test:ident: $scenario:ident, $device:literal, $threads:literal, $offload:expr;)+) => {
        $(lab_test! {
            fn $test() {
                $scenario(Variant {
                    device: $device,
                    threads: $threads,
                    offload: $offload,
                });
            }
        })+
    };
}

/// In every variant.
mod each_kind_arrives_as_by_linux {
    use super::*;

    paths! {
        tap: scenario, "tap", "single", [true, true];
        plain_tap: scenario, "tap", "split", [false, false];
        veth: scenario, "veth", "split", [true, true];
        plain_veth: scenario, "veth", "single", [false, false];
        between_uplinks: transit, "veth", "split", [true, true];
        between_plain_uplinks: transit, "veth", "single", [true, false];
    }
}
