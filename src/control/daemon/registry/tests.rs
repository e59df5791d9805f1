//! Disks that fail at any moment of a change.

use serde_json::json;

use super::*;
use crate::control::api::{Applied, Request, Response};
use crate::control::config::{Change, Holders, Keys, PortsAction, VrfName};
use crate::control::daemon::answers::Asking;
use crate::control::pools::{Space, Wanted};
use crate::control::store::Embedded;
use crate::control::store::faulty::{Disk, Fault};

const FILE: &str = r#"
[[uplink]]
name = "up0"
device = "packet:hx"
addresses = "203.0.113.1/24"
[[container]]
name = "web"
netns = "/run/netns/web"
device = "veth"
tcp = 80
"#;

fn open(disk: &Disk) -> Registry {
    let file = ConfigFile::parse("nos.toml", FILE).unwrap();
    let store = Embedded::on(disk).unwrap();
    let none = Handed::default();
    Registry::open(file, Some(Box::new(store)), &none, |_| Ok(())).unwrap()
}

fn keys(ports: &str) -> Keys {
    serde_json::from_value(json!({"container": "web", "tcp": ports})).unwrap()
}

fn with(registry: &Registry, action: PortsAction, ports: &str) -> Overlay {
    let holders = Holders {
        connection: None,
        process: Err(String::new()),
    };
    let change = Change::Ports(action);
    let changed = registry
        .file
        .change(&registry.overlay, change, &keys(ports), &holders);
    changed.unwrap().overlay
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Done,
    Refused,
    Uncertain,
}

/// An address out of a pool, for an engine.
fn draw(registry: &mut Registry) {
    let space = Space::of(&registry.file.config(&Overlay::default()).unwrap());
    let wanted = Wanted {
        holder: "engine/7",
        workload: None,
        vrf: &VrfName::Default,
        pool: None,
    };
    registry.pools.draw(wanted, &space).unwrap();
}

fn has_drawn(registry: &Registry) -> bool {
    !registry.pools.held_by("engine/7").is_empty()
}

/// What a request comes to that wants `overlay`, as it is carried out for a client.
fn asked(registry: &mut Registry, overlay: Overlay) -> Outcome {
    let before = std::mem::replace(&mut registry.overlay, overlay);
    let answered = Answered {
        id: "id".to_owned(),
        asking: asking(),
        response: Response::Changed(Applied {
            changed: true,
            ..Applied::default()
        }),
    };
    draw(registry);
    match registry.commit(vec![answered]) {
        Ok(()) => Outcome::Done,
        Err(_) => {
            registry.overlay = before;
            match registry.is_stored() {
                true => Outcome::Refused,
                false => Outcome::Uncertain,
            }
        }
    }
}

fn asking() -> Asking {
    Asking::new(&Request::PortsAdd(keys("81")), None)
}

/// What the next process finds: what is registered, and whether the request was answered. It was if an address was
/// given with it.
fn found(disk: &Disk) -> (Overlay, bool) {
    let registry = open(disk);
    let answered = registry.answers.of("id", &asking()).is_some();
    assert_eq!(has_drawn(&registry), answered);
    (registry.overlay, answered)
}

/// A change, on a disk of which so many operations fail from one on.
#[derive(Clone, Copy, Debug)]
struct Case {
    fault: Fault,
    action: PortsAction,
    ports: &'static str,
    moment: u64,
    failures: u64,
}

impl Case {
    /// What comes of it, and whether the disk had anything left to do at that moment.
    fn check(self, template: &Disk) -> (Outcome, bool) {
        let disk = template.after_kill();
        let mut registry = open(&disk);
        let before = registry.overlay.clone();
        let after = with(&registry, self.action, self.ports);
        let first = disk.operations() + self.moment;
        disk.fail(first..first.saturating_add(self.failures), self.fault);
        let outcome = asked(&mut registry, after.clone());
        let was_reached = disk.operations() > first;
        assert_eq!(has_drawn(&registry), outcome == Outcome::Done, "{self:?}");
        for left in [disk.after_kill(), disk.after_power_loss()] {
            let found = found(&left);
            let (with, without) = ((after.clone(), true), (before.clone(), false));
            match outcome {
                Outcome::Done => assert_eq!(found, with, "{self:?}"),
                Outcome::Refused => assert_eq!(found, without, "{self:?}"),
                // Whole or not at all.
                Outcome::Uncertain => assert!(found == with || found == without, "{self:?}"),
            }
        }
        // Once the disk can be used again, the store has what there is, and takes more.
        disk.fail(0..0, self.fault);
        registry.write();
        let expected = match outcome {
            Outcome::Done => after,
            Outcome::Refused | Outcome::Uncertain => before,
        };
        assert_eq!(registry.overlay, expected, "{self:?}");
        assert_eq!(found(&disk.after_power_loss()).0, expected, "{self:?}");
        let more = with(&registry, PortsAction::Add, "90");
        let again = asked(&mut registry, more.clone());
        assert_eq!(again, Outcome::Done, "{self:?}");
        assert_eq!(found(&disk.after_kill()).0, more, "{self:?}");
        (outcome, was_reached)
    }
}

#[test]
fn a_disk_that_fails_at_any_moment_brings_nothing_back_that_was_refused() {
    let template = Disk::default();
    let mut registry = open(&template);
    registry.overlay = with(&registry, PortsAction::Add, "8000-8009");
    registry.commit(Vec::new()).unwrap();
    drop(registry);
    let changes = [(PortsAction::Add, "81"), (PortsAction::Remove, "8005")];
    let mut outcomes = [0_u32; 3];
    for fault in [Fault::Undone, Fault::Done] {
        for (action, ports) in changes {
            for failures in [1, 2, 3, 5, 8, u64::MAX] {
                let last = (0..).find_map(|moment| {
                    let case = Case {
                        fault,
                        action,
                        ports,
                        moment,
                        failures,
                    };
                    let (outcome, was_reached) = case.check(&template);
                    outcomes[outcome as usize] += 1;
                    (!was_reached).then_some(outcome)
                });
                assert_eq!(last, Some(Outcome::Done));
            }
        }
    }
    // Each was seen.
    assert!(outcomes.iter().all(|&count| count > 0), "{outcomes:?}");
}
