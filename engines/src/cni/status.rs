//! `STATUS`: whether containers can be added.

use nos_relay::control::api::ControlError;
use nos_relay::control::api::snapshot::LinkState;

use super::configuration::Configuration;
use super::environment::Command;
use super::error::{CniError, Code};
use super::{Invocation, ipam};
use crate::daemon::{Daemon, DaemonError};

/// Asks the daemon, and looks for an uplink of the network's VRF that is up.
pub(super) fn status(invocation: &Invocation) -> Result<(), CniError> {
    let configuration = &invocation.configuration;
    let daemon = Daemon::at(&configuration.control);
    let counters = daemon.counters().map_err(|error| unavailable(&error))?;
    let vrf = vrf(&daemon, configuration)?;
    let mut uplinks = counters.uplinks.iter().map(|uplink| &uplink.link);
    let of_vrf: Vec<_> = uplinks
        .by_ref()
        .filter(|link| link.vrf_name == vrf)
        .collect();
    if of_vrf.is_empty() {
        let details = format!("no uplink is in VRF {vrf:?}");
        return Err(CniError::new(
            Code::Unavailable,
            "the network has no uplink",
            details,
        ));
    }
    if !of_vrf.iter().any(|link| link.state == LinkState::Up) {
        let links: Vec<_> = of_vrf
            .iter()
            .map(|link| format!("{} is {}", link.interface, link.state))
            .collect();
        return Err(CniError::new(
            Code::Limited,
            "no uplink is up",
            links.join(", "),
        ));
    }
    match &configuration.ipam {
        Some(kind) => ipam::delegate(invocation, kind, Command::Status).map(drop),
        None => Ok(()),
    }
}

/// The VRF in which containers are.
fn vrf(daemon: &Daemon, configuration: &Configuration) -> Result<String, CniError> {
    let Some(name) = &configuration.network else {
        let vrf = configuration.vrf.as_deref();
        return Ok(vrf.unwrap_or("default").to_owned());
    };
    let networks = daemon.networks().map_err(|error| unavailable(&error))?;
    let network = networks.into_iter().find(|network| network.name == *name);
    network.map(|network| network.vrf).ok_or_else(|| {
        let details = format!("the daemon has no network {name:?}");
        CniError::new(Code::Unavailable, "the network does not exist", details)
    })
}

/// A daemon that does not answer moves no packets either; one that says no may well do so.
fn unavailable(error: &DaemonError) -> CniError {
    let code = match error {
        DaemonError::Control(ControlError::NoDaemon(_) | ControlError::Timeout { .. }) => {
            Code::Limited
        }
        _ => Code::Unavailable,
    };
    CniError::new(code, "the daemon does not answer", error)
}
