//! The CNI plugin: specification 1.1.0, and down to 0.4.0.
//!
//! # Theory of operation
//!
//! An engine runs the plugin with the command in its environment and the network configuration on its
//! standard input, and reads the result, or an error, from its standard output. A run is one
//! [`Invocation`]: it is read whole before anything is done.
//!
//! | command | what is done |
//! |---|---|
//! | `ADD` | the container is attached ([`crate::endpoint`]); the result has what the daemon says of it |
//! | `DEL` | it is detached, if it is attached; the namespace is not looked at |
//! | `CHECK` | what the daemon and the namespace have is compared with the result of `ADD` |
//! | `GC` | what is attached by this network and is not in the engine's list is detached |
//! | `STATUS` | the daemon is asked, and whether an uplink is up |
//! | `VERSION` | the versions of the specification are told |
//!
//! The addresses are the NOS's. A delegated `ipam` plugin chooses which of them a container gets.

mod add;
mod check;
mod configuration;
mod environment;
mod error;
mod inside;
mod ipam;
mod loopback;
mod remove;
mod reply;
mod section;
mod status;
mod version;

use std::ffi::OsString;
use std::io;

use serde_json::json;

pub use error::{CniError, Code};
pub use version::SUPPORTED;

use configuration::Configuration;
use environment::{Command, Environment};
use version::Version;

/// Octets of the longest network configuration that is read.
pub const MAX_INPUT: u64 = 4 << 20;

/// What names of containers begin with that this plugin has attached.
pub const ENGINE: &str = "cni";

/// One run of the plugin, as the engine asks for it.
#[derive(Debug)]
struct Invocation {
    environment: Environment,
    configuration: Configuration,
}

/// Does what an engine asks for. `variable` gives the value of a variable of the environment.
///
/// # Errors
///
/// Both outcomes are what is to be written to the standard output; an error is one in CNI's form.
pub fn invoke(
    variable: &dyn Fn(&str) -> Option<OsString>,
    input: io::Result<Vec<u8>>,
) -> Result<String, String> {
    let mut spoken = Version::latest();
    run(variable, input, &mut spoken).map_err(|error| error.to_json(spoken) + "\n")
}

fn run(
    variable: &dyn Fn(&str) -> Option<OsString>,
    input: io::Result<Vec<u8>>,
    spoken: &mut Version,
) -> Result<String, CniError> {
    let command = environment::command(variable)?;
    let input = input.map_err(|error| {
        CniError::new(Code::Io, "the network configuration cannot be read", error)
    })?;
    if input.len() as u64 > MAX_INPUT {
        let details = format!("it has more than {MAX_INPUT} octets");
        return Err(CniError::new(
            Code::Decoding,
            "the network configuration is too long",
            details,
        ));
    }
    if command == Command::Version {
        return version::answer(&input);
    }
    let configuration = Configuration::read(&input)?;
    *spoken = configuration.version;
    if !configuration.version.has(command) {
        return Err(version::too_old(configuration.version, command));
    }
    let environment = Environment::read(command, variable)?;
    carry_out(&Invocation {
        environment,
        configuration,
    })
}

fn carry_out(invocation: &Invocation) -> Result<String, CniError> {
    match invocation.environment.command {
        Command::Add => add::add(invocation).map(|result| result.to_string() + "\n"),
        Command::Del => remove::del(invocation).map(|()| String::new()),
        Command::Check => check::check(invocation).map(|()| String::new()),
        Command::Gc => remove::gc(invocation).map(|()| String::new()),
        Command::Status => status::status(invocation).map(|()| String::new()),
        Command::Version => Ok(json!({}).to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    /// Any JSON, of a few levels.
    fn anything() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".{0,12}".prop_map(Value::from),
            Just(Value::from("20000-20099")),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            let keys = "(size|vrf|type|name|address|interface|hostPort|x)";
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map(keys, inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    /// A configuration with everything in it.
    fn whole() -> Value {
        json!({
            "cniVersion": "1.1.0", "name": "n", "dns": {"nameservers": ["192.0.2.53"]},
            "ipam": {"type": "nobody"}, "args": {"cni": {"ips": ["203.0.113.1"]}},
            "nos-relay": {
                "control": "/nowhere/nos-relay.sock", "device": "tap", "network": "n", "vrf": "red",
                "addresses": ["203.0.113.1"], "tcp": [80], "udp": {"size": 2}, "ephemeral": "1-9",
                "to": [], "from": ["192.0.2.0/24"], "outside": "learn", "pools": {"p": {"vrf": "p"}},
            },
            "runtimeConfig": {
                "portMappings": [{"hostPort": 80, "containerPort": 80, "protocol": "tcp", "hostIP": ""}],
                "ips": ["203.0.113.1/24"], "mac": "02:00:5e:10:00:01", "aliases": {"n": ["web"]},
                "io.kubernetes.cri.pod-annotations": {"nos-relay.io/tcp": "80", "nos-relay.io/pool": "p"},
            },
            "prevResult": {
                "interfaces": [{"name": "lo", "sandbox": "/x", "mac": "02:00:5e:10:00:01"}],
                "ips": [{"address": "127.0.0.1/8", "interface": 0}], "routes": [], "dns": {},
            },
            "cni.dev/valid-attachments": [{"containerID": "c", "ifname": "eth0"}],
        })
    }

    /// Paths of all that is in a value.
    fn paths(value: &Value, at: &str, all: &mut Vec<String>) {
        all.push(at.to_owned());
        let escaped = |key: &str| key.replace('~', "~0").replace('/', "~1");
        match value {
            Value::Object(keys) => {
                for (key, value) in keys {
                    paths(value, &format!("{at}/{}", escaped(key)), all);
                }
            }
            Value::Array(list) => {
                for (index, value) in list.iter().enumerate() {
                    paths(value, &format!("{at}/{index}"), all);
                }
            }
            _ => {}
        }
    }

    fn called(command: &str, input: Vec<u8>) -> Result<String, String> {
        let variable = |key: &str| match key {
            "CNI_COMMAND" => Some(command.into()),
            "CNI_CONTAINERID" => Some("c1".into()),
            "CNI_IFNAME" => Some("eth0".into()),
            "CNI_NETNS" => Some("/proc/1/ns/net".into()),
            _ => None,
        };
        invoke(&variable, Ok(input))
    }

    fn assert_is_error(text: &str) {
        let value: Value = serde_json::from_str(text).unwrap();
        assert!(
            value["code"].as_u64().is_some_and(|code| code > 0),
            "{text}"
        );
        assert!(
            value["msg"].as_str().is_some_and(|text| !text.is_empty()),
            "{text}"
        );
        assert!(value["details"].is_string(), "{text}");
    }

    proptest! {
        #[test]
        fn whatever_stands_in_a_configuration_it_is_read_or_refused(
            place in any::<prop::sample::Index>(),
            value in anything(),
            command in "(ADD|DEL|CHECK|GC|STATUS)",
        ) {
            let mut conf = whole();
            let mut all = Vec::new();
            paths(&conf, "", &mut all);
            // Without this one it would ask the machine's own daemon.
            all.retain(|path| !"/nos-relay/control".starts_with(path.as_str()));
            if let Some(old) = conf.pointer_mut(place.get(&all).as_str()) {
                *old = value;
            }
            // Nobody is there to be asked, so that all of them fail.
            assert_is_error(&called(&command, conf.to_string().into()).unwrap_err());
        }

        #[test]
        fn whatever_octets_there_are_they_are_refused(
            octets in proptest::collection::vec(any::<u8>(), 0..64),
            command in "[A-Z]{0,8}|(ADD|DEL|CHECK|GC|STATUS)",
        ) {
            if command != "VERSION" {
                assert_is_error(&called(&command, octets).unwrap_err());
            }
        }
    }
}
