//! Questions and answers of ARP.

use std::net::{IpAddr, Ipv4Addr};

use super::{Ends, Probes, V4};

/// What makes a packet another than the usual one.
type Change = Box<dyn Fn(&mut Draft, &Ends)>;

/// A frame of ARP to be.
#[derive(Clone, Debug)]
struct Draft {
    to: [u8; 6],
    hardware: u16,
    protocol: u16,
    lengths: [u8; 2],
    operation: u16,
    sender: ([u8; 6], [u8; 4]),
    target: ([u8; 6], [u8; 4]),
}

impl Draft {
    /// The question of `ends` for the NOS.
    fn new(ends: &Ends) -> Self {
        Self {
            to: [0xff; 6],
            hardware: 1,
            protocol: 0x800,
            lengths: [6, 4],
            operation: 1,
            sender: (ends.macs.0.0, v4(ends.source)),
            target: ([0; 6], v4(ends.nos)),
        }
    }

    fn frame(&self, ends: &Ends) -> Vec<u8> {
        [
            &self.to[..],
            &ends.macs.0.0,
            &[8, 6],
            &self.hardware.to_be_bytes(),
            &self.protocol.to_be_bytes(),
            &self.lengths,
            &self.operation.to_be_bytes(),
            &self.sender.0,
            &self.sender.1,
            &self.target.0,
            &self.target.1,
        ]
        .concat()
    }
}

fn v4(address: IpAddr) -> [u8; 4] {
    match address {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED.octets(),
    }
}

type Mac = (&'static str, fn(&Ends) -> [u8; 6]);
const MACS: [Mac; 8] = [
    ("everybody", |_| [0xff; 6]),
    ("the NOS", |ends| ends.macs.1.0),
    ("another host", |_| [2, 0, 0, 0xaa, 0xbb, 0xcc]),
    ("the asker", |ends| ends.macs.0.0),
    ("zero", |_| [0; 6]),
    ("a group of IPv4", |_| [1, 0, 0x5e, 0, 0, 1]),
    ("a group of IPv6", |_| [0x33, 0x33, 0, 0, 0, 1]),
    ("bridges", |_| [1, 0x80, 0xc2, 0, 0, 0]),
];

type Address = (&'static str, fn(&Ends) -> [u8; 4]);
const ADDRESSES: [Address; 11] = [
    ("the asker", |ends| v4(ends.source)),
    ("the NOS", |ends| v4(ends.nos)),
    ("another host", |_| [203, 0, 113, 9]),
    ("nobody", |_| [0; 4]),
    ("everybody", |_| [255; 4]),
    ("everybody on the subnet", |_| [203, 0, 113, 255]),
    ("the subnet", |_| [203, 0, 113, 0]),
    ("the loopback", |_| [127, 0, 0, 1]),
    ("a group", |_| [224, 0, 0, 1]),
    ("class E", |_| [240, 0, 0, 1]),
    ("another subnet", |_| [198, 51, 100, 1]),
];

pub(super) fn probes() -> Probes {
    let mut probes = Probes::default();
    let mut add = |name: String, change: Change| {
        probes.add(V4, name, move |ends| {
            let mut draft = Draft::new(ends);
            change(&mut draft, ends);
            draft.frame(ends)
        });
    };
    for (to, mac) in MACS {
        for (who, address) in ADDRESSES {
            add(
                format!("question to the MAC of {to} from {who}"),
                Box::new(move |draft, ends| {
                    draft.to = mac(ends);
                    draft.sender.1 = address(ends);
                }),
            );
        }
        for (who, sender) in MACS {
            add(
                format!("question to the MAC of {to} by the MAC of {who}"),
                Box::new(move |draft, ends| {
                    draft.to = mac(ends);
                    draft.sender.0 = sender(ends);
                }),
            );
        }
        for operation in [0, 2, 3, 4, 8, 9, 10, 25, 0x100, 0xffff] {
            add(
                format!("operation {operation} to the MAC of {to}"),
                Box::new(move |draft, ends| {
                    draft.to = mac(ends);
                    draft.operation = operation;
                }),
            );
        }
    }
    for (about, target) in ADDRESSES {
        for (who, address) in ADDRESSES {
            add(
                format!("question about {about} from {who}"),
                Box::new(move |draft, ends| {
                    draft.sender.1 = address(ends);
                    draft.target.1 = target(ends);
                }),
            );
        }
    }
    for (who, mac) in MACS {
        add(
            format!("question with the target MAC of {who}"),
            Box::new(move |draft, ends| draft.target.0 = mac(ends)),
        );
    }
    for hardware in [0, 1, 6, 7, 15, 32, 0x100, 0xffff] {
        for protocol in [0x800, 0x806, 0x86dd, 0, 0x8100] {
            add(
                format!("question with hardware {hardware} and protocol {protocol:#x}"),
                Box::new(move |draft, _| {
                    draft.hardware = hardware;
                    draft.protocol = protocol;
                }),
            );
        }
    }
    for lengths in [
        [0, 0],
        [6, 0],
        [0, 4],
        [8, 4],
        [6, 16],
        [6, 6],
        [4, 6],
        [255, 255],
    ] {
        add(
            format!("question with lengths {lengths:?}"),
            Box::new(move |draft, _| draft.lengths = lengths),
        );
    }
    for len in [14, 15, 18, 22, 32, 38, 41, 43, 60, 1000] {
        probes.add(V4, format!("question of {len} octets"), move |ends| {
            let mut frame = Draft::new(ends).frame(ends);
            frame.resize(len, 0x5a);
            frame
        });
    }
    probes
}
