//! A delegated IPAM plugin: it chooses which of the NOS's addresses a container gets.
//!
//! The addresses that it may choose are the NOS's where containers share them: `static` with one of
//! them, or `host-local` with a range of those that an uplink has. The daemon refuses any other, and
//! the choice is given back. In a network whose containers have addresses of their own it chooses those.

use core::net::IpAddr;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};

use ipnet::IpNet;
use serde_json::{Map, Value};

use super::environment;
use super::error::{CniError, Code};
use super::section::Section;
use super::{Invocation, MAX_INPUT};

/// What the plugin has chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Assigned {
    /// With the lengths of their networks, or for themselves.
    pub(super) addresses: Vec<IpNet>,
    pub(super) dns: Map<String, Value>,
}

/// Has the plugin `kind` choose addresses.
pub(super) fn add(invocation: &Invocation, kind: &str) -> Result<Assigned, CniError> {
    let answer = delegate(invocation, kind, environment::Command::Add)?;
    let assigned = serde_json::from_slice(&answer)
        .map_err(|error| failed(kind, "its answer is not JSON", error))
        .and_then(|value| assigned(kind, &value));
    if assigned.is_err() {
        let _ = delegate(invocation, kind, environment::Command::Del);
    }
    assigned
}

fn assigned(kind: &str, value: &Value) -> Result<Assigned, CniError> {
    let section = Section::new(value, kind)?;
    let chosen = section.list("ips")?.iter().map(|ip| {
        let text = Section::new(ip, kind)?.text("address")?;
        let alone = |text: &str| text.parse().map(|address: IpAddr| address.into());
        let parsed = text.and_then(|text| text.parse().or_else(|_| alone(text)).ok());
        parsed.ok_or_else(|| section.wrong("ips", "has something without an address"))
    });
    let addresses: Vec<_> = chosen.collect::<Result<_, _>>()?;
    if addresses.is_empty() {
        return Err(failed(kind, "it has chosen no address", ""));
    }
    let dns = section.value("dns").and_then(Value::as_object);
    Ok(Assigned {
        addresses,
        dns: dns.cloned().unwrap_or_default(),
    })
}

/// Runs the plugin `kind` with a command, and the configuration as it came.
pub(super) fn delegate(
    invocation: &Invocation,
    kind: &str,
    command: environment::Command,
) -> Result<Vec<u8>, CniError> {
    let program = find(&invocation.environment.path, kind)?;
    let mut child = Command::new(&program)
        .env("CNI_COMMAND", command.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .map_err(|error| failed(kind, "it cannot be started", error))?;
    let input = invocation.configuration.whole().to_string();
    let writer = child.stdin.take().map(|stdin| write(stdin, input));
    let mut answer = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        let read = stdout.take(MAX_INPUT).read_to_end(&mut answer);
        read.map_err(|error| failed(kind, "its answer cannot be read", error))?;
    }
    let status = child.wait();
    let status = status.map_err(|error| failed(kind, "it cannot be waited for", error))?;
    // One that needs no input may well end before it has taken it.
    drop(writer.map(std::thread::JoinHandle::join));
    match status.success() {
        true => Ok(answer),
        false => Err(refused(kind, &answer, &status.to_string())),
    }
}

/// Writes on a thread, as the plugin may answer before it has read all.
fn write(mut stdin: ChildStdin, input: String) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let _ = stdin.write_all(input.as_bytes());
    })
}

fn find(path: &[PathBuf], kind: &str) -> Result<PathBuf, CniError> {
    let mut candidates = path.iter().map(|folder| folder.join(kind));
    candidates.find(|file| is_program(file)).ok_or_else(|| {
        let folders: Vec<_> = path.iter().map(|it| it.display().to_string()).collect();
        let details = format!(
            "ipam.type: {kind:?} is not found in CNI_PATH ({})",
            folders.join(":")
        );
        CniError::configuration(details)
    })
}

fn is_program(file: &Path) -> bool {
    let metadata = std::fs::metadata(file);
    metadata.is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0)
}

/// What the plugin says of its failure, if it says something.
fn refused(kind: &str, answer: &[u8], status: &str) -> CniError {
    let said: Option<Value> = serde_json::from_slice(answer).ok();
    let text = |key: &str| said.as_ref()?.get(key)?.as_str().map(str::to_owned);
    let code = said.as_ref().and_then(|said| said.get("code")?.as_u64());
    match (code.and_then(|code| u32::try_from(code).ok()), text("msg")) {
        (Some(code), Some(message)) => CniError::new(
            Code::Other(code),
            format!("ipam {kind}: {message}"),
            text("details").unwrap_or_default(),
        ),
        _ => failed(kind, "it has failed and does not say why", status),
    }
}

fn failed(kind: &str, what: &str, details: impl core::fmt::Display) -> CniError {
    CniError::new(Code::Io, format!("ipam {kind}: {what}"), details)
}
