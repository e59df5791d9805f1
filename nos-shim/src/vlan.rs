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
//!
//! An interface that is one VLAN of another one's ([`VlanId`]) has its frames without their tag, which
//! whoever owns the device takes out ([`remove_tag`]) and puts in ([`insert_tag`]). So the NOS sees a link
//! like any other.

use core::fmt;

use crate::drop::DropReason;
use crate::frame::{Checksum, Frame, FrameFull};
use crate::packet::{Packet, Rejected};

/// Tag protocol identifier of a customer tag (IEEE 802.1Q §9.5).
pub const TPID_CUSTOMER: u16 = 0x8100;
/// Tag protocol identifier of a service tag (IEEE 802.1Q §9.5).
pub const TPID_SERVICE: u16 = 0x88a8;

/// Octets of a tag: protocol identifier and control information.
pub const TAG: usize = 4;
/// The same, as offsets are counted.
const TAG_OCTETS: u16 = 4;
/// Octets of both Ethernet addresses, behind which a tag stands.
const MAC_ADDRESSES: usize = 12;
/// Octets behind a tag without which Linux does not take it out: EtherType, and as much again.
const LEAST_BEHIND: usize = 4;
/// The bits of a tag's control information that name a VLAN; the others are priority and drop
/// eligibility.
const VLAN_ID: u16 = 0xfff;

/// Names a VLAN: 1 to 4094 (IEEE 802.1Q §9.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VlanId(u16);

impl VlanId {
    /// The lowest; 0 names none.
    pub const MIN: u16 = 1;
    /// The highest; 4095 is reserved.
    pub const MAX: u16 = 4094;

    /// `None` for a number that names no VLAN.
    #[must_use]
    pub fn new(id: u16) -> Option<Self> {
        (Self::MIN..=Self::MAX).contains(&id).then_some(Self(id))
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> u16 {
        self.0
    }

    /// Whether a customer tag with this control information is one of this VLAN, whatever its priority.
    #[must_use]
    pub fn is_in(self, control: u16) -> bool {
        control & VLAN_ID == self.0
    }

    /// The customer tag of a frame of this VLAN, of the lowest priority.
    #[must_use]
    pub fn tag(self) -> [u8; TAG] {
        let ([t0, t1], [c0, c1]) = (TPID_CUSTOMER.to_be_bytes(), self.0.to_be_bytes());
        [t0, t1, c0, c1]
    }
}

impl fmt::Display for VlanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Puts the tag of a VLAN into a frame, behind its addresses: these move into the headroom, and nothing
/// else does. A checksum that is to be completed is found where it is then.
///
/// What else is said of the frame (parse results, the packet in a tunnel's super-frame) is not right any
/// more.
///
/// # Errors
///
/// [`FrameFull`] when there is no headroom for a tag; the frame is left as it was.
pub fn insert_tag(frame: &mut Frame, vlan: VlanId) -> Result<(), FrameFull> {
    frame.push_front(TAG)?;
    let octets = frame.bytes_mut();
    if octets.len() >= MAC_ADDRESSES + TAG {
        octets.copy_within(TAG..TAG + MAC_ADDRESSES, 0);
        octets[MAC_ADDRESSES..MAC_ADDRESSES + TAG].copy_from_slice(&vlan.tag());
    }
    let mut offload = frame.offload();
    if let Checksum::Partial { start, .. } = &mut offload.checksum {
        *start = start.saturating_add(TAG_OCTETS);
        frame.set_offload(offload);
    }
    Ok(())
}

/// Takes the tag of a VLAN out of a frame, if that is its first.
///
/// # Errors
///
/// Why it is no frame of the VLAN's: [`DropReason::Vlan`] if it has another tag, or none;
/// [`DropReason::FrameLength`] if nothing is behind the tag; [`DropReason::OffloadHeader`] if a checksum is to start before
/// that. The frame is then left as it was.
pub fn remove_tag(frame: &mut Frame, vlan: VlanId) -> Result<(), DropReason> {
    let (_, behind) = frame
        .bytes()
        .split_at_checked(MAC_ADDRESSES)
        .ok_or(DropReason::FrameLength)?;
    let Some((&[t0, t1, c0, c1], rest)) = behind.split_first_chunk::<TAG>() else {
        return Err(DropReason::FrameLength);
    };
    let (tpid, control) = (u16::from_be_bytes([t0, t1]), u16::from_be_bytes([c0, c1]));
    if tpid != TPID_CUSTOMER || !vlan.is_in(control) {
        return Err(DropReason::Vlan);
    }
    if rest.len() < LEAST_BEHIND {
        return Err(DropReason::FrameLength);
    }
    move_checksum(frame, TAG_OCTETS)?;
    frame.bytes_mut().copy_within(..MAC_ADDRESSES, TAG);
    frame.trim_front(TAG);
    Ok(())
}

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
