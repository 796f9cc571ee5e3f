//! Keeps one checkpoint per interval of time permanently, like TensorFlow's `keep_checkpoint_every_n_hours`.

use super::{CheckpointInfo, Reason, RetentionPolicy, Span, delta};
use chrono::{DateTime, TimeDelta, Utc};
use std::fmt;
use std::time::Duration;

/// Keeps one checkpoint per interval permanently. The short form is
/// [`keep_every`](crate::CheckpointManagerBuilder::keep_every).
///
/// The rule is that of `keep_checkpoint_every_n_hours` in TensorFlow. In the order of saving, a checkpoint is kept if
/// it was saved at least the interval after the last one that this policy kept. The first interval starts when a
/// manager with this policy is first opened in an empty directory, or with the oldest checkpoint there. The checkpoint
/// is marked as permanent when no other policy keeps it; from then on it is kept even if the policies change.
///
/// Use one policy of this kind only: intervals are counted from any permanent checkpoint.
///
/// The intervals are measured between the times at which checkpoints were saved. If the clock was set back, so that a
/// checkpoint was saved before the last kept one, an interval starts with that checkpoint. TensorFlow forgets all its
/// checkpoints in that case.
///
/// ```
/// use chrono::{DateTime, TimeDelta, Utc};
/// use std::time::Duration;
/// use tch_checkpoint::retention::{CheckpointInfo, Every, RetentionPolicy};
/// let start = DateTime::UNIX_EPOCH;
/// let saved = [0, 20, 40, 60, 80, 100, 120].map(|minutes| {
///     CheckpointInfo::new(format!("ckpt-{minutes}"), start + TimeDelta::minutes(minutes))
/// });
/// let kept = Every(Duration::from_secs(3600)).keep(&saved, Utc::now());
/// let kept = saved.iter().zip(kept).filter(|(_, reason)| reason.is_some());
/// assert_eq!(kept.map(|(info, _)| info.name.as_str()).collect::<Vec<_>>(), ["ckpt-60", "ckpt-120"]);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Every(pub Duration);

impl Every {
    /// Returns which are kept, and the time from which the next interval is counted; `None` for an empty list.
    fn scan(&self, checkpoints: &[CheckpointInfo], now: DateTime<Utc>) -> (Vec<bool>, Option<DateTime<Utc>>) {
        let recorded = |info: &CheckpointInfo| info.counted_from.map(|from| from.min(now));
        let Some(oldest) = checkpoints.first().map(|first| first.time(now)) else { return (Vec::new(), None) };
        let mut origin = checkpoints.iter().find_map(recorded);
        let mut last = origin.unwrap_or(oldest);
        let mut keep = |info: &CheckpointInfo| {
            if let Some(from) = recorded(info).filter(|from| Some(*from) != origin) {
                // The clock was set back, so counting restarted.
                (origin, last) = (Some(from), from);
            }
            let time = info.time(now);
            let is_due = time.signed_duration_since(last) >= delta(self.0);
            if info.permanent || is_due {
                last = last.max(time);
            }
            is_due
        };
        let kept = checkpoints.iter().map(&mut keep).collect();
        (kept, Some(last))
    }
}

impl fmt::Display for Every {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "one per {:#}", Span(self.0))
    }
}

impl RetentionPolicy for Every {
    fn label(&self) -> String {
        self.to_string()
    }

    fn keep(&self, checkpoints: &[CheckpointInfo], now: DateTime<Utc>) -> Vec<Option<Reason>> {
        let reason = || Reason::new(format!("it is one per {:#}, and permanent", Span(self.0))).for_good();
        self.scan(checkpoints, now).0.into_iter().map(|is_kept| is_kept.then(reason)).collect()
    }

    fn counted_from(&self, checkpoints: &[CheckpointInfo], now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        // By the recorded times: a time in the future is from a clock that was set back later.
        let last = self.scan(checkpoints, DateTime::<Utc>::MAX_UTC).1;
        let recorded = checkpoints.iter().rev().find_map(|info| info.counted_from);
        if last.is_some_and(|last| last > now) {
            // A restart of the count shows in a time that differs from all before.
            let mut from = now;
            while checkpoints.iter().any(|info| info.counted_from == Some(from)) {
                from = from.checked_sub_signed(TimeDelta::nanoseconds(1)).unwrap_or(now);
            }
            return Some(from);
        }
        let oldest = || checkpoints.first().map(|first| first.saved_at);
        Some(recorded.or_else(oldest).unwrap_or(now).min(now))
    }
}
