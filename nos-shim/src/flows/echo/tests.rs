use super::*;
use crate::ident::AttachmentId;
use proptest::prelude::*;

const A: Owner = Owner::Attachment(AttachmentId(1));
const B: Owner = Owner::Attachment(AttachmentId(2));

fn key(remote: u8, id: u16) -> EchoKey {
    EchoKey {
        vrf: VrfId(0),
        local: IpAddr::from([203, 0, 113, 1]),
        remote: IpAddr::from([198, 51, 100, remote]),
        id,
    }
}

fn flows(flows: usize, per_owner: usize) -> EchoFlows {
    EchoFlows::new(Limits {
        flows,
        per_owner,
        ..EchoFlows::LIMITS
    })
}

fn seconds(n: u64) -> Instant {
    Instant::from_millis(n * 1000)
}

#[test]
fn the_first_keeps_its_identifier_and_the_second_gets_another() {
    let mut flows = EchoFlows::default();
    let now = seconds(1);
    assert_eq!(flows.outbound(A, key(2, 7), now), Ok(7));
    assert_eq!(flows.outbound(A, key(2, 7), now), Ok(7));
    let other = flows.outbound(B, key(2, 7), now).unwrap();
    assert_ne!(other, 7);
    assert_eq!(flows.outbound(B, key(2, 7), now), Ok(other));
    assert_eq!(flows.outbound(B, key(3, 7), now), Ok(7), "another host");
    let nos = flows.outbound(Owner::Nos, key(2, 7), now).unwrap();
    assert!(nos != 7 && nos != other);
    for (id, owner) in [(7, A), (other, B), (nos, Owner::Nos)] {
        let echo = flows.inbound(key(2, id), now);
        assert_eq!(echo, Some(Echo { owner, id: 7 }));
    }
    let elsewhere = EchoKey {
        vrf: VrfId(1),
        ..key(2, 7)
    };
    assert_eq!(flows.inbound(elsewhere, now), None);
    assert_eq!(flows.outbound(B, elsewhere, now), Ok(7), "another VRF");
}

#[test]
fn another_table_takes_flows_up_as_they_are() {
    let mut flows = EchoFlows::default();
    let rewritten = {
        flows.outbound(A, key(2, 7), seconds(0)).unwrap();
        flows.outbound(B, key(2, 7), seconds(50)).unwrap()
    };
    for remote in 0..200 {
        flows.outbound(A, key(remote, 9), seconds(50)).unwrap();
    }
    let now = seconds(65);
    let mut other = EchoFlows::default();
    // Here A has asked already, by the identifier that B has there.
    other.outbound(A, key(3, 9), now).unwrap();
    let mut cursor = Some(0);
    let mut told = 0;
    while let Some(first) = cursor {
        let page = flows.page(first, now);
        told += page.rows.len();
        page.rows.iter().for_each(|flow| other.remember(flow, now));
        cursor = page.next;
    }
    assert_eq!(told, 201, "all but the one that is idle");
    assert_eq!(other.len(), 201);
    let echo = other.inbound(key(2, rewritten), now);
    assert_eq!(echo, Some(Echo { owner: B, id: 7 }));
    assert_eq!(other.outbound(B, key(2, 7), now), Ok(rewritten));
    assert_eq!(other.outbound(A, key(2, 9), now), Ok(9));
    assert_eq!(other.len(), 201);
    assert_eq!(other.inbound(key(2, 7), now), None);
    // An identifier on the wire that is somebody else's by now stays his.
    assert_eq!(other.outbound(B, key(2, 11), now), Ok(11));
    let late = EchoFlow {
        owner: A,
        key: key(2, 11),
        id: 12,
    };
    other.remember(&late, now);
    assert_eq!(
        other.inbound(key(2, 11), now),
        Some(Echo { owner: B, id: 11 })
    );
}

#[test]
fn a_mapping_lasts_sixty_seconds_from_the_last_request() {
    let mut flows = EchoFlows::default();
    flows.outbound(A, key(2, 7), seconds(0)).unwrap();
    let other = flows.outbound(B, key(2, 7), seconds(1)).unwrap();
    flows.outbound(A, key(2, 7), seconds(50)).unwrap();
    let just_before = Instant::from_millis(60_999);
    assert!(flows.inbound(key(2, other), just_before).is_some());
    assert_eq!(flows.inbound(key(2, other), seconds(61)), None);
    assert!(flows.inbound(key(2, 7), seconds(109)).is_some());
    assert_eq!(flows.expire(seconds(70)), 1);
    assert_eq!(flows.expire(seconds(120)), 1);
    assert_eq!((flows.len(), flows.poll_at()), (0, None));
}

#[test]
fn an_identifier_that_has_been_given_up_is_free_again() {
    let mut flows = EchoFlows::default();
    flows.outbound(A, key(2, 7), seconds(0)).unwrap();
    let other = flows.outbound(B, key(2, 7), seconds(0)).unwrap();
    assert_eq!(flows.outbound(B, key(2, 7), seconds(60)), Ok(7));
    assert_eq!(flows.inbound(key(2, other), seconds(60)), None);
    assert_eq!(flows.flush(B), 1);
    assert_eq!(flows.inbound(key(2, 7), seconds(60)), None);
}

#[test]
fn a_flood_costs_nobody_else_a_flow() {
    let mut flows = flows(100, 60);
    flows.outbound(A, key(2, 7), seconds(0)).unwrap();
    for id in 0..10_000 {
        assert!(flows.outbound(B, key(2, id), seconds(1)).is_ok());
    }
    assert_eq!(flows.len(), 61);
    assert!(
        flows
            .inbound(key(2, 7), seconds(1))
            .is_some_and(|echo| echo.owner == A)
    );
    let c = Owner::Attachment(AttachmentId(3));
    for id in 0..10_000 {
        assert!(flows.outbound(c, key(3, id), seconds(1)).is_ok());
    }
    assert_eq!(flows.len(), 100);
    let d = Owner::Attachment(AttachmentId(4));
    let refused = flows.outbound(d, key(2, 1), seconds(1));
    assert_eq!(refused, Err(DropReason::FlowTableFull));
    assert_eq!(flows.flush(B), 60);
    assert!(flows.outbound(d, key(2, 1), seconds(1)).is_ok());
}

#[test]
fn a_host_can_be_pinged_by_many_with_one_identifier() {
    let mut flows = flows(40_000, 1024);
    let mut ids = std::collections::BTreeSet::new();
    for n in 0..30_000 {
        let owner = Owner::Attachment(AttachmentId(n));
        let id = flows.outbound(owner, key(2, 1), seconds(0)).unwrap();
        assert!(ids.insert(id));
        assert_eq!(
            flows.inbound(key(2, id), seconds(0)),
            Some(Echo { owner, id: 1 })
        );
    }
}

#[derive(Clone, Debug)]
enum Step {
    Ping { owner: u8, remote: u8, id: u16 },
    Flush(u8),
    Wait(u64),
    Expire,
}

fn step() -> impl Strategy<Value = Step> {
    let ping = (0..4_u8, 0..2_u8, 0..4_u16).prop_map(|(owner, remote, id)| Step::Ping {
        owner,
        remote,
        id,
    });
    prop_oneof![
        12 => ping,
        1 => (0..4_u8).prop_map(Step::Flush),
        3 => prop_oneof![0..10_u64, 20..70_u64].prop_map(Step::Wait),
        2 => Just(Step::Expire),
    ]
}

fn owner(n: u8) -> Owner {
    match n {
        0 => Owner::Nos,
        n => Owner::Attachment(AttachmentId(n.into())),
    }
}

#[derive(Clone, Debug)]
struct Known {
    owner: Owner,
    sent: EchoKey,
    wire: u16,
    used_at: u64,
}

proptest! {
    /// Bounds are out of reach here; the flow table's own tests have them.
    #[test]
    fn replies_find_who_sent_the_request(steps in proptest::collection::vec(step(), 1..150)) {
        let mut flows = EchoFlows::default();
        let mut list: Vec<Known> = Vec::new();
        let mut now = 1000;
        for step in steps {
            let fresh = |flow: &Known| now - flow.used_at < 60;
            match step {
                Step::Ping { owner: n, remote, id } => {
                    let sent = key(remote, id);
                    let wire = flows.outbound(owner(n), sent, seconds(now)).unwrap();
                    list.retain(fresh);
                    let same = |flow: &&mut Known| flow.owner == owner(n) && flow.sent == sent;
                    if let Some(known) = list.iter_mut().find(same) {
                        prop_assert_eq!(wire, known.wire);
                        known.used_at = now;
                    } else {
                        let in_use = |wire| list.iter().any(|flow| flow.sent.remote == sent.remote && flow.wire == wire);
                        prop_assert!(!in_use(wire));
                        prop_assert_eq!(wire == id, !in_use(id));
                        list.push(Known { owner: owner(n), sent, wire, used_at: now });
                    }
                }
                Step::Flush(n) => {
                    flows.flush(owner(n));
                    list.retain(|flow| flow.owner != owner(n));
                }
                Step::Wait(seconds) => now += seconds,
                Step::Expire => {
                    flows.expire(seconds(now));
                    prop_assert!(flows.poll_at().is_none_or(|at| at > seconds(now)));
                }
            }
            let fresh = |flow: &&Known| now - flow.used_at < 60;
            prop_assert!(flows.len() >= list.iter().filter(fresh).count());
            for remote in 0..2 {
                let wires = list.iter().map(|flow| flow.wire).chain(0..4);
                for wire in wires {
                    let it = |flow: &&Known| flow.wire == wire && flow.sent.remote == key(remote, 0).remote;
                    let known = list.iter().filter(fresh).find(it);
                    let echo = known.map(|flow| Echo { owner: flow.owner, id: flow.sent.id });
                    prop_assert_eq!(flows.inbound(key(remote, wire), seconds(now)), echo);
                }
            }
        }
        flows.expire(seconds(now + 100));
        prop_assert!(flows.is_empty());
        prop_assert!(flows.requests.is_empty());
    }
}
