//! DPDK as the other side of shared memory.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends where its network cannot be built"
)]

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use nos_relay::lab::testbed::{LabNamespace, Privileges, privileges, tun_access};

use super::daemon::LIMIT;
use super::skip;

/// `dpdk-testpmd` between a memif and a TAP, as a bridge that knows no addresses.
pub(crate) struct TestPmd {
    child: Child,
    commands: ChildStdin,
    output: PathBuf,
}

impl TestPmd {
    /// The TAP in the namespace where it runs.
    pub(crate) const TAP: &str = "dt0";

    pub(crate) fn start(namespace: &LabNamespace, role: &str, directory: &Path) -> Self {
        let output = directory.join("testpmd.log");
        let log = File::create(&output).unwrap();
        let mut command = Command::new("dpdk-testpmd");
        let socket = directory.join("memif.sock");
        command
            .args(["--no-huge", "--no-pci", "--no-shconf", "--no-telemetry"])
            .args(["--single-file-segments", "-m", "128", "-l", "0-1"])
            .arg(format!(
                "--vdev=net_memif0,role={role},id=7,socket-abstract=no,secret=of both,socket={}",
                socket.display()
            ))
            .arg(format!("--vdev=net_tap0,iface={}", Self::TAP))
            .args(["--", "-i", "--forward-mode=io", "--auto-start"])
            .args(["--no-mlockall", "--total-num-mbufs=4096"])
            .stdin(Stdio::piped())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let mut child = namespace.spawn(command).unwrap();
        let commands = child.stdin.take().unwrap();
        let this = Self {
            child,
            commands,
            output,
        };
        let there = namespace.wait_link(Self::TAP, "there", LIMIT, |link| link.is_some());
        there.unwrap_or_else(|error| panic!("{error}: {}", this.log()));
        this
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.output).unwrap()
    }

    pub(crate) fn say(&mut self, commands: &[&str]) {
        for command in commands {
            writeln!(self.commands, "{command}").unwrap();
        }
    }
}

impl Drop for TestPmd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            println!("--- log of dpdk-testpmd\n{}---", self.log());
        }
    }
}

/// Whether DPDK can be had; if not, says so.
pub(crate) fn has_dpdk() -> bool {
    match (privileges(), tun_access()) {
        (Privileges::Root, Ok(())) if nix::unistd::geteuid().is_root() => true,
        _ => {
            skip("DPDK's net_tap wants to be root");
            false
        }
    }
}
