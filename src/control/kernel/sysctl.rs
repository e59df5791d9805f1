//! sysctls of a network namespace.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;

use super::namespace::{Namespace, NamespaceError};

/// An open sysctl of one namespace. It can be read and written from any thread, wherever that is.
#[derive(Debug)]
pub(crate) struct Setting(File);

impl Setting {
    /// Opens `/proc/sys/<key>` as the calling thread sees it.
    ///
    /// `/proc/sys/net` shows each thread its own namespace, whoever mounted `/proc`, and an open
    /// file stays with the namespace in which it was opened.
    pub(crate) fn open_here(key: &str) -> io::Result<Self> {
        // Not File::create: the file is there or the kernel lacks the feature.
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        options.open(format!("/proc/sys/{key}")).map(Self)
    }

    /// The present value, without the final newline.
    pub(crate) fn read(&self) -> io::Result<String> {
        // Longer than any number or pair of numbers.
        let mut text = [0; 256];
        let length = self.0.read_at(&mut text, 0)?;
        let text = text.get(..length).unwrap_or_default();
        Ok(String::from_utf8_lossy(text).trim_end().to_owned())
    }

    /// Sets it.
    pub(crate) fn write(&self, value: &str) -> io::Result<()> {
        // The kernel takes a value whole or refuses it.
        self.0.write_at(value.as_bytes(), 0).map(drop)
    }
}

/// Reads `/proc/sys/<key>` as a thread in `namespace` sees it, without the final newline.
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
        let file = OpenOptions::new()
            .write(true)
            .open(format!("/proc/sys/{key}"))?;
        file.write_at(value.as_bytes(), 0).map(drop)
    })
}
