//! Bursts as the kernel wants them: `recvmmsg` and `sendmmsg`.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nos_shim::drop::DropReason;
use nos_shim::frame::{BATCH, Burst, ETHERNET_HEADER, Frame, FramePool, MAX_FRAME, VNET_HEADER};
use nos_shim::offload::{Dropped, cut_long};
use nos_shim::vlan::{TPID_CUSTOMER, VlanId, is_priority_tag};

use super::super::coalesce::{Run, run_length};
use super::super::vnet;
use super::overflow::{LONG_MESSAGES, Overflow};
use super::socket::PACKET_AUXDATA;

const TP_STATUS_VLAN_VALID: u32 = 1 << 4;
const TP_STATUS_VLAN_TPID_VALID: u32 = 1 << 6;

/// `struct tpacket_auxdata`
#[repr(C)]
#[derive(Clone, Copy)]
struct Auxiliary {
    status: u32,
    len: u32,
    captured: u32,
    mac: u16,
    net: u16,
    vlan_tci: u16,
    vlan_tpid: u16,
}

impl Auxiliary {
    /// Whether the tag is a customer's of this VLAN. Before Linux 3.14 there are no others.
    fn is_of(&self, vlan: VlanId) -> bool {
        let customers =
            self.status & TP_STATUS_VLAN_TPID_VALID == 0 || self.vlan_tpid == TPID_CUSTOMER;
        customers && vlan.is_in(self.vlan_tci)
    }
}

/// Room for the one control message that comes with a frame.
#[repr(C)]
#[derive(Clone, Copy)]
struct Control {
    header: libc::cmsghdr,
    auxiliary: Auxiliary,
}

const _: () = {
    // SAFETY: arithmetic only.
    let (start, space) = unsafe { (libc::CMSG_LEN(0), libc::CMSG_SPACE(20)) };
    assert!(core::mem::offset_of!(Control, auxiliary) == start as usize);
    assert!(size_of::<Control>() == space as usize && size_of::<Auxiliary>() == 20);
};

/// What `recvmmsg` and `sendmmsg` are told, laid out once for the largest burst.
pub(super) struct Messages {
    /// The VLAN whose frames are received; `None` for those without a tag.
    vlan: Option<VlanId>,
    headers: [libc::mmsghdr; BATCH],
    areas: [libc::iovec; BATCH],
    control: [Control; BATCH],
    /// Of each message that is sent: how many frames it carries, and how its first frame was
    /// before, if they are a run.
    cargo: [(u8, Option<Run>); BATCH],
    /// Whether a run was sent.
    run_sent: bool,
    overflow: Overflow,
}

// SAFETY: the pointers inside are written before each system call and mean nothing after it.
unsafe impl Send for Messages {}

impl std::fmt::Debug for Messages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Messages").finish_non_exhaustive()
    }
}

impl Messages {
    pub(super) fn new(vlan: Option<VlanId>) -> Box<Self> {
        // SAFETY: numbers and raw pointers only, for which zero octets are a value.
        let (headers, areas, control) = unsafe { core::mem::zeroed() };
        Box::new(Self {
            vlan,
            headers,
            areas,
            control,
            cargo: [(0, None); BATCH],
            run_sent: false,
            overflow: Overflow::default(),
        })
    }

    /// Makes message `n` of the `count` areas from number `first` on.
    fn place(&mut self, n: usize, first: usize, count: usize, with_control: bool) {
        let message = &mut self.headers[n].msg_hdr;
        message.msg_iov = &raw mut self.areas[first];
        message.msg_iovlen = count as _;
        message.msg_flags = 0;
        if with_control {
            message.msg_control = (&raw mut self.control[n]).cast();
            message.msg_controllen = size_of::<Control>();
        } else {
            message.msg_control = core::ptr::null_mut();
            message.msg_controllen = 0;
        }
    }

    /// Messages that may be received at once.
    #[inline]
    pub(super) fn at_once(&self) -> usize {
        if self.overflow.offered() {
            LONG_MESSAGES
        } else {
            BATCH
        }
    }

    /// Receives into the frames from the first on, which are not more than [`Self::at_once`];
    /// returns how many are filled.
    pub(super) fn receive(&mut self, fd: &OwnedFd, frames: &mut Burst) -> Result<usize, Errno> {
        if self.overflow.offered() && self.overflow.keep() {
            return self.receive_long(fd, frames);
        }
        for (n, frame) in frames.iter_mut().enumerate() {
            self.areas[n] = vector(frame.receive_area(VNET_HEADER).unwrap_or_default());
            self.place(n, n, 1, true);
        }
        self.receive_placed(fd, frames)
    }

    /// The same with room for what does not fit a frame.
    #[cold]
    fn receive_long(&mut self, fd: &OwnedFd, frames: &mut Burst) -> Result<usize, Errno> {
        for (n, frame) in frames.iter_mut().take(LONG_MESSAGES).enumerate() {
            let area = frame.receive_area(VNET_HEADER).unwrap_or_default();
            let end = area.len().min(VNET_HEADER + MAX_FRAME);
            self.areas[2 * n] = vector(&mut area[..end]);
            self.areas[2 * n + 1] = vector(self.overflow.area(n));
            self.place(n, 2 * n, 2, true);
        }
        let came = self.receive_placed(fd, frames)?;
        self.overflow.count(came);
        Ok(came)
    }

    fn receive_placed(&mut self, fd: &OwnedFd, frames: &mut Burst) -> Result<usize, Errno> {
        retry(|| {
            // SAFETY: the first frames.len() headers have just been pointed to buffers that these
            // frames own, and to vectors, overflow and control room of `self`; all outlive the call.
            unsafe {
                libc::recvmmsg(
                    fd.as_raw_fd(),
                    self.headers.as_mut_ptr(),
                    count(frames.len()),
                    libc::MSG_DONTWAIT as _,
                    core::ptr::null_mut(),
                )
            }
        })
    }

    /// Makes `frame`, into which message `n` was received, what the message says. One that is too
    /// long for it ([`DropReason::FrameLength`]) is left for [`Self::cut`].
    pub(super) fn accept(&self, n: usize, frame: &mut Frame) -> Result<(), DropReason> {
        let libc::mmsghdr { msg_hdr, .. } = self.headers[n];
        let octets = self.octets(n);
        let Control { header, auxiliary } = self.control[n];
        let told = msg_hdr.msg_controllen >= size_of::<Control>()
            && (header.cmsg_level, header.cmsg_type) == (libc::SOL_PACKET, PACKET_AUXDATA);
        let tagged = told && auxiliary.status & TP_STATUS_VLAN_VALID != 0;
        let ours = match self.vlan {
            None => !tagged || is_priority_tag(auxiliary.vlan_tci),
            Some(vlan) => tagged && auxiliary.is_of(vlan),
        };
        if !ours {
            return Err(DropReason::Vlan);
        }
        let length = ETHERNET_HEADER..=MAX_FRAME;
        if msg_hdr.msg_flags & libc::MSG_TRUNC != 0 || !length.contains(&octets) {
            return Err(DropReason::FrameLength);
        }
        frame.set_len(octets).map_err(|_| DropReason::FrameLength)?;
        vnet::take_header(frame, VNET_HEADER)
    }

    /// Octets of the frame that was received into message `n`.
    #[inline]
    fn octets(&self, n: usize) -> usize {
        (self.headers[n].msg_len as usize).saturating_sub(VNET_HEADER)
    }

    /// Appends to `out` the pieces of what was received into message `n`, whose start is in `frame`.
    ///
    /// # Errors
    ///
    /// Why the whole is dropped.
    #[cold]
    pub(super) fn cut(
        &mut self,
        n: usize,
        mut frame: Frame,
        pool: &mut FramePool,
        out: &mut VecDeque<Frame>,
    ) -> Result<Option<Dropped>, DropReason> {
        let start = frame.room().min(MAX_FRAME);
        let rest = self.octets(n).saturating_sub(start);
        let offered = self.overflow.area(n).get(..rest);
        let long = rest > 0 && self.headers[n].msg_hdr.msg_flags & libc::MSG_TRUNC == 0;
        let result = match offered {
            Some(rest) if long => prepare(&mut frame, start).map(|()| rest),
            _ => Err(DropReason::FrameLength),
        };
        match result {
            Ok(rest) => {
                let dropped = cut_long(frame, rest, pool, out)?;
                self.overflow.was_needed();
                Ok(dropped)
            }
            Err(reason) => {
                pool.free(frame);
                Err(reason)
            }
        }
    }

    /// Offers room for long frames before the first has come, for as long as that is patient.
    pub(super) fn expect_long(&mut self) {
        self.overflow.begin();
    }

    /// Whether message `n` has the first frame that is longer than any before. If it was lost for want
    /// of room, from now on there is some.
    #[cold]
    pub(super) fn is_first_long(&mut self, n: usize) -> bool {
        let cut_off = self.headers[n].msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
        if cut_off && !self.overflow.offered() {
            self.overflow.begin();
        }
        let long = cut_off || self.octets(n) > MAX_FRAME;
        long && self.overflow.see()
    }

    /// Sends the frames from the first on, runs of datagrams as one where `coalesce` says so.
    /// Returns how many frames were sent.
    ///
    /// # Errors
    ///
    /// What the kernel says of the first message; then none was sent, and the frames are as they
    /// were.
    pub(super) fn send(
        &mut self,
        socket: &impl Sendmmsg,
        frames: &mut [Frame],
        coalesce: bool,
    ) -> Result<usize, Refused> {
        let messages = self.load(frames, coalesce);
        if messages == 0 {
            return Err(Refused {
                // Not the kernel's answer: no room for the header.
                errno: Errno::EPROTO,
                run: false,
            });
        }
        let result = retry(|| {
            let headers = self.headers.get_mut(..messages).unwrap_or_default();
            // SAFETY: these headers have just been pointed to vectors of `self`, and those to
            // buffers that the frames own; all outlive the call.
            unsafe { socket.send_messages(headers) }
        });
        let taken = self.unload(frames, result.unwrap_or(0), messages);
        let run = self.cargo[0].1.is_some();
        result
            .map(|_| taken)
            .map_err(|errno| Refused { errno, run })
    }

    /// Makes messages of the frames; returns how many.
    fn load(&mut self, frames: &mut [Frame], coalesce: bool) -> usize {
        let (mut at, mut messages) = (0, 0);
        while let Some(waiting) = frames.get_mut(at..).filter(|left| !left.is_empty()) {
            let length = if coalesce { run_length(waiting) } else { 1 };
            let (these, _) = waiting.split_at_mut(length);
            let run = (length > 1).then(|| Run::begin(these)).flatten();
            let headers = run.map(|run| run.headers());
            let taken = if run.is_some() { length } else { 1 };
            let Some((first, more)) = these.split_first_mut() else {
                break;
            };
            let Ok(area) = vnet::put_header(first, VNET_HEADER) else {
                break;
            };
            self.areas[at] = vector(area);
            for (place, frame) in (at + 1..at + taken).zip(more) {
                let payload = frame.bytes_mut().get_mut(headers.unwrap_or_default()..);
                self.areas[place] = vector(payload.unwrap_or_default());
            }
            self.place(messages, at, taken, false);
            // A burst is at most 64 frames.
            self.cargo[messages] = (u8::try_from(taken).unwrap_or(1), run);
            messages += 1;
            at += taken;
        }
        messages
    }

    /// Whether a run of datagrams was ever sent as one.
    pub(super) fn has_sent_run(&self) -> bool {
        self.run_sent
    }

    /// Makes the frames of messages that were not sent what they were. Returns how many were sent.
    fn unload(&mut self, frames: &mut [Frame], sent: usize, messages: usize) -> usize {
        let mut taken = 0;
        let mut at = 0;
        for (n, &(count, run)) in self.cargo[..messages].iter().enumerate() {
            if n < sent {
                taken += usize::from(count);
                self.run_sent |= run.is_some();
            } else if let (Some(run), Some(first)) = (run, frames.get_mut(at)) {
                run.undo(first);
            }
            at += usize::from(count);
        }
        taken
    }
}

/// What messages are sent by: the kernel, or one in its place that refuses what a test says.
pub(super) trait Sendmmsg {
    /// Sends messages from the first on, until one is refused. Returns how many were sent; if none
    /// was, -1 with the reason in `errno`.
    ///
    /// # Safety
    ///
    /// What the headers point to can be read.
    unsafe fn send_messages(&self, headers: &mut [libc::mmsghdr]) -> libc::c_int;
}

impl Sendmmsg for OwnedFd {
    #[inline]
    unsafe fn send_messages(&self, headers: &mut [libc::mmsghdr]) -> libc::c_int {
        // SAFETY: by the caller's word.
        unsafe {
            libc::sendmmsg(
                self.as_raw_fd(),
                headers.as_mut_ptr(),
                count(headers.len()),
                libc::MSG_DONTWAIT as _,
            )
        }
    }
}

/// What the kernel did not take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Refused {
    pub(super) errno: Errno,
    /// Whether it was a run.
    pub(super) run: bool,
}

/// Makes `frame`, which is filled by the start of a longer one, `octets` long.
fn prepare(frame: &mut Frame, octets: usize) -> Result<(), DropReason> {
    frame.set_len(octets).map_err(|_| DropReason::FrameLength)?;
    vnet::take_header(frame, VNET_HEADER)
}

fn vector(area: &mut [u8]) -> libc::iovec {
    libc::iovec {
        iov_base: area.as_mut_ptr().cast(),
        iov_len: area.len(),
    }
}

/// Repeats a system call that a signal interrupted.
fn retry(mut call: impl FnMut() -> libc::c_int) -> Result<usize, Errno> {
    loop {
        match Errno::result(call()) {
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
            Ok(count) => return usize::try_from(count).map_err(|_| Errno::EINVAL),
        }
    }
}

fn count(messages: usize) -> libc::c_uint {
    libc::c_uint::try_from(messages).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A signal is no answer; whatever comes behind it is.
    #[test]
    fn an_interrupted_call_is_made_again_and_no_other() {
        for errno in (1..=133).map(Errno::from_raw) {
            let mut calls = 0;
            let result = retry(|| {
                calls += 1;
                match (calls, errno) {
                    (1..=3, _) => Errno::EINTR.set(),
                    // Not for ever: it would not end.
                    (_, Errno::EINTR) => return 7,
                    _ => errno.set(),
                }
                -1
            });
            assert_eq!(calls, 4);
            let expected = if errno == Errno::EINTR {
                Ok(7)
            } else {
                Err(errno)
            };
            // Numbers that mean nothing are all alike.
            assert!(result == expected || errno == Errno::UnknownErrno);
        }
    }
}
