//! Requests: from keys to another overlay, or to what is wrong with them.

use ipnet::IpNet;
use nos_shim::ports::{PortRange, Transport};
use toml::de::DeValue;

use super::super::claims::first_gap;
use super::super::document::{self, Section};
use super::super::entries::{self, ContainerEntry, Entries, RouteEntry};
use super::super::place::{At, Place};
use super::super::port_list::PortLists;
use super::super::report::Report;
use super::super::values::{self, did_you_mean};
use super::super::{Config, ConfigErrors, Container, Name, Route, check};
use super::ports::{Ports, common, joined, normal};
use super::{ConfigFile, Keys, Overlay, RouteName, add_addresses, has_address};

/// Addresses that may be added at run time.
const MAX_ADDRESSES: usize = 1024;

/// What may be asked for, with the keys of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A container: `container`, with the keys of `[[container]]`.
    Attach,
    /// A container goes: `name`.
    Detach,
    /// Ports of a container: `container`, and `tcp`, `udp`, `ephemeral` as in `[[container]]`.
    Ports(PortsAction),
    /// Ports out of the pool: `container`, `size`, `protocol`, `kind`.
    Allocate,
    /// A route: `route`, with the keys of `[[route]]`.
    AddRoute,
    /// A route goes: `prefix`, `metric`.
    RemoveRoute,
    /// An address of an uplink: `uplink`, `address`.
    AddAddress,
    /// An address goes: `uplink`, `address`.
    RemoveAddress,
}

/// What happens to a container's ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortsAction {
    /// It has these as well.
    Add,
    /// It has these no more.
    Remove,
    /// Of what it got at run time, it has exactly these.
    Replace,
}

/// What a request changes.
#[derive(Clone, Debug, PartialEq)]
pub struct Changed {
    /// What is registered from then on.
    pub overlay: Overlay,
    /// The configuration from then on; `None` where what is asked for is so already.
    pub config: Option<Config>,
    /// What it is about.
    pub touched: Touched,
    /// The ports that were allocated.
    pub range: Option<PortRange>,
}

/// What a request is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Touched {
    /// A container.
    Container(Name),
    /// An uplink.
    Uplink(Name),
    /// The static routes.
    Routes,
}

impl ConfigFile {
    /// What becomes of `overlay` by a request with these keys.
    ///
    /// # Errors
    ///
    /// What is wrong with the keys, or with what they ask for beside all that there is. Keys are
    /// named with what they belong to: `ports.tcp`, `container.netns`.
    pub fn change(
        &self,
        overlay: &Overlay,
        change: Change,
        keys: &Keys,
    ) -> Result<Changed, ConfigErrors> {
        match change {
            Change::Attach => self.attach(overlay, keys),
            Change::Detach => self.detach(overlay, keys),
            Change::Ports(action) => self.ports(overlay, action, keys),
            Change::Allocate => self.allocate(overlay, keys),
            Change::AddRoute => self.add_route(overlay, keys),
            Change::RemoveRoute => self.remove_route(overlay, keys),
            Change::AddAddress => self.add_address(overlay, keys),
            Change::RemoveAddress => self.remove_address(overlay, keys),
        }
    }

    /// The overlay as it shall be, if all is well with it.
    fn changed(&self, overlay: Overlay, touched: Touched) -> Result<Changed, ConfigErrors> {
        let container = match &touched {
            Touched::Container(name) => Some(name),
            Touched::Uplink(_) | Touched::Routes => None,
        };
        let config = self.config_for(&overlay, container)?;
        Ok(Changed {
            overlay,
            config: Some(config),
            touched,
            range: None,
        })
    }

    fn attach(&self, overlay: &Overlay, keys: &Keys) -> Result<Changed, ConfigErrors> {
        let report = self.report();
        let entry = read(&report, keys, "attach", |root| {
            root.require("container", "{\"name\":\"web\",...}");
            entries::container(root.table("container")?)
        });
        let entry = report.finish(entry)?;
        let name = entry.name.value.clone();
        let touched = Touched::Container(name.clone());
        let shall = self.container_alone(overlay, entry)?;
        if let Some(known) = self.attached(overlay, &name)
            && self
                .container_alone(overlay, known)
                .is_ok_and(|is| is == shall)
        {
            return Ok(unchanged(overlay, touched));
        }
        let mut new = overlay.clone();
        new.containers
            .push((name, keys.table("container").unwrap_or_default()));
        self.changed(new, touched)
    }

    /// A container as it was attached, or as the file has it.
    fn attached(&self, overlay: &Overlay, name: &Name) -> Option<ContainerEntry> {
        if let Some(entry) = self.container(name) {
            return Some(entry.clone());
        }
        let (_, keys) = overlay.containers.iter().find(|(known, _)| known == name)?;
        let report = self.report();
        let keys = Keys::default().with("container", keys.clone());
        read(&report, &keys, "attach", |root| {
            entries::container(root.table("container")?)
        })
    }

    /// What an entry says, if it were the only container.
    fn container_alone(
        &self,
        overlay: &Overlay,
        entry: ContainerEntry,
    ) -> Result<Container, ConfigErrors> {
        let report = self.report();
        let mut entries = self.uplinks_alone(&report, overlay);
        entries.containers.push(entry);
        let container = check::config(&report, entries).containers.pop();
        report.finish(container)
    }

    /// Uplinks, and nothing that could be in the way.
    fn uplinks_alone(&self, report: &Report<'_>, overlay: &Overlay) -> Entries {
        let mut uplinks = self.entries.uplinks.clone();
        add_addresses(report, overlay, &mut uplinks);
        Entries {
            relay: self.entries.relay.clone(),
            uplinks,
            all_uplinks: true,
            routes: Vec::new(),
            containers: Vec::new(),
            services: Vec::new(),
            ping: true,
            pool: Vec::new(),
            newest: None,
        }
    }

    fn detach(&self, overlay: &Overlay, keys: &Keys) -> Result<Changed, ConfigErrors> {
        let report = self.report();
        let name = read(&report, keys, "detach", |root| {
            root.required("name", "\"web\"", values::name)
        });
        if let Some(At { value, place }) = &name
            && let Some(entry) = self.container(value)
        {
            self.of_the_file(
                &report,
                *place,
                &format!("container \"{value}\""),
                entry.name.place,
            );
        }
        let name = report.finish(name)?.value;
        let touched = Touched::Container(name.clone());
        if !overlay.has_container(&name) {
            return Ok(unchanged(overlay, touched));
        }
        let mut new = overlay.clone();
        new.containers.retain(|(known, _)| *known != name);
        new.ports.remove(&name);
        self.changed(new, touched)
    }

    fn of_the_file(&self, report: &Report<'_>, place: Place, what: &str, file: Place) {
        let spot = report.spot(file);
        let reason =
            format!("{what} is in the configuration ({spot}); take it out of the file and reload");
        report.error(place, reason);
    }

    fn ports(
        &self,
        overlay: &Overlay,
        action: PortsAction,
        keys: &Keys,
    ) -> Result<Changed, ConfigErrors> {
        let report = self.report();
        let request = read(&report, keys, "ports", |root| ports_request(root, action));
        let request = request.filter(|request| self.is_container(&report, overlay, &request.name));
        let Some(request) = request else {
            return report.finish(None);
        };
        let name = request.name.value.clone();
        let fixed = self.container(&name).map(Ports::of).unwrap_or_default();
        let own = self.own_ports(overlay, &name);
        let asked = request.ports();
        if action == PortsAction::Remove {
            self.removable(&report, &request, &fixed);
        } else if !asked.agrees_with(&fixed) {
            let reason = "asks for other rules than the configuration has for the same ports; \
                          change the file and reload";
            report.error(request.name.place, reason);
        }
        report.finish(Some(()))?;
        let new = match action {
            PortsAction::Add => own.with(&asked.without(&fixed)),
            PortsAction::Remove => own.without(&asked),
            PortsAction::Replace => asked.without(&fixed),
        };
        self.with_ports(overlay, &name, new)
    }

    /// The overlay with other ports of a container.
    fn with_ports(
        &self,
        overlay: &Overlay,
        name: &Name,
        ports: Ports,
    ) -> Result<Changed, ConfigErrors> {
        let touched = Touched::Container(name.clone());
        if self.own_ports(overlay, name) == ports {
            return Ok(unchanged(overlay, touched));
        }
        let mut new = overlay.clone();
        match ports.is_empty() && !overlay.has_container(name) {
            true => new.ports.remove(name),
            false => new.ports.insert(name.clone(), ports),
        };
        self.changed(new, touched)
    }

    /// What a container has that is not of the file.
    fn own_ports(&self, overlay: &Overlay, name: &Name) -> Ports {
        let record = overlay.ports.get(name).cloned();
        record.unwrap_or_else(|| match self.container(name) {
            Some(_) => Ports::default(),
            None => self
                .attached(overlay, name)
                .as_ref()
                .map(Ports::of)
                .unwrap_or_default(),
        })
    }

    fn is_container(&self, report: &Report<'_>, overlay: &Overlay, name: &At<Name>) -> bool {
        if self.container(&name.value).is_some() || overlay.has_container(&name.value) {
            return true;
        }
        let known = self
            .entries
            .containers
            .iter()
            .map(|entry| entry.name.value.as_str());
        let added = overlay.containers.iter().map(|(name, _)| name.as_str());
        let known: Vec<_> = known.chain(added).collect();
        let hint = did_you_mean(name.value.as_str(), &known).unwrap_or_default();
        report.error(
            name.place,
            format!("\"{}\" is no container{hint}", name.value),
        );
        false
    }

    /// Reports what is asked to go and is of the file.
    fn removable(&self, report: &Report<'_>, request: &PortsRequest, fixed: &Ports) {
        let Some(entry) = self.container(&request.name.value) else {
            return;
        };
        for (what, asked, fixed) in [
            ("tcp", &request.lists.tcp.ranges, &fixed.tcp),
            ("udp", &request.lists.udp.ranges, &fixed.udp),
            (
                "ephemeral",
                &request.lists.ephemeral.ranges,
                &fixed.ephemeral,
            ),
        ] {
            for at in asked {
                if let Some(range) = common(fixed, at.value) {
                    let name = &request.name.value;
                    let what = format!("{what} {range} of container \"{name}\"");
                    self.of_the_file(report, at.place, &what, entry.name.place);
                }
            }
        }
    }

    fn allocate(&self, overlay: &Overlay, keys: &Keys) -> Result<Changed, ConfigErrors> {
        let report = self.report();
        let request = read(&report, keys, "allocate", allocation);
        let request = request.filter(|request| self.is_container(&report, overlay, &request.name));
        let Some(request) = request else {
            return report.finish(None);
        };
        let current = self.config(overlay)?;
        let range = free_in_pool(&current, &request);
        if let Err(reason) = &range {
            report.error(request.size.place, reason.as_str());
        }
        let name = &request.name.value;
        let own = self.own_ports(overlay, name);
        let range = report.finish(range.ok())?;
        let list = |transport| match request.transports.contains(&transport) {
            true => vec![range],
            false => Vec::new(),
        };
        let more = match request.kind {
            Kind::Ephemeral => Ports {
                ephemeral: vec![range],
                ..Ports::default()
            },
            Kind::Listen => Ports {
                tcp: list(Transport::Tcp),
                udp: list(Transport::Udp),
                ..Ports::default()
            },
        };
        let changed = self.with_ports(overlay, name, own.with(&more))?;
        Ok(Changed {
            range: Some(range),
            ..changed
        })
    }

    fn add_route(&self, overlay: &Overlay, keys: &Keys) -> Result<Changed, ConfigErrors> {
        let report = self.report();
        let entry = read(&report, keys, "route-add", |root| {
            root.require("route", "{\"prefix\":\"0.0.0.0/0\",...}");
            entries::route(root.table("route")?)
        });
        let entry = report.finish(entry)?;
        let name = (entry.prefix.value, entry.metric);
        let shall = self.route_alone(overlay, entry)?;
        let current = self.config(overlay)?;
        let mut known = current.routes.iter();
        if known.any(|route| *route == shall) {
            return Ok(unchanged(overlay, Touched::Routes));
        }
        let mut new = overlay.clone();
        new.routes
            .push((name, keys.table("route").unwrap_or_default()));
        self.changed(new, Touched::Routes)
    }

    fn route_alone(&self, overlay: &Overlay, entry: RouteEntry) -> Result<Route, ConfigErrors> {
        let report = self.report();
        let mut entries = self.uplinks_alone(&report, overlay);
        entries.routes.push(entry);
        let route = check::config(&report, entries).routes.pop();
        report.finish(route)
    }

    fn remove_route(&self, overlay: &Overlay, keys: &Keys) -> Result<Changed, ConfigErrors> {
        let report = self.report();
        let named = read(&report, keys, "route-remove", |root| {
            let prefix = root.required("prefix", "\"0.0.0.0/0\"", values::prefix);
            let metric = root.optional("metric", values::metric);
            Some((prefix?, metric.map_or(0, |at| at.value)))
        });
        if let Some((prefix, metric)) = &named
            && let Some(file) = self.route((prefix.value, *metric))
        {
            let what = format!("the route to {} with metric {metric}", prefix.value);
            self.of_the_file(&report, prefix.place, &what, file);
        }
        let (prefix, metric) = report.finish(named)?;
        let name: RouteName = (prefix.value, metric);
        if !overlay.has_route(name.0, name.1) {
            return Ok(unchanged(overlay, Touched::Routes));
        }
        let mut new = overlay.clone();
        new.routes.retain(|(known, _)| *known != name);
        self.changed(new, Touched::Routes)
    }

    fn add_address(&self, overlay: &Overlay, keys: &Keys) -> Result<Changed, ConfigErrors> {
        let report = self.report();
        let request = read(&report, keys, "address", address_request);
        let held = request
            .as_ref()
            .is_some_and(|request| self.has_address(&report, overlay, request));
        let (uplink, address) = report.finish(request)?;
        let touched = Touched::Uplink(uplink.value.clone());
        if held {
            return Ok(unchanged(overlay, touched));
        }
        let mut new = overlay.clone();
        new.addresses.push((uplink.value, address.value));
        self.changed(new, touched)
    }

    /// Whether the uplink has the address already. That there is no such uplink, or that another
    /// one has it, is reported.
    fn has_address(
        &self,
        report: &Report<'_>,
        overlay: &Overlay,
        (uplink, address): &(At<Name>, At<IpNet>),
    ) -> bool {
        self.is_uplink(report, uplink);
        let uplinks = self.uplinks_alone(report, overlay).uplinks;
        for entry in &uplinks {
            let mut all = entry.addresses.iter();
            let Some(held) = all.find(|at| at.value.addr() == address.value.addr()) else {
                continue;
            };
            if entry.name.value == uplink.value && held.value == address.value {
                return true;
            }
            let (spot, name) = (report.spot(held.place), &entry.name.value);
            let reason = format!("uplink \"{name}\" has {} already ({spot})", held.value);
            report.error(address.place, reason);
        }
        if overlay.addresses.len() >= MAX_ADDRESSES {
            let reason = format!("{MAX_ADDRESSES} addresses were added at run time, the most");
            report.error(address.place, reason);
        }
        false
    }

    fn is_uplink(&self, report: &Report<'_>, uplink: &At<Name>) {
        let known = self
            .entries
            .uplinks
            .iter()
            .map(|entry| entry.name.value.as_str());
        let known: Vec<_> = known.collect();
        let name = uplink.value.as_str();
        if !known.contains(&name) {
            let hint = did_you_mean(name, &known)
                .unwrap_or_else(|| format!("; uplinks are {}", known.join(", ")));
            report.error(uplink.place, format!("\"{name}\" is not an uplink{hint}"));
        }
    }

    fn remove_address(&self, overlay: &Overlay, keys: &Keys) -> Result<Changed, ConfigErrors> {
        let report = self.report();
        let request = read(&report, keys, "address", address_request);
        if let Some((uplink, address)) = &request {
            self.is_uplink(&report, uplink);
            let mut uplinks = self.entries.uplinks.iter();
            let entry = uplinks.find(|entry| entry.name.value == uplink.value);
            if let Some(entry) = entry.filter(|entry| has_address(entry, address.value)) {
                let what = format!("address {}", address.value);
                self.of_the_file(&report, address.place, &what, entry.name.place);
            }
        }
        let (uplink, address) = report.finish(request)?;
        let mut new = overlay.clone();
        new.addresses
            .retain(|(name, known)| (name, *known) != (&uplink.value, address.value));
        let touched = Touched::Uplink(uplink.value);
        if new == *overlay {
            return Ok(unchanged(overlay, touched));
        }
        self.changed(new, touched)
    }
}

/// What is asked for is so already.
fn unchanged(overlay: &Overlay, touched: Touched) -> Changed {
    Changed {
        overlay: overlay.clone(),
        config: None,
        touched,
        range: None,
    }
}

/// Reads the keys of a request, which errors call `name`. What is wrong is reported.
fn read<T>(
    report: &Report<'_>,
    keys: &Keys,
    name: &'static str,
    read: impl FnOnce(&mut Section<'_>) -> Option<T>,
) -> Option<T> {
    let text = keys.text();
    let base = report.offsets(text.len());
    let document = document::parse(report, &text)?;
    let mut root = Section::added(report, &document, base, name);
    let value = read(&mut root);
    if root.finish() { value } else { None }
}

struct PortsRequest {
    name: At<Name>,
    lists: PortLists,
}

impl PortsRequest {
    fn ports(&self) -> Ports {
        let values = |all: &[At<PortRange>]| normal(all.iter().map(|at| at.value).collect());
        Ports {
            tcp: values(&self.lists.tcp.ranges),
            udp: values(&self.lists.udp.ranges),
            ephemeral: values(&self.lists.ephemeral.ranges),
            from: joined(self.lists.restrictions()),
            established: PortRange::merged(self.lists.ephemeral.established.clone()),
        }
    }
}

fn ports_request(root: &mut Section<'_>, action: PortsAction) -> Option<PortsRequest> {
    let name = root.required("container", "\"web\"", values::name);
    let lists = PortLists::read(root);
    let none = ["tcp", "udp", "ephemeral"].iter().all(|key| !root.has(key));
    if none && action != PortsAction::Replace {
        let place = root.header("tcp");
        root.error(
            place,
            "is missing, and so are udp and ephemeral; give one of the three",
        );
    }
    Some(PortsRequest { name: name?, lists })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Listen,
    Ephemeral,
}

struct Allocation {
    name: At<Name>,
    size: At<u32>,
    transports: &'static [Transport],
    kind: Kind,
}

const BOTH: &[Transport] = &[Transport::Tcp, Transport::Udp];

fn allocation(root: &mut Section<'_>) -> Option<Allocation> {
    let name = root.required("container", "\"web\"", values::name);
    let size = root.required("size", "100", size);
    let protocol = root.optional("protocol", protocol);
    let kind = root
        .optional("kind", kind)
        .map_or(Kind::Listen, |at| at.value);
    if let (Kind::Ephemeral, Some(at)) = (kind, &protocol)
        && at.value.len() == 1
    {
        root.error(at.place, "an ephemeral range counts for both; leave it out");
    }
    Some(Allocation {
        name: name?,
        size: size?,
        transports: protocol.map_or(BOTH, |at| at.value),
        kind,
    })
}

fn size(value: &DeValue<'_>) -> Result<u32, String> {
    values::integer(value, 1..=u32::from(u16::MAX))
}

fn protocol(value: &DeValue<'_>) -> Result<&'static [Transport], String> {
    let options: [(&str, &'static [Transport]); 3] = [
        ("tcp", &[Transport::Tcp]),
        ("udp", &[Transport::Udp]),
        ("both", BOTH),
    ];
    values::choice(value, &options)
}

fn kind(value: &DeValue<'_>) -> Result<Kind, String> {
    let options = [("listen", Kind::Listen), ("ephemeral", Kind::Ephemeral)];
    values::choice(value, &options)
}

/// The first range of the pool that nobody has, on any address.
fn free_in_pool(config: &Config, request: &Allocation) -> Result<PortRange, String> {
    if config.pool.is_empty() {
        return Err("there is no pool; set ports.pool in the configuration".to_owned());
    }
    let taken = taken(config, request.transports);
    let size = request.size.value;
    let in_range = |pool: &PortRange| {
        let free = first_gap(taken.iter().copied(), pool.first().into(), size)?;
        (free.last() <= pool.last()).then_some(free)
    };
    config.pool.iter().find_map(in_range).ok_or_else(|| {
        let pool: Vec<_> = config.pool.iter().map(ToString::to_string).collect();
        format!("no {size} ports in a row are free in {}", pool.join(", "))
    })
}

/// All ranges that anybody has for these protocols, in their order.
fn taken(config: &Config, transports: &[Transport]) -> Vec<PortRange> {
    let has = |transport| transports.contains(&transport);
    let mut taken = Vec::new();
    for container in &config.containers {
        if has(Transport::Tcp) {
            taken.extend(&container.tcp);
        }
        if has(Transport::Udp) {
            taken.extend(&container.udp);
        }
        taken.extend(&container.ephemeral);
    }
    let services = config.nos.services.iter();
    let services = services.filter(|service| transports.iter().any(|it| service.uses(*it)));
    taken.extend(services.map(|service| PortRange::from(service.port())));
    taken.sort_unstable();
    taken
}

fn address_request(root: &mut Section<'_>) -> Option<(At<Name>, At<IpNet>)> {
    let uplink = root.required("uplink", "\"up0\"", values::name);
    let address = root.required("address", "\"203.0.113.1/24\"", values::host_network);
    Some((uplink?, address?))
}
