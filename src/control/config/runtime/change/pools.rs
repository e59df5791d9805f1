//! What is asked of pools of addresses: keys in, a typed request out. What becomes of it is not decided here.

use core::net::IpAddr;

use toml::de::DeValue;

use crate::control::config::document::Section;
use crate::control::config::place::At;
use crate::control::config::pools::{
    AddressRange, Amount, Elastic, MAX_POOL, MAX_WORKLOAD, PoolDefinition, PoolKind, PoolRequest,
    Released, TOTAL_POOL,
};
use crate::control::config::{ConfigErrors, Name, VrfName, values};

use super::{ConfigFile, Keys, read};

/// What may be asked of pools, with the keys of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolAction {
    /// A pool: `pool` with `name`, `kind`, `vrf`, `inside`, `size` or `range`, `step`, `low`, `high`, `max`.
    Create,
    /// A pool goes: `name`.
    Remove,
    /// It gets more: `pool`, and `size` or `range`.
    Grow,
    /// It gives some back: `pool`, and `size` or `range`.
    Shrink,
    /// A workload gets an address for itself: `pool`, `workload`, `address`.
    Reserve,
    /// Something is forgotten: `pool`, and `address`, `workload` or `holder`.
    Release,
    /// An engine keeps an address: `holder`, `pool`, `vrf`, `workload`, `address`.
    Allocate,
}

impl ConfigFile {
    /// What a request with these keys asks of pools.
    ///
    /// # Errors
    ///
    /// What is wrong with the keys.
    pub fn pool_request(
        &self,
        action: PoolAction,
        keys: &Keys,
    ) -> Result<PoolRequest, ConfigErrors> {
        let report = self.report();
        let (name, reader): (_, fn(&mut Section<'_>) -> Option<PoolRequest>) = match action {
            PoolAction::Create => ("pool-create", create),
            PoolAction::Remove => ("pool-remove", remove),
            PoolAction::Grow => ("pool-grow", grow),
            PoolAction::Shrink => ("pool-shrink", shrink),
            PoolAction::Reserve => ("pool-reserve", reserve),
            PoolAction::Release => ("pool-release", release),
            PoolAction::Allocate => ("pool-allocate", allocate),
        };
        let request = read(&report, keys, name, reader);
        report.finish(request)
    }
}

fn create(root: &mut Section<'_>) -> Option<PoolRequest> {
    root.require("pool", "{\"name\":\"shop\",...}");
    let mut pool = root.table("pool")?;
    let name = pool.required("name", "\"shop\"", values::name);
    let kind = pool.required("kind", "\"netspace\"", kind);
    let vrf = pool.optional("vrf", values::vrf);
    let inside = pool.optional("inside", values::name);
    let amount = amount(&mut pool);
    let amount = match amount {
        Some(amount) => Some(amount),
        None if pool.has("size") || pool.has("range") => None,
        None => Some(Amount::Size(0)),
    };
    let elastic = elastic(&mut pool, kind.as_ref().map(|at| at.value));
    let max = pool.optional("max", size);
    root.close(pool);
    let definition = PoolDefinition {
        name: name?.value,
        kind: kind?.value,
        vrf: vrf.map_or(VrfName::Default, |at| at.value),
        inside: inside
            .map(|at| at.value)
            .filter(|inside| inside.as_str() != TOTAL_POOL),
        elastic: elastic?,
        max: max.map_or(MAX_POOL, |at| at.value),
    };
    Some(PoolRequest::Create(definition, amount?))
}

/// How a pool follows what is used of it: an application's keeps its size unless it says otherwise.
fn elastic(pool: &mut Section<'_>, kind: Option<PoolKind>) -> Option<Option<Elastic>> {
    let step = pool.optional("step", size_or_none);
    let low = pool.optional("low", size_or_none);
    let high = pool.optional("high", size_or_none);
    let usual = Elastic::USUAL;
    let none = step.as_ref().is_some_and(|at| at.value == 0);
    if none {
        for at in [&low, &high].into_iter().flatten() {
            pool.error(
                at.place,
                "means nothing with step = 0, by which a pool keeps its size",
            );
        }
        return Some(None);
    }
    if step.is_none() && low.is_none() && high.is_none() && kind == Some(PoolKind::Application) {
        return Some(None);
    }
    let step = step.map_or(usual.step, |at| at.value);
    let low = low.map_or(usual.low, |at| at.value);
    let usual_high = usual.high.max(low.saturating_add(2 * step));
    let high = high.map_or(usual_high, |at| at.value);
    Some(Some(Elastic { step, low, high }))
}

fn remove(root: &mut Section<'_>) -> Option<PoolRequest> {
    let name = root.required("name", "\"shop\"", values::name)?;
    Some(PoolRequest::Remove(name.value))
}

fn grow(root: &mut Section<'_>) -> Option<PoolRequest> {
    let (pool, amount) = resized(root)?;
    Some(PoolRequest::Grow(pool, amount))
}

fn shrink(root: &mut Section<'_>) -> Option<PoolRequest> {
    let (pool, amount) = resized(root)?;
    Some(PoolRequest::Shrink(pool, amount))
}

fn resized(root: &mut Section<'_>) -> Option<(Name, Amount)> {
    let pool = pool_of(root);
    if !root.has("size") && !root.has("range") {
        root.require("size", "16, or range = \"203.0.113.64/28\"");
    }
    let amount = amount(root);
    Some((pool?, amount?))
}

fn pool_of(root: &mut Section<'_>) -> Option<Name> {
    let pool = root.required("pool", "\"shop\"", values::name);
    pool.map(|at| at.value)
}

fn amount(section: &mut Section<'_>) -> Option<Amount> {
    let size = section.optional("size", size);
    let range = section.optional("range", range);
    match (size, range) {
        (Some(_), Some(At { place, .. })) => {
            section.error(place, "cannot stand beside size; give one of the two");
            None
        }
        (size, range) => {
            let size = size.map(|at| Amount::Size(at.value));
            size.or(range.map(|at| Amount::Range(at.value)))
        }
    }
}

fn reserve(root: &mut Section<'_>) -> Option<PoolRequest> {
    let pool = pool_of(root);
    let workload = root.required("workload", "\"shop/db-0\"", values::workload);
    let address = root.optional("address", values::address);
    Some(PoolRequest::Reserve {
        pool: pool?,
        workload: workload?.value,
        address: address.map(|at| at.value),
    })
}

fn release(root: &mut Section<'_>) -> Option<PoolRequest> {
    let pool = pool_of(root);
    let address = root.optional("address", values::address);
    let workload = root.optional("workload", values::workload);
    let holder = root.optional("holder", holder);
    let said: Vec<_> = ["address", "workload", "holder"]
        .into_iter()
        .filter(|key| root.has(key))
        .collect();
    match said[..] {
        [] => root.require("address", "\"203.0.113.64\", or workload = \"shop/db-0\""),
        [_, further, ..] => {
            let place = root.header(further);
            root.error(
                place,
                "cannot stand beside another one; give one of address, workload, holder",
            );
        }
        [_] => {}
    }
    let address = address.map(|at| Released::Address(at.value));
    let workload = workload.map(|at| Released::Workload(at.value));
    let holder = holder.map(|at| Released::Holder(at.value));
    Some(PoolRequest::Release(
        pool?,
        address.or(workload).or(holder)?,
    ))
}

fn allocate(root: &mut Section<'_>) -> Option<PoolRequest> {
    let holder = root.required("holder", "\"engine/7f3a\"", holder);
    let pool = root.optional("pool", values::name);
    let vrf = root.optional("vrf", values::vrf);
    let workload = root.optional("workload", values::workload);
    let address: Option<At<IpAddr>> = root.optional("address", values::address);
    Some(PoolRequest::Allocate {
        holder: holder?.value,
        pool: pool.map(|at| at.value),
        vrf: vrf.map_or(VrfName::Default, |at| at.value),
        workload: workload.map(|at| at.value),
        address: address.map(|at| at.value),
    })
}

fn kind(value: &DeValue<'_>) -> Result<PoolKind, String> {
    let options = PoolKind::ALL.map(|kind| (kind.as_str(), kind));
    values::choice(value, &options)
}

fn size(value: &DeValue<'_>) -> Result<u32, String> {
    values::integer(value, 1..=MAX_POOL)
}

fn size_or_none(value: &DeValue<'_>) -> Result<u32, String> {
    values::integer(value, 0..=MAX_POOL)
}

fn range(value: &DeValue<'_>) -> Result<AddressRange, String> {
    values::address_range(value)
}

/// Who keeps an address for an engine: what no container is called.
fn holder(value: &DeValue<'_>) -> Result<String, String> {
    let holder = values::workload(value)?;
    match holder.split_once('/') {
        Some((engine, rest)) if !engine.is_empty() && !rest.is_empty() => Ok(holder),
        _ => Err(format!(
            "{} names no engine, as in \"engine/7f3a\"; at most {MAX_WORKLOAD} characters",
            values::shown(value)
        )),
    }
}
