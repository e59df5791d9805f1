//! In the place of a store that cannot be opened.

use super::{CommitError, Contents, Store, StoreError, Write};

/// Takes nothing, and says why. What it would hold is not known.
#[derive(Debug)]
pub struct Unopened {
    why: String,
}

impl Unopened {
    /// One that says this.
    #[must_use]
    pub fn new(why: String) -> Self {
        Self { why }
    }

    fn error(&self) -> StoreError {
        StoreError::Unopened(self.why.clone())
    }
}

impl Store for Unopened {
    fn load(&mut self) -> Result<Contents, StoreError> {
        Err(self.error())
    }

    fn commit(&mut self, _: &[Write]) -> Result<u64, CommitError> {
        Err(CommitError::NotMade(self.error()))
    }

    fn damaged(&self, _: &str) -> StoreError {
        self.error()
    }
}
