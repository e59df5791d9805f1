//! Requests, responses, and their lines of JSON.

use core::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::snapshot::{Attachment, Counters, Neighbor, Port, Route};

/// Version of the protocol. Both sides must have the same.
pub const VERSION: u32 = 1;

/// Octets of the longest request, newline included.
pub const MAX_REQUEST: usize = 64 << 10;

/// Octets of the longest response, newline included: room for some 100,000 attachments.
pub const MAX_RESPONSE: usize = 64 << 20;

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// The present state.
    Show {
        /// Of what.
        table: Table,
    },
}

/// What there is to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Table {
    /// Containers that are joined to the relay.
    Attachments,
    /// Who owns which TCP and UDP ports.
    Ports,
    /// The routing table.
    Routes,
    /// Neighbors on the uplinks, and their MAC addresses.
    Neighbors,
    /// Packets in, out and dropped; rings; uplinks.
    Counters,
}

/// What the daemon answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", content = "data", rename_all = "kebab-case")]
pub enum Response {
    /// To [`Table::Attachments`].
    Attachments(Vec<Attachment>),
    /// To [`Table::Ports`].
    Ports(Vec<Port>),
    /// To [`Table::Routes`].
    Routes(Vec<Route>),
    /// To [`Table::Neighbors`].
    Neighbors(Vec<Neighbor>),
    /// To [`Table::Counters`].
    Counters(Counters),
    /// To a request that is not granted.
    Refused(Refusal),
}

/// Why a request is not granted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// For programs.
    pub code: RefusalCode,
    /// For people.
    pub message: String,
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
}

impl Refusal {
    /// A refusal of the kind `code`.
    #[must_use]
    pub fn new(code: RefusalCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
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
    request: T,
}

#[derive(Serialize, Deserialize)]
struct ResponseLine<T> {
    version: u32,
    response: T,
}

pub(super) fn encode_request(request: &Request) -> Vec<u8> {
    line(&RequestLine {
        version: VERSION,
        request,
    })
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

/// Reads a request from its line, without the newline.
pub(super) fn decode_request(octets: &[u8]) -> Result<Request, Refusal> {
    let decoded = decode::<RequestLine<Request>>(octets);
    decoded.map(|line| line.request).map_err(|malformed| match malformed {
        Malformed::Version(theirs) => Refusal::new(
            RefusalCode::Version,
            format!("the daemon speaks version {VERSION} of the protocol, the request is of {theirs}"),
        ),
        Malformed::Other(why) => {
            Refusal::new(RefusalCode::BadRequest, format!("not a request: {why}"))
        }
    })
}

/// Reads a response from its line, without the newline.
pub(super) fn decode_response(octets: &[u8]) -> Result<Response, Malformed> {
    decode::<ResponseLine<Response>>(octets).map(|line| line.response)
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
