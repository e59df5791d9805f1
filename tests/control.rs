//! The control socket over real sockets: daemon and client, and what can go wrong between them.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::io::{BufRead, BufReader, IoSlice, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use mio::{Events, Poll, Token};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nos_relay::control::api::snapshot::{Origin, Port, PortKind, Protocol};
use nos_relay::control::api::{
    Access, BindError, ConnectionId, ControlError, Event, Group, MAX_CONNECTIONS, MAX_REQUEST,
    REQUEST_TIMEOUT, RESPONSE_TIMEOUT, Refusal, RefusalCode, Request, Response, Server, Subject,
    SubjectKind, Table, query,
};
use nos_shim::ident::VrfId;
use nos_shim::time::Instant;
use proptest::prelude::*;
use tempfile::TempDir;

const FIRST: Token = Token(100);
const LONG: Duration = Duration::from_secs(60);
const SHOW_PORTS: Request = Request::Show {
    table: Table::Ports,
};
const SHOW_PORTS_LINE: &str =
    "{\"version\":1,\"request\":{\"type\":\"show\",\"table\":\"ports\"}}\n";

fn ports() -> Response {
    Response::Ports(vec![Port {
        vrf: VrfId::DEFAULT,
        vrf_name: "default".to_owned(),
        addresses: None,
        protocol: Protocol::Tcp,
        range: "20000-20999".parse().unwrap(),
        kind: PortKind::Listen,
        owner: "web".to_owned(),
        origin: Origin::Config,
        from: None,
        state: None,
    }])
}

/// More than any socket buffer takes.
fn many_ports() -> Response {
    let Response::Ports(one) = ports() else {
        panic!()
    };
    Response::Ports(vec![one[0].clone(); 50_000])
}

/// A server, its poll, and a clock that the test moves.
struct Daemon {
    poll: Poll,
    server: Server,
    now: Instant,
    path: PathBuf,
    directory: TempDir,
}

impl Daemon {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        let poll = Poll::new().unwrap();
        let server = Server::bind(&path, &Access::default(), poll.registry(), FIRST).unwrap();
        let now = Instant::from_millis(1000);
        Self {
            poll,
            server,
            now,
            path,
            directory,
        }
    }

    fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.path).unwrap()
    }

    /// Handles the events that are there after waiting for one up to `patience`.
    fn handle_events(&mut self, patience: Duration) {
        let mut events = Events::with_capacity(64);
        self.poll.poll(&mut events, Some(patience)).unwrap();
        for event in &events {
            assert!(self.server.owns(event.token()));
            self.server.handle_ready(event.token(), self.now);
        }
    }

    /// Handles what is there, and the one request that it must bring.
    fn request(&mut self) -> ConnectionId {
        self.handle_events(Duration::ZERO);
        let asked = self.server.poll_request().unwrap();
        assert_eq!(asked.request, SHOW_PORTS);
        assert!(self.server.poll_request().is_none());
        asked.connection
    }

    /// Handles what is there, and answers the requests that it brings.
    fn turn(&mut self) -> Vec<Request> {
        self.handle_events(Duration::ZERO);
        self.answer()
    }

    fn answer(&mut self) -> Vec<Request> {
        let mut requests = Vec::new();
        while let Some(asked) = self.server.poll_request() {
            self.server.respond(asked.connection, &ports(), self.now);
            requests.push(asked.request);
        }
        requests
    }

    /// Serves until `client` returns.
    fn serve<T: Send>(&mut self, client: impl FnOnce(&Path) -> T + Send) -> T {
        let path = self.path.clone();
        thread::scope(|scope| {
            let client = scope.spawn(move || client(&path));
            while !client.is_finished() {
                self.handle_events(Duration::from_millis(5));
                self.answer();
            }
            client.join().unwrap()
        })
    }
}

/// Everything that comes until the daemon closes.
fn rest(mut stream: UnixStream) -> String {
    stream.set_read_timeout(Some(LONG)).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

fn refusal(code: &str, message: &str) -> String {
    format!(
        "{{\"version\":1,\"response\":{{\"type\":\"refused\",\"data\":{{\"code\":\"{code}\",\"message\":\"{message}\"}}}}}}\n"
    )
}

#[test]
fn a_request_gets_its_response() {
    let mut daemon = Daemon::start();
    for _ in 0..3 {
        let response = daemon.serve(|path| query(path, &SHOW_PORTS, LONG));
        assert_eq!(response.unwrap(), ports());
    }
}

#[test]
fn the_lines_on_the_wire_are_as_documented() {
    let documented = include_str!("../docs/control.md");
    assert!(documented.contains(SHOW_PORTS_LINE));
    let mut daemon = Daemon::start();
    let mut client = daemon.connect();
    client.write_all(SHOW_PORTS_LINE.as_bytes()).unwrap();
    assert_eq!(daemon.turn(), [SHOW_PORTS]);
    let response = rest(client);
    assert!(documented.contains(&response), "{response}");
}

#[test]
fn a_long_response_arrives_whole_however_slowly_it_is_read() {
    let long = many_ports();
    let mut daemon = Daemon::start();
    let mut client = daemon.connect();
    client.write_all(SHOW_PORTS_LINE.as_bytes()).unwrap();
    let id = daemon.request();
    daemon.server.respond(id, &long, daemon.now);

    client.set_nonblocking(true).unwrap();
    let mut received = Vec::new();
    let mut piece = vec![0; 100_000];
    while received.last() != Some(&b'\n') {
        match client.read(&mut piece) {
            Ok(0) => panic!("closed after {} octets", received.len()),
            Ok(read) => received.extend_from_slice(&piece[..read]),
            Err(_) => assert!(daemon.turn().is_empty()),
        }
    }
    let text = String::from_utf8(received).unwrap();
    assert_eq!(text.matches("\"owner\":\"web\"").count(), 50_000);
}

#[test]
fn a_request_may_come_in_pieces() {
    let mut daemon = Daemon::start();
    let mut client = daemon.connect();
    let (last, octets) = SHOW_PORTS_LINE.as_bytes().split_last().unwrap();
    for octet in octets {
        client.write_all(&[*octet]).unwrap();
        assert!(daemon.turn().is_empty());
    }
    client.write_all(&[*last]).unwrap();
    assert_eq!(daemon.turn(), [SHOW_PORTS]);
    assert!(rest(client).contains("20000-20999"));
}

#[test]
fn a_client_may_close_its_half_after_the_request() {
    let mut daemon = Daemon::start();
    let mut client = daemon.connect();
    client.write_all(SHOW_PORTS_LINE.as_bytes()).unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(daemon.turn(), [SHOW_PORTS]);
    assert!(rest(client).contains("20000-20999"));
}

#[test]
fn garbage_is_refused_with_the_reason() {
    let mut daemon = Daemon::start();
    let bad = |why: &str| refusal("bad-request", &format!("not a request: {why}"));
    for (sent, answer) in [
        (
            "GET / HTTP/1.1\r\n",
            bad("expected value at line 1 column 1"),
        ),
        ("\n", bad("EOF while parsing a value at line 1 column 0")),
        ("{}\n", bad("missing field `version` at line 1 column 2")),
        (
            "{\"version\":1}\n",
            bad("missing field `request` at line 1 column 13"),
        ),
        (
            "{\"version\":1,\"request\":{\"type\":\"show\",\"table\":\"x\"}}\n",
            bad(
                "unknown variant `x`, expected one of `networks`, `attachments`, `ports`, `routes`, `neighbors`, `flows`, `counters`, `registrations`, `pools`, `pool-addresses` at line 1 column 51",
            ),
        ),
        (
            "{\"version\":2,\"request\":{\"type\":\"dance\"}}\n",
            refusal(
                "version",
                "the daemon speaks version 1 of the protocol, the request is of 2",
            ),
        ),
    ] {
        let mut client = daemon.connect();
        client.write_all(sent.as_bytes()).unwrap();
        assert!(daemon.turn().is_empty());
        assert_eq!(rest(client), answer, "to {sent:?}");
    }
}

#[test]
fn octets_that_are_no_text_are_refused() {
    let mut daemon = Daemon::start();
    let mut client = daemon.connect();
    client.write_all(b"\xff\xfe\0\x80\n").unwrap();
    assert!(daemon.turn().is_empty());
    assert!(rest(client).contains("\"bad-request\""));
}

#[test]
fn a_request_without_an_end_is_refused() {
    let mut daemon = Daemon::start();
    let mut client = daemon.connect();
    client.write_all(b"{\"version\":1").unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(daemon.turn().is_empty());
    let answer = refusal("bad-request", "the request ends without a newline");
    assert_eq!(rest(client), answer);
}

#[test]
fn an_oversize_request_is_refused_before_its_end() {
    let mut daemon = Daemon::start();
    let said = daemon.serve(|path| {
        let mut client = UnixStream::connect(path).unwrap();
        client.write_all(&vec![b' '; MAX_REQUEST]).unwrap();
        rest(client)
    });
    let answer = refusal("too-long", "the request is longer than 1048576 octets");
    assert_eq!(said, answer);
}

#[test]
fn the_longest_request_is_taken() {
    let mut daemon = Daemon::start();
    let padding = " ".repeat(MAX_REQUEST - SHOW_PORTS_LINE.len());
    let said = daemon.serve(|path| {
        let mut client = UnixStream::connect(path).unwrap();
        let line = format!("{padding}{SHOW_PORTS_LINE}");
        client.write_all(line.as_bytes()).unwrap();
        rest(client)
    });
    assert!(said.contains("20000-20999"), "{said}");
}

/// The program as a client: another process.
fn another(path: &Path) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nos-relay"));
    command
        .args(["show", "ports", "--json", "--control"])
        .arg(path);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// Serves until the other process has its answer.
fn answered(daemon: &mut Daemon, client: Child) -> String {
    let output = daemon.serve(|_| client.wait_with_output().unwrap());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn one_process_does_not_keep_others_out() {
    let mut daemon = Daemon::start();
    // Some say nothing, some read nothing of a long answer.
    let mut stalled: Vec<_> = (0..MAX_CONNECTIONS).map(|_| daemon.connect()).collect();
    daemon.turn();
    for client in &mut stalled[..8] {
        client.write_all(SHOW_PORTS_LINE.as_bytes()).unwrap();
    }
    daemon.handle_events(Duration::ZERO);
    while let Some(asked) = daemon.server.poll_request() {
        daemon
            .server
            .respond(asked.connection, &many_ports(), daemon.now);
    }
    for _ in 0..3 {
        let client = another(&daemon.path);
        assert!(answered(&mut daemon, client).contains("20000-20999"));
        // It takes what room there is again.
        stalled.push(daemon.connect());
        daemon.turn();
    }
    // To itself it is no other.
    let refused = daemon.serve(|path| query(path, &SHOW_PORTS, LONG));
    assert!(
        matches!(refused, Err(ControlError::Refused(refusal)) if refusal.code == RefusalCode::Busy)
    );
}

#[test]
fn requests_of_different_processes_take_turns() {
    let mut daemon = Daemon::start();
    let mut own: Vec<_> = (0..8).map(|_| daemon.connect()).collect();
    for client in &mut own {
        client.write_all(SHOW_PORTS_LINE.as_bytes()).unwrap();
    }
    let mut client = another(&daemon.path);
    let pid = i32::try_from(client.id()).unwrap();
    // Its connection comes behind ours: all are there when it is.
    let mut connections = 0;
    while connections < 9 {
        daemon.handle_events(LONG);
        connections = daemon.server.waiting_requests();
    }
    let asked: Vec<_> = std::iter::from_fn(|| daemon.server.poll_request()).collect();
    let position = asked
        .iter()
        .position(|asked| asked.peer.pid == pid)
        .unwrap();
    assert!(position <= 1, "it waits for {position} others");
    for asked in asked {
        daemon
            .server
            .respond(asked.connection, &ports(), daemon.now);
    }
    assert!(client.wait().unwrap().success());
}

#[test]
fn clients_that_vanish_leave_nothing() {
    let mut daemon = Daemon::start();
    for number in 0..2000_usize {
        let mut client = daemon.connect();
        let length = number % (SHOW_PORTS_LINE.len() + 1);
        client
            .write_all(&SHOW_PORTS_LINE.as_bytes()[..length])
            .unwrap();
        drop(client);
        if number % 50 == 0 {
            daemon.turn();
            daemon.server.handle_timeout(daemon.now);
        }
    }
    for _ in 0..100 {
        daemon.turn();
        daemon.server.handle_timeout(daemon.now);
    }
    assert_eq!(daemon.server.poll_at(), None);
    assert_eq!(daemon.server.poll_ended(), None);
    let response = daemon.serve(|path| query(path, &SHOW_PORTS, LONG));
    assert_eq!(response.unwrap(), ports());
}

#[test]
fn a_flood_of_connections_is_taken_a_part_at_a_time() {
    let mut daemon = Daemon::start();
    let clients: Vec<_> = (0..100).map(|_| daemon.connect()).collect();
    daemon.handle_events(Duration::ZERO);
    // There are more, and whatever else is due comes before them.
    assert_eq!(daemon.server.poll_at(), Some(daemon.now));
    daemon.server.handle_timeout(daemon.now);
    daemon.turn();
    drop(clients);
    for _ in 0..10 {
        daemon.turn();
        daemon.server.handle_timeout(daemon.now);
    }
    let response = daemon.serve(|path| query(path, &SHOW_PORTS, LONG));
    assert_eq!(response.unwrap(), ports());
}

#[test]
fn a_watcher_that_does_not_read_costs_others_nothing() {
    let mut daemon = Daemon::start();
    let mut connect = || {
        let mut client = daemon.connect();
        client
            .write_all(b"{\"version\":1,\"request\":{\"type\":\"watch\"}}\n")
            .unwrap();
        daemon.handle_events(Duration::ZERO);
        let asked = daemon.server.poll_request().unwrap();
        daemon.server.watch(asked.connection, daemon.now);
        client
    };
    let (stalled, reader) = (connect(), connect());
    let subject = Subject {
        kind: SubjectKind::Container,
        name: Some("x".repeat(64)),
    };
    let event = Event::Gone { subject };
    let mut lines = BufReader::new(reader);
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    for number in 0..20_000 {
        daemon.server.publish(number, &event, daemon.now);
        line.clear();
        lines.read_line(&mut line).unwrap();
        assert!(line.contains(&format!("\"time_ms\":{number},")), "{line}");
    }
    assert_eq!(daemon.server.watchers(), 2);
    // What it has not read was lost to it alone, and it is told so.
    let mut lines = BufReader::new(stalled);
    let mut lost = None;
    while lost.is_none() {
        line.clear();
        lines.read_line(&mut line).unwrap();
        lost = line.contains("\"lost\":").then(|| line.clone());
        daemon.handle_events(Duration::ZERO);
    }
    drop(lines);
    daemon.handle_events(LONG);
    assert_eq!(daemon.server.watchers(), 1);
}

#[test]
fn what_holds_something_stays_open_and_its_end_is_told() {
    let mut daemon = Daemon::start();
    let mut holders = Vec::new();
    for _ in 0..2 * MAX_CONNECTIONS {
        let mut client = daemon.connect();
        client.write_all(SHOW_PORTS_LINE.as_bytes()).unwrap();
        let id = daemon.request();
        assert!(daemon.server.may_hold(id));
        daemon.server.hold(id, &ports(), daemon.now);
        let mut lines = BufReader::new(client);
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        assert!(line.contains("20000-20999"));
        holders.push((id, lines));
    }
    // They are silent for ever, and take nobody's room.
    daemon.turn();
    assert_eq!(daemon.server.poll_at(), None);
    daemon
        .server
        .handle_timeout(daemon.now + 100 * REQUEST_TIMEOUT);
    let response = daemon.serve(|path| query(path, &SHOW_PORTS, LONG));
    assert_eq!(response.unwrap(), ports());
    assert_eq!(daemon.server.poll_ended(), None);
    // One asks again.
    let (first, mut lines) = holders.remove(0);
    lines
        .get_mut()
        .write_all(SHOW_PORTS_LINE.as_bytes())
        .unwrap();
    assert_eq!(daemon.request(), first);
    daemon.server.respond(first, &ports(), daemon.now);
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    assert!(line.contains("20000-20999"));
    // What it begins to say, it has to end in time.
    lines.get_mut().write_all(b"{").unwrap();
    daemon.turn();
    let deadline = daemon.now + REQUEST_TIMEOUT;
    assert_eq!(daemon.server.poll_at(), Some(deadline));
    daemon.server.handle_timeout(deadline);
    assert_eq!(daemon.server.poll_ended(), Some(first.number()));
    // The others end when they hang up, however they do.
    let (second, lines) = holders.remove(0);
    lines.get_ref().shutdown(std::net::Shutdown::Write).unwrap();
    daemon.handle_events(LONG);
    assert_eq!(daemon.server.poll_ended(), Some(second.number()));
    let mut rest: Vec<_> = holders.iter().map(|(id, _)| id.number()).collect();
    drop((lines, holders));
    daemon.handle_events(LONG);
    let mut ended: Vec<_> = std::iter::from_fn(|| daemon.server.poll_ended()).collect();
    rest.sort_unstable();
    ended.sort_unstable();
    assert_eq!(ended, rest);
}

#[test]
fn one_that_has_gone_before_it_held_anything_is_told_as_well() {
    let mut daemon = Daemon::start();
    let mut client = daemon.connect();
    client.write_all(SHOW_PORTS_LINE.as_bytes()).unwrap();
    let id = daemon.request();
    drop(client);
    daemon.turn();
    daemon.server.hold(id, &ports(), daemon.now);
    assert_eq!(daemon.server.poll_ended(), Some(id.number()));
    assert_eq!(daemon.server.poll_ended(), None);
}

#[test]
fn descriptors_that_nobody_asked_for_are_closed() {
    let mut daemon = Daemon::start();
    let file = tempfile::NamedTempFile::new().unwrap();
    // Other tests open and close theirs meanwhile.
    let descriptors = || {
        let all = fs::read_dir("/proc/self/fd").unwrap();
        let links = all.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
        links.filter(|link| link == file.path()).count()
    };
    let client = daemon.connect();
    daemon.turn();
    let many = [file.as_raw_fd(); 200];
    for _ in 0..20 {
        let slices = [IoSlice::new(b" ")];
        let rights = [ControlMessage::ScmRights(&many)];
        sendmsg::<()>(
            client.as_raw_fd(),
            &slices,
            &rights,
            MsgFlags::empty(),
            None,
        )
        .unwrap();
        daemon.turn();
    }
    // One may be that of a request, and goes with it.
    assert_eq!(descriptors(), 2);
    let slices = [IoSlice::new(SHOW_PORTS_LINE.as_bytes())];
    sendmsg::<()>(client.as_raw_fd(), &slices, &[], MsgFlags::empty(), None).unwrap();
    daemon.handle_events(Duration::ZERO);
    let asked = daemon.server.poll_request().unwrap();
    assert!(asked.descriptor.is_some());
    daemon
        .server
        .respond(asked.connection, &ports(), daemon.now);
    drop(asked);
    assert!(rest(client).contains("20000-20999"));
    assert_eq!(descriptors(), 1);
}

#[test]
fn the_socket_is_for_its_group_if_it_is_said_so() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control.sock");
    let poll = Poll::new().unwrap();
    let gid = fs::metadata(directory.path()).unwrap().gid();
    let bind = |group, mode| {
        let group = Some(group);
        Server::bind(&path, &Access { mode, group }, poll.registry(), FIRST)
    };
    let server = bind(Group::Id(gid), 0o666).unwrap();
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!(
        (metadata.gid(), metadata.permissions().mode() & 0o777),
        (gid, 0o666)
    );
    drop(server);
    let error = bind(Group::Name("no-such-group".to_owned()), 0o660).unwrap_err();
    assert!(
        matches!(&error, BindError::Group(name) if name == "no-such-group"),
        "{error}"
    );
    assert!(!path.exists());
}

#[test]
fn an_idle_client_is_dropped_at_its_deadline() {
    let mut daemon = Daemon::start();
    assert_eq!(daemon.server.poll_at(), None);
    let mut client = daemon.connect();
    client.write_all(b"{").unwrap();
    daemon.turn();
    let deadline = daemon.now + REQUEST_TIMEOUT;
    assert_eq!(daemon.server.poll_at(), Some(deadline));

    // Another octet buys no time.
    daemon.now = daemon.now + REQUEST_TIMEOUT / 2;
    client.write_all(b" ").unwrap();
    daemon.turn();
    daemon.server.handle_timeout(daemon.now);
    assert_eq!(daemon.server.poll_at(), Some(deadline));

    daemon.server.handle_timeout(deadline);
    assert_eq!(daemon.server.poll_at(), None);
    assert_eq!(rest(client), "");
}

#[test]
fn a_client_that_does_not_read_is_dropped_at_its_deadline() {
    let long = many_ports();
    let mut daemon = Daemon::start();
    let mut client = daemon.connect();
    client.write_all(SHOW_PORTS_LINE.as_bytes()).unwrap();
    let id = daemon.request();
    daemon.server.respond(id, &long, daemon.now);
    daemon.turn();
    let deadline = daemon.now + RESPONSE_TIMEOUT;
    assert_eq!(daemon.server.poll_at(), Some(deadline));
    daemon.server.handle_timeout(deadline);
    assert_eq!(daemon.server.poll_at(), None);
}

#[test]
fn too_many_clients_do_not_keep_the_others_from_being_answered() {
    let mut daemon = Daemon::start();
    let mut idle: Vec<_> = (0..MAX_CONNECTIONS).map(|_| daemon.connect()).collect();
    daemon.turn();
    let refused = daemon.serve(|path| query(path, &SHOW_PORTS, LONG));
    let ControlError::Refused(refused) = refused.unwrap_err() else {
        panic!()
    };
    let busy = Refusal::new(RefusalCode::Busy, "too many connections; try again later");
    assert_eq!(refused, busy);

    // One goes, one can come.
    drop(idle.pop());
    daemon.turn();
    let answer = daemon.serve(|path| query(path, &SHOW_PORTS, LONG));
    assert_eq!(answer.unwrap(), ports());

    // The others are dropped in time.
    daemon.server.handle_timeout(daemon.now + REQUEST_TIMEOUT);
    assert_eq!(daemon.server.poll_at(), None);
    let response = daemon.serve(|path| query(path, &SHOW_PORTS, LONG));
    assert_eq!(response.unwrap(), ports());
}

#[test]
fn a_late_response_goes_to_nobody_else() {
    let mut daemon = Daemon::start();
    let mut first = daemon.connect();
    first.write_all(SHOW_PORTS_LINE.as_bytes()).unwrap();
    let id = daemon.request();
    daemon.server.handle_timeout(daemon.now + RESPONSE_TIMEOUT);

    let mut second = daemon.connect();
    second.write_all(SHOW_PORTS_LINE.as_bytes()).unwrap();
    let other = daemon.request();
    assert_ne!(id, other);
    daemon
        .server
        .respond(id, &Response::Routes(Vec::new()), daemon.now);
    daemon.server.respond(other, &ports(), daemon.now);
    assert_eq!(rest(first), "");
    assert!(rest(second).contains("20000-20999"));
}

#[test]
fn the_socket_is_its_owners_alone_and_goes_with_the_daemon() {
    let daemon = Daemon::start();
    let mode = |path: &Path| fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&daemon.path), 0o600);
    let lock = daemon.directory.path().join("control.sock.lock");
    assert_eq!(mode(&lock), 0o600);

    drop(daemon.server);
    assert_eq!(fs::read_dir(daemon.directory.path()).unwrap().count(), 0);
}

#[test]
fn a_second_daemon_is_told_of_the_first() {
    let mut daemon = Daemon::start();
    let error = Server::bind(
        &daemon.path,
        &Access::default(),
        daemon.poll.registry(),
        Token(0),
    )
    .unwrap_err();
    assert!(matches!(error, BindError::Running(_)));
    let expected = format!(
        "{}: a nos-relay is already running there; stop it, or choose another path with --control",
        daemon.path.display()
    );
    assert_eq!(error.to_string(), expected);
    // Which is none the worse for it.
    let response = daemon.serve(|path| query(path, &SHOW_PORTS, LONG));
    assert_eq!(response.unwrap(), ports());
}

#[test]
fn a_foreign_listener_is_not_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control.sock");
    let _foreign = UnixListener::bind(&path).unwrap();
    let poll = Poll::new().unwrap();
    let error = Server::bind(&path, &Access::default(), poll.registry(), FIRST).unwrap_err();
    assert!(matches!(error, BindError::Running(_)), "{error}");
    assert!(path.exists());
}

#[test]
fn the_socket_of_a_dead_daemon_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control.sock");
    // What SIGKILL leaves behind: both files, no listener, no lock.
    drop(UnixListener::bind(&path).unwrap());
    fs::write(directory.path().join("control.sock.lock"), "").unwrap();
    assert!(matches!(
        query(&path, &SHOW_PORTS, LONG),
        Err(ControlError::NoDaemon(_))
    ));
    let poll = Poll::new().unwrap();
    let server = Server::bind(&path, &Access::default(), poll.registry(), FIRST).unwrap();
    assert!(UnixStream::connect(&path).is_ok());
    drop(server);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn what_is_not_a_socket_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("precious.txt");
    fs::write(&path, "precious").unwrap();
    let poll = Poll::new().unwrap();
    let error = Server::bind(&path, &Access::default(), poll.registry(), FIRST).unwrap_err();
    let expected = format!(
        "{}: exists and is not a socket, so it is left alone",
        path.display()
    );
    assert_eq!(error.to_string(), expected);
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}

#[test]
fn impossible_paths_are_explained() {
    let poll = Poll::new().unwrap();
    let long = format!("/tmp/{}", "x".repeat(103));
    let error =
        Server::bind(Path::new(&long), &Access::default(), poll.registry(), FIRST).unwrap_err();
    let expected = format!("{long}: has 108 octets; the path of a socket has 1 to 107");
    assert_eq!(error.to_string(), expected);

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("missing/control.sock");
    let error = Server::bind(&path, &Access::default(), poll.registry(), FIRST).unwrap_err();
    let expected = format!(
        "{}.lock: cannot be used as control socket: No such file or directory (os error 2)",
        path.display()
    );
    assert_eq!(error.to_string(), expected);
}

#[test]
fn without_a_daemon_the_client_says_how_to_start_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control.sock");
    let error = query(&path, &SHOW_PORTS, LONG).unwrap_err();
    let expected = format!(
        "{}: no nos-relay is running there; start one with `nos-relay run CONFIG`, or say with \
         --control where its socket is",
        path.display()
    );
    assert_eq!(error.to_string(), expected);
}

/// What the client makes of a daemon that answers with `answer` and closes.
fn answered_with(answer: &'static [u8]) -> ControlError {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control.sock");
    let listener = UnixListener::bind(&path).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; SHOW_PORTS_LINE.len()];
            stream.read_exact(&mut request).unwrap();
            stream.write_all(answer).unwrap();
        });
        query(&path, &SHOW_PORTS, LONG).unwrap_err()
    })
}

#[test]
fn the_client_explains_a_daemon_that_it_does_not_understand() {
    assert!(matches!(answered_with(b""), ControlError::Incomplete(_)));
    assert!(matches!(
        answered_with(b"{\"version\":1,"),
        ControlError::Incomplete(_)
    ));
    assert!(matches!(
        answered_with(b"hello\n"),
        ControlError::Malformed { .. }
    ));
    assert_eq!(
        answered_with(b"{\"version\":7,\"response\":{\"type\":\"poem\"}}\n").to_string(),
        "the daemon speaks version 7 of the control protocol, this program 1"
    );
}

#[test]
fn the_client_does_not_wait_for_ever() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control.sock");
    let _silent = UnixListener::bind(&path).unwrap();
    let error = query(&path, &SHOW_PORTS, Duration::from_millis(100)).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("{}: no answer within 0.1 s", path.display())
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is sent in whatever pieces, the daemon answers or closes, and goes on.
    #[test]
    fn any_octets_are_answered_or_refused(
        pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..8),
    ) {
        let mut daemon = Daemon::start();
        let mut client = daemon.connect();
        for piece in pieces {
            // The daemon may have closed already.
            let _ = client.write_all(&piece);
            prop_assert!(daemon.turn().is_empty());
        }
        let _ = client.shutdown(std::net::Shutdown::Write);
        daemon.turn();
        let answer = rest(client);
        prop_assert!(answer.is_empty() || answer.contains("\"bad-request\""), "{}", answer);
        prop_assert_eq!(daemon.server.poll_at(), None);
    }
}
