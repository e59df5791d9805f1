//! Ports: published, annotated, allocated, taken.

use nos_relay::control::api::snapshot::{PortKind, Protocol};
use nos_relay::lab::testbed::tcp;
use serde_json::{Value, json};

use crate::base::daemon::LIMIT;
use crate::base::lab_test;
use crate::base::scenario::V4;
use crate::base::traffic::assert_reached;
use crate::engine::plugin::{Call, at_run_time, configuration};
use crate::engine::{CONFIG, Network};

/// Ports of the container `id`, as `tcp listen 80`.
fn owned(network: &Network, id: &str) -> Vec<String> {
    let of = format!(".{id}.");
    let rows = network
        .daemon
        .ports()
        .into_iter()
        .filter(|row| row.owner.contains(&of));
    let mut lines: Vec<_> = rows
        .map(|row| {
            let protocol = match row.protocol {
                Protocol::Tcp => "tcp",
                Protocol::Udp => "udp",
            };
            let kind = match row.kind {
                PortKind::Listen => "listen",
                PortKind::Ephemeral => "ephemeral",
                PortKind::Service => "service",
            };
            format!("{protocol} {kind} {}", row.range)
        })
        .collect();
    lines.sort();
    lines
}

fn add(network: &Network, conf: &Value, index: usize) -> Call {
    let netns = network.container(index).path();
    Call::new("ADD", conf)
        .of(&format!("c{index}"))
        .inside(&netns)
}

fn mappings(list: Value) -> Value {
    json!({"portMappings": list})
}

lab_test! {
    fn published_ports_are_registered_and_those_left_open_are_allocated() {
        let network = Network::new(2);
        let conf = configuration(&network.control(), json!({"ephemeral": {"size": 100}}));
        let published = at_run_time(&conf, mappings(json!([
            {"hostPort": 8080, "containerPort": 8080, "protocol": "tcp"},
            {"hostPort": 8081, "containerPort": 8081, "protocol": "TCP", "hostIP": ""},
            {"HostPort": 53, "ContainerPort": 53, "Protocol": "udp", "HostIP": "0.0.0.0"},
            {"hostPort": 0, "containerPort": 9000, "protocol": "tcp"},
            {"containerPort": 9001, "protocol": "tcp"},
        ])));
        add(&network, &published, 0).succeeds();
        let expected = [
            "tcp ephemeral 30000-30099", "tcp listen 30100", "tcp listen 30101", "tcp listen 8080-8081",
            "udp ephemeral 30000-30099", "udp listen 53",
        ];
        let has = owned(&network, "c0");
        assert_eq!(has, expected);
        assert_reached(&network.topology.external, network.container(0), V4.nos_port(8081));
        let range = network.container(0).read_sysctl("net/ipv4/ip_local_port_range").unwrap();
        let first = has[0].trim_start_matches("tcp ephemeral ").replace('-', "\t");
        assert_eq!(range.trim(), first);
        // The same again, as after an answer that was lost: nothing is allocated twice.
        let again = add(&network, &published, 0).succeeds();
        assert_eq!(owned(&network, "c0"), has);
        assert_eq!(again, add(&network, &published, 0).succeeds());
        // Others get others.
        let before = network.traces();
        let failure = add(&network, &published, 1).fails();
        assert_eq!(failure.code, 100);
        assert!(failure.said.contains("of container \"cni.nosnet.c0.eth0."), "{failure:?}");
        assert!(failure.said.contains("is free"), "{failure:?}");
        network.assert_as_before(&before, "after it");
        for index in [0, 1] {
            Call::new("DEL", &published).of(&format!("c{index}")).succeeds();
        }
        assert_eq!(network.registrations(), []);
        assert_eq!(network.daemon.ports(), []);
    }
}

lab_test! {
    fn an_add_that_was_killed_halfway_is_finished_by_the_next() {
        let network = Network::new(1);
        let conf = configuration(&network.control(), json!({"tcp": 80, "ephemeral": {"size": 100}}));
        let whole = add(&network, &conf, 0).succeeds();
        let has = owned(&network, "c0");
        // As if it had ended between attaching and allocating.
        let name = network.daemon.attachments().remove(0).name;
        let request = json!({"type": "ports-replace", "container": name, "tcp": 80});
        nos_relay_engines::daemon::Daemon::at(network.control()).change(request, None).unwrap();
        assert_eq!(owned(&network, "c0"), ["tcp listen 80"]);
        assert_eq!(add(&network, &conf, 0).succeeds(), whole);
        assert_eq!(owned(&network, "c0"), has);
        // Other ports for the same container are refused, and it keeps those that it has.
        let other = configuration(&network.control(), json!({"tcp": 81, "ephemeral": {"size": 100}}));
        let failure = add(&network, &other, 0).fails();
        assert_eq!(failure.code, 101, "{failure:?}");
        assert!(failure.said.contains("attached already, with other ports"), "{failure:?}");
        assert_eq!(owned(&network, "c0"), has);
        Call::new("DEL", &conf).of("c0").succeeds();
    }
}

lab_test! {
    fn annotations_choose_ports_pool_and_address() {
        let network = Network::new(2);
        let pools = json!({"tenants": {"addresses": ["203.0.113.3"]}});
        let own = json!({"tcp": 80, "udp": 53, "pools": pools, "from": "203.0.113.0/24"});
        let conf = configuration(&network.control(), own);
        let annotated = |annotations: Value| {
            at_run_time(&conf, json!({"io.kubernetes.cri.pod-annotations": annotations}))
        };
        let chosen = annotated(json!({
            "nos-relay.io/tcp": "20000-20099, 179", "nos-relay.io/ephemeral": "size=10",
            "ipam.com/netspace": "tenants", "kubernetes.io/config.source": "api",
        }));
        let result = add(&network, &chosen, 0).succeeds();
        assert_eq!(result["ips"], json!([{"address": "203.0.113.3/32", "interface": 0}]));
        let has = owned(&network, "c0");
        assert!(has.contains(&"tcp listen 20000-20099".to_owned()), "{has:?}");
        assert!(has.contains(&"tcp listen 179".to_owned()), "{has:?}");
        assert!(has.contains(&"udp listen 53".to_owned()), "{has:?}");
        assert!(!has.contains(&"tcp listen 80".to_owned()), "{has:?}");
        let rows = network.daemon.ports();
        assert!(rows.iter().filter(|row| row.kind == PortKind::Listen).all(|row| row.from.is_some()));
        // An address that is chosen by itself counts more than a pool's.
        let fixed = annotated(json!({
            "nos-relay.io/address": "203.0.113.1", "nos-relay.io/pool": "tenants", "nos-relay.io/tcp": "size=4",
        }));
        let result = add(&network, &fixed, 1).succeeds();
        assert_eq!(result["ips"], json!([{"address": "203.0.113.1/32", "interface": 0}]));
        let rows = network.daemon.ports();
        let allocated = rows.iter().find(|row| row.owner.contains(".c1.") && row.range.len() == 4);
        assert!(allocated.unwrap().from.is_some());
        for index in [0, 1] {
            Call::new("DEL", &conf).of(&format!("c{index}")).succeeds();
        }
        assert_eq!(network.registrations(), []);
    }
}

lab_test! {
    fn an_ipam_plugin_chooses_among_the_nos_s_addresses() {
        if !std::path::Path::new("/usr/lib/cni/static").exists() {
            return crate::base::skip("containernetworking-plugins is not installed");
        }
        let network = Network::new(1);
        let mut conf = configuration(&network.control(), json!({"tcp": 80}));
        conf["cniVersion"] = "1.0.0".into();
        conf["ipam"] = json!({
            "type": "static", "addresses": [{"address": "203.0.113.3/24"}],
            "dns": {"nameservers": ["198.51.100.53"]},
        });
        let result = add(&network, &conf, 0).succeeds();
        assert_eq!(result["ips"], json!([{"address": "203.0.113.3/32", "interface": 0}]));
        assert_eq!(result["dns"]["nameservers"], json!(["198.51.100.53"]));
        let mut checked = conf.clone();
        checked["prevResult"] = result;
        let netns = network.container(0).path();
        Call::new("CHECK", &checked).of("c0").inside(&netns).succeeds();
        Call::new("DEL", &conf).of("c0").succeeds();
        // Of host-local, what it has given is given back where the daemon refuses it.
        let before = network.traces();
        let store = network.daemon.files().path("ipam");
        conf["ipam"] = json!({
            "type": "host-local", "dataDir": store.display().to_string(),
            "ranges": [[{"subnet": "203.0.113.0/24", "rangeStart": "203.0.113.100"}]],
        });
        let failure = add(&network, &conf, 0).fails();
        assert_eq!(failure.code, 7, "{failure:?}");
        assert!(failure.said.contains("203.0.113.100"), "{failure:?}");
        let left = std::fs::read_dir(store.join("nosnet")).unwrap();
        let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
        assert!(left.iter().all(|name| !name.to_string_lossy().starts_with("203.")), "{left:?}");
        network.assert_as_before(&before, "after it");
        // What fails is told as the plugin tells it.
        conf["ipam"] = json!({"type": "static", "addresses": [{"address": "nonsense"}]});
        let failure = add(&network, &conf, 0).fails();
        assert!(failure.said.contains("ipam static:"), "{failure:?}");
        conf["ipam"] = json!({"type": "nobody"});
        let failure = add(&network, &conf, 0).fails();
        assert!(failure.said.contains("\"nobody\" is not found in CNI_PATH"), "{failure:?}");
        network.assert_as_before(&before, "after it");
    }
}

lab_test! {
    fn an_ipam_plugin_gives_containers_of_a_routed_network_addresses_of_their_own() {
        if !std::path::Path::new("/usr/lib/cni/host-local").exists() {
            return crate::base::skip("containernetworking-plugins is not installed");
        }
        let network = Network::with(2, &format!("{CONFIG}\n[[network]]\nname = \"lan\"\nmode = \"routed\"\ndevice = \"veth\"\n"));
        let mut conf = configuration(&network.control(), json!({"network": "lan"}));
        conf["cniVersion"] = "1.0.0".into();
        let store = network.daemon.files().path("ipam");
        conf["ipam"] = json!({
            "type": "host-local", "dataDir": store.display().to_string(),
            "ranges": [[{"subnet": "203.0.113.0/24", "rangeStart": "203.0.113.100"}]],
        });
        // What is published is reached anyway, and of other ports nothing is said.
        let mapping = json!({"portMappings": [{"hostPort": 8080, "containerPort": 8080, "protocol": "tcp"}]});
        let conf = at_run_time(&conf, mapping);
        let own = ["203.0.113.100", "203.0.113.101"];
        for (index, own) in own.into_iter().enumerate() {
            let result = add(&network, &conf, index).succeeds();
            assert_eq!(result["ips"], json!([{"address": format!("{own}/32"), "interface": 0}]));
            let server = std::net::SocketAddr::new(own.parse().unwrap(), 443);
            let echo = tcp::EchoServer::start(network.container(index), server).unwrap();
            tcp::exchange(&network.topology.external, None, server, b"x", LIMIT).unwrap();
            assert_eq!(echo.peers().len(), 1);
        }
        assert_eq!(network.daemon.ports(), []);
        // Without NAT, another port would lie.
        let other = json!({"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]});
        let failure = add(&network, &at_run_time(&conf, other), 0).fails();
        assert!(failure.said.contains("NAT"), "{failure:?}");
        for index in [0, 1] {
            Call::new("DEL", &conf).of(&format!("c{index}")).succeeds();
        }
        assert_eq!(network.registrations(), []);
    }
}
