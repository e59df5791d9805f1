//! TCP and UDP both ways, and who sees whom.

use std::error::Error;
use std::net::SocketAddr;

use super::datagram::Talk;
use super::{Check, Demo, LIMIT, Measured, ensure, millis, pairs};
use crate::lab::demo::network::{Container, Family, ports};
use crate::lab::testbed::{LabNamespace, tcp};

/// Where X listens.
const EXTERNAL_PORT: u16 = 7000;
/// More than a dozen segments.
const TCP_OCTETS: usize = 20_000;
/// As much as fits into one packet of 1500 octets, and less than IPv6 always carries.
const UDP_OCTETS: usize = 1200;
/// See [`super::ping`].
const TTL: u8 = 64;

pub(super) fn checks<'a>(demo: &'a Demo<'a>) -> impl Iterator<Item = Check<'a>> {
    let external = demo.network.external();
    let towards = |container: &Container| format!("X → {}:{}", container.name, container.port());
    let from = |container: &Container| format!("{} → X:{EXTERNAL_PORT}", container.name);
    let tcp = pairs(demo).flat_map(move |(container, family)| {
        [
            Check::new("TCP", towards(container), family, move || {
                tcp_inbound(external, container, family)
            }),
            Check::new("TCP", from(container), family, move || {
                tcp_outbound(external, container, family)
            }),
        ]
    });
    let udp = pairs(demo).flat_map(move |(container, family)| {
        [
            Check::new("UDP", towards(container), family, move || {
                udp_inbound(external, container, family)
            }),
            Check::new("UDP", from(container), family, move || {
                udp_outbound(external, container, family)
            }),
        ]
    });
    tcp.chain(udp)
}

fn tcp_inbound(external: &LabNamespace, container: &Container, family: Family) -> Measured {
    let listen = SocketAddr::new(family.nos(), container.port());
    let (own, seen) = tcp_echo(external, &container.namespace, listen)?;
    as_external(container, family, own, seen)?;
    Ok(format!("{} sees {seen}, {}", container.name, echoed()))
}

fn tcp_outbound(external: &LabNamespace, container: &Container, family: Family) -> Measured {
    let listen = SocketAddr::new(family.external(), EXTERNAL_PORT);
    let (own, seen) = tcp_echo(&container.namespace, external, listen)?;
    as_nos(container, family, own, seen)?;
    Ok(format!("X sees {seen}, {}", echoed()))
}

/// The client as it sees itself, and as the server sees it.
fn tcp_echo(
    client: &LabNamespace,
    server: &LabNamespace,
    listen: SocketAddr,
) -> Result<(SocketAddr, SocketAddr), Box<dyn Error>> {
    let server = tcp::EchoServer::start(server, listen)?;
    let own = tcp::exchange(client, None, listen, &payload(TCP_OCTETS), LIMIT)?;
    match server.peers()[..] {
        [seen] => Ok((own, seen)),
        ref peers => Err(format!("{} connections instead of one", peers.len()).into()),
    }
}

fn echoed() -> String {
    format!("{} kB echoed", TCP_OCTETS / 1000)
}

fn udp_inbound(external: &LabNamespace, container: &Container, family: Family) -> Measured {
    let listen = SocketAddr::new(family.nos(), container.port());
    let talk = Talk::prepare((external, None), (&container.namespace, listen))?;
    let told = talk.hold(&payload(UDP_OCTETS), LIMIT)?;
    as_external(container, family, told.client, told.seen)?;
    let (name, seen) = (container.name, told.seen);
    Ok(format!("{name} sees {seen}, {}", millis(told.round_trip)))
}

fn udp_outbound(external: &LabNamespace, container: &Container, family: Family) -> Measured {
    let listen = SocketAddr::new(family.external(), EXTERNAL_PORT);
    let talk = Talk::prepare((&container.namespace, None), (external, listen))?;
    let told = talk.hold(&payload(UDP_OCTETS), LIMIT)?;
    as_nos(container, family, told.client, told.seen)?;
    let ttl = told.ttl;
    ensure(ttl == TTL, || format!("X sees TTL {ttl} instead of {TTL}"))?;
    let round_trip = millis(told.round_trip);
    Ok(format!("X sees {}, TTL {ttl}, {round_trip}", told.seen))
}

/// The container must see X as X sees itself.
fn as_external(
    container: &Container,
    family: Family,
    own: SocketAddr,
    seen: SocketAddr,
) -> Result<(), Box<dyn Error>> {
    let name = container.name;
    ensure(own == seen, || {
        format!("{name} sees {seen}, but X sent from {own}")
    })?;
    let address = family.external();
    ensure(seen.ip() == address, || {
        format!("{name} sees {seen} instead of {address}")
    })
}

/// X must see the container as the container sees itself: with the NOS's address, and a port from
/// which it may open flows.
fn as_nos(
    container: &Container,
    family: Family,
    own: SocketAddr,
    seen: SocketAddr,
) -> Result<(), Box<dyn Error>> {
    let name = container.name;
    ensure(own == seen, || {
        format!("X sees {seen}, but {name} sent from {own}")
    })?;
    let address = family.nos();
    ensure(seen.ip() == address, || {
        format!("X sees {seen} instead of {address}")
    })?;
    ensure(container.ephemeral.contains(&seen.port()), || {
        format!(
            "X sees {seen}, whose port is not in {}",
            ports(&container.ephemeral)
        )
    })
}

/// Octets of which no run repeats soon.
fn payload(octets: usize) -> Vec<u8> {
    (0..octets).map(|at| (at % 251).to_le_bytes()[0]).collect()
}
