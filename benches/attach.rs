//! How long it takes to attach and to detach many containers, by TAP and by veth.
//!
//! `cargo bench --bench attach`; with `--test`, and under `cargo test`, it does three containers
//! only. It wants root, or a kernel that gives a user namespace; the namespaces have no name and
//! vanish with the process.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a bench ends where its network cannot be built, and prints"
)]

use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use nos_relay::control::attach::{
    AttachRequest, Attached, ContainerSpec, DEFAULT_TX_QUEUE_LEN, DeviceRequest, Host, LinkPlace,
    Pace, Placement, attach, detach_all,
};
use nos_relay::control::kernel::{InterfaceName, Namespace};
use nos_relay::lab::testbed::{Privileges, enter_user_namespace, privileges, tun_access};
use nos_shim::ident::MacAddr;
use nos_shim::ports::PortRange;

fn main() {
    match privileges() {
        Privileges::Root => {}
        Privileges::UserNamespace => enter_user_namespace().expect("a user namespace"),
        Privileges::Nothing(reason) => {
            println!("skipped: {reason}");
            return;
        }
    }
    raise_descriptor_limit();
    let asked = |flag: &str| std::env::args().any(|argument| argument == flag);
    // `cargo bench` says so; `cargo test` says nothing.
    let test = asked("--test") || !asked("--bench");
    let sizes: &[usize] = if test { &[3] } else { &[300, 1000] };
    println!("| device | containers | attach | each | detach | each |");
    println!("|---|---|---|---|---|---|");
    for &size in sizes {
        for veth in [false, true] {
            measure(size, veth);
        }
    }
}

/// A container takes three descriptors here: its namespace, the bench's handle, its device.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit of descriptors");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("a higher limit of descriptors");
}

fn measure(size: usize, veth: bool) {
    let kind = if veth { "veth" } else { "TAP" };
    if !veth && let Err(error) = tun_access() {
        println!("| {kind} | skipped: /dev/net/tun cannot be opened: {error} |");
        return;
    }
    let host = Namespace::anonymous("host").expect("a namespace");
    // An anonymous namespace has no name by which it can be opened again: its descriptor lends it.
    let kept: Vec<_> = (0..size)
        .map(|number| Namespace::anonymous(&format!("c{number}")).expect("a namespace"))
        .collect();
    let containers: Vec<_> = kept
        .iter()
        .map(|namespace| format!("/proc/self/fd/{}", namespace.as_fd().as_raw_fd()))
        .map(|path| Namespace::open(path).expect("a namespace with a name"))
        .collect();
    // As the control thread, which lives on the host.
    let work = || {
        run(
            &Host::open(host.clone()).expect("a host"),
            &containers,
            veth,
        )
    };
    let (attaching, detaching) = host.run(work).expect("the host's namespace");
    println!(
        "| {kind} | {size} | {:.3} s | {:.2} ms | {:.3} s | {:.2} ms |",
        attaching.as_secs_f64(),
        each(attaching, size),
        detaching.as_secs_f64(),
        each(detaching, size),
    );
}

fn run(host: &Host, containers: &[Namespace], veth: bool) -> (Duration, Duration) {
    let begin = Instant::now();
    let attached: Vec<_> = containers
        .iter()
        .enumerate()
        .map(|(number, container)| {
            attach(host, container, request(number, veth)).expect("a container that is attached")
        })
        .collect();
    let attaching = begin.elapsed();
    assert!(attached.iter().all(|attached| attached.report.up));

    let detachments = attached
        .into_iter()
        .map(Attached::into_detachment)
        .collect();
    let begin = Instant::now();
    for outcome in detach_all(host, detachments, Pace::AtOnce) {
        outcome.expect("a container that is detached");
    }
    (attaching, begin.elapsed())
}

fn request(number: usize, veth: bool) -> AttachRequest {
    let name = format!("container-{number}");
    let first = u16::try_from(20_000 + number * 32).expect("a port");
    AttachRequest {
        device: if veth {
            DeviceRequest::Veth {
                relay_mac: MacAddr::stable("relay"),
                bridge: None,
            }
        } else {
            DeviceRequest::Tap
        },
        offload: true,
        placement: Placement::Inside,
        spec: ContainerSpec {
            interface: InterfaceName::eth0(),
            mac: MacAddr::stable(&name),
            mtu: 1500,
            link_addresses: Vec::new(),
            place: LinkPlace::Alone,
            tx_queue_len: DEFAULT_TX_QUEUE_LEN,
            mode: nos_shim::ports::AddressMode::Shared,
            addresses: vec![
                "203.0.113.1".parse().expect("an address"),
                "2001:db8:1::1".parse().expect("an address"),
            ],
            networks: [
                "203.0.113.0/24".parse().expect("a network"),
                "2001:db8:1::/64".parse().expect("a network"),
            ]
            .into(),
            link_local: None,
            router: MacAddr::stable("relay").link_local(),
            ephemeral: vec![PortRange::new(first, first + 31).expect("a range")],
            opens_flows: true,
            company: Default::default(),
            name,
        },
    }
}

fn each(total: Duration, size: usize) -> f64 {
    total.as_secs_f64() * 1000.0 / size as f64
}
