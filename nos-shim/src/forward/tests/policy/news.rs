//! What the operator is told of refusals.

use super::*;
use crate::channel::{NosEvent, PolicyRefusal, RefusedSide, Refuser};

fn told(world: &mut World) -> Vec<PolicyRefusal> {
    let events = world.nos.events().into_iter();
    let refusals = events.filter_map(|event| match event {
        NosEvent::Refused(refusal) => Some(refusal),
        NosEvent::AddressConflict { .. } => None,
    });
    refusals.collect()
}

#[test]
fn every_refusal_names_port_and_owner() {
    let strict = Policy {
        to: Some(friends()),
        outside: Outside::Learn,
        ..guarded()
    };
    for family in Family::BOTH {
        let mut world = World::new(strict.clone());
        let db = registration(DB, &[30_000], &[], strict.clone());
        world
            .nos
            .shim
            .exchange(&register(vec![db]), Instant::ZERO)
            .unwrap();
        let (own, friend, stranger) = (family.own(), family.friend(), family.stranger());
        let learn = world.datagram((own, OUTSIDE), (friend, 53));
        assert!(world.leaves(WEB, learn));
        assert_eq!(told(&mut world), []);

        let base = PolicyRefusal {
            refuser: Refuser::Attachment(WEB),
            sender: RefusedSide::Peer,
            reason: DropReason::PolicyFrom,
            protocol: protocol::UDP,
            port: Some(CLOSED),
            remote: ip(stranger),
            remote_port: Some(999),
            holder: None,
            dropped: 1,
        };
        let packet = world.datagram((stranger, 999), (own, CLOSED));
        assert_eq!(world.arrives(packet), None);
        assert_eq!(told(&mut world), [base]);

        let packet = world.segment((stranger, 80), (own, EPHEMERAL), ACK);
        assert_eq!(world.arrives(packet), None);
        let expected = PolicyRefusal {
            reason: DropReason::NoFlow,
            protocol: protocol::TCP,
            port: Some(EPHEMERAL),
            remote_port: Some(80),
            ..base
        };
        assert_eq!(told(&mut world), [expected]);

        // What it sends: to others than it may, and from ports of others, also learnt ones.
        let packet = world.datagram((own, OPEN), (stranger, 53));
        assert!(!world.leaves(WEB, packet));
        let expected = PolicyRefusal {
            sender: RefusedSide::Owner,
            reason: DropReason::PolicyTo,
            port: Some(OPEN),
            remote_port: Some(53),
            ..base
        };
        assert_eq!(told(&mut world), [expected]);
        let kind = family.pick(8, 128);
        let echo = Draft::new(own, stranger);
        let echo = echo.icmp_packet(&mut world.nos.pool, (kind, 0), 7 << 16, b"");
        assert!(!world.leaves(WEB, echo));
        let expected = PolicyRefusal {
            protocol: family.pick(protocol::ICMP, protocol::ICMPV6),
            port: None,
            remote_port: None,
            ..expected
        };
        assert_eq!(told(&mut world), [expected]);
        for (id, port, holder) in [(WEB, 30_000, None), (DB, OUTSIDE, Some(WEB))] {
            let packet = world.datagram((own, port), (friend, 54));
            assert!(!world.leaves(id, packet));
            let expected = PolicyRefusal {
                refuser: Refuser::Attachment(id),
                sender: RefusedSide::Owner,
                reason: DropReason::SourcePort,
                port: Some(port),
                remote: ip(friend),
                remote_port: Some(54),
                holder,
                ..base
            };
            assert_eq!(told(&mut world), [expected]);
        }

        // What the containers were told.
        world.nos.delivered();
        // Services of the NOS.
        let rule = Restriction {
            transport: Transport::Udp,
            range: PortRange::new(7, 7).unwrap(),
            from: friends(),
        };
        let config = ServiceConfig {
            services: vec![Service::Echo],
            from: vec![rule],
            ..ServiceConfig::default()
        };
        world
            .nos
            .shim
            .set_services(VrfId::DEFAULT, &config)
            .unwrap();
        let packet = world.datagram((stranger, 999), (own, 7));
        assert_eq!(world.arrives(packet), None);
        let expected = PolicyRefusal {
            refuser: Refuser::Services(VrfId::DEFAULT),
            port: Some(7),
            ..base
        };
        assert_eq!(told(&mut world), [expected]);
        world.nos.assert_balanced();
    }
}

/// A datagram whose first fragment is refused is told of once, when it is whole.
#[test]
fn fragments_are_told_of_once() {
    let mut world = World::new(guarded());
    let draft = Draft {
        identification: 7,
        ..Draft::new(FAR4, N4)
    };
    let whole = draft.udp((999, CLOSED), &[7; 32]);
    for (fragment, part) in [(0x2000, &whole[..24]), (3, &whole[24..])] {
        let draft = Draft {
            fragment,
            ..draft.clone()
        };
        let packet = draft.packet(&mut world.nos.pool, protocol::UDP, part);
        assert_eq!(world.arrives(packet), None);
    }
    let told = told(&mut world);
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!((told[0].port, told[0].dropped), (Some(CLOSED), 1));
    world.nos.assert_balanced();
}

/// What outsiders do does not hide what the container does, nor what is done to another.
#[test]
fn a_flood_of_one_kind_hides_no_other() {
    let mut world = World::new(guarded());
    let db = registration(
        DB,
        &[31_000],
        &[],
        Policy {
            from: from_friends(31_000),
            ..Policy::default()
        },
    );
    world
        .nos
        .shim
        .exchange(&register(vec![db]), Instant::ZERO)
        .unwrap();
    for _ in 0..200 {
        let packet = world.segment((FAR4, 999), (N4, CLOSED), SYN);
        assert_eq!(world.arrives(packet), None);
    }
    let flood = told(&mut world);
    assert_eq!(flood.len(), 3, "{flood:?}");
    assert!(flood.iter().all(|it| it.dropped == 1));
    for port in [EPHEMERAL, 31_000] {
        let packet = world.segment((FAR4, 999), (N4, port), SYN);
        assert_eq!(world.arrives(packet), None);
        let told = told(&mut world);
        assert_eq!(told.len(), 1);
        assert_eq!(told[0].port, Some(port));
    }
    world.nos.assert_balanced();
}
