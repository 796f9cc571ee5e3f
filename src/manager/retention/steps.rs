//! Keeps the checkpoints of given steps.

use super::{CheckpointInfo, Reason, RetentionPolicy};
use chrono::{DateTime, Utc};
use std::collections::BTreeSet;
use std::fmt;

/// Keeps the checkpoints of the given steps.
///
/// ```
/// use tch_checkpoint::retention::Steps;
/// let milestones = Steps::new([1_000, 10_000, 100_000]);
/// # let _ = milestones;
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Steps(BTreeSet<u64>);

impl Steps {
    /// Creates the policy for the given steps, in any order.
    pub fn new(steps: impl IntoIterator<Item = u64>) -> Steps {
        Steps(steps.into_iter().collect())
    }
}

impl fmt::Display for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let steps: Vec<String> = self.0.iter().map(u64::to_string).collect();
        write!(f, "the steps {}", steps.join(", "))
    }
}

impl RetentionPolicy for Steps {
    fn label(&self) -> String {
        self.to_string()
    }

    fn bound(&self) -> Option<usize> {
        Some(self.0.len())
    }

    fn keep(&self, checkpoints: &[CheckpointInfo], _now: DateTime<Utc>) -> Vec<Option<Reason>> {
        let reason = |step: u64| Reason::new(format!("step {step} is one of those to keep"));
        let kept = |info: &CheckpointInfo| info.step.filter(|step| self.0.contains(step)).map(reason);
        checkpoints.iter().map(kept).collect()
    }
}
