//! Which groups the NOS is in: what it hears of that, and says ([`crate::multicast`]).

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::frame::{ETHERNET_HEADER, Frame, FrameFull};
use crate::ident::UplinkId;
use crate::multicast::{Said, igmp, mld};
use crate::origin::Origin;
use crate::output::Output;
use crate::packet::Packet;
use crate::tables::{Tables, Uplink};
use crate::time::Instant;
use crate::worker::{LinkMemberships, Worker};

use super::deliver::take_options;
use super::step::Step;

/// A message of IGMP or MLD that came in on an uplink.
#[cold]
pub(super) fn receive(
    packet: Packet,
    id: UplinkId,
    worker: &mut Worker,
    output: &mut Output,
    now: Instant,
) -> Step {
    let packet = match take_options(packet, Origin::Uplink(id), now) {
        Ok(packet) => packet,
        Err(refused) => return refused,
    };
    let memberships = &mut worker.memberships;
    let link = memberships.links.get_mut(id);
    let taken = if packet.is_ipv6() {
        mld::parse(&packet).map(|heard| link.map(|link| link.v6.handle(heard, now)))
    } else {
        igmp::parse(&packet).map(|heard| link.map(|link| link.v4.handle(heard, now)))
    };
    match taken {
        Ok(_) => {
            memberships.reschedule();
            output.ledger.consumed += 1;
            output.pool.free(packet.into_frame());
            Step::Done
        }
        Err(reason) => Step::Drop(packet, reason),
    }
}

/// Says what is due.
#[cold]
pub(super) fn report(tables: &Tables, worker: &mut Worker, output: &mut Output, now: Instant) {
    for (id, link) in worker.memberships.links.iter_mut() {
        let due = link.poll_at().is_some_and(|at| at <= now);
        if let Some(uplink) = tables.uplinks.get(id).filter(|_| due) {
            let LinkMemberships { v4, v6 } = link;
            v4.poll(now, &mut |said| say_v4(said, uplink, output));
            v6.poll(now, &mut |said| say_v6(said, uplink, output));
        }
    }
    worker.memberships.reschedule();
}

/// Says that the NOS leaves all its groups on a link.
pub(super) fn leave_link(
    id: UplinkId,
    tables: &Tables,
    worker: &mut Worker,
    output: &mut Output,
    now: Instant,
) {
    let link = worker.memberships.links.get_mut(id);
    if let Some((uplink, link)) = tables.uplinks.get(id).zip(link) {
        let LinkMemberships { v4, v6 } = link;
        v4.leave_all(now, &mut |said| say_v4(said, uplink, output));
        v6.leave_all(now, &mut |said| say_v6(said, uplink, output));
    }
    worker.memberships.reschedule();
}

fn say_v4(said: Said<'_, Ipv4Addr>, uplink: &Uplink, output: &mut Output) {
    let source = match uplink.address(false) {
        Some(IpAddr::V4(address)) => address,
        _ => Ipv4Addr::UNSPECIFIED,
    };
    let mac = uplink.config.mac;
    let most = igmp::records_per_report(mtu(uplink, output));
    each_report(said, most, |said| {
        send(uplink, output, |frame| {
            igmp::write(&said, mac, source, frame)
        });
    });
}

fn say_v6(said: Said<'_, Ipv6Addr>, uplink: &Uplink, output: &mut Output) {
    let (mac, source) = (uplink.config.mac, uplink.link_local());
    let most = mld::records_per_report(mtu(uplink, output));
    each_report(said, most, |said| {
        send(uplink, output, |frame| {
            mld::write(&said, mac, source, frame)
        });
    });
}

/// Octets of the longest IP packet that the link and a buffer take.
fn mtu(uplink: &Uplink, output: &Output) -> usize {
    let room = output.pool.room().saturating_sub(ETHERNET_HEADER);
    uplink.config.mtu.min(room)
}

/// Divides what is said into messages of at most `most` records.
fn each_report<G: Copy>(said: Said<'_, G>, most: usize, mut send: impl FnMut(Said<'_, G>)) {
    match said {
        Said::Records(records) => records
            .chunks(most)
            .for_each(|records| send(Said::Records(records))),
        other => send(other),
    }
}

fn send(
    uplink: &Uplink,
    output: &mut Output,
    write: impl FnOnce(&mut Frame) -> Result<(), FrameFull>,
) {
    // Without a buffer the message is lost, as on the wire; what matters is repeated.
    let Some(mut frame) = output.pool.alloc() else {
        return;
    };
    match write(&mut frame) {
        Ok(()) => {
            output.ledger.originated += 1;
            output.queue(frame, uplink.config.id);
        }
        Err(FrameFull { .. }) => output.pool.free(frame),
    }
}
