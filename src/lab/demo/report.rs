//! The report: a table of what was measured, what was dropped, and a summary.

use std::fmt;
use std::time::Duration;

use comfy_table::{Cell, ContentArrangement, Table, presets};

use super::checks::{Check, Measured};
use crate::control::api::snapshot::{Counters, Stage};
use crate::outcome::Outcome;

/// Columns of the report.
const WIDTH: u16 = 100;

/// What came of the demo. Displays as the text for stdout, but for the log.
#[derive(Default)]
pub(super) struct Report {
    pub(super) rows: Vec<Row>,
    /// Checks that were not tried since the daemon had ended.
    pub(super) untried: usize,
    /// How the daemon ended before its time.
    pub(super) died: Option<String>,
    /// The counters at the end of all traffic, where they could be had.
    pub(super) counters: Option<Counters>,
    /// The end of the daemon's log, where something is wrong.
    pub(super) log: String,
    pub(super) took: Duration,
}

/// One check, and what came of it.
pub(super) struct Row {
    group: &'static str,
    what: String,
    family: String,
    pub(super) measured: Result<String, String>,
}

impl Row {
    pub(super) fn new(check: &Check<'_>, measured: Measured) -> Self {
        Self {
            group: check.group,
            what: check.what.clone(),
            family: check
                .family
                .map(|family| family.to_string())
                .unwrap_or_default(),
            measured: measured.map_err(|error| error.to_string()),
        }
    }

    fn cells(&self) -> [Cell; 4] {
        let (result, fact) = match &self.measured {
            Ok(fact) => ("pass", fact),
            Err(reason) => ("FAIL", reason),
        };
        [
            Cell::new(format!("  {}", self.what)),
            Cell::new(&self.family),
            Cell::new(result),
            Cell::new(fact),
        ]
    }
}

impl Report {
    /// How many checks failed.
    pub(super) fn failed(&self) -> usize {
        self.rows.iter().filter(|row| row.measured.is_err()).count()
    }

    /// Success only when every check was tried and passed.
    pub(super) fn outcome(&self) -> Outcome {
        let complete = !self.rows.is_empty() && self.untried == 0 && self.died.is_none();
        match complete && self.failed() == 0 {
            true => Outcome::Success,
            false => Outcome::Failure,
        }
    }

    fn table(&self) -> Table {
        let mut table = empty_table();
        table.set_header(["CHECK", "IP", "RESULT", "MEASURED"]);
        let mut group = "";
        for row in &self.rows {
            if row.group != group {
                group = row.group;
                table.add_row([group]);
            }
            table.add_row(row.cells());
        }
        table
    }

    fn summary(&self) -> String {
        let total = self.rows.len() + self.untried;
        let passed = self.rows.len() - self.failed();
        let seconds = self.took.as_secs_f32();
        let mut text = format!("{passed} of {total} checks passed in {seconds:.1} s");
        if self.failed() > 0 {
            text += &format!(", {} failed", self.failed());
        }
        if self.untried > 0 {
            text += &format!(", {} not tried", self.untried);
        }
        if let Some(how) = &self.died {
            text += &format!(": the relay {how}");
        }
        text + "."
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n", text(self.table()))?;
        if let Some(counters) = &self.counters {
            writeln!(f, "{}\n", dropped(&counters.stages))?;
        }
        writeln!(f, "{}", self.summary())
    }
}

/// What was dropped, by stage and reason.
fn dropped(stages: &[Stage]) -> String {
    let mut table = empty_table();
    table.set_header(["DROPPED BY", "REASON", "PACKETS"]);
    for stage in stages {
        for (reason, packets) in &stage.drops {
            table.add_row([&stage.name, reason, &packets.to_string()]);
        }
    }
    match table.row_count() {
        0 => "No packet was dropped.".to_owned(),
        _ => text(table),
    }
}

/// The columns side by side, two spaces apart.
fn text(mut table: Table) -> String {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

fn empty_table() -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(WIDTH);
    table
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn row(group: &'static str, measured: Result<&str, &str>) -> Row {
        Row {
            group,
            what: "web → X".to_owned(),
            family: "IPv4".to_owned(),
            measured: measured.map(str::to_owned).map_err(str::to_owned),
        }
    }

    fn report(rows: Vec<Row>) -> Report {
        Report {
            rows,
            took: Duration::from_millis(1250),
            ..Report::default()
        }
    }

    #[test]
    fn all_passed_is_success() {
        let report = report(vec![row("PING", Ok("3 replies")), row("TCP", Ok("echo"))]);
        assert_eq!(report.outcome(), Outcome::Success);
        let text = report.to_string();
        assert!(
            text.ends_with("\n2 of 2 checks passed in 1.2 s.\n"),
            "{text}"
        );
        assert_eq!(text.matches("pass ").count(), 2, "{text}");
    }

    #[test]
    fn one_failure_is_failure_and_is_seen() {
        let report = report(vec![
            row("PING", Ok("3 replies")),
            row("PING", Err("silence")),
        ]);
        assert_eq!(report.outcome(), Outcome::Failure);
        let text = report.to_string();
        assert!(text.contains("FAIL"), "{text}");
        assert!(text.contains("silence"), "{text}");
        assert!(
            text.contains("1 of 2 checks passed in 1.2 s, 1 failed."),
            "{text}"
        );
    }

    #[test]
    fn what_was_not_tried_is_no_success() {
        let mut early = report(vec![row("PING", Ok("3 replies"))]);
        early.untried = 4;
        early.died = Some("ended: signal: 9".to_owned());
        assert_eq!(early.outcome(), Outcome::Failure);
        let text = early.to_string();
        assert!(
            text.contains(
                "1 of 5 checks passed in 1.2 s, 4 not tried: the relay ended: signal: 9."
            ),
            "{text}"
        );
        assert_eq!(report(Vec::new()).outcome(), Outcome::Failure);
    }

    #[test]
    fn no_line_is_longer_than_100_columns() {
        let long = "tcp 20500-21499 overlaps 20000-20999 of container \"web\" ".repeat(4);
        let report = report(vec![row("REFUSED", Ok(&long))]);
        let text = report.to_string();
        let widest = text.lines().map(|line| line.chars().count()).max();
        assert!(widest <= Some(usize::from(WIDTH)), "{text}");
        assert!(text.lines().count() > 5, "{text}");
    }

    #[test]
    fn drops_are_listed_by_stage() {
        let stage = |name: &str, drops: &[(&str, u64)]| Stage {
            name: name.to_owned(),
            received: 0,
            originated: 0,
            sent: 0,
            consumed: 0,
            held: 0,
            drops: drops
                .iter()
                .map(|&(reason, n)| (reason.to_owned(), n))
                .collect::<BTreeMap<_, _>>(),
        };
        let text = dropped(&[stage("relay", &[("source-port", 4)]), stage("nos", &[])]);
        let words: Vec<_> = text
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .collect();
        assert_eq!(
            words,
            [
                vec!["DROPPED", "BY", "REASON", "PACKETS"],
                vec!["relay", "source-port", "4"]
            ]
        );
        assert_eq!(dropped(&[stage("nos", &[])]), "No packet was dropped.");
    }
}
