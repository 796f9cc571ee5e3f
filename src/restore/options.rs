//! What a restore may leave out.

use crate::name::matches;
use crate::parallel;
use crate::progress::{Observer, Progress};

/// How strict a restore is. By default every tracked object must find its value, with exact type and shape, and
/// every byte is verified before anything changes.
///
/// ```
/// use tch_checkpoint::RestoreOptions;
/// // Fine-tuning: the decoder is new, everything else must come from the checkpoint.
/// let options = RestoreOptions::new().allow_missing("decoder/*");
/// # let _ = options;
/// ```
#[derive(Debug, Clone)]
pub struct RestoreOptions {
    missing: Vec<String>,
    mismatched: Vec<String>,
    pub(crate) verify: Verify,
    pub(crate) threads: usize,
    pub(crate) observer: Observer,
}

/// When digests are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verify {
    First,
    WhileReading,
    Never,
}

impl Default for RestoreOptions {
    fn default() -> Self {
        RestoreOptions {
            missing: Vec::new(),
            mismatched: Vec::new(),
            verify: Verify::First,
            threads: parallel::default_threads(),
            observer: Observer::default(),
        }
    }
}

impl RestoreOptions {
    /// The strict default.
    pub fn new() -> RestoreOptions {
        RestoreOptions::default()
    }

    /// Objects whose key matches `pattern` keep their values when the checkpoint has none for them. In a pattern
    /// `*` stands for any text, `/` included.
    pub fn allow_missing(mut self, pattern: impl Into<String>) -> Self {
        self.missing.push(pattern.into());
        self
    }

    /// Tensors whose key matches `pattern` keep their values when type or shape differ from the checkpoint's.
    pub fn allow_mismatch(mut self, pattern: impl Into<String>) -> Self {
        self.mismatched.push(pattern.into());
        self
    }

    /// Restores in one pass instead of two: every byte is still checked, but as it is put into the objects. Faster;
    /// a damaged file is then found when some objects have changed already ([`Error::PartlyRestored`](crate::Error::PartlyRestored)).
    pub fn verify_while_reading(mut self) -> Self {
        self.verify = Verify::WhileReading;
        self
    }

    /// Restores without looking at the digests: for a checkpoint that was verified just before. Types, shapes and
    /// files' lengths are still checked; changed bytes are not found.
    pub fn without_verification(mut self) -> Self {
        self.verify = Verify::Never;
        self
    }

    /// How many threads read; by default one a processor, at most 8.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads.max(1);
        self
    }

    /// Calls `report` after every tensor, from the threads that read; what it does there holds them up.
    pub fn on_progress(mut self, report: impl Fn(Progress) + Send + Sync + 'static) -> Self {
        self.observer = Observer::new(report);
        self
    }

    pub(crate) fn may_be_missing(&self, key: &str) -> bool {
        self.missing.iter().any(|pattern| matches(pattern, key))
    }

    pub(crate) fn may_mismatch(&self, key: &str) -> bool {
        self.mismatched.iter().any(|pattern| matches(pattern, key))
    }
}
