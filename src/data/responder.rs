//! What the relay answers on a container's link: ARP, Neighbor Discovery, and ping of its own
//! link-local address.
//!
//! # Theory of operation
//!
//! The container believes that the whole world is on its link: its default routes have no gateway.
//! So whatever it asks for, the relay says: "that is me". Two kinds of question must not be
//! answered so, or the container would take an address of its own for a duplicate:
//!
//! - who has one of the container's own addresses;
//! - a probe (RFC 5227, or Duplicate Address Detection, RFC 4862 §5.4) for any address but the
//!   relay's. Nobody else is on the link, so silence is the truth. Whether the container *may* use
//!   the address is not decided here but by the [guard](crate::data::guard), with a counter. A
//!   contradiction would also outlast its cause: Linux leaves an IPv6 address that failed the
//!   detection unusable, even if the attachment is given that address a moment later. Linux, as an
//!   ARP proxy, is silent to probes too; as an NDP proxy it is not.
//!
//! The relay asks nothing on the link and believes nothing it hears: it knows the container's MAC
//! address and addresses beforehand. Answers go to that MAC address only, whatever the question
//! says. Questions with another MAC address than the attachment's, or an IPv4 address or global
//! IPv6 address that is not the attachment's, are dropped and counted. A link-local IPv6 source
//! may be any but the relay's, because containers can be set to make them up at random (RFC 7217)
//! and they lead nowhere beyond the link.
//!
//! On a segment with other stations ([`ContainerLink::on_segment`]), as that of a bridge, the relay is one of them. Whatever
//! is on the segment answers for itself: what asks for it, or comes from an address there, is passed over. So is what
//! only hosts and routers of a segment tell each other: advertisements, and solicitations of routers, of which there
//! may be others.
//!
//! Answers are written into the buffer of the question.

use std::net::{IpAddr, Ipv6Addr};

use nos_shim::arp::{Arp, Operation};
use nos_shim::checksum::Sum;
use nos_shim::drop::DropReason;
use nos_shim::frame::{ETHERNET_HEADER, Frame, FrameFull, Offload};
use nos_shim::ident::MacAddr;
use nos_shim::ipv6_extensions;
use nos_shim::martian;
use nos_shim::ndp::{ALL_NODES, ALL_ROUTERS, Envelope, Ndp, RouterAdvert, is_ndp, solicited_node};
use nos_shim::packet::{Addresses, Fragment, IPV6_HEADER, Packet, protocol};

use crate::data::link::ContainerLink;

/// The hop limit that containers are told to use, and that answers to ping have: Linux's default.
const HOP_LIMIT: u8 = 64;

/// Seconds for which a router advertisement makes the relay a default router: none.
///
/// The container has a static default route, which knows the source address to use. An advertised
/// one would come beside it without that, and would expire, as nothing is advertised unasked
/// (an idle relay wakes nobody). The advertisement still ends the container's solicitations, which
/// go on for ever otherwise, and tells the MTU.
const ROUTER_LIFETIME: u16 = 0;

/// The least MTU of IPv6 (RFC 8200 §5); less must not be advertised.
const IPV6_MIN_MTU: u16 = 1280;

const ECHO_REQUEST: u8 = 128;
const ECHO_REPLY: u8 = 129;

/// What becomes of a frame from a container.
#[derive(Debug)]
pub enum Disposition {
    /// It is not for the relay itself, and goes on to the NOS.
    Forward(Packet),
    /// The same on the link whose link-local address the container shares. It bears the
    /// [zone](nos_shim::ident::VrfId::of_link) of that link.
    OnLink(Packet),
    /// It was a question; this goes back to the container.
    Reply(Frame),
    /// It was understood, and asks for nothing.
    Consumed(Frame),
    /// It is dropped.
    Drop(Frame, DropReason),
}

/// What a message asks for.
#[derive(Clone, Copy)]
enum Wish {
    Arp(Arp),
    Ndp(Ndp, Envelope),
    Nothing,
}

/// Answers an ARP frame.
#[must_use]
pub fn answer_arp(link: &ContainerLink, frame: Frame) -> Disposition {
    finish(arp_wish(link, &frame), frame)
}

/// Answers Neighbor Discovery, and ping to the relay's link-local address.
#[must_use]
#[inline]
pub fn answer_ip(link: &ContainerLink, packet: Packet) -> Disposition {
    if packet.protocol() == protocol::ICMPV6 && packet.is_ipv6() {
        answer_icmpv6(link, packet)
    } else {
        Disposition::Forward(packet)
    }
}

fn answer_icmpv6(link: &ContainerLink, packet: Packet) -> Disposition {
    if is_ndp(&packet) {
        finish(ndp_wish(link, &packet), packet.into_frame())
    } else if packet.destination() == IpAddr::V6(link.relay_link_local()) {
        answer_ping(link, packet)
    } else {
        Disposition::Forward(packet)
    }
}

/// Writes the answer, if any, in place of the question.
fn finish(wish: Result<Wish, DropReason>, mut frame: Frame) -> Disposition {
    let written = match wish {
        Ok(Wish::Arp(reply)) => reply.write(&mut frame, reply.target_mac),
        Ok(Wish::Ndp(message, envelope)) => message.write(&mut frame, &envelope),
        Ok(Wish::Nothing) => return Disposition::Consumed(frame),
        Err(reason) => return Disposition::Drop(frame, reason),
    };
    match written {
        Ok(()) => Disposition::Reply(frame),
        Err(FrameFull { .. }) => Disposition::Drop(frame, DropReason::FrameLength),
    }
}

fn arp_wish(link: &ContainerLink, frame: &Frame) -> Result<Wish, DropReason> {
    link.check_any(frame)?;
    let arp = Arp::parse(frame.bytes())?;
    if arp.sender_mac != link.mac() {
        return Err(DropReason::SourceMac);
    }
    if arp.is_probe() {
        return Ok(Wish::Nothing);
    }
    let from_nos = link.addresses().contains(arp.sender_ip.into());
    if link.is_shared() && !from_nos || link.is_others(arp.target_ip.into()) {
        return Ok(Wish::Nothing);
    }
    if !from_nos {
        return Err(DropReason::SourceAddress);
    }
    let own = link.addresses().contains(arp.target_ip.into());
    if arp.operation != Operation::Request || own {
        return Ok(Wish::Nothing);
    }
    // Linux does not answer for these either, nor does it ask.
    let target = IpAddr::V4(arp.target_ip);
    if martian::destination_is_martian(target) || martian::is_group(target) {
        return Err(DropReason::MartianDestination);
    }
    Ok(Wish::Arp(arp.reply(link.relay_mac())))
}

fn ndp_wish(link: &ContainerLink, packet: &Packet) -> Result<Wish, DropReason> {
    link.check_any(packet.frame())?;
    ipv6_extensions::receive(packet).map_err(|refused| refused.reason)?;
    let message = Ndp::parse(packet)?;
    let Addresses::V6 {
        source,
        destination,
    } = packet.addresses()
    else {
        return Err(DropReason::NdpMalformed);
    };
    if is_among_others(link, &message, source) {
        return Ok(Wish::Nothing);
    }
    check_source(link, source)?;
    check_destination(destination)?;
    match message {
        Ndp::NeighborSolicit {
            target,
            source_link_layer,
        } => {
            check_link_layer(link, source_link_layer)?;
            Ok(neighbor_wish(link, source, target))
        }
        Ndp::RouterSolicit { source_link_layer } => {
            check_link_layer(link, source_link_layer)?;
            Ok(router_wish(link, source))
        }
        Ndp::NeighborAdvert { .. } => Ok(Wish::Nothing),
        // Containers are hosts.
        Ndp::RouterAdvert(_) | Ndp::Redirect { .. } => Err(DropReason::SourceProtocol),
    }
}

/// Whether a message on a segment is the business of other stations there.
fn is_among_others(link: &ContainerLink, message: &Ndp, source: Ipv6Addr) -> bool {
    if !link.is_shared() {
        return false;
    }
    let stranger = !(source.is_unspecified()
        || source.is_unicast_link_local()
        || link.addresses().contains(source.into()));
    match message {
        Ndp::NeighborSolicit { target, .. } => stranger || link.is_others((*target).into()),
        Ndp::RouterSolicit { .. }
        | Ndp::NeighborAdvert { .. }
        | Ndp::RouterAdvert(_)
        | Ndp::Redirect { .. } => true,
    }
}

/// Whether Neighbor Discovery may come from `source`.
fn check_source(link: &ContainerLink, source: Ipv6Addr) -> Result<(), DropReason> {
    let on_link = source.is_unspecified()
        || source.is_unicast_link_local() && source != link.relay_link_local();
    if on_link || link.addresses().contains(source.into()) {
        Ok(())
    } else {
        Err(DropReason::SourceAddress)
    }
}

/// Whether the relay hears what is sent to `destination`: it has every address that a host can have, and
/// is in their groups of nodes.
fn check_destination(destination: Ipv6Addr) -> Result<(), DropReason> {
    let heard = destination == solicited_node(destination)
        || matches!(destination, ALL_NODES | ALL_ROUTERS);
    if heard {
        Ok(())
    } else if destination.is_multicast() {
        Err(DropReason::Multicast)
    } else if martian::destination_is_martian(destination.into()) {
        Err(DropReason::MartianDestination)
    } else {
        Ok(())
    }
}

fn check_link_layer(link: &ContainerLink, option: Option<MacAddr>) -> Result<(), DropReason> {
    match option {
        Some(mac) if mac != link.mac() => Err(DropReason::SourceMac),
        _ => Ok(()),
    }
}

fn neighbor_wish(link: &ContainerLink, source: Ipv6Addr, target: Ipv6Addr) -> Wish {
    let detection = source.is_unspecified();
    let ours = target == link.relay_link_local();
    let theirs =
        link.shares(target.into()) || target == link.mac().link_local() || target == source;
    if (theirs || detection) && !ours || martian::destination_is_martian(target.into()) {
        return Wish::Nothing;
    }
    let advert = Ndp::NeighborAdvert {
        router: true,
        solicited: !detection,
        // Nobody else on the link could know better.
        overrides: true,
        target,
        target_link_layer: Some(link.relay_mac()),
    };
    Wish::Ndp(advert, envelope(link, source))
}

fn router_wish(link: &ContainerLink, source: Ipv6Addr) -> Wish {
    let mtu = Some(link.mtu()).filter(|&mtu| mtu >= IPV6_MIN_MTU);
    let advert = Ndp::RouterAdvert(RouterAdvert {
        hop_limit: HOP_LIMIT,
        lifetime: ROUTER_LIFETIME,
        source_link_layer: Some(link.relay_mac()),
        mtu: mtu.map(u32::from),
        ..RouterAdvert::default()
    });
    Wish::Ndp(advert, envelope(link, source))
}

/// To who asked; to all nodes if that has no address yet (RFC 4861 §6.2.6, §7.2.4).
fn envelope(link: &ContainerLink, asker: Ipv6Addr) -> Envelope {
    let source = link.relay_link_local();
    if asker.is_unspecified() {
        Envelope::to_group(link.relay_mac(), source, ALL_NODES)
    } else {
        Envelope {
            source_mac: link.relay_mac(),
            destination_mac: link.mac(),
            source,
            destination: asker,
        }
    }
}

/// Answers an echo request to the relay's link-local address (RFC 4443 §4.2).
fn answer_ping(link: &ContainerLink, packet: Packet) -> Disposition {
    let checked = check_ping(link, &packet);
    let transport = packet.transport_offset();
    let mut frame = packet.into_frame();
    match checked {
        Ok(asker) => {
            write_pong(link, asker, &mut frame, transport);
            Disposition::Reply(frame)
        }
        Err(reason) => Disposition::Drop(frame, reason),
    }
}

fn check_ping(link: &ContainerLink, packet: &Packet) -> Result<Ipv6Addr, DropReason> {
    link.check_unicast(packet.frame())?;
    let Addresses::V6 { source, .. } = packet.addresses() else {
        return Err(DropReason::Ignored);
    };
    check_source(link, source)?;
    let request = packet.icmp() == Some((ECHO_REQUEST, 0));
    // Fragments are not put together here: a ping that long is no test of the link. Extension
    // headers are not copied either.
    let plain = packet.transport_offset() == ETHERNET_HEADER + IPV6_HEADER
        && packet.fragment() == Fragment::Whole
        && packet.frame().offload().segmentation.is_none();
    if source.is_unspecified() {
        Err(DropReason::MartianSource)
    } else if !request || !plain {
        Err(DropReason::Ignored)
    } else if !packet.transport_checksum_ok() {
        Err(DropReason::TransportChecksum)
    } else {
        Ok(source)
    }
}

/// Turns a checked echo request into its reply.
fn write_pong(link: &ContainerLink, asker: Ipv6Addr, frame: &mut Frame, transport: usize) {
    frame.set_offload(Offload::NONE);
    let source = link.relay_link_local();
    let (head, message) = frame.bytes_mut().split_at_mut(transport);
    head[..6].copy_from_slice(&link.mac().0);
    head[6..12].copy_from_slice(&link.relay_mac().0);
    head[ETHERNET_HEADER + 7] = HOP_LIMIT;
    head[ETHERNET_HEADER + 8..][..16].copy_from_slice(&source.octets());
    head[ETHERNET_HEADER + 24..][..16].copy_from_slice(&asker.octets());
    message[0] = ECHO_REPLY;
    message[2..4].fill(0);
    let len = u32::try_from(message.len()).unwrap_or(u32::MAX);
    let sum = Sum::ZERO
        .pseudo_v6(source, asker, protocol::ICMPV6, len)
        .plus(message);
    message[2..4].copy_from_slice(&sum.checksum().to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{Icmpv6Type, PacketBuilder};
    use nos_shim::arp::ARP_FRAME;
    use nos_shim::frame::{Checksum, FramePool, MAX_FRAME};
    use proptest::prelude::*;

    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 0x0c]);
    const RELAY: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xff]);
    const OTHER: MacAddr = MacAddr([2, 0, 0, 0, 0, 0x99]);
    const OWN4: [u8; 4] = [203, 0, 113, 1];
    const OWN4_TOO: [u8; 4] = [198, 51, 100, 1];
    const FAR4: [u8; 4] = [192, 0, 2, 7];
    const NONE4: [u8; 4] = [0; 4];

    fn own6() -> Ipv6Addr {
        "2001:db8:1::1".parse().unwrap()
    }

    fn far6() -> Ipv6Addr {
        "2001:db8:9::9".parse().unwrap()
    }

    fn link() -> ContainerLink {
        let addresses = [OWN4.into(), OWN4_TOO.into(), own6().into()];
        ContainerLink::new(MAC, RELAY, &addresses, 1400)
    }

    fn pool() -> FramePool {
        FramePool::new(4, MAX_FRAME)
    }

    /// What came of a question.
    #[derive(Debug, PartialEq, Eq)]
    enum Outcome<T> {
        Reply(T),
        Silence,
        Drop(DropReason),
        NotMine,
    }

    fn outcome<T>(answer: Disposition, read: impl FnOnce(Frame) -> T) -> Outcome<T> {
        match answer {
            Disposition::Reply(frame) => Outcome::Reply(read(frame)),
            Disposition::Consumed(_) => Outcome::Silence,
            Disposition::Drop(_, reason) => Outcome::Drop(reason),
            Disposition::Forward(_) | Disposition::OnLink(_) => Outcome::NotMine,
        }
    }

    /// Sends `arp` from `MAC` to `destination`; the reply's Ethernet addresses are checked.
    fn ask_arp(arp: Arp, destination: MacAddr) -> Outcome<Arp> {
        let mut frame = pool().alloc().unwrap();
        arp.write(&mut frame, destination).unwrap();
        frame.bytes_mut()[6..12].copy_from_slice(&MAC.0);
        outcome(answer_arp(&link(), frame), |reply| {
            assert_eq!(reply.bytes()[..12], [MAC.0, RELAY.0].concat());
            assert_eq!(reply.len(), ARP_FRAME);
            Arp::parse(reply.bytes()).unwrap()
        })
    }

    fn arp_request(sender: [u8; 4], target: [u8; 4]) -> Arp {
        Arp::request(MAC, sender.into(), target.into())
    }

    #[test]
    fn every_arp_request_is_treated_by_the_rules() {
        use Outcome::{Drop, Silence};
        let reply = |sender: [u8; 4], target: [u8; 4]| {
            Outcome::Reply(arp_request(sender, target).reply(RELAY))
        };
        for (sender, target, expected) in [
            (OWN4, FAR4, reply(OWN4, FAR4)),
            (
                OWN4_TOO,
                [203, 0, 113, 2],
                reply(OWN4_TOO, [203, 0, 113, 2]),
            ),
            (OWN4, [169, 254, 1, 1], reply(OWN4, [169, 254, 1, 1])),
            (OWN4, [10, 255, 255, 255], reply(OWN4, [10, 255, 255, 255])),
            // Probes (RFC 5227), for its own addresses and for others.
            (NONE4, OWN4, Silence),
            (NONE4, FAR4, Silence),
            (NONE4, NONE4, Silence),
            // Announcements, and a question for another address of its own.
            (OWN4, OWN4, Silence),
            (OWN4, OWN4_TOO, Silence),
            // Addresses that are not the container's.
            (FAR4, OWN4, Drop(DropReason::SourceAddress)),
            (FAR4, FAR4, Drop(DropReason::SourceAddress)),
            ([127, 0, 0, 1], FAR4, Drop(DropReason::SourceAddress)),
            // Addresses that nobody has.
            (OWN4, NONE4, Drop(DropReason::MartianDestination)),
            (OWN4, [127, 0, 0, 1], Drop(DropReason::MartianDestination)),
            (OWN4, [224, 0, 0, 1], Drop(DropReason::MartianDestination)),
            (OWN4, [255; 4], Drop(DropReason::MartianDestination)),
        ] {
            let arp = arp_request(sender, target);
            assert_eq!(ask_arp(arp, MacAddr::BROADCAST), expected, "{arp:?}");
        }
    }

    #[test]
    fn arp_to_and_from_other_stations_is_refused() {
        let good = arp_request(OWN4, FAR4);
        let reply = Outcome::Reply(good.reply(RELAY));
        assert_eq!(ask_arp(good, RELAY), reply, "a unicast poll");
        assert_eq!(ask_arp(good, OTHER), Outcome::Drop(DropReason::OtherHost));
        let spoofed = Arp {
            sender_mac: OTHER,
            ..good
        };
        let wrong = Outcome::Drop(DropReason::SourceMac);
        assert_eq!(ask_arp(spoofed, MacAddr::BROADCAST), wrong);
        let mut frame = pool().alloc().unwrap();
        good.write(&mut frame, RELAY).unwrap();
        frame.bytes_mut()[6..12].copy_from_slice(&OTHER.0);
        assert_eq!(outcome(answer_arp(&link(), frame), |_| good), wrong);
    }

    #[test]
    fn other_arp_operations_are_consumed_or_refused() {
        let operation = |operation| Arp {
            operation,
            ..arp_request(OWN4, FAR4)
        };
        for consumed in [Operation::Reply, Operation::Other(3), Operation::Other(0)] {
            assert_eq!(ask_arp(operation(consumed), RELAY), Outcome::Silence);
        }
        let gratuitous = arp_request(OWN4, OWN4).reply(MAC);
        assert_eq!(ask_arp(gratuitous, MacAddr::BROADCAST), Outcome::Silence);
        let mut frame = pool().alloc().unwrap();
        arp_request(OWN4, FAR4).write(&mut frame, RELAY).unwrap();
        frame.bytes_mut()[6..12].copy_from_slice(&MAC.0);
        frame.truncate(41);
        let malformed = Outcome::Drop(DropReason::ArpMalformed);
        assert_eq!(outcome(answer_arp(&link(), frame), |_| ()), malformed);
    }

    /// Sends `message`, and reads the reply with its envelope.
    fn ask_ndp(message: Ndp, envelope: Envelope) -> Outcome<(Ndp, Envelope)> {
        let mut frame = pool().alloc().unwrap();
        message.write(&mut frame, &envelope).unwrap();
        let packet = Packet::parse(frame).unwrap();
        outcome(answer_ip(&link(), packet), |reply| {
            let reply = Packet::parse(reply).unwrap();
            let Addresses::V6 {
                source,
                destination,
            } = reply.addresses()
            else {
                panic!("an IPv4 answer to an IPv6 question")
            };
            let envelope = Envelope {
                source_mac: reply.source_mac(),
                destination_mac: reply.destination_mac(),
                source,
                destination,
            };
            (Ndp::parse(&reply).unwrap(), envelope)
        })
    }

    fn unicast(source: Ipv6Addr) -> Envelope {
        Envelope {
            source_mac: MAC,
            destination_mac: RELAY,
            source,
            destination: RELAY.link_local(),
        }
    }

    /// The advertisement for `target` in answer to a solicitation from `asker`.
    fn advert(target: Ipv6Addr, asker: Ipv6Addr) -> Outcome<(Ndp, Envelope)> {
        let advert = Ndp::NeighborAdvert {
            router: true,
            solicited: true,
            overrides: true,
            target,
            target_link_layer: Some(RELAY),
        };
        let envelope = Envelope {
            source_mac: RELAY,
            destination_mac: MAC,
            source: RELAY.link_local(),
            destination: asker,
        };
        Outcome::Reply((advert, envelope))
    }

    fn solicit(target: Ipv6Addr, source_link_layer: Option<MacAddr>) -> Ndp {
        Ndp::NeighborSolicit {
            target,
            source_link_layer,
        }
    }

    #[test]
    fn on_a_link_all_neighbors_but_the_shared_address_are_the_relays() {
        let shared: Ipv6Addr = "fe80::c".parse().unwrap();
        let neighbor: Ipv6Addr = "fe80::2".parse().unwrap();
        let link = link().sharing(Some(shared));
        for (source, target, answered) in [
            (shared, neighbor, true),
            (shared, RELAY.link_local(), true),
            (own6(), neighbor, true),
            (own6(), shared, false),
            (shared, shared, false),
        ] {
            let mut frame = pool().alloc().unwrap();
            let envelope = Envelope::to_group(MAC, source, solicited_node(target));
            let question = solicit(target, Some(MAC));
            question.write(&mut frame, &envelope).unwrap();
            let answer = answer_ip(&link, Packet::parse(frame).unwrap());
            let replied = matches!(answer, Disposition::Reply(_));
            assert_eq!(replied, answered, "{source} asks for {target}");
        }
    }

    #[test]
    fn every_neighbor_solicitation_is_treated_by_the_rules() {
        use Outcome::{Drop, Silence};
        let local = MAC.link_local();
        let random: Ipv6Addr = "fe80::1234:5678:9abc:def0".parse().unwrap();
        let relay = RELAY.link_local();
        for (source, target, expected) in [
            (own6(), far6(), advert(far6(), own6())),
            (local, far6(), advert(far6(), local)),
            (local, relay, advert(relay, local)),
            (random, relay, advert(relay, random)),
            (
                local,
                "fe80::1".parse().unwrap(),
                advert("fe80::1".parse().unwrap(), local),
            ),
            // Its own addresses.
            (local, own6(), Silence),
            (own6(), local, Silence),
            (random, random, Silence),
            // Addresses that are not the container's.
            (far6(), relay, Drop(DropReason::SourceAddress)),
            (relay, far6(), Drop(DropReason::SourceAddress)),
            (Ipv6Addr::LOCALHOST, far6(), Drop(DropReason::SourceAddress)),
            // Addresses that nobody has.
            (local, Ipv6Addr::LOCALHOST, Silence),
            (local, Ipv6Addr::UNSPECIFIED, Silence),
        ] {
            let to_group = Envelope::to_group(MAC, source, solicited_node(target));
            for (envelope, link_layer) in [(to_group, Some(MAC)), (unicast(source), None)] {
                let answer = ask_ndp(solicit(target, link_layer), envelope);
                assert_eq!(answer, expected, "{target} from {source}, {envelope:?}");
            }
        }
    }

    #[test]
    fn neighbor_discovery_is_heard_that_hosts_could_hear() {
        let ask = |destination: &str| {
            let envelope = Envelope {
                destination: destination.parse().unwrap(),
                ..Envelope::to_group(MAC, own6(), ALL_NODES)
            };
            ask_ndp(solicit(far6(), Some(MAC)), envelope)
        };
        for heard in [
            "ff02::1",
            "ff02::2",
            "ff02::1:ff00:9",
            "2001:db8:9::9",
            "fe80::1",
        ] {
            assert!(matches!(ask(heard), Outcome::Reply(_)), "{heard}");
        }
        for (other, reason) in [
            ("ff02::1:2", DropReason::Multicast),
            ("ff05::1:3", DropReason::Multicast),
            ("::1", DropReason::MartianDestination),
            ("::", DropReason::MartianDestination),
        ] {
            assert_eq!(ask(other), Outcome::Drop(reason), "{other}");
        }
    }

    #[test]
    fn duplicate_address_detection_is_contradicted_for_the_relays_address_only() {
        let detect = |target| {
            let nobody = Ipv6Addr::UNSPECIFIED;
            let envelope = Envelope::to_group(MAC, nobody, solicited_node(target));
            ask_ndp(solicit(target, None), envelope)
        };
        for silent in [own6(), MAC.link_local(), far6(), "fe80::1".parse().unwrap()] {
            assert_eq!(detect(silent), Outcome::Silence, "{silent}");
        }
        let relay = RELAY.link_local();
        let advert = Ndp::NeighborAdvert {
            router: true,
            solicited: false,
            overrides: true,
            target: relay,
            target_link_layer: Some(RELAY),
        };
        let to_all = Envelope::to_group(RELAY, relay, ALL_NODES);
        assert_eq!(detect(relay), Outcome::Reply((advert, to_all)));
    }

    #[test]
    fn router_solicitations_get_an_advertisement_without_prefix() {
        let advert = Ndp::RouterAdvert(RouterAdvert {
            hop_limit: 64,
            source_link_layer: Some(RELAY),
            mtu: Some(1400),
            ..RouterAdvert::default()
        });
        let ask = |source, source_link_layer| {
            let envelope = Envelope::to_group(MAC, source, ALL_ROUTERS);
            ask_ndp(Ndp::RouterSolicit { source_link_layer }, envelope)
        };
        let to_asker = Envelope {
            source_mac: RELAY,
            destination_mac: MAC,
            source: RELAY.link_local(),
            destination: MAC.link_local(),
        };
        let expected = Outcome::Reply((advert, to_asker));
        assert_eq!(ask(MAC.link_local(), Some(MAC)), expected);
        assert_eq!(ask(MAC.link_local(), None), expected);
        let to_all = Envelope::to_group(RELAY, RELAY.link_local(), ALL_NODES);
        let nobody = Ipv6Addr::UNSPECIFIED;
        assert_eq!(ask(nobody, None), Outcome::Reply((advert, to_all)));
        let wrong = Outcome::Drop(DropReason::SourceMac);
        assert_eq!(ask(MAC.link_local(), Some(OTHER)), wrong);
    }

    #[test]
    fn no_mtu_is_advertised_that_ipv6_forbids() {
        let small = ContainerLink::new(MAC, RELAY, &[], 1279);
        let Wish::Ndp(Ndp::RouterAdvert(advert), _) = router_wish(&small, MAC.link_local()) else {
            panic!("no advertisement")
        };
        assert_eq!(advert.mtu, None);
    }

    #[test]
    fn containers_are_hosts() {
        let local = MAC.link_local();
        let neighbor = Ndp::NeighborAdvert {
            router: false,
            solicited: false,
            overrides: true,
            target: own6(),
            target_link_layer: Some(MAC),
        };
        let to_all = Envelope::to_group(MAC, local, ALL_NODES);
        assert_eq!(ask_ndp(neighbor, to_all), Outcome::Silence);
        let refused = Outcome::Drop(DropReason::SourceProtocol);
        let router = Ndp::RouterAdvert(RouterAdvert::default());
        assert_eq!(ask_ndp(router, to_all), refused);
        let redirect = Ndp::Redirect {
            target: far6(),
            destination: far6(),
        };
        assert_eq!(ask_ndp(redirect, unicast(local)), refused);
    }

    #[test]
    fn neighbor_discovery_from_elsewhere_is_refused() {
        let question = solicit(far6(), None);
        let from = |source_mac, destination_mac| {
            let envelope = Envelope {
                source_mac,
                destination_mac,
                ..unicast(own6())
            };
            ask_ndp(question, envelope)
        };
        assert_eq!(from(OTHER, RELAY), Outcome::Drop(DropReason::SourceMac));
        assert_eq!(from(MAC, OTHER), Outcome::Drop(DropReason::OtherHost));
        let spoofed = ask_ndp(solicit(far6(), Some(OTHER)), unicast(own6()));
        assert_eq!(spoofed, Outcome::Drop(DropReason::SourceMac));
        let mut frame = pool().alloc().unwrap();
        question.write(&mut frame, &unicast(own6())).unwrap();
        frame.bytes_mut()[21] = 64;
        let packet = Packet::parse(frame).unwrap();
        let forwarded = outcome(answer_ip(&link(), packet), |_| ());
        assert_eq!(forwarded, Outcome::Drop(DropReason::NdpMalformed));
    }

    fn ping(source: Ipv6Addr, destination: Ipv6Addr, payload: &[u8]) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2(MAC.0, RELAY.0)
            .ipv6(source.octets(), destination.octets(), 33)
            .icmpv6_echo_request(77, 5);
        let mut octets = Vec::new();
        builder.write(&mut octets, payload).unwrap();
        octets
    }

    fn ask(octets: &[u8]) -> Outcome<Vec<u8>> {
        let packet = Packet::parse(pool().copy_from(octets).unwrap()).unwrap();
        outcome(answer_ip(&link(), packet), |frame| {
            assert_eq!(frame.offload(), Offload::NONE);
            frame.bytes().to_vec()
        })
    }

    fn pong(destination: Ipv6Addr, payload: &[u8]) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2(RELAY.0, MAC.0)
            .ipv6(RELAY.link_local().octets(), destination.octets(), 64)
            .icmpv6_echo_reply(77, 5);
        let mut octets = Vec::new();
        builder.write(&mut octets, payload).unwrap();
        octets
    }

    proptest! {
        #[test]
        fn ping_of_the_relay_is_answered(payload in proptest::collection::vec(any::<u8>(), 0..1400), global: bool) {
            let source = if global { own6() } else { MAC.link_local() };
            let question = ping(source, RELAY.link_local(), &payload);
            prop_assert_eq!(ask(&question), Outcome::Reply(pong(source, &payload)));
            let mut bad = question;
            *bad.last_mut().unwrap() ^= 1;
            prop_assert_eq!(ask(&bad), Outcome::Drop(DropReason::TransportChecksum));
        }

        /// Whatever a container sends, it gets no answer for an address of its own, and none goes
        /// elsewhere than to it.
        #[test]
        fn any_frame_is_judged(mut octets in proptest::collection::vec(any::<u8>(), 0..120), shape in 0..3_u8, aimed: bool) {
            if let Some(head) = octets.get_mut(..14) {
                head[..12].copy_from_slice(&[RELAY.0, MAC.0].concat());
                head[12..].copy_from_slice(&[[8, 6], [8, 0], [0x86, 0xdd]][usize::from(shape)]);
            }
            if aimed && octets.len() > 54 {
                let preamble: &[u8] = match shape {
                    0 => &[0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 0x0c],
                    _ => &[0x60, 0, 0, 0, 0, 40, 58, 255, 0xfe, 0x80],
                };
                octets[14..14 + preamble.len()].copy_from_slice(preamble);
            }
            let frame = pool().copy_from(&octets).unwrap();
            let answer = match Packet::parse(frame) {
                Ok(packet) => answer_ip(&link(), packet),
                Err(rejected) => answer_arp(&link(), rejected.frame),
            };
            if let Disposition::Reply(reply) = answer {
                prop_assert_eq!(&reply.bytes()[6..12], &RELAY.0);
                let own = Arp::parse(reply.bytes()).is_ok_and(|arp| link().addresses().contains(arp.sender_ip.into()));
                prop_assert!(!own);
            }
        }
    }

    #[test]
    fn ping_with_a_checksum_left_to_the_device_is_answered_in_full() {
        let mut octets = ping(MAC.link_local(), RELAY.link_local(), b"abc");
        let sum = Sum::ZERO.pseudo_v6(MAC.link_local(), RELAY.link_local(), 58, 11);
        octets[56..58].copy_from_slice(&sum.folded().to_be_bytes());
        let mut frame = pool().copy_from(&octets).unwrap();
        let checksum = Checksum::Partial {
            start: 54,
            offset: 2,
        };
        frame.set_offload(Offload {
            checksum,
            segmentation: None,
        });
        let packet = Packet::parse(frame).unwrap();
        let reply = outcome(answer_ip(&link(), packet), |frame| {
            (frame.offload(), frame.bytes().to_vec())
        });
        let expected = (Offload::NONE, pong(MAC.link_local(), b"abc"));
        assert_eq!(reply, Outcome::Reply(expected));
    }

    #[test]
    fn only_a_plain_ping_from_the_container_is_answered() {
        let relay = RELAY.link_local();
        let spoofed = ping(far6(), relay, b"");
        assert_eq!(ask(&spoofed), Outcome::Drop(DropReason::SourceAddress));
        let nobody = ping(Ipv6Addr::UNSPECIFIED, relay, b"");
        assert_eq!(ask(&nobody), Outcome::Drop(DropReason::MartianSource));
        let mut to_group = ping(MAC.link_local(), relay, b"");
        to_group[0] = 0x33;
        assert_eq!(ask(&to_group), Outcome::Drop(DropReason::Multicast));
        let beyond = ping(own6(), far6(), b"");
        assert_eq!(ask(&beyond), Outcome::NotMine);
        let builder = PacketBuilder::ethernet2(MAC.0, RELAY.0)
            .ipv6(MAC.link_local().octets(), relay.octets(), 64)
            .icmpv6(Icmpv6Type::EchoReply(etherparse::IcmpEchoHeader {
                id: 1,
                seq: 1,
            }));
        let mut unasked = Vec::new();
        builder.write(&mut unasked, b"").unwrap();
        assert_eq!(ask(&unasked), Outcome::Drop(DropReason::Ignored));
        let mut fragment = ping(MAC.link_local(), relay, b"12345678");
        fragment.splice(54..54, [58, 0, 0, 1, 0, 0, 0, 9]);
        fragment[18..21].copy_from_slice(&[0, 24, 44]);
        assert_eq!(ask(&fragment), Outcome::Drop(DropReason::Ignored));
    }

    #[test]
    fn icmpv6_inside_ipv4_is_not_ours() {
        let builder = PacketBuilder::ethernet2(MAC.0, RELAY.0).ipv4(OWN4, FAR4, 64);
        let mut octets = Vec::new();
        builder
            .write(&mut octets, etherparse::IpNumber::IPV6_ICMP, &[135; 24])
            .unwrap();
        assert_eq!(ask(&octets), Outcome::NotMine);
    }
}
