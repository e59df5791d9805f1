//! Bursts that C has, by their handles, and packets that go into one and come out of one.

use core::mem::MaybeUninit;

use nos_shim::packet::PacketBurst;

use crate::failure::{Code, Failure, Outcome};
use crate::handle::Kind;
use crate::input::Name;
use crate::packet::{lend, nos_relay_packet, take};

/// Packets that travel together, NOS_RELAY_BURST at most, in order. A burst is of the port that its functions are
/// given with it, and freed with that. There are at most 256 of a port at a time. Who needs its packets for no more
/// than to send them on spends less by bursts than by packets.
#[derive(Debug)]
pub struct nos_relay_burst {
    _opaque: (),
}

/// Bits of a handle that say where in its port a burst is. Above them is the number of its use.
const PLACE_BITS: u32 = 8;
/// Bursts of a port that C may have at a time.
pub(crate) const PLACES: usize = 1 << PLACE_BITS;

/// The bursts of a port that C has.
#[derive(Default)]
pub(crate) struct Bursts {
    places: Vec<Lent>,
    free: Vec<usize>,
}

struct Lent {
    /// Odd while there is a burst. One more, whenever one comes or goes.
    number: usize,
    /// Empty, and no place on the heap, while there is none.
    burst: Option<PacketBurst>,
}

impl Bursts {
    /// The place for another burst, which is none yet.
    #[inline]
    pub(crate) fn reserve(&mut self) -> Result<usize, Failure> {
        match self.free.pop() {
            Some(place) => Ok(place),
            None => self.another(),
        }
    }

    #[cold]
    fn another(&mut self) -> Result<usize, Failure> {
        if self.places.len() == PLACES {
            let message = format_args!("port: the caller has {PLACES} bursts of it already");
            return Err(Failure::new(Code::NOS_RELAY_E_FULL, message));
        }
        self.places.push(Lent {
            number: 0,
            burst: None,
        });
        // What is freed later has room there.
        self.free.reserve(self.places.len());
        Ok(self.places.len() - 1)
    }

    /// Gives a burst to C.
    #[inline]
    pub(crate) fn lend(&mut self, place: usize, burst: PacketBurst) -> *mut nos_relay_burst {
        let lent = &mut self.places[place];
        lent.number += 1;
        lent.burst = Some(burst);
        let handle = Kind::Burst.handle(lent.number << PLACE_BITS | place);
        core::ptr::without_provenance_mut(handle)
    }

    /// A burst that stays C's, and where it is.
    #[inline]
    pub(crate) fn get(
        &mut self,
        burst: *mut nos_relay_burst,
    ) -> Result<(usize, &mut PacketBurst), Failure> {
        let upper = Kind::Burst.upper(burst.addr(), "burst")?;
        let (place, number) = (upper % PLACES, upper >> PLACE_BITS);
        match self.places.get_mut(place) {
            Some(Lent {
                number: now,
                burst: Some(burst),
            }) if *now == number => Ok((place, burst)),
            _ => Err(given_away()),
        }
    }

    /// Takes back a place that was reserved, and for which there was no burst.
    pub(crate) fn unreserve(&mut self, place: usize) {
        self.free.push(place);
    }

    /// Takes a burst from C, which [`Self::get`] has found there.
    #[inline]
    pub(crate) fn take(&mut self, place: usize) -> Option<PacketBurst> {
        let lent = &mut self.places[place];
        lent.number += 1;
        self.free.push(place);
        lent.burst.take()
    }
}

#[cold]
fn given_away() -> Failure {
    let message = "burst was sent, emptied or freed, or is another port's, or never was a burst";
    Failure::new(Code::NOS_RELAY_E_HANDLE, message)
}

/// Gives packets of a burst to C, for as many as there is room for.
#[inline]
pub(crate) fn unpack(
    burst: &mut PacketBurst,
    to: &mut [MaybeUninit<*mut nos_relay_packet>],
) -> usize {
    let count = burst.len().min(to.len());
    for (place, packet) in to.iter_mut().zip(burst.drain(..count)) {
        place.write(lend(packet));
    }
    count
}

/// Takes packets from C into a burst that has room for them. `before` others have the names in front.
#[inline]
pub(crate) fn pack(
    packets: &[*mut nos_relay_packet],
    before: usize,
    burst: &mut PacketBurst,
) -> Outcome {
    for (n, &handle) in packets.iter().enumerate() {
        // SAFETY: it is a packet of the caller's, or told to be none.
        let packet = unsafe { take(handle, Name::Element("packets", before + n)) }?;
        burst.push(packet);
    }
    Ok(())
}

/// Undoes [`pack`]: the packets are C's again, by the handles that they had.
pub(crate) fn give_back(burst: &mut PacketBurst) {
    burst.drain(..).map(lend).for_each(drop);
}
