//! UDP at full rate or at a given one: what arrives, what is lost, and in which order.

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::messages::{BATCH, Datagram, Receiver, Sender};
use super::{Route, Sizes, TrafficError, joined, step_back};

/// The receiver waits so long for what is still on its way.
const DRAIN: Duration = Duration::from_millis(100);
/// What is on its way and in no queue has arrived by then.
const MOMENT: Duration = Duration::from_millis(10);
/// Between two datagrams at a rate that leaves time to sleep.
const NAP: Duration = Duration::from_micros(50);

/// Datagrams to send.
#[derive(Clone, Copy, Debug)]
pub(in crate::lab::bench) struct Stream {
    pub(in crate::lab::bench) sizes: Sizes,
    /// From how many ports, in turn.
    pub(in crate::lab::bench) flows: usize,
    /// Datagrams a second; as many as possible if there is no rate.
    pub(in crate::lab::bench) rate: Option<f64>,
    pub(in crate::lab::bench) duration: Duration,
    /// Whether everybody else's work goes before its own: what waits then waits for the path, and
    /// not for a processor that the generator has.
    pub(in crate::lab::bench) background: bool,
}

/// What became of them.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::lab::bench) struct Delivery {
    /// Taken by the sender's kernel.
    pub(in crate::lab::bench) sent: u64,
    /// Arrived as they were sent, in their order.
    pub(in crate::lab::bench) received: u64,
    /// Of those, the ones that had arrived when the sender stopped.
    pub(in crate::lab::bench) in_time: u64,
    /// And those that had arrived a moment later: what had not lay in a queue that was filling.
    pub(in crate::lab::bench) prompt: u64,
    /// Octets of payload that arrived.
    pub(in crate::lab::bench) octets: u64,
    /// Lost at the receiver's socket, which was too slow: the generator's fault.
    pub(in crate::lab::bench) lost_at_receiver: u64,
    /// How long the sender sent.
    pub(in crate::lab::bench) elapsed: Duration,
}

impl Delivery {
    /// Datagrams delivered a second.
    pub(in crate::lab::bench) fn rate(&self) -> f64 {
        self.in_time as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// Datagrams sent a second.
    pub(in crate::lab::bench) fn offered(&self) -> f64 {
        self.sent as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// The part that was lost or late, 0 to 1: what a longer run at this rate would lose, as no
    /// queue fills for ever.
    pub(in crate::lab::bench) fn late_or_lost(&self) -> f64 {
        match self.sent {
            0 => 1.0,
            sent => 1.0 - self.prompt as f64 / sent as f64,
        }
    }

    /// The part that was lost, 0 to 1.
    pub(in crate::lab::bench) fn loss(&self) -> f64 {
        match self.sent {
            0 => 1.0,
            sent => 1.0 - self.received as f64 / sent as f64,
        }
    }
}

/// Sends datagrams and checks those that arrive.
pub(in crate::lab::bench) fn datagrams(
    route: &Route<'_>,
    stream: &Stream,
) -> Result<Delivery, TrafficError> {
    let receiver = route.receiver()?;
    receiver
        .set_read_timeout(Some(DRAIN))
        .map_err(TrafficError::io("receive"))?;
    let senders = route.senders(stream.flows)?;
    warm_up(&receiver, &senders, stream.sizes).map_err(TrafficError::io("warm up"))?;
    let (received, sent_all) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let receiving = scope.spawn(|| receive(&receiver, stream, &received, &sent_all));
        if stream.background {
            step_back();
        };
        let begin = Instant::now();
        let sent = send(&senders, stream);
        let elapsed = begin.elapsed();
        let in_time = received.load(Ordering::Relaxed);
        std::thread::sleep(MOMENT);
        let prompt = received.load(Ordering::Relaxed);
        sent_all.store(true, Ordering::Release);
        let (received, octets) = joined(receiving)?;
        Ok(Delivery {
            sent: sent.map_err(TrafficError::io("send datagrams"))?,
            received,
            in_time,
            prompt,
            octets,
            lost_at_receiver: socket_drops(&receiver),
            elapsed,
        })
    })
}

/// The flow of datagrams that do not count.
const WARM_UP: u32 = u32::MAX;

/// Sends single datagrams until one arrives. Kernels that look for a neighbor put what is sent
/// meanwhile aside, and later ones may overtake it: no fault of the path. A path that carries
/// nothing shows as one that loses all.
fn warm_up(receiver: &UdpSocket, senders: &[UdpSocket], sizes: Sizes) -> std::io::Result<()> {
    const TRIES: u64 = 10;
    let (mut sending, mut receiving) = (Sender::new(sizes), Receiver::new(sizes));
    for number in 0..TRIES {
        let Some(socket) = senders.first() else { break };
        match sending.send(socket, WARM_UP, number, 1) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => continue,
            sent => drop(sent?),
        }
        match receiving.receive(receiver, |_| Ok(())) {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error),
            // A wrong one is left to the measurement, which finds others like it.
            Ok(_) => break,
        }
    }
    Ok(())
}

fn send(senders: &[UdpSocket], stream: &Stream) -> std::io::Result<u64> {
    let mut messages = Sender::new(stream.sizes);
    let mut numbers = vec![0_u64; senders.len()];
    let burst = if senders.len() > 1 { 1 } else { BATCH };
    let begin = Instant::now();
    let mut sent = 0;
    let mut turn = 0;
    loop {
        let elapsed = begin.elapsed();
        if elapsed >= stream.duration {
            return Ok(sent);
        }
        let due = due(stream.rate, elapsed, sent).min(burst as u64);
        if due == 0 {
            std::thread::sleep(NAP);
            continue;
        }
        // Time is read once for many datagrams, also where each has a socket of its own.
        for _ in 0..if burst == 1 { BATCH } else { 1 } {
            let (socket, number) = (&senders[turn], &mut numbers[turn]);
            let flow = u32::try_from(turn).unwrap_or(0);
            let count = usize::try_from(due).unwrap_or(burst);
            match messages.send(socket, flow, *number, count) {
                Ok(count) => {
                    *number += count as u64;
                    sent += count as u64;
                }
                // A full queue of the interface, or an ICMP error about an earlier datagram.
                Err(error)
                    if matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::EAGAIN))
                        || error.kind() == ErrorKind::ConnectionRefused => {}
                Err(error) => return Err(error),
            }
            turn = (turn + 1) % senders.len();
        }
    }
}

/// How many datagrams should go now.
fn due(rate: Option<f64>, elapsed: Duration, sent: u64) -> u64 {
    let Some(rate) = rate else { return u64::MAX };
    let nanoseconds = rate * elapsed.as_secs_f64();
    // Through Duration, whose conversion is checked: a datagram counts as a second.
    let wanted = Duration::try_from_secs_f64(nanoseconds).unwrap_or_default();
    wanted.as_secs().saturating_sub(sent)
}

fn receive(
    socket: &UdpSocket,
    stream: &Stream,
    received: &AtomicU64,
    sent_all: &AtomicBool,
) -> Result<(u64, u64), TrafficError> {
    if stream.background {
        step_back();
    };
    let mut messages = Receiver::new(stream.sizes);
    let mut order = Order::new(stream.flows);
    let mut octets = 0;
    loop {
        // Asked first: what was sent before is received before the socket falls silent.
        let last = sent_all.load(Ordering::Acquire);
        let mut count = 0;
        let each = |datagram: Datagram| {
            // A late one of the warm-up.
            if datagram.flow == WARM_UP {
                return Ok(());
            }
            count += 1;
            octets += datagram.octets as u64;
            order.check(datagram)
        };
        match messages.receive(socket, each) {
            Ok(Ok(_)) => {
                received.fetch_add(count, Ordering::Relaxed);
            }
            Ok(Err(wrong)) => return Err(TrafficError::Wrong(wrong)),
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut if last => {
                    return Ok((received.load(Ordering::Relaxed), octets));
                }
                ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => {}
                _ => return Err(TrafficError::io("receive datagrams")(error)),
            },
        }
    }
}

/// The number that each flow's next datagram has at least.
struct Order {
    next: Vec<u64>,
}

impl Order {
    fn new(flows: usize) -> Self {
        Self {
            next: vec![0; flows],
        }
    }

    /// A datagram that comes after a later one of its flow, or twice, is an error.
    fn check(&mut self, datagram: Datagram) -> Result<(), String> {
        let Datagram { flow, number, .. } = datagram;
        let next = self.next.get_mut(flow as usize);
        let next = next.ok_or_else(|| format!("a datagram of a flow {flow} that is none"))?;
        if number < *next {
            let last = *next - 1;
            return Err(format!(
                "datagram {number} of flow {flow} came after number {last}"
            ));
        }
        *next = number + 1;
        Ok(())
    }
}

/// Datagrams that the socket had no room for.
fn socket_drops(socket: &UdpSocket) -> u64 {
    // SK_MEMINFO_DROPS is the last of SK_MEMINFO_VARS numbers (linux/sock_diag.h).
    const SO_MEMINFO: libc::c_int = 55;
    let mut numbers = [0_u32; 9];
    let mut length: libc::socklen_t = 36;
    // SAFETY: the kernel writes at most `length` octets, which `numbers` has.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_MEMINFO,
            numbers.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    match result {
        0 => numbers[8].into(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_kept_per_flow_and_gaps_are_no_disorder() {
        let mut order = Order::new(2);
        let mut come = |flow, number| {
            order.check(Datagram {
                flow,
                number,
                octets: 18,
            })
        };
        assert_eq!(come(0, 0), Ok(()));
        assert_eq!(come(1, 5), Ok(()));
        assert_eq!(come(0, 9), Ok(()));
        assert!(come(0, 8).is_err());
        assert!(come(0, 9).is_err());
        assert_eq!(come(1, 6), Ok(()));
        assert!(come(2, 0).is_err());
    }

    #[test]
    fn what_is_due_follows_the_rate() {
        let second = Duration::from_secs(1);
        assert_eq!(due(None, second, 7), u64::MAX);
        assert_eq!(due(Some(1000.0), second, 400), 600);
        assert_eq!(due(Some(1000.0), second, 2000), 0);
    }

    #[test]
    fn loss_is_a_part_of_what_was_sent() {
        let delivery = Delivery {
            sent: 200,
            received: 150,
            in_time: 100,
            prompt: 120,
            elapsed: Duration::from_millis(500),
            ..Delivery::default()
        };
        assert!((delivery.loss() - 0.25).abs() < 1e-9);
        assert!((delivery.late_or_lost() - 0.4).abs() < 1e-9);
        assert!((delivery.rate() - 200.0).abs() < 1e-9);
        assert!((delivery.offered() - 400.0).abs() < 1e-9);
    }
}
