//! The configuration: any text is a configuration, or errors that say where and why; and a
//! configuration can be planned, from nothing and back, whatever it holds.
//!
//! Input: TOML text.

use std::collections::BTreeSet;

use nos_relay::control::config::{Config, ConfigErrors, UplinkDevice};
use nos_relay::control::kernel::NamespaceId;
use nos_relay::control::plan::{
    Executor, InterfacePresence, LinkPresence, NamespacePresence, Observed, Phase, State, Station,
    Step, Want, carry_out, plan, routes_of,
};
use nos_shim::ident::MacAddr;

pub fn run(text: &str) {
    match Config::parse("fuzz.toml", text) {
        Ok(config) => {
            assert!(!config.uplinks.is_empty());
            let (nothing, wanted) = (State::default(), wanted(&config));
            leads(&nothing, &wanted);
            leads(&wanted, &nothing);
            let again = Config::parse("fuzz.toml", text);
            assert_eq!(again.ok().as_ref(), Some(&config));
        }
        Err(errors) => say_why(&errors, text),
    }
}

/// Errors have a reason, and lie in the text.
pub fn say_why(errors: &ConfigErrors, text: &str) {
    let lines = text.lines().count().max(1);
    assert!(!errors.errors().is_empty());
    for error in errors.errors() {
        assert!(!error.reason.is_empty());
        // An error at the end of the text lies on the line that would follow.
        let placed = error
            .line
            .is_none_or(|line| (1..=lines + 1).contains(&line));
        assert!(placed, "{error:?}");
    }
}

/// What a configuration asks for where all that it names is there.
pub fn wanted(config: &Config) -> State {
    let namespaces = (1..).zip(&config.containers).map(|(inode, container)| {
        let presence = NamespacePresence::Here(NamespaceId::new(1, inode));
        (container.name.clone(), presence)
    });
    let links = (1..).zip(&config.uplinks).filter_map(|(index, uplink)| {
        let there = LinkPresence::Here {
            index,
            mac: Some(MacAddr::stable(uplink.name.as_str())),
            mtu: 1500,
        };
        let packet = matches!(uplink.device, UplinkDevice::Packet(_));
        packet.then(|| (uplink.name.clone(), there))
    });
    let interfaces = config.containers.iter().map(|container| {
        let station = Station {
            mac: MacAddr::stable(container.name.as_str()),
            mtu: 1500,
            segment: None,
        };
        (container.name.clone(), InterfacePresence::Here(station))
    });
    let observed = Observed {
        host: NamespaceId::new(0, 0),
        namespaces: namespaces.collect(),
        interfaces: interfaces.collect(),
        links: links.collect(),
    };
    let state = Want::of(config, &observed).state;
    let (routes, left) = routes_of(&config.routes, &state);
    assert!(left.is_empty(), "every next hop has its uplink: {left:?}");
    State { routes, ..state }
}

/// A kernel and a NOS that can do everything.
struct Willing;

impl Executor for Willing {
    type Error = String;

    fn carry_out(&mut self, _: Phase, steps: &[&Step]) -> Vec<Result<(), String>> {
        vec![Ok(()); steps.len()]
    }
}

/// The plan from one state to another is empty if they are the same but for routes, and leads there.
pub fn leads(from: &State, to: &State) {
    let none = BTreeSet::new();
    let to = State {
        routes: from.routes.clone(),
        ..to.clone()
    };
    let groups = plan(from, &to, &none);
    assert_eq!(groups.is_empty(), *from == to);
    for (place, group) in groups.iter().enumerate() {
        assert!(group.needs.iter().all(|&needed| needed < place));
    }
    let mut reached = from.clone();
    let outcome = carry_out(groups, &mut reached, &mut Willing);
    assert!(outcome.failed.is_empty(), "{:?}", outcome.failed);
    assert_eq!(reached, to);
    assert!(plan(&reached, &to, &none).is_empty());
}
