//! Captures: opened and ended on the control thread.

use std::path::Path;
use std::time::Duration;

use tracing::{info, warn};

use crate::data::device::{CaptureOptions, CaptureSink, CaptureWriter};

use super::DaemonError;

/// How long a capture that ends may take to write the rest. One that is stuck is left behind.
const FLUSH_LIMIT: Duration = Duration::from_millis(500);

/// A capture that begins: the end for the data thread, and the end that stays.
pub(super) type Opened = (CaptureSink, CaptureWriter);

/// Opens the capture of `name`, if there is to be one.
pub(super) fn open(file: Option<&Path>, name: &str) -> Result<Option<Opened>, DaemonError> {
    let opened = file.map(|file| CaptureWriter::create(file, name, CaptureOptions::default()));
    opened.transpose().map_err(|source| DaemonError::Capture {
        name: name.to_owned(),
        source,
    })
}

/// Ends a capture: `sink` is what the data thread gave back.
pub(super) fn end(sink: Option<CaptureSink>, writer: Option<CaptureWriter>) {
    drop(sink);
    let Some(writer) = writer else { return };
    let path = writer.path().to_owned();
    match writer.finish(FLUSH_LIMIT) {
        Ok(status) => info!(
            path = %path.display(), recorded = status.recorded, missed = status.missed,
            "capture ended"
        ),
        Err(error) => warn!("{error}"),
    }
}
