//! Pools of addresses, as requests at run time speak of them.
//!
//! No file does: what is in a pool changes while it is used, and outlives the process by the store.

use core::fmt;
use core::net::IpAddr;
use core::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Name, VrfName};

/// Characters of the longest name of a workload, or of who holds an address.
pub const MAX_WORKLOAD: usize = 512;

/// Pairs of addresses that a pool has at most.
pub const MAX_POOL: u32 = 1 << 20;

/// The pool of all networks of a VRF's uplinks, of which the others are made. It is always there.
pub const TOTAL_POOL: &str = "total";
/// The pool of who names none.
pub const DEFAULT_POOL: &str = "default";

/// What a pool is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PoolKind {
    /// One application: a workload keeps its address for good.
    Application,
    /// A tenant, or a zone.
    Netspace,
    /// Who names no pool.
    Default,
}

impl PoolKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Application, Self::Netspace, Self::Default];

    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Application => "application",
            Self::Netspace => "netspace",
            Self::Default => "default",
        }
    }
}

impl fmt::Display for PoolKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How a pool follows what is used of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Elastic {
    /// How many pairs it gets or gives back at once.
    pub step: u32,
    /// It grows when fewer are left.
    pub low: u32,
    /// It shrinks when more are left; at least `low` and `step` together.
    pub high: u32,
}

impl Elastic {
    /// Of pools that do not say it.
    pub const USUAL: Self = Self {
        step: 16,
        low: 4,
        high: 48,
    };
}

/// What a pool is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolDefinition {
    /// Its name, which no other pool has.
    pub name: Name,
    /// What it is for.
    pub kind: PoolKind,
    /// The VRF in which its addresses are.
    pub vrf: VrfName,
    /// The netspace that an application's pool lies in; [`TOTAL_POOL`] of none.
    pub inside: Option<Name>,
    /// `None` of one that keeps its size.
    pub elastic: Option<Elastic>,
    /// Pairs that it has at most, up to [`MAX_POOL`].
    pub max: u32,
}

impl PoolDefinition {
    /// Of the pool of who names none, as long as nobody has said what it is.
    #[must_use]
    pub fn usual_default(name: Name) -> Self {
        Self {
            name,
            kind: PoolKind::Default,
            vrf: VrfName::Default,
            inside: None,
            elastic: Some(Elastic::USUAL),
            max: MAX_POOL,
        }
    }
}

/// How much of something, or what exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// So many pairs.
    Size(u32),
    /// The pairs that have these addresses, both included.
    Range(AddressRange),
}

/// Addresses of one family in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressRange {
    /// The first.
    pub first: IpAddr,
    /// The last, not below it.
    pub last: IpAddr,
}

/// As `203.0.113.64-203.0.113.95`, `203.0.113.64/27`, or one address alone.
impl FromStr for AddressRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let shown: String = text.chars().take(100).collect();
        let wrong = || {
            format!(
                "\"{shown}\" is neither an address, nor a network, nor two addresses as in \
                 203.0.113.64-203.0.113.95"
            )
        };
        let (first, last) = if let Some((first, last)) = text.split_once('-') {
            let parse = |text: &str| text.trim().parse::<IpAddr>().map_err(|_| wrong());
            (parse(first)?, parse(last)?)
        } else if let Ok(net) = text.parse::<IpNet>() {
            if net.trunc() != net {
                return Err(format!("\"{net}\" has bits beyond its length"));
            }
            (net.network(), net.broadcast())
        } else {
            let alone = text.parse::<IpAddr>().map_err(|_| wrong())?;
            (alone, alone)
        };
        if first.is_ipv4() != last.is_ipv4() || first > last {
            return Err(format!(
                "\"{shown}\" does not go up from one address to another"
            ));
        }
        Ok(Self { first, last })
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first == self.last {
            true => write!(f, "{}", self.first),
            false => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

/// What is asked of pools.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PoolRequest {
    /// There shall be a pool, with so many pairs to begin with.
    Create(PoolDefinition, Amount),
    /// It shall be no more.
    Remove(Name),
    /// It gets more.
    Grow(Name, Amount),
    /// It gives some back.
    Shrink(Name, Amount),
    /// A workload, and nobody else, gets an address, whenever it comes.
    Reserve {
        /// The pool.
        pool: Name,
        /// Whose it is from now on.
        workload: String,
        /// Which one; any that is free otherwise.
        address: Option<IpAddr>,
    },
    /// What is said of an address is forgotten: who holds it, whose it is.
    Release(Name, Released),
    /// Somebody holds an address from now on.
    Allocate {
        /// The pool; that of who names none otherwise.
        pool: Option<Name>,
        /// Who holds it.
        holder: String,
        /// Its VRF.
        vrf: VrfName,
        /// For whom.
        workload: Option<String>,
        /// Which one; one that fits otherwise.
        address: Option<IpAddr>,
    },
}

/// Of what something is forgotten.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Released {
    /// An address.
    Address(IpAddr),
    /// All that a workload has, or would get.
    Workload(String),
    /// All that somebody holds.
    Holder(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_in_a_row_are_said_in_three_ways() {
        for (text, shown) in [
            ("203.0.113.64/30", "203.0.113.64-203.0.113.67"),
            ("203.0.113.64 - 203.0.113.70", "203.0.113.64-203.0.113.70"),
            ("2001:db8::7", "2001:db8::7"),
        ] {
            assert_eq!(text.parse::<AddressRange>().unwrap().to_string(), shown);
        }
        for (text, why) in [
            ("", "neither an address"),
            ("203.0.113.9-203.0.113.8", "does not go up"),
            ("203.0.113.9-2001:db8::", "does not go up"),
            ("203.0.113.9/24", "bits beyond"),
        ] {
            let error = text.parse::<AddressRange>().unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
