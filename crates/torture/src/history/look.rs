//! Compares a directory, and what a manager lists, with the oracle.

use super::disk::{self, Seen};
use super::state::{NAMES, slot, value_of};
use super::{History, Verdict};
use crate::oracle::Made;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use tch_checkpoint::retention::Explanation;
use tch_checkpoint::{CheckpointReader, Location, latest_checkpoint};

/// The run and the sequence of a checkpoint.
type Id = (String, u64);

/// The plan of a manager for its next save.
pub(super) struct Planned {
    /// All checkpoints before the save, in or out of the numbering.
    before: BTreeMap<String, Id>,
    removes: BTreeSet<String>,
    thins: BTreeSet<String>,
}

impl History {
    pub(super) fn planned(&mut self, step: Option<u64>, metrics: &BTreeMap<String, f64>) -> Result<Planned, String> {
        let before = self.there()?;
        let plan = self.manager()?.plan_removal(step, metrics.clone());
        let names = |wanted: fn(&Explanation) -> bool| {
            plan.iter().filter(|explanation| wanted(explanation)).map(|of| of.checkpoint.name.clone()).collect()
        };
        let removes = names(|explanation| !explanation.is_kept());
        Ok(Planned { before, removes, thins: names(|explanation| !explanation.loses.is_empty()) })
    }

    /// Checks that the save has removed what was planned.
    pub(super) fn check_plan(&self, planned: &Planned) -> Verdict {
        let after: BTreeSet<Id> = self.there()?.into_values().collect();
        let gone = planned.before.iter().filter(|(_, id)| !after.contains(id)).map(|(name, _)| name.clone());
        let gone: BTreeSet<String> = gone.collect();
        if gone != planned.removes {
            return Err(format!("it said that it removes {:?}, and removed {gone:?}", planned.removes));
        }
        let lacks = |name: &&String| !self.dir.join(name).join("slots.safetensors").exists();
        match planned.thins.iter().find(|name| !lacks(name)) {
            Some(name) => Err(format!("it said that {name} loses its slots, which are there")),
            None => Ok(()),
        }
    }

    /// Returns the checkpoints of the present name, in or out of the numbering.
    fn there(&self) -> Result<BTreeMap<String, Id>, String> {
        let mut there = BTreeMap::new();
        for entry in fs::read_dir(&self.dir).map_err(|e| e.to_string())?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let bare = ["superseded-", "damaged-"].iter().find_map(|aside| name.strip_prefix(aside)).unwrap_or(&name);
            if bare.strip_prefix(NAMES[self.name]).is_none_or(|rest| !rest.starts_with('-')) {
                continue;
            }
            if let Some(seen) = disk::manifest(&entry.path()) {
                there.insert(name, (seen.run, seen.sequence));
            }
        }
        Ok(there)
    }

    /// Lists the directory: of each checkpoint its value, its run and sequence, and what it follows.
    pub(super) fn listing(&self) -> String {
        let names = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let mut lines: Vec<String> = names
            .map(|entry| {
                let name = entry.file_name().to_string_lossy().into_owned();
                let Ok(reader) = CheckpointReader::open(entry.path()) else { return name };
                let manifest = reader.manifest();
                let id = |run: &str, sequence: u64| format!("{} {sequence}", run.get(..4).unwrap_or(run));
                let follows = manifest.follows.as_ref().map(|follows| id(&follows.run, follows.sequence));
                let own = id(&manifest.run, manifest.sequence);
                format!("{name}: {:?}, {own}, follows {follows:?}", value_of(&reader))
            })
            .collect();
        lines.sort();
        lines.join("\n  ")
    }

    /// Checks that everything is there that must be, and nothing more. Reading a whole directory takes most of the time
    /// of a history, so the calls that do it are made in turns.
    pub(super) fn check(&self) -> Verdict {
        self.check_directory()?;
        self.check_known()?;
        if self.saves.is_multiple_of(2) { self.check_listed() } else { self.check_latest() }
    }

    pub(super) fn check_directory(&self) -> Verdict {
        for (name, line) in self.lines.iter().enumerate() {
            for made in line.own.iter().filter(|made| made.there) {
                let path = self.dir.join(format!("{}-{}", NAMES[name], made.number));
                let Some(seen) = disk::manifest(&path) else {
                    return Err(format!("{} of {} is not there", path.display(), made.value));
                };
                if seen.value != Some(made.value) {
                    return Err(format!("{} has {:?}, not {}", path.display(), seen.value, made.value));
                }
                if !made.is_damaged && disk::tensor(&path, "tensor") != Some(made.value.to_le_bytes()) {
                    return Err(format!("{} has another tensor than that of {}", path.display(), made.value));
                }
                let slots = disk::tensor(&path, "slots");
                if slots.is_none() != made.is_thinned {
                    let not = if slots.is_none() { "no" } else { "still" };
                    return Err(format!("{} of {} has {not} slots", path.display(), made.value));
                }
                if slots.is_some_and(|slots| !slots.starts_with(&slot(made.value).to_le_bytes())) {
                    return Err(format!("{} has other slots than those of {}", path.display(), made.value));
                }
            }
            for made in &line.aside {
                let prefix = format!("superseded-{}-{}-", NAMES[name], made.number);
                let entries = fs::read_dir(&self.dir).map_err(|e| e.to_string())?.flatten();
                let mut named = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
                // An unclean one that was saved anew has the same number and value.
                let is_it = |seen: Seen| seen.value == Some(made.value) && seen.unclean == made.is_unclean;
                let there = named.any(|entry| disk::manifest(&entry.path()).is_some_and(is_it));
                if there != made.there {
                    let not = if there { "still" } else { "not" };
                    return Err(format!("the superseded {} of {} is {not} there", made.number, made.value));
                }
            }
        }
        for name in &self.copied {
            if !self.dir.join(name).join("manifest.json").exists() {
                return Err(format!("the foreign {name} is gone"));
            }
        }
        Ok(())
    }

    /// Verifies the checkpoints of all names: at the beginning of a process, and so at the end of a history.
    pub(super) fn verify(&self) -> Verdict {
        let lines = self.lines.iter().enumerate();
        let all = lines.flat_map(|(name, line)| line.own.iter().map(move |made| (name, made)));
        all.filter(|(_, made)| made.there).try_for_each(|(name, made)| self.verify_one(name, made))
    }

    /// Verifies what was saved last.
    pub(super) fn verify_last(&self) -> Verdict {
        let last = self.lines[self.name].own.last();
        last.filter(|made| made.there).map_or(Ok(()), |made| self.verify_one(self.name, made))
    }

    fn verify_one(&self, name: usize, made: &Made) -> Verdict {
        let path = self.dir.join(format!("{}-{}", NAMES[name], made.number));
        let reader = CheckpointReader::open(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        if !made.is_damaged && !reader.verify().is_intact() {
            return Err(format!("{} is damaged", path.display()));
        }
        let lacks_slots = !reader.manifest().tensors.keys().any(|key| key.starts_with("slots"));
        match lacks_slots == made.is_thinned {
            true => Ok(()),
            false => {
                Err(format!("{} is read as one {} slots", path.display(), if lacks_slots { "without" } else { "with" }))
            }
        }
    }

    /// Checks what the manager knows.
    fn check_known(&self) -> Verdict {
        let manager = self.manager.as_ref().ok_or("no manager")?;
        let listed: Vec<Location> = manager.checkpoints();
        let line = &self.lines[self.name];
        let expected: Vec<PathBuf> =
            line.own.iter().filter(|made| made.there && !made.permanent).map(|made| self.path(made.number)).collect();
        if listed.iter().filter(|path| path.is_dir()).ne(&expected) {
            return Err(format!("it lists {listed:?}, not {expected:?}"));
        }
        Ok(())
    }

    fn check_listed(&self) -> Verdict {
        let line = &self.lines[self.name];
        let all = tch_checkpoint::list_checkpoints(&self.dir).map_err(|e| e.to_string())?;
        for made in line.own.iter().filter(|made| made.there) {
            let path = self.path(made.number);
            let Some(found) = all.checkpoints.iter().find(|listed| listed.path == path) else {
                return Err(format!("{} is not listed", path.display()));
            };
            if found.entry.metrics != made.metrics || found.entry.permanent != made.permanent {
                return Err(format!("{}: {:?} is listed, not {made:?}", path.display(), found.entry));
            }
        }
        Ok(())
    }

    fn check_latest(&self) -> Verdict {
        if !self.copied.is_empty() {
            return Ok(());
        }
        let newest = self.lines.iter().enumerate().filter_map(|(name, line)| {
            let made = line.own.iter().rfind(|made| made.there)?;
            Some((made.order, self.dir.join(format!("{}-{}", NAMES[name], made.number))))
        });
        let expected = newest.max().map(|(_, path)| path);
        match latest_checkpoint(&self.dir) {
            Ok(latest) if latest.as_deref() == expected.as_deref() => Ok(()),
            other => Err(format!("the latest is {other:?}, not {expected:?}")),
        }
    }
}
