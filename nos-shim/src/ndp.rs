//! Neighbor Discovery for IPv6 over Ethernet (RFC 4861): packets in, values out, and back.
//!
//! [`Ndp::parse`] makes the checks of RFC 4861 §6.1, §7.1 and §8.1 and of RFC 6980, so holding an
//! [`Ndp`] is the proof that the message came from this link and contradicts nothing. Whether its
//! addresses are plausible (unicast MAC, on-link target) is up to who believes them.

use core::net::Ipv6Addr;

use crate::checksum::Sum;
use crate::drop::DropReason;
use crate::frame::{ETHERNET_HEADER, Frame, FrameFull, Offload};
use crate::ident::MacAddr;
use crate::packet::{Addresses, ETHERTYPE_IPV6, IPV6_HEADER, Packet, protocol};

/// ff02::1
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// ff02::2
pub const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);

/// Octets of the longest frame that [`Ndp::write`] makes.
pub const NDP_FRAME: usize = ETHERNET_HEADER + IPV6_HEADER + MAX_MESSAGE;

/// A redirect's fixed part, or a router advertisement with two options, is 40 or 32 octets.
const MAX_MESSAGE: usize = 40;

/// The hop limit shows that no router has forwarded the packet (RFC 4861 §3.1).
pub(crate) const HOP_LIMIT: u8 = 255;

const ROUTER_SOLICIT: u8 = 133;
const ROUTER_ADVERT: u8 = 134;
const NEIGHBOR_SOLICIT: u8 = 135;
const NEIGHBOR_ADVERT: u8 = 136;
const REDIRECT: u8 = 137;

const OPTION_SOURCE_LINK_LAYER: u8 = 1;
const OPTION_TARGET_LINK_LAYER: u8 = 2;
const OPTION_MTU: u8 = 5;

/// Octets of a link-layer address option for Ethernet, and of the MTU option.
pub(crate) const OPTION_LEN: usize = 8;

/// The multicast address on which the owner of `address` listens for solicitations
/// (RFC 4291 §2.7.1).
#[must_use]
pub fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    const PREFIX: u128 = 0xff02_0000_0000_0000_0000_0001_ff00_0000;
    Ipv6Addr::from_bits(PREFIX | address.to_bits() & 0x00ff_ffff)
}

/// The Ethernet address of a multicast group (RFC 2464 §7).
#[must_use]
pub fn multicast_mac(group: Ipv6Addr) -> MacAddr {
    let [.., a, b, c, d] = group.octets();
    MacAddr([0x33, 0x33, a, b, c, d])
}

/// Whether `packet` is a Neighbor Discovery message, valid or not.
#[must_use]
pub fn is_ndp(packet: &Packet) -> bool {
    let kinds = ROUTER_SOLICIT..=REDIRECT;
    packet.is_ipv6() && packet.icmp().is_some_and(|(kind, _)| kinds.contains(&kind))
}

/// What a router says of itself and its link. Prefixes and other options are not kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouterAdvert {
    /// The hop limit that hosts should use; 0 says nothing.
    pub hop_limit: u8,
    /// Addresses are to be had by DHCPv6.
    pub managed: bool,
    /// Other configuration is to be had by DHCPv6.
    pub other: bool,
    /// Seconds for which this is a default router; 0: it is none.
    pub lifetime: u16,
    /// Milliseconds for which a neighbor counts as reachable; 0 says nothing.
    pub reachable_time: u32,
    /// Milliseconds between solicitations; 0 says nothing.
    pub retrans_timer: u32,
    /// The router's MAC address.
    pub source_link_layer: Option<MacAddr>,
    /// The link's MTU in octets.
    pub mtu: Option<u32>,
}

/// A Neighbor Discovery message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ndp {
    /// Who is a router here?
    RouterSolicit {
        /// The asker's MAC address.
        source_link_layer: Option<MacAddr>,
    },
    /// I am a router, or was one.
    RouterAdvert(RouterAdvert),
    /// Who has the target address? From the unspecified address: duplicate address detection.
    NeighborSolicit {
        /// The address that is asked about.
        target: Ipv6Addr,
        /// The asker's MAC address.
        source_link_layer: Option<MacAddr>,
    },
    /// I have the target address.
    NeighborAdvert {
        /// The sender is a router.
        router: bool,
        /// It answers a unicast address's solicitation.
        solicited: bool,
        /// It replaces what is known.
        overrides: bool,
        /// The address that the sender has.
        target: Ipv6Addr,
        /// The MAC address of the target.
        target_link_layer: Option<MacAddr>,
    },
    /// There is a better first hop to the destination. Its options are not kept.
    Redirect {
        /// The better first hop; the same as the destination if that is a neighbor.
        target: Ipv6Addr,
        /// What is better reached by it.
        destination: Ipv6Addr,
    },
}

/// The addresses around a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// The sender's MAC address.
    pub source_mac: MacAddr,
    /// The receiver's MAC address.
    pub destination_mac: MacAddr,
    /// The sender's address.
    pub source: Ipv6Addr,
    /// The receiver's address.
    pub destination: Ipv6Addr,
}

impl Envelope {
    /// To the multicast `group`.
    #[must_use]
    pub fn to_group(source_mac: MacAddr, source: Ipv6Addr, group: Ipv6Addr) -> Self {
        Self {
            source_mac,
            destination_mac: multicast_mac(group),
            source,
            destination: group,
        }
    }
}

impl Ndp {
    /// Reads and checks a packet.
    ///
    /// # Errors
    ///
    /// [`DropReason::NdpMalformed`] for what fails the checks, and for what is no Neighbor
    /// Discovery at all.
    pub fn parse(packet: &Packet) -> Result<Self, DropReason> {
        Self::read(packet).ok_or(DropReason::NdpMalformed)
    }

    fn read(packet: &Packet) -> Option<Self> {
        let Addresses::V6 {
            source,
            destination,
        } = packet.addresses()
        else {
            return None;
        };
        let (kind, code) = packet.icmp().filter(|_| is_ndp(packet))?;
        // RFC 6980 §5: not in a fragment header, even if that says that the packet is whole.
        let fragmented = packet.frame().parsed().fragment_header != 0;
        let link_only = packet.ttl() == HOP_LIMIT && code == 0 && !fragmented;
        // RFC 4291 §2.7: no packet comes from a multicast address.
        let proper = link_only && !source.is_multicast() && packet.transport_checksum_ok();
        let message = Message {
            octets: packet.transport(),
            source,
            destination,
        };
        if proper { message.read(kind) } else { None }
    }

    /// Makes `frame` this message in an Ethernet frame and an IPv6 packet with the addresses of
    /// `envelope`, in place of what it held.
    ///
    /// # Errors
    ///
    /// [`FrameFull`] when the frame's buffer is shorter than [`NDP_FRAME`].
    pub fn write(&self, frame: &mut Frame, envelope: &Envelope) -> Result<(), FrameFull> {
        let mut buffer = [0; MAX_MESSAGE];
        let message = self.encode(&mut buffer);
        let len = message.len();
        frame.set_len(ETHERNET_HEADER + IPV6_HEADER + len)?;
        frame.set_offload(Offload::NONE);
        let sum = Sum::ZERO
            .pseudo_v6(
                envelope.source,
                envelope.destination,
                protocol::ICMPV6,
                u32::try_from(len).unwrap_or_default(),
            )
            .plus(message);
        message[2..4].copy_from_slice(&sum.checksum().to_be_bytes());
        let payload_len = u16::try_from(len).unwrap_or_default();
        put(
            frame.bytes_mut(),
            &[
                &envelope.destination_mac.0,
                &envelope.source_mac.0,
                &ETHERTYPE_IPV6.to_be_bytes(),
                &[0x60, 0, 0, 0],
                &payload_len.to_be_bytes(),
                &[protocol::ICMPV6, HOP_LIMIT],
                &envelope.source.octets(),
                &envelope.destination.octets(),
                message,
            ],
        );
        Ok(())
    }

    /// The message with a checksum of zero.
    fn encode<'a>(&self, buffer: &'a mut [u8; MAX_MESSAGE]) -> &'a mut [u8] {
        let mut len = 0;
        let mut put = |octets: &[u8]| {
            buffer[len..len + octets.len()].copy_from_slice(octets);
            len += octets.len();
        };
        match self {
            Self::RouterSolicit { source_link_layer } => {
                put(&[ROUTER_SOLICIT, 0, 0, 0, 0, 0, 0, 0]);
                put(link_layer(OPTION_SOURCE_LINK_LAYER, *source_link_layer)
                    .as_slice()
                    .as_flattened());
            }
            Self::RouterAdvert(advert) => {
                put(&advert.fixed_part());
                put(
                    link_layer(OPTION_SOURCE_LINK_LAYER, advert.source_link_layer)
                        .as_slice()
                        .as_flattened(),
                );
                put(mtu_option(advert.mtu).as_slice().as_flattened());
            }
            Self::NeighborSolicit {
                target,
                source_link_layer,
            } => {
                put(&[NEIGHBOR_SOLICIT, 0, 0, 0, 0, 0, 0, 0]);
                put(&target.octets());
                put(link_layer(OPTION_SOURCE_LINK_LAYER, *source_link_layer)
                    .as_slice()
                    .as_flattened());
            }
            Self::NeighborAdvert {
                router,
                solicited,
                overrides,
                target,
                target_link_layer,
            } => {
                let flags = flags([*router, *solicited, *overrides]);
                put(&[NEIGHBOR_ADVERT, 0, 0, 0, flags, 0, 0, 0]);
                put(&target.octets());
                put(link_layer(OPTION_TARGET_LINK_LAYER, *target_link_layer)
                    .as_slice()
                    .as_flattened());
            }
            Self::Redirect {
                target,
                destination,
            } => {
                put(&[REDIRECT, 0, 0, 0, 0, 0, 0, 0]);
                put(&target.octets());
                put(&destination.octets());
            }
        }
        &mut buffer[..len]
    }
}

impl RouterAdvert {
    fn fixed_part(&self) -> [u8; 16] {
        let [l0, l1] = self.lifetime.to_be_bytes();
        let [a, b, c, d] = self.reachable_time.to_be_bytes();
        let [e, f, g, h] = self.retrans_timer.to_be_bytes();
        let flags = flags([self.managed, self.other, false]);
        [
            ROUTER_ADVERT,
            0,
            0,
            0,
            self.hop_limit,
            flags,
            l0,
            l1,
            a,
            b,
            c,
            d,
            e,
            f,
            g,
            h,
        ]
    }
}

/// Three flags in the highest bits of an octet, the first on top.
fn flags(set: [bool; 3]) -> u8 {
    u8::from(set[0]) << 7 | u8::from(set[1]) << 6 | u8::from(set[2]) << 5
}

/// The option that tells a target's MAC address, if that is known.
pub(crate) fn link_layer_option(target: Option<MacAddr>) -> Option<[u8; OPTION_LEN]> {
    link_layer(OPTION_TARGET_LINK_LAYER, target)
}

fn link_layer(kind: u8, mac: Option<MacAddr>) -> Option<[u8; OPTION_LEN]> {
    let [a, b, c, d, e, f] = mac?.0;
    Some([kind, 1, a, b, c, d, e, f])
}

fn mtu_option(mtu: Option<u32>) -> Option<[u8; OPTION_LEN]> {
    let [a, b, c, d] = mtu?.to_be_bytes();
    Some([OPTION_MTU, 1, 0, 0, a, b, c, d])
}

/// Copies `fields` one after the other to the start of `octets`, which has room for them.
pub(crate) fn put(mut octets: &mut [u8], fields: &[&[u8]]) {
    for field in fields {
        let (place, rest) = octets.split_at_mut(field.len());
        place.copy_from_slice(field);
        octets = rest;
    }
}

/// A message whose headers are in order, and whose body is to be read.
struct Message<'a> {
    /// From the ICMPv6 header on.
    octets: &'a [u8],
    source: Ipv6Addr,
    destination: Ipv6Addr,
}

impl Message<'_> {
    fn read(&self, kind: u8) -> Option<Ndp> {
        match kind {
            ROUTER_SOLICIT => self.router_solicit(),
            ROUTER_ADVERT => self.router_advert(),
            NEIGHBOR_SOLICIT => self.neighbor_solicit(),
            NEIGHBOR_ADVERT => self.neighbor_advert(),
            REDIRECT => self.redirect(),
            _ => None,
        }
    }

    /// RFC 4861 §6.1.1.
    fn router_solicit(&self) -> Option<Ndp> {
        let options = self.options(8)?;
        if self.source.is_unspecified() && options.source_link_layer.is_some() {
            return None;
        }
        Some(Ndp::RouterSolicit {
            source_link_layer: link_layer_address(options.source_link_layer)?,
        })
    }

    /// RFC 4861 §6.1.2.
    fn router_advert(&self) -> Option<Ndp> {
        let options = self.options(16)?;
        self.source.is_unicast_link_local().then_some(())?;
        let [hop_limit, flags] = self.field(4)?;
        Some(Ndp::RouterAdvert(RouterAdvert {
            hop_limit,
            managed: flags & 0x80 != 0,
            other: flags & 0x40 != 0,
            lifetime: u16::from_be_bytes(self.field(6)?),
            reachable_time: u32::from_be_bytes(self.field(8)?),
            retrans_timer: u32::from_be_bytes(self.field(12)?),
            source_link_layer: link_layer_address(options.source_link_layer)?,
            mtu: mtu(options.mtu)?,
        }))
    }

    /// RFC 4861 §7.1.1.
    fn neighbor_solicit(&self) -> Option<Ndp> {
        let options = self.options(24)?;
        let target = self.target()?;
        let detection = self.source.is_unspecified();
        let to_group = self.destination == solicited_node(self.destination);
        if detection && (!to_group || options.source_link_layer.is_some()) {
            return None;
        }
        Some(Ndp::NeighborSolicit {
            target,
            source_link_layer: link_layer_address(options.source_link_layer)?,
        })
    }

    /// RFC 4861 §7.1.2.
    fn neighbor_advert(&self) -> Option<Ndp> {
        let options = self.options(24)?;
        let target = self.target()?;
        let [flags] = self.field(4)?;
        let solicited = flags & 0x40 != 0;
        if solicited && self.destination.is_multicast() {
            return None;
        }
        Some(Ndp::NeighborAdvert {
            router: flags & 0x80 != 0,
            solicited,
            overrides: flags & 0x20 != 0,
            target,
            target_link_layer: link_layer_address(options.target_link_layer)?,
        })
    }

    /// RFC 4861 §8.1, as far as the message itself can tell.
    fn redirect(&self) -> Option<Ndp> {
        self.options(40)?;
        let target = Ipv6Addr::from(self.field::<16>(8)?);
        let destination = Ipv6Addr::from(self.field::<16>(24)?);
        let first_hop = target == destination || target.is_unicast_link_local();
        let valid = self.source.is_unicast_link_local() && first_hop && !destination.is_multicast();
        valid.then_some(Ndp::Redirect {
            target,
            destination,
        })
    }

    fn field<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.octets.get(at..)?.first_chunk().copied()
    }

    /// The target of neighbor solicitations and advertisements.
    fn target(&self) -> Option<Ipv6Addr> {
        let target = Ipv6Addr::from(self.field::<16>(8)?);
        (!target.is_multicast()).then_some(target)
    }

    /// The options behind the fixed part of `from` octets; `None` if either is cut short, or an
    /// option has no length (RFC 4861 §4.6).
    fn options(&self, from: usize) -> Option<Options<'_>> {
        let mut rest = self.octets.get(from..)?;
        let mut options = Options::default();
        while !rest.is_empty() {
            let len = usize::from(*rest.get(1)?) * 8;
            let (option, behind) = rest.split_at_checked(len).filter(|_| len > 0)?;
            options.add(option);
            rest = behind;
        }
        Some(options)
    }
}

/// The options that some message needs, each from its type octet on. They are looked into by the
/// messages that know them only: others have to ignore them, whatever they hold.
#[derive(Default)]
struct Options<'a> {
    source_link_layer: Option<&'a [u8]>,
    target_link_layer: Option<&'a [u8]>,
    mtu: Option<&'a [u8]>,
}

impl<'a> Options<'a> {
    /// Of options that repeat, the first counts, as it does for Linux.
    fn add(&mut self, option: &'a [u8]) {
        let place = match option.first() {
            Some(&OPTION_SOURCE_LINK_LAYER) => &mut self.source_link_layer,
            Some(&OPTION_TARGET_LINK_LAYER) => &mut self.target_link_layer,
            Some(&OPTION_MTU) => &mut self.mtu,
            _ => return,
        };
        place.get_or_insert(option);
    }
}

/// The last `N` octets of an option; `None` if it is there and has the wrong length.
fn option_value<const N: usize>(option: Option<&[u8]>) -> Option<Option<[u8; N]>> {
    match option {
        None => Some(None),
        Some(option) if option.len() == OPTION_LEN => option.last_chunk().map(|value| Some(*value)),
        Some(_) => None,
    }
}

/// `None` for a link-layer address that is not Ethernet's.
fn link_layer_address(option: Option<&[u8]>) -> Option<Option<MacAddr>> {
    option_value(option).map(|value| value.map(MacAddr))
}

fn mtu(option: Option<&[u8]>) -> Option<Option<u32>> {
    option_value(option).map(|value| value.map(u32::from_be_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{FramePool, MAX_FRAME};
    use etherparse::icmpv6::{Icmpv6PayloadSlice, NdpOptionSlice};
    use etherparse::{Icmpv6Slice, Icmpv6Type, Ipv6HeaderSlice};
    use proptest::prelude::*;

    const A: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xa]);
    const B: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xb]);
    const TARGET: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0x12, 0x3456);

    fn mac() -> impl Strategy<Value = MacAddr> {
        any::<[u8; 6]>().prop_map(MacAddr)
    }

    fn option() -> impl Strategy<Value = Option<MacAddr>> {
        proptest::option::of(mac())
    }

    fn unicast() -> impl Strategy<Value = Ipv6Addr> {
        any::<u128>().prop_map(|bits| Ipv6Addr::from_bits(bits >> 1 | 1))
    }

    fn link_local() -> impl Strategy<Value = Ipv6Addr> {
        any::<u64>().prop_map(|id| Ipv6Addr::from_bits(0xfe80 << 112 | u128::from(id)))
    }

    fn router_advert() -> impl Strategy<Value = Ndp> {
        let numbers = any::<(u8, bool, bool, u16, u32, u32)>();
        (numbers, option(), any::<Option<u32>>()).prop_map(
            |((hop_limit, managed, other, lifetime, reachable_time, retrans_timer), mac, mtu)| {
                Ndp::RouterAdvert(RouterAdvert {
                    hop_limit,
                    managed,
                    other,
                    lifetime,
                    reachable_time,
                    retrans_timer,
                    source_link_layer: mac,
                    mtu,
                })
            },
        )
    }

    /// A valid message, but that its envelope may not fit.
    fn message() -> impl Strategy<Value = Ndp> {
        prop_oneof![
            option().prop_map(|source_link_layer| Ndp::RouterSolicit { source_link_layer }),
            router_advert(),
            (unicast(), option()).prop_map(|(target, source_link_layer)| Ndp::NeighborSolicit {
                target,
                source_link_layer
            }),
            (any::<[bool; 3]>(), unicast(), option()).prop_map(
                |([router, solicited, overrides], target, target_link_layer)| {
                    Ndp::NeighborAdvert {
                        router,
                        solicited,
                        overrides,
                        target,
                        target_link_layer,
                    }
                }
            ),
            (link_local(), unicast()).prop_map(|(target, destination)| Ndp::Redirect {
                target,
                destination
            }),
        ]
    }

    /// An envelope that fits every message.
    fn envelope() -> impl Strategy<Value = Envelope> {
        let fields = (mac(), mac(), link_local(), unicast());
        fields.prop_map(
            |(source_mac, destination_mac, source, destination)| Envelope {
                source_mac,
                destination_mac,
                source,
                destination,
            },
        )
    }

    fn plain() -> Envelope {
        Envelope {
            source_mac: A,
            destination_mac: B,
            source: A.link_local(),
            destination: B.link_local(),
        }
    }

    fn solicit() -> Ndp {
        Ndp::NeighborSolicit {
            target: TARGET,
            source_link_layer: None,
        }
    }

    fn written(message: &Ndp, envelope: &Envelope) -> Vec<u8> {
        let mut frame = FramePool::new(1, 200).alloc().unwrap();
        message.write(&mut frame, envelope).unwrap();
        assert!(frame.len() <= NDP_FRAME);
        frame.bytes().to_vec()
    }

    fn parsed(octets: &[u8]) -> Result<Ndp, DropReason> {
        let frame = FramePool::new(1, MAX_FRAME).copy_from(octets).unwrap();
        Ndp::parse(&Packet::parse(frame).map_err(|rejected| rejected.reason)?)
    }

    /// Puts `message` (checksum not yet right) into a packet.
    fn packed(message: &[u8], envelope: &Envelope) -> Vec<u8> {
        let mut octets = written(&solicit(), envelope);
        octets.truncate(54);
        octets.extend(message);
        mended(octets)
    }

    /// Makes lengths and checksum right.
    fn mended(mut octets: Vec<u8>) -> Vec<u8> {
        let len = octets.len() - 54;
        octets[18..20].copy_from_slice(&(len as u16).to_be_bytes());
        octets[56..58].fill(0);
        let sum = Sum::ZERO
            .plus(&octets[22..])
            .add_u16(58)
            .add_u16(len as u16);
        octets[56..58].copy_from_slice(&sum.checksum().to_be_bytes());
        octets
    }

    /// What etherparse reads.
    fn theirs(octets: &[u8]) -> Ndp {
        let header = Ipv6HeaderSlice::from_slice(&octets[14..]).unwrap();
        assert_eq!(usize::from(header.payload_length()), octets.len() - 54);
        assert_eq!(header.hop_limit(), 255);
        let icmp = Icmpv6Slice::from_slice(&octets[54..]).unwrap();
        assert!(icmp.is_checksum_valid(header.source(), header.destination()));
        let mut options = (None, None, None);
        let mut look = |option| match option {
            NdpOptionSlice::SourceLinkLayerAddress(mac) => {
                options.0 = Some(MacAddr(mac.link_layer_address().try_into().unwrap()));
            }
            NdpOptionSlice::TargetLinkLayerAddress(mac) => {
                options.1 = Some(MacAddr(mac.link_layer_address().try_into().unwrap()));
            }
            NdpOptionSlice::Mtu(mtu) => options.2 = Some(mtu.mtu()),
            other => panic!("nobody wrote {other:?}"),
        };
        match (icmp.icmp_type(), icmp.payload_slice().unwrap()) {
            (Icmpv6Type::RouterSolicitation, Icmpv6PayloadSlice::RouterSolicitation(body)) => {
                body.options_iterator()
                    .for_each(|option| look(option.unwrap()));
                Ndp::RouterSolicit {
                    source_link_layer: options.0,
                }
            }
            (
                Icmpv6Type::RouterAdvertisement(head),
                Icmpv6PayloadSlice::RouterAdvertisement(body),
            ) => {
                body.options_iterator()
                    .for_each(|option| look(option.unwrap()));
                Ndp::RouterAdvert(RouterAdvert {
                    hop_limit: head.cur_hop_limit,
                    managed: head.managed_address_config,
                    other: head.other_config,
                    lifetime: head.router_lifetime,
                    reachable_time: body.reachable_time(),
                    retrans_timer: body.retrans_timer(),
                    source_link_layer: options.0,
                    mtu: options.2,
                })
            }
            (Icmpv6Type::NeighborSolicitation, Icmpv6PayloadSlice::NeighborSolicitation(body)) => {
                body.options_iterator()
                    .for_each(|option| look(option.unwrap()));
                Ndp::NeighborSolicit {
                    target: body.target_address(),
                    source_link_layer: options.0,
                }
            }
            (
                Icmpv6Type::NeighborAdvertisement(head),
                Icmpv6PayloadSlice::NeighborAdvertisement(body),
            ) => {
                body.options_iterator()
                    .for_each(|option| look(option.unwrap()));
                Ndp::NeighborAdvert {
                    router: head.router,
                    solicited: head.solicited,
                    overrides: head.r#override,
                    target: body.target_address(),
                    target_link_layer: options.1,
                }
            }
            (Icmpv6Type::Redirect, Icmpv6PayloadSlice::Redirect(body)) => Ndp::Redirect {
                target: body.target_address(),
                destination: body.destination_address(),
            },
            other => panic!("not Neighbor Discovery: {other:?}"),
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_here_and_by_etherparse(message in message(), envelope in envelope()) {
            let octets = written(&message, &envelope);
            prop_assert_eq!(parsed(&octets), Ok(message));
            prop_assert_eq!(theirs(&octets), message);
            prop_assert_eq!(&octets[..6], &envelope.destination_mac.0);
            prop_assert_eq!(&octets[6..12], &envelope.source_mac.0);
        }

        #[test]
        fn any_message_is_judged(kind in 133..=137_u8, body in proptest::collection::vec(any::<u8>(), 4..100)) {
            let message: Vec<u8> = [kind, 0, 0, 0].into_iter().chain(body).collect();
            let _ = parsed(&packed(&message, &plain()));
        }

        /// No option reaches behind the message, none is shorter than it says.
        #[test]
        fn any_options_are_judged_as_the_rfc_says(options in proptest::collection::vec(any::<[u8; 8]>().prop_map(|mut option| { option[1] %= 4; option }), 0..6)) {
            let mut message = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &TARGET.octets()].concat();
            message.extend(options.as_flattened());
            let mut at = 0;
            let mut valid = true;
            let mut source = None;
            while valid && at < options.len() {
                let [kind, len, ..] = options[at];
                valid = len > 0 && at + usize::from(len) <= options.len();
                if kind == 1 && source.is_none() {
                    source = Some((len, options[at]));
                }
                at += usize::from(len);
            }
            valid &= source.is_none_or(|(len, _)| len == 1);
            let expected = valid.then(|| Ndp::NeighborSolicit {
                target: TARGET,
                source_link_layer: source.map(|(_, option)| MacAddr(option[2..].try_into().unwrap())),
            });
            prop_assert_eq!(parsed(&packed(&message, &plain())).ok(), expected);
        }
    }

    #[test]
    fn group_addresses_follow_the_rfcs() {
        assert_eq!(solicited_node(TARGET).to_string(), "ff02::1:ff12:3456");
        let mac = multicast_mac(solicited_node(TARGET));
        assert_eq!(mac.to_string(), "33:33:ff:12:34:56");
    }

    /// A change to a good solicitation, and whether it stays good.
    #[test]
    fn hop_limit_code_checksum_and_fragment_header_are_checked() {
        let good = written(&solicit(), &plain());
        assert_eq!(parsed(&good), Ok(solicit()));
        let bad = Err(DropReason::NdpMalformed);
        let changed = |at: usize, value: u8| {
            let mut octets = good.clone();
            octets[at] = value;
            octets
        };
        assert_eq!(parsed(&changed(21, 254)), bad, "hop limit");
        assert_eq!(parsed(&mended(changed(55, 1))), bad, "code");
        assert_eq!(parsed(&changed(57, !good[57])), bad, "checksum");
        assert_eq!(parsed(&mended(changed(62, 0xff))), bad, "multicast target");
        assert_eq!(parsed(&mended(changed(22, 0xff))), bad, "multicast source");
        assert_eq!(parsed(&mended(changed(54, 138))), bad, "another type");
        let mut atomic = good.clone();
        atomic.splice(54..54, [58, 0, 0, 0, 0, 0, 0, 1]);
        atomic[18..21].copy_from_slice(&[0, 32, 44]);
        assert_eq!(parsed(&atomic), bad, "fragment header");
        let mut short = good.clone();
        short.truncate(54 + 23);
        assert_eq!(parsed(&mended(short)), bad, "short");
    }

    #[test]
    fn duplicate_address_detection_has_rules_of_its_own() {
        let probe = Envelope::to_group(A, Ipv6Addr::UNSPECIFIED, solicited_node(TARGET));
        assert_eq!(parsed(&written(&solicit(), &probe)), Ok(solicit()));
        let to_one = Envelope {
            destination: TARGET,
            ..probe
        };
        assert!(parsed(&written(&solicit(), &to_one)).is_err());
        let with_mac = Ndp::NeighborSolicit {
            target: TARGET,
            source_link_layer: Some(A),
        };
        assert!(parsed(&written(&with_mac, &probe)).is_err());
    }

    #[test]
    fn router_solicitation_without_address_names_no_mac() {
        let from_nobody = Envelope::to_group(A, Ipv6Addr::UNSPECIFIED, ALL_ROUTERS);
        let solicit = |source_link_layer| Ndp::RouterSolicit { source_link_layer };
        assert!(parsed(&written(&solicit(None), &from_nobody)).is_ok());
        assert!(parsed(&written(&solicit(Some(A)), &from_nobody)).is_err());
        let from_a = Envelope::to_group(A, A.link_local(), ALL_ROUTERS);
        assert!(parsed(&written(&solicit(Some(A)), &from_a)).is_ok());
    }

    #[test]
    fn advertisements_and_redirects_come_from_proper_senders() {
        let solicited = |destination| {
            let advert = Ndp::NeighborAdvert {
                router: true,
                solicited: true,
                overrides: false,
                target: TARGET,
                target_link_layer: Some(A),
            };
            parsed(&written(
                &advert,
                &Envelope {
                    destination,
                    ..plain()
                },
            ))
        };
        assert!(solicited(B.link_local()).is_ok());
        assert!(solicited(ALL_NODES).is_err());
        let from =
            |message: Ndp, source| parsed(&written(&message, &Envelope { source, ..plain() }));
        let advert = Ndp::RouterAdvert(RouterAdvert::default());
        assert!(from(advert, A.link_local()).is_ok());
        assert!(from(advert, TARGET).is_err());
        let redirect = |target: Ipv6Addr, destination| Ndp::Redirect {
            target,
            destination,
        };
        assert!(from(redirect(TARGET, TARGET), A.link_local()).is_ok());
        assert!(from(redirect(TARGET, TARGET), TARGET).is_err());
        assert!(from(redirect(B.link_local(), TARGET), A.link_local()).is_ok());
        assert!(from(redirect(TARGET, B.link_local()), A.link_local()).is_err());
        assert!(from(redirect(B.link_local(), ALL_NODES), A.link_local()).is_err());
    }

    #[test]
    fn options_for_other_messages_are_ignored() {
        // A solicitation with a target link-layer address of sixteen octets, and an MTU of none.
        let mut message = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &TARGET.octets()].concat();
        message.extend([2, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        message.extend([5, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(parsed(&packed(&message, &plain())), Ok(solicit()));
    }

    #[test]
    fn nothing_else_is_neighbor_discovery() {
        let mut octets = written(&solicit(), &plain());
        octets[54] = 128;
        let frame = FramePool::new(1, 200).copy_from(&mended(octets)).unwrap();
        let packet = Packet::parse(frame).unwrap();
        assert!(!is_ndp(&packet));
        assert_eq!(Ndp::parse(&packet), Err(DropReason::NdpMalformed));
    }
}
