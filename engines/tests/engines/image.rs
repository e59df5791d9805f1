//! An image of one static program, as none can be pulled.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::json;
use sha2::{Digest, Sha256};

/// What engines call it.
pub(crate) const NAME: &str = "localhost/nos-relay-test:1";
/// Where a container made of it connects to first, if somebody listens there.
pub(crate) const GREETED: u16 = 7000;

const BUSYBOX: &str = "/bin/busybox";

/// Whether an engine may mount and make control groups: one in a user namespace may not.
pub(crate) fn is_root() -> Result<(), String> {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let whole = map.split_whitespace().eq(["0", "0", "4294967295"]);
    match whole && nix::unistd::geteuid().is_root() {
        true => Ok(()),
        false => Err("engines need the machine's root".to_owned()),
    }
}

/// Whether an engine has done what it needs nothing of ours for. Machines whose control groups or mounts
/// it cannot use are no place to try it.
pub(crate) fn starts_at_all(engine: &str, output: &Output) -> Result<(), String> {
    let said = String::from_utf8_lossy(&output.stderr);
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{engine} starts no container at all here: {said}")),
    }
}

/// Whether programs of these names are installed, and what of them is not.
pub(crate) fn installed(programs: &[&str]) -> Result<(), String> {
    let there = |program: &&&str| {
        let path = std::env::var("PATH").unwrap_or_default();
        let mut folders = path.split(':').chain(["/usr/sbin", "/sbin"]);
        !folders.any(|folder| Path::new(folder).join(program).exists())
    };
    let missing: Vec<_> = programs.iter().filter(there).copied().collect();
    match missing.is_empty() {
        true => is_static(),
        false => Err(format!("{} is not installed", missing.join(", "))),
    }
}

fn is_static() -> Result<(), String> {
    let applets = Command::new(BUSYBOX).arg("--list").output();
    let applets = applets.map_err(|error| format!("{BUSYBOX}: {error}"))?;
    let octets = fs::read(BUSYBOX).map_err(|error| error.to_string())?;
    let has_httpd = String::from_utf8_lossy(&applets.stdout).contains("httpd");
    match has_httpd && !has_interpreter(&octets) {
        true => Ok(()),
        false => Err("busybox-static is not installed".to_owned()),
    }
}

/// Whether a 64-bit ELF file has a program header of the type `PT_INTERP`.
fn has_interpreter(file: &[u8]) -> bool {
    let number = |at: usize, octets: usize| {
        let field = file[at..at + octets].iter().rev();
        field.fold(0, |sum, octet| sum << 8 | usize::from(*octet))
    };
    let (headers, length, count) = (number(32, 8), number(54, 2), number(56, 2));
    (0..count).any(|index| number(headers + index * length, 4) == 3)
}

/// Makes the image in `folder`, as `docker save` has it. A container of it greets the outsider, and
/// serves `nos-relay` over HTTP at the port in its argument, or 20000.
pub(crate) fn make(folder: &Path) -> PathBuf {
    let root = folder.join("root");
    for part in ["bin", "dev", "etc", "proc", "sys", "tmp", "www"] {
        fs::create_dir_all(root.join(part)).unwrap();
    }
    fs::copy(BUSYBOX, root.join("bin/busybox")).unwrap();
    for applet in [
        "sh", "cat", "echo", "httpd", "ip", "nc", "ping", "sleep", "wget",
    ] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    fs::write(root.join("www/index.html"), "nos-relay\n").unwrap();
    let serve = format!(
        "echo out | nc -w 5 203.0.113.2 {GREETED}\nexec httpd -f -p ${{1:-20000}} -h /www\n"
    );
    fs::write(root.join("bin/serve"), serve).unwrap();
    let layer = folder.join("layer.tar");
    tar(&root, &layer, &["."]);
    let digest: String = Sha256::digest(fs::read(&layer).unwrap())
        .iter()
        .map(|octet| format!("{octet:02x}"))
        .collect();
    let architecture = if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    };
    let config = json!({
        "architecture": architecture, "os": "linux",
        "config": {"Entrypoint": ["/bin/sh", "/bin/serve"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
        "history": [{"created_by": "nos-relay"}],
    });
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let manifest = json!([{"Config": "config.json", "RepoTags": [NAME], "Layers": ["layer.tar"]}]);
    fs::write(folder.join("manifest.json"), manifest.to_string()).unwrap();
    let image = folder.join("image.tar");
    tar(
        folder,
        &image,
        &["manifest.json", "config.json", "layer.tar"],
    );
    image
}

fn tar(from: &Path, into: &Path, what: &[&str]) {
    let mut command = Command::new("tar");
    command.arg("-C").arg(from).arg("-cf").arg(into).args(what);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
}
