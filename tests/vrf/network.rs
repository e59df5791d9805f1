//! Two networks that have the same of everything, behind one NOS.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nos_relay::lab::testbed::{LabNamespace, Topology, veth};
use nos_shim::ident::MacAddr;

use crate::support::daemon::{Daemon, LIMIT};
use crate::support::scenario::{Family, Variant, edited};
use crate::support::switch::{Access, Switch};

/// How the NOS is joined to the networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Uplinks {
    /// It has the host's end of each wire.
    PacketSockets,
    /// It has a TAP for each, and the host a bridge between that and the wire.
    Taps,
    /// It has one wire, on which each network is a VLAN, and a switch is at the other end.
    Vlans,
}

/// Two VRFs, `default` with X and `red` with R, which have the same addresses. In each, one container
/// has ports 20000 to 20999 of the NOS's address, and another one has the NOS's other address.
pub(crate) struct Twins {
    // First, so that it is stopped while the networks are there.
    pub(crate) daemon: Daemon,
    pub(crate) topology: Topology,
    pub(crate) red: LabNamespace,
    pub(crate) config: String,
    /// Between the NOS and the networks, where these are VLANs.
    #[allow(dead_code, reason = "kept for as long as it is to switch")]
    pub(crate) switch: Option<Switch>,
}

/// One VRF.
#[derive(Clone, Copy)]
pub(crate) struct Side<'a> {
    pub(crate) vrf: &'static str,
    pub(crate) external: &'a LabNamespace,
    /// The outsider's interface, and its MAC address.
    pub(crate) interface: &'static str,
    pub(crate) mac: MacAddr,
    pub(crate) uplink: &'static str,
    /// Has ports 20000 to 20999, and `only`.
    pub(crate) web: &'a LabNamespace,
    /// Has the NOS's other address.
    pub(crate) db: &'a LabNamespace,
    pub(crate) containers: [&'static str; 2],
    /// A port that is somebody's here, and nobody's in the other VRF.
    pub(crate) only: u16,
}

/// The VLANs of `default` and `red`, where they are such.
pub(crate) const VLANS: [u16; 2] = [910, 920];

const RED_UPLINK: &str = "hr";
const RED_INTERFACE: &str = "rh";

/// The NOS's other address.
pub(crate) fn other_address(family: Family) -> IpAddr {
    match family.is_v6() {
        false => Ipv4Addr::new(203, 0, 113, 9).into(),
        true => Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 9).into(),
    }
}

fn red_mac() -> MacAddr {
    MacAddr::stable("lab R")
}

fn config(topology: &Topology, variant: Variant) -> String {
    let container = |name: &str, place: usize, more: &str| {
        let (netns, device) = (topology.containers[place].path(), variant.device);
        let offload = variant.offload[0];
        format!(
            "[[container]]\nname = \"{name}\"\nnetns = \"{}\"\ndevice = \"{device}\"\n\
             offload = {offload}\n{more}",
            netns.display()
        )
    };
    let first = "addresses = [\"203.0.113.1\", \"2001:db8:1::1\"]\nephemeral = \"40000-44999\"\n";
    // All but what the NOS's services have.
    let second = |services: &str| {
        format!(
            "addresses = [\"203.0.113.9\", \"2001:db8:1::9\"]\ntcp = [\"1-39999\", {services}]\n\
             udp = [\"1-39999\", \"!7\"]\nephemeral = \"45000-49999\"\n"
        )
    };
    let ports =
        |only: u16| format!("tcp = [\"20000-20999\", {only}]\nudp = [\"20000-20999\", {only}]\n");
    let uplink = |name: &str, interface: &str, more: &str| {
        let offload = variant.offload[1];
        format!(
            "[[uplink]]\nname = \"{name}\"\ndevice = \"packet:{interface}\"\noffload = {offload}\n\
             addresses = [\"203.0.113.1/24\", \"2001:db8:1::1/64\", \"203.0.113.9/24\", \
             \"2001:db8:1::9/64\"]\n{more}"
        )
    };
    let route =
        |more: &str| format!("[[route]]\nprefix = \"0.0.0.0/0\"\nvia = \"203.0.113.2\"\n{more}");
    [
        format!("[relay]\nthreads = \"{}\"\n", variant.threads),
        uplink("up0", Topology::UPLINK, ""),
        uplink("up1", RED_UPLINK, "vrf = \"red\"\nmtu = 1500\n"),
        route(""),
        route("vrf = \"red\"\n"),
        container("web", 0, &format!("{first}{}", ports(22000))),
        container("db", 1, &second("\"!7\"")),
        container("red-web", 2, &format!("{first}{}vrf = \"red\"\n", ports(23000))),
        container(
            "red-db",
            3,
            &format!("{}vrf = \"red\"\n", second("\"!7\", \"!8080\"")),
        ),
        "[[nos]]\nservices = \"echo\"\n[[nos]]\nvrf = \"red\"\nservices = [\"echo\", \"http:8080\"]\n"
            .to_owned(),
    ]
    .join("\n")
}

/// Gives an outsider its addresses.
fn settle(host: &LabNamespace, interface: &str, mac: MacAddr) {
    host.set_mac(interface, mac).unwrap();
    for address in Topology::external_addresses() {
        host.add_address(interface, address).unwrap();
    }
}

/// Puts a switch between the NOS and both networks.
fn switch(topology: &Topology, red: &LabNamespace) -> Option<Switch> {
    let Topology {
        device, external, ..
    } = topology;
    device.delete_link(Topology::UPLINK).unwrap();
    let hosts = [
        (external, Topology::EXTERNAL_INTERFACE),
        (red, RED_INTERFACE),
    ];
    let ports = VLANS.iter().zip(hosts).map(|(&vlan, host)| Access {
        vlan,
        priority: 0,
        host,
    });
    let ports: Vec<_> = ports.collect();
    let switch = Switch::new((device, Topology::UPLINK), &ports)?;
    settle(
        external,
        Topology::EXTERNAL_INTERFACE,
        Topology::external_mac(),
    );
    Some(switch)
}

impl Twins {
    pub(crate) fn new(variant: Variant) -> Self {
        Self::with(variant, Uplinks::PacketSockets)
    }

    pub(crate) fn with(variant: Variant, uplinks: Uplinks) -> Self {
        Self::edited(variant, uplinks, &[], |config| config)
    }

    /// With further namespaces, of which the daemon knows nothing, and another configuration.
    pub(crate) fn edited(
        variant: Variant,
        uplinks: Uplinks,
        more: &[&str],
        edit: impl FnOnce(String) -> String,
    ) -> Self {
        Self::try_edited(variant, uplinks, more, edit).expect("the kernel has what it takes")
    }

    /// The same; `None` where the kernel has no switch.
    pub(crate) fn try_edited(
        variant: Variant,
        uplinks: Uplinks,
        more: &[&str],
        edit: impl FnOnce(String) -> String,
    ) -> Option<Self> {
        let containers = [&["web", "db", "red-web", "red-db"], more].concat();
        let topology = Topology::new(&containers).unwrap();
        let red = LabNamespace::new("R").unwrap();
        let device = &topology.device;
        device
            .sysctl("net/ipv6/conf/default/disable_ipv6", "1")
            .unwrap();
        let switch = match uplinks {
            Uplinks::Vlans => Some(switch(&topology, &red)?),
            Uplinks::PacketSockets | Uplinks::Taps => {
                veth((device, RED_UPLINK), (&red, RED_INTERFACE)).unwrap();
                None
            }
        };
        settle(&red, RED_INTERFACE, red_mac());
        let mut config = config(&topology, variant);
        if uplinks == Uplinks::Vlans {
            for (interface, vlan) in [Topology::UPLINK, RED_UPLINK].iter().zip(VLANS) {
                let vlan = format!("packet:{}\"\nvlan = {vlan}\n", Topology::UPLINK);
                config = edited(&config, &format!("packet:{interface}\"\n"), &vlan);
            }
        }
        let mut config = edit(config);
        let wires = [(Topology::UPLINK, "tx", "bx"), (RED_UPLINK, "tr", "br")];
        if uplinks == Uplinks::Taps {
            for (interface, tap, _) in wires {
                let [packet, tap] = [format!("packet:{interface}"), format!("tap:{tap}")];
                config = edited(&config, &packet, &tap);
            }
        }
        let daemon = Daemon::start(device, &config);
        if uplinks == Uplinks::Taps {
            for (interface, tap, bridge) in wires {
                device.add_bridge(bridge).unwrap();
                device.join_bridge(bridge, interface).unwrap();
                device.join_bridge(bridge, tap).unwrap();
                device.wait_operational(tap, LIMIT).unwrap();
            }
        }
        device
            .sysctl("net/ipv6/conf/default/disable_ipv6", "0")
            .unwrap();
        Some(Self {
            daemon,
            topology,
            red,
            config,
            switch,
        })
    }

    pub(crate) fn sides(&self) -> [Side<'_>; 2] {
        let [web, db, red_web, red_db, ..] = &self.topology.containers[..] else {
            panic!("four containers");
        };
        [
            Side {
                vrf: "default",
                external: &self.topology.external,
                interface: Topology::EXTERNAL_INTERFACE,
                mac: Topology::external_mac(),
                uplink: "up0",
                web,
                db,
                containers: ["web", "db"],
                only: 22000,
            },
            Side {
                vrf: "red",
                external: &self.red,
                interface: RED_INTERFACE,
                mac: red_mac(),
                uplink: "up1",
                web: red_web,
                db: red_db,
                containers: ["red-web", "red-db"],
                only: 23000,
            },
        ]
    }

    /// Each VRF, with the other one.
    pub(crate) fn pairs(&self) -> [(Side<'_>, Side<'_>); 2] {
        let [one, other] = self.sides();
        [(one, other), (other, one)]
    }
}
