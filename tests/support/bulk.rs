//! Octets that are checked at the other end of a connection.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

/// A machine that cannot do a tenth of a gigabit a second is of no use for this.
fn time_for(octets: u64) -> Duration {
    Duration::from_secs(60 + octets / 12_500_000)
}

/// Sends `octets` octets that repeat nowhere; returns their hash.
fn send(mut stream: TcpStream, octets: u64, seed: u64, deadline: Instant) -> [u8; 32] {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut hash = Sha256::new();
    let mut block = vec![0; 256 << 10];
    let mut left = octets;
    while left > 0 {
        let length = block.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        random.fill(&mut block[..length]);
        hash.update(&block[..length]);
        stream.set_write_timeout(Some(until(deadline))).unwrap();
        stream.write_all(&block[..length]).unwrap();
        left -= length as u64;
    }
    stream.shutdown(Shutdown::Write).unwrap();
    hash.finalize().into()
}

/// Receives to the end of the stream; returns the number of octets and their hash.
fn receive(mut stream: TcpStream, deadline: Instant) -> (u64, [u8; 32]) {
    let mut hash = Sha256::new();
    let mut block = vec![0; 256 << 10];
    let mut octets = 0;
    loop {
        stream.set_read_timeout(Some(until(deadline))).unwrap();
        let length = stream.read(&mut block).unwrap();
        if length == 0 {
            return (octets, hash.finalize().into());
        }
        hash.update(&block[..length]);
        octets += length as u64;
    }
}

fn until(deadline: Instant) -> Duration {
    let left = deadline.saturating_duration_since(Instant::now());
    assert!(!left.is_zero(), "the transfer takes too long");
    left
}

/// Moves `octets` from one end to the other and compares hashes.
pub(crate) fn transfer([from, to]: [TcpStream; 2], octets: u64, seed: u64) {
    let deadline = Instant::now() + time_for(octets);
    std::thread::scope(|scope| {
        let sent = scope.spawn(|| send(from, octets, seed, deadline));
        let received = receive(to, deadline);
        assert_eq!(received, (octets, sent.join().unwrap()));
    });
}
