//! The protocol with one thing wrong, made by a disk that leaves out or reorders what it is told. Each must be
//! caught by the invariants, or else be harmless for a reason that is written down.

use super::check::{Asked, ROOT};
use super::crash::{Crashes, Model};
use super::run::Setup;
use super::sim::SimDisk;
use crate::store::{Disk, Entry, NewFile, OldFile};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrong {
    Nothing,
    ComponentsNotSynced,
    ManifestNotSynced,
    StagingNotSynced,
    RootNotSyncedAfterCommit,
    IndexNotSynced,
    RootNotSyncedAfterIndex,
    RootNeverSynced,
    OldestRemovedFirst,
    RemovedInPlace,
    IndexBeforeCommit,
    IndexInPlace,
    IndexAfterRemoval,
    NothingSynced,
    RemovedBeforeTrashIsDurable,
    RootNotSyncedAtOpening,
    ParentNotSynced,
    CommitBeforeSync,
    LinkedFileOverwritten,
}

/// A mutant: its number in the plan of the tests, what is wrong, how many are kept, who looks, whether two crashes are
/// needed, and if it cannot be caught, why.
struct Mutant(&'static str, Wrong, usize, Asked, bool, Option<&'static str>);

const MUTANTS: &[Mutant] = &[
    Mutant("M0", Wrong::Nothing, 1, Asked::Invariants, true, Some("it is the protocol")),
    Mutant(
        "M0b",
        Wrong::Nothing,
        1,
        Asked::IndexAlone,
        false,
        Some("it is the protocol: the order of the index is right alone"),
    ),
    Mutant("M1", Wrong::ComponentsNotSynced, 2, Asked::Invariants, false, None),
    Mutant("M1b", Wrong::ComponentsNotSynced, 2, Asked::LengthsAlone, false, None),
    Mutant("M2", Wrong::ManifestNotSynced, 2, Asked::Invariants, false, None),
    Mutant("M3", Wrong::StagingNotSynced, 2, Asked::Invariants, false, None),
    Mutant("M4", Wrong::RootNotSyncedAfterCommit, 2, Asked::Invariants, false, None),
    Mutant("M4b", Wrong::RootNotSyncedAfterCommit, 2, Asked::IndexAlone, false, None),
    Mutant(
        "M5",
        Wrong::IndexNotSynced,
        2,
        Asked::Invariants,
        false,
        Some("a torn index is known by its digest and ignored: the manifests are looked at"),
    ),
    Mutant("M5b", Wrong::IndexNotSynced, 2, Asked::IndexAlone, false, None),
    Mutant(
        "M6",
        Wrong::RootNotSyncedAfterIndex,
        2,
        Asked::Invariants,
        false,
        Some("an old index is only a hint, and with two kept what it names is there"),
    ),
    Mutant("M6b", Wrong::RootNotSyncedAfterIndex, 2, Asked::IndexAlone, false, None),
    Mutant("M6c", Wrong::RootNeverSynced, 2, Asked::Invariants, false, None),
    Mutant("M7", Wrong::OldestRemovedFirst, 1, Asked::Invariants, false, None),
    Mutant("M7b", Wrong::OldestRemovedFirst, 2, Asked::Invariants, false, None),
    Mutant("M8", Wrong::RemovedInPlace, 2, Asked::Invariants, false, None),
    Mutant("M9", Wrong::IndexBeforeCommit, 2, Asked::Invariants, false, None),
    Mutant("M10", Wrong::IndexInPlace, 2, Asked::IndexAlone, false, None),
    Mutant(
        "M10b",
        Wrong::IndexInPlace,
        2,
        Asked::Invariants,
        false,
        Some("without an index, or with a torn one, the manifests are looked at"),
    ),
    Mutant("M11", Wrong::IndexAfterRemoval, 1, Asked::IndexAlone, false, None),
    Mutant("M12", Wrong::NothingSynced, 2, Asked::Invariants, false, None),
    Mutant("M13", Wrong::RemovedBeforeTrashIsDurable, 2, Asked::Invariants, false, None),
    Mutant("M14", Wrong::RootNotSyncedAtOpening, 2, Asked::Invariants, true, None),
    Mutant("M15", Wrong::ParentNotSynced, 2, Asked::Invariants, true, None),
    Mutant("M17", Wrong::CommitBeforeSync, 2, Asked::Invariants, false, None),
    Mutant("M18", Wrong::LinkedFileOverwritten, 2, Asked::Invariants, false, None),
];

/// What became of a mutant.
#[derive(Debug, Clone)]
pub struct MutantReport {
    /// Its number.
    pub name: String,
    /// What is wrong in it.
    pub wrong: String,
    /// How many images broke what was asked, of how many, in the weak and in the journal model.
    pub broken: [(u64, u64); 2],
    /// Why it need not be caught, if so.
    pub harmless: Option<String>,
    /// Whether it was caught, or need not be and was not.
    pub as_expected: bool,
}

/// Runs every mutant, on at most so many images each; those that need two crashes only when `all`.
pub fn mutants(images: u64, all: bool) -> Vec<MutantReport> {
    MUTANTS.iter().filter(|mutant| all || !mutant.4).map(|mutant| run(mutant, images)).collect()
}

fn run(Mutant(name, wrong, keep, asked, twice, harmless): &Mutant, images: u64) -> MutantReport {
    let frozen = usize::from(*wrong == Wrong::LinkedFileOverwritten);
    // Two crashes have many states: of one file, else few of them would be seen.
    let components = if *twice { 1 } else { 2 };
    let setup = Setup { components, keep: Some(*keep), frozen, saves: 3 + frozen, ..Setup::default() };
    let broken = [Model::Weak, Model::Journal].map(|model| {
        // Recoveries are many, and few of them are where these show.
        let mut crashes = Crashes::new(&setup, model, 1, if *twice { 10 * images } else { images });
        crashes.asked = *asked;
        crashes.may_fail = *wrong != Wrong::Nothing;
        let wrap = |disk: &SimDisk| -> Arc<dyn Disk> { Arc::new(MutantDisk::new(disk, *wrong, *keep)) };
        match twice {
            true => crashes.second_through(false, wrap),
            false => crashes.first_through(wrap),
        }
        (crashes.report.violations, crashes.report.images)
    });
    let caught = broken.iter().any(|(violations, _)| *violations > 0);
    MutantReport {
        name: name.to_string(),
        wrong: format!("{wrong:?}, keeping {keep}, {asked:?}{}", if *twice { ", a second crash" } else { "" }),
        broken,
        harmless: harmless.map(str::to_string),
        as_expected: caught == harmless.is_none(),
    }
}

/// The last change of names in the root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Last {
    Nothing,
    Commit,
    Index,
    Trash,
}

struct State {
    last: Last,
    /// A rename that is held back.
    held: Option<(PathBuf, PathBuf)>,
}

struct MutantDisk {
    disk: SimDisk,
    wrong: Wrong,
    keep: usize,
    state: Arc<Mutex<State>>,
}

impl std::fmt::Debug for MutantDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MutantDisk({:?})", self.wrong)
    }
}

fn name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

impl MutantDisk {
    fn new(disk: &SimDisk, wrong: Wrong, keep: usize) -> MutantDisk {
        if wrong == Wrong::LinkedFileOverwritten {
            disk.be_careless();
        }
        let state = State { last: Last::Nothing, held: None };
        MutantDisk { disk: disk.clone(), wrong, keep, state: Arc::new(Mutex::new(state)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        for entry in self.disk.list(path)? {
            self.disk.remove_file(&path.join(entry.name))?;
        }
        self.disk.remove_dir(path)
    }
}

impl Disk for MutantDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        if self.wrong == Wrong::OldestRemovedFirst && name(path).starts_with(".tmp-ckpt") {
            let entries = self.disk.list(Path::new(ROOT))?;
            let mut old: Vec<String> =
                entries.into_iter().map(|entry| entry.name).filter(|name| name.starts_with("ckpt-")).collect();
            old.sort();
            if old.len() >= self.keep {
                let trash = Path::new(ROOT).join(format!(".trash-{}-{}", old[0], "0".repeat(32)));
                self.disk.rename_new(&Path::new(ROOT).join(&old[0]), &trash)?;
                self.disk.sync_dir(Path::new(ROOT))?;
                self.remove_folder(&trash)?;
            }
        }
        self.disk.create_dir(path)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn NewFile>> {
        let file = self.disk.create(path)?;
        let inside = path.to_string_lossy().contains("/.tmp-ckpt");
        let lies = match self.wrong {
            Wrong::ComponentsNotSynced => inside && name(path).ends_with(".safetensors"),
            Wrong::ManifestNotSynced => inside && name(path) == "manifest.json",
            Wrong::CommitBeforeSync => inside,
            Wrong::IndexNotSynced => name(path).starts_with(".tmp-index"),
            Wrong::NothingSynced => true,
            _ => false,
        };
        Ok(if lies { Box::new(Unsynced(file)) } else { file })
    }

    fn recycle(&self, from: &Path, to: &Path) -> io::Result<Option<Box<dyn NewFile>>> {
        self.disk.recycle(from, to)
    }

    fn link(&self, existing: &Path, new: &Path) -> io::Result<()> {
        self.disk.link(existing, new)
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn OldFile>> {
        self.disk.open(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<Entry>> {
        self.disk.list(path)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.disk.exists(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let root = path == Path::new(ROOT);
        let last = self.state().last;
        let skipped = match self.wrong {
            Wrong::StagingNotSynced => name(path).starts_with(".tmp-ckpt"),
            Wrong::RootNotSyncedAfterCommit => root && last == Last::Commit,
            Wrong::RootNotSyncedAfterIndex => root && last == Last::Index,
            Wrong::RootNeverSynced => root,
            Wrong::NothingSynced => true,
            Wrong::RemovedBeforeTrashIsDurable => root && last == Last::Trash,
            Wrong::RootNotSyncedAtOpening => root && last == Last::Nothing,
            Wrong::ParentNotSynced => path == Path::new("/data"),
            _ => false,
        };
        if !skipped {
            self.disk.sync_dir(path)?;
        }
        let held = if root && self.wrong == Wrong::IndexBeforeCommit && last == Last::Index {
            self.state().held.take()
        } else {
            None
        };
        if let Some((from, to)) = held {
            self.disk.rename_new(&from, &to)?;
            self.disk.sync_dir(path)?;
        }
        Ok(())
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        let commit = name(from).starts_with(".tmp-ckpt");
        self.state().last = if commit { Last::Commit } else { Last::Trash };
        if commit && self.wrong == Wrong::IndexBeforeCommit {
            self.state().held = Some((from.to_path_buf(), to.to_path_buf()));
            return Ok(());
        }
        if !commit && self.wrong == Wrong::RemovedInPlace {
            return self.remove_folder(from);
        }
        self.disk.rename_new(from, to)?;
        if commit && self.wrong == Wrong::CommitBeforeSync {
            // The files are synced, but after the name is there and durable.
            self.disk.sync_dir(Path::new(ROOT))?;
            for entry in self.disk.list(to)? {
                self.disk.sync_file(&to.join(entry.name));
            }
        }
        Ok(())
    }

    fn replace(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.state().last = Last::Index;
        match self.wrong {
            Wrong::IndexAfterRemoval => {
                self.state().held = Some((from.to_path_buf(), to.to_path_buf()));
                Ok(())
            }
            Wrong::IndexInPlace => {
                let staged = self.disk.open(from)?;
                let mut bytes = vec![0; staged.len()? as usize];
                staged.read_exact_at(0, &mut bytes)?;
                if self.disk.exists(to)? {
                    self.disk.remove_file(to)?;
                }
                self.disk.create(to)?.write_all_at(0, &bytes)?;
                self.disk.remove_file(from)
            }
            _ => self.disk.replace(from, to),
        }
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.disk.remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.remove_dir(path)?;
        let held = if self.wrong == Wrong::IndexAfterRemoval { self.state().held.take() } else { None };
        if let Some((from, to)) = held {
            self.disk.replace(&from, &to)?;
            self.disk.sync_dir(Path::new(ROOT))?;
        }
        Ok(())
    }

    fn free_space(&self, path: &Path) -> io::Result<Option<u64>> {
        self.disk.free_space(path)
    }

    fn lock(&self, path: &Path, holder: &str) -> io::Result<Option<Box<dyn Send + Sync>>> {
        self.disk.lock(path, holder)
    }
}

/// A file whose sync does nothing.
struct Unsynced(Box<dyn NewFile>);

impl NewFile for Unsynced {
    fn write_all_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(offset, bytes)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.0.set_len(length)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_broken_protocol_is_caught_and_the_right_one_is_not() {
        for report in mutants(5_000, false) {
            println!("{report:?}");
            assert!(report.as_expected, "{report:#?}");
        }
    }
}
