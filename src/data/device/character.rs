//! What both kinds of TAP share: a character device that takes and gives one frame a call.

use nix::errno::Errno;
use nos_shim::drop::DropReason;
use nos_shim::frame::{Burst, ETHERNET_HEADER, Frame, FramePool};

use super::{BURST_OCTETS, Egress, Next, Received, Sending, Traffic};

/// A device that answers so many reads in a row with errors, all in one burst, is taken for gone: it
/// would keep the loop busy for nothing.
pub(super) const ERRORS_TOLERATED: u32 = 16;

/// Why a read yielded no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadFailure {
    /// There was a frame, and it is dropped.
    Dropped(DropReason),
    /// There was none.
    Errno(Errno),
}

/// Reads one frame into `frame`, whose first `header` octets go to the headroom in front of it.
///
/// A frame that fills the buffer cannot be told from one that was cut to fit, so it counts as too
/// long.
pub(super) fn read_frame(
    frame: &mut Frame,
    header: usize,
    mut read: impl FnMut(&mut [u8]) -> Result<usize, Errno>,
) -> Result<(), ReadFailure> {
    let wrong = ReadFailure::Dropped(DropReason::FrameLength);
    let area = frame.receive_area(header).map_err(|_| wrong)?;
    let room = area.len();
    let octets = loop {
        match read(area) {
            Err(Errno::EINTR) => {}
            result => break result.map_err(ReadFailure::Errno)?,
        }
    };
    if octets < header + ETHERNET_HEADER || octets >= room {
        return Err(wrong);
    }
    frame.set_len(octets - header).map_err(|_| wrong)
}

/// Fills `burst` by calls of `read`, as [`super::FrameDevice::recv_burst`] says.
pub(super) fn recv_burst(
    pool: &mut FramePool,
    burst: &mut Burst,
    limit: usize,
    traffic: &mut Traffic,
    mut read: impl FnMut(&mut Frame) -> Result<(), ReadFailure>,
) -> Received {
    let mut received = Received {
        frames: 0,
        octets: 0,
        next: Next::More,
    };
    let mut errors = 0;
    // Dropped frames count too, so that a flood of them does not hold the thread here.
    for _ in 0..limit.min(burst.remaining_capacity()) {
        if received.octets >= BURST_OCTETS {
            break;
        }
        let Some(mut frame) = pool.alloc() else {
            received.next = Next::NoBuffer;
            break;
        };
        let failure = match read(&mut frame) {
            Ok(()) => {
                traffic.count(frame.len());
                received.frames += 1;
                received.octets += frame.len();
                burst.push(frame);
                errors = 0;
                continue;
            }
            Err(failure) => failure,
        };
        pool.free(frame);
        match failure {
            ReadFailure::Dropped(reason) => {
                traffic.drops.add(reason, 1);
                errors = 0;
            }
            ReadFailure::Errno(Errno::EAGAIN) => {
                received.next = Next::Drained;
                break;
            }
            ReadFailure::Errno(errno) => {
                errors += 1;
                if is_gone(errno) || errors == ERRORS_TOLERATED {
                    received.next = Next::Gone(errno);
                    break;
                }
            }
        }
    }
    received
}

/// Whether a read that fails like this will never succeed again: the interface was deleted.
fn is_gone(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::EBADFD | Errno::EBADF | Errno::EIO | Errno::ENODEV | Errno::ENXIO
    )
}

/// Writes a frame until it is taken or refused.
pub(super) fn write_frame(
    area: &[u8],
    mut write: impl FnMut(&[u8]) -> Result<usize, Errno>,
) -> Result<(), Errno> {
    loop {
        match write(area) {
            Err(Errno::EINTR) => {}
            result => return result.map(drop),
        }
    }
}

/// What the kernel's refusal of a frame means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// This frame is dropped; the next has its own chance.
    Dropped(DropReason),
    /// There is no room, for the next either.
    Full,
    /// The interface is down or has gone, for the next too.
    Lost(Egress),
}

/// What it means that the kernel refuses a frame with this error.
pub(super) fn verdict(errno: Errno) -> Verdict {
    match errno {
        Errno::EAGAIN => Verdict::Full,
        // This frame found no room or no memory; a shorter one may.
        Errno::ENOBUFS | Errno::ENOMEM => Verdict::Dropped(DropReason::DeviceFull),
        // A TAP that exists but is not up answers EIO, other interfaces ENETDOWN.
        Errno::EIO | Errno::ENETDOWN => Verdict::Lost(Egress::Down),
        Errno::EBADFD | Errno::EBADF | Errno::ENODEV | Errno::ENXIO => {
            Verdict::Lost(Egress::Gone(errno))
        }
        _ => Verdict::Dropped(DropReason::DeviceError),
    }
}

/// Draws the consequences of the kernel's refusal of the front frame.
pub(super) fn handle_refusal(sending: &mut Sending<'_>, errno: Errno) {
    match verdict(errno) {
        Verdict::Dropped(reason) => sending.dropped(reason),
        Verdict::Full => sending.drop_rest(DropReason::DeviceFull),
        Verdict::Lost(egress) => sending.lost(egress),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(
        reads: &[Result<usize, Errno>],
        limit: usize,
        room: usize,
    ) -> (Received, Burst, Traffic) {
        let mut pool = FramePool::new(256, room);
        let (mut burst, mut traffic) = (Burst::new(), Traffic::default());
        let mut reads = reads.iter();
        let received = recv_burst(&mut pool, &mut burst, limit, &mut traffic, |frame| {
            read_frame(frame, 0, |_| {
                reads.next().copied().unwrap_or(Err(Errno::EAGAIN))
            })
        });
        (received, burst, traffic)
    }

    #[test]
    fn reads_until_drained() {
        let (received, burst, traffic) = script(&[Ok(60), Err(Errno::EINTR), Ok(70)], 64, 2000);
        assert_eq!(received.next, Next::Drained);
        assert_eq!(burst.iter().map(Frame::len).collect::<Vec<_>>(), [60, 70]);
        assert_eq!((traffic.frames, traffic.octets), (2, 130));
        assert_eq!((received.frames, received.octets), (2, 130));
    }

    #[test]
    fn a_burst_ends_at_the_limit_of_frames_or_octets() {
        let (received, burst, _) = script(&[Ok(60); 9], 4, 2000);
        assert_eq!((received.next, burst.len()), (Next::More, 4));
        let (received, burst, _) = script(&[Ok(40_000); 9], 64, 65_549);
        assert_eq!((received.next, burst.len()), (Next::More, 2));
    }

    #[test]
    fn a_bad_frame_does_not_lose_the_others() {
        let room = FramePool::new(1, 2000).room();
        let (received, burst, traffic) = script(&[Ok(60), Ok(13), Ok(room), Ok(61)], 64, 2000);
        assert_eq!(received.next, Next::Drained);
        assert_eq!(burst.iter().map(Frame::len).collect::<Vec<_>>(), [60, 61]);
        assert_eq!(traffic.drops.of(DropReason::FrameLength), 2);
    }

    #[test]
    fn errors_neither_spin_nor_hide_frames() {
        let (received, burst, _) = script(&[Err(Errno::ENOMEM), Ok(60)], 64, 2000);
        assert_eq!((received.next, burst.len()), (Next::Drained, 1));
        let (received, burst, _) = script(&[Ok(60), Err(Errno::EBADFD), Ok(60)], 64, 2000);
        assert_eq!(received.next, Next::Gone(Errno::EBADFD));
        assert_eq!(burst.len(), 1);
        let (received, ..) = script(&[Err(Errno::EPERM); 64], 64, 2000);
        assert_eq!(received.next, Next::Gone(Errno::EPERM));
        // Frames between the errors show that the device works.
        let (received, burst, _) = script(&[Err(Errno::EPERM), Ok(60)].repeat(32), 64, 2000);
        assert_eq!((received.next, burst.len()), (Next::More, 32));
    }

    /// A signal is no answer, to a read or to a write.
    #[test]
    fn an_interrupted_call_is_made_again() {
        let interrupted = Err(Errno::EINTR);
        let (received, burst, _) = script(&[interrupted, interrupted, Ok(60)], 64, 2000);
        assert_eq!((received.next, burst.len()), (Next::Drained, 1));
        for answer in [Ok(60), Err(Errno::EAGAIN), Err(Errno::EBADFD)] {
            let mut answers = [interrupted, interrupted, answer].into_iter();
            let written = write_frame(&[0; 60], |_| answers.next().unwrap());
            assert_eq!(written, answer.map(drop));
            assert_eq!(answers.next(), None);
        }
    }

    #[test]
    fn an_empty_pool_is_said() {
        let mut pool = FramePool::new(1, 2000);
        let held = pool.alloc();
        let (mut burst, mut traffic) = (Burst::new(), Traffic::default());
        let received = recv_burst(&mut pool, &mut burst, 64, &mut traffic, |_| Ok(()));
        assert_eq!(received.next, Next::NoBuffer);
        drop(held);
        let received = recv_burst(&mut pool, &mut burst, 1, &mut traffic, |_| Ok(()));
        assert_eq!((received.next, burst.len()), (Next::More, 1));
    }
}
