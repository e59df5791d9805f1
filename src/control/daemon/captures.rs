//! Steps of captures. A capture changes while its device stays as it is.

use std::path::PathBuf;
use std::time::{Duration, Instant};

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
            self.end_captures(&[of]);
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
        let options = CaptureOptions {
            vlan: self.vlan_of(of),
            ..CaptureOptions::default()
        };
        let started = CaptureWriter::create(path, name, options);
        let (sink, writer) = started.map_err(StepError::new)?;
        let set = self.plane.set_capture(interface, Some(sink));
        set.map_err(StepError::new)?;
        self.captures.insert(of.clone(), writer);
        Ok(())
    }

    /// Ends captures, whose devices may be gone. All write their rest at the same time, so that
    /// those that are stuck cost the time of one.
    pub(super) fn end_captures(&mut self, of: &[&Entity]) {
        for entity in of {
            if let Some(interface) = self.interface_of(entity) {
                // Dropping the sink tells the writer that nothing more comes. Without a device it
                // has been dropped already.
                drop(self.plane.set_capture(interface, None));
            }
        }
        let deadline = Instant::now() + FLUSH_LIMIT;
        for entity in of {
            self.finish_capture(entity, deadline);
        }
    }

    /// Lets a capture write its rest, whose sink has been dropped.
    fn finish_capture(&mut self, of: &Entity, deadline: Instant) {
        let Some(writer) = self.captures.remove(of) else {
            return;
        };
        let path = writer.path().to_owned();
        match writer.finish(deadline.saturating_duration_since(Instant::now())) {
            Ok(status) => info!(
                path = %path.display(), recorded = status.recorded, missed = status.missed,
                "capture ended"
            ),
            Err(error) => warn!("{error}"),
        }
    }

    /// Lets the capture of a device write its rest, which has gone and gave `sink` back.
    pub(super) fn capture_lost(&mut self, of: &Entity, sink: Option<CaptureSink>) {
        drop(sink);
        self.finish_capture(of, Instant::now() + FLUSH_LIMIT);
    }
}
