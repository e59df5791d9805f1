//! temporary
#![allow(missing_docs, clippy::all)]
use crate::drop::DropReason;
use crate::frame::FramePool;
use crate::packet::Packet;
use crate::ports::Claim;
use crate::time::Instant;
use core::net::IpAddr;
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    Echo,
    Discard,
    Http(core::num::NonZeroU16),
}
impl Service {
    pub fn claims(&self) -> Vec<Claim> {
        vec![]
    }
}
#[derive(Debug)]
pub struct LocalStack;
impl LocalStack {
    pub fn new(_s: u64) -> Self {
        Self
    }
    pub fn handle(
        &mut self,
        p: Packet,
        _n: Instant,
        pool: &mut FramePool,
    ) -> Result<(), DropReason> {
        pool.free(p.into_frame());
        Err(DropReason::NoListener)
    }
    pub fn poll(&mut self, _n: Instant, _p: &mut FramePool, _o: &mut impl FnMut(Packet)) {}
    pub fn poll_at(&self) -> Option<Instant> {
        None
    }
    pub fn set_addresses(&mut self, _a: impl Iterator<Item = IpAddr>) {}
    pub fn set_services(&mut self, _s: &[Service]) {}
}
