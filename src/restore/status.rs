//! What a restore returns: TensorFlow's assertions, over the objects as they are now.

use super::report::Report;
use crate::error::{Error, Result};
use crate::graph::Saved;
use crate::name;
use crate::source::Source;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Saved values that no object has taken yet, held open for objects that are tracked later.
#[derive(Debug)]
pub(crate) struct Pending {
    pub source: Source,
    pub saved: Saved,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    report: Report,
    /// The keys nothing has taken.
    unused: BTreeSet<String>,
    expected_partial: bool,
}

impl Pending {
    pub(crate) fn new(source: Source, saved: Saved, report: Report) -> Arc<Pending> {
        let unused = report.unused.iter().cloned().collect();
        Arc::new(Pending { source, saved, state: Mutex::new(State { report, unused, expected_partial: false }) })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nobody wants the rest any more.
    pub(crate) fn is_over(&self) -> bool {
        let state = self.state();
        state.expected_partial || state.unused.is_empty()
    }

    /// Notes a deferred restore.
    pub(crate) fn took(&self, later: &Report) {
        let mut state = self.state();
        for key in &later.matched {
            state.unused.remove(key);
        }
        state.report.matched.extend(later.matched.iter().cloned());
        state.report.missing.extend(later.missing.iter().cloned());
        state.report.unused = state.unused.iter().cloned().collect();
    }
}

/// The result of a restore. The assertions look at the objects as they are when called: objects tracked after
/// the restore count.
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

    /// The checkpoint.
    pub fn path(&self) -> &Path {
        &self.pending.source.path
    }

    /// The step it was saved at, if it was saved with one.
    pub fn step(&self) -> Option<u64> {
        self.pending.source.manifest.step
    }

    /// What was matched, what was missing, what is unused by now.
    pub fn report(&self) -> Report {
        self.pending.state().report.clone()
    }

    /// Everything in the checkpoint went into an object, and every tracked object got its value.
    ///
    /// # Errors
    /// [`Error::Assertion`], with the names.
    pub fn assert_consumed(&self) -> Result<&Self> {
        self.assert_existing_objects_matched()?;
        let report = self.report();
        self.assert(report.unused.is_empty(), || {
            format!("no tracked object took {} of its values: {}", report.unused.len(), listed(&report.unused))
        })
    }

    /// Every tracked object got its value from the checkpoint.
    ///
    /// # Errors
    /// [`Error::Assertion`], with the names.
    pub fn assert_existing_objects_matched(&self) -> Result<&Self> {
        let report = self.report();
        self.assert(report.missing.is_empty(), || {
            format!("it has no value for {} tracked objects: {}", report.missing.len(), listed(&report.missing))
        })
    }

    /// At least one tracked object got its value. The counter of saves does not count.
    ///
    /// # Errors
    /// [`Error::Assertion`].
    pub fn assert_nontrivial_match(&self) -> Result<&Self> {
        self.assert(!self.report().matched.is_empty(), || "no tracked object got a value".to_string())
    }

    /// Says that the rest of the checkpoint is not wanted: objects tracked later keep their values, and the files
    /// are closed.
    pub fn expect_partial(&self) -> &Self {
        self.pending.state().expected_partial = true;
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
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

fn listed(names: &[String]) -> String {
    let shown: Vec<_> = names.iter().take(10).map(|name| name::shown(name).to_string()).collect();
    let more = names.len().saturating_sub(shown.len());
    shown.join(", ") + &if more > 0 { format!(" and {more} more") } else { String::new() }
}
