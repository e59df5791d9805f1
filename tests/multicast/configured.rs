//! Groups of the configuration and of run time, behind real switches.

use std::net::IpAddr;

use nix::sys::signal::Signal;
use nos_relay::control::api::{Response, query};
use serde_json::json;

use crate::message::Told;
use crate::network::{Network, PORT, Querier, until};
use crate::support::daemon::{Daemon, LIMIT};
use crate::support::lab_test;
use crate::support::wire::Wire;

/// Of the configuration, and of run time.
const GROUPS: [&str; 2] = ["239.1.2.3", "ff05::1234"];
const LATER: [&str; 2] = ["239.1.2.4", "ff05::1235"];

fn groups_of(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// The uplink on the switch, if it is there, and one beside it.
fn config(groups: Option<&[&str]>) -> String {
    const OTHER: &str = "
        [[uplink]]
        name = \"up1\"
        device = \"tap:up1\"
        addresses = [\"198.51.100.1/24\"]
        ";
    groups.map_or_else(
        || OTHER.to_owned(),
        |groups| format!("{}groups = {groups:?}\n{OTHER}", Network::config("")),
    )
}

/// Whether the switch has all of these groups behind the NOS's port, or none.
fn switch_knows(network: &Network, groups: &[&str], known: bool) {
    let groups = groups_of(groups);
    until("the switch follows", || {
        let behind = network.groups_behind(PORT);
        groups.iter().all(|group| behind.contains(group) == known)
    });
}

fn request(daemon: &Daemon, kind: &str, group: &str) -> bool {
    let request = json!({"type": kind, "uplink": "up0", "group": group});
    let request = serde_json::from_value(request).unwrap();
    match query(&daemon.files().control(), &request, LIMIT).unwrap() {
        Response::Changed(applied) => applied.changed,
        other => panic!("{other:?}"),
    }
}

fn groups_come_and_go_with_the_configuration(versions: [u8; 2]) {
    let network = Network::new(Querier::Switch, versions);
    network.await_snooping();
    let daemon = Daemon::start(&network.device, &config(Some(&GROUPS)));
    switch_knows(&network, &GROUPS, true);
    for group in LATER {
        assert!(request(&daemon, "group-add", group));
        assert!(!request(&daemon, "group-add", group), "it is in it");
    }
    switch_knows(&network, &LATER, true);
    let shown = daemon.uplink("up0");
    let all = groups_of(&[GROUPS, LATER].concat());
    assert!(all.iter().all(|group| shown.groups.contains(group)));
    assert_eq!(shown.runtime_groups, groups_of(&LATER));
    // What was joined at run time outlasts a reload; what the file has no more does not.
    daemon.reload(&config(Some(&GROUPS[1..])));
    switch_knows(&network, &GROUPS[..1], false);
    switch_knows(&network, &[&GROUPS[1..], &LATER].concat(), true);
    for group in LATER {
        assert!(request(&daemon, "group-remove", group));
        assert!(!request(&daemon, "group-remove", group), "it has left it");
    }
    switch_knows(&network, &LATER, false);
    let shown = daemon.uplink("up0");
    assert!(shown.groups.contains(&groups_of(&GROUPS)[1]));
    assert!(shown.runtime_groups.is_empty());
}

lab_test! {
    fn groups_of_the_configuration_are_joined_and_left() {
        groups_come_and_go_with_the_configuration([3, 2]);
    }
}

lab_test! {
    fn groups_of_the_configuration_are_joined_and_left_in_the_older_versions() {
        groups_come_and_go_with_the_configuration([2, 1]);
    }
}

/// The kinds of message, or of record, by which a group is left.
fn is_leave(told: &Told) -> bool {
    told.record_kind() == 3 || matches!(told.kind.0, 0x17 | 132)
}

/// Waits until all groups are left by name: a switch also forgets those of which it hears no more.
fn await_leaves(wire: &Wire, network: &Network) {
    let nos = network.nos_mac();
    let mut missing = groups_of(&GROUPS);
    wire.await_frame(LIMIT, |seen| {
        missing.retain(|&group| !Told::of(seen, nos, group).is_some_and(|told| is_leave(&told)));
        missing.is_empty().then_some(())
    });
}

fn a_link_that_is_left_is_told(versions: [u8; 2]) {
    let network = Network::new(Querier::Router, versions);
    network.await_snooping();
    let wire = Wire::open(&network.router, "eth0");
    let daemon = Daemon::start(&network.device, &config(Some(&GROUPS)));
    // By an answer, so that they are asked for in the querier's version.
    switch_knows(&network, &GROUPS, true);
    await_answers(&wire, &network);
    daemon.reload(&config(None));
    await_leaves(&wire, &network);
    switch_knows(&network, &GROUPS, false);
    daemon.reload(&config(Some(&GROUPS)));
    await_answers(&wire, &network);
    daemon.stop_by(Signal::SIGTERM);
    await_leaves(&wire, &network);
    switch_knows(&network, &GROUPS, false);
}

/// Waits until the NOS has said that it is in all groups, as it was asked.
fn await_answers(wire: &Wire, network: &Network) {
    let nos = network.nos_mac();
    let mut missing = groups_of(&GROUPS);
    let is_answer = |told: &Told| told.record_kind() == 2 || matches!(told.kind.0, 0x16 | 131);
    wire.await_frame(LIMIT, |seen| {
        missing.retain(|&group| !Told::of(seen, nos, group).is_some_and(|told| is_answer(&told)));
        missing.is_empty().then_some(())
    });
}

lab_test! {
    fn who_takes_an_uplink_away_or_ends_leaves_its_groups() {
        a_link_that_is_left_is_told([3, 2]);
    }
}

lab_test! {
    fn who_takes_an_uplink_away_or_ends_leaves_its_groups_in_the_older_versions() {
        a_link_that_is_left_is_told([2, 1]);
    }
}
