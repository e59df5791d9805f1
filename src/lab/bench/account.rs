//! What the kernel says that machine and processes spent: CPU time, wake-ups, memory.

use std::fs;
use std::io;
use std::time::Duration;

use nix::unistd::{SysconfVar, sysconf};

/// What a process has spent so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Spent {
    /// User and system time of all its threads.
    pub(super) cpu: Duration,
    /// How often any of its threads got a CPU after it had waited for something.
    pub(super) wakeups: u64,
}

/// CPU time of all processes and interrupts since the machine was started.
pub(super) fn machine() -> io::Result<Duration> {
    let text = fs::read_to_string("/proc/stat")?;
    let ticks = busy_ticks(&text).ok_or_else(|| wrong("/proc/stat"))?;
    Ok(Duration::from_secs_f64(
        ticks as f64 / ticks_per_second() as f64,
    ))
}

/// user, nice, system, irq and softirq of the first line (proc_stat(5)).
fn busy_ticks(text: &str) -> Option<u64> {
    let line = text.lines().next()?.strip_prefix("cpu ")?;
    let numbers: Vec<u64> = line
        .split_whitespace()
        .map_while(|number| number.parse().ok())
        .collect();
    let [user, nice, system, _idle, _wait, irq, softirq, ..] = numbers[..] else {
        return None;
    };
    Some(user + nice + system + irq + softirq)
}

fn ticks_per_second() -> i64 {
    sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100)
}

/// What a process and all its threads have spent.
pub(super) fn process(pid: u32) -> io::Result<Spent> {
    let mut spent = Spent::default();
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?.path();
        let (Ok(schedule), Ok(status)) = (
            fs::read_to_string(task.join("schedstat")),
            fs::read_to_string(task.join("status")),
        ) else {
            // It ended meanwhile.
            continue;
        };
        let nanoseconds = schedule.split_whitespace().next();
        let nanoseconds = nanoseconds.and_then(|number| number.parse().ok());
        spent.cpu += Duration::from_nanos(nanoseconds.unwrap_or(0));
        spent.wakeups += field(&status, "voluntary_ctxt_switches:").unwrap_or(0);
    }
    Ok(spent)
}

/// Resident memory of a process, in octets.
pub(super) fn resident(pid: u32) -> io::Result<u64> {
    let path = format!("/proc/{pid}/status");
    let kibibytes = field(&fs::read_to_string(&path)?, "VmRSS:");
    Ok(kibibytes.ok_or_else(|| wrong(&path))? * 1024)
}

/// The number that follows `name` at the beginning of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("{what} is not as expected"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_time_leaves_out_idle_and_waiting() {
        let text = "cpu  1 2 4 1000 1000 8 16 32 0 0\ncpu0 9 9 9\n";
        assert_eq!(busy_ticks(text), Some(1 + 2 + 4 + 8 + 16));
        assert_eq!(busy_ticks("intr 5"), None);
    }

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "VmRSSX:\t9\nVmRSS:\t  120 kB\nnonvoluntary_ctxt_switches:\t7\nvoluntary_ctxt_switches:\t3\n";
        assert_eq!(field(text, "VmRSS:"), Some(120));
        assert_eq!(field(text, "voluntary_ctxt_switches:"), Some(3));
        assert_eq!(field(text, "missing:"), None);
    }

    #[test]
    fn this_process_has_spent_something() {
        let before = process(std::process::id()).unwrap();
        let mut sum = 0_u64;
        for number in 0..2_000_000_u64 {
            sum = std::hint::black_box(sum.wrapping_add(number * number));
        }
        let after = process(std::process::id()).unwrap();
        assert!(after.cpu >= before.cpu && !after.cpu.is_zero(), "{sum}");
        assert!(resident(std::process::id()).unwrap() > 1 << 20);
        assert!(machine().unwrap() > Duration::ZERO);
    }
}
