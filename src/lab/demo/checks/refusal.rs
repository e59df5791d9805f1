//! What must not be possible.

use std::error::Error;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Instant;

use nos_shim::drop::DropReason;

use super::{Check, Demo, LIMIT, Measured, drops, ensure, millis};
use crate::control::config::Config;
use crate::lab::demo::network::{Container, Family, ports};
use crate::lab::testbed::{LabError, LabNamespace, tcp, udp};

/// A port on the shared addresses that is in nobody's range.
const NOBODYS: u16 = 30_000;
/// Where X listens.
const EXTERNAL_PORT: u16 = 7000;

pub(super) fn checks<'a>(demo: &'a Demo<'a>) -> impl Iterator<Item = Check<'a>> {
    let external = demo.network.external();
    let closed = Family::BOTH.into_iter().flat_map(move |family| {
        let remote = SocketAddr::new(family.nos(), NOBODYS);
        [
            Check::new(
                "REFUSED",
                format!("X → nobody's TCP port {NOBODYS}"),
                family,
                move || {
                    let attempt = || tcp::connect(external, None, remote, LIMIT).map(drop);
                    refused(attempt, "connection refused (RST)")
                },
            ),
            Check::new(
                "REFUSED",
                format!("X → nobody's UDP port {NOBODYS}"),
                family,
                move || {
                    let attempt = || udp::exchange(external, None, remote, b"?", LIMIT).map(drop);
                    refused(attempt, "port unreachable (ICMP)")
                },
            ),
        ]
    });
    let foreign = Family::BOTH.into_iter().flat_map(move |family| {
        let port = foreign_port(demo);
        [
            Check::new(
                "REFUSED",
                format!("web uses db's TCP port {port}"),
                family,
                move || stopped(demo, || tcp_from_foreign_port(demo, family)),
            ),
            Check::new(
                "REFUSED",
                format!("web uses db's UDP port {port}"),
                family,
                move || stopped(demo, || udp_from_foreign_port(demo, family)),
            ),
        ]
    });
    let clash = Check::new("REFUSED", "db claims ports of web", None, move || {
        clash(
            &demo.network.configuration(),
            &demo.network.web,
            &demo.network.db,
        )
    });
    closed.chain(foreign).chain([clash])
}

/// Makes sure that `attempt` meets with nobody, and is told so.
pub(super) fn refused(attempt: impl FnOnce() -> Result<(), LabError>, how: &str) -> Measured {
    let begin = Instant::now();
    match attempt() {
        Ok(()) => Err("somebody answered".into()),
        Err(error) if error.kind() == Some(ErrorKind::ConnectionRefused) => {
            Ok(format!("{how} after {}", millis(begin.elapsed())))
        }
        Err(error) => Err(error.into()),
    }
}

/// A port from which db opens flows, and web must not.
fn foreign_port(demo: &Demo<'_>) -> u16 {
    *demo.network.db.ephemeral.end()
}

/// Makes sure that `attempt`, which says what it met with, is stopped at the container's door.
fn stopped(demo: &Demo<'_>, attempt: impl FnOnce() -> Measured) -> Measured {
    let before = foreign_ports(demo)?;
    let told = attempt()?;
    let after = foreign_ports(demo)?;
    ensure(after > before, || {
        format!(
            "{told}, but the counter {} did not rise",
            DropReason::SourcePort
        )
    })?;
    let reason = DropReason::SourcePort;
    Ok(format!("{told}; {reason} drops {before} → {after}"))
}

fn tcp_from_foreign_port(demo: &Demo<'_>, family: Family) -> Measured {
    let (local, remote) = foreign_flow(demo, family);
    let server = tcp::EchoServer::start(demo.network.external(), remote)?;
    let told = prohibited(|| tcp::connect(web(demo), Some(local), remote, LIMIT).map(drop))?;
    ensure(server.peers().is_empty(), || {
        format!("X was reached from {local}")
    })?;
    Ok(told)
}

fn udp_from_foreign_port(demo: &Demo<'_>, family: Family) -> Measured {
    let (local, remote) = foreign_flow(demo, family);
    let server = udp::EchoServer::start(demo.network.external(), remote)?;
    let talk = || udp::exchange(web(demo), Some(local), remote, b"?", LIMIT).map(drop);
    let told = prohibited(talk)?;
    ensure(server.peers().is_empty(), || {
        format!("X was reached from {local}")
    })?;
    Ok(told)
}

/// Makes sure that the kernel has heard why: `EHOSTUNREACH` over IPv4, `EACCES` over IPv6.
fn prohibited(attempt: impl FnOnce() -> Result<(), LabError>) -> Measured {
    let begin = Instant::now();
    match attempt() {
        Ok(()) => Err("X answered".into()),
        Err(error) => match error.kind() {
            Some(ErrorKind::HostUnreachable | ErrorKind::PermissionDenied) => {
                let after = millis(begin.elapsed());
                Ok(format!("prohibited (ICMP) after {after}"))
            }
            _ => Err(error.into()),
        },
    }
}

fn web<'a>(demo: &Demo<'a>) -> &'a LabNamespace {
    &demo.network.web.namespace
}

/// From a port that is not web's to X.
fn foreign_flow(demo: &Demo<'_>, family: Family) -> (SocketAddr, SocketAddr) {
    let local = SocketAddr::new(family.nos(), foreign_port(demo));
    (local, SocketAddr::new(family.external(), EXTERNAL_PORT))
}

fn foreign_ports(demo: &Demo<'_>) -> Result<u64, Box<dyn Error>> {
    Ok(drops(&demo.daemon.counters()?, DropReason::SourcePort))
}

/// A configuration in which `taker` claims ports of `owner` must be refused, naming the owner.
fn clash(good: &str, owner: &Container, taker: &Container) -> Measured {
    let (first, last) = (owner.listen.end() - 499, taker.listen.end());
    let listen = |range: &str| format!("tcp = [\"{range}\"]");
    let bad = good.replace(
        &listen(&ports(&taker.listen)),
        &listen(&ports(&(first..=*last))),
    );
    ensure(bad != good, || {
        "there is nothing to change in the configuration".to_owned()
    })?;
    Config::parse("demo.toml", good)?;
    match Config::parse("demo.toml", &bad) {
        Ok(_) => Err("the configuration is accepted".into()),
        Err(errors) => {
            let text = errors.to_string();
            ensure(
                text.contains("overlaps") && text.contains(owner.name),
                || text.clone(),
            )?;
            Ok(text)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_refusal_is_one() {
        let error = |kind: ErrorKind| LabError::Io {
            action: "connect".to_owned(),
            source: kind.into(),
        };
        assert!(refused(|| Err(error(ErrorKind::ConnectionRefused)), "RST").is_ok());
        assert!(refused(|| Err(error(ErrorKind::TimedOut)), "RST").is_err());
        assert!(refused(|| Ok(()), "RST").is_err());
        assert!(prohibited(|| Err(error(ErrorKind::HostUnreachable))).is_ok());
        assert!(prohibited(|| Err(error(ErrorKind::PermissionDenied))).is_ok());
        assert!(prohibited(|| Err(error(ErrorKind::TimedOut))).is_err());
        assert!(prohibited(|| Err(error(ErrorKind::ConnectionRefused))).is_err());
        assert!(prohibited(|| Ok(())).is_err());
    }
}
