//! Programs in C, built by `cc` through pkg-config against the installed library: calls with wrong values, a
//! relay called in and out of order, and the NOS of `examples/c`, which forwards between namespaces. Each runs
//! as it is, under AddressSanitizer with UndefinedBehaviorSanitizer, and under valgrind.
//!
//! They run as root. `tests/unprivileged` does not run them: what they need is a TAP and a packet socket, which
//! `tests/embed.rs` shows to be had in user namespaces.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends where what it needs is not there"
)]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use nos_relay::lab::testbed::{LabNamespace, Privileges, Topology, privileges, tcp, udp};

/// For a program under valgrind on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Where cargo has built the library: beside this test.
fn built() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().unwrap().to_owned()
}

fn install(arguments: &[&str]) -> Output {
    let mut install = Command::new(root().join("install"));
    install.args(arguments).output().unwrap()
}

/// The place where all tests find the library, as a program's builder does.
fn prefix() -> &'static Path {
    static PREFIX: OnceLock<PathBuf> = OnceLock::new();
    PREFIX.get_or_init(|| {
        let prefix = Path::new(env!("CARGO_TARGET_TMPDIR")).join("capi");
        let _ = fs::remove_dir_all(&prefix);
        let (to, from) = (prefix.to_str().unwrap(), built());
        let installed = install(&["--prefix", to, "--built", from.to_str().unwrap()]);
        succeeded("install", &installed);
        prefix
    })
}

#[track_caller]
fn succeeded(what: &str, output: &Output) {
    let (out, err) = (&output.stdout, &output.stderr);
    assert!(
        output.status.success(),
        "{what}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(out),
        String::from_utf8_lossy(err)
    );
}

/// How a program is built and run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Shared,
    Static,
    Sanitized,
    Valgrind,
}

impl Way {
    const ALL: [Self; 4] = [Self::Shared, Self::Static, Self::Sanitized, Self::Valgrind];

    /// What pkg-config says a program is to be built with.
    fn flags(self) -> Vec<String> {
        let mut config = Command::new("pkg-config");
        config.args(["--cflags", "--libs", "nos_relay"]);
        if self == Self::Static {
            config.arg("--static");
        }
        let directory = prefix().join("lib/pkgconfig");
        let output = config.env("PKG_CONFIG_PATH", directory).output().unwrap();
        succeeded("pkg-config", &output);
        let flags = String::from_utf8(output.stdout).unwrap();
        let flags = flags.split_whitespace().map(|flag| match (flag, self) {
            // The shared one is beside it.
            ("-lnos_relay", Self::Static) => "-l:libnos_relay.a".to_owned(),
            (flag, _) => flag.to_owned(),
        });
        flags.collect()
    }

    fn build(self, source: &Path, into: &Path) -> PathBuf {
        let program = into.join(format!(
            "{}-{self:?}",
            source.file_stem().unwrap().display()
        ));
        let mut cc = Command::new("cc");
        cc.args(["-g", "-O1", "-Wall", "-Wextra", "-Werror"]);
        if self == Self::Sanitized {
            cc.args(["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]);
        }
        cc.arg("-o")
            .arg(&program)
            .arg(source)
            .args(self.flags())
            .arg("-pthread");
        succeeded(&format!("{cc:?}"), &cc.output().unwrap());
        program
    }

    fn command(self, program: &Path) -> Command {
        let mut command = match self {
            Self::Valgrind => {
                let mut valgrind = Command::new("valgrind");
                valgrind.args(["--quiet", "--error-exitcode=99", "--leak-check=full"]);
                // The standard library keeps a thread's handle by a pointer into its middle, which
                // is "possibly lost" to valgrind.
                valgrind
                    .arg("--errors-for-leak-kinds=definite")
                    .arg("--show-leak-kinds=definite");
                valgrind.arg(program);
                valgrind
            }
            _ => Command::new(program),
        };
        command.env("LD_LIBRARY_PATH", prefix().join("lib"));
        command.env(
            "ASAN_OPTIONS",
            "detect_leaks=1:detect_stack_use_after_return=1",
        );
        command
    }
}

fn program(name: &str) -> PathBuf {
    root().join("tests/c").join(name)
}

#[test]
fn wrong_values_are_told_by_code_and_name() {
    let place = tempfile::tempdir().unwrap();
    for way in Way::ALL {
        let built = way.build(&program("bad_calls.c"), place.path());
        let output = way.command(&built).output().unwrap();
        succeeded(&format!("{way:?}"), &output);
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(said.ends_with(" calls, 0 wrong\n"), "{way:?}: {said}");
    }
}

/// Whether namespaces can be made here; says so if not.
fn may_have_namespaces() -> bool {
    let may = privileges() == Privileges::Root;
    if !may {
        eprintln!("skipped: it takes root to make namespaces");
    }
    may
}

/// A file that stands for a namespace, as `ip netns` makes it. One below `/proc` would be watched by its process,
/// for which valgrind has no system call (pidfd_open).
struct NamedNamespace {
    file: PathBuf,
}

impl NamedNamespace {
    fn new(of: &LabNamespace, place: &Path) -> Self {
        let file = place.join("netns");
        fs::write(&file, "").unwrap();
        let mut mount = Command::new("mount");
        mount.arg("--bind").arg(of.path()).arg(&file);
        succeeded("mount", &mount.output().unwrap());
        Self { file }
    }
}

impl Drop for NamedNamespace {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(&self.file).status();
        assert!(unmounted.unwrap().success() || std::thread::panicking());
    }
}

#[test]
fn a_relay_is_called_in_and_out_of_order() {
    if !may_have_namespaces() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    for way in Way::ALL {
        let built = way.build(&program("relay.c"), place.path());
        let lab = Topology::new(&["web"]).unwrap();
        let named = NamedNamespace::new(&lab.containers[0], place.path());
        let mut command = way.command(&built);
        command.arg(&named.file);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = lab.device.spawn(command).unwrap();
        let output = child.wait_with_output().unwrap();
        succeeded(&format!("{way:?}"), &output);
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(said.ends_with(" calls, 0 wrong\n"), "{way:?}: {said}");
        assert!(
            lab.containers[0].link("eth0").unwrap().is_none(),
            "nothing is left"
        );
    }
}

/// The NOS of the examples, in the device of a network.
fn start_nos(way: Way, built: &Path, lab: &Topology, named: &NamedNamespace) -> Child {
    let configuration = format!(
        "[[uplink]]\nname = \"up0\"\ndevice = \"nos\"\naddresses = [\"203.0.113.1/24\"]\n\
         [[container]]\nname = \"web\"\ndevice = \"tap\"\nnetns = \"{}\"\ntcp = [\"20000-20099\"]\n\
         udp = [\"20000-20099\"]\nephemeral = \"40000-44999\"\n",
        named.file.display()
    );
    let mut command = way.command(built);
    command.args([Topology::UPLINK, "203.0.113.1", &configuration]);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    lab.device.spawn(command).unwrap()
}

/// TCP and UDP, from outside and from the container.
fn exchange_both_ways(web: &LabNamespace, external: &LabNamespace) {
    let near = SocketAddr::new(Topology::DEVICE_V4.into(), 20_000);
    let far = SocketAddr::new(Topology::EXTERNAL_V4.into(), 5000);
    let payload: Vec<u8> = (0..60_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    let datagram = &payload[..1400];

    let inside = tcp::EchoServer::start(web, near).unwrap();
    tcp::exchange(external, None, near, &payload, LIMIT).unwrap();
    drop(inside);
    let outside = tcp::EchoServer::start(external, far).unwrap();
    let from = tcp::exchange(web, None, far, &payload, LIMIT).unwrap();
    assert_eq!(from.ip(), near.ip());
    assert!((40_000..45_000).contains(&from.port()), "{from}");
    drop(outside);

    let inside = udp::EchoServer::start(web, near).unwrap();
    udp::exchange(external, None, near, datagram, LIMIT).unwrap();
    drop(inside);
    let _outside = udp::EchoServer::start(external, far).unwrap();
    let from = udp::exchange(web, None, far, datagram, LIMIT).unwrap();
    assert_eq!(from.ip(), near.ip());
    assert!((40_000..45_000).contains(&from.port()), "{from}");
}

#[test]
fn the_example_forwards_real_traffic() {
    if !may_have_namespaces() {
        return;
    }
    let source = root().join("../examples/c/nos.c");
    let lines = fs::read_to_string(&source).unwrap().lines().count();
    assert!(lines < 100, "the example has {lines} lines");
    let place = tempfile::tempdir().unwrap();
    for way in Way::ALL {
        let built = way.build(&source, place.path());
        let lab = Topology::new(&["web"]).unwrap();
        let named = NamedNamespace::new(&lab.containers[0], place.path());
        let mut nos = start_nos(way, &built, &lab, &named);
        let mut line = String::new();
        BufReader::new(nos.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        if line == "ready\n" {
            exchange_both_ways(&lab.containers[0], &lab.external);
        }
        drop(nos.stdin.take());
        let mut said = String::new();
        nos.stderr
            .take()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        let status = nos.wait().unwrap();
        // valgrind says which system calls it does not know, besides.
        let silent = said.is_empty() || way == Way::Valgrind;
        assert!(status.success() && silent, "{way:?}: {status}\n{said}");
        assert_eq!(line, "ready\n", "{way:?}");
        assert!(
            lab.containers[0].link("eth0").unwrap().is_none(),
            "nothing is left"
        );
    }
}

/// As `cargo cinstall` has it, below a directory of a package's.
#[test]
fn what_is_installed_lies_where_it_belongs() {
    let place = tempfile::tempdir().unwrap();
    let (from, to) = (place.path().join("built"), place.path().join("package"));
    fs::create_dir(&from).unwrap();
    let arguments = [
        "--prefix",
        "/opt/nos",
        "--libdir",
        "/opt/nos/lib64",
        "--destdir",
        to.to_str().unwrap(),
        "--built",
        from.to_str().unwrap(),
    ];
    let missing = install(&arguments);
    let said = String::from_utf8(missing.stderr).unwrap();
    assert!(
        !missing.status.success() && said.contains("there is no libnos_relay_capi.so"),
        "{said}"
    );
    for file in ["libnos_relay_capi.so", "libnos_relay_capi.a"] {
        fs::write(from.join(file), file).unwrap();
    }
    succeeded("install", &install(&arguments));
    let lib = to.join("opt/nos/lib64");
    let version = env!("CARGO_PKG_VERSION");
    for name in ["libnos_relay.so".to_owned(), "libnos_relay.so.0".to_owned()] {
        let link = fs::read_link(lib.join(&name)).unwrap();
        assert_eq!(link, Path::new(&format!("libnos_relay.so.{version}")));
        assert_eq!(fs::read(lib.join(&name)).unwrap(), b"libnos_relay_capi.so");
    }
    assert_eq!(
        fs::read(lib.join("libnos_relay.a")).unwrap(),
        b"libnos_relay_capi.a"
    );
    assert!(to.join("opt/nos/include/nos_relay.h").is_file());
    let config = fs::read_to_string(lib.join("pkgconfig/nos_relay.pc")).unwrap();
    assert!(config.contains("prefix=/opt/nos\n") && config.contains("libdir=/opt/nos/lib64\n"));
    assert!(
        config.contains(&format!("Version: {version}\n")),
        "{config}"
    );

    for (arguments, said) in [
        (&["--prefix", "here"][..], "is not absolute"),
        (&["--where"], "--where is none of"),
        (&["--prefix"], "needs a directory"),
    ] {
        let refused = install(arguments);
        let error = String::from_utf8(refused.stderr).unwrap();
        assert!(!refused.status.success() && error.contains(said), "{error}");
    }
}

/// What the dynamic linker looks for, and what the linker may find: nothing but functions of the header.
#[test]
fn the_library_has_its_name_and_no_other_symbols() {
    let library = prefix().join("lib/libnos_relay.so");
    let read = |arguments: &[&str]| {
        let output = Command::new("readelf")
            .args(arguments)
            .arg(&library)
            .output()
            .unwrap();
        succeeded("readelf", &output);
        String::from_utf8(output.stdout).unwrap()
    };
    let dynamic = read(&["--dynamic", "--wide"]);
    assert!(dynamic.contains("soname: [libnos_relay.so.0]"), "{dynamic}");
    let symbols = read(&["--dyn-syms", "--wide"]);
    let defined = symbols
        .lines()
        .filter(|line| line.contains(" GLOBAL DEFAULT ") && !line.contains(" UND "));
    let names: Vec<_> = defined
        .filter_map(|line| line.split_whitespace().last())
        .collect();
    let foreign: Vec<_> = names
        .iter()
        .filter(|name| !name.starts_with("nos_relay_"))
        .collect();
    assert!(foreign.is_empty(), "{foreign:?}");
    assert!(names.len() > 50, "{names:?}");
}
