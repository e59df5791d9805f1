//! Devices on a data thread: it neither asks the kernel about them nor closes them.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use nos_relay::data::device::{DeviceKind, FrameDevice, Inspector, LinkState};
use nos_relay::data::engine::Engine;
use nos_relay::data::event_loop::{Ended, Event, EventLoop, Listener, LoopHandle};
use nos_relay::data::relay::Relay;
use nos_relay::lab::testbed::LabNamespace;
use nos_shim::channel::{NosEnd, pair};
use nos_shim::frame::{FramePool, MAX_FRAME};
use nos_shim::ident::{AttachmentId, Interface};

use crate::harness::{LIMIT, every_kind, to_us, udp_socket};
use crate::support::lab_test;

const INTERFACE: Interface = Interface::Attachment(AttachmentId::new(0, 0));

struct Queue(Sender<Event>);

impl Listener for Queue {
    fn notify(&self, event: Event) {
        let _ = self.0.send(event);
    }
}

/// A data thread with one device, which drops what it receives.
struct Served {
    handle: LoopHandle,
    events: Receiver<Event>,
    thread: JoinHandle<Ended>,
    inspector: Inspector,
    _nos: NosEnd,
}

impl Served {
    fn new(device: Box<dyn FrameDevice>) -> Self {
        let pool = FramePool::new(256, MAX_FRAME);
        let (relay, nos) = pair(4);
        let engine = Engine::relay_side(Relay::new(relay, pool.clone()));
        let (sender, events) = channel();
        let listener = Box::new(Queue(sender));
        let (event_loop, handle) = EventLoop::new(engine, pool, Instant::now(), listener).unwrap();
        let thread = thread::spawn(move || event_loop.run());
        let inspector = device.inspector();
        handle.add_device(INTERFACE, device).unwrap();
        Self {
            handle,
            events,
            thread,
            inspector,
            _nos: nos,
        }
    }

    fn received(&self) -> u64 {
        let devices = self.handle.devices().unwrap();
        devices[0].counters.received.frames
    }

    /// Has the kernel send a datagram, and waits until the device has received it.
    fn hear(&self, lab: &LabNamespace) {
        let before = self.received();
        udp_socket(lab).send_to(b"x", to_us()).unwrap();
        let deadline = Instant::now() + LIMIT;
        while self.received() == before {
            assert!(Instant::now() < deadline, "nothing is received");
            thread::yield_now();
        }
    }

    fn event(&self) -> Event {
        self.events.recv_timeout(LIMIT).unwrap()
    }

    fn await_link(&self, wanted: LinkState) {
        let deadline = Instant::now() + LIMIT;
        while self.inspector.link() != wanted {
            assert!(Instant::now() < deadline, "{:?}", self.inspector.link());
            thread::yield_now();
        }
    }

    fn end(self) -> Ended {
        self.handle.stop();
        self.thread.join().unwrap()
    }
}

lab_test! {
    fn frames_alone_wake_a_device_after_an_outage() {
        for (lab, device, others) in every_kind() {
            let kind = device.kind();
            let served = Served::new(device);
            served.hear(&lab);
            let (place, interface) = others.first().map_or((&lab, "eth0"), |host| (host, "peer"));
            for _ in 0..3 {
                place.set_down(interface).unwrap();
                if kind == DeviceKind::Packet {
                    // A TAP says nothing; the control side hears of it from the kernel.
                    assert!(matches!(served.event(), Event::DeviceDown(INTERFACE)));
                    served.await_link(LinkState::Down);
                }
                place.set_up(interface).unwrap();
                place.wait_operational(interface, LIMIT).unwrap();
                lab.wait_operational("eth0", LIMIT).unwrap();
                served.await_link(LinkState::Up);
                served.hear(&lab);
            }
            assert!(served.events.try_recv().is_err(), "{kind}");
            assert_eq!(served.end().devices.len(), 1, "{kind}");
        }
    }
}

lab_test! {
    fn a_deleted_interface_is_noticed_and_its_device_handed_over() {
        for (lab, device, _others) in every_kind() {
            let kind = device.kind();
            let served = Served::new(device);
            lab.delete_link("eth0").unwrap();
            let device = match served.event() {
                Event::DeviceGone { interface, device, .. } => {
                    assert_eq!(interface, INTERFACE, "{kind}");
                    device
                }
                Event::DeviceDown(INTERFACE) => {
                    assert_eq!(kind, DeviceKind::Packet);
                    served.await_link(LinkState::Gone);
                    served.handle.remove_device(INTERFACE).unwrap().unwrap()
                }
                other => panic!("{kind}: {other:?}"),
            };
            assert_eq!(device.kind(), kind);
            assert_eq!(served.inspector.link(), LinkState::Gone, "{kind}");
            assert!(served.end().devices.is_empty(), "{kind}");
        }
    }
}

lab_test! {
    fn a_removed_device_is_open_until_it_is_dropped() {
        for (lab, device, others) in every_kind() {
            let kind = device.kind();
            let served = Served::new(device);
            served.hear(&lab);
            let device = served.handle.remove_device(INTERFACE).unwrap().unwrap();
            assert_eq!(served.inspector.link(), LinkState::Up, "{kind}");
            drop(device);
            assert_eq!(served.inspector.link(), LinkState::Gone, "{kind}");
            // A TAP goes with its descriptor.
            let stays = !others.is_empty();
            assert_eq!(lab.link("eth0").unwrap().is_some(), stays, "{kind}");
            assert!(served.end().devices.is_empty());
        }
    }
}
