//! The result of `ADD`.

use std::path::Path;

use ipnet::IpNet;
use nos_relay::control::api::snapshot::Attachment;
use nos_relay::control::config::ContainerDevice;
use serde_json::{Map, Value, json};

use super::error::CniError;
use super::inside::Inside;
use super::version::Version;
use super::{Invocation, configuration::Configuration};
use crate::endpoint::Endpoint;

/// Destinations of default routes, of IPv4 and IPv6.
pub(super) const DEFAULT_ROUTES: [&str; 2] = ["0.0.0.0/0", "::/0"];

/// The result of the plugins before this one, to which ours is added.
#[derive(Debug)]
pub(super) struct Base {
    previous: Map<String, Value>,
    dns: Map<String, Value>,
    sandbox: String,
    /// The interface that a plugin before has made and the container keeps.
    existing: Option<usize>,
}

impl Base {
    pub(super) fn read(
        invocation: &Invocation,
        netns: &Path,
        device: Option<&ContainerDevice>,
    ) -> Result<Self, CniError> {
        let configuration: &Configuration = &invocation.configuration;
        let previous = configuration.previous()?.and_then(Value::as_object);
        let mut base = Self {
            previous: previous.cloned().unwrap_or_default(),
            dns: configuration.dns()?,
            sandbox: netns.display().to_string(),
            existing: None,
        };
        let ours = &invocation.environment.interface;
        base.existing = base.list("interfaces").iter().position(|interface| {
            interface["name"] == ours.as_str() && interface["sandbox"] == base.sandbox.as_str()
        });
        match (base.existing, device) {
            (Some(_), Some(ContainerDevice::Existing)) => Ok(base),
            (None, Some(ContainerDevice::Existing)) => Err(CniError::configuration(format!(
                "device: no plugin before this one has made {ours}, as \"existing\" says"
            ))),
            (None, _) => Ok(base),
            (Some(_), _) => Err(CniError::configuration(format!(
                "prevResult: a plugin before this one has made {ours} already; with device = \"existing\" the \
                 container keeps it"
            ))),
        }
    }

    fn list(&self, key: &str) -> &[Value] {
        let list = self.previous.get(key).and_then(Value::as_array);
        list.map(Vec::as_slice).unwrap_or_default()
    }

    /// The result, with what the daemon says of the container. `dns` is what an IPAM plugin says.
    pub(super) fn with(
        &self,
        version: Version,
        endpoint: &Endpoint,
        attachment: &Attachment,
        inside: &Inside,
        dns: &Map<String, Value>,
    ) -> Value {
        let mut interfaces = self.list("interfaces").to_vec();
        let index = self.existing.unwrap_or_else(|| {
            interfaces.push(self.interface(version, endpoint, attachment));
            interfaces.len() - 1
        });
        let mut ips = self.list("ips").to_vec();
        let mut routes = self.list("routes").to_vec();
        // Its own first: engines take the first for the container's name among others.
        let on_link = attachment.link_addresses.iter().copied();
        let on_lo = attachment.addresses.iter().copied().map(IpNet::from);
        for net in on_link.chain(on_lo) {
            let family = if net.addr().is_ipv4() { "4" } else { "6" };
            let mut ip = json!({"address": net.to_string(), "interface": index});
            if version.marks_families() {
                ip["version"] = family.into();
            }
            ips.push(ip);
        }
        // Of several interfaces in a namespace one has them.
        for (default, leads_here) in DEFAULT_ROUTES.into_iter().zip(inside.routes) {
            let ours = leads_here && self.existing.is_none();
            if ours && !routes.iter().any(|route| route["dst"] == default) {
                routes.push(json!({"dst": default}));
            }
        }
        let mut result = self.previous.clone();
        let mut set = |key: &str, value: Value| result.insert(key.to_owned(), value);
        set("cniVersion", version.text().into());
        set("interfaces", interfaces.into());
        set("ips", ips.into());
        set("routes", routes.into());
        let own = if self.dns.is_empty() { dns } else { &self.dns };
        let told = self.previous.get("dns").and_then(Value::as_object);
        if told.is_none_or(Map::is_empty) {
            set("dns", own.clone().into());
        }
        result.into()
    }

    fn interface(&self, version: Version, endpoint: &Endpoint, attachment: &Attachment) -> Value {
        let mut interface = json!({
            "name": endpoint.interface,
            "mac": attachment.container_mac.to_string(),
            "sandbox": self.sandbox,
        });
        if version.has_mtu() {
            interface["mtu"] = attachment.link.mtu.into();
        }
        interface
    }
}
