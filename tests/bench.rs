//! The bench measures, checks what it measures, compares, and leaves nothing behind. Never how
//! fast anything is: that is for quiet machines.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use nos_relay::lab::bench::path::Path as BenchPath;
use nos_relay::lab::bench::results::{Document, FORMAT};
use nos_relay::lab::testbed::{LabNamespace, tun_access};
use support::daemon::program;
use support::{lab_test, skip};
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(60);
/// Exit code after a signal.
const INTERRUPTED: i32 = 130;
/// One row of every kind of traffic that does not take long.
const ROWS: &str = "tcp-out,tcp-rev-4-v6,udp-imix-in,search-1400-out,rr-udp-out,connect-in,idle";
const SHORT: [&str; 4] = ["--rounds", "2", "--seconds", "0.05"];

/// Where a bench runs: a namespace and a temporary directory of its own, by which one sees what it
/// leaves behind.
struct Place {
    namespace: LabNamespace,
    directory: TempDir,
}

impl Place {
    fn new() -> Self {
        Self {
            namespace: LabNamespace::new("outside").unwrap(),
            directory: TempDir::new().unwrap(),
        }
    }

    fn start(&self, arguments: &[&str]) -> Child {
        let mut command = Command::new(program());
        command
            .arg("bench")
            .args(arguments)
            .current_dir(self.directory.path())
            .env("TMPDIR", self.directory.path())
            .env_remove("NOS_RELAY_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // SAFETY: between fork and exec the closure makes one system call.
        unsafe {
            command.pre_exec(|| {
                nix::sys::prctl::set_pdeathsig(Signal::SIGTERM).map_err(std::io::Error::from)
            });
        }
        self.namespace.hold(&mut command).spawn().unwrap()
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.start(arguments).wait_with_output().unwrap()
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.directory.path().join(file)).unwrap()
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.directory.path().join(file), text).unwrap();
    }

    /// The bench's children: all have the directory in their environment.
    fn processes(&self) -> Vec<String> {
        let mark = format!("TMPDIR={}", self.directory.path().display());
        let entries = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
        let has_mark = |path: &Path| {
            let environment = fs::read(path.join("environ")).unwrap_or_default();
            let mut variables = environment.split(|&octet| octet == 0);
            variables.any(|one| one == mark.as_bytes())
        };
        let paths = entries.map(|entry| entry.path());
        let ours = paths.filter(|path| has_mark(path));
        ours.map(|path| fs::read_to_string(path.join("comm")).unwrap_or_default())
            .collect()
    }

    fn directories(&self) -> Vec<String> {
        let entries = fs::read_dir(self.directory.path()).unwrap();
        let directories = entries
            .map(Result::unwrap)
            .filter(|entry| entry.path().is_dir());
        directories
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect()
    }

    /// Whether the daemon has its control socket: it then runs, and may be in use.
    fn has_daemon(&self) -> bool {
        let socket = |directory: &String| {
            let path = self.directory.path().join(directory);
            path.join("relay-veth-1500.sock").exists()
        };
        self.directories().iter().any(socket)
    }

    #[track_caller]
    fn assert_nothing_is_left(&self) {
        assert_eq!(self.processes(), Vec::<String>::new());
        assert_eq!(self.directories(), Vec::<String>::new());
    }
}

fn text(octets: &[u8]) -> String {
    String::from_utf8(octets.to_vec()).unwrap()
}

/// Its document, after checks that hold of every good run.
#[track_caller]
fn document(output: &Output) -> Document {
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{out}\n{err}");
    // No progress where there is no terminal.
    assert_eq!(err, "");
    let document: Document = serde_json::from_str(&out).unwrap();
    assert_eq!(document.format, FORMAT);
    assert_eq!(document.program, "nos-relay bench");
    assert_eq!(document.version, env!("CARGO_PKG_VERSION"));
    assert!(document.correct, "{:?}", document.failures);
    assert_eq!(document.failures, []);
    assert!(!document.machine.kernel.is_empty() && document.machine.cpus > 0);
    for figure in &document.results {
        assert_eq!(figure.samples.len(), document.rounds as usize, "{figure:?}");
        let spread = figure.spread;
        assert!(spread.min <= spread.median && spread.median <= spread.max);
        for sample in &figure.samples {
            assert!(
                sample.value.is_finite() && sample.value >= 0.0,
                "{figure:?}"
            );
            assert!(sample.seconds > 0.0 && sample.machine_cpu_seconds >= 0.0);
            let has_process = figure.path != "kernel";
            assert_eq!(sample.forwarder_cpu_seconds.is_some(), has_process);
            // There is traffic, but for the rows that are about its absence.
            let traffic = figure.row != "idle" && !figure.row.starts_with("attach-");
            assert_eq!(sample.octets > 0, traffic, "{figure:?}");
        }
    }
    document
}

fn pairs(document: &Document) -> BTreeSet<(String, String)> {
    let results = document.results.iter();
    results
        .map(|figure| (figure.row.clone(), figure.path.clone()))
        .collect()
}

fn quick<'a>(rows: &'a str, paths: &'a str) -> Vec<&'a str> {
    let mut arguments = vec!["--quick", "--json", "--rows", rows, "--paths", paths];
    arguments.extend(SHORT);
    arguments
}

lab_test! {
    fn every_row_is_measured_on_relay_and_bare_forwarder() {
        let place = Place::new();
        let mut arguments = quick(ROWS, "relay,bare-tap,bare-packet");
        arguments.extend(["--plot", "bars.svg"]);
        let document = document(&place.run(&arguments));
        let paths: BTreeSet<_> = document.results.iter().map(|figure| figure.path.as_str()).collect();
        let mut expected = BTreeSet::from(["relay-veth", "relay-veth-split", "relay-bridge", "bare-packet"]);
        match tun_access() {
            Ok(()) => expected.extend(["relay-tap", "relay-tap-split", "bare-tap"]),
            Err(error) => {
                skip(&format!("bench on TAPs: /dev/net/tun: {error}"));
                assert_eq!(document.missing.len(), 3, "{:?}", document.missing);
                assert!(document.missing[0].why.contains("/dev/net/tun"));
            }
        }
        assert_eq!(paths, expected);
        let rows: Vec<_> = ROWS.split(',').collect();
        assert_eq!(document.results.len(), rows.len() * paths.len());
        for figure in &document.results {
            assert!(rows.contains(&figure.row.as_str()));
            let relay = figure.path.starts_with("relay-");
            assert_eq!(figure.target.is_some(), relay && figure.row == "idle", "{figure:?}");
        }
        for ratio in &document.ratios {
            let tap = |path: &str| path.contains("tap");
            assert_eq!(tap(&ratio.path), tap(&ratio.to), "{ratio:?}");
            assert!(ratio.ratio.is_finite() && ratio.min <= ratio.max);
            let single = !ratio.path.ends_with("-split");
            let has_target = ratio.row.starts_with("tcp-")
                || (single && ["rr-udp-out", "connect-in"].contains(&ratio.row.as_str()));
            assert_eq!(ratio.target.is_some(), has_target, "{ratio:?}");
        }
        let relays = paths.iter().filter(|path| path.starts_with("relay-")).count();
        let with_ratio = document.ratios.iter().filter(|ratio| ratio.to.starts_with("bare-"));
        assert!(with_ratio.count() >= relays * (rows.len() - 2));
        let svg = place.read("bars.svg");
        assert_eq!(svg.matches("<rect x=").count(), document.results.len());
        place.assert_nothing_is_left();
    }
}

lab_test! {
    fn two_containers_are_measured_against_each_other() {
        let place = Place::new();
        let document = document(&place.run(&quick("fairness,memory", "relay-veth")));
        let fairness = &document.results[1];
        assert_eq!(fairness.row, "fairness");
        for name in ["p99 us", "p99 us alone", "flood kpps"] {
            assert!(fairness.samples[0].more[name] > 0.0, "{fairness:?}");
        }
        let memory = &document.results[0];
        assert!(memory.spread.min > 1.0 && memory.target.is_some(), "{memory:?}");
        place.assert_nothing_is_left();
    }
}

lab_test! {
    fn a_victim_is_measured_beside_others_and_beside_the_relays_own_work() {
        let place = Place::new();
        let document = document(&place.run(&quick("starve,show-loop,detach-300", "relay-veth")));
        let p99 = ["p99 us", "p99 us alone", "sent to unused"];
        let show = ["p99.9 us", "p99.9 us alone", "shows of all 1/s"];
        let detach = ["p99.9 us", "p99.9 us alone", "detached in ms"];
        let wanted = [("starve", p99), ("show-loop", show), ("detach-300", detach)];
        assert_eq!(document.results.len(), wanted.len());
        for (figure, (row, names)) in document.results.iter().zip(wanted) {
            assert_eq!(figure.row, row);
            assert_eq!(figure.target.as_ref().unwrap().target, "≤ 3");
            for name in names {
                assert!(figure.samples[0].more[name] > 0.0, "{name}: {figure:?}");
            }
        }
        place.assert_nothing_is_left();
    }
}

lab_test! {
    fn a_start_with_many_containers_and_its_end_are_measured() {
        let place = Place::new();
        let document = document(&place.run(&quick("attach-300", "relay-veth")));
        let [figure] = &document.results[..] else {
            panic!("{:?}", document.results);
        };
        for sample in &figure.samples {
            assert_eq!(sample.operations, 300);
            let (ready, end) = (sample.more["ready s"], sample.more["end s"]);
            assert!(ready > 0.0 && end > 0.0, "{figure:?}");
            assert!((sample.value - ready.max(end)).abs() < 1e-9, "{figure:?}");
        }
        assert_eq!(figure.target.as_ref().unwrap().target, "≤ 1");
        place.assert_nothing_is_left();
    }
}

lab_test! {
    fn the_kernels_path_is_measured_where_nft_is_installed() {
        let place = Place::new();
        let output = place.run(&quick("tcp-in,tcp-out-v6", "kernel,bare-packet"));
        let document = document(&output);
        let mut expected = BTreeSet::from(
            [("tcp-in", "bare-packet"), ("tcp-out-v6", "bare-packet")]
                .map(|(row, path)| (row.to_owned(), path.to_owned())),
        );
        match BenchPath::Kernel.missing() {
            // IPv4 only.
            None => drop(expected.insert(("tcp-in".to_owned(), "kernel".to_owned()))),
            Some(why) => {
                skip(&format!("the kernel's path: {why}"));
                assert_eq!(document.missing[0].why, why);
            }
        }
        assert_eq!(pairs(&document), expected);
        place.assert_nothing_is_left();
    }
}

lab_test! {
    fn a_run_is_compared_with_an_earlier_one() {
        let place = Place::new();
        let arguments = quick("connect-out", "relay-veth,bare-packet");
        let mut then = document(&place.run(&arguments));
        // A relay that was a thousand times as fast, and a bare forwarder a thousand times as slow.
        for figure in &mut then.results {
            let factor = if figure.path == "relay-veth" { 1e3 } else { 1e-3 };
            let spread = &mut figure.spread;
            for value in [&mut spread.min, &mut spread.median, &mut spread.max] {
                *value *= factor;
            }
        }
        then.ratios.clear();
        place.write("then.json", &serde_json::to_string(&then).unwrap());
        let with_baseline = [&arguments[..], &["--baseline", "then.json"]].concat();
        let now = document(&place.run(&with_baseline));
        let changes: BTreeSet<_> = now
            .baseline
            .iter()
            .map(|verdict| (verdict.path.as_str(), verdict.change.to_string()))
            .collect();
        let expected = [("relay-veth", "worse"), ("bare-packet", "better")];
        assert_eq!(changes, expected.map(|(path, change)| (path, change.to_owned())).into());

        let table: Vec<_> = with_baseline.iter().copied().filter(|&argument| argument != "--json").collect();
        let output = place.run(&table);
        assert_eq!(output.status.code(), Some(0));
        let out = text(&output.stdout);
        for wanted in ["COMPARED", "WORSE", "better", "connect-out: connect, ask", " x bare-packet"] {
            assert!(out.contains(wanted), "{wanted}: {out}");
        }
        place.assert_nothing_is_left();
    }
}

lab_test! {
    fn a_file_that_is_no_baseline_is_refused_before_anything_is_measured() {
        let place = Place::new();
        place.write("text.json", "not JSON");
        place.write("other.json", r#"{"format": 99}"#);
        for (file, why) in [
            ("missing.json", "No such file or directory"),
            ("text.json", "not a result of `nos-relay bench --json`: expected"),
            ("other.json", "its format is 99, this program's is 1"),
        ] {
            let output = place.run(&["--quick", "--baseline", file]);
            assert_eq!(output.status.code(), Some(1));
            assert_eq!(text(&output.stdout), "");
            let err = text(&output.stderr);
            assert!(err.starts_with(&format!("nos-relay: baseline {file}: ")), "{err}");
            assert!(err.contains(why), "{err}");
        }
        place.assert_nothing_is_left();
    }
}

lab_test! {
    fn an_interrupted_bench_leaves_nothing() {
        let place = Place::new();
        let arguments = ["--rows", "tcp-out", "--paths", "relay-veth,bare-packet", "--seconds", "60"];
        let child = place.start(&arguments);
        let begin = Instant::now();
        while !place.has_daemon() {
            assert!(begin.elapsed() < LIMIT, "no daemon within {LIMIT:?}");
            sleep(Duration::from_millis(2));
        }
        kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGINT).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(INTERRUPTED));
        assert_eq!(text(&output.stdout), "");
        assert_eq!(text(&output.stderr), "nos-relay: bench interrupted\n");
        place.assert_nothing_is_left();
    }
}

#[test]
fn the_list_names_all_rows_and_paths() {
    let output = Command::new(program()).args(["bench", "--list"]).output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(0));
    let out = text(&output.stdout);
    for row in nos_relay::lab::bench::plan::rows() {
        assert!(out.contains(&format!(" {} ", row.name)), "{}", row.name);
    }
    for path in BenchPath::ALL {
        assert!(out.contains(&format!(" {path} ")), "{path}");
    }
}

#[test]
fn filters_that_pick_nothing_are_refused() {
    for (option, what) in [("--rows", "row"), ("--paths", "path")] {
        let output = Command::new(program())
            .args(["bench", option, "warp"])
            .output();
        let output = output.unwrap();
        assert_eq!(output.status.code(), Some(1));
        let err = text(&output.stderr);
        assert!(
            err.contains(&format!("no {what} is called \"warp\"")),
            "{err}"
        );
    }
}
