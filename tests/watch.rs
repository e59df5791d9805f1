//! The kernel's news reach the control plane as events, each kind from the real kernel.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use std::fs::{self, File};
use std::num::NonZeroU32;
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nos_relay::control::kernel::watch::{
    InsideChanges, KernelEvent, KernelWatch, LinkChange, NameKind, NetnsName, WatchKey, Watched,
};
use nos_relay::control::kernel::{LinkFacts, Namespace};
use nos_relay::lab::testbed::{LabNamespace, veth};
use nos_shim::ident::MacAddr;
use support::lab_test;

/// How long an event may take; they come within milliseconds.
const LIMIT: Duration = Duration::from_secs(20);

/// A watch in the loop of a control thread.
struct Watching {
    watch: KernelWatch,
    poll: Poll,
    /// Came, but nobody has asked for it yet.
    pending: Vec<KernelEvent>,
}

const A: WatchKey = WatchKey(1);
const B: WatchKey = WatchKey(2);

impl Watching {
    fn new(host: &Namespace) -> Self {
        Self::of(KernelWatch::open(host).unwrap())
    }

    fn of(watch: KernelWatch) -> Self {
        let poll = Poll::new().unwrap();
        watch.register(poll.registry(), Token(7)).unwrap();
        let pending = Vec::new();
        let mut watching = Self {
            watch,
            poll,
            pending,
        };
        watching.settle();
        watching
    }

    /// Waits for an event of which `take` makes something, and drops those before it.
    fn next<T>(&mut self, what: &str, take: impl Fn(&KernelEvent) -> Option<T>) -> T {
        let until = Instant::now() + LIMIT;
        loop {
            let mut pending = std::mem::take(&mut self.pending).into_iter();
            if let Some(taken) = pending.by_ref().find_map(|event| take(&event)) {
                self.pending = pending.collect();
                return taken;
            }
            let left = until.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no event: {what}");
            self.poll(left);
        }
    }

    fn wait_for(&mut self, wanted: &KernelEvent) {
        self.next(&format!("{wanted:?}"), |event| {
            (event == wanted).then_some(())
        });
    }

    fn name(&mut self, key: WatchKey) {
        self.wait_for(&KernelEvent::Name { key });
    }

    /// Waits for all of these changes inside of the namespace of `key`.
    fn inside(&mut self, key: WatchKey, wanted: InsideChanges) {
        let mut seen = InsideChanges::empty();
        while !seen.contains(wanted) {
            seen |= self.next(&format!("{wanted:?} after {seen:?}"), |event| match event {
                KernelEvent::Inside { key: of, changes } if *of == key => Some(*changes),
                _ => None,
            });
        }
    }

    fn link(&mut self, what: &str, wanted: impl Fn(&LinkChange) -> bool) -> LinkFacts {
        self.next(what, |event| match event {
            KernelEvent::Link(change) if wanted(change) => Some(change.facts.clone()),
            _ => None,
        })
    }

    /// Waits no longer than `limit` until the descriptor is readable, and drains it; false: it was
    /// not.
    fn poll(&mut self, limit: Duration) -> bool {
        let mut events = Events::with_capacity(8);
        self.poll.poll(&mut events, Some(limit)).unwrap();
        assert!(events.iter().all(|event| event.token() == Token(7)));
        let readable = !events.is_empty();
        if readable {
            self.watch.drain(&mut self.pending);
        }
        readable
    }

    /// Takes all that is there already, which is everything that the kernel reports at once.
    fn settle(&mut self) -> Vec<KernelEvent> {
        while self.poll(Duration::ZERO) {}
        std::mem::take(&mut self.pending)
    }
}

/// Runs `ip` inside, with one command a line on its input.
fn ip(lab: &LabNamespace, family: &str, commands: &str) {
    let mut command = Command::new("ip");
    command.args([family, "-batch", "-"]).stdin(Stdio::piped());
    let mut child = lab.spawn(command).unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), commands.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "ip {family}: {commands}");
}

fn host() -> (LabNamespace, Watching) {
    let host = LabNamespace::new("host").unwrap();
    let watching = Watching::new(host.namespace());
    (host, watching)
}

/// A container joined to a host, which watches it inside as [`A`].
fn container() -> (LabNamespace, LabNamespace, Watching) {
    let (host, mut watching) = host();
    let container = LabNamespace::new("container").unwrap();
    veth((&host, "veth"), (&container, "eth0")).unwrap();
    watching
        .watch
        .watch_inside(A, container.namespace())
        .unwrap();
    watching.settle();
    (host, container, watching)
}

lab_test! {
    fn links_of_the_host_carry_their_state() {
        let (host, mut watching) = host();
        ip(&host, "-4", "link add v0 type veth peer name v1");
        let made = watching.link("made", |link| link.facts.name == "v0");
        assert!(!made.up && !made.operational);
        assert_eq!(made.mtu, 1500);

        let mac = MacAddr([2, 0, 0, 0, 0, 7]);
        host.set_mtu("v0", 1400).unwrap();
        host.set_mac("v0", mac).unwrap();
        let of_v0 = |link: &LinkChange| link.facts.index == made.index;
        watching.link("MTU", |link| of_v0(link) && link.facts.mtu == 1400);
        watching.link("MAC", |link| of_v0(link) && link.facts.mac == Some(mac));

        host.set_up("v0").unwrap();
        let up = watching.link("up", |link| of_v0(link) && link.facts.up);
        assert!(!up.operational, "the other end is down");
        host.set_up("v1").unwrap();
        watching.link("carrier", |link| of_v0(link) && link.facts.operational);
        host.set_down("v0").unwrap();
        watching.link("down", |link| of_v0(link) && !link.facts.up);

        ip(&host, "-4", "link set v0 name v2");
        watching.link("renamed", |link| of_v0(link) && link.facts.name == "v2");
        host.delete_link("v2").unwrap();
        watching.link("deleted", |link| of_v0(link) && link.deleted);
    }
}

lab_test! {
    fn link_that_moves_away_is_deleted_and_a_bridge_port_is_not() {
        let (host, mut watching) = host();
        let elsewhere = LabNamespace::new("elsewhere").unwrap();
        ip(&host, "-4", "link add v0 type veth peer name v1\nlink add br0 type bridge\n\
            link set v0 master br0\nlink set v0 nomaster\nlink set v1 mtu 1300");
        watching.link("last", |link| {
            assert!(!link.deleted, "{link:?}");
            link.facts.name == "v1" && link.facts.mtu == 1300
        });
        // ip moves a link to a process, so one lives there.
        let mut cat = Command::new("cat");
        cat.stdin(Stdio::piped());
        let mut holder = elsewhere.spawn(cat).unwrap();
        ip(&host, "-4", &format!("link set v0 netns {}", holder.id()));
        watching.link("moved", |link| link.facts.name == "v0" && link.deleted);
        drop(holder.stdin.take());
        holder.wait().unwrap();
    }
}

lab_test! {
    fn changes_inside_are_told_by_kind() {
        let (_host, container, mut watching) = container();
        container.add_address("eth0", "192.0.2.2/24".parse().unwrap()).unwrap();
        container.add_address("lo", "2001:db8::1/128".parse().unwrap()).unwrap();
        watching.inside(A, InsideChanges::ADDRESSES);
        watching.settle();
        for (family, add, delete, kind) in [
            ("-4", "route add default dev eth0", "route del default", InsideChanges::ROUTES),
            ("-6", "route add default dev eth0", "route del default", InsideChanges::ROUTES),
            ("-4", "address add 192.0.2.9/32 dev lo", "address del 192.0.2.9/32 dev lo",
                InsideChanges::ADDRESSES),
            ("-6", "address add 2001:db8::9/128 dev lo", "address del 2001:db8::9/128 dev lo",
                InsideChanges::ADDRESSES),
            ("-4", "route add default dev eth0 table 100", "route del default table 100",
                InsideChanges::ROUTES),
        ] {
            ip(&container, family, add);
            watching.inside(A, kind);
            watching.settle();
            ip(&container, family, delete);
            watching.inside(A, kind);
            watching.settle();
        }
    }
}

lab_test! {
    fn interface_inside_goes_down_comes_up_and_is_renamed() {
        let (_host, container, mut watching) = container();
        for change in [
            "link set eth0 down",
            "link set eth0 up",
            "link set eth0 down\nlink set eth0 name eth9",
            "link delete eth9",
        ] {
            ip(&container, "-4", change);
            watching.inside(A, InsideChanges::LINKS);
            // The carrier follows a moment later.
            watching.settle();
        }
    }
}

lab_test! {
    fn routing_table_inside_wakes_nobody() {
        let (_host, container, mut watching) = container();
        container.add_address("eth0", "192.0.2.2/24".parse().unwrap()).unwrap();
        watching.inside(A, InsideChanges::ADDRESSES);
        watching.settle();
        let routes: String = (0..10_000)
            .map(|n| format!("route add 10.{}.{}.0/24 dev eth0\n", n / 256, n % 256))
            .collect();
        ip(&container, "-4", &routes);
        ip(&container, "-4", &routes.replace("add", "del"));
        // The kernel has delivered all that it would by the time it has answered. Of interface and
        // address there may be a late notification.
        let routes = |event: &KernelEvent| match event {
            KernelEvent::Inside { changes, .. } => changes.contains(InsideChanges::ROUTES),
            other => panic!("{other:?}"),
        };
        assert!(!watching.settle().iter().any(routes), "routes of no concern");

        ip(&container, "-4", "route add default dev eth0");
        watching.inside(A, InsideChanges::ROUTES);
    }
}

/// A namespace in which nothing happens by itself: even `lo` is down.
fn quiet(label: &str) -> LabNamespace {
    LabNamespace::untouched(label).unwrap()
}

const LINK_AND_ADDRESS: &str = "link set lo mtu 1400\naddress add 192.0.2.1/32 dev lo";

lab_test! {
    fn change_inside_is_one_event() {
        let (_host, mut watching) = host();
        let lab = quiet("quiet");
        watching.watch.watch_inside(A, lab.namespace()).unwrap();
        for (change, kind) in [
            ("link set lo mtu 1300", InsideChanges::LINKS),
            ("address add 192.0.2.1/32 dev lo", InsideChanges::ADDRESSES),
            ("address del 192.0.2.1/32 dev lo", InsideChanges::ADDRESSES),
            ("link add br0 type bridge", InsideChanges::LINKS),
            ("link set br0 name br1", InsideChanges::LINKS),
            ("link delete br1", InsideChanges::LINKS),
            // Several changes are one event.
            (LINK_AND_ADDRESS, InsideChanges::LINKS | InsideChanges::ADDRESSES),
        ] {
            ip(&lab, "-4", change);
            let event = KernelEvent::Inside { key: A, changes: kind };
            assert_eq!(watching.settle(), [event], "{change}");
        }
    }
}

lab_test! {
    fn namespaces_are_told_apart() {
        let (_host, mut watching) = host();
        let [one, two, other] = ["one", "two", "other"].map(quiet);
        watching.watch.watch_inside(A, one.namespace()).unwrap();
        watching.watch.watch_inside(B, two.namespace()).unwrap();
        ip(&other, "-4", LINK_AND_ADDRESS);
        assert_eq!(watching.settle(), [], "nobody watches this one");
        let changes = InsideChanges::LINKS;
        let event = |key| KernelEvent::Inside { key, changes };
        ip(&two, "-4", "link set lo mtu 1400");
        assert_eq!(watching.settle(), [event(B)]);

        // One for two keys, twice for one of them, and not for a third any more.
        let third = WatchKey(3);
        watching.watch.watch_inside(A, two.namespace()).unwrap();
        watching.watch.watch_inside(A, two.namespace()).unwrap();
        watching.watch.watch_inside(third, two.namespace()).unwrap();
        watching.watch.forget(third);
        ip(&two, "-4", "link set lo mtu 1300");
        ip(&one, "-4", "link set lo mtu 1300");
        assert_eq!(watching.settle(), [event(B), event(A)]);

        // One that nobody watched any more can be watched again.
        watching.watch.watch_inside(third, one.namespace()).unwrap();
        ip(&one, "-4", "link set lo mtu 1200");
        assert_eq!(watching.settle(), [event(third)]);
    }
}

lab_test! {
    fn watched_namespace_ends_with_its_last_holder() {
        let (host, container, mut watching) = container();
        // Its end takes the other end of the veth along, and the watch tells the namespace's.
        assert!(host.link("veth").unwrap().is_some());
        drop(container);
        watching.inside(A, InsideChanges::ENDED);
        watching.watch.watch_inside(A, host.namespace()).unwrap();
        host.wait_link("veth", "gone", LIMIT, |link| link.is_none()).unwrap();
    }
}

lab_test! {
    fn many_namespaces_share_one_socket() {
        let (_host, mut watching) = host();
        let labs: Vec<_> = (0..50)
            .map(|_| Namespace::anonymous("one of many").unwrap())
            .collect();
        let before = fs::read_dir("/proc/self/fd").unwrap().count();
        for (lab, key) in labs.iter().zip(0..) {
            watching.watch.watch_inside(WatchKey(key), lab).unwrap();
        }
        // Other tests of this process open and close some, but not as many.
        let after = fs::read_dir("/proc/self/fd").unwrap().count();
        println!("{before} descriptors, then {after}");
        drop(labs);
        let mut ended = std::collections::BTreeSet::new();
        while ended.len() < 50 {
            ended.insert(watching.next("the end of all", |event| match event {
                KernelEvent::Inside { key, changes } if changes.contains(InsideChanges::ENDED) => {
                    Some(*key)
                }
                _ => None,
            }));
        }
    }
}

lab_test! {
    fn overrun_is_reported_and_then_changes_again() {
        let host = LabNamespace::new("host").unwrap();
        let container = LabNamespace::new("container").unwrap();
        veth((&host, "veth"), (&container, "eth0")).unwrap();
        let watch = KernelWatch::open_with_buffer(host.namespace(), 1).unwrap();
        let mut watching = Watching::of(watch);
        watching.watch.watch_inside(A, container.namespace()).unwrap();
        let storm: String = (0..200)
            .map(|n| format!("link set eth0 mtu {}\n", 1300 + n))
            .collect();
        ip(&container, "-4", &storm);
        let events = watching.settle();
        assert!(events.contains(&KernelEvent::Overrun), "{events:?}");

        ip(&host, "-4", &storm.replace("eth0", "veth"));
        let events = watching.settle();
        assert!(events.contains(&KernelEvent::Overrun), "{events:?}");

        ip(&container, "-4", "route add default dev eth0");
        watching.inside(A, InsideChanges::ROUTES);
    }
}

/// A directory in a mount namespace of the calling thread's own.
///
/// Names are watched as this thread sees them, and its mounts end with it.
fn mounts_of_ones_own() -> tempfile::TempDir {
    let nothing = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(nothing, "/", nothing, private, nothing).unwrap();
    tempfile::tempdir().unwrap()
}

fn bind(lab: &LabNamespace, name: &Path) {
    let nothing = None::<&str>;
    let from = lab.path();
    mount(Some(&from), name, nothing, MsFlags::MS_BIND, nothing).unwrap();
}

fn unmount(name: &Path) {
    umount2(name, MntFlags::MNT_DETACH).unwrap();
}

/// What `ip netns add` does.
fn add_name(lab: &LabNamespace, name: &Path) {
    File::create_new(name).unwrap();
    bind(lab, name);
}

/// What `ip netns delete` does.
fn delete_name(name: &Path) {
    unmount(name);
    fs::remove_file(name).unwrap();
}

fn path(path: &Path) -> NetnsName {
    NetnsName::Path(path.to_owned())
}

/// The directory of a test, with a watch in the test's own namespace.
fn names() -> (tempfile::TempDir, LabNamespace, Watching) {
    let directory = mounts_of_ones_own();
    let lab = LabNamespace::new("named").unwrap();
    let watching = Watching::new(&Namespace::current().unwrap());
    (directory, lab, watching)
}

lab_test! {
    fn name_is_made_and_deleted_as_ip_netns_does() {
        let (directory, lab, mut watching) = names();
        let name = directory.path().join("web");
        assert_eq!(watching.watch.watch_name(A, &path(&name)), Watched::Fully);
        for _ in 0..3 {
            File::create_new(&name).unwrap();
            watching.name(A);
            bind(&lab, &name);
            watching.name(A);
            assert_eq!(&Namespace::open(&name).unwrap(), lab.namespace());
            unmount(&name);
            watching.name(A);
            fs::remove_file(&name).unwrap();
            watching.name(A);
        }
    }
}

lab_test! {
    fn name_that_is_mounted_over_leads_elsewhere() {
        let (directory, lab, mut watching) = names();
        let other = LabNamespace::new("other").unwrap();
        let name = directory.path().join("web");
        add_name(&lab, &name);
        watching.watch.watch_name(A, &path(&name));
        bind(&other, &name);
        watching.name(A);
        assert_eq!(&Namespace::open(&name).unwrap(), other.namespace());
        // The same namespace by a new mount may be another with the same number: look again.
        unmount(&name);
        watching.name(A);
        unmount(&name);
        watching.name(A);
        bind(&lab, &name);
        watching.name(A);
        // Mounts elsewhere are none of the name's business.
        watching.settle();
        let elsewhere = directory.path().join("elsewhere");
        add_name(&lab, &elsewhere);
        bind(&other, &name);
        watching.name(A);
        assert_eq!(watching.settle(), []);
    }
}

lab_test! {
    fn directories_are_made_later() {
        let (directory, lab, mut watching) = names();
        let deep = directory.path().join("run/docker/netns");
        let name = deep.join("ab12");
        assert_eq!(watching.watch.watch_name(A, &path(&name)), Watched::Fully);
        for _ in 0..2 {
            // All at once, so that some are made before the ones above are watched.
            fs::create_dir_all(&deep).unwrap();
            add_name(&lab, &name);
            watching.name(A);
            assert_eq!(&Namespace::open(&name).unwrap(), lab.namespace());
            delete_name(&name);
            watching.name(A);
            fs::remove_dir_all(directory.path().join("run")).unwrap();
            watching.settle();
        }
        // One by one.
        for part in ["run", "run/docker", "run/docker/netns"] {
            fs::create_dir(directory.path().join(part)).unwrap();
            watching.settle();
        }
        File::create(&name).unwrap();
        watching.name(A);
    }
}

lab_test! {
    fn renamed_directory_takes_its_names_along() {
        let (directory, lab, mut watching) = names();
        let [here, there] = ["here", "there"].map(|name| directory.path().join(name));
        fs::create_dir_all(here.join("netns")).unwrap();
        let name = |above: &Path| above.join("netns/web");
        symlink(lab.path(), name(&here)).unwrap();
        watching.watch.watch_name(A, &path(&name(&here)));
        watching.watch.watch_name(B, &path(&name(&there)));
        fs::rename(&here, &there).unwrap();
        watching.name(A);
        // The new name leads to the namespace now, and is watched where it is.
        fs::remove_file(name(&there)).unwrap();
        watching.name(B);
        fs::create_dir_all(here.join("netns")).unwrap();
        File::create(name(&here)).unwrap();
        watching.name(A);
        // Renames of the last entry count as well.
        fs::rename(name(&here), name(&there)).unwrap();
        watching.name(A);
    }
}

lab_test! {
    fn directory_that_is_mounted_over_is_followed() {
        let (directory, _lab, mut watching) = names();
        let deep = directory.path().join("netns");
        fs::create_dir(&deep).unwrap();
        let name = deep.join("web");
        watching.watch.watch_name(A, &path(&name));
        let nothing = None::<&str>;
        mount(Some("none"), &deep, Some("tmpfs"), MsFlags::empty(), nothing).unwrap();
        File::create(&name).unwrap();
        watching.name(A);
        fs::remove_file(&name).unwrap();
        watching.name(A);
        File::create(&name).unwrap();
        watching.name(A);
        // Below it, nothing has that name.
        unmount(&deep);
        watching.name(A);
        File::create(&name).unwrap();
        watching.name(A);
    }
}

lab_test! {
    fn symbolic_links_on_the_way_are_followed_and_watched() {
        let (directory, lab, mut watching) = names();
        let at = |name: &str| directory.path().join(name);
        fs::create_dir_all(at("run/netns")).unwrap();
        fs::create_dir(at("var")).unwrap();
        symlink("../run", at("var/run")).unwrap();
        let name = at("var/run/netns/web");
        watching.watch.watch_name(A, &path(&name));
        add_name(&lab, &at("run/netns/web"));
        watching.name(A);
        fs::remove_file(at("var/run")).unwrap();
        watching.name(A);
        // A link to a link, to where nothing is yet.
        symlink("../a", at("var/run")).unwrap();
        symlink("b", at("a")).unwrap();
        fs::create_dir_all(at("b/netns")).unwrap();
        File::create(at("b/netns/web")).unwrap();
        watching.name(A);
        // A loop leads nowhere, and ends.
        fs::remove_file(at("a")).unwrap();
        watching.name(A);
        symlink("a", at("a")).unwrap();
        fs::remove_file(at("a")).unwrap();
        symlink("run", at("a")).unwrap();
        watching.name(A);
        assert_eq!(&Namespace::open(&name).unwrap(), lab.namespace());
    }
}

lab_test! {
    fn names_in_one_directory_are_told_apart() {
        let (directory, _lab, mut watching) = names();
        let [one, two, other] = ["one", "two", "other"].map(|name| directory.path().join(name));
        watching.watch.watch_name(A, &path(&one));
        watching.watch.watch_name(B, &path(&two));
        File::create(&other).unwrap();
        File::create(&two).unwrap();
        watching.name(B);
        assert_eq!(watching.settle(), []);
        File::create(&one).unwrap();
        watching.name(A);

        // The same key again does no harm; with another name it leaves the first.
        watching.watch.watch_name(A, &path(&one));
        watching.watch.watch_name(A, &path(&two));
        fs::remove_file(&one).unwrap();
        fs::remove_file(&two).unwrap();
        let mut events = watching.settle();
        events.sort_by_key(|event| matches!(event, KernelEvent::Name { key } if *key == B));
        assert_eq!(events, [A, B].map(|key| KernelEvent::Name { key }));
        watching.watch.forget(A);
        assert_eq!(watching.watch.watched(A), None);
        File::create(&two).unwrap();
        watching.name(B);
        assert_eq!(watching.settle(), []);
    }
}

/// A process that lives until its input is closed.
fn process() -> (std::process::Child, NonZeroU32) {
    let child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
    let pid = NonZeroU32::new(child.id()).unwrap();
    (child, pid)
}

lab_test! {
    fn process_ends() {
        let (directory, _lab, mut watching) = names();
        let (mut child, pid) = process();
        let file = |part: &str| path(Path::new(&format!("/proc/{pid}/{part}")));
        let link = directory.path().join("web");
        symlink(format!("/proc/{pid}/ns/net"), &link).unwrap();
        let names = [NetnsName::Process(pid), file("ns/net"), path(&link), file("fd/0")];
        let kinds = [true, true, true, false];
        for ((name, noticed), key) in names.iter().zip(kinds).zip(0..) {
            assert_eq!(NameKind::of(name).end_is_noticed(), noticed, "{name:?}");
            let watched = watching.watch.watch_name(WatchKey(key), name);
            assert_eq!(watched == Watched::Fully, noticed, "{watched:?}");
        }
        assert_eq!(watching.settle(), []);
        drop(child.stdin.take());
        let mut seen = std::collections::BTreeSet::new();
        while seen.len() < 4 {
            seen.insert(watching.next("the end of the process", |event| match event {
                KernelEvent::Name { key } => Some(*key),
                _ => None,
            }));
        }
        child.wait().unwrap();
        let gone = watching.watch.watch_name(A, &NetnsName::Process(pid));
        let Watched::Nothing(reason) = gone else {
            panic!("{gone:?}");
        };
        assert!(reason.to_string().contains("no such process"), "{reason}");
        // The link may yet be made to lead elsewhere.
        assert!(matches!(watching.watch.watched(WatchKey(2)), Some(Watched::Partly(_))));
        fs::remove_file(&link).unwrap();
        symlink("/proc/self/ns/net", &link).unwrap();
        watching.name(WatchKey(2));
    }
}

lab_test! {
    fn watch_keeps_no_name_and_no_process() {
        let (directory, lab, mut watching) = names();
        let name = directory.path().join("web");
        add_name(&lab, &name);
        watching.watch.watch_name(A, &path(&name));
        watching.watch.watch_inside(A, lab.namespace()).unwrap();
        drop(lab);
        assert_eq!(watching.settle(), [], "the name still holds it");
        delete_name(&name);
        watching.inside(A, InsideChanges::ENDED);
    }
}

lab_test! {
    fn watch_can_be_polled_level_triggered_too() {
        let (directory, _lab, watching) = names();
        let mut watch = watching.watch;
        let name = directory.path().join("web");
        watch.watch_name(A, &path(&name));
        File::create(&name).unwrap();
        // Asking takes nothing away.
        assert!(is_readable(&watch, LIMIT) && is_readable(&watch, LIMIT));
        assert_eq!(drain_names(&mut watch), [A]);
        let nothing = None::<&str>;
        let tmpfs = Some("tmpfs");
        mount(Some("none"), directory.path(), tmpfs, MsFlags::empty(), nothing).unwrap();
        assert_eq!(drain_names(&mut watch), [A]);
        assert!(!is_readable(&watch, Duration::ZERO));
    }
}

fn is_readable(watch: &KernelWatch, limit: Duration) -> bool {
    let mut fds = [PollFd::new(watch.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::try_from(limit).unwrap()).unwrap() == 1
}

/// Drains until a name has changed; a look at mounts may be due a moment later.
fn drain_names(watch: &mut KernelWatch) -> Vec<WatchKey> {
    let mut events = Vec::new();
    while events.is_empty() {
        assert!(is_readable(watch, LIMIT) && is_readable(watch, LIMIT));
        watch.drain(&mut events);
    }
    let name = |event| match event {
        KernelEvent::Name { key } => key,
        other => panic!("{other:?}"),
    };
    events.into_iter().map(name).collect()
}
