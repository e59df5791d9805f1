//! The groups that the NOS is in, on each uplink.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::sooner;
use crate::id_table::IdTable;
use crate::ident::UplinkId;
use crate::multicast::Membership;
use crate::tables::Uplink;
use crate::time::Instant;
use crate::uplink::LinkState;

/// Both families on one link.
pub(crate) struct LinkMemberships {
    pub(crate) v4: Membership<Ipv4Addr>,
    pub(crate) v6: Membership<Ipv6Addr>,
}

impl LinkMemberships {
    fn new(seed: u64) -> Self {
        Self {
            v4: Membership::new(seed),
            v6: Membership::new(!seed),
        }
    }

    fn set_groups(&mut self, uplink: &Uplink, now: Instant) {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for group in uplink.groups() {
            match group {
                IpAddr::V4(group) => v4.push(group),
                IpAddr::V6(group) => v6.push(group),
            }
        }
        self.v4.set_groups(&v4, now);
        self.v6.set_groups(&v6, now);
    }

    /// When there is something to say.
    pub(crate) fn poll_at(&self) -> Option<Instant> {
        sooner(self.v4.poll_at(), self.v6.poll_at())
    }
}

/// See the [module](self).
pub(crate) struct Memberships {
    pub(crate) links: IdTable<UplinkId, LinkMemberships>,
    /// The earliest moment at which any has something to say.
    next: Option<Instant>,
    seed: u64,
}

impl Memberships {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            links: IdTable::new(),
            next: None,
            seed,
        }
    }

    /// Follows the groups of an uplink, which may be new.
    pub(crate) fn set_groups(&mut self, uplink: &Uplink, now: Instant) {
        let id = uplink.config.id;
        if self.links.get(id).is_none() {
            let seed = self.seed ^ u64::from(id.0);
            self.links.insert(id, LinkMemberships::new(seed));
        }
        if let Some(link) = self.links.get_mut(id) {
            link.set_groups(uplink, now);
        }
        self.reschedule();
    }

    /// The link of an uplink has come up or gone down, or the NOS has another name on it.
    pub(crate) fn restart(&mut self, id: UplinkId, state: LinkState, now: Instant) {
        if let Some(LinkMemberships { v4, v6 }) = self.links.get_mut(id) {
            match state {
                LinkState::Up => {
                    v4.start(now);
                    v6.start(now);
                }
                LinkState::Down => {
                    v4.stop();
                    v6.stop();
                }
            }
        }
        self.reschedule();
    }

    /// Forgets an uplink that is no more.
    pub(crate) fn forget_uplink(&mut self, id: UplinkId) {
        self.links.remove(id);
        self.reschedule();
    }

    /// Notes when there is something to say next, after a change.
    pub(crate) fn reschedule(&mut self) {
        let links = self.links.values();
        self.next = links.filter_map(LinkMemberships::poll_at).min();
    }

    /// When there is something to say.
    #[inline]
    pub(crate) fn poll_at(&self) -> Option<Instant> {
        self.next
    }
}
