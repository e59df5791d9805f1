//! `DEL` and `GC`, and what is left when engines, machines and answers are lost.

use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sys::signal::Signal;
use nos_relay::lab::testbed::LabNamespace;
use serde_json::{Value, json};

use crate::base::daemon::Daemon;
use crate::base::lab_test;
use crate::base::scenario::V4;
use crate::base::traffic::assert_reached;
use crate::engine::Network;
use crate::engine::plugin::{Call, configuration};

fn conf(network: &Network) -> Value {
    configuration(
        &network.control(),
        json!({"tcp": {"size": 4}, "ephemeral": {"size": 16}}),
    )
}

fn names(network: &Network) -> Vec<String> {
    let mut names: Vec<_> = network
        .registrations()
        .into_iter()
        .map(|row| row.name)
        .collect();
    names.dedup();
    names
}

lab_test! {
    fn to_delete_twice_without_a_namespace_and_what_never_was_is_no_error() {
        let network = Network::new(1);
        let before = network.traces();
        let conf = conf(&network);
        let netns = network.container(0).path();
        Call::new("ADD", &conf).of("c1").inside(&netns).succeeds();
        let del = Call::new("DEL", &conf).of("c1");
        for netns in ["relative", "/proc/self/ns/net"] {
            let del = del.clone().with("CNI_NETNS", netns).with("CNI_ARGS", "nothing");
            assert_eq!(del.succeeds(), Value::Null);
        }
        for call in [del.clone().with("CNI_NETNS", ""), del.clone(), del.inside("/gone".as_ref())] {
            assert_eq!(call.succeeds(), Value::Null);
        }
        assert_eq!(Call::new("DEL", &conf).of("never").succeeds(), Value::Null);
        network.assert_as_before(&before, "after it");
        // By a configuration with which nothing could be added.
        Call::new("ADD", &conf).of("c1").inside(&netns).succeeds();
        let mut bad = conf.clone();
        bad["nos-relay"]["tcp"] = "nonsense".into();
        bad["runtimeConfig"] = json!({"portMappings": 7});
        Call::new("DEL", &bad).of("c1").succeeds();
        network.assert_as_before(&before, "after it");
    }
}

lab_test! {
    fn a_namespace_that_has_gone_is_deleted() {
        let network = Network::new(0);
        let conf = conf(&network);
        let namespace = LabNamespace::new("short-lived").unwrap();
        Call::new("ADD", &conf).of("c1").inside(&namespace.path()).succeeds();
        drop(namespace);
        Call::new("DEL", &conf).of("c1").succeeds();
        assert_eq!(network.registrations(), []);
        assert_eq!(network.daemon.attachments(), []);
    }
}

lab_test! {
    fn a_daemon_that_is_away_is_asked_again_later() {
        let network = Network::new(1);
        let conf = conf(&network);
        let netns = network.container(0).path();
        Call::new("ADD", &conf).of("c1").inside(&netns).succeeds();
        let Network { daemon, topology } = network;
        let files = daemon.stop_by(Signal::SIGTERM);
        for command in ["ADD", "DEL"] {
            let failure = Call::new(command, &conf).of("c1").inside(&netns).fails();
            assert_eq!(failure.code, 11, "{failure:?}");
        }
        let daemon = Daemon::start_on(&topology.device, files);
        let network = Network { daemon, topology };
        assert_eq!(names(&network).len(), 1);
        Call::new("DEL", &conf).of("c1").succeeds();
        assert_eq!(network.registrations(), []);
        assert_eq!(network.daemon.ports(), []);
        network.daemon.forget_counters();
    }
}

lab_test! {
    fn garbage_is_what_the_engine_has_no_more_of_this_network() {
        let network = Network::new(4);
        let ours = conf(&network);
        let mut theirs = ours.clone();
        // A name of which ours is the beginning.
        theirs["name"] = "nosnet.2".into();
        let add = |conf: &Value, id: &str, index: usize| {
            Call::new("ADD", conf).of(id).inside(&network.container(index).path()).succeeds()
        };
        add(&ours, "kept", 0);
        add(&ours, "lost", 1);
        add(&theirs, "theirs", 2);
        let request = json!({"type": "attach", "container": {
            "name": "by-hand", "netns": network.container(3).path().display().to_string(), "device": "veth",
        }});
        nos_relay_engines::daemon::Daemon::at(network.control()).change(request, None).unwrap();
        let mut gc = ours.clone();
        let valid = json!([{"containerID": "kept", "ifname": "eth0"}, {"containerID": "lost", "ifname": "net1"}]);
        gc["cni.dev/valid-attachments"] = valid;
        // What cannot be understood deletes nothing.
        for bad in [json!([{"containerID": "kept"}]), json!([1]), json!({}), json!([{"containerID": "../", "ifname": "eth0"}])] {
            let mut wrong = ours.clone();
            wrong["cni.dev/valid-attachments"] = bad;
            assert_eq!(Call::new("GC", &wrong).fails().code, 7);
        }
        assert_eq!(network.daemon.attachments().len(), 4);
        for _ in 0..2 {
            assert_eq!(Call::new("GC", &gc).succeeds(), Value::Null);
        }
        let left: Vec<_> = network.daemon.attachments().into_iter().map(|row| row.name).collect();
        assert_eq!(left.len(), 3, "{left:?}");
        for part in [".kept.", ".theirs.", "by-hand"] {
            assert!(left.iter().any(|name| name.contains(part)), "{left:?}");
        }
        gc["cni.dev/valid-attachments"] = json!([]);
        Call::new("GC", &gc).succeeds();
        theirs["cni.dev/valid-attachments"] = json!([]);
        Call::new("GC", &theirs).succeeds();
        assert_eq!(names(&network), ["by-hand"]);
    }
}

lab_test! {
    fn after_a_reboot_what_was_there_before_makes_way() {
        let network = Network::new(1);
        let own = json!({"tcp": "8080", "ephemeral": "40000-40999"});
        let conf = configuration(&network.control(), own);
        let namespaces = ["web", "db"].map(|label| LabNamespace::new(label).unwrap());
        let [old, other] = &namespaces;
        Call::new("ADD", &conf).of("old").inside(&old.path()).succeeds();
        let mut second = conf.clone();
        second["nos-relay"]["tcp"] = "9090".into();
        second["nos-relay"]["ephemeral"] = Value::Null;
        Call::new("ADD", &second).of("other").inside(&other.path()).succeeds();
        // Daemon and namespaces are gone, the store is left.
        let Network { daemon, topology } = network;
        let files = daemon.kill();
        drop(namespaces);
        let daemon = Daemon::start_on(&topology.device, files);
        daemon.forget_counters();
        let network = Network { daemon, topology };
        assert_eq!(network.daemon.attachments().len(), 2);
        let netns = network.container(0).path();
        let result = Call::new("ADD", &conf).of("new").inside(&netns).succeeds();
        assert_eq!(result["ips"][0]["address"], "203.0.113.1/32");
        assert_reached(&network.topology.external, network.container(0), V4.nos_port(8080));
        let left: Vec<_> = network.daemon.attachments().into_iter().map(|row| row.name).collect();
        assert_eq!(left.len(), 2, "{left:?}");
        assert!(left.iter().any(|name| name.contains(".other.")), "{left:?}");
        // The same container again, in a namespace of a new name.
        let again = LabNamespace::new("again").unwrap();
        Call::new("ADD", &second).of("other").inside(&again.path()).succeeds();
        for id in ["new", "other", "old"] {
            Call::new("DEL", &conf).of(id).succeeds();
        }
        assert_eq!(network.registrations(), []);
    }
}

lab_test! {
    fn a_hundred_at_once() {
        const PODS: usize = 100;
        let network = Network::new(PODS);
        let before = network.traces();
        let conf = conf(&network);
        let next = AtomicUsize::new(0);
        let all = |work: &(dyn Fn(usize) + Sync)| {
            next.store(0, Ordering::SeqCst);
            std::thread::scope(|scope| {
                for _ in 0..PODS {
                    scope.spawn(|| work(next.fetch_add(1, Ordering::SeqCst)));
                }
            });
        };
        let id = |index: usize| format!("pod{index}");
        let topology = &network.topology;
        all(&|index| {
            let netns = topology.containers[index].path();
            Call::new("ADD", &conf).of(&id(index)).inside(&netns).succeeds();
        });
        assert_eq!(network.daemon.attachments().len(), PODS);
        let ports = network.daemon.ports();
        let listening: u32 = ports.iter().filter(|row| row.range.len() == 4).map(|row| row.range.len()).sum();
        assert_eq!(listening, 4 * u32::try_from(PODS).unwrap());
        all(&|index| {
            Call::new("DEL", &conf).of(&id(index)).succeeds();
        });
        network.assert_as_before(&before, "after it");
    }
}

lab_test! {
    fn an_attachment_ends_with_the_process_whose_namespace_it_is() {
        let network = Network::new(1);
        let conf = conf(&network);
        let mut sleeper = std::process::Command::new("sleep");
        sleeper.arg("1000");
        let mut child = network.container(0).spawn(sleeper).unwrap();
        let netns = format!("/proc/{}/ns/net", child.id());
        Call::new("ADD", &conf).of("c1").inside(netns.as_ref()).succeeds();
        let row = network.registrations().remove(0);
        assert_eq!(row.holder, Some(child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
        crate::base::daemon::await_that("it is gone", || match network.registrations() {
            rows if rows.is_empty() => Ok(()),
            rows => Err(format!("{rows:?}")),
        });
        let failure = Call::new("ADD", &conf).of("c1").inside(netns.as_ref()).fails();
        assert_eq!(failure.code, 3, "{failure:?}");
        Call::new("DEL", &conf).of("c1").inside(netns.as_ref()).succeeds();
    }
}
