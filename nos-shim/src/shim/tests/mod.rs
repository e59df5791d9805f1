//! Configuration of the NOS, and what follows from it.

mod registration;
mod uplinks;
