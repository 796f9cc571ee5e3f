//! The calls of a manager in a history: processes begin, restore, save, go back, and fail.

use super::disk;
use super::look::Planned;
use super::state::{NAMES, State};
use super::{History, Taken, Verdict};
use crate::oracle::{Line, Made, Saved, Then};
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use tch_checkpoint::{Error, Location};

impl History {
    /// A new process; sometimes its user has changed the policies.
    pub(super) fn begin(&mut self) -> Verdict {
        self.verify()?;
        self.name = usize::from(self.random.one_in(5));
        self.state = State::on(self.state.system.clone());
        self.snapshot = None;
        self.diverges = false;
        if self.random.one_in(4) {
            self.choose_rules();
        }
        let fresh = self.random.one_in(8);
        self.tell(format!("open {}{}", NAMES[self.name], if fresh { ", fresh" } else { "" }));
        self.owed = false;
        self.manager = Some(self.open(fresh).map_err(|e| format!("it does not open: {e}"))?);
        let now = self.now;
        self.line().opened(now);
        let restores = match self.random.below(8) {
            0 => return self.save_unrestored(fresh),
            1 => self.go_back()?,
            _ => false,
        };
        if restores { Ok(()) } else { self.recover(fresh) }
    }

    /// Restores the newest checkpoint. Checkpoints of another name only must be an error.
    fn recover(&mut self, fresh: bool) -> Verdict {
        self.tell("restore_or_initialize");
        let others = self.lines[1 - self.name].own.iter().any(|made| made.there);
        let foreign = self.name == 0 && !self.copied.is_empty();
        let foreign_elsewhere = self.name == 1 && !self.copied.is_empty();
        let known = self.indexed[self.name];
        let expected = self.line().newest().map(|made| (made.value, made.order));
        let may_begin = self.line().is_empty() && (fresh || !others && !foreign_elsewhere);
        let started = self.manager()?.restore_or_initialize();
        match (started, expected) {
            // Nothing tells whose the directory is, without the index.
            (Err(Error::Undecided { .. }), _) if foreign && !known => self.close(),
            // What is permanent stands alone: the other one is the only one that continues.
            (Ok(_), Some((value, _))) if foreign && !known && !self.state.is(value) && self.line().is_all_kept() => {
                self.leave()
            }
            (Ok(started), None) if foreign && started.restored.is_some() => self.leave(),
            (Err(_), None) if foreign => self.leave(),
            (Ok(started), Some((value, order))) => {
                let restored = started.restored.is_some() && self.state.is(value);
                if !restored {
                    return Err(format!("restored {}, expected {value}", self.state.get()));
                }
                self.diverges = false;
                self.owed = false;
                self.line().restored(order, true);
                Ok(())
            }
            (Ok(started), None) if started.restored.is_none() && (may_begin || fresh) => {
                self.line().begun();
                Ok(())
            }
            (Ok(started), None) => Err(format!("{:?} and not an error", started.restored.map(|_| "restored"))),
            (Err(_), None) if !may_begin => {
                self.line().begun();
                self.close()
            }
            (Err(e), expected) => Err(format!("{e}; expected {expected:?}")),
        }
    }

    /// Starts with an empty directory, because the oracle does not model what follows.
    fn leave(&mut self) -> Verdict {
        self.tell("the foreign one is all there is");
        self.manager = None;
        self.lines[self.name] = Line::default();
        let _ = fs::remove_dir_all(&self.dir);
        self.lines = Default::default();
        self.copied.clear();
        self.needs_index = false;
        Ok(())
    }

    fn save_unrestored(&mut self, fresh: bool) -> Verdict {
        let must_fail = !self.line().is_empty() && !fresh;
        if self.name == 0 && !self.copied.is_empty() {
            return self.recover(fresh);
        }
        let step = self.random.below(30) as u64;
        if !must_fail {
            self.line().unrestored();
            return self.save_at(step, false);
        }
        self.tell(format!("save_at({step}) without a restore"));
        match self.manager()?.save_at(step) {
            Err(Error::AlreadyExists { .. }) => self.close(),
            other => Err(format!("a new run beside a finished one: {other:?}")),
        }
    }

    /// Restores any checkpoint of the line, or one that was superseded. Returns whether it did: one that lacks a
    /// component is refused.
    pub(super) fn go_back(&mut self) -> Result<bool, String> {
        let line = &self.lines[self.name];
        // Only the index tells that what continues from nothing is of the same directory as what it began beside.
        if line.is_parted && !self.indexed[self.name] {
            return Ok(false);
        }
        // An unclean one that was saved anew is there twice.
        let all = || line.own.iter().chain(&line.aside);
        let aside = line.aside.iter().filter(|made| all().filter(|other| other.value == made.value).count() == 1);
        let whole: Vec<Made> = line.own.iter().chain(aside).filter(|made| made.is_whole()).cloned().collect();
        if whole.is_empty() {
            return Ok(false);
        }
        let made = whole[self.random.below(whole.len())].clone();
        let Some(path) = self.find(&made) else { return Err(format!("{made:?} is not there")) };
        self.tell(format!("restore {}", path.display()));
        let before = self.state.get();
        match self.manager()?.restore(&path) {
            Err(Error::Mismatch { .. }) if made.is_thinned && self.state.get() == before => return Ok(false),
            Ok(_) if made.is_thinned => return Err(format!("it restores {made:?}, which lacks its slots")),
            result => drop(result.map_err(|e| format!("{made:?}: {e}"))?),
        }
        if !self.state.is(made.value) {
            return Err(format!("restored {} instead of {}", self.state.get(), made.value));
        }
        self.diverges = made.is_unhealthy;
        self.owed = false;
        self.line().restored(made.order, false);
        Ok(true)
    }

    /// Takes a snapshot of the state, or restores it. Whatever is there stays, until the next save.
    pub(super) fn snapshot(&mut self) -> Verdict {
        let Some(taken) = self.snapshot.take_if(|_| !self.random.one_in(4)) else {
            self.tell("a snapshot is taken");
            let snapshot = self.manager()?.checkpoint().snapshot().map_err(|e| format!("no snapshot: {e}"))?;
            let (value, diverges, place) = (self.state.get(), self.diverges, self.line().place());
            self.snapshot = Some(Taken { snapshot, value, diverges, place });
            return Ok(());
        };
        self.tell(format!("rollback to the snapshot of {}", taken.value));
        let done = self.manager()?.checkpoint_mut().rollback(&taken.snapshot);
        done.map_err(|e| format!("the snapshot is not restored: {e}"))?;
        self.owed = false;
        if !self.state.is(taken.value) {
            return Err(format!("rolled back to {} instead of {}", self.state.get(), taken.value));
        }
        self.diverges = taken.diverges;
        self.line().rolled_back(taken.place);
        self.snapshot = Some(taken);
        self.check_directory()?;
        match self.line().last_step.filter(|_| self.random.one_in(3)) {
            Some(last) => self.save_if_due(last),
            None => Ok(()),
        }
    }

    /// Returns the path of a checkpoint, by its name and its value. An unclean one that was saved anew has the same.
    fn find(&self, made: &Made) -> Option<PathBuf> {
        let name = format!("{}-{}", NAMES[self.name], made.number);
        let aside = format!("superseded-{name}-");
        let names = fs::read_dir(&self.dir).ok()?.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let paths = names.filter(|found| *found == name || found.starts_with(&aside)).map(|name| self.dir.join(name));
        let is_it = |path: &PathBuf| {
            disk::manifest(path).is_some_and(|seen| seen.value == Some(made.value) && seen.unclean == made.is_unclean)
        };
        paths.into_iter().find(is_it)
    }

    /// Changes the state. Every tenth one diverges: a value in it is not finite.
    fn change(&mut self) -> u64 {
        self.fresh_value += 1;
        self.diverges = self.random.one_in(10);
        self.state.set(self.fresh_value, self.diverges);
        self.fresh_value
    }

    pub(super) fn save_if_due(&mut self, step: u64) -> Verdict {
        let interval = self.interval;
        if self.line().is_due(step, interval) || self.owed {
            return self.save_at_with(step, true, true);
        }
        self.change();
        self.tell(format!("save_if_due({step}), not due"));
        match self.manager()?.save_if_due(step) {
            Ok(None) => Ok(()),
            other => Err(format!("it is not due, and yet {other:?}")),
        }
    }

    pub(super) fn save_at(&mut self, step: u64, changed: bool) -> Verdict {
        self.save_at_with(step, changed, false)
    }

    fn save_at_with(&mut self, step: u64, changed: bool, if_due: bool) -> Verdict {
        // No two checkpoints hold the same.
        if changed || !self.line().ends_at(step) {
            self.change();
        }
        let value = self.state.get();
        let metrics: BTreeMap<String, f64> = match self.random.one_in(3) && !if_due {
            true => BTreeMap::from([(format!("m{}", self.random.below(2)), self.random.below(9) as f64)]),
            false => BTreeMap::new(),
        };
        self.tell(format!(
            "save_at({step}) of {value} with {metrics:?}{}{}",
            if if_due { ", if due" } else { "" },
            if self.diverges { ", not finite" } else { "" }
        ));
        let then = self.line().save(step, value);
        let in_the_way = matches!(then, Then::New { .. }) && self.is_in_the_way(step, &then);
        let planned = self.planned(Some(step), &metrics)?;
        let saved = match if_due {
            true => self.manager()?.save_if_due(step).map(|path| path.unwrap_or_default()),
            false => self.manager()?.save_with_metrics(step, metrics.clone()),
        };
        match saved {
            // That something was removed by hand is noticed, and no more listed, when something is saved.
            Err(Error::AlreadyExists { .. }) if in_the_way => {
                // It stays due.
                self.owed |= if_due;
                return self.check_directory();
            }
            Ok(_) if in_the_way => return Err("it is saved over something".to_string()),
            _ => {}
        }
        self.judge(
            saved,
            Saved { number: step, step: Some(step), value, metrics, ..Saved::default() },
            then,
            Some(planned),
        )
    }

    pub(super) fn save_counted(&mut self) -> Verdict {
        let value = self.change();
        self.tell(format!("save() of {value}{}", if self.diverges { ", not finite" } else { "" }));
        let counter = self.manager()?.checkpoint().save_counter() + 1;
        let superseded = self.line().later();
        let number = self.free_number(counter, &superseded)?;
        let then = self.line().save_new(number);
        let planned = self.planned(None, &BTreeMap::new())?;
        let saved = self.manager()?.save();
        self.judge(saved, Saved { number, value, ..Saved::default() }, then, Some(planned))
    }

    /// A guarded training fails. If nothing has changed since the last call of the manager, the state of that call is
    /// saved, unless it is saved already. Otherwise the state is saved as unclean.
    pub(super) fn fail(&mut self) -> Verdict {
        let last = self.line().last_step;
        // It calls the manager before it fails, or does not.
        let may_call = self.interval > 1 && !self.owed;
        let called = last.filter(|_| may_call && self.random.one_in(2)).map(|step| step + 1);
        let changes = last.is_none() || !self.random.one_in(3);
        if called.is_some() {
            self.change();
        }
        let step = called.or(last);
        let counter = self.manager()?.checkpoint().save_counter() + 1;
        let number = match step {
            Some(step) if !changes => step,
            _ => self.free_number(step.unwrap_or(counter), &[])?,
        };
        let value = if changes { self.fresh_value + 1 } else { self.state.get() };
        self.tell(format!("the training fails at {step:?}, called at {called:?}, with {value}, changed: {changes}"));
        let then = self.line().save_new(number);
        let in_the_way = self.is_in_the_way(number, &then);
        let mut manager = self.manager.take().ok_or("no manager")?;
        let failed: Result<(), String> = manager.guard(|manager| {
            match called.map(|step| manager.save_if_due(step)) {
                None | Some(Ok(None)) => {}
                other => return Err(format!("it is not due, and yet {other:?}")),
            }
            if changes {
                self.change();
            }
            Err(String::new())
        });
        self.manager = Some(manager);
        match failed {
            Err(why) if why.is_empty() => {}
            other => return Err(format!("the failure is {other:?}")),
        }
        // What no restart uses supersedes only its like.
        let goes_back = self.line().goes_back();
        if !changes && (called.is_none() || in_the_way) || changes && goes_back {
            return self.check_directory();
        }
        let saved = Saved { number, step, value, is_unclean: changes, ..Saved::default() };
        self.judge(Ok(Location::from(self.path(number))), saved, then, None)
    }

    /// Returns this number, or the one after the highest if the name is taken.
    fn free_number(&self, number: u64, superseded: &[u64]) -> Result<u64, String> {
        let prefix = format!("{}-", NAMES[self.name]);
        let entries = fs::read_dir(&self.dir).map_err(|e| e.to_string())?.flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let numbers = names.filter_map(|name| name.strip_prefix(&prefix)?.parse::<u64>().ok());
        let taken: Vec<u64> = numbers.filter(|number| !superseded.contains(number)).collect();
        let highest = taken.iter().max().copied().unwrap_or(0);
        Ok(if taken.contains(&number) { highest + 1 } else { number })
    }

    /// Returns `true` if something that this line did not save has the name.
    fn is_in_the_way(&self, number: u64, then: &Then) -> bool {
        let Then::New { supersedes, .. } = then else { return false };
        fs::symlink_metadata(self.path(number)).is_ok() && !supersedes.contains(&number)
    }

    /// Checks the result of a save, what it removed, and that this was planned.
    fn judge(
        &mut self,
        path: tch_checkpoint::Result<Location>,
        saved: Saved,
        then: Then,
        planned: Option<Planned>,
    ) -> Verdict {
        match path {
            Err(e) => return Err(format!("it is not saved: {e}")),
            Ok(path) if path != self.path(saved.number) => return Err(format!("it is saved as {}", path.display())),
            Ok(_) => {}
        }
        let (rules, now) = (self.rules.clone(), self.now);
        let saved = Saved { time: now, is_unhealthy: self.diverges, ..saved };
        let is_new = matches!(then, Then::New { .. });
        self.saves += 1;
        self.owed = false;
        let (name, saves) = (self.name, self.saves);
        self.indexed[name] |= is_new || !saved.metrics.is_empty();
        let line = self.line();
        line.saved(&saved, then, &rules, saves);
        // Metrics alone remove nothing.
        if is_new {
            line.rotated(&rules, now);
        }
        self.check()?;
        self.verify_last()?;
        // A plan assumes that what is saved is finite.
        match planned.filter(|_| is_new && !self.diverges) {
            Some(planned) => self.check_plan(&planned),
            None => Ok(()),
        }
    }
}
