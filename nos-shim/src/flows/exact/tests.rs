use super::*;
use crate::ident::VrfId;
use core::net::IpAddr;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const A: AttachmentId = AttachmentId(1);
const B: AttachmentId = AttachmentId(2);

fn at(seconds: u64) -> Instant {
    Instant::from_millis(1_000_000 + seconds * 1000)
}

fn key(transport: Transport, local_port: u16, remote_port: u16) -> FlowKey {
    FlowKey {
        vrf: VrfId::DEFAULT,
        transport,
        local: IpAddr::from([203, 0, 113, 1]),
        local_port,
        remote: IpAddr::from([198, 51, 100, 9]),
        remote_port,
    }
}

fn flow(owner: AttachmentId, key: FlowKey) -> NewFlow {
    NewFlow {
        key,
        owner,
        opener: Opener::Owner,
        learnt: false,
        segment: None,
        confirmed: false,
    }
}

fn udp(owner: AttachmentId, local_port: u16, remote_port: u16) -> NewFlow {
    flow(owner, key(Transport::Udp, local_port, remote_port))
}

/// Opens a TCP connection up to where data may flow.
fn establish(flows: &mut ExactFlows, owner: AttachmentId, key: FlowKey, now: Instant) {
    let [syn, syn_ack, ack] = super::super::follow::tests::handshake(1000, 5000);
    let new = NewFlow {
        segment: Some(syn),
        ..flow(owner, key)
    };
    flows.open(&new, now).unwrap();
    assert_eq!(flows.inbound(&key, Some(&syn_ack), now), Some(owner));
    assert!(flows.outbound(owner, &key, Some(&ack), now));
}

#[test]
fn flows_are_told_by_all_of_their_key() {
    let mut flows = ExactFlows::new(64);
    let known = key(Transport::Udp, 5000, 53);
    flows.open(&flow(A, known), at(0)).unwrap();
    let others = [
        FlowKey {
            vrf: VrfId(1),
            ..known
        },
        FlowKey {
            transport: Transport::Tcp,
            ..known
        },
        FlowKey {
            local: IpAddr::from([203, 0, 113, 2]),
            ..known
        },
        FlowKey {
            local_port: 5001,
            ..known
        },
        FlowKey {
            remote: IpAddr::from([198, 51, 100, 8]),
            ..known
        },
        FlowKey {
            remote_port: 54,
            ..known
        },
    ];
    for other in others {
        assert_eq!(flows.inbound(&other, None, at(0)), None, "{other:?}");
        assert!(!flows.outbound(A, &other, None, at(0)), "{other:?}");
    }
    assert_eq!(flows.inbound(&known, None, at(0)), Some(A));
    assert!(!flows.outbound(B, &known, None, at(0)), "it is A's");
}

#[test]
fn a_flow_lasts_as_long_as_its_state_says() {
    let minute = 60;
    let mut flows = ExactFlows::new(64);
    let tcp = key(Transport::Tcp, 5000, 80);
    establish(&mut flows, A, tcp, at(0));
    let datagrams = key(Transport::Udp, 5000, 53);
    flows.open(&flow(A, datagrams), at(0)).unwrap();
    let opening = key(Transport::Tcp, 5001, 80);
    let [syn, ..] = super::super::follow::tests::handshake(1, 2);
    let new = NewFlow {
        segment: Some(syn),
        ..flow(A, opening)
    };
    flows.open(&new, at(0)).unwrap();
    for (key, last) in [
        (tcp, 124 * minute),
        (datagrams, 5 * minute),
        (opening, 4 * minute),
    ] {
        assert_eq!(flows.owner_of(&key, at(last - 1)), Some(A), "{key:?}");
        assert_eq!(flows.owner_of(&key, at(last)), None, "{key:?}");
    }
    // The wheel is late by a tick at most, and looks at nothing too often.
    let mut looks = 0;
    let mut now = at(0);
    while let Some(due) = flows.poll_at() {
        now = due;
        flows.expire(now);
        looks += 1;
        let alive = [(tcp, 124), (datagrams, 5), (opening, 4)];
        let alive = alive
            .iter()
            .filter(|(_, minutes)| now < at(minutes * minute));
        let late = flows.len() - alive.count();
        let slack = at(124 * minute + 20);
        assert!(late == 0 || now < slack, "{late} are left");
        assert!(looks < 64, "{looks}");
    }
    assert!(flows.is_empty() && flows.index.is_empty() && flows.owner_index.is_empty());
    assert!(now.since(at(124 * minute)) < Duration::from_secs(20));
}

#[test]
fn a_port_is_learnt_as_long_as_a_flow_lives() {
    let mut flows = ExactFlows::new(64);
    let first = key(Transport::Udp, 5000, 53);
    let second = key(Transport::Udp, 5000, 54);
    for key in [first, second] {
        let new = NewFlow {
            learnt: true,
            ..flow(A, key)
        };
        flows.open(&new, at(0)).unwrap();
    }
    let third = FlowKey {
        remote_port: 99,
        ..first
    };
    assert_eq!(flows.learnt_by(&third), Some(A));
    assert_eq!(
        flows.learnt_by(&FlowKey {
            local_port: 5001,
            ..third
        }),
        None
    );
    assert_eq!(
        flows.learnt_by(&FlowKey {
            vrf: VrfId(7),
            ..third
        }),
        None
    );
    flows.outbound(A, &second, None, at(200));
    flows.expire(at(310));
    assert_eq!((flows.len(), flows.learnt_by(&third)), (1, Some(A)));
    flows.expire(at(520));
    assert_eq!((flows.len(), flows.learnt_by(&third)), (0, None));
    assert!(flows.learnt_index.is_empty());
}

#[test]
fn what_was_announced_comes_once_from_any_port() {
    let mut flows = ExactFlows::new(64);
    let expected = key(Transport::Tcp, 6000, 0);
    let new = NewFlow {
        opener: Opener::Peer,
        learnt: true,
        ..flow(A, expected)
    };
    flows.open(&new, at(0)).unwrap();
    let [syn, _, ack] = super::super::follow::tests::handshake(7, 9);
    let data = key(Transport::Tcp, 6000, 20);
    assert_eq!(
        flows.inbound(&data, Some(&ack), at(1)),
        None,
        "it opens nothing"
    );
    let stranger = FlowKey {
        remote: IpAddr::from([192, 0, 2, 1]),
        ..data
    };
    assert_eq!(flows.inbound(&stranger, Some(&syn), at(1)), None);
    assert_eq!(flows.inbound(&data, Some(&syn), at(1)), Some(A));
    assert_eq!(flows.learnt_by(&data), Some(A));
    let again = FlowKey {
        remote_port: 21,
        ..data
    };
    assert_eq!(
        flows.inbound(&again, Some(&syn), at(1)),
        None,
        "it has come"
    );
    assert_eq!(flows.len(), 1);
}

#[test]
fn a_peer_does_not_open_anew_what_has_ended() {
    let mut flows = ExactFlows::new(64);
    let tcp = key(Transport::Tcp, 5000, 80);
    establish(&mut flows, A, tcp, at(0));
    let reset = super::super::follow::tests::reset(5001, 1001);
    assert_eq!(flows.inbound(&tcp, Some(&reset), at(1)), Some(A));
    let [syn, ..] = super::super::follow::tests::handshake(9000, 1);
    assert_eq!(flows.inbound(&tcp, Some(&syn), at(1)), None);
    assert!(flows.outbound(A, &tcp, Some(&syn), at(1)), "its owner does");
    assert_eq!(
        flows.page(0, at(1)).rows[0].state,
        FlowState::Tcp(Phase::Opening)
    );
}

/// A flood of one owner, however long, takes nothing from another, nor its own connections.
#[test]
fn a_flood_takes_no_connection() {
    for capacity in [64, 1024] {
        let mut flows = ExactFlows::new(capacity);
        let connections = u16::try_from(capacity / 8).unwrap();
        for port in 0..connections {
            establish(&mut flows, A, key(Transport::Tcp, 5000 + port, 80), at(0));
            establish(&mut flows, B, key(Transport::Tcp, 15_000 + port, 80), at(0));
        }
        let [syn, ..] = super::super::follow::tests::handshake(1, 2);
        for n in 0..20_000_u16 {
            let key = key(Transport::Tcp, 30_000 + n, 80);
            let new = NewFlow {
                segment: Some(syn),
                ..flow(A, key)
            };
            assert_eq!(flows.open(&new, at(1)), Ok(()));
            assert_eq!(flows.owner_of(&key, at(1)), Some(A), "the newest is there");
        }
        for port in 0..connections {
            let own = key(Transport::Tcp, 5000 + port, 80);
            assert_eq!(flows.owner_of(&own, at(1)), Some(A));
            let other = key(Transport::Tcp, 15_000 + port, 80);
            assert_eq!(flows.owner_of(&other, at(1)), Some(B));
        }
        // Half-open ones hold a fifth of what was free at most: there is room for others.
        let free = capacity - flows.len();
        let passing = flows.count(A) - usize::from(connections);
        assert!(passing <= free / PASSING + 1, "{passing} of {free}");
        establish(&mut flows, B, key(Transport::Tcp, 60_000, 80), at(1));
    }
}

#[test]
fn an_owner_with_connections_only_gets_no_more_than_its_share() {
    let mut flows = ExactFlows::new(64);
    let [syn, ..] = super::super::follow::tests::handshake(1, 2);
    let mut opened = 0;
    for port in 0..64 {
        let key = key(Transport::Tcp, 5000 + port, 80);
        let new = NewFlow {
            segment: Some(syn),
            ..flow(A, key)
        };
        if flows.open(&new, at(0)).is_err() {
            break;
        }
        flows.slots.len();
        let [_, syn_ack, ack] = super::super::follow::tests::handshake(1, 2);
        flows.inbound(&key, Some(&syn_ack), at(0));
        flows.outbound(A, &key, Some(&ack), at(0));
        opened += 1;
    }
    assert_eq!(opened, 32, "half of all");
    let new = udp(B, 7000, 53);
    assert_eq!(flows.open(&new, at(0)), Ok(()), "another has room");
}

#[test]
fn datagrams_make_way_for_their_owners_newer_ones() {
    let mut flows = ExactFlows::new(64);
    for port in 0..200 {
        let new = udp(A, 5000 + port, 53);
        flows.open(&new, at(0)).unwrap();
        flows.inbound(&new.key, None, at(0));
    }
    assert_eq!(flows.count(A), 32);
    assert_eq!(flows.owner_of(&udp(A, 5199, 53).key, at(0)), Some(A));
}

/// What the documentation of `relay.flows` says: a place with what leads to it. An owner and a learnt port
/// have places of their own, of which there are as many.
#[test]
fn a_flow_takes_as_much_as_is_said() {
    let number = size_of::<u32>();
    // An index has two cells for each place, rounded up to a power of two.
    let index = 2 * size_of::<u64>();
    let links = 2 * number;
    let slot = size_of::<Option<Slot>>() + number;
    // In the list of its owner, and in the wheel.
    let flow = slot + index + 2 * links;
    let learnt = size_of::<Option<LearntPort>>() + number + index;
    let owner = size_of::<Option<OwnerEntry>>() + number + index;
    assert_eq!((flow, learnt, owner), (188, 52, 84));
}

#[test]
fn all_flows_are_read_in_pages() {
    let mut flows = ExactFlows::new(1000);
    for port in 0..300 {
        let new = udp(if port % 2 == 0 { A } else { B }, 5000 + port, 53);
        flows.open(&new, at(0)).unwrap();
        flows.inbound(&new.key, None, at(0));
    }
    let (mut seen, mut from) = (BTreeSet::new(), Some(0));
    while let Some(first) = from {
        let page = flows.page(first, at(60));
        assert!(page.rows.len() <= PAGE);
        for row in &page.rows {
            assert_eq!((row.idle.as_secs(), row.left.as_secs()), (60, 240));
            assert_eq!(row.state, FlowState::Replied);
        }
        seen.extend(page.rows.iter().map(|row| row.key.local_port));
        from = page.next;
    }
    assert_eq!(seen.len(), 300);
}

/// What the model knows of a flow.
#[derive(Clone, Copy, Debug)]
struct Known {
    owner: AttachmentId,
    learnt: bool,
    replied: bool,
    used_at: Instant,
}

#[derive(Clone, Debug)]
enum Operation {
    Open(u8, u16, u16, bool),
    Outbound(u8, u16, u16),
    Inbound(u16, u16),
    Wait(u64),
    Flush(u8),
    Expire,
}

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    let (owner, port, peer) = (0..4_u8, 1..12_u16, 1..6_u16);
    let one = prop_oneof![
        8 => (owner.clone(), port.clone(), peer.clone(), any::<bool>())
            .prop_map(|(owner, port, peer, learnt)| Operation::Open(owner, port, peer, learnt)),
        4 => (owner.clone(), port.clone(), peer.clone())
            .prop_map(|(owner, port, peer)| Operation::Outbound(owner, port, peer)),
        4 => (port, peer).prop_map(|(port, peer)| Operation::Inbound(port, peer)),
        2 => (0..400_u64).prop_map(Operation::Wait),
        1 => owner.prop_map(Operation::Flush),
        1 => Just(Operation::Expire),
    ];
    prop::collection::vec(one, 1..300)
}

proptest! {
    /// Against a map from keys to flows. What the table gives up to make room it may choose, within the
    /// rules: of the owner that opens one, and nothing with an answer while there is one without.
    #[test]
    fn it_agrees_with_a_map(steps in operations(), capacity in 1..24_usize) {
        let mut flows = ExactFlows::new(capacity);
        let mut model: BTreeMap<FlowKey, Known> = BTreeMap::new();
        let mut now = at(0);
        for step in steps {
            model.retain(|_, known| now.since(known.used_at) < DATAGRAM);
            match step {
                Operation::Open(owner, port, peer, learnt) => {
                    let new = NewFlow { learnt, ..udp(AttachmentId(owner.into()), port, peer) };
                    // As whoever opens flows does.
                    let foreign = model.get(&new.key).is_some_and(|it| it.owner != new.owner)
                        || flows.learnt_by(&new.key).is_some_and(|other| other != new.owner);
                    let others = learnt && flows.slots.places() > 0 && model.iter().any(|(key, it)| {
                        key.local_port == port && it.owner != new.owner
                    });
                    if foreign || others {
                        continue;
                    }
                    model.remove(&new.key);
                    let opened = flows.open(&new, now);
                    let gone: Vec<_> = model
                        .iter()
                        .filter(|(key, _)| flows.owner_of(key, now).is_none())
                        .map(|(key, known)| (*key, *known))
                        .collect();
                    for (_, known) in &gone {
                        prop_assert_eq!(known.owner, new.owner, "nobody loses a flow to another");
                    }
                    let answered = gone.iter().any(|(_, known)| known.replied);
                    for (key, _) in &gone {
                        model.remove(key);
                    }
                    let unanswered = model
                        .values()
                        .any(|it| it.owner == new.owner && !it.replied);
                    prop_assert!(!(answered && unanswered), "an answered one went first");
                    match opened {
                        Ok(()) => {
                            let known = Known { owner: new.owner, learnt, replied: false, used_at: now };
                            model.insert(new.key, known);
                        }
                        Err(Full) => {
                            let has_any = model.values().any(|it| it.owner == new.owner);
                            prop_assert!(!has_any, "it had something to give up");
                            prop_assert!(flows.len() >= capacity);
                        }
                    }
                }
                Operation::Outbound(owner, port, peer) => {
                    let key = key(Transport::Udp, port, peer);
                    let owner = AttachmentId(owner.into());
                    let known = model.get_mut(&key).filter(|it| it.owner == owner);
                    prop_assert_eq!(flows.outbound(owner, &key, None, now), known.is_some());
                    if let Some(known) = known {
                        known.used_at = now;
                    }
                }
                Operation::Inbound(port, peer) => {
                    let key = key(Transport::Udp, port, peer);
                    let known = model.get_mut(&key);
                    let owner = known.as_ref().map(|it| it.owner);
                    prop_assert_eq!(flows.inbound(&key, None, now), owner);
                    if let Some(known) = known {
                        known.used_at = now;
                        known.replied = true;
                    }
                }
                Operation::Wait(seconds) => now = now + Duration::from_secs(seconds),
                Operation::Flush(owner) => {
                    let owner = AttachmentId(owner.into());
                    flows.flush(owner);
                    model.retain(|_, known| known.owner != owner);
                    prop_assert_eq!(flows.count(owner), 0);
                }
                Operation::Expire => flows.expire(now),
            }
            prop_assert!(flows.len() <= capacity);
            for (key, known) in &model {
                let alive = now.since(known.used_at) < DATAGRAM;
                prop_assert_eq!(flows.owner_of(key, now), alive.then_some(known.owner));
                if known.learnt && alive {
                    prop_assert_eq!(flows.learnt_by(key), Some(known.owner));
                }
            }
        }
        now = now + DATAGRAM + Duration::from_secs(20);
        flows.expire(now);
        prop_assert!(flows.is_empty() && flows.index.is_empty());
        prop_assert!(flows.learnt.len() == 0 && flows.learnt_index.is_empty());
        prop_assert!(flows.owner_index.is_empty() && flows.poll_at().is_none());
    }
}
