//! Versions of the specification.

use serde_json::{Value, json};

use super::environment::Command;
use super::error::{CniError, Code};

/// The versions that the plugin speaks, the latest last.
pub const SUPPORTED: [&str; 3] = ["0.4.0", "1.0.0", "1.1.0"];

/// A version that the plugin speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version(usize);

impl Version {
    pub(super) fn latest() -> Self {
        Self(SUPPORTED.len() - 1)
    }

    pub(super) fn text(self) -> &'static str {
        SUPPORTED.get(self.0).copied().unwrap_or_default()
    }

    /// Reads what a configuration says.
    pub(super) fn read(text: &str) -> Result<Self, CniError> {
        let found = SUPPORTED.iter().position(|supported| *supported == text);
        found.map(Self).ok_or_else(|| {
            let shown: String = text.chars().take(40).collect();
            let details = format!(
                "cniVersion {shown:?}; this plugin speaks {}",
                SUPPORTED.join(", ")
            );
            CniError::new(
                Code::IncompatibleVersion,
                "the version of the network configuration is not supported",
                details,
            )
        })
    }

    /// Whether there is such a command in it.
    pub(super) fn has(self, command: Command) -> bool {
        match command {
            Command::Gc | Command::Status => self >= Self::latest(),
            Command::Add | Command::Del | Command::Check | Command::Version => true,
        }
    }

    /// Whether addresses say of which family they are.
    pub(super) fn marks_families(self) -> bool {
        self.text() == "0.4.0"
    }

    /// Whether interfaces say how long packets may be.
    pub(super) fn has_mtu(self) -> bool {
        self >= Self::latest()
    }
}

pub(super) fn too_old(version: Version, command: Command) -> CniError {
    let details = format!("cniVersion {} has no {command}", version.text());
    CniError::new(
        Code::IncompatibleVersion,
        "the version of the network configuration does not have this command",
        details,
    )
}

/// The answer to `VERSION`, in the version of the engine, whichever that is.
pub(super) fn answer(input: &[u8]) -> Result<String, CniError> {
    let value: Value = match input.iter().all(u8::is_ascii_whitespace) {
        true => json!({}),
        false => serde_json::from_slice(input)
            .map_err(|error| CniError::new(Code::Decoding, "the input is not JSON", error))?,
    };
    let spoken = match value.get("cniVersion") {
        None => Version::latest().text(),
        Some(Value::String(text)) if text.len() <= 40 => text,
        Some(_) => {
            let details = "cniVersion is not the text of a version";
            return Err(CniError::new(
                Code::Decoding,
                "the input makes no sense",
                details,
            ));
        }
    };
    let answer = json!({"cniVersion": spoken, "supportedVersions": SUPPORTED});
    Ok(answer.to_string() + "\n")
}
