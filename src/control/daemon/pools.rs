//! Pools of addresses at run time: what is asked of them, and what containers get of them.
//!
//! A container that is attached to a network whose containers have addresses of their own, and names none, is given
//! one before its request is looked at further; the request is as if it had named it from then on. What it asks for in vain is
//! taken back. It lets go when it is registered no more ([`super::registry`]).

use core::net::IpAddr;

use crate::control::api::snapshot::{self, NeighborState};
use crate::control::api::{Applied, Clash, Refusal, RefusalCode, Response};
use crate::control::config::{
    Change, ConfigErrors, ContainerNetwork, Keys, Name, NetworkMode, PoolAction, TOTAL_POOL,
    VrfName, endpoint_name,
};
use crate::control::pools::{Carried, ENGINE, Pair, Pool, PoolError, Pools, Record, Space, Wanted};

use super::Daemon;

impl Daemon {
    /// Carries out what is asked of pools. It is answered when it is stored.
    pub(super) fn give_pool(
        &mut self,
        action: PoolAction,
        keys: &Keys,
    ) -> Result<Response, Refusal> {
        let request = self.registry.file.pool_request(action, keys);
        let request = request.map_err(|errors: ConfigErrors| super::changes::refusal(&errors))?;
        let space = self.space();
        let done = self.registry.pools.carry_out(&request, &space);
        let Carried { changed, given } = done.map_err(|error| refusal(action, &error))?;
        Ok(Response::Changed(Applied {
            changed,
            addresses: given.into_iter().flat_map(Pair::addresses).collect(),
            ..Applied::default()
        }))
    }

    /// The addresses that there are to give, and who has some without a pool: of the configuration, and of the uplinks'
    /// links, as far as the NOS has heard of them.
    fn space(&self) -> Space {
        let mut space = self.reconciler.wanted().map(Space::of).unwrap_or_default();
        // A NOS that has stopped gives nobody an address anyway.
        let neighbors = self.neighbors().unwrap_or_default().into_iter();
        for neighbor in neighbors.filter(|it| it.state != NeighborState::Failed) {
            if let Some(mac) = neighbor.mac {
                let vrf = vrf_named(&neighbor.vrf_name);
                let whose = format!("in use by {mac} on uplink \"{}\"", neighbor.uplink);
                space.use_address(&vrf, neighbor.address, whose);
            }
        }
        space
    }

    /// The keys of a request with the addresses that the container gets out of a pool, if it gets any, and whether it
    /// does.
    pub(super) fn with_addresses(
        &mut self,
        change: Change,
        keys: &Keys,
    ) -> Result<(Keys, Vec<IpAddr>), Refusal> {
        let as_it_is = (keys.clone(), Vec::new());
        let Some(asked) = Asked::read(change, keys) else {
            return Ok(as_it_is);
        };
        let Some(network) = self.routed_network(&asked.network) else {
            return Ok(as_it_is);
        };
        let space = self.space();
        let wanted = Wanted {
            holder: asked.name.as_str(),
            workload: Some(asked.workload.as_deref().unwrap_or(asked.name.as_str())),
            vrf: &network.vrf,
            pool: asked.pool.as_ref(),
        };
        let of = |error: PoolError| of_container(asked.key, &error);
        let pools = &mut self.registry.pools;
        if !asked.addresses.is_empty() {
            for address in &asked.addresses {
                pools.claim(*address, wanted).map_err(of)?;
            }
            return Ok(as_it_is);
        }
        let wanted = Wanted {
            pool: wanted.pool.or(network.pool.as_ref()),
            ..wanted
        };
        let pair = pools.draw(wanted, &space).map_err(of)?;
        let given: Vec<_> = pair.addresses().collect();
        let texts: Vec<_> = given.iter().map(ToString::to_string).collect();
        let container = keys.table(asked.key).unwrap_or_default();
        let container = container.with("addresses", texts);
        Ok((keys.clone().with(asked.key, container), given))
    }

    /// A network whose containers have addresses of their own.
    fn routed_network(&self, name: &str) -> Option<ContainerNetwork> {
        let networks = &self.reconciler.wanted()?.networks;
        let found = networks
            .iter()
            .find(|network| network.name.as_str() == name)?;
        (found.mode == NetworkMode::Routed).then(|| found.clone())
    }

    /// The pools, the total one of each VRF first.
    pub(super) fn pools(&self) -> Vec<snapshot::Pool> {
        let (pools, space) = (&self.registry.pools, self.space());
        let total = space.vrfs().map(|vrf| total(pools, &space, vrf));
        let others = pools.iter().map(|pool| shown(pool, &space));
        total.chain(others).collect()
    }

    /// Addresses of pools of which something is known.
    pub(super) fn pool_addresses(&self) -> Vec<snapshot::PoolAddress> {
        let pools = self.registry.pools.iter();
        let addresses = pools.flat_map(|pool| {
            let records = pool.records();
            records
                .filter_map(|(place, record)| Some(address(pool, pool.blocks().at(place)?, record)))
        });
        addresses.collect()
    }
}

/// The VRF that is shown under a name.
fn vrf_named(name: &str) -> VrfName {
    match name.parse() {
        Ok(named) if name != VrfName::Default.as_str() => VrfName::Named(named),
        _ => VrfName::Default,
    }
}

/// What a request to attach says that pools have to know. What is wrong with it is found later.
struct Asked {
    /// The key of the container's keys.
    key: &'static str,
    name: String,
    network: String,
    pool: Option<Name>,
    workload: Option<String>,
    addresses: Vec<IpAddr>,
}

impl Asked {
    fn read(change: Change, keys: &Keys) -> Option<Self> {
        let (key, network, name) = match change {
            Change::Attach => ("container", None, None),
            Change::Connect => {
                let (network, container) = (keys.value("network")?, keys.value("container")?);
                let name = endpoint_name(container, network);
                ("endpoint", Some(network.to_owned()), Some(name))
            }
            _ => return None,
        };
        let container = keys.table(key).unwrap_or_default();
        let own = |key: &str| container.value(key).map(str::to_owned);
        let pool = match container.value("pool") {
            Some(pool) => Some(pool.parse().ok()?),
            None => None,
        };
        Some(Self {
            key,
            name: own("name").or(name)?,
            network: network.or(own("network"))?,
            pool,
            workload: own("workload"),
            addresses: container.addresses("addresses")?,
        })
    }
}

/// Of the keys of a request of its own.
fn refusal(action: PoolAction, error: &PoolError) -> Refusal {
    let field = match (action, error.field) {
        (PoolAction::Create, field) => format!("pool.{field}"),
        (PoolAction::Remove, _) => "name".to_owned(),
        (_, field) => field.to_owned(),
    };
    refused(field, error)
}

/// Of the keys of a container.
fn of_container(key: &str, error: &PoolError) -> Refusal {
    let field = match error.field {
        "address" => "addresses",
        field => field,
    };
    refused(format!("{key}.{field}"), error)
}

fn refused(field: String, error: &PoolError) -> Refusal {
    let code = match error.conflict {
        true => RefusalCode::Conflict,
        false => RefusalCode::BadRequest,
    };
    let holder = error
        .held
        .as_ref()
        .filter(|(_, holder)| !holder.contains(ENGINE));
    let clash = holder.map(|(address, holder)| Clash {
        owner: format!("container \"{holder}\""),
        range: address.to_string(),
        free: None,
    });
    Refusal {
        clash: clash.map(Box::new),
        ..Refusal::new(code, format!("{field}: {error}")).of_field(field)
    }
}

fn total(pools: &Pools, space: &Space, vrf: &VrfName) -> snapshot::Pool {
    let (all, left) = (space.total(vrf), pools.left(vrf, space));
    let given = pools.iter().filter(|pool| pool.definition().vrf == *vrf);
    let outermost = given.filter(|pool| pool.definition().inside.is_none());
    let in_pools = outermost.map(|pool| pool.blocks().count()).sum();
    snapshot::Pool {
        name: TOTAL_POOL.to_owned(),
        kind: snapshot::PoolKind::Total,
        vrf: vrf.to_string(),
        inside: None,
        ranges: all.iter().map(|block| block.to_string()).collect(),
        size: all.count(),
        in_use: 0,
        kept: 0,
        in_pools,
        available: left.count(),
        stray: 0,
        step: None,
        low: None,
        high: None,
        max: None,
    }
}

fn shown(pool: &Pool, space: &Space) -> snapshot::Pool {
    let definition = pool.definition();
    let inside = definition.inside.as_ref().map_or(TOTAL_POOL, Name::as_str);
    let elastic = definition.elastic;
    snapshot::Pool {
        name: definition.name.to_string(),
        kind: definition.kind.into(),
        vrf: definition.vrf.to_string(),
        inside: Some(inside.to_owned()),
        ranges: pool
            .blocks()
            .iter()
            .map(|block| block.to_string())
            .collect(),
        size: pool.blocks().count(),
        in_use: pool.held(),
        kept: pool.kept(),
        in_pools: pool.inside_count(),
        available: pool.available(),
        stray: space.strays(&definition.vrf, pool.blocks()),
        step: elastic.map(|it| it.step),
        low: elastic.map(|it| it.low),
        high: elastic.map(|it| it.high),
        max: Some(definition.max),
    }
}

fn address(pool: &Pool, pair: Pair, record: &Record) -> snapshot::PoolAddress {
    let state = match record {
        Record {
            holder: Some(_), ..
        } => snapshot::AddressState::InUse,
        Record { reserved: true, .. } => snapshot::AddressState::Reserved,
        _ => snapshot::AddressState::Released,
    };
    snapshot::PoolAddress {
        pool: pool.definition().name.to_string(),
        addresses: pair.addresses().collect(),
        state,
        reserved: record.reserved,
        workload: record.workload.as_deref().map(str::to_owned),
        holder: record.holder.as_deref().map(str::to_owned),
    }
}
