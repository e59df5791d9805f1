//! The seeds of the fuzz targets: small valid packets of each kind.
//!
//! They lie as files in fuzz/seeds, so that the fuzzer needs no generator, and are checked here, so
//! that they do not rot. After a change of the targets' input format, write them anew:
//!
//! ```text
//! NOS_RELAY_WRITE_SEEDS=1 cargo test -p nos-shim seeds
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::craft::{Craft, Extension, Ip, Tcp, Transport, V4, V6};
use super::*;
use crate::arp::Arp;
use crate::frame::FramePool;
use crate::ndp::{ALL_NODES, ALL_ROUTERS, Envelope, Ndp, RouterAdvert, solicited_node};
use crate::offload::Capabilities;

type Seeds = BTreeMap<&'static str, Vec<u8>>;

fn directory(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fuzz/seeds")
        .join(target)
}

/// Compares the files of one target with what they should be, or writes them.
fn check(target: &str, seeds: &Seeds) {
    let directory = directory(target);
    if std::env::var_os("NOS_RELAY_WRITE_SEEDS").is_some() {
        std::fs::create_dir_all(&directory).unwrap();
        for (name, octets) in seeds {
            std::fs::write(directory.join(name), octets).unwrap();
        }
    }
    let files: BTreeSet<_> = std::fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(files.iter().eq(seeds.keys()), "{files:?}");
    for (name, octets) in seeds {
        let file = std::fs::read(directory.join(name)).unwrap();
        assert_eq!(&file, octets, "{target}/{name}");
    }
}

/// The input of the targets `packet`, `offload` and `icmp`; see there.
fn input(frame: &[u8], offload: Offload, capabilities: Capabilities, mtu: u16) -> Vec<u8> {
    let mut input = offload.to_virtio(0).to_vec();
    // All buffers, and a right header checksum.
    input.extend([capabilities.bits(), 0x80 | 7]);
    input.extend(mtu.to_be_bytes());
    input.extend(frame);
    input
}

fn tcp() -> Transport {
    Transport::Tcp(Tcp {
        flags: 0x99,
        options: vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2],
        ..Tcp::default()
    })
}

/// One packet of each kind, whole.
fn whole() -> Vec<(&'static str, Craft)> {
    let echo = |kind| Transport::Icmp(kind, 0, [0x12, 0x34, 0, 1]);
    let v4 = |transport| Craft::v4(transport, &[0x5a; 40]);
    let v6 = |extensions, transport| Craft::v6(extensions, transport, &[0x5a; 40]);
    let mut options = v4(Craft::udp());
    if let Ip::V4(v4) = &mut options.ip {
        v4.options = vec![7, 7, 4, 0, 0, 0, 0, 1, 148, 4, 0, 0];
    }
    let chain = vec![
        Extension::HopByHop(0),
        Extension::Destination(1),
        Extension::Routing {
            left: 1,
            last: "2001:db8::9".parse().unwrap(),
        },
        Extension::Authentication,
        Extension::Destination(0),
    ];
    let atomic = vec![Extension::Fragment {
        units: 0,
        more: false,
        identification: 7,
    }];
    let unsummed = Transport::Udp {
        ports: (40_000, 53),
        checksum: false,
    };
    vec![
        ("v4-tcp", v4(tcp())),
        ("v4-udp", v4(Craft::udp())),
        ("v4-udp-no-checksum", v4(unsummed)),
        ("v4-udp-options", options),
        ("v4-echo", v4(echo(8))),
        ("v4-ospf", v4(Transport::Other(89))),
        ("v6-tcp", v6(vec![], tcp())),
        ("v6-udp", v6(vec![], Craft::udp())),
        ("v6-udp-chain", v6(chain, Craft::udp())),
        ("v6-tcp-atomic", v6(atomic, tcp())),
        ("v6-echo", v6(vec![], echo(128))),
        ("v6-none", v6(vec![], Transport::Other(59))),
    ]
}

fn fragments() -> Vec<(&'static str, Vec<u8>)> {
    let v4 = |field, octets: &[u8]| V4::default().packet(17, field, octets);
    let v6 = |units, more, octets: &[u8]| {
        let fragment = Extension::Fragment {
            units,
            more,
            identification: 7,
        };
        let v6 = V6 {
            extensions: vec![fragment],
            ..V6::default()
        };
        v6.packet(17, octets)
    };
    let udp = Craft::v4(Craft::udp(), &[0x5a; 120]).transport_octets(false);
    vec![
        ("v4-fragment-first", v4(0x2000, &udp[..64])),
        ("v4-fragment-middle", v4(0x2008, &udp[64..120])),
        ("v4-fragment-last", v4(0x000f, &udp[120..])),
        ("v6-fragment-first", v6(0, true, &udp[..64])),
        ("v6-fragment-middle", v6(8, true, &udp[64..120])),
        ("v6-fragment-last", v6(15, false, &udp[120..])),
    ]
}

fn super_frames() -> Vec<(&'static str, Craft)> {
    let chain = vec![Extension::Destination(0)];
    vec![
        ("v4-tso", Craft::v4(tcp(), &[0x5a; 350])),
        ("v6-tso", Craft::v6(vec![], tcp(), &[0x5a; 350])),
        ("v6-tso-chain", Craft::v6(chain, tcp(), &[0x5a; 350])),
        ("v4-uso", Craft::v4(Craft::udp(), &[0x5a; 350])),
        ("v6-uso", Craft::v6(vec![], Craft::udp(), &[0x5a; 350])),
    ]
}

#[test]
fn seeds_of_the_target_packet_are_packets() {
    let mut seeds = Seeds::new();
    for (name, craft) in whole() {
        let input = input(&craft.frame(), Offload::NONE, Capabilities::empty(), 76);
        seeds.insert(name, input);
    }
    for (name, frame) in fragments() {
        let input = input(&frame, Offload::NONE, Capabilities::empty(), 68);
        seeds.insert(name, input);
    }
    for (name, craft) in super_frames() {
        let (frame, offload) = craft.super_frame(100, true);
        let input = input(&frame, offload, Capabilities::empty(), 120);
        seeds.insert(name, input);
    }
    let tcp = Craft::v4(tcp(), &[0x5a; 40]);
    let (frame, offload) = tcp.partial();
    seeds.insert(
        "v4-tcp-partial",
        input(&frame, offload, Capabilities::empty(), 1_500),
    );
    let (frame, offload) = tcp.super_frame(16, false);
    seeds.insert(
        "v4-tso-half-capable",
        input(&frame, offload, Capabilities::CHECKSUM, 1_500),
    );

    let mut pool = FramePool::new(1, 4_000);
    for (name, seed) in &seeds {
        let (header, rest) = seed.split_first_chunk().unwrap();
        let mut frame = pool.copy_from(&rest[4..]).unwrap();
        frame.set_offload(Offload::from_virtio(header).unwrap());
        assert!(Packet::parse(frame).is_ok(), "{name}");
    }
    for target in ["packet", "offload", "icmp"] {
        check(target, &seeds);
    }
}

fn arps() -> Vec<(&'static str, Arp)> {
    let mac = MacAddr([2, 0, 0, 0, 0, 1]);
    let (own, other) = (Ipv4Addr::new(203, 0, 113, 1), Ipv4Addr::new(203, 0, 113, 2));
    let request = Arp::request(mac, own, other);
    vec![
        ("arp-request", request),
        ("arp-reply", request.reply(MacAddr([2, 0, 0, 0, 0, 2]))),
        ("arp-probe", Arp::request(mac, Ipv4Addr::UNSPECIFIED, own)),
        ("arp-announcement", Arp::request(mac, own, own)),
    ]
}

fn ndps() -> Vec<(&'static str, Ndp, Ipv6Addr, Ipv6Addr)> {
    let mac = Some(MacAddr([2, 0, 0, 0, 0, 1]));
    let link: Ipv6Addr = "fe80::1".parse().unwrap();
    let target: Ipv6Addr = "2001:db8:1::1".parse().unwrap();
    let advert = RouterAdvert {
        hop_limit: 64,
        managed: true,
        other: false,
        lifetime: 1_800,
        reachable_time: 30_000,
        retrans_timer: 1_000,
        source_link_layer: mac,
        mtu: Some(1_500),
    };
    let solicit = |source_link_layer| Ndp::NeighborSolicit {
        target,
        source_link_layer,
    };
    let neighbor = Ndp::NeighborAdvert {
        router: true,
        solicited: true,
        overrides: true,
        target,
        target_link_layer: mac,
    };
    let redirect = Ndp::Redirect {
        target: "fe80::2".parse().unwrap(),
        destination: target,
    };
    let router_solicit = Ndp::RouterSolicit {
        source_link_layer: mac,
    };
    let group = solicited_node(target);
    vec![
        ("ndp-router-solicit", router_solicit, link, ALL_ROUTERS),
        (
            "ndp-router-advert",
            Ndp::RouterAdvert(advert),
            link,
            ALL_NODES,
        ),
        ("ndp-neighbor-solicit", solicit(mac), link, group),
        ("ndp-dad", solicit(None), Ipv6Addr::UNSPECIFIED, group),
        ("ndp-neighbor-advert", neighbor, target, link),
        ("ndp-redirect", redirect, link, target),
    ]
}

#[test]
fn seeds_of_the_target_arp_ndp_are_messages() {
    let mut pool = FramePool::new(1, 4_000);
    let mut seeds = Seeds::new();
    for (name, arp) in arps() {
        let mut frame = pool.alloc().unwrap();
        arp.write(&mut frame, MacAddr::BROADCAST).unwrap();
        assert_eq!(Arp::parse(frame.bytes()), Ok(arp), "{name}");
        seeds.insert(name, [&[1], frame.bytes()].concat());
    }
    for (name, message, source, destination) in ndps() {
        let envelope = Envelope {
            source_mac: MacAddr([2, 0, 0, 0, 0, 1]),
            destination_mac: MacAddr([2, 0, 0, 0, 0, 2]),
            source,
            destination,
        };
        let mut frame = pool.alloc().unwrap();
        message.write(&mut frame, &envelope).unwrap();
        seeds.insert(name, [&[1], frame.bytes()].concat());
        let packet = Packet::parse(frame).unwrap();
        assert_eq!(Ndp::parse(&packet), Ok(message), "{name}");
    }
    check("arp_ndp", &seeds);
}
