//! The result of a restore, with TensorFlow's assertions about the present objects.

use super::pending::Pending;
use crate::error::{Error, RestoreReport, Result, SkipReason};
use crate::format::Follows;
use crate::location::Location;
use crate::source::VerifiedBy;
use crate::text::listed;
use std::sync::Arc;

/// The result of a restore. The assertions examine the objects at the time of the call, including objects that were
/// tracked after the restore, and variables that were added to a tracked `VarStore`.
///
/// Values that no object used are kept for objects that are *tracked* later, and restored when these are tracked. If
/// several restores have a value, the newest one counts. A variable that is *created* later in an object that is
/// already tracked is not restored, and fails
/// [`assert_existing_objects_matched`](RestoreStatus::assert_existing_objects_matched): build the model before the
/// restore, or restore again afterwards.
///
/// No file of the checkpoint stays open. If the checkpoint has been removed when an object with a deferred value is
/// tracked, tracking returns [`Error::NotFound`].
///
/// ```no_run
/// # fn main() -> Result<(), tch_checkpoint::Error> {
/// use tch_checkpoint::{Checkpoint, Counter};
/// let step = Counter::new(0);
/// let mut checkpoint = Checkpoint::new().track("step", &step)?;
/// checkpoint.restore("checkpoints/ckpt-10")?.assert_consumed()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct RestoreStatus {
    pending: Arc<Pending>,
}

impl RestoreStatus {
    pub(crate) fn new(pending: Arc<Pending>) -> RestoreStatus {
        RestoreStatus { pending }
    }

    /// Returns the path of the checkpoint.
    #[must_use]
    pub fn path(&self) -> &Location {
        &self.pending.about.path
    }

    /// Returns the step at which it was saved, if it was saved with one.
    #[must_use]
    pub fn step(&self) -> Option<u64> {
        self.pending.about.step
    }

    /// Returns the checkpoint and those of earlier runs from which it descends. Empty for files of other tools.
    pub(crate) fn lineage(&self) -> &[Follows] {
        &self.pending.about.lineage
    }

    /// Returns how far the restored tensors were verified, which is the least over all tensors: [`VerifiedBy::Digest`]
    /// for checkpoints of this crate, depending on the format for those of other tools.
    #[must_use]
    pub fn verified_by(&self) -> VerifiedBy {
        self.pending.verified_by
    }

    pub(crate) fn save_counter(&self) -> Option<u64> {
        self.pending.about.save_counter
    }

    /// Returns which of the present objects matched, which have no value, and which values are unused. If these cannot
    /// be examined, returns the report of the restore.
    #[must_use]
    pub fn report(&self) -> RestoreReport {
        self.pending.report().unwrap_or_else(|_| self.pending.report_of_the_restore())
    }

    /// Asserts that every value in the checkpoint was restored, and that every tracked object got a value, except what
    /// [`RestoreOptions::skip`](crate::RestoreOptions::skip) excluded.
    ///
    /// # Errors
    /// [`Error::Assertion`], with the names.
    pub fn assert_consumed(&self) -> Result<&Self> {
        let report = self.assert_matched()?;
        self.assert(report.unused.is_empty(), || {
            let unused = listed(report.unused.iter().map(String::as_str));
            format!("no tracked object took {} of its values: {unused}", report.unused.len())
        })
    }

    /// Asserts that every tracked object got its value from the checkpoint, including objects that were tracked or
    /// created later, except what [`RestoreOptions::skip`](crate::RestoreOptions::skip) excluded. Objects that kept
    /// their values because of another exception did not get one.
    ///
    /// # Errors
    /// [`Error::Assertion`], with the names.
    pub fn assert_existing_objects_matched(&self) -> Result<&Self> {
        self.assert_matched().map(|_| self)
    }

    fn assert_matched(&self) -> Result<RestoreReport> {
        let now = self.pending.report();
        let report = now.map_err(|e| Error::Assertion(format!("{}: {e:#}", self.path().display())))?;
        let skipped = report.skipped.iter().filter(|skipped| skipped.why != SkipReason::Requested);
        let without: Vec<&str> =
            report.missing.iter().chain(skipped.map(|skipped| &skipped.key)).map(String::as_str).collect();
        let waits = without.iter().any(|key| report.unused.binary_search_by(|unused| unused.as_str().cmp(key)).is_ok());
        self.assert(without.is_empty(), || {
            let advice = match waits {
                true => "; it has values for those that were created after the restore: restore it again",
                false => "",
            };
            format!(
                "{} tracked objects have no value from it: {}{advice}",
                without.len(),
                listed(without.iter().copied())
            )
        })?;
        Ok(report)
    }

    /// Asserts that at least one tracked object got its value, other than the save counter.
    ///
    /// # Errors
    /// [`Error::Assertion`].
    pub fn assert_nontrivial_match(&self) -> Result<&Self> {
        self.assert(!self.report().matched.is_empty(), || "no tracked object got a value".to_string())
    }

    /// Discards the rest of the checkpoint: objects that are tracked later keep their values.
    pub fn expect_partial(&self) -> &Self {
        self.pending.expect_partial();
        self
    }

    fn assert(&self, holds: bool, message: impl FnOnce() -> String) -> Result<&Self> {
        match holds {
            true => Ok(self),
            false => Err(Error::Assertion(format!("{}: {}", self.path().display(), message()))),
        }
    }
}

/// The result of `restore_or_initialize`.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let temp = tempfile::tempdir()?;
/// # let dir = temp.path().join("run");
/// use tch_checkpoint::{Checkpoint, CheckpointManager, Counter};
/// let step = Counter::new(0);
/// let mut manager = CheckpointManager::builder(Checkpoint::new().track("step", &step)?, &dir).open()?;
/// let start = manager.restore_or_initialize()?;
/// for skipped in &start.passed_over {
///     eprintln!("{} is skipped: {}", skipped.path, skipped.reason);
/// }
/// match &start.restored {
///     Some(status) => println!("resumed from {} at step {:?}", status.path(), status.step()),
///     None => println!("started from scratch"),
/// }
/// assert!(start.restored.is_none());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct StartOutcome {
    /// The restore, or `None` for a fresh start.
    pub restored: Option<RestoreStatus>,
    /// The result of [`initialize_from`](crate::CheckpointManagerBuilder::initialize_from), in a fresh start.
    pub initialized: Option<RestoreStatus>,
    /// Checkpoints that were skipped, such as damaged ones, those with the highest numbers first.
    pub passed_over: Vec<PassedOver>,
}

/// A checkpoint that could not be restored.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PassedOver {
    /// Its current path.
    pub path: Location,
    /// The reason.
    pub reason: String,
}
