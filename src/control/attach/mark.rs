//! How interfaces of ours are told from others', without a file that could be stale.

use super::AttachError;
use crate::control::kernel::netlink::{LinkChange, Netlink};
use crate::control::kernel::{InterfaceName, LinkFacts};

/// What the alias of every interface of ours begins with; the attachment's name follows.
const ALIAS_PREFIX: &str = "nos-relay:";

/// Writes onto an interface whose it is.
pub(super) trait Mark {
    fn mark(self, attachment: &str) -> Self;
}

impl Mark for LinkChange {
    fn mark(self, attachment: &str) -> Self {
        self.alias(format!("{ALIAS_PREFIX}{attachment}"))
    }
}

/// The attachment that an interface says it belongs to.
pub(super) fn owner(link: &LinkFacts) -> Option<&str> {
    link.alias.as_deref()?.strip_prefix(ALIAS_PREFIX)
}

/// Whether an interface carries the mark of this attachment.
pub(super) fn is_marked(link: &LinkFacts, attachment: &str) -> bool {
    owner(link) == Some(attachment)
}

/// The interface that carries the mark of this attachment.
pub(super) fn find_marked(
    netlink: &Netlink,
    attachment: &str,
) -> Result<Option<LinkFacts>, AttachError> {
    let mut links = netlink.all_links()?.into_iter();
    Ok(links.find(|link| is_marked(link, attachment)))
}

/// The name of the host end for an attachment: the same in every run, 13 octets.
#[must_use]
pub fn host_end_name(attachment: &str) -> String {
    InterfaceName::stable("nr-", attachment).to_string()
}

/// The name of an attachment's TAP on the host until it is moved into the container.
pub(super) fn tap_name(attachment: &str) -> String {
    InterfaceName::stable("nt-", attachment).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_ends_are_named_stably_and_fit() {
        assert_eq!(host_end_name("web"), host_end_name("web"));
        assert_ne!(host_end_name("web"), host_end_name("db"));
        let long = "a-container-name-that-is-longer-than-an-interface-name-may-be";
        for name in [host_end_name(long), host_end_name(""), tap_name(long)] {
            assert!(name.parse::<InterfaceName>().is_ok(), "{name}");
        }
    }
}
