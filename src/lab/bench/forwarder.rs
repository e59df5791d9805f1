//! The bare forwarder: what there is between two devices when nothing is decided about a packet.
//!
//! # Theory of operation
//!
//! It uses the relay's devices and does no more than any forwarder must: receive a burst, write
//! the destination's MAC address into each frame, send the burst. Where it is as fast as it can be,
//! the ratio to it says what the relay's own work costs.
//!
//! By plain calls: that is the yardstick. Its twin hands bursts over by io_uring, and shows what can be
//! had at best.
//!
//! Like the relay it sleeps when nothing comes, takes one frame at first and up to a burst while
//! there is more, and keeps the kernel's IP stack off the interfaces on which it has packet
//! sockets. It runs as a child of the bench, in a process of its own, so that its CPU time is told
//! apart; it ends with its stdin, and answers the line `drops` with what its sockets lost.

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use nos_shim::frame::{BATCH, Burst, FramePool, MAX_FRAME};
use nos_shim::ident::MacAddr;
use nos_shim::offload::Capabilities;

use crate::control::kernel::Namespace;
use crate::control::kernel::takeover::Takeover;
use crate::data::device::{FrameDevice, Next, PacketOptions, PacketSocket, Slot, Uring, open_tap};

/// What can go wrong, for one line on stderr.
pub type ForwardError = Box<dyn std::error::Error + Send + Sync>;

/// Turns between two looks at epoll while devices are busy.
const TURNS_PER_POLL: u32 = 16;

/// One of the two ends: `tap,NETNS,INTERFACE,MAC` or `packet,NETNS,INTERFACE,MAC`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndSpec {
    tap: bool,
    namespace: String,
    interface: String,
    /// The station on this end: where frames that leave here go.
    station: MacAddr,
}

impl EndSpec {
    /// A TAP named `interface` in the namespace at this path.
    pub(super) fn tap(namespace: &std::path::Path, interface: &str, station: MacAddr) -> Self {
        Self {
            tap: true,
            namespace: namespace.display().to_string(),
            interface: interface.to_owned(),
            station,
        }
    }

    /// A packet socket on an existing interface.
    pub(super) fn packet(namespace: &std::path::Path, interface: &str, station: MacAddr) -> Self {
        Self {
            tap: false,
            ..Self::tap(namespace, interface, station)
        }
    }
}

impl std::fmt::Display for EndSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = if self.tap { "tap" } else { "packet" };
        let Self {
            namespace,
            interface,
            station,
            ..
        } = self;
        write!(f, "{kind},{namespace},{interface},{station}")
    }
}

impl FromStr for EndSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<_> = text.split(',').collect();
        let [kind @ ("tap" | "packet"), namespace, interface, station] = parts[..] else {
            return Err("want tap|packet,NETNS,INTERFACE,MAC".to_owned());
        };
        let station = station
            .parse::<MacAddr>()
            .map_err(|error| error.to_string())?;
        Ok(Self {
            tap: kind == "tap",
            namespace: namespace.to_owned(),
            interface: interface.to_owned(),
            station,
        })
    }
}

/// Arguments of `bench-forward`, which `bench` starts.
#[derive(Args, Clone, Debug)]
pub struct ForwardArgs {
    /// The two ends: `tap|packet,NETNS,INTERFACE,MAC`, the MAC address being that of the station
    /// there.
    #[arg(long, required = true)]
    pub end: Vec<EndSpec>,
    /// One frame at a time.
    #[arg(long)]
    pub single: bool,
    /// Without offload.
    #[arg(long)]
    pub plain: bool,
    /// Hands bursts over by io_uring.
    #[arg(long)]
    pub io_uring: bool,
}

struct End {
    device: Box<dyn FrameDevice>,
    _takeover: Option<Takeover>,
    station: MacAddr,
    /// Where the ring has its file.
    slot: Option<Slot>,
    /// Frames of the next turn.
    turn: usize,
    ready: bool,
}

/// Forwards until stdin ends.
///
/// # Errors
///
/// A device cannot be opened, or has gone.
pub fn run(args: &ForwardArgs) -> Result<(), ForwardError> {
    let mut forwarder = Forwarder::open(args)?;
    writeln!(io::stdout(), "ready")?;
    forwarder.run()
}

struct Forwarder {
    poll: Poll,
    ends: [End; 2],
    uring: Option<Uring>,
    pool: FramePool,
    burst: Burst,
    most: usize,
}

const STDIN: Token = Token(2);

impl Forwarder {
    fn open(args: &ForwardArgs) -> Result<Self, ForwardError> {
        let poll = Poll::new()?;
        let [near, far] = &args.end[..] else {
            return Err("want two ends".into());
        };
        let mut ends = [open_end(near, !args.plain)?, open_end(far, !args.plain)?];
        let uring = match args.io_uring {
            true => Some(open_uring(&mut ends)?),
            false => None,
        };
        for (number, end) in ends.iter().enumerate() {
            let fd = end.device.fd().ok_or("a device without a descriptor")?;
            let mut source = SourceFd(&fd.as_raw_fd());
            poll.registry()
                .register(&mut source, Token(number), Interest::READABLE)?;
        }
        let stdin = 0;
        poll.registry()
            .register(&mut SourceFd(&stdin), STDIN, Interest::READABLE)?;
        Ok(Self {
            poll,
            ends,
            uring,
            pool: FramePool::new(2 * BATCH, MAX_FRAME),
            burst: Burst::new(),
            most: if args.single { 1 } else { BATCH },
        })
    }

    fn run(&mut self) -> Result<(), ForwardError> {
        let mut events = Events::with_capacity(8);
        loop {
            for _ in 0..TURNS_PER_POLL {
                self.turn(0)?;
                self.turn(1)?;
            }
            let busy = self.ends.iter().any(|end| end.ready);
            match self.poll.poll(&mut events, busy.then_some(Duration::ZERO)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                polled => polled?,
            }
            for event in &events {
                match event.token() {
                    STDIN => {
                        if !self.answer()? {
                            return Ok(());
                        }
                    }
                    Token(number) => self.ends[number].ready = true,
                }
            }
        }
    }

    /// Moves one burst from an end, if it has something, to the other.
    fn turn(&mut self, from: usize) -> Result<(), ForwardError> {
        let [first, second] = &mut self.ends;
        let (from, to) = match from {
            0 => (first, second),
            _ => (second, first),
        };
        if !from.ready {
            return Ok(());
        }
        let received = from
            .device
            .recv_burst(&mut self.pool, &mut self.burst, from.turn);
        match received.next {
            Next::More | Next::NoBuffer => from.turn = (from.turn * 2).min(self.most),
            Next::Drained | Next::Down => {
                (from.turn, from.ready) = (from.device.kind().first_turn(), false);
            }
            Next::Gone(error) => return Err(format!("{}: {error}", from.device.name()).into()),
        }
        for frame in &mut self.burst {
            // The device hands up no frame shorter than an Ethernet header.
            frame.bytes_mut()[..6].copy_from_slice(&to.station.0);
        }
        if !self.burst.is_empty() {
            let uring = self.uring.as_mut().zip(to.slot);
            let mut batch = uring.map(|(uring, slot)| uring.batch(slot));
            let _ = to
                .device
                .send(&mut self.burst, &mut self.pool, batch.as_mut());
            // Left only where the kernel refuses a kind of super-frame, once.
            self.pool.free_all(&mut self.burst);
        }
        Ok(())
    }

    /// Answers a question from stdin; returns whether to go on.
    fn answer(&mut self) -> Result<bool, ForwardError> {
        let mut question = [0; 64];
        if io::stdin().read(&mut question)? == 0 {
            return Ok(false);
        }
        let drops: u64 = self.ends.iter_mut().map(|end| end.lost()).sum();
        writeln!(io::stdout(), "{drops}")?;
        Ok(true)
    }
}

impl End {
    /// Frames that found a queue full, on the way in or out.
    fn lost(&mut self) -> u64 {
        self.device.inspector().kernel_drops() + self.device.counters().sent.drops.total()
    }
}

/// A ring of this thread that sends to both ends.
fn open_uring(ends: &mut [End; 2]) -> Result<Uring, ForwardError> {
    let mut uring = Uring::open()?;
    uring.enable();
    for End { device, slot, .. } in ends {
        *slot = uring.slot(device.kind(), device.fd());
        if slot.is_none() {
            return Err(format!("{}: not for io_uring", device.name()).into());
        }
    }
    Ok(uring)
}

fn open_end(spec: &EndSpec, offload: bool) -> Result<End, ForwardError> {
    let namespace = Namespace::open(&spec.namespace)?;
    let offload = match offload {
        // It does not look into frames, as whoever sends tunnels' super-frames has to.
        true => Capabilities::all() - Capabilities::TUNNEL - Capabilities::IP_TUNNEL,
        false => Capabilities::empty(),
    };
    let (mut device, takeover): (Box<dyn FrameDevice>, _) = if spec.tap {
        (namespace.run(|| open_tap(&spec.interface, offload))??, None)
    } else {
        let takeover = Takeover::of(&namespace, &spec.interface)?;
        let options = PacketOptions {
            offload,
            ..PacketOptions::default()
        };
        let socket = namespace.run(|| PacketSocket::open(&spec.interface, options))??;
        (Box::new(socket), Some(takeover))
    };
    // Nothing but frames in and frames out: that is the yardstick.
    device.set_coalescing(false);
    Ok(End {
        device,
        _takeover: takeover,
        station: spec.station,
        slot: None,
        turn: 1,
        // What came in before epoll watched gives no edge.
        ready: true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_written_as_they_are_read() {
        let mac = MacAddr::stable("x");
        let path = std::path::Path::new("/proc/1/fd/3");
        for end in [
            EndSpec::tap(path, "eth0", mac),
            EndSpec::packet(path, "hx", mac),
        ] {
            assert_eq!(end.to_string().parse(), Ok(end));
        }
        for wrong in ["", "tap,a,b", "tun,a,b,02:00:00:00:00:01", "tap,a,b,c"] {
            assert!(wrong.parse::<EndSpec>().is_err(), "{wrong}");
        }
    }
}
