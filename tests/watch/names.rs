//! Names of namespaces.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::num::NonZeroU32;
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nos_relay::control::kernel::Namespace;
use nos_relay::control::kernel::watch::{
    InsideChanges, KernelEvent, KernelWatch, NameKind, NetnsName, WatchKey, Watched,
};
use nos_relay::lab::testbed::LabNamespace;

use crate::harness::{A, B, LIMIT, Mounted, Watching, bind, cat, end, mount_empty, unmount};
use crate::support::lab_test;
use crate::support::names::{add_name, delete_name};

fn path(path: &Path) -> NetnsName {
    NetnsName::Path(path.to_owned())
}

/// The directory of a test, with a watch in the test's own namespace.
fn names() -> (Mounted, LabNamespace, Watching) {
    let directory = Mounted::new();
    let lab = LabNamespace::new("named").unwrap();
    let watching = Watching::new(&Namespace::current().unwrap());
    (directory, lab, watching)
}

lab_test! {
    fn name_is_made_and_deleted_as_ip_netns_does() {
        let (directory, lab, mut watching) = names();
        let name = directory.at("web");
        assert_eq!(watching.watch.watch_name(A, &path(&name)), Watched::Fully);
        for _ in 0..3 {
            File::create_new(&name).unwrap();
            watching.name(A);
            bind(&lab, &name);
            watching.name(A);
            assert_eq!(&Namespace::open(&name).unwrap(), lab.namespace());
            unmount(&name).unwrap();
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
        let name = directory.at("web");
        add_name(&lab, &name);
        watching.watch.watch_name(A, &path(&name));
        bind(&other, &name);
        watching.name(A);
        assert_eq!(&Namespace::open(&name).unwrap(), other.namespace());
        unmount(&name).unwrap();
        watching.name(A);
        // The same inode by another mount may be another namespace with the number of the first.
        bind(&lab, &name);
        watching.name(A);
        // Mounts elsewhere are none of the name's business.
        watching.settle();
        let elsewhere = directory.at("elsewhere");
        add_name(&lab, &elsewhere);
        bind(&other, &name);
        watching.name(A);
        assert_eq!(watching.settle(), []);
    }
}

lab_test! {
    fn directories_are_made_later() {
        let (directory, lab, mut watching) = names();
        let deep = directory.at("run/docker/netns");
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
            fs::remove_dir_all(directory.at("run")).unwrap();
            watching.settle();
        }
        // One by one.
        for part in ["run", "run/docker", "run/docker/netns"] {
            fs::create_dir(directory.at(part)).unwrap();
            watching.settle();
        }
        File::create(&name).unwrap();
        watching.name(A);
    }
}

lab_test! {
    fn renamed_directory_takes_its_names_along() {
        let (directory, lab, mut watching) = names();
        let [here, there] = ["here", "there"].map(|name| directory.at(name));
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
        let deep = directory.at("netns");
        fs::create_dir(&deep).unwrap();
        let name = deep.join("web");
        watching.watch.watch_name(A, &path(&name));
        watching.watch.watch_name(B, &path(&deep));
        for mount in [mount_empty, unmount] {
            mount(&deep).unwrap();
            // Nothing has the name before and after; that the mount was noticed, tells the other.
            watching.name(B);
            File::create(&name).unwrap();
            watching.name(A);
            fs::remove_file(&name).unwrap();
            watching.name(A);
        }
    }
}

lab_test! {
    fn lookup_of_one_name_finds_that_of_another_out_of_date() {
        let (directory, _lab, mut watching) = names();
        let deep = directory.at("netns");
        fs::create_dir(&deep).unwrap();
        let below = deep.join("x/y");
        let third = WatchKey(3);
        watching.watch.watch_name(A, &path(&deep.join("one")));
        watching.watch.watch_name(B, &path(&below));
        watching.watch.watch_name(third, &path(&deep));
        // The lookup of the first takes note of the directory's replacement before the mount is
        // noticed.
        mount_empty(&deep).unwrap();
        fs::create_dir(deep.join("x")).unwrap();
        watching.watch.watch_name(A, &path(&deep.join("one")));
        watching.name(third);
        File::create(&below).unwrap();
        watching.name(B);
    }
}

lab_test! {
    fn symbolic_links_on_the_way_are_followed_and_watched() {
        let (directory, lab, mut watching) = names();
        let at = |name| directory.at(name);
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
        let [one, two, other] = ["one", "two", "other"].map(|name| directory.at(name));
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

lab_test! {
    fn process_ends() {
        let (directory, _lab, mut watching) = names();
        let mut child = cat().spawn().unwrap();
        let pid = NonZeroU32::new(child.id()).unwrap();
        let file = |part: &str| path(Path::new(&format!("/proc/{pid}/{part}")));
        let link = directory.at("web");
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
        let mut seen = BTreeSet::new();
        while seen.len() < 4 {
            seen.insert(watching.next("the end of the process", |event| match event {
                KernelEvent::Name { key } => Some(*key),
                _ => None,
            }));
        }
        end(child);
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
        let name = directory.at("web");
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
        let deep = directory.at("netns");
        let name = deep.join("web");
        fs::create_dir(&deep).unwrap();
        watch.watch_name(A, &path(&name));
        File::create(&name).unwrap();
        // Asking takes nothing away.
        assert!(is_readable(&watch, LIMIT) && is_readable(&watch, LIMIT));
        assert_eq!(drain_names(&mut watch), [A]);
        mount_empty(&deep).unwrap();
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
