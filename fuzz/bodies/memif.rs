//! A memif peer that says and writes what it likes: messages into both sides of a conversation, and octets
//! into memory that is shared with a ring.
//!
//! - What is read as a message can be written and reads the same. A server goes on only where regions and
//!   rings come in order, and connects only with a ring each way; two sides that are left alone connect.
//! - A ring that receives or sends does to the shared memory what a naive reader of the specification does
//!   to a copy of it, octet by octet; frames are what that one finds, and so is the fault that ends it.
//!
//! Input: an octet that says which, and for rings what ring it is; then steps, by `arbitrary`.

use std::cell::RefCell;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use arbitrary::{Arbitrary, Unstructured};
use nos_relay::control::memif::message::Message;
use nos_relay::control::memif::{Identity, Session, Step as Due};
use nos_relay::data::device::Traffic;
use nos_relay::data::device::memif::{
    BUFFER, Fault, Memory, Region, Rest, Ring, RxRing, Side, TxRing, ring_octets,
};
use nos_shim::drop::DropReason;
use nos_shim::frame::{BATCH, Burst, MAX_FRAME};
use nos_shim::time::Instant;

use super::pools::with_pool;

const STEPS: usize = 48;

pub fn run(data: &[u8]) {
    let Some((&first, rest)) = data.split_first() else {
        return;
    };
    let mut input = Unstructured::new(rest);
    match first & 1 {
        0 => conversation(&mut input),
        _ => rings(first >> 1, &mut input),
    }
}

#[derive(Arbitrary, Debug)]
enum Say {
    /// What the other side has said.
    Right,
    /// The same, with an octet that is changed.
    Changed(u8, u8),
    /// Something said before.
    Again(u8),
    /// Of a type, all else as it comes.
    Anything(u8, [u8; 16]),
    Short(u8),
    Descriptors(u8),
    Wait(u16),
}

/// What a server has agreed to.
#[derive(Default)]
struct Agreement {
    claimed: bool,
    regions: u16,
    to_server: u16,
    to_client: u16,
}

const QUEUES: u16 = 3;

fn conversation(input: &mut Unstructured<'_>) {
    let mut now = Instant::ZERO;
    let identity = Identity {
        id: 1,
        secret: None,
        name: "client".into(),
        queues: 2,
        log2_ring_size: 10,
    };
    let (mut server, hello) = Session::server(now);
    let mut client = Session::client(identity, now);
    let mut agreement = Agreement::default();
    // What is on its way to the client, or to the server.
    let mut due = (true, hello, 0);
    let mut said = vec![hello];
    let (mut disturbed, mut server_up) = (false, false);
    for _ in 0..STEPS {
        let say = if input.is_empty() {
            Say::Right
        } else {
            input.arbitrary().unwrap_or(Say::Right)
        };
        let (to_client, message, descriptors) = due;
        let mut octets = message.emit().to_vec();
        let mut count = descriptors;
        disturbed |= !matches!(say, Say::Right);
        match say {
            Say::Right => {}
            Say::Changed(at, flip) => {
                let at = usize::from(at) % octets.len();
                octets[at] ^= flip;
            }
            Say::Again(n) => octets = said[usize::from(n) % said.len()].emit().to_vec(),
            Say::Anything(kind, fields) => {
                octets[0] = kind % 10;
                octets[2..18].copy_from_slice(&fields);
            }
            Say::Short(len) => octets.truncate(len.into()),
            Say::Descriptors(other) => count = usize::from(other % 3),
            Say::Wait(millis) => {
                now = now + std::time::Duration::from_millis(millis.into());
                let side = if to_client { &client } else { &server };
                let late = side.poll_at().is_some_and(|at| at <= now);
                assert_eq!(side.handle_timeout(now).is_err(), late);
                if late {
                    return;
                }
            }
        }
        let Ok(message) = Message::parse(&octets) else {
            return assert!(disturbed, "what we say is no message");
        };
        let again = Message::parse(&message.emit());
        assert_eq!(again, Ok(message));
        let side = if to_client { &mut client } else { &mut server };
        let step = match side.handle(message, count, now) {
            Ok(step) => step,
            Err(refusal) => {
                assert!(disturbed, "{refusal}");
                assert!(matches!(
                    Message::parse(&refusal.message().emit()),
                    Ok(Message::Disconnect(_))
                ));
                return;
            }
        };
        let answer = match step {
            Due::None => return,
            Due::Ended(_) => return,
            Due::Claim(init) => {
                agreement.claimed = true;
                (
                    true,
                    server.claim(&init, None, QUEUES).expect("no secret"),
                    0,
                )
            }
            Due::Region(region) => {
                assert!(agreement.claimed && region.index == agreement.regions);
                agreement.regions += 1;
                (true, server.ack(), 0)
            }
            Due::Ring(ring) => {
                let next = match ring.to_server {
                    true => &mut agreement.to_server,
                    false => &mut agreement.to_client,
                };
                assert!(agreement.claimed && ring.index == *next && *next < QUEUES);
                assert!(ring.log2_size <= 14);
                *next += 1;
                (true, server.ack(), 0)
            }
            Due::Connect(_) => {
                assert!(agreement.to_server > 0 && agreement.to_client > 0);
                server_up = true;
                (true, server.connected("up0"), 0)
            }
            Due::Share(agreed) => {
                assert!((1..=2).contains(&agreed.to_server) && (1..=2).contains(&agreed.to_client));
                let init = client.init(1 << 20, |_, index| u32::from(index) * 4096);
                (false, init.expect("it is sharing"), 0)
            }
            Due::Send(message, attached) => {
                let count = match attached {
                    nos_relay::control::memif::Attached::Nothing => 0,
                    _ => 1,
                };
                (false, message, count)
            }
            Due::Up(_) => return assert!(disturbed || server_up),
        };
        said.push(answer.1);
        due = answer;
    }
    assert!(disturbed, "two sides that are left alone connect");
}

/// Octets of the two regions.
const REGIONS: [usize; 2] = [16_384, 512];
/// Where the ring is in region 0.
const BASE: usize = 64;
/// Where the buffers of a client are in region 0.
const BUFFERS: u32 = 4096;

const FLAGS: usize = BASE + 4;
const HEAD: usize = BASE + 6;
const TAIL: usize = BASE + 64;
const DESCRIPTORS: usize = BASE + 128;

#[derive(Arbitrary, Debug)]
enum Do {
    /// The peer writes somewhere.
    Poke {
        region: bool,
        at: u16,
        octets: [u8; 4],
    },
    /// The peer writes a descriptor.
    Describe {
        slot: u8,
        next: bool,
        region: u8,
        length: u16,
        offset: u16,
    },
    /// The same, with numbers that go beyond everything.
    Boast {
        slot: u8,
        flags: u16,
        region: u16,
        length: u32,
        offset: u32,
    },
    /// The peer moves its index.
    Advance(u8),
    Index(u16),
    Receive(u8),
    Put(u16),
    Publish,
    Mask(bool),
}

thread_local! {
    static SHARED: RefCell<Shared> = RefCell::new(Shared::new());
}

/// Memory that rings are in, and the files by which the peer has it.
struct Shared {
    memory: Arc<Memory>,
    files: Vec<File>,
}

impl Shared {
    fn new() -> Self {
        let made = REGIONS.map(|octets| Region::create(octets).expect("memory"));
        let (regions, files): (Vec<_>, Vec<_>) = made.into_iter().unzip();
        Self {
            memory: Arc::new(Memory::new(regions)),
            files: files.into_iter().map(File::from).collect(),
        }
    }

    fn write(&self, region: usize, at: usize, octets: &[u8]) {
        self.files[region]
            .write_all_at(octets, at as u64)
            .expect("a memfd");
    }

    fn read(&self) -> Vec<Vec<u8>> {
        let read = |(file, octets): (&File, usize)| {
            let mut all = vec![0; octets];
            file.read_exact_at(&mut all, 0).expect("a memfd");
            all
        };
        self.files.iter().zip(REGIONS).map(read).collect()
    }
}

enum Ours {
    Rx(RxRing),
    Tx(TxRing),
}

/// A ring, and the model of it.
struct Both {
    ours: Ours,
    naive: Naive,
}

fn rings(kind: u8, input: &mut Unstructured<'_>) {
    let side = if kind & 1 == 0 {
        Side::Server
    } else {
        Side::Client
    };
    let receives = kind & 2 == 0;
    let log2 = kind >> 2 & 3;
    SHARED.with_borrow(|shared| {
        for (region, octets) in REGIONS.into_iter().enumerate() {
            shared.write(region, 0, &vec![0; octets]);
        }
        assert!(BASE + ring_octets(log2) as usize <= BUFFERS as usize);
        let ring = Ring::at(&shared.memory, side, 0, BASE as u32, log2).expect("it lies there");
        ring.initialise();
        let buffers = (side == Side::Client).then_some(BUFFERS);
        let ours = match (receives, buffers) {
            (true, None) => Ours::Rx(RxRing::of_server(ring)),
            (true, Some(buffers)) => Ours::Rx(RxRing::of_client(ring, buffers)),
            (false, None) => Ours::Tx(TxRing::of_server(ring)),
            (false, Some(buffers)) => Ours::Tx(TxRing::of_client(ring, buffers)),
        };
        let naive = Naive {
            memory: shared.read(),
            size: 1 << log2,
            side,
            buffers,
            next: 0,
            room: 0,
            published: 0,
        };
        let mut both = Both { ours, naive };
        both.offer();
        for _ in 0..STEPS {
            let Ok(step) = input.arbitrary::<Do>() else {
                break;
            };
            // What the peer does is the same to both.
            let ours = matches!(step, Do::Receive(_) | Do::Put(_));
            let goes_on = !input.is_empty() && both.step(step, shared);
            if ours || !goes_on {
                assert_eq!(both.naive.differs(&shared.read()), None);
            }
            if !goes_on {
                break;
            }
        }
    });
}

impl Both {
    fn offer(&mut self) {
        match &mut self.ours {
            Ours::Rx(ring) => {
                ring.offer();
                self.naive.describe_all();
                self.naive.publish_received();
            }
            Ours::Tx(ring) => {
                ring.offer();
                self.naive.describe_all();
            }
        }
    }

    /// Returns whether the ring is still of use.
    fn step(&mut self, step: Do, shared: &Shared) -> bool {
        let (region, at, octets) = match step {
            Do::Poke { region, at, octets } => {
                let region = usize::from(region);
                (
                    region,
                    usize::from(at) % (REGIONS[region] - 4),
                    octets.to_vec(),
                )
            }
            Do::Describe {
                slot,
                next,
                region,
                length,
                offset,
            } => {
                let slot = usize::from(slot) % usize::from(self.naive.size);
                let region = u16::from(region % 3);
                let octets = words(
                    next.into(),
                    region,
                    u32::from(length % 4096),
                    u32::from(offset % 20_000),
                );
                (0, DESCRIPTORS + 16 * slot, octets.to_vec())
            }
            Do::Boast {
                slot,
                flags,
                region,
                length,
                offset,
            } => {
                let slot = usize::from(slot) % usize::from(self.naive.size);
                (
                    0,
                    DESCRIPTORS + 16 * slot,
                    words(flags, region, length, offset).to_vec(),
                )
            }
            Do::Advance(by) => {
                let index = self.naive.peer_index().wrapping_add(u16::from(by % 4));
                (0, self.naive.peer_place(), index.to_ne_bytes().to_vec())
            }
            Do::Index(index) => (0, self.naive.peer_place(), index.to_ne_bytes().to_vec()),
            Do::Receive(limit) => return self.receive(1 + usize::from(limit) % BATCH),
            Do::Put(length) => return self.put(usize::from(length) % 6000),
            Do::Publish => return self.publish(),
            Do::Mask(masked) => {
                if let Ours::Rx(ring) = &mut self.ours {
                    ring.mask(masked);
                    self.naive.set(FLAGS, u16::from(masked));
                }
                return true;
            }
        };
        shared.write(region, at, &octets);
        self.naive.memory[region][at..at + octets.len()].copy_from_slice(&octets);
        true
    }

    fn receive(&mut self, limit: usize) -> bool {
        let Ours::Rx(ring) = &mut self.ours else {
            return true;
        };
        with_pool(BATCH, |pool| {
            let room = pool.room();
            let (mut burst, mut traffic) = (Burst::new(), Traffic::default());
            let result = ring.receive(pool, &mut burst, limit, &mut traffic);
            let mut frames = burst.drain(..);
            let (count, too_long) = (traffic.frames, traffic.drops.of(DropReason::FrameLength));
            let mut fault = None;
            let waiting = self.naive.waiting();
            // All that the ring says it has taken, and then what ended it.
            let mut left = match waiting {
                Ok(waiting) => waiting,
                Err(other) => {
                    fault = Some(other);
                    0
                }
            };
            let began = left > 0;
            for _ in 0..count + too_long {
                let (slots, octets) = self.naive.take(left).expect("as the ring has found it");
                left -= slots;
                if (14..=MAX_FRAME.min(room)).contains(&octets.len()) {
                    let frame = frames.next().expect("the ring has it");
                    assert!(frame.bytes() == octets, "frames differ");
                    pool.free(frame);
                }
            }
            assert!(frames.next().is_none());
            match result {
                Ok(Rest::Empty) => assert_eq!((left, fault), (0, None)),
                Ok(Rest::Full) => assert!(left > 0),
                Ok(Rest::NoBuffer) => panic!("there are buffers"),
                Err(found) => {
                    let expected = fault.or_else(|| self.naive.take(left).err());
                    assert_eq!(Some(found), expected);
                }
            }
            if began {
                self.naive.publish_received();
            }
            result.is_ok()
        })
    }

    fn put(&mut self, length: usize) -> bool {
        let Ours::Tx(ring) = &mut self.ours else {
            return true;
        };
        let frame: Vec<u8> = (0..length.max(14)).map(|n| n as u8 ^ 0x5a).collect();
        let result = ring.put(&frame);
        assert_eq!(result, self.naive.put(&frame));
        result.is_ok()
    }

    fn publish(&mut self) -> bool {
        if let Ours::Tx(ring) = &mut self.ours {
            let before = self.naive.published;
            let rings = ring.publish();
            let own = self.naive.own_place();
            self.naive.published = self.naive.next;
            if before == self.naive.next {
                // Nothing is there that was not shown before.
                assert!(!rings);
            } else {
                self.naive.set(own, self.naive.next);
                assert_eq!(rings, self.naive.memory[0][FLAGS] & 1 == 0);
            }
        }
        true
    }
}

fn words(flags: u16, region: u16, length: u32, offset: u32) -> [u8; 16] {
    let mut octets = [0; 16];
    octets[..2].copy_from_slice(&flags.to_ne_bytes());
    octets[2..4].copy_from_slice(&region.to_ne_bytes());
    octets[4..8].copy_from_slice(&length.to_ne_bytes());
    octets[8..12].copy_from_slice(&offset.to_ne_bytes());
    octets
}

/// Shared memory in a copy, and who does to it what the specification says.
struct Naive {
    memory: Vec<Vec<u8>>,
    size: u16,
    side: Side,
    buffers: Option<u32>,
    next: u16,
    /// Of a ring to send by: the slots that it last knew to be free.
    room: u16,
    /// Of such a ring: what the peer was shown.
    published: u16,
}

impl Naive {
    /// The first place where memory is not as it should be: region, offset, what is there, what should be.
    fn differs(&self, from: &[Vec<u8>]) -> Option<(usize, usize, u8, u8)> {
        let octets = |(region, (ours, theirs)): (usize, (&Vec<u8>, &Vec<u8>))| {
            let at = ours.iter().zip(theirs).position(|(a, b)| a != b)?;
            Some((region, at, theirs[at], ours[at]))
        };
        self.memory.iter().zip(from).enumerate().find_map(octets)
    }

    fn own_place(&self) -> usize {
        if self.side == Side::Client {
            HEAD
        } else {
            TAIL
        }
    }

    fn peer_place(&self) -> usize {
        if self.side == Side::Client {
            TAIL
        } else {
            HEAD
        }
    }

    fn peer_index(&self) -> u16 {
        let at = self.peer_place();
        u16::from_ne_bytes([self.memory[0][at], self.memory[0][at + 1]])
    }

    fn set(&mut self, at: usize, value: u16) {
        self.memory[0][at..at + 2].copy_from_slice(&value.to_ne_bytes());
    }

    fn slot(&self, at: u16) -> usize {
        usize::from(at % self.size)
    }

    /// Flags, region, length, offset.
    fn read(&self, at: u16) -> (u16, u16, u32, u32) {
        let place = DESCRIPTORS + 16 * self.slot(at);
        let octets = &self.memory[0][place..place + 16];
        let short = |at: usize| u16::from_ne_bytes([octets[at], octets[at + 1]]);
        let long = |at: usize| {
            u32::from_ne_bytes([octets[at], octets[at + 1], octets[at + 2], octets[at + 3]])
        };
        (short(0), short(2), long(4), long(8))
    }

    fn write(&mut self, at: u16, flags: u16, region: u16, length: u32, offset: u32) {
        let place = DESCRIPTORS + 16 * self.slot(at);
        self.memory[0][place..place + 16].copy_from_slice(&words(flags, region, length, offset));
    }

    fn own_buffer(&self, at: u16) -> Option<u32> {
        let slot = self.slot(at) as u32;
        self.buffers.map(|first| first + slot * BUFFER)
    }

    fn describe_all(&mut self) {
        for slot in 0..self.size {
            if let Some(offset) = self.own_buffer(slot) {
                self.write(slot, 0, 0, BUFFER, offset);
            }
        }
    }

    fn publish_received(&mut self) {
        let ahead = if self.side == Side::Client {
            self.size
        } else {
            0
        };
        self.set(self.own_place(), self.next.wrapping_add(ahead));
    }

    fn ahead(&self, ahead: u16) -> Result<u16, Fault> {
        let (theirs, ours) = (self.peer_index(), self.next);
        let count = theirs.wrapping_add(ahead).wrapping_sub(ours);
        let size = self.size;
        if count > size {
            return Err(Fault::Index { theirs, ours, size });
        }
        Ok(count)
    }

    fn waiting(&self) -> Result<u16, Fault> {
        self.ahead(0)
    }

    fn window(
        &self,
        at: u16,
        region: u16,
        offset: u32,
        length: u32,
    ) -> Result<std::ops::Range<usize>, Fault> {
        let (from, to) = (u64::from(offset), u64::from(offset) + u64::from(length));
        match self.memory.get(usize::from(region)) {
            Some(memory) if to <= memory.len() as u64 => Ok(from as usize..to as usize),
            _ => Err(Fault::Window {
                slot: self.slot(at) as u16,
                region,
                offset,
                length,
            }),
        }
    }

    /// The next frame, and how many descriptors it has taken.
    fn take(&mut self, waiting: u16) -> Result<(u16, Vec<u8>), Fault> {
        let mut frame = Vec::new();
        let mut slots = 0;
        loop {
            let at = self.next.wrapping_add(slots);
            if slots == waiting {
                let slot = self.slot(at.wrapping_sub(1)) as u16;
                return Err(Fault::Unfinished { slot });
            }
            let (flags, mut region, length, mut offset) = self.read(at);
            if let Some(own) = self.own_buffer(at) {
                (region, offset) = (0, own);
                if length > BUFFER {
                    let slot = self.slot(at) as u16;
                    return Err(Fault::Window {
                        slot,
                        region,
                        offset,
                        length,
                    });
                }
            }
            let window = self.window(at, region, offset, length)?;
            frame.extend_from_slice(&self.memory[usize::from(region)][window]);
            if let Some(own) = self.own_buffer(at) {
                self.write(at, 0, 0, BUFFER, own);
            }
            slots += 1;
            if flags & 1 == 0 {
                break;
            }
        }
        self.next = self.next.wrapping_add(slots);
        Ok((slots, frame))
    }

    fn look(&mut self) -> Result<(), Fault> {
        self.room = self.ahead(if self.side == Side::Client {
            self.size
        } else {
            0
        })?;
        Ok(())
    }

    fn put(&mut self, frame: &[u8]) -> Result<bool, Fault> {
        if self.room == 0 {
            self.look()?;
        }
        let mut slots = self.fill(frame)?;
        if slots.is_none() {
            let before = self.room;
            self.look()?;
            if self.room == before {
                return Ok(false);
            }
            slots = self.fill(frame)?;
        }
        let Some(slots) = slots else { return Ok(false) };
        self.next = self.next.wrapping_add(slots);
        self.room -= slots;
        Ok(true)
    }

    fn fill(&mut self, frame: &[u8]) -> Result<Option<u16>, Fault> {
        let mut done = 0;
        for slots in 0..self.room {
            let at = self.next.wrapping_add(slots);
            let (region, length, offset) = match self.own_buffer(at) {
                Some(own) => (0, BUFFER, own),
                None => {
                    let (_, region, length, offset) = self.read(at);
                    (region, length, offset)
                }
            };
            let window = self.window(at, region, offset, length)?;
            if length == 0 {
                return Err(Fault::NoRoom {
                    slot: self.slot(at) as u16,
                });
            }
            let piece = &frame[done..frame.len().min(done + length as usize)];
            self.memory[usize::from(region)][window.start..window.start + piece.len()]
                .copy_from_slice(piece);
            done += piece.len();
            let more = u16::from(done < frame.len());
            self.write(at, more, region, piece.len() as u32, offset);
            if more == 0 {
                return Ok(Some(slots + 1));
            }
        }
        Ok(None)
    }
}
