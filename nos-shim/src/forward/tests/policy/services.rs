//! Who may open flows to services of the NOS.

use super::*;

const SERVICE: u16 = 7;

fn echo_for(from: Option<&Arc<PrefixSet>>) -> ServiceConfig {
    let claims = Service::Echo.claims();
    let rule = |claim: Claim| {
        Some(Restriction {
            transport: claim.transport,
            range: claim.range,
            from: Arc::clone(from?),
        })
    };
    ServiceConfig {
        services: vec![Service::Echo, Service::Discard],
        from: claims.filter_map(rule).collect(),
        ..ServiceConfig::default()
    }
}

fn serve(world: &mut World, from: Option<&Arc<PrefixSet>>) {
    let shim = &mut world.nos.shim;
    shim.set_services(VrfId::DEFAULT, &echo_for(from)).unwrap();
}

/// TCP flags of the answer to a SYN, and what a datagram is answered with: an error, or an echo.
fn answers(
    world: &mut World,
    family: Family,
    source: &str,
) -> (Option<u8>, Option<Option<(u8, u8)>>) {
    let own = family.own();
    let syn = world.segment((source, 999), (own, SERVICE), SYN);
    world.nos.receive(syn);
    let answer = world.nos.sent();
    let flags = answer.first().and_then(Packet::tcp_flags);
    let datagram = world.datagram((source, 999), (own, SERVICE));
    world.nos.receive(datagram);
    let answer = world.nos.sent();
    (flags, answer.first().map(Packet::icmp))
}

#[test]
fn a_service_is_for_some_alone() {
    for family in Family::BOTH {
        let mut world = World::new(Policy::default());
        serve(&mut world, Some(&friends()));
        let (friend, stranger) = (family.friend(), family.stranger());
        assert_eq!(
            answers(&mut world, family, friend),
            (Some(0x12), Some(None))
        );
        // As if nobody listened.
        let unreachable = family.pick((3, 3), (1, 4));
        let refused = (Some(0x14), Some(Some(unreachable)));
        assert_eq!(answers(&mut world, family, stranger), refused);
        assert_eq!(world.drops(DropReason::PolicyFrom), 2);
        // The other service is everybody's.
        let discard = world.segment((stranger, 999), (family.own(), 9), SYN);
        world.nos.receive(discard);
        assert_eq!(world.nos.sent()[0].tcp_flags(), Some(0x12));
        // Nothing is remembered of it.
        assert_eq!(world.nos.shim.flow_count(), None);
        serve(&mut world, None);
        assert_eq!(
            answers(&mut world, family, stranger),
            (Some(0x12), Some(None))
        );
        world.nos.assert_balanced();
    }
}

#[test]
fn containers_are_at_the_address_that_they_share() {
    for family in Family::BOTH {
        let mut world = World::new(Policy::default());
        let own = family.own();
        for (from, expected) in [
            (friends(), Some(family.pick((3, 3), (1, 4)))),
            (set([N4, N6]), None),
        ] {
            serve(&mut world, Some(&from));
            let datagram = world.datagram((own, OPEN), (own, SERVICE));
            world.nos.outbound(WEB, datagram);
            let answer = world.nos.delivered();
            assert_eq!(answer.first().map(Packet::icmp), Some(expected));
        }
        world.nos.assert_balanced();
    }
}

#[test]
fn a_datagram_in_fragments_is_refused_whole() {
    let mut world = World::new(Policy::default());
    serve(&mut world, Some(&friends()));
    let draft = Draft {
        identification: 7,
        ..Draft::new(FAR4, N4)
    };
    let whole = draft.udp((999, SERVICE), &[7; 32]);
    for (fragment, part) in [(0x2000, &whole[..24]), (3, &whole[24..])] {
        let draft = Draft {
            fragment,
            ..draft.clone()
        };
        let packet = draft.packet(&mut world.nos.pool, protocol::UDP, part);
        world.nos.receive(packet);
    }
    assert_eq!(world.nos.sent()[0].icmp(), Some((3, 3)));
    assert_eq!(world.drops(DropReason::PolicyFrom), 1);
    world.nos.assert_balanced();
}
