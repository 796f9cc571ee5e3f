//! The start of a run: from the newest intact checkpoint, from a given one, or from nothing.

use super::CheckpointManager;
use super::checkpoint_ref::name_in;
use super::commit::read_marks;
use super::ledger::infos;
use super::links;
use super::retention::{Best, Goal};
use super::select::selected;
use crate::catalog::{Catalog, Found, number_of};
use crate::error::{Error, Result, listed};
use crate::format::Manifest;
use crate::location::Location;
use crate::name;
use crate::repository::{Aside, before_aside};
use crate::restore::{PassedOver, RestoreOptions, RestoreStatus, StartOutcome, Verify};
use crate::rules::Rule;
use crate::source::Source;
use std::cmp::Reverse;
use std::time::Instant;

impl CheckpointManager {
    /// Restores the newest intact checkpoint into the tracked objects. In an empty directory, calls the function of
    /// [`init`](crate::CheckpointManagerBuilder::init) instead. Damaged checkpoints are skipped, renamed, and listed in
    /// the result.
    ///
    /// The newest is the head of the chain in which each checkpoint follows the one that was restored or saved before
    /// it. A checkpoint of another run that was copied into the directory is ignored.
    ///
    /// Every byte is read once and verified while it is read. Manifests, file lengths and headers are checked before
    /// the first write. If a damaged tensor is found after that, an older checkpoint overwrites everything that was
    /// changed. Only if there is none are the objects left partly overwritten, with [`Error::PartlyRestored`], and
    /// nothing can be saved until a restore succeeds. [`restore`](CheckpointManager::restore) verifies the complete
    /// checkpoint before it changes anything.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if the newest intact checkpoint does not match the objects; no object was changed.
    /// [`Error::PartlyRestored`] if a checkpoint was found damaged after objects had been changed, and no older one
    /// could be restored over it. [`Error::Io`] if a checkpoint cannot be read now,
    /// [`Error::Unsupported`] if a newer version wrote or marked one, and [`Error::Link`] if a link is in the place of one,
    /// unless it is known to be older than the newest; [`pass_over`](CheckpointManager::pass_over) continues without it. [`Error::Undecided`] if nothing decides which
    /// of two is the newest. If there are checkpoints but none is intact, or only checkpoints of another name, the
    /// error of the newest, or [`Error::NotFound`] with all reasons: a run does not start over silently. Move them
    /// away, or set [`fresh_start`](crate::CheckpointManagerBuilder::fresh_start).
    pub fn restore_or_initialize(&mut self) -> Result<StartOutcome> {
        self.restore_or_initialize_with(&RestoreOptions::new())
    }

    /// Like [`restore_or_initialize`](CheckpointManager::restore_or_initialize), with exceptions or other options.
    ///
    /// # Errors
    /// As for [`restore_or_initialize`](CheckpointManager::restore_or_initialize).
    pub fn restore_or_initialize_with(&mut self, options: &RestoreOptions) -> Result<StartOutcome> {
        let options = &options.clone().with_trainable_chosen();
        self.settle()?;
        self.directory.check()?;
        self.look_again()?;
        let (healthy, unhealthy): (Vec<Found>, Vec<Found>) = {
            let ledger = self.ledger();
            let takes = |found: &Found| self.why_not_taken(found, options).is_none();
            let mut all: Vec<Found> = ledger.known.iter().rev().cloned().collect();
            // A permanent one that nothing connects with the newest may be of another run.
            if let Some(newest) = all.first().map(Found::id) {
                let related = ledger.related_to(&newest);
                all.sort_by_key(|found| !related.contains(&found.id()));
            }
            all.into_iter().partition(takes)
        };
        let without: Vec<Vec<String>> = healthy.iter().map(|found| found.without.clone()).collect();
        let layouts: Vec<u64> = healthy.iter().map(|found| found.layout).collect();
        let names: Vec<String> = healthy.into_iter().map(|found| found.entry.name).collect();
        let root = self.directory.root().clone();
        let mut passed_by: Vec<PassedOver> = unhealthy
            .into_iter()
            .map(|found| {
                let reason = self.why_not_taken(&found, options).unwrap_or_default();
                PassedOver { path: root.join(found.entry.name), reason }
            })
            .collect();
        let mut first_error = None;
        for (at, checkpoint) in names.iter().enumerate() {
            let fallbacks = &names[at + 1..];
            let path = self.directory.root().join(checkpoint);
            let freed = self.ledger().free_numbers(checkpoint);
            freed.map_err(|e| self.checkpoint.explain_torn(&path, e))?;
            let skip = |options: RestoreOptions, component: &String| options.skip(name::key([component]));
            let options = &without[at].iter().fold(options.clone(), skip);
            let lacks_more = without[at + 1..].iter().flatten().any(|component| !without[at].contains(component));
            // The next one may have been saved before something was tracked.
            let differs = layouts.get(at + 1).is_some_and(|next| *next != layouts[at]);
            let restored = self.restore_in_one_pass(&path, fallbacks, lacks_more || differs, options);
            let restored = restored.inspect(|status| self.note_restore(status));
            match restored {
                Ok(status) => {
                    let restored = self.place_of(checkpoint);
                    passed_by.retain(|passed| self.place_of_path(&passed.path) > restored);
                    let passed_over = self.passed_over(passed_by);
                    return Ok(StartOutcome { restored: Some(status), initialized: None, passed_over });
                }
                Err(error) if error.is_damage() => {
                    let cause = if let Error::PartlyRestored { source, .. } = &error { source } else { &error };
                    self.forget(checkpoint);
                    self.ledger().pass_over(checkpoint, cause, Some(Aside::Damaged));
                    first_error.get_or_insert(error);
                }
                Err(error) => return Err(self.checkpoint.explain_torn(&path, error)),
            }
        }
        // A run does not start over with partly overwritten objects, unless what it is initialized from overwrites them.
        let is_initialized =
            self.initialize_from.is_some() && first_error.is_none() && self.ledger().why_not_afresh().is_none();
        if self.checkpoint.is_torn() && !is_initialized {
            let nothing = || "there is no older checkpoint to restore over it".to_string();
            let error = first_error.unwrap_or_else(|| {
                let reason = self.ledger().why_not_afresh().unwrap_or_else(nothing);
                Error::not_found(&root, reason)
            });
            return Err(self.checkpoint.explain_torn(&root, error));
        }
        if !self.fresh_start {
            if let Some(error) = first_error {
                return Err(error);
            }
            if let Some(passed) = passed_by.first() {
                let reason = format!(
                    "none that is there can be resumed: {}; `CheckpointManagerBuilder::fresh_start` starts a new run",
                    passed.reason
                );
                return Err(Error::not_found(&passed.path, reason));
            }
            if let Some(reason) = self.ledger().why_not_afresh() {
                return Err(Error::not_found(self.directory.root(), reason));
            }
        }
        if let Some(init) = &mut self.init {
            init()?;
        }
        self.init = None;
        let initialized = match self.initialize_from.clone() {
            Some((path, options)) => Some(self.read_initial(&path, &options)?),
            None => None,
        };
        if self.checkpoint.is_torn() {
            let reason = "what the run is initialized from lacks a part of what was overwritten".to_string();
            return Err(self.checkpoint.explain_torn(&root, Error::not_found(&root, reason)));
        }
        (self.begun, self.head, self.last_step, self.restored_past) = (true, None, None, false);
        let passed_over = self.passed_over(passed_by);
        Ok(StartOutcome { restored: None, initialized, passed_over })
    }

    /// Returns what was passed over since the last restore, and these. Numbers tell the order, because what is damaged has
    /// no other place.
    fn passed_over(&self, passed_by: Vec<PassedOver>) -> Vec<PassedOver> {
        let mut ledger = self.ledger();
        let mut passed_over = std::mem::take(&mut ledger.passed_over);
        passed_over.extend(passed_by);
        let number = |passed: &PassedOver| {
            let name = passed.path.file_name()?.to_str()?;
            number_of(&self.name, before_aside(name).map_or(name, |(_, name)| name))
        };
        passed_over.sort_by_key(|passed| Reverse(number(passed)));
        passed_over
    }

    /// Reads the checkpoint from which the run is initialized: the one at `path`, or the one that its last component
    /// selects.
    fn read_initial(&mut self, path: &Location, options: &RestoreOptions) -> Result<RestoreStatus> {
        match self.checkpoint.read_with(path, options) {
            Err(error @ Error::NotFound { .. }) => match selected(self.checkpoint.storage(), path)? {
                Some(selected) => self.checkpoint.read_with(selected, options),
                None => Err(error),
            },
            result => result,
        }
    }

    /// Returns why a run is not resumed from a valid checkpoint.
    pub(super) fn why_not_taken(&self, found: &Found, options: &RestoreOptions) -> Option<String> {
        if found.unclean {
            return Some("it was saved after an error, and its state may not belong together".to_string());
        }
        // `optimizer/*` leaves out as much as `optimizer`.
        let is_skipped = |key: &str| options.skips_here(key) || options.skips_here(&name::prefix(key));
        let is_wanted = |component: &&String| !is_skipped(&name::key([component]));
        let lacks: Vec<String> = found.without.iter().filter(is_wanted).cloned().collect();
        let rules = self.directory.rules();
        if !lacks.is_empty() && !self.restore_incomplete && rules.hold(Rule::ResumeWhole) {
            let (lacked, thinned) = (listed(&lacks), lacks.iter().any(|lacked| found.thinned.contains_key(lacked)));
            let why = if thinned { ", which `keep_component` removed" } else { "" };
            return Some(format!("it lacks the component {lacked}{why} (`restore_incomplete` takes it all the same)"));
        }
        let is_taken = found.non_finite.is_empty() || self.restore_unhealthy || !rules.hold(Rule::ResumeHealthy);
        (!is_taken).then(|| {
            let tensors = listed(&found.non_finite);
            format!("there are values that are not finite in {tensors} (`restore_unhealthy` takes it all the same)")
        })
    }

    /// Restores the checkpoint at `path`, reading every byte once and verifying it while reading. Verifies everything
    /// first if one of the `fallbacks` lacks what this checkpoint overwrites. They are examined if the options allow that,
    /// or if one `may_lack` something all the same.
    fn restore_in_one_pass(
        &mut self,
        path: &Location,
        fallbacks: &[String],
        may_lack: bool,
        options: &RestoreOptions,
    ) -> Result<RestoreStatus> {
        let may_lack = may_lack || options.has_exceptions();
        if options.verifies_first() && (!may_lack || self.fall_back(path, fallbacks)) {
            return self.checkpoint.restore_own(path, &options.clone().verify(Verify::WhileReading));
        }
        self.checkpoint.restore_own(path, options)
    }

    /// Returns `true` if each of these checkpoints has all values of the one at `path`, and all tensors, with the same
    /// types and shapes.
    fn fall_back(&self, path: &Location, fallbacks: &[String]) -> bool {
        let manifest = |name: &str| Some(Source::open_in(&self.directory, name).ok()?.manifest);
        let name = path.file_name().and_then(|name| name.to_str());
        let Some(first) = name.and_then(manifest) else { return false };
        let has = |other: &Manifest| {
            first.values.keys().all(|key| other.values.contains_key(key))
                && first
                    .tensors
                    .iter()
                    .all(|(key, one)| other.tensors.get(key).is_some_and(|other| other.spec == one.spec))
        };
        !fallbacks.is_empty() && fallbacks.iter().all(|name| manifest(name).is_some_and(|other| has(&other)))
    }

    /// Returns the index of a checkpoint among the known ones.
    fn place_of(&self, name: &str) -> Option<usize> {
        self.ledger().known.iter().position(|found| found.entry.name == name)
    }

    fn place_of_path(&self, path: &Location) -> Option<usize> {
        self.place_of(path.file_name()?.to_str()?)
    }

    /// Examines again what could not be read, and everything if something was removed.
    ///
    /// # Errors
    /// If it still cannot be read, or if nothing decides which of two checkpoints is the newest.
    fn look_again(&mut self) -> Result<()> {
        self.look_at_changes()?;
        let ledger = self.ledger();
        if let Some(error) = ledger.why_unreachable() {
            return Err(error);
        }
        ledger.decided()
    }

    /// Examines again what a first save would begin beside: its user may have done what an error asked for.
    ///
    /// # Errors
    /// If the directory cannot be listed.
    pub(super) fn look_before_a_run_begins(&mut self) -> Result<()> {
        if self.begun || self.fresh_start { Ok(()) } else { self.look_at_changes() }
    }

    fn look_at_changes(&mut self) -> Result<()> {
        let mut ledger = self.ledger();
        if ledger.undecided.is_some() || !ledger.unreachable.is_empty() || !ledger.are_all_there() {
            let catalog = Catalog::of(&self.directory, self.directory.scan()?);
            ledger.take_in(catalog);
            drop(ledger);
            links::update(&self.ledger, &self.directory);
        }
        Ok(())
    }

    /// Restores the checkpoint at `path`; saves continue from its step. If there are later checkpoints of this
    /// directory's run, the next save supersedes them; see [going back](CheckpointManager#going-back).
    ///
    /// # Errors
    /// As for [`Checkpoint::restore`](crate::Checkpoint::restore).
    pub fn restore(&mut self, path: impl Into<Location>) -> Result<RestoreStatus> {
        self.restore_with(path, &RestoreOptions::default())
    }

    /// Like [`restore`](CheckpointManager::restore), with exceptions or other options.
    ///
    /// # Errors
    /// As for [`Checkpoint::restore_with`](crate::Checkpoint::restore_with).
    pub fn restore_with(&mut self, path: impl Into<Location>, options: &RestoreOptions) -> Result<RestoreStatus> {
        self.settle()?;
        let status = self.checkpoint.restore_with(path, options)?;
        self.note_restore(&status);
        Ok(status)
    }

    /// Restores the healthy checkpoint of this manager with the best finite value of `metric`, usually at the end of
    /// the training; of two with the same value, the newer one. Waits for a background save, and reads metrics that
    /// another process added. Checkpoints that were removed by hand, or that cannot be read now, are left out.
    /// Components that the checkpoint lacks ([`keep_component`](crate::CheckpointManagerBuilder::keep_component)) keep
    /// their values. The metric does not keep a checkpoint: use the policy [`Best`].
    ///
    /// As after any [`restore`](CheckpointManager::restore), a later save would supersede the checkpoints after this
    /// one.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let directory = tempfile::tempdir()?;
    /// # let dir = directory.path().join("run");
    /// use tch_checkpoint::retention::{Best, Goal};
    /// use tch_checkpoint::{Checkpoint, CheckpointManager, Counter};
    /// let step = Counter::new(0);
    /// let checkpoint = Checkpoint::new().track("step", &step)?;
    /// let mut manager = CheckpointManager::builder(checkpoint, &dir)
    ///     .max_to_keep(1)
    ///     .keep(Best::new("loss", Goal::Minimize, 1))
    ///     .open()?;
    /// for loss in [0.5, 0.2, 0.4] {
    ///     manager.save_with_metrics(step.increment(), [("loss", loss)])?;
    /// }
    /// manager.restore_best("loss", Goal::Minimize)?;
    /// assert_eq!(step.get(), 2);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::NotFound`] if no healthy checkpoint has a finite value of the metric; [`Error::Undecided`] if nothing
    /// decides which of two runs is that of the directory; otherwise as for [`restore`](CheckpointManager::restore).
    pub fn restore_best(&mut self, metric: impl Into<String>, goal: Goal) -> Result<RestoreStatus> {
        let metric = metric.into();
        self.settle()?;
        self.look_at_changes()?;
        let best = {
            let mut ledger = self.ledger();
            ledger.decided()?;
            for found in &mut ledger.known {
                // Checkpoints whose marks cannot be read keep the metrics that were read before.
                let name = found.entry.name.clone();
                read_marks(&self.directory, &name, found);
            }
            Best::new(metric.clone(), goal, 1).choose(&infos(&ledger.known)).cloned()
        };
        let Some(best) = best else {
            let reason = format!("no healthy checkpoint has a finite value of the metric {metric:?}");
            return Err(Error::not_found(self.directory.root(), reason));
        };
        let skip = |options: RestoreOptions, component: &String| options.skip(name::key([component]));
        let options = best.without.iter().fold(RestoreOptions::new(), skip);
        self.restore_with(self.directory.root().join(&best.name), &options)
    }

    fn note_restore(&mut self, status: &RestoreStatus) {
        self.look_at_restores();
        // Files of other tools have no step.
        if !status.lineage().is_empty() {
            // Of one without a step, that of the last one before it.
            let last_step = status.step().or_else(|| self.ledger().step_up_to(self.head.as_ref()?));
            (self.last_step, self.restored_past) = (last_step, false);
            self.last_save_at = Instant::now();
            #[cfg(feature = "huggingface")]
            self.exports.iter_mut().for_each(|cadence| cadence.goes_on_from(status.step()));
        }
    }

    /// Skips the checkpoint at `path`, which cannot be read now or is not wanted: renames it (`passed-over-…`), so that
    /// it is not restored. This crate never removes it. Returns its new path. If it cannot be renamed, this manager skips it
    /// all the same, and returns the path that it keeps: its number stays taken, and the next process meets it again.
    ///
    /// An unreadable checkpoint may be the newest, so `restore_or_initialize` does not continue without it unless this
    /// is called.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if it is not a checkpoint of this manager's name in its directory;
    /// [`Error::NotFound`] if there is nothing of that name.
    pub fn pass_over(&mut self, path: impl Into<Location>) -> Result<Location> {
        self.settle()?;
        let path = &path.into();
        let name = name_in(path, self.directory.root())?;
        if number_of(&self.name, name).is_none() {
            return Err(Error::InvalidArgument(format!(
                "{path} is no checkpoint of this manager: their names are `{}-` and a number",
                self.name
            )));
        }
        if self.directory.must_be_free(name).is_ok() {
            let reason = "there is nothing of that name".to_string();
            return Err(Error::not_found(path, reason));
        }
        self.forget(name);
        let moved = self.directory.quarantine(name, Aside::PassedOver);
        let mut ledger = self.ledger();
        let path = match moved {
            Ok(aside) => ledger.path(&aside),
            // Its number stays taken.
            Err(e) => {
                log::warn!("{name} is skipped and keeps its number: {e:#}");
                ledger.skipped.insert(name.to_string());
                ledger.path(name)
            }
        };
        let reason = "it was skipped by `CheckpointManager::pass_over`".to_string();
        ledger.passed_over.push(PassedOver { path: path.clone(), reason });
        Ok(path)
    }

    /// Forgets a checkpoint before it is moved aside, so that no link leads to where it was.
    fn forget(&self, name: &str) {
        self.ledger().forget(name);
        links::update(&self.ledger, &self.directory);
    }
}
