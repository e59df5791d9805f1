//! Names: from an engine's identifiers to those of the daemon's containers.
//!
//! A name says whose it is, so that a plugin finds what belongs to one of its networks, and nothing
//! else: `cni.<network>.<container>.<interface>.<digest>`. What is long or unusual in an identifier is
//! not in the name as it stands, but the digest, of all three, tells names apart all the same.

use nos_relay::interface_name::InterfaceName;
use sha2::{Digest, Sha256};
use thiserror::Error;

/// Characters of the longest identifier that is taken from an engine.
pub const MAX_IDENTIFIER: usize = 256;

/// Characters of a network's name that stand in a name as they are.
const NETWORK_LABEL: usize = 12;
/// Characters of a container's identifier that stand in a name.
const CONTAINER_LABEL: usize = 12;

/// Why an identifier of an engine is refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum NameError {
    /// It is no identifier.
    #[error(
        "{what} {shown:?} is not 1 to {MAX_IDENTIFIER} of A-Z a-z 0-9 . _ - that begin with a letter or a digit"
    )]
    Identifier {
        /// Which one.
        what: &'static str,
        /// Its beginning.
        shown: String,
    },
    /// It is no name of an interface.
    #[error("interface name {shown:?}: {why}")]
    Interface {
        /// Its beginning.
        shown: String,
        /// What is wrong with it.
        why: String,
    },
}

/// What belongs to one network of an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkNames {
    engine: &'static str,
    network: String,
}

impl NetworkNames {
    /// The names of `network` of the engine that is called `engine` in them.
    ///
    /// # Errors
    ///
    /// The network's name is none.
    pub fn new(engine: &'static str, network: &str) -> Result<Self, NameError> {
        let network = identifier("network name", network)?.to_owned();
        Ok(Self { engine, network })
    }

    /// What the names of all its containers begin with, and those of no other network.
    #[must_use]
    pub fn prefix(&self) -> String {
        format!("{}.{}.", self.engine, label(&self.network))
    }

    /// The name of the interface `interface` of a container: at most 64 of `A-Z a-z 0-9 . _ -`.
    ///
    /// # Errors
    ///
    /// An identifier is none.
    pub fn container(&self, container: &str, interface: &str) -> Result<String, NameError> {
        identifier("container id", container)?;
        let interface = interface_name(interface)?;
        let digest = hexadecimal(&[&self.network, container, &interface], 8);
        let short: String = plain(container).chars().take(CONTAINER_LABEL).collect();
        let prefix = self.prefix();
        Ok(format!("{prefix}{short}.{}.{digest}", plain(&interface)))
    }
}

/// What all names of an engine begin with.
#[must_use]
pub fn is_of(engine: &str, name: &str) -> bool {
    name.strip_prefix(engine)
        .is_some_and(|rest| rest.starts_with('.'))
}

/// Checks an identifier of an engine; `what` says in the error which one it is.
///
/// # Errors
///
/// It is empty, too long, or has other characters.
pub fn identifier<'a>(what: &'static str, text: &'a str) -> Result<&'a str, NameError> {
    let good = |octet: u8| octet.is_ascii_alphanumeric() || b"._-".contains(&octet);
    let begins = text.starts_with(|first: char| first.is_ascii_alphanumeric());
    if begins && text.len() <= MAX_IDENTIFIER && text.bytes().all(good) {
        return Ok(text);
    }
    let shown = text.chars().take(80).collect();
    Err(NameError::Identifier { what, shown })
}

/// Checks the name of an interface inside of a container.
///
/// # Errors
///
/// The kernel would not take it.
pub fn interface_name(text: &str) -> Result<String, NameError> {
    let refused = |why: String| NameError::Interface {
        shown: text.chars().take(80).collect(),
        why,
    };
    let name: InterfaceName =
        text.parse()
            .map_err(|error: nos_relay::interface_name::InterfaceNameError| {
                refused(error.to_string())
            })?;
    match name.as_str() {
        "lo" => Err(refused("that is the loopback interface".to_owned())),
        name => Ok(name.to_owned()),
    }
}

/// A network's name as it stands in names: itself if it is short and plain, else a digest, which
/// begins as no plain one does.
fn label(network: &str) -> String {
    let good = |octet: u8| octet.is_ascii_alphanumeric() || octet == b'_';
    if network.len() <= NETWORK_LABEL && network.bytes().all(good) {
        return network.to_owned();
    }
    format!("-{}", &hexadecimal(&[network], 6)[..NETWORK_LABEL - 1])
}

fn plain(text: &str) -> String {
    let good = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    text.chars()
        .map(|c| if good(c) { c } else { '_' })
        .collect()
}

/// The first octets of a digest of `parts`, of which none contains a zero.
fn hexadecimal(parts: &[&str], octets: usize) -> String {
    let digest = Sha256::digest(parts.join("\0"));
    digest
        .iter()
        .take(octets)
        .map(|octet| format!("{octet:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names(network: &str) -> NetworkNames {
        NetworkNames::new("cni", network).unwrap()
    }

    #[test]
    fn a_name_shows_what_it_is_of_and_is_stable() {
        let id = "3f2a9c0b1d2e4f5061728394a5b6c7d8";
        let name = names("nosnet").container(id, "eth0").unwrap();
        assert_eq!(name, "cni.nosnet.3f2a9c0b1d2e.eth0.1bf675ef9d28d478");
        assert!(is_of("cni", &name));
        assert!(!is_of("cn", &name));
    }

    #[test]
    fn hostile_identifiers_are_refused_by_name() {
        let long = "a".repeat(MAX_IDENTIFIER + 1);
        for bad in [
            "",
            "../../etc",
            "a b",
            "-rf",
            ".",
            "a\n",
            "a\0b",
            "é",
            "a/b",
            long.as_str(),
        ] {
            let network = NetworkNames::new("cni", bad).unwrap_err();
            assert!(network.to_string().starts_with("network name"), "{network}");
            let container = names("n").container(bad, "eth0").unwrap_err();
            assert!(
                container.to_string().starts_with("container id"),
                "{container}"
            );
        }
        for bad in [
            "",
            ".",
            "..",
            "a/b",
            "a b",
            "sixteen-letters.",
            "a:b",
            "lo",
            "e\n",
        ] {
            let error = names("n").container("id", bad).unwrap_err();
            assert!(
                error.to_string().starts_with("interface name"),
                "{bad:?}: {error}"
            );
        }
    }

    proptest! {
        #[test]
        fn names_are_what_the_daemon_takes_and_differ_as_what_they_are_of(
            a in ("[a-zA-Z0-9][a-zA-Z0-9._-]{0,80}", "[a-zA-Z0-9][a-zA-Z0-9._-]{0,80}", "[a-z][a-z0-9._@-]{0,14}"),
            b in ("[a-zA-Z0-9][a-zA-Z0-9._-]{0,80}", "[a-zA-Z0-9][a-zA-Z0-9._-]{0,80}", "[a-z][a-z0-9._@-]{0,14}"),
        ) {
            prop_assume!(a.2 != "lo" && b.2 != "lo");
            let [one, other] = [&a, &b].map(|it| names(&it.0).container(&it.1, &it.2).unwrap());
            prop_assert_eq!(a == b, one == other);
            let good = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            prop_assert!(one.len() <= 64 && one.chars().all(good), "{}", one);
            prop_assert!(one.starts_with(&names(&a.0).prefix()));
            prop_assert_eq!(a.0 == b.0, one.starts_with(&names(&b.0).prefix()));
        }
    }
}
