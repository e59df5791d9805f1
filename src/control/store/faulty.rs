//! A disk in memory that fails when it is told to.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;
use redb::StorageBackend;

/// A disk. Copies of the value are the same one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk(Arc<Mutex<State>>);

/// How an operation fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing of it is done.
    #[default]
    Undone,
    /// It is done all the same.
    Done,
}

#[derive(Clone, Debug, Default)]
struct State {
    /// What is read.
    octets: Vec<u8>,
    /// What is left when the power fails.
    synced: Vec<u8>,
    /// How many times something was to be changed or made to last.
    operations: u64,
    failing: Range<u64>,
    fault: Fault,
}

impl Disk {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.lock().octets.is_empty()
    }

    /// How many times something was to be changed or made to last.
    pub(crate) fn operations(&self) -> u64 {
        self.0.lock().operations
    }

    /// Has these operations fail.
    pub(crate) fn fail(&self, operations: Range<u64>, fault: Fault) {
        let mut state = self.0.lock();
        (state.failing, state.fault) = (operations, fault);
    }

    /// Another disk, with what is found here after the process was killed.
    pub(crate) fn after_kill(&self) -> Self {
        Self::with(self.0.lock().octets.clone())
    }

    /// Another disk, with what is found here after a loss of power.
    pub(crate) fn after_power_loss(&self) -> Self {
        Self::with(self.0.lock().synced.clone())
    }

    fn with(octets: Vec<u8>) -> Self {
        let state = State {
            synced: octets.clone(),
            octets,
            ..State::default()
        };
        Self(Arc::new(Mutex::new(state)))
    }

    /// Does something, unless it fails.
    fn change(&self, change: impl FnOnce(&mut State)) -> io::Result<()> {
        let mut state = self.0.lock();
        let fails = state.failing.contains(&state.operations);
        state.operations += 1;
        if !fails || state.fault == Fault::Done {
            change(&mut state);
        }
        match fails {
            true => Err(io::Error::other("the disk fails")),
            false => Ok(()),
        }
    }
}

fn place(offset: u64, length: usize) -> Range<usize> {
    let start = usize::try_from(offset).unwrap();
    start..start + length
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().octets.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.0.lock();
        let found = state.octets.get(place(offset, out.len()));
        out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.change(|state| state.octets.resize(usize::try_from(length).unwrap(), 0))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.change(|state| state.synced.clone_from(&state.octets))
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change(|state| state.octets[place(offset, data.len())].copy_from_slice(data))
    }
}
