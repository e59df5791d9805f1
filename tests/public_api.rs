//! The public interface of both crates, as it is committed: a change of it is seen, and meant.
//!
//! It reads the documentation that rustdoc writes as JSON, whose format changes with the compiler:
//! `tests/public-api` runs it, with the one that [`FORMAT`] is of.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends where what it needs is not there"
)]

use std::path::{Path, PathBuf};
use std::process::Command;

/// The format that is read.
const FORMAT: &str = "57, of Rust 1.95";

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/public_api")
}

/// The documentation of a package's library, without default features.
fn documentation(package: &str) -> PathBuf {
    // Where other commands have left what the package depends on.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let status = Command::new(env!("CARGO"))
        .args([
            "rustdoc",
            "--quiet",
            "--locked",
            "--lib",
            "--no-default-features",
        ])
        .args(["--package", package, "--target-dir"])
        .arg(target)
        .args(["--", "-Z", "unstable-options", "--output-format", "json"])
        .args(["--cap-lints", "allow"])
        .env("RUSTDOC", directory().join("rustdoc"))
        .env("CARGO_INCREMENTAL", "0")
        .status()
        .unwrap();
    assert!(
        status.success(),
        "rustdoc fails: is it the one of format {FORMAT}?"
    );
    target.join("doc").join(package.replace('-', "_") + ".json")
}

/// A line for each item.
fn listing(package: &str) -> String {
    let interface = public_api::Builder::from_rustdoc_json(documentation(package))
        .omit_blanket_impls(true)
        .omit_auto_trait_impls(true)
        .omit_auto_derived_impls(true)
        .build()
        .unwrap_or_else(|error| panic!("format {FORMAT}: {error}"));
    interface.to_string()
}

fn check(package: &str) {
    let committed = directory().join(format!("{package}.txt"));
    let listing = listing(package);
    if std::env::var_os("NOS_RELAY_WRITE_API").is_some() {
        std::fs::write(&committed, &listing).unwrap();
    }
    let expected = std::fs::read_to_string(&committed).unwrap();
    let (old, new): (Vec<_>, Vec<_>) = (expected.lines().collect(), listing.lines().collect());
    let gone = old
        .iter()
        .filter(|line| !new.contains(line))
        .map(|line| format!("- {line}"));
    let come = new
        .iter()
        .filter(|line| !old.contains(line))
        .map(|line| format!("+ {line}"));
    let changes: Vec<_> = gone.chain(come).collect();
    assert!(
        expected == listing,
        "the public interface of {package} is another than in {}; if that is meant, write it anew by \
         NOS_RELAY_WRITE_API=1 tests/public-api\n{}",
        committed.display(),
        changes.join("\n")
    );
}

#[test]
#[ignore = "it needs one version of Rust: tests/public-api runs it"]
fn that_of_nos_shim_is_as_it_is_committed() {
    check("nos-shim");
}

#[test]
#[ignore = "it needs one version of Rust: tests/public-api runs it"]
fn that_of_nos_relay_is_as_it_is_committed() {
    check("nos-relay");
}
