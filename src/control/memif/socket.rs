//! The sockets: packets of a message, and the descriptors that come with one.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
    connect, recvmsg, sendmsg, socket,
};

use super::message::{LENGTH, Message};

/// Descriptors that are taken of a packet; one more than any has, so that too many are noticed. The
/// kernel closes what there is no room for.
const DESCRIPTORS: usize = 2;

/// A packet, as it came.
#[derive(Debug)]
pub(super) struct Packet {
    octets: [u8; LENGTH + 1],
    length: usize,
    pub(super) descriptors: Vec<OwnedFd>,
}

impl Packet {
    /// One octet longer than a message if it is longer than that.
    pub(super) fn octets(&self) -> &[u8] {
        self.octets.get(..self.length).unwrap_or_default()
    }
}

/// A socket of packets that does not wait.
pub(super) fn packet_socket() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        flags,
        None,
    )?)
}

/// Connects to whoever listens at `path`.
pub(super) fn connect_to(path: &Path) -> io::Result<OwnedFd> {
    let socket = packet_socket()?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(socket)
}

/// The next packet: `None` if there is none yet.
///
/// # Errors
///
/// The peer has gone ([`io::ErrorKind::UnexpectedEof`]), or the kernel says why nothing comes.
pub(super) fn receive(socket: &OwnedFd) -> io::Result<Option<Packet>> {
    let mut packet = Packet {
        octets: [0; LENGTH + 1],
        length: 0,
        descriptors: Vec::new(),
    };
    let mut space = cmsg_space!([RawFd; DESCRIPTORS]);
    let mut pieces = [IoSliceMut::new(&mut packet.octets)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let received = loop {
        match recvmsg::<()>(socket.as_raw_fd(), &mut pieces, Some(&mut space), flags) {
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Ok(None),
            other => break other?,
        }
    };
    let mut descriptors = Vec::new();
    for part in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = part {
            // SAFETY: the kernel has made these descriptors a moment ago, and nobody else knows them.
            let owned = numbers
                .into_iter()
                .map(|number| unsafe { OwnedFd::from_raw_fd(number) });
            descriptors.extend(owned);
        }
    }
    let length = received.bytes;
    if length == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some(Packet {
        length,
        descriptors,
        ..packet
    }))
}

/// Sends a message, with a descriptor if it has one. A peer that reads none has no room for more, which
/// is an error as any other: a conversation is shorter than what a socket holds.
pub(super) fn send(
    socket: &OwnedFd,
    message: &Message,
    descriptor: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let octets = message.emit();
    let pieces = [IoSlice::new(&octets)];
    let numbers: Vec<RawFd> = descriptor.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&numbers)];
    let rights = if numbers.is_empty() { &[][..] } else { &rights };
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    loop {
        match sendmsg::<()>(socket.as_fd().as_raw_fd(), &pieces, rights, flags, None) {
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
            Ok(_) => return Ok(()),
        }
    }
}
