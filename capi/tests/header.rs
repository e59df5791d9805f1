//! The header is what the sources make of it, and compilers take it.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends where what it needs is not there"
)]

use std::path::{Path, PathBuf};
use std::process::Command;

/// In the order of the header.
const SOURCES: [&str; 10] = [
    "lib",
    "failure",
    "address",
    "registration",
    "builder",
    "relay",
    "packet",
    "table",
    "port",
    "message",
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn made() -> String {
    let config = cbindgen::Config::from_file(root().join("cbindgen.toml")).unwrap();
    let mut builder = cbindgen::Builder::new().with_config(config);
    for source in SOURCES {
        builder = builder.with_src(root().join("src").join(source).with_extension("rs"));
    }
    let mut made = Vec::new();
    builder.generate().unwrap().write(&mut made);
    String::from_utf8(made).unwrap()
}

/// `NOS_RELAY_WRITE_HEADER=1` writes it anew.
#[test]
fn the_header_is_that_of_the_sources() {
    let path = root().join("include/nos_relay.h");
    if std::env::var_os("NOS_RELAY_WRITE_HEADER").is_some() {
        std::fs::write(&path, made()).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap();
    assert!(
        committed == made(),
        "the header differs from the sources; NOS_RELAY_WRITE_HEADER=1 writes it anew"
    );
}

/// Every function of the sources is in the header, so that none is overlooked by the list above.
#[test]
fn the_header_has_every_function() {
    let header = std::fs::read_to_string(root().join("include/nos_relay.h")).unwrap();
    let mut functions = 0;
    for entry in std::fs::read_dir(root().join("src")).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        for name in text.split("extern \"C\" fn ").skip(1) {
            let name = name.split('(').next().unwrap();
            assert!(header.contains(&format!("{name}(")), "{name}");
            functions += 1;
        }
    }
    assert!(functions > 50, "{functions} functions");
}

fn compile(compiler: &str, standard: &str, language: &str) {
    let place = tempfile::tempdir().unwrap();
    let source = place.path().join("header");
    std::fs::write(&source, "#include <nos_relay.h>\n#include <nos_relay.h>\n").unwrap();
    let mut command = Command::new(compiler);
    command.args([
        "-x",
        language,
        "-fsyntax-only",
        "-Wall",
        "-Wextra",
        "-Wpedantic",
        "-Werror",
    ]);
    let include = root().join("include");
    command
        .arg(format!("-std={standard}"))
        .arg("-I")
        .arg(include)
        .arg(Path::new(&source));
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{compiler} {standard}: {said}");
}

#[test]
fn compilers_take_the_header_without_a_warning() {
    for standard in ["c99", "c11", "c17"] {
        compile("cc", standard, "c");
    }
    for standard in ["c++11", "c++17"] {
        compile("c++", standard, "c++");
    }
}
