//! What the kernel did not carry out, in words.

use std::io;

use thiserror::Error;

/// A request that the kernel did not carry out.
#[derive(Debug, Error)]
#[error("cannot {action} in {namespace}: {source}{}", detail.as_deref().unwrap_or_default())]
pub struct NetlinkError {
    action: String,
    namespace: String,
    source: io::Error,
    /// The kernel's reason in words, after a space and in parentheses.
    detail: Option<String>,
}

impl NetlinkError {
    pub(super) fn new(
        action: impl Into<String>,
        namespace: &str,
        source: io::Error,
        reason: Option<String>,
    ) -> Self {
        Self {
            action: action.into(),
            namespace: namespace.to_owned(),
            source,
            detail: reason.map(|text| format!(" ({text})")),
        }
    }

    /// The errno of the refusal, where the kernel gave one.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        self.source.raw_os_error()
    }

    pub(crate) fn is(&self, codes: &[i32]) -> bool {
        self.code().is_some_and(|code| codes.contains(&code))
    }
}

/// The kernel's reason in words, out of the part of an error message that follows the code.
///
/// With NETLINK_CAP_ACK that part is the header of the refused request (16 octets), then
/// attributes; NLMSGERR_ATTR_MSG is a text.
pub(crate) fn extended_ack(after_code: &[u8]) -> Option<String> {
    const HEADER: usize = 16;
    const NLMSGERR_ATTR_MSG: u16 = 1;
    let mut rest = after_code.get(HEADER..)?;
    loop {
        let &[a, b, c, d, ref tail @ ..] = rest else {
            return None;
        };
        let length = usize::from(u16::from_ne_bytes([a, b])).checked_sub(4)?;
        let value = tail.get(..length)?;
        if u16::from_ne_bytes([c, d]) == NLMSGERR_ATTR_MSG {
            let text = value.strip_suffix(&[0]).unwrap_or(value);
            return Some(String::from_utf8_lossy(text).into_owned());
        }
        rest = tail.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_is_found_behind_other_attributes() {
        let mut message = vec![0; 16];
        // NLMSGERR_ATTR_OFFS (2), a u32; then the text.
        message.extend([8, 0, 2, 0, 1, 2, 3, 4]);
        message.extend([7, 0, 1, 0, b'n', b'o', 0, 0]);
        assert_eq!(extended_ack(&message).as_deref(), Some("no"));
        assert_eq!(extended_ack(&message[..24]), None);
        assert_eq!(extended_ack(&[]), None);
    }

    #[test]
    fn truncated_reason_is_none() {
        let mut message = vec![0; 16];
        message.extend([200, 0, 1, 0, b'n']);
        assert_eq!(extended_ack(&message), None);
        message[16] = 3;
        assert_eq!(extended_ack(&message), None);
    }
}
