//! The process that trains, saves, and examines the directory.

use super::careless::disk;
use super::{ActorReport, Beside, KEEP, Said, names, setup};
use crate::random::Random;
use crate::run::{Run, restore};
use crate::system::System;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tch_checkpoint::internal::before_aside;
use tch_checkpoint::{CheckpointManager, Error, Result};

pub(super) struct Trainer {
    run: Run,
    root: PathBuf,
    beside: Beside,
    manager: Option<CheckpointManager>,
    random: Random,
    step: u64,
    acknowledged: Vec<u64>,
    /// Of these, what rotation may not have removed yet: a step that leaves this list for another never comes back to
    /// it.
    due: Vec<u64>,
}

impl Trainer {
    pub(super) fn new(root: &Path, seed: u64, beside: Beside) -> Trainer {
        let (run, root, random) = (Run::new(&setup()), root.to_path_buf(), Random::new(seed));
        Trainer { run, root, beside, manager: None, random, step: 0, acknowledged: Vec::new(), due: Vec::new() }
    }

    /// Lets managers of other names save.
    pub(super) fn make_room(&mut self) {
        self.manager = None;
        std::thread::sleep(std::time::Duration::from_micros(200));
    }

    pub(super) fn act(&mut self, report: &mut ActorReport) {
        if self.random.one_in(25) {
            self.manager = None;
        }
        if self.manager.is_none() && !self.restart(report) {
            return report.refused += 1;
        }
        if self.beside.wanders && self.random.one_in(20) {
            let places = [Path::new("/"), self.root.parent().unwrap_or(&self.root), &self.root];
            let _ = std::env::set_current_dir(places[self.random.below(3)]);
        }
        let Some(manager) = &mut self.manager else { return };
        self.step += 1;
        self.run.set(self.step);
        match manager.save_at(self.step) {
            Ok(_) => {
                report.saved += 1;
                self.acknowledged.push(self.step);
                self.due.push(self.step);
                let rotated = self.due.len().saturating_sub(KEEP);
                self.due.drain(..rotated);
            }
            Err(error) => {
                report.refused += 1;
                if matches!(error, Error::Moved { .. }) && self.random.one_in(4) {
                    self.manager = None;
                }
            }
        }
    }

    /// Opens a manager, and restores what there is.
    fn restart(&mut self, report: &mut ActorReport) -> bool {
        self.run = Run::new(&setup());
        let mut root = self.root.clone();
        if self.beside.wanders && self.root.parent().is_some_and(|above| std::env::set_current_dir(above).is_ok()) {
            root = PathBuf::from("run");
        }
        let options = self.run.options();
        let opened = self.run.checkpoint(disk(self.beside.careless)).and_then(|checkpoint| {
            let builder = CheckpointManager::builder(checkpoint, root).save_options(options);
            builder.max_to_keep(KEEP).fresh_start().open()
        });
        let Ok(mut manager) = opened else { return false };
        match restore(&mut manager) {
            Ok(started) => {
                let step = started.restored.and_then(|status| status.step());
                if let Some(step) = step.filter(|step| !self.run.is_at(*step)) {
                    report.violations.push(format!("step {step} was restored, and the values are not its own"));
                }
                report.restarts += 1;
                self.step = self.step.max(step.unwrap_or(0));
                self.manager = Some(manager);
                true
            }
            // What a user would do.
            Err(Error::Link { path, .. }) if path.parent() == Some((&self.root).into()) => {
                let _ = fs::remove_file(path);
                false
            }
            // And here: the one with the higher number.
            Err(Error::Undecided { first, second, .. }) => {
                let number = |path: &Path| path.to_str()?.rsplit_once("ckpt-")?.1.parse::<u64>().ok();
                let older = if number(&first) < number(&second) { first } else { second };
                self.acknowledged.retain(|step| Some(*step) != number(&older));
                let _ = manager.pass_over(older);
                false
            }
            Err(e) => {
                log::debug!("not restored: {e}");
                false
            }
        }
    }

    /// What is wrong with a checkpoint.
    fn wrong(path: &Path, step: u64) -> Result<()> {
        if let Some(problem) = tch_checkpoint::verify_checkpoint(path).problems.into_iter().next() {
            return Err(problem);
        }
        let run = Run::new(&setup());
        run.checkpoint(Arc::new(System::default()))?.restore(path)?;
        let reason = format!("it does not hold step {step}");
        if run.is_at(step) { Ok(()) } else { Err(Error::object("checkpoint", reason)) }
    }

    /// Returns how many valid checkpoints of the manager are newer: a killed process has saved more than it could
    /// report.
    fn newer(&self, manager: &str, step: u64) -> usize {
        let number = |name: &str| name.strip_prefix(manager)?.strip_prefix('-')?.parse::<u64>().ok();
        let newer = names(&self.root, |name| number(name).is_some_and(|number| number > step));
        newer
            .iter()
            .filter(|name| number(name).is_some_and(|step| Trainer::wrong(&self.root.join(name), step).is_ok()))
            .count()
    }

    /// Examines everything while the actor is idle.
    pub(super) fn look(&mut self, said: &mut Said, report: &mut ActorReport) {
        let mut broken = |what: String| report.violations.push(what);
        for path in &said.mine {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let is_mine = |path: &Path| fs::read(path).is_ok_and(|bytes| bytes == b"mine");
            if !said.touched.contains(&name) && !is_mine(path) && !is_mine(&path.join("notes")) {
                broken(format!("{} is not as it was put there", path.display()));
            }
        }
        for (path, (by_links, name)) in std::mem::take(&mut said.kept) {
            let step = name.strip_prefix("ckpt-").and_then(|step| step.parse().ok()).unwrap_or(u64::MAX);
            match Trainer::wrong(&path, step) {
                Err(_) if said.has_damaged(&path) => {}
                Err(_) if by_links && shares_files(&path, &self.root) => report.windows += 1,
                Err(e) => broken(format!("the archive {} of {name}: {e}", path.display())),
                Ok(()) => {}
            }
            let _ = fs::remove_dir_all(path);
        }
        for (manager, steps) in &said.others {
            for step in steps.iter().rev().take(KEEP) {
                let name = format!("{manager}-{step}");
                let path = self.root.join(&name);
                if !said.is_touched(&name, &path)
                    && let Err(e) = Trainer::wrong(&path, *step)
                    && self.newer(manager, *step) < KEEP
                {
                    broken(format!("{name}, by a manager of another name: {e}"));
                }
            }
        }
        let listed = self.manager.iter().flat_map(CheckpointManager::checkpoints);
        let listed = listed.filter_map(|path| path.to_str()?.rsplit_once("ckpt-")?.1.parse().ok());
        let newest = self.due.iter().copied();
        let steps: BTreeSet<u64> = listed.chain(newest).filter(|step| self.acknowledged.contains(step)).collect();
        let mut best = None;
        for step in steps {
            let name = format!("ckpt-{step}");
            // Or out of the numbering, where it stays until it is tidied away.
            let aside = |other: &str| before_aside(other).is_some_and(|(_, before)| before == name);
            let now = names(&self.root, aside).into_iter().next().unwrap_or_else(|| name.clone());
            let moved = now != name;
            report.aside += u64::from(moved);
            let path = self.root.join(now);
            match (said.is_touched(&name, &path), Trainer::wrong(&path, step)) {
                (false, Ok(())) => {
                    report.right += 1;
                    best = best.max(Some(step).filter(|_| !moved));
                }
                (false, Err(e)) => report.violations.push(format!("{name} was acknowledged and not touched: {e}")),
                (true, Err(Error::Object { reason, .. })) => {
                    report.violations.push(format!("{name} was touched, and nothing says so: {reason}"));
                }
                (true, Err(_)) => report.reported += 1,
                (true, Ok(())) => {}
            }
        }
        match tch_checkpoint::latest_checkpoint(&self.root) {
            Ok(Some(latest)) if !latest.to_string_lossy().contains("/ckpt-") => {}
            Ok(latest) => {
                let step = latest.and_then(|path| path.to_str()?.rsplit_once("ckpt-")?.1.parse::<u64>().ok());
                if step < best {
                    report.violations.push(format!("the latest is {step:?}, {best:?} is there, whole, and newer"));
                }
            }
            // A link in the place of the newest; or what decided between two chains was destroyed, and both are named.
            Err(Error::Link { .. } | Error::Undecided { .. }) => {}
            Err(e) => report.violations.push(format!("nothing tells the latest: {e}")),
        }
        said.forget(&self.root);
        self.tidy();
    }

    /// What a user would do now and then.
    fn tidy(&mut self) {
        for name in names(&self.root, |name| before_aside(name).is_some()) {
            let step = before_aside(&name).and_then(|(_, name)| name.strip_prefix("ckpt-")?.parse::<u64>().ok());
            self.acknowledged.retain(|acknowledged| Some(*acknowledged) != step);
            let _ = fs::remove_dir_all(self.root.join(name));
        }
    }
}

/// Whether a file of `archive` has a second name in a directory of `root`.
fn shares_files(archive: &Path, root: &Path) -> bool {
    let inodes = |directory: PathBuf| {
        let paths = names(&directory, |_| true).into_iter().map(move |name| directory.join(name));
        paths.filter_map(|path| Some(std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).ok()?)))
    };
    let own: BTreeSet<u64> = inodes(archive.to_path_buf()).collect();
    names(root, |_| true).into_iter().flat_map(|name| inodes(root.join(name))).any(|inode| own.contains(&inode))
}
