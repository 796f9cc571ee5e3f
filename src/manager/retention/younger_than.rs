//! Keeps recent checkpoints.

use super::{CheckpointInfo, Reason, RetentionPolicy, Span, delta};
use chrono::{DateTime, Utc};
use std::fmt;
use std::time::Duration;

/// Keeps the checkpoints that were saved less than this duration ago. Nothing is removed before the next save.
///
/// ```
/// use std::time::Duration;
/// use tch_checkpoint::retention::YoungerThan;
/// let of_the_last_day = YoungerThan(Duration::from_secs(24 * 60 * 60));
/// # let _ = of_the_last_day;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct YoungerThan(pub Duration);

impl fmt::Display for YoungerThan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "younger than {}", Span(self.0))
    }
}

impl RetentionPolicy for YoungerThan {
    fn label(&self) -> String {
        self.to_string()
    }

    fn keep(&self, checkpoints: &[CheckpointInfo], now: DateTime<Utc>) -> Vec<Option<Reason>> {
        let reason = |info: &CheckpointInfo| {
            let age = now.signed_duration_since(info.time(now));
            let ends = info.time(now).checked_add_signed(delta(self.0));
            let reason = Reason::new(format!("it is younger than {}", Span(self.0)));
            (age < delta(self.0)).then(|| match ends {
                Some(ends) => reason.until(ends.format("%Y-%m-%d %H:%M:%S UTC").to_string()),
                None => reason,
            })
        };
        checkpoints.iter().map(reason).collect()
    }
}
