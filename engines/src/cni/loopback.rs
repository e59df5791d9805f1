//! The plugin `loopback`, which containerd's CRI runs at the same time for the same pod.
//!
//! It sets `lo` up, and fails the pod if it then finds an address there that is not one of a loopback.
//! We put the NOS's addresses there, so they have to come behind it. It is known by what it does: `lo`
//! of a new pod is down until it has begun, and it is a child of the same containerd, with the same
//! container in its environment, until it has ended.

use core::time::Duration;
use std::fs;
use std::os::unix::process::parent_id;
use std::path::Path;
use std::thread::sleep;
use std::time::Instant;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nos_relay::control::kernel::Namespace;

use crate::process;

/// The engine that runs it beside others, as `/proc/PID/comm` has it.
const ENGINE: &str = "containerd";
/// The plugin, as `/proc/PID/comm` has it.
const PLUGIN: &str = "loopback";
/// Time for it. Where it never comes, what it would check is not checked either.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(1);

/// Waits until `loopback` has done its work for the container, if its engine is one that runs it.
pub(super) fn await_it(netns: &Path, container: &str) {
    let engine = parent_id();
    if comm(engine).as_deref() != Some(ENGINE) {
        return;
    }
    let Ok(namespace) = Namespace::open(netns) else {
        return;
    };
    let deadline = Instant::now() + PATIENCE;
    while !is_up(&namespace) && Instant::now() < deadline {
        sleep(PAUSE);
    }
    for pid in children(engine) {
        // Opened first: what is then read is of this process, or of none.
        let Ok(Some(process)) = process::open(pid) else {
            continue;
        };
        if comm(pid).as_deref() == Some(PLUGIN) && is_for(pid, container) {
            let left = deadline.saturating_duration_since(Instant::now());
            process::await_end(&process, left);
        }
    }
}

/// Whether `lo` is up, or cannot be looked at.
fn is_up(namespace: &Namespace) -> bool {
    let up = || {
        let mut interfaces = getifaddrs().ok()?;
        let lo = interfaces.find(|interface| interface.interface_name == "lo")?;
        Some(lo.flags.contains(InterfaceFlags::IFF_UP))
    };
    namespace.run(up).ok().flatten().unwrap_or(true)
}

fn comm(pid: u32) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(text.trim_end().to_owned())
}

fn is_for(pid: u32, container: &str) -> bool {
    let wanted = format!("CNI_CONTAINERID={container}");
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let mut variables = environment.split(|octet| *octet == 0);
    variables.any(|variable| variable == wanted.as_bytes())
}

/// The children of all threads of a process.
fn children(pid: u32) -> Vec<u32> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    let of_thread = |thread: fs::DirEntry| {
        let text = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        let pids = text
            .split_ascii_whitespace()
            .filter_map(|pid| pid.parse().ok());
        pids.collect::<Vec<_>>()
    };
    threads.flatten().flat_map(of_thread).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::process::{Command, Stdio};

    #[test]
    fn a_child_is_known_by_its_environment() {
        let mut child = Command::new("cat")
            .env("CNI_CONTAINERID", "c1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // Once it answers it runs, and has an environment of its own.
        child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let pid = child.id();
        assert!(children(std::process::id()).contains(&pid));
        assert!(is_for(pid, "c1"));
        assert!(!is_for(pid, "c"));
        child.kill().unwrap();
        let process = process::open(pid).unwrap().unwrap();
        process::await_end(&process, PATIENCE);
        child.wait().unwrap();
        assert!(process::open(pid).unwrap().is_none());
        assert_eq!(comm(pid), None);
    }
}
