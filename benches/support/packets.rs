//! Packets of each kind, made octet by octet as their senders would.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;

use nos_shim::arp::{ARP_FRAME, Arp};
use nos_shim::checksum::Sum;
use nos_shim::frame::{
    BATCH, Burst, Checksum, ETHERNET_HEADER, Ecn, Frame, FramePool, GsoKind, Offload, Segmentation,
};
use nos_shim::ident::MacAddr;
use nos_shim::ndp::{Envelope, NDP_FRAME, Ndp, solicited_node};
use nos_shim::packet::{
    ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPV4_HEADER, IPV6_HEADER, Packet, protocol,
};

/// The container, the relay on its link, the NOS on its uplink, and a station out there.
pub(crate) const CONTAINER: MacAddr = MacAddr([2, 0, 0, 0, 0, 0x0c]);
pub(crate) const RELAY: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xff]);
pub(crate) const NOS: MacAddr = MacAddr([2, 0, 0, 0, 0, 0x01]);
pub(crate) const STATION: MacAddr = MacAddr([2, 0, 0, 0, 0, 0x02]);

/// The shared address, the station's, and one beyond a router.
pub(crate) const OWN4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
pub(crate) const STATION4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
pub(crate) const FAR4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
pub(crate) const OWN6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
pub(crate) const STATION6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2);
pub(crate) const FAR6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 9);

/// Octets of the smallest frames here, and of the longest on a link with an MTU of 1500.
pub(crate) const SMALL: usize = 64;
pub(crate) const FULL: usize = ETHERNET_HEADER + 1500;

const ACK: u8 = 0x10;
const SYN: u8 = 0x02;

/// A frame to be.
#[derive(Clone, Debug)]
pub(crate) struct Template {
    pub(crate) octets: Vec<u8>,
    pub(crate) offload: Offload,
}

impl Template {
    fn complete(octets: Vec<u8>) -> Self {
        let offload = Offload::NONE;
        Self { octets, offload }
    }

    /// The frame.
    pub(crate) fn frame(&self, pool: &mut FramePool) -> Frame {
        let mut frame = pool.copy_from(&self.octets).unwrap();
        frame.set_offload(self.offload);
        frame
    }

    /// The frame, parsed.
    pub(crate) fn packet(&self, pool: &mut FramePool) -> Packet {
        Packet::parse(self.frame(pool)).unwrap()
    }

    /// `count` of these frames.
    pub(crate) fn burst(&self, count: usize, pool: &mut FramePool) -> Burst {
        assert!(count <= BATCH);
        (0..count).map(|_| self.frame(pool)).collect()
    }

    /// The same with the checksum at `offset` octets from the transport header, which starts at
    /// `start`, left to the device.
    fn partial(mut self, ends: &Ends, transport: u8, start: usize, offset: usize) -> Self {
        let sum = ends.pseudo(transport, self.octets.len() - start).folded();
        self.octets[start + offset..][..2].copy_from_slice(&sum.to_be_bytes());
        self.offload.checksum = Checksum::Partial {
            start: start as u16,
            offset: offset as u16,
        };
        self
    }

    /// The same as a super-frame with segments of `size` octets of payload.
    fn segmented(mut self, kind: GsoKind, size: u16) -> Self {
        self.offload.segmentation = Some(Segmentation {
            kind,
            ecn: Ecn::Unmarked,
            size: NonZeroU16::new(size).unwrap(),
            tunnel: None,
        });
        self
    }
}

/// From whom to whom packets go, and what their IP headers say besides.
#[derive(Clone, Debug)]
pub(crate) struct Ends {
    pub(crate) macs: [MacAddr; 2],
    pub(crate) addresses: [IpAddr; 2],
    pub(crate) ports: [u16; 2],
    pub(crate) ttl: u8,
    /// Flags and fragment offset of IPv4.
    pub(crate) fragment: u16,
    /// A multiple of four octets.
    pub(crate) options: Vec<u8>,
    /// Number and octets of each IPv6 extension header; the first octet is filled in.
    pub(crate) extensions: Vec<(u8, Vec<u8>)>,
}

impl Ends {
    pub(crate) fn new(
        macs: [MacAddr; 2],
        addresses: [impl Into<IpAddr>; 2],
        ports: [u16; 2],
    ) -> Self {
        Self {
            macs,
            addresses: addresses.map(Into::into),
            ports,
            ttl: 64,
            fragment: 0,
            options: Vec::new(),
            extensions: Vec::new(),
        }
    }

    /// From the container, from a port that is its, to an address beyond a router.
    pub(crate) fn outbound4() -> Self {
        Self::new([CONTAINER, RELAY], [OWN4, FAR4], [40_000, 443])
    }

    /// From the container, from a port that is its, to an address beyond a router.
    pub(crate) fn outbound6() -> Self {
        Self::new([CONTAINER, RELAY], [OWN6, FAR6], [40_000, 443])
    }

    /// From an address beyond a router to a port on which the container listens.
    pub(crate) fn inbound4() -> Self {
        Self::new([STATION, NOS], [FAR4, OWN4], [443, 20_000])
    }

    /// From an address beyond a router to a port on which the container listens.
    pub(crate) fn inbound6() -> Self {
        Self::new([STATION, NOS], [FAR6, OWN6], [443, 20_000])
    }

    /// The way back.
    pub(crate) fn reversed(&self) -> Self {
        let mut back = self.clone();
        back.macs.reverse();
        back.addresses.reverse();
        back.ports.reverse();
        back
    }

    pub(crate) fn with_ports(mut self, ports: [u16; 2]) -> Self {
        self.ports = ports;
        self
    }

    /// With a timestamp option that has room for one address.
    pub(crate) fn with_options(mut self) -> Self {
        self.options = vec![68, 8, 5, 0, 0, 0, 0, 0];
        self
    }

    /// With flags and fragment offset: 0x2000 says that more fragments follow, the offset is in
    /// units of 8 octets.
    pub(crate) fn with_fragment(mut self, field: u16) -> Self {
        if self.is_ipv6() {
            let field = (field & 0x1fff) << 3 | u16::from(field & 0x2000 != 0);
            let [high, low] = field.to_be_bytes();
            let header = vec![0, 0, high, low, 0, 0, 0, 7];
            self.extensions.push((protocol::FRAGMENT, header));
        } else {
            self.fragment = field;
        }
        self
    }

    /// With hop-by-hop and destination options, both padding.
    pub(crate) fn with_extensions(mut self) -> Self {
        for number in [protocol::HOP_BY_HOP, protocol::DESTINATION_OPTIONS] {
            self.extensions.push((number, vec![0, 0, 1, 4, 0, 0, 0, 0]));
        }
        self
    }

    pub(crate) fn is_ipv6(&self) -> bool {
        self.addresses[0].is_ipv6()
    }

    /// Octets of all headers before the transport header.
    pub(crate) fn headers(&self) -> usize {
        let extensions: usize = self.extensions.iter().map(|(_, octets)| octets.len()).sum();
        let ip = if self.is_ipv6() {
            IPV6_HEADER + extensions
        } else {
            IPV4_HEADER + self.options.len()
        };
        ETHERNET_HEADER + ip
    }

    /// Octets of payload in a segment: what TCP agrees on where the MTU is 1500.
    pub(crate) fn mss(&self) -> u16 {
        if self.is_ipv6() { 1440 } else { 1460 }
    }

    fn pseudo(&self, transport: u8, len: usize) -> Sum {
        match self.addresses {
            [IpAddr::V4(from), IpAddr::V4(to)] => {
                Sum::ZERO.pseudo_v4(from, to, transport, u16::try_from(len).unwrap())
            }
            [IpAddr::V6(from), IpAddr::V6(to)] => {
                Sum::ZERO.pseudo_v6(from, to, transport, u32::try_from(len).unwrap())
            }
            mixed => panic!("{mixed:?} are of two families"),
        }
    }

    /// The packet around `payload`.
    pub(crate) fn packet(&self, transport: u8, payload: &[u8]) -> Template {
        let ether_type = if self.is_ipv6() {
            ETHERTYPE_IPV6
        } else {
            ETHERTYPE_IPV4
        };
        let mut octets = [self.macs[1].0, self.macs[0].0].concat();
        octets.extend(ether_type.to_be_bytes());
        match self.addresses {
            [IpAddr::V4(from), IpAddr::V4(to)] => {
                octets.extend(self.header_v4([from, to], transport, payload.len()));
            }
            [IpAddr::V6(from), IpAddr::V6(to)] => {
                octets.extend(self.header_v6([from, to], transport, payload.len()));
            }
            mixed => panic!("{mixed:?} are of two families"),
        }
        octets.extend(payload);
        Template::complete(octets)
    }

    fn header_v4(&self, [from, to]: [Ipv4Addr; 2], transport: u8, len: usize) -> Vec<u8> {
        let header_len = IPV4_HEADER + self.options.len();
        let mut header = vec![0x40 | (header_len / 4) as u8, 0];
        header.extend(u16::try_from(header_len + len).unwrap().to_be_bytes());
        header.extend([0, 7]);
        header.extend(self.fragment.to_be_bytes());
        header.extend([self.ttl, transport, 0, 0]);
        header.extend([from.octets(), to.octets()].concat());
        header.extend(&self.options);
        let sum = Sum::ZERO.plus(&header).checksum();
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        header
    }

    fn header_v6(&self, [from, to]: [Ipv6Addr; 2], transport: u8, len: usize) -> Vec<u8> {
        let mut numbers = self.extensions.iter().map(|(number, _)| *number);
        let first = numbers.next().unwrap_or(transport);
        let mut extensions = Vec::new();
        for (_, octets) in &self.extensions {
            extensions.push(numbers.next().unwrap_or(transport));
            extensions.extend(&octets[1..]);
        }
        let len = u16::try_from(extensions.len() + len).unwrap();
        let mut header = vec![0x60, 0, 0, 0];
        header.extend(len.to_be_bytes());
        header.extend([first, self.ttl]);
        header.extend([from.octets(), to.octets()].concat());
        header.extend(extensions);
        header
    }

    /// The octets of payload that make a frame of `len` octets, behind `header` octets of transport
    /// header; none if `len` is too short.
    fn payload(&self, len: usize, header: usize) -> Vec<u8> {
        let len = len.saturating_sub(self.headers() + header);
        (0..len).map(|n| n as u8).collect()
    }

    /// A TCP segment in a frame of `len` octets, or longer if its headers are.
    pub(crate) fn tcp(&self, len: usize) -> Template {
        self.tcp_with(ACK, &self.payload(len, 20))
    }

    /// The segment that opens a connection.
    pub(crate) fn syn(&self) -> Template {
        self.tcp_with(SYN, &[])
    }

    fn tcp_with(&self, flags: u8, payload: &[u8]) -> Template {
        let mut tcp = self.ports.map(u16::to_be_bytes).concat();
        tcp.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        tcp.extend(payload);
        let sum = self.pseudo(protocol::TCP, tcp.len()).plus(&tcp);
        tcp[16..18].copy_from_slice(&sum.checksum().to_be_bytes());
        self.packet(protocol::TCP, &tcp)
    }

    /// A UDP datagram in a frame of `len` octets, or longer if its headers are.
    pub(crate) fn udp(&self, len: usize) -> Template {
        let payload = self.payload(len, 8);
        let mut udp = self.ports.map(u16::to_be_bytes).concat();
        udp.extend(((8 + payload.len()) as u16).to_be_bytes());
        udp.extend([0, 0]);
        udp.extend(payload);
        let sum = self.pseudo(protocol::UDP, udp.len()).plus(&udp);
        udp[6..8].copy_from_slice(&sum.checksum().to_be_bytes());
        self.packet(protocol::UDP, &udp)
    }

    /// An ICMP or ICMPv6 message.
    pub(crate) fn icmp(&self, (kind, code): (u8, u8), rest: [u8; 4], body: &[u8]) -> Template {
        let mut icmp = vec![kind, code, 0, 0];
        icmp.extend(rest);
        icmp.extend(body);
        let (transport, sum) = if self.is_ipv6() {
            let pseudo = self.pseudo(protocol::ICMPV6, icmp.len());
            (protocol::ICMPV6, pseudo.plus(&icmp))
        } else {
            (protocol::ICMP, Sum::ZERO.plus(&icmp))
        };
        icmp[2..4].copy_from_slice(&sum.checksum().to_be_bytes());
        self.packet(transport, &icmp)
    }

    /// An echo request with this identifier, in a frame of `len` octets.
    pub(crate) fn echo_request(&self, id: u16, len: usize) -> Template {
        self.echo(if self.is_ipv6() { 128 } else { 8 }, id, len)
    }

    /// An echo reply with this identifier, in a frame of `len` octets.
    pub(crate) fn echo_reply(&self, id: u16, len: usize) -> Template {
        self.echo(if self.is_ipv6() { 129 } else { 0 }, id, len)
    }

    fn echo(&self, kind: u8, id: u16, len: usize) -> Template {
        let [high, low] = id.to_be_bytes();
        self.icmp((kind, 0), [high, low, 0, 1], &self.payload(len, 8))
    }

    /// The error that a packet was too long for a next hop with an MTU of 1400. It quotes the
    /// packet's first `len` octets.
    pub(crate) fn too_big(&self, about: &Template, len: usize) -> Template {
        let quoted = &about.octets[ETHERNET_HEADER..];
        let quoted = &quoted[..quoted.len().min(len)];
        let kind = if self.is_ipv6() { (2, 0) } else { (3, 4) };
        self.icmp(kind, [0, 0, 0x05, 0x78], quoted)
    }

    /// The error that nobody listens on a port, with the whole packet quoted.
    pub(crate) fn port_unreachable(&self, about: &Template) -> Template {
        let kind = if self.is_ipv6() { (1, 4) } else { (3, 3) };
        self.icmp(kind, [0; 4], &about.octets[ETHERNET_HEADER..])
    }

    /// A TCP segment as a container's kernel sends it: its checksum is left to the device.
    pub(crate) fn tcp_partial(&self, len: usize) -> Template {
        let start = self.headers();
        self.tcp(len).partial(self, protocol::TCP, start, 16)
    }

    /// A UDP datagram as a container's kernel sends it: its checksum is left to the device.
    pub(crate) fn udp_partial(&self, len: usize) -> Template {
        let start = self.headers();
        self.udp(len).partial(self, protocol::UDP, start, 6)
    }

    /// The longest IP packet of TCP, to be cut into segments of [`Self::mss`] octets.
    pub(crate) fn tcp_super(&self) -> Template {
        let kind = if self.is_ipv6() {
            GsoKind::TcpV6
        } else {
            GsoKind::TcpV4
        };
        let whole = self.tcp_partial(ETHERNET_HEADER + 65_535);
        whole.segmented(kind, self.mss())
    }

    /// The longest IP packet of UDP, to be cut into datagrams of [`Self::mss`] octets.
    pub(crate) fn udp_super(&self) -> Template {
        let whole = self.udp_partial(ETHERNET_HEADER + 65_535);
        whole.segmented(GsoKind::Udp, self.mss())
    }
}

/// The container asks who has `target`.
pub(crate) fn arp_request(target: Ipv4Addr) -> Template {
    arp(&Arp::request(CONTAINER, OWN4, target), MacAddr::BROADCAST)
}

/// An ARP message to `to`.
pub(crate) fn arp(message: &Arp, to: MacAddr) -> Template {
    let mut frame = FramePool::new(1, ARP_FRAME).alloc().unwrap();
    message.write(&mut frame, to).unwrap();
    Template::complete(frame.bytes().to_vec())
}

/// The container asks who has `target`.
pub(crate) fn neighbor_solicitation(target: Ipv6Addr) -> Template {
    let source = CONTAINER.link_local();
    let envelope = Envelope::to_group(CONTAINER, source, solicited_node(target));
    let source_link_layer = Some(CONTAINER);
    ndp(
        &Ndp::NeighborSolicit {
            target,
            source_link_layer,
        },
        &envelope,
    )
}

/// A message of Neighbor Discovery.
pub(crate) fn ndp(message: &Ndp, envelope: &Envelope) -> Template {
    let mut frame = FramePool::new(1, NDP_FRAME).alloc().unwrap();
    message.write(&mut frame, envelope).unwrap();
    Template::complete(frame.bytes().to_vec())
}
