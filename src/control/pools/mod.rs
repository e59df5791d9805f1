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
mod pool;
mod space;
mod stored;
#[cfg(test)]
mod tests;

use core::net::IpAddr;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use thiserror::Error;

use crate::control::config::{
    AddressRange, Amount, DEFAULT_POOL, Name, PoolDefinition, PoolKind, PoolRequest, Released,
    TOTAL_POOL, VrfName,
};

pub use blocks::{Block, Blocks, Pair, Place};
pub use pool::{Pool, Record};
pub use space::Space;
pub use stored::{BadPool, StoredPool};

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
            held: holder.map(|holder| (pair.place().address(), holder)),
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

/// What undoes a change.
#[derive(Clone, Debug)]
enum Undo {
    Record(Name, Place, Option<Record>),
    Pool(Name, Option<(PoolDefinition, Blocks)>),
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
    holders: HashMap<String, BTreeSet<(Name, Place)>>,
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

    /// Everybody who holds something.
    pub fn holders(&self) -> impl Iterator<Item = &str> {
        self.holders.keys().map(String::as_str)
    }

    /// What somebody holds.
    #[must_use]
    pub fn held_by(&self, holder: &str) -> Vec<Pair> {
        let held = self.holders.get(holder).into_iter().flatten();
        let pairs = held.filter_map(|(pool, place)| self.pools.get(pool)?.blocks.at(*place));
        pairs.collect()
    }

    /// Addresses of a VRF that no pool has, and nobody else.
    #[must_use]
    pub fn left(&self, vrf: &VrfName, space: &Space) -> Blocks {
        let mut left = space.total(vrf);
        for pool in self.pools.values().filter(|it| it.definition.vrf == *vrf) {
            pool.blocks.iter().for_each(|block| left.remove(block));
        }
        for address in space.in_use(vrf) {
            if let Some(pair) = left.find(address) {
                left.remove_at(pair.place());
            }
        }
        left
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

    /// Makes a pool, with `amount` to begin with. Returns whether it was not there.
    ///
    /// # Errors
    ///
    /// Another one has the name; it cannot be what it is to be; there is not so much.
    pub fn create(
        &mut self,
        definition: &PoolDefinition,
        amount: Amount,
        space: &Space,
    ) -> Result<bool, PoolError> {
        let name = &definition.name;
        if let Some(known) = self.pools.get(name) {
            return match known.definition == *definition {
                true => Ok(false),
                false => Err(PoolError::wrong(
                    "name",
                    format!("pool \"{name}\" is there and is another one; remove it first"),
                )),
            };
        }
        check_definition(definition)?;
        if let Some(inside) = &definition.inside {
            self.check_parent(definition, inside)?;
        }
        if !space.vrfs().any(|vrf| *vrf == definition.vrf) {
            let reason = format!("no uplink is in VRF \"{}\"", definition.vrf);
            return Err(PoolError::wrong("vrf", reason));
        }
        let mark = self.mark();
        self.put(name.clone(), Some((definition.clone(), Blocks::default())));
        let grown = self.grow(name, amount, space);
        if let Err(error) = grown {
            self.roll_back(mark);
            return Err(error);
        }
        Ok(true)
    }

    fn check_parent(&self, definition: &PoolDefinition, inside: &Name) -> Result<(), PoolError> {
        let wrong = |reason| Err(PoolError::wrong("inside", reason));
        let Some(parent) = self.pools.get(inside) else {
            return wrong(self.no_pool(inside));
        };
        let kind = parent.definition.kind;
        if kind != PoolKind::Netspace {
            return wrong(format!(
                "pool \"{inside}\" is of kind \"{kind}\"; an application's pool lies in a netspace or in \
                 \"{TOTAL_POOL}\""
            ));
        }
        if parent.definition.vrf != definition.vrf {
            return wrong(format!(
                "pool \"{inside}\" is in VRF \"{}\", and this one in VRF \"{}\"",
                parent.definition.vrf, definition.vrf
            ));
        }
        Ok(())
    }

    /// Removes a pool. Returns whether it was there.
    ///
    /// # Errors
    ///
    /// Somebody holds an address of it; a pool lies in it.
    pub fn remove(&mut self, name: &Name) -> Result<bool, PoolError> {
        if name.as_str() == TOTAL_POOL {
            return Err(of_total());
        }
        let Some(pool) = self.pools.get(name) else {
            return Ok(false);
        };
        if pool.held > 0 {
            let first = pool
                .records()
                .find_map(|(_, record)| record.holder.as_ref());
            let first = first.map_or(String::new(), |holder| {
                format!(", by \"{holder}\" among others")
            });
            let reason = format!("{} of pool \"{name}\" are in use{first}", pairs(pool.held));
            return Err(PoolError::conflict("name", reason));
        }
        if let Some(inside) = self.inside(name).next() {
            let reason = format!(
                "pool \"{}\" lies in it; remove that first",
                inside.definition.name
            );
            return Err(PoolError::conflict("name", reason));
        }
        let places: Vec<_> = pool.records.keys().copied().collect();
        for place in places {
            self.set(name, place, None);
        }
        self.put(name.clone(), None);
        Ok(true)
    }

    /// The pools that lie in a netspace.
    fn inside<'a>(&'a self, name: &'a Name) -> impl Iterator<Item = &'a Pool> {
        let pools = self.pools.values();
        pools.filter(move |pool| pool.definition.inside.as_ref() == Some(name))
    }

    /// Gives a pool more, out of what it lies in.
    ///
    /// # Errors
    ///
    /// There is not so much, or somebody has some of it.
    pub fn grow(&mut self, name: &Name, amount: Amount, space: &Space) -> Result<(), PoolError> {
        let pool = self.existing(name)?;
        let source = self.source(pool, space);
        let blocks = match amount {
            Amount::Size(size) => {
                let blocks = source.lowest(size);
                let found: u64 = blocks.iter().map(|block| u64::from(block.count())).sum();
                if found < u64::from(size) {
                    let whence = whence(pool);
                    let reason = format!("{whence} has {} left, not {size}", pairs(found));
                    return Err(PoolError::conflict("size", reason));
                }
                blocks
            }
            Amount::Range(range) => self.range(pool, &source, range, space)?,
        };
        let more: u64 = blocks.iter().map(|block| u64::from(block.count())).sum();
        let all = pool.blocks.count() + more;
        if all > u64::from(pool.definition.max) {
            let max = pool.definition.max;
            let reason = format!(
                "pool \"{name}\" would have {}, and has {max} at most",
                pairs(all)
            );
            return Err(PoolError::wrong("size", reason));
        }
        if !blocks.is_empty() {
            self.give(name, &blocks);
        }
        Ok(())
    }

    /// What a pool can grow by.
    fn source(&self, pool: &Pool, space: &Space) -> Blocks {
        match &pool.definition.inside {
            None => self.left(&pool.definition.vrf, space),
            Some(inside) => {
                let parent = self.pools.get(inside);
                let mut free = parent.map(|it| it.free.clone()).unwrap_or_default();
                for address in space.in_use(&pool.definition.vrf) {
                    if let Some(pair) = free.find(address) {
                        free.remove_at(pair.place());
                    }
                }
                free
            }
        }
    }

    /// The pairs from one address to another, if a pool can have all of them.
    fn range(
        &self,
        pool: &Pool,
        source: &Blocks,
        range: AddressRange,
        space: &Space,
    ) -> Result<Vec<Block>, PoolError> {
        let total = space.total(&pool.definition.vrf);
        let ends = [range.first, range.last].map(|end| total.find(end));
        let [Some(first), Some(last)] = ends else {
            let outside = if ends[0].is_none() {
                range.first
            } else {
                range.last
            };
            let reason = format!(
                "{outside} is no host's address in a network of an uplink of VRF \"{}\"",
                pool.definition.vrf
            );
            return Err(PoolError::wrong("range", reason));
        };
        let wanted = total.within(first.place(), last.place());
        let count: u64 = wanted.iter().map(|block| u64::from(block.count())).sum();
        if count > u64::from(pool.definition.max) {
            let (name, max) = (&pool.definition.name, pool.definition.max);
            let reason = format!(
                "{range} is {}, and pool \"{name}\" has {max} at most",
                pairs(count)
            );
            return Err(PoolError::wrong("range", reason));
        }
        for pair in wanted.iter().copied().flat_map(Block::pairs) {
            if source.at(pair.place()).is_some() {
                continue;
            }
            let whose = match space.owner(&pool.definition.vrf, pair) {
                Some((_, whose)) => whose.to_owned(),
                None => self.whose(pair.place(), &pool.definition),
            };
            return Err(PoolError::conflict("range", format!("{pair} is {whose}")));
        }
        Ok(wanted)
    }

    /// Which pool has a pair that another one cannot get.
    fn whose(&self, place: Place, asking: &PoolDefinition) -> String {
        let mut pools = self.pools.values();
        let has =
            |pool: &&Pool| pool.definition.vrf == asking.vrf && pool.blocks.at(place).is_some();
        let innermost = |pool: &&Pool| pool.definition.inside.is_some();
        let found = self
            .pools
            .values()
            .filter(has)
            .find(innermost)
            .or_else(|| pools.find(has));
        match (found, &asking.inside) {
            (Some(pool), Some(inside)) if pool.definition.name == *inside => {
                format!("in use in pool \"{inside}\"")
            }
            (Some(pool), _) => format!("pool \"{}\"'s", pool.definition.name),
            (None, Some(inside)) => format!("not in pool \"{inside}\""),
            (None, None) => "not free".to_owned(),
        }
    }

    /// Has a pool give some back to what it lies in.
    ///
    /// # Errors
    ///
    /// Somebody holds some of it, or is to have it.
    pub fn shrink(&mut self, name: &Name, amount: Amount) -> Result<(), PoolError> {
        let pool = self.existing(name)?;
        let taken = match amount {
            Amount::Size(size) => {
                let idle = pool.idle(size.into());
                if (idle.len() as u64) < u64::from(size) {
                    return Err(PoolError::conflict("size", too_small(pool, size)));
                }
                idle
            }
            Amount::Range(range) => idle_range(pool, range)?,
        };
        self.take_back(name, &taken);
        Ok(())
    }

    /// Has a workload, and nobody else, get an address whenever it comes. Returns which.
    ///
    /// # Errors
    ///
    /// Somebody else has it, or is to have it; nothing is left.
    pub fn reserve(
        &mut self,
        name: &Name,
        workload: &str,
        address: Option<IpAddr>,
        space: &Space,
    ) -> Result<Pair, PoolError> {
        let mark = self.mark();
        let reserved = self.reserved(name, workload, address, space);
        if reserved.is_err() {
            self.roll_back(mark);
        }
        reserved
    }

    fn reserved(
        &mut self,
        name: &Name,
        workload: &str,
        address: Option<IpAddr>,
        space: &Space,
    ) -> Result<Pair, PoolError> {
        let pool = self.existing(name)?;
        let pair = match address {
            Some(address) => self.reservable(pool, workload, address, space)?,
            None => match pool.held_for(workload) {
                Some(pair) => pair,
                None => self.found(name, Some(workload), space)?,
            },
        };
        let pool = self.existing(name)?;
        let before = pool.record(pair.place()).cloned().unwrap_or_default();
        let record = Record {
            workload: Some(workload.to_owned()),
            reserved: true,
            ..before.clone()
        };
        if record != before {
            self.set(name, pair.place(), Some(record));
        }
        Ok(pair)
    }

    fn reservable(
        &self,
        pool: &Pool,
        workload: &str,
        address: IpAddr,
        space: &Space,
    ) -> Result<Pair, PoolError> {
        let pair = self.of_pool(pool, address)?;
        let record = pool.record(pair.place());
        let of_another = record.filter(|it| it.workload.as_deref() != Some(workload));
        if let Some(record) = of_another
            && !pool.is_idle(pair.place())
        {
            return Err(PoolError::taken("address", pair, record));
        }
        match space.owner(&pool.definition.vrf, pair) {
            Some((address, whose)) if record.is_none_or(|it| it.holder.is_none()) => Err(
                PoolError::conflict("address", format!("{address} is {whose}")),
            ),
            _ => Ok(pair),
        }
    }

    /// Forgets what is said of an address, of a workload, or of a holder. Returns how many pairs that was about.
    ///
    /// # Errors
    ///
    /// There is no such pool, or it does not have the address.
    pub fn forget(&mut self, name: &Name, what: &Released) -> Result<usize, PoolError> {
        let pool = self.existing(name)?;
        let places = match what {
            Released::Address(address) => vec![self.of_pool(pool, *address)?.place()],
            Released::Workload(workload) => pool.places_of(workload),
            Released::Holder(holder) => {
                let held = self.holders.get(holder.as_str()).into_iter().flatten();
                let here = held.filter(|(pool, _)| pool == name);
                let places: Vec<_> = here.map(|(_, place)| *place).collect();
                let count = places.len();
                places
                    .into_iter()
                    .for_each(|place| self.let_go(name, place));
                self.follow(name);
                return Ok(count);
            }
        };
        let mut known = Vec::new();
        for place in places {
            let Some(record) = pool.record(place) else {
                continue;
            };
            if let Some(holder) = record.holder.as_deref().filter(|it| !is_of_engine(it)) {
                let address = place.address();
                let reason = format!("container \"{holder}\" has {address}; detach it first");
                return Err(PoolError::conflict("address", reason));
            }
            known.push(place);
        }
        for place in &known {
            self.set(name, *place, None);
        }
        Ok(known.len())
    }

    /// Gives somebody an address: what it holds already; else what is reserved for its workload, what that released
    /// last, what nobody has had, or what was released longest ago, in this order.
    ///
    /// # Errors
    ///
    /// There is no such pool, nothing is left in it, or the holder has an address of another one.
    pub fn draw(&mut self, wanted: Wanted<'_>, space: &Space) -> Result<Pair, PoolError> {
        let mark = self.mark();
        let drawn = self.drawn(wanted, space);
        if drawn.is_err() {
            self.roll_back(mark);
        }
        drawn
    }

    fn drawn(&mut self, wanted: Wanted<'_>, space: &Space) -> Result<Pair, PoolError> {
        let name = self.chosen(wanted)?;
        if let Some((pool, place)) = self.holders.get(wanted.holder).and_then(|it| it.first()) {
            let has = self.pools.get(pool).and_then(|it| it.blocks.at(*place));
            return match has {
                Some(pair) if *pool == name => Ok(pair),
                _ => {
                    let holder = wanted.holder;
                    let reason = format!("\"{holder}\" has {} of pool \"{pool}\"", place.address());
                    Err(PoolError::conflict("pool", reason))
                }
            };
        }
        let pair = self.found(&name, wanted.workload, space)?;
        self.hold(&name, pair.place(), wanted);
        let pool = self.existing(&name)?;
        if pool
            .definition
            .elastic
            .is_some_and(|it| pool.available() < it.low.into())
        {
            self.stretch(&name, space);
        }
        Ok(pair)
    }

    /// The pool that somebody means, which is there.
    fn chosen(&mut self, wanted: Wanted<'_>) -> Result<Name, PoolError> {
        let name = match wanted.pool {
            Some(name) => name.clone(),
            None => self.of_who_names_none(wanted.vrf)?,
        };
        let pool = self.existing(&name)?;
        if pool.definition.vrf != *wanted.vrf {
            let reason = format!(
                "pool \"{name}\" is in VRF \"{}\", and the container in VRF \"{}\"",
                pool.definition.vrf, wanted.vrf
            );
            return Err(PoolError::wrong("pool", reason));
        }
        Ok(name)
    }

    /// The default pool, which is made when it is first needed.
    fn of_who_names_none(&mut self, vrf: &VrfName) -> Result<Name, PoolError> {
        let mut pools = self.pools.values();
        let known =
            pools.find(|it| it.definition.kind == PoolKind::Default && it.definition.vrf == *vrf);
        if let Some(pool) = known {
            return Ok(pool.definition.name.clone());
        }
        let name = DEFAULT_POOL.parse::<Name>();
        match name {
            Ok(name) if *vrf == VrfName::Default && !self.pools.contains_key(&name) => {
                let definition = PoolDefinition::usual_default(name.clone());
                self.put(name.clone(), Some((definition, Blocks::default())));
                Ok(name)
            }
            _ => {
                let pools = self.pools.values().filter(|it| it.definition.vrf == *vrf);
                let names: Vec<_> = pools
                    .map(|it| format!("\"{}\"", it.definition.name))
                    .collect();
                let there = match names.is_empty() {
                    true => "there is none".to_owned(),
                    false => format!("there is {}", names.join(", ")),
                };
                let reason = format!("name a pool of VRF \"{vrf}\"; {there}");
                Err(PoolError::wrong("pool", reason))
            }
        }
    }

    /// What a workload gets, for which the pool grows if it has to.
    fn found(
        &mut self,
        name: &Name,
        workload: Option<&str>,
        space: &Space,
    ) -> Result<Pair, PoolError> {
        if let Some(pair) = self.candidate(name, workload, space)? {
            return Ok(pair);
        }
        self.stretch(name, space);
        match self.candidate(name, workload, space)? {
            Some(pair) => Ok(pair),
            None => Err(exhausted(self.existing(name)?)),
        }
    }

    /// What a workload would get.
    fn candidate(
        &self,
        name: &Name,
        workload: Option<&str>,
        space: &Space,
    ) -> Result<Option<Pair>, PoolError> {
        let pool = self.existing(name)?;
        let own = workload.map(|it| pool.for_workload(it)).unwrap_or_default();
        let mut all = own.into_iter().chain(pool.for_anybody());
        let vrf = &pool.definition.vrf;
        Ok(all.find(|pair| space.has(vrf, *pair) && space.owner(vrf, *pair).is_none()))
    }

    /// Gives somebody the addresses that it names, as far as a pool has them. An address that somebody keeps for
    /// engines may be named by a container.
    ///
    /// # Errors
    ///
    /// Somebody else has one, or is to have it; the pool that is named does not have it.
    pub fn claim(
        &mut self,
        address: IpAddr,
        wanted: Wanted<'_>,
    ) -> Result<Option<Pair>, PoolError> {
        let found = match wanted.pool {
            Some(_) => {
                let name = self.chosen(wanted)?;
                let pair = self.of_pool(self.existing(&name)?, address)?;
                Some((name, pair))
            }
            None => self.find(wanted.vrf, address),
        };
        let Some((name, pair)) = found else {
            return Ok(None);
        };
        let record = self.existing(&name)?.record(pair.place());
        if let Some(record) = record {
            let held = record
                .holder
                .as_deref()
                .is_some_and(|holder| holder != wanted.holder);
            let kept = held
                && record.holder.as_deref().is_some_and(is_of_engine)
                && !is_of_engine(wanted.holder);
            if kept {
                return Ok(Some(pair));
            }
            let pool = self.existing(&name)?;
            let of_another =
                record.workload.is_some() && record.workload.as_deref() != wanted.workload;
            let bound = record.holder.is_none() && of_another && !pool.is_idle(pair.place());
            if held || bound {
                return Err(PoolError::taken("address", pair, record));
            }
        }
        self.hold(&name, pair.place(), wanted);
        Ok(Some(pair))
    }

    /// Gives somebody an address that it names, which has to be of a pool and nobody's.
    ///
    /// # Errors
    ///
    /// As [`Self::claim`]; no pool has it, or somebody has it without a pool.
    pub fn keep(
        &mut self,
        address: IpAddr,
        wanted: Wanted<'_>,
        space: &Space,
    ) -> Result<Pair, PoolError> {
        let mark = self.mark();
        let Some(pair) = self.claim(address, wanted)? else {
            let reason = format!("{address} is in no pool of VRF \"{}\"", wanted.vrf);
            return Err(PoolError::wrong("address", reason));
        };
        match space.owner(wanted.vrf, pair) {
            Some((address, whose)) if self.mark() != mark => {
                let reason = format!("{address} is {whose}");
                self.roll_back(mark);
                Err(PoolError::conflict("address", reason))
            }
            _ => Ok(pair),
        }
    }

    /// The innermost pool of a VRF that has an address.
    fn find(&self, vrf: &VrfName, address: IpAddr) -> Option<(Name, Pair)> {
        let here = self.pools.values().filter(|it| it.definition.vrf == *vrf);
        let found = here.filter_map(|pool| Some((pool, pool.blocks.find(address)?)));
        let innermost = found.max_by_key(|(pool, _)| pool.definition.inside.is_some());
        innermost.map(|(pool, pair)| (pool.definition.name.clone(), pair))
    }

    /// Lets go of all that somebody holds. Returns what that was.
    pub fn release(&mut self, holder: &str) -> Vec<Pair> {
        let held = self.holders.get(holder).cloned().unwrap_or_default();
        let mut released = Vec::new();
        for (name, place) in held {
            released.extend(self.pools.get(&name).and_then(|it| it.blocks.at(place)));
            self.let_go(&name, place);
            self.follow(&name);
        }
        released
    }

    fn hold(&mut self, name: &Name, place: Place, wanted: Wanted<'_>) {
        let before = self
            .pools
            .get(name)
            .and_then(|pool| pool.record(place))
            .cloned();
        let before = before.unwrap_or_default();
        if before.holder.as_deref() == Some(wanted.holder) {
            return;
        }
        let workload = match (&before.workload, before.reserved) {
            (Some(of), true) => Some(of.clone()),
            _ => wanted.workload.map(str::to_owned),
        };
        let record = Record {
            workload,
            holder: Some(wanted.holder.to_owned()),
            ..before
        };
        self.set(name, place, Some(record));
    }

    fn let_go(&mut self, name: &Name, place: Place) {
        let Some(before) = self.pools.get(name).and_then(|pool| pool.record(place)) else {
            return;
        };
        let mut record = before.clone();
        self.last_order += 1;
        record.holder = None;
        record.order = self.last_order;
        self.set(name, place, Some(record));
    }

    /// Has a pool grow by its step, or by what there is.
    fn stretch(&mut self, name: &Name, space: &Space) {
        let Some(pool) = self.pools.get(name) else {
            return;
        };
        let Some(elastic) = pool.definition.elastic else {
            return;
        };
        let room = u64::from(pool.definition.max).saturating_sub(pool.blocks.count());
        let room = u32::try_from(room).unwrap_or(u32::MAX);
        let blocks = self.source(pool, space).lowest(elastic.step.min(room));
        if !blocks.is_empty() {
            self.give(name, &blocks);
        }
    }

    /// Has a pool that has too much left give some back.
    fn follow(&mut self, name: &Name) {
        let Some(pool) = self.pools.get(name) else {
            return;
        };
        let Some(elastic) = pool.definition.elastic else {
            return;
        };
        if pool.available() > elastic.high.into() {
            let idle = pool.idle(elastic.step.into());
            self.take_back(name, &idle);
        }
    }

    /// Moves blocks into a pool, out of what it lies in.
    fn give(&mut self, name: &Name, blocks: &[Block]) {
        let Some(pool) = self.pools.get(name) else {
            return;
        };
        let (definition, mut all) = (pool.definition.clone(), pool.blocks.clone());
        blocks.iter().for_each(|block| all.insert(*block));
        self.put(name.clone(), Some((definition, all)));
    }

    /// Moves pairs out of a pool that nobody holds.
    fn take_back(&mut self, name: &Name, idle: &[Pair]) {
        for pair in idle {
            if self
                .pools
                .get(name)
                .is_some_and(|it| it.record(pair.place()).is_some())
            {
                self.set(name, pair.place(), None);
            }
        }
        let Some(pool) = self.pools.get(name) else {
            return;
        };
        let (definition, mut all) = (pool.definition.clone(), pool.blocks.clone());
        idle.iter().for_each(|pair| all.remove_at(pair.place()));
        self.put(name.clone(), Some((definition, all)));
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

    /// What is known of a pair from now on.
    fn set(&mut self, name: &Name, place: Place, record: Option<Record>) {
        let before = self.set_unnoted(name, place, record);
        self.undo.push(Undo::Record(name.clone(), place, before));
    }

    fn set_unnoted(&mut self, name: &Name, place: Place, record: Option<Record>) -> Option<Record> {
        self.revision += 1;
        let holder = record.as_ref().and_then(|it| it.holder.clone());
        let before = self.pools.get_mut(name)?.set(place, record);
        let entry = (name.clone(), place);
        if let Some(holder) = before.as_ref().and_then(|it| it.holder.as_ref())
            && let Some(held) = self.holders.get_mut(holder)
        {
            held.remove(&entry);
            if held.is_empty() {
                self.holders.remove(holder);
            }
        }
        if let Some(holder) = holder {
            self.holders.entry(holder).or_default().insert(entry);
        }
        before
    }

    /// What a pool is and has from now on; nothing of one that is no more. What is known of its pairs stays.
    fn put(&mut self, name: Name, pool: Option<(PoolDefinition, Blocks)>) {
        let before = self.put_unnoted(&name, pool);
        self.undo.push(Undo::Pool(name, before));
    }

    fn put_unnoted(
        &mut self,
        name: &Name,
        pool: Option<(PoolDefinition, Blocks)>,
    ) -> Option<(PoolDefinition, Blocks)> {
        self.revision += 1;
        let before = self.pools.get(name);
        let before = before.map(|it| (it.definition.clone(), it.blocks.clone()));
        let none = Blocks::default();
        let had = before.as_ref().map_or(&none, |(_, blocks)| blocks);
        let has = pool.as_ref().map_or(&none, |(_, blocks)| blocks);
        let (more, less) = (has.without(had), had.without(has));
        let either = before.as_ref().or(pool.as_ref());
        if let Some(parent) = either.and_then(|(it, _)| it.inside.as_ref())
            && let Some(parent) = self.pools.get_mut(parent)
        {
            more.iter().for_each(|block| parent.free.remove(block));
            less.iter().for_each(|block| parent.free.insert(block));
        }
        match pool {
            None => drop(self.pools.remove(name)),
            Some((definition, blocks)) => match self.pools.get_mut(name) {
                Some(known) => known.resize(blocks, &more, &less),
                None => drop(
                    self.pools
                        .insert(name.clone(), Pool::new(definition, blocks)),
                ),
            },
        }
        before
    }

    /// Finds what is free in a pool.
    fn find_free(&mut self, name: &Name) {
        let inside: Vec<_> = self.inside(name).flat_map(|it| it.blocks.iter()).collect();
        if let Some(pool) = self.pools.get_mut(name) {
            pool.find_free(inside.into_iter());
        }
    }

    /// How far changes have come.
    #[must_use]
    pub fn mark(&self) -> Mark {
        Mark(self.undo.len())
    }

    /// That of what is stored.
    #[must_use]
    pub fn stored_mark(&self) -> Mark {
        Mark(0)
    }

    /// Undoes everything since a mark.
    pub fn roll_back(&mut self, mark: Mark) {
        while self.undo.len() > mark.0 {
            match self.undo.pop() {
                Some(Undo::Record(name, place, record)) => {
                    self.set_unnoted(&name, place, record);
                }
                Some(Undo::Pool(name, pool)) => {
                    self.put_unnoted(&name, pool);
                }
                None => return,
            }
        }
    }

    /// Takes what there is as stored.
    pub fn committed(&mut self) {
        self.undo.clear();
    }
}

/// Marks holders that keep addresses for an engine, which are no containers: no container's name has it.
pub const ENGINE: char = '/';

fn is_of_engine(holder: &str) -> bool {
    holder.contains(ENGINE)
}

fn check_definition(definition: &PoolDefinition) -> Result<(), PoolError> {
    let PoolDefinition {
        name,
        kind,
        inside,
        elastic,
        ..
    } = definition;
    if name.as_str() == TOTAL_POOL {
        return Err(of_total());
    }
    if inside.is_some() && *kind != PoolKind::Application {
        let reason = format!("a pool of kind \"{kind}\" lies in \"{TOTAL_POOL}\", and in no other");
        return Err(PoolError::wrong("inside", reason));
    }
    if (name.as_str() == DEFAULT_POOL) != (*kind == PoolKind::Default) {
        let reason = format!("the pool \"{DEFAULT_POOL}\", and no other, is of kind \"default\"");
        return Err(PoolError::wrong("kind", reason));
    }
    if let Some(elastic) = elastic
        && elastic.high < elastic.low.saturating_add(elastic.step)
    {
        let least = elastic.low.saturating_add(elastic.step);
        let reason = format!("is less than low and step together, which are {least}");
        return Err(PoolError::wrong("high", reason));
    }
    Ok(())
}

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

fn exhausted(pool: &Pool) -> PoolError {
    let PoolDefinition {
        name, elastic, max, ..
    } = &pool.definition;
    let (count, held, kept) = (pool.blocks.count(), pool.held, pool.kept());
    let why = match elastic {
        None => "it keeps its size".to_owned(),
        Some(_) if count >= u64::from(*max) => format!("it has {max} at most"),
        Some(_) => format!("{} has none left", whence(pool)),
    };
    let reason = format!(
        "pool \"{name}\" is exhausted: of {}, {held} in use and {kept} kept for workloads; {why}",
        pairs(count)
    );
    PoolError::conflict("pool", reason)
}

fn too_small(pool: &Pool, size: u32) -> String {
    format!(
        "pool \"{}\" cannot give back {size} of its {}: {} in use, {} kept for workloads, {} in pools inside; \
         {} can be given back",
        pool.definition.name,
        pairs(pool.blocks.count()),
        pool.held,
        pool.kept(),
        pool.inside_count(),
        pool.available()
    )
}

fn idle_range(pool: &Pool, range: AddressRange) -> Result<Vec<Pair>, PoolError> {
    let name = &pool.definition.name;
    let ends = [range.first, range.last].map(|end| pool.blocks.find(end));
    let [Some(first), Some(last)] = ends else {
        let outside = if ends[0].is_none() {
            range.first
        } else {
            range.last
        };
        let reason = format!("{outside} is not in pool \"{name}\"");
        return Err(PoolError::wrong("range", reason));
    };
    let wanted = pool.blocks.within(first.place(), last.place());
    let wanted: Vec<_> = wanted.into_iter().flat_map(Block::pairs).collect();
    let busy = wanted.iter().find(|pair| !pool.is_idle(pair.place()));
    match busy {
        None => Ok(wanted),
        Some(pair) => {
            let reason = match pool.record(pair.place()) {
                Some(record) => taken(*pair, record),
                None => format!("{pair} is in a pool that lies in pool \"{name}\""),
            };
            Err(PoolError::conflict("range", reason))
        }
    }
}
