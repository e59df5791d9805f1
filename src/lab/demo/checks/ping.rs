//! Echo requests both ways.

use std::net::IpAddr;
use std::time::Duration;

use super::{Check, Demo, LIMIT, Measured, ensure, millis, pairs};
use crate::lab::demo::network::Family;
use crate::lab::testbed::LabNamespace;
use crate::lab::testbed::ping::{Echo, ping};

const COUNT: u16 = 3;
/// What hosts begin with: nobody between the two may have taken one away.
const TTL: u8 = 64;

pub(super) fn checks<'a>(demo: &'a Demo<'a>) -> impl Iterator<Item = Check<'a>> {
    let outbound = pairs(demo).map(|(container, family)| {
        let what = format!("{} → X", container.name);
        Check::new("PING", what, family, move || {
            replies(&container.namespace, family.external())
        })
    });
    let inbound = Family::BOTH.into_iter().map(move |family| {
        Check::new("PING", "X → NOS", family, move || {
            replies(demo.network.external(), family.nos())
        })
    });
    outbound.chain(inbound)
}

fn replies(from: &LabNamespace, to: IpAddr) -> Measured {
    let mut fastest = Duration::MAX;
    for echo in ping(from, to, COUNT, LIMIT)? {
        let Echo::Reply {
            from,
            ttl,
            round_trip,
        } = echo
        else {
            return Err(format!("{to}: {echo:?} instead of a reply").into());
        };
        ensure(from == to, || format!("{from} answers for {to}"))?;
        ensure(ttl == TTL, || {
            format!("reply with TTL {ttl} instead of {TTL}")
        })?;
        fastest = fastest.min(round_trip);
    }
    Ok(format!(
        "{COUNT} of {COUNT} replies, TTL {TTL}, fastest {}",
        millis(fastest)
    ))
}
