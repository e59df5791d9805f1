//! `nos-relay demo`: the relay at work, on networks of its own.
//!
//! # Theory of operation
//!
//! Goals: who has just built the program sees within seconds what it does, between real kernels;
//! each line of the table is a fact that was measured, and one that is not as it should be makes
//! the exit code 1. The machine needs no preparation, and nothing stays behind.
//!
//! 1. May I? An ordinary user gets a user namespace, before there is a second thread.
//! 2. [`belongings`]: a temporary directory, later the daemon, and a thread that waits for signals
//!    and clears both away.
//! 3. [`network`]: anonymous namespaces, which vanish with their last process; and a configuration.
//! 4. [`daemon`]: this program once more, as `nos-relay run` in the device's namespace. It dies
//!    with the demo, however that ends.
//! 5. [`checks`]: one after the other, each with time limits. When the daemon has died, the others
//!    are not tried.
//! 6. [`report`]: table, dropped packets, summary.
//!
//! Only a demo that is killed by SIGKILL leaves something: its temporary directory.

mod belongings;
mod checks;
mod daemon;
mod error;
mod network;
mod report;

use std::io::{self, Write};
use std::time::{Duration, Instant};

use clap::Args;

use crate::lab::progress::Progress;
use crate::lab::testbed::{self, Privileges};
use crate::outcome::Outcome;

use belongings::Belongings;
use checks::Demo;
use daemon::Daemon;
use network::Network;
use report::{Report, Row};

pub use error::DemoError;

/// How long each bulk transfer takes, more or less.
const BULK: Duration = Duration::from_millis(800);
/// The same for `--quick`.
const QUICK_BULK: Duration = Duration::from_millis(50);

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

/// Runs the demo: the report goes to stdout, progress to stderr where that is a terminal.
///
/// Call it on the main thread, while there is no other: see [`testbed::enter_user_namespace`]. On
/// SIGINT, SIGTERM and SIGHUP it ends the process with exit code 130.
///
/// # Errors
///
/// [`DemoError`]: nothing could be shown. Failed checks are [`Outcome::Failure`].
pub fn run(args: &DemoArgs) -> Result<Outcome, DemoError> {
    let begin = Instant::now();
    let user_namespace = obtain_namespaces()?;
    let progress = Progress::new();
    let belongings = Belongings::new(progress.clone())?;
    let bulk = if args.quick { QUICK_BULK } else { BULK };
    let performed = perform(&belongings, &progress, user_namespace, bulk);
    belongings.leave();
    progress.clear();
    let (network, mut report) = performed?;
    report.took = begin.elapsed();
    write(&network, &report).map_err(DemoError::io("write the report"))?;
    Ok(report.outcome())
}

fn perform(
    belongings: &Belongings,
    progress: &Progress,
    user_namespace: bool,
    bulk: Duration,
) -> Result<(Network, Report), DemoError> {
    progress.show("building networks");
    let network = Network::build(user_namespace)?;
    progress.show("starting the relay");
    let daemon = Daemon::start(belongings, &network)?;
    let demo = Demo {
        network: &network,
        daemon: &daemon,
        progress,
        bulk,
    };
    let report = show_all(&demo);
    Ok((network, report))
}

fn show_all(demo: &Demo<'_>) -> Report {
    let mut report = Report::default();
    let checks = checks::all(demo);
    // Ending the daemon is the last check.
    let total = checks.len() + 1;
    for (number, check) in checks.iter().enumerate() {
        let step = format!("[{}/{total}] {}", number + 1, check.name());
        demo.progress.show(&step);
        let row = Row::new(check, check.run());
        let failed = row.measured.is_err();
        report.rows.push(row);
        if failed && let Some(how) = demo.daemon.death() {
            report.died = Some(how);
            report.untried = total - report.rows.len();
            report.log = demo.daemon.log();
            return report;
        }
    }
    report.counters = demo.daemon.counters().ok();
    let ending = checks::ending(demo);
    demo.progress
        .show(&format!("[{total}/{total}] {}", ending.name()));
    report.rows.push(Row::new(&ending, ending.run()));
    if report.failed() > 0 {
        report.log = demo.daemon.log();
    }
    report
}

/// Whether it took a user namespace.
fn obtain_namespaces() -> Result<bool, DemoError> {
    match testbed::privileges() {
        Privileges::Root => Ok(false),
        Privileges::UserNamespace => testbed::enter_user_namespace()
            .map(|()| true)
            .map_err(DemoError::Privileges),
        Privileges::Nothing(reason) => Err(DemoError::Privileges(reason)),
    }
}

fn write(network: &Network, report: &Report) -> io::Result<()> {
    let mut out = io::stdout().lock();
    write!(out, "{network}\n{report}")?;
    out.flush()?;
    if !report.log.is_empty() {
        eprintln!("The relay's log ends with:\n{}", report.log);
    }
    Ok(())
}
