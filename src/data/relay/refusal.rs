//! What a container hears that sends from a port that is not its own.
//!
//! # Theory of operation
//!
//! The packet is dropped and counted as any that the [guard](crate::data::guard) refuses. Its sender
//! is told by an ICMP error, "communication administratively prohibited" (RFC 1812 §5.2.7.1, RFC 4443
//! §3.1), so that a program fails at once and not by time-out. Linux gives it `EHOSTUNREACH` over
//! IPv4 and `EACCES` over IPv6.
//!
//! | packet | answered |
//! |---|---|
//! | TCP segment with SYN, without ACK and RST | yes: the container opens a flow |
//! | other TCP segments | no: the flow that they name is another owner's, or has been since the port was given away, and an error about an established flow ends nothing |
//! | UDP datagram, first fragments included | yes |
//! | one with a wrong checksum: its port may be wrong as well | no |
//! | whatever no error may be sent about: see [`IcmpError::may_answer`] | no |
//!
//! The error goes to the sender's own link and nowhere else, so nobody can use it against the owner
//! of the port. It comes from the addresses that all errors to containers come from: see
//! [`DUMMY_ADDRESS`].
//!
//! Each attachment may hear as many errors as the NOS sends to everybody together. That is more than
//! a host allows one peer: all containers share one address, the path is not the network's, and a
//! program that opens a hundred flows from foreign ports had better fail a hundred times at once.

use std::collections::VecDeque;
use std::net::Ipv6Addr;
use std::time::Duration;

use nos_shim::frame::FramePool;
use nos_shim::icmp::{DUMMY_ADDRESS, IcmpError};
use nos_shim::ident::AttachmentId;
use nos_shim::originate::Originator;
use nos_shim::packet::{Packet, protocol};
use nos_shim::ports::Transport;
use nos_shim::rate_limit::{IcmpLimits, TokenBucket};
use nos_shim::time::Instant;

use super::RelayEvent;

/// The control thread hears of one attachment so often in the long run ...
const NEWS_INTERVAL: Duration = Duration::from_secs(10);
/// ... and so often at once.
const NEWS_BURST: u32 = 3;

/// What makes the errors, and keeps the news.
#[derive(Debug)]
pub(super) struct Refuser {
    originator: Originator,
    pub(super) events: VecDeque<RelayEvent>,
}

impl Default for Refuser {
    fn default() -> Self {
        Self {
            // Only the container hears it, on its own link: there is nobody to guess anything.
            originator: Originator::new(0),
            events: VecDeque::new(),
        }
    }
}

/// How often an attachment may be told of.
#[derive(Clone, Copy, Debug)]
pub(super) struct RefusalLimits {
    errors: TokenBucket,
    news: TokenBucket,
    /// Packets that were dropped since there was news.
    untold: u64,
}

impl Default for RefusalLimits {
    fn default() -> Self {
        Self {
            errors: IcmpLimits::default().total(),
            news: TokenBucket::new(NEWS_INTERVAL, NEWS_BURST),
            untold: 0,
        }
    }
}

impl Refuser {
    /// The error about a packet from a foreign port, if its sender may hear one now. In IPv6 it comes
    /// from `router`, the relay's address on the link. The Ethernet addresses are zero.
    pub(super) fn answer(
        &mut self,
        packet: &Packet,
        router: Ipv6Addr,
        limits: &mut RefusalLimits,
        pool: &mut FramePool,
        now: Instant,
    ) -> Option<Packet> {
        let opens = packet.opens_tcp_flow() || packet.protocol() == protocol::UDP;
        let error = IcmpError::Prohibited;
        let due = opens && packet.transport_checksum_ok() && error.may_answer(packet);
        if !due || !limits.errors.take(now) {
            return None;
        }
        let source = match packet.is_ipv6() {
            true => router.into(),
            false => DUMMY_ADDRESS.into(),
        };
        error.build(packet, source, &mut self.originator, pool)
    }

    /// Tells the control thread, once in a while.
    pub(super) fn tell(
        &mut self,
        attachment: AttachmentId,
        packet: &Packet,
        limits: &mut RefusalLimits,
        now: Instant,
    ) {
        limits.untold += 1;
        let transport = Transport::from_protocol(packet.protocol());
        let Some((transport, ports)) = transport.zip(packet.ports()) else {
            return;
        };
        if limits.news.take(now) {
            self.events.push_back(RelayEvent::ForeignPort {
                attachment,
                transport,
                port: ports.source,
                dropped: core::mem::take(&mut limits.untold),
            });
        }
    }
}
