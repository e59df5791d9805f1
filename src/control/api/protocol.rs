//! Requests, responses, and their lines of JSON.

use core::fmt;
use core::net::IpAddr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::event::{Event, Lost, Watched};
use super::snapshot::{
    Attachment, Counters, Flow, Neighbor, Network, Pool, PoolAddress, Port, Registration, Route,
};
use crate::control::config::{Change, Keys, PoolAction, PortClash, PortsAction};

/// Version of the protocol. Both sides must have the same.
pub const VERSION: u32 = 1;

/// Octets of the longest request, newline included: room for every second port of each kind by
/// itself, three times 32,768.
pub const MAX_REQUEST: usize = 1 << 20;

/// Octets of the longest response, newline included: room for some 100,000 attachments.
pub const MAX_RESPONSE: usize = 64 << 20;

/// Characters of the longest id of a request.
pub const MAX_ID: usize = 64;

/// What a client asks for. Changes have keys as the configuration has them, see [`Change`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// The present state.
    Show {
        /// Of what.
        table: Table,
    },
    /// To be told what happens from now on.
    Watch {
        /// Also of what containers register with the NOS: first all of it as it is, then each change.
        #[serde(default, skip_serializing_if = "core::ops::Not::not")]
        registrations: bool,
    },
    /// To get everything that is open, see [`crate::control::handover`]. Not for other programs.
    TakeOver {
        /// The format in which it is to be said.
        format: u32,
    },
    /// [`Change::CreateNetwork`].
    NetworkCreate(Keys),
    /// [`Change::RemoveNetwork`].
    NetworkRemove(Keys),
    /// [`Change::Connect`].
    NetworkConnect(Keys),
    /// [`Change::Disconnect`].
    NetworkDisconnect(Keys),
    /// [`Change::Attach`].
    Attach(Keys),
    /// [`Change::Move`].
    Move(Keys),
    /// [`Change::Detach`].
    Detach(Keys),
    /// [`PortsAction::Add`].
    PortsAdd(Keys),
    /// [`PortsAction::Remove`].
    PortsRemove(Keys),
    /// [`PortsAction::Replace`].
    PortsReplace(Keys),
    /// [`Change::Allocate`].
    PortsAllocate(Keys),
    /// [`Change::AddRoute`].
    RouteAdd(Keys),
    /// [`Change::RemoveRoute`].
    RouteRemove(Keys),
    /// [`Change::AddAddress`].
    AddressAdd(Keys),
    /// [`Change::RemoveAddress`].
    AddressRemove(Keys),
    /// [`Change::AddGroup`].
    GroupAdd(Keys),
    /// [`Change::RemoveGroup`].
    GroupRemove(Keys),
    /// [`PoolAction::Create`].
    PoolCreate(Keys),
    /// [`PoolAction::Remove`].
    PoolRemove(Keys),
    /// [`PoolAction::Grow`].
    PoolGrow(Keys),
    /// [`PoolAction::Shrink`].
    PoolShrink(Keys),
    /// [`PoolAction::Reserve`].
    PoolReserve(Keys),
    /// [`PoolAction::Release`].
    PoolRelease(Keys),
    /// [`PoolAction::Allocate`].
    PoolAllocate(Keys),
}

/// What a request changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changing {
    /// What is registered, and by that the configuration.
    Registered(Change),
    /// Pools of addresses.
    Pools(PoolAction),
}

impl Request {
    /// Reads a request and its id from a line, without the newline.
    ///
    /// # Errors
    ///
    /// What the daemon answers where the line is no request of this version.
    pub fn from_line(octets: &[u8]) -> Result<(Option<String>, Self), Refusal> {
        decode_request(octets)
    }

    /// What it changes, with its keys; `None` where it only asks.
    #[must_use]
    pub fn change(&self) -> Option<(Changing, &Keys)> {
        let (change, keys) = match self {
            Self::Show { .. } | Self::Watch { .. } | Self::TakeOver { .. } => return None,
            Self::NetworkCreate(keys) => (Change::CreateNetwork, keys),
            Self::NetworkRemove(keys) => (Change::RemoveNetwork, keys),
            Self::NetworkConnect(keys) => (Change::Connect, keys),
            Self::NetworkDisconnect(keys) => (Change::Disconnect, keys),
            Self::Attach(keys) => (Change::Attach, keys),
            Self::Move(keys) => (Change::Move, keys),
            Self::Detach(keys) => (Change::Detach, keys),
            Self::PortsAdd(keys) => (Change::Ports(PortsAction::Add), keys),
            Self::PortsRemove(keys) => (Change::Ports(PortsAction::Remove), keys),
            Self::PortsReplace(keys) => (Change::Ports(PortsAction::Replace), keys),
            Self::PortsAllocate(keys) => (Change::Allocate, keys),
            Self::RouteAdd(keys) => (Change::AddRoute, keys),
            Self::RouteRemove(keys) => (Change::RemoveRoute, keys),
            Self::AddressAdd(keys) => (Change::AddAddress, keys),
            Self::AddressRemove(keys) => (Change::RemoveAddress, keys),
            Self::GroupAdd(keys) => (Change::AddGroup, keys),
            Self::GroupRemove(keys) => (Change::RemoveGroup, keys),
            Self::PoolCreate(keys) => return of_pools(PoolAction::Create, keys),
            Self::PoolRemove(keys) => return of_pools(PoolAction::Remove, keys),
            Self::PoolGrow(keys) => return of_pools(PoolAction::Grow, keys),
            Self::PoolShrink(keys) => return of_pools(PoolAction::Shrink, keys),
            Self::PoolReserve(keys) => return of_pools(PoolAction::Reserve, keys),
            Self::PoolRelease(keys) => return of_pools(PoolAction::Release, keys),
            Self::PoolAllocate(keys) => return of_pools(PoolAction::Allocate, keys),
        };
        Some((Changing::Registered(change), keys))
    }
}

fn of_pools(action: PoolAction, keys: &Keys) -> Option<(Changing, &Keys)> {
    Some((Changing::Pools(action), keys))
}

/// What there is to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Table {
    /// Networks of containers, and who is in them.
    Networks,
    /// Containers that are joined to the relay.
    Attachments,
    /// Who owns which TCP and UDP ports.
    Ports,
    /// The routing table.
    Routes,
    /// Neighbors on the uplinks, and their MAC addresses.
    Neighbors,
    /// Flows that policies have the NOS remember.
    Flows,
    /// Packets in, out and dropped; rings; uplinks.
    Counters,
    /// What was registered at run time, with whose end it ends, and what of it is set aside.
    Registrations,
    /// Pools of addresses.
    Pools,
    /// Addresses of pools that somebody has, had, or is to have.
    PoolAddresses,
}

/// What the daemon answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", content = "data", rename_all = "kebab-case")]
pub enum Response {
    /// To [`Table::Networks`].
    Networks(Vec<Network>),
    /// To [`Table::Attachments`].
    Attachments(Vec<Attachment>),
    /// To [`Table::Ports`].
    Ports(Vec<Port>),
    /// To [`Table::Routes`].
    Routes(Vec<Route>),
    /// To [`Table::Neighbors`].
    Neighbors(Vec<Neighbor>),
    /// To [`Table::Flows`].
    Flows(Vec<Flow>),
    /// To [`Table::Counters`].
    Counters(Counters),
    /// To [`Table::Registrations`].
    Registrations(Vec<Registration>),
    /// To [`Table::Pools`].
    Pools(Vec<Pool>),
    /// To [`Table::PoolAddresses`].
    PoolAddresses(Vec<PoolAddress>),
    /// To a change: it is made, or was before.
    Changed(Applied),
    /// To [`Request::Watch`]: lines with events follow.
    Watching {
        /// So many of them, the first, say all that is registered; absent if that was not asked for.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        registrations: Option<usize>,
    },
    /// To [`Request::TakeOver`]: descriptors follow.
    HandingOver(Offer),
    /// To a request that is not granted.
    Refused(Refusal),
}

impl Response {
    /// The response as a line, newline included; a refusal if it is longer than [`MAX_RESPONSE`].
    #[must_use]
    pub fn to_line(&self) -> Vec<u8> {
        encode_response(self)
    }

    /// Reads a response from a line, without the newline. `None` if it is none of this version.
    #[must_use]
    pub fn from_line(octets: &[u8]) -> Option<Self> {
        decode_response(octets).ok()
    }
}

/// What is handed over to another process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// The version of the program.
    pub program: String,
    /// How many descriptors follow one that describes them.
    pub descriptors: u32,
}

/// What became of a change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// Whether anything is other than before.
    pub changed: bool,
    /// What it still waits for, if it is not in place yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<String>,
    /// The ports that were allocated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<String>,
    /// The addresses that were given out of a pool.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
}

/// Why a request is not granted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// For programs.
    pub code: RefusalCode,
    /// For people.
    pub message: String,
    /// The key of the request that is wrong, as in `ports.tcp`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// Whose ports are in the way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clash: Option<Box<Clash>>,
}

/// Ports that are in the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clash {
    /// Who has them, as in `container "web"`.
    pub owner: String,
    /// What the owner has.
    pub range: String,
    /// The nearest range as long as the one asked for that nobody has.
    pub free: Option<String>,
}

impl From<&PortClash> for Clash {
    fn from(clash: &PortClash) -> Self {
        Self {
            owner: clash.owner.clone(),
            range: clash.range.to_string(),
            free: clash.free.map(|range| range.to_string()),
        }
    }
}

/// The kinds of [`Refusal`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefusalCode {
    /// The request makes no sense.
    BadRequest,
    /// The request is of another version of the protocol.
    Version,
    /// The request is longer than [`MAX_REQUEST`].
    TooLong,
    /// There are too many connections.
    Busy,
    /// The daemon cannot answer now: it is starting or stopping, or a data thread is stuck.
    Unavailable,
    /// Somebody else has the ports.
    Conflict,
    /// The kernel or the NOS refuses it; all is as it was.
    Refused,
    /// A request with this id asked for something else.
    IdReused,
    /// The state directory cannot take it; all is as it was.
    Storage,
    /// The state directory failed in the middle: all is as it was, but what was asked for may be there
    /// after a restart.
    Uncertain,
}

impl Refusal {
    /// A refusal of the kind `code`.
    #[must_use]
    pub fn new(code: RefusalCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            field: None,
            clash: None,
        }
    }

    /// The same, of one key of the request.
    #[must_use]
    pub fn of_field(self, field: impl Into<String>) -> Self {
        Self {
            field: Some(field.into()),
            ..self
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Why a line is no message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Malformed {
    Version(u32),
    Other(String),
}

/// What every version of the protocol has in common.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestLine<T> {
    version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    request: T,
}

#[derive(Serialize, Deserialize)]
struct ResponseLine<T> {
    version: u32,
    response: T,
}

#[derive(Serialize, Deserialize)]
pub(super) struct EventLine<T> {
    version: u32,
    /// Milliseconds of Unix time.
    pub(super) time_ms: u64,
    pub(super) event: T,
}

pub(super) fn encode_request(id: Option<&str>, request: &Request) -> Vec<u8> {
    line(&RequestLine {
        version: VERSION,
        id: id.map(str::to_owned),
        request,
    })
}

pub(super) fn encode_event(time_ms: u64, event: &Event) -> Vec<u8> {
    line(&EventLine {
        version: VERSION,
        time_ms,
        event,
    })
}

/// The line that stands for so many events that were not read in time.
pub(super) fn encode_lost(lost: u64) -> Vec<u8> {
    let version = VERSION;
    line(&Lost { version, lost })
}

/// The response as a line; a refusal if it is longer than [`MAX_RESPONSE`].
pub(super) fn encode_response(response: &Response) -> Vec<u8> {
    let version = VERSION;
    let encoded = line(&ResponseLine { version, response });
    if !encoded.is_empty() && encoded.len() <= MAX_RESPONSE {
        return encoded;
    }
    let refusal = Refusal::new(
        RefusalCode::Unavailable,
        "the answer is too long to be sent",
    );
    let response = Response::Refused(refusal);
    line(&ResponseLine { version, response })
}

/// Reads a request and its id from its line, without the newline.
pub(super) fn decode_request(octets: &[u8]) -> Result<(Option<String>, Request), Refusal> {
    let decoded = decode::<RequestLine<Request>>(octets).map_err(|malformed| match malformed {
        Malformed::Version(theirs) => Refusal::new(
            RefusalCode::Version,
            format!(
                "the daemon speaks version {VERSION} of the protocol, the request is of {theirs}"
            ),
        ),
        Malformed::Other(why) => {
            Refusal::new(RefusalCode::BadRequest, format!("not a request: {why}"))
        }
    })?;
    if let Some(id) = &decoded.id {
        check_id(id)?;
    }
    Ok((decoded.id, decoded.request))
}

fn check_id(id: &str) -> Result<(), Refusal> {
    let visible = id.chars().all(|c| c.is_ascii_graphic());
    if visible && (1..=MAX_ID).contains(&id.len()) {
        return Ok(());
    }
    let reason = format!("id: has 1 to {MAX_ID} visible ASCII characters");
    Err(Refusal::new(RefusalCode::BadRequest, reason).of_field("id"))
}

/// Reads a response from its line, without the newline.
pub(super) fn decode_response(octets: &[u8]) -> Result<Response, Malformed> {
    decode::<ResponseLine<Response>>(octets).map(|line| line.response)
}

/// Reads a line of those who watch, without the newline.
pub(super) fn decode_watched(octets: &[u8]) -> Result<Watched, Malformed> {
    if let Ok(Lost { lost, .. }) = decode(octets) {
        return Ok(Watched::Lost(lost));
    }
    decode::<EventLine<Event>>(octets).map(|line| Watched::Event {
        time_ms: line.time_ms,
        event: line.event,
    })
}

/// Looks at the version first: of another one, nothing else is known.
fn decode<T: DeserializeOwned>(octets: &[u8]) -> Result<T, Malformed> {
    let other = |error: serde_json::Error| Malformed::Other(error.to_string());
    let Version { version } = serde_json::from_slice(octets).map_err(other)?;
    if version != VERSION {
        return Err(Malformed::Version(version));
    }
    serde_json::from_slice(octets).map_err(other)
}

/// Empty if the value cannot be written as JSON, which our types always can.
fn line(message: &impl Serialize) -> Vec<u8> {
    let mut octets = serde_json::to_vec(message).unwrap_or_default();
    if !octets.is_empty() {
        octets.push(b'\n');
    }
    octets
}
