//! Static routes that come and go at run time.

use crate::control::config::entries::{self, RouteEntry};
use crate::control::config::runtime::RouteName;
use crate::control::config::{ConfigErrors, Route, check, values};

use super::{Changed, ConfigFile, Keys, Overlay, Touched, read, unchanged};

impl ConfigFile {
    pub(super) fn add_route(
        &self,
        overlay: &Overlay,
        keys: &Keys,
    ) -> Result<Changed, ConfigErrors> {
        let report = self.report();
        let entry = read(&report, keys, "route-add", |root| {
            root.require("route", "{\"prefix\":\"0.0.0.0/0\",...}");
            entries::route(root.table("route")?)
        });
        let entry = report.finish(entry)?;
        let name = (entry.prefix.value, entry.metric);
        let shall = self.route_alone(overlay, entry)?;
        let current = self.config(overlay)?;
        let mut known = current.routes.iter();
        if known.any(|route| *route == shall) {
            return Ok(unchanged(overlay, Touched::Routes));
        }
        let mut new = overlay.clone();
        new.routes
            .push((name, keys.table("route").unwrap_or_default()));
        self.changed(new, Touched::Routes)
    }

    fn route_alone(&self, overlay: &Overlay, entry: RouteEntry) -> Result<Route, ConfigErrors> {
        let report = self.report();
        let mut entries = self.uplinks_alone(&report, overlay);
        entries.routes.push(entry);
        let route = check::config(&report, entries).routes.pop();
        report.finish(route)
    }

    pub(super) fn remove_route(
        &self,
        overlay: &Overlay,
        keys: &Keys,
    ) -> Result<Changed, ConfigErrors> {
        let report = self.report();
        let named = read(&report, keys, "route-remove", |root| {
            let prefix = root.required("prefix", "\"0.0.0.0/0\"", values::prefix);
            let metric = root.optional("metric", values::metric);
            Some((prefix?, metric.map_or(0, |at| at.value)))
        });
        if let Some((prefix, metric)) = &named
            && let Some(file) = self.route((prefix.value, *metric))
        {
            let what = format!("the route to {} with metric {metric}", prefix.value);
            self.of_the_file(&report, prefix.place, &what, file);
        }
        let (prefix, metric) = report.finish(named)?;
        let name: RouteName = (prefix.value, metric);
        if !overlay.has_route(name.0, name.1) {
            return Ok(unchanged(overlay, Touched::Routes));
        }
        let mut new = overlay.clone();
        new.routes.retain(|(known, _)| *known != name);
        self.changed(new, Touched::Routes)
    }
}
