//! Steps of the NOS itself: its services, and static routes.

use nos_shim::channel::Configuration;
use nos_shim::fib::{Action, NextHop, NextHops, Route as FibRoute, Source};
use nos_shim::ident::{UplinkId, VrfId};

use crate::control::config::{Name, Route, RouteAction, ServiceConfig, VrfName};

use super::live::{Live, StepError};
use super::routes::CHANGES;

impl Live {
    /// Installs static routes, in place of those before, some at a time.
    pub(super) fn set_routes(&mut self, routes: &[Route]) -> Result<(), StepError> {
        let of_uplink = |name: &Name| self.uplinks.get(name).map(|uplink| uplink.id);
        let routes: Result<Vec<_>, _> = routes
            .iter()
            .map(|route| fib_route(route, self.vrfs.id(&route.vrf)?, of_uplink))
            .collect();
        let routes = routes?;
        // Until all went well.
        if std::mem::replace(&mut self.routes_lost, true) {
            self.told_routes.doubt();
        }
        for changes in self.told_routes.difference(routes).chunks(CHANGES) {
            let changes = changes.to_vec();
            let asked = changes.clone();
            let changed = self.plane.configure(Configuration::Routes(asked))?;
            self.told_routes.note(changes, changed.is_ok());
            changed.map_err(StepError::new)?;
        }
        self.routes_lost = false;
        Ok(())
    }

    pub(super) fn set_services(
        &mut self,
        vrf: &VrfName,
        wanted: &ServiceConfig,
    ) -> Result<(), StepError> {
        let (vrf, config) = (self.vrfs.id(vrf)?, wanted.clone());
        let set = self.plane.configure(Configuration::Services(vrf, config))?;
        set.map_err(StepError::new)
    }
}

/// A static route as the FIB has it.
pub(super) fn fib_route(
    route: &Route,
    vrf: VrfId,
    uplink: impl Fn(&Name) -> Option<UplinkId>,
) -> Result<FibRoute, StepError> {
    let action = match &route.action {
        RouteAction::Blackhole => Action::Blackhole,
        RouteAction::Unreachable => Action::Unreachable,
        RouteAction::Via(hops) => {
            let hop = |hop: &crate::control::config::NextHop| {
                let missing = || {
                    StepError::new(format_args!(
                        "{}: next hop {}: the NOS has no uplink '{}'",
                        route.prefix, hop.address, hop.uplink
                    ))
                };
                Ok(NextHop {
                    gateway: hop.address,
                    uplink: uplink(&hop.uplink).ok_or_else(missing)?,
                })
            };
            let hops: Result<Vec<_>, StepError> = hops.iter().map(hop).collect();
            let hops = NextHops::new(hops?);
            let named = |error| StepError::new(format_args!("{}: {error}", route.prefix));
            Action::Via(hops.map_err(named)?)
        }
    };
    Ok(FibRoute {
        vrf,
        prefix: route.prefix,
        source: Source::Static {
            metric: route.metric,
        },
        action,
    })
}
