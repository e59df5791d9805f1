//! What threads synchronise by: the real things or, in models, those of loom.
//!
//! Everything in this crate that two threads touch at the same time is built of these: the pool
//! ([`crate::frame`]), and the rings and doorbells ([`crate::channel`]). With `--cfg loom` the tests
//! named `loom` run the same code in every order that memory model and scheduler allow:
//!
//! ```sh
//! tests/models
//! ```

#[cfg(all(test, loom))]
mod model;

/// Runs `body` in every order with up to four changes of thread that nobody had to make: where an
/// order matters, fewer show it.
#[cfg(all(test, loom))]
pub(crate) fn model(body: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(4);
    builder.check(body);
}

#[cfg(all(test, loom))]
pub(crate) use model::{
    ArrayQueue, AtomicBool, AtomicUsize, Mutex, Receiver, Sender, alloc_zeroed, bounded, dealloc,
    fence,
};

#[cfg(not(all(test, loom)))]
pub(crate) use {
    core::sync::atomic::{AtomicBool, AtomicUsize, fence},
    crossbeam_channel::{Receiver, Sender, bounded},
    crossbeam_queue::ArrayQueue,
    parking_lot::Mutex,
    std::alloc::{alloc_zeroed, dealloc},
};
