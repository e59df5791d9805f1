//! A NOS without devices: what embeds the relay's contract does what this does, with devices of its
//! own.
//!
//! A container registers its ports over the channel. Then frames are handed in from both sides, and
//! what comes out is printed. Nothing is opened, nothing waits, and time is a number.
//!
//! ```sh
//! cargo run -p nos-shim --example without_devices
//! cargo run -p nos-shim --example without_devices --no-default-features    # without services
//! ```

#![expect(
    clippy::unwrap_used,
    reason = "an example; its packets are known to be right"
)]

use std::net::{Ipv4Addr, Ipv6Addr};

use etherparse::PacketBuilder;
use nos_shim::arp::Arp;
use nos_shim::channel::{Exchange, RelayEnd, RequestId, ToNos, pair};
use nos_shim::frame::{Frame, FramePool};
use nos_shim::ident::{AttachmentId, Interface, MacAddr, UplinkId, VrfId};
use nos_shim::packet::Packet;
use nos_shim::ports::{AddressMode, Claim, ClaimKind, Policy, PortRange, Registration, Transport};
use nos_shim::services::{Service, ServiceConfig};
use nos_shim::shim::{LinkState, Shim, ShimConfig, UplinkConfig};
use nos_shim::time::Instant;

const UPLINK: UplinkId = UplinkId(0);
const WEB: AttachmentId = AttachmentId(0);

/// The NOS on its uplink, and somebody there.
const NOS: (MacAddr, Ipv4Addr) = (MacAddr([2, 0, 0, 0, 0, 1]), Ipv4Addr::new(203, 0, 113, 1));
const PEER: (MacAddr, Ipv4Addr) = (MacAddr([2, 0, 0, 0, 0, 2]), Ipv4Addr::new(203, 0, 113, 2));

/// What a NOS has: here, the model of one, the relay's end of its channel, and buffers.
struct World {
    nos: Shim,
    relay: RelayEnd,
    pool: FramePool,
    now: Instant,
}

fn main() {
    let pool = FramePool::new(1024, 2048);
    let (relay, nos_end) = pair(16);
    let mut world = World {
        nos: Shim::new(
            nos_end,
            pool.clone(),
            ShimConfig {
                seed: 1,
                ..ShimConfig::default()
            },
        ),
        relay,
        pool,
        now: Instant::ZERO,
    };
    world.configure();
    world.register();

    world.hand_in(
        "a datagram to the container",
        &datagram(PEER, NOS, (53, 20_080)),
    );
    world.hand_in("a datagram to nobody", &datagram(PEER, NOS, (53, 81)));
    world.hand_in("the peer's answer to that question", &answer_to_arp());
    world.hand_in("an echo request", &echo_request());
    #[cfg(feature = "stack")]
    world.hand_in(
        "a datagram to the echo service",
        &datagram(PEER, NOS, (5000, 7)),
    );
    world.pass_on(
        "a datagram of the container",
        &datagram(NOS, PEER, (20_080, 53)),
    );

    let ledger = world.nos.ledger();
    println!(
        "{} packets in, {} made, {} out, {} dropped",
        ledger.received,
        ledger.originated,
        ledger.sent,
        ledger.drops.total()
    );
    for (reason, packets) in ledger.drops.nonzero() {
        println!("  {reason}: {packets}");
    }
    assert_eq!(ledger.unaccounted(), world.nos.held() as i128);
}

impl World {
    fn configure(&mut self) {
        let uplink = UplinkConfig {
            id: UPLINK,
            name: "up0".into(),
            vrf: VrfId::DEFAULT,
            mac: NOS.0,
            addresses: vec!["203.0.113.1/24".parse().unwrap()],
            mtu: 1500,
            redirects: true,
        };
        self.nos.set_uplink(uplink, self.now).unwrap();
        self.nos.set_link(UPLINK, LinkState::Up, self.now).unwrap();
        self.nos
            .set_services(
                VrfId::DEFAULT,
                &ServiceConfig {
                    ping: true,
                    services: vec![Service::Echo],
                    ..ServiceConfig::default()
                },
            )
            .unwrap();
    }

    /// What the relay does when a container is attached.
    fn register(&mut self) {
        let claim = |transport| Claim {
            transport,
            range: PortRange::new(20_000, 20_999).unwrap(),
            kind: ClaimKind::Listen,
        };
        let registration = Registration {
            attachment: WEB,
            name: "web".into(),
            vrf: VrfId::DEFAULT,
            network: nos_shim::ident::NetworkId::DEFAULT,
            mode: AddressMode::Shared,
            addresses: vec![NOS.1.into()],
            policy: Policy::default(),
            claims: vec![claim(Transport::Tcp), claim(Transport::Udp)],
            link_local: None,
            router: Ipv6Addr::LOCALHOST,
            mtu: 1500,
        };
        let exchange = Exchange {
            register: vec![registration],
            ..Exchange::default()
        };
        self.relay
            .send_control(ToNos::Exchange(RequestId(1), exchange))
            .unwrap();
        self.nos.poll_channel(self.now, 1);
        println!("the NOS says {:?}", self.relay.recv_control().unwrap());
    }

    /// An uplink's device has received a frame.
    fn hand_in(&mut self, what: &str, octets: &[u8]) {
        println!("\n{what}, from the network:");
        let frame = self.pool.copy_from(octets).unwrap();
        let mut burst = [frame].into_iter().collect();
        self.nos.handle_burst(UPLINK, &mut burst, self.now);
        self.show();
    }

    /// The relay passes on what a container has sent.
    fn pass_on(&mut self, what: &str, octets: &[u8]) {
        println!("\n{what}, from the relay:");
        let frame = self.pool.copy_from(octets).unwrap();
        let mut packet = Packet::parse(frame).unwrap();
        packet.set_interface(Interface::Attachment(WEB));
        let mut burst = [packet].into_iter().collect();
        assert!(self.relay.send_burst(&mut burst));
        self.nos.poll_channel(self.now, 1);
        self.show();
    }

    /// Everything that comes out, and what is due later.
    fn show(&mut self) {
        while let Some((uplink, burst)) = self.nos.poll_transmit() {
            for frame in burst.drain(..) {
                println!("  to {uplink}: {}", described(frame));
            }
        }
        while let Some(burst) = self.relay.recv_burst() {
            for packet in burst {
                let to = packet.frame().interface().unwrap();
                println!(
                    "  to the relay, for {to}: {}",
                    described(packet.into_frame())
                );
            }
        }
        if let Some(at) = self.nos.poll_at() {
            let millis = at.since(self.now).as_millis();
            println!("  and something is to be done in {millis} ms at the latest");
        }
    }
}

fn described(frame: Frame) -> String {
    if let Ok(arp) = Arp::parse(frame.bytes()) {
        return format!("ARP {:?} for {}", arp.operation, arp.target_ip);
    }
    match Packet::parse(frame) {
        Ok(packet) => format!(
            "{} to {}, protocol {}, {} octets",
            packet.source(),
            packet.destination(),
            packet.protocol(),
            packet.ip().len()
        ),
        Err(rejected) => format!("nothing that can be read: {}", rejected.reason),
    }
}

type Station = (MacAddr, Ipv4Addr);

fn datagram(from: Station, to: Station, (source, destination): (u16, u16)) -> Vec<u8> {
    let mut octets = Vec::new();
    PacketBuilder::ethernet2(from.0.0, to.0.0)
        .ipv4(from.1.octets(), to.1.octets(), 64)
        .udp(source, destination)
        .write(&mut octets, b"hello")
        .unwrap();
    octets
}

fn echo_request() -> Vec<u8> {
    let mut octets = Vec::new();
    PacketBuilder::ethernet2(PEER.0.0, NOS.0.0)
        .ipv4(PEER.1.octets(), NOS.1.octets(), 64)
        .icmpv4_echo_request(7, 1)
        .write(&mut octets, b"hello")
        .unwrap();
    octets
}

fn answer_to_arp() -> Vec<u8> {
    let mut frame = FramePool::new(1, 64).alloc().unwrap();
    let question = Arp::request(NOS.0, NOS.1, PEER.1);
    question.reply(PEER.0).write(&mut frame, NOS.0).unwrap();
    frame.bytes().to_vec()
}
