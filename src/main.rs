//! The `nos-relay` command.

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::process::ExitCode;

use clap::Parser;
use nos_relay::cli::{Cli, Command};
use nos_relay::control::daemon::{self, DaemonOptions};
use nos_relay::huge_pages::HugePages;
#[cfg(feature = "bench")]
use nos_relay::lab::bench;
#[cfg(feature = "demo")]
use nos_relay::lab::demo;
use nos_relay::outcome::Outcome;
use tracing_subscriber::EnvFilter;

#[global_allocator]
static ALLOCATOR: HugePages = HugePages;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_new(&cli.log).unwrap_or_default();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
    match command(&cli.command) {
        Ok(outcome) => outcome.into(),
        Err(error) => {
            let _ = writeln!(io::stderr(), "nos-relay: {error}");
            ExitCode::FAILURE
        }
    }
}

fn command(command: &Command) -> Result<Outcome, Box<dyn std::error::Error>> {
    let (mut out, mut err) = (UntilClosed(io::stdout()), UntilClosed(io::stderr()));
    match command {
        Command::Run(run) => {
            daemon::run(&DaemonOptions {
                config: run.config.clone(),
                control: run.control.path.clone(),
                state: run.state(),
                strict: run.strict,
                takeover: run.takeover,
            })?;
            Ok(Outcome::Success)
        }
        Command::Check(check) => Ok(check.run(&mut out, &mut err)?),
        Command::Show(show) => Ok(show.run(&mut out, &mut err)?),
        Command::Attach(args) => Ok(args.run(&mut out, &mut err)?),
        Command::Move(args) => Ok(args.ask.run(&args.request(), &mut out, &mut err)?),
        Command::Detach(args) => Ok(args.ask.run(&args.request(), &mut out, &mut err)?),
        Command::Ports(command) => Ok(command.run(&mut out, &mut err)?),
        Command::Route(command) => Ok(command.run(&mut out, &mut err)?),
        Command::Address(command) => Ok(command.run(&mut out, &mut err)?),
        Command::Network(command) => Ok(command.run(&mut out, &mut err)?),
        Command::Pool(command) => Ok(command.run(&mut out, &mut err)?),
        Command::Group(command) => Ok(command.run(&mut out, &mut err)?),
        // It ends when nobody reads it any more.
        Command::Watch(watch) => Ok(watch.run(&mut io::stdout(), &mut err)?),
        #[cfg(feature = "demo")]
        Command::Demo(args) => Ok(demo::run(args)?),
        #[cfg(feature = "bench")]
        Command::Bench(args) => Ok(bench::run(args)?),
        #[cfg(feature = "bench")]
        Command::BenchForward(args) => {
            bench::forwarder::run(args).map_err(|error| error.to_string())?;
            Ok(Outcome::Success)
        }
    }
}

/// What is written goes on until nobody reads it any more, as `head` does not; that is no mistake.
struct UntilClosed<W>(W);

impl<W: Write> Write for UntilClosed<W> {
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        match self.0.write(octets) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(octets.len()),
            other => other,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self.0.flush() {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
            other => other,
        }
    }
}
