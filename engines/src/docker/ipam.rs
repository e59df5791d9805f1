//! The IPAM driver: the addresses that containers share are the NOS's, and several get the same; those that are their
//! own come out of a pool of the daemon's, which keeps them until Docker releases them.
//!
//! A pool of Docker's is one family of a VRF, or of a pool of the daemon's. It is called by what it is, so that nothing has
//! to be remembered. Docker asks for each family alone: by the MAC address of the interface both are of one pair.

use core::net::IpAddr;

use ipnet::IpNet;
use nos_relay::control::api::snapshot::{Counters, Uplink};
use nos_shim::ident::MacAddr;
use serde_json::json;

use super::{Answer, Call, CallError, ENGINE, shown};
use crate::daemon::{Daemon, DaemonError};
use crate::name::is_of;

/// The one address space.
pub(super) const SPACE: &str = "nos-relay";

/// What Docker calls the MAC address of the interface that an address is for.
const MAC: &str = "com.docker.network.endpoint.macaddress";

/// What Docker calls the address by which a network is left.
const GATEWAY: &str = "com.docker.network.gateway";

/// What chooses among the addresses of the NOS.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pool {
    ipv6: bool,
    vrf: String,
    /// What is in it.
    of: Of,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Of {
    /// What the NOS has.
    Nos,
    /// What it has on an uplink.
    Uplink(String),
    /// Those of a pool of the daemon's.
    Pool(String),
}

/// `v4/VRF`, `v4/VRF/UPLINK` or `v4/VRF//POOL`.
impl core::fmt::Display for Pool {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let family = if self.ipv6 { "v6" } else { "v4" };
        write!(f, "{family}/{}", self.vrf)?;
        match &self.of {
            Of::Nos => Ok(()),
            Of::Uplink(uplink) => write!(f, "/{uplink}"),
            Of::Pool(pool) => write!(f, "//{pool}"),
        }
    }
}

impl core::str::FromStr for Pool {
    type Err = CallError;

    fn from_str(text: &str) -> Result<Self, CallError> {
        let mut parts = text.splitn(3, '/');
        let (family, vrf, rest) = (parts.next(), parts.next(), parts.next());
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
            of: match rest {
                None => Of::Nos,
                Some(rest) => match rest.strip_prefix('/') {
                    Some(pool) => Of::Pool(pool.to_owned()),
                    None => Of::Uplink(rest.to_owned()),
                },
            },
        })
    }
}

impl Pool {
    /// The addresses that the NOS has in it, each once, in its order.
    fn addresses(&self, counters: &Counters) -> Vec<IpAddr> {
        let here = |uplink: &&Uplink| {
            let named = match &self.of {
                Of::Uplink(name) => *name == uplink.name,
                Of::Nos | Of::Pool(_) => true,
            };
            uplink.link.vrf_name == self.vrf && named
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
        let of = match &self.of {
            Of::Uplink(uplink) => format!("uplink {} of VRF {}", shown(uplink), shown(&self.vrf)),
            Of::Nos | Of::Pool(_) => format!("VRF {}", shown(&self.vrf)),
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
        of: Of::Nos,
    };
    let mut chosen = Vec::new();
    for (key, value) in call.object("Options")? {
        let Some(text) = value.as_str() else {
            return Err(CallError::asked(format_args!(
                "--ipam-opt {}: is no text",
                shown(&key)
            )));
        };
        match key.as_str() {
            "vrf" => text.clone_into(&mut pool.vrf),
            "uplink" => chosen.push(Of::Uplink(text.to_owned())),
            "pool" => chosen.push(Of::Pool(text.to_owned())),
            _ => {
                return Err(CallError::asked(format_args!(
                    "--ipam-opt {}: there are vrf, uplink and pool",
                    shown(&key)
                )));
            }
        }
    }
    if chosen.len() > 1 {
        return Err(CallError::asked(
            "--ipam-opt uplink and pool: give one of the two",
        ));
    }
    pool.of = chosen.pop().unwrap_or(Of::Nos);
    if let Of::Pool(name) = &pool.of {
        let known = daemon.pools()?.into_iter().find(|row| row.name == *name);
        // Its VRF is no secret.
        pool.vrf = match known {
            Some(known) => known.vrf,
            None => {
                return Err(CallError::asked(format_args!(
                    "nos-relay has no pool {}",
                    shown(name)
                )));
            }
        };
    }
    let addresses = pool.addresses(&daemon.counters()?);
    let Some(&first) = addresses.first() else {
        return Err(pool.none());
    };
    let subnet = match call.optional("Pool")? {
        // Of an address of its own, the network that it is in.
        None if matches!(pool.of, Of::Pool(_)) => network_of(&pool, &daemon.counters()?, first),
        None => IpNet::from(first),
        // Docker takes `--ip` only of whom it was told a subnet by.
        Some(asked) => subnet(asked, &addresses)?,
    };
    Ok(json!({"PoolID": pool.to_string(), "Pool": subnet.to_string(), "Data": {}}))
}

/// A subnet that was asked for: one in which the NOS has an address.
fn subnet(asked: &str, addresses: &[IpAddr]) -> Result<IpNet, CallError> {
    let subnet: IpNet = asked
        .parse()
        .map_err(|_| CallError::asked(format_args!("--subnet {}: is no network", shown(asked))))?;
    match addresses.iter().any(|address| subnet.contains(address)) {
        true => Ok(subnet.trunc()),
        false => Err(CallError::asked(format_args!(
            "--subnet {subnet}: the NOS has no address there; leave it out"
        ))),
    }
}

/// The network of an address of the NOS.
fn network_of(pool: &Pool, counters: &Counters, address: IpAddr) -> IpNet {
    let here = counters
        .uplinks
        .iter()
        .filter(|uplink| uplink.link.vrf_name == pool.vrf);
    let mut nets = here.flat_map(|uplink| &uplink.addresses);
    let found = nets.find(|net| net.addr() == address);
    found.map_or_else(|| IpNet::from(address), IpNet::trunc)
}

/// An address of its own for a container, which is kept until Docker releases it.
fn allocate(daemon: &Daemon, pool: &Pool, name: &str, call: &Call) -> Answer {
    let kind = call.object("Options")?;
    let mac = kind.get(MAC).and_then(|it| it.as_str());
    let mac = mac.ok_or_else(|| CallError::asked("Docker does not say the MAC address"))?;
    let mac = mac.to_ascii_lowercase();
    let known = mac.parse::<MacAddr>().is_ok();
    if !known {
        return Err(CallError::asked(format_args!(
            "{} is no MAC address",
            shown(&mac)
        )));
    }
    let mut request = json!({
        "type": "pool-allocate", "pool": name, "vrf": pool.vrf, "holder": format!("{ENGINE}/{name}/{mac}"),
    });
    if let Some(address) = call.optional("Address")? {
        request["address"] = address.into();
    }
    let applied = daemon.change(request, None)?;
    let mut addresses = applied.addresses.into_iter();
    let address = addresses.find(|it| it.is_ipv6() == pool.ipv6);
    let address = address.ok_or_else(|| {
        let family = if pool.ipv6 { "IPv6" } else { "IPv4" };
        CallError::asked(format_args!(
            "pool {} has no {family} addresses",
            shown(name)
        ))
    })?;
    let counters = daemon.counters()?;
    let nets = counters.uplinks.iter().flat_map(|uplink| &uplink.addresses);
    let around = nets.map(IpNet::trunc).find(|net| net.contains(&address));
    let length = around.map_or_else(|| IpNet::from(address).prefix_len(), |net| net.prefix_len());
    Ok(json!({"Address": format!("{address}/{length}"), "Data": {}}))
}

pub(super) fn release_address(daemon: &Daemon, call: &Call) -> Answer {
    let pool: Pool = call.text("PoolID")?.parse()?;
    let Of::Pool(name) = &pool.of else {
        // The NOS's, which it has anyway.
        return Ok(json!({}));
    };
    let released: IpAddr = call
        .text("Address")?
        .parse()
        .map_err(|_| CallError::asked("Address is none"))?;
    let rows = daemon.pool_addresses()?.into_iter();
    let mut rows = rows.filter(|row| row.pool == *name && row.addresses.contains(&released));
    let holder = rows.find_map(|row| row.holder);
    let own = holder.filter(|holder| holder.starts_with(&format!("{ENGINE}/")));
    if let Some(holder) = own {
        daemon.change(
            json!({"type": "pool-release", "pool": name, "holder": holder}),
            None,
        )?;
    }
    Ok(json!({}))
}

/// Releases what is kept for endpoints that are no more. Nothing is asked for meanwhile.
pub(super) fn release_leaked(daemon: &Daemon) -> Result<(), DaemonError> {
    let kept: Vec<_> = daemon.pool_addresses()?.into_iter().collect();
    let ours = |holder: &str| {
        let (engine, rest) = holder.split_once('/')?;
        let mac = rest.rsplit_once('/')?.1.to_owned();
        (engine == ENGINE).then_some(mac)
    };
    let ours = kept.into_iter().filter_map(|row| {
        let holder = row.holder?;
        Some((row.pool, ours(&holder)?, holder))
    });
    let mut ours = ours.peekable();
    if ours.peek().is_none() {
        return Ok(());
    }
    let endpoints = daemon.attachments()?.into_iter();
    let endpoints = endpoints.filter(|row| is_of(ENGINE, &row.name));
    let macs: Vec<_> = endpoints.map(|row| row.container_mac.to_string()).collect();
    for (pool, _, holder) in ours.filter(|(_, mac, _)| !macs.contains(mac)) {
        daemon.change(
            json!({"type": "pool-release", "pool": pool, "holder": holder}),
            None,
        )?;
    }
    Ok(())
}

pub(super) fn request_address(daemon: &Daemon, call: &Call) -> Answer {
    let pool: Pool = call.text("PoolID")?.parse()?;
    let addresses = pool.addresses(&daemon.counters()?);
    let kind = call.object("Options")?;
    let is_gateway = kind.get("RequestAddressType").and_then(|it| it.as_str()) == Some(GATEWAY);
    if let (Of::Pool(name), false) = (&pool.of, is_gateway) {
        return allocate(daemon, &pool, name, call);
    }
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
            ("v4/default", (false, "default", Of::Nos)),
            ("v6/red/up0", (true, "red", Of::Uplink("up0".to_owned()))),
            ("v4/red//lan", (false, "red", Of::Pool("lan".to_owned()))),
        ] {
            let (ipv6, vrf, of) = pool;
            let pool = Pool {
                ipv6,
                vrf: vrf.to_owned(),
                of,
            };
            assert_eq!(text.parse::<Pool>().unwrap(), pool);
            assert_eq!(pool.to_string(), text);
        }
        for bad in ["", "v4", "v5/default", "10.0.0.0/8"] {
            assert!(bad.parse::<Pool>().is_err(), "{bad}");
        }
    }
}
