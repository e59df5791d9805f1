use proptest::prelude::*;

use crate::drop::DropReason;
use crate::frame::{Checksum, FramePool, Offload};
use crate::packet::Packet;
use crate::test_packets::pool;
use crate::test_tunnels::{Carrier, Flow, any_flow, vxlan};

fn verdict(octets: &[u8], offload: Offload, pool: &mut FramePool) -> Result<(), DropReason> {
    let mut frame = pool.copy_from(octets).unwrap();
    frame.set_offload(offload);
    let parsed = Packet::parse(frame).map_err(|rejected| rejected.reason)?;
    assert!(parsed.tunnel().is_some());
    Ok(())
}

fn flow(carrier: Carrier) -> Flow {
    Flow {
        outer_v6: false,
        carrier,
        inner_v6: false,
        tcp: true,
        options: false,
        id: 1,
        sequence: 1,
        flags: 0x10,
        size: 1000,
        payload: vec![7; 3000],
    }
}

const REFUSED: Result<(), DropReason> = Err(DropReason::OffloadHeader);

/// An octet of the frame changed; the outer IPv4 header stays right.
fn changed(flow: &Flow, at: usize, value: u8) -> Result<(), DropReason> {
    let (mut octets, offload) = flow.super_frame();
    assert_ne!(octets[at], value);
    octets[at] = value;
    verdict(&octets, offload, &mut pool())
}

#[test]
fn headers_that_do_not_agree_are_refused() {
    let flow = flow(Carrier::Udp {
        checksum: true,
        header: vxlan(false),
    });
    let (octets, offload) = flow.super_frame();
    assert_eq!(verdict(&octets, offload, &mut pool()), Ok(()));
    for (at, value) in [(64, 0x44), (66, 1), (73, 17), (96, 0x40), (70, 0x20)] {
        assert_eq!(changed(&flow, at, value), REFUSED, "{at}");
    }
    for start in [83, 85, 88] {
        let moved = Offload {
            checksum: Checksum::Partial { start, offset: 16 },
            ..offload
        };
        assert_eq!(verdict(&octets, moved, &mut pool()), REFUSED, "{start}");
    }
    let misplaced = Offload {
        checksum: Checksum::Partial {
            start: 84,
            offset: 6,
        },
        ..offload
    };
    assert_eq!(verdict(&octets, misplaced, &mut pool()), REFUSED);
}

/// Each segment would need a number of its own, and Linux makes no such super-frames.
#[test]
fn gre_with_sequence_numbers_is_refused() {
    let gre = flow(Carrier::Gre {
        checksum: false,
        key: Some(5),
        ethernet: false,
    });
    let (octets, offload) = gre.super_frame();
    assert_eq!(verdict(&octets, offload, &mut pool()), Ok(()));
    assert_eq!(changed(&gre, 34, 0x30), REFUSED, "sequence number");
    assert_eq!(changed(&gre, 34, 0x60), REFUSED, "routing");
    assert_eq!(changed(&gre, 35, 1), REFUSED, "version");
}

#[test]
fn tunnels_in_tunnels_are_refused() {
    for outer_v6 in [false, true] {
        let inner = Flow {
            outer_v6,
            ..flow(Carrier::Udp {
                checksum: false,
                header: vxlan(false),
            })
        };
        let (octets, _) = inner.super_frame();
        let mut header = vxlan(outer_v6);
        // What was the outer packet, up to the inner IP header.
        header.extend(&octets[14..inner.inner_offsets()[0]]);
        let nested = flow(Carrier::Udp {
            checksum: true,
            header,
        });
        let (octets, offload) = nested.super_frame();
        assert_eq!(verdict(&octets, offload, &mut pool()), REFUSED);
    }
}

proptest! {
    /// Whatever the octets are, offsets lie where they must.
    #[test]
    fn damage_does_no_harm(flow in any_flow(), damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4), start: u16) {
        let (mut octets, mut offload) = flow.super_frame();
        let headers = flow.inner_offsets()[1] + 20;
        for (at, value) in damage {
            let at = 14 + at.index(headers.min(octets.len()) - 14);
            octets[at] = value;
        }
        for moved in [false, true] {
            if moved {
                offload.checksum = Checksum::Partial { start: start % 200, offset: 16 };
            }
            let mut pool = pool();
            let mut frame = pool.copy_from(&octets).unwrap();
            frame.set_offload(offload);
            let Ok(packet) = Packet::parse(frame) else { continue };
            if let Some(tunnel) = packet.tunnel() {
                prop_assert!(usize::from(tunnel.network) >= packet.transport_offset());
                prop_assert!(tunnel.network + 20 <= tunnel.transport);
            }
            let mut out = Vec::new();
            let _ = crate::offload::segment(packet, crate::offload::Capabilities::empty(), &mut pool, &mut |piece| out.push(piece));
            prop_assert!(!out.is_empty());
        }
    }
}
