//! What outlives the process: entries by name, changed together and durably.
//!
//! # Theory of operation
//!
//! A [`Store`] holds octets by name, in [`Section`]s, and knows nothing of what they mean. A
//! commit is a transaction: all of its writes are there from then on, whatever happens to the
//! process or the machine, or none of them is. Each has a **revision**, so that a reader can tell
//! whether anything has changed.
//!
//! [`Embedded`] keeps them in a file of a state directory, which one process has at a time.
//!
//! The control thread calls it, and waits for the disk. Data threads never do.

mod embedded;
#[cfg(test)]
pub(crate) mod faulty;
#[cfg(test)]
mod tests;
mod unopened;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use thiserror::Error;

pub use embedded::Embedded;
pub use unopened::Unopened;

/// The version of what is stored. A store of a later one is left alone.
pub const VERSION: u64 = 1;

/// What an entry is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Section {
    /// What was registered at run time.
    Registrations,
    /// Answers to requests that had an id.
    Answers,
    /// Pools of addresses, and what is known of these.
    Pools,
}

impl Section {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Registrations, Self::Answers, Self::Pools];
}

/// Entries by name, with the revision that has them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Grows with each commit; 0 of a store that has had none.
    pub revision: u64,
    /// What was registered.
    pub registrations: BTreeMap<String, Vec<u8>>,
    /// What was answered.
    pub answers: BTreeMap<String, Vec<u8>>,
    /// Pools and addresses.
    pub pools: BTreeMap<String, Vec<u8>>,
}

/// One entry that is to be there, or not any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Of what.
    pub section: Section,
    /// Its name, of at most a few hundred octets.
    pub name: String,
    /// What it shall be; none to remove it.
    pub value: Option<Vec<u8>>,
}

/// Where entries outlive the process.
pub trait Store: fmt::Debug + Send {
    /// Everything that is there.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; nothing is changed.
    fn load(&mut self) -> Result<Contents, StoreError>;

    /// Makes all of `writes`, durably, and returns the revision that has them.
    ///
    /// # Errors
    ///
    /// [`CommitError`]. The store can be used on.
    fn commit(&mut self, writes: &[Write]) -> Result<u64, CommitError>;

    /// The error that an entry makes no sense, which only who wrote it can tell.
    fn damaged(&self, why: &str) -> StoreError;
}

/// Why writes were not made.
#[derive(Debug, Error)]
pub enum CommitError {
    /// None of them is.
    #[error(transparent)]
    NotMade(StoreError),
    /// The disk failed just as it was asked to make them last: all of them are there, or none is.
    /// [`Store::load`] says what is, if the disk can be read.
    #[error(transparent)]
    Unknown(StoreError),
}

/// Why a store cannot be used.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The system refuses.
    #[error("state directory {}: cannot {what}: {reason}", path.display())]
    System {
        /// The directory, or the file in it.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What the system says.
        reason: String,
    },
    /// It could not be opened, and this was the reason.
    #[error("{0}; nothing can be stored until it can be used")]
    Unopened(String),
    /// Another process has it.
    #[error(
        "state directory {}: another nos-relay uses it; stop that one, or choose another directory \
         with --state",
        .0.display()
    )]
    Locked(PathBuf),
    /// What it holds is damaged.
    #[error(
        "state directory: {}: is damaged: {why}. Nothing was changed. Restore it from a copy, or \
         move it away to start with nothing registered",
        path.display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// It was written by a later version.
    #[error(
        "state directory: {}: is of version {found}, this nos-relay knows version {VERSION} and \
         none after it. Run the later one, or move the file away to start with nothing registered",
        path.display()
    )]
    Later {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u64,
    },
}
