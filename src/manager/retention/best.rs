//! Keeps the best checkpoints by a metric.

use super::{CheckpointInfo, Reason, RetentionPolicy};
use chrono::{DateTime, Utc};
use std::cmp::Reverse;
use std::fmt;

/// Whether a lower or a higher value of a metric is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// Lower is better, as for a loss.
    Minimize,
    /// Higher is better, as for an accuracy.
    Maximize,
}

/// Keeps the best `n` checkpoints by a metric. Of two with the same value, the newer one counts as better.
///
/// A checkpoint without the metric, or with NaN or an infinite value, is not kept by this policy. If the metric is only
/// known later, keep the newest ones until then, with [`Latest`](super::Latest) or
/// [`max_to_keep`](crate::CheckpointManagerBuilder::max_to_keep).
///
/// ```
/// use tch_checkpoint::retention::{Best, CheckpointInfo, Goal, RetentionPolicy};
/// # use chrono::Utc;
/// let mut saved = ["ckpt-1", "ckpt-2", "ckpt-3"].map(|name| CheckpointInfo::new(name, Utc::now()));
/// for (info, accuracy) in saved.iter_mut().zip([0.7, 0.9, f64::NAN]) {
///     info.metrics.insert("accuracy".into(), accuracy);
/// }
/// let kept = Best::new("accuracy", Goal::Maximize, 1).keep(&saved, Utc::now());
/// assert_eq!(kept.iter().map(Option::is_some).collect::<Vec<_>>(), [false, true, false]);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Best {
    /// The name of the metric.
    pub metric: String,
    /// Whether lower or higher is better.
    pub goal: Goal,
    /// The number of checkpoints to keep.
    pub n: usize,
}

impl Best {
    /// Creates the policy for the best `n` by `metric`.
    pub fn new(metric: impl Into<String>, goal: Goal, n: usize) -> Best {
        Best { metric: metric.into(), goal, n }
    }

    /// Returns the best of the healthy ones among `checkpoints`, which are in the order in which they were saved.
    /// `None` if none has a finite value. `n` does not matter.
    ///
    /// ```
    /// use tch_checkpoint::retention::{Best, CheckpointInfo, Goal};
    /// # use chrono::Utc;
    /// let mut saved = ["ckpt-1", "ckpt-2"].map(|name| CheckpointInfo::new(name, Utc::now()));
    /// for (info, loss) in saved.iter_mut().zip([0.5, 0.1]) {
    ///     info.metrics.insert("loss".into(), loss);
    /// }
    /// saved[1].non_finite.push("model/weight".into());
    /// let best = Best::new("loss", Goal::Minimize, 1).choose(&saved);
    /// assert_eq!(best.map(|info| info.name.as_str()), Some("ckpt-1"));
    /// ```
    #[must_use]
    pub fn choose<'a>(&self, checkpoints: &'a [CheckpointInfo]) -> Option<&'a CheckpointInfo> {
        checkpoints.get(self.place(checkpoints)?)
    }

    /// Returns the index of [the best](Best::choose).
    pub(crate) fn place(&self, checkpoints: &[CheckpointInfo]) -> Option<usize> {
        self.order(checkpoints).into_iter().find(|&at| checkpoints[at].is_healthy())
    }

    /// Returns the indices of the checkpoints that have the metric, best first.
    fn order(&self, checkpoints: &[CheckpointInfo]) -> Vec<usize> {
        let value = |at: usize| checkpoints[at].metrics.get(&self.metric).copied().filter(|value| value.is_finite());
        let mut places: Vec<(usize, f64)> = (0..checkpoints.len()).filter_map(|at| Some((at, value(at)?))).collect();
        places.sort_by(|(a, left), (b, right)| {
            // -0 and 0 are the same value.
            let ascending = left.partial_cmp(right).unwrap_or(std::cmp::Ordering::Equal);
            let better = if self.goal == Goal::Minimize { ascending } else { ascending.reverse() };
            better.then(Reverse(a).cmp(&Reverse(b)))
        });
        places.into_iter().map(|(at, _)| at).collect()
    }
}

impl fmt::Display for Best {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let adjective = if self.goal == Goal::Minimize { "lowest" } else { "highest" };
        write!(f, "the {} with the {adjective} {:?}", self.n, self.metric)
    }
}

impl RetentionPolicy for Best {
    fn label(&self) -> String {
        self.to_string()
    }

    fn bound(&self) -> Option<usize> {
        Some(self.n)
    }

    fn keep(&self, checkpoints: &[CheckpointInfo], _now: DateTime<Utc>) -> Vec<Option<Reason>> {
        let mut reasons = vec![None; checkpoints.len()];
        for (rank, at) in self.order(checkpoints).into_iter().take(self.n).enumerate() {
            let adjective = if self.goal == Goal::Minimize { "lowest" } else { "highest" };
            let why = format!("it is among the {} with the {adjective} {:?}", self.n, self.metric);
            let better = self.n - rank;
            let better = if better == 1 { "1 better one is".to_string() } else { format!("{better} better ones are") };
            reasons[at] = Some(Reason::new(why).until(format!("{better} there")));
        }
        reasons
    }
}
