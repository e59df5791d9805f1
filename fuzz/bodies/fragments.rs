//! Fragments: their owners, and datagrams made whole, against naive lists of what has come.
//!
//! Both get the same fragments of the same datagrams, in any order, overlapping, contradicting, late.
//! With room for all of them, what becomes of each is what the lists say. With little room it is not
//! foretold, but each packet comes back once, and no bound is exceeded.
//!
//! Input: an octet whose lowest bit says whether there is little room; then fragments of four octets:
//!
//! | octet | bits |
//! |---|---|
//! | 0 | 0-1 source, 2-3 identification, 4 whether IPv6, 5 whether from another account |
//! | 1 | 0-4 offset in units of 8 octets, 5 whether more follow, 6-7 congestion mark |
//! | 2 | 0-5 length in units of 4 octets, 6-7 whether what is due is done before |
//! | 3 | hundredths of the lifetime that pass before |

use std::collections::BTreeMap;

use nos_shim::checksum::Sum;
use nos_shim::drop::{DropReason, Ledger};
use nos_shim::fragments::{Fate, FragmentLimits, FragmentTable};
use nos_shim::frame::FramePool;
use nos_shim::ident::{AttachmentId, Interface};
use nos_shim::packet::{Fragment, Packet};
use nos_shim::reassembly::{Limits, Reassembler};
use nos_shim::share::Shares;
use nos_shim::time::{Duration, Instant};

use super::pools::with_pool;
use super::seen::look;

/// Fragments of a run.
const FRAGMENTS: usize = 200;
/// Enough for all of them in both tables, and a datagram that is put together.
const BUFFERS: usize = 2 * FRAGMENTS + 4;
/// Of a datagram, in both tables.
const LIFETIME: Duration = Duration::from_secs(3);

const ROOMY: usize = 4096;
const TIGHT: usize = 6;

pub fn run(data: &[u8]) {
    let Some((&first, rest)) = data.split_first() else {
        return;
    };
    let steps = rest.chunks_exact(4).take(FRAGMENTS);
    let steps: Vec<Step> = steps.filter_map(Step::read).collect();
    with_pool(BUFFERS, |pool| {
        let tight = first & 1 != 0;
        owned(&steps, tight, pool);
        reassembled(&steps, tight, pool);
    });
}

/// What tells datagrams apart.
type Key = (u8, u8, bool);

#[derive(Clone, Copy)]
struct Step {
    key: Key,
    attached: bool,
    start: usize,
    len: usize,
    more: bool,
    mark: u8,
    expires: bool,
    passes: Duration,
}

impl Step {
    fn read(octets: &[u8]) -> Option<Self> {
        let &[who, place, len, passes] = octets else {
            return None;
        };
        Some(Self {
            key: (who & 3, who >> 2 & 3, who & 0x10 != 0),
            attached: who & 0x20 != 0,
            start: usize::from(place & 0x1f) * 8,
            len: usize::from(len & 0x3f) * 4,
            more: place & 0x20 != 0,
            mark: place >> 6,
            expires: len >> 6 != 0,
            passes: LIFETIME / 100 * u32::from(passes),
        })
    }

    fn end(&self) -> usize {
        self.start + self.len
    }

    /// In front of others, IPv4 hosts use multiples of eight octets. In IPv6 they are refused.
    fn usable_end(&self) -> usize {
        match self.more {
            true => self.end() / 8 * 8,
            false => self.end(),
        }
    }

    /// The fragment, numbered by its source MAC address; `None` if it is none, or is refused.
    fn packet(&self, number: usize, pool: &mut FramePool) -> Option<Packet> {
        let mut frame = pool
            .copy_from(&self.octets(number))
            .expect("a buffer for each");
        if self.attached {
            frame.set_interface(Interface::Attachment(AttachmentId(u32::from(self.key.0))));
        }
        match Packet::parse(frame) {
            Ok(packet) if packet.fragment() != Fragment::Whole => {
                look(&packet);
                Some(packet)
            }
            Ok(packet) => {
                pool.free(packet.into_frame());
                None
            }
            Err(rejected) => {
                pool.free(rejected.frame);
                None
            }
        }
    }

    fn octets(&self, number: usize) -> Vec<u8> {
        let (source, id, ipv6) = self.key;
        let mut octets = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0];
        octets.extend((number as u16).to_be_bytes());
        let units = (self.start / 8) as u16;
        if ipv6 {
            octets.extend([0x86, 0xdd, 0x60, self.mark << 4, 0, 0]);
            octets.extend((self.len as u16 + 8).to_be_bytes());
            octets.extend([44, 64]);
            for host in [source, 200] {
                octets.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host]);
            }
            octets.extend([17, 0]);
            octets.extend((units << 3 | u16::from(self.more)).to_be_bytes());
            octets.extend([0, 0, 0, id]);
        } else {
            octets.extend([0x08, 0x00, 0x45, self.mark]);
            octets.extend((self.len as u16 + 20).to_be_bytes());
            octets.extend([0, id]);
            octets.extend((units | u16::from(self.more) << 13).to_be_bytes());
            octets.extend([64, 17, 0, 0, 10, 0, 0, source, 10, 0, 0, 200]);
            let sum = Sum::ZERO.plus(&octets[14..34]).checksum();
            octets[24..26].copy_from_slice(&sum.to_be_bytes());
        }
        octets.extend((self.start..self.end()).map(|at| octet(self.key, at)));
        octets
    }
}

/// What stands at a place of a datagram: ports, a length that is never too long, no checksum.
fn octet((source, id, _): Key, at: usize) -> u8 {
    match at {
        0..8 => [0x10, source, 0, 53, 0, 8, 0, 0][at],
        _ => (at as u8).wrapping_mul(7) ^ source ^ id << 4,
    }
}

fn number(packet: &Packet) -> usize {
    let mac = packet.source_mac().0;
    usize::from(u16::from_be_bytes([mac[4], mac[5]]))
}

/// What is known of a datagram.
struct Known {
    born: Instant,
    /// Where fragments begin and end, and by which number they came.
    spans: Vec<(usize, usize)>,
    length: Option<usize>,
    owner: Option<u8>,
    dead: Option<DropReason>,
    waiting: Vec<usize>,
}

/// What becomes of a packet: its owner, or why it is dropped.
type Lot = Result<u8, DropReason>;

/// The table of owners as it is described, without bounds.
#[derive(Default)]
struct Owners {
    datagrams: BTreeMap<Key, Known>,
    lots: BTreeMap<usize, Lot>,
}

impl Owners {
    fn expire(&mut self, now: Instant, key: Option<Key>) {
        let lots = &mut self.lots;
        self.datagrams.retain(|&of, known| {
            let asked = key.is_none_or(|key| key == of);
            let over = asked && now.since(known.born) >= LIFETIME;
            if over {
                let waiting = known.waiting.iter();
                lots.extend(waiting.map(|&it| (it, Err(DropReason::FragmentTimeout))));
            }
            !over
        });
    }

    fn handle(&mut self, step: &Step, number: usize, now: Instant) {
        self.expire(now, Some(step.key));
        let known = self.datagrams.entry(step.key).or_insert_with(|| Known {
            born: now,
            spans: Vec::new(),
            length: None,
            owner: None,
            dead: None,
            waiting: Vec::new(),
        });
        if let Some(reason) = known.dead {
            self.lots.insert(number, Err(reason));
            return;
        }
        let end = step.usable_end();
        let start = step.start;
        if known.spans.contains(&(start, end)) && step.more != (known.length == Some(end)) {
            self.lots.insert(number, Err(DropReason::FragmentDuplicate));
            return;
        }
        let meets = known
            .spans
            .iter()
            .any(|&(from, to)| start < to && from < end || (from, to) == (start, end));
        let furthest = known.spans.iter().map(|&(_, to)| to).max().unwrap_or(0);
        let two_ends = match known.length {
            Some(length) => !step.more || end > length,
            None => !step.more && furthest > end,
        };
        if start >= end || meets || two_ends {
            known.dead = Some(DropReason::FragmentOverlap);
            let waiting = known.waiting.drain(..).chain([number]);
            self.lots
                .extend(waiting.map(|it| (it, Err(DropReason::FragmentOverlap))));
            return;
        }
        known.spans.push((start, end));
        if !step.more {
            known.length = Some(end);
        }
        if start == 0 {
            known.owner = Some(step.key.0);
        }
        match known.owner {
            None => known.waiting.push(number),
            Some(owner) => {
                let waiting = known.waiting.drain(..).chain([number]);
                self.lots.extend(waiting.map(|it| (it, Ok(owner))));
                let seen: usize = known.spans.iter().map(|(from, to)| to - from).sum();
                if known.length == Some(seen) {
                    self.datagrams.remove(&step.key);
                }
            }
        }
    }
}

fn owned(steps: &[Step], tight: bool, pool: &mut FramePool) {
    let room = if tight { TIGHT } else { ROOMY };
    let mut table = FragmentTable::new(FragmentLimits {
        datagrams: if tight { TIGHT } else { 64 },
        datagrams_per_source: if tight { 3 } else { 64 },
        held: room,
        held_per_source: if tight { 4 } else { ROOMY },
        lifetime: LIFETIME,
    });
    let mut shares = Shares::for_one(room);
    let (mut now, mut lots, mut model) = (start(), BTreeMap::new(), Owners::default());
    let mut given = 0;
    let mut note = |fate: Fate<u8>, pool: &mut FramePool| {
        let (packet, lot) = match fate {
            Fate::Deliver(packet, owner) => (packet, Ok(owner)),
            Fate::Drop(packet, reason) => (packet, Err(reason)),
        };
        let again = lots.insert(number(&packet), lot);
        assert_eq!(again, None, "a packet came back twice");
        pool.free(packet.into_frame());
        lots.len()
    };
    let mut back = 0;
    for (number, step) in steps.iter().enumerate() {
        now = now + step.passes;
        if step.expires {
            // It may be late by a little; what it forgets later would be dropped for the same reason.
            table.expire(now);
            assert!(table.poll_at().is_none_or(|at| at > now));
        }
        if let Some(packet) = step.packet(number, pool) {
            given += 1;
            model.handle(step, number, now);
            let fate = table.handle(packet, now, &mut shares, owner_of);
            back = fate.map_or(back, |fate| note(fate, pool));
        }
        while let Some(fate) = table.poll_fate(&mut shares) {
            back = note(fate, pool);
        }
        assert_eq!(back + table.held(), given);
        assert!(table.held() <= room);
        assert_eq!(table.held(), shares.held());
    }
    table.expire(now + 2 * LIFETIME);
    model.expire(now + LIFETIME, None);
    while let Some(fate) = table.poll_fate(&mut shares) {
        back = note(fate, pool);
    }
    assert_eq!(
        (back, table.held(), table.len(), shares.held()),
        (given, 0, 0, 0)
    );
    assert!(tight || lots == model.lots, "{lots:?} {:?}", model.lots);
}

fn owner_of(packet: &Packet) -> u8 {
    let [_, source] = packet
        .ports()
        .expect("it has a transport header")
        .source
        .to_be_bytes();
    source
}

fn start() -> Instant {
    Instant::from_millis(1_000_000)
}

/// What is known of a datagram that is put together.
struct Parts {
    born: Instant,
    spans: Vec<(usize, usize)>,
    length: Option<usize>,
    marks: u8,
}

/// What reassembly is to do with a fragment.
#[derive(Debug, PartialEq)]
enum Outcome {
    Held,
    Duplicate,
    /// It and all before it are dropped.
    Contradiction,
    Whole(usize),
}

fn assemble(parts: &mut Parts, step: &Step) -> Outcome {
    let (start, end) = (step.start, step.usable_end());
    if start == end {
        return Outcome::Contradiction;
    }
    if parts
        .spans
        .iter()
        .any(|&(from, to)| from <= start && end <= to)
    {
        return Outcome::Duplicate;
    }
    let meets = parts
        .spans
        .iter()
        .any(|&(from, to)| start < to && from < end);
    let furthest = parts.spans.iter().map(|&(_, to)| to).max().unwrap_or(0);
    let last = !step.more;
    let two_ends = parts
        .length
        .is_some_and(|length| end > length || last && end != length)
        || last && furthest > end;
    parts.marks |= 1 << step.mark;
    // A sender without congestion marks, and one with them.
    let mixed = parts.marks & 1 != 0 && parts.marks != 1;
    if meets || two_ends || mixed {
        return Outcome::Contradiction;
    }
    parts.spans.push((start, end));
    if last {
        parts.length = Some(end);
    }
    let seen: usize = parts.spans.iter().map(|(from, to)| to - from).sum();
    match parts.length {
        Some(length) if length == seen => Outcome::Whole(length),
        _ => Outcome::Held,
    }
}

fn reassembled(steps: &[Step], tight: bool, pool: &mut FramePool) {
    let room = if tight { TIGHT } else { ROOMY };
    let limits = Limits {
        datagrams: if tight { 3 } else { 64 },
        fragments: room,
        timeout: LIFETIME,
    };
    let mut reassembler = Reassembler::new(limits, 1);
    let (mut shares, mut ledger) = (Shares::for_one(room), Ledger::default());
    let mut datagrams: BTreeMap<Key, Parts> = BTreeMap::new();
    let mut now = start();
    for (number, step) in steps.iter().enumerate() {
        now = now + step.passes;
        if step.expires {
            let late = |reassembler: &mut Reassembler,
                        ledger: &mut Ledger,
                        shares: &mut Shares,
                        pool: &mut FramePool| {
                reassembler.poll_timeout(now, pool, ledger, shares)
            };
            while let Some(first) = late(&mut reassembler, &mut ledger, &mut shares, pool) {
                assert_eq!(first.fragment(), Fragment::First);
                ledger.drop(DropReason::FragmentTimeout);
                pool.free(first.into_frame());
            }
            datagrams.retain(|_, parts| now.since(parts.born) < LIFETIME);
            assert!(reassembler.poll_at().is_none_or(|at| at > now));
        }
        let Some(packet) = step.packet(number, pool) else {
            continue;
        };
        ledger.received += 1;
        let dropped = ledger.drops.total();
        let whole = reassembler.handle(packet, now, pool, &mut ledger, &mut shares);
        let dropped = ledger.drops.total() - dropped;
        if !tight {
            let parts = datagrams.entry(step.key).or_insert_with(|| Parts {
                born: now,
                spans: Vec::new(),
                length: None,
                marks: 0,
            });
            let before = parts.spans.len() as u64;
            let outcome = assemble(parts, step);
            let expected = match outcome {
                Outcome::Held | Outcome::Whole(_) => 0,
                Outcome::Duplicate => 1,
                Outcome::Contradiction => before + 1,
            };
            assert_eq!(dropped, expected, "{outcome:?}");
            let length = match outcome {
                Outcome::Whole(length) => Some(length),
                _ => None,
            };
            if matches!(outcome, Outcome::Contradiction | Outcome::Whole(_)) {
                datagrams.remove(&step.key);
            }
            assert_eq!(whole.as_ref().map(|whole| whole.transport().len()), length);
        }
        if let Some(whole) = whole {
            look(&whole);
            assert_eq!(whole.fragment(), Fragment::Whole);
            let right = |(at, &seen): (usize, &u8)| seen == octet(step.key, at);
            assert!(whole.transport().iter().enumerate().all(right));
            ledger.sent += 1;
            pool.free(whole.into_frame());
        }
        assert_eq!(
            ledger.unaccounted(),
            reassembler.held() as i128,
            "{ledger:?}"
        );
        assert!(reassembler.held() <= room.max(2));
        assert_eq!(reassembler.held(), shares.held());
    }
    let end = now + LIFETIME;
    while let Some(first) = reassembler.poll_timeout(end, pool, &mut ledger, &mut shares) {
        ledger.drop(DropReason::FragmentTimeout);
        pool.free(first.into_frame());
    }
    assert_eq!(
        (ledger.unaccounted(), reassembler.held(), shares.held()),
        (0, 0, 0)
    );
}
