//! Retention policies: which checkpoints a [`CheckpointManager`](crate::CheckpointManager) keeps.
//!
//! A policy is a value that decides which of a list of checkpoints it keeps, and why. Policies combine: a checkpoint is
//! kept if any policy keeps it. Some checkpoints are kept regardless of the policies:
//!
//! * the newest checkpoint, and the newest healthy one;
//! * permanent and pinned checkpoints;
//! * the checkpoint that a run was restored from, until a newer healthy one exists
//!   ([`protect_restored`](crate::CheckpointManagerBuilder::protect_restored));
//! * all checkpoints, while one that would be kept cannot be read. One that has lost files is moved aside
//!   (`damaged-…`), and others are kept in its place.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let temp = tempfile::tempdir()?;
//! # let dir = temp.path().join("run");
//! use std::time::Duration;
//! use tch_checkpoint::retention::{Best, EveryNSteps, Goal};
//! use tch_checkpoint::{Checkpoint, CheckpointManager, Counter};
//!
//! let step = Counter::new(0);
//! let checkpoint = Checkpoint::new().track("step", &step)?;
//! let mut manager = CheckpointManager::builder(checkpoint, &dir)
//!     .max_to_keep(2) // the newest two,
//!     .keep(Best::new("loss", Goal::Minimize, 1)) // the best one,
//!     .keep(EveryNSteps(4)) // those of steps 4, 8, …,
//!     .keep_every(Duration::from_secs(3600)) // and one per hour, permanently
//!     .open()?;
//! for loss in [0.9, 0.2, 0.5, 0.6, 0.7, 0.8, 0.4] {
//!     step.increment();
//!     manager.save_with_metrics(step.get(), [("loss", loss)])?;
//! }
//! assert_eq!(manager.checkpoints(), [2, 4, 6, 7].map(|step| dir.join(format!("ckpt-{step}"))));
//! # Ok(())
//! # }
//! ```
//!
//! A decision depends only on the checkpoints in the directory, on the policies, and on the time. After a restart, a
//! loss of the index, or a change of policies, the decision is therefore that of an uninterrupted run with the same
//! policies and checkpoints. A time in the future, from a wrong clock, counts as the present.

mod best;
mod decide;
mod every;
mod every_n_steps;
mod every_n_steps_closest;
mod info;
mod latest;
mod steps;
mod younger_than;

pub use best::{Best, Goal};
pub use decide::{Explanation, KeptBy};
pub use every::Every;
pub use every_n_steps::EveryNSteps;
pub use every_n_steps_closest::EveryNStepsClosest;
pub use info::CheckpointInfo;
pub use latest::Latest;
pub use steps::Steps;
pub use younger_than::YoungerThan;

pub(crate) use decide::{Retention, labels};

use chrono::{DateTime, TimeDelta, Utc};
use std::fmt::{self, Debug, Display};
use std::sync::Arc;
use std::time::Duration;

/// Decides which checkpoints are kept.
///
/// An implementation is a pure function of its arguments. Its decision about a checkpoint must not depend on the
/// presence of another one that it does not keep.
///
/// [`explain`](crate::CheckpointManager::explain) prints the policy's [`label`](RetentionPolicy::label) before each
/// reason, such as `the newest 2`.
///
/// An [`Arc`] of a policy is a policy. A wrapper forwards every method, the provided ones too.
///
/// ```
/// use tch_checkpoint::chrono::{DateTime, Utc};
/// use tch_checkpoint::retention::{CheckpointInfo, Reason, RetentionPolicy};
///
/// /// Keeps checkpoints below a loss.
/// #[derive(Debug)]
/// struct Below(f64);
///
/// impl RetentionPolicy for Below {
///     fn keep(&self, checkpoints: &[CheckpointInfo], _now: DateTime<Utc>) -> Vec<Option<Reason>> {
///         let is_below = |info: &CheckpointInfo| info.metrics.get("loss").is_some_and(|loss| *loss < self.0);
///         checkpoints.iter().map(|info| is_below(info).then(|| Reason::new("its loss is low"))).collect()
///     }
/// }
///
/// let mut checkpoint = CheckpointInfo::new("ckpt-10", Utc::now());
/// checkpoint.metrics.insert("loss".into(), 0.1);
/// assert!(Below(0.5).keep(&[checkpoint], Utc::now())[0].is_some());
/// ```
pub trait RetentionPolicy: Debug + Send + Sync {
    /// Returns, for each of `checkpoints`, why this policy keeps it, or `None` if it does not.
    ///
    /// The list has the healthy checkpoints of one run, oldest first, in the order in which they were saved. Steps and
    /// times need not increase in it. If the returned list has another length than `checkpoints`, or this panics,
    /// nothing is removed. A panic of another method of a policy counts as if it were not implemented, and a policy whose
    /// label panics is called `a policy that does not say its name`.
    fn keep(&self, checkpoints: &[CheckpointInfo], now: DateTime<Utc>) -> Vec<Option<Reason>>;

    /// Returns the name of this policy for users, such as `the newest 2`. The policies of this crate return their
    /// [`Display`] form. Defaults to the [`Debug`] form.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tch_checkpoint::retention::{Best, Every, Goal, Latest, RetentionPolicy, Steps, YoungerThan};
    /// let policies: [(&dyn RetentionPolicy, &str); 6] = [
    ///     (&Latest(3), "the newest 3"),
    ///     (&Best::new("loss", Goal::Minimize, 2), "the 2 with the lowest \"loss\""),
    ///     (&Every(Duration::from_secs(6 * 60 * 60)), "one per 6 hours"),
    ///     (&Every(Duration::from_secs(60)), "one per minute"),
    ///     (&Steps::new([500, 100]), "the steps 100, 500"),
    ///     (&YoungerThan(Duration::from_secs(24 * 60 * 60)), "younger than 1 day"),
    /// ];
    /// for (policy, label) in policies {
    ///     assert_eq!(policy.label(), label);
    /// }
    /// ```
    fn label(&self) -> String {
        format!("{self:?}")
    }

    /// Returns the maximum number of checkpoints that this policy keeps, for the warning that there is too little
    /// space. Defaults to `None`: there is no maximum.
    fn bound(&self) -> Option<usize> {
        None
    }

    /// Returns the [`counted_from`](CheckpointInfo::counted_from) to record in the checkpoint that follows
    /// `checkpoints`. Only [`Every`] uses it. Defaults to `None`.
    fn counted_from(&self, checkpoints: &[CheckpointInfo], now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let _ = (checkpoints, now);
        None
    }
}

impl<P: RetentionPolicy + ?Sized> RetentionPolicy for Arc<P> {
    fn keep(&self, checkpoints: &[CheckpointInfo], now: DateTime<Utc>) -> Vec<Option<Reason>> {
        (**self).keep(checkpoints, now)
    }

    fn label(&self) -> String {
        (**self).label()
    }

    fn bound(&self) -> Option<usize> {
        (**self).bound()
    }

    fn counted_from(&self, checkpoints: &[CheckpointInfo], now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        (**self).counted_from(checkpoints, now)
    }
}

/// Formats a duration in words, in the largest unit that divides it: `1 day`, or `day` in the alternate form.
struct Span(Duration);

impl Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        if self.0.subsec_nanos() != 0 || seconds == 0 {
            return write!(f, "{:?}", self.0);
        }
        let units = [(86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second")];
        let (length, unit) =
            units.into_iter().find(|(length, _)| seconds.is_multiple_of(*length)).unwrap_or((1, "second"));
        match seconds / length {
            1 if f.alternate() => f.write_str(unit),
            1 => write!(f, "1 {unit}"),
            count => write!(f, "{count} {unit}s"),
        }
    }
}

/// Why a policy keeps a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reason {
    /// Why it is kept: a clause such as "it is among the newest 3".
    pub why: String,
    /// What would end that: a clause such as "2 newer ones are saved". `None` if nothing does.
    pub until: Option<String>,
    /// Whether the checkpoint is marked as permanent as soon as nothing else keeps it.
    pub for_good: bool,
}

impl Reason {
    /// Creates a reason without a known end.
    pub fn new(why: impl Into<String>) -> Reason {
        Reason { why: why.into(), until: None, for_good: false }
    }

    /// Sets what would end it.
    #[must_use]
    pub fn until(mut self, until: impl Into<String>) -> Reason {
        self.until = Some(until.into());
        self
    }

    /// Keeps the checkpoint permanently, even if the policies change: it is marked when no other policy keeps it.
    #[must_use]
    pub fn for_good(mut self) -> Reason {
        self.for_good = true;
        self
    }
}

impl Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.why)?;
        match &self.until {
            Some(until) => write!(f, ", until {until}"),
            None => Ok(()),
        }
    }
}

/// Converts a duration, saturating.
fn delta(duration: Duration) -> TimeDelta {
    TimeDelta::from_std(duration).unwrap_or(TimeDelta::MAX)
}

/// "1 newer one is", "2 newer ones are".
fn newer(count: usize) -> String {
    if count == 1 { "1 newer one is".to_string() } else { format!("{count} newer ones are") }
}
