//! Disk space: how much the policies will need, and what happens if there is none.

use super::commit::Commit;
use super::ledger::infos;
use super::retention::CheckpointInfo;
use super::{CheckpointManager, OnNoSpace, OnUnhealthy};
use crate::catalog::Found;
use crate::error::{Error, Result};
use crate::reader::CheckpointReader;
use crate::source::Source;
use std::collections::BTreeMap;

impl CheckpointManager {
    /// Logs a warning if the policies, as far as they bound the number of checkpoints, will need more space than there
    /// is.
    pub(super) fn warn_of_room(&mut self) {
        let planned = self.checkpoint.plan(&self.options).map_or(0, |(plan, _)| plan.bytes());
        let Some(free) = self.directory.free_space() else { return };
        let (bound, there, largest) = {
            let ledger = self.ledger();
            let bytes = || ledger.known.iter().map(|found| found.entry.bytes);
            (ledger.retention.bound(), bytes().fold(0, u64::saturating_add), bytes().max().unwrap_or(0))
        };
        let each = planned.max(largest);
        // One more while it is written.
        let needed = each.saturating_mul(bound as u64 + 1).saturating_sub(there);
        if needed > free {
            let root = self.directory.root().display();
            log::warn!(
                "{root}: the policies keep up to {bound} checkpoints of {each} bytes; that will need {needed} bytes more, and \
                 {free} are free: free some space, or keep fewer"
            );
        }
    }

    /// Returns `true` if a save that met this error is skipped, with a warning.
    pub(super) fn is_skipped(&self, error: &Error) -> bool {
        match error {
            Error::Unhealthy { .. } => self.on_unhealthy == OnUnhealthy::Skip,
            Error::NoSpace { .. } => self.on_no_space == OnNoSpace::Skip,
            _ => false,
        }
    }

    /// Returns whether something was removed for a save that met this error, so that it is tried again.
    ///
    /// # Errors
    /// `error`, with what kept it from being removed in the log.
    pub(super) fn make_room(
        &mut self,
        error: Error,
        step: Option<u64>,
        metrics: &BTreeMap<String, f64>,
    ) -> Result<(), Error> {
        if self.on_no_space != OnNoSpace::PruneFirst || !matches!(error, Error::NoSpace { .. }) {
            return Err(error);
        }
        let mut next = CheckpointInfo::new(String::new(), self.directory.now());
        (next.step, next.metrics) = (step, metrics.clone());
        next.counted_from = self.ledger().counted_from(&[]);
        let commit = Commit::new(self.ledger.clone(), String::new(), Vec::new());
        match commit.prune_before(next) {
            Ok(()) => {
                log::warn!("there was no room: what the policies would remove after this save was removed before it");
                Ok(())
            }
            Err(why) => {
                log::warn!("nothing is removed to make room: {why}");
                Err(error)
            }
        }
    }
}

impl Commit {
    /// Removes what the policies would remove after `next` is saved.
    ///
    /// # Errors
    /// Why nothing is removed.
    fn prune_before(&self, next: CheckpointInfo) -> Result<(), String> {
        let (known, verdict) = {
            let ledger = self.ledger();
            let mut all = infos(&ledger.known);
            all.push(next);
            let verdict = ledger.retention.decide(&all, ledger.restored.as_ref(), self.directory.now());
            (ledger.known.clone(), verdict)
        };
        let (victims, kept): (Vec<Found>, Vec<Found>) =
            known.into_iter().partition(|found| verdict.remove.contains(&found.entry.name));
        if victims.is_empty() {
            return Err("the policies would remove nothing after this save".to_string());
        }
        if let Some(found) = kept.iter().find(|found| !self.directory.looks_whole(&found.entry.name, found.entry.bytes))
        {
            return Err(format!("{}, which stays, has lost files", found.entry.name));
        }
        let is_good = |found: &&Found| CheckpointInfo::from(*found).is_healthy() && found.without.is_empty();
        let good = kept.iter().rev().find(is_good).ok_or("no healthy checkpoint would stay")?;
        let name = &good.entry.name;
        let source =
            Source::open_in(&self.directory, name).map_err(|e| format!("{name} cannot be looked at: {e:#}"))?;
        let reader = CheckpointReader { source };
        if let Some(problem) = reader.verify().problems.first() {
            return Err(format!("{name}, which stays, is not intact: {problem:#}"));
        }
        self.ledger().known = kept;
        self.remove(victims);
        Ok(())
    }
}
