//! Frames as pcapng blocks.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use nos_shim::checksum::Sum;
use nos_shim::frame::{BATCH, Checksum, Frame};
use pcap_file::DataLink;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::pcapng::{Block, PcapNgBlock, PcapNgWriter};

/// Time stamps count units of 10^-9 s (`if_tsresol`).
const NANOSECONDS: u8 = 9;

/// Which way a frame goes, as `epb_flags` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// From the device to us.
    Inbound = 1,
    /// From us to the device.
    Outbound = 2,
}

/// Encodes one burst at a time into memory that is used again for the next.
pub(super) struct Encoder {
    writer: PcapNgWriter<Vec<u8>>,
    /// Where the block of each frame of the burst ends.
    ends: Vec<usize>,
    snap: usize,
    time: Duration,
    /// Frames to report as lost with the next frame.
    gap: u64,
    /// Memory for a frame whose checksum is completed.
    copy: Vec<u8>,
}

impl Encoder {
    /// Starts with the blocks that open a file of frames of the interface `name`.
    pub(super) fn new(name: &str, snap_length: u32) -> Self {
        let mut interface = InterfaceDescriptionBlock::new(DataLink::ETHERNET, snap_length);
        interface.options = vec![
            InterfaceDescriptionOption::IfName(Cow::Owned(name.to_owned())),
            InterfaceDescriptionOption::IfTsResol(NANOSECONDS),
        ];
        let mut encoder = Self {
            writer: writer_in_memory(),
            ends: Vec::with_capacity(BATCH),
            snap: match usize::try_from(snap_length) {
                Ok(0) | Err(_) => usize::MAX,
                Ok(snap) => snap,
            },
            time: Duration::ZERO,
            gap: 0,
            copy: Vec::new(),
        };
        encoder.write(&interface.into_block());
        encoder
    }

    /// All that was encoded since the start of the burst, or of the file.
    pub(super) fn octets(&self) -> &[u8] {
        self.writer.get_ref()
    }

    /// What was encoded of the first `frames` frames of the burst.
    pub(super) fn first(&self, frames: usize) -> &[u8] {
        let end = frames.checked_sub(1).and_then(|last| self.ends.get(last));
        &self.octets()[..end.copied().unwrap_or(0)]
    }

    /// Starts a burst; `gap` frames were left out before it.
    pub(super) fn begin(&mut self, time: Duration, gap: u64) {
        self.writer.get_mut().clear();
        self.ends.clear();
        self.time = time;
        self.gap = gap;
    }

    /// Adds a frame to the burst.
    pub(super) fn push(&mut self, frame: &Frame, direction: Direction) {
        let mut options = vec![EnhancedPacketOption::Flags(direction as u32)];
        if self.gap > 0 {
            options.push(EnhancedPacketOption::DropCount(self.gap));
            self.gap = 0;
        }
        let mut copy = core::mem::take(&mut self.copy);
        self.write(&Block::EnhancedPacket(EnhancedPacketBlock {
            interface_id: 0,
            timestamp: self.time,
            original_len: u32::try_from(frame.len()).unwrap_or(u32::MAX),
            data: Cow::Borrowed(finished(frame, self.snap, &mut copy)),
            options,
        }));
        self.copy = copy;
        self.ends.push(self.octets().len());
    }

    fn write(&mut self, block: &Block<'_>) {
        // Writing to memory does not fail, and interface 0 is there.
        let written = self.writer.write_block(block);
        debug_assert!(written.is_ok(), "{written:?}");
    }
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoder").finish_non_exhaustive()
    }
}

#[expect(clippy::expect_used, reason = "a vector takes whatever is written")]
fn writer_in_memory() -> PcapNgWriter<Vec<u8>> {
    PcapNgWriter::new(Vec::new()).expect("writing to memory does not fail")
}

/// The first `snap` octets of a frame, with its checksum completed in `copy` if it is partial.
fn finished<'a>(frame: &'a Frame, snap: usize, copy: &'a mut Vec<u8>) -> &'a [u8] {
    let bytes = frame.bytes();
    let recorded = &bytes[..bytes.len().min(snap)];
    let Checksum::Partial { start, offset } = frame.offload().checksum else {
        return recorded;
    };
    let Some(transport) = bytes.get(usize::from(start)..) else {
        return recorded;
    };
    // The field holds the pseudo-header's sum, so it takes part.
    let checksum = match Sum::ZERO.plus(transport).checksum() {
        // RFC 768: zero would say that there is none. To other protocols both mean the same.
        0 => 0xffff_u16,
        checksum => checksum,
    };
    copy.clear();
    copy.extend_from_slice(recorded);
    let field = usize::from(start) + usize::from(offset);
    if let Some(field) = copy
        .get_mut(field..)
        .and_then(|rest| rest.first_chunk_mut())
    {
        *field = checksum.to_be_bytes();
    }
    copy
}
