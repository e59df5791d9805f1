//! Everything that can go wrong around a daemon, again and again, in random order, under traffic.
//!
//! `NOS_RELAY_CHAOS_ROUNDS` is the number of rounds, `NOS_RELAY_CHAOS_SEED` their order; a failure
//! shows both. At the end all is as it is wanted, nothing of the daemon has grown, no packet is
//! missing, and once it has ended nothing is left.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::signal::Signal;
use nos_relay::control::api::snapshot::{Link, LinkState};
use nos_relay::lab::testbed::ping::ping;
use nos_relay::lab::testbed::{LabNamespace, Topology, tcp, tun_access, veth};
use support::daemon::{Daemon, Files, LIMIT, await_that};
use support::lab_test;
use support::names::{Mounted, add_name, delete_name};
use support::scenario::{FAMILIES, V4};

/// Containers to which things happen.
const VICTIMS: usize = 6;
/// About ten seconds.
const ROUNDS: u32 = 200;
/// A connection lives on while it has nothing to fear for so long.
const PATIENCE: Duration = Duration::from_secs(120);

/// A container by a name that can lead to another namespace.
struct Victim {
    name: String,
    device: &'static str,
    path: PathBuf,
    /// `None` while there is none.
    namespace: Option<LabNamespace>,
    port: u16,
    more_ports: bool,
    capture: bool,
}

impl Victim {
    fn new(number: u16, names: &Mounted) -> Self {
        let name = format!("v{number}");
        let device = match number.is_multiple_of(2) && tun_access().is_ok() {
            true => "tap",
            false => "veth",
        };
        let mut victim = Self {
            path: names.at(&name),
            name,
            device,
            namespace: None,
            port: 22000 + 10 * number,
            more_ports: false,
            capture: false,
        };
        victim.start();
        victim
    }

    fn start(&mut self) {
        let namespace = LabNamespace::new(&self.name).unwrap();
        add_name(&namespace, &self.path);
        self.namespace = Some(namespace);
    }

    /// Deletes its name, and returns its namespace.
    fn end(&mut self) -> Option<LabNamespace> {
        let namespace = self.namespace.take()?;
        delete_name(&self.path);
        Some(namespace)
    }

    /// Its interface inside, under whatever name; `None` while there is none.
    fn interface(&self) -> Option<String> {
        let links = links_of(self.namespace.as_ref()?);
        links.into_iter().find(|name| name.starts_with("eth"))
    }

    fn config(&self, files: &Files) -> String {
        let Self {
            name,
            device,
            path,
            port,
            ..
        } = self;
        let (path, first) = (path.display(), 50000 + (port - 22000) * 10);
        let last = port + if self.more_ports { 4 } else { 0 };
        let mut text = format!(
            "
            [[container]]
            name = \"{name}\"
            netns = \"{path}\"
            device = \"{device}\"
            tcp = [\"{port}-{last}\"]
            udp = [{port}]
            ephemeral = \"{first}-{}\"
            ",
            first + 99
        );
        if self.capture {
            let file = files.path(&format!("{name}.pcapng"));
            writeln!(text, "capture = \"{}\"", file.display()).unwrap();
        }
        text
    }
}

/// Names of all interfaces.
fn links_of(namespace: &LabNamespace) -> BTreeSet<String> {
    let read = || fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let text = namespace.run(read).unwrap();
    let names = text.lines().skip(2).filter_map(|line| line.split_once(':'));
    names.map(|(name, _)| name.trim().to_owned()).collect()
}

/// A network of the NOS, with a host on it.
struct Uplink {
    /// `None` while there is none.
    present: Option<String>,
    /// As configured.
    device: &'static str,
    far: LabNamespace,
    far_interface: &'static str,
    addresses: Vec<ipnet::IpNet>,
    capture: bool,
}

impl Uplink {
    fn make(&mut self, host: &LabNamespace) {
        veth((host, self.device), (&self.far, self.far_interface)).unwrap();
        for &address in &self.addresses {
            self.far.add_address(self.far_interface, address).unwrap();
        }
        self.present = Some(self.device.to_owned());
    }

    fn delete(&mut self, host: &LabNamespace) {
        if let Some(present) = self.present.take() {
            host.delete_link(&present).unwrap();
        }
    }

    fn rename(&mut self, host: &LabNamespace) {
        let Some(present) = &mut self.present else {
            return;
        };
        let next = match present == self.device {
            true => format!("{present}x"),
            false => self.device.to_owned(),
        };
        host.set_down(present).unwrap();
        host.rename(present, &next).unwrap();
        host.set_up(&next).unwrap();
        *present = next;
    }
}

/// Whether up0 is away: odd while it is, and another number each time.
#[derive(Clone, Default)]
struct Away(Arc<AtomicU64>);

impl Away {
    fn turn(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    fn now(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// What goes on between `db` and X all the time.
struct Traffic {
    stop: Arc<AtomicBool>,
    talk: JoinHandle<u64>,
    pings: JoinHandle<(u64, u64)>,
}

impl Traffic {
    fn start(db: &LabNamespace, x: &LabNamespace, away: &Away) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        // X's addresses go with its interface, while its sockets stay.
        let any = (V4.any, 9000);
        let listener = x.run(|| TcpListener::bind(any).unwrap()).unwrap();
        let near = tcp::connect(db, None, V4.external_port(9000), PATIENCE).unwrap();
        let (far, _) = listener.accept().unwrap();
        std::thread::spawn(move || reflect(far));
        let stopped = Arc::clone(&stop);
        let talk = std::thread::spawn(move || talk(near, &stopped));
        let (stopped, away, db) = (Arc::clone(&stop), away.clone(), db.clone());
        let pings = std::thread::spawn(move || ping_on(&db, &away, &stopped));
        Self { stop, talk, pings }
    }

    /// Fails where something was lost or changed.
    fn check(&self) {
        assert!(!self.talk.is_finished(), "the connection has ended");
        assert!(!self.pings.is_finished(), "a ping was lost");
    }

    fn finish(self) {
        self.stop.store(true, Ordering::SeqCst);
        let octets = self.talk.join().unwrap();
        let (answered, lost) = self.pings.join().unwrap();
        println!("{octets} octets there and back; {answered} pings answered, {lost} lost");
        assert!(octets > 0 && answered > 0);
    }
}

fn reflect(mut stream: TcpStream) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..length]).is_err() {
            return;
        }
    }
}

/// Sends octets that are never the same, and checks that they come back; returns how many.
fn talk(mut stream: TcpStream, stop: &AtomicBool) -> u64 {
    let mut octets = 0;
    let mut random = fastrand::Rng::with_seed(1);
    let (mut message, mut answer) = (vec![0; 20_000], vec![0; 20_000]);
    while !stop.load(Ordering::SeqCst) {
        random.fill(&mut message);
        stream.write_all(&message).unwrap();
        stream.read_exact(&mut answer).unwrap();
        assert!(
            answer == message,
            "octets behind {octets} came back changed"
        );
        octets += message.len() as u64;
        // Leaves the processors to those who heal.
        std::thread::sleep(Duration::from_millis(2));
    }
    octets
}

/// Returns how many pings were answered, and how many were lost while the uplink was away; others
/// may not be lost.
fn ping_on(from: &LabNamespace, away: &Away, stop: &AtomicBool) -> (u64, u64) {
    let (mut answered, mut lost) = (0, 0);
    while !stop.load(Ordering::SeqCst) {
        for family in FAMILIES {
            let before = away.now();
            if before % 2 == 1 {
                continue;
            }
            let echo = ping(from, family.external, 1, Duration::from_secs(2)).unwrap()[0];
            assert!(echo.is_reply() || away.now() != before, "{echo:?}");
            *(if echo.is_reply() {
                &mut answered
            } else {
                &mut lost
            }) += 1;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    (answered, lost)
}

struct Chaos {
    // First, so that it is stopped while the networks are there.
    daemon: Daemon,
    random: fastrand::Rng,
    device: LabNamespace,
    db: LabNamespace,
    uplinks: [Uplink; 2],
    victims: Vec<Victim>,
    /// Namespaces that somebody keeps although their containers have ended.
    kept: Vec<LabNamespace>,
    away: Away,
    /// What was done, for those who look for a fault.
    done: Vec<String>,
}

/// What can happen to one victim.
const VICTIM_ACTIONS: [&str; 9] = [
    "restart",
    "restart, kept",
    "end",
    "delete",
    "down and up",
    "rename",
    "address",
    "route",
    "mtu",
];

impl Chaos {
    fn config(&self) -> String {
        let path = |name: &str| self.daemon.files().path(name);
        config(
            &self.db,
            &self.uplinks,
            &self.victims,
            self.daemon.files(),
            &path("up.pcapng"),
        )
    }

    fn round(&mut self) {
        for _ in 0..self.random.u32(1..=3) {
            match self.random.u32(0..10) {
                0..=5 => self.hit_victim(),
                6 => self.hit_uplink(1),
                7 => self.hit_uplink(0),
                _ => self.reload(),
            }
        }
        for victim in &mut self.victims {
            if victim.namespace.is_none() && self.random.bool() {
                victim.start();
            }
        }
        self.kept.clear();
    }

    fn note(&mut self, what: String) {
        self.done.push(what);
    }

    fn hit_victim(&mut self) {
        let number = self.random.usize(0..self.victims.len());
        let action = self.random.choice(VICTIM_ACTIONS).unwrap();
        let name = self.victims[number].name.clone();
        self.note(format!("{name}: {action}"));
        let victim = &mut self.victims[number];
        match action {
            "restart" => {
                drop(victim.end());
                victim.start();
            }
            "restart, kept" => {
                self.kept.extend(victim.end());
                victim.start();
            }
            "end" => drop(victim.end()),
            action => {
                // The daemon may have deleted it a moment ago.
                let _ = disturb(victim, action);
            }
        }
    }

    fn hit_uplink(&mut self, number: usize) {
        let action = self.random.u32(0..4);
        self.note(format!("up{number}: {action}"));
        if action == 3 {
            // An interface is followed under another name once it was found under its own.
            self.await_uplink(number);
        }
        let uplink = &mut self.uplinks[number];
        if number == 0 {
            self.away.turn();
        }
        match (action, &uplink.present) {
            (_, None) => uplink.make(&self.device),
            (0, _) => {
                uplink.delete(&self.device);
                uplink.make(&self.device);
            }
            (1, _) if number == 1 => uplink.delete(&self.device),
            (2, Some(present)) => {
                self.device.set_down(present).unwrap();
                self.device.set_up(present).unwrap();
            }
            _ => uplink.rename(&self.device),
        }
        if number == 0 {
            self.await_uplink(0);
            // Until its neighbor is known again, packets wait; then they pass.
            self.away.turn();
        }
    }

    fn reload(&mut self) {
        let number = self.random.usize(0..self.victims.len());
        let victim = &mut self.victims[number];
        match self.random.u32(0..3) {
            0 => victim.more_ports ^= true,
            1 => victim.capture ^= true,
            _ => self.uplinks[number % 2].capture ^= true,
        }
        self.note("reload".to_owned());
        self.daemon.reload(&self.config());
    }

    /// Brings back what is away, and waits until all is as it is wanted.
    fn converge(&mut self) {
        for victim in &mut self.victims {
            if victim.namespace.is_none() {
                victim.start();
            }
        }
        if self.uplinks[1].present.is_none() {
            self.uplinks[1].make(&self.device);
        }
        self.await_uplink(0);
        self.await_uplink(1);
        await_that("all containers are up", || {
            let rows = self.daemon.attachments();
            let bad: Vec<_> = rows.iter().filter(|row| !is_fine(&row.link)).collect();
            bad.is_empty()
                .then_some(())
                .ok_or_else(|| format!("{bad:#?}"))
        });
    }

    fn await_uplink(&self, number: usize) {
        let Some(present) = self.uplinks[number].present.clone() else {
            return;
        };
        await_that(&format!("up{number} is up as {present}"), || {
            let row = self.daemon.uplink(&format!("up{number}"));
            let fine = is_fine(&row.link) && row.link.interface == present;
            fine.then_some(()).ok_or_else(|| format!("{row:#?}"))
        });
    }

    /// An exchange each way with every victim.
    fn assert_connected(&self) {
        let x = &self.uplinks[0].far;
        for victim in &self.victims {
            let inside = victim.namespace.as_ref().unwrap();
            for family in FAMILIES {
                let server = tcp::EchoServer::start(inside, family.nos_port(victim.port)).unwrap();
                let came = tcp::exchange(x, None, server.address(), b"in", LIMIT);
                came.unwrap_or_else(|error| panic!("to {}: {error}", victim.name));
                let server = tcp::EchoServer::start(x, family.external_port(8080)).unwrap();
                let went = tcp::exchange(inside, None, server.address(), b"out", LIMIT);
                went.unwrap_or_else(|error| panic!("from {}: {error}", victim.name));
            }
        }
    }

    /// Descriptors and kibibytes of memory of the daemon, in its plainest state.
    fn size(&mut self) -> Size {
        for victim in &mut self.victims {
            (victim.more_ports, victim.capture) = (false, false);
        }
        for uplink in &mut self.uplinks {
            uplink.capture = false;
        }
        self.daemon.reload(&self.config());
        self.converge();
        let looks = (0..10).map(|_| {
            std::thread::sleep(Duration::from_millis(5));
            Size::of(&self.daemon)
        });
        let least = looks.min_by_key(|size| size.descriptors.len());
        least.unwrap()
    }
}

/// Does something to the inside of a victim.
fn disturb(victim: &Victim, action: &str) -> Result<(), nos_relay::lab::testbed::LabError> {
    let (Some(namespace), Some(interface)) = (&victim.namespace, victim.interface()) else {
        return Ok(());
    };
    match action {
        "delete" => namespace.delete_link(&interface),
        "down and up" => {
            namespace.set_down(&interface)?;
            namespace.set_up(&interface)
        }
        "rename" => {
            let next = if interface == "eth0" { "eth1" } else { "eth0" };
            namespace.set_down(&interface)?;
            namespace.rename(&interface, next)?;
            namespace.set_up(next)
        }
        "address" => {
            let family = FAMILIES[usize::from(victim.more_ports)];
            namespace.delete_address("lo", family.nos.into())
        }
        "route" => {
            let family = FAMILIES[usize::from(victim.capture)];
            namespace.delete_default_route(&interface, family.nos)
        }
        "mtu" => namespace.set_mtu(&interface, 1300),
        other => panic!("{other}"),
    }
}

fn is_fine(link: &Link) -> bool {
    link.state == LinkState::Up && link.reason.is_none()
}

fn config(
    db: &LabNamespace,
    uplinks: &[Uplink; 2],
    victims: &[Victim],
    files: &Files,
    capture: &std::path::Path,
) -> String {
    let mut text = format!(
        "
        [relay]
        threads = \"split\"
        [[container]]
        name = \"db\"
        netns = \"{}\"
        device = \"veth\"
        tcp = [\"21000-21999\"]
        ephemeral = \"45000-49999\"
        [[route]]
        prefix = \"192.0.2.0/24\"
        via = \"203.0.113.2\"
        [[route]]
        prefix = \"192.0.3.0/24\"
        via = \"198.51.100.2\"
        ",
        db.path().display()
    );
    let addresses = [
        "\"203.0.113.1/24\", \"2001:db8:1::1/64\"",
        "\"198.51.100.1/24\"",
    ];
    for (number, uplink) in uplinks.iter().enumerate() {
        let (device, addresses) = (uplink.device, addresses[number]);
        write!(
            text,
            "
            [[uplink]]
            name = \"up{number}\"
            device = \"packet:{device}\"
            mac = \"02:00:5e:00:53:0{number}\"
            addresses = [{addresses}]
            "
        )
        .unwrap();
        if uplink.capture {
            writeln!(text, "capture = \"{}.{number}\"", capture.display()).unwrap();
        }
    }
    text.extend(victims.iter().map(|victim| victim.config(files)));
    text
}

#[derive(Clone, Debug)]
struct Size {
    /// What each descriptor is, in order, without numbers of its own.
    descriptors: Vec<String>,
    kibibytes: u64,
}

impl Size {
    fn of(daemon: &Daemon) -> Self {
        let of_process = |what: &str| format!("/proc/{}/{what}", daemon.pid());
        Self {
            descriptors: descriptors(&of_process("fd")),
            kibibytes: memory(&of_process("smaps")),
        }
    }
}

/// Mappings from this size on are the pool of packets, of which the kernel gives more the more wait
/// at a time. Its own bounds are tested elsewhere.
const POOL: u64 = 32 << 10;

/// Kibibytes that are in memory of all mappings but the pool.
fn memory(smaps: &str) -> u64 {
    let text = fs::read_to_string(smaps).unwrap();
    let field = |line: &str, name: &str| {
        let value = line.strip_prefix(name)?.split_whitespace().next()?;
        value.parse::<u64>().ok()
    };
    let (mut sum, mut is_pool) = (0, false);
    for line in text.lines() {
        if let Some(size) = field(line, "Size:") {
            is_pool = size >= POOL;
        }
        sum += field(line, "Rss:").filter(|_| !is_pool).unwrap_or(0);
    }
    sum
}

fn descriptors(directory: &str) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let targets = entries.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
    let kind = |target: PathBuf| {
        let text = target.display().to_string();
        text.split(":[").next().unwrap_or_default().to_owned()
    };
    let mut kinds: Vec<_> = targets.map(kind).collect();
    kinds.sort_unstable();
    kinds
}

/// Memory that the allocator may keep for later, in kibibytes: once in a dozen runs it keeps some 12
/// MiB, and no more in a thousand rounds. A leak of twenty kibibytes a round shows in a thousand
/// rounds.
const SLACK: u64 = 16 << 10;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Shows what was done last, where the test fails.
struct Story<'a>(&'a mut Chaos);

impl Drop for Story<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let done = &self.0.done;
            let last = done.len().saturating_sub(40);
            println!(
                "--- seed {}; the last actions: {:#?}",
                self.0.random.get_seed(),
                &done[last..]
            );
        }
    }
}

lab_test! {
    fn everything_is_put_right_again_and_again() {
        let rounds = number("NOS_RELAY_CHAOS_ROUNDS").unwrap_or(ROUNDS.into());
        let seed = number("NOS_RELAY_CHAOS_SEED").unwrap_or_else(|| fastrand::u64(..));
        println!("NOS_RELAY_CHAOS_ROUNDS={rounds} NOS_RELAY_CHAOS_SEED={seed}");
        let names = Mounted::new();
        let Topology { device, external, mut containers } = Topology::new(&["db"]).unwrap();
        let db = containers.remove(0);
        let y = LabNamespace::new("Y").unwrap();
        device.sysctl("net/ipv6/conf/default/disable_ipv6", "1").unwrap();
        let mut uplinks = [
            Uplink {
                present: Some("hx".to_owned()),
                device: "hx",
                far: external,
                far_interface: "xh",
                addresses: Topology::external_addresses().to_vec(),
                capture: false,
            },
            Uplink {
                present: None,
                device: "hy",
                far: y,
                far_interface: "yh",
                addresses: vec!["198.51.100.2/24".parse().unwrap()],
                capture: false,
            },
        ];
        uplinks[1].make(&device);
        let victims: Vec<_> = (0..VICTIMS).map(|number| Victim::new(u16::try_from(number).unwrap(), &names)).collect();
        let files = Files::new();
        files.write(&config(&db, &uplinks, &victims, &files, &files.path("up.pcapng")));
        let daemon = Daemon::start_on(&device, files);
        daemon.counters_have_gone();
        let random = fastrand::Rng::with_seed(seed);
        let mut chaos = Chaos {
            daemon, random, device, db, uplinks, victims,
            kept: Vec::new(), away: Away::default(), done: Vec::new(),
        };
        run(&mut chaos, rounds);
        end(chaos);
    }
}

fn run(chaos: &mut Chaos, rounds: u64) {
    let traffic = Traffic::start(&chaos.db, &chaos.uplinks[0].far, &chaos.away);
    let mut sizes: Vec<Size> = Vec::new();
    let story = Story(chaos);
    let chaos = &mut *story.0;
    for round in 0..rounds {
        chaos.round();
        traffic.check();
        // Things happen to what is as it shall be, and to what is being put right.
        if chaos.random.u32(0..4) == 0 {
            chaos.converge();
        }
        if round % (rounds / 10).max(1) == 0 && round >= rounds / 5 {
            let size = chaos.size();
            println!(
                "round {round}: {} descriptors, {} KiB",
                size.descriptors.len(),
                size.kibibytes
            );
            assert_no_larger(&chaos.daemon, sizes.first().unwrap_or(&size));
            sizes.push(size);
            chaos.assert_connected();
        }
    }
    chaos.converge();
    chaos.assert_connected();
    traffic.finish();
    assert_no_leak(&sizes);
    assert_indices(&chaos.daemon);
}

/// Connections of those who ask for its state take it another moment to close.
fn assert_no_larger(daemon: &Daemon, first: &Size) {
    await_that("no descriptor is left over", || {
        let Size { descriptors, .. } = Size::of(daemon);
        let same = descriptors.len() <= first.descriptors.len();
        same.then_some(())
            .ok_or_else(|| format!("{descriptors:?} after {:?}", first.descriptors))
    });
}

/// What a burst or a capture takes for a while is no leak: the least of each half counts.
fn assert_no_leak(sizes: &[Size]) {
    let least = |sizes: &[Size]| sizes.iter().map(|size| size.kibibytes).min();
    let (before, after) = sizes.split_at(sizes.len() / 2);
    if let (Some(before), Some(after)) = (least(before), least(after)) {
        assert!(after <= before + SLACK, "{after} KiB after {before} KiB");
    }
}

/// Identifiers of those who have gone are used again.
fn assert_indices(daemon: &Daemon) {
    let ids = daemon
        .attachments()
        .into_iter()
        .map(|row| row.id.unwrap() & 0xffff);
    let indices: BTreeSet<_> = ids.collect();
    let most = u32::try_from(VICTIMS + 1).unwrap();
    assert_eq!(indices.len(), VICTIMS + 1);
    assert!(indices.iter().all(|&index| index < 2 * most), "{indices:?}");
}

/// Ends the daemon, and looks whether anything is left.
fn end(chaos: Chaos) {
    let Chaos {
        daemon,
        device,
        db,
        uplinks,
        victims,
        ..
    } = chaos;
    let log = daemon.log();
    let errors: Vec<_> = log.lines().filter(|line| line.contains("ERROR")).collect();
    println!(
        "{} errors in {} lines of log",
        errors.len(),
        log.lines().count()
    );
    let files = daemon.stop_by(Signal::SIGTERM);
    let untouched = LabNamespace::new("untouched").unwrap();
    let inside = victims
        .iter()
        .filter_map(|victim| victim.namespace.as_ref());
    for namespace in inside.chain([&db]) {
        assert_eq!(links_of(namespace), links_of(&untouched));
        assert_eq!(addresses(namespace), addresses(&untouched));
        let range = |of: &LabNamespace| of.read_sysctl("net/ipv4/ip_local_port_range").unwrap();
        assert_eq!(range(namespace), range(&untouched));
        for table in ["route", "ipv6_route"] {
            let read = |of: &LabNamespace| routes(of, table);
            assert_eq!(read(namespace), read(&untouched), "{table}");
        }
    }
    let present = uplinks.iter().filter_map(|uplink| uplink.present.clone());
    let mut links = links_of(&untouched);
    links.extend(present);
    assert_eq!(links_of(&device), links);
    assert_eq!(tables(&device), "");
    let left: BTreeSet<_> = fs::read_dir(files.config().parent().unwrap())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.contains(".pcapng"))
        .collect();
    let known = ["control.sock.lock", "nos.toml", "notify", "state"];
    assert!(left.iter().all(|name| known.contains(&&**name)), "{left:?}");
}

fn addresses(namespace: &LabNamespace) -> BTreeSet<ipnet::IpNet> {
    namespace.addresses("lo").unwrap().into_iter().collect()
}

/// Routes as the kernel lists them, without how often each was used.
fn routes(namespace: &LabNamespace, table: &str) -> BTreeSet<String> {
    let path = format!("/proc/thread-self/net/{table}");
    let text = namespace.run(|| fs::read_to_string(path).unwrap()).unwrap();
    let columns = |line: &str| match table {
        // Destination, prefix length and interface.
        "ipv6_route" => line
            .split_whitespace()
            .enumerate()
            .filter(|(at, _)| [0, 1, 9].contains(at))
            .map(|(_, column)| column)
            .collect::<Vec<_>>()
            .join(" "),
        _ => line.to_owned(),
    };
    text.lines().map(columns).collect()
}

/// What `nft` lists, where there is one.
fn tables(namespace: &LabNamespace) -> String {
    let list = || {
        let mut command = std::process::Command::new("nft");
        match command.args(["list", "tables"]).output() {
            Ok(output) => String::from_utf8_lossy(&output.stdout).into_owned(),
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            Err(error) => panic!("nft: {error}"),
        }
    };
    namespace.run(list).unwrap()
}
