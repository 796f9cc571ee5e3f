//! Disk space: how much the policies will need, and what to do if there is too little.

use super::commit::{Commit, preserve};
use super::links;
use super::outlook::Outlook;
use super::retention::{CheckpointInfo, Explanation};
use super::{CheckpointManager, OnNoSpace, OnUnhealthy};
use crate::catalog::{Found, sync_marks};
use crate::error::{Error, Result};
use crate::location::Location;
use crate::reader::CheckpointReader;
use crate::repository::before_aside;
use crate::source::Source;
use std::collections::HashSet;

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
        // Not a bound at all.
        if bound == usize::MAX {
            return;
        }
        let each = planned.max(largest);
        // One more exists while it is being written.
        let needed = each.saturating_mul((bound as u64).saturating_add(1)).saturating_sub(there);
        if needed > free {
            let root = self.directory.root().display();
            log::warn!(
                "{root}: the policies keep up to {bound} checkpoints of {each} bytes; that will need {needed} bytes more, and \
                 {free} are free: free some space, or keep fewer"
            );
        }
    }

    /// Returns `true` if a save that fails with this error is skipped, with a warning.
    pub(super) fn is_skipped(&self, error: &Error) -> bool {
        match error {
            Error::Unhealthy { .. } => self.on_unhealthy == OnUnhealthy::Skip,
            Error::NoSpace { .. } => self.on_no_space == OnNoSpace::Skip,
            _ => false,
        }
    }

    /// Calls `save`, which saves `next`. If there is no space and something may be removed for it, removes that and
    /// calls `save` again.
    pub(super) fn with_room(
        &mut self,
        next: CheckpointInfo,
        mut save: impl FnMut(&mut CheckpointManager) -> Result<Location>,
    ) -> Result<Location> {
        if std::mem::take(&mut self.lacked_room) {
            // The previous save, in the background, had no space.
            self.make_room(next.clone());
        }
        match save(self) {
            Err(error) if self.makes_room_after(&error) => {
                self.lacked_room = false;
                if self.make_room(next) { save(self) } else { Err(error) }
            }
            result => result,
        }
    }

    /// Returns `true` if something may be removed after this error, to retry.
    pub(super) fn makes_room_after(&self, error: &Error) -> bool {
        self.on_no_space == OnNoSpace::PruneFirst && matches!(error, Error::NoSpace { .. })
    }

    /// Removes what would be removed after `next` is saved, if that is allowed. Returns whether anything was removed.
    pub(super) fn make_room(&mut self, next: CheckpointInfo) -> bool {
        let removed = self.prune_before(next);
        match &removed {
            Ok(()) => log::warn!("there was no room: what this save would remove after it was removed before it"),
            Err(why) => log::warn!("nothing is removed to make room: {why}"),
        }
        removed.is_ok()
    }

    /// Removes what would be removed after `next` is saved, but not the checkpoint that the run continues from.
    ///
    /// # Errors
    /// Why nothing is removed.
    fn prune_before(&mut self, next: CheckpointInfo) -> Result<(), String> {
        // A restore that bypassed this manager.
        self.look_at_restores();
        let Outlook { known, superseded, damaged } = self.outlook(Some(next.clone()));
        let is_head = |found: &Found| self.head == Some(found.id());
        let (kept, go): (Vec<_>, Vec<_>) =
            known.into_iter().partition(|(found, explanation)| explanation.is_kept() || is_head(found));
        let (numbered, aside): (Vec<_>, Vec<_>) = superseded
            .into_iter()
            .filter(|(_, found, explanation)| !explanation.is_kept() && !is_head(found))
            .partition(|(name, ..)| before_aside(name).is_none());
        if go.is_empty() && numbered.is_empty() && aside.is_empty() && damaged.iter().all(Explanation::is_kept) {
            return Err("nothing would be removed after this save".to_string());
        }
        let for_good = kept.iter().filter(|(_, explanation)| explanation.is_only_for_good());
        let for_good: Vec<String> = for_good.map(|(found, _)| found.entry.name.clone()).collect();
        let mut kept: Vec<Found> = kept.into_iter().map(|(found, _)| found).collect();
        let commit = Commit::new(self.ledger.clone(), String::new(), Vec::new());
        let stand_ins = || kept.iter().filter(|found| !found.entry.permanent);
        // While those that the next save abandons are there, they would come after the others if the head were not.
        let goes_back = !self.superseded_by(None).unwrap_or_default().is_empty();
        if !commit.set_aside_lost(stand_ins().filter(|found| !goes_back || !is_head(found))).is_empty() {
            // Others stand in for what has lost files.
            return self.prune_before(next);
        }
        if let Some(found) = stand_ins().find(|found| !found.looks_whole(&self.directory)) {
            return Err(format!("{}, which stays, has lost files, or cannot be read now", found.entry.name));
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
        let go = go.into_iter().map(|(found, _)| found).chain(numbered.into_iter().map(|(_, found, _)| found));
        let go: Vec<Found> = go.collect();
        let settled = sync_marks(&self.directory, &mut kept);
        settled.map_err(|e| format!("the marks of those that stay are not durable: {e:#}"))?;
        let marked = preserve(&self.directory, &mut kept, &for_good);
        // On a full disk, that is possible only after something was removed.
        if let Some(error) = marked.as_ref().err().filter(|error| !error.is_no_space()) {
            return Err(format!("what stays for good could not be marked: {error:#}"));
        }
        self.ledger().known.retain(|known| go.iter().all(|found| found.entry.name != known.entry.name));
        let has_links = links::update(&self.ledger, &self.directory);
        commit.remove(go);
        commit.remove_aside(aside.iter().map(|(name, found, _)| (name.as_str(), found)));
        commit.remove_damaged();
        if !has_links {
            links::update(&self.ledger, &self.directory);
        }
        if marked.is_err() {
            // There is room for the marks now, if nothing is kept to be overwritten.
            self.directory.clear_spares();
            if let Err(e) = preserve(&self.directory, &mut kept, &for_good) {
                log::warn!("what stays for good could not be marked: {e:#}");
            }
        }
        let permanent: HashSet<&str> =
            kept.iter().filter(|found| found.entry.permanent).map(|found| found.entry.name.as_str()).collect();
        for known in &mut self.ledger().known {
            known.entry.permanent |= permanent.contains(known.entry.name.as_str());
        }
        Ok(())
    }
}
