//! The progress of a save or a restore.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The progress of a save or a restore, in bytes of the component files.
///
/// ```
/// use tch_checkpoint::{Progress, SaveOptions};
/// let options = SaveOptions::new().on_progress(|progress: Progress| {
///     eprint!("\r{:3.0} %", progress.percent());
/// });
/// # let _ = options;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Bytes written or read so far. A restore that verifies first counts every byte twice.
    pub done: u64,
    /// The final value of `done`.
    pub total: u64,
}

impl Progress {
    /// Returns `done` in percent of `total`.
    #[must_use]
    pub fn percent(&self) -> f64 {
        if self.total == 0 { 100.0 } else { 100.0 * self.done as f64 / self.total as f64 }
    }
}

/// An optional progress callback.
#[derive(Clone, Default)]
pub(crate) struct Observer(Option<Arc<dyn Fn(Progress) + Send + Sync>>);

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Observer" } else { "nobody" })
    }
}

impl Observer {
    pub(crate) fn new(report: impl Fn(Progress) + Send + Sync + 'static) -> Observer {
        Observer(Some(Arc::new(report)))
    }

    /// Starts to count up to `total` bytes.
    pub(crate) fn begin(&self, total: u64) -> Tally {
        Tally { observer: self.clone(), done: AtomicU64::new(0), total }
    }
}

/// The count of one save or restore.
pub(crate) struct Tally {
    observer: Observer,
    done: AtomicU64,
    total: u64,
}

impl Tally {
    /// Adds `bytes` to the count.
    pub(crate) fn add(&self, bytes: u64) {
        if let Some(report) = &self.observer.0 {
            let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
            report(Progress { done, total: self.total });
        }
    }
}
