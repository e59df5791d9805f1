//! The result of `ADD`.

use std::path::Path;

use nos_relay::control::api::snapshot::Attachment;
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
}

impl Base {
    pub(super) fn read(invocation: &Invocation, netns: &Path) -> Result<Self, CniError> {
        let configuration: &Configuration = &invocation.configuration;
        let previous = configuration.previous()?.and_then(Value::as_object);
        let base = Self {
            previous: previous.cloned().unwrap_or_default(),
            dns: configuration.dns()?,
            sandbox: netns.display().to_string(),
        };
        let ours = &invocation.environment.interface;
        let there = base.list("interfaces").iter().any(|interface| {
            interface["name"] == ours.as_str() && interface["sandbox"] == base.sandbox.as_str()
        });
        match there {
            false => Ok(base),
            true => Err(CniError::configuration(format!(
                "prevResult: a plugin before this one has made {ours} already"
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
        let index = interfaces.len();
        interfaces.push(self.interface(version, endpoint, attachment));
        let mut ips = self.list("ips").to_vec();
        let mut routes = self.list("routes").to_vec();
        for address in &attachment.addresses {
            let (length, family) = match address.is_ipv4() {
                true => (32, "4"),
                false => (128, "6"),
            };
            let mut ip = json!({"address": format!("{address}/{length}"), "interface": index});
            if version.marks_families() {
                ip["version"] = family.into();
            }
            ips.push(ip);
        }
        // Of several interfaces in a namespace one has them.
        for (default, leads_here) in DEFAULT_ROUTES.into_iter().zip(inside.routes) {
            if leads_here && !routes.iter().any(|route| route["dst"] == default) {
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
