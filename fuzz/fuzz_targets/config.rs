//! The configuration: any text is a configuration, or errors that say where and why.
//!
//! Input: TOML text.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nos_relay::control::config::Config;

fuzz_target!(|text: &str| {
    match Config::parse("fuzz.toml", text) {
        Ok(config) => {
            assert!(!config.uplinks.is_empty());
            assert!(Config::diff(&config, &config).is_empty());
            let again = Config::parse("fuzz.toml", text);
            assert_eq!(again.ok().as_ref(), Some(&config));
        }
        Err(errors) => {
            let lines = text.lines().count().max(1);
            assert!(!errors.errors().is_empty());
            for error in errors.errors() {
                assert!(!error.reason.is_empty());
                // An error at the end of the text lies on the line that would follow.
                assert!(
                    error
                        .line
                        .is_none_or(|line| (1..=lines + 1).contains(&line))
                );
            }
        }
    }
});
