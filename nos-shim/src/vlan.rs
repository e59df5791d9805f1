//! 802.1Q tags in front of a packet.
//!
//! A tag whose VLAN identifier is 0 is a priority tag (IEEE 802.1Q §6.9.3): it names no VLAN, and the
//! frame belongs to the untagged link. A host takes the frame as if there were no tag, whatever
//! priority and drop eligibility it has, and answers without one. A tag with another identifier
//! belongs to a VLAN that the NOS is not in.
//!
//! As on Linux (6.18, `__netif_receive_skb_core`):
//!
//! - Customer tags (0x8100) and service tags (0x88a8) count alike.
//! - Priority tags may stand one behind the other, in any number.
//! - Any tag with an identifier hides the frame, also behind priority tags.
//! - Behind a tag there are its EtherType and two octets more, or the frame is dropped.
//!
//! No hot path comes here: a frame does when its EtherType is none that is known.

use crate::drop::DropReason;
use crate::frame::{Checksum, Frame};
use crate::packet::{Packet, Rejected};

/// Tag protocol identifier of a customer tag (IEEE 802.1Q §9.5).
pub const TPID_CUSTOMER: u16 = 0x8100;
/// Tag protocol identifier of a service tag (IEEE 802.1Q §9.5).
pub const TPID_SERVICE: u16 = 0x88a8;

/// Octets of a tag: protocol identifier and control information.
const TAG: usize = 4;
/// Octets of both Ethernet addresses, behind which a tag stands.
const MAC_ADDRESSES: usize = 12;
/// Octets behind a tag without which Linux does not take it out: EtherType, and as much again.
const LEAST_BEHIND: usize = 4;
/// The bits of a tag's control information that name a VLAN; the others are priority and drop
/// eligibility.
const VLAN_ID: u16 = 0xfff;

/// Whether a tag's control information names no VLAN.
#[must_use]
pub fn is_priority_tag(control: u16) -> bool {
    control & VLAN_ID == 0
}

/// Parses a frame that was rejected once more if it has priority tags, without them. A frame that is
/// rejected again has none either: ARP is found there.
///
/// # Errors
///
/// The frame, for the reason that it had if there is no tag; else for that of what is behind the
/// tags; with [`DropReason::Vlan`] if one names a VLAN, [`DropReason::FrameLength`] if nothing is
/// behind it, [`DropReason::OffloadHeader`] if a checksum is to start before that.
#[cold]
pub fn parse_tagged(rejected: Rejected) -> Result<Packet, Rejected> {
    let Rejected { mut frame, reason } = rejected;
    match remove_tags(&mut frame) {
        Ok(0) => Err(Rejected { frame, reason }),
        Ok(_) => Packet::parse(frame),
        Err(reason) => Err(Rejected { frame, reason }),
    }
}

/// Removes all tags. Returns how many octets they took.
fn remove_tags(frame: &mut Frame) -> Result<u16, DropReason> {
    let octets = tag_octets(frame.bytes())?;
    if octets > 0 {
        let tags = usize::from(octets);
        frame.bytes_mut().copy_within(..MAC_ADDRESSES, tags);
        frame.trim_front(tags);
        move_checksum(frame, octets)?;
    }
    Ok(octets)
}

/// How many octets of tags a frame has.
fn tag_octets(frame: &[u8]) -> Result<u16, DropReason> {
    let (_, mut behind) = frame
        .split_at_checked(MAC_ADDRESSES)
        .ok_or(DropReason::FrameLength)?;
    let mut octets = 0;
    while let Some(tpid) = behind.first_chunk() {
        if !matches!(u16::from_be_bytes(*tpid), TPID_CUSTOMER | TPID_SERVICE) {
            break;
        }
        let (&[_, _, c0, c1], rest) = behind
            .split_first_chunk::<TAG>()
            .filter(|(_, rest)| rest.len() >= LEAST_BEHIND)
            .ok_or(DropReason::FrameLength)?;
        if !is_priority_tag(u16::from_be_bytes([c0, c1])) {
            return Err(DropReason::Vlan);
        }
        octets += TAG;
        behind = rest;
    }
    // A row of tags that is longer than this can tell is none that a sender makes.
    u16::try_from(octets).map_err(|_| DropReason::FrameLength)
}

/// A checksum that is to be completed starts `octets` octets nearer to the frame's start.
fn move_checksum(frame: &mut Frame, octets: u16) -> Result<(), DropReason> {
    let mut offload = frame.offload();
    if let Checksum::Partial { start, .. } = &mut offload.checksum {
        *start = start.checked_sub(octets).ok_or(DropReason::OffloadHeader)?;
        frame.set_offload(offload);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
