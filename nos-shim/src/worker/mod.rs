//! What one worker remembers from packet to packet: neighbors, groups, flows, fragments, connections,
//! rates.
//!
//! Nobody else reads or writes it. What depends on configuration follows the
//! [tables](crate::tables) when they change.

mod memberships;
#[cfg(not(feature = "stack"))]
mod no_stack;
mod policed;
mod refusals;
mod rewrites;
mod vrfs;

use crate::drop::DropReason;
use crate::flows::EchoFlows;
use crate::fragments::{Fate, FragmentLimits, FragmentTable};
use crate::id_table::IdTable;
use crate::ident::{AttachmentId, Interface, LocalAddressId, UplinkId};
use crate::neighbor::{self, NeighborCache};
use crate::origin::Origin;
use crate::output::Output;
use crate::ports::{Owner, Registration};
use crate::reassembly::{self, Reassembler};
use crate::share::{Account, Budget, Shares};
use crate::tables::{Tables, Uplink};
use crate::time::Instant;
use crate::uplink::{LinkState, UplinkConfig};

pub(crate) use memberships::{LinkMemberships, Memberships};
pub(crate) use policed::Policed;
pub(crate) use refusals::Refusals;
pub(crate) use rewrites::{Rewrite, Rewrites};
pub(crate) use vrfs::{VrfState, Vrfs};

/// Who gets the fragments of a datagram: whoever got the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    /// A container.
    Attachment(AttachmentId),
    /// The NOS, which puts them together to a datagram to this address.
    Local(LocalAddressId),
    /// The NOS in another process, which gets them as they are.
    Upstream,
    /// Nobody: all are dropped for the first one's reason.
    Nobody(DropReason),
}

/// See the [module](self).
pub(crate) struct Worker {
    /// Of the buffers whose packets wait here.
    pub(crate) shares: Shares,
    pub(crate) neighbors: IdTable<UplinkId, NeighborCache<Origin>>,
    /// Uplinks whose neighbor caches may want something done.
    pub(crate) stirred: Vec<UplinkId>,
    pub(crate) memberships: Memberships,
    pub(crate) echo: EchoFlows,
    /// While any attachment has a policy.
    pub(crate) policed: Option<Box<Policed>>,
    /// What policies have refused, for the operator.
    pub(crate) refusals: Refusals,
    /// Flows that policies may have remembered.
    flows: usize,
    pub(crate) fragments: FragmentTable<Holder>,
    pub(crate) reassembler: Reassembler,
    pub(crate) vrfs: Vrfs,
    pub(crate) rewrites: Rewrites,
    /// Changes of neighbors of uplinks that are no more.
    past_versions: u64,
    seed: u64,
    /// Whether the only uplink is towards a NOS in another process.
    upstream: bool,
}

impl Worker {
    /// One that remembers nothing, beside a pool that is divided by `budget`.
    pub(crate) fn new(seed: u64, budget: Budget, flows: usize, upstream: bool) -> Self {
        let shares = Shares::new(budget.waiting());
        let fragments = FragmentLimits {
            held: shares.limit(),
            ..FragmentLimits::default()
        };
        let reassembly = reassembly::Limits {
            fragments: shares.limit(),
            ..reassembly::Limits::default()
        };
        Self {
            shares,
            neighbors: IdTable::new(),
            stirred: Vec::new(),
            memberships: Memberships::new(seed),
            echo: EchoFlows::default(),
            policed: None,
            refusals: Refusals::default(),
            flows,
            fragments: FragmentTable::new(fragments),
            reassembler: Reassembler::new(reassembly, seed),
            vrfs: Vrfs::new(seed),
            rewrites: Rewrites::default(),
            past_versions: 0,
            seed,
            upstream,
        }
    }

    /// Forgets the flows of an attachment.
    pub(crate) fn flush_flows(&mut self, id: AttachmentId, output: &mut Output) {
        self.echo.flush(Owner::Attachment(id));
        self.fragments.flush(Holder::Attachment(id));
        if let Some(policed) = &mut self.policed {
            policed.forget(id);
        }
        self.refusals.forget(id);
        self.forget_fragments(Interface::Attachment(id), output);
    }

    /// Drops datagrams that came in on an interface which is gone, or in another VRF by now, and of
    /// which more was to come.
    pub(crate) fn forget_fragments(&mut self, interface: Interface, output: &mut Output) {
        let account = Account::from(interface);
        self.fragments
            .forget_account(account, DropReason::DeviceGone);
        let Output { pool, ledger, .. } = output;
        self.reassembler.forget_account(
            account,
            DropReason::DeviceGone,
            pool,
            ledger,
            &mut self.shares,
        );
    }

    /// Follows the policies and the ports of attachments, of which some have changed: flows that could
    /// not be opened any more end.
    pub(crate) fn follow_policies(&mut self, changed: &[Registration], tables: &Tables) {
        if !tables.polices {
            self.policed = None;
            return;
        }
        let flows = self.flows;
        let policed = self
            .policed
            .get_or_insert_with(|| Box::new(Policed::new(flows)));
        for id in changed.iter().map(|registration| registration.attachment) {
            let flows = &mut policed.flows;
            flows.retain(id, |key, opener| tables.keeps(key, id, opener));
        }
        // Ports of nobody may be somebody's now.
        let flows = &mut policed.flows;
        flows.retain_learnt(|key, owner, opener| tables.keeps(key, owner, opener));
    }

    /// Notices what has changed since the last burst.
    #[inline]
    pub(crate) fn refresh_rewrites(&mut self, tables: &Tables) {
        let neighbors: u64 = self.neighbors.values().map(NeighborCache::version).sum();
        // The sum only grows.
        let version = tables.version + self.past_versions + neighbors;
        self.rewrites.set_version(version);
    }

    /// Begins with no neighbors on an uplink; what waited for others there is dropped.
    pub(crate) fn reset_neighbors(&mut self, config: &UplinkConfig, output: &mut Output) {
        self.forget_uplink(config.id, output);
        let seed = self.seed ^ u64::from(config.id.0);
        let limits = neighbor::Limits {
            held: self.shares.limit(),
            ..neighbor::Limits::default()
        };
        // The addresses are those of the NOS on the other side.
        let own: &[_] = match self.upstream {
            true => &[],
            false => &config.addresses,
        };
        let mut cache = NeighborCache::with_limits(config.mac, own, seed, limits);
        cache.set_proxy(self.upstream);
        // It forwards what others send it.
        cache.set_router(true);
        self.neighbors.insert(config.id, cache);
    }

    /// Drops what waits for neighbors on an uplink that is no more.
    pub(crate) fn forget_uplink(&mut self, id: UplinkId, output: &mut Output) {
        self.clear_neighbors(id, output);
        if let Some(cache) = self.neighbors.remove(id) {
            self.past_versions += cache.version();
        }
    }

    /// Forgets the neighbors on an uplink, and drops what waits for them.
    pub(crate) fn clear_neighbors(&mut self, id: UplinkId, output: &mut Output) {
        let Some(cache) = self.neighbors.get_mut(id) else {
            return;
        };
        for (packet, _) in cache.clear(&mut self.shares) {
            output.discard(packet, DropReason::DeviceGone);
        }
    }

    /// Follows the addresses of an uplink.
    pub(crate) fn set_addresses(&mut self, uplink: &Uplink) {
        let id = uplink.config.id;
        // Of a NOS in another process, none is ours.
        if let Some(cache) = self.neighbors.get_mut(id).filter(|_| !self.upstream) {
            cache.set_addresses(&uplink.networks());
            cache.set_proxied(&uplink.attached);
            self.stir(id);
        }
    }

    /// Begins anew on the link of an uplink that is another station there now, and says so.
    pub(crate) fn introduce(&mut self, uplink: &Uplink, output: &mut Output, now: Instant) {
        self.reset_neighbors(&uplink.config, output);
        self.set_addresses(uplink);
        self.announce(uplink);
        self.memberships.restart(uplink.config.id, uplink.link, now);
        self.memberships.set_groups(uplink, now);
    }

    /// Stands for the addresses of attachments on an uplink's link, which is told of new ones.
    pub(crate) fn follow_attached(&mut self, uplink: &Uplink, now: Instant) {
        let id = uplink.config.id;
        let Some(cache) = self.neighbors.get_mut(id).filter(|_| !self.upstream) else {
            return;
        };
        let new = cache.set_proxied(&uplink.attached);
        if uplink.link == LinkState::Up {
            for address in new {
                cache.announce_address(address);
            }
        }
        self.stir(id);
        self.memberships.set_groups(uplink, now);
    }

    /// Tells the link of an uplink which addresses are the NOS's, if it is up.
    pub(crate) fn announce(&mut self, uplink: &Uplink) {
        let id = uplink.config.id;
        let up = uplink.link == LinkState::Up;
        if let Some(cache) = self.neighbors.get_mut(id).filter(|_| up) {
            cache.announce();
            self.stir(id);
        }
    }

    /// Notes that the neighbor cache of an uplink may want something done.
    #[inline]
    pub(crate) fn stir(&mut self, id: UplinkId) {
        if self.stirred.last() != Some(&id) {
            self.stirred.push(id);
        }
    }

    /// A fragment whose owner is known now, or never will be.
    #[inline]
    pub(crate) fn poll_fate(&mut self) -> Option<Fate<Holder>> {
        self.fragments.poll_fate(&mut self.shares)
    }

    /// When there is something to do without a packet.
    pub(crate) fn poll_at(&self) -> Option<Instant> {
        let mut first = sooner(self.echo.poll_at(), self.fragments.poll_at());
        first = sooner(first, self.reassembler.poll_at());
        first = sooner(first, self.vrfs.local_at());
        first = sooner(first, self.policed.as_ref().and_then(|it| it.poll_at()));
        first = sooner(first, self.memberships.poll_at());
        for cache in self.neighbors.values() {
            first = sooner(first, cache.poll_at());
        }
        first
    }

    /// Packets kept for later.
    pub(crate) fn held(&self) -> usize {
        let neighbors = self.neighbors.values().map(NeighborCache::held);
        neighbors.sum::<usize>() + self.fragments.held() + self.reassembler.held()
    }
}

/// The earlier of two moments that may never come.
#[inline]
fn sooner(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}
