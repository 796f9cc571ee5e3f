//! What a restore returns: TensorFlow's assertions, over the objects as they are now.

use super::pending::Pending;
use crate::error::{Error, Report, Result, SkipReason};
use crate::format::Follows;
use crate::location::Location;
use crate::source::VerifiedBy;
use crate::text::listed;
use std::sync::Arc;

/// The result of a restore. The assertions look at the objects as they are when called: objects tracked after
/// the restore count, and variables that were added to a tracked `VarStore` since.
///
/// What the checkpoint has and no object took waits for objects that are *tracked* later: they get it when they are
/// tracked. Of several restores that something waits from, the newest counts whose checkpoint has the object.
/// A variable that is *created* later in an object that is tracked already is not filled, and fails
/// [`assert_existing_objects_matched`](RestoreStatus::assert_existing_objects_matched): build the model before the
/// restore, or restore again when it is built.
///
/// No file of the checkpoint stays open. When the checkpoint is gone by the time an object is tracked that it has a
/// value for, tracking is an error ([`Error::NotFound`]).
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

    /// Returns the checkpoint.
    pub fn path(&self) -> &Location {
        &self.pending.about.path
    }

    /// Returns the step it was saved at, if it was saved with one.
    pub fn step(&self) -> Option<u64> {
        self.pending.about.step
    }

    /// Returns the checkpoint, and those of earlier runs that it goes back to; none of a file of another tool.
    pub(crate) fn lineage(&self) -> &[Follows] {
        &self.pending.about.lineage
    }

    /// How far the tensors that the restore put into objects had been verified: that of the least verified one.
    /// [`VerifiedBy::Digest`] for checkpoints of this crate; for those of other tools what their format has.
    pub fn verified_by(&self) -> VerifiedBy {
        self.pending.verified_by
    }

    pub(crate) fn save_counter(&self) -> Option<i64> {
        self.pending.about.save_counter
    }

    /// Returns what was matched, what has no value, what is unused by now. Looks at the objects as they are; where they
    /// cannot be saved any more, the report is that of the restore.
    pub fn report(&self) -> Report {
        self.pending.report().unwrap_or_else(|_| self.pending.report_of_the_restore())
    }

    /// Everything in the checkpoint went into an object, and every tracked object got its value; but for what
    /// [`RestoreOptions::skip`](crate::RestoreOptions::skip) left out.
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

    /// Every tracked object got its value from the checkpoint, also those that were tracked or created since; but for
    /// what [`RestoreOptions::skip`](crate::RestoreOptions::skip) left out. Objects that another exception left as they
    /// were did not get it.
    ///
    /// # Errors
    /// [`Error::Assertion`], with the names.
    pub fn assert_existing_objects_matched(&self) -> Result<&Self> {
        self.assert_matched().map(|_| self)
    }

    fn assert_matched(&self) -> Result<Report> {
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

    /// At least one tracked object got its value. The counter of saves does not count.
    ///
    /// # Errors
    /// [`Error::Assertion`].
    pub fn assert_nontrivial_match(&self) -> Result<&Self> {
        self.assert(!self.report().matched.is_empty(), || "no tracked object got a value".to_string())
    }

    /// Says that the rest of the checkpoint is not wanted: objects tracked later keep their values.
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

/// What `restore_or_initialize` did.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Started {
    /// The restore, or `None` for a fresh start.
    pub restored: Option<RestoreStatus>,
    /// Checkpoints that were passed over because they are damaged, newest first.
    pub passed_over: Vec<PassedOver>,
}

/// A checkpoint that could not be restored.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PassedOver {
    /// Where it is now.
    pub path: Location,
    /// What is wrong with it.
    pub reason: String,
}
