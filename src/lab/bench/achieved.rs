//! What a sample is made of before its cost is known.

use std::collections::BTreeMap;

/// What some traffic achieved.
#[derive(Default)]
pub(super) struct Achieved {
    /// In the row's unit.
    pub(super) value: f64,
    /// Further figures by name.
    pub(super) more: BTreeMap<String, f64>,
    /// Octets of payload that arrived.
    pub(super) octets: u64,
    /// Datagrams, exchanges or connections.
    pub(super) operations: u64,
}

impl Achieved {
    pub(super) fn with(mut self, name: &str, figure: f64) -> Self {
        self.more.insert(name.to_owned(), figure);
        self
    }
}
