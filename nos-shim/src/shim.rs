//! The NOS, without devices and without a clock.
//!
//! # Theory of operation
//!
//! A [`Shim`] is driven from outside, and returns everything that it wants done:
//!
//! ```text
//! handle_burst(uplink, frames, now) ─┐                 ┌─ poll_transmit() → uplink, frames
//! poll_channel(now) ← ring ──────────┼─ FIB, demux ────┤
//! handle_timeout(now) at poll_at() ──┘   neighbors     └─ ring → relay
//! ```
//!
//! Its state is in three parts. Forwarding ([`crate::forward`]) reads the first, and writes the
//! others:
//!
//! | part | what is in it |
//! |---|---|
//! | [tables](crate::tables) | what is configured: routes, ports, addresses, uplinks, attachments |
//! | [worker](crate::worker) | what is remembered: neighbors, groups, flows, fragments, connections, rates |
//! | [output](crate::output) | what leaves: queues, ring, pool, ledger, counters, events |
//!
//! Configuration changes touch only what differs, so that traffic of the rest does not notice. They
//! change the tables as wholes, or not at all; then the other parts follow.

mod requests;

#[cfg(test)]
mod tests;

use core::fmt;
use core::net::IpAddr;
use std::sync::Arc;

use crate::channel::{Exchange, NosEnd};
use crate::drop::{DropReason, Ledger};
use crate::fib::{Fib, FibFull, InactiveRoute, RouteChange};
use crate::flows::{EchoFlow, EchoKey, FlowStatus, NewFlow};
use crate::forward::Forwarder;
use crate::frame::{Burst, FramePool};
use crate::ident::{AttachmentId, Interface, MacAddr, UplinkId, VrfId};
use crate::neighbor::{NeighborCursor, NeighborStatus};
use crate::offload::Capabilities;
use crate::output::Output;
use crate::page::Page;
use crate::ports::{ExchangeRefused, Owner, PortTable, RegistrationRefused};
use crate::services::ServiceConfig;
use crate::share::Budget;
use crate::tables::{Tables, Uplink, UplinkChange, zone_here};
use crate::time::Instant;
use crate::worker::Worker;

pub use crate::uplink::{
    JoinRefused, LinkState, UplinkConfig, UplinkCounters, UplinkSnapshot, Upstream,
};

/// The model of a user-mode NOS.
pub struct Shim {
    pub(crate) tables: Tables,
    pub(crate) worker: Worker,
    pub(crate) output: Output,
}

impl fmt::Debug for Shim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shim")
            .field("ledger", self.ledger())
            .finish_non_exhaustive()
    }
}

/// What a shim is started with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShimConfig {
    /// Makes hashes, identifiers and timers that outsiders cannot guess; any number will do that
    /// they do not know.
    pub seed: u64,
    /// Flows that are remembered at most where policies need it; 2^20 are the most.
    pub flows: usize,
    /// Given where the NOS is in another process: then this is what stands between that NOS and the
    /// containers, with one uplink towards it. Packets of containers leave by it unchanged, unless a
    /// port on a shared address is a sibling's; what comes from there goes to the owner of its port.
    /// Neither services nor routes mean anything, and that NOS is told of no error.
    pub upstream: Option<Upstream>,
}

impl Default for ShimConfig {
    /// A seed that everybody knows.
    fn default() -> Self {
        Self {
            seed: 0,
            flows: 65_536,
            upstream: None,
        }
    }
}

impl Shim {
    /// A NOS without uplinks, with the relay at the other end of `channel`.
    #[must_use]
    pub fn new(channel: NosEnd, pool: FramePool, config: ShimConfig) -> Self {
        let ShimConfig {
            seed,
            flows,
            upstream,
        } = config;
        let budget = Budget::of(pool.capacity());
        Self {
            tables: Tables::new(seed, upstream),
            worker: Worker::new(seed, budget, flows, upstream.is_some()),
            output: Output::new(channel, pool),
        }
    }

    fn forwarder(&mut self, now: Instant) -> Forwarder<'_> {
        Forwarder {
            tables: &self.tables,
            worker: &mut self.worker,
            output: &mut self.output,
            now,
        }
    }
}

/// Packets in and out.
impl Shim {
    /// Takes frames that an uplink's device received.
    pub fn handle_burst(&mut self, uplink: UplinkId, burst: &mut Burst, now: Instant) {
        self.forwarder(now).handle_burst(uplink, burst);
    }

    /// Takes packets of containers, and what the relay asks for, from the channel: at most `budget`
    /// bursts. Returns whether there were any.
    pub fn poll_channel(&mut self, now: Instant, budget: usize) -> bool {
        let asked = self.poll_control(now);
        let mut forwarder = self.forwarder(now);
        let any = forwarder.poll_channel(budget) || asked;
        if any {
            forwarder.finish();
        }
        any
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.tables.routing.is_revising() {
            self.tables.revise_routes();
        }
        if self.worker.poll_at().is_some_and(|at| at <= now) {
            self.forwarder(now).handle_timeout();
        }
    }

    /// When [`Self::handle_timeout`] has something to do next.
    #[must_use]
    pub fn poll_at(&self) -> Option<Instant> {
        if self.tables.routing.is_revising() {
            return Some(Instant::ZERO);
        }
        self.worker.poll_at()
    }

    /// The next frames to send, and on which uplink. Frames that the caller leaves in the burst are
    /// offered again by the next call, adapted to the [capabilities](Self::set_capabilities) that
    /// hold then; [`Self::discard_unsent`] drops them.
    pub fn poll_transmit(&mut self) -> Option<(UplinkId, &mut Burst)> {
        self.output.lend()
    }

    /// Drops what the caller left in the burst that [`Self::poll_transmit`] returned last.
    pub fn discard_unsent(&mut self, reason: DropReason) {
        self.output.discard_unsent(reason);
    }

    /// The NOS's end of the channel, for its doorbell.
    pub fn channel(&mut self) -> &mut NosEnd {
        &mut self.output.channel
    }

    /// Whether the ring to the relay takes another burst.
    #[must_use]
    #[inline]
    pub fn has_room(&self) -> bool {
        self.output.channel.has_room()
    }

    /// Announces that this side is about to block. Returns `false` if it must not, because there
    /// is something to do.
    pub fn try_sleep(&mut self) -> bool {
        self.output.transmit.held() == 0 && self.output.channel.try_sleep()
    }
}

/// Configuration.
impl Shim {
    /// Changes who owns which addresses and ports, all at once or not at all. Of an address that an
    /// attachment has [for its own](crate::ports::AddressMode::Routed), in a network of an uplink, its link
    /// is told.
    ///
    /// # Errors
    ///
    /// [`ExchangeRefused`]; nothing has changed then.
    pub fn exchange(&mut self, exchange: &Exchange, now: Instant) -> Result<(), ExchangeRefused> {
        for id in self.tables.exchange(exchange)? {
            self.worker.flush_flows(id, &mut self.output);
        }
        self.worker
            .follow_policies(&exchange.register, &self.tables);
        for registration in &exchange.register {
            self.worker.vrfs.enter(registration.vrf);
        }
        if exchange.services.is_some() {
            self.worker.vrfs.follow(&self.tables);
        }
        self.follow_attached(now);
        Ok(())
    }

    /// Stands for other addresses of attachments on the links of uplinks, if they have changed.
    fn follow_attached(&mut self, now: Instant) {
        let changed = self.tables.follow_attached();
        if changed.is_empty() {
            return;
        }
        for uplink in changed.iter().filter_map(|&id| self.tables.uplinks.get(id)) {
            self.worker.follow_attached(uplink, now);
        }
        self.say_changes(now);
    }

    /// Makes `config` all that the NOS itself offers in a VRF.
    ///
    /// # Errors
    ///
    /// [`RegistrationRefused`] when a container owns one of the ports; nothing has changed then.
    pub fn set_services(
        &mut self,
        vrf: VrfId,
        config: &ServiceConfig,
    ) -> Result<(), RegistrationRefused> {
        self.tables.set_services(vrf, config)?;
        self.worker.follow_policies(&[], &self.tables);
        self.worker.vrfs.follow(&self.tables);
        Ok(())
    }

    /// Changes static routes. Next hops over uplinks that are not up are left out of the FIB until
    /// they are: see [`Self::inactive_routes`].
    ///
    /// No packet is moved meanwhile, so whoever has many changes makes some at a time.
    ///
    /// # Errors
    ///
    /// [`FibFull`]; then those before the one without room have changed, and no other.
    pub fn change_routes(&mut self, changes: Vec<RouteChange>) -> Result<(), FibFull> {
        self.tables.change_routes(changes)
    }

    /// Makes `wanted` all uplinks there are, at once: an address that moves from one to another is
    /// the NOS's all the time, with the ports on it. An uplink that does not change is not touched,
    /// one that changes is announced to its link, and a new one is [down](Self::set_link).
    ///
    /// No two of them may have the same [index](UplinkId::index). One that comes to be in another VRF
    /// forgets its neighbors, and drops what waits for it; static routes of the VRF that it leaves do
    /// not use it from then on.
    ///
    /// # Errors
    ///
    /// [`FibFull`]; nothing has changed then.
    pub fn set_uplinks(&mut self, wanted: Vec<UplinkConfig>, now: Instant) -> Result<(), FibFull> {
        self.place_uplinks(wanted, now)?;
        self.say_changes(now);
        Ok(())
    }

    /// Says what has changed: announcements and reports. Packets to neighbors that are none any more
    /// come back.
    fn say_changes(&mut self, now: Instant) {
        let mut forwarder = self.forwarder(now);
        forwarder.report_groups();
        forwarder.finish();
    }

    fn place_uplinks(&mut self, wanted: Vec<UplinkConfig>, now: Instant) -> Result<(), FibFull> {
        for change in self.tables.set_uplinks(wanted)? {
            self.follow_uplink(change, now);
        }
        self.worker.vrfs.follow(&self.tables);
        Ok(())
    }

    /// Adds an uplink, which is [down](Self::set_link), or changes one: [`Self::set_uplinks`] with
    /// all others as they are.
    ///
    /// # Errors
    ///
    /// [`FibFull`]; nothing has changed then.
    pub fn set_uplink(&mut self, config: UplinkConfig, now: Instant) -> Result<(), FibFull> {
        let mut wanted = self.tables.uplinks_without(config.id);
        wanted.push(config);
        self.set_uplinks(wanted, now)
    }

    /// Removes an uplink with its addresses, what waits for it, and the next hops over it.
    pub fn remove_uplink(&mut self, id: UplinkId) {
        let left = self.tables.uplinks_without(id);
        // Taking routes away cannot fill the FIB. The other uplinks are not touched, so that there
        // is nothing to send.
        let _ = self.place_uplinks(left, Instant::ZERO);
    }

    fn follow_uplink(&mut self, change: UplinkChange, now: Instant) {
        let Self {
            tables,
            worker,
            output,
        } = self;
        match change {
            UplinkChange::Gone(id) => {
                worker.forget_uplink(id, output);
                worker.memberships.forget_uplink(id);
                worker.forget_fragments(Interface::Uplink(id), output);
                output.forget_uplink(id);
            }
            UplinkChange::New(id) => {
                output.counters.insert(id, UplinkCounters::default());
                if let Some(uplink) = tables.uplinks.get(id) {
                    worker.reset_neighbors(&uplink.config, output);
                    worker.set_addresses(uplink);
                    worker.memberships.set_groups(uplink, now);
                }
            }
            UplinkChange::Mac(id) => {
                if let Some(uplink) = tables.uplinks.get(id) {
                    worker.introduce(uplink, output, now);
                }
            }
            UplinkChange::Vrf(id) => {
                // What waits anywhere is of the VRF that it was in.
                worker.forget_fragments(Interface::Uplink(id), output);
                output.drop_waiting(id);
                if let Some(uplink) = tables.uplinks.get(id) {
                    worker.introduce(uplink, output, now);
                }
            }
            UplinkChange::Addresses(id) => {
                if let Some(uplink) = tables.uplinks.get(id) {
                    worker.set_addresses(uplink);
                    worker.announce(uplink);
                    worker.memberships.set_groups(uplink, now);
                }
            }
        }
    }

    /// Says whether an uplink's link carries packets. While it is down, its connected routes and
    /// the next hops over it do not count, so that other next hops and worse routes take over; its
    /// addresses stay the NOS's. Many routes are changed some at a time, by
    /// [`Self::handle_timeout`]; packets take other ways already. What is known of its neighbors is
    /// forgotten, and what waits for them dropped. When it comes up, its addresses are announced, and
    /// its groups reported.
    ///
    /// # Errors
    ///
    /// [`FibFull`]; the connected routes are not all in the FIB then.
    pub fn set_link(
        &mut self,
        id: UplinkId,
        state: LinkState,
        now: Instant,
    ) -> Result<(), FibFull> {
        if !self.tables.set_link(id, state)? {
            return Ok(());
        }
        match self.tables.uplinks.get(id) {
            Some(uplink) if state == LinkState::Up => self.worker.announce(uplink),
            _ => self.worker.clear_neighbors(id, &mut self.output),
        }
        self.worker.memberships.restart(id, state, now);
        self.say_changes(now);
        Ok(())
    }

    /// Has the NOS join a multicast group on an uplink, until it [leaves](Self::leave_group) it or the
    /// uplink goes. Routers and snooping switches on the link are told. Joining twice is joining once.
    ///
    /// The groups of its own addresses (RFC 4291 §2.7.1) are joined and left without this.
    ///
    /// # Errors
    ///
    /// [`JoinRefused`]; nothing has changed then.
    pub fn join_group(
        &mut self,
        id: UplinkId,
        group: IpAddr,
        now: Instant,
    ) -> Result<(), JoinRefused> {
        self.tables.join_group(id, group)?;
        self.follow_groups(id, now);
        Ok(())
    }

    /// Has the NOS leave a group that it has [joined](Self::join_group).
    pub fn leave_group(&mut self, id: UplinkId, group: IpAddr, now: Instant) {
        self.tables.leave_group(id, group);
        self.follow_groups(id, now);
    }

    /// Makes `wanted` all groups that the NOS has [joined](Self::join_group) on an uplink. What differs
    /// is told at once.
    ///
    /// # Errors
    ///
    /// [`JoinRefused`]; nothing has changed then.
    pub fn set_groups(
        &mut self,
        id: UplinkId,
        wanted: Vec<IpAddr>,
        now: Instant,
    ) -> Result<(), JoinRefused> {
        self.tables.set_groups(id, wanted)?;
        self.follow_groups(id, now);
        Ok(())
    }

    /// Says on an uplink's link that the NOS leaves all its groups there: its device is about to be
    /// closed, and with it goes who could answer a query. That is said once, as nobody is there to
    /// repeat it, and waits in [`Self::poll_transmit`]. When the link [comes up](Self::set_link)
    /// again, the groups are reported anew.
    pub fn leave_link(&mut self, id: UplinkId, now: Instant) {
        self.forwarder(now).leave_link(id);
        self.forwarder(now).finish();
    }

    fn follow_groups(&mut self, id: UplinkId, now: Instant) {
        if let Some(uplink) = self.tables.uplinks.get(id) {
            self.worker.memberships.set_groups(uplink, now);
        }
        self.say_changes(now);
    }

    /// Sets what an uplink's device takes, also for frames that wait already.
    pub fn set_capabilities(&mut self, id: UplinkId, capabilities: Capabilities) {
        self.output.settle();
        let before = self.tables.set_capabilities(id, capabilities);
        if before.is_some_and(|before| !capabilities.contains(before)) {
            self.output.adapt_waiting(id, capabilities);
        }
    }
}

/// What there is to see.
impl Shim {
    /// What became of all packets. Frames that [`Self::poll_transmit`] lent out are still held.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.output.ledger
    }

    /// Packets kept for later.
    #[must_use]
    pub fn held(&self) -> usize {
        self.worker.held() + self.output.held()
    }

    /// Who owns which ports.
    #[must_use]
    pub fn ports(&self) -> &PortTable {
        &self.tables.ports
    }

    /// All routes that forward.
    #[must_use]
    pub fn fib(&self) -> &Fib {
        self.tables.routing.fib()
    }

    /// Routes that are configured and do not forward, and next hops of others that do not: those of
    /// uplinks that are down, first.
    #[must_use]
    pub fn inactive_routes(&self) -> Vec<InactiveRoute> {
        self.tables.inactive_routes()
    }

    /// The groups on an uplink that others are told of.
    #[must_use]
    pub fn groups(&self, id: UplinkId) -> Vec<IpAddr> {
        let Some(link) = self.worker.memberships.links.get(id) else {
            return Vec::new();
        };
        let v4 = link.v4.groups().map(IpAddr::V4);
        v4.chain(link.v6.groups().map(IpAddr::V6)).collect()
    }

    /// Some uplinks, from the index `first` on.
    #[must_use]
    pub fn uplinks(&self, first: Option<usize>) -> Page<UplinkSnapshot, usize> {
        let row = |id, uplink: &Uplink| self.snapshot(id, uplink);
        self.tables.uplinks.page(first.unwrap_or(0), row)
    }

    /// Remembers flows that are under way, as they are known from elsewhere. Left out is what finds no
    /// place, has an owner that is not here, or could not be opened now. Nobody loses a flow to what
    /// another is said to have.
    pub fn remember_flows(&mut self, flows: &[NewFlow], now: Instant) {
        let Some(policed) = &mut self.worker.policed else {
            return;
        };
        for flow in flows {
            let Some(flow) = self.tables.adopt(flow) else {
                continue;
            };
            let flows = &mut policed.flows;
            let foreign = |it: Option<AttachmentId>| it.is_some_and(|it| it != flow.owner);
            let learnt = flow.learnt.then(|| flows.learnt_by(&flow.key)).flatten();
            if foreign(learnt) || foreign(flows.owner_of(&flow.key, now)) {
                continue;
            }
            // An owner that has more than its share gives up its own.
            let _ = flows.open(&flow, now);
        }
    }

    /// Remembers whose replies to echo requests are that are under way, as it is known from elsewhere.
    /// What finds no place is left out.
    pub fn remember_echo_flows(&mut self, flows: &[EchoFlow<AttachmentId>], now: Instant) {
        for &EchoFlow { owner, key, id } in flows {
            // Elsewhere, its VRF may have another number.
            let Some(attachment) = self.tables.attachments.get(owner) else {
                continue;
            };
            let vrf = zone_here(attachment, key.vrf);
            let flow = EchoFlow {
                owner: Owner::Attachment(owner),
                key: EchoKey { vrf, ..key },
                id,
            };
            self.worker.echo.remember(&flow, now);
        }
    }

    /// Learns where neighbors of an uplink were when they were last heard of: see
    /// [`NeighborCache::remember`](crate::neighbor::NeighborCache::remember).
    pub fn remember_neighbors(
        &mut self,
        id: UplinkId,
        neighbors: &[(IpAddr, MacAddr)],
        now: Instant,
    ) {
        let Some(cache) = self.worker.neighbors.get_mut(id) else {
            return;
        };
        for &(address, mac) in neighbors {
            cache.remember(address, mac, now);
        }
    }

    /// Some neighbors, each with its uplink.
    #[must_use]
    pub fn neighbors(
        &self,
        cursor: Option<NeighborCursor>,
        now: Instant,
    ) -> Page<(UplinkId, NeighborStatus), NeighborCursor> {
        let NeighborCursor { uplink, place } = cursor.unwrap_or_default();
        let Some((id, present)) = self.worker.neighbors.iter_from(uplink).next() else {
            return Page::end();
        };
        let place = if id.index() == uplink { place } else { 0 };
        let Page { rows, next } = present.page(place, now);
        let next = match next {
            Some(place) => (id.index(), place),
            None => (id.index() + 1, 0),
        };
        Page {
            rows: rows.into_iter().map(|row| (id, row)).collect(),
            next: Some(NeighborCursor {
                uplink: next.0,
                place: next.1,
            }),
        }
    }

    /// Some of the flows that policies have remembered, from a place on, each with what operators call
    /// its owner.
    #[must_use]
    pub fn flows(&self, first: Option<u32>, now: Instant) -> Page<(Arc<str>, FlowStatus), u32> {
        let Some(policed) = &self.worker.policed else {
            return Page::end();
        };
        let Page { rows, next } = policed.flows.page(first.unwrap_or(0), now);
        let named = |flow: FlowStatus| {
            let owner = self.tables.attachments.get(flow.owner)?;
            Some((Arc::clone(&owner.name), flow))
        };
        Page {
            rows: rows.into_iter().filter_map(named).collect(),
            next,
        }
    }

    /// Some echo flows of attachments, from a place on, each with the name of its owner.
    #[must_use]
    pub fn echo_flows(&self, first: Option<u32>, now: Instant) -> Page<EchoFlow<Arc<str>>, u32> {
        let Page { rows, next } = self.worker.echo.page(first.unwrap_or(0), now);
        let named = |flow: EchoFlow<Owner>| {
            let Owner::Attachment(id) = flow.owner else {
                return None;
            };
            let owner = self.tables.attachments.get(id)?;
            Some(EchoFlow {
                owner: Arc::clone(&owner.name),
                key: flow.key,
                id: flow.id,
            })
        };
        Page {
            rows: rows.into_iter().filter_map(named).collect(),
            next,
        }
    }

    /// How many flows policies have remembered; `None` while no attachment has a policy, and there is
    /// no table.
    #[must_use]
    pub fn flow_count(&self) -> Option<usize> {
        let policed = self.worker.policed.as_ref();
        policed.map(|policed| policed.flows.len())
    }

    fn snapshot(&self, id: UplinkId, uplink: &Uplink) -> UplinkSnapshot {
        UplinkSnapshot {
            config: uplink.config.clone(),
            link: uplink.link,
            groups: self.groups(id),
            counters: self.output.counters.get(id).copied().unwrap_or_default(),
        }
    }
}
