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

#[cfg(feature = "signals")]
use super::preemption::Signal;
#[cfg(feature = "signals")]
use crate::error::{Error, Result};
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::time::{Duration, Instant};
#[cfg(feature = "signals")]
use std::{
    sync::atomic::{AtomicBool, Ordering},
    sync::{Arc, Mutex, PoisonError},
};

/// The information on which a policy bases its decision.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SaveContext {
    /// The step of this call.
    pub step: u64,
    /// The step of the previous call, if there was one since the manager was opened.
    pub previous: Option<u64>,
    /// The lowest step of a call since the manager was opened, this one included; for exports, also of a restored
    /// checkpoint.
    pub first: u64,
    /// The step that was saved last; after a restore, the step of the restored checkpoint. Checkpoints without a step
    /// ([`save`](crate::CheckpointManager::save)) do not count: after a restore of one, it is the step of the last
    /// checkpoint before it that has one and is still there.
    pub last_saved: Option<u64>,
    /// The time since the last save or restore, or since the manager was opened.
    pub since_last_save: Duration,
    /// Whether a save is being written in the background.
    pub is_saving: bool,
    /// When that last save or restore was; `None` if nobody says.
    pub(super) last_save_at: Option<Instant>,
    /// Whether anything was saved or restored, also without a step.
    pub(super) has_saved: bool,
}

impl SaveContext {
    /// Creates a context in which nothing was saved before `step`. Set the public fields as needed, for example in
    /// tests.
    #[must_use]
    pub fn new(step: u64) -> SaveContext {
        SaveContext {
            step,
            previous: None,
            first: step,
            last_saved: None,
            since_last_save: Duration::ZERO,
            is_saving: false,
            last_save_at: None,
            has_saved: false,
        }
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
    /// Returns `true` if a save is due. Every `save_if_due` asks each policy once, whatever the others say, so it must
    /// be fast. It asks none if it returns the error of a background save.
    fn is_due(&self, context: &SaveContext) -> bool;
}

/// Saves when at least this many steps have passed since the last save, the restored checkpoint, or step 0. Checkpoints
/// without a step ([`save`](crate::CheckpointManager::save)) do not count. 0 saves at every call. The short form is
/// [`save_every`](crate::CheckpointManagerBuilder::save_every).
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
    /// Creates a policy for the given steps, in any order.
    pub fn new(steps: impl IntoIterator<Item = u64>) -> AtSteps {
        AtSteps(steps.into_iter().collect())
    }
}

impl SavePolicy for AtSteps {
    fn is_due(&self, context: &SaveContext) -> bool {
        let SaveContext { step, previous, first, last_saved, .. } = *context;
        let from = previous.or(last_saved).map_or(step, |before| before.saturating_add(1));
        // A step that was passed and not saved is still due.
        let from = from.min(last_saved.map_or(first, |saved| saved.saturating_add(1)));
        from <= step && self.0.range(from..=step).next().is_some()
    }
}

/// Saves when nothing has been saved or restored yet, with a step or without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct First;

impl SavePolicy for First {
    fn is_due(&self, context: &SaveContext) -> bool {
        context.last_saved.is_none() && !context.has_saved
    }
}

/// Saves as soon as the previous background save is durable.
///
/// ```no_run
/// # fn main() -> tch_checkpoint::Result<()> {
/// # let checkpoint = tch_checkpoint::Checkpoint::new();
/// use tch_checkpoint::save_policy::Continuous;
/// use tch_checkpoint::{Background, CheckpointManager};
/// let mut manager = CheckpointManager::builder(checkpoint, "checkpoints/run")
///     .save_when(Continuous)
///     .background(Background::new())
///     .open()?;
/// # let _ = &mut manager;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Continuous;

impl SavePolicy for Continuous {
    fn is_due(&self, context: &SaveContext) -> bool {
        !context.is_saving
    }
}

/// Saves when the process receives a signal, and training continues: for use before maintenance, or to look at the
/// present state.
///
/// The handler only sets a flag, which the next `save_if_due` checks. Several signals before that call count as one. A
/// save that fails is due again. The handler stays until the process ends, and handlers that were installed before are
/// called as well. Use a signal that no [`Preemption`](crate::Preemption) ends the run on.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let temp = tempfile::tempdir()?;
/// # let dir = temp.path().join("run");
/// use tch_checkpoint::save_policy::OnSignal;
/// use tch_checkpoint::{Checkpoint, CheckpointManager, Counter, Signal};
/// let checkpoint = Checkpoint::new().track("step", &Counter::new(0))?;
/// let manager = CheckpointManager::builder(checkpoint, &dir)
///     .save_every(1000)
///     .save_when(OnSignal::new(Signal::Usr2)?) // kill -USR2 PID
///     .open()?;
/// # Ok(())
/// # }
/// ```
#[cfg(feature = "signals")]
#[derive(Debug)]
pub struct OnSignal {
    signal: Signal,
    arrived: Arc<AtomicBool>,
    /// When the signal was seen that is not answered yet.
    seen: Mutex<Option<Instant>>,
}

#[cfg(feature = "signals")]
impl OnSignal {
    /// Installs a handler for the signal.
    ///
    /// # Errors
    /// [`Error::Io`] if the system refuses the handler.
    pub fn new(signal: Signal) -> Result<OnSignal> {
        let arrived = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(signal.number(), arrived.clone())
            .map_err(|e| Error::io("set a handler for", format!("the signal {signal:?}"), e))?;
        Ok(OnSignal { signal, arrived, seen: Mutex::new(None) })
    }

    /// Returns the signal.
    #[must_use]
    pub fn signal(&self) -> Signal {
        self.signal
    }
}

#[cfg(feature = "signals")]
impl SavePolicy for OnSignal {
    fn is_due(&self, context: &SaveContext) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if self.arrived.swap(false, Ordering::Relaxed) {
            *seen = Some(Instant::now());
        }
        // Nothing has been saved since, or what was has failed.
        let is_due = seen.is_some_and(|seen| context.last_save_at.is_none_or(|saved| saved <= seen));
        if !is_due && !context.is_saving {
            *seen = None;
        }
        is_due
    }
}

/// Returns the interval between saves that minimizes the expected loss of time, if training stops for `cost` per save
/// and the run fails once per `time_between_failures` on average. Use it with [`EveryDuration`].
///
/// With background saves, `cost` is the time of the call, not the time until the checkpoint is durable; an interval
/// shorter than the latter gains nothing.
///
/// The formula is that of J. T. Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps",
/// Future Generation Computer Systems 22(3), 2006. With cost δ and time between failures M it is
/// `sqrt(2δM) · (1 + sqrt(δ / 2M) / 3 + (δ / 2M) / 9) − δ` if `δ < 2M`, else `M`. It refines `sqrt(2δM)` of J. W.
/// Young, "A first order approximation to the optimum checkpoint interval", Communications of the ACM 17(9), 1974.
///
/// ```
/// use std::time::Duration;
/// use tch_checkpoint::save_policy::{EveryDuration, recommended_interval};
/// let (cost, time_between_failures) = (Duration::from_secs(2), Duration::from_secs(24 * 3600));
/// let policy = EveryDuration(recommended_interval(cost, time_between_failures));
/// assert_eq!(policy.0.as_secs(), 586);
/// ```
#[must_use]
pub fn recommended_interval(cost: Duration, time_between_failures: Duration) -> Duration {
    let twice = time_between_failures.saturating_mul(2);
    if cost >= twice {
        return time_between_failures;
    }
    // The formula divided by M, in x = sqrt(δ / 2M), which is below 1: so it is at most 8/9.
    let x = cost.div_duration_f64(twice).sqrt();
    time_between_failures.mul_f64(2.0 * x - 4.0 / 3.0 * x * x + 2.0 / 9.0 * x * x * x)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The formula as it is printed.
    fn daly(cost: f64, mean: f64) -> f64 {
        let ratio = cost / (2.0 * mean);
        (2.0 * cost * mean).sqrt() * (1.0 + ratio.sqrt() / 3.0 + ratio / 9.0) - cost
    }

    #[test]
    fn the_interval_is_that_of_daly() {
        let interval = |cost, mean| recommended_interval(Duration::from_secs_f64(cost), Duration::from_secs_f64(mean));
        for (cost, mean) in [(2.0, 86_400.0), (0.001, 3600.0), (60.0, 600.0), (300.0, 3600.0), (1.9, 1.0)] {
            let (found, expected) = (interval(cost, mean).as_secs_f64(), daly(cost, mean));
            assert!((found - expected).abs() < 1e-6 * expected, "{cost}, {mean}: {found} instead of {expected}");
        }
        // Young's is close to it where saves are cheap.
        let young = (2.0 * 2.0 * 86_400.0f64).sqrt();
        assert!((interval(2.0, 86_400.0).as_secs_f64() / young - 1.0).abs() < 0.003);
        assert_eq!(interval(2.0, 1.0), Duration::from_secs(1));
        assert_eq!(interval(0.0, 1.0), Duration::ZERO);
        assert_eq!(interval(0.0, 0.0), Duration::ZERO);
        assert!(recommended_interval(Duration::from_secs(1), Duration::MAX) < Duration::MAX);
        assert_eq!(recommended_interval(Duration::MAX, Duration::from_secs(1)), Duration::from_secs(1));
    }

    /// The loss that the interval is to make small, from a model of its own: a run with failures at exponential
    /// intervals, in which a save or the work before it is lost if a failure comes meanwhile.
    #[test]
    fn no_other_interval_loses_much_less() {
        let (cost, mean) = (30.0, 1800.0);
        // The expected time per interval until work and save are done without a failure, per second of work.
        let time = |work: f64| mean * (((work + cost) / mean).exp() - 1.0) / work;
        let best = recommended_interval(Duration::from_secs_f64(cost), Duration::from_secs_f64(mean)).as_secs_f64();
        for factor in [0.25, 0.5, 0.8, 0.95, 1.05, 1.2, 2.0, 4.0] {
            assert!(time(best) <= time(best * factor), "{factor} of {best} s");
        }
    }

    #[cfg(feature = "signals")]
    #[test]
    fn a_signal_is_answered_by_one_save_that_succeeds() -> Result<()> {
        let policy = OnSignal::new(Signal::Usr2)?;
        let is_due = |last_save_at, is_saving| {
            policy.is_due(&SaveContext { last_save_at: Some(last_save_at), is_saving, ..SaveContext::new(0) })
        };
        let arrive = || policy.arrived.store(true, Ordering::Relaxed);
        let opened = Instant::now();
        assert!(!is_due(opened, false));
        arrive();
        assert!(is_due(opened, false));
        // It waits: it is still due.
        assert!(is_due(opened, false));
        // It is being written, has failed, and is due again; then it is durable.
        assert!(!is_due(Instant::now(), true));
        assert!(is_due(opened, false));
        let saved = Instant::now();
        assert!(!is_due(saved, true));
        assert!(!is_due(saved, false));
        assert!(!is_due(opened, false));
        // One that comes while another is written is another.
        arrive();
        assert!(is_due(saved, true));
        let saved = Instant::now();
        assert!(!is_due(saved, false));
        // Also if what was being written fails, and however many come.
        arrive();
        assert!(is_due(saved, true));
        arrive();
        assert!(is_due(opened, false));
        assert!(is_due(opened, false));
        assert!(!is_due(Instant::now(), false));
        Ok(())
    }
}
