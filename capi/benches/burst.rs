//! A burst through the C interface, beside the same in Rust: a NOS takes a burst from the ring and sends it
//! back.
//!
//! | benchmark | what the NOS does with each packet |
//! |---|---|
//! | `hop` | nothing: the burst travels as a whole |
//! | `deliver` | looks its owner up in the port table, and sets the attachment |
//! | `packets` | takes it out of the burst, and puts it into the next one |
//! | `packets-deliver` | both |
//!
//! The functions are called by pointers that the compiler does not see through, as C calls them.

#![allow(
    clippy::unwrap_used,
    reason = "a benchmark may stop where its data are wrong"
)]

#[path = "../../benches/support/mod.rs"]
mod support;

use core::ffi::c_int;
use std::hint::black_box;
use std::net::Ipv6Addr;
use std::ptr::null_mut;

use criterion::{Criterion, criterion_group, criterion_main};
use nos_relay::embed::NosPort;
use nos_relay_capi::burst::{nos_relay_port_deliver, nos_relay_port_receive, nos_relay_port_send};
use nos_relay_capi::lent::nos_relay_burst;
use nos_relay_capi::packet::{nos_relay_packet, nos_relay_packet_set_attachment};
use nos_relay_capi::port::{
    nos_relay_port, nos_relay_port_free, nos_relay_port_ring, nos_relay_port_rx_burst,
    nos_relay_port_tx_burst,
};
use nos_relay_capi::registration::nos_relay_registration;
use nos_relay_capi::table::{
    nos_relay_owner, nos_relay_table, nos_relay_table_add_address, nos_relay_table_exchange,
    nos_relay_table_free, nos_relay_table_new, nos_relay_table_recipients,
};
use nos_shim::channel::{RelayEnd, pair};
use nos_shim::frame::{BATCH, FramePool};
use nos_shim::ident::{AttachmentId, Interface, VrfId};
use nos_shim::packet::{Packet, PacketBurst};
use nos_shim::ports::{
    AddressMode, Claim, ClaimKind, Policy, PortOwner, PortRange, PortTable, Registration, Transport,
};
use support::cycles::PerElement;
use support::packets::{Ends, OWN4, SMALL};

/// Bursts that each ring holds.
const RING: usize = 8;
const SIZES: [usize; 3] = [1, 8, BATCH];
const OWNER: AttachmentId = AttachmentId(1);

/// The two ends, and a burst for the container of a size.
fn ends(size: usize) -> (RelayEnd, NosPort, PacketBurst) {
    let mut pool = FramePool::new(4 * BATCH, 2000);
    let template = Ends::inbound4().udp(SMALL);
    let burst = (0..size).map(|_| template.packet(&mut pool)).collect();
    let (relay, nos) = pair(RING);
    (relay, NosPort::new(nos, pool).unwrap(), burst)
}

fn claims() -> Vec<Claim> {
    let claim = |transport| Claim {
        transport,
        range: PortRange::new(1, u16::MAX).unwrap(),
        kind: ClaimKind::Listen,
    };
    [Transport::Tcp, Transport::Udp].map(claim).to_vec()
}

/// A NOS that is called in turns: it takes what there is, and sends it back.
trait Nos {
    fn turn(&mut self);
}

/// What a NOS does with packets.
#[derive(Clone, Copy)]
struct Work {
    /// It looks up their owners.
    delivers: bool,
    /// It has them one by one.
    singly: bool,
}

struct InRust {
    port: NosPort,
    table: Option<PortTable>,
    singly: bool,
    outgoing: PacketBurst,
}

impl InRust {
    fn new(port: NosPort, work: Work) -> Self {
        let mut table = PortTable::new();
        table.add_address(VrfId::DEFAULT, OWN4.into());
        let registration = Registration {
            attachment: OWNER,
            name: "web".into(),
            vrf: VrfId::DEFAULT,
            network: nos_shim::ident::NetworkId::DEFAULT,
            mode: AddressMode::Shared,
            addresses: vec![OWN4.into()],
            link_local: None,
            claims: claims(),
            policy: Policy::default(),
            router: Ipv6Addr::UNSPECIFIED,
            mtu: 1500,
        };
        table.register(&registration).unwrap();
        Self {
            port,
            table: work.delivers.then_some(table),
            singly: work.singly,
            outgoing: PacketBurst::new(),
        }
    }
}

/// What `nos_relay_table_recipients` does for TCP and UDP.
fn owner(table: &PortTable, packet: &Packet) -> Option<AttachmentId> {
    let address = table.address(packet.frame().vrf(), packet.destination())?;
    let transport = Transport::from_protocol(packet.protocol())?;
    match table.owner(address, transport, packet.ports()?.destination) {
        PortOwner::Attachment {
            id,
            kind: ClaimKind::Ephemeral,
        } if packet.opens_tcp_flow()
            && packet.frame().interface() != Some(Interface::Attachment(id)) =>
        {
            None
        }
        owner => owner.attachment().map(|(id, _)| id),
    }
}

impl InRust {
    /// Whether it has an owner, which is set.
    #[inline]
    fn address(table: Option<&PortTable>, packet: &mut Packet) -> bool {
        let Some(table) = table else { return true };
        let Some(id) = owner(table, packet) else {
            return false;
        };
        packet.set_interface(Interface::Attachment(id));
        true
    }

    fn one_by_one(&mut self, mut burst: PacketBurst) {
        for mut packet in burst.drain(..) {
            if Self::address(self.table.as_ref(), &mut packet) {
                self.outgoing.push(packet);
            }
        }
        self.port.channel().recycle(burst);
        assert!(self.port.channel().send_burst(&mut self.outgoing));
    }

    fn as_a_whole(&mut self, mut burst: PacketBurst) {
        let all = burst
            .iter_mut()
            .all(|packet| Self::address(self.table.as_ref(), packet));
        assert!(all);
        assert!(self.port.channel().send_burst(&mut burst));
        self.port.channel().recycle(burst);
    }
}

impl Nos for InRust {
    fn turn(&mut self) {
        while let Some(burst) = self.port.channel().recv_burst() {
            if self.singly {
                self.one_by_one(burst);
            } else {
                self.as_a_whole(burst);
            }
        }
        self.port.channel().ring();
    }
}

type Receive =
    unsafe extern "C" fn(*mut nos_relay_port, *mut *mut nos_relay_burst, *mut usize) -> c_int;
type Send = unsafe extern "C" fn(*mut nos_relay_port, *mut nos_relay_burst) -> c_int;
type Deliver = unsafe extern "C" fn(
    *mut nos_relay_port,
    *mut nos_relay_table,
    *mut nos_relay_burst,
    *mut nos_relay_owner,
    *mut usize,
) -> c_int;
type Rx = unsafe extern "C" fn(
    *mut nos_relay_port,
    *mut *mut nos_relay_packet,
    usize,
    *mut usize,
) -> c_int;
type Tx = unsafe extern "C" fn(
    *mut nos_relay_port,
    *const *mut nos_relay_packet,
    usize,
    *mut usize,
) -> c_int;
type Ring = unsafe extern "C" fn(*mut nos_relay_port) -> c_int;
type Set = unsafe extern "C" fn(*mut nos_relay_packet, u32) -> c_int;
type Recipients = unsafe extern "C" fn(
    *mut nos_relay_table,
    *const *mut nos_relay_packet,
    usize,
    *mut nos_relay_owner,
) -> c_int;

/// As C would: an array of packets, and codes that are looked at.
struct InC {
    port: *mut nos_relay_port,
    table: *mut nos_relay_table,
    work: Work,
    packets: [*mut nos_relay_packet; BATCH],
    owners: [nos_relay_owner; BATCH],
}

impl InC {
    fn new(port: NosPort, work: Work) -> Self {
        let mut table = null_mut();
        let address = nos_relay_capi::address::nos_relay_address::from(std::net::IpAddr::V4(OWN4));
        let claims: Vec<_> = [6, 17]
            .map(|transport| nos_relay_capi::registration::nos_relay_claim {
                transport,
                kind: nos_relay_capi::registration::NOS_RELAY_LISTEN,
                ports: nos_relay_capi::registration::nos_relay_ports {
                    first: 1,
                    last: u16::MAX,
                },
            })
            .to_vec();
        let registration = nos_relay_registration {
            attachment: OWNER.0,
            vrf: 0,
            mtu: 1500,
            name: c"web".as_ptr(),
            network: 0,
            addresses: &raw const address,
            address_count: 1,
            claims: claims.as_ptr(),
            claim_count: claims.len(),
            link: nos_relay_capi::registration::NOS_RELAY_NO_LINK,
            router: [0; 16],
            from: null_mut(),
            from_count: 0,
            established: null_mut(),
            established_count: 0,
            to: null_mut(),
            to_count: 0,
            to_limited: 0,
            outside: 0,
            mode: 0,
        };
        // SAFETY: all pointers are to values that are there.
        unsafe {
            assert_eq!(nos_relay_table_new(&raw mut table), 0);
            let added = nos_relay_table_add_address(table, 0, &raw const address, null_mut());
            assert_eq!(added, 0);
            let granted =
                nos_relay_table_exchange(table, null_mut(), 0, &raw const registration, 1);
            assert_eq!(granted, 0);
        }
        let nobody = nos_relay_owner {
            attachment: 0,
            kind: 0,
            claim: 0,
            watched: 0,
        };
        Self {
            port: nos_relay_capi::port::of(port).unwrap(),
            table,
            work,
            packets: [null_mut(); BATCH],
            owners: [nobody; BATCH],
        }
    }
}

impl Drop for InC {
    fn drop(&mut self) {
        // SAFETY: this thread has made them.
        unsafe {
            assert_eq!(nos_relay_port_free(self.port), 0);
            assert_eq!(nos_relay_table_free(self.table), 0);
        }
    }
}

impl InC {
    fn as_a_whole(&mut self) {
        let receive: Receive = black_box(nos_relay_port_receive);
        let send: Send = black_box(nos_relay_port_send);
        let deliver: Deliver = black_box(nos_relay_port_deliver);
        let (mut burst, mut count, mut left) = (null_mut(), 0, 0);
        // SAFETY: they are handles, and where results go.
        unsafe {
            loop {
                assert_eq!(receive(self.port, &raw mut burst, &raw mut count), 0);
                if count == 0 {
                    break;
                }
                if self.work.delivers {
                    let owners = self.owners.as_mut_ptr();
                    let delivered = deliver(self.port, self.table, burst, owners, &raw mut left);
                    assert_eq!((delivered, left), (0, 0));
                } else {
                    assert_eq!(send(self.port, burst), 0);
                }
            }
        }
    }

    fn one_by_one(&mut self) {
        let rx: Rx = black_box(nos_relay_port_rx_burst);
        let tx: Tx = black_box(nos_relay_port_tx_burst);
        let set: Set = black_box(nos_relay_packet_set_attachment);
        let recipients: Recipients = black_box(nos_relay_table_recipients);
        let (mut count, mut taken) = (0, 0);
        let packets = self.packets.as_mut_ptr();
        // SAFETY: there is room for a burst, and packets are those that were received.
        unsafe {
            loop {
                assert_eq!(rx(self.port, packets, BATCH, &raw mut count), 0);
                if count == 0 {
                    break;
                }
                if self.work.delivers {
                    assert_eq!(
                        recipients(self.table, packets, count, self.owners.as_mut_ptr()),
                        0
                    );
                    for (packet, owner) in self.packets[..count].iter().zip(&self.owners) {
                        assert_eq!(set(*packet, owner.attachment), 0);
                    }
                }
                assert_eq!(tx(self.port, packets, count, &raw mut taken), 0);
                assert_eq!(taken, count);
            }
        }
    }
}

impl Nos for InC {
    fn turn(&mut self) {
        if self.work.singly {
            self.one_by_one();
        } else {
            self.as_a_whole();
        }
        let ring: Ring = black_box(nos_relay_port_ring);
        // SAFETY: it is a port of this thread.
        assert_eq!(unsafe { ring(self.port) }, 0);
    }
}

fn rounds(c: &mut Criterion, name: &str, size: usize, make: impl Fn(NosPort) -> Box<dyn Nos>) {
    let (mut relay, port, mut burst) = ends(size);
    let mut nos = make(port);
    let mut group = c.benchmark_group("capi");
    group.each(&format!("{name}/{size}"), size as u64, || {
        assert!(relay.send_burst(black_box(&mut burst)));
        nos.turn();
        let back = relay.recv_burst().unwrap();
        relay.recycle(core::mem::replace(&mut burst, back));
    });
    assert_eq!(burst.len(), size);
    group.finish();
}

fn burst(c: &mut Criterion) {
    for (what, delivers, singly) in [
        ("hop", false, false),
        ("deliver", true, false),
        ("packets", false, true),
        ("packets-deliver", true, true),
    ] {
        let work = Work { delivers, singly };
        for size in SIZES {
            rounds(c, &format!("{what}/rust"), size, |port| {
                Box::new(InRust::new(port, work))
            });
            rounds(c, &format!("{what}/c"), size, |port| {
                Box::new(InC::new(port, work))
            });
        }
    }
}

criterion_group!(benches, burst);
criterion_main!(benches);
