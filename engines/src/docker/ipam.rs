//! The IPAM driver: the addresses that containers share are the NOS's, and several get the same.
//!
//! A pool is one family of a VRF. It is called by what it is, so that nothing has to be remembered.

use core::net::IpAddr;

use ipnet::IpNet;
use nos_relay::control::api::snapshot::{Counters, Uplink};
use serde_json::json;

use super::{Answer, Call, CallError, shown};
use crate::daemon::Daemon;

/// The one address space.
pub(super) const SPACE: &str = "nos-relay";

/// What Docker calls the address by which a network is left.
const GATEWAY: &str = "com.docker.network.gateway";

/// What chooses among the addresses of the NOS.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pool {
    ipv6: bool,
    vrf: String,
    /// An uplink alone.
    uplink: Option<String>,
}

/// `v4/VRF` or `v4/VRF/UPLINK`.
impl core::fmt::Display for Pool {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let family = if self.ipv6 { "v6" } else { "v4" };
        write!(f, "{family}/{}", self.vrf)?;
        match &self.uplink {
            Some(uplink) => write!(f, "/{uplink}"),
            None => Ok(()),
        }
    }
}

impl core::str::FromStr for Pool {
    type Err = CallError;

    fn from_str(text: &str) -> Result<Self, CallError> {
        let mut parts = text.splitn(3, '/');
        let (family, vrf, uplink) = (parts.next(), parts.next(), parts.next());
        let (ipv6, Some(vrf)) = (family == Some("v6"), vrf) else {
            return Err(CallError::asked(format_args!(
                "{} is no pool of this driver",
                shown(text)
            )));
        };
        if !matches!(family, Some("v4" | "v6")) {
            return Err(CallError::asked(format_args!(
                "{} is no pool of this driver",
                shown(text)
            )));
        }
        Ok(Self {
            ipv6,
            vrf: vrf.to_owned(),
            uplink: uplink.map(str::to_owned),
        })
    }
}

impl Pool {
    /// The addresses that the NOS has in it, each once, in its order.
    fn addresses(&self, counters: &Counters) -> Vec<IpAddr> {
        let here = |uplink: &&Uplink| {
            let named = self.uplink.as_ref();
            uplink.link.vrf_name == self.vrf && named.is_none_or(|name| *name == uplink.name)
        };
        let uplinks = counters.uplinks.iter().filter(here);
        let all = uplinks.flat_map(|uplink| &uplink.addresses);
        let of_family = all.map(IpNet::addr).filter(|it| it.is_ipv6() == self.ipv6);
        let mut addresses = Vec::new();
        for address in of_family {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        addresses
    }

    fn none(&self) -> CallError {
        let family = if self.ipv6 { "IPv6" } else { "IPv4" };
        let of = match &self.uplink {
            Some(uplink) => format!("uplink {} of VRF {}", shown(uplink), shown(&self.vrf)),
            None => format!("VRF {}", shown(&self.vrf)),
        };
        CallError::asked(format_args!("the NOS has no {family} address in {of}"))
    }
}

pub(super) fn request_pool(daemon: &Daemon, call: &Call) -> Answer {
    if let Some(space) = call.optional("AddressSpace")?
        && space != SPACE
    {
        return Err(CallError::asked(format_args!(
            "there is no address space {}",
            shown(space)
        )));
    }
    let mut pool = Pool {
        ipv6: call.is("V6"),
        vrf: "default".to_owned(),
        uplink: None,
    };
    for (key, value) in call.object("Options")? {
        let Some(text) = value.as_str() else {
            return Err(CallError::asked(format_args!(
                "--ipam-opt {}: is no text",
                shown(&key)
            )));
        };
        match key.as_str() {
            "vrf" => text.clone_into(&mut pool.vrf),
            "uplink" => pool.uplink = Some(text.to_owned()),
            _ => {
                return Err(CallError::asked(format_args!(
                    "--ipam-opt {}: there are vrf and uplink",
                    shown(&key)
                )));
            }
        }
    }
    let addresses = pool.addresses(&daemon.counters()?);
    let Some(&first) = addresses.first() else {
        return Err(pool.none());
    };
    if let Some(asked) = call.optional("Pool")? {
        let asked: IpNet = asked.parse().map_err(|_| {
            CallError::asked(format_args!("--subnet {}: is no network", shown(asked)))
        })?;
        if !addresses.iter().any(|address| asked.contains(address)) {
            return Err(CallError::asked(format_args!(
                "--subnet {asked}: the NOS has no address there; leave it out"
            )));
        }
    }
    Ok(json!({"PoolID": pool.to_string(), "Pool": IpNet::from(first).to_string(), "Data": {}}))
}

pub(super) fn request_address(daemon: &Daemon, call: &Call) -> Answer {
    let pool: Pool = call.text("PoolID")?.parse()?;
    let addresses = pool.addresses(&daemon.counters()?);
    let kind = call.object("Options")?;
    let is_gateway = kind.get("RequestAddressType").and_then(|it| it.as_str()) == Some(GATEWAY);
    let address = match call.optional("Address")?.filter(|_| !is_gateway) {
        None => *addresses.first().ok_or_else(|| pool.none())?,
        Some(asked) => {
            let asked: IpAddr = asked
                .parse()
                .map_err(|_| CallError::asked(format_args!("{} is no address", shown(asked))))?;
            if !addresses.contains(&asked) {
                let own: Vec<_> = addresses.iter().map(ToString::to_string).collect();
                return Err(CallError::asked(format_args!(
                    "{asked} is no address of the NOS there; it has {}",
                    own.join(", ")
                )));
            }
            asked
        }
    };
    Ok(json!({"Address": IpNet::from(address).to_string(), "Data": {}}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_is_called_by_what_it_is() {
        for (text, pool) in [
            ("v4/default", (false, "default", None)),
            ("v6/red/up0", (true, "red", Some("up0"))),
        ] {
            let (ipv6, vrf, uplink) = pool;
            let pool = Pool {
                ipv6,
                vrf: vrf.to_owned(),
                uplink: uplink.map(str::to_owned),
            };
            assert_eq!(text.parse::<Pool>().unwrap(), pool);
            assert_eq!(pool.to_string(), text);
        }
        for bad in ["", "v4", "v5/default", "10.0.0.0/8"] {
            assert!(bad.parse::<Pool>().is_err(), "{bad}");
        }
    }
}
