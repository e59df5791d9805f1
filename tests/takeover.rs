//! While the relay has an interface, the kernel neither answers nor forwards what arrives there.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrLike, bind, recv,
    socket,
};
use nos_relay::control::kernel::Namespace;
use nos_relay::control::kernel::takeover::{Takeover, TakeoverError};
use nos_relay::lab::testbed::ping::{Echo, ping};
use nos_relay::lab::testbed::{LabNamespace, Topology, tcp, udp, veth};
use nos_shim::ident::MacAddr;
use support::daemon::Daemon;
use support::lab_test;
use support::wire::{Seen, Wire};

const LIMIT: Duration = Duration::from_secs(5);
/// Long enough for the kernel to answer, which it does at once or never.
const SILENCE: Duration = Duration::from_millis(100);

/// A device whose kernel has the addresses on its uplink, forwards, and has a network behind.
struct Device {
    topology: Topology,
    behind: LabNamespace,
}

const BEHIND: [&str; 2] = ["198.51.100.2", "2001:db8:2::2"];

impl Device {
    fn new() -> Self {
        let topology = Topology::new(&[]).unwrap();
        let behind = LabNamespace::new("behind").unwrap();
        let device = &topology.device;
        device.sysctl("net/ipv6/conf/hx/disable_ipv6", "0").unwrap();
        device.sysctl("net/ipv6/conf/all/forwarding", "1").unwrap();
        veth((device, "inner"), (&behind, "eth0")).unwrap();
        for (interface, address) in [
            ("hx", "203.0.113.1/24"),
            ("hx", "2001:db8:1::1/64"),
            ("inner", "198.51.100.1/24"),
            ("inner", "2001:db8:2::1/64"),
        ] {
            device
                .add_address(interface, address.parse().unwrap())
                .unwrap();
        }
        for (address, default, gateway, network, uplink) in [
            (
                "198.51.100.2/24",
                "0.0.0.0/0",
                "198.51.100.1",
                "198.51.100.0/24",
                "203.0.113.1",
            ),
            (
                "2001:db8:2::2/64",
                "::/0",
                "2001:db8:2::1",
                "2001:db8:2::/64",
                "2001:db8:1::1",
            ),
        ] {
            behind
                .add_address("eth0", address.parse().unwrap())
                .unwrap();
            behind
                .add_route(default.parse().unwrap(), gateway.parse().unwrap())
                .unwrap();
            topology
                .external
                .add_route(network.parse().unwrap(), uplink.parse().unwrap())
                .unwrap();
        }
        Self { topology, behind }
    }

    fn take(&self) -> Takeover {
        Takeover::of(self.topology.device.namespace(), Topology::UPLINK).unwrap()
    }

    /// Everything an outsider can get out of the kernel works, by both families.
    fn assert_kernel_speaks(&self) {
        let external = &self.topology.external;
        for address in own_addresses().into_iter().chain(behind_addresses()) {
            assert!(
                ping(external, address, 1, LIMIT).unwrap()[0].is_reply(),
                "{address}"
            );
            let error = tcp::connect(external, None, (address, 9).into(), LIMIT).unwrap_err();
            assert_eq!(error.kind(), Some(ErrorKind::ConnectionRefused), "{error}");
            let error =
                udp::exchange(external, None, (address, 9).into(), b"x", LIMIT).unwrap_err();
            assert_eq!(error.kind(), Some(ErrorKind::ConnectionRefused), "{error}");
        }
    }

    /// Nothing does.
    fn assert_kernel_is_silent(&self) {
        let external = &self.topology.external;
        for address in own_addresses().into_iter().chain(behind_addresses()) {
            assert_eq!(
                ping(external, address, 1, SILENCE).unwrap(),
                [Echo::Timeout],
                "{address}"
            );
            let error = tcp::connect(external, None, (address, 9).into(), SILENCE).unwrap_err();
            assert_eq!(error.kind(), Some(ErrorKind::TimedOut), "{error}");
            let error =
                udp::exchange(external, None, (address, 9).into(), b"x", SILENCE).unwrap_err();
            assert_eq!(error.kind(), Some(ErrorKind::TimedOut), "{error}");
        }
    }

    /// A packet socket on the uplink, for every EtherType.
    fn packet_socket(&self) -> OwnedFd {
        let index = self.topology.device.link("hx").unwrap().unwrap().index;
        let open = || {
            let all = SockProtocol::EthAll;
            let fd = socket(
                AddressFamily::Packet,
                SockType::Raw,
                SockFlag::SOCK_NONBLOCK,
                all,
            )
            .unwrap();
            bind(fd.as_raw_fd(), &link_address(index)).unwrap();
            fd
        };
        self.topology.device.run(open).unwrap()
    }
}

fn link_address(index: u32) -> LinkAddr {
    let address = libc::sockaddr_ll {
        sll_family: u16::try_from(libc::AF_PACKET).unwrap(),
        sll_protocol: u16::try_from(libc::ETH_P_ALL).unwrap().to_be(),
        sll_ifindex: i32::try_from(index).unwrap(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: the pointer is to a whole sockaddr_ll of family AF_PACKET, copied before it ends.
    let copied = unsafe { LinkAddr::from_raw((&raw const address).cast(), Some(20)) };
    copied.unwrap()
}

/// All frames that wait on a packet socket.
fn drain(fd: &OwnedFd) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let mut buffer = vec![0; 70_000];
    while let Ok(length) = recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
        frames.push(buffer[..length].to_vec());
    }
    frames
}

fn own_addresses() -> [IpAddr; 2] {
    [Topology::DEVICE_V4.into(), Topology::DEVICE_V6.into()]
}

fn behind_addresses() -> [IpAddr; 2] {
    BEHIND.map(|text| text.parse().unwrap())
}

lab_test! {
    fn kernel_is_silent_while_the_guard_lives() {
        let device = Device::new();
        device.assert_kernel_speaks();
        let guard = device.take();
        assert_eq!(guard.interface(), "hx");
        device.assert_kernel_is_silent();
        // Given back at once, not when the kernel finds time.
        drop(guard);
        device.assert_kernel_speaks();
    }
}

lab_test! {
    fn arp_and_neighbor_solicitations_are_not_answered() {
        let device = Device::new();
        let guard = device.take();
        for key in ["net/ipv4/neigh/xh/retrans_time_ms", "net/ipv6/neigh/xh/retrans_time_ms"] {
            device.topology.external.sysctl(key, "20").unwrap();
        }
        // X has no neighbor entry yet, so its kernel asks, and gives up: unreachable from itself.
        for address in own_addresses() {
            let echo = ping(&device.topology.external, address, 1, LIMIT).unwrap()[0];
            let from_itself = Topology::external_addresses().map(|net| net.addr());
            let Echo::Error { from, .. } = echo else { panic!("{echo:?}") };
            assert!(from_itself.contains(&from), "{echo:?}");
        }
        drop(guard);
        device.assert_kernel_speaks();
    }
}

lab_test! {
    fn other_interfaces_are_left_alone() {
        let device = Device::new();
        let _guard = device.take();
        for address in ["198.51.100.1", "2001:db8:2::1"] {
            let echo = ping(&device.behind, address.parse().unwrap(), 1, LIMIT).unwrap()[0];
            assert!(echo.is_reply(), "{echo:?}");
        }
    }
}

lab_test! {
    fn packet_sockets_see_everything() {
        let device = Device::new();
        device.assert_kernel_speaks();
        let _guard = device.take();
        let tap = device.packet_socket();
        let payload = b"seen by the relay alone";
        let send = || {
            for address in own_addresses().into_iter().chain(behind_addresses()) {
                let any = if address.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
                let socket = UdpSocket::bind((any, 0)).unwrap();
                socket.send_to(payload, SocketAddr::new(address, 9)).unwrap();
            }
        };
        device.topology.external.run(send).unwrap();
        let frames = drain(&tap);
        let seen = frames.iter().filter(|frame| frame.ends_with(payload)).count();
        assert_eq!(seen, 4, "{} frames", frames.len());
    }
}

lab_test! {
    fn super_frames_are_seen_whole_and_dropped_whole() {
        let device = Device::new();
        let external = &device.topology.external;
        let server = tcp::EchoServer::start(&device.topology.device, (own_addresses()[0], 0).into()).unwrap();
        let mut stream = tcp::connect(external, None, server.address(), LIMIT).unwrap();
        let _guard = device.take();
        let tap = device.packet_socket();
        // veth passes TCP segments on unsegmented, as GRO would deliver them.
        std::io::Write::write_all(&mut stream, &[5; 8000]).unwrap();
        let frames = drain(&tap);
        assert!(frames.iter().any(|frame| frame.len() > 1514), "{frames:?}");
        stream.set_read_timeout(Some(SILENCE)).unwrap();
        let error = std::io::Read::read(&mut stream, &mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
    }
}

lab_test! {
    fn bridge_on_the_interface_gets_nothing() {
        let Topology { device, external, .. } = Topology::new(&[]).unwrap();
        device.add_bridge("br0").unwrap();
        device.add_address("br0", "203.0.113.1/24".parse().unwrap()).unwrap();
        device.join_bridge("br0", "hx").unwrap();
        device.wait_operational("br0", LIMIT).unwrap();
        let address = own_addresses()[0];
        assert!(ping(&external, address, 1, LIMIT).unwrap()[0].is_reply());
        let _guard = Takeover::of(device.namespace(), "hx").unwrap();
        assert_eq!(ping(&external, address, 1, SILENCE).unwrap(), [Echo::Timeout]);
    }
}

lab_test! {
    fn one_interface_is_taken_once() {
        let device = Device::new();
        let namespace = device.topology.device.namespace();
        let guard = device.take();
        let error = Takeover::of(namespace, "hx").unwrap_err();
        assert!(matches!(error, TakeoverError::Taken { .. }), "{error}");
        assert!(error.to_string().contains("hx in namespace 'H' is in use"), "{error}");
        let other = Takeover::of(namespace, "inner").unwrap();
        drop(guard);
        drop(Takeover::of(namespace, "hx").unwrap());
        drop(other);
    }
}

lab_test! {
    fn missing_interface_is_named() {
        let lab = LabNamespace::new("empty").unwrap();
        let error = Takeover::of(lab.namespace(), "hx").unwrap_err().to_string();
        assert!(error.contains("look up interface hx in namespace 'empty'"), "{error}");
    }
}

lab_test! {
    fn vanished_interface_harms_nothing() {
        let device = Device::new();
        let guard = device.take();
        device.topology.device.delete_link("hx").unwrap();
        drop(guard);
        // The same name again, by another interface.
        let host = &device.topology.device;
        veth((host, "hx"), (&device.behind, "again")).unwrap();
        drop(Takeover::of(host.namespace(), "hx").unwrap());
    }
}

lab_test! {
    fn killed_process_gives_the_interface_back() {
        let device = Device::new();
        // This very test binary, which holds the interface until it is killed.
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "holder", "--ignored", "--nocapture"])
            .env("TAKEOVER_HOLDER", Topology::UPLINK)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = device.topology.device.spawn(command).unwrap();
        let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
        assert!(lines.any(|line| line.unwrap().contains("taken")), "the holder did not start");
        let error = Takeover::of(device.topology.device.namespace(), "hx").unwrap_err();
        assert!(matches!(error, TakeoverError::Taken { .. }), "{error}");
        let external = &device.topology.external;
        external.add_neighbor("xh", own_addresses()[0], device_mac(&device)).unwrap();
        assert_eq!(ping(external, own_addresses()[0], 1, SILENCE).unwrap(), [Echo::Timeout]);
        child.kill().unwrap();
        child.wait().unwrap();
        device.assert_kernel_speaks();
    }
}

lab_test! {
    fn running_daemon_keeps_the_kernel_out() {
        let device = Device::new();
        let container = LabNamespace::new("web").unwrap();
        let config = format!(
            r#"
            [[uplink]]
            name = "up0"
            device = "packet:hx"
            addresses = ["203.0.113.1/24", "2001:db8:1::1/64"]
            [[container]]
            name = "web"
            netns = "{}"
            device = "veth"
            tcp = [20080]
            "#,
            container.path().display()
        );
        let external = &device.topology.external;
        // Listeners of the kernel, on the very addresses that the NOS has.
        let listeners = own_addresses().map(|address| {
            let port = [20080, 22][usize::from(address.is_ipv6())];
            tcp::EchoServer::start(&device.topology.device, (address, port).into()).unwrap()
        });
        for _ in 0..2 {
            device.assert_kernel_speaks();
            let daemon = Daemon::start(&device.topology.device, &config);
            let outside = Wire::open(external, "xh");
            let inner = Wire::open(&device.behind, "eth0");
            for address in own_addresses() {
                // The NOS answers, once; nobody else does.
                assert!(ping(external, address, 1, LIMIT).unwrap()[0].is_reply());
                let error = tcp::connect(external, None, (address, 22).into(), LIMIT).unwrap_err();
                assert_eq!(error.kind(), Some(ErrorKind::ConnectionRefused), "{error}");
                let server = tcp::EchoServer::start(&container, (address, 20080).into()).unwrap();
                tcp::exchange(external, None, (address, 20080).into(), b"x", LIMIT).unwrap();
                assert_eq!(server.peers().len(), 1);
            }
            assert!(listeners.iter().all(|listener| listener.peers().is_empty()));
            for address in behind_addresses() {
                // The NOS has no route there. That the kernel has one makes no difference.
                let echo = ping(external, address, 1, LIMIT).unwrap()[0];
                assert!(matches!(echo, Echo::Error { code: 0, .. }), "{echo:?}");
            }
            let mac = daemon.uplink("up0").link.mac;
            for packet in outside.seen() {
                let of_nos = own_addresses().contains(&packet.source);
                assert!(packet.is_chatter() || (of_nos && packet.source_mac == mac), "{packet:?}");
            }
            assert!(inner.seen().iter().all(Seen::is_chatter));
            drop(daemon);
        }
        device.assert_kernel_speaks();
    }
}

fn device_mac(device: &Device) -> MacAddr {
    let uplink = device.topology.device.link("hx").unwrap().unwrap();
    uplink.mac.unwrap()
}

/// The other process of `killed_process_gives_the_interface_back`; no test by itself.
#[test]
#[ignore = "a part of another test"]
fn holder() {
    let Ok(interface) = std::env::var("TAKEOVER_HOLDER") else {
        return;
    };
    let _guard = Takeover::of(&Namespace::current().unwrap(), &interface).unwrap();
    println!("taken");
    // Until the parent dies or kills us.
    let _ = std::io::Read::read(&mut std::io::stdin(), &mut [0; 1]);
}
