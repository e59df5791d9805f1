//! How a packet socket sends the super-frames of tunnels: by a TAP beside it.
//!
//! # Theory of operation
//!
//! The virtio-net header of packet sockets has no words for tunnels; that of TAPs has, from Linux 6.17 on.
//! What is written to a TAP comes in on its interface, and the control side has had the kernel redirect
//! everything that comes in there to the packet socket's interface, as if it left by that. So a
//! super-frame reaches the interface whole, and the kernel behind it, or the NIC, cuts it as one of its
//! own, or takes it as it is.
//!
//! Nobody reads from the TAP, and nothing else is written to it. It has no addresses and no IPv6. It goes
//! when it is closed, and with it all that was set up for it.
//!
//! Most interfaces never see a tunnel, so there is none of this at first: a packet socket that may be given
//! an [`Injection`] says that it takes tunnels until the first has come. That one, and those behind it, are
//! cut in software as long as the control side, which is told, has not opened a TAP.
//!
//! Writes and sends are calls of one thread, each of which ends on the interface: what leaves by one way
//! does not overtake what leaves by the other.

use nix::errno::Errno;
use nos_shim::frame::Frame;
use nos_shim::offload::Capabilities;

use super::character;
use super::tap::Tap;
use super::{DeviceKind, FrameDevice, OpenError, Sending};

/// The TAP.
#[derive(Debug)]
pub struct Injection {
    tap: Box<Tap>,
    /// Whether it has taken one.
    proven: bool,
}

impl Injection {
    /// Creates the TAP `name` in the namespace of the calling thread. What is written to it goes nowhere
    /// until it is up and redirected.
    ///
    /// # Errors
    ///
    /// As for [`Tap::open`], or the kernel's TAP takes no tunnels.
    pub fn open(name: &str) -> Result<Self, OpenError> {
        let tap = Tap::open(name, Capabilities::all())?;
        if !tap.capabilities().contains(Capabilities::TUNNEL) {
            return Err(OpenError::NoTunnels(name.to_owned()));
        }
        Ok(Self {
            tap: Box::new(tap),
            proven: false,
        })
    }

    /// The name of the interface.
    #[must_use]
    pub fn name(&self) -> &str {
        self.tap.name()
    }
}

/// What becomes of the super-frames of tunnels.
#[derive(Debug)]
pub(super) enum Tunnels {
    /// They are cut before they come here.
    Cut,
    /// None has come yet.
    Unmet,
    /// They are cut; the control side may do something about that, and was told or is to be.
    Met {
        told: bool,
    },
    Injected(Injection),
    /// They are cut, as the kernel does not take them. A data thread does not close what it had.
    Refused {
        _closed_later: Injection,
    },
}

/// What came of a try to send those in front.
pub(super) enum Injected {
    /// They are sent, or dropped for a reason that is counted.
    Done,
    /// They have to be cut.
    Cut,
    /// Likewise; the kernel called one invalid.
    Invalid,
}

impl Tunnels {
    /// Where a packet socket has an injection, or may be given one.
    pub(super) fn are_taken(&self) -> bool {
        matches!(self, Self::Unmet | Self::Injected(_))
    }

    /// Whether an injection is wanted; true once.
    pub(super) fn ask(&mut self) -> bool {
        match self {
            Self::Met { told } => !core::mem::replace(told, true),
            _ => false,
        }
    }

    /// Takes what was asked for.
    pub(super) fn inject(&mut self, injection: Injection) -> Result<(), Injection> {
        match self {
            Self::Met { .. } => {
                *self = Self::Injected(injection);
                Ok(())
            }
            _ => Err(injection),
        }
    }

    /// Sends the super-frames of tunnels at the front.
    #[cold]
    pub(super) fn send(&mut self, sending: &mut Sending<'_>) -> Injected {
        let Self::Injected(injection) = self else {
            if matches!(self, Self::Unmet) {
                *self = Self::Met { told: false };
            }
            return Injected::Cut;
        };
        while let Some(frame) = sending.front().filter(|frame| is_of_tunnel(frame)) {
            match injection.tap.write_frame(frame) {
                Ok(()) => {
                    injection.proven = true;
                    sending.taken();
                }
                Err(errno) => match verdict(errno, injection.proven) {
                    Verdict::Dropped => character::handle_refusal(sending, errno),
                    Verdict::GivenUp => return self.give_up(errno),
                },
            }
        }
        Injected::Done
    }

    fn give_up(&mut self, errno: Errno) -> Injected {
        let Self::Injected(injection) = core::mem::replace(self, Self::Cut) else {
            return Injected::Cut;
        };
        tracing::warn!(
            "{} {}: takes no super-frames of tunnels, which are cut from now on: {}",
            DeviceKind::Tap,
            injection.name(),
            errno.desc()
        );
        *self = Self::Refused {
            _closed_later: injection,
        };
        match errno {
            Errno::EINVAL | Errno::EMSGSIZE => Injected::Invalid,
            _ => Injected::Cut,
        }
    }
}

/// Whether a frame is a tunnel's super-frame.
#[inline]
pub(super) fn is_of_tunnel(frame: &Frame) -> bool {
    let segmentation = frame.offload().segmentation;
    segmentation.is_some_and(|own| own.tunnel.is_some())
}

enum Verdict {
    /// The frame is lost for it, and perhaps those behind it.
    Dropped,
    /// No frame will ever be taken.
    GivenUp,
}

fn verdict(errno: Errno, proven: bool) -> Verdict {
    match errno {
        // Of a kind that it takes, the fault is the frame's.
        Errno::EINVAL | Errno::EMSGSIZE if proven => Verdict::Dropped,
        Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM => Verdict::Dropped,
        // Invalid; or the TAP was set down or deleted by somebody.
        _ => Verdict::GivenUp,
    }
}
