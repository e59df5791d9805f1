//! Requests to the control socket, and addresses in them.

use std::net::{IpAddr, SocketAddr};

use nos_relay::lab::testbed::LabNamespace;
use serde_json::{Value, json};

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn at(address: &str, port: u16) -> SocketAddr {
    (ip(address), port).into()
}

/// To attach a container, with these keys besides its name and namespace.
pub(crate) fn attach(name: &str, netns: &LabNamespace, keys: &Value) -> Value {
    let mut container = json!({"name": name, "netns": netns.path()});
    let given = keys.as_object().unwrap().clone();
    container.as_object_mut().unwrap().extend(given);
    json!({"type": "attach", "container": container})
}
