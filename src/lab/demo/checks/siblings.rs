//! Containers that share one address speak on it: to each other, to the NOS, to themselves, to nobody.

use std::net::SocketAddr;
use std::time::Instant;

use super::refusal::refused;
use super::{Check, Demo, LIMIT, Measured, ensure, millis};
use crate::lab::demo::network::{Container, ECHO_PORT, Family};
use crate::lab::testbed::{tcp, udp};

/// More than a dozen segments.
const TCP_OCTETS: usize = 20_000;
/// As much as one packet carries.
const UDP_OCTETS: usize = 1200;
/// A port on the shared addresses that is in nobody's range.
const NOBODYS: u16 = 30_000;

pub(super) fn checks<'a>(demo: &'a Demo<'a>) -> impl Iterator<Item = Check<'a>> {
    let [web, db] = demo.network.containers();
    let talks = [(web, db), (db, web), (web, web)];
    let talks = talks.into_iter().flat_map(move |(client, server)| {
        Family::BOTH.into_iter().flat_map(move |family| {
            let what = |protocol| {
                let port = server.port();
                let server = match client.name == server.name {
                    true => "itself",
                    false => server.name,
                };
                format!("{} → {server}, {protocol} {port}", client.name)
            };
            [
                Check::new("SIBLINGS", what("TCP"), family, move || {
                    by_tcp(client, server, family)
                }),
                Check::new("SIBLINGS", what("UDP"), family, move || {
                    by_udp(client, server, family)
                }),
            ]
        })
    });
    let others = Family::BOTH.into_iter().flat_map(move |family| {
        let service = SocketAddr::new(family.nos(), ECHO_PORT);
        let closed = SocketAddr::new(family.nos(), NOBODYS);
        let connect = move || tcp::connect(&db.namespace, None, closed, LIMIT).map(drop);
        let ask = move || udp::exchange(&db.namespace, None, closed, b"?", LIMIT).map(drop);
        [
            Check::new("SIBLINGS", "web → NOS, TCP 7", family, move || {
                let begin = Instant::now();
                tcp::exchange(&web.namespace, None, service, &[7; TCP_OCTETS], LIMIT)?;
                Ok(format!("{}, {}", echoed(), millis(begin.elapsed())))
            }),
            Check::new(
                "SIBLINGS",
                format!("db → nobody, TCP {NOBODYS}"),
                family,
                move || refused(connect, "connection refused (RST)"),
            ),
            Check::new(
                "SIBLINGS",
                format!("db → nobody, UDP {NOBODYS}"),
                family,
                move || refused(ask, "port unreachable (ICMP)"),
            ),
        ]
    });
    talks.chain(others)
}

fn by_tcp(client: &Container, server: &Container, family: Family) -> Measured {
    let listen = SocketAddr::new(family.nos(), server.port());
    let echo = tcp::EchoServer::start(&server.namespace, listen)?;
    let own = tcp::exchange(&client.namespace, None, listen, &[7; TCP_OCTETS], LIMIT)?;
    seen_as(client, server, family, own, &echo.peers())?;
    Ok(format!("{} sees {own}, {}", server.name, echoed()))
}

fn by_udp(client: &Container, server: &Container, family: Family) -> Measured {
    let listen = SocketAddr::new(family.nos(), server.port());
    let echo = udp::EchoServer::start(&server.namespace, listen)?;
    let begin = Instant::now();
    let own = udp::exchange(&client.namespace, None, listen, &[7; UDP_OCTETS], LIMIT)?;
    let elapsed = begin.elapsed();
    seen_as(client, server, family, own, &echo.peers())?;
    Ok(format!("{} sees {own}, {}", server.name, millis(elapsed)))
}

/// The server must see the client as it sees itself: with the address that both have, and a port of its
/// own.
fn seen_as(
    client: &Container,
    server: &Container,
    family: Family,
    own: SocketAddr,
    peers: &[SocketAddr],
) -> Result<(), Box<dyn std::error::Error>> {
    ensure(peers == [own], || {
        format!(
            "{} sees {peers:?}, but {} sent from {own}",
            server.name, client.name
        )
    })?;
    let right = own.ip() == family.nos() && client.ephemeral.contains(&own.port());
    ensure(right, || format!("{} sent from {own}", client.name))
}

fn echoed() -> String {
    format!("{} kB echoed", TCP_OCTETS / 1000)
}
