//! How long the stages of a turn take, and how often that is too long.
//!
//! A turn is what one device is given before the next gets its own; so what makes a turn long makes
//! all others wait. The clock is read at the end of each stage: three times a turn, and once more
//! in a round that had a command to carry out.

use std::time::Duration;

use nos_shim::time::Instant;

/// Turns and stages that take longer are counted.
pub const SLOW: Duration = Duration::from_millis(1);

/// The parts of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Carrying out what the control thread sent.
    Commands,
    /// Receiving from a device.
    Receive,
    /// Deciding what becomes of the frames; timers.
    Engine,
    /// Sending to devices.
    Transmit,
}

impl Stage {
    /// All of them, in the order of a turn.
    pub const ALL: [Self; 4] = [Self::Commands, Self::Receive, Self::Engine, Self::Transmit];

    /// The name in `show counters`.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Commands => "commands",
            Self::Receive => "receive",
            Self::Engine => "engine",
            Self::Transmit => "transmit",
        }
    }
}

/// How long something took that is done again and again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Durations {
    /// How often it took longer than [`SLOW`].
    pub slow: u64,
    /// The longest that it ever took.
    pub longest: Duration,
}

impl Durations {
    fn add(&mut self, took: Duration) {
        self.slow += u64::from(took > SLOW);
        self.longest = self.longest.max(took);
    }
}

/// What a data thread's turns took so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TurnTimes {
    /// Whole turns, commands not included.
    pub turns: Durations,
    /// By stage, in the order of [`Stage::ALL`].
    stages: [Durations; Stage::ALL.len()],
}

impl TurnTimes {
    /// How long a stage took.
    #[must_use]
    pub fn stage(&self, stage: Stage) -> Durations {
        self.stages[stage as usize]
    }
}

/// Measures a loop's turns.
#[derive(Debug, Default)]
pub(super) struct Watchdog {
    times: TurnTimes,
    /// When the stage began that is measured now.
    stage_began: Instant,
    turn_began: Instant,
}

impl Watchdog {
    /// A stage begins, and a turn.
    pub(super) fn begin(&mut self, now: Instant) {
        self.stage_began = now;
        self.turn_began = now;
    }

    /// A stage ends, and the next begins.
    pub(super) fn end(&mut self, stage: Stage, now: Instant) {
        self.times.stages[stage as usize].add(now.since(self.stage_began));
        self.stage_began = now;
    }

    /// The last stage of a turn ends, and so does the turn; the next begins.
    pub(super) fn end_turn(&mut self, stage: Stage, now: Instant) {
        self.end(stage, now);
        self.times.turns.add(now.since(self.turn_began));
        self.turn_began = now;
    }

    pub(super) fn times(&self) -> TurnTimes {
        self.times
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_and_turns_are_counted_when_they_are_slow() {
        let mut watchdog = Watchdog::default();
        let at = |micros: u64| Instant::from_nanos(micros * 1000);
        watchdog.begin(at(10));
        watchdog.end(Stage::Commands, at(3010));
        watchdog.begin(at(3010));
        // No stage is slow, and the turn is.
        watchdog.end(Stage::Receive, at(3610));
        watchdog.end(Stage::Engine, at(3700));
        watchdog.end_turn(Stage::Transmit, at(4600));
        watchdog.end(Stage::Receive, at(4700));
        watchdog.end(Stage::Engine, at(4710));
        watchdog.end_turn(Stage::Transmit, at(7000));
        let times = watchdog.times();
        let of = |durations: Durations| (durations.slow, durations.longest.as_micros());
        assert_eq!(of(times.turns), (2, 2400));
        let stages = Stage::ALL.map(|stage| of(times.stage(stage)));
        assert_eq!(stages, [(1, 3000), (0, 600), (0, 90), (1, 2290)]);
    }
}
