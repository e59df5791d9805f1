use std::collections::BTreeMap;

use nos_shim::frame::{Burst, Checksum, Ecn, FramePool, GsoKind, Offload, Segmentation};
use nos_shim::offload::Capabilities;
use proptest::prelude::*;

use super::super::super::character::handle_refusal;
use super::super::super::{Sent, Traffic};
use super::*;

/// What a kernel that answers as it was told has taken, by the first octet of each frame; and with
/// what the device would go on by plain calls.
#[derive(Clone, Debug, Default)]
struct Script {
    /// Frames that are refused for ever.
    refused: BTreeMap<u8, Errno>,
    /// Runs that have this frame first are refused.
    refused_runs: BTreeMap<u8, Errno>,
    taken: Vec<u8>,
    /// The ring breaks when this operation of a batch is due: submitted with those behind it up to
    /// the second number.
    breaks: Option<(usize, usize)>,
    batches: usize,
    chained: usize,
}

impl Script {
    /// Takes a message that consists of these frames, or refuses it.
    fn message(&mut self, frames: &[u8]) -> Result<(), Errno> {
        let answer = match frames {
            [one] => self.refused.get(one),
            [first, ..] => self.refused_runs.get(first),
            [] => None,
        };
        match answer {
            Some(&errno) => Err(errno),
            None => {
                self.taken.extend(frames);
                Ok(())
            }
        }
    }
}

/// The marks of the frames that an operation hands over: one in each area.
unsafe fn marks(operation: Operation) -> Vec<u8> {
    let of_areas = |areas: *const libc::iovec, count: usize| {
        // SAFETY: by the caller's word the operation is one that a batch has made.
        let areas = unsafe { core::slice::from_raw_parts(areas, count) };
        // SAFETY: likewise.
        let last =
            |area: &libc::iovec| unsafe { *area.iov_base.cast::<u8>().add(area.iov_len - 1) };
        areas.iter().map(last).collect()
    };
    match operation {
        Operation::Write { octets, len } | Operation::Send { octets, len } => {
            // SAFETY: likewise.
            vec![unsafe { *octets.add(len as usize - 1) }]
        }
        Operation::WriteVector { areas, count } => of_areas(areas, count as usize),
        Operation::SendMessage(header) => {
            // SAFETY: likewise.
            let header = unsafe { &*header };
            of_areas(header.msg_iov, header.msg_iovlen)
        }
    }
}

impl Carrier for Script {
    unsafe fn carry_out(
        &mut self,
        _slot: Slot,
        operations: &[Operation],
        chained: bool,
        outcomes: &mut [Outcome; BATCH],
    ) -> Result<(), Broken> {
        assert!(operations.len() >= LEAST);
        self.batches += 1;
        self.chained += usize::from(chained);
        let mut canceled = false;
        outcomes[..operations.len()].fill(Outcome::Untried);
        for (n, &operation) in operations.iter().enumerate() {
            if let Some((_, submitted)) = self.breaks.filter(|&(at, _)| at == n) {
                let submitted = submitted.min(operations.len()).max(n);
                outcomes[n..submitted].fill(Outcome::Unknown);
                return Err(Broken(Errno::EPERM));
            }
            // SAFETY: the caller says so.
            let frames = unsafe { marks(operation) };
            outcomes[n] = match canceled {
                true => Outcome::Refused(Errno::ECANCELED),
                false => match self.message(&frames) {
                    Ok(()) => Outcome::Taken,
                    Err(errno) => Outcome::Refused(errno),
                },
            };
            canceled |= chained && outcomes[n] != Outcome::Taken;
        }
        Ok(())
    }
}

fn whole(frame: &mut Frame) -> Option<&mut [u8]> {
    Some(frame.bytes_mut())
}

fn mark(frame: &Frame) -> u8 {
    *frame.bytes().last().unwrap()
}

/// Of a kernel that has completed a checksum before.
fn proven_checksums() -> Offloads {
    let mut offloads = Offloads::new(Capabilities::all());
    offloads.taken(Offload {
        checksum: partial(34, 6),
        segmentation: None,
    });
    offloads
}

/// A device as TAPs are, on a kernel of a script.
struct Device {
    script: Script,
    offloads: Offloads,
    traffic: Traffic,
    messages: Box<Messages>,
    how: How,
    broken: bool,
}

impl Device {
    fn new(script: Script, how: How) -> Self {
        Self {
            script,
            offloads: proven_checksums(),
            traffic: Traffic::default(),
            messages: Messages::new(),
            how,
            broken: false,
        }
    }

    fn send(&mut self, burst: &mut Burst, pool: &mut FramePool, batched: bool) -> Sent {
        let mut traffic = self.traffic;
        let mut sending = Sending::new(burst, pool, &mut traffic);
        while !sending.waiting().is_empty() {
            if batched && !self.broken {
                let before = sending.done;
                let way = (self.how, whole as Area);
                let (messages, script) = (&mut self.messages, &mut self.script);
                let result = send(
                    messages,
                    script,
                    Slot(0),
                    way,
                    &mut self.offloads,
                    &mut sending,
                );
                self.broken = result.is_err();
                if sending.done > before {
                    continue;
                }
            }
            if !self.offloads.coalesces() || !self.send_run(&mut sending) {
                self.send_frame(&mut sending);
            }
            if sending.sent.egress == Egress::Adapt {
                break;
            }
        }
        let sent = sending.finish();
        self.traffic = traffic;
        sent
    }

    fn send_run(&mut self, sending: &mut Sending<'_>) -> bool {
        let waiting = sending.waiting();
        let length = run_length(waiting);
        if length < 2 {
            return false;
        }
        let marks: Vec<_> = waiting[..length].iter().map(mark).collect();
        match self.script.message(&marks) {
            Ok(()) => {
                self.offloads.taken(of_super_frame(GsoKind::Udp));
                (0..length).for_each(|_| sending.taken());
            }
            Err(Errno::EINVAL | Errno::EMSGSIZE) => self.offloads.set_coalescing(false),
            Err(_) => {}
        }
        sending
            .waiting()
            .first()
            .is_none_or(|frame| mark(frame) != marks[0])
    }

    fn send_frame(&mut self, sending: &mut Sending<'_>) {
        let Some(frame) = sending.front() else { return };
        let offload = frame.offload();
        match self.script.message(&[mark(frame)]) {
            Ok(()) => {
                self.offloads.taken(offload);
                sending.taken();
            }
            Err(Errno::EINVAL | Errno::EMSGSIZE) if self.offloads.refused(offload).is_some() => {
                sending.adapt();
            }
            Err(errno) => handle_refusal(sending, errno),
        }
    }
}

/// What a frame of a test is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Plain,
    Super(GsoKind),
    /// A datagram of the one flow that makes runs.
    Datagram,
}

fn partial(start: u16, offset: u16) -> Checksum {
    Checksum::Partial { start, offset }
}

fn of_super_frame(kind: GsoKind) -> Offload {
    Offload {
        checksum: partial(34, 16),
        segmentation: Some(Segmentation {
            kind,
            ecn: Ecn::Unmarked,
            size: 1000.try_into().unwrap(),
            tunnel: None,
        }),
    }
}

fn frame(pool: &mut FramePool, kind: Kind, number: u8) -> Frame {
    let mut octets = vec![0; 60];
    *octets.last_mut().unwrap() = number;
    let mut offload = Offload::NONE;
    match kind {
        Kind::Plain => {}
        Kind::Super(kind) => offload = of_super_frame(kind),
        Kind::Datagram => {
            octets[12..14].copy_from_slice(&[8, 0]);
            // Not to be fragmented, so that the identification means nothing.
            octets[14..24].copy_from_slice(&[0x45, 0, 0, 46, 0, 0, 0x40, 0, 64, 17]);
            octets[38..40].copy_from_slice(&26_u16.to_be_bytes());
            offload.checksum = partial(34, 6);
        }
    }
    let mut frame = pool.copy_from(&octets).unwrap();
    frame.set_offload(offload);
    frame
}

fn burst(pool: &mut FramePool, kinds: &[Kind]) -> Burst {
    let numbered = kinds.iter().zip(0..);
    numbered.map(|(&kind, n)| frame(pool, kind, n)).collect()
}

fn refusing(frames: &[(u8, Errno)]) -> Script {
    Script {
        refused: frames.iter().copied().collect(),
        ..Script::default()
    }
}

/// Sends a burst of so many plain frames; returns the device and what it said.
fn send_plain(count: usize, script: Script) -> (Device, Sent) {
    let mut pool = FramePool::new(256, 64);
    let mut burst = burst(&mut pool, &vec![Kind::Plain; count]);
    let mut device = Device::new(script, How::Write);
    let sent = device.send(&mut burst, &mut pool, true);
    assert!(burst.is_empty());
    (device, sent)
}

#[test]
fn few_frames_go_by_plain_calls() {
    for (count, batches) in [(1, 0), (3, 0), (4, 1), (64, 1)] {
        let (device, sent) = send_plain(count, Script::default());
        assert_eq!(device.script.batches, batches, "{count}");
        assert_eq!((sent.frames, sent.egress), (count, Egress::Ready));
        let all: Vec<u8> = (0..u8::try_from(count).unwrap()).collect();
        assert_eq!(device.script.taken, all);
    }
}

#[test]
fn each_refused_frame_is_dropped_for_its_own_reason() {
    let script = refusing(&[
        (1, Errno::EINVAL),
        (3, Errno::ENOBUFS),
        (4, Errno::EMSGSIZE),
        (6, Errno::ENOMEM),
    ]);
    let (device, sent) = send_plain(8, script);
    assert_eq!(device.script.taken, [0, 2, 5, 7]);
    assert_eq!(
        (sent.frames, sent.dropped, sent.egress),
        (4, 4, Egress::Ready)
    );
    let drops = device.traffic.drops;
    assert_eq!(drops.of(DropReason::DeviceError), 2);
    assert_eq!(drops.of(DropReason::DeviceFull), 2);
}

#[test]
fn room_that_comes_in_the_middle_is_used() {
    let script = refusing(&[(2, Errno::EAGAIN), (3, Errno::EAGAIN)]);
    let (device, sent) = send_plain(8, script);
    assert_eq!(device.script.taken, [0, 1, 4, 5, 6, 7]);
    assert_eq!((sent.frames, sent.egress), (6, Egress::Ready));
    assert_eq!(device.traffic.drops.of(DropReason::DeviceFull), 2);
}

#[test]
fn a_link_is_as_the_last_answer_says() {
    let down = [Errno::ENETDOWN, Errno::EIO];
    let gone = [Errno::ENXIO, Errno::EBADFD, Errno::ENODEV, Errno::EBADF];
    for errno in down {
        let all: Vec<_> = (0..8).map(|n| (n, errno)).collect();
        let (_, sent) = send_plain(8, refusing(&all));
        assert_eq!((sent.dropped, sent.egress), (8, Egress::Down));
        let (device, sent) = send_plain(8, refusing(&all[..5]));
        assert_eq!(device.script.taken, [5, 6, 7]);
        assert_eq!((sent.frames, sent.egress), (3, Egress::Ready));
        assert_eq!(device.traffic.drops.of(DropReason::DeviceGone), 5);
    }
    for errno in gone {
        let all: Vec<_> = (3..8).map(|n| (n, errno)).collect();
        let (device, sent) = send_plain(8, refusing(&all));
        assert_eq!((sent.frames, sent.egress), (3, Egress::Gone(errno)));
        assert_eq!(device.traffic.drops.of(DropReason::DeviceGone), 5);
        // Down before, and nothing but gone behind that.
        let mixed = [&all[..], &[(2, Errno::EIO)]].concat();
        let (_, sent) = send_plain(8, refusing(&mixed));
        assert_eq!((sent.frames, sent.egress), (2, Egress::Gone(errno)));
    }
}

/// Every error of a completion: all frames are refused with it, or one in the middle.
#[test]
fn every_answer_to_a_frame_is_counted_for_what_it_means() {
    for errno in (1..=133)
        .map(Errno::from_raw)
        .filter(|&it| it != Errno::UnknownErrno)
    {
        let (reason, egress) = match verdict(errno) {
            Verdict::Dropped(reason) => (reason, Egress::Ready),
            Verdict::Full => (DropReason::DeviceFull, Egress::Ready),
            Verdict::Lost(egress) => (DropReason::DeviceGone, egress),
        };
        let all: Vec<_> = (0..8).map(|n| (n, errno)).collect();
        let (device, sent) = send_plain(8, refusing(&all));
        assert_eq!(
            (sent.frames, sent.dropped, sent.egress),
            (0, 8, egress),
            "{errno}"
        );
        assert_eq!(device.traffic.drops.of(reason), 8, "{errno}");
        let (device, sent) = send_plain(8, refusing(&[(4, errno)]));
        let gone = matches!(egress, Egress::Gone(_));
        let expected = if gone { egress } else { Egress::Ready };
        assert_eq!(
            (sent.frames, sent.dropped, sent.egress),
            (7, 1, expected),
            "{errno}"
        );
        assert_eq!(device.traffic.drops.of(reason), 1, "{errno}");
    }
}

#[test]
fn an_unproven_kind_waits_for_a_plain_call() {
    use GsoKind::{TcpV4, TcpV6};
    let mut pool = FramePool::new(64, 64);
    let mut kinds = vec![Kind::Plain; 9];
    kinds[5] = Kind::Super(TcpV4);
    let mut first = burst(&mut pool, &kinds);
    let mut device = Device::new(Script::default(), How::Write);
    let _ = device.send(&mut first, &mut pool, true);
    // The five before it; by itself; the three behind.
    assert_eq!((device.script.batches, device.script.taken.len()), (1, 9));
    let _ = device.send(&mut burst(&mut pool, &kinds), &mut pool, true);
    assert_eq!(device.script.batches, 2, "all of them");

    // A kind that the kernel refuses is cut and sent again, with all behind it.
    kinds[5] = Kind::Super(TcpV6);
    device.script = refusing(&[(5, Errno::EINVAL)]);
    let mut refused = burst(&mut pool, &kinds);
    let sent = device.send(&mut refused, &mut pool, true);
    assert_eq!((sent.frames, sent.egress), (5, Egress::Adapt));
    assert_eq!(refused.iter().map(mark).collect::<Vec<_>>(), [5, 6, 7, 8]);
    assert_eq!(device.script.taken, [0, 1, 2, 3, 4]);
}

#[test]
fn a_checksum_waits_for_a_plain_call_until_one_was_completed() {
    for errno in [Errno::EINVAL, Errno::EMSGSIZE] {
        let mut pool = FramePool::new(64, 64);
        let mut all = burst(&mut pool, &[Kind::Plain; 9]);
        all[5].set_offload(Offload {
            checksum: partial(34, 6),
            segmentation: None,
        });
        let mut device = Device::new(refusing(&[(5, errno)]), How::Write);
        device.offloads = Offloads::new(Capabilities::all());
        let sent = device.send(&mut all, &mut pool, true);
        assert_eq!((sent.frames, sent.egress), (5, Egress::Adapt));
        assert_eq!(device.offloads.refusals().checksum, 1);
        assert!(device.offloads.capabilities().is_empty());
    }
}

#[test]
fn what_a_batch_is_refused_of_a_kind_is_counted_and_the_kind_kept() {
    use GsoKind::{TcpV4, TcpV6, Udp};
    for errno in [Errno::EINVAL, Errno::EMSGSIZE] {
        for kind in [TcpV4, TcpV6, Udp] {
            let mut pool = FramePool::new(64, 64);
            let mut kinds = vec![Kind::Plain; 9];
            kinds[5] = Kind::Super(kind);
            let mut device = Device::new(Script::default(), How::Write);
            let _ = device.send(&mut burst(&mut pool, &kinds), &mut pool, true);
            device.script = refusing(&[(5, errno)]);
            let sent = device.send(&mut burst(&mut pool, &kinds), &mut pool, true);
            assert_eq!(
                (sent.frames, sent.dropped, sent.egress),
                (8, 1, Egress::Ready)
            );
            let refusals = device.offloads.refusals();
            let counted = [refusals.tso4, refusals.tso6, refusals.uso];
            assert_eq!(
                counted,
                [TcpV4, TcpV6, Udp].map(|other| u64::from(other == kind))
            );
            assert_eq!(device.offloads.capabilities(), Capabilities::all());
        }
    }
}

#[test]
fn a_refused_run_goes_out_one_by_one_in_its_place() {
    for how in [How::Write, How::Send] {
        let mut pool = FramePool::new(64, 64);
        let kinds = [
            &[Kind::Plain; 4][..],
            &[Kind::Datagram; 6],
            &[Kind::Plain; 5],
        ]
        .concat();
        let mut all = burst(&mut pool, &kinds);
        let mut device = Device::new(Script::default(), how);
        device.script.refused_runs.insert(4, Errno::EINVAL);
        let before: Vec<_> = all.iter().map(|it| it.bytes().to_vec()).collect();
        let sent = device.send(&mut all, &mut pool, true);
        assert_eq!((sent.frames, sent.dropped), (15, 0));
        assert_eq!(device.script.taken, (0..15).collect::<Vec<u8>>());
        assert!(!device.offloads.coalesces());
        // To the run, and once more from it on.
        assert_eq!(device.script.chained, 2);

        // What is in the burst again is what it was.
        let mut all = burst(&mut pool, &kinds);
        let mut messages = Messages::new();
        let offloads = proven_checksums();
        assert!(messages.load(&mut all, how, whole, &offloads));
        assert_ne!(all[4].bytes(), before[4]);
        messages.outcomes.fill(Outcome::Untried);
        messages.unload(&mut all);
        let after: Vec<_> = all.iter().map(|it| it.bytes().to_vec()).collect();
        assert_eq!(after, before);
        assert_eq!(all[4].offload().segmentation, None);
    }
}

#[test]
fn a_broken_ring_loses_what_nobody_knows_and_nothing_else() {
    let mut pool = FramePool::new(16, 64);
    let mut all = burst(&mut pool, &[Kind::Plain; 12]);
    let mut device = Device::new(Script::default(), How::Write);
    device.script.breaks = Some((3, 7));
    let sent = device.send(&mut all, &mut pool, true);
    assert_eq!((sent.frames, sent.dropped), (8, 4));
    assert_eq!(device.script.taken, [0, 1, 2, 7, 8, 9, 10, 11]);
    assert_eq!(device.traffic.drops.of(DropReason::DeviceError), 4);
    // The kernel has the buffers of four for ever.
    let left: Vec<_> = core::iter::from_fn(|| pool.alloc()).collect();
    assert_eq!(left.len(), 12);
}

#[test]
fn a_ring_that_takes_nothing_loses_nothing() {
    let script = Script {
        breaks: Some((0, 0)),
        ..Script::default()
    };
    let (device, sent) = send_plain(12, script);
    assert_eq!((sent.frames, sent.dropped), (12, 0));
    assert!(device.broken);
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        4 => Just(Kind::Plain),
        4 => Just(Kind::Datagram),
        1 => Just(Kind::Super(GsoKind::TcpV4)),
        1 => Just(Kind::Super(GsoKind::Udp)),
    ]
}

/// Answers that are about one frame, and so mean the same for a batch and for plain calls.
fn about_one() -> impl Strategy<Value = Errno> {
    prop_oneof![
        Just(Errno::EINVAL),
        Just(Errno::EMSGSIZE),
        Just(Errno::ENOBUFS),
        Just(Errno::EPERM),
    ]
}

/// Sends until nothing is left in the burst, as the core does: what a kernel refuses of a kind is cut.
fn send_all(device: &mut Device, kinds: &[Kind], batched: bool) -> (Vec<u8>, Traffic) {
    let mut pool = FramePool::new(80, 64);
    let mut all = burst(&mut pool, kinds);
    let mut rounds = 0;
    while !all.is_empty() {
        let sent = device.send(&mut all, &mut pool, batched);
        assert!(all.is_empty() || sent.egress == Egress::Adapt);
        for frame in &mut all {
            if !device.offloads.capabilities().take(frame.offload()) {
                frame.set_offload(Offload::NONE);
            }
        }
        rounds += 1;
        assert!(rounds < 8);
    }
    let buffers: Vec<_> = core::iter::from_fn(|| pool.alloc()).collect();
    assert_eq!(buffers.len(), 80);
    (device.script.taken.clone(), device.traffic)
}

proptest! {
    /// Beside plain calls, on a kernel that answers the same.
    #[test]
    fn a_batch_sends_and_counts_what_plain_calls_do(
        kinds in prop::collection::vec(kind(), 1..64),
        refused in prop::collection::btree_map(0..64_u8, about_one(), 0..6),
        refused_runs in prop::collection::btree_map(0..64_u8, about_one(), 0..3),
        send in any::<bool>(),
    ) {
        let script = Script { refused, refused_runs, ..Script::default() };
        let how = if send { How::Send } else { How::Write };
        let mut batched = Device::new(script.clone(), how);
        let mut plain = Device::new(script, how);
        let of_batches = send_all(&mut batched, &kinds, true);
        prop_assert_eq!(of_batches, send_all(&mut plain, &kinds, false));
        prop_assert_eq!(plain.script.batches, 0);
    }

    /// Whatever a device answers, frames keep their order, none is sent twice, and each is counted.
    #[test]
    fn every_frame_is_accounted_for_once(
        kinds in prop::collection::vec(kind(), 1..64),
        refused in prop::collection::btree_map(0..64_u8, prop_oneof![
            about_one(), Just(Errno::EAGAIN), Just(Errno::ENETDOWN), Just(Errno::EIO),
            Just(Errno::ENXIO), Just(Errno::EBADFD),
        ], 0..40),
        breaks in prop::option::of((0..64_usize, 0..64_usize)),
    ) {
        let script = Script { refused, breaks, ..Script::default() };
        let mut pool = FramePool::new(80, 64);
        let mut all = burst(&mut pool, &kinds);
        let mut device = Device::new(script, How::Write);
        let sent = device.send(&mut all, &mut pool, true);
        prop_assert_eq!(sent.frames + sent.dropped + all.len(), kinds.len());
        prop_assert!(device.script.taken.is_sorted_by(|a, b| a < b));
        prop_assert_eq!(device.script.taken.len(), sent.frames);
        prop_assert_eq!(device.traffic.drops.total(), sent.dropped as u64);
    }
}
