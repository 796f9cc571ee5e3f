//! Gaps: saves that are no longer in the directory.

use super::ReportedCheckpoint;
use crate::inspect::listing::{OtherEntry, OtherState};
use crate::repository::Posix;
use crate::source::Source;
use serde::Serialize;
use std::collections::BTreeMap;

/// Consecutive saves that are no longer in the directory: a retention policy or a user removed them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ReportGap {
    /// The name of the checkpoint that was saved before them. `None` if they are the first.
    pub after: Option<String>,
    /// The name of the checkpoint that was saved after them.
    pub before: String,
    /// The number of commit sequences without a checkpoint.
    pub missing: u64,
}

/// Returns the gaps between the commit sequences. Checkpoints that are damaged or left the numbering count as present
/// if their manifest can be read.
pub(super) fn of(checkpoints: &[ReportedCheckpoint], others: &[OtherEntry]) -> Vec<ReportGap> {
    let mut names: BTreeMap<u64, &str> = BTreeMap::new();
    let has_manifest = |other: &&OtherEntry| {
        matches!(other.state, OtherState::Damaged | OtherState::MovedAside | OtherState::Superseded)
    };
    for other in others.iter().filter(has_manifest) {
        if let Ok((source, _)) = Source::open_what_is_whole(&Posix::default(), &other.path) {
            names.insert(source.manifest.sequence, &other.name);
        }
    }
    names.extend(checkpoints.iter().map(|checkpoint| (checkpoint.entry.sequence, checkpoint.entry.name.as_str())));
    between(&names)
}

fn between(names: &BTreeMap<u64, &str>) -> Vec<ReportGap> {
    let mut gaps = Vec::new();
    // The first save of a directory has the sequence 1.
    let (mut last, mut after) = (0, None);
    for (&sequence, &name) in names {
        let missing = sequence.saturating_sub(last).saturating_sub(1);
        if missing > 0 {
            gaps.push(ReportGap { after, before: name.to_string(), missing });
        }
        (last, after) = (sequence, Some(name.to_string()));
    }
    gaps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_sequences_are_counted() {
        let gap = |after: Option<&str>, before: &str, missing| ReportGap {
            after: after.map(str::to_string),
            before: before.to_string(),
            missing,
        };
        assert!(between(&BTreeMap::new()).is_empty());
        assert!(between(&[(1, "a"), (2, "b")].into()).is_empty());
        assert_eq!(
            between(&[(4, "a"), (5, "b"), (u64::MAX, "c")].into()),
            [gap(None, "a", 3), gap(Some("b"), "c", u64::MAX - 6)]
        );
    }
}
