//! The container side of nos-relay, and the process around it.
//!
//! | folder | plane | runs on |
//! |---|---|---|
//! | [`data`] | data path: reads, decides, writes and waits, and makes no other system call | data threads |
//! | [`control`] | control plane: plans, applies and heals; configuration, kernel, control socket | the control thread |
//! | [`embed`] | both, inside of another program | that program's threads, or one of its own |
//! | `cli` | the commands of the program | the program's main thread |
//! | `lab` | networks of namespaces to try, show and measure it in | processes of their own |
//!
//! `control` knows `data`, never the other way; both know nothing of the rest. What several use
//! stands beside them: [`interface_name`], [`outcome`].
//!
//! Features: `cli`, `demo` and `bench` are on by default, and make the program. A program that
//! embeds the relay takes the library without them. `testbed` is `lab::testbed` alone.

#[cfg(feature = "cli")]
pub mod cli;
pub mod control;
pub mod data;
pub mod embed;
pub mod huge_pages;
pub mod interface_name;
#[cfg(any(test, feature = "testbed"))]
pub mod lab;
pub mod outcome;

pub use embed::Relay;
