//! What comes in on one interface leaves by another, without the kernel's IP stack (tc-mirred(8)).

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionMirror, TcActionMirrorOption, TcActionOption,
    TcActionType, TcAttribute, TcFilterU32, TcFilterU32Option, TcHandle, TcMessage, TcMirror,
    TcMirrorActionType, TcOption, TcU32Key, TcU32Selector, TcU32SelectorFlags,
};

use super::client::Request;

/// `TC_H_INGRESS`: the parent of the discipline, and the filter's by its major number.
const INGRESS: u16 = 0xffff;
/// `ETH_P_ALL` as tc(8) has it, in network order.
const EVERY_PROTOCOL: u32 = 0x0300;
const PRIORITY: u32 = 1;

/// The requests, in their order, by which all that comes in on the interface `from` leaves by the
/// interface `to`. Both are numbers of the kernel; `name` is what errors call the first. What they make
/// goes with either interface.
pub(crate) fn redirect(from: u32, to: u32, name: &str) -> [Request; 2] {
    let discipline = message(
        from,
        (
            TcHandle {
                major: INGRESS,
                minor: 0,
            },
            TcHandle::INGRESS,
        ),
        0,
        vec![TcAttribute::Kind("ingress".to_owned())],
    );
    let parent = TcHandle {
        major: INGRESS,
        minor: 0,
    };
    let filter = message(
        from,
        (TcHandle::default(), parent),
        PRIORITY << 16 | EVERY_PROTOCOL,
        vec![
            TcAttribute::Kind(TcFilterU32::KIND.to_owned()),
            TcAttribute::Options(vec![
                TcOption::U32(TcFilterU32Option::Selector(everything())),
                TcOption::U32(TcFilterU32Option::Action(vec![out_of(to)])),
            ]),
        ],
    );
    [
        Request::create(
            format!("add an ingress discipline to {name}"),
            RouteNetlinkMessage::NewQueueDiscipline(discipline),
        ),
        Request::create(
            format!("redirect what comes in on {name}"),
            RouteNetlinkMessage::NewTrafficFilter(filter),
        ),
    ]
}

fn message(
    index: u32,
    (handle, parent): (TcHandle, TcHandle),
    info: u32,
    attributes: Vec<TcAttribute>,
) -> TcMessage {
    let mut message = TcMessage::default();
    message.header.index = index.cast_signed();
    message.header.handle = handle;
    message.header.parent = parent;
    message.header.info = info;
    message.attributes = attributes;
    message
}

/// One key without bits, which nothing misses.
fn everything() -> TcU32Selector {
    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    selector.nkeys = 1;
    selector.keys = vec![TcU32Key::default()];
    selector
}

fn out_of(to: u32) -> TcAction {
    let mut mirror = TcMirror::default();
    mirror.generic.action = TcActionType::Stolen;
    mirror.eaction = TcMirrorActionType::EgressRedir;
    mirror.ifindex = to;
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind(TcActionMirror::KIND.to_owned()),
        TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(
            mirror,
        ))]),
    ];
    action
}
