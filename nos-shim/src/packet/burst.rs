//! Packets that travel together.

use core::fmt;
use core::ops::{Deref, DerefMut};

use arrayvec::ArrayVec;

use super::Packet;
use crate::frame::BATCH;

/// Up to [`BATCH`] packets that travel together.
///
/// It is moved as one pointer, however many packets there are: through a ring its place travels,
/// not its contents. Making one allocates, so whoever has one to spare keeps it
/// ([`End::recycle`](crate::channel::End::recycle)).
#[derive(Default)]
pub struct PacketBurst(Box<ArrayVec<Packet, BATCH>>);

impl PacketBurst {
    /// An empty burst.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl Deref for PacketBurst {
    type Target = ArrayVec<Packet, BATCH>;

    #[inline]
    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for PacketBurst {
    #[inline]
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

impl fmt::Debug for PacketBurst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// # Panics
///
/// When there are more than [`BATCH`].
impl FromIterator<Packet> for PacketBurst {
    fn from_iter<I: IntoIterator<Item = Packet>>(packets: I) -> Self {
        Self(Box::new(packets.into_iter().collect()))
    }
}

impl IntoIterator for PacketBurst {
    type Item = Packet;
    type IntoIter = arrayvec::IntoIter<Packet, BATCH>;

    fn into_iter(self) -> Self::IntoIter {
        (*self.0).into_iter()
    }
}

impl<'a> IntoIterator for &'a PacketBurst {
    type Item = &'a Packet;
    type IntoIter = core::slice::Iter<'a, Packet>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_packets::{Draft, pool};

    #[test]
    fn a_burst_shows_its_packets() {
        let mut pool = pool();
        let packets = [1, 2].map(|port| Draft::v4().udp_packet(&mut pool, (port, 53), b"x"));
        let shown = format!("{packets:?}");
        let mut burst: PacketBurst = packets.into_iter().collect();
        assert_eq!(format!("{burst:?}"), shown);
        // Of as many as there are, each can be changed.
        burst.reverse();
        let ports: Vec<_> = burst.into_iter().map(|packet| packet.ports()).collect();
        let sources: Vec<_> = ports.into_iter().flatten().map(|it| it.source).collect();
        assert_eq!(sources, [2, 1]);
    }
}
