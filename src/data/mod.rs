//! The data path: threads that read, decide, write and wait, and do nothing else.
//!
//! | module | what it holds |
//! |---|---|
//! | [`device`] | TAP, plain TAP, packet socket, memory pair, capture; what the control side asks of them |
//! | [`link`], [`responder`], [`guard`], [`port_set`] | a container's link: what is answered, what may be sent |
//! | [`relay`] | the container side of the data path |
//! | [`engine`], [`event_loop`] | what a data thread drives, and how |
//! | [`nos_port`] | what a NOS gets that is not on a data thread |

pub mod device;
pub mod engine;
pub mod event_loop;
pub mod guard;
pub mod link;
pub mod nos_port;
pub mod port_set;
pub mod relay;
pub mod responder;
