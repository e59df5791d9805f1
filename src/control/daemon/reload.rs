//! Following the configuration file: only what differs is touched.

use nos_shim::fib::{Action, NextHop, NextHops, Route as FibRoute, Source};
use nos_shim::services::{Service as LocalService, ServiceConfig};
use sd_notify::NotifyState;
use tracing::{error, info, warn};

use crate::control::config::{
    Changed, Changes, Config, Container, ContainerAspects, Nos, Route, RouteAction, Service,
    Uplink, UplinkAspects,
};

use crate::data::relay::AttachmentConfig;

use super::container::AttachedContainer;
use super::uplink::OpenUplink;
use super::{Daemon, DaemonError};

impl Daemon {
    /// Reads the configuration again and follows it. A bad file changes nothing.
    pub(super) fn reload(&mut self) {
        let _ = NotifyState::monotonic_usec_now()
            .and_then(|now| sd_notify::notify(&[NotifyState::Reloading, now]));
        match Config::load(&self.config_path) {
            Ok(config) => self.follow(&config),
            Err(errors) => error!("the configuration stays as it was:\n{errors}"),
        }
        let _ = sd_notify::notify(&[NotifyState::Ready]);
    }

    fn follow(&mut self, new: &Config) {
        let old = self.running();
        let changes = Config::diff(&old, new);
        for setting in &changes.restart {
            warn!(
                key = setting.key,
                old = setting.old,
                new = setting.new,
                "takes effect at the next start"
            );
        }
        // Containers use addresses of uplinks; ports and devices are let go before others take them.
        self.remove(&changes);
        self.change_uplinks(&changes);
        self.add_uplinks(&changes);
        self.release(&changes, new);
        self.change_containers(&changes);
        self.repair_containers();
        report(self.set_routes(new.routes.clone()));
        report(self.set_services(new.nos.clone()));
        self.add_containers(&changes);
        info!("configuration reloaded");
    }

    /// What runs now, as a configuration: without the entries whose device has gone.
    fn running(&self) -> Config {
        let uplinks = self.uplinks.iter().filter(|uplink| !uplink.gone);
        let containers = self.containers.iter().filter(|container| !container.gone);
        Config {
            relay: self.settings.clone(),
            uplinks: uplinks.map(|uplink| uplink.config.clone()).collect(),
            routes: self.routes.clone(),
            containers: containers
                .map(|container| container.config.clone())
                .collect(),
            nos: self.nos.clone(),
        }
    }

    fn remove(&mut self, changes: &Changes<'_>) {
        let anew = |aspects: ContainerAspects| {
            aspects.intersects(ContainerAspects::DEVICE | ContainerAspects::CAPTURE)
        };
        let containers = &changes.containers;
        let replaced = containers
            .changed
            .iter()
            .filter(|changed| anew(changed.aspects));
        let old = replaced.map(|changed| changed.old);
        for config in containers.removed.iter().copied().chain(old) {
            self.detach_named(config);
        }
        self.detach_gone();
        let anew = |aspects: UplinkAspects| {
            aspects.intersects(UplinkAspects::DEVICE | UplinkAspects::CAPTURE)
        };
        let uplinks = &changes.uplinks;
        let replaced = uplinks
            .changed
            .iter()
            .filter(|changed| anew(changed.aspects));
        let old = replaced.map(|changed| changed.old);
        for config in uplinks.removed.iter().copied().chain(old) {
            self.close_named(config);
        }
        for at in (0..self.uplinks.len())
            .rev()
            .filter(|&at| self.uplinks[at].gone)
            .collect::<Vec<_>>()
        {
            self.uplinks.remove(at).close(&self.plane);
        }
    }

    fn change_uplinks(&mut self, changes: &Changes<'_>) {
        let kept = UplinkAspects::ADDRESSES | UplinkAspects::MTU;
        let changed = changes.uplinks.changed.iter();
        for changed in changed.filter(|changed| kept.contains(changed.aspects)) {
            report(self.change_uplink(changed.new));
        }
    }

    fn add_uplinks(&mut self, changes: &Changes<'_>) {
        let reopened = changes.uplinks.changed.iter().map(|changed| changed.new);
        for config in changes.uplinks.added.iter().copied().chain(reopened) {
            let mut open = self.uplinks.iter();
            if !open.any(|uplink| uplink.config.name == config.name) {
                report(self.open_uplink(config.clone()));
            }
        }
    }

    /// Gives up the ports that containers and services which stay have no more.
    fn release(&mut self, changes: &Changes<'_>, new: &Config) {
        let ports = ContainerAspects::PORTS | ContainerAspects::EPHEMERAL;
        for changed in kept_containers(changes) {
            if changed.aspects.intersects(ports) {
                report(self.release_ports(changed.old, changed.new));
            }
        }
        let mut fewer = self.nos.clone();
        fewer
            .services
            .retain(|service| new.nos.services.contains(service));
        if fewer != self.nos {
            report(self.set_services(fewer));
        }
    }

    fn change_containers(&mut self, changes: &Changes<'_>) {
        for changed in kept_containers(changes) {
            report(self.change_container(changed.new));
        }
    }

    /// Puts back what somebody took away inside, such as the routes that go when an interface is
    /// set down.
    fn repair_containers(&mut self) {
        for container in &mut self.containers {
            let config = container.config.clone();
            report(container.update(config));
        }
    }

    fn add_containers(&mut self, changes: &Changes<'_>) {
        let again = changes.containers.changed.iter().map(|changed| changed.new);
        for config in changes.containers.added.iter().copied().chain(again) {
            let mut attached = self.containers.iter();
            if !attached.any(|container| container.config.name == config.name) {
                report(self.attach(config.clone()));
            }
        }
    }

    fn detach_named(&mut self, config: &Container) {
        let at = self
            .containers
            .iter()
            .position(|container| container.config.name == config.name);
        if let Some(at) = at {
            let container = self.containers.remove(at);
            self.detach(container);
        }
    }

    fn detach_gone(&mut self) {
        let (gone, stay) = std::mem::take(&mut self.containers)
            .into_iter()
            .partition(|container| container.gone);
        self.containers = stay;
        let gone: Vec<AttachedContainer> = gone;
        for container in gone {
            self.detach(container);
        }
    }

    fn close_named(&mut self, config: &Uplink) {
        let at = self
            .uplinks
            .iter()
            .position(|uplink| uplink.config.name == config.name);
        if let Some(at) = at {
            self.uplinks.remove(at).close(&self.plane);
        }
    }

    fn change_uplink(&mut self, new: &Uplink) -> Result<(), DaemonError> {
        let uplink = self
            .uplinks
            .iter_mut()
            .find(|uplink| uplink.config.name == new.name);
        let Some(uplink) = uplink else { return Ok(()) };
        uplink.config = new.clone();
        uplink.publish(&self.plane)?;
        info!(uplink = %new.name, "changed");
        Ok(())
    }

    fn release_ports(&mut self, old: &Container, new: &Container) -> Result<(), DaemonError> {
        let named = self
            .containers
            .iter()
            .find(|container| container.config.name == old.name);
        let Some(id) = named.map(|container| container.id) else {
            return Ok(());
        };
        // What it has before and after, it keeps all the time: its flows live on.
        let mut keep = super::container::attachment(id, old);
        let wanted = super::container::attachment(id, new);
        keep.claims.retain(|claim| wanted.claims.contains(claim));
        self.update_registration(keep, old)
    }

    fn change_container(&mut self, new: &Container) -> Result<(), DaemonError> {
        let at = self
            .containers
            .iter()
            .position(|container| container.config.name == new.name);
        let Some(at) = at else { return Ok(()) };
        let id = self.containers[at].id;
        self.update_registration(super::container::attachment(id, new), new)?;
        self.containers[at].update(new.clone())?;
        info!(container = %new.name, "changed");
        Ok(())
    }

    /// Changes what a container has registered, and waits for the NOS's answer.
    fn update_registration(
        &mut self,
        config: AttachmentConfig,
        of: &Container,
    ) -> Result<(), DaemonError> {
        let sent = self.plane.on_relay(move |relay| relay.update(config))?;
        let request = sent.map_err(|error| DaemonError::container(of, error))?;
        self.await_registration(request, of)
    }

    pub(super) fn set_routes(&mut self, routes: Vec<Route>) -> Result<(), DaemonError> {
        let uplinks = &self.uplinks;
        let converted: Result<Vec<_>, _> = routes
            .iter()
            .map(|route| fib_route(route, uplinks))
            .collect();
        let converted = converted?;
        let set = self.plane.on_nos(move |nos| nos.set_routes(converted))?;
        set.map_err(|error| DaemonError::Routes(error.to_string()))?;
        self.routes = routes;
        Ok(())
    }

    pub(super) fn set_services(&mut self, nos: Nos) -> Result<(), DaemonError> {
        let wanted = ServiceConfig {
            ping: nos.ping,
            services: nos
                .services
                .iter()
                .map(|service| local_service(*service))
                .collect(),
        };
        let set = self.plane.on_nos(move |nos| nos.set_services(&wanted))?;
        set.map_err(|error| DaemonError::Services(error.to_string()))?;
        self.nos = nos;
        Ok(())
    }
}

/// Containers that differ but keep their device.
fn kept_containers<'a>(
    changes: &'a Changes<'a>,
) -> impl Iterator<Item = &'a Changed<'a, Container, ContainerAspects>> {
    let device = ContainerAspects::DEVICE | ContainerAspects::CAPTURE;
    let changed = changes.containers.changed.iter();
    changed.filter(move |changed| !changed.aspects.intersects(device))
}

fn fib_route(route: &Route, uplinks: &[OpenUplink]) -> Result<FibRoute, DaemonError> {
    let action = match &route.action {
        RouteAction::Blackhole => Action::Blackhole,
        RouteAction::Unreachable => Action::Unreachable,
        RouteAction::Via(hops) => {
            let hops: Result<Vec<_>, _> = hops.iter().map(|hop| next_hop(hop, uplinks)).collect();
            let hops = NextHops::new(hops?);
            Action::Via(
                hops.map_err(|error| DaemonError::Routes(format!("{}: {error}", route.prefix)))?,
            )
        }
    };
    let source = Source::Static {
        metric: route.metric,
    };
    Ok(FibRoute {
        vrf: route.vrf,
        prefix: route.prefix,
        source,
        action,
    })
}

fn next_hop(
    hop: &crate::control::config::NextHop,
    uplinks: &[OpenUplink],
) -> Result<NextHop, DaemonError> {
    let uplink = uplinks
        .iter()
        .find(|uplink| uplink.config.name == hop.uplink);
    let uplink = uplink.ok_or_else(|| {
        DaemonError::Routes(format!(
            "next hop {}: uplink '{}' is not open",
            hop.address, hop.uplink
        ))
    })?;
    Ok(NextHop {
        gateway: hop.address,
        uplink: uplink.id,
    })
}

fn local_service(service: Service) -> LocalService {
    match service {
        Service::Echo => LocalService::Echo,
        Service::Discard => LocalService::Discard,
        Service::Http(port) => LocalService::Http(port),
    }
}

fn report(result: Result<(), DaemonError>) {
    if let Err(error) = result {
        error!(%error, "a part of the new configuration does not work");
    }
}
