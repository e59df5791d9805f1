//! Addresses out of the daemon's pools, by the configuration and by annotations.

use nos_relay::control::api::snapshot::PoolAddress;
use nos_relay::control::api::{Request, Response, Table, ask, query};
use serde_json::{Value, json};

use crate::base::daemon::LIMIT;
use crate::base::lab_test;
use crate::base::requests::at;
use crate::base::traffic::reaches;
use crate::engine::plugin::{Call, at_run_time, configuration};
use crate::engine::{CONFIG, Network};

const NETWORKS: &str =
    "\n[[network]]\nname = \"lan\"\nmode = \"routed\"\n\n[[network]]\nname = \"plain\"\n";

impl Network {
    fn asks(&self, request: &Value) {
        let typed: Request = serde_json::from_value(request.clone()).unwrap();
        let answer = ask(&self.control(), None, &typed, LIMIT);
        assert!(matches!(answer, Ok(Response::Changed(_))), "{answer:?}");
    }

    fn pool_addresses(&self) -> Vec<PoolAddress> {
        let table = Table::PoolAddresses;
        match query(&self.control(), &Request::Show { table }, LIMIT).unwrap() {
            Response::PoolAddresses(rows) => rows,
            other => panic!("{other:?}"),
        }
    }
}

fn add(network: &Network, conf: &Value, container: &str, index: usize) -> Call {
    let netns = network.container(index).path();
    Call::new("ADD", conf).of(container).inside(&netns)
}

fn pod(name: &str) -> String {
    format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME={name};K8S_POD_INFRA_CONTAINER_ID=7f"
    )
}

fn addresses(result: &Value) -> Vec<&str> {
    let ips = result["ips"].as_array().unwrap().iter();
    ips.map(|ip| ip["address"].as_str().unwrap()).collect()
}

fn annotated(conf: &Value, annotations: Value) -> Value {
    at_run_time(
        conf,
        json!({"io.kubernetes.cri.pod-annotations": annotations}),
    )
}

lab_test! {
    fn pods_get_addresses_of_pools_and_get_them_again() {
        let network = Network::with(3, &format!("{CONFIG}{NETWORKS}"));
        network.asks(&json!({"type": "pool-create", "pool": {"name": "db", "kind": "application", "range": "203.0.113.64/30"}}));
        network.asks(&json!({"type": "pool-create", "pool": {"name": "red", "kind": "netspace", "range": "203.0.113.128/30", "step": 0}}));
        let before = network.traces();
        let mut conf = configuration(&network.control(), json!({"network": "lan", "pool": "db"}));
        conf["cniVersion"] = "1.0.0".into();
        let first = add(&network, &conf, "c0", 0).with("CNI_ARGS", pod("db-0")).succeeds();
        assert_eq!(addresses(&first), ["203.0.113.64/32", "2001:db8:1::40/128"]);
        // An answer that was lost is the same.
        let again = add(&network, &conf, "c0", 0).with("CNI_ARGS", pod("db-0")).succeeds();
        assert_eq!(again, first);
        for address in ["203.0.113.64", "2001:db8:1::40"] {
            reaches(&network.topology.external, network.container(0), at(address, 8080));
        }
        let second = add(&network, &conf, "c1", 1).with("CNI_ARGS", pod("db-1")).succeeds();
        assert_eq!(addresses(&second)[0], "203.0.113.65/32");
        for container in ["c0", "c1"] {
            Call::new("DEL", &conf).of(container).succeeds();
        }
        // Other containers of the same pods, the other way round.
        let second = add(&network, &conf, "c2", 0).with("CNI_ARGS", pod("db-1")).succeeds();
        let first = add(&network, &conf, "c3", 1).with("CNI_ARGS", pod("db-0")).succeeds();
        assert_eq!((addresses(&second)[0], addresses(&first)[0]), ("203.0.113.65/32", "203.0.113.64/32"));
        // A pod's annotation counts more than the configuration, and ours more than that of others.
        for (container, annotations) in [
            ("c4", json!({"ipam.com/netspace": "red"})),
            ("c5", json!({"nos-relay.io/pool": "red", "ipam.com/netspace": "db"})),
        ] {
            let conf = annotated(&conf, annotations);
            let result = add(&network, &conf, container, 2).succeeds();
            assert!(addresses(&result)[0].starts_with("203.0.113.1"), "{result}");
            Call::new("DEL", &conf).of(container).succeeds();
        }
        let fixed = annotated(&conf, json!({"nos-relay.io/address": "203.0.113.67"}));
        let result = add(&network, &fixed, "c6", 2).succeeds();
        assert_eq!(addresses(&result), ["203.0.113.67/32"]);
        for container in ["c2", "c3", "c6"] {
            Call::new("DEL", &conf).of(container).succeeds();
        }
        assert!(network.pool_addresses().iter().all(|row| row.holder.is_none()));
        network.assert_as_before(&before, "after it");
    }
}

lab_test! {
    fn what_a_pool_cannot_give_is_an_error_and_who_is_gone_makes_way() {
        let network = Network::with(2, &format!("{CONFIG}{NETWORKS}"));
        network.asks(&json!({"type": "pool-create", "pool": {"name": "db", "kind": "netspace", "size": 1, "step": 0}}));
        let mut conf = configuration(&network.control(), json!({"network": "lan", "pool": "db"}));
        conf["cniVersion"] = "1.0.0".into();
        let before = network.traces();
        let result = add(&network, &conf, "c0", 0).succeeds();
        let failure = add(&network, &conf, "c1", 1).fails();
        assert_eq!(failure.code, 100);
        assert!(failure.said.starts_with("the address cannot be had: "), "{failure:?}");
        assert!(failure.said.contains("pool \"db\" is exhausted: of 1 address, 1 in use"), "{failure:?}");
        let fixed = annotated(&conf, json!({"nos-relay.io/address": addresses(&result)[0].trim_end_matches("/32")}));
        let failure = add(&network, &fixed, "c1", 1).fails();
        assert_eq!(failure.code, 100);
        assert!(failure.said.contains("is held by \"cni."), "{failure:?}");
        Call::new("DEL", &conf).of("c0").succeeds();
        for (annotations, place, said) in [
            (json!({"nos-relay.io/pool": "nowhere"}), "lan", "container.pool: there is no pool \"nowhere\""),
            (json!({"nos-relay.io/pool": "total"}), "lan", "container.pool: \"total\" is all networks"),
            (json!({"nos-relay.io/pool": "db", "nos-relay.io/network": "plain"}), "lan", "container.pool: is for containers of a network with mode = \"routed\""),
        ] {
            let mut conf = configuration(&network.control(), json!({ "network": place }));
            conf["cniVersion"] = "1.0.0".into();
            let failure = add(&network, &annotated(&conf, annotations), "c1", 1).fails();
            assert_eq!(failure.code, 7, "{failure:?}");
            assert!(failure.said.contains(said), "{failure:?}");
        }
        network.assert_as_before(&before, "after it");
        // Of a machine that has started anew: a container is registered whose namespace is nowhere.
        let netns = network.daemon.files().path("nowhere");
        let name = "cni.nosnet.lost.eth0.0000000000000000";
        network.asks(&json!({"type": "attach", "container": {
            "name": name, "netns": netns, "network": "lan", "device": "veth", "pool": "db",
        }}));
        let result = add(&network, &conf, "c1", 1).succeeds();
        assert_eq!(addresses(&result).len(), 2, "{result}");
        assert!(network.registrations().iter().all(|row| row.name != name));
        Call::new("DEL", &conf).of("c1").succeeds();
        network.assert_as_before(&before, "at the end");
    }
}
