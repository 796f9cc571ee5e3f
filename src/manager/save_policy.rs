//! Save policies: when [`save_if_due`](crate::CheckpointManager::save_if_due) saves.
//!
//! A policy is a value, and policies combine: a save is due if any policy requests it. The default is
//! [`save_every(1)`](crate::CheckpointManagerBuilder::save_every).
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let temp = tempfile::tempdir()?;
//! # let dir = temp.path().join("run");
//! use std::time::Duration;
//! use tch_checkpoint::save_policy::{AtSteps, EveryDuration, First};
//! use tch_checkpoint::{Checkpoint, CheckpointManager, Counter};
//!
//! let step = Counter::new(0);
//! let checkpoint = Checkpoint::new().track("step", &step)?;
//! let mut manager = CheckpointManager::builder(checkpoint, &dir)
//!     .save_every(100) // every 100 steps,
//!     .save_when(EveryDuration(Duration::from_secs(600))) // or 10 minutes after the last save,
//!     .save_when(AtSteps::new([3])) // at step 3,
//!     .save_when(First) // and at once if there is no checkpoint yet
//!     .open()?;
//! while step.get() < 110 {
//!     step.increment();
//!     manager.save_if_due(step.get())?;
//! }
//! assert_eq!(manager.checkpoints(), [1, 3, 103].map(|step| dir.join(format!("ckpt-{step}"))));
//! # Ok(())
//! # }
//! ```

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::time::Duration;

/// The information on which a policy decides.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SaveContext {
    /// The step of this call.
    pub step: u64,
    /// The step of the call before, if there was one since the manager was opened.
    pub previous: Option<u64>,
    /// The step that was saved or restored last.
    pub last_saved: Option<u64>,
    /// The time since the last save or restore, or since the manager was opened.
    pub since_last_save: Duration,
    /// Whether a save is being written in the background.
    pub is_saving: bool,
}

impl SaveContext {
    /// Creates a context in which nothing was saved before `step`. Set the public fields as needed, for example in
    /// tests.
    #[must_use]
    pub fn new(step: u64) -> SaveContext {
        SaveContext { step, previous: None, last_saved: None, since_last_save: Duration::ZERO, is_saving: false }
    }
}

/// Decides when a save is due.
///
/// ```
/// use tch_checkpoint::save_policy::{SaveContext, SavePolicy};
///
/// /// Saves at powers of two.
/// #[derive(Debug)]
/// struct Doubling;
///
/// impl SavePolicy for Doubling {
///     fn is_due(&self, context: &SaveContext) -> bool {
///         context.step.is_power_of_two()
///     }
/// }
///
/// assert!(Doubling.is_due(&SaveContext::new(8)) && !Doubling.is_due(&SaveContext::new(9)));
/// ```
pub trait SavePolicy: Debug + Send {
    /// Returns `true` if a save is due. Called by every `save_if_due`, so it must be fast.
    fn is_due(&self, context: &SaveContext) -> bool;
}

/// Saves when at least this many steps have passed since the last save, the restored checkpoint, or step 0. The short
/// form is [`save_every`](crate::CheckpointManagerBuilder::save_every).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EverySteps(pub u64);

impl SavePolicy for EverySteps {
    fn is_due(&self, context: &SaveContext) -> bool {
        context.step >= context.last_saved.unwrap_or(0).saturating_add(self.0)
    }
}

/// Saves when at least this much time has passed since the last save or restore, or since the manager was opened. The
/// time is measured by a monotonic clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EveryDuration(pub Duration);

impl SavePolicy for EveryDuration {
    fn is_due(&self, context: &SaveContext) -> bool {
        context.since_last_save >= self.0
    }
}

/// Saves at the given steps. If a call skips one of them, the save is due at that call.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AtSteps(BTreeSet<u64>);

impl AtSteps {
    /// Returns the given steps, in any order.
    pub fn new(steps: impl IntoIterator<Item = u64>) -> AtSteps {
        AtSteps(steps.into_iter().collect())
    }
}

impl SavePolicy for AtSteps {
    fn is_due(&self, context: &SaveContext) -> bool {
        let SaveContext { step, previous, last_saved, .. } = *context;
        let from = previous.or(last_saved).map_or(step, |before| before.saturating_add(1));
        // A step that was passed and not saved is still due.
        let from = from.min(last_saved.map_or(from, |saved| saved.saturating_add(1)));
        from <= step && self.0.range(from..=step).next().is_some()
    }
}

/// Saves when nothing has been saved or restored yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct First;

impl SavePolicy for First {
    fn is_due(&self, context: &SaveContext) -> bool {
        context.last_saved.is_none()
    }
}

/// Saves as soon as the previous background save is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Continuous;

impl SavePolicy for Continuous {
    fn is_due(&self, context: &SaveContext) -> bool {
        !context.is_saving
    }
}
