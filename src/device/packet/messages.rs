//! Bursts as the kernel wants them: `recvmmsg` and `sendmmsg`.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nos_shim::drop::DropReason;
use nos_shim::frame::{BATCH, Burst, ETHERNET_HEADER, Frame, VNET_HEADER};

use super::super::vnet;
use super::socket::PACKET_AUXDATA;

const TP_STATUS_VLAN_VALID: u32 = 1 << 4;

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
    headers: [libc::mmsghdr; BATCH],
    areas: [libc::iovec; BATCH],
    control: [Control; BATCH],
}

// SAFETY: the pointers inside are written before each system call and mean nothing after it.
unsafe impl Send for Messages {}

impl std::fmt::Debug for Messages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Messages").finish_non_exhaustive()
    }
}

impl Messages {
    pub(super) fn new() -> Box<Self> {
        // SAFETY: numbers and raw pointers only, for which zero octets are a value.
        Box::new(unsafe { core::mem::zeroed() })
    }

    /// Makes message `n` of `area`.
    fn place(&mut self, n: usize, area: &mut [u8], with_control: bool) {
        let vector = &mut self.areas[n];
        *vector = libc::iovec {
            iov_base: area.as_mut_ptr().cast(),
            iov_len: area.len(),
        };
        let message = &mut self.headers[n].msg_hdr;
        message.msg_iov = vector;
        message.msg_iovlen = 1;
        message.msg_flags = 0;
        if with_control {
            message.msg_control = (&raw mut self.control[n]).cast();
            message.msg_controllen = size_of::<Control>();
        } else {
            message.msg_control = core::ptr::null_mut();
            message.msg_controllen = 0;
        }
    }

    /// Receives into the frames from the first on; returns how many are filled.
    pub(super) fn receive(&mut self, fd: &OwnedFd, frames: &mut Burst) -> Result<usize, Errno> {
        for (n, frame) in frames.iter_mut().enumerate() {
            let area = frame.receive_area(VNET_HEADER).unwrap_or_default();
            self.place(n, area, true);
        }
        retry(|| {
            // SAFETY: the first frames.len() headers have just been pointed to buffers that these
            // frames own, and to vectors and control room of `self`; all outlive the call.
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

    /// Makes `frame`, into which message `n` was received, what the message says.
    pub(super) fn accept(&self, n: usize, frame: &mut Frame) -> Result<(), DropReason> {
        let libc::mmsghdr { msg_hdr, msg_len } = self.headers[n];
        let octets = (msg_len as usize).saturating_sub(VNET_HEADER);
        if msg_hdr.msg_flags & libc::MSG_TRUNC != 0 || octets < ETHERNET_HEADER {
            return Err(DropReason::FrameLength);
        }
        let Control { header, auxiliary } = self.control[n];
        let told = msg_hdr.msg_controllen >= size_of::<Control>()
            && (header.cmsg_level, header.cmsg_type) == (libc::SOL_PACKET, PACKET_AUXDATA);
        if told && auxiliary.status & TP_STATUS_VLAN_VALID != 0 {
            return Err(DropReason::EtherType);
        }
        frame.set_len(octets).map_err(|_| DropReason::FrameLength)?;
        vnet::take_header(frame)
    }

    /// Sends the frames from the first on; returns how many the kernel took. An error is the first
    /// frame's.
    pub(super) fn send(&mut self, fd: &OwnedFd, frames: &mut [Frame]) -> Result<usize, Errno> {
        let mut ready = 0;
        for (n, frame) in frames.iter_mut().enumerate() {
            let Ok(area) = vnet::put_header(frame) else {
                break;
            };
            self.place(n, area, false);
            ready = n + 1;
        }
        if ready == 0 {
            return Err(Errno::EMSGSIZE);
        }
        retry(|| {
            // SAFETY: the first `ready` headers have just been pointed to buffers that these frames
            // own, and to vectors of `self`; all outlive the call.
            unsafe {
                libc::sendmmsg(
                    fd.as_raw_fd(),
                    self.headers.as_mut_ptr(),
                    count(ready),
                    libc::MSG_DONTWAIT as _,
                )
            }
        })
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
