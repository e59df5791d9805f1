//! The configuration: any text is a configuration, or errors that say where and why; and a
//! configuration can be planned, from nothing and back, whatever it holds.
//!
//! Input: TOML text.

#![no_main]

use std::collections::{BTreeSet, HashMap};

use libfuzzer_sys::fuzz_target;
use nos_relay::control::config::Config;
use nos_relay::control::kernel::NamespaceId;
use nos_relay::control::plan::{NamespacePresence, Observed, State, Want, plan, routes_of};

/// What a configuration asks for where all its namespaces are there, and no interface is.
fn wanted(config: &Config) -> State {
    let namespaces = (1..).zip(&config.containers).map(|(inode, container)| {
        let presence = NamespacePresence::Here(NamespaceId::new(1, inode));
        (container.name.clone(), presence)
    });
    let observed = Observed {
        host: NamespaceId::new(0, 0),
        namespaces: namespaces.collect(),
        links: HashMap::new(),
    };
    let state = Want::of(config, &observed).state;
    let (routes, left) = routes_of(&config.routes, &state);
    assert!(left.is_empty(), "every next hop has its uplink: {left:?}");
    State { routes, ..state }
}

fuzz_target!(|text: &str| {
    match Config::parse("fuzz.toml", text) {
        Ok(config) => {
            assert!(!config.uplinks.is_empty());
            let (nothing, wanted) = (State::default(), wanted(&config));
            let none = BTreeSet::new();
            assert!(plan(&wanted, &wanted, &none).is_empty());
            for (from, to) in [(&nothing, &wanted), (&wanted, &nothing)] {
                let mut reached = from.clone();
                for group in plan(from, to, &none) {
                    group
                        .steps
                        .iter()
                        .for_each(|(_, step)| reached.record(step));
                }
                assert_eq!(
                    (reached.claims, reached.links),
                    (to.claims.clone(), to.links.clone())
                );
                assert_eq!(reached.networks, to.networks);
            }
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
