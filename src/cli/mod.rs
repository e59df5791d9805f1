//! The command line, and the commands that need no data path: `check`, `show`, and requests.

pub mod change;
pub mod network;
pub mod pool;
pub mod show;

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::control::api::{self, QUERY_TIMEOUT, Request, Table};
use crate::control::config::Config;
#[cfg(feature = "bench")]
use crate::lab::bench::{BenchArgs, forwarder::ForwardArgs};
#[cfg(feature = "demo")]
use crate::lab::demo::DemoArgs;
use crate::outcome::Outcome;

use change::{
    AddressCommand, AttachArgs, DetachArgs, GroupCommand, MoveArgs, PortsCommand, RouteCommand,
    WatchArgs,
};
use network::NetworkCommand;
use pool::PoolCommand;

/// Lets containers talk through a user-mode NOS on the NOS's own interface address.
#[derive(Clone, Debug, Parser)]
#[command(name = "nos-relay", version)]
#[command(after_help = "Exit codes: 0 success, 1 failure, 2 wrong usage.")]
pub struct Cli {
    /// What to log to stderr: error, warn, info, debug, trace, or per module as in
    /// info,nos_relay::control::attach=debug.
    #[arg(
        long,
        global = true,
        env = "NOS_RELAY_LOG",
        default_value = "info",
        value_name = "FILTER"
    )]
    #[arg(value_parser = log_filter)]
    pub log: String,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Attach the containers and forward, until SIGTERM or SIGINT; SIGHUP reloads CONFIG, SIGUSR1 ends
    /// it and leaves everything in place.
    Run(RunArgs),
    /// Say whether CONFIG is good, and all that is wrong with it.
    Check(CheckArgs),
    /// Show the state of a running nos-relay.
    Show(ShowArgs),
    /// Attach a container.
    Attach(Box<AttachArgs>),
    /// Have a container that was attached at run time in another namespace.
    Move(MoveArgs),
    /// Detach a container that was attached at run time.
    Detach(DetachArgs),
    /// Make networks of containers, and connect containers with them.
    #[command(subcommand)]
    Network(NetworkCommand),
    /// Make pools of addresses, out of which containers get addresses of their own.
    #[command(subcommand)]
    Pool(PoolCommand),
    /// Give ports to containers, and take them away.
    #[command(subcommand)]
    Ports(PortsCommand),
    /// Add and remove static routes.
    #[command(subcommand)]
    Route(RouteCommand),
    /// Add and remove addresses of uplinks.
    #[command(subcommand)]
    Address(AddressCommand),
    /// Have the NOS join and leave multicast groups on uplinks.
    #[command(subcommand)]
    Group(GroupCommand),
    /// Show what happens, as it happens.
    Watch(WatchArgs),
    /// Show it all at work, in network namespaces of its own.
    #[cfg(feature = "demo")]
    Demo(DemoArgs),
    /// Measure, in network namespaces of its own.
    #[cfg(feature = "bench")]
    Bench(BenchArgs),
    /// The bare forwarder that `bench` measures beside the relay.
    #[cfg(feature = "bench")]
    #[command(hide = true)]
    BenchForward(ForwardArgs),
}

/// Arguments of `run`.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// The configuration, see docs/configuration.md.
    pub config: PathBuf,
    /// Where what is registered at run time is kept over restarts: a directory, which is made if it is
    /// not there, or none.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_STATE)]
    pub state: PathBuf,
    /// Fail if anything that is configured is missing or refused at start, instead of waiting for
    /// it.
    #[arg(long)]
    pub strict: bool,
    /// Take over from the nos-relay that runs at --control, without a gap. It goes on if anything
    /// about that fails.
    #[arg(long, conflicts_with = "strict")]
    pub takeover: bool,
    /// Where to find the daemon.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// Where state is kept unless the command line says otherwise.
pub const DEFAULT_STATE: &str = "/var/lib/nos-relay";

/// In place of a directory: nothing is kept.
const NO_STATE: &str = "none";

impl RunArgs {
    /// The directory in which state is kept, if any.
    #[must_use]
    pub fn state(&self) -> Option<PathBuf> {
        let none = self.state.as_os_str() == NO_STATE;
        (!none).then(|| self.state.clone())
    }
}

/// Arguments of `check`.
#[derive(Args, Clone, Debug)]
pub struct CheckArgs {
    /// The configuration, see docs/configuration.md.
    pub config: PathBuf,
}

/// Arguments of `show`.
#[derive(Args, Clone, Debug)]
pub struct ShowArgs {
    /// What to show.
    pub table: Table,
    /// As JSON, for programs.
    #[arg(long)]
    pub json: bool,
    /// Where to find the daemon.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// Where the control socket is.
#[derive(Args, Clone, Debug)]
pub struct ControlArgs {
    /// Path of the daemon's control socket.
    #[arg(long = "control", value_name = "PATH", default_value = api::DEFAULT_PATH)]
    pub path: PathBuf,
}

impl CheckArgs {
    /// Runs `check`: results to `out`, errors to `err`.
    ///
    /// # Errors
    ///
    /// When neither can be written.
    pub fn run(&self, out: &mut impl Write, err: &mut impl Write) -> io::Result<Outcome> {
        match Config::load(&self.config) {
            Ok(config) => {
                writeln!(out, "{}: good: {}", self.config.display(), summary(&config))?;
                Ok(Outcome::Success)
            }
            Err(errors) => {
                writeln!(err, "{errors}")?;
                Ok(Outcome::Failure)
            }
        }
    }
}

impl ShowArgs {
    /// Runs `show`: results to `out`, errors to `err`.
    ///
    /// # Errors
    ///
    /// When neither can be written.
    pub fn run(&self, out: &mut impl Write, err: &mut impl Write) -> io::Result<Outcome> {
        let request = Request::Show { table: self.table };
        match api::query(&self.control.path, &request, QUERY_TIMEOUT) {
            Ok(mut response) => {
                show::sort(&mut response);
                let render = if self.json { show::json } else { show::table };
                out.write_all(render(&response).as_bytes())?;
                Ok(Outcome::Success)
            }
            Err(error) => {
                writeln!(err, "nos-relay: {error}")?;
                Ok(Outcome::Failure)
            }
        }
    }
}

fn summary(config: &Config) -> String {
    let count = |number: usize, what: &str| match number {
        1 => format!("1 {what}"),
        _ => format!("{number} {what}s"),
    };
    let services = config.services.values().map(|of_vrf| of_vrf.services.len());
    [
        count(config.uplinks.len(), "uplink"),
        count(config.routes.len(), "route"),
        count(config.containers.len(), "container"),
        count(services.sum(), "service"),
    ]
    .join(", ")
}

/// Checks that the text is a filter, so that a bad one is wrong usage.
fn log_filter(text: &str) -> Result<String, String> {
    match EnvFilter::try_new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(error.to_string()),
    }
}
