//! Requests: from keys to another overlay, or to what is wrong with them.

mod addresses;
mod allocate;
mod containers;
mod endpoints;
mod groups;
mod networks;
mod pools;
mod ports;
mod routes;

use nos_shim::ports::PortRange;

use crate::control::config::document::{self, Section};
use crate::control::config::entries::Entries;
use crate::control::config::place::Place;
use crate::control::config::report::Report;
use crate::control::config::{Config, ConfigErrors, Name, check};

pub use endpoints::endpoint_name;
pub use pools::PoolAction;

use super::overlay::Withdrawal;
use super::{Aside, ConfigFile, Holders, Keys, Overlay, add_addresses, holder};
/// What may be asked for, with the keys of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A network of containers: `network`, with the keys of `[[network]]`.
    CreateNetwork,
    /// A network goes: `name`.
    RemoveNetwork,
    /// A further attachment of a container's namespace: `network`, `container`, and `endpoint` with the
    /// keys of `[[container]]` that do not follow from them.
    Connect,
    /// Such an attachment goes: `network`, `container`.
    Disconnect,
    /// A container: `container`, with the keys of `[[container]]`.
    Attach,
    /// A container that was attached at run time is in another namespace from then on: `name`, `netns` or `pid`,
    /// `interface`. It keeps its ports meanwhile.
    Move,
    /// A container goes: `name`.
    Detach,
    /// Ports of a container: `container`, and `tcp`, `udp`, `ephemeral` as in `[[container]]`.
    Ports(PortsAction),
    /// Ports out of the pool: `container`, `size`, `protocol`, `kind`.
    Allocate,
    /// A route: `route`, with the keys of `[[route]]`.
    AddRoute,
    /// A route goes: `prefix`, `metric`, `vrf`.
    RemoveRoute,
    /// An address of an uplink: `uplink`, `address`.
    AddAddress,
    /// An address goes: `uplink`, `address`.
    RemoveAddress,
    /// A multicast group that the NOS is in on an uplink: `uplink`, `group`.
    AddGroup,
    /// It leaves a group: `uplink`, `group`.
    RemoveGroup,
}

/// What happens to a container's ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortsAction {
    /// It has these as well.
    Add,
    /// It has these no more.
    Remove,
    /// Of what it got at run time, it has exactly these.
    Replace,
}

/// What a request changes.
#[derive(Clone, Debug, PartialEq)]
pub struct Changed {
    /// What is registered from then on.
    pub overlay: Overlay,
    /// The configuration from then on; `None` where what is asked for is so already.
    pub config: Option<Config>,
    /// What it is about.
    pub touched: Touched,
    /// What it takes away, of what was set aside as well.
    withdrawal: Option<Withdrawal>,
    /// The ports that were allocated.
    pub range: Option<PortRange>,
}

impl Changed {
    /// What is left of what was set aside: a request that takes away does so there as well.
    #[must_use]
    pub fn aside(&self, aside: &Aside) -> Aside {
        match &self.withdrawal {
            Some(withdrawal) => aside.map(|part| part.withdraw(withdrawal)),
            None => aside.clone(),
        }
    }
}

impl Change {
    /// Whether it may take something away that somebody uses.
    #[must_use]
    pub fn takes_away(self) -> bool {
        match self {
            Self::CreateNetwork
            | Self::Connect
            | Self::Move
            | Self::Attach
            | Self::Allocate
            | Self::AddRoute
            | Self::AddAddress
            | Self::AddGroup => false,
            Self::RemoveNetwork
            | Self::Disconnect
            | Self::Detach
            | Self::RemoveRoute
            | Self::RemoveAddress
            | Self::RemoveGroup => true,
            Self::Ports(action) => action != PortsAction::Add,
        }
    }
}

/// What a request is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Touched {
    /// A network, and no container yet.
    Network(Name),
    /// A container.
    Container(Name),
    /// An uplink.
    Uplink(Name),
    /// The static routes.
    Routes,
}

impl ConfigFile {
    /// What becomes of `overlay` by a request with these keys. What it asks for may be held by one of
    /// `holders`, if it says so.
    ///
    /// # Errors
    ///
    /// What is wrong with the keys, or with what they ask for beside all that there is. Keys are
    /// named with what they belong to: `ports.tcp`, `container.netns`.
    pub fn change(
        &self,
        overlay: &Overlay,
        change: Change,
        keys: &Keys,
        holders: &Holders,
    ) -> Result<Changed, ConfigErrors> {
        match change {
            Change::CreateNetwork => self.create_network(overlay, keys, holders),
            Change::RemoveNetwork => self.remove_network(overlay, keys),
            Change::Connect => self.connect(overlay, keys, holders),
            Change::Disconnect => self.disconnect(overlay, keys),
            Change::Attach => self.attach(overlay, keys, holders),
            Change::Move => self.move_container(overlay, keys),
            Change::Detach => self.detach(overlay, keys),
            Change::Ports(action) => self.ports(overlay, action, keys, holders),
            Change::Allocate => self.allocate(overlay, keys, holders),
            Change::AddRoute => self.add_route(overlay, keys, holders),
            Change::RemoveRoute => self.remove_route(overlay, keys),
            Change::AddAddress => self.add_address(overlay, keys, holders),
            Change::RemoveAddress => self.remove_address(overlay, keys),
            Change::AddGroup => self.add_group(overlay, keys, holders),
            Change::RemoveGroup => self.remove_group(overlay, keys),
        }
    }

    /// The overlay as it shall be, if all is well with it.
    pub(super) fn changed(
        &self,
        overlay: Overlay,
        touched: Touched,
    ) -> Result<Changed, ConfigErrors> {
        let container = match &touched {
            Touched::Container(name) => Some(name),
            Touched::Network(_) | Touched::Uplink(_) | Touched::Routes => None,
        };
        let config = self.config_for(&overlay, container)?;
        Ok(Changed {
            overlay,
            config: Some(config),
            touched,
            withdrawal: None,
            range: None,
        })
    }

    /// The overlay without what a request takes away.
    fn withdrawn(
        &self,
        overlay: &Overlay,
        withdrawal: Withdrawal,
        touched: Touched,
    ) -> Result<Changed, ConfigErrors> {
        let mut new = overlay.clone();
        new.withdraw(&withdrawal);
        self.taken_away(overlay, new, withdrawal, touched)
    }

    /// `new` in the place of `overlay`, which may well be the same: what a request takes away may be
    /// set aside, or nowhere.
    fn taken_away(
        &self,
        overlay: &Overlay,
        new: Overlay,
        withdrawal: Withdrawal,
        touched: Touched,
    ) -> Result<Changed, ConfigErrors> {
        let changed = match new == *overlay {
            true => unchanged(overlay, touched),
            false => self.changed(new, touched)?,
        };
        Ok(Changed {
            withdrawal: Some(withdrawal),
            ..changed
        })
    }

    /// Uplinks, networks, and nothing that could be in the way.
    pub(super) fn uplinks_alone(&self, report: &Report<'_>, overlay: &Overlay) -> Entries {
        let mut uplinks = self.entries.uplinks.clone();
        add_addresses(report, overlay, &mut uplinks);
        Entries {
            relay: self.entries.relay.clone(),
            control: self.entries.control.clone(),
            uplinks,
            all_uplinks: true,
            routes: Vec::new(),
            networks: self.networks(report, overlay),
            all_networks: true,
            containers: Vec::new(),
            nos: Vec::new(),
            channel: self.entries.channel,
            pool: Vec::new(),
            newest: None,
            place: self.entries.place,
        }
    }

    /// What an entry says, if it were the only one of its kind: `put` is what adds it, `take` what of the
    /// configuration it became.
    fn alone<T>(
        &self,
        overlay: &Overlay,
        put: impl FnOnce(&mut Entries),
        take: impl FnOnce(Config) -> Option<T>,
    ) -> Result<T, ConfigErrors> {
        let report = self.report();
        let mut entries = self.uplinks_alone(&report, overlay);
        put(&mut entries);
        let entry = take(check::config(&report, entries));
        report.finish(entry)
    }

    /// An entry that was registered with these keys, read again. `request` is what errors call it.
    fn registered<T>(
        &self,
        (request, key): (&'static str, &'static str),
        keys: &Keys,
        entry: fn(Section<'_>) -> Option<T>,
    ) -> Option<T> {
        let report = self.report();
        let keys = Keys::default().with(key, keys.clone());
        read(&report, &keys, request, |root| entry(root.table(key)?))
    }

    pub(super) fn of_the_file(&self, report: &Report<'_>, place: Place, what: &str, file: Place) {
        let spot = report.spot(file);
        let reason =
            format!("{what} is in the configuration ({spot}); take it out of the file and reload");
        report.error(place, reason);
    }
}

/// What is asked for is so already.
fn unchanged(overlay: &Overlay, touched: Touched) -> Changed {
    Changed {
        overlay: overlay.clone(),
        config: None,
        touched,
        withdrawal: None,
        range: None,
    }
}

/// Reads the keys of a request, which errors call `name`. What is wrong is reported.
fn read<T>(
    report: &Report<'_>,
    keys: &Keys,
    name: &'static str,
    read: impl FnOnce(&mut Section<'_>) -> Option<T>,
) -> Option<T> {
    let text = keys.text();
    let base = report.offsets(text.len());
    let document = document::parse(report, &text)?;
    let mut root = Section::added(report, &document, base, name);
    let value = read(&mut root);
    if root.finish() { value } else { None }
}
