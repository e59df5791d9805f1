//! Super-frames that other kernels' receive offloads made, put into the one form that devices take.
//!
//! Devices and [`crate::offload`] want a super-frame's checksum field to hold the pseudo-header's
//! sum for the whole. What Linux delivers depends on who joined the segments (packet sockets on
//! 6.18, TCP and UDP alike):
//!
//! | made by | checksum state | checksum field |
//! |---|---|---|
//! | the sender (GSO), or GRO | partial | pseudo-header's sum, length of the whole |
//! | GRO into a list (`rx-gro-list`), of partial segments | partial | the same, length of the first segment |
//! | GRO into a list, of segments that were on a wire | verified | the first segment's checksum |
//! | LRO in a NIC | verified or complete | the whole's checksum, or an old one |
//!
//! Segments of a list are verified before they are joined. A complete checksum is judged as by a
//! host that the frame is for: over the whole, and what fails is dropped.

use super::{Packet, TCP_CHECKSUM, UDP_CHECKSUM, protocol};
use crate::checksum::Sum;
use crate::drop::DropReason;
use crate::frame::{Checksum, Offload, Segmentation};

impl Packet {
    /// Makes a super-frame what devices take; of one segment it is an ordinary packet.
    ///
    /// # Errors
    ///
    /// [`DropReason::TransportChecksum`] where a complete checksum is wrong, and
    /// [`DropReason::OffloadHeader`] where the pseudo-header is not known, as a routing header
    /// names more stations.
    #[inline]
    pub(super) fn settle_super_frame(&mut self) -> Result<(), DropReason> {
        let offload = self.0.offload();
        let Some(segmentation) = offload.segmentation else {
            return Ok(());
        };
        // Kernels see that too, but some refuse the largest segment sizes.
        if self.0.len() - self.payload_offset() <= usize::from(segmentation.size.get()) {
            self.0.set_offload(Offload {
                segmentation: None,
                ..offload
            });
            return Ok(());
        }
        match offload.checksum {
            Checksum::Partial { .. } => {
                self.mend_length(segmentation);
                Ok(())
            }
            Checksum::Verified => self.make_partial(segmentation),
            Checksum::Complete if self.transport_checksum_ok() => self.make_partial(segmentation),
            Checksum::Complete => Err(DropReason::TransportChecksum),
        }
    }

    /// Counts the whole's length in a partial checksum that counts the first segment's. Any other
    /// sum is the sender's affair, and stays as wrong as it is.
    #[inline]
    fn mend_length(&mut self, segmentation: Segmentation) {
        let whole = self.0.len() - self.transport_offset();
        let header = self.payload_offset() - self.transport_offset();
        let first = header + usize::from(segmentation.size.get());
        let rest = self.pseudo_sum(0);
        let field = self.checksum_field();
        if field != plus_length(rest, whole) && field == plus_length(rest, first) {
            self.write_pseudo_sum();
        }
    }

    #[cold]
    fn make_partial(&mut self, segmentation: Segmentation) -> Result<(), DropReason> {
        if self.has_segments_left() {
            return Err(DropReason::OffloadHeader);
        }
        self.write_pseudo_sum();
        self.0.set_offload(Offload {
            checksum: Checksum::Partial {
                start: self.parsed().l4,
                offset: self.checksum_offset(),
            },
            segmentation: Some(segmentation),
        });
        Ok(())
    }

    #[cold]
    fn write_pseudo_sum(&mut self) {
        let at = self.transport_offset();
        let sum = plus_length(self.pseudo_sum(0), self.0.len() - at);
        let field = at + usize::from(self.checksum_offset());
        if let Some(field) = self.0.bytes_mut().get_mut(field..field + 2) {
            field.copy_from_slice(&sum.to_be_bytes());
        }
    }

    fn checksum_field(&self) -> u16 {
        let at = self.transport_offset() + usize::from(self.checksum_offset());
        u16::from_be_bytes(super::chunk(self.0.bytes(), at))
    }

    /// Octets from the start of a super-frame's transport header to its checksum.
    fn checksum_offset(&self) -> u16 {
        if self.protocol() == protocol::UDP {
            UDP_CHECKSUM
        } else {
            TCP_CHECKSUM
        }
    }
}

/// A pseudo-header's sum with the length of a segment, as a checksum field holds it. A packet is
/// never longer than 65,535 octets.
fn plus_length(rest: Sum, len: usize) -> u16 {
    rest.add_u16(u16::try_from(len).unwrap_or(u16::MAX))
        .folded()
}

#[cfg(test)]
mod tests {
    use core::net::Ipv6Addr;

    use proptest::prelude::*;

    use super::*;
    use crate::frame::{Frame, FramePool};
    use crate::offload::{Capabilities, adapt};
    use crate::packet::craft::{Craft, Extension, Tcp, Transport, super_crafts};

    /// How a super-frame may come, other than as its sender makes it.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Made {
        /// By GRO into a list, of segments whose checksums were left to the device.
        ListOfPartial,
        /// By GRO into a list, of segments that were on a wire.
        List,
        /// By a NIC that keeps no right checksum, and says that it verified them.
        Verified,
        /// By a NIC that computes the whole's checksum, and verified or did not say so.
        Whole(Checksum),
    }

    const WAYS: [Made; 5] = [
        Made::ListOfPartial,
        Made::List,
        Made::Verified,
        Made::Whole(Checksum::Verified),
        Made::Whole(Checksum::Complete),
    ];

    /// The octets and the offload state of a super-frame made like that.
    fn made(craft: &Craft, size: u16, how: Made) -> (Vec<u8>, Offload) {
        let (mut octets, mut offload) = craft.super_frame(size, false);
        let whole = craft.frame();
        let at = whole.len() - craft.transport_octets(false).len() + craft.checksum_at().unwrap();
        let mut first = craft.clone();
        first.payload.truncate(usize::from(size));
        let field = match how {
            Made::ListOfPartial => first.partial().0[at..at + 2].to_vec(),
            Made::List => first.frame()[at..at + 2].to_vec(),
            Made::Verified => vec![0x5a, 0x5b],
            Made::Whole(_) => whole[at..at + 2].to_vec(),
        };
        octets[at..at + 2].copy_from_slice(&field);
        offload.checksum = match how {
            Made::ListOfPartial => offload.checksum,
            Made::List | Made::Verified => Checksum::Verified,
            Made::Whole(checksum) => checksum,
        };
        (octets, offload)
    }

    fn parse(pool: &mut FramePool, octets: &[u8], offload: Offload) -> Result<Packet, DropReason> {
        let mut frame = pool.copy_from(octets).unwrap();
        frame.set_offload(offload);
        Packet::parse(frame).map_err(|rejected| rejected.reason)
    }

    fn octets(packet: &Packet) -> (Vec<u8>, Offload) {
        let frame: &Frame = packet.frame();
        (frame.bytes().to_vec(), frame.offload())
    }

    fn routed() -> Craft {
        let routing = Extension::Routing {
            left: 1,
            last: Ipv6Addr::LOCALHOST,
        };
        Craft::v6(vec![routing], Transport::Tcp(Tcp::default()), &[7; 50])
    }

    fn stations_left(craft: &Craft) -> bool {
        let mut pool = FramePool::new(1, 6_000);
        craft.parse(&mut pool).has_segments_left()
    }

    proptest! {
        #[test]
        fn however_made_it_becomes_what_its_sender_makes(craft in super_crafts(), size in 1..4_000_u16) {
            prop_assume!(!stations_left(&craft));
            let mut pool = FramePool::new(4_100, 6_000);
            let size = craft.segment_size(size);
            prop_assume!(craft.payload.len() > usize::from(size));
            let (bytes, offload) = craft.super_frame(size, false);
            let expected = octets(&parse(&mut pool, &bytes, offload).unwrap());
            prop_assert_eq!(&expected, &(bytes, offload));
            for how in WAYS {
                let (bytes, offload) = made(&craft, size, how);
                let packet = parse(&mut pool, &bytes, offload);
                prop_assert!(packet.is_ok(), "{:?}: {:?}", how, packet);
                prop_assert_eq!(&octets(&packet.unwrap()), &expected, "{:?}", how);
            }
        }

        #[test]
        fn a_wrong_checksum_is_not_made_right(craft in super_crafts(), size in 1..4_000_u16, flip in 1..=u16::MAX) {
            prop_assume!(!stations_left(&craft));
            let mut pool = FramePool::new(4_100, 6_000);
            let size = craft.segment_size(size);
            prop_assume!(craft.payload.len() > usize::from(size));
            let (mut bytes, offload) = made(&craft, size, Made::Whole(Checksum::Complete));
            let at = bytes.len() - craft.transport_octets(false).len() + craft.checksum_at().unwrap();
            let field = u16::from_be_bytes([bytes[at], bytes[at + 1]]) ^ flip;
            // Zero is no checksum in UDP, and means 0xffff in sums.
            prop_assume!(field != 0 && field != 0xffff);
            bytes[at..at + 2].copy_from_slice(&field.to_be_bytes());
            let judged = parse(&mut pool, &bytes, offload).map(|packet| octets(&packet));
            prop_assert_eq!(judged, Err(DropReason::TransportChecksum));

            // A partial one stays as it is, unless it is that of the first segment.
            let (mut bytes, offload) = craft.super_frame(size, false);
            let (first, _) = made(&craft, size, Made::ListOfPartial);
            let field = u16::from_be_bytes([bytes[at], bytes[at + 1]]) ^ flip;
            bytes[at..at + 2].copy_from_slice(&field.to_be_bytes());
            prop_assume!(bytes != first);
            let kept = parse(&mut pool, &bytes, offload).map(|packet| octets(&packet));
            prop_assert_eq!(kept, Ok((bytes, offload)));
        }
    }

    #[test]
    fn segments_of_a_list_have_the_checksums_that_they_came_with() {
        let mut pool = FramePool::new(64, 6_000);
        let craft = Craft::v4(Craft::udp(), &[9; 2_500]);
        let (bytes, offload) = made(&craft, 1_000, Made::List);
        let packet = parse(&mut pool, &bytes, offload).unwrap();
        let mut segments = Vec::new();
        let mut keep = |packet: Packet| segments.push(packet.frame().bytes().to_vec());
        let _ = adapt(packet, Capabilities::empty(), &mut pool, &mut keep);
        let came: Vec<_> = craft.segments(1_000).iter().map(Craft::frame).collect();
        assert_eq!(segments, came);
    }

    #[test]
    fn the_pseudo_header_must_be_known() {
        let mut pool = FramePool::new(4, 6_000);
        let craft = routed();
        let (bytes, offload) = craft.super_frame(20, false);
        let kept = parse(&mut pool, &bytes, offload).map(|packet| octets(&packet));
        assert_eq!(kept, Ok((bytes, offload)), "as the sender made it");
        for how in [Made::List, Made::Whole(Checksum::Complete)] {
            let (bytes, offload) = made(&craft, 20, how);
            let judged = parse(&mut pool, &bytes, offload).map(drop);
            assert_eq!(judged, Err(DropReason::OffloadHeader), "{how:?}");
        }
    }

    /// What follows the IP packet is cut off a packet, not off what is none.
    #[test]
    fn one_that_is_rejected_is_unchanged() {
        let mut pool = FramePool::new(1, 6_000);
        let craft = Craft::v4(Craft::udp(), &[9; 2_500]);
        let (mut bytes, offload) = made(&craft, 1_000, Made::Whole(Checksum::Complete));
        *bytes.last_mut().unwrap() ^= 1;
        bytes.extend([1, 2, 3]);
        let mut frame = pool.copy_from(&bytes).unwrap();
        frame.set_offload(offload);
        let rejected = Packet::parse(frame).unwrap_err();
        assert_eq!(rejected.reason, DropReason::TransportChecksum);
        assert_eq!(rejected.frame.bytes(), bytes);
        assert_eq!(rejected.frame.offload(), offload);
    }

    #[test]
    fn no_fragment_is_one() {
        let mut pool = FramePool::new(1, 6_000);
        let craft = Craft::v4(Craft::udp(), &[9; 2_500]);
        for how in WAYS {
            for fragment in [[0x20, 0], [0, 7], [0x20, 7]] {
                let (mut bytes, offload) = made(&craft, 1_000, how);
                bytes[20..22].copy_from_slice(&fragment);
                bytes[24..26].fill(0);
                let sum = Sum::ZERO.plus(&bytes[14..34]).checksum();
                bytes[24..26].copy_from_slice(&sum.to_be_bytes());
                let judged = parse(&mut pool, &bytes, offload).map(drop);
                let expected = Err(DropReason::OffloadHeader);
                assert_eq!(judged, expected, "{how:?}, {fragment:x?}");
            }
        }
    }

    #[test]
    fn of_one_segment_it_keeps_its_checksum() {
        let mut pool = FramePool::new(1, 6_000);
        let craft = Craft::v4(Craft::udp(), &[9; 1_000]);
        for checksum in [Checksum::Verified, Checksum::Complete] {
            let (bytes, offload) = made(&craft, 1_000, Made::Whole(checksum));
            let packet = parse(&mut pool, &bytes, offload).unwrap();
            let kept = Offload {
                checksum,
                segmentation: None,
            };
            assert_eq!(octets(&packet), (bytes, kept));
        }
    }
}
