//! ICMP and ICMPv6 echo on raw sockets, one request after the other.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt,
};
use socket2::{Domain, Protocol, Socket, Type};

use super::error::LabError;
use super::namespace::LabNamespace;

/// What came of one echo request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Echo {
    /// The reply came, with our payload.
    Reply {
        /// Who sent it.
        from: IpAddr,
        /// TTL or hop limit on arrival.
        ttl: u8,
        /// From sending to arrival.
        round_trip: Duration,
    },
    /// A reply with our identifier and number, but another payload.
    Damaged {
        /// Who sent it.
        from: IpAddr,
    },
    /// An ICMP error that quotes our request.
    Error {
        /// Who sent it.
        from: IpAddr,
        /// ICMP or ICMPv6 type.
        kind: u8,
        /// ICMP or ICMPv6 code.
        code: u8,
    },
    /// The kernel could not send the request: its errno.
    Unsent(i32),
    /// Nothing came in time.
    Timeout,
}

impl Echo {
    /// Whether the right reply came.
    #[must_use]
    pub fn is_reply(&self) -> bool {
        matches!(self, Self::Reply { .. })
    }
}

/// How to ping.
#[derive(Clone, Copy, Debug)]
pub struct Ping {
    /// Number of requests, one after the other.
    pub count: u16,
    /// How long to wait for each.
    pub timeout: Duration,
    /// Octets of payload.
    pub size: usize,
    /// Forbid fragmentation (IPv4 DF; on IPv6 no fragmentation at the source).
    pub dont_fragment: bool,
    /// TTL or hop limit of the requests.
    pub ttl: u8,
    /// Source address; `None` lets the kernel choose.
    pub source: Option<IpAddr>,
    /// The index of the interface on whose link a link-local address is; zero of any other address.
    pub scope: u32,
}

impl Default for Ping {
    fn default() -> Self {
        Self {
            count: 1,
            timeout: Duration::from_secs(2),
            size: 56,
            dont_fragment: false,
            ttl: 64,
            source: None,
            scope: 0,
        }
    }
}

/// Sends `count` echo requests from `namespace` to `address`, each with its own `timeout`.
///
/// # Errors
/// No raw socket can be had there.
pub fn ping(
    namespace: &LabNamespace,
    address: IpAddr,
    count: u16,
    timeout: Duration,
) -> Result<Vec<Echo>, LabError> {
    let how = Ping {
        count,
        timeout,
        ..Ping::default()
    };
    how.run(namespace, address)
}

impl Ping {
    /// Sends the echo requests from `namespace` to `address`.
    ///
    /// # Errors
    /// No raw socket can be had there.
    pub fn run(&self, namespace: &LabNamespace, address: IpAddr) -> Result<Vec<Echo>, LabError> {
        namespace.try_run(&format!("ping {address}"), || {
            let pinger = Pinger::open(self, address)?;
            (1..=self.count).map(|number| pinger.echo(number)).collect()
        })
    }
}

/// The ICMP types of one family.
struct Types {
    request: u8,
    reply: u8,
    /// Of each error: that which quotes a packet.
    errors: &'static [u8],
}

/// RFC 792; destination unreachable, time exceeded, parameter problem.
const ICMP: Types = Types {
    request: 8,
    reply: 0,
    errors: &[3, 11, 12],
};
/// RFC 4443; the same and packet too big.
const ICMPV6: Types = Types {
    request: 128,
    reply: 129,
    errors: &[1, 2, 3, 4],
};

struct Pinger {
    socket: Socket,
    types: &'static Types,
    address: IpAddr,
    scope: u32,
    identifier: u16,
    timeout: Duration,
    size: usize,
}

impl Pinger {
    fn open(how: &Ping, address: IpAddr) -> io::Result<Self> {
        let (domain, protocol, types) = match address {
            IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, &ICMP),
            IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, &ICMPV6),
        };
        let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
        if let Some(source) = how.source {
            socket.bind(&SocketAddr::new(source, 0).into())?;
        }
        if address.is_ipv6() {
            socket.set_unicast_hops_v6(how.ttl.into())?;
            setsockopt(&socket, sockopt::Ipv6RecvHopLimit, &true)?;
            setsockopt(&socket, sockopt::Ipv6DontFrag, &how.dont_fragment)?;
        } else {
            socket.set_ttl_v4(how.ttl.into())?;
            discover_mtu(&socket, how.dont_fragment)?;
        }
        Ok(Self {
            socket,
            types,
            address,
            scope: how.scope,
            identifier: next_identifier(),
            timeout: how.timeout,
            size: how.size,
        })
    }

    fn echo(&self, number: u16) -> io::Result<Echo> {
        let request = self.request(number);
        let sent = Instant::now();
        let to = match self.address {
            IpAddr::V6(address) => SocketAddrV6::new(address, 0, 0, self.scope).into(),
            IpAddr::V4(_) => SocketAddr::new(self.address, 0).into(),
        };
        match self.socket.send_to(&request, &to) {
            Ok(_) => self.wait(number, &request, sent),
            Err(error) => match error.raw_os_error() {
                Some(code) => Ok(Echo::Unsent(code)),
                None => Err(error),
            },
        }
    }

    fn wait(&self, number: u16, request: &[u8], sent: Instant) -> io::Result<Echo> {
        loop {
            let left = self.timeout.saturating_sub(sent.elapsed());
            if left.is_zero() {
                return Ok(Echo::Timeout);
            }
            self.socket
                .set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            let Some(received) = self.receive()? else {
                return Ok(Echo::Timeout);
            };
            if let Some(echo) = self.judge(&received, number, request, sent.elapsed()) {
                return Ok(echo);
            }
        }
    }

    /// The next ICMP message of any kind; `None` when none came in time.
    fn receive(&self) -> io::Result<Option<Received>> {
        let mut buffer = vec![0; 66_000];
        let mut control = nix::cmsg_space!(i32);
        let (length, from, hop_limit) = {
            let mut parts = [IoSliceMut::new(&mut buffer)];
            let message = match recvmsg::<SockaddrStorage>(
                self.socket.as_raw_fd(),
                &mut parts,
                Some(&mut control),
                MsgFlags::empty(),
            ) {
                Ok(message) => message,
                Err(nix::Error::EAGAIN) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            let hop_limit = message.cmsgs()?.find_map(|control| match control {
                ControlMessageOwned::Ipv6HopLimit(limit) => u8::try_from(limit).ok(),
                _ => None,
            });
            (message.bytes, message.address.and_then(ip_of), hop_limit)
        };
        buffer.truncate(length);
        let Some(from) = from else { return Ok(None) };
        if self.address.is_ipv6() {
            let ttl = hop_limit.unwrap_or(0);
            return Ok(Some(Received {
                from,
                ttl,
                icmp: buffer,
            }));
        }
        // IPv4 raw sockets see the IP header.
        let ttl = buffer.get(8).copied().unwrap_or(0);
        let header = buffer
            .first()
            .map_or(0, |first| usize::from(first & 0xf) * 4);
        let icmp = buffer.split_off(header.min(buffer.len()));
        Ok(Some(Received { from, ttl, icmp }))
    }

    /// What the message means for request `number`; `None` when it is about something else.
    fn judge(
        &self,
        received: &Received,
        number: u16,
        request: &[u8],
        round_trip: Duration,
    ) -> Option<Echo> {
        let &Received {
            from,
            ttl,
            ref icmp,
        } = received;
        let (&kind, &code) = (icmp.first()?, icmp.get(1)?);
        if kind == self.types.reply {
            if icmp.get(4..8)? != request.get(4..8)? {
                return None;
            }
            return Some(if icmp.get(8..) == request.get(8..) {
                Echo::Reply {
                    from,
                    ttl,
                    round_trip,
                }
            } else {
                Echo::Damaged { from }
            });
        }
        let quoted = self.quoted_echo(icmp.get(8..)?)?;
        let ours = quoted == [self.identifier.to_be_bytes(), number.to_be_bytes()].concat();
        (self.types.errors.contains(&kind) && ours).then_some(Echo::Error { from, kind, code })
    }

    /// Identifier and number of the echo request that an error quotes.
    fn quoted_echo<'a>(&self, quote: &'a [u8]) -> Option<&'a [u8]> {
        let header = match self.address {
            IpAddr::V4(_) => usize::from(quote.first()? & 0xf) * 4,
            IpAddr::V6(_) => 40,
        };
        let icmp = quote.get(header..)?;
        (*icmp.first()? == self.types.request).then_some(icmp.get(4..8)?)
    }

    fn request(&self, number: u16) -> Vec<u8> {
        let mut request = vec![self.types.request, 0, 0, 0];
        request.extend(self.identifier.to_be_bytes());
        request.extend(number.to_be_bytes());
        request.extend((0..self.size).map(|at| at.to_le_bytes()[0]));
        if self.address.is_ipv4() {
            let sum = internet_checksum(&request);
            request[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        // On ICMPv6 sockets the kernel fills it in (RFC 3542 section 3.1).
        request
    }
}

struct Received {
    from: IpAddr,
    ttl: u8,
    /// From the ICMP type on.
    icmp: Vec<u8>,
}

/// Different for each ping of this process, and likely between processes.
fn next_identifier() -> u16 {
    use std::sync::atomic::{AtomicU16, Ordering};
    static COUNTER: AtomicU16 = AtomicU16::new(0);
    let [low, high, ..] = std::process::id().to_le_bytes();
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    u16::from_le_bytes([low, high])
        .wrapping_mul(251)
        .wrapping_add(count)
}

fn ip_of(address: SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
}

fn discover_mtu(socket: &Socket, dont_fragment: bool) -> io::Result<()> {
    let value = if dont_fragment {
        libc::IP_PMTUDISC_DO
    } else {
        libc::IP_PMTUDISC_DONT
    };
    let size = libc::socklen_t::try_from(size_of_val(&value)).unwrap_or(0);
    // SAFETY: the pointer and the size are those of `value`, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            (&raw const value).cast(),
            size,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// RFC 1071.
fn internet_checksum(octets: &[u8]) -> u16 {
    let sum = octets
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)))
        .sum::<u32>();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    !u16::try_from(folded).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_of_a_known_request() {
        // From RFC 1071 section 3: 00 01 f2 03 f4 f5 f6 f7 sums up to ddf2.
        let octets = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(internet_checksum(&octets), !0xddf2);
        assert_eq!(internet_checksum(&[0xff]), !0xff00);
    }

    #[test]
    fn identifiers_differ() {
        assert_ne!(next_identifier(), next_identifier());
    }
}
