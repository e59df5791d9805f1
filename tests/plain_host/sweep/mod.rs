//! A wide search for packets that the NOS treats in another way than a Linux router.
//!
//! Packets are products of fields, thousands of them. Whatever comes back from both is compared octet
//! by octet, ARP and Neighbor Discovery included. Where the two differ, [`differences::ALL`] says why;
//! a difference that is not there fails the test, and so does one that is there and does not show.

mod arp;
mod chains;
pub(crate) mod differences;
mod fragments;
mod messages;
mod network;
mod transit;
mod transport;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use nos_shim::ident::MacAddr;

use crate::craft::Step;
use crate::support::daemon::LIMIT;
use crate::support::lab_test;
use crate::support::scenario::{FAMILIES, Family};
use crate::support::wire::{self, ICMPV6, Seen};
use crate::{Outside, checksum_holds, give_addresses, normal, peer, turn};

/// Addresses that packets come from. Each is used several times, but no peer gets more than six errors
/// at once.
const PEERS: usize = 190;
/// The NOS sends no more errors a second than 1,000 to all, and 50 at once.
const PACE: Duration = Duration::from_millis(1);

/// Who sends a packet, and to whom.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends {
    /// Of the sender, and of the NOS.
    pub(crate) macs: (MacAddr, MacAddr),
    /// The sender's address.
    pub(crate) source: IpAddr,
    /// Another on the same link that answers for itself.
    pub(crate) other: IpAddr,
    pub(crate) nos: IpAddr,
}

impl Ends {
    pub(crate) fn step(&self) -> Step {
        self.step_to(self.nos)
    }

    pub(crate) fn step_to(&self, destination: IpAddr) -> Step {
        wire::ip(self.macs, self.source, destination)
    }

    pub(crate) fn is_v6(&self) -> bool {
        self.nos.is_ipv6()
    }
}

type Craft = Box<dyn Fn(&Ends) -> Vec<Vec<u8>>>;

/// Frames that are sent one behind the other.
pub(crate) struct Probe {
    name: String,
    /// Whether there is such a thing in IPv4, and in IPv6.
    families: [bool; 2],
    craft: Craft,
}

pub(crate) const V4: [bool; 2] = [true, false];
pub(crate) const V6: [bool; 2] = [false, true];
pub(crate) const BOTH: [bool; 2] = [true, true];

#[derive(Default)]
pub(crate) struct Probes(Vec<Probe>);

impl Probes {
    /// One frame.
    pub(crate) fn add(
        &mut self,
        families: [bool; 2],
        name: impl Into<String>,
        craft: impl Fn(&Ends) -> Vec<u8> + 'static,
    ) {
        self.add_all(families, name, move |ends| vec![craft(ends)]);
    }

    /// Several.
    pub(crate) fn add_all(
        &mut self,
        families: [bool; 2],
        name: impl Into<String>,
        craft: impl Fn(&Ends) -> Vec<Vec<u8>> + 'static,
    ) {
        self.0.push(Probe {
            name: name.into(),
            families,
            craft: Box::new(craft),
        });
    }
}

/// What hosts say unasked, or because time has passed: questions of ARP and Neighbor Discovery, reports
/// about groups, and that fragments did not come.
fn is_unasked(frame: &[u8]) -> bool {
    if frame.get(12..14) == Some(&[0x08, 0x06]) {
        return frame.get(20..22) == Some(&[0, 1]);
    }
    let Some(seen) = Seen::parse(frame) else {
        return true;
    };
    let late = matches!(
        (seen.source, seen.icmp()),
        (IpAddr::V4(_), Some((11, 1))) | (IpAddr::V6(_), Some((3, 1)))
    );
    let behind_options = matches!(
        seen.transport(),
        [ICMPV6, _, _, _, _, _, _, _, 130..=132 | 143, ..]
    );
    let groups = seen.protocol == 2 || seen.protocol == 0 && behind_options;
    late || groups || seen.protocol == ICMPV6 && matches!(seen.transport(), [133..=135 | 143, ..])
}

/// A frame without what is random by design. Containers hear errors and advertisements from an address
/// of their own link, not from the one that they sent to, which they could hold themselves (RFC 7600
/// §4.8).
fn comparable(frame: &[u8], inside: bool) -> Vec<u8> {
    let Some(seen) = Seen::parse(frame) else {
        return frame[..frame.len().min(42)].to_vec();
    };
    let by_the_link = match seen.source {
        IpAddr::V4(_) => matches!(seen.icmp(), Some((3 | 11 | 12, _))),
        IpAddr::V6(_) => matches!(seen.icmp(), Some((1..=4 | 136, _))),
    };
    let v6 = seen.source.is_ipv6();
    let mut ip = normal(seen).ip;
    if inside && by_the_link {
        ip[if v6 { 8..24 } else { 12..16 }].fill(0);
        if v6 {
            ip[42..44].fill(0);
        }
    }
    [&frame[..6], &ip].concat()
}

impl Outside {
    /// Frames that come before everybody there has answered a marker.
    fn frames_before_markers(&self, family: Family, source: IpAddr) -> Vec<Vec<u8>> {
        let mut markers = self.markers.to_vec();
        for marker in &markers {
            self.wire.send(&marker.frame(self.step(family, source)));
        }
        let mut before = Vec::new();
        self.wire.await_octets(LIMIT, |frame| {
            let seen = Seen::parse(frame);
            let answered = seen.as_ref().and_then(|seen| {
                let of_this = seen.destination == source;
                markers
                    .iter()
                    .position(|marker| of_this && marker.is_answer(seen))
            });
            if let Some(answered) = answered {
                markers.remove(answered);
            } else if !is_unasked(frame) {
                before.push(frame.to_vec());
            }
            markers.is_empty().then_some(())
        });
        before
    }

    /// What comes back for a probe.
    fn answers_to(
        &self,
        probe: &Probe,
        family: Family,
        numbers: [usize; 2],
        inside: bool,
    ) -> Vec<Vec<u8>> {
        let [source, other] = numbers.map(|number| peer(family, number));
        let ends = Ends {
            macs: (self.wire.mac(), self.peer),
            source,
            other,
            nos: family.nos,
        };
        // First of all, everybody there resolves our addresses: later they answer at once.
        self.frames_before_markers(family, other);
        self.frames_before_markers(family, source);
        for frame in (probe.craft)(&ends) {
            self.wire.send(&frame);
        }
        let mut answers = self.frames_before_markers(family, source);
        // What the NOS says of its own comes behind what it answers at once, from the same burst.
        answers.extend(self.frames_before_markers(family, source));
        if self.daemon.is_some() {
            let seen: Vec<_> = answers
                .iter()
                .filter_map(|frame| Seen::parse(frame))
                .collect();
            let forwarded = |seen: &Seen| seen.source == source;
            assert!(
                seen.iter()
                    .all(|seen| forwarded(seen) || checksum_holds(seen)),
                "{}: {seen:?}",
                probe.name
            );
        }
        answers
            .iter()
            .map(|frame| comparable(frame, inside))
            .collect()
    }
}

/// As somebody in the network sees the NOS, and a Linux router.
fn seen_from_outside() -> [Outside; 2] {
    let outsides = [Outside::of_router(), Outside::of_nos()];
    for outside in &outsides {
        give_addresses(outside, PEERS);
    }
    outsides
}

/// As a container sees the NOS, and somebody on its link a Linux router.
fn seen_from_inside() -> [Outside; 2] {
    let addresses = FAMILIES
        .into_iter()
        .flat_map(|family| (0..PEERS).map(move |number| peer(family, number)));
    let nos = Outside::of_nos_inside(&addresses.collect::<Vec<_>>());
    let router = Outside::of_router_inside(nos.peer);
    give_addresses(&router, PEERS);
    [router, nos]
}

/// Sends all to both, and compares; `sweep` names the part of the table of differences that is about
/// them.
fn compare(sweep: &str, outsides: &[Outside; 2], Probes(probes): Probes) {
    let inside = outsides[1].interface != outsides[0].interface;
    let (mut sent, mut last) = (0, Instant::now());
    let mut differing = BTreeSet::new();
    let mut reports = Vec::new();
    for (number, probe) in probes.iter().enumerate() {
        let numbers = [number % PEERS, (number + PEERS / 2) % PEERS];
        for (family, there) in FAMILIES.into_iter().zip(probe.families) {
            if !there {
                continue;
            }
            while last.elapsed() < PACE {
                std::thread::yield_now();
            }
            (sent, last) = (sent + 1, Instant::now());
            let [linux, nos] = outsides
                .each_ref()
                .map(|outside| outside.answers_to(probe, family, numbers, inside));
            if linux != nos {
                differing.insert(probe.name.clone());
                reports.push((
                    probe.name.clone(),
                    format!(
                        "{}, {}\n  Linux {}\n  NOS   {}",
                        probe.name,
                        family.nos,
                        show(&linux),
                        show(&nos)
                    ),
                ));
            }
        }
    }
    println!("{sweep}: {sent} packets");
    let names: Vec<_> = probes.iter().map(|probe| probe.name.as_str()).collect();
    let unique = names.iter().collect::<BTreeSet<_>>().len();
    assert_eq!(unique, names.len(), "two packets have one name");
    differences::check(sweep, &names, &differing, &reports);
}

fn show(frames: &[Vec<u8>]) -> String {
    let hex = |frame: &Vec<u8>| {
        frame
            .iter()
            .map(|octet| format!("{octet:02x}"))
            .collect::<String>()
    };
    if frames.is_empty() {
        return "is silent".to_owned();
    }
    frames.iter().map(hex).collect::<Vec<_>>().join(" and ")
}

macro_rules! sweeps {
    ($(fn $name:ident() { $from:ident, $sweep:literal, $module:ident })+) => {
        $(lab_test! {
            fn $name() {
                let _turn = turn();
                compare($sweep, &$from(), $module::probes());
            }
        })+
    };
}

sweeps! {
    fn arp_is_answered_as_by_a_linux_router() { seen_from_outside, "arp", arp }
    fn chains_of_headers_are_answered_as_by_a_linux_router() { seen_from_outside, "chains", chains }
    fn fragments_are_answered_as_by_a_linux_router() { seen_from_outside, "fragments", fragments }
    fn messages_are_answered_as_by_a_linux_router() { seen_from_outside, "messages", messages }
    fn network_headers_are_answered_as_by_a_linux_router() { seen_from_outside, "network", network }
    fn transit_is_treated_as_by_a_linux_router() { seen_from_outside, "transit", transit }
    fn transport_headers_are_answered_as_by_a_linux_router() { seen_from_outside, "transport", transport }
    fn containers_see_a_linux_router_by_arp() { seen_from_inside, "arp inside", arp }
    fn containers_see_a_linux_router_by_chains_of_headers() { seen_from_inside, "chains inside", chains }
    fn containers_see_a_linux_router_by_fragments() { seen_from_inside, "fragments inside", fragments }
    fn containers_see_a_linux_router_by_messages() { seen_from_inside, "messages inside", messages }
    fn containers_see_a_linux_router_by_network_headers() { seen_from_inside, "network inside", network }
    fn containers_see_a_linux_router_by_transport_headers() { seen_from_inside, "transport inside", transport }
}
