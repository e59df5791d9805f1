//! What the NOS itself offers on its addresses.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use nos_relay::lab::testbed::ping::{Echo, Ping, ping};
use nos_relay::lab::testbed::{LabNamespace, Topology, tcp, udp};
use support::daemon::{Daemon, LIMIT, await_that};
use support::lab_test;
use support::scenario::{FAMILIES, Scenario, V4, Variant, config, edited, variant_tests};

const ALL: &str = "[nos]\nservices = [\"echo\", \"discard\", \"http:8080\"]\n";
const SILENCE: Duration = Duration::from_millis(100);

/// Asks for `path` and returns status line and body.
fn get(from: &LabNamespace, server: SocketAddr, path: &str) -> (String, String) {
    let mut stream = tcp::connect(from, None, server, LIMIT).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: nos\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

/// Sends all of `payload`; the other side takes it and says nothing.
fn discard(mut stream: TcpStream, payload: &[u8]) {
    stream.write_all(payload).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, b"");
}

/// Echo, with more than any window, so that both ways fill up.
fn bulk_echo(stream: &TcpStream, octets: usize) {
    let payload: Vec<u8> = (0..octets)
        .map(|at| at.to_le_bytes()[0] ^ at.to_le_bytes()[1])
        .collect();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut stream = stream;
            stream.write_all(&payload).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
        });
        let mut answer = Vec::new();
        let mut stream = stream;
        stream.read_to_end(&mut answer).unwrap();
        assert!(
            answer == payload,
            "{} of {octets} octets, or others",
            answer.len()
        );
    });
}

/// All services, from X.
mod services_answer_outsiders {
    use super::*;

    fn scenario(variant: Variant) {
        let scenario = Scenario::with(variant, ALL);
        let x = scenario.external();
        for family in FAMILIES {
            for size in [1, 1400, 5000] {
                tcp::exchange(x, None, family.nos_port(7), &vec![7; size], LIMIT).unwrap();
            }
            udp::exchange(x, None, family.nos_port(7), &[7; 1400], LIMIT).unwrap();
            bulk_echo(
                &tcp::connect(x, None, family.nos_port(7), LIMIT).unwrap(),
                1 << 20,
            );
            discard(
                tcp::connect(x, None, family.nos_port(9), LIMIT).unwrap(),
                &[7; 100_000],
            );
            let silence = udp::exchange(x, None, family.nos_port(9), b"x", SILENCE).unwrap_err();
            assert_eq!(silence.kind(), Some(ErrorKind::TimedOut), "{silence}");
            let (status, body) = get(x, family.nos_port(8080), "/");
            assert!(
                status.starts_with("HTTP/1.1 200") || status.starts_with("HTTP/1.0 200"),
                "{status}"
            );
            assert!(!body.is_empty());
        }
    }

    variant_tests! {
        single: ("veth", "single", [true, true]),
        split: ("veth", "split", [true, true]),
        plain: ("veth", "single", [false, false]),
    }
}

lab_test! {
    fn services_answer_containers_on_addresses_that_are_not_theirs() {
        let topology = Topology::new(&["web", "db"]).unwrap();
        let text = config(&topology, Variant::PLAIN) + ALL;
        // web has but one of two addresses of each family.
        let text = edited(&text, "\"2001:db8:1::1/64\"]", "\"2001:db8:1::1/64\", \"203.0.113.9/24\", \"2001:db8:1::9/64\"]");
        let text = edited(&text, "name = \"web\"\n", "name = \"web\"\naddresses = [\"203.0.113.1\", \"2001:db8:1::1\"]\n");
        let _daemon = Daemon::start(&topology.device, &text);
        let web = &topology.containers[0];
        for address in ["203.0.113.9", "2001:db8:1::9"] {
            let address: IpAddr = address.parse().unwrap();
            let local = tcp::exchange(web, None, (address, 7).into(), &[7; 5000], LIMIT).unwrap();
            assert!(FAMILIES.iter().any(|family| family.nos == local.ip()));
            udp::exchange(web, None, (address, 7).into(), &[7; 1000], LIMIT).unwrap();
            assert!(get(web, (address, 8080).into(), "/").0.contains("200"));
            assert!(ping(web, address, 1, LIMIT).unwrap()[0].is_reply());
            let error = tcp::connect(web, None, (address, 81).into(), LIMIT).unwrap_err();
            assert_eq!(error.kind(), Some(ErrorKind::ConnectionRefused), "{error}");
        }
    }
}

/// Pings that come and go in fragments.
mod large_pings_are_answered {
    use super::*;

    fn scenario(variant: Variant) {
        let scenario = Scenario::new(variant);
        for family in FAMILIES {
            for size in [0, 1, 1472, 4000, 20_000] {
                let how = Ping {
                    size,
                    timeout: LIMIT,
                    count: 2,
                    ..Ping::default()
                };
                for echo in how.run(scenario.external(), family.nos).unwrap() {
                    let Echo::Reply { from, ttl, .. } = echo else {
                        panic!("{size}: {echo:?}")
                    };
                    assert_eq!((from, ttl), (family.nos, 64));
                }
            }
            // Theirs of outsiders as well.
            let how = Ping {
                size: 4000,
                timeout: LIMIT,
                ..Ping::default()
            };
            assert!(how.run(scenario.web(), family.external).unwrap()[0].is_reply());
        }
    }

    variant_tests! {
        single: ("veth", "single", [true, true]),
        split_plain: ("veth", "split", [false, false]),
        tap: ("tap", "single", [true, true]),
    }
}

lab_test! {
    fn services_are_off_unless_asked_for() {
        let scenario = Scenario::new(Variant::PLAIN);
        let x = scenario.external();
        for family in FAMILIES {
            for port in [7, 9, 80, 8080] {
                let error = tcp::connect(x, None, family.nos_port(port), LIMIT).unwrap_err();
                assert_eq!(error.kind(), Some(ErrorKind::ConnectionRefused), "{port}: {error}");
            }
            for port in [7, 9] {
                let error = udp::exchange(x, None, family.nos_port(port), b"x", LIMIT).unwrap_err();
                assert_eq!(error.kind(), Some(ErrorKind::ConnectionRefused), "{port}: {error}");
            }
            assert!(ping(x, family.nos, 1, LIMIT).unwrap()[0].is_reply());
        }
    }
}

lab_test! {
    fn ping_can_be_turned_off() {
        let scenario = Scenario::with(Variant::PLAIN, "[nos]\nping = false\n");
        for family in FAMILIES {
            assert_eq!(ping(scenario.external(), family.nos, 1, SILENCE).unwrap(), [Echo::Timeout]);
            // Not that of containers.
            assert!(ping(scenario.web(), family.external, 1, LIMIT).unwrap()[0].is_reply());
        }
        scenario.daemon.reload(&scenario.edited("ping = false", "ping = true"));
        assert!(ping(scenario.external(), V4.nos, 1, LIMIT).unwrap()[0].is_reply());
    }
}

lab_test! {
    fn many_connections_to_a_service_one_after_the_other() {
        let scenario = Scenario::with(Variant::PLAIN, ALL);
        for _ in 0..100 {
            tcp::exchange(scenario.external(), None, V4.nos_port(7), b"short", LIMIT).unwrap();
        }
        // As many at once as there are; those beyond the limit are turned away, not left waiting.
        let open: Vec<_> = (0..200)
            .map_while(|_| tcp::connect(scenario.external(), None, V4.nos_port(7), SILENCE * 5).ok())
            .collect();
        assert!(open.len() >= 16, "{} connections", open.len());
        drop(open);
        await_that("there is room again", || {
            tcp::exchange(scenario.external(), None, V4.nos_port(7), b"again", LIMIT)
                .map_err(|error| error.to_string())
        });
    }
}
