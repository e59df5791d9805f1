//! What is wanted and not in place: what it waits for, or why it was refused, and since when.
//!
//! What waits is tried whenever the kernel tells that it may be there. What was refused stays as it
//! is, so that a live container is not detached again and again for a change that cannot be: it is
//! tried again when something about it changes, or when somebody asks for a reload. Attempts that
//! fail one after the other are spaced out.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use crate::control::plan::Entity;

/// How long the second attempt waits for; each further one twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest time between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Why something is not in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    /// It is not there yet, or not any more.
    Waiting(String),
    /// It cannot be as it is wanted, as is known before anything is tried. It is looked at again
    /// each time.
    Unfit(String),
    /// It was tried, and refused.
    Refused(String),
}

impl Condition {
    pub(super) fn reason(&self) -> &str {
        match self {
            Self::Waiting(reason) | Self::Unfit(reason) | Self::Refused(reason) => reason,
        }
    }
}

/// The standing of one entity.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) condition: Condition,
    pub(super) since: SystemTime,
    /// It stays as it is until something changes.
    held: bool,
    /// Attempts that failed, one after the other.
    failures: u32,
    /// Something has changed, and it may be tried then.
    retry_at: Option<Instant>,
    /// The last attempt.
    tried_at: Instant,
    /// All that were refused together, which are worth another attempt together; none for itself.
    group: Vec<Entity>,
}

/// Everything that is not as it is wanted.
#[derive(Clone, Debug, Default)]
pub(super) struct Standing {
    entries: BTreeMap<Entity, Entry>,
}

impl Standing {
    pub(super) fn of(&self, entity: &Entity) -> Option<&Entry> {
        self.entries.get(entity)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Entity, &Entry)> {
        self.entries.iter()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Entities that are to stay as they are.
    pub(super) fn held(&self) -> Vec<Entity> {
        let held = self.entries.iter().filter(|(_, entry)| entry.held);
        held.map(|(entity, _)| entity.clone()).collect()
    }

    /// Notes that `entity` is not in place. Returns whether that, or its reason, is new.
    pub(super) fn note(&mut self, entity: Entity, condition: Condition, now: Instant) -> bool {
        let refused = matches!(condition, Condition::Refused(_));
        let known = self.entries.get(&entity);
        let is_new = known.is_none_or(|entry| entry.condition != condition);
        let failures = known.map_or(0, |entry| entry.failures);
        let entry = Entry {
            since: match known {
                Some(entry) if !is_new => entry.since,
                _ => SystemTime::now(),
            },
            condition,
            held: refused,
            failures: if refused { failures + 1 } else { 0 },
            retry_at: None,
            tried_at: now,
            group: Vec::new(),
        };
        self.entries.insert(entity, entry);
        is_new
    }

    /// Notes that these were refused together: one of them alone cannot be as it is wanted.
    pub(super) fn bind(&mut self, group: &[Entity]) {
        for entity in group {
            if let Some(entry) = self.entries.get_mut(entity) {
                entry.group = group.to_vec();
            }
        }
    }

    /// What was refused together with `entity`, itself included.
    pub(super) fn group_of(&self, entity: &Entity) -> Vec<Entity> {
        let group = self.entries.get(entity).map(|entry| entry.group.clone());
        let group = group.filter(|group| !group.is_empty());
        group.unwrap_or_else(|| vec![entity.clone()])
    }

    /// Notes that `entity` is as it is wanted. Returns what it waited for.
    pub(super) fn clear(&mut self, entity: &Entity) -> Option<Entry> {
        self.entries.remove(entity)
    }

    /// Something about `entity` has changed: it is worth another attempt, now or after a pause.
    pub(super) fn release(&mut self, entity: &Entity, now: Instant) {
        let Some(entry) = self.entries.get_mut(entity).filter(|entry| entry.held) else {
            return;
        };
        let at = entry.tried_at + pause(entry.failures);
        if at <= now {
            entry.held = false;
            entry.retry_at = None;
        } else {
            entry.retry_at = Some(at);
        }
    }

    /// Somebody asks for another attempt, at once.
    pub(super) fn release_now(&mut self, entity: &Entity) {
        if let Some(entry) = self.entries.get_mut(entity) {
            (entry.held, entry.failures, entry.retry_at) = (false, 0, None);
        }
    }

    /// Somebody asks for another attempt of everything.
    pub(super) fn release_all(&mut self) {
        for entry in self.entries.values_mut() {
            (entry.held, entry.failures, entry.retry_at) = (false, 0, None);
        }
    }

    /// Releases what has paused long enough. Returns whether there was any.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> bool {
        let due = |entry: &&Entry| entry.retry_at.is_some_and(|at| at <= now);
        let entries = self.entries.iter().filter(|(_, entry)| due(entry));
        let due: Vec<Entity> = entries.map(|(entity, _)| entity.clone()).collect();
        let groups = due.iter().flat_map(|entity| self.group_of(entity));
        let groups: Vec<_> = groups.collect();
        for entity in groups {
            if let Some(entry) = self.entries.get_mut(&entity) {
                (entry.held, entry.retry_at) = (false, None);
            }
        }
        !due.is_empty()
    }

    /// When [`Self::handle_timeout`] has something to do next.
    pub(super) fn poll_at(&self) -> Option<Instant> {
        let pauses = self.entries.values().filter_map(|entry| entry.retry_at);
        pauses.min()
    }

    /// Forgets what is wanted no more.
    pub(super) fn retain(&mut self, wanted: impl Fn(&Entity) -> bool) {
        self.entries.retain(|entity, _| wanted(entity));
    }
}

/// The pause behind so many failures.
fn pause(failures: u32) -> Duration {
    match failures {
        0 | 1 => Duration::ZERO,
        more => FIRST_PAUSE
            .saturating_mul(1 << (more - 2).min(16))
            .min(LONGEST_PAUSE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn web() -> Entity {
        Entity::Container("web".parse().unwrap())
    }

    fn refused() -> Condition {
        Condition::Refused("no".to_owned())
    }

    #[test]
    fn what_was_refused_is_tried_when_something_changes_and_ever_more_rarely() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut standing = Standing::default();
        assert!(standing.note(web(), refused(), start));
        assert_eq!(standing.held(), [web()]);
        standing.release(&web(), start);
        assert_eq!(
            standing.held(),
            [],
            "the first change leads to an attempt at once"
        );
        assert!(!standing.note(web(), refused(), start), "nothing new");
        standing.release(&web(), at(1));
        assert_eq!(standing.held(), [web()]);
        assert_eq!(standing.poll_at(), Some(at(100)));
        assert!(!standing.handle_timeout(at(99)));
        assert!(standing.handle_timeout(at(100)));
        assert_eq!((standing.held(), standing.poll_at()), (vec![], None));
        standing.note(web(), refused(), at(100));
        standing.release(&web(), at(150));
        assert_eq!(standing.poll_at(), Some(at(300)));
        standing.release_all();
        assert_eq!((standing.held(), standing.poll_at()), (vec![], None));
        assert!(standing.clear(&web()).is_some());
        assert!(standing.is_empty());
    }

    #[test]
    fn what_waits_is_always_tried() {
        let now = Instant::now();
        let mut standing = Standing::default();
        standing.note(web(), Condition::Waiting("/run/netns/web".to_owned()), now);
        assert_eq!(standing.held(), []);
        assert_eq!(
            standing.of(&web()).unwrap().condition.reason(),
            "/run/netns/web"
        );
        standing.retain(|_| false);
        assert!(standing.is_empty());
    }

    #[test]
    fn what_is_unfit_is_no_attempt_that_failed() {
        let now = Instant::now();
        let mut standing = Standing::default();
        standing.note(web(), refused(), now);
        standing.note(web(), Condition::Unfit("no".to_owned()), now);
        assert_eq!((standing.held(), standing.poll_at()), (vec![], None));
        assert!(!standing.note(web(), Condition::Unfit("no".to_owned()), now));
    }

    #[test]
    fn pauses_end_at_the_longest() {
        assert_eq!(pause(1), Duration::ZERO);
        assert_eq!(pause(3), Duration::from_millis(200));
        assert_eq!(pause(u32::MAX), LONGEST_PAUSE);
    }

    #[test]
    fn what_was_refused_together_is_tried_together() {
        let start = Instant::now();
        let uplink = Entity::Uplink("up0".parse().unwrap());
        let mut standing = Standing::default();
        for _ in 0..2 {
            standing.note(web(), refused(), start);
        }
        standing.note(uplink.clone(), refused(), start);
        let group = [web(), uplink.clone()];
        standing.bind(&group);
        assert_eq!(standing.group_of(&uplink), group);
        standing.release(&web(), start);
        assert_eq!(standing.held().len(), 2);
        assert!(standing.handle_timeout(start + FIRST_PAUSE));
        assert_eq!(standing.held(), []);
        standing.note(web(), refused(), start);
        assert_eq!(standing.group_of(&web()), [web()]);
    }
}
