//! Containers, uplinks and VRFs that come and go while the link of an uplink is shared.

use std::io::ErrorKind;
use std::net::IpAddr;
use std::process::Command;

use nos_relay::control::api::query;
use nos_relay::control::api::snapshot::LinkState;
use nos_relay::lab::testbed::{LabNamespace, tcp, veth};
use serde_json::{Value, json};

use super::support::daemon::{Daemon, LIMIT, await_that};
use super::support::lab_test;
use super::support::scenario::{Variant, edited};
use super::{Lab, NEIGHBOR, Plan, any, inside, link_locals, nos, patient};

/// What a namespace has of all that attaching touches.
fn traces(namespace: &LabNamespace) -> String {
    let commands = ["link", "address", "rule", "-6 rule", "route", "-6 route"];
    let shown = commands.map(|arguments| {
        let mut command = Command::new("ip");
        let command = command.args(arguments.split(' ')).arg("show");
        String::from_utf8(namespace.hold(command).output().unwrap().stdout).unwrap()
    });
    shown.join("")
}

fn ask(daemon: &Daemon, request: Value) -> Result<(), String> {
    let request = serde_json::from_value(request).unwrap();
    let answer = query(&daemon.files().control(), &request, LIMIT);
    answer.map(|_| ()).map_err(|error| error.to_string())
}

/// `fresh`, on the link of `uplink`.
fn request(fresh: &LabNamespace, uplink: &str, tcp: &str) -> Value {
    json!({
        "type": "attach",
        "container": {
            "name": "fresh", "netns": fresh.path(), "device": "veth", "tcp": tcp,
            "ephemeral": "50000-50999", "link_local": uplink,
        },
    })
}

lab_test! {
    fn a_container_comes_and_goes_at_run_time() {
        let lab = Lab::new(Variant::PLAIN, &Plan::default());
        let fresh = LabNamespace::new("fresh").unwrap();
        let before = traces(&fresh);
        let attach = |uplink, tcp| ask(&lab.daemon, request(&fresh, uplink, tcp));
        let error = attach("up7", "22000").unwrap_err();
        assert!(error.contains("\"fresh\"") && error.contains("\"up7\""), "{error}");
        attach("up1", "22000").unwrap();
        let host = inside(&fresh);
        assert_eq!(link_locals(&fresh), [IpAddr::V6(nos())]);
        assert!(host.ping(NEIGHBOR, patient()).is_reply());
        let _server = tcp::EchoServer::start(&fresh, any(22_000)).unwrap();
        let y = lab.y();
        tcp::exchange(y.namespace, None, y.at(nos(), 22_000), b"x", LIMIT).unwrap();
        lab.daemon.forget_counters();
        let detached = ask(&lab.daemon, json!({"type": "detach", "name": "fresh"}));
        detached.unwrap();
        assert_eq!(traces(&fresh), before);
        let refused = tcp::exchange(y.namespace, None, y.at(nos(), 22_000), b"x", LIMIT).unwrap_err();
        assert_eq!(refused.kind(), Some(ErrorKind::ConnectionRefused));
    }
}

/// The part of `config` from `from` to before `to`.
fn section<'a>(config: &'a str, from: &str, to: &str) -> &'a str {
    let begin = config.find(from).unwrap();
    let length = config[begin..].find(to).unwrap();
    &config[begin..begin + length]
}

lab_test! {
    fn an_uplink_whose_link_is_asked_for_at_run_time_is_not_taken_away() {
        let lab = Lab::new(Variant::PLAIN, &Plan::default());
        let fresh = LabNamespace::new("fresh").unwrap();
        let before = traces(&fresh);
        ask(&lab.daemon, request(&fresh, "up1", "22000")).unwrap();
        let second = "[[uplink]]\nname = \"up1\"";
        let without = edited(&lab.config, section(&lab.config, second, "[[container]]"), "");
        lab.daemon.reload(&without);
        let log = lab.daemon.log();
        assert!(log.contains("the configuration stays as it was"), "{log}");
        assert!(log.contains("container \"fresh\" asks for uplink \"up1\""), "{log}");
        let y = lab.y();
        assert!(inside(&fresh).ping(NEIGHBOR, patient()).is_reply());

        // It may go with the last who asks for it.
        lab.daemon.forget_counters();
        ask(&lab.daemon, json!({"type": "detach", "name": "fresh"})).unwrap();
        lab.daemon.reload(&without);
        assert_eq!(traces(&fresh), before);
        let silence = super::Ping { timeout: super::SILENCE, ..patient() };
        assert!(!y.ping(nos(), silence).is_reply());
        let error = ask(&lab.daemon, request(&fresh, "up1", "22000")).unwrap_err();
        assert!(error.contains("\"up1\""), "{error}");

        lab.daemon.reload(&lab.config);
        ask(&lab.daemon, request(&fresh, "up1", "22000")).unwrap();
        assert!(inside(&fresh).ping(NEIGHBOR, patient()).is_reply());
        let _server = tcp::EchoServer::start(&fresh, any(22_000)).unwrap();
        tcp::exchange(y.namespace, None, y.at(nos(), 22_000), b"x", LIMIT).unwrap();
    }
}

lab_test! {
    fn a_link_that_is_lost_and_found_is_shared_as_before() {
        let lab = Lab::new(Variant::PLAIN, &Plan::default());
        let web = inside(lab.web());
        assert!(web.ping(NEIGHBOR, patient()).is_reply());
        lab.daemon.forget_counters();
        let device = &lab.topology.device;
        device.delete_link("hx").unwrap();
        await_that("the uplink has gone", || match lab.daemon.uplink("up0").link.state {
            LinkState::Waiting => Ok(()),
            _ => Err(lab.daemon.log()),
        });
        device.sysctl("net/ipv6/conf/default/disable_ipv6", "1").unwrap();
        let x = &lab.topology.external;
        veth((device, "hx"), (x, "xh")).unwrap();
        for address in ["fe80::2/64", "203.0.113.2/24"] {
            x.add_address("xh", address.parse().unwrap()).unwrap();
        }
        await_that("the neighbor is reached again", || {
            let echo = web.ping(NEIGHBOR, patient());
            echo.is_reply().then_some(()).ok_or(format!("{echo:?}"))
        });
        let x = lab.x();
        let _server = tcp::EchoServer::start(lab.web(), any(20_080)).unwrap();
        tcp::exchange(x.namespace, None, x.at(nos(), 20_080), b"x", LIMIT).unwrap();
        let refused = tcp::exchange(x.namespace, None, x.at(nos(), 21_080), b"x", LIMIT).unwrap_err();
        assert_eq!(refused.kind(), Some(ErrorKind::ConnectionRefused));
    }
}

lab_test! {
    fn two_containers_follow_their_link_into_another_vrf() {
        let second = r#"
link_local = "up0"
tcp = ["21000-21999"]
udp = ["21000-21999"]
ephemeral = "45000-49999"
"#;
        let plan = Plan {
            containers: [super::ON_FIRST, second],
            ..Plan::default()
        };
        let lab = Lab::new(Variant::PLAIN, &plan);
        lab.daemon.forget_counters();
        let red = edited(&lab.config, "name = \"up0\"", "name = \"up0\"\nvrf = \"red\"");
        let red = edited(&red, "name = \"web\"", "name = \"web\"\nvrf = \"red\"");
        let red = edited(&red, "name = \"db\"", "name = \"db\"\nvrf = \"red\"");
        for config in [&red, &lab.config] {
            lab.daemon.reload(config);
            let x = lab.x();
            for (container, port) in [(lab.web(), 20_080), (lab.db(), 21_080)] {
                assert_eq!(link_locals(container), [IpAddr::V6(nos())]);
                assert!(inside(container).ping(NEIGHBOR, patient()).is_reply());
                let _server = tcp::EchoServer::start(container, any(port)).unwrap();
                tcp::exchange(x.namespace, None, x.at(nos(), port), b"x", LIMIT).unwrap();
            }
        }
    }
}
