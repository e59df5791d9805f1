//! What a daemon that was killed leaves, and what the next one makes of it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{FromRawFd, OwnedFd};

use nix::sys::signal::Signal;
use nos_relay::control::api::snapshot::LinkState;
use nos_relay::lab::testbed::{LabNamespace, tcp};
use socket2::{Domain, Socket, Type};
use support::daemon::{Daemon, LIMIT, await_that};
use support::lab_test;
use support::named::Named;
use support::scenario::{FAMILIES, Family, Scenario, V4, Variant, edited, variant_tests};
use support::traffic::{assert_alive, retransmitted};

/// What a namespace has that attaching touches, where nothing is attached.
fn untouched(namespace: &LabNamespace) {
    assert!(namespace.link("eth0").unwrap().is_none());
    let range = namespace.read_sysctl("net/ipv4/ip_local_port_range");
    assert_eq!(range.unwrap(), "32768\t60999");
    let addresses = namespace.addresses("lo").unwrap();
    assert!(
        addresses.iter().all(|it| it.addr().is_loopback()),
        "{addresses:?}"
    );
}

/// What programs find that send while nobody forwards: no error that says that there is no network.
fn assert_network_is_there(namespace: &LabNamespace) {
    for family in FAMILIES {
        let sent = namespace.run(|| {
            let socket = UdpSocket::bind((family.any, 0)).unwrap();
            (0..3)
                .map(|_| socket.send_to(b"x", family.external_port(9)))
                .collect::<Vec<_>>()
        });
        for sent in sent.unwrap() {
            assert_eq!(sent.unwrap(), 1);
        }
    }
}

mod containers_keep_their_interface {
    use super::*;

    fn scenario(variant: Variant) {
        let named = Named::new(variant);
        let scenario = named.start();
        let before = named.each_inside();
        let echo = |scenario: &Scenario| {
            for family in FAMILIES {
                let server =
                    tcp::EchoServer::start(scenario.web(), family.nos_port(20_080)).unwrap();
                tcp::exchange(scenario.external(), None, server.address(), b"x", LIMIT).unwrap();
            }
        };
        echo(&scenario);
        let mut files = scenario.daemon.kill();
        for _ in 0..2 {
            assert_eq!(named.each_inside(), before, "while there is no daemon");
            named
                .topology
                .containers
                .iter()
                .for_each(assert_network_is_there);
            let scenario = named.start_on(files);
            assert_alive(&scenario);
            assert_eq!(named.each_inside(), before);
            let log = scenario.daemon.log();
            assert_eq!(log.matches("adopted").count(), 2, "{log}");
            echo(&scenario);
            files = scenario.daemon.kill();
        }
        // One that ends in order takes everything away.
        let scenario = named.start_on(files);
        assert_alive(&scenario);
        let files = scenario.daemon.stop_by(Signal::SIGTERM);
        named.topology.containers.iter().for_each(untouched);
        assert!(!files.path("control.sock.attached").exists());
    }

    variant_tests! {
        tap: ("tap", "single", [true, true]),
        tap_plain: ("tap", "split", [false, false]),
        veth: ("veth", "split", [true, true]),
    }
}

/// An address beyond the network of the uplink.
fn far(family: Family) -> SocketAddr {
    let address = if family.is_v6() {
        "2001:db8:9::9"
    } else {
        "198.51.100.9"
    };
    (address.parse::<IpAddr>().unwrap(), 9).into()
}

/// As if a long time passed at once: what is known of a neighbor from now on is doubted soon, and then
/// given up.
fn hasten_neighbors(container: &LabNamespace) {
    for family in ["ipv4", "ipv6"] {
        for (key, value) in [
            ("base_reachable_time_ms", "10"),
            ("delay_first_probe_time", "0"),
            ("retrans_time_ms", "10"),
        ] {
            let key = format!("net/{family}/neigh/eth0/{key}");
            container.sysctl(&key, value).unwrap();
        }
    }
    // With this the kernel forgets all that it knows; the daemon puts it back.
    container.set_arp_off("eth0").unwrap();
    await_that("it asks for MAC addresses again", || {
        let link = container.link("eth0").unwrap().unwrap();
        link.resolves
            .then_some(())
            .ok_or_else(|| format!("{link:?}"))
    });
}

/// Whether the kernel does not count on what it knows of a neighbor any more.
fn given_up(container: &LabNamespace, neighbor: IpAddr) -> Result<(), String> {
    let table = || std::fs::read_to_string("/proc/thread-self/net/arp").unwrap();
    let table = container.run(table).unwrap();
    let neighbor = format!("{neighbor} ");
    let entry = table.lines().find(|line| line.starts_with(&neighbor));
    let unknown = entry.is_some_and(|entry| entry.contains(" 0x0 "));
    unknown.then_some(()).ok_or(table)
}

/// A program that has begun to connect.
struct Connecting(Socket);

impl Connecting {
    fn start(from: &LabNamespace, to: SocketAddr) -> Self {
        let open = || {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            let error = socket.connect(&to.into()).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EINPROGRESS), "{error}");
            socket
        };
        Self(from.run(open).unwrap())
    }

    /// The kernel has asked again, so that it has long looked for a neighbor in vain if it looks for one.
    fn await_another_try(&self) {
        await_that("it is tried again", || {
            let error = self.0.take_error().unwrap();
            assert!(error.is_none(), "{error:?}");
            match retransmitted(&self.0) {
                0 => Err("it is not".to_owned()),
                _ => Ok(()),
            }
        });
    }

    fn finish(self) {
        let stream = TcpStream::from(self.0);
        await_that("it is connected", || {
            let error = stream.take_error().unwrap();
            assert!(error.is_none(), "{error:?}");
            stream.peer_addr().map_err(|error| error.to_string())
        });
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        (&stream).write_all(b"late").unwrap();
        let mut answer = [0; 4];
        (&stream).read_exact(&mut answer).unwrap();
        assert_eq!(answer, *b"late");
    }
}

mod connections_begun_while_there_is_no_daemon_complete {
    use super::*;

    fn scenario(variant: Variant) {
        let named = Named::new(variant);
        let containers = &named.topology.containers;
        let scenario = named.start();
        containers.iter().for_each(hasten_neighbors);
        assert_alive(&scenario);
        let servers = FAMILIES.map(|family| {
            let address = family.external_port(8080);
            tcp::EchoServer::start(&named.topology.external, address).unwrap()
        });
        let before = named.each_inside();
        let files = scenario.daemon.kill();
        let mut waiting = Vec::new();
        let mut sockets = Vec::new();
        for container in containers {
            for family in FAMILIES {
                // To a neighbor of the NOS, to somebody beyond, and to the address that is shared.
                for to in [family.external_port(8080), far(family), family.nos_port(7)] {
                    let socket = container.run(|| UdpSocket::bind((family.any, 0)).unwrap());
                    let socket = socket.unwrap();
                    socket.connect(to).unwrap();
                    sockets.push(socket);
                    waiting.push((to, Connecting::start(container, to)));
                }
            }
        }
        let send = || {
            sockets.iter().for_each(|socket| {
                assert_eq!(socket.send(b"x").unwrap(), 1);
            });
        };
        for container in containers {
            await_that("its kernel has given the neighbor up", || {
                send();
                given_up(container, V4.external)
            });
        }
        send();
        for (_, connecting) in &waiting {
            connecting.await_another_try();
        }
        for socket in &sockets {
            assert_eq!(socket.send(b"x").unwrap(), 1);
            let error = socket.take_error().unwrap();
            assert!(error.is_none(), "{error:?}");
        }
        assert_eq!(named.each_inside(), before);
        let scenario = named.start_on(files);
        for (to, connecting) in waiting {
            if servers.iter().any(|server| server.address() == to) {
                connecting.finish();
            }
        }
        assert_alive(&scenario);
    }

    variant_tests! {
        tap: ("tap", "single", [true, true]),
        veth: ("veth", "split", [true, true]),
    }
}

mod a_container_that_is_not_wanted_any_more_is_left_by_the_next {
    use super::*;

    fn scenario(variant: Variant) {
        let named = Named::new(variant);
        let files = named.start().daemon.kill();
        let [head, web, db]: [&str; 3] = named
            .config
            .split("[[container]]")
            .collect::<Vec<_>>()
            .try_into()
            .unwrap();
        files.write(&format!("{head}[[container]]{db}"));
        let daemon = Daemon::start_on(&named.topology.device, files);
        untouched(named.web());
        assert_eq!(daemon.attachments().len(), 1);
        assert_eq!(daemon.attachment("db").link.state, LinkState::Up);
        // It comes back under another name.
        let web = web.replace("\"web\"", "\"shop\"");
        daemon.reload(&format!("{head}[[container]]{web}[[container]]{db}"));
        assert!(named.web().link("eth0").unwrap().is_some());
    }

    variant_tests! {
        tap: ("tap", "single", [true, true]),
        veth: ("veth", "single", [true, true]),
    }
}

mod an_interface_of_another_kind_is_replaced {
    use super::*;

    fn scenario(variant: Variant) {
        let tap = Variant {
            device: "tap",
            ..variant
        };
        if !tap.is_possible() {
            return;
        }
        let named = Named::new(variant);
        let files = named.start().daemon.kill();
        let (from, to) = match variant.device {
            "tap" => ("\"tap\"", "\"veth\""),
            _ => ("\"veth\"", "\"tap\""),
        };
        files.write(&edited(&named.config, from, to));
        let scenario = named.start_on(files);
        assert_alive(&scenario);
        let scenario = named.start_on(scenario.daemon.kill());
        assert_alive(&scenario);
        let files = scenario.daemon.kill();
        files.write(&named.config);
        assert_alive(&named.start_on(files));
    }

    variant_tests! {
        tap: ("tap", "single", [true, true]),
        veth: ("veth", "single", [true, true]),
    }
}

/// The descriptor of a TAP of another process, as one would still have it that is slow to die.
fn tap_of(pid: u32) -> OwnedFd {
    let directory = format!("/proc/{pid}/fd");
    for entry in std::fs::read_dir(directory).unwrap().map_while(Result::ok) {
        let Ok(target) = std::fs::read_link(entry.path()) else {
            continue;
        };
        if target.to_string_lossy() != "/dev/net/tun" {
            continue;
        }
        let number: libc::c_int = entry.file_name().to_string_lossy().parse().unwrap();
        // SAFETY: the calls take plain numbers, and make a descriptor that is nobody else's.
        return unsafe {
            let process = libc::syscall(libc::SYS_pidfd_open, pid, 0);
            assert!(process >= 0, "{}", std::io::Error::last_os_error());
            let process = OwnedFd::from_raw_fd(process.try_into().unwrap());
            let raw = std::os::fd::AsRawFd::as_raw_fd(&process);
            let tap = libc::syscall(libc::SYS_pidfd_getfd, raw, number, 0);
            assert!(tap >= 0, "{}", std::io::Error::last_os_error());
            OwnedFd::from_raw_fd(tap.try_into().unwrap())
        };
    }
    panic!("process {pid} has no TAP");
}

lab_test! {
    fn a_tap_that_somebody_still_has_open_is_adopted_when_it_is_free() {
        let variant = Variant { device: "tap", ..Variant::PLAIN };
        if !variant.is_possible() {
            return;
        }
        let named = Named::new(variant);
        let scenario = named.start();
        let before = named.each_inside();
        let tap = tap_of(scenario.daemon.pid());
        let scenario = named.start_on(scenario.daemon.kill());
        let web = scenario.daemon.attachment("web");
        assert_eq!(web.link.state, LinkState::Refused);
        let reason = web.link.reason.unwrap();
        assert!(reason.contains("belongs to attachment 'web' of a running nos-relay"), "{reason}");
        // The kernel tells that it is free.
        drop(tap);
        await_that("it is adopted", || {
            let state = scenario.daemon.attachment("web").link.state;
            (state == LinkState::Up).then_some(()).ok_or_else(|| state.to_string())
        });
        assert_alive(&scenario);
        assert_eq!(named.each_inside(), before);
    }
}

lab_test! {
    fn one_that_ends_for_the_next_leaves_everything() {
        let variant = Variant { device: "tap", ..Variant::PLAIN };
        if !variant.is_possible() {
            return;
        }
        let named = Named::new(variant);
        let scenario = named.start();
        let before = named.each_inside();
        scenario.daemon.signal(Signal::SIGUSR1);
        let (status, said, files) = scenario.daemon.wait_for_end();
        assert!(status.success(), "{said}");
        assert_eq!(named.each_inside(), before);
        let scenario = named.start_on(files);
        assert_alive(&scenario);
        assert_eq!(named.each_inside(), before);
    }
}
