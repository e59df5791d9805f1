//! Bursts handed to real kernels as one batch.

use std::thread;
use std::time::Instant;

use nos_relay::data::device::{DeviceKind, Egress, FrameDevice, Slot, Uring};
use nos_relay::lab::testbed::LabNamespace;
use nos_shim::drop::DropReason;
use nos_shim::frame::{Burst, Frame, FramePool, MAX_FRAME, Offload};

use crate::harness::{KERNEL, LIMIT, US, arp_request, every_kind, udp_datagram, udp_socket};
use crate::support::lab_test;

/// A device, and a ring of this thread that has its file.
struct Ringed {
    device: Box<dyn FrameDevice>,
    pool: FramePool,
    uring: Uring,
    slot: Slot,
}

impl Ringed {
    /// `None` where there is no ring; says so.
    fn new(device: Box<dyn FrameDevice>) -> Option<Self> {
        let opened = Uring::open();
        let mut uring = opened
            .inspect_err(|error| println!("skipped: io_uring: {error}"))
            .ok()?;
        uring.enable();
        let kind = device.kind();
        let Some(slot) = uring.slot(kind, device.fd()) else {
            assert_ne!(kind, DeviceKind::Packet);
            println!("skipped: {kind}: no RWF_NOWAIT");
            return None;
        };
        let pool = FramePool::new(256, MAX_FRAME);
        Some(Self {
            device,
            pool,
            uring,
            slot,
        })
    }

    /// Sends frames with these payloads, and checks that each is accounted for. Returns how many were
    /// taken, and how the device is.
    fn send(&mut self, frames: impl IntoIterator<Item = Vec<u8>>) -> (usize, Egress) {
        let mut burst: Burst = frames
            .into_iter()
            .map(|octets| self.pool.copy_from(&octets).unwrap())
            .collect();
        let (count, before) = (burst.len(), self.device.counters().sent);
        let batch = &mut self.uring.batch(self.slot);
        let sent = self.device.send(&mut burst, &mut self.pool, Some(batch));
        assert!(burst.is_empty());
        assert_eq!(sent.frames + sent.dropped, count);
        let after = self.device.counters().sent;
        assert_eq!(after.frames - before.frames, sent.frames as u64);
        assert_eq!(
            after.drops.total() - before.drops.total(),
            sent.dropped as u64
        );
        (sent.frames, sent.egress)
    }

    /// All buffers are in the pool again, and the ring works.
    fn check(mut self) {
        assert_eq!(self.uring.report().failed, None);
        let all: Vec<Frame> = std::iter::from_fn(|| self.pool.alloc()).collect();
        assert_eq!(all.len(), 256);
    }
}

/// Datagrams of different lengths, so that they make no runs, numbered from `first` on.
fn datagrams(first: u32, count: u32) -> impl Iterator<Item = Vec<u8>> {
    (first..first + count).map(|n| {
        let mut payload = n.to_be_bytes().to_vec();
        payload.resize(if n % 2 == 0 { 40 } else { 60 }, 0);
        udp_datagram(&payload)
    })
}

/// The numbers of the datagrams that have come, in their order.
fn numbers(socket: &std::net::UdpSocket) -> Vec<u32> {
    socket.set_nonblocking(true).unwrap();
    let mut octets = [0; 100];
    std::iter::from_fn(|| socket.recv(&mut octets).ok().map(|_| octets))
        .map(|octets| u32::from_be_bytes(*octets.first_chunk().unwrap()))
        .collect()
}

/// Waits for datagrams that are on their way through the kernel, until as many have come.
fn await_numbers(socket: &std::net::UdpSocket, count: usize) -> Vec<u32> {
    let deadline = Instant::now() + LIMIT;
    let mut all = vec![];
    while all.len() < count {
        assert!(Instant::now() < deadline, "{} of {count}", all.len());
        all.extend(numbers(socket));
        thread::yield_now();
    }
    all
}

lab_test! {
    fn a_burst_comes_whole_and_in_order() {
        for (lab, device, _others) in every_kind() {
            let kind = device.kind();
            let socket = udp_socket(&lab);
            let Some(mut ringed) = Ringed::new(device) else { continue };
            let mut sent = 0;
            for count in [1, 3, 4, 5, 64, 2, 64] {
                assert_eq!(ringed.send(datagrams(sent, count)), (count as usize, Egress::Ready));
                sent += count;
            }
            let came = await_numbers(&socket, sent as usize);
            assert_eq!(came, (0..sent).collect::<Vec<_>>(), "{kind}");
            let report = ringed.uring.report();
            assert_eq!((report.batches, report.frames), (4, 4 + 5 + 64 + 64), "{kind}");
            ringed.check();
        }
    }
}

lab_test! {
    fn one_frame_that_is_refused_does_not_lose_the_others() {
        for (lab, device, _others) in every_kind() {
            let kind = device.kind();
            let socket = udp_socket(&lab);
            let Some(mut ringed) = Ringed::new(device) else { continue };
            let mut frames: Vec<_> = datagrams(0, 8).collect();
            frames[3] = vec![1, 2, 3];
            assert_eq!(ringed.send(frames), (7, Egress::Ready), "{kind}");
            assert_eq!(await_numbers(&socket, 7), [0, 1, 2, 4, 5, 6, 7], "{kind}");
            let drops = ringed.device.counters().sent.drops;
            assert_eq!(drops.of(DropReason::DeviceError), 1, "{kind}");
            ringed.check();
        }
    }
}

lab_test! {
    fn runs_of_datagrams_are_messages_of_a_batch() {
        for (lab, device, _others) in every_kind() {
            let kind = device.kind();
            if device.capabilities().is_empty() {
                continue;
            }
            let socket = udp_socket(&lab);
            let Some(mut ringed) = Ringed::new(device) else { continue };
            // Four runs of 8, each with a longer datagram behind it.
            let frames = (0..36).map(|n: u32| {
                let mut payload = n.to_be_bytes().to_vec();
                payload.resize(if n % 9 == 8 { 90 } else { 40 }, 0);
                udp_datagram(&payload)
            });
            let mut burst: Burst = frames
                .map(|octets| ringed.pool.copy_from(&octets).unwrap())
                .collect();
            for frame in &mut burst {
                let checksum = nos_shim::frame::Checksum::Verified;
                frame.set_offload(Offload { checksum, ..Offload::NONE });
            }
            let batch = &mut ringed.uring.batch(ringed.slot);
            let sent = ringed.device.send(&mut burst, &mut ringed.pool, Some(batch));
            assert_eq!((sent.frames, sent.dropped), (36, 0), "{kind}");
            assert_eq!(ringed.uring.report().frames, 36, "{kind}");
            assert_eq!(await_numbers(&socket, 36), (0..36).collect::<Vec<_>>(), "{kind}");
            ringed.check();
        }
    }
}

/// Where a device's link is set down and up.
fn link<'a>(lab: &'a LabNamespace, others: &'a [LabNamespace]) -> (&'a LabNamespace, &'static str) {
    others.first().map_or((lab, "eth0"), |host| (host, "peer"))
}

/// Gives what the kernel lost with its link back.
fn again(lab: &LabNamespace) {
    lab.wait_operational("eth0", LIMIT).unwrap();
    let us = std::net::IpAddr::from(crate::harness::US_V4);
    // A neighbor that is configured goes with the link.
    let _ = lab.add_neighbor("eth0", us, US);
    assert_eq!(lab.link("eth0").unwrap().unwrap().mac, Some(KERNEL));
}

lab_test! {
    fn a_link_that_is_down_takes_nothing_and_then_all() {
        for (lab, device, others) in every_kind() {
            let kind = device.kind();
            let socket = udp_socket(&lab);
            let Some(mut ringed) = Ringed::new(device) else { continue };
            let (place, interface) = link(&lab, &others);
            for round in 0..3 {
                place.set_down(interface).unwrap();
                for _ in 0..3 {
                    assert_eq!(ringed.send(datagrams(0, 20)), (0, Egress::Down), "{kind}");
                }
                place.set_up(interface).unwrap();
                place.wait_operational(interface, LIMIT).unwrap();
                again(&lab);
                let first = 100 * round;
                assert_eq!(ringed.send(datagrams(first, 20)), (20, Egress::Ready), "{kind}");
                let expected: Vec<_> = (first..first + 20).collect();
                assert_eq!(await_numbers(&socket, 20), expected, "{kind}");
            }
            let drops = ringed.device.counters().sent.drops;
            assert_eq!(drops.of(DropReason::DeviceGone), 180, "{kind}");
            ringed.check();
        }
    }
}

lab_test! {
    fn a_link_that_flaps_under_batches_costs_counted_frames() {
        for (lab, device, others) in every_kind() {
            let kind = device.kind();
            let socket = udp_socket(&lab);
            let Some(mut ringed) = Ringed::new(device) else { continue };
            let (place, interface) = link(&lab, &others);
            let mut came = vec![];
            thread::scope(|scope| {
                let flaps = scope.spawn(|| {
                    for _ in 0..20 {
                        place.set_down(interface).unwrap();
                        place.set_up(interface).unwrap();
                    }
                });
                let mut first = 0;
                while !flaps.is_finished() {
                    let (_, egress) = ringed.send(datagrams(first, 32));
                    assert!(matches!(egress, Egress::Ready | Egress::Down), "{kind}: {egress:?}");
                    first += 32;
                    came.extend(numbers(&socket));
                }
            });
            assert!(came.is_sorted_by(|a, b| a < b), "{kind}: out of order, or twice");
            ringed.check();
        }
    }
}

lab_test! {
    fn an_interface_that_is_deleted_under_batches_is_gone() {
        for (lab, device, _others) in every_kind() {
            let kind = device.kind();
            let Some(mut ringed) = Ringed::new(device) else { continue };
            let deadline = Instant::now() + LIMIT;
            thread::scope(|scope| {
                scope.spawn(|| lab.delete_link("eth0").unwrap());
                loop {
                    let frames = (0..32).map(|_| arp_request());
                    match ringed.send(frames).1 {
                        Egress::Gone(_) => break,
                        // On its way out it is down first.
                        Egress::Ready | Egress::Down => {}
                        Egress::Adapt => panic!("{kind} adapts"),
                    }
                    assert!(Instant::now() < deadline, "{kind} is not gone");
                }
            });
            assert!(matches!(ringed.send((0..32).map(|_| arp_request())), (0, Egress::Gone(_))));
            assert_eq!(ringed.uring.report().failed, None, "{kind}");
        }
    }
}
