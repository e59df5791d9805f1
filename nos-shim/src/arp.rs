//! ARP for IPv4 over Ethernet (RFC 826, RFC 5227): frames in, values out, and back.

use core::net::Ipv4Addr;

use crate::drop::DropReason;
use crate::frame::{ETHERNET_HEADER, Frame, FrameFull, Offload};
use crate::ident::MacAddr;
use crate::packet::{ETHERTYPE_ARP, ETHERTYPE_IPV4, ether_type};

/// Octets of an ARP frame, Ethernet header included, without padding.
pub const ARP_FRAME: usize = ETHERNET_HEADER + ARP_LEN;

const ARP_LEN: usize = 28;

/// Hardware type IEEE 802, which some stations on Ethernet give (RFC 1042). Linux takes it for Ethernet.
const IEEE_802: [u8; 2] = [0, 6];

/// Hardware type Ethernet, protocol type IPv4, and the lengths of their addresses.
const PREAMBLE: [u8; 6] = {
    let [p0, p1] = ETHERTYPE_IPV4.to_be_bytes();
    [0, 1, p0, p1, 6, 4]
};

/// What an ARP message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Who has the target address?
    Request,
    /// The sender has the sender address.
    Reply,
    /// Anything else; RFC 826 knows no more, later ones do (RFC 903, RFC 2390).
    Other(u16),
}

impl From<u16> for Operation {
    fn from(number: u16) -> Self {
        match number {
            1 => Self::Request,
            2 => Self::Reply,
            other => Self::Other(other),
        }
    }
}

impl From<Operation> for u16 {
    fn from(operation: Operation) -> Self {
        match operation {
            Operation::Request => 1,
            Operation::Reply => 2,
            Operation::Other(other) => other,
        }
    }
}

/// An ARP message.
///
/// [`Self::parse`] checks structure only. Whether the addresses are plausible (unicast, on-link,
/// the same as in the Ethernet header) is up to who believes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// What it is for.
    pub operation: Operation,
    /// The hardware address that belongs to the sender address.
    pub sender_mac: MacAddr,
    /// Whose message it is; unspecified in a probe.
    pub sender_ip: Ipv4Addr,
    /// Of no meaning in a request.
    pub target_mac: MacAddr,
    /// Which address is asked about, or who asked.
    pub target_ip: Ipv4Addr,
}

impl Arp {
    /// Reads a frame from its Ethernet header on. What follows the message is padding.
    ///
    /// # Errors
    ///
    /// [`DropReason::ArpMalformed`] for anything but ARP for IPv4 over Ethernet.
    pub fn parse(frame: &[u8]) -> Result<Self, DropReason> {
        Self::read(frame).ok_or(DropReason::ArpMalformed)
    }

    fn read(frame: &[u8]) -> Option<Self> {
        let arp = ether_type(frame)? == ETHERTYPE_ARP;
        let rest = &mut frame.get(ETHERNET_HEADER..)?;
        let mut preamble: [u8; 6] = take(rest)?;
        if preamble.starts_with(&IEEE_802) {
            preamble[1] = PREAMBLE[1];
        }
        (arp && preamble == PREAMBLE).then_some(())?;
        Some(Self {
            operation: u16::from_be_bytes(take(rest)?).into(),
            sender_mac: MacAddr(take(rest)?),
            sender_ip: take::<4>(rest)?.into(),
            target_mac: MacAddr(take(rest)?),
            target_ip: take::<4>(rest)?.into(),
        })
    }

    /// Makes `frame` this message, from [`Self::sender_mac`] to `destination`, in place of what it
    /// held. The frame is not padded: where Ethernet's minimum length matters, the driver pads.
    ///
    /// # Errors
    ///
    /// [`FrameFull`] when the frame's buffer is shorter than [`ARP_FRAME`].
    pub fn write(&self, frame: &mut Frame, destination: MacAddr) -> Result<(), FrameFull> {
        frame.set_len(ARP_FRAME)?;
        frame.set_offload(Offload::NONE);
        let mut rest = frame.bytes_mut();
        for field in [
            &destination.0[..],
            &self.sender_mac.0,
            &ETHERTYPE_ARP.to_be_bytes(),
            &PREAMBLE,
            &u16::from(self.operation).to_be_bytes(),
            &self.sender_mac.0,
            &self.sender_ip.octets(),
            &self.target_mac.0,
            &self.target_ip.octets(),
        ] {
            let (place, behind) = rest.split_at_mut(field.len());
            place.copy_from_slice(field);
            rest = behind;
        }
        Ok(())
    }

    /// A question for the hardware address of `target`.
    #[must_use]
    pub fn request(sender_mac: MacAddr, sender_ip: Ipv4Addr, target: Ipv4Addr) -> Self {
        Self {
            operation: Operation::Request,
            sender_mac,
            sender_ip,
            target_mac: MacAddr::ZERO,
            target_ip: target,
        }
    }

    /// The answer to this request: `mac` has the address that was asked about.
    #[must_use]
    pub fn reply(&self, mac: MacAddr) -> Self {
        Self {
            operation: Operation::Reply,
            sender_mac: mac,
            sender_ip: self.target_ip,
            target_mac: self.sender_mac,
            target_ip: self.sender_ip,
        }
    }

    /// Whether it only wants to know if the address is in use (RFC 5227 §1.1): a request whose
    /// sender has no address yet, so that nobody can learn anything wrong from it.
    #[must_use]
    pub fn is_probe(&self) -> bool {
        self.operation == Operation::Request && self.sender_ip.is_unspecified()
    }

    /// Whether the sender tells all of its own address and asks nothing: an announcement
    /// (RFC 5227 §1.1) or any other gratuitous ARP, as request or reply (RFC 5227 §3).
    #[must_use]
    pub fn is_announcement(&self) -> bool {
        self.sender_ip == self.target_ip
            && !self.sender_ip.is_unspecified()
            && matches!(self.operation, Operation::Request | Operation::Reply)
    }
}

/// Takes the first `N` octets off `rest`.
fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (field, behind) = rest.split_first_chunk()?;
    *rest = behind;
    Some(*field)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::FramePool;
    use etherparse::{ArpHardwareId, ArpOperation, ArpPacketSlice, EtherType, Ethernet2Slice};
    use proptest::prelude::*;

    const A: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
    const B: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);

    fn arp() -> impl Strategy<Value = Arp> {
        let operation = prop_oneof![Just(1_u16), Just(2), any::<u16>()];
        let fields = (operation, any::<[[u8; 6]; 2]>(), any::<[u32; 2]>());
        fields.prop_map(|(operation, macs, ips)| Arp {
            operation: operation.into(),
            sender_mac: MacAddr(macs[0]),
            sender_ip: ips[0].into(),
            target_mac: MacAddr(macs[1]),
            target_ip: ips[1].into(),
        })
    }

    fn written(arp: &Arp, destination: MacAddr) -> Vec<u8> {
        let mut frame = FramePool::new(1, 100).alloc().unwrap();
        arp.write(&mut frame, destination).unwrap();
        frame.bytes().to_vec()
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(arp in arp(), padding in 0..30_usize) {
            let mut octets = written(&arp, B);
            octets.resize(ARP_FRAME + padding, 0xee);
            prop_assert_eq!(Arp::parse(&octets), Ok(arp));
        }

        #[test]
        fn etherparse_reads_the_same(arp in arp()) {
            let octets = written(&arp, B);
            let ethernet = Ethernet2Slice::from_slice_without_fcs(&octets).unwrap();
            prop_assert_eq!(ethernet.ether_type(), EtherType::ARP);
            prop_assert_eq!(ethernet.source(), arp.sender_mac.0);
            prop_assert_eq!(ethernet.destination(), B.0);
            let theirs = ArpPacketSlice::from_slice(ethernet.payload().payload).unwrap();
            prop_assert_eq!(theirs.hw_addr_type(), ArpHardwareId::ETHERNET);
            prop_assert_eq!(theirs.proto_addr_type(), EtherType::IPV4);
            prop_assert_eq!(theirs.operation(), ArpOperation(arp.operation.into()));
            prop_assert_eq!(theirs.sender_hw_addr(), &arp.sender_mac.0);
            prop_assert_eq!(theirs.sender_protocol_addr(), &arp.sender_ip.octets());
            prop_assert_eq!(theirs.target_hw_addr(), &arp.target_mac.0);
            prop_assert_eq!(theirs.target_protocol_addr(), &arp.target_ip.octets());
        }

        #[test]
        fn any_octets_are_judged(octets in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = Arp::parse(&octets);
        }
    }

    #[test]
    fn every_field_that_must_be_fixed_is_checked() {
        let good = written(
            &Arp::request(A, [10, 0, 0, 1].into(), [10, 0, 0, 2].into()),
            B,
        );
        for at in 12..20 {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            assert_eq!(
                Arp::parse(&bad),
                Err(DropReason::ArpMalformed),
                "octet {at}"
            );
        }
        for len in 0..ARP_FRAME {
            assert_eq!(Arp::parse(&good[..len]), Err(DropReason::ArpMalformed));
        }
    }

    /// Linux 6.18 answers it with the type of Ethernet.
    #[test]
    fn ieee_802_is_taken_for_ethernet() {
        let request = Arp::request(A, [10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let mut octets = written(&request, B);
        octets[15] = 6;
        assert_eq!(Arp::parse(&octets), Ok(request));
        octets[14] = 1;
        assert_eq!(Arp::parse(&octets), Err(DropReason::ArpMalformed));
    }

    #[test]
    fn probes_and_announcements_are_told_apart() {
        let (none, ip, other) = (
            Ipv4Addr::UNSPECIFIED,
            Ipv4Addr::new(10, 0, 0, 1),
            Ipv4Addr::new(10, 0, 0, 2),
        );
        let kinds = |arp: Arp| (arp.is_probe(), arp.is_announcement());
        assert_eq!(kinds(Arp::request(A, none, ip)), (true, false));
        assert_eq!(kinds(Arp::request(A, ip, ip)), (false, true));
        assert_eq!(kinds(Arp::request(A, ip, other)), (false, false));
        assert_eq!(kinds(Arp::request(A, none, none)), (true, false));
        let gratuitous_reply = Arp::request(A, ip, ip).reply(A);
        assert_eq!(kinds(gratuitous_reply), (false, true));
        assert_eq!(kinds(Arp::request(A, none, ip).reply(B)), (false, false));
    }

    #[test]
    fn a_reply_swaps_the_roles() {
        let request = Arp::request(A, [10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let expected = Arp {
            operation: Operation::Reply,
            sender_mac: B,
            sender_ip: [10, 0, 0, 2].into(),
            target_mac: A,
            target_ip: [10, 0, 0, 1].into(),
        };
        assert_eq!(request.reply(B), expected);
    }

    #[test]
    fn offload_state_of_the_old_frame_is_forgotten() {
        let mut frame = FramePool::new(1, 2000).copy_from(&[0; 1500]).unwrap();
        frame.set_offload(Offload {
            checksum: crate::frame::Checksum::Verified,
            segmentation: None,
        });
        Arp::request(A, [10, 0, 0, 1].into(), [10, 0, 0, 2].into())
            .write(&mut frame, B)
            .unwrap();
        assert_eq!((frame.len(), frame.offload()), (ARP_FRAME, Offload::NONE));
    }
}
