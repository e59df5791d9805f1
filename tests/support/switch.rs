//! A switch of the kernel's own: eBPF programs behind interfaces, which put tags of VLANs into frames and
//! take them out.
//!
//! The kernel does it by the functions that its VLAN interfaces and bridges use, also to super-frames, so
//! that hosts behind the switch are ordinary ones, and what they get is what a VLAN interface would.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends where its network cannot be built"
)]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nos_relay::lab::testbed::{LabNamespace, veth};

/// A namespace with a trunk, and with a port for each VLAN.
#[derive(Debug)]
pub(crate) struct Switch {
    pub(crate) namespace: LabNamespace,
    /// As long as these are open, frames pass.
    links: Vec<OwnedFd>,
}

/// Where frames of a VLAN come out, without their tag.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Access<'a> {
    pub(crate) vlan: u16,
    /// Of the tags that frames get which come in here: 0 to 7.
    pub(crate) priority: u16,
    pub(crate) host: (&'a LabNamespace, &'a str),
}

impl Switch {
    /// Joins interface `trunk`, which is made, to hosts' interfaces, which are made too. `None` where the
    /// kernel does not have what it takes (tcx: Linux 6.6).
    pub(crate) fn new(trunk: (&LabNamespace, &str), ports: &[Access<'_>]) -> Option<Self> {
        let namespace = LabNamespace::new("S").unwrap();
        // It does not speak for itself.
        let keys = [
            "net/ipv6/conf/default/disable_ipv6",
            "net/ipv6/conf/all/disable_ipv6",
        ];
        for key in keys {
            namespace.sysctl(key, "1").unwrap();
        }
        veth((&namespace, "trunk"), trunk).unwrap();
        Self::behind((namespace, "trunk"), ports)
    }

    /// The same around a trunk that is there.
    pub(crate) fn behind(
        (namespace, trunk): (LabNamespace, &str),
        ports: &[Access<'_>],
    ) -> Option<Self> {
        namespace.set_up(trunk).unwrap();
        let index = |name: &str| namespace.link(name).unwrap().unwrap().index;
        let to_trunk = index(trunk);
        let (mut links, mut outwards) = (Vec::new(), Vec::new());
        for port in ports {
            let name = format!("p{}", port.vlan);
            veth((&namespace, &name), port.host).unwrap();
            outwards.push((port.vlan, index(&name)));
            let tag = port.priority << 13 | port.vlan;
            links.push((index(&name), inwards(tag, to_trunk)));
        }
        links.push((to_trunk, outwards_by(&outwards)));
        let attach = |(index, program): &(u32, Vec<Instruction>)| attach(*index, program);
        let links = namespace.run(|| links.iter().map(attach).collect::<Result<Vec<_>, _>>());
        match links.unwrap() {
            Ok(links) => Some(Self { namespace, links }),
            Err(errno) => {
                super::skip(&format!("no eBPF programs behind interfaces: {errno}"));
                None
            }
        }
    }
}

impl Switch {
    /// Has it switch for as long as the process lives, or its interfaces do. Returns where it is.
    pub(crate) fn keep(self) -> LabNamespace {
        self.links.into_iter().for_each(std::mem::forget);
        self.namespace
    }
}

/// `struct bpf_insn`
#[repr(C)]
#[derive(Clone, Copy)]
struct Instruction {
    code: u8,
    /// Destination, and above it source.
    registers: u8,
    offset: i16,
    value: i32,
}

const fn op(code: u8, destination: u8, source: u8, offset: i16, value: i32) -> Instruction {
    Instruction {
        code,
        registers: source << 4 | destination,
        offset,
        value,
    }
}

// linux/bpf.h
const MOVE: u8 = 0xb7;
const MOVE_REGISTER: u8 = 0xbf;
const AND: u8 = 0x57;
const LOAD: u8 = 0x61;
const UNLESS_EQUAL: u8 = 0x55;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
const VLAN_PUSH: i32 = 18;
const VLAN_POP: i32 = 19;
const REDIRECT: i32 = 23;
/// Of `struct __sk_buff`.
const VLAN_PRESENT: i16 = 20;
const VLAN_TCI: i16 = 24;
const VLAN_PROTO: i16 = 28;
/// `TC_ACT_SHOT`
const DROP: i32 = 2;

/// Tags what comes in, and sends it out of the trunk.
fn inwards(tag: u16, trunk: u32) -> Vec<Instruction> {
    let customer = i32::from(0x8100_u16.to_be());
    vec![
        op(MOVE, 2, 0, 0, customer),
        op(MOVE, 3, 0, 0, tag.into()),
        op(CALL, 0, 0, 0, VLAN_PUSH),
        op(MOVE, 1, 0, 0, trunk.cast_signed()),
        op(MOVE, 2, 0, 0, 0),
        op(CALL, 0, 0, 0, REDIRECT),
        op(EXIT, 0, 0, 0, 0),
    ]
}

/// Takes the tag out of what comes in by the trunk, and sends it out of the port of its VLAN.
fn outwards_by(ports: &[(u16, u32)]) -> Vec<Instruction> {
    let to = |&(vlan, port): &(u16, u32)| {
        [
            op(UNLESS_EQUAL, 7, 0, 6, vlan.into()),
            op(MOVE_REGISTER, 1, 6, 0, 0),
            op(CALL, 0, 0, 0, VLAN_POP),
            op(MOVE, 1, 0, 0, port.cast_signed()),
            op(MOVE, 2, 0, 0, 0),
            op(CALL, 0, 0, 0, REDIRECT),
            op(EXIT, 0, 0, 0, 0),
        ]
    };
    let drop = [op(MOVE, 0, 0, 0, DROP), op(EXIT, 0, 0, 0, 0)];
    let mut program = vec![
        op(MOVE_REGISTER, 6, 1, 0, 0),
        op(LOAD, 7, 6, VLAN_PRESENT, 0),
        op(UNLESS_EQUAL, 7, 0, 2, 0),
    ];
    program.extend(drop);
    program.extend([
        op(LOAD, 7, 6, VLAN_PROTO, 0),
        op(AND, 7, 0, 0, 0xffff),
        // Any other is above all numbers of VLANs.
        op(UNLESS_EQUAL, 7, 0, 2, i32::from(0x8100_u16.to_be())),
        op(LOAD, 7, 6, VLAN_TCI, 0),
        op(AND, 7, 0, 0, 0xfff),
    ]);
    program.extend(ports.iter().flat_map(to));
    program.extend(drop);
    program
}

/// `union bpf_attr`, as `BPF_PROG_LOAD` has it.
#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    unused: [u64; 13],
}

/// The same for `BPF_LINK_CREATE`.
#[repr(C)]
struct Link {
    program: u32,
    interface: u32,
    place: u32,
    unused: [u32; 13],
}

/// Has a program deal with what comes in by an interface.
fn attach(interface: u32, program: &[Instruction]) -> Result<OwnedFd, Errno> {
    /// `BPF_PROG_TYPE_SCHED_CLS`
    const BEHIND_INTERFACE: u32 = 3;
    /// `BPF_TCX_INGRESS`
    const INGRESS: u32 = 46;
    const PROG_LOAD: libc::c_long = 5;
    const LINK_CREATE: libc::c_long = 28;
    let load = Load {
        kind: BEHIND_INTERFACE,
        count: u32::try_from(program.len()).unwrap(),
        instructions: program.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        unused: [0; 13],
    };
    let program = bpf(PROG_LOAD, &load)?;
    let link = Link {
        program: u32::try_from(program.as_raw_fd()).unwrap(),
        interface,
        place: INGRESS,
        unused: [0; 13],
    };
    bpf(LINK_CREATE, &link)
}

fn bpf<T>(command: libc::c_long, attributes: &T) -> Result<OwnedFd, Errno> {
    // SAFETY: the kernel reads as many octets as it is told, and what they point to; all outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            core::ptr::from_ref(attributes),
            size_of::<T>(),
        )
    };
    let fd = Errno::result(result)?;
    // SAFETY: the kernel has just made the descriptor, for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).unwrap()) })
}
