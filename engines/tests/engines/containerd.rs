//! A containerd of a test's own.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::base::daemon::{await_that, die_with_us};
use crate::cri;
use crate::engine::Network;
use crate::engine::plugin::program;
use crate::image;

/// A plugin of Debian's containernetworking-plugins.
pub(crate) const LOOPBACK: &str = "/usr/lib/cni/loopback";

/// containerd, with an image in one of its namespaces and the plugin for a daemon.
pub(crate) struct Containerd {
    folder: TempDir,
    child: Option<Child>,
    namespace: &'static str,
}

impl Containerd {
    /// With the image in `namespace`; or why there is none. `own` is our section of the network
    /// configuration.
    pub(crate) fn new(
        network: &Network,
        namespace: &'static str,
        own: Value,
    ) -> Result<Self, String> {
        image::is_root()?;
        image::installed(&[
            "containerd",
            "containerd-shim-runc-v2",
            "ctr",
            "runc",
            "unshare",
        ])?;
        let folder = tempfile::Builder::new()
            .prefix("nos-relay-ctrd-")
            .tempdir()
            .unwrap();
        let mut containerd = Self {
            folder,
            child: None,
            namespace,
        };
        containerd.configure(network, own);
        containerd.start();
        let image = image::make(containerd.folder.path());
        let import = [
            "images",
            "import",
            "--snapshotter",
            "native",
            image.to_str().unwrap(),
        ];
        image::starts_at_all("containerd", &containerd.ctr(&import))?;
        let alone = [
            "run",
            "--rm",
            "--snapshotter",
            "native",
            image::NAME,
            &containerd.unique(),
            "/bin/echo",
        ];
        image::starts_at_all("containerd", &containerd.ctr(&alone))?;
        Ok(containerd)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// An id that no other test gives a container: runc has them all in one place.
    pub(crate) fn unique(&self) -> String {
        let name = self.folder.path().file_name().unwrap();
        name.to_str().unwrap().to_owned()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path("c.sock")
    }

    fn configure(&self, network: &Network, mut own: Value) {
        let path = |name: &str| self.path(name).display().to_string();
        let networks = self.path("net.d");
        fs::create_dir(&networks).unwrap();
        own["control"] = network.control().display().to_string().into();
        let list = json!({
            "cniVersion": "1.0.0", "name": "nosnet", "plugins": [{
                "type": "nos-relay-cni",
                "capabilities": {"portMappings": true, "io.kubernetes.cri.pod-annotations": true},
                "nos-relay": own,
            }],
        });
        fs::write(networks.join("nosnet.conflist"), list.to_string()).unwrap();
        let plugins = self.path("plugins");
        fs::create_dir(&plugins).unwrap();
        symlink(program(), plugins.join("nos-relay-cni")).unwrap();
        // containerd's CRI has each pod's loopback interface set up by it.
        symlink(LOOPBACK, plugins.join("loopback")).unwrap();
        let config = format!(
            r#"
version = 2
root = "{}"
state = "{}"
[grpc]
address = "{}"
[ttrpc]
address = "{}.ttrpc"
[debug]
level = "warn"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{}"
disable_apparmor = true
disable_cgroup = true
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{}"
conf_dir = "{}"
"#,
            path("root"),
            path("state"),
            path("c.sock"),
            path("c.sock"),
            image::NAME,
            plugins.display(),
            networks.display(),
        );
        fs::write(self.path("config.toml"), config).unwrap();
    }

    /// Starts it, and waits until it answers.
    pub(crate) fn start(&mut self) {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.path("log"))
            .unwrap();
        let mut command = Command::new("containerd");
        command
            .arg("--config")
            .arg(self.path("config.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        self.child = Some(die_with_us(&mut command).spawn().unwrap());
        await_that("containerd answers", || {
            let output = self.ctr(&["version"]);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            output.status.success().then_some(()).ok_or(said)
        });
    }

    /// Kills it. Its containers go on.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub(crate) fn ctr(&self, arguments: &[&str]) -> Output {
        Command::new("ctr")
            .arg("--address")
            .arg(self.socket())
            .args(["--namespace", self.namespace])
            .args(arguments)
            .output()
            .unwrap()
    }

    pub(crate) fn does(&self, arguments: &[&str]) -> String {
        succeeded(arguments, &self.ctr(arguments))
    }

    /// `ctr` reads network configurations in one place alone: it has another one there, by itself.
    pub(crate) fn ctr_with_cni(&self, arguments: &[&str]) -> Output {
        const SCRIPT: &str = "set -e
            mkdir -p /etc/cni/net.d
            mount --bind \"$1\" /etc/cni/net.d
            mount -t tmpfs tmpfs /opt
            mkdir -p /opt/cni/bin
            mount --bind \"$2\" /opt/cni/bin
            shift 2
            exec ctr \"$@\"";
        Command::new("unshare")
            .args(["--mount", "sh", "-c", SCRIPT, "sh"])
            .arg(self.path("net.d"))
            .arg(self.path("plugins"))
            .arg("--address")
            .arg(self.socket())
            .args(["--namespace", self.namespace])
            .args(arguments)
            .output()
            .unwrap()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }
}

pub(crate) fn succeeded(arguments: &[&str], output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("--- log of containerd\n{}---", self.log());
        }
        if self.child.is_some() {
            let tasks = self.ctr(&["tasks", "ls", "-q"]);
            for task in String::from_utf8_lossy(&tasks.stdout).lines() {
                if self.namespace == cri::NAMESPACE {
                    // Else the name of its network namespace would stay.
                    let _ = cri::stop(self, task);
                }
                let _ = self.ctr(&["tasks", "rm", "--force", task]);
            }
        }
        if let Some(mut child) = self.child.take() {
            let _ = kill(
                Pid::from_raw(i32::try_from(child.id()).unwrap()),
                Signal::SIGTERM,
            );
            let _ = child.wait();
        }
        end_shims(self.folder.path());
        forget_results(&self.unique());
        unmount_below(self.folder.path());
    }
}

/// Ends the processes that were started for the containers of this containerd.
pub(crate) fn end_shims(folder: &Path) {
    let folder = folder.display().to_string();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else {
            continue;
        };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        if line.contains("containerd-shim") && line.contains(&folder) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// Removes what the engine remembers of containers of this name, which nobody has deleted: `ctr` does not.
fn forget_results(name: &str) {
    for entry in fs::read_dir("/var/lib/cni/results")
        .into_iter()
        .flatten()
        .flatten()
    {
        if entry.file_name().to_string_lossy().contains(name) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

pub(crate) fn unmount_below(folder: &Path) {
    let table = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let points = table.lines().filter_map(|line| line.split(' ').nth(1));
    for point in points.filter(|point| Path::new(point).starts_with(folder)) {
        let _ = nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH);
    }
}
