//! Files that were cut, damaged, left behind, or are of another version.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::embedded::set_version;
use super::*;

fn directory() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn put(name: &str, value: &str) -> Write {
    Write {
        section: Section::Registrations,
        name: name.to_owned(),
        value: Some(value.as_bytes().to_vec()),
    }
}

fn answer(name: &str, value: &str) -> Write {
    Write {
        section: Section::Answers,
        ..put(name, value)
    }
}

fn remove(name: &str) -> Write {
    Write {
        value: None,
        ..put(name, "")
    }
}

/// Writes that are told from others when they are read.
fn filled(directory: &Path) -> Contents {
    let mut store = Embedded::open(directory).unwrap();
    for number in 0..40 {
        let value = format!("{number} ").repeat(200);
        store
            .commit(&[put(&format!("entry {number}"), &value)])
            .unwrap();
    }
    store
        .commit(&[answer("id", "done"), remove("entry 7")])
        .unwrap();
    store.load().unwrap()
}

fn file(directory: &Path) -> PathBuf {
    directory.join("state.redb")
}

#[test]
fn what_was_committed_is_there_when_it_is_opened_again() {
    let directory = directory();
    let path = directory.path().join("made/here");
    let contents = filled(&path);
    assert_eq!(contents.registrations.len(), 39);
    assert_eq!(contents.answers["id"], b"done");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(&file(&path))), (0o700, 0o600));
    let mut store = Embedded::open(&path).unwrap();
    assert_eq!(store.load().unwrap(), contents);
    assert_eq!(store.commit(&[]).unwrap(), contents.revision + 1);
}

#[test]
fn one_at_a_time_has_a_directory() {
    let directory = directory();
    let first = Embedded::open(directory.path()).unwrap();
    let error = Embedded::open(directory.path()).unwrap_err();
    assert!(matches!(error, StoreError::Locked(_)), "{error}");
    assert!(
        error
            .to_string()
            .contains(&directory.path().display().to_string())
    );
    drop(first);
    Embedded::open(directory.path()).unwrap();
}

#[test]
fn a_file_that_was_left_open_has_all_that_was_committed() {
    let (left, copied) = (directory(), directory());
    let mut store = Embedded::open(left.path()).unwrap();
    for number in 0..10 {
        store.commit(&[put(&format!("{number}"), "value")]).unwrap();
        // What another process finds when this one is killed.
        fs::copy(file(left.path()), file(copied.path())).unwrap();
        let mut copy = Embedded::open(copied.path()).unwrap();
        assert_eq!(copy.load().unwrap(), store.load().unwrap());
    }
}

#[test]
fn a_file_that_was_left_half_made_is_made_anew() {
    let directory = directory();
    fs::write(directory.path().join("state.redb.new"), b"half").unwrap();
    let mut store = Embedded::open(directory.path()).unwrap();
    assert_eq!(store.load().unwrap().registrations.len(), 0);
}

#[test]
fn what_is_of_a_later_version_is_left_alone() {
    let directory = directory();
    let contents = filled(directory.path());
    set_version(directory.path(), VERSION + 1);
    let error = Embedded::open(directory.path()).unwrap_err();
    assert!(
        matches!(error, StoreError::Later { found: 2, .. }),
        "{error}"
    );
    set_version(directory.path(), VERSION);
    let mut store = Embedded::open(directory.path()).unwrap();
    assert_eq!(store.load().unwrap(), contents);
}

/// Opens what `octets` are, and says what is there.
fn found(octets: &[u8]) -> Result<Contents, StoreError> {
    let directory = directory();
    fs::write(file(directory.path()), octets).unwrap();
    Embedded::open(directory.path())?.load()
}

/// Files as they are when they were closed, and when they were not.
fn files() -> Vec<(Vec<u8>, Contents)> {
    let (closed, open) = (directory(), directory());
    let contents = filled(closed.path());
    let closed = fs::read(file(closed.path())).unwrap();
    filled(open.path());
    let mut store = Embedded::open(open.path()).unwrap();
    store.commit(&[put("entry 1", "other")]).unwrap();
    let left = fs::read(file(open.path())).unwrap();
    vec![(closed, contents), (left, store.load().unwrap())]
}

#[test]
fn a_file_that_was_cut_is_an_error_that_names_it() {
    for (octets, contents) in files() {
        assert_eq!(found(&octets).unwrap(), contents);
        let lengths = [
            0,
            1,
            9,
            100,
            320,
            4095,
            4096,
            8192,
            octets.len() / 2,
            octets.len() - 1,
        ];
        for length in lengths {
            let error = found(&octets[..length]).unwrap_err();
            assert!(
                matches!(error, StoreError::Corrupt { .. }),
                "{length}: {error}"
            );
            assert!(error.to_string().contains("state.redb"), "{error}");
        }
    }
}

#[test]
fn a_bit_that_flipped_is_an_error_or_in_nothing_that_counts() {
    for (octets, contents) in files() {
        let mut errors = 0;
        // The header, and a sample of all else.
        let offsets = (0..320).step_by(3).chain((320..octets.len()).step_by(4999));
        for offset in offsets {
            let mut damaged = octets.clone();
            damaged[offset] ^= 1 << (offset % 8);
            match found(&damaged) {
                Ok(found) => assert_eq!(found, contents, "{offset}"),
                Err(_) => errors += 1,
            }
        }
        assert!(errors > 0);
    }
}

#[test]
fn what_is_no_database_is_an_error() {
    let error = found(&[0x55; 100_000]).unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
    let directory = directory();
    fs::create_dir(file(directory.path())).unwrap();
    let error = Embedded::open(directory.path()).unwrap_err();
    assert!(matches!(error, StoreError::System { .. }), "{error}");
    let path = directory.path().join("file");
    fs::write(&path, b"").unwrap();
    let error = Embedded::open(&path).unwrap_err().to_string();
    assert!(error.contains(&path.display().to_string()), "{error}");
}
