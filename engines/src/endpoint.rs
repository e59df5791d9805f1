//! Endpoints: interfaces of containers on the NOS's address.
//!
//! # Theory of operation
//!
//! To join is to attach a container by name, to have allocated what the daemon is to choose, and to
//! read what has come of it. Each step may be done again, as an engine asks again when an answer was
//! lost: attaching is idempotent, and of allocations only those are asked for that the container does
//! not have yet. What fails halfway is taken back.
//!
//! One with an address of its own has all ports on it, so none are asked for: what is published is reached
//! anyway.
//!
//! After a reboot the daemon has what was registered before, for namespaces that are no more. An engine
//! may never speak of those again. Where one has what somebody else asks for, and its namespace is
//! gone, it makes way.

use core::net::IpAddr;
use std::borrow::Cow;
use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use nos_relay::control::api::snapshot::{self, Attachment, Network, Origin, Port, PortKind};
use nos_relay::control::api::{Applied, Refusal, RefusalCode};
use nos_relay::control::config::{ContainerDevice, NetworkMode};
use nos_shim::ports::PortRange;
use serde_json::{Map, Value, json};
use thiserror::Error;

use crate::daemon::{Daemon, DaemonError, detach, fresh_id};
use crate::name::is_of;
use crate::ports::{Allocation, Ports, Protocol, Use};
use crate::process;

/// How many containers whose namespaces are gone make way for one.
const MAX_MAKE_WAY: usize = 64;

/// What the daemon names when nothing is left in a pool.
const POOL: &str = "container.pool";

/// What a container's interface is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The engine, as names of its containers begin.
    pub engine: &'static str,
    /// Its name, see [`crate::name`].
    pub name: String,
    /// The path of its network namespace.
    pub netns: PathBuf,
    /// The interface's name inside.
    pub interface: String,
    /// How it is made; as its network says, or as a veth, if that is left open here.
    pub device: Option<ContainerDevice>,
    /// Its ports.
    pub ports: Ports,
    /// The addresses of the NOS that it uses, all of its VRF if there are none here; or such as are its own,
    /// where its network says so.
    pub addresses: Vec<IpAddr>,
    /// The pool that it gets an address of its own from, where it names none and its network says so.
    pub pool: Option<String>,
    /// What it runs for, by a name that stays when containers come and go.
    pub workload: Option<String>,
    /// Addresses of its interface itself, on a bridge.
    pub link_addresses: Vec<IpNet>,
    /// Addresses that were chosen for it by whom does not know its network: on a bridge, those of its interface,
    /// elsewhere as [`Self::addresses`].
    pub assigned: Vec<IpNet>,
    /// Its MAC address; one made of the name if there is none here.
    pub mac: Option<String>,
    /// Octets of its longest IP packets, 576 to 65535; as its uplinks have them if none are said here.
    pub mtu: Option<u16>,
    /// Its VRF.
    pub vrf: Option<String>,
    /// Its network.
    pub network: Option<String>,
    /// Prefixes to which it may open flows; everywhere if there are none here.
    pub to: Option<Vec<String>>,
    /// Prefixes from which flows to it may be opened; everywhere if there are none here.
    pub from: Option<Vec<String>>,
    /// Its addresses are its own, by its network: [`Self::in_network`] says it.
    pub routed: bool,
    /// What becomes of what it sends from ports that are not its own: `drop` or `learn`.
    pub outside: Option<String>,
}

/// Why a container is not joined.
#[derive(Debug, Error)]
pub enum JoinError {
    /// The daemon has not done it.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// Its namespace does not exist.
    #[error("the network namespace {} does not exist", .0.display())]
    Gone(PathBuf),
    /// It waits for this.
    #[error("{0}")]
    Waits(String),
    /// A container of its name is there, and has other ports than were asked for.
    #[error("it is attached already, with other ports; remove it first")]
    OtherPorts,
    /// What has been done could not be taken back.
    #[error("{first}; and what was done is still there, as it cannot be taken back: {then}")]
    Left {
        /// Why it is not joined.
        first: Box<JoinError>,
        /// Why it was not taken back.
        then: DaemonError,
    },
    /// The kernel does not give what is needed to ask.
    #[error("{what}: {error}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the kernel says.
        error: std::io::Error,
    },
}

/// Joins a container, or finds it joined as it is to be.
///
/// # Errors
///
/// [`JoinError`]; then nothing of it is there, but for [`JoinError::Left`].
pub fn join(daemon: &Daemon, endpoint: &Endpoint) -> Result<Attachment, JoinError> {
    if is_gone(&endpoint.netns) {
        return Err(JoinError::Gone(endpoint.netns.clone()));
    }
    let endpoint = &*suited(daemon, endpoint)?;
    let applied = attach(daemon, endpoint)?;
    let finished = finish(daemon, endpoint, &applied);
    finished.map_err(|first| taken_back(daemon, endpoint, first))
}

/// Registers a container that is in no namespace yet, with its ports: `netns` of the endpoint leads nowhere. One
/// with an address of its own is to have none.
///
/// # Errors
///
/// [`JoinError`]; then nothing of it is there, but for [`JoinError::Left`].
pub fn prepare(daemon: &Daemon, endpoint: &Endpoint) -> Result<Attachment, JoinError> {
    let request = json!({"type": "attach", "container": container(endpoint)});
    let applied = daemon.change(request, None)?;
    let allocated = allocate(daemon, endpoint, applied.changed);
    let row = allocated.and_then(|()| shown(daemon, endpoint));
    row.map_err(|first| taken_back(daemon, endpoint, first))
}

/// The endpoint as it suits its network: without ports, where it has an address of its own and so all of them.
fn suited<'a>(daemon: &Daemon, endpoint: &'a Endpoint) -> Result<Cow<'a, Endpoint>, DaemonError> {
    if endpoint.assigned.is_empty() && endpoint.network.is_none() {
        return Ok(Cow::Borrowed(endpoint));
    }
    let mut networks = match endpoint.network {
        Some(_) => daemon.networks()?.into_iter(),
        None => Vec::new().into_iter(),
    };
    let network = networks.find(|it| Some(&it.name) == endpoint.network.as_ref());
    Ok(Cow::Owned(endpoint.clone().in_network(network.as_ref())))
}

impl Endpoint {
    /// The same, as it suits its network, if it has one.
    #[must_use]
    pub fn in_network(mut self, network: Option<&Network>) -> Self {
        if network.is_some_and(is_routed) {
            // On an address of its own, what is published is reached anyway.
            self.ports = Ports::default();
            self.routed = true;
        }
        let assigned = std::mem::take(&mut self.assigned);
        let on_bridge = match &self.device {
            Some(device) => matches!(device, ContainerDevice::Bridge(_)),
            None => network.is_some_and(is_bridged),
        };
        let of_nos =
            |net: &IpNet| network.is_some_and(|network| network.addresses.contains(&net.addr()));
        let (on_link, others): (Vec<IpNet>, _) = assigned
            .into_iter()
            .partition(|net| on_bridge && !of_nos(net));
        self.link_addresses.extend(on_link);
        self.addresses.extend(others.iter().map(IpNet::addr));
        self
    }
}

/// Whether containers of a network have addresses of their own.
pub(crate) fn is_routed(network: &Network) -> bool {
    network.mode == NetworkMode::Routed.to_string()
}

/// Whether containers of a network are ports of a bridge.
pub(crate) fn is_bridged(network: &Network) -> bool {
    network.mode == NetworkMode::Bridge.to_string()
}

/// Takes away what was done halfway, and says why it was not done whole.
fn taken_back(daemon: &Daemon, endpoint: &Endpoint, first: JoinError) -> JoinError {
    match leave(daemon, &endpoint.name) {
        Ok(_) => first,
        Err(then) => JoinError::Left {
            first: Box::new(first),
            then,
        },
    }
}

/// Takes a container away, if it is there. Returns whether it was.
///
/// # Errors
///
/// [`DaemonError`].
pub fn leave(daemon: &Daemon, name: &str) -> Result<bool, DaemonError> {
    Ok(daemon.change(detach(name), None)?.changed)
}

/// Takes away all containers whose names begin with `prefix`, but those of `keep`. Returns their names.
///
/// # Errors
///
/// What the daemon says of the first that stays. All others have been tried.
pub fn collect(daemon: &Daemon, prefix: &str, keep: &[String]) -> Result<Vec<String>, DaemonError> {
    let rows = daemon.registrations()?.into_iter();
    let containers = rows.filter(|row| row.kind == snapshot::RegistrationKind::Container);
    let stale = containers.filter(|row| row.name.starts_with(prefix) && !keep.contains(&row.name));
    let mut gone = Vec::new();
    let mut failure = None;
    for row in stale {
        match leave(daemon, &row.name) {
            Ok(_) => gone.push(row.name),
            Err(error) => {
                failure.get_or_insert(error);
            }
        }
    }
    failure.map_or(Ok(gone), Err)
}

/// Whether nothing is there under this path, for certain.
pub(crate) fn is_gone(path: &Path) -> bool {
    std::fs::metadata(path).is_err_and(|error| {
        let process_has_ended = error.raw_os_error() == Some(libc::ESRCH);
        process_has_ended || matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
    })
}

fn attach(daemon: &Daemon, endpoint: &Endpoint) -> Result<Applied, JoinError> {
    let holder = holder(&endpoint.netns)?;
    let mut request = json!({"type": "attach", "container": container(endpoint)});
    if holder.is_some() {
        request["lease"] = "pidfd".into();
    }
    let mut left = MAX_MAKE_WAY;
    loop {
        let holder = holder.as_ref().map(AsFd::as_fd);
        let error = match daemon.change(request.clone(), holder) {
            Ok(applied) => return Ok(applied),
            Err(error) => error,
        };
        let refusal = error.refusal().filter(|_| left > 0);
        let stale = match refusal {
            Some(refusal) => in_the_way(daemon, endpoint, refusal)?,
            None => None,
        };
        let Some(stale) = stale else {
            let owner = error.refusal().and_then(|refusal| owner(refusal));
            return Err(match owner == Some(endpoint.name.as_str()) {
                true => JoinError::OtherPorts,
                false => error.into(),
            });
        };
        leave(daemon, &stale)?;
        left -= 1;
    }
}

/// A container of the same engine that has what is asked for, and whose namespace is gone.
fn in_the_way(
    daemon: &Daemon,
    endpoint: &Endpoint,
    refusal: &Refusal,
) -> Result<Option<String>, DaemonError> {
    let mut rows = daemon.attachments()?.into_iter();
    let is_stale = |row: &Attachment| {
        let netns = Path::new(&row.netns);
        row.origin == Origin::Runtime && netns.is_absolute() && is_gone(netns)
    };
    if refusal.code == RefusalCode::Conflict && refusal.field.as_deref() == Some(POOL) {
        // Nothing is left in the pool: any that has an address in vain makes way.
        let of_engine = |row: &Attachment| is_of(endpoint.engine, &row.name);
        let stale =
            rows.find(|row| of_engine(row) && row.network == endpoint.network && is_stale(row));
        return Ok(stale.map(|row| row.name));
    }
    let owner = owner(refusal).filter(|owner| is_of(endpoint.engine, owner));
    let name = owner.unwrap_or(&endpoint.name);
    let row = rows.find(|row| row.name == name);
    Ok(row.filter(is_stale).map(|row| row.name))
}

/// The container that has the ports which are asked for.
fn owner(refusal: &Refusal) -> Option<&str> {
    let owner = refusal.clash.as_ref()?.owner.as_str();
    owner.strip_prefix("container \"")?.strip_suffix('"')
}

/// The process that a namespace is named by, which takes the attachment along when it ends: another
/// one may get its number, and must not get the interface.
fn holder(netns: &Path) -> Result<Option<OwnedFd>, JoinError> {
    let Some(pid) = process_of(netns) else {
        return Ok(None);
    };
    match process::open(pid) {
        Ok(Some(holder)) => Ok(Some(holder)),
        Ok(None) => Err(JoinError::Gone(netns.to_owned())),
        Err(error) => Err(JoinError::System {
            what: "open the process of the namespace",
            error,
        }),
    }
}

/// The process of a path such as `/proc/1234/ns/net`.
fn process_of(netns: &Path) -> Option<u32> {
    let text = netns.to_str()?.strip_prefix("/proc/")?;
    text.strip_suffix("/ns/net")?.parse().ok()
}

fn container(endpoint: &Endpoint) -> Value {
    let mut keys = Map::new();
    let mut set = |key: &str, value: Value| keys.insert(key.to_owned(), value);
    set("name", endpoint.name.as_str().into());
    set("netns", endpoint.netns.display().to_string().into());
    set("interface", endpoint.interface.as_str().into());
    let device = match (&endpoint.device, &endpoint.network) {
        (None, Some(_)) => None,
        (device, _) => Some(device.clone().unwrap_or(ContainerDevice::Veth)),
    };
    if let Some(device) = device {
        set("device", device.to_string().into());
    }
    for (key, used) in [
        ("tcp", Use::Listen(Protocol::Tcp)),
        ("udp", Use::Listen(Protocol::Udp)),
        ("ephemeral", Use::Ephemeral),
    ] {
        let ranges = endpoint.ports.ranges(used);
        if !ranges.is_empty() {
            set(key, entry(endpoint, used, ranges));
        }
    }
    if !endpoint.addresses.is_empty() {
        let texts = endpoint.addresses.iter().map(ToString::to_string);
        set("addresses", texts.collect());
    }
    if let Some(pool) = &endpoint.pool {
        set("pool", pool.as_str().into());
    }
    // Others have no addresses that a workload could have again.
    if let Some(workload) = endpoint.workload.as_ref().filter(|_| endpoint.routed) {
        set("workload", workload.as_str().into());
    }
    if !endpoint.link_addresses.is_empty() {
        let texts = endpoint.link_addresses.iter().map(ToString::to_string);
        set("link_addresses", texts.collect());
    }
    for (key, value) in [
        ("mac", &endpoint.mac),
        ("vrf", &endpoint.vrf),
        ("network", &endpoint.network),
        ("outside", &endpoint.outside),
    ] {
        if let Some(value) = value {
            set(key, value.as_str().into());
        }
    }
    if let Some(mtu) = endpoint.mtu {
        set("mtu", mtu.into());
    }
    let own = endpoint.from.as_ref().filter(|_| endpoint.routed);
    for (key, prefixes) in [("to", endpoint.to.as_ref()), ("from", own)] {
        if let Some(prefixes) = prefixes {
            set(key, prefixes.iter().map(String::as_str).collect());
        }
    }
    keys.into()
}

/// Ports as an entry of a list of the configuration, with who may open flows to them.
fn entry(endpoint: &Endpoint, used: Use, ranges: &[PortRange]) -> Value {
    let ports: Value = ranges.iter().map(ToString::to_string).collect();
    match &endpoint.from {
        Some(from) if used != Use::Ephemeral => json!([{"ports": ports, "from": from}]),
        _ => ports,
    }
}

/// What remains to be done of a container that is attached.
fn finish(
    daemon: &Daemon,
    endpoint: &Endpoint,
    applied: &Applied,
) -> Result<Attachment, JoinError> {
    if let Some(waiting) = &applied.waiting {
        return Err(match is_gone(&endpoint.netns) {
            true => JoinError::Gone(endpoint.netns.clone()),
            false => JoinError::Waits(waiting.clone()),
        });
    }
    allocate(daemon, endpoint, applied.changed)?;
    shown(daemon, endpoint)
}

/// The container, as the daemon shows it.
fn shown(daemon: &Daemon, endpoint: &Endpoint) -> Result<Attachment, JoinError> {
    let rows = daemon.attachments()?;
    let row = rows.into_iter().find(|row| row.name == endpoint.name);
    row.ok_or_else(|| JoinError::Waits("the daemon does not show it any more".to_owned()))
}

/// Has allocated what the container does not have yet.
fn allocate(daemon: &Daemon, endpoint: &Endpoint, fresh: bool) -> Result<(), JoinError> {
    let wanted = &endpoint.ports.allocations;
    if wanted.is_empty() && fresh {
        return Ok(());
    }
    let owned = match fresh {
        true => Vec::new(),
        false => daemon.ports()?,
    };
    let missing = missing(endpoint, &owned).ok_or(JoinError::OtherPorts)?;
    for allocation in missing {
        let id = fresh_id(endpoint.engine).map_err(|error| JoinError::System {
            what: "make an id for a request",
            error,
        })?;
        let applied = daemon.change_once(&id, request(&endpoint.name, allocation))?;
        if let Some(range) = &applied.range {
            restrict(daemon, endpoint, allocation, range)?;
        }
    }
    Ok(())
}

/// Allocations that the owner of these ports does not have yet. They are made in their order, so that
/// those that are there are the first ones. `None` if the ports are of no such beginning.
fn missing(endpoint: &Endpoint, ports: &[Port]) -> Option<Vec<Allocation>> {
    let uses = [
        Use::Listen(Protocol::Tcp),
        Use::Listen(Protocol::Udp),
        Use::Ephemeral,
    ];
    let mut had = uses.map(|used| (used, besides(endpoint, ports, used)));
    let mut missing = Vec::new();
    for allocation in &endpoint.ports.allocations {
        let had = had.iter_mut().find(|(used, _)| *used == allocation.used);
        match had {
            Some((_, left)) if *left >= u32::from(allocation.size) => {
                *left -= u32::from(allocation.size);
            }
            _ => missing.push(*allocation),
        }
    }
    had.iter().all(|(_, left)| *left == 0).then_some(missing)
}

/// How many ports the container has for a use, besides those that were given by number.
fn besides(endpoint: &Endpoint, ports: &[Port], used: Use) -> u32 {
    // Ephemeral ports are of both protocols: each is counted once.
    let (protocol, kind) = match used {
        Use::Listen(Protocol::Tcp) => (snapshot::Protocol::Tcp, PortKind::Listen),
        Use::Listen(Protocol::Udp) => (snapshot::Protocol::Udp, PortKind::Listen),
        Use::Ephemeral => (snapshot::Protocol::Tcp, PortKind::Ephemeral),
    };
    let rows = ports.iter().filter(|row| row.owner == endpoint.name);
    let rows = rows.filter(|row| row.protocol == protocol && row.kind == kind);
    let given = endpoint.ports.ranges(used);
    let rest = rows.flat_map(|row| row.range.without(given.iter().copied()));
    rest.map(PortRange::len).sum()
}

fn request(name: &str, allocation: Allocation) -> Value {
    let (protocol, kind) = match allocation.used {
        Use::Listen(Protocol::Tcp) => ("tcp", "listen"),
        Use::Listen(Protocol::Udp) => ("udp", "listen"),
        Use::Ephemeral => ("both", "ephemeral"),
    };
    json!({
        "type": "ports-allocate", "container": name, "size": allocation.size,
        "protocol": protocol, "kind": kind,
    })
}

/// Says of ports that were allocated who may open flows to them.
fn restrict(
    daemon: &Daemon,
    endpoint: &Endpoint,
    allocation: Allocation,
    range: &str,
) -> Result<(), DaemonError> {
    let (Some(from), Use::Listen(protocol)) = (&endpoint.from, allocation.used) else {
        return Ok(());
    };
    let mut request = json!({"type": "ports-add", "container": endpoint.name});
    request[protocol.to_string()] = json!([{"ports": range, "from": from}]);
    daemon.change(request, None).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::Given;
    use nos_shim::ident::VrfId;

    fn endpoint() -> Endpoint {
        let mut ports = Ports::default();
        ports.give(
            Use::Listen(Protocol::Tcp),
            &Given::parse("80, 8080-8089").unwrap(),
        );
        for size in [4, 16] {
            ports.give(Use::Listen(Protocol::Tcp), &Given::Size(size));
        }
        ports.give(Use::Ephemeral, &Given::Size(64));
        Endpoint {
            engine: "cni",
            name: "cni.n.c.eth0.0".to_owned(),
            netns: "/run/netns/c".into(),
            interface: "eth0".to_owned(),
            device: None,
            ports,
            addresses: Vec::new(),
            pool: None,
            workload: None,
            link_addresses: Vec::new(),
            assigned: Vec::new(),
            mac: None,
            mtu: None,
            vrf: None,
            network: None,
            to: None,
            from: None,
            routed: false,
            outside: None,
        }
    }

    fn port(owner: &str, protocol: snapshot::Protocol, range: &str, kind: PortKind) -> Port {
        Port {
            vrf: VrfId::default(),
            vrf_name: "default".to_owned(),
            addresses: None,
            protocol,
            range: range.parse().unwrap(),
            kind,
            owner: owner.to_owned(),
            origin: Origin::Runtime,
            from: None,
            state: None,
        }
    }

    fn sizes(ports: &[Port]) -> Option<Vec<u16>> {
        let missing = missing(&endpoint(), ports)?;
        Some(missing.iter().map(|it| it.size).collect())
    }

    #[test]
    fn what_a_container_has_already_is_not_allocated_again() {
        use snapshot::Protocol::{Tcp, Udp};
        let name = endpoint().name;
        let given = port(&name, Tcp, "80", PortKind::Listen);
        assert_eq!(sizes(std::slice::from_ref(&given)), Some(vec![4, 16, 64]));
        // What was allocated beside what was given by number is shown as one range.
        let first = port(&name, Tcp, "8080-8093", PortKind::Listen);
        assert_eq!(sizes(&[given.clone(), first]), Some(vec![16, 64]));
        let both = port(&name, Tcp, "20000-20019", PortKind::Listen);
        let ephemeral = [Tcp, Udp].map(|it| port(&name, it, "40000-40063", PortKind::Ephemeral));
        let mut all = vec![given, both, port("other", Tcp, "1-79", PortKind::Listen)];
        assert_eq!(sizes(&all), Some(vec![64]));
        all.extend(ephemeral);
        assert_eq!(sizes(&all), Some(vec![]));
        // Ports that nobody asked for.
        all.push(port(&name, Udp, "53", PortKind::Listen));
        assert_eq!(sizes(&all), None);
    }

    #[test]
    fn a_container_has_the_keys_of_the_configuration() {
        let mut endpoint = endpoint();
        endpoint.from = Some(vec!["198.51.100.0/24".to_owned()]);
        endpoint.to = Some(Vec::new());
        endpoint.addresses = vec!["203.0.113.1".parse().unwrap()];
        endpoint.vrf = Some("red".to_owned());
        assert_eq!(
            container(&endpoint),
            json!({
                "name": "cni.n.c.eth0.0", "netns": "/run/netns/c", "interface": "eth0",
                "device": "veth", "vrf": "red", "to": [], "addresses": ["203.0.113.1"],
                "tcp": [{"ports": ["80", "8080-8089"], "from": ["198.51.100.0/24"]}],
            })
        );
    }

    #[test]
    fn a_network_says_how_interfaces_are_made_unless_the_container_does() {
        let device = |network: Option<&str>, device| {
            let mut endpoint = endpoint();
            endpoint.network = network.map(str::to_owned);
            endpoint.device = device;
            container(&endpoint).get("device").cloned()
        };
        assert_eq!(device(None, None), Some("veth".into()));
        assert_eq!(device(Some("tenants"), None), None);
        assert_eq!(
            device(Some("tenants"), Some(ContainerDevice::Tap)),
            Some("tap".into())
        );
    }

    #[test]
    fn a_process_is_known_by_the_path_of_its_namespace() {
        assert_eq!(process_of(Path::new("/proc/1234/ns/net")), Some(1234));
        for other in [
            "/run/netns/c",
            "/proc/self/ns/net",
            "/proc/1/task/2/ns/net",
            "/proc//ns/net",
        ] {
            assert_eq!(process_of(Path::new(other)), None, "{other}");
        }
        assert!(is_gone(Path::new("/proc/4194305/ns/net")));
        assert!(!is_gone(Path::new("/proc/self/ns/net")));
    }
}
