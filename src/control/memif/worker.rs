//! The thread that serves the sockets.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use nos_shim::ident::Interface;
use nos_shim::time::Instant;
use tracing::{debug, error, info};

use super::listener::Listener;
use super::message::{Init, Message};
use super::options::{Identity, Options};
use super::session::{Agreed, Attached, Refusal, Session, Step};
use super::sharing::{Given, Made, Shared};
use super::socket::{self, Packet};
use super::stall::{Found, Stall};
use super::{Carrier, Command, News, OpenError, TAKES_NOTHING};
use crate::data::device::memif::{Memif, Notice, NoticeKind, Port, Ring, Side};

/// The token of the thread's own waker.
pub(super) const WAKE: Token = Token(0);

/// Clients of a socket that have not said which interface they want, at most: others are hung up on.
const MAX_STRANGERS: usize = 16;

/// How long a client waits before it connects again, at first and at last.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(1);

/// Clients that are accepted before others have their turn.
const ACCEPTED_AT_ONCE: usize = 32;

/// When a socket is looked at again that could not accept for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What devices tell by: both ends, and what wakes this thread.
type Noticing = (Sender<Notice>, Receiver<Notice>, Arc<Waker>);

/// The thread.
pub(super) struct Worker {
    poll: Poll,
    commands: Receiver<Command>,
    noticing: Sender<Notice>,
    notices: Receiver<Notice>,
    waker: Arc<Waker>,
    news: Box<dyn Fn(News) + Send>,
    epoch: std::time::Instant,
    ports: BTreeMap<u64, Served>,
    listeners: BTreeMap<PathBuf, Listening>,
    peers: BTreeMap<Token, Peer>,
    last_port: u64,
    last_token: usize,
    /// Sockets at which somebody may still wait to be accepted.
    accepting: VecDeque<PathBuf>,
    accept_at: Option<Instant>,
}

struct Listening {
    listener: Listener,
    token: Token,
}

/// An interface.
struct Served {
    interface: Interface,
    name: String,
    options: Options,
    port: Arc<Port>,
    /// Who connects to it, or is connected.
    peer: Option<Token>,
    /// Frames pass.
    link: Option<Link>,
    /// As client, when to connect again, and how long to wait after that.
    retry: Option<(Instant, Duration)>,
    /// What was told last.
    told: Option<Carrier>,
}

/// A connection that a device has.
struct Link {
    number: u32,
    peer: String,
    rung_by: Vec<Arc<OwnedFd>>,
    outgoing: Vec<Ring>,
    stall: Option<Stall>,
}

impl Link {
    fn indices(&self) -> Vec<u16> {
        self.outgoing.iter().map(Ring::peer_index).collect()
    }
}

/// Somebody at the other end of a socket.
struct Peer {
    socket: OwnedFd,
    session: Session,
    /// Where it has connected, if it has.
    at: Option<PathBuf>,
    /// Which interface it is for.
    port: Option<u64>,
    part: Part,
}

/// What there is to share until the connection stands.
enum Part {
    Server(Given),
    Client(Option<Shared>),
    /// It is the device's.
    Connected,
}

/// How a conversation ended.
enum End {
    /// The peer is refused, and is told so.
    Refused(Refusal),
    /// It has gone, or ended it.
    Gone(String),
}

impl From<Refusal> for End {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        Self::Gone(match error.kind() {
            ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => {
                "the peer has gone".to_owned()
            }
            _ => error.to_string(),
        })
    }
}

impl Worker {
    pub(super) fn new(
        poll: Poll,
        commands: Receiver<Command>,
        (noticing, notices, waker): Noticing,
        news: Box<dyn Fn(News) + Send>,
    ) -> Self {
        Self {
            poll,
            commands,
            noticing,
            notices,
            waker,
            news,
            epoch: std::time::Instant::now(),
            ports: BTreeMap::new(),
            listeners: BTreeMap::new(),
            peers: BTreeMap::new(),
            last_port: 0,
            last_token: WAKE.0,
            accepting: VecDeque::new(),
            accept_at: None,
        }
    }

    fn now(&self) -> Instant {
        let elapsed = self.epoch.elapsed().as_nanos();
        Instant::from_nanos(u64::try_from(elapsed).unwrap_or(u64::MAX))
    }

    /// Serves until told to stop.
    pub(super) fn run(mut self) {
        let mut events = Events::with_capacity(64);
        loop {
            let timeout = self.poll_at().map(|at| at.since(self.now()));
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    error!(%error, "memif sockets are not served any more");
                    return;
                }
                Ok(()) => {}
            }
            for event in &events {
                self.handle_ready(event.token());
            }
            self.accept_clients();
            // What devices tell comes before what is asked: one is closed before it is opened anew.
            while let Ok(notice) = self.notices.try_recv() {
                self.handle_notice(notice);
            }
            while let Ok(command) = self.commands.try_recv() {
                match command {
                    Command::Open(interface, name, options, reply) => {
                        // Nobody waits any more if this fails; the device is dropped then.
                        let _ = reply.try_send(self.open(interface, name, options));
                    }
                    Command::Stop => return self.stop(),
                }
            }
            self.handle_timeouts();
        }
    }

    fn stop(&mut self) {
        for token in self.peers.keys().copied().collect::<Vec<_>>() {
            let closed = Refusal::System("the interface is closed".to_owned());
            self.end(token, End::Refused(closed));
        }
    }

    fn poll_at(&self) -> Option<Instant> {
        let sessions = self.peers.values().filter_map(|it| it.session.poll_at());
        let retries = self.ports.values().filter_map(|it| Some(it.retry?.0));
        let links = self.ports.values().filter_map(|it| it.link.as_ref());
        let stalls = links.filter_map(|link| Some(link.stall.as_ref()?.poll_at()));
        let all = sessions.chain(retries).chain(stalls);
        all.chain(self.accept_at).min()
    }

    fn handle_timeouts(&mut self) {
        let now = self.now();
        let peers = self.peers.iter();
        let silent: Vec<_> = peers
            .filter_map(|(token, peer)| Some((*token, peer.session.handle_timeout(now).err()?)))
            .collect();
        for (token, refusal) in silent {
            self.end(token, End::Refused(refusal));
        }
        for id in self.ports.keys().copied().collect::<Vec<_>>() {
            self.look_whether_it_stalls(id, now);
            let due = |served: &&mut Served| served.retry.is_some_and(|(at, _)| at <= now);
            if let Some(served) = self.ports.get_mut(&id).filter(due)
                && let Some((_, pause)) = served.retry.take()
            {
                self.connect(id, pause);
            }
        }
    }

    fn look_whether_it_stalls(&mut self, id: u64, now: Instant) {
        let Some(served) = self.ports.get_mut(&id) else {
            return;
        };
        let Some(link) = &mut served.link else { return };
        let indices = link.indices();
        let due = |stall: &&mut Stall| stall.poll_at() <= now;
        let Some(stall) = link.stall.as_mut().filter(due) else {
            return;
        };
        let found = stall.look(&indices, now);
        if found == Found::Moves || found == Found::Recovered {
            link.stall = None;
            served.port.look_again();
        }
        let carrier = match found {
            Found::Same | Found::Moves => return,
            Found::Stalled => Carrier::Stalled,
            Found::Lost => Carrier::Down(TAKES_NOTHING.to_owned()),
            Found::Recovered => Carrier::Up(link.peer.clone()),
        };
        served.port.set_up(found != Found::Lost);
        self.tell(id, carrier);
    }

    /// Tells what has changed.
    fn tell(&mut self, id: u64, carrier: Carrier) {
        let Some(served) = self.ports.get_mut(&id) else {
            return;
        };
        if served.told.as_ref() != Some(&carrier) {
            served.told = Some(carrier.clone());
            let interface = served.interface;
            (self.news)(News { interface, carrier });
        }
    }

    fn register(&mut self, descriptor: i32) -> io::Result<Token> {
        self.last_token += 1;
        let token = Token(self.last_token);
        let registry = self.poll.registry();
        registry.register(&mut SourceFd(&descriptor), token, Interest::READABLE)?;
        Ok(token)
    }

    /// Opens an interface, and begins to listen or to connect.
    fn open(
        &mut self,
        interface: Interface,
        name: String,
        options: Options,
    ) -> Result<Memif, OpenError> {
        let mut others = self.ports.values();
        let same = |other: &Served| {
            (&other.options.address, other.options.side) == (&options.address, options.side)
        };
        if others.any(same) {
            return Err(OpenError::Twice(options.address));
        }
        if options.side == Side::Server {
            self.listen(&options)?;
        }
        self.last_port += 1;
        let id = self.last_port;
        let (noticing, waker) = (self.noticing.clone(), Arc::clone(&self.waker));
        let made = Memif::new(id, options.address.to_string(), noticing, waker);
        let (device, port) = match made {
            Ok(made) => made,
            Err(error) => {
                self.listen_no_more();
                return Err(error.into());
            }
        };
        let side = options.side;
        let served = Served {
            interface,
            name,
            options,
            port,
            peer: None,
            link: None,
            retry: (side == Side::Client).then(|| (self.now(), FIRST_PAUSE)),
            told: None,
        };
        self.ports.insert(id, served);
        if side == Side::Server {
            self.tell(id, Carrier::Down("nobody has connected".to_owned()));
        }
        Ok(device)
    }

    fn listen(&mut self, options: &Options) -> Result<(), OpenError> {
        let path = options.address.path();
        if self.listeners.contains_key(path) {
            return Ok(());
        }
        let listener = Listener::bind(path)?;
        let token = self.register(listener.descriptor())?;
        let listening = Listening { listener, token };
        self.listeners.insert(path.to_owned(), listening);
        Ok(())
    }

    /// Closes sockets that no interface has any more.
    fn listen_no_more(&mut self) {
        let ports = self.ports.values();
        let servers = ports.filter(|served| served.options.side == Side::Server);
        let used: Vec<_> = servers
            .map(|served| served.options.address.path())
            .collect();
        let registry = self.poll.registry();
        self.listeners.retain(|path, listening| {
            let stays = used.contains(&path.as_path());
            if !stays {
                let descriptor = listening.listener.descriptor();
                let _ = registry.deregister(&mut SourceFd(&descriptor));
            }
            stays
        });
    }

    /// As client, connects; if that fails, again after `pause`.
    fn connect(&mut self, id: u64, pause: Duration) {
        let Some(served) = self.ports.get(&id) else {
            return;
        };
        let options = &served.options;
        let identity = Identity {
            id: options.address.id(),
            secret: options.secret.clone(),
            name: served.name.clone(),
            queues: options.queues,
            log2_ring_size: options.log2_ring_size,
        };
        let path = options.address.path().to_owned();
        let connected = socket::connect_to(&path);
        let connected =
            connected.and_then(|socket| Ok((self.register(socket.as_raw_fd())?, socket)));
        let why = match connected {
            Ok((token, socket)) => {
                let peer = Peer {
                    socket,
                    session: Session::client(identity, self.now()),
                    at: None,
                    port: Some(id),
                    part: Part::Client(None),
                };
                self.peers.insert(token, peer);
                if let Some(served) = self.ports.get_mut(&id) {
                    (served.peer, served.retry) = (Some(token), None);
                }
                // The server may have spoken before the socket was watched.
                return self.read(token);
            }
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::NotFound | ErrorKind::ConnectionRefused
                ) =>
            {
                format!("nobody listens at {}", path.display())
            }
            Err(error) => format!("cannot connect to {}: {error}", path.display()),
        };
        self.retry(id, pause);
        self.tell(id, Carrier::Down(why));
    }

    /// As client, connects again after `pause`, and then after a longer one.
    fn retry(&mut self, id: u64, pause: Duration) {
        let now = self.now();
        if let Some(served) = self.ports.get_mut(&id)
            && served.options.side == Side::Client
        {
            served.retry = Some((now + pause, (pause * 2).min(LAST_PAUSE)));
        }
    }

    fn handle_ready(&mut self, token: Token) {
        if self.peers.contains_key(&token) {
            return self.read(token);
        }
        let mut listeners = self.listeners.iter();
        if let Some((path, _)) = listeners.find(|(_, listening)| listening.token == token)
            && !self.accepting.contains(path)
        {
            self.accepting.push_back(path.clone());
        }
    }

    /// Accepts who waits.
    fn accept_clients(&mut self) {
        let now = self.now();
        if self.accept_at.take_if(|at| *at <= now).is_some() {
            self.accepting = self.listeners.keys().cloned().collect();
        }
        for _ in 0..ACCEPTED_AT_ONCE {
            let Some(path) = self.accepting.pop_front() else {
                return;
            };
            let Some(Listening { listener, .. }) = self.listeners.get(&path) else {
                continue;
            };
            match listener.accept() {
                Ok(Some(socket)) => {
                    self.accepting.push_back(path.clone());
                    self.greet(socket, path);
                }
                Ok(None) => {}
                Err(error) => {
                    debug!(%error, "{}: cannot accept", path.display());
                    self.accept_at = Some(now + ACCEPT_PAUSE);
                }
            }
        }
        // Others have their turn first.
        self.accept_at = Some(now);
    }

    fn greet(&mut self, socket: OwnedFd, at: PathBuf) {
        let strangers = self.peers.values();
        let strangers =
            strangers.filter(|peer| peer.port.is_none() && peer.at.as_ref() == Some(&at));
        if strangers.count() >= MAX_STRANGERS {
            debug!("{}: too many at a time", at.display());
            return;
        }
        let (session, hello) = Session::server(self.now());
        let said = socket::send(&socket, &hello, None);
        match said.and_then(|()| self.register(socket.as_raw_fd())) {
            Ok(token) => {
                let peer = Peer {
                    socket,
                    session,
                    at: Some(at),
                    port: None,
                    part: Part::Server(Given::default()),
                };
                self.peers.insert(token, peer);
                self.read(token);
            }
            Err(error) => debug!(%error, "{}: a client has gone", at.display()),
        }
    }

    /// Reads what a peer says, as long as it says something that is due: that is little.
    fn read(&mut self, token: Token) {
        loop {
            let Some(peer) = self.peers.get(&token) else {
                return;
            };
            let result = match socket::receive(&peer.socket) {
                Ok(Some(packet)) => self.handle_packet(token, packet),
                Ok(None) => return,
                Err(error) => Err(error.into()),
            };
            if let Err(end) = result {
                return self.end(token, end);
            }
        }
    }

    fn handle_packet(&mut self, token: Token, packet: Packet) -> Result<(), End> {
        let now = self.now();
        let Some(peer) = self.peers.get_mut(&token) else {
            return Ok(());
        };
        let message = Message::parse(packet.octets()).map_err(Refusal::from)?;
        let mut descriptors = packet.descriptors;
        let step = peer.session.handle(message, descriptors.len(), now)?;
        let descriptor = descriptors.pop();
        match (step, descriptor) {
            (Step::Claim(init), _) => self.claim(token, &init),
            (Step::Region(region), Some(file)) => {
                if let Part::Server(given) = &mut peer.part {
                    given.add_region(region, &file)?;
                }
                Ok(socket::send(&peer.socket, &peer.session.ack(), None)?)
            }
            (Step::Ring(ring), Some(eventfd)) => {
                if let Part::Server(given) = &mut peer.part {
                    given.add_ring(ring, eventfd)?;
                }
                Ok(socket::send(&peer.socket, &peer.session.ack(), None)?)
            }
            (Step::Connect(name), _) => self.connected(token, &name.to_string()),
            (Step::Share(agreed), _) => share(peer, agreed),
            (Step::Send(message, attached), _) => send_shared(peer, &message, attached),
            (Step::Up(name), _) => self.up(token, &name.to_string()),
            (Step::Ended(end), _) => Err(End::Gone(format!("the peer says: {}", end.reason))),
            (Step::None | Step::Region(_) | Step::Ring(_), _) => Ok(()),
        }
    }

    /// A client wants an interface.
    fn claim(&mut self, token: Token, init: &Init) -> Result<(), End> {
        let Some(peer) = self.peers.get_mut(&token) else {
            return Ok(());
        };
        let mut ports = self.ports.iter_mut();
        let wanted = ports.find(|(_, served)| {
            let options = &served.options;
            options.side == Side::Server
                && options.address.id() == init.id
                && peer.at.as_deref() == Some(options.address.path())
        });
        let (id, served) = wanted.ok_or(Refusal::NoInterface(init.id))?;
        if served.peer.is_some() {
            return Err(Refusal::InUse(init.id).into());
        }
        let options = &served.options;
        let ack = peer
            .session
            .claim(init, options.secret.as_ref(), options.queues)?;
        (served.peer, peer.port) = (Some(token), Some(*id));
        Ok(socket::send(&peer.socket, &ack, None)?)
    }

    /// As server: the client has given everything.
    fn connected(&mut self, token: Token, client: &str) -> Result<(), End> {
        let Some(peer) = self.peers.get_mut(&token) else {
            return Ok(());
        };
        let Part::Server(given) = std::mem::replace(&mut peer.part, Part::Connected) else {
            return Ok(());
        };
        let made = given.connect()?;
        let name = peer.port.and_then(|id| Some(&self.ports.get(&id)?.name));
        let said = peer.session.connected(name.map_or("", String::as_str));
        // Before frames: some clients reset the rings when they hear it.
        socket::send(&peer.socket, &said, None)?;
        self.use_it(token, made, client)
    }

    /// As client: the server has everything.
    fn up(&mut self, token: Token, server: &str) -> Result<(), End> {
        let Some(peer) = self.peers.get_mut(&token) else {
            return Ok(());
        };
        let Part::Client(Some(shared)) = std::mem::replace(&mut peer.part, Part::Connected) else {
            return Ok(());
        };
        let made = shared.connect()?;
        self.use_it(token, made, server)
    }

    /// Gives the device its connection.
    fn use_it(&mut self, token: Token, made: Made, peer: &str) -> Result<(), End> {
        let Made {
            connection,
            rung_by,
        } = made;
        let outgoing = connection.outgoing();
        let id = self.peers.get(&token).and_then(|peer| peer.port);
        let Some((id, served)) = id.and_then(|id| Some((id, self.ports.get_mut(&id)?))) else {
            return Ok(());
        };
        let number = served.port.connect(Some(connection), &rung_by);
        let number = number
            .map_err(|error| Refusal::System(format!("the eventfds cannot be watched: {error}")))?;
        served.link = Some(Link {
            number,
            peer: peer.to_owned(),
            rung_by,
            outgoing,
            stall: None,
        });
        self.tell(id, Carrier::Up(peer.to_owned()));
        Ok(())
    }

    /// Ends a conversation.
    fn end(&mut self, token: Token, end: End) {
        let Some(peer) = self.peers.remove(&token) else {
            return;
        };
        let why = match end {
            End::Refused(refusal) => {
                // It may have gone.
                let _ = socket::send(&peer.socket, &refusal.message(), None);
                format!("the peer is refused: {refusal}")
            }
            End::Gone(why) => why,
        };
        let descriptor = peer.socket.as_fd().as_raw_fd();
        let _ = self.poll.registry().deregister(&mut SourceFd(&descriptor));
        let Some((id, served)) = peer
            .port
            .and_then(|id| Some((id, self.ports.get_mut(&id)?)))
        else {
            let at = peer.at.unwrap_or_default();
            info!(socket = %at.display(), why, "a memif client is turned away");
            return;
        };
        served.peer = None;
        let was_up = served.link.take().map(|link| {
            served.port.forget(&link.rung_by);
            // Watches nothing new, which cannot fail.
            let _ = served.port.connect(None, &[]);
        });
        // One that is turned away again and again is not hurried.
        let pause = match was_up {
            Some(()) => FIRST_PAUSE,
            None => LAST_PAUSE,
        };
        self.retry(id, pause);
        self.tell(id, Carrier::Down(why));
    }

    fn handle_notice(&mut self, Notice { port: id, kind }: Notice) {
        let now = self.now();
        let Some(served) = self.ports.get_mut(&id) else {
            return;
        };
        match kind {
            NoticeKind::Fault(number, fault) => {
                let current = served
                    .link
                    .as_ref()
                    .is_some_and(|link| link.number == number);
                if let Some(token) = served.peer.filter(|_| current) {
                    self.end(token, End::Refused(fault.into()));
                }
            }
            NoticeKind::Full => {
                if let Some(link) = served.link.as_mut().filter(|link| link.stall.is_none()) {
                    link.stall = Some(Stall::new(link.indices(), now));
                }
            }
            NoticeKind::Returned(connection) => {
                let frames = connection.untaken();
                if frames > 0 {
                    info!(
                        interface = served.name,
                        frames, "lost in a ring that nobody reads"
                    );
                }
            }
            NoticeKind::Closed => {
                if let Some(token) = served.peer {
                    let closed = Refusal::System("the interface is closed".to_owned());
                    self.end(token, End::Refused(closed));
                }
                self.ports.remove(&id);
                self.listen_no_more();
            }
        }
    }
}

/// Makes what is shared, and says to which interface it is to go.
fn share(peer: &mut Peer, agreed: Agreed) -> Result<(), End> {
    let shared = Shared::new(agreed)?;
    let offset = |to_server, index| Shared::offset(agreed, to_server, index);
    let init = peer.session.init(Shared::octets(agreed), offset);
    peer.part = Part::Client(Some(shared));
    match init {
        Some(init) => Ok(socket::send(&peer.socket, &init, None)?),
        None => Ok(()),
    }
}

fn send_shared(peer: &Peer, message: &Message, attached: Attached) -> Result<(), End> {
    let descriptor = match &peer.part {
        Part::Client(Some(shared)) => shared.attached(attached),
        _ => None,
    };
    Ok(socket::send(
        &peer.socket,
        message,
        descriptor.map(AsFd::as_fd),
    )?)
}
