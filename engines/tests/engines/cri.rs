//! containerd's CRI, as a kubelet calls it.
//!
//! Calls are gRPC over HTTP/2, which curl speaks; the few messages are written by hand.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;

use crate::base::daemon::await_that;
use crate::base::{lab_test, skip};
use crate::containerd::{Containerd, LOOPBACK};
use crate::engine::Network;
use crate::image;
use crate::talk::{assert_nothing_left, await_greeting, await_served, get, outsider};

/// containerd's namespace of what its CRI has.
pub(crate) const NAMESPACE: &str = "k8s.io";

/// A message of Protocol Buffers.
#[derive(Clone, Debug, Default)]
struct Message(Vec<u8>);

impl Message {
    fn number(mut self, field: u64, value: u64) -> Self {
        self.varint(field << 3);
        self.varint(value);
        self
    }

    fn octets(mut self, field: u64, value: &[u8]) -> Self {
        self.varint(field << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
        self
    }

    fn text(self, field: u64, value: &str) -> Self {
        self.octets(field, value.as_bytes())
    }

    fn message(self, field: u64, value: &Self) -> Self {
        self.octets(field, &value.0)
    }

    fn varint(&mut self, mut value: u64) {
        while value > 0x7f {
            self.0.push(u8::try_from(value & 0x7f).unwrap() | 0x80);
            value >>= 7;
        }
        self.0.push(u8::try_from(value).unwrap());
    }

    /// The first field of this number that has a length.
    fn field(&self, wanted: u64) -> Option<Self> {
        let mut rest = self.0.as_slice();
        let varint = |rest: &mut &[u8]| {
            let mut value = 0;
            for shift in 0.. {
                let (octet, more) = rest.split_first()?;
                *rest = more;
                value |= u64::from(octet & 0x7f) << (7 * shift);
                if octet & 0x80 == 0 {
                    break;
                }
            }
            Some(value)
        };
        while !rest.is_empty() {
            let key = varint(&mut rest)?;
            let value = varint(&mut rest)?;
            if key & 7 == 2 {
                let (octets, more) = rest.split_at(usize::try_from(value).ok()?);
                rest = more;
                if key >> 3 == wanted {
                    return Some(Self(octets.to_vec()));
                }
            }
        }
        None
    }

    fn as_text(&self) -> String {
        String::from_utf8(self.0.clone()).unwrap()
    }
}

/// Calls a method of the runtime service.
fn call(containerd: &Containerd, method: &str, request: &Message) -> Result<Message, String> {
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    let number = CALLS.fetch_add(1, Ordering::Relaxed);
    let path = |name: &str| containerd.path(&format!("{method}.{number}.{name}"));
    let length = u32::try_from(request.0.len()).unwrap();
    let mut frame = vec![0];
    frame.extend(length.to_be_bytes());
    frame.extend(&request.0);
    fs::write(path("request"), frame).unwrap();
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--http2-prior-knowledge"])
        .args([
            "--header",
            "content-type: application/grpc",
            "--header",
            "te: trailers",
        ])
        .arg("--unix-socket")
        .arg(containerd.socket())
        .arg("--data-binary")
        .arg(format!("@{}", path("request").display()))
        .arg("--dump-header")
        .arg(path("header"))
        .arg("--output")
        .arg(path("answer"))
        .arg(format!(
            "http://localhost/runtime.v1.RuntimeService/{method}"
        ))
        .output()
        .unwrap();
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let header = fs::read_to_string(path("header")).unwrap();
    if !header.contains("grpc-status: 0") {
        return Err(header);
    }
    let answer = fs::read(path("answer")).unwrap_or_default();
    Ok(Message(answer.get(5..).unwrap_or_default().to_vec()))
}

/// A pod of this name, with annotations and published ports.
fn pod(name: &str, annotations: &[(&str, &str)], ports: &[u16]) -> Message {
    let metadata = Message::default()
        .text(1, name)
        .text(2, name)
        .text(3, "default");
    let mut config = Message::default().message(1, &metadata).text(2, name);
    for port in ports {
        let port = u64::from(*port);
        let mapping = Message::default()
            .number(1, 0)
            .number(2, port)
            .number(3, port);
        config = config.message(5, &mapping);
    }
    for (key, value) in annotations {
        config = config.message(7, &Message::default().text(1, key).text(2, value));
    }
    Message::default().message(1, &config)
}

fn run(containerd: &Containerd, request: &Message) -> Result<String, String> {
    let answer = call(containerd, "RunPodSandbox", request)?;
    Ok(answer.field(1).unwrap().as_text())
}

fn by_id(id: &str) -> Message {
    Message::default().text(1, id)
}

pub(crate) fn stop(containerd: &Containerd, id: &str) -> Result<(), String> {
    call(containerd, "StopPodSandbox", &by_id(id)).map(drop)
}

fn end(containerd: &Containerd, id: &str) {
    // As a kubelet, which does so until it succeeds: containerd may be busy with an end of its own.
    await_that("the sandbox is stopped", || stop(containerd, id));
    await_that("it is stopped again", || stop(containerd, id));
    call(containerd, "RemovePodSandbox", &by_id(id)).unwrap();
}

/// Whether what calls containerd's CRI, and what it calls itself, is installed.
fn ready() -> Result<(), String> {
    image::installed(&["curl"])?;
    match Path::new(LOOPBACK).exists() {
        true => Ok(()),
        false => Err("containernetworking-plugins is not installed".to_owned()),
    }
}

lab_test! {
    fn pods_choose_ports_and_address_by_annotations() {
        let mut network = Network::new(0);
        if let Err(reason) = ready() {
            return skip(&reason);
        }
        let own = json!({"ephemeral": {"size": 100}});
        let mut containerd = match Containerd::new(&network, NAMESPACE, own) {
            Ok(containerd) => containerd,
            Err(reason) => return skip(&reason),
        };
        await_that("the network is ready", || call(&containerd, "Version", &Message::default()));
        let outsider = outsider(&network);
        let annotations = [("nos-relay.io/tcp", "20000-20099"), ("nos-relay.io/address", "203.0.113.1")];
        let web = pod("web", &annotations, &[8080]);
        let id = run(&containerd, &web).unwrap();
        let from = await_greeting(&network, &outsider);
        assert!((30000..=30099).contains(&from.port()), "{from}");
        await_served(&network, 20000);
        let status = call(&containerd, "PodSandboxStatus", &by_id(&id)).unwrap();
        let address = status.field(1).unwrap().field(5).unwrap().field(1).unwrap();
        assert_eq!(address.as_text(), "203.0.113.1");
        let listening = |network: &Network| {
            let rows = network.daemon.ports().into_iter();
            rows.filter(|row| row.range.contains(8080)).count()
        };
        assert_eq!(listening(&network), 1);
        // A clash is told to the kubelet, and leaves nothing.
        let error = run(&containerd, &pod("other", &annotations, &[])).unwrap_err();
        assert!(error.contains("20000-20099 of container"), "{error}");
        let error = run(&containerd, &pod("bad", &[("nos-relay.io/tcp", "nonsense")], &[])).unwrap_err();
        assert!(error.contains("annotation nos-relay.io/tcp"), "{error}");
        assert_eq!(network.daemon.attachments().len(), 1);
        // Both daemons die and come again, in either order: the pod is served all the while there is
        // one of ours.
        containerd.kill();
        await_served(&network, 20000);
        let Network { daemon, topology } = network;
        let files = daemon.kill();
        containerd.start();
        let daemon = crate::base::daemon::Daemon::start_on(&topology.device, files);
        daemon.forget_counters();
        network = Network { daemon, topology };
        await_served(&network, 20000);
        await_that("the sandbox is ended", || stop(&containerd, &id));
        assert!(get(&network, 20000).is_err());
        end(&containerd, &id);
        assert_nothing_left(&network);
        // The same pod again, which is killed.
        let again = run(&containerd, &web).unwrap();
        await_served(&network, 20000);
        containerd.does(&["tasks", "kill", "--signal", "SIGKILL", &again]);
        end(&containerd, &again);
        assert_nothing_left(&network);
    }
}

lab_test! {
    fn many_pods_at_once() {
        let pods: u16 = match std::env::var("NOS_RELAY_PODS") {
            Ok(number) => number.parse().unwrap(),
            Err(_) => 10,
        };
        let network = Network::new(0);
        if let Err(reason) = ready() {
            return skip(&reason);
        }
        let own = json!({"tcp": {"size": 1}, "ephemeral": {"size": 16}});
        let containerd = match Containerd::new(&network, NAMESPACE, own) {
            Ok(containerd) => containerd,
            Err(reason) => return skip(&reason),
        };
        let all = |work: &(dyn Fn(u16) -> String + Sync)| {
            std::thread::scope(|scope| {
                let threads: Vec<_> = (0..pods).map(|pod| scope.spawn(move || work(pod))).collect();
                threads.into_iter().map(|it| it.join().unwrap()).collect::<Vec<_>>()
            })
        };
        let annotated = |number: u16| {
            let port = (20_000 + number).to_string();
            let annotations = [("nos-relay.io/tcp", port.as_str())];
            pod(&format!("pod{number}"), &annotations, &[])
        };
        let ids = all(&|number| run(&containerd, &annotated(number)).unwrap());
        assert_eq!(network.daemon.attachments().len(), usize::from(pods));
        let mut owners: Vec<_> = network.daemon.ports().into_iter().map(|row| row.owner).collect();
        owners.sort();
        owners.dedup();
        assert_eq!(owners.len(), usize::from(pods));
        all(&|number| {
            end(&containerd, &ids[usize::from(number)]);
            String::new()
        });
        assert_nothing_left(&network);
    }
}
