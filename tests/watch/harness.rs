//! A control thread that waits for events, and changes for it to see.

use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token};
use nos_relay::control::kernel::watch::{
    InsideChanges, KernelEvent, KernelWatch, LinkChange, WatchKey,
};
use nos_relay::control::kernel::{LinkFacts, Namespace};
use nos_relay::lab::testbed::LabNamespace;

pub(crate) use crate::support::names::{Mounted, bind, mount_empty, unmount};

/// How long an event may take; they come within milliseconds.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// A watch in the loop of a control thread.
pub(crate) struct Watching {
    pub(crate) watch: KernelWatch,
    poll: Poll,
    /// Came, but nobody has asked for it yet.
    pending: Vec<KernelEvent>,
}

pub(crate) const A: WatchKey = WatchKey(1);
pub(crate) const B: WatchKey = WatchKey(2);

impl Watching {
    pub(crate) fn new(host: &Namespace) -> Self {
        Self::of(KernelWatch::open(host).unwrap())
    }

    pub(crate) fn of(watch: KernelWatch) -> Self {
        let poll = Poll::new().unwrap();
        watch.register(poll.registry(), Token(7)).unwrap();
        let pending = Vec::new();
        let mut watching = Self {
            watch,
            poll,
            pending,
        };
        watching.settle();
        watching
    }

    /// Waits for an event of which `take` makes something, and drops those before it.
    pub(crate) fn next<T>(&mut self, what: &str, take: impl Fn(&KernelEvent) -> Option<T>) -> T {
        let until = Instant::now() + LIMIT;
        loop {
            let mut pending = std::mem::take(&mut self.pending).into_iter();
            if let Some(taken) = pending.by_ref().find_map(|event| take(&event)) {
                self.pending = pending.collect();
                return taken;
            }
            let left = until.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no event: {what}");
            self.poll(left);
        }
    }

    pub(crate) fn wait_for(&mut self, wanted: &KernelEvent) {
        self.next(&format!("{wanted:?}"), |event| {
            (event == wanted).then_some(())
        });
    }

    pub(crate) fn name(&mut self, key: WatchKey) {
        self.wait_for(&KernelEvent::Name { key });
    }

    /// Waits for all of these changes inside of the namespace of `key`.
    pub(crate) fn inside(&mut self, key: WatchKey, wanted: InsideChanges) {
        let mut seen = InsideChanges::empty();
        while !seen.contains(wanted) {
            seen |= self.next(&format!("{wanted:?} after {seen:?}"), |event| match event {
                KernelEvent::Inside { key: of, changes } if *of == key => Some(*changes),
                _ => None,
            });
        }
    }

    pub(crate) fn link(&mut self, what: &str, wanted: impl Fn(&LinkChange) -> bool) -> LinkFacts {
        self.next(what, |event| match event {
            KernelEvent::Link(change) if wanted(change) => Some(change.facts.clone()),
            _ => None,
        })
    }

    /// Waits no longer than `limit` until the descriptor is readable, and drains it; false: it was
    /// not.
    pub(crate) fn poll(&mut self, limit: Duration) -> bool {
        let mut events = Events::with_capacity(8);
        self.poll.poll(&mut events, Some(limit)).unwrap();
        assert!(events.iter().all(|event| event.token() == Token(7)));
        let readable = !events.is_empty();
        if readable {
            self.watch.drain(&mut self.pending);
        }
        readable
    }

    /// Takes all that is there already, which is everything that the kernel reports at once.
    pub(crate) fn settle(&mut self) -> Vec<KernelEvent> {
        while self.poll(Duration::ZERO) {}
        std::mem::take(&mut self.pending)
    }
}

/// Runs `ip` inside, with one command a line on its input.
pub(crate) fn ip(lab: &LabNamespace, family: &str, commands: &str) {
    let mut command = Command::new("ip");
    command.args([family, "-batch", "-"]).stdin(Stdio::piped());
    let mut child = lab.spawn(command).unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(commands.as_bytes()).unwrap();
    drop(input);
    assert!(child.wait().unwrap().success(), "ip {family}: {commands}");
}

pub(crate) fn host() -> (LabNamespace, Watching) {
    let host = LabNamespace::new("host").unwrap();
    let watching = Watching::new(host.namespace());
    (host, watching)
}

/// A program that lives until its input is closed.
pub(crate) fn cat() -> Command {
    let mut cat = Command::new("cat");
    cat.stdin(Stdio::piped());
    cat
}

/// Has [`cat`] end, and waits until it has.
pub(crate) fn end(mut cat: Child) {
    drop(cat.stdin.take());
    cat.wait().unwrap();
}
