//! sysctls of a network namespace.

use std::io;

use super::namespace::{Namespace, NamespaceError};

/// Reads `/proc/sys/<key>` as a thread in `namespace` sees it, without the final newline.
///
/// `/proc/sys/net` shows each thread its own namespace, whoever mounted `/proc`.
pub(crate) fn read(namespace: &Namespace, key: &str) -> Result<io::Result<String>, NamespaceError> {
    namespace.run(|| {
        let text = std::fs::read_to_string(format!("/proc/sys/{key}"))?;
        Ok(text.trim_end().to_owned())
    })
}

/// Writes `/proc/sys/<key>` as a thread in `namespace` sees it.
pub(crate) fn write(
    namespace: &Namespace,
    key: &str,
    value: &str,
) -> Result<io::Result<()>, NamespaceError> {
    namespace.run(|| {
        // Not File::create: the file is there or the kernel lacks the feature.
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .open(format!("/proc/sys/{key}"))?;
        io::Write::write_all(&mut file, value.as_bytes())
    })
}
