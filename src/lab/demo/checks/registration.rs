//! Ports that are registered at run time, and go with who holds them.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::{Check, Demo, LIMIT, Measured, ensure, millis};
use crate::control::api::{Request, Response};
use crate::control::config::Keys;
use crate::lab::demo::network::{Container, Family};
use crate::lab::testbed::tcp;

/// Nobody's in the configuration of the demo.
const PORT: u16 = 30_000;
/// How often it is looked whether the port has gone with its holder.
const PAUSE: Duration = Duration::from_millis(1);

pub(super) fn checks<'a>(demo: &'a Demo<'a>) -> impl Iterator<Item = Check<'a>> {
    let [container, _] = demo.network.containers();
    let what = format!("{}:{PORT}, given and gone", container.name);
    Family::BOTH
        .map(move |family| {
            Check::new("REGISTER", what.clone(), family, move || {
                given_and_gone(demo, container, family)
            })
        })
        .into_iter()
}

fn given_and_gone(demo: &Demo<'_>, container: &Container, family: Family) -> Measured {
    let keys = Keys::default()
        .with("container", container.name)
        .with("tcp", i64::from(PORT))
        .with("lease", "connection");
    let begun = Instant::now();
    let (response, held) = demo.daemon.hold(&Request::PortsAdd(keys))?;
    let registered = begun.elapsed();
    ensure(
        matches!(&response, Response::Changed(it) if it.changed),
        || format!("{response:?} instead of a change"),
    )?;
    let listen = SocketAddr::new(family.nos(), PORT);
    let server = tcp::EchoServer::start(&container.namespace, listen)?;
    tcp::exchange(demo.network.external(), None, listen, b"here", LIMIT)?;
    drop((held, server));
    let ended = Instant::now();
    while tcp::connect(demo.network.external(), None, listen, LIMIT).is_ok() {
        ensure(ended.elapsed() < LIMIT, || "it is still reached".to_owned())?;
        std::thread::sleep(PAUSE);
    }
    Ok(format!(
        "reached {} after it was asked for, nobody's once its holder ended",
        millis(registered)
    ))
}
