//! Calls of the C interface in any order, with handles that are right, were given away, or never were any:
//! each returns what a naive model of who has what says, and no buffer is lost.
//!
//! Input: steps, by `arbitrary`.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::c_int;
use std::mem::MaybeUninit;
use std::net::Ipv4Addr;
use std::ptr::{null, null_mut, without_provenance_mut};

use arbitrary::{Arbitrary, Unstructured};
use nos_relay::embed::NosPort;
use nos_relay_capi::burst::*;
use nos_relay_capi::failure::nos_relay_code as Code;
use nos_relay_capi::lent::nos_relay_burst;
use nos_relay_capi::packet::*;
use nos_relay_capi::port::*;
use nos_relay_capi::registration::*;
use nos_relay_capi::table::*;
use nos_shim::channel::{RelayEnd, pair};
use nos_shim::checksum::Sum;
use nos_shim::frame::{BATCH, FramePool};
use nos_shim::packet::{Packet, PacketBurst};

use super::pools::with_pool;

/// Of a run: enough that none is missing, whoever keeps some to itself.
const BUFFERS: usize = 1024;
const STEPS: usize = 64;
/// Bursts in each ring: few, so that they overflow.
const RING: usize = 3;
/// The most packets of a step.
const MANY: usize = 6;

const OWN: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const FAR: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const OWNER: u32 = 5;
/// A VRF in which the table has no address.
const OTHER_VRF: u16 = 7;

#[derive(Arbitrary, Debug)]
enum Step {
    Copy(Kind),
    CopyMalformed(u8),
    Alloc,
    Edit(Which),
    Commit(Which, Kind, bool),
    Free(Which),
    FreeMany(Vec<Which>),
    View(Which),
    SetAttachment(Which, u32),
    SetVrf(Which, bool),
    DecrementTtl(Which),
    Pack(Vec<Which>),
    Unpack(WhichBurst, u8),
    Send(WhichBurst),
    Deliver(WhichBurst),
    BurstViews(WhichBurst, u8),
    FreeBurst(WhichBurst),
    Transmit(Vec<Which>),
    Receive,
    ReceivePackets(u8),
    Recipients(Vec<Which>),
    RelaySends(Vec<Kind>),
    RelayTakes,
    RelayEnds,
}

/// Whose a packet is.
#[derive(Arbitrary, Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Container,
    Nobody,
    Elsewhere,
}

impl Kind {
    fn datagram(self) -> Vec<u8> {
        let (to, port) = match self {
            Self::Container => (OWN, 80),
            Self::Nobody => (OWN, 7),
            Self::Elsewhere => (FAR, 80),
        };
        let mut ip = vec![0x45, 0, 0, 28, 0, 0, 0x40, 0, 64, 17, 0, 0];
        ip.extend([FAR, to].into_iter().flat_map(|end| end.octets()));
        let sum = Sum::ZERO.plus(&ip).checksum();
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        ip.extend([0, 7, 0, port, 0, 8, 0, 0]);
        [&[0; 12][..], &[8, 0], &ip].concat()
    }
}

/// A handle that was seen before, or a wrong one.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Which(u8);

#[derive(Arbitrary, Clone, Copy, Debug)]
struct WhichBurst(u8);

/// A packet, as the model knows it.
#[derive(Clone, Copy, Debug)]
struct Known {
    kind: Kind,
    /// It is of the VRF in which there is nobody.
    other_vrf: bool,
    /// It may have been written to.
    raw: bool,
    /// It has no octets yet, or such that are no packet.
    blank: bool,
}

impl Known {
    fn packet(kind: Kind) -> Self {
        Self {
            kind,
            other_vrf: false,
            raw: false,
            blank: false,
        }
    }

    fn owner(self) -> u8 {
        match self.kind {
            _ if self.other_vrf => NOS_RELAY_ELSEWHERE,
            Kind::Container => NOS_RELAY_ATTACHMENT,
            Kind::Nobody => NOS_RELAY_NOBODY,
            Kind::Elsewhere => NOS_RELAY_ELSEWHERE,
        }
    }
}

type Handle = *mut nos_relay_packet;
type BurstHandle = *mut nos_relay_burst;

pub fn run(data: &[u8]) {
    let mut input = Unstructured::new(data);
    with_pool(BUFFERS, |pool| {
        let mut calls = Calls::new(pool);
        for _ in 0..STEPS {
            let Ok(step) = input.arbitrary::<Step>() else {
                break;
            };
            if input.is_empty() {
                break;
            }
            calls.step(step);
        }
        calls.end();
    });
}

/// The relay's end, C's handles, and the model of both.
struct Calls {
    relay: Option<RelayEnd>,
    port: *mut nos_relay_port,
    table: *mut nos_relay_table,
    pool: FramePool,
    /// All handles that C was ever given.
    seen: Vec<Handle>,
    /// The packets that are C's.
    held: BTreeMap<usize, Known>,
    /// All bursts that C was ever given. Those that it has not any more are `None`.
    bursts: Vec<(BurstHandle, Option<Vec<Known>>)>,
    /// What the relay has sent, and C has not taken.
    incoming: VecDeque<Vec<Known>>,
    /// The rest of a burst that C has taken packets of.
    rest: Vec<Known>,
    /// Bursts that C has sent, and the relay has not taken.
    outgoing: VecDeque<usize>,
}

fn is(code: Code) -> c_int {
    code as c_int
}

impl Calls {
    fn new(pool: &FramePool) -> Self {
        let (relay, nos) = pair(RING);
        let nos = NosPort::new(nos, pool.clone()).expect("an eventfd");
        let mut table = null_mut();
        let address = std::net::IpAddr::V4(OWN).into();
        // SAFETY: it is where the result goes, and an address.
        unsafe {
            assert_eq!(nos_relay_table_new(&raw mut table), 0);
            let added = nos_relay_table_add_address(table, 0, &raw const address, null_mut());
            assert_eq!(added, 0);
        }
        register(table);
        Self {
            relay: Some(relay),
            port: of(nos).expect("few ports"),
            table,
            pool: pool.clone(),
            seen: Vec::new(),
            held: BTreeMap::new(),
            bursts: Vec::new(),
            incoming: VecDeque::new(),
            rest: Vec::new(),
            outgoing: VecDeque::new(),
        }
    }

    fn handle(&self, Which(choice): Which) -> Handle {
        let nth = |n: u8| self.seen.get(usize::from(n) % self.seen.len().max(1));
        match choice {
            0 => null_mut(),
            1..=3 => {
                nth(choice).map_or(null_mut(), |handle| handle.wrapping_byte_add(choice.into()))
            }
            _ => nth(choice - 4).copied().unwrap_or(null_mut()),
        }
    }

    fn handles(&self, which: &[Which]) -> Vec<Handle> {
        let few = which.iter().take(MANY);
        few.map(|&which| self.handle(which)).collect()
    }

    /// What is said of a handle.
    fn verdict(&self, handle: Handle, parsed: bool) -> c_int {
        if handle.is_null() {
            return is(Code::NOS_RELAY_E_NULL);
        }
        if !handle.addr().is_multiple_of(64) {
            return is(Code::NOS_RELAY_E_ALIGNMENT);
        }
        match self.held.get(&handle.addr()) {
            None => is(Code::NOS_RELAY_E_HANDLE),
            Some(known) if known.raw && parsed => is(Code::NOS_RELAY_E_ORDER),
            Some(_) => 0,
        }
    }

    /// What is said of several that are taken one after the other, and how many are.
    fn verdicts(&self, handles: &[Handle], parsed: bool) -> (c_int, usize) {
        for (n, &handle) in handles.iter().enumerate() {
            let verdict = match handles[..n].contains(&handle) {
                true if self.verdict(handle, parsed) == 0 => is(Code::NOS_RELAY_E_HANDLE),
                _ => self.verdict(handle, parsed),
            };
            if verdict != 0 {
                return (verdict, n);
            }
        }
        (0, handles.len())
    }

    fn gain(&mut self, handle: Handle, known: Known) {
        assert!(
            self.held.insert(handle.addr(), known).is_none(),
            "C has it already"
        );
        if !self.seen.contains(&handle) {
            self.seen.push(handle);
        }
    }

    fn lose(&mut self, handle: Handle) -> Known {
        self.held.remove(&handle.addr()).expect("C had it")
    }

    fn known(&mut self, handle: Handle) -> Option<&mut Known> {
        self.held.get_mut(&handle.addr())
    }

    fn gain_burst(&mut self, burst: BurstHandle, packets: Vec<Known>) {
        assert!(
            !self.bursts.iter().any(|(other, _)| *other == burst),
            "it was another's"
        );
        self.bursts.push((burst, Some(packets)));
    }

    /// A burst that was seen before, where it is, and what is in it; or a wrong one.
    fn burst(&self, WhichBurst(choice): WhichBurst) -> (BurstHandle, Option<usize>) {
        match choice {
            0 => (null_mut(), None),
            1 => (self.port.cast(), None),
            2 => (without_provenance_mut(0x1000), None),
            3 => (without_provenance_mut(usize::MAX << 5 | 13), None),
            _ if self.bursts.is_empty() => (without_provenance_mut(1 << 12 | 13), None),
            _ => {
                let at = usize::from(choice - 4) % self.bursts.len();
                let (burst, packets) = &self.bursts[at];
                (*burst, packets.is_some().then_some(at))
            }
        }
    }

    /// What is said of a burst that C does not have.
    fn no_burst(burst: BurstHandle) -> c_int {
        match burst.is_null() {
            true => is(Code::NOS_RELAY_E_NULL),
            false => is(Code::NOS_RELAY_E_HANDLE),
        }
    }

    fn has_room(&self) -> bool {
        self.outgoing.len() < RING || self.relay.is_none()
    }

    /// What is said when something is sent, if it is not taken.
    fn refused(&self) -> Option<c_int> {
        if !self.has_room() {
            Some(is(Code::NOS_RELAY_E_FULL))
        } else if self.relay.is_none() {
            Some(is(Code::NOS_RELAY_E_ENDED))
        } else {
            None
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Copy(kind) => self.copy(kind),
            Step::CopyMalformed(cut) => self.copy_malformed(cut),
            Step::Alloc => self.alloc(),
            Step::Edit(which) => self.edit(self.handle(which)),
            Step::Commit(which, kind, right) => self.commit(self.handle(which), kind, right),
            Step::Free(which) => self.free(self.handle(which)),
            Step::FreeMany(which) => self.free_many(&self.handles(&which)),
            Step::View(which) => self.view(self.handle(which)),
            Step::SetAttachment(which, id) => self.set_attachment(self.handle(which), id),
            Step::SetVrf(which, other) => self.set_vrf(self.handle(which), other),
            Step::DecrementTtl(which) => self.decrement_ttl(self.handle(which)),
            Step::Pack(which) => self.pack(&self.handles(&which)),
            Step::Unpack(which, capacity) => self.unpack(which, capacity),
            Step::Send(which) => self.send(which),
            Step::Deliver(which) => self.deliver(which),
            Step::BurstViews(which, capacity) => self.burst_views(which, capacity),
            Step::FreeBurst(which) => self.free_burst(which),
            Step::Transmit(which) => self.transmit(&self.handles(&which)),
            Step::Receive => self.receive(),
            Step::ReceivePackets(capacity) => self.receive_packets(capacity),
            Step::Recipients(which) => self.recipients(&self.handles(&which)),
            Step::RelaySends(kinds) => self.relay_sends(&kinds),
            Step::RelayTakes => self.relay_takes(),
            Step::RelayEnds => {
                self.relay = None;
                self.outgoing.clear();
            }
        }
    }

    fn copy(&mut self, kind: Kind) {
        let (octets, mut packet) = (kind.datagram(), null_mut());
        // SAFETY: they are octets, and where the result goes.
        let code = unsafe {
            nos_relay_port_copy(
                self.port,
                octets.as_ptr(),
                octets.len(),
                null(),
                &raw mut packet,
            )
        };
        assert_eq!(code, 0);
        self.gain(packet, Known::packet(kind));
    }

    fn copy_malformed(&mut self, cut: u8) {
        let octets = Kind::Nobody.datagram();
        let (length, mut packet) = (usize::from(cut) % octets.len(), null_mut());
        // SAFETY: they are octets, and where the result goes.
        let code = unsafe {
            nos_relay_port_copy(self.port, octets.as_ptr(), length, null(), &raw mut packet)
        };
        assert_eq!(
            (code, packet),
            (is(Code::NOS_RELAY_E_MALFORMED), null_mut())
        );
    }

    fn alloc(&mut self) {
        let mut packet = null_mut();
        // SAFETY: it is where the result goes.
        let code = unsafe { nos_relay_port_alloc(self.port, &raw mut packet) };
        assert_eq!(code, 0);
        let blank = Known {
            raw: true,
            blank: true,
            ..Known::packet(Kind::Nobody)
        };
        self.gain(packet, blank);
    }

    fn edit(&mut self, packet: Handle) {
        let (mut data, mut room) = (null_mut(), 0);
        // SAFETY: they are where results go; the handle is one of those that are told.
        let code = unsafe { nos_relay_packet_edit(packet, &raw mut data, &raw mut room) };
        assert_eq!(code, self.verdict(packet, false));
        if let (0, Some(known)) = (code, self.known(packet)) {
            known.raw = true;
            assert!(room >= 1500 && !data.is_null());
        }
    }

    /// Writes to a packet that C may write to, and has it looked at.
    fn commit(&mut self, packet: Handle, kind: Kind, right: bool) {
        let verdict = self.verdict(packet, false);
        let mut octets = kind.datagram();
        if verdict == 0 {
            let (mut data, mut room) = (null_mut::<u8>(), 0);
            octets[24] ^= u8::from(!right);
            // SAFETY: there is room for so many.
            unsafe {
                assert_eq!(
                    nos_relay_packet_edit(packet, &raw mut data, &raw mut room),
                    0
                );
                data.copy_from_nonoverlapping(octets.as_ptr(), octets.len());
            }
        }
        let mut reason = null();
        // SAFETY: it is where the result goes; the handle is one of those that are told.
        let code =
            unsafe { nos_relay_packet_commit(packet, octets.len(), null(), &raw mut reason) };
        if let Some(known) = self.known(packet).filter(|_| verdict == 0) {
            (known.kind, known.raw, known.blank) = (kind, !right, !right);
            let malformed = is(Code::NOS_RELAY_E_MALFORMED);
            assert_eq!(code, if right { 0 } else { malformed });
            assert_eq!(reason.is_null(), right);
        } else {
            assert_eq!(code, verdict);
        }
    }

    fn free(&mut self, packet: Handle) {
        let verdict = self.verdict(packet, false);
        // SAFETY: the handle is one of those that are told.
        assert_eq!(unsafe { nos_relay_packet_free(packet) }, verdict);
        if verdict == 0 {
            self.lose(packet);
        }
    }

    fn free_many(&mut self, packets: &[Handle]) {
        let (verdict, freed) = self.verdicts(packets, false);
        // SAFETY: the handles are of those that are told.
        let code = unsafe { nos_relay_port_free_burst(self.port, packets.as_ptr(), packets.len()) };
        assert_eq!(code, verdict);
        for &packet in &packets[..freed] {
            self.lose(packet);
        }
    }

    fn view(&mut self, packet: Handle) {
        let mut view = MaybeUninit::<nos_relay_view>::uninit();
        // SAFETY: it is where the result goes; the handle is one of those that are told.
        let code = unsafe { nos_relay_packet_views(&raw const packet, 1, view.as_mut_ptr()) };
        assert_eq!(code, self.verdict(packet, true));
        if let (0, Some(known)) = (code, self.known(packet)) {
            // SAFETY: it was written.
            check_view(unsafe { view.assume_init_ref() }, known);
        }
    }

    fn set_attachment(&mut self, packet: Handle, id: u32) {
        // SAFETY: the handle is one of those that are told.
        let code = unsafe { nos_relay_packet_set_attachment(packet, id) };
        assert_eq!(code, self.verdict(packet, true));
    }

    fn set_vrf(&mut self, packet: Handle, other: bool) {
        let number = if other { OTHER_VRF } else { 0 };
        // SAFETY: the handle is one of those that are told.
        let code = unsafe { nos_relay_packet_set_vrf(packet, number) };
        assert_eq!(code, self.verdict(packet, true));
        if let (0, Some(known)) = (code, self.known(packet)) {
            known.other_vrf = other;
        }
    }

    fn decrement_ttl(&mut self, packet: Handle) {
        let mut may = false;
        // SAFETY: it is where the result goes; the handle is one of those that are told.
        let code = unsafe { nos_relay_packet_decrement_ttl(packet, &raw mut may) };
        assert_eq!(code, self.verdict(packet, true));
    }

    fn pack(&mut self, packets: &[Handle]) {
        let (verdict, _) = self.verdicts(packets, true);
        let verdict = match packets.is_empty() {
            true => is(Code::NOS_RELAY_E_SIZE),
            false => verdict,
        };
        let mut burst = null_mut();
        // SAFETY: it is where the result goes; the handles are of those that are told.
        let code = unsafe {
            nos_relay_burst_pack(self.port, packets.as_ptr(), packets.len(), &raw mut burst)
        };
        assert_eq!(code, verdict);
        if code == 0 {
            let known = packets.iter().map(|&packet| self.lose(packet)).collect();
            self.gain_burst(burst, known);
        }
    }

    fn unpack(&mut self, which: WhichBurst, capacity: u8) {
        let (burst, at) = self.burst(which);
        let capacity = 1 + usize::from(capacity) % BATCH;
        let (mut packets, mut count) = ([null_mut(); BATCH], 0);
        let to = packets.as_mut_ptr();
        // SAFETY: they are where results go.
        let code =
            unsafe { nos_relay_burst_unpack(self.port, burst, to, capacity, &raw mut count) };
        let Some(at) = at else {
            return assert_eq!(code, Self::no_burst(burst));
        };
        let mut inside = self.bursts[at].1.take().expect("C has it");
        assert_eq!((code, count), (0, inside.len().min(capacity)));
        for (packet, known) in packets.into_iter().zip(inside.drain(..count)) {
            self.gain(packet, known);
        }
        self.bursts[at].1 = Some(inside).filter(|inside| !inside.is_empty());
    }

    fn send(&mut self, which: WhichBurst) {
        let (burst, at) = self.burst(which);
        // SAFETY: what is no burst is told.
        let code = unsafe { nos_relay_port_send(self.port, burst) };
        let Some(at) = at else {
            return assert_eq!(code, Self::no_burst(burst));
        };
        match self.refused() {
            Some(refused) => assert_eq!(code, refused),
            None => {
                assert_eq!(code, 0);
                let sent = self.bursts[at].1.take().map_or(0, |inside| inside.len());
                self.outgoing.push_back(sent);
            }
        }
    }

    fn deliver(&mut self, which: WhichBurst) {
        let (burst, at) = self.burst(which);
        let mut owners = [const { MaybeUninit::<nos_relay_owner>::uninit() }; BATCH];
        let (to, mut left) = (owners.as_mut_ptr().cast(), usize::MAX);
        // SAFETY: they are where results go.
        let code =
            unsafe { nos_relay_port_deliver(self.port, self.table, burst, to, &raw mut left) };
        let Some(at) = at else {
            return assert_eq!(code, Self::no_burst(burst));
        };
        if !self.has_room() {
            return assert_eq!(code, is(Code::NOS_RELAY_E_FULL));
        }
        let inside = self.bursts[at].1.as_mut().expect("C has it");
        let mut staying = inside.clone();
        staying.retain(|known| known.owner() != NOS_RELAY_ATTACHMENT);
        let sent = inside.len() - staying.len();
        if sent > 0 && self.relay.is_none() {
            return assert_eq!(code, is(Code::NOS_RELAY_E_ENDED));
        }
        assert_eq!((code, left), (0, staying.len()));
        for (owner, known) in owners.iter().zip(&staying) {
            // SAFETY: so many were written.
            assert_eq!(unsafe { owner.assume_init_ref() }.kind, known.owner());
        }
        if sent > 0 {
            self.outgoing.push_back(sent);
        }
        self.bursts[at].1 = Some(staying).filter(|staying| !staying.is_empty());
    }

    fn burst_views(&mut self, which: WhichBurst, capacity: u8) {
        let (burst, at) = self.burst(which);
        let capacity = 1 + usize::from(capacity) % BATCH;
        let mut views = [const { MaybeUninit::<nos_relay_view>::uninit() }; BATCH];
        let (to, mut count) = (views.as_mut_ptr().cast(), 0);
        // SAFETY: they are where results go.
        let code = unsafe { nos_relay_burst_views(self.port, burst, to, capacity, &raw mut count) };
        let Some(at) = at else {
            return assert_eq!(code, Self::no_burst(burst));
        };
        let inside = self.bursts[at].1.as_ref().expect("C has it");
        assert_eq!((code, count), (0, inside.len().min(capacity)));
        for (view, known) in views[..count].iter().zip(inside) {
            // SAFETY: so many were written.
            check_view(unsafe { view.assume_init_ref() }, known);
        }
    }

    fn free_burst(&mut self, which: WhichBurst) {
        let (burst, at) = self.burst(which);
        // SAFETY: what is no burst is told.
        let code = unsafe { nos_relay_burst_free(self.port, burst) };
        match at {
            Some(at) => {
                assert_eq!(code, 0);
                self.bursts[at].1 = None;
            }
            None => assert_eq!(code, Self::no_burst(burst)),
        }
    }

    fn transmit(&mut self, packets: &[Handle]) {
        let (verdict, right) = self.verdicts(packets, true);
        let mut taken = usize::MAX;
        // SAFETY: it is where the result goes; the handles are of those that are told.
        let code = unsafe {
            nos_relay_port_tx_burst(self.port, packets.as_ptr(), packets.len(), &raw mut taken)
        };
        if packets.is_empty() || !self.has_room() {
            return assert_eq!((code, taken), (0, 0));
        }
        if self.relay.is_none() && right > 0 {
            return assert_eq!((code, taken), (is(Code::NOS_RELAY_E_ENDED), 0));
        }
        assert_eq!((code, taken), (verdict, right));
        for &packet in &packets[..right] {
            self.lose(packet);
        }
        if right > 0 {
            self.outgoing.push_back(right);
        }
    }

    fn receive(&mut self) {
        let (mut burst, mut count) = (null_mut(), usize::MAX);
        // SAFETY: they are where results go.
        let code = unsafe { nos_relay_port_receive(self.port, &raw mut burst, &raw mut count) };
        let next = self.next_burst();
        assert_eq!((code, count), (0, next.len()));
        match next.is_empty() {
            true => assert!(burst.is_null()),
            false => self.gain_burst(burst, next),
        }
    }

    fn next_burst(&mut self) -> Vec<Known> {
        let rest = std::mem::take(&mut self.rest);
        match rest.is_empty() {
            true => self.incoming.pop_front().unwrap_or_default(),
            false => rest,
        }
    }

    fn receive_packets(&mut self, capacity: u8) {
        let capacity = 1 + usize::from(capacity) % BATCH;
        let (mut packets, mut count) = ([null_mut(); BATCH], 0);
        let to = packets.as_mut_ptr();
        // SAFETY: they are where results go.
        let code = unsafe { nos_relay_port_rx_burst(self.port, to, capacity, &raw mut count) };
        let mut next = self.next_burst();
        assert_eq!((code, count), (0, next.len().min(capacity)));
        for (packet, known) in packets.into_iter().zip(next.drain(..count)) {
            self.gain(packet, known);
        }
        self.rest = next;
    }

    fn recipients(&mut self, packets: &[Handle]) {
        let mut owners = [const { MaybeUninit::<nos_relay_owner>::uninit() }; MANY];
        let to = owners.as_mut_ptr().cast();
        // SAFETY: they are where results go; the handles are of those that are told.
        let code =
            unsafe { nos_relay_table_recipients(self.table, packets.as_ptr(), packets.len(), to) };
        let verdicts = packets.iter().map(|&packet| self.verdict(packet, true));
        let verdicts: Vec<_> = verdicts.collect();
        let right = verdicts.iter().take_while(|&&verdict| verdict == 0).count();
        assert_eq!(code, verdicts.get(right).copied().unwrap_or(0));
        for (&packet, owner) in packets[..right].iter().zip(&owners) {
            // SAFETY: so many were written.
            let owner = unsafe { owner.assume_init_ref() };
            assert_eq!(owner.kind, self.held[&packet.addr()].owner());
            assert_eq!(
                owner.attachment == OWNER,
                owner.kind == NOS_RELAY_ATTACHMENT
            );
        }
    }

    fn relay_sends(&mut self, kinds: &[Kind]) {
        let Some(relay) = &mut self.relay else { return };
        let few = &kinds[..kinds.len().min(MANY)];
        let packets = few.iter().map(|kind| {
            let frame = self.pool.copy_from(&kind.datagram()).expect("room");
            Packet::parse(frame).expect("a packet")
        });
        let mut burst: PacketBurst = packets.collect();
        let full = self.incoming.len() == RING;
        assert_eq!(relay.send_burst(&mut burst), !full || few.is_empty());
        if !full && !few.is_empty() {
            let known = few.iter().map(|&kind| Known::packet(kind));
            self.incoming.push_back(known.collect());
        }
    }

    fn relay_takes(&mut self) {
        let Some(relay) = &mut self.relay else { return };
        let taken = relay.recv_burst();
        assert_eq!(taken.map(|burst| burst.len()), self.outgoing.pop_front());
    }

    /// All that C has is given back, by one way or by the other.
    fn end(mut self) {
        for address in self.held.keys().copied().collect::<Vec<_>>() {
            let same = self.seen.iter().find(|handle| handle.addr() == address);
            let handle = *same.expect("it was given");
            self.free(handle);
        }
        // SAFETY: this thread has made them.
        unsafe {
            assert_eq!(nos_relay_port_free(self.port), 0);
            assert_eq!(nos_relay_table_free(self.table), 0);
            let freed = nos_relay_port_free(self.port);
            assert_eq!(freed, is(Code::NOS_RELAY_E_HANDLE));
        }
    }
}

fn check_view(view: &nos_relay_view, known: &Known) {
    assert_eq!(view.length, 42);
    assert_eq!(view.vrf, if known.other_vrf { OTHER_VRF } else { 0 });
    assert_eq!(view.flags & NOS_RELAY_PORTS, NOS_RELAY_PORTS);
    assert_eq!(view.destination_port == 7, known.kind == Kind::Nobody);
    // SAFETY: so long is the frame.
    let octets = unsafe { std::slice::from_raw_parts(view.data, view.length) };
    let to = if known.kind == Kind::Elsewhere {
        FAR
    } else {
        OWN
    };
    assert_eq!(octets[30..34], to.octets());
}

/// The one attachment of the table.
fn register(table: *mut nos_relay_table) {
    let address = std::net::IpAddr::V4(OWN).into();
    let claim = nos_relay_claim {
        transport: NOS_RELAY_UDP,
        kind: NOS_RELAY_LISTEN,
        ports: nos_relay_ports {
            first: 80,
            last: 89,
        },
    };
    let registration = nos_relay_registration {
        attachment: OWNER,
        vrf: 0,
        mtu: 1500,
        name: c"web".as_ptr(),
        network: 0,
        addresses: &raw const address,
        address_count: 1,
        claims: &raw const claim,
        claim_count: 1,
        link: NOS_RELAY_NO_LINK,
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
    // SAFETY: what it points to is there.
    let code = unsafe { nos_relay_table_exchange(table, null(), 0, &raw const registration, 1) };
    assert_eq!(code, 0);
}
