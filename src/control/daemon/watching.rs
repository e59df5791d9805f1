//! What those who watch are told.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nos_shim::ports::AddressMode;
use nos_shim::time::Instant;

use crate::control::api::snapshot::{Drops, PortKind, Protocol, drops};
use crate::control::api::{Event, RegisteredPorts, Server, Subject, SubjectKind};
use crate::control::config::{Name, VrfName};
use crate::control::plan::{Claim, Entity, State};
use crate::data::event_loop::Stopped;

use super::Daemon;

/// How often packets that were dropped are counted for those who watch.
const INTERVAL: Duration = Duration::from_secs(1);

/// What was counted last.
#[derive(Debug, Default)]
pub(super) struct DropWatch {
    /// None while nobody watches.
    last: Option<(Instant, Dropped)>,
}

/// Dropped packets by stage.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Dropped {
    relay: Drops,
    nos: Drops,
}

/// What an event about an entity says of it.
pub(super) fn subject(entity: &Entity) -> Subject {
    let kind = match entity {
        Entity::Uplink(_) | Entity::Device(_) => SubjectKind::Uplink,
        Entity::Container(_) => SubjectKind::Container,
        Entity::Services(_) => SubjectKind::Services,
        Entity::Routes => SubjectKind::Routes,
    };
    let name = match entity {
        Entity::Services(VrfName::Named(vrf)) => Some(vrf),
        other => other.name(),
    };
    Subject {
        kind,
        name: name.map(ToString::to_string),
    }
}

/// Containers that have their interface, and uplinks whose device is open.
pub(super) fn present(state: &State) -> BTreeSet<Entity> {
    let containers = state.links.keys().cloned().map(Entity::Container);
    let uplinks = state.devices.keys().cloned().map(Entity::Uplink);
    containers.chain(uplinks).collect()
}

/// What came and went.
pub(super) fn differences<'a>(
    old: &'a BTreeSet<Entity>,
    new: &'a BTreeSet<Entity>,
) -> impl Iterator<Item = Event> + use<'a> {
    let gone = old.difference(new).map(|entity| Event::Gone {
        subject: subject(entity),
    });
    gone.chain(new.difference(old).map(|entity| Event::Attached {
        subject: subject(entity),
    }))
}

/// All that a container has registered, as those who watch are told: nothing of one that is gone.
pub(super) fn registration(name: &Name, claim: Option<&Claim>) -> Event {
    let ports = claim.map(registered_ports).unwrap_or_default();
    Event::Registration {
        subject: subject(&Entity::Container(name.clone())),
        vrf: claim
            .map_or(VrfName::Default, |claim| claim.vrf.clone())
            .to_string(),
        mode: claim
            .map_or(AddressMode::Shared, |claim| claim.mode)
            .to_string(),
        addresses: claim
            .map(|claim| claim.addresses.clone())
            .unwrap_or_default(),
        ports,
    }
}

fn registered_ports(claim: &Claim) -> Vec<RegisteredPorts> {
    use PortKind::{Ephemeral, Listen};
    let lists = [
        (Protocol::Tcp, Listen, &claim.tcp),
        (Protocol::Udp, Listen, &claim.udp),
        (Protocol::Tcp, Ephemeral, &claim.ephemeral),
        (Protocol::Udp, Ephemeral, &claim.ephemeral),
    ];
    let ports = lists.into_iter().flat_map(|(protocol, kind, ranges)| {
        ranges.iter().map(move |&range| RegisteredPorts {
            protocol,
            kind,
            range,
        })
    });
    ports.collect()
}

/// Milliseconds of Unix time.
pub(super) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let time_ms = since.map_or(0, |since| since.as_millis());
    u64::try_from(time_ms).unwrap_or(u64::MAX)
}

impl Daemon {
    /// Tells those who watch what has happened since the last time.
    pub(super) fn publish(&mut self, server: &mut Server) {
        let events = std::mem::take(&mut self.reconciler.events);
        let now = self.live.plane.now();
        if server.watchers() == 0 {
            self.drops.last = None;
            return;
        }
        let dropped = self.count_drops(now);
        let time_ms = unix_ms();
        for event in events.iter().chain(&dropped) {
            server.publish(time_ms, event, now);
        }
    }

    /// When drops are to be counted next.
    pub(super) fn count_at(&self) -> Option<Instant> {
        self.drops.last.as_ref().map(|(at, _)| *at + INTERVAL)
    }

    /// What was dropped since the last interval, if one has passed and there is any.
    fn count_drops(&mut self, now: Instant) -> Option<Event> {
        if self.count_at().is_some_and(|due| now < due) {
            return None;
        }
        let dropped = self.dropped().ok()?;
        let last = self.drops.last.replace((now, dropped.clone()))?.1;
        let (relay, nos) = (
            more(&last.relay, &dropped.relay),
            more(&last.nos, &dropped.nos),
        );
        let any = !relay.is_empty() || !nos.is_empty();
        any.then_some(Event::Drops { relay, nos })
    }

    /// By the ledgers alone: no device is asked for it.
    fn dropped(&self) -> Result<Dropped, Stopped> {
        let plane = &self.live.plane;
        Ok(Dropped {
            relay: drops(&plane.on_relay(|relay| relay.ledger().drops)?),
            nos: drops(&plane.nos_counters()?.ledger.drops),
        })
    }
}

/// By how much counters have grown; only those that have.
fn more(old: &Drops, new: &Drops) -> Drops {
    let grown = new.iter().map(|(reason, &count)| {
        let before = old.get(reason).copied().unwrap_or_default();
        (reason.clone(), count.saturating_sub(before))
    });
    grown
        .filter(|&(_, count)| count > 0)
        .collect::<BTreeMap<_, _>>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_grew_is_told() {
        let drops = |all: &[(&str, u64)]| -> Drops {
            let all = all.iter();
            all.map(|&(reason, count)| (reason.to_owned(), count))
                .collect()
        };
        let old = drops(&[("a", 1), ("b", 5)]);
        let new = drops(&[("a", 1), ("b", 7), ("c", 2)]);
        assert_eq!(more(&old, &new), drops(&[("b", 2), ("c", 2)]));
        assert_eq!(more(&new, &new), drops(&[]));
    }
}
