//! MLD: who is reached behind a switch that snoops, and what is said there.

use std::net::{IpAddr, Ipv6Addr, UdpSocket};

use nos_relay::lab::testbed::Topology;
use nos_relay::lab::testbed::ping::ping;
use nos_shim::ident::MacAddr;
use nos_shim::ndp::solicited_node;

use crate::message::Told;
use crate::network::{LATER, NOS, Network, PLAIN_LATER, PORT, Querier, until};
use crate::support::daemon::{Daemon, LIMIT};
use crate::support::lab_test;
use crate::support::scenario::{Scenario, Variant};
use crate::support::wire::{Seen, Wire};

fn group(address: Ipv6Addr) -> IpAddr {
    solicited_node(address).into()
}

const REPORT_V1: u8 = 131;
const DONE: u8 = 132;
const REPORT_V2: u8 = 143;

/// With another address, or without.
fn config(later: bool) -> String {
    let more = if later {
        format!(", \"{LATER}/64\"")
    } else {
        String::new()
    };
    Network::config(&more)
}

fn is_reached_as_long_as_it_has_the_address(querier: Querier, version: u8) {
    let network = Network::new(querier, [3, version]);
    network.await_snooping();
    let daemon = Daemon::start(&network.device, &config(false));
    let mut groups = vec![group(NOS), group(network.nos_mac().link_local())];
    groups.sort_unstable();
    until("the groups are known", || {
        network.groups_behind(PORT) == groups
    });
    for address in ["203.0.113.1".parse().unwrap(), IpAddr::V6(NOS)] {
        ping(&network.outsider, address, 1, LIMIT).unwrap();
    }
    let link_local = network.nos_mac().link_local();
    daemon.reload(&config(true));
    until("the new group is known", || {
        network.groups_behind(PORT).contains(&group(LATER))
    });
    ping(&network.outsider, LATER.into(), 1, LIMIT).unwrap();
    daemon.reload(&config(false));
    until("the group is forgotten", || {
        network.groups_behind(PORT) == groups
    });
    assert!(groups.contains(&group(link_local)));
}

lab_test! {
    fn groups_of_containers_stay_with_them() {
        let scenario = Scenario::new(Variant::PLAIN);
        let wire = Wire::open(scenario.external(), Topology::EXTERNAL_INTERFACE);
        let theirs: Ipv6Addr = "ff05::1:3".parse().unwrap();
        let dropped = || {
            let drops = scenario.daemon.attachment("web").link.drops;
            drops.get("multicast").copied().unwrap_or_default()
        };
        let before = dropped();
        let index = scenario.web().link("eth0").unwrap().unwrap().index;
        let join = || {
            let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?;
            socket.join_multicast_v6(&theirs, index).map(|()| socket)
        };
        let socket = scenario.web().try_run("join a group", join).unwrap();
        // Said twice, and so is that it is left.
        until("the joins are dropped", || dropped() >= before + 2);
        drop(socket);
        until("the leaves are dropped", || dropped() >= before + 4);
        ping(scenario.external(), IpAddr::V6(NOS), 1, LIMIT).unwrap();
        let nos = scenario.daemon.uplink("up0").link.mac;
        let told = |seen: &Seen| Told::of(seen, nos, theirs.into());
        assert_eq!(wire.seen().iter().filter_map(told).count(), 0);
    }
}

lab_test! {
    fn behind_a_switch_that_asks_and_snoops_the_nos_is_reached() {
        is_reached_as_long_as_it_has_the_address(Querier::Switch, 2);
    }
}

lab_test! {
    fn behind_a_switch_and_a_router_that_asks_the_nos_is_reached() {
        is_reached_as_long_as_it_has_the_address(Querier::Router, 2);
    }
}

lab_test! {
    fn behind_a_switch_that_asks_in_the_first_version_the_nos_is_reached() {
        is_reached_as_long_as_it_has_the_address(Querier::Switch, 1);
    }
}

lab_test! {
    fn behind_a_switch_and_a_router_of_the_first_version_the_nos_is_reached() {
        is_reached_as_long_as_it_has_the_address(Querier::Router, 1);
    }
}

/// A host whose messages the router sees.
struct Host {
    mac: MacAddr,
    later: IpAddr,
    told: Vec<Told>,
}

impl Host {
    fn new(mac: MacAddr, later: Ipv6Addr) -> Self {
        Self {
            mac,
            later: group(later),
            told: Vec::new(),
        }
    }

    fn count(&self, wanted: impl Fn(&Told) -> bool) -> usize {
        self.told.iter().filter(|told| wanted(told)).count()
    }
}

fn watch(wire: &Wire, hosts: &mut [Host; 2], mut enough: impl FnMut(&Host) -> bool) {
    wire.await_frame(LIMIT, |seen| {
        for host in hosts.iter_mut() {
            host.told.extend(Told::of(seen, host.mac, host.later));
        }
        hosts.iter().all(&mut enough).then_some(())
    });
}

/// The NOS and the plain host, after both have said that they are asked in this version.
fn both(network: &Network, wire: &Wire, report: u8) -> [Host; 2] {
    let known = [
        (network.nos_mac(), NOS),
        (network.plain_mac(), "2001:db8:1::5".parse().unwrap()),
    ];
    let mut hosts = known.map(|(mac, address)| Host::new(mac, address));
    let is_answer = |told: &Told| told.kind.0 == report && told.record_kind() <= 2;
    watch(wire, &mut hosts, |host| host.count(is_answer) > 0);
    let [nos, plain] = known;
    [Host::new(nos.0, LATER), Host::new(plain.0, PLAIN_LATER)]
}

fn plain_later() -> ipnet::IpNet {
    format!("{PLAIN_LATER}/64").parse().unwrap()
}

lab_test! {
    fn joins_answers_and_leaves_are_said_as_by_a_linux_host() {
        let network = Network::new(Querier::Router, [3, 2]);
        let wire = Wire::open(&network.router, "eth0");
        let daemon = Daemon::start(&network.device, &config(false));
        let mut hosts = both(&network, &wire, REPORT_V2);
        network.plain.add_address("eth0", plain_later()).unwrap();
        daemon.reload(&config(true));
        watch(&wire, &mut hosts, |host| {
            host.count(|told| told.record_kind() == 4) == 2 && host.count(|told| told.record_kind() == 2) > 0
        });
        network.plain.delete_address("eth0", plain_later()).unwrap();
        daemon.reload(&config(false));
        watch(&wire, &mut hosts, |host| host.count(|told| told.record_kind() == 3) == 2);
        let [nos, plain] = hosts.map(|host| {
            let mut told = host.told;
            told.sort_unstable();
            // However often they were asked.
            let changes = |told: &Told| told.record_kind() != 2;
            told.dedup_by(|a, b| a == b && !changes(a));
            told
        });
        assert_eq!(nos, plain);
        assert_eq!(nos.len(), 5, "a join and a leave twice, and an answer: {nos:?}");
    }
}

lab_test! {
    fn in_the_first_version_all_is_said_as_by_a_linux_host() {
        let network = Network::new(Querier::Router, [3, 1]);
        let wire = Wire::open(&network.router, "eth0");
        let daemon = Daemon::start(&network.device, &config(false));
        let mut hosts = both(&network, &wire, REPORT_V1);
        network.plain.add_address("eth0", plain_later()).unwrap();
        daemon.reload(&config(true));
        watch(&wire, &mut hosts, |host| host.count(|told| told.kind.0 == REPORT_V1) > 1);
        network.plain.delete_address("eth0", plain_later()).unwrap();
        daemon.reload(&config(false));
        watch(&wire, &mut hosts, |host| host.count(|told| told.kind.0 == DONE) > 0);
        let [nos, mut plain] = hosts.map(|host| {
            let mut told = host.told;
            told.sort_unstable();
            told.dedup();
            told
        });
        // When a new address is known to be no duplicate, Linux says its group in the second version
        // as well. RFC 9777 §8.2.1: not while the first one is spoken.
        plain.retain(|told| told.kind.0 != REPORT_V2);
        assert_eq!(nos, plain);
        assert_eq!(nos.len(), 2, "a report and that we are done: {nos:?}");
    }
}
