//! Keeps the newest checkpoints.

use super::{CheckpointInfo, Reason, RetentionPolicy, newer};
use chrono::{DateTime, Utc};
use std::fmt;

/// Keeps the newest `n` checkpoints that are not permanent. The newest are those saved last, whatever their steps. 0
/// keeps none. The short form is [`max_to_keep`](crate::CheckpointManagerBuilder::max_to_keep).
///
/// ```
/// use tch_checkpoint::retention::{CheckpointInfo, Latest, RetentionPolicy};
/// # use chrono::Utc;
/// let saved = ["ckpt-1", "ckpt-2", "ckpt-3"].map(|name| CheckpointInfo::new(name, Utc::now()));
/// let kept = Latest(2).keep(&saved, Utc::now());
/// assert_eq!(kept.iter().map(Option::is_some).collect::<Vec<_>>(), [false, true, true]);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Latest(pub usize);

impl fmt::Display for Latest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the newest {}", self.0)
    }
}

impl RetentionPolicy for Latest {
    fn label(&self) -> String {
        self.to_string()
    }

    fn bound(&self) -> Option<usize> {
        Some(self.0)
    }

    fn keep(&self, checkpoints: &[CheckpointInfo], _now: DateTime<Utc>) -> Vec<Option<Reason>> {
        let mut left = checkpoints.iter().filter(|info| !info.permanent).count();
        let reason = |info: &CheckpointInfo| {
            if info.permanent {
                return None;
            }
            left -= 1;
            let why = format!("it is among the newest {}", self.0);
            (left < self.0).then(|| Reason::new(why).until(format!("{} saved", newer(self.0 - left))))
        };
        checkpoints.iter().map(reason).collect()
    }
}
