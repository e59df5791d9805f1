//! `ADD`, `CHECK`, `DEL`, `STATUS` and `VERSION`.

use std::net::SocketAddr;

use nos_relay::lab::testbed::tcp;
use serde_json::{Value, json};

use crate::base::daemon::LIMIT;
use crate::base::lab_test;
use crate::base::scenario::{FAMILIES, Family};
use crate::base::traffic::assert_reached;
use crate::engine::Network;
use crate::engine::plugin::{Call, at_run_time, configuration};

fn own() -> Value {
    json!({"tcp": "20000-20099", "udp": [20000, "20010-20019"], "ephemeral": "40000-40999"})
}

/// The other way round: the container opens a flow, from a port of its own.
fn assert_reaches(network: &Network, family: Family) -> SocketAddr {
    let server = tcp::EchoServer::start(&network.topology.external, family.external_port(7000));
    let server = server.unwrap();
    let from = tcp::exchange(network.container(0), None, server.address(), b"out", LIMIT);
    let from = from.unwrap();
    assert_eq!(from.ip(), family.nos);
    assert!((40000..=40999).contains(&from.port()), "{from}");
    from
}

fn works_with(device: &str) {
    let network = Network::new(1);
    let before = network.traces();
    let mut own = own();
    own["device"] = device.into();
    let conf = configuration(&network.control(), own);
    let netns = network.container(0).path();
    let result = Call::new("ADD", &conf).of("c1").inside(&netns).succeeds();
    let row = network.daemon.attachments().remove(0);
    assert_eq!(row.link.device, device);
    assert_eq!(
        result,
        json!({
            "cniVersion": "1.1.0",
            "interfaces": [{
                "name": "eth0", "mac": row.container_mac.to_string(), "mtu": 1500,
                "sandbox": netns.display().to_string(),
            }],
            "ips": [
                {"address": "203.0.113.1/32", "interface": 0},
                {"address": "2001:db8:1::1/128", "interface": 0},
                {"address": "203.0.113.3/32", "interface": 0},
            ],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
            "dns": {},
        })
    );
    for family in FAMILIES {
        let external = &network.topology.external;
        assert_reached(external, network.container(0), family.nos_port(20000));
        assert_reaches(&network, family);
    }
    let mut with_result = conf.clone();
    with_result["prevResult"] = result;
    let check = Call::new("CHECK", &with_result).of("c1").inside(&netns);
    assert_eq!(check.succeeds(), Value::Null);
    let del = Call::new("DEL", &with_result).of("c1").inside(&netns);
    assert_eq!(del.succeeds(), Value::Null);
    network.assert_as_before(&before, "after it");
}

lab_test! {
    fn a_container_has_the_nos_s_address_until_it_is_deleted() {
        works_with("veth");
    }
}

lab_test! {
    fn the_same_with_a_tap() {
        if let Err(error) = nos_relay::lab::testbed::tun_access() {
            return crate::base::skip(&format!("/dev/net/tun cannot be opened: {error}"));
        }
        works_with("tap");
    }
}

lab_test! {
    fn a_container_without_ipv6_has_ipv4_alone() {
        let network = Network::new(1);
        network.container(0).sysctl("net/ipv6/conf/all/disable_ipv6", "1").unwrap();
        let netns = network.container(0).path();
        let mut conf = configuration(&network.control(), own());
        let result = Call::new("ADD", &conf).of("c1").inside(&netns).succeeds();
        let ips = result["ips"].as_array().unwrap();
        assert_eq!(ips.len(), 2, "{result}");
        assert_eq!(result["routes"], json!([{"dst": "0.0.0.0/0"}]));
        conf["prevResult"] = result;
        Call::new("CHECK", &conf).of("c1").inside(&netns).succeeds();
        Call::new("DEL", &conf).of("c1").succeeds();
    }
}

lab_test! {
    fn each_version_has_results_of_its_own() {
        let network = Network::new(1);
        let netns = network.container(0).path();
        for version in ["0.4.0", "1.0.0", "1.1.0"] {
            let mut conf = configuration(&network.control(), own());
            conf["cniVersion"] = version.into();
            let result = Call::new("ADD", &conf).of(version).inside(&netns).succeeds();
            assert_eq!(result["cniVersion"], version);
            assert_eq!(result["ips"][0].get("version").is_some(), version == "0.4.0", "{result}");
            assert_eq!(result["interfaces"][0].get("mtu").is_some(), version == "1.1.0", "{result}");
            Call::new("DEL", &conf).of(version).succeeds();
        }
    }
}

lab_test! {
    fn it_adds_to_what_plugins_before_it_have_done() {
        let network = Network::new(1);
        let netns = network.container(0).path();
        let mut conf = configuration(&network.control(), own());
        conf["prevResult"] = json!({
            "cniVersion": "1.1.0",
            "interfaces": [{"name": "lo", "sandbox": netns.display().to_string()}],
            "ips": [{"address": "127.0.0.1/8", "interface": 0}],
            "dns": {"nameservers": ["198.51.100.53"]},
        });
        conf["dns"] = json!({"nameservers": ["192.0.2.53"]});
        let result = Call::new("ADD", &conf).of("c1").inside(&netns).succeeds();
        assert_eq!(result["interfaces"][0]["name"], "lo");
        assert_eq!(result["interfaces"][1]["name"], "eth0");
        assert_eq!(result["ips"][0], conf["prevResult"]["ips"][0]);
        assert_eq!(result["ips"][1], json!({"address": "203.0.113.1/32", "interface": 1}));
        assert_eq!(result["dns"], json!({"nameservers": ["198.51.100.53"]}));
        // Its own result, where somebody else's should be.
        conf["prevResult"] = result;
        let failure = Call::new("ADD", &conf).of("c2").inside(&netns).fails();
        assert_eq!(failure.code, 7);
        assert!(failure.said.contains("has made eth0 already"), "{failure:?}");
        Call::new("DEL", &conf).of("c1").succeeds();
    }
}

lab_test! {
    fn an_engine_gives_addresses_and_mac() {
        let network = Network::new(1);
        let netns = network.container(0).path();
        let conf = configuration(&network.control(), json!({}));
        let runtime = json!({
            "ips": ["203.0.113.3/24"], "mac": "02:00:5E:10:00:01", "aliases": {"nosnet": ["web"]},
        });
        let conf = at_run_time(&conf, runtime);
        let result = Call::new("ADD", &conf).of("c1").inside(&netns).succeeds();
        assert_eq!(result["interfaces"][0]["mac"], "02:00:5e:10:00:01");
        assert_eq!(result["ips"], json!([{"address": "203.0.113.3/32", "interface": 0}]));
        assert_eq!(result["routes"], json!([{"dst": "0.0.0.0/0"}]));
        Call::new("DEL", &conf).of("c1").succeeds();
        // By arguments, as some engines have it.
        let conf = configuration(&network.control(), json!({}));
        let call = Call::new("ADD", &conf).of("c2").inside(&netns);
        let call = call.with("CNI_ARGS", "IgnoreUnknown=1;IP=203.0.113.1;MAC=02:00:5e:10:00:02;X=Y");
        let result = call.succeeds();
        assert_eq!(result["interfaces"][0]["mac"], "02:00:5e:10:00:02");
        assert_eq!(result["ips"], json!([{"address": "203.0.113.1/32", "interface": 0}]));
        Call::new("DEL", &conf).of("c2").succeeds();
    }
}

lab_test! {
    fn check_sees_what_is_not_as_it_was_added() {
        let network = Network::new(1);
        let netns = network.container(0).path();
        let mut conf = configuration(&network.control(), own());
        let result = Call::new("ADD", &conf).of("c1").inside(&netns).succeeds();
        conf["prevResult"] = result.clone();
        let check = |conf: &Value| Call::new("CHECK", conf).of("c1").inside(&netns);
        check(&conf).succeeds();
        for (pointer, value, why) in [
            ("/prevResult/interfaces/0/mac", json!("02:00:5e:10:00:09"), "has the MAC address"),
            ("/prevResult/ips/0/address", json!("203.0.113.9/32"), "has the addresses"),
        ] {
            let mut other = conf.clone();
            *other.pointer_mut(pointer).unwrap() = value;
            let failure = check(&other).fails();
            assert_eq!(failure.code, 102);
            assert!(failure.said.contains(why), "{failure:?}");
        }
        network.container(0).set_down("eth0").unwrap();
        let failure = check(&conf).fails();
        assert_eq!(failure.code, 102);
        assert!(failure.said.contains("down"), "{failure:?}");
        network.container(0).set_up("eth0").unwrap();
        conf.as_object_mut().unwrap().remove("prevResult");
        assert_eq!(check(&conf).fails().code, 7);
        Call::new("DEL", &conf).of("c1").succeeds();
        conf["prevResult"] = result;
        let failure = check(&conf).fails();
        assert_eq!(failure.code, 102);
        assert!(failure.said.contains("the daemon has no container cni.nosnet.c1.eth0."), "{failure:?}");
    }
}

lab_test! {
    fn status_says_whether_containers_can_be_added() {
        let network = Network::new(0);
        let conf = configuration(&network.control(), json!({}));
        let status = |conf: &Value| Call::new("STATUS", conf);
        assert_eq!(status(&conf).succeeds(), Value::Null);
        let other = configuration(&network.control(), json!({"vrf": "red"}));
        let failure = status(&other).fails();
        assert_eq!(failure.code, 50);
        assert!(failure.said.contains("no uplink is in VRF \"red\""), "{failure:?}");
        let other = configuration(&network.control(), json!({"network": "nobodys"}));
        let failure = status(&other).fails();
        assert_eq!(failure.code, 50);
        assert!(failure.said.contains("has no network \"nobodys\""), "{failure:?}");
        network.topology.device.set_down("hx").unwrap();
        let failure = crate::base::daemon::await_that("the uplink is down", || {
            status(&conf).outcome().err().ok_or_else(|| "it is up".to_owned())
        });
        assert_eq!(failure.code, 51);
        assert!(failure.said.contains("hx is down"), "{failure:?}");
        network.topology.device.set_up("hx").unwrap();
        let nowhere = configuration(&network.daemon.files().path("nobody.sock"), json!({}));
        let failure = status(&nowhere).fails();
        assert_eq!(failure.code, 51);
        assert!(failure.said.contains("no nos-relay is running there"), "{failure:?}");
    }
}

#[test]
fn the_versions_are_told_to_an_engine_of_whichever() {
    for version in ["0.1.0", "1.1.0", "2.0.0"] {
        let answer = Call::new("VERSION", &json!({"cniVersion": version})).succeeds();
        assert_eq!(answer["cniVersion"], version);
        assert_eq!(
            answer["supportedVersions"],
            json!(["0.4.0", "1.0.0", "1.1.0"])
        );
    }
}

/// A daemon with two networks, each with the addresses of an uplink.
const NETWORKS: &str = r#"
[[uplink]]
name = "up0"
device = "packet:hx"
addresses = "203.0.113.1/24"

[[uplink]]
name = "up1"
device = "tap:up1"
addresses = "198.51.100.1/24"

[[network]]
name = "front"
uplinks = "up0"
device = "veth"

[[network]]
name = "back"
uplinks = "up1"
device = "veth"
"#;

lab_test! {
    fn a_container_is_in_several_networks() {
        if let Err(error) = nos_relay::lab::testbed::tun_access() {
            return crate::base::skip(&format!("/dev/net/tun cannot be opened: {error}"));
        }
        let network = Network::with(1, NETWORKS);
        let before = network.traces();
        let netns = network.container(0).path();
        let conf = |name: &str, own: Value| {
            let mut conf = configuration(&network.control(), own);
            conf["name"] = name.into();
            conf
        };
        let front = conf("front", json!({"network": "front", "tcp": 20000, "mtu": 1400}));
        // A pod's annotation chooses the network.
        let annotated = json!({"io.kubernetes.cri.pod-annotations": {"nos-relay.io/network": "back"}});
        let back = at_run_time(&conf("back", json!({"tcp": 20000})), annotated);
        Call::new("STATUS", &front).succeeds();
        let first = Call::new("ADD", &front).of("c1").inside(&netns).succeeds();
        let second = Call::new("ADD", &back).of("c1").with("CNI_IFNAME", "net1").inside(&netns).succeeds();
        assert_eq!(first["ips"], json!([{"address": "203.0.113.1/32", "interface": 0}]));
        assert_eq!(first["routes"], json!([{"dst": "0.0.0.0/0"}]));
        assert_eq!(first["interfaces"][0]["mtu"], 1400);
        assert_eq!(network.container(0).link("eth0").unwrap().unwrap().mtu, 1400);
        assert_eq!(second["ips"], json!([{"address": "198.51.100.1/32", "interface": 0}]));
        assert_eq!(second["routes"], json!([]));
        for (conf, result, interface) in [(&front, first, "eth0"), (&back, second, "net1")] {
            let mut conf = conf.clone();
            conf["prevResult"] = result;
            let check = Call::new("CHECK", &conf).of("c1").with("CNI_IFNAME", interface);
            check.inside(&netns).succeeds();
        }
        assert_reached(&network.topology.external, network.container(0), FAMILIES[0].nos_port(20000));
        for (conf, interface) in [(&front, "eth0"), (&back, "net1")] {
            Call::new("DEL", conf).of("c1").with("CNI_IFNAME", interface).succeeds();
        }
        network.assert_as_before(&before, "both are deleted");
    }
}
