//! Which frames of an interface a packet socket is shown, by their VLAN.
//!
//! # Theory of operation
//!
//! Several sockets may use one interface, each for another VLAN, and one for the frames without a tag. The
//! kernel takes a tag out of a frame before any socket is shown it, and a filter (classic BPF) can ask for
//! it. So each socket has a filter by which it gets its own frames, in a queue of its own: what floods one
//! VLAN makes no other wait, or lose anything.
//!
//! Frames that are nobody's (of a VLAN without a socket, or without a tag where nobody takes such) go to one
//! of the sockets as well, the **chief**, which drops and counts them. Its filter is told of the others'
//! VLANs, and told anew when these change; the kernel exchanges filters as wholes.
//!
//! A socket that is alone and takes frames without tags has no filter: it is the chief of all there are.

use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nos_shim::vlan::{TPID_CUSTOMER, VlanId};

use super::socket::{self, FROM_KERNEL, instruction};

/// Which of the frames of an interface a socket is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shown {
    /// Those of this VLAN.
    Only(VlanId),
    /// All but those of these VLANs.
    AllBut(Vec<VlanId>),
}

/// Octets of the classic BPF: what it loads besides octets of the frame.
const AUXILIARY: u32 = libc::SKF_AD_OFF.cast_unsigned();
const TAG: u32 = AUXILIARY + libc::SKF_AD_VLAN_TAG.cast_unsigned();
const HAS_TAG: u32 = AUXILIARY + libc::SKF_AD_VLAN_TAG_PRESENT.cast_unsigned();
/// Linux 4.1; libc has no name for it on all targets.
const TPID: u32 = AUXILIARY + 60;

// linux/bpf_common.h
const LOAD: u16 = 0x20;
const LOAD_OCTET: u16 = 0x30;
const AND: u16 = 0x54;
const IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;

/// The program that shows a socket these frames, but none that the kernel has sent.
fn program(shown: &Shown) -> Vec<libc::sock_filter> {
    let (take, leave) = (
        instruction(RETURN, 0, 0, u32::MAX),
        instruction(RETURN, 0, 0, 0),
    );
    let is = |value: u32| instruction(IF_EQUAL, 0, 1, value);
    let is_not = |value: u32| instruction(IF_EQUAL, 1, 0, value);
    // Whose frames have no tag of a customer's VLAN.
    let untagged = match shown {
        Shown::Only(_) => leave,
        Shown::AllBut(_) => take,
    };
    let mut program = vec![
        instruction(LOAD_OCTET, 0, 0, socket::PACKET_TYPE),
        is(FROM_KERNEL),
        leave,
        instruction(LOAD, 0, 0, HAS_TAG),
        is(0),
        untagged,
        instruction(LOAD, 0, 0, TPID),
        is_not(TPID_CUSTOMER.into()),
        untagged,
        instruction(LOAD, 0, 0, TAG),
        instruction(AND, 0, 0, 0xfff),
    ];
    match shown {
        Shown::Only(vlan) => program.extend([is(vlan.get().into()), take, leave]),
        Shown::AllBut(others) => {
            program.extend(
                others
                    .iter()
                    .flat_map(|vlan| [is(vlan.get().into()), leave]),
            );
            program.push(take);
        }
    }
    program
}

/// Has a socket be shown these frames from now on.
///
/// # Errors
///
/// The kernel has no memory for the filter, or the program is longer than it takes (4096 instructions).
pub(in super::super) fn show(fd: &OwnedFd, shown: &Shown) -> Result<(), Errno> {
    match shown {
        Shown::AllBut(others) if others.is_empty() => socket::show_all(fd),
        _ => socket::attach(fd, &mut program(shown)),
    }
}
