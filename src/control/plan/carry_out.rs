//! Carrying out a plan, and undoing what cannot be carried out to its end.

use core::fmt;
use std::collections::BTreeSet;

use super::{Entity, Group, Phase, State, Step};

/// Does what steps say.
pub trait Executor {
    /// Why a step was refused.
    type Error;

    /// Carries out steps of one phase, in this order, or at the same time where they touch nothing
    /// in common. A step that fails has changed nothing. Returns a result for each, in their order.
    fn carry_out(&mut self, phase: Phase, steps: &[&Step]) -> Vec<Result<(), Self::Error>>;
}

/// Why a group was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause<E> {
    /// A step of its own failed.
    Step(E),
    /// It needs something of this entity, which was refused.
    Needs(Entity),
}

impl<E: fmt::Display> fmt::Display for Cause<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Step(error) => error.fmt(f),
            Self::Needs(entity) => write!(f, "it needs a change of {entity}, which was refused"),
        }
    }
}

/// A group that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure<E> {
    /// Whose step failed.
    pub entity: Entity,
    /// All that stayed as they were for it, `entity` among them.
    pub group: Vec<Entity>,
    /// Why.
    pub cause: Cause<E>,
    /// Steps that could not be undone, and why: what they concern is neither as it was nor as it
    /// is wanted.
    pub not_undone: Vec<(Entity, E)>,
}

/// What became of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome<E> {
    /// Entities that are now as they are wanted.
    pub done: Vec<Entity>,
    /// Groups that are as they were.
    pub failed: Vec<Failure<E>>,
}

/// How far a group has come.
struct Progress<E> {
    group: Group,
    /// Steps that were carried out.
    done: usize,
    failed: Option<(Entity, Cause<E>)>,
    end: End,
    not_undone: Vec<(Entity, E)>,
}

/// What became of a group that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Nothing yet.
    Open,
    /// It is as it was.
    Undone,
    /// Not all of it could be undone, or something that needs it could not.
    Stuck,
}

impl<E> Progress<E> {
    fn new(group: Group) -> Self {
        Self {
            group,
            done: 0,
            failed: None,
            end: End::Open,
            not_undone: Vec::new(),
        }
    }

    /// The next step, if it belongs to this phase.
    fn next(&self, phase: Phase) -> Option<&Step> {
        let (of, step) = self.group.steps.get(self.done)?;
        (*of == phase && self.failed.is_none()).then_some(step)
    }
}

/// Carries out a plan, and records in `state` what was accepted. Steps of one phase are carried out
/// together. A group whose step fails is undone before the next phase begins, and all groups that
/// need it before that.
pub fn carry_out<X: Executor>(
    groups: Vec<Group>,
    state: &mut State,
    executor: &mut X,
) -> Outcome<X::Error> {
    let steps = groups.iter().flat_map(|group| &group.steps);
    let phases: BTreeSet<Phase> = steps.map(|(phase, _)| *phase).collect();
    let mut all: Vec<_> = groups.into_iter().map(Progress::new).collect();
    for phase in phases {
        // One step of a group at a time: the second may need the first.
        while advance(&mut all, phase, state, executor) {
            spread_failures(&mut all);
        }
        undo_failed(&mut all, state, executor);
    }
    outcome(all)
}

/// Carries out the next step of each group that has one in this phase. Returns whether there was
/// any.
fn advance<X: Executor>(
    all: &mut [Progress<X::Error>],
    phase: Phase,
    state: &mut State,
    executor: &mut X,
) -> bool {
    let due = all.iter().enumerate();
    let due = due.filter_map(|(index, progress)| Some((index, progress.next(phase)?)));
    let (indices, steps): (Vec<usize>, Vec<&Step>) = due.unzip();
    if steps.is_empty() {
        return false;
    }
    let results = executor.carry_out(phase, &steps);
    let mut failed = Vec::new();
    for ((index, step), result) in indices.iter().zip(steps).zip(results) {
        match result {
            Ok(()) => state.record(step),
            Err(error) => failed.push((*index, step.entity(), error)),
        }
    }
    for index in indices {
        all[index].done += 1;
    }
    for (index, entity, error) in failed {
        all[index].done -= 1;
        all[index].failed = Some((entity, Cause::Step(error)));
    }
    true
}

/// What needs a group that was refused is refused as well. Groups stand behind those they need.
fn spread_failures<E>(all: &mut [Progress<E>]) {
    for index in 0..all.len() {
        if all[index].failed.is_some() {
            continue;
        }
        let needs = &all[index].group.needs;
        let refused = needs.iter().find_map(|&need| all[need].failed.as_ref());
        let entity = all[index].group.entities.first();
        if let (Some((of, _)), Some(entity)) = (refused, entity) {
            all[index].failed = Some((entity.clone(), Cause::Needs(of.clone())));
        }
    }
}

/// Undoes groups that were refused, those that need others first. What cannot be undone keeps what
/// it needs: the groups behind it stay as they are by then, for another attempt.
fn undo_failed<X: Executor>(all: &mut [Progress<X::Error>], state: &mut State, executor: &mut X) {
    let mut kept = BTreeSet::new();
    for (index, progress) in all.iter_mut().enumerate().rev() {
        if progress.failed.is_some() && progress.end == End::Open {
            let undone = !kept.contains(&index) && undo(progress, state, executor);
            progress.end = if undone { End::Undone } else { End::Stuck };
        }
        if progress.end == End::Stuck {
            kept.extend(progress.group.needs.iter().copied());
        }
    }
}

/// Takes back what was done of a group, last step first. Returns whether all of it could be.
fn undo<X: Executor>(
    progress: &mut Progress<X::Error>,
    state: &mut State,
    executor: &mut X,
) -> bool {
    let done = progress.group.steps.drain(..progress.done).rev();
    for (phase, step) in done {
        let step = step.undo();
        for result in executor.carry_out(phase, &[&step]) {
            match result {
                Ok(()) => state.record(&step),
                Err(error) => progress.not_undone.push((step.entity(), error)),
            }
        }
        if !progress.not_undone.is_empty() {
            return false;
        }
    }
    true
}

fn outcome<E>(all: Vec<Progress<E>>) -> Outcome<E> {
    let mut outcome = Outcome {
        done: Vec::new(),
        failed: Vec::new(),
    };
    for progress in all {
        match progress.failed {
            None => outcome.done.extend(progress.group.entities),
            Some((entity, cause)) => outcome.failed.push(Failure {
                entity,
                group: progress.group.entities,
                cause,
                not_undone: progress.not_undone,
            }),
        }
    }
    outcome
}
