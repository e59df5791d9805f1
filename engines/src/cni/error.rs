//! Errors in CNI's form.

use core::fmt::Display;

use serde_json::{Value, json};

use super::version::Version;
use crate::daemon::DaemonError;
use crate::endpoint::JoinError;

/// Characters of details that an engine is told at most.
const MAX_DETAILS: usize = 4096;

/// What kind of error it is: the specification's codes, and from 100 on our own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The version of the configuration is not supported.
    IncompatibleVersion,
    /// A field of the configuration is not supported; the message has key and value.
    UnsupportedField,
    /// The container does not exist; nothing has to be cleaned up.
    UnknownContainer,
    /// Variables of the environment are missing or wrong.
    Environment,
    /// Reading or writing failed.
    Io,
    /// The input is not what the specification says.
    Decoding,
    /// The configuration makes no sense.
    Configuration,
    /// Something passes: try again later.
    TryAgain,
    /// `STATUS`: nothing can be added.
    Unavailable,
    /// `STATUS`: nothing can be added, and what is there may be cut off.
    Limited,
    /// Somebody else has the ports.
    Taken,
    /// The kernel or the NOS refuses it.
    Refused,
    /// `CHECK`: what is there is not what was added.
    Differs,
    /// What another plugin has said.
    Other(u32),
}

impl Code {
    /// The number that an engine is told.
    #[must_use]
    pub fn number(self) -> u32 {
        match self {
            Self::IncompatibleVersion => 1,
            Self::UnsupportedField => 2,
            Self::UnknownContainer => 3,
            Self::Environment => 4,
            Self::Io => 5,
            Self::Decoding => 6,
            Self::Configuration => 7,
            Self::TryAgain => 11,
            Self::Unavailable => 50,
            Self::Limited => 51,
            Self::Taken => 100,
            Self::Refused => 101,
            Self::Differs => 102,
            Self::Other(number) => number,
        }
    }
}

/// An error as an engine is told it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CniError {
    /// What kind it is.
    pub code: Code,
    /// What is wrong, in short.
    pub message: String,
    /// The particulars.
    pub details: String,
}

impl CniError {
    /// An error of the kind `code`.
    pub(super) fn new(code: Code, message: impl Into<String>, details: impl Display) -> Self {
        let details: String = details.to_string();
        Self {
            code,
            message: message.into(),
            details: details.chars().take(MAX_DETAILS).collect(),
        }
    }

    /// A configuration that makes no sense.
    pub(super) fn configuration(details: impl Display) -> Self {
        Self::new(
            Code::Configuration,
            "the network configuration makes no sense",
            details,
        )
    }

    /// As the specification says it is written.
    pub(super) fn to_json(&self, version: Version) -> String {
        let value: Value = json!({
            "cniVersion": version.text(),
            "code": self.code.number(),
            "msg": self.message,
            "details": self.details,
        });
        value.to_string()
    }
}

impl From<DaemonError> for CniError {
    fn from(error: DaemonError) -> Self {
        use nos_relay::control::api::RefusalCode;
        if error.may_pass() {
            return Self::new(Code::TryAgain, "the daemon cannot do it now", error);
        }
        let field = error.refusal().and_then(|refusal| refusal.field.as_deref());
        let of_address = matches!(field, Some("container.pool" | "container.addresses"));
        let (code, message) = match error.refusal().map(|refusal| refusal.code) {
            Some(RefusalCode::Conflict) if of_address => (Code::Taken, "the address cannot be had"),
            Some(RefusalCode::Conflict) => (Code::Taken, "somebody else has the ports"),
            Some(RefusalCode::Refused) => (Code::Refused, "the kernel or the NOS refuses it"),
            Some(_) => (Code::Configuration, "the daemon refuses it"),
            None => (Code::Io, "the daemon cannot be asked"),
        };
        Self::new(code, message, error)
    }
}

impl From<JoinError> for CniError {
    fn from(error: JoinError) -> Self {
        match error {
            JoinError::Daemon(error) => error.into(),
            JoinError::Gone(_) => Self::new(
                Code::UnknownContainer,
                "the container does not exist",
                error,
            ),
            JoinError::Waits(_) => {
                Self::new(Code::TryAgain, "the container is not attached yet", error)
            }
            JoinError::OtherPorts => {
                Self::new(Code::Refused, "the container is attached otherwise", error)
            }
            JoinError::System { .. } => Self::new(Code::Io, "the kernel refuses", error),
            JoinError::Left { first, then } => {
                let first = Self::from(*first);
                let details = format!("{}; what was done is still there: {then}", first.details);
                Self::new(first.code, first.message, details)
            }
        }
    }
}
