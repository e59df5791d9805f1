//! What is registered, as it is stored: one record an entry, which a later version can read.
//!
//! A record is JSON with the keys of the request that made it. Keys that a version does not know are
//! no reason to lose a record: the entry is checked when it is read as a configuration, and set aside
//! if it does not pass.

use core::net::IpAddr;
use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;
use nos_shim::ports::{PortRange, Restriction, Transport};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::control::api::snapshot::Protocol;

use super::super::{Name, VrfName};
use super::overlay::{Entry, PortsName};
use super::ports::{Ports, joined, normal};
use super::{Holder, Keys, Overlay, ProcessIdentity, RouteName};

/// An entry, by a name that no other one has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its name: what changes about an entry does not change it.
    pub name: String,
    /// The entry as JSON, or nothing where there is none any more.
    pub json: Option<Vec<u8>>,
}

/// A record that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("the entry {name} makes no sense: {why}")]
pub struct BadRecord {
    /// Its name.
    pub name: String,
    /// Why not.
    pub why: String,
}

/// The JSON of a record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
enum Stored {
    Network {
        order: u64,
        network: Keys,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        holder: Option<ProcessIdentity>,
    },
    Container {
        order: u64,
        container: Keys,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        holder: Option<ProcessIdentity>,
    },
    Ports {
        container: String,
        #[serde(default)]
        tcp: Vec<StoredRange>,
        #[serde(default)]
        udp: Vec<StoredRange>,
        #[serde(default)]
        ephemeral: Vec<StoredRange>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        from: Vec<StoredRule>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        established: Vec<StoredRange>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        holder: Option<ProcessIdentity>,
    },
    Route {
        order: u64,
        /// None of the default VRF.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        vrf: Option<String>,
        prefix: IpNet,
        metric: u16,
        route: Keys,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        holder: Option<ProcessIdentity>,
    },
    Address {
        order: u64,
        uplink: String,
        address: IpNet,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        holder: Option<ProcessIdentity>,
    },
    Group {
        order: u64,
        uplink: String,
        group: IpAddr,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        holder: Option<ProcessIdentity>,
    },
}

/// The first and the last port.
type StoredRange = (u16, u16);

/// Who may open flows to some ports.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct StoredRule {
    protocol: Protocol,
    ports: StoredRange,
    from: Vec<IpNet>,
}

/// An entry of an overlay, to be compared with another one's.
#[derive(Clone, Copy, PartialEq)]
enum Item<'a> {
    Network(&'a Name, &'a Entry<Keys>),
    Container(&'a Name, &'a Entry<Keys>),
    Ports(&'a PortsName, &'a Ports),
    Route(&'a RouteName, &'a Entry<Keys>),
    Address(&'a Name, &'a Entry<IpNet>),
    Group(&'a Name, &'a Entry<IpAddr>),
}

impl Overlay {
    /// What has to be written where `stored` is, so that this is there.
    #[must_use]
    pub fn records_since(&self, stored: &Self) -> Vec<Record> {
        let (old, new) = (stored.items(), self.items());
        let gone = old.keys().filter(|name| !new.contains_key(*name));
        let gone = gone.map(|name| Record {
            name: name.clone(),
            json: None,
        });
        let changed = new
            .iter()
            .filter(|(name, item)| old.get(*name) != Some(item));
        let changed = changed.map(|(name, item)| Record {
            name: name.clone(),
            json: Some(item.json()),
        });
        gone.chain(changed).collect()
    }

    /// The entries that are stored, by the names of their records.
    fn items(&self) -> BTreeMap<String, Item<'_>> {
        let lasts = |holder: Option<Holder>| !matches!(holder, Some(Holder::Connection(_)));
        let networks = self.networks.iter().filter(|(_, it)| lasts(it.holder));
        let networks =
            networks.map(|(name, it)| (format!("network {name}"), Item::Network(name, it)));
        let containers = self.containers.iter();
        let containers = containers.filter(|(_, it)| lasts(it.holder));
        let containers =
            containers.map(|(name, it)| (format!("container {name}"), Item::Container(name, it)));
        let ports = self.ports.iter().filter(|((whose, holder), _)| {
            let container = self.container(whose);
            lasts(*holder) && container.is_none_or(|it| lasts(it.holder))
        });
        let ports = ports.map(|(name, ports)| {
            let whose = &name.0;
            let named = match name.1 {
                Some(Holder::Process(it)) => {
                    format!("ports {whose} of {} {} {}", it.pid, it.started, it.boot)
                }
                _ => format!("ports {whose}"),
            };
            (named, Item::Ports(name, ports))
        });
        let routes = self.routes.iter().filter(|(_, it)| lasts(it.holder));
        let routes = routes.map(|(name, it)| {
            let (vrf, prefix, metric) = name;
            let of = match vrf {
                VrfName::Default => String::new(),
                VrfName::Named(vrf) => format!(" of {vrf}"),
            };
            (
                format!("route {prefix} {metric}{of}"),
                Item::Route(name, it),
            )
        });
        let addresses = self.addresses.iter().filter(|(_, it)| lasts(it.holder));
        let addresses = addresses.map(|(uplink, it)| {
            let named = format!("address {uplink} {}", it.value);
            (named, Item::Address(uplink, it))
        });
        let groups = self.groups.iter().filter(|(_, it)| lasts(it.holder));
        let groups = groups.map(|(uplink, it)| {
            let named = format!("group {uplink} {}", it.value);
            (named, Item::Group(uplink, it))
        });
        let all = networks.chain(containers).chain(ports).chain(routes);
        all.chain(addresses).chain(groups).collect()
    }

    /// What these records, each with its name and its JSON, stand for.
    ///
    /// # Errors
    ///
    /// The first that makes no sense. Whether the entries fit beside a file is not looked at.
    pub fn of_records<'a>(
        records: impl IntoIterator<Item = (&'a str, &'a [u8])>,
    ) -> Result<Self, BadRecord> {
        let mut overlay = Self::default();
        for (name, json) in records {
            overlay.take(json).map_err(|why| BadRecord {
                name: name.to_owned(),
                why,
            })?;
        }
        overlay.networks.sort_by_key(|(_, it)| it.order);
        overlay.containers.sort_by_key(|(_, it)| it.order);
        overlay.routes.sort_by_key(|(_, it)| it.order);
        overlay.addresses.sort_by_key(|(_, it)| it.order);
        overlay.groups.sort_by_key(|(_, it)| it.order);
        Ok(overlay)
    }

    fn take(&mut self, json: &[u8]) -> Result<(), String> {
        let stored: Stored = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        match stored {
            Stored::Network {
                order,
                network,
                holder,
            } => {
                let name = parsed(network.value("name").ok_or("it has no name")?)?;
                let entry = entry(network, holder, order);
                self.networks.push((name, entry));
            }
            Stored::Container {
                order,
                container,
                holder,
            } => {
                let name = parsed(container.value("name").ok_or("it has no name")?)?;
                let entry = entry(container, holder, order);
                self.containers.push((name, entry));
            }
            Stored::Ports {
                container,
                tcp,
                udp,
                ephemeral,
                from,
                established,
                holder,
            } => {
                let from: Result<Vec<_>, _> = from.into_iter().map(rule).collect();
                let ports = Ports {
                    tcp: ranges(&tcp)?,
                    udp: ranges(&udp)?,
                    ephemeral: ranges(&ephemeral)?,
                    from: joined(from?),
                    established: ranges(&established)?,
                };
                let name = (parsed(&container)?, holder.map(Holder::Process));
                self.ports.insert(name, ports);
            }
            Stored::Route {
                order,
                vrf,
                prefix,
                metric,
                route,
                holder,
            } => {
                let vrf = vrf.as_deref().map(parsed).transpose()?;
                let vrf = vrf.map_or(VrfName::Default, VrfName::Named);
                let entry = entry(route, holder, order);
                self.routes.push(((vrf, prefix, metric), entry));
            }
            Stored::Address {
                order,
                uplink,
                address,
                holder,
            } => {
                let entry = entry(address, holder, order);
                self.addresses.push((parsed(&uplink)?, entry));
            }
            Stored::Group {
                order,
                uplink,
                group,
                holder,
            } => {
                let entry = entry(group, holder, order);
                self.groups.push((parsed(&uplink)?, entry));
            }
        }
        Ok(())
    }
}

impl Item<'_> {
    /// Empty if it cannot be written, which it always can.
    fn json(self) -> Vec<u8> {
        serde_json::to_vec(&self.stored()).unwrap_or_default()
    }

    fn stored(self) -> Stored {
        match self {
            Self::Network(_, it) => Stored::Network {
                order: it.order,
                network: it.value.clone(),
                holder: stored_holder(it.holder),
            },
            Self::Container(_, it) => Stored::Container {
                order: it.order,
                container: it.value.clone(),
                holder: stored_holder(it.holder),
            },
            Self::Ports((name, holder), ports) => Stored::Ports {
                container: name.to_string(),
                tcp: stored_ranges(&ports.tcp),
                udp: stored_ranges(&ports.udp),
                ephemeral: stored_ranges(&ports.ephemeral),
                from: ports.from.iter().map(stored_rule).collect(),
                established: stored_ranges(&ports.established),
                holder: stored_holder(*holder),
            },
            Self::Route((vrf, prefix, metric), it) => Stored::Route {
                order: it.order,
                vrf: match vrf {
                    VrfName::Default => None,
                    VrfName::Named(vrf) => Some(vrf.to_string()),
                },
                prefix: *prefix,
                metric: *metric,
                route: it.value.clone(),
                holder: stored_holder(it.holder),
            },
            Self::Address(uplink, it) => Stored::Address {
                order: it.order,
                uplink: uplink.to_string(),
                address: it.value,
                holder: stored_holder(it.holder),
            },
            Self::Group(uplink, it) => Stored::Group {
                order: it.order,
                uplink: uplink.to_string(),
                group: it.value,
                holder: stored_holder(it.holder),
            },
        }
    }
}

fn entry<T>(value: T, holder: Option<ProcessIdentity>, order: u64) -> Entry<T> {
    Entry {
        value,
        holder: holder.map(Holder::Process),
        order,
    }
}

/// Connections end with the daemon, so that what they hold is not stored.
fn stored_holder(holder: Option<Holder>) -> Option<ProcessIdentity> {
    match holder {
        Some(Holder::Process(process)) => Some(process),
        Some(Holder::Connection(_)) | None => None,
    }
}

fn stored_ranges(ranges: &[PortRange]) -> Vec<StoredRange> {
    let ranges = ranges.iter();
    ranges.map(|range| (range.first(), range.last())).collect()
}

fn stored_rule(rule: &Restriction) -> StoredRule {
    StoredRule {
        protocol: rule.transport.into(),
        ports: (rule.range.first(), rule.range.last()),
        from: rule.from.prefixes().to_vec(),
    }
}

fn rule(stored: StoredRule) -> Result<Restriction, String> {
    let (first, last) = stored.ports;
    Ok(Restriction {
        transport: match stored.protocol {
            Protocol::Tcp => Transport::Tcp,
            Protocol::Udp => Transport::Udp,
        },
        range: PortRange::new(first, last).map_err(|error| error.to_string())?,
        from: Arc::new(stored.from.into_iter().collect()),
    })
}

fn ranges(stored: &[StoredRange]) -> Result<Vec<PortRange>, String> {
    let range = |&(first, last): &StoredRange| {
        PortRange::new(first, last).map_err(|error| error.to_string())
    };
    let ranges: Result<Vec<_>, _> = stored.iter().map(range).collect();
    ranges.map(normal)
}

fn parsed(name: &str) -> Result<Name, String> {
    name.parse()
        .map_err(|error| format!("the name {name:?} {error}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::control::config::{BootId, Change, ConfigFile, Holders, PortsAction};

    const FILE: &str = r#"
[ports]
pool = "24000-24999"

[[uplink]]
name = "up0"
device = "packet:hx"
addresses = ["203.0.113.1/24", "2001:db8:1::1/64"]

[[container]]
name = "web"
netns = "/run/netns/web"
device = "tap"
tcp = "20000-20999"
"#;

    fn process(pid: u32) -> Holders {
        let process = ProcessIdentity {
            pid,
            started: 7,
            boot: BootId(u128::MAX),
        };
        Holders {
            connection: Some(9),
            process: Ok(process),
        }
    }

    /// Requests of every kind, some of them with holders.
    fn requests() -> Vec<(Change, &'static str)> {
        let add = Change::Ports(PortsAction::Add);
        vec![
            (
                Change::Attach,
                r#"{"container":{"name":"a","netns":"/a","device":"veth","tcp":[1,"3-4"]}}"#,
            ),
            (
                Change::Attach,
                r#"{"container":{"name":"b","netns":"/b","device":"veth"},"lease":"pidfd"}"#,
            ),
            (
                Change::Attach,
                r#"{"container":{"name":"c","netns":"/c","device":"veth"},"lease":"connection"}"#,
            ),
            (
                add,
                r#"{"container":"web","tcp":[23000,"23002-23009"],"udp":5}"#,
            ),
            (
                add,
                r#"{"container":"web","tcp":{"ports":"23100-23109","from":"198.51.100.0/24"}}"#,
            ),
            (
                add,
                r#"{"container":"web","ephemeral":{"ports":"50000-50999","state":"established"}}"#,
            ),
            (
                add,
                r#"{"container":"web","tcp":"23200-23209","lease":"pidfd"}"#,
            ),
            (
                add,
                r#"{"container":"web","tcp":"23205-23214","lease":"connection"}"#,
            ),
            (add, r#"{"container":"a","udp":"23200"}"#),
            (add, r#"{"container":"c","udp":"23300"}"#),
            (Change::Allocate, r#"{"container":"web","size":10}"#),
            (
                Change::AddRoute,
                r#"{"route":{"prefix":"192.0.2.0/24","via":"203.0.113.2","metric":7}}"#,
            ),
            (
                Change::AddRoute,
                r#"{"route":{"prefix":"2001:db8:9::/48","type":"blackhole"},"lease":"pidfd"}"#,
            ),
            (
                Change::AddAddress,
                r#"{"uplink":"up0","address":"203.0.113.9/24"}"#,
            ),
            (Change::AddGroup, r#"{"uplink":"up0","group":"ff05::1234"}"#),
            (
                Change::Ports(PortsAction::Remove),
                r#"{"container":"a","tcp":1}"#,
            ),
            (Change::Detach, r#"{"name":"a"}"#),
            (
                Change::RemoveRoute,
                r#"{"prefix":"192.0.2.0/24","metric":7}"#,
            ),
        ]
    }

    fn after(file: &ConfigFile, overlay: &Overlay, (change, keys): (Change, &str)) -> Overlay {
        let keys = serde_json::from_str(keys).unwrap();
        let changed = file.change(overlay, change, &keys, &process(5));
        changed.unwrap_or_else(|why| panic!("{why}")).overlay
    }

    /// What a store has when these records are written to what it had.
    fn written(stored: &mut BTreeMap<String, Vec<u8>>, records: Vec<Record>) {
        for Record { name, json } in records {
            match json {
                Some(json) => stored.insert(name, json),
                None => stored.remove(&name),
            };
        }
    }

    fn read(stored: &BTreeMap<String, Vec<u8>>) -> Overlay {
        let entries = stored.iter();
        Overlay::of_records(entries.map(|(name, json)| (name.as_str(), json.as_slice()))).unwrap()
    }

    #[test]
    fn each_change_is_stored_by_what_it_changes() {
        let file = ConfigFile::parse("nos.toml", FILE).unwrap();
        let (mut overlay, mut stored) = (Overlay::default(), BTreeMap::new());
        for request in requests() {
            let before = overlay.clone();
            overlay = after(&file, &overlay, request);
            assert_ne!(overlay, before, "{request:?}");
            written(&mut stored, overlay.records_since(&before));
            // What connections hold ends with the process, and what belongs to that as well.
            let lasting = overlay.without_holders(|holder| matches!(holder, Holder::Connection(_)));
            assert_eq!(read(&stored), lasting, "{request:?}");
            assert_eq!(overlay.records_since(&overlay), []);
        }
        assert!(
            stored
                .keys()
                .any(|name| name.starts_with("ports web of 5 7 ffff"))
        );
    }

    #[test]
    fn keys_of_a_later_version_are_kept_and_do_not_make_a_record_bad() {
        let json =
            br#"{"type":"container","order":3,"more":1,"container":{"name":"a","mode":"new"}}"#;
        let overlay = Overlay::of_records([("container a", &json[..])]).unwrap();
        let records = overlay.records_since(&Overlay::default());
        let kept = String::from_utf8(records[0].json.clone().unwrap()).unwrap();
        assert!(kept.contains(r#""mode":"new""#), "{kept}");
        let file = ConfigFile::parse("nos.toml", FILE).unwrap();
        let fitted = file.fit(&Overlay::default(), &overlay);
        assert!(fitted.overlay.is_empty());
        let reasons: Vec<_> = fitted.aside.registrations().map(|(_, why)| why).collect();
        assert!(
            reasons[0].contains("container.mode: unknown key"),
            "{reasons:?}"
        );
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (json, why) in [
            ("", "EOF"),
            ("[]", "missing field `type`"),
            (r#"{"type":"vrf"}"#, "unknown variant"),
            (
                r#"{"type":"container","order":1,"container":{}}"#,
                "it has no name",
            ),
            (r#"{"type":"ports","container":"a b"}"#, "the name \"a b\""),
            (r#"{"type":"ports","container":"a","tcp":[[5,4]]}"#, "5"),
        ] {
            let error = Overlay::of_records([("it", json.as_bytes())]).unwrap_err();
            assert!(
                error
                    .to_string()
                    .starts_with("the entry it makes no sense: "),
                "{error}"
            );
            assert!(error.why.contains(why), "{error}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever of it the file clashes with, the rest fits, and together they are all.
        #[test]
        fn what_does_not_fit_is_set_aside_and_the_rest_is_not(
            taken in prop::collection::btree_set(0..6_u16, 0..4),
            order in prop::collection::vec(0..6_u16, 1..8),
        ) {
            let file = ConfigFile::parse("nos.toml", FILE).unwrap();
            let mut overlay = Overlay::default();
            for number in order {
                let keys = format!(
                    r#"{{"container":{{"name":"n{number}","netns":"/{number}","device":"tap","tcp":{}}}}}"#,
                    100 + number
                );
                overlay = after(&file, &overlay, (Change::Attach, &keys));
            }
            let ports: Vec<_> = taken.iter().map(|number| (100 + number).to_string()).collect();
            let other = FILE.replace("\"20000-20999\"", &format!("[{}]", ports.join(",")));
            let other = ConfigFile::parse("nos.toml", &other).unwrap();
            let fitted = other.fit(&Overlay::default(), &overlay);
            prop_assert_eq!(fitted.overlay.with(&fitted.aside.overlay()), overlay.clone());
            for (registration, _) in fitted.aside.registrations() {
                let number: u16 = registration.name[1..].parse().unwrap();
                prop_assert!(taken.contains(&number));
            }
            for (name, _) in &fitted.overlay.containers {
                let number: u16 = name.as_str()[1..].parse().unwrap();
                prop_assert!(!taken.contains(&number));
            }
            // And back.
            let again = file.fit(&fitted.overlay, &fitted.aside.overlay());
            prop_assert!(again.aside.is_empty());
            prop_assert_eq!(again.overlay, overlay);
        }
    }
}
