//! The tests that docs/conformance.md names exist.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::path::Path;

/// The name of a test and the file that it is in, of each link ``[`name`](../file)``.
fn links(page: &str) -> Vec<(&str, &str)> {
    let links = page.split("[`").skip(1).map(|rest| {
        let (name, rest) = rest.split_once("`](../").expect("a link to a test");
        let (file, _) = rest.split_once(')').expect("the end of a link");
        (name, file)
    });
    links.collect()
}

#[test]
fn every_test_named_in_the_page_exists() {
    let page = include_str!("../docs/conformance.md");
    let links = links(page);
    assert!(links.len() > 100, "only {} links", links.len());
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let missing: Vec<_> = links
        .iter()
        .filter(|(name, file)| {
            let text = std::fs::read_to_string(root.join(file)).unwrap_or_default();
            // A scenario in several variants is a module.
            !text.contains(&format!("fn {name}(")) && !text.contains(&format!("mod {name} "))
        })
        .collect();
    assert!(missing.is_empty(), "there are no such tests: {missing:?}");
}

/// What is done is shown, and what is not says so. The differences from Linux have a test of their own.
#[test]
fn every_rule_is_shown_or_not_done() {
    let page = include_str!("../docs/conformance.md");
    let rules = page.split("\n## Differences").next().unwrap();
    let rows = rules
        .lines()
        .filter(|line| line.starts_with("| ") && !line.contains("shown by"));
    for row in rows {
        let shown = row.contains("[`");
        assert!(
            shown || row.contains("not done"),
            "neither shown nor declared: {row}"
        );
    }
}
