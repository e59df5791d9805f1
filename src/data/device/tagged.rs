//! A device of which one VLAN is used, where the kernel leaves tags in the frames.
//!
//! # Theory of operation
//!
//! Whoever has a device with a VLAN sends and receives frames without tags; on the link they have the tag of
//! that VLAN. A [`PacketSocket`](super::PacketSocket) has the kernel tell of tags beside the frames, and does
//! it by itself; [`Tagged`] does it for all others.
//!
//! A tag is put in by moving both addresses into the headroom, and taken out by moving them back: nothing
//! else of the frame is touched. The device inside sees ordinary frames, whose offload begins four octets
//! further behind. Frames that it gives back, to be adapted, get their tags taken out again. Octets are
//! counted without tags, as Linux does it for its VLAN interfaces.
//!
//! The super-frames of tunnels are cut before they come here: a device is told of more places in them than a
//! tag moves.

use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use nos_shim::drop::{DropCounters, DropReason};
use nos_shim::frame::{Burst, FramePool};
use nos_shim::offload::Capabilities;
use nos_shim::vlan::{TAG, VlanId, insert_tag, remove_tag};

use super::{Batch, DeviceCounters, DeviceKind, FrameDevice, Inspector, Received, Sent};

/// What no device with a VLAN takes.
pub(super) const NOT_TAGGED: Capabilities = Capabilities::TUNNEL.union(Capabilities::IP_TUNNEL);

/// One VLAN of a device.
#[derive(Debug)]
pub struct Tagged<D> {
    device: D,
    vlan: VlanId,
    /// What the device has handed up beside the VLAN's frames without their tags: frames and octets.
    foreign: (u64, u64),
    /// Octets of tags that were sent.
    tags: u64,
    /// Why frames of others, and those with no room for a tag, were dropped.
    drops: [DropCounters; 2],
    counters: DeviceCounters,
}

impl<D: FrameDevice> Tagged<D> {
    /// The frames of `vlan` that `device` has, and no others.
    pub fn new(device: D, vlan: VlanId) -> Self {
        Self {
            device,
            vlan,
            foreign: (0, 0),
            tags: 0,
            drops: [DropCounters::default(); 2],
            counters: DeviceCounters::default(),
        }
    }

    /// Takes the tags out of the frames from number `first` on. Returns how many frames were none of the
    /// VLAN's, and how many octets they and the tags had.
    fn take_out(
        &mut self,
        burst: &mut Burst,
        first: usize,
        pool: &mut FramePool,
    ) -> (usize, usize) {
        let (mut at, mut dropped) = (first, (0, 0));
        while let Some(frame) = burst.get_mut(at) {
            match remove_tag(frame, self.vlan) {
                Ok(()) => {
                    at += 1;
                    dropped.1 += TAG;
                }
                Err(reason) => {
                    dropped = (dropped.0 + 1, dropped.1 + frame.len());
                    self.drops[0].add(reason, 1);
                    pool.free(burst.remove(at));
                }
            }
        }
        dropped
    }

    /// What became of all frames: those of other VLANs were received by the device alone.
    fn count(&mut self) {
        self.counters = *self.device.counters();
        let DeviceCounters { received, sent, .. } = &mut self.counters;
        received.frames -= self.foreign.0;
        received.octets -= self.foreign.1;
        sent.octets -= self.tags;
        received.drops.merge(&self.drops[0]);
        sent.drops.merge(&self.drops[1]);
    }
}

/// Puts the tag of a VLAN into all frames. Returns how many had no room for it, and were dropped.
pub(super) fn put_in(
    vlan: VlanId,
    burst: &mut Burst,
    pool: &mut FramePool,
    drops: &mut DropCounters,
) -> usize {
    let (mut at, before) = (0, burst.len());
    while let Some(frame) = burst.get_mut(at) {
        if insert_tag(frame, vlan).is_ok() {
            at += 1;
        } else {
            drops.add(DropReason::DeviceError, 1);
            pool.free(burst.remove(at));
        }
    }
    before - burst.len()
}

/// Takes the tags out of frames again that [`put_in`] has put in.
pub(super) fn take_back(vlan: VlanId, burst: &mut Burst) {
    for frame in burst {
        // It has one.
        let _ = remove_tag(frame, vlan);
    }
}

impl<D: FrameDevice> FrameDevice for Tagged<D> {
    fn recv_burst(&mut self, pool: &mut FramePool, burst: &mut Burst, limit: usize) -> Received {
        let first = burst.len();
        let mut received = self.device.recv_burst(pool, burst, limit);
        let (frames, octets) = self.take_out(burst, first, pool);
        self.foreign.0 += frames as u64;
        self.foreign.1 += octets as u64;
        received.frames -= frames;
        received.octets -= octets;
        self.count();
        received
    }

    fn send(
        &mut self,
        burst: &mut Burst,
        pool: &mut FramePool,
        batch: Option<&mut Batch<'_>>,
    ) -> Sent {
        let without = put_in(self.vlan, burst, pool, &mut self.drops[1]);
        let mut sent = self.device.send(burst, pool, batch);
        take_back(self.vlan, burst);
        let tags = sent.frames * TAG;
        self.tags += tags as u64;
        sent.octets -= tags;
        sent.dropped += without;
        self.count();
        sent
    }

    fn capabilities(&self) -> Capabilities {
        self.device.capabilities() - NOT_TAGGED
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.device.fd()
    }

    fn inspector(&self) -> Inspector {
        self.device.inspector()
    }

    fn name(&self) -> &str {
        self.device.name()
    }

    fn kind(&self) -> DeviceKind {
        self.device.kind()
    }

    fn counters(&self) -> &DeviceCounters {
        &self.counters
    }

    fn set_coalescing(&mut self, on: bool) {
        self.device.set_coalescing(on);
    }

    fn set_persistent(&mut self, on: bool) -> Result<(), Errno> {
        self.device.set_persistent(on)
    }

    fn leave(&mut self) {
        self.device.leave();
    }
}

#[cfg(test)]
mod tests {
    use nos_shim::frame::{Checksum, FramePool, Offload};

    use super::super::memory_pair;
    use super::*;

    const ADDRESSES: [u8; 12] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];

    fn frame(tag: &[u8], octet: u8) -> Vec<u8> {
        [&ADDRESSES[..], tag, &[8, 0], &[octet; 46]].concat()
    }

    fn vlan(id: u16) -> VlanId {
        VlanId::new(id).unwrap()
    }

    #[test]
    fn frames_have_the_tag_on_the_link_and_nowhere_else() {
        let [near, mut far] = memory_pair(["near", "far"], 64);
        let mut near = Tagged::new(near, vlan(910));
        assert!((near.capabilities() & NOT_TAGGED).is_empty());
        let mut pool = FramePool::new(64, 2000);
        let offload = |start| Offload {
            checksum: Checksum::Partial { start, offset: 6 },
            segmentation: None,
        };
        let mut one = pool.copy_from(&frame(&[], 1)).unwrap();
        one.set_offload(offload(34));
        let mut burst: Burst = [one].into_iter().collect();
        let sent = near.send_burst(&mut burst, &mut pool);
        assert_eq!((sent.frames, sent.dropped), (1, 0));
        let mut burst = Burst::new();
        assert_eq!(far.recv_burst(&mut pool, &mut burst, 64).frames, 1);
        assert_eq!(burst[0].bytes(), frame(&[0x81, 0, 0x03, 0x8e], 1));
        assert_eq!(burst[0].offload(), offload(38));

        // Others' frames, before, between and behind its own.
        let tags: [&[u8]; 5] = [
            &[],
            &[0x81, 0, 0xa3, 0x8e],
            &[0x81, 0, 0x03, 0x8f],
            &[0x81, 0, 0x03, 0x8e],
            &[0x88, 0xa8, 0x03, 0x8e],
        ];
        burst.clear();
        for (tag, octet) in tags.iter().zip(10..) {
            burst.push(pool.copy_from(&frame(tag, octet)).unwrap());
        }
        let _ = far.send_burst(&mut burst, &mut pool);
        let received = near.recv_burst(&mut pool, &mut burst, 64);
        assert_eq!((received.frames, received.octets), (2, 120));
        let own: Vec<_> = burst.iter().map(|frame| frame.bytes().to_vec()).collect();
        assert_eq!(own, [frame(&[], 11), frame(&[], 13)]);
        let DeviceCounters { received, sent, .. } = near.counters();
        assert_eq!(
            (received.frames, received.drops.of(DropReason::Vlan)),
            (2, 3)
        );
        assert_eq!((sent.frames, sent.drops.total()), (1, 0));
    }

    #[test]
    fn a_frame_without_room_for_a_tag_is_dropped_alone() {
        let [near, _far] = memory_pair(["near", "far"], 64);
        let mut near = Tagged::new(near, vlan(1));
        let mut pool = FramePool::new(64, 2000);
        let mut burst: Burst = (1..4)
            .map(|octet| pool.copy_from(&frame(&[], octet)).unwrap())
            .collect();
        let headroom = burst[1].headroom();
        burst[1].push_front(headroom).unwrap();
        let sent = near.send_burst(&mut burst, &mut pool);
        assert_eq!((sent.frames, sent.dropped), (2, 1));
        assert_eq!(near.counters().sent.drops.of(DropReason::DeviceError), 1);
    }
}
