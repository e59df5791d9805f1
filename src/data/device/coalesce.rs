//! Runs of UDP datagrams that leave as one super-frame.
//!
//! # Theory of operation
//!
//! What a kernel does for a short datagram that we hand it costs many times what we do. It costs
//! little more for a super-frame of many datagrams (UDP segmentation offload): the receiving
//! kernel, or the NIC, takes it apart at the very end. So datagrams of one flow that follow each
//! other in a burst, all of one length but a shorter last, are handed over together. They wait for
//! nothing: what is not in the burst travels by itself.
//!
//! Nothing is copied. A [`Run`] changes the headers of the first frame to those of a super-frame,
//! whose payload the device gathers from all frames of the run; when the kernel does not take it,
//! [`Run::undo`] makes the first frame what it was.
//!
//! What comes out at the far end is what would have come out otherwise:
//!
//! - headers must be equal, but for lengths, checksums, and the identification of IPv4. That counts
//!   up in the segments of a super-frame, so it must count up in the run as well; a datagram that
//!   is not to be fragmented has one that means nothing (RFC 6864 §4.1).
//! - the checksum of every segment is made anew, so it must not have been wrong before: it is known
//!   to be right, or was to be completed by the device anyway. A datagram without a checksum travels
//!   by itself.

use nos_shim::checksum::Sum;
use nos_shim::frame::{
    Checksum, ETHERNET_HEADER, Ecn, Frame, GsoKind, MAX_FRAME, Offload, Segmentation,
};
use nos_shim::packet::{
    ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPV4_HEADER, IPV6_HEADER, ether_type, protocol,
};
use nos_shim::vlan::{TAG, TPID_CUSTOMER};
use std::num::NonZeroU16;

/// Octets of a UDP header (RFC 768).
const UDP_HEADER: usize = 8;
/// Octets of the longest headers that a run may have: a tag, but no options and no extension headers.
const LONGEST: usize = TAG + ETHERNET_HEADER + IPV6_HEADER + UDP_HEADER;
const DONT_FRAGMENT: u16 = 0x4000;
/// Where a UDP header has its checksum.
const CHECKSUM_OFFSET: u16 = 6;

/// Fewer datagrams are not worth it. Programs that read frames off a link without a virtual NIC's
/// headers see a run as one odd datagram; those of protocols that say little, as DHCP, they so see as
/// ever.
const LEAST: usize = 4;

/// How many frames, from the first on, are to leave as one super-frame. One means: as it is.
pub(super) fn run_length(frames: &[Frame]) -> usize {
    let [first, rest @ ..] = frames else { return 0 };
    match Shape::of(first).map(|shape| shape.run(first, rest)) {
        Some(count) if count >= LEAST => count,
        _ => 1,
    }
}

/// What a datagram must be like to be part of a run.
#[derive(Clone, Copy)]
struct Shape {
    /// Octets by which a tag moves everything behind the addresses.
    tag: usize,
    ipv6: bool,
    /// Octets of all headers.
    headers: usize,
    /// Octets of payload.
    payload: usize,
}

impl Shape {
    /// The shape of a datagram that is fit for a run; `None` for any other frame.
    #[inline]
    fn of(frame: &Frame) -> Option<Self> {
        let whole = frame.bytes();
        let (tag, ether_type) = match ether_type(whole)? {
            TPID_CUSTOMER => (TAG, ether_type(whole.get(TAG..)?)?),
            ether_type => (0, ether_type),
        };
        let (ipv6, transport) = match ether_type {
            ETHERTYPE_IPV4 => (false, ETHERNET_HEADER + IPV4_HEADER),
            ETHERTYPE_IPV6 => (true, ETHERNET_HEADER + IPV6_HEADER),
            _ => return None,
        };
        let bytes = whole.get(tag..)?;
        let headers = transport + UDP_HEADER;
        let payload = bytes.len().checked_sub(headers).filter(|&left| left > 0)?;
        let ip = bytes.get(ETHERNET_HEADER..)?;
        let plain = if ipv6 {
            ip[6] == protocol::UDP && usize::from(word(ip, 4)) == ip.len() - IPV6_HEADER
        } else {
            ip[0] == 0x45
                && ip[9] == protocol::UDP
                && word(ip, 6) & !DONT_FRAGMENT == 0
                && usize::from(word(ip, 2)) == ip.len()
        };
        let udp = bytes.get(transport..)?;
        let fills = usize::from(word(udp, 4)) == udp.len();
        let safe = checksum_is_safe(frame.offload(), tag + transport, word(udp, 6));
        (plain && fills && safe).then_some(Self {
            tag,
            ipv6,
            headers: tag + headers,
            payload,
        })
    }

    /// How many frames are a run that `first` begins.
    fn run(self, first: &Frame, rest: &[Frame]) -> usize {
        let (mut count, mut octets) = (1, first.len());
        for frame in rest {
            let payload = frame.len().saturating_sub(self.headers);
            octets += payload;
            if octets > MAX_FRAME || payload > self.payload || !self.follows(first, count, frame) {
                break;
            }
            count += 1;
            if payload < self.payload {
                break;
            }
        }
        count
    }

    /// Whether `frame` can be number `count` of the run that `first` begins, its length aside.
    #[inline]
    fn follows(self, first: &Frame, count: usize, frame: &Frame) -> bool {
        let alike = |other: Self| (other.tag, other.ipv6) == (self.tag, self.ipv6);
        let alike = Self::of(frame).is_some_and(alike);
        let (Some((front, a)), Some((other_front, b))) = (
            first.bytes().split_at_checked(self.tag),
            frame.bytes().split_at_checked(self.tag),
        ) else {
            return false;
        };
        let same = |from: usize, to: usize| a.get(from..to) == b.get(from..to);
        // Ethernet and the start of IP are one piece.
        if !alike || front != other_front || !same(0, ETHERNET_HEADER + 2) {
            return false;
        }
        if self.ipv6 {
            // Flow label; hop limit, addresses and ports.
            same(16, 18) && same(20, 58)
        } else {
            // Flags and TTL; addresses and ports.
            same(20, 24) && same(26, 38) && counts_up(word(a, 18), count, word(b, 18), word(a, 20))
        }
    }
}

/// Whether the identification of the datagram `count` places behind the first is what that of a
/// segment would be.
#[inline]
fn counts_up(first: u16, count: usize, this: u16, flags: u16) -> bool {
    flags & DONT_FRAGMENT != 0 || usize::from(this.wrapping_sub(first)) == count
}

/// Whether a checksum that is made anew says no more than the present one.
#[inline]
fn checksum_is_safe(offload: Offload, transport: usize, field: u16) -> bool {
    offload.segmentation.is_none()
        && match offload.checksum {
            Checksum::Partial { start, offset } => {
                usize::from(start) == transport && offset == CHECKSUM_OFFSET
            }
            // Zero is none.
            Checksum::Verified => field != 0,
            Checksum::Complete => false,
        }
}

/// A first frame with the headers of a super-frame.
#[derive(Clone, Copy)]
pub(super) struct Run {
    headers: usize,
    before: [u8; LONGEST],
    offload: Offload,
}

impl Run {
    /// Gives the first of `frames` the headers of a super-frame with the payload of all, which are
    /// as many as [`run_length`] said. `None`, and nothing is changed, if they are not a run.
    pub(super) fn begin(frames: &mut [Frame]) -> Option<Self> {
        let [first, rest @ ..] = frames else {
            return None;
        };
        let shape = Shape::of(first)?;
        let more: usize = rest.iter().map(|frame| frame.len() - shape.headers).sum();
        let size = NonZeroU16::new(u16::try_from(shape.payload).ok()?)?;
        let transport = shape.headers - UDP_HEADER;
        let ip_len = u16::try_from(first.len() - shape.tag - ETHERNET_HEADER + more).ok()?;
        let mut before = [0; LONGEST];
        before
            .get_mut(..shape.headers)?
            .copy_from_slice(first.bytes().get(..shape.headers)?);
        let run = Self {
            headers: shape.headers,
            before,
            offload: first.offload(),
        };
        let headers = first.bytes_mut().get_mut(..shape.headers)?;
        write_lengths(headers.get_mut(shape.tag..)?, shape.ipv6, ip_len);
        first.set_offload(Offload {
            checksum: Checksum::Partial {
                start: u16::try_from(transport).ok()?,
                offset: CHECKSUM_OFFSET,
            },
            segmentation: Some(Segmentation {
                kind: GsoKind::Udp,
                ecn: Ecn::Unmarked,
                size,
                tunnel: None,
            }),
        });
        Some(run)
    }

    /// Octets of headers, in each of the frames.
    pub(super) fn headers(&self) -> usize {
        self.headers
    }

    /// Makes `first` the datagram again that it was.
    pub(super) fn undo(&self, first: &mut Frame) {
        let before = self.before.get(..self.headers);
        let now = first.bytes_mut().get_mut(..self.headers);
        if let (Some(before), Some(now)) = (before, now) {
            now.copy_from_slice(before);
        }
        first.set_offload(self.offload);
    }
}

/// Writes what the length of the whole changes: in IP and UDP, with the checksum of IPv4, and the
/// pseudo-header's sum in place of UDP's.
fn write_lengths(headers: &mut [u8], ipv6: bool, ip_len: u16) {
    let (ip_header, at) = if ipv6 {
        (IPV6_HEADER, 4)
    } else {
        (IPV4_HEADER, 2)
    };
    let (_, ip) = headers.split_at_mut(ETHERNET_HEADER);
    let udp_len = ip_len.saturating_sub(u16::try_from(ip_header).unwrap_or(0));
    let shown = if ipv6 { udp_len } else { ip_len };
    put(ip, at, shown);
    let addresses = if ipv6 {
        8..IPV6_HEADER
    } else {
        put(ip, 10, 0);
        let sum = Sum::ZERO.plus(&ip[..IPV4_HEADER]).checksum();
        put(ip, 10, sum);
        12..IPV4_HEADER
    };
    let pseudo = Sum::ZERO
        .plus(&ip[addresses])
        .add_u16(u16::from(protocol::UDP))
        .add_u16(udp_len);
    let udp = &mut ip[ip_header..];
    put(udp, 4, udp_len);
    put(udp, 6, pseudo.folded());
}

#[inline]
fn word(octets: &[u8], at: usize) -> u16 {
    octets
        .get(at..at + 2)
        .map_or(0, |word| u16::from_be_bytes([word[0], word[1]]))
}

fn put(octets: &mut [u8], at: usize, value: u16) {
    if let Some(place) = octets.get_mut(at..at + 2) {
        place.copy_from_slice(&value.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;
    use nos_shim::frame::FramePool;
    use nos_shim::offload::{Capabilities, segment};
    use nos_shim::packet::Packet;
    use nos_shim::vlan::{VlanId, insert_tag, remove_tag};
    use proptest::prelude::*;

    use super::*;

    const PARTIAL_V4: Checksum = Checksum::Partial {
        start: 34,
        offset: 6,
    };
    const PARTIAL_V6: Checksum = Checksum::Partial {
        start: 54,
        offset: 6,
    };

    #[derive(Clone, Debug)]
    struct Datagram {
        ipv6: bool,
        port: u16,
        ttl: u8,
        id: u16,
        df: bool,
        payload: Vec<u8>,
        checksum: Checksum,
    }

    impl Datagram {
        fn new(ipv6: bool, id: u16, payload: Vec<u8>) -> Self {
            let checksum = if ipv6 { PARTIAL_V6 } else { PARTIAL_V4 };
            Self {
                ipv6,
                port: 5000,
                ttl: 64,
                id,
                df: false,
                payload,
                checksum,
            }
        }

        /// The octets with all checksums complete.
        fn octets(&self) -> Vec<u8> {
            let ethernet = PacketBuilder::ethernet2([2; 6], [4; 6]);
            let ip = if self.ipv6 {
                ethernet.ipv6([1; 16], [3; 16], self.ttl)
            } else {
                let mut header = etherparse::Ipv4Header::new(
                    0,
                    self.ttl,
                    etherparse::IpNumber::UDP,
                    [10, 0, 0, 1],
                    [10, 0, 0, 2],
                )
                .unwrap();
                header.identification = self.id;
                header.dont_fragment = self.df;
                ethernet.ip(etherparse::IpHeaders::Ipv4(header, Default::default()))
            };
            let mut octets = Vec::new();
            ip.udp(self.port, 53)
                .write(&mut octets, &self.payload)
                .unwrap();
            octets
        }

        fn frame(&self, pool: &mut FramePool) -> Frame {
            let mut frame = pool.copy_from(&self.octets()).unwrap();
            frame.set_offload(Offload {
                checksum: self.checksum,
                segmentation: None,
            });
            frame
        }
    }

    fn pool() -> FramePool {
        FramePool::new(256, MAX_FRAME)
    }

    /// The runs that datagrams are, with tags and without.
    fn lengths(datagrams: &[Datagram]) -> Vec<usize> {
        let [plain, tagged] = [false, true].map(|tagged| {
            let mut pool = pool();
            let mut frames: Vec<_> = datagrams.iter().map(|it| it.frame(&mut pool)).collect();
            for frame in frames.iter_mut().filter(|_| tagged) {
                insert_tag(frame, vlan(910)).unwrap();
            }
            let mut runs = Vec::new();
            while !frames.is_empty() {
                let count = run_length(&frames);
                runs.push(count);
                frames.drain(..count);
            }
            runs
        });
        assert_eq!(plain, tagged);
        plain
    }

    fn vlan(id: u16) -> VlanId {
        VlanId::new(id).unwrap()
    }

    fn payload(len: usize) -> Vec<u8> {
        (0..=u8::MAX).cycle().take(len).collect()
    }

    /// `count` datagrams of one flow.
    fn flow(ipv6: bool, count: u16, len: usize) -> Vec<Datagram> {
        (0..count)
            .map(|n| Datagram::new(ipv6, 100 + n, payload(len)))
            .collect()
    }

    #[test]
    fn a_flow_is_one_run_that_ends_with_a_shorter_datagram() {
        for ipv6 in [false, true] {
            assert_eq!(lengths(&flow(ipv6, 10, 22)), [10]);
            let mut some = flow(ipv6, 10, 22);
            some[4].payload = payload(10);
            assert_eq!(lengths(&some), [5, 5]);
            some[4].payload = payload(30);
            assert_eq!(lengths(&some), [4, 1, 5], "a longer one is none of them");
        }
    }

    #[test]
    fn a_few_datagrams_travel_by_themselves() {
        assert_eq!(lengths(&flow(false, 3, 22)), [1, 1, 1]);
        assert_eq!(lengths(&flow(false, 4, 22)), [4]);
    }

    #[test]
    fn what_differs_ends_a_run() {
        type Change = (&'static str, fn(&mut Datagram));
        let changes: [Change; 5] = [
            ("port", |it| it.port = 5001),
            ("TTL", |it| it.ttl = 63),
            ("no payload", |it| it.payload.clear()),
            ("checksum unknown", |it| it.checksum = Checksum::Complete),
            ("family", |it| {
                it.ipv6 = !it.ipv6;
                it.checksum = if it.ipv6 { PARTIAL_V6 } else { PARTIAL_V4 };
            }),
        ];
        for (what, change) in changes {
            for ipv6 in [false, true] {
                let mut some = flow(ipv6, 9, 22);
                change(&mut some[4]);
                assert_eq!(lengths(&some), [4, 1, 4], "{what}");
            }
        }
    }

    #[test]
    fn a_tag_that_differs_ends_a_run() {
        let mut pool = pool();
        for other in [vlan(911), vlan(0x10e)] {
            let mut frames: Vec<_> = flow(false, 9, 22)
                .iter()
                .map(|it| it.frame(&mut pool))
                .collect();
            for (n, frame) in frames.iter_mut().enumerate() {
                insert_tag(frame, if n < 5 { vlan(910) } else { other }).unwrap();
            }
            assert_eq!(run_length(&frames), 5);
            frames[1].bytes_mut()[0] = 6;
            assert_eq!(run_length(&frames), 1, "another MAC address");
        }
    }

    #[test]
    fn identifications_count_up_unless_they_mean_nothing() {
        let mut some = flow(false, 9, 22);
        some[4].id = 7;
        assert_eq!(lengths(&some), [4, 1, 4]);
        some.iter_mut().for_each(|it| it.df = true);
        assert_eq!(lengths(&some), [9]);
    }

    #[test]
    fn a_run_is_no_longer_than_a_packet_can_be() {
        assert_eq!(lengths(&flow(false, 60, 1472)), [44, 16]);
        assert_eq!(lengths(&flow(true, 60, 1452)), [45, 15]);
    }

    #[test]
    fn checksums_that_are_known_to_be_right_may_be_made_anew() {
        let mut some = flow(false, 5, 22);
        some.iter_mut()
            .for_each(|it| it.checksum = Checksum::Verified);
        assert_eq!(lengths(&some), [5]);
    }

    proptest! {
        /// Beside the segmentation that a kernel would do.
        #[test]
        fn a_run_is_cut_into_what_it_was_made_of(
            ipv6: bool, tagged: bool, count in 4..40_u16, len in 1..200_usize, last in 1..200_usize, id: u16,
        ) {
            let mut pool = pool();
            let mut datagrams = flow(ipv6, count, len);
            for (n, datagram) in (0..).zip(&mut datagrams) {
                datagram.id = id.wrapping_add(n);
                datagram.payload[0] = n.to_be_bytes()[1];
            }
            datagrams.last_mut().unwrap().payload = payload(last.min(len));
            let mut frames: Vec<_> = datagrams.iter().map(|it| it.frame(&mut pool)).collect();
            for frame in frames.iter_mut().filter(|_| tagged) {
                insert_tag(frame, vlan(910)).unwrap();
            }
            prop_assert_eq!(run_length(&frames), usize::from(count));
            let before = (frames[0].bytes().to_vec(), frames[0].offload());
            let run = Run::begin(&mut frames).unwrap();
            let mut whole = frames[0].bytes().to_vec();
            for frame in &frames[1..] {
                whole.extend(&frame.bytes()[run.headers()..]);
            }
            let mut super_frame = pool.copy_from(&whole).unwrap();
            super_frame.set_offload(frames[0].offload());
            if tagged {
                remove_tag(&mut super_frame, vlan(910)).unwrap();
            }
            let mut pieces = Vec::new();
            let packet = Packet::parse(super_frame).unwrap();
            let adapted = segment(packet, Capabilities::empty(), &mut pool, &mut |piece| pieces.push(piece));
            prop_assert!(adapted.dropped.is_none());
            let cut: Vec<_> = pieces
                .into_iter()
                .map(|piece| piece.into_frame().bytes().to_vec())
                .collect();
            let expected: Vec<_> = datagrams.iter().map(Datagram::octets).collect();
            prop_assert_eq!(cut, expected);
            run.undo(&mut frames[0]);
            prop_assert_eq!((frames[0].bytes().to_vec(), frames[0].offload()), before);
        }
    }
}
