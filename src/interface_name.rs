//! The name of a network interface.

use std::fmt;
use std::str::FromStr;

use nos_shim::ident::MacAddr;
use thiserror::Error;

/// A network interface's name, as the kernel takes it: 1 to 15 visible ASCII characters without
/// `/`, `:` and `%`, and neither `.` nor `..`.
///
/// The kernel's own check (`dev_valid_name`) also lets other octets pass. They are refused here,
/// because a name is printed, logged and typed.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InterfaceName(String);

/// Text that cannot be an [`InterfaceName`].
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum InterfaceNameError {
    /// No octet, or more than 15.
    #[error("has {0} octets; an interface name has 1 to 15")]
    Length(usize),
    /// A character that the kernel refuses or reads as a pattern.
    #[error("contains {0:?}, which no interface name may")]
    Character(char),
    /// `.` or `..`.
    #[error("is a directory's name, which no interface may have")]
    Dots,
}

impl InterfaceName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A name that begins with these characters, of which the rest is hardly any other text's, and this one's in every
    /// run: 13 characters.
    pub(crate) fn stable(beginning: &'static str, text: &str) -> Self {
        let MacAddr([_, a, b, c, d, e]) = MacAddr::stable(text);
        Self(format!("{beginning:.3}{a:02x}{b:02x}{c:02x}{d:02x}{e:02x}"))
    }

    /// The usual name of a container's interface, `eth0`.
    #[must_use]
    pub fn eth0() -> Self {
        Self("eth0".to_owned())
    }
}

impl FromStr for InterfaceName {
    type Err = InterfaceNameError;

    fn from_str(text: &str) -> Result<Self, InterfaceNameError> {
        let allowed = |c: &char| c.is_ascii_graphic() && !"/:%".contains(*c);
        match text.chars().find(|c| !allowed(c)) {
            Some(other) => Err(InterfaceNameError::Character(other)),
            None if !(1..libc::IFNAMSIZ).contains(&text.len()) => {
                Err(InterfaceNameError::Length(text.len()))
            }
            None if text == "." || text == ".." => Err(InterfaceNameError::Dots),
            None => Ok(Self(text.to_owned())),
        }
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_the_kernel_takes_are_kept() {
        for good in ["eth0", "a", "nr-0123456789ab", "br-1.2", "fifteen-octets-"] {
            assert_eq!(good.parse::<InterfaceName>().unwrap().as_str(), good);
        }
    }

    #[test]
    fn names_that_the_kernel_cannot_take_are_refused() {
        let error = |text: &str| text.parse::<InterfaceName>().unwrap_err();
        for length in ["", "sixteen-octets-x"] {
            assert_eq!(error(length), InterfaceNameError::Length(length.len()));
        }
        for dots in [".", ".."] {
            assert_eq!(error(dots), InterfaceNameError::Dots);
        }
        for (text, character) in [
            ("a/b", '/'),
            ("a b", ' '),
            ("a:1", ':'),
            ("tap%d", '%'),
            ("a\0b", '\0'),
            ("éth0", 'é'),
        ] {
            assert_eq!(error(text), InterfaceNameError::Character(character));
        }
    }
}
