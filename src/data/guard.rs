//! What a container may send: source checks between containers that share an address (BCP 38).
//!
//! # Theory of operation
//!
//! Containers are told apart by MAC address, IP address, and TCP or UDP port. Each must be the
//! attachment's own, or another container's flows could be disturbed. Nothing is rewritten: what
//! does not fit is dropped, with a reason that has a counter. Who opens a flow from a foreign port is
//! told so by the [relay](crate::data::relay).
//!
//! | packet | allowed if |
//! |---|---|
//! | any | from the container's MAC address to the relay's, from one of its IP addresses, to a unicast address beyond the link |
//! | TCP, UDP | the source port is in one of its ranges, for listening or ephemeral; with `outside = "learn"` always, as the NOS knows whose a port is |
//! | ICMP echo, both ways | always: the NOS tells flows apart by their ids |
//! | ICMP errors | the quoted packet was for the container: its address and port (RFC 5927 §4) |
//! | other ICMP | never: redirects, timestamps and the like are the NOS's affair; but see below |
//! | later fragments | always: they carry no port. A container can so disturb another's fragmented datagram to the same destination if it guesses the identification, as any two processes on one host can |
//! | other protocols | never: none is registered; but see below |
//! | IPv6 headers at fault | always: the NOS tells the container, and sends no such packet on |
//!
//! A container with addresses [of its own](nos_shim::ports::AddressMode::Routed) may send from them whatever
//! a host behind a router may: of the table, the first line and the last hold for it.
//!
//! A container that shares the link-local address of an uplink talks from it with that link:
//! [`Guard::check_on_link`] judges such packets by the rules above, but that their destination may be
//! link-local, though not the relay's.
//!
//! TTL and hop limit are the container's business: outside, it *is* the NOS host.
//!
//! What a container sends to its own addresses comes here as well. Other protocols and other ICMP go
//! back to it then, instead of being dropped: see [`Guard::is_of_its_concern_alone`].

use nos_shim::drop::DropReason;
use nos_shim::icmp::Quote;
use nos_shim::martian;
use nos_shim::packet::{Addresses, Fragment, Packet, protocol};
use nos_shim::ports::{Claim, ClaimKind, Outside, PortRange, Transport};

use crate::data::link::ContainerLink;
use crate::data::port_set::PortSet;

/// Judges the packets of one attachment.
#[derive(Clone, Debug)]
pub struct Guard {
    link: ContainerLink,
    tcp: PortSet,
    udp: PortSet,
    /// Whether the NOS judges other ports than those.
    learns: bool,
    /// Whether its addresses are its own, and nothing else is asked.
    routed: bool,
}

impl Guard {
    /// A guard for the container on `link` which owns the ports of `claims`, and which may use others
    /// if `outside` says so.
    #[must_use]
    pub fn new(link: ContainerLink, claims: &[Claim], outside: Outside) -> Self {
        let ports = |transport| {
            let of_transport = claims
                .iter()
                .filter(move |claim| claim.transport == transport);
            of_transport.map(|claim| claim.range).collect()
        };
        Self {
            link,
            tcp: ports(Transport::Tcp),
            udp: ports(Transport::Udp),
            learns: outside == Outside::Learn,
            routed: false,
        }
    }

    /// A guard for the container on `link` which has its addresses for its own.
    #[must_use]
    pub fn of_own_addresses(link: ContainerLink) -> Self {
        let all = |transport| Claim {
            transport,
            range: PortRange::ALL,
            kind: ClaimKind::Listen,
        };
        let claims = [Transport::Tcp, Transport::Udp].map(all);
        Self {
            routed: true,
            ..Self::new(link, &claims, Outside::Drop)
        }
    }

    /// The link that it guards.
    #[must_use]
    #[inline]
    pub fn link(&self) -> &ContainerLink {
        &self.link
    }

    /// Whether the container may send `packet`.
    ///
    /// # Errors
    ///
    /// The reason to drop it.
    // Every packet comes through here; of two callers, one is cold.
    #[inline(always)]
    pub fn check(&self, packet: &Packet) -> Result<(), DropReason> {
        self.link.check_unicast(packet.frame())?;
        let addresses = packet.addresses();
        if !self.fits(addresses) {
            return Err(address_fault(addresses, &self.link));
        }
        match packet.ports() {
            Some(ports) if self.owns(packet.protocol(), ports.source) => Ok(()),
            Some(_) => self.check_foreign_port(packet.protocol()),
            None => self.check_without_ports(packet, addresses),
        }
    }

    /// Whether the container may send `packet` on the link whose link-local address it shares. `None`
    /// of a packet that does not come from that address, or goes to the relay itself.
    pub fn check_on_link(&self, packet: &Packet) -> Option<Result<(), DropReason>> {
        let addresses = packet.addresses();
        let Addresses::V6 {
            source,
            destination,
        } = addresses
        else {
            return None;
        };
        let shared = self.link.shared_link_local() == Some(source);
        let to_relay = destination == self.link.relay_link_local();
        (shared && !to_relay).then(|| {
            self.link.check_unicast(packet.frame())?;
            if martian::is_group(destination.into()) {
                return Err(DropReason::Multicast);
            }
            if martian::source_is_martian(destination.into()) {
                return Err(DropReason::MartianDestination);
            }
            match packet.ports() {
                Some(ports) if self.owns(packet.protocol(), ports.source) => Ok(()),
                Some(_) => self.check_foreign_port(packet.protocol()),
                None => self.check_without_ports(packet, addresses),
            }
        })
    }

    /// Whether the source is the container's, and the destination a unicast address beyond the
    /// link.
    #[inline(always)]
    fn fits(&self, addresses: Addresses) -> bool {
        let own = self.link.addresses();
        // What may be a source on the wire is a unicast address.
        match addresses {
            Addresses::V4 {
                source,
                destination,
            } => own.contains_v4(source) && !martian::source_is_martian(destination.into()),
            Addresses::V6 {
                source,
                destination,
            } => {
                own.contains_v6(source)
                    && !martian::source_is_martian(destination.into())
                    && !destination.is_unicast_link_local()
            }
        }
    }

    /// Whether a packet of a protocol that the NOS does not divide goes from the container to itself, or
    /// an error about such a packet. `packet` is from one of its addresses.
    ///
    /// Its kernel sends those to the relay as all others to the shared addresses, and may have them back:
    /// nobody else sees them.
    #[must_use]
    pub fn is_of_its_concern_alone(&self, packet: &Packet) -> bool {
        let undivided = match Quote::parse(packet) {
            Some(quote) => quote.ports.is_none() && quote.echo_id.is_none(),
            None => packet.ports().is_none(),
        };
        undivided && self.link.addresses().contains(packet.destination())
    }

    #[inline]
    fn owns(&self, protocol: u8, port: u16) -> bool {
        match protocol {
            protocol::TCP => self.tcp.contains(port),
            protocol::UDP => self.udp.contains(port),
            _ => false,
        }
    }

    /// The NOS knows whose a port is that is none of the container's.
    #[cold]
    fn check_foreign_port(&self, protocol: u8) -> Result<(), DropReason> {
        match protocol {
            protocol::TCP | protocol::UDP if self.learns || self.routed => Ok(()),
            _ => Err(DropReason::SourcePort),
        }
    }

    fn check_without_ports(&self, packet: &Packet, addresses: Addresses) -> Result<(), DropReason> {
        let ipv6 = packet.is_ipv6();
        // The NOS answers it, and lets it go no further.
        if self.routed || packet.fault().is_some() {
            return Ok(());
        }
        if packet.fragment() == Fragment::Later {
            return check_later_fragment(ipv6, packet.protocol());
        }
        match packet.icmp().map(|(kind, _)| icmp_class(ipv6, kind)) {
            Some(IcmpClass::Echo) => Ok(()),
            Some(IcmpClass::Error) if self.was_sent_error(packet, addresses) => Ok(()),
            Some(IcmpClass::Error) => Err(DropReason::IcmpUnmatched),
            Some(IcmpClass::Other) | None => Err(DropReason::SourceProtocol),
        }
    }

    /// Whether the packet that an ICMP error quotes came from where the error goes, and was for
    /// this container.
    fn was_sent_error(&self, packet: &Packet, addresses: Addresses) -> bool {
        Quote::parse(packet).is_some_and(|quote| {
            quote.addresses.source() == addresses.destination()
                && self.link.shares(quote.addresses.destination())
                && self.was_addressed(&quote)
        })
    }

    fn was_addressed(&self, quote: &Quote) -> bool {
        match quote.ports {
            Some(ports) => self.learns || self.owns(quote.protocol, ports.destination),
            None => quote.echo_id.is_some(),
        }
    }
}

/// What is wrong with addresses of which something is wrong.
#[cold]
fn address_fault(addresses: Addresses, link: &ContainerLink) -> DropReason {
    let (source, destination) = (addresses.source(), addresses.destination());
    if !link.addresses().contains(source) {
        if martian::source_is_martian(source) {
            DropReason::MartianSource
        } else {
            DropReason::SourceAddress
        }
    } else if martian::is_group(destination) {
        DropReason::Multicast
    } else {
        // Link-local as well: a router must not forward it (RFC 4291 §2.5.6).
        DropReason::MartianDestination
    }
}

/// A later fragment's protocol is that of its datagram, or in IPv6 that of an extension header.
fn check_later_fragment(ipv6: bool, protocol: u8) -> Result<(), DropReason> {
    let known = match protocol {
        protocol::TCP | protocol::UDP => true,
        protocol::ICMP => !ipv6,
        protocol::ICMPV6
        | protocol::ROUTING
        | protocol::AUTHENTICATION
        | protocol::DESTINATION_OPTIONS => ipv6,
        _ => false,
    };
    if known {
        Ok(())
    } else {
        Err(DropReason::SourceProtocol)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum IcmpClass {
    Echo,
    Error,
    Other,
}

fn icmp_class(ipv6: bool, kind: u8) -> IcmpClass {
    match (ipv6, kind) {
        (false, 0 | 8) | (true, 128 | 129) => IcmpClass::Echo,
        // Unreachable, time exceeded, parameter problem; source quench is no more (RFC 6633).
        (false, 3 | 11 | 12) | (true, 1..=4) => IcmpClass::Error,
        _ => IcmpClass::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{IpNumber, PacketBuilder};
    use nos_shim::frame::{FramePool, MAX_FRAME};
    use nos_shim::ident::MacAddr;
    use nos_shim::ports::{ClaimKind, PortRange};
    use proptest::prelude::*;
    use std::net::{IpAddr, Ipv4Addr};

    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 0x0c]);
    const RELAY: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xff]);
    const OWN: &str = "203.0.113.1";
    const FAR: &str = "192.0.2.7";
    const OWN6: &str = "2001:db8:1::1";
    const FAR6: &str = "2001:db8:9::9";

    fn guard() -> Guard {
        let claim = |transport, first, last, kind| Claim {
            transport,
            range: PortRange::new(first, last).unwrap(),
            kind,
        };
        let claims = [
            claim(Transport::Tcp, 20000, 20999, ClaimKind::Listen),
            claim(Transport::Udp, 53, 53, ClaimKind::Listen),
            claim(Transport::Tcp, 40000, 44999, ClaimKind::Ephemeral),
            claim(Transport::Udp, 40000, 44999, ClaimKind::Ephemeral),
        ];
        let addresses = [OWN.parse().unwrap(), OWN6.parse().unwrap()];
        Guard::new(
            ContainerLink::new(MAC, RELAY, &addresses, 1500),
            &claims,
            Outside::Drop,
        )
    }

    fn check(octets: &[u8]) -> Result<(), DropReason> {
        let mut pool = FramePool::new(1, MAX_FRAME);
        let packet = Packet::parse(pool.copy_from(octets).unwrap());
        guard().check(&packet.map_err(|rejected| rejected.reason)?)
    }

    fn builder(
        source: IpAddr,
        destination: IpAddr,
    ) -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
        let ethernet = PacketBuilder::ethernet2(MAC.0, RELAY.0);
        match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                ethernet.ip(etherparse::IpHeaders::Ipv4(
                    etherparse::Ipv4Header::new(
                        0,
                        64,
                        IpNumber::TCP,
                        source.octets(),
                        destination.octets(),
                    )
                    .unwrap(),
                    Default::default(),
                ))
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                ethernet.ip(etherparse::IpHeaders::Ipv6(
                    etherparse::Ipv6Header {
                        source: source.octets(),
                        destination: destination.octets(),
                        hop_limit: 64,
                        ..Default::default()
                    },
                    Default::default(),
                ))
            }
            mixed => panic!("{mixed:?} are of two families"),
        }
    }

    fn syn(source: &str, destination: &str, port: u16) -> Vec<u8> {
        let mut octets = Vec::new();
        builder(source.parse().unwrap(), destination.parse().unwrap())
            .tcp(port, 443, 1, 1000)
            .syn()
            .write(&mut octets, b"")
            .unwrap();
        octets
    }

    fn datagram(source: &str, destination: &str, port: u16) -> Vec<u8> {
        let mut octets = Vec::new();
        builder(source.parse().unwrap(), destination.parse().unwrap())
            .udp(port, 443)
            .write(&mut octets, b"payload")
            .unwrap();
        octets
    }

    fn raw(source: &str, destination: &str, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut octets = Vec::new();
        builder(source.parse().unwrap(), destination.parse().unwrap())
            .write(&mut octets, IpNumber(protocol), payload)
            .unwrap();
        octets
    }

    /// What becomes of an IPv6 packet with a fragment header that no host gets past.
    fn check_fault(source: &str, destination: &str, rest: &[u8]) -> Result<(), DropReason> {
        let mut octets = raw(source, destination, 253, rest);
        octets[20] = protocol::FRAGMENT;
        let mut pool = FramePool::new(1, MAX_FRAME);
        let rejected = Packet::parse(pool.copy_from(&octets).unwrap()).unwrap_err();
        guard().check(&Packet::parse_up_to_fault(rejected).unwrap())
    }

    #[test]
    fn headers_at_fault_pass_from_own_addresses_for_the_nos_to_answer() {
        for rest in [
            &[6, 0, 0, 1, 0, 0, 0, 9, 1, 2, 3, 4, 5, 6, 7, 8][..],
            &[58, 0, 0xff, 0xf8, 0, 0, 0, 9, 1, 2, 3, 4, 5, 6, 7, 8],
            &[58, 0, 0, 9, 0, 0, 0, 9, 1],
            &[58, 0],
        ] {
            assert_eq!(check_fault(OWN6, FAR6, rest), Ok(()), "{rest:?}");
            let foreign = Err(DropReason::SourceAddress);
            assert_eq!(check_fault("2001:db8:1::77", FAR6, rest), foreign);
            let group = Err(DropReason::Multicast);
            assert_eq!(check_fault(OWN6, "ff02::1", rest), group);
        }
    }

    #[test]
    fn own_ports_on_own_addresses_pass() {
        for (own, far) in [(OWN, FAR), (OWN6, FAR6)] {
            for port in [20000, 20999, 40000, 44999] {
                assert_eq!(check(&syn(own, far, port)), Ok(()), "tcp {port}");
            }
            for port in [53, 40000, 44999] {
                assert_eq!(check(&datagram(own, far, port)), Ok(()), "udp {port}");
            }
            let other = Err(DropReason::SourcePort);
            for port in [0, 53, 19999, 21000, 39999, 45000, 65535] {
                assert_eq!(check(&syn(own, far, port)), other, "tcp {port}");
            }
            for port in [0, 52, 54, 20000, 45000] {
                assert_eq!(check(&datagram(own, far, port)), other, "udp {port}");
            }
        }
    }

    #[test]
    fn with_learning_foreign_ports_are_the_nos_s_affair() {
        let addresses = [OWN.parse().unwrap(), OWN6.parse().unwrap()];
        let link = ContainerLink::new(MAC, RELAY, &addresses, 1500);
        let guard = Guard::new(link, &[], Outside::Learn);
        let mut pool = FramePool::new(1, MAX_FRAME);
        let mut check = |octets: &[u8]| {
            let packet = Packet::parse(pool.copy_from(octets).unwrap());
            let judged = packet.map_err(|rejected| rejected.reason);
            judged.and_then(|packet| guard.check(&packet))
        };
        for (own, far) in [(OWN, FAR), (OWN6, FAR6)] {
            assert_eq!(check(&syn(own, far, 30_000)), Ok(()));
            assert_eq!(check(&datagram(own, far, 30_000)), Ok(()));
            let foreign = Err(DropReason::SourceAddress);
            assert_eq!(check(&syn(far, own, 30_000)), foreign);
        }
        let sctp = raw(OWN, FAR, 132, &[0; 16]);
        assert_eq!(check(&sctp), Err(DropReason::SourceProtocol));
    }

    #[test]
    fn east_west_on_the_shared_address_passes() {
        assert_eq!(check(&syn(OWN, OWN, 40000)), Ok(()));
        assert_eq!(check(&syn(OWN6, OWN6, 40000)), Ok(()));
    }

    #[test]
    fn on_a_link_the_shared_address_talks_from_own_ports() {
        let own = "fe80::c";
        let relay = RELAY.link_local().to_string();
        let link = ContainerLink::new(MAC, RELAY, &[OWN6.parse().unwrap()], 1500)
            .sharing(Some(own.parse().unwrap()));
        let guard = Guard { link, ..guard() };
        let mut pool = FramePool::new(4, MAX_FRAME);
        let mut check = |octets: &[u8]| {
            let packet = Packet::parse(pool.copy_from(octets).unwrap()).unwrap();
            (guard.check(&packet), guard.check_on_link(&packet))
        };
        let martian = Err(DropReason::MartianDestination);
        for (source, destination, port, on_link) in [
            (own, "fe80::2", 40_000, Some(Ok(()))),
            (own, "fe80::2", 20_000, Some(Ok(()))),
            (own, FAR6, 40_000, Some(Ok(()))),
            (own, "fe80::2", 30_000, Some(Err(DropReason::SourcePort))),
            (own, "ff02::5", 40_000, Some(Err(DropReason::Multicast))),
            (own, "::1", 40_000, Some(martian)),
            // The relay itself, and other sources.
            (own, relay.as_str(), 40_000, None),
            ("fe80::d", "fe80::2", 40_000, None),
            (OWN6, "fe80::2", 40_000, None),
        ] {
            let (routed, found) = check(&syn(source, destination, port));
            assert!(routed.is_err(), "{source} to {destination} {port}");
            assert_eq!(found, on_link, "{source} to {destination} {port}");
        }
        // From elsewhere than the link.
        let mut octets = syn(own, "fe80::2", 40_000);
        octets[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 0x0d]);
        assert_eq!(check(&octets).1, Some(Err(DropReason::SourceMac)));
    }

    #[test]
    fn addresses_are_judged() {
        use DropReason::{MartianDestination, MartianSource, Multicast, SourceAddress};
        for (source, destination, reason) in [
            ("203.0.113.2", FAR, SourceAddress),
            (FAR, OWN, SourceAddress),
            ("10.0.0.1", FAR, SourceAddress),
            ("0.0.0.0", FAR, MartianSource),
            ("127.0.0.1", FAR, MartianSource),
            ("224.0.0.1", FAR, MartianSource),
            ("255.255.255.255", FAR, MartianSource),
            ("240.0.0.1", FAR, MartianSource),
            (OWN, "0.0.0.0", MartianDestination),
            (OWN, "127.0.0.1", MartianDestination),
            (OWN, "240.0.0.1", MartianDestination),
            (OWN, "224.0.0.5", Multicast),
            (OWN, "255.255.255.255", Multicast),
            ("2001:db8:1::2", FAR6, SourceAddress),
            ("fe80::c", FAR6, SourceAddress),
            ("::", FAR6, MartianSource),
            ("::1", FAR6, MartianSource),
            ("ff02::1", FAR6, MartianSource),
            ("::ffff:203.0.113.1", FAR6, MartianSource),
            (OWN6, "::", MartianDestination),
            (OWN6, "::1", MartianDestination),
            (OWN6, "::ffff:192.0.2.7", MartianDestination),
            (OWN6, "fe80::1", MartianDestination),
            (OWN6, "ff02::5", Multicast),
            (OWN6, "ff0e::1", Multicast),
        ] {
            let octets = syn(source, destination, 40000);
            assert_eq!(check(&octets), Err(reason), "{source} to {destination}");
        }
    }

    #[test]
    fn mac_addresses_are_judged_first() {
        let spoofed = |at: usize, value| {
            let mut octets = syn("10.0.0.1", FAR, 1);
            octets[at] = value;
            check(&octets)
        };
        assert_eq!(spoofed(11, 0), Err(DropReason::SourceMac));
        assert_eq!(spoofed(5, 0), Err(DropReason::OtherHost));
        assert_eq!(spoofed(0, 0xff), Err(DropReason::Multicast));
    }

    /// What kernels send of themselves: MLD and IGMP reports, mDNS, DHCP.
    #[test]
    fn multicast_of_the_kernel_is_counted_as_such() {
        let to_group = |mut octets: Vec<u8>, mac: [u8; 6]| {
            octets[..6].copy_from_slice(&mac);
            check(&octets)
        };
        let mld = raw("fe80::c", "ff02::16", 58, &[143, 0, 0, 0, 0, 0, 0, 0]);
        let igmp = raw(OWN, "224.0.0.22", 2, &[0x22, 0, 0, 0, 0, 0, 0, 0]);
        let dhcp = datagram("0.0.0.0", "255.255.255.255", 68);
        let multicast = Err(DropReason::Multicast);
        assert_eq!(to_group(mld, [0x33, 0x33, 0, 0, 0, 0x16]), multicast);
        assert_eq!(to_group(igmp, [1, 0, 0x5e, 0, 0, 0x16]), multicast);
        assert_eq!(to_group(dhcp, [0xff; 6]), multicast);
    }

    #[test]
    fn protocols_without_ports_are_not_registered() {
        let refused = Err(DropReason::SourceProtocol);
        for protocol in [2, 4, 41, 47, 50, 58, 89, 112, 132, 253] {
            assert_eq!(check(&raw(OWN, FAR, protocol, &[0; 40])), refused);
        }
        for protocol in [1, 2, 4, 47, 89, 132, 253] {
            assert_eq!(check(&raw(OWN6, FAR6, protocol, &[0; 40])), refused);
        }
    }

    #[test]
    fn icmp_passes_by_type() {
        let verdict = |kind: u8| check(&raw(OWN, FAR, 1, &[kind, 0, 0, 0, 0, 0, 0, 0]));
        let verdict6 = |kind: u8| check(&raw(OWN6, FAR6, 58, &[kind, 0, 0, 0, 0, 0, 0, 0]));
        for kind in 0..=255 {
            let expected = match kind {
                0 | 8 => Ok(()),
                3 | 11 | 12 => Err(DropReason::IcmpUnmatched),
                _ => Err(DropReason::SourceProtocol),
            };
            assert_eq!(verdict(kind), expected, "ICMP {kind}");
            let expected = match kind {
                128 | 129 => Ok(()),
                1..=4 => Err(DropReason::IcmpUnmatched),
                _ => Err(DropReason::SourceProtocol),
            };
            assert_eq!(verdict6(kind), expected, "ICMPv6 {kind}");
        }
    }

    /// An error of `kind` from the container to `destination`, about the packet in `quoted`.
    fn error(kind: u8, destination: &str, quoted: &[u8]) -> Result<(), DropReason> {
        let message = [&[kind, 0, 0, 0, 0, 0, 0, 0], &quoted[14..]].concat();
        if destination.contains(':') {
            check(&raw(OWN6, destination, 58, &message))
        } else {
            check(&raw(OWN, destination, 1, &message))
        }
    }

    /// A datagram from outside to `port`.
    fn inbound(source: &str, destination: &str, port: u16) -> Vec<u8> {
        let mut octets = Vec::new();
        builder(source.parse().unwrap(), destination.parse().unwrap())
            .udp(443, port)
            .write(&mut octets, b"payload")
            .unwrap();
        octets
    }

    #[test]
    fn errors_about_packets_to_the_container_pass() {
        for kind in [3, 11, 12] {
            assert_eq!(error(kind, FAR, &inbound(FAR, OWN, 53)), Ok(()));
        }
        for kind in 1..=4 {
            assert_eq!(error(kind, FAR6, &inbound(FAR6, OWN6, 53)), Ok(()));
        }
        // The least that a host must quote (RFC 792), and the ports alone.
        let quoted = inbound(FAR, OWN, 53);
        assert_eq!(error(3, FAR, &quoted[..14 + 28]), Ok(()));
        assert_eq!(error(3, FAR, &quoted[..14 + 24]), Ok(()));
        let pong = raw(FAR6, OWN6, 58, &[129, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(error(3, FAR6, &pong), Ok(()));
    }

    #[test]
    fn errors_about_other_packets_are_refused() {
        let refused = Err(DropReason::IcmpUnmatched);
        let quoted = inbound(FAR, OWN, 53);
        assert_eq!(error(3, FAR, &inbound(FAR, OWN, 54)), refused, "port");
        assert_eq!(error(3, FAR, &inbound(FAR, FAR, 53)), refused, "address");
        assert_eq!(error(3, "192.0.2.8", &quoted), refused, "destination");
        assert_eq!(error(3, FAR, &quoted[..14 + 23]), refused, "short");
        assert_eq!(error(3, FAR, &raw(FAR, OWN, 89, &[0; 20])), refused);
        let redirect = raw(FAR, OWN, 1, &[5, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(error(3, FAR, &redirect), refused);
        let changed = |at: usize, value| {
            let mut quoted = quoted.clone();
            quoted[14 + at] = value;
            error(3, FAR, &quoted)
        };
        assert_eq!(changed(0, 0x65), refused, "version");
        assert_eq!(changed(0, 0x44), refused, "header length");
        assert_eq!(changed(7, 1), refused, "later fragment");
        let quoted = inbound(FAR6, OWN6, 53);
        for len in 0..44 {
            assert_eq!(error(1, FAR6, &quoted[..14 + len]), refused, "{len}");
        }
    }

    #[test]
    fn extension_headers_in_a_quote_are_followed() {
        let mut quoted = inbound(FAR6, OWN6, 53);
        quoted[20] = protocol::HOP_BY_HOP;
        quoted.splice(54..54, [44, 0, 1, 4, 0, 0, 0, 0, 17, 0, 0, 1, 0, 0, 0, 9]);
        assert_eq!(error(3, FAR6, &quoted), Ok(()));
        quoted[54 + 8 + 3] = 9;
        let refused = Err(DropReason::IcmpUnmatched);
        assert_eq!(error(3, FAR6, &quoted), refused, "later fragment");
        let mut endless = inbound(FAR6, OWN6, 53);
        endless[20] = protocol::DESTINATION_OPTIONS;
        endless.splice(54..54, [60, 0, 1, 4, 0, 0, 0, 0].repeat(20));
        assert_eq!(error(1, FAR6, &endless), refused, "endless");
    }

    #[test]
    fn later_fragments_pass_and_first_ones_are_judged() {
        let fragment = |mut octets: Vec<u8>, field: u16| {
            octets[20..22].copy_from_slice(&field.to_be_bytes());
            octets[24..26].fill(0);
            let sum = nos_shim::checksum::Sum::ZERO.plus(&octets[14..34]);
            octets[24..26].copy_from_slice(&sum.checksum().to_be_bytes());
            check(&octets)
        };
        let wrong_port = datagram(OWN, FAR, 1);
        assert_eq!(
            fragment(wrong_port.clone(), 0x2000),
            Err(DropReason::SourcePort)
        );
        assert_eq!(fragment(wrong_port, 3), Ok(()));
        assert_eq!(
            fragment(datagram("10.0.0.1", FAR, 1), 3),
            Err(DropReason::SourceAddress)
        );
        let ospf = raw(OWN, FAR, 89, &[0; 16]);
        assert_eq!(fragment(ospf, 3), Err(DropReason::SourceProtocol));
        let later6 = |next: u8| raw(OWN6, FAR6, 44, &[next, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 1]);
        assert_eq!(check(&later6(17)), Ok(()));
        assert_eq!(check(&later6(60)), Ok(()));
        assert_eq!(check(&later6(89)), Err(DropReason::SourceProtocol));
    }

    #[test]
    fn what_is_no_packet_never_gets_here() {
        let mut short_header = syn(OWN, FAR, 40000);
        short_header[14] = 0x44;
        assert_eq!(check(&short_header), Err(DropReason::Ipv4Header));
        assert_eq!(
            check(&syn(OWN, FAR, 40000)[..14]),
            Err(DropReason::IpLength)
        );
        assert_eq!(check(&[]), Err(DropReason::FrameLength));
    }

    proptest! {
        /// Nothing passes that is not from the container's addresses and, if it has ports, from
        /// its ports.
        #[test]
        fn nothing_foreign_passes(source in prop_oneof![Just(Ipv4Addr::new(203, 0, 113, 1)), any::<u32>().prop_map(Ipv4Addr::from_bits)], destination: u32, port: u16, protocol in prop_oneof![Just(6_u8), Just(17), Just(1), any::<u8>()], payload in proptest::collection::vec(any::<u8>(), 0..80)) {
            let mut payload = payload;
            if let Some(head) = payload.get_mut(..2) {
                head.copy_from_slice(&port.to_be_bytes());
            }
            let destination = Ipv4Addr::from_bits(destination).to_string();
            let verdict = check(&raw(&source.to_string(), &destination, protocol, &payload));
            if verdict.is_ok() {
                prop_assert_eq!(source, Ipv4Addr::new(203, 0, 113, 1));
                prop_assert!(matches!(protocol, 1 | 6 | 17));
                let ephemeral = (40000..=44999).contains(&port);
                prop_assert!(protocol != 6 || ephemeral || (20000..=20999).contains(&port));
                prop_assert!(protocol != 17 || ephemeral || port == 53);
            }
        }
    }
}
