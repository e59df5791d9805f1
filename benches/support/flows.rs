//! A flow table as a NOS would have it that kept TCP and UDP flows: five-tuples of 1,000 owners.

use std::net::{IpAddr, Ipv4Addr};

use nos_shim::flows::{FlowTable, Limits};
use nos_shim::ident::{AttachmentId, VrfId};
use nos_shim::time::{Duration, Instant};

const OWNERS: usize = 1000;
/// A flow that is not used for so long is forgotten.
pub(crate) const IDLE: Duration = Duration::from_secs(60);

/// What tells a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    vrf: VrfId,
    protocol: u8,
    addresses: [IpAddr; 2],
    ports: [u16; 2],
}

pub(crate) type Flows = FlowTable<AttachmentId, Key, u32>;

/// A different key for each number below 2^24.
pub(crate) fn key(n: usize) -> Key {
    let mut rng = fastrand::Rng::with_seed(n as u64);
    let peer = Ipv4Addr::from(0x0a00_0000 + (n as u32 & 0x00ff_ffff));
    Key {
        vrf: VrfId::DEFAULT,
        protocol: 6,
        addresses: [IpAddr::from([203, 0, 113, 1]), peer.into()],
        ports: [rng.u16(40_000..), 443],
    }
}

pub(crate) fn owner(n: usize) -> AttachmentId {
    AttachmentId((n % OWNERS) as u32)
}

/// An empty table for so many flows.
pub(crate) fn table(flows: usize) -> Flows {
    FlowTable::new(Limits {
        flows,
        per_owner: flows,
        idle: IDLE,
    })
}

/// A full table, all of whose flows were used at time zero.
pub(crate) fn full(flows: usize) -> Flows {
    let mut table = table(flows);
    for n in 0..flows {
        let inserted = table.insert(owner(n), key(n), n as u32, Instant::ZERO);
        inserted.unwrap();
    }
    table
}
