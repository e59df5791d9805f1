//! What integration tests share: a place where they may make namespaces, and a daemon in them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends where its network cannot be built"
)]
#![allow(
    dead_code,
    unused_imports,
    unused_macros,
    reason = "each test binary uses a part of it"
)]

pub(crate) mod between;
pub(crate) mod bulk;
pub(crate) mod daemon;
pub(crate) mod dpdk;
pub(crate) mod named;
pub(crate) mod names;
pub(crate) mod requests;
pub(crate) mod scenario;
pub(crate) mod supervisor;
pub(crate) mod switch;
pub(crate) mod traffic;
pub(crate) mod wire;

use std::io::Write;
use std::process::Command;

use nos_relay::lab::testbed::{Privileges, privileges, user_namespace_on_spawn};

/// Defines a test that needs network namespaces.
///
/// As root the body runs as it stands. Otherwise the test runs itself once more in a user
/// namespace, where it is root; and where the kernel refuses that, it says so and is skipped.
macro_rules! lab_test {
    ($(#[$attribute:meta])* fn $name:ident() $body:block) => {
        $(#[$attribute])*
        #[test]
        fn $name() {
            $crate::support::in_lab(concat!(module_path!(), "::", stringify!($name)), || $body);
        }
    };
}
pub(crate) use lab_test;

/// Runs `body` where namespaces can be made; `path` is the full path of the calling test.
pub(crate) fn in_lab(path: &str, body: impl FnOnce()) {
    // The harness knows its tests by the path without the name of the crate.
    let test = path.split_once("::").map_or(path, |(_, test)| test);
    match privileges() {
        Privileges::Root => body(),
        Privileges::UserNamespace => again_in_user_namespace(test),
        Privileges::Nothing(reason) => skip(&format!("{test}: {reason}")),
    }
}

/// Says that a test, or the rest of it, was not done, and why.
///
/// Past the harness, which hides what passing tests print.
pub(crate) fn skip(reason: &str) {
    let line = format!("skipped: {reason}\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
}

fn again_in_user_namespace(test: &str) {
    let mut command = Command::new(std::env::current_exe().expect("the path of this test binary"));
    command.args(["--exact", test, "--nocapture", "--include-ignored"]);
    let output = user_namespace_on_spawn(&mut command)
        .output()
        .expect("the test binary starts again");
    let [text, errors] = [&output.stdout, &output.stderr].map(|out| String::from_utf8_lossy(out));
    for line in errors.lines() {
        match line.strip_prefix("skipped: ") {
            Some(reason) => skip(reason),
            // Through print!, so that the harness shows it with this test only.
            None => println!("{line}"),
        }
    }
    print!("{text}");
    assert!(output.status.success(), "{test} failed in a user namespace");
    assert!(
        text.contains("1 passed"),
        "{test} was not found by that name"
    );
}
