//! Containers on a Linux bridge: one of the daemon's, and one of another plugin's.

use std::net::SocketAddr;
use std::path::Path;

use nos_relay::lab::testbed::{LabNamespace, tcp};
use serde_json::{Value, json};

use crate::base::daemon::LIMIT;
use crate::base::lab_test;
use crate::engine::plugin::{Call, at_run_time, configuration};
use crate::engine::{CONFIG, Network};

fn is_there(plugin: &str) -> bool {
    Path::new("/usr/lib/cni").join(plugin).exists()
}

fn add(network: &Network, conf: &Value, index: usize) -> Call {
    let netns = network.container(index).path();
    Call::new("ADD", conf)
        .of(&format!("c{index}"))
        .inside(&netns)
}

/// Another plugin, as an engine on the host runs it.
fn other(network: &Network, command: &str, conf: &Value, index: usize) -> Value {
    let plugin = conf["type"].as_str().unwrap();
    Call::new(command, conf)
        .of_other(plugin, &network.topology.device)
        .of(&format!("c{index}"))
        .inside(&network.container(index).path())
        .succeeds()
}

/// Somebody in `from` reaches `server` in `to`. Returns from where.
#[track_caller]
fn reaches(from: &LabNamespace, to: &LabNamespace, server: &str) -> SocketAddr {
    let server = server.parse().unwrap();
    let echo = tcp::EchoServer::start(to, server).unwrap();
    tcp::exchange(from, None, server, b"x", LIMIT).unwrap();
    echo.peers()[0]
}

fn published(port: u16) -> Value {
    json!({"portMappings": [{"hostPort": port, "containerPort": port, "protocol": "tcp"}]})
}

lab_test! {
    fn an_ipam_plugin_gives_addresses_on_a_bridge() {
        if !is_there("host-local") {
            return crate::base::skip("containernetworking-plugins is not installed");
        }
        let network = Network::with(2, &format!("{CONFIG}\n[[network]]\nname = \"team\"\nmode = \"bridge\"\n"));
        let before = network.traces();
        let mut conf = configuration(&network.control(), json!({"network": "team", "ephemeral": {"size": 64}}));
        conf["cniVersion"] = "1.0.0".into();
        let store = network.daemon.files().path("ipam");
        conf["ipam"] = json!({
            "type": "host-local", "dataDir": store.display().to_string(),
            "ranges": [[{"subnet": "172.31.9.0/24", "rangeStart": "172.31.9.10"}]],
        });
        let external = &network.topology.external;
        let containers = [0, 1].map(|index| network.container(index));
        for (index, port) in [8080, 8081].into_iter().enumerate() {
            let conf = at_run_time(&conf, published(port));
            let result = add(&network, &conf, index).succeeds();
            let own = format!("172.31.9.1{index}/24");
            let ips = result["ips"].as_array().unwrap().iter();
            let ips: Vec<_> = ips.map(|ip| ip["address"].as_str().unwrap()).collect();
            assert_eq!(ips[..2], [own.as_str(), "203.0.113.1/32"], "{result}");
            let mut checked = conf.clone();
            checked["prevResult"] = result;
            Call::new("CHECK", &checked).of(&format!("c{index}")).inside(&containers[index].path()).succeeds();
            reaches(external, containers[index], &format!("203.0.113.1:{port}"));
        }
        let seen = reaches(containers[1], containers[0], "172.31.9.10:9000");
        assert_eq!(seen.ip().to_string(), "172.31.9.11");
        reaches(containers[1], containers[0], "203.0.113.1:8080");
        let seen = reaches(containers[0], external, "203.0.113.2:8080");
        assert_eq!(seen.ip().to_string(), "203.0.113.1");
        for index in [0, 1] {
            Call::new("DEL", &conf).of(&format!("c{index}")).succeeds();
        }
        assert_eq!(network.registrations(), []);
        network.assert_as_before(&before, "after it");
    }
}

lab_test! {
    fn a_container_of_another_plugin_gets_the_nos_s_address_beside_its_own() {
        if !(is_there("bridge") && is_there("host-local")) {
            return crate::base::skip("containernetworking-plugins is not installed");
        }
        let network = Network::new(2);
        let store = network.daemon.files().path("ipam");
        let bridge = json!({
            "cniVersion": "1.0.0", "name": "cluster", "type": "bridge", "bridge": "cni7",
            "isDefaultGateway": true,
            "ipam": {
                "type": "host-local", "dataDir": store.display().to_string(),
                "ranges": [[{"subnet": "172.31.10.0/24", "rangeStart": "172.31.10.10"}]],
            },
        });
        let mut conf = configuration(&network.control(), json!({"device": "existing", "ephemeral": {"size": 64}}));
        conf["cniVersion"] = "1.0.0".into();
        // Alone it has nothing to take up.
        let failure = add(&network, &conf, 0).fails();
        assert!(failure.said.contains("no plugin before this one has made eth0"), "{failure:?}");
        let external = &network.topology.external;
        let containers = [0, 1].map(|index| network.container(index));
        for (index, port) in [8080, 8081].into_iter().enumerate() {
            let made = other(&network, "ADD", &bridge, index);
            let mut conf = at_run_time(&conf, published(port));
            conf["prevResult"] = made.clone();
            let result = add(&network, &conf, index).succeeds();
            assert_eq!(result["interfaces"], made["interfaces"]);
            assert_eq!(result["routes"], made["routes"]);
            let ips = result["ips"].as_array().unwrap();
            assert_eq!(ips[0], made["ips"][0]);
            let at = ips[0]["interface"].clone();
            assert_eq!(ips[1], json!({"address": "203.0.113.1/32", "interface": at}));
            conf["prevResult"] = result;
            Call::new("CHECK", &conf).of(&format!("c{index}")).inside(&containers[index].path()).succeeds();
            reaches(external, containers[index], &format!("203.0.113.1:{port}"));
        }
        // By what the other plugin has made: container to container, and the host.
        let seen = reaches(containers[1], containers[0], "172.31.10.10:9000");
        assert_eq!(seen.ip().to_string(), "172.31.10.11");
        reaches(&network.topology.device, containers[0], "172.31.10.10:9001");
        let seen = reaches(containers[0], external, "203.0.113.2:8080");
        assert_eq!(seen.ip().to_string(), "203.0.113.1");
        for (index, container) in containers.into_iter().enumerate() {
            // In reverse, as chains are taken down.
            Call::new("DEL", &conf).of(&format!("c{index}")).succeeds();
            assert!(container.link("eth0").unwrap().is_some());
            other(&network, "DEL", &bridge, index);
            assert!(container.link("eth0").unwrap().is_none());
        }
        assert_eq!(network.registrations(), []);
    }
}
