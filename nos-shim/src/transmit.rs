//! Frames that wait for their devices, in order, without a scan over idle ones.

use std::collections::VecDeque;

use crate::frame::{Burst, Frame};

/// A bounded queue for each interface, and the list of those that are not empty.
#[derive(Debug, Default)]
pub struct TransmitQueues {
    queues: Vec<VecDeque<Frame>>,
    active: VecDeque<usize>,
    burst: Burst,
    limit: usize,
    held: usize,
}

impl TransmitQueues {
    /// Queues of at most `limit` frames each.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            ..Self::default()
        }
    }

    /// Appends `frame` to the queue of interface `index`.
    ///
    /// # Errors
    ///
    /// The frame, when the queue is full.
    #[inline]
    pub fn push(&mut self, index: usize, frame: Frame) -> Result<(), Frame> {
        if self.queues.len() <= index {
            self.queues.resize_with(index + 1, VecDeque::new);
        }
        let queue = &mut self.queues[index];
        if queue.len() >= self.limit {
            return Err(frame);
        }
        if queue.is_empty() {
            self.active.push_back(index);
        }
        queue.push_back(frame);
        self.held += 1;
        Ok(())
    }

    /// The next burst to send, and the index of its interface; interfaces take turns. Frames that
    /// are left in it must be [restored](Self::restore) before this is called again, or they are
    /// dropped.
    pub fn pop_burst(&mut self) -> Option<(usize, &mut Burst)> {
        self.burst.clear();
        let index = self.active.pop_front()?;
        let queue = &mut self.queues[index];
        let count = queue.len().min(self.burst.capacity());
        self.burst.extend(queue.drain(..count));
        self.held -= count;
        if !queue.is_empty() {
            self.active.push_back(index);
        }
        Some((index, &mut self.burst))
    }

    /// What is left of the burst that [`Self::pop_burst`] returned last.
    pub fn unsent(&mut self) -> &mut Burst {
        &mut self.burst
    }

    /// Puts what is left of that burst back in front of the queue of interface `index`.
    pub fn restore(&mut self, index: usize) {
        let Some(queue) = self
            .queues
            .get_mut(index)
            .filter(|_| !self.burst.is_empty())
        else {
            return;
        };
        if queue.is_empty() {
            self.active.push_front(index);
        }
        self.held += self.burst.len();
        for frame in self.burst.drain(..).rev() {
            queue.push_front(frame);
        }
    }

    /// Takes all frames of interface `index`, in order.
    pub fn take(&mut self, index: usize) -> VecDeque<Frame> {
        let Some(queue) = self.queues.get_mut(index) else {
            return VecDeque::new();
        };
        self.active.retain(|&active| active != index);
        self.held -= queue.len();
        core::mem::take(queue)
    }

    /// Takes away all frames of interface `index`, for the caller to count.
    pub fn clear(&mut self, index: usize) -> usize {
        let Some(queue) = self.queues.get_mut(index) else {
            return 0;
        };
        let count = queue.len();
        queue.clear();
        self.active.retain(|&active| active != index);
        self.held -= count;
        count
    }

    /// Frames in all queues.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{BATCH, FramePool};

    fn frame(pool: &mut FramePool, n: u8) -> Frame {
        pool.copy_from(&[n]).unwrap()
    }

    #[test]
    fn each_interface_keeps_its_order_and_takes_turns() {
        let mut pool = FramePool::new(512, 64);
        let mut queues = TransmitQueues::new(256);
        for n in 0..150 {
            queues.push(3, frame(&mut pool, n)).unwrap();
        }
        queues.push(1, frame(&mut pool, 200)).unwrap();
        let mut order = Vec::new();
        while let Some((index, burst)) = queues.pop_burst() {
            order.push((index, burst.len(), burst[0].bytes()[0]));
        }
        let full = BATCH as u8;
        assert_eq!(
            order,
            [(3, 64, 0), (1, 1, 200), (3, 64, full), (3, 22, 2 * full)]
        );
        assert_eq!(queues.held(), 0);
    }

    #[test]
    fn a_full_queue_refuses_and_a_cleared_one_is_silent() {
        let mut pool = FramePool::new(8, 64);
        let mut queues = TransmitQueues::new(2);
        queues.push(0, frame(&mut pool, 1)).unwrap();
        queues.push(0, frame(&mut pool, 2)).unwrap();
        assert_eq!(
            queues.push(0, frame(&mut pool, 3)).unwrap_err().bytes(),
            [3]
        );
        assert_eq!((queues.clear(0), queues.clear(7)), (2, 0));
        assert!(queues.pop_burst().is_none());
    }
}
