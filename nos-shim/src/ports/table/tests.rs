use super::*;
use crate::ports::{AddressMode, Policy, Restriction};
use crate::prefix_set::PrefixSet;
use proptest::prelude::*;
use std::collections::BTreeSet;

const VRF: VrfId = VrfId(0);

fn ip(n: u8) -> IpAddr {
    IpAddr::from([203, 0, 113, n])
}

fn range(text: &str) -> PortRange {
    text.parse().unwrap()
}

fn tcp(text: &str) -> Claim {
    Claim {
        transport: Transport::Tcp,
        range: range(text),
        kind: ClaimKind::Listen,
    }
}

fn registration(id: u32, addresses: &[u8], claims: &[Claim]) -> Registration {
    Registration {
        attachment: AttachmentId(id),
        name: format!("c{id}").into(),
        vrf: VRF,
        network: crate::ident::NetworkId::DEFAULT,
        mode: AddressMode::Shared,
        addresses: addresses.iter().map(|&n| ip(n)).collect(),
        policy: Policy::default(),
        claims: claims.to_vec(),
        link_local: None,
        router: core::net::Ipv6Addr::LOCALHOST,
        mtu: 1500,
    }
}

fn service(name: &str, claims: &[Claim]) -> ServiceRegistration {
    ServiceRegistration {
        name: name.into(),
        vrf: VRF,
        claims: claims.to_vec(),
        from: Vec::new(),
    }
}

fn listener(id: u32) -> PortOwner {
    PortOwner::Attachment {
        id: AttachmentId(id),
        kind: ClaimKind::Listen,
    }
}

fn refused(result: Result<(), RegistrationRefused>) -> ClaimRefused {
    match result {
        Err(RegistrationRefused::Claim(refused)) => refused,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_link_of_an_uplink_has_ports_of_its_own() {
    let (uplink, other) = (UplinkId::new(0, 0), UplinkId::new(1, 0));
    let mut table = PortTable::new();
    let on = |id, address, link_local| Registration {
        link_local: Some(link_local),
        ..registration(id, &[address], &[tcp("179")])
    };
    let unknown = table.register(&on(1, 1, uplink)).unwrap_err();
    table.add_address(VRF, ip(1));
    let unknown_link = table.register(&on(1, 1, uplink)).unwrap_err();
    assert!(matches!(
        unknown,
        RegistrationRefused::UnknownAddress { .. }
    ));
    assert_eq!(unknown_link, RegistrationRefused::UnknownLink(uplink));
    let address = table.add_address(VRF, ip(2));
    let [link, elsewhere] = [uplink, other].map(|uplink| table.add_link(uplink));
    assert_eq!(table.add_link(uplink), link);
    table.register(&on(1, 1, uplink)).unwrap();
    // Whatever other addresses they have, and in whatever VRF they are.
    let mut rival = on(2, 2, uplink);
    assert_eq!(&*refused(table.register(&rival)).owner, "c1");
    rival.vrf = VrfId(VRF.0 + 1);
    table.add_address(rival.vrf, ip(2));
    assert_eq!(&*refused(table.register(&rival)).owner, "c1");
    table.register(&on(2, 2, other)).unwrap();
    // A service is on no link.
    table.register_service(&service("s", &[tcp("80")])).unwrap();
    let owner = |table: &PortTable, address, port| table.owner(address, Transport::Tcp, port);
    for (address, port, expected) in [
        (address, 179, listener(2)),
        (link, 179, listener(1)),
        (elsewhere, 179, listener(2)),
        (address, 80, PortOwner::Nos),
        (link, 80, PortOwner::Nobody),
    ] {
        assert_eq!(owner(&table, address, port), expected, "{port}");
    }
    // Claims hold again when the link comes back.
    assert!(table.remove_link(uplink) && !table.remove_link(uplink));
    assert_eq!(owner(&table, link, 179), PortOwner::Nobody);
    let link = table.add_link(uplink);
    assert_eq!(owner(&table, link, 179), listener(1));
    assert!(table.withdraw(AttachmentId(1)));
    assert_eq!(owner(&table, link, 179), PortOwner::Nobody);
}

#[test]
fn pages_are_whole_owners_and_together_all_claims() {
    let mut table = PortTable::new();
    table.add_address(VRF, ip(1));
    let port = |port: u32| tcp(&format!("{port}"));
    for n in 1..=70 {
        table
            .register_service(&service(&format!("s{n}"), &[port(n)]))
            .unwrap();
    }
    for id in 0..200 {
        let claims = [port(1000 + 2 * id), port(1001 + 2 * id)];
        table.register(&registration(id, &[1], &claims)).unwrap();
    }
    let grants = crate::page::all(|after: Option<Grant>| {
        let page = table.page(after.as_ref());
        assert!(page.rows.len() <= PAGE);
        page
    });
    let read: Vec<_> = grants.iter().flat_map(Grant::holdings).collect();
    assert_eq!(read, table.claims().collect::<Vec<_>>());
    // Whoever the cursor names may go, and others come.
    let first = table.page(None);
    let Some(Grant::Service(last)) = first.next.clone() else {
        panic!("{first:?}");
    };
    table.register_service(&service(&last.name, &[])).unwrap();
    table.withdraw(AttachmentId(0));
    let rest = crate::page::all(|after: Option<Grant>| {
        table.page(Some(after.as_ref().or(first.next.as_ref()).unwrap()))
    });
    assert_eq!(first.rows.len() + rest.len(), 70 + 199);
}

#[test]
fn a_range_belongs_to_its_owner_from_end_to_end() {
    let mut table = PortTable::new();
    let a = table.add_address(VRF, ip(1));
    let ephemeral = Claim {
        kind: ClaimKind::Ephemeral,
        ..tcp("40000-44999")
    };
    let claims = [tcp("20000-20999"), tcp("179"), ephemeral];
    table.register(&registration(7, &[1], &claims)).unwrap();
    for (port, owner) in [
        (0, PortOwner::Nobody),
        (178, PortOwner::Nobody),
        (179, listener(7)),
        (180, PortOwner::Nobody),
        (19_999, PortOwner::Nobody),
        (20_000, listener(7)),
        (20_480, listener(7)),
        (20_999, listener(7)),
        (21_000, PortOwner::Nobody),
    ] {
        assert_eq!(table.owner(a, Transport::Tcp, port), owner, "{port}");
        assert_eq!(table.owner(a, Transport::Udp, port), PortOwner::Nobody);
    }
    let owner = table.owner(a, Transport::Tcp, 44_999);
    let kind = ClaimKind::Ephemeral;
    let id = AttachmentId(7);
    assert_eq!(owner, PortOwner::Attachment { id, kind });
}

#[test]
fn a_clash_names_the_owner_and_changes_nothing() {
    let mut table = PortTable::new();
    let a = table.add_address(VRF, ip(1));
    let first = registration(1, &[1], &[tcp("20000-20999")]);
    let second = registration(2, &[1], &[tcp("5000"), tcp("20500-20509")]);
    table.register(&first).unwrap();
    let refused = refused(table.register(&second));
    assert_eq!(
        refused.to_string(),
        "tcp 20500-20509 is refused: 20000-20999 belongs to 'c1'; 21000-21009 is free"
    );
    assert_eq!(table.owner(a, Transport::Tcp, 5000), PortOwner::Nobody);
    assert_eq!(table.owner(a, Transport::Tcp, 20_500), listener(1));
    assert_eq!(table.claims().count(), 1);
}

#[test]
fn a_refused_change_leaves_what_was_there() {
    let mut table = PortTable::new();
    let a = table.add_address(VRF, ip(1));
    table
        .register(&registration(1, &[1], &[tcp("80")]))
        .unwrap();
    table
        .register(&registration(2, &[1], &[tcp("81")]))
        .unwrap();
    refused(table.register(&registration(2, &[1], &[tcp("82"), tcp("80")])));
    assert_eq!(table.owner(a, Transport::Tcp, 81), listener(2));
    assert_eq!(table.owner(a, Transport::Tcp, 82), PortOwner::Nobody);
}

#[test]
fn ports_of_services_that_are_for_some_are_marked() {
    let mut table = PortTable::new();
    let a = table.add_address(VRF, ip(1));
    let mut wanted = service("NOS", &[tcp("80"), tcp("81")]);
    let marked = |table: &PortTable, address| {
        [80, 81].map(|port| match table.owner(address, Transport::Tcp, port) {
            PortOwner::WatchedNos => true,
            owner => {
                assert_eq!(owner, PortOwner::Nos);
                false
            }
        })
    };
    table.register_service(&wanted).unwrap();
    assert_eq!(marked(&table, a), [false, false]);
    wanted.from = vec![Restriction {
        transport: Transport::Tcp,
        range: range("81"),
        from: Arc::default(),
    }];
    table.register_service(&wanted).unwrap();
    assert_eq!(marked(&table, a), [false, true]);
    // An address that comes later has them too, and they are as taken as others.
    let b = table.add_address(VRF, ip(2));
    assert_eq!(marked(&table, b), [false, true]);
    let refused = table.register(&registration(1, &[2], &[tcp("81")]));
    assert!(matches!(refused, Err(RegistrationRefused::Claim(_))));
    let grant = table.page(None).rows.remove(0);
    let rules = grant.holdings_with_rules();
    let rules: Vec<_> = rules
        .flat_map(|(_, parts)| parts)
        .map(|(range, rule)| (range, rule.from.is_some()))
        .collect();
    assert_eq!(rules, [(range("80"), false), (range("81"), true)]);
    wanted.from.clear();
    table.register_service(&wanted).unwrap();
    assert_eq!(marked(&table, b), [false, false]);
}

/// Also where only the policy changes, and where an address comes back.
#[test]
fn ports_that_a_policy_is_about_are_marked() {
    let ephemeral = Claim {
        kind: ClaimKind::Ephemeral,
        ..tcp("40-49")
    };
    let plain = registration(1, &[1], &[tcp("10-19"), tcp("20-29"), ephemeral]);
    let mut ruled = plain.clone();
    let from = Arc::new(PrefixSet::new([ip(9).into()]));
    ruled.policy.from = vec![Restriction {
        transport: Transport::Tcp,
        range: range("20-29"),
        from,
    }];
    ruled.policy.established = vec![range("40-49")];
    let mut table = PortTable::new();
    let a = table.add_address(VRF, ip(1));
    let (id, listen, own) = (AttachmentId(1), ClaimKind::Listen, ClaimKind::Ephemeral);
    let watched = |table: &PortTable, a| {
        [(15, listen), (25, listen), (45, own)].map(|(port, kind)| {
            match table.owner(a, Transport::Tcp, port) {
                owner if owner == PortOwner::Watched { id, kind } => true,
                owner => {
                    assert_eq!(owner, PortOwner::Attachment { id, kind });
                    false
                }
            }
        })
    };
    table.register(&plain).unwrap();
    assert_eq!(watched(&table, a), [false; 3]);
    table.register(&ruled).unwrap();
    assert_eq!(watched(&table, a), [false, true, true]);
    table.remove_address(VRF, ip(1));
    let a = table.add_address(VRF, ip(1));
    assert_eq!(watched(&table, a), [false, true, true]);
    // What comes to any listen port may need an answer to somewhere else.
    ruled.policy.to = Some(Arc::default());
    table.register(&ruled).unwrap();
    assert_eq!(watched(&table, a), [true; 3]);
    table.register(&plain).unwrap();
    assert_eq!(watched(&table, a), [false; 3]);
}

#[test]
fn registering_again_replaces() {
    let mut table = PortTable::new();
    let a = table.add_address(VRF, ip(1));
    let wanted = registration(1, &[1, 1], &[tcp("1000-1999")]);
    table.register(&wanted).unwrap();
    table.register(&wanted).unwrap();
    table
        .register(&registration(1, &[1], &[tcp("1500-2500")]))
        .unwrap();
    assert_eq!(table.owner(a, Transport::Tcp, 1499), PortOwner::Nobody);
    assert_eq!(table.owner(a, Transport::Tcp, 2500), listener(1));
    assert!(table.withdraw(AttachmentId(1)) && !table.withdraw(AttachmentId(1)));
    assert_eq!(table.owner(a, Transport::Tcp, 2500), PortOwner::Nobody);
    assert_eq!(table.map.pages_in_use(), 0);
}

#[test]
fn a_registration_must_not_clash_with_itself() {
    let mut table = PortTable::new();
    table.add_address(VRF, ip(1));
    let claims = [tcp("80-90"), tcp("500"), tcp("85-89")];
    let refused = refused(table.register(&registration(1, &[1], &claims)));
    assert_eq!(
        refused.to_string(),
        "tcp 85-89 is refused: 80-90 belongs to 'c1'; 1024-1028 is free"
    );
    let udp = Claim {
        transport: Transport::Udp,
        ..tcp("80")
    };
    table
        .register(&registration(1, &[1], &[tcp("80"), udp]))
        .unwrap();
}

#[test]
fn one_port_on_two_addresses_may_have_two_owners() {
    let mut table = PortTable::new();
    let (a, b) = (table.add_address(VRF, ip(1)), table.add_address(VRF, ip(2)));
    let other = table.add_address(VrfId(1), ip(1));
    table
        .register(&registration(1, &[1], &[tcp("80")]))
        .unwrap();
    table
        .register(&registration(2, &[2], &[tcp("80")]))
        .unwrap();
    assert_eq!(table.owner(a, Transport::Tcp, 80), listener(1));
    assert_eq!(table.owner(b, Transport::Tcp, 80), listener(2));
    assert_eq!(table.owner(other, Transport::Tcp, 80), PortOwner::Nobody);
    refused(table.register(&registration(3, &[2], &[tcp("80")])));
    let elsewhere = Registration {
        vrf: VrfId(1),
        ..registration(3, &[1], &[tcp("80")])
    };
    table.register(&elsewhere).unwrap();
    assert_eq!(table.owner(other, Transport::Tcp, 80), listener(3));
}

#[test]
fn an_address_must_be_the_nos_s() {
    let mut table = PortTable::new();
    table.add_address(VRF, ip(1));
    let error = table.register(&registration(1, &[1, 9], &[])).unwrap_err();
    assert_eq!(
        error.to_string(),
        "203.0.113.9 is not an address of the NOS in VRF 0"
    );
    let error = table
        .register(&registration(LAST_OWNER + 1, &[1], &[]))
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "attachment 268435456 is beyond the last that can own ports, 268435455"
    );
    table
        .register(&registration(LAST_OWNER, &[1], &[tcp("80")]))
        .unwrap();
    let a = table.address(VRF, ip(1)).unwrap();
    assert_eq!(table.owner(a, Transport::Tcp, 80), listener(LAST_OWNER));
}

#[test]
fn claims_follow_addresses() {
    let mut table = PortTable::new();
    let a = table.add_address(VRF, ip(1));
    table
        .register(&registration(1, &[1], &[tcp("80")]))
        .unwrap();
    table
        .register_service(&service("http", &[tcp("8080")]))
        .unwrap();
    assert!(table.remove_address(VRF, ip(1)) && !table.remove_address(VRF, ip(1)));
    assert_eq!(table.owner(a, Transport::Tcp, 80), PortOwner::Nobody);
    assert_eq!(table.address(VRF, ip(1)), None);
    let b = table.add_address(VRF, ip(2));
    assert_eq!(table.owner(b, Transport::Tcp, 80), PortOwner::Nobody);
    assert_eq!(table.owner(b, Transport::Tcp, 8080), PortOwner::Nos);
    let clash = refused(table.register_service(&service("web", &[tcp("80")])));
    assert_eq!(
        &*clash.owner, "c1",
        "a claim holds while its address is away"
    );
    let a = table.add_address(VRF, ip(1));
    assert_ne!(a, b);
    assert_eq!(table.owner(a, Transport::Tcp, 80), listener(1));
}

#[test]
fn the_nos_s_services_own_ports_on_every_address() {
    let mut table = PortTable::new();
    let (a, b) = (table.add_address(VRF, ip(1)), table.add_address(VRF, ip(2)));
    table
        .register_service(&service("echo", &[tcp("7")]))
        .unwrap();
    table
        .register_service(&service("echo", &[tcp("7"), tcp("1007")]))
        .unwrap();
    for id in [a, b] {
        assert_eq!(table.owner(id, Transport::Tcp, 1007), PortOwner::Nos);
    }
    let clash = refused(table.register(&registration(1, &[2], &[tcp("1-1023")])));
    assert_eq!((&*clash.owner, clash.taken), ("echo", range("7")));
    assert_eq!(clash.suggestion, Some(range("1024-2046")));
    let clash = refused(table.register_service(&service("chargen", &[tcp("7")])));
    assert_eq!(&*clash.owner, "echo");
    table.register_service(&service("echo", &[])).unwrap();
    assert_eq!(table.owner(a, Transport::Tcp, 7), PortOwner::Nobody);
}

#[test]
fn a_full_address_has_nothing_to_suggest() {
    let mut table = PortTable::new();
    table.add_address(VRF, ip(1));
    table
        .register(&registration(1, &[1], &[tcp("1-65535")]))
        .unwrap();
    let refused = refused(table.register(&registration(2, &[1], &[tcp("1-2")])));
    assert_eq!(
        refused.to_string(),
        "tcp 1-2 is refused: 1-65535 belongs to 'c1'; no range of 2 ports is free"
    );
}

#[test]
fn two_attachments_swap_ports_and_addresses_in_one_exchange() {
    let mut table = PortTable::new();
    let (one, two) = (table.add_address(VRF, ip(1)), table.add_address(VRF, ip(2)));
    let before = [
        registration(1, &[1], &[tcp("80"), tcp("5000-5999")]),
        registration(2, &[2], &[tcp("80"), tcp("6000-6999")]),
    ];
    table.exchange(&[], &before, None).unwrap();
    refused(table.register(&registration(1, &[2], &[tcp("80")])));
    let swapped = [
        registration(1, &[2], &[tcp("80"), tcp("6000-6999")]),
        registration(2, &[1], &[tcp("80"), tcp("5000-5999")]),
    ];
    table.exchange(&[], &swapped, None).unwrap();
    for port in [80, 5000, 5999] {
        assert_eq!(table.owner(one, Transport::Tcp, port), listener(2));
    }
    for port in [80, 6000, 6999] {
        assert_eq!(table.owner(two, Transport::Tcp, port), listener(1));
    }
    table
        .exchange(&[AttachmentId(1), AttachmentId(2)], &[], None)
        .unwrap();
    assert_eq!(table.claims().count(), 0);
    assert_eq!(table.map.pages_in_use(), 0);
}

#[test]
fn an_exchange_that_clashes_changes_nothing_and_names_who_may_not() {
    let mut table = PortTable::new();
    let a = table.add_address(VRF, ip(1));
    let before = [
        registration(1, &[1], &[tcp("80")]),
        registration(2, &[1], &[tcp("81")]),
        registration(3, &[1], &[tcp("82")]),
    ];
    table.exchange(&[], &before, None).unwrap();
    table
        .register_service(&service("NOS", &[tcp("7")]))
        .unwrap();
    // The last two want the same port.
    let wanted = [
        registration(2, &[1], &[tcp("80")]),
        registration(4, &[1], &[tcp("500-600")]),
        registration(5, &[1], &[tcp("83"), tcp("600")]),
    ];
    let free = service("NOS", &[tcp("9")]);
    let refused = table.exchange(&[AttachmentId(1)], &wanted, Some(&free));
    let refused = refused.unwrap_err();
    assert_eq!(refused.owner, Owner::Attachment(AttachmentId(5)));
    assert_eq!(
        refused.to_string(),
        "tcp 600 is refused: 500-600 belongs to 'c4'; 1024 is free"
    );
    for (port, owner) in [
        (80, listener(1)),
        (81, listener(2)),
        (82, listener(3)),
        (83, PortOwner::Nobody),
        (500, PortOwner::Nobody),
        (7, PortOwner::Nos),
        (9, PortOwner::Nobody),
    ] {
        assert_eq!(table.owner(a, Transport::Tcp, port), owner, "{port}");
    }
    assert_eq!(table.claims().count(), 4);
    let twice = [wanted[1].clone(), wanted[1].clone()];
    let refused = table.exchange(&[], &twice, None).unwrap_err();
    assert_eq!(refused.to_string(), "attachment 4 is in one exchange twice");
}

#[test]
fn a_port_passes_from_a_service_to_a_container_and_back() {
    let mut table = PortTable::new();
    let a = table.add_address(VRF, ip(1));
    let (all, one) = (
        service("NOS", &[tcp("7"), tcp("80")]),
        service("NOS", &[tcp("7")]),
    );
    table.register_service(&all).unwrap();
    let web = registration(1, &[1], &[tcp("80")]);
    table
        .exchange(&[], core::slice::from_ref(&web), Some(&one))
        .unwrap();
    assert_eq!(table.owner(a, Transport::Tcp, 80), listener(1));
    let refused = table.exchange(&[], &[], Some(&all)).unwrap_err();
    assert_eq!(refused.owner, Owner::Nos);
    table.exchange(&[web.attachment], &[], Some(&all)).unwrap();
    assert_eq!(table.owner(a, Transport::Tcp, 80), PortOwner::Nos);
}

#[test]
fn memory_is_bounded_by_addresses() {
    let mut table = PortTable::new();
    let a = table.add_address(VRF, ip(1));
    table
        .register(&registration(0, &[1], &[tcp("1024-65535")]))
        .unwrap();
    assert_eq!(table.map.pages_in_use(), 0, "whole blocks need no page");
    table.withdraw(AttachmentId(0));
    for id in 0..10_000_u32 {
        let first = 1024 + 6 * id as u16;
        let claim = tcp(&format!("{first}-{}", first + 5));
        table.register(&registration(id, &[1], &[claim])).unwrap();
    }
    assert!(table.map.pages_in_use() <= 256);
    assert_eq!(
        table.owner(a, Transport::Tcp, 1024 + 6 * 9999),
        listener(9999)
    );
    for id in 0..10_000 {
        table.withdraw(AttachmentId(id));
    }
    assert_eq!(table.map.pages_in_use(), 0);
}

/// Every port of both transports, against a list of who was given it.
#[track_caller]
fn assert_owners(table: &PortTable, address: LocalAddressId, owners: &[[PortOwner; 2]]) {
    for (port, expected) in (0..=u16::MAX).zip(owners) {
        let found = [Transport::Tcp, Transport::Udp].map(|it| table.owner(address, it, port));
        assert_eq!(found, *expected, "port {port}");
    }
}

#[test]
fn ten_thousand_ranges_in_one_exchange_are_granted_and_undone() {
    let mut table = PortTable::new();
    let a = table.add_address(VRF, ip(1));
    let nobody = vec![[PortOwner::Nobody; 2]; 1 << 16];
    let mut owners = nobody.clone();
    // Of the NOS, and of another container; both lie between ranges of the one that follows.
    let services = [tcp("4"), tcp("10000-10001")];
    table.register_service(&service("nos", &services)).unwrap();
    let other = tcp("10-11");
    table.register(&registration(2, &[1], &[other])).unwrap();
    for port in [4, 10_000, 10_001] {
        owners[port][0] = PortOwner::Nos;
    }
    for port in [10, 11] {
        owners[port][0] = listener(2);
    }
    let before = owners.clone();
    // Four ports and two that are left out, by turns for each transport and kind.
    let mut claims = Vec::new();
    for n in 0..10_000_u16 {
        let first = 6 * n + if n % 2 == 0 { 6 } else { 5 };
        let transport = [Transport::Tcp, Transport::Udp][usize::from(n % 4 / 2)];
        let kind = [ClaimKind::Listen, ClaimKind::Ephemeral][usize::from(n % 2)];
        let range = PortRange::new(first, first + 3).unwrap();
        let claim = Claim {
            transport,
            range,
            kind,
        };
        let held = |other: &Claim| overlap(*other, claim);
        if services.iter().chain([&other]).any(held) {
            continue;
        }
        claims.push(claim);
        let id = AttachmentId(1);
        for port in range.first()..=range.last() {
            let owner = &mut owners[usize::from(port)][transport as usize];
            assert_eq!(*owner, PortOwner::Nobody, "the test names a port once");
            *owner = PortOwner::Attachment { id, kind };
        }
    }
    assert!(claims.len() > 9_990, "{}", claims.len());
    // In no order that helps.
    claims.sort_by_key(|claim| claim.range.first().wrapping_mul(40_503));
    let wanted = registration(1, &[1], &claims);
    table.register(&wanted).unwrap();
    assert_owners(&table, a, &owners);
    // One clash among them all changes nothing, whoever asks.
    let mut of_tcp = claims.iter().filter(|it| it.transport == Transport::Tcp);
    let held = of_tcp.next_back().unwrap();
    let free = tcp("5");
    let clash = registration(3, &[1], &[free, *held]);
    assert_eq!(&*refused(table.register(&clash)).owner, "c1");
    let greedy = registration(1, &[1], &[claims.as_slice(), &[tcp("9999-10000")]].concat());
    assert_eq!(&*refused(table.register(&greedy)).owner, "nos");
    assert_owners(&table, a, &owners);
    // All but one go in one exchange, and then all.
    let kept = registration(1, &[1], &claims[..1]);
    table.register(&kept).unwrap();
    assert_eq!(
        table.claims().filter(|it| it.owner != Owner::Nos).count(),
        2
    );
    table.register(&wanted).unwrap();
    assert_owners(&table, a, &owners);
    assert!(table.withdraw(AttachmentId(1)));
    assert_owners(&table, a, &before);
    assert!(table.withdraw(AttachmentId(2)));
    table.register_service(&service("nos", &[])).unwrap();
    assert_owners(&table, a, &nobody);
    assert_eq!(table.map.pages_in_use(), 0);
}

/// Ports near the edges of blocks, where mistakes would be.
fn port() -> impl Strategy<Value = u16> {
    prop_oneof![
        1..20_u16,
        250..262_u16,
        508..516_u16,
        65_270..=65_535_u16,
        1..=65_535_u16,
    ]
}

fn claim() -> impl Strategy<Value = Claim> {
    let kinds = prop_oneof![Just(ClaimKind::Listen), Just(ClaimKind::Ephemeral)];
    let transports = prop_oneof![Just(Transport::Tcp), Just(Transport::Udp)];
    (port(), port(), 0..4_u8, kinds, transports).prop_map(|(a, b, long, kind, transport)| {
        let last = if long == 0 {
            b
        } else {
            a.saturating_add(b % 300)
        };
        Claim {
            transport,
            range: PortRange::new(a.min(last), a.max(last)).unwrap(),
            kind,
        }
    })
}

#[derive(Clone, Debug)]
enum Step {
    Register(u32, BTreeSet<(u16, u8)>, Vec<Claim>),
    Withdraw(u32),
    Serve(u8, u16, Vec<Claim>),
    Unserve(u8, u16),
    Add(u16, u8),
    Remove(u16, u8),
    Exchange(Vec<u32>, Vec<Wanted>, Option<(u8, u16, Vec<Claim>)>),
}

/// Number, places (VRF and address) and claims of an attachment.
type Wanted = (u32, BTreeSet<(u16, u8)>, Vec<Claim>);

fn wanted(&(id, ref places, ref claims): &Wanted) -> Registration {
    let addresses: Vec<_> = places.iter().map(|&(_, n)| n).collect();
    Registration {
        vrf: VrfId(places.first().map_or(0, |place| place.0)),
        network: crate::ident::NetworkId::DEFAULT,
        ..registration(id, &addresses, claims)
    }
}

fn step() -> impl Strategy<Value = Step> {
    let claims = || proptest::collection::vec(claim(), 0..4);
    let place = || (0..2_u16, 0..3_u8);
    prop_oneof![
        4 => (0..4_u32, proptest::collection::btree_set(place(), 0..3), claims())
            .prop_map(|(id, places, claims)| Step::Register(id, places, claims)),
        1 => (0..4_u32).prop_map(Step::Withdraw),
        1 => (0..2_u8, 0..2_u16, claims()).prop_map(|(n, vrf, claims)| Step::Serve(n, vrf, claims)),
        1 => (0..2_u8, 0..2_u16).prop_map(|(n, vrf)| Step::Unserve(n, vrf)),
        4 => place().prop_map(|(vrf, n)| Step::Add(vrf, n)),
        1 => place().prop_map(|(vrf, n)| Step::Remove(vrf, n)),
        4 => (
            proptest::collection::vec(0..4_u32, 0..2),
            proptest::collection::vec(
                (0..4_u32, proptest::collection::btree_set(place(), 0..3), claims()),
                0..4,
            ),
            proptest::option::weighted(0.3, (0..2_u8, 0..2_u16, claims())),
        )
            .prop_map(|(gone, wanted, service)| Step::Exchange(gone, wanted, service)),
    ]
}

/// Lists of what was granted, searched from end to end.
#[derive(Clone, Default)]
struct Oracle {
    here: BTreeSet<(VrfId, IpAddr)>,
    /// Owner's name, VRF, address (none: all), claim.
    granted: Vec<(String, VrfId, Option<IpAddr>, Claim)>,
}

impl Oracle {
    fn forget(&mut self, name: &str, vrf: Option<VrfId>) {
        self.granted
            .retain(|(other, at, ..)| other != name || vrf.is_some_and(|vrf| vrf != *at));
    }

    fn grant(
        &mut self,
        name: &str,
        vrf: VrfId,
        addresses: &[Option<IpAddr>],
        claims: &[Claim],
        service: bool,
    ) -> bool {
        let mut new = Vec::new();
        for &claim in claims {
            if new.iter().any(|&(_, other)| overlap(claim, other)) {
                return false;
            }
            let rival = |(other, at, place, theirs): &&(String, VrfId, Option<IpAddr>, Claim)| {
                let meets = addresses
                    .iter()
                    .any(|mine| mine.is_none() || place.is_none() || mine == place);
                other != name && *at == vrf && meets && overlap(claim, *theirs)
            };
            if self.granted.iter().any(|grant| rival(&grant)) {
                return false;
            }
            new.push((vrf, claim));
        }
        self.forget(name, service.then_some(vrf));
        for (vrf, claim) in new {
            let grants = addresses
                .iter()
                .map(|&ip| (name.to_owned(), vrf, ip, claim));
            self.granted.extend(grants);
        }
        true
    }

    fn register(&mut self, wanted: &Registration) -> bool {
        let known = |ip: &IpAddr| self.here.contains(&(wanted.vrf, *ip));
        wanted.addresses.iter().all(known) && {
            let addresses: Vec<_> = wanted.addresses.iter().map(|&ip| Some(ip)).collect();
            self.grant(&wanted.name, wanted.vrf, &addresses, &wanted.claims, false)
        }
    }

    /// All go, and then one after the other is granted: on a copy, until one is refused.
    fn exchange(
        &mut self,
        gone: &[AttachmentId],
        wanted: &[Registration],
        service: Option<&ServiceRegistration>,
    ) -> bool {
        let mut after = self.clone();
        let changed = wanted.iter().map(|wanted| wanted.attachment);
        for id in gone.iter().copied().chain(changed) {
            after.forget(&format!("c{}", id.0), None);
        }
        let distinct: BTreeSet<_> = wanted.iter().map(|wanted| wanted.attachment).collect();
        let granted = distinct.len() == wanted.len()
            && service.is_none_or(|service| {
                after.grant(&service.name, service.vrf, &[None], &service.claims, true)
            })
            && wanted.iter().all(|wanted| after.register(wanted));
        if granted {
            *self = after;
        }
        granted
    }

    fn owner(&self, vrf: VrfId, address: IpAddr, transport: Transport, port: u16) -> PortOwner {
        let found = self.granted.iter().find(|(_, at, place, claim)| {
            *at == vrf
                && place.is_none_or(|place| place == address)
                && claim.transport == transport
                && claim.range.contains(port)
        });
        match found {
            None => PortOwner::Nobody,
            Some((_, _, None, _)) => PortOwner::Nos,
            Some((name, _, _, claim)) => PortOwner::Attachment {
                id: AttachmentId(name[1..].parse().unwrap()),
                kind: claim.kind,
            },
        }
    }
}

fn apply(table: &mut PortTable, oracle: &mut Oracle, step: Step) -> Result<(), TestCaseError> {
    match step {
        Step::Register(id, places, claims) => {
            let wanted = wanted(&(id, places, claims));
            let granted = oracle.register(&wanted);
            let result = table.register(&wanted);
            prop_assert_eq!(result.is_ok(), granted, "{:?}", result);
            if let Err(RegistrationRefused::Claim(refused)) = result {
                check_refusal(table, &refused, &wanted)?;
            }
        }
        Step::Withdraw(id) => {
            oracle.forget(&format!("c{id}"), None);
            table.withdraw(AttachmentId(id));
        }
        Step::Serve(n, vrf, claims) => {
            let wanted = ServiceRegistration {
                vrf: VrfId(vrf),
                ..service(&format!("s{n}"), &claims)
            };
            let granted = oracle.grant(&wanted.name, wanted.vrf, &[None], &claims, true);
            prop_assert_eq!(table.register_service(&wanted).is_ok(), granted);
        }
        Step::Unserve(n, vrf) => {
            oracle.forget(&format!("s{n}"), Some(VrfId(vrf)));
            let nothing = ServiceRegistration {
                vrf: VrfId(vrf),
                ..service(&format!("s{n}"), &[])
            };
            prop_assert_eq!(table.register_service(&nothing), Ok(()));
        }
        Step::Exchange(gone, wishes, service) => {
            let gone: Vec<_> = gone.into_iter().map(AttachmentId).collect();
            let wishes: Vec<_> = wishes.iter().map(wanted).collect();
            let service = service.map(|(n, vrf, claims)| ServiceRegistration {
                vrf: VrfId(vrf),
                ..self::service(&format!("s{n}"), &claims)
            });
            let granted = oracle.exchange(&gone, &wishes, service.as_ref());
            let result = table.exchange(&gone, &wishes, service.as_ref());
            prop_assert_eq!(result.is_ok(), granted, "{:?}", result);
        }
        Step::Add(vrf, n) => {
            oracle.here.insert((VrfId(vrf), ip(n)));
            table.add_address(VrfId(vrf), ip(n));
        }
        Step::Remove(vrf, n) => {
            let removed = oracle.here.remove(&(VrfId(vrf), ip(n)));
            prop_assert_eq!(table.remove_address(VrfId(vrf), ip(n)), removed);
        }
    }
    Ok(())
}

/// What is suggested must be granted, if asked for alone.
fn check_refusal(
    table: &PortTable,
    refused: &ClaimRefused,
    wanted: &Registration,
) -> Result<(), TestCaseError> {
    prop_assert!(refused.taken.overlaps(refused.claim.range));
    let Some(range) = refused.suggestion else {
        return Ok(());
    };
    prop_assert_eq!(range.len(), refused.claim.range.len());
    let claim = Claim {
        range,
        ..refused.claim
    };
    let retry = Registration {
        claims: vec![claim],
        ..wanted.clone()
    };
    prop_assert_eq!(table.check(&retry, false), Ok(()));
    Ok(())
}

fn check_owners(table: &PortTable, oracle: &Oracle) -> Result<(), TestCaseError> {
    for &(vrf, address) in &oracle.here {
        let id = table.address(vrf, address).unwrap();
        let edges = oracle.granted.iter().flat_map(|(.., claim)| {
            let (first, last) = (claim.range.first(), claim.range.last());
            [first - 1, first, last, last.saturating_add(1)]
        });
        let samples = edges.chain((0..=u16::MAX).step_by(251));
        for port in samples {
            for transport in [Transport::Tcp, Transport::Udp] {
                let owner = table.owner(id, transport, port);
                prop_assert_eq!(owner, oracle.owner(vrf, address, transport, port));
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn the_table_agrees_with_lists(steps in proptest::collection::vec(step(), 1..80)) {
        let (mut table, mut oracle) = (PortTable::new(), Oracle::default());
        for step in steps {
            apply(&mut table, &mut oracle, step)?;
            check_owners(&table, &oracle)?;
        }
    }
}
