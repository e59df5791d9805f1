//! The configuration: what is read, and every way in which it can be wrong.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::collections::{BTreeMap, BTreeSet};

use nos_relay::control::config::{
    Config, ConfigErrors, Container, ContainerDevice, IoUring, MAX_TEXT, Mtu, NeedsRestart,
    NetnsRef, RelayConfig, RouteAction, Service, Threads, Uplink, UplinkDevice, VrfName,
};
use nos_relay::control::kernel::NamespaceId;
use nos_relay::control::memif::{Address, MAX_RINGS, Options, Secret, Side};
use nos_relay::control::plan::{
    Entity, LinkPresence, NamespacePresence, Observed, Phase, State, Step, Want, plan, routes_of,
};
use nos_shim::ident::MacAddr;
use nos_shim::ports::{Outside, PortRange};
use nos_shim::shim::Upstream;
use nos_shim::vlan::VlanId;
use proptest::prelude::*;

/// Every key, none at its default.
const FULL: &str = r#"
[relay]
threads = "split"
buffers = 4096
ring = 64
io_uring = "off"

[[uplink]]
name = "up0"
device = "packet:hx"
addresses = ["203.0.113.1/24", "2001:db8:1::1/64"]
vlan = 910
mtu = 9000
redirects = false
groups = ["239.1.2.3", "ff05::1234"]
mac = "02:00:5e:10:00:01"
offload = false
capture = "/tmp/up0.pcapng"

[[uplink]]
name = "up1"
device = "tap:nos1"
addresses = "198.51.100.1/31"

[[route]]
prefix = "0.0.0.0/0"
via = ["203.0.113.2", "198.51.100.0"]

[[route]]
prefix = "::/0"
via = ["fe80::1", "2001:db8:1::2", "fe80::1%up1"]
dev = "up0"
metric = 7

[[route]]
prefix = "192.0.2.0/24"
type = "blackhole"

[[route]]
prefix = "192.0.2.128/25"
type = "unreachable"

[[container]]
name = "web"
netns = "/run/netns/C"
device = "tap"
interface = "net0"
addresses = ["203.0.113.1", "2001:db8:1::1"]
tcp = ["20000-20999", "179", 80]
udp = ["20000-20999"]
ephemeral = "40000-44999"
mac = "02:00:5e:10:00:02"
offload = false
capture = "web.pcapng"

[[container]]
name = "db"
pid = 1234
device = "veth"

[nos]
services = ["echo", "discard", "http:8080"]
ping = false
"#;

/// Four lines, to which cases add.
const UPLINK: &str = r#"[[uplink]]
name = "up0"
device = "packet:hx"
addresses = ["203.0.113.1/24", "2001:db8:1::1/64"]
"#;

const CONTAINER: &str = r#"[[container]]
name = "web"
netns = "/run/netns/C"
device = "tap"
"#;

fn config(text: &str) -> Config {
    Config::parse("nos.toml", text).unwrap_or_else(|errors| panic!("{errors}\nin:\n{text}"))
}

fn errors(text: &str) -> ConfigErrors {
    match Config::parse("nos.toml", text) {
        Ok(config) => panic!("{config:?} was made of:\n{text}"),
        Err(errors) => errors,
    }
}

fn range(text: &str) -> PortRange {
    text.parse().unwrap()
}

#[test]
fn every_key_is_read() {
    let config = config(FULL);
    assert_eq!(config.relay.threads, Threads::Split);
    assert_eq!(
        (config.relay.buffers.get(), config.relay.ring.get()),
        (4096, 64)
    );
    assert_eq!(config.relay.io_uring, IoUring::Off);

    let [up0, up1] = &config.uplinks[..] else {
        panic!("{:?}", config.uplinks)
    };
    assert_eq!(up0.name.as_str(), "up0");
    assert_eq!(up0.device, UplinkDevice::Packet("hx".parse().unwrap()));
    let addresses: Vec<_> = up0.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["203.0.113.1/24", "2001:db8:1::1/64"]);
    assert_eq!((up0.vlan.map(VlanId::get), up1.vlan), (Some(910), None));
    assert_eq!(up0.mtu.octets(), 9000);
    assert_eq!(up0.mac.unwrap().to_string(), "02:00:5e:10:00:01");
    assert!(!up0.offload && !up0.redirects);
    let groups: Vec<_> = up0.groups.iter().map(ToString::to_string).collect();
    assert_eq!(groups, ["239.1.2.3", "ff05::1234"]);
    assert_eq!(up0.vrf, VrfName::Default);
    assert_eq!(up0.capture.as_deref(), Some("/tmp/up0.pcapng".as_ref()));
    assert_eq!(up1.device, UplinkDevice::Tap("nos1".parse().unwrap()));
    assert_eq!((up1.mtu, up1.mac, up1.offload), (Mtu::DEFAULT, None, true));
    assert!(up1.redirects && up1.groups.is_empty());

    let [web, db] = &config.containers[..] else {
        panic!("{:?}", config.containers)
    };
    assert_eq!(web.netns, NetnsRef::Path("/run/netns/C".into()));
    assert_eq!(web.device, ContainerDevice::Tap);
    assert_eq!(web.interface.as_str(), "net0");
    assert_eq!(web.tcp, [range("20000-20999"), range("179"), range("80")]);
    assert_eq!(web.udp, [range("20000-20999")]);
    assert_eq!(web.ephemeral, [range("40000-44999")]);
    assert_eq!(web.mac.unwrap().to_string(), "02:00:5e:10:00:02");
    assert!(!web.offload);
    assert_eq!(web.capture.as_deref(), Some("web.pcapng".as_ref()));
    assert_eq!(db.netns.path().to_str(), Some("/proc/1234/ns/net"));
    assert_eq!(db.device, ContainerDevice::Veth);

    let services = [
        Service::Echo,
        Service::Discard,
        Service::Http(8080.try_into().unwrap()),
    ];
    let nos = &config.services[&VrfName::Default];
    assert_eq!(nos.services, services);
    assert!(!nos.ping);
}

#[test]
fn an_interface_has_so_many_uplinks() {
    let uplink = |vlan: usize| {
        format!(
            "[[uplink]]\nname = \"v{vlan}\"\ndevice = \"packet:hx\"\nvlan = {vlan}\naddresses = []\n"
        )
    };
    let text: String = (1..Uplink::MAX_ON_DEVICE).map(uplink).collect();
    let text = format!("{UPLINK}{text}");
    assert_eq!(config(&text).uplinks.len(), Uplink::MAX_ON_DEVICE);
    let errors = errors(&format!("{text}{}", uplink(Uplink::MAX_ON_DEVICE))).to_string();
    let reason = "hx has more than 256 uplinks, the most of an interface";
    assert!(errors.contains(reason), "{errors}");
}

#[test]
fn a_memif_has_a_socket_a_number_and_a_role() {
    let text = r#"[[uplink]]
name = "up0"
device = "memif:/run/a:b.sock:4294967295"
addresses = "203.0.113.1/24"
[[uplink]]
name = "up1"
device = "memif:/run/x.sock:0"
memif = { role = "client", secret = "open sesame", queues = 4, ring = 256 }
addresses = "203.0.114.1/24"
"#;
    let config = config(text);
    let [UplinkDevice::Memif(server), UplinkDevice::Memif(client)] =
        [0, 1].map(|n| config.uplinks[n].device.clone())
    else {
        panic!("{:?}", config.uplinks)
    };
    let options = Options {
        address: Address::new("/run/a:b.sock".into(), u32::MAX).unwrap(),
        side: Side::Server,
        secret: None,
        queues: MAX_RINGS,
        log2_ring_size: 10,
    };
    assert_eq!(server, options);
    let options = Options {
        address: Address::new("/run/x.sock".into(), 0).unwrap(),
        side: Side::Client,
        secret: Secret::new(b"open sesame"),
        queues: 4,
        log2_ring_size: 8,
    };
    assert_eq!(client, options);
    assert!(!format!("{config:?}").contains("sesame"), "it is secret");
}

#[test]
fn a_nos_in_another_process_is_one_uplink() {
    let text = r#"[nos]
channel = "memif:/run/x.sock:1"
memif = { role = "client", secret = "open sesame" }
addresses = ["203.0.113.1", "2001:db8:1::1"]
neighbor = "02:00:5e:10:00:01"
mac = "02:00:5e:10:00:02"
mtu = 9000
[[container]]
name = "web"
netns = "/run/netns/C"
device = "tap"
tcp = 80
"#;
    let config = config(text);
    let neighbor = Some("02:00:5e:10:00:01".parse().unwrap());
    assert_eq!(config.upstream, Some(Upstream { neighbor }));
    let [nos] = &config.uplinks[..] else {
        panic!("{:?}", config.uplinks)
    };
    assert_eq!(nos.name.as_str(), "nos");
    assert_eq!(nos.device.to_string(), "memif:/run/x.sock:1");
    let addresses: Vec<_> = nos.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["203.0.113.1/32", "2001:db8:1::1/128"]);
    assert_eq!(nos.mac, Some("02:00:5e:10:00:02".parse().unwrap()));
    let web = &config.containers[0];
    assert_eq!((web.addresses.len(), web.mtu.octets()), (2, 9000));
    assert!(config.services.is_empty() && config.routes.is_empty());
}

#[test]
fn rules_are_of_the_ports_that_they_stand_beside() {
    let text = r#"[[uplink]]
name = "up0"
device = "packet:hx"
addresses = "203.0.113.1/24"
[[container]]
name = "web"
netns = "/run/netns/C"
device = "tap"
tcp = [80, { ports = ["20000-20999", "!20500"], from = ["198.51.100.0/25", "198.51.100.128/25"] }]
udp = { ports = 53, from = "192.0.2.0/24" }
ephemeral = ["40000-40999", { ports = "41000-41999", state = "established" }, "!41500"]
to = "0.0.0.0/0"
outside = "learn"
[relay]
flows = 1024
"#;
    let config = config(text);
    let web = &config.containers[0];
    let ranges =
        |ranges: &[PortRange]| -> Vec<_> { ranges.iter().map(ToString::to_string).collect() };
    assert_eq!(ranges(&web.tcp), ["80", "20000-20499", "20501-20999"]);
    let rules = web.policy.from.iter();
    let rules: Vec<_> = rules
        .map(|it| format!("{} {} from {}", it.transport, it.range, it.from))
        .collect();
    let expected = [
        "tcp 20000-20499 from 198.51.100.0/24",
        "tcp 20501-20999 from 198.51.100.0/24",
        "udp 53 from 192.0.2.0/24",
    ];
    assert_eq!(rules, expected);
    assert_eq!(
        ranges(&web.policy.established),
        ["41000-41499", "41501-41999"]
    );
    assert_eq!(web.policy.outside, Outside::Learn);
    let to = web.policy.to.as_ref().unwrap();
    assert_eq!(to.to_string(), "0.0.0.0/0");
    assert_eq!(config.relay.flows.get(), 1024);
    // Nowhere is not everywhere.
    let nowhere = crate::config(&text.replace("to = \"0.0.0.0/0\"", "to = []"));
    let policy = &nowhere.containers[0].policy;
    assert!(policy.to.as_ref().unwrap().prefixes().is_empty());
}

#[test]
fn a_service_listens_on_a_list_of_ports() {
    let text = format!(
        "{UPLINK}[nos]\nservices = [\"echo\", {{ service = \"http\", ports = [\"8080-8082\", \
         \"!8081\", 443] }}]\n"
    );
    let http = |port: u16| Service::Http(port.try_into().unwrap());
    let expected = [Service::Echo, http(8080), http(8082), http(443)];
    assert_eq!(config(&text).services[&VrfName::Default].services, expected);
}

#[test]
fn services_may_be_for_some_alone() {
    let text = format!(
        "{UPLINK}[nos]\nservices = [\"http:81\", {{ service = \"discard\", from = \"192.0.2.0/24\" }}, \
         {{ service = \"http\", ports = [\"8080-8082\", \"!8081\"], from = [\"198.51.100.0/25\", \
         \"198.51.100.128/25\"] }}]\n"
    );
    let config = config(&text);
    let nos = &config.services[&VrfName::Default];
    let rules = nos.from.iter();
    let rules: Vec<_> = rules
        .map(|it| format!("{} {} from {}", it.transport, it.range, it.from))
        .collect();
    let expected = [
        "tcp 9 from 192.0.2.0/24",
        "udp 9 from 192.0.2.0/24",
        "tcp 8080 from 198.51.100.0/24",
        "tcp 8082 from 198.51.100.0/24",
    ];
    assert_eq!(rules, expected);
    assert_eq!(nos.services.len(), 4);
}

#[test]
fn next_hops_are_resolved_to_uplinks() {
    let config = config(FULL);
    let hops = |route: usize| {
        let RouteAction::Via(hops) = &config.routes[route].action else {
            panic!("{:?}", config.routes[route])
        };
        let text =
            |hop: &nos_relay::control::config::NextHop| format!("{} {}", hop.address, hop.uplink);
        hops.iter().map(text).collect::<Vec<_>>()
    };
    assert_eq!(hops(0), ["203.0.113.2 up0", "198.51.100.0 up1"]);
    assert_eq!(hops(1), ["fe80::1 up0", "2001:db8:1::2 up0", "fe80::1 up1"]);
    assert_eq!((config.routes[0].metric, config.routes[1].metric), (0, 7));
    assert_eq!(config.routes[2].action, RouteAction::Blackhole);
    assert_eq!(config.routes[3].action, RouteAction::Unreachable);
}

#[test]
fn gateways_off_the_prefix_are_on_the_link_that_is_named() {
    let config = config(
        r#"[[uplink]]
name = "up0"
device = "packet:hx"
addresses = ["203.0.113.1/32", "2001:db8:1::1/128"]
[[uplink]]
name = "up1"
device = "packet:hy"
addresses = ["198.51.100.1/24"]
[[route]]
prefix = "0.0.0.0/0"
via = ["192.0.2.1%up0", "198.51.100.2"]
onlink = true
[[route]]
prefix = "::/0"
via = ["2001:db8:f::1", "fe80::1"]
dev = "up0"
onlink = true
[[route]]
prefix = "192.0.2.1/32"
via = "198.51.100.9"
dev = "up0"
onlink = true
"#,
    );
    let hops = |route: usize| {
        let RouteAction::Via(hops) = &config.routes[route].action else {
            panic!("{:?}", config.routes[route])
        };
        let text =
            |hop: &nos_relay::control::config::NextHop| format!("{} {}", hop.address, hop.uplink);
        hops.iter().map(text).collect::<Vec<_>>()
    };
    assert_eq!(hops(0), ["192.0.2.1 up0", "198.51.100.2 up1"]);
    assert_eq!(hops(1), ["2001:db8:f::1 up0", "fe80::1 up0"]);
    // As with Linux, whoever says so may have it there.
    assert_eq!(hops(2), ["198.51.100.9 up0"]);
}

#[test]
fn containers_know_the_networks_of_all_uplinks() {
    let config = config(FULL);
    let networks: Vec<_> = config.containers[0]
        .networks
        .iter()
        .map(ToString::to_string)
        .collect();
    let expected = ["198.51.100.0/31", "203.0.113.0/24", "2001:db8:1::/64"];
    assert_eq!(networks, expected);
    assert_eq!(config.containers[0].networks, config.containers[1].networks);
}

#[test]
fn a_container_takes_addresses_and_mtu_from_the_uplinks() {
    let config = config(FULL);
    let [web, db] = &config.containers[..] else {
        panic!("{:?}", config.containers)
    };
    assert_eq!(web.mtu.octets(), 9000);
    assert_eq!(db.mtu, Mtu::DEFAULT);
    let addresses: Vec<_> = db.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["203.0.113.1", "2001:db8:1::1", "198.51.100.1"]);
}

#[test]
fn the_example_of_the_documentation_is_good() {
    let text = include_str!("../docs/configuration.md");
    let example = text
        .split("```toml\n")
        .nth(1)
        .unwrap()
        .split("```")
        .next()
        .unwrap();
    let config = config(example);
    assert_eq!(config.uplinks.len(), 1);
    assert_eq!(config.containers.len(), 1);
}

#[test]
fn the_documentation_has_every_key_and_no_other() {
    let text = include_str!("../docs/configuration.md");
    let documented = |key: &str| text.contains(&format!("| `{key}` |"));
    for (section, probe) in [
        ("relay", "[relay]\nqqqqqqqqqqqqq = 1"),
        ("uplink", "[[uplink]]\nqqqqqqqqqqqqq = 1"),
        ("memif", "[[uplink]]\n[uplink.memif]\nqqqqqqqqqqqqq = 1"),
        ("route", "[[route]]\nqqqqqqqqqqqqq = 1"),
        ("network", "[[network]]\nqqqqqqqqqqqqq = 1"),
        ("container", "[[container]]\nqqqqqqqqqqqqq = 1"),
        ("nos", "[nos]\nqqqqqqqqqqqqq = 1"),
    ] {
        let errors = errors(probe).to_string();
        let known = errors.split("unknown key; known are ").nth(1).unwrap();
        for key in known.lines().next().unwrap().split(", ") {
            assert!(documented(&format!("{section}.{key}")), "{section}.{key}");
        }
        let rows = text.matches(&format!("| `{section}.")).count();
        assert_eq!(
            rows,
            known.lines().next().unwrap().split(", ").count(),
            "{section}"
        );
    }
}

#[test]
fn defaults_are_those_of_the_smallest_configuration() {
    let config = config(UPLINK);
    assert_eq!(config.relay, Default::default());
    assert_eq!(config.relay.threads, Threads::Single);
    assert_eq!(config.relay.io_uring, IoUring::Auto);
    assert!(config.services.is_empty());
    assert!(config.routes.is_empty() && config.containers.is_empty());
}

#[test]
fn line_ends_and_byte_order_mark_do_not_matter() {
    let expected = config(FULL);
    assert_eq!(config(&FULL.replace('\n', "\r\n")), expected);
    assert_eq!(config(&format!("\u{feff}{FULL}")), expected);
    let crlf = format!("\u{feff}{UPLINK}mtu = 5\n").replace('\n', "\r\n");
    let expected = "nos.toml:5: uplink.mtu: 5 is not in the range 576 to 65535";
    assert_eq!(errors(&crlf).to_string(), expected);
}

/// `UPLINK` with lines added, the first of which is line 5.
fn plus(lines: &str) -> String {
    format!("{UPLINK}{lines}\n")
}

/// `UPLINK` with a container of four lines, then `lines`, the first of which is line 9.
fn container(lines: &str) -> String {
    plus(&format!("{CONTAINER}{lines}"))
}

/// A configuration, and the errors that it must cause.
struct Case {
    title: String,
    text: String,
    errors: Vec<String>,
}

/// Reads what the top of `config/errors.txt` describes.
fn cases() -> Vec<Case> {
    let all = include_str!("config/errors.txt").replace("@uplink\n", UPLINK);
    let all = all.replace("@container\n", CONTAINER);
    all.split("\n### ").skip(1).map(case).collect()
}

fn case(written: &str) -> Case {
    let (title, body) = written.split_once('\n').unwrap();
    let mut case = Case {
        title: title.to_owned(),
        text: String::new(),
        errors: Vec::new(),
    };
    let mut line = 0;
    for written in body.lines() {
        if let Some(error) = written.strip_prefix("#! ") {
            case.errors.push(format!("nos.toml:{line}: {error}"));
        } else {
            line += 1;
            case.text += &format!("{written}\n");
        }
    }
    case
}

#[test]
fn each_mistake_is_located_and_explained() {
    let cases = cases();
    assert!(cases.len() > 80, "only {} cases were found", cases.len());
    for Case {
        title,
        text,
        errors: expected,
    } in cases
    {
        let errors = errors(&text).to_string();
        let lines: Vec<_> = errors.lines().collect();
        assert_eq!(lines, expected, "{title}, in:\n{text}");
    }
}

#[test]
fn unprintable_and_endless_texts_are_explained_on_one_line() {
    let invalid = "invalid unquoted key, expected letters, numbers, `-`, `_`";
    let visible = "invalid basic string, expected non-double-quote visible characters, `\\`";
    for (text, reason) in [
        (
            "\0\u{1}\u{1b}[31m\n".to_owned(),
            format!("{invalid}, in: \u{fffd}\u{fffd}\u{fffd}[31m"),
        ),
        (
            "a = \"x\ry\"".to_owned(),
            format!("{visible}, in: a = \"x\u{fffd}y\""),
        ),
        (
            format!("a = {}", "[".repeat(100_000)),
            format!(
                "cannot recurse further; max recursion depth met, in: a = {}…",
                "[".repeat(56)
            ),
        ),
        (
            "#".repeat(MAX_TEXT + 1),
            "is longer than 4194304 octets, the most that is read".to_owned(),
        ),
    ] {
        assert_eq!(
            errors(&text).to_string(),
            format!("nos.toml:1: syntax: {reason}")
        );
    }
}

#[test]
fn what_is_only_close_to_a_mistake_is_accepted() {
    let second = |name: &str, netns: &str, lines: &str| {
        CONTAINER
            .replace("web", name)
            .replace("/run/netns/C", netns)
            + lines
    };
    let ports =
        |one: &str, two: &str| container(&format!("{one}\n{}", second("db", "/run/netns/D", two)));
    for text in [
        // Without IPv6, less is enough.
        plus("mtu = 576").replace(", \"2001:db8:1::1/64\"", ""),
        // Two addresses of one uplink on one network, and networks within one another.
        UPLINK.replace(
            "203.0.113.1/24",
            "203.0.113.1/24\", \"203.0.113.2/24\", \"203.0.113.3/25",
        ),
        // Ranges with neither protocol nor address in common, or only adjacent.
        ports(
            "tcp = \"20000-20999\"",
            "udp = \"20000-20999\"\ntcp = [19999, 21000]",
        ),
        ports(
            "addresses = \"203.0.113.1\"\ntcp = 80",
            "addresses = \"2001:db8:1::1\"\ntcp = 80",
        ),
        container("udp = 80\n[nos]\nservices = [\"http:80\"]"),
        // Two interfaces of one namespace.
        container(&second("db", "/run/netns/C", "interface = \"eth1\"")),
        // Lists may be empty where nothing is a good answer.
        container("tcp = []\nudp = []\n[nos]\nservices = []"),
    ] {
        config(&text);
    }
}

#[test]
fn uplink_addresses_are_checked() {
    for (address, reason) in [
        (
            "x/24",
            "is not an address with a prefix length, as in \"203.0.113.1/24\"",
        ),
        (
            "203.0.113.1/33",
            "is not an address with a prefix length, as in \"203.0.113.1/24\"",
        ),
        (
            "203.0.113.1",
            "lacks a prefix length, as in \"203.0.113.1/24\"",
        ),
        (
            "2001:db8::1",
            "lacks a prefix length, as in \"2001:db8::1/64\"",
        ),
        ("0.0.0.0/24", "is the unspecified address"),
        ("::/64", "is the unspecified address"),
        (
            "0.1.2.3/24",
            "is in 0.0.0.0/8, which means \"this network\"",
        ),
        ("127.0.0.1/8", "is a loopback address"),
        ("::1/128", "is a loopback address"),
        ("224.0.0.5/24", "is a multicast address"),
        ("ff02::1/64", "is a multicast address"),
        ("240.0.0.1/24", "is in 240.0.0.0/4, which is reserved"),
        ("255.255.255.255/32", "is the broadcast address"),
        ("203.0.113.0/24", "is the network address of 203.0.113.0/24"),
        (
            "203.0.113.255/24",
            "is the broadcast address of 203.0.113.0/24",
        ),
        (
            "2001:db8::/64",
            "is the subnet-router anycast address of 2001:db8::/64",
        ),
        (
            "::ffff:203.0.113.1/96",
            "is an IPv4-mapped address; write 203.0.113.1",
        ),
        (
            "fe80::1/64",
            "is link-local; an uplink makes its own from its MAC address",
        ),
        ("10.0.0.1/7", "has a prefix length below 8"),
        ("2001:db8::1/15", "has a prefix length below 16"),
    ] {
        let text = UPLINK.replace("\"203.0.113.1/24\"", &format!("\"{address}\""));
        let expected = format!("nos.toml:4: uplink.addresses: \"{address}\" {reason}");
        assert_eq!(errors(&text).to_string(), expected);
    }
    for address in [
        "203.0.113.0/31",
        "203.0.113.255/31",
        "203.0.113.0/32",
        "2001:db8::/127",
        "10.0.0.1/8",
        "169.254.1.1/16",
    ] {
        config(&UPLINK.replace("\"203.0.113.1/24\"", &format!("\"{address}\"")));
    }
}

#[test]
fn more_errors_than_anyone_reads_are_counted() {
    let errors = errors(&plus(&format!(
        "mac = 1\n[nos]\nservices = [{}]",
        "7, ".repeat(200)
    )));
    assert_eq!(errors.errors().len(), 100);
    assert_eq!(errors.omitted(), 101);
    assert!(errors.to_string().ends_with("\nand 101 more errors"));
    assert_eq!(errors.errors()[0].line, Some(5));
    assert_eq!(errors.errors()[0].key.as_deref(), Some("uplink.mac"));
}

#[test]
fn ten_thousand_containers_are_no_burden() {
    let one = |n: u32| {
        let first = 1 + n * 6;
        format!(
            "[[container]]\nname = \"c{n}\"\npid = {}\ndevice = \"tap\"\ntcp = \"{first}-{}\"\n",
            n + 1,
            first + 5
        )
    };
    let all: String = (0..10_000).map(one).collect();
    let config = config(&plus(&all));
    assert_eq!(config.containers.len(), 10_000);
}

#[test]
fn files_are_loaded_or_say_why_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("nos.toml");
    let name = path.display();
    let load = |octets: &[u8]| {
        std::fs::write(&path, octets).unwrap();
        Config::load(&path).map_err(|errors| errors.to_string())
    };
    assert_eq!(load(FULL.as_bytes()), Ok(config(FULL)));
    assert_eq!(
        load(b"a = 1\n\xff\n"),
        Err(format!(
            "{name}:2: is not UTF-8 text: octet 0xff at offset 6"
        ))
    );
    assert_eq!(
        load(b"\xff\xfea\0"),
        Err(format!("{name}:1: is UTF-16; save it as UTF-8"))
    );
    let long = vec![b'#'; MAX_TEXT + 1];
    assert_eq!(
        load(&long),
        Err(format!(
            "{name}:1: syntax: is longer than 4194304 octets, the most that is read"
        ))
    );
    std::fs::remove_file(&path).unwrap();
    assert_eq!(
        Config::load(&path).unwrap_err().to_string(),
        format!("{name}: cannot be read: No such file or directory (os error 2)")
    );
    let name = directory.path().display();
    assert_eq!(
        Config::load(directory.path()).unwrap_err().to_string(),
        format!("{name}: cannot be read: Is a directory (os error 21)")
    );
}

/// A number that a text has in this process.
fn number(text: &str) -> u32 {
    text.bytes().fold(7, |number, octet| {
        u32::from(octet).wrapping_add(number.wrapping_mul(31))
    })
}

/// All that a configuration names, as if it were there.
fn everything(config: &Config) -> Observed {
    let namespace = |container: &Container| {
        let inode = number(&container.netns.to_string());
        NamespacePresence::Here(NamespaceId::new(1, inode.into()))
    };
    let link = |uplink: &Uplink| LinkPresence::Here {
        index: uplink
            .device
            .interface()
            .map_or(0, |name| number(name.as_str())),
        mac: Some(MacAddr([2, 0, 0, 0, 0, 1])),
        mtu: 9000,
    };
    let containers = config.containers.iter();
    let uplinks = config.uplinks.iter();
    Observed {
        host: NamespaceId::new(0, 0),
        namespaces: containers
            .map(|container| (container.name.clone(), namespace(container)))
            .collect(),
        interfaces: Default::default(),
        links: uplinks
            .map(|uplink| (uplink.name.clone(), link(uplink)))
            .collect(),
    }
}

/// What a configuration asks for where all of it is there.
fn state(config: &Config) -> State {
    let want = Want::of(config, &everything(config));
    assert_eq!((want.waiting.len(), want.refused.len()), (0, 0));
    State {
        routes: routes_of(&config.routes, &want.state).0,
        ..want.state
    }
}

/// What has to be done to get from one configuration to another, for each entity.
fn changes(old: &Config, new: &Config) -> BTreeMap<String, Vec<Phase>> {
    let mut changes = BTreeMap::<String, Vec<Phase>>::new();
    for group in plan(&state(old), &state(new), &BTreeSet::new()) {
        for (phase, step) in group.steps {
            let entities = match &step {
                Step::Claims(changes) => changes.iter().map(|(name, _)| name.to_string()).collect(),
                Step::Networks(changes) => {
                    changes.iter().map(|(name, _)| name.to_string()).collect()
                }
                Step::Link(name, _) | Step::Device(name, _) => vec![name.to_string()],
                Step::Capture(Entity::Uplink(name) | Entity::Container(name), _) => {
                    vec![name.to_string()]
                }
                other => vec![other.entity().to_string()],
            };
            for entity in entities {
                changes.entry(entity).or_default().push(phase);
            }
        }
    }
    changes
}

#[test]
fn equal_configurations_do_not_differ() {
    let (old, new) = (config(FULL), config(FULL));
    assert_eq!(changes(&old, &new), BTreeMap::new());
    // Neither comments nor the order of containers are a change.
    let (web, db) = (
        FULL.find("[[container]]").unwrap(),
        FULL.rfind("[[container]]").unwrap(),
    );
    let nos = FULL.find("[nos]").unwrap();
    let moved = format!(
        "# moved\n{}{}{}{}",
        &FULL[..web],
        &FULL[db..nos],
        &FULL[web..db],
        &FULL[nos..]
    );
    assert_eq!(changes(&old, &config(&moved)), BTreeMap::new());
}

#[test]
fn each_difference_of_a_container_is_told_apart() {
    use Phase::{Attach, BeginCaptures, Claim, Detach, EndCaptures};
    let anew = [EndCaptures, Detach, Attach, BeginCaptures];
    let other_mac = [EndCaptures, Detach, Claim, Attach, BeginCaptures];
    let old = config(FULL);
    for (from, to, phases) in [
        (
            "netns = \"/run/netns/C\"",
            "netns = \"/run/netns/D\"",
            &anew[..],
        ),
        (
            "device = \"tap\"\ninterface",
            "device = \"veth\"\ninterface",
            &anew,
        ),
        ("interface = \"net0\"", "interface = \"net1\"", &anew),
        (
            "mac = \"02:00:5e:10:00:02\"\noffload = false",
            "mac = \"02:00:5e:10:00:03\"\noffload = false",
            &other_mac,
        ),
        (
            "offload = false\ncapture = \"web",
            "offload = true\ncapture = \"web",
            &anew,
        ),
        (
            "[\"203.0.113.1\", \"2001:db8:1::1\"]",
            "[\"203.0.113.1\"]",
            &[Claim, Attach],
        ),
        (
            "[\"203.0.113.1\", \"2001:db8:1::1\"]",
            "[\"2001:db8:1::1\", \"203.0.113.1\"]",
            &[Claim, Attach],
        ),
        ("\"179\", 80]", "\"179\"]", &[Claim]),
        ("udp = [\"20000-20999\"]", "", &[Claim]),
        ("40000-44999", "40000-45000", &[Claim, Attach]),
        ("capture = \"web.pcapng\"", "", &[EndCaptures]),
        ("web.pcapng", "www.pcapng", &[EndCaptures, BeginCaptures]),
        (
            "[\"203.0.113.1\", \"2001:db8:1::1\"]",
            "\"198.51.100.1\"",
            &[Claim, Attach],
        ),
    ] {
        assert!(FULL.contains(from), "{from}");
        let new = config(&FULL.replacen(from, to, 1));
        let expected = BTreeMap::from([("web".to_owned(), phases.to_vec())]);
        assert_eq!(changes(&old, &new), expected, "{from} to {to}");
    }
}

#[test]
fn each_difference_of_an_uplink_is_told_apart() {
    use Phase::{BeginCaptures, Close, EndCaptures, Narrow, Open, Widen};
    let anew = [EndCaptures, Close, Open, BeginCaptures];
    let old = config(FULL);
    for (from, to, phases) in [
        ("packet:hx", "packet:hy", &anew[..]),
        ("packet:hx", "tap:hx", &anew),
        (
            "02:00:5e:10:00:01",
            "02:00:5e:10:00:09",
            &[EndCaptures, Close, Widen, Open, BeginCaptures],
        ),
        (
            "offload = false\ncapture = \"/tmp",
            "capture = \"/tmp",
            &anew,
        ),
        (
            "\"2001:db8:1::1/64\"]",
            "\"2001:db8:1::1/64\", \"10.0.0.1/8\"]",
            &[Widen],
        ),
        (
            "addresses = [\"203.0.113.1/24\", \"2001:db8:1::1/64\"]",
            "addresses = [\"2001:db8:1::1/64\", \"203.0.113.1/24\"]",
            &[Narrow],
        ),
        ("mtu = 9000", "mtu = 8000", &[Widen]),
        (
            "/tmp/up0.pcapng",
            "/tmp/up1.pcapng",
            &[EndCaptures, BeginCaptures],
        ),
    ] {
        assert!(FULL.contains(from), "{from}");
        let new = config(&FULL.replacen(from, to, 1));
        let changes = changes(&old, &new);
        assert_eq!(changes["up0"], phases, "{from} to {to}: {changes:?}");
        assert!(!changes.contains_key("up1"), "{changes:?}");
    }
}

#[test]
fn containers_follow_the_addresses_of_the_nos() {
    let old = config(FULL);
    let new = config(&FULL.replace(
        "\"2001:db8:1::1/64\"]",
        "\"2001:db8:1::1/64\", \"10.0.0.1/8\"]",
    ));
    let changes = changes(&old, &new);
    assert_eq!(changes["db"], [Phase::Claim, Phase::Attach]);
    // It names its addresses; its routes follow the network all the same.
    assert_eq!(changes["web"], [Phase::Attach]);
    let of_db = |config: &Config| state(config).claims[&"db".parse().unwrap()].addresses.len();
    assert_eq!(of_db(&new), of_db(&old) + 1);
}

#[test]
fn what_comes_and_goes_is_listed() {
    use Phase::{Attach, BeginCaptures, BeginServices, Claim, Close, Detach, EndServices, Open};
    let (old, new) = (config(UPLINK), config(FULL));
    let there = changes(&old, &new);
    assert_eq!(there["web"], [Claim, Attach, BeginCaptures]);
    assert_eq!(there["db"], [Claim, Attach]);
    assert_eq!(there["up1"], [Phase::Widen, Open]);
    assert_eq!(there["services"], [BeginServices]);
    assert_eq!(state(&new).routes.len(), 4);
    let restart = |key, old: &str, new: &str| NeedsRestart {
        key,
        old: old.to_owned(),
        new: new.to_owned(),
    };
    let expected = [
        restart("relay.threads", "single", "split"),
        restart("relay.buffers", "2048", "4096"),
        restart("relay.ring", "8", "64"),
        restart("relay.io_uring", "auto", "off"),
    ];
    assert_eq!(RelayConfig::differences(&old.relay, &new.relay), expected);

    let back = changes(&new, &old);
    assert_eq!(back["web"], [Phase::EndCaptures, Detach, Claim]);
    assert_eq!(back["db"], [Detach, Claim]);
    assert_eq!(back["up1"], [Close, Phase::Narrow]);
    assert_eq!(back["services"], [EndServices, BeginServices]);
    assert_eq!(state(&old).routes, []);
}

#[test]
fn a_renamed_container_is_removed_and_added() {
    let (old, new) = (config(FULL), config(&FULL.replace("\"web\"", "\"www\"")));
    let changes = changes(&old, &new);
    assert!(changes["web"].contains(&Phase::Detach));
    assert!(changes["www"].contains(&Phase::Attach));
    assert_eq!(changes.len(), 2, "{changes:?}");
}

#[test]
fn what_is_not_there_is_waited_for_and_what_cannot_be_is_refused() {
    let text = FULL.replace("pid = 1234", "netns = \"/proc/self/ns/net\"");
    let config = config(&text);
    let mut observed = everything(&config);
    let [web, db] = [0, 1].map(|index| config.containers[index].name.clone());
    let missing = NamespacePresence::Missing("no such file".to_owned());
    observed.namespaces.insert(web.clone(), missing);
    observed
        .namespaces
        .insert(db.clone(), NamespacePresence::Here(observed.host));
    let gone = LinkPresence::Missing("there is no interface hx".to_owned());
    let up0 = config.uplinks[0].name.clone();
    observed.links.insert(up0.clone(), gone);
    let want = Want::of(&config, &observed);
    assert_eq!(want.waiting.len(), 2);
    assert_eq!(want.waiting[&Entity::Container(web)], "no such file");
    assert_eq!(
        want.waiting[&Entity::Uplink(up0.clone())],
        "there is no interface hx"
    );
    let refused = &want.refused[&Entity::Container(db.clone())];
    assert!(refused.contains("nos-relay itself"), "{refused}");
    assert!(want.state.claims.is_empty() && want.state.links.is_empty());
    // The NOS has the addresses of an uplink that is away.
    assert!(want.state.networks.contains_key(&up0));
    assert!(!want.state.devices.contains_key(&up0));
}

#[test]
fn two_containers_of_one_namespace_share_no_address() {
    let config = config(FULL);
    let mut observed = everything(&config);
    let same = observed.namespaces[&config.containers[0].name].clone();
    let db = config.containers[1].name.clone();
    observed.namespaces.insert(db.clone(), same);
    let want = Want::of(&config, &observed);
    let refused = &want.refused[&Entity::Container(db)];
    assert_eq!(
        refused,
        "pid 1234 is the namespace of container 'web' as well, and 203.0.113.1 is its address there"
    );
    assert_eq!(want.state.links.len(), 1);
}

#[test]
fn the_mtu_of_an_uplink_is_what_its_interface_carries() {
    let config = config(FULL);
    let mut observed = everything(&config);
    let up0 = config.uplinks[0].name.clone();
    let less = LinkPresence::Here {
        index: 1,
        mac: None,
        mtu: 1400,
    };
    observed.links.insert(up0.clone(), less);
    assert_eq!(Want::of(&config, &observed).state.networks[&up0].mtu, 1400);
    assert_eq!(state(&config).networks[&up0].mtu, 9000);
}

/// Either a configuration, or errors that each name a line of the text.
fn reads_or_explains(text: &str) {
    if let Err(errors) = Config::parse("f", text) {
        let lines = text.matches('\n').count() + 1;
        assert!(!errors.errors().is_empty());
        for error in errors.errors() {
            assert!((1..=lines).contains(&error.line.unwrap()), "{error}");
            assert!(!error.reason.contains('\n') && !error.key.as_deref().unwrap().is_empty());
        }
    }
}

#[test]
fn hostile_texts_are_explained() {
    for text in [
        "a.".repeat(100_000) + "a = 1",
        "[".repeat(100_000),
        "{".repeat(100_000),
        "a = {b = ".repeat(50_000),
        "[[container]]\n".repeat(20_000),
        "[[a.b]]\n".repeat(20_000),
        "\"\"\"".to_owned(),
        "a = \"\\u{110000}\"".to_owned(),
        "= \n".repeat(10_000),
        "\u{feff}\u{feff}".to_owned(),
        "[[uplink]]\nname.x.y = 1\ndevice = { a = [ { b = 1 } ] }".to_owned(),
    ] {
        reads_or_explains(&text);
    }
}

/// A fragment of a configuration, or noise.
fn scraps() -> impl Strategy<Value = String> {
    const WORDS: &[&str] = &[
        "[[uplink]]\n",
        "[[route]]\n",
        "[[container]]\n",
        "[nos]\n",
        "[relay]\n",
        "name = ",
        "device = ",
        "addresses = ",
        "via = ",
        "prefix = ",
        "tcp = ",
        "ephemeral = ",
        "services = ",
        "mtu = ",
        "netns = ",
        "\"up0\"\n",
        "\"packet:hx\"\n",
        "\"203.0.113.1/24\"\n",
        "\"fe80::1%up0\"\n",
        "[\"echo\", \"http:7\"]\n",
        "\"20000-20999\"\n",
        "1500\n",
        "\"/run/netns/C\"\n",
        "\"::/0\"\n",
        "[",
        "]",
        "\"",
        "\n",
        "=",
        "0x",
        "-",
        "é",
    ];
    prop_oneof![
        4 => prop::sample::select(WORDS).prop_map(str::to_owned),
        1 => ".{0,8}",
    ]
}

proptest! {
    #[test]
    fn any_text_is_read_or_explained(text in any::<String>()) {
        reads_or_explains(&text);
    }

    #[test]
    fn any_scraps_are_read_or_explained(scraps in prop::collection::vec(scraps(), 0..40)) {
        reads_or_explains(&scraps.concat());
    }

    #[test]
    fn a_damaged_configuration_is_read_or_explained(
        at in 0..FULL.len(),
        length in 0..40_usize,
        insert in scraps(),
    ) {
        let end = (at + length).min(FULL.len());
        reads_or_explains(&format!("{}{insert}{}", &FULL[..at], &FULL[end..]));
    }

    /// What the text says of ports is what the configuration holds.
    #[test]
    fn disjoint_ranges_round_trip(cuts in prop::collection::btree_set(1..=65_535_u16, 2..40)) {
        let cuts: Vec<_> = cuts.into_iter().collect();
        let pairs = cuts.chunks_exact(2);
        let ranges: Vec<_> = pairs.map(|pair| PortRange::new(pair[0], pair[1]).unwrap()).collect();
        let list: Vec<_> = ranges.iter().map(|range| format!("\"{range}\"")).collect();
        let config = config(&container(&format!("tcp = [{}]", list.join(", "))));
        prop_assert_eq!(&config.containers[0].tcp, &ranges);
    }

    /// Two ranges of two containers are refused exactly if they have a port in common, and the
    /// range that is suggested instead is accepted.
    #[test]
    fn clashes_are_found_and_suggestions_hold(
        a in 1..2000_u16, b in 1..2000_u16, more_a in 0..500_u16, more_b in 0..500_u16,
    ) {
        let (first, second) = (PortRange::new(a, a + more_a).unwrap(), PortRange::new(b, b + more_b).unwrap());
        let text = |second| container(&format!(
            "tcp = \"{first}\"\n[[container]]\nname = \"db\"\npid = 1\ndevice = \"tap\"\ntcp = \"{second}\"\n"
        ));
        let result = Config::parse("f", &text(second));
        prop_assert_eq!(result.is_err(), first.overlaps(second));
        if let Err(errors) = result {
            let errors = errors.to_string();
            let free = errors.split("; ").nth(1).and_then(|tail| tail.strip_suffix(" is free")).unwrap();
            let free: PortRange = free.parse().unwrap();
            prop_assert_eq!(free.len(), second.len());
            config(&text(free));
        }
    }
}

/// Two VRFs with everything the same, and one with nothing but an uplink.
const VRFS: &str = r#"
[[uplink]]
name = "up0"
device = "packet:hx"
addresses = ["203.0.113.1/24", "2001:db8:1::1/64"]

[[uplink]]
name = "up1"
device = "packet:h1"
addresses = ["203.0.113.1/24", "2001:db8:1::1/64"]
vrf = "red"
mtu = 1400

[[uplink]]
name = "up2"
device = "packet:h2"
addresses = "203.0.113.1/25"
vrf = "blue"

[[route]]
prefix = "0.0.0.0/0"
via = "203.0.113.2"

[[route]]
prefix = "0.0.0.0/0"
via = "203.0.113.2"
vrf = "red"

[[container]]
name = "web"
netns = "/run/netns/C"
device = "tap"
vrf = "default"
tcp = 80
ephemeral = "40000-40999"

[[container]]
name = "red-web"
netns = "/run/netns/D"
device = "tap"
vrf = "red"
tcp = [80, 7]
ephemeral = "40000-40999"

[[nos]]
services = "echo"

[[nos]]
vrf = "red"
ping = false
"#;

#[test]
fn vrfs_may_have_the_same_of_everything() {
    let config = config(VRFS);
    let red: VrfName = "red".parse().unwrap();
    let vrfs: Vec<_> = config.uplinks.iter().map(|it| it.vrf.as_str()).collect();
    assert_eq!(vrfs, ["default", "red", "blue"]);
    let hops = config.routes.iter().map(|route| match &route.action {
        RouteAction::Via(hops) => (route.vrf.as_str(), hops[0].uplink.as_str()),
        other => panic!("{other:?}"),
    });
    let hops: Vec<_> = hops.collect();
    assert_eq!(hops, [("default", "up0"), ("red", "up1")]);
    let [web, red_web] = &config.containers[..] else {
        panic!("{:?}", config.containers)
    };
    assert_eq!((&web.vrf, &red_web.vrf), (&VrfName::Default, &red));
    assert_eq!(web.addresses, red_web.addresses);
    assert_eq!((web.mtu.octets(), red_web.mtu.octets()), (1500, 1400));
    assert_eq!(web.networks, red_web.networks);
    let nos: Vec<_> = config.services.iter().collect();
    let [(&VrfName::Default, echo), (of_red, silent)] = nos[..] else {
        panic!("{nos:?}")
    };
    assert_eq!((of_red, echo.ping, silent.ping), (&red, true, false));
    assert_eq!(echo.services, [Service::Echo]);
}

#[test]
fn a_single_table_of_the_nos_may_name_a_vrf() {
    let text = VRFS.replace("[[nos]]\nservices = \"echo\"\n", "");
    let config = config(&text.replace("[[nos]]", "[nos]"));
    let vrfs: Vec<_> = config.services.keys().map(VrfName::as_str).collect();
    assert_eq!(vrfs, ["red"]);
}
