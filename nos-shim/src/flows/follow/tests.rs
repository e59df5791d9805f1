//! Traces of connections as Linux has them, and what outsiders may try.

use super::*;
use proptest::prelude::*;

use Side::{Owner, Peer};

const SYN: u8 = flag::SYN;
const ACK: u8 = flag::ACK;
const FIN: u8 = flag::FIN | flag::ACK;
const RST: u8 = flag::RST;

fn segment(flags: u8, sequence: u32, acknowledgment: u32, len: u32) -> Segment {
    Segment {
        flags,
        sequence,
        acknowledgment,
        window: 64_240,
        len,
        scale: (flags & SYN != 0).then_some(7),
    }
}

/// SYN, SYN with ACK, ACK, with these initial sequence numbers.
pub(in crate::flows) fn handshake(owner: u32, peer: u32) -> [Segment; 3] {
    let (owner_next, peer_next) = (owner.wrapping_add(1), peer.wrapping_add(1));
    [
        segment(SYN, owner, 0, 0),
        segment(SYN | ACK, peer, owner_next, 0),
        segment(ACK, owner_next, peer_next, 0),
    ]
}

pub(in crate::flows) fn reset(sequence: u32, acknowledgment: u32) -> Segment {
    segment(RST | ACK, sequence, acknowledgment, 0)
}

/// A connection after these segments, all of them plausible.
fn after(trace: &[(Side, Segment)]) -> Connection {
    let (&(side, first), rest) = trace.split_first().unwrap();
    let mut connection = Connection::new(side, &first);
    for (side, segment) in rest {
        assert!(connection.follow(*side, segment), "{side:?} {segment:?}");
    }
    connection
}

fn established(owner: u32, peer: u32) -> Connection {
    let [syn, syn_ack, ack] = handshake(owner, peer);
    after(&[(Owner, syn), (Peer, syn_ack), (Owner, ack)])
}

#[test]
fn a_connection_opens_talks_and_ends() {
    // Numbers that wrap on the way.
    let (a, b) = (u32::MAX - 2, u32::MAX - 300);
    let mut it = established(a, b);
    assert_eq!(it.phase(), Phase::Established);
    let (a, b) = (a.wrapping_add(1), b.wrapping_add(1));
    let request = segment(ACK, a, b, 100);
    let response = segment(ACK, b, a.wrapping_add(100), 60_000);
    let (a, b2) = (a.wrapping_add(100), b.wrapping_add(60_000));
    for (side, segment) in [
        (Owner, request),
        (Peer, response),
        (Owner, segment(ACK, a, b2, 0)),
        // Keep-alive: one octet before, and its answer.
        (Owner, segment(ACK, a.wrapping_sub(1), b2, 0)),
        (Peer, segment(ACK, b2, a, 0)),
        // A retransmission.
        (Peer, segment(ACK, b, a, 60_000)),
    ] {
        assert!(it.follow(side, &segment), "{side:?} {segment:?}");
        assert_eq!(it.phase(), Phase::Established);
    }
    assert!(it.follow(Peer, &segment(FIN, b2, a, 0)));
    assert_eq!(it.phase(), Phase::Closing);
    let b3 = b2.wrapping_add(1);
    assert!(it.follow(Owner, &segment(FIN, a, b3, 10)));
    assert_eq!(it.phase(), Phase::Closing);
    assert!(it.follow(Peer, &segment(ACK, b3, a.wrapping_add(11), 0)));
    assert_eq!(it.phase(), Phase::Closed);
    // The same ports again.
    assert!(it.follow(Owner, &segment(SYN, 77, 0, 0)));
    assert_eq!(it.phase(), Phase::Opening);
}

#[test]
fn both_sides_may_open_at_once() {
    // RFC 9293 §3.5, figure 7.
    let it = after(&[
        (Owner, segment(SYN, 100, 0, 0)),
        (Peer, segment(SYN, 300, 0, 0)),
        (Owner, segment(SYN | ACK, 100, 301, 0)),
        (Peer, segment(SYN | ACK, 300, 101, 0)),
    ]);
    assert_eq!(it.phase(), Phase::Established);
    // Linux acknowledges the other's SYN without repeating its own.
    let it = after(&[
        (Owner, segment(SYN, 100, 0, 0)),
        (Peer, segment(SYN, 300, 0, 0)),
        (Peer, segment(SYN | ACK, 300, 101, 0)),
        (Owner, segment(ACK, 101, 301, 0)),
    ]);
    assert_eq!(it.phase(), Phase::Established);
}

#[test]
fn a_syn_may_be_repeated_and_carry_data() {
    let syn = segment(SYN, 100, 0, 20);
    let mut it = after(&[
        (Owner, syn),
        (Owner, syn),
        // Without the data, as TCP Fast Open does when it is not answered (RFC 7413 §4.1.3).
        (Owner, segment(SYN, 100, 0, 0)),
        (Peer, segment(SYN | ACK, 300, 101, 0)),
        (Owner, segment(ACK, 101, 301, 20)),
    ]);
    assert_eq!(it.phase(), Phase::Established);
    assert!(
        !it.follow(Peer, &segment(SYN | ACK, 300, 500, 0)),
        "nobody sent so much"
    );
    // One that is not answered may begin anew.
    let mut it = after(&[(Owner, syn)]);
    assert!(it.follow(Owner, &segment(SYN, 9000, 0, 0)));
    assert!(!it.follow(Peer, &segment(SYN | ACK, 300, 101, 0)));
    assert!(it.follow(Peer, &segment(SYN | ACK, 300, 9001, 0)));
}

#[test]
fn only_the_exact_number_resets() {
    let open = established(1000, 5000);
    // What the owner waits for is 5001, and the peer 1001.
    for (side, sequence) in [(Peer, 5001), (Owner, 1001)] {
        for wrong in [
            0,
            sequence - 1,
            sequence + 1,
            sequence + 5000,
            sequence ^ 1 << 31,
        ] {
            let mut it = open;
            assert!(!it.follow(side, &reset(wrong, 0)), "{wrong}");
            assert_eq!(it, open);
        }
        let mut it = open;
        assert!(it.follow(side, &reset(sequence, 0)));
        assert_eq!(it.phase(), Phase::Closed);
    }
    // With data on its way it may be any up to its end.
    let mut busy = open;
    assert!(busy.follow(Peer, &segment(ACK, 5001, 1001, 3000)));
    for (sequence, exact) in [(5000, false), (5001, true), (8001, true), (8002, false)] {
        let mut it = busy;
        assert_eq!(it.follow(Peer, &reset(sequence, 0)), exact, "{sequence}");
    }
}

#[test]
fn a_refusal_has_to_acknowledge_the_syn() {
    let opening = after(&[(Owner, segment(SYN, 1000, 0, 0))]);
    for (flags, acknowledgment, exact) in [
        (RST | ACK, 1001, true),
        (RST | ACK, 1000, false),
        (RST | ACK, 1002, false),
        (RST, 1001, false),
    ] {
        let mut it = opening;
        let refusal = segment(flags, 0, acknowledgment, 0);
        assert_eq!(it.follow(Peer, &refusal), exact, "{refusal:?}");
        assert_eq!(it.phase() == Phase::Closed, exact);
    }
}

#[test]
fn strangers_do_not_finish_an_opening_nor_end_a_connection() {
    // A flood of SYNs that nobody answers, and a guess at the answer.
    let mut it = after(&[(Owner, segment(SYN, 1000, 0, 0))]);
    assert!(!it.follow(Peer, &segment(ACK, 7, 99_999, 0)));
    assert!(!it.follow(Peer, &segment(SYN | ACK, 7, 1000, 0)));
    assert_eq!(it.phase(), Phase::Opening);
    let open = established(1000, 5000);
    for forged in [
        segment(FIN, 5001 + (1 << 30), 1001, 0),
        segment(FIN, 5001, 1001 + 100_000, 0),
        segment(ACK, 5001 + (1 << 30), 1001, 100),
        segment(SYN, 4711, 0, 0),
    ] {
        let mut it = open;
        assert!(!it.follow(Peer, &forged), "{forged:?}");
        assert_eq!(it, open);
    }
    // A FIN within the window counts until the true peer says more.
    let mut it = open;
    assert!(it.follow(Peer, &segment(FIN, 5001, 1001, 0)));
    assert_eq!(it.phase(), Phase::Closing);
    assert!(it.follow(Peer, &segment(ACK, 5001, 1001, 1448)));
    assert_eq!(it.phase(), Phase::Established);
}

#[test]
fn a_connection_is_picked_up_where_it_is() {
    let mut it = after(&[
        (Owner, segment(ACK, 70_000, 90_000, 1448)),
        (Peer, segment(ACK, 90_000, 71_448, 0)),
    ]);
    assert_eq!(it.phase(), Phase::Established);
    assert!(!it.follow(Peer, &reset(1, 0)));
    assert!(it.follow(Peer, &segment(ACK, 90_000, 71_448, 500_000)));
    let mut it = Connection::new(Owner, &segment(ACK, 70_000, 90_000, 0));
    assert!(!it.follow(Peer, &reset(89_000, 0)));
    assert!(it.follow(Peer, &reset(90_000, 0)));
}

#[test]
fn windows_are_scaled_if_both_sides_offer_it() {
    let plain = |flags, sequence, acknowledgment| Segment {
        scale: None,
        ..segment(flags, sequence, acknowledgment, 0)
    };
    let mut scaled = established(0, 0);
    assert!(scaled.follow(Owner, &segment(ACK, 1, 1, 0)));
    // 64,240 << 7 octets may be on their way.
    assert!(scaled.follow(Peer, &segment(ACK, 8_000_000, 1, 100)));
    let mut unscaled = after(&[
        (Owner, segment(SYN, 0, 0, 0)),
        (Peer, plain(SYN | ACK, 0, 1)),
        (Owner, segment(ACK, 1, 1, 0)),
    ]);
    assert!(!unscaled.follow(Peer, &segment(ACK, 8_000_000, 1, 100)));
}

#[test]
fn options_are_read_up_to_their_end() {
    assert_eq!(window_scale(&[2, 4, 5, 180, 1, 3, 3, 7]), Some(7));
    assert_eq!(window_scale(&[3, 3, 200]), Some(MAX_SCALE));
    for none in [
        &[][..],
        &[0, 3, 3, 7],
        &[1, 1],
        &[8],
        &[8, 40, 3, 3, 7],
        &[3, 2, 7],
    ] {
        assert_eq!(window_scale(none), None, "{none:?}");
    }
}

mod traces;

proptest! {
    #[test]
    fn any_octets_are_read(octets in prop::collection::vec(any::<u8>(), 0..80)) {
        if let Some(read) = Segment::parse(&octets) {
            prop_assert!(read.len as usize + 20 <= octets.len());
        }
    }

    /// Whatever strangers send who know neither side's numbers, the connection goes on.
    #[test]
    fn blind_segments_end_nothing(
        strangers in prop::collection::vec(
            (any::<u8>(), any::<u32>(), any::<u32>(), 0..1500_u32, any::<bool>()), 0..40),
    ) {
        let (a, b) = (1_000_000, 2_000_000);
        let mut it = established(a, b);
        for (flags, sequence, acknowledgment, len, owner) in strangers {
            // They hit a window once in some thousand.
            let near = |number: u32, of: u32| number.wrapping_sub(of).wrapping_add(1 << 24) < 1 << 25;
            prop_assume!(!near(sequence, a) && !near(sequence, b));
            let side = if owner { Owner } else { Peer };
            it.follow(side, &segment(flags, sequence, acknowledgment, len));
        }
        prop_assert_eq!(it.phase(), Phase::Established);
        prop_assert!(it.follow(Owner, &segment(ACK, a + 1, b + 1, 100)));
        prop_assert!(it.follow(Peer, &segment(ACK, b + 1, a + 101, 0)));
    }
}

/// Whatever number is the first: no number is special, those about which arithmetic wraps included.
#[test]
fn sequence_numbers_are_compared_alike_everywhere() {
    let edges = [
        0,
        1,
        (1 << 31) - 1,
        1 << 31,
        (1 << 31) + 1,
        u32::MAX - 1,
        u32::MAX,
    ];
    let distances = (0..=u16::MAX.into()).chain((1 << 31) - 300..=(1 << 31) + 300);
    let distances = distances.chain(u32::MAX - 300..=u32::MAX);
    for distance in distances {
        let expected = i64::from(distance) < 1 << 31;
        for from in edges {
            assert_eq!(
                reaches(from.wrapping_add(distance), from),
                expected,
                "{from} {distance}"
            );
        }
    }
}

/// The same connection from any initial numbers: at all of them near the wrap, and where data crosses it.
#[test]
fn a_connection_may_wrap_at_any_octet() {
    let near = || (u32::MAX - 140..=u32::MAX).chain(0..4);
    for owner in near() {
        for peer in [0, 7, u32::MAX - 1, u32::MAX, owner] {
            let mut it = established(owner, peer);
            let (mut a, mut b) = (owner.wrapping_add(1), peer.wrapping_add(1));
            for len in [1, 60, 77] {
                assert!(it.follow(Owner, &segment(ACK, a, b, len)), "{owner} {peer}");
                a = a.wrapping_add(len);
                assert!(it.follow(Peer, &segment(ACK, b, a, len)), "{owner} {peer}");
                b = b.wrapping_add(len);
            }
            // Before what was acknowledged last.
            let early = reset(b.wrapping_sub(78), a);
            assert!(!it.follow(Peer, &early), "a reset that is not exact");
            assert!(it.follow(Owner, &segment(FIN, a, b, 0)));
            a = a.wrapping_add(1);
            assert!(it.follow(Peer, &segment(FIN, b, a, 0)));
            b = b.wrapping_add(1);
            assert!(it.follow(Owner, &segment(ACK, a, b, 0)));
            assert_eq!(it.phase(), Phase::Closed, "{owner} {peer}");
        }
    }
}
