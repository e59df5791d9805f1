//! Leases: with whose end a registration ends.

use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::super::document::Section;
use super::super::place::{At, Place};
use super::super::values;

/// What a request may say under `lease`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::control::config) enum Lease {
    /// It goes with the container's attachment. Of ports, and what they have anyway.
    Attachment,
    /// It goes with the connection that asked.
    Connection,
    /// It goes with a process.
    Pidfd,
}

/// With whose end a registration ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Holder {
    /// A connection to the control socket, by the number that the daemon gave it.
    Connection(u64),
    /// A process.
    Process(ProcessIdentity),
}

/// A process, told apart from any other that had or will have its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// Its number, in the PID namespace of this process.
    pub pid: u32,
    /// When it started: clock ticks since the boot (`proc_pid_stat(5)`).
    pub started: u64,
    /// Which boot that was.
    pub boot: BootId,
}

/// Names a boot of the kernel (`/proc/sys/kernel/random/boot_id`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BootId(pub u128);

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl Serialize for BootId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for BootId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl FromStr for BootId {
    type Err = core::num::ParseIntError;

    /// Hexadecimal digits, with hyphens anywhere among them.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits: String = text.chars().filter(|&c| c != '-').collect();
        u128::from_str_radix(&digits, 16).map(Self)
    }
}

/// Who may hold what a request asks for.
#[derive(Clone, Debug)]
pub struct Holders {
    /// The number of the connection that asks.
    pub connection: Option<u64>,
    /// The process that the request speaks of, or why there is none.
    pub process: Result<ProcessIdentity, String>,
}

impl Default for Holders {
    /// Nobody.
    fn default() -> Self {
        Self {
            connection: None,
            process: Err("there is no process to hold it".to_owned()),
        }
    }
}

/// The holder that a request names under `lease`; none if it names none.
pub(super) fn read(
    root: &mut Section<'_>,
    holders: &Holders,
    of_ports: bool,
) -> Option<Option<Holder>> {
    let Some(At { value, place }) = root.optional("lease", values::lease) else {
        return (!root.has("lease")).then_some(None);
    };
    match holder(value, holders, of_ports) {
        Ok(holder) => Some(holder),
        Err(reason) => refuse(root, place, reason),
    }
}

fn refuse<T>(root: &mut Section<'_>, place: Place, reason: String) -> Option<T> {
    root.error(place, reason);
    None
}

fn holder(lease: Lease, holders: &Holders, of_ports: bool) -> Result<Option<Holder>, String> {
    match lease {
        Lease::Attachment if of_ports => Ok(None),
        Lease::Attachment => Err(
            "\"attachment\" is for ports alone; leave it out, or use \"connection\" or \"pidfd\""
                .to_owned(),
        ),
        Lease::Connection => match holders.connection {
            Some(number) => Ok(Some(Holder::Connection(number))),
            None => Err("there is no connection to hold it".to_owned()),
        },
        Lease::Pidfd => {
            let process = holders.process.clone()?;
            Ok(Some(Holder::Process(process)))
        }
    }
}
