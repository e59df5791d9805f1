//! What may pass between containers and a NOS in another process, which [`super::world`] asks of each
//! packet that leaves.
//!
//! Sets that only grow say what was given and by whom. So they allow more than a moment does: what is
//! asked of the ports, claims that were granted, is forgotten only when nothing is under way any more.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use nos_relay::data::relay::{AttachmentConfig, RelayEvent};
use nos_shim::channel::RequestId;
use nos_shim::frame::Offload;
use nos_shim::icmp::{DUMMY_ADDRESS, Quote};
use nos_shim::ident::{AttachmentId, Interface};
use nos_shim::ndp;
use nos_shim::packet::{Addresses, Fragment, FragmentId, Packet, protocol};
use nos_shim::ports::{Outside, Transport};
use nos_shim::vlan;

use super::frames;

/// Who receives the commands of FTP, in which a client names other ports of its own.
const FTP: u16 = 21;
const RST: u8 = 4;

/// A local address and a remote one.
type Pair = (IpAddr, IpAddr);

/// Source and destination port of a first fragment, if it has any.
type FirstPorts = Option<(Transport, u16, u16)>;

/// See the [module](self).
#[derive(Default)]
pub struct Steered {
    asked: BTreeMap<RequestId, AskedExchange>,
    /// What each was granted last, if it is still there.
    granted: BTreeMap<AttachmentId, AttachmentConfig>,
    /// The same, and what was granted before, as long as packets are under way.
    lately: Vec<AttachmentConfig>,
    /// The same since the start.
    ever: Vec<AttachmentConfig>,
    given: Given,
}

struct AskedExchange {
    attach: Vec<AttachmentConfig>,
    detach: Vec<AttachmentId>,
}

/// What devices have received.
#[derive(Default)]
struct Given {
    /// From containers, as it has to leave.
    packets: HashSet<Vec<u8>>,
    /// Something was left to be completed or cut, so that it leaves otherwise.
    offloaded: bool,
    pairs: BTreeSet<Pair>,
    flows: BTreeSet<(AttachmentId, Transport, SocketAddr, SocketAddr)>,
    echo_requests: BTreeSet<(AttachmentId, Pair, u16)>,
    /// What has neither port nor identifier.
    undivided: BTreeSet<(AttachmentId, Pair)>,
    /// First fragments, of whomever.
    firsts: HashMap<(Addresses, FragmentId), BTreeSet<FirstPorts>>,
    /// Packets of IPv4, by protocol, of which fragments are made for who takes no longer ones.
    wholes: HashMap<(Addresses, u8), BTreeSet<FirstPorts>>,
    /// Segments from the NOS: from where, to where.
    segments: BTreeSet<(SocketAddr, SocketAddr)>,
}

impl Steered {
    /// The relay was asked for this.
    pub fn ask(
        &mut self,
        request: RequestId,
        attach: Vec<AttachmentConfig>,
        detach: Vec<AttachmentId>,
    ) {
        let asked = AskedExchange { attach, detach };
        self.asked.insert(request, asked);
    }

    /// A container is gone, at once, and nothing that was asked for it is granted.
    pub fn detached(&mut self, id: AttachmentId) {
        self.granted.remove(&id);
        for asked in self.asked.values_mut() {
            asked.attach.retain(|config| config.id != id);
        }
    }

    /// The relay has said this.
    pub fn note_event(&mut self, event: &RelayEvent) {
        let Some(asked) = event.request().and_then(|id| self.asked.remove(&id)) else {
            return;
        };
        if !matches!(event, RelayEvent::Accepted(_)) {
            return;
        }
        for id in asked.detach {
            self.detached(id);
        }
        for config in asked.attach {
            self.ever.push(config.clone());
            self.lately.push(config.clone());
            self.granted.insert(config.id, config);
        }
    }

    /// Nothing is under way.
    pub fn note_rest(&mut self) {
        self.lately.clear();
        self.lately.extend(self.granted.values().cloned());
    }

    /// A device receives this.
    pub fn note_given(&mut self, from: Interface, octets: &[u8], offload: Offload) {
        let Some(mut frame) = frames::spare(octets) else {
            return;
        };
        frame.set_offload(offload);
        let parsed = Packet::parse(frame)
            .or_else(vlan::parse_tagged)
            .or_else(Packet::parse_up_to_fault);
        let Ok(packet) = parsed else {
            return;
        };
        self.given.note(from, &packet);
    }

    /// Whether a container may get a packet.
    pub fn check_delivered(&self, to: AttachmentId, packet: &Packet) {
        assert!(self.is_for(to, packet), "{packet:?} is not for {to:?}");
    }

    fn is_for(&self, to: AttachmentId, packet: &Packet) -> bool {
        // The relay answers for itself, and for the NOS, on each container's link.
        if ndp::is_ndp(packet) || self.is_returned(to, packet) {
            return true;
        }
        let local = packet.destination();
        let given = &self.given;
        let pair = (local, packet.source());
        if packet.fragment() == Fragment::Later {
            return self.is_rest(to, packet);
        }
        if let Some(ports) = packet.ports() {
            let ends = (
                SocketAddr::new(local, ports.destination),
                SocketAddr::new(pair.1, ports.source),
            );
            return Transport::from_protocol(packet.protocol())
                .is_some_and(|transport| self.owns(&self.lately, to, transport, ends));
        }
        if let Some(quote) = Quote::parse(packet) {
            return self.has_sent(to, &quote) || self.is_refused(to, packet, &quote);
        }
        let reply = if packet.is_ipv6() { 129 } else { 0 };
        packet.icmp().is_some_and(|(kind, _)| kind == reply)
            && packet
                .echo_id()
                .is_some_and(|id| given.echo_requests.contains(&(to, pair, id)))
    }

    /// A container has back what it says to itself, where there are no ports to ask.
    fn is_returned(&self, to: AttachmentId, packet: &Packet) -> bool {
        let own = |address| {
            let mut configs = self.lately.iter().filter(|config| config.id == to);
            configs.any(|config| config.addresses.contains(&address))
        };
        let (source, destination) = (packet.source(), packet.destination());
        let given = (to, (source, destination));
        own(source) && own(destination) && self.given.undivided.contains(&given)
    }

    /// Whether a port is a container's, or a flow that it has opened from a port of nobody's.
    fn owns(
        &self,
        granted: &[AttachmentConfig],
        to: AttachmentId,
        transport: Transport,
        (local, remote): (SocketAddr, SocketAddr),
    ) -> bool {
        let mut configs = granted.iter().filter(|config| config.id == to);
        configs.any(|config| {
            let claimed = || {
                let mut claims = config.claims.iter();
                claims
                    .any(|claim| claim.transport == transport && claim.range.contains(local.port()))
            };
            config.addresses.contains(&local.ip())
                && (claimed() || self.has_opened(config, transport, local, remote))
        })
    }

    fn has_opened(
        &self,
        config: &AttachmentConfig,
        transport: Transport,
        local: SocketAddr,
        remote: SocketAddr,
    ) -> bool {
        let flows = &self.given.flows;
        let announced = || {
            let mut flows = flows.iter();
            flows.any(|(id, _, from, to)| {
                (*id, from.ip(), to.ip(), to.port()) == (config.id, local.ip(), remote.ip(), FTP)
            })
        };
        config.policy.outside == Outside::Learn
            && (flows.contains(&(config.id, transport, local, remote)) || announced())
    }

    /// Whether a container has sent what an ICMP error quotes.
    fn has_sent(&self, to: AttachmentId, quote: &Quote) -> bool {
        let pair = (quote.addresses.source(), quote.addresses.destination());
        let transport = Transport::from_protocol(quote.protocol);
        match (transport.zip(quote.ports), quote.echo_id) {
            (Some((transport, ports)), _) => {
                let local = SocketAddr::new(pair.0, ports.source);
                let remote = SocketAddr::new(pair.1, ports.destination);
                self.owns(&self.lately, to, transport, (local, remote))
            }
            (None, Some(id)) => {
                let given = &self.given;
                given.echo_requests.contains(&(to, pair, id))
                    || given.undivided.contains(&(to, pair))
            }
            (None, None) => self.given.undivided.contains(&(to, pair)),
        }
    }

    /// Whether the relay tells a container that it has sent from a port that is not its own.
    fn is_refused(&self, to: AttachmentId, error: &Packet, quote: &Quote) -> bool {
        let by_relay = match error.source() {
            IpAddr::V4(source) => source == DUMMY_ADDRESS,
            IpAddr::V6(source) => source.is_unicast_link_local(),
        };
        let prohibited = matches!(
            (error.is_ipv6(), quote.kind, quote.code),
            (false, 3, 13) | (true, 1, 1)
        );
        let sent = Transport::from_protocol(quote.protocol)
            .zip(quote.ports)
            .map(|(transport, ports)| {
                let local = SocketAddr::new(quote.addresses.source(), ports.source);
                let remote = SocketAddr::new(quote.addresses.destination(), ports.destination);
                (to, transport, local, remote)
            });
        by_relay && prohibited && sent.is_some_and(|sent| self.given.flows.contains(&sent))
    }

    /// Whether any first fragment of the same datagram was for the container.
    fn is_rest(&self, to: AttachmentId, packet: &Packet) -> bool {
        let Some((id, _)) = packet.fragment_place() else {
            return false;
        };
        let (local, remote) = (packet.destination(), packet.source());
        let addresses = packet.addresses();
        let firsts = self.given.firsts.get(&(addresses, id));
        let wholes = self.given.wholes.get(&(addresses, id.protocol));
        let mut begins = firsts.into_iter().chain(wholes).flatten();
        begins.any(|first| match *first {
            Some((transport, from, port)) => {
                let ends = (SocketAddr::new(local, port), SocketAddr::new(remote, from));
                self.owns(&self.ever, to, transport, ends)
            }
            // An echo reply, an error, or what the container says to itself.
            None => {
                let mut configs = self.ever.iter().filter(|config| config.id == to);
                configs.any(|config| config.addresses.contains(&local))
            }
        })
    }

    /// Whether the NOS may get a packet.
    pub fn check_left(&self, packet: &Packet) {
        let reports = packet.protocol() == protocol::IGMP
            || (packet.is_ipv6() && packet.icmp().is_some_and(|(kind, _)| kind == 143));
        if ndp::is_ndp(packet) || reports || self.is_reset(packet) {
            return;
        }
        let given = &self.given;
        let pair = (packet.source(), packet.destination());
        assert!(given.pairs.contains(&pair), "{packet:?} is nobody's");
        if !given.offloaded && packet.fragment() == Fragment::Whole {
            let as_given = given.packets.contains(&as_it_leaves(packet));
            assert!(as_given, "{packet:?} was not given like this");
        }
    }

    /// Of a segment from the NOS to a port from which a container only opens flows.
    fn is_reset(&self, packet: &Packet) -> bool {
        let resets = packet.tcp_flags().is_some_and(|flags| flags & RST != 0);
        packet.ports().filter(|_| resets).is_some_and(|ports| {
            let from = SocketAddr::new(packet.destination(), ports.destination);
            let to = SocketAddr::new(packet.source(), ports.source);
            self.given.segments.contains(&(from, to))
        })
    }
}

impl Given {
    fn note(&mut self, from: Interface, packet: &Packet) {
        self.note_first(packet);
        match from {
            Interface::Attachment(id) => self.note_said(id, packet),
            Interface::Uplink(_) => {
                if packet.tcp_flags().is_some()
                    && let Some((_, source, destination)) = ends(packet)
                {
                    self.segments.insert((source, destination));
                }
            }
        }
    }

    fn note_first(&mut self, packet: &Packet) {
        let ports = ends(packet).map(|(transport, from, to)| (transport, from.port(), to.port()));
        let addresses = packet.addresses();
        match (packet.fragment(), packet.fragment_place()) {
            (Fragment::First, Some((id, _))) => {
                self.firsts
                    .entry((addresses, id))
                    .or_default()
                    .insert(ports);
            }
            (Fragment::Whole, _) if !packet.is_ipv6() => {
                let key = (addresses, packet.protocol());
                self.wholes.entry(key).or_default().insert(ports);
            }
            _ => {}
        }
    }

    fn note_said(&mut self, id: AttachmentId, packet: &Packet) {
        let pair = (packet.source(), packet.destination());
        self.offloaded |= packet.frame().offload() != Offload::NONE;
        self.pairs.insert(pair);
        self.packets.insert(as_it_leaves(packet));
        if let Some((transport, local, remote)) = ends(packet) {
            self.flows.insert((id, transport, local, remote));
        } else if let Some(echo) = packet.echo_id() {
            self.echo_requests.insert((id, pair, echo));
        } else {
            self.undivided.insert((id, pair));
        }
    }
}

/// Where a datagram or segment comes from, and where it goes.
fn ends(packet: &Packet) -> Option<(Transport, SocketAddr, SocketAddr)> {
    let ports = packet.ports()?;
    Some((
        Transport::from_protocol(packet.protocol())?,
        SocketAddr::new(packet.source(), ports.source),
        SocketAddr::new(packet.destination(), ports.destination),
    ))
}

/// The packet, but for what is put into echo requests.
fn as_it_leaves(packet: &Packet) -> Vec<u8> {
    let mut octets = packet.ip().to_vec();
    let request = if packet.is_ipv6() { 128 } else { 8 };
    let asks = packet.icmp().is_some_and(|(kind, _)| kind == request);
    if asks && packet.echo_id().is_some() {
        // Checksum and identifier.
        let at = octets.len() - packet.transport().len();
        octets[at + 2..at + 6].fill(0);
    }
    octets
}
