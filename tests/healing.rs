//! What goes wrong around a running daemon, and how it is put right without anyone doing anything:
//! namespaces, interfaces, addresses and routes that come, go and change, and changes that cannot
//! be.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::fs::OpenOptions;
use std::io::Write;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicU64;

use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nos_relay::control::api::snapshot::{Attachment, LinkState, RouteAction};
use nos_relay::lab::testbed::ping::{Echo, Ping, ping};
use nos_relay::lab::testbed::tcp::{Direction, Transfer};
use nos_relay::lab::testbed::{LabNamespace, Topology, tcp, veth};
use support::daemon::{Daemon, Files, LIMIT, await_that};
use support::lab_test;
use support::names::{Mounted, add_name, delete_name};
use support::scenario::{FAMILIES, Family, Scenario, V4, Variant, config, edited, variant_tests};
use support::traffic;

/// A container of the configuration, with ports of its own.
fn container(name: &str, netns: &Path, device: &str, number: u16) -> String {
    let (port, first) = (22000 + number, 50000 + 100 * number);
    let last = first + 99;
    format!(
        "
[[container]]
name = \"{name}\"
netns = \"{}\"
device = \"{device}\"
tcp = [{port}]
udp = [{port}]
ephemeral = \"{first}-{last}\"
",
        netns.display()
    )
}

/// A TCP exchange each way, in both families, with a container that is reached on `port`.
fn assert_connected(scenario: &Scenario, container: &LabNamespace, port: u16) {
    for family in FAMILIES {
        assert_reached(scenario, container, family, port);
        assert_goes_out(scenario, container, family);
    }
}

fn assert_reached(scenario: &Scenario, container: &LabNamespace, family: Family, port: u16) {
    traffic::assert_reached(scenario.external(), container, family.nos_port(port));
}

fn assert_goes_out(scenario: &Scenario, container: &LabNamespace, family: Family) {
    let server = tcp::EchoServer::start(scenario.external(), family.external_port(8080)).unwrap();
    tcp::exchange(container, None, server.address(), b"out", LIMIT).unwrap();
}

/// Waits until a container is in this state, and returns its row.
fn await_state(daemon: &Daemon, name: &str, state: LinkState) -> Attachment {
    await_that(&format!("{name} is {state}"), || {
        let row = daemon.attachment(name);
        if row.link.state == state {
            Ok(row)
        } else {
            Err(format!("{row:?}"))
        }
    })
}

fn await_uplink(daemon: &Daemon, name: &str, state: LinkState) {
    await_that(&format!("{name} is {state}"), || {
        let row = daemon.uplink(name);
        let reached = row.link.state == state;
        reached.then_some(()).ok_or_else(|| format!("{row:?}"))
    });
}

/// Waits until nothing is left to say of any container.
fn await_no_reason(daemon: &Daemon) {
    await_that("all is as it is wanted", || {
        let rows = daemon.attachments();
        let fine = |row: &Attachment| row.link.reason.is_none() && row.link.state == LinkState::Up;
        let all = rows.iter().all(fine);
        all.then_some(()).ok_or_else(|| format!("{rows:?}"))
    });
}

/// Names of all interfaces.
fn links_of(namespace: &LabNamespace) -> BTreeSet<String> {
    let read = || fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let text = namespace.run(read).unwrap();
    let names = text.lines().skip(2).filter_map(|line| line.split_once(':'));
    names.map(|(name, _)| name.trim().to_owned()).collect()
}

/// What somebody inside can see of the parts that attaching touches.
fn state_of(namespace: &LabNamespace) -> Vec<String> {
    let mut lines: Vec<_> = links_of(namespace).into_iter().collect();
    lines.push(
        namespace
            .read_sysctl("net/ipv4/ip_local_port_range")
            .unwrap(),
    );
    let addresses: BTreeSet<_> = namespace.addresses("lo").unwrap().into_iter().collect();
    lines.extend(addresses.iter().map(ToString::to_string));
    let routes = || fs::read_to_string("/proc/thread-self/net/route").unwrap();
    lines.push(namespace.run(routes).unwrap());
    lines
}

/// What the daemon has logged as errors.
fn errors(daemon: &Daemon) -> Vec<String> {
    let log = daemon.log();
    let errors = log.lines().filter(|line| line.contains(" ERROR "));
    errors.map(ToOwned::to_owned).collect()
}

/// Sends `octets` from X to `web`, and returns how many frames that took towards it.
fn frames_for(scenario: &Scenario, octets: u64) -> u64 {
    let frames = || scenario.daemon.attachment("web").link.tx.packets;
    let before = frames();
    let transfer = Transfer {
        client: scenario.external(),
        server: scenario.web(),
        listen: V4.nos_port(20080),
        connect: V4.nos_port(20080),
        source: None,
        direction: Direction::Upload,
        octets,
        limit: LIMIT,
    };
    transfer.run(&AtomicU64::new(0)).unwrap();
    frames() - before
}

mod a_change_of_ports_keeps_offload {
    use super::*;

    fn scenario(variant: Variant) {
        const OCTETS: u64 = 32 << 20;
        const MTU: u64 = 1500;
        let scenario = Scenario::new(variant);
        let offload = scenario.daemon.attachment("web").link.offload;
        assert!(offload.contains(&"tso4".to_owned()), "{offload:?}");
        let ports = scenario.edited("\"179\"]", "\"179\", \"8443\"]");
        for config in [&ports, &scenario.config, &ports] {
            scenario.daemon.reload(config);
            assert_eq!(scenario.daemon.attachment("web").link.offload, offload);
            let frames = frames_for(&scenario, OCTETS);
            assert!(frames < OCTETS / MTU / 2, "{frames} frames");
        }
        assert_reached(&scenario, scenario.web(), V4, 8443);
    }

    variant_tests! {
        tap: ("tap", "single", [true, true]),
        veth: ("veth", "split", [true, true]),
    }
}

/// Exchanges two parts of a text, each of which stands in it once.
fn swapped(text: &str, a: &str, b: &str) -> String {
    let text = edited(text, a, "\u{0}");
    let text = edited(&text, b, a);
    edited(&text, "\u{0}", b)
}

mod two_containers_swap_ports {
    use super::*;

    fn scenario(variant: Variant) {
        let scenario = Scenario::new(variant);
        let ports = |text: &str| {
            let text = swapped(
                text,
                "tcp = [\"20000-20999\", \"179\"]",
                "tcp = [\"21000-21999\"]",
            );
            let text = swapped(&text, "udp = [\"20000-20999\"]", "udp = [\"21000-21999\"]");
            swapped(&text, "\"40000-44999\"", "\"45000-49999\"")
        };
        for _ in 0..2 {
            scenario.daemon.reload(&ports(&scenario.config));
            assert_connected(&scenario, scenario.db(), 20080);
            assert_connected(&scenario, scenario.web(), 21080);
            scenario.daemon.reload(&scenario.config);
            assert_connected(&scenario, scenario.web(), 20080);
            assert_connected(&scenario, scenario.db(), 21080);
        }
        assert_eq!(errors(&scenario.daemon), [""; 0]);
    }

    variant_tests! {
        tap: ("tap", "single", [true, true]),
        veth: ("veth", "split", [true, true]),
    }
}

mod two_containers_swap_addresses {
    use super::*;

    fn scenario(variant: Variant) {
        let topology = Topology::new(&["web", "db"]).unwrap();
        let text = config(&topology, variant);
        let text = edited(
            &text,
            "\"203.0.113.1/24\"",
            "\"203.0.113.1/24\", \"203.0.113.9/24\"",
        );
        let text = edited(
            &text,
            "name = \"web\"\n",
            "name = \"web\"\naddresses = [\"203.0.113.1\"]\n",
        );
        let text = edited(
            &text,
            "name = \"db\"\n",
            "name = \"db\"\naddresses = [\"203.0.113.9\"]\n",
        );
        // Both want the same ports, each on its own address.
        let text = edited(&text, "tcp = [\"21000-21999\"]", "tcp = [\"20000-20999\"]");
        let daemon = Daemon::start(&topology.device, &text);
        let scenario = Scenario {
            daemon,
            topology,
            config: text.clone(),
        };
        let one: IpAddr = "203.0.113.1".parse().unwrap();
        let nine: IpAddr = "203.0.113.9".parse().unwrap();
        let reached = |container: &LabNamespace, address: IpAddr| {
            let server = tcp::EchoServer::start(container, (address, 20080).into()).unwrap();
            tcp::exchange(scenario.external(), None, server.address(), b"x", LIMIT).unwrap();
            assert_eq!(server.peers().len(), 1);
        };
        let other = swapped(
            &text,
            "addresses = [\"203.0.113.1\"]",
            "addresses = [\"203.0.113.9\"]",
        );
        for _ in 0..2 {
            reached(scenario.web(), one);
            reached(scenario.db(), nine);
            scenario.daemon.reload(&other);
            reached(scenario.web(), nine);
            reached(scenario.db(), one);
            scenario.daemon.reload(&text);
        }
        assert_eq!(errors(&scenario.daemon), [""; 0]);
    }

    variant_tests! {
        tap: ("tap", "single", [true, true]),
        veth: ("veth", "split", [true, true]),
    }
}

mod a_change_that_is_refused_leaves_what_was_before {
    use super::*;

    fn scenario(variant: Variant) {
        let scenario = Scenario::new(variant);
        let daemon = &scenario.daemon;
        // Somebody else's interface.
        scenario.web().add_bridge("net0").unwrap();
        let before = state_of(scenario.web());
        let renamed = scenario.edited("name = \"web\"\n", "name = \"web\"\ninterface = \"net0\"\n");
        let changed = edited(&renamed, "\"179\"]", "\"179\", \"8443\"]");
        let changed = edited(
            &changed,
            "tcp = [\"21000-21999\"]",
            "tcp = [\"21000-21999\", \"443\"]",
        );
        daemon.counters_have_gone();
        daemon.reload(&changed);
        let web = daemon.attachment("web");
        let reason = web.link.reason.unwrap();
        assert!(
            reason.contains("net0") && reason.contains("did not make"),
            "{reason}"
        );
        assert_eq!(
            (web.link.state, &*web.link.interface),
            (LinkState::Up, "eth0")
        );
        assert!(web.link.since.is_some());
        assert_eq!(state_of(scenario.web()), before);
        // It was interrupted once, and is not again for what that changed, nor for a repair.
        for _ in 0..3 {
            scenario.web().delete_address("lo", V4.nos.into()).unwrap();
            await_that("the address is back", || {
                let lo = scenario.web().addresses("lo").unwrap();
                lo.contains(&V4.nos.into())
                    .then_some(())
                    .ok_or_else(|| format!("{lo:?}"))
            });
            await_pings(&scenario);
        }
        let log = daemon.log();
        assert_eq!(log.matches("detached container=web").count(), 1, "{log}");
        assert_connected(&scenario, scenario.web(), 20080);
        let error = tcp::connect(scenario.external(), None, V4.nos_port(8443), LIMIT).unwrap_err();
        assert_eq!(
            error.kind(),
            Some(std::io::ErrorKind::ConnectionRefused),
            "{error}"
        );
        // The others have changed all the same.
        assert_connected(&scenario, scenario.db(), 443);
        daemon.reload(&scenario.config);
        await_no_reason(daemon);
        assert_eq!(state_of(scenario.web()), before);
        assert_connected(&scenario, scenario.web(), 20080);
        // What is refused is done once nothing is in its way.
        daemon.reload(&changed);
        assert!(daemon.attachment("web").link.reason.is_some());
        scenario.web().delete_link("net0").unwrap();
        await_that("the interface has its name", || {
            let row = daemon.attachment("web");
            let done = row.link.interface == "net0" && row.link.reason.is_none();
            done.then_some(()).ok_or_else(|| format!("{row:?}"))
        });
        assert_connected(&scenario, scenario.web(), 8443);
    }

    variant_tests! {
        tap: ("tap", "single", [true, true]),
        veth: ("veth", "split", [true, true]),
    }
}

/// A namespace in which somebody else has an interface by our name is attached once it has gone.
mod an_interface_in_the_way_is_waited_for {
    use super::*;

    fn scenario(variant: Variant) {
        let mut scenario = Scenario::new(variant);
        let cache = LabNamespace::new("cache").unwrap();
        cache.add_bridge("eth0").unwrap();
        scenario.config += &container("cache", &cache.path(), variant.device, 0);
        scenario.daemon.reload(&scenario.config);
        let row = scenario.daemon.attachment("cache");
        assert_eq!(row.link.state, LinkState::Refused, "{row:?}");
        assert!(row.link.reason.unwrap().contains("eth0"));
        assert!(
            scenario
                .daemon
                .ports()
                .iter()
                .all(|port| port.owner != "cache")
        );
        cache.delete_link("eth0").unwrap();
        await_state(&scenario.daemon, "cache", LinkState::Up);
        assert_connected(&scenario, &cache, 22000);
        assert_connected(&scenario, scenario.web(), 20080);
    }

    variant_tests! {
        tap: ("tap", "single", [true, true]),
        veth: ("veth", "split", [true, true]),
    }
}

const UP1: &str = "
[[uplink]]
name = \"up1\"
device = \"packet:hy\"
addresses = [\"198.51.100.1/24\"]
";
const ROUTES: &str = "
[[route]]
prefix = \"192.0.2.0/24\"
via = \"203.0.113.2\"
[[route]]
prefix = \"192.0.3.0/24\"
via = \"198.51.100.2\"
";

lab_test! {
    fn an_uplink_that_cannot_be_opened_costs_the_others_nothing() {
        let topology = Topology::new(&["web", "db"]).unwrap();
        let y = LabNamespace::new("Y").unwrap();
        veth((&topology.device, "hy"), (&y, "yh")).unwrap();
        // Somebody else has it.
        let other = Daemon::start(&topology.device, UP1);
        let text = config(&topology, Variant::PLAIN) + UP1 + ROUTES;
        let daemon = Daemon::start(&topology.device, &text);
        let scenario = Scenario { daemon, topology, config: text.clone() };
        scenario.external().add_address("lo", "192.0.2.1/32".parse().unwrap()).unwrap();
        let behind = || {
            let echo = ping(scenario.web(), "192.0.2.1".parse().unwrap(), 1, LIMIT).unwrap()[0];
            assert!(echo.is_reply(), "{echo:?}");
        };
        for config in [text.clone(), edited(&text, "\"179\"]", "\"179\", \"8443\"]"), text] {
            let up1 = scenario.daemon.uplink("up1");
            assert_eq!(up1.link.state, LinkState::Refused, "{up1:?}");
            assert!(up1.link.reason.unwrap().contains("hy"));
            behind();
            assert_connected(&scenario, scenario.web(), 20080);
            scenario.daemon.reload(&config);
        }
        other.stop_by(Signal::SIGTERM);
        scenario.daemon.reload(&scenario.config);
        await_uplink(&scenario.daemon, "up1", LinkState::Up);
        y.add_address("yh", "198.51.100.2/24".parse().unwrap()).unwrap();
        y.add_route("203.0.113.0/24".parse().unwrap(), "198.51.100.1".parse().unwrap()).unwrap();
        y.add_address("lo", "192.0.3.1/32".parse().unwrap()).unwrap();
        let echo = ping(scenario.web(), "192.0.3.1".parse().unwrap(), 1, LIMIT).unwrap()[0];
        assert!(echo.is_reply(), "{echo:?}");
        behind();
    }
}

mod a_namespace_that_comes_later_is_waited_for {
    use super::*;

    fn scenario(variant: Variant) {
        let names = Mounted::new();
        let name = names.at("run/netns/late");
        let topology = Topology::new(&["web", "db"]).unwrap();
        let text = config(&topology, variant) + &container("late", &name, variant.device, 0);
        let daemon = Daemon::start(&topology.device, &text);
        let scenario = Scenario {
            daemon,
            topology,
            config: text,
        };
        let row = scenario.daemon.attachment("late");
        assert_eq!(row.link.state, LinkState::Waiting, "{row:?}");
        assert!(row.link.reason.unwrap().contains("netns/late"));
        assert!(row.link.since.is_some());
        assert_connected(&scenario, scenario.web(), 20080);
        fs::create_dir_all(name.parent().unwrap()).unwrap();
        let late = LabNamespace::new("late").unwrap();
        add_name(&late, &name);
        let row = await_state(&scenario.daemon, "late", LinkState::Up);
        assert_eq!((row.link.reason, row.link.since), (None, None));
        assert_connected(&scenario, &late, 22000);
        // The name alone goes, while somebody goes on to use the namespace: it is undone there.
        scenario.daemon.counters_have_gone();
        delete_name(&name);
        await_state(&scenario.daemon, "late", LinkState::Waiting);
        assert!(
            scenario
                .daemon
                .ports()
                .iter()
                .all(|port| port.owner != "late")
        );
        assert_eq!(late.link("eth0").unwrap(), None);
    }

    variant_tests! {
        tap: ("tap", "single", [true, true]),
        veth: ("veth", "split", [true, true]),
    }
}

lab_test! {
    fn a_strict_start_names_all_that_is_missing() {
        let topology = Topology::new(&["web", "db"]).unwrap();
        let before = [0, 1].map(|index| state_of(&topology.containers[index]));
        let text = config(&topology, Variant::PLAIN)
            + &container("late", Path::new("/run/not/there"), "veth", 0)
            + &edited(UP1, "hy", "missing");
        let output = Daemon::start_failing(&topology.device, &text);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        for part in ["'late'", "/run/not/there", "'up1'", "missing"] {
            assert!(said.contains(part), "{part} is not in {said}");
        }
        assert_eq!([0, 1].map(|index| state_of(&topology.containers[index])), before);
    }
}

mod a_container_without_ipv6_has_ipv4 {
    use super::*;

    fn scenario(variant: Variant) {
        let topology = Topology::new(&["web", "db"]).unwrap();
        for interface in ["all", "default", "lo"] {
            let key = format!("net/ipv6/conf/{interface}/disable_ipv6");
            topology.containers[0].sysctl(&key, "1").unwrap();
        }
        let text = config(&topology, variant);
        let daemon = Daemon::start(&topology.device, &text);
        let scenario = Scenario {
            daemon,
            topology,
            config: text,
        };
        let row = scenario.daemon.attachment("web");
        assert_eq!(row.link.state, LinkState::Up);
        let reason = row.link.reason.unwrap();
        assert!(
            reason.contains("2001:db8:1::1") && reason.contains("disable_ipv6"),
            "{reason}"
        );
        assert_reached(&scenario, scenario.web(), V4, 20080);
        assert_goes_out(&scenario, scenario.web(), V4);
        assert_connected(&scenario, scenario.db(), 21080);
    }

    variant_tests! {
        tap: ("tap", "single", [true, true]),
        veth: ("veth", "split", [true, true]),
    }
}

/// By the same name, whether its old namespace ends or is kept by somebody.
mod a_container_that_is_started_anew_is_attached_again {
    use super::*;

    fn scenario(variant: Variant) {
        let names = Mounted::new();
        let name = names.at("cache");
        let mut scenario = Scenario::new(variant);
        let mut present = LabNamespace::new("cache").unwrap();
        add_name(&present, &name);
        scenario.config += &container("cache", &name, variant.device, 0);
        scenario.daemon.reload(&scenario.config);
        scenario.daemon.counters_have_gone();
        for pinned in [false, true, false, true] {
            assert_connected(&scenario, &present, 22000);
            let process = pinned.then(|| {
                let mut cat = Command::new("cat");
                cat.stdin(Stdio::piped());
                present.spawn(cat).unwrap()
            });
            delete_name(&name);
            let next = LabNamespace::new("cache").unwrap();
            // Its own namespace goes, unless the process keeps it.
            present = next;
            add_name(&present, &name);
            await_that("the new namespace is attached", || {
                match present.link("eth0").unwrap() {
                    Some(link) if link.up => Ok(()),
                    other => Err(format!(
                        "{other:?} {:?}",
                        scenario.daemon.attachment("cache")
                    )),
                }
            });
            if let Some(mut cat) = process {
                drop(cat.stdin.take());
                cat.wait().unwrap();
            }
        }
        assert_connected(&scenario, &present, 22000);
        await_no_reason(&scenario.daemon);
    }

    variant_tests! {
        tap: ("tap", "single", [true, true]),
        veth: ("veth", "split", [true, true]),
    }
}

/// Makes the usual uplink's pair.
fn make_uplink(topology: &Topology) {
    let Topology {
        device, external, ..
    } = topology;
    veth(
        (device, Topology::UPLINK),
        (external, Topology::EXTERNAL_INTERFACE),
    )
    .unwrap();
    let interface = Topology::EXTERNAL_INTERFACE;
    external
        .set_mac(interface, Topology::external_mac())
        .unwrap();
    for address in Topology::external_addresses() {
        external.add_address(interface, address).unwrap();
    }
}

lab_test! {
    fn an_uplink_that_is_made_anew_at_once_has_its_routes() {
        let scenario = Scenario::with(Variant::PLAIN, &edited(ROUTES, "198.51.100.2", "203.0.113.3"));
        let prefix = "192.0.2.0/24".parse().unwrap();
        scenario.daemon.counters_have_gone();
        for _ in 0..5 {
            scenario.topology.device.delete_link("hx").unwrap();
            make_uplink(&scenario.topology);
            await_uplink(&scenario.daemon, "up0", LinkState::Up);
            await_that("the route is back", || {
                let routes = scenario.daemon.routes();
                let via = |route: &nos_relay::control::api::snapshot::Route| {
                    route.prefix == prefix && route.action == RouteAction::Via
                };
                routes.iter().any(via).then_some(()).ok_or_else(|| format!("{routes:?}"))
            });
            assert_connected(&scenario, scenario.web(), 20080);
        }
    }
}

/// Waits for a reply to a ping each way, in both families.
fn await_pings(scenario: &Scenario) {
    for family in FAMILIES {
        for (from, to) in [
            (scenario.web(), family.external),
            (scenario.external(), family.nos),
        ] {
            await_that("packets pass", || {
                match ping(from, to, 1, std::time::Duration::from_secs(1)) {
                    Ok(echoes) if echoes[0].is_reply() => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            });
        }
    }
}

lab_test! {
    fn an_uplink_that_is_renamed_carries_on() {
        let scenario = Scenario::new(Variant::PLAIN);
        let device = &scenario.topology.device;
        device.set_down("hx").unwrap();
        device.rename("hx", "wan0").unwrap();
        device.set_up("wan0").unwrap();
        await_that("show has the new name", || {
            let link = scenario.daemon.uplink("up0").link;
            let done = link.interface == "wan0" && link.state == LinkState::Up;
            done.then_some(()).ok_or_else(|| format!("{link:?}"))
        });
        await_pings(&scenario);
        // A reload leaves it as it is.
        scenario.daemon.reload(&scenario.edited("\"179\"]", "\"179\", \"8443\"]"));
        let link = scenario.daemon.uplink("up0").link;
        assert_eq!((link.state, link.reason), (LinkState::Up, None));
        await_pings(&scenario);
        assert_connected(&scenario, scenario.web(), 8443);
        assert_eq!(errors(&scenario.daemon), [""; 0]);
    }
}

mod an_interface_that_is_renamed_inside_carries_on {
    use super::*;

    fn scenario(variant: Variant) {
        let scenario = Scenario::new(variant);
        let web = scenario.web();
        web.set_down("eth0").unwrap();
        web.rename("eth0", "wan0").unwrap();
        web.set_up("wan0").unwrap();
        await_that("show has the new name", || {
            let link = scenario.daemon.attachment("web").link;
            let done = link.interface == "wan0" && link.state == LinkState::Up;
            done.then_some(()).ok_or_else(|| format!("{link:?}"))
        });
        await_pings(&scenario);
        scenario
            .daemon
            .reload(&scenario.edited("\"179\"]", "\"179\", \"8443\"]"));
        let link = scenario.daemon.attachment("web").link;
        assert_eq!((link.state, link.reason), (LinkState::Up, None));
        assert_connected(&scenario, web, 8443);
        assert_eq!(web.link("eth0").unwrap(), None);
        assert_eq!(errors(&scenario.daemon), [""; 0]);
    }

    variant_tests! {
        tap: ("tap", "single", [true, true]),
        veth: ("veth", "split", [true, true]),
    }
}

mod what_is_removed_inside_is_put_back {
    use super::*;

    fn scenario(variant: Variant) {
        let scenario = Scenario::new(variant);
        let web = scenario.web();
        for family in FAMILIES {
            let address = ipnet::IpNet::from(family.nos);
            for _ in 0..3 {
                web.delete_address("lo", address).unwrap();
                await_that("the address is back", || {
                    let lo = web.addresses("lo").unwrap();
                    lo.contains(&address)
                        .then_some(())
                        .ok_or_else(|| format!("{lo:?}"))
                });
            }
            await_pings(&scenario);
        }
        for family in FAMILIES {
            for _ in 0..3 {
                // It is there again before the next attempt.
                await_that("the route can be removed", || {
                    let removed = web.delete_default_route("eth0", family.nos);
                    removed.map_err(|error| error.to_string())
                });
            }
            await_pings(&scenario);
        }
        for (family, network) in FAMILIES
            .into_iter()
            .zip(["203.0.113.0/24", "2001:db8:1::/64"])
        {
            for _ in 0..3 {
                await_that("the route to the network can be removed", || {
                    let removed =
                        web.delete_network_route("eth0", network.parse().unwrap(), family.nos);
                    removed.map_err(|error| error.to_string())
                });
            }
        }
        web.set_mtu("eth0", 1400).unwrap();
        await_that("the MTU is back", || {
            let mtu = web.link("eth0").unwrap().unwrap().mtu;
            (mtu == 1500).then_some(()).ok_or_else(|| mtu.to_string())
        });
        web.set_arp_off("eth0").unwrap();
        await_that("it asks for MAC addresses again", || {
            let link = web.link("eth0").unwrap().unwrap();
            link.resolves
                .then_some(())
                .ok_or_else(|| format!("{link:?}"))
        });
        await_pings(&scenario);
        assert_connected(&scenario, web, 20080);
        assert_eq!(errors(&scenario.daemon), [""; 0]);
    }

    variant_tests! {
        tap: ("tap", "single", [true, true]),
        veth: ("veth", "split", [true, true]),
    }
}

mod an_interface_that_is_moved_elsewhere_is_replaced {
    use super::*;

    fn scenario(variant: Variant) {
        let scenario = Scenario::new(variant);
        let web = scenario.web();
        let elsewhere = LabNamespace::new("elsewhere").unwrap();
        let links = links_of(&elsewhere);
        let before = scenario.daemon.attachment("web");
        for _ in 0..3 {
            web.move_link("eth0", &elsewhere).unwrap();
            await_that("what was moved goes", || {
                let now = links_of(&elsewhere);
                (now == links)
                    .then_some(())
                    .ok_or_else(|| format!("{now:?}"))
            });
            await_state(&scenario.daemon, "web", LinkState::Up);
            await_pings(&scenario);
            assert_connected(&scenario, web, 20080);
        }
        let after = scenario.daemon.attachment("web");
        assert_eq!(after.id, before.id);
        assert_eq!(after.link.interface, "eth0");
        await_no_reason(&scenario.daemon);
        assert_eq!(errors(&scenario.daemon).len(), 3, "one for each move");
    }

    variant_tests! {
        tap: ("tap", "single", [true, true]),
        veth: ("veth", "split", [true, true]),
    }
}

lab_test! {
    fn an_uplink_whose_mtu_falls_tells_senders_so() {
        let scenario = Scenario::new(Variant::PLAIN);
        let long = Ping { size: 1400, dont_fragment: true, timeout: LIMIT, ..Ping::default() };
        let try_all = || FAMILIES.map(|family| long.run(scenario.web(), family.external).unwrap()[0]);
        assert!(try_all().iter().all(Echo::is_reply));
        scenario.topology.device.set_mtu("hx", 1300).unwrap();
        await_that("the NOS knows", || {
            let mtu = scenario.daemon.uplink("up0").link.mtu;
            (mtu == 1300).then_some(()).ok_or_else(|| mtu.to_string())
        });
        // RFC 1191 section 4 and RFC 4443 section 3.2, by the NOS.
        let [v4, v6] = try_all();
        assert!(matches!(v4, Echo::Error { kind: 3, code: 4, .. }), "{v4:?}");
        assert!(matches!(v6, Echo::Error { kind: 2, code: 0, .. }), "{v6:?}");
        assert_connected(&scenario, scenario.web(), 20080);
    }
}

/// A process in a namespace, for as long as the value lives.
struct Process(std::process::Child);

impl Process {
    fn start(namespace: &LabNamespace) -> Self {
        let mut cat = Command::new("cat");
        cat.stdin(Stdio::piped());
        Self(namespace.spawn(cat).unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

lab_test! {
    fn the_daemons_own_namespace_is_refused() {
        let topology = Topology::new(&["web", "db"]).unwrap();
        let process = Process::start(&topology.device);
        let before = state_of(&topology.device);
        let own = container("own", &topology.device.path(), "veth", 0);
        let path = format!("netns = \"{}\"", topology.device.path().display());
        let pid = edited(&own, &path, &format!("pid = {}", process.0.id()));
        let usual = config(&topology, Variant::PLAIN);
        let daemon = Daemon::start(&topology.device, &(usual.clone() + &own));
        let host_ends = links_of(&topology.device);
        let scenario = Scenario { daemon, topology, config: usual.clone() };
        for own in [own, pid] {
            scenario.daemon.reload(&(usual.clone() + &own));
            let row = scenario.daemon.attachment("own");
            assert_eq!(row.link.state, LinkState::Refused, "{row:?}");
            assert!(row.link.reason.unwrap().contains("nos-relay itself"));
            assert!(row.link.since.is_some());
            assert_connected(&scenario, scenario.web(), 20080);
            assert_eq!(links_of(&scenario.topology.device), host_ends);
        }
        let Scenario { daemon, topology, .. } = scenario;
        daemon.stop_by(Signal::SIGTERM);
        assert_eq!(state_of(&topology.device), before);
    }
}

mod a_container_that_is_led_to_the_daemons_namespace_stays_where_it_is {
    use super::*;

    fn scenario(variant: Variant) {
        let scenario = Scenario::new(variant);
        let [web, host] =
            [scenario.web(), &scenario.topology.device].map(|of| of.path().display().to_string());
        let index = || scenario.web().link("eth0").unwrap().map(|link| link.index);
        let before = (index(), state_of(scenario.web()));
        let led = scenario.edited(&web, &host);
        let led = edited(
            &led,
            "tcp = [\"21000-21999\"]",
            "tcp = [\"21000-21999\", \"443\"]",
        );
        for _ in 0..2 {
            scenario.daemon.reload(&led);
            let row = scenario.daemon.attachment("web");
            assert!(row.link.reason.unwrap().contains("nos-relay itself"));
            assert_eq!(row.link.state, LinkState::Up);
            // Something happens inside of it.
            scenario.web().delete_address("lo", V4.nos.into()).unwrap();
            await_that("the address is back", || {
                let lo = scenario.web().addresses("lo").unwrap();
                lo.contains(&V4.nos.into())
                    .then_some(())
                    .ok_or_else(|| format!("{lo:?}"))
            });
            await_pings(&scenario);
            assert_eq!((index(), state_of(scenario.web())), before);
            assert_connected(&scenario, scenario.web(), 20080);
            assert_connected(&scenario, scenario.db(), 443);
        }
        scenario.daemon.reload(&scenario.config);
        await_no_reason(&scenario.daemon);
        assert_eq!((index(), state_of(scenario.web())), before);
    }

    variant_tests! {
        tap: ("tap", "single", [true, true]),
        veth: ("veth", "split", [true, true]),
    }
}

mod an_interface_that_is_deleted_while_it_is_made_is_made_again {
    use super::*;

    /// Each hits another moment between the interface's coming and its being watched.
    const ROUNDS: usize = 30;

    fn scenario(variant: Variant) {
        let names = Mounted::new();
        let path = names.at("victim");
        let mut scenario = Scenario::new(variant);
        scenario.config += &container("victim", &path, variant.device, 0);
        scenario.daemon.reload(&scenario.config);
        for round in 0..ROUNDS {
            let victim = LabNamespace::new("victim").unwrap();
            add_name(&victim, &path);
            let found = await_interface(&victim);
            // What hits it later, or not at all, is as good.
            for _ in 0..round * 20 {
                std::thread::yield_now();
            }
            let _ = victim.delete_link(&found);
            await_that("it is up again", || {
                let row = scenario.daemon.attachment("victim");
                let fine = row.link.state == LinkState::Up && row.link.reason.is_none();
                let there = links_of(&victim).contains("eth0");
                (fine && there)
                    .then_some(())
                    .ok_or_else(|| format!("{row:?}"))
            });
            delete_name(&path);
            await_state(&scenario.daemon, "victim", LinkState::Waiting);
        }
        assert_connected(&scenario, scenario.web(), 20080);
    }

    /// The interface of a container, as soon as there is one.
    fn await_interface(namespace: &LabNamespace) -> String {
        let deadline = std::time::Instant::now() + LIMIT;
        loop {
            let mut links = links_of(namespace).into_iter();
            match links.find(|name| name != "lo") {
                Some(name) => return name,
                None => assert!(std::time::Instant::now() < deadline, "there is none"),
            }
        }
    }

    variant_tests! {
        tap: ("tap", "single", [true, true]),
        veth: ("veth", "split", [true, true]),
    }
}

lab_test! {
    fn one_namespace_under_two_names_is_refused() {
        let names = Mounted::new();
        let name = names.at("alias");
        let mut scenario = Scenario::new(Variant::PLAIN);
        add_name(scenario.web(), &name);
        let before = state_of(scenario.web());
        scenario.config += &container("alias", &name, "veth", 0);
        scenario.daemon.reload(&scenario.config);
        let row = scenario.daemon.attachment("alias");
        assert_eq!(row.link.state, LinkState::Refused, "{row:?}");
        assert!(row.link.reason.unwrap().contains("'web'"));
        assert_eq!(state_of(scenario.web()), before);
        assert_connected(&scenario, scenario.web(), 20080);
        // The name leads to a namespace of its own.
        let alias = LabNamespace::new("alias").unwrap();
        delete_name(&name);
        add_name(&alias, &name);
        await_state(&scenario.daemon, "alias", LinkState::Up);
        assert_connected(&scenario, &alias, 22000);
    }
}

lab_test! {
    fn a_reload_that_is_asked_for_while_the_configuration_is_read_is_obeyed_later() {
        let topology = Topology::new(&["web", "db"]).unwrap();
        let text = config(&topology, Variant::PLAIN);
        let files = Files::new();
        nix::unistd::mkfifo(&files.config(), Mode::S_IRWXU).unwrap();
        let daemon = Daemon::spawn(&topology.device, files);
        // Opened: the daemon reads, and goes on to until this is closed.
        let write = || OpenOptions::new().write(true).open(daemon.files().config()).unwrap();
        let mut file = write();
        for _ in 0..3 {
            daemon.signal(Signal::SIGHUP);
        }
        file.write_all(text.as_bytes()).unwrap();
        drop(file);
        daemon.await_ready();
        // It reads again.
        write().write_all(edited(&text, "\"179\"]", "\"179\", \"8443\"]").as_bytes()).unwrap();
        daemon.await_notification("RELOADING=1");
        daemon.await_notification("READY=1");
        let scenario = Scenario { daemon, topology, config: text };
        assert_connected(&scenario, scenario.web(), 8443);
    }
}

lab_test! {
    fn nothing_is_left_of_a_hundred_containers() {
        const EACH: u16 = 50;
        let topology = Topology::new(&["web", "db"]).unwrap();
        let mut text = config(&topology, Variant::PLAIN);
        let mut containers = Vec::new();
        for number in 0..2 * EACH {
            let namespace = LabNamespace::new("one").unwrap();
            let device = match number.is_multiple_of(2) && nos_relay::lab::testbed::tun_access().is_ok() {
                true => "tap",
                false => "veth",
            };
            let name = format!("c{number}");
            text += &container(&name, &namespace.path(), device, number);
            containers.push(namespace);
        }
        let before: Vec<_> = containers.iter().map(state_of).collect();
        let host = state_of(&topology.device);
        let daemon = Daemon::start(&topology.device, &text);
        let scenario = Scenario { daemon, topology, config: text };
        await_no_reason(&scenario.daemon);
        for number in [0, 1, 2 * EACH - 2, 2 * EACH - 1] {
            assert_connected(&scenario, &containers[usize::from(number)], 22000 + number);
        }
        let Scenario { daemon, topology, .. } = scenario;
        daemon.stop_by(Signal::SIGTERM);
        let after: Vec<_> = containers.iter().map(state_of).collect();
        assert!(after == before, "{after:?}");
        assert_eq!(state_of(&topology.device), host);
    }
}
