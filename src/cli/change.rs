//! Commands that change what a running nos-relay does.

use std::io::{self, Write};
use std::os::fd::AsFd;

use clap::{Args, Subcommand, ValueEnum};

use crate::control::api::{self, ControlError, QUERY_TIMEOUT, Request, Response, Table};
use crate::control::config::Keys;
use crate::control::kernel::pidfd;
use crate::outcome::Outcome;

use super::{ControlArgs, show};

/// How a change is asked for and its answer shown.
#[derive(Args, Clone, Debug)]
pub struct AskArgs {
    /// Id of the request: asked again with the same id, nothing is done twice and the answer is the
    /// same.
    #[arg(long, value_name = "ID")]
    pub id: Option<String>,
    /// As JSON, for programs; refusals as well.
    #[arg(long)]
    pub json: bool,
    /// Where to find the daemon.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// Arguments of a command about something by its name alone.
#[derive(Args, Clone, Debug)]
pub struct NameArgs {
    /// Its name.
    pub name: String,
    /// How to ask.
    #[command(flatten)]
    pub ask: AskArgs,
}

/// Arguments of `ls`.
#[derive(Args, Clone, Debug)]
pub struct LsArgs {
    /// As JSON, for programs.
    #[arg(long)]
    pub json: bool,
    /// Where to find the daemon.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// Arguments of `inspect`.
#[derive(Args, Clone, Debug)]
pub struct InspectArgs {
    /// Its name.
    pub name: String,
    /// Where to find the daemon.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// With whose end what is asked for ends.
#[derive(Args, Clone, Debug)]
pub struct LeaseArgs {
    /// With whose end it ends: this command's connection, which it keeps open until it is ended
    /// itself; or, of ports, the container's attachment, which they go with anyway.
    #[arg(long, value_name = "LEASE", conflicts_with = "holder_pid")]
    pub lease: Option<Lease>,
    /// It ends with this process.
    #[arg(long, value_name = "PID")]
    pub holder_pid: Option<u32>,
}

/// Leases that a command can ask for by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Lease {
    /// The container's attachment.
    Attachment,
    /// The connection.
    Connection,
}

impl LeaseArgs {
    fn name(&self) -> Option<&'static str> {
        match (self.holder_pid, self.lease) {
            (Some(_), _) => Some("pidfd"),
            (None, Some(Lease::Connection)) => Some("connection"),
            (None, Some(Lease::Attachment)) => Some("attachment"),
            (None, None) => None,
        }
    }
}

/// Arguments of a command whose result may end with somebody's end.
#[derive(Args, Clone, Debug)]
pub struct Leased<A: Args> {
    /// What is asked for.
    #[command(flatten)]
    pub args: A,
    /// With whose end it ends.
    #[command(flatten)]
    pub lease: LeaseArgs,
}

/// Arguments of `attach`: the keys of a container in the file, see docs/configuration.md.
#[derive(Args, Clone, Debug)]
pub struct AttachArgs {
    /// The container's name.
    pub name: String,
    /// Path of its network namespace.
    #[arg(long, value_name = "PATH", conflicts_with = "pid")]
    pub netns: Option<String>,
    /// A process in that namespace.
    #[arg(long, value_name = "PID")]
    pub pid: Option<u32>,
    /// The kind of its device: tap, veth, bridge:NAME or existing. With a network, its one if it is left out.
    #[arg(long, value_name = "KIND", required_unless_present = "network")]
    pub device: Option<String>,
    /// The network that it is in.
    #[arg(long, value_name = "NAME", conflicts_with = "vrf")]
    pub network: Option<String>,
    /// The interface's name inside.
    #[arg(long, value_name = "NAME")]
    pub interface: Option<String>,
    /// An address of the interface itself, with a length, on a bridge; may be given several times.
    #[arg(long = "link-address", value_name = "ADDRESS/LENGTH")]
    pub link_addresses: Vec<String>,
    /// A NOS address that it uses as its own, or one that is its own where its network is routed; may be given
    /// several times.
    #[arg(long = "address", value_name = "ADDRESS")]
    pub addresses: Vec<String>,
    /// Where its network is routed and it names no address, the pool that it gets one of.
    #[arg(long, value_name = "NAME", conflicts_with = "addresses")]
    pub pool: Option<String>,
    /// What it runs for, by a name that stays: it gets the address that this has had before.
    #[arg(long, value_name = "NAME")]
    pub workload: Option<String>,
    /// Its ports.
    #[command(flatten)]
    pub ports: PortLists,
    /// MAC address of its interface.
    #[arg(long, value_name = "MAC")]
    pub mac: Option<String>,
    /// An uplink whose link-local address it uses as its own.
    #[arg(long, value_name = "UPLINK")]
    pub link_local: Option<String>,
    /// Use neither checksum nor segmentation offload.
    #[arg(long)]
    pub no_offload: bool,
    /// Its VRF.
    #[arg(long, value_name = "NAME")]
    pub vrf: Option<String>,
    /// Write all its frames to this pcapng file.
    #[arg(long, value_name = "FILE")]
    pub capture: Option<String>,
    /// Any other key that a container has in the file, its value as in TOML; may be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = setting)]
    pub settings: Vec<(String, toml::Value)>,
    /// With whose end it ends.
    #[command(flatten)]
    pub lease: LeaseArgs,
    /// How to ask.
    #[command(flatten)]
    pub ask: AskArgs,
}

/// Arguments of `move`.
#[derive(Args, Clone, Debug)]
pub struct MoveArgs {
    /// The container's name.
    pub name: String,
    /// Path of the network namespace that it is in from now on.
    #[arg(
        long,
        value_name = "PATH",
        conflicts_with = "pid",
        required_unless_present = "pid"
    )]
    pub netns: Option<String>,
    /// A process in that namespace.
    #[arg(long, value_name = "PID")]
    pub pid: Option<u32>,
    /// The interface's name inside; as before if it is left out.
    #[arg(long, value_name = "NAME")]
    pub interface: Option<String>,
    /// How to ask.
    #[command(flatten)]
    pub ask: AskArgs,
}

/// Arguments of `detach`.
#[derive(Args, Clone, Debug)]
pub struct DetachArgs {
    /// The container's name.
    pub name: String,
    /// How to ask.
    #[command(flatten)]
    pub ask: AskArgs,
}

/// Ports by their use.
#[derive(Args, Clone, Debug)]
pub struct PortLists {
    /// TCP ports on which it is reached, as in 179 or 20000-20999; may be given several times.
    #[arg(long, value_name = "PORTS", value_delimiter = ',')]
    pub tcp: Vec<String>,
    /// UDP ports that it receives on; may be given several times.
    #[arg(long, value_name = "PORTS", value_delimiter = ',')]
    pub udp: Vec<String>,
    /// TCP and UDP ports from which it opens flows; may be given several times.
    #[arg(long, value_name = "PORTS", value_delimiter = ',')]
    pub ephemeral: Vec<String>,
    /// Who may open flows to these TCP and UDP ports, as in 198.51.100.0/24; may be given several times;
    /// everybody if it is left out.
    #[arg(long, value_name = "PREFIX", value_delimiter = ',')]
    pub from: Vec<String>,
    /// These ephemeral ports get only what belongs to a flow that the container has opened.
    #[arg(long)]
    pub established: bool,
}

/// What `ports` does.
#[derive(Clone, Debug, Subcommand)]
pub enum PortsCommand {
    /// Show who owns which ports.
    List(ListArgs),
    /// Give ports to a container.
    Add(Leased<PortsArgs>),
    /// Take ports away that a container got at run time.
    Remove(PortsArgs),
    /// Give a container exactly these ports, besides those of the configuration.
    Replace(PortsArgs),
    /// Give a container ports out of the pool, and say which.
    Allocate(AllocateArgs),
}

/// Arguments of `ports list`.
#[derive(Args, Clone, Debug)]
pub struct ListArgs {
    /// The container whose ports to show; those of all and of the NOS if it is left out.
    pub container: Option<String>,
    /// As JSON, for programs.
    #[arg(long)]
    pub json: bool,
    /// Where to find the daemon.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// Arguments of `ports add`, `remove` and `replace`.
#[derive(Args, Clone, Debug)]
pub struct PortsArgs {
    /// The container's name.
    pub container: String,
    /// Which ports.
    #[command(flatten)]
    pub ports: PortLists,
    /// How to ask.
    #[command(flatten)]
    pub ask: AskArgs,
}

/// Arguments of `ports allocate`.
#[derive(Args, Clone, Debug)]
pub struct AllocateArgs {
    /// The container's name.
    pub container: String,
    /// How many ports, in a row.
    #[arg(long, value_name = "N")]
    pub size: u32,
    /// For which protocol.
    #[arg(long)]
    pub protocol: Option<Protocol>,
    /// For what.
    #[arg(long)]
    pub kind: Option<Kind>,
    /// With whose end it ends.
    #[command(flatten)]
    pub lease: LeaseArgs,
    /// How to ask.
    #[command(flatten)]
    pub ask: AskArgs,
}

/// Protocols for which ports are allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    /// TCP alone.
    Tcp,
    /// UDP alone.
    Udp,
    /// The same ports of both.
    Both,
}

/// What ports are allocated for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// To be reached on them.
    Listen,
    /// To open flows from them.
    Ephemeral,
}

/// What `route` does.
#[derive(Clone, Debug, Subcommand)]
pub enum RouteCommand {
    /// Add a static route.
    Add(RouteAddArgs),
    /// Remove a static route that was added at run time.
    Remove(RouteRemoveArgs),
}

/// Arguments of `route add`: the keys of a route in the file, see docs/configuration.md.
#[derive(Args, Clone, Debug)]
pub struct RouteAddArgs {
    /// Destinations, as in 198.51.100.0/24.
    pub prefix: String,
    /// A next hop; several make ECMP.
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    pub via: Vec<String>,
    /// The uplink of the next hops.
    #[arg(long, value_name = "UPLINK")]
    pub dev: Option<String>,
    /// Instead of next hops: blackhole or unreachable.
    #[arg(long = "type", value_name = "TYPE")]
    pub kind: Option<String>,
    /// Among routes to the same prefix the lowest wins.
    #[arg(long)]
    pub metric: Option<u16>,
    /// Its VRF.
    #[arg(long, value_name = "NAME")]
    pub vrf: Option<String>,
    /// Any other key that a route has in the file, its value as in TOML; may be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = setting)]
    pub settings: Vec<(String, toml::Value)>,
    /// With whose end it ends.
    #[command(flatten)]
    pub lease: LeaseArgs,
    /// How to ask.
    #[command(flatten)]
    pub ask: AskArgs,
}

/// Arguments of `route remove`.
#[derive(Args, Clone, Debug)]
pub struct RouteRemoveArgs {
    /// Destinations, as in 198.51.100.0/24.
    pub prefix: String,
    /// Its metric.
    #[arg(long)]
    pub metric: Option<u16>,
    /// Its VRF.
    #[arg(long, value_name = "NAME")]
    pub vrf: Option<String>,
    /// How to ask.
    #[command(flatten)]
    pub ask: AskArgs,
}

/// What `address` does.
#[derive(Clone, Debug, Subcommand)]
pub enum AddressCommand {
    /// Add an address to an uplink.
    Add(Leased<AddressArgs>),
    /// Remove an address that was added at run time.
    Remove(AddressArgs),
}

/// Arguments of `address add` and `remove`.
#[derive(Args, Clone, Debug)]
pub struct AddressArgs {
    /// The uplink's name.
    pub uplink: String,
    /// The address and the length of its prefix, as in 203.0.113.1/24.
    pub address: String,
    /// How to ask.
    #[command(flatten)]
    pub ask: AskArgs,
}

/// What `group` does.
#[derive(Clone, Debug, Subcommand)]
pub enum GroupCommand {
    /// Have the NOS join a multicast group on an uplink.
    Add(Leased<GroupArgs>),
    /// Have it leave a group that it has joined at run time.
    Remove(GroupArgs),
}

/// Arguments of `group add` and `remove`.
#[derive(Args, Clone, Debug)]
pub struct GroupArgs {
    /// The uplink's name.
    pub uplink: String,
    /// The group's address, as in 239.1.2.3 or ff05::1234.
    pub group: String,
    /// How to ask.
    #[command(flatten)]
    pub ask: AskArgs,
}

/// Arguments of `watch`.
#[derive(Args, Clone, Debug)]
pub struct WatchArgs {
    /// As JSON, for programs: a line each, as the daemon sends them.
    #[arg(long)]
    pub json: bool,
    /// Also what containers have registered with the NOS: all of it first, then each change.
    #[arg(long)]
    pub registrations: bool,
    /// Where to find the daemon.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// `KEY=VALUE`, the value as in TOML.
pub(super) fn setting(text: &str) -> Result<(String, toml::Value), String> {
    let (key, value) = text
        .split_once('=')
        .ok_or("there is no =, as in capture=\"file\"")?;
    let table: toml::Table = format!("value = {value}")
        .parse()
        .map_err(|_| format!("{value} is not a value of TOML; text stands in quotation marks"))?;
    match table.get("value") {
        Some(value) if table.len() == 1 => Ok((key.trim().to_owned(), value.clone())),
        _ => Err(format!("{value} is more than a value")),
    }
}

/// Keys in the order in which they are given.
#[derive(Default)]
pub(super) struct Given(pub(super) Keys);

impl Given {
    pub(super) fn value(self, key: &str, value: Option<impl Into<toml::Value>>) -> Self {
        match value {
            Some(value) => Self(self.0.with(key, value)),
            None => self,
        }
    }

    pub(super) fn list(self, key: &str, values: &[String]) -> Self {
        let values = (!values.is_empty()).then(|| values.to_vec());
        self.value(key, values)
    }

    pub(super) fn lease(self, lease: &LeaseArgs) -> Self {
        self.value("lease", lease.name())
    }

    pub(super) fn ports(self, ports: &PortLists) -> Self {
        let from = (!ports.from.is_empty()).then(|| ports.from.clone());
        let state = ports.established.then_some("established");
        self.ruled("tcp", &ports.tcp, "from", from.clone())
            .ruled("udp", &ports.udp, "from", from)
            .ruled("ephemeral", &ports.ephemeral, "state", state)
    }

    /// A list of ports, with a rule if there is one.
    fn ruled(
        self,
        key: &str,
        ports: &[String],
        rule: &str,
        value: Option<impl Into<toml::Value>>,
    ) -> Self {
        match value {
            Some(value) if !ports.is_empty() => {
                let table = Keys::default()
                    .with("ports", ports.to_vec())
                    .with(rule, value.into());
                self.value(key, Some(vec![toml::Value::from(table)]))
            }
            _ => self.list(key, ports),
        }
    }

    pub(super) fn settings(self, settings: &[(String, toml::Value)]) -> Self {
        let mut given = self;
        for (key, value) in settings {
            given = given.value(key, Some(value.clone()));
        }
        given
    }
}

pub(super) fn text(value: &str) -> Option<String> {
    Some(value.to_owned())
}

impl AttachArgs {
    /// Runs `attach`: results to `out`, errors to `err`.
    ///
    /// # Errors
    ///
    /// When neither can be written.
    pub fn run(&self, out: &mut impl Write, err: &mut impl Write) -> io::Result<Outcome> {
        self.ask.run_leased(&self.lease, &self.request(), out, err)
    }

    /// The request that it stands for.
    #[must_use]
    pub fn request(&self) -> Request {
        let container = Given::default()
            .value("name", text(&self.name))
            .value("netns", self.netns.clone())
            .value("pid", self.pid.map(i64::from))
            .value("device", self.device.clone())
            .value("network", self.network.clone())
            .value("interface", self.interface.clone())
            .list("link_addresses", &self.link_addresses)
            .list("addresses", &self.addresses)
            .value("pool", self.pool.clone())
            .value("workload", self.workload.clone())
            .value("link_local", self.link_local.clone())
            .ports(&self.ports)
            .value("mac", self.mac.clone())
            .value("offload", self.no_offload.then_some(false))
            .value("vrf", self.vrf.clone())
            .value("capture", self.capture.clone())
            .settings(&self.settings);
        let request = Given::default()
            .value("container", Some(container.0))
            .lease(&self.lease);
        Request::Attach(request.0)
    }
}

impl MoveArgs {
    /// The request that it stands for.
    #[must_use]
    pub fn request(&self) -> Request {
        let given = Given::default()
            .value("name", text(&self.name))
            .value("netns", self.netns.clone())
            .value("pid", self.pid.map(i64::from))
            .value("interface", self.interface.clone());
        Request::Move(given.0)
    }
}

impl DetachArgs {
    /// The request that it stands for.
    #[must_use]
    pub fn request(&self) -> Request {
        Request::Detach(Given::default().value("name", text(&self.name)).0)
    }
}

impl PortsCommand {
    /// Runs `ports`: results to `out`, errors to `err`.
    ///
    /// # Errors
    ///
    /// When neither can be written.
    pub fn run(&self, out: &mut impl Write, err: &mut impl Write) -> io::Result<Outcome> {
        let given = |args: &PortsArgs| {
            let given = Given::default().value("container", text(&args.container));
            given.ports(&args.ports)
        };
        match self {
            Self::List(args) => args.run(out, err),
            Self::Add(Leased { args, lease }) => {
                let request = Request::PortsAdd(given(args).lease(lease).0);
                args.ask.run_leased(lease, &request, out, err)
            }
            Self::Remove(args) => args.ask.run(&Request::PortsRemove(given(args).0), out, err),
            Self::Replace(args) => args
                .ask
                .run(&Request::PortsReplace(given(args).0), out, err),
            Self::Allocate(args) => {
                let request = args.request();
                args.ask.run_leased(&args.lease, &request, out, err)
            }
        }
    }
}

impl ListArgs {
    fn run(&self, out: &mut impl Write, err: &mut impl Write) -> io::Result<Outcome> {
        let request = Request::Show {
            table: Table::Ports,
        };
        let mut answer = api::query(&self.control.path, &request, QUERY_TIMEOUT);
        if let (Ok(Response::Ports(rows)), Some(container)) = (&mut answer, &self.container) {
            rows.retain(|row| row.owner == *container);
        }
        respond(answer, self.json, out, err)
    }
}

impl AllocateArgs {
    fn request(&self) -> Request {
        let name = |value: Option<clap::builder::PossibleValue>| {
            value.map(|value| value.get_name().to_owned())
        };
        let protocol = self.protocol.and_then(|it| name(it.to_possible_value()));
        let kind = self.kind.and_then(|it| name(it.to_possible_value()));
        let given = Given::default()
            .value("container", text(&self.container))
            .value("size", Some(i64::from(self.size)))
            .value("protocol", protocol)
            .value("kind", kind)
            .lease(&self.lease);
        Request::PortsAllocate(given.0)
    }
}

impl RouteCommand {
    /// Runs `route`: results to `out`, errors to `err`.
    ///
    /// # Errors
    ///
    /// When neither can be written.
    pub fn run(&self, out: &mut impl Write, err: &mut impl Write) -> io::Result<Outcome> {
        match self {
            Self::Add(args) => {
                let route = Given::default()
                    .value("prefix", text(&args.prefix))
                    .list("via", &args.via)
                    .value("dev", args.dev.clone())
                    .value("type", args.kind.clone())
                    .value("metric", args.metric.map(i64::from))
                    .value("vrf", args.vrf.clone())
                    .settings(&args.settings);
                let given = Given::default().value("route", Some(route.0));
                let request = Request::RouteAdd(given.lease(&args.lease).0);
                args.ask.run_leased(&args.lease, &request, out, err)
            }
            Self::Remove(args) => {
                let route = Given::default()
                    .value("prefix", text(&args.prefix))
                    .value("metric", args.metric.map(i64::from))
                    .value("vrf", args.vrf.clone());
                args.ask.run(&Request::RouteRemove(route.0), out, err)
            }
        }
    }
}

impl AddressCommand {
    /// Runs `address`: results to `out`, errors to `err`.
    ///
    /// # Errors
    ///
    /// When neither can be written.
    pub fn run(&self, out: &mut impl Write, err: &mut impl Write) -> io::Result<Outcome> {
        let given = |args: &AddressArgs| {
            let given = Given::default().value("uplink", text(&args.uplink));
            given.value("address", text(&args.address))
        };
        match self {
            Self::Add(Leased { args, lease }) => {
                let request = Request::AddressAdd(given(args).lease(lease).0);
                args.ask.run_leased(lease, &request, out, err)
            }
            Self::Remove(args) => args
                .ask
                .run(&Request::AddressRemove(given(args).0), out, err),
        }
    }
}

impl GroupCommand {
    /// Runs `group`: results to `out`, errors to `err`.
    ///
    /// # Errors
    ///
    /// When neither can be written.
    pub fn run(&self, out: &mut impl Write, err: &mut impl Write) -> io::Result<Outcome> {
        let given = |args: &GroupArgs| {
            let given = Given::default().value("uplink", text(&args.uplink));
            given.value("group", text(&args.group))
        };
        match self {
            Self::Add(Leased { args, lease }) => {
                let request = Request::GroupAdd(given(args).lease(lease).0);
                args.ask.run_leased(lease, &request, out, err)
            }
            Self::Remove(args) => args.ask.run(&Request::GroupRemove(given(args).0), out, err),
        }
    }
}

impl AskArgs {
    /// Asks for a change: results to `out`, errors to `err`.
    ///
    /// # Errors
    ///
    /// When neither can be written.
    pub fn run(
        &self,
        request: &Request,
        out: &mut impl Write,
        err: &mut impl Write,
    ) -> io::Result<Outcome> {
        let answer = api::ask(
            &self.control.path,
            self.id.as_deref(),
            request,
            QUERY_TIMEOUT,
        );
        self.show(answer, out, err)
    }

    fn show(
        &self,
        answer: Result<Response, ControlError>,
        out: &mut impl Write,
        err: &mut impl Write,
    ) -> io::Result<Outcome> {
        match answer {
            Err(ControlError::Refused(refusal)) if self.json => {
                out.write_all(show::json(&Response::Refused(refusal)).as_bytes())?;
                Ok(Outcome::Failure)
            }
            answer => respond(answer, self.json, out, err),
        }
    }
}

impl AskArgs {
    /// Asks for something that may end with somebody's end. What this command holds is held until it
    /// is ended, or the daemon is.
    pub(super) fn run_leased(
        &self,
        lease: &LeaseArgs,
        request: &Request,
        out: &mut impl Write,
        err: &mut impl Write,
    ) -> io::Result<Outcome> {
        let (path, id) = (&self.control.path, self.id.as_deref());
        if let Some(pid) = lease.holder_pid {
            return match pidfd::open(pid) {
                Ok(pidfd) => {
                    let holder = Some(pidfd.as_fd());
                    let answer = api::ask_for(path, id, request, holder, QUERY_TIMEOUT);
                    self.show(answer, out, err)
                }
                Err(error) => {
                    writeln!(err, "nos-relay: process {pid}: {error}")?;
                    Ok(Outcome::Failure)
                }
            };
        }
        if lease.lease != Some(Lease::Connection) {
            return self.run(request, out, err);
        }
        let (response, held) = match api::hold(path, id, request, QUERY_TIMEOUT) {
            Ok(answer) => answer,
            Err(error) => return self.show(Err(error), out, err),
        };
        self.show(Ok(response), out, err)?;
        out.flush()?;
        writeln!(err, "It is held until this command is ended.")?;
        match held.wait() {
            Ok(()) => writeln!(
                err,
                "nos-relay: the daemon has ended, and what was held with it"
            )?,
            Err(error) => writeln!(err, "nos-relay: {error}")?,
        }
        Ok(Outcome::Failure)
    }
}

/// Shows an answer.
pub(super) fn respond(
    answer: Result<Response, ControlError>,
    json: bool,
    out: &mut impl Write,
    err: &mut impl Write,
) -> io::Result<Outcome> {
    let mut response = match answer {
        Ok(response) => response,
        Err(error) => return failed(&error, err),
    };
    show::sort(&mut response);
    let render = if json { show::json } else { show::table };
    out.write_all(render(&response).as_bytes())?;
    // What a script reads from the output is not mixed with it.
    if let Response::Changed(applied) = &response
        && let Some(what) = applied.waiting.as_ref().filter(|_| !json)
    {
        writeln!(err, "It is not in place yet: {what}")?;
    }
    Ok(Outcome::Success)
}

impl WatchArgs {
    /// Runs `watch` until the daemon ends or nobody reads `out` any more.
    ///
    /// # Errors
    ///
    /// When neither can be written.
    pub fn run(&self, out: &mut impl Write, err: &mut impl Write) -> io::Result<Outcome> {
        let watch = match self.registrations {
            true => api::watch_registrations,
            false => api::watch,
        };
        let mut watch = match watch(&self.control.path, QUERY_TIMEOUT) {
            Ok(watch) => watch,
            Err(error) => return failed(&error, err),
        };
        loop {
            let (line, watched) = match watch.next_line() {
                Ok(Some(next)) => next,
                Ok(None) => return Ok(Outcome::Success),
                Err(error) => return failed(&error, err),
            };
            let text = if self.json {
                line
            } else {
                show::watched(&watched)
            };
            match writeln!(out, "{text}").and_then(|()| out.flush()) {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                    return Ok(Outcome::Success);
                }
                written => written?,
            }
        }
    }
}

fn failed(error: &ControlError, err: &mut impl Write) -> io::Result<Outcome> {
    writeln!(err, "nos-relay: {error}")?;
    Ok(Outcome::Failure)
}
