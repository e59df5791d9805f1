//! The kinds of crafted frames, and their octets.

use std::net::IpAddr;
use std::num::NonZeroU16;

use nos_shim::checksum::Sum;
use nos_shim::frame::{Checksum, Ecn, GsoKind, Offload, Segmentation};
use nos_shim::ident::MacAddr;

/// How the checksum of a frame stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sums {
    /// Left to the device.
    Partial,
    /// In the frame, and right.
    Complete,
    /// In the frame, and wrong: not ours to judge on the way.
    Bad,
}

/// What an outer header is put around.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encapsulation {
    None,
    /// With a checksum in the outer datagram (RFC 7348).
    Vxlan,
    /// RFC 2784.
    Gre,
    /// RFC 2003, RFC 2473, RFC 4213.
    Ipip,
}

/// The tag in front of the EtherType.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tag {
    None,
    /// VLAN 0: a priority alone (IEEE 802.1Q).
    Priority,
}

/// The TCP flag CWR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cwr {
    Clear,
    /// Set, and marked as of classic ECN: for the first segment (RFC 3168).
    First,
    /// Set without a mark: for all segments (RFC 9768).
    All,
}

/// A kind of frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    pub(crate) tcp: bool,
    /// Segments of 1,000 octets, or one packet.
    pub(crate) segmented: bool,
    pub(crate) sums: Sums,
    /// IPv4 options, or an IPv6 destination options header; in a tunnel, inside as well.
    pub(crate) options: bool,
    pub(crate) encapsulation: Encapsulation,
    /// In a tunnel: what is inside is of the other family.
    pub(crate) other_family: bool,
    pub(crate) tag: Tag,
    pub(crate) cwr: Cwr,
}

impl Row {
    /// Every row with one of these encapsulations that a packet socket can send.
    pub(crate) fn all(encapsulations: &[Encapsulation]) -> Vec<Self> {
        let mut rows = Vec::new();
        for tag in [Tag::None, Tag::Priority] {
            for &encapsulation in encapsulations {
                for sums in [Sums::Partial, Sums::Complete, Sums::Bad] {
                    for cwr in [Cwr::Clear, Cwr::First, Cwr::All] {
                        rows.extend((0..16_u8).map(|bits| Self {
                            tcp: bits & 1 != 0,
                            segmented: bits & 2 != 0,
                            sums,
                            options: bits & 4 != 0,
                            encapsulation,
                            other_family: bits & 8 != 0,
                            tag,
                            cwr,
                        }));
                    }
                }
            }
        }
        rows.retain(Self::is_possible);
        rows
    }

    fn is_possible(&self) -> bool {
        let tunneled = self.encapsulation != Encapsulation::None;
        // A packet socket's super-frame with a complete checksum is cut before it leaves the host,
        // and its checksum made right; of a tunnel there is none, as its header has no words for it.
        let sent = !self.segmented || self.sums == Sums::Partial && !tunneled;
        let marked = self.cwr == Cwr::Clear || self.segmented && self.tcp;
        sent && marked && (tunneled || !self.other_family)
    }

    /// The protocol that the outermost IP header names; 0 where it is the packet's own.
    fn carrier(&self, inner_v6: bool) -> u8 {
        match self.encapsulation {
            Encapsulation::None => 0,
            Encapsulation::Vxlan => 17,
            Encapsulation::Gre => 47,
            Encapsulation::Ipip if inner_v6 => 41,
            Encapsulation::Ipip => 4,
        }
    }
}

const SEGMENT: u16 = 1_000;

/// One crafted frame and what the device that sends it is told.
pub(crate) struct Crafted {
    pub(crate) octets: Vec<u8>,
    pub(crate) offload: Offload,
}

/// Where a frame goes: IP addresses and ports, source first, and with which TTL.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way {
    pub(crate) addresses: [IpAddr; 2],
    pub(crate) ports: [u16; 2],
    pub(crate) ttl: u8,
}

/// A transport header with its payload, and where its checksum is.
struct Transport {
    protocol: u8,
    octets: Vec<u8>,
    checksum_at: usize,
}

/// A packet, and where its transport header is.
struct Ip {
    v6: bool,
    octets: Vec<u8>,
    transport: usize,
}

pub(crate) fn craft(row: Row, way: Way, macs: [MacAddr; 2], seed: u64) -> Crafted {
    let tunneled = row.encapsulation != Encapsulation::None;
    let addresses = if tunneled {
        let v6 = way.addresses[0].is_ipv6() != row.other_family;
        inside(v6)
    } else {
        way.addresses
    };
    let transport = transport(row, addresses, way.ports, seed);
    let (protocol, checksum_at) = (transport.protocol, transport.checksum_at);
    let inner = ip(
        row,
        if tunneled { 64 } else { way.ttl },
        addresses,
        protocol,
        &transport.octets,
    );
    let inner_v6 = inner.v6;
    let outer = if tunneled {
        wrapped(row, way, inner)
    } else {
        inner
    };
    let mut octets = [macs[1].0, macs[0].0].concat();
    if row.tag == Tag::Priority {
        octets.extend([0x81, 0, 0xa0, 0]);
    }
    octets.extend(ether_type(outer.v6));
    let start = octets.len() + outer.transport;
    octets.extend(outer.octets);
    let checksum = match row.sums {
        Sums::Partial => Checksum::Partial {
            start: u16::try_from(start).unwrap(),
            offset: u16::try_from(checksum_at).unwrap(),
        },
        Sums::Complete | Sums::Bad => Checksum::Complete,
    };
    let kind = match (row.tcp, inner_v6) {
        (false, _) => GsoKind::Udp,
        (true, false) => GsoKind::TcpV4,
        (true, true) => GsoKind::TcpV6,
    };
    let segmentation = row.segmented.then(|| Segmentation {
        kind,
        ecn: match row.cwr {
            Cwr::First => Ecn::Classic,
            Cwr::Clear | Cwr::All => Ecn::Unmarked,
        },
        size: NonZeroU16::new(SEGMENT).unwrap(),
        tunnel: None,
    });
    Crafted {
        octets,
        offload: Offload {
            checksum,
            segmentation,
        },
    }
}

/// The addresses of a packet in a tunnel.
fn inside(v6: bool) -> [IpAddr; 2] {
    let texts = if v6 {
        ["fd09::1", "fd09::2"]
    } else {
        ["10.9.0.1", "10.9.0.2"]
    };
    texts.map(|text| text.parse().unwrap())
}

fn ether_type(v6: bool) -> [u8; 2] {
    if v6 { [0x86, 0xdd] } else { [8, 0] }
}

fn transport(row: Row, addresses: [IpAddr; 2], ports: [u16; 2], seed: u64) -> Transport {
    let mut payload = vec![0; if row.segmented { 9_321 } else { 777 }];
    fastrand::Rng::with_seed(seed).fill(&mut payload);
    let mut octets: Vec<u8> = ports.iter().flat_map(|port| port.to_be_bytes()).collect();
    let (protocol, checksum_at) = if row.tcp {
        let flags = if row.cwr == Cwr::Clear { 0x18 } else { 0x98 };
        octets.extend([1, 2, 3, 4, 5, 6, 7, 8, 0x50, flags]);
        octets.extend([0x7f, 0xff, 0, 0, 0, 0]);
        (6, 16)
    } else {
        let length = u16::try_from(payload.len() + 8).unwrap();
        octets.extend(length.to_be_bytes());
        octets.extend([0, 0]);
        (17, 6)
    };
    octets.extend(payload);
    let pseudo = pseudo_sum(addresses, protocol, octets.len());
    let field = match row.sums {
        Sums::Partial => pseudo.folded(),
        Sums::Complete => pseudo.plus(&octets).checksum(),
        Sums::Bad => pseudo.plus(&octets).checksum() ^ 0x5500,
    };
    octets[checksum_at..checksum_at + 2].copy_from_slice(&field.to_be_bytes());
    Transport {
        protocol,
        octets,
        checksum_at,
    }
}

/// A packet in its tunnel.
fn wrapped(row: Row, way: Way, inner: Ip) -> Ip {
    let Ip {
        v6,
        octets: packet,
        transport,
    } = inner;
    let mut carried = Vec::new();
    match row.encapsulation {
        Encapsulation::None | Encapsulation::Ipip => {}
        Encapsulation::Gre => carried.extend([[0, 0], ether_type(v6)].as_flattened()),
        Encapsulation::Vxlan => {
            let length = 8 + 8 + 14 + packet.len();
            carried.extend(way.ports.iter().flat_map(|port| port.to_be_bytes()));
            carried.extend(u16::try_from(length).unwrap().to_be_bytes());
            carried.extend([0, 0]);
            carried.extend([8, 0, 0, 0, 0, 0, 1, 0]);
            carried.extend([2; 12]);
            carried.extend(ether_type(v6));
        }
    }
    let start = carried.len() + transport;
    carried.extend(packet);
    if row.encapsulation == Encapsulation::Vxlan {
        let pseudo = pseudo_sum(way.addresses, 17, carried.len());
        let sum = if row.sums == Sums::Partial {
            // Once the device has completed the inner checksum, what it covers sums up to the
            // complement of what stands there now.
            let at = start + if row.tcp { 16 } else { 6 };
            let field = u16::from_be_bytes([carried[at], carried[at + 1]]);
            pseudo.plus(&carried[..start]).add_u16(!field)
        } else {
            pseudo.plus(&carried)
        };
        let checksum = match sum.checksum() {
            0 => 0xffff,
            checksum => checksum,
        };
        carried[6..8].copy_from_slice(&checksum.to_be_bytes());
    }
    let mut outer = ip(row, way.ttl, way.addresses, row.carrier(v6), &carried);
    outer.transport += start;
    outer
}

fn pseudo_sum(addresses: [IpAddr; 2], protocol: u8, len: usize) -> Sum {
    match addresses {
        [IpAddr::V4(source), IpAddr::V4(destination)] => {
            let len = u16::try_from(len).unwrap();
            Sum::ZERO.pseudo_v4(source, destination, protocol, len)
        }
        [IpAddr::V6(source), IpAddr::V6(destination)] => {
            let len = u32::try_from(len).unwrap();
            Sum::ZERO.pseudo_v6(source, destination, protocol, len)
        }
        mixed => panic!("{mixed:?} are of two families"),
    }
}

/// A packet around `payload`.
fn ip(row: Row, ttl: u8, addresses: [IpAddr; 2], protocol: u8, payload: &[u8]) -> Ip {
    let len = u16::try_from(payload.len()).unwrap();
    let (v6, mut octets) = match addresses {
        [IpAddr::V4(source), IpAddr::V4(destination)] => {
            // Three times no operation, and the end (RFC 791 §3.1).
            let options: &[u8] = if row.options { &[1, 1, 1, 0] } else { &[] };
            let header = 20 + u16::try_from(options.len()).unwrap();
            let mut octets = vec![0x40 | u8::try_from(header / 4).unwrap(), 0];
            octets.extend((header + len).to_be_bytes());
            octets.extend([0x12, 0x34, 0x40, 0, ttl, protocol, 0, 0]);
            octets.extend(source.octets());
            octets.extend(destination.octets());
            octets.extend(options);
            let sum = Sum::ZERO.plus(&octets).checksum();
            octets[10..12].copy_from_slice(&sum.to_be_bytes());
            (false, octets)
        }
        [IpAddr::V6(source), IpAddr::V6(destination)] => {
            // Padding of four octets (RFC 8200 §4.2).
            let extension: &[u8] = if row.options {
                &[protocol, 0, 1, 4, 0, 0, 0, 0]
            } else {
                &[]
            };
            let next = if row.options { 60 } else { protocol };
            let mut octets = vec![0x60, 0, 0, 0];
            octets.extend((u16::try_from(extension.len()).unwrap() + len).to_be_bytes());
            octets.extend([next, ttl]);
            octets.extend(source.octets());
            octets.extend(destination.octets());
            octets.extend(extension);
            (true, octets)
        }
        mixed => panic!("{mixed:?} are of two families"),
    };
    let transport = octets.len();
    octets.extend(payload);
    Ip {
        v6,
        octets,
        transport,
    }
}
