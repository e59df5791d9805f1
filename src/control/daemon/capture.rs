//! Wrapping a device so that its frames are written to a file.

use std::path::Path;

use crate::data::device::{Capture, CaptureOptions, FrameDevice};

use super::DaemonError;

/// Captures what `device` carries into `file`, if there is to be one.
pub(super) fn wrap(
    device: Box<dyn FrameDevice>,
    file: Option<&Path>,
    name: &str,
) -> Result<Box<dyn FrameDevice>, DaemonError> {
    let Some(file) = file else { return Ok(device) };
    match Capture::create(device, file, CaptureOptions::default()) {
        Ok(capture) => Ok(Box::new(capture)),
        Err(error) => Err(DaemonError::Capture {
            name: name.to_owned(),
            source: error,
        }),
    }
}
