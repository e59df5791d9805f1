//! Software offload against the kernel's: the same super-frame, cut here and by Linux, gives the
//! same octets.
//!
//! A packet socket with `PACKET_VNET_HDR` hands the super-frame to a TAP that takes none, so the
//! kernel cuts it on the way, and the TAP's file descriptor reads the result. For fragmentation
//! the kernel routes between two TAPs.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a test of known data"
)]

mod support;

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nos_relay::data::device::{self, FrameDevice};
use nos_shim::checksum::Sum;
use nos_shim::frame::{
    Burst, Checksum, ETHERNET_HEADER, Ecn, FramePool, GsoKind, MAX_FRAME, Offload, Segmentation,
    VNET_HEADER,
};
use nos_shim::offload::{Capabilities, adapt, complete_checksum, fragment_ipv4};
use nos_shim::packet::Packet;

use support::lab_test;

/// Runs `test` in a thread with a network namespace of its own, without IPv6 chatter.
fn in_namespace(test: impl FnOnce() + Send) {
    if let Err(error) = nos_relay::lab::testbed::tun_access() {
        support::skip(&format!("/dev/net/tun: {error}"));
        return;
    }
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: no pointers.
            checked(unsafe { libc::unshare(libc::CLONE_NEWNET) }, "unshare");
            // Without IPv6 there is nothing to turn off.
            let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
            test();
        });
        thread.join().expect("the thread's own message tells");
    });
}

fn checked(result: libc::c_int, what: &str) -> libc::c_int {
    let error = std::io::Error::last_os_error();
    assert!(result >= 0, "{what}: {error}");
    result
}

fn request(name: &str) -> libc::ifreq {
    // SAFETY: all zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request
}

/// An ioctl about the interface `name`; `set` fills the request in.
fn configure(name: &str, code: libc::c_ulong, set: impl FnOnce(&mut libc::ifreq)) -> libc::ifreq {
    let socket = socket(libc::AF_INET, libc::SOCK_DGRAM, 0);
    let mut request = request(name);
    set(&mut request);
    // SAFETY: the request lives through the call, and the socket is open.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), code, &mut request) };
    checked(result, "interface ioctl");
    request
}

fn up(name: &str) {
    configure(name, libc::SIOCSIFFLAGS, |request| {
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_NOARP) as i16;
    });
}

/// Joins interfaces by a bridge.
fn bridge(ports: &[&str]) {
    const SIOCBRADDBR: libc::c_ulong = 0x89a0;
    const SIOCBRADDIF: libc::c_ulong = 0x89a2;
    configure("br0", SIOCBRADDBR, |_| {});
    for port in ports {
        let index = configure(port, libc::SIOCGIFINDEX, |_| {});
        configure("br0", SIOCBRADDIF, |request| {
            // SAFETY: the kernel has written this member.
            request.ifr_ifru.ifru_ifindex = unsafe { index.ifr_ifru.ifru_ifindex };
        });
    }
    up("br0");
}

/// A TAP without any offload. It frames what it passes with a virtio-net header.
struct Tap {
    file: File,
    name: &'static str,
}

impl Tap {
    fn new(name: &'static str) -> Self {
        let file = File::options()
            .read(true)
            .write(true)
            .open("/dev/net/tun")
            .unwrap();
        let mut request = request(name);
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        request.ifr_ifru.ifru_flags = flags as i16;
        // SAFETY: the request lives through the call, and the descriptors are open.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &request) };
        checked(result, "TUNSETIFF");
        // SAFETY: no pointers.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, 0) };
        checked(result, "TUNSETOFFLOAD");
        // SAFETY: no pointers.
        let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
        checked(result, "O_NONBLOCK");
        Self { file, name }
    }

    fn configure(&self, code: libc::c_ulong, set: impl FnOnce(&mut libc::ifreq)) -> libc::ifreq {
        configure(self.name, code, set)
    }

    fn up(&self) {
        up(self.name);
    }

    fn address(&self, address: [u8; 4]) {
        self.configure(libc::SIOCSIFADDR, |request| {
            let mut data = [0; 14];
            data[2..6].copy_from_slice(&address);
            request.ifr_ifru.ifru_addr = libc::sockaddr {
                sa_family: libc::AF_INET as u16,
                sa_data: data.map(u8::cast_signed),
            };
        });
        self.configure(libc::SIOCSIFNETMASK, |request| {
            let mut data = [0; 14];
            data[2..5].fill(0xff);
            request.ifr_ifru.ifru_addr = libc::sockaddr {
                sa_family: libc::AF_INET as u16,
                sa_data: data.map(u8::cast_signed),
            };
        });
    }

    fn mtu(&self, mtu: i32) {
        self.configure(libc::SIOCSIFMTU, |request| {
            request.ifr_ifru.ifru_mtu = mtu;
        });
    }

    fn mac(&self) -> [u8; 6] {
        let request = self.configure(libc::SIOCGIFHWADDR, |_| {});
        // SAFETY: the kernel has written this member.
        let data = unsafe { request.ifr_ifru.ifru_hwaddr.sa_data };
        std::array::from_fn(|n| data[n].cast_unsigned())
    }

    /// All frames that the kernel has put out, of `ether_type`, which must number `count`. What goes to
    /// a group is what it says by itself.
    fn frames(&self, ether_type: [u8; 2], count: usize) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let mut buffer = vec![0; VNET_HEADER + MAX_FRAME];
        while frames.len() < count && self.wait() {
            match (&self.file).read(&mut buffer) {
                Ok(_) if buffer[VNET_HEADER] & 1 != 0 => {}
                Ok(len) if buffer[VNET_HEADER + 12..][..2] == ether_type => {
                    assert_eq!(buffer[0] & 1, 0, "the checksum is complete");
                    frames.push(buffer[VNET_HEADER..len].to_vec());
                }
                Ok(_) => {}
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        }
        frames
    }

    /// Waits for the next frame; false if none comes for a long time.
    fn wait(&self) -> bool {
        let mut poll = libc::pollfd {
            fd: self.file.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one valid pollfd, as the count says.
        checked(unsafe { libc::poll(&mut poll, 1, 5_000) }, "poll") > 0
    }

    fn write(&self, frame: &[u8]) {
        let octets = [&[0; VNET_HEADER], frame].concat();
        let written = (&self.file).write(&octets).unwrap();
        assert_eq!(written, octets.len());
    }
}

fn socket(family: i32, kind: i32, protocol: i32) -> OwnedFd {
    // SAFETY: no pointers.
    let fd = checked(unsafe { libc::socket(family, kind, protocol) }, "socket");
    // SAFETY: just made, and owned by nobody else.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// A packet socket that sends from `tap` what starts with a virtio-net header.
fn packet_socket(tap: &Tap) -> File {
    const PACKET_VNET_HDR: i32 = 15;
    let socket = socket(libc::AF_PACKET, libc::SOCK_RAW, 0);
    let on = 1_i32;
    // SAFETY: the option points to an int, as its length says.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            PACKET_VNET_HDR,
            (&raw const on).cast(),
            size_of::<i32>() as u32,
        )
    };
    checked(result, "PACKET_VNET_HDR");
    let index = tap.configure(libc::SIOCGIFINDEX, |_| {});
    // SAFETY: all zero is a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    // SAFETY: the kernel has written this member.
    address.sll_ifindex = unsafe { index.ifr_ifru.ifru_ifindex };
    // SAFETY: the address is a sockaddr_ll, as its length says.
    let result = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as u32,
        )
    };
    checked(result, "bind");
    File::from(socket)
}

#[derive(Clone, Copy, Debug)]
struct Shape {
    ipv6: bool,
    udp: bool,
    /// IPv4 options or an IPv6 destination options header.
    options: bool,
    flags: u8,
    ecn: bool,
    payload: usize,
    size: u16,
}

const SOURCE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

/// A super-frame of that shape, with random content.
fn super_frame(shape: Shape, random: &mut fastrand::Rng) -> (Vec<u8>, Offload) {
    let mut transport: Vec<u8> = std::iter::repeat_with(|| random.u8(..))
        .take(if shape.udp { 8 } else { 32 })
        .collect();
    transport.resize_with(transport.len() + shape.payload, || random.u8(..));
    let len = transport.len() as u16;
    let (protocol, at) = if shape.udp {
        transport[4..6].copy_from_slice(&len.to_be_bytes());
        (17, 6)
    } else {
        transport[12..14].copy_from_slice(&[0x80, shape.flags]);
        (6, 16)
    };
    let mut frame = [[2, 0, 0, 0, 0, 8], SOURCE_MAC].concat();
    let pseudo = if shape.ipv6 {
        let options: &[u8] = if shape.options {
            &[protocol, 0, 1, 4, 0, 0, 0, 0]
        } else {
            &[]
        };
        let next = if shape.options { 60 } else { protocol };
        let addresses: [Ipv6Addr; 2] = std::array::from_fn(|_| random.u128(..).into());
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend((len + options.len() as u16).to_be_bytes());
        frame.extend([next, 64]);
        frame.extend(addresses[0].octets());
        frame.extend(addresses[1].octets());
        frame.extend(options);
        Sum::ZERO.pseudo_v6(addresses[0], addresses[1], protocol, len.into())
    } else {
        let options: &[u8] = if shape.options {
            &[148, 4, 0, 0, 7, 3, 4, 0]
        } else {
            &[]
        };
        let addresses: [Ipv4Addr; 2] = std::array::from_fn(|_| random.u32(..).into());
        frame.extend(ipv4_header(protocol, options, len, addresses, random));
        Sum::ZERO.pseudo_v4(addresses[0], addresses[1], protocol, len)
    };
    transport[at..at + 2].copy_from_slice(&pseudo.folded().to_be_bytes());
    let kind = match (shape.udp, shape.ipv6) {
        (true, _) => GsoKind::Udp,
        (false, false) => GsoKind::TcpV4,
        (false, true) => GsoKind::TcpV6,
    };
    let offload = Offload {
        checksum: Checksum::Partial {
            start: frame.len() as u16,
            offset: at as u16,
        },
        segmentation: Some(Segmentation {
            kind,
            ecn: if shape.ecn {
                Ecn::Classic
            } else {
                Ecn::Unmarked
            },
            size: NonZeroU16::new(shape.size).unwrap(),
            tunnel: None,
        }),
    };
    frame.extend(transport);
    (frame, offload)
}

/// An EtherType and an IPv4 header in front of `len` octets.
fn ipv4_header(
    protocol: u8,
    options: &[u8],
    len: u16,
    addresses: [Ipv4Addr; 2],
    random: &mut fastrand::Rng,
) -> Vec<u8> {
    let header_len = 20 + options.len() as u16;
    let mut header = vec![8, 0, 0x40 | (header_len / 4) as u8, 0];
    header.extend((header_len + len).to_be_bytes());
    header.extend(random.u16(..).to_be_bytes());
    header.extend([0, 0, 64, protocol, 0, 0]);
    header.extend(addresses[0].octets());
    header.extend(addresses[1].octets());
    header.extend(options);
    let checksum = Sum::ZERO.plus(&header[2..]).checksum();
    header[12..14].copy_from_slice(&checksum.to_be_bytes());
    header
}

fn parse(pool: &mut FramePool, octets: &[u8], offload: Offload) -> Packet {
    let mut frame = pool.copy_from(octets).unwrap();
    frame.set_offload(offload);
    Packet::parse(frame).unwrap()
}

fn shapes(random: &mut fastrand::Rng) -> Vec<Shape> {
    let mut shapes = Vec::new();
    for bits in 0..16_u8 {
        let bit = |n: u8| bits & 1 << n != 0;
        for (payload, size) in [
            (100, 99),
            (200, 100),
            (2_900, 1_448),
            (65_000, 1_448),
            (890, 7),
        ] {
            shapes.push(Shape {
                ipv6: bit(0),
                udp: bit(1),
                options: bit(2),
                flags: 0x10 | if bit(3) { 0x89 } else { 0x08 },
                ecn: bit(3) && !bit(1),
                payload,
                size,
            });
        }
        for _ in 0..20 {
            shapes.push(Shape {
                ipv6: bit(0),
                udp: bit(1),
                options: bit(2),
                // Without a mark all segments have it, but this kernel has no mark for that.
                flags: random.u8(..) & !0x86,
                ecn: false,
                payload: random.usize(2_000..20_000),
                // Linux takes at most 128 datagrams in one frame.
                size: random.u16(160..2_000),
            });
        }
    }
    shapes
}

lab_test! {
fn segments_are_the_kernels() {
    in_namespace(|| {
        let tap = Tap::new("t0");
        tap.mtu(9_000);
        tap.up();
        let socket = packet_socket(&tap);
        let mut pool = FramePool::new(1_024, MAX_FRAME);
        let mut random = fastrand::Rng::with_seed(7);
        for shape in shapes(&mut random) {
            let (octets, offload) = super_frame(shape, &mut random);
            let packet = parse(&mut pool, &octets, offload);
            let header = offload.to_virtio(packet.payload_offset() as u16);
            let mut ours = Vec::new();
            let mut keep = |packet: Packet| ours.push(packet.frame().bytes().to_vec());
            let _ = adapt(packet, Capabilities::empty(), &mut pool, &mut keep);
            match (&socket).write(&[&header[..], &octets].concat()) {
                // Linux before 6.2 knows no USO.
                Err(error) if shape.udp && error.kind() == ErrorKind::InvalidInput => {
                    support::skip(&format!("{shape:?}: {error}"));
                    continue;
                }
                sent => assert!(sent.is_ok(), "{shape:?}: {sent:?}"),
            }
            let theirs = tap.frames([octets[12], octets[13]], ours.len());
            assert_eq!(theirs.len(), ours.len(), "{shape:?}");
            for (n, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
                assert_eq!(ours, theirs, "segment {n} of {shape:?}");
            }
        }
    });
}
}

/// How a super-frame is wrapped into a UDP tunnel.
#[derive(Clone, Copy, Debug)]
struct Wrap {
    ipv6: bool,
    checksum: bool,
    /// Octets of the tunnel's header.
    header: usize,
    /// Without the inner Ethernet header.
    bare: bool,
}

/// A tunnel's super-frame, with that of `inner` inside.
fn wrapped(
    wrap: Wrap,
    (inner, mut offload): (Vec<u8>, Offload),
    random: &mut fastrand::Rng,
) -> (Vec<u8>, Offload) {
    let carried = if wrap.bare {
        &inner[ETHERNET_HEADER..]
    } else {
        &inner
    };
    let mut datagram: Vec<u8> = std::iter::repeat_with(|| random.u8(..))
        .take(8 + wrap.header)
        .collect();
    datagram.extend(carried);
    let len = datagram.len() as u16;
    datagram[4..6].copy_from_slice(&len.to_be_bytes());
    let mut frame = [[2, 0, 0, 0, 0, 8], SOURCE_MAC].concat();
    let pseudo = if wrap.ipv6 {
        let addresses: [Ipv6Addr; 2] = std::array::from_fn(|_| random.u128(..).into());
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend(len.to_be_bytes());
        frame.extend([17, 64]);
        frame.extend(addresses[0].octets());
        frame.extend(addresses[1].octets());
        Sum::ZERO.pseudo_v6(addresses[0], addresses[1], 17, len.into())
    } else {
        let addresses: [Ipv4Addr; 2] = std::array::from_fn(|_| random.u32(..).into());
        frame.extend(ipv4_header(17, &[], len, addresses, random));
        Sum::ZERO.pseudo_v4(addresses[0], addresses[1], 17, len)
    };
    let checksum = if wrap.checksum { pseudo.folded() } else { 0 };
    datagram[6..8].copy_from_slice(&checksum.to_be_bytes());
    frame.extend(&datagram);
    if let Checksum::Partial { start, .. } = &mut offload.checksum {
        *start += (frame.len() - inner.len()) as u16;
    }
    (frame, offload)
}

lab_test! {
/// A TAP takes the super-frame, a bridge forwards it, and the kernel cuts it for a TAP without offload.
fn segments_of_tunnels_are_the_kernels() {
    in_namespace(|| {
        let mut from = device::Tap::open("t0", Capabilities::all()).unwrap();
        if !from.capabilities().contains(Capabilities::TUNNEL) {
            return support::skip("this kernel's TAP takes no tunnels (Linux 6.17)");
        }
        let to = Tap::new("t1");
        to.mtu(9_000);
        to.up();
        up("t0");
        bridge(&["t0", "t1"]);
        let mut pool = FramePool::new(1_024, MAX_FRAME);
        let mut random = fastrand::Rng::with_seed(17);
        // As long as they are with the headers of the tunnel.
        let shapes = shapes(&mut random).into_iter().filter(|shape| shape.payload < 60_000);
        for (n, shape) in shapes.enumerate() {
            let wrap = Wrap {
                ipv6: n & 1 != 0,
                checksum: n & 2 != 0,
                header: [8, 8, 0, 24][n / 4 % 4],
                bare: n & 16 != 0,
            };
            let inner = super_frame(shape, &mut random);
            let (octets, offload) = wrapped(wrap, inner, &mut random);
            let mut ours = Vec::new();
            let mut keep = |packet: Packet| ours.push(packet.frame().bytes().to_vec());
            let packet = parse(&mut pool, &octets, offload);
            let _ = adapt(packet, Capabilities::empty(), &mut pool, &mut keep);
            let whole = parse(&mut pool, &octets, offload);
            assert!(whole.tunnel().is_some(), "{shape:?} in {wrap:?}");
            let mut burst = Burst::new();
            burst.push(whole.into_frame());
            assert_eq!(from.send_burst(&mut burst, &mut pool).frames, 1, "{shape:?} in {wrap:?}");
            let theirs = to.frames([octets[12], octets[13]], ours.len());
            assert_eq!(theirs.len(), ours.len(), "{shape:?} in {wrap:?}");
            for (n, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
                assert_eq!(ours, theirs, "segment {n} of {shape:?} in {wrap:?}");
            }
        }
    });
}
}

lab_test! {
fn completed_checksums_are_the_kernels() {
    in_namespace(|| {
        let tap = Tap::new("t0");
        tap.up();
        let socket = packet_socket(&tap);
        let mut pool = FramePool::new(4, MAX_FRAME);
        let mut random = fastrand::Rng::with_seed(8);
        for n in 0..200_usize {
            let shape = Shape {
                ipv6: n & 1 != 0,
                udp: n & 2 != 0,
                options: n & 4 != 0,
                flags: 0x10,
                ecn: false,
                payload: n * 7,
                size: u16::MAX,
            };
            let (mut octets, offload) = super_frame(shape, &mut random);
            let offload = Offload {
                segmentation: None,
                ..offload
            };
            if n >= 100 && n % 2 == 0 {
                make_the_checksum_zero(&mut octets, offload);
            }
            let mut packet = parse(&mut pool, &octets, offload);
            complete_checksum(&mut packet);
            let sent = [&offload.to_virtio(0)[..], &octets].concat();
            (&socket).write_all(&sent).unwrap();
            let theirs = tap.frames([octets[12], octets[13]], 1);
            assert_eq!(packet.frame().bytes(), theirs[0], "{shape:?}");
        }
    });
}
}

/// Changes the last two octets so that the computed checksum is zero.
fn make_the_checksum_zero(octets: &mut [u8], offload: Offload) {
    let Checksum::Partial { start, .. } = offload.checksum else {
        return;
    };
    let transport = &mut octets[usize::from(start)..];
    let (rest, tail) = transport.split_at_mut(transport.len() / 2 * 2 - 2);
    tail.fill(0);
    let sum = Sum::ZERO.plus(rest).checksum();
    tail[..2].copy_from_slice(&sum.to_be_bytes());
    assert_eq!(Sum::ZERO.plus(transport).checksum(), 0);
}

lab_test! {
fn fragments_are_the_kernels() {
    in_namespace(|| {
        let (inner, outer) = (Tap::new("t0"), Tap::new("t1"));
        for (tap, net) in [(&inner, 1), (&outer, 2)] {
            tap.mtu(9_000);
            tap.address([10, 0, net, 1]);
            tap.up();
        }
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        let mut pool = FramePool::new(256, MAX_FRAME);
        let mut random = fastrand::Rng::with_seed(9);
        // Record route, which the router fills in, is left out: it is no part of fragmentation.
        let options: [&[u8]; 4] = [
            &[],
            &[1, 1, 1, 0],
            &[148, 4, 0, 0, 30, 4, 7, 7],
            &[30, 6, 1, 2, 3, 4, 1, 148, 4, 0, 0, 0],
        ];
        for n in 0..200_usize {
            let mtu = random.i32(552..1_600);
            outer.mtu(mtu);
            let options = options[n % 4];
            let addresses = [Ipv4Addr::new(10, 0, 1, 2), Ipv4Addr::new(10, 0, 2, 2)];
            let len = random.u16(mtu as u16..8_000);
            let payload: Vec<u8> = std::iter::repeat_with(|| random.u8(..))
                .take(len.into())
                .collect();
            let mut octets = [inner.mac(), SOURCE_MAC].concat();
            octets.extend(ipv4_header(89, options, len, addresses, &mut random));
            octets.extend(payload);
            inner.write(&octets);
            let mut packet = parse(&mut pool, &octets, Offload::NONE);
            assert!(packet.decrement_ttl());
            let mut ours = Vec::new();
            let mut keep = |packet: Packet| ours.push(packet.ip().to_vec());
            let _ = fragment_ipv4(packet, mtu as usize, &mut pool, &mut keep);
            let theirs = outer.frames([8, 0], ours.len());
            assert_eq!(theirs.len(), ours.len(), "MTU {mtu}");
            for (ours, theirs) in ours.iter().zip(&theirs) {
                assert_eq!(ours, &theirs[ETHERNET_HEADER..], "MTU {mtu}, {options:?}");
            }
        }
    });
}
}
