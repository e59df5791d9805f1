//! Policy rules: which tables of routes are looked at for which packets, and in which order.
//!
//! Ours come before all others, at the priority of the kernel's first one, which is that of the table
//! `local`: so whatever else a namespace has keeps its order. Rules of one priority are looked at in the
//! order in which they were added.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::route::RouteProtocol;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleHeader, RuleMessage};
use netlink_packet_route::{AddressFamily, IpProtocol, RouteNetlinkMessage};

use super::client::{Netlink, Request};
use super::error::NetlinkError;
use super::{PROTOCOL, Table};

/// Where a rule looks that names its table by an attribute: RT_TABLE_UNSPEC.
const BY_ATTRIBUTE: u8 = 0;

/// The "interface" from which packets of the namespace's own programs come.
const OWN_PROGRAMS: &str = "lo";

/// A rule as the kernel lists it, or as it shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RuleFacts(RuleMessage);

/// What rules of ours choose packets by, all of which programs in the namespace send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Selector {
    /// Where they come from. No IPv6 network has those that have no source yet, while `0.0.0.0/32` has
    /// those of IPv4. None for any.
    pub(crate) source: Option<IpNet>,
    /// Only those of TCP.
    pub(crate) tcp: bool,
}

impl Selector {
    /// Packets from anywhere.
    pub(crate) const ANY: Self = Self {
        source: None,
        tcp: false,
    };

    /// Packets from a network.
    pub(crate) const fn from(source: IpNet) -> Self {
        Self {
            source: Some(source),
            ..Self::ANY
        }
    }
}

impl RuleFacts {
    /// A rule that sends packets to a table. It carries our mark, and comes before all that others made.
    pub(crate) fn ours(family: AddressFamily, packets: Selector, table: Table) -> Self {
        let mut message = RuleMessage::default();
        message.header = RuleHeader {
            family,
            src_len: packets.source.map_or(0, |source| source.prefix_len()),
            table: BY_ATTRIBUTE,
            action: RuleAction::ToTable,
            ..RuleHeader::default()
        };
        message.attributes = vec![
            RuleAttribute::Iifname(OWN_PROGRAMS.to_owned()),
            RuleAttribute::Table(table.number()),
            RuleAttribute::Protocol(mark()),
        ];
        let source = packets.source.map(|source| source.network());
        message.attributes.extend(source.map(RuleAttribute::Source));
        if packets.tcp {
            let tcp = RuleAttribute::IpProtocol(IpProtocol::Tcp);
            message.attributes.push(tcp);
        }
        Self(message)
    }

    /// The same, where default routes of the table do not count.
    pub(crate) fn without_default(mut self) -> Self {
        let longer = RuleAttribute::SuppressPrefixLen(0);
        self.0.attributes.push(longer);
        self
    }

    /// The same without our mark.
    #[cfg(test)]
    pub(crate) fn of_others(mut self) -> Self {
        let mark = |attribute: &RuleAttribute| matches!(attribute, RuleAttribute::Protocol(_));
        self.0.attributes.retain(|attribute| !mark(attribute));
        self
    }

    /// The request to add it behind all of the first priority.
    pub(crate) fn add(&self) -> Request {
        let message = RouteNetlinkMessage::NewRule(self.first());
        Request::append(format!("add {}", self.describe()), message)
    }

    /// The request to remove the first of those that are like it.
    pub(crate) fn remove(&self) -> Request {
        let message = RouteNetlinkMessage::DelRule(self.first());
        Request::change(format!("remove {}", self.describe()), message)
    }

    /// The message with the priority spelled out, which the kernel leaves out where it is 0, and without
    /// what it only tells.
    fn first(&self) -> RuleMessage {
        let mut message = self.0.clone();
        message.header.flags &= RuleFlags::Invert;
        let told = |attribute: &RuleAttribute| matches!(attribute, RuleAttribute::Priority(_));
        message.attributes.retain(|attribute| !told(attribute));
        message.attributes.push(RuleAttribute::Priority(0));
        message
    }

    /// Whether it is looked at before all of lower priority.
    pub(crate) fn is_first(&self) -> bool {
        let priority = self.attribute(|attribute| match attribute {
            RuleAttribute::Priority(priority) => Some(*priority),
            _ => None,
        });
        priority.unwrap_or(0) == 0
    }

    /// Whether it carries our mark.
    pub(crate) fn is_ours(&self) -> bool {
        let marked = |attribute: &RuleAttribute| *attribute == RuleAttribute::Protocol(mark());
        self.0.attributes.iter().any(marked)
    }

    /// Whether it sends the same packets to the same table as one of ours.
    pub(crate) fn is_same(&self, ours: &Self) -> bool {
        let plain = |facts: &Self| {
            let header = &facts.0.header;
            header.action == RuleAction::ToTable
                && header.flags.is_empty()
                && header.dst_len == 0
                && header.tos == 0
        };
        plain(self)
            && self.0.header.family == ours.0.header.family
            && self.0.header.src_len == ours.0.header.src_len
            && self.selects() == ours.selects()
            && self.table() == ours.table()
    }

    fn table(&self) -> u32 {
        let number = self.attribute(|attribute| match attribute {
            RuleAttribute::Table(number) => Some(*number),
            _ => None,
        });
        number.unwrap_or(self.0.header.table.into())
    }

    /// The attributes by which it chooses packets, in an order of their own.
    fn selects(&self) -> Vec<&RuleAttribute> {
        let rest = |attribute: &&RuleAttribute| match attribute {
            RuleAttribute::Table(_)
            | RuleAttribute::Priority(_)
            | RuleAttribute::Protocol(_)
            // What the kernel says of a rule that suppresses nothing.
            | RuleAttribute::SuppressPrefixLen(u32::MAX) => false,
            RuleAttribute::Source(address) => !(address.is_unspecified() && self.0.header.src_len == 0),
            _ => true,
        };
        let mut selects: Vec<_> = self.0.attributes.iter().filter(rest).collect();
        selects.sort_by_key(|attribute| netlink_packet_core::Nla::kind(*attribute));
        selects
    }

    /// What an error calls it.
    fn describe(&self) -> String {
        let family = match self.0.header.family {
            AddressFamily::Inet6 => "IPv6",
            _ => "IPv4",
        };
        let source = self.attribute(|attribute| match attribute {
            RuleAttribute::Source(address) => Some(*address),
            _ => None,
        });
        let source = source.map(|address: IpAddr| {
            let length = self.0.header.src_len;
            format!(" from {address}/{length}")
        });
        let source = source.unwrap_or_default();
        format!("an {family} rule{source} for table {}", self.table())
    }

    fn attribute<T>(&self, read: impl Fn(&RuleAttribute) -> Option<T>) -> Option<T> {
        self.0.attributes.iter().find_map(read)
    }
}

impl Netlink {
    /// The rules of a family, in the order in which they are looked at. A kernel without policy routing
    /// has none.
    pub(crate) fn rules(&self, family: AddressFamily) -> Result<Vec<RuleFacts>, NetlinkError> {
        let mut filter = RuleMessage::default();
        filter.header.family = family;
        let objects = match self.dump("list rules", &RouteNetlinkMessage::GetRule(filter)) {
            Err(error) if error.is(&[libc::EOPNOTSUPP, libc::EAFNOSUPPORT]) => Vec::new(),
            objects => objects?,
        };
        // Where a family has no rules, the kernel lists those of all others.
        let of_family = |message: &RuleMessage| message.header.family == family;
        let rules = objects.into_iter().filter_map(|object| match object {
            RouteNetlinkMessage::NewRule(message) => Some(message),
            _ => None,
        });
        Ok(rules.filter(of_family).map(RuleFacts).collect())
    }
}

/// The protocol that marks our rules.
fn mark() -> RouteProtocol {
    RouteProtocol::from(PROTOCOL)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::testbed::{LabNamespace, Privileges, privileges};

    #[test]
    fn rules_are_listed_as_they_were_added() {
        if privileges() != Privileges::Root {
            return;
        }
        let lab = LabNamespace::new("rules").unwrap();
        let netlink = Netlink::open(lab.namespace()).unwrap();
        for (family, source) in [
            (AddressFamily::Inet, "203.0.113.1/32"),
            (AddressFamily::Inet, "0.0.0.0/32"),
            (AddressFamily::Inet6, "2001:db8::1/128"),
            (AddressFamily::Inet6, "8000::/1"),
        ] {
            let before = netlink.rules(family).unwrap();
            let source = Selector::from(source.parse().unwrap());
            let tcp = Selector {
                tcp: true,
                ..source
            };
            let kinds = [Selector::ANY, source, tcp, Selector::ANY];
            let mut ours = kinds.map(|packets| RuleFacts::ours(family, packets, Table::Shared));
            let last = ours.last_mut().unwrap();
            *last = last.clone().without_default();
            for rule in &ours {
                netlink.call(&rule.add()).unwrap();
            }
            let listed = netlink.rules(family).unwrap();
            // Behind the kernel's first, and before its others.
            assert_eq!(listed.first(), before.first());
            assert_eq!(listed.len(), before.len() + ours.len());
            for (index, rule) in ours.iter().enumerate() {
                let found = &listed[index + 1];
                assert!(found.is_ours() && found.is_first(), "{found:?}");
                let same: Vec<_> = ours.iter().map(|other| found.is_same(other)).collect();
                let alone: Vec<_> = (0..ours.len()).map(|other| other == index).collect();
                assert_eq!(same, alone, "{found:?}");
                assert!(!found.is_same(&RuleFacts::ours(family, kinds[index], Table::Own)));
                assert!(!before.iter().any(|other| other.is_same(rule)));
            }
            for rule in &listed[1..=ours.len()] {
                netlink.call(&rule.remove()).unwrap();
            }
            assert_eq!(netlink.rules(family).unwrap(), before);
        }
    }

    /// The kernel's own first rule can be put behind ours, and is the same then.
    #[test]
    fn the_first_rule_of_others_can_be_moved() {
        if privileges() != Privileges::Root {
            return;
        }
        let lab = LabNamespace::new("rules").unwrap();
        let netlink = Netlink::open(lab.namespace()).unwrap();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let before = netlink.rules(family).unwrap();
            let local = before.first().unwrap();
            assert!(local.is_first() && !local.is_ours());
            let ours = RuleFacts::ours(family, Selector::ANY, Table::Local);
            for request in [ours.add(), local.add(), local.remove()] {
                netlink.call(&request).unwrap();
            }
            let listed = netlink.rules(family).unwrap();
            assert!(listed[0].is_same(&ours));
            assert_eq!(listed[1..], before[..]);
        }
    }
}
