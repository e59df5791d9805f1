//! What Linux kernels have said to each other, as `tests/policy/traces.rs` has recorded it, followed
//! segment by segment.
//!
//! A line of a trace is a segment: who has sent it, its TCP header, the octets of data behind it, and
//! what the follower is to make of it. A line with `=` is what both kernels said of the connection then
//! (`tcpi_state`), and what that comes to.

use super::*;

/// The traces of these names, of either family.
macro_rules! traces {
    ($($name:literal,)+) => {
        [$(
            (concat!($name, " over IPv4"), include_str!(concat!("../traces/", $name, "_over_ipv4.txt"))),
            (concat!($name, " over IPv6"), include_str!(concat!("../traces/", $name, "_over_ipv6.txt"))),
        )+]
    };
}

const TRACES: [(&str, &str); 32] = traces![
    "the_owner_ends_first",
    "the_peer_ends_first",
    "both_end_at_once",
    "the_owner_resets",
    "the_peer_resets",
    "the_peer_aborts",
    "nobody_listens",
    "a_syn_is_lost",
    "an_answer_to_a_syn_is_lost",
    "both_open_at_once",
    "a_window_closes_and_opens",
    "a_connection_is_kept_alive",
    "a_challenge_is_sent",
    "a_port_is_used_again",
    "segments_are_lost",
    "the_peer_has_forgotten",
];

#[test]
fn what_kernels_were_recorded_to_say_is_followed() {
    for (name, trace) in TRACES {
        follow(name, trace);
    }
}

fn phase_of(name: &str) -> Phase {
    let all = [
        Phase::Opening,
        Phase::Established,
        Phase::Closing,
        Phase::Closed,
    ];
    let mut all = all.into_iter();
    all.find(|phase| format!("{phase:?}") == name).unwrap()
}

fn segment_of(header: &str, data: &str) -> Segment {
    let octet = |at: usize| u8::from_str_radix(&header[at..at + 2], 16).unwrap();
    let mut octets: Vec<u8> = (0..header.len()).step_by(2).map(octet).collect();
    octets.resize(octets.len() + data.parse::<usize>().unwrap(), 0);
    Segment::parse(&octets).unwrap()
}

fn follow(name: &str, trace: &str) {
    let mut connection: Option<Connection> = None;
    let (mut segments, mut marks) = (0, 0);
    for line in trace.lines() {
        if let Some(mark) = line.strip_prefix("= ") {
            let (_, phase) = mark.rsplit_once(": ").unwrap();
            let followed = connection.map(|it| it.phase());
            assert_eq!(followed, Some(phase_of(phase)), "{name}: {line}");
            marks += 1;
            continue;
        }
        let parts: Vec<_> = line.split(' ').collect();
        let [side, header, data, verdict, phase] = parts[..] else {
            panic!("{name}: {line}");
        };
        let side = if side == "Owner" { Owner } else { Peer };
        let segment = segment_of(header, data);
        let plausible = match &mut connection {
            Some(connection) => connection.follow(side, &segment),
            None => {
                connection = Some(Connection::new(side, &segment));
                true
            }
        };
        assert_eq!(plausible, verdict == "plausible", "{name}: {line}");
        let followed = connection.map(|it| it.phase());
        assert_eq!(followed, Some(phase_of(phase)), "{name}: {line}");
        segments += 1;
    }
    assert!(segments >= 2 && marks >= 1, "{name}: {segments} {marks}");
}
