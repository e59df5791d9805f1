//! The virtio-net header in front of frames, and what the kernel behind it takes.

use nos_shim::drop::DropReason;
use nos_shim::frame::{
    Checksum, Frame, FrameFull, GsoKind, Offload, OuterHeader, Segmentation, Tunnel, VNET_HEADER,
    VNET_TUNNEL_HEADER,
};
use nos_shim::offload::Capabilities;
use nos_shim::packet::{ETHERTYPE_IPV6, ether_type};

use super::DeviceKind;
use super::uring::Area;

/// Octets of a UDP header (RFC 768).
const UDP_HEADER: u16 = 8;
/// Where a TCP header says how long it is (RFC 9293 §3.1).
const TCP_DATA_OFFSET: usize = 12;

/// Sets the frame's offload state from the header of `size` octets that was read into its headroom.
pub(super) fn take_header(frame: &mut Frame, size: usize) -> Result<(), DropReason> {
    let header = match frame.with_headroom(size) {
        Ok(area) => area.first_chunk().copied(),
        Err(FrameFull { .. }) => None,
    };
    let header = header.ok_or(DropReason::OffloadHeader)?;
    frame.set_offload(Offload::from_virtio(&header)?);
    Ok(())
}

/// Writes the header of `size` octets into the frame's headroom; returns header and frame.
pub(super) fn put_header(frame: &mut Frame, size: usize) -> Result<&mut [u8], FrameFull> {
    let offload = frame.offload();
    if size == VNET_TUNNEL_HEADER {
        return put_long_header(frame);
    }
    let header = offload.to_virtio(header_length(frame));
    let area = frame.with_headroom(VNET_HEADER)?;
    if let Some(front) = area.first_chunk_mut() {
        *front = header;
    }
    Ok(area)
}

/// How a batch has frames made ready: as [`put_header`] does, with headers of `size` octets.
pub(super) fn area(size: usize) -> Area {
    match size {
        VNET_TUNNEL_HEADER => |frame| put_long_header(frame).ok(),
        _ => |frame| put_header(frame, VNET_HEADER).ok(),
    }
}

fn put_long_header(frame: &mut Frame) -> Result<&mut [u8], FrameFull> {
    let offload = frame.offload();
    let header = match offload.segmentation.and_then(|own| own.tunnel) {
        None => {
            let mut header = [0; VNET_TUNNEL_HEADER];
            if let Some(front) = header.first_chunk_mut() {
                *front = offload.to_virtio(header_length(frame));
            }
            header
        }
        Some(tunnel) => tunnel_header(frame, tunnel),
    };
    let area = frame.with_headroom(VNET_TUNNEL_HEADER)?;
    if let Some(front) = area.first_chunk_mut() {
        *front = header;
    }
    Ok(area)
}

#[cold]
fn tunnel_header(frame: &Frame, tunnel: Tunnel) -> [u8; VNET_TUNNEL_HEADER] {
    let octets = frame.bytes();
    let transport = frame.transport_offset();
    let checksum = octets.get(usize::from(transport) + 6..usize::from(tunnel.network));
    let outer = OuterHeader {
        ipv6: ether_type(octets) == Some(ETHERTYPE_IPV6),
        checksum: !matches!(checksum, Some([0, 0, ..])),
    };
    let offload = frame.offload();
    offload.to_virtio_tunnel(header_length(frame), transport, outer)
}

/// Octets of all headers of a super-frame, from its start; 0 for others. The kernel keeps so many
/// octets in one piece.
fn header_length(frame: &Frame) -> u16 {
    let Offload {
        checksum: Checksum::Partial { start, .. },
        segmentation: Some(Segmentation { kind, .. }),
    } = frame.offload()
    else {
        return 0;
    };
    let transport = match kind {
        GsoKind::Udp => UDP_HEADER,
        GsoKind::TcpV4 | GsoKind::TcpV6 => {
            let place = usize::from(start) + TCP_DATA_OFFSET;
            u16::from(frame.bytes().get(place).copied().unwrap_or(0) >> 4) * 4
        }
    };
    start.saturating_add(transport)
}

/// Which super-frames the kernel takes: all that it promised, until it refuses one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Offloads {
    capabilities: Capabilities,
    /// Kinds of which it has taken one.
    proven: Capabilities,
    /// Whether runs of datagrams may be sent as one: that is wanted, and it has not refused one.
    runs: bool,
    refusals: Refusals,
}

/// Frames that the kernel called invalid (`EINVAL`) or too long (`EMSGSIZE`), by what it was asked to
/// do for them. The first of a kind was then cut or completed here, as are all later ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refusals {
    /// To complete a checksum.
    pub checksum: u64,
    /// To cut TCP over IPv4.
    pub tso4: u64,
    /// To cut TCP over IPv6.
    pub tso6: u64,
    /// To cut datagrams.
    pub uso: u64,
    /// To cut what is in a tunnel.
    pub tunnel: u64,
    /// To cut a run of datagrams that was joined here.
    pub runs: u64,
}

impl Refusals {
    fn count(&mut self, kind: Capabilities) {
        let table = [
            (Capabilities::CHECKSUM, &mut self.checksum),
            (Capabilities::TSO4, &mut self.tso4),
            (Capabilities::TSO6, &mut self.tso6),
            (Capabilities::USO, &mut self.uso),
            (Capabilities::TUNNEL, &mut self.tunnel),
        ];
        for (capability, count) in table {
            *count += u64::from(kind.contains(capability));
        }
    }
}

const SUPER_FRAMES: Capabilities = Capabilities::TSO4
    .union(Capabilities::TSO6)
    .union(Capabilities::USO)
    .union(Capabilities::TUNNEL);

/// What a kernel can refuse.
const KINDS: Capabilities = SUPER_FRAMES.union(Capabilities::CHECKSUM);

impl Offloads {
    /// Starts with these capabilities. Super-frames have partial checksums, so without
    /// [`Capabilities::CHECKSUM`] there is nothing.
    pub(super) fn new(capabilities: Capabilities) -> Self {
        let checksum = capabilities.contains(Capabilities::CHECKSUM);
        Self {
            capabilities: if checksum {
                capabilities
            } else {
                Capabilities::empty()
            },
            proven: Capabilities::empty(),
            runs: true,
            refusals: Refusals::default(),
        }
    }

    /// What was refused so far.
    pub(super) fn refusals(&self) -> Refusals {
        self.refusals
    }

    pub(super) fn set_coalescing(&mut self, on: bool) {
        self.runs = on;
    }

    /// Whether runs of datagrams are to be sent as one.
    #[inline]
    pub(super) fn coalesces(&self) -> bool {
        self.runs && self.capabilities.contains(Capabilities::USO)
    }

    /// The kernel called a run invalid: no more are made. Had it taken one before, that would say
    /// nothing of others, but the datagrams of this one must get out.
    #[cold]
    pub(super) fn refused_run(&mut self, device: DeviceKind, name: &str) {
        self.runs = false;
        self.refusals.runs += 1;
        tracing::warn!("{device} {name}: the kernel refuses datagrams in one piece");
    }

    pub(super) fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    /// Whether nothing of a frame has to be sent again should the kernel refuse it: it leaves nothing
    /// to the kernel, or is of a kind that the kernel has taken before.
    #[inline]
    pub(super) fn may_be_batched(&self, offload: Offload) -> bool {
        let kind = Capabilities::required(offload) & KINDS;
        self.proven.contains(kind & self.capabilities)
    }

    /// The kernel took a frame.
    pub(super) fn taken(&mut self, offload: Offload) {
        self.proven |= Capabilities::required(offload);
    }

    /// The kernel called a frame invalid or too long. If it never took one of this kind, the kind is
    /// given up and returned; otherwise the fault is the frame's: one sender's broken frames must
    /// not slow the others down. Without checksums there are no super-frames either.
    #[cold]
    pub(super) fn refused(&mut self, offload: Offload) -> Option<Capabilities> {
        let required = Capabilities::required(offload);
        let super_frame = required & SUPER_FRAMES;
        let kind = if super_frame.is_empty() {
            required
        } else {
            super_frame
        };
        let mut kind = kind & self.capabilities;
        if kind.contains(Capabilities::TUNNEL) {
            // What it carries may still travel by itself.
            kind = Capabilities::TUNNEL;
        }
        self.refusals.count(kind);
        if kind.is_empty() || self.proven.contains(kind) {
            return None;
        }
        self.capabilities = if kind == Capabilities::CHECKSUM {
            Capabilities::empty()
        } else {
            self.capabilities - kind
        };
        Some(kind)
    }
}

/// Tells that a kind of frame was given up: once a device and kind.
#[cold]
pub(super) fn log_fallback(device: DeviceKind, name: &str, kind: Capabilities) {
    tracing::warn!("{device} {name}: the kernel refuses {kind:?} frames; finishing them ourselves");
}

#[cfg(test)]
mod tests {
    use core::num::NonZeroU16;

    use nos_shim::frame::{Ecn, FramePool};

    use super::*;

    fn offload(kind: GsoKind) -> Offload {
        Offload {
            checksum: Checksum::Partial {
                start: 34,
                offset: 16,
            },
            segmentation: Some(Segmentation {
                kind,
                ecn: Ecn::Unmarked,
                size: NonZeroU16::new(1000).unwrap(),
                tunnel: None,
            }),
        }
    }

    #[test]
    fn headers_round_trip_through_the_headroom() {
        let mut pool = FramePool::new(1, 2000);
        let mut frame = pool.copy_from(&[0x80; 1600]).unwrap();
        frame.set_offload(offload(GsoKind::TcpV4));
        let header: [u8; VNET_HEADER] = *put_header(&mut frame, VNET_HEADER)
            .unwrap()
            .first_chunk()
            .unwrap();
        assert_eq!(u16::from_ne_bytes([header[2], header[3]]), 34 + 32);
        frame.set_offload(Offload::NONE);
        take_header(&mut frame, VNET_HEADER).unwrap();
        assert_eq!(frame.offload(), offload(GsoKind::TcpV4));
        assert_eq!(frame.bytes(), [0x80; 1600]);
    }

    #[test]
    fn header_length_is_that_of_the_protocol() {
        let mut pool = FramePool::new(1, 2000);
        let mut frame = pool.copy_from(&[0xf0; 200]).unwrap();
        assert_eq!(header_length(&frame), 0);
        frame.set_offload(offload(GsoKind::Udp));
        assert_eq!(header_length(&frame), 34 + 8);
        frame.set_offload(offload(GsoKind::TcpV6));
        assert_eq!(header_length(&frame), 34 + 60);
        frame.truncate(40);
        assert_eq!(header_length(&frame), 34);
    }

    #[test]
    fn a_kind_is_given_up_only_if_it_never_worked() {
        let mut offloads = Offloads::new(Capabilities::all());
        assert_eq!(offloads.refused(Offload::NONE), None);
        offloads.taken(offload(GsoKind::TcpV4));
        assert_eq!(offloads.refused(offload(GsoKind::TcpV4)), None);
        let uso = offload(GsoKind::Udp);
        assert!(offloads.may_be_batched(offload(GsoKind::TcpV4)));
        assert!(offloads.may_be_batched(Offload::NONE));
        assert!(!offloads.may_be_batched(uso));
        assert_eq!(offloads.refused(uso), Some(Capabilities::USO));
        assert_eq!(offloads.refused(uso), None);
        assert_eq!(
            offloads.capabilities(),
            Capabilities::all() - Capabilities::USO
        );
    }

    /// What a frame of each kind needs.
    fn kinds() -> [(Capabilities, Offload); 4] {
        let partial = Offload {
            segmentation: None,
            ..offload(GsoKind::Udp)
        };
        [
            (Capabilities::CHECKSUM, partial),
            (Capabilities::TSO4, offload(GsoKind::TcpV4)),
            (Capabilities::TSO6, offload(GsoKind::TcpV6)),
            (Capabilities::USO, offload(GsoKind::Udp)),
        ]
    }

    #[test]
    fn a_refusal_concerns_its_kind_only_and_is_counted() {
        for (kind, refused) in kinds() {
            let mut offloads = Offloads::new(Capabilities::all());
            assert_eq!(offloads.refused(refused), Some(kind));
            assert_eq!(offloads.refused(refused), None, "only once");
            let left = if kind == Capabilities::CHECKSUM {
                Capabilities::empty()
            } else {
                Capabilities::all() - kind
            };
            assert_eq!(offloads.capabilities(), left);
            // Frames of that kind are not offered any more, the others are.
            for (other, offload) in kinds() {
                assert_eq!(
                    left.take(offload),
                    left.contains(other),
                    "{kind:?}, {other:?}"
                );
            }
            let Refusals {
                checksum,
                tso4,
                tso6,
                uso,
                tunnel,
                runs,
            } = offloads.refusals();
            let counts = [checksum, tso4, tso6, uso].map(|count| count == 1);
            assert_eq!(counts, kinds().map(|(other, _)| other == kind));
            assert_eq!((tunnel, runs), (0, 0));
        }
    }

    #[test]
    fn a_kind_that_worked_is_kept_and_its_refusals_are_counted() {
        for (kind, offload) in kinds() {
            let mut offloads = Offloads::new(Capabilities::all());
            offloads.taken(offload);
            assert_eq!(offloads.refused(offload), None, "{kind:?}");
            assert_eq!(offloads.capabilities(), Capabilities::all());
            assert_ne!(offloads.refusals(), Refusals::default());
        }
    }

    #[test]
    fn no_checksum_means_nothing_at_all() {
        let offloads = Offloads::new(Capabilities::TSO4);
        assert!(offloads.capabilities().is_empty());
    }
}
