//! `DEL` and `GC`: interfaces go.

use super::environment::Command;
use super::error::CniError;
use super::{Invocation, ipam};
use crate::daemon::Daemon;
use crate::endpoint::{collect, leave};

/// Detaches one container, if it is attached. Its address is given back after that, so that nobody
/// gets it while somebody has it.
pub(super) fn del(invocation: &Invocation) -> Result<(), CniError> {
    let configuration = &invocation.configuration;
    let environment = &invocation.environment;
    let name = configuration
        .names
        .container(&environment.container, &environment.interface)
        .map_err(CniError::configuration)?;
    leave(&Daemon::at(&configuration.control), &name)?;
    delegated(invocation)
}

/// Detaches what this network has attached and the engine has no more.
pub(super) fn gc(invocation: &Invocation) -> Result<(), CniError> {
    let configuration = &invocation.configuration;
    let names = &configuration.names;
    let valid = configuration.valid()?;
    let keep = valid.iter().map(|(container, interface)| {
        let name = names.container(container, interface);
        name.map_err(|error| CniError::configuration(format!("cni.dev/valid-attachments: {error}")))
    });
    let keep: Vec<_> = keep.collect::<Result<_, _>>()?;
    let daemon = Daemon::at(&configuration.control);
    let collected = collect(&daemon, &names.prefix(), &keep).map(drop);
    // Whatever became of ours, the other plugin has something to clean up, too.
    let others = delegated(invocation);
    collected?;
    others
}

fn delegated(invocation: &Invocation) -> Result<(), CniError> {
    let command: Command = invocation.environment.command;
    match &invocation.configuration.ipam {
        Some(kind) => ipam::delegate(invocation, kind, command).map(drop),
        None => Ok(()),
    }
}
