//! Descriptors and octets between two processes.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// Descriptors of one message; the kernel takes 253 at most.
const BATCH: usize = 128;

/// Octets of the longest text in a file of ours.
const MAX_TEXT: u64 = 64 << 20;

/// What a message with descriptors consists of besides them.
const FILLER: u8 = b'F';

/// Sends descriptors, and with each message of them one octet.
///
/// # Errors
///
/// The other end has gone, or reads too slowly.
pub(super) fn send_descriptors(
    socket: impl AsFd,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    for batch in descriptors.chunks(BATCH) {
        let numbers: Vec<RawFd> = batch.iter().map(AsRawFd::as_raw_fd).collect();
        send(&socket, &[FILLER], &[ControlMessage::ScmRights(&numbers)])?;
    }
    Ok(())
}

/// Sends one octet.
///
/// # Errors
///
/// As [`send_descriptors`].
pub(super) fn send_octet(socket: impl AsFd, octet: u8) -> io::Result<()> {
    send(socket, &[octet], &[])
}

fn send(socket: impl AsFd, octets: &[u8], rights: &[ControlMessage<'_>]) -> io::Result<()> {
    let pieces = [IoSlice::new(octets)];
    loop {
        let socket = socket.as_fd().as_raw_fd();
        match sendmsg::<()>(socket, &pieces, rights, MsgFlags::MSG_NOSIGNAL, None) {
            Ok(1..) => return Ok(()),
            Ok(_) => return Err(io::ErrorKind::WriteZero.into()),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Receives as many descriptors as were sent by one call of [`send_descriptors`].
///
/// # Errors
///
/// The connection ends, or what comes is something else.
pub(super) fn receive_descriptors(socket: impl AsFd, count: usize) -> io::Result<Vec<OwnedFd>> {
    let mut all = Vec::new();
    while all.len() < count {
        let mut octet = [0];
        let mut space = cmsg_space!([RawFd; BATCH]);
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let mut pieces = [IoSliceMut::new(&mut octet)];
        let number = socket.as_fd().as_raw_fd();
        let message = match recvmsg::<()>(number, &mut pieces, Some(&mut space), flags) {
            Err(Errno::EINTR) => continue,
            message => message?,
        };
        let ended = message.bytes == 0;
        for part in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(numbers) = part {
                // Owned at once, so that none is left open whatever comes.
                all.extend(numbers.into_iter().map(owned));
            }
        }
        if ended || octet != [FILLER] {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    match all.len() == count {
        true => Ok(all),
        false => Err(io::Error::other(
            "there are more descriptors than were announced",
        )),
    }
}

fn owned(number: RawFd) -> OwnedFd {
    use std::os::fd::FromRawFd;
    // SAFETY: the kernel has made this descriptor for us a moment ago, and nobody else knows of it.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// A file in memory with this text.
///
/// # Errors
///
/// There is no memory, or no descriptor left.
pub(super) fn text_file(octets: &[u8]) -> io::Result<OwnedFd> {
    let file = memfd_create(c"nos-relay", MFdFlags::MFD_CLOEXEC)?;
    let mut file = File::from(file);
    file.write_all(octets)?;
    Ok(file.into())
}

/// The text of such a file.
///
/// # Errors
///
/// It cannot be read, or is too long.
pub(super) fn read_text(file: OwnedFd) -> io::Result<Vec<u8>> {
    let mut file = File::from(file);
    file.seek(SeekFrom::Start(0))?;
    let mut octets = Vec::new();
    file.take(MAX_TEXT).read_to_end(&mut octets)?;
    Ok(octets)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn descriptors_arrive_in_order_with_what_is_in_them() {
        let (near, far) = UnixStream::pair().unwrap();
        let files: Vec<_> = (0..300_u32)
            .map(|number| text_file(&number.to_be_bytes()).unwrap())
            .collect();
        let borrowed: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        send_descriptors(&near, &borrowed).unwrap();
        send_octet(&near, b'!').unwrap();
        let received = receive_descriptors(&far, files.len()).unwrap();
        for (number, file) in (0..300_u32).zip(received) {
            assert_eq!(read_text(file).unwrap(), number.to_be_bytes());
        }
        let mut octet = [0];
        (&far).read_exact(&mut octet).unwrap();
        assert_eq!(octet, *b"!");
    }

    #[test]
    fn what_breaks_off_is_an_error() {
        let (near, far) = UnixStream::pair().unwrap();
        let file = text_file(b"x").unwrap();
        send_descriptors(&near, &[file.as_fd()]).unwrap();
        drop(near);
        assert!(receive_descriptors(&far, 2).is_err());
        let (near, far) = UnixStream::pair().unwrap();
        send_octet(&near, b'x').unwrap();
        assert!(receive_descriptors(&far, 1).is_err());
    }
}
