//! A NOS that is not the shim, with the relay inside: one uplink, IPv4, the network of the uplink and
//! nothing beyond. The relay attaches one container; the NOS forwards its packets out of the uplink, and
//! what comes in for its ports to it.
//!
//! ```sh
//! embed UPLINK ADDRESS/LENGTH NETNS PORTS     # of an interface that the kernel gives no address
//! embed hx 203.0.113.1/24 /run/netns/web 20000-20999
//! ```
//!
//! It says `ready` when the container is attached, and ends when its stdin does.

use std::collections::HashMap;
use std::error::Error;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::time::Duration;

use ipnet::Ipv4Net;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nos_relay::Relay;
use nos_relay::data::device::{FrameDevice, Next, PacketOptions, PacketSocket};
use nos_relay::embed::{Container, Interface, Netns, NosPort};
use nos_shim::arp::{Arp, Operation};
use nos_shim::channel::{Answer, ConfigurationRefused, ToNos, ToRelay};
use nos_shim::frame::{BATCH, Burst, Frame};
use nos_shim::ident::{LocalAddressId, MacAddr, VrfId};
use nos_shim::offload::adapt;
use nos_shim::packet::{Packet, PacketBurst};
use nos_shim::ports::{PortTable, Transport};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [uplink, network, netns, ports] = &arguments[..] else {
        return Err("usage: embed UPLINK ADDRESS/LENGTH NETNS PORTS".into());
    };
    let network: Ipv4Net = network.parse()?;
    let container = Container::new("web", Netns::Path(netns.into()))
        .tcp(ports)
        .udp(ports);
    let builder = Relay::builder()
        .interface(Interface::new("up0", &[network.into()]))
        .container(container.ephemeral("40000-44999"));
    let (relay, port) = builder.start()?;
    let mut nos = Nos::new(port, uplink, network.addr())?;
    let forwarding = std::thread::spawn(move || nos.run());
    relay.await_ready(Duration::from_secs(10))?;
    println!("ready");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    relay.stop()?;
    forwarding.join().map_err(|_| "the NOS panicked")??;
    Ok(())
}

/// The NOS: who owns which port, and who is where on the uplink.
struct Nos {
    port: NosPort,
    uplink: PacketSocket,
    mac: MacAddr,
    address: Ipv4Addr,
    own: LocalAddressId,
    ports: PortTable,
    neighbors: HashMap<IpAddr, MacAddr>,
    /// Frames for the uplink.
    leaving: Vec<Frame>,
    /// Packets for containers.
    inward: PacketBurst,
}

impl Nos {
    fn new(port: NosPort, uplink: &str, address: Ipv4Addr) -> Result<Self, Box<dyn Error>> {
        let options = PacketOptions {
            promiscuous: true,
            ..PacketOptions::default()
        };
        let mut ports = PortTable::new();
        Ok(Self {
            port,
            uplink: PacketSocket::open(uplink, options)?,
            mac: MacAddr::stable("embed"),
            address,
            own: ports.add_address(VrfId::DEFAULT, address.into()),
            ports,
            neighbors: HashMap::new(),
            leaving: Vec::new(),
            inward: PacketBurst::new(),
        })
    }

    /// Forwards until the relay ends.
    fn run(&mut self) -> Result<(), nix::Error> {
        while !self.port.channel().is_deserted() {
            self.answer_requests();
            while let Some(mut burst) = self.port.channel().recv_burst() {
                burst.drain(..).for_each(|packet| self.route(packet));
                self.port.channel().recycle(burst);
            }
            let more = self.take_frames();
            self.send();
            if !more && self.port.may_block() {
                let uplink = self.uplink.fd().into_iter();
                let fds = uplink.chain([self.port.as_fd()]);
                let mut fds: Vec<_> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
                poll(&mut fds, PollTimeout::NONE)?;
            }
            self.port.awake();
        }
        Ok(())
    }

    /// Registrations are granted by the port table. This NOS has a configuration of its own.
    fn answer_requests(&mut self) {
        while let Some(message) = self.port.channel().recv_control() {
            let answer = match message {
                ToNos::Exchange(id, wanted) => {
                    match self
                        .ports
                        .exchange(&wanted.withdraw, &wanted.register, None)
                    {
                        Ok(()) => ToRelay::Accepted(id),
                        Err(refused) => ToRelay::Refused(id, refused),
                    }
                }
                ToNos::Configure(id, _) => {
                    ToRelay::Configured(id, Err(ConfigurationRefused::Unsupported))
                }
                ToNos::Query(id, _) => ToRelay::Answer(id, Answer::Unsupported),
            };
            // A relay that has ended is noticed in the next round.
            let _ = self.port.channel().send_control(answer);
        }
    }

    /// A packet of a container, or for this address: a port's owner gets what is for it, the rest leaves.
    fn route(&mut self, mut packet: Packet) {
        if packet.destination() == self.address {
            return self.deliver(packet);
        }
        match self.neighbors.get(&packet.destination()) {
            Some(&mac) => {
                packet.set_link(mac, self.mac);
                let (takes, leaving) = (self.uplink.capabilities(), &mut self.leaving);
                let mut push = |piece: Packet| leaving.push(piece.into_frame());
                // What the uplink cannot cut or sum up is done here.
                let _ = adapt(packet, takes, self.port.pool(), &mut push);
            }
            None => self.ask_for(packet.destination()),
        }
    }

    /// Who sends again finds the neighbor known.
    fn ask_for(&mut self, address: IpAddr) {
        if let (IpAddr::V4(target), Some(mut frame)) = (address, self.port.pool().alloc()) {
            let question = Arp::request(self.mac, self.address, target);
            if question.write(&mut frame, MacAddr::BROADCAST).is_ok() {
                self.leaving.push(frame);
            }
        }
    }

    /// By protocol and port; what nobody has registered is dropped.
    fn deliver(&mut self, mut packet: Packet) {
        let transport = Transport::from_protocol(packet.protocol());
        let (Some(transport), Some(ports)) = (transport, packet.ports()) else {
            return;
        };
        let owner = self.ports.owner(self.own, transport, ports.destination);
        if let Some((id, _)) = owner.attachment() {
            packet.set_interface(nos_shim::ident::Interface::Attachment(id));
            if self.inward.is_full() {
                self.send();
            }
            self.inward.push(packet);
        }
    }

    /// Takes what has arrived. Returns whether there may be more.
    fn take_frames(&mut self) -> bool {
        let mut burst = Burst::new();
        let received = self.uplink.recv_burst(self.port.pool(), &mut burst, BATCH);
        for frame in burst.drain(..) {
            match Packet::parse(frame) {
                Ok(packet) if packet.destination() == self.address => self.deliver(packet),
                Ok(_) => {}
                Err(rejected) => self.take_arp(rejected.frame),
            }
        }
        received.next == Next::More
    }

    fn take_arp(&mut self, mut frame: Frame) {
        let Ok(arp) = Arp::parse(frame.bytes()) else {
            return;
        };
        self.neighbors.insert(arp.sender_ip.into(), arp.sender_mac);
        let asked = arp.operation == Operation::Request && arp.target_ip == self.address;
        if asked
            && arp
                .reply(self.mac)
                .write(&mut frame, arp.sender_mac)
                .is_ok()
        {
            self.leaving.push(frame);
        }
    }

    fn send(&mut self) {
        while !self.leaving.is_empty() {
            let mut burst: Burst = self
                .leaving
                .drain(..BATCH.min(self.leaving.len()))
                .collect();
            // What the uplink does not take is dropped, and counted by it.
            let _ = self.uplink.send_burst(&mut burst, self.port.pool());
        }
        if !self.port.channel().send_burst(&mut self.inward) {
            self.inward.clear();
        }
        self.port.channel().ring();
    }
}
