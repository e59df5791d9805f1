//! IP addresses and prefixes.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::failure::Failure;
use crate::input::{Name, value};

/// An IP address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct nos_relay_address {
    /// 4 or 6.
    pub family: u8,
    /// In network order; of IPv4 the first four.
    pub octets: [u8; 16],
}

/// Addresses that begin with the same bits.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct nos_relay_prefix {
    /// One of them.
    pub address: nos_relay_address,
    /// Bits that they have in common: up to 32 or 128.
    pub length: u8,
}

impl From<IpAddr> for nos_relay_address {
    fn from(address: IpAddr) -> Self {
        let mut octets = [0; 16];
        let family = match address {
            IpAddr::V4(address) => {
                octets[..4].copy_from_slice(&address.octets());
                4
            }
            IpAddr::V6(address) => {
                octets = address.octets();
                6
            }
        };
        Self { family, octets }
    }
}

impl From<IpNet> for nos_relay_prefix {
    fn from(prefix: IpNet) -> Self {
        Self {
            address: prefix.addr().into(),
            length: prefix.prefix_len(),
        }
    }
}

pub(crate) fn address(from: nos_relay_address, name: impl Into<Name>) -> Result<IpAddr, Failure> {
    let [a, b, c, d, ..] = from.octets;
    match from.family {
        4 => Ok(Ipv4Addr::new(a, b, c, d).into()),
        6 => Ok(Ipv6Addr::from(from.octets).into()),
        other => Err(value(
            name.into(),
            format_args!("family {other} is neither 4 nor 6"),
        )),
    }
}

pub(crate) fn prefix(from: nos_relay_prefix, name: impl Into<Name>) -> Result<IpNet, Failure> {
    let name = name.into();
    let address = address(from.address, name)?;
    IpNet::new(address, from.length).map_err(|_| {
        let what = format_args!("a length of {} is too long for {address}", from.length);
        value(name, what)
    })
}
