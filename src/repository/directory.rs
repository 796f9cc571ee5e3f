//! Queries of a directory of checkpoints in any storage.

use super::names::{INDEX, MANIFEST, STAGING};
use super::reading::{checkpoint_failed, marks_in, read_manifest, read_whole};
use super::{Kind, Lock, OpenDir, OpenOptions, Repository, Stat, Storage};
use crate::error::{Error, Result};
use crate::format::{Index, IndexEntry, MAX_INDEX_BYTES, Manifest, is_mark_file};
use crate::location::Location;
use crate::rules::Rules;
use std::ffi::OsString;
use std::io;
use std::ops::Deref;
use std::sync::Arc;

/// A directory of checkpoints. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Directory {
    repository: Arc<dyn Repository>,
    rules: Rules,
}

impl Deref for Directory {
    type Target = dyn Repository;

    fn deref(&self) -> &Self::Target {
        &*self.repository
    }
}

impl Directory {
    /// Returns the directory at `root`.
    ///
    /// # Errors
    /// If the storage does not serve it.
    pub fn new(storage: &dyn Storage, root: impl Into<Location>, options: &OpenOptions) -> Result<Directory> {
        Ok(Directory { repository: storage.repository(&root.into(), options)?, rules: Rules::default() })
    }

    pub(crate) fn with_rules(self, rules: Rules) -> Directory {
        Directory { rules, ..self }
    }

    pub(crate) fn rules(&self) -> Rules {
        self.rules
    }

    pub(crate) fn path(&self, name: &str) -> Location {
        self.root().join(name)
    }

    /// Returns `true` if both are the same directory, whatever paths they were opened by.
    pub(crate) fn is_same(&self, other: &Directory) -> bool {
        self.id().is_some_and(|id| other.id() == Some(id))
    }

    /// Opens the checkpoint `name`. A missing directory is a separate error.
    fn open_in(&self, name: &str) -> Result<io::Result<Arc<dyn OpenDir>>> {
        self.dir().map(|_| self.open(name))
    }

    /// Returns the entries of the subdirectory `name`.
    pub(crate) fn names_in(&self, name: &str) -> Result<Vec<OsString>> {
        let entries = self.open_in(name)?.and_then(|dir| dir.list());
        let entries = entries.map_err(|e| Error::io("list the checkpoint", self.path(name), e))?;
        Ok(entries.into_iter().map(|entry| entry.name).collect())
    }

    /// Returns `true` if an entry has this name.
    pub(crate) fn has(&self, name: &str) -> Result<bool> {
        let stat = self.dir()?.stat_of(name.as_ref()).map_err(|e| Error::io("look for", self.path(name), e))?;
        Ok(stat.is_some())
    }

    /// Checks that no entry has the name `name`.
    pub(crate) fn must_be_free(&self, name: &str) -> Result<()> {
        if self.has(name)? { Err(Error::already_exists(self.path(name))) } else { Ok(()) }
    }

    /// Returns `true` if `name` is a directory, as far as the system reports.
    pub(crate) fn may_hold(&self, name: &str) -> bool {
        let stat = self.dir().map(|root| root.stat_of(name.as_ref()));
        !matches!(stat, Ok(Ok(None))) && !matches!(stat, Ok(Ok(Some(stat))) if stat.kind != Kind::Directory)
    }

    /// Returns the metadata of what has this name, if the system reports it.
    pub(crate) fn stat_of(&self, name: &str) -> Option<Stat> {
        self.dir().ok()?.stat_of(name.as_ref()).ok()?
    }

    /// Returns `true` if this checkpoint has its manifest, and files of at least as many bytes as were written. Marks do
    /// not count. Cheap: no file is read.
    pub(crate) fn looks_whole(&self, entry: &IndexEntry) -> bool {
        let Ok(dir) = self.open(&entry.name) else { return false };
        let Ok(entries) = dir.list() else { return false };
        let files = entries.iter().filter(|entry| entry.kind == Kind::File);
        let length = |name: &OsString| dir.stat_of(name).ok().flatten().map_or(0, |stat| stat.length);
        let (manifest, others): (Vec<_>, Vec<_>) = files.map(|entry| &entry.name).partition(|name| *name == MANIFEST);
        let is_later = |name: &str| is_mark_file(name) || name.starts_with(STAGING);
        let saved = others.into_iter().filter(|name| !name.to_str().is_some_and(is_later));
        manifest.into_iter().any(|name| length(name) > 0) && saved.map(length).sum::<u64>() >= entry.bytes
    }

    /// Reads the manifest of the checkpoint `name`, without checking its other files.
    pub(crate) fn manifest(&self, name: &str) -> Result<Manifest> {
        let path = self.path(name);
        let dir = self.open_in(name)?.map_err(|e| checkpoint_failed(&path, e))?;
        read_manifest(&*dir, &path)
    }

    /// Returns the metadata of the manifest file of the checkpoint `name`, if the system reports it.
    pub(crate) fn stat_of_manifest(&self, name: &str) -> Option<Stat> {
        self.open(name).ok()?.stat_of(MANIFEST.as_ref()).ok()?
    }

    /// Returns the index, if there is a valid one.
    #[must_use]
    pub fn index(&self) -> Option<Index> {
        let bytes = read_whole(&*self.dir().ok()?, INDEX, &self.path(INDEX), MAX_INDEX_BYTES as u64).ok()?;
        Index::from_bytes(&bytes).ok()
    }

    /// Replaces the index, atomically and durably. Requires the lock, because the index is read, changed and written.
    pub(crate) fn write_index(&self, _lock: &Lock, index: &Index) -> Result<()> {
        self.put_small(INDEX, &index.to_bytes()?)
    }

    /// Removes the index, which is incomplete, if possible.
    pub(crate) fn forget_index(&self, _lock: &Lock) {
        self.remove_small(INDEX);
    }

    /// Returns the mark files of a checkpoint with their bytes, by name.
    pub(crate) fn marks(&self, checkpoint: &str) -> Result<Vec<(String, Vec<u8>)>> {
        let path = self.path(checkpoint);
        let dir = self.open_in(checkpoint)?.map_err(|e| Error::io("open the checkpoint", &path, e))?;
        marks_in(&*dir, &path)
    }
}
