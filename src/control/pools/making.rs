//! Pools that come, grow, shrink and go.

use crate::control::config::{
    AddressRange, Amount, DEFAULT_POOL, Name, PoolDefinition, PoolKind, TOTAL_POOL, VrfName,
};

use super::blocks::{Block, Blocks, Pair, Place};
use super::{Pool, PoolError, Pools, Space, of_total, pairs, taken, whence};

impl Pools {
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
            let (are, others) = match pool.held {
                1 => ("is", ""),
                _ => ("are", " among others"),
            };
            let by = first.map_or(String::new(), |holder| format!(", by \"{holder}\"{others}"));
            let reason = format!("{} of pool \"{name}\" {are} in use{by}", pairs(pool.held));
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
    pub(super) fn inside<'a>(&'a self, name: &'a Name) -> impl Iterator<Item = &'a Pool> {
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

    /// Has a pool grow by its step, or by what there is.
    pub(super) fn stretch(&mut self, name: &Name, space: &Space) {
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
    pub(super) fn follow(&mut self, name: &Name) {
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
