//! Saves the state when the training loop ends with an error or a panic.

use super::retention::CheckpointInfo;
use super::{CheckpointManager, Next};
use crate::catalog::Found;
use crate::error::Result;
use crate::format::Follows;
use crate::graph::Seen;
use crate::location::Location;
use crate::restore::RestoreOptions;
use crate::save::{FileStamp, Noted, Plan, SaveClock};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// The state at the last call of the manager.
#[derive(Default)]
pub(super) struct Guard {
    noted: Option<Noted>,
    /// The states of the user's files; `None` for what may change unnoticed, and what a function writes.
    files: Vec<Option<FileStamp>>,
    /// The number of restores.
    restores: u64,
    step: Option<u64>,
    /// Whether that call saved it.
    is_saved: bool,
    /// Whether the present call has saved, even if something after the save fails.
    pub saves: bool,
    /// Whether it is the state at the beginning: no call has followed.
    is_first: bool,
    /// Whether a guard within this one has dealt with a failure since the last call.
    is_handled: bool,
}

impl CheckpointManager {
    /// Calls `train`, which contains the training loop, and saves the state if it returns an error or panics. Then
    /// returns the error or resumes the panic. An error of the save is only logged.
    ///
    /// At the end of each call that may save with a step ([`save_if_due`](CheckpointManager::save_if_due),
    /// [`save_at`](CheckpointManager::save_at) and those with metrics) values, counters and random state are copied,
    /// and version counters and up to 8,192 elements of the tensors are recorded. If the loop fails and no tracked
    /// tensor has changed since, these copies are saved with the tensors, as the checkpoint of that call's step. A
    /// failure in a forward or backward pass, while loading data or in an evaluation therefore loses nothing. If a
    /// tensor or an [asset](crate::Asset) has changed, or a restore has followed, nothing is saved, and the log says
    /// why; what a [writer](crate::Asset::writer) writes, and a file that was changed less than two seconds before the call,
    /// count as changed unless the last checkpoint has the same. With
    /// [`unclean_on_failure`](crate::CheckpointManagerBuilder::unclean_on_failure), the state is saved as a checkpoint
    /// that is marked as unclean and that restarts do not use. Call the manager after each step: changes between two
    /// calls cannot be distinguished from those of a failed step.
    ///
    /// A process that is killed, that aborts, or that is built with `panic = "abort"` saves nothing.
    ///
    /// Guards may be nested. The innermost one that fails saves; those around it do so only if the manager is called
    /// again.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let directory = tempfile::tempdir()?;
    /// # let dir = directory.path().join("run");
    /// use tch_checkpoint::{Checkpoint, CheckpointManager, Counter};
    /// let step = Counter::new(0);
    /// let checkpoint = Checkpoint::new().track("step", &step)?;
    /// let mut manager = CheckpointManager::builder(checkpoint, &dir).save_every(1000).open()?;
    /// let result: Result<(), std::io::Error> = manager.guard(|manager| {
    ///     while step.get() < 50 {
    ///         step.increment();
    ///         manager.save_if_due(step.get()).map_err(std::io::Error::other)?;
    ///     }
    ///     Err(std::io::Error::other("the data is gone"))
    /// });
    /// assert!(result.is_err());
    /// assert!(dir.join("ckpt-50").exists());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The error of `train`.
    pub fn guard<T, E>(&mut self, train: impl FnOnce(&mut CheckpointManager) -> Result<T, E>) -> Result<T, E> {
        // Guards within one another have one record: that of the last call.
        let is_inner = self.guard.is_some();
        if self.guard.as_ref().is_none_or(|outer| outer.is_first || outer.is_handled) {
            self.guard = Some(Guard::default());
            self.note_state(self.last_step, false);
            if let Some(guard) = &mut self.guard {
                guard.is_first = true;
            }
        }
        let result = catch_unwind(AssertUnwindSafe(|| train(self)));
        let what = match &result {
            Ok(Ok(_)) => None,
            Ok(Err(_)) => Some("an error"),
            Err(_) => Some("a panic"),
        };
        if let Some(what) = what {
            let guard = self.guard.take().unwrap_or_default();
            self.save_after_failure(guard, what);
            self.guard = is_inner.then(|| Guard { is_handled: true, ..Guard::default() });
        } else if !is_inner {
            self.guard = None;
        }
        result.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Records the state at the end of a call, for the guard.
    pub(super) fn note_state(&mut self, step: Option<u64>, is_saved: bool) {
        let Some(guard) = &mut self.guard else { return };
        let before = guard.noted.take();
        let is_saved = is_saved || guard.saves;
        let noted = self.plan_now().and_then(|(plan, seen)| Noted::take(plan, seen, before));
        let noted = noted.inspect_err(|e| log::warn!("the state cannot be noted for the guard: {e:#}")).ok();
        let (files, (_, restores)) = (self.checkpoint.files(), self.checkpoint.restored());
        self.guard = Some(Guard { noted, files, restores, step, is_saved, ..Guard::default() });
    }

    /// Saves what can be saved; never fails.
    fn save_after_failure(&mut self, guard: Guard, what: &str) {
        let saved = catch_unwind(AssertUnwindSafe(|| self.try_after_failure(guard)));
        match saved {
            Ok(Ok(Ok(path))) => log::warn!("the loop ended by {what}; its state is in {}", path.display()),
            Ok(Ok(Err(why))) => log::warn!("the loop ended by {what}, and nothing was saved: {why}"),
            Ok(Err(error)) => log::error!("the loop ended by {what}, and its state could not be saved: {error:#}"),
            Err(_) => log::error!("the loop ended by {what}, and saving its state panicked"),
        }
    }

    /// Returns where the state is saved, or why it was not.
    fn try_after_failure(&mut self, guard: Guard) -> Result<Result<Location, String>> {
        if guard.is_handled {
            return Ok(Err("a guard within this one has dealt with it".to_string()));
        }
        let (clock, settled) = self.settle_before(SaveClock::start());
        if let Err(error) = settled {
            log::error!("the save in the background returned an error: {error:#}");
        }
        let Some(step) = guard.step else {
            return self.save_unclean(&clock, None, "the manager was not called with a step before".to_string());
        };
        let noted = match guard.noted.map(Noted::into_plan).transpose()? {
            Some(Ok(_)) if guard.restores != self.checkpoint.restored().1 => {
                Err(format!("a restore has followed the call at step {step}"))
            }
            Some(Ok(noted)) => Ok(noted),
            Some(Err(key)) => Err(format!("{key} has changed since the manager was called at step {step}")),
            None => Err(format!("the state of the call at step {step} could not be noted")),
        };
        let (plan, seen) = match noted {
            Ok(noted) => noted,
            Err(why) => return self.save_unclean(&clock, Some(step), why),
        };
        if guard.is_first {
            return Ok(Err("nothing has changed since the guard began".to_string()));
        }
        let name = format!("{}-{step}", self.name);
        // A save that was dropped because it failed or was skipped does not count.
        let is_there =
            self.ledger().known.iter().any(|found| found.entry.name == name && self.head == Some(found.id()));
        if guard.is_saved && is_there || self.is_state_of_head(&name, &plan, &seen) {
            return Ok(Ok(self.directory.path(&name)));
        }
        if let Some(asset) = self.changed_asset(&guard.files) {
            let why =
                format!("the asset {asset} is not known to be as it was when the manager was called at step {step}");
            return self.save_unclean(&clock, Some(step), why);
        }
        self.look_at_restores();
        self.look_before_a_run_begins()?;
        let next = self.next_at(step, &BTreeMap::new());
        let before = self.head.clone();
        let saved = self.with_room(next, |manager| {
            let superseded = manager.superseded_by(Some(&name))?;
            let counter = manager.checkpoint.next_save()?;
            let clock = clock.clone();
            let next = Next { superseded, clock, ..Next::new(step, Some(step), counter) };
            manager.save_planned(next, plan.clone(), seen.clone(), None)
        });
        self.durable(before.as_ref(), saved).map(Ok)
    }

    /// Returns `true` if the checkpoint that was saved or restored last is called `name` and has this state: an earlier
    /// call has saved it.
    fn is_state_of_head(&self, name: &str, plan: &Plan, seen: &[Seen]) -> bool {
        // If it cannot be compared, it is saved again.
        let manifest = self.manifest_of_head(name).ok().flatten();
        manifest.is_some_and(|manifest| self.has_state(&manifest, plan, seen).unwrap_or(false))
    }

    /// Returns the name of a file of the user that may have changed since it was in one of these states. What a function
    /// writes is compared with the last checkpoint.
    fn changed_asset(&self, then: &[Option<FileStamp>]) -> Option<String> {
        let last = self.ledger().known.last().filter(|found| self.head == Some(found.id())).cloned();
        let last = last.and_then(|found| self.directory.manifest(&found.entry.name).ok());
        self.checkpoint.changed_asset(then, last.as_ref())
    }

    /// Returns where the state is, also if only something after the save has failed. `before` it, that was the head, which
    /// only a save moves.
    fn durable(&self, before: Option<&Follows>, saved: Result<Location>) -> Result<Location> {
        saved.or_else(|error| {
            let ledger = self.ledger();
            let newest = ledger.known.last().filter(|found| self.head == Some(found.id()));
            let Some(saved) = newest.filter(|_| self.head.as_ref() != before) else { return Err(error) };
            log::error!("{error:#}");
            Ok(ledger.path(&saved.entry.name))
        })
    }

    /// Saves the state, marked as unclean, if requested.
    fn save_unclean(&mut self, clock: &SaveClock, step: Option<u64>, why: String) -> Result<Result<Location, String>> {
        if !self.unclean_on_failure {
            return Ok(Err(why));
        }
        self.look_at_restores();
        self.look_before_a_run_begins()?;
        let superseded = self.superseded_by(None)?;
        // No restart uses it, so that it must not take the place of what restarts do use.
        let is_used = |found: &&Found| {
            superseded.contains(&found.entry.name) && self.why_not_taken(found, &RestoreOptions::new()).is_none()
        };
        if let Some(Found { entry, .. }) = self.ledger().known.iter().find(is_used) {
            return Ok(Err(format!("{why}; nor as unclean, because it would take the place of {}", entry.name)));
        }
        log::warn!("the state is saved all the same, marked as unclean: {why}");
        let (plan, seen) = self.plan_now()?;
        let mut next = CheckpointInfo::new(String::new(), self.directory.now());
        (next.step, next.unclean) = (step, true);
        let before = self.head.clone();
        let saved = self.with_room(next, |manager| {
            let counter = manager.checkpoint.next_save()?;
            let number = manager.free_number(step.unwrap_or(counter), &[])?;
            let clock = clock.clone();
            let superseded = manager.superseded_by(None)?;
            let next = Next { superseded, unclean: true, clock, ..Next::new(number, step, counter) };
            manager.save_planned(next, plan.clone(), seen.clone(), None)
        });
        self.durable(before.as_ref(), saved).map(Ok)
    }
}

impl Next {
    /// Returns a save of a number, without metrics, that supersedes nothing.
    pub(super) fn new(number: u64, step: Option<u64>, counter: u64) -> Next {
        Next {
            number,
            step,
            counter,
            metrics: BTreeMap::new(),
            noted: Vec::new(),
            superseded: Vec::new(),
            unclean: false,
            without: Vec::new(),
            clock: SaveClock::start(),
        }
    }
}
