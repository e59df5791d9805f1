//! Outsiders who talk with containers.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};

use nos_relay::lab::testbed::tcp;

use crate::base::daemon::{LIMIT, await_that};
use crate::base::scenario::V4;
use crate::engine::Network;
use crate::image::GREETED;

/// Somebody whom containers greet when they start.
pub(crate) fn outsider(network: &Network) -> tcp::EchoServer {
    let address = V4.external_port(GREETED);
    tcp::EchoServer::start(&network.topology.external, address).unwrap()
}

/// Waits until a container has greeted the outsider, and returns whence: the NOS's address, and a
/// port that a container has for it.
pub(crate) fn await_greeting(network: &Network, outsider: &tcp::EchoServer) -> SocketAddr {
    let from = await_that("a container greets", || {
        outsider.peers().pop().ok_or_else(|| "nobody".to_owned())
    });
    assert_eq!(from.ip(), V4.nos);
    let rows = network.daemon.ports();
    let its = rows.iter().find(|row| row.range.contains(from.port()));
    assert!(its.is_some(), "{from} is nobody's of {rows:?}");
    from
}

/// What an outsider gets at a port of the NOS's address.
pub(crate) fn get(network: &Network, port: u16) -> Result<String, String> {
    let nos = IpAddr::V4(nos_relay::lab::testbed::Topology::DEVICE_V4);
    get_from(network, SocketAddr::new(nos, port))
}

/// What an outsider gets there.
pub(crate) fn get_from(network: &Network, remote: SocketAddr) -> Result<String, String> {
    let connected = tcp::connect(&network.topology.external, None, remote, LIMIT);
    let mut stream = connected.map_err(|error| error.to_string())?;
    let mut answer = String::new();
    let talk = stream
        .write_all(b"GET /index.html HTTP/1.0\r\n\r\n")
        .and_then(|()| stream.read_to_string(&mut answer));
    talk.map_err(|error| error.to_string())?;
    match answer.ends_with("nos-relay\n") {
        true => Ok(answer),
        false => Err(answer),
    }
}

/// Waits until a container serves at a port of the NOS's address.
pub(crate) fn await_served(network: &Network, port: u16) {
    await_that("a container serves", || get(network, port));
}

/// Nothing is registered any more.
pub(crate) fn assert_nothing_left(network: &Network) {
    assert_eq!(network.registrations(), []);
    assert_eq!(network.daemon.ports(), []);
    assert_eq!(network.daemon.attachments(), []);
}
