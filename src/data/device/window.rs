//! How many frames to ask a socket for.

use nos_shim::frame::BATCH;

use super::BURST_OCTETS;

/// Decides how many messages the next `recvmmsg` asks for.
///
/// Each message needs a buffer from the pool, filled in or not, so that asking for 64 when frames
/// come singly costs more than the frame. The window follows what comes: doubled when it was
/// filled, halved when three quarters stayed empty. Super-frames narrow it, so that one call
/// yields about [`BURST_OCTETS`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    messages: usize,
    /// Octets of a frame, averaged over about the last four calls.
    octets: usize,
}

const NARROWEST: usize = 2;

impl Window {
    pub(super) fn new() -> Self {
        Self {
            messages: NARROWEST,
            octets: 1514,
        }
    }

    /// How many messages to ask for when there is room for `room` and `octets` may still come; at
    /// least one.
    pub(super) fn ask(&self, room: usize, octets: usize) -> usize {
        let fit = octets.min(BURST_OCTETS).div_ceil(self.octets.max(1));
        self.messages.min(fit).min(room).max(1)
    }

    /// `received` messages came where `asked` were asked for, with `octets` octets in all.
    pub(super) fn learn(&mut self, asked: usize, received: usize, octets: usize) {
        if received == asked {
            self.messages = (self.messages * 2).min(BATCH);
        } else if received * 4 <= self.messages {
            self.messages = (self.messages / 2).max(NARROWEST);
        }
        if let Some(octets) = octets.checked_div(received) {
            self.octets = (3 * self.octets + octets) / 4;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widens_under_load_and_narrows_when_idle() {
        let mut window = Window::new();
        for _ in 0..8 {
            let asked = window.ask(BATCH, BURST_OCTETS);
            window.learn(asked, asked, asked * 60);
        }
        assert_eq!(window.ask(BATCH, BURST_OCTETS), BATCH);
        assert_eq!(window.ask(5, BURST_OCTETS), 5);
        for _ in 0..8 {
            window.learn(window.ask(BATCH, BURST_OCTETS), 1, 60);
        }
        assert_eq!(window.ask(BATCH, BURST_OCTETS), NARROWEST);
    }

    #[test]
    fn super_frames_narrow_it() {
        let mut window = Window::new();
        for _ in 0..20 {
            let asked = window.ask(BATCH, BURST_OCTETS);
            window.learn(asked, asked, asked * 65_000);
        }
        assert!(window.ask(BATCH, BURST_OCTETS) <= 2);
        assert_eq!(window.ask(BATCH, 100), 1);
    }

    #[test]
    fn always_asks_for_one() {
        let mut window = Window::new();
        window.learn(2, 0, 0);
        assert_eq!(window.ask(0, 0), 1);
    }
}
