//! The virtio-net header in front of frames, and what the kernel behind it takes.

use nos_shim::drop::DropReason;
use nos_shim::frame::{
    Checksum, Frame, FrameFull, GsoKind, Offload, OuterHeader, Segmentation, Tunnel, VNET_HEADER,
    VNET_TUNNEL_HEADER,
};
use nos_shim::offload::Capabilities;
use nos_shim::packet::{ETHERTYPE_IPV6, ether_type};

use super::DeviceKind;

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

/// As [`put_header`], for a batch.
pub(super) fn area(frame: &mut Frame) -> Option<&mut [u8]> {
    put_header(frame, VNET_HEADER).ok()
}

/// The same with the longer header.
pub(super) fn long_area(frame: &mut Frame) -> Option<&mut [u8]> {
    put_header(frame, VNET_TUNNEL_HEADER).ok()
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
}

const SUPER_FRAMES: Capabilities = Capabilities::TSO4
    .union(Capabilities::TSO6)
    .union(Capabilities::USO)
    .union(Capabilities::TUNNEL);

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
        }
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
        tracing::warn!("{device} {name}: the kernel refuses datagrams in one piece");
    }

    pub(super) fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    /// Whether nothing of a frame has to be sent again should the kernel refuse it: it is no
    /// super-frame, or of a kind that the kernel has taken before.
    #[inline]
    pub(super) fn may_be_batched(&self, offload: Offload) -> bool {
        let kind = Capabilities::required(offload) & SUPER_FRAMES;
        self.proven.contains(kind & self.capabilities)
    }

    /// The kernel took a frame.
    pub(super) fn taken(&mut self, offload: Offload) {
        self.proven |= Capabilities::required(offload);
    }

    /// The kernel called a frame invalid. If it never took a super-frame of this kind, the kind is
    /// given up and returned; otherwise the fault is the frame's: one sender's broken frames must
    /// not slow the others down.
    pub(super) fn refused(&mut self, offload: Offload) -> Option<Capabilities> {
        let mut kind = Capabilities::required(offload) & SUPER_FRAMES & self.capabilities;
        if kind.contains(Capabilities::TUNNEL) {
            // What it carries may still travel by itself.
            kind = Capabilities::TUNNEL;
        }
        if kind.is_empty() || self.proven.contains(kind) {
            return None;
        }
        self.capabilities -= kind;
        Some(kind)
    }
}

/// Tells that a kind of super-frame was given up: once a device and kind.
#[cold]
pub(super) fn log_fallback(device: DeviceKind, name: &str, kind: Capabilities) {
    tracing::warn!("{device} {name}: the kernel refuses {kind:?} frames; cutting them ourselves");
}

#[cfg(test)]
mod tests {
    use core::num::NonZeroU16;

    use nos_shim::frame::FramePool;

    use super::*;

    fn offload(kind: GsoKind) -> Offload {
        Offload {
            checksum: Checksum::Partial {
                start: 34,
                offset: 16,
            },
            segmentation: Some(Segmentation {
                kind,
                ecn: false,
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

    #[test]
    fn no_checksum_means_nothing_at_all() {
        let offloads = Offloads::new(Capabilities::TSO4);
        assert!(offloads.capabilities().is_empty());
    }
}
