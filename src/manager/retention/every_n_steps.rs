//! Keeps checkpoints at multiples of a number of steps.

use super::{CheckpointInfo, Reason, RetentionPolicy};
use chrono::{DateTime, Utc};
use std::fmt;

/// Keeps checkpoints whose step is a multiple of `n`, including step 0. A checkpoint without a step is not kept by this
/// policy. 0 keeps none.
///
/// If steps are not saved at exact multiples, use [`EveryNStepsClosest`](super::EveryNStepsClosest).
///
/// ```
/// use tch_checkpoint::chrono::Utc;
/// use tch_checkpoint::retention::{CheckpointInfo, EveryNSteps, RetentionPolicy};
/// let at = |step| {
///     let mut info = CheckpointInfo::new(format!("ckpt-{step}"), Utc::now());
///     info.step = Some(step);
///     info
/// };
/// let kept = EveryNSteps(100).keep(&[at(100), at(150), at(200)], Utc::now());
/// assert_eq!(kept.iter().map(Option::is_some).collect::<Vec<_>>(), [true, false, true]);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EveryNSteps(pub u64);

impl fmt::Display for EveryNSteps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "every {} steps", self.0)
    }
}

impl RetentionPolicy for EveryNSteps {
    fn label(&self) -> String {
        self.to_string()
    }

    fn keep(&self, checkpoints: &[CheckpointInfo], _now: DateTime<Utc>) -> Vec<Option<Reason>> {
        let is_kept = |info: &CheckpointInfo| self.0 > 0 && info.step.is_some_and(|step| step.is_multiple_of(self.0));
        let reason = || Reason::new(format!("its step is a multiple of {}", self.0));
        checkpoints.iter().map(|info| is_kept(info).then(reason)).collect()
    }
}
