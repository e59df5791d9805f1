//! The command line, `check`, and what `show` prints.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::path::{Path, PathBuf};

use clap::{CommandFactory, Parser};
use nos_relay::cli::show;
use nos_relay::cli::{CheckArgs, Cli, Command, ControlArgs, ShowArgs};
use nos_relay::control::api::snapshot::{
    Attachment, Capture, Counters, Flow, FlowOpener, FlowState, IoUring, Link, LinkLocal,
    LinkState, Neighbor, NeighborState, NextHop, Origin, Outside, Port, PortKind, PortState,
    Protocol, Ring, Route, RouteAction, RouteSource, Stage, Traffic, TurnStage, Turns, Uplink,
};
use nos_relay::control::api::{Response, Table};
use nos_relay::outcome::Outcome;
use nos_shim::drop::{DropReason, Ledger};
use nos_shim::ident::{AttachmentId, MacAddr, VrfId};
use nos_shim::ports::{
    AddressMode, Claim, ClaimKind, Policy, PortTable, Registration, ServiceRegistration, Transport,
};

fn parse(line: &str) -> Cli {
    Cli::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{error}"))
}

/// The exit code and text of a line that is not a command.
fn refused(line: &str) -> (i32, String) {
    let error = Cli::try_parse_from(line.split(' ')).unwrap_err();
    (error.exit_code(), error.to_string())
}

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn run_takes_a_configuration_and_a_socket() {
    let Command::Run(run) = parse("nos-relay run a.toml").command else {
        panic!()
    };
    assert_eq!(run.config, Path::new("a.toml"));
    assert_eq!(run.control.path, Path::new("/run/nos-relay.sock"));
    let Command::Run(run) = parse("nos-relay run --control /tmp/x a.toml").command else {
        panic!()
    };
    assert_eq!(run.control.path, Path::new("/tmp/x"));
}

#[test]
fn show_takes_a_table() {
    for (name, table) in [
        ("attachments", Table::Attachments),
        ("ports", Table::Ports),
        ("routes", Table::Routes),
        ("neighbors", Table::Neighbors),
        ("flows", Table::Flows),
        ("counters", Table::Counters),
    ] {
        let Command::Show(show) = parse(&format!("nos-relay show {name}")).command else {
            panic!()
        };
        assert_eq!((show.table, show.json), (table, false));
        let line = format!("nos-relay show {name} --json --control x");
        let Command::Show(show) = parse(&line).command else {
            panic!()
        };
        assert_eq!((show.json, show.control.path), (true, PathBuf::from("x")));
    }
}

#[test]
fn the_other_commands_are_taken() {
    let Command::Check(check) = parse("nos-relay check a.toml").command else {
        panic!()
    };
    assert_eq!(check.config, Path::new("a.toml"));
    assert!(matches!(parse("nos-relay demo").command, Command::Demo(_)));
    let line = "nos-relay bench --quick --json --plot p.svg --baseline b.json";
    let Command::Bench(bench) = parse(line).command else {
        panic!()
    };
    assert!(bench.quick && bench.json);
    assert_eq!(bench.plot.as_deref(), Some(Path::new("p.svg")));
    assert_eq!(bench.baseline.as_deref(), Some(Path::new("b.json")));
}

#[test]
fn log_filters_are_checked() {
    assert_eq!(parse("nos-relay --log debug demo").log, "debug");
    let filter = "warn,nos_relay::control::attach=trace";
    assert_eq!(parse(&format!("nos-relay demo --log {filter}")).log, filter);
    let (code, text) = refused("nos-relay --log a=b=c demo");
    assert_eq!(code, 2);
    assert!(
        text.contains("invalid value 'a=b=c' for '--log <FILTER>'"),
        "{text}"
    );
}

#[test]
fn wrong_usage_exits_with_2_and_help_with_0() {
    for line in [
        "nos-relay",
        "nos-relay dance",
        "nos-relay run",
        "nos-relay run a b",
        "nos-relay show",
        "nos-relay show weather",
        "nos-relay demo --fast",
        "nos-relay bench --plot",
    ] {
        assert_eq!(refused(line).0, 2, "{line}");
    }
    assert_eq!(refused("nos-relay --help").0, 0);
    let (code, text) = refused("nos-relay --version");
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!((code, text), (0, format!("nos-relay {version}\n")));
    assert!(refused("nos-relay shw ports").1.contains("'show'"));
}

/// The outcome, what was printed, and what was complained of.
fn outputs(
    run: impl FnOnce(&mut Vec<u8>, &mut Vec<u8>) -> std::io::Result<Outcome>,
) -> (Outcome, String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let outcome = run(&mut out, &mut err).unwrap();
    let text = |octets| String::from_utf8(octets).unwrap();
    (outcome, text(out), text(err))
}

#[test]
fn check_says_what_is_good_and_what_is_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("nos.toml");
    let check = CheckArgs {
        config: config.clone(),
    };
    let name = config.display();
    let uplink = "[[uplink]]\nname = \"up0\"\ndevice = \"tap:t\"\naddresses = \"203.0.113.1/24\"\n";
    std::fs::write(&config, uplink).unwrap();
    let good = format!("{name}: good: 1 uplink, 0 routes, 0 containers, 0 services\n");
    assert_eq!(
        outputs(|out, err| check.run(out, err)),
        (Outcome::Success, good, String::new())
    );

    std::fs::write(&config, format!("{uplink}mtu = 1\nmca = 2\n")).unwrap();
    let bad = format!(
        "{name}:5: uplink.mtu: 1 is not in the range 576 to 65535\n\
         {name}:6: uplink.mca: unknown key; did you mean \"mac\"?\n"
    );
    assert_eq!(
        outputs(|out, err| check.run(out, err)),
        (Outcome::Failure, String::new(), bad)
    );
}

/// As `nos-relay check CONFIG | head -0` does.
#[test]
fn output_that_nobody_reads_is_no_failure() {
    let directory = tempfile::tempdir().unwrap();
    let uplink = "[[uplink]]\nname = \"up0\"\ndevice = \"tap:t\"\naddresses = \"203.0.113.1/24\"\n";
    for (name, text, code) in [("good", uplink, 0), ("bad", "x = 1", 1)] {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_nos-relay"));
        child
            .arg("check")
            .arg(&path)
            .stdin(std::process::Stdio::null());
        let (stdout, stderr) = (writer.try_clone().unwrap(), std::process::Stdio::piped());
        let output = child.stdout(stdout).stderr(stderr).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{name}");
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(errors.is_empty(), code == 0, "{errors}");
        let status = child.stderr(writer).status().unwrap();
        assert_eq!(status.code(), Some(code), "{name}, without stderr");
    }
}

#[test]
fn show_without_a_daemon_fails_and_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control.sock");
    let name = path.display().to_string();
    let show = ShowArgs {
        table: Table::Ports,
        json: false,
        control: ControlArgs { path },
    };
    let (outcome, out, err) = outputs(|out, err| show.run(out, err));
    assert_eq!((outcome, out.as_str()), (Outcome::Failure, ""));
    assert!(err.starts_with(&format!("nos-relay: {name}: no nos-relay is running there")));
}

fn mac(text: &str) -> MacAddr {
    text.parse().unwrap()
}

fn link(device: &str, interface: &str) -> Link {
    Link {
        device: device.to_owned(),
        interface: interface.to_owned(),
        state: LinkState::Up,
        reason: None,
        since: None,
        mac: mac("02:00:5e:10:00:01"),
        vrf: VrfId::DEFAULT,
        vrf_name: "default".to_owned(),
        mtu: 1500,
        offload: ["checksum", "tso4", "tso6"].map(str::to_owned).to_vec(),
        rx: Traffic {
            packets: 7_340_032,
            octets: 10_737_418_240,
        },
        tx: Traffic {
            packets: 3,
            octets: 222,
        },
        drops: [("source-port".to_owned(), 4)].into(),
        device_tx_dropped: Some(9),
        long_super_frames: 5,
        refused: [("uso".to_owned(), 1)].into(),
    }
}

fn friends() -> Vec<ipnet::IpNet> {
    ["198.51.100.0/24", "2001:db8:2::/48"]
        .map(|prefix| prefix.parse().unwrap())
        .into()
}

fn attachments() -> Response {
    let web = Attachment {
        id: Some(1),
        name: "web".to_owned(),
        netns: "/run/netns/C".to_owned(),
        origin: Origin::Config,
        network: Some("red".to_owned()),
        container_mac: mac("02:00:5e:10:00:02"),
        mode: "shared".to_owned(),
        addresses: vec![
            "203.0.113.1".parse().unwrap(),
            "2001:db8:1::1".parse().unwrap(),
        ],
        link_addresses: Vec::new(),
        from: None,
        to: None,
        outside: Outside::Drop,
        link_local: Some(LinkLocal {
            uplink: "up0".to_owned(),
            address: "fe80::5eff:fe10:1".parse().unwrap(),
        }),
        link: link("tap", "eth0"),
    };
    let mut db = Attachment {
        id: Some(0),
        name: "db".to_owned(),
        netns: "pid 1234".to_owned(),
        origin: Origin::Runtime,
        addresses: vec!["203.0.113.1".parse().unwrap()],
        to: Some(friends()),
        outside: Outside::Learn,
        link_local: None,
        ..web.clone()
    };
    db.link = Link {
        device: "veth".to_owned(),
        state: LinkState::Gone,
        offload: Vec::new(),
        drops: Default::default(),
        device_tx_dropped: None,
        long_super_frames: 0,
        refused: Default::default(),
        ..db.link
    };
    Response::Attachments(vec![web, db])
}

fn ports() -> Response {
    let all = ["203.0.113.1", "2001:db8:1::1"].map(|address| address.parse().unwrap());
    let port = |protocol, range: &str, kind, owner: &str| Port {
        vrf: VrfId::DEFAULT,
        vrf_name: "default".to_owned(),
        addresses: (kind != PortKind::Service).then(|| all.to_vec()),
        protocol,
        range: range.parse().unwrap(),
        kind,
        owner: owner.to_owned(),
        origin: Origin::of(kind == PortKind::Ephemeral),
        from: (kind == PortKind::Listen).then(friends),
        state: (kind == PortKind::Ephemeral).then_some(PortState::Established),
    };
    Response::Ports(vec![
        port(Protocol::Udp, "20000-20999", PortKind::Listen, "web"),
        port(Protocol::Tcp, "40000-44999", PortKind::Ephemeral, "web"),
        port(Protocol::Tcp, "7", PortKind::Service, "echo"),
    ])
}

fn routes() -> Response {
    let route = |prefix: &str, source, action, hops: &[Option<&str>]| Route {
        vrf: VrfId::DEFAULT,
        vrf_name: "default".to_owned(),
        prefix: prefix.parse().unwrap(),
        source,
        metric: 0,
        action,
        next_hops: hops
            .iter()
            .map(|hop| NextHop {
                address: hop.map(|hop| hop.parse().unwrap()),
                uplink: "up0".to_owned(),
            })
            .collect(),
        container: None,
        origin: Origin::Config,
    };
    Response::Routes(vec![
        route(
            "2001:db8::/32",
            RouteSource::Static,
            RouteAction::Unreachable,
            &[],
        ),
        route(
            "203.0.113.0/24",
            RouteSource::Connected,
            RouteAction::Connected,
            &[None],
        ),
        route(
            "0.0.0.0/0",
            RouteSource::Static,
            RouteAction::Via,
            &[Some("203.0.113.2"), Some("203.0.113.3")],
        ),
    ])
}

fn neighbors() -> Response {
    let neighbor = |address: &str, mac, state, age_ms, queued| Neighbor {
        uplink: "up0".to_owned(),
        vrf_name: "default".to_owned(),
        address: address.parse().unwrap(),
        mac,
        state,
        age_ms,
        queued,
    };
    Response::Neighbors(vec![
        neighbor("fe80::1", None, NeighborState::Incomplete, 512, 3),
        neighbor(
            "203.0.113.2",
            Some(mac("02:00:00:00:00:02")),
            NeighborState::Reachable,
            15_000,
            0,
        ),
    ])
}

fn flows() -> Response {
    let flow = |owner: &str, local: &str, remote: &str, state, learnt| Flow {
        vrf: VrfId(u16::from(owner == "db")),
        vrf_name: if owner == "db" { "red" } else { "default" }.to_owned(),
        protocol: Protocol::Tcp,
        owner: owner.to_owned(),
        local: local.parse().unwrap(),
        remote: remote.parse().unwrap(),
        state,
        opener: FlowOpener::Owner,
        learnt,
        idle_ms: 1500,
        left_ms: 238_500,
    };
    Response::Flows(vec![
        flow(
            "web",
            "[2001:db8:1::1]:40000",
            "[2001:db8:2::2]:443",
            FlowState::Closing,
            false,
        ),
        flow(
            "web",
            "203.0.113.1:50000",
            "198.51.100.2:0",
            FlowState::Expected,
            true,
        ),
        flow(
            "db",
            "203.0.113.1:41000",
            "198.51.100.2:443",
            FlowState::Established,
            false,
        ),
    ])
}

fn counters() -> Response {
    let mut ledger = Ledger {
        received: 100,
        originated: 1,
        sent: 90,
        consumed: 5,
        ..Ledger::default()
    };
    ledger.drop(DropReason::SourcePort);
    ledger.drop(DropReason::SourcePort);
    ledger.drop(DropReason::RingFull);
    let nos = Ledger {
        received: 90,
        sent: 90,
        ..Ledger::default()
    };
    Response::Counters(Counters {
        stages: vec![Stage::new("relay", &ledger, 3), Stage::new("nos", &nos, 0)],
        rings: vec![Ring {
            name: "relay-to-nos".to_owned(),
            capacity: 256,
            depth: 2,
            full_drops: 1,
        }],
        uplinks: vec![Uplink {
            name: "up0".to_owned(),
            addresses: vec!["203.0.113.1/24".parse().unwrap()],
            runtime_addresses: Vec::new(),
            groups: vec!["239.1.2.3".parse().unwrap(), "ff05::1234".parse().unwrap()],
            runtime_groups: vec!["ff05::1234".parse().unwrap()],
            address_conflicts: 2,
            vlan: Some(910),
            link: link("packet", "hx"),
        }],
        turns: vec![Turns {
            thread: "data".to_owned(),
            slow_us: 1000,
            stages: vec![stage("turn", 2, 5120), stage("receive", 0, 87)],
            io_uring: IoUring {
                state: "failed".to_owned(),
                reason: Some("Operation not permitted".to_owned()),
                taps: true,
                batches: 12,
                frames: 345,
            },
        }],
        captures: vec![Capture {
            name: "web".to_owned(),
            path: "/tmp/web.pcapng".to_owned(),
            recorded: 1000,
            missed: 3,
            failed: false,
        }],
    })
}

fn stage(name: &str, slow: u64, longest_us: u64) -> TurnStage {
    TurnStage {
        name: name.to_owned(),
        slow,
        longest_us,
    }
}

fn all() -> [Response; 6] {
    [
        attachments(),
        ports(),
        routes(),
        neighbors(),
        flows(),
        counters(),
    ]
}

/// The table of the sorted response, without the newlines around it.
fn table(mut response: Response) -> String {
    show::sort(&mut response);
    let text = show::table(&response);
    assert!(text.ends_with('\n') && !text.ends_with("\n\n"));
    text.trim_end().to_owned()
}

#[test]
fn tables_are_aligned_and_sorted() {
    assert_eq!(table(attachments()), ATTACHMENTS.trim());
    assert_eq!(table(ports()), PORTS.trim());
    assert_eq!(table(routes()), ROUTES.trim());
    assert_eq!(table(neighbors()), NEIGHBORS.trim());
    assert_eq!(table(flows()), FLOWS.trim());
    assert_eq!(table(counters()), COUNTERS.trim());
}

#[test]
fn tables_fit_100_columns_without_colour() {
    for response in all() {
        let text = table(response);
        assert!(
            text.lines().all(|line| line.chars().count() <= 100),
            "{text}"
        );
        assert!(!text.contains('\u{1b}'));
    }
}

#[test]
fn empty_tables_say_so() {
    for (response, text) in [
        (Response::Attachments(vec![]), "No container is attached."),
        (Response::Ports(vec![]), "No ports are registered."),
        (Response::Routes(vec![]), "There are no routes."),
        (Response::Neighbors(vec![]), "No neighbors are known."),
        (Response::Flows(vec![]), "No flows are remembered."),
        (
            Response::Counters(Counters::default()),
            "There is nothing to count.",
        ),
    ] {
        assert_eq!(table(response), text);
    }
}

#[test]
fn json_is_as_documented() {
    let documented = include_str!("../docs/control.md");
    for mut response in all() {
        show::sort(&mut response);
        let json = show::json(&response);
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        fields(&value, &mut |field| {
            let is_reason = DropReason::ALL.iter().any(|reason| reason.label() == field);
            let row = format!("| `{field}` |");
            assert!(
                is_reason || documented.contains(&row),
                "{field} is not documented"
            );
        });
    }
    assert_eq!(show::json(&Response::Ports(vec![])), "[]\n");
}

/// Calls `visit` with the name of every field.
fn fields(value: &serde_json::Value, visit: &mut impl FnMut(&str)) {
    match value {
        serde_json::Value::Array(items) => items.iter().for_each(|item| fields(item, visit)),
        serde_json::Value::Object(object) => {
            for (field, value) in object {
                visit(field);
                fields(value, visit);
            }
        }
        _ => {}
    }
}

#[test]
fn snapshots_survive_json() {
    for response in all() {
        let json = serde_json::to_string(&response).unwrap();
        assert_eq!(serde_json::from_str::<Response>(&json).unwrap(), response);
    }
}

#[test]
fn a_stage_knows_what_is_missing() {
    let Response::Counters(counters) = counters() else {
        panic!()
    };
    let unaccounted: Vec<_> = counters.stages.iter().map(Stage::unaccounted).collect();
    assert_eq!(unaccounted, [0, 0]);
    let missing = Stage {
        held: 0,
        ..counters.stages[0].clone()
    };
    assert_eq!(missing.unaccounted(), 3);
}

const ATTACHMENTS: &str = r"
ID  CONTAINER  STATE  INTERFACE                         TRAFFIC
 0  db         gone   eth0 (veth) in pid 1234           received 7340032 packets, 10.7 GB
    (runtime)         mac 02:00:5e:10:00:02             sent 3 packets, 222 B
                      mac 02:00:5e:10:00:01 of the NOS
                      203.0.113.1
                      mtu 1500, vrf default
                      offload none
                      to 198.51.100.0/24
                      to 2001:db8:2::/48
                      outside learn

 1  web        up     eth0 (tap) in /run/netns/C        received 7340032 packets, 10.7 GB
                      mac 02:00:5e:10:00:02             sent 3 packets, 222 B
                      mac 02:00:5e:10:00:01 of the NOS  dropped 4 source-port
                      203.0.113.1                       dropped 9 in the device's queue
                      2001:db8:1::1                     cut 5 super-frames over 64 KiB
                      fe80::5eff:fe10:1 of up0          device refused 1 uso
                      mtu 1500, vrf default
                      offload checksum tso4 tso6
";

const PORTS: &str = r"
VRF      PROTOCOL  PORTS        KIND                  OWNER  FROM     ADDRESSES
default  tcp       7            service of the NOS    echo   config   all
default  tcp       40000-44999  ephemeral             web    runtime  203.0.113.1
                                established                           2001:db8:1::1
default  udp       20000-20999  listen                web    config   203.0.113.1
                                from 198.51.100.0/24                  2001:db8:1::1
                                from 2001:db8:2::/48
";

const ROUTES: &str = r"
VRF      PREFIX          SOURCE     METRIC  ACTION
default  0.0.0.0/0       static          0  via 203.0.113.2 on up0
                                            via 203.0.113.3 on up0
default  203.0.113.0/24  connected       0  connected on up0
default  2001:db8::/32   static          0  unreachable
";

const NEIGHBORS: &str = r"
UPLINK  ADDRESS      MAC                STATE         AGE  QUEUED
up0     203.0.113.2  02:00:00:00:00:02  reachable    15 s       0
up0     fe80::1      -                  incomplete  0.5 s       3
";

const FLOWS: &str = r"
VRF      OWNER  PROTO  LOCAL                  REMOTE                 STATE              IDLE   LEFT
red      db     tcp    203.0.113.1:41000      198.51.100.2:443       established       1.5 s  3 min
default  web    tcp    203.0.113.1:50000      198.51.100.2 any port  expected, learnt  1.5 s  3 min
default  web    tcp    [2001:db8:1::1]:40000  [2001:db8:2::2]:443    closing           1.5 s  3 min
";

const COUNTERS: &str = r"
PACKETS        RELAY  NOS
received         100   90
originated         1    0
sent              90   90
consumed           5    0
held               3    0
dropped            3    0
  ring-full        1    0
  source-port      2    0
unaccounted        0    0

RING          BURSTS AT MOST  BURSTS NOW  PACKETS DROPPED
relay-to-nos             256           2                1

UPLINK  STATE  INTERFACE                   TRAFFIC
up0     up     hx (packet)                 received 7340032 packets, 10.7 GB
               vlan 910                    sent 3 packets, 222 B
               mac 02:00:5e:10:00:01       dropped 4 source-port
               203.0.113.1/24              dropped 9 in the device's queue
               group 239.1.2.3             cut 5 super-frames over 64 KiB
               group ff05::1234 (runtime)  device refused 1 uso
               mtu 1500, vrf default       address conflicts 2
               offload checksum tso4 tso6

THREAD  STAGE    OVER 1000 us  LONGEST
data    turn                2  5120 us
data    receive             0    87 us

THREAD  IO_URING                         BATCHES  FRAMES IN THEM
data    failed: Operation not permitted       12             345

CAPTURE  FRAMES RECORDED  FRAMES MISSED  STATE    FILE
web                 1000              3  writing  /tmp/web.pcapng
";

#[test]
fn the_port_tables_holdings_are_shown() {
    let mut table = PortTable::new();
    let address = "203.0.113.1".parse().unwrap();
    table.add_address(VrfId::DEFAULT, address);
    let claim = |transport, range: &str, kind| Claim {
        transport,
        range: range.parse().unwrap(),
        kind,
    };
    let service = ServiceRegistration {
        name: "echo".into(),
        vrf: VrfId::DEFAULT,
        claims: vec![claim(Transport::Udp, "7", ClaimKind::Listen)],
        from: Vec::new(),
    };
    table.register_service(&service).unwrap();
    let web = Registration {
        attachment: AttachmentId(0),
        name: "web".into(),
        vrf: VrfId::DEFAULT,
        network: nos_shim::ident::NetworkId::DEFAULT,
        mode: AddressMode::Shared,
        addresses: vec![address],
        policy: Policy::default(),
        claims: vec![
            claim(Transport::Tcp, "80", ClaimKind::Listen),
            claim(Transport::Tcp, "40000-44999", ClaimKind::Ephemeral),
        ],
        link_local: None,
        router: "fe80::1".parse().unwrap(),
        mtu: 1500,
    };
    table.register(&web).unwrap();
    let rows = table.claims().map(|holding| Port::from(&holding)).collect();
    let expected = "
VRF      PROTOCOL  PORTS        KIND                OWNER  FROM    ADDRESSES
default  tcp       80           listen              web    config  203.0.113.1
default  tcp       40000-44999  ephemeral           web    config  203.0.113.1
default  udp       7            service of the NOS  echo   config  all
";
    assert_eq!(self::table(Response::Ports(rows)), expected.trim());
}
