//! Comparison with an earlier run.
//!
//! A difference counts only where the two runs' samples do not overlap, and where it is more than
//! [`LEAST`]. Few samples often lie apart by chance (two and two in one case of three): below
//! [`ENOUGH`] only a factor of [`PLAIN`] counts. Machines drift: where both runs have the ratio to the bare forwarder in the same run,
//! that is compared, otherwise the medians themselves.

use std::fs;
use std::io;
use std::path::{Path as FilePath, PathBuf};

use thiserror::Error;

use super::plan::{Better, Plan};
use super::results::{Change, Document, FORMAT, Figure, Machine, Ratio, Verdict};

/// Differences below one part in a hundred are noise on any machine.
const LEAST: f64 = 0.01;

/// Of so many samples each, hardly one pair in thirty lies apart by chance.
const ENOUGH: usize = 4;

/// A difference that few samples show as well.
const PLAIN: f64 = 2.0;

/// An earlier run that this one can be compared with.
#[derive(Clone, Debug)]
pub struct Baseline {
    document: Document,
}

/// Why a file is no baseline.
#[derive(Debug, Error)]
pub enum BaselineError {
    /// It cannot be read.
    #[error("baseline {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// It is not what `--json` writes.
    #[error("baseline {}: not a result of `nos-relay bench --json`: {why}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The reason, with line and column.
        why: String,
    },
    /// It is of another version.
    #[error("baseline {}: its format is {found}, this program's is {FORMAT}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// The version found.
        found: u64,
    },
    /// It has nothing of what is about to be measured.
    #[error("baseline {}: it has no row and path in common with this run", path.display())]
    Disjoint {
        /// The file.
        path: PathBuf,
    },
}

impl Baseline {
    /// Reads one that has something in common with `plan`.
    ///
    /// # Errors
    ///
    /// [`BaselineError`] names the file and what is wrong with it.
    pub fn load(path: &FilePath, plan: &Plan) -> Result<Self, BaselineError> {
        let text = fs::read_to_string(path).map_err(|source| BaselineError::Read {
            path: path.to_owned(),
            source,
        })?;
        let document = parse(path, &text)?;
        let known = plan.pairs().any(|(row, path)| {
            let same = |figure: &Figure| figure.row == row.name && figure.path == path.name();
            document.results.iter().any(same)
        });
        match known {
            true => Ok(Self { document }),
            false => Err(BaselineError::Disjoint {
                path: path.to_owned(),
            }),
        }
    }

    /// What makes a comparison doubtful.
    #[must_use]
    pub fn doubts(&self, quick: bool) -> Vec<String> {
        let mut doubts = Vec::new();
        let (then, now) = (&self.document.machine, Machine::this());
        if *then != now {
            doubts.push(format!(
                "the baseline is of another machine or kernel: {} ({} CPUs, Linux {})",
                then.cpu_model, then.cpus, then.kernel
            ));
        }
        if self.document.quick != quick {
            doubts.push("one of the two runs is a quick one".to_owned());
        }
        doubts
    }

    /// Compares a run with it, in the order of the run.
    #[must_use]
    pub fn compare(&self, now: &Document) -> Vec<Verdict> {
        let verdict = |figure: &Figure| {
            let then = self.document.figure(&figure.row, &figure.path)?;
            let ratios = now.ratio(figure).zip(self.document.ratio(figure));
            Some(match ratios {
                Some((now, before)) if now.to == before.to => {
                    of_ratios(figure, few(then, figure), before, now)
                }
                _ => of_medians(figure, few(then, figure), then),
            })
        };
        now.results.iter().filter_map(verdict).collect()
    }
}

fn parse(path: &FilePath, text: &str) -> Result<Document, BaselineError> {
    let malformed = |why: String| BaselineError::Malformed {
        path: path.to_owned(),
        why,
    };
    let value = serde_json::from_str::<serde_json::Value>(text);
    let value = value.map_err(|error| malformed(error.to_string()))?;
    let format = value.get("format").and_then(serde_json::Value::as_u64);
    match format {
        None => return Err(malformed("it has no \"format\"".to_owned())),
        Some(found) if found != u64::from(FORMAT) => {
            return Err(BaselineError::Format {
                path: path.to_owned(),
                found,
            });
        }
        Some(_) => {}
    }
    // From the text once more, for the line and column.
    serde_json::from_str(text).map_err(|error| malformed(error.to_string()))
}

impl Document {
    fn figure(&self, row: &str, path: &str) -> Option<&Figure> {
        let mut figures = self.results.iter();
        figures.find(|figure| figure.row == row && figure.path == path)
    }

    /// A figure's ratio to its bare forwarder.
    pub(super) fn ratio(&self, figure: &Figure) -> Option<&Ratio> {
        let mut ratios = self.ratios.iter();
        ratios.find(|ratio| {
            ratio.row == figure.row && ratio.path == figure.path && ratio.to.starts_with("bare-")
        })
    }
}

fn few(then: &Figure, now: &Figure) -> bool {
    then.samples.len().min(now.samples.len()) < ENOUGH
}

fn of_ratios(figure: &Figure, few: bool, then: &Ratio, now: &Ratio) -> Verdict {
    let range = |ratio: &Ratio| (ratio.min, ratio.ratio, ratio.max);
    Verdict {
        row: figure.row.clone(),
        path: figure.path.clone(),
        what: format!("x {}", now.to),
        then: then.ratio,
        now: now.ratio,
        change: change(figure.better, few, range(then), range(now)),
    }
}

fn of_medians(figure: &Figure, few: bool, then: &Figure) -> Verdict {
    let range = |figure: &Figure| (figure.spread.min, figure.spread.median, figure.spread.max);
    Verdict {
        row: figure.row.clone(),
        path: figure.path.clone(),
        what: figure.unit.clone(),
        then: then.spread.median,
        now: figure.spread.median,
        change: change(figure.better, few, range(then), range(figure)),
    }
}

/// Compares two ranges with their medians: least, median, greatest.
fn change(better: Better, few: bool, then: (f64, f64, f64), now: (f64, f64, f64)) -> Change {
    let overlap = then.0 <= now.2 && now.0 <= then.2;
    let little = match few {
        true => now.1.max(then.1) < PLAIN * now.1.min(then.1),
        false => (now.1 - then.1).abs() <= LEAST * then.1.abs(),
    };
    if overlap || little {
        return Change::WithinNoise;
    }
    match (now.1 > then.1, better) {
        (true, Better::Higher) | (false, Better::Lower) => Change::Better,
        _ => Change::Worse,
    }
}

#[cfg(test)]
mod tests {
    use super::super::path::Path;
    use super::super::plan;
    use super::super::results::tests::document;
    use super::*;

    #[test]
    fn what_overlaps_is_noise() {
        let higher = |then, now| change(Better::Higher, false, then, now);
        assert_eq!(
            higher((9.0, 10.0, 11.0), (10.5, 12.0, 13.0)),
            Change::WithinNoise
        );
        assert_eq!(
            higher((9.0, 10.0, 11.0), (11.5, 12.0, 13.0)),
            Change::Better
        );
        assert_eq!(higher((9.0, 10.0, 11.0), (7.0, 8.0, 8.5)), Change::Worse);
        assert_eq!(
            higher((10.0, 10.0, 10.0), (10.05, 10.05, 10.05)),
            Change::WithinNoise
        );
        let lower = change(Better::Lower, false, (9.0, 10.0, 11.0), (7.0, 8.0, 8.5));
        assert_eq!(lower, Change::Better);
        let from_nothing = change(Better::Lower, false, (0.0, 0.0, 0.0), (5.0, 5.0, 5.0));
        assert_eq!(from_nothing, Change::Worse);
    }

    #[test]
    fn few_samples_show_plain_differences_only() {
        let few = |now| change(Better::Higher, true, (9.0, 10.0, 11.0), (now, now, now));
        assert_eq!(few(6.0), Change::WithinNoise);
        assert_eq!(few(19.0), Change::WithinNoise);
        assert_eq!(few(4.0), Change::Worse);
        assert_eq!(few(21.0), Change::Better);
    }

    #[test]
    fn ratios_are_compared_where_both_have_them() {
        let run = |relay, bare| {
            document(
                "tcp-out",
                &[(Path::RelayVeth, relay), (Path::BarePacket, bare)],
            )
        };
        // A machine half as fast, and the relay as good as before.
        let baseline = Baseline {
            document: run(&[9.0, 9.1, 9.2, 9.1], &[10.0, 10.1, 10.2, 10.1]),
        };
        let verdicts = baseline.compare(&run(&[4.5, 4.6, 4.55, 4.5], &[5.0, 5.1, 5.05, 5.0]));
        assert_eq!(verdicts[0].change, Change::WithinNoise, "{verdicts:?}");
        assert_eq!(verdicts[0].what, "x bare-packet");
        assert_eq!(verdicts[1].change, Change::Worse);
        assert_eq!(verdicts[1].what, "Gbit/s");
    }

    #[test]
    fn a_file_that_is_no_baseline_says_why() {
        let refused = |text: &str| {
            let parsed = parse(FilePath::new("b.json"), text);
            parsed.unwrap_err().to_string()
        };
        let prefix = "baseline b.json: not a result of `nos-relay bench --json`: ";
        assert!(refused("{").starts_with(prefix), "{}", refused("{"));
        assert_eq!(refused("{}"), format!("{prefix}it has no \"format\""));
        assert!(refused(r#"{"format": 1}"#).contains("missing field"));
        assert_eq!(
            refused(r#"{"format": 7}"#),
            "baseline b.json: its format is 7, this program's is 1"
        );
    }

    #[test]
    fn a_missing_file_and_a_disjoint_one_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("b.json");
        let plan = |row: &str| Plan {
            rows: plan::pick(&plan::rows(), |row| row.name.clone(), row).unwrap(),
            paths: vec![Path::RelayTap],
            rounds: 1,
            duration: std::time::Duration::from_secs(1),
        };
        let missing = Baseline::load(&file, &plan("tcp-out"));
        assert!(matches!(missing, Err(BaselineError::Read { .. })));
        let document = document("tcp-out", &[(Path::RelayTap, &[1.0])]);
        fs::write(&file, serde_json::to_string(&document).unwrap()).unwrap();
        assert!(Baseline::load(&file, &plan("tcp-out")).is_ok());
        let disjoint = Baseline::load(&file, &plan("idle"));
        assert!(matches!(disjoint, Err(BaselineError::Disjoint { .. })));
    }
}
