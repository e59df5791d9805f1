//! IGMP: a NOS that joins groups, in this process, on a real link.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::time::Instant as Clock;

use nos_relay::data::device::{FrameDevice, PacketOptions, PacketSocket};
use nos_relay::lab::testbed::LabNamespace;
use nos_shim::channel::{RelayEnd, pair};
use nos_shim::frame::{Burst, FramePool, MAX_FRAME};
use nos_shim::ident::{MacAddr, UplinkId, VrfId};
use nos_shim::shim::{LinkState, Shim, ShimConfig, UplinkConfig};
use nos_shim::time::Instant;

use crate::message::Told;
use crate::network::{Network, PORT, Querier};
use crate::support::daemon::LIMIT;
use crate::support::lab_test;
use crate::support::wire::Wire;

const UPLINK: UplinkId = UplinkId(0);
/// In which both hosts are all the time, so that it is seen how they are asked.
const COMMON: Ipv4Addr = Ipv4Addr::new(239, 1, 1, 1);
const NOS_GROUP: Ipv4Addr = Ipv4Addr::new(239, 1, 2, 3);
const PLAIN_GROUP: Ipv4Addr = Ipv4Addr::new(239, 1, 2, 5);

/// A NOS with one uplink.
struct Nos {
    shim: Shim,
    device: PacketSocket,
    pool: FramePool,
    start: Clock,
    _relay: RelayEnd,
}

impl Nos {
    fn new(device: &LabNamespace, mac: MacAddr) -> Self {
        let pool = FramePool::new(256, MAX_FRAME);
        let (relay, end) = pair(4);
        let open = || PacketSocket::open("eth0", PacketOptions::default()).unwrap();
        let mut nos = Self {
            shim: Shim::new(
                end,
                pool.clone(),
                ShimConfig {
                    seed: 7,
                    ..ShimConfig::default()
                },
            ),
            device: device.run(open).unwrap(),
            pool,
            start: Clock::now(),
            _relay: relay,
        };
        let config = UplinkConfig {
            id: UPLINK,
            name: "up0".into(),
            vrf: VrfId::DEFAULT,
            mac,
            addresses: vec!["203.0.113.1/24".parse().unwrap()],
            mtu: 1500,
            redirects: true,
        };
        let now = nos.now();
        nos.shim.set_uplink(config, now).unwrap();
        nos.shim.set_link(UPLINK, LinkState::Up, now).unwrap();
        nos
    }

    fn now(&self) -> Instant {
        let nanos = self.start.elapsed().as_nanos();
        Instant::from_nanos(u64::try_from(nanos).unwrap())
    }

    fn join(&mut self, group: Ipv4Addr) {
        let now = self.now();
        self.shim.join_group(UPLINK, group.into(), now).unwrap();
    }

    fn leave(&mut self, group: Ipv4Addr) {
        let now = self.now();
        self.shim.leave_group(UPLINK, group.into(), now);
    }

    /// Receives, does what is due, and sends.
    fn turn(&mut self) {
        let mut burst = Burst::new();
        let _ = self.device.recv_burst(&mut self.pool, &mut burst, 64);
        let now = self.now();
        self.shim.handle_burst(UPLINK, &mut burst, now);
        self.shim.handle_timeout(now);
        while let Some((_, burst)) = self.shim.poll_transmit() {
            let _ = self.device.send_burst(burst, &mut self.pool);
        }
    }
}

impl Drop for Nos {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let held = i128::try_from(self.shim.held()).unwrap();
            assert_eq!(self.shim.ledger().unaccounted(), held);
        }
    }
}

/// What both say of their groups, on the router's wire.
struct Beside {
    network: Network,
    wire: Wire,
    nos: Nos,
    told: [Vec<Told>; 2],
}

impl Beside {
    fn new(version: u8) -> Self {
        let network = Network::new(Querier::Router, [version, 2]);
        let wire = Wire::open(&network.router, "eth0");
        let nos = Nos::new(&network.device, network.nos_mac());
        Self {
            network,
            wire,
            nos,
            told: [vec![], vec![]],
        }
    }

    /// Goes on until both have said enough of their groups, and returns all that they have said.
    fn watch(&mut self, groups: [Ipv4Addr; 2], enough: impl Fn(&[Told]) -> bool) {
        let hosts = [self.network.nos_mac(), self.network.plain_mac()];
        let deadline = Clock::now() + LIMIT;
        while !self.told.iter().all(|told| enough(told)) {
            assert!(Clock::now() < deadline, "{:?}", self.told);
            self.nos.turn();
            for seen in self.wire.seen() {
                for (told, (host, group)) in self.told.iter_mut().zip(hosts.into_iter().zip(groups))
                {
                    told.extend(Told::of(&seen, host, group.into()));
                }
            }
        }
    }

    /// Goes on until `holds`.
    fn until(&mut self, holds: impl Fn(&[IpAddr]) -> bool) {
        let deadline = Clock::now() + LIMIT;
        while !holds(&self.network.groups_behind(PORT)) {
            assert!(
                Clock::now() < deadline,
                "{:?}",
                self.network.groups_behind(PORT)
            );
            self.nos.turn();
        }
    }

    /// The plain host's membership, as long as this lives.
    fn plain_joins(&self, group: Ipv4Addr) -> UdpSocket {
        let join = || {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            let interface = Ipv4Addr::new(203, 0, 113, 5);
            socket
                .join_multicast_v4(&group, &interface)
                .map(|()| socket)
        };
        self.network.plain.try_run("join a group", join).unwrap()
    }

    fn take(&mut self) -> [Vec<Told>; 2] {
        std::mem::take(&mut self.told)
    }
}

fn kinds(told: &[Told], kind: u8) -> usize {
    told.iter().filter(|told| told.kind.0 == kind).count()
}

fn records(told: &[Told], kind: u8) -> usize {
    told.iter()
        .filter(|told| told.record_kind() == kind)
        .count()
}

const GROUPS: [Ipv4Addr; 2] = [NOS_GROUP, PLAIN_GROUP];

lab_test! {
    fn groups_that_are_joined_are_known_and_said_as_by_a_linux_host() {
        let mut beside = Beside::new(3);
        beside.nos.join(COMMON);
        let _common = beside.plain_joins(COMMON);
        beside.watch([COMMON; 2], |told| records(told, 2) > 0);
        beside.take();
        beside.nos.join(NOS_GROUP);
        let membership = beside.plain_joins(PLAIN_GROUP);
        beside.watch(GROUPS, |told| records(told, 4) == 2 && records(told, 2) > 0);
        beside.until(|groups| groups.contains(&NOS_GROUP.into()));
        beside.nos.leave(NOS_GROUP);
        drop(membership);
        beside.watch(GROUPS, |told| records(told, 3) == 2);
        beside.until(|groups| !groups.contains(&NOS_GROUP.into()) && groups.contains(&COMMON.into()));
        let [nos, plain] = beside.take().map(|mut told| {
            told.sort_unstable();
            told.dedup_by(|a, b| a == b && a.record_kind() == 2);
            told
        });
        assert_eq!(nos, plain);
        assert_eq!(nos.len(), 5, "a join and a leave twice, and an answer: {nos:?}");
    }
}

lab_test! {
    fn in_the_second_version_groups_are_known_and_said_as_by_a_linux_host() {
        const REPORT: u8 = 0x16;
        const LEAVE: u8 = 0x17;
        let mut beside = Beside::new(2);
        beside.nos.join(COMMON);
        let _common = beside.plain_joins(COMMON);
        beside.watch([COMMON; 2], |told| kinds(told, REPORT) > 0);
        beside.take();
        beside.nos.join(NOS_GROUP);
        let membership = beside.plain_joins(PLAIN_GROUP);
        beside.watch(GROUPS, |told| kinds(told, REPORT) > 1);
        beside.until(|groups| groups.contains(&NOS_GROUP.into()));
        beside.nos.leave(NOS_GROUP);
        drop(membership);
        beside.watch(GROUPS, |told| kinds(told, LEAVE) > 0);
        beside.until(|groups| !groups.contains(&NOS_GROUP.into()) && groups.contains(&COMMON.into()));
        let [nos, plain] = beside.take().map(|mut told| {
            told.sort_unstable();
            told.dedup();
            told
        });
        assert_eq!(nos, plain);
        assert_eq!(nos.len(), 2, "a report and a leave: {nos:?}");
    }
}
