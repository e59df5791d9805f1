//! The results as text: a table with a heading for each row, and what follows from it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write};
use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};

use super::path::{Family, Path};
use super::results::{Change, Document, Figure, Ratio, Verdict, Wanted};

/// A document, and what is said about its making. Displays as the text for stdout.
#[derive(Debug)]
pub(super) struct Report<'a> {
    pub(super) document: &'a Document,
    /// What makes a comparison doubtful.
    pub(super) doubts: &'a [String],
    pub(super) took: Duration,
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let document = self.document;
        let machine = &document.machine;
        writeln!(
            f,
            "{} CPUs ({}), Linux {}; medians of {} rounds, {} s a sample",
            machine.cpus,
            machine.cpu_model,
            machine.kernel,
            document.rounds,
            figure(document.seconds)
        )?;
        writeln!(f, "\n{}", figures(document))?;
        for part in [
            peers(document),
            self.baseline(),
            missing(document),
            failures(document),
        ]
        .into_iter()
        .flatten()
        {
            writeln!(f, "{part}\n")?;
        }
        writeln!(f, "{}", self.summary())
    }
}

impl Report<'_> {
    fn summary(&self) -> String {
        let document = self.document;
        let samples: usize = document.results.iter().map(|one| one.samples.len()).sum();
        let targets: Vec<_> = wanted(document).collect();
        let met = targets.iter().filter(|target| target.met).count();
        let mut text = format!(
            "{samples} samples in {:.0} s, {met} of {} targets met.",
            self.took.as_secs_f64(),
            targets.len()
        );
        text += match document.correct {
            true => " All that arrived was as it was sent.",
            false => " Something FAILED.",
        };
        if document.quick {
            text += "\nA quick run shows that it works, not how fast it is.";
        }
        text
    }

    fn baseline(&self) -> Option<String> {
        let verdicts = &self.document.baseline;
        if verdicts.is_empty() {
            return None;
        }
        let mut table = table(&["COMPARED", "PATH", "", "THEN", "NOW", "CHANGE"]);
        right(&mut table, &[3, 4]);
        for Verdict {
            row,
            path,
            what,
            then,
            now,
            change,
        } in verdicts
        {
            let change = match change {
                Change::Worse => "WORSE".to_owned(),
                other => other.to_string(),
            };
            table.add_row([row, path, what, &figure(*then), &figure(*now), &change]);
        }
        let mut text = lines(table).join("\n");
        for doubt in self.doubts {
            // Writing to a string does not fail.
            let _ = write!(text, "\nNote: {doubt}.");
        }
        Some(text)
    }
}

/// All targets that have a verdict.
fn wanted(document: &Document) -> impl Iterator<Item = &Wanted> {
    let own = document
        .results
        .iter()
        .filter_map(|one| one.target.as_ref());
    let ratios = document.ratios.iter();
    own.chain(ratios.filter_map(|ratio| ratio.target.as_ref()))
}

fn figures(document: &Document) -> String {
    let header = [
        "",
        "MEDIAN",
        "MIN",
        "MAX",
        "RATIO",
        "TARGET",
        "CPU s/GB",
        "FORWARDER",
        "QUEUE LOST",
        "",
    ];
    let mut table = table(&header);
    right(&mut table, &[1, 2, 3, 6, 7, 8]);
    for one in &document.results {
        table.add_row(cells(one, document.ratio(one)));
    }
    let mut lines = lines(table).into_iter();
    let mut text = lines.next().unwrap_or_default();
    let mut last = "";
    for (one, line) in document.results.iter().zip(lines) {
        if one.row != last {
            last = &one.row;
            let _ = write!(text, "\n{}: {}, {}", one.row, one.what, one.unit);
        }
        text.push('\n');
        text += &line;
    }
    text.push('\n');
    text
}

fn cells(one: &Figure, ratio: Option<&Ratio>) -> [String; 10] {
    let cpu = one.median_of(super::results::Sample::machine_cpu_per_gigabyte);
    let forwarder = one.median_of(super::results::Sample::forwarder_cpu_per_gigabyte);
    let lost = one
        .samples
        .iter()
        .filter_map(|sample| sample.lost_in_queues);
    let lost = lost.reduce(|sum, one| sum + one);
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let target = one.target.as_ref();
    let target = target.or_else(|| ratio.and_then(|ratio| ratio.target.as_ref()));
    [
        format!("  {}", one.path),
        figure(one.spread.median),
        figure(one.spread.min),
        figure(one.spread.max),
        ratio.map(ratio_text).unwrap_or_default(),
        target.map(target_text).unwrap_or_default(),
        or_dash(cpu.map(figure)),
        or_dash(forwarder.map(figure)),
        or_dash(lost.map(|lost| lost.to_string())),
        more(one),
    ]
}

fn ratio_text(ratio: &Ratio) -> String {
    let Ratio {
        ratio,
        min,
        max,
        to,
        ..
    } = ratio;
    format!("{ratio:.2} ({min:.2}-{max:.2}) x {to}")
}

fn target_text(wanted: &Wanted) -> String {
    let verdict = if wanted.met { "met" } else { "MISSED" };
    format!("{} {verdict}", wanted.target)
}

/// Medians of the further figures.
fn more(one: &Figure) -> String {
    let names: BTreeSet<_> = one
        .samples
        .iter()
        .flat_map(|sample| sample.more.keys())
        .collect();
    let median = |name: &String| one.median_of(|sample| sample.more.get(name).copied());
    let texts = names
        .into_iter()
        .filter_map(|name| Some(format!("{name} {}", figure(median(name)?))));
    texts.collect::<Vec<_>>().join(", ")
}

/// How relays do beside other programs: their ratio to each.
fn peers(document: &Document) -> Option<String> {
    let others = Path::ALL
        .into_iter()
        .filter(|path| path.family() == Family::Other);
    let others: Vec<_> = others.map(Path::name).collect();
    let mut cells = BTreeMap::<(usize, &str, &str), Vec<String>>::new();
    for (number, ratio) in document.ratios.iter().enumerate() {
        let Some(column) = others.iter().position(|&other| other == ratio.to) else {
            continue;
        };
        let same = |one: &Ratio| one.row == ratio.row && one.path == ratio.path;
        let first = document.ratios.iter().position(same).unwrap_or(number);
        let line = cells.entry((first, &ratio.row, &ratio.path)).or_default();
        line.resize(others.len(), String::new());
        let target = ratio.target.as_ref().map(target_text).unwrap_or_default();
        line[column] = format!("{} {target}", figure(ratio.ratio));
    }
    if cells.is_empty() {
        return None;
    }
    let header: Vec<_> = ["RATIO TO", "OF"].into_iter().chain(others).collect();
    let mut table = table(&header);
    for ((_, row, path), line) in cells {
        let names = [row.to_owned(), path.to_owned()];
        table.add_row(names.into_iter().chain(line));
    }
    Some(lines(table).join("\n"))
}

fn missing(document: &Document) -> Option<String> {
    let missing = document.missing.iter();
    let lines: Vec<_> = missing
        .map(|one| format!("Not measured: {}: {}.", one.what, one.why))
        .collect();
    (!lines.is_empty()).then(|| lines.join("\n"))
}

fn failures(document: &Document) -> Option<String> {
    let failures = document.failures.iter();
    let lines: Vec<_> = failures
        .map(|failure| {
            let verdict = if failure.counts { "FAILED" } else { "failed" };
            let (row, path, round) = (&failure.row, &failure.path, failure.round);
            format!("{verdict}: {row} on {path}, round {round}: {}", failure.why)
        })
        .collect();
    (!lines.is_empty()).then(|| lines.join("\n"))
}

/// About three digits that count.
pub(super) fn figure(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    table
}

fn right(table: &mut Table, columns: &[usize]) {
    for &column in columns {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

/// The columns side by side, two spaces apart.
fn lines(mut table: Table) -> Vec<String> {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let text = table.trim_fmt();
    text.lines().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::super::results::tests::document;
    use super::super::results::{Failure, Missing};
    use super::*;

    fn text(document: &Document) -> String {
        let took = Duration::from_secs(7);
        let report = Report {
            document,
            doubts: &[],
            took,
        };
        report.to_string()
    }

    #[test]
    fn a_row_has_a_heading_and_a_line_for_each_path() {
        let document = document(
            "tcp-out",
            &[
                (Path::RelayTap, &[9.0, 9.6, 9.9]),
                (Path::BareTap, &[10.0, 10.0, 10.0]),
                (Path::Pasta1500, &[0.5, 0.5, 0.5]),
            ],
        );
        let text = text(&document);
        let heading = text
            .lines()
            .position(|line| line.starts_with("tcp-out: bulk TCP"));
        let after: Vec<_> = text.lines().skip(heading.unwrap() + 1).collect();
        let words: Vec<_> = after[0].split_whitespace().collect();
        assert_eq!(
            words[..10],
            [
                "relay-tap",
                "9.60",
                "9.00",
                "9.90",
                "0.96",
                "(0.90-0.99)",
                "x",
                "bare-tap",
                "≥",
                "0.95"
            ]
        );
        assert_eq!(words[10..], ["met", "0.750", "0.250", "0", "p99", "19.2"]);
        assert!(after[1].trim_start().starts_with("bare-tap "), "{text}");
        assert!(text.contains("19.2 ≥ 10 met"), "{text}");
        assert!(
            text.ends_with(
                "9 samples in 7 s, 2 of 2 targets met. All that arrived was as it was sent.\n"
            ),
            "{text}"
        );
    }

    #[test]
    fn what_is_missing_or_failed_is_said() {
        let mut document = document("idle", &[(Path::RelayVeth, &[1.0])]);
        document.missing.push(Missing {
            what: "pasta".to_owned(),
            why: "pasta is not installed".to_owned(),
        });
        document.correct = false;
        document.failures.push(Failure {
            row: "udp-64-out".to_owned(),
            path: "relay-veth".to_owned(),
            round: 2,
            why: "datagram 7 of flow 0 was changed".to_owned(),
            counts: true,
        });
        let text = text(&document);
        assert!(text.contains("≤ 0 MISSED"), "{text}");
        assert!(text.contains("Not measured: pasta: pasta is not installed."));
        let failure =
            "FAILED: udp-64-out on relay-veth, round 2: datagram 7 of flow 0 was changed\n";
        assert!(text.contains(failure), "{text}");
        assert!(text.contains("Something FAILED."), "{text}");
    }

    #[test]
    fn figures_have_three_digits() {
        let texts = [0.0, 0.0123, 1.234, 12.34, 1234.5].map(figure);
        assert_eq!(texts, ["0", "0.012", "1.23", "12.3", "1234"]);
    }
}
