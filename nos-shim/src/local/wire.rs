//! The device through which one connection's smoltcp interface sees the world.

use std::collections::VecDeque;

use smoltcp::phy::{self, ChecksumCapabilities, DeviceCapabilities, Medium};
use smoltcp::time::Instant as SmolInstant;

use crate::frame::{ETHERNET_HEADER, Frame, FramePool};
use crate::packet::{ETHERTYPE_IPV4, ETHERTYPE_IPV6};
use crate::time::Instant;

/// Packets that one connection may send in a row.
const BUDGET: usize = 64;

/// One turn of a connection: at most one packet to receive, and what it sends.
pub(super) struct Wire<'a> {
    input: Option<&'a [u8]>,
    pool: &'a mut FramePool,
    output: &'a mut VecDeque<Frame>,
    mtu: usize,
    budget: usize,
}

impl<'a> Wire<'a> {
    /// `input` is an IP packet, `mtu` the longest one to send, in octets.
    pub(super) fn new(
        input: Option<&'a [u8]>,
        mtu: usize,
        pool: &'a mut FramePool,
        output: &'a mut VecDeque<Frame>,
    ) -> Self {
        Self {
            input,
            pool,
            output,
            mtu,
            budget: BUDGET,
        }
    }
}

/// What a device can do whose longest IP packet has `mtu` octets. Checksums were verified before;
/// they are made here.
fn capabilities(mtu: usize) -> DeviceCapabilities {
    let mut checksum = ChecksumCapabilities::default();
    checksum.ipv4 = phy::Checksum::Tx;
    checksum.tcp = phy::Checksum::Tx;
    let mut capabilities = DeviceCapabilities::default();
    capabilities.medium = Medium::Ip;
    capabilities.max_transmission_unit = mtu;
    capabilities.checksum = checksum;
    capabilities
}

impl phy::Device for Wire<'_> {
    type RxToken<'b>
        = Received<'b>
    where
        Self: 'b;
    type TxToken<'b>
        = Transmit<'b>
    where
        Self: 'b;

    fn receive(&mut self, _: SmolInstant) -> Option<(Received<'_>, Transmit<'_>)> {
        let input = self.input.take()?;
        // Without a buffer the segment is still received; only the reply is lost.
        let transmit = Transmit {
            frame: self.pool.alloc(),
            output: self.output,
        };
        Some((Received(input), transmit))
    }

    fn transmit(&mut self, _: SmolInstant) -> Option<Transmit<'_>> {
        self.budget = self.budget.checked_sub(1)?;
        Some(Transmit {
            frame: Some(self.pool.alloc()?),
            output: self.output,
        })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        capabilities(self.mtu)
    }
}

/// The packet that is received.
pub(super) struct Received<'a>(&'a [u8]);

impl phy::RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

/// Leave to send one packet.
pub(super) struct Transmit<'a> {
    frame: Option<Frame>,
    output: &'a mut VecDeque<Frame>,
}

impl phy::TxToken for Transmit<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let frame = self.frame.and_then(|mut frame| {
            frame.set_len(ETHERNET_HEADER + len).ok()?;
            Some(frame)
        });
        let Some(mut frame) = frame else {
            return f(&mut vec![0; len]);
        };
        let (link, ip) = frame.bytes_mut().split_at_mut(ETHERNET_HEADER);
        link.fill(0);
        ip.fill(0);
        let result = f(ip);
        let ipv6 = ip.first().is_some_and(|first| first >> 4 == 6);
        let ether_type = if ipv6 { ETHERTYPE_IPV6 } else { ETHERTYPE_IPV4 };
        link[12..].copy_from_slice(&ether_type.to_be_bytes());
        self.output.push_back(frame);
        result
    }
}

/// smoltcp's clock counts microseconds.
pub(super) fn to_smoltcp(now: Instant) -> SmolInstant {
    SmolInstant::from_micros(i64::try_from(now.as_nanos() / 1000).unwrap_or(i64::MAX))
}

pub(super) fn from_smoltcp(then: SmolInstant) -> Instant {
    let micros = u64::try_from(then.total_micros()).unwrap_or(0);
    Instant::from_nanos(micros.saturating_mul(1000))
}
