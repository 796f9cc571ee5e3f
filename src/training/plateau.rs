//! A learning rate that is reduced when a metric stops to improve.

use super::best::worst;
use crate::graph::{Node, Trackable, Value};
use crate::manager::retention::Goal;
use serde::{Deserialize, Serialize};

/// Reduces the learning rate when a metric has not improved for some time, as PyTorch's `ReduceLROnPlateau`.
///
/// Its state (learning rate, best value, patience that is left, cooldown) is saved and restored. The options are the
/// program's. Clones share the state.
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
    /// Begins with the learning rate `lr`.
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

    /// What the learning rate is multiplied by. Defaults to 0.1.
    #[must_use]
    pub fn factor(mut self, factor: f64) -> Self {
        self.factor = factor;
        self
    }

    /// How many observations in a row may be no improvement before the one that reduces the learning rate. Defaults to
    /// 10.
    #[must_use]
    pub fn patience(mut self, observations: u64) -> Self {
        self.patience = observations;
        self
    }

    /// What counts as an improvement: a change by more than this part of the best value. Defaults to 0.0001.
    #[must_use]
    pub fn threshold(mut self, relative: f64) -> Self {
        (self.threshold, self.absolute) = (relative, false);
        self
    }

    /// What counts as an improvement: a change by more than this.
    #[must_use]
    pub fn absolute_threshold(mut self, change: f64) -> Self {
        (self.threshold, self.absolute) = (change, true);
        self
    }

    /// How many observations after a reduction do not count. Defaults to 0.
    #[must_use]
    pub fn cooldown(mut self, observations: u64) -> Self {
        self.cooldown = observations;
        self
    }

    /// The learning rate is never reduced below this. Defaults to 0.
    #[must_use]
    pub fn min_lr(mut self, lr: f64) -> Self {
        self.min = lr;
        self
    }

    /// A reduction by no more than this is not made. Defaults to 1e-8.
    #[must_use]
    pub fn eps(mut self, eps: f64) -> Self {
        self.eps = eps;
        self
    }

    /// Takes in a value of the metric. Returns whether the learning rate was reduced. NaN is no improvement.
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

    /// Returns the learning rate as it is now.
    pub fn lr(&self) -> f64 {
        self.state.get().lr
    }

    /// Returns the learning rate as a part of the one that it began with: for parameter groups with rates of their own,
    /// or to scale a [`Schedule`](super::Schedule).
    pub fn scale(&self) -> f64 {
        self.state.get().lr / self.initial
    }

    /// Returns the best value so far.
    pub fn best(&self) -> Option<f64> {
        self.state.get().best
    }
}

impl Trackable for ReduceOnPlateau {
    fn node(&self) -> Node {
        self.state.node()
    }
}
