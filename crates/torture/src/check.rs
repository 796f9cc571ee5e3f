//! The invariants: what the library must do with a disk after a crash.
//!
//! * I1: an acknowledged state, or a later one, is restored.
//! * I2: restored values are saved values.
//! * I3: the index is not needed; where there is one, it names a good checkpoint.
//! * I4: as many good checkpoints are there as were acknowledged, up to the number to keep.
//! * I5: a directory with the name of a checkpoint is an intact checkpoint.
//! * I6: recovery leaves nothing behind, has the same result when repeated, and the next save succeeds.
//! * I8: nothing stays open or locked.
//! * I9: nothing outside the directory is touched. I10: nothing of the user's is touched.
//!
//! `faults` checks I7: a failed save changes nothing.

use super::crash::Told;
use super::marked::{self, Beside};
use super::run::{Run, Setup, restore, save};
use super::sim::{Files, Id, Name, SimDisk, TOP};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use tch_checkpoint::internal::{Directory, Disk, OpenOptions, Posix, Source};

/// The directory of checkpoints on the simulated disk.
pub(super) const ROOT: &str = "/data/run";

/// Entries of the user's in the directory and next to it.
pub(super) const STRANGERS: [&str; 6] = [
    "/data/run/notes.txt",
    "/data/run/ckpt-007/file",
    "/data/run/ckpt-1-backup/file",
    "/data/run/.tmp-of-mine",
    "/data/run/.trash-1/file",
    "/data/other/file",
];

/// The result for one state of the disk. Depends only on the state.
#[derive(Debug, Clone, Default)]
pub(super) struct Outcome {
    /// The state that was restored.
    pub restored: Option<u64>,
    /// The states of the intact checkpoints; where some are superseded, those that a manager that opens finds.
    pub good: Vec<u64>,
    /// The state of the checkpoint that the index names as the latest, if it is intact.
    pub indexed: Option<u64>,
    /// A checkpoint has all its files in full length, with wrong bytes.
    pub wrong_bytes: bool,
    /// Marks, links and components, before the first recovery and after the last.
    pub beside: [Beside; 2],
    /// Violations that do not depend on what was acknowledged.
    pub broken: Vec<String>,
}

/// Examines a state of the disk as a reader, as a manager that restores, twice, and as one that continues to save.
pub(super) fn inspect(files: &Files, setup: &Setup) -> Outcome {
    let mut outcome = Outcome::default();
    let disk = SimDisk::new(files.clone(), 0);
    look(&disk, setup, &mut outcome);
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let beside = || if setup.marks_anything() { marked::look(&shared) } else { Beside::default() };
    let mut before = beside();
    let first = recover(&disk, setup, &mut outcome, None);
    outcome.restored = first;
    if setup.supersedes() {
        // An interrupted commit may have left some without their names.
        let mut recovered = Outcome::default();
        look(&disk, setup, &mut recovered);
        outcome.good = recovered.good;
        if setup.noted {
            before = beside();
        }
    }
    let next = first.unwrap_or(0) + 1;
    let second = recover(&disk, setup, &mut outcome, Some(next));
    if second != first {
        outcome.broken.push(format!("I6: opened again it restores {second:?}, before it was {first:?}"));
    }
    let name = format!("ckpt-{}", setup.step_of(next));
    let path = Path::new(ROOT).join(&name);
    let storage = Posix::new(Arc::new(disk.clone()));
    match whole(&storage, &path) {
        Ok(step) if step == next => {}
        Ok(step) => outcome.broken.push(format!("I2: {name} says it is state {step}, not {next}")),
        Err(e) => outcome.broken.push(format!("I6: state {next} was saved after recovery, and is not good: {e}")),
    }
    drop(storage);
    let after = beside();
    drop(shared);
    let judged = before.judge(setup, false).into_iter().chain(after.judge(setup, true));
    outcome.broken.extend(judged);
    outcome.beside = [before, after];
    strangers(&disk, files, setup, &mut outcome);
    outcome.broken.extend(disk.outrages().into_iter().map(|what| format!("I9: {what}")));
    if disk.holders() != 1 {
        outcome.broken.push(format!("I8: {} files or locks are still open", disk.holders() - 1));
    }
    outcome
}

/// Examines the disk as a reader, before the first recovery.
fn look(disk: &SimDisk, setup: &Setup, outcome: &mut Outcome) {
    let storage = Posix::new(Arc::new(disk.clone()));
    let directory = Directory::new(&storage, ROOT, &OpenOptions::default());
    let (directory, names, aside) = match directory.and_then(|directory| directory.scan().map(|scan| (directory, scan)))
    {
        Ok((directory, scan)) => (directory, scan.checkpoints, scan.aside),
        Err(e) => return outcome.broken.push(format!("the directory cannot be listed: {e}")),
    };
    for name in &names {
        if !is_ours(name) {
            continue;
        }
        match whole(&storage, &Path::new(ROOT).join(name)) {
            Ok(_) if is_unclean(&storage, name) => {}
            Ok(step) => outcome.good.push(step),
            Err(e) => {
                outcome.wrong_bytes |= Source::open(&storage, Path::new(ROOT).join(name)).is_ok();
                outcome.broken.push(format!("I5: {name} has the name of a checkpoint: {e}"));
            }
        }
    }
    let Some(index) = directory.index() else {
        return;
    };
    let latest = index.latest.as_ref().map(|name| whole(&storage, &Path::new(ROOT).join(name)));
    outcome.indexed = latest.and_then(Result::ok);
    for entry in &index.checkpoints {
        // Older ones may be gone: the index is written before they are removed.
        let before = format!("superseded-{}-", entry.name);
        let is_aside = || setup.supersedes() && aside.iter().any(|(_, name)| name.starts_with(&before));
        if Some(&entry.name) == index.latest.as_ref() && !names.contains(&entry.name) && !is_aside() {
            outcome.broken.push(format!("I3: the index names {:?}, which is not there", entry.name));
        }
    }
}

fn is_ours(name: &str) -> bool {
    name.strip_prefix("ckpt-").is_some_and(|n| n.parse::<u32>().is_ok_and(|number| number.to_string() == n))
}

fn is_unclean(storage: &Posix, name: &str) -> bool {
    Source::open(storage, Path::new(ROOT).join(name)).is_ok_and(|source| source.manifest.unclean)
}

/// Returns the state of a checkpoint, after verifying every byte.
fn whole(storage: &Posix, path: &Path) -> tch_checkpoint::Result<u64> {
    let source = Source::open(storage, path)?;
    let mut buffer = Vec::new();
    for file in source.manifest.files.keys() {
        source.verify_header(file)?;
    }
    for (key, record) in &source.manifest.tensors {
        source.verify_tensor(key, record, &mut buffer)?;
    }
    Ok(source.manifest.values.get("step").and_then(|step| step.as_u64()).unwrap_or(0))
}

/// Opens a manager, restores, and saves `next`; returns the restored step.
fn recover(disk: &SimDisk, setup: &Setup, outcome: &mut Outcome, next: Option<u64>) -> Option<u64> {
    let run = Run::new(setup);
    let mut broken = |text: String| outcome.broken.push(text);
    let mut manager = match run.open(Arc::new(disk.clone()), Path::new(ROOT)) {
        Ok(manager) => manager,
        Err(e) => {
            broken(format!("I6: it cannot be opened: {e}"));
            return None;
        }
    };
    let restored = match restore(&mut manager) {
        Ok(started) => {
            for passed in &started.passed_over {
                if !setup.unclean || !passed.reason.contains("after an error") {
                    broken(format!("I5: passed over {}: {}", passed.path.display(), passed.reason));
                }
            }
            started.restored.map(|_| run.state())
        }
        Err(e) => {
            broken(format!("I1: nothing can be restored: {e}"));
            return None;
        }
    };
    match restored {
        Some(state) if !run.is_at(state) => broken(format!("I2: the values are not those of state {state}")),
        None if !run.is_untouched() => broken("I2: nothing was restored, and yet values changed".into()),
        _ => {}
    }
    if let Some(next) = next {
        run.set(next);
        if let Err(e) = save(&mut manager, setup, next) {
            broken(format!("I6: the next save fails: {e}"));
        }
    }
    let listed: Vec<String> = manager
        .checkpoints()
        .iter()
        .map(|path| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default())
        .collect();
    drop(manager);
    for name in &disk.names(Path::new(ROOT)) {
        let stranger = STRANGERS.iter().any(|path| path.split('/').nth(3) == Some(name));
        let known = [".lock", "checkpoint.json"].contains(&name.as_str())
            || listed.contains(name)
            || setup.links && ["latest", "best"].contains(&name.as_str())
            || setup.supersedes() && name.starts_with("superseded-");
        if !stranger && !known {
            broken(format!("I6: {name} is left behind"));
        }
    }
    restored
}

/// Checks that the user's files are where they were in `before`.
fn strangers(disk: &SimDisk, before: &Files, setup: &Setup, outcome: &mut Outcome) {
    if !setup.strangers {
        return;
    }
    let after = disk.files();
    for path in STRANGERS {
        if resolve(before, path).is_some() && resolve(&after, path).is_none() {
            outcome.broken.push(format!("I10: {path} is gone"));
        }
    }
}

fn resolve(files: &Files, path: &str) -> Option<Id> {
    path.split('/').filter(|part| !part.is_empty()).try_fold(TOP, |id, part| files.find(id, &Name::new(part)))
}

/// What must hold of a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// The invariants.
    Invariants,
    /// The invariants without I3: an index that could not be written is outdated.
    ButTheIndex,
    /// A reader that trusts the index finds what was acknowledged.
    IndexAlone,
    /// A reader that checks lengths but no digests restores no wrong bytes.
    LengthsAlone,
    /// No wrong bytes are restored. The disk lied, so everything else may be lost.
    NoWrongBytes,
}

/// Returns the violations of a state, given what was acknowledged before the crash.
pub(super) fn judge(outcome: &Outcome, told: &Told, setup: &Setup, asked: Asked) -> Vec<String> {
    let Told { acknowledged, attempted, noted } = told;
    let mut broken = outcome.broken.clone();
    let newest = acknowledged.last().copied();
    match asked {
        Asked::Invariants => {}
        Asked::ButTheIndex => broken.retain(|what| !what.starts_with("I3")),
        Asked::IndexAlone if outcome.indexed >= newest => return Vec::new(),
        Asked::IndexAlone => {
            return vec![format!("{newest:?} was acknowledged, the index leads to {:?}", outcome.indexed)];
        }
        Asked::LengthsAlone if !outcome.wrong_bytes => return Vec::new(),
        Asked::LengthsAlone => return vec!["wrong bytes in files of the right length".into()],
        Asked::NoWrongBytes => {
            broken.retain(|what| what.starts_with("I2"));
            return broken;
        }
    }
    if outcome.restored < newest {
        broken.push(format!("I1: state {newest:?} was acknowledged, {:?} is restored", outcome.restored));
    }
    if outcome.restored > Some(*attempted) {
        broken.push(format!("I2: state {:?} is restored, only {attempted} were saved", outcome.restored));
    }
    let steps: BTreeSet<u64> = acknowledged.iter().map(|state| setup.step_of(*state)).collect();
    // Going back supersedes all but the oldest.
    let most = if setup.back { 1 } else { usize::MAX };
    let least = steps.len().min(setup.keep.unwrap_or(usize::MAX)).min(most);
    if outcome.good.len() < least {
        broken.push(format!("I4: {least} good checkpoints should be there, there are {:?}", outcome.good));
    }
    let beside = outcome.beside.iter().filter(|_| setup.marks_anything());
    beside.for_each(|beside| broken.extend(beside.lost(noted, least, setup)));
    // Later there is also what was saved after the recovery.
    broken.extend(outcome.beside[0].without_note(noted));
    broken
}
