//! What [`super::world`] is made of: addresses, attachments, uplinks, routes, frames.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use nos_relay::data::relay::{AttachmentConfig, LinkLocal};
use nos_shim::arp::{Arp, Operation};
use nos_shim::fib::{Action, NextHop, NextHops, Route, Source};
use nos_shim::frame::ETHERNET_HEADER;
use nos_shim::ident::{AttachmentId, Interface, MacAddr, UplinkId, VrfId};
use nos_shim::ndp::{Envelope, Ndp};
use nos_shim::ports::{
    AddressMode, Claim, ClaimKind, Outside, Policy, PortRange, Restriction, Transport,
};
use nos_shim::prefix_set::PrefixSet;
use nos_shim::services::{Service, ServiceConfig};
use nos_shim::shim::UplinkConfig;

use super::frames::{self, Draft};

/// Addresses of both families, the host part apart.
pub fn network(uplink: u32, host: u8) -> (Ipv4Addr, Ipv6Addr) {
    let net = if uplink == 0 {
        [203, 0, 113]
    } else {
        [198, 51, 100]
    };
    let v4 = Ipv4Addr::new(net[0], net[1], net[2], host);
    let v6 = Ipv6Addr::new(0x2001, 0xdb8, 1 + uplink as u16, 0, 0, 0, 0, host.into());
    (v4, v6)
}

/// How many uplinks a NOS may have.
pub const UPLINKS: u8 = 2;
/// By uplink.
pub const MTU: [usize; 2] = [1500, 1280];

/// From the first port of a range to its last.
const LAST: u16 = 15;

/// The VRF that an octet names.
pub fn vrf(octet: u8) -> VrfId {
    VrfId(u16::from(octet & 1))
}

/// What a container asks for. `more`: its VRF (bit 0), whether it shares the link-local address of
/// uplink 0 (bit 1), and of a policy `from` (bit 2), `established` (3), `to` (4) and `outside` (5).
pub fn attachment(id: AttachmentId, flavour: u8, more: u8) -> AttachmentConfig {
    if flavour >> 5 == 5 {
        return routed(id, flavour, more);
    }
    let base = 20_000 + 1000 * id.0 as u16;
    // Short, as each port of each address is looked at when they are asked for.
    let listens = match flavour & 3 {
        0 => base..=base + LAST,
        // Clashes with others.
        1 => 20_000..=base + LAST,
        // Clashes with the NOS's own.
        2 => 7..=7,
        _ => base..=base,
    };
    let claim = |transport, ports: core::ops::RangeInclusive<u16>, kind| Claim {
        transport,
        range: PortRange::new(*ports.start(), *ports.end()).expect("ascending"),
        kind,
    };
    let opens = 40_000 + 1000 * id.0 as u16;
    let claims = [Transport::Tcp, Transport::Udp].into_iter().flat_map(|it| {
        let listen = claim(it, listens.clone(), ClaimKind::Listen);
        [
            listen,
            claim(it, opens..=opens + LAST, ClaimKind::Ephemeral),
        ]
    });
    let networks: &[u32] = match flavour >> 2 & 3 {
        0 => &[0],
        1 => &[1],
        2 => &[0, 1],
        _ => &[],
    };
    let addresses = networks.iter().map(|&uplink| network(uplink, 1));
    let link_local = LinkLocal {
        uplink: UplinkId(0),
        address: nos_mac(UplinkId(0)).link_local(),
    };
    let claims: Vec<Claim> = claims.collect();
    AttachmentConfig {
        id,
        name: format!("c{}", id.0).into(),
        vrf: vrf(more),
        network: nos_shim::ident::NetworkId::DEFAULT,
        mac: container_mac(id),
        link_local: (more & 2 != 0).then_some(link_local),
        relay_mac: relay_mac(id),
        mode: AddressMode::Shared,
        addresses: addresses
            .flat_map(|(v4, v6)| [v4.into(), v6.into()])
            .collect(),
        policy: policy(&claims, more),
        claims,
        mtu: if flavour & 0x10 == 0 { 1500 } else { 1280 },
        // Others on the link have addresses of the second network.
        segment: (flavour >> 5 == 6).then(|| {
            let (v4, v6) = network(1, 0);
            let nets = [IpNet::new(v4.into(), 24), IpNet::new(v6.into(), 64)];
            nets.into_iter().filter_map(Result::ok).collect()
        }),
    }
}

/// One with addresses of its own, in the network of uplink 0 and in none; another one may ask for the same. Of a
/// policy it may have `from` and `to`.
fn routed(id: AttachmentId, flavour: u8, more: u8) -> AttachmentConfig {
    let shared = attachment(id, flavour & 0x1f, more & 1);
    let host = 100 + (flavour >> 2 & 3);
    let (v4, v6) = network(0, host);
    let (far4, far6) = network(7, host);
    let own = [v4.into(), v6.into(), far4.into(), far6.into()];
    let all = [Transport::Tcp, Transport::Udp].map(|transport| Claim {
        transport,
        range: PortRange::new(1, u16::MAX).expect("ascending"),
        kind: ClaimKind::Listen,
    });
    AttachmentConfig {
        mode: AddressMode::Routed,
        addresses: own[..usize::from(1 + (flavour & 3))].to_vec(),
        claims: Vec::new(),
        link_local: None,
        policy: policy(&all, more & (4 | 16)),
        ..shared
    }
}

/// Neighbors of uplink 0 alone.
fn policy(claims: &[Claim], more: u8) -> Policy {
    let (v4, v6) = network(0, 0);
    let near = [(IpAddr::from(v4), 24), (v6.into(), 64)];
    let near = near.map(|(address, length)| IpNet::new(address, length).expect("a length"));
    // To make one takes long.
    let near = (more & (4 | 16) != 0).then(|| Arc::new(PrefixSet::new(near)));
    let of_kind = |kind| claims.iter().filter(move |claim| claim.kind == kind);
    let from = of_kind(ClaimKind::Listen).filter_map(|claim| {
        Some(Restriction {
            transport: claim.transport,
            range: claim.range,
            from: near.clone()?,
        })
    });
    let established = of_kind(ClaimKind::Ephemeral).map(|claim| claim.range);
    Policy {
        from: from.filter(|_| more & 4 != 0).collect(),
        // They are those of both protocols.
        established: established.take(usize::from(more >> 3 & 1)).collect(),
        to: near.clone().filter(|_| more & 16 != 0),
        outside: if more & 32 != 0 {
            Outside::Learn
        } else {
            Outside::Drop
        },
    }
}

fn container_mac(id: AttachmentId) -> MacAddr {
    MacAddr([2, 0, 0, 0, 1, id.0 as u8])
}

fn relay_mac(id: AttachmentId) -> MacAddr {
    MacAddr([2, 0, 0, 0, 2, id.0 as u8])
}

fn nos_mac(id: UplinkId) -> MacAddr {
    MacAddr([2, 0, 0, 0, 3, id.0 as u8])
}

fn neighbor_mac(id: UplinkId) -> MacAddr {
    MacAddr([2, 0, 0, 0, 4, id.0 as u8])
}

/// On a link between two NOSes each is the other's neighbor.
pub fn exchanged_macs(frame: &mut [u8]) {
    let uplink = UplinkId(1);
    let other = |mac: &[u8]| {
        if mac == neighbor_mac(uplink).0 {
            Some(nos_mac(uplink))
        } else if mac == nos_mac(uplink).0 {
            Some(neighbor_mac(uplink))
        } else {
            None
        }
    };
    for at in [0, 6] {
        if let Some(mac) = frame.get_mut(at..at + 6)
            && let Some(other) = other(mac)
        {
            mac.copy_from_slice(&other.0);
        }
    }
}

/// Of who sends on an interface, and of who receives.
pub fn macs(from: Interface) -> (MacAddr, MacAddr) {
    match from {
        Interface::Attachment(id) => (container_mac(id), relay_mac(id)),
        Interface::Uplink(id) => (neighbor_mac(id), nos_mac(id)),
    }
}

/// What an uplink of a NOS is like.
pub fn uplink(id: UplinkId, flavour: u8, of: VrfId) -> UplinkConfig {
    let hosts: &[u8] = match flavour & 7 {
        0 => &[1],
        1 => &[9],
        2 => &[1, 9],
        // Who is the neighbor of others.
        4 => &[2],
        _ => &[],
    };
    let addresses = hosts.iter().flat_map(|&host| {
        let (v4, v6) = network(id.0, host);
        [(IpAddr::from(v4), 24), (IpAddr::from(v6), 64)]
    });
    UplinkConfig {
        id,
        name: format!("up{}", id.0).into(),
        vrf: of,
        mac: nos_mac(id),
        addresses: addresses
            .filter_map(|(address, length)| IpNet::new(address, length).ok())
            .collect(),
        mtu: MTU[id.0 as usize],
        redirects: true,
    }
}

/// The one uplink towards a NOS in another process, with the addresses that it shares.
pub fn shared_link(flavour: u8) -> UplinkConfig {
    let networks: &[u32] = match flavour & 3 {
        0 => &[0],
        1 => &[1],
        2 => &[0, 1],
        _ => &[],
    };
    let addresses = networks.iter().flat_map(|&of| {
        let (v4, v6) = network(of, 1);
        [IpNet::from(IpAddr::from(v4)), IpAddr::from(v6).into()]
    });
    // Of one family, or of both.
    let wanted = |address: &IpNet| match flavour >> 2 & 3 {
        1 => address.addr().is_ipv4(),
        2 => address.addr().is_ipv6(),
        _ => true,
    };
    UplinkConfig {
        redirects: flavour & 0x10 != 0,
        addresses: addresses.filter(wanted).collect(),
        ..uplink(UplinkId(0), 3, VrfId::DEFAULT)
    }
}

/// Static routes of a VRF.
pub fn routes(flavour: u8, vrf: VrfId) -> Vec<Route> {
    let hop = |uplink, v6| {
        let (gateway4, gateway6) = network(uplink, 2);
        NextHop {
            gateway: if v6 { gateway6.into() } else { gateway4.into() },
            uplink: UplinkId(uplink),
        }
    };
    let via = |hops: Vec<NextHop>| NextHops::new(hops).map_or(Action::Blackhole, Action::Via);
    // Default routes are slow to insert, so they are an exception here.
    let wide = if flavour & 8 == 0 {
        [("192.0.0.0/16", false), ("2001:db8::/32", true)]
    } else {
        [("0.0.0.0/0", false), ("::/0", true)]
    };
    let mut routes: Vec<_> = wide
        .into_iter()
        .map(|(prefix, v6)| {
            let action = match flavour & 3 {
                0 => via(vec![hop(0, v6)]),
                1 => via(vec![hop(0, v6), hop(1, v6)]),
                2 => Action::Unreachable,
                _ => Action::Blackhole,
            };
            (prefix, action)
        })
        .collect();
    if flavour & 4 != 0 {
        routes.push(("192.0.2.0/25", Action::Blackhole));
        routes.push(("2001:db8:9::/64", Action::Unreachable));
    }
    let route = |(prefix, action): (&str, _)| Route {
        vrf,
        prefix: prefix.parse().expect("a prefix"),
        source: Source::Static { metric: 0 },
        action,
    };
    routes.into_iter().map(route).collect()
}

/// What the NOS itself offers.
pub fn services(flavour: u8) -> ServiceConfig {
    let all = [Service::Echo, Service::Discard];
    let chosen = all
        .into_iter()
        .zip(0..)
        .filter(|(_, bit)| flavour >> bit & 1 != 0);
    let mut services: Vec<_> = chosen.map(|(service, _)| service).collect();
    if flavour & 4 != 0 {
        services.extend(core::num::NonZeroU16::new(80).map(Service::Http));
    }
    ServiceConfig {
        ping: flavour & 8 == 0,
        services,
        from: Vec::new(),
    }
}

/// The draft that twelve octets describe, as it comes from an interface.
pub fn draft(from: Interface, octets: [u8; 12]) -> Draft {
    let [
        family,
        source,
        destination,
        protocol,
        kind,
        ttl,
        from_a,
        from_b,
        to_a,
        to_b,
        size,
        fragment,
    ] = octets;
    let address = |choice: u8| match choice % 8 {
        0 => network(0, 1),
        1 => network(1, 1),
        2 => network(0, 2),
        3 => network(1, 2),
        4 => (
            Ipv4Addr::new(192, 0, 2, choice),
            Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, choice.into()),
        ),
        5 => (
            Ipv4Addr::new(224, 0, 0, 1),
            Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1),
        ),
        6 => network(0, choice),
        _ => network(1, choice),
    };
    let (source, destination) = (address(source), address(destination));
    let is_v6 = family & 1 != 0;
    Draft {
        macs: macs(from),
        v4: (source.0.octets(), destination.0.octets()),
        v6: (source.1.octets(), destination.1.octets()),
        is_v6,
        ttl,
        ports: (
            u16::from_be_bytes([from_a, from_b]),
            u16::from_be_bytes([to_a, to_b]),
        ),
        protocol: match protocol % 4 {
            0 => 6,
            1 => 17,
            2 if is_v6 => 58,
            2 => 1,
            _ => protocol,
        },
        kind,
        payload: usize::from(size) * 32,
        // Offset in units of 72 octets (a UDP header and size 2), "more fragments", "don't".
        fragment: (u16::from(fragment & 0x1f) * 9) | (u16::from(fragment >> 5 & 3) << 13),
    }
}

/// What a neighbor answers to a question of ARP or Neighbor Discovery.
pub fn answer_to(question: &[u8]) -> Option<Vec<u8>> {
    let mut frame = frames::spare(&[])?;
    let asker = MacAddr(question.get(6..12)?.try_into().ok()?);
    // Uplinks are told by the last octet of their MAC addresses.
    let mac = neighbor_mac(UplinkId(u32::from(asker.0[5])));
    if let Ok(arp) = Arp::parse(question) {
        if arp.operation != Operation::Request || arp.is_announcement() {
            return None;
        }
        arp.reply(mac).write(&mut frame, asker).ok()?;
        return Some(frame.bytes().to_vec());
    }
    let packet = frames::parse(question)?;
    let IpAddr::V6(source) = packet.source() else {
        return None;
    };
    let Ok(Ndp::NeighborSolicit { target, .. }) = Ndp::parse(&packet) else {
        return None;
    };
    let advert = Ndp::NeighborAdvert {
        router: false,
        solicited: true,
        overrides: true,
        target,
        target_link_layer: Some(mac),
    };
    let envelope = Envelope {
        source_mac: mac,
        destination_mac: asker,
        source: target,
        destination: source,
    };
    advert.write(&mut frame, &envelope).ok()?;
    let length = frame.len().max(ETHERNET_HEADER);
    Some(frame.bytes()[..length].to_vec())
}
