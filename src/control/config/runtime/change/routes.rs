//! Static routes that come and go at run time.

use crate::control::config::entries::{self, Entries, RouteEntry};
use crate::control::config::runtime::route_name;
use crate::control::config::vrf::in_vrf;
use crate::control::config::{ConfigErrors, Route, VrfName, values};

use super::{
    Changed, ConfigFile, Holders, Keys, Overlay, Touched, Withdrawal, holder, read, unchanged,
};

impl ConfigFile {
    pub(super) fn add_route(
        &self,
        overlay: &Overlay,
        keys: &Keys,
        holders: &Holders,
    ) -> Result<Changed, ConfigErrors> {
        let report = self.report();
        let request = read(&report, keys, "route-add", |root| {
            root.require("route", "{\"prefix\":\"0.0.0.0/0\",...}");
            let holder = holder::read(root, holders, false);
            let entry = entries::route(root.table("route")?);
            Some((entry?, holder?))
        });
        let (entry, holder) = report.finish(request)?;
        let name = route_name(&entry);
        let shall = self.route_alone(overlay, entry)?;
        let current = self.config(overlay)?;
        let mut known = current.routes.iter();
        let held = overlay.route(&name).is_none_or(|it| it.holder == holder);
        if held && known.any(|route| *route == shall) {
            return Ok(unchanged(overlay, Touched::Routes));
        }
        let mut new = overlay.clone();
        let entry = new.entry(keys.table("route").unwrap_or_default(), holder);
        new.routes.push((name, entry));
        self.changed(new, Touched::Routes)
    }

    fn route_alone(&self, overlay: &Overlay, entry: RouteEntry) -> Result<Route, ConfigErrors> {
        let put = |entries: &mut Entries| entries.routes.push(entry);
        self.alone(overlay, put, |mut config| config.routes.pop())
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
            let vrf = root.optional("vrf", values::vrf);
            let vrf = vrf.map_or(VrfName::Default, |at| at.value);
            let (prefix, metric) = (prefix?, metric.map_or(0, |at| at.value));
            Some(((vrf, prefix.value, metric), prefix.place))
        });
        if let Some((name, place)) = &named
            && let Some(file) = self.route(name)
        {
            let (vrf, prefix, metric) = name;
            let vrf = in_vrf(vrf);
            let what = format!("the route to {prefix} with metric {metric}{vrf}");
            self.of_the_file(&report, *place, &what, file);
        }
        let (name, _) = report.finish(named)?;
        self.withdrawn(overlay, Withdrawal::Route(name), Touched::Routes)
    }
}
