//! The groups of one family on one link, and when to say what of them.

#[cfg(test)]
mod tests;

use super::{Group, Heard, Query, Version};
use crate::time::{Duration, Instant};

/// How often a change is said, until a querier says otherwise (RFC 9776 §8.1, RFC 9777 §9.1). One
/// that asks for less is not obeyed, as on Linux.
const ROBUSTNESS: u8 = 2;
/// Between two queries, until a querier says otherwise (RFC 9776 §8.2, RFC 9777 §9.2).
const QUERY_INTERVAL: Duration = Duration::from_secs(125);
/// In which a change is repeated (RFC 9776 §8.11, RFC 9777 §9.11).
const UNSOLICITED_V3: Duration = Duration::from_secs(1);
/// The same in the older versions (RFC 2236 §8.10, RFC 2710 §7.10).
const UNSOLICITED_V2: Duration = Duration::from_secs(10);
/// In which a query of the first version is answered (RFC 1112 appendix I, RFC 9776 §8.3).
const RESPONSE_V1: Duration = Duration::from_secs(10);
/// The least time in which a query is answered. A flood of queries that want an answer at once gets
/// some two hundred a second.
const LEAST_DELAY: Duration = Duration::from_millis(10);

/// What a record says of its group (RFC 9776 §4.2.12, RFC 9777 §5.2.12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RecordKind {
    /// `MODE_IS_EXCLUDE`: we are in it.
    IsExclude = 2,
    /// `CHANGE_TO_INCLUDE_MODE`: we have left it.
    ToInclude = 3,
    /// `CHANGE_TO_EXCLUDE_MODE`: we have joined it.
    ToExclude = 4,
}

/// What there is to say of one group. No sources are named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<G> {
    /// What it says.
    pub kind: RecordKind,
    /// Of which group.
    pub group: G,
}

/// A message to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said<'a, G> {
    /// A report of [`Version::V3`]; more than one if not all records find room in one.
    Records(&'a [Record<G>]),
    /// A report of one of the older versions: we are in this group.
    Report(Version, G),
    /// We have left this group; in [`Version::V2`] only.
    Leave(G),
}

/// A group that we are in.
#[derive(Clone, Copy, Debug)]
struct Joined<G> {
    group: G,
    /// How often it is still to be said, unasked.
    unsolicited: u8,
    /// When it is to be said next, if not with others.
    at: Option<Instant>,
    /// Nobody else has said it since we did, as far as that counts: in the older versions.
    last_reporter: bool,
}

impl<G> Joined<G> {
    /// Nothing is to be said of it. Returns whether there was anything unasked.
    fn cancel(&mut self) -> bool {
        self.at = None;
        core::mem::take(&mut self.unsolicited) > 0
    }
}

/// A group that we have left, which is still to be said so often.
#[derive(Clone, Copy, Debug)]
struct Departed<G> {
    group: G,
    unsolicited: u8,
}

/// See the [module](super).
#[derive(Debug)]
pub struct Membership<G> {
    groups: Vec<Joined<G>>,
    departed: Vec<Departed<G>>,
    up: bool,
    version: Version,
    /// Until when queriers of [`Version::V1`] and [`Version::V2`] count as present.
    present: [Option<Instant>; 2],
    robustness: u8,
    interval: Duration,
    /// When changes are said: all that are not said often enough.
    changes_at: Option<Instant>,
    /// When a query for all groups is answered.
    general_at: Option<Instant>,
    random: fastrand::Rng,
    /// Empty between calls; keeps its memory.
    records: Vec<Record<G>>,
}

impl<G: Group> Membership<G> {
    /// In no group, on a link that is down. `seed` decides when things are said.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            groups: Vec::new(),
            departed: Vec::new(),
            up: false,
            version: Version::V3,
            present: [None; 2],
            robustness: ROBUSTNESS,
            interval: QUERY_INTERVAL,
            changes_at: None,
            general_at: None,
            random: fastrand::Rng::with_seed(seed),
            records: Vec::new(),
        }
    }

    /// The groups that others are told of.
    pub fn groups(&self) -> impl Iterator<Item = G> + '_ {
        self.groups.iter().map(|joined| joined.group)
    }

    /// Makes `wanted` all groups that we are in. Repetitions do no harm.
    pub fn set_groups(&mut self, wanted: &[G], now: Instant) {
        self.follow_version(now);
        let gone = |joined: &Joined<G>| !wanted.contains(&joined.group);
        let left: Vec<_> = self.groups.extract_if(.., |it| gone(it)).collect();
        for joined in left {
            self.leave(joined, now);
        }
        for &group in wanted.iter().filter(|group| group.is_reported()) {
            if self.groups().all(|known| known != group) {
                self.join(group, now);
            }
        }
    }

    fn join(&mut self, group: G, now: Instant) {
        self.departed.retain(|departed| departed.group != group);
        self.groups.push(Joined {
            group,
            unsolicited: 0,
            at: None,
            last_reporter: false,
        });
        if let Some(at) = self.groups.len().checked_sub(1) {
            self.announce(at, now);
        }
    }

    /// Has it said that we are in a group, as often as is needed.
    fn announce(&mut self, at: usize, now: Instant) {
        let Some(joined) = self.groups.get_mut(at).filter(|_| self.up) else {
            return;
        };
        joined.unsolicited = self.robustness;
        if self.version == Version::V3 {
            joined.at = None;
            self.changes_at = Some(now);
        } else {
            joined.at = Some(now);
        }
    }

    fn leave(&mut self, joined: Joined<G>, now: Instant) {
        let told = match self.version {
            Version::V3 => self.robustness,
            Version::V2 => joined.last_reporter.into(),
            Version::V1 => 0,
        };
        if self.up && told > 0 {
            self.departed.push(Departed {
                group: joined.group,
                unsolicited: told,
            });
            self.changes_at = Some(now);
        }
    }

    /// The link has come up, or we have a new name on it: all groups are said anew, to whoever is
    /// there now.
    pub fn start(&mut self, now: Instant) {
        self.stop();
        self.up = true;
        for at in 0..self.groups.len() {
            self.announce(at, now);
        }
    }

    /// The link has gone down. Nothing is said until it comes up, and who is the querier then is not
    /// known.
    pub fn stop(&mut self) {
        self.up = false;
        self.present = [None; 2];
        self.version = Version::V3;
        self.robustness = ROBUSTNESS;
        self.interval = QUERY_INTERVAL;
        self.cancel();
    }

    /// Says that we leave all groups, on a link that is about to go down, and that we have left those
    /// of which not enough was said. They are joined again when it [comes up](Self::start).
    pub fn leave_all(&mut self, now: Instant, say: &mut impl FnMut(Said<'_, G>)) {
        self.follow_version(now);
        if !self.up {
            return;
        }
        let departed = self.departed.iter().map(|departed| departed.group);
        let last = |joined: &&Joined<G>| joined.last_reporter;
        match self.version {
            Version::V3 => {
                let all = departed.chain(self.groups.iter().map(|joined| joined.group));
                self.records.extend(all.map(|group| Record {
                    kind: RecordKind::ToInclude,
                    group,
                }));
                self.say_records(say);
            }
            Version::V2 => {
                let said = self.groups.iter().filter(last).map(|joined| joined.group);
                departed
                    .chain(said)
                    .for_each(|group| say(Said::Leave(group)));
            }
            Version::V1 => {}
        }
        self.stop();
    }

    /// Nothing is to be said.
    fn cancel(&mut self) {
        self.departed.clear();
        self.changes_at = None;
        self.general_at = None;
        for joined in &mut self.groups {
            joined.cancel();
        }
    }

    /// Notices that an older querier has come or gone. What was to be said is cancelled
    /// (RFC 9776 §7.2.1, RFC 9777 §8.2.1), but joins that were not said often enough.
    fn follow_version(&mut self, now: Instant) {
        let is_present = |until: &Option<Instant>| until.is_some_and(|until| until > now);
        let version = match self.present.each_ref().map(is_present) {
            [true, _] => Version::V1,
            [_, true] => Version::V2,
            _ => Version::V3,
        };
        if version == self.version {
            return;
        }
        self.version = version;
        self.departed.clear();
        self.changes_at = None;
        self.general_at = None;
        for at in 0..self.groups.len() {
            if self.groups.get_mut(at).is_some_and(Joined::cancel) {
                self.announce(at, now);
            }
        }
    }

    /// Takes what somebody else has said.
    pub fn handle(&mut self, heard: Heard<G>, now: Instant) {
        if !self.up {
            return;
        }
        match heard {
            Heard::Query(query) => self.handle_query(query, now),
            Heard::Report(group) => self.handle_report(group, now),
            Heard::Nothing => {}
        }
    }

    fn handle_query(&mut self, query: Query<G>, now: Instant) {
        let Query {
            version,
            group,
            max_delay,
            robustness,
            interval,
        } = query;
        self.note_querier(version, max_delay, now);
        self.follow_version(now);
        let mut group = group;
        let mut max_delay = max_delay.max(LEAST_DELAY);
        match self.version {
            Version::V3 => {
                self.robustness = robustness.max(ROBUSTNESS);
                self.interval = if interval.is_zero() {
                    QUERY_INTERVAL
                } else {
                    interval
                };
            }
            Version::V2 => {}
            // Such a host knows neither queries for one group nor other times, and its querier means
            // neither. As on Linux.
            Version::V1 => (group, max_delay) = (None, RESPONSE_V1),
        }
        match group {
            None if self.version == Version::V3 => {
                let new = now + self.some_time(max_delay);
                self.general_at = Some(in_time(self.general_at, now, max_delay).unwrap_or(new));
            }
            None => (0..self.groups.len()).for_each(|at| self.ask(at, max_delay, now)),
            Some(group) => {
                let asked = self.groups().position(|known| known == group);
                if let Some(at) = asked {
                    self.ask(at, max_delay, now);
                }
            }
        }
    }

    /// Older Version Querier Present Timeout (RFC 9776 §8.12, RFC 9777 §9.12).
    fn note_querier(&mut self, version: Version, max_delay: Duration, now: Instant) {
        let present = match version {
            Version::V1 => &mut self.present[0],
            Version::V2 => &mut self.present[1],
            Version::V3 => return,
        };
        *present = Some(now + self.interval * u32::from(self.robustness) + max_delay);
    }

    /// A group is asked for: it is said within `max_delay`, if it is not already to be.
    fn ask(&mut self, at: usize, max_delay: Duration, now: Instant) {
        let new = now + self.some_time(max_delay);
        if let Some(joined) = self.groups.get_mut(at) {
            joined.at = Some(in_time(joined.at, now, max_delay).unwrap_or(new));
        }
    }

    /// One report is enough for a router of the older versions (RFC 2236 §3, RFC 2710 §4).
    fn handle_report(&mut self, group: G, now: Instant) {
        self.follow_version(now);
        let known = self.groups.iter_mut().find(|known| known.group == group);
        if let Some(joined) = known.filter(|_| self.version < Version::V3) {
            joined.at = None;
            joined.unsolicited = 0;
            joined.last_reporter = false;
        }
    }

    /// At random, and less than `max` (which is not zero).
    fn some_time(&mut self, max: Duration) -> Duration {
        let nanos = u64::try_from(max.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(self.random.u64(0..nanos.max(1)))
    }

    /// When there is something to say.
    #[must_use]
    pub fn poll_at(&self) -> Option<Instant> {
        let groups = self.groups.iter().filter_map(|joined| joined.at);
        groups.chain(self.changes_at).chain(self.general_at).min()
    }

    /// Says all that is due.
    pub fn poll(&mut self, now: Instant, say: &mut impl FnMut(Said<'_, G>)) {
        self.follow_version(now);
        if self.version == Version::V3 {
            self.poll_changes(now, say);
            self.poll_answers(now, say);
        } else {
            self.poll_departed(now, say);
            self.poll_reports(now, say);
        }
    }

    fn poll_changes(&mut self, now: Instant, say: &mut impl FnMut(Said<'_, G>)) {
        if !is_due(self.changes_at, now) {
            return;
        }
        for departed in &mut self.departed {
            departed.unsolicited -= 1;
            self.records.push(Record {
                kind: RecordKind::ToInclude,
                group: departed.group,
            });
        }
        for joined in self.groups.iter_mut().filter(|it| it.unsolicited > 0) {
            joined.unsolicited -= 1;
            joined.last_reporter = true;
            self.records.push(Record {
                kind: RecordKind::ToExclude,
                group: joined.group,
            });
        }
        self.say_records(say);
        self.departed.retain(|departed| departed.unsolicited > 0);
        let more = !self.departed.is_empty() || self.groups.iter().any(|it| it.unsolicited > 0);
        self.changes_at = more.then(|| now + self.some_time(UNSOLICITED_V3));
    }

    fn poll_answers(&mut self, now: Instant, say: &mut impl FnMut(Said<'_, G>)) {
        let all = is_due(self.general_at, now);
        if all {
            self.general_at = None;
        }
        for joined in &mut self.groups {
            if all || is_due(joined.at, now) {
                joined.at = None;
                joined.last_reporter = true;
                self.records.push(Record {
                    kind: RecordKind::IsExclude,
                    group: joined.group,
                });
            }
        }
        self.say_records(say);
    }

    fn say_records(&mut self, say: &mut impl FnMut(Said<'_, G>)) {
        if !self.records.is_empty() {
            say(Said::Records(&self.records));
            self.records.clear();
        }
    }

    fn poll_departed(&mut self, now: Instant, say: &mut impl FnMut(Said<'_, G>)) {
        if is_due(self.changes_at, now) {
            self.changes_at = None;
            self.departed
                .drain(..)
                .for_each(|departed| say(Said::Leave(departed.group)));
        }
    }

    fn poll_reports(&mut self, now: Instant, say: &mut impl FnMut(Said<'_, G>)) {
        for at in 0..self.groups.len() {
            let again = self.some_time(UNSOLICITED_V2);
            let version = self.version;
            let due = |joined: &&mut Joined<G>| is_due(joined.at, now);
            if let Some(joined) = self.groups.get_mut(at).filter(due) {
                joined.unsolicited = joined.unsolicited.saturating_sub(1);
                joined.at = (joined.unsolicited > 0).then(|| now + again);
                joined.last_reporter = true;
                say(Said::Report(version, joined.group));
            }
        }
    }
}

/// When an answer is to come, if that is soon enough for another question as well. Many questions do
/// not make it come sooner.
fn in_time(pending: Option<Instant>, now: Instant, max_delay: Duration) -> Option<Instant> {
    pending.filter(|at| at.since(now) <= max_delay)
}

fn is_due(at: Option<Instant>, now: Instant) -> bool {
    at.is_some_and(|at| at <= now)
}
