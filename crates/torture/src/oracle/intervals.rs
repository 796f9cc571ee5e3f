//! One checkpoint per interval: in the order of saving, a checkpoint is kept if it was saved at least the interval
//! after the last one that was kept or is permanent. The first interval starts when the directory is first opened, or
//! with the oldest checkpoint; each checkpoint records that time. If the clock was set back behind the last one kept,
//! intervals start again.

use super::{Line, Made, Rules};

impl Line {
    /// Returns which of the own checkpoints are kept for an interval.
    pub(super) fn due(&self, rules: &Rules, now: i64) -> Vec<bool> {
        let due = rules.every.map(|interval| intervals(&self.policies_see(&[]), interval, now).0).unwrap_or_default();
        self.own.iter().map(|made| made.there && due.contains(&made.value)).collect()
    }

    /// Returns what the next checkpoint records, which supersedes those with these numbers.
    pub(super) fn counted_from(&self, rules: &Rules, supersedes: &[u64], now: i64) -> Option<(i64, i64)> {
        let interval = rules.every?;
        // A removal by hand is noticed only after the next save.
        let before = self.policies_know(supersedes);
        let Some(oldest) = before.first() else {
            // An earlier process of the run may have begun the first interval.
            let began = self.own.iter().filter(|_| self.restored.is_some()).filter_map(|made| made.counted_from);
            return began.chain([(self.opened, 0), (now, 0)]).min();
        };
        if intervals(&before, interval, i64::MAX).1 > now {
            let taken = |nth: &i64| before.iter().any(|made| made.counted_from == Some((now, -nth)));
            let nth = (0..=i64::try_from(before.len()).unwrap_or(i64::MAX)).find(|nth| !taken(nth)).unwrap_or(0);
            return Some((now, -nth));
        }
        let recorded = before.iter().rev().find_map(|made| made.counted_from);
        Some(recorded.unwrap_or((oldest.time, 0)).min((now, 0)))
    }

    fn policies_see(&self, supersedes: &[u64]) -> Vec<&Made> {
        self.policies_know(supersedes).into_iter().filter(|made| made.there).collect()
    }

    fn policies_know(&self, supersedes: &[u64]) -> Vec<&Made> {
        self.own.iter().filter(|made| made.is_healthy() && !supersedes.contains(&made.number)).collect()
    }
}

/// Returns the values of those that are kept, and the start of the last interval. A time in the future counts as the
/// present.
fn intervals(all: &[&Made], interval: i64, now: i64) -> (Vec<u64>, i64) {
    let begins = |made: &Made| made.counted_from.map(|from| from.min((now, 0)));
    let mut from = all.iter().find_map(|made| begins(made));
    let mut last = from.map(|(time, _)| time).or(all.first().map(|made| made.time.min(now))).unwrap_or(now);
    let mut kept = Vec::new();
    for made in all {
        let time = made.time.min(now);
        if let Some(anew) = begins(made).filter(|begins| Some(*begins) != from) {
            (from, last) = (Some(anew), anew.0);
        }
        let is_kept = time.saturating_sub(last) >= interval;
        if is_kept {
            kept.push(made.value);
        }
        if is_kept || made.permanent {
            last = last.max(time);
        }
    }
    (kept, last)
}
