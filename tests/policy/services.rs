//! Services of the NOS that are for some alone, by the key that containers' ports have.

use super::*;

/// The last line of the usual configuration, with services behind it.
fn services(from: &str) -> (&'static str, String) {
    let text = format!(
        "{DB_EPHEMERAL}\n[nos]\nservices = [{{ service = \"echo\"{from} }}, \
         {{ service = \"http\", ports = [\"8080-8081\"]{from} }}]\n"
    );
    (DB_EPHEMERAL, text)
}

mod services_are_for_friends_alone {
    use super::*;

    fn scenario(variant: Variant) {
        let guarded = format!(", from = {FRIENDS}");
        let (last, text) = services(&guarded);
        let scenario = super::scenario(variant, &[(last, &text)]);
        let x = scenario.external();
        let echo = |family: Family| family.nos_port(7);
        let assert_refused = |from: &LabNamespace, source: Option<SocketAddr>, family: Family| {
            for port in [7, 8081] {
                let refused = tcp::connect(from, source, family.nos_port(port), LIMIT).unwrap_err();
                assert_eq!(refused.kind(), Some(ErrorKind::ConnectionRefused), "{port}");
            }
            let refused = udp::exchange(from, source, echo(family), b"x", LIMIT).unwrap_err();
            assert_eq!(refused.kind(), Some(ErrorKind::ConnectionRefused));
        };
        for family in FAMILIES {
            let friend = local(family.external, 0);
            tcp::exchange(x, friend, echo(family), b"x", LIMIT).unwrap();
            udp::exchange(x, friend, echo(family), b"x", LIMIT).unwrap();
            tcp::connect(x, friend, family.nos_port(8081), LIMIT).unwrap();
            assert_refused(x, local(stranger(family), 0), family);
            // A container comes from the address that it shares, which is not among them.
            assert_refused(scenario.web(), None, family);
        }
        assert_eq!(scenario.daemon.dropped("nos", "policy-from"), 12);
        assert_eq!(scenario.daemon.flows(), [], "prefixes decide");
        let rows = scenario.daemon.ports().into_iter();
        let rows: Vec<_> = rows.filter(|row| row.kind == PortKind::Service).collect();
        assert_eq!(rows.len(), 4, "{rows:#?}");
        assert!(
            rows.iter().all(|row| row.from == Some(friends())),
            "{rows:#?}"
        );
        // Open to all, and back; services that stay are not interrupted.
        let mut streams = FAMILIES.map(|family| {
            let friend = local(family.external, 0);
            tcp::connect(x, friend, echo(family), LIMIT).unwrap()
        });
        scenario
            .daemon
            .reload(&edited(&scenario.config, &text, &services("").1));
        for family in FAMILIES {
            let other = local(stranger(family), 0);
            tcp::exchange(x, other, echo(family), b"x", LIMIT).unwrap();
            udp::exchange(scenario.web(), None, echo(family), b"x", LIMIT).unwrap();
        }
        let rows = scenario.daemon.ports();
        assert!(rows.iter().all(|row| row.from.is_none()), "{rows:#?}");
        scenario.daemon.reload(&scenario.config);
        for (family, stream) in FAMILIES.into_iter().zip(&mut streams) {
            assert_refused(x, local(stranger(family), 0), family);
            stream.write_all(b"still here").unwrap();
            let mut answer = [0; 10];
            stream.read_exact(&mut answer).unwrap();
            assert_eq!(&answer, b"still here");
        }
    }

    variant_tests! {
        tap_single: ("tap", "single", [true, true]),
        veth_split_plain: ("veth", "split", [false, false]),
    }
}
