//! What follows a save: those it takes the place of leave the numbering, old ones are removed, the index tells of it.
//! No lock that the training waits for is held meanwhile.

use super::ledger::{Ledger, candidate};
use crate::catalog::broken::{Rule, is_broken};
use crate::catalog::{Found, Marks, number_of, write_mark};
use crate::error::{Error, Result};
use crate::format::{IndexEntry, MarkKind};
use crate::repository::{Aside, Directory};
use crate::retention::Candidate;
use crate::save::{Held, Saved};
use crate::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A checkpoint on its way into the ledger.
pub(super) struct Commit {
    ledger: Arc<Mutex<Ledger>>,
    /// Its name.
    pub name: String,
    /// Those of which it takes the place.
    supersedes: Vec<String>,
    /// Those that have left the numbering for it: where they are now.
    moved: Mutex<Vec<(String, Found)>>,
    pub directory: Directory,
    held: Arc<Held>,
}

impl Commit {
    pub(super) fn new(ledger: Arc<Mutex<Ledger>>, name: String, supersedes: Vec<String>) -> Commit {
        let (directory, held) = {
            let ledger = ledger.lock().unwrap_or_else(PoisonError::into_inner);
            (ledger.directory.clone(), ledger.held.clone())
        };
        Commit { ledger, name, supersedes, moved: Mutex::default(), directory, held }
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn moved(&self) -> MutexGuard<'_, Vec<(String, Found)>> {
        self.moved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Before a byte is written: looks whether the name is free, or will be.
    pub(super) fn begin(&self) -> Result<()> {
        if self.supersedes.contains(&self.name) { Ok(()) } else { self.directory.must_be_free(&self.name) }
    }

    /// Moves those that this one takes the place of out of the numbering, when it is written and before it has its name.
    pub(super) fn ready(&self) -> Result<()> {
        for name in &self.supersedes {
            let found = self.ledger().known.iter().find(|found| found.entry.name == *name).cloned();
            let Some(found) = found else { continue };
            match self.directory.quarantine(name, Aside::Superseded) {
                Ok(aside) => self.moved().push((aside, found)),
                // Its user removed it.
                Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Takes in a checkpoint that is durable, and removes what is too much. Failing to remove an old one, or to note
    /// it, fails nothing: it is tried again at the next save.
    pub(super) fn done(self, saved: Saved) {
        let found = Found::new(&self.name, &saved.manifest, Marks::default());
        let (mut known, last_preserved, mut seen) = {
            let mut ledger = self.ledger();
            let gone = |found: &Found| self.supersedes.contains(&found.entry.name) || found.entry.name == self.name;
            ledger.known.retain(|found| !gone(found) || is_broken(Rule::OneEntry));
            ledger.known.push(found.clone());
            ledger.superseded.append(&mut self.moved());
            ledger.memo = saved.memo;
            (ledger.known.clone(), ledger.last_preserved, std::mem::take(&mut ledger.seen))
        };
        seen.saved(&self.directory, &found);
        // What its user removed counts no more, whatever is in its place.
        let listed_twice = |found: &Found| is_broken(Rule::OneEntry) && found.entry.name == self.name;
        known.retain(|found| seen.is_there(&self.directory, found) || is_broken(Rule::Gone) || listed_twice(found));
        seen.keep(&known);
        self.ledger().seen = seen;
        let retention = self.ledger().retention.clone();
        let candidates: Vec<Candidate> = known.iter().map(candidate).collect();
        let verdict = retention.decide(&candidates, last_preserved, self.directory.now());
        for found in known.iter_mut().filter(|found| verdict.preserve.contains(&found.entry.name)) {
            // Before the decision is acted upon: what it says must never be forgotten.
            match write_mark(&self.directory, &found.entry.name, found.id(), MarkKind::Permanent) {
                Ok(()) => found.entry.preserved = true,
                Err(e) => log::warn!("{} could not be marked as kept for good: {e}", found.entry.name),
            }
        }
        let (mut victims, kept): (Vec<Found>, Vec<Found>) =
            known.into_iter().partition(|found| verdict.remove.contains(&found.entry.name));
        let mut spared = Vec::new();
        if let Some(found) = self.stand_ins(&kept).find(|found| !victims.is_empty() && !self.looks_whole(&found.entry))
        {
            log::warn!("nothing is removed to make room: {} has lost files", found.entry.name);
            spared = std::mem::take(&mut victims);
        }
        {
            let mut ledger = self.ledger();
            ledger.known = spared.into_iter().chain(kept).collect();
            ledger.last_preserved = verdict.last_preserved;
        }
        // The index is durable before anything is removed; on a full disk it can be only after.
        let noted = self.write_index();
        self.remove(victims);
        self.remove_superseded();
        if let Err(e) = noted.or_else(|_| self.write_index()) {
            log::warn!("the index could not be written: {e}; the checkpoints are found without it");
            self.held.forget_index(&self.directory);
        }
    }

    /// Those that stand in for what is removed: the newest ones but the one saved just now, which needs no look.
    fn stand_ins<'a>(&self, kept: &'a [Found]) -> impl Iterator<Item = &'a Found> {
        let keep = self.ledger().retention.max_to_keep.unwrap_or(usize::MAX);
        kept.iter().rev().filter(|found| !found.entry.preserved).take(keep).skip(1)
    }

    /// Whether a checkpoint has its manifest and at least as many bytes as were written. Cheap: no file is read.
    fn looks_whole(&self, entry: &IndexEntry) -> bool {
        self.directory.looks_whole(&entry.name, entry.bytes)
    }

    /// Removes those, unless a mark says now that they stay.
    fn remove(&self, victims: Vec<Found>) {
        let mut stuck = Vec::new();
        for mut found in victims {
            match self.remove_one(&found.entry.name, &found) {
                Ok(true) => {}
                Ok(false) => {
                    found.entry.preserved = true;
                    stuck.push(found);
                }
                Err(e) => {
                    let name = &found.entry.name;
                    log::warn!("the old checkpoint {name} could not be removed: {e}; it will be tried again");
                    stuck.push(found);
                }
            }
        }
        self.ledger().known.splice(0..0, stuck);
    }

    /// Removes the checkpoint that is called `name` now; `false` when a mark says that it stays.
    fn remove_one(&self, name: &str, found: &Found) -> Result<bool> {
        let id = found.id();
        self.directory.remove(name, &id, &|marks| Marks::among(marks, &id).permanent)
    }

    /// Removes those that were superseded when as many newer ones are complete as are kept.
    fn remove_superseded(&self) {
        let (superseded, known, keep) = {
            let ledger = self.ledger();
            (ledger.superseded.clone(), ledger.known.clone(), ledger.retention.max_to_keep)
        };
        let Some(keep) = keep.map(|keep| if is_broken(Rule::KeepSuperseded) { 0 } else { keep }) else { return };
        for (aside, found) in superseded.iter().filter(|(_, found)| !found.entry.preserved) {
            let newer = known.iter().filter(|newer| newer.entry.sequence > found.entry.sequence);
            if newer.filter(|newer| self.looks_whole(&newer.entry)).count() < keep {
                continue;
            }
            match self.remove_one(aside, found) {
                Ok(true) => self.ledger().superseded.retain(|(name, _)| name != aside),
                Ok(false) => {}
                Err(e) => log::warn!("{aside} could not be removed: {e}; it will be tried again"),
            }
        }
    }

    /// Notes in the index what is known, and keeps what it says of other managers' checkpoints that are still there.
    fn write_index(&self) -> Result<()> {
        write_index(&self.ledger, &self.directory, &self.held)
    }
}

/// Gives those back their names that left the numbering for a checkpoint that did not become one.
impl Drop for Commit {
    fn drop(&mut self) {
        let moved = std::mem::take(&mut *self.moved());
        for (aside, found) in moved {
            if let Err(e) = self.directory.release(&aside, &found.entry.name) {
                log::warn!("{aside} could not be given back its name: {e}");
                let mut ledger = self.ledger();
                ledger.known.retain(|known| known.entry.name != found.entry.name);
                ledger.superseded.push((aside, found));
            }
        }
    }
}

/// Notes in the index what the ledger knows, and keeps what it says of other managers' checkpoints.
pub(super) fn write_index(ledger: &Mutex<Ledger>, directory: &Directory, held: &Held) -> Result<()> {
    let (name, known, last_preserved) = {
        let ledger = ledger.lock().unwrap_or_else(PoisonError::into_inner);
        (ledger.name.clone(), ledger.known.clone(), ledger.last_preserved)
    };
    let others = |entry: &IndexEntry| number_of(&name, &entry.name).is_none();
    held.update_index(directory, |index| {
        index.checkpoints.retain(|entry| others(entry) && directory.must_be_free(&entry.name).is_err());
        index.latest = known.last().map(|found| found.entry.name.clone());
        index.checkpoints.extend(known.into_iter().map(|found| found.entry));
        index.last_preserved = last_preserved;
    })
}
