//! Transfers between real kernels whose interfaces are set up so that they make the super-frames in
//! question.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;

use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt};
use nos_relay::lab::testbed::{LabNamespace, Topology};
use nos_shim::frame::{Checksum, Ecn, FramePool, GsoKind, MAX_FRAME, Offload, VNET_HEADER};
use nos_shim::packet::Packet;

use crate::support::daemon::{Daemon, LIMIT};
use crate::support::scenario::{FAMILIES, Scenario, Variant, config};
use crate::support::{lab_test, skip, wire};

/// How super-frames come to the uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Made {
    /// By the sender, longer than an IP packet.
    BigTcp,
    /// By GRO on the uplink, longer than an IP packet.
    LongGro,
    /// By GRO on the uplink, into a list of segments; the sender left the checksums to its device,
    /// or computed them.
    List { partial: bool },
    /// By a sender that answers to congestion marks, which each end finds on some of what it receives:
    /// with the sysctl `tcp_ecn` at this value. 1 is ECN, 3 is AccECN where the kernel has it.
    Ecn(&'static str),
}

impl Made {
    fn prepare(self, topology: &Topology) {
        let (sender, uplink) = (&topology.external, &topology.device);
        match self {
            Self::BigTcp => {
                let octets = 150_000;
                sender.set_super_frame_size("xh", octets).unwrap();
            }
            Self::LongGro => {
                // So that one call makes enough segments for a long one.
                sender.set_super_frame_size("xh", 150_000).unwrap();
                uplink.set_super_frame_size("hx", 150_000).unwrap();
                cut_before_sending(sender);
                uplink.set_feature("hx", "rx-gro", true).unwrap();
            }
            Self::List { partial } => {
                cut_before_sending(sender);
                if !partial {
                    sender
                        .set_feature("xh", "tx-checksum-ip-generic", false)
                        .unwrap();
                }
                uplink.set_feature("hx", "rx-gro", true).unwrap();
                uplink.set_feature("hx", "rx-gro-list", true).unwrap();
            }
            Self::Ecn(value) => {
                for (end, interface) in [(sender, "xh"), (&topology.containers[0], "eth0")] {
                    end.sysctl("net/ipv4/tcp_ecn", value).unwrap();
                    mark_congestion(end, interface);
                }
            }
        }
    }

    /// Whether the kernel and the tools here can; if not, says so.
    fn is_possible(self) -> bool {
        let Self::Ecn(value) = self else { return true };
        let lab = LabNamespace::new("ecn").unwrap();
        if let Err(error) = lab.sysctl("net/ipv4/tcp_ecn", value) {
            skip(&format!("{self:?}: {error}"));
            return false;
        }
        let nft = Command::new("nft").arg("--version").output();
        if let Err(error) = &nft {
            skip(&format!("{self:?}: nft: {error}"));
        }
        nft.is_ok()
    }

    /// Whether a super-frame is of this kind.
    fn is_seen(self, octets: usize, offload: Offload) -> bool {
        match self {
            Self::BigTcp | Self::LongGro => octets > 66_000,
            // What stands in the header, which has no word for AccECN on some kernels.
            Self::Ecn("1") => offload
                .segmentation
                .is_some_and(|it| it.ecn == Ecn::Classic),
            Self::Ecn(_) => offload
                .segmentation
                .is_some_and(|it| it.ecn != Ecn::Classic),
            Self::List { partial: false } => offload.checksum == Checksum::Verified,
            Self::List { partial: true } => matches!(offload.checksum, Checksum::Partial { .. }),
        }
    }
}

/// Has X's kernel cut what it sends.
fn cut_before_sending(sender: &LabNamespace) {
    for feature in [
        "tx-udp-segmentation",
        "tx-tcp-segmentation",
        "tx-tcp6-segmentation",
    ] {
        sender.set_feature("xh", feature, false).unwrap();
    }
}

/// Has every eighth frame that comes in with ECT say that there was congestion (RFC 3168 §5).
fn mark_congestion(end: &LabNamespace, interface: &str) {
    let rules = format!(
        "table netdev congestion {{
            chain marks {{
                type filter hook ingress device \"{interface}\" priority 0;
                ip ecn != not-ect numgen inc mod 8 == 0 ip ecn set ce
                ip6 ecn != not-ect numgen inc mod 8 == 0 ip6 ecn set ce
            }}
        }}"
    );
    let mut command = Command::new("nft");
    let output = end.run(|| command.arg(&rules).output().unwrap()).unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// What an observer beside the daemon finds on the uplink.
pub(crate) struct Observer(OwnedFd);

impl Observer {
    pub(crate) fn open(topology: &Topology) -> Self {
        let fd = wire::observe(&topology.device, "hx");
        Self(fd)
    }

    /// The kinds of the super-frames seen so far that are made like that.
    fn seen(&self, made: Made) -> BTreeSet<&'static str> {
        self.kinds(|frame, offload| {
            let kind = offload.segmentation?.kind;
            made.is_seen(frame.len(), offload)
                .then_some((kind, frame[12] == 0x86))
        })
    }

    /// The kinds of the super-frames seen so far that were in tunnels.
    pub(crate) fn tunnels_seen(&self) -> BTreeSet<&'static str> {
        let mut pool = FramePool::new(1, MAX_FRAME);
        self.kinds(|octets, offload| {
            let mut frame = pool.copy_from(octets).ok()?;
            frame.set_offload(offload);
            let packet = Packet::parse(frame).ok()?;
            let tunnel = packet.tunnel()?;
            let kind = offload.segmentation?.kind;
            let version = octets[usize::from(tunnel.network)] >> 4;
            Some((kind, version == 6))
        })
    }

    /// What `judge` finds in the frames seen so far: the kind of segmentation, and whether it is of IPv6.
    fn kinds(
        &self,
        mut judge: impl FnMut(&[u8], Offload) -> Option<(GsoKind, bool)>,
    ) -> BTreeSet<&'static str> {
        let mut buffer = vec![0; VNET_HEADER + 600_000];
        let mut kinds = BTreeSet::new();
        while let Ok(octets) = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            let offload = Offload::from_virtio(buffer.first_chunk().unwrap()).unwrap();
            kinds.extend(
                judge(&buffer[VNET_HEADER..octets], offload).map(|kind| match kind {
                    (GsoKind::TcpV4, _) => "TCP over IPv4",
                    (GsoKind::TcpV6, _) => "TCP over IPv6",
                    (GsoKind::Udp, true) => "UDP over IPv6",
                    (GsoKind::Udp, false) => "UDP over IPv4",
                }),
            );
        }
        kinds
    }
}

/// Octets of a transfer: several windows of a veth.
const OCTETS: usize = 24 << 20;

pub(crate) fn content(octets: usize, seed: u64) -> Vec<u8> {
    let mut content = vec![0; octets];
    fastrand::Rng::with_seed(seed).fill(&mut content);
    content
}

/// Sends `content` from one end to the other, and checks every octet.
pub(crate) fn transfer(
    from: &LabNamespace,
    to: &LabNamespace,
    address: SocketAddr,
    content: &[u8],
) {
    let listener = to.run(|| TcpListener::bind(address).unwrap()).unwrap();
    let near = from.run(|| TcpStream::connect_timeout(&address, LIMIT).unwrap());
    let mut near = near.unwrap();
    let (mut far, _) = listener.accept().unwrap();
    far.set_read_timeout(Some(LIMIT)).unwrap();
    near.set_write_timeout(Some(LIMIT)).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || near.write_all(content).unwrap());
        let mut received = Vec::with_capacity(content.len());
        far.read_to_end(&mut received).unwrap();
        assert!(received == content, "octets changed on the way");
    });
}

/// Sends datagrams that one call hands to the kernel, and checks each.
fn datagrams(from: &LabNamespace, to: &LabNamespace, address: SocketAddr, content: &[u8]) {
    let receiver = to.run(|| UdpSocket::bind(address).unwrap()).unwrap();
    receiver.set_read_timeout(Some(LIMIT)).unwrap();
    let sender = sender(from, address);
    for batch in content.chunks(30 * SIZE - 5).take(20) {
        sender.send_to(batch, address).unwrap();
        for datagram in batch.chunks(SIZE) {
            let mut buffer = [0; 2 * SIZE];
            let length = receiver.recv(&mut buffer).unwrap();
            assert!(buffer[..length] == *datagram, "a datagram changed");
        }
    }
}

/// Octets of each datagram.
pub(crate) const SIZE: usize = 1_000;

/// A socket that makes datagrams of one long one, for this address.
pub(crate) fn sender(from: &LabNamespace, address: SocketAddr) -> UdpSocket {
    let any = if address.is_ipv6() {
        "[::]:0"
    } else {
        "0.0.0.0:0"
    };
    let sender = from.run(|| UdpSocket::bind(any).unwrap()).unwrap();
    let size = i32::try_from(SIZE).unwrap();
    setsockopt(&sender, sockopt::UdpGsoSegment, &size).unwrap();
    sender
}

/// Both ways and families; returns what the daemon's uplink was given.
fn check(made: Made, variant: Variant) {
    if !variant.is_possible() || !made.is_possible() {
        return;
    }
    let topology = Topology::new(&["web", "db"]).unwrap();
    if made == Made::LongGro {
        made.prepare(&topology);
    }
    let config = config(&topology, variant);
    let scenario = Scenario {
        daemon: Daemon::start(&topology.device, &config),
        topology,
        config,
    };
    let topology = &scenario.topology;
    if made != Made::LongGro {
        made.prepare(topology);
    }
    let observer = Observer::open(topology);
    let content = content(OCTETS, 5);
    let mut kinds = BTreeSet::new();
    for family in FAMILIES {
        let (web, external) = (scenario.web(), scenario.external());
        let inward = family.nos_port(20080);
        transfer(external, web, inward, &content);
        kinds.append(&mut observer.seen(made));
        transfer(
            web,
            external,
            family.external_port(8080),
            &content[..OCTETS / 4],
        );
        datagrams(external, web, inward, &content);
        kinds.append(&mut observer.seen(made));
        datagrams(web, external, family.external_port(8080), &content);
    }
    let wanted: &[&str] = match made {
        Made::BigTcp | Made::LongGro | Made::Ecn(_) => &["TCP over IPv4", "TCP over IPv6"],
        Made::List { .. } => &[
            "TCP over IPv4",
            "TCP over IPv6",
            "UDP over IPv4",
            "UDP over IPv6",
        ],
    };
    assert_eq!(
        kinds,
        wanted.iter().copied().collect(),
        "{made:?}: not tried"
    );
    let uplink = scenario.daemon.uplink("up0").link;
    assert_eq!(
        uplink.long_super_frames > 0,
        matches!(made, Made::BigTcp | Made::LongGro),
        "{uplink:?}"
    );
    for reason in ["offload-header", "transport-checksum", "ip-length"] {
        assert_eq!(uplink.drops.get(reason), None, "{uplink:?}");
        for stage in ["relay", "nos"] {
            assert_eq!(
                scenario.daemon.dropped(stage, reason),
                0,
                "{reason} in {stage}"
            );
        }
    }
    let lost = uplink.drops.get("frame-length").copied().unwrap_or(0);
    let warned = scenario
        .daemon
        .log()
        .matches("packet socket hx: frames of more")
        .count();
    match made {
        Made::BigTcp | Made::LongGro => assert_eq!((lost, warned), (0, 1), "{uplink:?}"),
        Made::List { .. } | Made::Ecn(_) => assert_eq!((lost, warned), (0, 0), "{uplink:?}"),
    }
    scenario.daemon.settle();
}

const fn variant(device: &'static str, threads: &'static str, offload: [bool; 2]) -> Variant {
    Variant {
        device,
        threads,
        offload,
    }
}

macro_rules! rows {
    ($($test:ident: $made:expr, $device:literal, $threads:literal, $offload:expr;)+) => {
        $(lab_test! {
            fn $test() {
                check($made, variant($device, $threads, $offload));
            }
        })+
    };
}

rows! {
    big_tcp_to_tap: Made::BigTcp, "tap", "single", [true, true];
    big_tcp_to_plain_tap: Made::BigTcp, "tap", "split", [false, true];
    big_tcp_to_veth: Made::BigTcp, "veth", "split", [true, true];
    long_gro_to_tap: Made::LongGro, "tap", "single", [true, true];
    long_gro_to_veth: Made::LongGro, "veth", "split", [true, true];
    lists_to_tap: Made::List { partial: false }, "tap", "single", [true, true];
    lists_to_plain_tap: Made::List { partial: false }, "tap", "split", [false, true];
    lists_to_veth: Made::List { partial: false }, "veth", "split", [true, true];
    lists_of_partial_to_tap: Made::List { partial: true }, "tap", "single", [true, true];
    lists_of_partial_to_plain_tap: Made::List { partial: true }, "tap", "split", [false, true];
    lists_of_partial_to_plain_veth: Made::List { partial: true }, "veth", "single", [false, true];
}

/// Both ends find marks of congestion, and answer.
mod streams_that_answer_to_congestion_arrive {
    use super::*;

    rows! {
        to_tap: Made::Ecn("1"), "tap", "single", [true, true];
        to_plain_tap: Made::Ecn("1"), "tap", "split", [false, false];
        to_veth: Made::Ecn("1"), "veth", "split", [true, true];
        accurate_to_tap: Made::Ecn("3"), "tap", "single", [true, true];
        accurate_to_plain_tap: Made::Ecn("3"), "tap", "split", [false, false];
        accurate_to_veth: Made::Ecn("3"), "veth", "split", [true, true];
    }
}

/// The container's own interface makes them, as somebody inside may set it up.
mod from_a_container {
    use super::*;

    lab_test! {
        fn big_tcp_from_a_veth() {
            let scenario = Scenario::new(Variant::PLAIN);
            let web = scenario.web();
            web.set_super_frame_size("eth0", 150_000).unwrap();
            let content = content(OCTETS, 6);
            for family in FAMILIES {
                transfer(web, scenario.external(), family.external_port(8080), &content);
            }
            let link = scenario.daemon.attachment("web").link;
            assert!(link.long_super_frames > 0, "{link:?}");
            assert_eq!(link.drops.get("frame-length"), None, "{link:?}");
            assert!(scenario.daemon.log().contains("frames of more than 65549 octets come in"));
            scenario.daemon.settle();
        }
    }
}
