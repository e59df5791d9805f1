//! A data thread whose ring to the NOS is full: devices are held back, and not for ever.

#![allow(
    clippy::unwrap_used,
    reason = "a test fails where what it needs is not there"
)]

use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use nos_relay::data::device::{FrameDevice, MemoryDevice, pollable_memory_pair};
use nos_relay::data::engine::Engine;
use nos_relay::data::event_loop::{Ended, Event, EventLoop, Listener, LoopHandle};
use nos_relay::data::relay::{AttachmentConfig, Relay};
use nos_shim::channel::{NosEnd, ToRelay, pair};
use nos_shim::drop::{DropReason, Ledger};
use nos_shim::frame::{BATCH, Burst, FramePool, MAX_FRAME};
use nos_shim::ident::{AttachmentId, Interface, MacAddr, VrfId};
use nos_shim::ports::{AddressMode, Claim, ClaimKind, Policy, PortRange, Transport};

const ID: AttachmentId = AttachmentId(0);
const CONTAINER: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const RELAY: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
const OWN: [u8; 4] = [203, 0, 113, 1];
const PORT: u16 = 40_000;
/// Bursts that the ring holds.
const RING: usize = 2;
const BURSTS: usize = 16;
const FRAMES: usize = BURSTS * BATCH;
const LIMIT: Duration = Duration::from_secs(30);

struct Nobody;

impl Listener for Nobody {
    fn notify(&self, _event: Event) {}
}

/// A relay's data thread with one container, and the NOS's end of its ring.
struct Setup {
    handle: LoopHandle,
    thread: std::thread::JoinHandle<Ended>,
    nos: NosEnd,
    container: MemoryDevice,
    pool: FramePool,
}

impl Setup {
    fn new() -> Self {
        let pool = FramePool::new(2 * FRAMES, MAX_FRAME);
        let (relay_end, mut nos) = pair(RING);
        let mut relay = Relay::new(relay_end, pool.clone());
        let claim = Claim {
            transport: Transport::Udp,
            range: PortRange::new(PORT, PORT).unwrap(),
            kind: ClaimKind::Listen,
        };
        let attachment = AttachmentConfig {
            id: ID,
            name: "c".into(),
            vrf: VrfId::DEFAULT,
            network: nos_shim::ident::NetworkId::DEFAULT,
            mac: CONTAINER,
            link_local: None,
            relay_mac: RELAY,
            mode: AddressMode::Shared,
            addresses: vec![OWN.into()],
            policy: Policy::default(),
            claims: vec![claim],
            mtu: 1500,
            segment: None,
        };
        let request = relay.attach(attachment).unwrap();
        nos.send_control(ToRelay::Accepted(request)).unwrap();
        // Before the device is there, whose frames would be nobody's until then.
        relay.poll_channel(nos_shim::time::Instant::ZERO, 0);
        let engine = Engine::relay_side(relay);
        let epoch = Instant::now();
        let (event_loop, handle) =
            EventLoop::new(engine, pool.clone(), epoch, Box::new(Nobody)).unwrap();
        let thread = std::thread::spawn(move || event_loop.run());
        let [device, container] = pollable_memory_pair(["eth0", "c"], FRAMES).unwrap();
        let interface = Interface::Attachment(ID);
        let device: Box<dyn FrameDevice> = Box::new(device);
        handle.add_device(interface, device).unwrap();
        Self {
            handle,
            thread,
            nos,
            container,
            pool,
        }
    }

    /// Numbered datagrams from the container.
    fn send(&mut self) {
        let mut numbers = 0..;
        for _ in 0..BURSTS {
            let frames = numbers.by_ref().take(BATCH).map(datagram);
            let mut burst: Burst = frames
                .map(|octets| self.pool.copy_from(&octets).unwrap())
                .collect();
            let sent = self.container.send_burst(&mut burst, &mut self.pool);
            assert_eq!(sent.frames, BATCH, "the device holds them all");
        }
    }

    fn ledger(&self) -> Ledger {
        let ledger = |engine: &mut Engine| *engine.relay().unwrap().ledger();
        self.handle.call(ledger).unwrap()
    }

    /// Waits until `done`.
    fn wait(&self, done: impl Fn(&Ledger) -> bool) -> Ledger {
        let end = Instant::now() + LIMIT;
        loop {
            let ledger = self.ledger();
            if done(&ledger) {
                return ledger;
            }
            assert!(Instant::now() < end, "not within {LIMIT:?}: {ledger:?}");
            std::thread::yield_now();
        }
    }

    fn end(self) {
        self.handle.stop();
        let ended = self.thread.join().unwrap();
        ended.result.unwrap();
        assert_eq!(ended.devices.len(), 1);
    }
}

fn datagram(number: u32) -> Vec<u8> {
    let mut octets = Vec::new();
    PacketBuilder::ethernet2(CONTAINER.0, RELAY.0)
        .ipv4(OWN, [192, 0, 2, 7], 64)
        .udp(PORT, 53)
        .write(&mut octets, &number.to_be_bytes())
        .unwrap();
    octets
}

#[test]
fn a_ring_that_nobody_reads_holds_no_device_back_for_ever() {
    let mut setup = Setup::new();
    setup.send();
    let ledger = setup.wait(|ledger| ledger.received == FRAMES as u64);
    let lost = ledger.drops.of(DropReason::RingFull);
    assert!(lost > 0);
    assert_eq!(ledger.sent + lost, FRAMES as u64);
    let in_ring = std::iter::from_fn(|| setup.nos.recv_burst()).map(|burst| burst.len() as u64);
    assert_eq!(in_ring.sum::<u64>(), ledger.sent);
    setup.end();
}

/// The ring is much shorter than what the device has, and nothing but the taker's bell wakes the
/// data thread in time.
#[test]
fn a_taker_gets_all_in_order() {
    let mut setup = Setup::new();
    setup.send();
    let (mut taken, mut last) = (0, None);
    let end = Instant::now() + LIMIT;
    while taken < FRAMES as u64 - setup.ledger().drops.of(DropReason::RingFull) {
        while let Some(burst) = setup.nos.recv_burst() {
            for packet in burst {
                let number = packet.frame().bytes().last_chunk::<4>().copied();
                assert!(number > last, "{number:?} after {last:?}");
                last = number;
                taken += 1;
                setup.pool.free(packet.into_frame());
            }
        }
        setup.nos.ring();
        assert!(Instant::now() < end, "{taken} of {FRAMES} within {LIMIT:?}");
        std::thread::yield_now();
    }
    setup.end();
}
