//! What the relay asks for.

use crate::channel::{Exchange, RelayEnd, RequestId, ToNos, pair};
use crate::drop::DropReason;
use crate::frame::FramePool;
use crate::ident::{AttachmentId, MacAddr, UplinkId, VrfId};
use crate::ports::{AddressMode, Claim, ClaimKind, Policy, PortRange, Registration, Transport};
use crate::shim::{LinkState, Shim, ShimConfig, UplinkConfig};
use crate::test_packets::Draft;
use crate::time::Instant;

const A: AttachmentId = AttachmentId(0);
const NOW: Instant = Instant::ZERO;
const MORE: u16 = 0x2000;

fn registration(draft: &Draft, port: u16) -> ToNos {
    let registration = Registration {
        attachment: A,
        name: "a".into(),
        vrf: VrfId::DEFAULT,
        network: crate::ident::NetworkId::DEFAULT,
        mode: AddressMode::Shared,
        addresses: vec![draft.destination],
        policy: Policy::default(),
        claims: vec![Claim {
            transport: Transport::Udp,
            range: PortRange::new(port, port).unwrap(),
            kind: ClaimKind::Listen,
        }],
        link_local: None,
        router: MacAddr([2; 6]).link_local(),
        mtu: 1500,
    };
    let exchange = Exchange {
        register: vec![registration],
        ..Exchange::default()
    };
    ToNos::Exchange(RequestId(1), exchange)
}

fn withdrawal() -> ToNos {
    let exchange = Exchange {
        withdraw: vec![A],
        ..Exchange::default()
    };
    ToNos::Exchange(RequestId(2), exchange)
}

fn handle(shim: &mut Shim, pool: &mut FramePool, draft: &Draft, udp: &[u8]) {
    let frame = pool.copy_from(&draft.frame(17, udp)).unwrap();
    shim.handle_burst(UplinkId(0), &mut [frame].into_iter().collect(), NOW);
}

fn received(relay: &mut RelayEnd) -> usize {
    std::iter::from_fn(|| relay.recv_burst()).flatten().count()
}

#[test]
fn a_withdrawn_attachment_leaves_no_fragments_to_its_successor() {
    let (mut relay, nos) = pair(8);
    let mut pool = FramePool::new(16, 2000);
    let mut shim = Shim::new(nos, pool.clone(), ShimConfig::default());
    let mut draft = Draft::v4();
    let uplink = UplinkConfig {
        id: UplinkId(0),
        name: "up0".into(),
        vrf: VrfId::DEFAULT,
        mac: MacAddr(draft.mac),
        addresses: vec![format!("{}/24", draft.destination).parse().unwrap()],
        mtu: 1500,
        redirects: true,
    };
    shim.set_uplink(uplink, NOW).unwrap();
    shim.set_link(UplinkId(0), LinkState::Up, NOW).unwrap();
    // The announcements.
    while let Some((_, burst)) = shim.poll_transmit() {
        burst.clear();
    }
    relay.send_control(registration(&draft, 5000)).unwrap();
    shim.poll_channel(NOW, 1);
    let udp = draft.udp((9, 5000), &[7; 24]);
    draft.fragment = MORE;
    handle(&mut shim, &mut pool, &draft, &udp[..16]);
    assert_eq!(received(&mut relay), 1);
    // Another container gets the number, and has another port.
    relay.send_control(withdrawal()).unwrap();
    relay.send_control(registration(&draft, 6000)).unwrap();
    shim.poll_channel(NOW, 1);
    draft.fragment = 2;
    handle(&mut shim, &mut pool, &draft, &udp[16..]);
    assert_eq!(received(&mut relay), 0);
    assert_eq!(shim.held(), 1);
    shim.handle_timeout(Instant::from_millis(60_000));
    assert_eq!(shim.ledger().drops.of(DropReason::FragmentTimeout), 1);
    assert_eq!(shim.ledger().unaccounted(), shim.held() as i128);
}
