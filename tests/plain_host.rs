//! To outsiders, the NOS is a plain Linux host: the same packet gets the same answer.
//!
//! The oracle is a kernel with the NOS's addresses. Both are sent the same crafted packets, and
//! their answers are compared octet by octet but for what is chosen at random: IPv4
//! identification and IPv6 flow label, and checksums over them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

#[path = "plain_host/addresses.rs"]
mod addresses;
#[path = "plain_host/basic.rs"]
mod basic;
#[path = "plain_host/craft.rs"]
mod craft;
#[path = "plain_host/headers.rs"]
mod headers;
#[path = "plain_host/listeners.rs"]
mod listeners;
mod support;
#[path = "plain_host/sweep/mod.rs"]
mod sweep;
#[path = "plain_host/tags.rs"]
mod tags;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};

use craft::{ACK, CLOSED, SYN, Step, datagram, icmp, segment, segment_of};
use nos_relay::lab::testbed::{LabNamespace, Topology, tcp, udp};
use nos_shim::arp::{Arp, Operation};
use nos_shim::ident::MacAddr;
use nos_shim::ndp::{multicast_mac, solicited_node};
use support::daemon::{Daemon, LIMIT};
use support::lab_test;
use support::scenario::{FAMILIES, Family, Variant, config};
use support::wire::{self, ICMP, Seen, TCP, UDP, Wire};

/// A container's, with listeners for TCP and UDP that send back what they get.
const CONTAINER: u16 = 20_080;
/// A container's; nothing listens there.
const UNUSED: u16 = 20_081;
/// The NOS's own echo service.
const OWN: u16 = 7;

/// X's end of a link to somebody with the NOS's addresses.
struct Outside {
    daemon: Option<Daemon>,
    external: LabNamespace,
    interface: &'static str,
    /// Packets that everybody there answers who may answer.
    markers: &'static [Marker],
    _listeners: Vec<(tcp::EchoServer, udp::EchoServer)>,
    _topology: Topology,
    wire: Wire,
    peer: MacAddr,
}

/// Both have this MAC address, so that what they say of it is the same.
const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 0x0a]);

impl Outside {
    fn of_kernel() -> Self {
        Self::of_linux("0", MAC, &[CONTAINER, OWN], &Marker::ALL)
    }

    /// It forwards IPv6 as well, as the NOS does.
    fn of_router() -> Self {
        Self::of_linux("1", MAC, &[CONTAINER, OWN], &Marker::ALL)
    }

    /// As a container should see the NOS whose MAC address on the container's link is `mac`.
    fn of_router_inside(mac: MacAddr) -> Self {
        Self::of_linux("1", mac, &[OWN], &Marker::OF_NOS)
    }

    fn of_linux(forwarding: &str, mac: MacAddr, ports: &[u16], markers: &'static [Marker]) -> Self {
        let topology = Topology::new(&[]).unwrap();
        let host = &topology.device;
        host.set_mac(Topology::UPLINK, mac).unwrap();
        host.sysctl("net/ipv6/conf/all/forwarding", forwarding)
            .unwrap();
        host.sysctl("net/ipv6/conf/hx/disable_ipv6", "0").unwrap();
        for address in ["203.0.113.1/24", "2001:db8:1::1/64"] {
            host.add_address("hx", address.parse().unwrap()).unwrap();
        }
        // Each peer gets few errors anyhow; how many at once in all is not compared here.
        host.sysctl("net/ipv4/icmp_ratelimit", "0").unwrap();
        host.sysctl("net/ipv6/icmp/ratelimit", "0").unwrap();
        host.sysctl("net/ipv4/icmp_msgs_per_sec", "1000000")
            .unwrap();
        host.sysctl("net/ipv4/icmp_msgs_burst", "1000000").unwrap();
        let listeners = ports.iter().flat_map(|&port| listeners(host, port));
        let listeners = listeners.collect();
        let at = (topology.external.clone(), Topology::EXTERNAL_INTERFACE);
        Self::new(None, listeners, topology, at, markers)
    }

    /// The NOS as a container sees it, which has other addresses than the one that it asks.
    fn of_nos_inside(addresses: &[IpAddr]) -> Self {
        let topology = Topology::new(&["web"]).unwrap();
        let lengths = addresses
            .iter()
            .map(|address| if address.is_ipv4() { 24 } else { 64 });
        let networks = addresses.iter().zip(lengths);
        let networks: String = networks
            .map(|(address, length)| format!("\"{address}/{length}\", "))
            .collect();
        let addresses: String = addresses
            .iter()
            .map(|address| format!("\"{address}\", "))
            .collect();
        let config = format!(
            r#"
[[uplink]]
name = "up0"
device = "packet:hx"
addresses = ["203.0.113.1/24", "2001:db8:1::1/64", {networks}]

[[container]]
name = "web"
netns = "{}"
device = "veth"
offload = false
mac = "{}"
addresses = [{addresses}]
tcp = ["20000-20999"]
udp = ["20000-20999"]
ephemeral = "50000-50010"

[nos]
services = ["echo"]
"#,
            topology.containers[0].path().display(),
            Topology::external_mac(),
        );
        let daemon = Daemon::start(&topology.device, &config);
        let at = (topology.containers[0].clone(), "eth0");
        Self::new(Some(daemon), Vec::new(), topology, at, &Marker::OF_NOS)
    }

    fn of_nos() -> Self {
        let topology = Topology::new(&["web", "db"]).unwrap();
        topology.device.set_mac(Topology::UPLINK, MAC).unwrap();
        // The checksums of what leaves are looked at.
        let variant = Variant {
            offload: [true, false],
            ..Variant::PLAIN
        };
        let config = config(&topology, variant) + "[nos]\nservices = [\"echo\"]\n";
        let daemon = Daemon::start(&topology.device, &config);
        let listeners = listeners(&topology.containers[0], CONTAINER);
        let at = (topology.external.clone(), Topology::EXTERNAL_INTERFACE);
        let this = Self::new(
            Some(daemon),
            listeners.collect(),
            topology,
            at,
            &Marker::ALL,
        );
        assert_eq!(this.peer, MAC);
        this
    }

    fn new(
        daemon: Option<Daemon>,
        listeners: Vec<(tcp::EchoServer, udp::EchoServer)>,
        topology: Topology,
        (external, interface): (LabNamespace, &'static str),
        markers: &'static [Marker],
    ) -> Self {
        let wire = Wire::open(&external, interface);
        let mut this = Self {
            daemon,
            external,
            interface,
            markers,
            _listeners: listeners,
            _topology: topology,
            wire,
            peer: MacAddr::ZERO,
        };
        for family in FAMILIES {
            nos_relay::lab::testbed::ping::ping(&this.external, family.nos, 1, LIMIT).unwrap();
        }
        let reply = this
            .wire
            .seen()
            .into_iter()
            .find(|seen| seen.source == FAMILIES[0].nos);
        this.peer = reply.expect("an echo reply").source_mac;
        // X's kernel asks for nothing whose answer could be taken for another.
        let link_local = IpAddr::V6(this.peer.link_local());
        for address in FAMILIES
            .map(|family| family.nos)
            .into_iter()
            .chain([link_local])
        {
            let added = this.external.add_neighbor(interface, address, this.peer);
            added.unwrap();
        }
        this
    }

    /// What comes back when `frame` is sent by `source`, or on behalf of anybody.
    fn answers(&self, family: Family, source: IpAddr, frame: &[u8]) -> Vec<Seen> {
        // First of all, everybody there resolves our address: later they answer at once.
        self.await_markers(family, source);
        self.wire.send(frame);
        // Each of them answers in order, so then we know that there is no more.
        self.await_markers(family, source)
    }

    /// Sends something to everybody who may answer, and returns what comes before their answers.
    fn await_markers(&self, family: Family, source: IpAddr) -> Vec<Seen> {
        let mut markers = self.markers.to_vec();
        for marker in &markers {
            self.wire.send(&marker.frame(self.step(family, source)));
        }
        let mut before = Vec::new();
        self.wire.await_frame(LIMIT, |seen| {
            let answered = markers.iter().position(|marker| marker.is_answer(seen));
            if let Some(answered) = answered {
                markers.remove(answered);
            } else if !seen.is_chatter() {
                before.push(seen.clone());
            }
            markers.is_empty().then_some(())
        });
        before
    }

    fn step(&self, family: Family, source: IpAddr) -> Step {
        wire::ip((self.wire.mac(), self.peer), source, family.nos)
    }

    fn echo(&self, family: Family, source: IpAddr, number: u16, mut before: impl FnMut(&Seen)) {
        let mut frame = Vec::new();
        let step = self.step(family, source);
        let written = if family.is_v6() {
            step.icmpv6_echo_request(0xffff, number)
                .write(&mut frame, b"marker")
        } else {
            step.icmpv4_echo_request(0xffff, number)
                .write(&mut frame, b"marker")
        };
        written.unwrap();
        self.wire.send(&frame);
        self.wire.await_frame(LIMIT, |seen| {
            if seen.destination != source || seen.is_chatter() {
                return None;
            }
            if Marker::Echo.is_answer(seen) {
                return Some(());
            }
            before(seen);
            None
        });
    }
}

/// A packet whose answer tells that all packets before it were answered.
#[derive(Clone, Copy)]
enum Marker {
    /// Answered by the NOS.
    Echo,
    /// Answered by the container's kernel.
    Reset,
    /// Answered by whoever listens on that port.
    Datagram(u16),
}

impl Marker {
    const ALL: [Self; 4] = [
        Self::Echo,
        Self::Reset,
        Self::Datagram(CONTAINER),
        Self::Datagram(OWN),
    ];
    const OF_NOS: [Self; 2] = [Self::Echo, Self::Datagram(OWN)];
    /// No other packet comes from here.
    const PORT: u16 = 50_001;

    fn frame(self, step: Step) -> Vec<u8> {
        match self {
            Self::Echo => icmp(step, 8, 128, b"\xff\xff\x00\x02marker"),
            Self::Reset => segment_of(step, (Self::PORT, UNUSED), ACK, b""),
            Self::Datagram(port) => wire::udp(step, (Self::PORT, port), b"marker"),
        }
    }

    fn is_answer(self, seen: &Seen) -> bool {
        let from = |port| seen.ports() == Some((port, Self::PORT));
        match self {
            Self::Echo => {
                seen.transport().ends_with(b"marker") && matches!(seen.icmp(), Some((0 | 129, 0)))
            }
            Self::Reset => seen.protocol == TCP && from(UNUSED),
            Self::Datagram(port) => seen.protocol == UDP && from(port),
        }
    }
}

/// For both families.
fn listeners(
    namespace: &LabNamespace,
    port: u16,
) -> impl Iterator<Item = (tcp::EchoServer, udp::EchoServer)> {
    FAMILIES.into_iter().map(move |family| {
        let at = family.nos_port(port);
        let tcp = tcp::EchoServer::start(namespace, at).unwrap();
        (tcp, udp::EchoServer::start(namespace, at).unwrap())
    })
}

/// Whether the transport checksum holds.
fn checksum_holds(seen: &Seen) -> bool {
    let length = u32::try_from(seen.transport().len()).unwrap();
    let pseudo = match seen.source {
        IpAddr::V4(_) if seen.protocol == ICMP => Vec::new(),
        IpAddr::V4(_) => seen.ip[12..20].to_vec(),
        IpAddr::V6(_) => seen.ip[8..40].to_vec(),
    };
    let trailer = if pseudo.is_empty() {
        Vec::new()
    } else {
        [&length.to_be_bytes()[..], &[0, 0, 0, seen.protocol]].concat()
    };
    wire::sum(&[&pseudo, &trailer, seen.transport()].concat()) == 0xffff
}

/// Sets to zero what is random by design.
fn normal(mut seen: Seen) -> Seen {
    seen.source_mac = MacAddr::ZERO;
    let at = seen.ip.len() - seen.transport().len();
    if seen.protocol == TCP && seen.transport()[13] & (SYN | ACK) == SYN | ACK {
        // The sequence number is random; window and options are each stack's own choice.
        seen.ip.truncate(at + 20);
        for range in [4..8, 12..13, 14..16] {
            seen.ip[at + range.start..at + range.end].fill(0);
        }
        seen.ip[if seen.source.is_ipv4() { 2..4 } else { 4..6 }].fill(0);
    }
    if seen.icmp() == Some((14, 0)) {
        // Times, and the checksum over them.
        seen.ip[at + 12..at + 20].fill(0);
        seen.ip[at + 2..at + 4].fill(0);
    }
    if forget_times(&mut seen.ip[..at]) {
        let quoted = matches!(seen.icmp(), Some((3, _)));
        if quoted && forget_times(&mut seen.ip[at + 8..]) {
            seen.ip[at + 2..at + 4].fill(0);
        }
    }
    // The kernel leaves them to the veth to sum up, which does not.
    match seen.protocol {
        TCP => seen.ip[at + 16..at + 18].fill(0),
        UDP => seen.ip[at + 6..at + 8].fill(0),
        _ => {}
    }
    match seen.source {
        IpAddr::V4(_) => {
            // With DF the identification means nothing (RFC 6864); both are compared without.
            seen.ip[4..6].fill(0);
            seen.ip[10..12].fill(0);
        }
        IpAddr::V6(_) => {
            seen.ip[1] &= 0xf0;
            seen.ip[2..4].fill(0);
        }
    }
    seen
}

/// Sets to zero the times of the timestamp option in an IPv4 header; returns whether there was one.
fn forget_times(ip: &mut [u8]) -> bool {
    let end = if ip[0] >> 4 == 4 {
        usize::from(ip[0] & 0xf) * 4
    } else {
        0
    };
    let mut at = 20;
    while at + 4 <= end {
        let length = usize::from(ip[at + 1]);
        match ip[at] {
            0 => break,
            1 => at += 1,
            68 => {
                let with_addresses = ip[at + 3] & 0xf != 0;
                for (number, word) in ip[at + 4..at + length].chunks_mut(4).enumerate() {
                    if !with_addresses || number % 2 == 1 {
                        word.fill(0);
                    }
                }
                return true;
            }
            _ => at += length.max(2),
        }
    }
    false
}

/// What the NOS does when it does not do the same as Linux.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answered {
    Alike,
    Not,
    WithoutOptions,
}

struct Case {
    name: String,
    /// What to send, given its beginning.
    craft: Box<dyn Fn(Step) -> Vec<u8>>,
    /// Whether Linux answers, as `[IPv4, IPv6]`; `None` where the family has no such thing.
    answered: [Option<bool>; 2],
    /// What the NOS makes of it, compared with Linux.
    by_nos: Answered,
}

const BOTH: [Option<bool>; 2] = [Some(true); 2];
const SILENCE: [Option<bool>; 2] = [Some(false); 2];

#[derive(Default)]
struct Cases(Vec<Case>);

impl Cases {
    /// A packet that the NOS answers as Linux does.
    fn add(
        &mut self,
        name: impl Into<String>,
        craft: impl Fn(Step) -> Vec<u8> + 'static,
        answered: [Option<bool>; 2],
    ) {
        self.0.push(Case {
            name: name.into(),
            craft: Box::new(craft),
            answered,
            by_nos: Answered::Alike,
        });
    }

    /// The last packet is treated in another way than by Linux. Why, says a comment.
    fn but(&mut self, by_nos: Answered) {
        if let Some(case) = self.0.last_mut() {
            case.by_nos = by_nos;
        }
    }
}

/// Each packet comes from an address of its own, so that limits to one peer do not count.
fn peer(family: Family, number: usize) -> IpAddr {
    let last = u8::try_from(number + 50).unwrap();
    assert!(last < 255, "more cases than addresses");
    if family.is_v6() {
        Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 1, u16::from(last)).into()
    } else {
        Ipv4Addr::new(203, 0, 113, last).into()
    }
}

fn give_addresses(outside: &Outside, count: usize) {
    for number in 0..count {
        for (family, length) in FAMILIES.into_iter().zip([24, 64]) {
            let address = ipnet::IpNet::new(peer(family, number), length).unwrap();
            outside
                .external
                .add_address(outside.interface, address)
                .unwrap();
        }
    }
}

/// One comparison at a time: a kernel has room for 1,024 neighbors of all namespaces together, and each
/// packet comes from another.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sends all packets to both, and compares.
fn compare(Cases(cases): Cases) {
    let _turn = turn();
    let outsides = [Outside::of_kernel(), Outside::of_nos()];
    for outside in &outsides {
        give_addresses(outside, cases.len());
    }
    let mut wrong = Vec::new();
    for (number, case) in cases.iter().enumerate() {
        for (family, answered) in FAMILIES.into_iter().zip(case.answered) {
            let Some(answered) = answered else { continue };
            let source = peer(family, number);
            let [kernel, nos] = [0, 1].map(|which: usize| {
                let outside = &outsides[which];
                let frame = (case.craft)(outside.step(family, source));
                let answers = outside.answers(family, source, &frame);
                let of_kernel = outside.daemon.is_none();
                let sound = |seen| of_kernel || checksum_holds(seen);
                assert!(answers.iter().all(sound), "{answers:?}");
                answers.into_iter().map(normal).collect::<Vec<_>>()
            });
            // That the oracle was asked what we meant to ask.
            let as_expected = kernel.is_empty() != answered;
            let wanted = match case.by_nos {
                Answered::Alike => kernel.clone(),
                Answered::Not => Vec::new(),
                Answered::WithoutOptions => kernel.iter().map(Seen::without_options).collect(),
            };
            if nos != wanted || !as_expected {
                wrong.push(format!(
                    "{} from {source}: {answered} expected\nLinux {}\nNOS   {}",
                    case.name,
                    show(&kernel),
                    show(&nos)
                ));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} answers differ:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

lab_test! {
    fn nos_answers_as_a_linux_host_does() {
        compare(basic::cases());
    }
}

lab_test! {
    fn groups_and_odd_addresses_are_answered_as_by_a_linux_host() {
        compare(addresses::cases());
    }
}

lab_test! {
    fn ip_headers_are_treated_as_by_a_linux_host() {
        compare(headers::cases());
    }
}

lab_test! {
    fn extension_headers_are_treated_as_by_a_linux_host() {
        compare(headers::extension_cases());
    }
}

lab_test! {
    fn icmp_of_every_kind_is_treated_as_by_a_linux_host() {
        compare(headers::icmp_cases());
    }
}

lab_test! {
    fn listeners_answer_as_those_of_a_linux_host() {
        compare(listeners::cases());
    }
}

lab_test! {
    fn tagged_frames_are_treated_as_by_a_linux_host() {
        compare(tags::cases());
    }
}

/// Who has the address of the NOS, in a frame to everybody, or to its solicited-node group.
fn who_has(outside: &Outside, family: Family) -> Vec<u8> {
    let mac = outside.wire.mac();
    match (family.external, family.nos) {
        (IpAddr::V4(external), IpAddr::V4(nos)) => [
            &[0xff; 6][..],
            &mac.0,
            &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
            &mac.0,
            &external.octets(),
            &[0; 6],
            &nos.octets(),
        ]
        .concat(),
        (IpAddr::V6(external), IpAddr::V6(nos)) => {
            let group = solicited_node(nos);
            let macs = (mac, multicast_mac(group));
            let step = wire::with_ttl(macs, external.into(), group.into(), 255);
            let body = [&[0; 4][..], &nos.octets(), &[1, 1], &mac.0].concat();
            icmp(step, 0, 135, &body)
        }
        _ => unreachable!("two families"),
    }
}

/// Whether `frame` answers that question.
fn tells_who_has(frame: &[u8]) -> bool {
    let ndp = |seen: &Seen| seen.protocol == wire::ICMPV6 && seen.icmp() == Some((136, 0));
    Arp::parse(frame).is_ok_and(|arp| arp.operation == Operation::Reply)
        || Seen::parse(frame).is_some_and(|seen| ndp(&seen))
}

lab_test! {
    fn tagged_questions_for_the_mac_address_are_answered_as_by_a_linux_host() {
        for outside in [Outside::of_kernel(), Outside::of_nos()] {
            for family in FAMILIES {
                let question = who_has(&outside, family);
                let tags: [(&[_], bool); 4] = [
                    (&[(0x8100, 0xe000)], true),
                    (&[(0x88a8, 0), (0x8100, 0)], true),
                    (&[(0x8100, 9)], false),
                    (&[(0x8100, 0), (0x8100, 9)], false),
                ];
                for (tags, answered) in tags {
                    outside.wire.drain();
                    outside.wire.send(&tags::tagged(&question, tags));
                    // Answered in order, so that this comes behind what was asked before.
                    let marker = icmp(outside.step(family, family.external), 8, 128, b"\xff\xff\x00\x04marker");
                    outside.wire.send(&marker);
                    let mut told = 0;
                    outside.wire.await_octets(LIMIT, |frame| {
                        told += usize::from(tells_who_has(frame));
                        Seen::parse(frame).is_some_and(|seen| Marker::Echo.is_answer(&seen)).then_some(())
                    });
                    let who = if outside.daemon.is_some() { "the NOS" } else { "Linux" };
                    assert_eq!(told, usize::from(answered), "{who}, {tags:x?}, {}", family.nos);
                }
            }
        }
    }
}

fn show(answers: &[Seen]) -> String {
    let hex = |octets: &[u8]| {
        octets
            .iter()
            .map(|octet| format!("{octet:02x}"))
            .collect::<String>()
    };
    let lines: Vec<_> = answers.iter().map(|seen| hex(&seen.ip)).collect();
    if lines.is_empty() {
        "is silent".to_owned()
    } else {
        lines.join(" and ")
    }
}

lab_test! {
    fn refused_datagram_in_fragments_is_quoted_whole() {
        let [kernel, nos] = [Outside::of_kernel(), Outside::of_nos()].map(|outside| {
            let answers = FAMILIES.map(|family| {
                let to = family.nos_port(CLOSED);
                let send = || {
                    let socket = std::net::UdpSocket::bind((family.external, 50_000)).unwrap();
                    socket.send_to(&[3; 3000], to).unwrap();
                };
                outside.external.run(send).unwrap();
                outside.wire.await_frame(LIMIT, |seen| {
                    let error = matches!(seen.icmp(), Some((3, 3) | (1, 4)));
                    error.then(|| normal(seen.clone()))
                })
            });
            answers.map(|mut answer| {
                // Of the quoted packet, the kernel of X chose identification or flow label.
                let quote = answer.ip.len() - answer.transport().len() + 8;
                if answer.source.is_ipv4() {
                    answer.ip[quote + 4..quote + 6].fill(0);
                    answer.ip[quote + 10..quote + 12].fill(0);
                } else {
                    answer.ip[quote + 1] = 0;
                    answer.ip[quote + 2..quote + 4].fill(0);
                    // The fragment header, if it is quoted.
                    answer.ip[quote + 44..quote + 48].fill(0);
                }
                let checksum = quote - 6;
                answer.ip[checksum..checksum + 2].fill(0);
                answer
            })
        });
        for (kernel, nos) in kernel.into_iter().zip(nos) {
            assert_eq!(kernel, nos, "\nLinux {}\nNOS   {}", show(std::slice::from_ref(&kernel)), show(std::slice::from_ref(&nos)));
        }
    }
}

lab_test! {
    fn errors_are_limited_resets_and_echo_replies_are_not() {
        let outside = Outside::of_nos();
        for family in FAMILIES {
            let source = family.external;
            let step = || wire::ip((outside.wire.mac(), outside.peer), source, family.nos);
            for _ in 0..20 {
                outside.wire.send(&datagram(step(), b"flood"));
                outside.wire.send(&segment(step(), 0x02, b""));
                outside.wire.send(&icmp(step(), 8, 128, b"\x12\x34\x00\x01flood"));
            }
            let mut answers = Vec::new();
            outside.echo(family, source, 3, |seen| answers.push(seen.clone()));
            let count = |what: fn(&Seen) -> bool| answers.iter().filter(|seen| what(seen)).count();
            assert_eq!(count(|seen| seen.protocol == TCP), 20);
            assert_eq!(count(|seen| matches!(seen.icmp(), Some((0 | 129, 0)))), 20);
            // Six at once, and more only as time passes.
            let errors = count(|seen| matches!(seen.icmp(), Some((3, 3) | (1, 4))));
            assert!((6..20).contains(&errors), "{errors} errors");
            assert_eq!(count(|seen| seen.protocol == UDP), 0);
        }
    }
}
