//! A burst as operations of a ring, and what its completions mean.
//!
//! # Theory of operation
//!
//! A device asks for a batch of the frames at the front of its burst, and does by plain calls what no
//! batch is made of. To whoever watches the device, both are the same:
//!
//! - **Single frames** go out side by side: the kernel tries each, in their order, whatever becomes of
//!   the others. That is no different from plain calls as long as a refused frame is dropped, which
//!   it is: a batch ends before a super-frame of a kind that the kernel has not proven to take, since
//!   that may have to be cut and sent again ([`Egress::Adapt`](super::super::Egress::Adapt)).
//! - **Runs of datagrams** ([`super::super::coalesce`]) may have to be sent again one by one. A batch
//!   with a run in it is a chain: what is behind a refused message is not tried, and the device goes
//!   on from there by plain calls.
//! - A device that is full, down or gone says so to each frame. Each is counted for its own answer;
//!   what is not in the batch is dropped if the last answer was such. A link that came up in the
//!   middle of a batch is up.

use nix::errno::Errno;
use nos_shim::drop::DropReason;
use nos_shim::frame::{BATCH, Frame};

use super::super::character::{Verdict, verdict};
use super::super::coalesce::{Run, run_length};
use super::super::vnet::Offloads;
use super::super::{Egress, Sending};
use super::{Broken, Carrier, Operation, Outcome, Slot, Uring};

/// Messages that a batch has at least: fewer take no longer by plain calls, and a lone frame less.
const LEAST: usize = 4;

/// What the device's file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum How {
    /// A character device, which is written to.
    Write,
    /// A socket, which is sent to.
    Send,
}

/// Makes a frame ready and returns what is to be handed to the kernel, offload header included.
/// `None` for a frame that only a plain call deals with.
pub(in super::super) type Area = fn(&mut Frame) -> Option<&mut [u8]>;

/// What sends bursts of one device by a ring.
#[derive(Debug)]
pub struct Batch<'a> {
    uring: &'a mut Uring,
    slot: Slot,
}

impl<'a> Batch<'a> {
    pub(super) fn new(uring: &'a mut Uring, slot: Slot) -> Self {
        Self { uring, slot }
    }

    /// Sends messages from the front of what waits. Returns how many frames are done with: none where
    /// there is no batch to be made of them, or where its first message was refused and the answer is
    /// for a plain call to find out.
    pub(in super::super) fn send(
        &mut self,
        how: How,
        area: Area,
        offloads: &mut Offloads,
        sending: &mut Sending<'_>,
    ) -> usize {
        let Uring {
            ring,
            messages,
            report,
            ..
        } = &mut *self.uring;
        if report.failed.is_some() || sending.waiting().len() < LEAST {
            return 0;
        }
        let (done, taken) = (sending.done, sending.sent.frames);
        let result = send(messages, ring, self.slot, (how, area), offloads, sending);
        if let Ok(true) = result {
            report.batches += 1;
            report.frames += (sending.sent.frames - taken) as u64;
        }
        let done = sending.done - done;
        if let Err(Broken(errno)) = result {
            self.uring.fail(errno);
        }
        done
    }
}

/// What a message carries.
#[derive(Clone, Copy)]
struct Cargo {
    frames: usize,
    /// How the first frame was before, if they are a run.
    run: Option<Run>,
}

/// A batch, laid out once for the longest burst.
pub(super) struct Messages {
    count: usize,
    operations: [Operation; BATCH],
    cargo: [Cargo; BATCH],
    outcomes: [Outcome; BATCH],
    areas: [libc::iovec; BATCH],
    headers: [libc::msghdr; BATCH],
}

// SAFETY: the pointers inside are written before each batch and mean nothing after it.
unsafe impl Send for Messages {}

impl std::fmt::Debug for Messages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Messages").finish_non_exhaustive()
    }
}

impl Messages {
    pub(super) fn new() -> Box<Self> {
        // SAFETY: numbers and raw pointers only, for which zero octets are a value.
        let (areas, headers) = unsafe { core::mem::zeroed() };
        let nothing = Operation::Write {
            octets: core::ptr::null(),
            len: 0,
        };
        Box::new(Self {
            count: 0,
            operations: [nothing; BATCH],
            cargo: [Cargo {
                frames: 0,
                run: None,
            }; BATCH],
            outcomes: [Outcome::Untried; BATCH],
            areas,
            headers,
        })
    }

    /// Makes messages of the frames from the first on, as far as a batch may go. Returns whether there
    /// is a run among them.
    fn load(&mut self, frames: &mut [Frame], how: How, area: Area, offloads: &Offloads) -> bool {
        let coalesce = offloads.coalesces();
        let (mut at, mut chained) = (0, false);
        self.count = 0;
        while let Some(waiting) = frames.get_mut(at..).filter(|left| !left.is_empty()) {
            if !offloads.may_be_batched(waiting[0].offload()) {
                break;
            }
            let length = if coalesce { run_length(waiting) } else { 1 };
            let run = match length {
                0 | 1 => None,
                _ => Run::begin(waiting.split_at_mut(length).0),
            };
            let taken = if run.is_some() { length } else { 1 };
            let Some(operation) = self.operation(&mut waiting[..taken], at, run, how, area) else {
                if let Some(run) = run {
                    run.undo(&mut waiting[0]);
                }
                break;
            };
            self.operations[self.count] = operation;
            self.cargo[self.count] = Cargo { frames: taken, run };
            self.count += 1;
            at += taken;
            chained |= run.is_some();
        }
        chained
    }

    /// The operation that hands these frames over as one message. Number `at` of the vectors and those
    /// behind it are free for it.
    fn operation(
        &mut self,
        frames: &mut [Frame],
        at: usize,
        run: Option<Run>,
        how: How,
        area: Area,
    ) -> Option<Operation> {
        let count = frames.len();
        let (first, more) = frames.split_first_mut()?;
        let first = area(first)?;
        let Some(run) = run else {
            let (octets, len) = (first.as_ptr(), u32::try_from(first.len()).ok()?);
            return Some(match how {
                How::Write => Operation::Write { octets, len },
                How::Send => Operation::Send { octets, len },
            });
        };
        let areas = self.areas.get_mut(at..at + count)?;
        areas[0] = vector(first);
        for (place, frame) in areas[1..].iter_mut().zip(more) {
            let payload = frame.bytes_mut().get_mut(run.headers()..);
            *place = vector(payload.unwrap_or_default());
        }
        let areas = areas.as_mut_ptr();
        Some(match how {
            How::Write => Operation::WriteVector {
                areas,
                count: u32::try_from(count).ok()?,
            },
            How::Send => {
                let header = &mut self.headers[self.count];
                header.msg_iov = areas;
                header.msg_iovlen = count as _;
                Operation::SendMessage(header)
            }
        })
    }

    /// Makes the first frames of runs that were not sent what they were.
    fn unload(&self, frames: &mut [Frame]) {
        let mut at = 0;
        for (cargo, &outcome) in self.cargo[..self.count].iter().zip(&self.outcomes) {
            // The kernel may read one whose outcome is unknown: it stays.
            let restore = matches!(outcome, Outcome::Untried | Outcome::Refused(_));
            if let (true, Some(run), Some(first)) = (restore, cargo.run, frames.get_mut(at)) {
                run.undo(first);
            }
            at += cargo.frames;
        }
    }
}

/// Sends a batch from the front of what waits. Returns whether there was one.
///
/// # Errors
///
/// The ring is broken. Frames that it took are accounted for, and those that it has not seen wait.
fn send(
    messages: &mut Box<Messages>,
    carrier: &mut impl Carrier,
    slot: Slot,
    (how, area): (How, Area),
    offloads: &mut Offloads,
    sending: &mut Sending<'_>,
) -> Result<bool, Broken> {
    let chained = messages.load(sending.waiting(), how, area, offloads);
    let count = messages.count;
    if count < LEAST {
        messages.outcomes[..count].fill(Outcome::Untried);
        messages.unload(sending.waiting());
        return Ok(false);
    }
    let batch = &mut **messages;
    let operations = &batch.operations[..count];
    // SAFETY: the operations point to octets of frames that wait in the burst, and to vectors and
    // headers of `messages`. Nothing touches them during the call; where an outcome is unknown after
    // it, `abandon` keeps frames and messages from being used or freed ever again.
    let result = unsafe { carrier.carry_out(slot, operations, chained, &mut batch.outcomes) };
    messages.unload(sending.waiting());
    settle(messages, chained, offloads, sending);
    if result.is_err() && messages.outcomes[..count].contains(&Outcome::Unknown) {
        abandon(messages);
    }
    result.map(|()| true)
}

/// Leaves the vectors and headers of a broken ring to the kernel.
#[cold]
fn abandon(messages: &mut Box<Messages>) {
    let _ = Box::leak(core::mem::replace(messages, Messages::new()));
}

/// Accounts for the frames of a batch, up to the first that has to be sent by a plain call.
fn settle(messages: &Messages, chained: bool, offloads: &mut Offloads, sending: &mut Sending<'_>) {
    let mut rest = None;
    for (cargo, &outcome) in messages.cargo[..messages.count]
        .iter()
        .zip(&messages.outcomes)
    {
        match outcome {
            Outcome::Taken => {
                rest = rest.filter(|verdict| matches!(verdict, Verdict::Lost(Egress::Gone(_))));
                for _ in 0..cargo.frames {
                    if let Some(frame) = sending.front() {
                        offloads.taken(frame.offload());
                    }
                    sending.taken();
                }
            }
            Outcome::Refused(errno) if !chained => {
                if let (Errno::EINVAL | Errno::EMSGSIZE, Some(frame)) = (errno, sending.front()) {
                    // Of a kind that the kernel takes, or it were in no batch: counted, not given up.
                    let _ = offloads.refused(frame.offload());
                }
                rest = refused(errno, rest, sending);
            }
            Outcome::Unknown => (0..cargo.frames).for_each(|_| sending.abandoned()),
            Outcome::Refused(_) | Outcome::Untried => break,
        }
    }
    match rest {
        Some(Verdict::Lost(egress)) => sending.lost(egress),
        Some(Verdict::Full) => sending.drop_rest(DropReason::DeviceFull),
        Some(Verdict::Dropped(_)) | None => {}
    }
}

/// Drops the front frame for the kernel's reason. Returns what becomes of the frames that are not in
/// the batch, where those before it meant `rest`.
fn refused(errno: Errno, rest: Option<Verdict>, sending: &mut Sending<'_>) -> Option<Verdict> {
    let verdict = verdict(errno);
    let (reason, rest) = match (verdict, rest) {
        (Verdict::Dropped(reason), rest) => (reason, rest),
        (Verdict::Full, rest @ Some(Verdict::Lost(_))) => (DropReason::DeviceFull, rest),
        (Verdict::Full, _) => (DropReason::DeviceFull, Some(verdict)),
        (Verdict::Lost(_), rest @ Some(Verdict::Lost(Egress::Gone(_)))) => {
            (DropReason::DeviceGone, rest)
        }
        (Verdict::Lost(_), _) => (DropReason::DeviceGone, Some(verdict)),
    };
    sending.dropped(reason);
    rest
}

fn vector(area: &mut [u8]) -> libc::iovec {
    libc::iovec {
        iov_base: area.as_mut_ptr().cast(),
        iov_len: area.len(),
    }
}

#[cfg(test)]
mod tests;
