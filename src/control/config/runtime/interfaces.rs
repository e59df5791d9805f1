//! The interfaces of a NOS that is configured elsewhere, as entries of a configuration.

use nos_shim::channel::NosInterface;
use serde::{Serialize, Serializer};
use toml::{Table, Value};

use super::super::ConfigErrors;
use super::ConfigFile;

/// An `[[uplink]]` with the keys that such a NOS leaves to be said.
#[derive(Serialize)]
struct Entry<'a> {
    name: &'a str,
    device: &'static str,
    addresses: Vec<String>,
    mtu: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    vrf: Option<&'a str>,
}

impl<'a> From<&'a NosInterface> for Entry<'a> {
    fn from(interface: &'a NosInterface) -> Self {
        let addresses = interface.addresses.iter();
        Self {
            name: &interface.name,
            device: "nos",
            addresses: addresses.map(ToString::to_string).collect(),
            mtu: interface.mtu,
            vrf: interface.vrf.as_deref(),
        }
    }
}

/// An interface as an `[[uplink]]`, with the keys that a configuration has for it.
pub(crate) fn serialize_interface<S: Serializer>(
    interface: &NosInterface,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    Entry::from(interface).serialize(serializer)
}

impl ConfigFile {
    /// The same with these interfaces of the NOS in place of those before.
    ///
    /// # Errors
    ///
    /// As [`Self::parse_for`], for the place of the NOS that this file is for; lines are those of the
    /// text that it makes. Where the NOS is here, that refuses all.
    pub fn with_interfaces(&self, interfaces: &[NosInterface]) -> Result<Self, ConfigErrors> {
        // It was read from text, and entries of plain values have one.
        let mut tables: Table = toml::from_str(&self.text).unwrap_or_default();
        let entries = interfaces.iter().map(Entry::from);
        let entries = entries.filter_map(|entry| Value::try_from(entry).ok());
        tables.insert("uplink".to_owned(), Value::Array(entries.collect()));
        let text = toml::to_string(&tables).unwrap_or_default();
        Self::parse_for(self.entries.place, &self.name, &text)
    }
}
