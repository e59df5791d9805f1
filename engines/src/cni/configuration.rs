//! The network configuration: what the specification has in it, and our own section.
//!
//! Keys of the specification and of other plugins are let be. In `nos-relay`, which is ours, every
//! key is known, or named as wrong.

use core::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use nos_relay::control::api::DEFAULT_PATH;
use nos_relay::control::config::ContainerDevice;
use nos_shim::ident::MacAddr;
use serde_json::{Map, Value};

use super::error::{CniError, Code};
use super::section::{Section, mistyped, text};
use super::version::Version;
use crate::annotations::Chosen;
use crate::name::{NetworkNames, identifier};
use crate::ports::{Given, Mapping, Protocol, range};

/// The key of our own section.
const SECTION: &str = "nos-relay";
/// What is known in it.
const KEYS: [&str; 14] = [
    "control",
    "device",
    "network",
    "vrf",
    "addresses",
    "tcp",
    "udp",
    "ephemeral",
    "to",
    "from",
    "outside",
    "mtu",
    "pool",
    "pools",
];
/// What is known in a pool.
const POOL_KEYS: [&str; 4] = ["vrf", "addresses", "network", "pool"];
/// Octets of the least MTU that the daemon takes.
const MIN_MTU: u16 = 576;
/// The capability by which a pod's annotations come.
const ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";

/// A network configuration. What only `ADD` needs is read when it is needed, so that an interface can
/// be removed by a configuration with which none can be added.
#[derive(Clone, Debug)]
pub(super) struct Configuration {
    pub(super) version: Version,
    pub(super) names: NetworkNames,
    pub(super) control: PathBuf,
    /// The VRF of its containers.
    pub(super) vrf: Option<String>,
    /// The daemon's network of its containers.
    pub(super) network: Option<String>,
    /// The type of the plugin that is to choose addresses.
    pub(super) ipam: Option<String>,
    whole: Value,
}

/// What the configuration says of containers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) device: Option<ContainerDevice>,
    pub(super) place: Place,
    pub(super) tcp: Option<Given>,
    pub(super) udp: Option<Given>,
    pub(super) ephemeral: Option<Given>,
    pub(super) to: Option<Vec<String>>,
    pub(super) from: Option<Vec<String>>,
    pub(super) outside: Option<String>,
    pub(super) mtu: Option<u16>,
    pub(super) pools: Vec<(String, Place)>,
}

/// Where a container is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) network: Option<String>,
    pub(super) vrf: Option<String>,
    pub(super) addresses: Option<Vec<IpAddr>>,
    /// The daemon's pool.
    pub(super) pool: Option<String>,
}

/// What an engine asks for one container, by capabilities.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Runtime {
    pub(super) mappings: Vec<Mapping>,
    pub(super) addresses: Option<Vec<IpAddr>>,
    pub(super) mac: Option<String>,
    pub(super) chosen: Chosen,
}

impl Place {
    /// This one where it says something. Of a place in another network or VRF nothing holds: addresses
    /// of one mean nothing in another, and a network says its VRF itself.
    pub(super) fn over(self, below: Self) -> Self {
        if self.network.is_some() || self.vrf.is_some() {
            return self;
        }
        Self {
            addresses: self.addresses.or(below.addresses),
            pool: self.pool.or(below.pool),
            ..below
        }
    }
}

impl Configuration {
    /// Reads what every command needs.
    pub(super) fn read(input: &[u8]) -> Result<Self, CniError> {
        let whole: Value = serde_json::from_slice(input).map_err(|error| {
            CniError::new(
                Code::Decoding,
                "the network configuration is not JSON",
                error,
            )
        })?;
        let root = Section::new(&whole, "")
            .map_err(|error| CniError::new(Code::Decoding, error.message, error.details))?;
        let version = Version::read(root.text("cniVersion")?.unwrap_or("0.1.0"))?;
        let name = root.text("name")?;
        let name = name.ok_or_else(|| root.wrong("name", "is missing"))?;
        let names =
            NetworkNames::new(super::ENGINE, name).map_err(|error| root.wrong("name", error))?;
        let own = own_section(&whole)?;
        let control = match own.text("control")? {
            None => DEFAULT_PATH,
            Some(path) if path.starts_with('/') => path,
            Some(_) => return Err(own.wrong("control", "is not an absolute path")),
        };
        Ok(Self {
            version,
            names,
            control: control.into(),
            vrf: own.text("vrf")?.map(str::to_owned),
            network: own.text("network")?.map(str::to_owned),
            ipam: delegate(root)?,
            whole,
        })
    }

    /// Reads what containers are to be.
    pub(super) fn wanted(&self) -> Result<Wanted, CniError> {
        let own = own_section(&self.whole)?;
        own.only(&KEYS)?;
        let device = own.text("device")?.map(str::parse).transpose();
        let device = device.map_err(|wrong| own.wrong("device", wrong))?;
        let outside = match own.text("outside")? {
            Some(outside) if outside != "drop" && outside != "learn" => {
                return Err(own.wrong("outside", "is neither \"drop\" nor \"learn\""));
            }
            outside => outside.map(str::to_owned),
        };
        Ok(Wanted {
            device,
            place: place(own)?,
            tcp: given(own, "tcp")?,
            udp: given(own, "udp")?,
            ephemeral: given(own, "ephemeral")?,
            to: prefixes(own, "to")?,
            from: prefixes(own, "from")?,
            outside,
            mtu: mtu(own)?,
            pools: pools(own)?,
        })
    }

    /// Reads what the engine asks for one container.
    pub(super) fn runtime(&self) -> Result<Runtime, CniError> {
        let root = self.root()?;
        let Some(value) = root.value("runtimeConfig") else {
            return Ok(Runtime::default());
        };
        let runtime = Section::new(value, "runtimeConfig")?;
        let addresses = runtime.texts("ips")?.map(|texts| {
            let addresses = texts.iter().map(|text| address(text));
            let addresses: Option<Vec<_>> = addresses.collect();
            addresses.ok_or_else(|| runtime.wrong("ips", "has something that is no address"))
        });
        aliases(runtime)?;
        let mappings = runtime.list("portMappings")?.iter().map(mapping);
        Ok(Runtime {
            mappings: mappings.collect::<Result<_, _>>()?,
            addresses: addresses.transpose()?.filter(|list| !list.is_empty()),
            mac: runtime
                .text("mac")?
                .filter(|mac| !mac.is_empty())
                .map(mac)
                .transpose()?,
            chosen: annotations(runtime)?,
        })
    }

    /// The addresses that `args.cni.ips` asks for.
    pub(super) fn arguments(&self) -> Result<Option<Vec<IpAddr>>, CniError> {
        let root = self.root()?;
        let Some(value) = root.value("args") else {
            return Ok(None);
        };
        let Some(value) = Section::new(value, "args")?.value("cni") else {
            return Ok(None);
        };
        let section = Section::new(value, "args.cni")?;
        let Some(texts) = section.texts("ips")? else {
            return Ok(None);
        };
        let addresses: Option<Vec<_>> = texts.iter().map(|text| address(text)).collect();
        let wrong = || section.wrong("ips", "has something that is no address");
        addresses.ok_or_else(wrong).map(Some)
    }

    /// What a resolver is to be told.
    pub(super) fn dns(&self) -> Result<Map<String, Value>, CniError> {
        match self.root()?.value("dns") {
            None => Ok(Map::new()),
            Some(Value::Object(keys)) => Ok(keys.clone()),
            Some(other) => Err(mistyped("dns", "an object", other)),
        }
    }

    /// The result of the plugins before this one, or of this one's `ADD`.
    pub(super) fn previous(&self) -> Result<Option<&Value>, CniError> {
        let previous = self.root()?.value("prevResult");
        if let Some(value) = previous {
            let section = Section::new(value, "prevResult")?;
            for key in ["interfaces", "ips", "routes"] {
                let at = section.at(key);
                for element in section.list(key)? {
                    Section::new(element, &at)?;
                }
            }
        }
        Ok(previous)
    }

    /// Containers and their interfaces that the engine still has.
    pub(super) fn valid(&self) -> Result<Vec<(&str, &str)>, CniError> {
        let key = "cni.dev/valid-attachments";
        let root = self.root()?;
        if root.value(key).is_none() {
            // Not the same as an empty list: nothing may be taken for granted.
            return Err(root.wrong(key, "is missing"));
        }
        let attachment = |value| {
            let section = Section::new(value, key)?;
            let field = |name: &str| {
                let text = section.text(name)?;
                text.ok_or_else(|| section.wrong(name, "is missing"))
            };
            Ok((field("containerID")?, field("ifname")?))
        };
        root.list(key)?.iter().map(attachment).collect()
    }

    /// As it came, for a plugin that it is handed on to.
    pub(super) fn whole(&self) -> &Value {
        &self.whole
    }

    fn root(&self) -> Result<Section<'_>, CniError> {
        Section::new(&self.whole, "")
    }
}

/// Our section, or one without keys.
fn own_section(whole: &Value) -> Result<Section<'_>, CniError> {
    static NOTHING: std::sync::LazyLock<Value> =
        std::sync::LazyLock::new(|| Value::Object(Map::new()));
    match whole.get(SECTION).filter(|value| !value.is_null()) {
        Some(value) => Section::new(value, SECTION),
        None => Section::new(&NOTHING, SECTION),
    }
}

/// The plugin that is to choose addresses. Its name is looked for in the engine's folders, so it must
/// not lead out of them.
fn delegate(root: Section<'_>) -> Result<Option<String>, CniError> {
    let Some(value) = root.value("ipam") else {
        return Ok(None);
    };
    let ipam = Section::new(value, "ipam")?;
    let Some(kind) = ipam.text("type")?.filter(|kind| !kind.is_empty()) else {
        return Ok(None);
    };
    identifier("plugin", kind).map_err(|error| ipam.wrong("type", error))?;
    Ok(Some(kind.to_owned()))
}

fn place(section: Section<'_>) -> Result<Place, CniError> {
    let name = |key: &'static str| {
        let text = section.text(key)?;
        let checked = text.map(|text| identifier(key, text).map(str::to_owned));
        checked
            .transpose()
            .map_err(|error| section.wrong(key, error))
    };
    let addresses = section.texts("addresses")?.map(|texts| {
        let addresses: Result<Vec<IpAddr>, _> = texts.iter().map(|text| text.parse()).collect();
        addresses.map_err(|_| {
            section.wrong(
                "addresses",
                "has something that is no address without prefix length",
            )
        })
    });
    Ok(Place {
        network: name("network")?,
        vrf: name("vrf")?,
        pool: name("pool")?,
        addresses: addresses.transpose()?,
    })
}

fn mtu(own: Section<'_>) -> Result<Option<u16>, CniError> {
    let Some(value) = own.value("mtu") else {
        return Ok(None);
    };
    let octets = value.as_u64().and_then(|octets| u16::try_from(octets).ok());
    let octets = octets.filter(|octets| *octets >= MIN_MTU);
    let wrong = || own.wrong("mtu", format!("is not a number of {MIN_MTU} to 65535"));
    octets.ok_or_else(wrong).map(Some)
}

fn pools(own: Section<'_>) -> Result<Vec<(String, Place)>, CniError> {
    let Some(value) = own.value("pools") else {
        return Ok(Vec::new());
    };
    let path = own.at("pools");
    let pools = Section::new(value, &path)?;
    let pool = |(name, value): (&str, &Value)| {
        identifier("pool name", name).map_err(CniError::configuration)?;
        let path = pools.at(name);
        let section = Section::new(value, &path)?;
        section.only(&POOL_KEYS)?;
        Ok((name.to_owned(), place(section)?))
    };
    pools.keys().map(pool).collect()
}

/// Ports: a number, `"20000-20099"`, a list of those, or `{"size": 100}`.
fn given(own: Section<'_>, key: &str) -> Result<Option<Given>, CniError> {
    let Some(value) = own.value(key) else {
        return Ok(None);
    };
    let wrong = |error: crate::ports::PortsError| own.wrong(key, error);
    let one = |value: &Value| match value {
        Value::Number(number) => range(&number.to_string()).map_err(wrong),
        Value::String(text) => range(text).map_err(wrong),
        other => Err(mistyped(
            &own.at(key),
            "a port, a range of ports, a list of those, or a size",
            other,
        )),
    };
    let given = match value {
        Value::Object(_) => {
            let path = own.at(key);
            let section = Section::new(value, &path)?;
            section.only(&["size"])?;
            let size = section.value("size").and_then(Value::as_u64);
            let size = size.ok_or_else(|| section.wrong("size", "is no number of ports"))?;
            Given::size(size).map_err(wrong)?
        }
        Value::Array(_) => {
            let ranges = own.list(key)?.iter().map(one);
            Given::Ranges(ranges.collect::<Result<_, _>>()?)
        }
        value => Given::Ranges(vec![one(value)?]),
    };
    Ok(Some(given))
}

fn prefixes(own: Section<'_>, key: &str) -> Result<Option<Vec<String>>, CniError> {
    let Some(texts) = own.texts(key)? else {
        return Ok(None);
    };
    let prefix = |text: &&str| {
        let parsed: Result<IpNet, _> = text.parse();
        let shown: String = text.chars().take(60).collect();
        parsed
            .map(|prefix| prefix.to_string())
            .map_err(|_| own.wrong(key, format!("{shown:?} is no prefix")))
    };
    texts.iter().map(prefix).collect::<Result<_, _>>().map(Some)
}

/// One element of `portMappings`. containerd writes `HostPort` where podman writes `hostPort`.
fn mapping(value: &Value) -> Result<Mapping, CniError> {
    let section = Section::new(value, "runtimeConfig.portMappings")?;
    let port = |key: &str| match section.value(section.folded(key)) {
        None => Ok(0),
        Some(value) => {
            let number = value.as_u64().and_then(|number| u16::try_from(number).ok());
            number.ok_or_else(|| section.wrong(key, format!("{value} is no port")))
        }
    };
    let protocol = section.text(section.folded("protocol"))?.unwrap_or("tcp");
    let protocol = match protocol.to_ascii_lowercase().as_str() {
        "" | "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        other => {
            let shown: String = other.chars().take(40).collect();
            return Err(CniError::new(
                Code::UnsupportedField,
                "there are ports of TCP and UDP alone",
                format!("runtimeConfig.portMappings.protocol: {shown:?}"),
            ));
        }
    };
    let on = section
        .text(section.folded("hostIP"))?
        .filter(|text| !text.is_empty());
    let on = on.map(|text| {
        let parsed: Result<IpAddr, _> = text.parse();
        parsed.map_err(|_| section.wrong("hostIP", "is no address"))
    });
    Ok(Mapping {
        protocol,
        host: port("hostPort")?,
        container: port("containerPort")?,
        address: on.transpose()?,
    })
}

/// Names by which others in the network may find a container. The NOS answers no queries of names, so
/// that they are checked and let be.
fn aliases(runtime: Section<'_>) -> Result<(), CniError> {
    match runtime.value("aliases") {
        None => Ok(()),
        Some(Value::Object(networks)) => {
            for (network, names) in networks {
                let at = runtime.at("aliases");
                let Value::Array(names) = names else {
                    return Err(mistyped(&format!("{at}.{network}"), "a list", names));
                };
                for name in names {
                    text(name, &at)?;
                }
            }
            Ok(())
        }
        Some(_) => runtime.texts("aliases").map(drop),
    }
}

fn annotations(runtime: Section<'_>) -> Result<Chosen, CniError> {
    let Some(value) = runtime.value(ANNOTATIONS) else {
        return Ok(Chosen::default());
    };
    let path = runtime.at(ANNOTATIONS);
    let section = Section::new(value, &path)?;
    let pair = |(key, value)| Ok::<_, CniError>((key, text(value, &section.at(key))?));
    let pairs: Vec<_> = section.keys().map(pair).collect::<Result<_, _>>()?;
    Chosen::read(pairs).map_err(CniError::configuration)
}

/// A unicast MAC address, in the form in which the daemon takes it.
pub(super) fn mac(text: &str) -> Result<String, CniError> {
    let parsed: Result<MacAddr, _> = text.to_ascii_lowercase().parse();
    let shown: String = text.chars().take(40).collect();
    parsed
        .map(|mac| mac.to_string())
        .map_err(|_| CniError::configuration(format!("{shown:?} is no MAC address")))
}

/// An address, with or without the length of a prefix.
pub(super) fn address(text: &str) -> Option<IpAddr> {
    let net = || text.parse::<IpNet>().ok().map(|net| net.addr());
    text.parse().ok().or_else(net)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_network_or_vrf_leaves_nothing_of_the_place_below() {
        let place = |network: Option<&str>, vrf: Option<&str>, address: Option<&str>| Place {
            network: network.map(str::to_owned),
            vrf: vrf.map(str::to_owned),
            addresses: address.map(|address| vec![address.parse().unwrap()]),
            pool: None,
        };
        let below = place(None, Some("red"), Some("203.0.113.1"));
        for above in [
            place(Some("tenants"), None, None),
            place(None, Some("blue"), Some("203.0.113.2")),
        ] {
            assert_eq!(above.clone().over(below.clone()), above);
        }
        assert_eq!(Place::default().over(below.clone()), below);
        let address = place(None, None, Some("203.0.113.3"));
        assert_eq!(
            address.over(below),
            place(None, Some("red"), Some("203.0.113.3"))
        );
    }
}
