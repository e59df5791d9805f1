//! The paths that are measured.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::data::device::Uring;
use crate::lab::testbed::tun_access;

/// A way from the container to the external host and back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Path {
    /// The relay between two TAPs, one thread.
    RelayTap,
    /// The same with a thread each for relay and NOS.
    RelayTapSplit,
    /// The relay between packet sockets on two veth pairs, one thread.
    RelayVeth,
    /// The same with a thread each for relay and NOS.
    RelayVethSplit,
    /// As [`Self::RelayVeth`], where the container's veth is a port of a bridge.
    RelayBridge,
    /// A bare forwarder between two TAPs.
    BareTap,
    /// The same, one frame at a time.
    BareTapSingle,
    /// A bare forwarder between two TAPs that hands bursts over by io_uring.
    BareTapUring,
    /// A bare forwarder between packet sockets on two veth pairs.
    BarePacket,
    /// The same, handing bursts over by io_uring.
    BarePacketUring,
    /// Bridge and NAT by nftables: what docker sets up.
    Kernel,
    /// pasta at its best MTU.
    Pasta,
    /// pasta at an MTU of 1500.
    #[serde(rename = "pasta-1500")]
    Pasta1500,
    /// slirp4netns at its best MTU.
    Slirp4netns,
    /// slirp4netns at an MTU of 1500.
    #[serde(rename = "slirp4netns-1500")]
    Slirp4netns1500,
}

/// What kind of path it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// nos-relay.
    Relay,
    /// What there would be without it: the yardstick.
    Bare,
    /// What somebody else offers.
    Other,
}

impl Path {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 15] = [
        Self::RelayTap,
        Self::RelayTapSplit,
        Self::BareTap,
        Self::BareTapSingle,
        Self::BareTapUring,
        Self::RelayVeth,
        Self::RelayVethSplit,
        Self::RelayBridge,
        Self::BarePacket,
        Self::BarePacketUring,
        Self::Kernel,
        Self::Pasta,
        Self::Pasta1500,
        Self::Slirp4netns,
        Self::Slirp4netns1500,
    ];

    /// Its name in options, tables and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::RelayTap => "relay-tap",
            Self::RelayTapSplit => "relay-tap-split",
            Self::RelayVeth => "relay-veth",
            Self::RelayVethSplit => "relay-veth-split",
            Self::RelayBridge => "relay-bridge",
            Self::BareTap => "bare-tap",
            Self::BareTapSingle => "bare-tap-single",
            Self::BareTapUring => "bare-tap-uring",
            Self::BarePacket => "bare-packet",
            Self::BarePacketUring => "bare-packet-uring",
            Self::Kernel => "kernel",
            Self::Pasta => "pasta",
            Self::Pasta1500 => "pasta-1500",
            Self::Slirp4netns => "slirp4netns",
            Self::Slirp4netns1500 => "slirp4netns-1500",
        }
    }

    /// What it is made of, in words.
    #[must_use]
    pub const fn what(self) -> &'static str {
        match self {
            Self::RelayTap => "nos-relay, container TAP and uplink TAP, one thread",
            Self::RelayTapSplit => "the same, relay and NOS in a thread each",
            Self::RelayVeth => "nos-relay, container veth and uplink packet socket, one thread",
            Self::RelayVethSplit => "the same, relay and NOS in a thread each",
            Self::RelayBridge => {
                "nos-relay, container veth that is a port of a bridge, uplink packet socket, one thread"
            }
            Self::BareTap => "TAP to TAP and nothing else, in bursts",
            Self::BareTapSingle => "TAP to TAP and nothing else, frame by frame",
            Self::BarePacket => {
                "packet socket to packet socket (recvmmsg, sendmmsg) and nothing else"
            }
            Self::BareTapUring => "TAP to TAP and nothing else, bursts by io_uring",
            Self::BarePacketUring => {
                "packet socket to packet socket and nothing else, bursts by io_uring"
            }
            Self::Kernel => "the kernel's bridge, routing and NAT (nftables), IPv4",
            Self::Pasta => "pasta, MTU 65520",
            Self::Pasta1500 => "pasta, MTU 1500",
            Self::Slirp4netns => "slirp4netns, MTU 65520, IPv4",
            Self::Slirp4netns1500 => "slirp4netns, MTU 1500, IPv4",
        }
    }

    /// What kind of path it is.
    #[must_use]
    pub const fn family(self) -> Family {
        match self {
            Self::RelayTap
            | Self::RelayTapSplit
            | Self::RelayVeth
            | Self::RelayVethSplit
            | Self::RelayBridge => Family::Relay,
            Self::BareTap
            | Self::BareTapSingle
            | Self::BareTapUring
            | Self::BarePacket
            | Self::BarePacketUring => Family::Bare,
            _ => Family::Other,
        }
    }

    /// The bare forwarders of the same device kind, for a relay.
    #[must_use]
    pub const fn yardsticks(self) -> &'static [Self] {
        match self {
            Self::RelayTap | Self::RelayTapSplit => &[Self::BareTap, Self::BareTapSingle],
            Self::RelayVeth | Self::RelayVethSplit | Self::RelayBridge => &[Self::BarePacket],
            _ => &[],
        }
    }

    /// What a forwarder of the same device kind can do at best, for a relay: by io_uring.
    #[must_use]
    pub const fn limit(self) -> Option<Self> {
        match self {
            Self::RelayTap | Self::RelayTapSplit => Some(Self::BareTapUring),
            Self::RelayVeth | Self::RelayVethSplit | Self::RelayBridge => {
                Some(Self::BarePacketUring)
            }
            _ => None,
        }
    }

    /// Whether it hands bursts over by io_uring, and cannot be without.
    #[must_use]
    pub const fn needs_uring(self) -> bool {
        matches!(self, Self::BareTapUring | Self::BarePacketUring)
    }

    /// Whether relay and NOS have a thread each.
    #[must_use]
    pub const fn is_split(self) -> bool {
        matches!(self, Self::RelayTapSplit | Self::RelayVethSplit)
    }

    /// Whether its devices are TAPs.
    #[must_use]
    pub const fn is_tap(self) -> bool {
        matches!(
            self,
            Self::RelayTap
                | Self::RelayTapSplit
                | Self::BareTap
                | Self::BareTapSingle
                | Self::BareTapUring
        )
    }

    /// Whether it is another program that may be installed or not. What goes wrong on it is shown,
    /// and is not our failure.
    #[must_use]
    pub const fn is_foreign(self) -> bool {
        self.program().is_some() && !matches!(self, Self::Kernel)
    }

    /// The program that it needs besides ours.
    #[must_use]
    pub const fn program(self) -> Option<&'static str> {
        match self {
            Self::Kernel => Some("nft"),
            Self::Pasta | Self::Pasta1500 => Some("pasta"),
            Self::Slirp4netns | Self::Slirp4netns1500 => Some("slirp4netns"),
            _ => None,
        }
    }

    /// Whether there is a process that forwards.
    #[must_use]
    pub const fn has_process(self) -> bool {
        !matches!(self, Self::Kernel)
    }

    /// Whether it carries IPv6.
    #[must_use]
    pub const fn has_v6(self) -> bool {
        !matches!(
            self,
            Self::Kernel | Self::Slirp4netns | Self::Slirp4netns1500
        )
    }

    /// Why it cannot be measured here.
    #[must_use]
    pub fn missing(self) -> Option<String> {
        if (self.is_tap() || self.is_foreign())
            && let Err(error) = tun_access()
        {
            return Some(format!("no TAP here: /dev/net/tun: {error}"));
        }
        if self.needs_uring()
            && let Err(reason) = uring(self.is_tap())
        {
            return Some(format!("no io_uring: {reason}"));
        }
        let program = self.program()?;
        match installed(program) {
            Some(_) => None,
            None => Some(format!("{program} is not installed")),
        }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Whether there is io_uring here, and for TAPs.
fn uring(taps: bool) -> Result<(), String> {
    let uring = Uring::open().map_err(|reason| reason.to_string())?;
    match uring.report().taps || !taps {
        true => Ok(()),
        false => Err("TUN does not take RWF_NOWAIT".to_owned()),
    }
}

/// Where a program is, looked for as the shell does and where administrators keep theirs.
pub(super) fn installed(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from);
    let mut places = std::env::split_paths(&path).chain(more);
    places.find_map(|place| Some(place.join(program)).filter(|file| file.is_file()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_json() {
        for path in Path::ALL {
            let json = serde_json::to_string(&path).unwrap();
            assert_eq!(json, format!("\"{path}\""));
        }
    }

    #[test]
    fn relays_are_compared_with_bare_forwarders_of_their_kind() {
        for path in Path::ALL {
            let yardsticks = path.yardsticks();
            assert_eq!(yardsticks.is_empty(), path.family() != Family::Relay);
            assert_eq!(yardsticks.is_empty(), path.limit().is_none());
            if let Some(limit) = path.limit() {
                assert!(limit.family() == Family::Bare && limit.needs_uring());
                assert_eq!(limit.is_tap(), path.is_tap());
            }
            for yardstick in yardsticks {
                assert_eq!(yardstick.family(), Family::Bare);
                assert_eq!(yardstick.is_tap(), path.is_tap());
                assert!(!yardstick.needs_uring());
            }
        }
    }
}
