//! Reloads: from one configuration to another and back.
//!
//! The plan is empty if and only if both want the same, carrying it out gives the new one, and what
//! need not be restarted is said to need none.
//!
//! Input: two drafts of configurations, by `arbitrary`, written as TOML: most of them are valid, and
//! what clashes in the others is an error with its place.

use std::fmt::Write;

use arbitrary::{Arbitrary, Unstructured};
use nos_relay::control::config::Config;

use super::config::{leads, say_why, wanted};

const UPLINKS: u8 = 4;
const CONTAINERS: u8 = 5;

#[derive(Arbitrary, Clone, Debug)]
struct Draft {
    uplinks: [Option<Uplink>; UPLINKS as usize],
    containers: [Option<Container>; CONTAINERS as usize],
    routes: [Option<Route>; 3],
    /// By VRF.
    nos: [Option<Nos>; 2],
    /// One that has no pool says so by zero.
    pool: u8,
}

#[derive(Arbitrary, Clone, Debug)]
struct Uplink {
    tap: bool,
    red: bool,
    /// Networks, by bit.
    networks: u8,
    v6: bool,
    mtu: u8,
    mac: Option<u8>,
    offload: bool,
    redirects: bool,
    groups: u8,
    capture: Option<u8>,
}

#[derive(Arbitrary, Clone, Debug)]
struct Container {
    netns: u8,
    veth: bool,
    red: bool,
    /// Which of the networks' addresses; all of the VRF if none.
    addresses: u8,
    link_local: Option<u8>,
    /// Blocks of ports, by bit.
    tcp: u8,
    udp: u8,
    ephemeral: Option<u8>,
    mac: Option<u8>,
    offload: bool,
    from: Option<u8>,
    to: Option<u8>,
    learns: bool,
    established: bool,
    capture: Option<u8>,
}

#[derive(Arbitrary, Clone, Debug)]
struct Route {
    prefix: u8,
    via: Option<u8>,
    metric: u8,
    red: bool,
}

#[derive(Arbitrary, Clone, Debug)]
struct Nos {
    echo: bool,
    http: Option<u8>,
    ping: bool,
}

pub fn run(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let Ok(draft) = Draft::arbitrary(&mut input) else {
        return;
    };
    let old = draft.text();
    let Some(other) = changed(&draft, &mut input) else {
        return;
    };
    let new = other.text();
    if let (Some(old), Some(new)) = (parse(&old), parse(&new)) {
        let (before, after) = (wanted(&old), wanted(&new));
        leads(&before, &after);
        leads(&after, &before);
        assert!(old != new || before == after);
    }
}

/// A draft that differs in one part, or in all.
fn changed(draft: &Draft, input: &mut Unstructured<'_>) -> Option<Draft> {
    let mut other = draft.clone();
    let which: u8 = input.arbitrary().ok()?;
    let place = usize::from(which / 8);
    match which % 8 {
        0 | 1 => other.uplinks[place % UPLINKS as usize] = input.arbitrary().ok()?,
        2..=4 => other.containers[place % CONTAINERS as usize] = input.arbitrary().ok()?,
        5 => other.routes[place % 3] = input.arbitrary().ok()?,
        6 => other.nos[place % 2] = input.arbitrary().ok()?,
        _ => return input.arbitrary().ok(),
    }
    Some(other)
}

fn parse(text: &str) -> Option<Config> {
    match Config::parse("fuzz.toml", text) {
        Ok(config) => Some(config),
        Err(errors) => {
            say_why(&errors, text);
            None
        }
    }
}

fn vrf(red: bool) -> &'static str {
    if red { "red" } else { "default" }
}

/// Numbers of the bits that are set.
fn bits(octet: u8, count: u8) -> impl Iterator<Item = u8> {
    (0..count).filter(move |bit| octet >> bit & 1 != 0)
}

fn list(items: impl Iterator<Item = String>) -> String {
    let items: Vec<String> = items.map(|item| format!("\"{item}\"")).collect();
    format!("[{}]", items.join(", "))
}

fn ports(blocks: u8) -> String {
    list(bits(blocks, 8).map(|block| {
        let first = 1000 + 100 * u32::from(block);
        format!("{first}-{}", first + 99)
    }))
}

impl Draft {
    fn text(&self) -> String {
        let mut text = String::new();
        for (number, uplink) in (0..).zip(&self.uplinks) {
            if let Some(uplink) = uplink {
                uplink.write(number, &mut text);
            }
        }
        for (number, container) in (0..).zip(&self.containers) {
            if let Some(container) = container {
                container.write(number, &mut text);
            }
        }
        self.routes
            .iter()
            .flatten()
            .for_each(|route| route.write(&mut text));
        for (red, nos) in [false, true].into_iter().zip(&self.nos) {
            if let Some(nos) = nos {
                nos.write(red, &mut text);
            }
        }
        if self.pool != 0 {
            add(&mut text, "[ports]", &[("pool", ports(self.pool))]);
        }
        text
    }
}

fn add(text: &mut String, header: &str, keys: &[(&str, String)]) {
    let _ = writeln!(text, "{header}");
    for (key, value) in keys.iter().filter(|(_, value)| !value.is_empty()) {
        let _ = writeln!(text, "{key} = {value}");
    }
}

fn quoted(text: impl std::fmt::Display) -> String {
    format!("\"{text}\"")
}

fn mac(number: Option<u8>) -> String {
    number.map_or_else(String::new, |number| {
        quoted(format_args!("02:00:00:00:00:{number:02x}"))
    })
}

fn capture(number: Option<u8>) -> String {
    number.map_or_else(String::new, |number| {
        quoted(format_args!("/tmp/{}.pcapng", number % 3))
    })
}

impl Uplink {
    fn write(&self, number: u8, text: &mut String) {
        let kind = if self.tap { "tap" } else { "packet" };
        // Some are VLANs, some of one interface.
        let vlan = (self.groups & 0x80 != 0).then(|| 1 + u16::from(self.groups >> 2 & 7));
        let interface = match vlan {
            Some(_) if self.groups & 0x40 != 0 => 0,
            _ => number,
        };
        let networks = bits(self.networks, 4).map(|network| {
            // Each uplink has its own, so that those of two never overlap.
            let net = 4 * number + network;
            if self.v6 && network % 2 == 1 {
                format!("2001:db8:{net}::1/64")
            } else {
                format!("10.0.{net}.1/24")
            }
        });
        let groups = bits(self.groups, 2).map(|group| format!("239.1.1.{group}"));
        add(
            text,
            "[[uplink]]",
            &[
                ("name", quoted(format_args!("up{number}"))),
                ("device", quoted(format_args!("{kind}:i{interface}"))),
                (
                    "vlan",
                    vlan.map_or_else(String::new, |vlan| vlan.to_string()),
                ),
                ("vrf", quoted(vrf(self.red))),
                ("addresses", list(networks)),
                ("mtu", (1280 + 20 * u32::from(self.mtu)).to_string()),
                ("mac", mac(self.mac)),
                ("offload", self.offload.to_string()),
                ("redirects", self.redirects.to_string()),
                ("groups", list(groups)),
                ("capture", capture(self.capture)),
            ],
        );
    }
}

impl Container {
    fn write(&self, number: u8, text: &mut String) {
        let addresses = bits(self.addresses, 8).map(|net| format!("10.0.{net}.1"));
        let addresses = match self.addresses {
            0 => String::new(),
            _ => list(addresses),
        };
        let uplink = |number: u8| quoted(format_args!("up{}", number % UPLINKS));
        let from = |number: u8| format!("[\"198.51.100.0/{}\"]", 24 + number % 9);
        let tcp = match self.from {
            Some(rule) if self.tcp != 0 => {
                format!("[{{ ports = {}, from = {} }}]", ports(self.tcp), from(rule))
            }
            _ => ports(self.tcp),
        };
        let ephemeral = self.ephemeral.map_or_else(String::new, |block| {
            let range = ports(1 << (block % 8));
            match self.established {
                true => format!("{{ ports = {range}, state = \"established\" }}"),
                false => range,
            }
        });
        add(
            text,
            "[[container]]",
            &[
                ("name", quoted(format_args!("c{number}"))),
                (
                    "netns",
                    quoted(format_args!("/run/netns/n{}", self.netns % 8)),
                ),
                ("device", quoted(if self.veth { "veth" } else { "tap" })),
                ("vrf", quoted(vrf(self.red))),
                ("addresses", addresses),
                (
                    "link_local",
                    self.link_local.map_or_else(String::new, uplink),
                ),
                ("tcp", tcp),
                ("udp", ports(self.udp)),
                ("ephemeral", ephemeral),
                ("mac", mac(self.mac)),
                ("offload", self.offload.to_string()),
                ("to", self.to.map_or_else(String::new, from)),
                (
                    "outside",
                    quoted(if self.learns { "learn" } else { "drop" }),
                ),
                ("capture", capture(self.capture)),
            ],
        );
    }
}

impl Route {
    fn write(&self, text: &mut String) {
        let to = match self.via {
            Some(net) => (
                "via",
                quoted(format_args!("10.0.{}.{}", net % 16, 2 + net / 16)),
            ),
            None => ("type", quoted("blackhole")),
        };
        add(
            text,
            "[[route]]",
            &[
                (
                    "prefix",
                    quoted(format_args!("192.0.{}.0/24", self.prefix % 4)),
                ),
                to,
                ("metric", (self.metric % 3).to_string()),
                ("vrf", quoted(vrf(self.red))),
            ],
        );
    }
}

impl Nos {
    fn write(&self, red: bool, text: &mut String) {
        let echo = self.echo.then(|| "echo".to_owned());
        let http = self
            .http
            .map(|block| format!("http:{}", 1000 + 100 * u32::from(block % 8)));
        add(
            text,
            "[[nos]]",
            &[
                ("vrf", quoted(vrf(red))),
                ("services", list(echo.into_iter().chain(http))),
                ("ping", self.ping.to_string()),
            ],
        );
    }
}
