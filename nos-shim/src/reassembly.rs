//! Datagrams to the NOS itself, put together from their fragments.
//!
//! # Theory of operation
//!
//! A datagram is held from its first fragment to arrive until all of it is there, or until time is
//! up; then its sender is told, if the first fragment is there to be quoted (RFC 791 §3.2, RFC
//! 8200 §4.5). It takes the header of its first fragment. As Linux does:
//!
//! - a fragment that overlaps others makes an end of the datagram (RFC 5722 §3); one that brings
//!   nothing new is dropped alone;
//! - congestion marks are merged, and contradicting ones make an end of the datagram (RFC 3168
//!   §5.3);
//! - a fragment that carries nothing makes an end of the datagram;
//! - an IPv4 datagram has DF if the longest of its fragments had.
//!
//! An owner that sends many fragments and never all of them can hold no more than the
//! [limits](Limits) and its [share](crate::share) of the buffers allow. Beyond them its own oldest
//! datagram is dropped: honest ones are complete within milliseconds, and others do not notice.

use foldhash::quality::FixedState;
use hashbrown::HashMap;

use crate::checksum::Sum;
use crate::drop::{DropReason, Ledger};
use crate::frame::{ETHERNET_HEADER, Frame, FramePool};
use crate::ident::VrfId;
use crate::links::{Links, List};
use crate::originate::traffic_class;
use crate::packet::{Addresses, FragmentId, FragmentSpan, IPV6_HEADER, Packet, protocol};
use crate::share::{Account, Shares, Standing};
use crate::time::{Duration, Instant};

/// How much may be held, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Datagrams of one owner that is alone; at least one. All owners together have fewer than twice
    /// as many.
    pub datagrams: usize,
    /// Fragments of all datagrams, for which there is memory; at least two.
    pub fragments: usize,
    /// Time from the first fragment's arrival.
    pub timeout: Duration,
}

impl Default for Limits {
    /// Linux waits 30 seconds for either IP version.
    fn default() -> Self {
        Self {
            datagrams: 128,
            fragments: 512,
            timeout: Duration::from_secs(30),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    vrf: VrfId,
    addresses: Addresses,
    id: FragmentId,
}

/// Puts datagrams together.
///
/// Every fragment that is handed over is held, until it becomes part of a whole datagram
/// (consumed; the datagram is originated) or is dropped; the ledger of each call counts that.
#[derive(Debug)]
pub struct Reassembler {
    limits: Limits,
    /// Places of datagrams.
    datagrams: HashMap<Key, u32, FixedState>,
    places: Vec<Option<Datagram>>,
    free: Vec<u32>,
    /// What owners have in the table.
    shares: Shares,
    /// In the order of their arrival.
    by_age: List,
    ages: Links,
    /// By account, in the order of their arrival.
    by_account: Vec<List>,
    of_account: Links,
    held: usize,
}

/// Where fragments come from and go to.
struct Store<'a> {
    pool: &'a mut FramePool,
    ledger: &'a mut Ledger,
    shares: &'a mut Shares,
}

impl Store<'_> {
    /// Takes back the buffer of a fragment that was held.
    fn free(&mut self, packet: Packet) {
        self.shares.release(Account::of(packet.frame()));
        self.pool.free(packet.into_frame());
    }

    fn drop(&mut self, packet: Packet, reason: DropReason) {
        self.free(packet);
        self.ledger.drop(reason);
    }
}

impl Reassembler {
    /// One that holds nothing. Outsiders should not be able to guess `seed`.
    #[must_use]
    pub fn new(limits: Limits, seed: u64) -> Self {
        Self {
            limits,
            datagrams: HashMap::with_hasher(FixedState::with_seed(seed)),
            places: Vec::new(),
            free: Vec::new(),
            shares: Shares::for_one(limits.datagrams.max(1)),
            by_age: List::EMPTY,
            ages: Links::new(0),
            by_account: Vec::new(),
            of_account: Links::new(0),
            held: 0,
        }
    }

    /// Takes a fragment, charges its owner for it in `shares`, and returns the datagram that it makes
    /// whole. A packet that is no fragment comes back as it is.
    pub fn handle(
        &mut self,
        fragment: Packet,
        now: Instant,
        pool: &mut FramePool,
        ledger: &mut Ledger,
        shares: &mut Shares,
    ) -> Option<Packet> {
        let Some((id, span)) = fragment.fragment_place() else {
            return Some(fragment);
        };
        let key = Key {
            vrf: fragment.frame().vrf(),
            addresses: fragment.addresses(),
            id,
        };
        let account = Account::of(fragment.frame());
        let mut store = Store {
            pool,
            ledger,
            shares,
        };
        let room = self.make_room(&key, account, now, &mut store);
        store.shares.charge(account);
        if let Err(reason) = room {
            store.drop(fragment, reason);
            return None;
        }
        let place = self.datagrams.get(&key).copied();
        let place = place.unwrap_or_else(|| self.begin(key, account, now + self.limits.timeout));
        let datagram = self.places.get_mut(place as usize)?.as_mut()?;
        self.held += 1;
        match datagram.add(fragment, span) {
            Added::Incomplete => None,
            Added::Nothing(fragment) => {
                self.held -= 1;
                store.drop(fragment, DropReason::FragmentDuplicate);
                None
            }
            Added::Contradiction(reason) => {
                self.take(place)?.drop_all(reason, &mut store);
                None
            }
            Added::Complete => self.take(place)?.complete(&mut store),
        }
    }

    /// The first fragment of a datagram whose time is up, which is not counted yet: to be answered
    /// with [`IcmpError::ReassemblyTimeout`](crate::icmp::IcmpError::ReassemblyTimeout), and
    /// dropped for [`DropReason::FragmentTimeout`]. `None` when there is no other.
    pub fn poll_timeout(
        &mut self,
        now: Instant,
        pool: &mut FramePool,
        ledger: &mut Ledger,
        shares: &mut Shares,
    ) -> Option<Packet> {
        let mut store = Store {
            pool,
            ledger,
            shares,
        };
        while self.poll_at().is_some_and(|until| until <= now) {
            let oldest = self.by_age.first()?;
            let datagram = self.take(oldest)?;
            let first = datagram.into_first(|rest| {
                store.drop(rest, DropReason::FragmentTimeout);
            });
            if let Some(first) = first {
                store.shares.release(Account::of(first.frame()));
                return Some(first);
            }
        }
        None
    }

    /// Drops the datagrams of an account for `reason`.
    pub fn forget_account(
        &mut self,
        account: Account,
        reason: DropReason,
        pool: &mut FramePool,
        ledger: &mut Ledger,
        shares: &mut Shares,
    ) {
        let mut store = Store {
            pool,
            ledger,
            shares,
        };
        while let Some(oldest) = self.by_account.get(account.index()).and_then(List::first) {
            let Some(datagram) = self.take(oldest) else {
                return;
            };
            datagram.drop_all(reason, &mut store);
        }
    }

    /// When [`Self::poll_timeout`] has something to do next.
    #[must_use]
    pub fn poll_at(&self) -> Option<Instant> {
        let oldest = self.by_age.first()?;
        let datagram = self.places.get(oldest as usize)?.as_ref();
        datagram.map(|datagram| datagram.until)
    }

    /// Fragments that are held.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held
    }

    /// Drops an owner's oldest datagrams until there is room for one more fragment of `key`.
    ///
    /// # Errors
    ///
    /// Why that fragment is dropped as well.
    fn make_room(
        &mut self,
        key: &Key,
        account: Account,
        now: Instant,
        store: &mut Store<'_>,
    ) -> Result<(), DropReason> {
        loop {
            let (standing, reason) = self.standing(key, account, store.shares);
            if standing == Standing::Within {
                return Ok(());
            }
            let dropped = self.drop_oldest_of(account, reason, now, store);
            if !dropped || standing == Standing::Over {
                return Err(reason);
            }
        }
    }

    /// Whether an owner may have one more fragment of `key` here, and why not.
    fn standing(&self, key: &Key, account: Account, shares: &Shares) -> (Standing, DropReason) {
        let full = DropReason::FragmentQueueFull;
        if !self.datagrams.contains_key(key) {
            let standing = self.shares.standing(account);
            if standing != Standing::Within {
                return (standing, full);
            }
        }
        if self.held >= self.limits.fragments.max(2) {
            return (Standing::Full, full);
        }
        (shares.standing(account), DropReason::OverShare)
    }

    /// Drops the oldest datagram of an owner, if it has one.
    fn drop_oldest_of(
        &mut self,
        account: Account,
        reason: DropReason,
        now: Instant,
        store: &mut Store<'_>,
    ) -> bool {
        let oldest = self.by_account.get(account.index()).and_then(List::first);
        let Some(datagram) = oldest.and_then(|place| self.take(place)) else {
            return false;
        };
        let late = datagram.until <= now;
        let reason = if late {
            DropReason::FragmentTimeout
        } else {
            reason
        };
        datagram.drop_all(reason, store);
        true
    }

    /// A place for a new datagram.
    fn begin(&mut self, key: Key, account: Account, until: Instant) -> u32 {
        let datagram = Some(Datagram::new(key, account, until));
        let place = if let Some(place) = self.free.pop() {
            self.places[place as usize] = datagram;
            place
        } else {
            self.places.push(datagram);
            u32::try_from(self.places.len() - 1).unwrap_or(u32::MAX)
        };
        self.datagrams.insert(key, place);
        self.ages.push_back(&mut self.by_age, place);
        if self.by_account.len() <= account.index() {
            self.by_account.resize(account.index() + 1, List::EMPTY);
        }
        let of_account = &mut self.by_account[account.index()];
        self.of_account.push_back(of_account, place);
        self.shares.charge(account);
        place
    }

    /// Takes a datagram out.
    fn take(&mut self, place: u32) -> Option<Datagram> {
        let datagram = self.places.get_mut(place as usize)?.take()?;
        self.free.push(place);
        self.datagrams.remove(&datagram.key);
        self.ages.remove(&mut self.by_age, place);
        let of_account = &mut self.by_account[datagram.account.index()];
        self.of_account.remove(of_account, place);
        self.shares.release(datagram.account);
        self.held -= datagram.pieces.len();
        Some(datagram)
    }
}

/// A part of a datagram: its payload from `start` to `end`, in octets.
#[derive(Debug)]
struct Piece {
    start: usize,
    end: usize,
    packet: Packet,
}

#[derive(Debug)]
struct Datagram {
    key: Key,
    /// Of its first fragment that came.
    account: Account,
    until: Instant,
    /// Ordered, without overlap.
    pieces: Vec<Piece>,
    /// Octets of payload, once the last fragment has come.
    len: Option<usize>,
    /// The congestion marks that were seen, a bit for each of the four.
    marks: u8,
}

/// What a fragment did to its datagram.
enum Added {
    Incomplete,
    Complete,
    /// It is already there.
    Nothing(Packet),
    /// The datagram makes no sense.
    Contradiction(DropReason),
}

impl Datagram {
    fn new(key: Key, account: Account, until: Instant) -> Self {
        Self {
            key,
            account,
            until,
            pieces: Vec::new(),
            len: None,
            marks: 0,
        }
    }

    fn add(&mut self, packet: Packet, span: FragmentSpan) -> Added {
        let (start, end) = (octets(span.start), octets(span.end));
        if start == end {
            self.pieces.push(Piece { start, end, packet });
            return Added::Contradiction(DropReason::IpLength);
        }
        let at = self.pieces.partition_point(|piece| piece.start < start);
        let repeats = |piece: &Piece| piece.start <= start && end <= piece.end;
        let before = at.checked_sub(1).and_then(|at| self.pieces.get(at));
        let after = self.pieces.get(at);
        if before.is_some_and(repeats) || after.is_some_and(repeats) {
            return Added::Nothing(packet);
        }
        let overlaps = before.is_some_and(|piece| piece.end > start)
            || after.is_some_and(|piece| piece.start < end);
        let last_end = self.pieces.last().map_or(0, |piece| piece.end);
        let ends_twice = self
            .len
            .is_some_and(|len| end > len || span.last && end != len)
            || span.last && last_end > end;
        self.marks |= 1 << (traffic_class(&packet) & 3);
        self.pieces.insert(at, Piece { start, end, packet });
        if overlaps {
            return Added::Contradiction(DropReason::FragmentOverlap);
        }
        if ends_twice || self.mark().is_none() {
            return Added::Contradiction(DropReason::IpLength);
        }
        if span.last {
            self.len = Some(end);
        }
        let present: usize = self
            .pieces
            .iter()
            .map(|piece| piece.end - piece.start)
            .sum();
        if self.len == Some(present) {
            Added::Complete
        } else {
            Added::Incomplete
        }
    }

    /// The congestion mark of the whole: any CE makes it CE, unless a sender without ECN is
    /// involved, which contradicts the others.
    fn mark(&self) -> Option<u8> {
        const NOT_CAPABLE: u8 = 1 << 0;
        match self.marks {
            NOT_CAPABLE => Some(0),
            marks if marks & NOT_CAPABLE != 0 => None,
            marks if marks & (1 << 3) != 0 => Some(3),
            // Whatever the first fragment has.
            _ => Some(0),
        }
    }

    /// The fragment that holds the transport header; the others go to `rest`.
    fn into_first(self, rest: impl FnMut(Packet)) -> Option<Packet> {
        let mut pieces = self.pieces.into_iter().peekable();
        let first = pieces.next_if(|piece| piece.start == 0);
        pieces.map(|piece| piece.packet).for_each(rest);
        first.map(|piece| piece.packet)
    }

    fn drop_all(self, reason: DropReason, store: &mut Store<'_>) {
        for piece in self.pieces {
            store.drop(piece.packet, reason);
        }
    }

    /// The whole datagram, in place of its fragments.
    fn complete(self, store: &mut Store<'_>) -> Option<Packet> {
        let frame = match self.assemble(store.pool) {
            Ok(frame) => frame,
            Err(reason) => {
                self.drop_all(reason, store);
                return None;
            }
        };
        store.ledger.consumed += self.pieces.len() as u64;
        store.ledger.originated += 1;
        for piece in self.pieces {
            store.free(piece.packet);
        }
        match Packet::parse(frame) {
            Ok(packet) => Some(packet),
            Err(rejected) => {
                store.ledger.drop(rejected.reason);
                store.pool.free(rejected.frame);
                None
            }
        }
    }

    /// The whole datagram in a frame of its own.
    fn assemble(&self, pool: &mut FramePool) -> Result<Frame, DropReason> {
        let (Some(first), Some(len)) = (self.pieces.first(), self.len) else {
            return Err(DropReason::FragmentTimeout);
        };
        let first = &first.packet;
        // The fragment header is left out.
        let fragment_header = if first.is_ipv6() { 8 } else { 0 };
        let headers = first.fragment_payload_offset() - fragment_header;
        let limit = if first.is_ipv6() {
            IPV6_HEADER + 65_535
        } else {
            65_535
        };
        if headers - ETHERNET_HEADER + len > limit {
            return Err(DropReason::IpLength);
        }
        let mut frame = pool.alloc().ok_or(DropReason::NoBuffer)?;
        if frame.set_len(headers + len).is_err() {
            pool.free(frame);
            return Err(DropReason::NoBuffer);
        }
        frame.set_vrf(first.frame().vrf());
        if let Some(interface) = first.frame().interface() {
            frame.set_interface(interface);
        }
        let (front, payload) = frame.bytes_mut().split_at_mut(headers);
        front.copy_from_slice(&first.frame().bytes()[..headers]);
        for piece in &self.pieces {
            let from = piece.packet.fragment_payload_offset();
            let octets = &piece.packet.frame().bytes()[from..from + piece.end - piece.start];
            payload[piece.start..piece.end].copy_from_slice(octets);
        }
        let mark = self.mark().unwrap_or(0);
        if first.is_ipv6() {
            finish_v6(&mut front[ETHERNET_HEADER..], first, len, mark);
        } else {
            finish_v4(
                &mut front[ETHERNET_HEADER..],
                len,
                mark,
                self.dont_fragment(),
            );
        }
        Ok(frame)
    }

    /// Whether the longest IPv4 fragment must not be fragmented again.
    fn dont_fragment(&self) -> bool {
        let longest = |of_all: bool| {
            let packets = self.pieces.iter().map(|piece| &piece.packet);
            let counted = packets.filter(|packet| of_all || packet.dont_fragment());
            counted.map(|packet| packet.ip().len()).max()
        };
        longest(false).is_some() && longest(false) == longest(true)
    }
}

fn octets(count: u32) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

fn finish_v4(header: &mut [u8], payload: usize, mark: u8, dont_fragment: bool) {
    let total = u16::try_from(header.len() + payload).unwrap_or(u16::MAX);
    header[1] |= mark;
    header[2..4].copy_from_slice(&total.to_be_bytes());
    header[6] = if dont_fragment { 0x40 } else { 0 };
    header[7] = 0;
    header[10..12].fill(0);
    let checksum = Sum::ZERO.plus(header).checksum();
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
}

/// `headers` are those in front of the fragment header, which named the next one after it.
fn finish_v6(headers: &mut [u8], first: &Packet, payload: usize, mark: u8) {
    let next = first.frame().bytes()[ETHERNET_HEADER + headers.len()];
    let len = u16::try_from(headers.len() - IPV6_HEADER + payload).unwrap_or(u16::MAX);
    headers[1] |= mark << 4;
    headers[4..6].copy_from_slice(&len.to_be_bytes());
    let (mut named_at, mut kind, mut at) = (6, headers[6], IPV6_HEADER);
    while let Some([following, words, ..]) = headers.get(at..) {
        let len = match kind {
            protocol::AUTHENTICATION => (usize::from(*words) + 2) * 4,
            _ => (usize::from(*words) + 1) * 8,
        };
        (named_at, kind) = (at, *following);
        at += len;
    }
    headers[named_at] = next;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fragment_ipv6::fragment_ipv6;
    use crate::test_packets::{Draft, hex};
    use proptest::prelude::*;

    struct Lab {
        reassembler: Reassembler,
        pool: FramePool,
        /// With room for all, unless the test is about it.
        shares: Shares,
        ledger: Ledger,
        now: Instant,
        given: u64,
        returned: u64,
    }

    impl Lab {
        fn new(limits: Limits) -> Self {
            Self {
                reassembler: Reassembler::new(limits, 1),
                pool: FramePool::new(64, crate::frame::MAX_FRAME),
                shares: Shares::for_one(1024),
                ledger: Ledger::default(),
                now: Instant::from_millis(1000),
                given: 0,
                returned: 0,
            }
        }

        fn give(&mut self, packet: Packet) -> Option<Packet> {
            self.given += 1;
            let Self {
                reassembler,
                pool,
                shares,
                ledger,
                now,
                ..
            } = self;
            let whole = reassembler.handle(packet, *now, pool, ledger, shares);
            self.returned += u64::from(whole.is_some());
            self.check();
            whole
        }

        fn timed_out(&mut self) -> Option<Packet> {
            let Self {
                reassembler,
                pool,
                shares,
                ledger,
                now,
                ..
            } = self;
            let first = reassembler.poll_timeout(*now, pool, ledger, shares);
            // As the caller does once it has answered.
            if first.is_some() {
                self.ledger.drop(DropReason::FragmentTimeout);
            }
            self.check();
            first
        }

        fn dropped(&self, reason: DropReason) -> u64 {
            self.ledger.drops.of(reason)
        }

        /// Nothing is lost, and nothing is counted twice.
        fn check(&self) {
            let ledger = Ledger {
                received: self.given,
                sent: self.returned,
                ..self.ledger
            };
            assert_eq!(ledger.unaccounted(), self.reassembler.held() as i128);
            assert_eq!(self.shares.held(), self.reassembler.held());
        }
    }

    fn v4_fragment(
        lab: &mut Lab,
        draft: &Draft,
        octets: &[u8],
        start: usize,
        end: usize,
    ) -> Packet {
        let mut draft = draft.clone();
        draft.fragment |= (start / 8) as u16;
        if end < octets.len() {
            draft.fragment |= 0x2000;
        }
        draft.packet(&mut lab.pool, protocol::UDP, &octets[start..end])
    }

    fn v6_fragment(
        lab: &mut Lab,
        draft: &Draft,
        octets: &[u8],
        start: usize,
        end: usize,
    ) -> Packet {
        let field = start as u16 | u16::from(end < octets.len());
        let mut payload = vec![protocol::UDP, 0];
        payload.extend(field.to_be_bytes());
        payload.extend([0, 0, 0, 8]);
        payload.extend(&octets[start..end]);
        draft.packet(&mut lab.pool, protocol::FRAGMENT, &payload)
    }

    fn fragment(lab: &mut Lab, draft: &Draft, octets: &[u8], start: usize, end: usize) -> Packet {
        if draft.source.is_ipv6() {
            v6_fragment(lab, draft, octets, start, end)
        } else {
            v4_fragment(lab, draft, octets, start, end)
        }
    }

    /// The headers are those that Linux 6.18 quoted when it refused such datagrams.
    #[test]
    fn whole_datagrams_look_as_linux_sees_them() {
        let mut lab = Lab::new(Limits::default());
        let mut first = Draft::v4();
        first.class = 0x20;
        let octets = first.udp((1, 2), &[b'y'; 3000]);
        let packet = fragment(&mut lab, &first, &octets, 0, 1480);
        assert!(lab.give(packet).is_none());
        for (start, end) in [(1480, 2960), (2960, 3008)] {
            let packet = fragment(&mut lab, &Draft::v4(), &octets, start, end);
            let whole = lab.give(packet);
            assert_eq!(whole.is_some(), end == 3008);
            if let Some(whole) = whole {
                assert_eq!(
                    whole.ip()[..20],
                    hex("45200bd4123400003711edc0cb007102cb007101")
                );
                assert_eq!(whole.transport(), octets);
                assert!(whole.transport_checksum_ok());
                assert_eq!(whole.destination_mac().0, first.mac);
            }
        }

        let mut first = Draft::v6();
        first.class = 0x20;
        let octets = first.udp((1, 2), &[b'y'; 2000]);
        let packet = fragment(&mut lab, &first, &octets, 0, 1200);
        assert!(lab.give(packet).is_none());
        let packet = fragment(&mut lab, &Draft::v6(), &octets, 1200, 2008);
        let whole = lab.give(packet).unwrap();
        assert_eq!(whole.ip()[..8], hex("6200000007d81137"));
        assert_eq!(whole.transport(), octets);
        assert!(whole.transport_checksum_ok());
        assert_eq!(lab.reassembler.poll_at(), None);
        assert_eq!(lab.ledger.consumed, 5);
    }

    #[test]
    fn ipv6_headers_in_front_of_the_fragment_header_stay() {
        let mut lab = Lab::new(Limits::default());
        let draft = Draft::v6();
        let octets = draft.udp((1, 2), &[1; 24]);
        for (start, end) in [(0, 16), (16, 32)] {
            let field = start as u16 | u16::from(end < 32);
            // Destination options, a routing header, and the fragment header.
            let mut payload = hex("2b00010400000000 2c00000000000000 1100");
            payload.extend(field.to_be_bytes());
            payload.extend([0, 0, 0, 8]);
            payload.extend(&octets[start..end]);
            let packet = draft.packet(&mut lab.pool, 60, &payload);
            if let Some(whole) = lab.give(packet) {
                assert_eq!(whole.ip()[40..56], hex("2b00010400000000 1100000000000000"));
                assert_eq!(whole.ports().unwrap().destination, 2);
                return;
            }
        }
        panic!("it never became whole");
    }

    #[test]
    fn overlaps_make_an_end_and_repetitions_do_not() {
        for draft in [Draft::v4(), Draft::v6()] {
            let octets = draft.udp((1, 2), &[1; 56]);
            for (pieces, whole) in [
                (&[(0, 32), (0, 32), (32, 64)][..], true),
                (&[(0, 32), (8, 16), (32, 64)], true),
                (&[(32, 64), (32, 64), (0, 32)], true),
                (&[(0, 32), (24, 48), (32, 64)], false),
                (&[(0, 32), (24, 64), (32, 64)], false),
                (&[(32, 64), (0, 40)], false),
                (&[(16, 32), (8, 40)], false),
            ] {
                let mut lab = Lab::new(Limits::default());
                let mut complete = false;
                for &(start, end) in pieces {
                    let packet = fragment(&mut lab, &draft, &octets, start, end);
                    complete |= lab.give(packet).is_some();
                }
                assert_eq!(complete, whole, "{pieces:?}");
                assert_eq!(lab.dropped(DropReason::FragmentOverlap) > 0, !whole);
            }
        }
    }

    #[test]
    fn contradicting_ends_make_an_end() {
        let draft = Draft::v4();
        let octets = draft.udp((1, 2), &[1; 56]);
        for (first, second) in [
            ((48, 64, 64), (32, 48, 48)),
            ((32, 48, 48), (48, 64, 99)),
            ((32, 48, 48), (48, 64, 64)),
        ] {
            let mut lab = Lab::new(Limits::default());
            for (start, end, len) in [first, second] {
                let mut long = octets.clone();
                long.resize(len, 0);
                let packet = fragment(&mut lab, &draft, &long, start, end.min(len));
                assert!(lab.give(packet).is_none());
            }
            assert_eq!(lab.reassembler.held(), 0, "{first:?} {second:?}");
        }
    }

    #[test]
    fn empty_fragments_make_an_end() {
        for draft in [Draft::v4(), Draft::v6()] {
            let mut lab = Lab::new(Limits::default());
            let octets = draft.udp((1, 2), &[1; 56]);
            let first = fragment(&mut lab, &draft, &octets, 0, 32);
            lab.give(first);
            let empty = fragment(&mut lab, &draft, &octets, 32, 32);
            assert!(lab.give(empty).is_none());
            assert_eq!(lab.dropped(DropReason::IpLength), 2);
            assert_eq!(
                (lab.reassembler.held(), lab.reassembler.poll_at()),
                (0, None)
            );
        }
    }

    /// Linux: 1 and 3 make 3; 0 and 3 make an end; the rest of the TOS is the first fragment's.
    #[test]
    fn congestion_marks_are_merged() {
        for (first, second, whole) in [
            (0xfd, 0x01, Some(0xfd)),
            (0x01, 0x03, Some(0x03)),
            (0x02, 0x03, Some(0x03)),
            (0x03, 0x00, None),
            (0x00, 0x02, None),
            (0x20, 0x00, Some(0x20)),
            (0x01, 0x02, Some(0x01)),
        ] {
            for mut draft in [Draft::v4(), Draft::v6()] {
                let mut lab = Lab::new(Limits::default());
                let octets = draft.udp((1, 2), &[1; 56]);
                draft.class = second;
                let packet = fragment(&mut lab, &draft, &octets, 32, 64);
                assert!(lab.give(packet).is_none());
                draft.class = first;
                let packet = fragment(&mut lab, &draft, &octets, 0, 32);
                let class = lab.give(packet).map(|packet| traffic_class(&packet));
                assert_eq!(class, whole);
            }
        }
    }

    #[test]
    fn dont_fragment_is_that_of_the_longest() {
        for (longest, shortest, whole) in [
            (0x4000, 0, true),
            (0, 0x4000, false),
            (0x4000, 0x4000, true),
        ] {
            let mut lab = Lab::new(Limits::default());
            let mut draft = Draft::v4();
            let octets = draft.udp((1, 2), &[1; 56]);
            draft.fragment = longest;
            let packet = fragment(&mut lab, &draft, &octets, 0, 48);
            lab.give(packet);
            draft.fragment = shortest;
            let packet = fragment(&mut lab, &draft, &octets, 48, 64);
            assert_eq!(lab.give(packet).unwrap().dont_fragment(), whole);
        }
    }

    /// Linux 6.18 quotes the first fragment, unchanged, after 30 seconds; without it, nothing.
    #[test]
    fn time_is_up_after_thirty_seconds() {
        let mut lab = Lab::new(Limits::default());
        let draft = Draft::v4();
        let octets = draft.udp((1, 2), &[1; 56]);
        let first = fragment(&mut lab, &draft, &octets, 0, 32);
        let sent = first.ip().to_vec();
        lab.give(first);
        let mut other = draft.clone();
        other.identification = 99;
        for (start, end) in [(32, 40), (40, 48)] {
            let later = fragment(&mut lab, &other, &octets, start, end);
            lab.give(later);
        }
        assert_eq!(
            lab.reassembler.poll_at(),
            Some(lab.now + Duration::from_secs(30))
        );
        lab.now = lab.now + Duration::from_millis(29_999);
        assert!(lab.timed_out().is_none());
        lab.now = lab.now + Duration::from_millis(1);
        assert_eq!(lab.timed_out().unwrap().ip(), sent);
        assert!(lab.timed_out().is_none());
        assert_eq!(lab.dropped(DropReason::FragmentTimeout), 3);
        assert_eq!(
            (lab.reassembler.held(), lab.reassembler.poll_at()),
            (0, None)
        );
    }

    #[test]
    fn floods_lose_their_own_fragments_and_honest_datagrams_pass() {
        let limits = Limits {
            datagrams: 16,
            fragments: 40,
            ..Limits::default()
        };
        let mut lab = Lab::new(limits);
        let mut flood = Draft::v4();
        let octets = flood.udp((1, 2), &[1; 1016]);
        for n in 0..1000 {
            flood.identification = n;
            for start in [0, 8, 16, 24] {
                let packet = fragment(&mut lab, &flood, &octets, start, start + 8);
                assert!(lab.give(packet).is_none());
                assert!(lab.reassembler.held() <= 40);
            }
            let mut honest = Draft::v6();
            honest.ttl = 64;
            let packet = fragment(&mut lab, &honest, &octets, 0, 512);
            lab.give(packet);
            let packet = fragment(&mut lab, &honest, &octets, 512, 1024);
            assert!(lab.give(packet).is_some());
        }
        assert!(lab.dropped(DropReason::FragmentQueueFull) > 3000);
        assert!(lab.reassembler.places.len() <= 32);
    }

    /// Fragments of one owner take neither places nor buffers of another.
    #[test]
    fn a_flood_of_one_owner_costs_another_nothing() {
        use crate::ident::{AttachmentId, Interface};
        let flooder = Interface::Attachment(AttachmentId(7));
        let limits = Limits {
            datagrams: 16,
            ..Limits::default()
        };
        let mut lab = Lab::new(limits);
        lab.shares = Shares::new(60);
        let octets = Draft::v4().udp((1, 2), &[1; 1016]);
        let honest = Draft::v6();
        let packet = fragment(&mut lab, &honest, &octets, 0, 512);
        lab.give(packet);
        let mut flood = Draft::v4();
        for n in 0..1000 {
            flood.identification = n / 4;
            let start = usize::from(n % 4) * 8;
            let mut packet = fragment(&mut lab, &flood, &octets, start, start + 8);
            packet.set_interface(flooder);
            assert!(lab.give(packet).is_none());
        }
        assert!(lab.shares.held_by(flooder.into()) <= 30);
        assert!(lab.dropped(DropReason::OverShare) > 900);
        let packet = fragment(&mut lab, &honest, &octets, 512, 1024);
        assert!(lab.give(packet).is_some(), "it was kept");
    }

    #[test]
    fn datagrams_of_different_flows_do_not_mix() {
        let mut lab = Lab::new(Limits::default());
        let a = Draft::v4();
        let mut b = Draft::v4();
        b.identification = 1;
        let mut c = Draft::new("203.0.113.9", crate::test_packets::N4);
        c.identification = a.identification;
        let octets = a.udp((1, 2), &[1; 56]);
        let first = fragment(&mut lab, &a, &octets, 0, 32);
        lab.give(first);
        for other in [&b, &c] {
            let last = fragment(&mut lab, other, &octets, 32, 64);
            assert!(lab.give(last).is_none());
        }
        let mut last = fragment(&mut lab, &a, &octets, 32, 64);
        last.set_vrf(VrfId(1));
        assert!(lab.give(last).is_none());
        let last = fragment(&mut lab, &a, &octets, 32, 64);
        assert!(lab.give(last).is_some());
    }

    #[test]
    fn what_is_whole_comes_back() {
        let mut lab = Lab::new(Limits::default());
        let packet = Draft::v4().udp_packet(&mut lab.pool, (1, 2), b"x");
        let whole = lab.reassembler.handle(
            packet,
            lab.now,
            &mut lab.pool,
            &mut lab.ledger,
            &mut lab.shares,
        );
        assert!(whole.is_some());
        assert_eq!(lab.ledger, Ledger::default());
    }

    #[test]
    fn a_datagram_without_a_buffer_is_dropped() {
        let mut lab = Lab::new(Limits::default());
        let draft = Draft::v4();
        let octets = draft.udp((1, 2), &[1; 56]);
        let first = fragment(&mut lab, &draft, &octets, 0, 32);
        let last = fragment(&mut lab, &draft, &octets, 32, 64);
        lab.give(first);
        let taken: Vec<_> = std::iter::from_fn(|| lab.pool.alloc()).collect();
        assert!(lab.give(last).is_none());
        assert_eq!(lab.dropped(DropReason::NoBuffer), 2);
        drop(taken);
    }

    #[test]
    fn too_long_datagrams_are_dropped() {
        let mut lab = Lab::new(Limits::default());
        let mut draft = Draft::v4();
        draft.options = vec![1, 1, 1, 0];
        let octets = vec![0; 65_528];
        let later = fragment(&mut lab, &draft, &octets, 32_768, 65_528);
        lab.give(later);
        let mut octets = octets;
        octets[4..6].copy_from_slice(&65_528_u16.to_be_bytes());
        let first = fragment(&mut lab, &draft, &octets, 0, 32_768);
        assert!(lab.give(first).is_none());
        assert_eq!(lab.dropped(DropReason::IpLength), 2);
    }

    proptest! {
        /// However a datagram is cut, shuffled and repeated, it comes out as it was.
        #[test]
        fn any_order_makes_it_whole(
            v6: bool, len in 0..3000_usize, cuts in proptest::collection::btree_set(1..370_usize, 0..12),
            order in any::<u64>(), repeats: bool,
        ) {
            let mut lab = Lab::new(Limits::default());
            let draft = if v6 { Draft::v6() } else { Draft::v4() };
            let payload: Vec<u8> = (0..len as u32).map(|n| (n * 7 % 251) as u8).collect();
            let octets = draft.udp((1, 2), &payload);
            let mut bounds = vec![0];
            // A first fragment of eight octets holds just the UDP header.
            bounds.extend(cuts.iter().map(|cut| cut * 8).filter(|&cut| cut < octets.len()));
            bounds.push(octets.len());
            prop_assume!(bounds.len() > 2);
            let mut pieces: Vec<_> = bounds.windows(2).map(|pair| (pair[0], pair[1])).collect();
            fastrand::Rng::with_seed(order).shuffle(&mut pieces);
            for (n, &(start, end)) in pieces.iter().enumerate() {
                let packet = fragment(&mut lab, &draft, &octets, start, end);
                let whole = lab.give(packet);
                prop_assert_eq!(whole.is_some(), n + 1 == pieces.len());
                if let Some(whole) = whole {
                    prop_assert_eq!(whole.transport(), &octets[..]);
                    prop_assert!(whole.transport_checksum_ok());
                    prop_assert_eq!(whole.source(), draft.source);
                } else if repeats {
                    let packet = fragment(&mut lab, &draft, &octets, start, end);
                    prop_assert!(lab.give(packet).is_none());
                }
            }
            prop_assert_eq!(lab.reassembler.held(), 0);
        }

        /// Whatever arrives, counts add up and bounds hold.
        #[test]
        fn any_fragments_are_accounted_for(
            blows in proptest::collection::vec((0..40_usize, 1..20_usize, any::<bool>(), 0..4_u16, 0..4_u8, 0..20_000_u64), 1..80),
        ) {
            let limits = Limits { datagrams: 3, fragments: 12, ..Limits::default() };
            let mut lab = Lab::new(limits);
            for (start, len, last, identification, mark, wait) in blows {
                let mut draft = Draft::v4();
                draft.identification = identification;
                draft.class = mark;
                let end = (start + len) * 8;
                // The UDP length field of a first fragment.
                let mut octets = vec![1; end + usize::from(!last)];
                octets[4..6].copy_from_slice(&[1, 0]);
                if start == 0 && last {
                    continue;
                }
                let packet = fragment(&mut lab, &draft, &octets, start * 8, end);
                lab.give(packet);
                lab.now = lab.now + Duration::from_millis(wait);
                while lab.timed_out().is_some() {}
                prop_assert!(lab.reassembler.held() <= 12);
                prop_assert!(lab.reassembler.datagrams.len() <= 3);
            }
        }

        #[test]
        fn what_the_nos_cuts_can_be_put_together(len in 0..60_000_usize, mtu in 1280..9000_usize) {
            let mut lab = Lab::new(Limits::default());
            let draft = Draft::v6();
            let payload = vec![7; len];
            let packet = draft.udp_packet(&mut lab.pool, (1, 2), &payload);
            let sent = packet.ip().to_vec();
            let mut fragments = Vec::new();
            let adapted = fragment_ipv6(packet, mtu, 5, &mut lab.pool, &mut |piece| fragments.push(piece));
            prop_assert_eq!(adapted.originated, fragments.len() as u64 - 1);
            prop_assert!(adapted.dropped.is_none());
            let count = fragments.len();
            let mut received = None;
            for fragment in fragments {
                prop_assert!(fragment.ip().len() <= mtu);
                received = if count == 1 { Some(fragment) } else { lab.give(fragment) };
            }
            let received = received.unwrap();
            prop_assert_eq!(received.ip(), &sent[..]);
        }
    }
}
