//! How long `ADD` and `DEL` take, beside Debian's `bridge` + `host-local` + `portmap` in the same run.
//!
//! `cargo test --workspace --test engines -- --ignored --nocapture medians`

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nos_relay::lab::testbed::{LabNamespace, Topology};
use serde_json::{Value, json};

use crate::base::{lab_test, skip};
use crate::engine::Network;
use crate::engine::plugin::{configuration, program};

const ROUNDS: u16 = 101;
const PLUGINS: &str = "/usr/lib/cni";

/// One plugin, as an engine on the device calls it.
fn call(
    device: &LabNamespace,
    plugin: &Path,
    command: &str,
    id: u16,
    netns: &Path,
    conf: &Value,
) -> Value {
    let mut run = Command::new(plugin);
    run.env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", format!("c{id}"))
        .env("CNI_IFNAME", "eth0")
        .env("CNI_NETNS", netns)
        .env("CNI_PATH", PLUGINS)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = device.spawn(run).unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(conf.to_string().as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{plugin:?} {command}: {said}");
    serde_json::from_str(&said).unwrap_or_default()
}

/// A container with one published port.
trait Way {
    fn add(&self, id: u16, netns: &Path);
    fn del(&self, id: u16, netns: &Path);
}

struct Ours<'a>(&'a Network);

impl Ours<'_> {
    fn conf(&self, id: u16) -> Value {
        let own = json!({"ephemeral": {"size": 100}});
        let mut conf = configuration(&self.0.control(), own);
        conf["runtimeConfig"] = published(id);
        conf
    }
}

impl Way for Ours<'_> {
    fn add(&self, id: u16, netns: &Path) {
        call(
            &self.0.topology.device,
            &program(),
            "ADD",
            id,
            netns,
            &self.conf(id),
        );
    }

    fn del(&self, id: u16, netns: &Path) {
        call(
            &self.0.topology.device,
            &program(),
            "DEL",
            id,
            netns,
            &self.conf(id),
        );
    }
}

struct Debians<'a> {
    device: &'a LabNamespace,
    data: PathBuf,
}

impl Debians<'_> {
    fn bridge(&self) -> Value {
        json!({
            "cniVersion": "1.0.0", "name": "bridged", "type": "bridge", "bridge": "cni0",
            "isGateway": true, "ipMasq": true,
            "ipam": {
                "type": "host-local", "dataDir": self.data.display().to_string(),
                "ranges": [[{"subnet": "10.88.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}],
            },
        })
    }

    fn portmap(id: u16) -> Value {
        json!({
            "cniVersion": "1.0.0", "name": "bridged", "type": "portmap",
            "runtimeConfig": published(id),
        })
    }

    fn call(&self, plugin: &str, command: &str, id: u16, netns: &Path, conf: &Value) -> Value {
        call(
            self.device,
            &Path::new(PLUGINS).join(plugin),
            command,
            id,
            netns,
            conf,
        )
    }
}

impl Way for Debians<'_> {
    fn add(&self, id: u16, netns: &Path) {
        let result = self.call("bridge", "ADD", id, netns, &self.bridge());
        let mut portmap = Self::portmap(id);
        portmap["prevResult"] = result;
        self.call("portmap", "ADD", id, netns, &portmap);
    }

    fn del(&self, id: u16, netns: &Path) {
        self.call("portmap", "DEL", id, netns, &Self::portmap(id));
        self.call("bridge", "DEL", id, netns, &self.bridge());
    }
}

fn published(id: u16) -> Value {
    let port = 8000 + id;
    json!({"portMappings": [{"hostPort": port, "containerPort": port, "protocol": "tcp"}]})
}

fn timed(work: impl FnOnce()) -> Duration {
    let begun = Instant::now();
    work();
    begun.elapsed()
}

/// The middle, and what nine of ten are within.
fn quantiles(mut times: Vec<Duration>) -> String {
    times.sort();
    let at = |tenths: usize| times[(times.len() - 1) * tenths / 10].as_secs_f64() * 1e3;
    format!("median {:6.1} ms, 90 % within {:6.1} ms", at(5), at(9))
}

lab_test! {
    #[ignore = "measures for a minute: run it by hand on a machine that does nothing else"]
    fn medians() {
        if !Path::new(PLUGINS).join("portmap").exists() {
            return skip("containernetworking-plugins is not installed");
        }
        if !Path::new("/usr/sbin/iptables").exists() {
            return skip("iptables is not installed");
        }
        let network = Network::new(0);
        let other = Topology::new(&[]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let ways: [(&str, &dyn Way); 2] = [
            ("nos-relay-cni", &Ours(&network)),
            ("bridge + host-local + portmap", &Debians { device: &other.device, data: folder.path().into() }),
        ];
        let mut times = [(); 2].map(|()| [Vec::new(), Vec::new()]);
        for round in 0..ROUNDS {
            for (index, (_, way)) in ways.iter().enumerate() {
                let namespace = LabNamespace::untouched("measured").unwrap();
                let netns = namespace.path();
                times[index][0].push(timed(|| way.add(round, &netns)));
                times[index][1].push(timed(|| way.del(round, &netns)));
            }
        }
        for ((name, _), [add, del]) in ways.iter().zip(times) {
            println!("{name:30} ADD {}", quantiles(add));
            println!("{name:30} DEL {}", quantiles(del));
        }
    }
}
