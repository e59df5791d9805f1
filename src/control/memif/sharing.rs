//! What is shared with a peer, as it is put together.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::message::{AddRegion, AddRing};
use super::session::{Agreed, Attached, Refusal};
use crate::data::device::memif::{
    BUFFER, Bell, Connection, MAX_SHARED, Memory, Region, RegionError, Ring, RxRing, Side, TxQueue,
    TxRing, is_eventfd, ring_octets,
};

/// A connection for a device, and what it is rung by.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) connection: Box<Connection>,
    pub(super) rung_by: Vec<Arc<OwnedFd>>,
}

/// What a server has been given so far.
#[derive(Debug, Default)]
pub(super) struct Given {
    regions: Vec<Region>,
    octets: u64,
    rings: Vec<(AddRing, Arc<OwnedFd>)>,
}

impl Given {
    pub(super) fn add_region(&mut self, region: AddRegion, file: &OwnedFd) -> Result<(), Refusal> {
        let AddRegion { index, size } = region;
        let octets = self.octets.saturating_add(size);
        if octets > MAX_SHARED {
            let claimed = size;
            return Err(RegionError::Size { index, claimed }.into());
        }
        self.regions.push(Region::of_peer(index, file, size)?);
        self.octets = octets;
        Ok(())
    }

    pub(super) fn add_ring(&mut self, ring: AddRing, eventfd: OwnedFd) -> Result<(), Refusal> {
        if !is_eventfd(&eventfd) {
            return Err(Refusal::NoEventfd);
        }
        self.rings.push((ring, Arc::new(eventfd)));
        Ok(())
    }

    /// The connection, of rings that are what they have to be.
    pub(super) fn connect(self) -> Result<Made, Refusal> {
        let memory = Arc::new(Memory::new(self.regions));
        let (mut rx, mut tx, mut rung_by) = (Vec::new(), Vec::new(), Vec::new());
        for (add, eventfd) in self.rings {
            let AddRing {
                region,
                offset,
                log2_size,
                ..
            } = add;
            let ring = Ring::at(&memory, Side::Server, region, offset, log2_size)?;
            ring.check()?;
            if add.to_server {
                rx.push(RxRing::of_server(ring));
                rung_by.push(eventfd);
            } else {
                tx.push(TxQueue {
                    ring: TxRing::of_server(ring),
                    bell: Bell::new(&eventfd),
                });
            }
        }
        made(rx, tx, rung_by)
    }
}

fn made(rx: Vec<RxRing>, tx: Vec<TxQueue>, rung_by: Vec<Arc<OwnedFd>>) -> Result<Made, Refusal> {
    let connection = Connection::new(rx, tx).ok_or(Refusal::NoRing("each way"))?;
    Ok(Made {
        connection: Box::new(connection),
        rung_by,
    })
}

/// What a client shares: one region, with rings first and buffers behind them.
#[derive(Debug)]
pub(super) struct Shared {
    agreed: Agreed,
    memory: Arc<Memory>,
    file: OwnedFd,
    to_server: Vec<Arc<OwnedFd>>,
    to_client: Vec<Arc<OwnedFd>>,
}

impl Shared {
    /// Makes region and eventfds.
    pub(super) fn new(agreed: Agreed) -> Result<Self, Refusal> {
        let octets = usize::try_from(Self::octets(agreed)).unwrap_or(usize::MAX);
        let (region, file) = Region::create(octets)?;
        let eventfds = |count| (0..count).map(|_| eventfd()).collect::<Result<Vec<_>, _>>();
        let shared = Self {
            agreed,
            memory: Arc::new(Memory::new(vec![region])),
            file,
            to_server: eventfds(agreed.to_server)?,
            to_client: eventfds(agreed.to_client)?,
        };
        for index in 0..shared.rings() {
            shared.ring(index)?.initialise();
        }
        Ok(shared)
    }

    fn rings(&self) -> u32 {
        u32::from(self.agreed.to_server) + u32::from(self.agreed.to_client)
    }

    /// Octets of the region.
    pub(super) fn octets(agreed: Agreed) -> u64 {
        let rings = u64::from(agreed.to_server) + u64::from(agreed.to_client);
        let buffers = u64::from(BUFFER) << agreed.log2_ring_size;
        rings * (u64::from(ring_octets(agreed.log2_ring_size)) + buffers)
    }

    /// Where a ring is in the region.
    pub(super) fn offset(agreed: Agreed, to_server: bool, index: u16) -> u32 {
        let before = if to_server { 0 } else { agreed.to_server };
        (u32::from(before) + u32::from(index)) * ring_octets(agreed.log2_ring_size)
    }

    /// Where the buffers of a ring are, which is the `n`th of all.
    fn buffers(&self, n: u32) -> u32 {
        let log2 = self.agreed.log2_ring_size;
        self.rings() * ring_octets(log2) + n * (BUFFER << log2)
    }

    fn ring(&self, n: u32) -> Result<Ring, Refusal> {
        let log2 = self.agreed.log2_ring_size;
        let offset = n * ring_octets(log2);
        Ok(Ring::at(&self.memory, Side::Client, 0, offset, log2)?)
    }

    /// The descriptor that goes with a message.
    pub(super) fn attached(&self, attached: Attached) -> Option<&OwnedFd> {
        match attached {
            Attached::Nothing => None,
            Attached::Region => Some(&self.file),
            Attached::Ring { to_server, index } => {
                let eventfds = if to_server {
                    &self.to_server
                } else {
                    &self.to_client
                };
                eventfds.get(usize::from(index)).map(|eventfd| &**eventfd)
            }
        }
    }

    /// The connection: the server has everything.
    pub(super) fn connect(self) -> Result<Made, Refusal> {
        let (mut rx, mut tx) = (Vec::new(), Vec::new());
        let to_server = u32::from(self.agreed.to_server);
        for n in 0..self.rings() {
            let (ring, buffers) = (self.ring(n)?, self.buffers(n));
            match self.to_server.get(n as usize) {
                Some(eventfd) if n < to_server => tx.push(TxQueue {
                    ring: TxRing::of_client(ring, buffers),
                    bell: Bell::new(eventfd),
                }),
                _ => rx.push(RxRing::of_client(ring, buffers)),
            }
        }
        made(rx, tx, self.to_client)
    }
}

fn eventfd() -> Result<Arc<OwnedFd>, Refusal> {
    let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
    let eventfd = EventFd::from_flags(flags)
        .map_err(|errno| Refusal::System(format!("cannot make an eventfd: {}", errno.desc())))?;
    Ok(Arc::new(eventfd.into()))
}
