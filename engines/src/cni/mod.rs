//! The CNI plugin: specification 1.1.0, and down to 0.4.0.
//!
//! # Theory of operation
//!
//! An engine runs the plugin with the command in its environment and the network configuration on its
//! standard input, and reads the result, or an error, from its standard output. A run is one
//! [`Invocation`]: it is read whole before anything is done.
//!
//! | command | what is done |
//! |---|---|
//! | `ADD` | the container is attached ([`crate::endpoint`]); the result has what the daemon says of it |
//! | `DEL` | it is detached, if it is attached; the namespace is not looked at |
//! | `CHECK` | what the daemon and the namespace have is compared with the result of `ADD` |
//! | `GC` | what is attached by this network and is not in the engine's list is detached |
//! | `STATUS` | the daemon is asked, and whether an uplink is up |
//! | `VERSION` | the versions of the specification are told |
//!
//! The addresses are the NOS's. A delegated `ipam` plugin chooses which of them a container gets.

mod add;
mod check;
mod configuration;
mod environment;
mod error;
mod ipam;
mod remove;
mod reply;
mod section;
mod status;
mod version;

use std::ffi::OsString;
use std::io;

use serde_json::json;

pub use error::{CniError, Code};
pub use version::SUPPORTED;

use configuration::Configuration;
use environment::{Command, Environment};
use version::Version;

/// Octets of the longest network configuration that is read.
pub const MAX_INPUT: u64 = 4 << 20;

/// What names of containers begin with that this plugin has attached.
pub const ENGINE: &str = "cni";

/// One run of the plugin, as the engine asks for it.
#[derive(Debug)]
struct Invocation {
    environment: Environment,
    configuration: Configuration,
}

/// Does what an engine asks for. `variable` gives the value of a variable of the environment.
///
/// # Errors
///
/// Both outcomes are what is to be written to the standard output; an error is one in CNI's form.
pub fn invoke(
    variable: &dyn Fn(&str) -> Option<OsString>,
    input: io::Result<Vec<u8>>,
) -> Result<String, String> {
    let mut spoken = Version::latest();
    run(variable, input, &mut spoken).map_err(|error| error.to_json(spoken) + "\n")
}

fn run(
    variable: &dyn Fn(&str) -> Option<OsString>,
    input: io::Result<Vec<u8>>,
    spoken: &mut Version,
) -> Result<String, CniError> {
    let command = environment::command(variable)?;
    let input = input.map_err(|error| {
        CniError::new(Code::Io, "the network configuration cannot be read", error)
    })?;
    if input.len() as u64 > MAX_INPUT {
        let details = format!("it has more than {MAX_INPUT} octets");
        return Err(CniError::new(
            Code::Decoding,
            "the network configuration is too long",
            details,
        ));
    }
    if command == Command::Version {
        return version::answer(&input);
    }
    let configuration = Configuration::read(&input)?;
    *spoken = configuration.version;
    if !configuration.version.has(command) {
        return Err(version::too_old(configuration.version, command));
    }
    let environment = Environment::read(command, variable)?;
    carry_out(&Invocation {
        environment,
        configuration,
    })
}

fn carry_out(invocation: &Invocation) -> Result<String, CniError> {
    match invocation.environment.command {
        Command::Add => add::add(invocation).map(|result| result.to_string() + "\n"),
        Command::Del => remove::del(invocation).map(|()| String::new()),
        Command::Check => check::check(invocation).map(|()| String::new()),
        Command::Gc => remove::gc(invocation).map(|()| String::new()),
        Command::Status => status::status(invocation).map(|()| String::new()),
        Command::Version => Ok(json!({}).to_string()),
    }
}
