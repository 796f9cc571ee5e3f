//! Mutants of the protocol, made by a disk that omits or reorders operations. Each must be caught by the invariants, or
//! be harmless for the stated reason.

use super::check::{Asked, ROOT};
use super::crash::{Crashes, Model};
use super::run::Setup;
use super::sim::SimDisk;
use std::any::Any;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tch_checkpoint::internal::{Dir, Disk, Entry, LockFile, OpenDir, ReadFile, Stat, WriteFile};

/// The mutation.
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
    MarkFilesNotSynced,
    MarksNotSynced,
    LinksAfterRemoval,
}

impl Wrong {
    /// Returns `true` if only a program with marks and links shows it.
    fn is_of_marks(self) -> bool {
        matches!(self, Wrong::MarkFilesNotSynced | Wrong::MarksNotSynced | Wrong::LinksAfterRemoval)
    }
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
    Mutant("M18", Wrong::LinkedFileOverwritten, 1, Asked::Invariants, false, None),
    Mutant("M19", Wrong::MarkFilesNotSynced, 2, Asked::Invariants, false, None),
    Mutant("M20", Wrong::MarksNotSynced, 2, Asked::Invariants, false, None),
    Mutant("M21", Wrong::LinksAfterRemoval, 1, Asked::Invariants, false, None),
];

/// The result for a mutant.
#[derive(Debug, Clone)]
pub struct MutantReport {
    /// Its number.
    pub name: String,
    /// The mutation.
    pub wrong: String,
    /// The number of images with a violation and of all images, in the weak and in the journal model.
    pub broken: [(u64, u64); 2],
    /// Why it is harmless, if it is.
    pub harmless: Option<String>,
    /// It was caught, or is harmless and was not.
    pub as_expected: bool,
}

/// Runs every mutant on at most `images` images; those that need two crashes only if `all`.
#[must_use]
pub fn mutants(images: u64, all: bool) -> Vec<MutantReport> {
    MUTANTS.iter().filter(|mutant| all || !mutant.4).map(|mutant| run(mutant, images)).collect()
}

fn run(Mutant(name, wrong, keep, asked, twice, harmless): &Mutant, images: u64) -> MutantReport {
    let frozen = usize::from(*wrong == Wrong::LinkedFileOverwritten);
    // Two crashes have many states: of one file, else few of them would be seen.
    let components = if *twice { 1 } else { 2 };
    let setup = Setup { components, keep: Some(*keep), frozen, saves: 3 + frozen, ..Setup::default() };
    let setup = match wrong.is_of_marks() {
        true => Setup { marks: true, links: true, thin: Some(1), bytes: 8, ..setup },
        false => setup,
    };
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

/// The last rename in the root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Last {
    Nothing,
    Commit,
    Index,
    Trash,
}

struct State {
    last: Last,
    /// A rename in the root that is held back.
    held: Option<(OsString, OsString)>,
}

/// Clones are the same disk.
#[derive(Clone)]
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
}

impl Disk for MutantDisk {
    fn absolute(&self, path: &Path) -> io::Result<PathBuf> {
        self.disk.absolute(path)
    }

    fn least_recycled(&self) -> u64 {
        self.disk.least_recycled()
    }

    fn open_dir(&self, path: &Path) -> io::Result<Arc<dyn Dir>> {
        let dir = self.disk.open_dir(path)?;
        Ok(Arc::new(MutantDir { dir, path: path.to_path_buf(), mutant: self.clone() }))
    }
}

/// A directory, by the path it was opened by.
#[derive(Debug)]
struct MutantDir {
    dir: Arc<dyn Dir>,
    path: PathBuf,
    mutant: MutantDisk,
}

impl MutantDir {
    fn is_root(&self) -> bool {
        self.path == Path::new(ROOT)
    }

    fn is_staging(&self) -> bool {
        starts_with(self.path.file_name().unwrap_or_default(), ".tmp-ckpt")
    }

    fn remove_directory(&self, name: &OsStr) -> io::Result<()> {
        let directory = self.dir.open_dir(name)?;
        for entry in directory.list()? {
            directory.remove_file(&entry.name)?;
        }
        self.dir.remove_dir(name)
    }
}

fn starts_with(name: &OsStr, prefix: &str) -> bool {
    name.to_string_lossy().starts_with(prefix)
}

impl OpenDir for MutantDir {
    fn stat(&self) -> io::Result<Stat> {
        self.dir.stat()
    }

    fn stat_of(&self, name: &OsStr) -> io::Result<Option<Stat>> {
        // Shows the rename that is held back.
        let held = self.mutant.state().held.clone();
        let stat = self.dir.stat_of(name)?;
        match held {
            Some((from, to)) if self.is_root() && stat.is_none() && to == *name => self.dir.stat_of(&from),
            _ => Ok(stat),
        }
    }

    fn list(&self) -> io::Result<Vec<Entry>> {
        self.dir.list()
    }

    fn open(&self, name: &OsStr) -> io::Result<Box<dyn ReadFile>> {
        self.dir.open(name)
    }
}

impl Dir for MutantDir {
    fn as_any(&self) -> &dyn Any {
        self.dir.as_any()
    }

    fn open_dir(&self, name: &OsStr) -> io::Result<Arc<dyn Dir>> {
        let dir = self.dir.open_dir(name)?;
        Ok(Arc::new(MutantDir { dir, path: self.path.join(name), mutant: self.mutant.clone() }))
    }

    fn create_dir(&self, name: &OsStr) -> io::Result<()> {
        if self.mutant.wrong == Wrong::OldestRemovedFirst && self.is_root() && starts_with(name, ".tmp-ckpt") {
            let names = self.dir.list()?.into_iter().map(|entry| entry.name);
            let mut old: Vec<OsString> = names.filter(|name| starts_with(name, "ckpt-")).collect();
            old.sort();
            if old.len() >= self.mutant.keep {
                let trash = OsString::from(format!(".trash-{}-{}", old[0].to_string_lossy(), "0".repeat(32)));
                self.dir.rename_new(&old[0], &trash)?;
                self.dir.sync()?;
                self.remove_directory(&trash)?;
            }
        }
        self.dir.create_dir(name)
    }

    fn create(&self, name: &OsStr, direct: bool) -> io::Result<Box<dyn WriteFile>> {
        let file = self.dir.create(name, direct)?;
        let inside = self.is_staging();
        let lies = match self.mutant.wrong {
            Wrong::ComponentsNotSynced => inside && name.to_string_lossy().ends_with(".safetensors"),
            Wrong::ManifestNotSynced => inside && name == "manifest.json",
            Wrong::CommitBeforeSync => inside,
            Wrong::IndexNotSynced => starts_with(name, ".tmp-index"),
            Wrong::MarkFilesNotSynced => starts_with(name, ".tmp-mark"),
            Wrong::NothingSynced => true,
            _ => false,
        };
        Ok(if lies { Box::new(Unsynced(file)) } else { file })
    }

    fn recycle(&self, name: &OsStr, to: &dyn Dir, new: &OsStr, direct: bool) -> io::Result<Option<Box<dyn WriteFile>>> {
        self.dir.recycle(name, to, new, direct)
    }

    fn link(&self, name: &OsStr, to: &dyn Dir, new: &OsStr) -> io::Result<()> {
        self.dir.link(name, to, new)
    }

    fn sync(&self) -> io::Result<()> {
        let root = self.is_root();
        let last = self.mutant.state().last;
        let skipped = match self.mutant.wrong {
            Wrong::StagingNotSynced => self.is_staging(),
            Wrong::RootNotSyncedAfterCommit => root && last == Last::Commit,
            Wrong::RootNotSyncedAfterIndex => root && last == Last::Index,
            Wrong::RootNeverSynced => root,
            Wrong::NothingSynced => true,
            Wrong::RemovedBeforeTrashIsDurable => root && last == Last::Trash,
            Wrong::RootNotSyncedAtOpening => root && last == Last::Nothing,
            Wrong::MarksNotSynced => starts_with(self.path.file_name().unwrap_or_default(), "ckpt-"),
            Wrong::ParentNotSynced => self.path == Path::new("/data"),
            _ => false,
        };
        if !skipped {
            self.dir.sync()?;
        }
        let held = if root && self.mutant.wrong == Wrong::IndexBeforeCommit && last == Last::Index {
            self.mutant.state().held.take()
        } else {
            None
        };
        if let Some((from, to)) = held {
            self.dir.rename_new(&from, &to)?;
            self.dir.sync()?;
        }
        Ok(())
    }

    fn rename_new(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        let (commit, wrong) = (starts_with(from, ".tmp-ckpt"), self.mutant.wrong);
        self.mutant.state().last = if commit { Last::Commit } else { Last::Trash };
        if commit && wrong == Wrong::IndexBeforeCommit {
            self.mutant.state().held = Some((from.to_os_string(), to.to_os_string()));
            return Ok(());
        }
        if !commit && wrong == Wrong::RemovedInPlace {
            return self.remove_directory(from);
        }
        self.dir.rename_new(from, to)?;
        if commit && wrong == Wrong::CommitBeforeSync {
            // The files are synced, but after the name is there and durable.
            self.dir.sync()?;
            for entry in self.dir.open_dir(to)?.list()? {
                self.mutant.disk.sync_file(&self.path.join(to).join(entry.name));
            }
        }
        Ok(())
    }

    fn replace(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        self.mutant.state().last = Last::Index;
        match self.mutant.wrong {
            Wrong::LinksAfterRemoval if !starts_with(from, ".tmp-latest") => self.dir.replace(from, to),
            Wrong::IndexAfterRemoval | Wrong::LinksAfterRemoval => {
                self.mutant.state().held = Some((from.to_os_string(), to.to_os_string()));
                Ok(())
            }
            Wrong::IndexInPlace => {
                let staged = self.dir.open(from)?;
                let mut bytes = vec![0; staged.stat()?.length as usize];
                staged.read_exact_at(0, &mut bytes)?;
                if self.dir.stat_of(to)?.is_some() {
                    self.dir.remove_file(to)?;
                }
                self.dir.create(to, false)?.write_all_at(0, &bytes)?;
                self.dir.remove_file(from)
            }
            _ => self.dir.replace(from, to),
        }
    }

    fn symlink(&self, target: &OsStr, name: &OsStr) -> io::Result<()> {
        self.dir.symlink(target, name)
    }

    fn read_link(&self, name: &OsStr) -> io::Result<OsString> {
        self.dir.read_link(name)
    }

    fn remove_file(&self, name: &OsStr) -> io::Result<()> {
        self.dir.remove_file(name)
    }

    fn remove_dir(&self, name: &OsStr) -> io::Result<()> {
        self.dir.remove_dir(name)?;
        let holds = matches!(self.mutant.wrong, Wrong::IndexAfterRemoval | Wrong::LinksAfterRemoval);
        let held = if holds { self.mutant.state().held.take() } else { None };
        if let Some((from, to)) = held {
            self.dir.replace(&from, &to)?;
            self.dir.sync()?;
        }
        Ok(())
    }

    fn free_space(&self) -> io::Result<Option<u64>> {
        self.dir.free_space()
    }

    fn is_local(&self) -> bool {
        self.dir.is_local()
    }

    fn lock(&self, name: &OsStr, holder: &str) -> io::Result<Option<Box<dyn LockFile>>> {
        self.dir.lock(name, holder)
    }
}

/// A file whose sync does nothing.
struct Unsynced(Box<dyn WriteFile>);

impl WriteFile for Unsynced {
    fn write_all_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(offset, bytes)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.0.set_len(length)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn stat(&self) -> io::Result<Stat> {
        self.0.stat()
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
