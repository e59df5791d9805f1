//! podman with CNI.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::json;
use tempfile::TempDir;

use crate::base::daemon::await_that;
use crate::base::{lab_test, skip};
use crate::engine::Network;
use crate::engine::plugin::program;
use crate::image;
use crate::talk::{assert_nothing_left, await_greeting, await_served, get, outsider};

/// A podman with an image, and nothing of anybody else's.
struct Podman {
    folder: TempDir,
}

impl Podman {
    /// With the plugin for the daemon of `network`; or why there is none.
    fn new(network: &Network) -> Result<Self, String> {
        image::is_root()?;
        image::installed(&["podman", "runc", "conmon"])?;
        let folder = tempfile::Builder::new()
            .prefix("nos-relay-podman-")
            .tempdir()
            .unwrap();
        let podman = Self { folder };
        podman.configure(network);
        let image = image::make(podman.folder.path());
        let load = podman.command(&["load", "-i", image.to_str().unwrap()]);
        image::starts_at_all("podman", &load)?;
        let alone = podman.command(&[
            "run",
            "--rm",
            "--network",
            "none",
            "--entrypoint",
            "/bin/echo",
            image::NAME,
        ]);
        image::starts_at_all("podman", &alone)?;
        Ok(podman)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn configure(&self, network: &Network) {
        let plugins = program();
        let plugins = plugins.parent().unwrap().display();
        let networks = self.path("networks");
        fs::create_dir(&networks).unwrap();
        let containers = format!(
            r#"
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
runtime = "runc"
events_logger = "none"
lock_type = "file"
[network]
network_backend = "cni"
cni_plugin_dirs = ["{plugins}"]
network_config_dir = "{}"
"#,
            networks.display()
        );
        fs::write(self.path("containers.conf"), containers).unwrap();
        let storage = format!(
            "[storage]\ndriver = \"vfs\"\ngraphroot = \"{}\"\nrunroot = \"{}\"\n",
            self.path("root").display(),
            self.path("run").display()
        );
        fs::write(self.path("storage.conf"), storage).unwrap();
        let list = json!({
            "cniVersion": "0.4.0", "name": "nosnet", "plugins": [{
                "type": "nos-relay-cni",
                "capabilities": {"portMappings": true, "ips": true, "mac": true, "aliases": true},
                "nos-relay": {
                    "control": network.control().display().to_string(), "ephemeral": {"size": 100},
                },
            }],
        });
        fs::write(networks.join("nosnet.conflist"), list.to_string()).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new("podman");
        for (option, name) in [
            ("--root", "root"),
            ("--runroot", "run"),
            ("--tmpdir", "tmp"),
        ] {
            command.arg(option).arg(self.path(name));
        }
        command
            .args(["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs"])
            .args(arguments)
            .env("CONTAINERS_CONF", self.path("containers.conf"))
            .env("CONTAINERS_STORAGE_CONF", self.path("storage.conf"));
        command.output().unwrap()
    }

    fn does(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "podman {arguments:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn refuses(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments);
        assert!(!output.status.success(), "podman {arguments:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let _ = self.command(&["rm", "--all", "--force", "--time", "0"]);
    }
}

lab_test! {
    fn podman_publishes_ports_on_the_nos_s_address() {
        let network = Network::new(0);
        let podman = match Podman::new(&network) {
            Ok(podman) => podman,
            Err(reason) => return skip(&reason),
        };
        let run = |more: &[&'static str]| [&["run", "--network", "nosnet"], more].concat();
        let outsider = outsider(&network);
        podman.does(&run(&["-d", "--name", "web", "-p", "8081:8081", image::NAME, "8081"]));
        let from = await_greeting(&network, &outsider);
        assert!((30000..=30099).contains(&from.port()), "{from}");
        await_served(&network, 8081);
        // Started anew it is served anew, killed it is not, and removed nothing is left of it.
        podman.does(&["restart", "--time", "0", "web"]);
        await_served(&network, 8081);
        assert_eq!(network.daemon.attachments().len(), 1);
        // A clash names the owner, and leaves the owner alone.
        let said = podman.refuses(&run(&["--rm", "-p", "8081:8081", image::NAME]));
        assert!(said.contains("8081 of container"), "{said}");
        let said = podman.refuses(&run(&["--rm", "-p", "80:8080", image::NAME]));
        assert!(said.contains("there is no NAT"), "{said}");
        await_served(&network, 8081);
        podman.does(&["kill", "web"]);
        await_that("it is detached", || match network.daemon.attachments().len() {
            0 => Ok(()),
            more => Err(more.to_string()),
        });
        assert!(get(&network, 8081).is_err());
        podman.does(&["start", "web"]);
        await_served(&network, 8081);
        podman.does(&["rm", "--force", "--time", "0", "web"]);
        assert_nothing_left(&network);
        // Address and MAC address are podman's to give.
        let options = "nosnet:ip=203.0.113.3,mac=02:00:5e:10:00:07";
        let show = ["--rm", "--network", options, "--entrypoint", "/bin/ip", image::NAME, "address"];
        let mut arguments = vec!["run"];
        arguments.extend(show);
        let said = podman.does(&arguments);
        assert!(said.contains("02:00:5e:10:00:07"), "{said}");
        assert!(said.contains("203.0.113.3/32") && !said.contains("203.0.113.1/32"), "{said}");
        assert_nothing_left(&network);
    }
}
