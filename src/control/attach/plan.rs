//! The difference between what a container has and what it shall have, as requests in order.
//!
//! Pure: from what was read, without asking the kernel anything.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::In6AddrGenMode;

use super::interior::Found;
use super::mark::{Mark, is_marked};
use super::shared::{self, RuleChanges};
use super::{AttachError, ContainerSpec, LinkPlace, Warning};
use crate::control::kernel::LinkFacts;
use crate::control::kernel::netlink::{
    AddressFacts, Ipv6State, LinkChange, Request, RouteFacts, RuleFacts,
};

/// Whether an interface that is down is to be set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Occasion {
    /// It was made a moment ago, and is still down.
    Attach,
    /// Somebody inside has set it down, and it stays so.
    Update,
}

/// Of link-local addresses (RFC 4291 §2.5.6).
const LINK_LOCAL_PREFIX: u8 = 64;

/// One request, with what becomes of it.
pub(super) struct Step {
    pub(super) request: Request,
    /// Codes of the kernel that are as good as success: somebody was faster.
    pub(super) tolerated: &'static [i32],
    pub(super) effect: Effect,
}

/// What a request that was carried out changes in our books.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    None,
    Added(IpAddr),
    Removed(IpAddr),
}

/// Codes of the removal of what is gone already.
const GONE: &[i32] = &[libc::ESRCH, libc::ENODEV, libc::EADDRNOTAVAIL, libc::ENOENT];
/// Codes of the addition of what is there already.
const THERE: &[i32] = &[libc::EEXIST];

/// What brings a container into the state asked for.
pub(super) struct Plan {
    pub(super) steps: Vec<Step>,
    /// What goes once the steps have been done, and stays where one has failed.
    pub(super) last: Vec<Step>,
    pub(super) warnings: Vec<Warning>,
    /// Families that the container speaks with the shared addresses.
    pub(super) families: Families,
    /// IPv6 addresses that are added to `lo`, and to the interface.
    pub(super) fresh_on_lo: Vec<IpAddr>,
    pub(super) fresh_on_link: Option<IpAddr>,
    /// A route of somebody else that is in the way of ours, which is left out.
    pub(super) foreign_route: Option<String>,
    /// Whether the interface is up afterwards.
    pub(super) up: bool,
}

/// Families of addresses that an attachment speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Families {
    /// It has an IPv4 address and a way out.
    pub ipv4: bool,
    /// It has an IPv6 address and a way out.
    pub ipv6: bool,
}

impl Plan {
    /// Compares. `added` are the addresses that we have added before, for kernels that do not keep
    /// the mark.
    pub(super) fn new(
        spec: &ContainerSpec,
        found: &Found,
        added: &BTreeSet<IpAddr>,
        occasion: Occasion,
        namespace: &dyn std::fmt::Display,
    ) -> Result<Self, AttachError> {
        let mut plan = Self {
            steps: Vec::new(),
            last: Vec::new(),
            warnings: Vec::new(),
            families: Families::default(),
            fresh_on_lo: Vec::new(),
            fresh_on_link: None,
            foreign_route: None,
            up: found.link.up || occasion == Occasion::Attach && spec.owns_interface(),
        };
        let addresses = plan.possible(spec, found, namespace)?;
        if !found.lo.up {
            plan.step(LinkChange::of(found.lo.index).up().request("lo"));
        }
        plan.add_addresses(&addresses, found);
        if spec.owns_interface() {
            plan.set_link(spec, &addresses, found, added);
            plan.set_link_addresses(spec, found, added);
        }
        let is_first = spec.company.table.is_none();
        for family in [
            Family {
                source: addresses.iter().copied().find(IpAddr::is_ipv4),
                gateway: spec.gateway(true),
                defaults: &found.ipv4_defaults,
            },
            Family {
                source: addresses.iter().copied().find(IpAddr::is_ipv6),
                gateway: spec.gateway(false),
                defaults: &found.ipv6_defaults,
            },
        ] {
            match is_first {
                true => plan.set_default_route(&family, found),
                false => plan.have_no_default_route(&family),
            }
        }
        plan.set_networks(&spec.networks, &addresses, found);
        plan.set_shared_routes(spec, &addresses, found);
        for (family, found) in [
            (AddressFamily::Inet, &found.ipv4_rules),
            (AddressFamily::Inet6, &found.ipv6_rules),
        ] {
            plan.set_rules(&shared::rules(family, spec, &addresses), found, &addresses);
        }
        // Last: with an address the kernel removes the routes whose source it is.
        let stale = found.ours_on_lo(added);
        let stays = |address| spec.addresses.contains(&address) || spec.company.has(address);
        for facts in stale.filter(|facts| !stays(facts.address)) {
            plan.remove_address(facts);
        }
        Ok(plan)
    }

    /// What takes away what is of one attachment alone, beside others that stay: they put the rules right.
    pub(super) fn undo_one(
        spec: &ContainerSpec,
        (lo, index): (u32, u32),
        addresses: &[AddressFacts],
        routes: Vec<RouteFacts>,
        added: &BTreeSet<IpAddr>,
    ) -> Vec<Step> {
        let routes = routes.into_iter();
        let routes = routes.filter(|route| is_of(route, spec, (lo, index)));
        let own = addresses.iter().copied();
        let own = own.filter(|facts| spec.addresses.contains(&facts.address));
        let own: Vec<_> = own.collect();
        Self::undo(lo, &own, routes.collect(), &[], added)
    }

    /// What takes everything of ours away again; the interface goes with its owner.
    pub(super) fn undo(
        lo: u32,
        addresses: &[AddressFacts],
        routes: Vec<RouteFacts>,
        rules: &[RuleFacts],
        added: &BTreeSet<IpAddr>,
    ) -> Vec<Step> {
        let rules = rules.iter().filter(|rule| rule.is_ours());
        let routes = routes.into_iter().filter(RouteFacts::is_marked);
        let mut steps: Vec<_> = rules
            .map(RuleFacts::remove)
            .chain(routes.map(RouteFacts::remove))
            .map(|removal| Step::tolerant(removal, GONE, Effect::None))
            .collect();
        let ours = addresses
            .iter()
            .filter(|facts| is_our_address(facts, lo, added));
        steps.extend(ours.map(|facts| removal(*facts)));
        steps
    }

    /// The addresses that the container can have: without IPv6 only those of IPv4.
    fn possible(
        &mut self,
        spec: &ContainerSpec,
        found: &Found,
        namespace: &dyn std::fmt::Display,
    ) -> Result<Vec<IpAddr>, AttachError> {
        let first_ipv6 = spec.addresses.iter().find(|address| address.is_ipv6());
        let (Some(&address), Some(reason)) = (first_ipv6, ipv6_obstacle(found)) else {
            return Ok(spec.addresses.clone());
        };
        if spec.addresses.iter().all(IpAddr::is_ipv6) {
            return Err(AttachError::NoIpv6 {
                address,
                namespace: namespace.to_string(),
                reason,
            });
        }
        self.warnings.push(Warning::NoIpv6 { address, reason });
        let ipv4 = spec.addresses.iter().copied().filter(IpAddr::is_ipv4);
        Ok(ipv4.collect())
    }

    fn add_addresses(&mut self, addresses: &[IpAddr], found: &Found) {
        let lo = found.lo.index;
        for &address in addresses {
            if found.address(lo, address).is_some() {
                continue;
            }
            let facts = AddressFacts::new(lo, address, host_prefix(address)).marked();
            self.fresh_on_lo.push(address);
            self.steps
                .push(Step::tolerant(facts.add(), THERE, Effect::Added(address)));
        }
    }

    fn remove_address(&mut self, facts: &AddressFacts) {
        self.steps.push(removal(*facts));
    }

    fn set_link(
        &mut self,
        spec: &ContainerSpec,
        addresses: &[IpAddr],
        found: &Found,
        added: &BTreeSet<IpAddr>,
    ) {
        let link = &found.link;
        let change = link_change(spec, link);
        if !change.is_empty() {
            self.step(change.request(&link.name));
        }
        let ipv6 = addresses.iter().any(IpAddr::is_ipv6);
        // A message of its own: the kernel changes the queue only after it has set the interface
        // up, and drops what it sends meanwhile.
        let up = LinkChange::of(link.index).up().request(&link.name);
        match (self.up, link.up) {
            (false, _) => {}
            (true, true) if ipv6 => self.change_link_local(spec, found, added),
            (true, true) => {}
            (true, false) if ipv6 => self.set_up_with_link_local(up, spec, found, added),
            (true, false) => self.step(up),
        }
    }

    /// Sets the interface up with the link-local address that the kernel would give it, or with an
    /// uplink's, but without duplicate address detection: only the relay is at the other end, and until
    /// detection ends (1 s) the kernel would not resolve IPv6 neighbors.
    ///
    /// The kernel must not make one when the interface comes up, as that would be detected; nor
    /// may ours be there before, as the kernel would then announce it (by an MLD report and a
    /// router solicitation) while the interface is still down, and count two dropped packets.
    fn set_up_with_link_local(
        &mut self,
        up: Request,
        spec: &ContainerSpec,
        found: &Found,
        added: &BTreeSet<IpAddr>,
    ) {
        let link = &found.link;
        let mode = match link.ipv6 {
            Ipv6State::Enabled(mode) => mode,
            // Its MTU was too small until now.
            Ipv6State::Absent | Ipv6State::Disabled => In6AddrGenMode::Eui64,
        };
        self.generate_by(In6AddrGenMode::None, link);
        self.step(up);
        self.set_link_local(spec, found, added);
        if spec.link_local.is_none() {
            self.generate_by(mode, link);
        }
    }

    /// The same for an interface that is up. Beside an uplink's address the kernel makes none of its own,
    /// neither now nor when somebody sets the interface down and up.
    fn change_link_local(&mut self, spec: &ContainerSpec, found: &Found, added: &BTreeSet<IpAddr>) {
        let link = &found.link;
        let generates = match link.ipv6 {
            Ipv6State::Enabled(mode) => mode != In6AddrGenMode::None,
            Ipv6State::Absent | Ipv6State::Disabled => false,
        };
        if spec.link_local.is_some() && generates {
            self.generate_by(In6AddrGenMode::None, link);
        }
        let shared_before = self.set_link_local(spec, found, added);
        if spec.link_local.is_none() && shared_before {
            self.generate_by(In6AddrGenMode::Eui64, link);
        }
    }

    /// How the kernel makes link-local addresses of the interface by itself.
    fn generate_by(&mut self, mode: In6AddrGenMode, link: &LinkFacts) {
        let change = LinkChange::of(link.index).link_local_by(mode);
        self.step(change.request(&link.name));
    }

    /// Gives the interface its one link-local address. In the place of an uplink's, its own one would be
    /// what the kernel sends from to some neighbors; and one of an uplink that it was given before leads
    /// nowhere any more. Returns whether there was such.
    fn set_link_local(
        &mut self,
        spec: &ContainerSpec,
        found: &Found,
        added: &BTreeSet<IpAddr>,
    ) -> bool {
        let address = spec.interface_address();
        let wanted = AddressFacts::new(found.link.index, address.into(), LINK_LOCAL_PREFIX);
        self.add_link_local(
            match spec.link_local {
                Some(_) => wanted.marked(),
                None => wanted,
            },
            found,
        );
        let own = IpAddr::V6(spec.mac.link_local());
        let others = found
            .addresses
            .iter()
            .filter(|facts| facts.interface == found.link.index && facts.address != address);
        let mut shared_before = false;
        for facts in others {
            let shared = is_shared_link_local(facts, added);
            shared_before |= shared;
            if shared || facts.address == own {
                self.remove_address(facts);
            }
        }
        shared_before
    }

    /// Gives the interface its addresses, by which the kernel knows the networks as well, and takes away those that
    /// it was given before. One of somebody else that is there is as good.
    fn set_link_addresses(
        &mut self,
        spec: &ContainerSpec,
        found: &Found,
        added: &BTreeSet<IpAddr>,
    ) {
        if spec.place != LinkPlace::Segment {
            return;
        }
        let index = found.link.index;
        for network in &spec.link_addresses {
            let facts = AddressFacts::new(index, network.addr(), network.prefix_len()).marked();
            if found.address(index, network.addr()).is_none() {
                let effect = Effect::Added(network.addr());
                self.steps.push(Step::tolerant(facts.add(), THERE, effect));
            }
        }
        let ours = found.addresses.iter().filter(|facts| {
            let marked = facts.marked || added.contains(&facts.address);
            facts.interface == index && marked && !is_shared_link_local(facts, added)
        });
        let wanted = |address| spec.link_addresses.iter().any(|it| it.addr() == address);
        for facts in ours.filter(|facts| !wanted(facts.address)) {
            self.remove_address(facts);
        }
    }

    fn add_link_local(&mut self, wanted: AddressFacts, found: &Found) {
        let address = wanted.address;
        match found.address(wanted.interface, address) {
            Some(present) if !present.tentative => return,
            // The kernel made it when somebody set the interface up, and detects.
            Some(present) => self.remove_address(present),
            None => {}
        }
        self.fresh_on_link = Some(address);
        let effect = match wanted.marked {
            true => Effect::Added(address),
            false => Effect::None,
        };
        self.steps.push(Step::tolerant(wanted.add(), THERE, effect));
    }

    fn set_default_route(&mut self, family: &Family<'_>, found: &Found) {
        let ours = family.defaults.iter().find(|route| route.is_ours());
        let Some(source) = family.source else {
            if let Some(old) = ours {
                let removal = Step::tolerant(old.clone().remove(), GONE, Effect::None);
                self.steps.push(removal);
            }
            return;
        };
        let foreign = family
            .defaults
            .iter()
            .find(|route| !route.is_ours() && route.wins_over_ours());
        if let Some(route) = foreign {
            self.foreign_route.get_or_insert_with(|| route.describe());
            return;
        }
        match source {
            IpAddr::V4(_) => self.families.ipv4 = self.up,
            IpAddr::V6(_) => self.families.ipv6 = self.up,
        }
        if !self.up {
            return;
        }
        let wanted = RouteFacts::our_default(found.link.index, source).by_way_of(family.gateway);
        let what = format!("default dev {} src {source}", found.link.name);
        match ours {
            None => self.step(wanted.add(&what)),
            Some(old) if old.is_same(&wanted) => {}
            Some(_) => self.step(wanted.replace(&what)),
        }
    }

    /// The namespace's default route is another attachment's, and this one's is in a table of its own. One
    /// that was the first has left one.
    fn have_no_default_route(&mut self, family: &Family<'_>) {
        match family.source {
            Some(IpAddr::V4(_)) => self.families.ipv4 = self.up,
            Some(IpAddr::V6(_)) => self.families.ipv6 = self.up,
            None => {}
        }
        let ours = family.defaults.iter().filter(|route| route.is_ours());
        for old in ours {
            let removal = Step::tolerant(old.clone().remove(), GONE, Effect::None);
            self.steps.push(removal);
        }
    }

    /// Routes to the networks of the NOS: as its default route, but that those who look for a route
    /// to a neighbor find one that is not the default.
    fn set_networks(&mut self, networks: &[IpNet], addresses: &[IpAddr], found: &Found) {
        let wanted = networks.iter().filter_map(|&network| {
            let source = source_towards(network, addresses)?;
            Some((network, source))
        });
        let wanted: BTreeMap<IpNet, IpAddr> = wanted.collect();
        for old in found.networks.iter().filter(|route| route.is_ours()) {
            let stays = old
                .network()
                .is_some_and(|network| wanted.contains_key(&network));
            if !stays {
                let removal = Step::tolerant(old.clone().remove(), GONE, Effect::None);
                self.steps.push(removal);
            }
        }
        for (network, source) in wanted {
            self.set_network(network, source, found);
        }
    }

    fn set_network(&mut self, network: IpNet, source: IpAddr, found: &Found) {
        let present = || {
            let routes = found.networks.iter();
            routes.filter(|route| route.network() == Some(network))
        };
        let ours = present().find(|route| route.is_ours());
        let foreign = present().find(|route| !route.is_ours() && route.wins_over_ours());
        if let (None, Some(foreign)) = (ours, foreign) {
            let route = foreign.describe();
            self.warnings.push(Warning::ForeignRoute { route });
            return;
        }
        if !self.up {
            return;
        }
        let wanted = RouteFacts::our_network(network, found.link.index, source);
        let what = format!("{network} dev {} src {source}", found.link.name);
        match ours {
            None => self
                .steps
                .push(Step::tolerant(wanted.add(&what), THERE, Effect::None)),
            Some(old) if old.is_same(&wanted) => {}
            Some(_) => self.step(wanted.replace(&what)),
        }
    }

    /// Routes to the shared addresses that lead out, and those that stay inside.
    fn set_shared_routes(&mut self, spec: &ContainerSpec, addresses: &[IpAddr], found: &Found) {
        let interface = Some(found.link.index).filter(|_| self.up);
        let wanted = shared::routes(spec, addresses, interface, found.lo.index);
        for old in &found.shared {
            if !wanted.iter().any(|wanted| wanted.is_about_same(old)) {
                let removal = Step::tolerant(old.clone().remove(), GONE, Effect::None);
                self.steps.push(removal);
            }
        }
        for wanted in wanted {
            let what = wanted.describe();
            match found.shared.iter().find(|old| old.is_about_same(&wanted)) {
                None => self
                    .steps
                    .push(Step::tolerant(wanted.add(&what), THERE, Effect::None)),
                Some(old) if old.is_same(&wanted) => {}
                Some(_) => self.step(wanted.replace(&what)),
            }
        }
    }

    fn set_rules(&mut self, wanted: &[RuleFacts], found: &[RuleFacts], addresses: &[IpAddr]) {
        if let (true, false, Some(&address)) =
            (found.is_empty(), wanted.is_empty(), addresses.first())
        {
            self.warnings.push(Warning::NoRules { address });
            return;
        }
        let RuleChanges { add, remove } = shared::rule_changes(wanted, found);
        add.into_iter().for_each(|request| self.step(request));
        let removals = remove.into_iter();
        let removals = removals.map(|request| Step::tolerant(request, GONE, Effect::None));
        self.last.extend(removals);
    }

    fn step(&mut self, request: Request) {
        self.steps.push(Step::tolerant(request, &[], Effect::None));
    }
}

/// The address by which a container is in a network: its own there, or else its first of that
/// family. None where it needs no route: the network has no other address, or the container none of
/// the family.
fn source_towards(network: IpNet, addresses: &[IpAddr]) -> Option<IpAddr> {
    if network.prefix_len() == network.max_prefix_len() {
        return None;
    }
    let mut inside = addresses
        .iter()
        .filter(|address| network.contains(*address));
    let of_family = |address: &&IpAddr| address.is_ipv4() == network.addr().is_ipv4();
    let first = || addresses.iter().find(of_family);
    inside.next().or_else(first).copied()
}

/// What matters for the default route of one family.
struct Family<'a> {
    source: Option<IpAddr>,
    gateway: Option<IpAddr>,
    defaults: &'a [RouteFacts],
}

impl Step {
    fn tolerant(request: Request, tolerated: &'static [i32], effect: Effect) -> Self {
        Self {
            request,
            tolerated,
            effect,
        }
    }
}

impl Found {
    fn address(&self, interface: u32, address: IpAddr) -> Option<&AddressFacts> {
        let here = |facts: &&AddressFacts| facts.interface == interface && facts.address == address;
        self.addresses.iter().find(here)
    }

    /// Whether a killed run has left addresses here.
    pub(super) fn has_leftovers(&self) -> bool {
        let left = |facts: &AddressFacts| facts.interface == self.lo.index && facts.marked;
        self.addresses.iter().any(left)
    }

    fn ours_on_lo<'a>(
        &'a self,
        added: &'a BTreeSet<IpAddr>,
    ) -> impl Iterator<Item = &'a AddressFacts> {
        let addresses = self.addresses.iter();
        addresses.filter(|facts| is_our_address(facts, self.lo.index, added))
    }
}

/// Whether a route of ours is of this attachment, which has these interfaces; all are where it is alone.
pub(super) fn is_of(route: &RouteFacts, spec: &ContainerSpec, (lo, index): (u32, u32)) -> bool {
    if !route.is_marked() {
        return false;
    }
    let inside = || {
        let own = route.destinations().map(|destinations| destinations.addr());
        route.interface() == Some(lo) && own.is_some_and(|own| spec.addresses.contains(&own))
    };
    spec.company.others.is_empty() || route.interface() == Some(index) || inside()
}

fn removal(facts: AddressFacts) -> Step {
    Step::tolerant(facts.remove(), GONE, Effect::Removed(facts.address))
}

/// Whether we have given an interface this link-local address, which is not its own.
fn is_shared_link_local(facts: &AddressFacts, added: &BTreeSet<IpAddr>) -> bool {
    let link_local = matches!(facts.address, IpAddr::V6(it) if it.is_unicast_link_local());
    let ours = facts.marked || added.contains(&facts.address);
    ours && link_local && facts.prefix_length == LINK_LOCAL_PREFIX
}

fn is_our_address(facts: &AddressFacts, lo: u32, added: &BTreeSet<IpAddr>) -> bool {
    facts.interface == lo
        && facts.prefix_length == host_prefix(facts.address)
        && (facts.marked || added.contains(&facts.address))
}

fn link_change(spec: &ContainerSpec, link: &LinkFacts) -> LinkChange {
    let mut change = LinkChange::of(link.index);
    if !is_marked(link, &spec.name) {
        change = change.mark(&spec.name);
    }
    if link.mac != Some(spec.mac) {
        change = change.mac(spec.mac);
    }
    if link.mtu != spec.mtu {
        change = change.mtu(spec.mtu);
    }
    if link.tx_queue_len != spec.tx_queue_len {
        change = change.tx_queue_len(spec.tx_queue_len);
    }
    if !link.resolves {
        change = change.resolving();
    }
    change
}

/// Why the container cannot have IPv6 addresses, if so.
fn ipv6_obstacle(found: &Found) -> Option<String> {
    let disabled = |interface: &str| {
        format!(
            "IPv6 is disabled on {interface} there (/proc/sys/net/ipv6/conf/{interface}/disable_ipv6)"
        )
    };
    match (found.lo.ipv6, found.link.ipv6) {
        (Ipv6State::Absent, _) => Some("the kernel has no IPv6".to_owned()),
        (Ipv6State::Disabled, _) => Some(disabled("lo")),
        (_, Ipv6State::Disabled) => Some(disabled(&found.link.name)),
        // Absent from the interface alone: its MTU is too small, which the spec changes.
        _ => None,
    }
}

fn host_prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

#[cfg(test)]
mod tests {
    use super::super::Company;
    use super::*;
    use crate::control::kernel::LinkStatistics;
    use crate::control::kernel::netlink::{Selector, Table};
    use nos_shim::icmp::DUMMY_ADDRESS;

    const LO: u32 = 1;
    const ETH0: u32 = 7;
    const ROUTER: &str = "fe80::ff";

    fn spec() -> ContainerSpec {
        ContainerSpec {
            name: "web".to_owned(),
            interface: crate::interface_name::InterfaceName::eth0(),
            mac: nos_shim::ident::MacAddr::stable("web"),
            mtu: 1400,
            tx_queue_len: 4096,
            mode: nos_shim::ports::AddressMode::Shared,
            addresses: vec![
                "203.0.113.1".parse().unwrap(),
                "2001:db8:1::1".parse().unwrap(),
            ],
            networks: [
                "203.0.113.0/24".parse().unwrap(),
                "2001:db8:1::/64".parse().unwrap(),
            ]
            .into(),
            link_addresses: Vec::new(),
            place: LinkPlace::Alone,
            link_local: None,
            router: ROUTER.parse().unwrap(),
            ephemeral: Vec::new(),
            opens_flows: true,
            company: Company::default(),
        }
    }

    fn link(index: u32, name: &str) -> LinkFacts {
        LinkFacts {
            index,
            name: name.to_owned(),
            mac: None,
            mtu: 1500,
            up: false,
            operational: false,
            resolves: true,
            tx_queue_len: 500,
            kind: None,
            alias: None,
            peer: None,
            peer_namespace: None,
            controller: None,
            group: 0,
            ipv6: Ipv6State::Enabled(In6AddrGenMode::StablePrivacy),
            statistics: LinkStatistics::default(),
        }
    }

    /// A container as the kernel makes it, with an interface.
    fn fresh() -> Found {
        Found {
            lo: link(LO, "lo"),
            link: link(ETH0, "eth0"),
            addresses: Vec::new(),
            ipv4_defaults: Vec::new(),
            ipv6_defaults: Vec::new(),
            networks: Vec::new(),
            shared: Vec::new(),
            ipv4_rules: vec![kernel_rule(AddressFamily::Inet)],
            ipv6_rules: vec![kernel_rule(AddressFamily::Inet6)],
        }
    }

    /// The kernel's first rule. By its mark alone it differs from one of ours.
    fn kernel_rule(family: AddressFamily) -> RuleFacts {
        RuleFacts::ours(family, Selector::ANY, Table::Local).of_others()
    }

    /// A container that is as [`spec`] asks for.
    fn healthy() -> Found {
        let mut found = fresh();
        found.lo.up = true;
        found.link = LinkFacts {
            mac: Some(spec().mac),
            mtu: 1400,
            up: true,
            tx_queue_len: 4096,
            alias: Some("nos-relay:web".to_owned()),
            ..found.link
        };
        let on_lo = spec().addresses.into_iter();
        found.addresses = on_lo
            .map(|address| AddressFacts::new(LO, address, host_prefix(address)).marked())
            .collect();
        found.addresses.push(link_local());
        let [v4, v6] = [spec().addresses[0], spec().addresses[1]];
        found.ipv4_defaults = vec![RouteFacts::our_default(ETH0, v4)];
        found.ipv6_defaults = vec![RouteFacts::our_default(ETH0, v6)];
        let networks = spec()
            .networks
            .iter()
            .zip([v4, v6])
            .map(connected)
            .collect();
        found.networks = networks;
        found.shared = shared::routes(&spec(), &spec().addresses, Some(ETH0), LO);
        for (family, rules) in [
            (AddressFamily::Inet, &mut found.ipv4_rules),
            (AddressFamily::Inet6, &mut found.ipv6_rules),
        ] {
            rules.splice(..0, shared::rules(family, &spec(), &spec().addresses));
        }
        found
    }

    fn connected((network, source): (&IpNet, IpAddr)) -> RouteFacts {
        RouteFacts::our_network(*network, ETH0, source)
    }

    fn link_local() -> AddressFacts {
        AddressFacts::new(ETH0, spec().mac.link_local().into(), 64)
    }

    fn plan(found: &Found, occasion: Occasion) -> Plan {
        Plan::new(&spec(), found, &BTreeSet::new(), occasion, &"here").unwrap()
    }

    fn actions(plan: &Plan) -> Vec<&str> {
        let steps = plan.steps.iter().chain(&plan.last);
        steps.map(|step| step.request.action()).collect()
    }

    #[test]
    fn an_attachment_is_made_in_order() {
        let plan = plan(&fresh(), Occasion::Attach);
        let link_local = format!("add address {}/64", spec().mac.link_local());
        assert_eq!(
            actions(&plan),
            [
                "set up lo",
                "add address 203.0.113.1/32",
                "add address 2001:db8:1::1/128",
                // MAC, MTU, queue, alias; then: no address by the kernel itself.
                "set up eth0",
                "set up eth0",
                // Up, and only then the address that is announced.
                "set up eth0",
                &link_local,
                "set up eth0",
                "add route default dev eth0 src 203.0.113.1",
                "add route default dev eth0 src 2001:db8:1::1",
                "add route 203.0.113.0/24 dev eth0 src 203.0.113.1",
                "add route 2001:db8:1::/64 dev eth0 src 2001:db8:1::1",
                "add route an IPv4 route to 203.0.113.1/32 via 192.0.0.8 through interface 7",
                "add route an IPv6 route to 2001:db8:1::1/128 via fe80::ff through interface 7",
                "add an IPv4 rule from 203.0.113.1/32 for table 28274",
                "add an IPv4 rule from 0.0.0.0/32 for table 28274",
                // The kernel's own comes behind them.
                "add an IPv4 rule for table 255",
                "add an IPv6 rule from 2001:db8:1::1/128 for table 28274",
                "add an IPv6 rule from ::/1 for table 255",
                "add an IPv6 rule from 8000::/1 for table 255",
                "add an IPv6 rule for table 28274",
                "add an IPv6 rule for table 255",
                "remove an IPv4 rule for table 255",
                "remove an IPv6 rule for table 255",
            ]
        );
        let of_link = |step: &Step| step.request.action() == "set up eth0";
        let changes: Vec<_> = plan.steps.iter().filter(|step| of_link(step)).collect();
        let kept = LinkChange::of(ETH0).link_local_by(In6AddrGenMode::StablePrivacy);
        for (change, expected) in changes[1..].iter().zip([
            LinkChange::of(ETH0).link_local_by(In6AddrGenMode::None),
            LinkChange::of(ETH0).up(),
            kept,
        ]) {
            assert_eq!(change.request, expected.request("eth0"));
        }
        assert_eq!(
            plan.families,
            Families {
                ipv4: true,
                ipv6: true
            }
        );
    }

    #[test]
    fn a_healthy_container_has_an_empty_plan() {
        for occasion in [Occasion::Attach, Occasion::Update] {
            assert_eq!(actions(&plan(&healthy(), occasion)), [""; 0]);
        }
    }

    #[test]
    fn an_interface_that_is_down_gets_neither_up_nor_routes() {
        let mut found = healthy();
        found.link.up = false;
        found.ipv4_defaults.clear();
        found.ipv6_defaults.clear();
        found.networks.clear();
        found.shared.clear();
        let plan = plan(&found, Occasion::Update);
        assert_eq!(actions(&plan), [""; 0]);
        assert_eq!((plan.up, plan.families), (false, Families::default()));
    }

    #[test]
    fn networks_follow_addresses_and_leave_those_of_others() {
        let [v4, v6]: [IpAddr; 2] = spec().addresses.try_into().unwrap();
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let mut found = healthy();
        // One that the NOS has no more, and a route of somebody else's to another.
        let gone = connected((&net("198.51.100.0/24"), v4));
        let via = "203.0.113.9".parse().unwrap();
        let foreign = RouteFacts::via(net("192.0.2.0/24"), via).unwrap();
        found.networks.extend([gone, foreign]);
        let second: IpAddr = "203.0.113.128".parse().unwrap();
        let wanted = ContainerSpec {
            addresses: vec![v4, v6, second],
            networks: [
                // The container has an address of its own there.
                net("203.0.113.128/25"),
                net("203.0.113.0/24"),
                net("192.0.2.0/24"),
                // Networks without neighbors, and one that it speaks from its first address.
                net("192.0.2.1/32"),
                net("2001:db8:2::1/128"),
                net("2001:db8:3::/64"),
            ]
            .into(),
            ..spec()
        };
        found
            .addresses
            .push(AddressFacts::new(LO, second, 32).marked());
        let plan = |wanted: &ContainerSpec, found| {
            Plan::new(wanted, found, &BTreeSet::new(), Occasion::Update, &"here").unwrap()
        };
        found.shared.push(RouteFacts::our_shared(
            second,
            Table::Shared,
            ETH0,
            DUMMY_ADDRESS.into(),
        ));
        found.ipv4_rules = shared::rules(AddressFamily::Inet, &wanted, &wanted.addresses);
        let planned = plan(&wanted, &found);
        assert_eq!(
            actions(&planned),
            [
                "remove route an IPv6 route to 2001:db8:1::/64 through interface 7",
                "remove route an IPv4 route to 198.51.100.0/24 through interface 7",
                "add route 203.0.113.128/25 dev eth0 src 203.0.113.128",
                "add route 2001:db8:3::/64 dev eth0 src 2001:db8:1::1",
            ]
        );
        let route = "an IPv4 route to 192.0.2.0/24 via 203.0.113.9".to_owned();
        assert_eq!(planned.warnings, [Warning::ForeignRoute { route }]);
        // Another first address: the route's source changes in place.
        let changed = ContainerSpec {
            addresses: vec!["203.0.113.7".parse().unwrap(), v6],
            ..spec()
        };
        let planned = plan(&changed, &healthy());
        assert!(
            actions(&planned).contains(&"replace route 203.0.113.0/24 dev eth0 src 203.0.113.7"),
            "{:?}",
            actions(&planned)
        );
    }

    #[test]
    fn a_link_local_address_that_is_being_detected_is_replaced() {
        let mut found = healthy();
        if let Some(last) = found.addresses.last_mut() {
            last.tentative = true;
        }
        let address = link_local().address;
        assert_eq!(
            actions(&plan(&found, Occasion::Update)),
            [
                format!("remove address {address}/64"),
                format!("add address {address}/64"),
            ]
        );
    }

    #[test]
    fn only_addresses_of_ours_are_stale() {
        let mut found = healthy();
        let stale = AddressFacts::new(LO, "198.51.100.7".parse().unwrap(), 32).marked();
        found.addresses.extend([
            stale,
            AddressFacts {
                prefix_length: 24,
                ..stale
            },
            AddressFacts {
                interface: ETH0,
                ..stale
            },
            AddressFacts {
                address: "198.51.100.8".parse().unwrap(),
                marked: false,
                ..stale
            },
        ]);
        let plan = plan(&found, Occasion::Update);
        assert_eq!(actions(&plan), ["remove address 198.51.100.7/32"]);
    }

    #[test]
    fn a_foreign_default_route_takes_the_place_of_ours_alone() {
        let mut found = healthy();
        let via = RouteFacts::via("0.0.0.0/0".parse().unwrap(), "192.0.2.2".parse().unwrap());
        found.ipv4_defaults = vec![via.unwrap()];
        found.ipv6_defaults.clear();
        let plan = plan(&found, Occasion::Update);
        assert_eq!(
            plan.foreign_route.as_deref(),
            Some("an IPv4 default route via 192.0.2.2")
        );
        assert_eq!(
            actions(&plan),
            ["add route default dev eth0 src 2001:db8:1::1"]
        );
        assert_eq!(
            plan.families,
            Families {
                ipv4: false,
                ipv6: true
            }
        );
    }

    #[test]
    fn without_ipv6_there_is_ipv4_alone() {
        let mut found = fresh();
        found.lo.ipv6 = Ipv6State::Absent;
        found.link.ipv6 = Ipv6State::Absent;
        let plan = plan(&found, Occasion::Attach);
        assert!(
            actions(&plan)
                .iter()
                .all(|action| !action.contains("2001:db8"))
        );
        assert!(actions(&plan).iter().all(|action| !action.contains("fe80")));
        assert_eq!(plan.warnings.len(), 1);
        assert!(
            plan.warnings[0]
                .to_string()
                .contains("the kernel has no IPv6")
        );
    }
}
