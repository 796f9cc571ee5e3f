//! The saves of a manager: when they are due, under which number, and which checkpoints they replace.

use super::background::{Attempt, Before, InFlight, Order, Taken, WhenBusy};
use super::commit::{self, Commit};
use super::failures::{OnSaveError, OnUnhealthy};
use super::ledger::Ledger;
use super::links;
use super::retention::CheckpointInfo;
use super::save_policy::SaveContext;
use super::{CheckpointManager, Next};
use crate::callback;
use crate::catalog::{Found, number_of};
use crate::error::{Error, Result};
use crate::format::{Follows, Manifest, MarkKind};
use crate::graph::{Seen, changed_meanwhile};
use crate::location::Location;
use crate::rules::Rule;
use crate::save::{self, AllSeen, Plan, SaveClock, Stamp, Unchanged};
use crate::sync::{Arc, PoisonError};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

impl CheckpointManager {
    /// Saves immediately, numbered by the save counter: `ckpt-1`, `ckpt-2`, and so on. If that name is taken, uses the
    /// number after the highest one; nothing is overwritten. Returns the path.
    ///
    /// # Errors
    /// As for [`Checkpoint::save`](crate::Checkpoint::save); the directory, the counter and the list are then
    /// unchanged. With [`background`](crate::CheckpointManagerBuilder::background), also the error of the last save,
    /// once; this save has then not been started. [`Error::AlreadyExists`] for the first save of a run that restored
    /// nothing in a directory with another run; see [`fresh_start`](crate::CheckpointManagerBuilder::fresh_start).
    pub fn save(&mut self) -> Result<Location> {
        let next = CheckpointInfo::new(String::new(), self.directory.now());
        self.with_room(next, CheckpointManager::try_save)
    }

    /// Saves immediately, numbered by `step`: `ckpt-240`. If the checkpoint of that step was saved or restored last and
    /// has the current state, nothing is written. If the state has changed, a new checkpoint replaces that one.
    ///
    /// # Errors
    /// As for [`save`](CheckpointManager::save); [`Error::AlreadyExists`] if something else has that name.
    pub fn save_at(&mut self, step: u64) -> Result<Location> {
        self.save_with_metrics::<&str>(step, [])
    }

    /// Like [`save_at`](CheckpointManager::save_at), with metrics that the checkpoint records. They can be NaN or
    /// infinite. If the checkpoint of that step already has the current state, they are added to it, durably.
    ///
    /// # Errors
    /// As for [`save_at`](CheckpointManager::save_at).
    pub fn save_with_metrics<N: Into<String>>(
        &mut self,
        step: u64,
        metrics: impl IntoIterator<Item = (N, f64)>,
    ) -> Result<Location> {
        let metrics = metrics.into_iter().map(|(name, value)| (name.into(), value)).collect();
        let result = self.save_step(SaveClock::start(), step, metrics);
        self.note_state(Some(step), result.is_ok());
        result
    }

    /// Saves if at least [`save_every`](crate::CheckpointManagerBuilder::save_every) steps have passed since the last save
    /// with a step, the restored checkpoint, or step 0; and if `step` is lower than that of the last one, because the run
    /// went back, or is that one after a [`rollback`](crate::Checkpoint::rollback) to before it. Returns the path if it
    /// saves.
    ///
    /// While there are accumulated gradients that no step of a tracked optimizer has used, a save that is due is
    /// postponed to the call after that step. If 100 steps, or 1,000 calls, have all found unused gradients, it saves
    /// including them. After a restore, they are counted anew.
    ///
    /// Once the end was requested ([`preemption`](crate::CheckpointManagerBuilder::preemption)), the next call always
    /// saves, durably, and [`should_stop`](CheckpointManager::should_stop) returns `true` from then on.
    ///
    /// # Errors
    /// As for [`save_at`](CheckpointManager::save_at). After an error, the next call tries again. Once the end was
    /// requested, the error is returned even with settings under which such a save is skipped or retried
    /// ([`OnUnhealthy::Skip`], [`OnNoSpace::Skip`](crate::OnNoSpace::Skip), [`OnSaveError::Continue`]).
    pub fn save_if_due(&mut self, step: u64) -> Result<Option<Location>> {
        self.call_at(step, None::<fn() -> BTreeMap<String, f64>>)
    }

    /// Like [`save_if_due`](CheckpointManager::save_if_due), with metrics that the checkpoint records. If it does not save,
    /// and the checkpoint of this step was saved or restored last, they are added to that one, durably. `metrics` is
    /// called only in these two cases, and before anything is captured.
    ///
    /// Once the end was requested, the save of the next call has metrics only if it would be due without the request:
    /// there may be no time for an evaluation.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let temp = tempfile::tempdir()?;
    /// # let dir = temp.path().join("run");
    /// use tch_checkpoint::{Checkpoint, CheckpointManager, Counter};
    /// let step = Counter::new(0);
    /// let checkpoint = Checkpoint::new().track("step", &step)?;
    /// let mut manager = CheckpointManager::builder(checkpoint, &dir).save_every(10).open()?;
    /// let evaluate = || 0.25;
    /// while step.get() < 20 {
    ///     step.increment();
    ///     manager.save_if_due_with_metrics(step.get(), || [("loss", evaluate())])?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As for [`save_if_due`](CheckpointManager::save_if_due) and [`add_metrics`](CheckpointManager::add_metrics).
    pub fn save_if_due_with_metrics<N: Into<String>, M: IntoIterator<Item = (N, f64)>>(
        &mut self,
        step: u64,
        metrics: impl FnOnce() -> M,
    ) -> Result<Option<Location>> {
        self.call_at(step, Some(|| metrics().into_iter().map(|(name, value)| (name.into(), value)).collect()))
    }

    /// A call of `save_if_due`. Without `metrics`, none is added.
    fn call_at(
        &mut self,
        step: u64,
        metrics: Option<impl FnOnce() -> BTreeMap<String, f64>>,
    ) -> Result<Option<Location>> {
        let is_last = self.preempted() && !self.saved_for_end;
        let result =
            if is_last { self.save_for_end(step, metrics).map(Some) } else { self.save_number_if_due(step, metrics) };
        self.note_state(Some(step), matches!(result, Ok(Some(_))));
        #[cfg(feature = "huggingface")]
        return self.export_beside(step, is_last, result);
        #[cfg(not(feature = "huggingface"))]
        self.after_call(step, is_last, result)
    }

    /// Does with the result of a call of `save_if_due` what the settings for errors say.
    pub(super) fn after_call(
        &mut self,
        step: u64,
        is_last: bool,
        result: Result<Option<Location>>,
    ) -> Result<Option<Location>> {
        if let Err(error) = &result
            && !is_last
            && self.is_skipped(error)
        {
            log::warn!("the save is skipped: {error:#}");
            (self.last_step, self.last_save_at, self.restored_past) = (Some(step), Instant::now(), false);
            self.owed = None;
            return Ok(None);
        }
        match (&result, self.on_save_error) {
            // In the background, its end decides.
            (Ok(Some(_)), _) => match &mut self.in_flight {
                Some(in_flight) => in_flight.ends_failures(),
                None => self.failures = 0,
            },
            // There may not be time for another call.
            (Err(_), _) if is_last => {}
            (Err(error), OnSaveError::Continue { give_up_after }) => {
                self.failures += 1;
                if self.failures < give_up_after {
                    log::error!("a save failed, and training continues: {error:#}");
                    return Ok(None);
                }
                self.failures = 0;
            }
            _ => {}
        }
        result
    }

    fn save_number_if_due(
        &mut self,
        number: u64,
        metrics: Option<impl FnOnce() -> BTreeMap<String, f64>>,
    ) -> Result<Option<Location>> {
        // In a forked child, what is in flight never ends.
        self.directory.check_process()?;
        if self.in_flight.as_ref().is_some_and(InFlight::is_finished)
            && let Err(error) = self.settle()
        {
            // If there is space now, saves.
            self.lacked_room = false;
            if !self.makes_room_after(&error) || !self.make_room(self.next_at(number, &BTreeMap::new())) {
                return Err(error);
            }
        }
        if !self.is_taken(number) {
            if let Some(metrics) = metrics
                && let Some(path) = self.head_of(number)
                && self.directory.rules().hold(Rule::LateMetrics)
            {
                self.add_metrics(path, metrics())?;
            }
            return Ok(None);
        }
        let metrics = metrics.map(|metrics| metrics()).unwrap_or_default();
        let path = self.save_step(SaveClock::start(), number, metrics)?;
        self.owed = None;
        Ok(Some(path))
    }

    /// Decides whether this call saves. Asks the policies.
    fn is_taken(&mut self, number: u64) -> bool {
        // While a save is in flight, its result decides what comes before the next one; `try_step` looks then.
        if self.in_flight.is_none() {
            self.look_at_restores();
        }
        let is_due = self.is_due(number);
        let skips = self.background.as_ref().is_some_and(|background| background.when_busy == WhenBusy::Skip);
        is_due && !self.waits_for_the_step() && !(skips && self.in_flight.is_some())
    }

    /// Asks the policies whether a save is due at this call.
    fn is_due(&mut self, number: u64) -> bool {
        let is_before = |last| number < last || number == last && self.is_of_another_path(number);
        let went_back = self.last_step.is_some_and(is_before) && self.directory.rules().hold(Rule::StepBack);
        let first = self.first_step.map_or(number, |first| first.min(number));
        self.first_step = Some(first);
        let context = SaveContext {
            previous: self.previous_step.replace(number),
            first,
            last_saved: self.last_step,
            since_last_save: self.last_save_at.elapsed(),
            // Also if it has ended meanwhile: the next call finds out how.
            is_saving: self.in_flight.is_some(),
            last_save_at: Some(self.last_save_at),
            has_saved: self.head.is_some(),
            ..SaveContext::new(number)
        };
        // All are asked, because they may count their calls.
        let (_, restores) = self.checkpoint.restored();
        let mut is_due = went_back || self.owed == Some(restores);
        for policy in &self.save_policies {
            is_due |= policy.is_due(&context);
        }
        self.owed = is_due.then_some(restores);
        is_due
    }

    /// Returns the metrics of the last save. They are computed only where a run that is not stopped computes them: an
    /// evaluation takes time that the run may not have, and can draw random numbers.
    pub(super) fn metrics_for_end(
        &mut self,
        number: u64,
        metrics: Option<impl FnOnce() -> BTreeMap<String, f64>>,
    ) -> BTreeMap<String, f64> {
        let Some(metrics) = metrics else { return BTreeMap::new() };
        // Whatever a policy does, the last save is made.
        let is_taken = catch_unwind(AssertUnwindSafe(|| self.is_taken(number)));
        let is_taken = is_taken.inspect_err(|panic| {
            log::error!(
                "{:#}; the last save has no metrics",
                Error::panicked("decide whether a save is due", &**panic)
            );
        });
        let is_computed = is_taken.is_ok_and(|is_taken| is_taken || self.head_of(number).is_some());
        if is_computed { metrics() } else { BTreeMap::new() }
    }

    /// Returns the checkpoint that was saved or restored last, if it is that of `step` and is still there, or is being
    /// written.
    fn head_of(&self, step: u64) -> Option<Location> {
        if self.last_step != Some(step) || self.is_of_another_path(step) {
            return None;
        }
        let name = format!("{}-{step}", self.name);
        let is_written = self.early.as_ref().is_some_and(|(early, _)| *early == name);
        let is_there = || {
            let Ledger { known, seen, .. } = &mut *self.ledger();
            let head = known.iter().find(|found| found.entry.name == name && self.head == Some(found.id()));
            head.is_some_and(|head| seen.is_there(&self.directory, head))
        };
        (is_written || is_there()).then(|| self.directory.path(&name))
    }

    /// Returns `true` if a due save is postponed until gradients are used. This is bounded, because a checkpoint can
    /// also include gradients.
    fn waits_for_the_step(&mut self) -> bool {
        let Some((name, unfinished)) = self.checkpoint.unfinished() else {
            self.waits_since = None;
            return false;
        };
        let (whose, steps, calls) = self.waits_since.get_or_insert_with(|| (name.clone(), unfinished.steps, 0));
        if *whose != name || unfinished.steps < *steps {
            (*whose, *steps) = (name.clone(), unfinished.steps);
        }
        *calls += 1;
        let waits = *calls < MOST_CALLS_WAITED && unfinished.steps < steps.saturating_add(MOST_STEPS_WAITED);
        if !waits {
            log::warn!(
                "{name}: a checkpoint is saved with gradients, because none of {calls} calls found them used: {}",
                unfinished.reason
            );
        }
        waits
    }

    fn try_save(&mut self) -> Result<Location> {
        let clock = self.settle_timed(SaveClock::start())?;
        self.look_at_restores();
        self.checkpoint.refuse_torn()?;
        self.look_before_a_run_begins()?;
        let counter = self.checkpoint.next_save()?;
        let superseded = self.superseded_by(None)?;
        let number = self.free_number(counter, &superseded)?;
        self.save_next(Next { superseded, clock, ..Next::new(number, None, number) })
    }

    /// Returns this number, or the one after the highest if it is taken. `superseded` names are free.
    pub(super) fn free_number(&self, number: u64, superseded: &[String]) -> Result<u64> {
        let mut names = self.directory.scan()?.names;
        if !self.directory.rules().hold(Rule::Names) {
            names = self.ledger().known.iter().map(|found| found.entry.name.clone()).collect();
        }
        let numbers = names.iter().filter(|name| !superseded.contains(name));
        let numbers: Vec<u64> = numbers.filter_map(|name| number_of(&self.name, name)).collect();
        let highest = numbers.iter().copied().max().filter(|_| numbers.contains(&number));
        let number = highest.map_or(Some(number), |highest| highest.checked_add(1));
        number.ok_or_else(|| {
            let root = self.directory.root().display();
            Error::InvalidArgument(format!("{root} holds a checkpoint with the highest number there is; move it away"))
        })
    }

    /// Saves at a step. `clock` was started when the save was called for.
    pub(super) fn save_step(
        &mut self,
        clock: SaveClock,
        number: u64,
        metrics: BTreeMap<String, f64>,
    ) -> Result<Location> {
        let next = self.next_at(number, &metrics);
        self.with_room(next, |manager| manager.try_step(clock.clone(), number, metrics.clone()))
    }

    fn try_step(&mut self, clock: SaveClock, number: u64, mut metrics: BTreeMap<String, f64>) -> Result<Location> {
        let clock = self.settle_timed(clock)?;
        self.look_at_restores();
        self.checkpoint.refuse_torn()?;
        self.look_before_a_run_begins()?;
        let name = format!("{}-{number}", self.name);
        let mut noted = Vec::new();
        let saved = if self.last_step == Some(number) { self.saved_as(&name)? } else { None };
        if let Some(has_files) = saved {
            if has_files && self.next_metadata.is_empty() {
                let path = self.directory.path(&name);
                if self.directory.rules().hold(Rule::LateMetrics) {
                    self.add_metrics(&path, metrics)?;
                }
                return Ok(path);
            }
            // It is saved again for its metadata, or for the user's files. What is known of this state stays known.
            self.look_at_marks(&name);
            if let Some(found) = self.ledger().known.last() {
                metrics = found.entry.metrics.clone().into_iter().chain(metrics).collect();
                let pins = found.pins.clone().into_iter().map(|(name, note)| MarkKind::Pin { name, note });
                let notes = found.notes.clone().into_iter().map(|(name, text)| MarkKind::Note { name, text });
                noted = pins.chain(notes).collect();
            }
        }
        let superseded = self.superseded_by(Some(&name))?;
        let counter = self.checkpoint.next_save()?;
        self.save_next(Next { metrics, noted, superseded, clock, ..Next::new(number, Some(number), counter) })
    }

    /// Returns whether the checkpoint that was saved or restored last also has the current files of the user, if it is
    /// called `name` and has the current state.
    fn saved_as(&mut self, name: &str) -> Result<Option<bool>> {
        let Some(manifest) = self.manifest_of_head(name)? else { return Ok(None) };
        let (plan, seen) = self.checkpoint.plan(&self.options)?;
        let is_saved = save::is_saved(&plan, &seen, &manifest, self.options.threads)?;
        match is_saved || !self.directory.rules().hold(Rule::SameStep) {
            true => self.checkpoint.has_assets(&manifest).map(Some),
            false => Ok(None),
        }
    }

    /// Returns the manifest of the checkpoint that was saved or restored last, if it is called `name`, and restarts use
    /// it.
    pub(super) fn manifest_of_head(&self, name: &str) -> Result<Option<Manifest>> {
        let is_clean = |found: &Found| !found.unclean || !self.directory.rules().hold(Rule::CleanAgain);
        let is_it = |found: &&Found| found.entry.name == name && found.thinned.is_empty() && is_clean(found);
        let last = self.ledger().known.last().filter(is_it).map(Found::id);
        let Some(id) = last.filter(|id| self.head.as_ref() == Some(id)) else { return Ok(None) };
        match self.directory.manifest(name) {
            Ok(manifest) if (&manifest.run, manifest.sequence) == (&id.run, id.sequence) => Ok(Some(manifest)),
            // It was removed or damaged, and is saved again.
            Ok(_) => Ok(None),
            Err(error) if error.is_damage() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns `true` if a save of this state would write what `manifest` has.
    pub(super) fn has_state(&self, manifest: &Manifest, plan: &Plan, seen: &[Seen]) -> Result<bool> {
        Ok(save::is_saved(plan, seen, manifest, self.options.threads)? && self.checkpoint.has_assets(manifest)?)
    }

    /// Accounts for restores that bypassed this manager.
    pub(super) fn look_at_restores(&mut self) {
        let (restored, restores) = self.checkpoint.restored();
        if restores == self.restores {
            return;
        }
        self.restores = restores;
        self.restored_past = true;
        self.waits_since = None;
        let mut head = restored;
        // A snapshot follows what was being saved when it was taken, which may have failed.
        while let Some((_, before)) = self.never_saved.iter().find(|(failed, _)| Some(failed) == head) {
            head = before.as_ref();
        }
        self.head = head.cloned();
        if self.head.as_ref() != restored {
            self.checkpoint.set_follows(self.head.clone());
        }
        if let Some(head) = &self.head {
            let head = head.clone();
            let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
            ledger.choose(&head);
            self.begun |= ledger.has(&head);
            ledger.restored = Some(head);
            drop(ledger);
            links::update(&self.ledger, &self.directory);
        }
    }

    /// Returns `true` if a restore bypassed this manager, and what was saved at `number`, the last step, is therefore of a
    /// path that the run does not take. If that very checkpoint was restored, it does take it.
    fn is_of_another_path(&self, number: u64) -> bool {
        if self.in_flight.is_some() {
            return self.present_head() != self.head;
        }
        let is_it =
            |found: &Found| self.head == Some(found.id()) && number_of(&self.name, &found.entry.name) == Some(number);
        self.restored_past && !self.ledger().known.iter().any(is_it)
    }

    /// Returns the checkpoint that was restored or saved last, even if a restore bypassed this manager.
    fn present_head(&self) -> Option<Follows> {
        let (restored, restores) = self.checkpoint.restored();
        if restores == self.restores { self.head.clone() } else { restored.cloned() }
    }

    /// Returns the checkpoint that was restored since the last save, which accounts for it.
    pub(super) fn restored_since(&self) -> Option<Follows> {
        let (restored, restores) = self.checkpoint.restored();
        restored.filter(|_| restores != self.restores).cloned()
    }

    /// Returns the checkpoints that the next one supersedes: those after the one that the run continues from, and the
    /// one of the same name.
    ///
    /// # Errors
    /// If the run does not continue from anything in this directory, and the directory is not empty.
    pub(super) fn superseded_by(&self, name: Option<&str>) -> Result<Vec<String>> {
        let ledger = self.ledger();
        if !self.begun && !self.fresh_start && self.directory.rules().hold(Rule::FreshStart) {
            if let Some(error) = ledger.why_unreachable() {
                return Err(error);
            }
            ledger.decided()?;
            if let Some(newest) = ledger.known.last() {
                let hint = "it is of a run of which nothing was restored: restore it (`restore_or_initialize`) and go on \
                            from there, or begin anew beside it (`CheckpointManagerBuilder::fresh_start`)";
                return Err(Error::AlreadyExists { path: ledger.path(&newest.entry.name), hint: hint.into() });
            }
            // Those of another name stay as they are whatever this run does.
            if let Some(hint) = ledger.why_not_beside() {
                return Err(Error::AlreadyExists { path: self.directory.root().clone(), hint });
            }
        }
        let mut superseded = match self.present_head() {
            Some(head) if ledger.was_here(&head) => ledger.after(Some(&head)),
            Some(_) if self.begun => Vec::new(),
            _ => ledger.after(None),
        };
        let same = ledger.known.iter().map(|found| &found.entry.name).filter(|known| Some(known.as_str()) == name);
        superseded.extend(same.cloned());
        superseded.sort();
        superseded.dedup();
        drop(ledger);
        // A name is free if its checkpoint was removed; anything else of that name is not ours.
        let mut ledger = self.ledger();
        let mut seen = std::mem::take(&mut ledger.seen);
        let named = ledger.known.iter().filter(|found| superseded.binary_search(&found.entry.name).is_ok());
        let there = named.filter(|found| seen.is_there(&self.directory, found));
        let there = there.map(|found| found.entry.name.clone()).collect();
        ledger.seen = seen;
        Ok(there)
    }

    /// Saves. No save may be in flight.
    fn save_next(&mut self, next: Next) -> Result<Location> {
        self.check_save_only()?;
        let (plan, seen, taken) = self.take_hold()?;
        self.save_planned(next, plan, seen, taken)
    }

    /// Like [`save_next`](CheckpointManager::save_next), for a state that was pinned, or that is saved before this
    /// returns.
    pub(super) fn save_planned(
        &mut self,
        next: Next,
        plan: Arc<Plan>,
        seen: AllSeen,
        taken: Option<Taken>,
    ) -> Result<Location> {
        let Next { number, step, counter, metrics, noted, superseded, unclean, without, clock } = next;
        let name = format!("{}-{number}", self.name);
        let sequence = self.held.next_sequence()?;
        let stamp = self.checkpoint.stamp();
        let follows = self.follows(&superseded);
        let id = Follows { run: stamp.run.clone(), sequence };
        let counted_from = self.ledger().counted_from(&superseded);
        let mut stamp = Stamp { sequence, step, save_counter: counter, metrics, follows, counted_from, ..stamp };
        stamp.metadata.extend(self.next_metadata.clone());
        (stamp.unclean, stamp.without) = (unclean, without);
        let next = CheckpointInfo::of_save(&name, &stamp, self.directory.now());
        let path = self.directory.root().join(&name);
        let unchanged = {
            let mut ledger = self.ledger();
            let beside = ledger.beside(next);
            ledger.memo.keep(beside);
            Unchanged::since(&ledger.memo, &plan, seen)
        };
        let is_behind = taken.is_some();
        let request = self.checkpoint.request(plan, unchanged, stamp, &self.options, clock.clone())?;
        let request = request.refuse_unhealthy(self.on_unhealthy != OnUnhealthy::Keep);
        let commit = Commit::new(self.ledger.clone(), name, superseded).noted(noted).then(self.on_saved.clone());
        let mut after = Ok(());
        if let Some(taken) = taken {
            let (last_step, save_counter) = (self.last_step, self.checkpoint.save_counter());
            let (head, begun, last_save_at) = (self.head.clone(), self.begun, self.last_save_at);
            let (restored_past, owed) = (self.restored_past, self.owed);
            let metadata = self.next_metadata.clone();
            let ends_failures = false;
            let id = id.clone();
            let before = Before {
                id,
                last_step,
                restored_past,
                owed,
                save_counter,
                head,
                begun,
                metadata,
                last_save_at,
                ends_failures,
            };
            let early = (commit.name.clone(), commit.early.clone());
            let started = InFlight::start(Order { taken, request, commit, before }, &mut self.image);
            self.in_flight = Some(started.inspect_err(|_| self.checkpoint.forget_plan())?);
            self.early = Some(early);
        } else {
            let saved = commit.save(request, None);
            after = saved.inspect_err(|error| {
                self.checkpoint.forget_plan();
                self.ledger().doubt_memo(error);
            })?;
        }
        self.next_metadata.clear();
        self.checkpoint.set_save_counter(counter);
        self.last_step = step.or(self.last_step);
        self.owed = None;
        if let Some(guard) = self.guard.as_mut().filter(|_| step.is_some()) {
            guard.saves = true;
        }
        self.restored_past = false;
        // Asked only after a wait, because it asks every object.
        if self.waits_since.is_some() && self.checkpoint.unfinished().is_none() {
            self.waits_since = None;
        }
        self.last_save_at = Instant::now();
        self.checkpoint.set_follows(Some(id.clone()));
        self.head = Some(id);
        self.begun = true;
        if is_behind {
            clock.call_returns();
        }
        after.map(|()| path)
    }

    /// Returns the plan and what its tensors report now; pinned if it is saved in the background.
    fn take_hold(&mut self) -> Result<(Arc<Plan>, AllSeen, Option<Taken>)> {
        let mut tries = 0;
        while let Some(background) = self.background.clone() {
            let (plan, seen) = self.checkpoint.plan_to_capture(&self.options)?;
            if plan.bytes() > background.budget {
                break;
            }
            let taken = Taken::begin(&plan, seen.is_none(), &mut self.image, &background);
            match taken.inspect_err(|_| self.checkpoint.forget_plan())? {
                Attempt::Taken(taken) => return Ok((plan, taken.capture.seen().clone(), Some(taken))),
                // A new plan is not checked.
                Attempt::Unfit => self.checkpoint.forget_plan(),
                Attempt::Moved(key) if tries == MOST_TRIES => return Err(changed_meanwhile(&key)),
                Attempt::Moved(_) => tries += 1,
            }
        }
        let (plan, seen) = self.plan_now()?;
        Ok((plan, seen, None))
    }

    /// Returns the plan and what its tensors report now.
    pub(super) fn plan_now(&mut self) -> Result<(Arc<Plan>, AllSeen)> {
        self.checkpoint.plan(&self.options)
    }

    /// Returns the checkpoint that the next one follows: the one restored or saved last, or its predecessor if the next
    /// one replaces it.
    pub(super) fn follows(&self, superseded: &[String]) -> Option<Follows> {
        let head = self.present_head()?;
        let ledger = self.ledger();
        let replaced = ledger.known.iter().find(|found| found.id() == head);
        match replaced.filter(|found| superseded.contains(&found.entry.name)) {
            Some(found) => found.follows.clone(),
            None => Some(head),
        }
    }

    /// Like [`settle`](CheckpointManager::settle), at the beginning of a save. Returns the clock of that save.
    fn settle_timed(&mut self, clock: SaveClock) -> Result<SaveClock> {
        let (clock, settled) = self.settle_before(clock);
        settled.map(|()| clock)
    }

    /// Like [`settle_timed`](CheckpointManager::settle_timed), for a save that goes on after an error of the one in flight.
    pub(super) fn settle_before(&mut self, clock: SaveClock) -> (SaveClock, Result<()>) {
        let is_in_flight = self.in_flight.is_some();
        let settled = self.settle();
        (if is_in_flight { clock.waited() } else { clock }, settled)
    }

    /// Waits for the save in flight, if there is one.
    pub(super) fn settle(&mut self) -> Result<()> {
        callback::refuse()?;
        self.directory.check_process()?;
        let Some(in_flight) = self.in_flight.take() else {
            return Ok(());
        };
        let (image, before, result) = in_flight.wait();
        let early = self.early.take();
        self.image = image;
        if before.ends_failures && matches!(result, Ok(Ok(()))) {
            self.failures = 0;
        }
        result.unwrap_or_else(|failure| {
            // The save is due again, with a new plan.
            let is_skipped = self.is_skipped(&failure.error);
            if !is_skipped {
                (self.last_step, self.last_save_at) = (before.last_step, before.last_save_at);
                self.restored_past = before.restored_past;
                self.owed = self.owed.or(before.owed);
            }
            // A restore since then remains in effect.
            if self.checkpoint.restored().1 == self.restores {
                self.checkpoint.set_follows(before.head.clone());
                self.checkpoint.set_save_counter(before.save_counter);
            }
            if self.never_saved.len() == MOST_NEVER_SAVED {
                self.never_saved.pop_front();
            }
            self.never_saved.push_back((before.id, before.head.clone()));
            (self.head, self.begun) = (before.head, before.begun);
            before.metadata.into_iter().for_each(|(name, value)| {
                self.next_metadata.entry(name).or_insert(value);
            });
            self.checkpoint.forget_plan();
            self.ledger().doubt_memo(&failure.error);
            if let (Some(key), Some(background)) = (&failure.changed, &mut self.background) {
                background.do_not_trust(key);
            }
            let (name, noted) = early.map(|(name, marks)| (name, commit::described(&marks))).unwrap_or_default();
            if is_skipped {
                log::warn!("the save is dropped{noted}: {:#}", failure.error);
                return Ok(());
            }
            self.lacked_room = self.makes_room_after(&failure.error);
            // If room can be made, no call returns the error, which does not name the marks either.
            if self.lacked_room || !noted.is_empty() {
                log::warn!("the save of {name} is lost{noted}: {:#}", failure.error);
            }
            Err(failure.error)
        })
    }
}

/// The maximum number of optimizer steps that a due save waits for a call at which all gradients are used.
const MOST_STEPS_WAITED: u64 = 100;

/// How often a state is captured anew because another thread has made a step meanwhile.
const MOST_TRIES: u32 = 100;

/// The maximum number of calls that it waits.
const MOST_CALLS_WAITED: u64 = 1000;

/// The maximum number of failed saves that are remembered for snapshots that were taken meanwhile.
const MOST_NEVER_SAVED: usize = 1000;
