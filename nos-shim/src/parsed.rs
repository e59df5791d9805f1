//! What the parser learns of a frame, which travels with it.

use bitflags::bitflags;

use crate::packet::{Fragment, Ports};

bitflags! {
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub(crate) struct Flags: u8 {
        const IPV6 = 1;
        /// Offset zero, and more follow.
        const FIRST_FRAGMENT = 1 << 1;
        /// Any other fragment: there is no transport header.
        const LATER_FRAGMENT = 1 << 2;
        const DONT_FRAGMENT = 1 << 3;
        /// IPv4 options, or IPv6 hop-by-hop options.
        const OPTIONS = 1 << 4;
        /// TCP or UDP, with its header in this packet.
        const PORTS = 1 << 5;
        /// A routing header that still names stations.
        const ROUTED = 1 << 6;
    }
}

/// What the parser learnt of a frame. Offsets count octets from the frame's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parsed {
    /// Start of the transport header, or of the payload of a later fragment.
    pub(crate) l4: u16,
    /// End of the transport header, where the payload starts; equals `l4` where that is not known.
    pub(crate) payload: u16,
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
    /// Start of the fragment header of an IPv6 fragment.
    pub(crate) fragment_header: u16,
    pub(crate) protocol: u8,
    pub(crate) flags: Flags,
}

/// What those who have no [`Packet`](crate::packet::Packet) read of it, as they have parsed octets of their
/// own.
impl Parsed {
    /// Whether this is IPv6.
    #[must_use]
    #[inline]
    pub fn is_ipv6(&self) -> bool {
        self.flags.contains(Flags::IPV6)
    }

    /// As [`Packet::fragment`](crate::packet::Packet::fragment).
    #[must_use]
    #[inline]
    pub fn fragment(&self) -> Fragment {
        if self.flags.contains(Flags::LATER_FRAGMENT) {
            Fragment::Later
        } else if self.flags.contains(Flags::FIRST_FRAGMENT) {
            Fragment::First
        } else {
            Fragment::Whole
        }
    }

    /// As [`Packet::dont_fragment`](crate::packet::Packet::dont_fragment).
    #[must_use]
    #[inline]
    pub fn dont_fragment(&self) -> bool {
        self.flags.intersects(Flags::DONT_FRAGMENT | Flags::IPV6)
    }

    /// Whether there are IPv4 options, or IPv6 hop-by-hop options.
    #[must_use]
    #[inline]
    pub fn has_options(&self) -> bool {
        self.flags.contains(Flags::OPTIONS)
    }

    /// Whether an IPv6 routing header still names stations (segments left is not zero).
    #[must_use]
    #[inline]
    pub fn has_segments_left(&self) -> bool {
        self.flags.contains(Flags::ROUTED)
    }

    /// The protocol of the transport header, after all IPv6 extension headers that were followed.
    #[must_use]
    #[inline]
    pub fn protocol(&self) -> u8 {
        self.protocol
    }

    /// The ports of TCP or UDP; `None` for other protocols and for later fragments.
    #[must_use]
    #[inline]
    pub fn ports(&self) -> Option<Ports> {
        self.flags.contains(Flags::PORTS).then_some(Ports {
            source: self.source_port,
            destination: self.destination_port,
        })
    }

    /// Octets from the frame's start to the transport header, or to the payload of a later fragment.
    #[must_use]
    #[inline]
    pub fn transport_offset(&self) -> u16 {
        self.l4
    }

    /// Octets from the frame's start to the payload of TCP or UDP; for other protocols, the same as
    /// [`Self::transport_offset`].
    #[must_use]
    #[inline]
    pub fn payload_offset(&self) -> u16 {
        self.payload
    }
}
