//! Docker's plugin: network driver and IPAM driver of the remote API.
//!
//! # Theory of operation
//!
//! Docker asks by HTTP, one JSON object a call; [`Plugin::answer`] is all of it but the sockets. What Docker
//! calls a network is a network of the daemon, and an endpoint a container of the daemon, both under names that
//! follow from Docker's identifiers: nothing is remembered here, so that a plugin that was restarted in between
//! goes on.
//!
//! | Docker asks | the daemon is asked |
//! |---|---|
//! | `CreateNetwork` | for a network |
//! | `CreateEndpoint` | for a container in it with its ports, in a namespace that is not there |
//! | `Join` | to move it to the sandbox, which comes as soon as the engine makes it |
//! | `Leave` | to move it back |
//! | `DeleteEndpoint`, `DeleteNetwork` | to take them away |
//!
//! No interface is named to Docker, so that it sets up none: the daemon does, in the moment in which the sandbox
//! appears, with addresses, routes and ports.

mod ipam;
mod network;
mod options;

use serde_json::{Map, Value, json};

use crate::daemon::{Daemon, DaemonError};

/// Octets of the longest request that is read.
pub const MAX_BODY: usize = 1 << 20;

/// How the daemon's containers and networks of this engine are called.
pub const ENGINE: &str = "docker";

/// What a call is answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    /// The status of HTTP.
    pub status: u16,
    /// The object.
    pub body: Value,
}

/// The plugin of one daemon.
#[derive(Clone, Debug)]
pub struct Plugin {
    daemon: Daemon,
}

/// Why a call is not granted, in words for whoever started a container.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// What is asked for makes no sense, or cannot be had.
    #[error("{0}")]
    Asked(String),
    /// The daemon has not done it.
    #[error("nos-relay: {0}")]
    Daemon(#[from] DaemonError),
}

impl CallError {
    pub(crate) fn asked(reason: impl core::fmt::Display) -> Self {
        Self::Asked(reason.to_string())
    }
}

/// What a call gives, as the object of its answer.
type Answer = Result<Value, CallError>;

impl Plugin {
    /// A plugin for `daemon`, which is not asked anything yet.
    #[must_use]
    pub fn new(daemon: Daemon) -> Self {
        Self { daemon }
    }

    /// Takes away the endpoints whose sandboxes are no more: of an engine that was killed, or before a reboot.
    /// Docker itself never speaks of those again. Returns their names.
    ///
    /// # Errors
    ///
    /// [`DaemonError`]; those before are gone.
    pub fn collect(&self) -> Result<Vec<String>, DaemonError> {
        network::collect(&self.daemon)
    }

    /// Answers a call: its path, as in `/NetworkDriver.Join`, and its body.
    #[must_use]
    pub fn answer(&self, path: &str, body: &[u8]) -> Reply {
        let call = match read(body) {
            Ok(call) => call,
            Err(reason) => return failed(400, &format!("{path}: {reason}")),
        };
        let answer = match path {
            "/Plugin.Activate" => {
                // An engine that has just started asks this first, and nothing else meanwhile.
                let _ = self.collect();
                Ok(json!({"Implements": ["NetworkDriver", "IpamDriver"]}))
            }
            "/NetworkDriver.GetCapabilities" => {
                Ok(json!({"Scope": "local", "ConnectivityScope": "local"}))
            }
            "/NetworkDriver.CreateNetwork" => network::create(&self.daemon, &call),
            "/NetworkDriver.DeleteNetwork" => network::delete(&self.daemon, &call),
            "/NetworkDriver.CreateEndpoint" => network::create_endpoint(&self.daemon, &call),
            "/NetworkDriver.DeleteEndpoint" => network::delete_endpoint(&self.daemon, &call),
            "/NetworkDriver.EndpointOperInfo" => network::describe(&self.daemon, &call),
            "/NetworkDriver.Join" => network::join(&self.daemon, &call),
            "/NetworkDriver.Leave" => network::leave(&self.daemon, &call),
            // Nothing is to be done beside an endpoint, nor with other nodes.
            "/NetworkDriver.ProgramExternalConnectivity"
            | "/NetworkDriver.RevokeExternalConnectivity"
            | "/NetworkDriver.DiscoverNew"
            | "/NetworkDriver.DiscoverDelete" => Ok(json!({})),
            "/NetworkDriver.AllocateNetwork" | "/NetworkDriver.FreeNetwork" => Err(
                CallError::asked("networks of a swarm are not for this driver, which is local"),
            ),
            "/IpamDriver.GetCapabilities" => Ok(json!({"RequiresMACAddress": true})),
            "/IpamDriver.GetDefaultAddressSpaces" => Ok(json!({
                "LocalDefaultAddressSpace": ipam::SPACE,
                "GlobalDefaultAddressSpace": ipam::SPACE,
            })),
            "/IpamDriver.RequestPool" => ipam::request_pool(&self.daemon, &call),
            "/IpamDriver.RequestAddress" => ipam::request_address(&self.daemon, &call),
            // Addresses are the NOS's, whoever uses them.
            "/IpamDriver.ReleasePool" => Ok(json!({})),
            "/IpamDriver.ReleaseAddress" => ipam::release_address(&self.daemon, &call),
            _ => return failed(404, &format!("there is no call {}", shown(path))),
        };
        match answer {
            Ok(body) => Reply { status: 200, body },
            Err(error) => failed(500, &error.to_string()),
        }
    }
}

/// A refusal, as each of the two drivers calls it, and Docker where the status says that there is one.
#[must_use]
pub fn failed(status: u16, reason: &str) -> Reply {
    Reply {
        status,
        body: json!({"Err": reason, "Error": reason}),
    }
}

/// The beginning of something that was sent, for an error.
pub(crate) fn shown(text: &str) -> String {
    let beginning: String = text.chars().take(80).collect();
    format!("{beginning:?}")
}

/// The object of a call; none is an empty one.
fn read(body: &[u8]) -> Result<Call, String> {
    if body.len() > MAX_BODY {
        return Err(format!("the body has more than {MAX_BODY} octets"));
    }
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(Call(Map::new()));
    }
    match serde_json::from_slice(body) {
        Ok(Value::Object(keys)) => Ok(Call(keys)),
        Ok(_) => Err("the body is no object".to_owned()),
        Err(error) => Err(format!("the body is not JSON: {error}")),
    }
}

/// The object of a call.
pub(crate) struct Call(Map<String, Value>);

impl Call {
    /// A text that has to be there.
    pub(crate) fn text(&self, key: &'static str) -> Result<&str, CallError> {
        match self.0.get(key) {
            Some(Value::String(text)) if !text.is_empty() => Ok(text),
            Some(Value::String(_)) | None => {
                Err(CallError::asked(format_args!("{key} is missing")))
            }
            Some(_) => Err(CallError::asked(format_args!("{key} is no text"))),
        }
    }

    /// A text that may be absent or empty.
    pub(crate) fn optional(&self, key: &'static str) -> Result<Option<&str>, CallError> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.as_str()).filter(|text| !text.is_empty())),
            Some(_) => Err(CallError::asked(format_args!("{key} is no text"))),
        }
    }

    /// Whether something is so; absent is no.
    pub(crate) fn is(&self, key: &'static str) -> bool {
        self.0.get(key) == Some(&Value::Bool(true))
    }

    /// An object that may be absent.
    pub(crate) fn object(&self, key: &'static str) -> Result<Map<String, Value>, CallError> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(Map::new()),
            Some(Value::Object(keys)) => Ok(keys.clone()),
            Some(_) => Err(CallError::asked(format_args!("{key} is no object"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(path: &str, body: &str) -> Reply {
        // Nobody listens there.
        let daemon = Daemon::at("/nonexistent/nos-relay.sock");
        Plugin::new(daemon).answer(path, body.as_bytes())
    }

    #[test]
    fn it_says_what_it_is_without_the_daemon() {
        for (path, key) in [
            ("/Plugin.Activate", "Implements"),
            ("/NetworkDriver.GetCapabilities", "Scope"),
            (
                "/IpamDriver.GetDefaultAddressSpaces",
                "LocalDefaultAddressSpace",
            ),
        ] {
            let reply = answer(path, "");
            assert_eq!(reply.status, 200, "{path}");
            assert!(reply.body.get(key).is_some(), "{path}");
        }
    }

    #[test]
    fn calls_that_make_no_sense_are_refused_in_both_drivers_terms() {
        let id = "0123456789abcdef";
        let pool = r#"{"PoolID": "10.0.0.0/8"}"#;
        let hostile = r#"{"NetworkID": "../../etc/passwd", "EndpointID": "x"}"#;
        for (path, body, status, reason) in [
            ("/NetworkDriver.Explode", "{}", 404, "there is no call"),
            ("/NetworkDriver.CreateNetwork", "{", 400, "is not JSON"),
            ("/NetworkDriver.CreateNetwork", "[]", 400, "is no object"),
            (
                "/NetworkDriver.CreateNetwork",
                "{}",
                500,
                "NetworkID is missing",
            ),
            (
                "/NetworkDriver.CreateNetwork",
                r#"{"NetworkID": 5}"#,
                500,
                "NetworkID is no text",
            ),
            (
                "/NetworkDriver.DeleteEndpoint",
                hostile,
                500,
                "is no identifier",
            ),
            ("/NetworkDriver.AllocateNetwork", "{}", 500, "swarm"),
            (
                "/IpamDriver.RequestAddress",
                pool,
                500,
                "is no pool of this driver",
            ),
            (
                "/IpamDriver.RequestPool",
                r#"{"AddressSpace": "x"}"#,
                500,
                "there is no address space",
            ),
            (
                "/NetworkDriver.Join",
                &format!(r#"{{"NetworkID": "{id}", "EndpointID": "{id}", "SandboxKey": "x"}}"#),
                500,
                "is no path",
            ),
            // And where there is no daemon, that is said.
            (
                "/NetworkDriver.DeleteNetwork",
                &format!(r#"{{"NetworkID": "{id}"}}"#),
                500,
                "no nos-relay is running",
            ),
        ] {
            let reply = answer(path, body);
            assert_eq!(reply.status, status, "{path} {body}");
            for key in ["Err", "Error"] {
                let said = reply.body[key].as_str().unwrap();
                assert!(said.contains(reason), "{path} {body}: {said}");
            }
        }
        let long = " ".repeat(MAX_BODY + 1);
        assert_eq!(answer("/NetworkDriver.Join", &long).status, 400);
    }
}
