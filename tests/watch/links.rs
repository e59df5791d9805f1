//! Interfaces of the host.

use nos_relay::control::kernel::watch::LinkChange;
use nos_relay::lab::testbed::LabNamespace;
use nos_shim::ident::MacAddr;

use crate::harness::{cat, end, host, ip};
use crate::support::lab_test;

lab_test! {
    fn links_of_the_host_carry_their_state() {
        let (host, mut watching) = host();
        ip(&host, "-4", "link add v0 type veth peer name v1");
        let made = watching.link("made", |link| link.facts.name == "v0");
        assert!(!made.up && !made.operational);
        assert_eq!(made.mtu, 1500);

        let mac = MacAddr([2, 0, 0, 0, 0, 7]);
        host.set_mtu("v0", 1400).unwrap();
        host.set_mac("v0", mac).unwrap();
        let of_v0 = |link: &LinkChange| link.facts.index == made.index;
        watching.link("MTU", |link| of_v0(link) && link.facts.mtu == 1400);
        watching.link("MAC", |link| of_v0(link) && link.facts.mac == Some(mac));

        host.set_up("v0").unwrap();
        let up = watching.link("up", |link| of_v0(link) && link.facts.up);
        assert!(!up.operational, "the other end is down");
        host.set_up("v1").unwrap();
        watching.link("carrier", |link| of_v0(link) && link.facts.operational);
        host.set_down("v0").unwrap();
        watching.link("down", |link| of_v0(link) && !link.facts.up);

        ip(&host, "-4", "link set v0 name v2");
        watching.link("renamed", |link| of_v0(link) && link.facts.name == "v2");
        host.delete_link("v2").unwrap();
        watching.link("deleted", |link| of_v0(link) && link.deleted);
    }
}

lab_test! {
    fn link_that_moves_away_is_deleted_and_a_bridge_port_is_not() {
        let (host, mut watching) = host();
        let elsewhere = LabNamespace::new("elsewhere").unwrap();
        ip(&host, "-4", "link add v0 type veth peer name v1\nlink add br0 type bridge\n\
            link set v0 master br0\nlink set v0 nomaster\nlink set v1 mtu 1300");
        watching.link("last", |link| {
            assert!(!link.deleted, "{link:?}");
            link.facts.name == "v1" && link.facts.mtu == 1300
        });
        // ip moves a link to a process, so one lives there.
        let holder = elsewhere.spawn(cat()).unwrap();
        ip(&host, "-4", &format!("link set v0 netns {}", holder.id()));
        watching.link("moved", |link| link.facts.name == "v0" && link.deleted);
        end(holder);
    }
}
