//! TAP with virtio-net headers: super-frames and partial checksums pass both ways.

use std::ffi::CStr;
use std::fs::OpenOptions;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use arrayvec::ArrayVec;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::uio::writev;
use nix::unistd::{read, write};
use nos_shim::frame::{BATCH, Burst, Frame, FramePool, VNET_HEADER, VNET_TUNNEL_HEADER};
use nos_shim::offload::Capabilities;

use super::character::{self, ReadFailure};
use super::coalesce::{Run, run_length};
use super::uring::{Batch, How};
use super::vnet::{self, Offloads};
use super::{
    DeviceCounters, DeviceKind, FrameDevice, Inspector, LinkState, OpenError, Received, Sending,
    Sent, valid_name,
};

const FLAGS: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// A TAP interface with virtio-net headers.
///
/// The interface is in the namespace in which it was opened, and vanishes when this value is
/// dropped (unless it was made persistent by somebody else). The descriptor works in any
/// namespace. One that [`FrameDevice::set_persistent`] has made persistent outlives a process that
/// is killed.
///
/// `TUNSETSNDBUF` is never used: with the default the kernel takes small frames on a fast path, and
/// a write never has to wait.
#[derive(Debug)]
pub struct Tap {
    fd: Arc<OwnedFd>,
    name: String,
    /// Octets of the virtio-net header.
    header: usize,
    offloads: Offloads,
    counters: DeviceCounters,
    /// Made persistent by us.
    persistent: bool,
}

#[allow(unreachable_pub, reason = "the macros make public functions")]
mod ioctl {
    use nix::{ioctl_read_bad, ioctl_write_int_bad, ioctl_write_ptr_bad};

    ioctl_write_ptr_bad!(set_interface, libc::TUNSETIFF, libc::ifreq);
    ioctl_read_bad!(interface, libc::TUNGETIFF, libc::ifreq);
    ioctl_read_bad!(features, libc::TUNGETFEATURES, libc::c_uint);
    ioctl_write_ptr_bad!(set_header_size, libc::TUNSETVNETHDRSZ, libc::c_int);
    ioctl_read_bad!(header_size, libc::TUNGETVNETHDRSZ, libc::c_int);
    ioctl_write_int_bad!(set_offload, libc::TUNSETOFFLOAD);
    ioctl_write_int_bad!(set_persistent, libc::TUNSETPERSIST);
}

impl Tap {
    /// Creates the TAP `name` in the namespace of the calling thread, or takes over a persistent
    /// one that nobody has open. `wanted` limits which offloads are asked for.
    ///
    /// # Errors
    ///
    /// [`OpenError::NoVnetHeader`] if only a [`super::PlainTap`] is possible; otherwise the name is
    /// impossible or taken, `/dev/net/tun` cannot be opened, or the kernel refuses for want of
    /// rights.
    pub fn open(name: &str, wanted: Capabilities) -> Result<Self, OpenError> {
        let name = valid_name(name)?;
        let fd = open_tun().map_err(refused(name, "open /dev/net/tun"))?;
        let known = features(&fd).map_err(refused(name, "ask for TAP features"))?;
        if known & FLAGS != FLAGS {
            return Err(OpenError::NoVnetHeader(name.to_owned()));
        }
        set_interface(&fd, name).map_err(refused(name, "create it"))?;
        Self::prepare(fd, wanted)
    }

    /// Adopts a descriptor that is attached to a TAP already, as one received from another process.
    ///
    /// # Errors
    ///
    /// It is no TAP, or one without virtio-net headers or with packet information.
    pub fn from_fd(fd: OwnedFd, wanted: Capabilities) -> Result<Self, OpenError> {
        Self::prepare(fd, wanted)
    }

    /// Goes on with a descriptor that another process has opened and may still use: nothing of it is
    /// changed.
    pub(super) fn received(fd: OwnedFd, capabilities: Capabilities) -> Result<Self, OpenError> {
        let name = name_of(&fd)?;
        let header = received_header(&fd).map_err(refused(&name, "ask for its header"))?;
        Ok(Self::of(fd, name, header, capabilities))
    }

    /// Writes one frame, whose offload state the capabilities cover.
    pub(super) fn write_frame(&self, frame: &mut Frame) -> Result<(), Errno> {
        let area = vnet::put_header(frame, self.header).map_err(|_| Errno::EPROTO)?;
        character::write_frame(area, |area| write(&*self.fd, area))
    }

    fn prepare(fd: OwnedFd, wanted: Capabilities) -> Result<Self, OpenError> {
        let name = name_of(&fd)?;
        set_nonblocking(&fd).map_err(refused(&name, "make it non-blocking"))?;
        let (header, capabilities) = negotiate(&fd, wanted - Capabilities::IP_TUNNEL)
            .map_err(refused(&name, "turn offloads on"))?;
        Ok(Self::of(fd, name, header, capabilities))
    }

    fn of(fd: OwnedFd, name: String, header: usize, capabilities: Capabilities) -> Self {
        Self {
            fd: Arc::new(fd),
            name,
            header,
            offloads: Offloads::new(capabilities),
            counters: DeviceCounters::default(),
            persistent: false,
        }
    }
}

/// The name of a TAP with virtio-net headers and without packet information.
fn name_of(fd: &OwnedFd) -> Result<String, OpenError> {
    let (name, flags) = interface(fd).map_err(refused("fd", "ask which TAP it is"))?;
    match flags & FLAGS == FLAGS {
        true => Ok(name),
        false => Err(OpenError::NoVnetHeader(name)),
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        if self.persistent {
            end_persistence(&self.fd, &self.name);
        }
    }
}

impl FrameDevice for Tap {
    fn recv_burst(&mut self, pool: &mut FramePool, burst: &mut Burst, limit: usize) -> Received {
        let (fd, header) = (&*self.fd, self.header);
        let traffic = &mut self.counters.received;
        character::recv_burst(pool, burst, limit, traffic, |frame| {
            character::read_frame(frame, header, |area| read(fd, area))?;
            vnet::take_header(frame, header).map_err(ReadFailure::Dropped)
        })
    }

    fn send(
        &mut self,
        burst: &mut Burst,
        pool: &mut FramePool,
        batch: Option<&mut Batch<'_>>,
    ) -> Sent {
        let mut sending = Sending::new(burst, pool, &mut self.counters.sent);
        let writer = Writer {
            file: &*self.fd,
            header: self.header,
            name: &self.name,
        };
        writer.send(&mut sending, &mut self.offloads, batch);
        let sent = sending.finish();
        self.counters.refused = self.offloads.refusals();
        sent
    }

    fn capabilities(&self) -> Capabilities {
        self.offloads.capabilities()
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd.as_fd())
    }

    fn inspector(&self) -> Inspector {
        Inspector::of_tap(&self.fd)
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> DeviceKind {
        DeviceKind::Tap
    }

    fn counters(&self) -> &DeviceCounters {
        &self.counters
    }

    fn set_coalescing(&mut self, on: bool) {
        self.offloads.set_coalescing(on);
    }

    fn set_persistent(&mut self, on: bool) -> Result<(), Errno> {
        set_persistent(&self.fd, on)?;
        self.persistent = on;
        Ok(())
    }

    fn leave(&mut self) {
        self.persistent = false;
    }
}

/// What frames are written to: the kernel, or one in its place that refuses what a test says.
trait File {
    fn write(&self, area: &[u8]) -> Result<usize, Errno>;

    fn write_vector(&self, pieces: &[IoSlice<'_>]) -> Result<usize, Errno>;
}

impl File for OwnedFd {
    #[inline]
    fn write(&self, area: &[u8]) -> Result<usize, Errno> {
        write(self, area)
    }

    #[inline]
    fn write_vector(&self, pieces: &[IoSlice<'_>]) -> Result<usize, Errno> {
        writev(self, pieces)
    }
}

/// A TAP on its sending side.
#[derive(Debug)]
struct Writer<'a, F> {
    file: &'a F,
    /// Octets of the virtio-net header.
    header: usize,
    name: &'a str,
}

impl<F: File> Writer<'_, F> {
    /// Writes what waits, by a batch where one can be made of it.
    #[inline]
    fn send(
        &self,
        sending: &mut Sending<'_>,
        offloads: &mut Offloads,
        mut batch: Option<&mut Batch<'_>>,
    ) {
        let header = self.header;
        while !sending.waiting().is_empty() {
            if let Some(batch) = &mut batch
                && batch.send(How::Write, vnet::area(header), offloads, sending) > 0
            {
                continue;
            }
            if offloads.coalesces() && self.send_run(offloads, sending) {
                continue;
            }
            let Some(frame) = sending.front() else { break };
            let offload = frame.offload();
            let result = match vnet::put_header(frame, header) {
                Ok(area) => character::write_frame(area, |area| self.file.write(area)),
                // Not the kernel's answer: no room for the header.
                Err(_) => Err(Errno::EPROTO),
            };
            match result {
                Ok(()) => {
                    offloads.taken(offload);
                    sending.taken();
                }
                Err(errno @ (Errno::EINVAL | Errno::EMSGSIZE)) => {
                    if let Some(kind) = offloads.refused(offload) {
                        vnet::log_fallback(DeviceKind::Tap, self.name, kind);
                        sending.adapt();
                        break;
                    }
                    character::handle_refusal(sending, errno);
                }
                Err(errno) => character::handle_refusal(sending, errno),
            }
        }
    }

    /// Writes the run of datagrams at the front as one super-frame; returns whether there was one
    /// and it is done with.
    fn send_run(&self, offloads: &mut Offloads, sending: &mut Sending<'_>) -> bool {
        let waiting = sending.waiting();
        let length = run_length(waiting);
        let (frames, _) = waiting.split_at_mut(length);
        if length < 2 {
            return false;
        }
        let Some(run) = Run::begin(frames) else {
            return false;
        };
        let result = self.write_run(frames, run.headers());
        if let Some(first) = frames.first_mut() {
            if result.is_ok() {
                offloads.taken(first.offload());
            }
            run.undo(first);
        }
        match result {
            Ok(()) => {
                (0..length).for_each(|_| sending.taken());
                true
            }
            Err(Errno::EINVAL | Errno::EMSGSIZE) => {
                offloads.refused_run(DeviceKind::Tap, self.name);
                false
            }
            // One by one, each gets its own answer.
            Err(_) => false,
        }
    }

    fn write_run(&self, frames: &mut [Frame], headers: usize) -> Result<(), Errno> {
        let Some((first, rest)) = frames.split_first_mut() else {
            return Ok(());
        };
        let area = vnet::put_header(first, self.header).map_err(|_| Errno::EPROTO)?;
        let payloads = rest
            .iter()
            .map(|frame| frame.bytes().get(headers..).unwrap_or_default());
        let pieces: ArrayVec<IoSlice<'_>, BATCH> = std::iter::once(&*area)
            .chain(payloads)
            .map(IoSlice::new)
            .collect();
        loop {
            match self.file.write_vector(&pieces) {
                Err(Errno::EINTR) => {}
                result => return result.map(drop),
            }
        }
    }
}

/// Says whether a TAP's interface outlives its last descriptor.
pub(super) fn set_persistent(fd: impl AsFd, on: bool) -> Result<(), Errno> {
    // SAFETY: TUNSETPERSIST takes its argument by value.
    unsafe { ioctl::set_persistent(fd.as_fd().as_raw_fd(), on.into()) }.map(drop)
}

/// Has the interface go with the descriptor, which is about to be closed.
pub(super) fn end_persistence(fd: impl AsFd, name: &str) {
    match set_persistent(fd, false) {
        // It was deleted.
        Ok(()) | Err(Errno::EBADFD) => {}
        Err(errno) => tracing::warn!("TAP {name} stays: {}", errno.desc()),
    }
}

/// Whether the descriptor of a TAP still has its interface.
pub(super) fn link(fd: impl AsFd) -> LinkState {
    match interface(fd) {
        Ok(_) => LinkState::Up,
        Err(_) => LinkState::Gone,
    }
}

fn refused<E: IntoErrno>(name: &str, action: &'static str) -> impl FnOnce(E) -> OpenError {
    move |error| OpenError::Refused {
        kind: DeviceKind::Tap,
        name: name.to_owned(),
        action,
        source: error.into_errno(),
    }
}

/// The kernel's number of an error, however it was reported.
pub(super) trait IntoErrno {
    fn into_errno(self) -> Errno;
}

impl IntoErrno for Errno {
    fn into_errno(self) -> Errno {
        self
    }
}

impl IntoErrno for io::Error {
    fn into_errno(self) -> Errno {
        Errno::from_raw(self.raw_os_error().unwrap_or(libc::EIO))
    }
}

fn open_tun() -> io::Result<OwnedFd> {
    // The standard library sets O_CLOEXEC.
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK);
    Ok(options.open("/dev/net/tun")?.into())
}

/// Flags that the kernel accepts in `TUNSETIFF`.
fn features(fd: &OwnedFd) -> Result<libc::c_int, Errno> {
    let mut features = 0;
    // SAFETY: TUNGETFEATURES writes one unsigned int to the address.
    unsafe { ioctl::features(fd.as_raw_fd(), &raw mut features) }?;
    Ok(features.cast_signed())
}

/// A request about the interface `name`; the empty name leaves it open.
fn request(name: &str, flags: libc::c_int) -> Result<libc::ifreq, Errno> {
    // SAFETY: ifreq is made of numbers, for which zero octets are a value.
    let mut request: libc::ifreq = unsafe { core::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        // c_char is signed on some machines, unsigned on others.
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_flags = flags.try_into().map_err(|_| Errno::EINVAL)?;
    Ok(request)
}

fn set_interface(fd: &OwnedFd, name: &str) -> Result<(), Errno> {
    let request = request(name, FLAGS)?;
    // SAFETY: TUNSETIFF reads one ifreq from the address.
    unsafe { ioctl::set_interface(fd.as_raw_fd(), &raw const request) }.map(drop)
}

/// Name and flags of the interface that the descriptor is attached to.
pub(super) fn interface(fd: impl AsFd) -> Result<(String, libc::c_int), Errno> {
    let mut request = request("", 0)?;
    // SAFETY: TUNGETIFF writes one ifreq to the address.
    unsafe { ioctl::interface(fd.as_fd().as_raw_fd(), &raw mut request) }?;
    let octets = request.ifr_name.map(|octet| octet.to_ne_bytes()[0]);
    let name = CStr::from_bytes_until_nul(&octets).map_err(|_| Errno::EINVAL)?;
    // SAFETY: TUNGETIFF has set the flags, and all members of the union are numbers.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    Ok((
        name.to_string_lossy().into_owned(),
        libc::c_int::from(flags),
    ))
}

pub(super) fn set_nonblocking(fd: impl AsFd) -> Result<(), Errno> {
    let flags = OFlag::from_bits_retain(fcntl(fd.as_fd(), FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map(drop)
}

fn set_header_size(fd: &OwnedFd, octets: usize) -> Result<(), Errno> {
    let octets = libc::c_int::try_from(octets).map_err(|_| Errno::EINVAL)?;
    // SAFETY: TUNSETVNETHDRSZ reads one int from the address.
    unsafe { ioctl::set_header_size(fd.as_raw_fd(), &raw const octets) }.map(drop)
}

/// Octets of the header that a TAP has; only those that we set are known.
fn received_header(fd: &OwnedFd) -> Result<usize, Errno> {
    let mut octets = 0;
    // SAFETY: TUNGETVNETHDRSZ writes one int to the address.
    unsafe { ioctl::header_size(fd.as_raw_fd(), &raw mut octets) }?;
    let known = [VNET_HEADER, VNET_TUNNEL_HEADER].into_iter();
    let mut same = known.filter(|&known| libc::c_int::try_from(known) == Ok(octets));
    same.next().ok_or(Errno::EPROTO)
}

/// Octets of the header with these offloads in use. The longer one is for tunnels alone.
fn header_size(set: Capabilities) -> usize {
    if set.contains(Capabilities::TUNNEL | Capabilities::CHECKSUM) {
        VNET_TUNNEL_HEADER
    } else {
        VNET_HEADER
    }
}

/// The size of headers and the offloads that the kernel accepts, the most useful set first. Before
/// Linux 6.17 there are no tunnels, and before 6.2 no USO.
fn negotiate(fd: &OwnedFd, wanted: Capabilities) -> Result<(usize, Capabilities), Errno> {
    let without_tunnel = wanted - Capabilities::TUNNEL;
    let without_uso = without_tunnel - Capabilities::USO;
    let checksum = wanted & Capabilities::CHECKSUM;
    let mut last = Errno::EINVAL;
    for set in [
        wanted,
        without_tunnel,
        without_uso,
        checksum,
        Capabilities::empty(),
    ] {
        let header = header_size(set);
        set_header_size(fd, header)?;
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        match unsafe { ioctl::set_offload(fd.as_raw_fd(), offload_flags(set)) } {
            Ok(_) => return Ok((header, set)),
            Err(Errno::EINVAL) => last = Errno::EINVAL,
            Err(errno) => return Err(errno),
        }
    }
    Err(last)
}

/// `TUN_F_UDP_TUNNEL_GSO` and `TUN_F_UDP_TUNNEL_GSO_CSUM`, Linux 6.17.
const TUN_F_UDP_TUNNEL: libc::c_uint = 0x080 | 0x100;

/// What the kernel may hand us, in the language of `TUNSETOFFLOAD`.
fn offload_flags(set: Capabilities) -> libc::c_int {
    if !set.contains(Capabilities::CHECKSUM) {
        return 0;
    }
    let table = [
        (Capabilities::CHECKSUM, libc::TUN_F_CSUM),
        (Capabilities::TSO4, libc::TUN_F_TSO4),
        (Capabilities::TSO6, libc::TUN_F_TSO6),
        (Capabilities::TSO4, libc::TUN_F_TSO_ECN),
        (Capabilities::USO, libc::TUN_F_USO4 | libc::TUN_F_USO6),
        (Capabilities::TUNNEL, TUN_F_UDP_TUNNEL),
    ];
    let flags = table
        .iter()
        .filter(|&&(capability, _)| set.contains(capability));
    flags.fold(0, |all, &(_, flag)| all | flag.cast_signed())
}

#[cfg(test)]
mod tests {
    use super::super::refusing::{self, Answers};
    use super::*;

    #[test]
    fn offload_flags_are_those_of_if_tun() {
        let plain = Capabilities::all() - Capabilities::TUNNEL;
        assert_eq!(offload_flags(Capabilities::all()), 0x1ef);
        assert_eq!(offload_flags(plain), 0x6f);
        assert_eq!(offload_flags(plain - Capabilities::USO), 0x0f);
        assert_eq!(offload_flags(Capabilities::CHECKSUM), 1);
        assert_eq!(offload_flags(Capabilities::TSO4), 0);
    }

    impl File for Answers {
        fn write(&self, area: &[u8]) -> Result<usize, Errno> {
            self.answer(&[area])
        }

        fn write_vector(&self, pieces: &[IoSlice<'_>]) -> Result<usize, Errno> {
            let pieces: Vec<&[u8]> = pieces.iter().map(|piece| &**piece).collect();
            self.answer(&pieces)
        }
    }

    #[test]
    fn what_the_kernel_refuses_of_one_kind_arrives_otherwise_and_other_kinds_as_they_are() {
        for header in [VNET_HEADER, VNET_TUNNEL_HEADER] {
            let mut capabilities = Capabilities::all() - Capabilities::IP_TUNNEL;
            if header == VNET_HEADER {
                capabilities -= Capabilities::TUNNEL;
            }
            let make = || {
                |answers: &Answers, offloads: &mut Offloads, sending: &mut Sending<'_>| {
                    let writer = Writer {
                        file: answers,
                        header,
                        name: "t0",
                    };
                    writer.send(sending, offloads, None);
                }
            };
            let errors = [Errno::EINVAL, Errno::EMSGSIZE];
            refusing::each_kind(capabilities, header, &errors, make);
        }
    }

    #[test]
    fn a_file_is_no_tap() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let error = Tap::from_fd(file.into(), Capabilities::all()).unwrap_err();
        assert!(error.to_string().contains("ask which TAP it is"), "{error}");
    }
}
