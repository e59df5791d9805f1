//! The system calls around a packet socket, except those that move frames.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socket, sockopt};
use nos_shim::ident::MacAddr;

use super::super::{DeviceKind, LinkState, OpenError};
use super::PacketOptions;
use super::vlans::{self, Shown};

// linux/if_packet.h
const PACKET_ADD_MEMBERSHIP: libc::c_int = 1;
const PACKET_STATISTICS: libc::c_int = 6;
const PACKET_MR_PROMISC: libc::c_ushort = 1;
const PACKET_MR_ALLMULTI: libc::c_ushort = 2;
pub(super) const PACKET_AUXDATA: libc::c_int = 8;
const PACKET_VNET_HDR: libc::c_int = 15;
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;
/// The packet type of what the kernel has sent.
pub(super) const FROM_KERNEL: u32 = 4;

/// Opens a socket on the interface `name`: see [`super::PacketSocket::open_showing`].
pub(super) fn open(
    name: &str,
    options: PacketOptions,
    shown: &Shown,
) -> Result<OwnedFd, OpenError> {
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
    match options.station {
        Some(station) => listen_as(&fd, station).map_err(refused("leave out what others get"))?,
        None => vlans::show(&fd, shown).map_err(refused("leave out what is not for it"))?,
    }
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

/// Shows the socket all frames but those that the kernel sends: by option, or before Linux 4.20 by filter.
pub(super) fn show_all(fd: &OwnedFd) -> Result<(), Errno> {
    match set_option(fd, PACKET_IGNORE_OUTGOING, 1) {
        Ok(()) => detach(fd),
        Err(_) => filter_outgoing(fd),
    }
}

/// Takes the socket's filter away, if it has one.
fn detach(fd: &OwnedFd) -> Result<(), Errno> {
    let unused: libc::c_int = 0;
    // SAFETY: the kernel may read one int from the address.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_DETACH_FILTER,
            (&raw const unused).cast(),
            length::<libc::c_int>(),
        )
    };
    match Errno::result(result) {
        Ok(_) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// The offset at which a filter finds who sent a frame.
pub(super) const PACKET_TYPE: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_PKTTYPE).cast_unsigned();

/// An instruction of classic BPF.
pub(super) const fn instruction(code: u16, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf, k }
}

/// Attaches a filter that accepts frames unless the kernel sent them.
fn filter_outgoing(fd: &OwnedFd) -> Result<(), Errno> {
    attach(
        fd,
        &mut [
            // ldb [packet type]; jeq #outgoing, +1; ret #-1; ret #0
            instruction(0x30, 0, 0, PACKET_TYPE),
            instruction(0x15, 1, 0, FROM_KERNEL),
            instruction(0x06, 0, 0, u32::MAX),
            instruction(0x06, 0, 0, 0),
        ],
    )
}

/// Attaches a filter that accepts frames for `station`, and those to groups by which it is asked for addresses:
/// ARP, and what ICMPv6 sends without extension headers. What the kernel sends is left out as well.
fn listen_as(fd: &OwnedFd, station: MacAddr) -> Result<(), Errno> {
    let [a, b, c, d, e, f] = station.0;
    attach(
        fd,
        &mut [
            // 0: ldb [packet type]; jeq #outgoing, 14
            instruction(0x30, 0, 0, PACKET_TYPE),
            instruction(0x15, 12, 0, FROM_KERNEL),
            // 2: ldw [0]; jeq #station, else 6; ldh [4]; jeq #station, 13
            instruction(0x20, 0, 0, 0),
            instruction(0x15, 0, 2, u32::from_be_bytes([a, b, c, d])),
            instruction(0x28, 0, 0, 4),
            instruction(0x15, 7, 0, u32::from_be_bytes([0, 0, e, f])),
            // 6: ldb [0]; jset #group, else 14
            instruction(0x30, 0, 0, 0),
            instruction(0x45, 0, 6, 1),
            // 8: ldh [type]; jeq #arp, 13; jeq #ipv6, else 14
            instruction(0x28, 0, 0, 12),
            instruction(0x15, 3, 0, 0x0806),
            instruction(0x15, 0, 3, 0x86dd),
            // 11: ldb [next header]; jeq #icmpv6, else 14
            instruction(0x30, 0, 0, 20),
            instruction(0x15, 0, 1, 58),
            // 13: ret #-1; ret #0
            instruction(0x06, 0, 0, u32::MAX),
            instruction(0x06, 0, 0, 0),
        ],
    )
}

pub(super) fn attach(fd: &OwnedFd, program: &mut [libc::sock_filter]) -> Result<(), Errno> {
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| Errno::EINVAL)?,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the kernel copies the program, whose instructions outlive the call.
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

    /// A frame on `lo` with this destination, type, and octet where IPv6 has its next header.
    fn frame(destination: [u8; 6], kind: u16, next: u8) -> Vec<u8> {
        let mut frame = [
            &destination[..],
            &[2, 0, 0, 0, 0, 9],
            &kind.to_be_bytes(),
            &[0; 46],
        ]
        .concat();
        frame[20] = next;
        frame
    }

    #[test]
    fn a_station_hears_what_is_for_it_and_questions_to_groups() {
        const STATION: MacAddr = MacAddr([2, 0, 0, 0, 1, 2]);
        const GROUP: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
        if privileges() != Privileges::Root {
            println!("skipped: needs a namespace");
            return;
        }
        let heard = [
            frame(STATION.0, 0x0800, 6),
            frame(STATION.0, 0x88b5, 0),
            frame([0xff; 6], 0x0806, 0),
            frame(GROUP, 0x86dd, 58),
        ];
        let others = [
            frame([2, 0, 0, 0, 1, 3], 0x0806, 0),
            frame([2, 0, 0, 1, 1, 2], 0x0800, 6),
            frame([0xff; 6], 0x0800, 17),
            frame(GROUP, 0x86dd, 17),
        ];
        let lab = LabNamespace::new("lo").unwrap();
        lab.run(|| {
            let (fd, plain) = (deaf_socket().unwrap(), deaf_socket().unwrap());
            listen_as(&fd, STATION).unwrap();
            for fd in [&fd, &plain] {
                bind(fd, if_nametoindex("lo").unwrap()).unwrap();
            }
            for frame in others.iter().chain(&heard) {
                send(plain.as_raw_fd(), frame, MsgFlags::empty()).unwrap();
            }
            // Once each of them has come in.
            assert_eq!(frames_received(&plain, 8), 8);
            assert_eq!(frames_received(&fd, heard.len()), heard.len());
        })
        .unwrap();
    }
}
