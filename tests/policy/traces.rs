//! TCP as two kernels speak it, followed segment by segment: what is said of a connection is what the
//! kernels at its ends say.
//!
//! With `NOS_RELAY_RECORD_TRACES=DIRECTORY` what was seen is written there, as the unit tests of the
//! follower have it (`nos-shim/src/flows/follow/traces`).

use std::fmt::Write as _;
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nos_relay::lab::testbed::veth;
use nos_shim::flows::{Connection, Phase, Segment, Side};
use nos_shim::frame::FramePool;
use nos_shim::packet::Packet;
use socket2::{Domain, SockRef, Socket, Type};

use super::*;

const OWNER_PORT: u16 = 40_000;
const PEER_PORT: u16 = 8080;
const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// Two kernels, and what passes between them.
struct Lab {
    owner: LabNamespace,
    peer: LabNamespace,
    wire: Wire,
    addresses: [IpAddr; 2],
}

/// A state of a kernel's connection, as `tcpi_state` has it (`net/tcp_states.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kernel {
    Established = 1,
    SynSent = 2,
    FinWait1 = 4,
    FinWait2 = 5,
    Closed = 7,
    CloseWait = 8,
}

/// What was seen.
#[derive(Default)]
struct Trace {
    entries: Vec<Entry>,
}

enum Entry {
    Segment {
        frame: Vec<u8>,
        side: Side,
        forged: bool,
    },
    /// What both kernels said then, and what that comes to.
    Mark(String, Phase),
}

impl Lab {
    fn new(v6: bool) -> Self {
        let [owner, peer] = ["owner", "peer"].map(|name| LabNamespace::new(name).unwrap());
        veth((&owner, "eth0"), (&peer, "eth0")).unwrap();
        let texts = match v6 {
            false => ["192.0.2.1/24", "192.0.2.2/24"],
            true => ["2001:db8::1/64", "2001:db8::2/64"],
        };
        let networks = texts.map(|text| text.parse::<IpNet>().unwrap());
        owner.add_address("eth0", networks[0]).unwrap();
        peer.add_address("eth0", networks[1]).unwrap();
        Self {
            wire: Wire::open_both_ways(&owner, "eth0"),
            owner,
            peer,
            addresses: networks.map(|network| network.addr()),
        }
    }

    fn at(&self, side: Side) -> (&LabNamespace, SocketAddr) {
        match side {
            Side::Owner => (&self.owner, (self.addresses[0], OWNER_PORT).into()),
            Side::Peer => (&self.peer, (self.addresses[1], PEER_PORT).into()),
        }
    }

    /// What a kernel does not get from the other: an expression of nftables, or nothing.
    fn hold(&self, at: Side, what: Option<&str>) {
        let rule = what
            .map(|what| format!("{what} drop\n"))
            .unwrap_or_default();
        let rules = format!(
            "table inet hold\nflush table inet hold\ntable inet hold {{\nchain input {{\n\
             type filter hook input priority 0;\n{rule}}}\n}}\n"
        );
        nft(self.at(at).0, &rules);
    }

    fn socket(&self, side: Side) -> Socket {
        let (namespace, address) = self.at(side);
        let open = || {
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            socket.bind(&address.into())?;
            Ok::<_, std::io::Error>(socket)
        };
        let socket = namespace.run(open).unwrap().unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        socket.set_write_timeout(Some(LIMIT)).unwrap();
        socket
    }

    fn listen(&self) -> Socket {
        let socket = self.socket(Side::Peer);
        socket.listen(1).unwrap();
        socket
    }

    /// Begins to connect, and does not wait.
    fn begin(&self, side: Side) -> Socket {
        let socket = self.socket(side);
        let to = self.at(other(side)).1;
        socket.set_nonblocking(true).unwrap();
        let begun = socket.connect(&to.into()).unwrap_err();
        assert_eq!(begun.raw_os_error(), Some(libc::EINPROGRESS));
        socket
    }

    fn finish(&self, socket: &Socket) {
        let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
        let limit = PollTimeout::try_from(LIMIT).unwrap();
        assert_eq!(poll(&mut fds, limit).unwrap(), 1, "it is not open in time");
        assert_eq!(socket.take_error().unwrap().map(|it| it.kind()), None);
        socket.set_nonblocking(false).unwrap();
    }

    /// A connection that the owner has opened, with the peer's listener.
    fn connected(&self, trace: &mut Trace) -> (Socket, Socket, Socket) {
        let listener = self.listen();
        let owner = self.begin(Side::Owner);
        self.finish(&owner);
        let (peer, _) = listener.accept().unwrap();
        peer.set_read_timeout(Some(LIMIT)).unwrap();
        self.mark(
            trace,
            [&owner, &peer],
            [Kernel::Established; 2],
            Phase::Established,
        );
        (owner, peer, listener)
    }

    /// Takes note of what has passed.
    fn take(&self, trace: &mut Trace) {
        for frame in self.wire.frames() {
            let Some(side) = self.sender(&frame) else {
                continue;
            };
            let forged = false;
            trace.entries.push(Entry::Segment {
                frame,
                side,
                forged,
            });
        }
    }

    fn sender(&self, frame: &[u8]) -> Option<Side> {
        let seen = Seen::parse(frame).filter(|seen| seen.protocol == wire::TCP)?;
        Some(match seen.source == self.addresses[0] {
            true => Side::Owner,
            false => Side::Peer,
        })
    }

    /// Waits until such a segment has passed, with all before it.
    fn await_segment(&self, trace: &mut Trace, wanted: impl Fn(Side, &Seen) -> bool) {
        self.wire.await_octets(LIMIT, |frame| {
            let side = self.sender(frame)?;
            let entry = Entry::Segment {
                frame: frame.to_vec(),
                side,
                forged: false,
            };
            trace.entries.push(entry);
            wanted(side, &Seen::parse(frame)?).then_some(())
        });
    }

    fn await_flags(&self, trace: &mut Trace, side: Side, flags: u8) {
        self.await_segment(trace, |from, seen| {
            from == side && flags_of(seen) & (SYN | ACK | FIN | RST) == flags
        });
    }

    /// Waits until both kernels say this, and notes it.
    fn mark(&self, trace: &mut Trace, sockets: [&Socket; 2], wanted: [Kernel; 2], phase: Phase) {
        let wanted_states = wanted.map(|it| it as u8);
        await_that(&format!("the kernels say {wanted:?}"), || {
            let states = sockets.map(state_of);
            let so = states == wanted_states;
            so.then_some(()).ok_or_else(|| format!("{states:?}"))
        });
        self.take(trace);
        let [owner, peer] = wanted;
        trace
            .entries
            .push(Entry::Mark(format!("{owner:?} {peer:?}"), phase));
    }

    /// Sends something that neither kernel has said, in a side's name.
    fn forge(&self, trace: &mut Trace, frame: &[u8]) {
        self.take(trace);
        Wire::open(&self.owner, "eth0").send(frame);
        self.await_segment(trace, |side, _| side == Side::Owner);
        if let Some(Entry::Segment { forged, .. }) = trace.entries.last_mut() {
            *forged = true;
        }
    }
}

fn other(side: Side) -> Side {
    match side {
        Side::Owner => Side::Peer,
        Side::Peer => Side::Owner,
    }
}

fn flags_of(seen: &Seen) -> u8 {
    seen.transport().get(13).copied().unwrap_or_default()
}

fn sequence(seen: &Seen) -> u32 {
    u32::from_be_bytes(seen.transport()[4..8].try_into().unwrap())
}

/// Octets of data.
fn data(seen: &Seen) -> usize {
    let tcp = seen.transport();
    tcp.len() - usize::from(tcp[12] >> 4) * 4
}

/// `tcpi_state` of a connection.
fn state_of(socket: &Socket) -> u8 {
    let mut info = [0_u8; 256];
    let mut size = libc::socklen_t::try_from(info.len()).unwrap();
    // SAFETY: the pointers are to `info` and to its size, which the kernel writes within.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut size,
        )
    };
    nix::errno::Errno::result(result).unwrap();
    info[0]
}

fn say(from: &Socket, to: &Socket, octets: usize) {
    let (mut from, mut to) = (from, to);
    std::thread::scope(|scope| {
        scope.spawn(move || from.write_all(&vec![7; octets]).unwrap());
        to.read_exact(&mut vec![0; octets]).unwrap();
    });
}

fn reset_on_close(socket: &Socket) {
    SockRef::from(socket)
        .set_linger(Some(std::time::Duration::ZERO))
        .unwrap();
}

fn end(socket: &Socket) {
    socket.shutdown(std::net::Shutdown::Write).unwrap();
}

use Kernel::{CloseWait, Closed, Established, FinWait1, FinWait2, SynSent};

fn one_side_ends_first(lab: &Lab, first: Side) -> Trace {
    let mut trace = Trace::default();
    let (owner, peer, _listener) = lab.connected(&mut trace);
    say(&owner, &peer, 100);
    say(&peer, &owner, 3000);
    lab.mark(
        &mut trace,
        [&owner, &peer],
        [Established; 2],
        Phase::Established,
    );
    let (one, second, states) = match first {
        Side::Owner => (&owner, &peer, [FinWait2, CloseWait]),
        Side::Peer => (&peer, &owner, [CloseWait, FinWait2]),
    };
    end(one);
    lab.mark(&mut trace, [&owner, &peer], states, Phase::Closing);
    // Half of it goes on.
    say(second, one, 5000);
    lab.mark(&mut trace, [&owner, &peer], states, Phase::Closing);
    end(second);
    lab.mark(&mut trace, [&owner, &peer], [Closed; 2], Phase::Closed);
    trace
}

fn the_owner_ends_first(lab: &Lab) -> Trace {
    one_side_ends_first(lab, Side::Owner)
}

fn the_peer_ends_first(lab: &Lab) -> Trace {
    one_side_ends_first(lab, Side::Peer)
}

fn both_end_at_once(lab: &Lab) -> Trace {
    let mut trace = Trace::default();
    let (owner, peer, _listener) = lab.connected(&mut trace);
    say(&owner, &peer, 100);
    for side in [Side::Owner, Side::Peer] {
        lab.hold(side, Some("meta l4proto tcp"));
    }
    end(&owner);
    end(&peer);
    lab.mark(&mut trace, [&owner, &peer], [FinWait1; 2], Phase::Closing);
    for side in [Side::Owner, Side::Peer] {
        lab.hold(side, None);
    }
    lab.mark(&mut trace, [&owner, &peer], [Closed; 2], Phase::Closed);
    trace
}

fn one_side_resets(lab: &Lab, which: Side) -> Trace {
    let mut trace = Trace::default();
    let (owner, peer, _listener) = lab.connected(&mut trace);
    say(&owner, &peer, 100);
    let (one, left) = match which {
        Side::Owner => (owner, peer),
        Side::Peer => (peer, owner),
    };
    reset_on_close(&one);
    drop(one);
    lab.await_segment(&mut trace, |side, seen| {
        side == which && flags_of(seen) & RST != 0
    });
    lab.mark(&mut trace, [&left, &left], [Closed; 2], Phase::Closed);
    trace
}

fn the_owner_resets(lab: &Lab) -> Trace {
    one_side_resets(lab, Side::Owner)
}

fn the_peer_resets(lab: &Lab) -> Trace {
    one_side_resets(lab, Side::Peer)
}

/// What has not been read when it closes is lost, which the other is told.
fn the_peer_aborts(lab: &Lab) -> Trace {
    let mut trace = Trace::default();
    let (owner, peer, _listener) = lab.connected(&mut trace);
    (&owner).write_all(&[7; 100]).unwrap();
    lab.await_segment(&mut trace, |side, seen| {
        side == Side::Owner && data(seen) == 100
    });
    await_that("the data is there", || {
        let waits = SockRef::from(&peer).peek(&mut [std::mem::MaybeUninit::uninit(); 100]);
        waits.map_err(|error| error.to_string())
    });
    drop(peer);
    lab.await_segment(&mut trace, |side, seen| {
        side == Side::Peer && flags_of(seen) & RST != 0
    });
    lab.mark(&mut trace, [&owner, &owner], [Closed; 2], Phase::Closed);
    trace
}

fn nobody_listens(lab: &Lab) -> Trace {
    let mut trace = Trace::default();
    let owner = lab.begin(Side::Owner);
    lab.await_flags(&mut trace, Side::Peer, RST | ACK);
    lab.mark(&mut trace, [&owner, &owner], [Closed; 2], Phase::Closed);
    trace
}

fn a_syn_is_lost(lab: &Lab) -> Trace {
    let mut trace = Trace::default();
    let listener = lab.listen();
    lab.hold(Side::Peer, Some("meta l4proto tcp"));
    let owner = lab.begin(Side::Owner);
    for _ in 0..2 {
        lab.await_flags(&mut trace, Side::Owner, SYN);
    }
    lab.mark(&mut trace, [&owner, &owner], [SynSent; 2], Phase::Opening);
    lab.hold(Side::Peer, None);
    lab.finish(&owner);
    let (peer, _) = listener.accept().unwrap();
    lab.mark(
        &mut trace,
        [&owner, &peer],
        [Established; 2],
        Phase::Established,
    );
    trace
}

fn an_answer_to_a_syn_is_lost(lab: &Lab) -> Trace {
    let mut trace = Trace::default();
    let listener = lab.listen();
    lab.hold(Side::Owner, Some("meta l4proto tcp"));
    let owner = lab.begin(Side::Owner);
    for _ in 0..2 {
        lab.await_flags(&mut trace, Side::Peer, SYN | ACK);
    }
    lab.mark(&mut trace, [&owner, &owner], [SynSent; 2], Phase::Opening);
    lab.hold(Side::Owner, None);
    lab.finish(&owner);
    let (peer, _) = listener.accept().unwrap();
    lab.mark(
        &mut trace,
        [&owner, &peer],
        [Established; 2],
        Phase::Established,
    );
    trace
}

/// Each has sent its SYN when it gets the other's.
fn both_open_at_once(lab: &Lab) -> Trace {
    let mut trace = Trace::default();
    for side in [Side::Owner, Side::Peer] {
        lab.hold(side, Some("meta l4proto tcp"));
    }
    let owner = lab.begin(Side::Owner);
    lab.await_flags(&mut trace, Side::Owner, SYN);
    let peer = lab.begin(Side::Peer);
    lab.await_flags(&mut trace, Side::Peer, SYN);
    lab.mark(&mut trace, [&owner, &peer], [SynSent; 2], Phase::Opening);
    let [of_owner, of_peer] = [Side::Owner, Side::Peer].map(|side| trace.first_of(side));
    for side in [Side::Owner, Side::Peer] {
        lab.hold(side, Some("tcp flags & (syn | ack) == (syn | ack)"));
    }
    // Once more, as the network may.
    Wire::open(&lab.peer, "eth0").send(&of_peer);
    lab.await_flags(&mut trace, Side::Owner, SYN | ACK);
    Wire::open(&lab.owner, "eth0").send(&of_owner);
    lab.await_flags(&mut trace, Side::Peer, SYN | ACK);
    for side in [Side::Owner, Side::Peer] {
        lab.hold(side, None);
    }
    lab.finish(&owner);
    lab.finish(&peer);
    say(&owner, &peer, 100);
    lab.mark(
        &mut trace,
        [&owner, &peer],
        [Established; 2],
        Phase::Established,
    );
    trace
}

fn a_window_closes_and_opens(lab: &Lab) -> Trace {
    let mut trace = Trace::default();
    let listener = lab.listen();
    // Inherited by what it accepts.
    listener.set_recv_buffer_size(8192).unwrap();
    let owner = lab.begin(Side::Owner);
    lab.finish(&owner);
    let (peer, _) = listener.accept().unwrap();
    peer.set_read_timeout(Some(LIMIT)).unwrap();
    lab.mark(
        &mut trace,
        [&owner, &peer],
        [Established; 2],
        Phase::Established,
    );
    owner.set_nonblocking(true).unwrap();
    let mut written = 0;
    while let Ok(octets) = (&owner).write(&[7; 16_384]) {
        written += octets;
    }
    // A probe, which has an octet less than was acknowledged, is answered: the window is shut.
    lab.await_segment(&mut trace, |side, seen| {
        let window = u16::from_be_bytes(seen.transport()[14..16].try_into().unwrap());
        side == Side::Peer && window == 0
    });
    lab.await_segment(&mut trace, |side, seen| {
        side == Side::Owner && data(seen) == 0
    });
    lab.await_flags(&mut trace, Side::Peer, ACK);
    lab.mark(
        &mut trace,
        [&owner, &peer],
        [Established; 2],
        Phase::Established,
    );
    (&peer).read_exact(&mut vec![0; written]).unwrap();
    owner.set_nonblocking(false).unwrap();
    say(&owner, &peer, 20_000);
    lab.mark(
        &mut trace,
        [&owner, &peer],
        [Established; 2],
        Phase::Established,
    );
    trace
}

fn a_connection_is_kept_alive(lab: &Lab) -> Trace {
    let mut trace = Trace::default();
    let (owner, peer, _listener) = lab.connected(&mut trace);
    say(&owner, &peer, 100);
    let keepalive = socket2::TcpKeepalive::new().with_time(std::time::Duration::from_secs(1));
    lab.take(&mut trace);
    owner.set_tcp_keepalive(&keepalive).unwrap();
    // It has the number of an octet that was acknowledged.
    lab.await_segment(&mut trace, |side, seen| {
        side == Side::Owner && data(seen) == 0
    });
    lab.await_flags(&mut trace, Side::Peer, ACK);
    lab.mark(
        &mut trace,
        [&owner, &peer],
        [Established; 2],
        Phase::Established,
    );
    trace
}

/// Blind attacks in the owner's name, which the peer's kernel asks about (RFC 5961).
fn a_challenge_is_sent(lab: &Lab) -> Trace {
    let mut trace = Trace::default();
    // As often as there is reason to, not twice a second.
    lab.peer
        .sysctl("net/ipv4/tcp_invalid_ratelimit", "0")
        .unwrap();
    let (owner, peer, _listener) = lab.connected(&mut trace);
    say(&owner, &peer, 100);
    lab.mark(
        &mut trace,
        [&owner, &peer],
        [Established; 2],
        Phase::Established,
    );
    let last = trace.entries.iter().rev().find_map(|entry| match entry {
        Entry::Segment {
            frame,
            side: Side::Owner,
            ..
        } => Seen::parse(frame).map(|seen| (frame, seen)),
        _ => None,
    });
    let (frame, seen) = last.unwrap();
    let macs = {
        let mac = |at: usize| MacAddr(frame[at..at + 6].try_into().unwrap());
        (mac(6), mac(0))
    };
    let next = sequence(&seen).wrapping_add(u32::try_from(data(&seen)).unwrap());
    let ip = || wire::ip(macs, lab.addresses[0], lab.addresses[1]);
    let tcp = |number| ip().tcp(OWNER_PORT, PEER_PORT, number, 1000);
    for forged in [
        tcp(next.wrapping_add(5000)).rst(),
        tcp(next.wrapping_add(77)).syn(),
    ] {
        let mut frame = Vec::new();
        forged.write(&mut frame, b"").unwrap();
        lab.forge(&mut trace, &frame);
        // The challenge.
        lab.await_flags(&mut trace, Side::Peer, ACK);
    }
    lab.mark(
        &mut trace,
        [&owner, &peer],
        [Established; 2],
        Phase::Established,
    );
    say(&owner, &peer, 100);
    lab.mark(
        &mut trace,
        [&owner, &peer],
        [Established; 2],
        Phase::Established,
    );
    trace
}

/// The owner opens anew what the peer's kernel keeps in TIME-WAIT (RFC 9293 §3.6.1).
fn a_port_is_used_again(lab: &Lab) -> Trace {
    let mut trace = Trace::default();
    let (owner, peer, listener) = lab.connected(&mut trace);
    say(&owner, &peer, 100);
    end(&peer);
    lab.mark(
        &mut trace,
        [&owner, &peer],
        [CloseWait, FinWait2],
        Phase::Closing,
    );
    end(&owner);
    lab.mark(&mut trace, [&owner, &peer], [Closed; 2], Phase::Closed);
    drop((owner, peer));
    let owner = lab.begin(Side::Owner);
    lab.finish(&owner);
    let (peer, _) = listener.accept().unwrap();
    peer.set_read_timeout(Some(LIMIT)).unwrap();
    say(&owner, &peer, 100);
    lab.mark(
        &mut trace,
        [&owner, &peer],
        [Established; 2],
        Phase::Established,
    );
    trace
}

fn segments_are_lost(lab: &Lab) -> Trace {
    let mut trace = Trace::default();
    let (owner, peer, _listener) = lab.connected(&mut trace);
    lab.hold(Side::Peer, Some("meta l4proto tcp"));
    (&owner).write_all(&[7; 20_000]).unwrap();
    lab.await_segment(&mut trace, |side, seen| {
        side == Side::Owner && data(seen) > 0
    });
    lab.hold(Side::Peer, None);
    (&peer).read_exact(&mut [0; 20_000]).unwrap();
    say(&peer, &owner, 100);
    lab.mark(
        &mut trace,
        [&owner, &peer],
        [Established; 2],
        Phase::Established,
    );
    trace
}

/// A peer that has lost its memory resets what comes.
fn the_peer_has_forgotten(lab: &Lab) -> Trace {
    let mut trace = Trace::default();
    let (owner, peer, _listener) = lab.connected(&mut trace);
    say(&owner, &peer, 100);
    lab.mark(
        &mut trace,
        [&owner, &peer],
        [Established; 2],
        Phase::Established,
    );
    // Its farewell leaves its kernel, and nobody's wire.
    nft(
        &lab.peer,
        "table inet mute {\nchain output {\ntype filter hook output priority 0;\n\
         tcp flags & rst == rst drop\n}\n}\n",
    );
    reset_on_close(&peer);
    drop(peer);
    nft(&lab.peer, "delete table inet mute\n");
    (&owner).write_all(&[7; 100]).unwrap();
    lab.await_flags(&mut trace, Side::Peer, RST);
    lab.mark(&mut trace, [&owner, &owner], [Closed; 2], Phase::Closed);
    trace
}

impl Trace {
    /// What a side has sent first.
    fn first_of(&self, side: Side) -> Vec<u8> {
        let mut entries = self.entries.iter();
        let found = entries.find_map(|entry| match entry {
            Entry::Segment {
                frame, side: from, ..
            } if *from == side => Some(frame),
            _ => None,
        });
        wire::with_tcp_checksum(found.unwrap())
    }
}

/// Follows what was seen, and says it as a unit test reads it.
fn replay(name: &str, trace: &Trace) -> String {
    let mut pool = FramePool::new(64, 80_000);
    let mut connection: Option<Connection> = None;
    let mut text = String::new();
    for entry in &trace.entries {
        let (frame, side, forged) = match entry {
            Entry::Mark(said, phase) => {
                writeln!(text, "= {said}: {phase:?}").unwrap();
                let followed = connection.map(|it| it.phase());
                assert_eq!(
                    followed,
                    Some(*phase),
                    "{name}: the kernels say {said}:\n{text}"
                );
                continue;
            }
            Entry::Segment {
                frame,
                side,
                forged,
            } => (frame, *side, *forged),
        };
        let packet = Packet::parse(pool.copy_from(frame).unwrap()).unwrap();
        let segment = Segment::of(&packet).unwrap();
        let plausible = match &mut connection {
            Some(connection) => connection.follow(side, &segment),
            None => {
                connection = Some(Connection::new(side, &segment));
                true
            }
        };
        let phase = connection.unwrap().phase();
        let seen = Seen::parse(frame).unwrap();
        let tcp = seen.transport();
        let header = &tcp[..tcp.len() - data(&seen)];
        let hex: String = header.iter().map(|octet| format!("{octet:02x}")).collect();
        let verdict = if plausible {
            "plausible"
        } else {
            "implausible"
        };
        writeln!(text, "{side:?} {hex} {} {verdict} {phase:?}", data(&seen)).unwrap();
        assert_eq!(plausible, !forged, "{name}: {side:?} has said it:\n{text}");
        pool.free(packet.into_frame());
    }
    text
}

type Scene = fn(&Lab) -> Trace;

const SCENES: [(&str, Scene); 16] = [
    ("the_owner_ends_first", the_owner_ends_first),
    ("the_peer_ends_first", the_peer_ends_first),
    ("both_end_at_once", both_end_at_once),
    ("the_owner_resets", the_owner_resets),
    ("the_peer_resets", the_peer_resets),
    ("the_peer_aborts", the_peer_aborts),
    ("nobody_listens", nobody_listens),
    ("a_syn_is_lost", a_syn_is_lost),
    ("an_answer_to_a_syn_is_lost", an_answer_to_a_syn_is_lost),
    ("both_open_at_once", both_open_at_once),
    ("a_window_closes_and_opens", a_window_closes_and_opens),
    ("a_connection_is_kept_alive", a_connection_is_kept_alive),
    ("a_challenge_is_sent", a_challenge_is_sent),
    ("a_port_is_used_again", a_port_is_used_again),
    ("segments_are_lost", segments_are_lost),
    ("the_peer_has_forgotten", the_peer_has_forgotten),
];

lab_test! {
    fn what_kernels_say_is_followed() {
        if !Path::new("/usr/sbin/nft").exists() {
            return skip("what_kernels_say_is_followed: nft is not there");
        }
        let directory = std::env::var_os("NOS_RELAY_RECORD_TRACES");
        for v6 in [false, true] {
            for (name, scene) in SCENES {
                let name = format!("{name}_over_{}", if v6 { "ipv6" } else { "ipv4" });
                let text = replay(&name, &scene(&Lab::new(v6)));
                if let Some(directory) = &directory {
                    std::fs::write(Path::new(directory).join(format!("{name}.txt")), text).unwrap();
                }
            }
        }
    }
}
