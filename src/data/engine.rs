//! What a data thread drives: the container side, the NOS side, or both back to back.
//!
//! With one data thread, both ends of the channel are here, and a burst crosses the ring and comes
//! out on the other side within one call. With two, each thread has one side, and the doorbell
//! joins them. The sides do not know which it is.

use nos_shim::channel::Wake;
use nos_shim::drop::DropReason;
use nos_shim::frame::Burst;
use nos_shim::ident::Interface;
use nos_shim::offload::Capabilities;
use nos_shim::shim::Shim;
use nos_shim::time::Instant;

use crate::data::relay::{Relay, RelayEvent};

/// Passes over the channel within one round. What the NOS sends is taken in the same pass, and
/// nothing that the relay takes makes it send; so more than one is for a backlog.
const PASSES: usize = 4;

/// Bursts taken from the channel in one pass. What is taken waits for its device, and takes memory,
/// as what is in the ring does; so no more is taken than makes passes worth their while.
const CHANNEL_BUDGET: usize = 2;

/// One side of the data path, or both.
#[derive(Debug)]
pub struct Engine {
    relay: Option<Relay>,
    nos: Option<Shim>,
}

impl Engine {
    /// Both sides, for one thread.
    #[must_use]
    pub fn single(relay: Relay, nos: Shim) -> Self {
        Self {
            relay: Some(relay),
            nos: Some(nos),
        }
    }

    /// The container side alone.
    #[must_use]
    pub fn relay_side(relay: Relay) -> Self {
        Self {
            relay: Some(relay),
            nos: None,
        }
    }

    /// The NOS side alone.
    #[must_use]
    pub fn nos_side(nos: Shim) -> Self {
        Self {
            relay: None,
            nos: Some(nos),
        }
    }

    /// The container side, if it is here.
    pub fn relay(&mut self) -> Option<&mut Relay> {
        self.relay.as_mut()
    }

    /// The NOS side, if it is here.
    pub fn nos(&mut self) -> Option<&mut Shim> {
        self.nos.as_mut()
    }

    /// Takes frames that came in on an interface.
    pub fn handle_burst(&mut self, from: Interface, burst: &mut Burst, now: Instant) {
        match (from, &mut self.relay, &mut self.nos) {
            (Interface::Attachment(id), Some(relay), _) => relay.handle_burst(id, burst, now),
            (Interface::Uplink(id), _, Some(nos)) => nos.handle_burst(id, burst, now),
            _ => burst.clear(),
        }
    }

    /// Whether frames from an interface find room in the ring that they may have to go through. If
    /// not, they had better stay with their device, where each source has a queue of its own.
    #[must_use]
    #[inline]
    pub fn has_room(&self, from: Interface) -> bool {
        match (from, &self.relay, &self.nos) {
            (Interface::Attachment(_), Some(relay), _) => relay.has_room(),
            (Interface::Uplink(_), _, Some(nos)) => nos.has_room(),
            _ => true,
        }
    }

    /// Moves what waits in the channel, and does what is due.
    pub fn advance(&mut self, now: Instant) {
        for _ in 0..PASSES {
            if let Some(nos) = &mut self.nos {
                nos.poll_channel(now, CHANNEL_BUDGET);
            }
            let relay = self.relay.as_mut();
            if !relay.is_some_and(|relay| relay.poll_channel(now, CHANNEL_BUDGET)) {
                break;
            }
        }
        if let Some(nos) = &mut self.nos {
            nos.handle_timeout(now);
        }
    }

    /// The next burst to send, and where.
    pub fn poll_transmit(&mut self) -> Option<(Interface, &mut Burst)> {
        if let Some(nos) = &mut self.nos
            && let Some((id, burst)) = nos.poll_transmit()
        {
            return Some((Interface::Uplink(id), burst));
        }
        let (id, burst) = self.relay.as_mut()?.poll_transmit()?;
        Some((Interface::Attachment(id), burst))
    }

    /// Drops and counts what is left of the burst that [`Self::poll_transmit`] returned last.
    pub fn discard_unsent(&mut self, to: Interface, reason: DropReason) {
        match (to, &mut self.relay, &mut self.nos) {
            (Interface::Attachment(_), Some(relay), _) => relay.discard(reason),
            (Interface::Uplink(_), _, Some(nos)) => nos.discard_unsent(reason),
            _ => {}
        }
    }

    /// Says what the device of an interface takes. What waits for the device is adapted.
    pub fn set_capabilities(&mut self, of: Interface, capabilities: Capabilities) {
        match (of, &mut self.relay, &mut self.nos) {
            (Interface::Attachment(id), Some(relay), _) => {
                // An attachment that has just gone takes nothing.
                let _ = relay.set_capabilities(id, capabilities);
            }
            (Interface::Uplink(id), _, Some(nos)) => nos.set_capabilities(id, capabilities),
            _ => {}
        }
    }

    /// Says how this thread is woken when the other side has sent something.
    pub fn set_waker(&mut self, waker: impl Fn() -> Box<dyn Wake>) {
        if let Some(relay) = &mut self.relay {
            relay.set_waker(waker());
        }
        if let Some(nos) = &mut self.nos {
            nos.channel().set_waker(waker());
        }
    }

    /// News for the control thread. Those of the NOS come over the channel, too.
    pub fn poll_event(&mut self) -> Option<RelayEvent> {
        self.relay.as_mut().and_then(Relay::poll_event)
    }

    /// When [`Self::advance`] has something to do next.
    #[must_use]
    pub fn poll_at(&self) -> Option<Instant> {
        self.nos.as_ref()?.poll_at()
    }

    /// Rings for the other side if it sleeps and there is something for it.
    pub fn ring(&mut self) {
        if let Some(relay) = &mut self.relay {
            relay.ring();
        }
        if let Some(nos) = &mut self.nos {
            nos.channel().ring();
        }
    }

    /// Announces sleep. Returns `false` when there is something to do instead.
    pub fn try_sleep(&mut self) -> bool {
        let relay = self.relay.as_mut().is_none_or(|relay| relay.try_sleep());
        let nos = self.nos.as_mut().is_none_or(|nos| nos.try_sleep());
        if !(relay && nos) {
            self.awake();
        }
        relay && nos
    }

    /// Announces a wait for room in the ring that this side fills. Returns `false` when there is
    /// some.
    pub fn try_await_room(&mut self) -> bool {
        match (&mut self.relay, &mut self.nos) {
            (Some(relay), None) => relay.try_await_room(),
            (None, Some(nos)) => nos.channel().try_await_room(),
            // Both ends are here: the next round makes room.
            _ => false,
        }
    }

    /// Takes the announcements back.
    pub fn awake(&mut self) {
        if let Some(relay) = &mut self.relay {
            relay.awake();
        }
        if let Some(nos) = &mut self.nos {
            nos.channel().awake();
        }
    }
}
