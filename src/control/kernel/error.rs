//! What can go wrong with any request about a namespace.

use thiserror::Error;

use super::namespace::NamespaceError;
use super::netlink::NetlinkError;

/// Why a namespace could not be asked or changed.
#[derive(Debug, Error)]
pub enum KernelError {
    /// The namespace cannot be opened or entered.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// The kernel refused a request, or gives no socket to make it.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

/// Lets `?` turn the errors of this floor into one of a module above it, which has a variant
/// `Kernel`.
macro_rules! from_kernel_errors {
    ($error:ty) => {
        impl From<$crate::control::kernel::NamespaceError> for $error {
            fn from(error: $crate::control::kernel::NamespaceError) -> Self {
                Self::Kernel(error.into())
            }
        }

        impl From<$crate::control::kernel::NetlinkError> for $error {
            fn from(error: $crate::control::kernel::NetlinkError) -> Self {
                Self::Kernel(error.into())
            }
        }
    };
}
pub(crate) use from_kernel_errors;
