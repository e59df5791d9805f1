//! Flows that are known from elsewhere: what is taken of them.

use super::super::oversize::NOW;
use super::*;
use crate::flows::{FlowKey, FlowState, FlowStatus, NewFlow, Opener, Phase};
use crate::time::Duration;

fn learning() -> Policy {
    Policy {
        outside: Outside::Learn,
        ..guarded()
    }
}

fn given(owner: AttachmentId, transport: Transport, port: u16, remote_port: u16) -> NewFlow {
    NewFlow {
        key: FlowKey {
            // Of no VRF that is here.
            vrf: VrfId(4711),
            transport,
            local: ip(N4),
            local_port: port,
            remote: ip(X4),
            remote_port,
        },
        owner,
        opener: Opener::Owner,
        learnt: true,
        segment: None,
        confirmed: true,
    }
}

fn udp(owner: AttachmentId, port: u16, remote_port: u16) -> NewFlow {
    given(owner, Transport::Udp, port, remote_port)
}

fn flows(world: &World) -> Vec<FlowStatus> {
    let mut rows = Vec::new();
    let mut next = Some(0);
    while let Some(from) = next {
        let page = world.nos.shim.flows(Some(from), NOW);
        rows.extend(page.rows.into_iter().map(|(_, row)| row));
        next = page.next;
    }
    rows
}

#[test]
fn what_was_established_is() {
    let mut world = World::new(learning());
    let tcp = given(WEB, Transport::Tcp, OUTSIDE, 80);
    let opening = NewFlow {
        confirmed: false,
        ..given(WEB, Transport::Tcp, OUTSIDE, 81)
    };
    let unreplied = NewFlow {
        confirmed: false,
        ..udp(WEB, OUTSIDE, 54)
    };
    let all = [tcp, opening, udp(WEB, OUTSIDE, 53), unreplied];
    world.nos.shim.remember_flows(&all, NOW);
    let states = flows(&world);
    let states: Vec<_> = states.iter().map(|it| (it.state, it.key.vrf)).collect();
    let expected = [
        FlowState::Tcp(Phase::Established),
        FlowState::Tcp(Phase::Opening),
        FlowState::Replied,
        FlowState::Unreplied,
    ];
    assert_eq!(states, expected.map(|state| (state, VrfId::DEFAULT)));
    // The outsider says something first, and nobody else may.
    let segment = world.segment((X4, 80), (N4, OUTSIDE), ACK);
    assert_eq!(world.arrives(segment), Some(WEB));
    let datagram = world.datagram((X4, 53), (N4, OUTSIDE));
    assert_eq!(world.arrives(datagram), Some(WEB));
    let datagram = world.datagram((X4, 55), (N4, OUTSIDE));
    assert_eq!(world.arrives(datagram), None);
    // They live as long as any.
    let left: Vec<_> = flows(&world).iter().map(|it| it.left.as_secs()).collect();
    assert_eq!(left[1..], [240, 300, 300]);
    let late = NOW + Duration::from_secs(301);
    assert_eq!(world.nos.shim.flows(None, late).rows.len(), 0);
    world.nos.assert_balanced();
}

#[test]
fn what_nobody_here_may_have_is_left_out() {
    let mut world = World::new(learning());
    // It may not use ports of nobody, and has none of its own that needs flows.
    let db = registration(DB, &[30_000], &[], Policy::default());
    world
        .nos
        .shim
        .exchange(&register(vec![db]), Instant::ZERO)
        .unwrap();
    let of = |remote: &str| {
        let mut flow = udp(WEB, OUTSIDE, 53);
        flow.key.remote = ip(remote);
        flow
    };
    let mut elsewhere = udp(WEB, OUTSIDE, 53);
    elsewhere.key.local = ip(FAR4);
    let unknown = udp(AttachmentId(77), OUTSIDE, 53);
    let left_out = [
        ("an owner that is not here", unknown),
        ("an address that is not the NOS's", elsewhere),
        ("a port of another", udp(WEB, 30_000, 53)),
        ("a port of the NOS", udp(WEB, 7, 53)),
        ("an owner that may not", udp(DB, OUTSIDE, 53)),
    ];
    for (what, flow) in left_out {
        world.nos.shim.remember_flows(&[flow], NOW);
        assert_eq!(flows(&world), [], "{what}");
    }
    // Where it may not open flows to.
    let narrow = Policy {
        to: Some(friends()),
        ..learning()
    };
    let web = registration(WEB, &[OPEN, CLOSED], &[EPHEMERAL], narrow);
    world
        .nos
        .shim
        .exchange(&register(vec![web]), Instant::ZERO)
        .unwrap();
    world.nos.shim.remember_flows(&[of(X4), of(FAR4)], NOW);
    let remotes: Vec<_> = flows(&world).iter().map(|it| it.key.remote).collect();
    assert_eq!(remotes, [ip(X4)]);
    // Without any policy there is no table.
    let mut world = World::new(Policy::default());
    world.nos.shim.remember_flows(&[udp(WEB, OUTSIDE, 53)], NOW);
    assert_eq!(world.nos.shim.flow_count(), None);
}

/// What is said is not believed where it would take something from somebody.
#[test]
fn a_port_or_flow_of_two_is_the_firsts() {
    let mut world = World::new(learning());
    let db = registration(DB, &[30_000], &[], learning());
    world
        .nos
        .shim
        .exchange(&register(vec![db]), Instant::ZERO)
        .unwrap();
    let twice = [
        udp(WEB, OUTSIDE, 53),
        udp(DB, OUTSIDE, 53),
        udp(DB, OUTSIDE, 54),
        udp(DB, OUTSIDE + 1, 54),
    ];
    world.nos.shim.remember_flows(&twice, NOW);
    let owners: Vec<_> = flows(&world).iter().map(|it| it.owner).collect();
    assert_eq!(owners, [WEB, DB]);
    // A port that was learnt, and is the owner's by now, is learnt no more.
    let own = NewFlow {
        learnt: true,
        ..udp(WEB, EPHEMERAL, 53)
    };
    world.nos.shim.remember_flows(&[own], NOW);
    let known = flows(&world);
    let known = known.iter().find(|it| it.key.local_port == EPHEMERAL);
    assert_eq!(known.map(|it| it.learnt), Some(false));
    world.nos.assert_balanced();
}

/// More than there is room for: each owner's share holds, and the newest are kept.
#[test]
fn a_table_that_is_smaller_takes_what_fits() {
    let mut world = World::with(learning(), 64);
    let db = registration(DB, &[30_000], &[], learning());
    world
        .nos
        .shim
        .exchange(&register(vec![db]), Instant::ZERO)
        .unwrap();
    let before = given(DB, Transport::Tcp, OUTSIDE, 80);
    world.nos.shim.remember_flows(&[before], NOW);
    let many: Vec<_> = (1..=1000).map(|port| udp(WEB, OUTSIDE + 1, port)).collect();
    for some in many.chunks(100) {
        world.nos.shim.remember_flows(some, NOW);
    }
    let known = flows(&world);
    assert!(known.len() <= 34, "{}", known.len());
    assert!(known.iter().any(|it| it.key.remote_port == 1000));
    assert!(
        known.iter().any(|it| it.owner == DB),
        "nobody loses a flow to another"
    );
    // Of connections none is given up: those that come later find no place.
    let many: Vec<_> = (1..=1000)
        .map(|port| given(WEB, Transport::Tcp, OUTSIDE + 2, port))
        .collect();
    world.nos.shim.remember_flows(&many, NOW);
    let known = flows(&world);
    let first = known.iter().filter(|it| it.key.transport == Transport::Tcp);
    assert!(first.clone().any(|it| it.key.remote_port == 1));
    assert!(
        first
            .into_iter()
            .all(|it| it.key.remote_port < 64 || it.owner == DB)
    );
    let datagram = world.datagram((N4, OUTSIDE), (X4, 53));
    assert!(world.leaves(DB, datagram), "there is room for another");
    world.nos.assert_balanced();
}
