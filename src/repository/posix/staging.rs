//! A checkpoint being written: a staging directory that readers ignore, which the commit renames.

use super::directory::PosixDirectory;
use super::removal::remove_all;
use super::{Dir, WriteFile};
use crate::error::{Error, Result};
use crate::location::Location;
use crate::parallel;
use crate::repository::names::{Aside, MANIFEST, STAGING, nonce};
use crate::repository::{DIRECT, Durability, Finished, Kind, Repository, StagedFile, Transaction};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The number of small files that are synced at a time, if there is more than one thread.
const SYNCS: usize = 8;
/// The maximum number of small files that are open and wait to be synced.
const UNSYNCED: usize = 64;
/// How often, and at which interval, to try again on a file system that frees removed files later.
const ASKED_AGAIN: (u32, Duration) = (10, Duration::from_millis(40));

/// A checkpoint being written. Dropped before [`Transaction::commit`] has succeeded, it removes what it wrote.
pub(super) struct Staging<'a> {
    directory: &'a PosixDirectory,
    root: Arc<dyn Dir>,
    dir: Arc<dyn Dir>,
    /// The name of the staging directory.
    staged: String,
    /// The part of that name that makes it unique.
    nonce: String,
    /// The name of the checkpoint.
    name: String,
    /// The former and the new names of the checkpoints that it supersedes.
    superseded: Mutex<Vec<(String, String)>>,
    /// The number of bytes that will be written.
    needed: AtomicU64,
    /// Files that are written and wait to be synced together.
    unsynced: Mutex<Vec<(Location, Box<dyn WriteFile>)>>,
    /// The files of the checkpoint that are finished, with their lengths.
    files: Mutex<Vec<(String, u64)>>,
    done: bool,
}

impl std::fmt::Debug for Staging<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Staging").field("staged", &self.staged).field("name", &self.name).finish_non_exhaustive()
    }
}

impl PosixDirectory {
    /// Begins a new checkpoint, for which about `needed` bytes will be written.
    pub(super) fn stage(&self, name: &str, needed: u64) -> Result<Staging<'_>> {
        self.check_process()?;
        self.check_name(name)?;
        let root = self.open_root()?.clone();
        let nonce = nonce();
        let staged = format!("{STAGING}{name}-{nonce}");
        let path = self.path(&staged);
        root.create_dir(staged.as_ref()).map_err(|e| Error::io("create the directory", &path, e))?;
        let dir = match root.open_dir(staged.as_ref()) {
            Ok(dir) => dir,
            Err(e) => {
                let _ = root.remove_dir(staged.as_ref());
                return Err(Error::io("open the directory", &path, e));
            }
        };
        let (needed, name) = (AtomicU64::new(needed), name.to_string());
        let (superseded, unsynced, files) = (Mutex::default(), Mutex::default(), Mutex::default());
        Ok(Staging {
            directory: self,
            root,
            dir,
            staged,
            nonce,
            name,
            superseded,
            needed,
            unsynced,
            files,
            done: false,
        })
    }
}

impl Staging<'_> {
    fn path(&self, name: &str) -> Location {
        self.directory.path(&self.staged).join(name)
    }

    /// Records that a file of the checkpoint is finished.
    fn note(&self, name: &str, bytes: u64) {
        self.files.lock().unwrap_or_else(PoisonError::into_inner).push((name.to_string(), bytes));
    }

    fn free(&self) -> Option<u64> {
        self.root.free_space().ok().flatten()
    }

    /// Creates a file of the checkpoint. The manifest is always a new file: if a device loses acknowledged writes,
    /// there must be no manifest, rather than that of an older checkpoint.
    fn create_new(&self, name: &str, direct: bool) -> Result<PosixFile<'_>> {
        let path = self.path(name);
        let file = self.dir.create(name.as_ref(), direct);
        let file = file.map_err(|e| self.no_space(Error::io("create", &path, e)))?;
        Ok(PosixFile { staging: self, file, name: name.to_string(), direct })
    }

    /// Syncs the files that wait for it, several at a time, so that the waits for the device overlap.
    fn sync_files(&self, files: Vec<(Location, Box<dyn WriteFile>)>, threads: usize) -> Result<()> {
        let threads = if threads > 1 { SYNCS } else { 1 };
        parallel::for_each(&files, threads, || (), |(path, file), ()| self.sync(path, &**file))
    }

    fn sync(&self, path: &std::path::Path, file: &dyn WriteFile) -> Result<()> {
        self.directory.sync_file(file, path).map_err(|e| self.no_space(e))
    }

    fn take_unsynced(&self, at_least: usize) -> Vec<(Location, Box<dyn WriteFile>)> {
        let mut unsynced = self.unsynced.lock().unwrap_or_else(PoisonError::into_inner);
        if unsynced.len() < at_least { Vec::new() } else { std::mem::take(&mut *unsynced) }
    }

    /// Adds to the error of a full disk how much the complete checkpoint needs. The spares are removed, so that the
    /// next attempt has their space: quotas, and limits of the number of files, are not known to
    /// [`make_room`](Transaction::make_room).
    fn no_space(&self, error: Error) -> Error {
        match error {
            Error::NoSpace { path, .. } => {
                let free = self.free();
                self.directory.clear_spares();
                Error::NoSpace { path, needed: self.needed.load(Ordering::Relaxed), free }
            }
            error => error,
        }
    }

    /// Checks that the staging directory still holds what was written: nobody removed a file, or replaced the
    /// directory.
    fn look(&self) -> Result<()> {
        for (name, bytes) in self.files.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let path = self.path(name);
            let stat = self.dir.stat_of(name.as_ref()).map_err(|e| Error::io("look for", &path, e))?;
            if stat.is_none_or(|stat| stat.kind != Kind::File || stat.length != *bytes) {
                let reason = "another program removed or changed the file while the checkpoint was being written";
                return Err(Error::moved(path, reason));
            }
        }
        self.is_there(&self.staged)
    }

    fn superseded(&self) -> MutexGuard<'_, Vec<(String, String)>> {
        self.superseded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves these checkpoints out of the numbering, durably. Their new names have the nonce of the staging directory: as
    /// long as that is there, they are to get their names back.
    fn supersede(&self, names: &[String]) -> Result<()> {
        if names.is_empty() {
            return Ok(());
        }
        let sync = || self.directory.sync(&*self.root, self.directory.root());
        // A power cut must not leave the new names without that of the staging directory.
        sync()?;
        for name in names {
            let aside = Aside::Superseded.name_with(name, &self.nonce);
            match self.directory.rename_aside(name, &aside) {
                Ok(()) => self.superseded().push((name.clone(), aside)),
                // Its user removed it.
                Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        sync()
    }

    /// Gives the superseded checkpoints their names back. Returns whether all have them.
    fn give_back(&self) -> bool {
        let mut superseded = self.superseded();
        superseded.retain(|(name, aside)| match self.directory.move_back(aside, name) {
            Ok(()) => false,
            Err(e) => {
                log::warn!("{aside} could not be given back its name: {e:#}");
                true
            }
        });
        superseded.is_empty()
    }

    /// Renames the checkpoint back to the staging directory. What another program has put in its place stays there.
    fn rename_back(&self) -> Result<()> {
        self.is_there(&self.name)?;
        let (name, staged) = (self.name.as_ref(), self.staged.as_ref());
        if let Err(e) = self.root.rename_new(name, staged) {
            self.is_there(&self.name)?;
            return Err(Error::io("rename", self.directory.path(&self.name), e));
        }
        // It may have been exchanged just before the rename.
        self.is_there(&self.staged).inspect_err(|_| {
            if let Err(e) = self.root.rename_new(staged, name) {
                log::warn!("{} could not be given back its name {}: {e}", self.staged, self.name);
            }
        })
    }

    /// Checks that this name leads to the directory that was written.
    fn is_there(&self, name: &str) -> Result<()> {
        let path = self.directory.path(name);
        let failed = |e| Error::io("look for", &path, e);
        let (own, named) = (self.dir.stat().map_err(failed)?, self.root.stat_of(name.as_ref()).map_err(failed)?);
        match named {
            Some(named) if named.id == own.id => Ok(()),
            _ => {
                Err(Error::moved(&path, "another program renamed or removed the checkpoint while it was being written"))
            }
        }
    }
}

impl Transaction for Staging<'_> {
    fn make_room(&self, lengths: &[u64]) {
        let needed = lengths.iter().fold(0, |sum: u64, length| sum.saturating_add(*length));
        self.needed.store(needed, Ordering::Relaxed);
        let spares = self.directory.spares.as_ref();
        let covered = spares.map_or(0, |spares| spares.covers(lengths.iter().copied()));
        let is_enough = |needed: u64| self.free().is_none_or(|free| free >= needed);
        if is_enough(needed.saturating_sub(covered)) {
            return;
        }
        self.directory.clear_spares();
        if self.directory.take_freed() {
            for _ in 0..ASKED_AGAIN.0 {
                if is_enough(needed) {
                    return;
                }
                std::thread::sleep(ASKED_AGAIN.1);
            }
        }
    }

    fn create(&self, name: &str, bytes: u64) -> Result<Box<dyn StagedFile + '_>> {
        let direct = self.directory.durability() == Durability::PowerLoss && bytes >= DIRECT;
        let spares = self.directory.spares.as_ref();
        let recycled = spares.and_then(|spares| spares.take(&*self.root, &*self.dir, name.as_ref(), bytes, direct));
        Ok(Box::new(match recycled {
            Some(file) => PosixFile { staging: self, file, name: name.to_string(), direct },
            None => self.create_new(name, direct)?,
        }))
    }

    fn reuse(&self, name: &str, earlier: &str, finished: &Finished) -> Result<()> {
        let path = self.path(name);
        let failed = |e| Error::io("link", &path, e);
        let earlier = self.root.open_dir(earlier.as_ref()).map_err(failed)?;
        earlier.link(name.as_ref(), &*self.dir, name.as_ref()).map_err(failed)?;
        // The new name, which only this process knows, is examined: nothing else can exchange what it leads to.
        match self.dir.stat_of(name.as_ref()).map_err(failed)? {
            Some(stat) if stat.kind == Kind::File && Finished::from(stat) == *finished => {
                self.note(name, stat.length);
                Ok(())
            }
            _ => {
                self.dir.remove_file(name.as_ref()).map_err(|e| Error::io("remove", &path, e))?;
                Err(Error::damaged(&path, "the file it would share has been changed since it was written"))
            }
        }
    }

    fn commit(
        mut self: Box<Self>,
        manifest: &[u8],
        threads: usize,
        supersedes: &[String],
    ) -> Result<Vec<(String, String)>> {
        let directory = self.directory;
        let file = self.create_new(MANIFEST, false)?;
        file.write_all_at(0, manifest)?;
        file.end(manifest.len() as u64)?;
        self.sync_files(self.take_unsynced(0), threads)?;
        directory.sync(&*self.dir, &directory.path(&self.staged))?;
        self.look()?;
        directory.check()?;
        self.supersede(supersedes)?;
        let path = directory.path(&self.name);
        match self.root.rename_new(self.staged.as_ref(), self.name.as_ref()) {
            Ok(()) => {
                let synced = directory.sync(&*self.root, directory.root());
                if let Err(e) = synced.and_then(|()| directory.check()).and_then(|()| self.is_there(&self.name)) {
                    // The rename is not durable, or did not happen, so the commit failed: undo the rename before
                    // reporting that. The files may be removed only once that is durable; otherwise a power cut could
                    // bring back the name without them.
                    let back = self.rename_back();
                    self.done = back.is_err() || directory.sync(&*self.root, directory.root()).is_err();
                    // Where another program took the checkpoint away, its name may be free.
                    if matches!(back, Ok(()) | Err(Error::Moved { .. })) {
                        self.give_back();
                    }
                    return Err(e);
                }
                self.done = true;
            }
            Err(e) if already_there(&e) => return Err(Error::already_exists(path)),
            Err(e) => return Err(Error::io("rename to", &path, e)),
        }
        Ok(std::mem::take(&mut *self.superseded()))
    }
}

impl Drop for Staging<'_> {
    fn drop(&mut self) {
        // In a forked child, the parent is the writer.
        if self.done || self.directory.check_process().is_err() {
            return;
        }
        // Until they have their names, the staging directory says that they are to get them.
        if !self.give_back() {
            return;
        }
        if let Err(e) = remove_all(&*self.root, self.staged.as_ref(), 0) {
            let path = self.directory.path(&self.staged);
            log::warn!("could not remove {}: {e:#}; it is removed when the directory is next opened", path.display());
        }
    }
}

/// Returns `true` for the errors of renaming a directory onto an existing one. File systems report one of two.
fn already_there(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty)
}

/// A file of a checkpoint being written.
struct PosixFile<'a> {
    staging: &'a Staging<'a>,
    file: Box<dyn WriteFile>,
    name: String,
    /// Whether it is written past the page cache. Without a sync, the page cache is faster than the device; with one,
    /// the bytes must reach the device anyway.
    direct: bool,
}

impl PosixFile<'_> {
    /// Finishes the file and closes it. A long file is synced before this returns, if durability requires it. Short
    /// files are synced together, when there are many or when the checkpoint is [committed](Transaction::commit).
    fn end(self, bytes: u64) -> Result<Finished> {
        let (staging, path) = (self.staging, self.staging.path(&self.name));
        let cut = self.file.set_len(bytes);
        cut.map_err(|e| staging.no_space(Error::io("set the length of", &path, e)))?;
        let finished = self.file.stat().map_err(|e| Error::io("examine", &path, e))?.into();
        if bytes >= DIRECT || !staging.directory.syncs_files() {
            staging.sync(&path, &*self.file)?;
            return Ok(finished);
        }
        staging.unsynced.lock().unwrap_or_else(PoisonError::into_inner).push((path, self.file));
        staging.sync_files(staging.take_unsynced(UNSYNCED), SYNCS)?;
        Ok(finished)
    }
}

impl StagedFile for PosixFile<'_> {
    fn write_all_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let written = self.file.write_all_at(offset, bytes);
        written.map_err(|e| self.staging.no_space(Error::io("write", self.staging.path(&self.name), e)))
    }

    fn is_direct(&self) -> bool {
        self.direct
    }

    fn finish(self: Box<Self>, bytes: u64) -> Result<Finished> {
        self.staging.note(&self.name, bytes);
        self.end(bytes)
    }
}
