//! What a pod's annotations choose.
//!
//! | annotation | chooses |
//! |---|---|
//! | `nos-relay.io/tcp` | TCP ports on which the pod is reached: `20000-20099`, `179, 8080`, `size=16` |
//! | `nos-relay.io/udp` | the same of UDP |
//! | `nos-relay.io/ephemeral` | ports from which it opens flows, in the same forms |
//! | `nos-relay.io/network` | the daemon's network |
//! | `nos-relay.io/pool` | one of the pools of the network configuration |
//! | `nos-relay.io/address` | addresses of the NOS, which it uses as its own, separated by commas |
//! | `ipam.com/netspace` | a pool, where `nos-relay.io/pool` chooses none |
//!
//! Who may annotate pods may choose all of that: an engine hands annotations over only where the
//! network configuration says so. Other annotations are others' business.

use core::net::IpAddr;
use std::collections::BTreeMap;

use thiserror::Error;

use crate::name::{NameError, identifier};
use crate::ports::{Given, PortsError};

/// What the annotations of ours begin with.
pub const PREFIX: &str = "nos-relay.io/";
/// The pool of a tenant or a zone, as address management names it.
pub const NETSPACE: &str = "ipam.com/netspace";

/// Addresses that one annotation may name.
const MAX_ADDRESSES: usize = 16;

/// What annotations choose; `None` where they do not speak of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chosen {
    /// TCP ports on which the pod is reached.
    pub tcp: Option<Given>,
    /// UDP ports on which the pod is reached.
    pub udp: Option<Given>,
    /// Ports from which it opens flows.
    pub ephemeral: Option<Given>,
    /// The daemon's network.
    pub network: Option<String>,
    /// A pool of the network configuration.
    pub pool: Option<String>,
    /// Addresses of the NOS.
    pub addresses: Option<Vec<IpAddr>>,
}

/// An annotation that makes no sense.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("annotation {key}: {why}")]
pub struct AnnotationError {
    /// Which one.
    pub key: String,
    /// What is wrong with it.
    pub why: String,
}

impl Chosen {
    /// Reads a pod's annotations.
    ///
    /// # Errors
    ///
    /// One of ours is not known, or makes no sense.
    pub fn read<'a>(
        annotations: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, AnnotationError> {
        let all: BTreeMap<&str, &str> = annotations.into_iter().collect();
        let mut chosen = Self::default();
        for (key, text) in &all {
            let wrong = |why: String| AnnotationError {
                key: key.chars().take(100).collect(),
                why,
            };
            if *key == NETSPACE {
                let name = pool(text).map_err(|error| wrong(error.to_string()))?;
                chosen.pool.get_or_insert(name);
            } else if let Some(what) = key.strip_prefix(PREFIX) {
                chosen.set(what, text).map_err(wrong)?;
            }
        }
        Ok(chosen)
    }

    fn set(&mut self, what: &str, text: &str) -> Result<(), String> {
        let ports = || Given::parse(text).map_err(|error: PortsError| error.to_string());
        let name = |what| identifier(what, text).map_err(|error| error.to_string());
        match what {
            "tcp" => self.tcp = Some(ports()?),
            "udp" => self.udp = Some(ports()?),
            "ephemeral" => self.ephemeral = Some(ports()?),
            "network" => self.network = Some(name("network name")?.to_owned()),
            "pool" => self.pool = Some(name("pool name")?.to_owned()),
            "address" => self.addresses = Some(addresses(text)?),
            _ => {
                return Err(
                    "is not known; there are tcp, udp, ephemeral, network, pool and address"
                        .to_owned(),
                );
            }
        }
        Ok(())
    }
}

fn pool(text: &str) -> Result<String, NameError> {
    identifier("pool name", text).map(str::to_owned)
}

fn addresses(text: &str) -> Result<Vec<IpAddr>, String> {
    let address = |part: &str| {
        let shown: String = part.chars().take(60).collect();
        part.parse()
            .map_err(|_| format!("{shown:?} is no address without prefix length"))
    };
    let list: Vec<_> = text
        .split(',')
        .take(MAX_ADDRESSES + 1)
        .map(|part| address(part.trim()))
        .collect::<Result<_, _>>()?;
    match list.len() {
        ..=MAX_ADDRESSES => Ok(list),
        _ => Err(format!("names more than {MAX_ADDRESSES} addresses")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn annotations_choose_what_they_speak_of() {
        let chosen = Chosen::read([
            ("nos-relay.io/tcp", "20000-20099"),
            ("nos-relay.io/ephemeral", "size=64"),
            ("nos-relay.io/address", "203.0.113.1, 2001:db8:1::1"),
            ("ipam.com/netspace", "red"),
            ("example.org/what", "\0"),
        ])
        .unwrap();
        assert_eq!(chosen.tcp, Some(Given::parse("20000-20099").unwrap()));
        assert_eq!(chosen.ephemeral, Some(Given::Size(64)));
        assert_eq!(chosen.addresses.unwrap().len(), 2);
        assert_eq!(chosen.pool.as_deref(), Some("red"));
        assert_eq!((chosen.udp, chosen.network), (None, None));
    }

    #[test]
    fn our_own_pool_counts_more_than_a_netspace() {
        let both = [("ipam.com/netspace", "red"), ("nos-relay.io/pool", "blue")];
        assert_eq!(Chosen::read(both).unwrap().pool.as_deref(), Some("blue"));
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (key, text, why) in [
            ("nos-relay.io/tcp", "99999", "annotation nos-relay.io/tcp"),
            ("nos-relay.io/tpc", "80", "is not known; there are tcp"),
            ("nos-relay.io/pool", "../red", "pool name"),
            (
                "ipam.com/netspace",
                "",
                "annotation ipam.com/netspace: pool name",
            ),
            ("nos-relay.io/network", "a b", "network name"),
            (
                "nos-relay.io/address",
                "203.0.113.1/24",
                "no address without prefix length",
            ),
            (
                "nos-relay.io/address",
                "::,::,::,::,::,::,::,::,::,::,::,::,::,::,::,::,::",
                "more than 16",
            ),
        ] {
            let error = Chosen::read([(key, text)]).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    proptest! {
        #[test]
        fn whatever_annotations_there_are_they_are_read_or_refused(
            key in "(nos-relay.io/(tcp|udp|ephemeral|network|pool|address)|ipam.com/netspace)",
            text in ".{0,80}",
        ) {
            if let Err(error) = Chosen::read([(key.as_str(), text.as_str())]) {
                prop_assert_eq!(error.key, key);
            }
        }
    }
}
