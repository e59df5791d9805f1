//! Offload features and sizes of interfaces, as `ethtool -K` and `ip link` set them.

use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::error::LabError;
use super::namespace::LabNamespace;

// linux/ethtool.h
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_SFEATURES: u32 = 0x3b;
const ETH_SS_FEATURES: u32 = 4;
/// Octets of a string's place, its end included.
const ETH_GSTRING_LEN: usize = 32;
/// What `ETHTOOL_SFEATURES` answers where another feature had to follow the wish.
const ETHTOOL_F_WISH: libc::c_int = 2;

impl LabNamespace {
    /// Turns a feature of an interface on or off, by the kernel's name of it: what `ethtool -k`
    /// calls `tcp-segmentation-offload` is `tx-tcp-segmentation` here.
    ///
    /// # Errors
    /// There is no such interface or feature, or it cannot be changed.
    pub fn set_feature(&self, interface: &str, feature: &str, on: bool) -> Result<(), LabError> {
        let action = format!("turn {feature} of {interface} on or off");
        self.try_run(&action, || Ethtool::open(interface)?.set(feature, on))
    }
}

/// A way to the features of one interface in the namespace of the calling thread.
struct Ethtool {
    socket: std::os::fd::OwnedFd,
    request: libc::ifreq,
}

impl Ethtool {
    fn open(interface: &str) -> io::Result<Self> {
        // SAFETY: ifreq is made of numbers and a pointer, for which zero octets are a value.
        let mut request: libc::ifreq = unsafe { core::mem::zeroed() };
        if interface.len() >= request.ifr_name.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
            *to = libc::c_char::from_ne_bytes([from]);
        }
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Inet, SockType::Datagram, flags, None)?;
        Ok(Self { socket, request })
    }

    fn set(&mut self, feature: &str, on: bool) -> io::Result<()> {
        let names = self.names()?;
        let place = names.iter().position(|name| name == feature);
        let place = place.ok_or(io::ErrorKind::NotFound)?;
        let (block, bit) = (place / 32, 1_u32 << (place % 32));
        let blocks = names.len().div_ceil(32);
        // struct ethtool_sfeatures: for each block what is valid, and what is wanted.
        let mut command = vec![0_u32; 2 + 2 * blocks];
        command[0] = ETHTOOL_SFEATURES;
        command[1] = u32::try_from(blocks).map_err(io::Error::other)?;
        command[2 + 2 * block] = bit;
        command[3 + 2 * block] = if on { bit } else { 0 };
        match self.call(&mut command)? {
            0 | ETHTOOL_F_WISH => Ok(()),
            // It is fixed.
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// The names of all features, in the order of their numbers.
    fn names(&mut self) -> io::Result<Vec<String>> {
        // struct ethtool_sset_info with the length of one set.
        let mut info = [ETHTOOL_GSSET_INFO, 0, 0, 0, 0];
        info[if cfg!(target_endian = "little") { 2 } else { 3 }] = 1 << ETH_SS_FEATURES;
        self.call(&mut info)?;
        let count = usize::try_from(info[4]).map_err(io::Error::other)?;
        let mut strings = vec![0_u32; 3 + count * ETH_GSTRING_LEN / 4];
        strings[..3].copy_from_slice(&[ETHTOOL_GSTRINGS, ETH_SS_FEATURES, info[4]]);
        self.call(&mut strings)?;
        let octets: Vec<u8> = strings[3..]
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .collect();
        let name = |place: &[u8]| {
            let end = place.iter().position(|&octet| octet == 0);
            String::from_utf8_lossy(&place[..end.unwrap_or(place.len())]).into_owned()
        };
        Ok(octets.chunks(ETH_GSTRING_LEN).map(name).collect())
    }

    fn call(&mut self, command: &mut [u32]) -> io::Result<libc::c_int> {
        self.request.ifr_ifru.ifru_data = command.as_mut_ptr().cast();
        // SAFETY: SIOCETHTOOL reads and writes the structure that the first word of the command
        // names, for which the callers above have made room.
        let result = unsafe {
            libc::ioctl(
                self.socket.as_raw_fd(),
                libc::SIOCETHTOOL,
                &raw mut self.request,
            )
        };
        Ok(Errno::result(result)?)
    }
}
