//! Which uplinks may be on one device: those of different VLANs of an interface that exists.

use std::collections::{BTreeMap, HashMap};

use nos_shim::vlan::VlanId;

use crate::control::memif::Side;
use crate::interface_name::InterfaceName;

use super::entries::UplinkEntry;
use super::place::At;
use super::report::{Report, unique};
use super::{Uplink, UplinkDevice};

/// What is on one interface.
#[derive(Default)]
struct Shared<'a> {
    by_vlan: BTreeMap<Option<VlanId>, &'a UplinkEntry>,
    first: Option<&'a UplinkEntry>,
}

/// Reports every uplink that needs what an earlier one has.
pub(super) fn check(report: &Report<'_>, uplinks: &[UplinkEntry]) {
    let mut interfaces: HashMap<&InterfaceName, Shared<'_>> = HashMap::new();
    for uplink in uplinks {
        if let Some(interface) = uplink.device.value.interface() {
            interfaces
                .entry(interface)
                .or_default()
                .take(report, uplink, interface);
        }
    }
    memifs(report, uplinks);
}

impl<'a> Shared<'a> {
    fn take(&mut self, report: &Report<'_>, uplink: &'a UplinkEntry, interface: &InterfaceName) {
        let vlan = uplink.vlan.map(|at| at.value);
        let place = uplink.device.place;
        let first = *self.first.get_or_insert(uplink);
        let is_packet = |entry: &UplinkEntry| matches!(entry.device.value, UplinkDevice::Packet(_));
        let tags = uplink.vlan.is_some() || first.vlan.is_some();
        let may_share = core::ptr::eq(first, uplink) || is_packet(first) && is_packet(uplink);
        if !may_share {
            let on = report.on(first.device.place);
            let hint = match tags {
                true => "; only with \"packet:\" may uplinks of several VLANs share one",
                false => "",
            };
            let reason = format!("interface \"{interface}\" is already {on}{hint}");
            return report.error(place, reason);
        }
        if self.by_vlan.len() >= Uplink::MAX_ON_DEVICE {
            let most = Uplink::MAX_ON_DEVICE;
            let reason =
                format!("{interface} has more than {most} uplinks, the most of an interface");
            return report.error(place, reason);
        }
        let Some(other) = self.by_vlan.insert(vlan, uplink) else {
            return;
        };
        let (name, spot) = (&other.name.value, report.spot(other.device.place));
        match uplink.vlan {
            Some(At { value, place }) => {
                let reason =
                    format!("VLAN {value} of {interface} is that of uplink \"{name}\" ({spot})");
                report.error(place, reason);
            }
            None => {
                let on = report.on(other.device.place);
                report.error(place, format!("interface \"{interface}\" is already {on}"));
            }
        }
    }
}

/// Two sides of one socket and number may be here, but no two of a kind.
fn memifs(report: &Report<'_>, uplinks: &[UplinkEntry]) {
    for side in [Side::Server, Side::Client] {
        let addresses = uplinks.iter().filter_map(|uplink| match &uplink.device {
            At {
                value: UplinkDevice::Memif(options),
                place,
            } if options.side == side => Some(At {
                value: &options.address,
                place: *place,
            }),
            _ => None,
        });
        unique(report, "memif", addresses);
    }
}
