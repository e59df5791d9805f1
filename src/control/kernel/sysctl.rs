//! sysctls of a network namespace.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;

use super::namespace::{Namespace, NamespaceError};

/// Octets that no value exceeds: a list of every other port has some 200,000.
const LONGEST: usize = 1 << 20;

/// An open sysctl of one namespace. It can be read and written from any thread, wherever that is.
#[derive(Debug)]
pub(crate) struct Setting {
    file: File,
    /// Why it can only be read.
    read_only: Option<io::Error>,
}

impl Setting {
    /// Opens `/proc/sys/<key>` as the calling thread sees it.
    ///
    /// `/proc/sys/net` shows each thread its own namespace, whoever mounted `/proc`, and an open
    /// file stays with the namespace in which it was opened.
    pub(crate) fn open_here(key: &str) -> io::Result<Self> {
        // Not File::create: the file is there or the kernel lacks the feature.
        let path = format!("/proc/sys/{key}");
        let (file, read_only) = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => (file, None),
            Err(error) => (File::open(&path)?, Some(error)),
        };
        Ok(Self { file, read_only })
    }

    /// The present value, without the final newline.
    pub(crate) fn read(&self) -> io::Result<String> {
        // Longer than any number or pair of numbers. The kernel says no more of a list than fits
        // into one read.
        let mut text = vec![0; 256];
        loop {
            let length = self.file.read_at(&mut text, 0)?;
            if length < text.len() || length >= LONGEST {
                text.truncate(length);
                return Ok(String::from_utf8_lossy(&text).trim_end().to_owned());
            }
            text.resize(text.len() * 4, 0);
        }
    }

    /// Sets it.
    pub(crate) fn write(&self, value: &str) -> io::Result<()> {
        if let Some(error) = &self.read_only {
            return Err(io::Error::from_raw_os_error(
                error.raw_os_error().unwrap_or(libc::EACCES),
            ));
        }
        // The kernel takes a value whole or refuses it; of a long list, a page at a time, and adds
        // up what comes behind the first.
        self.file.write_all_at(value.as_bytes(), 0)
    }
}

/// Reads `/proc/sys/<key>` as a thread in `namespace` sees it, without the final newline.
#[cfg(any(test, feature = "testbed"))]
pub(crate) fn read(namespace: &Namespace, key: &str) -> Result<io::Result<String>, NamespaceError> {
    namespace.run(|| Setting::open_here(key)?.read())
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
