//! Receiving from a packet socket: how many frames to ask for, and what its errors mean.

use nix::errno::Errno;
use nos_shim::drop::DropReason;
use nos_shim::frame::{BATCH, Burst, Frame, FramePool};

use super::super::character::ERRORS_TOLERATED;
use super::super::window::Window;
use super::super::{BURST_OCTETS, Next, Received, Traffic};

/// What frames are received from.
pub(super) trait Socket {
    /// Receives into the frames from the first on, without waiting; returns how many are filled.
    fn receive(&mut self, frames: &mut Burst) -> Result<usize, Errno>;

    /// Makes `frame`, which was filled as number `n`, what came with it says.
    fn accept(&self, n: usize, frame: &mut Frame) -> Result<(), DropReason>;
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
}

impl Reception {
    pub(super) fn new() -> Self {
        Self {
            window: Window::new(),
            told: Told::Up,
        }
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
        let mut errors_in_a_row = 0;
        while budget > 0 && received.octets < BURST_OCTETS {
            if let Some(errno) = self.gone() {
                received.next = Next::Gone(errno);
                break;
            }
            let before = received.octets;
            let mut frames = reserve(pool, self.window.ask(budget, BURST_OCTETS - before));
            let asked = frames.len();
            if asked == 0 {
                received.next = Next::NoBuffer;
                break;
            }
            let result = socket.receive(&mut frames);
            let came = result.unwrap_or(0);
            sort(socket, came, frames, pool, burst, &mut received, traffic);
            match result {
                Ok(_) | Err(Errno::EAGAIN) => errors_in_a_row = 0,
                Err(errno) => {
                    errors_in_a_row += 1;
                    self.handle_error(errno, errors_in_a_row);
                    continue;
                }
            }
            self.window.learn(asked, came, received.octets - before);
            budget -= came;
            if came > 0 && self.told == Told::Down {
                self.told = Told::Up;
            }
            if came < asked {
                received.next = self.after_the_last();
                break;
            }
        }
        received
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

/// Puts the first `came` of `frames`, which were filled, into `burst`, and the others back into
/// `pool`.
fn sort(
    socket: &impl Socket,
    came: usize,
    mut frames: Burst,
    pool: &mut FramePool,
    burst: &mut Burst,
    received: &mut Received,
    traffic: &mut Traffic,
) {
    for (n, mut frame) in frames.drain(..).enumerate() {
        if n >= came {
            pool.free(frame);
            continue;
        }
        match socket.accept(n, &mut frame) {
            Ok(()) => {
                traffic.count(frame.len());
                received.frames += 1;
                received.octets += frame.len();
                burst.push(frame);
            }
            Err(reason) => {
                traffic.drops.add(reason, 1);
                pool.free(frame);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    /// A socket whose answers are given: at most so many frames, or an error; at the end `EAGAIN`.
    struct Scripted(VecDeque<Result<usize, Errno>>);

    impl Socket for Scripted {
        fn receive(&mut self, frames: &mut Burst) -> Result<usize, Errno> {
            match self.0.pop_front() {
                Some(answer) => answer.map(|count| count.min(frames.len())),
                None => Err(Errno::EAGAIN),
            }
        }

        fn accept(&self, _n: usize, frame: &mut Frame) -> Result<(), DropReason> {
            frame.set_len(60).map_err(|_| DropReason::FrameLength)
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
            let mut socket = Scripted(answers.into_iter().collect());
            let mut burst = Burst::new();
            let received = self.reception.recv_burst(
                &mut socket,
                &mut self.pool,
                &mut burst,
                BATCH,
                &mut self.traffic,
            );
            assert_eq!(received.frames, burst.len());
            received
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
}
