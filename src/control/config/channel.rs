//! What only a NOS in this process can have: one in another is configured elsewhere.

use nos_shim::ports::Outside;

use super::entries::Entries;
use super::place::Place;
use super::report::Report;

/// Reports what is not for us to say where the NOS is in another process, as `channel` says.
pub(super) fn check(report: &Report<'_>, entries: &Entries, channel: Place) {
    let on = report.on(channel);
    let error = |place, what: &str| {
        let reason = format!("{what}: it is in another process, by nos.channel {on}");
        report.error(place, reason);
    };
    let (link, others) = match entries.uplinks.split_first() {
        Some((link, others)) => (Some(link), others),
        None => (None, &[][..]),
    };
    for uplink in others {
        error(uplink.name.place, "the NOS has interfaces of its own");
    }
    if let Some(group) = link.and_then(|link| link.groups.first()) {
        error(group.place, "the NOS has groups of its own");
    }
    for route in &entries.routes {
        error(route.prefix.place, "the NOS has routes of its own");
    }
    for nos in &entries.nos {
        if let Some(service) = nos.services.first() {
            error(service.place, "the NOS has services of its own");
        }
        if !nos.ping.value {
            error(nos.ping.place, "the NOS answers pings, or not, by itself");
        }
    }
    for container in &entries.containers {
        if let Some(uplink) = &container.link_local {
            error(uplink.place, "the NOS has link-local addresses of its own");
        }
        if container.outside == Some(Outside::Learn) {
            // It would have to steer ports that nobody has registered.
            let place = Place::new(container.name.place.offset, "container", "outside");
            error(place, "the NOS steers no port that is learnt");
        }
    }
}
