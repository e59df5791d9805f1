//! What is needed to work on a container's namespace from outside.

use netlink_packet_route::AddressFamily;

use super::local_ports::LocalPorts;
use super::mark::{find_marked, owner};
use super::plan::is_of;
use super::{AttachError, ContainerSpec};
use crate::control::kernel::netlink::{AddressFacts, LinkSelector, Netlink, RouteFacts, RuleFacts};
use crate::control::kernel::{LinkFacts, Namespace};

/// A socket and settings of a namespace, brought back by one visit, and used from any thread.
///
/// The value keeps the namespace alive.
pub(super) struct Interior {
    pub(super) netlink: Netlink,
    pub(super) ports: LocalPorts,
}

/// What a container has at present, of all that attaching touches.
pub(super) struct Found {
    pub(super) lo: LinkFacts,
    pub(super) link: LinkFacts,
    /// Of all interfaces.
    pub(super) addresses: Vec<AddressFacts>,
    /// Default routes of the main table.
    pub(super) ipv4_defaults: Vec<RouteFacts>,
    /// Default routes of the main table.
    pub(super) ipv6_defaults: Vec<RouteFacts>,
    /// Other routes of the main table: ours, and those of others to the networks of the NOS.
    pub(super) networks: Vec<RouteFacts>,
    /// Ours to the shared addresses.
    pub(super) shared: Vec<RouteFacts>,
    /// Policy rules in their order.
    pub(super) ipv4_rules: Vec<RuleFacts>,
    /// Policy rules in their order.
    pub(super) ipv6_rules: Vec<RuleFacts>,
}

impl Interior {
    /// Visits `namespace`, and has `task` do there what only works inside.
    pub(super) fn visit<R: Send>(
        namespace: &Namespace,
        task: impl FnOnce(&Netlink) -> Result<R, AttachError> + Send,
    ) -> Result<(Self, R), AttachError> {
        namespace.run(|| {
            let interior = Self {
                netlink: Netlink::open_here(namespace)?,
                ports: LocalPorts::open_here(),
            };
            let result = task(&interior.netlink)?;
            Ok((interior, result))
        })?
    }

    /// Visits `namespace` for the sake of what the visit brings back.
    pub(super) fn open(namespace: &Namespace) -> Result<Self, AttachError> {
        Ok(Self::visit(namespace, |_| Ok(()))?.0)
    }

    /// Reads all that attaching touches.
    /// Of ours, what is of this attachment: other attachments of the namespace look after their own.
    pub(super) fn observe(
        &self,
        lo: LinkFacts,
        link: LinkFacts,
        spec: &ContainerSpec,
    ) -> Result<Found, AttachError> {
        let networks = &spec.networks;
        let interfaces = (lo.index, link.index);
        let addresses = self.netlink.addresses()?;
        let wanted = |route: &RouteFacts| {
            let network = route.network();
            route.is_marked() || network.is_some_and(|network| networks.contains(&network))
        };
        // A routing daemon inside may have very many.
        let read = |family| -> Result<(Vec<_>, Vec<_>), AttachError> {
            let routes = self.netlink.routes(family)?.into_iter();
            let kept = routes.filter(|route| route.is_default() || wanted(route));
            let kept = kept.filter(|route| !route.is_marked() || is_of(route, spec, interfaces));
            Ok(kept.partition(RouteFacts::is_default))
        };
        let (ipv4_defaults, mut networks) = read(AddressFamily::Inet)?;
        let (ipv6_defaults, ipv6_networks) = read(AddressFamily::Inet6)?;
        networks.extend(ipv6_networks);
        let shared = networks.extract_if(.., |route| route.is_ours_elsewhere());
        let shared = shared.collect();
        Ok(Found {
            lo,
            link,
            addresses,
            ipv4_defaults,
            ipv6_defaults,
            networks,
            shared,
            ipv4_rules: self.netlink.rules(AddressFamily::Inet)?,
            ipv6_rules: self.netlink.rules(AddressFamily::Inet6)?,
        })
    }

    /// `lo`, and the interface that has this name.
    pub(super) fn links_by_name(
        &self,
        interface: &str,
    ) -> Result<(LinkFacts, LinkFacts), AttachError> {
        let (lo, link) = self.links(LinkSelector::Name(interface))?;
        let link = link.ok_or_else(|| self.netlink.no_link(interface))?;
        Ok((lo, link))
    }

    /// `lo`, and the interface of an attachment under whatever name it has now: by its index, or
    /// by its mark where that index is gone.
    pub(super) fn links_by_index(
        &self,
        index: u32,
        attachment: &str,
        interface: &str,
    ) -> Result<(LinkFacts, LinkFacts), AttachError> {
        let (lo, link) = self.links(LinkSelector::Index(index))?;
        let link = match link {
            Some(link) => link,
            None => find_marked(&self.netlink, attachment)?
                .ok_or_else(|| self.netlink.no_link(interface))?,
        };
        Ok((lo, link))
    }

    fn links(
        &self,
        selector: LinkSelector<'_>,
    ) -> Result<(LinkFacts, Option<LinkFacts>), AttachError> {
        let found = self.netlink.links(&[LinkSelector::Name("lo"), selector])?;
        let mut found = found.into_iter();
        let lo = found.next().flatten();
        let lo = lo.ok_or_else(|| self.netlink.no_link("lo"))?;
        Ok((lo, found.next().flatten()))
    }

    /// The routes that carry our mark.
    pub(super) fn our_routes(&self) -> Result<Vec<RouteFacts>, AttachError> {
        let mut routes = self.netlink.routes(AddressFamily::Inet)?;
        routes.extend(self.netlink.routes(AddressFamily::Inet6)?);
        routes.retain(RouteFacts::is_marked);
        Ok(routes)
    }

    /// Whether another attachment than this one has an interface here.
    pub(super) fn has_others(&self, attachment: &str) -> Result<bool, AttachError> {
        let links = self.netlink.all_links()?;
        let mut owners = links.iter().filter_map(owner);
        Ok(owners.any(|owner| owner != attachment))
    }

    /// The rules that carry our mark.
    pub(super) fn our_rules(&self) -> Result<Vec<RuleFacts>, AttachError> {
        let mut rules = self.netlink.rules(AddressFamily::Inet)?;
        rules.extend(self.netlink.rules(AddressFamily::Inet6)?);
        rules.retain(RuleFacts::is_ours);
        Ok(rules)
    }

    pub(super) fn default_routes(
        &self,
        family: AddressFamily,
    ) -> Result<Vec<RouteFacts>, AttachError> {
        let routes = self.netlink.routes(family)?.into_iter();
        Ok(routes.filter(RouteFacts::is_default).collect())
    }
}
