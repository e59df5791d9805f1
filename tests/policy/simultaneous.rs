//! Both ends open a connection at once (RFC 9293 §3.5), where one takes nothing but what belongs to a
//! flow that it has opened itself.

use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nos_relay::control::api::snapshot::Protocol;
use socket2::{Domain, Socket, Type};

use super::*;

/// One end.
struct End<'a> {
    namespace: &'a LabNamespace,
    /// What passes its interface, both ways.
    wire: Wire,
    address: SocketAddr,
}

const SYN: u8 = 2;
const SYN_ACK: u8 = 0x12;

/// What an end's kernel does not get of the other's segments.
enum Held {
    All,
    /// Answers to a SYN.
    Answers,
    Nothing,
}

impl<'a> End<'a> {
    fn new(namespace: &'a LabNamespace, interface: &str, address: SocketAddr) -> Self {
        Self {
            namespace,
            wire: Wire::open_both_ways(namespace, interface),
            address,
        }
    }

    fn hold(&self, from: &Self, held: &Held) {
        let what = match held {
            Held::All => "drop",
            Held::Answers => "tcp flags & (syn | ack) == (syn | ack) drop",
            Held::Nothing => "accept",
        };
        let rules = format!(
            "table inet hold\nflush table inet hold\ntable inet hold {{\n\
             chain input {{\ntype filter hook input priority 0;\n\
             tcp sport {} tcp dport {} {what}\n}}\n}}\n",
            from.address.port(),
            self.address.port()
        );
        nft(self.namespace, &rules);
    }

    /// Begins to connect, and does not wait.
    fn begin(&self, to: &Self) -> Socket {
        let open = || {
            let socket = Socket::new(Domain::for_address(self.address), Type::STREAM, None)?;
            socket.bind(&self.address.into())?;
            socket.set_nonblocking(true)?;
            match socket.connect(&to.address.into()) {
                Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(socket),
                other => other.map(|()| socket),
            }
        };
        self.namespace.run(open).unwrap().unwrap()
    }

    /// The frame with such a segment from this end's port, as `by` sees it.
    fn seen_by(&self, by: &Wire, flags: u8) -> Vec<u8> {
        by.await_octets(LIMIT, |frame| {
            let seen = Seen::parse(frame)?;
            let tcp = seen.transport();
            let port = u16::from_be_bytes([*tcp.first()?, *tcp.get(1)?]);
            let wanted = seen.protocol == wire::TCP
                && port == self.address.port()
                && tcp.get(13)? & SYN_ACK == flags;
            wanted.then(|| wire::with_tcp_checksum(frame))
        })
    }
}

fn established(socket: &Socket) {
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
    let limit = PollTimeout::try_from(LIMIT).unwrap();
    assert_eq!(poll(&mut fds, limit).unwrap(), 1, "it is not open in time");
    assert_eq!(socket.take_error().unwrap().map(|it| it.kind()), None);
    socket.set_nonblocking(false).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
}

/// Each end is in SYN-SENT when it gets the SYN of the other.
fn open_at_once(one: &End<'_>, other: &End<'_>) -> [Socket; 2] {
    let ends = [(one, other), (other, one)];
    for (end, from) in ends {
        end.hold(from, &Held::All);
    }
    let first = one.begin(other);
    let syn_of_one = one.seen_by(&one.wire, SYN);
    // It has come through, so that the NOS knows of it; likewise the other's.
    one.seen_by(&other.wire, SYN);
    let second = other.begin(one);
    let syn_of_other = other.seen_by(&other.wire, SYN);
    other.seen_by(&one.wire, SYN);
    for (end, from) in ends {
        end.hold(from, &Held::Answers);
    }
    // Once more, as the network may: whoever gets it answers, and repeats its own SYN no more.
    other.wire.send(&syn_of_other);
    one.seen_by(&other.wire, SYN_ACK);
    one.wire.send(&syn_of_one);
    other.seen_by(&one.wire, SYN_ACK);
    for (end, from) in ends {
        end.hold(from, &Held::Nothing);
    }
    established(&first);
    established(&second);
    for (mut from, mut to) in [(&first, &second), (&second, &first)] {
        from.write_all(b"hello").unwrap();
        let mut got = [0; 5];
        to.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"hello");
    }
    [first, second]
}

mod both_ends_open_at_once {
    use super::*;

    fn scenario(variant: Variant) {
        if !Path::new("/usr/sbin/nft").exists() {
            return skip("both_ends_open_at_once: nft is not there");
        }
        let scenario = super::scenario(variant, &[(EPHEMERAL, ESTABLISHED)]);
        let mut open = Vec::new();
        for family in FAMILIES {
            let web = End::new(scenario.web(), "eth0", family.nos_port(40_001));
            let x = End::new(
                scenario.external(),
                Topology::EXTERNAL_INTERFACE,
                family.external_port(9000),
            );
            open.push(open_at_once(&web, &x));
        }
        let flows = scenario.daemon.flows();
        assert_eq!(flows.len(), 2, "{flows:#?}");
        let opened =
            |flow: &Flow| flow.protocol == Protocol::Tcp && flow.opener == FlowOpener::Owner;
        assert!(flows.iter().all(opened), "{flows:#?}");
        let established = |flow: &Flow| flow.state == FlowState::Established;
        assert!(flows.iter().all(established), "{flows:#?}");
        assert_eq!(scenario.daemon.dropped("nos", "no-flow"), 0);
    }

    variant_tests! {
        tap_single: ("tap", "single", [true, true]),
        tap_split_plain: ("tap", "split", [false, false]),
        veth_split: ("veth", "split", [true, true]),
        veth_single_plain: ("veth", "single", [false, false]),
    }
}
