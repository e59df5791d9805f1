//! Socket filters in classic BPF: the kernel drops what nobody would read before it is queued.
//!
//! A routing daemon inside of a container installs a million routes. Without the filter each of
//! them would wake the control thread and take room in the receive buffer.
//!
//! A filter sees one message from its header on: nlmsghdr (16 octets), then ifinfomsg or rtmsg.
//! BPF loads words in network order, while netlink is in host order.

use libc::{
    AF_UNSPEC, BPF_ABS, BPF_B, BPF_H, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, RT_TABLE_LOCAL,
    RTM_DELADDR, RTM_DELLINK, RTM_DELROUTE, RTM_DELRULE, RTM_NEWADDR, RTM_NEWLINK, RTM_NEWROUTE,
    RTM_NEWRULE,
};
use socket2::SockFilter;

use super::socket::RTM_DELNSID;
use crate::control::kernel::netlink::PROTOCOL;

/// nlmsghdr.nlmsg_type, two octets.
const NLMSG_TYPE: u32 = 4;
/// ifinfomsg.ifi_family: AF_BRIDGE means a port of a bridge, not the interface itself.
const IFI_FAMILY: u32 = 16;
/// rtmsg.rtm_dst_len: 0 is a default route.
const RTM_DST_LEN: u32 = 17;
/// rtmsg.rtm_table; RT_TABLE_COMPAT stands for numbers above 255.
const RTM_TABLE: u32 = 20;
/// rtmsg.rtm_protocol: who has made the route.
const RTM_PROTOCOL: u32 = 21;

/// Passes changes of interfaces.
pub(super) fn links() -> Vec<SockFilter> {
    assemble(&[
        Step::LoadHalf(NLMSG_TYPE),
        when_type(RTM_NEWLINK, Label::Link),
        when_type(RTM_DELLINK, Label::Link),
        Step::Return(NOTHING),
        Step::Mark(Label::Link),
        Step::LoadOctet(IFI_FAMILY),
        when(AF_UNSPEC.cast_unsigned(), Label::Accept),
        Step::Return(NOTHING),
        Step::Mark(Label::Accept),
        Step::Return(WHOLE),
    ])
}

/// Passes changes of interfaces, of addresses, of default routes and of routes of ours, of policy rules,
/// and the end of namespaces.
///
/// Default routes of policy tables pass as well. Table local repeats the addresses.
pub(super) fn inside() -> Vec<SockFilter> {
    assemble(&[
        Step::LoadHalf(NLMSG_TYPE),
        when_type(RTM_NEWLINK, Label::Link),
        when_type(RTM_DELLINK, Label::Link),
        when_type(RTM_NEWROUTE, Label::Route),
        when_type(RTM_DELROUTE, Label::Route),
        when_type(RTM_NEWADDR, Label::Accept),
        when_type(RTM_DELADDR, Label::Accept),
        when_type(RTM_NEWRULE, Label::Accept),
        when_type(RTM_DELRULE, Label::Accept),
        when_type(RTM_DELNSID, Label::Accept),
        Step::Return(NOTHING),
        Step::Mark(Label::Link),
        Step::LoadOctet(IFI_FAMILY),
        when(AF_UNSPEC.cast_unsigned(), Label::Accept),
        Step::Return(NOTHING),
        Step::Mark(Label::Route),
        Step::LoadOctet(RTM_TABLE),
        when(u32::from(RT_TABLE_LOCAL), Label::Reject),
        Step::LoadOctet(RTM_DST_LEN),
        when(0, Label::Accept),
        Step::LoadOctet(RTM_PROTOCOL),
        when(u32::from(PROTOCOL), Label::Accept),
        Step::Mark(Label::Reject),
        Step::Return(NOTHING),
        Step::Mark(Label::Accept),
        Step::Return(WHOLE),
    ])
}

/// What a filter returns: how many octets of the message to keep.
const WHOLE: u32 = u32::MAX;
const NOTHING: u32 = 0;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Label {
    Link,
    Route,
    Accept,
    Reject,
}

#[derive(Clone, Copy)]
enum Step {
    LoadHalf(u32),
    LoadOctet(u32),
    /// Goes on at the label if the loaded value is this one, else with the next step.
    When(u32, Label),
    Return(u32),
    /// No instruction: the next one is where the label leads.
    Mark(Label),
}

fn when(value: u32, then: Label) -> Step {
    Step::When(value, then)
}

fn when_type(message: u16, then: Label) -> Step {
    Step::When(u32::from(message.to_be()), then)
}

fn assemble(steps: &[Step]) -> Vec<SockFilter> {
    let mut program = Vec::with_capacity(steps.len());
    for (at, step) in steps.iter().enumerate() {
        let (code, skip, operand) = match *step {
            Step::LoadHalf(offset) => (BPF_LD | BPF_H | BPF_ABS, 0, offset),
            Step::LoadOctet(offset) => (BPF_LD | BPF_B | BPF_ABS, 0, offset),
            Step::When(value, label) => {
                let skipped = steps.get(at + 1..).unwrap_or_default();
                (BPF_JMP | BPF_JEQ | BPF_K, distance(skipped, label), value)
            }
            Step::Return(octets) => (BPF_RET | BPF_K, 0, octets),
            Step::Mark(_) => continue,
        };
        program.push(SockFilter::new(low_half(code), skip, 0, operand));
    }
    program
}

/// Instructions before the label.
fn distance(steps: &[Step], label: Label) -> u8 {
    let mark = |step: &Step| matches!(step, Step::Mark(at) if *at == label);
    let before = steps.iter().take_while(|step| !mark(step));
    let instructions = before.filter(|step| !matches!(step, Step::Mark(_)));
    // The programs above have some twenty steps.
    u8::try_from(instructions.count()).unwrap_or(u8::MAX)
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "codes of instructions have eight bits; libc gives them 32"
)]
fn low_half(code: u32) -> u16 {
    code as u16
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use socket2::SockRef;

    use super::*;

    /// Which of the messages the kernel's BPF lets through, by number.
    fn passed(filter: &[SockFilter], messages: &[Vec<u8>]) -> Vec<usize> {
        let (near, far) = UnixDatagram::pair().unwrap();
        SockRef::from(&far).attach_filter(filter).unwrap();
        far.set_nonblocking(true).unwrap();
        let mut passed = Vec::new();
        for (number, message) in messages.iter().enumerate() {
            // A filtered datagram is lost without an error, as on every socket.
            near.send(message).unwrap();
            let mut buffer = [0; 64];
            match far.recv(&mut buffer) {
                Ok(length) => {
                    assert_eq!(buffer[..length], message[..]);
                    passed.push(number);
                }
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
            }
        }
        passed
    }

    /// A message with the first six octets of its payload.
    fn message(kind: u16, payload: [u8; 6]) -> Vec<u8> {
        let mut message = vec![22, 0, 0, 0];
        message.extend(kind.to_ne_bytes());
        message.extend([0; 10]);
        message.extend(payload);
        message
    }

    const INET: u8 = 2;
    const BRIDGE: u8 = 7;
    const MAIN: u8 = 254;
    const LOCAL: u8 = 255;

    #[test]
    fn only_interfaces_pass_on_the_host() {
        let messages = [
            message(RTM_NEWLINK, [0; 6]),
            message(RTM_DELLINK, [0; 6]),
            message(RTM_NEWLINK, [BRIDGE, 0, 0, 0, 0, 0]),
            message(RTM_DELLINK, [BRIDGE, 0, 0, 0, 0, 0]),
            message(RTM_NEWADDR, [0; 6]),
            message(RTM_NEWROUTE, [0; 6]),
        ];
        assert_eq!(passed(&links(), &messages), [0, 1]);
    }

    #[test]
    fn only_default_routes_and_ours_pass_from_inside() {
        let messages = [
            message(RTM_NEWROUTE, [INET, 0, 0, 0, MAIN, 0]),
            message(RTM_DELROUTE, [INET, 0, 0, 0, MAIN, 0]),
            message(RTM_NEWROUTE, [INET, 24, 0, 0, MAIN, 0]),
            message(RTM_DELROUTE, [INET, 1, 0, 0, MAIN, 0]),
            message(RTM_NEWROUTE, [INET, 0, 0, 0, 100, 0]),
            message(RTM_NEWROUTE, [INET, 0, 0, 0, LOCAL, 0]),
            message(RTM_NEWROUTE, [INET, 32, 0, 0, LOCAL, 0]),
            message(RTM_NEWROUTE, [INET, 24, 0, 0, MAIN, PROTOCOL]),
            message(RTM_DELROUTE, [INET, 24, 0, 0, MAIN, PROTOCOL]),
            message(RTM_DELROUTE, [INET, 24, 0, 0, LOCAL, PROTOCOL]),
        ];
        assert_eq!(passed(&inside(), &messages), [0, 1, 4, 7, 8]);
    }

    #[test]
    fn interfaces_addresses_rules_and_ends_pass_from_inside() {
        const RTM_NEWNSID: u16 = 88;
        const RTM_NEWNEIGH: u16 = 28;
        let messages = [
            message(RTM_NEWLINK, [0; 6]),
            message(RTM_DELLINK, [0; 6]),
            message(RTM_NEWLINK, [BRIDGE, 0, 0, 0, 0, 0]),
            message(RTM_NEWADDR, [INET, 32, 0, 0, 0, 0]),
            message(RTM_DELADDR, [INET, 32, 0, 0, 0, 0]),
            message(RTM_DELNSID, [0; 6]),
            message(RTM_NEWNSID, [0; 6]),
            message(RTM_NEWNEIGH, [INET, 0, 0, 0, 0, 0]),
            message(RTM_NEWRULE, [INET, 0, 0, 0, 0, 0]),
            message(RTM_DELRULE, [INET, 0, 32, 0, 0, 0]),
        ];
        assert_eq!(passed(&inside(), &messages), [0, 1, 3, 4, 5, 8, 9]);
    }

    #[test]
    fn truncated_messages_do_not_pass() {
        let whole = message(RTM_NEWROUTE, [INET, 0, 0, 0, MAIN, 0]);
        let cut: Vec<_> = (1..=20).map(|length| whole[..length].to_vec()).collect();
        assert!(passed(&inside(), &cut).is_empty());
    }
}
