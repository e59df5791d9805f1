//! What docker sets up: a bridge, masquerading, ports mapped by DNAT, forwarding denied otherwise.

use std::io::Write;
use std::process::{Command, Stdio};

use super::{Network, set_ephemeral};
use crate::lab::bench::children::Children;
use crate::lab::bench::error::BenchError;
use crate::lab::bench::path::{Path, installed};
use crate::lab::bench::plan::Setting;
use crate::lab::testbed::{LabNamespace, Topology, veth};

const RULES: &str = r#"
table ip nat {
  chain post {
    type nat hook postrouting priority 100;
    ip saddr 172.17.0.0/16 oifname "hx" masquerade
  }
  chain pre {
    type nat hook prerouting priority -100;
    ip daddr 203.0.113.1 tcp dport 20000-24999 dnat to 172.17.0.2
    ip daddr 203.0.113.1 udp dport 20000-24999 dnat to 172.17.0.2
  }
}
table ip filter {
  chain forwarding {
    type filter hook forward priority 0; policy drop;
    ct state established,related accept
    iifname "docker0" accept
    ip daddr 172.17.0.2 tcp dport 20000-24999 accept
    ip daddr 172.17.0.2 udp dport 20000-24999 accept
  }
}
"#;

pub(super) fn build(_children: &Children, setting: Setting) -> Result<Network, BenchError> {
    let topology = Topology::new(&["C"])?;
    let [container] = &topology.containers[..] else {
        return Err(BenchError::Missing("a container"));
    };
    let (device, external) = (&topology.device, &topology.external);
    device.add_bridge("docker0")?;
    device.add_address("docker0", net("172.17.0.1/16")?)?;
    veth((device, "hc"), (container, "eth0"))?;
    let mtu = u32::from(setting.mtu);
    device.set_mtu("hc", mtu)?;
    device.join_bridge("docker0", "hc")?;
    device.set_mtu("docker0", mtu)?;
    device.set_mtu(Topology::UPLINK, mtu)?;
    container.set_mtu("eth0", mtu)?;
    external.set_mtu(Topology::EXTERNAL_INTERFACE, mtu)?;
    let [shared, _] = super::shared_networks();
    device.add_address(Topology::UPLINK, shared)?;
    container.add_address("eth0", net("172.17.0.2/16")?)?;
    container.add_route(net("0.0.0.0/0")?, [172, 17, 0, 1].into())?;
    set_ephemeral(container)?;
    load(device)?;
    let mut network = Network::new(Path::Kernel, container.clone(), external.clone());
    network._kept = vec![device.clone()];
    Ok(network)
}

fn net(text: &str) -> Result<ipnet::IpNet, BenchError> {
    let parsed = text.parse();
    parsed.map_err(|error| BenchError::Setup(format!("{text}: {error}")))
}

fn load(device: &LabNamespace) -> Result<(), BenchError> {
    let nft = installed("nft").ok_or(BenchError::Missing("nft"))?;
    let mut command = Command::new(nft);
    command
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = device.spawn(command)?;
    let written = match child.stdin.take() {
        Some(mut stdin) => stdin.write_all(RULES.as_bytes()),
        None => Ok(()),
    };
    let output = child
        .wait_with_output()
        .map_err(BenchError::io("run nft"))?;
    written.map_err(BenchError::io("write to nft"))?;
    if output.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&output.stderr);
    Err(BenchError::Setup(format!("nft: {}", why.trim())))
}
