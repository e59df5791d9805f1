//! The container's side is put in place, kept up to date, and taken away without a trace.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use nos_relay::control::attach::{
    AttachError, AttachRequest, Attached, ContainerSide, ContainerSpec, DEFAULT_TX_QUEUE_LEN,
    Detachment, DeviceRequest, Families, Host, LinkPlace, Pace, Placement, VethPair, Warning,
    attach, close_all, detach_all, host_end_name, link, link_statistics, make_room,
};
use nos_relay::control::kernel::{InterfaceName, Namespace};
use nos_relay::data::device::LinkState;
use nos_relay::lab::testbed::{LabNamespace, tcp, tun_access, veth};
use nos_shim::ident::MacAddr;
use nos_shim::ports::{AddressMode, PortRange};
use support::{lab_test, skip};
use tun_tap::{Iface, Mode};

const LIMIT: Duration = Duration::from_secs(5);

struct Lab {
    host: LabNamespace,
    container: LabNamespace,
    /// The relay's side in `host`.
    relay: Host,
}

impl Lab {
    fn new() -> Self {
        let host = LabNamespace::new("host").unwrap();
        Self::beside(&host, "container")
    }

    /// Another container of the same host.
    fn beside(host: &LabNamespace, container: &str) -> Self {
        Self {
            relay: Host::open(host.namespace().clone()).unwrap(),
            host: host.clone(),
            container: LabNamespace::new(container).unwrap(),
        }
    }

    fn veth(&self, spec: &ContainerSpec) -> Result<VethPair, AttachError> {
        VethPair::create(
            &self.relay,
            self.container.namespace(),
            spec,
            MacAddr::stable("relay"),
        )
    }

    fn configure(&self, spec: ContainerSpec) -> Result<ContainerSide, AttachError> {
        let (side, _) = ContainerSide::configure(self.container.namespace(), spec)?;
        Ok(side)
    }

    /// What somebody in the container can see of the parts that attaching touches.
    fn snapshot(&self) -> Vec<String> {
        let container = &self.container;
        let mut lines = vec![
            container
                .read_sysctl("net/ipv4/ip_local_port_range")
                .unwrap(),
        ];
        let addresses: BTreeSet<_> = container.addresses("lo").unwrap().into_iter().collect();
        lines.extend(addresses.iter().map(ToString::to_string));
        for file in ["route", "ipv6_route"] {
            let path = format!("/proc/thread-self/net/{file}");
            let text = container
                .run(|| std::fs::read_to_string(path).unwrap())
                .unwrap();
            // Link-local and multicast routes come and go with the carrier, at the kernel's pace. Of
            // each table that there ever was the kernel shows the end.
            let lasting = text.lines().filter(|line| {
                !line.starts_with("fe80")
                    && !line.starts_with("ff00")
                    && !line.contains(" ffffffff ")
            });
            // Columns of counters change by themselves.
            let stable = lasting.map(|line| match file {
                "ipv6_route" => [&line[..118], &line[136..]].concat(),
                _ => line.to_owned(),
            });
            lines.extend(stable);
        }
        lines.extend(container.rules().unwrap());
        let link = container.link("eth0").unwrap();
        lines.extend(
            link.map(|link| format!("{:?} {} {} {}", link.mac, link.mtu, link.up, link.index)),
        );
        lines
    }

    /// The address and port from which the container would send to `remote`.
    fn source(&self, remote: &str) -> std::io::Result<SocketAddr> {
        let remote: SocketAddr = remote.parse().unwrap();
        let connect = || {
            let any: IpAddr = if remote.is_ipv4() {
                [0; 4].into()
            } else {
                [0; 16].into()
            };
            let socket = UdpSocket::bind((any, 0))?;
            socket.connect(remote)?;
            socket.local_addr()
        };
        self.container.run(connect).unwrap()
    }
}

fn addresses(list: &[&str]) -> Vec<IpAddr> {
    list.iter().map(|text| text.parse().unwrap()).collect()
}

fn networks(list: &[&str]) -> Arc<[IpNet]> {
    list.iter().map(|text| text.parse().unwrap()).collect()
}

fn ports(list: &[&str]) -> Vec<PortRange> {
    list.iter().map(|text| text.parse().unwrap()).collect()
}

fn spec() -> ContainerSpec {
    ContainerSpec {
        name: "web".to_owned(),
        interface: eth0(),
        mac: MacAddr::stable("web"),
        mtu: 1400,
        tx_queue_len: DEFAULT_TX_QUEUE_LEN,
        mode: AddressMode::Shared,
        addresses: addresses(&["203.0.113.1", "2001:db8:1::1"]),
        networks: networks(&["203.0.113.0/24", "2001:db8:1::/64"]),
        link_local: None,
        router: MacAddr::stable("relay").link_local(),
        ephemeral: ports(&["40000-44999"]),
        opens_flows: true,
        company: Default::default(),
        link_addresses: Vec::new(),
        place: LinkPlace::Alone,
    }
}

fn eth0() -> InterfaceName {
    "eth0".parse().unwrap()
}

/// Opens a TAP as the device module does: on a thread inside. `None` where there is no way.
fn tap(lab: &Lab) -> Option<Iface> {
    if let Err(error) = tun_access() {
        skip(&format!("TAP: /dev/net/tun cannot be opened: {error}"));
        return None;
    }
    let open = || Iface::without_packet_info("eth0", Mode::Tap).unwrap();
    Some(lab.container.run(open).unwrap())
}

fn assert_configured(lab: &Lab) {
    let lo = lab.container.addresses("lo").unwrap();
    assert!(lo.contains(&"203.0.113.1/32".parse().unwrap()), "{lo:?}");
    assert!(lo.contains(&"2001:db8:1::1/128".parse().unwrap()), "{lo:?}");
    assert!(lab.container.link("lo").unwrap().unwrap().up);

    let eth0 = lab.container.link("eth0").unwrap().unwrap();
    assert_eq!(eth0.mac, Some(MacAddr::stable("web")));
    assert_eq!((eth0.mtu, eth0.tx_queue_len, eth0.up), (1400, 4096, true));
    assert_eq!(eth0.alias.as_deref(), Some("nos-relay:web"));

    for (remote, expected) in [
        ("198.51.100.9:53", "203.0.113.1"),
        ("[2001:db8:ffff::9]:53", "2001:db8:1::1"),
    ] {
        let source = lab.source(remote).unwrap();
        assert_eq!(source.ip(), expected.parse::<IpAddr>().unwrap());
        assert!((40000..=44999).contains(&source.port()), "{source}");
    }
}

lab_test! {
    fn tap_is_configured_and_undone() {
        let lab = Lab::new();
        let before = lab.snapshot();
        make_room(&lab.relay, lab.container.namespace(), &eth0()).unwrap();
        let Some(device) = tap(&lab) else { return };
        let side = lab.configure(spec()).unwrap();
        assert_configured(&lab);
        side.detach().unwrap();
        drop(device);
        assert_eq!(lab.snapshot(), before);
    }
}

lab_test! {
    fn veth_is_configured_and_undone() {
        let lab = Lab::new();
        let before = lab.snapshot();
        let pair = lab.veth(&spec()).unwrap();
        let side = lab.configure(spec()).unwrap();
        assert_configured(&lab);

        assert_eq!(pair.host_interface(), host_end_name("web"));
        let host_end = link(lab.host.namespace(), pair.host_interface()).unwrap().unwrap();
        assert_eq!(host_end.mac, Some(MacAddr::stable("relay")));
        assert_eq!((host_end.mtu, host_end.tx_queue_len, host_end.up), (1400, 4096, true));
        assert_eq!(host_end.index, pair.host_index());
        lab.host.wait_operational(pair.host_interface(), LIMIT).unwrap();
        lab.container.wait_operational("eth0", LIMIT).unwrap();

        side.detach().unwrap();
        pair.detach().unwrap();
        assert_eq!(lab.snapshot(), before);
        assert!(lab.host.link(&host_end_name("web")).unwrap().is_none());
    }
}

lab_test! {
    fn kernel_does_not_speak_on_the_host_end() {
        let lab = Lab::new();
        // As on a machine with addresses of its own, which forwards.
        lab.host.add_address("lo", "192.0.2.7/32".parse().unwrap()).unwrap();
        lab.host.sysctl("net/ipv4/ip_forward", "1").unwrap();
        let pair = lab.veth(&spec()).unwrap();
        let side = lab.configure(spec()).unwrap();
        lab.host.wait_operational(pair.host_interface(), LIMIT).unwrap();
        assert_eq!(lab.host.addresses(pair.host_interface()).unwrap(), []);
        // ARP for any address of its own the kernel would answer at once, on any interface.
        let ask = || {
            let socket = UdpSocket::bind("203.0.113.1:0").unwrap();
            socket.send_to(b"x", "192.0.2.7:9").unwrap();
        };
        lab.container.run(ask).unwrap();
        let statistics = link_statistics(lab.host.namespace(), pair.host_interface()).unwrap();
        assert!(statistics.rx_packets > 0, "{statistics:?}");
        assert_eq!(statistics.tx_packets, 0, "{statistics:?}");
        drop((side, pair));
    }
}

lab_test! {
    fn link_local_address_needs_no_detection() {
        let lab = Lab::new();
        let _pair = lab.veth(&spec()).unwrap();
        let _side = lab.configure(spec()).unwrap();
        let address = MacAddr::stable("web").link_local();
        let index = lab.container.link("eth0").unwrap().unwrap().index;
        // Binding to a tentative address fails.
        let bind = || UdpSocket::bind(std::net::SocketAddrV6::new(address, 0, 0, index));
        lab.container.run(bind).unwrap().unwrap();
    }
}

lab_test! {
    fn doing_it_again_changes_nothing() {
        let lab = Lab::new();
        let _pair = lab.veth(&spec()).unwrap();
        let mut side = lab.configure(spec()).unwrap();
        let before = lab.snapshot();
        side.update(spec()).unwrap();
        assert_eq!(lab.snapshot(), before);
        let again = lab.configure(spec()).unwrap();
        assert_eq!(lab.snapshot(), before);
        again.abandon();
    }
}

lab_test! {
    fn damage_from_inside_is_repaired() {
        let lab = Lab::new();
        let _pair = lab.veth(&spec()).unwrap();
        let mut side = lab.configure(spec()).unwrap();
        // Down takes the routes away.
        lab.container.set_down("eth0").unwrap();
        lab.container.set_up("eth0").unwrap();
        lab.container.set_mtu("eth0", 1300).unwrap();
        lab.container.sysctl("net/ipv4/ip_local_port_range", "1024 65535").unwrap();
        side.update(spec()).unwrap();
        assert_configured(&lab);
    }
}

lab_test! {
    fn update_changes_only_what_differs() {
        let lab = Lab::new();
        let before = lab.snapshot();
        let pair = lab.veth(&spec()).unwrap();
        let mut side = lab.configure(spec()).unwrap();
        // From another address of the container's, so that it does not wait for a relay.
        let (other, shared) = ("127.0.0.1:0".parse().unwrap(), "203.0.113.1:20080".parse().unwrap());
        let listener = lab.container.run(|| TcpListener::bind::<SocketAddr>(shared).unwrap()).unwrap();
        let mut near = tcp::connect(&lab.container, Some(other), shared, LIMIT).unwrap();
        let (mut far, _) = listener.accept().unwrap();

        let changed = ContainerSpec {
            addresses: addresses(&["198.51.100.7", "203.0.113.1", "2001:db8:1::7"]),
            mtu: 1350,
            ephemeral: ports(&["50000-50999"]),
            ..spec()
        };
        side.update(changed).unwrap();
        let lo = lab.container.addresses("lo").unwrap();
        assert!(lo.contains(&"198.51.100.7/32".parse().unwrap()), "{lo:?}");
        assert!(lo.contains(&"2001:db8:1::7/128".parse().unwrap()), "{lo:?}");
        assert!(!lo.contains(&"2001:db8:1::1/128".parse().unwrap()), "{lo:?}");
        assert_eq!(lab.container.link("eth0").unwrap().unwrap().mtu, 1350);
        let v4 = lab.source("192.0.2.1:53").unwrap();
        assert_eq!(v4.ip(), "198.51.100.7".parse::<IpAddr>().unwrap());
        assert!((50000..=50999).contains(&v4.port()));
        let v6 = lab.source("[2001:db8:ffff::9]:53").unwrap();
        assert_eq!(v6.ip(), "2001:db8:1::7".parse::<IpAddr>().unwrap());

        far.set_read_timeout(Some(LIMIT)).unwrap();
        near.write_all(b"alive").unwrap();
        let mut octets = [0; 5];
        far.read_exact(&mut octets).unwrap();
        assert_eq!(&octets, b"alive");
        drop((near, far));

        // A family that has no addresses any more has no way out either.
        side.update(ContainerSpec { addresses: addresses(&["203.0.113.1"]), ..spec() }).unwrap();
        assert!(lab.source("[2001:db8:ffff::9]:53").is_err());
        assert_eq!(lab.source("192.0.2.1:53").unwrap().ip(), addresses(&["203.0.113.1"])[0]);

        side.detach().unwrap();
        pair.detach().unwrap();
        assert_eq!(lab.snapshot(), before);
    }
}

lab_test! {
    fn update_keeps_name_and_interface() {
        let lab = Lab::new();
        let _pair = lab.veth(&spec()).unwrap();
        let mut side = lab.configure(spec()).unwrap();
        let other = ContainerSpec { name: "db".to_owned(), ..spec() };
        assert!(matches!(side.update(other), Err(AttachError::Identity(_))));
        assert_configured(&lab);
    }
}

lab_test! {
    fn leftover_of_a_killed_run_is_replaced() {
        let lab = Lab::new();
        let before = lab.snapshot();
        let old = ContainerSpec {
            addresses: addresses(&["203.0.113.1", "198.51.100.200", "2001:db8:1::200"]),
            ephemeral: ports(&["50000-50999"]),
            ..spec()
        };
        lab.veth(&old).unwrap().abandon();
        lab.configure(old).unwrap().abandon();

        let pair = lab.veth(&spec()).unwrap();
        let side = lab.configure(spec()).unwrap();
        assert_configured(&lab);
        let lo = lab.container.addresses("lo").unwrap();
        assert!(!lo.contains(&"198.51.100.200/32".parse().unwrap()), "{lo:?}");
        assert!(!lo.contains(&"2001:db8:1::200/128".parse().unwrap()), "{lo:?}");
        side.detach().unwrap();
        pair.detach().unwrap();
        assert_eq!(lab.snapshot(), before);
    }
}

lab_test! {
    fn leftover_under_another_name_or_container_is_replaced() {
        let lab = Lab::new();
        let elsewhere = Lab::beside(&lab.host, "old");
        // The same attachment in another namespace: its host end has the name we need.
        elsewhere.veth(&spec()).unwrap().abandon();
        // Another attachment in our namespace: its interface has the name we need.
        let renamed = ContainerSpec { name: "www".to_owned(), ..spec() };
        lab.veth(&renamed).unwrap().abandon();

        let _pair = lab.veth(&spec()).unwrap();
        let _side = lab.configure(spec()).unwrap();
        assert_configured(&lab);
        assert!(elsewhere.container.link("eth0").unwrap().is_none());
        assert!(lab.host.link(&host_end_name("www")).unwrap().is_none());
    }
}

lab_test! {
    fn living_owner_is_not_robbed() {
        let lab = Lab::new();
        let pair = lab.veth(&spec()).unwrap();
        let error = lab.veth(&spec()).unwrap_err();
        assert!(matches!(&error, AttachError::Held { owner, .. } if owner == "web"), "{error}");
        let renamed = ContainerSpec { name: "www".to_owned(), ..spec() };
        let error = lab.veth(&renamed).unwrap_err();
        assert!(matches!(&error, AttachError::Held { owner, .. } if owner == "web"), "{error}");
        assert!(lab.host.link(pair.host_interface()).unwrap().unwrap().up);
        assert!(lab.container.link("eth0").unwrap().is_some());
    }
}

lab_test! {
    fn living_tap_is_not_robbed() {
        let lab = Lab::new();
        let Some(_device) = tap(&lab) else { return };
        let _side = lab.configure(spec()).unwrap();
        let error = make_room(&lab.relay, lab.container.namespace(), &eth0()).unwrap_err();
        assert!(matches!(&error, AttachError::Held { owner, .. } if owner == "web"), "{error}");
    }
}

lab_test! {
    fn interface_of_others_is_an_error_that_names_it() {
        let lab = Lab::new();
        let other = LabNamespace::new("other").unwrap();
        veth((&lab.container, "eth0"), (&other, "far")).unwrap();
        let before = lab.snapshot();
        let error = lab.veth(&spec()).unwrap_err();
        assert!(matches!(error, AttachError::ForeignInterface { .. }));
        assert!(error.to_string().contains("interface eth0 (a veth)"), "{error}");
        assert_eq!(lab.snapshot(), before);
        assert!(lab.host.link(&host_end_name("web")).unwrap().is_none());
    }
}

lab_test! {
    fn addresses_of_others_stay() {
        let lab = Lab::new();
        lab.container.add_address("lo", "203.0.113.1/32".parse().unwrap()).unwrap();
        lab.container.add_address("lo", "192.0.2.55/32".parse().unwrap()).unwrap();
        let before = lab.snapshot();
        let pair = lab.veth(&spec()).unwrap();
        let side = lab.configure(spec()).unwrap();
        assert_configured(&lab);
        side.detach().unwrap();
        pair.detach().unwrap();
        assert_eq!(lab.snapshot(), before);
    }
}

lab_test! {
    fn default_route_of_others_is_an_error_and_all_is_undone() {
        let lab = Lab::new();
        let other = LabNamespace::new("other").unwrap();
        veth((&lab.container, "eth7"), (&other, "far")).unwrap();
        lab.container.add_address("eth7", "192.0.2.1/24".parse().unwrap()).unwrap();
        lab.container.add_route("0.0.0.0/0".parse().unwrap(), "192.0.2.2".parse().unwrap()).unwrap();
        let before = lab.snapshot();
        let pair = lab.veth(&spec()).unwrap();
        let error = lab.configure(spec()).unwrap_err();
        assert!(matches!(error, AttachError::ForeignRoute { .. }));
        assert!(error.to_string().contains("an IPv4 default route via 192.0.2.2"), "{error}");
        pair.detach().unwrap();
        assert_eq!(lab.snapshot(), before);
    }
}

lab_test! {
    fn disabled_ipv6_matters_only_where_ipv6_alone_is_asked_for() {
        let lab = Lab::new();
        lab.container.sysctl("net/ipv6/conf/all/disable_ipv6", "1").unwrap();
        let pair = lab.veth(&spec()).unwrap();
        let v6 = ContainerSpec { addresses: addresses(&["2001:db8:1::1"]), ..spec() };
        let error = lab.configure(v6).unwrap_err();
        assert!(matches!(error, AttachError::NoIpv6 { .. }));
        assert!(error.to_string().contains("2001:db8:1::1") && error.to_string().contains("disabled on lo"), "{error}");
        let v4 = ContainerSpec { addresses: addresses(&["203.0.113.1"]), ..spec() };
        let _side = lab.configure(v4).unwrap();
        assert_eq!(lab.source("192.0.2.1:53").unwrap().ip(), addresses(&["203.0.113.1"])[0]);
        drop(pair);
    }
}

/// The routes that carry our mark, as `ip` lists them.
fn our_routes(lab: &Lab) -> Vec<String> {
    let mut routes = Vec::new();
    for family in ["-4", "-6"] {
        let mut command = Command::new("ip");
        command.args([family, "route", "show", "proto", "206"]);
        let output = lab.container.hold(&mut command).output().unwrap();
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        routes.extend(text.lines().map(|line| line.trim_end().to_owned()));
    }
    routes
}

lab_test! {
    fn networks_of_the_nos_are_routes_that_come_and_go() {
        let lab = Lab::new();
        let before = lab.snapshot();
        let pair = lab.veth(&spec()).unwrap();
        let mut side = lab.configure(spec()).unwrap();
        lab.container.wait_operational("eth0", LIMIT).unwrap();
        let routes = [
            "default dev eth0 scope link src 203.0.113.1",
            "203.0.113.0/24 dev eth0 scope link src 203.0.113.1",
            "2001:db8:1::/64 dev eth0 src 2001:db8:1::1 metric 1024 pref medium",
            "default dev eth0 src 2001:db8:1::1 metric 1024 pref medium",
        ];
        assert_eq!(our_routes(&lab), routes);
        // The address that is in a network is the source towards it.
        let second = ContainerSpec {
            addresses: addresses(&["203.0.113.1", "2001:db8:1::1", "198.51.100.1"]),
            networks: networks(&["198.51.100.0/24", "203.0.113.0/24", "192.0.2.0/24"]),
            ..spec()
        };
        side.update(second.clone()).unwrap();
        assert_eq!(our_routes(&lab), [
            routes[0],
            "192.0.2.0/24 dev eth0 scope link src 203.0.113.1",
            "198.51.100.0/24 dev eth0 scope link src 198.51.100.1",
            routes[1],
            routes[3],
        ]);
        assert_eq!(lab.source("198.51.100.9:53").unwrap().ip(), addresses(&["198.51.100.1"])[0]);
        assert_eq!(lab.source("203.0.113.9:53").unwrap().ip(), addresses(&["203.0.113.1"])[0]);
        // Its address goes, and with it the kernel's route.
        side.update(ContainerSpec { addresses: spec().addresses, ..second }).unwrap();
        assert!(our_routes(&lab).contains(&"198.51.100.0/24 dev eth0 scope link src 203.0.113.1".to_owned()));
        side.update(spec()).unwrap();
        assert_eq!(our_routes(&lab), routes);
        assert!(!side.update(spec()).unwrap().changed);
        side.detach().unwrap();
        assert_eq!(our_routes(&lab), [""; 0]);
        pair.detach().unwrap();
        assert_eq!(lab.snapshot(), before);
    }
}

lab_test! {
    fn somebody_elses_route_to_a_network_stays_and_is_told() {
        let lab = Lab::new();
        let pair = lab.veth(&spec()).unwrap();
        let mut side = lab.configure(ContainerSpec { networks: networks(&[]), ..spec() }).unwrap();
        let via = "192.0.2.9".parse().unwrap();
        lab.container.add_route("203.0.113.0/24".parse().unwrap(), via).unwrap();
        let report = side.update(spec()).unwrap();
        let warnings: Vec<_> = report.warnings.iter().map(ToString::to_string).collect();
        let [warning] = &warnings[..] else { panic!("{warnings:?}") };
        assert!(warning.contains("an IPv4 route to 203.0.113.0/24 via 192.0.2.9"), "{warning}");
        assert!(our_routes(&lab).iter().all(|route| !route.starts_with("203.0.113.0/24")));
        side.detach().unwrap();
        pair.detach().unwrap();
    }
}

lab_test! {
    fn ephemeral_ranges_are_one_range_with_what_lies_between_reserved() {
        let lab = Lab::new();
        let reserved = || lab.container.read_sysctl("net/ipv4/ip_local_reserved_ports").unwrap();
        let range = || lab.container.read_sysctl("net/ipv4/ip_local_port_range").unwrap();
        // Somebody has reserved ports before, which stay reserved.
        lab.container.sysctl("net/ipv4/ip_local_reserved_ports", "8080,40005").unwrap();
        let before = lab.snapshot();
        let pair = lab.veth(&spec()).unwrap();
        let with = |list: &[&str]| ContainerSpec { ephemeral: ports(list), ..spec() };
        let mut side = lab.configure(with(&["40012-40014", "40000-40009"])).unwrap();
        assert_eq!((range(), reserved()), ("40000\t40014".to_owned(), "8080,40005,40010-40011".to_owned()));
        // Thirteen ports, of which one is another's: no more sockets than that find one.
        let bound: Vec<_> = (0..13).map_while(|_| {
            let bind = || std::net::UdpSocket::bind("203.0.113.1:0");
            lab.container.run(bind).unwrap().ok()
        }).collect();
        let mut given: Vec<u16> = bound.iter().map(|socket| socket.local_addr().unwrap().port()).collect();
        given.sort_unstable();
        let expected: Vec<u16> = (40000..=40014).filter(|port| ![40005, 40010, 40011].contains(port)).collect();
        assert_eq!(given, expected);
        drop(bound);
        // What somebody changes is put back.
        lab.container.sysctl("net/ipv4/ip_local_reserved_ports", "1").unwrap();
        assert!(side.update(with(&["40012-40014", "40000-40009"])).unwrap().changed);
        assert_eq!(reserved(), "8080,40005,40010-40011");
        assert!(!side.update(with(&["40012-40014", "40000-40009"])).unwrap().changed);
        // One range needs none.
        side.update(with(&["40000-40009"])).unwrap();
        assert_eq!((range(), reserved()), ("40000\t40009".to_owned(), "8080,40005".to_owned()));
        // Many do not fit into one page of text.
        let many: Vec<String> = (0..3000).map(|n| (40_000 + 2 * n).to_string()).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        side.update(with(&many)).unwrap();
        let gaps: Vec<String> = (0..2999).map(|n| (40_001 + 2 * n).to_string()).collect();
        assert_eq!(reserved(), format!("8080,{}", gaps.join(",")));
        side.detach().unwrap();
        pair.detach().unwrap();
        assert_eq!(lab.snapshot(), before);
        assert_eq!(reserved(), "8080,40005");
    }
}

lab_test! {
    fn reserved_ports_of_a_killed_run_are_not_taken_for_somebodys() {
        let lab = Lab::new();
        let reserved = || lab.container.read_sysctl("net/ipv4/ip_local_reserved_ports").unwrap();
        lab.container.sysctl("net/ipv4/ip_local_reserved_ports", "8080").unwrap();
        let before = lab.snapshot();
        for next in [&["50000-50999"][..], &["50000-50010", "50020-50030"]] {
            let old = ContainerSpec { ephemeral: ports(&["40000-40010", "40020-40030"]), ..spec() };
            lab.veth(&old).unwrap().abandon();
            lab.configure(old).unwrap().abandon();
            assert_eq!(reserved(), "8080,40011-40019");
            let pair = lab.veth(&spec()).unwrap();
            let side = lab.configure(ContainerSpec { ephemeral: ports(next), ..spec() }).unwrap();
            let expected = if next.len() == 1 { "8080" } else { "8080,50011-50019" };
            assert_eq!(reserved(), expected);
            side.detach().unwrap();
            pair.detach().unwrap();
            assert_eq!(lab.snapshot(), before);
            assert_eq!(reserved(), "8080");
        }
    }
}

lab_test! {
    fn bad_specs_are_refused() {
        let lab = Lab::new();
        let _pair = lab.veth(&spec()).unwrap();
        let small = lab.configure(ContainerSpec { mtu: 1279, ..spec() });
        assert!(matches!(small, Err(AttachError::MtuTooSmall { mtu: 1279, .. })));
        let odd = lab.configure(ContainerSpec { addresses: addresses(&["224.0.0.1"]), ..spec() });
        assert!(matches!(odd, Err(AttachError::NotUnicast(_))));
        // Below ip_unprivileged_port_start the kernel refuses.
        let low = lab.configure(ContainerSpec { ephemeral: ports(&["100-200"]), ..spec() });
        let text = low.unwrap_err().to_string();
        assert!(text.contains("ip_local_port_range to '100 200'"), "{text}");
    }
}

lab_test! {
    fn missing_interface_is_named() {
        let lab = Lab::new();
        let before = lab.snapshot();
        let error = lab.configure(spec()).unwrap_err().to_string();
        assert!(error.contains("interface eth0 in namespace 'container'"), "{error}");
        assert_eq!(lab.snapshot(), before);
    }
}

lab_test! {
    fn detach_from_a_container_in_ruins() {
        let lab = Lab::new();
        let pair = lab.veth(&spec()).unwrap();
        let side = lab.configure(spec()).unwrap();
        lab.container.delete_link("eth0").unwrap();
        lab.container.set_down("lo").unwrap();
        side.detach().unwrap();
        pair.detach().unwrap();
        let lo = lab.container.addresses("lo").unwrap();
        assert!(!lo.contains(&"203.0.113.1/32".parse().unwrap()), "{lo:?}");
    }
}

lab_test! {
    fn detach_from_a_container_that_is_gone() {
        let host = LabNamespace::new("host").unwrap();
        let lab = Lab::beside(&host, "container");
        let pair = lab.veth(&spec()).unwrap();
        let name = pair.host_interface().to_owned();
        lab.configure(spec()).unwrap().abandon();
        // The last reference to the namespace: the kernel deletes it, and the pair with it.
        drop(lab);
        host.wait_link(&name, "gone", LIMIT, |link| link.is_none()).unwrap();
        pair.detach().unwrap();
    }
}

lab_test! {
    fn statistics_show_what_a_full_tap_queue_dropped() {
        let lab = Lab::new();
        let Some(_device) = tap(&lab) else { return };
        let _side = lab.configure(ContainerSpec { tx_queue_len: 16, ..spec() }).unwrap();
        let remote = "198.51.100.9".parse().unwrap();
        lab.container.add_neighbor("eth0", remote, MacAddr::stable("relay")).unwrap();
        let flood = || {
            let socket = UdpSocket::bind("203.0.113.1:0").unwrap();
            for _ in 0..200 {
                socket.send_to(b"x", (remote, 9)).unwrap();
            }
        };
        lab.container.run(flood).unwrap();
        let statistics = link_statistics(lab.container.namespace(), "eth0").unwrap();
        assert!(statistics.tx_dropped > 100, "{statistics:?}");
    }
}

// Attaching whole containers

/// Each way to attach that this kernel gives.
fn ways() -> Vec<(DeviceRequest, Placement)> {
    let relay_mac = MacAddr::stable("relay");
    let veth = (
        DeviceRequest::Veth {
            relay_mac,
            bridge: None,
        },
        Placement::Inside,
    );
    if let Err(error) = tun_access() {
        skip(&format!("TAP: /dev/net/tun cannot be opened: {error}"));
        return vec![veth];
    }
    vec![
        (DeviceRequest::Tap, Placement::Inside),
        (DeviceRequest::Tap, Placement::Moved),
        veth,
    ]
}

impl Lab {
    /// The container by a name that leads to it as long as this value lives.
    fn named(&self) -> Namespace {
        Namespace::open(self.container.path()).unwrap()
    }

    fn attach(
        &self,
        spec: ContainerSpec,
        way: &(DeviceRequest, Placement),
    ) -> Result<Attached, AttachError> {
        let (device, placement) = way.clone();
        let request = AttachRequest {
            spec,
            device,
            offload: true,
            placement,
        };
        attach(&self.relay, &self.named(), request)
    }

    fn detach(&self, attached: Attached) {
        let outcomes = detach_all(&self.relay, vec![attached.into_detachment()], Pace::AtOnce);
        assert!(matches!(outcomes[..], [Ok(())]), "{outcomes:?}");
    }

    /// A socket that receives all news of links, addresses and routes inside.
    fn news(&self) -> OwnedFd {
        // RTMGRP_LINK, RTMGRP_IPV4_IFADDR and _ROUTE, RTMGRP_IPV6_IFADDR and _ROUTE.
        const ALL: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;
        self.container
            .run(|| {
                let news = socket(
                    AddressFamily::Netlink,
                    SockType::Raw,
                    SockFlag::SOCK_NONBLOCK,
                    SockProtocol::NetlinkRoute,
                )
                .unwrap();
                bind(news.as_raw_fd(), &NetlinkAddr::new(0, ALL)).unwrap();
                news
            })
            .unwrap()
    }

    fn has_way_out(&self, remote: &str) -> bool {
        self.source(remote).is_ok()
    }
}

const OUTSIDE: [&str; 2] = ["198.51.100.9:53", "[2001:db8:ffff::9]:53"];
const BOTH: Families = Families {
    ipv4: true,
    ipv6: true,
};

lab_test! {
    fn every_way_attaches_and_leaves_no_trace() {
        let lab = Lab::new();
        let before = lab.snapshot();
        for way in ways() {
            let attached = lab.attach(spec(), &way).unwrap();
            assert_configured(&lab);
            let eth0 = lab.container.link("eth0").unwrap().unwrap();
            let report = &attached.report;
            assert_eq!((report.interface.as_str(), report.index, report.mtu), ("eth0", eth0.index, 1400));
            assert_eq!((report.up, report.families, report.changed), (true, BOTH, true));
            assert_eq!(report.warnings, []);
            assert_eq!(attached.veth.is_some(), matches!(way.0, DeviceRequest::Veth { .. }));
            lab.detach(attached);
            assert_eq!(lab.snapshot(), before, "{way:?}");
            assert!(lab.host.link(&host_end_name("web")).unwrap().is_none());
        }
    }
}

lab_test! {
    fn a_failed_attachment_leaves_no_trace() {
        let lab = Lab::new();
        let other = LabNamespace::new("other").unwrap();
        veth((&lab.container, "eth7"), (&other, "far")).unwrap();
        lab.container.add_address("eth7", "192.0.2.1/24".parse().unwrap()).unwrap();
        lab.container.add_route("0.0.0.0/0".parse().unwrap(), "192.0.2.2".parse().unwrap()).unwrap();
        let before = lab.snapshot();
        for way in ways() {
            let error = lab.attach(spec(), &way).unwrap_err();
            assert!(matches!(error, AttachError::ForeignRoute { .. }), "{error}");
            assert_eq!(lab.snapshot(), before, "{way:?}");
            assert!(lab.host.link(&host_end_name("web")).unwrap().is_none());
        }
    }
}

lab_test! {
    fn only_a_tap_opened_inside_keeps_the_namespace_alive() {
        if ways().len() < 2 { return };
        let lab = Lab::new();
        let attached = lab.attach(spec(), &(DeviceRequest::Tap, Placement::Inside)).unwrap();
        let moved = Lab::beside(&lab.host, "moved");
        let other = ContainerSpec { name: "db".to_owned(), ..spec() };
        let attached_moved = moved.attach(other, &(DeviceRequest::Tap, Placement::Moved)).unwrap();
        let [inside, outside] = [attached.device, attached_moved.device];
        drop((lab, moved));
        let gone = |device: &dyn nos_relay::data::device::FrameDevice| {
            let mut fds = [PollFd::new(device.fd().unwrap(), PollFlags::POLLPRI)];
            let ready = poll(&mut fds, PollTimeout::from(5000_u16)).unwrap();
            assert_eq!(ready, 1, "the interface lives on");
        };
        // The kernel deletes the interface with the namespace, and wakes who polls the device.
        while outside.inspector().link() != LinkState::Gone {
            gone(&*outside);
        }
        assert_eq!(inside.inspector().link(), LinkState::Up);
        close_all(vec![inside, outside], Pace::AtOnce);
    }
}

lab_test! {
    fn many_are_detached_at_once_and_none_keeps_the_others() {
        let host = LabNamespace::new("host").unwrap();
        let ways = ways();
        let mut labs: Vec<_> = (0..12).map(|_| Lab::beside(&host, "container")).collect();
        let before: Vec<_> = labs.iter().map(Lab::snapshot).collect();
        let detachments: Vec<Detachment> = labs.iter().enumerate().map(|(number, lab)| {
            let numbered = ContainerSpec { name: format!("web{number}"), ..spec() };
            lab.attach(numbered, &ways[number % ways.len()]).unwrap().into_detachment()
        }).collect();
        // One has lost its interface, another its name; the others are well.
        labs[1].container.set_down("eth0").unwrap();
        let last = ways.len() - 1;
        labs[last].container.delete_link("eth0").unwrap();
        let mut gone = labs.pop().unwrap();
        gone.container = LabNamespace::new("successor").unwrap();
        let outcomes = detach_all(&labs[0].relay, detachments, Pace::BesideTraffic);
        assert_eq!(outcomes.len(), 12);
        let (lost, kept) = outcomes.split_last().unwrap();
        assert!(lost.as_ref().is_err_and(AttachError::is_namespace_gone), "{lost:?}");
        for (number, (outcome, lab)) in kept.iter().zip(&labs).enumerate() {
            assert!(outcome.is_ok(), "{number}: {outcome:?}");
            assert_eq!(lab.snapshot(), before[number], "{number}");
            assert!(host.link(&host_end_name(&format!("web{number}"))).unwrap().is_none());
        }
        // Of the one without a name, the pair or the device went all the same.
        assert!(host.link(&host_end_name("web11")).unwrap().is_none());
    }
}

lab_test! {
    fn detaching_many_leaves_groups_of_others_alone() {
        let host = LabNamespace::new("host").unwrap();
        let far = LabNamespace::new("far").unwrap();
        veth((&host, "other"), (&far, "eth0")).unwrap();
        // The very group that would be chosen first.
        host.set_group("other", 0x6e72_0000).unwrap();
        let labs: Vec<_> = (0..6).map(|_| Lab::beside(&host, "container")).collect();
        let way = (DeviceRequest::Veth { relay_mac: MacAddr::stable("relay"), bridge: None }, Placement::Inside);
        let detachments: Vec<_> = labs.iter().enumerate().map(|(number, lab)| {
            let numbered = ContainerSpec { name: format!("web{number}"), ..spec() };
            lab.attach(numbered, &way).unwrap().into_detachment()
        }).collect();
        for outcome in detach_all(&labs[0].relay, detachments, Pace::BesideTraffic) {
            outcome.unwrap();
        }
        assert!(host.link("other").unwrap().is_some());
        for number in 0..6 {
            assert!(host.link(&host_end_name(&format!("web{number}"))).unwrap().is_none());
        }
    }
}

lab_test! {
    fn without_ipv6_a_container_has_ipv4_until_ipv6_comes() {
        for way in ways() {
            let lab = Lab::new();
            // As docker does.
            for interface in ["all", "default", "lo"] {
                lab.container.sysctl(&format!("net/ipv6/conf/{interface}/disable_ipv6"), "1").unwrap();
            }
            let mut attached = lab.attach(spec(), &way).unwrap();
            let [Warning::NoIpv6 { address, reason }] = &attached.report.warnings[..] else {
                panic!("{:?}", attached.report);
            };
            assert_eq!(*address, "2001:db8:1::1".parse::<IpAddr>().unwrap());
            assert!(reason.contains("net/ipv6/conf/lo/disable_ipv6"), "{reason}");
            assert_eq!(attached.report.families, Families { ipv4: true, ipv6: false });
            assert_eq!(lab.source(OUTSIDE[0]).unwrap().ip(), addresses(&["203.0.113.1"])[0]);
            assert!(!lab.has_way_out(OUTSIDE[1]));
            // As long as nothing changes, there is nothing to do.
            let report = attached.side.repair().unwrap();
            assert!(!report.changed && report.warnings.len() == 1, "{report:?}");

            lab.container.sysctl("net/ipv6/conf/all/disable_ipv6", "0").unwrap();
            let report = attached.side.repair().unwrap();
            assert_eq!((report.changed, report.families, report.warnings), (true, BOTH, Vec::new()));
            assert_configured(&lab);
            lab.detach(attached);
        }
    }
}

lab_test! {
    fn ipv6_that_is_off_on_the_interface_alone_is_noticed() {
        let lab = Lab::new();
        lab.container.sysctl("net/ipv6/conf/default/disable_ipv6", "1").unwrap();
        for way in ways() {
            let attached = lab.attach(spec(), &way).unwrap();
            let [Warning::NoIpv6 { reason, .. }] = &attached.report.warnings[..] else {
                panic!("{:?}", attached.report);
            };
            assert!(reason.contains("net/ipv6/conf/eth0/disable_ipv6"), "{reason}");
            assert!(lab.has_way_out(OUTSIDE[0]) && !lab.has_way_out(OUTSIDE[1]));
            lab.detach(attached);
        }
        let v6 = ContainerSpec { addresses: addresses(&["2001:db8:1::1"]), ..spec() };
        let before = lab.snapshot();
        for way in ways() {
            let error = lab.attach(v6.clone(), &way).unwrap_err();
            assert!(matches!(error, AttachError::NoIpv6 { .. }), "{error}");
            assert_eq!(lab.snapshot(), before, "{way:?}");
        }
    }
}

lab_test! {
    fn the_relays_own_namespace_is_refused() {
        let lab = Lab::new();
        let mut child = Command::new("cat");
        child.stdin(Stdio::piped()).stdout(Stdio::null());
        let mut child = lab.host.spawn(child).unwrap();
        let host = Lab { container: lab.host.clone(), ..Lab::beside(&lab.host, "unused") };
        let before = host.snapshot();
        for own in [Namespace::open(lab.host.path()).unwrap(), Namespace::of_process(child.id()).unwrap()] {
            for (device, placement) in ways() {
                let request = AttachRequest { spec: spec(), device, offload: true, placement };
                let error = attach(&lab.relay, &own, request).unwrap_err();
                assert!(matches!(error, AttachError::OwnNamespace { .. }), "{error}");
                assert!(error.to_string().contains("is nos-relay's own"), "{error}");
            }
        }
        assert_eq!(host.snapshot(), before);
        drop(child.stdin.take());
        child.wait().unwrap();
    }
}

lab_test! {
    fn a_renamed_interface_is_still_ours() {
        for way in ways() {
            let lab = Lab::new();
            let mut attached = lab.attach(spec(), &way).unwrap();
            let index = attached.report.index;
            lab.container.set_down("eth0").unwrap();
            lab.container.rename("eth0", "wan").unwrap();
            lab.container.set_mtu("wan", 1300).unwrap();
            lab.container.set_up("wan").unwrap();
            let report = attached.side.repair().unwrap();
            assert_eq!((report.interface.as_str(), report.index), ("wan", index));
            assert_eq!((report.up, report.mtu, report.changed), (true, 1400, true));
            assert_eq!(lab.container.link("wan").unwrap().unwrap().mtu, 1400);
            assert!(OUTSIDE.iter().all(|remote| lab.has_way_out(remote)));
            assert!(!attached.side.repair().unwrap().changed);
            lab.detach(attached);
            assert!(lab.container.link("wan").unwrap().is_none());
        }
    }
}

lab_test! {
    fn an_interface_that_comes_back_with_another_index_is_known_by_its_mark() {
        for way in ways() {
            let lab = Lab::new();
            let mut attached = lab.attach(spec(), &way).unwrap();
            let before = attached.report.index;
            // Where its index is taken, it gets another one, and keeps that on its way back.
            let (elsewhere, far) = (LabNamespace::new("elsewhere").unwrap(), LabNamespace::new("far").unwrap());
            veth((&elsewhere, "other"), (&far, "eth0")).unwrap();
            lab.container.move_link("eth0", &elsewhere).unwrap();
            let missing = attached.side.repair().unwrap_err().to_string();
            assert!(missing.contains("look up interface eth0"), "{missing}");
            elsewhere.move_link("eth0", &lab.container).unwrap();
            lab.container.set_up("eth0").unwrap();
            let report = attached.side.repair().unwrap();
            assert_ne!(report.index, before);
            assert_eq!((report.index, report.up), (attached.side.index(), true));
            assert_configured(&lab);
            lab.detach(attached);
        }
    }
}

lab_test! {
    fn an_interface_that_somebody_set_down_stays_down() {
        for way in ways() {
            let lab = Lab::new();
            let mut attached = lab.attach(spec(), &way).unwrap();
            lab.container.set_down("eth0").unwrap();
            for _ in 0..2 {
                let report = attached.side.repair().unwrap();
                assert_eq!((report.up, report.families), (false, Families::default()));
                assert!(!lab.container.link("eth0").unwrap().unwrap().up);
                assert!(!lab.has_way_out(OUTSIDE[0]));
            }
            lab.container.set_up("eth0").unwrap();
            let report = attached.side.repair().unwrap();
            assert_eq!((report.up, report.families, report.changed), (true, BOTH, true));
            assert_configured(&lab);
        }
    }
}

lab_test! {
    fn what_vanished_is_put_back_and_what_others_made_stays() {
        for way in ways() {
            let lab = Lab::new();
            let mut attached = lab.attach(spec(), &way).unwrap();
            let container = &lab.container;
            container.delete_default_route("eth0", "203.0.113.1".parse().unwrap()).unwrap();
            container.delete_address("lo", "2001:db8:1::1/128".parse().unwrap()).unwrap();
            container.add_address("eth0", "192.0.2.1/24".parse().unwrap()).unwrap();
            container.add_address("lo", "192.0.2.55/32".parse().unwrap()).unwrap();
            container.add_route("198.51.100.0/24".parse().unwrap(), "192.0.2.2".parse().unwrap()).unwrap();
            assert!(attached.side.repair().unwrap().changed);
            assert_configured_except_source(&lab);
            assert!(container.addresses("eth0").unwrap().contains(&"192.0.2.1/24".parse().unwrap()));
            assert!(container.addresses("lo").unwrap().contains(&"192.0.2.55/32".parse().unwrap()));
            // By the route of others.
            assert_eq!(lab.source(OUTSIDE[0]).unwrap().ip(), addresses(&["192.0.2.1"])[0]);
        }
    }
}

lab_test! {
    fn after_down_and_up_a_repair_is_all_it_takes() {
        for way in ways() {
            let host = LabNamespace::new("host").unwrap();
            // With duplicate address detection, as outside of a lab.
            let container = LabNamespace::untouched("container").unwrap();
            let lab = Lab { container, ..Lab::beside(&host, "unused") };
            let mut attached = lab.attach(spec(), &way).unwrap();
            lab.container.wait_operational("eth0", LIMIT).unwrap();
            lab.container.set_down("eth0").unwrap();
            lab.container.set_up("eth0").unwrap();
            lab.container.wait_operational("eth0", LIMIT).unwrap();
            assert!(attached.side.repair().unwrap().changed);
            assert_configured(&lab);
            // Binding to a tentative address fails.
            let local = std::net::SocketAddrV6::new(MacAddr::stable("web").link_local(), 0, 0, attached.report.index);
            lab.container.run(|| UdpSocket::bind(local)).unwrap().unwrap();
        }
    }
}

/// Both families have a way out, by the shared addresses.
fn assert_configured_except_source(lab: &Lab) {
    for (remote, expected) in [
        ("8.8.8.8:53", "203.0.113.1"),
        ("[2001:db8:ffff::9]:53", "2001:db8:1::1"),
    ] {
        let source = lab.source(remote).unwrap();
        assert_eq!(source.ip(), expected.parse::<IpAddr>().unwrap());
    }
}

lab_test! {
    fn a_healthy_container_is_only_read() {
        for way in ways() {
            let lab = Lab::new();
            let mut attached = lab.attach(spec(), &way).unwrap();
            lab.container.wait_operational("eth0", LIMIT).unwrap();
            let news = lab.news();
            for _ in 0..3 {
                let report = attached.side.repair().unwrap();
                assert_eq!((report.changed, report.up, report.families), (false, true, BOTH));
            }
            // The kernel tells of a change before it acknowledges it.
            let heard = recv(news.as_raw_fd(), &mut [0; 4096], MsgFlags::empty());
            assert_eq!(heard, Err(nix::Error::EAGAIN), "{way:?}");
            // It would have been heard.
            lab.container.set_mtu("eth0", 1300).unwrap();
            assert!(recv(news.as_raw_fd(), &mut [0; 4096], MsgFlags::empty()).is_ok());
        }
    }
}

lab_test! {
    fn attaching_drops_no_packet() {
        for way in ways() {
            // The kernel's first packets raced with the interface coming up.
            for _ in 0..20 {
                let lab = Lab::new();
                // As outside of a lab.
                lab.container.sysctl("net/ipv6/conf/default/router_solicitations", "3").unwrap();
                let attached = lab.attach(spec(), &way).unwrap();
                // It has announced the link-local address (RFC 4861 section 6.3.7).
                let mut fds = [PollFd::new(attached.device.fd().unwrap(), PollFlags::POLLIN)];
                poll(&mut fds, PollTimeout::from(5000_u16)).unwrap();
                let statistics = link_statistics(lab.container.namespace(), "eth0").unwrap();
                assert_eq!(statistics.tx_dropped, 0, "{way:?}");
                lab.detach(attached);
            }
        }
    }
}
