//! Receiving from a packet socket: how many frames to ask for, and what its errors mean.

use std::collections::VecDeque;

use nix::errno::Errno;
use nos_shim::drop::DropReason;
use nos_shim::frame::{BATCH, Burst, Frame, FramePool};
use nos_shim::offload::Dropped;

use super::super::character::ERRORS_TOLERATED;
use super::super::window::Window;
use super::super::{BURST_OCTETS, Next, Received, Traffic};

/// What frames are received from.
pub(super) trait Socket {
    /// Receives into the frames from the first on, without waiting; returns how many are filled.
    fn receive(&mut self, frames: &mut Burst) -> Result<usize, Errno>;

    /// Frames that may be received at once; at least one.
    fn at_once(&self) -> usize;

    /// Makes `frame`, which was filled as number `n`, what came with it says. One that did not fit
    /// ([`DropReason::FrameLength`]) may yet be cut.
    fn accept(&self, n: usize, frame: &mut Frame) -> Result<(), DropReason>;

    /// Appends the pieces of a frame that did not fit `frame` to `out`, or says why it is dropped.
    fn cut(
        &mut self,
        n: usize,
        frame: Frame,
        pool: &mut FramePool,
        out: &mut VecDeque<Frame>,
    ) -> Result<Option<Dropped>, DropReason>;
}

/// What the socket told of its interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// Nothing, or that frames pass.
    Up,
    /// That it went down; frames from before may still be in the queue.
    WentDown,
    /// That it is down, and the queue was empty since.
    Down,
    /// That it has gone. This is for good.
    Gone(Errno),
}

/// The receiving side of a packet socket.
#[derive(Debug)]
pub(super) struct Reception {
    window: Window,
    told: Told,
    /// Pieces of long frames, and what came after them, that were not handed up yet.
    waiting: VecDeque<Frame>,
    /// Long frames that were cut.
    cut: u64,
}

impl Reception {
    pub(super) fn new() -> Self {
        Self {
            window: Window::new(),
            told: Told::Up,
            waiting: VecDeque::new(),
            cut: 0,
        }
    }

    /// Frames that were longer than a buffer and were cut.
    pub(super) fn cut(&self) -> u64 {
        self.cut
    }

    /// Why the interface counts as gone, if it does.
    pub(super) fn gone(&self) -> Option<Errno> {
        match self.told {
            Told::Gone(errno) => Some(errno),
            Told::Up | Told::WentDown | Told::Down => None,
        }
    }

    /// Whether nothing is known of an outage.
    pub(super) fn is_up(&self) -> bool {
        self.told == Told::Up
    }

    /// A frame was sent.
    pub(super) fn link_is_up(&mut self) {
        self.told = Told::Up;
    }

    /// A frame could not be sent, as the interface is down.
    pub(super) fn link_is_down(&mut self) {
        if self.told == Told::Up {
            self.told = Told::WentDown;
        }
    }

    /// A frame could not be sent, as there is no interface.
    pub(super) fn link_has_gone(&mut self, errno: Errno) {
        self.told = Told::Gone(errno);
    }

    /// See [`super::super::FrameDevice::recv_burst`].
    pub(super) fn recv_burst(
        &mut self,
        socket: &mut impl Socket,
        pool: &mut FramePool,
        burst: &mut Burst,
        limit: usize,
        traffic: &mut Traffic,
    ) -> Received {
        let mut received = Received {
            frames: 0,
            octets: 0,
            next: Next::More,
        };
        // Dropped frames count too, so that a flood of them does not hold the thread here.
        let mut budget = limit.min(burst.remaining_capacity());
        if !self.waiting.is_empty() {
            budget -= self.hand_up(budget, burst, &mut received, traffic);
        }
        let mut errors_in_a_row = 0;
        while budget > 0 && received.octets < BURST_OCTETS {
            if let Some(errno) = self.gone() {
                received.next = Next::Gone(errno);
                break;
            }
            let octets = BURST_OCTETS - received.octets;
            let ask = self.window.ask(budget, octets).min(socket.at_once());
            let mut frames = reserve(pool, ask);
            let asked = frames.len();
            if asked == 0 {
                received.next = Next::NoBuffer;
                break;
            }
            let result = socket.receive(&mut frames);
            let came = result.unwrap_or(0);
            let octets = self.sort(socket, came, frames, pool, burst, &mut received, traffic);
            match result {
                Ok(_) | Err(Errno::EAGAIN) => errors_in_a_row = 0,
                Err(errno) => {
                    errors_in_a_row += 1;
                    self.handle_error(errno, errors_in_a_row);
                    continue;
                }
            }
            self.window.learn(asked, came, octets);
            budget -= came;
            if !self.waiting.is_empty() {
                budget -= self.hand_up(budget, burst, &mut received, traffic);
            }
            if came > 0 && self.told == Told::Down {
                self.told = Told::Up;
            }
            if came < asked {
                received.next = self.after_the_last();
                break;
            }
        }
        if !self.waiting.is_empty() {
            received.next = Next::More;
        }
        received
    }

    /// Moves up to `room` of the waiting frames to `burst`; returns how many.
    #[cold]
    fn hand_up(
        &mut self,
        room: usize,
        burst: &mut Burst,
        received: &mut Received,
        traffic: &mut Traffic,
    ) -> usize {
        let mut moved = 0;
        while moved < room && received.octets < BURST_OCTETS {
            let Some(frame) = self.waiting.pop_front() else {
                break;
            };
            hand_up(frame, burst, received, traffic);
            moved += 1;
        }
        moved
    }

    /// Puts the first `came` of `frames`, which were filled, into `burst`, or behind what waits, and
    /// the others back into `pool`. Returns how many octets came.
    #[expect(
        clippy::too_many_arguments,
        reason = "all that a call of recv_burst works on"
    )]
    fn sort(
        &mut self,
        socket: &mut impl Socket,
        came: usize,
        mut frames: Burst,
        pool: &mut FramePool,
        burst: &mut Burst,
        received: &mut Received,
        traffic: &mut Traffic,
    ) -> usize {
        let mut octets = 0;
        for (n, mut frame) in frames.drain(..).enumerate() {
            if n >= came {
                pool.free(frame);
                continue;
            }
            match socket.accept(n, &mut frame) {
                Ok(()) if self.waiting.is_empty() => {
                    octets += frame.len();
                    hand_up(frame, burst, received, traffic);
                }
                Ok(()) => {
                    octets += frame.len();
                    self.waiting.push_back(frame);
                }
                Err(DropReason::FrameLength) => {
                    octets += self.cut_long(socket, n, frame, pool, traffic);
                }
                Err(reason) => {
                    traffic.drops.add(reason, 1);
                    pool.free(frame);
                }
            }
        }
        octets
    }

    /// Puts the pieces of a long frame behind what waits; returns how many octets they have.
    #[cold]
    fn cut_long(
        &mut self,
        socket: &mut impl Socket,
        n: usize,
        frame: Frame,
        pool: &mut FramePool,
        traffic: &mut Traffic,
    ) -> usize {
        let first = self.waiting.len();
        match socket.cut(n, frame, pool, &mut self.waiting) {
            Ok(dropped) => {
                self.cut += 1;
                if let Some(Dropped { reason, packets }) = dropped {
                    traffic.drops.add(reason, packets);
                }
            }
            Err(reason) => traffic.drops.add(reason, 1),
        }
        self.waiting.range(first..).map(Frame::len).sum()
    }

    /// Draws the consequences of an error that the socket has told, and thereby cleared, after
    /// others in a row. Frames may wait behind it.
    fn handle_error(&mut self, errno: Errno, errors_in_a_row: u32) {
        if errors_in_a_row >= ERRORS_TOLERATED {
            self.told = Told::Gone(errno);
        } else if errno == Errno::ENETDOWN {
            self.told = Told::WentDown;
        }
    }

    /// What follows when nothing more is to be had.
    fn after_the_last(&mut self) -> Next {
        match self.told {
            Told::Gone(errno) => Next::Gone(errno),
            Told::WentDown | Told::Down => {
                self.told = Told::Down;
                Next::Down
            }
            Told::Up => Next::Drained,
        }
    }
}

/// Up to `count` empty frames, fewer if the pool has no more.
fn reserve(pool: &mut FramePool, count: usize) -> Burst {
    core::iter::from_fn(|| pool.alloc())
        .take(count.min(BATCH))
        .collect()
}

#[inline]
fn hand_up(frame: Frame, burst: &mut Burst, received: &mut Received, traffic: &mut Traffic) {
    traffic.count(frame.len());
    received.frames += 1;
    received.octets += frame.len();
    burst.push(frame);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A socket whose answers are given: at most so many frames, or an error; at the end `EAGAIN`.
    /// Of each answer, frames with these numbers are long, and become five of 70 to 74 octets.
    struct Scripted {
        answers: VecDeque<Result<usize, Errno>>,
        long: Vec<usize>,
    }

    impl Socket for Scripted {
        fn receive(&mut self, frames: &mut Burst) -> Result<usize, Errno> {
            match self.answers.pop_front() {
                Some(answer) => answer.map(|count| count.min(frames.len())),
                None => Err(Errno::EAGAIN),
            }
        }

        fn at_once(&self) -> usize {
            BATCH
        }

        fn accept(&self, n: usize, frame: &mut Frame) -> Result<(), DropReason> {
            if self.long.contains(&n) {
                return Err(DropReason::FrameLength);
            }
            frame.set_len(60).map_err(|_| DropReason::FrameLength)
        }

        fn cut(
            &mut self,
            _n: usize,
            frame: Frame,
            pool: &mut FramePool,
            out: &mut VecDeque<Frame>,
        ) -> Result<Option<Dropped>, DropReason> {
            pool.free(frame);
            for len in 70..75 {
                out.extend(pool.copy_from(&[0; 100][..len]));
            }
            Ok(None)
        }
    }

    struct Setup {
        reception: Reception,
        pool: FramePool,
        traffic: Traffic,
    }

    impl Setup {
        fn new() -> Self {
            Self {
                reception: Reception::new(),
                pool: FramePool::new(BATCH, 100),
                traffic: Traffic::default(),
            }
        }

        /// One burst from a socket with these answers.
        fn recv(&mut self, answers: impl IntoIterator<Item = Result<usize, Errno>>) -> Received {
            self.recv_long(answers, vec![], BATCH).0
        }

        /// The same with long frames, and the lengths of those that are handed up.
        fn recv_long(
            &mut self,
            answers: impl IntoIterator<Item = Result<usize, Errno>>,
            long: Vec<usize>,
            limit: usize,
        ) -> (Received, Vec<usize>) {
            let answers = answers.into_iter().collect();
            let mut socket = Scripted { answers, long };
            let mut burst = Burst::new();
            let received = self.reception.recv_burst(
                &mut socket,
                &mut self.pool,
                &mut burst,
                limit,
                &mut self.traffic,
            );
            assert_eq!(received.frames, burst.len());
            (received, burst.iter().map(Frame::len).collect())
        }
    }

    #[test]
    fn errors_with_frames_between_them_are_no_reason_to_give_up() {
        let mut setup = Setup::new();
        let error = Err(Errno::ENOBUFS);
        let received = setup.recv([error, error, error, Ok(BATCH)].repeat(6));
        assert_eq!((received.frames, received.next), (BATCH, Next::More));
    }

    #[test]
    fn errors_in_a_row_end_it_for_good() {
        let mut setup = Setup::new();
        let few = vec![Err(Errno::EPERM); 15];
        assert_eq!(setup.recv(few).next, Next::Drained);
        let many = vec![Err(Errno::EPERM); 16];
        assert_eq!(setup.recv(many).next, Next::Gone(Errno::EPERM));
        assert_eq!(setup.recv([Ok(1)]).next, Next::Gone(Errno::EPERM));
    }

    #[test]
    fn frames_from_before_an_outage_do_not_end_it_and_later_ones_do() {
        let mut setup = Setup::new();
        setup.reception.window.learn(2, 2, 120);
        let received = setup.recv([Err(Errno::ENETDOWN), Ok(1)]);
        assert_eq!((received.frames, received.next), (1, Next::Down));
        assert_eq!(setup.recv([]).next, Next::Down);
        assert_eq!(setup.recv([Ok(1)]).next, Next::Drained);
        setup.reception.link_is_down();
        assert_eq!(setup.recv([]).next, Next::Down);
        setup.reception.link_is_up();
        assert_eq!(setup.recv([]).next, Next::Drained);
    }

    #[test]
    fn pieces_wait_for_their_turn_and_what_came_later_behind_them() {
        let mut setup = Setup::new();
        setup.reception.window.learn(2, 2, 120);
        let (received, lengths) = setup.recv_long([Ok(3)], vec![1], 3);
        assert_eq!((received.next, lengths), (Next::More, vec![60]));
        let (received, lengths) = setup.recv_long([], vec![], 4);
        assert_eq!((received.next, lengths), (Next::More, vec![70, 71, 72, 73]));
        let (received, lengths) = setup.recv_long([Ok(1)], vec![], 4);
        assert_eq!((received.next, lengths), (Next::Drained, vec![74, 60, 60]));
        assert_eq!(setup.reception.cut(), 1);
        assert_eq!(
            (setup.traffic.frames, setup.traffic.octets),
            (8, 3 * 60 + 360)
        );
    }
}
