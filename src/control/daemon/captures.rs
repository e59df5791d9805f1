//! Steps of captures. A capture changes while its device stays as it is.

use std::path::PathBuf;
use std::time::Duration;

use tracing::{info, warn};

use crate::control::plan::{Change, Entity};
use crate::data::device::{CaptureOptions, CaptureSink, CaptureWriter};

use super::live::{Live, StepError};

/// How long a capture that ends may take to write the rest. One that is stuck is left behind.
const FLUSH_LIMIT: Duration = Duration::from_millis(500);

impl Live {
    pub(super) fn change_capture(
        &mut self,
        of: &Entity,
        change: &Change<PathBuf>,
    ) -> Result<(), StepError> {
        if change.old.is_some() {
            self.end_capture(of);
        }
        match &change.new {
            Some(path) => self.begin_capture(of, path),
            None => Ok(()),
        }
    }

    fn begin_capture(&mut self, of: &Entity, path: &PathBuf) -> Result<(), StepError> {
        let Some(interface) = self.interface_of(of) else {
            return Err(StepError::new("it has no device to capture from"));
        };
        let name = of.name().map_or("", |name| name.as_str());
        let started = CaptureWriter::create(path, name, CaptureOptions::default());
        let (sink, writer) = started.map_err(StepError::new)?;
        let set = self.plane.set_capture(interface, Some(sink));
        set.map_err(StepError::new)?;
        self.captures.insert(of.clone(), writer);
        Ok(())
    }

    /// Ends a capture whose device may be gone.
    fn end_capture(&mut self, of: &Entity) {
        let interface = self.interface_of(of);
        let sink = interface.and_then(|interface| self.plane.set_capture(interface, None).ok());
        self.finish_capture(of, sink.flatten());
    }

    /// Writes the rest of a capture. `sink` is what the data thread gave back.
    pub(super) fn finish_capture(&mut self, of: &Entity, sink: Option<CaptureSink>) {
        drop(sink);
        let Some(writer) = self.captures.remove(of) else {
            return;
        };
        let path = writer.path().to_owned();
        match writer.finish(FLUSH_LIMIT) {
            Ok(status) => info!(
                path = %path.display(), recorded = status.recorded, missed = status.missed,
                "capture ended"
            ),
            Err(error) => warn!("{error}"),
        }
    }
}
