//! The lab builds what it promises, and leaves nothing behind.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use nos_relay::control::kernel::Namespace;
use nos_relay::lab::testbed::ping::{Echo, Ping, ping};
use nos_relay::lab::testbed::{
    LabError, LabNamespace, Privileges, Topology, UserNamespaceError, enter_user_namespace,
    privileges, tcp, udp, veth,
};
use nos_shim::ident::MacAddr;
use support::lab_test;

const LIMIT: Duration = Duration::from_secs(5);

lab_test! {
    fn namespaces_are_apart_and_named_by_a_path() {
        let [a, b] = ["a", "b"].map(|label| LabNamespace::new(label).unwrap());
        assert_ne!(a.namespace(), b.namespace());
        assert_ne!(a.namespace(), &Namespace::current().unwrap());
        assert_eq!(&Namespace::open(a.path()).unwrap(), a.namespace());
        let inside = a.run(|| Namespace::current().unwrap()).unwrap();
        assert_eq!(&inside, a.namespace());
        assert!(a.link("lo").unwrap().unwrap().up);
    }
}

lab_test! {
    fn untouched_namespace_has_lo_down() {
        let lab = LabNamespace::untouched("fresh").unwrap();
        assert!(!lab.link("lo").unwrap().unwrap().up);
        assert!(lab.link("eth0").unwrap().is_none());
    }
}

lab_test! {
    fn path_is_stale_once_the_value_is_gone() {
        let lab = LabNamespace::new("short").unwrap();
        let opened = Namespace::open(lab.path()).unwrap();
        assert!(opened.name().open().is_ok());
        drop(lab);
        assert!(opened.name().open().is_err());
    }
}

lab_test! {
    fn children_live_inside() {
        let lab = LabNamespace::new("parent").unwrap();
        let mut command = Command::new("cat");
        command.arg("/proc/self/net/dev").stdout(Stdio::piped());
        let child = lab.spawn(command).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        // Two lines of heading, and lo.
        assert_eq!(text.lines().count(), 3, "{text}");
    }
}

lab_test! {
    fn children_can_be_found_and_can_open_the_path() {
        let lab = LabNamespace::new("parent").unwrap();
        let mut command = Command::new("cat");
        command.stdin(Stdio::piped());
        let mut child = lab.spawn(command).unwrap();
        assert_eq!(&Namespace::of_process(child.id()).unwrap(), lab.namespace());
        drop(child.stdin.take());
        child.wait().unwrap();

        let path = lab.path();
        let output = Command::new("stat").args(["-L", "-c", "%i"]).arg(&path).output().unwrap();
        let inode = std::fs::metadata(&path).unwrap().ino();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), inode.to_string());
    }
}

lab_test! {
    fn veth_is_operational_when_both_ends_are_up() {
        let [a, b] = ["a", "b"].map(|label| LabNamespace::new(label).unwrap());
        veth((&a, "left"), (&b, "right")).unwrap();
        let left = a.link("left").unwrap().unwrap();
        assert!(left.operational);
        assert_eq!(left.kind.as_deref(), Some("veth"));
        assert_eq!(left.mtu, 1500);
        b.set_down("right").unwrap();
        a.wait_link("left", "without carrier", LIMIT, |link| link.is_some_and(|l| !l.operational))
            .unwrap();
        let mac = MacAddr::stable("right");
        b.set_mac("right", mac).unwrap();
        b.set_mtu("right", 9000).unwrap();
        let right = b.link("right").unwrap().unwrap();
        assert_eq!((right.mac, right.mtu, right.up), (Some(mac), 9000, false));
        a.delete_link("left").unwrap();
        assert!(b.link("right").unwrap().is_none());
    }
}

lab_test! {
    fn waiting_has_a_limit() {
        let lab = LabNamespace::new("a").unwrap();
        let error = lab.wait_operational("eth9", Duration::from_millis(20)).unwrap_err();
        assert!(matches!(error, LabError::Timeout { .. }));
        assert!(error.to_string().contains("eth9 in namespace 'a' was not operational"), "{error}");
    }
}

lab_test! {
    fn addresses_are_local_at_once_also_while_the_link_is_down() {
        let lab = LabNamespace::new("a").unwrap();
        lab.add_bridge("br0").unwrap();
        lab.set_down("br0").unwrap();
        for number in 1..=20 {
            let address = format!("2001:db8::{number}");
            lab.add_address("br0", format!("{address}/64").parse().unwrap()).unwrap();
            let echo = ping(&lab, address.parse().unwrap(), 1, LIMIT).unwrap()[0];
            assert!(echo.is_reply(), "{echo:?}");
        }
    }
}

lab_test! {
    fn bridge_joins_ports() {
        let [a, b] = ["a", "b"].map(|label| LabNamespace::new(label).unwrap());
        a.add_bridge("br0").unwrap();
        veth((&a, "port"), (&b, "eth0")).unwrap();
        a.join_bridge("br0", "port").unwrap();
        a.wait_operational("br0", LIMIT).unwrap();
        assert_eq!(a.link("br0").unwrap().unwrap().kind.as_deref(), Some("bridge"));
    }
}

lab_test! {
    fn topology_is_as_drawn() {
        let topology = Topology::new(&["web", "db"]).unwrap();
        let uplink = topology.device.link(Topology::UPLINK).unwrap().unwrap();
        assert!(uplink.operational);
        assert_eq!(topology.device.addresses(Topology::UPLINK).unwrap(), []);
        let addresses = topology.external.addresses(Topology::EXTERNAL_INTERFACE).unwrap();
        assert!(Topology::external_addresses().iter().all(|one| addresses.contains(one)));
        assert_eq!(topology.containers.len(), 2);
        assert_eq!(topology.device.read_sysctl("net/ipv4/ip_forward").unwrap(), "1");
    }
}

lab_test! {
    fn routes_and_neighbors_take_both_families() {
        let topology = Topology::new(&[]).unwrap();
        let external = &topology.external;
        for (address, net) in [
            (IpAddr::V4(Topology::DEVICE_V4), "198.51.100.0/24"),
            (IpAddr::V6(Topology::DEVICE_V6), "2001:db8:2::/48"),
        ] {
            external.add_route(net.parse().unwrap(), address).unwrap();
            external.add_neighbor("xh", address, MacAddr::stable("nos")).unwrap();
        }
        let mixed = external.add_route("198.51.100.0/24".parse().unwrap(), Topology::DEVICE_V6.into());
        assert!(mixed.unwrap_err().to_string().contains("one is IPv4, the other IPv6"));
    }
}

/// Device and external host as neighbors, with the device's addresses on the uplink.
fn neighbors() -> Topology {
    let topology = Topology::new(&[]).unwrap();
    let device = &topology.device;
    device.sysctl("net/ipv6/conf/hx/disable_ipv6", "0").unwrap();
    device
        .add_address("hx", "203.0.113.1/24".parse().unwrap())
        .unwrap();
    device
        .add_address("hx", "2001:db8:1::1/64".parse().unwrap())
        .unwrap();
    topology
}

fn external() -> [IpAddr; 2] {
    [Topology::EXTERNAL_V4.into(), Topology::EXTERNAL_V6.into()]
}

lab_test! {
    fn ping_is_answered() {
        let topology = neighbors();
        for address in external() {
            let echoes = ping(&topology.device, address, 3, LIMIT).unwrap();
            assert_eq!(echoes.len(), 3);
            for echo in echoes {
                assert!(matches!(echo, Echo::Reply { from, ttl: 64, .. } if from == address), "{echo:?}");
            }
        }
    }
}

lab_test! {
    fn ping_tells_silence_errors_and_large_packets_apart() {
        let topology = neighbors();
        let (device, external) = (&topology.device, &topology.external);
        let large = Ping { size: 3000, ..Ping::default() };
        let whole = Ping { dont_fragment: true, ..large };
        for address in self::external() {
            assert!(large.run(device, address).unwrap()[0].is_reply());
            assert_eq!(whole.run(device, address).unwrap(), [Echo::Unsent(libc::EMSGSIZE)]);
        }
        // Behind X is nothing, and X says so.
        external.sysctl("net/ipv4/ip_forward", "1").unwrap();
        external.sysctl("net/ipv6/conf/all/forwarding", "1").unwrap();
        for (net, far, gateway, unreachable) in [
            ("198.51.100.0/24", "198.51.100.1", self::external()[0], (3, 0)),
            ("2001:db8:2::/48", "2001:db8:2::1", self::external()[1], (1, 0)),
        ] {
            let far = far.parse().unwrap();
            device.add_route(net.parse().unwrap(), gateway).unwrap();
            let echo = ping(device, far, 1, LIMIT).unwrap()[0];
            let Echo::Error { from, kind, code } = echo else { panic!("{echo:?}") };
            assert_eq!((from, (kind, code)), (gateway, unreachable));
            // With a route, though a useless one, X would forward, had the packet not come so far.
            let back = if far.is_ipv4() { Topology::DEVICE_V4.into() } else { Topology::DEVICE_V6.into() };
            external.add_route(net.parse().unwrap(), back).unwrap();
            let short = Ping { ttl: 1, ..Ping::default() }.run(device, far).unwrap()[0];
            let exceeded = if far.is_ipv4() { 11 } else { 3 };
            assert!(matches!(short, Echo::Error { kind, .. } if kind == exceeded), "{short:?}");
        }
        external.sysctl("net/ipv4/icmp_echo_ignore_all", "1").unwrap();
        let silent = ping(device, Topology::EXTERNAL_V4.into(), 1, Duration::from_millis(50));
        assert_eq!(silent.unwrap(), [Echo::Timeout]);
    }
}

lab_test! {
    fn tcp_echo_sees_its_peer() {
        let topology = neighbors();
        for address in external() {
            let server = tcp::EchoServer::start(&topology.external, (address, 0).into()).unwrap();
            let payload = [7; 5000];
            let local = tcp::exchange(&topology.device, None, server.address(), &payload, LIMIT).unwrap();
            assert_eq!(server.peers(), [local]);
            let chosen = SocketAddr::new(local.ip(), 20179);
            let local = tcp::exchange(&topology.device, Some(chosen), server.address(), b"x", LIMIT).unwrap();
            assert_eq!(local, chosen);
            let gone = server.address();
            drop(server);
            let error = tcp::connect(&topology.device, None, gone, LIMIT).unwrap_err();
            assert_eq!(error.kind(), Some(ErrorKind::ConnectionRefused), "{error}");
        }
    }
}

lab_test! {
    fn udp_echo_sees_its_peer() {
        let topology = neighbors();
        for address in external() {
            let server = udp::EchoServer::start(&topology.external, (address, 0).into()).unwrap();
            let local = udp::exchange(&topology.device, None, server.address(), &[7; 3000], LIMIT).unwrap();
            assert_eq!(server.peers(), [local]);
            let gone = server.address();
            drop(server);
            let error = udp::exchange(&topology.device, None, gone, b"x", LIMIT).unwrap_err();
            assert_eq!(error.kind(), Some(ErrorKind::ConnectionRefused), "{error}");
        }
    }
}

lab_test! {
    fn transfers_are_complete_in_both_directions() {
        let topology = neighbors();
        for address in external() {
            for direction in [tcp::Direction::Upload, tcp::Direction::Download] {
                let progress = AtomicU64::new(0);
                let transfer = tcp::Transfer {
                    client: &topology.device,
                    server: &topology.external,
                    listen: (address, 0).into(),
                    connect: (address, 0).into(),
                    source: None,
                    direction,
                    octets: 5_000_003,
                    limit: Duration::from_secs(20),
                };
                assert_eq!(transfer.run(&progress).unwrap().octets, 5_000_003);
                assert_eq!(progress.load(Ordering::Relaxed), 5_000_003);
            }
        }
    }
}

lab_test! {
    fn transfers_end_in_time_when_nobody_answers() {
        let topology = neighbors();
        // A neighbor that does not exist, so that packets vanish without an error.
        let nobody: IpAddr = "203.0.113.99".parse().unwrap();
        topology.device.add_neighbor("hx", nobody, MacAddr::stable("nobody")).unwrap();
        let limit = Duration::from_millis(50);
        let error = tcp::connect(&topology.device, None, (nobody, 9).into(), limit).unwrap_err();
        assert_eq!(error.kind(), Some(ErrorKind::TimedOut), "{error}");
        let error = udp::exchange(&topology.device, None, (nobody, 9).into(), b"x", limit).unwrap_err();
        assert_eq!(error.kind(), Some(ErrorKind::TimedOut), "{error}");
    }
}

/// In a process of its own, because entering a user namespace is for good.
#[test]
fn main_can_enter_a_user_namespace() {
    if let Privileges::Nothing(reason) = privileges() {
        return support::skip(&format!("main_can_enter_a_user_namespace: {reason}"));
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "entering", "--ignored", "--nocapture"])
        .env("LAB_ENTERS", "yes")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("entered"), "{text}{errors}");
}

/// The other process of `main_can_enter_a_user_namespace`; no test by itself.
#[test]
#[ignore = "a part of another test"]
fn entering() {
    if std::env::var_os("LAB_ENTERS").is_none() {
        return;
    }
    // The harness has threads, as a main that calls too late would.
    let error = enter_user_namespace().unwrap_err();
    assert!(matches!(error, UserNamespaceError::Threads(_)), "{error}");
    // SAFETY: the other thread only waits for this one, so it holds no lock that the child, which
    // has one thread, could wait for.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            let result = std::panic::catch_unwind(|| {
                enter_user_namespace().unwrap();
                assert_eq!(privileges(), Privileges::Root);
                let echo = ping(&neighbors().device, external()[0], 1, LIMIT).unwrap()[0];
                assert!(echo.is_reply(), "{echo:?}");
            });
            std::process::exit(i32::from(result.is_err()));
        }
        ForkResult::Parent { child } => {
            assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)));
            println!("entered");
        }
    }
}
