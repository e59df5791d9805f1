//! A UDP datagram there and back, seen from both ends.

use std::io::{self, ErrorKind, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt,
};

use crate::lab::testbed::{LabError, LabNamespace};

/// Both ends of a talk that has not begun.
pub(super) struct Talk {
    /// Connected to the server.
    client: UdpSocket,
    server: UdpSocket,
}

/// What came of it.
pub(super) struct Told {
    /// The client as it sees itself.
    pub(super) client: SocketAddr,
    /// The client as the server sees it.
    pub(super) seen: SocketAddr,
    /// TTL or hop limit at the server.
    pub(super) ttl: u8,
    pub(super) round_trip: Duration,
}

struct Arrival {
    octets: Vec<u8>,
    from: SocketAddr,
    ttl: u8,
}

impl Talk {
    /// Binds the server to `remote`, and the client to `local` or what the kernel chooses.
    pub(super) fn prepare(
        (near, local): (&LabNamespace, Option<SocketAddr>),
        (far, remote): (&LabNamespace, SocketAddr),
    ) -> Result<Self, LabError> {
        let server = far.try_run(&format!("bind to {remote}"), || serve(remote))?;
        let local = local.unwrap_or_else(|| SocketAddr::new(any(remote.ip()), 0));
        let client = near.try_run(&format!("connect {local} to {remote}"), || {
            let client = UdpSocket::bind(local)?;
            client.connect(remote)?;
            Ok(client)
        })?;
        Ok(Self { client, server })
    }

    /// Sends `payload`, which the server sends back; `limit` is for each way.
    pub(super) fn hold(&self, payload: &[u8], limit: Duration) -> io::Result<Told> {
        let begin = Instant::now();
        self.client.send(payload)?;
        let there = receive(&self.server, limit)?;
        self.server.send_to(&there.octets, there.from)?;
        let back = receive(&self.client, limit)?;
        if there.octets != payload || back.octets != payload {
            let text = format!("{} octets came back changed", back.octets.len());
            return Err(io::Error::new(ErrorKind::InvalidData, text));
        }
        Ok(Told {
            client: self.client.local_addr()?,
            seen: there.from,
            ttl: there.ttl,
            round_trip: begin.elapsed(),
        })
    }
}

fn serve(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(address)?;
    if address.is_ipv4() {
        setsockopt(&socket, sockopt::Ipv4RecvTtl, &true)?;
    } else {
        setsockopt(&socket, sockopt::Ipv6RecvHopLimit, &true)?;
    }
    Ok(socket)
}

fn receive(socket: &UdpSocket, limit: Duration) -> io::Result<Arrival> {
    socket.set_read_timeout(Some(limit))?;
    let mut octets = vec![0; usize::from(u16::MAX)];
    let mut control = nix::cmsg_space!(i32);
    let mut parts = [IoSliceMut::new(&mut octets)];
    let message = recvmsg::<SockaddrStorage>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut control),
        MsgFlags::empty(),
    )
    .map_err(|error| match error {
        // What a socket with a timeout says in its place.
        Errno::EAGAIN => ErrorKind::TimedOut.into(),
        _ => io::Error::from(error),
    })?;
    let ttl = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::Ipv4Ttl(ttl) | ControlMessageOwned::Ipv6HopLimit(ttl) => {
            u8::try_from(ttl).ok()
        }
        _ => None,
    });
    let from = message.address.and_then(address);
    let from = from.ok_or_else(|| io::Error::other("a datagram from nowhere"))?;
    let length = message.bytes;
    octets.truncate(length);
    Ok(Arrival {
        octets,
        from,
        ttl: ttl.unwrap_or_default(),
    })
}

fn address(storage: SockaddrStorage) -> Option<SocketAddr> {
    let v4 = storage
        .as_sockaddr_in()
        .map(|v4| SocketAddr::V4((*v4).into()));
    v4.or_else(|| {
        storage
            .as_sockaddr_in6()
            .map(|v6| SocketAddr::V6((*v6).into()))
    })
}

fn any(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    fn on_loopback(address: IpAddr) -> Talk {
        let server = serve(SocketAddr::new(address, 0)).unwrap();
        let client = UdpSocket::bind(SocketAddr::new(any(address), 0)).unwrap();
        client.connect(server.local_addr().unwrap()).unwrap();
        Talk { client, server }
    }

    #[test]
    fn both_ends_agree_on_loopback() {
        let talk = on_loopback(Ipv4Addr::LOCALHOST.into());
        let told = talk.hold(b"there and back", LIMIT).unwrap();
        assert_eq!(told.client, told.seen);
        assert_eq!(told.ttl, 64);
    }

    #[test]
    fn a_port_that_closed_is_refused() {
        let talk = on_loopback(Ipv4Addr::LOCALHOST.into());
        let Talk { client, server } = talk;
        drop(server);
        client.send(b"anybody?").unwrap();
        let error = receive(&client, LIMIT).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }

    #[test]
    fn silence_is_a_timeout() {
        let talk = on_loopback(Ipv4Addr::LOCALHOST.into());
        let error = receive(&talk.server, Duration::from_millis(1))
            .err()
            .unwrap();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
    }
}
