//! Ports without NAT.
//!
//! A container has the NOS's address, so the port on which it listens is the port at which outsiders
//! reach it: there is nothing that could make one out of the other. What an engine publishes is
//! therefore registered as it stands, or refused; what it leaves open is allocated from the daemon's
//! pool (`ports.pool`).

use core::fmt;
use core::net::IpAddr;

use nos_shim::ports::PortRange;
use thiserror::Error;

/// The most ports that are allocated at once.
pub const MAX_SIZE: u16 = 32_768;

/// The transport protocols whose ports have owners.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// A port that an engine publishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Of which protocol.
    pub protocol: Protocol,
    /// Where outsiders are to reach it; zero leaves it open.
    pub host: u16,
    /// Where the program inside listens; zero if the engine does not say.
    pub container: u16,
    /// On which of the NOS's addresses alone.
    pub address: Option<IpAddr>,
}

/// Why ports cannot be had.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PortsError {
    /// It would take NAT.
    #[error(
        "{protocol} port {host} of the host cannot lead to port {container} of the container: there is no NAT, the container has the NOS's own address; publish {container}:{container}, or have the program listen on {host}"
    )]
    NoNat {
        /// Of which protocol.
        protocol: Protocol,
        /// Where outsiders were to reach it.
        host: u16,
        /// Where the program inside listens.
        container: u16,
    },
    /// No number at all.
    #[error("a {0} port mapping has neither a host port nor a container port")]
    Nothing(Protocol),
    /// Ports count on every address of a container.
    #[error(
        "{protocol} port {port} on {address} alone: ports count on all addresses of a container; give it that address as its only one"
    )]
    Address {
        /// Of which protocol.
        protocol: Protocol,
        /// The port.
        port: u16,
        /// The address.
        address: IpAddr,
    },
    /// Too many, or none.
    #[error("a size of {0} ports is not in the range 1 to {MAX_SIZE}")]
    Size(u64),
    /// No range of ports.
    #[error("{0}")]
    Range(String),
}

/// Ports as somebody gives them: which, or how many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Given {
    /// These.
    Ranges(Vec<PortRange>),
    /// So many in a row, which the daemon chooses.
    Size(u16),
}

impl Given {
    /// Reads `20000-20099`, `179, 8080-8089` or `size=100`.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, PortsError> {
        if let Some(size) = text.trim().strip_prefix("size=") {
            let number = size.parse().map_err(|_| {
                let shown: String = size.chars().take(40).collect();
                PortsError::Range(format!("{shown:?} is no number of ports"))
            })?;
            return Self::size(number);
        }
        let ranges = text.split(',').map(|part| range(part.trim()));
        Ok(Self::Ranges(ranges.collect::<Result<_, _>>()?))
    }

    /// So many in a row.
    ///
    /// # Errors
    ///
    /// There are none, or too many.
    pub fn size(ports: u64) -> Result<Self, PortsError> {
        match u16::try_from(ports) {
            Ok(size @ 1..=MAX_SIZE) => Ok(Self::Size(size)),
            _ => Err(PortsError::Size(ports)),
        }
    }
}

/// Reads a port, or a range of them.
///
/// # Errors
///
/// It is none.
pub fn range(text: &str) -> Result<PortRange, PortsError> {
    text.parse()
        .map_err(|error: nos_shim::ports::PortRangeError| {
            let why: String = error.to_string().chars().take(200).collect();
            PortsError::Range(why)
        })
}

/// What ports are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Use {
    /// Outsiders open flows to them.
    Listen(Protocol),
    /// The container opens flows from them.
    Ephemeral,
}

/// Ports in a row that the daemon is to choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// What for.
    pub used: Use,
    /// How many.
    pub size: u16,
}

/// All ports of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ports {
    /// TCP ports on which it is reached.
    pub tcp: Vec<PortRange>,
    /// UDP ports on which it is reached.
    pub udp: Vec<PortRange>,
    /// Ports from which it opens flows.
    pub ephemeral: Vec<PortRange>,
    /// What the daemon chooses besides, in this order.
    pub allocations: Vec<Allocation>,
}

impl Ports {
    /// Adds ports as they were given.
    pub fn give(&mut self, used: Use, given: &Given) {
        match given {
            Given::Ranges(ranges) => {
                let list = self.list(used);
                list.extend(ranges);
                *list = PortRange::merged(std::mem::take(list));
            }
            Given::Size(size) => self.allocations.push(Allocation { used, size: *size }),
        }
    }

    /// Adds what an engine publishes. `only` is the container's address, if it has one alone.
    ///
    /// # Errors
    ///
    /// It would take NAT.
    pub fn publish(&mut self, mapping: Mapping, only: Option<IpAddr>) -> Result<(), PortsError> {
        let Mapping {
            protocol,
            host,
            container,
            address,
        } = mapping;
        let port = host.max(container);
        if let Some(address) = address.filter(|address| !address.is_unspecified())
            && only != Some(address)
        {
            return Err(PortsError::Address {
                protocol,
                port,
                address,
            });
        }
        let used = Use::Listen(protocol);
        match (host, container) {
            (0, 0) => return Err(PortsError::Nothing(protocol)),
            (0, _) => self.allocations.push(Allocation { used, size: 1 }),
            (_, 0) => self.give(used, &Given::Ranges(single(host))),
            (_, _) if host == container => self.give(used, &Given::Ranges(single(host))),
            (_, _) => {
                return Err(PortsError::NoNat {
                    protocol,
                    host,
                    container,
                });
            }
        }
        Ok(())
    }

    /// The ranges for one use.
    #[must_use]
    pub fn ranges(&self, used: Use) -> &[PortRange] {
        match used {
            Use::Listen(Protocol::Tcp) => &self.tcp,
            Use::Listen(Protocol::Udp) => &self.udp,
            Use::Ephemeral => &self.ephemeral,
        }
    }

    fn list(&mut self, used: Use) -> &mut Vec<PortRange> {
        match used {
            Use::Listen(Protocol::Tcp) => &mut self.tcp,
            Use::Listen(Protocol::Udp) => &mut self.udp,
            Use::Ephemeral => &mut self.ephemeral,
        }
    }
}

fn single(port: u16) -> Vec<PortRange> {
    PortRange::new(port, port).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn mapping(host: u16, container: u16) -> Mapping {
        Mapping {
            protocol: Protocol::Tcp,
            host,
            container,
            address: None,
        }
    }

    fn texts(ranges: &[PortRange]) -> Vec<String> {
        ranges.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_published_port_is_registered_as_it_stands() {
        let mut ports = Ports::default();
        for port in [8080, 8081, 9000] {
            ports.publish(mapping(port, port), None).unwrap();
        }
        ports.publish(mapping(9001, 0), None).unwrap();
        assert_eq!(texts(&ports.tcp), ["8080-8081", "9000-9001"]);
        assert_eq!(ports.allocations, []);
    }

    #[test]
    fn another_port_outside_than_inside_is_refused_as_there_is_no_nat() {
        let error = Ports::default()
            .publish(mapping(80, 8080), None)
            .unwrap_err();
        let said = error.to_string();
        assert!(said.contains("there is no NAT"), "{said}");
        assert!(said.contains("publish 8080:8080"), "{said}");
        let nothing = Ports::default().publish(mapping(0, 0), None).unwrap_err();
        assert_eq!(nothing, PortsError::Nothing(Protocol::Tcp));
    }

    #[test]
    fn a_host_port_that_is_left_open_is_allocated() {
        let mut ports = Ports::default();
        ports.publish(mapping(0, 8080), None).unwrap();
        let used = Use::Listen(Protocol::Tcp);
        assert_eq!(ports.allocations, [Allocation { used, size: 1 }]);
        assert_eq!(ports.tcp, []);
    }

    #[test]
    fn a_host_address_is_taken_if_the_container_has_no_other() {
        let address: IpAddr = "203.0.113.1".parse().unwrap();
        let on = |address: &str| Mapping {
            address: Some(address.parse().unwrap()),
            ..mapping(80, 80)
        };
        for any in ["0.0.0.0", "::"] {
            Ports::default().publish(on(any), None).unwrap();
        }
        Ports::default()
            .publish(on("203.0.113.1"), Some(address))
            .unwrap();
        let error = Ports::default()
            .publish(on("203.0.113.1"), None)
            .unwrap_err();
        assert!(
            error.to_string().contains("on 203.0.113.1 alone"),
            "{error}"
        );
    }

    #[test]
    fn ports_are_read_as_ranges_or_as_a_size() {
        let ranges = |text: &str| match Given::parse(text).unwrap() {
            Given::Ranges(ranges) => texts(&ranges),
            Given::Size(size) => panic!("{size}"),
        };
        assert_eq!(ranges("20000-20099"), ["20000-20099"]);
        assert_eq!(ranges(" 179, 8080-8089 "), ["179", "8080-8089"]);
        assert_eq!(Given::parse("size=100").unwrap(), Given::Size(100));
        for bad in [
            "",
            ",",
            "0",
            "65536",
            "9-8",
            "a",
            "1-2-3",
            "-1",
            "size=",
            "size=0",
            "size=-1",
            "size=32769",
            "size=9999999999999999999999",
        ] {
            assert!(Given::parse(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_text_there_is_it_is_read_or_refused(text in ".{0,60}") {
            if let Err(error) = Given::parse(&text) {
                prop_assert!(error.to_string().len() < 1000);
            }
        }

        #[test]
        fn what_is_published_is_registered_once_and_nothing_else(
            wanted in proptest::collection::btree_set(1u16..=65535, 1..40),
        ) {
            let mut ports = Ports::default();
            for port in &wanted {
                ports.publish(mapping(*port, *port), None).unwrap();
                ports.publish(mapping(*port, *port), None).unwrap();
            }
            let has: Vec<u16> = ports.tcp.iter().flat_map(|range| range.first()..=range.last()).collect();
            prop_assert_eq!(has, wanted.into_iter().collect::<Vec<_>>());
        }
    }
}
