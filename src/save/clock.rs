//! The times of a save.

use crate::figures::SaveFigures;
use crate::sync::Arc;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Measures one save. Clones measure the same save.
#[derive(Debug, Clone)]
pub(crate) struct SaveClock {
    began: Instant,
    waited: Duration,
    /// How long the call took, if it returned before the checkpoint was durable.
    stall: Arc<OnceLock<Duration>>,
}

/// The bytes of the files of a save.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct SavedBytes {
    written: u64,
    linked: u64,
}

impl SavedBytes {
    pub(super) fn add(&mut self, bytes: u64, is_linked: bool) {
        let sum = if is_linked { &mut self.linked } else { &mut self.written };
        *sum = sum.saturating_add(bytes);
    }
}

impl SaveClock {
    /// Starts the clock, at the beginning of the call.
    pub(crate) fn start() -> SaveClock {
        SaveClock { began: Instant::now(), waited: Duration::ZERO, stall: Arc::default() }
    }

    /// Records that the call has waited for the previous save until now.
    pub(crate) fn waited(mut self) -> SaveClock {
        self.waited = self.began.elapsed();
        self
    }

    /// Records that the call returns while the save continues.
    pub(crate) fn call_returns(&self) {
        let _ = self.stall.set(self.began.elapsed());
    }

    /// Returns the figures up to now. If the call has not returned yet, it has stalled the training until now.
    pub(super) fn figures(&self, bytes: SavedBytes) -> SaveFigures {
        let total = self.began.elapsed();
        SaveFigures {
            stall: self.stall.get().copied().unwrap_or(total).min(total),
            total,
            waited: self.waited,
            bytes_written: bytes.written,
            bytes_linked: bytes.linked,
        }
    }
}
