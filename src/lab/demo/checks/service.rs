//! The NOS's own services, beside the containers on the same addresses.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::Instant;

use super::{Check, Demo, LIMIT, Measured, ensure, millis};
use crate::lab::demo::network::{ECHO_PORT, Family, HTTP_PORT};
use crate::lab::testbed::{LabNamespace, tcp, udp};

/// Octets of the longest status page that is read.
const MAX_PAGE: u64 = 1 << 20;
const PAYLOAD: &[u8] = b"Is the network operating system there?";

pub(super) fn checks<'a>(demo: &'a Demo<'a>) -> impl Iterator<Item = Check<'a>> {
    let external = demo.network.external();
    Family::BOTH.into_iter().flat_map(move |family| {
        let echo = SocketAddr::new(family.nos(), ECHO_PORT);
        let page = SocketAddr::new(family.nos(), HTTP_PORT);
        [
            Check::new("NOS", "echo service, TCP 7", family, move || {
                measure(|| tcp::exchange(external, None, echo, PAYLOAD, LIMIT))
            }),
            Check::new("NOS", "echo service, UDP 7", family, move || {
                measure(|| udp::exchange(external, None, echo, PAYLOAD, LIMIT))
            }),
            Check::new(
                "NOS",
                format!("status page, TCP {HTTP_PORT}"),
                family,
                move || status_page(external, page),
            ),
        ]
    })
}

fn measure<E: std::error::Error + 'static>(
    exchange: impl FnOnce() -> Result<SocketAddr, E>,
) -> Measured {
    let begin = Instant::now();
    exchange()?;
    let elapsed = millis(begin.elapsed());
    Ok(format!("{} octets and back in {elapsed}", PAYLOAD.len()))
}

fn status_page(external: &LabNamespace, server: SocketAddr) -> Measured {
    let mut stream = tcp::connect(external, None, server, LIMIT)?;
    write!(
        stream,
        "GET / HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.take(MAX_PAGE).read_to_string(&mut answer)?;
    judge(&answer)
}

fn judge(answer: &str) -> Measured {
    let status = answer.lines().next().unwrap_or_default();
    ensure(
        status.starts_with("HTTP/1.") && status.contains(" 200 "),
        || format!("{status:?} instead of a page"),
    )?;
    let page = answer.split_once("\r\n\r\n").map_or("", |(_, page)| page);
    ensure(!page.trim().is_empty(), || "the page is empty".to_owned())?;
    Ok(format!("{status}, {} octets", page.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_told_from_other_answers() {
        let good = judge("HTTP/1.1 200 OK\r\nServer: x\r\n\r\nall is well").unwrap();
        assert_eq!(good, "HTTP/1.1 200 OK, 11 octets");
        for bad in [
            "",
            "SSH-2.0-OpenSSH_9 200 \r\n\r\nx",
            "HTTP/1.1 404 Not Found\r\n\r\nno",
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK",
        ] {
            assert!(judge(bad).is_err(), "{bad:?}");
        }
    }
}
