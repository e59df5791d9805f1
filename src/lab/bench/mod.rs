//! `nos-relay bench`: how fast the relay is, beside what there would be without it.
//!
//! # Theory of operation
//!
//! Goals: every figure has its yardstick from the same run on the same machine; every octet is
//! checked while it is counted; nothing on the machine has to be prepared, and nothing is left.
//!
//! 1. [`plan`]: rows (some traffic in some setting), [`path`]s, and how often each pair is measured.
//! 2. [`network`]: for each pair of path and setting a network of anonymous namespaces, built when
//!    it is first needed and kept to the end. Whatever forwards is a child process ([`children`]):
//!    the daemon as anybody runs it, the bare [`forwarder`], or another program; so its CPU time,
//!    wake-ups and memory are its own ([`account`]).
//! 3. [`measure`]: one sample; [`traffic`] makes it on threads of this process. The generators check
//!    each octet and the order within each flow: a path that is fast and wrong fails the run.
//!    [`beside`] is a victim's latency beside something else; [`crowd`] is many containers at once.
//! 4. Rounds are interleaved: all rows and paths once, then all again. A machine that slows down
//!    slows all of them. [`results`] are medians, ratios of medians, and how far samples lie apart.
//! 5. [`report`], [`svg`], and [`baseline`]: the comparison with an earlier run.
//!
//! Two things are not hidden: generators share the CPUs with what they measure, on all paths alike,
//! so on small machines ratios lean towards 1 where the generator is the bottleneck; and CPU time
//! of the whole machine contains what else runs on it.
//!
//! A target that is missed is shown and does not fail the run: what is measured depends on the
//! machine. Only a run killed by SIGKILL leaves something: its temporary directory.

mod account;
mod achieved;
mod args;
pub mod baseline;
mod beside;
mod children;
mod crowd;
mod descriptors;
mod error;
pub mod forwarder;
mod measure;
mod network;
pub mod path;
pub mod plan;
mod report;
pub mod results;
pub mod svg;
pub mod traffic;

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use crate::lab::progress::Progress;
use crate::lab::testbed::{self, Privileges};
use crate::outcome::Outcome;

use baseline::Baseline;
use children::Children;
use crowd::Crowd;
use error::Problem;
use network::Network;
use path::Path;
use plan::{Plan, Row, Setting};
use report::Report;
use results::{Collected, Document, Missing, Sample};

pub use args::BenchArgs;
pub use error::BenchError;

/// Rounds, and how long a sample takes.
const USUAL: (u32, f64) = (5, 1.0);
/// The same for `--quick`.
const QUICK: (u32, f64) = (2, 0.2);

/// Runs the bench: results to stdout, progress to stderr where that is a terminal.
///
/// Call it on the main thread, while there is no other: see [`testbed::enter_user_namespace`]. On
/// SIGINT, SIGTERM and SIGHUP it ends the process with exit code 130.
///
/// # Errors
///
/// [`BenchError`]: nothing could be measured. What failed while it was measured is
/// [`Outcome::Failure`].
pub fn run(args: &BenchArgs) -> Result<Outcome, BenchError> {
    if args.list {
        list().map_err(BenchError::io("write the list"))?;
        return Ok(Outcome::Success);
    }
    let mut plan = plan_of(args)?;
    let baseline = args.baseline.as_deref();
    let baseline = baseline
        .map(|file| Baseline::load(file, &plan))
        .transpose()?;
    obtain_namespaces()?;
    if plan.rows.iter().any(Row::needs_crowd) {
        crowd::own_mounts()?;
    }
    let missing = leave_out_missing(&mut plan);
    if plan.pairs().next().is_none() {
        let reasons = missing
            .iter()
            .map(|one| format!("{}: {}", one.what, one.why));
        return Err(BenchError::Nothing(reasons.collect::<Vec<_>>().join("\n")));
    }
    descriptors::raise_limit();
    let begin = Instant::now();
    let progress = Progress::new();
    let children = Children::new(progress.clone())?;
    let collected = Bench::new(&plan, &children, &progress).perform();
    children.leave();
    progress.clear();
    let mut document = collected.document(&plan, args.quick, missing);
    let mut doubts = Vec::new();
    if let Some(baseline) = baseline {
        document.baseline = baseline.compare(&document);
        doubts = baseline.doubts(args.quick);
    }
    let report = Report {
        document: &document,
        doubts: &doubts,
        took: begin.elapsed(),
    };
    write(args, &report)?;
    Ok(match document.correct {
        true => Outcome::Success,
        false => Outcome::Failure,
    })
}

/// The run itself.
struct Bench<'a> {
    plan: &'a Plan,
    children: &'a Children,
    progress: &'a Progress,
    networks: HashMap<(Path, Setting), Network>,
    /// Paths that could not be built, and will not be tried again.
    broken: Vec<(Path, Setting)>,
    /// Containers that no network has.
    crowd: Option<Crowd>,
    collected: Collected,
}

impl<'a> Bench<'a> {
    fn new(plan: &'a Plan, children: &'a Children, progress: &'a Progress) -> Self {
        Self {
            plan,
            children,
            progress,
            networks: HashMap::new(),
            broken: Vec::new(),
            crowd: None,
            collected: Collected::default(),
        }
    }

    fn perform(mut self) -> Collected {
        for round in 1..=self.plan.rounds {
            for (row, path) in self.plan.pairs() {
                self.measure(round, row, path);
            }
        }
        self.check_accounts();
        self.collected
    }

    fn measure(&mut self, round: u32, row: &Row, path: Path) {
        let key = (path, row.setting);
        if self.broken.contains(&key) || self.collected.is_hopeless(row, path) {
            return;
        }
        let of = self.plan.rounds;
        let step = format!("round {round}/{of}: {} on {path}", row.name);
        self.progress.show(&step);
        let result = self.sample(row, path);
        if let Err(Problem::Bench(_)) = &result {
            // What is broken is built anew for another row, once more at most.
            if self.networks.remove(&key).is_none() {
                self.broken.push(key);
            }
        }
        let result = result.map_err(|problem| problem.to_string());
        self.collected.add(row, path, round, result);
    }

    fn sample(&mut self, row: &Row, path: Path) -> Result<Sample, Problem> {
        if let plan::Load::Attach { containers } = row.load {
            return self.attach(path, containers);
        }
        let key = (path, row.setting);
        if !self.networks.contains_key(&key) {
            let network = Network::build(self.children, path, row.setting)?;
            self.networks.insert(key, network);
        }
        let network = self.networks.get(&key);
        let network = network.ok_or(BenchError::Missing("the network"))?;
        let moved = AtomicU64::new(0);
        let duration = self.plan.duration;
        let take = || measure::measure(self.children, network, row, duration, &moved);
        match row.load {
            plan::Load::Bulk { .. } => self.progress.watch(&moved, take),
            _ => take(),
        }
    }

    fn attach(&mut self, path: Path, containers: u16) -> Result<Sample, Problem> {
        let mut crowd = match self.crowd.take() {
            Some(crowd) => crowd,
            None => Crowd::new(self.children, "spare")?,
        };
        crowd.grow(containers)?;
        let sample = measure::attach(self.children, path, &crowd, containers);
        self.crowd = Some(crowd);
        sample
    }

    /// No packet may be missing at the end.
    fn check_accounts(&mut self) {
        for network in self.networks.values() {
            if let Some(wrong) = network.unaccounted() {
                let rounds = self.plan.rounds;
                self.collected.fail_path(network.path, rounds, wrong);
            }
        }
    }
}

fn plan_of(args: &BenchArgs) -> Result<Plan, BenchError> {
    let all = plan::rows();
    let rows = match &args.rows {
        Some(filter) => plan::pick(&all, |row| row.name.clone(), filter),
        None if args.quick => Ok(all.into_iter().filter(|row| row.quick).collect()),
        None => Ok(all),
    };
    let rows = rows.map_err(|term| BenchError::Filter {
        option: "rows",
        what: "row",
        term,
    })?;
    let paths = match &args.paths {
        Some(filter) => plan::pick(&Path::ALL, Path::to_string, filter),
        None if args.quick => Ok(QUICK_PATHS.to_vec()),
        None => Ok(Path::ALL.to_vec()),
    };
    let paths = paths.map_err(|term| BenchError::Filter {
        option: "paths",
        what: "path",
        term,
    })?;
    let (rounds, seconds) = if args.quick { QUICK } else { USUAL };
    Ok(Plan {
        rows,
        paths,
        rounds: args.rounds.unwrap_or(rounds),
        duration: Duration::from_secs_f64(args.seconds.unwrap_or(seconds)),
    })
}

const QUICK_PATHS: [Path; 5] = [
    Path::RelayTap,
    Path::BareTap,
    Path::RelayVeth,
    Path::BarePacket,
    Path::Kernel,
];

/// Takes out of the plan what cannot be measured here.
fn leave_out_missing(plan: &mut Plan) -> Vec<Missing> {
    let mut missing = Vec::new();
    let mut keep = |what: String, why: Option<String>| match why {
        Some(why) => {
            missing.push(Missing { what, why });
            false
        }
        None => true,
    };
    plan.paths
        .retain(|path| keep(path.to_string(), path.missing()));
    plan.rows
        .retain(|row| keep(row.name.clone(), row.missing()));
    missing
}

fn obtain_namespaces() -> Result<(), BenchError> {
    match testbed::privileges() {
        Privileges::Root => Ok(()),
        Privileges::UserNamespace => {
            testbed::enter_user_namespace().map_err(BenchError::Privileges)
        }
        Privileges::Nothing(reason) => Err(BenchError::Privileges(reason)),
    }
}

fn write(args: &BenchArgs, report: &Report<'_>) -> Result<(), BenchError> {
    if let Some(file) = &args.plot {
        std::fs::write(file, svg::draw(report.document))
            .map_err(BenchError::io(format!("write {}", file.display())))?;
    }
    let text = match args.json {
        true => json(report.document).map_err(BenchError::io("write JSON"))?,
        false => report.to_string(),
    };
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(BenchError::io("write the results"))
}

fn json(document: &Document) -> io::Result<String> {
    Ok(serde_json::to_string_pretty(document)? + "\n")
}

/// All rows and paths.
fn list() -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "Rows (* in --quick):")?;
    for row in plan::rows() {
        let mark = if row.quick { '*' } else { ' ' };
        writeln!(out, "{mark} {:<18} {}, {}", row.name, row.what, row.unit())?;
    }
    writeln!(out, "\nPaths:")?;
    for path in Path::ALL {
        let mark = if QUICK_PATHS.contains(&path) {
            '*'
        } else {
            ' '
        };
        let missing = path.missing().map(|why| format!(" (not here: {why})"));
        let missing = missing.unwrap_or_default();
        writeln!(out, "{mark} {path:<18} {}{missing}", path.what())?;
    }
    out.flush()
}
