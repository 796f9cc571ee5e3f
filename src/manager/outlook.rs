//! Predicts what the next save removes, for explanations, dry runs, and removals before the save.

use super::CheckpointManager;
use super::commit::{keeps_damaged, read_marks, standing_in};
use super::ledger::infos;
use super::retention::{CheckpointInfo, Explanation, KeptBy};
use crate::catalog::{Found, look};
use crate::save::Stamp;
use chrono::DateTime;
use std::cell::LazyCell;
use std::collections::{BTreeMap, BTreeSet};

/// What keeps each checkpoint of a manager, according to its current marks.
pub(super) struct Outlook {
    /// The checkpoints of the run that continues, oldest first.
    pub known: Vec<(Found, Explanation)>,
    /// The checkpoints that a run abandoned, by their current names; those that the next save abandons come last.
    pub superseded: Vec<(String, Found, Explanation)>,
    /// Those that were found damaged, by number.
    pub damaged: Vec<Explanation>,
}

impl Outlook {
    /// Returns the explanations: those of the run, oldest first, then those out of the numbering.
    pub(super) fn explanations(self) -> Vec<Explanation> {
        let known = self.known.into_iter().map(|(_, explanation)| explanation);
        let superseded = self.superseded.into_iter().map(|(_, _, explanation)| explanation);
        known.chain(superseded).chain(self.damaged).collect()
    }
}

impl CheckpointManager {
    /// Describes a save at `step` for the policies.
    pub(super) fn next_at(&self, step: u64, metrics: &BTreeMap<String, f64>) -> CheckpointInfo {
        self.next(&format!("{}-{step}", self.name), Some(step), metrics)
    }

    /// Describes the next save for the policies, including the checkpoints of earlier runs from which it descends,
    /// because they may be protected.
    pub(super) fn next(&self, name: &str, step: Option<u64>, metrics: &BTreeMap<String, f64>) -> CheckpointInfo {
        let stamp = Stamp { step, metrics: metrics.clone(), ..self.checkpoint.stamp() };
        CheckpointInfo::of_save(name, &stamp, self.directory.now())
    }

    /// Returns what keeps each checkpoint now, or after `next` is saved. Its name is empty where it is not known.
    ///
    /// The ledger is not changed: a save in the background may be about to replace its lists.
    pub(super) fn outlook(&self, next: Option<CheckpointInfo>) -> Outlook {
        let superseding = next.as_ref().map_or_else(Vec::new, |next| {
            let name = Some(next.name.as_str()).filter(|name| !name.is_empty());
            // A save that is rejected supersedes nothing.
            self.superseded_by(name).unwrap_or_default()
        });
        let (mut known, mut superseded, retention, restored, mut seen, counted_from) = {
            let ledger = self.ledger();
            let (known, superseded) = (ledger.known.clone(), ledger.superseded.clone());
            let counted_from = ledger.counted_from(&superseding);
            let restored = self.restored_since().or_else(|| ledger.restored.clone());
            (known, superseded, ledger.retention.clone(), restored, ledger.seen.clone(), counted_from)
        };
        let (now, directory) = (self.directory.now(), &self.directory);
        known.retain(|found| seen.is_there(directory, found));
        superseded.retain(|(aside, _)| directory.may_hold(aside));
        for found in &mut known {
            read_marks(directory, &found.entry.name.clone(), found);
        }
        for (aside, found) in &mut superseded {
            read_marks(directory, aside, found);
        }
        let (leaving, known): (Vec<Found>, Vec<Found>) =
            known.into_iter().partition(|found| superseding.contains(&found.entry.name));
        superseded.extend(leaving.into_iter().map(|found| (found.entry.name.clone(), found)));
        let mut all = infos(&known);
        let saves = next.is_some();
        // If it replaces the newest, it follows what that one followed.
        let next = next.map(|mut next| {
            next.follows = self.follows(&superseding);
            next.earlier.retain(|earlier| next.follows.as_ref().is_some_and(|follows| follows != earlier));
            next
        });
        all.extend(next.map(|next| retention.with_components(CheckpointInfo { counted_from, ..next })));
        let explanations = retention.explain(&all, restored.as_ref(), now);
        let known: Vec<(Found, Explanation)> = known.into_iter().zip(explanations).collect();
        let staying: Vec<&Found> =
            known.iter().filter(|(_, explanation)| explanation.is_kept()).map(|(found, _)| found).collect();
        let whole = LazyCell::new(|| {
            let whole = staying.iter().copied().filter(|found| found.looks_whole(directory));
            whole.collect::<Vec<&Found>>()
        });
        let superseded = superseded.into_iter().map(|(aside, found)| {
            let newer = standing_in(&found, whole.iter().copied(), usize::from(saves));
            let checkpoint = CheckpointInfo { name: aside.clone(), ..CheckpointInfo::from(&found) };
            let kept_by = retention.keeps_superseded(&checkpoint, newer);
            (aside, found, Explanation { checkpoint, kept_by, loses: Vec::new() })
        });
        Outlook { superseded: superseded.collect(), damaged: self.damaged(), known }
    }

    /// Returns what keeps each of those that were found damaged.
    fn damaged(&self) -> Vec<Explanation> {
        let (damaged, superfluous, keep) = {
            let ledger = self.ledger();
            let superfluous: BTreeSet<String> = ledger.damaged_to_remove().into_iter().collect();
            (ledger.damaged_by_number(), superfluous, ledger.retention.keep_damaged)
        };
        let there = damaged.into_iter().filter(|aside| self.directory.may_hold(aside));
        let explanation = |aside: String| {
            let mut kept_by = Vec::new();
            if self.directory.marks(&aside).is_ok_and(|marks| keeps_damaged(&marks)) {
                kept_by.push(KeptBy::Marked);
            }
            if !superfluous.contains(&aside) {
                kept_by.push(KeptBy::Damaged { keep });
            }
            let checkpoint = self.describe_damaged(&aside);
            Explanation { checkpoint, kept_by, loses: Vec::new() }
        };
        there.map(explanation).collect()
    }

    /// Describes a damaged checkpoint as far as it can be read. If its manifest cannot, its time is that of its
    /// directory.
    fn describe_damaged(&self, aside: &str) -> CheckpointInfo {
        if let Ok(found) = look(&self.directory, aside) {
            return CheckpointInfo { name: aside.to_string(), ..CheckpointInfo::from(&found) };
        }
        if let Ok(manifest) = self.directory.manifest(aside) {
            let found = Found::new(aside, &manifest, crate::catalog::Marks::default());
            return CheckpointInfo::from(&found);
        }
        let time = self.directory.stat_of(aside).and_then(|stat| DateTime::from_timestamp(stat.modified.0, 0));
        CheckpointInfo::new(aside, time.unwrap_or_else(|| self.directory.now()))
    }
}
