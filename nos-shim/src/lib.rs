//! A model of a user-mode network operating system, and the contract by which nos-relay joins
//! containers to it.
//!
//! # Theory of operation
//!
//! The crate does no I/O, reads no clock and starts no thread. Whoever has devices hands in what
//! they received, says what time it is, and takes out what is to be sent:
//!
//! ```text
//! uplinks ──► handle_burst ──┐                       ┌──► poll_transmit ──► uplinks
//!                            ├─► Shim: whose is it? ─┤
//! relay ══ring══► poll_channel                       └══ring══► relay ──► containers
//!                            │
//!        poll_at ◄── time ───┴── handle_timeout
//! ```
//!
//! A frame is a handle to a buffer of a pool ([`frame`]). It is parsed once ([`packet`]); what was
//! learnt travels with it, through the rings as well ([`channel`]). Nothing is copied between the
//! device that a frame came from and the one that it leaves by. Super-frames and checksums that are
//! left to the device are normal, and made good where a device needs it ([`offload`]).
//!
//! Who owns a packet to an address that the NOS shares with containers is told by protocol and port
//! ([`ports`]), by echo identifier ([`flows`]), by the quoted packet of an ICMP error ([`icmp`]), or
//! by the first fragment ([`fragments`]); else the sender gets the answer of a host where nobody
//! listens ([`reset`], [`icmp`]). The order of these questions is in [`forward`].
//!
//! Every packet is accounted for: each one that comes in or is made here is sent, consumed, held or
//! dropped for a named reason ([`mod@drop`]), and the sum is tested to balance.
//!
//! The feature `stack`, on by default, is the NOS's own services on smoltcp's TCP. A NOS that has a
//! stack of its own leaves it out, and may use [`channel`], [`packet`] and [`ports`] alone.
//! `examples/without_devices.rs` shows all of it in memory.
//!
//! # Modules
//!
//! | module | one line |
//! |---|---|
//! | [`ident`], [`time`] | identifiers, addresses of Ethernet; instants and durations |
//! | [`id_table`], [`page`] | tables by identifier; reading long tables in parts |
//! | [`frame`] | buffers in pools, and the offload state of what is in them |
//! | [`packet`] | Ethernet, IP and transport headers, validated once |
//! | [`vlan`] | 802.1Q tags, which are taken off before that |
//! | [`checksum`], [`offload`], [`fragment_ipv6`] | sums; segmentation, completion and fragmentation on output |
//! | [`mod@drop`] | why packets are dropped, and the ledger |
//! | [`channel`] | the contract with the relay: rings of bursts, registrations, doorbell |
//! | [`ports`] | who owns which ports of which address |
//! | [`flows`] | flows that ports cannot tell: echo identifiers |
//! | [`fragments`], [`reassembly`] | owners of fragments; datagrams to the NOS made whole |
//! | [`martian`], [`ipv4_options`], [`ipv6_extensions`] | what a host looks at before it takes a packet |
//! | [`icmp`], [`reset`], [`rate_limit`] | errors, answers to queries, TCP resets, and how many |
//! | [`originate`] | headers of what the NOS says itself |
//! | [`arp`], [`ndp`], [`neighbor`] | the messages; who is where on an uplink |
//! | [`multicast`] | which groups the NOS is in, and how others learn of it |
//! | [`fib`] | where packets go: longest match, next hops, ECMP |
//! | [`forward`] | the way of a packet through all of these |
//! | [`uplink`] | interfaces of the NOS towards the network |
//! | [`share`] | how the buffers are divided, and what one owner may hold of them |
//! | [`transmit`] | queues towards devices |
//! | [`services`], `local` | what the NOS itself offers; the stack that serves it (feature `stack`) |
//! | [`shim`] | the NOS as a whole |

#![cfg_attr(
    test,
    allow(
        clippy::cast_possible_truncation,
        reason = "test data is made by counting"
    )
)]

// What the fuzz targets check is a part of the tests, and calls the crate by its name.
#[cfg(test)]
extern crate self as nos_shim;

pub mod address_set;
pub mod arp;
pub mod channel;
pub mod checksum;
pub mod drop;
pub mod fib;
pub mod flows;
pub mod forward;
pub mod fragment_ipv6;
pub mod fragments;
pub mod frame;
pub mod icmp;
pub mod id_table;
pub mod ident;
mod index;
pub mod ipv4_options;
pub mod ipv6_extensions;
mod links;
#[cfg(feature = "stack")]
pub mod local;
pub mod martian;
pub mod multicast;
pub mod ndp;
pub mod neighbor;
pub mod offload;
mod origin;
pub mod originate;
mod output;
pub mod packet;
pub mod page;
mod parsed;
pub mod ports;
mod prefetch;
pub mod prefix_set;
pub mod rate_limit;
pub mod reassembly;
pub mod reset;
pub mod services;
pub mod share;
pub mod shim;
mod sync;
mod tables;
#[cfg(test)]
mod test_packets;
#[cfg(test)]
mod test_tunnels;
pub mod time;
pub mod transmit;
mod tunnel;
pub mod uplink;
pub mod vlan;
mod worker;
