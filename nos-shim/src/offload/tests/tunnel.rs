//! Tunnels' super-frames against segments made from their parts.

use super::*;
use crate::frame::Encapsulation;
use crate::test_tunnels::{Carrier, Flow, any_flow, vxlan};

/// Room for all segments of the longest payload, and for their fragments.
fn pool() -> FramePool {
    FramePool::new(2048, 8000)
}

fn parsed(flow: &Flow, pool: &mut FramePool) -> Packet {
    let (octets, offload) = flow.super_frame();
    let mut frame = pool.copy_from(&octets).unwrap();
    frame.set_offload(offload);
    Packet::parse(frame).unwrap()
}

/// The segments, as a device without or with checksum offload gets them; then completed.
fn cut(flow: &Flow, capabilities: Capabilities) -> Vec<Vec<u8>> {
    let mut pool = pool();
    let packet = marked(parsed(flow, &mut pool));
    let (made, adapted) = collect(|out| {
        adapt(packet, capabilities, &mut pool, &mut |piece| {
            out.push(piece);
        })
    });
    assert_eq!(adapted.dropped, None);
    assert_eq!(adapted.originated + 1, made.len() as u64);
    let complete = |mut piece: Packet| {
        check_proof(&piece).unwrap();
        assert!(capabilities.take(piece.frame().offload()));
        complete_checksum(&mut piece);
        piece.frame().bytes().to_vec()
    };
    made.into_iter().map(complete).collect()
}

fn vxlan_flow(size: u16, payload: usize) -> Flow {
    Flow {
        outer_v6: false,
        carrier: Carrier::Udp {
            checksum: true,
            header: vxlan(false),
        },
        inner_v6: false,
        tcp: true,
        options: false,
        id: 0xfffe,
        sequence: u32::MAX - 50,
        flags: 0x99,
        size,
        payload: (0..payload).map(|n| (n * 7) as u8).collect(),
    }
}

proptest! {
    #[test]
    fn segments_are_those_of_their_parts(flow in any_flow()) {
        let expected = flow.segments();
        prop_assert_eq!(&cut(&flow, Capabilities::empty()), &expected);
        prop_assert_eq!(&cut(&flow, Capabilities::CHECKSUM), &expected);
        // To be joined, datagrams need checksums.
        let without = ALL - Capabilities::TUNNEL - Capabilities::IP_TUNNEL;
        let mut summed = flow.clone();
        if let Carrier::Udp { checksum, .. } = &mut summed.carrier {
            *checksum = true;
        }
        prop_assert_eq!(&cut(&flow, without), &summed.segments());
    }

    #[test]
    fn the_packet_inside_is_found(flow in any_flow()) {
        let packet = parsed(&flow, &mut pool());
        let tunnel = packet.tunnel().unwrap();
        let places = [tunnel.network, tunnel.transport].map(usize::from);
        prop_assert_eq!(places, flow.inner_offsets());
        let encapsulation = match flow.carrier {
            Carrier::Udp { .. } => Encapsulation::Udp,
            Carrier::Gre { .. } => Encapsulation::Gre,
            Carrier::Ip => Encapsulation::Ip,
        };
        prop_assert_eq!(tunnel.encapsulation, encapsulation);
        let longest = flow.segments().iter().map(Vec::len).max().unwrap();
        prop_assert_eq!(packet.wire_len() + ETHERNET_HEADER, longest);
        let first = first_segment(&packet, &mut pool()).unwrap();
        prop_assert_eq!(first.frame().bytes(), &flow.segments()[0]);
    }

    /// As a capture and the local stack want it.
    #[test]
    fn the_whole_has_the_checksums_of_one_packet(flow in any_flow()) {
        let mut packet = parsed(&flow, &mut pool());
        complete_checksum(&mut packet);
        prop_assert_eq!(packet.frame().bytes(), flow.whole());
        let (mut octets, offload) = flow.super_frame();
        if !matches!(flow.carrier, Carrier::Gre { .. }) {
            complete_octets(&mut octets, offload.checksum);
            prop_assert_eq!(&octets, &flow.whole());
        }
        // It can be cut as before.
        let mut pool = pool();
        let (made, _) = collect(|out| {
            segment(packet, Capabilities::empty(), &mut pool, &mut |piece| out.push(piece))
        });
        let octets: Vec<_> = made.iter().map(|piece| piece.frame().bytes().to_vec()).collect();
        prop_assert_eq!(octets, flow.segments());
    }

    #[test]
    fn one_segment_is_an_ordinary_packet(mut flow in any_flow(), more in 0..100_u16) {
        flow.payload.truncate(1400);
        flow.size = u16::try_from(flow.payload.len()).unwrap() + more;
        let mut packet = parsed(&flow, &mut pool());
        prop_assert_eq!(packet.frame().offload().segmentation, None);
        complete_checksum(&mut packet);
        prop_assert_eq!(packet.frame().bytes(), flow.whole());
    }

    #[test]
    fn fragments_of_segments_make_up_the_segments(mut flow in any_flow(), mtu in 200..600_usize) {
        flow.outer_v6 = false;
        let mut pool = pool();
        let packet = parsed(&flow, &mut pool);
        let (made, adapted) =
            collect(|out| fragment_ipv4(packet, mtu, &mut pool, &mut |piece| out.push(piece)));
        prop_assert_eq!(adapted.dropped, None);
        let mut wholes: Vec<Vec<u8>> = Vec::new();
        for piece in &made {
            prop_assert!(piece.frame().len() <= mtu + ETHERNET_HEADER || piece.wire_len() <= mtu);
            let octets = piece.frame().bytes();
            if piece.fragment() == Fragment::Later {
                wholes.last_mut().unwrap().extend(&octets[34..]);
            } else {
                wholes.push(octets[34..].to_vec());
            }
        }
        // A super-frame whose segments fit travels as it is.
        if made.len() > 1 {
            let expected: Vec<_> = flow.segments().iter().map(|one| one[34..].to_vec()).collect();
            prop_assert_eq!(wholes, expected);
        }
    }
}

#[test]
fn what_a_device_is_left_with_can_be_joined() {
    let flow = vxlan_flow(1398, 7000);
    let mut pool = pool();
    let packet = parsed(&flow, &mut pool);
    let without = ALL - Capabilities::TUNNEL;
    let (made, _) = collect(|out| adapt(packet, without, &mut pool, &mut |piece| out.push(piece)));
    let outer = Checksum::Partial {
        start: 34,
        offset: 6,
    };
    assert!(
        made.iter()
            .all(|piece| piece.frame().offload().checksum == outer)
    );

    let mut flow = vxlan_flow(1398, 7000);
    flow.carrier = Carrier::Udp {
        checksum: false,
        header: vxlan(false),
    };
    let packet = parsed(&flow, &mut pool);
    let (made, _) = collect(|out| {
        adapt(packet, Capabilities::CHECKSUM, &mut pool, &mut |piece| {
            out.push(piece);
        })
    });
    let inner = Checksum::Partial {
        start: 84,
        offset: 16,
    };
    assert!(
        made.iter()
            .all(|piece| piece.frame().offload().checksum == inner)
    );
}

#[test]
fn devices_take_the_tunnels_that_they_know() {
    let mut flow = vxlan_flow(1000, 5000);
    let udp = parsed(&flow, &mut pool()).frame().offload();
    assert!(ALL.take(udp));
    for less in [
        Capabilities::TUNNEL,
        Capabilities::TSO4,
        Capabilities::CHECKSUM,
    ] {
        assert!(!(ALL - less).take(udp), "{less:?}");
    }
    flow.carrier = Carrier::Ip;
    let ip = parsed(&flow, &mut pool()).frame().offload();
    assert!((ALL - Capabilities::TUNNEL).take(ip));
    assert!(!(ALL - Capabilities::IP_TUNNEL).take(ip));
}

#[test]
fn cwr_of_what_is_inside_stays_where_it_belongs() {
    let mut pool = pool();
    let flow = vxlan_flow(100, 250);
    let [_, transport] = flow.inner_offsets();
    for (ecn, expected) in [
        (Ecn::Classic, [0x90, 0x10, 0x19]),
        (Ecn::Accurate, [0x90, 0x90, 0x99]),
        (Ecn::Unmarked, [0x90, 0x90, 0x99]),
    ] {
        let (octets, mut offload) = flow.super_frame();
        offload.segmentation = offload.segmentation.map(|it| Segmentation { ecn, ..it });
        let whole = packet(&mut pool, &octets, offload);
        let (made, _) = collect(|out| {
            segment(whole, Capabilities::empty(), &mut pool, &mut |it| {
                out.push(it);
            })
        });
        let flags: Vec<_> = made
            .iter()
            .map(|it| it.frame().bytes()[transport + 13])
            .collect();
        assert_eq!(flags, expected, "{ecn:?}");
    }
}
