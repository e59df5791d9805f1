//! What stands in for the local stack where the feature `stack` is off: nobody listens.

use core::net::IpAddr;

use crate::drop::DropReason;
use crate::frame::FramePool;
use crate::packet::Packet;
use crate::services::Service;
use crate::time::Instant;

pub(crate) struct LocalStack;

#[expect(clippy::unused_self, reason = "the calls are those of the stack")]
impl LocalStack {
    pub(crate) fn new(_seed: u64) -> Self {
        Self
    }

    pub(crate) fn set_services(&mut self, _services: &[Service]) {}

    pub(crate) fn set_addresses(&mut self, _addresses: impl IntoIterator<Item = IpAddr>) {}

    pub(crate) fn handle(
        &mut self,
        packet: Packet,
        _mtu: usize,
        _now: Instant,
        pool: &mut FramePool,
    ) -> Result<(), DropReason> {
        pool.free(packet.into_frame());
        Err(DropReason::NoListener)
    }

    pub(crate) fn poll(
        &mut self,
        _now: Instant,
        _pool: &mut FramePool,
        _transmit: &mut impl FnMut(Packet),
    ) {
    }

    pub(crate) fn poll_at(&self) -> Option<Instant> {
        None
    }

    pub(crate) fn status_wanted(&self) -> bool {
        false
    }

    pub(crate) fn set_status(&mut self, _json: &str) {}
}
