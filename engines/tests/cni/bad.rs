//! Bad input: an error in CNI's form that says what is wrong, and nothing left behind.

use serde_json::{Value, json};

use crate::base::lab_test;
use crate::engine::Network;
use crate::engine::plugin::{Call, at_run_time, configuration};

/// A call that would reach no daemon.
fn add(conf: &Value) -> Call {
    Call::new("ADD", conf)
        .of("c1")
        .with("CNI_NETNS", "/proc/1/ns/net")
}

fn plain() -> Value {
    configuration("/nowhere/nos-relay.sock".as_ref(), json!({}))
}

fn assert_fails(call: &Call, code: u64, why: &str) {
    let failure = call.fails();
    assert_eq!(failure.code, code, "{call:?}: {failure:?}");
    assert!(failure.said.contains(why), "{call:?}: {failure:?}");
    assert!(failure.said.len() < 6000, "{}", failure.said.len());
}

#[test]
fn an_environment_that_is_none_is_named() {
    let conf = plain();
    let long = "a".repeat(5000);
    assert_fails(
        &add(&conf).without("CNI_COMMAND"),
        4,
        "CNI_COMMAND is not set",
    );
    assert_fails(
        &add(&conf).with("CNI_COMMAND", "add"),
        4,
        "none of ADD, DEL",
    );
    assert_fails(
        &add(&conf).with("CNI_COMMAND", long.clone()),
        4,
        "none of ADD, DEL",
    );
    assert_fails(
        &add(&conf).without("CNI_CONTAINERID"),
        4,
        "CNI_CONTAINERID is not set",
    );
    assert_fails(&add(&conf).without("CNI_NETNS"), 4, "CNI_NETNS is not set");
    assert_fails(
        &add(&conf).without("CNI_IFNAME"),
        4,
        "CNI_IFNAME is not set",
    );
    for bad in ["../../etc/passwd", "-rf", "a b", "a\nb", long.as_str()] {
        assert_fails(&add(&conf).of(bad), 4, "CNI_CONTAINERID");
    }
    for bad in ["eth0/1", "lo", "..", "sixteen-octets-x", "a b"] {
        assert_fails(&add(&conf).with("CNI_IFNAME", bad), 4, "CNI_IFNAME");
    }
    for bad in ["relative/path", "/a\nb", &format!("/{long}")] {
        assert_fails(
            &add(&conf).with("CNI_NETNS", bad),
            4,
            "is not an absolute path",
        );
    }
    for bad in ["/proc/self/ns/net", "/proc/thread-self/ns/net"] {
        let call = add(&conf).with("CNI_NETNS", bad);
        assert_fails(&call, 4, "is another namespace for everybody");
    }
    assert_fails(&add(&conf).with("CNI_ARGS", "K=V"), 4, "\"K\" is not known");
    assert_fails(
        &add(&conf).with("CNI_ARGS", "nothing"),
        4,
        "is no KEY=VALUE",
    );
    assert_fails(
        &add(&conf).with("CNI_ARGS", "IP=1.2.3"),
        7,
        "IP is no address",
    );
    assert_fails(
        &add(&conf).with("CNI_ARGS", "MAC=1.2.3"),
        7,
        "is no MAC address",
    );
}

#[test]
fn what_is_no_configuration_is_said_to_be_none() {
    let conf = plain();
    for (input, code, why) in [
        ("", 6, "not JSON"),
        ("{", 6, "not JSON"),
        ("[]", 6, "has to be an object"),
        ("null", 6, "has to be an object"),
        ("{\"a\":1}{", 6, "not JSON"),
        ("\u{0}", 6, "not JSON"),
        ("{}", 1, "0.1.0"),
        (
            r#"{"cniVersion":"0.3.1","name":"n"}"#,
            1,
            "speaks 0.4.0, 1.0.0, 1.1.0",
        ),
        (r#"{"cniVersion":"1.2.0","name":"n"}"#, 1, "\"1.2.0\""),
        (
            r#"{"cniVersion":1,"name":"n"}"#,
            7,
            "cniVersion: is a number",
        ),
        (r#"{"cniVersion":"1.1.0"}"#, 7, "name: is missing"),
        (r#"{"cniVersion":"1.1.0","name":7}"#, 7, "name: is a number"),
        (
            r#"{"cniVersion":"1.1.0","name":"../n"}"#,
            7,
            "name: network name \"../n\"",
        ),
        (
            r#"{"cniVersion":"1.1.0","name":"n","nos-relay":[]}"#,
            7,
            "nos-relay: is a list",
        ),
        (
            r#"{"cniVersion":"1.1.0","name":"n","ipam":[]}"#,
            7,
            "ipam: is a list",
        ),
        (
            r#"{"cniVersion":"1.1.0","name":"n","ipam":{"type":"../../bin/sh"}}"#,
            7,
            "ipam.type",
        ),
    ] {
        assert_fails(&add(&conf).saying(input), code, why);
    }
    let deep = format!("{}1{}", "{\"a\":".repeat(5000), "}".repeat(5000));
    assert_fails(&add(&conf).saying(deep), 6, "not JSON");
    assert_fails(&add(&conf).saying(vec![b' '; (4 << 20) + 1]), 6, "too long");
    for command in ["GC", "STATUS"] {
        let mut old = conf.clone();
        old["cniVersion"] = "1.0.0".into();
        assert_fails(&Call::new(command, &old), 1, command);
    }
    assert_fails(
        &Call::new("GC", &conf),
        7,
        "cni.dev/valid-attachments: is missing",
    );
    assert_fails(&Call::new("VERSION", &conf).saying("{"), 6, "not JSON");
    assert_fails(
        &Call::new("VERSION", &json!({"cniVersion": 1})),
        6,
        "cniVersion",
    );
}

#[test]
fn our_section_is_read_strictly_and_others_keys_are_let_be() {
    for (own, why) in [
        (
            json!({"contrl": "/x"}),
            "nos-relay.contrl: is not known; there are control",
        ),
        (json!({"device": "bridge"}), "nos-relay.device"),
        (json!({"device": 1}), "nos-relay.device: is a number"),
        (json!({"tcp": "65536"}), "nos-relay.tcp"),
        (json!({"tcp": 0}), "nos-relay.tcp"),
        (json!({"tcp": -1}), "nos-relay.tcp"),
        (json!({"tcp": [1.5]}), "nos-relay.tcp"),
        (json!({"udp": [[1]]}), "nos-relay.udp: is a list"),
        (json!({"udp": true}), "nos-relay.udp: is true or false"),
        (json!({"ephemeral": {"size": 0}}), "nos-relay.ephemeral"),
        (json!({"ephemeral": {"size": 40000}}), "nos-relay.ephemeral"),
        (
            json!({"ephemeral": {"size": "9"}}),
            "nos-relay.ephemeral.size",
        ),
        (
            json!({"ephemeral": {"count": 9}}),
            "nos-relay.ephemeral.count: is not known",
        ),
        (
            json!({"to": "somewhere"}),
            "nos-relay.to: \"somewhere\" is no prefix",
        ),
        (json!({"from": [1]}), "nos-relay.from: is a number"),
        (json!({"outside": "allow"}), "nos-relay.outside"),
        (
            json!({"addresses": "203.0.113.1/24"}),
            "nos-relay.addresses",
        ),
        (json!({"vrf": "a b"}), "nos-relay.vrf"),
        (
            json!({"mtu": 575}),
            "nos-relay.mtu: is not a number of 576 to 65535",
        ),
        (json!({"mtu": "1400"}), "nos-relay.mtu"),
        (json!({"network": 1}), "nos-relay.network"),
        (json!({"pools": []}), "nos-relay.pools: is a list"),
        (
            json!({"pools": {"red": {"vrv": "x"}}}),
            "nos-relay.pools.red.vrv: is not known",
        ),
        (json!({"pools": {"a b": {}}}), "pool name"),
    ] {
        let conf = configuration("/nowhere/nos-relay.sock".as_ref(), own);
        assert_fails(&add(&conf), 7, why);
    }
    let mut conf = plain();
    conf["nos-relay"]["control"] = "relative".into();
    assert_fails(&add(&conf), 7, "nos-relay.control: is not an absolute path");
    // All is well, but that nobody listens there.
    let mut conf = plain();
    conf["someone"] = json!({"elses": [null]});
    conf["nos-relay"]["tcp"] = Value::Null;
    assert_fails(&add(&conf), 11, "no nos-relay is running there");
}

#[test]
fn what_an_engine_asks_for_is_read_strictly() {
    let mapping = |mapping: Value| json!({"portMappings": [mapping]});
    let annotation =
        |key: &str, value: Value| json!({"io.kubernetes.cri.pod-annotations": {key: value}});
    for (runtime, code, why) in [
        (json!([]), 7, "runtimeConfig: is a list"),
        (
            json!({"portMappings": {}}),
            7,
            "runtimeConfig.portMappings: is an object",
        ),
        (
            mapping(json!(8080)),
            7,
            "runtimeConfig.portMappings: is a number",
        ),
        (
            mapping(json!({"hostPort": 80, "containerPort": 8080})),
            7,
            "there is no NAT",
        ),
        (
            mapping(json!({"hostPort": 65536, "containerPort": 65536})),
            7,
            "65536 is no port",
        ),
        (
            mapping(json!({"hostPort": "80", "containerPort": 80})),
            7,
            "is no port",
        ),
        (
            mapping(json!({"protocol": "tcp"})),
            7,
            "neither a host port nor a container port",
        ),
        (
            mapping(json!({"hostPort": 1, "containerPort": 1, "protocol": "sctp"})),
            2,
            "sctp",
        ),
        (
            mapping(json!({"hostPort": 1, "containerPort": 1, "hostIP": "x"})),
            7,
            "hostIP: is no address",
        ),
        (
            mapping(json!({"hostPort": 1, "containerPort": 1, "hostIP": "127.0.0.1"})),
            7,
            "on 127.0.0.1 alone",
        ),
        (json!({"ips": ["x"]}), 7, "runtimeConfig.ips"),
        (json!({"ips": 7}), 7, "runtimeConfig.ips: is a number"),
        (json!({"mac": "x"}), 7, "is no MAC address"),
        (
            json!({"aliases": {"n": "web"}}),
            7,
            "runtimeConfig.aliases.n: is a text",
        ),
        (json!({"aliases": 1}), 7, "runtimeConfig.aliases"),
        (
            annotation("nos-relay.io/tcp", json!("0")),
            7,
            "annotation nos-relay.io/tcp",
        ),
        (annotation("nos-relay.io/tcp", json!(80)), 7, "is a number"),
        (
            annotation("nos-relay.io/what", json!("")),
            7,
            "annotation nos-relay.io/what: is not known",
        ),
        (
            annotation("ipam.com/netspace", json!("../red")),
            7,
            "annotation ipam.com/netspace: pool name",
        ),
        (
            json!({"io.kubernetes.cri.pod-annotations": []}),
            7,
            "pod-annotations: is a list",
        ),
    ] {
        assert_fails(&add(&at_run_time(&plain(), runtime)), code, why);
    }
}

#[test]
fn results_of_others_that_are_none_are_named() {
    for (previous, why) in [
        (json!([]), "prevResult: is a list"),
        (
            json!({"interfaces": {}}),
            "prevResult.interfaces: is an object",
        ),
        (json!({"ips": [1]}), "prevResult.ips: is a number"),
        (json!({"routes": ["x"]}), "prevResult.routes: is a text"),
    ] {
        let mut conf = plain();
        conf["prevResult"] = previous;
        assert_fails(&add(&conf), 7, why);
        assert_fails(&add(&conf).with("CNI_COMMAND", "CHECK"), 7, why);
    }
}

lab_test! {
    fn what_the_daemon_refuses_leaves_nothing() {
        let network = Network::new(1);
        let netns = network.container(0).path();
        let before = network.traces();
        let fails = |conf: &Value, code, why| {
            assert_fails(&Call::new("ADD", conf).of("c1").inside(&netns), code, why);
            network.assert_as_before(&before, &conf.to_string());
        };
        let with = |own: Value| configuration(&network.control(), own);
        fails(&with(json!({"vrf": "red"})), 7, "red");
        fails(&with(json!({"network": "nobodys"})), 7, "nobodys");
        fails(&with(json!({"mtu": 1279})), 7, "container.mtu");
        fails(&with(json!({"addresses": "203.0.113.9"})), 7, "203.0.113.9");
        fails(&at_run_time(&with(json!({})), json!({"mac": "01:00:5e:00:00:01"})), 7, "mac");
        // The container is attached before its ports are allocated.
        fails(&with(json!({"tcp": 80, "ephemeral": {"size": 32768}})), 7, "in a row are free");
        // A foreign interface is in the way.
        let other = &network.topology.external;
        nos_relay::lab::testbed::veth((network.container(0), "eth0"), (other, "foreign")).unwrap();
        let failure = Call::new("ADD", &with(json!({"tcp": 80}))).of("c1").inside(&netns).fails();
        assert_eq!(failure.code, 101, "{failure:?}");
        network.container(0).delete_link("eth0").unwrap();
        network.assert_as_before(&before, "after it");
        // The daemon's own namespace.
        let own = network.topology.device.path();
        let failure = Call::new("ADD", &with(json!({}))).of("c1").inside(&own).fails();
        assert!([7, 101].contains(&failure.code), "{failure:?}");
        network.assert_as_before(&before, "after it");
        // No namespace at all: the engine need not clean up.
        let nowhere = "/run/netns/nos-relay-nobody";
        let call = Call::new("ADD", &with(json!({}))).of("c1").with("CNI_NETNS", nowhere);
        assert_fails(&call, 3, "does not exist");
        // A file that is none.
        let call = call.with("CNI_NETNS", "/dev/null");
        let failure = call.fails();
        assert!(failure.said.contains("/dev/null"), "{failure:?}");
        network.assert_as_before(&before, "after it");
    }
}
