//! What all attachments share on the relay's side.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use parking_lot::Mutex;

use super::AttachError;
use crate::control::kernel::netlink::Netlink;
use crate::control::kernel::takeover::{Portion, Takeover, TakeoverError, Takeovers};
use crate::control::kernel::{LinkFacts, Namespace};

/// The namespace of the relay, with the sockets by which it is changed. Clones share them.
#[derive(Clone, Debug)]
pub struct Host(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    namespace: Namespace,
    netlink: Netlink,
    /// Opened for the first veth: TAPs work on kernels without nf_tables too.
    takeovers: Mutex<Option<Takeovers>>,
}

impl Host {
    /// Opens the sockets.
    ///
    /// # Errors
    /// The namespace cannot be entered, or there are no descriptors left.
    pub fn open(namespace: Namespace) -> Result<Self, AttachError> {
        let netlink = Netlink::open(&namespace)?;
        Ok(Self(Arc::new(Inner {
            namespace,
            netlink,
            takeovers: Mutex::new(None),
        })))
    }

    /// The namespace of the relay.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.0.namespace
    }

    pub(super) fn netlink(&self) -> &Netlink {
        &self.0.netlink
    }

    /// Keeps the kernel off an interface, or off a part of it.
    pub(crate) fn take(
        &self,
        interface: &str,
        index: u32,
        what: Portion,
    ) -> Result<Takeover, TakeoverError> {
        let mut takeovers = self.0.takeovers.lock();
        let takeovers = match &mut *takeovers {
            Some(open) => open,
            none => none.insert(Takeovers::open(&self.0.namespace)?),
        };
        takeovers.take(interface, index, what)
    }

    /// The socket that keeps the kernel off interfaces, for another process; `None` while none is
    /// kept.
    pub(crate) fn keeper(&self) -> io::Result<Option<OwnedFd>> {
        let takeovers = self.0.takeovers.lock();
        takeovers.as_ref().map(Takeovers::duplicate).transpose()
    }

    /// Whether there is such a socket.
    pub(crate) fn is_keeping(&self) -> bool {
        self.0.takeovers.lock().is_some()
    }

    /// Goes on with such a socket of another process.
    pub(crate) fn receive_keeper(&self, socket: OwnedFd) {
        let takeovers = Takeovers::received(&self.0.namespace, socket);
        *self.0.takeovers.lock() = Some(takeovers);
    }

    /// An interface off which such a socket keeps the kernel.
    pub(crate) fn taken(&self, interface: &str, index: u32) -> Option<Takeover> {
        let takeovers = self.0.takeovers.lock();
        Some(takeovers.as_ref()?.taken(interface, index))
    }

    /// What the kernel says of an interface; `None` where there is none by that name.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub fn link(&self, interface: &str) -> Result<Option<LinkFacts>, AttachError> {
        Ok(self.0.netlink.link(interface)?)
    }

    /// What the kernel says of the interface of this number; `None` where there is none.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub fn link_by_index(&self, index: u32) -> Result<Option<LinkFacts>, AttachError> {
        Ok(self.0.netlink.link_by_index(index)?)
    }

    /// Refuses a container that is the relay itself.
    pub(super) fn refuse_own(&self, container: &Namespace) -> Result<(), AttachError> {
        if container == self.namespace() {
            return Err(AttachError::OwnNamespace {
                namespace: container.to_string(),
            });
        }
        Ok(())
    }
}
