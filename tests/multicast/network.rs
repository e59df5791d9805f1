//! A switch with a NOS, a plain Linux host, an outsider and a router on it.

use std::io::Write;
use std::net::{IpAddr, Ipv6Addr};
use std::process::{Command, Stdio};
use std::time::Instant;

use nos_relay::lab::testbed::{LabNamespace, veth};
use nos_shim::ident::MacAddr;
use nos_shim::ndp::{multicast_mac, solicited_node};

use crate::support::daemon::LIMIT;
use crate::support::wire::{self, Wire};

/// Who asks for groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Querier {
    /// The switch, which snoops.
    Switch,
    /// The router; the switch snoops.
    Router,
    /// Nobody, and the switch does not snoop.
    Nobody,
}

/// ```text
/// NOS's device ── sh ┐                 ┌ sx ── outsider
///                    ├─ switch (br0) ──┤
/// plain host ──── sp ┘                 └ sr ── router (br0)
/// ```
///
/// All others have their end as `eth0`. The router is a bridge as well, as that is a querier.
pub(crate) struct Network {
    pub(crate) switch: LabNamespace,
    pub(crate) device: LabNamespace,
    pub(crate) plain: LabNamespace,
    pub(crate) outsider: LabNamespace,
    pub(crate) router: LabNamespace,
}

/// The switch's port towards the NOS.
pub(crate) const PORT: &str = "sh";
pub(crate) const NOS: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
/// An address of the NOS that comes and goes.
pub(crate) const LATER: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0x7, 0x7777);
/// The plain host's counterpart of it.
pub(crate) const PLAIN_LATER: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0x5, 0x5555);

impl Network {
    /// `versions`: of IGMP and MLD, as the querier speaks them.
    pub(crate) fn new(querier: Querier, versions: [u8; 2]) -> Self {
        let [switch, device, plain, outsider, router] =
            ["S", "H", "P", "X", "R"].map(|label| LabNamespace::new(label).unwrap());
        let asks = |who| u8::from(querier == who);
        let snoops = u8::from(querier != Querier::Nobody);
        add_bridge(&switch, asks(Querier::Switch), snoops, versions);
        add_bridge(&router, asks(Querier::Router), snoops, versions);
        let others = [
            (&device, "sh"),
            (&outsider, "sx"),
            (&plain, "sp"),
            (&router, "sr"),
        ];
        for (other, port) in others {
            // The NOS speaks on the device's end; a router and a switch do not on their ports.
            let speaks = port == "sx" || port == "sp";
            let disabled = if speaks { "0" } else { "1" };
            other
                .sysctl("net/ipv6/conf/default/disable_ipv6", disabled)
                .unwrap();
            veth((&switch, port), (other, "eth0")).unwrap();
            switch.join_bridge("br0", port).unwrap();
        }
        router.join_bridge("br0", "eth0").unwrap();
        let addresses = [
            (&outsider, "203.0.113.2/24"),
            (&outsider, "2001:db8:1::2/64"),
            (&plain, "203.0.113.5/24"),
            (&plain, "2001:db8:1::5/64"),
        ];
        for (host, address) in addresses {
            host.add_address("eth0", address.parse().unwrap()).unwrap();
        }
        Self {
            switch,
            device,
            plain,
            outsider,
            router,
        }
    }

    /// The NOS's configuration, with more addresses.
    pub(crate) fn config(more: &str) -> String {
        format!(
            r#"
[[uplink]]
name = "up0"
device = "packet:eth0"
addresses = ["203.0.113.1/24", "{NOS}/64"{more}]
"#
        )
    }

    /// Waits until the switch forwards a group to nobody who is not in it.
    pub(crate) fn await_snooping(&self) {
        let (from, to) = (
            Wire::open(&self.outsider, "eth0"),
            Wire::open(&self.plain, "eth0"),
        );
        until("the switch snoops", || !is_flooded(&from, &to));
    }

    /// The groups in which somebody behind `port` is, as the switch knows it.
    pub(crate) fn groups_behind(&self, port: &str) -> Vec<IpAddr> {
        let mut command = Command::new("bridge");
        command.args(["mdb", "show", "dev", "br0"]);
        command.stdout(Stdio::piped());
        let child = self.switch.spawn(command).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "bridge mdb");
        let text = String::from_utf8(output.stdout).unwrap();
        let words = text
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>());
        let mut groups: Vec<_> = words
            .filter(|words| words.windows(2).any(|pair| pair == ["port", port]))
            .filter_map(|words| {
                let at = words.iter().position(|&word| word == "grp")?;
                words.get(at + 1)?.parse().ok()
            })
            .collect();
        groups.sort_unstable();
        groups.dedup();
        groups
    }

    pub(crate) fn nos_mac(&self) -> MacAddr {
        self.device.link("eth0").unwrap().unwrap().mac.unwrap()
    }

    pub(crate) fn plain_mac(&self) -> MacAddr {
        self.plain.link("eth0").unwrap().unwrap().mac.unwrap()
    }
}

/// Everything is asked each second, and to be answered in a tenth of one.
fn add_bridge(of: &LabNamespace, asks: u8, snoops: u8, [igmp, mld]: [u8; 2]) {
    of.sysctl("net/ipv6/conf/default/disable_ipv6", "0")
        .unwrap();
    let commands = format!(
        "link add br0 type bridge mcast_snooping {snoops} mcast_querier {asks} \
         mcast_igmp_version {igmp} mcast_mld_version {mld} mcast_query_interval 100 \
         mcast_startup_query_interval 100 mcast_query_response_interval 10 \
         mcast_last_member_interval 10\n\
         link set br0 up\n"
    );
    ip(of, &commands);
    of.sysctl("net/ipv6/conf/default/disable_ipv6", "1")
        .unwrap();
}

/// Runs `ip` inside, with one command a line on its input.
fn ip(lab: &LabNamespace, commands: &str) {
    let mut command = Command::new("ip");
    command.args(["-batch", "-"]).stdin(Stdio::piped());
    let mut child = lab.spawn(command).unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(commands.as_bytes()).unwrap();
    drop(input);
    assert!(child.wait().unwrap().success(), "ip: {commands}");
}

/// Whether a question to a group in which nobody is gets from one end to the other.
fn is_flooded(from: &Wire, to: &Wire) -> bool {
    let nobodys = solicited_node("2001:db8:1::9:9999".parse().unwrap());
    let step = wire::with_ttl(
        (from.mac(), multicast_mac(nobodys)),
        "2001:db8:1::2".parse().unwrap(),
        nobodys.into(),
        255,
    );
    let question = wire::other(step, wire::ICMPV6, &[0; 24]);
    let marker = [&[0xff; 6][..], &from.mac().0, &[0x88, 0xb5], &[7; 46]].concat();
    to.drain();
    from.send(&question);
    from.send(&marker);
    let mut flooded = false;
    to.await_octets(LIMIT, |frame| {
        flooded |= frame.starts_with(&question[..54]);
        frame.starts_with(&marker).then_some(())
    });
    flooded
}

/// Repeats `holds` until it does.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not in time");
        std::thread::yield_now();
    }
}
