use super::super::region::Region;
use super::*;
use proptest::prelude::*;

const LOG2: u8 = 3;
const SIZE: u16 = 1 << LOG2;

/// Both ends of a ring each way, and the memory as the client has it.
struct Pair {
    client: (RxRing, TxRing),
    server: (RxRing, TxRing),
    memory: Arc<Memory>,
    pool: FramePool,
}

impl Pair {
    fn new() -> Self {
        let rings = 2 * ring_octets(LOG2);
        let (ours, file) = Region::create((rings + 2 * u32::from(SIZE) * BUFFER) as usize).unwrap();
        let theirs = Region::of_peer(0, &file, u64::from(rings + 2 * u32::from(SIZE) * BUFFER));
        let memory = Arc::new(Memory::new(vec![ours]));
        let mapped = Arc::new(Memory::new(vec![theirs.unwrap()]));
        let at =
            |memory, side, n: u32| Ring::at(memory, side, 0, n * ring_octets(LOG2), LOG2).unwrap();
        let rings_of = |memory, side| (at(memory, side, 0), at(memory, side, 1));
        let (to_server, to_client) = rings_of(&memory, Side::Client);
        to_server.initialise();
        to_client.initialise();
        let mut client = (
            RxRing::of_client(to_client, rings + u32::from(SIZE) * BUFFER),
            TxRing::of_client(to_server, rings),
        );
        let (from_client, from_server) = rings_of(&mapped, Side::Server);
        from_client.check().unwrap();
        client.0.offer();
        client.1.offer();
        Self {
            client,
            server: (
                RxRing::of_server(from_client),
                TxRing::of_server(from_server),
            ),
            memory,
            pool: FramePool::new(256, MAX_FRAME),
        }
    }

    fn receive(
        &mut self,
        side: Side,
        limit: usize,
    ) -> (Vec<Vec<u8>>, Traffic, Result<Rest, Fault>) {
        let (mut burst, mut traffic) = (Burst::new(), Traffic::default());
        let end = match side {
            Side::Client => &mut self.client.0,
            Side::Server => &mut self.server.0,
        };
        let rest = end.receive(&mut self.pool, &mut burst, limit, &mut traffic);
        let frames = burst.iter().map(|frame| frame.bytes().to_vec()).collect();
        (frames, traffic, rest)
    }

    fn sender(&mut self, side: Side) -> &mut TxRing {
        match side {
            Side::Client => &mut self.client.1,
            Side::Server => &mut self.server.1,
        }
    }

    /// A ring as the peer of `side` has it, who may do to it what it likes.
    fn hostile(&self, n: u32) -> Ring {
        Ring::at(&self.memory, Side::Client, 0, n * ring_octets(LOG2), LOG2).unwrap()
    }
}

fn other(side: Side) -> Side {
    match side {
        Side::Client => Side::Server,
        Side::Server => Side::Client,
    }
}

fn frame(n: usize, length: usize) -> Vec<u8> {
    (0..length).map(|at| (at + n).to_le_bytes()[0]).collect()
}

#[test]
fn frames_arrive_as_they_were_sent_either_way() {
    for side in [Side::Client, Side::Server] {
        let mut pair = Pair::new();
        for round in 0..1000 {
            let sent: Vec<_> = (0..3).map(|n| frame(round + n, 14 + 700 * n)).collect();
            for frame in &sent {
                assert_eq!(pair.sender(side).put(frame), Ok(true));
            }
            assert!(pair.sender(side).publish(), "nobody masks");
            let (received, traffic, rest) = pair.receive(other(side), 64);
            assert_eq!(rest, Ok(Rest::Empty));
            assert_eq!(received, sent);
            assert_eq!(traffic.frames, 3);
        }
    }
}

#[test]
fn a_long_frame_takes_several_descriptors() {
    for side in [Side::Client, Side::Server] {
        let mut pair = Pair::new();
        for length in [2048, 2049, 4096, 9014, 8 * 2048] {
            let sent = frame(length, length);
            assert_eq!(pair.sender(side).put(&sent), Ok(true), "{length}");
            pair.sender(side).publish();
            let (received, _, rest) = pair.receive(other(side), 64);
            assert_eq!((received, rest), (vec![sent], Ok(Rest::Empty)), "{length}");
        }
        assert_eq!(pair.sender(side).put(&frame(0, 8 * 2048 + 1)), Ok(false));
        assert!(!pair.sender(side).publish(), "nothing was put");
    }
}

#[test]
fn a_full_ring_takes_no_more_until_the_peer_has_taken() {
    for side in [Side::Client, Side::Server] {
        let mut pair = Pair::new();
        for n in 0..usize::from(SIZE) {
            assert_eq!(pair.sender(side).put(&frame(n, 60)), Ok(true));
        }
        assert_eq!(pair.sender(side).put(&frame(9, 60)), Ok(false));
        pair.sender(side).publish();
        let (received, _, rest) = pair.receive(other(side), 3);
        assert_eq!((received.len(), rest), (3, Ok(Rest::Full)));
        for n in 0..3 {
            assert_eq!(pair.sender(side).put(&frame(n, 60)), Ok(true));
        }
        assert_eq!(pair.sender(side).put(&frame(9, 60)), Ok(false));
    }
}

#[test]
fn what_the_peer_has_not_taken_can_be_told_by_the_client() {
    let mut pair = Pair::new();
    for n in 0..5 {
        assert_eq!(pair.sender(Side::Client).put(&frame(n, 60)), Ok(true));
    }
    assert_eq!(pair.sender(Side::Client).untaken(), 0);
    pair.sender(Side::Client).publish();
    assert_eq!(pair.sender(Side::Client).untaken(), 5);
    let _ = pair.receive(Side::Server, 2);
    assert_eq!(pair.sender(Side::Client).untaken(), 3);
}

#[test]
fn a_receiver_that_masks_is_not_rung() {
    let mut pair = Pair::new();
    pair.server.0.mask(true);
    assert_eq!(pair.sender(Side::Client).put(&frame(0, 60)), Ok(true));
    assert!(!pair.sender(Side::Client).publish());
    pair.server.0.mask(false);
    assert_eq!(pair.sender(Side::Client).put(&frame(0, 60)), Ok(true));
    assert!(pair.sender(Side::Client).publish());
}

#[test]
fn frames_of_impossible_lengths_are_dropped_and_the_next_received() {
    for side in [Side::Client, Side::Server] {
        let mut pair = Pair::new();
        for length in [0, 1, 13, 14] {
            // A frame of no octets takes a descriptor too.
            assert_eq!(pair.sender(side).put(&frame(0, length)), Ok(true));
        }
        pair.sender(side).publish();
        let (received, traffic, rest) = pair.receive(other(side), 64);
        assert_eq!((received, rest), (vec![frame(0, 14)], Ok(Rest::Empty)));
        assert_eq!(traffic.drops.of(DropReason::FrameLength), 3);
    }
}

#[test]
fn a_chain_that_is_longer_than_any_frame_is_dropped_whole() {
    let mut pair = Pair::new();
    // 36 times 2048 octets do not fit a ring of 8: the same octets again and again do.
    let rings = 2 * ring_octets(LOG2);
    let ring = pair.hostile(0);
    for slot in 0..SIZE {
        let last = slot == SIZE - 1;
        ring.write(
            slot,
            Descriptor {
                flags: if last { 0 } else { NEXT },
                region: 0,
                length: u32::from(SIZE) * BUFFER,
                offset: rings,
            },
        );
    }
    ring.publish(SIZE);
    let (received, traffic, rest) = pair.receive(Side::Server, 64);
    assert_eq!((received.len(), rest), (0, Ok(Rest::Empty)));
    assert_eq!(traffic.drops.of(DropReason::FrameLength), 1);
}

#[test]
fn an_index_that_runs_away_is_refused() {
    let fault = |theirs, ours| Fault::Index {
        theirs,
        ours,
        size: SIZE,
    };
    for index in [SIZE + 1, 0x8000, u16::MAX] {
        let mut pair = Pair::new();
        pair.hostile(0).index(HEAD).store(index, Ordering::Relaxed);
        assert_eq!(pair.receive(Side::Server, 64).2, Err(fault(index, 0)));
        pair.hostile(1).index(HEAD).store(index, Ordering::Relaxed);
        let put = pair.sender(Side::Server).put(&frame(0, 60));
        assert_eq!(put, Err(fault(index, 0)));
        // As server, the peer moves the tails.
        pair.hostile(1).index(TAIL).store(index, Ordering::Relaxed);
        assert_eq!(pair.receive(Side::Client, 64).2, Err(fault(index, 0)));
    }
    // Nothing was sent, so nothing can have been taken.
    let mut pair = Pair::new();
    pair.hostile(0).index(TAIL).store(1, Ordering::Relaxed);
    let put = pair.sender(Side::Client).put(&frame(0, 60));
    assert_eq!(put, Err(fault(1, 0)));
}

#[test]
fn a_descriptor_that_lies_is_refused_and_counted() {
    let rings = 2 * ring_octets(LOG2);
    let end = rings + 2 * u32::from(SIZE) * BUFFER;
    let good = Descriptor {
        flags: 0,
        region: 0,
        length: 60,
        offset: rings,
    };
    let bad = [
        Descriptor { region: 1, ..good },
        Descriptor {
            offset: end - 59,
            ..good
        },
        Descriptor {
            offset: u32::MAX,
            length: u32::MAX,
            ..good
        },
        Descriptor {
            length: end,
            ..good
        },
        // It goes on where nothing was sent.
        Descriptor {
            flags: NEXT,
            ..good
        },
    ];
    for lie in bad {
        let mut pair = Pair::new();
        let ring = pair.hostile(0);
        ring.write(0, good);
        ring.write(1, lie);
        ring.publish(2);
        let (received, traffic, rest) = pair.receive(Side::Server, 64);
        assert_eq!(received.len(), 1, "{lie:?}");
        assert_eq!(traffic.drops.of(DropReason::BadDescriptor), 1, "{lie:?}");
        assert!(
            matches!(
                rest,
                Err(Fault::Window { slot: 1, .. } | Fault::Unfinished { slot: 1 })
            ),
            "{rest:?}"
        );
        // The same, offered as a buffer.
        let ring = pair.hostile(1);
        ring.write(0, lie);
        ring.publish(1);
        let put = pair.sender(Side::Server).put(&frame(0, 60));
        let expected = lie.flags & NEXT != 0;
        assert_eq!(put == Ok(true), expected, "{put:?}");
    }
}

#[test]
fn a_buffer_without_room_is_refused() {
    let mut pair = Pair::new();
    let ring = pair.hostile(1);
    let empty = Descriptor::default();
    ring.write(0, empty);
    ring.publish(1);
    let put = pair.sender(Side::Server).put(&frame(0, 60));
    assert_eq!(put, Err(Fault::NoRoom { slot: 0 }));
}

#[test]
fn a_client_finds_frames_in_its_own_buffers_whatever_the_server_writes() {
    let mut pair = Pair::new();
    let ring = pair.hostile(1);
    assert_eq!(pair.sender(Side::Server).put(&frame(5, 60)), Ok(true));
    pair.sender(Side::Server).publish();
    let lie = Descriptor {
        flags: 0,
        region: 77,
        length: 60,
        offset: u32::MAX,
    };
    ring.write(0, lie);
    let (received, _, rest) = pair.receive(Side::Client, 64);
    assert_eq!((received, rest), (vec![frame(5, 60)], Ok(Rest::Empty)));
    ring.write(
        1,
        Descriptor {
            length: BUFFER + 1,
            ..lie
        },
    );
    ring.index(TAIL).store(2, Ordering::Relaxed);
    let (_, traffic, rest) = pair.receive(Side::Client, 64);
    assert!(matches!(rest, Err(Fault::Window { slot: 1, .. })));
    assert_eq!(traffic.drops.of(DropReason::BadDescriptor), 1);
}

#[test]
fn a_ring_has_to_lie_in_its_region() {
    let (region, _file) = Region::create(4096).unwrap();
    let memory = Arc::new(Memory::new(vec![region]));
    let at = |region, offset, log2| Ring::at(&memory, Side::Server, region, offset, log2);
    assert!(at(0, 0, 4).is_ok());
    let last = 4096 - ring_octets(4);
    assert!(at(0, last, 4).is_ok());
    for (region, offset, log2) in [
        (0, last + 8, 4),
        (0, 4, 4),
        (1, 0, 4),
        (0, !7, 4),
        (0, 0, 15),
        (0, 0, 255),
    ] {
        let misplaced = Fault::Misplaced {
            region,
            offset,
            log2_size: log2,
        };
        let found = at(region, offset, log2).map(drop);
        assert_eq!(found, Err(misplaced), "{region} {offset} {log2}");
    }
    let ring = at(0, 0, 4).unwrap();
    assert_eq!(ring.check(), Err(Fault::Cookie(0)));
    ring.initialise();
    assert_eq!(ring.check(), Ok(()));
}

/// What a hostile peer does to a ring.
#[derive(Clone, Debug)]
enum Hostility {
    Words {
        ring: u32,
        slot: u16,
        words: [u64; 2],
    },
    Descriptor {
        ring: u32,
        slot: u16,
        near: (u16, u16, u32, u32),
    },
    Index {
        ring: u32,
        tail: bool,
        value: u16,
    },
    Nudge {
        ring: u32,
        tail: bool,
        by: u16,
    },
    Flags {
        ring: u32,
        flags: u16,
    },
    Receive {
        client: bool,
        limit: usize,
    },
    Send {
        client: bool,
        length: usize,
    },
}

fn hostility() -> impl Strategy<Value = Hostility> {
    let ring = 0..2_u32;
    let near = (0..4_u16, 0..2_u16, 0..5000_u32, 0..40_000_u32);
    prop_oneof![
        (ring.clone(), 0..SIZE, any::<[u64; 2]>())
            .prop_map(|(ring, slot, words)| Hostility::Words { ring, slot, words }),
        (ring.clone(), 0..SIZE, near).prop_map(|(ring, slot, near)| Hostility::Descriptor {
            ring,
            slot,
            near
        }),
        (ring.clone(), any::<bool>(), any::<u16>())
            .prop_map(|(ring, tail, value)| Hostility::Index { ring, tail, value }),
        (ring.clone(), any::<bool>(), 0..SIZE).prop_map(|(ring, tail, by)| Hostility::Nudge {
            ring,
            tail,
            by
        }),
        (ring, any::<u16>()).prop_map(|(ring, flags)| Hostility::Flags { ring, flags }),
        (any::<bool>(), 1..70_usize)
            .prop_map(|(client, limit)| Hostility::Receive { client, limit }),
        (any::<bool>(), 0..20_000_usize)
            .prop_map(|(client, length)| Hostility::Send { client, length }),
    ]
}

proptest! {
    /// Whatever a peer writes, and when: each look takes at most a ring, all that it took is in the burst
    /// or counted, and no buffer is lost. Reads outside of a region would end the process.
    #[test]
    fn a_hostile_peer_is_survived(acts in proptest::collection::vec(hostility(), 1..200)) {
        let mut pair = Pair::new();
        let nudge = |ring: &Ring, tail: bool, by: u16| {
            let index = ring.index(if tail { TAIL } else { HEAD });
            index.store(index.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
        };
        for act in acts {
            match act {
                Hostility::Words { ring, slot, words } => {
                    for (place, word) in pair.hostile(ring).descriptor(slot).into_iter().zip(words) {
                        place.store(word, Ordering::Relaxed);
                    }
                }
                Hostility::Descriptor { ring, slot, near: (flags, region, length, offset) } => {
                    let near = Descriptor { flags, region, length, offset };
                    pair.hostile(ring).write(slot, near);
                }
                Hostility::Index { ring, tail, value } => {
                    let place = if tail { TAIL } else { HEAD };
                    pair.hostile(ring).index(place).store(value, Ordering::Relaxed);
                }
                Hostility::Nudge { ring, tail, by } => nudge(&pair.hostile(ring), tail, by),
                Hostility::Flags { ring, flags } => {
                    pair.hostile(ring).flags().store(flags, Ordering::Relaxed);
                }
                Hostility::Receive { client, limit } => {
                    let side = if client { Side::Client } else { Side::Server };
                    let (frames, traffic, rest) = pair.receive(side, limit);
                    prop_assert_eq!(frames.len() as u64, traffic.frames);
                    let dropped = traffic.drops.total();
                    prop_assert!(traffic.frames + dropped <= u64::from(SIZE));
                    prop_assert_eq!(rest.is_err(), traffic.drops.of(DropReason::BadDescriptor) > 0
                        || matches!(rest, Err(Fault::Index { .. })));
                    for frame in frames {
                        prop_assert!((ETHERNET_HEADER..=MAX_FRAME).contains(&frame.len()));
                    }
                }
                Hostility::Send { client, length } => {
                    let side = if client { Side::Client } else { Side::Server };
                    let _ = pair.sender(side).put(&frame(0, length));
                    let _ = pair.sender(side).publish();
                    prop_assert!(pair.sender(side).untaken() <= SIZE);
                }
            }
        }
        let free = std::iter::from_fn(|| pair.pool.alloc()).collect::<Vec<_>>();
        prop_assert_eq!(free.len(), 256);
    }

    /// Against a queue: what is sent arrives, once, in its order; what found no room does not.
    #[test]
    fn a_ring_is_a_queue(
        client: bool,
        acts in proptest::collection::vec((0..3_u8, 14..5000_usize, 1..10_usize), 1..300),
    ) {
        let side = if client { Side::Client } else { Side::Server };
        let mut pair = Pair::new();
        let (mut put, mut shown) = (Vec::new(), std::collections::VecDeque::new());
        let slots = |frame: &Vec<u8>| frame.len().div_ceil(BUFFER as usize);
        for (n, (act, length, limit)) in acts.into_iter().enumerate() {
            match act {
                0 => {
                    let sent = frame(n, length);
                    let used: usize = put.iter().chain(&shown).map(slots).sum();
                    let room = used + slots(&sent) <= usize::from(SIZE);
                    prop_assert_eq!(pair.sender(side).put(&sent), Ok(room));
                    if room {
                        put.push(sent);
                    }
                }
                1 => {
                    prop_assert_eq!(pair.sender(side).publish(), !put.is_empty());
                    shown.extend(put.drain(..));
                }
                _ => {
                    let (received, traffic, rest) = pair.receive(other(side), limit);
                    prop_assert_eq!(traffic.drops.total(), 0);
                    let expected: Vec<_> = shown.drain(..limit.min(shown.len())).collect();
                    prop_assert_eq!(received, expected);
                    prop_assert_eq!(rest == Ok(Rest::Empty), shown.is_empty());
                }
            }
        }
    }
}
