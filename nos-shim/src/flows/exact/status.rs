//! Flows as they are shown.

use super::{FlowKey, Opener};
use crate::flows::follow::Phase;
use crate::ident::AttachmentId;
use crate::time::Duration;

/// How far a flow has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowState {
    /// It may come.
    Expected,
    /// UDP that only one side has sent.
    Unreplied,
    /// UDP that both sides have sent.
    Replied,
    /// TCP.
    Tcp(Phase),
}

impl FlowState {
    /// Its name in tables.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Expected => "expected",
            Self::Unreplied => "unreplied",
            Self::Replied => "replied",
            Self::Tcp(Phase::Opening) => "opening",
            Self::Tcp(Phase::Established) => "established",
            Self::Tcp(Phase::Closing) => "closing",
            Self::Tcp(Phase::Closed) => "closed",
        }
    }
}

/// A flow, to be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowStatus {
    /// What tells it.
    pub key: FlowKey,
    /// Whose it is.
    pub owner: AttachmentId,
    /// Who has opened it.
    pub opener: Opener,
    /// Whether its port is nobody's but for it.
    pub learnt: bool,
    /// How far it has come.
    pub state: FlowState,
    /// How long it has not been used.
    pub idle: Duration,
    /// When it is forgotten if it is not used.
    pub left: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// They are those of `docs/control.md`.
    #[test]
    fn states_have_names() {
        let names = [
            (FlowState::Expected, "expected"),
            (FlowState::Unreplied, "unreplied"),
            (FlowState::Replied, "replied"),
            (FlowState::Tcp(Phase::Opening), "opening"),
            (FlowState::Tcp(Phase::Established), "established"),
            (FlowState::Tcp(Phase::Closing), "closing"),
            (FlowState::Tcp(Phase::Closed), "closed"),
        ];
        for (state, name) in names {
            assert_eq!(state.label(), name);
        }
    }
}
