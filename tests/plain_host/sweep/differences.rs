//! Where the NOS differs from a Linux router, and why. `docs/conformance.md` has the same table.

use std::collections::BTreeSet;

/// Packets that are treated in another way.
pub(crate) struct Difference {
    /// The sweep that finds it.
    pub(crate) sweep: &'static str,
    /// Names of packets. A star stands for any characters, `{a/b}` for one of them. All that fit differ.
    pub(crate) packets: &'static str,
    pub(crate) reason: &'static str,
}

/// Sweep, packets, reason.
const ALL: &[(&str, &str, &str)] = &[
    (
        "arp",
        "question to the MAC of {everybody/the NOS/a group of IPv4/a group of IPv6/bridges} from {everybody on the subnet/the subnet/class E}",
        "no host has such an address (RFC 1122 §3.2.1.3), so nobody is answered",
    ),
    (
        "arp",
        "question about the NOS from {everybody on the subnet/the subnet/class E}",
        "no host has such an address (RFC 1122 §3.2.1.3), so nobody is answered",
    ),
    (
        "arp",
        "question to the MAC of {everybody/the NOS/a group of IPv4/a group of IPv6/bridges} by the MAC of {everybody/the NOS/zero/a group of IPv4/a group of IPv6/bridges}",
        "no other station has such a MAC address; Linux answers to a group, to nobody, or to itself",
    ),
    (
        "arp inside",
        "question to the MAC of {everybody/the NOS/a group of IPv4/a group of IPv6/bridges} by the MAC of {everybody/the NOS/zero/a group of IPv4/a group of IPv6/bridges/another host}",
        "a container asks by its own MAC and IP addresses only (BCP 38), and nobody but it could take the answer",
    ),
    (
        "arp inside",
        "question to the MAC of {everybody/the NOS/a group of IPv4/a group of IPv6/bridges} from {everybody on the subnet/the subnet/class E/another host/another subnet}",
        "a container asks by its own MAC and IP addresses only (BCP 38), and nobody but it could take the answer",
    ),
    (
        "arp inside",
        "question about the NOS from {everybody on the subnet/the subnet/class E/another host/another subnet}",
        "a container asks by its own MAC and IP addresses only (BCP 38), and nobody but it could take the answer",
    ),
    (
        "arp inside",
        "question to the MAC of {everybody/the NOS/a group of IPv4/a group of IPv6/bridges} from nobody",
        "a probe of a container (RFC 5227) is met with silence, as nobody else is on its link; a contradiction would outlast its cause",
    ),
    (
        "arp inside",
        "question about the NOS from nobody",
        "a probe of a container (RFC 5227) is met with silence, as nobody else is on its link; a contradiction would outlast its cause",
    ),
    (
        "arp inside",
        "question about {another host/another subnet/everybody on the subnet/the subnet} from the asker",
        "the relay stands for everything beyond the link, as a proxy does; broadcast addresses are not known to it",
    ),
    (
        "chains",
        "{routing/authentication} header of 9 octets",
        "a packet whose transport header is cut short is dropped before its extension headers are looked at",
    ),
    (
        "chains",
        "authentication header of {0/1} octets",
        "a packet whose transport header is cut short is dropped before its extension headers are looked at",
    ),
    (
        "chains",
        "echo request behind {9/10/20} headers",
        "no sender needs more than eight extension headers (RFC 8883 §3.2); Linux knows no bound",
    ),
    (
        "chains",
        "option 0x07 for the way",
        "CALIPSO (RFC 5570) is skipped, as its type says; Linux checks labels",
    ),
    (
        "chains inside",
        "{routing/authentication} header of 9 octets",
        "a packet whose transport header is cut short is dropped before its extension headers are looked at",
    ),
    (
        "chains inside",
        "authentication header of {0/1} octets",
        "a packet whose transport header is cut short is dropped before its extension headers are looked at",
    ),
    (
        "chains inside",
        "echo request behind {9/10/20} headers",
        "no sender needs more than eight extension headers (RFC 8883 §3.2); Linux knows no bound",
    ),
    (
        "chains inside",
        "option 0x07 for the way",
        "CALIPSO (RFC 5570) is skipped, as its type says; Linux checks labels",
    ),
    (
        "chains inside",
        "{datagram/echo request} behind mobility",
        "a container sends TCP, UDP and ICMP only: no other protocol is registered",
    ),
    (
        "chains inside",
        "{datagram/echo request} behind {mobility/hop-by-hop options/an option to drop} behind {hop-by-hop options/destination options/a finished route/a route/an atomic fragment/authentication/an option to refuse/mobility}",
        "a container sends TCP, UDP and ICMP only: no other protocol is registered",
    ),
    (
        "chains inside",
        "{datagram/echo request} behind {destination options/a finished route/a route/an atomic fragment/authentication/an option to refuse} behind mobility",
        "a container sends TCP, UDP and ICMP only: no other protocol is registered",
    ),
    (
        "chains inside",
        "unknown protocol",
        "a container sends TCP, UDP and ICMP only: no other protocol is registered",
    ),
    (
        "chains inside",
        "unknown protocol behind {hop-by-hop options/destination options/a finished route/a route/an atomic fragment/authentication/an option to refuse/mobility}",
        "a container sends TCP, UDP and ICMP only: no other protocol is registered",
    ),
    (
        "chains inside",
        "unknown protocol behind {hop-by-hop options/destination options/a finished route/a route/authentication/an option to refuse/an option to drop/mobility} behind {hop-by-hop options/destination options/a finished route/a route/an atomic fragment/authentication/an option to refuse/mobility}",
        "a container sends TCP, UDP and ICMP only: no other protocol is registered",
    ),
    (
        "chains inside",
        "unknown protocol behind an atomic fragment behind {hop-by-hop options/destination options/a finished route/a route/authentication/an option to refuse/mobility}",
        "a container sends TCP, UDP and ICMP only: no other protocol is registered",
    ),
    (
        "chains inside",
        "{nothing/octets behind nothing} behind {a route/authentication/an option to refuse/mobility}",
        "a container sends TCP, UDP and ICMP only: no other protocol is registered",
    ),
    (
        "chains inside",
        "{nothing/octets behind nothing} behind {a route/authentication/an option to refuse/mobility} behind {hop-by-hop options/destination options/a finished route/a route/an atomic fragment/authentication/an option to refuse/mobility}",
        "a container sends TCP, UDP and ICMP only: no other protocol is registered",
    ),
    (
        "chains inside",
        "{nothing/octets behind nothing} behind {destination options/a finished route/an atomic fragment} behind {a route/authentication/an option to refuse/mobility}",
        "a container sends TCP, UDP and ICMP only: no other protocol is registered",
    ),
    (
        "chains inside",
        "{nothing/octets behind nothing} behind {hop-by-hop options/an option to drop} behind {hop-by-hop options/destination options/a finished route/a route/an atomic fragment/authentication/an option to refuse/mobility}",
        "a container sends TCP, UDP and ICMP only: no other protocol is registered",
    ),
    (
        "chains inside",
        "* to a group behind an option to refuse",
        "multicast is not carried between containers and the NOS",
    ),
    (
        "chains inside",
        "echo request to a group behind {hop-by-hop options/destination options/an atomic fragment}",
        "multicast is not carried between containers and the NOS",
    ),
    (
        "fragments",
        "* in a part inside another",
        "overlapping fragments make an end of the datagram (RFC 5722 §4); Linux takes a part inside another for a duplicate",
    ),
    (
        "fragments",
        "SYN to nobody in a first part of {eight/sixteen} octets",
        "a first fragment that hides its transport header is dropped (RFC 1858 §4)",
    ),
    (
        "fragments",
        "fragment of protocol 6 at 0 with {20/24} octets and M 1",
        "all of a transport header belongs to the chain of headers (RFC 7112 §3); Linux asks for 20 octets of TCP",
    ),
    (
        "fragments",
        "fragment of protocol {43/51/60/0} at 0 with {0/1} octets and M 1",
        "a header that is cut short is told of (RFC 7112 §5); Linux takes it for whole",
    ),
    (
        "fragments",
        "fragment of protocol 0 at 0 with 8 octets and M 1",
        "hop-by-hop options stand in front only (RFC 8200 §4.1); Linux looks behind them here",
    ),
    (
        "fragments inside",
        "* in a part inside another",
        "overlapping fragments make an end of the datagram (RFC 5722 §4); Linux takes a part inside another for a duplicate",
    ),
    (
        "fragments inside",
        "SYN to nobody in a first part of {eight/sixteen} octets",
        "a first fragment that hides its transport header is dropped (RFC 1858 §4)",
    ),
    (
        "fragments inside",
        "fragment of protocol 6 at 0 with {20/24} octets and M 1",
        "all of a transport header belongs to the chain of headers (RFC 7112 §3); Linux asks for 20 octets of TCP",
    ),
    (
        "fragments inside",
        "fragment of protocol {43/51/60/0} at 0 with {0/1} octets and M 1",
        "a header that is cut short is told of (RFC 7112 §5); Linux takes it for whole",
    ),
    (
        "fragments inside",
        "fragment of protocol 0 at 0 with 8 octets and M 1",
        "hop-by-hop options stand in front only (RFC 8200 §4.1); Linux looks behind them here",
    ),
    (
        "fragments inside",
        "fragment of protocol 17 at 0 with {8/16/24} octets and M 1",
        "a first fragment of a datagram from a port that is not the container's is refused at once, as a whole datagram is",
    ),
    (
        "fragments inside",
        "fragment of protocol 17 with field 0x2000 and {8/20} octets",
        "a first fragment of a datagram from a port that is not the container's is refused at once, as a whole datagram is",
    ),
    (
        "fragments inside",
        "{nothing/unknown protocol} in {two parts/three parts/the first part twice/the last part twice/a first part of}*",
        "a container sends TCP, UDP and ICMP only: no other protocol is registered",
    ),
    (
        "messages",
        "solicitation of 24 octets",
        "an advertisement to one who knows where to ask names the MAC address all the same, and overrides (RFC 4861 §7.2.4)",
    ),
    (
        "messages",
        "solicitation to {the NOS/the NOS on the link} and the MAC of {its destination/the NOS/everybody/another group}",
        "an advertisement to one who knows where to ask names the MAC address all the same, and overrides (RFC 4861 §7.2.4)",
    ),
    (
        "messages",
        "solicitation of {the asker/a host on the link} to {the NOS/the NOS on the link}",
        "an advertisement to one who knows where to ask names the MAC address all the same, and overrides (RFC 4861 §7.2.4)",
    ),
    (
        "messages",
        "solicitation of {another host/another network} to {the NOS/the NOS on the link}",
        "an advertisement to one who knows where to ask names the MAC address all the same, and overrides (RFC 4861 §7.2.4)",
    ),
    (
        "messages",
        "solicitation of {the asker/a host on the link/another host/another network} with {the MAC of a group/the MAC of everybody/a MAC of zero}",
        "no other station has such a MAC address; Linux answers to a group, to nobody, or to itself",
    ),
    (
        "messages",
        "solicitation of {the NOS/the NOS on the link} {about/to} {the NOS/the NOS on the link}",
        "who asks as the NOS is in conflict with it; Linux answers itself",
    ),
    (
        "messages",
        "solicitation of {the NOS/the NOS on the link} to {all hosts of the link/the group of the NOS}",
        "who asks as the NOS is in conflict with it; Linux answers itself",
    ),
    (
        "messages",
        "solicitation of {the NOS/the NOS on the link} with {its MAC/no options/the MAC of a group/the MAC of everybody/a MAC of zero/another MAC/two MACs/a nonce/an unknown option/the MAC of the target/an MTU}",
        "who asks as the NOS is in conflict with it; Linux answers itself",
    ),
    (
        "messages inside",
        "solicitation of 24 octets",
        "an advertisement to one who knows where to ask names the MAC address all the same, and overrides (RFC 4861 §7.2.4)",
    ),
    (
        "messages inside",
        "solicitation to {the NOS/the NOS on the link} and the MAC of {its destination/the NOS/everybody/another group}",
        "an advertisement to one who knows where to ask names the MAC address all the same, and overrides (RFC 4861 §7.2.4)",
    ),
    (
        "messages inside",
        "solicitation of {the asker/a host on the link} to {the NOS/the NOS on the link}",
        "an advertisement to one who knows where to ask names the MAC address all the same, and overrides (RFC 4861 §7.2.4)",
    ),
    (
        "messages inside",
        "solicitation of {the NOS/the NOS on the link/another host/another network} {about/to} {the NOS/the NOS on the link}",
        "a container asks by its own MAC and IP addresses only (BCP 38), and nobody but it could take the answer",
    ),
    (
        "messages inside",
        "solicitation of {the NOS/the NOS on the link/another host/another network} to {all hosts of the link/the group of the NOS}",
        "a container asks by its own MAC and IP addresses only (BCP 38), and nobody but it could take the answer",
    ),
    (
        "messages inside",
        "solicitation of {the NOS/the NOS on the link/another host/another network} with {its MAC/no options/the MAC of a group/the MAC of everybody/a MAC of zero/another MAC/two MACs/a nonce/an unknown option/the MAC of the target/an MTU}",
        "a container asks by its own MAC and IP addresses only (BCP 38), and nobody but it could take the answer",
    ),
    (
        "messages inside",
        "solicitation of {the asker/a host on the link} with {another MAC/a MAC of zero/the MAC of a group/the MAC of everybody}",
        "a container asks by its own MAC and IP addresses only (BCP 38), and nobody but it could take the answer",
    ),
    (
        "messages inside",
        "solicitation of {the asker/a host on the link} about {another host/another network}",
        "the relay stands for everything beyond the link, as a proxy does; broadcast addresses are not known to it",
    ),
    (
        "messages inside",
        "solicitation of the asker about a host on the link",
        "the relay stands for everything beyond the link, as a proxy does; broadcast addresses are not known to it",
    ),
    (
        "messages inside",
        "solicitation of nobody with {no options/the MAC of the target}",
        "a probe of a container (RFC 5227) is met with silence, as nobody else is on its link; a contradiction would outlast its cause",
    ),
    (
        "network",
        "{echo request/datagram to an own service} to the MAC of {everybody/a group of IPv4/a group of IPv6/bridges}",
        "a unicast packet in a frame to a group is dropped (RFC 1122 §3.3.6)",
    ),
    (
        "network",
        "* to {nobody/the loopback's network} and the MAC of the NOS",
        "no packet goes to such an address (RFC 4291 §2.5.2, §2.5.5.2); Linux says that there is no route",
    ),
    (
        "network",
        "echo request to {all routers/all routers of the site}{/ and the MAC of the NOS}",
        "not done: the NOS is in no group of routers, as it sends no router advertisements",
    ),
    (
        "network",
        "echo request to the network",
        "not done: the NOS has no subnet-router anycast address (RFC 4291 §2.6.1)",
    ),
    (
        "network",
        "* to the network and the MAC of the NOS",
        "the address of an IPv4 network is a broadcast address (RFC 1122 §3.2.1.3), since Linux 5.14 a host's; and not done: the subnet-router anycast address (RFC 4291 §2.6.1)",
    ),
    (
        "network",
        "datagram to a container to the MAC of {everybody/a group of IPv4/a group of IPv6/bridges}",
        "a unicast packet in a frame to a group is dropped (RFC 1122 §3.3.6)",
    ),
    (
        "network inside",
        "{echo request/datagram to an own service} to the MAC of {everybody/a group of IPv4/a group of IPv6/bridges}",
        "a unicast packet in a frame to a group is dropped (RFC 1122 §3.3.6)",
    ),
    (
        "network inside",
        "* to {nobody/the loopback's network} and the MAC of the NOS",
        "no packet goes to such an address (RFC 4291 §2.5.2, §2.5.5.2); Linux says that there is no route",
    ),
    (
        "network inside",
        "echo request to {all routers/all routers of the site}{/ and the MAC of the NOS}",
        "not done: the NOS is in no group of routers, as it sends no router advertisements",
    ),
    (
        "network inside",
        "echo request to the network",
        "not done: the NOS has no subnet-router anycast address (RFC 4291 §2.6.1)",
    ),
    (
        "network inside",
        "* to the network and the MAC of the NOS",
        "the address of an IPv4 network is a broadcast address (RFC 1122 §3.2.1.3), since Linux 5.14 a host's; and not done: the subnet-router anycast address (RFC 4291 §2.6.1)",
    ),
    (
        "network inside",
        "protocol * with {0/12} octets",
        "a container sends TCP, UDP and ICMP only: no other protocol is registered",
    ),
    (
        "network inside",
        "echo request to {all hosts/its group of nodes}{/ and the MAC of the NOS}",
        "multicast is not carried between containers and the NOS",
    ),
    (
        "transit",
        "* with record route",
        "not done: the NOS records no routes of what it forwards (RFC 7126 §4.6)",
    ),
    (
        "transit",
        "* with fragment field 0x1fff",
        "no datagram is that long: the fragment is dropped, not forwarded",
    ),
    (
        "transit",
        "datagram behind an option to {drop/refuse}",
        "hop-by-hop options are their destination's to look at, unless a router is told to (RFC 8200 §4)",
    ),
    (
        "transit",
        "datagram from {nobody/class E}",
        "martian sources are not forwarded (RFC 1812 §5.3.7, RFC 4291 §2.5.2, §2.5.6)",
    ),
    (
        "transport",
        "segment with flags {0xc2/0xca/0xe2/0xea} to an own service",
        "not done: services of the NOS do not do explicit congestion notification (RFC 3168)",
    ),
    (
        "transport inside",
        "segment with flags {0xc2/0xca/0xe2/0xea} to an own service",
        "not done: services of the NOS do not do explicit congestion notification (RFC 3168)",
    ),
    (
        "transport inside",
        "{SYN/datagram} from port {0/1/7/22/80/1023/1024/19999/22000/39999/65535} to nobody",
        "a container sends from its own ports only",
    ),
];

pub(crate) fn all() -> impl Iterator<Item = Difference> {
    ALL.iter().map(|&(sweep, packets, reason)| Difference {
        sweep,
        packets,
        reason,
    })
}

/// Whether `name` fits `pattern`.
fn fits(pattern: &str, name: &str) -> bool {
    if let Some((before, rest)) = pattern.split_once('{')
        && let Some((choices, behind)) = rest.split_once('}')
    {
        let mut choices = choices.split('/');
        return choices.any(|choice| fits(&format!("{before}{choice}{behind}"), name));
    }
    match pattern.split_once('*') {
        None => pattern == name,
        Some((before, behind)) => name.strip_prefix(before).is_some_and(|rest| {
            let cuts = rest.char_indices().map(|(at, _)| at).chain([rest.len()]);
            cuts.into_iter().any(|at| fits(behind, &rest[at..]))
        }),
    }
}

/// Fails if there are differences that are not listed, or listed ones that do not show.
pub(crate) fn check(
    sweep: &str,
    names: &[&str],
    differing: &BTreeSet<String>,
    reports: &[(String, String)],
) {
    let listed: Vec<_> = all()
        .filter(|difference| difference.sweep == sweep)
        .collect();
    let is_listed = |name: &str| listed.iter().any(|it| fits(it.packets, name));
    let new: Vec<_> = reports
        .iter()
        .filter(|(name, _)| !is_listed(name))
        .map(|(_, report)| report.as_str())
        .collect();
    let mut vanished = Vec::new();
    for difference in &listed {
        let found: Vec<_> = names
            .iter()
            .filter(|name| fits(difference.packets, name))
            .collect();
        if found.is_empty() {
            vanished.push(format!("nothing is named {}", difference.packets));
        }
        let alike = found.into_iter().filter(|name| !differing.contains(**name));
        vanished.extend(alike.map(|name| format!("{name} ({})", difference.packets)));
    }
    assert!(
        new.is_empty() && vanished.is_empty(),
        "{} new differences:\n{}\n{} that are listed and do not show:\n{}",
        new.len(),
        new.join("\n"),
        vanished.len(),
        vanished.join("\n")
    );
}

#[test]
fn stars_stand_for_anything() {
    for (pattern, name, expected) in [
        ("a b", "a b", true),
        ("a b", "a bc", false),
        ("a *", "a bc", true),
        ("* of c*", "b of cd", true),
        ("*", "", true),
        ("a*c", "abd", false),
        ("{a/b} c{d/}", "b c", true),
        ("{a/b} *{d/e}", "b ce", true),
        ("{a/b} c", "c c", false),
    ] {
        assert_eq!(fits(pattern, name), expected, "{pattern} {name}");
    }
}

#[test]
fn the_differences_are_documented() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/conformance.md");
    let text = std::fs::read_to_string(path).unwrap();
    let missing: Vec<_> = all()
        .map(|it| format!("| {} | `{}` | {} |", it.sweep, it.packets, it.reason))
        .filter(|row| !text.contains(row.as_str()))
        .collect();
    assert!(
        missing.is_empty(),
        "docs/conformance.md lacks:\n{}",
        missing.join("\n")
    );
    let rows = text
        .split("## Differences from a plain Linux router")
        .nth(1);
    let rows = rows
        .and_then(|rest| rest.split("\n## ").next())
        .unwrap_or_default();
    let rows = rows.lines().filter(|line| line.starts_with("| ")).count();
    // And a head.
    assert_eq!(rows, ALL.len() + 1, "docs/conformance.md lists others");
}
