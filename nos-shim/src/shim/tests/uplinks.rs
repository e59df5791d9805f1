//! Uplinks that come, change, go, and are away.

use core::net::IpAddr;

use crate::arp::Arp;
use crate::channel::{Exchange, pair};
use crate::fib::{Action, InactiveReason, NextHop, NextHops, Route, RouteChange, Source};
use crate::ident::{AttachmentId, MacAddr, UplinkId, VrfId};
use crate::ports::{
    AddressMode, Claim, ClaimKind, Policy, PortOwner, PortRange, Registration, Transport,
};
use crate::shim::{LinkState, Shim, ShimConfig, UplinkConfig};
use crate::test_packets::{ip, pool};
use crate::time::Instant;

const NOW: Instant = Instant::from_millis(1000);
const VRF: VrfId = VrfId::DEFAULT;
const OWNER: AttachmentId = AttachmentId(0);

fn config(id: u32, addresses: &[&str]) -> UplinkConfig {
    UplinkConfig {
        id: UplinkId(id),
        name: format!("up{id}").into(),
        vrf: VRF,
        mac: MacAddr([2, 0, 0, 0, 0, id as u8]),
        addresses: addresses.iter().map(|it| it.parse().unwrap()).collect(),
        mtu: 1500,
        redirects: true,
    }
}

fn shim(uplinks: &[UplinkConfig]) -> Shim {
    let (_, end) = pair(1);
    let mut shim = Shim::new(
        end,
        pool(),
        ShimConfig {
            seed: 1,
            ..ShimConfig::default()
        },
    );
    shim.set_uplinks(uplinks.to_vec(), NOW).unwrap();
    for uplink in uplinks {
        shim.set_link(uplink.id, LinkState::Up, NOW).unwrap();
    }
    announced(&mut shim);
    shim
}

/// IPv4 addresses that the NOS announces, and on which uplinks.
fn announced(shim: &mut Shim) -> Vec<(UplinkId, IpAddr)> {
    let mut announced = Vec::new();
    while let Some((uplink, burst)) = shim.poll_transmit() {
        let messages = burst
            .iter()
            .filter_map(|frame| Arp::parse(frame.bytes()).ok());
        let own = messages.filter(|arp| arp.sender_ip == arp.target_ip);
        announced.extend(own.map(|arp| (uplink, arp.sender_ip.into())));
        burst.clear();
    }
    announced.sort_unstable();
    announced.dedup();
    announced
}

fn register(shim: &mut Shim, address: &str) {
    let registration = Registration {
        attachment: OWNER,
        name: "c".into(),
        vrf: VRF,
        network: crate::ident::NetworkId::DEFAULT,
        mode: AddressMode::Shared,
        addresses: vec![ip(address)],
        policy: Policy::default(),
        claims: vec![Claim {
            transport: Transport::Tcp,
            range: PortRange::new(80, 80).unwrap(),
            kind: ClaimKind::Listen,
        }],
        link_local: None,
        router: MacAddr([2; 6]).link_local(),
        mtu: 1500,
    };
    let exchange = Exchange {
        register: vec![registration],
        ..Exchange::default()
    };
    shim.exchange(&exchange, Instant::ZERO).unwrap();
}

fn action(shim: &Shim, destination: &str) -> Action {
    let found = shim.fib().lookup(VRF, ip(destination));
    shim.fib().adjacency(found).action().clone()
}

fn route(prefix: &str, metric: u16, hops: &[(u32, &str)]) -> Route {
    let hops = hops.iter().map(|&(uplink, gateway)| NextHop {
        gateway: ip(gateway),
        uplink: UplinkId(uplink),
    });
    Route {
        vrf: VRF,
        prefix: prefix.parse().unwrap(),
        source: Source::Static { metric },
        action: Action::Via(NextHops::new(hops).unwrap()),
    }
}

#[test]
fn addresses_move_between_uplinks_with_the_ports_on_them() {
    let (one, two) = ("203.0.113.1/24", "198.51.100.1/24");
    let third = config(2, &["192.0.2.1/24"]);
    let mut shim = shim(&[config(0, &[one]), config(1, &[two]), third.clone()]);
    register(&mut shim, "203.0.113.1");
    let address = shim.ports().address(VRF, ip("203.0.113.1"));
    let swapped = vec![config(0, &[two]), config(1, &[one]), third];
    shim.set_uplinks(swapped, NOW).unwrap();
    assert_eq!(shim.ports().address(VRF, ip("203.0.113.1")), address);
    let owner = shim.ports().owner(address.unwrap(), Transport::Tcp, 80);
    let (id, kind) = (OWNER, ClaimKind::Listen);
    assert_eq!(owner, PortOwner::Attachment { id, kind });
    assert_eq!(action(&shim, "203.0.113.9"), Action::Connected(UplinkId(1)));
    let expected = [
        (UplinkId(0), ip("198.51.100.1")),
        (UplinkId(1), ip("203.0.113.1")),
    ];
    assert_eq!(announced(&mut shim), expected, "the third did not change");
}

#[test]
fn what_is_not_wanted_any_more_goes_and_the_rest_is_not_touched() {
    let kept = config(0, &["203.0.113.1/24"]);
    let mut shim = shim(&[kept.clone(), config(1, &["198.51.100.1/24"])]);
    let hops = [(0, "203.0.113.9"), (1, "198.51.100.9")];
    let routes = vec![
        route("0.0.0.0/0", 0, &hops),
        route("192.0.2.0/24", 0, &hops[1..]),
    ];
    let routes = routes.into_iter().map(RouteChange::Set).collect();
    shim.change_routes(routes).unwrap();
    let fresh = config(2, &["192.0.2.1/24"]);
    shim.set_uplinks(vec![kept, fresh], NOW).unwrap();
    assert_eq!(announced(&mut shim), [], "one is as before, the other down");
    let left = route("0.0.0.0/0", 0, &hops[..1]).action;
    assert_eq!(action(&shim, "198.51.100.1"), left);
    assert_eq!(action(&shim, "192.0.2.9"), left);
    let links: Vec<_> = shim.uplinks(None).rows.iter().map(|it| it.link).collect();
    assert_eq!(links, [LinkState::Up, LinkState::Down]);
    shim.set_link(UplinkId(2), LinkState::Up, NOW).unwrap();
    assert_eq!(announced(&mut shim), [(UplinkId(2), ip("192.0.2.1"))]);
    assert_eq!(action(&shim, "192.0.2.9"), Action::Connected(UplinkId(2)));
}

#[test]
fn routes_of_an_uplink_that_is_away_wait_for_it() {
    let mut shim = shim(&[
        config(0, &["203.0.113.1/24"]),
        config(1, &["198.51.100.1/24"]),
    ]);
    let hops = [(0, "203.0.113.9"), (1, "198.51.100.9")];
    let both = RouteChange::Set(route("0.0.0.0/0", 0, &hops));
    shim.change_routes(vec![both]).unwrap();
    assert_eq!(shim.inactive_routes(), []);
    let away = UplinkId(0);
    shim.set_link(away, LinkState::Down, NOW).unwrap();
    let other = route("0.0.0.0/0", 0, &hops[1..]).action;
    assert_eq!(action(&shim, "192.0.2.1"), other);
    assert_eq!(action(&shim, "203.0.113.9"), other, "not connected");
    let own = shim.ports().address(VRF, ip("203.0.113.1")).unwrap();
    assert_eq!(action(&shim, "203.0.113.1"), Action::Local(own));
    let inactive = shim.inactive_routes();
    let reason = InactiveReason::LinkDown(away);
    assert!(inactive.iter().all(|route| route.reason == reason));
    let prefixes = inactive.iter().map(|it| it.route.prefix.to_string());
    let prefixes: Vec<_> = prefixes.collect();
    assert_eq!(prefixes, ["203.0.113.0/24", "0.0.0.0/0"]);
    assert_eq!(inactive[1].route, route("0.0.0.0/0", 0, &hops[..1]));
    shim.set_link(away, LinkState::Up, NOW).unwrap();
    let both = route("0.0.0.0/0", 0, &hops).action;
    assert_eq!(action(&shim, "192.0.2.1"), both);
    assert_eq!(action(&shim, "203.0.113.9"), Action::Connected(away));
    assert_eq!(announced(&mut shim), [(away, ip("203.0.113.1"))]);
}
