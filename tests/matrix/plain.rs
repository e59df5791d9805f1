//! What stands beside the relay: two hosts with Linux between them.

use nos_relay::lab::testbed::{LabNamespace, veth};

use crate::crafted::{End, Path};
use crate::support::scenario::FAMILIES;

/// Two hosts without addresses, and a bridge or a router.
pub(crate) struct Plain {
    hosts: [LabNamespace; 2],
    between: LabNamespace,
    ends: [End; 2],
    next_hops: [nos_shim::ident::MacAddr; 2],
}

impl Plain {
    /// A bridge between them, as it is between a container and the network.
    pub(crate) fn bridge() -> Self {
        let plain = Self::joined("bridge");
        let between = &plain.between;
        between.add_bridge("br0").unwrap();
        between.join_bridge("br0", "p0").unwrap();
        between.join_bridge("br0", "p1").unwrap();
        let [first, second] = &plain.ends;
        let next_hops = [second.mac, first.mac];
        Self { next_hops, ..plain }
    }

    /// A router between the networks of two uplinks.
    pub(crate) fn router() -> Self {
        let plain = Self::joined("router");
        let between = &plain.between;
        between.sysctl("net/ipv4/ip_forward", "1").unwrap();
        between.sysctl("net/ipv6/conf/all/forwarding", "1").unwrap();
        let sides = [
            (
                ["203.0.113.1/24", "2001:db8:1::1/64"],
                FAMILIES.map(|family| family.external),
            ),
            (
                ["198.51.100.1/24", "2001:db8:2::1/64"],
                ["198.51.100.2", "2001:db8:2::2"].map(|text| text.parse().unwrap()),
            ),
        ];
        for (n, (own, neighbors)) in sides.into_iter().enumerate() {
            let port = format!("p{n}");
            for address in own {
                between
                    .add_address(&port, address.parse().unwrap())
                    .unwrap();
            }
            for neighbor in neighbors {
                between
                    .add_neighbor(&port, neighbor, plain.ends[n].mac)
                    .unwrap();
            }
        }
        plain
    }

    /// Frames to it are sent to the MAC addresses of what is between.
    fn joined(label: &str) -> Self {
        let hosts = [
            LabNamespace::new("a").unwrap(),
            LabNamespace::new("b").unwrap(),
        ];
        let between = LabNamespace::new(label).unwrap();
        for (n, host) in hosts.iter().enumerate() {
            // They say nothing of their own.
            host.sysctl("net/ipv6/conf/default/disable_ipv6", "1")
                .unwrap();
            veth((&between, &format!("p{n}")), (host, "e0")).unwrap();
        }
        let ends = [End::open(&hosts[0], "e0"), End::open(&hosts[1], "e0")];
        let next_hops = ["p0", "p1"].map(|port| between.link(port).unwrap().unwrap().mac.unwrap());
        Self {
            hosts,
            between,
            ends,
            next_hops,
        }
    }

    pub(crate) fn hosts(&self) -> &[LabNamespace; 2] {
        &self.hosts
    }

    /// From the first host to the second, and back.
    pub(crate) fn paths(&self) -> [Path<'_>; 2] {
        let [first, second] = &self.ends;
        [
            Path {
                from: first,
                to: second,
                next_hop: self.next_hops[0],
            },
            Path {
                from: second,
                to: first,
                next_hop: self.next_hops[1],
            },
        ]
    }
}
