//! Tunnels' frames for tests, each made from its parts: of a super-frame, and of the segments that Linux
//! would make of it.

use core::num::NonZeroU16;

use proptest::prelude::*;

use crate::frame::{Checksum, Ecn, GsoKind, Offload, Segmentation};

/// What is around the inner packet, behind the outer IP header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Carrier {
    /// UDP to this port, and octets in front of the packet: a tunnel's header, maybe an Ethernet header.
    Udp {
        checksum: bool,
        header: Vec<u8>,
    },
    Gre {
        checksum: bool,
        key: Option<u32>,
        /// In front of the packet, an Ethernet header or nothing.
        ethernet: bool,
    },
    Ip,
}

/// A tunnel's flow.
#[derive(Clone, Debug)]
pub(crate) struct Flow {
    pub(crate) outer_v6: bool,
    pub(crate) carrier: Carrier,
    pub(crate) inner_v6: bool,
    /// TCP, or else UDP.
    pub(crate) tcp: bool,
    /// Octets of inner IPv4 options or of an IPv6 header of destination options.
    pub(crate) options: bool,
    pub(crate) id: u16,
    pub(crate) sequence: u32,
    /// TCP flags.
    pub(crate) flags: u8,
    pub(crate) size: u16,
    pub(crate) payload: Vec<u8>,
}

const OUTER_V4: [[u8; 4]; 2] = [[203, 0, 113, 1], [192, 0, 2, 7]];
const INNER_V4: [[u8; 4]; 2] = [[10, 9, 0, 1], [10, 9, 0, 2]];

fn address_v6(last: u8) -> [u8; 16] {
    let mut address = [0x20, 0x01, 0x0d, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    address[15] = last;
    address
}

/// RFC 1071 §4.1, word for word.
fn sum(parts: &[&[u8]]) -> u16 {
    let octets = parts.concat();
    let mut sum = 0_u64;
    for pair in octets.chunks(2) {
        sum += u64::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap()
}

/// How checksums are filled in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sums {
    /// As on the wire, of one of several segments.
    Complete,
    /// As on the wire, of a packet as it is: Linux, and [`complete_checksum`](crate::offload::complete_checksum),
    /// write no zero then, of TCP either.
    Whole,
    /// With the pseudo-header's sum, both.
    SuperFrame,
}

/// An IP header with its payload behind, and the pseudo-header's octets for `payload`.
fn ip(v6: bool, inner: bool, protocol: u8, id: u16, options: bool, payload: usize) -> [Vec<u8>; 2] {
    if v6 {
        let [source, destination] = if inner { [0x11, 0x12] } else { [1, 2] }.map(address_v6);
        let extension = if options {
            vec![protocol, 0, 1, 4, 0, 0, 0, 0]
        } else {
            Vec::new()
        };
        let next = if options { 60 } else { protocol };
        let len = u16::try_from(extension.len() + payload)
            .unwrap()
            .to_be_bytes();
        let fixed = [
            &[0x60, 0, 0, 0, len[0], len[1], next, 64][..],
            &source,
            &destination,
        ]
        .concat();
        let len = u32::try_from(payload).unwrap().to_be_bytes();
        let pseudo = [&source[..], &destination, &len, &[0, 0, 0, protocol]].concat();
        return [[fixed, extension].concat(), pseudo];
    }
    let [source, destination] = if inner { INNER_V4 } else { OUTER_V4 };
    let more: &[u8] = if options {
        &[1, 1, 1, 1, 1, 1, 1, 0]
    } else {
        &[]
    };
    let header_len = 20 + more.len();
    let total = u16::try_from(header_len + payload).unwrap().to_be_bytes();
    let [id0, id1] = id.to_be_bytes();
    let first = 0x40 + u8::try_from(header_len / 4).unwrap();
    let mut header = [
        &[
            first, 0, total[0], total[1], id0, id1, 0, 0, 63, protocol, 0, 0,
        ][..],
        &source,
        &destination,
        more,
    ]
    .concat();
    let checksum = !sum(&[&header]);
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    let len = u16::try_from(payload).unwrap().to_be_bytes();
    let pseudo = [&source[..], &destination, &[0, protocol], &len].concat();
    [header, pseudo]
}

fn fill(octets: &mut [u8], at: usize, pseudo: &[u8], sums: Sums) {
    octets[at..at + 2].fill(0);
    let value = match sums {
        Sums::SuperFrame => sum(&[pseudo]),
        Sums::Complete => match !sum(&[pseudo, octets]) {
            // Zero would mean that there is none. Of TCP, segments have it.
            0 if at < 16 => 0xffff,
            checksum => checksum,
        },
        Sums::Whole => match !sum(&[pseudo, octets]) {
            0 => 0xffff,
            checksum => checksum,
        },
    };
    octets[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

impl Flow {
    /// Octets from the frame's start to the inner IP header and to the inner transport header.
    pub(crate) fn inner_offsets(&self) -> [usize; 2] {
        let outer = 14 + if self.outer_v6 { 40 } else { 20 };
        let carrier = match &self.carrier {
            Carrier::Udp { header, .. } => 8 + header.len(),
            Carrier::Gre { .. } => self.gre(&[]).len(),
            Carrier::Ip => 0,
        };
        let network = outer + carrier;
        let header = if self.inner_v6 { 40 } else { 20 };
        [network, network + header + if self.options { 8 } else { 0 }]
    }

    fn gre(&self, packet: &[u8]) -> Vec<u8> {
        let Carrier::Gre {
            checksum,
            key,
            ethernet,
        } = self.carrier
        else {
            return Vec::new();
        };
        let kind: u16 = match (ethernet, self.inner_v6) {
            (true, _) => 0x6558,
            (false, false) => 0x0800,
            (false, true) => 0x86dd,
        };
        let flags = u8::from(checksum) << 7 | u8::from(key.is_some()) << 5;
        let mut octets = vec![flags, 0];
        octets.extend(kind.to_be_bytes());
        if checksum {
            octets.extend([0; 4]);
        }
        octets.extend(key.into_iter().flat_map(u32::to_be_bytes));
        if ethernet {
            octets.extend([2; 12]);
            octets.extend(if self.inner_v6 { [0x86, 0xdd] } else { [8, 0] });
        }
        octets.extend(packet);
        octets
    }

    fn frame(&self, index: u16, from: usize, to: usize, sums: Sums) -> Vec<u8> {
        let part = &self.payload[from..to];
        let (protocol, at, mut transport) = if self.tcp {
            let sequence = self.sequence.wrapping_add(u32::try_from(from).unwrap());
            let last = to == self.payload.len();
            let flags = self.flags & !(if last { 0 } else { 0x09 });
            let head = [
                &[0x9c, 0x40, 0, 80][..],
                &sequence.to_be_bytes(),
                &[
                    0, 0, 0, 9, 0x80, flags, 1, 2, 0, 0, 0, 0, 1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2,
                ],
            ]
            .concat();
            (6, 16, [&head[..], part].concat())
        } else {
            let len = u16::try_from(8 + part.len()).unwrap().to_be_bytes();
            let head = [0x9c, 0x40, 0, 53, len[0], len[1], 0, 0];
            (17, 6, [&head[..], part].concat())
        };
        let id = self.id.wrapping_add(index);
        let [header, pseudo] = ip(
            self.inner_v6,
            true,
            protocol,
            id,
            self.options,
            transport.len(),
        );
        fill(&mut transport, at, &pseudo, sums);
        let packet = [header, transport].concat();
        let (protocol, carried) = match &self.carrier {
            Carrier::Udp { header, .. } => {
                let len = u16::try_from(8 + header.len() + packet.len())
                    .unwrap()
                    .to_be_bytes();
                let udp = [0xc0, 0, 0x12, 0xb5, len[0], len[1], 0, 0];
                (17, [&udp[..], header, &packet].concat())
            }
            Carrier::Gre { .. } => (47, self.gre(&packet)),
            Carrier::Ip => (if self.inner_v6 { 41 } else { 4 }, packet),
        };
        self.wrapped(
            protocol,
            carried,
            self.id.wrapping_add(7).wrapping_add(index),
            sums,
        )
    }

    /// With the outer headers in front.
    fn wrapped(&self, protocol: u8, mut carried: Vec<u8>, id: u16, sums: Sums) -> Vec<u8> {
        let [header, pseudo] = ip(self.outer_v6, false, protocol, id, false, carried.len());
        match self.carrier {
            Carrier::Udp { checksum: true, .. } => fill(&mut carried, 6, &pseudo, sums),
            Carrier::Gre { checksum: true, .. } if sums != Sums::SuperFrame => {
                fill(&mut carried, 4, &[], sums);
            }
            _ => {}
        }
        let link: &[u8] = if self.outer_v6 {
            &[0x86, 0xdd]
        } else {
            &[8, 0]
        };
        [
            &[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2][..],
            link,
            &header,
            &carried,
        ]
        .concat()
    }

    /// The super-frame, as a kernel hands it over.
    pub(crate) fn super_frame(&self) -> (Vec<u8>, Offload) {
        let [_, transport] = self.inner_offsets();
        let kind = match (self.tcp, self.inner_v6) {
            (true, false) => GsoKind::TcpV4,
            (true, true) => GsoKind::TcpV6,
            (false, _) => GsoKind::Udp,
        };
        let offload = Offload {
            checksum: Checksum::Partial {
                start: u16::try_from(transport).unwrap(),
                offset: if self.tcp { 16 } else { 6 },
            },
            segmentation: Some(Segmentation {
                kind,
                ecn: if self.tcp && self.flags & 0x80 != 0 {
                    Ecn::Accurate
                } else {
                    Ecn::Unmarked
                },
                size: NonZeroU16::new(self.size).unwrap(),
                tunnel: None,
            }),
        };
        (
            self.frame(0, 0, self.payload.len(), Sums::SuperFrame),
            offload,
        )
    }

    /// The super-frame as one packet with complete checksums.
    pub(crate) fn whole(&self) -> Vec<u8> {
        self.frame(0, 0, self.payload.len(), Sums::Whole)
    }

    /// What Linux makes of it.
    pub(crate) fn segments(&self) -> Vec<Vec<u8>> {
        let size = usize::from(self.size);
        let starts = (0..self.payload.len()).step_by(size);
        // A single one is a packet as it is.
        let sums = match starts.len() {
            1 => Sums::Whole,
            _ => Sums::Complete,
        };
        starts
            .zip(0..)
            .map(|(from, index)| {
                let to = self.payload.len().min(from + size);
                self.frame(index, from, to, sums)
            })
            .collect()
    }
}

/// VXLAN with an Ethernet header.
pub(crate) fn vxlan(inner_v6: bool) -> Vec<u8> {
    let mut header = vec![8, 0, 0, 0, 0, 0, 1, 0];
    header.extend([2; 12]);
    header.extend(if inner_v6 { [0x86, 0xdd] } else { [8, 0] });
    header
}

fn carrier() -> impl Strategy<Value = Carrier> {
    // VXLAN, Geneve and GUE have some octets, FOU none.
    let header = proptest::collection::vec(any::<u8>(), 0..=6).prop_map(|octets| octets.repeat(4));
    prop_oneof![
        (any::<bool>(), header).prop_map(|(checksum, header)| Carrier::Udp { checksum, header }),
        any::<bool>().prop_map(|checksum| Carrier::Udp {
            checksum,
            header: vxlan(false)
        }),
        (any::<bool>(), any::<Option<u32>>(), any::<bool>()).prop_map(
            |(checksum, key, ethernet)| Carrier::Gre {
                checksum,
                key,
                ethernet
            }
        ),
        Just(Carrier::Ip),
    ]
}

/// Any flow of more than one segment.
pub(crate) fn any_flow() -> impl Strategy<Value = Flow> {
    let shape = (
        any::<[bool; 4]>(),
        carrier(),
        any::<u16>(),
        any::<u32>(),
        any::<u8>(),
    );
    let payload = (8..1500_u16, proptest::collection::vec(any::<u8>(), 2..6000));
    (shape, payload).prop_map(|(shape, (size, payload))| {
        let ([outer_v6, inner_v6, tcp, options], carrier, id, sequence, flags) = shape;
        let most = u16::try_from(payload.len() - 1).unwrap();
        // UDP has 128 segments at most.
        let least = u16::try_from(payload.len().div_ceil(128)).unwrap();
        Flow {
            outer_v6,
            carrier,
            inner_v6,
            tcp,
            options,
            id,
            sequence,
            flags,
            size: size.min(most).max(least),
            payload,
        }
    })
}
