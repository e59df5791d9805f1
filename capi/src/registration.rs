//! What a container needs of the NOS, both ways.

use core::ffi::c_char;
use core::net::{IpAddr, Ipv6Addr};
use std::ffi::CString;
use std::sync::Arc;

use ipnet::IpNet;
use nos_shim::ident::{AttachmentId, NetworkId, UplinkId, VrfId};
use nos_shim::ports::{
    AddressMode, Claim, ClaimKind, Outside, Policy, PortRange, Registration, Restriction, Transport,
};
use nos_shim::prefix_set::PrefixSet;

use crate::address::{self, nos_relay_address, nos_relay_prefix};
use crate::failure::Failure;
use crate::input::{Name, slice, text, value};

/// The IP protocol number of TCP.
pub const NOS_RELAY_TCP: u8 = 6;
/// The IP protocol number of UDP.
pub const NOS_RELAY_UDP: u8 = 17;
/// Outsiders may open flows to these ports.
pub const NOS_RELAY_LISTEN: u8 = 1;
/// The owner opens its own flows from these ports; outsiders may only answer.
pub const NOS_RELAY_EPHEMERAL: u8 = 2;
/// Packets from ports that are not the container's are refused.
pub const NOS_RELAY_OUTSIDE_DROP: u8 = 0;
/// Packets from ports that are nobody's open flows, and their answers reach the container.
pub const NOS_RELAY_OUTSIDE_LEARN: u8 = 1;
/// The addresses are the NOS's, which shares them: the container owns ports on them.
pub const NOS_RELAY_ADDRESSES_SHARED: u8 = 0;
/// The addresses are the container's own, and the NOS routes packets to them. Then it has no claims, no link
/// and no policy.
pub const NOS_RELAY_ADDRESSES_ROUTED: u8 = 1;
/// No link-local address is shared.
pub const NOS_RELAY_NO_LINK: u32 = u32::MAX;

/// Ports, the first to the last, 1 to 65535.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct nos_relay_ports {
    /// The lowest.
    pub first: u16,
    /// The highest.
    pub last: u16,
}

/// Ports that a container would own, on each of its addresses.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct nos_relay_claim {
    /// NOS_RELAY_TCP or NOS_RELAY_UDP.
    pub transport: u8,
    /// NOS_RELAY_LISTEN or NOS_RELAY_EPHEMERAL.
    pub kind: u8,
    /// Which.
    pub ports: nos_relay_ports,
}

/// Ports to which not everybody may open flows.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct nos_relay_restriction {
    /// NOS_RELAY_TCP or NOS_RELAY_UDP.
    pub transport: u8,
    /// Which.
    pub ports: nos_relay_ports,
    /// Who may.
    pub prefixes: *const nos_relay_prefix,
    /// How many prefixes.
    pub prefix_count: usize,
}

/// What a container needs of the NOS: addresses to use as its own, and ports on them. All of it is granted,
/// or nothing.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct nos_relay_registration {
    /// Who asks.
    pub attachment: u32,
    /// Where its packets are looked up: a VRF below 32768.
    pub vrf: u16,
    /// Octets of the longest IP packet that its link takes.
    pub mtu: u16,
    /// What operators call it; UTF-8.
    pub name: *const c_char,
    /// The network that it is in: attachments of different networks are kept apart on addresses that both
    /// share. 0 where nothing else is said.
    pub network: u32,
    /// Addresses of the NOS that it shares, or its own: `mode` says which.
    pub addresses: *const nos_relay_address,
    /// How many addresses.
    pub address_count: usize,
    /// Ports that it owns on them.
    pub claims: *const nos_relay_claim,
    /// How many claims.
    pub claim_count: usize,
    /// The link whose link-local address it shares besides, or NOS_RELAY_NO_LINK.
    pub link: u32,
    /// The IPv6 link-local address by which it knows its router.
    pub router: [u8; 16],
    /// Its policy: listen ports to which not everybody may open flows. They do not overlap.
    pub from: *const nos_relay_restriction,
    /// How many restrictions.
    pub from_count: usize,
    /// Its policy: ephemeral ports that get only packets of flows that it has opened. They do not overlap.
    pub established: *const nos_relay_ports,
    /// How many ranges.
    pub established_count: usize,
    /// Its policy: where it may open flows to, if to_limited is not 0; else everywhere.
    pub to: *const nos_relay_prefix,
    /// How many prefixes.
    pub to_count: usize,
    /// Whether `to` says anything.
    pub to_limited: u8,
    /// Its policy: NOS_RELAY_OUTSIDE_DROP or NOS_RELAY_OUTSIDE_LEARN.
    pub outside: u8,
    /// Whose its addresses are: NOS_RELAY_ADDRESSES_SHARED or NOS_RELAY_ADDRESSES_ROUTED.
    pub mode: u8,
}

/// A registration for C, with what it points to.
pub(crate) struct Shown {
    name: CString,
    addresses: Vec<nos_relay_address>,
    claims: Vec<nos_relay_claim>,
    _prefixes: Vec<Vec<nos_relay_prefix>>,
    from: Vec<nos_relay_restriction>,
    established: Vec<nos_relay_ports>,
    to: Option<Vec<nos_relay_prefix>>,
    of: Registration,
}

// SAFETY: its pointers lead into what it owns itself, which nobody changes.
unsafe impl Send for Shown {}

fn ports(range: PortRange) -> nos_relay_ports {
    nos_relay_ports {
        first: range.first(),
        last: range.last(),
    }
}

fn number(transport: Transport) -> u8 {
    match transport {
        Transport::Tcp => NOS_RELAY_TCP,
        Transport::Udp => NOS_RELAY_UDP,
    }
}

pub(crate) fn kind(kind: ClaimKind) -> u8 {
    match kind {
        ClaimKind::Listen => NOS_RELAY_LISTEN,
        ClaimKind::Ephemeral => NOS_RELAY_EPHEMERAL,
    }
}

fn claim(claim: &Claim) -> nos_relay_claim {
    nos_relay_claim {
        transport: number(claim.transport),
        kind: kind(claim.kind),
        ports: ports(claim.range),
    }
}

fn prefixes(set: &PrefixSet) -> Vec<nos_relay_prefix> {
    set.prefixes().iter().map(|&prefix| prefix.into()).collect()
}

impl Shown {
    pub(crate) fn new(of: Registration) -> Self {
        let Policy {
            from,
            established,
            to,
            outside: _,
        } = &of.policy;
        let sets: Vec<_> = from.iter().map(|it| prefixes(&it.from)).collect();
        let restrictions = from.iter().zip(&sets);
        let restrictions = restrictions.map(|(it, prefixes)| nos_relay_restriction {
            transport: number(it.transport),
            ports: ports(it.range),
            prefixes: prefixes.as_ptr(),
            prefix_count: prefixes.len(),
        });
        Self {
            // The relay takes no name with NUL.
            name: CString::new(&*of.name).unwrap_or_default(),
            addresses: of.addresses.iter().map(|&address| address.into()).collect(),
            claims: of.claims.iter().map(claim).collect(),
            from: restrictions.collect(),
            _prefixes: sets,
            established: established.iter().map(|&range| ports(range)).collect(),
            to: to.as_deref().map(prefixes),
            of,
        }
    }

    /// The struct, whose pointers hold for as long as `self` does.
    pub(crate) fn registration(&self) -> nos_relay_registration {
        let to = self.to.as_deref();
        nos_relay_registration {
            attachment: self.of.attachment.0,
            vrf: self.of.vrf.0,
            mtu: self.of.mtu,
            name: self.name.as_ptr(),
            network: self.of.network.0,
            addresses: self.addresses.as_ptr(),
            address_count: self.addresses.len(),
            claims: self.claims.as_ptr(),
            claim_count: self.claims.len(),
            link: self.of.link_local.map_or(NOS_RELAY_NO_LINK, |link| link.0),
            router: self.of.router.octets(),
            from: self.from.as_ptr(),
            from_count: self.from.len(),
            established: self.established.as_ptr(),
            established_count: self.established.len(),
            to: to.unwrap_or_default().as_ptr(),
            to_count: to.unwrap_or_default().len(),
            to_limited: to.is_some().into(),
            outside: match self.of.policy.outside {
                Outside::Drop => NOS_RELAY_OUTSIDE_DROP,
                Outside::Learn => NOS_RELAY_OUTSIDE_LEARN,
            },
            mode: match self.of.mode {
                AddressMode::Shared => NOS_RELAY_ADDRESSES_SHARED,
                AddressMode::Routed => NOS_RELAY_ADDRESSES_ROUTED,
            },
        }
    }
}

pub(crate) fn transport(number: u8, name: impl Into<Name>) -> Result<Transport, Failure> {
    Transport::from_protocol(number).ok_or_else(|| {
        let what = format_args!("transport {number} is neither NOS_RELAY_TCP nor NOS_RELAY_UDP");
        value(name.into(), what)
    })
}

pub(crate) fn range(ports: nos_relay_ports, name: impl Into<Name>) -> Result<PortRange, Failure> {
    PortRange::new(ports.first, ports.last).map_err(|error| value(name.into(), error))
}

pub(crate) fn read_claim(claim: nos_relay_claim, name: Name) -> Result<Claim, Failure> {
    let kind = match claim.kind {
        NOS_RELAY_LISTEN => ClaimKind::Listen,
        NOS_RELAY_EPHEMERAL => ClaimKind::Ephemeral,
        other => {
            let what =
                format_args!("kind {other} is neither NOS_RELAY_LISTEN nor NOS_RELAY_EPHEMERAL");
            return Err(value(name, what));
        }
    };
    Ok(Claim {
        transport: transport(claim.transport, name)?,
        range: range(claim.ports, name)?,
        kind,
    })
}

/// # Safety
///
/// Where it points are so many of them, unless it is NULL or misaligned.
unsafe fn read_prefixes(
    pointer: *const nos_relay_prefix,
    count: usize,
    name: &'static str,
) -> Result<Arc<PrefixSet>, Failure> {
    // SAFETY: as the caller says.
    let prefixes = unsafe { slice(pointer, count, name) }?.iter().enumerate();
    let prefixes = prefixes.map(|(n, &prefix)| address::prefix(prefix, Name::Element(name, n)));
    Ok(Arc::new(prefixes.collect::<Result<PrefixSet, _>>()?))
}

/// # Safety
///
/// Its pointers are what the struct says, unless they are NULL or misaligned.
unsafe fn read_policy(from: &nos_relay_registration) -> Result<Policy, Failure> {
    // SAFETY: as the caller says.
    let restrictions = unsafe { slice(from.from, from.from_count, "from") }?;
    let restrictions = restrictions.iter().enumerate().map(|(n, it)| {
        let name = Name::Element("from", n);
        Ok(Restriction {
            transport: transport(it.transport, name)?,
            range: range(it.ports, name)?,
            // SAFETY: as the caller says.
            from: unsafe { read_prefixes(it.prefixes, it.prefix_count, "from->prefixes") }?,
        })
    });
    // SAFETY: as the caller says.
    let established = unsafe { slice(from.established, from.established_count, "established") }?;
    let established = established.iter().enumerate();
    let established = established.map(|(n, &ports)| range(ports, Name::Element("established", n)));
    let to = match from.to_limited {
        0 => None,
        // SAFETY: as the caller says.
        _ => Some(unsafe { read_prefixes(from.to, from.to_count, "to") }?),
    };
    let outside = match from.outside {
        NOS_RELAY_OUTSIDE_DROP => Outside::Drop,
        NOS_RELAY_OUTSIDE_LEARN => Outside::Learn,
        other => {
            return Err(value(
                "outside",
                format_args!("{other} is none of NOS_RELAY_OUTSIDE_*"),
            ));
        }
    };
    Ok(Policy {
        from: restrictions.collect::<Result<_, Failure>>()?,
        established: established.collect::<Result<_, _>>()?,
        to,
        outside,
    })
}

pub(crate) fn vrf(number: u16, name: &'static str) -> Result<VrfId, Failure> {
    if number < VrfId::COUNT {
        return Ok(VrfId(number));
    }
    Err(value(
        name,
        format_args!("{number} is no VRF; they are below {}", VrfId::COUNT),
    ))
}

/// # Safety
///
/// Its pointers are what the struct says, unless they are NULL or misaligned.
pub(crate) unsafe fn read(from: &nos_relay_registration) -> Result<Registration, Failure> {
    // SAFETY: as the caller says, here and below.
    let addresses = unsafe { slice(from.addresses, from.address_count, "addresses") }?;
    let addresses = addresses.iter().enumerate();
    let addresses = addresses.map(|(n, &it)| address::address(it, Name::Element("addresses", n)));
    // SAFETY: as above.
    let claims = unsafe { slice(from.claims, from.claim_count, "claims") }?;
    let claims = claims.iter().enumerate();
    let claims = claims.map(|(n, &it)| read_claim(it, Name::Element("claims", n)));
    Ok(Registration {
        attachment: AttachmentId(from.attachment),
        // SAFETY: as above.
        name: unsafe { text(from.name, "name") }?.into(),
        vrf: vrf(from.vrf, "vrf")?,
        network: NetworkId(from.network),
        mode: match from.mode {
            NOS_RELAY_ADDRESSES_SHARED => AddressMode::Shared,
            NOS_RELAY_ADDRESSES_ROUTED => AddressMode::Routed,
            other => {
                let what = format_args!("{other} is none of NOS_RELAY_ADDRESSES_*");
                return Err(value("mode", what));
            }
        },
        addresses: addresses.collect::<Result<Vec<IpAddr>, _>>()?,
        link_local: (from.link != NOS_RELAY_NO_LINK).then_some(UplinkId(from.link)),
        claims: claims.collect::<Result<_, _>>()?,
        // SAFETY: as above.
        policy: unsafe { read_policy(from) }?,
        router: Ipv6Addr::from(from.router),
        mtu: from.mtu,
    })
}

/// The prefixes of a text, separated by blanks.
pub(crate) fn prefixes_of(text: &str, name: &'static str) -> Result<Vec<IpNet>, Failure> {
    let parse = |part: &str| {
        let parsed = part.parse();
        parsed.map_err(|_| {
            let what = format_args!(
                "'{part}' is not an address with its prefix length, as 203.0.113.1/24"
            );
            value(name, what)
        })
    };
    text.split_ascii_whitespace().map(parse).collect()
}

/// The addresses of a text, separated by blanks.
pub(crate) fn addresses_of(text: &str, name: &'static str) -> Result<Vec<IpAddr>, Failure> {
    let parse = |part: &str| {
        let parsed = part.parse();
        parsed.map_err(|_| value(name, format_args!("'{part}' is not an address")))
    };
    text.split_ascii_whitespace().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Registration {
        let set = |text: &str| -> Arc<PrefixSet> {
            Arc::new(prefixes_of(text, "t").unwrap().into_iter().collect())
        };
        let range = |first, last| PortRange::new(first, last).unwrap();
        Registration {
            attachment: AttachmentId(70_000),
            name: "web".into(),
            vrf: VrfId(3),
            network: NetworkId(5),
            mode: AddressMode::Shared,
            addresses: addresses_of("203.0.113.1 2001:db8::1", "t").unwrap(),
            link_local: Some(UplinkId(2)),
            claims: vec![
                Claim {
                    transport: Transport::Tcp,
                    range: range(80, 81),
                    kind: ClaimKind::Listen,
                },
                Claim {
                    transport: Transport::Udp,
                    range: range(40_000, 65_535),
                    kind: ClaimKind::Ephemeral,
                },
            ],
            policy: Policy {
                from: vec![Restriction {
                    transport: Transport::Tcp,
                    range: range(80, 80),
                    from: set("192.0.2.0/24 2001:db8:2::/48"),
                }],
                established: vec![range(40_000, 41_000)],
                to: Some(set("")),
                outside: Outside::Learn,
            },
            router: "fe80::1".parse().unwrap(),
            mtu: 9000,
        }
    }

    #[test]
    fn registrations_come_back_from_c_as_they_went() {
        let plain = Registration {
            policy: Policy::default(),
            link_local: None,
            addresses: Vec::new(),
            claims: Vec::new(),
            ..full()
        };
        for registration in [full(), plain] {
            let shown = Shown::new(registration.clone());
            // SAFETY: its pointers lead into `shown`.
            let read = unsafe { read(&shown.registration()) }.unwrap();
            assert_eq!(read, registration);
        }
    }
}
