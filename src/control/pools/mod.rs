//! Pools of addresses: who gets which address of its own.
//!
//! # Theory of operation
//!
//! All networks of a VRF's uplinks are its **total** pool, which gives nobody an address: other pools are made of
//! it, and no two of them have the same address. A **netspace** is a tenant's; an **application**'s pool lies in
//! the total one or in one netspace; the **default** pool is for who names none. What is given out is a [`Pair`]:
//! an address of each family, which belong together by their places in their networks.
//!
//! A **holder** is who has an address now: a container, or somebody who keeps it for an engine. A **workload** is
//! what it runs for, by a name that stays when containers come and go. A pair is in one of these states:
//!
//! ```text
//!            draw                        release
//!  free ────────────────► held ──────────────────────► released ──┐
//!   ▲  └── reserve ─► reserved ─► held ─► reserved         │  ▲   │ draw: by its workload the latest,
//!   └───────────────── forget ───────────────┘             └──┼───┘ by another one the earliest
//!                                                             └ never of an application's workload
//! ```
//!
//! Nothing here knows of a disk. Whatever is changed is noted: [`Pools::writes`] says what has to be stored for
//! it, and [`Pools::roll_back`] undoes what was not. No clock counts either: what was released earlier has the
//! lesser number.

mod blocks;
mod giving;
mod making;
mod pool;
mod space;
mod stored;
#[cfg(test)]
mod tests;
mod undo;

use core::net::IpAddr;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use thiserror::Error;

use crate::control::config::{Name, PoolRequest, TOTAL_POOL, VrfName};

pub use blocks::{Block, Blocks, Pair, Place};
pub use pool::{Pool, Record};
pub use space::Space;
pub use stored::{BadPool, StoredPool};
use undo::Undo;

/// Why something is not done with pools. Nothing is changed then.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{reason}")]
pub struct PoolError {
    /// What of a request is wrong, by its key.
    pub field: &'static str,
    /// Why.
    pub reason: String,
    /// Somebody else has what is asked for, or nothing is left.
    pub conflict: bool,
    /// What is asked for, and who holds it.
    pub held: Option<(IpAddr, String)>,
}

impl PoolError {
    fn wrong(field: &'static str, reason: String) -> Self {
        Self {
            field,
            reason,
            conflict: false,
            held: None,
        }
    }

    fn conflict(field: &'static str, reason: String) -> Self {
        Self {
            field,
            reason,
            conflict: true,
            held: None,
        }
    }

    /// That somebody holds a pair, or is to have it.
    fn taken(field: &'static str, pair: Pair, record: &Record) -> Self {
        let holder = record.holder.clone();
        Self {
            held: holder.map(|holder| (pair.place().address(), holder.to_string())),
            ..Self::conflict(field, taken(pair, record))
        }
    }
}

/// Who wants an address.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Who holds it then, by a name of at most [`MAX_WORKLOAD`](crate::control::config::MAX_WORKLOAD) characters. Nobody holds several by drawing.
    pub holder: &'a str,
    /// What it runs for, if that has a name.
    pub workload: Option<&'a str>,
    /// The VRF that it is in.
    pub vrf: &'a VrfName,
    /// The pool that it names.
    pub pool: Option<&'a Name>,
}

/// What a request has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// Whether anything is other than before.
    pub changed: bool,
    /// What was given, or reserved.
    pub given: Option<Pair>,
}

/// How far changes have come, to be gone back to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark(usize);

/// All pools.
#[derive(Clone, Debug, Default)]
pub struct Pools {
    pools: BTreeMap<Name, Pool>,
    /// What is called by the numbers of pools.
    names: BTreeMap<u32, Name>,
    /// Who holds what of which pool.
    holders: BTreeSet<(Arc<str>, u32, Place)>,
    last_order: u64,
    /// Grows with each change, undone ones included.
    revision: u64,
    /// Of what was changed since the last time that all was stored.
    undo: Vec<Undo>,
}

impl Pools {
    /// Another number after each change.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Pool> {
        self.pools.values()
    }

    /// One of them.
    #[must_use]
    pub fn get(&self, name: &Name) -> Option<&Pool> {
        self.pools.get(name)
    }

    /// Everybody who holds something, each once.
    #[must_use]
    pub fn holders(&self) -> Vec<Arc<str>> {
        let mut holders: Vec<_> = self
            .holders
            .iter()
            .map(|(holder, ..)| Arc::clone(holder))
            .collect();
        holders.dedup();
        holders
    }

    /// What somebody holds.
    #[must_use]
    pub fn held_by(&self, holder: &str) -> Vec<Pair> {
        let held = self.places_of(holder).into_iter();
        let pairs = held.filter_map(|(pool, place)| self.pools.get(&pool)?.blocks.at(place));
        pairs.collect()
    }

    /// What somebody holds, by pool and place.
    fn places_of(&self, holder: &str) -> Vec<(Name, Place)> {
        let holder: Arc<str> = holder.into();
        let all = self.holders.range((Arc::clone(&holder), 0, Place::FIRST)..);
        let own = all.take_while(|(of, ..)| *of == holder);
        let named =
            own.filter_map(|(_, pool, place)| Some((self.names.get(pool)?.clone(), *place)));
        named.collect()
    }

    /// Does what is asked for, all of it or nothing.
    ///
    /// # Errors
    ///
    /// Those of what it does.
    pub fn carry_out(
        &mut self,
        request: &PoolRequest,
        space: &Space,
    ) -> Result<Carried, PoolError> {
        let revision = self.revision;
        let mut given = None;
        match request {
            PoolRequest::Create(definition, amount) => {
                self.create(definition, *amount, space)?;
            }
            PoolRequest::Remove(name) => {
                self.remove(name)?;
            }
            PoolRequest::Grow(name, amount) => self.grow(name, *amount, space)?,
            PoolRequest::Shrink(name, amount) => self.shrink(name, *amount)?,
            PoolRequest::Reserve {
                pool,
                workload,
                address,
            } => given = Some(self.reserve(pool, workload, *address, space)?),
            PoolRequest::Release(name, what) => {
                self.forget(name, what)?;
            }
            PoolRequest::Allocate {
                pool,
                holder,
                vrf,
                workload,
                address,
            } => {
                let wanted = Wanted {
                    holder,
                    workload: workload.as_deref(),
                    vrf,
                    pool: pool.as_ref(),
                };
                given = Some(match address {
                    None => self.draw(wanted, space)?,
                    Some(address) => self.keep(*address, wanted, space)?,
                });
            }
        }
        Ok(Carried {
            changed: self.revision != revision,
            given,
        })
    }

    fn existing(&self, name: &Name) -> Result<&Pool, PoolError> {
        match self.pools.get(name) {
            Some(pool) => Ok(pool),
            None if name.as_str() == TOTAL_POOL => Err(of_total()),
            None => Err(PoolError::wrong("pool", self.no_pool(name))),
        }
    }

    fn no_pool(&self, name: &Name) -> String {
        let names: Vec<_> = self.pools.keys().map(|it| format!("\"{it}\"")).collect();
        match names.len() {
            0 => format!("there is no pool \"{name}\", nor any other"),
            1..=20 => format!("there is no pool \"{name}\"; there is {}", names.join(", ")),
            _ => format!("there is no pool \"{name}\""),
        }
    }

    /// The pair of a pool that has an address, and that no pool inside has.
    fn of_pool(&self, pool: &Pool, address: IpAddr) -> Result<Pair, PoolError> {
        let name = &pool.definition.name;
        let Some(pair) = pool.blocks.find(address) else {
            let reason = format!("{address} is not in pool \"{name}\"");
            return Err(PoolError::wrong("address", reason));
        };
        let inside = self
            .inside(name)
            .find(|it| it.blocks.at(pair.place()).is_some());
        match inside {
            Some(inside) => {
                let inside = &inside.definition.name;
                let reason =
                    format!("{address} is pool \"{inside}\"'s, which lies in pool \"{name}\"");
                Err(PoolError::conflict("address", reason))
            }
            None => Ok(pair),
        }
    }
}

/// Marks holders that keep addresses for an engine, which are no containers: no container's name has it.
pub const ENGINE: char = '/';

fn of_total() -> PoolError {
    let reason = format!(
        "\"{TOTAL_POOL}\" is all networks of the uplinks: it gives nobody an address, and follows them"
    );
    PoolError::wrong("pool", reason)
}

fn whence(pool: &Pool) -> String {
    match &pool.definition.inside {
        Some(inside) => format!("pool \"{inside}\""),
        None => format!("pool \"{TOTAL_POOL}\""),
    }
}

fn pairs(count: u64) -> String {
    match count {
        1 => "1 address".to_owned(),
        _ => format!("{count} addresses"),
    }
}

fn taken(pair: Pair, record: &Record) -> String {
    match (&record.holder, &record.workload) {
        (Some(holder), _) => format!("{pair} is held by \"{holder}\""),
        (None, Some(workload)) => format!("{pair} is kept for workload \"{workload}\""),
        (None, None) => format!("{pair} is kept"),
    }
}
