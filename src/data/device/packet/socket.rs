//! The system calls around a packet socket, except those that move frames.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socket, sockopt};

use super::super::{DeviceKind, LinkState, OpenError};
use super::PacketOptions;

// linux/if_packet.h
const PACKET_ADD_MEMBERSHIP: libc::c_int = 1;
const PACKET_STATISTICS: libc::c_int = 6;
const PACKET_MR_PROMISC: libc::c_ushort = 1;
const PACKET_MR_ALLMULTI: libc::c_ushort = 2;
pub(super) const PACKET_AUXDATA: libc::c_int = 8;
const PACKET_VNET_HDR: libc::c_int = 15;
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;
const PACKET_OUTGOING: u32 = 4;

/// Opens a socket on the interface `name`: see [`super::PacketSocket::open`].
pub(super) fn open(name: &str, options: PacketOptions) -> Result<OwnedFd, OpenError> {
    let refused = |action| {
        move |source| OpenError::Refused {
            kind: DeviceKind::Packet,
            name: name.to_owned(),
            action,
            source,
        }
    };
    let index = if_nametoindex(name).map_err(refused("find the interface"))?;
    let fd = deaf_socket().map_err(refused("make the socket"))?;
    set_option(&fd, PACKET_VNET_HDR, 1).map_err(refused("turn on virtio-net headers"))?;
    set_option(&fd, PACKET_AUXDATA, 1).map_err(refused("turn on auxiliary data"))?;
    ignore_outgoing(&fd).map_err(refused("leave out what the kernel sends"))?;
    size_buffers(&fd, options.buffer).map_err(refused("size its buffers"))?;
    bind(&fd, index).map_err(refused("bind to the interface"))?;
    join(&fd, index, options.promiscuous).map_err(refused("receive more than its own frames"))?;
    match address(&fd)
        .map_err(refused("ask for the hardware type"))?
        .sll_hatype
    {
        libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK => Ok(fd),
        hardware => Err(OpenError::NotEthernet {
            name: name.to_owned(),
            hardware,
        }),
    }
}

/// Whether the interface is there and up.
pub(in super::super) fn link(fd: &OwnedFd) -> LinkState {
    match index(fd).and_then(|index| flags(fd, index)) {
        Ok(flags) if flags & libc::IFF_UP != 0 => LinkState::Up,
        Ok(_) => LinkState::Down,
        Err(_) => LinkState::Gone,
    }
}

/// The index of the interface; `ENXIO` when it has gone.
pub(in super::super) fn index(fd: &OwnedFd) -> Result<libc::c_int, Errno> {
    match address(fd)?.sll_ifindex {
        index if index > 0 => Ok(index),
        _ => Err(Errno::ENXIO),
    }
}

/// Frames lost because the receive queue was full, since this was last asked.
pub(in super::super) fn take_drops(fd: &OwnedFd) -> u32 {
    option::<Statistics>(fd, PACKET_STATISTICS).map_or(0, |statistics| statistics.drops)
}

fn deaf_socket() -> Result<OwnedFd, Errno> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket(AddressFamily::Packet, SockType::Raw, flags, None)
}

/// `struct packet_mreq`
#[repr(C)]
struct Membership {
    index: libc::c_int,
    kind: libc::c_ushort,
    length: libc::c_ushort,
    address: [u8; 8],
}

/// Has the interface pass up all multicast frames (Neighbor Discovery needs them), or all frames,
/// as long as the socket lives.
fn join(fd: &OwnedFd, index: libc::c_uint, promiscuous: bool) -> Result<(), Errno> {
    let index = libc::c_int::try_from(index).map_err(|_| Errno::ENXIO)?;
    let kind = if promiscuous {
        PACKET_MR_PROMISC
    } else {
        PACKET_MR_ALLMULTI
    };
    let membership = Membership {
        index,
        kind,
        length: 0,
        address: [0; 8],
    };
    // SAFETY: the kernel reads one struct packet_mreq from the address.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_PACKET,
            PACKET_ADD_MEMBERSHIP,
            (&raw const membership).cast(),
            length::<Membership>(),
        )
    };
    Errno::result(result).map(drop)
}

/// `struct tpacket_stats`
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Statistics {
    packets: u32,
    drops: u32,
}

/// Octets of a value that a system call reads or writes.
fn length<T>() -> libc::socklen_t {
    const { assert!(size_of::<T>() < 1024) };
    libc::socklen_t::try_from(size_of::<T>()).unwrap_or(0)
}

fn set_option(fd: &OwnedFd, option: libc::c_int, value: libc::c_int) -> Result<(), Errno> {
    // SAFETY: the kernel reads one int from the address.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_PACKET,
            option,
            (&raw const value).cast(),
            length::<libc::c_int>(),
        )
    };
    Errno::result(result).map(drop)
}

fn option<T: Copy + Default>(fd: &OwnedFd, option: libc::c_int) -> Result<T, Errno> {
    let mut value = T::default();
    let mut len = length::<T>();
    // SAFETY: the kernel writes at most `len` octets to the address; T is one of the plain
    // structures above.
    let result = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_PACKET,
            option,
            (&raw mut value).cast(),
            &raw mut len,
        )
    };
    Errno::result(result).map(|_| value)
}

/// Keeps frames that the kernel sends out of the socket: by option, or before Linux 4.20 by filter.
fn ignore_outgoing(fd: &OwnedFd) -> Result<(), Errno> {
    set_option(fd, PACKET_IGNORE_OUTGOING, 1).or_else(|_| filter_outgoing(fd))
}

/// Attaches a filter (classic BPF) that accepts frames unless the kernel sent them.
fn filter_outgoing(fd: &OwnedFd) -> Result<(), Errno> {
    let packet_type = (libc::SKF_AD_OFF + libc::SKF_AD_PKTTYPE).cast_unsigned();
    let instruction = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut program = [
        // ldb [packet type]; jeq #outgoing, +1; ret #-1; ret #0
        instruction(0x30, 0, 0, packet_type),
        instruction(0x15, 1, 0, PACKET_OUTGOING),
        instruction(0x06, 0, 0, u32::MAX),
        instruction(0x06, 0, 0, 0),
    ];
    let program = libc::sock_fprog {
        len: 4,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the kernel copies the program, whose four instructions outlive the call.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            length::<libc::sock_fprog>(),
        )
    };
    Errno::result(result).map(drop)
}

/// Sizes both buffers: past the system's limit where this process may, else up to it.
fn size_buffers(fd: &OwnedFd, octets: usize) -> Result<(), Errno> {
    setsockopt(fd, sockopt::RcvBufForce, &octets)
        .or_else(|_| setsockopt(fd, sockopt::RcvBuf, &octets))?;
    setsockopt(fd, sockopt::SndBufForce, &octets)
        .or_else(|_| setsockopt(fd, sockopt::SndBuf, &octets))
}

#[expect(clippy::cast_possible_truncation, reason = "AF_PACKET is 17")]
const FAMILY: u16 = libc::AF_PACKET as u16;
#[expect(clippy::cast_possible_truncation, reason = "ETH_P_ALL is 3")]
const EVERY_PROTOCOL: u16 = libc::ETH_P_ALL as u16;

/// Binds to all protocols on one interface.
fn bind(fd: &OwnedFd, index: libc::c_uint) -> Result<(), Errno> {
    // SAFETY: numbers only, for which zero octets are a value.
    let mut address: libc::sockaddr_ll = unsafe { core::mem::zeroed() };
    address.sll_family = FAMILY;
    address.sll_protocol = EVERY_PROTOCOL.to_be();
    address.sll_ifindex = index.cast_signed();
    // SAFETY: the kernel reads one sockaddr_ll from the address.
    let result = unsafe {
        libc::bind(
            fd.as_raw_fd(),
            (&raw const address).cast(),
            length::<libc::sockaddr_ll>(),
        )
    };
    Errno::result(result).map(drop)
}

/// What the socket is bound to.
fn address(fd: &OwnedFd) -> Result<libc::sockaddr_ll, Errno> {
    // SAFETY: numbers only, for which zero octets are a value.
    let mut address: libc::sockaddr_ll = unsafe { core::mem::zeroed() };
    let mut len = length::<libc::sockaddr_ll>();
    // SAFETY: the kernel writes at most `len` octets to the address.
    let result =
        unsafe { libc::getsockname(fd.as_raw_fd(), (&raw mut address).cast(), &raw mut len) };
    Errno::result(result).map(|_| address)
}

#[allow(unreachable_pub, reason = "the macros make public functions")]
mod ioctl {
    use nix::ioctl_readwrite_bad;

    ioctl_readwrite_bad!(name, libc::SIOCGIFNAME, libc::ifreq);
    ioctl_readwrite_bad!(flags, libc::SIOCGIFFLAGS, libc::ifreq);
}

/// The flags of an interface in the namespace of the socket.
fn flags(fd: &OwnedFd, index: libc::c_int) -> Result<libc::c_int, Errno> {
    // SAFETY: ifreq is made of numbers, for which zero octets are a value.
    let mut request: libc::ifreq = unsafe { core::mem::zeroed() };
    request.ifr_ifru.ifru_ifindex = index;
    // SAFETY: reads the index and writes the name.
    unsafe { ioctl::name(fd.as_raw_fd(), &raw mut request) }?;
    // SAFETY: reads the name and writes the flags.
    unsafe { ioctl::flags(fd.as_raw_fd(), &raw mut request) }?;
    // SAFETY: the kernel has just written the flags.
    Ok(libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags }))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use nix::sys::socket::{MsgFlags, recv, send};

    use super::*;
    use crate::lab::testbed::{LabNamespace, Privileges, privileges};

    /// A socket on `lo`, which loops back what it sends, with the means for old kernels.
    fn filtered() -> OwnedFd {
        let fd = deaf_socket().unwrap();
        filter_outgoing(&fd).unwrap();
        bind(&fd, if_nametoindex("lo").unwrap()).unwrap();
        fd
    }

    /// How many frames the socket receives: waits for at least so many, as they come after a while.
    fn frames_received(fd: &OwnedFd, least: usize) -> usize {
        let deadline = Instant::now() + Duration::from_secs(20);
        let (mut heard, mut buffer) = (0, [0; 100]);
        while heard < least && Instant::now() < deadline {
            while recv(fd.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT).is_ok() {
                heard += 1;
            }
        }
        heard
    }

    #[test]
    fn the_filter_for_old_kernels_lets_incoming_frames_pass_only() {
        if privileges() != Privileges::Root {
            println!("skipped: needs a namespace");
            return;
        }
        let frame = [[0; 12].as_slice(), &[0x88, 0xb5], &[7; 46]].concat();
        let lab = LabNamespace::new("lo").unwrap();
        lab.run(|| {
            let (fd, plain) = (filtered(), deaf_socket().unwrap());
            bind(&plain, if_nametoindex("lo").unwrap()).unwrap();
            for sender in [&fd, &plain] {
                send(sender.as_raw_fd(), &frame, MsgFlags::empty()).unwrap();
            }
            // Each frame goes out and comes in again; nobody hears its own go out.
            assert_eq!(frames_received(&plain, 3), 3);
            assert_eq!(frames_received(&fd, 2), 2);
        })
        .unwrap();
    }
}
