//! What operators see of policies: the rules themselves, and what they refuse.

use std::net::IpAddr;

use nos_relay::control::api::snapshot::{Outside, PortState};
use nos_relay::control::api::{Event, EventProtocol, SubjectKind, Watch, Watched, watch};

use super::*;

lab_test! {
    fn the_rules_are_shown() {
        let [tcp_from, udp_from] = listen_from_friends();
        let ephemeral = format!(
            "ephemeral = [\"40000-40999\", {{ ports = \"41000-44999\", state = \"established\" }}]\n\
             to = {FRIENDS}\noutside = \"learn\""
        );
        let edits = [(TCP, &*tcp_from), (UDP, &udp_from), (EPHEMERAL, &ephemeral)];
        let scenario = scenario(Variant::PLAIN, &edits);
        let [web, db] = ["web", "db"].map(|name| scenario.daemon.attachment(name));
        assert_eq!((web.to, web.outside), (Some(friends()), Outside::Learn));
        assert_eq!((db.to, db.outside), (None, Outside::Drop));
        let rows = scenario.daemon.ports();
        let of_web = |range: &str| {
            let mut rows = rows.iter().filter(|row| row.owner == "web");
            let row = rows.find(|row| row.range.to_string() == range);
            let row = row.unwrap_or_else(|| panic!("{range}: {rows:#?}"));
            (row.from.clone(), row.state)
        };
        assert_eq!(of_web("179"), (None, None));
        assert_eq!(of_web("20000-20999"), (Some(friends()), None));
        assert_eq!(of_web("40000-40999"), (None, None));
        assert_eq!(of_web("41000-44999"), (None, Some(PortState::Established)));
        let of_db = rows.iter().filter(|row| row.owner == "db");
        assert!(of_db.clone().count() > 0);
        assert!(of_db.into_iter().all(|row| row.from.is_none() && row.state.is_none()));
        let (said, listed) = (shown(&scenario, &["show", "attachments"]), shown(&scenario, &["ports", "list", "web"]));
        for line in ["to 203.0.113.2/32", "to 2001:db8:1::2/128", "outside learn"] {
            assert!(said.contains(line), "{said}");
        }
        for line in ["from 203.0.113.2/32", "established"] {
            assert!(listed.contains(line), "{listed}");
        }
    }
}

/// What a command prints.
fn shown(scenario: &Scenario, arguments: &[&str]) -> String {
    let mut command = Command::new(program());
    command
        .args(arguments)
        .arg("--control")
        .arg(scenario.daemon.files().control());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The next event about a refusal.
fn next_refusal(events: &mut Watch) -> Event {
    loop {
        let told = events.next_line().unwrap().unwrap().1;
        if let Watched::Event { event, .. } = told
            && matches!(event, Event::Policy { .. } | Event::ForeignPort { .. })
        {
            return event;
        }
    }
}

/// What is to be told of a datagram.
struct Told<'a> {
    kind: SubjectKind,
    name: Option<&'a str>,
    reason: &'a str,
    sender: FlowOpener,
    port: u16,
    remote: (IpAddr, u16),
}

#[track_caller]
fn assert_told(events: &mut Watch, scenario: &Scenario, expected: &Told<'_>) {
    let told = next_refusal(events);
    let Event::Policy {
        subject,
        reason,
        sender,
        protocol,
        port,
        remote,
        remote_port,
        dropped,
    } = told
    else {
        panic!("{told:?}");
    };
    assert_eq!(
        (subject.kind, subject.name.as_deref()),
        (expected.kind, expected.name)
    );
    assert_eq!((&*reason, sender), (expected.reason, expected.sender));
    assert_eq!((protocol, port), (EventProtocol::Udp, Some(expected.port)));
    assert_eq!(
        (remote, remote_port),
        (expected.remote.0, Some(expected.remote.1))
    );
    assert_eq!(dropped, 1);
    let log = scenario.daemon.log();
    let port = format!("udp {}", expected.port);
    let line = log
        .lines()
        .rfind(|line| line.contains(expected.reason) && line.contains(&port));
    let line = line.unwrap_or_else(|| panic!("{} {port} is not in {log}", expected.reason));
    let owner = expected.name.unwrap_or("services");
    assert!(
        line.contains(owner) && line.contains(&expected.remote.0.to_string()),
        "{line}"
    );
}

mod refusals_are_told_by_port_and_owner {
    use super::*;

    fn scenario(variant: Variant) {
        let [tcp_from, udp_from] = listen_from_friends();
        let web = format!("{ESTABLISHED}\nto = {FRIENDS}\noutside = \"learn\"");
        let db = format!(
            "{DB_EPHEMERAL}\noutside = \"learn\"\n[nos]\n\
             services = {{ service = \"echo\", from = {FRIENDS} }}"
        );
        let edits = [
            (TCP, &*tcp_from),
            (UDP, &udp_from),
            (EPHEMERAL, &web),
            (DB_EPHEMERAL, &db),
        ];
        let scenario = super::scenario(variant, &edits);
        let mut events = watch(&scenario.daemon.files().control(), LIMIT).unwrap();
        let x = scenario.external();
        for family in FAMILIES {
            let other = (stranger(family), 4711 + u16::from(family.is_v6()));
            let send = |from: &LabNamespace, source: SocketAddr, to: SocketAddr| {
                udp::exchange(from, Some(source), to, b"x", LIMIT).unwrap_err();
            };
            let base = Told {
                kind: SubjectKind::Container,
                name: Some("web"),
                reason: "policy-from",
                sender: FlowOpener::Peer,
                port: 20_053,
                remote: other,
            };
            send(x, other.into(), family.nos_port(20_053));
            assert_told(&mut events, &scenario, &base);
            send(x, other.into(), family.nos_port(41_053));
            let expected = Told {
                reason: "no-flow",
                port: 41_053,
                ..base
            };
            assert_told(&mut events, &scenario, &expected);
            send(x, other.into(), family.nos_port(7));
            let expected = Told {
                kind: SubjectKind::Services,
                name: None,
                port: 7,
                ..base
            };
            assert_told(&mut events, &scenario, &expected);
            let from = |port| SocketAddr::from((family.any, port));
            send(scenario.web(), from(20_100), (other.0, 53).into());
            let expected = Told {
                reason: "policy-to",
                sender: FlowOpener::Owner,
                port: 20_100,
                remote: (other.0, 53),
                ..base
            };
            assert_told(&mut events, &scenario, &expected);
            // Ports of others, also of who has learnt one, and of the NOS.
            let datagrams = udp::EchoServer::start(x, family.external_port(8053)).unwrap();
            let learnt = 30_000 + u16::from(family.is_v6());
            let source = Some(from(learnt));
            udp::exchange(scenario.db(), source, datagrams.address(), b"x", LIMIT).unwrap();
            // Of one kind three are told at once.
            let foreign: &[_] = match family.is_v6() {
                false => &[(21_500, "container 'db'"), (learnt, "container 'db'")],
                true => &[(7, "services")],
            };
            for &(port, owner) in foreign {
                send(scenario.web(), from(port), datagrams.address());
                let told = next_refusal(&mut events);
                let Event::ForeignPort {
                    subject,
                    port: foreign,
                    owner: whose,
                    dropped,
                    ..
                } = told
                else {
                    panic!("{told:?}");
                };
                assert_eq!(subject.name.as_deref(), Some("web"));
                assert_eq!((foreign, whose.as_deref(), dropped), (port, Some(owner), 1));
            }
        }
    }

    variant_tests! {
        tap_single: ("tap", "single", [true, true]),
        veth_split_plain: ("veth", "split", [false, false]),
    }
}
