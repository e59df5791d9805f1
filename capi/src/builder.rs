//! What a relay is started with.

use core::ffi::{c_char, c_int};
use core::mem;
use std::path::PathBuf;

use ::nos_relay::Relay;
use ::nos_relay::embed::{Builder, Container, Device, Interface, Netns, RelayError};
use ipnet::IpNet;
use parking_lot::Mutex;

use crate::failure::{Code, Failure, call};
use crate::handle::{Kind, Shared};
use crate::input::{null, optional_text, place, sized, text, value};
use crate::port::{self, nos_relay_port};
use crate::registration::{addresses_of, prefixes_of};
use crate::relay::{self, nos_relay, nos_relay_runner};

/// What a relay is started with. It may be used for several, one after the other.
#[derive(Debug)]
pub struct nos_relay_builder {
    _opaque: (),
}

/// A TAP inside of the container's namespace.
pub const NOS_RELAY_TAP: u32 = 0;
/// A veth pair, with a packet socket on the host's end.
pub const NOS_RELAY_VETH: u32 = 1;
/// Checksum and segmentation offload may be used.
pub const NOS_RELAY_OFFLOAD: u32 = 0;
/// Containers send and get packets as they are on a wire.
pub const NOS_RELAY_NO_OFFLOAD: u32 = 1;

/// An interface of the NOS, whose addresses containers may use. Bounds are those of `[[uplink]]` in
/// docs/configuration.md.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct nos_relay_interface {
    /// sizeof(nos_relay_interface).
    pub size: usize,
    /// What operators call it, unique.
    pub name: *const c_char,
    /// Its addresses with their networks' prefix lengths, separated by blanks:
    /// "203.0.113.1/24 2001:db8:1::1/64".
    pub addresses: *const c_char,
    /// Octets of the longest IP packet; 0 is 1500.
    pub mtu: u16,
    /// Its VRF; NULL is "default".
    pub vrf: *const c_char,
}

/// A container to attach. Names, ports and bounds are those of `[[container]]` in docs/configuration.md.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct nos_relay_container {
    /// sizeof(nos_relay_container).
    pub size: usize,
    /// What operators call it, unique.
    pub name: *const c_char,
    /// A file that stands for its network namespace, absolute; or NULL, and `pid` says a process in it.
    pub netns: *const c_char,
    /// A process in its network namespace; 0 if `netns` is not NULL.
    pub pid: u32,
    /// NOS_RELAY_TAP or NOS_RELAY_VETH.
    pub device: u32,
    /// The name of its interface; NULL is "eth0".
    pub interface: *const c_char,
    /// The addresses of the NOS that it shares, separated by blanks; NULL is all of its VRF.
    pub addresses: *const c_char,
    /// TCP ports on which it can be reached, as "179,20000-20999"; NULL is none.
    pub tcp: *const c_char,
    /// UDP ports on which it can be reached; NULL is none.
    pub udp: *const c_char,
    /// Ports from which it opens flows of its own; NULL is none.
    pub ephemeral: *const c_char,
    /// Its VRF; NULL is "default".
    pub vrf: *const c_char,
    /// NOS_RELAY_OFFLOAD or NOS_RELAY_NO_OFFLOAD.
    pub offload: u32,
}

static BUILDERS: Shared<Mutex<Builder>> = Shared::new(Kind::Builder);

fn get(builder: *mut nos_relay_builder) -> Result<std::sync::Arc<Mutex<Builder>>, Failure> {
    BUILDERS.get(builder.addr(), "builder")
}

fn change(
    builder: *mut nos_relay_builder,
    change: impl FnOnce(Builder) -> Builder,
) -> Result<(), Failure> {
    let builder = get(builder)?;
    let builder = &mut *builder.lock();
    *builder = change(mem::take(builder));
    Ok(())
}

/// A builder for the configuration as it is.
pub(crate) fn cloned(builder: *mut nos_relay_builder) -> Result<Builder, Failure> {
    Ok(get(builder)?.lock().clone())
}

/// Makes a builder, which nos_relay_builder_free() frees.
///
/// Threads: any. A builder may be used by several threads.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_builder_new(builder: *mut *mut nos_relay_builder) -> c_int {
    call(|| {
        // SAFETY: it is where the result goes.
        let place = unsafe { place(builder, "builder") }?;
        let handle = BUILDERS.add(Mutex::new(Relay::builder()));
        place.write(core::ptr::without_provenance_mut(handle));
        Ok(())
    })
}

/// Frees a builder. Relays that were started with it do not mind. NULL is NOS_RELAY_E_NULL, here and in all
/// functions that free.
///
/// Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_builder_free(builder: *mut nos_relay_builder) -> c_int {
    call(|| BUILDERS.remove(builder.addr(), "builder").map(drop))
}

/// Sets what a configuration file has (docs/configuration.md), besides what the other calls say; another
/// text replaces it. An interface of the NOS is an `[[uplink]]` with device = "nos". It is checked when
/// the relay starts.
///
/// Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_builder_config(
    builder: *mut nos_relay_builder,
    toml: *const c_char,
) -> c_int {
    call(|| {
        // SAFETY: it is text.
        let toml = unsafe { text(toml, "toml") }?;
        change(builder, |builder| builder.config(toml))
    })
}

/// Adds an interface of the NOS; at least one is needed.
///
/// Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_builder_interface(
    builder: *mut nos_relay_builder,
    interface: *const nos_relay_interface,
) -> c_int {
    call(|| {
        // SAFETY: it begins with its size, and its pointers are texts.
        let read = unsafe { read_interface(interface) }?;
        let mut interface = Interface::new(read.name, &read.addresses);
        if let Some(mtu) = read.mtu {
            interface = interface.mtu(mtu);
        }
        if let Some(vrf) = read.vrf {
            interface = interface.vrf(vrf);
        }
        change(builder, |builder| builder.interface(interface))
    })
}

/// What an interface is made of.
pub(crate) struct InterfaceRead<'a> {
    pub(crate) name: &'a str,
    pub(crate) addresses: Vec<IpNet>,
    pub(crate) mtu: Option<u16>,
    pub(crate) vrf: Option<&'a str>,
}

/// # Safety
///
/// It begins with its size, and its pointers are NULL or texts, which stay for as long as this is used.
pub(crate) unsafe fn read_interface<'a>(
    interface: *const nos_relay_interface,
) -> Result<InterfaceRead<'a>, Failure> {
    // SAFETY: as the caller says, here and below.
    let from = unsafe { sized(interface, "interface") }?;
    // SAFETY: as above.
    let (name, addresses, vrf) = unsafe {
        (
            text(from.name, "interface->name")?,
            text(from.addresses, "interface->addresses")?,
            optional_text(from.vrf, "interface->vrf")?,
        )
    };
    Ok(InterfaceRead {
        name,
        addresses: prefixes_of(addresses, "interface->addresses")?,
        mtu: Some(from.mtu).filter(|&mtu| mtu != 0),
        vrf,
    })
}

/// Adds a container.
///
/// Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_builder_container(
    builder: *mut nos_relay_builder,
    container: *const nos_relay_container,
) -> c_int {
    call(|| {
        // SAFETY: as `read_container` wants it.
        let container = unsafe { read_container(container) }?;
        change(builder, |builder| builder.container(container))
    })
}

/// # Safety
///
/// It begins with its size, and its pointers are NULL or texts.
pub(crate) unsafe fn read_container(
    container: *const nos_relay_container,
) -> Result<Container, Failure> {
    // SAFETY: as the caller says, here and below.
    let from = unsafe { sized(container, "container") }?;
    // SAFETY: as above.
    let (name, path) = unsafe {
        (
            text(from.name, "container->name")?,
            optional_text(from.netns, "container->netns")?,
        )
    };
    let netns = match (path, from.pid) {
        (Some(path), 0) => Netns::Path(PathBuf::from(path)),
        (Some(_), _) => return Err(value("container->pid", "there is a netns already")),
        (None, 0) => {
            return Err(null(
                "container->netns, and container->pid is 0: one of them",
            ));
        }
        (None, pid) => Netns::Pid(pid),
    };
    let device = match from.device {
        NOS_RELAY_TAP => Device::Tap,
        NOS_RELAY_VETH => Device::Veth,
        other => {
            let what = format_args!("{other} is neither NOS_RELAY_TAP nor NOS_RELAY_VETH");
            return Err(value("container->device", what));
        }
    };
    let offload = match from.offload {
        NOS_RELAY_OFFLOAD => true,
        NOS_RELAY_NO_OFFLOAD => false,
        other => {
            let what =
                format_args!("{other} is neither NOS_RELAY_OFFLOAD nor NOS_RELAY_NO_OFFLOAD");
            return Err(value("container->offload", what));
        }
    };
    let container = Container::new(name, netns).device(device).offload(offload);
    // SAFETY: as above.
    unsafe { read_container_texts(container, &from) }
}

/// # Safety
///
/// Its pointers are NULL or texts.
unsafe fn read_container_texts(
    mut container: Container,
    from: &nos_relay_container,
) -> Result<Container, Failure> {
    type Set = fn(Container, &str) -> Container;
    let texts: [(_, _, Set); 5] = [
        (from.interface, "container->interface", Container::interface),
        (from.tcp, "container->tcp", Container::tcp),
        (from.udp, "container->udp", Container::udp),
        (from.ephemeral, "container->ephemeral", Container::ephemeral),
        (from.vrf, "container->vrf", Container::vrf),
    ];
    for (pointer, name, set) in texts {
        // SAFETY: as the caller says.
        if let Some(text) = unsafe { optional_text(pointer, name) }? {
            container = set(container, text);
        }
    }
    // SAFETY: as the caller says.
    if let Some(text) = unsafe { optional_text(from.addresses, "container->addresses") }? {
        container = container.addresses(&addresses_of(text, "container->addresses")?);
    }
    Ok(container)
}

/// Sets how many frame buffers there are, instead of 2048: 256 to 65536.
///
/// Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_builder_buffers(
    builder: *mut nos_relay_builder,
    count: u32,
) -> c_int {
    call(|| change(builder, |builder| builder.buffers(count)))
}

/// Sets how many bursts each ring holds, instead of 8: 8 to 4096.
///
/// Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_builder_ring(
    builder: *mut nos_relay_builder,
    bursts: u32,
) -> c_int {
    call(|| change(builder, |builder| builder.ring(bursts)))
}

/// Has the relay listen on a control socket (docs/control.md).
///
/// Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_builder_control(
    builder: *mut nos_relay_builder,
    path: *const c_char,
) -> c_int {
    call(|| {
        // SAFETY: it is text.
        let path = unsafe { text(path, "path") }?;
        change(builder, |builder| builder.control(path))
    })
}

/// Sets a directory in which what is registered at run time outlives the relay.
///
/// Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_builder_state(
    builder: *mut nos_relay_builder,
    directory: *const c_char,
) -> c_int {
    call(|| {
        // SAFETY: it is text.
        let directory = unsafe { text(directory, "directory") }?;
        change(builder, |builder| builder.state(directory))
    })
}

/// Has the relay end at once where a container cannot be attached at the start, instead of waiting for
/// what is missing.
///
/// Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_builder_strict(builder: *mut nos_relay_builder) -> c_int {
    call(|| change(builder, Builder::strict))
}

pub(crate) fn relay_failure(error: &RelayError) -> Failure {
    let code = match error {
        RelayError::Daemon(::nos_relay::embed::DaemonError::Config(_)) => Code::NOS_RELAY_E_CONFIG,
        RelayError::Daemon(_) | RelayError::Thread(_) => Code::NOS_RELAY_E_SYSTEM,
        RelayError::Ended => Code::NOS_RELAY_E_ENDED,
        RelayError::NotReady(_) => Code::NOS_RELAY_E_TIMEOUT,
        RelayError::Panicked => Code::NOS_RELAY_E_INTERNAL,
    };
    Failure::new(code, error)
}

/// Starts a relay, with a control thread of its own. Containers are attached behind this, for which the NOS
/// has to answer: see nos_relay_await_ready(). It works in the network namespace of the thread that calls
/// this. If it fails, nothing is in place.
///
/// Threads: any. The port belongs to the first thread that uses it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_builder_start(
    builder: *mut nos_relay_builder,
    relay: *mut *mut nos_relay,
    port: *mut *mut nos_relay_port,
) -> c_int {
    call(|| {
        // SAFETY: they are where results go.
        let (to_relay, to_port) = unsafe { (place(relay, "relay")?, place(port, "port")?) };
        let started = cloned(builder)?.start();
        let (relay, end) = started.map_err(|error| relay_failure(&error))?;
        to_port.write(port::add(end)?);
        to_relay.write(relay::add(relay));
        Ok(())
    })
}

/// Starts a relay with what a configuration file has (docs/configuration.md) and nothing else: as
/// nos_relay_builder_config() and nos_relay_builder_start().
///
/// Threads: any. The port belongs to the first thread that uses it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_start(
    toml: *const c_char,
    relay: *mut *mut nos_relay,
    port: *mut *mut nos_relay_port,
) -> c_int {
    call(|| {
        // SAFETY: they are text, and where results go.
        let (toml, to_relay, to_port) = unsafe {
            (
                text(toml, "toml")?,
                place(relay, "relay")?,
                place(port, "port")?,
            )
        };
        let started = Relay::builder().config(toml).start();
        let (relay, end) = started.map_err(|error| relay_failure(&error))?;
        to_port.write(port::add(end)?);
        to_relay.write(relay::add(relay));
        Ok(())
    })
}

/// Starts a relay as nos_relay_builder_start() does, with the control thread's work left to a thread of the caller's: nos_relay_runner_run().
///
/// Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_builder_prepare(
    builder: *mut nos_relay_builder,
    runner: *mut *mut nos_relay_runner,
    relay: *mut *mut nos_relay,
    port: *mut *mut nos_relay_port,
) -> c_int {
    call(|| {
        // SAFETY: they are where results go.
        let (to_runner, to_relay, to_port) = unsafe {
            (
                place(runner, "runner")?,
                place(relay, "relay")?,
                place(port, "port")?,
            )
        };
        let prepared = cloned(builder)?.prepare();
        let (runner, relay, end) = prepared.map_err(|error| relay_failure(&error))?;
        to_port.write(port::add(end)?);
        to_runner.write(relay::add_runner(runner));
        to_relay.write(relay::add(relay));
        Ok(())
    })
}
