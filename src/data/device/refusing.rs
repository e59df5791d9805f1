//! A kernel that refuses one kind of frame, for the tests of devices that leave work to it.

use std::cell::RefCell;
use std::num::NonZeroU16;

use etherparse::PacketBuilder;
use nix::errno::Errno;
use nos_shim::checksum::Sum;
use nos_shim::frame::{
    Burst, Checksum, ETHERNET_HEADER, Ecn, Frame, FramePool, GsoKind, MAX_FRAME, Offload,
    Segmentation,
};
use nos_shim::offload::{Capabilities, adapt};
use nos_shim::packet::{Packet, protocol};

use super::vnet::{Offloads, Refusals};
use super::{Egress, Sending, Traffic};

/// What a kernel is asked to do for a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Checksum,
    Tso4,
    Tso6,
    Uso,
    Tunnel,
    /// To cut datagrams that were joined by the device.
    Runs,
}

const KINDS: [Kind; 6] = [
    Kind::Checksum,
    Kind::Tso4,
    Kind::Tso6,
    Kind::Uso,
    Kind::Tunnel,
    Kind::Runs,
];

impl Kind {
    fn capability(self) -> Capabilities {
        match self {
            Self::Checksum => Capabilities::CHECKSUM,
            Self::Tso4 => Capabilities::TSO4,
            Self::Tso6 => Capabilities::TSO6,
            Self::Uso | Self::Runs => Capabilities::USO,
            Self::Tunnel => Capabilities::TUNNEL,
        }
    }

    /// Of what is handed over in `pieces`, a virtio-net header in front.
    fn of(pieces: &[&[u8]]) -> Option<Self> {
        let [flags, gso, ..] = *pieces[0] else {
            return None;
        };
        // As in linux/virtio_net.h: the ECN mark, and those of tunnels.
        match gso & !0x80 {
            0 => (flags & 1 != 0).then_some(Self::Checksum),
            1 => Some(Self::Tso4),
            4 => Some(Self::Tso6),
            5 if pieces.len() > 1 => Some(Self::Runs),
            5 => Some(Self::Uso),
            tunnel if tunnel & 0x60 != 0 => Some(Self::Tunnel),
            other => panic!("the kernel knows no kind {other:#x}"),
        }
    }

    /// What no longer leaves as it is when `refused` is given up.
    fn goes_with(self, refused: Self) -> bool {
        match refused {
            // Super-frames leave checksums to the kernel as well.
            Self::Checksum => true,
            // That is what is in the tunnel.
            Self::Tso4 => matches!(self, Self::Tso4 | Self::Tunnel),
            Self::Uso => matches!(self, Self::Uso | Self::Runs),
            Self::Tso6 | Self::Tunnel | Self::Runs => self == refused,
        }
    }

    fn count(self, refusals: Refusals) -> u64 {
        match self {
            Self::Checksum => refusals.checksum,
            Self::Tso4 => refusals.tso4,
            Self::Tso6 => refusals.tso6,
            Self::Uso => refusals.uso,
            Self::Tunnel => refusals.tunnel,
            Self::Runs => refusals.runs,
        }
    }
}

/// The kernel in question.
pub(super) struct Answers {
    refused: Kind,
    errno: Errno,
    /// Octets of the virtio-net header.
    header: usize,
    taken: RefCell<Vec<Taken>>,
}

struct Taken {
    kind: Option<Kind>,
    octets: Vec<u8>,
    offload: Offload,
}

impl Answers {
    /// Takes what is handed over in `pieces`, or refuses it.
    pub(super) fn answer(&self, pieces: &[&[u8]]) -> Result<usize, Errno> {
        let kind = Kind::of(pieces);
        if kind == Some(self.refused) {
            return Err(self.errno);
        }
        let whole = pieces.concat();
        let offload = Offload::from_virtio(whole.first_chunk().unwrap()).unwrap();
        self.taken.borrow_mut().push(Taken {
            kind,
            octets: whole[self.header..].to_vec(),
            offload,
        });
        Ok(whole.len())
    }
}

/// Refuses each kind that a device with these capabilities hands over, with each of the errors. `make`
/// makes a device on a kernel that gives such answers: it sends what it can.
pub(super) fn each_kind<D>(
    capabilities: Capabilities,
    header: usize,
    errors: &[Errno],
    make: impl Fn() -> D,
) where
    D: FnMut(&Answers, &mut Offloads, &mut Sending<'_>),
{
    for kind in KINDS {
        for &errno in errors {
            // Every kernel can complete a checksum: this one has no memory.
            let told = errno != Errno::ENOMEM || kind != Kind::Checksum;
            if told && capabilities.contains(kind.capability()) {
                let answers = Answers {
                    refused: kind,
                    errno,
                    header,
                    taken: RefCell::default(),
                };
                one_kind(capabilities, &answers, make());
            }
        }
    }
}

fn one_kind(
    capabilities: Capabilities,
    answers: &Answers,
    mut device: impl FnMut(&Answers, &mut Offloads, &mut Sending<'_>),
) {
    let what = format!("{:?} refused with {}", answers.refused, answers.errno);
    let mut pool = FramePool::new(512, MAX_FRAME);
    let mut offloads = Offloads::new(capabilities);
    let mut wanted = Vec::new();
    for round in 0..2 {
        let frames = frames(round, &mut pool);
        for frame in &frames {
            let copy = (frame.bytes().to_vec(), frame.offload());
            wanted.extend(finished(copy, &mut pool));
        }
        let mut burst = adapted(frames, offloads.capabilities(), &mut pool);
        loop {
            let mut traffic = Traffic::default();
            let mut sending = Sending::new(&mut burst, &mut pool, &mut traffic);
            device(answers, &mut offloads, &mut sending);
            let sent = sending.finish();
            assert_eq!(sent.dropped, 0, "{what}");
            match sent.egress {
                Egress::Ready => break,
                Egress::Adapt => burst = adapted(burst, offloads.capabilities(), &mut pool),
                Egress::Down | Egress::Gone(_) => panic!("{what}: {sent:?}"),
            }
        }
        assert!(burst.is_empty(), "{what}");
    }

    let taken = answers.taken.take();
    for kind in KINDS {
        let whole = taken.iter().filter(|one| one.kind == Some(kind)).count();
        let kept = !kind.goes_with(answers.refused) && capabilities.contains(kind.capability());
        if kind == Kind::Checksum {
            assert_eq!(whole > 0, kept, "{what}");
        } else {
            assert_eq!(whole, if kept { 2 } else { 0 }, "{what}: {kind:?}");
        }
        let counted = u64::from(kind == answers.refused);
        assert_eq!(kind.count(offloads.refusals()), counted, "{what}: {kind:?}");
    }
    let left = match answers.refused {
        Kind::Checksum => Capabilities::empty(),
        Kind::Runs => capabilities,
        kind => capabilities - kind.capability(),
    };
    assert_eq!(offloads.capabilities(), left, "{what}");
    let arrived: Vec<_> = taken
        .into_iter()
        .flat_map(|one| finished((one.octets, one.offload), &mut pool))
        .collect();
    assert_eq!(arrived.len(), wanted.len(), "{what}");
    for (n, (arrived, wanted)) in arrived.iter().zip(&wanted).enumerate() {
        assert_eq!(arrived, wanted, "{what}: segment {n}");
    }
}

/// What becomes of frames on their way to a device.
fn adapted(frames: Burst, capabilities: Capabilities, pool: &mut FramePool) -> Burst {
    let mut burst = Burst::new();
    for frame in frames {
        let packet = Packet::parse(frame).unwrap();
        let mut out = |packet: Packet| burst.push(packet.into_frame());
        let done = adapt(packet, capabilities, pool, &mut out);
        assert_eq!(done.dropped, None);
    }
    burst
}

/// What a frame is on a wire.
fn finished((octets, offload): (Vec<u8>, Offload), pool: &mut FramePool) -> Vec<Vec<u8>> {
    let mut frame = pool.copy_from(&octets).unwrap();
    frame.set_offload(offload);
    let mut burst = Burst::new();
    burst.push(frame);
    let cut = adapted(burst, Capabilities::empty(), pool);
    cut.iter().map(|frame| frame.bytes().to_vec()).collect()
}

const SIZE: u16 = 700;
const PORTS: (u16, u16) = (40_000, 443);

/// Two of each kind make no run; of the last one, there are so many.
const RUN: u16 = 5;

/// One frame of each kind, and as many datagrams as are joined.
fn frames(round: u8, pool: &mut FramePool) -> Burst {
    let payload: Vec<u8> = (round..251).cycle().take(2_000).collect();
    let tcp4 = tcp(false, &payload);
    let udp = |port: u16, payload: &[u8]| {
        let mut octets = Vec::new();
        let step = ethernet().ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
        step.udp(PORTS.0, port).write(&mut octets, payload).unwrap();
        octets
    };
    let mut burst = Burst::new();
    burst.push(partial(&udp(1_001, &payload[..300]), None, pool));
    burst.push(partial(&tcp4, Some(GsoKind::TcpV4), pool));
    burst.push(partial(&tcp(true, &payload), Some(GsoKind::TcpV6), pool));
    burst.push(partial(&udp(1_002, &payload), Some(GsoKind::Udp), pool));
    burst.push(tunnel(&tcp4, udp, pool));
    for n in 0..RUN {
        let from = usize::from(n);
        let mut datagram = udp(1_003, &payload[from..from + 500]);
        number(&mut datagram, n);
        burst.push(partial(&datagram, None, pool));
    }
    burst
}

/// Gives an IPv4 datagram an identification, as segments count theirs.
fn number(octets: &mut [u8], identification: u16) {
    let header = &mut octets[ETHERNET_HEADER..ETHERNET_HEADER + 20];
    header[4..6].copy_from_slice(&identification.to_be_bytes());
    header[10..12].fill(0);
    let checksum = Sum::ZERO.plus(header).checksum();
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
}

fn ethernet() -> etherparse::PacketBuilderStep<etherparse::Ethernet2Header> {
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
}

fn tcp(ipv6: bool, payload: &[u8]) -> Vec<u8> {
    let step = if ipv6 {
        ethernet().ipv6([1; 16], [2; 16], 64)
    } else {
        ethernet().ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
    };
    let mut octets = Vec::new();
    let step = step.tcp(PORTS.0, PORTS.1, 7, 1_000).ack(1);
    step.write(&mut octets, payload).unwrap();
    octets
}

/// A frame whose checksum is left to the device, and the cutting, if it is to be cut.
fn partial(octets: &[u8], kind: Option<GsoKind>, pool: &mut FramePool) -> Frame {
    let packet = Packet::parse(pool.copy_from(octets).unwrap()).unwrap();
    let start = packet.transport_offset();
    let offset = if packet.protocol() == protocol::TCP {
        16
    } else {
        6
    };
    let pseudo = packet.pseudo_sum(packet.transport().len()).folded();
    let mut frame = packet.into_frame();
    let field = start + usize::from(offset);
    frame.bytes_mut()[field..field + 2].copy_from_slice(&pseudo.to_be_bytes());
    frame.set_offload(Offload {
        checksum: Checksum::Partial {
            start: u16::try_from(start).unwrap(),
            offset,
        },
        segmentation: kind.map(|kind| Segmentation {
            kind,
            ecn: Ecn::Unmarked,
            size: NonZeroU16::new(SIZE).unwrap(),
            tunnel: None,
        }),
    });
    frame
}

/// A super-frame in VXLAN (RFC 7348 §5), whose outer datagram is made by `udp`.
fn tunnel(tcp4: &[u8], udp: impl Fn(u16, &[u8]) -> Vec<u8>, pool: &mut FramePool) -> Frame {
    const HEADER: [u8; 8] = [8, 0, 0, 0, 0, 0, 1, 0];
    let inner = partial(tcp4, Some(GsoKind::TcpV4), pool);
    let datagram = udp(4_789, &[&HEADER[..], inner.bytes()].concat());
    let mut outer = partial(&datagram, None, pool);
    let mut offload = inner.offload();
    if let Checksum::Partial { start, .. } = &mut offload.checksum {
        // Behind Ethernet, IPv4, UDP and VXLAN.
        *start += u16::try_from(ETHERNET_HEADER + 20 + 8 + HEADER.len()).unwrap();
    }
    outer.set_offload(offload);
    outer
}
