use core::net::Ipv4Addr;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const A: Ipv4Addr = Ipv4Addr::new(239, 0, 0, 1);
const B: Ipv4Addr = Ipv4Addr::new(239, 0, 0, 2);
const SECOND: Duration = Duration::from_secs(1);

/// What was said, with what was to be borrowed.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Spoken {
    Records(Vec<(RecordKind, Ipv4Addr)>),
    Report(Version, Ipv4Addr),
    Leave(Ipv4Addr),
}

use Spoken::{Leave, Records, Report};

impl From<Said<'_, Ipv4Addr>> for Spoken {
    fn from(said: Said<'_, Ipv4Addr>) -> Self {
        match said {
            Said::Records(records) => {
                let record = |it: &Record<Ipv4Addr>| (it.kind, it.group);
                Records(records.iter().map(record).collect())
            }
            Said::Report(version, group) => Report(version, group),
            Said::Leave(group) => Leave(group),
        }
    }
}

struct Lab {
    membership: Membership<Ipv4Addr>,
    now: Instant,
}

impl Lab {
    /// In these groups, on a link that is up, and nothing left to say.
    fn new(groups: &[Ipv4Addr]) -> Self {
        let mut lab = Self {
            membership: Membership::new(3),
            now: Instant::from_millis(1000),
        };
        lab.set(groups);
        lab.membership.start(lab.now);
        lab.hush();
        lab
    }

    fn set(&mut self, groups: &[Ipv4Addr]) {
        self.membership.set_groups(groups, self.now);
    }

    fn poll(&mut self) -> Vec<Spoken> {
        let mut spoken = Vec::new();
        let say = &mut |said: Said<'_, _>| spoken.push(Spoken::from(said));
        self.membership.poll(self.now, say);
        spoken
    }

    fn leave_all(&mut self) -> Vec<Spoken> {
        let mut spoken = Vec::new();
        let say = &mut |said: Said<'_, _>| spoken.push(Spoken::from(said));
        self.membership.leave_all(self.now, say);
        spoken
    }

    /// All that is said as time passes, and when.
    fn all(&mut self) -> Vec<(Duration, Spoken)> {
        let start = self.now;
        let mut all = Vec::new();
        while let Some(at) = self.membership.poll_at() {
            self.now = self.now.max(at);
            let spoken = self.poll();
            let since = self.now.since(start);
            all.extend(spoken.into_iter().map(|spoken| (since, spoken)));
        }
        all
    }

    fn hush(&mut self) {
        self.all();
    }

    fn query(&mut self, version: Version, group: Option<Ipv4Addr>, max_delay: Duration) {
        let query = Query {
            version,
            group,
            max_delay,
            robustness: 2,
            interval: Duration::from_secs(125),
        };
        self.membership.handle(Heard::Query(query), self.now);
    }
}

fn spoken(all: &[(Duration, Spoken)]) -> Vec<Spoken> {
    all.iter().map(|(_, spoken)| spoken.clone()).collect()
}

#[test]
fn joins_and_leaves_are_said_at_once_and_again_within_a_second() {
    let mut lab = Lab::new(&[]);
    lab.set(&[A, B, A]);
    let all = lab.all();
    let joined = Records(vec![(RecordKind::ToExclude, A), (RecordKind::ToExclude, B)]);
    assert_eq!(spoken(&all), [joined.clone(), joined]);
    assert_eq!(all[0].0, Duration::ZERO);
    assert!(all[1].0 < SECOND);
    lab.set(&[B]);
    let left = Records(vec![(RecordKind::ToInclude, A)]);
    assert_eq!(spoken(&lab.all()), [left.clone(), left]);
    assert_eq!(lab.membership.groups().collect::<Vec<_>>(), [B]);
}

#[test]
fn who_comes_back_says_only_that() {
    let mut lab = Lab::new(&[A]);
    lab.set(&[]);
    lab.poll();
    lab.set(&[A]);
    let joined = Records(vec![(RecordKind::ToExclude, A)]);
    assert_eq!(spoken(&lab.all()), [joined.clone(), joined]);
}

#[test]
fn a_querier_says_how_often() {
    let mut lab = Lab::new(&[A]);
    let query = Query {
        version: Version::V3,
        group: None,
        max_delay: SECOND,
        robustness: 5,
        interval: Duration::ZERO,
    };
    lab.membership.handle(Heard::Query(query), lab.now);
    lab.hush();
    lab.set(&[A, B]);
    assert_eq!(lab.all().len(), 5);
    let once = Query {
        robustness: 1,
        ..query
    };
    lab.membership.handle(Heard::Query(once), lab.now);
    lab.hush();
    lab.set(&[A]);
    assert_eq!(lab.all().len(), 2, "once would be lost");
}

#[test]
fn a_general_query_is_answered_once_for_all_groups() {
    let mut lab = Lab::new(&[A, B]);
    for _ in 0..3 {
        lab.query(Version::V3, None, SECOND);
    }
    let all = lab.all();
    let answer = Records(vec![(RecordKind::IsExclude, A), (RecordKind::IsExclude, B)]);
    assert_eq!(spoken(&all), [answer]);
    assert!(all[0].0 < SECOND);
}

#[test]
fn a_query_for_one_group_is_answered_for_that() {
    let mut lab = Lab::new(&[A, B]);
    lab.query(Version::V3, Some(B), SECOND);
    assert_eq!(
        spoken(&lab.all()),
        [Records(vec![(RecordKind::IsExclude, B)])]
    );
    lab.query(Version::V3, Some(Ipv4Addr::new(239, 0, 0, 9)), SECOND);
    assert_eq!(lab.all(), []);
}

#[test]
fn an_answer_comes_in_time_though_a_later_one_was_planned() {
    for _ in 0..20 {
        let mut lab = Lab::new(&[A]);
        lab.query(Version::V3, Some(A), Duration::from_secs(1000));
        lab.query(Version::V3, Some(A), SECOND);
        let all = lab.all();
        assert!(all.len() == 1 && all[0].0 < SECOND, "{all:?}");
    }
}

#[test]
fn answers_are_spread_and_no_flood_gets_more_than_some_hundreds_a_second() {
    let mut lab = Lab::new(&[A]);
    let (start, mut answers) = (lab.now, 0);
    while lab.now.since(start) < SECOND {
        lab.query(Version::V3, None, Duration::ZERO);
        answers += lab.poll().len();
        lab.now = lab.now + Duration::from_micros(10);
    }
    assert!((100..400).contains(&answers), "{answers}");
}

#[test]
fn an_older_querier_is_spoken_to_in_its_version() {
    for (version, leaves) in [(Version::V1, false), (Version::V2, true)] {
        let mut lab = Lab::new(&[A]);
        lab.query(version, None, SECOND);
        assert_eq!(spoken(&lab.all()), [Report(version, A)]);
        lab.set(&[A, B]);
        let all = lab.all();
        assert_eq!(spoken(&all), [Report(version, B), Report(version, B)]);
        assert_eq!(all[0].0, Duration::ZERO);
        assert!(all[1].0 < Duration::from_secs(10));
        lab.set(&[A]);
        let said = if leaves { vec![Leave(B)] } else { vec![] };
        assert_eq!(spoken(&lab.all()), said);
        // A query of the third version changes nothing of that.
        lab.query(Version::V3, None, SECOND);
        assert_eq!(spoken(&lab.all()), [Report(version, A)]);
    }
}

#[test]
fn the_older_version_ends_when_its_querier_was_not_heard_for_long() {
    let mut lab = Lab::new(&[A]);
    lab.query(Version::V2, None, SECOND);
    lab.hush();
    let heard = lab.now;
    // RFC 9776 §8.12: 2 × 125 s, and the time to answer.
    lab.now = heard + Duration::from_millis(249_000);
    lab.query(Version::V3, None, SECOND);
    assert_eq!(spoken(&lab.all()), [Report(Version::V2, A)]);
    lab.now = heard + Duration::from_secs(252);
    lab.query(Version::V3, None, SECOND);
    assert_eq!(
        spoken(&lab.all()),
        [Records(vec![(RecordKind::IsExclude, A)])]
    );
}

#[test]
fn a_join_just_before_an_older_querier_comes_is_said_in_its_version() {
    let mut lab = Lab::new(&[A]);
    lab.set(&[A, B]);
    lab.query(Version::V2, Some(A), SECOND);
    let said = spoken(&lab.all());
    assert!(said.contains(&Report(Version::V2, B)), "{said:?}");
}

#[test]
fn a_report_of_another_is_enough_for_an_older_querier() {
    let mut lab = Lab::new(&[A, B]);
    lab.query(Version::V2, None, SECOND);
    lab.membership.handle(Heard::Report(A), lab.now);
    assert_eq!(spoken(&lab.all()), [Report(Version::V2, B)]);
    lab.set(&[]);
    assert_eq!(spoken(&lab.all()), [Leave(B)], "of A another has said last");
    let mut lab = Lab::new(&[A]);
    lab.query(Version::V3, None, SECOND);
    lab.membership.handle(Heard::Report(A), lab.now);
    assert_eq!(lab.all().len(), 1, "not in the third version");
}

#[test]
fn a_link_that_comes_back_hears_all_anew() {
    let mut lab = Lab::new(&[A]);
    lab.query(Version::V1, None, SECOND);
    lab.membership.stop();
    assert_eq!(lab.membership.poll_at(), None);
    lab.set(&[B]);
    lab.query(Version::V3, None, SECOND);
    assert_eq!(lab.all(), [], "the link is down");
    lab.membership.start(lab.now);
    let joined = Records(vec![(RecordKind::ToExclude, B)]);
    assert_eq!(spoken(&lab.all()), [joined.clone(), joined]);
}

#[derive(Clone, Debug)]
enum Event {
    Set(Vec<u8>),
    Query(Version, Option<u8>, u16),
    Report(u8),
    Link(bool),
    Wait(u32),
}

fn events() -> impl Strategy<Value = Event> {
    let version = prop::sample::select(vec![Version::V1, Version::V2, Version::V3]);
    let group = 0_u8..5;
    prop_oneof![
        vec(group.clone(), 0..5).prop_map(Event::Set),
        (version, prop::option::of(group.clone()), any::<u16>())
            .prop_map(|(version, group, delay)| Event::Query(version, group, delay)),
        group.prop_map(Event::Report),
        any::<bool>().prop_map(Event::Link),
        (0_u32..400_000).prop_map(Event::Wait),
    ]
}

fn group(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(239, 0, 1, number)
}

proptest! {
    /// Whatever comes: only groups that we are in are said to be, and others to be left; what is due
    /// is said, so that the next time lies ahead; and after a change all ends.
    #[test]
    fn nothing_false_is_said_and_it_ends(events in vec(events(), 0..60)) {
        let mut lab = Lab::new(&[]);
        let mut wanted: Vec<Ipv4Addr> = Vec::new();
        for event in events {
            match event {
                Event::Set(groups) => {
                    wanted = groups.into_iter().map(group).collect();
                    lab.set(&wanted);
                }
                Event::Query(version, asked, delay) => {
                    lab.query(version, asked.map(group), Duration::from_millis(delay.into()));
                }
                Event::Report(number) => lab.membership.handle(Heard::Report(group(number)), lab.now),
                Event::Link(true) => lab.membership.start(lab.now),
                Event::Link(false) => lab.membership.stop(),
                Event::Wait(millis) => lab.now = lab.now + Duration::from_millis(millis.into()),
            }
            for spoken in lab.poll() {
                let (member, left): (Vec<_>, Vec<_>) = match spoken {
                    Records(records) => {
                        prop_assert!(!records.is_empty());
                        let (left, member): (Vec<_>, Vec<_>) = records
                            .into_iter()
                            .partition(|(kind, _)| *kind == RecordKind::ToInclude);
                        let groups = |of: Vec<(RecordKind, Ipv4Addr)>| of.into_iter().map(|it| it.1).collect();
                        (groups(member), groups(left))
                    }
                    Report(_, group) => (vec![group], vec![]),
                    Leave(group) => (vec![], vec![group]),
                };
                prop_assert!(member.iter().all(|group| wanted.contains(group)));
                prop_assert!(left.iter().all(|group| !wanted.contains(group)));
            }
            prop_assert!(lab.membership.poll_at().is_none_or(|at| at > lab.now));
        }
        prop_assert!(lab.all().len() < 200);
    }
}

#[test]
fn all_groups_are_left_at_once_and_those_left_before_once_more() {
    let left = |groups: &[Ipv4Addr]| {
        let record = |&group: &Ipv4Addr| (RecordKind::ToInclude, group);
        vec![Records(groups.iter().map(record).collect())]
    };
    let mut lab = Lab::new(&[A, B]);
    lab.set(&[B]);
    assert_eq!(lab.poll(), left(&[A]));
    assert_eq!(lab.leave_all(), left(&[A, B]));
    assert_eq!(lab.leave_all(), [], "nobody is there any more");
    assert_eq!(lab.all(), []);
    lab.membership.start(lab.now);
    let again = Records(vec![(RecordKind::ToExclude, B)]);
    assert_eq!(spoken(&lab.all()), [again.clone(), again]);
}

#[test]
fn in_the_older_versions_what_was_reported_is_left() {
    let mut lab = Lab::new(&[A, B]);
    lab.query(Version::V2, None, SECOND);
    lab.hush();
    lab.membership.handle(Heard::Report(A), lab.now);
    assert_eq!(lab.leave_all(), [Leave(B)], "somebody else is in A");
    let mut lab = Lab::new(&[A, B]);
    lab.query(Version::V1, None, SECOND);
    lab.hush();
    assert_eq!(lab.leave_all(), []);
}

#[test]
fn what_was_reported_before_an_older_querier_came_is_left_in_its_version() {
    let mut lab = Lab::new(&[A, B]);
    lab.query(Version::V2, Some(B), SECOND);
    lab.hush();
    lab.set(&[]);
    assert_eq!(spoken(&lab.all()), [Leave(A), Leave(B)]);
}
