//! Who would fill the table of flows from outside.

use super::*;

const PLACES: usize = 1024;

/// A segment with flags, sequence number and acknowledgment.
fn numbered(
    world: &mut World,
    (source, from): (&str, u16),
    (to, port): (&str, u16),
    (flags, sequence, acknowledgment): (u8, u32, u32),
) -> Packet {
    let segment = Segment {
        ports: (from, port),
        flags,
        sequence,
        acknowledgment,
        ..Segment::default()
    };
    Draft::new(source, to).tcp_packet(&mut world.nos.pool, &segment)
}

/// An outsider opens flows to a container whose answers need them, and never goes on.
#[test]
fn half_open_flows_of_outsiders_pin_nothing() {
    for family in Family::BOTH {
        let (own, friend, stranger) = (family.own(), family.friend(), family.stranger());
        let web = Policy {
            to: Some(friends()),
            ..guarded()
        };
        let mut world = World::with(web, PLACES);
        let db = registration(
            DB,
            &[],
            &[31_000],
            Policy {
                established: vec![range(31_000)],
                ..Policy::default()
            },
        );
        world
            .nos
            .shim
            .exchange(&register(vec![db]), Instant::ZERO)
            .unwrap();
        // Each has a connection, WEB one of an outsider, and the other two that are theirs.
        let open = |world: &mut World, id, port: u16| {
            let (near, far) = ((own, port), (friend, 80));
            let syn = numbered(world, near, far, (SYN, 100, 0));
            assert!(world.leaves(id, syn));
            let answer = numbered(world, far, near, (SYN | ACK, 500, 101));
            assert_eq!(world.arrives(answer), Some(id));
            let ack = numbered(world, near, far, (ACK, 101, 501));
            assert!(world.leaves(id, ack));
        };
        open(&mut world, WEB, EPHEMERAL);
        open(&mut world, DB, 31_000);
        let unanswered = world.segment((own, 31_001), (friend, 80), SYN);
        assert!(world.leaves(DB, unanswered));
        for round in 0..40_u16 {
            for port in 1..=100 {
                let flood = world.segment((stranger, round * 100 + port), (own, OPEN), SYN);
                assert_eq!(world.arrives(flood), Some(WEB));
            }
        }
        let count = world.nos.shim.flow_count().unwrap();
        assert!(count < PLACES / 4, "{count}");
        let oldest = world.segment((own, OPEN), (stranger, 1), SYN | ACK);
        assert!(!world.leaves(WEB, oldest), "the oldest has made way");
        let newest = world.segment((own, OPEN), (stranger, 4000), SYN | ACK);
        assert!(world.leaves(WEB, newest));
        for (id, port) in [(WEB, EPHEMERAL), (DB, 31_000)] {
            let more = world.segment((friend, 80), (own, port), ACK);
            assert_eq!(world.arrives(more), Some(id));
        }
        let answer = world.segment((friend, 80), (own, 31_001), SYN | ACK);
        assert_eq!(
            world.arrives(answer),
            Some(DB),
            "nobody else gives up anything"
        );
        world.nos.assert_balanced();
    }
}
