//! Pools of buffers that outlive a run: to make one takes longer than most runs.

use std::cell::RefCell;

use nos_shim::frame::{Frame, FramePool};

/// Octets of the longest frame in such a pool: longer than any input that the fuzzer makes, and a
/// jumbo frame.
pub const ROOM: usize = 9000;

thread_local! {
    static POOLS: RefCell<Vec<FramePool>> = const { RefCell::new(Vec::new()) };
}

/// Lends `work` a pool of so many buffers, all of which have to be back when it is done.
pub fn with_pool<R>(buffers: usize, work: impl FnOnce(&mut FramePool) -> R) -> R {
    let mut pool = take(buffers);
    let result = work(&mut pool);
    let all: Vec<Frame> = std::iter::from_fn(|| pool.alloc()).collect();
    assert_eq!(all.len(), buffers, "buffers were lost");
    all.into_iter().for_each(|frame| pool.free(frame));
    POOLS.with_borrow_mut(|pools| pools.push(pool));
    result
}

fn take(buffers: usize) -> FramePool {
    let kept = POOLS.with_borrow_mut(|pools| {
        let place = pools.iter().position(|pool| pool.capacity() == buffers)?;
        Some(pools.swap_remove(place))
    });
    kept.unwrap_or_else(|| FramePool::new(buffers, ROOM))
}
