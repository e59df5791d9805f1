//! A link on the way that takes less: the error about a learnt flow finds the container that sends it.

use nos_relay::lab::testbed::veth;

use super::*;

/// What the link behind the router takes.
const NARROW: u16 = 1300;

/// Two hosts in one namespace: of the second one nothing is known when the first is.
const HOSTS: [&str; 4] = [
    "198.51.100.2/24",
    "198.51.100.3/24",
    "2001:db8:2::2/64",
    "2001:db8:2::3/64",
];

/// Behind X, which forwards to it.
struct Behind {
    namespace: LabNamespace,
}

impl Behind {
    fn new(scenario: &Scenario) -> Self {
        let (x, namespace) = (scenario.external(), LabNamespace::new("behind").unwrap());
        x.sysctl("net/ipv4/ip_forward", "1").unwrap();
        x.sysctl("net/ipv6/conf/all/forwarding", "1").unwrap();
        veth((x, "narrow"), (&namespace, "eth0")).unwrap();
        for (at, interface, addresses) in [
            (x, "narrow", &["198.51.100.1/24", "2001:db8:2::1/64"][..]),
            (&namespace, "eth0", &HOSTS[..]),
        ] {
            for address in addresses {
                at.add_address(interface, address.parse().unwrap()).unwrap();
            }
            at.set_mtu(interface, NARROW.into()).unwrap();
        }
        // It takes more than its link: what is too long is so for the router.
        for (family, gateway) in [("-4", "198.51.100.1"), ("-6", "2001:db8:2::1")] {
            let route = [
                family, "route", "add", "default", "via", gateway, "advmss", "1460",
            ];
            ip(&namespace, &route);
        }
        Self { namespace }
    }

    /// A port of one of its two hosts.
    fn port(family: Family, host: u8, port: u16) -> SocketAddr {
        let address: IpAddr = match family.is_v6() {
            false => Ipv4Addr::new(198, 51, 100, host).into(),
            true => Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, host.into()).into(),
        };
        (address, port).into()
    }
}

/// What `ip` says in a namespace.
fn ip(namespace: &LabNamespace, arguments: &[&str]) -> String {
    let mut command = Command::new("ip");
    command.args(arguments).stdout(Stdio::piped());
    let output = namespace
        .spawn(command)
        .unwrap()
        .wait_with_output()
        .unwrap();
    assert!(output.status.success(), "ip {arguments:?}");
    String::from_utf8(output.stdout).unwrap()
}

mod a_narrow_link_is_heard_of_on_learnt_flows {
    use super::*;

    fn scenario(variant: Variant) {
        let learn = format!("{EPHEMERAL}\noutside = \"learn\"");
        let routes = format!(
            "{DB_EPHEMERAL}\n[[route]]\nprefix = \"0.0.0.0/0\"\nvia = \"203.0.113.2\"\n\
             [[route]]\nprefix = \"::/0\"\nvia = \"2001:db8:1::2\"\n"
        );
        let edits = [(EPHEMERAL, &*learn), (DB_EPHEMERAL, &routes)];
        let scenario = super::scenario(variant, &edits);
        let behind = Behind::new(&scenario);
        let web = scenario.web();
        for family in FAMILIES {
            let known = |host| {
                let to = Behind::port(family, host, 0).ip().to_string();
                ip(web, &["-o", "route", "get", &to]).contains(&format!("mtu {NARROW}"))
            };
            assert!(!known(2));
            // Segments of 1,460 octets are too long, and TCP goes on with shorter ones.
            let server =
                tcp::EchoServer::start(&behind.namespace, Behind::port(family, 2, 8080)).unwrap();
            let from = local(family.any, 30_000);
            tcp::exchange(web, from, server.address(), &[7; 80_000], LIMIT).unwrap();
            assert!(known(2), "the container has not heard of it");
            // A datagram that may not be fragmented, to a peer of which nothing is known yet.
            let to = Behind::port(family, 3, 8053);
            let server = udp::EchoServer::start(&behind.namespace, to).unwrap();
            let socket = web
                .run(|| UdpSocket::bind((family.any, 30_001)))
                .unwrap()
                .unwrap();
            never_fragment(&socket, family);
            socket.connect(server.address()).unwrap();
            socket.set_read_timeout(Some(LIMIT)).unwrap();
            socket.send(&[7; 1400]).unwrap();
            let told = socket.recv(&mut [0; 1500]).unwrap_err();
            assert_eq!(told.raw_os_error(), Some(libc::EMSGSIZE), "{told}");
            assert!(known(3));
            socket.send(&[7; 1200]).unwrap();
            assert_eq!(socket.recv(&mut [0; 1500]).unwrap(), 1200);
        }
        let flows = scenario.daemon.flows();
        assert_eq!(flows.len(), 4, "{flows:#?}");
        assert!(flows.iter().all(|flow| flow.learnt), "{flows:#?}");
        assert_eq!(scenario.daemon.dropped("nos", "icmp-unmatched"), 0);
    }

    variant_tests! {
        tap_single: ("tap", "single", [true, true]),
        tap_split_plain: ("tap", "split", [false, false]),
        veth_split: ("veth", "split", [true, true]),
        veth_single_plain: ("veth", "single", [false, false]),
    }
}

/// Has datagrams leave whole or not at all.
fn never_fragment(socket: &UdpSocket, family: Family) {
    let (level, option, value): (_, _, libc::c_int) = match family.is_v6() {
        false => (
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            libc::IP_PMTUDISC_DO,
        ),
        true => (
            libc::IPPROTO_IPV6,
            libc::IPV6_MTU_DISCOVER,
            libc::IP_PMTUDISC_DO,
        ),
    };
    let size = libc::socklen_t::try_from(size_of_val(&value)).unwrap();
    // SAFETY: the pointer and the size are those of `value`, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size,
        )
    };
    nix::errno::Errno::result(result).unwrap();
}
