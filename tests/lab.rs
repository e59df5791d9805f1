//! The lab builds what it promises, and leaves nothing behind.

mod support;

use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use nos_relay::attach::Namespace;
use nos_relay::lab::{LabError, LabNamespace, Topology, veth};
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
        assert!(opened.is_still_named());
        drop(lab);
        assert!(!opened.is_still_named());
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
