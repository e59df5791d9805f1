//! The port table.

use core::ffi::c_int;
use core::mem::MaybeUninit;

use nos_shim::icmp::Quote;
use nos_shim::ident::{AttachmentId, Interface, LocalAddressId, UplinkId};
use nos_shim::packet::{Fragment, Packet, protocol};
use nos_shim::ports::{ClaimKind, PortOwner, PortTable, Registration, Transport};

use crate::address::{self, nos_relay_address};
use crate::failure::{Code, Failure, Outcome, call};
use crate::handle::{Bound, Kind};
use crate::input::{Name, optional_place, place, places, read, slice, value};
use crate::packet::{borrow, nos_relay_packet};
use crate::registration::{self, kind, nos_relay_registration, transport, vrf};

/// Who owns which port of which address of the NOS: the table by which the shim finds whose a packet is. A
/// table belongs to the first thread that uses it, until nos_relay_table_unbind(); to others its functions say
/// NOS_RELAY_E_THREAD. There are at most 1024 at a time.
#[derive(Debug)]
pub struct nos_relay_table {
    _opaque: (),
}

/// No one has claimed the port: a host answers with a reset or an ICMP error.
pub const NOS_RELAY_NOBODY: u8 = 0;
/// It is the NOS's own.
pub const NOS_RELAY_NOS: u8 = 1;
/// It is a container's.
pub const NOS_RELAY_ATTACHMENT: u8 = 2;
/// Its destination is no address of the NOS in its VRF: it is to be routed.
pub const NOS_RELAY_ELSEWHERE: u8 = 3;
/// It is a later fragment: it goes where the first fragment of its datagram went.
pub const NOS_RELAY_FRAGMENT: u8 = 4;
/// It is a request or a reply of ICMP, which no port decides.
pub const NOS_RELAY_ICMP: u8 = 5;
/// It is of a protocol without ports.
pub const NOS_RELAY_OTHER_PROTOCOL: u8 = 6;
/// It is an ICMP error about nothing that a container has sent: to be dropped.
pub const NOS_RELAY_UNMATCHED: u8 = 7;

/// Its destination is a container's own: it is to be routed there, with one hop less to live.
pub const NOS_RELAY_ROUTED: u8 = 8;

/// Whose a port is, or a packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct nos_relay_owner {
    /// The container; NOS_RELAY_NO_ATTACHMENT if there is none.
    pub attachment: u32,
    /// NOS_RELAY_NOBODY, NOS_RELAY_NOS, NOS_RELAY_ATTACHMENT or, of a packet, what else.
    pub kind: u8,
    /// What the container may do with the port: NOS_RELAY_LISTEN or NOS_RELAY_EPHEMERAL; else 0.
    pub claim: u8,
    /// Not 0 if a policy has something to say: the registration's lists tell what.
    pub watched: u8,
}

impl nos_relay_owner {
    const fn of(kind: u8) -> Self {
        Self {
            attachment: crate::packet::NOS_RELAY_NO_ATTACHMENT,
            kind,
            claim: 0,
            watched: 0,
        }
    }

    fn attachment(id: AttachmentId, claim: ClaimKind, watched: bool) -> Self {
        Self {
            attachment: id.0,
            kind: NOS_RELAY_ATTACHMENT,
            claim: kind(claim),
            watched: watched.into(),
        }
    }
}

impl From<PortOwner> for nos_relay_owner {
    #[inline]
    fn from(owner: PortOwner) -> Self {
        match owner {
            PortOwner::Nobody => Self::of(NOS_RELAY_NOBODY),
            PortOwner::Nos => Self::of(NOS_RELAY_NOS),
            PortOwner::WatchedNos => Self {
                watched: 1,
                ..Self::of(NOS_RELAY_NOS)
            },
            PortOwner::Attachment { id, kind } => Self::attachment(id, kind, false),
            PortOwner::Watched { id, kind } => Self::attachment(id, kind, true),
        }
    }
}

static TABLES: Bound<PortTable> = Bound::new(Kind::Table);

pub(crate) fn with<R>(
    table: *mut nos_relay_table,
    body: impl FnOnce(&mut PortTable) -> Result<R, Failure>,
) -> Result<R, Failure> {
    TABLES.with(table.addr(), "table", body)
}

/// Makes a table without addresses, which nos_relay_table_free() frees.
///
/// Threads: any. The table belongs to the first thread that uses it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_table_new(table: *mut *mut nos_relay_table) -> c_int {
    call(|| {
        // SAFETY: it is where the result goes.
        let place = unsafe { place(table, "table") }?;
        let handle = TABLES.add(PortTable::new())?;
        place.write(core::ptr::without_provenance_mut(handle));
        Ok(())
    })
}

/// Gives a table up, so that another thread may use it.
///
/// Threads: the table's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_table_unbind(table: *mut nos_relay_table) -> c_int {
    call(|| TABLES.unbind(table.addr(), "table"))
}

/// Frees a table.
///
/// Threads: the table's, or any if it was given up.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_table_free(table: *mut nos_relay_table) -> c_int {
    call(|| TABLES.remove(table.addr(), "table").map(drop))
}

/// Makes an address one of the NOS's. What is registered on it holds from now on. `index`, which may be NULL, is
/// where nos_relay_table_owner() finds it. Adding it again changes nothing.
///
/// Threads: the table's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_table_add_address(
    table: *mut nos_relay_table,
    number: u16,
    address: *const nos_relay_address,
    index: *mut u32,
) -> c_int {
    call(|| {
        // SAFETY: they are a value, and where a result goes.
        let (address, index) =
            unsafe { (read(address, "address")?, optional_place(index, "index")?) };
        let (vrf, address) = (
            vrf(number, "number")?,
            address::address(address, "address")?,
        );
        with(table, |table| {
            let id = table.add_address(vrf, address);
            tell(index, id);
            Ok(())
        })
    })
}

fn tell(index: Option<&mut MaybeUninit<u32>>, id: LocalAddressId) {
    if let Some(place) = index {
        place.write(id.0);
    }
}

/// Makes an address none of the NOS's. Its ports are nobody's until it is added again, and its index may then
/// be another's.
///
/// Threads: the table's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_table_remove_address(
    table: *mut nos_relay_table,
    number: u16,
    address: *const nos_relay_address,
) -> c_int {
    call(|| {
        // SAFETY: it is a value.
        let address = unsafe { read(address, "address") }?;
        let (vrf, address) = (
            vrf(number, "number")?,
            address::address(address, "address")?,
        );
        with(table, |table| match table.remove_address(vrf, address) {
            true => Ok(()),
            false => Err(not_found(format_args!(
                "{address} is no address of the NOS in VRF {number}"
            ))),
        })
    })
}

#[cold]
fn not_found(message: impl core::fmt::Display) -> Failure {
    Failure::new(Code::NOS_RELAY_E_NOT_FOUND, message)
}

/// Tells the index of an address of the NOS.
///
/// Threads: the table's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_table_address(
    table: *mut nos_relay_table,
    number: u16,
    address: *const nos_relay_address,
    index: *mut u32,
) -> c_int {
    call(|| {
        // SAFETY: they are a value, and where a result goes.
        let (address, index) = unsafe { (read(address, "address")?, place(index, "index")?) };
        let (vrf, address) = (
            vrf(number, "number")?,
            address::address(address, "address")?,
        );
        let found = with(table, |table| Ok(table.address(vrf, address)))?;
        match found {
            Some(id) => {
                index.write(id.0);
                Ok(())
            }
            None => Err(not_found(format_args!(
                "{address} is no address of the NOS in VRF {number}"
            ))),
        }
    })
}

/// Makes the link-local address of a link one of the NOS's: of the link that registrations name. `index` may be
/// NULL.
///
/// Threads: the table's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_table_add_link(
    table: *mut nos_relay_table,
    link: u32,
    index: *mut u32,
) -> c_int {
    call(|| {
        // SAFETY: it is where a result goes.
        let index = unsafe { optional_place(index, "index") }?;
        with(table, |table| {
            tell(index, table.add_link(UplinkId(link)));
            Ok(())
        })
    })
}

/// Takes the link-local address of a link away.
///
/// Threads: the table's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_table_remove_link(
    table: *mut nos_relay_table,
    link: u32,
) -> c_int {
    call(|| {
        with(table, |table| match table.remove_link(UplinkId(link)) {
            true => Ok(()),
            false => Err(not_found(format_args!("the table has no link {link}"))),
        })
    })
}

/// Takes their ports from attachments, and grants those that register what they ask for, in place of what they
/// had before; all of it at once, or nothing: NOS_RELAY_E_REFUSED says whose ports are in the way. Attachments
/// to withdraw that are unknown do no harm. It is what nos_relay_port_answer() does with a request.
///
/// Threads: the table's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_table_exchange(
    table: *mut nos_relay_table,
    withdraw: *const u32,
    withdraw_count: usize,
    registrations: *const nos_relay_registration,
    registration_count: usize,
) -> c_int {
    call(|| {
        // SAFETY: they are values, whose pointers are what they say.
        let (withdraw, registrations) = unsafe {
            (
                slice(withdraw, withdraw_count, "withdraw")?,
                slice(registrations, registration_count, "registrations")?,
            )
        };
        let withdraw: Vec<_> = withdraw.iter().map(|&id| AttachmentId(id)).collect();
        let read = |registration| {
            // SAFETY: as above.
            unsafe { registration::read(registration) }
        };
        let register = registrations.iter().map(read);
        let register = register.collect::<Result<Vec<Registration>, _>>()?;
        with(table, |table| {
            let granted = table.exchange(&withdraw, &register, None);
            granted.map_err(|refused| Failure::new(Code::NOS_RELAY_E_REFUSED, refused))
        })
    })
}

/// Tells whose a port of an address is.
///
/// Threads: the table's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_table_owner(
    table: *mut nos_relay_table,
    index: u32,
    protocol: u8,
    port: u16,
    owner: *mut nos_relay_owner,
) -> c_int {
    call(|| {
        // SAFETY: it is where the result goes.
        let owner = unsafe { place(owner, "owner") }?;
        let transport = transport(protocol, "protocol")?;
        if port == 0 {
            return Err(value("port", "0 is reserved; ports are 1 to 65535"));
        }
        let found = with(table, |table| {
            Ok(table.owner(LocalAddressId(index), transport, port))
        })?;
        owner.write(found.into());
        Ok(())
    })
}

/// Tells whose `count` packets are, as the shim decides it of what ports decide: TCP and UDP by their destination
/// port, but a segment that opens a flow to an ephemeral port is nobody's; ICMP errors by the port from which
/// the quoted packet came. If one of the packets is wrong, those in front of it are told.
///
/// Threads: the table's, which has the packets.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_table_recipients(
    table: *mut nos_relay_table,
    packets: *const *mut nos_relay_packet,
    count: usize,
    owners: *mut nos_relay_owner,
) -> c_int {
    call(|| {
        // SAFETY: they are packets, and where results go.
        let (packets, owners) = unsafe {
            (
                slice(packets, count, "packets")?,
                places(owners, count, "owners")?,
            )
        };
        with(table, |table| -> Outcome {
            for (n, (&handle, place)) in packets.iter().zip(owners).enumerate() {
                // SAFETY: it is a packet of the caller's, or told to be none.
                let packet = unsafe { borrow(handle, Name::Element("packets", n)) }?;
                place.write(recipient(table, &packet));
            }
            Ok(())
        })
    })
}

/// Whose a packet is, as far as ports decide.
#[inline]
pub(crate) fn recipient(table: &PortTable, packet: &Packet) -> nos_relay_owner {
    described(table, packet, decided(table, packet))
}

/// The attachment that a packet is for, if [`recipient`] says so and no policy has a say; else what that says.
#[inline(always)]
pub(crate) fn container(
    table: &PortTable,
    packet: &Packet,
) -> Result<AttachmentId, nos_relay_owner> {
    match decided(table, packet) {
        Decided::By(PortOwner::Attachment { id, kind }) if is_open(table, packet, id, kind) => {
            Ok(id)
        }
        decided => Err(described(table, packet, decided)),
    }
}

/// What address and port say of a packet.
#[derive(Clone, Copy)]
enum Decided {
    /// It is not for the NOS.
    Elsewhere,
    /// It is for an address that this attachment has for its own.
    Routed(AttachmentId),
    /// It is for this address, and has no port.
    To(LocalAddressId),
    /// Its port is this one's.
    By(PortOwner),
}

#[inline(always)]
fn decided(table: &PortTable, packet: &Packet) -> Decided {
    let Some(address) = table.address(packet.frame().vrf(), packet.destination()) else {
        return routed(table, packet);
    };
    match (Transport::from_protocol(packet.protocol()), packet.ports()) {
        (Some(transport), Some(ports)) => {
            Decided::By(table.owner(address, transport, ports.destination))
        }
        _ => Decided::To(address),
    }
}

/// What becomes of a packet to no address of the NOS.
#[inline(never)]
fn routed(table: &PortTable, packet: &Packet) -> Decided {
    let own = table.routed(packet.frame().vrf(), packet.destination());
    own.map_or(Decided::Elsewhere, Decided::Routed)
}

#[inline]
fn described(table: &PortTable, packet: &Packet, decided: Decided) -> nos_relay_owner {
    match decided {
        Decided::Elsewhere => nos_relay_owner::of(NOS_RELAY_ELSEWHERE),
        Decided::Routed(id) => nos_relay_owner {
            attachment: id.0,
            ..nos_relay_owner::of(NOS_RELAY_ROUTED)
        },
        Decided::To(address) => without_port(table, address, packet),
        Decided::By(owner) => by_port(table, packet, owner),
    }
}

/// Whether a packet may come to an attachment's port: from outside a flow to an ephemeral one is not opened,
/// and nothing comes from an attachment of another network.
#[inline(always)]
fn is_open(table: &PortTable, packet: &Packet, id: AttachmentId, kind: ClaimKind) -> bool {
    let opens = || {
        kind == ClaimKind::Ephemeral
            && packet.opens_tcp_flow()
            && packet.frame().interface() != Some(Interface::Attachment(id))
    };
    !is_of_other_network(table, packet, id) && !opens()
}

#[inline(always)]
fn is_of_other_network(table: &PortTable, packet: &Packet, id: AttachmentId) -> bool {
    let from = packet.frame().interface();
    matches!(from, Some(Interface::Attachment(from)) if table.keeps_apart(from, id))
}

#[inline]
fn by_port(table: &PortTable, packet: &Packet, owner: PortOwner) -> nos_relay_owner {
    match owner {
        PortOwner::Attachment { id, kind } if !is_open(table, packet, id, kind) => {
            nos_relay_owner::of(NOS_RELAY_NOBODY)
        }
        PortOwner::Watched { id, .. } if is_of_other_network(table, packet, id) => {
            nos_relay_owner::of(NOS_RELAY_NOBODY)
        }
        owner => owner.into(),
    }
}

#[cold]
fn without_port(table: &PortTable, address: LocalAddressId, packet: &Packet) -> nos_relay_owner {
    if packet.fragment() == Fragment::Later {
        return nos_relay_owner::of(NOS_RELAY_FRAGMENT);
    }
    let icmp = match packet.is_ipv6() {
        true => protocol::ICMPV6,
        false => protocol::ICMP,
    };
    if packet.protocol() != icmp {
        return nos_relay_owner::of(NOS_RELAY_OTHER_PROTOCOL);
    }
    let Some(quote) = Quote::parse(packet) else {
        return nos_relay_owner::of(NOS_RELAY_ICMP);
    };
    // What we cannot have sent is not believed (RFC 5927 §4).
    if quote.addresses.source() != packet.destination() {
        return nos_relay_owner::of(NOS_RELAY_UNMATCHED);
    }
    let transport = Transport::from_protocol(quote.protocol);
    match (transport, quote.ports, quote.echo_id) {
        (Some(transport), Some(ports), _) => match table.owner(address, transport, ports.source) {
            PortOwner::Nobody => nos_relay_owner::of(NOS_RELAY_UNMATCHED),
            owner => owner.into(),
        },
        (None, _, Some(_)) => nos_relay_owner::of(NOS_RELAY_ICMP),
        _ => nos_relay_owner::of(NOS_RELAY_UNMATCHED),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use core::net::{Ipv4Addr, Ipv6Addr};
    use nos_shim::checksum::Sum;
    use nos_shim::frame::{FramePool, MAX_FRAME};
    use nos_shim::ident::VrfId;
    use nos_shim::ports::{Claim, Policy, PortRange, ServiceRegistration};

    pub(crate) const OWN: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
    pub(crate) const FAR: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
    const SYN: u8 = 0x02;
    const ACK: u8 = 0x10;

    /// An IPv4 packet without its Ethernet header. `fragment`: flags and offset.
    pub(crate) fn ipv4(
        ends: [Ipv4Addr; 2],
        protocol: u8,
        fragment: u16,
        payload: &[u8],
    ) -> Vec<u8> {
        let total = u16::try_from(20 + payload.len()).unwrap();
        let mut ip = vec![0x45, 0];
        ip.extend(total.to_be_bytes());
        ip.extend([0, 1]);
        ip.extend(fragment.to_be_bytes());
        ip.extend([64, protocol, 0, 0]);
        ip.extend(ends.into_iter().flat_map(|end| end.octets()));
        let sum = Sum::ZERO.plus(&ip).checksum();
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        ip.extend(payload);
        ip
    }

    fn tcp(ports: [u16; 2], flags: u8) -> Vec<u8> {
        let mut tcp: Vec<u8> = ports.into_iter().flat_map(u16::to_be_bytes).collect();
        tcp.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0, 9, 0, 0, 0, 0]);
        tcp
    }

    pub(crate) fn udp(ports: [u16; 2]) -> Vec<u8> {
        let mut udp: Vec<u8> = ports.into_iter().flat_map(u16::to_be_bytes).collect();
        udp.extend([0, 8, 0, 0]);
        udp
    }

    /// A port unreachable about this packet.
    fn unreachable(about: &[u8]) -> Vec<u8> {
        let mut icmp = vec![3, 3, 0, 0, 0, 0, 0, 0];
        icmp.extend(about);
        let sum = Sum::ZERO.plus(&icmp).checksum();
        icmp[2..4].copy_from_slice(&sum.to_be_bytes());
        icmp
    }

    fn table() -> PortTable {
        let claim = |transport, first, last, kind| Claim {
            transport,
            range: PortRange::new(first, last).unwrap(),
            kind,
        };
        let mut table = PortTable::new();
        table.add_address(VrfId::DEFAULT, OWN.into());
        let registration = Registration {
            attachment: AttachmentId(5),
            name: "web".into(),
            vrf: VrfId::DEFAULT,
            network: nos_shim::ident::NetworkId::DEFAULT,
            mode: nos_shim::ports::AddressMode::Shared,
            addresses: vec![OWN.into()],
            link_local: None,
            claims: vec![
                claim(Transport::Tcp, 80, 80, ClaimKind::Listen),
                claim(Transport::Tcp, 40_000, 40_099, ClaimKind::Ephemeral),
                claim(Transport::Udp, 53, 53, ClaimKind::Listen),
            ],
            policy: Policy::default(),
            router: Ipv6Addr::UNSPECIFIED,
            mtu: 1500,
        };
        let service = ServiceRegistration {
            name: "status".into(),
            vrf: VrfId::DEFAULT,
            claims: vec![claim(Transport::Tcp, 8080, 8080, ClaimKind::Listen)],
            from: Vec::new(),
        };
        table
            .exchange(&[], &[registration], Some(&service))
            .unwrap();
        table
    }

    /// What [`nos_relay_table_recipients`] says, and what a container would be.
    fn kind_of(ip: &[u8], from: Option<AttachmentId>) -> (u8, u8) {
        let mut octets = vec![0; 12];
        octets.extend([8, 0]);
        octets.extend(ip);
        let mut pool = FramePool::new(1, MAX_FRAME);
        let mut packet = Packet::parse(pool.copy_from(&octets).unwrap()).unwrap();
        if let Some(id) = from {
            packet.set_interface(Interface::Attachment(id));
        }
        let owner = recipient(&table(), &packet);
        let named = owner.attachment == 5;
        assert_eq!(named, owner.kind == NOS_RELAY_ATTACHMENT, "{owner:?}");
        (owner.kind, owner.claim)
    }

    #[test]
    fn recipients_are_those_of_the_shim() {
        let inward = |payload: &[u8], protocol| ipv4([FAR, OWN], protocol, 0, payload);
        let listen = (NOS_RELAY_ATTACHMENT, registration::NOS_RELAY_LISTEN);
        let ephemeral = (NOS_RELAY_ATTACHMENT, registration::NOS_RELAY_EPHEMERAL);
        let sent = |port| ipv4([OWN, FAR], 17, 0, &udp([port, 53]));
        let opened = ipv4([OWN, FAR], 6, 0, &tcp([40_001, 443], SYN));
        let cases = [
            (inward(&tcp([443, 80], SYN), 6), listen),
            (inward(&tcp([443, 81], SYN), 6), (NOS_RELAY_NOBODY, 0)),
            (inward(&tcp([443, 8080], SYN), 6), (NOS_RELAY_NOS, 0)),
            // Outsiders may only answer.
            (inward(&tcp([443, 40_001], SYN), 6), (NOS_RELAY_NOBODY, 0)),
            (inward(&tcp([443, 40_001], SYN | ACK), 6), ephemeral),
            (inward(&udp([443, 53]), 17), listen),
            (inward(&udp([443, 80]), 17), (NOS_RELAY_NOBODY, 0)),
            (
                ipv4([FAR, FAR], 17, 0, &udp([443, 53])),
                (NOS_RELAY_ELSEWHERE, 0),
            ),
            // The first part of a datagram has ports, the others have none.
            (
                ipv4(
                    [FAR, OWN],
                    17,
                    0x2000,
                    &[&udp([443, 53])[..], &[0; 8]].concat(),
                ),
                listen,
            ),
            (ipv4([FAR, OWN], 17, 1, &[0; 8]), (NOS_RELAY_FRAGMENT, 0)),
            (inward(&[0; 8], 47), (NOS_RELAY_OTHER_PROTOCOL, 0)),
            // An echo request; errors about what the container has sent, and about what nobody has.
            (
                inward(&[8, 0, 0xf7, 0xff, 0, 0, 0, 0], 1),
                (NOS_RELAY_ICMP, 0),
            ),
            (inward(&unreachable(&sent(53)), 1), listen),
            (inward(&unreachable(&opened), 1), ephemeral),
            (inward(&unreachable(&sent(54)), 1), (NOS_RELAY_UNMATCHED, 0)),
            (
                inward(&unreachable(&ipv4([FAR, OWN], 17, 0, &udp([53, 53]))), 1),
                (NOS_RELAY_UNMATCHED, 0),
            ),
        ];
        for (n, (ip, expected)) in cases.iter().enumerate() {
            assert_eq!(kind_of(ip, None), *expected, "case {n}");
        }
        // Its own programs may well listen there.
        let own = inward(&tcp([443, 40_001], SYN), 6);
        assert_eq!(kind_of(&own, Some(AttachmentId(5))), ephemeral);
        assert_eq!(kind_of(&own, Some(AttachmentId(6))), (NOS_RELAY_NOBODY, 0));
    }
}
