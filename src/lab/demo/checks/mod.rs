//! What the demo shows: each check measures one thing and says what it found.

mod accounts;
mod bulk;
mod datagram;
mod handover;
mod ping;
mod refusal;
mod registration;
mod service;
mod siblings;
mod talk;

use std::error::Error;
use std::time::Duration;

use super::daemon::Daemon;
use super::network::{Container, Family, Network};
use crate::lab::progress::Progress;

pub(super) use accounts::{drops, ending};

/// What was measured, or what is wrong.
pub(super) type Measured = Result<String, Box<dyn Error>>;

/// What the checks work with.
pub(super) struct Demo<'a> {
    pub(super) network: &'a Network,
    pub(super) daemon: &'a Daemon<'a>,
    pub(super) progress: &'a Progress,
    /// How long each bulk transfer shall take.
    pub(super) bulk: Duration,
}

/// Time for one answer.
const LIMIT: Duration = Duration::from_secs(3);

/// One line of the table.
pub(super) struct Check<'a> {
    /// The part of the table that it belongs to.
    pub(super) group: &'static str,
    /// What is tried, in a few words.
    pub(super) what: String,
    pub(super) family: Option<Family>,
    run: Box<dyn Fn() -> Measured + 'a>,
}

impl<'a> Check<'a> {
    fn new(
        group: &'static str,
        what: impl Into<String>,
        family: impl Into<Option<Family>>,
        run: impl Fn() -> Measured + 'a,
    ) -> Self {
        Self {
            group,
            what: what.into(),
            family: family.into(),
            run: Box::new(run),
        }
    }

    /// For the progress line.
    pub(super) fn name(&self) -> String {
        let family = self.family.map(|family| format!(", {family}"));
        format!(
            "{}: {}{}",
            self.group,
            self.what,
            family.unwrap_or_default()
        )
    }

    pub(super) fn run(&self) -> Measured {
        (self.run)()
    }
}

/// All checks but [`ending`], in order.
pub(super) fn all<'a>(demo: &'a Demo<'a>) -> Vec<Check<'a>> {
    let mut checks = Vec::new();
    checks.extend(handover::checks(demo));
    checks.extend(ping::checks(demo));
    checks.extend(talk::checks(demo));
    checks.extend(service::checks(demo));
    checks.extend(siblings::checks(demo));
    checks.extend(refusal::checks(demo));
    checks.extend(registration::checks(demo));
    checks.extend(bulk::checks(demo));
    checks.extend(accounts::checks(demo));
    checks
}

/// Each container with each family.
fn pairs<'a>(demo: &Demo<'a>) -> impl Iterator<Item = (&'a Container, Family)> {
    let containers = demo.network.containers();
    containers
        .into_iter()
        .flat_map(|container| Family::BOTH.map(|family| (container, family)))
}

/// Fails with `reason` unless `condition` holds.
fn ensure(condition: bool, reason: impl FnOnce() -> String) -> Result<(), Box<dyn Error>> {
    if condition {
        Ok(())
    } else {
        Err(reason().into())
    }
}

/// `0.12 ms`.
fn millis(duration: Duration) -> String {
    format!("{:.2} ms", duration.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_names_its_group_and_family() {
        let check = Check::new("PING", "web → X", Family::V6, || Ok(String::new()));
        assert_eq!(check.name(), "PING: web → X, IPv6");
        let check = Check::new("PORTS", "clash", None, || Ok(String::new()));
        assert_eq!(check.name(), "PORTS: clash");
    }

    #[test]
    fn millis_have_two_digits() {
        assert_eq!(millis(Duration::from_micros(1234)), "1.23 ms");
    }
}
