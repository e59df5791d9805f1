//! The input of the targets `packet`, `offload` and `icmp`: a frame and what belongs to it.
//!
//! | octets | |
//! |---|---|
//! | 10 | virtio-net header |
//! | 1 | capabilities of the egress |
//! | 1 | which of [`BUFFERS`]; in the highest bit whether the IPv4 header checksum is made right first |
//! | 2 | MTU |
//! | the rest | frame |

use std::borrow::Cow;

use nos_shim::checksum::Sum;
use nos_shim::frame::{FramePool, Offload, VNET_HEADER};
use nos_shim::offload::Capabilities;
use nos_shim::packet::Packet;

use super::pools::ROOM;

/// Buffers that a pool may have.
const BUFFERS: [usize; 8] = [1, 2, 3, 4, 6, 9, 20, 64];

/// See the [module](self).
pub struct Framed<'a> {
    pub offload: Offload,
    pub capabilities: Capabilities,
    pub buffers: usize,
    pub mtu: usize,
    pub frame: Cow<'a, [u8]>,
}

impl<'a> Framed<'a> {
    /// `None` if there is no frame, or its virtio-net header makes no sense.
    pub fn read(data: &'a [u8]) -> Option<Self> {
        let (virtio, rest) = data.split_first_chunk::<VNET_HEADER>()?;
        let ([capabilities, buffers, m0, m1], rest) = rest.split_first_chunk()?;
        let rest = &rest[..rest.len().min(ROOM)];
        Some(Self {
            offload: Offload::from_virtio(virtio).ok()?,
            capabilities: Capabilities::from_bits_truncate(*capabilities),
            buffers: BUFFERS[usize::from(buffers & 7)],
            mtu: usize::from(u16::from_be_bytes([*m0, *m1])),
            frame: if buffers & 0x80 == 0 {
                Cow::Borrowed(rest)
            } else {
                Cow::Owned(sealed(rest))
            },
        })
    }

    /// The frame as a packet, if it is one.
    pub fn packet(&self, pool: &mut FramePool) -> Option<Packet> {
        let mut frame = pool.copy_from(&self.frame).ok()?;
        frame.set_offload(self.offload);
        match Packet::parse(frame) {
            Ok(packet) => Some(packet),
            Err(rejected) => {
                assert_eq!(rejected.frame.bytes(), &*self.frame);
                pool.free(rejected.frame);
                None
            }
        }
    }
}

/// The frame with a right IPv4 header checksum, lest every mutation end there.
fn sealed(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let Some((_, ip)) = frame.split_at_mut_checked(14) else {
        return frame;
    };
    let len = usize::from(ip.first().copied().unwrap_or(0) & 0xf) * 4;
    if let Some(header) = ip.get_mut(..len).filter(|header| header.len() >= 20) {
        header[10..12].fill(0);
        let checksum = Sum::ZERO.plus(header).checksum();
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
    }
    frame
}
