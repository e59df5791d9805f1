//! The NOS's end of the channel: what the relay asks for, and what the NOS tells.

use core::ffi::{c_char, c_int};
use std::sync::Arc;

use nos_shim::channel::{
    Answer, ConfigurationRefused, NosCounters, NosEvent, NosInterface, NotSent, PolicyRefusal,
    Query, RefusedSide, Refuser, RequestId, ToNos, ToRelay,
};
use nos_shim::drop::{DropCounters, Ledger};
use nos_shim::ident::{AttachmentId, MacAddr, UplinkId};
use nos_shim::ports::{ClaimRefused, ExchangeRefused, Owner, PortTable, RegistrationRefused};

use crate::address::{self, nos_relay_address};
use crate::builder::{nos_relay_interface, read_interface};
use crate::failure::{Code, Failure, Outcome, call};
use crate::input::{Name, optional_place, place, read, sized, slice, text, value};
use crate::packet::reason_of;
use crate::port::{Port, ended, nos_relay_port, with};
use crate::registration::{
    Shown, nos_relay_claim, nos_relay_ports, nos_relay_registration, range, read_claim, vrf,
};
use crate::table::{self, nos_relay_table};

/// There is no request.
pub const NOS_RELAY_NOTHING: u32 = 0;
/// A change of who owns which addresses and ports, to be granted as a whole or not at all.
pub const NOS_RELAY_EXCHANGE: u32 = 1;
/// Something that a NOS with a configuration of its own answers by nos_relay_port_unsupported().
pub const NOS_RELAY_CONFIGURE: u32 = 2;
/// What became of all packets: nos_relay_port_counters().
pub const NOS_RELAY_QUERY_COUNTERS: u32 = 3;
/// Who owns which ports: nos_relay_port_answer().
pub const NOS_RELAY_QUERY_PORTS: u32 = 4;
/// Another table, which cannot be told from C.
pub const NOS_RELAY_QUERY_OTHER: u32 = 5;

/// A request of the relay, to be answered once, before the next one is taken.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct nos_relay_message {
    /// NOS_RELAY_NOTHING, NOS_RELAY_EXCHANGE or another.
    pub kind: u32,
    /// Its number, for logs.
    pub id: u64,
    /// Attachments that go, with their ports, of an exchange. Valid until it is answered.
    pub withdraw: *const u32,
    /// How many go.
    pub withdraw_count: usize,
    /// What attachments have from then on, in place of what each had before. Valid until it is answered, with
    /// all that it points to.
    pub registrations: *const nos_relay_registration,
    /// How many registrations.
    pub registration_count: usize,
}

/// A request that C has taken.
pub(crate) struct Taken {
    message: ToNos,
    withdraw: Vec<u32>,
    registrations: Vec<nos_relay_registration>,
    /// Where those point to.
    _shown: Vec<Shown>,
}

// SAFETY: the pointers of its registrations lead into what it owns itself, which nobody changes.
unsafe impl Send for Taken {}

impl Taken {
    fn new(message: ToNos) -> Self {
        let (withdraw, shown): (Vec<_>, Vec<_>) = match &message {
            ToNos::Exchange(_, exchange) => (
                exchange.withdraw.iter().map(|id| id.0).collect(),
                exchange.register.iter().cloned().map(Shown::new).collect(),
            ),
            ToNos::Configure(..) | ToNos::Query(..) => (Vec::new(), Vec::new()),
        };
        Self {
            message,
            withdraw,
            registrations: shown.iter().map(Shown::registration).collect(),
            _shown: shown,
        }
    }

    fn id(&self) -> RequestId {
        match self.message {
            ToNos::Exchange(id, _) | ToNos::Configure(id, _) | ToNos::Query(id, _) => id,
        }
    }

    fn for_c(&self) -> nos_relay_message {
        nos_relay_message {
            kind: match &self.message {
                ToNos::Exchange(..) => NOS_RELAY_EXCHANGE,
                ToNos::Configure(..) => NOS_RELAY_CONFIGURE,
                ToNos::Query(_, Query::Counters) => NOS_RELAY_QUERY_COUNTERS,
                ToNos::Query(_, Query::Ports(_)) => NOS_RELAY_QUERY_PORTS,
                ToNos::Query(..) => NOS_RELAY_QUERY_OTHER,
            },
            id: self.id().0,
            withdraw: self.withdraw.as_ptr(),
            withdraw_count: self.withdraw.len(),
            registrations: self.registrations.as_ptr(),
            registration_count: self.registrations.len(),
        }
    }
}

const NOTHING: nos_relay_message = nos_relay_message {
    kind: NOS_RELAY_NOTHING,
    id: 0,
    withdraw: core::ptr::null(),
    withdraw_count: 0,
    registrations: core::ptr::null(),
    registration_count: 0,
};

/// Takes the oldest request of the relay; its kind is NOS_RELAY_NOTHING if there is none. NOS_RELAY_E_ORDER if
/// the one before was not answered.
///
/// Threads: the port's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_port_request(
    port: *mut nos_relay_port,
    request: *mut nos_relay_message,
) -> c_int {
    call(|| {
        // SAFETY: it is where the result goes.
        let place = unsafe { place(request, "request") }?;
        with(port, |port| {
            port.take_request()?;
            place.write(port.taken.as_ref().map_or(NOTHING, Taken::for_c));
            Ok(())
        })
    })
}

#[cold]
fn nothing_taken() -> Failure {
    Failure::new(
        Code::NOS_RELAY_E_ORDER,
        "port: there is no request to answer; nos_relay_port_request() takes one",
    )
}

#[cold]
fn other_kind(wanted: &str, taken: &Taken) -> Failure {
    let message = format_args!("port: {} is not {wanted}", taken.id());
    Failure::new(Code::NOS_RELAY_E_ORDER, message)
}

impl Port {
    /// Takes a request, if there is one.
    fn take_request(&mut self) -> Result<bool, Failure> {
        if let Some(taken) = &self.taken {
            let message = format_args!("port: {} has not been answered", taken.id());
            return Err(Failure::new(Code::NOS_RELAY_E_ORDER, message));
        }
        self.taken = self.nos.channel().recv_control().map(Taken::new);
        Ok(self.taken.is_some())
    }

    /// Answers the request that was taken by a table, and returns whether all of it was granted.
    fn answer_by(&mut self, table: &mut PortTable) -> Result<bool, Failure> {
        let mut granted = true;
        self.answer(|taken| {
            let answer = answer_by(table, taken);
            if let ToRelay::Refused(_, why) = &answer {
                granted = false;
                Failure::new(Code::NOS_RELAY_E_REFUSED, why).keep();
            }
            Ok(answer)
        })?;
        Ok(granted)
    }

    /// Answers the request that was taken, if `answer` has one to it.
    fn answer(&mut self, answer: impl FnOnce(&Taken) -> Result<ToRelay, Failure>) -> Outcome {
        let taken = self.taken.as_ref().ok_or_else(nothing_taken)?;
        let answer = answer(taken)?;
        self.taken = None;
        self.tell(answer)
    }

    fn tell(&mut self, message: ToRelay) -> Outcome {
        let sent = self.nos.channel().send_control(message);
        sent.map_err(|error| match error {
            NotSent::Deserted => ended(),
            NotSent::Full => Failure::new(Code::NOS_RELAY_E_FULL, format_args!("port: {error}")),
        })
    }
}

/// Answers an exchange: it holds from the next packet on.
///
/// Threads: the port's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_port_accept(port: *mut nos_relay_port) -> c_int {
    call(|| {
        with(port, |port| {
            port.answer(|taken| match taken.message {
                ToNos::Exchange(id, _) => Ok(ToRelay::Accepted(id)),
                _ => Err(other_kind("an exchange", taken)),
            })
        })
    })
}

/// Ports clash with another owner's.
pub const NOS_RELAY_REFUSED_PORTS: u32 = 1;
/// The NOS has no such address in this VRF.
pub const NOS_RELAY_REFUSED_ADDRESS: u32 = 2;
/// The NOS has no such link, or none whose link-local address can be shared.
pub const NOS_RELAY_REFUSED_LINK: u32 = 3;

/// Why an exchange is refused: the first registration that cannot be granted.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct nos_relay_refusal {
    /// sizeof(nos_relay_refusal).
    pub size: usize,
    /// Whose registration it is.
    pub attachment: u32,
    /// NOS_RELAY_REFUSED_*; what is not of the reason is not read.
    pub reason: u32,
    /// Ports: what was asked for.
    pub claim: nos_relay_claim,
    /// Ports: those of them that are taken.
    pub taken: nos_relay_ports,
    /// Ports: a range of the same length that is free; zeros if there is none.
    pub suggestion: nos_relay_ports,
    /// Ports: what operators call their owner.
    pub owner: *const c_char,
    /// Address: which.
    pub address: nos_relay_address,
    /// Address: the VRF of the registration.
    pub vrf: u16,
    /// Link: which.
    pub link: u32,
}

/// # Safety
///
/// It begins with its size, and its owner is NULL or text.
unsafe fn read_refusal(refusal: *const nos_relay_refusal) -> Result<ExchangeRefused, Failure> {
    // SAFETY: as the caller says.
    let from = unsafe { sized(refusal, "refusal") }?;
    let reason = match from.reason {
        NOS_RELAY_REFUSED_PORTS => RegistrationRefused::Claim(ClaimRefused {
            claim: read_claim(from.claim, "refusal->claim".into())?,
            taken: range(from.taken, "refusal->taken")?,
            // SAFETY: as the caller says.
            owner: Arc::from(unsafe { text(from.owner, "refusal->owner") }?),
            suggestion: match from.suggestion {
                nos_relay_ports { first: 0, last: 0 } => None,
                ports => Some(range(ports, "refusal->suggestion")?),
            },
        }),
        NOS_RELAY_REFUSED_ADDRESS => RegistrationRefused::UnknownAddress {
            address: address::address(from.address, "refusal->address")?,
            vrf: vrf(from.vrf, "refusal->vrf")?,
        },
        NOS_RELAY_REFUSED_LINK => RegistrationRefused::UnknownLink(UplinkId(from.link)),
        other => {
            let what = format_args!("{other} is none of NOS_RELAY_REFUSED_*");
            return Err(value("refusal->reason", what));
        }
    };
    Ok(ExchangeRefused {
        owner: Owner::Attachment(AttachmentId(from.attachment)),
        reason,
    })
}

/// Answers an exchange: nothing of it is granted.
///
/// Threads: the port's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_port_refuse(
    port: *mut nos_relay_port,
    refusal: *const nos_relay_refusal,
) -> c_int {
    call(|| {
        // SAFETY: as `read_refusal` wants it.
        let refused = unsafe { read_refusal(refusal) }?;
        with(port, |port| {
            port.answer(|taken| match taken.message {
                ToNos::Exchange(id, _) => Ok(ToRelay::Refused(id, refused)),
                _ => Err(other_kind("an exchange", taken)),
            })
        })
    })
}

/// Answers a request that is no exchange: this NOS has a configuration of its own, or no such table.
///
/// Threads: the port's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_port_unsupported(port: *mut nos_relay_port) -> c_int {
    call(|| {
        with(port, |port| {
            port.answer(|taken| {
                unsupported(taken).ok_or_else(|| other_kind("a query or a configuration", taken))
            })
        })
    })
}

fn unsupported(taken: &Taken) -> Option<ToRelay> {
    match taken.message {
        ToNos::Exchange(..) => None,
        ToNos::Configure(id, _) => Some(ToRelay::Configured(
            id,
            Err(ConfigurationRefused::Unsupported),
        )),
        ToNos::Query(id, _) => Some(ToRelay::Answer(id, Answer::Unsupported)),
    }
}

/// Answers a request by a port table: an exchange is made there, or refused as it is there; the owners of ports
/// are told; anything else is unsupported. `granted`, which may be NULL, is false only of an exchange that was
/// refused, and nos_relay_last_error() says why.
///
/// Threads: the port's, which is the table's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_port_answer(
    port: *mut nos_relay_port,
    table: *mut nos_relay_table,
    granted: *mut bool,
) -> c_int {
    call(|| {
        // SAFETY: it is where a result goes.
        let place = unsafe { optional_place(granted, "granted") }?;
        with(port, |port| {
            let all = table::with(table, |table| port.answer_by(table))?;
            if let Some(place) = place {
                place.write(all);
            }
            Ok(())
        })
    })
}

/// Takes all requests that wait, and answers them by a port table, as nos_relay_port_answer() does.
///
/// Threads: the port's, which is the table's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_port_answer_all(
    port: *mut nos_relay_port,
    table: *mut nos_relay_table,
) -> c_int {
    call(|| {
        with(port, |port| {
            table::with(table, |table| {
                while port.take_request()? {
                    port.answer_by(table)?;
                }
                Ok(())
            })
        })
    })
}

fn answer_by(table: &mut PortTable, taken: &Taken) -> ToRelay {
    match &taken.message {
        ToNos::Exchange(id, wanted) => {
            match table.exchange(&wanted.withdraw, &wanted.register, None) {
                Ok(()) => ToRelay::Accepted(*id),
                Err(refused) => ToRelay::Refused(*id, refused),
            }
        }
        ToNos::Query(id, Query::Ports(after)) => {
            ToRelay::Answer(*id, Answer::Ports(table.page(after.as_ref())))
        }
        ToNos::Configure(id, _) => ToRelay::Configured(*id, Err(ConfigurationRefused::Unsupported)),
        ToNos::Query(id, _) => ToRelay::Answer(*id, Answer::Unsupported),
    }
}

/// Packets that were dropped for a reason.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct nos_relay_drops {
    /// Its name, as nos_relay_parse() tells it: "no-route".
    pub reason: *const c_char,
    /// How many.
    pub packets: u64,
}

/// What a NOS did with all packets. What it received and originated is what it sent, consumed, dropped and holds.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct nos_relay_counters {
    /// sizeof(nos_relay_counters).
    pub size: usize,
    /// Packets taken in from devices and from the relay.
    pub received: u64,
    /// Packets made by the NOS itself.
    pub originated: u64,
    /// Packets handed on to a device or to the relay.
    pub sent: u64,
    /// Packets that ended by design: answered, or delivered to a stack.
    pub consumed: u64,
    /// Packets that it keeps for later.
    pub held: usize,
    /// Packets that it dropped, each reason once.
    pub drops: *const nos_relay_drops,
    /// How many reasons.
    pub drop_count: usize,
}

/// # Safety
///
/// It begins with its size, and its pointers are what it says.
unsafe fn read_counters(counters: *const nos_relay_counters) -> Result<NosCounters, Failure> {
    // SAFETY: as the caller says, here and below.
    let from = unsafe { sized(counters, "counters") }?;
    // SAFETY: as above.
    let counted = unsafe { slice(from.drops, from.drop_count, "counters->drops") }?;
    let mut drops = DropCounters::default();
    for (n, it) in counted.iter().enumerate() {
        let name = Name::Element("counters->drops", n);
        // SAFETY: as above.
        let reason = reason_of(unsafe { text(it.reason, name) }?, name)?;
        if drops.of(reason) > 0 {
            return Err(value(name, format_args!("'{reason}' is there twice")));
        }
        drops.add(reason, it.packets);
    }
    Ok(NosCounters {
        ledger: Ledger {
            received: from.received,
            originated: from.originated,
            sent: from.sent,
            consumed: from.consumed,
            drops,
        },
        held: from.held,
        depth: 0,
        capacity: 0,
    })
}

/// Answers NOS_RELAY_QUERY_COUNTERS.
///
/// Threads: the port's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_port_counters(
    port: *mut nos_relay_port,
    counters: *const nos_relay_counters,
) -> c_int {
    call(|| {
        // SAFETY: as `read_counters` wants it.
        let counters = unsafe { read_counters(counters) }?;
        with(port, |port| {
            let channel = port.nos.channel();
            let (depth, capacity) = (channel.depth(), channel.capacity());
            port.answer(|taken| match taken.message {
                ToNos::Query(id, Query::Counters) => {
                    let counters = NosCounters {
                        depth,
                        capacity,
                        ..counters
                    };
                    Ok(ToRelay::Answer(id, Answer::Counters(Box::new(counters))))
                }
                _ => Err(other_kind("a query for counters", taken)),
            })
        })
    })
}

/// Tells the operator that somebody else uses an address of the NOS: a host with this MAC address, six octets, on
/// a link.
///
/// Threads: the port's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_port_address_conflict(
    port: *mut nos_relay_port,
    link: u32,
    address: *const nos_relay_address,
    mac: *const u8,
) -> c_int {
    call(|| {
        // SAFETY: they are values.
        let (address, mac) = unsafe {
            (
                read(address, "address")?,
                read(mac.cast::<[u8; 6]>(), "mac")?,
            )
        };
        let event = NosEvent::AddressConflict {
            uplink: UplinkId(link),
            address: address::address(address, "address")?,
            mac: MacAddr(mac),
        };
        with(port, |port| port.tell(ToRelay::Event(event)))
    })
}

/// Tells the relay all interfaces of the NOS from now on, at least one, and with the same names as before where they
/// are the same. Containers follow: their addresses, routes and MTU, by exchanges that the relay asks for. The
/// NOS has a new address before it says so, and an old one until the relay has asked for its withdrawal. What
/// the relay cannot follow changes nothing; its log says why.
///
/// Threads: the port's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_port_interfaces(
    port: *mut nos_relay_port,
    interfaces: *const nos_relay_interface,
    count: usize,
) -> c_int {
    call(|| {
        // SAFETY: there are so many of them.
        let from = unsafe { slice(interfaces, count, "interfaces") }?;
        if from.is_empty() {
            return Err(value("count", "a NOS has an interface at least"));
        }
        let read = |interface: &nos_relay_interface| {
            // SAFETY: it begins with its size, and its pointers are texts.
            let read = unsafe { read_interface(interface) }?;
            Ok(NosInterface {
                name: read.name.into(),
                addresses: read.addresses,
                mtu: read.mtu.unwrap_or(DEFAULT_MTU),
                vrf: read.vrf.map(Into::into),
            })
        };
        let interfaces = from.iter().map(read).collect::<Result<_, Failure>>()?;
        with(port, |port| port.tell(ToRelay::Interfaces(interfaces)))
    })
}

/// Of an interface that says none, as the builder has it.
const DEFAULT_MTU: u16 = 1500;

/// Packets that a container's policy refuses.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct nos_relay_policy_refusal {
    /// sizeof(nos_relay_policy_refusal).
    pub size: usize,
    /// Whose policy it is.
    pub attachment: u32,
    /// Not 0 if the container has sent the packet; else somebody has who would talk to it.
    pub by_owner: u8,
    /// Its IP protocol.
    pub protocol: u8,
    /// The port on the container's side; 0 if it is not known.
    pub port: u16,
    /// The port on the other side; 0 if it is not known.
    pub remote_port: u16,
    /// The address on the other side.
    pub remote: nos_relay_address,
    /// For what it was dropped: "policy-from" or others.
    pub reason: *const c_char,
    /// Packets that were dropped since the last event of this kind, this one included.
    pub dropped: u64,
}

/// Tells the operator what a policy refuses; of one container and one reason now and then, not for every packet.
///
/// Threads: the port's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_port_policy_refused(
    port: *mut nos_relay_port,
    refusal: *const nos_relay_policy_refusal,
) -> c_int {
    call(|| {
        // SAFETY: it begins with its size, and its reason is text.
        let from = unsafe { sized(refusal, "refusal") }?;
        // SAFETY: as above.
        let reason = unsafe { text(from.reason, "refusal->reason") }?;
        let event = NosEvent::Refused(PolicyRefusal {
            refuser: Refuser::Attachment(AttachmentId(from.attachment)),
            sender: match from.by_owner {
                0 => RefusedSide::Peer,
                _ => RefusedSide::Owner,
            },
            reason: reason_of(reason, "refusal->reason".into())?,
            protocol: from.protocol,
            port: Some(from.port).filter(|&port| port != 0),
            remote: address::address(from.remote, "refusal->remote")?,
            remote_port: Some(from.remote_port).filter(|&port| port != 0),
            holder: None,
            dropped: from.dropped,
        });
        with(port, |port| port.tell(ToRelay::Event(event)))
    })
}
