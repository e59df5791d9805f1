//! The command line, and the commands that need no data path: `check` and `show`.

pub mod show;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::control::api::{self, QUERY_TIMEOUT, Request, Table};
use crate::control::config::Config;
use crate::lab::bench::forwarder::EndSpec;

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
    /// Attach the containers and forward, until SIGTERM or SIGINT; SIGHUP reloads CONFIG.
    Run(RunArgs),
    /// Say whether CONFIG is good, and all that is wrong with it.
    Check(CheckArgs),
    /// Show the state of a running nos-relay.
    Show(ShowArgs),
    /// Show it all at work, in network namespaces of its own.
    Demo(DemoArgs),
    /// Measure, in network namespaces of its own.
    Bench(BenchArgs),
    /// The bare forwarder that `bench` measures beside the relay.
    #[command(hide = true)]
    BenchForward(ForwardArgs),
}

/// Arguments of `run`.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// The configuration, see docs/configuration.md.
    pub config: PathBuf,
    /// Fail if anything that is configured is missing or refused at start, instead of waiting for
    /// it.
    #[arg(long)]
    pub strict: bool,
    /// Where to find the daemon.
    #[command(flatten)]
    pub control: ControlArgs,
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

/// Arguments of `demo`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Exit codes: 0 all checks passed, 1 failure, 2 wrong usage, 130 interrupted."
)]
pub struct DemoArgs {
    /// Short bulk transfers: for tests.
    #[arg(long, hide = true)]
    pub quick: bool,
}

/// Arguments of `bench`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Exit codes: 0 all was measured and arrived as it was sent, 1 failure, \
                        2 wrong usage, 130 interrupted. A missed target is no failure."
)]
pub struct BenchArgs {
    /// Few and short runs: shows that it works, not how fast it is.
    #[arg(long)]
    pub quick: bool,
    /// As JSON, for programs.
    #[arg(long)]
    pub json: bool,
    /// Draw the results as bars into this SVG file.
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
    /// Compare with the results in this file, which --json wrote.
    #[arg(long, value_name = "FILE")]
    pub baseline: Option<PathBuf>,
    /// Measure only these rows: names, or parts of names, separated by commas.
    #[arg(long, value_name = "FILTER")]
    pub rows: Option<String>,
    /// Measure only these paths: names, or parts of names, separated by commas.
    #[arg(long, value_name = "FILTER")]
    pub paths: Option<String>,
    /// How often each row is measured on each path.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: Option<u32>,
    /// How long a sample takes, more or less.
    #[arg(long, value_name = "N", value_parser = sample_seconds)]
    pub seconds: Option<f64>,
    /// Show all rows and paths, and measure nothing.
    #[arg(long)]
    pub list: bool,
}

/// Arguments of `bench-forward`, which `bench` starts.
#[derive(Args, Clone, Debug)]
pub struct ForwardArgs {
    /// The two ends: `tap|packet,NETNS,INTERFACE,MAC`, the MAC address being that of the station
    /// there.
    #[arg(long, required = true)]
    pub end: Vec<EndSpec>,
    /// One frame at a time.
    #[arg(long)]
    pub single: bool,
    /// Without offload.
    #[arg(long)]
    pub plain: bool,
}

/// Where the control socket is.
#[derive(Args, Clone, Debug)]
pub struct ControlArgs {
    /// Path of the daemon's control socket.
    #[arg(long = "control", value_name = "PATH", default_value = api::DEFAULT_PATH)]
    pub path: PathBuf,
}

/// How a command ended. Wrong usage, exit code 2, is told by clap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Exit code 0.
    Success,
    /// Exit code 1.
    Failure,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Success => Self::SUCCESS,
            Outcome::Failure => Self::FAILURE,
        }
    }
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
    [
        count(config.uplinks.len(), "uplink"),
        count(config.routes.len(), "route"),
        count(config.containers.len(), "container"),
        count(config.nos.services.len(), "service"),
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

/// A duration from 10 milliseconds to an hour.
fn sample_seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse::<f64>().map_err(|error| error.to_string())?;
    match (0.01..=3600.0).contains(&seconds) {
        true => Ok(seconds),
        false => Err("want 0.01 to 3600 seconds".to_owned()),
    }
}
