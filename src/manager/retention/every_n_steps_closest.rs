//! Keeps the checkpoints that are closest to the multiples of a number of steps.

use super::{CheckpointInfo, Reason, RetentionPolicy};
use chrono::{DateTime, Utc};
use std::collections::HashMap;
use std::fmt;

/// Keeps, for each multiple of `n` steps, the checkpoint whose step is closest to it, if any is at most `n`/2 steps
/// away. A step halfway between two multiples counts for the higher one. Of two that are equally close, the one that
/// was saved first is kept. A checkpoint without a step is not kept by this policy. 0 keeps none.
///
/// This is for steps that are not saved at exact multiples: when saves are due by time, or a save was skipped.
///
/// ```
/// use tch_checkpoint::retention::{CheckpointInfo, EveryNStepsClosest, RetentionPolicy};
/// # use chrono::Utc;
/// let saved = [8, 11, 14, 23].map(|step| {
///     let mut info = CheckpointInfo::new(format!("ckpt-{step}"), Utc::now());
///     info.step = Some(step);
///     info
/// });
/// let kept = EveryNStepsClosest(10).keep(&saved, Utc::now());
/// assert_eq!(kept.iter().map(Option::is_some).collect::<Vec<_>>(), [false, true, false, true]);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EveryNStepsClosest(pub u64);

impl fmt::Display for EveryNStepsClosest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the closest to every {} steps", self.0)
    }
}

impl RetentionPolicy for EveryNStepsClosest {
    fn label(&self) -> String {
        self.to_string()
    }

    fn keep(&self, checkpoints: &[CheckpointInfo], _now: DateTime<Utc>) -> Vec<Option<Reason>> {
        let mut reasons = vec![None; checkpoints.len()];
        // The closest to each multiple so far: its distance and its index.
        let mut closest: HashMap<u64, (u64, usize)> = HashMap::new();
        for (at, info) in checkpoints.iter().enumerate().filter(|_| self.0 > 0) {
            let Some(step) = info.step else { continue };
            let past = step % self.0;
            let above = past >= self.0.div_ceil(2);
            let (multiple, distance) = if above { (step / self.0 + 1, self.0 - past) } else { (step / self.0, past) };
            let best = closest.entry(multiple).or_insert((distance, at));
            if distance < best.0 {
                *best = (distance, at);
            }
        }
        for (multiple, (distance, at)) in closest {
            let step = u128::from(multiple) * u128::from(self.0);
            let reason = Reason::new(format!("its step is the closest to {step}"));
            reasons[at] = Some(if distance == 0 { reason } else { reason.until("a closer one is saved") });
        }
        reasons
    }
}
