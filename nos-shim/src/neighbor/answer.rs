//! What is heard: who has which MAC address, and who asks for ours.

use core::net::{IpAddr, Ipv6Addr};

use super::entry::{Claim, Key};
use super::{Answer, DEFEND_INTERVAL, Message, NeighborCache, Output};
use crate::arp::{Arp, Operation};
use crate::ident::MacAddr;
use crate::ndp::{ALL_NODES, Envelope, Ndp};
use crate::time::{Duration, Instant};

/// For how long the first of several ARP answers holds: with proxies about, the real station
/// usually answers first. The same as Linux's `locktime`. Announcements count at once.
const FIRST_ANSWER_HOLDS: Duration = Duration::from_secs(1);

impl<T: Copy> NeighborCache<T> {
    /// An ARP message has come in (RFC 826, RFC 5227).
    ///
    /// Requests for our addresses are answered, probes included. What is known of a neighbor is
    /// updated; a neighbor that was not known is learnt only if it asks for us and is in a subnet
    /// of ours.
    pub fn handle_arp(&mut self, arp: &Arp, now: Instant) -> Answer {
        if !self.is_station(arp.sender_mac) {
            return Answer::Nothing;
        }
        if arp.is_probe() {
            return self.arp_reply(arp);
        }
        let sender = IpAddr::V4(arp.sender_ip);
        if self.addresses.contains(sender) {
            return self.conflict(sender, arp.sender_mac, now);
        }
        if !self.addresses.may_be_neighbor(sender) {
            return Answer::Nothing;
        }
        match arp.operation {
            Operation::Request if self.proxy && arp.target_ip != arp.sender_ip => {
                self.hear_arp(sender, arp, now);
                Answer::Reply(self.arp_reply_to(arp))
            }
            Operation::Request if self.addresses.contains(arp.target_ip.into()) => {
                self.hear_arp(sender, arp, now);
                self.learn_asker(sender, arp.sender_mac, now);
                self.arp_reply(arp)
            }
            Operation::Request | Operation::Reply => {
                self.hear_arp(sender, arp, now);
                Answer::Nothing
            }
            Operation::Other(_) => Answer::Nothing,
        }
    }

    /// Somebody uses an address of ours: it is defended, but not against each message.
    fn conflict(&mut self, address: IpAddr, mac: MacAddr, now: Instant) -> Answer {
        let first = self.is_first_conflict(address, now);
        if let (true, IpAddr::V4(address)) = (first, address) {
            let announcement = self.arp_announcement(address);
            self.outputs.push_back(Output::Send(announcement));
        }
        Answer::Conflict {
            address,
            mac,
            first,
        }
    }

    /// Notes when an address was defended; there are no more notes than addresses.
    fn is_first_conflict(&mut self, address: IpAddr, now: Instant) -> bool {
        let mut known = self.defended.iter_mut();
        match known.find(|(known, _)| *known == address) {
            Some((_, at)) if now.since(*at) < DEFEND_INTERVAL => return false,
            Some((_, at)) => *at = now,
            None => self.defended.push((address, now)),
        }
        true
    }

    fn arp_reply(&self, request: &Arp) -> Answer {
        if !self.addresses.contains(request.target_ip.into()) {
            return Answer::Nothing;
        }
        Answer::Reply(self.arp_reply_to(request))
    }

    fn arp_reply_to(&self, request: &Arp) -> Message {
        Message::Arp {
            arp: request.reply(self.mac),
            destination: request.sender_mac,
        }
    }

    /// Updates what is known, as RFC 826 wants for every message.
    fn hear_arp(&mut self, sender: IpAddr, arp: &Arp, now: Instant) {
        let Some(slot) = self.table.find(Key::from(sender)) else {
            return;
        };
        // Who has no address yet is answered without one.
        let named = self.addresses.contains(arp.target_ip.into())
            || (self.proxy && arp.target_ip.is_unspecified());
        let to_us = arp.target_mac == self.mac && named;
        let age = now.since(self.table.entry(slot).since);
        let claim = Claim {
            mac: Some(arp.sender_mac),
            solicited: arp.operation == Operation::Reply && to_us,
            overrides: arp.is_announcement() || age >= FIRST_ANSWER_HOLDS,
        };
        self.learn(slot, claim, now);
    }

    /// A Neighbor Discovery message has come in, from IPv6 address `source` and Ethernet address
    /// `source_mac` (RFC 4861 §7.2). Those of and to routers are ignored.
    ///
    /// Solicitations for our addresses are answered, duplicate address detection included. Who
    /// solicits us is learnt if it is on this link by what we know; who advertises itself is not.
    pub fn handle_ndp(
        &mut self,
        ndp: &Ndp,
        source: Ipv6Addr,
        source_mac: MacAddr,
        now: Instant,
    ) -> Answer {
        if !self.is_station(source_mac) {
            return Answer::Nothing;
        }
        match *ndp {
            Ndp::NeighborSolicit {
                target,
                source_link_layer,
            } => self.solicited(target, source_link_layer, source, source_mac, now),
            Ndp::NeighborAdvert {
                solicited,
                overrides,
                target,
                target_link_layer: mac,
                ..
            } => {
                let claim = Claim {
                    mac,
                    solicited,
                    overrides,
                };
                self.advertised(target.into(), claim, source_mac, now)
            }
            Ndp::RouterSolicit { .. } | Ndp::RouterAdvert(_) | Ndp::Redirect { .. } => {
                Answer::Nothing
            }
        }
    }

    /// RFC 4861 §7.2.3, §7.2.4; RFC 4862 §5.4.3.
    fn solicited(
        &mut self,
        target: Ipv6Addr,
        option: Option<MacAddr>,
        source: Ipv6Addr,
        source_mac: MacAddr,
        now: Instant,
    ) -> Answer {
        let mac = option.unwrap_or(source_mac);
        let own = self.addresses.contains(target.into());
        // Who has no address yet looks for others that have the one it wants.
        let proxied = self.proxy && !source.is_unspecified() && source != target;
        if !(own || proxied) || !self.is_station(mac) {
            return Answer::Nothing;
        }
        if source.is_unspecified() {
            return Answer::Reply(self.advert_to_all(target));
        }
        let address = IpAddr::V6(source);
        if self.addresses.contains(address) {
            return self.conflict(address, mac, now);
        }
        if !self.addresses.may_be_neighbor(address) {
            return Answer::Nothing;
        }
        if option.is_some() {
            self.learn_asker(address, mac, now);
        }
        Answer::Reply(self.advert_to(source, mac, target))
    }

    fn advert_to(
        &self,
        destination: Ipv6Addr,
        destination_mac: MacAddr,
        target: Ipv6Addr,
    ) -> Message {
        Message::Ndp {
            ndp: self.advert(target, true),
            envelope: Envelope {
                source_mac: self.mac,
                destination_mac,
                source: match self.addresses.contains(target.into()) {
                    true => target,
                    false => self.mac.link_local(),
                },
                destination,
            },
        }
    }

    /// An advertisement that nobody in particular has asked for.
    pub(super) fn advert_to_all(&self, target: Ipv6Addr) -> Message {
        Message::Ndp {
            ndp: self.advert(target, false),
            envelope: Envelope::to_group(self.mac, target, ALL_NODES),
        }
    }

    fn advert(&self, target: Ipv6Addr, solicited: bool) -> Ndp {
        Ndp::NeighborAdvert {
            router: self.router,
            solicited,
            // Whoever has the address itself goes before a proxy (RFC 4861 §7.2.8).
            overrides: self.addresses.contains(target.into()),
            target,
            target_link_layer: Some(self.mac),
        }
    }

    /// RFC 4861 §7.2.5; RFC 4862 §5.4.4.
    fn advertised(
        &mut self,
        target: IpAddr,
        claim: Claim,
        source_mac: MacAddr,
        now: Instant,
    ) -> Answer {
        let mac = claim.mac.unwrap_or(source_mac);
        if !self.is_station(mac) {
            return Answer::Nothing;
        }
        if self.addresses.contains(target) {
            return self.conflict(target, mac, now);
        }
        if let Some(slot) = self.table.find(Key::from(target)) {
            self.learn(slot, claim, now);
        }
        Answer::Nothing
    }

    /// Whether another station can have this MAC address.
    fn is_station(&self, mac: MacAddr) -> bool {
        mac.is_unicast() && mac != self.mac
    }

    /// Learns what a message claims of a neighbor.
    fn learn(&mut self, slot: u32, claim: Claim, now: Instant) {
        let reachable = self.reachable_time();
        self.table
            .change(slot, |entry| entry.on_claim(claim, reachable, now));
        self.release(slot, now);
    }

    /// A neighbor asks us something, so it will soon want an answer of somebody here.
    fn learn_asker(&mut self, address: IpAddr, mac: MacAddr, now: Instant) {
        if let Some(slot) = self.found_or_added(address, now) {
            self.table.change(slot, |entry| entry.on_question(mac, now));
            self.release(slot, now);
        }
    }

    fn found_or_added(&mut self, address: IpAddr, now: Instant) -> Option<u32> {
        let key = Key::from(address);
        let known = self.table.find(key);
        known.or_else(|| {
            self.addresses.on_link(address).then_some(())?;
            self.insert(key, now)
        })
    }
}
