//! The pipeline as a whole, with a relay that does what the test says.

mod east_west;
mod host;
mod link_local;
mod oversize;
mod policy;
mod redirects;
mod rewrites;
mod upstream;
