use super::*;
use proptest::prelude::*;

fn identity(queues: u16) -> Identity {
    Identity {
        id: 7,
        secret: Secret::new(b"open"),
        name: "up0".to_owned(),
        queues,
        log2_ring_size: 10,
    }
}

fn at(milliseconds: u64) -> Instant {
    Instant::from_millis(milliseconds)
}

const SIZE: u64 = 1 << 20;

/// What a server has been given, when client and server have talked.
fn talk(queues: u16, server_takes: u16) -> Result<(Vec<Message>, Text<NAME>, Text<NAME>), Refusal> {
    let secret = Secret::new(b"open");
    let (mut server, hello) = Session::server(at(0));
    let mut client = Session::client(identity(queues), at(0));
    let (mut given, mut to_client) = (Vec::new(), hello);
    let mut of_client = None;
    let of_server = loop {
        let (message, descriptors) = match client.handle(to_client, 0, at(1))? {
            Step::Share(agreed) => {
                assert_eq!(agreed.to_server, queues);
                assert_eq!(agreed.log2_ring_size, 10);
                let offset = |to_server, index| u32::from(index) * 64 + u32::from(to_server);
                (client.init(SIZE, offset).unwrap(), 0)
            }
            Step::Send(message, Attached::Nothing) => (message, 0),
            Step::Send(message, _) => (message, 1),
            Step::Up(name) => {
                break name;
            }
            other => panic!("{other:?}"),
        };
        given.push(message);
        to_client = match server.handle(message, descriptors, at(1))? {
            Step::Claim(init) => {
                assert_eq!(init.id, 7);
                server.claim(&init, secret.as_ref(), server_takes)?
            }
            Step::Region(_) | Step::Ring(_) => server.ack(),
            Step::Connect(name) => {
                of_client = Some(name);
                server.connected("nos1")
            }
            other => panic!("{other:?}"),
        };
    };
    for session in [&client, &server] {
        assert_eq!(session.poll_at(), None);
    }
    Ok((given, of_client.unwrap(), of_server))
}

#[test]
fn client_and_server_agree() {
    let (given, of_client, of_server) = talk(2, 2).unwrap();
    let order: Vec<_> = given.iter().map(Message::name).collect();
    let expected = [
        "init",
        "add region",
        "add ring",
        "add ring",
        "add ring",
        "add ring",
        "connect",
    ];
    assert_eq!(order, expected);
    assert_eq!(of_client.octets(), b"up0");
    assert_eq!(of_server.octets(), b"nos1");
    let Message::AddRing(ring) = given[4] else {
        panic!("{given:?}");
    };
    assert!(!ring.to_server, "those to the server come first");
    assert_eq!((ring.index, ring.region, ring.offset), (0, 0, 0));
}

#[test]
fn more_rings_than_an_interface_takes_are_refused() {
    let refused = talk(2, 1).unwrap_err();
    let order = Refusal::Order {
        what: "ring to the server",
        index: 1,
        next: 1,
        most: 1,
    };
    assert_eq!(refused, order);
}

#[test]
fn a_client_wants_no_more_than_a_server_has() {
    let hello = |max_to_client, max_log2_ring_size| {
        Message::Hello(Hello {
            name: Text::new("other"),
            min_version: 0x0100,
            max_version: 0x0300,
            max_region: 0,
            max_to_client,
            max_to_server: u16::MAX,
            max_log2_ring_size,
        })
    };
    let mut client = Session::client(identity(4), at(0));
    let agreed = Agreed {
        to_server: 4,
        to_client: 1,
        log2_ring_size: 8,
    };
    assert_eq!(
        client.handle(hello(0, 8), 0, at(1)),
        Ok(Step::Share(agreed))
    );
}

#[test]
fn other_versions_modes_and_secrets_are_refused() {
    let mut client = Session::client(identity(1), at(0));
    let hello = Hello {
        name: Text::new("new"),
        min_version: 0x0300,
        max_version: 0x0301,
        max_region: 0,
        max_to_client: 0,
        max_to_server: 0,
        max_log2_ring_size: 0,
    };
    let refused = client.handle(Message::Hello(hello), 0, at(1));
    assert_eq!(refused, Err(Refusal::Version(0x0301)));
    let init = Init {
        version: VERSION,
        id: 7,
        mode: ETHERNET,
        secret: Text::new("0pen"),
        name: Text::new(""),
    };
    let refused = |init| {
        Session::server(at(0))
            .0
            .handle(Message::Init(init), 0, at(1))
    };
    let old = Init {
        version: 0x0100,
        ..init
    };
    assert_eq!(refused(old), Err(Refusal::Version(0x0100)));
    assert_eq!(refused(Init { mode: 1, ..init }), Err(Refusal::Mode(1)));
    let secret = Secret::new(b"open");
    let (mut server, _) = Session::server(at(0));
    let claimed = server.claim(&init, secret.as_ref(), 1);
    assert_eq!(claimed, Err(Refusal::Secret));
    // Who wants none is shown any.
    assert_eq!(server.claim(&init, None, 1), Ok(Message::Ack));
}

#[test]
fn a_message_has_the_descriptors_that_it_is_to_have() {
    let (mut server, _) = Session::server(at(0));
    let region = Message::AddRegion(AddRegion { index: 0, size: 1 });
    let counted = |message: &'static str, count| Err(Refusal::Descriptors { message, count });
    assert_eq!(server.handle(region, 0, at(1)), counted("add region", 0));
    assert_eq!(server.handle(region, 2, at(1)), counted("add region", 2));
    assert_eq!(server.handle(Message::Ack, 1, at(1)), counted("ack", 1));
}

#[test]
fn who_is_silent_while_something_is_due_is_refused() {
    let (server, _) = Session::server(at(500));
    assert_eq!(server.poll_at(), Some(at(1500)));
    assert_eq!(server.handle_timeout(at(1499)), Ok(()));
    assert_eq!(server.handle_timeout(at(1500)), Err(Refusal::Silent));
}

#[test]
fn a_reason_tells_the_peer() {
    let Message::Disconnect(end) = Refusal::Mode(3).message() else {
        panic!("another message");
    };
    assert_eq!(end.reason.octets(), b"mode 3 is not Ethernet");
}

fn message() -> impl Strategy<Value = Message> {
    let small = 0..3_u16;
    prop_oneof![
        Just(Message::Ack),
        any::<u16>().prop_map(|version| Message::Init(Init {
            version: if version < 0x8000 { VERSION } else { version },
            id: 7,
            mode: 0,
            secret: Text::new("open"),
            name: Text::new(""),
        })),
        (small.clone(), any::<u64>())
            .prop_map(|(index, size)| Message::AddRegion(AddRegion { index, size })),
        (any::<bool>(), small, 0..20_u8).prop_map(|(to_server, index, log2_size)| {
            Message::AddRing(AddRing {
                to_server,
                index,
                region: 0,
                offset: 0,
                log2_size,
                private_header: 0,
            })
        }),
        Just(Message::Connect(Text::new("c"))),
        Just(Message::Connected(Text::new("c"))),
    ]
}

proptest! {
    /// Whatever a client says and in whatever order, a server connects only when it has been given rings
    /// each way, in order; and what it is given is bounded.
    #[test]
    fn a_server_connects_only_to_what_is_whole(messages in proptest::collection::vec(message(), 0..60)) {
        let (mut server, _) = Session::server(at(0));
        let mut given = [0_u16; 3];
        let mut claimed = false;
        for message in messages {
            let descriptors = usize::from(matches!(message, Message::AddRegion(_) | Message::AddRing(_)));
            let step = match server.handle(message, descriptors, at(1)) {
                Ok(step) => step,
                // The session is of no further use.
                Err(_) => break,
            };
            match step {
                Step::Claim(init) => {
                    prop_assert!(!claimed);
                    claimed = true;
                    server.claim(&init, Secret::new(b"open").as_ref(), 2).unwrap();
                }
                Step::Region(region) => {
                    prop_assert_eq!(region.index, given[0]);
                    given[0] += 1;
                }
                Step::Ring(ring) => {
                    let count = &mut given[1 + usize::from(ring.to_server)];
                    prop_assert_eq!(ring.index, *count);
                    *count += 1;
                }
                Step::Connect(_) => {
                    prop_assert!(claimed && given[1] > 0 && given[2] > 0);
                    let _ = server.connected("x");
                }
                other => prop_assert!(false, "{:?}", other),
            }
            prop_assert!(given[0] <= MAX_REGIONS && given[1] <= 2 && given[2] <= 2);
        }
    }
}
