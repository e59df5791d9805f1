//! The C interface of nos-relay: `include/nos_relay.h`, made of this.
//!
//! # Theory of operation
//!
//! Every function looks at what it was given before it does anything ([`input`]), runs where a panic ends
//! ([`failure::call`]), and returns a code. What is wrong is kept as text for the thread that asked.
//!
//! ```text
//! C ── handle, numbers, pointers ──► input, handle ── values, references ──► nos_relay, nos_shim
//!    ◄── code, nos_relay_last_error ── failure ◄──────────── Result ─────────┘
//! ```
//!
//! Handles of all but packets are numbers in the shape of pointers ([`handle`]): an index, and a generation
//! by which one that was freed is told from its successor. Nothing is read at where they point. A packet is
//! its buffer, as looking it up would cost too much; a mark in the buffer tells whether it is C's
//! ([`packet`]).
//!
//! The types have their names of C, and the header is read from these sources in order: what stands in front
//! of an item here is its documentation there.

#![allow(
    non_camel_case_types,
    reason = "types are called what they are called in C"
)]
#![allow(
    clippy::missing_safety_doc,
    reason = "the documentation is the header's: it says what each pointer has to be"
)]

pub mod address;
pub mod builder;
pub mod burst;
mod device;
pub mod failure;
mod handle;
mod input;
pub mod lent;
pub mod message;
pub mod packet;
pub mod port;
pub mod registration;
pub mod relay;
pub mod table;

use core::ffi::c_char;

/// Of the interface that this header describes. Programs that were made for another major number do not work with
/// this library.
pub const NOS_RELAY_ABI_MAJOR: u32 = 0;
/// Of the interface that this header describes. It grows where functions or constants are added.
pub const NOS_RELAY_ABI_MINOR: u32 = 4;

/// The version of the interface in the library: NOS_RELAY_ABI_MAJOR << 16 | NOS_RELAY_ABI_MINOR. A program
/// works if the upper half is its own header's, and the lower one not less.
///
/// Threads: any, at any time.
#[unsafe(no_mangle)]
pub extern "C" fn nos_relay_abi_version() -> u32 {
    NOS_RELAY_ABI_MAJOR << 16 | NOS_RELAY_ABI_MINOR
}

/// The version of the library as text, for instance "0.1.0". Valid for ever.
///
/// Threads: any, at any time.
#[unsafe(no_mangle)]
pub extern "C" fn nos_relay_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}
