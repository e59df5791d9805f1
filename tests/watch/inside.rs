//! Links, addresses and routes inside of containers, and the end of their namespaces.

use std::collections::BTreeSet;
use std::time::Duration;

use nos_relay::control::kernel::Namespace;
use nos_relay::control::kernel::watch::{
    InsideChanges, KernelEvent, KernelWatch, WatchError, WatchKey,
};
use nos_relay::lab::testbed::{LabNamespace, veth};

use crate::harness::{A, B, LIMIT, Watching, host, ip};
use crate::support::lab_test;

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
            ("-4", "rule add iif lo table 100", "rule del iif lo table 100", InsideChanges::RULES),
            ("-6", "rule add iif lo table 100", "rule del iif lo table 100", InsideChanges::RULES),
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
    fn all_of_many_namespaces_end() {
        let (_host, mut watching) = host();
        let labs: Vec<_> = (0..50)
            .map(|_| Namespace::anonymous("one of many").unwrap())
            .collect();
        for (lab, key) in labs.iter().zip(0..) {
            watching.watch.watch_inside(WatchKey(key), lab).unwrap();
        }
        drop(labs);
        let mut ended = BTreeSet::new();
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

lab_test! {
    fn what_one_drain_leaves_is_taken_by_the_next() {
        let (_host, mut watching) = host();
        let lab = quiet("quiet");
        watching.watch.watch_inside(A, lab.namespace()).unwrap();
        let addresses: String = (0..6000)
            .map(|n| format!("address add 10.0.{}.{}/32 dev lo\n", n / 256, n % 256))
            .collect();
        ip(&lab, "-4", &addresses);
        assert!(watching.poll(Duration::ZERO));
        assert!(watching.poll(Duration::ZERO), "a drain takes a bounded time");
        let changes = InsideChanges::ADDRESSES;
        let events = watching.settle();
        assert!(events.iter().all(|event| *event == KernelEvent::Inside { key: A, changes }));
        // Each readable edge was one drain, and none is missing.
        ip(&lab, "-4", "link set lo mtu 1300");
        let changes = InsideChanges::LINKS;
        assert_eq!(watching.settle(), [KernelEvent::Inside { key: A, changes }]);
    }
}

lab_test! {
    fn without_the_capability_the_rest_is_watched() {
        let host = LabNamespace::new("host").unwrap();
        // Capabilities are the thread's, and this one ends with the test.
        give_up_net_broadcast().unwrap();
        let mut watching = Watching::new(host.namespace());
        for refused in [
            watching.watch.inside_support(),
            watching.watch.watch_inside(A, host.namespace()),
        ] {
            let error = refused.unwrap_err();
            assert!(matches!(error, WatchError::Unsupported { .. }), "{error}");
            assert!(error.to_string().contains("CAP_NET_BROADCAST"), "{error}");
        }
        ip(&host, "-4", "link set lo mtu 1300");
        watching.link("MTU", |link| link.facts.name == "lo" && link.facts.mtu == 1300);
        watching.watch.forget(A);
    }
}

/// Takes CAP_NET_BROADCAST from the calling thread.
fn give_up_net_broadcast() -> nix::Result<()> {
    const LINUX_CAPABILITY_VERSION_3: u32 = 0x2008_0522;
    const CAP_NET_BROADCAST: u32 = 11;
    // struct __user_cap_header_struct, and two of struct __user_cap_data_struct: effective,
    // permitted, inheritable of the lower and the upper 32 capabilities.
    let mut header = [LINUX_CAPABILITY_VERSION_3, 0];
    let mut data = [0_u32; 6];
    // SAFETY: the kernel writes six words to `data`, and at most the version to `header`.
    let got = unsafe { libc::syscall(libc::SYS_capget, header.as_mut_ptr(), data.as_mut_ptr()) };
    nix::errno::Errno::result(got)?;
    data[0] &= !(1 << CAP_NET_BROADCAST);
    // SAFETY: the kernel reads both.
    let set = unsafe { libc::syscall(libc::SYS_capset, header.as_mut_ptr(), data.as_ptr()) };
    nix::errno::Errno::result(set).map(drop)
}
