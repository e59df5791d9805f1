//! Every error that the kernel may answer the system calls of a device with, injected by seccomp into
//! one thread, and what is to come of it: no spin, no loss without a reason, no end of the thread.
//!
//! The filter answers in the place of the kernel, always and the same. What comes once only, as `EINTR`
//! does, is beside the code (`data/device/character.rs`, `packet/messages.rs`), as are the answers of
//! io_uring to single frames (`uring/batch/tests.rs`).

use std::os::fd::{AsRawFd, RawFd};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Instant;

use nix::errno::Errno;
use nos_relay::data::device::{
    DeviceKind, Egress, FrameDevice, LinkState, Next, OpenError, PacketOptions, PacketSocket,
    Shown, Uring, open_tap,
};
use nos_relay::data::engine::Engine;
use nos_relay::data::event_loop::{Event, EventLoop, Listener};
use nos_relay::data::relay::Relay;
use nos_relay::lab::testbed::veth;
use nos_shim::channel::pair;
use nos_shim::drop::DropReason;
use nos_shim::frame::{Burst, Frame, FramePool, MAX_FRAME};
use nos_shim::ident::{AttachmentId, Interface};
use nos_shim::offload::Capabilities;
use nos_shim::vlan::VlanId;

use crate::harness::{LIMIT, Polled, every_kind, quiet, taps, to_us, udp_datagram, udp_socket};
use crate::support::lab_test;

/// What [`every_errno`] goes through: all that Linux has numbers for (`errno.h`), and that it may
/// answer a caller with.
const LAST: i32 = 133;

fn every_errno() -> impl Iterator<Item = Errno> {
    let all = (1..=LAST).map(Errno::from_raw);
    // The one comes once; the other is no number.
    all.filter(|&errno| errno != Errno::EINTR && errno != Errno::UnknownErrno)
}

/// A system call, of one descriptor (or other first argument) or of all.
#[derive(Clone, Copy)]
struct Call(libc::c_long, Option<RawFd>);

/// Runs `work` on a thread of its own where these calls fail with `errno`.
fn failing<T: Send>(calls: &[Call], errno: Errno, work: impl FnOnce() -> T + Send) -> T {
    let filter = filter(calls, errno);
    thread::scope(|scope| {
        let thread = scope.spawn(move || {
            install(&filter);
            work()
        });
        thread.join().unwrap()
    })
}

/// Classic BPF over `struct seccomp_data`: the call's number, and the low half of its first argument.
fn filter(calls: &[Call], errno: Errno) -> Vec<libc::sock_filter> {
    const LOAD: u16 = 0x20;
    const EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const NUMBER: u32 = 0;
    const FIRST_ARGUMENT: u32 = if cfg!(target_endian = "little") {
        16
    } else {
        20
    };
    const ALLOW: u32 = 0x7fff_0000;
    const ERRNO: u32 = 0x0005_0000;
    let instruction = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let refuse = instruction(RETURN, 0, 0, ERRNO | errno as u32);
    let mut program = vec![];
    for &Call(number, of) in calls {
        let number = u32::try_from(number).unwrap();
        program.push(instruction(LOAD, 0, 0, NUMBER));
        match of {
            None => program.push(instruction(EQUAL, 0, 1, number)),
            Some(fd) => {
                program.push(instruction(EQUAL, 0, 3, number));
                program.push(instruction(LOAD, 0, 0, FIRST_ARGUMENT));
                program.push(instruction(EQUAL, 0, 1, fd.cast_unsigned()));
            }
        }
        program.push(refuse);
    }
    program.push(instruction(RETURN, 0, 0, ALLOW));
    program
}

/// From here on, for this thread.
fn install(program: &[libc::sock_filter]) {
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).unwrap(),
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: takes numbers.
    let bound = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    assert_eq!(bound, 0, "{}", Errno::last());
    // SAFETY: the kernel copies the program, which outlives the call.
    let set = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0,
            &raw const program,
        )
    };
    assert_eq!(set, 0, "{}", Errno::last());
}

/// The call by which a device receives.
fn receives(device: &dyn FrameDevice) -> Call {
    let call = match device.kind() {
        DeviceKind::Packet => libc::SYS_recvmmsg,
        _ => libc::SYS_read,
    };
    Call(call, device.fd().map(|fd| fd.as_raw_fd()))
}

/// The calls by which a device sends, io_uring left out.
fn sends(device: &dyn FrameDevice) -> Vec<Call> {
    let fd = device.fd().map(|fd| fd.as_raw_fd());
    match device.kind() {
        DeviceKind::Packet => vec![Call(libc::SYS_sendmmsg, fd)],
        _ => vec![Call(libc::SYS_write, fd), Call(libc::SYS_writev, fd)],
    }
}

/// What a device has to say when all of its reads fail. A TAP knows errors after which none will ever
/// succeed; all others, if they do not end, are the end as well.
fn expected_next(errno: Errno) -> Next {
    match errno {
        Errno::EAGAIN => Next::Drained,
        other => Next::Gone(other),
    }
}

lab_test! {
    /// Whatever a read says, the call returns, and what waits in the kernel is still there.
    fn reading_fails_for_every_reason() {
        for (lab, device, _others) in every_kind() {
            let kind = device.kind();
            let mut polled = Polled::new(device);
            polled.drain();
            let socket = udp_socket(&lab);
            for n in 0..3 {
                socket.send_to(&[n], to_us()).unwrap();
            }
            assert!(polled.event(LIMIT));
            let device = &mut *polled.device;
            let pool = &mut polled.pool;
            let mut each = every_errno().collect::<Vec<_>>();
            // A packet socket that has gone once does not come back.
            if kind == DeviceKind::Packet {
                each.retain(|&errno| errno == Errno::EAGAIN);
            }
            for errno in each {
                let call = receives(device);
                let (received, frames) = failing(&[call], errno, || {
                    let mut burst = Burst::new();
                    let received = device.recv_burst(pool, &mut burst, 64);
                    (received, burst.len())
                });
                assert_eq!((received.frames, frames), (0, 0), "{kind}: {errno}");
                assert_eq!(received.next, expected_next(errno), "{kind}: {errno}");
            }
            let all = polled.account(0, 3);
            let order: Vec<_> = all.iter().map(|frame| frame.bytes()[42]).collect();
            assert_eq!(order, [0, 1, 2], "{kind}");
        }
    }
}

lab_test! {
    /// Of a packet socket an error is told once; one that is told again and again is the end, which is
    /// told in every later call, and nothing is sent to it any more.
    fn a_packet_socket_that_fails_for_ever_has_gone() {
        let lab = quiet("gone");
        let host = quiet("host");
        veth((&lab, "eth0"), (&host, "peer")).unwrap();
        for errno in every_errno().filter(|&errno| errno != Errno::EAGAIN) {
            let open = || PacketSocket::open("peer", PacketOptions::default()).unwrap();
            let mut device = host.run(open).unwrap();
            let mut pool = FramePool::new(64, MAX_FRAME);
            let call = receives(&device);
            let received = failing(&[call], errno, || {
                device.recv_burst(&mut pool, &mut Burst::new(), 64)
            });
            assert_eq!(received.next, Next::Gone(errno));
            let received = device.recv_burst(&mut pool, &mut Burst::new(), 64);
            assert_eq!((received.frames, received.next), (0, Next::Gone(errno)));
            let mut burst: Burst = pool.copy_from(&udp_datagram(b"x")).into_iter().collect();
            let sent = device.send_burst(&mut burst, &mut pool);
            assert_eq!((sent.dropped, sent.egress), (1, Egress::Gone(errno)));
            assert_eq!(device.counters().sent.drops.of(DropReason::DeviceGone), 1);
        }
    }
}

/// What becomes of three frames that the kernel refuses with `errno`: for what reason they are
/// dropped, and how the device is then.
fn expected_drop(errno: Errno) -> (DropReason, Egress) {
    match errno {
        Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM => (DropReason::DeviceFull, Egress::Ready),
        Errno::EIO | Errno::ENETDOWN => (DropReason::DeviceGone, Egress::Down),
        Errno::EBADF | Errno::EBADFD | Errno::ENODEV | Errno::ENXIO => {
            (DropReason::DeviceGone, Egress::Gone(errno))
        }
        _ => (DropReason::DeviceError, Egress::Ready),
    }
}

lab_test! {
    /// Each frame has one reason, each buffer comes back, and the device works when the kernel does.
    fn writing_fails_for_every_reason() {
        for (lab, device, others) in every_kind() {
            let kind = device.kind();
            let mut devices = vec![device];
            let socket = udp_socket(&lab);
            for errno in every_errno() {
                let device = &mut **devices.last_mut().unwrap();
                let mut pool = FramePool::new(8, MAX_FRAME);
                // Of different lengths, so that they are no run.
                let mut burst: Burst = [&b"1"[..], b"22", b"333"]
                    .into_iter()
                    .map(|payload| pool.copy_from(&udp_datagram(payload)).unwrap())
                    .collect();
                let calls = sends(device);
                let before = device.counters().sent;
                let sent = failing(&calls, errno, || device.send_burst(&mut burst, &mut pool));
                let after = device.counters().sent;
                let (reason, egress) = expected_drop(errno);
                let told = (sent.frames, sent.dropped, sent.egress);
                assert_eq!(told, (0, 3, egress), "{kind}: {errno}");
                assert_eq!(after.frames, before.frames, "{kind}: {errno}");
                let counted = after.drops.of(reason) - before.drops.of(reason);
                assert_eq!(counted, 3, "{kind}: {errno}: {:?}", after.drops);
                assert!(burst.is_empty());
                let buffers: Vec<Frame> = std::iter::from_fn(|| pool.alloc()).collect();
                assert_eq!(buffers.len(), 8, "{kind}: {errno}");
                if let (DeviceKind::Packet, Egress::Gone(_)) = (kind, egress) {
                    // It does not come back: another one goes on.
                    let host = others.first().unwrap();
                    let open = || PacketSocket::open("peer", PacketOptions::default()).unwrap();
                    devices.push(Box::new(host.run(open).unwrap()));
                }
            }
            let mut polled = Polled::new(devices.pop().unwrap());
            let frame = polled.frame(&udp_datagram(b"works"));
            let sent = polled.send([frame]);
            assert_eq!((sent.frames, sent.egress), (1, Egress::Ready), "{kind}");
            let mut octets = [0; 10];
            assert_eq!(socket.recv(&mut octets).unwrap(), 5, "{kind}");
        }
    }
}

lab_test! {
    /// A run of datagrams that is refused goes out one by one, each with its own answer.
    fn a_run_that_is_refused_for_every_reason_is_counted_frame_by_frame() {
        if !taps() {
            return;
        }
        let (lab, mut device, _others) = crate::harness::configured(
            crate::harness::tap(quiet("runs"), Capabilities::all()),
        );
        let socket = udp_socket(&lab);
        for errno in every_errno() {
            let fd = device.fd().map(|fd| fd.as_raw_fd());
            device.set_coalescing(true);
            let mut pool = FramePool::new(8, MAX_FRAME);
            let mut burst: Burst = (0..6)
                .map(|n| pool.copy_from(&udp_datagram(&[n; 100])).unwrap())
                .collect();
            let calls = [Call(libc::SYS_writev, fd)];
            let sent = failing(&calls, errno, || device.send_burst(&mut burst, &mut pool));
            let told = (sent.frames, sent.dropped, sent.egress);
            assert_eq!(told, (6, 0, Egress::Ready), "{errno}");
            let mut octets = [0; 200];
            for n in 0..6 {
                assert_eq!(socket.recv(&mut octets).unwrap(), 100, "{errno}");
                assert_eq!(octets[0], n, "{errno}");
            }
        }
    }
}

lab_test! {
    /// A ring that the kernel does not serve any more is given up, and all that it has not taken leaves
    /// by plain calls. `EINTR` for ever as well: it is not waited out.
    fn a_ring_fails_for_every_reason_and_loses_nothing() {
        if let Err(error) = Uring::open() {
            println!("skipped: io_uring: {error}");
            return;
        }
        for (lab, mut device, _others) in every_kind() {
            let kind = device.kind();
            let socket = udp_socket(&lab);
            for errno in every_errno().chain([Errno::EINTR]) {
                let mut pool = FramePool::new(16, MAX_FRAME);
                let mut burst: Burst = (0..8_u8)
                    .map(|n| {
                        let payload = vec![n; 40 + 10 * usize::from(n % 2)];
                        pool.copy_from(&udp_datagram(&payload)).unwrap()
                    })
                    .collect();
                let enter = [Call(libc::SYS_io_uring_enter, None)];
                let result = failing(&enter, errno, || {
                    let mut uring = Uring::open().unwrap();
                    uring.enable();
                    let slot = uring.slot(kind, device.fd())?;
                    let batch = &mut uring.batch(slot);
                    let sent = device.send(&mut burst, &mut pool, Some(batch));
                    Some((sent, uring.report().failed))
                });
                let Some((sent, failed)) = result else {
                    println!("skipped: {kind}: no RWF_NOWAIT");
                    break;
                };
                let told = (sent.frames, sent.dropped, sent.egress);
                assert_eq!(told, (8, 0, Egress::Ready), "{kind}: {errno}");
                assert!(failed.is_some(), "{kind}: {errno}");
                let mut octets = [0; 100];
                for n in 0..8 {
                    let length = socket.recv(&mut octets).unwrap();
                    assert_eq!((length > 0, octets[0]), (true, n), "{kind}: {errno}");
                }
                let buffers: Vec<Frame> = std::iter::from_fn(|| pool.alloc()).collect();
                assert_eq!(buffers.len(), 16, "{kind}: {errno}");
            }
        }
    }
}

lab_test! {
    /// What the control side asks of the kernel: nothing is known of an interface that cannot be asked
    /// for, and no frames are said to be lost.
    fn asking_fails_for_every_reason() {
        for (_lab, device, _others) in every_kind() {
            let kind = device.kind();
            let inspector = device.inspector();
            let calls = [libc::SYS_ioctl, libc::SYS_getsockname, libc::SYS_getsockopt];
            let calls = calls.map(|call| Call(call, None));
            for errno in every_errno() {
                let told = failing(&calls, errno, || (inspector.link(), inspector.kernel_drops()));
                assert_eq!(told, (LinkState::Gone, 0), "{kind}: {errno}");
                for shown in [Shown::Only(VlanId::new(5).unwrap()), Shown::AllBut(Vec::new())] {
                    let options = [Call(libc::SYS_setsockopt, None)];
                    let told = failing(&options, errno, || inspector.show(&shown));
                    let is_packet = kind == DeviceKind::Packet;
                    assert_eq!(told.err(), is_packet.then_some(errno), "{kind}: {shown:?}");
                }
            }
            assert_eq!(inspector.link(), LinkState::Up, "{kind}");
        }
    }
}

/// The steps of opening a device, by call, and what errors call them. The first that a call takes part
/// in is the one that fails. The socket by which the C library looks for the interface is another, for whose
/// failure it has reasons of its own.
const PACKET_STEPS: [(Call, &str); 4] = [
    (Call(libc::SYS_socket, Some(libc::AF_PACKET)), ""),
    (
        Call(libc::SYS_setsockopt, None),
        "turn on virtio-net headers",
    ),
    (Call(libc::SYS_bind, None), "bind to the interface"),
    (
        Call(libc::SYS_getsockname, None),
        "ask for the hardware type",
    ),
];

lab_test! {
    /// The error names the device, the step and the reason; what was made for it is gone.
    fn opening_fails_for_every_reason() {
        let lab = quiet("open");
        let host = quiet("host");
        veth((&lab, "eth0"), (&host, "peer")).unwrap();
        let check = |error: &OpenError, name: &str, step: &str, errno: Errno| {
            let OpenError::Refused { action, source, .. } = error else {
                panic!("{errno}: {error}");
            };
            assert_eq!(*source, errno, "{error}");
            assert!(action.contains(step), "{errno}: {error}");
            let text = error.to_string();
            assert!(text.contains(name) && text.contains(errno.desc()), "{text}");
        };
        for errno in every_errno() {
            for (call, step) in PACKET_STEPS {
                let open = || {
                    failing(&[call], errno, || {
                        PacketSocket::open("peer", PacketOptions::default()).unwrap_err()
                    })
                };
                let error = host.run(open).unwrap();
                check(&error, "peer", step, errno);
            }
        }
        if !taps() {
            return;
        }
        for offload in [Capabilities::all(), Capabilities::empty()] {
            for errno in every_errno() {
                for call in [libc::SYS_openat, libc::SYS_ioctl] {
                    let open = || {
                        failing(&[Call(call, None)], errno, || open_tap("t0", offload).unwrap_err())
                    };
                    let error = lab.run(open).unwrap();
                    check(&error, "t0", "", errno);
                }
            }
        }
        assert!(lab.link("t0").unwrap().is_none());
    }
}

struct Queue(std::sync::mpsc::Sender<Event>);

impl Listener for Queue {
    fn notify(&self, event: Event) {
        let _ = self.0.send(event);
    }
}

lab_test! {
    /// A data thread gives up the device whose reads fail, says so, and serves the others on.
    fn a_data_thread_outlives_its_devices() {
        let bad = Interface::Attachment(AttachmentId::new(0, 0));
        let good = Interface::Attachment(AttachmentId::new(1, 0));
        let errors = [Errno::EPERM, Errno::EIO, Errno::EBADFD, Errno::ENOMEM, Errno::EFAULT];
        for errno in errors {
            for (lab, device, _others) in every_kind() {
                let kind = device.kind();
                let calls = [receives(&*device)];
                let (other_lab, other, _more) =
                    crate::harness::configured(crate::harness::packet(quiet("good"), PacketOptions::default()));
                let pool = FramePool::new(256, MAX_FRAME);
                let (relay, _nos) = pair(4);
                let engine = Engine::relay_side(Relay::new(relay, pool.clone()));
                let (sender, events) = channel();
                let listener = Box::new(Queue(sender));
                let (event_loop, handle) =
                    EventLoop::new(engine, pool, Instant::now(), listener).unwrap();
                let program = filter(&calls, errno);
                let thread = thread::spawn(move || {
                    install(&program);
                    event_loop.run()
                });
                handle.add_device(good, other).unwrap();
                handle.add_device(bad, device).unwrap();
                match events.recv_timeout(LIMIT).unwrap() {
                    Event::DeviceGone { interface, device, .. } => {
                        assert_eq!(interface, bad, "{kind}: {errno}");
                        assert_eq!(device.kind(), kind);
                    }
                    other => panic!("{kind}: {errno}: {other:?}"),
                }
                udp_socket(&other_lab).send_to(b"x", to_us()).unwrap();
                let deadline = Instant::now() + LIMIT;
                loop {
                    let devices = handle.devices().unwrap();
                    assert_eq!(devices.len(), 1, "{kind}: {errno}");
                    if devices[0].counters.received.frames > 0 {
                        break;
                    }
                    assert!(Instant::now() < deadline, "{kind}: {errno}: nothing is received");
                    thread::yield_now();
                }
                handle.stop();
                let ended = thread.join().unwrap();
                assert!(ended.result.is_ok() && ended.devices.len() == 1);
                drop(lab);
            }
        }
    }
}

lab_test! {
    /// Without epoll there is nothing to wait on. The thread ends with that error, and hands its devices
    /// back; an interrupted wait is none.
    fn a_data_thread_whose_epoll_fails_says_so_and_hands_its_devices_over() {
        for errno in [Errno::EBADF, Errno::EFAULT, Errno::EINVAL, Errno::ENOMEM, Errno::EINTR] {
            let (_lab, device, _others) = crate::harness::packet(quiet("epoll"), PacketOptions::default());
            let pool = FramePool::new(64, MAX_FRAME);
            let (relay, _nos) = pair(4);
            let engine = Engine::relay_side(Relay::new(relay, pool.clone()));
            let (sender, _events) = channel();
            let (event_loop, handle) =
                EventLoop::new(engine, pool, Instant::now(), Box::new(Queue(sender))).unwrap();
            let waits = [libc::SYS_epoll_pwait, libc::SYS_epoll_pwait2];
            #[cfg(target_arch = "x86_64")]
            let waits = [&waits[..], &[libc::SYS_epoll_wait]].concat();
            let calls: Vec<_> = waits.iter().map(|&call| Call(call, None)).collect();
            let program = filter(&calls, errno);
            let (go, begin) = channel::<()>();
            let thread = thread::spawn(move || {
                install(&program);
                let _ = begin.recv();
                event_loop.run()
            });
            // It is there before the first wait: the command waits for the thread.
            thread::scope(|scope| {
                let added = scope.spawn(|| handle.add_device(Interface::Attachment(AttachmentId::new(0, 0)), device));
                go.send(()).unwrap();
                if errno == Errno::EINTR {
                    added.join().unwrap().unwrap();
                    handle.stop();
                } else {
                    let _ = added.join().unwrap();
                }
            });
            let ended = thread.join().unwrap();
            match ended.result {
                Ok(()) => assert_eq!(errno, Errno::EINTR),
                Err(error) => assert_eq!(error.raw_os_error(), Some(errno as i32)),
            }
            assert!(ended.devices.len() <= 1);
            if errno == Errno::EINTR {
                assert_eq!(ended.devices.len(), 1);
            }
        }
    }
}
