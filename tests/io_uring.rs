//! What the daemon hands over by io_uring, and what it does where that is refused.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "that is how a test fails"
)]

mod support;

use std::net::{SocketAddr, UdpSocket};

use nix::errno::Errno;
use nos_relay::control::api::snapshot;
use nos_relay::data::device::Uring;
use nos_relay::lab::testbed::Topology;
use nos_relay::lab::testbed::ping::ping;
use support::daemon::{Daemon, LIMIT, await_that};
use support::lab_test;
use support::scenario::{FAMILIES, Scenario, V4, Variant, config, each_variant, edited};

/// Has the kernel refuse `io_uring_setup` to this thread and all that it starts from now on, as the
/// seccomp profiles of container engines do.
fn forbid_io_uring() {
    let [load, jump, ret] = [
        libc::BPF_LD | libc::BPF_W | libc::BPF_ABS,
        libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
        libc::BPF_RET | libc::BPF_K,
    ]
    .map(|code| u16::try_from(code).unwrap());
    let setup = u32::try_from(libc::SYS_io_uring_setup).unwrap();
    let errno = libc::SECCOMP_RET_ERRNO | Errno::EPERM as u32;
    // The number of the system call is the first word of struct seccomp_data.
    let mut program = [
        (load, 0, 0, 0),
        (jump, 0, 1, setup),
        (ret, 0, 0, errno),
        (ret, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
    .map(|(code, jt, jf, k)| libc::sock_filter { code, jt, jf, k });
    let filter = libc::sock_fprog {
        len: 4,
        filter: program.as_mut_ptr(),
    };
    nix::sys::prctl::set_no_new_privs().unwrap();
    // SAFETY: the kernel reads a sock_fprog and its four instructions, which outlive the call.
    let result = unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const filter,
        )
    };
    Errno::result(result).unwrap();
}

/// Runs `work` on a thread of its own that may have no io_uring, nor what it starts.
fn without_io_uring(work: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let forbidden = scope.spawn(|| {
            forbid_io_uring();
            work();
        });
        if let Err(panic) = forbidden.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

fn with_key(config: &str, value: &str) -> String {
    edited(
        config,
        "[relay]\n",
        &format!("[relay]\nio_uring = \"{value}\"\n"),
    )
}

fn of_threads(daemon: &Daemon) -> Vec<snapshot::IoUring> {
    let turns = daemon.counters().turns;
    turns.into_iter().map(|turns| turns.io_uring).collect()
}

fn assert_alive(scenario: &Scenario) {
    for family in FAMILIES {
        let echo = ping(scenario.web(), family.external, 1, LIMIT).unwrap()[0];
        assert!(echo.is_reply(), "{echo:?}");
    }
}

each_variant! {
    fn bursts_go_by_batches_and_are_accounted_for(variant) {
        if let Err(reason) = Uring::open() {
            println!("skipped: io_uring: {reason}");
            return;
        }
        let topology = Topology::new(&["web", "db"]).unwrap();
        let config = with_key(&config(&topology, variant), "on");
        let daemon = Daemon::start(&topology.device, &config);
        let scenario = Scenario { daemon, topology, config };
        assert_alive(&scenario);
        // One thread has devices of containers, and that of the uplink; or each has its own.
        let ways = [
            (scenario.web(), scenario.external(), V4.external_port(7000), 20_001),
            (scenario.external(), scenario.web(), V4.nos_port(20_000), 7001),
        ];
        let mut before = 0;
        for (from, to, address, port) in ways {
            let receiver = to.run(|| UdpSocket::bind(address).unwrap()).unwrap();
            let here = SocketAddr::new(V4.any, port);
            let sender = from.run(|| UdpSocket::bind(here).unwrap()).unwrap();
            let frames = await_that("bursts", || {
                for n in 0..2000 {
                    let octets = [0; 60];
                    let _ = sender.send_to(&octets[..30 + n % 2], address);
                }
                let threads = of_threads(&scenario.daemon);
                assert!(threads.iter().all(|thread| thread.state == "used"), "{threads:?}");
                let sum = |what: fn(&snapshot::IoUring) -> u64| threads.iter().map(what).sum();
                let (batches, frames): (u64, u64) = (sum(|it| it.batches), sum(|it| it.frames));
                assert!(frames >= 4 * batches, "{frames} in {batches}");
                match frames > before {
                    true => Ok(frames),
                    false => Err(format!("{frames} frames in batches")),
                }
            });
            before = frames;
            drop(receiver);
        }
        assert_alive(&scenario);
        scenario.daemon.settle();
    }
}

lab_test! {
    fn a_seccomp_filter_leaves_plain_calls() {
        without_io_uring(|| {
            let scenario = Scenario::new(Variant::PLAIN);
            assert_alive(&scenario);
            for thread in of_threads(&scenario.daemon) {
                let reason = thread.reason.unwrap();
                assert_eq!(thread.state, "unavailable", "{reason}");
                assert!(reason.contains("seccomp") || reason.contains("disabled"), "{reason}");
                assert_eq!((thread.batches, thread.frames), (0, 0));
            }
            let log = scenario.daemon.log();
            let lines = log.lines().filter(|line| line.contains("io_uring")).count();
            assert_eq!(lines, 1, "{log}");
        });
    }
}

lab_test! {
    fn who_insists_on_it_gets_no_start_without() {
        without_io_uring(|| {
            let topology = Topology::new(&["web", "db"]).unwrap();
            let config = with_key(&config(&topology, Variant::PLAIN), "on");
            let output = Daemon::start_failing(&topology.device, &config);
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{said}");
            assert!(said.contains("relay.io_uring: "), "{said}");
        });
    }
}

lab_test! {
    fn it_can_be_turned_off_at_the_next_start() {
        let topology = Topology::new(&["web", "db"]).unwrap();
        let config = config(&topology, Variant::PLAIN);
        let daemon = Daemon::start(&topology.device, &with_key(&config, "off"));
        let state = |daemon: &Daemon| of_threads(daemon)[0].state.clone();
        assert_eq!(state(&daemon), "off");
        daemon.reload(&with_key(&config, "auto"));
        assert_eq!(state(&daemon), "off");
        let log = daemon.log();
        let said = log.lines().find(|line| line.contains("relay.io_uring"));
        assert!(said.is_some_and(|line| line.contains("takes effect at the next start")), "{log}");
    }
}
