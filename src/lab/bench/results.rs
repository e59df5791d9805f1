//! What was measured, as one document: the JSON, and what table, plot and comparison are made of.

use std::collections::BTreeMap;
use std::fmt;

use nix::sys::utsname::uname;
use serde::{Deserialize, Serialize};

use super::path::{Family, Path};
use super::plan::{Better, Load, Plan, Row};

/// The version of the document. It changes when fields change their meaning or go.
pub const FORMAT: u32 = 1;

/// The results of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Document {
    /// [`FORMAT`].
    pub format: u32,
    /// Always `nos-relay bench`.
    pub program: String,
    /// The program's version.
    pub version: String,
    /// Where it ran.
    pub machine: Machine,
    /// Whether `--quick` was given: figures are noisier then.
    pub quick: bool,
    /// How often each pair of row and path was measured.
    pub rounds: u32,
    /// How long a sample took, more or less.
    pub seconds: f64,
    /// Whether everything arrived as it was sent, in its order, and nothing else failed.
    pub correct: bool,
    /// Paths and rows that cannot be measured here.
    pub missing: Vec<Missing>,
    /// The figures.
    pub results: Vec<Figure>,
    /// Ratios between paths.
    pub ratios: Vec<Ratio>,
    /// What went wrong.
    pub failures: Vec<Failure>,
    /// The verdicts of a comparison with an earlier run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub baseline: Vec<Verdict>,
}

/// Where a run took place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Release of the kernel.
    pub kernel: String,
    /// CPUs that this process may use.
    pub cpus: usize,
    /// Model of the first CPU.
    pub cpu_model: String,
}

/// What cannot be measured here, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// A path or a row.
    pub what: String,
    /// The reason.
    pub why: String,
}

/// One row on one path.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// The row's name.
    pub row: String,
    /// What it measures.
    pub what: String,
    /// The path's name.
    pub path: String,
    /// The unit of the values.
    pub unit: String,
    /// Whether more is better.
    pub better: Better,
    /// In the order of the rounds.
    pub samples: Vec<Sample>,
    /// Of the samples' values.
    #[serde(flatten)]
    pub spread: Spread,
    /// What is wanted of the median.
    pub target: Option<Wanted>,
}

/// One measurement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// In the figure's unit.
    pub value: f64,
    /// Further figures by name.
    pub more: BTreeMap<String, f64>,
    /// Octets of payload that arrived.
    pub octets: u64,
    /// Datagrams, exchanges or connections, where they are counted.
    pub operations: u64,
    /// How long it took in all.
    pub seconds: f64,
    /// CPU time of the whole machine, generators included.
    pub machine_cpu_seconds: f64,
    /// CPU time of the process that forwards.
    pub forwarder_cpu_seconds: Option<f64>,
    /// How often that process was woken.
    pub wakeups: Option<u64>,
    /// Packets that found a queue full.
    pub lost_in_queues: Option<u64>,
}

/// Where some values lie.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The middle one, or the mean of the two in the middle.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
    /// The median of the distances from the median.
    pub mad: f64,
}

/// A target, and whether it was met.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// As in `≥ 0.95`.
    pub target: String,
    /// Whether it was.
    pub met: bool,
}

/// The ratio between the medians of two paths in one row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    /// The row's name.
    pub row: String,
    /// The path in question.
    pub path: String,
    /// The path that is 1.
    pub to: String,
    /// Of the medians.
    pub ratio: f64,
    /// Of the ratios of each round.
    pub min: f64,
    /// Of the ratios of each round.
    pub max: f64,
    /// What is wanted of it.
    pub target: Option<Wanted>,
}

/// Something that went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The row's name.
    pub row: String,
    /// The path's name.
    pub path: String,
    /// In which round, from 1.
    pub round: u32,
    /// What.
    pub why: String,
    /// Whether it makes the run fail: not what other programs do.
    pub counts: bool,
}

/// What became of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// Better.
    Better,
    /// Worse.
    Worse,
    /// The two runs' samples overlap.
    WithinNoise,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Better => "better",
            Self::Worse => "worse",
            Self::WithinNoise => "within noise",
        })
    }
}

/// One row on one path, then and now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// The row's name.
    pub row: String,
    /// The path's name.
    pub path: String,
    /// What is compared: a unit, or the path to which it is a ratio.
    pub what: String,
    /// The median, or the ratio of medians, of the earlier run.
    pub then: f64,
    /// The same of this run.
    pub now: f64,
    /// What became of it.
    pub change: Change,
}

impl Spread {
    /// Of some values; none of no values.
    #[must_use]
    pub fn of(values: &[f64]) -> Option<Self> {
        let middle = median(values)?;
        let distances: Vec<_> = values.iter().map(|value| (value - middle).abs()).collect();
        Some(Self {
            median: middle,
            min: values.iter().copied().fold(f64::INFINITY, f64::min),
            max: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            mad: median(&distances)?,
        })
    }
}

/// The middle value, or the mean of the two in the middle.
pub(super) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let upper = *sorted.get(middle)?;
    match sorted.len() % 2 {
        1 => Some(upper),
        _ => Some(f64::midpoint(*sorted.get(middle - 1)?, upper)),
    }
}

impl Sample {
    /// CPU seconds of the whole machine for each 10^9 octets delivered.
    #[must_use]
    pub fn machine_cpu_per_gigabyte(&self) -> Option<f64> {
        (self.octets > 0).then(|| self.machine_cpu_seconds * 1e9 / self.octets as f64)
    }

    /// CPU seconds of the forwarding process for each 10^9 octets delivered.
    #[must_use]
    pub fn forwarder_cpu_per_gigabyte(&self) -> Option<f64> {
        let seconds = self.forwarder_cpu_seconds.filter(|_| self.octets > 0)?;
        Some(seconds * 1e9 / self.octets as f64)
    }
}

impl Figure {
    /// The median of something that samples have.
    pub(super) fn median_of(&self, what: impl Fn(&Sample) -> Option<f64>) -> Option<f64> {
        let values: Vec<_> = self.samples.iter().filter_map(what).collect();
        median(&values)
    }
}

impl Machine {
    /// This one.
    #[must_use]
    pub fn this() -> Self {
        let release = uname().map(|name| name.release().to_string_lossy().into_owned());
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
            .map(|(_, model)| model.trim().to_owned());
        Self {
            kernel: release.unwrap_or_default(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            cpu_model: model.unwrap_or_else(|| "unknown".to_owned()),
        }
    }
}

/// Samples as they come in.
#[derive(Debug, Default)]
pub(super) struct Collected {
    /// By row and path: round and sample.
    samples: BTreeMap<(String, Path), Vec<(u32, Sample)>>,
    failures: Vec<Failure>,
}

impl Collected {
    /// Adds what came of a measurement. Rounds count from 1.
    pub(super) fn add(
        &mut self,
        row: &Row,
        path: Path,
        round: u32,
        result: Result<Sample, String>,
    ) {
        match result {
            Ok(sample) if sample.value.is_finite() => {
                let key = (row.name.clone(), path);
                self.samples.entry(key).or_default().push((round, sample));
            }
            Ok(sample) => self.fail(row, path, round, format!("the result is {}", sample.value)),
            Err(why) => self.fail(row, path, round, why),
        }
    }

    /// Whether another program has failed at a row: it would again, and takes its time to do so.
    pub(super) fn is_hopeless(&self, row: &Row, path: Path) -> bool {
        let same = |one: &Failure| !one.counts && one.row == row.name && one.path == path.name();
        self.failures.iter().any(same)
    }

    fn fail(&mut self, row: &Row, path: Path, round: u32, why: String) {
        self.failures.push(Failure {
            row: row.name.clone(),
            path: path.to_string(),
            round,
            why,
            counts: !path.is_foreign(),
        });
    }

    /// Adds something wrong that was found after a path's last sample.
    pub(super) fn fail_path(&mut self, path: Path, round: u32, why: String) {
        self.failures.push(Failure {
            row: "accounts".to_owned(),
            path: path.to_string(),
            round,
            why,
            counts: !path.is_foreign(),
        });
    }

    /// All of it.
    pub(super) fn document(self, plan: &Plan, quick: bool, missing: Vec<Missing>) -> Document {
        let mut results = Vec::new();
        let mut ratios = Vec::new();
        for row in &plan.rows {
            let of_path = |path: Path| self.samples.get(&(row.name.clone(), path));
            for &path in &plan.paths {
                let Some(samples) = of_path(path) else {
                    continue;
                };
                results.extend(figure(row, path, samples));
                if row.has_ratios() {
                    ratios.extend(ratios_of(row, path, of_path));
                }
            }
        }
        Document {
            format: FORMAT,
            program: "nos-relay bench".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            machine: Machine::this(),
            quick,
            rounds: plan.rounds,
            seconds: plan.duration.as_secs_f64(),
            correct: !self.failures.iter().any(|failure| failure.counts),
            missing,
            results,
            ratios,
            failures: self.failures,
            baseline: Vec::new(),
        }
    }
}

type Samples = Vec<(u32, Sample)>;

fn values(samples: &Samples) -> Vec<f64> {
    samples.iter().map(|(_, sample)| sample.value).collect()
}

fn figure(row: &Row, path: Path, samples: &Samples) -> Option<Figure> {
    let spread = Spread::of(&values(samples))?;
    let target = row.own_target(path);
    Some(Figure {
        row: row.name.clone(),
        what: row.what.clone(),
        path: path.to_string(),
        unit: row.unit().to_owned(),
        better: row.better(),
        samples: samples.iter().map(|(_, sample)| sample.clone()).collect(),
        spread,
        target: target.map(|target| Wanted {
            target: target.to_string(),
            met: target.is_met(spread.median),
        }),
    })
}

/// The best of some paths by the median.
fn best<'a>(
    row: &Row,
    paths: &[Path],
    of_path: impl Fn(Path) -> Option<&'a Samples>,
) -> Option<Path> {
    let medians = paths
        .iter()
        .filter_map(|&path| Some((path, median(&values(of_path(path)?))?)));
    let compared = |a: &(Path, f64), b: &(Path, f64)| match row.better() {
        Better::Higher => a.1.total_cmp(&b.1),
        Better::Lower => b.1.total_cmp(&a.1),
    };
    medians.max_by(compared).map(|(path, _)| path)
}

/// A relay's ratios: to the better bare forwarder, and to the one that uses io_uring; and, in one thread, to what others offer, each
/// at its best MTU.
fn ratios_of<'a>(
    row: &Row,
    path: Path,
    of_path: impl Fn(Path) -> Option<&'a Samples> + Copy,
) -> Vec<Ratio> {
    let mut others: Vec<_> = best(row, path.yardsticks(), of_path).into_iter().collect();
    others.extend(path.limit());
    if path.family() == Family::Relay && !path.is_split() {
        others.push(Path::Kernel);
        others.extend(best(row, &[Path::Pasta, Path::Pasta1500], of_path));
        // There is a target of its own.
        if matches!(row.load, Load::Bulk { .. }) && !others.contains(&Path::Pasta1500) {
            others.push(Path::Pasta1500);
        }
        let slirp = [Path::Slirp4netns, Path::Slirp4netns1500];
        others.extend(best(row, &slirp, of_path));
    }
    let ratios = others.into_iter();
    ratios
        .filter_map(|to| ratio(row, path, to, of_path))
        .collect()
}

fn ratio<'a>(
    row: &Row,
    path: Path,
    to: Path,
    of_path: impl Fn(Path) -> Option<&'a Samples>,
) -> Option<Ratio> {
    let (ours, theirs) = (of_path(path)?, of_path(to)?);
    let whole = median(&values(ours))? / median(&values(theirs))?;
    if !whole.is_finite() {
        return None;
    }
    let of_round = |round: u32| {
        let theirs = theirs.iter().find(|(other, _)| *other == round);
        theirs.map(|(_, sample)| sample.value)
    };
    let rounds: Vec<_> = ours
        .iter()
        .filter_map(|(round, sample)| Some(sample.value / of_round(*round)?))
        .filter(|ratio| ratio.is_finite())
        .collect();
    let spread = Spread::of(&rounds);
    let target = match path.yardsticks().contains(&to) {
        true => row.ratio_target(path),
        false if to == Path::Kernel || to.family() == Family::Bare => None,
        false => row.peer_target(to),
    };
    Some(Ratio {
        row: row.name.clone(),
        path: path.to_string(),
        to: to.to_string(),
        ratio: whole,
        min: spread.map_or(whole, |spread| spread.min),
        max: spread.map_or(whole, |spread| spread.max),
        target: target.map(|target| Wanted {
            target: target.to_string(),
            met: target.is_met(whole),
        }),
    })
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::super::plan;
    use super::*;

    pub(in crate::lab::bench) fn sample(value: f64) -> Sample {
        Sample {
            value,
            more: BTreeMap::from([("p99".to_owned(), 2.0 * value)]),
            octets: 2_000_000_000,
            operations: 5,
            seconds: 1.0,
            machine_cpu_seconds: 1.5,
            forwarder_cpu_seconds: Some(0.5),
            wakeups: Some(9),
            lost_in_queues: Some(0),
        }
    }

    /// `values` by path, in the row of this name.
    pub(in crate::lab::bench) fn document(row: &str, values: &[(Path, &[f64])]) -> Document {
        let rows = plan::pick(&plan::rows(), |row| row.name.clone(), row).unwrap();
        let mut collected = Collected::default();
        for (path, values) in values {
            for (&value, round) in values.iter().zip(1..) {
                collected.add(&rows[0], *path, round, Ok(sample(value)));
            }
        }
        let plan = Plan {
            rows,
            paths: values.iter().map(|(path, _)| *path).collect(),
            rounds: 3,
            duration: Duration::from_secs(1),
        };
        collected.document(&plan, false, Vec::new())
    }

    #[test]
    fn the_spread_of_values() {
        let spread = Spread::of(&[5.0, 1.0, 2.0, 9.0]).unwrap();
        assert_eq!((spread.median, spread.min, spread.max), (3.5, 1.0, 9.0));
        assert_eq!(spread.mad, 2.0);
        assert_eq!(Spread::of(&[]), None);
        assert_eq!(Spread::of(&[7.0]).unwrap().mad, 0.0);
    }

    #[test]
    fn ratios_are_to_the_better_bare_forwarder_and_to_every_peer() {
        let document = document(
            "tcp-out",
            &[
                (Path::RelayTap, &[9.0, 10.0, 11.0]),
                (Path::BareTap, &[10.0, 10.0, 11.0]),
                (Path::BareTapSingle, &[12.0, 12.5, 12.5]),
                (Path::Pasta1500, &[0.5, 0.5, 0.5]),
            ],
        );
        assert!(document.correct);
        let [bare, pasta] = &document.ratios[..] else {
            panic!("{:?}", document.ratios)
        };
        assert_eq!((bare.to.as_str(), bare.ratio), ("bare-tap-single", 0.8));
        assert_eq!((bare.min, bare.max), (9.0 / 12.0, 11.0 / 12.5));
        assert_eq!(bare.target.as_ref().map(|target| target.met), Some(false));
        assert_eq!((pasta.to.as_str(), pasta.ratio), ("pasta-1500", 20.0));
        let target = pasta.target.as_ref().unwrap();
        assert_eq!((target.target.as_str(), target.met), ("≥ 10", true));
    }

    #[test]
    fn the_limit_is_shown_beside_the_yardstick_and_has_no_target() {
        let document = document(
            "tcp-in",
            &[
                (Path::RelayVethSplit, &[9.0]),
                (Path::BarePacket, &[10.0]),
                (Path::BarePacketUring, &[12.0]),
            ],
        );
        let of = |ratio: &Ratio| (ratio.to.clone(), ratio.ratio, ratio.target.is_some());
        let ratios: Vec<_> = document.ratios.iter().map(of).collect();
        let expected = [
            ("bare-packet", 0.9, true),
            ("bare-packet-uring", 0.75, false),
        ];
        assert_eq!(
            ratios,
            expected.map(|(to, ratio, target)| (to.to_owned(), ratio, target))
        );
    }

    #[test]
    fn less_latency_is_the_better_yardstick() {
        let document = document(
            "rr-tcp-out",
            &[
                (Path::RelayTap, &[11.0]),
                (Path::BareTap, &[10.0]),
                (Path::BareTapSingle, &[12.0]),
            ],
        );
        assert_eq!(document.ratios[0].to, "bare-tap");
        assert!(document.ratios[0].target.as_ref().unwrap().met);
    }

    #[test]
    fn failures_of_other_programs_do_not_count() {
        let rows = plan::rows();
        let plan = |paths: &[Path]| Plan {
            rows: rows.clone(),
            paths: paths.to_vec(),
            rounds: 1,
            duration: Duration::from_secs(1),
        };
        for (path, correct) in [(Path::Pasta, true), (Path::Kernel, false)] {
            let mut collected = Collected::default();
            collected.add(&rows[0], path, 1, Err("stalled".to_owned()));
            assert_eq!(collected.is_hopeless(&rows[0], path), correct);
            assert!(!collected.is_hopeless(&rows[1], path));
            let document = collected.document(&plan(&[path]), true, Vec::new());
            assert_eq!(document.correct, correct);
            assert_eq!(document.failures.len(), 1);
        }
        let mut collected = Collected::default();
        collected.add(&rows[0], Path::RelayTap, 1, Ok(sample(f64::NAN)));
        assert!(!collected.document(&plan(&[]), true, Vec::new()).correct);
    }

    #[test]
    fn the_json_is_read_as_it_was_written() {
        let document = document("idle", &[(Path::RelayTap, &[0.0, 0.0])]);
        let json = serde_json::to_string_pretty(&document).unwrap();
        assert_eq!(serde_json::from_str::<Document>(&json).unwrap(), document);
        assert!(document.results[0].target.as_ref().unwrap().met);
    }

    #[test]
    fn cpu_time_is_per_gigabyte_delivered() {
        let sample = sample(1.0);
        assert_eq!(sample.machine_cpu_per_gigabyte(), Some(0.75));
        assert_eq!(sample.forwarder_cpu_per_gigabyte(), Some(0.25));
        let nothing = Sample {
            octets: 0,
            ..sample
        };
        assert_eq!(nothing.machine_cpu_per_gigabyte(), None);
    }
}
