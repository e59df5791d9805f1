//! The relay inside of another program: the example as it stands, and the library.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends where what it needs is not there"
)]

mod support;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use ipnet::IpNet;
use nos_relay::Relay;
use nos_relay::control::api::{Event, RefusalCode, SubjectKind, Table, Watched};
use nos_relay::embed::{
    Builder, Container, ControlError, Device, Interface, Keys, Netns, NosPort, RelayError, Request,
    Response,
};
use nos_relay::lab::testbed::{LabNamespace, Topology, tcp};
use nos_shim::channel::{Answer, ConfigurationRefused, NosInterface, ToNos, ToRelay};
use nos_shim::ident::{LocalAddressId, VrfId};
use nos_shim::packet::Packet;
use nos_shim::ports::PortTable;
use support::daemon::{LIMIT, await_that};
use support::{lab_test, skip};

const OWN: &str = "203.0.113.1";
const FAR: &str = "198.51.100.7:53";

fn interface() -> Interface {
    let net = |text: &str| text.parse::<IpNet>().unwrap();
    Interface::new("up0", &[net("203.0.113.1/24"), net("2001:db8:1::1/64")])
}

fn container(name: &str, lab: &LabNamespace) -> Container {
    Container::new(name, Netns::Path(lab.path())).ephemeral("40000-40099")
}

/// A NOS on a thread of its own: it grants what a port table grants, and shows the test the packets of
/// containers.
struct Nos {
    thread: JoinHandle<NosPort>,
    /// Interfaces that it has from then on. It stops when this is dropped.
    has: Sender<Vec<NosInterface>>,
    packets: Receiver<(IpAddr, u16)>,
}

impl Nos {
    fn start(mut port: NosPort, addresses: &[&str]) -> Self {
        let mut ports = PortTable::new();
        let _: Vec<LocalAddressId> = addresses
            .iter()
            .map(|address| ports.add_address(VrfId::DEFAULT, address.parse().unwrap()))
            .collect();
        let (has, changes) = channel::<Vec<NosInterface>>();
        let (shown, packets) = channel();
        let thread = std::thread::spawn(move || {
            while !port.channel().is_deserted() {
                match changes.try_recv() {
                    Ok(interfaces) => {
                        let addresses = interfaces.iter().flat_map(|it| &it.addresses);
                        for address in addresses {
                            ports.add_address(VrfId::DEFAULT, address.addr());
                        }
                        let told = ToRelay::Interfaces(interfaces);
                        port.channel().send_control(told).unwrap();
                    }
                    Err(TryRecvError::Empty) => {}
                    Err(TryRecvError::Disconnected) => break,
                }
                while let Some(message) = port.channel().recv_control() {
                    let answer = answer(message, &mut ports);
                    port.channel().send_control(answer).unwrap();
                }
                while let Some(mut burst) = port.channel().recv_burst() {
                    for packet in burst.drain(..) {
                        let _ = shown.send(seen(&packet));
                    }
                    port.channel().recycle(burst);
                }
                port.channel().ring();
                std::thread::yield_now();
            }
            port
        });
        Self {
            thread,
            has,
            packets,
        }
    }

    fn stop(self) -> NosPort {
        drop(self.has);
        self.thread.join().unwrap()
    }
}

fn seen(packet: &Packet) -> (IpAddr, u16) {
    (
        packet.source(),
        packet.ports().map_or(0, |ports| ports.source),
    )
}

fn answer(message: ToNos, ports: &mut PortTable) -> ToRelay {
    match message {
        ToNos::Exchange(id, wanted) => {
            match ports.exchange(&wanted.withdraw, &wanted.register, None) {
                Ok(()) => ToRelay::Accepted(id),
                Err(refused) => ToRelay::Refused(id, refused),
            }
        }
        ToNos::Configure(id, _) => ToRelay::Configured(id, Err(ConfigurationRefused::Unsupported)),
        ToNos::Query(id, _) => ToRelay::Answer(id, Answer::Unsupported),
    }
}

/// Starts a relay in `host`.
fn start(host: &LabNamespace, builder: &Builder) -> Result<(Relay, NosPort), RelayError> {
    host.run(|| builder.start()).unwrap()
}

/// A datagram of a container, as its NOS sees it.
fn assert_sends(lab: &LabNamespace, nos: &Nos, port: u16) {
    let from: SocketAddr = format!("{OWN}:{port}").parse().unwrap();
    let socket = lab.run(|| UdpSocket::bind(from).unwrap()).unwrap();
    socket.send_to(b"abc", FAR).unwrap();
    let expected = (from.ip(), port);
    await_that("the NOS gets the datagram", || {
        let got = nos.packets.recv_timeout(LIMIT).unwrap();
        (got == expected).then_some(()).ok_or(format!("{got:?}"))
    });
}

lab_test! {
    fn the_example_forwards_real_traffic() {
        let topology = Topology::new(&["web"]).unwrap();
        let web = &topology.containers[0];
        let test = std::env::current_exe().unwrap();
        let example = test.parent().and_then(|deps| deps.parent()).unwrap().join("examples/embed");
        if !example.exists() {
            return skip("the_example_forwards_real_traffic: the example is not beside the test");
        }
        let mut command = Command::new(example);
        command
            .args([Topology::UPLINK, "203.0.113.1/24"])
            .arg(web.path())
            .arg("20000-20099")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = topology.device.spawn(command).unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");

        // In, out, and more than one segment.
        let near = SocketAddr::new(Topology::DEVICE_V4.into(), 20_000);
        let far = SocketAddr::new(Topology::EXTERNAL_V4.into(), 5000);
        let payload: Vec<u8> = (0..60_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let inside = tcp::EchoServer::start(web, near).unwrap();
        tcp::exchange(&topology.external, None, near, &payload, LIMIT).unwrap();
        let _outside = tcp::EchoServer::start(&topology.external, far).unwrap();
        let from = tcp::exchange(web, None, far, &payload, LIMIT).unwrap();
        assert_eq!(from.ip(), near.ip());
        assert!((40_000..45_000).contains(&from.port()), "{from}");
        drop(inside);

        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
        assert!(web.link("eth0").unwrap().is_none(), "nothing is left");
    }
}

lab_test! {
    fn several_relays_run_in_one_process() {
        let labs = ["a", "b"].map(|name| Topology::new(&[name]).unwrap());
        let running: Vec<_> = labs
            .iter()
            .zip([Device::Tap, Device::Veth])
            .map(|(lab, device)| {
                let web = container("web", &lab.containers[0]).device(device).tcp("80");
                let builder = Relay::builder().interface(interface()).container(web);
                let (relay, port) = start(&lab.device, &builder).unwrap();
                let nos = Nos::start(port, &[OWN, "2001:db8:1::1"]);
                relay.await_ready(LIMIT).unwrap();
                (relay, nos)
            })
            .collect();
        for (lab, (relay, nos)) in labs.iter().zip(&running) {
            assert_sends(&lab.containers[0], nos, 40_000);
            let shown = relay.request(&Request::Show { table: Table::Attachments }, LIMIT).unwrap();
            let Response::Attachments(shown) = shown else { panic!("{shown:?}") };
            assert_eq!(shown.len(), 1);
            // This NOS does not tell.
            let table = Table::Ports;
            let shown = relay.request(&Request::Show { table }, LIMIT).unwrap();
            assert_eq!(shown, Response::Ports(Vec::new()));
        }
        for (lab, (relay, nos)) in labs.iter().zip(running) {
            relay.stop().unwrap();
            assert!(lab.containers[0].link("eth0").unwrap().is_none());
            assert!(nos.stop().channel().is_deserted());
            let gone = relay.request(&Request::Show { table: Table::Ports }, LIMIT);
            assert!(matches!(gone, Err(ControlError::Io { .. })), "{gone:?}");
            assert!(relay.join_nos().is_err());
        }
    }
}

lab_test! {
    fn what_is_asked_at_run_time_is_granted_or_refused_by_the_nos() {
        let lab = Topology::new(&["web", "db"]).unwrap();
        let [web, db] = &lab.containers[..] else { unreachable!() };
        let builder = Relay::builder()
            .interface(interface())
            .container(container("web", web).tcp("80"));
        let (relay, port) = start(&lab.device, &builder).unwrap();
        let nos = Nos::start(port, &[OWN, "2001:db8:1::1"]);
        relay.await_ready(LIMIT).unwrap();
        let attach = |ports: &str| {
            let db = Container::new("db", Netns::Path(db.path())).tcp(ports);
            relay.attach(&db.ephemeral("41000-41099"), LIMIT)
        };
        let refused = attach("80");
        let Err(ControlError::Refused(refusal)) = refused else { panic!("{refused:?}") };
        assert_eq!(refusal.code, RefusalCode::Conflict, "{}", refusal.message);
        assert!(refusal.message.contains("web"), "{refusal:?}");
        assert!(db.link("eth0").unwrap().is_none());
        let granted = attach("81").unwrap();
        assert!(matches!(&granted, Response::Changed(applied) if applied.changed), "{granted:?}");
        assert_sends(db, &nos, 41_000);

        // Another configuration leaves alone what does not differ.
        let index = || web.link("eth0").unwrap().unwrap().index;
        let before = index();
        let other = Relay::builder()
            .interface(interface())
            .container(container("web", web).tcp("82"));
        relay.reconfigure(&other).unwrap();
        await_that("the ports have changed", || {
            let asked = Request::PortsAdd(Keys::default().with("container", "db").with("tcp", "80"));
            relay.request(&asked, LIMIT).map(drop).map_err(|error| error.to_string())
        });
        assert_eq!(index(), before);
        relay.detach("db", LIMIT).unwrap();
        assert!(db.link("eth0").unwrap().is_none());
        relay.stop().unwrap();
    }
}

lab_test! {
    fn a_nos_that_starts_anew_is_told_every_registration() {
        let lab = Topology::new(&["web", "db"]).unwrap();
        let [web, db] = &lab.containers[..] else { unreachable!() };
        let second = Container::new("db", Netns::Path(db.path()));
        let builder = Relay::builder()
            .interface(interface())
            .container(container("web", web).tcp("80"))
            .container(second.device(Device::Veth).ephemeral("41000-41099"));
        let (relay, port) = start(&lab.device, &builder).unwrap();
        let mut nos = Nos::start(port, &[OWN, "2001:db8:1::1"]);
        relay.await_ready(LIMIT).unwrap();
        for ended in [true, false] {
            assert_sends(web, &nos, 40_000);
            let before = match ended {
                true => {
                    drop(nos.stop());
                    None
                }
                false => Some(nos),
            };
            nos = Nos::start(relay.join_nos().unwrap(), &[OWN, "2001:db8:1::1"]);
            // It has every registration once another that clashes is refused for its owner.
            await_that("it has the registrations", || {
                let asked = Request::PortsAdd(Keys::default().with("container", "db").with("tcp", "80"));
                match relay.request(&asked, LIMIT) {
                    Err(ControlError::Refused(refusal)) if refusal.message.contains("web") => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            });
            if let Some(before) = before {
                assert!(before.stop().channel().is_deserted(), "it is cut off");
            }
            await_that("packets pass", || {
                let from: SocketAddr = format!("{OWN}:41000").parse().unwrap();
                let socket = db.run(|| UdpSocket::bind(from).unwrap()).unwrap();
                socket.send_to(b"abc", FAR).unwrap();
                let got = nos.packets.recv_timeout(Duration::from_millis(100));
                got.map(drop).map_err(|error| error.to_string())
            });
        }
        relay.stop().unwrap();
    }
}

lab_test! {
    fn it_runs_on_a_thread_of_the_callers_and_catches_no_signal() {
        let signals = || {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let lines = status.lines().filter(|line| line.starts_with("Sig") && !line.contains("SigQ"));
            lines.map(str::to_owned).collect::<BTreeSet<_>>()
        };
        let lab = Topology::new(&["web"]).unwrap();
        let before = signals();
        let builder = Relay::builder()
            .interface(interface())
            .container(container("web", &lab.containers[0]));
        let prepared = lab.device.run(|| builder.prepare()).unwrap();
        let (runner, relay, port) = prepared.unwrap();
        let nos = Nos::start(port, &[OWN, "2001:db8:1::1"]);
        let thread = std::thread::spawn(|| runner.run());
        relay.await_ready(LIMIT).unwrap();
        assert_eq!(signals(), before);
        assert_sends(&lab.containers[0], &nos, 40_000);
        relay.stop().unwrap();
        thread.join().unwrap().unwrap();
        assert!(lab.containers[0].link("eth0").unwrap().is_none());
    }
}

lab_test! {
    fn one_that_is_prepared_and_never_runs_ends() {
        let lab = Topology::new(&[]).unwrap();
        let builder = Relay::builder().interface(interface());
        let prepared = lab.device.run(|| builder.prepare()).unwrap();
        let (runner, relay, mut port) = prepared.unwrap();
        assert!(!port.channel().is_deserted());
        drop(runner);
        assert!(port.channel().is_deserted(), "its data thread has ended");
        assert!(matches!(relay.await_ready(LIMIT), Err(RelayError::Ended)));
    }
}

lab_test! {
    fn a_text_says_what_values_do_not() {
        let lab = Topology::new(&["web"]).unwrap();
        let text = "[relay]\nbuffers = 512\n\n[[uplink]]\nname = \"up0\"\ndevice = \"nos\"\n\
                    addresses = [\"203.0.113.1/24\"]\n";
        let builder = Relay::builder()
            .config("[[uplink]]")
            .config(text)
            .container(container("web", &lab.containers[0]));
        let (relay, port) = start(&lab.device, &builder).unwrap();
        let nos = Nos::start(port, &[OWN]);
        relay.await_ready(LIMIT).unwrap();
        assert_sends(&lab.containers[0], &nos, 40_000);
        relay.stop().unwrap();
        for (text, said) in [("[relay]\nring = 1\n", "embedded:2"), ("x", "embedded:1")] {
            let error = match start(&lab.device, &builder.clone().config(text)) {
                Err(error) => error.to_string(),
                Ok(_) => panic!("{text}: it started"),
            };
            assert!(error.contains(said), "{error} does not say {said}");
        }
    }
}

lab_test! {
    fn what_is_wrong_is_said_before_anything_is_in_place() {
        let lab = Topology::new(&["web"]).unwrap();
        let web = || container("web", &lab.containers[0]);
        let base = || Relay::builder().interface(interface());
        let of = |name: &str| Container::new(name, Netns::Path("/run/netns/x".into()));
        let cases = [
            (Relay::builder(), "there is none; the NOS needs an [[uplink]]"),
            (base().interface(interface()), "name \"up0\" is already on line"),
            (base().container(web()).container(web()), "name \"web\" is already on line"),
            (base().container(of("a b")), "contains ' '"),
            (base().container(web().tcp("80-70")), "tcp"),
            (base().container(web().tcp("80").tcp("80")), "overlaps"),
            (base().container(web().addresses(&["192.0.2.1".parse().unwrap()])), "192.0.2.1"),
            (base().container(web().vrf("red")), "no uplink is in VRF \"red\""),
            (base().container(web().interface("a/b")), "interface"),
            (base().container(Container::new("c", Netns::Pid(0))), "pid"),
            (base().container(Container::new("c", Netns::Path("relative".into()))), "netns"),
            (base().buffers(1), "buffers"),
            (base().ring(0), "ring"),
            (base().control(""), "has 0 octets"),
        ];
        for (builder, said) in cases {
            let error = match start(&lab.device, &builder) {
                Err(error) => error.to_string(),
                Ok(_) => panic!("{said}: it started"),
            };
            assert!(error.contains(said), "{error} does not say {said}");
        }
        assert!(lab.containers[0].link("eth0").unwrap().is_none());

        // Strictly, one that cannot be attached ends it.
        let (relay, port) = start(&lab.device, &base().container(of("web")).strict()).unwrap();
        let _nos = Nos::start(port, &[OWN, "2001:db8:1::1"]);
        let error = relay.await_ready(LIMIT).unwrap_err().to_string();
        assert!(error.contains("/run/netns/x"), "{error}");
        // A NOS that does not have the address refuses the container.
        let (relay, port) = start(&lab.device, &base().container(web()).strict()).unwrap();
        let _nos = Nos::start(port, &["2001:db8:1::1"]);
        let error = relay.await_ready(LIMIT).unwrap_err().to_string();
        assert!(error.contains("203.0.113.1 is not an address of the NOS"), "{error}");
    }
}

lab_test! {
    fn one_that_nobody_has_a_hold_on_ends() {
        let lab = Topology::new(&["web"]).unwrap();
        let builder = Relay::builder()
            .interface(interface())
            .container(container("web", &lab.containers[0]));
        let (relay, port) = start(&lab.device, &builder).unwrap();
        let nos = Nos::start(port, &[OWN, "2001:db8:1::1"]);
        relay.await_ready(LIMIT).unwrap();
        let other = relay.clone();
        drop(relay);
        assert_sends(&lab.containers[0], &nos, 40_000);
        drop(other);
        // It ends by itself once the relay has.
        assert!(nos.thread.join().unwrap().channel().is_deserted());
        await_that("nothing is left", || {
            let link = lab.containers[0].link("eth0").unwrap();
            link.is_none().then_some(()).ok_or_else(|| "eth0 is there".to_owned())
        });
    }
}

lab_test! {
    fn containers_follow_the_interfaces_of_the_nos() {
        let lab = Topology::new(&["web"]).unwrap();
        let web = &lab.containers[0];
        let builder = Relay::builder()
            .interface(interface())
            .container(container("web", web).tcp("80"));
        let (relay, port) = start(&lab.device, &builder).unwrap();
        let nos = Nos::start(port, &[OWN, "2001:db8:1::1"]);
        relay.await_ready(LIMIT).unwrap();
        let mut watch = relay.watch(LIMIT).unwrap();
        let has = |name: &str, addresses: &[&str], mtu| NosInterface {
            name: name.into(),
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            mtu,
            vrf: None,
        };
        let index = || web.link("eth0").unwrap().unwrap().index;
        let before = index();

        // Another address, and a shorter MTU.
        nos.has.send(vec![
            has("up0", &["203.0.113.1/24", "2001:db8:1::1/64"], 1400),
            has("up1", &["192.0.2.9/25"], 1500),
        ]).unwrap();
        await_that("the container may send from the new address", || {
            let socket = web.run(|| UdpSocket::bind("192.0.2.9:40001")).unwrap();
            let socket = socket.map_err(|error| error.to_string())?;
            socket.send_to(b"abc", FAR).map_err(|error| error.to_string())?;
            let got = nos.packets.recv_timeout(Duration::from_millis(100));
            let expected = ("192.0.2.9".parse().unwrap(), 40_001);
            (got == Ok(expected)).then_some(()).ok_or(format!("{got:?}"))
        });
        assert_eq!(web.link("eth0").unwrap().unwrap().mtu, 1400);

        // What it cannot be is said, and changes nothing.
        let bad = [
            (Vec::new(), "there is none"),
            (vec![has("up 0", &["203.0.113.1/24"], 1500)], "contains ' '"),
            (vec![has("up0", &["203.0.113.1/24"], 9)], "mtu"),
            (vec![has("up0", &["203.0.113.1/24"], 1500), has("up0", &["192.0.2.9/25"], 1500)], "is already on line"),
            (vec![has("up0", &["203.0.113.1/24"], 1500), has("up1", &["203.0.113.1/24"], 1500)], "203.0.113.1"),
        ];
        for (interfaces, said) in bad {
            nos.has.send(interfaces).unwrap();
            let reason = loop {
                let (_, line) = watch.next_line().unwrap().unwrap();
                if let Watched::Event { event: Event::Refused { subject, reason }, .. } = line
                    && subject.kind == SubjectKind::Interfaces
                {
                    break reason;
                }
            };
            assert!(reason.contains(said), "{reason} does not say {said}");
        }
        assert_eq!(web.link("eth0").unwrap().unwrap().mtu, 1400);
        assert_sends(web, &nos, 40_002);

        // The address that it has no more.
        nos.has.send(vec![has("up1", &["192.0.2.9/25"], 1500)]).unwrap();
        await_that("the container has the other address alone", || {
            let old = web.run(|| UdpSocket::bind((OWN, 40_003))).unwrap();
            let new = web.run(|| UdpSocket::bind("192.0.2.9:40003")).unwrap();
            let as_it_is_to_be = old.is_err() && new.is_ok();
            as_it_is_to_be.then_some(()).ok_or_else(|| format!("{old:?} {new:?}"))
        });
        assert_eq!(index(), before, "it is the same interface");
        relay.stop().unwrap();
    }
}
