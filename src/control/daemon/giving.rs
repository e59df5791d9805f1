//! What the daemon hands over to the next process: over the control socket, and by the service
//! manager's store ([`crate::control::handover`]).
//!
//! From the offer on nothing is changed: what happens is looked at afterwards, by whoever goes on.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use mio::net::UnixStream;
use nix::unistd::geteuid;
use nos_shim::flows::{EchoFlow, FlowState, Opener, Phase};
use nos_shim::ident::{Interface, UplinkId};
use nos_shim::ports::Transport;
use nos_shim::vlan::VlanId;
use tracing::{error, info, warn};

use crate::control::api::{Asked, Offer, Refusal, RefusalCode, Response, Server};
use crate::control::config::{Name, Overlay};
use crate::control::handover::{
    ContainerFacts, Descriptor, EchoFacts, FORMAT, FlowFacts, Manifest, Memory, NeighborFacts,
    Offered, PREPARE_LIMIT, Place, READY_LIMIT, Store, UplinkFacts, VethFacts, offer, read_signal,
    send_go, send_stopped,
};
use crate::control::plan::ContainerLink;
use crate::control::pools::StoredPool;
use crate::data::device::{DeviceFacts, DeviceKind};
use crate::data::event_loop::{DeviceReport, Mode, Stopped};

use super::leases::Processes;
use super::live::LiveLink;
use super::registry::Registry;
use super::{Daemon, HANDOVER};

/// The socket that keeps the kernel from interfaces.
const KEEPER: Descriptor = Descriptor(1);
/// The control socket, and its lock.
const CONTROL: [Descriptor; 2] = [Descriptor(2), Descriptor(3)];
/// Devices have greater numbers.
pub(super) const FIRST_DEVICE: Descriptor = Descriptor(16);

/// How long what was received may take to be sent: it takes microseconds.
const DRAIN_LIMIT: Duration = Duration::from_millis(500);

/// How often the service manager is told what is remembered, if that has changed.
const MEMORY_INTERVAL: Duration = Duration::from_secs(10);

/// What the service manager keeps.
#[derive(Debug)]
pub(super) struct Keeping {
    store: Store,
    /// The devices that it was told of last.
    devices: Vec<Descriptor>,
    /// What was registered then.
    registered: Overlay,
    /// The revision of the pools then.
    pools: u64,
    /// When it is told again.
    at: Instant,
}

impl Keeping {
    pub(super) fn of(store: Store) -> Self {
        Self {
            store,
            devices: Vec::new(),
            registered: Overlay::default(),
            pools: 0,
            at: Instant::now(),
        }
    }

    /// Devices are about to be closed.
    pub(super) fn forget(&mut self, descriptors: &[Descriptor]) {
        self.store.forget(descriptors);
    }

    /// Nothing is to outlive us.
    pub(super) fn clear(&mut self) {
        self.store.clear();
    }
}

/// A conversation with the next process.
#[derive(Debug)]
pub(super) struct Giving {
    stream: UnixStream,
    /// When nobody waits for the next process any more.
    pub(super) deadline: Instant,
    /// Nothing is read any more.
    stopped: bool,
}

impl Daemon {
    /// Offers everything to the process that asks, or says why not.
    pub(super) fn offer(&mut self, asked: &Asked, format: u32, server: &mut Server) {
        let (pid, uid) = (asked.peer.pid, asked.peer.uid);
        let (manifest, descriptors) = match self.offered(uid, format, server) {
            Ok(offered) => offered,
            Err(refusal) => {
                warn!(pid, uid, "not handed over: {refusal}");
                let now = self.live.plane.now();
                return server.respond(asked.connection, &Response::Refused(refusal), now);
            }
        };
        let response = Response::HandingOver(Offer {
            program: manifest.program.clone(),
            descriptors: u32::try_from(descriptors.len()).unwrap_or(u32::MAX),
        });
        let stream = server.release(asked.connection, &response, HANDOVER);
        let offered = Offered {
            manifest: &manifest,
            descriptors: descriptors.iter().map(AsFd::as_fd).collect(),
        };
        match stream.and_then(|stream| offer(&stream, &offered).map(|()| stream)) {
            Ok(stream) => {
                info!(pid, devices = descriptors.len(), "handing over");
                self.giving = Some(Giving {
                    stream,
                    deadline: Instant::now() + PREPARE_LIMIT,
                    stopped: false,
                });
            }
            // Nothing has begun: it hears so by the end of the connection.
            Err(error) => warn!(pid, %error, "cannot hand over"),
        }
    }

    /// What a process of this user gets.
    fn offered(
        &self,
        user: u32,
        format: u32,
        server: &Server,
    ) -> Result<(Manifest, Vec<OwnedFd>), Refusal> {
        let refused = |code, why: String| Err(Refusal::new(code, why));
        let uid = geteuid().as_raw();
        if user != uid {
            let why = format!("only user {uid} may take over, not user {user}");
            return refused(RefusalCode::Refused, why);
        }
        if format != FORMAT {
            let why = format!(
                "the running nos-relay hands over in format {FORMAT}, this program takes format \
                 {format}"
            );
            return refused(RefusalCode::Version, why);
        }
        if self.giving.is_some() {
            let why = "another process is taking over; try again later";
            return refused(RefusalCode::Busy, why.to_owned());
        }
        let unavailable = |error: &dyn std::fmt::Display| {
            Refusal::new(RefusalCode::Unavailable, error.to_string())
        };
        let mut manifest = self.manifest().map_err(|error| unavailable(&error))?;
        manifest.control = Some(CONTROL);
        manifest.descriptors.extend(CONTROL);
        let descriptors = self.open_all(&manifest, server);
        let descriptors = descriptors.map_err(|error| unavailable(&error))?;
        Ok((manifest, descriptors))
    }

    /// Goes on with the conversation. Returns whether the next process has everything.
    pub(super) fn advance_giving(&mut self) -> bool {
        loop {
            let Some(giving) = &mut self.giving else {
                return false;
            };
            let late = Instant::now() >= giving.deadline;
            let stopped = giving.stopped;
            let step = match read_signal(&mut giving.stream, stopped) {
                Ok(None) if late => Err(io::ErrorKind::TimedOut.into()),
                Ok(None) => return false,
                Ok(Some(())) if stopped => match send_go(&giving.stream) {
                    Ok(()) => return true,
                    Err(error) => Err(error),
                },
                Ok(Some(())) => self.stop_reading(),
                Err(error) => Err(error),
            };
            if let Err(error) = step {
                self.keep_everything(&error);
            }
        }
    }

    /// Stops reading, and tells the next process.
    fn stop_reading(&mut self) -> io::Result<()> {
        let drained = self.live.plane.drain(DRAIN_LIMIT);
        if !drained.map_err(io::Error::other)? {
            warn!("not all that was received could be sent in time");
        }
        let memory = self.memory().map_err(io::Error::other)?;
        let Some(giving) = &mut self.giving else {
            return Ok(());
        };
        (giving.stopped, giving.deadline) = (true, Instant::now() + READY_LIMIT);
        send_stopped(&giving.stream, &memory)
    }

    /// Goes on, as the next process cannot.
    fn keep_everything(&mut self, why: &io::Error) {
        warn!(%why, "the next process does not take over; going on");
        self.end_giving();
        self.reconciler.look_at_all(Instant::now());
        self.reconciler.release_uplinks(Instant::now());
        self.reconcile();
    }

    /// Ends the conversation, if there is one, and forwards again.
    pub(super) fn end_giving(&mut self) {
        if self.giving.take().is_some()
            && let Err(Stopped) = self.live.plane.set_mode(Mode::Running)
        {
            error!("a data thread has stopped");
        }
    }

    /// Everything that is in place, in words for the next process.
    pub(super) fn manifest(&self) -> Result<Manifest, Stopped> {
        let reports = self.live.plane.devices()?.into_iter();
        let reports: HashMap<_, _> = reports.map(|report| (report.interface, report)).collect();
        let containers: Vec<_> = self.container_facts(&reports).collect();
        let uplinks: Vec<_> = self.uplink_facts(&reports).collect();
        let keeper = self.live.host.is_keeping().then_some(KEEPER);
        let of_containers = containers.iter().map(|container| container.descriptor);
        let of_uplinks = uplinks.iter().map(|uplink| uplink.descriptor);
        let descriptors = keeper.into_iter().chain(of_containers).chain(of_uplinks);
        Ok(Manifest {
            format: FORMAT,
            program: env!("CARGO_PKG_VERSION").to_owned(),
            host: self.live.host.namespace().id(),
            file: self.registry.file.name().to_owned(),
            text: self.registry.file.text().to_owned(),
            overlay: handed(&self.registry.overlay),
            pools: self.handed_pools(),
            keeper,
            control: None,
            descriptors: descriptors.collect(),
            containers,
            uplinks,
            memory: self.memory()?,
        })
    }

    /// Pools of addresses as they would be stored, where no store has them for the next process.
    fn handed_pools(&self) -> Vec<(String, String)> {
        if self.registry.is_stored_anywhere() {
            return Vec::new();
        }
        let entries = self.registry.pools.entries().into_iter();
        let texts = entries.filter_map(|StoredPool { name, json }| {
            let json = String::from_utf8(json?).ok()?;
            Some((name, json))
        });
        texts.collect()
    }

    fn container_facts<'a>(
        &'a self,
        reports: &'a HashMap<Interface, DeviceReport>,
    ) -> impl Iterator<Item = ContainerFacts> + 'a {
        self.live.containers.iter().filter_map(|(name, container)| {
            let live = container.link.as_ref()?;
            let link = self.reconciler.state.links.get(name)?;
            let report = reports.get(&Interface::Attachment(container.id))?;
            Some(container_facts(name, link, live, report))
        })
    }

    fn uplink_facts<'a>(
        &'a self,
        reports: &'a HashMap<Interface, DeviceReport>,
    ) -> impl Iterator<Item = UplinkFacts> + 'a {
        self.live.uplinks.iter().filter_map(|(name, uplink)| {
            let live = uplink.device.as_ref()?;
            let report = reports.get(&Interface::Uplink(uplink.id))?;
            // Shared memory is agreed on anew.
            if report.kind == DeviceKind::Memif {
                return None;
            }
            let index = live.facts.index;
            Some(UplinkFacts {
                name: name.to_string(),
                index,
                taken: live.takeover.is_some(),
                descriptor: live.descriptor,
                device: DeviceFacts {
                    vlan: live.vlan.map(VlanId::get),
                    long_frames: live.long_frames,
                    ..device_facts(report, &live.facts.name, index)
                },
            })
        })
    }

    /// What changes from packet to packet, and has to be known to go on.
    fn memory(&self) -> Result<Memory, Stopped> {
        Ok(Memory {
            neighbors: self.known_neighbors()?,
            flows: self.known_flows()?,
            echoes: self.known_echoes()?,
        })
    }

    /// Echo requests that wait for replies.
    fn known_echoes(&self) -> Result<Vec<EchoFacts>, Stopped> {
        let flows = self.live.plane.echo_flows()?.into_iter();
        let known = flows.map(|EchoFlow { owner, key, id }| EchoFacts {
            owner: owner.to_string(),
            vrf: key.vrf.0,
            local: key.local,
            remote: key.remote,
            wire_id: key.id,
            id,
        });
        Ok(known.collect())
    }

    /// Flows that ports cannot decide.
    fn known_flows(&self) -> Result<Vec<FlowFacts>, Stopped> {
        let flows = self.live.plane.flows()?.into_iter();
        let known = flows.map(|(owner, flow)| FlowFacts {
            owner: owner.to_string(),
            vrf: flow.key.vrf.0,
            udp: flow.key.transport == Transport::Udp,
            local: (flow.key.local, flow.key.local_port).into(),
            remote: (flow.key.remote, flow.key.remote_port).into(),
            by_peer: flow.opener == Opener::Peer,
            learnt: flow.learnt,
            confirmed: matches!(
                flow.state,
                FlowState::Replied | FlowState::Tcp(Phase::Established)
            ),
        });
        Ok(known.collect())
    }

    /// Neighbors whose MAC addresses are known.
    fn known_neighbors(&self) -> Result<Vec<NeighborFacts>, Stopped> {
        let names: HashMap<UplinkId, &Name> = self
            .live
            .uplinks
            .iter()
            .map(|(name, uplink)| (uplink.id, name))
            .collect();
        let known = self.live.plane.neighbors()?;
        let known = known.into_iter().filter_map(|(uplink, status)| {
            Some(NeighborFacts {
                uplink: names.get(&uplink)?.to_string(),
                address: status.address,
                mac: status.mac?,
            })
        });
        let mut known: Vec<_> = known.collect();
        known.sort_unstable();
        Ok(known)
    }

    /// The descriptors that a manifest names, in its order.
    fn open_all(&self, manifest: &Manifest, server: &Server) -> io::Result<Vec<OwnedFd>> {
        let mut control = CONTROL
            .into_iter()
            .zip(server.duplicate()?)
            .collect::<HashMap<_, _>>();
        let open = |descriptor: &Descriptor| match control.remove(descriptor) {
            Some(open) => Ok(open),
            // It has gone this moment; so nothing is handed over.
            None => self
                .open(*descriptor)?
                .ok_or(io::ErrorKind::NotFound.into()),
        };
        manifest.descriptors.iter().map(open).collect()
    }

    /// A descriptor of the devices, or of what keeps the kernel from interfaces.
    fn open(&self, descriptor: Descriptor) -> io::Result<Option<OwnedFd>> {
        if descriptor == KEEPER {
            return self.live.host.keeper();
        }
        let of_containers = self.live.containers.values();
        let links = of_containers.filter_map(|container| container.link.as_ref());
        let of_links = links.map(|link| (link.descriptor, &link.inspector));
        let devices = self.live.uplinks.values();
        let devices = devices.filter_map(|uplink| uplink.device.as_ref());
        let mut all = of_links.chain(devices.map(|it| (it.descriptor, &it.inspector)));
        match all.find(|(number, _)| *number == descriptor) {
            Some((_, inspector)) => inspector.duplicate(),
            None => Ok(None),
        }
    }

    /// Has the service manager keep what there is, if anything is other than before.
    pub(super) fn keep(&mut self) {
        if !self.live.keeping.store.is_open() || self.giving.is_some() {
            return;
        }
        let (devices, registered) = (self.descriptors(), &self.registry.overlay);
        let pools = self.registry.pools.revision();
        let keeping = &self.live.keeping;
        let others = devices != keeping.devices
            || *registered != keeping.registered
            || pools != keeping.pools;
        if others || self.keep_in().is_some_and(|left| left.is_zero()) {
            self.live.keeping.registered = registered.clone();
            self.live.keeping.pools = pools;
            self.live.keeping.devices = devices;
            self.store();
        }
    }

    /// Another file is followed.
    pub(super) fn keep_at_once(&mut self) {
        self.live.keeping.at = Instant::now();
    }

    /// Has the service manager keep what there is now.
    pub(super) fn store(&mut self) {
        if !self.live.keeping.store.is_open() {
            return;
        }
        self.live.keeping.at = Instant::now() + MEMORY_INTERVAL;
        match self.manifest() {
            Ok(manifest) => {
                let mut store = std::mem::take(&mut self.live.keeping.store);
                store.keep(&manifest, |descriptor| self.open(descriptor));
                self.live.keeping.store = store;
            }
            Err(Stopped) => error!("a data thread has stopped"),
        }
    }

    /// In how long the service manager is told again.
    pub(super) fn keep_in(&self) -> Option<Duration> {
        let is_open = self.live.keeping.store.is_open();
        is_open.then(|| {
            self.live
                .keeping
                .at
                .saturating_duration_since(Instant::now())
        })
    }

    /// The numbers of all devices.
    fn descriptors(&self) -> Vec<Descriptor> {
        let of_containers = self.live.containers.values();
        let links = of_containers.filter_map(|container| container.link.as_ref());
        let devices = self.live.uplinks.values();
        let devices = devices.filter_map(|uplink| uplink.device.as_ref());
        let links = links.map(|link| link.descriptor);
        links.chain(devices.map(|it| it.descriptor)).collect()
    }

    /// Receives nothing any more, and sends what it has.
    pub(super) fn drain(&self) {
        match self.live.plane.drain(DRAIN_LIMIT) {
            Ok(true) => {}
            Ok(false) => warn!("not all that was received could be sent in time"),
            Err(Stopped) => error!("a data thread has stopped"),
        }
    }

    /// Ends, and leaves everything in place for the next process.
    pub(super) fn leave(mut self) {
        let entities: Vec<_> = self.live.captures.keys().cloned().collect();
        self.live.end_captures(&entities.iter().collect::<Vec<_>>());
        let Self {
            live,
            registry,
            giving,
            ..
        } = self;
        live.leave();
        drop(registry);
        // Last: by this the next process hears that all is free, the state directory too.
        drop(giving);
    }

    /// Leaves in place what could not be taken up whole, for a new beginning without it.
    pub(super) fn abandon(self) -> (Keeping, Registry, Processes) {
        let Self {
            mut live,
            registry,
            processes,
            ..
        } = self;
        let mut keeping = std::mem::replace(&mut live.keeping, Keeping::of(Store::default()));
        keeping.clear();
        live.leave();
        (keeping, registry, processes)
    }
}

/// What was registered at run time, as its records say it.
fn handed(overlay: &Overlay) -> Vec<(String, String)> {
    let records = overlay.records_since(&Overlay::default()).into_iter();
    let texts = records.filter_map(|record| {
        let json = String::from_utf8(record.json?).ok()?;
        Some((record.name, json))
    });
    texts.collect()
}

fn container_facts(
    name: &Name,
    link: &ContainerLink,
    live: &LiveLink,
    report: &DeviceReport,
) -> ContainerFacts {
    let veth = live.veth.as_ref().map(|veth| VethFacts {
        interface: veth.host_interface().to_owned(),
        index: veth.host_index(),
        borrowed: veth.is_borrowed(),
        taken: veth.is_taken(),
    });
    let (interface, index) = match &veth {
        Some(veth) => (veth.interface.as_str(), veth.index),
        None => (link.interface.as_str(), 0),
    };
    ContainerFacts {
        name: name.to_string(),
        netns: Place::from(&link.netns),
        namespace: link.namespace,
        interface: link.interface.as_str().to_owned(),
        mac: link.mac,
        offload: link.offload,
        side: live.side.facts(),
        descriptor: live.descriptor,
        device: device_facts(report, interface, index),
        veth,
    }
}

fn device_facts(report: &DeviceReport, name: &str, index: u32) -> DeviceFacts {
    DeviceFacts {
        kind: report.kind,
        name: name.to_owned(),
        capabilities: report.capabilities.bits(),
        long_frames: false,
        index,
        vlan: None,
    }
}
