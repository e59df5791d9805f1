//! The ports that a namespace gives to sockets that ask for none.
//!
//! Linux has one range of them for TCP, UDP and both families, `ip_local_port_range`, and takes
//! those out of it that `ip_local_reserved_ports` names. A container's ephemeral ranges are the
//! range from the first of their ports to the last, and what lies between them is reserved. What was
//! reserved before stays so.

use std::io;

use nos_shim::ports::PortRange;
use serde::{Deserialize, Serialize};

use crate::control::kernel::sysctl::Setting;

/// `net.ipv4.ip_local_port_range`, which holds for IPv6 as well.
const RANGE: &str = "net/ipv4/ip_local_port_range";
/// `net.ipv4.ip_local_reserved_ports`, the same.
const RESERVED: &str = "net/ipv4/ip_local_reserved_ports";

/// What the kernel gives every new namespace.
const RANGE_DEFAULT: &str = "32768\t60999";

/// The two settings of one namespace, to be used from any thread.
pub(super) struct LocalPorts {
    range: io::Result<Setting>,
    reserved: io::Result<Setting>,
}

/// What was set before us; `None` where it has not been touched.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PortsBefore {
    range: Option<String>,
    reserved: Option<String>,
}

/// A setting that was refused.
pub(super) struct Refused {
    pub(super) key: &'static str,
    pub(super) value: String,
    pub(super) source: io::Error,
}

impl LocalPorts {
    /// The settings as the calling thread sees them.
    pub(super) fn open_here() -> Self {
        Self {
            range: Setting::open_here(RANGE),
            reserved: Setting::open_here(RESERVED),
        }
    }

    /// Has the namespace give these ports, or without any those that it gave before us. `leftover`:
    /// an earlier run was killed here, so what is set may be its. Returns whether anything changed.
    pub(super) fn set(
        &self,
        ephemeral: &[PortRange],
        before: &mut PortsBefore,
        leftover: bool,
    ) -> Result<bool, Refused> {
        let ranges = PortRange::merged(ephemeral.to_vec());
        let (Some(first), Some(last)) = (ranges.first(), ranges.last()) else {
            return self.restore(before);
        };
        let (first, last) = (first.first(), last.last());
        let span = PortRange::new(first, last);
        let gaps = span.map_or_else(|_| Vec::new(), |span| span.without(ranges.iter().copied()));
        let leftover = leftover && before.range.is_none();
        // First, so that no flow starts from a gap.
        let reserved = self.reserve(&gaps, before, leftover)?;
        let range = self.set_range(&format!("{first}\t{last}"), before, leftover)?;
        Ok(reserved || range)
    }

    /// Puts back what was set before us.
    pub(super) fn restore(&self, before: &mut PortsBefore) -> Result<bool, Refused> {
        let range = before.range.take();
        let written = range.as_ref().map(|range| write(RANGE, &self.range, range));
        // Whatever became of the other.
        let unreserved = self.unreserve(before)?;
        written.transpose()?;
        Ok(unreserved || range.is_some())
    }

    /// Takes away what a killed run has set, of which nobody knows what was set before.
    pub(super) fn restore_leftover(&self) -> Result<(), Refused> {
        // A kernel without the setting has reserved nothing.
        if let Ok(present) = read(RESERVED, &self.reserved, "") {
            let others = text(&self.of_others(&present));
            if others != text(&ranges_in(&present)) {
                write(RESERVED, &self.reserved, &others)?;
            }
        }
        if read(RANGE, &self.range, RANGE_DEFAULT)? != RANGE_DEFAULT {
            write(RANGE, &self.range, RANGE_DEFAULT)?;
        }
        Ok(())
    }

    fn set_range(
        &self,
        wanted: &str,
        before: &mut PortsBefore,
        leftover: bool,
    ) -> Result<bool, Refused> {
        let present = read(RANGE, &self.range, wanted)?;
        before.range.get_or_insert_with(|| match leftover {
            true => RANGE_DEFAULT.to_owned(),
            false => present.clone(),
        });
        if present == wanted {
            return Ok(false);
        }
        write(RANGE, &self.range, wanted)?;
        Ok(true)
    }

    fn reserve(
        &self,
        gaps: &[PortRange],
        before: &mut PortsBefore,
        leftover: bool,
    ) -> Result<bool, Refused> {
        if gaps.is_empty() && !leftover {
            return self.unreserve(before);
        }
        let present = read(RESERVED, &self.reserved, &text(gaps));
        let present = match present {
            // A kernel without the setting has reserved nothing.
            Err(_) if gaps.is_empty() => return Ok(false),
            present => present?,
        };
        let others = before.reserved.get_or_insert_with(|| match leftover {
            true => text(&self.of_others(&present)),
            false => present.clone(),
        });
        let mut wanted = ranges_in(others);
        wanted.extend(gaps);
        let wanted = PortRange::merged(wanted);
        if ranges_in(&present) == wanted {
            return Ok(false);
        }
        write(RESERVED, &self.reserved, &text(&wanted))?;
        Ok(true)
    }

    fn unreserve(&self, before: &mut PortsBefore) -> Result<bool, Refused> {
        let Some(reserved) = before.reserved.take() else {
            return Ok(false);
        };
        write(RESERVED, &self.reserved, &reserved)?;
        Ok(true)
    }

    /// Which reserved ports are not those of a killed run: it reserved within the range that it set,
    /// and which is still set.
    fn of_others(&self, reserved: &str) -> Vec<PortRange> {
        let range = self.range.as_ref().map_or(Ok(String::new()), Setting::read);
        let range = range.unwrap_or_default();
        let span = range.replace('\t', "-").parse::<PortRange>().ok();
        let present = ranges_in(reserved).into_iter();
        present
            .flat_map(|reserved| reserved.without(span))
            .collect()
    }
}

/// Ranges as the kernel writes them: `8080,9148-9150`. Port 0, which is never given, is left out.
fn ranges_in(text: &str) -> Vec<PortRange> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.parse::<u16>().ok()?, last.parse().ok()?);
        PortRange::new(first.max(1), last).ok()
    };
    PortRange::merged(text.trim().split(',').filter_map(range).collect())
}

fn text(ranges: &[PortRange]) -> String {
    let each: Vec<_> = ranges.iter().map(PortRange::to_string).collect();
    each.join(",")
}

fn read(key: &'static str, setting: &io::Result<Setting>, wanted: &str) -> Result<String, Refused> {
    let refused = |source| Refused {
        key,
        value: wanted.to_owned(),
        source,
    };
    match setting {
        Ok(setting) => setting.read().map_err(refused),
        Err(error) => Err(refused(copy(error))),
    }
}

fn write(key: &'static str, setting: &io::Result<Setting>, value: &str) -> Result<(), Refused> {
    let written = match setting {
        // Nothing but a line end empties a list; numbers may have one.
        Ok(setting) => setting.write(&format!("{value}\n")),
        Err(error) => Err(copy(error)),
    };
    written.map_err(|source| Refused {
        key,
        value: value.to_owned(),
        source,
    })
}

fn copy(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => error.kind().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_the_kernel_are_read_and_written() {
        for list in ["", "8080", "8080,9148-9150", "1-65535"] {
            assert_eq!(text(&ranges_in(list)), list);
        }
        assert_eq!(text(&ranges_in("0-10,12\n")), "1-10,12");
        assert_eq!(ranges_in("0"), []);
    }
}
