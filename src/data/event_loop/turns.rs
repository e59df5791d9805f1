//! Whose turn it is, and how long a turn is.

use std::time::Duration;

use nos_shim::drop::DropReason;
use nos_shim::frame::{BATCH, Frame, octets};
use nos_shim::ident::Interface;

use super::watchdog::Stage;
use super::{Event, EventLoop, Mode};
use crate::data::device::{Egress, FrameDevice, Next};

/// Work of a turn, as [`work_of`] counts it.
pub(super) const TURN_WORK: usize = BATCH;

/// Octets that cost about as much as handling a frame does.
const OCTETS_PER_WORK: u64 = 4096;

/// How long a full ring may hold turns back: much longer than a taker that lives needs.
pub(super) const HOLD_LIMIT: Duration = Duration::from_millis(100);

/// How much work frames are: one for each, and more for long ones.
fn work_of(burst: &[Frame]) -> usize {
    let long = octets(burst) / OCTETS_PER_WORK;
    burst.len() + usize::try_from(long).unwrap_or(TURN_WORK)
}

/// The frames of the turn after one of `turn` frames with so much work.
fn next_turn(turn: usize, work: usize) -> usize {
    if work > TURN_WORK {
        (turn / 2).max(1)
    } else {
        (turn * 2).min(BATCH)
    }
}

impl EventLoop {
    /// Gives each device that is ready now one turn, and the engine one after each. Returns whether
    /// there were any.
    pub(super) fn serve_ready(&mut self) -> bool {
        (self.starved, self.held_back) = (false, 0);
        let count = match self.mode {
            Mode::Running => self.ready.len(),
            Mode::Draining | Mode::Still => 0,
        };
        if count == 0 {
            self.held_since = None;
        }
        for _ in 0..count {
            let Some(interface) = self.ready.pop_front() else {
                break;
            };
            if self.may_serve(interface) {
                self.serve(interface);
                self.advance();
            } else {
                self.held_back += 1;
                self.ready.push_back(interface);
            }
        }
        count > self.held_back
    }

    /// Whether what a device has would find room, or has waited for it long enough.
    fn may_serve(&mut self, interface: Interface) -> bool {
        if self.engine.has_room(interface) {
            self.held_since = None;
            return true;
        }
        self.now >= *self.held_since.get_or_insert(self.now) + HOLD_LIMIT
    }

    /// Receives one burst from a device, and has the engine handle it.
    fn serve(&mut self, interface: Interface) {
        let Some(served) = self.devices.get_mut(interface) else {
            return;
        };
        let received = served
            .device
            .recv_burst(&mut self.pool, &mut self.burst, served.turn);
        let work = work_of(&self.burst);
        self.work += work;
        match received.next {
            Next::More => {
                served.turn = next_turn(served.turn, work);
                self.ready.push_back(interface);
            }
            Next::NoBuffer => {
                self.starved = true;
                self.ready.push_back(interface);
            }
            Next::Drained => {
                served.reset_turn();
                served.told_down = false;
            }
            Next::Down => {
                served.reset_turn();
                if !std::mem::replace(&mut served.told_down, true) {
                    self.listener.notify(Event::DeviceDown(interface));
                }
            }
            Next::Gone(error) => self.gone(interface, error.desc()),
        }
        self.end_stage(Stage::Receive);
        if !self.burst.is_empty() {
            self.engine
                .handle_burst(interface, &mut self.burst, self.now);
        }
    }

    /// Has the engine do what is due, and sends what comes of it.
    pub(super) fn advance(&mut self) {
        self.engine.advance(self.now);
        self.end_stage(Stage::Engine);
        if self.mode != Mode::Still {
            self.transmit();
        }
        self.engine.ring();
        self.now = self.clock();
        self.watchdog.end_turn(Stage::Transmit, self.now);
    }

    /// Reads the clock at the end of a stage.
    pub(super) fn end_stage(&mut self, stage: Stage) {
        self.now = self.clock();
        self.watchdog.end(stage, self.now);
    }

    fn transmit(&mut self) {
        let mut gone = None;
        while let Some((interface, burst)) = self.engine.poll_transmit() {
            let Some(served) = self.devices.get_mut(interface) else {
                self.engine
                    .discard_unsent(interface, DropReason::DeviceGone);
                continue;
            };
            let uring = self.uring.as_mut().zip(served.slot);
            let mut batch = uring.map(|(uring, slot)| uring.batch(slot));
            let sent = served.device.send(burst, &mut self.pool, batch.as_mut());
            match sent.egress {
                Egress::Ready | Egress::Down => {}
                Egress::Adapt => {
                    // The rest comes again with the next burst.
                    self.engine
                        .set_capabilities(interface, served.device.capabilities());
                    if served.device.asks_for_injection() {
                        self.listener.notify(Event::TunnelMet(interface));
                    }
                }
                Egress::Gone(error) => gone = Some((interface, error)),
            }
        }
        if let Some((interface, error)) = gone {
            self.gone(interface, error.desc());
        }
    }

    /// A device went away: it goes to the control thread, which closes it.
    fn gone(&mut self, interface: Interface, reason: &'static str) {
        let Some(device) = self.take_out(interface) else {
            return;
        };
        self.listener.notify(Event::DeviceGone {
            interface,
            device,
            reason,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nos_shim::frame::{Burst, FramePool, MAX_FRAME};

    #[test]
    fn turns_grow_to_a_burst_and_shrink_under_super_frames() {
        let mut turn = 1;
        for _ in 0..10 {
            turn = next_turn(turn, turn);
        }
        assert_eq!(turn, BATCH);
        let mut pool = FramePool::new(BATCH, MAX_FRAME);
        let super_frame = vec![0; 1 << 16];
        let mut turns = Vec::new();
        for _ in 0..12 {
            let burst: Burst = (0..turn)
                .map(|_| pool.copy_from(&super_frame).unwrap())
                .collect();
            turn = next_turn(turn, work_of(&burst));
            turns.push(turn);
        }
        assert_eq!(turns[8..], [2, 4, 2, 4]);
    }
}
