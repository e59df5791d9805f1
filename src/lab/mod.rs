//! Labs: networks of namespaces in which the relay is tried, shown and measured.
//!
//! | module | what it holds | feature |
//! |---|---|---|
//! | [`testbed`] | networks of namespaces, and traffic in them | `testbed` |
//! | `demo` | `nos-relay demo` | `demo` |
//! | `bench` | `nos-relay bench` | `bench` |
//!
//! `demo` and `bench` share `process` and `progress`, and use nothing of each other.

#[cfg(feature = "bench")]
pub mod bench;
#[cfg(feature = "demo")]
pub mod demo;
#[cfg(any(feature = "bench", feature = "demo"))]
mod process;
#[cfg(any(feature = "bench", feature = "demo"))]
mod progress;
pub mod testbed;
