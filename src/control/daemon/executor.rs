//! Steps of a plan, carried out on what is attached and open.
//!
//! Each step is one call that returns when the kernel and the NOS have accepted it, or with the
//! reason why not; then it has changed nothing. Steps that wait for the kernel are carried out
//! together where many come at once: containers that go, captures that end, and claims.

use crate::control::config::Name;
use crate::control::plan::{Change, Entity, Executor, Phase, Step};

use super::containers::ClaimChanges;
use super::live::{Live, StepError};

impl Live {
    fn carry_out_one(&mut self, step: &Step) -> Result<(), StepError> {
        match step {
            Step::Link(name, change) => self.change_link(name, change),
            Step::Device(name, change) => self.change_device(name, change),
            Step::Capture(of, change) => self.change_capture(of, change),
            Step::Networks(changes) => self.change_networks(changes),
            Step::Claims(changes) => self.change_claims(changes),
            Step::Services { vrf, new, .. } => self.set_services(vrf, new),
        }
    }
}

impl Executor for Live {
    type Error = StepError;

    fn carry_out(&mut self, _: Phase, steps: &[&Step]) -> Vec<Result<(), StepError>> {
        if let Some(leaving) = all_leaving(steps) {
            return self.detach(&leaving);
        }
        if let Some(ending) = all_ending(steps) {
            self.end_captures(&ending);
            return steps.iter().map(|_| Ok(())).collect();
        }
        if let Some(claims) = all_claims(steps)
            && claims.len() > 1
            && self.change_claims(&claims.concat()).is_ok()
        {
            return steps.iter().map(|_| Ok(())).collect();
        }
        // One by one, to tell which of them is refused.
        let one_by_one = steps.iter().map(|step| self.carry_out_one(step));
        one_by_one.collect()
    }
}

/// The containers, if all steps are of containers that go.
fn all_leaving(steps: &[&Step]) -> Option<Vec<Name>> {
    let leaving = |step: &&Step| match step {
        Step::Link(name, change) if change.old.is_some() && change.new.is_none() => {
            Some(name.clone())
        }
        _ => None,
    };
    steps.iter().map(leaving).collect()
}

/// Whose captures, if all steps are of captures that end.
fn all_ending<'a>(steps: &[&'a Step]) -> Option<Vec<&'a Entity>> {
    let ending = |step: &&'a Step| match step {
        Step::Capture(
            of,
            Change {
                old: Some(_),
                new: None,
            },
        ) => Some(of),
        _ => None,
    };
    steps.iter().map(ending).collect()
}

/// The claims, if all steps change some.
fn all_claims(steps: &[&Step]) -> Option<Vec<ClaimChanges>> {
    let claims = |step: &&Step| match step {
        Step::Claims(changes) => Some(changes.clone()),
        _ => None,
    };
    steps.iter().map(claims).collect()
}
