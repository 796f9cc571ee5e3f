//! Which checkpoints stay: pure functions over what is known of them.

use chrono::{DateTime, TimeDelta, Utc};

/// What retention looks at, oldest first in its lists.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Candidate {
    pub name: String,
    pub saved_at: DateTime<Utc>,
    /// Kept for good.
    pub preserved: bool,
}

/// How many stay.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Retention {
    /// The newest of those not preserved; `None` keeps all.
    pub max_to_keep: Option<usize>,
    /// When a checkpoint would be removed and is at least this much younger than the last preserved one, it is
    /// preserved instead.
    pub keep_every: Option<TimeDelta>,
}

/// What to do with checkpoints that are too many.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Verdict {
    /// Names to remove, oldest first.
    pub remove: Vec<String>,
    /// Names to preserve from now on, oldest first.
    pub preserve: Vec<String>,
    /// The time of the last preserved one.
    pub last_preserved: Option<DateTime<Utc>>,
}

impl Retention {
    /// Decides over `candidates`, oldest commit first. The newest is never removed.
    ///
    /// As TensorFlow's manager: whether a checkpoint is preserved is decided when it would be removed, by the times the
    /// checkpoints were saved at. A clock set back preserves nothing and removes nothing more than `max_to_keep` says; a
    /// time after `now` is one that a wrong clock told, and counts as `now`.
    pub(crate) fn decide(
        &self,
        candidates: &[Candidate],
        last_preserved: Option<DateTime<Utc>>,
        now: DateTime<Utc>,
    ) -> Verdict {
        let last_preserved = last_preserved.map(|last| last.min(now));
        let mut verdict = Verdict { last_preserved, ..Verdict::default() };
        let active: Vec<&Candidate> = candidates.iter().filter(|candidate| !candidate.preserved).collect();
        let keep = self.max_to_keep.map_or(active.len(), |keep| keep.max(1));
        for candidate in &active[..active.len().saturating_sub(keep)] {
            let saved_at = candidate.saved_at.min(now);
            let due = |every: TimeDelta| {
                verdict.last_preserved.is_none_or(|last| saved_at.signed_duration_since(last) >= every)
            };
            if self.keep_every.is_some_and(due) {
                verdict.preserve.push(candidate.name.clone());
                verdict.last_preserved = Some(saved_at);
            } else {
                verdict.remove.push(candidate.name.clone());
            }
        }
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(minutes: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_700_000_000 + 60 * minutes, 0).unwrap()
    }

    fn candidates(minutes: &[i64]) -> Vec<Candidate> {
        minutes.iter().map(|&m| Candidate { name: format!("ckpt-{m}"), saved_at: at(m), preserved: false }).collect()
    }

    /// Saves one after the other, as a manager would.
    fn history(retention: &Retention, minutes: &[i64], start: Option<i64>) -> Vec<Candidate> {
        let mut kept: Vec<Candidate> = Vec::new();
        let mut last_preserved = start.map(at);
        for (i, &m) in minutes.iter().enumerate() {
            kept.push(Candidate { name: format!("ckpt-{i}"), saved_at: at(m), preserved: false });
            let verdict = retention.decide(&kept, last_preserved, at(1_000_000));
            last_preserved = verdict.last_preserved;
            kept.retain(|c| !verdict.remove.contains(&c.name));
            for c in &mut kept {
                c.preserved |= verdict.preserve.contains(&c.name);
            }
        }
        kept
    }

    #[test]
    fn tensorflows_example_of_one_an_hour() {
        // hours = 1, max_to_keep = 2, a save every 20 minutes: those of minutes 60, 120 and 180 survive.
        let retention = Retention { max_to_keep: Some(2), keep_every: Some(TimeDelta::hours(1)) };
        let minutes: Vec<i64> = (1..=12).map(|i| i * 20).collect();
        let kept = history(&retention, &minutes, Some(0));
        let preserved: Vec<i64> =
            kept.iter().filter(|c| c.preserved).map(|c| (c.saved_at - at(0)).num_minutes()).collect();
        assert_eq!(preserved, [60, 120, 180]);
        assert_eq!(kept.iter().filter(|c| !c.preserved).count(), 2);
    }

    #[test]
    fn none_keeps_all_and_one_keeps_the_newest() {
        let all = candidates(&[1, 2, 3]);
        assert_eq!(Retention::default().decide(&all, None, at(1_000_000)).remove, [] as [&str; 0]);
        let one = Retention { max_to_keep: Some(1), keep_every: None };
        assert_eq!(one.decide(&all, None, at(1_000_000)).remove, ["ckpt-1", "ckpt-2"]);
        let zero = Retention { max_to_keep: Some(0), keep_every: None };
        assert_eq!(zero.decide(&all, None, at(1_000_000)).remove, ["ckpt-1", "ckpt-2"]);
    }

    #[test]
    fn a_clock_that_was_ahead_once_ends_nothing() {
        let retention = Retention { max_to_keep: Some(1), keep_every: Some(TimeDelta::hours(1)) };
        let wrong = at(50_000_000);
        // It is taken for now, so the next one is preserved an hour from now.
        let verdict = retention.decide(&candidates(&[0, 1]), Some(wrong), at(0));
        assert_eq!((verdict.remove, verdict.last_preserved), (vec!["ckpt-0".to_string()], Some(at(0))));
        let verdict = retention.decide(&candidates(&[60, 61]), Some(at(0)), at(61));
        assert_eq!(verdict.preserve, ["ckpt-60"]);
        // And one that was saved then is preserved as if it had been saved now.
        let verdict = retention.decide(&candidates(&[50_000_000, 61]), Some(at(0)), at(61));
        assert_eq!((verdict.preserve.len(), verdict.last_preserved), (1, Some(at(61))));
    }

    proptest! {
        #[test]
        fn the_newest_stay_and_the_preserved_stay(
            minutes in prop::collection::vec(-1000i64..1000, 1..40),
            keep in 1usize..6,
            hours in prop::option::of(1i64..5),
        ) {
            let retention = Retention { max_to_keep: Some(keep), keep_every: hours.map(TimeDelta::hours) };
            let kept = history(&retention, &minutes, Some(0));
            let active: Vec<&str> = kept.iter().filter(|c| !c.preserved).map(|c| c.name.as_str()).collect();
            let newest: Vec<String> = (minutes.len().saturating_sub(keep)..minutes.len()).map(|i| format!("ckpt-{i}")).collect();
            prop_assert_eq!(active, newest);
            let preserved: Vec<_> = kept.iter().filter(|c| c.preserved).map(|c| c.saved_at).collect();
            for pair in preserved.windows(2) {
                prop_assert!(pair[1] - pair[0] >= TimeDelta::hours(hours.unwrap()));
            }
        }

        #[test]
        fn deciding_twice_changes_nothing(minutes in prop::collection::vec(-1000i64..1000, 1..20), keep in 1usize..6) {
            let retention = Retention { max_to_keep: Some(keep), keep_every: Some(TimeDelta::hours(1)) };
            let kept = history(&retention, &minutes, None);
            let again = retention.decide(&kept, Some(at(0)), at(1_000_000));
            prop_assert_eq!((again.remove, again.preserve), (vec![], vec![]));
        }
    }
}
