//! Raw frames: sending crafted ones, and seeing what is on a link.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends where its network cannot be built"
)]

use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use etherparse::{IpNumber, PacketBuilder, PacketBuilderStep};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrLike, bind, recv,
    send, socket,
};
use nos_relay::lab::testbed::LabNamespace;
use nos_shim::arp::Arp;
use nos_shim::ident::MacAddr;

/// A packet socket on an interface. It sees what arrives there, from the time it was opened on.
#[derive(Debug)]
pub(crate) struct Wire {
    fd: OwnedFd,
    mac: MacAddr,
}

impl Wire {
    pub(crate) fn open(namespace: &LabNamespace, interface: &str) -> Self {
        let link = namespace.link(interface).unwrap().unwrap();
        let fd = namespace.run(|| open(link.index)).unwrap();
        Self {
            fd,
            mac: link.mac.unwrap(),
        }
    }

    /// One that sees what leaves by the interface as well, but for what it sends itself.
    pub(crate) fn open_both_ways(namespace: &LabNamespace, interface: &str) -> Self {
        let link = namespace.link(interface).unwrap().unwrap();
        let fd = namespace.run(|| open_for(link.index, true)).unwrap();
        Self {
            fd,
            mac: link.mac.unwrap(),
        }
    }

    /// The interface's own MAC address.
    pub(crate) fn mac(&self) -> MacAddr {
        self.mac
    }

    pub(crate) fn send(&self, frame: &[u8]) {
        let sent = send(self.fd.as_raw_fd(), frame, MsgFlags::empty()).unwrap();
        assert_eq!(sent, frame.len());
    }

    /// Frames until `wanted` finds what it looks for; panics when `limit` has passed.
    pub(crate) fn await_frame<T>(
        &self,
        limit: Duration,
        mut wanted: impl FnMut(&Seen) -> Option<T>,
    ) -> T {
        self.await_octets(limit, |frame| {
            Seen::parse(frame).and_then(|seen| wanted(&seen))
        })
    }

    /// Frames of any kind until `wanted` finds what it looks for; panics when `limit` has passed.
    pub(crate) fn await_octets<T>(
        &self,
        limit: Duration,
        mut wanted: impl FnMut(&[u8]) -> Option<T>,
    ) -> T {
        let deadline = Instant::now() + limit;
        loop {
            let frame = self.receive(deadline);
            let frame = frame.unwrap_or_else(|| panic!("the frame did not come in time"));
            if let Some(found) = wanted(&frame) {
                return found;
            }
        }
    }

    /// Forgets all frames that arrived so far.
    pub(crate) fn drain(&self) {
        while self.receive(Instant::now()).is_some() {}
    }

    /// All frames so far.
    pub(crate) fn frames(&self) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.receive(Instant::now())).collect()
    }

    /// All IP packets that arrived so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        let frames = std::iter::from_fn(|| self.receive(Instant::now()));
        frames.filter_map(|frame| Seen::parse(&frame)).collect()
    }

    /// All ARP messages that arrived so far.
    pub(crate) fn arp_seen(&self) -> Vec<Arp> {
        let frames = std::iter::from_fn(|| self.receive(Instant::now()));
        frames.filter_map(|frame| Arp::parse(&frame).ok()).collect()
    }

    /// IP packets up to and without that which `last` knows; panics when `limit` has passed.
    pub(crate) fn seen_until(
        &self,
        limit: Duration,
        mut last: impl FnMut(&Seen) -> bool,
    ) -> Vec<Seen> {
        let mut before = Vec::new();
        self.await_frame(limit, |seen| {
            if last(seen) {
                return Some(());
            }
            before.push(seen.clone());
            None
        });
        before
    }

    /// The next ARP frame; panics when `limit` has passed.
    pub(crate) fn first_arp(&self, limit: Duration) -> Vec<u8> {
        let deadline = Instant::now() + limit;
        loop {
            let frame = self.receive(deadline);
            let frame = frame.unwrap_or_else(|| panic!("no ARP frame in time"));
            if frame.get(12..14) == Some(&[0x08, 0x06]) {
                return frame;
            }
        }
    }

    fn receive(&self, deadline: Instant) -> Option<Vec<u8>> {
        let mut buffer = vec![0; 80_000];
        loop {
            match recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) => {
                    buffer.truncate(length);
                    return Some(buffer);
                }
                Err(Errno::EAGAIN) => {}
                // The interface went down and up again.
                Err(Errno::ENETDOWN) => continue,
                Err(error) => panic!("packet socket: {error}"),
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            let mut fds = [PollFd::new(
                std::os::fd::AsFd::as_fd(&self.fd),
                PollFlags::POLLIN,
            )];
            let left = PollTimeout::try_from(left.max(Duration::from_millis(1)));
            poll(&mut fds, left.unwrap()).unwrap();
        }
    }
}

/// A packet socket on an interface whose frames come with a virtio-net header, and which takes such.
pub(crate) fn observe(namespace: &LabNamespace, interface: &str) -> OwnedFd {
    let link = namespace.link(interface).unwrap().unwrap();
    let fd = namespace.run(|| open(link.index)).unwrap();
    // linux/if_packet.h
    const PACKET_VNET_HDR: libc::c_int = 15;
    packet_option(&fd, PACKET_VNET_HDR);
    let octets = 64 << 20;
    nix::sys::socket::setsockopt(&fd, nix::sys::socket::sockopt::RcvBuf, &octets).unwrap();
    fd
}

fn open(index: u32) -> OwnedFd {
    open_for(index, false)
}

fn open_for(index: u32, outgoing: bool) -> OwnedFd {
    let all = SockProtocol::EthAll;
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = socket(AddressFamily::Packet, SockType::Raw, flags, all).unwrap();
    if !outgoing {
        ignore_outgoing(&fd);
    }
    bind(fd.as_raw_fd(), &link_address(index)).unwrap();
    fd
}

/// Linux 4.20; libc has no name for it on all targets.
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;

fn ignore_outgoing(fd: &OwnedFd) {
    packet_option(fd, PACKET_IGNORE_OUTGOING);
}

/// Turns an option of a packet socket on.
fn packet_option(fd: &OwnedFd, option: libc::c_int) {
    let one: libc::c_int = 1;
    let size = libc::socklen_t::try_from(size_of_val(&one)).unwrap();
    // SAFETY: the pointer and the size are those of `one`, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_PACKET,
            option,
            (&raw const one).cast(),
            size,
        )
    };
    Errno::result(result).unwrap();
}

fn link_address(index: u32) -> LinkAddr {
    let address = libc::sockaddr_ll {
        sll_family: u16::try_from(libc::AF_PACKET).unwrap(),
        sll_protocol: u16::try_from(libc::ETH_P_ALL).unwrap().to_be(),
        sll_ifindex: i32::try_from(index).unwrap(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: the pointer is to a whole sockaddr_ll of family AF_PACKET, copied before it ends.
    let copied = unsafe { LinkAddr::from_raw((&raw const address).cast(), Some(20)) };
    copied.unwrap()
}

/// An IP packet that was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) source_mac: MacAddr,
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// TTL or hop limit.
    pub(crate) ttl: u8,
    /// Protocol, or IPv6 next header.
    pub(crate) protocol: u8,
    /// The packet, from its IP header on.
    pub(crate) ip: Vec<u8>,
    header: usize,
}

pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMPV6: u8 = 58;

impl Seen {
    /// `None` if the frame is not IP.
    pub(crate) fn parse(frame: &[u8]) -> Option<Self> {
        let (ethernet, ip) = frame.split_at_checked(14)?;
        let source_mac = MacAddr(ethernet[6..12].try_into().ok()?);
        match u16::from_be_bytes([ethernet[12], ethernet[13]]) {
            0x0800 => {
                let length = u16::from_be_bytes([*ip.get(2)?, *ip.get(3)?]);
                Some(Self {
                    source_mac,
                    source: IpAddr::from(<[u8; 4]>::try_from(ip.get(12..16)?).ok()?),
                    destination: IpAddr::from(<[u8; 4]>::try_from(ip.get(16..20)?).ok()?),
                    ttl: ip[8],
                    protocol: ip[9],
                    ip: ip.get(..usize::from(length))?.to_vec(),
                    header: usize::from(ip[0] & 0xf) * 4,
                })
            }
            0x86dd => {
                let length = usize::from(u16::from_be_bytes([*ip.get(4)?, *ip.get(5)?])) + 40;
                Some(Self {
                    source_mac,
                    source: IpAddr::from(<[u8; 16]>::try_from(ip.get(8..24)?).ok()?),
                    destination: IpAddr::from(<[u8; 16]>::try_from(ip.get(24..40)?).ok()?),
                    ttl: ip[7],
                    protocol: ip[6],
                    ip: ip.get(..length)?.to_vec(),
                    header: 40,
                })
            }
            _ => None,
        }
    }

    /// The packet without IPv4 options, but with the total length and the checksum that it had.
    pub(crate) fn without_options(&self) -> Self {
        let mut without = self.clone();
        if self.source.is_ipv4() {
            without.ip.drain(20..self.header);
            without.ip[0] = 0x45;
            without.header = 20;
        }
        without
    }

    /// From the transport header on.
    pub(crate) fn transport(&self) -> &[u8] {
        &self.ip[self.header..]
    }

    /// Source and destination port of TCP or UDP.
    pub(crate) fn ports(&self) -> Option<(u16, u16)> {
        match (self.protocol, self.transport()) {
            (TCP | UDP, [a, b, c, d, ..]) => {
                Some((u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d])))
            }
            _ => None,
        }
    }

    /// Type and code of ICMP or ICMPv6.
    pub(crate) fn icmp(&self) -> Option<(u8, u8)> {
        match (self.protocol, self.transport()) {
            (ICMP | ICMPV6, [kind, code, ..]) => Some((*kind, *code)),
            _ => None,
        }
    }

    /// Whether it is Neighbor Discovery, or about membership in groups (IGMP, MLD), which hosts send
    /// unasked.
    pub(crate) fn is_chatter(&self) -> bool {
        matches!(self.protocol, 0 | 2)
            || (self.protocol == ICMPV6 && matches!(self.transport(), [130..=143, ..]))
    }
}

/// The start of a crafted packet: everything to the IP header, with TTL 64.
pub(crate) fn ip(
    macs: (MacAddr, MacAddr),
    source: IpAddr,
    destination: IpAddr,
) -> PacketBuilderStep<etherparse::IpHeaders> {
    with_ttl(macs, source, destination, 64)
}

pub(crate) fn with_ttl(
    (from, to): (MacAddr, MacAddr),
    source: IpAddr,
    destination: IpAddr,
    ttl: u8,
) -> PacketBuilderStep<etherparse::IpHeaders> {
    let ethernet = PacketBuilder::ethernet2(from.0, to.0);
    let headers = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let (source, destination) = (source.octets(), destination.octets());
            let header = etherparse::Ipv4Header::new(0, ttl, IpNumber::UDP, source, destination);
            etherparse::IpHeaders::Ipv4(header.unwrap(), Default::default())
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let header = etherparse::Ipv6Header {
                source: source.octets(),
                destination: destination.octets(),
                hop_limit: ttl,
                ..Default::default()
            };
            etherparse::IpHeaders::Ipv6(header, Default::default())
        }
        mixed => panic!("{mixed:?} are of two families"),
    };
    ethernet.ip(headers)
}

/// A whole UDP datagram.
pub(crate) fn udp(
    step: PacketBuilderStep<etherparse::IpHeaders>,
    (source, destination): (u16, u16),
    payload: &[u8],
) -> Vec<u8> {
    let mut frame = Vec::new();
    let step = step.udp(source, destination);
    step.write(&mut frame, payload).unwrap();
    frame
}

/// A TCP SYN without options.
pub(crate) fn syn(
    step: PacketBuilderStep<etherparse::IpHeaders>,
    (source, destination): (u16, u16),
) -> Vec<u8> {
    let mut frame = Vec::new();
    let step = step.tcp(source, destination, 0x0102_0304, 1000).syn();
    step.write(&mut frame, b"").unwrap();
    frame
}

/// A packet of any protocol.
pub(crate) fn other(
    step: PacketBuilderStep<etherparse::IpHeaders>,
    protocol: u8,
    payload: &[u8],
) -> Vec<u8> {
    let mut frame = Vec::new();
    step.write(&mut frame, IpNumber(protocol), payload).unwrap();
    frame
}

/// Puts the right checksum into an IPv4 header that was changed.
pub(crate) fn fix_ipv4_checksum(frame: &mut [u8]) {
    let length = usize::from(frame[14] & 0xf) * 4;
    frame[24..26].fill(0);
    let sum = sum(&frame[14..14 + length]);
    frame[24..26].copy_from_slice(&(!sum).to_be_bytes());
}

/// A TCP segment in a frame as it is on a wire: a kernel that leaves checksums to the device has not
/// made the one that a packet socket sees.
pub(crate) fn with_tcp_checksum(frame: &[u8]) -> Vec<u8> {
    let seen = Seen::parse(frame).unwrap();
    let length = u16::try_from(seen.transport().len()).unwrap();
    let mut covered = match (seen.source, seen.destination) {
        (IpAddr::V4(from), IpAddr::V4(to)) => [from.octets(), to.octets()].concat(),
        (IpAddr::V6(from), IpAddr::V6(to)) => [from.octets(), to.octets()].concat(),
        other => panic!("{other:?}"),
    };
    covered.extend([0, TCP]);
    covered.extend(length.to_be_bytes());
    let mut segment = seen.transport().to_vec();
    segment[16..18].fill(0);
    covered.extend(&segment);
    let checksum = !sum(&covered);
    segment[16..18].copy_from_slice(&checksum.to_be_bytes());
    let headers = 14 + seen.ip.len() - segment.len();
    [&frame[..headers], &segment].concat()
}

/// RFC 1071, not complemented.
pub(crate) fn sum(octets: &[u8]) -> u16 {
    let words = octets.chunks(2).map(|pair| {
        let low = pair.get(1).copied().unwrap_or_default();
        u32::from(u16::from_be_bytes([pair[0], low]))
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap()
}
