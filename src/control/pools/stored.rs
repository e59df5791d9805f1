//! Pools as they are stored: an entry a pool, and one a pair of which something is known.

use core::net::IpAddr;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::control::config::{Elastic, Name, PoolDefinition, PoolKind, VrfName};

use super::blocks::{Block, Blocks};
use super::undo::Undo;
use super::{Place, Pool, Pools, Record};

/// An entry by its name, as JSON; nothing where there is none any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredPool {
    /// Its name.
    pub name: String,
    /// The entry.
    pub json: Option<Vec<u8>>,
}

/// An entry that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("the entry {name} makes no sense: {why}")]
pub struct BadPool {
    /// Its name.
    pub name: String,
    /// Why not.
    pub why: String,
}

#[derive(Serialize, Deserialize)]
struct Definition {
    kind: PoolKind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    vrf: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    inside: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    elastic: Option<Elastic>,
    max: u32,
    blocks: Vec<Block>,
}

/// [`Record`], as it is stored.
#[derive(Serialize, Deserialize)]
struct StoredRecord {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    workload: Option<String>,
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    reserved: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    holder: Option<String>,
    #[serde(default, skip_serializing_if = "is_zero")]
    order: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it so")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl From<&Record> for StoredRecord {
    fn from(record: &Record) -> Self {
        Self {
            workload: record.workload.as_deref().map(str::to_owned),
            reserved: record.reserved,
            holder: record.holder.as_deref().map(str::to_owned),
            order: record.order,
        }
    }
}

impl From<StoredRecord> for Record {
    fn from(stored: StoredRecord) -> Self {
        Self {
            workload: stored.workload.map(Arc::from),
            reserved: stored.reserved,
            holder: stored.holder.map(Arc::from),
            order: stored.order,
        }
    }
}

const POOL: &str = "pool";
const ADDRESS: &str = "address";

impl Pools {
    /// What has to be stored since the last time that all was.
    #[must_use]
    pub fn writes(&self) -> Vec<StoredPool> {
        let mut pools = BTreeSet::new();
        let mut places = BTreeSet::new();
        for undo in &self.undo {
            match undo {
                Undo::Pool(name, _) => pools.insert(name),
                Undo::Record(name, place, _) => places.insert((name, *place)),
            };
        }
        let pools = pools.into_iter().map(|name| self.stored_pool(name));
        let places = places.into_iter();
        pools
            .chain(places.map(|(name, place)| self.stored_address(name, place)))
            .collect()
    }

    /// What has to be stored where `stored` is.
    #[must_use]
    pub fn writes_over(&self, stored: &Self) -> Vec<StoredPool> {
        let by_name = |all: Vec<StoredPool>| -> BTreeMap<_, _> {
            all.into_iter().map(|it| (it.name, it.json)).collect()
        };
        let (old, new) = (by_name(stored.entries()), by_name(self.entries()));
        let gone = old.keys().filter(|name| !new.contains_key(*name));
        let gone = gone.map(|name| StoredPool {
            name: name.clone(),
            json: None,
        });
        let changed = new
            .iter()
            .filter(|(name, json)| old.get(*name) != Some(json));
        let changed = changed.map(|(name, json)| StoredPool {
            name: name.clone(),
            json: json.clone(),
        });
        gone.chain(changed).collect()
    }

    /// Everything, as it is stored.
    #[must_use]
    pub fn entries(&self) -> Vec<StoredPool> {
        let pools = self.pools.keys().map(|name| self.stored_pool(name));
        let addresses = self.pools.iter().flat_map(|(name, pool)| {
            let places = pool.records().map(|(place, _)| place);
            places.map(|place| self.stored_address(name, place))
        });
        pools.chain(addresses).collect()
    }

    fn stored_pool(&self, name: &Name) -> StoredPool {
        let json = self.pools.get(name).map(
            |Pool {
                 definition, blocks, ..
             }| {
                let vrf = (!definition.vrf.is_default()).then(|| definition.vrf.to_string());
                json(&Definition {
                    kind: definition.kind,
                    vrf,
                    inside: definition.inside.as_ref().map(ToString::to_string),
                    elastic: definition.elastic,
                    max: definition.max,
                    blocks: blocks.iter().collect(),
                })
            },
        );
        StoredPool {
            name: format!("{POOL} {name}"),
            json,
        }
    }

    fn stored_address(&self, name: &Name, place: Place) -> StoredPool {
        let record = self.pools.get(name).and_then(|pool| pool.record(place));
        StoredPool {
            name: format!("{ADDRESS} {name} {}", place.address()),
            json: record.map(|record| json(&StoredRecord::from(record))),
        }
    }

    /// The pools that these entries stand for, each by its name.
    ///
    /// # Errors
    ///
    /// The first that makes no sense by itself or beside the others: no address is in two pools, and nothing is known of
    /// one that its pool does not have.
    pub fn of_stored<'a>(
        entries: impl IntoIterator<Item = (&'a str, &'a [u8])>,
    ) -> Result<Self, BadPool> {
        let mut pools = Self::default();
        let mut records = Vec::new();
        for (name, json) in entries {
            let bad = |why: String| BadPool {
                name: name.to_owned(),
                why,
            };
            match entry(name, json).map_err(bad)? {
                Entry::Pool(definition, blocks) => {
                    pools.add(definition, blocks);
                }
                Entry::Address(pool, place, record) => records.push((name, pool, place, record)),
            }
        }
        pools.check_blocks()?;
        for (entry, name, place, record) in records {
            let has = pools
                .pools
                .get(&name)
                .is_some_and(|pool| pool.blocks.at(place).is_some());
            let inside = pools.inside(&name).any(|it| it.blocks.at(place).is_some());
            if !has || inside {
                return Err(BadPool {
                    name: entry.to_owned(),
                    why: format!("pool \"{name}\" does not have the address"),
                });
            }
            pools.last_order = pools.last_order.max(record.order);
            pools.set_unnoted(&name, place, Some(record));
        }
        Ok(pools)
    }

    /// Each address is in one pool alone, or in a netspace and in a pool inside, and pools lie in netspaces of their VRF.
    fn check_blocks(&mut self) -> Result<(), BadPool> {
        let mut taken = BTreeMap::<VrfName, Blocks>::new();
        for (name, pool) in &self.pools {
            let bad = |why: String| BadPool {
                name: format!("{POOL} {name}"),
                why,
            };
            let PoolDefinition { vrf, inside, .. } = &pool.definition;
            if let Some(inside) = inside {
                let parent = self.pools.get(inside);
                let parent = parent.filter(|it| it.definition.kind == PoolKind::Netspace);
                let parent = parent.filter(|it| it.definition.vrf == *vrf);
                let parent = parent.ok_or_else(|| {
                    bad(format!(
                        "it lies in \"{inside}\", which is no netspace of its VRF"
                    ))
                })?;
                if let Some(block) = pool.blocks.iter().find(|it| !parent.blocks.contains(*it)) {
                    return Err(bad(format!(
                        "{block} is not in \"{inside}\", in which it lies"
                    )));
                }
            }
            // Siblings in one netspace, or next to each other in the total pool.
            let level = taken.entry(vrf.clone()).or_default();
            let nested = inside.is_some();
            for block in pool.blocks.iter() {
                let (first, last) = (block.first().place(), block.last().place());
                if !nested && !level.within(first, last).is_empty() {
                    return Err(bad(format!("{block} is another pool's as well")));
                }
                if !nested {
                    level.insert(block);
                }
            }
        }
        let mut inner = BTreeMap::<VrfName, Blocks>::new();
        for (name, pool) in self
            .pools
            .iter()
            .filter(|(_, it)| it.definition.inside.is_some())
        {
            let level = inner.entry(pool.definition.vrf.clone()).or_default();
            for block in pool.blocks.iter() {
                if !level
                    .within(block.first().place(), block.last().place())
                    .is_empty()
                {
                    return Err(BadPool {
                        name: format!("{POOL} {name}"),
                        why: format!("{block} is another pool's as well"),
                    });
                }
                level.insert(block);
            }
        }
        let names: Vec<_> = self.pools.keys().cloned().collect();
        names.iter().for_each(|name| self.find_free(name));
        Ok(())
    }
}

enum Entry {
    Pool(PoolDefinition, Blocks),
    Address(Name, Place, Record),
}

fn entry(name: &str, json: &[u8]) -> Result<Entry, String> {
    let mut words = name.split(' ');
    let (kind, pool, address) = (words.next(), words.next(), words.next());
    let pool: Name = pool
        .unwrap_or_default()
        .parse()
        .map_err(|error| format!("its pool's name {error}"))?;
    match (kind, address, words.next()) {
        (Some(POOL), None, None) => {
            let (definition, blocks) = definition(pool, json)?;
            Ok(Entry::Pool(definition, blocks))
        }
        (Some(ADDRESS), Some(address), None) => {
            let address: IpAddr = address
                .parse()
                .map_err(|_| "it names no address".to_owned())?;
            let record: StoredRecord =
                serde_json::from_slice(json).map_err(|error| error.to_string())?;
            Ok(Entry::Address(pool, Place::from(address), record.into()))
        }
        _ => Err("its name is of no kind that is known".to_owned()),
    }
}

fn definition(name: Name, json: &[u8]) -> Result<(PoolDefinition, Blocks), String> {
    let stored: Definition = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    let parse = |text: &str| {
        text.parse::<Name>()
            .map_err(|error| format!("\"{text}\" {error}"))
    };
    let vrf = match &stored.vrf {
        None => VrfName::Default,
        Some(vrf) => VrfName::Named(parse(vrf)?),
    };
    let inside = stored.inside.as_deref().map(parse).transpose()?;
    let definition = PoolDefinition {
        name,
        kind: stored.kind,
        vrf,
        inside,
        elastic: stored.elastic,
        max: stored.max,
    };
    let blocks: Blocks = stored.blocks.iter().copied().collect();
    let said: u64 = stored.blocks.iter().map(|it| u64::from(it.count())).sum();
    match blocks.count() == said && said <= u64::from(definition.max) {
        true => Ok((definition, blocks)),
        false => Err("it has an address twice, or more than it may".to_owned()),
    }
}

/// Empty if it cannot be written as JSON, which our types always can.
fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}
