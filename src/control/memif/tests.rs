//! Both sides in one process, and peers who do what they are not to.

use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nos_shim::drop::DropReason;
use nos_shim::frame::{Burst, FramePool};
use nos_shim::ident::{Interface, UplinkId};
use tempfile::TempDir;

use super::message::{AddRegion, AddRing, ETHERNET, Init, Message, Text, VERSION};
use super::sharing::Shared;
use super::*;
use crate::data::device::{Egress, FrameDevice, LinkState, Next};

const LIMIT: Duration = Duration::from_secs(20);

/// Sockets, their news, and where they are.
struct Fixture {
    sockets: Sockets,
    news: Receiver<News>,
    directory: TempDir,
    pool: FramePool,
}

impl Fixture {
    fn new() -> Self {
        let (sender, news) = channel();
        let tell = move |news| {
            let _ = sender.send(news);
        };
        Self {
            sockets: Sockets::start(tell).unwrap(),
            news,
            directory: tempfile::tempdir().unwrap(),
            pool: FramePool::new(1024, 2048),
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("memif.sock")
    }

    fn options(&self, side: Side) -> Options {
        Options {
            address: Address::new(self.path(), 3).unwrap(),
            side,
            secret: Secret::new(b"open sesame"),
            queues: 2,
            log2_ring_size: 6,
        }
    }

    fn open(&self, side: Side) -> Memif {
        self.open_as(interface(side), self.options(side))
    }

    fn open_as(&self, interface: Interface, options: Options) -> Memif {
        self.sockets.open(interface, "up0", options).unwrap()
    }

    /// Waits for news of one side.
    fn await_news(&self, of: Interface, wanted: impl Fn(&Carrier) -> bool) -> Carrier {
        loop {
            let News { interface, carrier } = self.news.recv_timeout(LIMIT).expect("news");
            if interface == of && wanted(&carrier) {
                return carrier;
            }
        }
    }

    fn await_up(&self) {
        let mut up = [false; 2];
        while up != [true; 2] {
            let News { interface, carrier } = self.news.recv_timeout(LIMIT).expect("news");
            for (up, side) in up.iter_mut().zip([Side::Server, Side::Client]) {
                if interface == self::interface(side) {
                    *up = matches!(carrier, Carrier::Up(_));
                }
            }
        }
    }

    fn frames(&mut self, count: usize, length: usize) -> Burst {
        let frame = |n: usize| {
            let octets: Vec<_> = (0..length).map(|at| (n + at).to_le_bytes()[0]).collect();
            self.pool.copy_from(&octets).unwrap()
        };
        (0..count).map(frame).collect()
    }

    /// Sends frames from one to the other, which waits for its descriptor as a data thread does.
    fn exchange(&mut self, from: &mut Memif, to: &mut Watched, count: usize) {
        let mut burst = self.frames(count, 600);
        let expected: Vec<_> = burst.iter().map(|frame| frame.bytes().to_vec()).collect();
        let sent = from.send_burst(&mut burst, &mut self.pool);
        assert_eq!((sent.frames, sent.egress), (count, Egress::Ready));
        let received = to.receive(count, &mut self.pool);
        assert_eq!(received, expected);
    }
}

fn interface(side: Side) -> Interface {
    Interface::Uplink(UplinkId(match side {
        Side::Server => 1,
        Side::Client => 2,
    }))
}

fn down(carrier: &Carrier) -> bool {
    matches!(carrier, Carrier::Down(_))
}

/// A device whose descriptor is watched as the event loop does it.
struct Watched {
    device: Memif,
    poll: Poll,
    events: Events,
}

impl Watched {
    fn new(device: Memif) -> Self {
        let poll = Poll::new().unwrap();
        let descriptor = device.fd().unwrap().as_raw_fd();
        let registry = poll.registry();
        registry
            .register(&mut SourceFd(&descriptor), Token(0), Interest::READABLE)
            .unwrap();
        Self {
            device,
            poll,
            events: Events::with_capacity(4),
        }
    }

    /// Drains the device, then waits for an edge, until so many frames have come.
    fn receive(&mut self, count: usize, pool: &mut FramePool) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        let mut turn = 1;
        loop {
            let mut burst = Burst::new();
            let received = self.device.recv_burst(pool, &mut burst, turn);
            assert_eq!(received.frames, burst.len());
            all.extend(burst.iter().map(|frame| frame.bytes().to_vec()));
            pool.free_all(&mut burst);
            if received.next == Next::More {
                turn = (turn * 2).min(64);
                continue;
            }
            if all.len() >= count {
                return all;
            }
            turn = 1;
            self.poll.poll(&mut self.events, Some(LIMIT)).unwrap();
            assert!(
                !self.events.is_empty(),
                "no edge after {} frames",
                all.len()
            );
        }
    }
}

/// A peer who is written by hand.
struct ByHand(OwnedFd);

impl ByHand {
    fn connect(path: &Path) -> Self {
        loop {
            match socket::connect_to(path) {
                // So many wait already.
                Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::yield_now(),
                connected => return Self(connected.unwrap()),
            }
        }
    }

    fn say(&self, message: &Message, descriptor: Option<&OwnedFd>) {
        socket::send(&self.0, message, descriptor.map(AsFd::as_fd)).unwrap();
    }

    /// What comes next; `None` when the other has hung up.
    fn hear(&self) -> Option<Message> {
        let mut readable = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        let limit = PollTimeout::try_from(LIMIT).unwrap();
        assert_eq!(poll(&mut readable, limit), Ok(1), "nothing comes");
        let packet = socket::receive(&self.0).ok()?.unwrap();
        Some(Message::parse(packet.octets()).unwrap())
    }

    /// Why the other ends it.
    fn hear_the_end(&self) -> String {
        loop {
            match self.hear() {
                Some(Message::Disconnect(end)) => return end.reason.to_string(),
                Some(_) => {}
                None => panic!("hung up without a reason"),
            }
        }
    }

    fn init(&self) {
        assert!(matches!(self.hear(), Some(Message::Hello(_))));
        let init = Init {
            version: VERSION,
            id: 3,
            mode: ETHERNET,
            secret: Text::new("open sesame"),
            name: Text::new("by hand"),
        };
        self.say(&Message::Init(init), None);
        assert_eq!(self.hear(), Some(Message::Ack));
    }

    /// Connects as a client that shares what is right.
    fn share(&self) -> Shared {
        self.init();
        let agreed = Agreed {
            to_server: 1,
            to_client: 1,
            log2_ring_size: 6,
        };
        let shared = Shared::new(agreed).unwrap();
        let size = Shared::octets(agreed);
        let region = Message::AddRegion(AddRegion { index: 0, size });
        self.say(&region, shared.attached(Attached::Region));
        assert_eq!(self.hear(), Some(Message::Ack));
        for to_server in [true, false] {
            let ring = AddRing {
                to_server,
                index: 0,
                region: 0,
                offset: Shared::offset(agreed, to_server, 0),
                log2_size: 6,
                private_header: 0,
            };
            let index = 0;
            let eventfd = shared.attached(Attached::Ring { to_server, index });
            self.say(&Message::AddRing(ring), eventfd);
            assert_eq!(self.hear(), Some(Message::Ack));
        }
        self.say(&Message::Connect(Text::new("hand")), None);
        assert!(matches!(self.hear(), Some(Message::Connected(_))));
        shared
    }
}

#[test]
fn frames_go_both_ways_and_a_device_sleeps_between() {
    let mut fixture = Fixture::new();
    let server = fixture.open(Side::Server);
    let client = fixture.open(Side::Client);
    fixture.await_up();
    let (mut server, mut client) = (Watched::new(server), Watched::new(client));
    for count in [1, 3, 40, 1, 60] {
        fixture.exchange(&mut server.device, &mut client, count);
        fixture.exchange(&mut client.device, &mut server, count);
    }
    assert_eq!(server.device.inspector().link(), LinkState::Up);
    let (one, two) = (server.device.counters(), client.device.counters());
    assert_eq!((one.sent, one.received), (two.received, two.sent));
}

#[test]
fn whoever_is_first_waits_for_the_other() {
    let fixture = Fixture::new();
    let mut client = fixture.open(Side::Client);
    let carrier = fixture.await_news(interface(Side::Client), down);
    let nobody = format!("nobody listens at {}", fixture.path().display());
    assert_eq!(carrier, Carrier::Down(nobody));
    let mut pool = fixture.pool.clone();
    let mut burst = Burst::new();
    burst.push(pool.copy_from(&[0; 60]).unwrap());
    let sent = client.send_burst(&mut burst, &mut pool);
    assert_eq!((sent.dropped, sent.egress), (1, Egress::Down));
    assert_eq!(client.counters().sent.drops.of(DropReason::DeviceGone), 1);
    let received = client.recv_burst(&mut pool, &mut burst, 8);
    assert_eq!((received.frames, received.next), (0, Next::Down));
    let _server = fixture.open(Side::Server);
    fixture.await_up();
}

#[test]
fn either_side_connects_again() {
    let mut fixture = Fixture::new();
    let mut server = Some(Watched::new(fixture.open(Side::Server)));
    let mut client = Some(Watched::new(fixture.open(Side::Client)));
    for side in [Side::Client, Side::Server, Side::Client] {
        fixture.await_up();
        let (one, two) = (server.as_mut().unwrap(), client.as_mut().unwrap());
        fixture.exchange(&mut one.device, two, 5);
        fixture.exchange(&mut two.device, one, 5);
        let (gone, other) = match side {
            Side::Client => (&mut client, Side::Server),
            Side::Server => (&mut server, Side::Client),
        };
        *gone = None;
        let Carrier::Down(why) = fixture.await_news(interface(other), down) else {
            unreachable!();
        };
        assert_eq!(why, "the peer says: the interface is closed");
        *gone = Some(Watched::new(fixture.open(side)));
    }
}

#[test]
fn no_two_are_the_same_and_no_file_is_left() {
    let fixture = Fixture::new();
    let server = fixture.open(Side::Server);
    let options = fixture.options(Side::Server);
    let twice = fixture
        .sockets
        .open(interface(Side::Client), "up1", options);
    assert!(matches!(twice, Err(OpenError::Twice(_))));
    // Another number, behind the same socket.
    let mut options = fixture.options(Side::Server);
    options.address = Address::new(fixture.path(), 4).unwrap();
    let other = fixture.open_as(interface(Side::Client), options);
    drop(server);
    assert!(fixture.path().exists());
    drop(other);
    drop(fixture.sockets);
    let path = fixture.directory.path().join("memif.sock");
    assert!(!path.exists());
}

#[test]
fn a_wrong_secret_or_number_is_told_and_tried_again() {
    let fixture = Fixture::new();
    let _server = fixture.open(Side::Server);
    let mut options = fixture.options(Side::Client);
    options.secret = Secret::new(b"close sesame");
    let wrong = fixture.open_as(interface(Side::Client), options);
    let says = |what: &str| {
        let told = format!("the peer says: {what}");
        fixture.await_news(interface(Side::Client), |carrier| {
            *carrier == Carrier::Down(told.clone())
        });
    };
    says("the secret is wrong");
    drop(wrong);
    let mut options = fixture.options(Side::Client);
    options.address = Address::new(fixture.path(), 9).unwrap();
    let wrong = fixture.open_as(interface(Side::Client), options);
    says("there is no interface 9");
    drop(wrong);
    let _client = fixture.open(Side::Client);
    fixture.await_up();
}

#[test]
fn a_second_client_is_refused_and_the_first_stays() {
    let mut fixture = Fixture::new();
    let mut server = Watched::new(fixture.open(Side::Server));
    let mut client = Watched::new(fixture.open(Side::Client));
    fixture.await_up();
    let second = ByHand::connect(&fixture.path());
    assert!(matches!(second.hear(), Some(Message::Hello(_))));
    let init = Init {
        version: VERSION,
        id: 3,
        mode: ETHERNET,
        secret: Text::new("open sesame"),
        name: Text::new(""),
    };
    second.say(&Message::Init(init), None);
    assert_eq!(second.hear_the_end(), "interface 3 is connected");
    fixture.exchange(&mut client.device, &mut server, 3);
}

/// What a client says that is wrong, and what it hears.
#[test]
fn what_is_wrong_ends_the_connection_and_the_next_is_served() {
    let mut fixture = Fixture::new();
    let mut server = Watched::new(fixture.open(Side::Server));
    type Wrong = fn(&ByHand);
    let cases: [(&str, Wrong); 8] = [
        ("not due", |hand| {
            hand.say(&Message::Connect(Text::new("early")), None);
        }),
        ("without its descriptor", |hand| {
            hand.init();
            hand.say(&Message::AddRegion(AddRegion { index: 0, size: 1 }), None);
        }),
        ("unsealed", |hand| {
            hand.init();
            let flags = nix::sys::memfd::MFdFlags::MFD_ALLOW_SEALING;
            let file = nix::sys::memfd::memfd_create(c"open", flags).unwrap();
            nix::unistd::ftruncate(&file, 4096).unwrap();
            hand.say(
                &Message::AddRegion(AddRegion {
                    index: 0,
                    size: 4096,
                }),
                Some(&file),
            );
        }),
        ("out of order", |hand| {
            hand.init();
            let file = std::fs::File::open("/dev/null").unwrap().into();
            hand.say(
                &Message::AddRegion(AddRegion { index: 1, size: 1 }),
                Some(&file),
            );
        }),
        ("no eventfd", |hand| {
            hand.init();
            let file = std::fs::File::open("/dev/null").unwrap().into();
            let ring = AddRing {
                to_server: true,
                index: 0,
                region: 0,
                offset: 0,
                log2_size: 6,
                private_header: 0,
            };
            hand.say(&Message::AddRing(ring), Some(&file));
        }),
        ("no rings", |hand| {
            hand.init();
            hand.say(&Message::Connect(Text::new("bare")), None);
        }),
        ("a ring in no region", |hand| {
            hand.init();
            let agreed = Agreed {
                to_server: 1,
                to_client: 1,
                log2_ring_size: 6,
            };
            let shared = Shared::new(agreed).unwrap();
            for to_server in [true, false] {
                let ring = AddRing {
                    to_server,
                    index: 0,
                    region: 5,
                    offset: 0,
                    log2_size: 6,
                    private_header: 0,
                };
                let attached = Attached::Ring {
                    to_server,
                    index: 0,
                };
                hand.say(&Message::AddRing(ring), shared.attached(attached));
            }
            hand.say(&Message::Connect(Text::new("nowhere")), None);
        }),
        ("after all is said", |hand| {
            let _shared = hand.share();
            hand.say(&Message::Ack, None);
        }),
    ];
    for (what, wrong) in cases {
        let hand = ByHand::connect(&fixture.path());
        wrong(&hand);
        let why = hand.hear_the_end();
        assert!(!why.is_empty(), "{what}");
        assert_eq!(hand.hear(), None, "{what}: {why}");
    }
    let mut client = Watched::new(fixture.open(Side::Client));
    fixture.await_news(interface(Side::Client), |carrier| !down(carrier));
    fixture.exchange(&mut client.device, &mut server, 3);
}

#[test]
fn what_is_no_message_ends_the_connection() {
    let fixture = Fixture::new();
    let _server = fixture.open(Side::Server);
    for length in [1, 127, 129, 4096] {
        let hand = ByHand::connect(&fixture.path());
        assert!(matches!(hand.hear(), Some(Message::Hello(_))));
        let octets = vec![1; length];
        nix::unistd::write(&hand.0, &octets).unwrap();
        let why = hand.hear_the_end();
        let told = length.min(129);
        assert_eq!(why, format!("a message of {told} octets: each has 128"));
    }
}

#[test]
fn a_peer_that_lies_in_a_ring_is_refused() {
    let mut fixture = Fixture::new();
    let mut server = fixture.open(Side::Server);
    let hand = ByHand::connect(&fixture.path());
    let shared = hand.share();
    fixture.await_news(interface(Side::Server), |carrier| !down(carrier));
    // All of the peer's memory becomes nonsense.
    let memory = std::fs::File::from(
        shared
            .attached(Attached::Region)
            .unwrap()
            .try_clone()
            .unwrap(),
    );
    let nonsense = vec![0xff; usize::try_from(memory.metadata().unwrap().len()).unwrap()];
    memory.write_all_at(&nonsense, 0).unwrap();
    let mut burst = Burst::new();
    let received = server.recv_burst(&mut fixture.pool, &mut burst, 64);
    assert_eq!((received.frames, received.next), (0, Next::Down));
    let why = hand.hear_the_end();
    assert!(why.starts_with("index 65535 is more than"), "{why}");
    let Carrier::Down(told) = fixture.await_news(interface(Side::Server), down) else {
        unreachable!();
    };
    assert_eq!(told, format!("the peer is refused: {why}"));
    assert_eq!(server.inspector().link(), LinkState::Down);
}

#[test]
fn a_peer_that_takes_nothing_is_told_and_forgiven() {
    let mut fixture = Fixture::new();
    let mut server = fixture.open(Side::Server);
    let mut client = Watched::new(fixture.open(Side::Client));
    fixture.await_up();
    for _ in 0..3 {
        let mut burst = fixture.frames(60, 600);
        let _ = server.send_burst(&mut burst, &mut fixture.pool);
    }
    let full = server.counters().sent.drops.of(DropReason::DeviceFull);
    assert!(full > 0);
    let stalled = |carrier: &Carrier| *carrier == Carrier::Stalled;
    fixture.await_news(interface(Side::Server), stalled);
    let told = fixture.await_news(interface(Side::Server), |carrier| !stalled(carrier));
    assert_eq!(told, Carrier::Down("the peer takes nothing".to_owned()));
    assert_eq!(server.inspector().link(), LinkState::Down);
    let taken = usize::try_from(server.counters().sent.frames).unwrap();
    assert_eq!(client.receive(taken, &mut fixture.pool).len(), taken);
    fixture.await_news(interface(Side::Server), |carrier| !down(carrier));
    assert_eq!(server.inspector().link(), LinkState::Up);
    fixture.exchange(&mut server, &mut client, 5);
}

#[test]
fn a_silent_stranger_is_hung_up_on() {
    let fixture = Fixture::new();
    let _server = fixture.open(Side::Server);
    let strangers: Vec<_> = (0..20).map(|_| ByHand::connect(&fixture.path())).collect();
    let mut said = 0;
    for stranger in &strangers {
        match stranger.hear() {
            Some(Message::Hello(_)) => {
                assert_eq!(stranger.hear_the_end(), "nothing for 1000 ms");
                said += 1;
            }
            // There were too many.
            None => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(said, 16);
}
