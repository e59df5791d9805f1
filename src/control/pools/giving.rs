//! Who gets which address, and lets go of it.

use core::net::IpAddr;
use std::sync::Arc;

use crate::control::config::{DEFAULT_POOL, Name, PoolDefinition, PoolKind, Released, VrfName};

use super::blocks::{Blocks, Pair, Place};
use super::{ENGINE, Pool, PoolError, Pools, Record, Space, Wanted, pairs, whence};

impl Pools {
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
        self.or_nothing(|pools| pools.reserved(name, workload, address, space))
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
            workload: Some(workload.into()),
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
                let held = self.places_of(holder).into_iter();
                let here = held.filter(|(pool, _)| pool == name);
                let places: Vec<_> = here.map(|(_, place)| place).collect();
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
        self.or_nothing(|pools| pools.drawn(wanted, space))
    }

    fn drawn(&mut self, wanted: Wanted<'_>, space: &Space) -> Result<Pair, PoolError> {
        let name = self.chosen(wanted)?;
        if let Some((pool, place)) = self.places_of(wanted.holder).first() {
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
        let held = self.places_of(holder);
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
            _ => wanted.workload.map(Arc::from),
        };
        let record = Record {
            workload,
            holder: Some(wanted.holder.into()),
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
}

fn is_of_engine(holder: &str) -> bool {
    holder.contains(ENGINE)
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
