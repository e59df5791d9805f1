//! One neighbor: the state machine of RFC 4861 §7.3.2 and appendix C, for ARP as well.
//!
//! ```text
//!  packet    ┌────────────┐ answered     ┌───────────┐ time passes ┌───────┐
//! ─────────► │ Incomplete ├────────────► │ Reachable ├───────────► │ Stale │ ◄── heard of
//!            └──────┬─────┘              └───────────┘             └───┬───┘     unasked
//!  3 unanswered     │                          ▲ answered              │ packet
//!                   ▼          3 unanswered ┌──┴────┐       5 s    ┌───▼───┐
//!               ┌────────┐ ◄─────────────── │ Probe │ ◄─────────── │ Delay │
//!               │ Failed │                  └───────┘              └───────┘
//!               └────────┘
//! ```

use core::net::{IpAddr, Ipv6Addr};

use super::NeighborState;
use super::parked::Queue;
use crate::ident::MacAddr;
use crate::share::Account;
use crate::time::{Duration, Instant};

/// Between two questions (RetransTimer, RFC 4861 §10).
pub(super) const RETRANSMIT: Duration = Duration::from_secs(1);
/// Questions to all (MAX_MULTICAST_SOLICIT), and to the neighbor alone (MAX_UNICAST_SOLICIT).
pub(super) const TRIES: u8 = 3;
/// From the first packet to a stale neighbor to the first probe (DELAY_FIRST_PROBE_TIME).
pub(super) const DELAY: Duration = Duration::from_secs(5);

const FOREVER: Instant = Instant::from_nanos(u64::MAX);

/// What neighbors are found by: an IPv6 address, or an IPv4 address mapped into IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key(u128);

impl Key {
    /// That of no neighbor.
    pub(super) const NONE: Self = Self(0);

    pub(super) fn bits(self) -> u128 {
        self.0
    }

    pub(super) fn address(self) -> IpAddr {
        IpAddr::V6(Ipv6Addr::from_bits(self.0)).to_canonical()
    }
}

impl From<IpAddr> for Key {
    #[inline]
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self(address.to_ipv6_mapped().to_bits()),
            // A mapped address on the wire is a martian, and not to be taken for IPv4.
            IpAddr::V6(address) if address.to_ipv4_mapped().is_some() => Self::NONE,
            IpAddr::V6(address) => Self(address.to_bits()),
        }
    }
}

/// What somebody says of a neighbor's MAC address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    /// The address, if the message names it.
    pub(super) mac: Option<MacAddr>,
    /// It answers a question of ours, so packets reach the neighbor.
    pub(super) solicited: bool,
    /// It counts more than what is known.
    pub(super) overrides: bool,
}

/// What a packet to a neighbor needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// To be sent.
    Send(MacAddr),
    /// To wait for an answer.
    Wait,
    /// To wait, and the neighbor to be asked for.
    Begin,
}

/// What a neighbor needs whose deadline has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// To be asked for.
    Ask,
    /// Its packets to be given up.
    GiveUp,
}

/// A neighbor.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: Key,
    /// Until then, packets go to `mac` and nothing else is to be done.
    pub(super) good_until: Instant,
    /// Of Incomplete, Delay and Probe.
    pub(super) deadline: Instant,
    /// When it was last heard of; if never, when it was first asked for; when it failed.
    pub(super) since: Instant,
    pub(super) queue: Queue,
    /// Who made us ask for it last.
    pub(super) account: Account,
    /// How many neighbors have had this place before.
    pub(super) generation: u32,
    pub(super) mac: MacAddr,
    /// None: nobody has needed it yet.
    pub(super) state: Option<NeighborState>,
    tries: u8,
}

impl Entry {
    pub(super) fn new(key: Key, generation: u32) -> Self {
        Self {
            key,
            good_until: Instant::ZERO,
            deadline: Instant::ZERO,
            since: Instant::ZERO,
            queue: Queue::EMPTY,
            account: Account::NOS,
            generation,
            mac: MacAddr::ZERO,
            state: None,
            tries: 0,
        }
    }

    /// The state now: Reachable becomes Stale without anybody doing anything.
    pub(super) fn state(&self, now: Instant) -> Option<NeighborState> {
        match self.state {
            Some(NeighborState::Reachable) if now >= self.good_until => Some(NeighborState::Stale),
            state => state,
        }
    }

    /// The MAC address, if there is one that packets may go to.
    pub(super) fn known_mac(&self) -> Option<MacAddr> {
        match self.state? {
            NeighborState::Incomplete | NeighborState::Failed => None,
            _ => Some(self.mac),
        }
    }

    /// A packet is to be sent.
    pub(super) fn on_use(&mut self, now: Instant) -> Use {
        match self.state(now) {
            None | Some(NeighborState::Failed) => Use::Begin,
            Some(NeighborState::Incomplete) => Use::Wait,
            Some(NeighborState::Stale) => {
                self.state = Some(NeighborState::Delay);
                self.good_until = FOREVER;
                self.deadline = now + DELAY;
                Use::Send(self.mac)
            }
            Some(_) => Use::Send(self.mac),
        }
    }

    /// It is asked for, for the first time, as a packet of `account` wants.
    pub(super) fn begin(&mut self, account: Account, now: Instant) {
        self.account = account;
        self.state = Some(NeighborState::Incomplete);
        self.good_until = Instant::ZERO;
        self.since = now;
        self.tries = 0;
        self.ask(now);
    }

    fn ask(&mut self, now: Instant) {
        self.tries += 1;
        self.deadline = now + RETRANSMIT;
    }

    /// The deadline has passed.
    pub(super) fn on_deadline(&mut self, now: Instant) -> Due {
        match self.state {
            Some(NeighborState::Delay) => {
                self.state = Some(NeighborState::Probe);
                self.tries = 0;
            }
            _ if self.tries >= TRIES => {
                self.fail(now);
                return Due::GiveUp;
            }
            _ => {}
        }
        self.ask(now);
        Due::Ask
    }

    fn fail(&mut self, now: Instant) {
        self.state = Some(NeighborState::Failed);
        self.good_until = Instant::ZERO;
        self.since = now;
    }

    /// Somebody advertises it (RFC 4861 §7.2.5). What has failed is not there, for this purpose.
    pub(super) fn on_claim(&mut self, claim: Claim, reachable: Duration, now: Instant) {
        let Some(state) = self.state(now).filter(|&it| it != NeighborState::Failed) else {
            return;
        };
        let first = state == NeighborState::Incomplete;
        if first && claim.mac.is_none() {
            return;
        }
        let mac = claim.mac.unwrap_or(self.mac);
        let changed = first || mac != self.mac;
        if changed && !first && !claim.overrides {
            if state == NeighborState::Reachable {
                self.doubt();
            }
        } else if claim.solicited {
            self.mac = mac;
            self.confirm(reachable, now);
        } else if changed {
            self.learn(mac, now);
        }
    }

    /// It asks us something, and says where it is (RFC 4861 §7.2.3, RFC 826).
    pub(super) fn on_question(&mut self, mac: MacAddr, now: Instant) {
        if self.known_mac() != Some(mac) {
            self.learn(mac, now);
        }
    }

    fn confirm(&mut self, reachable: Duration, now: Instant) {
        self.state = Some(NeighborState::Reachable);
        self.good_until = now + reachable;
        self.since = now;
    }

    fn learn(&mut self, mac: MacAddr, now: Instant) {
        self.mac = mac;
        self.since = now;
        self.doubt();
    }

    fn doubt(&mut self) {
        self.state = Some(NeighborState::Stale);
        self.good_until = Instant::ZERO;
    }
}

#[cfg(test)]
mod tests {
    use super::NeighborState::{Delay, Failed, Incomplete, Probe, Reachable, Stale};
    use super::*;

    const A: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xa]);
    const B: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xb]);
    const NOW: Instant = Instant::from_millis(1_000_000);
    const LATER: Instant = Instant::from_millis(1_000_100);
    const TIME: Duration = Duration::from_secs(30);

    /// A neighbor at `A`, if the state has a MAC address.
    fn in_state(state: NeighborState) -> Entry {
        let mut entry = Entry::new(Key::NONE, 0);
        entry.begin(Account::NOS, NOW);
        let answer = Claim {
            mac: Some(A),
            solicited: state == Reachable,
            overrides: true,
        };
        match state {
            Incomplete => {}
            Failed => while entry.on_deadline(NOW) != Due::GiveUp {},
            _ => entry.on_claim(answer, TIME, NOW),
        }
        if matches!(state, Delay | Probe) {
            entry.on_use(NOW);
        }
        if state == Probe {
            entry.on_deadline(NOW);
        }
        assert_eq!(entry.state(LATER), Some(state));
        entry
    }

    /// RFC 4861 §7.2.5 and appendix C, row by row.
    #[test]
    fn advertisements_change_what_the_rfc_says() {
        let (none, same, other) = (None, Some(A), Some(B));
        let table = [
            // state, option, solicited, override -> state, MAC
            (Incomplete, none, true, true, Incomplete, none),
            (Incomplete, none, false, false, Incomplete, none),
            (Incomplete, other, false, false, Stale, other),
            (Incomplete, other, false, true, Stale, other),
            (Incomplete, other, true, false, Reachable, other),
            (Incomplete, other, true, true, Reachable, other),
            (Reachable, same, true, false, Reachable, same),
            (Reachable, other, true, false, Stale, same),
            (Reachable, other, false, false, Stale, same),
            (Reachable, other, true, true, Reachable, other),
            (Reachable, other, false, true, Stale, other),
            (Reachable, same, false, true, Reachable, same),
            (Reachable, none, true, true, Reachable, same),
            (Reachable, none, false, true, Reachable, same),
            (Stale, same, true, false, Reachable, same),
            (Stale, other, true, false, Stale, same),
            (Stale, other, true, true, Reachable, other),
            (Stale, other, false, true, Stale, other),
            (Stale, same, false, true, Stale, same),
            (Stale, none, true, false, Reachable, same),
            (Delay, same, true, false, Reachable, same),
            (Delay, other, true, false, Delay, same),
            (Delay, other, false, true, Stale, other),
            (Delay, same, false, true, Delay, same),
            (Delay, none, true, true, Reachable, same),
            (Probe, same, true, true, Reachable, same),
            (Probe, other, true, false, Probe, same),
            (Probe, other, true, true, Reachable, other),
            (Probe, other, false, true, Stale, other),
            (Probe, same, false, false, Probe, same),
            (Failed, other, true, true, Failed, none),
            (Failed, other, false, true, Failed, none),
        ];
        for (before, mac, solicited, overrides, after, known) in table {
            let mut entry = in_state(before);
            let claim = Claim {
                mac,
                solicited,
                overrides,
            };
            entry.on_claim(claim, TIME, LATER);
            assert_eq!(entry.state(LATER), Some(after), "{before:?} {claim:?}");
            assert_eq!(entry.known_mac(), known, "{before:?} {claim:?}");
        }
    }

    /// RFC 4861 §7.2.3: a new MAC address makes the entry STALE, the same one changes nothing.
    #[test]
    fn questions_tell_where_the_asker_is() {
        for (before, same) in [
            (Incomplete, Stale),
            (Reachable, Reachable),
            (Stale, Stale),
            (Delay, Delay),
            (Probe, Probe),
            (Failed, Stale),
        ] {
            for (mac, after) in [(A, same), (B, Stale)] {
                let mut entry = in_state(before);
                entry.on_question(mac, LATER);
                assert_eq!(entry.state(LATER), Some(after), "{before:?}");
                assert_eq!(entry.known_mac(), Some(mac), "{before:?}");
            }
        }
    }

    /// RFC 4861 §7.3.3.
    #[test]
    fn packets_wait_for_the_unknown_and_wake_the_stale() {
        for (before, needs, after) in [
            (Incomplete, Use::Wait, Incomplete),
            (Reachable, Use::Send(A), Reachable),
            (Stale, Use::Send(A), Delay),
            (Delay, Use::Send(A), Delay),
            (Probe, Use::Send(A), Probe),
            (Failed, Use::Begin, Failed),
        ] {
            let mut entry = in_state(before);
            assert_eq!(entry.on_use(LATER), needs, "{before:?}");
            assert_eq!(entry.state(LATER), Some(after), "{before:?}");
        }
    }

    /// RFC 4861 §7.2.2, §7.3.3 and §10.
    #[test]
    fn questions_are_repeated_twice_before_giving_up() {
        let mut entry = in_state(Incomplete);
        let mut now = NOW;
        for due in [Due::Ask, Due::Ask, Due::GiveUp] {
            assert_eq!(entry.deadline, now + RETRANSMIT);
            now = entry.deadline;
            assert_eq!(entry.on_deadline(now), due);
        }
        assert_eq!((entry.state(now), entry.since), (Some(Failed), now));

        let mut entry = in_state(Delay);
        assert_eq!(entry.deadline, NOW + DELAY);
        now = entry.deadline;
        assert_eq!(entry.on_deadline(now), Due::Ask);
        for due in [Due::Ask, Due::Ask, Due::GiveUp] {
            assert_eq!(entry.state(now), Some(Probe));
            assert_eq!(entry.deadline, now + RETRANSMIT);
            now = entry.deadline;
            assert_eq!(entry.on_deadline(now), due);
        }
    }

    #[test]
    fn reachability_ends_by_itself() {
        let entry = in_state(Reachable);
        let end = NOW + TIME;
        let before = Instant::from_nanos(end.as_nanos() - 1);
        assert_eq!(entry.state(before), Some(Reachable));
        assert_eq!(entry.state(end), Some(Stale));
    }

    #[test]
    fn mapped_addresses_are_no_ipv4_neighbors() {
        let key = |address: &str| Key::from(address.parse::<IpAddr>().unwrap());
        assert_eq!(key("::ffff:192.0.2.1"), Key::NONE);
        assert_ne!(key("192.0.2.1"), Key::NONE);
        for address in ["192.0.2.1", "2001:db8::1"] {
            assert_eq!(key(address).address().to_string(), address);
        }
    }
}
