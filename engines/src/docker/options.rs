//! What Docker's options say: `-o` of a network, `-p` and `driver-opt` of an endpoint.

use core::net::IpAddr;

use serde_json::{Map, Value};

use super::{CallError, shown};
use crate::ports::{Given, Mapping, Ports, Protocol, Use};

/// Where the options of `docker network create -o` are.
const GENERIC: &str = "com.docker.network.generic";
const INTERNAL: &str = "com.docker.network.internal";
const PORT_MAP: &str = "com.docker.network.portmap";
/// What Docker itself says begins so.
const OF_DOCKER: &str = "com.docker.";

/// What a container gets to open flows from, unless somebody says otherwise.
const DEFAULT_EPHEMERAL: u16 = 64;

/// The options of a network, as keys of `[[network]]`.
pub(super) fn network(options: &Map<String, Value>) -> Result<Map<String, Value>, CallError> {
    if options.get(INTERNAL) == Some(&Value::Bool(true)) {
        return Err(CallError::asked(
            "--internal: say with -o to=PREFIX,... where its containers may open flows to",
        ));
    }
    let mut keys = Map::new();
    let generic = match options.get(GENERIC) {
        None | Some(Value::Null) => return Ok(keys),
        Some(Value::Object(generic)) => generic,
        Some(_) => return Err(CallError::asked(format_args!("{GENERIC} is no object"))),
    };
    for (key, value) in generic {
        let Some(text) = value.as_str() else {
            return Err(CallError::asked(format_args!(
                "-o {}: is no text",
                shown(key)
            )));
        };
        let list = || -> Value { text.split(',').map(|part| part.trim().to_owned()).collect() };
        match key.as_str() {
            "mode" | "vrf" | "device" | "outside" | "pool" => keys.insert(key.clone(), text.into()),
            "bridge" => keys.insert("device".to_owned(), format!("bridge:{text}").into()),
            "uplink" | "uplinks" => keys.insert("uplinks".to_owned(), list()),
            "to" | "from" => keys.insert(key.clone(), list()),
            other if other.starts_with(OF_DOCKER) => None,
            _ => {
                return Err(CallError::asked(format_args!(
                    "-o {}: there are mode, uplink, vrf, pool, device, bridge, to, from and outside",
                    shown(key)
                )));
            }
        };
    }
    // Whoever names a bridge means that mode, unless another was said.
    let bridged = generic.contains_key("bridge");
    if bridged && generic.contains_key("device") {
        return Err(CallError::asked(
            "-o device and -o bridge: give one of the two",
        ));
    }
    if bridged {
        keys.entry("mode").or_insert("bridge".into());
    }
    Ok(keys)
}

/// The ports of an endpoint.
pub(super) fn ports(options: &Map<String, Value>) -> Result<Ports, CallError> {
    let mut ports = Ports::default();
    let mut ephemeral = Some(Given::Size(DEFAULT_EPHEMERAL));
    for (key, value) in options
        .iter()
        .filter(|(key, _)| !key.starts_with(OF_DOCKER))
    {
        let Some(text) = value.as_str() else {
            return Err(CallError::asked(format_args!(
                "driver-opt {}: is no text",
                shown(key)
            )));
        };
        let given = || {
            let given = Given::parse(text);
            given.map_err(|error| CallError::asked(format_args!("driver-opt {key}: {error}")))
        };
        match key.as_str() {
            "tcp" => ports.give(Use::Listen(Protocol::Tcp), &given()?),
            "udp" => ports.give(Use::Listen(Protocol::Udp), &given()?),
            "ephemeral" if text == "none" => ephemeral = None,
            "ephemeral" => ephemeral = Some(given()?),
            _ => {
                return Err(CallError::asked(format_args!(
                    "driver-opt {}: there are tcp, udp and ephemeral",
                    shown(key)
                )));
            }
        }
    }
    if let Some(given) = ephemeral {
        ports.give(Use::Ephemeral, &given);
    }
    for mapping in mappings(options)? {
        let published = ports.publish(mapping, None);
        published.map_err(|error| CallError::asked(format_args!("-p: {error}")))?;
    }
    Ok(ports)
}

fn mappings(options: &Map<String, Value>) -> Result<Vec<Mapping>, CallError> {
    let list = match options.get(PORT_MAP) {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(_) => return Err(CallError::asked(format_args!("{PORT_MAP} is no list"))),
    };
    list.iter().map(mapping).collect()
}

fn mapping(value: &Value) -> Result<Mapping, CallError> {
    let number = |key: &str| -> Result<u16, CallError> {
        let value = match value.get(key) {
            None | Some(Value::Null) => return Ok(0),
            Some(value) => value.as_u64().and_then(|number| u16::try_from(number).ok()),
        };
        value.ok_or_else(|| CallError::asked(format_args!("{PORT_MAP}: {key} is no port")))
    };
    let protocol = match value.get("Proto").and_then(Value::as_u64) {
        Some(6) => Protocol::Tcp,
        Some(17) => Protocol::Udp,
        Some(132) => {
            return Err(CallError::asked(
                "-p: SCTP has no ports that could be shared",
            ));
        }
        _ => {
            return Err(CallError::asked(format_args!(
                "{PORT_MAP}: Proto is neither 6 nor 17"
            )));
        }
    };
    let (first, last) = (number("HostPort")?, number("HostPortEnd")?);
    let container = number("Port")?;
    // A range to choose from: without NAT there is one choice.
    let within = first != 0 && (first..=last.max(first)).contains(&container);
    let address = match value.get("HostIP").and_then(Value::as_str) {
        None | Some("") => None,
        Some(text) => {
            let address: IpAddr = text
                .parse()
                .map_err(|_| CallError::asked(format_args!("-p: {} is no address", shown(text))))?;
            Some(address).filter(|address| !address.is_unspecified())
        }
    };
    Ok(Mapping {
        protocol,
        host: if within { container } else { first },
        container,
        address,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(options: Value) -> Result<Ports, String> {
        let Value::Object(options) = options else {
            panic!()
        };
        ports(&options).map_err(|error| error.to_string())
    }

    fn texts(ranges: &[nos_shim::ports::PortRange]) -> Vec<String> {
        ranges.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_is_published_is_registered_as_it_stands() {
        let ports = of(json!({
            "tcp": "20000-20099", "ephemeral": "40000-40099", "com.docker.other": 5,
            PORT_MAP: [
                {"Proto": 6, "Port": 8080, "HostPort": 8080, "HostPortEnd": 8080},
                {"Proto": 17, "Port": 53, "HostPort": 50, "HostPortEnd": 59, "HostIP": "0.0.0.0"},
            ],
        }))
        .unwrap();
        assert_eq!(texts(&ports.tcp), ["8080", "20000-20099"]);
        assert_eq!(texts(&ports.udp), ["53"]);
        assert_eq!(texts(&ports.ephemeral), ["40000-40099"]);
        assert_eq!(ports.allocations, []);
    }

    #[test]
    fn a_container_that_says_nothing_can_open_flows() {
        let ports = of(json!({})).unwrap();
        assert_eq!(ports.allocations.len(), 1);
        assert_eq!(of(json!({"ephemeral": "none"})).unwrap(), Ports::default());
    }

    #[test]
    fn what_would_take_nat_is_refused_with_the_reason() {
        for (mapping, reason) in [
            (
                json!({"Proto": 6, "Port": 80, "HostPort": 8080}),
                "there is no NAT",
            ),
            (
                json!({"Proto": 6, "Port": 80, "HostPort": 8080, "HostPortEnd": 8089}),
                "there is no NAT",
            ),
            (json!({"Proto": 132, "Port": 80, "HostPort": 80}), "SCTP"),
            (
                json!({"Proto": 6, "Port": 70000, "HostPort": 80}),
                "Port is no port",
            ),
            (
                json!({"Proto": 6, "Port": 80, "HostPort": 80, "HostIP": "x"}),
                "\"x\" is no address",
            ),
        ] {
            let error = of(json!({ PORT_MAP: [mapping] })).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
        for (option, reason) in [
            (json!({"colour": "red"}), "driver-opt \"colour\""),
            (json!({"tcp": "x"}), "driver-opt tcp"),
            (json!({"tcp": 5}), "is no text"),
        ] {
            let error = of(option).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn options_of_a_network_are_keys_of_the_configuration() {
        let Value::Object(options) = json!({GENERIC: {"mode": "shared", "uplink": "up0, up1", "to": "192.0.2.0/24",
            "com.docker.network.enable_ipv6": "x"}})
        else {
            panic!()
        };
        let keys = network(&options).unwrap();
        assert_eq!(
            Value::Object(keys),
            json!({"mode": "shared", "uplinks": ["up0", "up1"], "to": ["192.0.2.0/24"]})
        );
        for (options, reason) in [
            (json!({GENERIC: {"colour": "red"}}), "-o \"colour\""),
            (json!({GENERIC: []}), "is no object"),
            (json!({INTERNAL: true}), "--internal"),
        ] {
            let Value::Object(options) = options else {
                panic!()
            };
            let error = network(&options).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
