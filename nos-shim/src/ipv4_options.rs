//! IPv4 options as a host treats them: checked, filled in, and echoed in its answers
//! (RFC 1122 §3.2.1.8).
//!
//! Record route and timestamp are honoured as Linux does: a host writes itself once when the
//! packet arrives and, if there is room, once more when the answer leaves. Source routes are
//! refused (RFC 7126 §4.3); everything else is ignored. There is no wall clock here, so a timestamp is
//! the time since an unknown epoch, marked as such by its highest bit (RFC 791 §3.1).

use core::net::{IpAddr, Ipv4Addr};

use arrayvec::ArrayVec;

use crate::drop::DropReason;
use crate::frame::ETHERNET_HEADER;
use crate::icmp::IcmpError;
use crate::packet::{IPV4_HEADER, Packet};
use crate::time::Instant;

/// Octets of the longest options (RFC 791 §3.1).
const MAX_OPTIONS: usize = 40;

const END: u8 = 0;
const NO_OPERATION: u8 = 1;
const RECORD_ROUTE: u8 = 7;
const TIMESTAMP: u8 = 68;
const LOOSE_SOURCE_ROUTE: u8 = 131;
const STRICT_SOURCE_ROUTE: u8 = 137;
const ROUTER_ALERT: u8 = 148;

/// Options of an answer, padded to a multiple of four octets.
pub(crate) type Echoed = ArrayVec<u8, MAX_OPTIONS>;

/// Why a packet with options is not received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptionsRefused {
    /// An option is malformed: to be answered with a parameter problem, and dropped.
    Malformed {
        /// For [`IcmpError::HeaderProblem`].
        pointer: u32,
    },
    /// A source route: to be dropped silently.
    SourceRoute,
}

impl OptionsRefused {
    /// What the sender is told.
    #[must_use]
    pub fn error(self) -> Option<IcmpError> {
        match self {
            Self::Malformed { pointer } => Some(IcmpError::HeaderProblem { pointer }),
            Self::SourceRoute => None,
        }
    }

    /// The name under which the packet is dropped.
    #[must_use]
    pub fn reason(self) -> DropReason {
        match self {
            Self::Malformed { .. } => DropReason::Ipv4Header,
            Self::SourceRoute => DropReason::IpOptions,
        }
    }
}

/// Whether a router may forward a packet, as far as its options go: it follows no source routes
/// (RFC 7126 §4.3), and complains about what is malformed (RFC 1812 §5.2.7.3). It records nothing.
///
/// # Errors
///
/// [`OptionsRefused`].
#[inline]
pub fn may_pass(packet: &Packet) -> Result<(), OptionsRefused> {
    if packet.is_ipv6() || !packet.has_options() {
        return Ok(());
    }
    let mut options: Echoed = options_of(packet).iter().copied().collect();
    judge(&mut options, Ipv4Addr::UNSPECIFIED, Instant::ZERO)
}

/// Checks options and fills them in.
fn judge(options: &mut [u8], own: Ipv4Addr, now: Instant) -> Result<(), OptionsRefused> {
    match walk(options, own, now) {
        Err(offset) => {
            let pointer = u32::try_from(IPV4_HEADER + offset).unwrap_or(0);
            Err(OptionsRefused::Malformed { pointer })
        }
        Ok(Seen { source_route: true }) => Err(OptionsRefused::SourceRoute),
        Ok(Seen {
            source_route: false,
        }) => Ok(()),
    }
}

/// Does what a host does with the options of a packet that is addressed to it, before anything
/// else looks at the packet. Packets without options, and IPv6 packets, are left alone. A packet
/// that was received so must not be forwarded: its header checksum no longer fits.
///
/// # Errors
///
/// [`OptionsRefused`]; the packet is as it was.
pub fn receive(packet: &mut Packet, now: Instant) -> Result<(), OptionsRefused> {
    if packet.is_ipv6() || !packet.has_options() {
        return Ok(());
    }
    let IpAddr::V4(own) = packet.destination() else {
        return Ok(());
    };
    let mut options: Echoed = options_of(packet).iter().copied().collect();
    judge(&mut options, own, now)?;
    rewrite(packet, &options);
    Ok(())
}

fn options_of(packet: &Packet) -> &[u8] {
    let ip = packet.ip();
    let header_len = usize::from(ip[0] & 0xf) * 4;
    ip.get(IPV4_HEADER..header_len).unwrap_or_default()
}

struct Seen {
    source_route: bool,
}

/// Checks the options and fills in what asks for it. The error is the place of the mistake, in
/// octets from the first option; which octet is blamed follows Linux.
fn walk(options: &mut [u8], own: Ipv4Addr, now: Instant) -> Result<Seen, usize> {
    let mut seen = Seen {
        source_route: false,
    };
    let (mut at, mut routes, mut recorders, mut clocks) = (0, 0, 0, 0);
    while at < options.len() {
        let kind = options[at];
        match kind {
            END => {
                options[at..].fill(END);
                break;
            }
            NO_OPERATION => {
                at += 1;
                continue;
            }
            _ => {}
        }
        let len = usize::from(*options.get(at + 1).ok_or(at)?);
        let option = options
            .get_mut(at..at + len)
            .filter(|_| len >= 2)
            .ok_or(at)?;
        let blame = |octet: usize| at + octet;
        match kind {
            LOOSE_SOURCE_ROUTE | STRICT_SOURCE_ROUTE => {
                first_of_its_kind(&mut routes).map_err(|()| at)?;
                check_pointer(option, 3, 4).map_err(blame)?;
                seen.source_route = true;
            }
            RECORD_ROUTE => {
                first_of_its_kind(&mut recorders).map_err(|()| at)?;
                check_pointer(option, 3, 4).map_err(blame)?;
                record(option, own).map_err(blame)?;
            }
            TIMESTAMP => {
                first_of_its_kind(&mut clocks).map_err(|()| at)?;
                check_pointer(option, 4, 5).map_err(blame)?;
                stamp(option, own, now).map_err(blame)?;
            }
            ROUTER_ALERT if len < 4 => return Err(at + 1),
            _ => {}
        }
        at += len;
    }
    Ok(seen)
}

/// An option may stand in a packet once.
fn first_of_its_kind(count: &mut u8) -> Result<(), ()> {
    *count += 1;
    if *count == 1 { Ok(()) } else { Err(()) }
}

/// An option with a pointer is at least `min_len` long, and its pointer at least `min`. The error
/// is the octet of the option to blame.
fn check_pointer(option: &[u8], min_len: usize, min: u8) -> Result<(), usize> {
    match option.get(2) {
        Some(&pointer) if option.len() >= min_len && pointer >= min => Ok(()),
        Some(_) if option.len() >= min_len => Err(2),
        _ => Err(1),
    }
}

/// The `len` octets to which the pointer points, moving it on behind them. `None` when the option
/// is full; an error when less room is left than one entry takes.
fn slot(option: &mut [u8], len: u8) -> Result<Option<&mut [u8]>, usize> {
    let pointer = option[2];
    let start = usize::from(pointer) - 1;
    if start >= option.len() {
        return Ok(None);
    }
    if start + usize::from(len) > option.len() {
        return Err(2);
    }
    option[2] = pointer + len;
    Ok(option.get_mut(start..start + usize::from(len)))
}

fn record(option: &mut [u8], own: Ipv4Addr) -> Result<(), usize> {
    if let Some(place) = slot(option, 4)? {
        place.copy_from_slice(&own.octets());
    }
    Ok(())
}

/// Flags of the timestamp option (RFC 791 §3.1).
const STAMPS_ONLY: u8 = 0;
const STAMPS_AND_ADDRESSES: u8 = 1;
const PRESPECIFIED: u8 = 3;

fn stamp(option: &mut [u8], own: Ipv4Addr, now: Instant) -> Result<(), usize> {
    let flag = option[3] & 0xf;
    let full = usize::from(option[2]) > option.len();
    if full && flag != PRESPECIFIED {
        return count_overflow(option);
    }
    let time = millis(now).to_be_bytes();
    match flag {
        STAMPS_ONLY => {
            if let Some(place) = slot(option, 4)? {
                place.copy_from_slice(&time);
            }
        }
        STAMPS_AND_ADDRESSES => {
            if let Some(place) = slot(option, 8)? {
                place[..4].copy_from_slice(&own.octets());
                place[4..].copy_from_slice(&time);
            }
        }
        PRESPECIFIED => return stamp_if_named(option, own, time),
        _ => {}
    }
    Ok(())
}

/// Stamps only if the next entry names this host.
fn stamp_if_named(option: &mut [u8], own: Ipv4Addr, time: [u8; 4]) -> Result<(), usize> {
    let start = usize::from(option[2]) - 1;
    if start >= option.len() {
        return Ok(());
    }
    let entry = option.get(start..start + 8).ok_or(2_usize)?;
    if entry.starts_with(&own.octets())
        && let Some(place) = slot(option, 8)?
    {
        place[4..].copy_from_slice(&time);
    }
    Ok(())
}

/// Counts a host that found no room.
fn count_overflow(option: &mut [u8]) -> Result<(), usize> {
    if option[3] >> 4 == 15 {
        return Err(3);
    }
    option[3] += 1 << 4;
    Ok(())
}

/// Milliseconds, marked as not counted from midnight UT (RFC 791 §3.1, RFC 792).
#[expect(
    clippy::cast_possible_truncation,
    reason = "the low bits are what is sent"
)]
pub(crate) fn millis(now: Instant) -> u32 {
    (now.as_nanos() / 1_000_000) as u32 | 1 << 31
}

/// Puts other options of the same length into the packet. The header checksum stays: it has been
/// verified, and Linux quotes the old one in ICMP errors.
fn rewrite(packet: &mut Packet, options: &[u8]) {
    if options_of(packet) == options {
        return;
    }
    let bytes = packet.frame_mut().bytes_mut();
    let header = &mut bytes[ETHERNET_HEADER..][..IPV4_HEADER + options.len()];
    header[IPV4_HEADER..].copy_from_slice(options);
}

/// The options of an answer to `packet` that leaves from `source`: record route and timestamp,
/// with an entry more where there is room.
pub(crate) fn echoed(packet: &Packet, source: IpAddr) -> Echoed {
    match source {
        IpAddr::V4(own) if !packet.is_ipv6() && packet.has_options() => {
            echo(options_of(packet), own)
        }
        _ => Echoed::new(),
    }
}

/// The options of a complaint about what stands `pointer` octets into `packet`: those before it.
pub(crate) fn echoed_before(packet: &Packet, pointer: u32, source: IpAddr) -> Echoed {
    let end = usize::try_from(pointer).unwrap_or(0);
    let sound = end.checked_sub(IPV4_HEADER);
    let sound = sound.and_then(|end| options_of(packet).get(..end));
    match (source, sound) {
        (IpAddr::V4(own), Some(sound)) if !packet.is_ipv6() => echo(sound, own),
        _ => Echoed::new(),
    }
}

fn echo(options: &[u8], own: Ipv4Addr) -> Echoed {
    let mut echoed = Echoed::new();
    for wanted in [RECORD_ROUTE, TIMESTAMP] {
        let Some(option) = find(options, wanted) else {
            continue;
        };
        let start = echoed.len();
        if echoed.try_extend_from_slice(option).is_err() {
            continue;
        }
        let copy = &mut echoed[start..];
        // Without room, or malformed in a packet that was never received here: goes as it is.
        let _ = match wanted {
            RECORD_ROUTE if check_pointer(copy, 3, 4).is_ok() => record(copy, own),
            TIMESTAMP if check_pointer(copy, 4, 5).is_ok() => stamp_again(copy, own),
            _ => Ok(()),
        };
    }
    while !echoed.len().is_multiple_of(4) {
        echoed.push(END);
    }
    echoed
}

/// Leaves the time that was entered at receipt in the next entry as well: the answer leaves at
/// once.
fn stamp_again(option: &mut [u8], own: Ipv4Addr) -> Result<(), usize> {
    let end = usize::from(option[2]) - 1;
    let width = if option[3] & 0xf == STAMPS_ONLY { 4 } else { 8 };
    let full = end >= option.len();
    if full || end < 4 + width {
        return Ok(());
    }
    let mut time = [0; 4];
    time.copy_from_slice(&option[end - 4..end]);
    let now = Instant::from_millis(u64::from(u32::from_be_bytes(time)));
    stamp(option, own, now)
}

/// The first option of type `wanted`.
fn find(options: &[u8], wanted: u8) -> Option<&[u8]> {
    let mut at = 0;
    while let Some(&kind) = options.get(at) {
        match kind {
            END => return None,
            NO_OPERATION => at += 1,
            _ => {
                let len = usize::from(*options.get(at + 1)?);
                let option = options.get(at..at + len).filter(|_| len >= 2)?;
                if kind == wanted {
                    return Some(option);
                }
                at += len;
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_packets::{Draft, hex, pool};
    use proptest::prelude::*;

    fn received(options: &str) -> Result<Vec<u8>, OptionsRefused> {
        let mut draft = Draft::v4();
        draft.options = hex(options);
        let mut packet = draft.icmp_packet(&mut pool(), (8, 0), 1, b"hello");
        receive(&mut packet, Instant::ZERO)?;
        Ok(options_of(&packet).to_vec())
    }

    /// Options that Linux 6.18 answers with a parameter problem, and the pointer that it gives.
    #[test]
    fn mistakes_are_blamed_on_the_octet_that_linux_blames() {
        for (options, pointer) in [
            ("9e090102", 20),
            ("07020101", 21),
            ("07070300 00000000", 22),
            ("07070600 00000000", 22),
            ("0703040703040000", 23),
            ("44030500", 21),
            ("44080400 00000000", 22),
            ("44080700 00000000", 22),
            ("440809f0 01020304", 23),
            ("44080501 00000000", 22),
            ("94030000", 21),
            ("83020100", 21),
            ("83030300", 22),
            ("01010107", 23),
        ] {
            assert_eq!(
                received(options),
                Err(OptionsRefused::Malformed { pointer }),
                "{options}"
            );
        }
    }

    #[test]
    fn source_routes_are_refused_even_when_used_up() {
        for options in ["83070401 02030400", "83030400", "89030400"] {
            assert_eq!(received(options), Err(OptionsRefused::SourceRoute));
        }
    }

    #[test]
    fn what_follows_the_end_is_cleared() {
        assert_eq!(received("00112233"), Ok(hex("00000000")));
        assert_eq!(received("01010100"), Ok(hex("01010100")));
    }

    proptest! {
        #[test]
        fn any_options_are_received_or_refused(
            mut options in proptest::collection::vec(
                prop_oneof![any::<u8>(), Just(7), Just(68), Just(131), Just(4), Just(5), Just(8), Just(12)],
                0..40,
            ),
        ) {
            options.truncate(options.len() / 4 * 4);
            let mut draft = Draft::v4();
            draft.options = options.clone();
            let mut packet = draft.icmp_packet(&mut pool(), (8, 0), 1, b"hello");
            let before = packet.ip().to_vec();
            match receive(&mut packet, Instant::ZERO) {
                Ok(()) => {
                    let echoed = echoed(&packet, packet.destination());
                    prop_assert!(echoed.len() <= options.len());
                    prop_assert!(echoed.len().is_multiple_of(4));
                }
                Err(refused) => {
                    prop_assert_eq!(packet.ip(), &before[..]);
                    if let OptionsRefused::Malformed { pointer } = refused {
                        prop_assert!((20..20 + options.len()).contains(&(pointer as usize)));
                        let echoed = echoed_before(&packet, pointer, packet.destination());
                        prop_assert!(echoed.len().is_multiple_of(4));
                    }
                }
            }
        }
    }
}
