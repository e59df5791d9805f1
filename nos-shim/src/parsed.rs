//! What the parser learns of a frame, which travels with it.

use bitflags::bitflags;

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
