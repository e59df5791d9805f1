//! `STATUS`: whether containers can be added.

use nos_relay::control::api::ControlError;
use nos_relay::control::api::snapshot::LinkState;

use super::environment::Command;
use super::error::{CniError, Code};
use super::{Invocation, ipam};
use crate::daemon::{Daemon, DaemonError};

/// Asks the daemon, and looks for an uplink of the network's VRF that is up.
pub(super) fn status(invocation: &Invocation) -> Result<(), CniError> {
    let configuration = &invocation.configuration;
    let counters = Daemon::at(&configuration.control).counters();
    let counters = counters.map_err(|error| unavailable(&error))?;
    let vrf = configuration.vrf.as_deref().unwrap_or("default");
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
