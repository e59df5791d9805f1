//! Detaching many at once.
//!
//! What costs time when one container is detached is not work but waiting: the kernel waits until
//! no processor can still see a device (an RCU grace period, some 20 ms) when a TAP or a packet
//! socket is closed and when an interface is deleted. Waits of several threads overlap, and a group
//! of interfaces is deleted with one wait for all.
//!
//! The kernel also works while it waits: it frees what it has taken apart, in pieces of some 0.3 ms
//! that nothing interrupts. Where packets of others are moved meanwhile, they wait behind it, so fewer
//! are closed at a time then ([`Pace`]).

use std::panic::resume_unwind;

use parking_lot::Mutex;

use super::veth::delete_pairs;
use super::{AttachError, Host, ParkedSide, VethPair};
use crate::data::device::FrameDevice;

/// How many devices are closed at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Packets of other containers are moved meanwhile, and go before. 300 TAPs take 0.7 s.
    BesideTraffic,
    /// As fast as the kernel can: all ends. 300 TAPs take 0.35 s.
    AtOnce,
}

impl Pace {
    /// Threads that wait for the kernel.
    const fn closers(self) -> usize {
        match self {
            Self::BesideTraffic => 16,
            Self::AtOnce => 64,
        }
    }
}

/// What there is to take away of one container. Each part may be missing.
#[derive(Default)]
pub struct Detachment {
    /// Addresses, routes and settings inside.
    pub side: Option<ParkedSide>,
    /// The pair by which it is attached.
    pub veth: Option<VethPair>,
    /// The device of the relay's end, if the caller has it.
    pub device: Option<Box<dyn FrameDevice>>,
    /// Other attachments of its namespace stay.
    pub others_stay: bool,
}

impl std::fmt::Debug for Detachment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Detachment")
            .field("side", &self.side)
            .field("veth", &self.veth)
            .field("device", &self.device.as_ref().map(|device| device.name()))
            .field("others_stay", &self.others_stay)
            .finish()
    }
}

/// Takes many containers' sides away, and says of each what came of it. What cannot be undone of
/// one keeps neither its other parts nor the other containers.
///
/// A container whose namespace has gone is an error too, see [`AttachError::is_namespace_gone`]:
/// nothing was left to undo inside.
pub fn detach_all(
    host: &Host,
    detachments: Vec<Detachment>,
    pace: Pace,
) -> Vec<Result<(), AttachError>> {
    let mut sides = Vec::with_capacity(detachments.len());
    let mut pairs = Vec::with_capacity(detachments.len());
    let mut devices = Vec::with_capacity(detachments.len());
    for (position, detachment) in detachments.into_iter().enumerate() {
        let Detachment {
            side,
            veth,
            device,
            others_stay,
        } = detachment;
        sides.push((side, others_stay));
        pairs.extend(veth.map(|pair| (position, pair)));
        devices.extend(device);
    }
    let mut outcomes = Vec::new();
    std::thread::scope(|scope| {
        let closing = scope.spawn(|| close_all(devices, pace));
        outcomes = sides.into_iter().map(undo).collect();
        join(closing);
    });
    let (positions, pairs): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
    for (position, deleted) in positions.into_iter().zip(delete_pairs(host, pairs)) {
        if let Some(outcome @ Ok(())) = outcomes.get_mut(position) {
            *outcome = deleted;
        }
    }
    outcomes
}

fn undo((side, others_stay): (Option<ParkedSide>, bool)) -> Result<(), AttachError> {
    side.map_or(Ok(()), |side| side.detach(others_stay))
}

/// Closes devices, and returns when all are closed.
pub fn close_all(devices: Vec<Box<dyn FrameDevice>>, pace: Pace) {
    let closers = devices.len().min(pace.closers());
    let devices = Mutex::new(devices.into_iter());
    let close = || {
        loop {
            // The lock is given back before the device is closed.
            let device = devices.lock().next();
            match device {
                Some(device) => drop(device),
                None => break,
            }
        }
    };
    std::thread::scope(|scope| {
        // Where a thread cannot be started, the others have more to do.
        for _ in 1..closers {
            let builder = std::thread::Builder::new().name("close".to_owned());
            let started = builder.spawn_scoped(scope, close);
            if started.is_err() {
                break;
            }
        }
        close();
    });
}

fn join(thread: std::thread::ScopedJoinHandle<'_, ()>) {
    if let Err(panic) = thread.join() {
        resume_unwind(panic);
    }
}
