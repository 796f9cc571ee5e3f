//! A learning rate that is reduced when a metric stops improving.

use super::best::worst;
use crate::graph::{Node, Trackable, Value};
use crate::manager::retention::Goal;
use serde::{Deserialize, Serialize};

/// Reduces the learning rate when a metric has not improved for some time, like PyTorch's `ReduceLROnPlateau`.
///
/// Its state (learning rate, best value, remaining patience, cooldown) is saved and restored; the options are not.
/// Clones share the state.
///
/// ```
/// # fn main() -> tch_checkpoint::Result<()> {
/// use tch_checkpoint::{Checkpoint, Goal, ReduceOnPlateau};
/// let plateau = ReduceOnPlateau::new(0.1, Goal::Minimize).factor(0.5).patience(1);
/// let checkpoint = Checkpoint::new().track("plateau", &plateau)?;
/// for loss in [1.0, 2.0, 2.0] {
///     plateau.observe(loss); // after every validation
///     // optimizer.set_lr(plateau.lr());
/// }
/// assert_eq!(plateau.lr(), 0.05);
/// # let _ = checkpoint;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct ReduceOnPlateau {
    goal: Goal,
    initial: f64,
    factor: f64,
    patience: u64,
    threshold: f64,
    absolute: bool,
    cooldown: u64,
    min: f64,
    eps: f64,
    state: Value<State>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct State {
    lr: f64,
    best: Option<f64>,
    bad: u64,
    cooldown: u64,
}

impl ReduceOnPlateau {
    /// Creates the reduction with the initial learning rate `lr`.
    #[must_use]
    pub fn new(lr: f64, goal: Goal) -> ReduceOnPlateau {
        let state = State { lr, best: None, bad: 0, cooldown: 0 };
        ReduceOnPlateau {
            goal,
            initial: lr,
            factor: 0.1,
            patience: 10,
            threshold: 1e-4,
            absolute: false,
            cooldown: 0,
            min: 0.0,
            eps: 1e-8,
            state: Value::new(state),
        }
    }

    /// Sets the factor of a reduction. Defaults to 0.1.
    #[must_use]
    pub fn factor(mut self, factor: f64) -> Self {
        self.factor = factor;
        self
    }

    /// Sets how many consecutive observations without an improvement are tolerated before the learning rate is reduced.
    /// Defaults to 10.
    #[must_use]
    pub fn patience(mut self, observations: u64) -> Self {
        self.patience = observations;
        self
    }

    /// Sets the relative change of the best value that counts as an improvement. Defaults to 0.0001.
    #[must_use]
    pub fn threshold(mut self, relative: f64) -> Self {
        (self.threshold, self.absolute) = (relative, false);
        self
    }

    /// Sets the absolute change that counts as an improvement, instead of a relative one.
    #[must_use]
    pub fn absolute_threshold(mut self, change: f64) -> Self {
        (self.threshold, self.absolute) = (change, true);
        self
    }

    /// Sets the number of observations after a reduction that do not count. Defaults to 0.
    #[must_use]
    pub fn cooldown(mut self, observations: u64) -> Self {
        self.cooldown = observations;
        self
    }

    /// Sets the minimum learning rate. Defaults to 0.
    #[must_use]
    pub fn min_lr(mut self, lr: f64) -> Self {
        self.min = lr;
        self
    }

    /// Sets the minimum reduction; smaller ones are not applied. Defaults to 1e-8.
    #[must_use]
    pub fn eps(mut self, eps: f64) -> Self {
        self.eps = eps;
        self
    }

    /// Records a value of the metric. Returns whether the learning rate was reduced. NaN is not an improvement.
    pub fn observe(&self, metric: f64) -> bool {
        self.state.update(|state| {
            match self.is_better(metric, state.best) {
                true => (state.best, state.bad) = (Some(metric), 0),
                false => state.bad = state.bad.saturating_add(1),
            }
            if state.cooldown > 0 {
                (state.cooldown, state.bad) = (state.cooldown - 1, 0);
            }
            if state.bad <= self.patience {
                return false;
            }
            (state.cooldown, state.bad) = (self.cooldown, 0);
            let reduced = (state.lr * self.factor).max(self.min);
            let is_reduced = state.lr - reduced > self.eps;
            if is_reduced {
                state.lr = reduced;
            }
            is_reduced
        })
    }

    fn is_better(&self, metric: f64, best: Option<f64>) -> bool {
        let best = best.unwrap_or(worst(self.goal));
        match (self.goal, self.absolute) {
            (Goal::Minimize, false) => metric < best * (1.0 - self.threshold),
            (Goal::Minimize, true) => metric < best - self.threshold,
            (Goal::Maximize, false) => metric > best * (1.0 + self.threshold),
            (Goal::Maximize, true) => metric > best + self.threshold,
        }
    }

    /// Returns the current learning rate.
    #[must_use]
    pub fn lr(&self) -> f64 {
        self.state.get().lr
    }

    /// Returns the current learning rate divided by the initial one, for parameter groups with rates of their own or to
    /// scale a [`Schedule`](super::Schedule).
    #[must_use]
    pub fn scale(&self) -> f64 {
        self.state.get().lr / self.initial
    }

    /// Returns the best value so far.
    #[must_use]
    pub fn best(&self) -> Option<f64> {
        self.state.get().best
    }
}

impl Trackable for ReduceOnPlateau {
    fn node(&self) -> Node {
        self.state.node()
    }
}
