//! One io_uring instance: setting it up, and operations that are all complete when a call returns.

use std::io;
use std::os::fd::RawFd;

use io_uring::register::Restriction;
use io_uring::squeue::{Entry, Flags};
use io_uring::types::Fixed;
use io_uring::{IoUring, opcode};
use nix::errno::Errno;
use nos_shim::frame::BATCH;

use super::super::tap::IntoErrno;
use super::{Slot, Unavailable};

/// Takes a file out of its place.
pub(super) const NO_FILE: RawFd = -1;

// linux/io_uring.h, enum io_uring_register_op
const UNREGISTER_FILES: u8 = 3;
const REGISTER_FILES_UPDATE: u8 = 6;

/// Calls in a row that the kernel may answer with neither an error nor a completion, or with
/// `EAGAIN`, before the ring counts as broken: it would keep the thread for nothing.
const PATIENCE: u32 = 64;

/// What the kernel is to do with a frame or a run of frames. The pointers are to octets, vectors and
/// headers that the caller keeps.
#[derive(Clone, Copy, Debug)]
pub(super) enum Operation {
    Write {
        octets: *const u8,
        len: u32,
    },
    WriteVector {
        areas: *const libc::iovec,
        count: u32,
    },
    Send {
        octets: *const u8,
        len: u32,
    },
    SendMessage(*const libc::msghdr),
}

/// What became of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The kernel has not begun it, and will not.
    Untried,
    /// It was done.
    Taken,
    /// It was refused, and nothing was sent. `ECANCELED`: one before it in a chain was.
    Refused(Errno),
    /// The kernel may be at it still, and for ever. Only of a broken ring.
    Unknown,
}

/// A ring that cannot be used any more, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Broken(pub(super) Errno);

/// What carries operations out.
pub(super) trait Carrier {
    /// Has the kernel carry out all of `operations`, in their order, on the file in `slot`, and
    /// writes what became of each to the same place of `outcomes`. `chained`: none is tried behind
    /// one that was refused.
    ///
    /// # Errors
    ///
    /// [`Broken`]; then some outcomes may be [`Outcome::Untried`], and some [`Outcome::Unknown`].
    ///
    /// # Safety
    ///
    /// What the operations point to is valid until this returns, and longer for those that become
    /// [`Outcome::Unknown`]: for good.
    unsafe fn carry_out(
        &mut self,
        slot: Slot,
        operations: &[Operation],
        chained: bool,
        outcomes: &mut [Outcome; BATCH],
    ) -> Result<(), Broken>;
}

/// An instance.
pub(super) struct Ring {
    inner: IoUring,
    files: u32,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").finish_non_exhaustive()
    }
}

impl Ring {
    /// Sets up a disabled instance with room for so many operations and files.
    pub(super) fn open(entries: u32, files: u32) -> Result<Self, Unavailable> {
        let refused = |action| move |error: io::Error| Unavailable::new(action, error.into_errno());
        let inner = build(entries).map_err(refused("set it up"))?;
        let submitter = inner.submitter();
        let registered = submitter.register_files_sparse(files);
        registered.map_err(refused("register a table of files"))?;
        let restricted = submitter.register_restrictions(&mut restrictions());
        restricted.map_err(refused("restrict it to what is used"))?;
        Ok(Self { inner, files })
    }

    /// Files that it has room for.
    pub(super) fn files(&self) -> u32 {
        self.files
    }

    /// Enables it for the calling thread.
    pub(super) fn enable(&mut self) -> Result<(), Errno> {
        let enabled = self.inner.submitter().register_enable_rings();
        enabled.map_err(IntoErrno::into_errno)
    }

    /// Puts a file in a place, or [`NO_FILE`].
    pub(super) fn set_file(&mut self, place: u32, fd: RawFd) -> Result<(), Errno> {
        let updated = self.inner.submitter().register_files_update(place, &[fd]);
        updated.map(drop).map_err(IntoErrno::into_errno)
    }

    /// Gives all files up at once. For the thread that it was enabled for.
    pub(super) fn release_files(&mut self) {
        // Whoever did not enable it has put no file there either.
        let _ = self.inner.submitter().unregister_files();
    }

    /// Takes the completions that are there; returns how many.
    fn reap(&mut self, outcomes: &mut [Outcome]) -> usize {
        let mut seen = 0;
        for completion in self.inner.completion() {
            let place = usize::try_from(completion.user_data()).ok();
            if let Some(outcome) = place.and_then(|place| outcomes.get_mut(place)) {
                *outcome = match completion.result() {
                    0.. => Outcome::Taken,
                    error => Outcome::Refused(Errno::from_raw(-error)),
                };
                seen += 1;
            }
        }
        seen
    }
}

impl Carrier for Ring {
    unsafe fn carry_out(
        &mut self,
        slot: Slot,
        operations: &[Operation],
        chained: bool,
        outcomes: &mut [Outcome; BATCH],
    ) -> Result<(), Broken> {
        let mut queue = self.inner.submission();
        let mut count = 0;
        for (&operation, outcome) in operations.iter().zip(outcomes.iter_mut()) {
            let last = count + 1 == operations.len();
            let flags = match chained && !last {
                true => Flags::FIXED_FILE | Flags::IO_LINK,
                false => Flags::FIXED_FILE,
            };
            let entry = entry(operation, slot).flags(flags).user_data(count as u64);
            // SAFETY: the caller keeps what the operation points to for as long as the kernel may
            // look at it: until its completion was seen below, or for good.
            if unsafe { queue.push(&entry) }.is_err() {
                break;
            }
            *outcome = Outcome::Untried;
            count += 1;
        }
        drop(queue);
        self.complete(&mut outcomes[..count])
    }
}

impl Ring {
    /// Submits what is queued, and waits until there is an outcome of each.
    fn complete(&mut self, outcomes: &mut [Outcome]) -> Result<(), Broken> {
        let (mut submitted, mut seen, mut patience) = (0, 0, PATIENCE);
        loop {
            match self.inner.submit_and_wait(outcomes.len() - seen) {
                Ok(more) => submitted += more,
                // A signal: what was submitted completes all the same.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // No memory for a request just now.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && patience > 0 => {}
                Err(error) => return Err(broken(error.into_errno(), submitted, outcomes)),
            }
            let came = self.reap(outcomes);
            seen += came;
            if seen >= outcomes.len() {
                return Ok(());
            }
            patience = if came > 0 {
                PATIENCE
            } else {
                patience.saturating_sub(1)
            };
            if patience == 0 {
                return Err(broken(Errno::ETIME, submitted, outcomes));
            }
        }
    }
}

/// Says of which operations nobody knows: those that the kernel has taken from the queue, which it
/// does in their order, and that are not complete.
#[cold]
fn broken(errno: Errno, submitted: usize, outcomes: &mut [Outcome]) -> Broken {
    for outcome in outcomes.iter_mut().take(submitted) {
        if *outcome == Outcome::Untried {
            *outcome = Outcome::Unknown;
        }
    }
    Broken(errno)
}

/// Newer kernels save locks where one thread submits, and waits for what it has submitted.
fn build(entries: u32) -> io::Result<IoUring> {
    let mut newest = IoUring::builder();
    newest.setup_r_disabled().setup_submit_all();
    newest.setup_single_issuer().setup_defer_taskrun();
    match newest.build(entries) {
        // Before Linux 6.1.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            IoUring::builder().setup_r_disabled().build(entries)
        }
        built => built,
    }
}

/// All that it may do once it is enabled.
fn restrictions() -> [Restriction; 8] {
    let fixed = Flags::FIXED_FILE.bits();
    [
        Restriction::sqe_op(opcode::Write::CODE),
        Restriction::sqe_op(opcode::Writev::CODE),
        Restriction::sqe_op(opcode::Send::CODE),
        Restriction::sqe_op(opcode::SendMsg::CODE),
        Restriction::sqe_flags_allowed(Flags::IO_LINK.bits() | fixed),
        Restriction::sqe_flags_required(fixed),
        Restriction::register_op(REGISTER_FILES_UPDATE),
        Restriction::register_op(UNREGISTER_FILES),
    ]
}

fn entry(operation: Operation, Slot(slot): Slot) -> Entry {
    let file = Fixed(slot);
    match operation {
        Operation::Write { octets, len } => opcode::Write::new(file, octets, len)
            .rw_flags(libc::RWF_NOWAIT)
            .build(),
        Operation::WriteVector { areas, count } => opcode::Writev::new(file, areas, count)
            .rw_flags(libc::RWF_NOWAIT)
            .build(),
        Operation::Send { octets, len } => opcode::Send::new(file, octets, len)
            .flags(libc::MSG_DONTWAIT)
            .build(),
        Operation::SendMessage(message) => opcode::SendMsg::new(file, message)
            .flags(libc::MSG_DONTWAIT.cast_unsigned())
            .build(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, AsRawFd};
    use std::os::unix::net::UnixDatagram;

    use super::super::super::DeviceKind;
    use super::super::tests::enabled;
    use super::*;

    fn send(octets: &[u8]) -> Operation {
        Operation::Send {
            octets: octets.as_ptr(),
            len: u32::try_from(octets.len()).unwrap(),
        }
    }

    fn carry_out(
        ring: &mut Ring,
        slot: Slot,
        operations: &[Operation],
        chained: bool,
    ) -> Vec<Outcome> {
        let mut outcomes = [Outcome::Unknown; BATCH];
        // SAFETY: the tests send octets that live as long as they do.
        let result = unsafe { ring.carry_out(slot, operations, chained, &mut outcomes) };
        assert_eq!(result, Ok(()));
        outcomes[..operations.len()].to_vec()
    }

    #[test]
    fn a_chain_ends_at_the_first_refusal_and_others_do_not() {
        let Some(mut uring) = enabled() else { return };
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let slot = uring.admit(DeviceKind::Packet, Some(ours.as_fd())).unwrap();
        let long = vec![0; 10 << 20];
        let operations = [send(b"a"), send(&long), send(b"b")];
        let outcomes = carry_out(&mut uring.ring, slot, &operations, false);
        let refused = Outcome::Refused(Errno::EMSGSIZE);
        assert_eq!(outcomes, [Outcome::Taken, refused, Outcome::Taken]);
        let outcomes = carry_out(&mut uring.ring, slot, &operations, true);
        let canceled = Outcome::Refused(Errno::ECANCELED);
        assert_eq!(outcomes, [Outcome::Taken, refused, canceled]);
        let mut came = vec![];
        let mut octet = [0];
        while theirs.recv(&mut octet).is_ok() {
            came.push(octet[0]);
        }
        assert_eq!(came, b"aba");
    }

    #[test]
    fn a_full_socket_says_so_at_once() {
        let Some(mut uring) = enabled() else { return };
        let (ours, _theirs) = UnixDatagram::pair().unwrap();
        let slot = uring.admit(DeviceKind::Packet, Some(ours.as_fd())).unwrap();
        // Linux lets a few datagrams wait on a socket (net.unix.max_dgram_qlen).
        let mut outcomes = vec![];
        for _ in 0..20 {
            outcomes = carry_out(&mut uring.ring, slot, &[send(b"x"); BATCH], false);
        }
        assert_eq!(outcomes, [Outcome::Refused(Errno::EAGAIN); BATCH]);
    }

    #[test]
    fn it_may_do_nothing_else() {
        let Some(mut uring) = enabled() else { return };
        let (ours, _theirs) = UnixDatagram::pair().unwrap();
        let slot = uring.admit(DeviceKind::Packet, Some(ours.as_fd())).unwrap();
        let ring = &mut uring.ring.inner;
        let mut octet = 0_u8;
        let read = opcode::Read::new(Fixed(slot.0), &raw mut octet, 1).build();
        let unregistered =
            opcode::Send::new(io_uring::types::Fd(ours.as_raw_fd()), &raw const octet, 1);
        for entry in [read.flags(Flags::FIXED_FILE), unregistered.build()] {
            // SAFETY: the octet outlives the call, which completes what it submits.
            unsafe { ring.submission().push(&entry) }.unwrap();
            ring.submit_and_wait(1).unwrap();
            let result = ring.completion().next().unwrap().result();
            assert_eq!(Errno::from_raw(-result), Errno::EACCES);
        }
        let error = ring.submitter().register_files_sparse(1).unwrap_err();
        assert_eq!(error.into_errno(), Errno::EACCES);
    }

    #[test]
    fn what_the_kernel_may_still_read_is_told_from_what_it_has_not_seen() {
        let mut outcomes = [Outcome::Taken, Outcome::Untried, Outcome::Untried];
        assert_eq!(broken(Errno::EPERM, 2, &mut outcomes), Broken(Errno::EPERM));
        assert_eq!(
            outcomes,
            [Outcome::Taken, Outcome::Unknown, Outcome::Untried]
        );
    }
}
