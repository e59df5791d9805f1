//! Configuration of the NOS, and what follows from it.

mod groups;
mod registration;
mod uplinks;
mod vrfs;
