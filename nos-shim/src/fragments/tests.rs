use super::*;
use crate::checksum::Sum;
use crate::frame::{FramePool, MAX_FRAME};
use crate::ident::{AttachmentId, Interface, UplinkId};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// A fragment to be sent, with a number to know it by.
#[derive(Clone, Copy, Debug)]
struct Piece {
    ipv6: bool,
    source: u8,
    id: u8,
    start: u16,
    len: u16,
    last: bool,
}

const PIECE: Piece = Piece {
    ipv6: false,
    source: 9,
    id: 1,
    start: 0,
    len: 16,
    last: false,
};

type Owner = (bool, u8, u8);

impl Piece {
    fn owner(self) -> Owner {
        (self.ipv6, self.source, self.id)
    }

    /// The number travels in the Ethernet source address.
    fn packet(self, pool: &mut FramePool, number: u32) -> Packet {
        let mut octets = vec![2, 0, 0, 0, 0, 1, 2, 0];
        octets.extend(number.to_be_bytes());
        let more = u16::from(!self.last);
        if self.ipv6 {
            octets.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            octets.extend((self.len + 8).to_be_bytes());
            octets.extend([44, 64]);
            octets.extend([
                0x20,
                1,
                0xd,
                0xb8,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                self.source,
            ]);
            octets.extend([0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
            octets.extend([17, 0]);
            octets.extend((self.start | more).to_be_bytes());
            octets.extend([0, 0, 0, self.id]);
        } else {
            let mut ip = vec![0x45, 0];
            ip.extend((20 + self.len).to_be_bytes());
            ip.extend([0, self.id]);
            ip.extend(((self.start / 8) | (more << 13)).to_be_bytes());
            ip.extend([64, 17, 0, 0, 198, 51, 100, self.source, 203, 0, 113, 1]);
            let sum = Sum::ZERO.plus(&ip).checksum().to_be_bytes();
            ip[10..12].copy_from_slice(&sum);
            octets.extend([8, 0]);
            octets.extend(ip);
        }
        let mut payload = vec![0x11; self.len.into()];
        if self.start == 0 {
            payload[..4].copy_from_slice(&[0x30, 0x39, 0x4e, 0x20]);
            payload[4..6].copy_from_slice(&self.len.to_be_bytes());
        }
        octets.extend(payload);
        Packet::parse(pool.copy_from(&octets).unwrap()).unwrap()
    }
}

fn number(packet: &Packet) -> u32 {
    let [.., a, b, c, d] = packet.source_mac().0;
    u32::from_be_bytes([a, b, c, d])
}

/// What became of packets, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Held,
    Delivered,
    Dropped(DropReason),
}

struct Bench {
    table: FragmentTable<Owner>,
    /// With room for all, unless the test is about it.
    shares: Shares,
    pool: FramePool,
    pieces: Vec<Piece>,
    seen: Vec<Seen>,
    /// Where packets come in.
    from: Option<Interface>,
}

impl Bench {
    fn new(limits: FragmentLimits) -> Self {
        Self {
            table: FragmentTable::new(limits),
            shares: Shares::for_one(2048),
            pool: FramePool::new(2048, MAX_FRAME.min(2000)),
            pieces: Vec::new(),
            seen: Vec::new(),
            from: None,
        }
    }

    fn settle(&mut self, fate: Fate<Owner>) {
        let (packet, seen) = match fate {
            Fate::Deliver(packet, owner) => {
                let piece = self.pieces[number(&packet) as usize];
                assert_eq!(owner, piece.owner(), "to the wrong owner");
                (packet, Seen::Delivered)
            }
            Fate::Drop(packet, reason) => (packet, Seen::Dropped(reason)),
        };
        let known = &mut self.seen[number(&packet) as usize];
        assert_eq!(*known, Seen::Held, "two fates for one packet");
        *known = seen;
        self.pool.free(packet.into_frame());
    }

    fn drain(&mut self) {
        while let Some(fate) = self.table.poll_fate(&mut self.shares) {
            self.settle(fate);
        }
        let held = self.seen.iter().filter(|&&seen| seen == Seen::Held).count();
        assert_eq!(self.table.held(), held, "a packet was lost");
    }

    fn handle(&mut self, piece: Piece, now: Instant) -> Seen {
        let number = self.pieces.len();
        self.pieces.push(piece);
        self.seen.push(Seen::Held);
        let mut packet = piece.packet(&mut self.pool, number as u32);
        if let Some(from) = self.from {
            packet.set_interface(from);
        }
        let first = packet.fragment() != Fragment::Later;
        let fate = self.table.handle(packet, now, &mut self.shares, |packet| {
            assert!(first && packet.ports().is_some());
            piece.owner()
        });
        if let Some(fate) = fate {
            self.settle(fate);
        }
        self.drain();
        self.seen[number]
    }

    fn expire(&mut self, now: Instant) {
        self.table.expire(now);
        self.drain();
    }
}

fn small() -> FragmentLimits {
    FragmentLimits {
        datagrams: 8,
        datagrams_per_source: 4,
        held: 6,
        held_per_source: 3,
        lifetime: Duration::from_secs(3),
    }
}

fn seconds(n: u64) -> Instant {
    Instant::from_millis(n * 1000)
}

const OVERLAP: Seen = Seen::Dropped(DropReason::FragmentOverlap);
const DUPLICATE: Seen = Seen::Dropped(DropReason::FragmentDuplicate);
const TIMEOUT: Seen = Seen::Dropped(DropReason::FragmentTimeout);
const FULL: Seen = Seen::Dropped(DropReason::FragmentQueueFull);

#[test]
fn later_fragments_wait_for_the_first() {
    for ipv6 in [false, true] {
        let mut bench = Bench::new(FragmentLimits::default());
        let piece = |start, last| Piece {
            ipv6,
            start,
            last,
            ..PIECE
        };
        assert_eq!(bench.handle(piece(32, true), seconds(1)), Seen::Held);
        assert_eq!(bench.handle(piece(16, false), seconds(1)), Seen::Held);
        assert_eq!(bench.table.len(), 1);
        assert_eq!(bench.handle(piece(0, false), seconds(1)), Seen::Delivered);
        assert_eq!(bench.seen, [Seen::Delivered; 3]);
        assert!(bench.table.is_empty(), "complete");
        assert_eq!(bench.table.poll_at(), None);
    }
}

#[test]
fn whole_datagrams_pass() {
    let mut bench = Bench::new(small());
    let whole = Piece {
        last: true,
        ..PIECE
    };
    assert_eq!(bench.handle(whole, seconds(1)), Seen::Delivered);
    let atomic = Piece {
        ipv6: true,
        ..whole
    };
    assert_eq!(bench.handle(atomic, seconds(1)), Seen::Delivered);
    assert!(bench.table.is_empty());
}

#[test]
fn what_waits_for_three_seconds_is_dropped() {
    let mut bench = Bench::new(small());
    bench.handle(Piece { start: 16, ..PIECE }, seconds(10));
    bench.expire(Instant::from_millis(12_999));
    assert_eq!(bench.seen, [Seen::Held]);
    let wake = bench.table.poll_at().unwrap();
    assert!(wake >= seconds(13) && wake <= Instant::from_millis(13_200));
    bench.expire(wake);
    assert_eq!(bench.seen, [TIMEOUT]);
    assert!(bench.table.is_empty());
    assert_eq!(bench.table.poll_at(), None);
}

#[test]
fn a_late_first_fragment_is_of_another_datagram() {
    let mut bench = Bench::new(small());
    bench.handle(Piece { start: 16, ..PIECE }, seconds(10));
    assert_eq!(bench.handle(PIECE, seconds(13)), Seen::Delivered);
    assert_eq!(bench.seen[0], TIMEOUT);
    assert_eq!(
        bench.handle(Piece { start: 16, ..PIECE }, seconds(14)),
        Seen::Delivered
    );
}

#[test]
fn an_overlap_ends_the_datagram() {
    for overlapping in [
        Piece {
            start: 24,
            len: 8,
            ..PIECE
        },
        Piece {
            start: 8,
            len: 16,
            ..PIECE
        },
        Piece {
            start: 16,
            len: 24,
            ..PIECE
        },
        Piece {
            start: 16,
            last: true,
            ..PIECE
        },
        Piece {
            start: 0,
            len: 48,
            ..PIECE
        },
        Piece {
            start: 64,
            len: 0,
            ..PIECE
        },
        Piece {
            start: 40,
            len: 16,
            ..PIECE
        },
        Piece {
            start: 8,
            len: 4,
            last: true,
            ..PIECE
        },
    ] {
        let mut bench = Bench::new(small());
        bench.handle(Piece { start: 16, ..PIECE }, seconds(1));
        bench.handle(
            Piece {
                start: 32,
                last: true,
                ..PIECE
            },
            seconds(1),
        );
        assert_eq!(
            bench.handle(overlapping, seconds(1)),
            OVERLAP,
            "{overlapping:?}"
        );
        assert_eq!(bench.seen, [OVERLAP; 3]);
        assert_eq!(bench.handle(PIECE, seconds(1)), OVERLAP);
        assert_eq!(
            bench.handle(Piece { id: 2, ..PIECE }, seconds(1)),
            Seen::Delivered
        );
        bench.expire(seconds(5));
        assert_eq!(bench.handle(PIECE, seconds(5)), Seen::Delivered);
    }
}

#[test]
fn a_duplicate_is_dropped_alone() {
    let mut bench = Bench::new(small());
    let later = Piece { start: 16, ..PIECE };
    assert_eq!(bench.handle(later, seconds(1)), Seen::Held);
    assert_eq!(bench.handle(later, seconds(1)), DUPLICATE);
    assert_eq!(bench.handle(PIECE, seconds(1)), Seen::Delivered);
    assert_eq!(bench.handle(PIECE, seconds(1)), DUPLICATE);
    assert_eq!(bench.handle(later, seconds(1)), DUPLICATE);
    let last = Piece {
        start: 32,
        last: true,
        ..PIECE
    };
    assert_eq!(bench.handle(last, seconds(1)), Seen::Delivered);
    assert_eq!(bench.seen[0], Seen::Delivered);
}

#[test]
fn ipv4_fragments_are_cut_to_a_multiple_of_eight() {
    let mut bench = Bench::new(small());
    bench.handle(Piece { len: 20, ..PIECE }, seconds(1));
    let last = Piece {
        start: 16,
        len: 3,
        last: true,
        ..PIECE
    };
    assert_eq!(bench.handle(last, seconds(1)), Seen::Delivered);
    assert!(bench.table.is_empty());
}

#[test]
fn a_source_cannot_hold_more_than_its_share() {
    let mut bench = Bench::new(small());
    let later = |source, id, start| Piece {
        source,
        id,
        start,
        ..PIECE
    };
    bench.handle(later(1, 1, 16), seconds(1));
    for n in 1..4 {
        bench.handle(later(9, 1, 16 * n), seconds(1));
    }
    assert_eq!(bench.handle(later(9, 2, 16), seconds(1)), FULL);
    assert_eq!(bench.seen[..4], [Seen::Held; 4], "what is held stays");
    assert_eq!(bench.handle(later(9, 1, 64), seconds(1)), FULL);
    assert_eq!(
        bench.seen[1..4],
        [FULL; 3],
        "the datagram cannot be put together any more"
    );
    assert_eq!(bench.handle(later(9, 1, 0), seconds(1)), FULL);
    assert_eq!(bench.handle(later(1, 1, 0), seconds(1)), Seen::Delivered);
    assert_eq!(bench.seen[0], Seen::Delivered);
}

#[test]
fn when_too_many_are_held_the_longest_waiting_goes() {
    let mut bench = Bench::new(small());
    for source in 0..8 {
        assert_eq!(
            bench.handle(
                Piece {
                    source,
                    start: 16,
                    ..PIECE
                },
                seconds(1)
            ),
            Seen::Held
        );
    }
    assert_eq!(bench.seen[..3], [FULL, FULL, Seen::Held]);
    assert_eq!(
        bench.handle(Piece { source: 7, ..PIECE }, seconds(1)),
        Seen::Delivered
    );
    assert_eq!(bench.seen[7], Seen::Delivered);
}

#[test]
fn a_flood_of_datagrams_costs_others_only_the_oldest() {
    let mut bench = Bench::new(small());
    bench.handle(Piece { source: 1, ..PIECE }, seconds(1));
    for id in 0..100 {
        assert_eq!(
            bench.handle(Piece { id, ..PIECE }, seconds(1)),
            Seen::Delivered
        );
    }
    assert_eq!(bench.table.len(), 5);
    let later = |source, id| Piece {
        source,
        id,
        start: 16,
        ..PIECE
    };
    assert_eq!(bench.handle(later(1, 1), seconds(1)), Seen::Delivered);
    assert_eq!(bench.handle(later(9, 99), seconds(1)), Seen::Delivered);
    assert_eq!(bench.handle(later(9, 5), seconds(1)), Seen::Held);
    for source in 10..200 {
        assert_eq!(
            bench.handle(Piece { source, ..PIECE }, seconds(1)),
            Seen::Delivered
        );
        assert_eq!(bench.handle(later(source, 1), seconds(1)), Seen::Delivered);
        assert!(bench.table.len() <= 8);
    }
    assert_eq!(
        bench
            .table
            .keys
            .count((VrfId(0), IpAddr::from([198, 51, 100, 1]), Account::NOS)),
        0
    );
}

#[test]
fn a_datagram_in_crumbs_is_dropped() {
    let limits = FragmentLimits {
        held: 1000,
        held_per_source: 1000,
        ..small()
    };
    let mut bench = Bench::new(limits);
    for n in 1..=128 {
        let crumb = Piece {
            start: 8 * n,
            len: 8,
            ..PIECE
        };
        assert_eq!(bench.handle(crumb, seconds(1)), Seen::Held);
    }
    assert_eq!(bench.handle(PIECE, seconds(1)), OVERLAP, "16 octets");
    let mut bench = Bench::new(limits);
    for n in (1..=128).rev() {
        bench.handle(
            Piece {
                start: 8 * n,
                len: 8,
                ..PIECE
            },
            seconds(1),
        );
    }
    assert_eq!(bench.handle(Piece { len: 8, ..PIECE }, seconds(1)), FULL);
    assert_eq!(bench.table.held(), 0);
}

#[test]
fn an_owner_that_has_gone_gets_no_more_fragments() {
    let mut bench = Bench::new(small());
    bench.handle(PIECE, seconds(1));
    bench.handle(Piece { id: 2, ..PIECE }, seconds(1));
    assert_eq!(bench.table.flush(PIECE.owner()), 1);
    assert_eq!(bench.table.flush(PIECE.owner()), 0);
    assert_eq!(
        bench.handle(Piece { start: 16, ..PIECE }, seconds(1)),
        Seen::Held
    );
    let other = Piece {
        id: 2,
        start: 16,
        ..PIECE
    };
    assert_eq!(bench.handle(other, seconds(1)), Seen::Delivered);
}

#[test]
fn a_table_without_room_drops() {
    let mut bench = Bench::new(FragmentLimits {
        datagrams: 0,
        ..small()
    });
    assert_eq!(bench.handle(PIECE, seconds(1)), FULL);
    let mut bench = Bench::new(FragmentLimits { held: 0, ..small() });
    assert_eq!(bench.handle(Piece { start: 16, ..PIECE }, seconds(1)), FULL);
    assert_eq!(bench.handle(PIECE, seconds(1)), FULL);
}

const B: Interface = Interface::Attachment(AttachmentId(7));
const OUTSIDE: Interface = Interface::Uplink(UplinkId(0));

/// Fragments of one owner, first and later ones, take neither places nor buffers of another.
#[test]
fn a_flood_of_one_owner_costs_another_nothing() {
    let mut bench = Bench::new(FragmentLimits {
        datagrams: 64,
        held: 1000,
        ..small()
    });
    bench.shares = Shares::new(60);
    let later = |source, id| Piece {
        source,
        id,
        start: 16,
        ..PIECE
    };
    bench.from = Some(OUTSIDE);
    let honest: Vec<_> = (0..5).map(|n| Piece { source: n, ..PIECE }).collect();
    for piece in &honest {
        assert_eq!(bench.handle(later(piece.source, 1), seconds(1)), Seen::Held);
    }
    let flood = |bench: &mut Bench| {
        bench.from = Some(B);
        for n in 0..500_u16 {
            let [source, id] = [(n % 100) as u8 + 100, (n / 100) as u8];
            bench.handle(later(source, id), seconds(1));
            bench.handle(
                Piece {
                    source,
                    id: id + 10,
                    ..PIECE
                },
                seconds(1),
            );
        }
        bench.from = Some(OUTSIDE);
    };
    flood(&mut bench);
    assert_eq!(
        bench.shares.held_by(B.into()),
        28,
        "half of what the others leave"
    );
    assert_eq!(bench.shares.held_by(OUTSIDE.into()), 5);
    for &piece in &honest {
        assert_eq!(bench.handle(piece, seconds(1)), Seen::Delivered);
    }
    assert!(bench.seen[..5].iter().all(|&seen| seen == Seen::Delivered));
    // What the first fragments told is still known, and there is room for more.
    flood(&mut bench);
    for &Piece { source, .. } in &honest {
        let last = Piece {
            start: 32,
            ..later(source, 1)
        };
        assert_eq!(bench.handle(last, seconds(1)), Seen::Delivered);
        assert_eq!(bench.handle(later(source, 2), seconds(1)), Seen::Held);
    }
    bench.expire(seconds(10));
    assert_eq!(bench.shares.held(), 0);
}

/// A source is an address of one owner: containers share theirs.
#[test]
fn owners_with_the_same_address_are_two_sources() {
    let mut bench = Bench::new(small());
    for (from, seen) in [(B, Seen::Held), (OUTSIDE, Seen::Held)] {
        bench.from = Some(from);
        let id = if from == B { 1 } else { 2 };
        for n in 1..=3 {
            let start = 16 * n;
            assert_eq!(bench.handle(Piece { id, start, ..PIECE }, seconds(1)), seen);
        }
    }
}

/// Cuts a datagram of 8-octet units at `cuts`.
fn cut(base: Piece, units: u16, cuts: &BTreeSet<u16>) -> Vec<Piece> {
    let inner = cuts.iter().copied().filter(|&cut| cut > 0 && cut < units);
    let edges: Vec<_> = core::iter::once(0).chain(inner).chain([units]).collect();
    let span = |edge: &[u16]| Piece {
        start: 8 * edge[0],
        len: 8 * (edge[1] - edge[0]),
        last: edge[1] == units,
        ..base
    };
    edges.windows(2).map(span).collect()
}

fn datagram() -> impl Strategy<Value = Vec<Piece>> {
    let cuts = proptest::collection::btree_set(1..12_u16, 1..6);
    (any::<bool>(), 0..3_u8, 0..3_u8, 2..12_u16, cuts).prop_map(
        |(ipv6, source, id, units, cuts)| {
            cut(
                Piece {
                    ipv6,
                    source,
                    id,
                    ..PIECE
                },
                units,
                &cuts,
            )
        },
    )
}

fn stray() -> impl Strategy<Value = Piece> {
    let place = (0..12_u16, 1..5_u16, any::<bool>());
    (any::<bool>(), 0..3_u8, 0..3_u8, place).prop_map(|(ipv6, source, id, (start, len, last))| {
        let (start, len) = (8 * start, 8 * len);
        Piece {
            ipv6,
            source,
            id,
            start,
            len,
            last,
        }
    })
}

/// Fragments of several datagrams in any order, some twice, and some that fit nowhere.
fn traffic(strays: usize) -> impl Strategy<Value = Vec<Piece>> {
    let datagrams = proptest::collection::vec(datagram(), 1..6);
    let strays = proptest::collection::vec(stray(), 0..=strays);
    (datagrams, strays, any::<[prop::sample::Index; 3]>())
        .prop_map(|(datagrams, strays, again)| {
            let mut all: Vec<_> = datagrams.into_iter().flatten().chain(strays).collect();
            let twice = again.map(|index| all[index.index(all.len())]);
            all.extend(twice);
            all
        })
        .prop_shuffle()
}

/// A datagram as a set of octets, compared one by one.
#[derive(Default)]
struct Naive {
    pieces: Vec<(u16, u16, bool)>,
    octets: BTreeSet<u16>,
    owned: bool,
    dead: bool,
    held: Vec<usize>,
}

impl Naive {
    fn place(&mut self, piece: Piece, number: usize, seen: &mut [Seen]) {
        let this = (piece.start, piece.start + piece.len, piece.last);
        let octets: BTreeSet<_> = (this.0..this.1).collect();
        let len = self
            .pieces
            .iter()
            .find(|piece| piece.2)
            .map(|piece| piece.1);
        let clash = !self.octets.is_disjoint(&octets)
            || len.is_some_and(|len| piece.last || this.1 > len)
            || piece.last && self.octets.last().is_some_and(|&octet| octet >= this.1);
        let now = if self.dead {
            OVERLAP
        } else if self.pieces.contains(&this) {
            DUPLICATE
        } else if clash {
            self.dead = true;
            OVERLAP
        } else {
            self.pieces.push(this);
            self.octets.extend(octets);
            self.owned |= piece.start == 0;
            if self.owned {
                Seen::Delivered
            } else {
                Seen::Held
            }
        };
        seen[number] = now;
        match now {
            Seen::Held => self.held.push(number),
            Seen::Delivered | OVERLAP => self.held.drain(..).for_each(|held| seen[held] = now),
            Seen::Dropped(_) => {}
        }
    }

    fn is_complete(&self) -> bool {
        let len = self
            .pieces
            .iter()
            .find(|piece| piece.2)
            .map(|piece| piece.1);
        !self.dead && len.is_some_and(|len| (0..len).all(|octet| self.octets.contains(&octet)))
    }
}

/// A piece that is whole is no fragment.
fn is_fragment(piece: &Piece) -> bool {
    piece.start > 0 || !piece.last
}

proptest! {
    #[test]
    fn fates_agree_with_sets_of_octets(pieces in traffic(4)) {
        let mut bench = Bench::new(FragmentLimits::default());
        let mut naive: BTreeMap<Owner, Naive> = BTreeMap::new();
        let mut seen = Vec::new();
        for piece in pieces.into_iter().filter(is_fragment) {
            seen.push(Seen::Held);
            let datagram = naive.entry(piece.owner()).or_default();
            datagram.place(piece, seen.len() - 1, &mut seen);
            if datagram.is_complete() {
                naive.remove(&piece.owner());
            }
            bench.handle(piece, seconds(1));
            prop_assert_eq!(&bench.seen, &seen);
            prop_assert_eq!(bench.table.len(), naive.len());
        }
        bench.expire(seconds(5));
        let timed_out = seen.iter().map(|&seen| if seen == Seen::Held { TIMEOUT } else { seen });
        prop_assert_eq!(bench.seen, timed_out.collect::<Vec<_>>());
        prop_assert!(bench.table.is_empty());
    }

    #[test]
    fn without_overlaps_every_octet_arrives(
        (pieces, order) in datagram().prop_flat_map(|pieces| {
            let order: Vec<_> = (0..pieces.len()).collect();
            (Just(pieces), Just(order).prop_shuffle())
        })
    ) {
        let mut bench = Bench::new(FragmentLimits::default());
        for index in order {
            bench.handle(pieces[index], seconds(1));
        }
        prop_assert!(bench.seen.iter().all(|&seen| seen == Seen::Delivered));
        prop_assert!(bench.table.is_empty());
    }

    /// Limits this small are hit all the time. `Bench` checks owners and that no packet is lost.
    #[test]
    fn limits_hold_and_nothing_is_lost(
        pieces in proptest::collection::vec((stray(), 0..1500_u64, any::<bool>()), 1..150)
    ) {
        let mut bench = Bench::new(small());
        let mut now = seconds(100);
        for (piece, wait, expire) in pieces {
            now = now + Duration::from_millis(if wait < 500 { 0 } else { wait });
            if expire {
                bench.expire(now);
                prop_assert!(bench.table.poll_at().is_none_or(|at| at > now));
            }
            bench.handle(piece, now);
            prop_assert!(bench.table.len() <= 8 && bench.table.held() <= 6);
            let held = bench.pieces.iter().zip(&bench.seen).filter(|&(_, &seen)| seen == Seen::Held);
            let mut by_source: BTreeMap<(bool, u8), usize> = BTreeMap::new();
            held.for_each(|(piece, _)| *by_source.entry((piece.ipv6, piece.source)).or_default() += 1);
            prop_assert!(by_source.values().all(|&count| count <= 3));
            prop_assert_eq!(bench.table.held_by.iter().sum::<usize>(), bench.table.held());
        }
        bench.expire(now + Duration::from_secs(4));
        prop_assert_eq!((bench.table.held(), bench.table.len()), (0, 0));
    }
}
