//! What packets need to leave by an adjacency, kept ready.
//!
//! A route with one next hop sends every packet to the same station: with the same MAC addresses,
//! the same MTU, the same device. [`Rewrites`] keeps that, by adjacency, so that most packets need
//! neither the route's action nor the neighbor cache.
//!
//! An entry is made from the FIB, an uplink and a neighbor, and holds until any of them changes or
//! the neighbor has to be asked again. All changes count up one number, the epoch; it is compared
//! for each packet, and changes are rare. Whatever is not plain goes the long way
//! ([`super::egress`]), which also knows what to do without an entry.

use crate::fib::{Action, AdjacencyId};
use crate::frame::ETHERNET_HEADER;
use crate::ident::{Interface, UplinkId};
use crate::offload::Capabilities;
use crate::packet::{Packet, protocol};
use crate::shim::Shim;
use crate::time::Instant;

/// Adjacencies with higher numbers take the long way: each entry has its memory.
const MAX_REWRITES: usize = 1 << 16;

/// By adjacency.
#[derive(Debug, Default)]
pub(crate) struct Rewrites {
    entries: Vec<Rewrite>,
    /// Entries of other epochs hold no more. Zero is nobody's.
    epoch: u64,
}

#[derive(Clone, Copy, Debug)]
struct Rewrite {
    epoch: u64,
    good_until: Instant,
    uplink: UplinkId,
    /// Octets of the longest frame.
    longest: u32,
    /// Ethernet destination and source.
    link: [u8; 12],
    capabilities: Capabilities,
}

impl Rewrite {
    const NONE: Self = Self {
        epoch: 0,
        good_until: Instant::ZERO,
        uplink: UplinkId(0),
        longest: 0,
        link: [0; 12],
        capabilities: Capabilities::empty(),
    };

    /// Whether the packet can leave as it is.
    #[inline]
    fn suits(&self, packet: &Packet) -> bool {
        let frame = packet.frame();
        let fits = frame.len() <= self.longest as usize
            || packet.wire_len() + ETHERNET_HEADER <= self.longest as usize;
        // The NOS notes the flows of echo requests.
        let icmp = matches!(packet.protocol(), protocol::ICMP | protocol::ICMPV6);
        fits && !icmp && self.capabilities.take(frame.offload())
    }
}

impl Shim {
    /// Notices what has changed since the last burst. The sum only grows: what is removed is added
    /// to [`Shim::changes`].
    #[inline]
    pub(super) fn refresh_rewrites(&mut self) {
        let uplinks = self.uplinks.values();
        let neighbors: u64 = uplinks.map(|uplink| uplink.neighbors.version()).sum();
        self.rewrites.epoch = self.changes + neighbors + 1;
    }

    /// Sends a packet of a container that can leave as it is; gives back any other.
    #[inline]
    pub(super) fn send_ready(
        &mut self,
        mut packet: Packet,
        adjacency: AdjacencyId,
        now: Instant,
    ) -> Result<(), Packet> {
        let Some(rewrite) = self.rewrites.entries.get(adjacency.0 as usize) else {
            return Err(packet);
        };
        let holds = rewrite.epoch == self.rewrites.epoch && now < rewrite.good_until;
        if !holds || !rewrite.suits(&packet) {
            return Err(packet);
        }
        packet.set_link_pair(&rewrite.link);
        let uplink = rewrite.uplink;
        packet.set_interface(Interface::Uplink(uplink));
        self.queue(packet.into_frame(), uplink);
        Ok(())
    }

    /// Keeps ready what the next packet of an adjacency needs, if all need the same.
    #[cold]
    pub(super) fn prepare_rewrite(&mut self, adjacency: AdjacencyId) {
        self.refresh_rewrites();
        let index = adjacency.0 as usize;
        let known = self.rewrites.entries.get(index);
        if known.is_some_and(|entry| entry.epoch == self.rewrites.epoch) || index >= MAX_REWRITES {
            return;
        }
        let Some(rewrite) = self.rewrite(adjacency) else {
            return;
        };
        if self.rewrites.entries.len() <= index {
            self.rewrites.entries.resize(index + 1, Rewrite::NONE);
        }
        self.rewrites.entries[index] = rewrite;
    }

    fn rewrite(&self, adjacency: AdjacencyId) -> Option<Rewrite> {
        let Action::Via(hops) = self.routing.fib().adjacency(adjacency).action() else {
            return None;
        };
        let [hop] = hops.as_slice() else {
            return None;
        };
        let uplink = self.uplink(hop.uplink)?;
        let (mac, good_until) = uplink.neighbors.known(hop.gateway)?;
        let mut link = [0; 12];
        link[..6].copy_from_slice(&mac.0);
        link[6..].copy_from_slice(&uplink.config.mac.0);
        let longest = uplink.config.mtu + ETHERNET_HEADER;
        Some(Rewrite {
            epoch: self.rewrites.epoch,
            good_until,
            uplink: hop.uplink,
            longest: u32::try_from(longest).unwrap_or(u32::MAX),
            link,
            capabilities: uplink.capabilities,
        })
    }
}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use super::*;
    use crate::arp::Arp;
    use crate::channel::{RelayEnd, pair};
    use crate::drop::DropReason;
    use crate::fib::{NextHop, Route, Source};
    use crate::frame::{Burst, FramePool};
    use crate::ident::{AttachmentId, MacAddr, VrfId};
    use crate::shim::{LinkState, ShimConfig, UplinkConfig};
    use crate::test_packets::{Draft, N4, X4, ip, pool};

    const NOW: Instant = Instant::from_millis(1000);
    const UPLINK: UplinkId = UplinkId(0);
    const SECOND: &str = "203.0.113.3";
    const A: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xa1]);
    const B: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xb1]);
    const C: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xc1]);

    struct Nos {
        shim: Shim,
        relay: RelayEnd,
        pool: FramePool,
    }

    impl Nos {
        fn new() -> Self {
            let (relay, end) = pair(8);
            let pool = pool();
            let shim = Shim::new(end, pool.clone(), ShimConfig { seed: 1 });
            let mut nos = Self { shim, relay, pool };
            nos.set_uplink(1500);
            nos.set_gateway(X4);
            nos
        }

        fn set_uplink(&mut self, mtu: usize) {
            let uplink = UplinkConfig {
                id: UPLINK,
                name: "up0".into(),
                vrf: VrfId::DEFAULT,
                mac: MacAddr([2, 0, 0, 0, 0, 1]),
                addresses: vec!["203.0.113.1/24".parse().unwrap()],
                mtu,
            };
            self.shim.set_uplink(uplink, NOW).unwrap();
            self.shim.set_link(UPLINK, LinkState::Up, NOW).unwrap();
            self.taken();
        }

        fn set_gateway(&mut self, gateway: &str) {
            let hop = NextHop {
                gateway: ip(gateway),
                uplink: UPLINK,
            };
            let route = Route {
                vrf: VrfId::DEFAULT,
                prefix: "0.0.0.0/0".parse().unwrap(),
                source: Source::Static { metric: 0 },
                action: Action::Via(hop.into()),
            };
            self.shim.set_routes(vec![route]).unwrap();
        }

        /// The station asks for the NOS, and so is known from then on.
        fn meet(&mut self, station: &str, mac: MacAddr) {
            let (IpAddr::V4(station), IpAddr::V4(own)) = (ip(station), ip(N4)) else {
                panic!("both are IPv4");
            };
            let mut frame = self.pool.alloc().unwrap();
            let request = Arp::request(mac, station, own);
            request.write(&mut frame, MacAddr::BROADCAST).unwrap();
            let mut burst: Burst = [frame].into_iter().collect();
            self.shim.handle_burst(UPLINK, &mut burst, NOW);
            self.taken();
        }

        /// Destination MAC addresses of all that is to be sent.
        fn taken(&mut self) -> Vec<MacAddr> {
            let mut taken = Vec::new();
            while let Some((_, burst)) = self.shim.poll_transmit() {
                let macs = burst.iter().map(|frame| frame.bytes()[..6].try_into());
                taken.extend(macs.map(|mac| MacAddr(mac.unwrap())));
                burst.clear();
            }
            taken
        }

        /// Sends a packet of a container with so many octets of payload, twice in two bursts, and
        /// says where to.
        fn send(&mut self, payload: usize) -> Vec<MacAddr> {
            for _ in 0..2 {
                let draft = Draft {
                    fragment: 0x4000,
                    ..Draft::new(N4, "192.0.2.7")
                };
                let mut packet = draft.udp_packet(&mut self.pool, (1000, 53), &vec![1; payload]);
                packet.set_interface(Interface::Attachment(AttachmentId(0)));
                let mut burst = [packet].into_iter().collect();
                assert!(self.relay.send_burst(&mut burst));
                self.shim.poll_channel(NOW, 1);
            }
            self.taken()
        }

        fn is_ready(&mut self) -> bool {
            self.shim.refresh_rewrites();
            let Rewrites { entries, epoch } = &self.shim.rewrites;
            entries.iter().any(|entry| entry.epoch == *epoch)
        }
    }

    #[test]
    fn what_is_kept_ready_follows_every_change() {
        let mut nos = Nos::new();
        nos.meet(X4, A);
        assert_eq!(nos.send(100), [A, A]);
        assert!(nos.is_ready());

        nos.meet(X4, B);
        assert!(!nos.is_ready(), "the gateway has another MAC address");
        assert_eq!(nos.send(100), [B, B]);

        nos.meet(SECOND, C);
        assert_eq!(nos.send(100), [B, B]);
        nos.set_gateway(SECOND);
        assert!(!nos.is_ready(), "the route has another gateway");
        assert_eq!(nos.send(100), [C, C]);

        nos.set_uplink(600);
        assert_eq!(nos.send(100), [C, C]);
        assert_eq!(nos.send(1000), [], "too long for the new MTU");
        assert_eq!(nos.shim.ledger().drops.of(DropReason::TooBig), 2);

        nos.shim.set_capabilities(UPLINK, Capabilities::all());
        assert!(!nos.is_ready(), "the device takes more");
        assert_eq!(nos.send(100), [C, C]);
        assert!(nos.is_ready());

        nos.shim.remove_uplink(UPLINK);
        assert_eq!(nos.send(100), [], "nowhere to send to");
        assert_eq!(nos.shim.ledger().unaccounted(), nos.shim.held() as i128);
    }

    #[test]
    fn what_was_kept_ready_ends_with_the_neighbor() {
        let mut nos = Nos::new();
        nos.meet(X4, A);
        assert_eq!(nos.send(100), [A, A]);
        assert!(nos.is_ready());
        // It is asked whether it is still there, and does not answer.
        for second in 2..30 {
            nos.shim.handle_timeout(Instant::from_millis(1000 * second));
            nos.taken();
        }
        assert!(!nos.is_ready());
    }
}
