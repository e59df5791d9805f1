//! How what a container sends to a shared address leaves it, although the address is its own.
//!
//! # Theory of operation
//!
//! The kernel keeps packets to its own addresses inside, whoever has the port. On a shared address only
//! the NOS knows whose it is: a sibling's, one of its services', the container's own, nobody's. So all
//! of them go to the NOS, which gives the container's own back. Nothing inside depends on ports, so
//! nothing inside changes with them.
//!
//! Two tables of routes say how, and policy rules when:
//!
//! | table | route to each shared address |
//! |---|---|
//! | `shared` | through the interface, by way of the relay, from the same address |
//! | `own` | stays inside, from 127.0.0.1 or ::1; only for containers that [open no flows](ContainerSpec::opens_flows) |
//!
//! | packets that programs inside send | table |
//! |---|---|
//! | from a shared address | `shared` |
//! | from another address: they cannot leave, or could not be answered | `local`, as without us |
//! | from none yet, TCP, of a container that opens no flows | `own` |
//! | from none yet | `shared` |
//!
//! A container that opens no flows of its own would be refused if it spoke to itself from a shared
//! address, as its sockets get ports that are not its own. Its connections to itself so come from
//! another address, and with them the answers stay inside. Datagrams do not: an answer to a sibling,
//! sent from a socket that is bound to no address, looks the same.
//!
//! The rules come before all others; the kernel's own for the table `local` comes right behind, so
//! that nothing else changes its place. It is never missing: it is added anew before the first one is
//! removed. What comes in from a shared address passes a check of its source (`rp_filter`) whatever
//! that is set to, as its way back is the interface that it came by. No sysctl is touched.
//!
//! Of several attachments of one namespace, all that is said here is the first one's. What comes from an
//! address of another one goes by a table of that one's, which has its default route as well; what comes from
//! none yet and goes to its addresses, by the table `further`.
//!
//! A first one whose interface somebody else has made ([`LinkPlace::Others`](super::LinkPlace)) leaves the main table
//! alone: it has such a table, too. What comes from none yet goes by that one, unless the main table has more than
//! a default route for it; what comes from an address of somebody else goes as it would without us.
//!
//! A container that has its addresses for its own, and is alone in its namespace, has none of this. Beside
//! others it has: which table a packet takes depends on its source, and the NOS gives back what goes to
//! where it came from.
//!
//! An interface that is gone takes the routes along. The rules then find nothing, and the packets stay
//! inside as ever.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use netlink_packet_route::AddressFamily;
use nos_shim::ports::AddressMode;

use super::{ContainerSpec, OtherAttachment};
use crate::control::kernel::netlink::{Request, RouteFacts, RuleFacts, Selector, Table};

/// What brings the rules of one family into the order wanted.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct RuleChanges {
    pub(super) add: Vec<Request>,
    /// Only once all are added: among them may be one that others need.
    pub(super) remove: Vec<Request>,
}

/// The rules of one family, in their order, of all attachments of the namespace; none where they have no
/// address of that family.
pub(super) fn rules(
    family: AddressFamily,
    spec: &ContainerSpec,
    addresses: &[IpAddr],
) -> Vec<RuleFacts> {
    if stays_inside(spec) {
        return Vec::new();
    }
    let ipv4 = family == AddressFamily::Inet;
    let all = attachments(spec, addresses);
    let first = all.iter().find(|it| it.table.is_none());
    let mut rules: Vec<(Selector, Table)> = Vec::new();
    for attachment in &all {
        let table = attachment.table.map_or(Table::Shared, Table::Attachment);
        let own = attachment.addresses.iter().copied();
        let own = own.filter(|own| own.is_ipv4() == ipv4);
        rules.extend(own.map(|own| (Selector::from(own.into()), table)));
    }
    if rules.is_empty() {
        return Vec::new();
    }
    let further = rules.iter().any(|(_, table)| *table != Table::Shared);
    let no_source_yet = match ipv4 {
        true => Selector::from(NO_SOURCE_YET.into()),
        false => {
            let halves = [FIRST_HALF, SECOND_HALF].map(|half| Selector::from(half.into()));
            rules.extend(halves.map(|other| (other, Table::Local)));
            Selector::ANY
        }
    };
    if first.is_some_and(|first| !first.opens_flows) {
        let tcp = Selector {
            tcp: true,
            ..no_source_yet
        };
        rules.push((tcp, Table::Own));
    }
    rules.push((no_source_yet, Table::Shared));
    if further {
        rules.push((no_source_yet, Table::Further));
    }
    let rules = rules.into_iter();
    let rules = rules.map(|(packets, table)| RuleFacts::ours(family, packets, table));
    let mut in_front = all.iter().filter(|attachment| attachment.in_front);
    let in_front = in_front.find_map(|attachment| attachment.table);
    let way_out = in_front.map(|table| way_out_in_front(family, no_source_yet, table));
    rules.chain(way_out.into_iter().flatten()).collect()
}

/// What has no source yet leaves by an attachment's table, although the main one has a default route: unless it
/// stays inside, or another route of the main table is for it.
fn way_out_in_front(family: AddressFamily, no_source_yet: Selector, table: u32) -> Vec<RuleFacts> {
    let rule = |packets, table| RuleFacts::ours(family, packets, table);
    let with_source = match family {
        AddressFamily::Inet6 => vec![FIRST_HALF, SECOND_HALF],
        // What has no source yet can be told.
        _ => Vec::new(),
    };
    let with_source = with_source.into_iter();
    let with_source = with_source.map(|half| rule(Selector::from(half.into()), Table::Main));
    let without = [
        rule(no_source_yet, Table::Local),
        rule(no_source_yet, Table::Main).without_default(),
        rule(no_source_yet, Table::Attachment(table)),
    ];
    with_source.chain(without).collect()
}

/// Whether the kernel keeps inside what goes to the addresses, as it does without us.
fn stays_inside(spec: &ContainerSpec) -> bool {
    spec.mode == AddressMode::Routed && spec.company.is_alone()
}

/// All attachments of a namespace, the first one in front: in the same order, whichever of them asks.
fn attachments(spec: &ContainerSpec, addresses: &[IpAddr]) -> Vec<OtherAttachment> {
    let own = OtherAttachment {
        table: spec.company.table,
        in_front: spec.company.in_front,
        addresses: addresses.to_vec(),
        opens_flows: spec.opens_flows,
    };
    let mut all = vec![own];
    all.extend(spec.company.others.iter().cloned());
    all.sort_by_key(|attachment| attachment.table);
    all
}

/// What the source of an IPv4 packet is as long as nobody has chosen one.
const NO_SOURCE_YET: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 32);

/// All IPv6 sources together; none is in a network of length 0 as well.
const FIRST_HALF: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 1);
const SECOND_HALF: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x8000, 0, 0, 0, 0, 0, 0, 0), 1);

/// What makes of `found`, the rules of a family in their order, those that are wanted before all
/// others, which keep theirs.
pub(super) fn rule_changes(wanted: &[RuleFacts], found: &[RuleFacts]) -> RuleChanges {
    let ours = || found.iter().filter(|rule| rule.is_ours());
    let in_place = ours().count() == wanted.len()
        && found
            .iter()
            .zip(wanted)
            .all(|(found, wanted)| found.is_ours() && found.is_same(wanted));
    if in_place {
        return RuleChanges::default();
    }
    let mut remove: Vec<_> = ours().map(RuleFacts::remove).collect();
    let mut add: Vec<_> = wanted.iter().map(RuleFacts::add).collect();
    if wanted.is_empty() {
        return RuleChanges { add, remove };
    }
    let mut kept: Vec<&RuleFacts> = Vec::new();
    for other in found
        .iter()
        .filter(|rule| rule.is_first() && !rule.is_ours())
    {
        remove.push(other.remove());
        // One that is there twice was left by a run that was killed here.
        if !kept.contains(&other) {
            kept.push(other);
            add.push(other.add());
        }
    }
    RuleChanges { add, remove }
}

/// The routes to the shared addresses: those through `interface`, if it is up, and those that stay
/// inside.
pub(super) fn routes(
    spec: &ContainerSpec,
    addresses: &[IpAddr],
    interface: Option<u32>,
    lo: u32,
) -> Vec<RouteFacts> {
    if stays_inside(spec) {
        return Vec::new();
    }
    let beyond = interface.into_iter().flat_map(|interface| {
        let route = move |&own: &IpAddr| {
            let gateway = spec.relay_address(own.is_ipv4());
            let tables = match spec.company.table {
                None => vec![Table::Shared],
                Some(number) => vec![Table::Attachment(number), Table::Further],
            };
            let to_own = move |table| RouteFacts::our_shared(own, table, interface, gateway);
            tables.into_iter().map(to_own)
        };
        let to_own = addresses.iter().flat_map(route);
        to_own.chain(ways_out(spec, addresses, interface))
    });
    let is_first = spec.company.table.is_none();
    let own = addresses.iter().filter(|_| is_first && !spec.opens_flows);
    let inside = own.map(|&own| {
        let loopback: IpAddr = match own {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        };
        RouteFacts::our_own(own, lo, loopback)
    });
    beyond.chain(inside).collect()
}

/// The default routes of an attachment that has not the namespace's: one of each family.
fn ways_out(
    spec: &ContainerSpec,
    addresses: &[IpAddr],
    interface: u32,
) -> impl Iterator<Item = RouteFacts> {
    let table = spec.company.table.map(Table::Attachment);
    let first = |ipv4: bool| addresses.iter().copied().find(|own| own.is_ipv4() == ipv4);
    let sources = [first(true), first(false)].into_iter().flatten();
    table.into_iter().flat_map(move |table| {
        let sources = sources.clone();
        sources.map(move |source| {
            let gateway = spec.gateway(source.is_ipv4());
            RouteFacts::our_default_in(table, interface, source).by_way_of(gateway)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::super::{Company, LinkPlace};
    use super::*;
    use nos_shim::ident::MacAddr;

    const V4: &str = "203.0.113.1";
    const V6: &str = "2001:db8:1::1";

    fn spec(opens_flows: bool) -> ContainerSpec {
        ContainerSpec {
            name: "web".to_owned(),
            interface: crate::interface_name::InterfaceName::eth0(),
            mac: MacAddr::stable("web"),
            mtu: 1500,
            tx_queue_len: 4096,
            mode: AddressMode::Shared,
            addresses: [V4, V6].map(|text| text.parse().unwrap()).into(),
            networks: [].into(),
            link_local: None,
            router: "fe80::ff".parse().unwrap(),
            ephemeral: Vec::new(),
            opens_flows,
            company: Company::default(),
            link_addresses: Vec::new(),
            place: LinkPlace::Alone,
        }
    }

    fn wanted(family: AddressFamily) -> Vec<RuleFacts> {
        let spec = spec(true);
        rules(family, &spec, &spec.addresses)
    }

    fn other(packets: Selector) -> RuleFacts {
        RuleFacts::ours(AddressFamily::Inet, packets, Table::Local).of_others()
    }

    fn actions(requests: &[Request]) -> Vec<&str> {
        requests.iter().map(Request::action).collect()
    }

    #[test]
    fn rules_that_are_in_place_stay() {
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let wanted = wanted(family);
            let mut found = wanted.clone();
            assert_eq!(rule_changes(&wanted, &found), RuleChanges::default());
            found.push(other(Selector::ANY));
            assert_eq!(rule_changes(&wanted, &found), RuleChanges::default());
            assert_eq!(
                rule_changes(&[], &found[wanted.len()..]),
                RuleChanges::default()
            );
        }
    }

    #[test]
    fn rules_in_any_other_order_are_made_anew_and_others_keep_theirs() {
        let wanted = wanted(AddressFamily::Inet);
        let own: Ipv4Net = "192.0.2.0/24".parse().unwrap();
        let [first, second] = [Selector::ANY, Selector::from(own.into())].map(other);
        let [a, b] = &wanted[..] else {
            panic!("{wanted:?}");
        };
        let [of_first, of_second] = [
            "an IPv4 rule for table 255",
            "an IPv4 rule from 192.0.2.0/24 for table 255",
        ];
        let ours = [
            "an IPv4 rule from 203.0.113.1/32 for table 28274",
            "an IPv4 rule from 0.0.0.0/32 for table 28274",
        ];
        let verb = |verb: &str, names: &[&str]| -> Vec<String> {
            names.iter().map(|name| format!("{verb} {name}")).collect()
        };
        for (found, removed) in [
            (
                vec![first.clone(), second.clone()],
                vec![of_first, of_second],
            ),
            // Others before ours, ours in another order, one of ours missing, one too many.
            (
                vec![first.clone(), a.clone(), b.clone(), second.clone()],
                vec![ours[0], ours[1], of_first, of_second],
            ),
            (
                vec![b.clone(), a.clone(), first.clone(), second.clone()],
                vec![ours[1], ours[0], of_first, of_second],
            ),
            (
                vec![a.clone(), first.clone(), second.clone()],
                vec![ours[0], of_first, of_second],
            ),
            (
                vec![
                    a.clone(),
                    b.clone(),
                    b.clone(),
                    first.clone(),
                    second.clone(),
                ],
                vec![ours[0], ours[1], ours[1], of_first, of_second],
            ),
            // A run was killed before it removed what it had added anew.
            (
                vec![
                    first.clone(),
                    second.clone(),
                    a.clone(),
                    b.clone(),
                    first.clone(),
                    second.clone(),
                ],
                vec![ours[0], ours[1], of_first, of_second, of_first, of_second],
            ),
        ] {
            let changes = rule_changes(&wanted, &found);
            let added = [&ours[..], &[of_first, of_second]].concat();
            assert_eq!(actions(&changes.add), verb("add", &added), "{found:?}");
            assert_eq!(
                actions(&changes.remove),
                verb("remove", &removed),
                "{found:?}"
            );
        }
        let gone = rule_changes(&[], &[a.clone(), b.clone(), first]);
        assert_eq!(actions(&gone.add), [""; 0]);
        assert_eq!(actions(&gone.remove), verb("remove", &ours));
    }

    #[test]
    fn a_family_without_addresses_has_no_rules() {
        let spec = spec(true);
        let v4 = &spec.addresses[..1];
        assert!(rules(AddressFamily::Inet6, &spec, v4).is_empty());
        assert_eq!(rules(AddressFamily::Inet, &spec, v4).len(), 2);
        assert_eq!(routes(&spec, v4, Some(7), 1).len(), 1);
        assert_eq!(routes(&spec, v4, None, 1), []);
    }

    const OTHER: &str = "198.51.100.1";

    /// The first attachment of a namespace, and one more with a table of its own.
    fn two() -> [ContainerSpec; 2] {
        let mut first = spec(true);
        let mut second = ContainerSpec {
            name: "web.blue".to_owned(),
            addresses: vec![OTHER.parse().unwrap()],
            ..spec(true)
        };
        let of = |spec: &ContainerSpec, table| OtherAttachment {
            table,
            in_front: false,
            addresses: spec.addresses.clone(),
            opens_flows: spec.opens_flows,
        };
        first.company.others = vec![of(&second, Some(77))];
        second.company = Company {
            in_front: false,
            table: Some(77),
            others: vec![of(&first, None)],
        };
        [first, second]
    }

    #[test]
    fn attachments_of_one_namespace_want_the_same_rules() {
        let [first, second] = two();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            assert_eq!(
                rules(family, &first, &first.addresses),
                rules(family, &second, &second.addresses)
            );
        }
        let rules = rules(AddressFamily::Inet, &second, &second.addresses);
        let rules: Vec<_> = rules.iter().map(RuleFacts::add).collect();
        let expected = [
            "203.0.113.1/32 for table 28274",
            "198.51.100.1/32 for table 77",
            "0.0.0.0/32 for table 28274",
            "0.0.0.0/32 for table 28276",
        ];
        let expected = expected.map(|rule| format!("add an IPv4 rule from {rule}"));
        assert_eq!(actions(&rules), expected);
    }

    #[test]
    fn each_further_attachment_has_its_way_out_in_its_table() {
        let [first, second] = two();
        let found = |spec: &ContainerSpec| {
            let routes = routes(spec, &spec.addresses, Some(7), 1);
            routes
                .iter()
                .map(|route| format!("{} {}", route.table(), route.describe()))
                .collect::<Vec<_>>()
        };
        assert_eq!(found(&first).len(), 2, "{:?}", found(&first));
        assert_eq!(
            found(&second),
            [
                "77 an IPv4 route to 198.51.100.1/32 via 192.0.0.8 through interface 7",
                "28276 an IPv4 route to 198.51.100.1/32 via 192.0.0.8 through interface 7",
                "77 an IPv4 default route through interface 7",
            ]
        );
    }

    #[test]
    fn beside_a_default_route_of_somebody_else_what_has_no_source_yet_is_ours() {
        let mut spec = spec(true);
        spec.place = LinkPlace::Others;
        spec.company.table = Some(77);
        spec.company.in_front = true;
        let list = |family| {
            let rules = rules(family, &spec, &spec.addresses);
            let rules: Vec<_> = rules.iter().map(RuleFacts::add).collect();
            let actions = actions(&rules).into_iter();
            actions.map(str::to_owned).collect::<Vec<_>>()
        };
        let own = "203.0.113.1/32 for table 77";
        let expected = [
            own,
            "0.0.0.0/32 for table 28274",
            "0.0.0.0/32 for table 28276",
            "0.0.0.0/32 for table 255",
            "0.0.0.0/32 for table 254",
            "0.0.0.0/32 for table 77",
        ];
        assert_eq!(
            list(AddressFamily::Inet),
            expected.map(|rule| format!("add an IPv4 rule from {rule}"))
        );
        let expected = [
            " from 2001:db8:1::1/128 for table 77",
            " from ::/1 for table 255",
            " from 8000::/1 for table 255",
            " for table 28274",
            " for table 28276",
            // What has a source goes as it would without us.
            " from ::/1 for table 254",
            " from 8000::/1 for table 254",
            " for table 255",
            " for table 254",
            " for table 77",
        ];
        assert_eq!(
            list(AddressFamily::Inet6),
            expected.map(|rule| format!("add an IPv6 rule{rule}"))
        );
        let all = rules(AddressFamily::Inet, &spec, &spec.addresses);
        let plain = RuleFacts::ours(
            AddressFamily::Inet,
            Selector::from(NO_SOURCE_YET.into()),
            Table::Main,
        );
        assert!(!all.iter().any(|rule| rule.is_same(&plain)));
        assert!(
            all.iter()
                .any(|rule| rule.is_same(&plain.clone().without_default()))
        );
        // By way of the relay, as others on the link could answer for anybody.
        let routes = routes(&spec, &spec.addresses, Some(7), 1);
        let routes: Vec<_> = routes.iter().map(RouteFacts::describe).collect();
        assert!(
            routes.contains(&"an IPv4 default route via 192.0.0.8 through interface 7".to_owned()),
            "{routes:?}"
        );
    }

    #[test]
    fn connections_of_who_opens_no_flows_stay_inside() {
        let spec = spec(false);
        for (family, before, rest) in [
            (AddressFamily::Inet, 1, "an IPv4 rule from 0.0.0.0/32"),
            (AddressFamily::Inet6, 3, "an IPv6 rule"),
        ] {
            let rules = rules(family, &spec, &spec.addresses);
            let last: Vec<_> = rules[before..].iter().map(RuleFacts::add).collect();
            let expected = [28275, 28274].map(|table| format!("add {rest} for table {table}"));
            assert_eq!(actions(&last), expected);
        }
        let routes = routes(&spec, &spec.addresses, None, 1);
        let inside: Vec<_> = routes.iter().map(RouteFacts::describe).collect();
        assert_eq!(
            inside,
            [
                "an IPv4 route to 203.0.113.1/32 through interface 1",
                "an IPv6 route to 2001:db8:1::1/128 through interface 1",
            ]
        );
    }
}
