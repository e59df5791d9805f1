//! What is measured: rows as data, their targets, and which of them somebody wants.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::path::{Family, Path};
use super::traffic::{IpVersion, Sizes, Transport, Way};

/// One line of the results: some traffic in some setting.
#[derive(Clone, Debug)]
pub struct Row {
    /// Its name in options, tables and JSON.
    pub name: String,
    /// What it is, in words.
    pub what: String,
    /// What goes over the path.
    pub load: Load,
    /// How the path is set up.
    pub setting: Setting,
    /// Part of `--quick`.
    pub quick: bool,
}

/// How a path is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Setting {
    /// Octets of the longest IP packet.
    pub mtu: u16,
    /// Whether devices use checksum and segmentation offload.
    pub offload: bool,
    /// Buffers of the relay's pool, where it is not as large as usual.
    pub buffers: Option<u32>,
    /// Further containers that the relay attaches.
    pub crowd: u16,
    /// Whether traffic is in a VXLAN tunnel between the container and X.
    pub tunnel: bool,
}

impl Setting {
    /// What most rows have.
    pub const USUAL: Self = Self {
        mtu: 1500,
        offload: true,
        buffers: None,
        crowd: 0,
        tunnel: false,
    };
}

/// What goes over the path, and what is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// TCP at full rate: gigabits of payload a second.
    Bulk {
        /// Who connects.
        way: Way,
        /// The side that listens sends.
        reverse: bool,
        /// Connections at a time.
        streams: usize,
        /// The IP version.
        ip: IpVersion,
    },
    /// UDP at full rate: thousands of datagrams delivered a second.
    Flood {
        /// Who sends.
        way: Way,
        /// How long the frames are.
        sizes: Sizes,
        /// From how many ports.
        flows: usize,
    },
    /// UDP at the highest rate of which at most [`LOSS_ALLOWED`] is lost (in the manner of RFC
    /// 2544 section 26.1, whose limit is no loss at all): thousands of datagrams a second.
    Search {
        /// Who sends.
        way: Way,
        /// How long the frames are.
        sizes: Sizes,
    },
    /// One octet there and one back: microseconds, median.
    Exchange {
        /// Who asks.
        way: Way,
        /// By what.
        transport: Transport,
    },
    /// Connect, ask, be answered, close: connections a second.
    Connections {
        /// Who connects.
        way: Way,
    },
    /// Exchanges on many open TCP connections in turn: thousands a second.
    ManyConnections {
        /// Connections at a time.
        count: usize,
    },
    /// No traffic: wake-ups of the forwarding process a second.
    Idle,
    /// Memory of the forwarding process after load: mebibytes.
    Memory,
    /// Latency (99th percentile) of one container while another floods, over that without.
    Fairness,
    /// Latency (99th percentile) of one container while another sends to addresses that nobody has,
    /// over that without.
    Starve,
    /// Latency (99.9th percentile) of a container while all tables are asked for in a loop, over that
    /// without.
    ShowLoop,
    /// Latency (99.9th percentile) of a container while the setting's crowd is detached, over that
    /// without.
    Detach,
    /// A start with many containers until the relay is ready, and an end of it: seconds, the longer.
    Attach {
        /// Containers.
        containers: u16,
    },
    /// As [`Load::Bulk`], by iperf3.
    Iperf3 {
        /// Who connects.
        way: Way,
        /// The side that listens sends.
        reverse: bool,
        /// Connections at a time.
        streams: usize,
        /// The IP version.
        ip: IpVersion,
    },
}

/// Part of the datagrams that a search tolerates to be lost.
pub const LOSS_ALLOWED: f64 = 0.005;

/// Whether more is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Better {
    /// More is better.
    Higher,
    /// Less is better.
    Lower,
}

/// What is wanted of a figure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// The ratio to the yardstick, or the figure, is at least this.
    AtLeast(f64),
    /// The ratio to the yardstick, or the figure, is at most this.
    AtMost(f64),
}

impl Target {
    /// Whether a figure is as wanted.
    #[must_use]
    pub fn is_met(self, figure: f64) -> bool {
        match self {
            Self::AtLeast(limit) => figure >= limit,
            Self::AtMost(limit) => figure <= limit,
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtLeast(limit) => write!(f, "≥ {limit}"),
            Self::AtMost(limit) => write!(f, "≤ {limit}"),
        }
    }
}

impl Row {
    fn new(name: impl Into<String>, what: impl Into<String>, load: Load) -> Self {
        Self {
            name: name.into(),
            what: what.into(),
            load,
            setting: Setting::USUAL,
            quick: false,
        }
    }

    fn quick(mut self) -> Self {
        self.quick = true;
        self
    }

    /// The unit of its figures.
    #[must_use]
    pub fn unit(&self) -> &'static str {
        match self.load {
            Load::Bulk { .. } | Load::Iperf3 { .. } => "Gbit/s",
            Load::Flood { .. } | Load::Search { .. } => "kpps",
            Load::Exchange { .. } => "us",
            Load::Connections { .. } => "1/s",
            Load::ManyConnections { .. } => "k/s",
            Load::Idle => "wake-ups/s",
            Load::Memory => "MiB",
            Load::Fairness | Load::Starve | Load::ShowLoop | Load::Detach => "x",
            Load::Attach { .. } => "s",
        }
    }

    /// Whether more is better.
    #[must_use]
    pub fn better(&self) -> Better {
        match self.load {
            Load::Exchange { .. } | Load::Idle | Load::Memory | Load::Attach { .. } => {
                Better::Lower
            }
            _ if self.is_beside() => Better::Lower,
            _ => Better::Higher,
        }
    }

    fn needs_v6(&self) -> bool {
        let v6 = IpVersion::V6;
        matches!(self.load, Load::Bulk { ip, .. } | Load::Iperf3 { ip, .. } if ip == v6)
    }

    fn needs_process(&self) -> bool {
        matches!(self.load, Load::Idle | Load::Memory)
    }

    /// Whether a figure says more beside another path's.
    pub(super) fn has_ratios(&self) -> bool {
        !self.is_beside() && !matches!(self.load, Load::Idle | Load::Memory | Load::Attach { .. })
    }

    /// Whether it is about one container's latency beside what something else does.
    fn is_beside(&self) -> bool {
        matches!(
            self.load,
            Load::Fairness | Load::Starve | Load::ShowLoop | Load::Detach
        )
    }

    /// Whether it needs containers whose namespaces have names.
    pub(super) fn needs_crowd(&self) -> bool {
        self.setting.crowd > 0 || matches!(self.load, Load::Attach { .. })
    }

    /// Whether it says anything about `path`.
    #[must_use]
    pub fn runs_on(&self, path: Path) -> bool {
        let at_1500 = self.setting.mtu == 1500;
        (!self.needs_v6() || path.has_v6())
            && (self.setting.offload || path.is_tap())
            && (at_1500 || !path.is_foreign())
            && (!self.setting.tunnel || path.family() == Family::Relay)
            && (!self.needs_process() || path.has_process())
            && (!self.is_beside() || path.family() == Family::Relay)
            && (!matches!(self.load, Load::Attach { .. })
                || (path.family() == Family::Relay && !path.is_split()))
    }

    /// Why it cannot be measured here at all.
    #[must_use]
    pub fn missing(&self) -> Option<String> {
        let wants = matches!(self.load, Load::Iperf3 { .. });
        let lacks = wants && super::path::installed("iperf3").is_none();
        lacks.then(|| "iperf3 is not installed".to_owned())
    }

    /// What is wanted of the ratio between a relay and its yardstick.
    #[must_use]
    pub fn ratio_target(&self, path: Path) -> Option<Target> {
        let single = path.family() == Family::Relay && !path.is_split();
        match self.load {
            Load::Bulk { .. } if self.setting == Setting::USUAL && path.is_split() => {
                Some(Target::AtLeast(0.8))
            }
            _ if !single => None,
            Load::Bulk { .. } if self.setting == Setting::USUAL => Some(Target::AtLeast(0.95)),
            Load::Flood {
                sizes: Sizes::Fixed(64),
                flows: 1,
                ..
            } => {
                let tap = path.is_tap();
                Some(Target::AtLeast(if tap { 0.95 } else { 1.5 }))
            }
            Load::Exchange { .. } => Some(Target::AtMost(1.10)),
            Load::Connections { .. } => Some(Target::AtLeast(0.9)),
            _ => None,
        }
    }

    /// What is wanted of a relay's figure itself.
    #[must_use]
    pub fn own_target(&self, path: Path) -> Option<Target> {
        if path.family() != Family::Relay {
            return None;
        }
        match self.load {
            Load::Idle => Some(Target::AtMost(0.0)),
            Load::Memory => Some(Target::AtMost(32.0)),
            _ if self.is_beside() => Some(Target::AtMost(3.0)),
            Load::Attach { containers: 300 } => Some(Target::AtMost(1.0)),
            _ => None,
        }
    }

    /// What is wanted of the ratio between a relay and another program.
    #[must_use]
    pub fn peer_target(&self, peer: Path) -> Option<Target> {
        match self.load {
            Load::Bulk { .. } if peer == Path::Pasta1500 => Some(Target::AtLeast(10.0)),
            _ => Some(match self.better() {
                Better::Higher => Target::AtLeast(1.0),
                Better::Lower => Target::AtMost(1.0),
            }),
        }
    }
}

/// All rows, in the order in which they are measured and shown.
#[must_use]
pub fn rows() -> Vec<Row> {
    let mut rows = bulk();
    rows.extend(datagrams());
    rows.extend(exchanges());
    rows.extend(many());
    rows.extend(costs());
    rows.extend(iperf3());
    rows.extend(containers());
    rows
}

/// Who connects, whether the side that listens sends, and what that is called.
const BULK_WAYS: [(Way, bool, &str); 3] = [
    (Way::Out, false, "out"),
    (Way::Out, true, "rev"),
    (Way::In, false, "in"),
];

fn bulk() -> Vec<Row> {
    let mut rows = Vec::new();
    for mtu in [1500, 9000] {
        for ip in IpVersion::BOTH {
            for (way, reverse, label) in BULK_WAYS {
                for streams in [1, 4] {
                    rows.push(bulk_row(way, reverse, label, streams, ip, mtu));
                }
            }
        }
    }
    for (way, label) in [(Way::Out, "out"), (Way::In, "in")] {
        let mut row = bulk_row(way, false, label, 1, IpVersion::V4, 1500);
        row.name += "-plain";
        row.what += ", no offload";
        row.setting.offload = false;
        row.quick = false;
        rows.push(row);
    }
    for (way, label) in [(Way::Out, "out"), (Way::In, "in")] {
        let mut row = bulk_row(way, false, label, 1, IpVersion::V4, 1500);
        row.name += "-vxlan";
        row.what += ", in a VXLAN tunnel";
        row.setting.tunnel = true;
        row.quick = false;
        rows.push(row);
    }
    rows
}

fn bulk_name(by: &str, label: &str, streams: usize, ip: IpVersion) -> String {
    let mut name = format!("{by}-{label}");
    if streams > 1 {
        name += &format!("-{streams}");
    }
    if ip == IpVersion::V6 {
        name += "-v6";
    }
    name
}

fn bulk_what(way: Way, reverse: bool, streams: usize, ip: IpVersion) -> String {
    let sends = match (way, reverse) {
        (Way::Out, false) => "container connects and sends",
        (Way::Out, true) => "container connects and receives",
        (Way::In, _) => "X connects and sends",
    };
    let plural = if streams > 1 { "s" } else { "" };
    format!("{sends}, {streams} stream{plural}, {ip}")
}

fn bulk_row(way: Way, reverse: bool, label: &str, streams: usize, ip: IpVersion, mtu: u16) -> Row {
    let mut name = bulk_name("tcp", label, streams, ip);
    if mtu != 1500 {
        name += &format!("-{mtu}");
    }
    let what = format!(
        "bulk TCP, {}, MTU {mtu}",
        bulk_what(way, reverse, streams, ip)
    );
    let load = Load::Bulk {
        way,
        reverse,
        streams,
        ip,
    };
    let mut row = Row::new(name, what, load);
    row.setting.mtu = mtu;
    row.quick = mtu == 1500 && streams == 1 && ip == IpVersion::V4 && !reverse;
    row
}

fn datagrams() -> Vec<Row> {
    let flood = |way: Way, sizes: Sizes| {
        let name = format!("udp-{sizes}-{}", way.label());
        let what = format!("UDP at full rate, {}, {way}, IPv4", sizes.what());
        let flows = 1;
        Row::new(name, what, Load::Flood { way, sizes, flows })
    };
    let search = |sizes: Sizes| {
        let way = Way::Out;
        let name = format!("search-{sizes}-{}", way.label());
        let what = format!(
            "UDP at the highest rate with a loss ≤ 0.5 %, {}, {way}, IPv4",
            sizes.what()
        );
        Row::new(name, what, Load::Search { way, sizes })
    };
    let [small, medium, large] = [64, 512, 1400].map(Sizes::Fixed);
    vec![
        flood(Way::Out, small).quick(),
        flood(Way::Out, medium),
        flood(Way::Out, large),
        flood(Way::In, small),
        flood(Way::In, medium),
        flood(Way::In, large),
        flood(Way::Out, Sizes::Imix),
        flood(Way::In, Sizes::Imix),
        search(small),
        search(large),
        search(Sizes::Imix),
    ]
}

fn exchanges() -> Vec<Row> {
    let exchange = |way: Way, transport: Transport| {
        let name = format!("rr-{}-{}", transport.label(), way.label());
        let what = format!("one octet there and back, {transport}, {way}, IPv4");
        Row::new(name, what, Load::Exchange { way, transport })
    };
    let connections = |way: Way| {
        let name = format!("connect-{}", way.label());
        let what = format!("connect, ask, be answered, close; TCP, {way}, IPv4");
        Row::new(name, what, Load::Connections { way })
    };
    vec![
        exchange(Way::Out, Transport::Tcp).quick(),
        exchange(Way::In, Transport::Tcp),
        exchange(Way::Out, Transport::Udp),
        exchange(Way::In, Transport::Udp),
        connections(Way::Out).quick(),
        connections(Way::In),
    ]
}

const MANY: usize = 10_000;

fn many() -> Vec<Row> {
    let flood = Load::Flood {
        way: Way::Out,
        sizes: Sizes::Fixed(64),
        flows: MANY,
    };
    vec![
        Row::new(
            "flows-udp",
            format!("UDP at full rate, 64-octet frames, {MANY} flows in turn, container sends"),
            flood,
        ),
        Row::new(
            "flows-tcp",
            format!("one octet there and back on {MANY} TCP connections in turn"),
            Load::ManyConnections { count: MANY },
        ),
    ]
}

fn costs() -> Vec<Row> {
    vec![
        Row::new("idle", "no traffic: wake-ups of the process", Load::Idle).quick(),
        Row::new("memory", "memory of the process after load", Load::Memory).quick(),
        Row::new(
            "fairness",
            "p99 of TCP exchanges while another container floods, over that without",
            Load::Fairness,
        ),
    ]
}

/// Bulk TCP again, by a program that looks at none of the octets.
fn iperf3() -> Vec<Row> {
    let mut rows = Vec::new();
    for ip in IpVersion::BOTH {
        for (way, reverse, label) in BULK_WAYS {
            for streams in [1, 4] {
                let name = bulk_name("iperf3", label, streams, ip);
                let what = bulk_what(way, reverse, streams, ip);
                let load = Load::Iperf3 {
                    way,
                    reverse,
                    streams,
                    ip,
                };
                rows.push(Row::new(name, format!("bulk TCP by iperf3, {what}"), load));
            }
        }
    }
    rows
}

/// What containers cost each other, and what many of them take.
fn containers() -> Vec<Row> {
    let starve = Row::new(
        "starve",
        "p99 of TCP exchanges while another container sends to addresses that nobody has, over that \
         without; 1024 buffers",
        Load::Starve,
    );
    let show = Row::new(
        "show-loop",
        "p99.9 of TCP exchanges while `show` asks for all tables in a loop, over that without; 300 \
         more containers",
        Load::ShowLoop,
    );
    let detach = Row::new(
        "detach-300",
        "p99.9 of TCP exchanges while 300 other containers are detached, over that without",
        Load::Detach,
    );
    let attach = |containers: u16| {
        Row::new(
            format!("attach-{containers}"),
            format!("from start to ready with {containers} containers, or to the end: the longer"),
            Load::Attach { containers },
        )
    };
    let with = |row: Row, buffers, crowd| Row {
        setting: Setting {
            buffers,
            crowd,
            ..Setting::USUAL
        },
        ..row.quick()
    };
    vec![
        with(starve, Some(1024), 0),
        with(show, None, 300),
        with(detach, None, 300),
        attach(300).quick(),
        attach(1000).quick(),
    ]
}

/// Rows, paths, and how often and long each pair is measured.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What is measured.
    pub rows: Vec<Row>,
    /// On what.
    pub paths: Vec<Path>,
    /// How often.
    pub rounds: u32,
    /// How long a sample takes, more or less.
    pub duration: Duration,
}

impl Plan {
    /// The pairs of a round, in the order in which they are measured.
    pub fn pairs(&self) -> impl Iterator<Item = (&Row, Path)> {
        self.rows.iter().flat_map(|row| {
            let paths = self.paths.iter().copied();
            paths
                .filter(|path| row.runs_on(*path))
                .map(move |path| (row, path))
        })
    }
}

/// Those of `all` whose names `filter` picks: a list of names, separated by commas. What is no
/// name picks all names that contain it.
///
/// # Errors
///
/// The first element that picks none.
pub fn pick<T: Clone>(
    all: &[T],
    name: impl Fn(&T) -> String,
    filter: &str,
) -> Result<Vec<T>, String> {
    let mut picked = vec![false; all.len()];
    for term in filter.split(',').map(str::trim) {
        let exact = all.iter().any(|one| name(one) == term);
        let fits = |one: &T| match exact {
            true => name(one) == term,
            false => !term.is_empty() && name(one).contains(term),
        };
        let mut found = false;
        for (one, picked) in all.iter().zip(&mut picked).filter(|(one, _)| fits(one)) {
            let _ = one;
            (*picked, found) = (true, true);
        }
        if !found {
            return Err(term.to_owned());
        }
    }
    let chosen = all.iter().zip(&picked).filter(|(_, picked)| **picked);
    Ok(chosen.map(|(one, _)| one.clone()).collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn rows_have_names_of_their_own() {
        let rows = rows();
        let names: BTreeSet<_> = rows.iter().map(|row| &row.name).collect();
        assert_eq!(names.len(), rows.len());
        assert!(rows.iter().any(|row| row.quick));
        for name in [
            "tcp-out",
            "tcp-rev-4-v6-9000",
            "udp-64-out",
            "udp-imix-in",
            "iperf3-in",
            "iperf3-rev-4-v6",
        ] {
            assert!(rows.iter().any(|row| row.name == name), "{name}");
        }
    }

    #[test]
    fn a_name_picks_itself_and_a_part_picks_all_that_contain_it() {
        let all = ["relay-tap", "relay-tap-split", "bare-tap", "kernel"];
        let pick = |filter| pick(&all, |name| (*name).to_owned(), filter);
        assert_eq!(pick("relay-tap").unwrap(), ["relay-tap"]);
        assert_eq!(pick("relay").unwrap(), ["relay-tap", "relay-tap-split"]);
        assert_eq!(pick("kernel, bare").unwrap(), ["bare-tap", "kernel"]);
        assert_eq!(pick("kernel,vpp").unwrap_err(), "vpp");
        assert_eq!(pick("").unwrap_err(), "");
    }

    #[test]
    fn every_row_has_a_path_and_targets_where_the_relay_is() {
        for row in rows() {
            let paths: Vec<_> = Path::ALL
                .into_iter()
                .filter(|path| row.runs_on(*path))
                .collect();
            assert!(paths.contains(&Path::RelayTap), "{}", row.name);
            assert_eq!(row.ratio_target(Path::Kernel), None);
            assert_eq!(row.own_target(Path::BareTap), None);
        }
        let bulk = &rows()[0];
        assert_eq!(
            bulk.ratio_target(Path::RelayTap),
            Some(Target::AtLeast(0.95))
        );
        assert_eq!(
            bulk.ratio_target(Path::RelayVethSplit),
            Some(Target::AtLeast(0.8))
        );
    }

    #[test]
    fn paths_take_part_where_they_can() {
        let rows = rows();
        let row = |name: &str| rows.iter().find(|row| row.name == name).unwrap();
        assert!(!row("tcp-out-v6").runs_on(Path::Kernel));
        assert!(!row("iperf3-in-v6").runs_on(Path::Kernel));
        assert!(!row("tcp-out-9000").runs_on(Path::Pasta));
        assert!(row("tcp-out-9000").runs_on(Path::Kernel));
        assert!(!row("tcp-out-plain").runs_on(Path::BarePacket));
        assert!(row("tcp-out-plain").runs_on(Path::BareTapUring));
        assert!(!row("idle").runs_on(Path::Kernel));
        assert!(!row("fairness").runs_on(Path::BareTap));
    }

    #[test]
    fn a_victim_needs_a_relay_and_a_start_one_thread_of_it() {
        let rows = rows();
        let row = |name: &str| rows.iter().find(|row| row.name == name).unwrap();
        for name in ["fairness", "starve", "show-loop", "detach-300"] {
            let row = row(name);
            assert_eq!(row.own_target(Path::RelayVeth), Some(Target::AtMost(3.0)));
            assert!(row.runs_on(Path::RelayTapSplit) && !row.runs_on(Path::BareTap));
            assert!(row.better() == Better::Lower && !row.has_ratios());
        }
        let start = row("attach-300");
        assert!(start.runs_on(Path::RelayTap) && !start.runs_on(Path::RelayTapSplit));
        assert_eq!(start.own_target(Path::RelayTap), Some(Target::AtMost(1.0)));
        assert_eq!(row("attach-1000").own_target(Path::RelayTap), None);
        assert_eq!(row("starve").setting.buffers, Some(1024));
        assert!(row("detach-300").needs_crowd() && start.needs_crowd());
        assert!(!row("starve").needs_crowd());
    }

    #[test]
    fn targets_include_their_limit() {
        assert!(Target::AtLeast(0.95).is_met(0.95) && !Target::AtLeast(0.95).is_met(0.94));
        assert!(Target::AtMost(0.0).is_met(0.0) && !Target::AtMost(0.0).is_met(0.1));
        assert_eq!(Target::AtLeast(0.95).to_string(), "≥ 0.95");
    }
}
