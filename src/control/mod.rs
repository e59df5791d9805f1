//! The control plane: plans what has to change, applies it, and heals what went away.
//!
//! | module | what it holds |
//! |---|---|
//! | [`config`] | configuration: text in, validated typed entries out |
//! | [`kernel`] | the floor: namespaces, netlink, sysctls, taking interfaces over |
//! | [`attach`] | a container's side of its link |
//! | [`api`] | the control socket: protocol, server, client |
//! | [`memif`] | sockets of interfaces on shared memory |
//! | [`plan`] | what has to be done to get from one state to another |
//! | [`pools`] | pools of addresses, and who has which |
//! | [`handover`] | what one process hands over to the next |
//! | [`store`] | what outlives the process |
//! | `socket_file` | the file of a socket at which we listen, and what is left of others |
//! | [`daemon`] | the process |

pub mod api;
pub mod attach;
pub mod config;
pub mod daemon;
pub mod handover;
pub mod kernel;
pub mod memif;
pub mod plan;
pub mod pools;
mod socket_file;
pub mod store;
