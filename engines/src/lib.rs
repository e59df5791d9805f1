//! Container engines on nos-relay.
//!
//! Goal: who starts containers with an engine gets them on the NOS's address, by the engine's own
//! means. A plugin translates: what an engine asks for becomes requests to the daemon's control
//! socket, and its answers become what the engine expects. A plugin keeps nothing: what is there is
//! the daemon's to know, so that nothing can differ from it.
//!
//! | module | what it holds | used by |
//! |---|---|---|
//! | [`daemon`] | the control socket as plugins use it: what is asked again, and for how long | all |
//! | [`endpoint`] | a container's interface on the NOS's address: joining, leaving, what is left of others | all |
//! | [`ports`] | ports without NAT: what `-p` means, what is allocated | all |
//! | [`annotations`] | what a pod's annotations choose | all |
//! | [`name`] | from an engine's identifiers to names of the daemon's containers | all |
//! | `process` | processes by descriptors | all |
//! | [`cni`] | the plugin `nos-relay-cni` | containerd, CRI-O, podman |
//! | [`docker`] | the plugin `nos-relay-docker` | Docker |

pub mod annotations;
pub mod cni;
pub mod daemon;
pub mod docker;
pub mod endpoint;
pub mod name;
pub mod ports;
mod process;
