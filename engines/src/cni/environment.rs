//! What an engine says in the environment.

use core::fmt;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use super::error::{CniError, Code};
use crate::name::{identifier, interface_name};

/// By which a kubelet's engine says of which pod a container is, in [`Environment::arguments`].
pub(super) const POD_NAMESPACE: &str = "K8S_POD_NAMESPACE";
/// The pod's name in its namespace.
pub(super) const POD_NAME: &str = "K8S_POD_NAME";

/// Octets of the longest path that is taken.
const MAX_PATH: usize = 4096;

/// What an engine asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

/// Names of commands, as `CNI_COMMAND` has them.
const COMMANDS: [(&str, Command); 6] = [
    ("ADD", Command::Add),
    ("DEL", Command::Del),
    ("CHECK", Command::Check),
    ("GC", Command::Gc),
    ("STATUS", Command::Status),
    ("VERSION", Command::Version),
];

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names = COMMANDS.iter().filter(|(_, command)| command == self);
        f.write_str(names.next().map_or("", |(name, _)| name))
    }
}

/// The environment of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Environment {
    pub(super) command: Command,
    /// Empty of `GC` and `STATUS`.
    pub(super) container: String,
    /// Absent of `GC`, `STATUS` and `DEL`.
    pub(super) netns: Option<PathBuf>,
    /// Empty of `GC` and `STATUS`.
    pub(super) interface: String,
    /// Where other plugins are.
    pub(super) path: Vec<PathBuf>,
    /// `CNI_ARGS`, those that are known here: `IP` and `MAC`, [`POD_NAMESPACE`] and [`POD_NAME`].
    pub(super) arguments: BTreeMap<String, String>,
}

type Variable<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// Which command it is.
pub(super) fn command(variable: Variable<'_>) -> Result<Command, CniError> {
    let text = required(variable, "CNI_COMMAND")?;
    let found = COMMANDS.iter().find(|(name, _)| *name == text);
    found.map(|(_, command)| *command).ok_or_else(|| {
        let shown: String = text.chars().take(40).collect();
        let names = COMMANDS.map(|(name, _)| name).join(", ");
        wrong(format!("CNI_COMMAND is {shown:?}, and none of {names}"))
    })
}

impl Environment {
    /// Reads what the command needs.
    pub(super) fn read(command: Command, variable: Variable<'_>) -> Result<Self, CniError> {
        let path = text(variable, "CNI_PATH")?.unwrap_or_default();
        let path = path.split(':').filter(|part| !part.is_empty());
        let mut environment = Self {
            command,
            container: String::new(),
            netns: None,
            interface: String::new(),
            path: path.map(PathBuf::from).collect(),
            arguments: BTreeMap::new(),
        };
        if matches!(command, Command::Add | Command::Del | Command::Check) {
            environment.read_container(variable)?;
        }
        Ok(environment)
    }

    fn read_container(&mut self, variable: Variable<'_>) -> Result<(), CniError> {
        let container = required(variable, "CNI_CONTAINERID")?;
        identifier("CNI_CONTAINERID", &container).map_err(wrong)?;
        self.container = container;
        let interface = required(variable, "CNI_IFNAME")?;
        self.interface =
            interface_name(&interface).map_err(|error| wrong(format!("CNI_IFNAME: {error}")))?;
        // To remove an interface neither is looked at, whatever is in it.
        if self.command != Command::Del {
            self.netns = Some(netns(required(variable, "CNI_NETNS")?)?);
            let list = text(variable, "CNI_ARGS")?.unwrap_or_default();
            self.arguments = arguments(&list)?;
        }
        Ok(())
    }
}

/// The daemon opens it: what means another process to it than to the engine is none.
fn netns(path: String) -> Result<PathBuf, CniError> {
    let shown: String = path.chars().take(80).collect();
    let printable = path.chars().all(|c| !c.is_control());
    if !path.starts_with('/') || path.len() > MAX_PATH || !printable {
        return Err(wrong(format!(
            "CNI_NETNS {shown:?} is not an absolute path of at most {MAX_PATH} octets"
        )));
    }
    match path.starts_with("/proc/self/") || path.starts_with("/proc/thread-self/") {
        true => Err(wrong(format!(
            "CNI_NETNS {shown:?} is another namespace for everybody who opens it"
        ))),
        false => Ok(path.into()),
    }
}

/// Reads `IP=...;MAC=...`. What is not known is an error, unless the engine says otherwise.
fn arguments(list: &str) -> Result<BTreeMap<String, String>, CniError> {
    let mut known = BTreeMap::new();
    let mut unknown = None;
    let mut tolerant = false;
    for pair in list.split(';').filter(|pair| !pair.is_empty()) {
        let Some((key, value)) = pair.split_once('=') else {
            let shown: String = pair.chars().take(80).collect();
            return Err(wrong(format!("CNI_ARGS: {shown:?} is no KEY=VALUE")));
        };
        match key {
            "IP" | "MAC" => {
                known.insert(key.to_owned(), value.to_owned());
            }
            "IgnoreUnknown" => tolerant = matches!(value, "1" | "true" | "True" | "TRUE"),
            // What a kubelet's engine says of a pod.
            POD_NAMESPACE | POD_NAME => {
                known.insert(key.to_owned(), value.to_owned());
            }
            _ if key.starts_with("K8S_POD_") => {}
            _ => unknown = unknown.or(Some(key)),
        }
    }
    match unknown {
        Some(key) if !tolerant => {
            let shown: String = key.chars().take(80).collect();
            Err(wrong(format!(
                "CNI_ARGS: {shown:?} is not known; there are IP and MAC, and IgnoreUnknown=1 lets others be"
            )))
        }
        _ => Ok(known),
    }
}

fn required(variable: Variable<'_>, key: &str) -> Result<String, CniError> {
    let found = text(variable, key)?.filter(|text| !text.is_empty());
    found.ok_or_else(|| missing(key))
}

fn text(variable: Variable<'_>, key: &str) -> Result<Option<String>, CniError> {
    let value = variable(key).map(OsString::into_string).transpose();
    value.map_err(|_| wrong(format!("{key} is not UTF-8")))
}

fn missing(key: &str) -> CniError {
    wrong(format!("{key} is not set"))
}

fn wrong(details: impl fmt::Display) -> CniError {
    CniError::new(
        Code::Environment,
        "the environment is not that of a CNI plugin",
        details,
    )
}
