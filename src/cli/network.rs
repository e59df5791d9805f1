//! Commands of networks and of who is in them.

use std::io::{self, Write};

use clap::{Args, Subcommand};

use crate::control::api::{self, QUERY_TIMEOUT, Request, Response, Table};
use crate::outcome::Outcome;

use super::ControlArgs;
use super::change::{
    AskArgs, Given, InspectArgs, LeaseArgs, Leased, LsArgs, NameArgs, PortLists, respond, setting,
    text,
};

/// What `network` does.
#[derive(Clone, Debug, Subcommand)]
pub enum NetworkCommand {
    /// Make a network.
    Create(Box<Leased<CreateArgs>>),
    /// Remove a network that was made at run time, and that no container is in.
    Rm(NameArgs),
    /// List the networks.
    Ls(LsArgs),
    /// Show a network as JSON.
    Inspect(InspectArgs),
    /// Connect a container with a network: its namespace gets one more interface.
    Connect(Box<Leased<ConnectArgs>>),
    /// Take a container out of a network.
    Disconnect(DisconnectArgs),
}

/// Arguments of `network create`: the keys of a network in the file, see docs/configuration.md.
#[derive(Args, Clone, Debug)]
pub struct CreateArgs {
    /// The network's name.
    pub name: String,
    /// How its containers are reached: shared (by addresses of the NOS, on ports of their own) or routed (by
    /// addresses of their own).
    #[arg(long, value_name = "MODE")]
    pub mode: Option<String>,
    /// Its VRF.
    #[arg(long, value_name = "NAME")]
    pub vrf: Option<String>,
    /// An uplink whose addresses its containers share; may be given several times, all of the VRF if it is
    /// left out.
    #[arg(long = "uplink", value_name = "UPLINK")]
    pub uplinks: Vec<String>,
    /// The pool of containers that have addresses of their own and name no other.
    #[arg(long, value_name = "NAME")]
    pub pool: Option<String>,
    /// The kind of device of containers that name none: tap, veth, bridge:NAME or existing.
    #[arg(long, value_name = "KIND")]
    pub device: Option<String>,
    /// Any other key that a network has in the file, its value as in TOML; may be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = setting)]
    pub settings: Vec<(String, toml::Value)>,
    /// How to ask.
    #[command(flatten)]
    pub ask: AskArgs,
}

/// Arguments of `network connect`.
#[derive(Args, Clone, Debug)]
pub struct ConnectArgs {
    /// The network's name.
    pub network: String,
    /// The container's name.
    pub container: String,
    /// What the endpoint is called in `show`; CONTAINER.NETWORK if it is left out.
    #[arg(long = "as", value_name = "NAME")]
    pub name: Option<String>,
    /// The kind of its device: tap, veth, bridge:NAME or existing; the network's if it is left out.
    #[arg(long, value_name = "KIND")]
    pub device: Option<String>,
    /// The interface's name inside; the first free ethN if it is left out.
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
    /// Any other key that a container has in the file, its value as in TOML; may be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = setting)]
    pub settings: Vec<(String, toml::Value)>,
    /// How to ask.
    #[command(flatten)]
    pub ask: AskArgs,
}

/// Arguments of `network disconnect`.
#[derive(Args, Clone, Debug)]
pub struct DisconnectArgs {
    /// The network's name.
    pub network: String,
    /// The container's name.
    pub container: String,
    /// How to ask.
    #[command(flatten)]
    pub ask: AskArgs,
}

impl NetworkCommand {
    /// Runs `network`: results to `out`, errors to `err`.
    ///
    /// # Errors
    ///
    /// When neither can be written.
    pub fn run(&self, out: &mut impl Write, err: &mut impl Write) -> io::Result<Outcome> {
        match self {
            Self::Create(leased) => {
                let Leased { args, lease } = leased.as_ref();
                args.ask.run_leased(lease, &args.request(lease), out, err)
            }
            Self::Rm(args) => {
                let name = Given::default().value("name", text(&args.name));
                args.ask.run(&Request::NetworkRemove(name.0), out, err)
            }
            Self::Ls(args) => respond(networks(&args.control), args.json, out, err),
            Self::Inspect(args) => inspect(args, out, err),
            Self::Connect(leased) => {
                let Leased { args, lease } = leased.as_ref();
                args.ask.run_leased(lease, &args.request(lease), out, err)
            }
            Self::Disconnect(args) => {
                let given = Given::default()
                    .value("network", text(&args.network))
                    .value("container", text(&args.container));
                args.ask.run(&Request::NetworkDisconnect(given.0), out, err)
            }
        }
    }
}

fn networks(control: &ControlArgs) -> Result<Response, api::ControlError> {
    let request = Request::Show {
        table: Table::Networks,
    };
    api::query(&control.path, &request, QUERY_TIMEOUT)
}

impl CreateArgs {
    fn request(&self, lease: &LeaseArgs) -> Request {
        let network = Given::default()
            .value("name", text(&self.name))
            .value("mode", self.mode.clone())
            .value("vrf", self.vrf.clone())
            .list("uplinks", &self.uplinks)
            .value("pool", self.pool.clone())
            .value("device", self.device.clone())
            .settings(&self.settings);
        let request = Given::default()
            .value("network", Some(network.0))
            .lease(lease);
        Request::NetworkCreate(request.0)
    }
}

/// Shows a network.
fn inspect(args: &InspectArgs, out: &mut impl Write, err: &mut impl Write) -> io::Result<Outcome> {
    let mut answer = networks(&args.control);
    if let Ok(Response::Networks(rows)) = &mut answer {
        rows.retain(|row| row.name == args.name);
        if rows.is_empty() {
            writeln!(err, "nos-relay: there is no network \"{}\"", args.name)?;
            return Ok(Outcome::Failure);
        }
    }
    respond(answer, true, out, err)
}

impl ConnectArgs {
    fn request(&self, lease: &LeaseArgs) -> Request {
        let endpoint = Given::default()
            .value("name", self.name.clone())
            .value("device", self.device.clone())
            .value("interface", self.interface.clone())
            .list("link_addresses", &self.link_addresses)
            .list("addresses", &self.addresses)
            .value("pool", self.pool.clone())
            .value("workload", self.workload.clone())
            .ports(&self.ports)
            .value("mac", self.mac.clone())
            .settings(&self.settings);
        let request = Given::default()
            .value("network", text(&self.network))
            .value("container", text(&self.container))
            .value("endpoint", Some(endpoint.0))
            .lease(lease);
        Request::NetworkConnect(request.0)
    }
}
