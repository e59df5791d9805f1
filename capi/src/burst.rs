//! Bursts as a whole: what a relay sends stays together, and is one handle, not one for each packet.
//!
//! A burst that C has lies in its port, in a place whose number the handle has, and a number of its use.
//! Its packets are not C's one by one: nobody but these functions comes to them, so that they need no
//! mark. [`nos_relay_burst_unpack`] gives them to C as packets, and [`nos_relay_burst_pack`] takes such
//! ones.

use core::ffi::c_int;
use core::mem::MaybeUninit;

use nos_shim::frame::BATCH;
use nos_shim::ident::Interface;
use nos_shim::packet::PacketBurst;
use nos_shim::ports::PortTable;

use crate::failure::{Code, Failure, Outcome, call};
use crate::input::{place, places, room, slice};
use crate::lent::{give_back, nos_relay_burst, pack, unpack};
use crate::packet::{nos_relay_packet, nos_relay_view, view};
use crate::port::{Port, ended, nos_relay_port, with};
use crate::table::{self, container, nos_relay_owner, nos_relay_table};

#[cold]
fn full() -> Failure {
    Failure::new(
        Code::NOS_RELAY_E_FULL,
        "port: the ring towards the relay is full",
    )
}

/// Takes the next burst that containers have sent, and says how many packets it has: 0 if there is none, and
/// `burst` is NULL then. It is the caller's from then on, who sends, unpacks or frees it.
///
/// Threads: the port's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_port_receive(
    port: *mut nos_relay_port,
    burst: *mut *mut nos_relay_burst,
    count: *mut usize,
) -> c_int {
    call(|| {
        // SAFETY: they are where results go.
        let (to, count) = unsafe { (place(burst, "burst")?, place(count, "count")?) };
        with(port, |port| {
            let place = port.bursts.reserve()?;
            match port.next_burst() {
                Some(next) => {
                    count.write(next.len());
                    to.write(port.bursts.lend(place, next));
                }
                None => {
                    port.bursts.unreserve(place);
                    count.write(0);
                    to.write(core::ptr::null_mut());
                }
            }
            Ok(())
        })
    })
}

/// Sends a burst for containers, each packet to the attachment that it is set to. The burst is not the caller's
/// any more. NOS_RELAY_E_FULL if the ring has no room, NOS_RELAY_E_ENDED if the relay has ended: it still is. The
/// relay is woken by nos_relay_port_ring().
///
/// Threads: the port's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_port_send(
    port: *mut nos_relay_port,
    burst: *mut nos_relay_burst,
) -> c_int {
    call(|| with(port, |port| port.send_whole(burst)))
}

impl Port {
    #[inline]
    fn send_whole(&mut self, burst: *mut nos_relay_burst) -> Outcome {
        let (place, packets) = self.bursts.get(burst)?;
        if !self.nos.channel().send_burst(packets) {
            return Err(self.refusal());
        }
        self.put_away(place);
        Ok(())
    }

    /// Why the relay takes nothing.
    #[cold]
    pub(crate) fn refusal(&mut self) -> Failure {
        // A ring that nobody empties any more may be full as well.
        match self.nos.channel().is_deserted() {
            true => ended(),
            false => full(),
        }
    }

    /// Keeps for later what an empty burst lies in.
    #[inline]
    fn put_away(&mut self, place: usize) {
        if let Some(empty) = self.bursts.take(place) {
            self.nos.channel().recycle(empty);
        }
    }
}

/// Looks up whose the packets of a burst are, as nos_relay_table_recipients() does, sets those of attachments to
/// them, and sends them. The others stay in the burst, in order, and `left` says how many; `owners`, with room for
/// NOS_RELAY_BURST, says whose they are. So do those about which a policy has something to say. If none is left,
/// the burst is not the caller's any more.
/// NOS_RELAY_E_FULL if the ring has no room, NOS_RELAY_E_ENDED if the relay has ended: all are left then.
///
/// Threads: the port's, which is the table's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_port_deliver(
    port: *mut nos_relay_port,
    table: *mut nos_relay_table,
    burst: *mut nos_relay_burst,
    owners: *mut nos_relay_owner,
    left: *mut usize,
) -> c_int {
    call(|| {
        // SAFETY: they are where results go.
        let (owners, left) = unsafe { (places(owners, BATCH, "owners")?, place(left, "left")?) };
        with(port, |port| {
            table::with(table, |table| {
                left.write(port.deliver(table, burst, owners)?);
                Ok(())
            })
        })
    })
}

/// Room for the owners of packets that stay.
type Owners = [MaybeUninit<nos_relay_owner>];

/// Those of a burst that stay, as bits.
type Staying = u64;

const _: () = assert!(BATCH <= Staying::BITS as usize, "a bit for each packet");

impl Port {
    #[inline]
    fn deliver(
        &mut self,
        table: &PortTable,
        burst: *mut nos_relay_burst,
        owners: &mut Owners,
    ) -> Result<usize, Failure> {
        let is_full = self.is_full();
        let (place, packets) = self.bursts.get(burst)?;
        if is_full {
            return Err(full());
        }
        let staying = set_attachments(table, packets, owners);
        if staying.count_ones() as usize == packets.len() {
            return Ok(packets.len());
        }
        if staying != 0 {
            return self.deliver_others(burst, staying);
        }
        if !self.nos.channel().send_burst(packets) {
            return Err(ended());
        }
        self.put_away(place);
        Ok(0)
    }

    /// Sends all but those that stay.
    fn deliver_others(
        &mut self,
        burst: *mut nos_relay_burst,
        staying: Staying,
    ) -> Result<usize, Failure> {
        let (_, burst) = self.bursts.get(burst)?;
        split(burst, staying, &mut self.kept, &mut self.outgoing);
        let sent = self.nos.channel().send_burst(&mut self.outgoing);
        join(burst, staying, &mut self.kept, &mut self.outgoing);
        match sent {
            true => Ok(burst.len()),
            false => Err(ended()),
        }
    }
}

/// Sets each packet to the attachment that owns it, and says which ones have none, and whose those are.
#[inline]
fn set_attachments(table: &PortTable, packets: &mut PacketBurst, owners: &mut Owners) -> Staying {
    let mut staying = 0;
    let mut places = owners.iter_mut();
    for (n, packet) in packets.iter_mut().enumerate() {
        match container(table, packet) {
            Ok(id) => packet.set_interface(Interface::Attachment(id)),
            Err(owner) => {
                staying |= 1 << n;
                if let Some(place) = places.next() {
                    place.write(owner);
                }
            }
        }
    }
    staying
}

fn split(
    burst: &mut PacketBurst,
    staying: Staying,
    kept: &mut PacketBurst,
    others: &mut PacketBurst,
) {
    for (n, packet) in burst.drain(..).enumerate() {
        match staying >> n & 1 {
            1 => kept.push(packet),
            _ => others.push(packet),
        }
    }
}

/// Puts back what [`split`] has taken out and is still there, in order.
fn join(
    burst: &mut PacketBurst,
    staying: Staying,
    kept: &mut PacketBurst,
    others: &mut PacketBurst,
) {
    let (mut kept, mut others) = (kept.drain(..), others.drain(..));
    let which = (0..BATCH).map(|n| staying >> n & 1);
    burst.extend(which.filter_map(|stays| match stays {
        1 => kept.next(),
        _ => others.next(),
    }));
}

/// Tells what there is to know of each packet of a burst, as nos_relay_packet_views(), and how many there are:
/// `capacity` at most. The views are valid until the packets are not the caller's any more.
///
/// Threads: the port's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_burst_views(
    port: *mut nos_relay_port,
    burst: *mut nos_relay_burst,
    views: *mut nos_relay_view,
    capacity: usize,
    count: *mut usize,
) -> c_int {
    call(|| {
        // SAFETY: they are where results go.
        let (views, count) = unsafe { (room(views, capacity, "views")?, place(count, "count")?) };
        with(port, |port| {
            let (_, packets) = port.bursts.get(burst)?;
            let number = packets.len().min(views.len());
            for (place, packet) in views.iter_mut().zip(packets.iter()) {
                place.write(view(packet));
            }
            count.write(number);
            Ok(())
        })
    })
}

/// Takes the first `capacity` packets out of a burst, and says how many: they are the caller's from then on, each by
/// itself. If none is left, the burst is not the caller's any more; a capacity of NOS_RELAY_BURST has room for all.
///
/// Threads: the port's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_burst_unpack(
    port: *mut nos_relay_port,
    burst: *mut nos_relay_burst,
    packets: *mut *mut nos_relay_packet,
    capacity: usize,
    count: *mut usize,
) -> c_int {
    call(|| {
        // SAFETY: they are where results go.
        let (to, count) = unsafe { (room(packets, capacity, "packets")?, place(count, "count")?) };
        with(port, |port| {
            let (place, burst) = port.bursts.get(burst)?;
            count.write(unpack(burst, to));
            if burst.is_empty() {
                port.put_away(place);
            }
            Ok(())
        })
    })
}

/// Makes a burst of `count` packets, 1 to NOS_RELAY_BURST, which are not the caller's any more. If one of them is
/// wrong, there is no burst, and the others still are.
///
/// Threads: the port's, which has the packets.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_burst_pack(
    port: *mut nos_relay_port,
    packets: *const *mut nos_relay_packet,
    count: usize,
    burst: *mut *mut nos_relay_burst,
) -> c_int {
    call(|| {
        // SAFETY: they are packets, and where the result goes.
        let (packets, to) = unsafe { (slice(packets, count, "packets")?, place(burst, "burst")?) };
        if !(1..=BATCH).contains(&count) {
            let message = format_args!("count: a burst has 1 to {BATCH} packets, not {count}");
            return Err(Failure::new(Code::NOS_RELAY_E_SIZE, message));
        }
        with(port, |port| {
            let place = port.bursts.reserve()?;
            let mut burst = port.nos.channel().spare();
            match pack(packets, 0, &mut burst) {
                Ok(()) => {
                    to.write(port.bursts.lend(place, burst));
                    Ok(())
                }
                Err(failure) => {
                    // As nothing has happened, they are still the caller's.
                    give_back(&mut burst);
                    port.nos.channel().recycle(burst);
                    port.bursts.unreserve(place);
                    Err(failure)
                }
            }
        })
    })
}

/// Frees a burst and its packets.
///
/// Threads: the port's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_burst_free(
    port: *mut nos_relay_port,
    burst: *mut nos_relay_burst,
) -> c_int {
    call(|| {
        with(port, |port| {
            let (place, packets) = port.bursts.get(burst)?;
            for packet in packets.drain(..) {
                port.nos.pool().free(packet.into_frame());
            }
            port.put_away(place);
            Ok(())
        })
    })
}

#[cfg(test)]
mod tests {
    use core::net::Ipv4Addr;
    use core::ptr::null_mut;
    use std::ffi::CStr;
    use std::sync::Arc;

    use nos_relay::embed::NosPort;
    use nos_shim::channel::{RelayEnd, pair};
    use nos_shim::frame::FramePool;
    use nos_shim::ident::{AttachmentId, VrfId};
    use nos_shim::packet::Packet;
    use nos_shim::ports::{
        AddressMode, Claim, ClaimKind, Policy, PortRange, PortTable, Registration, Restriction,
        Transport,
    };
    use nos_shim::prefix_set::PrefixSet;

    use super::*;
    use crate::failure::nos_relay_last_error;
    use crate::lent::PLACES;
    use crate::port::{nos_relay_port_free, of};
    use crate::table::tests::{FAR, OWN, ipv4, udp};
    use crate::table::{
        NOS_RELAY_ATTACHMENT, NOS_RELAY_ELSEWHERE, NOS_RELAY_NOBODY, nos_relay_table_free,
        nos_relay_table_new,
    };

    const RING: usize = 1;
    const BUFFERS: usize = 300;

    /// A NOS in C whose relay does nothing, and a pool for both.
    struct Bench {
        relay: Option<RelayEnd>,
        port: *mut nos_relay_port,
        table: *mut nos_relay_table,
        pool: FramePool,
    }

    impl Bench {
        fn new() -> Self {
            let pool = FramePool::new(BUFFERS, 2000);
            let (relay, nos) = pair(RING);
            let port = of(NosPort::new(nos, pool.clone()).unwrap()).unwrap();
            let mut table = null_mut();
            // SAFETY: it is where the result goes.
            assert_eq!(unsafe { nos_relay_table_new(&raw mut table) }, 0);
            let filled = table::with(table, |table| {
                fill(table);
                Ok(())
            });
            filled.unwrap();
            let relay = Some(relay);
            Self {
                relay,
                port,
                table,
                pool,
            }
        }

        fn relay(&mut self) -> &mut RelayEnd {
            self.relay.as_mut().unwrap()
        }

        /// Datagrams to these, received by C.
        fn receive(&mut self, to: &[(Ipv4Addr, u16)]) -> *mut nos_relay_burst {
            let packets = to.iter().map(|&(to, port)| {
                Packet::parse(self.pool.copy_from(&datagram(to, port)).unwrap()).unwrap()
            });
            let mut sent: PacketBurst = packets.collect();
            assert!(self.relay().send_burst(&mut sent));
            let (mut burst, mut count) = (null_mut(), 0);
            // SAFETY: they are where results go.
            let code = unsafe { nos_relay_port_receive(self.port, &raw mut burst, &raw mut count) };
            assert_eq!((code, count), (0, to.len()));
            burst
        }

        /// Code, packets that are left, and kinds of their owners.
        fn deliver(&mut self, burst: *mut nos_relay_burst) -> (c_int, usize, Vec<u8>) {
            let nothing = nos_relay_owner {
                attachment: 0,
                kind: u8::MAX,
                claim: 0,
                watched: 0,
            };
            let (mut owners, mut left) = ([nothing; BATCH], usize::MAX);
            let to = owners.as_mut_ptr();
            // SAFETY: they are where results go.
            let code =
                unsafe { nos_relay_port_deliver(self.port, self.table, burst, to, &raw mut left) };
            let kinds = owners.iter().map(|owner| owner.kind);
            (code, left, kinds.filter(|&kind| kind != u8::MAX).collect())
        }

        /// The ports to which the packets of a burst go.
        fn left(&mut self, burst: *mut nos_relay_burst) -> Vec<u16> {
            let mut views = [const { MaybeUninit::<nos_relay_view>::uninit() }; BATCH];
            let (to, mut count) = (views.as_mut_ptr().cast(), 0);
            // SAFETY: they are where results go.
            let code =
                unsafe { nos_relay_burst_views(self.port, burst, to, BATCH, &raw mut count) };
            assert_eq!(code, 0);
            // SAFETY: so many were written.
            let port = |view: &MaybeUninit<nos_relay_view>| unsafe {
                view.assume_init_ref().destination_port
            };
            views[..count].iter().map(port).collect()
        }

        /// What the relay was sent: ports, and attachments.
        fn sent(&mut self) -> Vec<(u16, Option<Interface>)> {
            let Some(burst) = self.relay().recv_burst() else {
                return Vec::new();
            };
            let seen = |packet: &Packet| {
                let port = packet.ports().unwrap().destination;
                (port, packet.frame().interface())
            };
            burst.iter().map(seen).collect()
        }
    }

    impl Drop for Bench {
        fn drop(&mut self) {
            // SAFETY: this thread has made them.
            unsafe {
                assert_eq!(nos_relay_port_free(self.port), 0);
                assert_eq!(nos_relay_table_free(self.table), 0);
            }
            drop(self.relay.take());
            let all: Vec<_> = core::iter::from_fn(|| self.pool.alloc()).collect();
            assert_eq!(all.len(), BUFFERS, "all buffers are back");
        }
    }

    fn fill(table: &mut PortTable) {
        table.add_address(VrfId::DEFAULT, OWN.into());
        let near = Arc::new(PrefixSet::new(["192.0.2.0/24".parse().unwrap()]));
        let watched = Restriction {
            transport: Transport::Udp,
            range: PortRange::new(70, 79).unwrap(),
            from: near,
        };
        for (number, ports, from) in [
            (5, (80, 89), vec![]),
            (6, (90, 99), vec![]),
            (7, (70, 79), vec![watched]),
        ] {
            let registration = Registration {
                attachment: AttachmentId(number),
                name: format!("c{number}").into(),
                vrf: VrfId::DEFAULT,
                network: nos_shim::ident::NetworkId::DEFAULT,
                mode: AddressMode::Shared,
                addresses: vec![OWN.into()],
                link_local: None,
                claims: vec![Claim {
                    transport: Transport::Udp,
                    range: PortRange::new(ports.0, ports.1).unwrap(),
                    kind: ClaimKind::Listen,
                }],
                policy: Policy {
                    from,
                    ..Policy::default()
                },
                router: core::net::Ipv6Addr::UNSPECIFIED,
                mtu: 1500,
            };
            table.register(&registration).unwrap();
        }
    }

    fn datagram(to: Ipv4Addr, port: u16) -> Vec<u8> {
        let ip = ipv4([FAR, to], 17, 0, &udp([7, port]));
        [&[0; 12][..], &[8, 0], &ip].concat()
    }

    fn to(number: u32) -> Option<Interface> {
        Some(Interface::Attachment(AttachmentId(number)))
    }

    fn said() -> String {
        // SAFETY: it is valid until the next failure of this thread.
        let text = unsafe { CStr::from_ptr(nos_relay_last_error()) };
        text.to_str().unwrap().to_owned()
    }

    const OK: c_int = 0;
    const FULL: c_int = Code::NOS_RELAY_E_FULL as c_int;
    const ENDED: c_int = Code::NOS_RELAY_E_ENDED as c_int;
    const HANDLE: c_int = Code::NOS_RELAY_E_HANDLE as c_int;

    #[test]
    fn a_burst_of_containers_packets_is_sent_as_a_whole() {
        let mut bench = Bench::new();
        let burst = bench.receive(&[(OWN, 80), (OWN, 90), (OWN, 81)]);
        assert_eq!(bench.deliver(burst), (OK, 0, vec![]));
        assert_eq!(bench.sent(), [(80, to(5)), (90, to(6)), (81, to(5))]);
        assert_eq!(bench.deliver(burst).0, HANDLE);
    }

    #[test]
    fn what_is_no_containers_stays_in_order() {
        let mut bench = Bench::new();
        let burst = bench.receive(&[(FAR, 1), (OWN, 80), (OWN, 2), (FAR, 3), (OWN, 90)]);
        let kinds = vec![NOS_RELAY_ELSEWHERE, NOS_RELAY_NOBODY, NOS_RELAY_ELSEWHERE];
        assert_eq!(bench.deliver(burst), (OK, 3, kinds.clone()));
        assert_eq!(bench.sent(), [(80, to(5)), (90, to(6))]);
        assert_eq!(bench.left(burst), [1, 2, 3]);
        // Nothing is left to be sent, and nothing is.
        assert_eq!(bench.deliver(burst), (OK, 3, kinds));
        assert_eq!(bench.sent(), []);
        // SAFETY: it is a burst of this port.
        assert_eq!(unsafe { nos_relay_burst_free(bench.port, burst) }, OK);
    }

    /// The NOS has to look at the policy first.
    #[test]
    fn what_a_policy_watches_stays() {
        let mut bench = Bench::new();
        let burst = bench.receive(&[(OWN, 70), (OWN, 80)]);
        assert_eq!(bench.deliver(burst), (OK, 1, vec![NOS_RELAY_ATTACHMENT]));
        assert_eq!(bench.sent(), [(80, to(5))]);
        assert_eq!(bench.left(burst), [70]);
    }

    #[test]
    fn a_full_ring_takes_nothing_and_a_relay_that_ends_neither() {
        let mut bench = Bench::new();
        let mixed = [(OWN, 80), (FAR, 1), (OWN, 90), (FAR, 2)];
        let (some, all) = (
            bench.receive(&mixed),
            bench.receive(&[(OWN, 81), (OWN, 82)]),
        );
        let [first, second] = [85, 86].map(|port| bench.receive(&[(OWN, port)]));
        // SAFETY: they are bursts of this port.
        let send = |port, burst| unsafe { nos_relay_port_send(port, burst) };
        assert_eq!(send(bench.port, first), OK);
        assert_eq!(send(bench.port, all), FULL);
        assert!(said().contains("the ring towards the relay is full"));
        assert_eq!(bench.deliver(all).0, FULL);
        assert_eq!(bench.deliver(some).0, FULL);
        assert_eq!(bench.left(some), [80, 1, 90, 2]);
        assert_eq!(bench.sent().len(), 1);
        // It is full when the relay ends.
        assert_eq!(send(bench.port, second), OK);
        bench.relay = None;
        assert_eq!(send(bench.port, all), ENDED);
        assert_eq!(bench.deliver(all).0, ENDED);
        assert_eq!(bench.deliver(some).0, ENDED);
        assert_eq!(bench.left(some), [80, 1, 90, 2]);
        assert_eq!(bench.left(all), [81, 82]);
    }

    #[test]
    fn there_is_an_end_of_bursts_and_each_comes_back() {
        let mut bench = Bench::new();
        let all: Vec<_> = (0..PLACES).map(|_| bench.receive(&[(FAR, 1)])).collect();
        let (mut burst, mut count) = (null_mut(), 0);
        // SAFETY: they are where results go.
        let code = unsafe { nos_relay_port_receive(bench.port, &raw mut burst, &raw mut count) };
        assert_eq!(code, FULL);
        assert!(said().contains("256 bursts"), "{}", said());
        // SAFETY: they are bursts of this port.
        let free = |burst| unsafe { nos_relay_burst_free(bench.port, burst) };
        assert_eq!(free(all[7]), OK);
        assert_eq!(free(all[7]), HANDLE);
        let another = bench.receive(&[(FAR, 1)]);
        assert!(!all.contains(&another));
    }
}
