//! The steps after a save: superseded checkpoints are renamed, old ones are pruned, and the index is updated. No lock
//! that the training waits for is held meanwhile.

use super::ledger::{Ledger, infos};
use super::on_saved::{OnSaved, SavedCheckpoint};
use super::retention::CheckpointInfo;
use super::{links, pins, thinning};
use crate::catalog::{Found, Marks, look, mark_files, number_of, sync_marks, write_mark};
use crate::error::{Error, Result, listed};
use crate::format::{Follows, IndexEntry, MarkKind, is_thinned_file};
use crate::repository::{Aside, Directory};
use crate::rules::Rule;
use crate::save::{Committed, Held, Image, SaveRequest};
use crate::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::any::Any;
use std::cell::LazyCell;
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

/// A checkpoint on its way into the ledger.
pub(super) struct Commit {
    ledger: Arc<Mutex<Ledger>>,
    /// Its name.
    pub name: String,
    /// Those of which it takes the place.
    pub supersedes: Vec<String>,
    is_done: bool,
    pub directory: Directory,
    held: Arc<Held>,
    /// Marks of the checkpoint that it replaces, whose state is the same.
    noted: Vec<MarkKind>,
    /// Marks for it that were given while it was written.
    pub early: EarlyMarks,
    on_saved: OnSaved,
    began: Instant,
}

/// Marks for a checkpoint that is still being written. Locked during its commit; `None` when it is durable and takes
/// marks itself.
pub(super) type EarlyMarks = Arc<Mutex<Option<Vec<MarkKind>>>>;

impl Commit {
    pub(super) fn new(ledger: Arc<Mutex<Ledger>>, name: String, supersedes: Vec<String>) -> Commit {
        let (directory, held) = {
            let ledger = ledger.lock().unwrap_or_else(PoisonError::into_inner);
            (ledger.directory.clone(), ledger.held.clone())
        };
        let early = Arc::new(Mutex::new(Some(Vec::new())));
        Commit {
            ledger,
            name,
            supersedes,
            is_done: false,
            directory,
            held,
            noted: Vec::new(),
            early,
            on_saved: OnSaved::default(),
            began: Instant::now(),
        }
    }

    /// Marks to write with it.
    pub(super) fn noted(mut self, noted: Vec<MarkKind>) -> Commit {
        self.noted = noted;
        self
    }

    /// The functions to call when it is durable.
    pub(super) fn then(mut self, on_saved: OnSaved) -> Commit {
        self.on_saved = on_saved;
        self
    }

    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks, before anything is written, that the name is free or will be.
    fn begin(&self) -> Result<()> {
        if self.supersedes.contains(&self.name) { Ok(()) } else { self.directory.must_be_free(&self.name) }
    }

    /// Saves `request`, from `image` or from the live tensors, with the marks of the checkpoint that it replaces and those
    /// that were given meanwhile. Records it, and prunes old ones. Failing to remove an old one, or to record it, is not
    /// an error: the next save tries again.
    ///
    /// # Errors
    /// If nothing was saved. The inner error is of what follows a save: [`Error::Callback`] if a function given to
    /// `on_saved` fails; [`Error::Panicked`] if something panics. Only the first one is returned.
    pub(super) fn save(mut self, request: SaveRequest, image: Option<&Image>) -> Result<Result<()>> {
        self.begin()?;
        let early = self.early.clone();
        // Until the checkpoint is known, whoever gives it a mark waits, and then writes the mark.
        let mut locked = None;
        let marks = |id: &Follows| {
            let early = locked.insert(early.lock().unwrap_or_else(PoisonError::into_inner));
            mark_files(id, self.noted.iter().chain(early.iter().flatten()).cloned().collect())
        };
        let saved = request.run(image, &self.directory, &self.name, Vec::new(), &self.supersedes, marks)?;
        self.is_done = true;
        let (path, figures) = (saved.path.clone(), saved.figures);
        let found = self.take_in(saved);
        if let Some(mut early) = locked {
            *early = None;
        }
        let panicked = |panic: Box<dyn Any + Send>| Err(Error::panicked("remove what is old after a save", &*panic));
        let pruned = catch_unwind(AssertUnwindSafe(|| {
            self.take_pins_off();
            self.prune(&found);
        }));
        let pruned = pruned.or_else(panicked);
        let called = self.on_saved.call(|| {
            // With the marks that were added meanwhile.
            let info = self.ledger().known.iter().find(|known| known.id() == found.id()).map(CheckpointInfo::from);
            SavedCheckpoint { path, info: info.unwrap_or_else(|| CheckpointInfo::from(&found)), figures }
        });
        let mut errors = [pruned, called].into_iter().filter_map(Result::err);
        let first = errors.next();
        errors.for_each(|error| log::error!("{error:#}"));
        Ok(first.map_or(Ok(()), Err))
    }

    /// Adds a durable checkpoint to the ledger.
    fn take_in(&self, saved: Committed) -> Found {
        let marks = Marks::among(&saved.marks, &saved.manifest.id(), self.directory.rules());
        let found = Found::new(&self.name, &saved.manifest, marks);
        if !found.non_finite.is_empty() {
            log::warn!(
                "{} has values that are not finite in {}: no policy keeps it, and no restart takes it; constants such as \
                 masks can be excepted (`SaveOptions::health_except`)",
                self.name,
                listed(&found.non_finite)
            );
        }
        let mut ledger = self.ledger();
        let aside = |(name, aside): (String, String)| {
            let found = ledger.known.iter().find(|found| found.entry.name == name)?;
            Some((aside, found.clone()))
        };
        let aside: Vec<_> = saved.superseded.into_iter().filter_map(aside).collect();
        ledger.superseded.extend(aside);
        let gone = |found: &Found| self.supersedes.contains(&found.entry.name) || found.entry.name == self.name;
        ledger.known.retain(|found| !gone(found) || !self.directory.rules().hold(Rule::OneEntry));
        ledger.add(found.clone());
        ledger.listed = ledger.known.iter().map(Found::id).collect();
        ledger.memo = saved.memo;
        ledger.last_took = Some(self.began.elapsed());
        ledger.figures = Some(saved.figures);
        found
    }

    /// Prunes old checkpoints after `found` was added, and writes the index.
    fn prune(&self, found: &Found) {
        let rules = self.directory.rules();
        let (mut known, restored, mut seen) = {
            let mut ledger = self.ledger();
            (ledger.take_copy(), ledger.restored.clone(), std::mem::take(&mut ledger.seen))
        };
        seen.saved(&self.directory, found);
        // A checkpoint that the user removed no longer counts, whatever is in its place.
        let listed_twice = |found: &Found| !rules.hold(Rule::OneEntry) && found.entry.name == self.name;
        known.retain(|found| seen.is_there(&self.directory, found) || !rules.hold(Rule::Gone) || listed_twice(found));
        seen.keep(&known);
        // Also of permanent checkpoints: their metrics decide whether others are among the best.
        for found in &mut known {
            let name = found.entry.name.clone();
            if seen.may_be_marked(&self.directory, found) && !read_marks(&self.directory, &name, found) {
                seen.forget_marks(&name);
            }
        }
        self.ledger().seen = seen;
        let retention = self.ledger().retention.clone();
        let decide = |known: &[Found]| retention.decide(&infos(known), restored.as_ref(), self.directory.now());
        let mut verdict = decide(&known);
        // What has lost files stands in for nothing, and must not stop the rotation.
        while verdict.removes() {
            let kept = known.iter().filter(|found| !verdict.remove.contains(&found.entry.name));
            let lost = self.set_aside_lost(Commit::stand_ins(kept));
            if lost.is_empty() {
                break;
            }
            known.retain(|found| !lost.contains(&found.entry.name));
            verdict = decide(&known);
        }
        for found in known.iter_mut().filter(|found| verdict.preserve.contains(&found.entry.name)) {
            // Before acting on the decision, so that it is never forgotten.
            match write_mark(&self.directory, &found.entry.name, found.id(), MarkKind::Permanent) {
                Ok(()) => found.entry.permanent = true,
                Err(e) => log::warn!("{} could not be marked as permanent: {e:#}", found.entry.name),
            }
        }
        let remove: HashSet<&str> = verdict.remove.iter().map(String::as_str).collect();
        let (mut victims, mut kept): (Vec<Found>, Vec<Found>) =
            known.into_iter().partition(|found| remove.contains(found.entry.name.as_str()));
        let mut spared = Vec::new();
        if verdict.removes() {
            match self.may_remove(&mut kept) {
                Ok(()) => thinning::mark(&self.directory, &mut kept, &verdict.thin),
                Err(why) => {
                    log::warn!("nothing is removed to make room: {why}");
                    spared = std::mem::take(&mut victims);
                }
            }
        }
        self.ledger().put_back(in_order(spared, kept));
        let has_links = links::update(&self.ledger, &self.directory);
        // The index is durable before anything is removed, except on a full disk, where that is possible only
        // afterwards.
        let noted = self.write_index();
        self.remove(victims);
        self.thin();
        self.remove_superseded();
        self.remove_damaged();
        if !has_links {
            links::update(&self.ledger, &self.directory);
        }
        if let Err(e) = noted.or_else(|_| self.write_index()) {
            log::warn!("the index could not be written: {e:#}; the checkpoints are found without it");
            self.held.forget_index(&self.directory);
        }
    }

    /// Removes the pins that the new checkpoint has taken over.
    fn take_pins_off(&self) {
        let (superseded, known) = {
            let ledger = self.ledger();
            let pinned = ledger.superseded.iter().filter(|(_, found)| !found.pins.is_empty());
            let pinned: Vec<_> = pinned.cloned().collect();
            if pinned.is_empty() {
                return;
            }
            (pinned, ledger.known.clone())
        };
        for aside in pins::take_off(&self.directory, &superseded, &known) {
            if let Ok(marks) = self.directory.marks(&aside) {
                self.ledger().note_marks(&aside, &marks);
            }
        }
    }

    /// Returns those that stand in for what is removed: all that policies keep but the one saved just now, which needs
    /// no look.
    fn stand_ins<'a>(kept: impl DoubleEndedIterator<Item = &'a Found>) -> impl Iterator<Item = &'a Found> {
        kept.rev().skip(1).filter(|found| !found.entry.permanent)
    }

    /// Moves those that have lost files out of the numbering, as a restart would. Returns their names.
    pub(super) fn set_aside_lost<'a>(&self, stand_ins: impl Iterator<Item = &'a Found>) -> Vec<String> {
        let mut lost = Vec::new();
        for found in stand_ins.filter(|found| !found.looks_whole(&self.directory)) {
            let name = &found.entry.name;
            // What cannot be read now may be whole: it stays, and so does all else.
            let Err(error) = look(&self.directory, name) else { continue };
            if !error.is_damage() {
                continue;
            }
            match self.directory.quarantine(name, Aside::Damaged) {
                Ok(aside) => {
                    log::warn!("{name} has lost files and is moved aside, to {aside}: {error:#}");
                    let mut ledger = self.ledger();
                    ledger.forget(name);
                    ledger.damaged.push(aside);
                    lost.push(name.clone());
                }
                Err(e) => log::warn!("{name} has lost files and could not be moved aside: {e:#}"),
            }
        }
        if !lost.is_empty() {
            links::update(&self.ledger, &self.directory);
        }
        lost
    }

    /// Checks that the kept checkpoints have all their files, and that the marks on which the decision is based are
    /// durable.
    ///
    /// # Errors
    /// Why nothing may be removed.
    fn may_remove(&self, kept: &mut [Found]) -> Result<(), String> {
        if let Some(found) = Commit::stand_ins(kept.iter()).find(|found| !found.looks_whole(&self.directory)) {
            let name = &found.entry.name;
            return Err(format!(
                "{name} has lost files, or cannot be read now (`CheckpointManager::pass_over` goes on without it)"
            ));
        }
        sync_marks(&self.directory, kept).map_err(|e| format!("the marks of those that stay are not durable: {e:#}"))
    }

    /// Removes these checkpoints, except those that got a mark meanwhile: the next save decides about them again.
    pub(super) fn remove(&self, victims: Vec<Found>) {
        let (mut stuck, rules) = (Vec::new(), self.directory.rules());
        for found in victims {
            let id = found.id();
            let is_told_more = |marks: &[(String, Vec<u8>)]| {
                found.is_told_more_by(&Marks::among(marks, &id, rules)) && rules.hold(Rule::FreshMarks)
            };
            match self.directory.remove(&found.entry.name, &id, &is_told_more) {
                Ok(true) => {}
                Ok(false) => stuck.push(look(&self.directory, &found.entry.name).unwrap_or(found)),
                Err(e) => {
                    let name = &found.entry.name;
                    log::warn!("the old checkpoint {name} could not be removed: {e:#}; it is tried again later");
                    stuck.push(found);
                }
            }
        }
        let mut ledger = self.ledger();
        let kept = std::mem::take(&mut ledger.known);
        ledger.known = in_order(stuck, kept);
    }

    /// Removes the files of components of which a mark says that they are removed.
    fn thin(&self) {
        let mut known = self.ledger().take_copy();
        thinning::finish(&self.directory, &mut known);
        self.ledger().put_back(known);
    }

    /// Removes superseded checkpoints once `max_to_keep` newer ones that stand in for them are complete. Examines only
    /// those that may go, and each of those that stay once.
    fn remove_superseded(&self) {
        let (mut superseded, known, retention) = {
            let ledger = self.ledger();
            if ledger.superseded.is_empty() || ledger.retention.superseded_after.is_none() {
                return;
            }
            (ledger.superseded.clone(), ledger.known.clone(), ledger.retention.clone())
        };
        let whole = LazyCell::new(|| {
            let whole = known.iter().filter(|found| found.looks_whole(&self.directory));
            whole.collect::<Vec<&Found>>()
        });
        superseded.retain_mut(|(aside, found)| {
            let may_go = retention.waits_superseded(standing_in(found, &known, 0)).is_none();
            if !may_go || retention.waits_superseded(standing_in(found, whole.iter().copied(), 0)).is_some() {
                return false;
            }
            read_marks(&self.directory, aside, found);
            retention.keeps_superseded(&CheckpointInfo::from(&*found), usize::MAX).is_empty()
        });
        self.remove_aside(superseded.iter().map(|(aside, found)| (aside.as_str(), found)));
    }

    /// Removes these superseded ones, unless a mark keeps one.
    pub(super) fn remove_aside<'a>(&self, superseded: impl Iterator<Item = (&'a str, &'a Found)>) {
        let rules = self.directory.rules();
        for (aside, found) in superseded {
            let id = found.id();
            match self.directory.remove(aside, &id, &|marks| Marks::among(marks, &id, rules).stays()) {
                Ok(true) => self.ledger().superseded.retain(|(name, _)| name != aside),
                Ok(false) => {}
                Err(e) => log::warn!("{aside} could not be removed: {e:#}; it is tried again later"),
            }
        }
    }

    /// Removes damaged checkpoints beyond the number to keep, unless a mark keeps one.
    pub(super) fn remove_damaged(&self) {
        let damaged = self.ledger().damaged_to_remove();
        for aside in damaged {
            match self.directory.discard(&aside, &keeps_damaged) {
                Ok(true) => self.ledger().damaged.retain(|name| *name != aside),
                Ok(false) => {}
                Err(e) => log::warn!("{aside} could not be removed: {e:#}; it is tried again later"),
            }
        }
    }

    /// Updates the index, and keeps the entries of other managers' existing checkpoints.
    fn write_index(&self) -> Result<()> {
        write_index(&self.ledger, &self.directory, &self.held)
    }
}

/// If the checkpoint was not completed, those that it was to supersede have their names, unless they could not be given
/// back: then they are no longer listed, and the next manager tries again.
impl Drop for Commit {
    fn drop(&mut self) {
        for name in self.supersedes.iter().filter(|_| !self.is_done) {
            if self.directory.must_be_free(name).is_ok() {
                self.ledger().known.retain(|known| known.entry.name != *name);
            }
        }
    }
}

/// Describes marks for a checkpoint that was not saved.
pub(super) fn described(early: &EarlyMarks) -> String {
    let early = early.lock().unwrap_or_else(PoisonError::into_inner);
    let marks: Vec<String> = early.iter().flatten().map(MarkKind::to_string).collect();
    if marks.is_empty() { String::new() } else { format!(", and with it {}", marks.join(", ")) }
}

/// Reads the marks, which other processes may have written, of a checkpoint in the directory `name`. Returns whether
/// they could be read.
pub(super) fn read_marks(directory: &Directory, name: &str, found: &mut Found) -> bool {
    match directory.marks(name) {
        Ok(_) if !directory.rules().hold(Rule::FreshMarks) => {}
        Ok(files) => found.take_in(Marks::among(&files, &found.id(), directory.rules())),
        Err(e) => {
            // It is not removed either: that reads them again.
            log::debug!("the marks of {name} cannot be read: {e:#}");
            return false;
        }
    }
    true
}

/// Returns `true` if a damaged checkpoint with these marks stays: whatever its manifest was, a mark that may keep it
/// does. Metrics, and that components were removed, do not.
pub(super) fn keeps_damaged(marks: &[(String, Vec<u8>)]) -> bool {
    marks.iter().any(|(name, _)| !name.starts_with("mark-metric-") && !is_thinned_file(name))
}

/// Marks those of these names as permanent, before anything is removed because they stay.
///
/// # Errors
/// As for [`write_mark`].
pub(super) fn preserve(directory: &Directory, kept: &mut [Found], names: &[String]) -> Result<()> {
    for found in kept.iter_mut().filter(|found| !found.entry.permanent && names.contains(&found.entry.name)) {
        write_mark(directory, &found.entry.name, found.id(), MarkKind::Permanent)?;
        found.entry.permanent = true;
    }
    Ok(())
}

/// Returns how many of `known` stand in for a superseded checkpoint, plus `next`, the number of complete ones that are
/// about to be saved. What no restart uses does not stand in for what one could use.
pub(super) fn standing_in<'a>(superseded: &Found, known: impl IntoIterator<Item = &'a Found>, next: usize) -> usize {
    let can_restart = |found: &Found| found.is_healthy() && found.without.is_empty();
    let newer = known.into_iter().filter(|newer| newer.entry.sequence > superseded.entry.sequence);
    let newer: Vec<&Found> = newer.filter(|newer| newer.is_healthy() || !superseded.is_healthy()).collect();
    let suffices = next > 0 || !can_restart(superseded) || newer.iter().any(|newer| can_restart(newer));
    if suffices { newer.len() + next } else { 0 }
}

/// Puts checkpoints that are kept after all back to their place among the others.
fn in_order(stay: Vec<Found>, others: Vec<Found>) -> Vec<Found> {
    let mut all = others;
    for found in stay {
        // Those of one run are in the order of their sequences, but for the newest.
        let later = all.iter().position(|other| other.entry.sequence > found.entry.sequence);
        let at = later.unwrap_or(all.len().saturating_sub(1));
        all.insert(at, found);
    }
    all
}

/// Updates the index with the ledger, and keeps the entries of other managers' checkpoints.
pub(super) fn write_index(ledger: &Mutex<Ledger>, directory: &Directory, held: &Held) -> Result<()> {
    let (name, known, older) = {
        let ledger = ledger.lock().unwrap_or_else(PoisonError::into_inner);
        (ledger.name.clone(), ledger.known.clone(), ledger.older.clone())
    };
    let permanent = known.iter().filter(|found| found.entry.permanent);
    let last_permanent = permanent.map(|found| found.entry.saved_at).max();
    // What another version wrote is known to be older only as long as the index lists it.
    let others = |entry: &IndexEntry| number_of(&name, &entry.name).is_none() || older.contains(&entry.name);
    held.update_index(directory, |index| {
        index.checkpoints.retain(|entry| others(entry) && directory.must_be_free(&entry.name).is_err());
        index.latest = known.last().map(|found| found.entry.name.clone());
        index.checkpoints.extend(known.into_iter().map(|found| found.entry));
        index.last_permanent = last_permanent;
    })
}
