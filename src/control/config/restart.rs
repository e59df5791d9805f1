//! Settings that differ between two configurations and take effect at the next start only.

use crate::control::api::Access;

use super::RelayConfig;

/// A setting that differs but takes effect only at the next start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NeedsRestart {
    /// The key, as in `relay.threads`.
    pub key: &'static str,
    /// Its value in the old configuration.
    pub old: String,
    /// Its value in the new configuration.
    pub new: String,
}

impl RelayConfig {
    /// The settings in which `new` differs from `old`.
    #[must_use]
    pub fn differences(old: &Self, new: &Self) -> Vec<NeedsRestart> {
        let setting = |key, old: String, new: String| NeedsRestart { key, old, new };
        let mut settings = vec![
            setting(
                "relay.threads",
                old.threads.to_string(),
                new.threads.to_string(),
            ),
            setting(
                "relay.buffers",
                old.buffers.to_string(),
                new.buffers.to_string(),
            ),
            setting("relay.ring", old.ring.to_string(), new.ring.to_string()),
            setting(
                "relay.io_uring",
                old.io_uring.to_string(),
                new.io_uring.to_string(),
            ),
            setting("relay.flows", old.flows.to_string(), new.flows.to_string()),
        ];
        settings.retain(|setting| setting.old != setting.new);
        settings
    }
}

impl Access {
    /// The settings in which `new` differs from `old`.
    #[must_use]
    pub fn differences(old: &Self, new: &Self) -> Vec<NeedsRestart> {
        let mode = |it: &Self| format!("{:04o}", it.mode);
        let group = |it: &Self| match &it.group {
            Some(group) => group.to_string(),
            None => "none".to_owned(),
        };
        let setting = |key, of: &dyn Fn(&Self) -> String| NeedsRestart {
            key,
            old: of(old),
            new: of(new),
        };
        let mut settings = vec![
            setting("control.mode", &mode),
            setting("control.group", &group),
        ];
        settings.retain(|setting| setting.old != setting.new);
        settings
    }
}
