//! What an interface is to be like.

use std::fmt;
use std::path::{Path, PathBuf};

use super::message::{SECRET, Text};
use crate::data::device::memif::Side;

/// A socket, and which of its interfaces.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    path: PathBuf,
    id: u32,
}

impl Address {
    /// The longest path of a Unix socket, in octets.
    pub const MAX_PATH: usize = 107;

    /// Interface `id` behind the socket at `path`; `None` if there can be no such socket.
    #[must_use]
    pub fn new(path: PathBuf, id: u32) -> Option<Self> {
        let octets = path.as_os_str().as_encoded_bytes();
        let possible = (1..=Self::MAX_PATH).contains(&octets.len()) && !octets.contains(&0);
        possible.then_some(Self { path, id })
    }

    /// Where the socket is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The interface's number.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.path.display(), self.id)
    }
}

/// What a client has to know: 1 to 24 octets.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// The longest, in octets.
    pub const MAX: usize = SECRET;

    /// `None` if it is empty, too long, or has a zero octet.
    #[must_use]
    pub fn new(octets: &[u8]) -> Option<Self> {
        let possible = (1..=Self::MAX).contains(&octets.len()) && !octets.contains(&0);
        possible.then(|| Self(octets.to_vec()))
    }

    /// Whether it is `shown`. How long that takes says nothing of where they differ.
    pub(super) fn is(&self, shown: &[u8]) -> bool {
        let difference = self
            .0
            .iter()
            .zip(shown)
            .fold(0, |all, (a, b)| all | (a ^ b));
        self.0.len() == shown.len() && difference == 0
    }

    pub(super) fn text(&self) -> Text<SECRET> {
        Text::of_octets(&self.0).unwrap_or_else(|| Text::new(""))
    }
}

/// Logs do not show it.
impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// An interface on shared memory.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Options {
    /// Socket and number.
    pub address: Address,
    /// Which side we are.
    pub side: Side,
    /// What the client shows the server.
    pub secret: Option<Secret>,
    /// The most rings of each direction: 1 to [`MAX_RINGS`](super::session::MAX_RINGS).
    pub queues: u16,
    /// As client, each ring has 2 to the power of this many descriptors.
    pub log2_ring_size: u8,
}

/// What a client says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The interface to which it connects.
    pub id: u32,
    /// What it shows the server.
    pub secret: Option<Secret>,
    /// What its own interface is called.
    pub name: String,
    /// Rings of each direction that it wants.
    pub queues: u16,
    /// Each has 2 to the power of this many descriptors.
    pub log2_ring_size: u8,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_compared_whole_and_not_shown() {
        let secret = Secret::new(b"open").unwrap();
        assert!(secret.is(b"open"));
        for other in [&b""[..], b"ope", b"opens", b"0pen"] {
            assert!(!secret.is(other));
        }
        assert!(!format!("{secret:?}").contains("open"));
        assert_eq!(secret.text().octets(), b"open");
        assert!(Secret::new(b"").is_none());
        assert!(Secret::new(b"a\0b").is_none());
        assert!(Secret::new(&[b'a'; 24]).is_some());
        assert!(Secret::new(&[b'a'; 25]).is_none());
    }
}
