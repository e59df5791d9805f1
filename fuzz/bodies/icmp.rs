//! ICMP: what errors quote, errors that are built, and answers to queries.
//!
//! A quote says what a naive reader finds in the same octets. An error that the NOS builds is a packet
//! with a right checksum, not longer than the RFCs allow, whose quote says what the packet at fault
//! says of itself. An answer is a packet with a right checksum.
//!
//! Input: see [`super::framed`]; the capabilities say which error is built, the MTU what is in it.

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nos_shim::frame::FramePool;
use nos_shim::icmp::{self, IcmpError, QUOTE_LIMIT_V4, QUOTE_LIMIT_V6, Quote, set_quoted_echo_id};
use nos_shim::originate::Originator;
use nos_shim::packet::{Fragment, Packet, protocol};
use nos_shim::time::Instant;

use super::framed::Framed;
use super::pools::with_pool;
use super::seen::{look, parses_to_the_same};

thread_local! {
    /// It has tables, and only counts.
    static ORIGINATOR: RefCell<Originator> = RefCell::new(Originator::new(1));
}

pub fn run(data: &[u8]) {
    let Some(input) = Framed::read(data) else {
        return;
    };
    with_pool(4, |pool| {
        let Some(packet) = input.packet(pool) else {
            return;
        };
        quoted(&packet);
        let packet = rewritten(packet, pool);
        ORIGINATOR.with_borrow_mut(|originator| {
            built(&input, &packet, originator, pool);
            answered(packet, originator, pool);
        });
    });
}

fn quoted(packet: &Packet) {
    let naive = Naive::of(packet);
    let quote = Quote::parse(packet);
    assert_eq!(quote.is_some(), naive.is_some(), "{quote:?}");
    let (Some(quote), Some(naive)) = (quote, naive) else {
        return;
    };
    assert_eq!(Some((quote.kind, quote.code)), packet.icmp());
    assert_eq!(quote.addresses.source(), naive.source);
    assert_eq!(quote.addresses.destination(), naive.destination);
    assert_eq!(quote.protocol, naive.protocol);
    assert_eq!(quote.later_fragment, naive.later);
    let has_ports = [protocol::TCP, protocol::UDP].contains(&naive.protocol) && !naive.later;
    let ports = naive.transport.first_chunk::<4>().filter(|_| has_ports);
    let ports = ports.map(|[a, b, c, d]| {
        let number = |high: &u8, low: &u8| u16::from_be_bytes([*high, *low]);
        (number(a, b), number(c, d))
    });
    let ours = quote.ports.map(|ports| (ports.source, ports.destination));
    assert_eq!(ours, ports);
    assert!(quote.echo_id.is_none() || quote.ports.is_none() && !naive.later);
    assert!(quote.sequence.is_none() || quote.protocol == protocol::TCP);
}

/// What a reader finds in a quote who takes one octet after the other.
struct Naive<'a> {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    later: bool,
    transport: &'a [u8],
}

impl<'a> Naive<'a> {
    fn of(packet: &'a Packet) -> Option<Self> {
        let (kind, _) = packet.icmp()?;
        let quote = packet.transport().get(8..)?;
        if packet.is_ipv6() {
            (1..=4).contains(&kind).then(|| Self::v6(quote)).flatten()
        } else {
            [3, 4, 5, 11, 12]
                .contains(&kind)
                .then(|| Self::v4(quote))
                .flatten()
        }
    }

    fn v4(quote: &'a [u8]) -> Option<Self> {
        let fixed: [u8; 20] = quote.get(..20)?.try_into().ok()?;
        let words = fixed[0] & 0xf;
        if fixed[0] & 0xf0 != 0x40 || words < 5 {
            return None;
        }
        let address =
            |at: usize| Ipv4Addr::new(fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]);
        let later = fixed[6] & 0x1f != 0 || fixed[7] != 0;
        Some(Self {
            source: address(12).into(),
            destination: address(16).into(),
            protocol: fixed[9],
            later,
            transport: quote.get(usize::from(words) * 4..).unwrap_or_default(),
        })
    }

    fn v6(quote: &'a [u8]) -> Option<Self> {
        let fixed = quote.get(..40)?;
        if fixed[0] & 0xf0 != 0x60 {
            return None;
        }
        let address = |at: usize| -> Option<IpAddr> {
            let octets: [u8; 16] = fixed[at..at + 16].try_into().ok()?;
            Some(Ipv6Addr::from(octets).into())
        };
        let (mut next, mut rest, mut later) = (fixed[6], quote.get(40..), false);
        for count in 0.. {
            let known = [43, 44, 51, 60].contains(&next) || next == 0 && count == 0;
            if later || !known {
                break;
            }
            // As many as a packet may have, and one that is not the NOS's.
            if count > 8 {
                return None;
            }
            let here = rest?;
            let header = here.get(..4)?;
            let length = match next {
                44 => 8,
                51 => 4 * (usize::from(header[1]) + 2),
                _ => 8 * (usize::from(header[1]) + 1),
            };
            later = next == 44 && (header[2] != 0 || header[3] & 0xf8 != 0);
            next = header[0];
            rest = Some(here.get(length..).unwrap_or_default());
        }
        Some(Self {
            source: address(8)?,
            destination: address(24)?,
            protocol: next,
            later,
            transport: rest.unwrap_or_default(),
        })
    }
}

/// The quoted identifier can be changed, and nothing else changes with it.
fn rewritten(mut packet: Packet, pool: &mut FramePool) -> Packet {
    let before = Quote::parse(&packet);
    let right = packet.transport_checksum_ok();
    let had = before.and_then(|quote| quote.echo_id);
    set_quoted_echo_id(&mut packet, 0x1234);
    let after = Quote::parse(&packet);
    assert_eq!(after.and_then(|quote| quote.echo_id), had.map(|_| 0x1234));
    let rest = |quote: Option<Quote>| {
        quote.map(|quote| Quote {
            echo_id: None,
            ..quote
        })
    };
    assert_eq!(rest(after), rest(before));
    if packet.fragment() == Fragment::Whole && packet.wire_len() == packet.ip().len() {
        assert!(!right || packet.transport_checksum_ok());
    }
    parses_to_the_same(&packet, pool);
    packet
}

fn error(input: &Framed<'_>) -> IcmpError {
    let pointer = (input.mtu % 64) as u32;
    match input.capabilities.bits() % 13 {
        0 => IcmpError::NoRoute,
        1 => IcmpError::UnreachableRoute,
        2 => IcmpError::HostUnreachable,
        3 => IcmpError::Prohibited,
        4 => IcmpError::ProtocolUnreachable,
        5 => IcmpError::PortUnreachable,
        6 => IcmpError::PacketTooBig {
            mtu: input.mtu as u32,
        },
        7 => IcmpError::TtlExceeded,
        8 => IcmpError::ReassemblyTimeout,
        9 => IcmpError::HeaderProblem { pointer },
        10 => IcmpError::UnknownOption { pointer },
        11 => IcmpError::UnknownHeader { pointer },
        _ => IcmpError::IncompleteHeaderChain,
    }
}

fn built(
    input: &Framed<'_>,
    offending: &Packet,
    originator: &mut Originator,
    pool: &mut FramePool,
) {
    let error = error(input);
    let source: IpAddr = if offending.is_ipv6() {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()
    } else {
        Ipv4Addr::new(203, 0, 113, 1).into()
    };
    let _ = error.may_answer(offending);
    let Some(told) = error.build(offending, source, originator, pool) else {
        assert!(offending.tunnel().is_some(), "there are buffers");
        return;
    };
    look(&told);
    parses_to_the_same(&told, pool);
    assert!(told.transport_checksum_ok());
    let limit = if told.is_ipv6() {
        QUOTE_LIMIT_V6
    } else {
        QUOTE_LIMIT_V4
    };
    assert!(told.wire_len() <= limit);
    assert_eq!(told.source(), source);
    assert_eq!(told.destination(), offending.source());
    // A chain of extension headers may be longer than the quote.
    let followed = offending.transport_offset() < 14 + 400;
    let Some(quote) = Quote::parse(&told) else {
        assert!(!followed, "the offending packet is quoted");
        return pool.free(told.into_frame());
    };
    assert_eq!(quote.addresses, offending.addresses());
    if offending.tunnel().is_none() && followed {
        assert_eq!(quote.protocol, offending.protocol());
        assert_eq!(
            quote.later_fragment,
            offending.fragment() == Fragment::Later
        );
        assert_eq!(quote.ports, offending.ports());
        assert_eq!(quote.echo_id, offending.echo_id());
    }
    pool.free(told.into_frame());
}

fn answered(query: Packet, originator: &mut Originator, pool: &mut FramePool) {
    if query.fragment() != Fragment::Whole {
        return pool.free(query.into_frame());
    }
    let source = IpAddr::from([203, 0, 113, 1]);
    let to = query.source();
    match icmp::answer(query, source, Instant::from_millis(77), originator) {
        Ok(answer) => {
            look(&answer);
            parses_to_the_same(&answer, pool);
            assert_eq!(answer.destination(), to);
            assert!(answer.transport_checksum_ok());
            pool.free(answer.into_frame());
        }
        Err(unanswered) => pool.free(unanswered.packet.into_frame()),
    }
}
