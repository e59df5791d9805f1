//! Answers of the daemon that are lost.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};

use serde_json::{Value, json};

use crate::base::lab_test;
use crate::engine::Network;
use crate::engine::plugin::{Call, configuration};

/// Stands before a daemon, and loses the answer to one of the requests: it is carried out all the same.
struct Lossy {
    socket: PathBuf,
    requests: Arc<AtomicUsize>,
    /// Told once the daemon has answered to that request.
    lost: Receiver<UnixStream>,
}

impl Lossy {
    /// Loses the answer number `lost`, counted from 0.
    fn before(network: &Network, name: &str, lost: usize) -> Self {
        let socket = network.daemon.files().path(&format!("{name}{lost}.sock"));
        let listener = UnixListener::bind(&socket).unwrap();
        let requests = Arc::new(AtomicUsize::new(0));
        let (control, counter) = (network.control(), requests.clone());
        let (sender, receiver) = channel();
        // It ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let number = counter.fetch_add(1, Ordering::SeqCst);
                let stream = stream.unwrap();
                let answer = ask(&stream, &control);
                if number == lost {
                    // Whoever asked has no answer until this is dropped.
                    let _ = sender.send(stream);
                } else {
                    let _ = (&stream).write_all(answer.as_bytes());
                }
            }
        });
        Self {
            socket,
            requests,
            lost: receiver,
        }
    }
}

/// Has the daemon at `control` do what a client asks for.
fn ask(client: &UnixStream, control: &Path) -> String {
    let line = |stream: &UnixStream| {
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        line
    };
    let daemon = UnixStream::connect(control).unwrap();
    (&daemon).write_all(line(client).as_bytes()).unwrap();
    line(&daemon)
}

lab_test! {
    fn whichever_answer_is_lost_the_container_is_added_once() {
        let network = Network::new(1);
        let own = json!({"tcp": {"size": 4}, "ephemeral": {"size": 16}, "from": "203.0.113.0/24"});
        let direct = configuration(&network.control(), own.clone());
        let netns = network.container(0).path();
        let expected = Call::new("ADD", &direct).of("c1").inside(&netns).succeeds();
        let owned = |network: &Network| {
            let rows = network.daemon.ports().into_iter();
            rows.map(|row| (row.protocol, row.kind, row.range, row.from)).collect::<Vec<_>>()
        };
        let ports = owned(&network);
        Call::new("DEL", &direct).of("c1").succeeds();
        let before = network.traces();
        for lost in 0.. {
            let lossy = Lossy::before(&network, "lossy", lost);
            let Lossy { socket, requests, lost: answers } = lossy;
            // Dropped as soon as they come.
            std::thread::spawn(move || answers.iter().for_each(drop));
            let conf = configuration(&socket, own.clone());
            let result = Call::new("ADD", &conf).of("c1").inside(&netns).succeeds();
            assert_eq!(result, expected, "without answer {lost}");
            assert_eq!(owned(&network), ports, "without answer {lost}");
            let of_add = requests.load(Ordering::SeqCst);
            assert_eq!(Call::new("DEL", &conf).of("c1").succeeds(), Value::Null);
            network.assert_as_before(&before, &format!("without answer {lost}"));
            if lost >= of_add {
                // All of them were lost once: attach, allocate and restrict, allocate, show; and DEL's.
                assert!(of_add >= 5, "{of_add}");
                break;
            }
        }
    }
}

lab_test! {
    fn whenever_the_plugin_is_killed_delete_leaves_nothing_and_add_goes_on() {
        let network = Network::new(1);
        let own = json!({"tcp": {"size": 4}, "ephemeral": {"size": 16}, "from": "203.0.113.0/24"});
        let direct = configuration(&network.control(), own.clone());
        let netns = network.container(0).path();
        let add = |conf: &Value| Call::new("ADD", conf).of("c1").inside(&netns);
        let del = || Call::new("DEL", &direct).of("c1").succeeds();
        let expected = add(&direct).succeeds();
        del();
        let before = network.traces();
        // Attach, allocate and restrict, allocate, show.
        for (request, goes_on) in (0..5).flat_map(|request| [(request, false), (request, true)]) {
            let name = if goes_on { "add" } else { "delete" };
            let lossy = Lossy::before(&network, name, request);
            let mut plugin = add(&configuration(&lossy.socket, own.clone())).start();
            let unanswered = lossy.lost.recv().unwrap();
            plugin.kill().unwrap();
            plugin.wait().unwrap();
            drop(unanswered);
            if goes_on {
                assert_eq!(add(&direct).succeeds(), expected, "after request {request}");
            }
            del();
            network.assert_as_before(&before, &format!("killed after request {request}"));
        }
    }
}
