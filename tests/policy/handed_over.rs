//! Flows go to the process that takes over, and are judged by its configuration.

use std::net::TcpStream;

use super::*;

/// A connection and a datagram socket of `web` from ports of nobody, each with its other end at X.
struct Idle {
    family: Family,
    tcp: (TcpStream, TcpStream),
    udp: (UdpSocket, UdpSocket),
}

const LEARNT: u16 = 30_000;

impl Idle {
    fn start(scenario: &Scenario, family: Family) -> Self {
        let (web, x) = (scenario.web(), scenario.external());
        let bind = family.external_port(8080);
        let listener = x
            .run(|| std::net::TcpListener::bind(bind))
            .unwrap()
            .unwrap();
        let near = tcp::connect(web, local(family.nos, LEARNT), bind, LIMIT).unwrap();
        let (far, _) = listener.accept().unwrap();
        far.set_read_timeout(Some(LIMIT)).unwrap();
        let bound = |at: &LabNamespace, address: SocketAddr| {
            let socket = at.run(|| UdpSocket::bind(address)).unwrap().unwrap();
            socket.set_read_timeout(Some(LIMIT)).unwrap();
            socket
        };
        let inside = bound(web, family.nos_port(LEARNT));
        let outside = bound(x, family.external_port(8053));
        inside.connect(outside.local_addr().unwrap()).unwrap();
        inside.send(b"hello").unwrap();
        let mut buffer = [0; 8];
        let (_, from) = outside.recv_from(&mut buffer).unwrap();
        assert_eq!(from, family.nos_port(LEARNT));
        outside.connect(from).unwrap();
        outside.send(b"hello").unwrap();
        inside.recv(&mut buffer).unwrap();
        Self {
            family,
            tcp: (near, far),
            udp: (inside, outside),
        }
    }

    /// The outsider says something first: the flow was not brought back by the container.
    fn assert_goes_on(&mut self, scenario: &Scenario) {
        let mut buffer = [0; 8];
        self.udp.1.send(b"x").unwrap();
        assert_eq!(self.udp.0.recv(&mut buffer).unwrap(), 1);
        self.tcp.1.write_all(b"x").unwrap();
        assert_eq!(self.tcp.0.read(&mut buffer).unwrap(), 1);
        self.tcp.0.write_all(b"y").unwrap();
        assert_eq!(self.tcp.1.read(&mut buffer).unwrap(), 1);
        // Of others nobody has been heard, nor is now.
        let to = self.family.nos_port(LEARNT);
        let refused = udp::exchange(scenario.external(), None, to, b"x", LIMIT).unwrap_err();
        assert_eq!(refused.kind(), Some(ErrorKind::ConnectionRefused));
        let refused = tcp::connect(scenario.external(), None, to, LIMIT).unwrap_err();
        assert_eq!(refused.kind(), Some(ErrorKind::ConnectionRefused));
    }
}

/// What is known of the flows that are learnt, without what time does to it.
fn learnt(scenario: &Scenario) -> Vec<(SocketAddr, SocketAddr, FlowState, FlowOpener)> {
    let flows = scenario.daemon.flows().into_iter();
    let flows = flows.filter(|flow| flow.learnt && flow.owner == "web");
    let mut flows: Vec<_> = flows
        .map(|flow| (flow.local, flow.remote, flow.state, flow.opener))
        .collect();
    flows.sort_by_key(|flow| (flow.0, flow.1));
    flows
}

fn replaced(scenario: Scenario, config: &str) -> Scenario {
    let Scenario {
        daemon, topology, ..
    } = scenario;
    daemon.files().write(config);
    let daemon = daemon.replaced(&topology.device);
    Scenario {
        daemon,
        topology,
        config: config.to_owned(),
    }
}

fn learning(variant: Variant, edits: &[(&str, &str)]) -> Scenario {
    let learn = format!("{EPHEMERAL}\noutside = \"learn\"");
    let mut all = vec![(EPHEMERAL, &*learn)];
    all.extend(edits);
    scenario(variant, &all)
}

mod learnt_flows_go_on_with_the_next_process {
    use super::*;

    fn scenario(variant: Variant) {
        let mut scenario = learning(variant, &[]);
        let mut idle = FAMILIES.map(|family| Idle::start(&scenario, family));
        let before = learnt(&scenario);
        let states: Vec<_> = before.iter().map(|flow| flow.2).collect();
        let both = [FlowState::Established, FlowState::Replied];
        assert!(
            states.len() == 4 && states.iter().all(|it| both.contains(it)),
            "{before:#?}"
        );
        // Twice: what was handed over is handed on.
        for _ in 0..2 {
            let config = scenario.config.clone();
            scenario = replaced(scenario, &config);
            assert_eq!(learnt(&scenario), before);
        }
        for idle in &mut idle {
            idle.assert_goes_on(&scenario);
        }
        assert_eq!(learnt(&scenario), before);
    }

    variant_tests! {
        tap_single: ("tap", "single", [true, true]),
        veth_split_plain: ("veth", "split", [false, false]),
    }
}

/// Its number is another one in the next process.
mod they_go_on_in_their_vrf {
    use super::*;

    fn scenario(variant: Variant) {
        let uplink = "device = \"packet:hx\"";
        let in_red = format!("{uplink}\nvrf = \"red\"");
        let (web, db) = ("name = \"web\"", "name = \"db\"");
        let [red_web, red_db] = [web, db].map(|name| format!("{name}\nvrf = \"red\""));
        let edits = [(uplink, &*in_red), (web, &red_web), (db, &red_db)];
        let scenario = learning(variant, &edits);
        let mut idle = FAMILIES.map(|family| Idle::start(&scenario, family));
        let before = learnt(&scenario);
        assert_eq!(before.len(), 4);
        let another = "[[uplink]]\nname = \"blue0\"\ndevice = \"tap:blue0\"\nvrf = \"blue\"\n\
                       addresses = [\"203.0.113.1/24\", \"2001:db8:1::1/64\"]\n";
        let config = format!("{another}{}", scenario.config);
        let scenario = replaced(scenario, &config);
        assert_eq!(learnt(&scenario), before);
        for idle in &mut idle {
            idle.assert_goes_on(&scenario);
        }
        let vrf = scenario.daemon.attachment("web").link.vrf;
        assert_ne!(vrf, nos_shim::ident::VrfId::DEFAULT);
        assert!(scenario.daemon.flows().iter().all(|flow| flow.vrf == vrf));
    }

    variant_tests! {
        tap_split: ("tap", "split", [true, true]),
        veth_single: ("veth", "single", [true, true]),
    }
}

mod the_new_configuration_judges_them {
    use super::*;

    fn scenario(variant: Variant) {
        for (from, to, expected) in [
            // Nobody learns ports any more.
            ("outside = \"learn\"".to_owned(), String::new(), 0),
            // X may not be spoken to over IPv4.
            (
                "outside = \"learn\"".to_owned(),
                "outside = \"learn\"\nto = \"2001:db8::/32\"".to_owned(),
                2,
            ),
            // Another container has the port.
            (
                "udp = [\"21000-21999\"]".to_owned(),
                format!("udp = [\"21000-21999\", {LEARNT}]"),
                2,
            ),
        ] {
            let scenario = learning(variant, &[]);
            let idle = FAMILIES.map(|family| Idle::start(&scenario, family));
            assert_eq!(learnt(&scenario).len(), 4);
            let config = scenario.edited(&from, &to);
            let scenario = replaced(scenario, &config);
            let left = learnt(&scenario);
            assert_eq!(left.len(), expected, "{to}: {left:#?}");
            let is_there = |local: SocketAddr, remote: SocketAddr| {
                left.iter().any(|flow| (flow.0, flow.1) == (local, remote))
            };
            for idle in idle {
                let (inside, outside) = &idle.udp;
                let local = idle.family.nos_port(LEARNT);
                let remote = outside.local_addr().unwrap();
                outside.send(b"x").unwrap();
                let mut buffer = [0; 8];
                if is_there(local, remote) {
                    assert_eq!(inside.recv(&mut buffer).unwrap(), 1);
                } else {
                    // It is nobody's, or db's, which has no socket there.
                    let told = outside.recv(&mut buffer).unwrap_err();
                    assert_eq!(told.kind(), ErrorKind::ConnectionRefused);
                }
            }
        }
    }

    variant_tests! {
        tap_single: ("tap", "single", [true, true]),
        veth_split: ("veth", "split", [true, true]),
    }
}
