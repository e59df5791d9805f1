//! Where the NOS differs from a Linux router, and why. `docs/conformance.md` has the same table.

use std::collections::BTreeSet;

/// Packets that are treated in another way.
pub(crate) struct Difference {
    /// The sweep that finds it.
    pub(crate) sweep: &'static str,
    /// Names of packets; a star stands for any characters. All that fit differ.
    pub(crate) packets: &'static str,
    pub(crate) reason: &'static str,
}

/// Sweep, packets, reason.
const ALL: &[(&str, &str, &str)] = &[];

pub(crate) fn all() -> impl Iterator<Item = Difference> {
    ALL.iter().map(|&(sweep, packets, reason)| Difference {
        sweep,
        packets,
        reason,
    })
}

/// Whether `name` fits `pattern`.
fn fits(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((before, behind)) => name.strip_prefix(before).is_some_and(|rest| {
            let cuts = rest.char_indices().map(|(at, _)| at).chain([rest.len()]);
            cuts.into_iter().any(|at| fits(behind, &rest[at..]))
        }),
    }
}

/// Fails if there are differences that are not listed, or listed ones that do not show.
pub(crate) fn check(
    sweep: &str,
    names: &[&str],
    differing: &BTreeSet<String>,
    reports: &[(String, String)],
) {
    let listed: Vec<_> = all()
        .filter(|difference| difference.sweep == sweep)
        .collect();
    let is_listed = |name: &str| listed.iter().any(|it| fits(it.packets, name));
    let new: Vec<_> = reports
        .iter()
        .filter(|(name, _)| !is_listed(name))
        .map(|(_, report)| report.as_str())
        .collect();
    let mut vanished = Vec::new();
    for difference in &listed {
        let found: Vec<_> = names
            .iter()
            .filter(|name| fits(difference.packets, name))
            .collect();
        if found.is_empty() {
            vanished.push(format!("nothing is named {}", difference.packets));
        }
        let alike = found.into_iter().filter(|name| !differing.contains(**name));
        vanished.extend(alike.map(|name| format!("{name} ({})", difference.packets)));
    }
    assert!(
        new.is_empty() && vanished.is_empty(),
        "{} new differences:\n{}\n{} that are listed and do not show:\n{}",
        new.len(),
        new.join("\n"),
        vanished.len(),
        vanished.join("\n")
    );
}

#[test]
fn stars_stand_for_anything() {
    for (pattern, name, expected) in [
        ("a b", "a b", true),
        ("a b", "a bc", false),
        ("a *", "a bc", true),
        ("* of c*", "b of cd", true),
        ("*", "", true),
        ("a*c", "abd", false),
    ] {
        assert_eq!(fits(pattern, name), expected, "{pattern} {name}");
    }
}

#[test]
fn the_differences_are_documented() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/conformance.md");
    let text = std::fs::read_to_string(path).unwrap();
    let missing: Vec<_> = all()
        .map(|it| format!("| {} | {} | {} |", it.sweep, it.packets, it.reason))
        .filter(|row| !text.contains(row.as_str()))
        .collect();
    assert!(
        missing.is_empty(),
        "docs/conformance.md lacks:\n{}",
        missing.join("\n")
    );
    let rows = text
        .split("## Differences from a plain Linux router")
        .nth(1);
    let rows = rows
        .and_then(|rest| rest.split("\n## ").next())
        .unwrap_or_default();
    let rows = rows.lines().filter(|line| line.starts_with("| ")).count();
    // And a head.
    assert_eq!(rows, ALL.len() + 1, "docs/conformance.md lists others");
}
