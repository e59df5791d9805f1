//! Frames as pcapng blocks.

use std::borrow::Cow;
use std::fmt;

use nos_shim::frame::Checksum;
use nos_shim::offload::complete_octets;
use nos_shim::vlan::VlanId;
use pcap_file::DataLink;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::pcapng::{Block, PcapNgBlock, PcapNgWriter};

use super::record::Head;

/// Time stamps count units of 10^-9 s (`if_tsresol`).
const NANOSECONDS: u8 = 9;

/// Octets of both Ethernet addresses, behind which a tag stands.
const ADDRESSES: usize = 12;

/// Encodes records into memory that is used again.
pub(super) struct Encoder {
    writer: PcapNgWriter<Vec<u8>>,
    /// Octets of a frame that the file gets at most.
    snap: usize,
    /// What frames have behind their addresses, and were recorded without.
    tag: Option<[u8; 4]>,
    /// Memory for a frame that is other than it was recorded.
    copy: Vec<u8>,
}

impl Encoder {
    /// Starts with the blocks that open a file of frames of the interface `name`.
    pub(super) fn new(name: &str, snap_length: u32, vlan: Option<VlanId>) -> Self {
        let mut interface = InterfaceDescriptionBlock::new(DataLink::ETHERNET, snap_length);
        interface.options = vec![
            InterfaceDescriptionOption::IfName(Cow::Owned(name.to_owned())),
            InterfaceDescriptionOption::IfTsResol(NANOSECONDS),
        ];
        let mut encoder = Self {
            writer: writer_in_memory(),
            snap: match usize::try_from(snap_length) {
                Ok(0) | Err(_) => usize::MAX,
                Ok(snap) => snap,
            },
            tag: vlan.map(VlanId::tag),
            copy: Vec::new(),
        };
        encoder.write(&interface.into_block());
        encoder
    }

    /// All that was encoded since the last [`Self::clear`].
    pub(super) fn octets(&self) -> &[u8] {
        self.writer.get_ref()
    }

    /// Discards what was encoded.
    pub(super) fn clear(&mut self) {
        self.writer.get_mut().clear();
    }

    /// Adds a frame.
    pub(super) fn push(&mut self, head: &Head, octets: &[u8]) {
        let mut options = vec![EnhancedPacketOption::Flags(head.direction as u32)];
        if head.gap > 0 {
            options.push(EnhancedPacketOption::DropCount(head.gap));
        }
        let mut copy = core::mem::take(&mut self.copy);
        let finished = finished(octets, head.checksum, self.tag, &mut copy);
        let original = head.original + self.tag.map_or(0, |tag| tag.len());
        self.write(&Block::EnhancedPacket(EnhancedPacketBlock {
            interface_id: 0,
            timestamp: head.time,
            original_len: u32::try_from(original).unwrap_or(u32::MAX),
            data: Cow::Borrowed(&finished[..finished.len().min(self.snap)]),
            options,
        }));
        self.copy = copy;
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

/// A frame with its checksums completed and its tag in it, in `copy` if that makes a difference.
fn finished<'a>(
    octets: &'a [u8],
    checksum: Checksum,
    tag: Option<[u8; 4]>,
    copy: &'a mut Vec<u8>,
) -> &'a [u8] {
    if !matches!(checksum, Checksum::Partial { .. }) && tag.is_none() {
        return octets;
    }
    copy.clear();
    copy.extend_from_slice(octets);
    complete_octets(copy, checksum);
    if let Some(tag) = tag {
        // Of a frame that is recorded in part, perhaps not all of the addresses.
        let behind = copy.len().min(ADDRESSES);
        copy.splice(behind..behind, tag);
    }
    copy
}
