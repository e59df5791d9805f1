//! The seeds of the fuzz target `config` are valid configurations.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends where its network cannot be built"
)]

#[test]
fn seeds_of_the_target_config_are_valid() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/config");
    let mut count = 0;
    for entry in std::fs::read_dir(directory).expect("the seeds") {
        let path = entry.expect("a seed").path();
        if let Err(errors) = nos_relay::config::Config::load(&path) {
            panic!("{errors}");
        }
        count += 1;
    }
    assert!(count > 0, "no seeds in {directory}");
}
