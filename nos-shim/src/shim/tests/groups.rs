//! Multicast groups: which the NOS is in, and what it makes of messages about them.

use core::net::IpAddr;

use crate::channel::pair;
use crate::drop::DropReason;
use crate::frame::Burst;
use crate::ident::{MacAddr, UplinkId, VrfId};
use crate::multicast::mld;
use crate::packet::{Packet, protocol};
use crate::shim::{JoinRefused, LinkState, Shim, ShimConfig, UplinkConfig};
use crate::test_packets::{Draft, N4, ip, pool};
use crate::time::{Duration, Instant};

const NOW: Instant = Instant::from_millis(1000);
const UPLINK: UplinkId = UplinkId(0);
const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xa]);
const GROUP: IpAddr = IpAddr::V4(core::net::Ipv4Addr::new(239, 1, 2, 3));

fn config(addresses: &[&str]) -> UplinkConfig {
    UplinkConfig {
        id: UPLINK,
        name: "up0".into(),
        vrf: VrfId::DEFAULT,
        mac: MAC,
        addresses: addresses.iter().map(|it| it.parse().unwrap()).collect(),
        mtu: 1500,
        redirects: true,
    }
}

fn shim(addresses: &[&str]) -> Shim {
    let (_, end) = pair(1);
    let mut shim = Shim::new(
        end,
        pool(),
        ShimConfig {
            seed: 1,
            ..ShimConfig::default()
        },
    );
    shim.set_uplink(config(addresses), NOW).unwrap();
    shim
}

/// Messages of IGMP and MLD that leave.
fn reports(shim: &mut Shim) -> Vec<Packet> {
    let mut reports = Vec::new();
    while let Some((_, burst)) = shim.poll_transmit() {
        let packets = burst
            .drain(..)
            .filter_map(|frame| Packet::parse(frame).ok());
        reports.extend(packets.filter(|it| mld::is_mld(it) || it.protocol() == protocol::IGMP));
    }
    reports
}

/// Lets time pass until nothing more is to be said of groups.
fn settle(shim: &mut Shim) -> Vec<Packet> {
    let mut all = reports(shim);
    let end = NOW + Duration::from_secs(20);
    while let Some(at) = shim.poll_at().filter(|&at| at < end) {
        shim.handle_timeout(at);
        all.extend(reports(shim));
    }
    assert_balanced(shim);
    all
}

fn assert_balanced(shim: &Shim) {
    assert_eq!(shim.ledger().unaccounted(), shim.held() as i128);
}

fn receive(shim: &mut Shim, frame: &[u8]) {
    let mut burst: Burst = [pool().copy_from(frame).unwrap()].into_iter().collect();
    shim.handle_burst(UPLINK, &mut burst, NOW);
    assert_balanced(shim);
}

fn igmp_query(source: &str, destination: &str) -> Vec<u8> {
    let draft = Draft {
        mac: MAC.0,
        ..Draft::new(source, destination)
    };
    draft.frame(protocol::IGMP, &[0x11, 10, 0xee, 0xf5, 0, 0, 0, 0])
}

#[test]
fn groups_of_addresses_are_reported_while_the_link_is_up() {
    let mut shim = shim(&["203.0.113.1/24", "2001:db8:1::1/64", "2001:db8:2::1/64"]);
    let groups = [ip("ff02::1:ff00:a"), ip("ff02::1:ff00:1")];
    assert_eq!(shim.groups(UPLINK), groups);
    assert_eq!(settle(&mut shim).len(), 0, "the link is down");
    shim.set_link(UPLINK, LinkState::Up, NOW).unwrap();
    assert_eq!(settle(&mut shim).len(), 2, "twice");
    shim.set_uplink(config(&["2001:db8:1::1/64"]), NOW).unwrap();
    assert_eq!(settle(&mut shim).len(), 0, "another address has the group");
    shim.set_uplink(config(&["2001:db8:1::7/64"]), NOW).unwrap();
    assert_eq!(settle(&mut shim).len(), 2, "one has come and one has gone");
    shim.set_link(UPLINK, LinkState::Down, NOW).unwrap();
    shim.set_link(UPLINK, LinkState::Up, NOW).unwrap();
    assert_eq!(settle(&mut shim).len(), 2, "who is there now must be told");
    shim.remove_uplink(UPLINK);
    assert_eq!(settle(&mut shim).len(), 0);
    assert!(shim.groups(UPLINK).is_empty());
}

#[test]
fn groups_are_joined_and_left() {
    let mut shim = shim(&["203.0.113.1/24"]);
    shim.set_link(UPLINK, LinkState::Up, NOW).unwrap();
    settle(&mut shim);
    shim.join_group(UPLINK, GROUP, NOW).unwrap();
    shim.join_group(UPLINK, GROUP, NOW).unwrap();
    assert_eq!(shim.groups(UPLINK)[0], GROUP);
    let said = settle(&mut shim);
    assert_eq!(said.len(), 2);
    assert!(said.iter().all(|it| it.source() == ip(N4) && it.ttl() == 1));
    // Another configuration does not leave it.
    shim.set_uplink(config(&[]), NOW).unwrap();
    assert_eq!(shim.groups(UPLINK)[0], GROUP);
    receive(&mut shim, &igmp_query("203.0.113.9", "224.0.0.1"));
    let said = settle(&mut shim);
    assert_eq!(said.len(), 1, "the answer, in the second version");
    assert_eq!(said[0].source(), ip("0.0.0.0"), "without an address");
    shim.leave_group(UPLINK, GROUP, NOW);
    assert_eq!(settle(&mut shim).len(), 1);
    assert_eq!(shim.groups(UPLINK), [ip("ff02::1:ff00:a")]);
    let other = UplinkId(5);
    let unknown = shim.join_group(other, GROUP, NOW);
    assert_eq!(unknown, Err(JoinRefused::UnknownUplink(other)));
    let unicast = shim.join_group(UPLINK, ip(N4), NOW);
    assert_eq!(unicast, Err(JoinRefused::NotAGroup(ip(N4))));
}

#[test]
fn groups_are_set_as_a_whole_and_left_with_their_link() {
    let mut shim = shim(&["203.0.113.1/24"]);
    let wanted = vec![GROUP, ip("ff05::1234")];
    shim.set_groups(UPLINK, wanted.clone(), NOW).unwrap();
    let mixed = shim.set_groups(UPLINK, vec![ip("ff05::5"), ip(N4)], NOW);
    assert_eq!(mixed, Err(JoinRefused::NotAGroup(ip(N4))));
    let known = |shim: &Shim| wanted.iter().all(|it| shim.groups(UPLINK).contains(it));
    assert!(known(&shim));
    shim.leave_link(UPLINK, NOW);
    assert_eq!(settle(&mut shim).len(), 0, "the link is down");
    shim.set_link(UPLINK, LinkState::Up, NOW).unwrap();
    assert_eq!(settle(&mut shim).len(), 4, "a report of each family, twice");
    shim.leave_link(UPLINK, NOW);
    shim.set_link(UPLINK, LinkState::Down, NOW).unwrap();
    assert_eq!(settle(&mut shim).len(), 2, "once");
    shim.set_link(UPLINK, LinkState::Up, NOW).unwrap();
    assert_eq!(settle(&mut shim).len(), 4, "they are joined again");
    shim.set_groups(UPLINK, Vec::new(), NOW).unwrap();
    assert_eq!(settle(&mut shim).len(), 4, "and left, each twice");
    assert_eq!(shim.groups(UPLINK), [ip("ff02::1:ff00:a")]);
    let other = UplinkId(5);
    let unknown = shim.set_groups(other, Vec::new(), NOW);
    assert_eq!(unknown, Err(JoinRefused::UnknownUplink(other)));
    shim.leave_link(other, NOW);
}

#[test]
fn messages_about_groups_are_consumed_or_dropped_by_name() {
    let mut shim = shim(&["203.0.113.1/24", "2001:db8:1::1/64"]);
    shim.set_link(UPLINK, LinkState::Up, NOW).unwrap();
    settle(&mut shim);
    let mut taken = 0;
    // A switch that asks has no address.
    for (source, destination) in [
        ("0.0.0.0", "224.0.0.1"),
        ("203.0.113.9", "224.0.0.1"),
        ("203.0.113.9", N4),
    ] {
        receive(&mut shim, &igmp_query(source, destination));
        taken += 1;
        assert_eq!(
            shim.ledger().consumed,
            taken,
            "from {source} to {destination}"
        );
    }
    for (source, destination, reason) in [
        ("127.0.0.1", "224.0.0.1", DropReason::MartianSource),
        (N4, "224.0.0.1", DropReason::Multicast),
        ("203.0.113.9", "224.0.0.22", DropReason::Multicast),
        ("203.0.113.9", "239.1.2.3", DropReason::Multicast),
    ] {
        let before = shim.ledger().drops.of(reason);
        receive(&mut shim, &igmp_query(source, destination));
        let after = shim.ledger().drops.of(reason);
        assert_eq!(after, before + 1, "from {source} to {destination}");
    }
    let mut wrong = igmp_query("203.0.113.9", "224.0.0.1");
    *wrong.last_mut().unwrap() = 9;
    receive(&mut shim, &wrong);
    let drops = &shim.ledger().drops;
    assert_eq!(drops.of(DropReason::TransportChecksum), 1);
    let draft = Draft {
        mac: MAC.0,
        ..Draft::new("2001:db8:1::9", "ff02::1")
    };
    let query = draft.icmp(130, 0, 0, &[0; 20]);
    receive(&mut shim, &draft.frame(protocol::ICMPV6, &query));
    let drops = &shim.ledger().drops;
    assert_eq!(drops.of(DropReason::GroupMessageMalformed), 1);
    assert_eq!(shim.ledger().consumed, taken);
}

#[test]
fn many_groups_take_more_than_one_report() {
    let mut shim = shim(&[]);
    shim.set_link(UPLINK, LinkState::Up, NOW).unwrap();
    settle(&mut shim);
    let addresses: Vec<_> = (0..100)
        .map(|n| format!("2001:db8:1::{n:x}:1{n:02x}/64"))
        .collect();
    let addresses: Vec<_> = addresses.iter().map(String::as_str).collect();
    shim.set_uplink(config(&addresses), NOW).unwrap();
    let said = reports(&mut shim);
    let records = said.iter().map(|it| usize::from(it.transport()[7]));
    assert_eq!(records.sum::<usize>(), 100);
    assert!(said.len() == 2 && said.iter().all(|it| it.ip().len() <= 1500));
}
