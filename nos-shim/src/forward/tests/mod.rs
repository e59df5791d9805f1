//! The pipeline as a whole, with a relay that does what the test says.

mod east_west;
mod host;
mod link_local;
mod oversize;
mod policy;
mod redirects;
mod rewrites;
mod routed;
mod upstream;

use crate::ident::{AttachmentId, MacAddr, VrfId};
use crate::ports::{AddressMode, Claim, ClaimKind, Policy, PortRange, Registration, Transport};
use crate::test_packets::{N4, N6, ip};

/// Of a container with a port to listen on and one to open flows from, by TCP and UDP, on both shared addresses.
fn registration(attachment: AttachmentId, listen: u16, ephemeral: u16) -> Registration {
    let claim = |transport, port, kind| Claim {
        transport,
        range: PortRange::new(port, port).unwrap(),
        kind,
    };
    let both = [Transport::Tcp, Transport::Udp].map(|transport| {
        [
            claim(transport, listen, ClaimKind::Listen),
            claim(transport, ephemeral, ClaimKind::Ephemeral),
        ]
    });
    Registration {
        attachment,
        name: format!("c{}", attachment.0).into(),
        vrf: VrfId::DEFAULT,
        network: crate::ident::NetworkId::DEFAULT,
        mode: AddressMode::Shared,
        addresses: vec![ip(N4), ip(N6)],
        claims: both.concat(),
        link_local: None,
        router: MacAddr([2; 6]).link_local(),
        mtu: 1500,
        policy: Policy::default(),
    }
}
