//! A connection goes on while another process takes over from the relay.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Check, Demo, LIMIT, Measured, ensure, millis};
use crate::lab::demo::network::Family;
use crate::lab::testbed::tcp;

/// Octets of one message.
const MESSAGE: usize = 1000;

/// First of all, as counters begin anew.
pub(super) fn checks<'a>(demo: &'a Demo<'a>) -> impl Iterator<Item = Check<'a>> {
    let what = "X ⇄ web while the relay is replaced";
    let check = move |family| Check::new("TAKEOVER", what, family, move || replaced(demo, family));
    Family::BOTH.into_iter().map(check)
}

fn replaced(demo: &Demo<'_>, family: Family) -> Measured {
    let web = &demo.network.web;
    let listen = SocketAddr::new(family.nos(), web.port());
    let _server = tcp::EchoServer::start(&web.namespace, listen)?;
    let connect = || TcpStream::connect_timeout(&listen, LIMIT);
    let external = demo.network.external();
    let stream = external.try_run(&format!("connect to {listen}"), connect)?;
    let stop = AtomicBool::new(false);
    let (took, messages) = std::thread::scope(|scope| {
        let talk = scope.spawn(|| converse(stream, &stop));
        let took = demo.daemon.replace(demo.network);
        stop.store(true, Ordering::Relaxed);
        let messages = talk.join().map_err(|_| "the connection's thread panicked");
        (took, messages)
    });
    let (took, messages) = (took?, messages??);
    ensure(messages > 0, || "no message came back".to_owned())?;
    let interface = web.namespace.link("eth0")?.is_some();
    ensure(interface, || format!("{} has lost eth0", web.name))?;
    Ok(format!(
        "{messages} messages echoed, new process after {}",
        millis(took)
    ))
}

/// Sends a message, waits until it is back, and goes on. Returns how many there were.
fn converse(mut stream: TcpStream, stop: &AtomicBool) -> Result<u64, String> {
    let failed = |error: io::Error| format!("the connection broke: {error}");
    stream.set_read_timeout(Some(LIMIT)).map_err(failed)?;
    let mut number = 0_u64;
    loop {
        // Once more after the other process has begun.
        let last = stop.load(Ordering::Relaxed);
        let mut message = [0; MESSAGE];
        message[..8].copy_from_slice(&number.to_be_bytes());
        stream.write_all(&message).map_err(failed)?;
        let mut back = [0; MESSAGE];
        stream.read_exact(&mut back).map_err(failed)?;
        if back != message {
            return Err(format!("message {number} came back as another one"));
        }
        number += 1;
        if last {
            return Ok(number);
        }
    }
}
