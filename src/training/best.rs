//! The best value of a metric, and early stopping.

use crate::graph::{Node, Trackable, Value};
use crate::manager::retention::Goal;
use serde::{Deserialize, Serialize};

/// Returns the value that every other value improves on.
pub(super) fn worst(goal: Goal) -> f64 {
    match goal {
        Goal::Minimize => f64::INFINITY,
        Goal::Maximize => f64::NEG_INFINITY,
    }
}

/// Returns `true` if `new` is better than `old` by more than `min_change`.
fn is_better(goal: Goal, new: f64, old: f64, min_change: f64) -> bool {
    match goal {
        Goal::Minimize => new < old - min_change,
        Goal::Maximize => new > old + min_change,
    }
}

/// Tracks the best value of a metric and its step. Both survive a restart. Clones share the state.
///
/// ```
/// # fn main() -> tch_checkpoint::Result<()> {
/// use tch_checkpoint::{BestMetric, Checkpoint, Goal};
/// let best = BestMetric::new(Goal::Maximize);
/// let checkpoint = Checkpoint::new().track("best_accuracy", &best)?;
/// assert!(best.observe(100, 0.5));
/// assert!(!best.observe(200, 0.4));
/// assert_eq!((best.step(), best.value()), (Some(100), Some(0.5)));
/// # let _ = checkpoint;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct BestMetric {
    goal: Goal,
    min_change: f64,
    best: Value<Option<Best>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Best {
    step: u64,
    value: f64,
}

impl BestMetric {
    /// Creates a tracker that has observed nothing.
    #[must_use]
    pub fn new(goal: Goal) -> BestMetric {
        BestMetric { goal, min_change: 0.0, best: Value::new(None) }
    }

    /// Sets the minimum change that counts as an improvement. Defaults to 0.
    #[must_use]
    pub fn min_change(mut self, change: f64) -> Self {
        self.min_change = change;
        self
    }

    /// Records the value of a step. Returns whether it is the best so far; NaN and infinite values never are.
    pub fn observe(&self, step: u64, value: f64) -> bool {
        self.best.update(|best| {
            let is_better =
                value.is_finite() && best.is_none_or(|best| is_better(self.goal, value, best.value, self.min_change));
            if is_better {
                *best = Some(Best { step, value });
            }
            is_better
        })
    }

    /// Returns the best value.
    #[must_use]
    pub fn value(&self) -> Option<f64> {
        self.best.get().map(|best| best.value)
    }

    /// Returns the step of the best value.
    #[must_use]
    pub fn step(&self) -> Option<u64> {
        self.best.get().map(|best| best.step)
    }
}

impl Trackable for BestMetric {
    fn node(&self) -> Node {
        self.best.node()
    }
}

/// The result of [`EarlyStopping::observe`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Stop {
    /// Continue.
    No,
    /// There was no improvement for longer than the patience.
    NoImprovement,
    /// The metric is beyond the divergence limit, infinite, or not a number.
    Diverged,
    /// The metric has reached the target.
    Reached,
}

/// Decides when to stop: when a metric has not improved for some time, has diverged, or is good enough. Its state,
/// including the decision to stop, survives a restart. Clones share the state.
///
/// ```
/// # fn main() -> tch_checkpoint::Result<()> {
/// use tch_checkpoint::{Checkpoint, EarlyStopping, Goal};
/// let stopping = EarlyStopping::new(Goal::Minimize).patience(2).min_change(0.01).divergence(100.0);
/// let checkpoint = Checkpoint::new().track("stopping", &stopping)?;
/// let losses = [1.0, 0.5, 0.6, 0.495, 0.55, 0.3];
/// let steps = (0..).zip(losses).take_while(|&(step, loss)| !stopping.observe(step, loss).is_stop());
/// assert_eq!(steps.count(), 3); // the fourth is 0.005 better only
/// assert_eq!(stopping.best().value(), Some(0.5));
/// # let _ = checkpoint;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct EarlyStopping {
    patience: u64,
    divergence: Option<f64>,
    target: Option<f64>,
    best: BestMetric,
    state: Value<State>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct State {
    bad: u64,
    stop: Stop,
}

impl Stop {
    /// Returns `true` if it is time to stop.
    #[must_use]
    pub fn is_stop(self) -> bool {
        self != Stop::No
    }
}

impl EarlyStopping {
    /// Creates the decision with a patience of 3.
    #[must_use]
    pub fn new(goal: Goal) -> EarlyStopping {
        let state = Value::new(State { bad: 0, stop: Stop::No });
        EarlyStopping { patience: 3, divergence: None, target: None, best: BestMetric::new(goal), state }
    }

    /// Sets the number of consecutive observations without an improvement after which to stop. Defaults to 3; 0 is
    /// taken as 1.
    #[must_use]
    pub fn patience(mut self, observations: u64) -> Self {
        self.patience = observations.max(1);
        self
    }

    /// Sets the minimum change that counts as an improvement. Defaults to 0.
    #[must_use]
    pub fn min_change(mut self, change: f64) -> Self {
        self.best = self.best.min_change(change);
        self
    }

    /// Stops as soon as the metric is worse than this. Not set by default.
    #[must_use]
    pub fn divergence(mut self, limit: f64) -> Self {
        self.divergence = Some(limit);
        self
    }

    /// Stops as soon as the metric is at least this good. Not set by default.
    #[must_use]
    pub fn target(mut self, target: f64) -> Self {
        self.target = Some(target);
        self
    }

    /// Records the value of a step. A decision to stop is final, whatever values follow; call
    /// [`reset`](EarlyStopping::reset) to continue training.
    pub fn observe(&self, step: u64, value: f64) -> Stop {
        let is_best = self.best.observe(step, value);
        let goal = self.best.goal;
        self.state.update(|state| {
            if state.stop.is_stop() {
                return state.stop;
            }
            state.bad = if is_best { 0 } else { state.bad.saturating_add(1) };
            state.stop =
                if !value.is_finite() || self.divergence.is_some_and(|limit| is_better(goal, limit, value, 0.0)) {
                    Stop::Diverged
                } else if self.target.is_some_and(|target| !is_better(goal, target, value, 0.0)) {
                    Stop::Reached
                } else if state.bad >= self.patience {
                    Stop::NoImprovement
                } else {
                    Stop::No
                };
            state.stop
        })
    }

    /// Returns the last decision, including that of a restored run.
    #[must_use]
    pub fn stop(&self) -> Stop {
        self.state.get().stop
    }

    /// Restarts the count of the patience and keeps the best value.
    pub fn reset(&self) {
        self.state.set(State { bad: 0, stop: Stop::No });
    }

    /// Returns the best value so far and its step.
    #[must_use]
    pub fn best(&self) -> &BestMetric {
        &self.best
    }
}

impl Trackable for EarlyStopping {
    fn node(&self) -> Node {
        Node::group([("best", self.best.node()), ("state", self.state.node())])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_to_stop() {
        let new = || EarlyStopping::new(Goal::Maximize).patience(2).divergence(0.1).target(0.9);
        for (values, stop) in [
            (&[0.5, 0.6, 0.7][..], Stop::No),
            (&[0.5, 0.5, 0.5], Stop::NoImprovement),
            (&[0.5, 0.4, 0.6, 0.5], Stop::No),
            (&[0.5, 0.05], Stop::Diverged),
            (&[f64::NAN], Stop::Diverged),
            (&[0.5, f64::INFINITY], Stop::Diverged),
            (&[0.5, 0.9], Stop::Reached),
        ] {
            let stopping = new();
            let last = values.iter().fold(Stop::No, |_, value| stopping.observe(1, *value));
            assert_eq!(last, stop, "{values:?}");
            assert_eq!(stopping.stop(), stop);
        }
    }

    #[test]
    fn what_it_has_said_stays() {
        let stopping = EarlyStopping::new(Goal::Minimize).patience(1);
        stopping.observe(1, 1.0);
        assert_eq!(stopping.observe(2, 1.0), Stop::NoImprovement);
        assert_eq!(stopping.observe(3, 0.5), Stop::NoImprovement);
        stopping.reset();
        assert_eq!(stopping.observe(4, 0.4), Stop::No);
        assert_eq!((stopping.best().step(), stopping.best().value()), (Some(4), Some(0.4)));
    }

    #[test]
    fn an_infinite_value_is_never_the_best() {
        for (goal, infinite) in [(Goal::Minimize, f64::NEG_INFINITY), (Goal::Maximize, f64::INFINITY)] {
            let best = BestMetric::new(goal);
            assert!(!best.observe(1, infinite) && !best.observe(2, -infinite) && best.value().is_none());
            assert!(best.observe(3, 0.5) && !best.observe(4, infinite));
            assert_eq!((best.step(), best.value()), (Some(3), Some(0.5)));
        }
    }

    #[test]
    fn a_change_must_be_large_enough_and_nan_is_never_the_best() {
        let best = BestMetric::new(Goal::Minimize).min_change(0.1);
        assert!(!best.observe(0, f64::NAN) && best.value().is_none());
        assert!(best.observe(1, 1.0) && !best.observe(2, 0.95) && best.observe(3, 0.8) && !best.observe(4, f64::NAN));
        assert_eq!(best.step(), Some(3));
    }
}
