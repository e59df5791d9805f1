//! Why packets are dropped, and how many were.
//!
//! Each reason exists once, here. Its label is the name of its counter everywhere: in
//! `nos-relay show counters`, in JSON and in the documentation.

use core::fmt;

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $label:literal,)+) => {
        /// Why a packet was dropped.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum DropReason {
            $($(#[$doc])* $name,)+
        }

        impl DropReason {
            /// Every reason, in the order of declaration.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// The stable name of this reason's counter: lower case, hyphenated.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)+ }
            }
        }
    };
}

reasons! {
    // Link layer.
    /// Shorter than an Ethernet header, or longer than a buffer.
    FrameLength = "frame-length",
    /// The virtio-net header describes something that the frame is not.
    OffloadHeader = "offload-header",
    /// Not IPv4, IPv6 or ARP.
    EtherType = "ethertype",
    /// Tagged for a VLAN, which the receiver is not in (IEEE 802.1Q).
    Vlan = "vlan",
    /// Unicast to a MAC address that is not the receiver's.
    OtherHost = "other-host",
    /// ARP that is truncated or not for IPv4 over Ethernet (RFC 826).
    ArpMalformed = "arp-malformed",
    /// Neighbor Discovery that fails the checks of RFC 4861 §6.1 and §7.1.
    NdpMalformed = "ndp-malformed",
    /// A message about groups that fails the checks of RFC 9777 §6.2 (MLD) or §5.1.14, or of RFC 9776
    /// §7.1 (IGMP).
    GroupMessageMalformed = "group-message-malformed",

    // Network layer, as parsed.
    /// IPv4 version, header length or options are impossible (RFC 1812 §5.2.2).
    Ipv4Header = "ipv4-header",
    /// The IPv4 header checksum is wrong.
    Ipv4Checksum = "ipv4-checksum",
    /// IPv6 version or extension headers are impossible (RFC 8200 §4).
    Ipv6Header = "ipv6-header",
    /// The IP length disagrees with the frame's.
    IpLength = "ip-length",
    /// A TCP, UDP or ICMP header is truncated or contradicts itself.
    TransportHeader = "transport-header",
    /// The TCP, UDP or ICMP checksum is wrong.
    TransportChecksum = "transport-checksum",
    /// A first fragment that hides its transport header (RFC 1858, RFC 7112).
    TinyFragment = "tiny-fragment",
    /// A source address that no packet on the wire may have (RFC 1812 §5.3.7).
    MartianSource = "martian-source",
    /// A destination address that may not be forwarded (RFC 1812 §5.3.7).
    MartianDestination = "martian-destination",

    // Source checks on a container.
    /// The source MAC address is not the attachment's.
    SourceMac = "source-mac",
    /// The source IP address was not given to the attachment (BCP 38).
    SourceAddress = "source-address",
    /// The source port is in none of the attachment's ranges.
    SourcePort = "source-port",
    /// An IP protocol that the attachment has not registered.
    SourceProtocol = "source-protocol",
    /// Multicast or broadcast, which is not carried between containers and the NOS.
    Multicast = "multicast",

    // The channel.
    /// The ring towards the NOS or towards the relay is full.
    RingFull = "ring-full",
    /// For an attachment that has gone, or has not been accepted yet.
    UnknownAttachment = "unknown-attachment",
    /// The NOS had ended before it took the packet, or another took its place before the relay took it.
    NosGone = "nos-gone",

    // Routing.
    /// No route to the destination.
    NoRoute = "no-route",
    /// The route says to discard silently.
    Blackhole = "blackhole",
    /// The route says to refuse.
    UnreachableRoute = "unreachable-route",
    /// TTL or hop limit reached zero in transit.
    TtlExceeded = "ttl-exceeded",
    /// Longer than the next hop's MTU and not to be fragmented.
    TooBig = "too-big",
    /// The next hop's MAC address could not be resolved.
    NeighborFailed = "neighbor-failed",
    /// Too many packets already wait for the next hop's MAC address.
    NeighborQueueFull = "neighbor-queue-full",
    /// IP options that need a router's help which is refused (source routes, RFC 7126).
    IpOptions = "ip-options",

    // With whom a container may talk ([`crate::ports::Policy`]).
    /// Its sender may not open flows to the port.
    PolicyFrom = "policy-from",
    /// The container may not open flows to the destination.
    PolicyTo = "policy-to",
    /// To a port that gets only what belongs to a flow, or to a later part of a flow that is not known.
    NoFlow = "no-flow",

    // Demultiplexing on a shared address.
    /// Nobody listens on the TCP or UDP port.
    NoListener = "no-listener",
    /// Nobody handles the IP protocol.
    NoProtocol = "no-protocol",
    /// An ICMP message that concerns no flow of ours.
    IcmpUnmatched = "icmp-unmatched",
    /// From a container, and for one of another network
    /// ([`crate::ident::NetworkId`]).
    OtherNetwork = "other-network",
    /// From a NOS in another process, and for no container: it has steered too much here
    /// ([`crate::uplink::Upstream`]).
    Unregistered = "unregistered",
    /// More flows than the table holds, or than their owner may have.
    FlowTableFull = "flow-table-full",
    /// Fragments of a datagram overlap (RFC 5722).
    FragmentOverlap = "fragment-overlap",
    /// The same fragment came before.
    FragmentDuplicate = "fragment-duplicate",
    /// The first fragment did not arrive in time.
    FragmentTimeout = "fragment-timeout",
    /// More fragments wait for their first than may be held.
    FragmentQueueFull = "fragment-queue-full",

    // Local termination.
    /// A local service has too many connections, or its buffer is full.
    LocalQueueFull = "local-queue-full",
    /// Understood, and asking for nothing.
    Ignored = "ignored",

    // Buffers and devices.
    /// No free buffer.
    NoBuffer = "no-buffer",
    /// Its owner has as many packets waiting as it may ([`crate::share`]).
    OverShare = "over-share",
    /// The device's queue is full.
    DeviceFull = "device-full",
    /// The device refused the frame.
    DeviceError = "device-error",
    /// The device's peer said of a frame in shared memory what cannot be.
    BadDescriptor = "bad-descriptor",
    /// The device has gone or is down.
    DeviceGone = "device-gone",
}

impl DropReason {
    /// How many reasons there are.
    pub const COUNT: usize = Self::ALL.len();
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// A counter for each [`DropReason`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DropCounters([u64; DropReason::COUNT]);

impl Default for DropCounters {
    fn default() -> Self {
        Self([0; DropReason::COUNT])
    }
}

impl DropCounters {
    /// Counts `packets` dropped for `reason`.
    pub fn add(&mut self, reason: DropReason, packets: u64) {
        self.0[reason as usize] += packets;
    }

    /// Packets dropped for `reason`.
    #[must_use]
    pub fn of(&self, reason: DropReason) -> u64 {
        self.0[reason as usize]
    }

    /// Packets dropped for any reason.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// The reasons that occurred, with their counts.
    pub fn nonzero(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL
            .iter()
            .map(|&reason| (reason, self.of(reason)))
            .filter(|&(_, n)| n > 0)
    }

    /// Adds all of `other`'s counts to these.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine += theirs;
        }
    }
}

/// What became of every packet that one stage of the data path has seen.
///
/// At any time `received + originated == sent + consumed + drops.total() + held`, where `held` is
/// what the stage keeps for later (neighbor queues, fragments, transmit queues).
/// A GSO super-frame counts as one packet; cutting it into `n` originates `n - 1`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    /// Packets taken in from devices and from the channel.
    pub received: u64,
    /// Packets made here: ICMP errors, resets, ARP and NDP of our own, segments and fragments
    /// beyond the first.
    pub originated: u64,
    /// Packets handed on to a device or to the channel.
    pub sent: u64,
    /// Packets whose way ends here by design: answered, or delivered to the local stack.
    pub consumed: u64,
    /// Packets dropped, by reason. One that provoked an ICMP error or a reset counts here too.
    pub drops: DropCounters,
}

impl Ledger {
    /// Counts one packet dropped for `reason`.
    pub fn drop(&mut self, reason: DropReason) {
        self.drops.add(reason, 1);
    }

    /// How many packets must be held now, for nothing to be lost; negative if some were counted
    /// twice.
    #[must_use]
    pub fn unaccounted(&self) -> i128 {
        i128::from(self.received) + i128::from(self.originated)
            - i128::from(self.sent)
            - i128::from(self.consumed)
            - i128::from(self.drops.total())
    }

    /// Adds all of `other`'s counts to these.
    pub fn merge(&mut self, other: &Self) {
        self.received += other.received;
        self.originated += other.originated;
        self.sent += other.sent;
        self.consumed += other.consumed;
        self.drops.merge(&other.drops);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_unique_and_hyphenated() {
        let labels: std::collections::BTreeSet<_> = DropReason::ALL
            .iter()
            .map(|reason| reason.label())
            .collect();
        assert_eq!(labels.len(), DropReason::COUNT);
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        assert!(labels.iter().all(|label| label.chars().all(plain)));
    }

    #[test]
    fn a_reason_indexes_its_own_counter() {
        let mut counters = DropCounters::default();
        for (n, &reason) in DropReason::ALL.iter().enumerate() {
            counters.add(reason, n as u64);
        }
        for (n, &reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(counters.of(reason), n as u64);
        }
    }

    #[test]
    fn the_ledger_finds_what_is_missing() {
        let mut ledger = Ledger {
            received: 5,
            originated: 1,
            sent: 3,
            consumed: 1,
            ..Ledger::default()
        };
        ledger.drop(DropReason::NoRoute);
        assert_eq!(ledger.unaccounted(), 1);
        ledger.sent += 2;
        assert_eq!(ledger.unaccounted(), -1);
    }
}
