//! Files of removed checkpoints, kept so that the next checkpoint overwrites them.
//!
//! Existing blocks and cached pages are written about twice as fast as new ones. A spare lies in a trash directory. The
//! checkpoint was renamed to it durably before, and if the process dies, the next one that opens the directory removes
//! it. [`Dir::recycle`] checks that no process has the file open before it is overwritten.

use super::{Dir, WriteFile};
use crate::repository::names::MANIFEST;
use crate::repository::{Entry, Kind};
use std::ffi::{OsStr, OsString};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[derive(Debug)]
pub(super) struct Spares {
    files: Mutex<Vec<Spare>>,
    /// Smaller ones are removed.
    least: u64,
}

#[derive(Debug, Clone)]
struct Spare {
    trash: Arc<Trash>,
    name: OsString,
    bytes: u64,
}

/// A trash directory, and its name in the directory of checkpoints.
#[derive(Debug)]
struct Trash {
    dir: Arc<dyn Dir>,
    name: OsString,
}

impl Spares {
    /// Creates an empty collection, which never takes files of fewer than `least` bytes.
    pub(super) fn new(least: u64) -> Spares {
        Spares { files: Mutex::default(), least }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Spare>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns `true` if there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Replaces the spares by the files of the trash directory `name` of `root`. After an error there are no spares,
    /// and the caller removes the trash.
    pub(super) fn refill(&self, root: &dyn Dir, dir: Arc<dyn Dir>, name: &OsStr) -> std::io::Result<()> {
        self.clear(root);
        let entries = dir.list()?;
        let trash = Arc::new(Trash { dir, name: name.to_os_string() });
        let mut spares = Vec::new();
        for Entry { name, kind } in entries {
            let bytes = match trash.dir.stat_of(&name)? {
                Some(stat) if kind == Kind::File => stat.length,
                _ => 0,
            };
            match kind {
                Kind::Directory => return Err(std::io::ErrorKind::IsADirectory.into()),
                // A manifest is never written over another file.
                Kind::File if bytes >= self.least && name != MANIFEST => {
                    spares.push(Spare { trash: trash.clone(), name, bytes });
                }
                _ => trash.dir.remove_file(&name)?,
            }
        }
        if spares.is_empty() {
            return root.remove_dir(name);
        }
        *self.lock() = spares;
        Ok(())
    }

    /// Renames a spare of about `bytes` bytes to `new` in `to` and opens it for overwriting. `None` if there is none
    /// that nobody else has open.
    pub(super) fn take(
        &self,
        root: &dyn Dir,
        to: &dyn Dir,
        new: &OsStr,
        bytes: u64,
        direct: bool,
    ) -> Option<Box<dyn WriteFile>> {
        while let Some(spare) = self.nearest(bytes) {
            let file = spare.trash.dir.recycle(&spare.name, to, new, direct);
            if file.is_err() {
                let _ = spare.trash.dir.remove_file(&spare.name);
            }
            remove_if_empty(root, &spare.trash);
            if let Ok(Some(file)) = file {
                return Some(file);
            }
        }
        None
    }

    /// Returns how many of the files of these lengths will overwrite spares, and take no new space.
    pub(super) fn covers(&self, lengths: impl Iterator<Item = u64>) -> u64 {
        let left = Spares { files: Mutex::new(self.lock().clone()), least: self.least };
        lengths.filter_map(|length| left.nearest(length).map(|spare| spare.bytes.min(length))).sum()
    }

    /// Takes out the spare whose length is nearest to `bytes`, if one is near enough.
    fn nearest(&self, bytes: u64) -> Option<Spare> {
        let mut spares = self.lock();
        let fits = |spare: &Spare| spare.bytes / 2 <= bytes && bytes / 2 <= spare.bytes;
        let fitting = (0..spares.len()).filter(|&i| fits(&spares[i]));
        let nearest = fitting.min_by_key(|&i| spares[i].bytes.abs_diff(bytes))?;
        Some(spares.swap_remove(nearest))
    }

    /// Removes all spares.
    pub(super) fn clear(&self, root: &dyn Dir) {
        let spares = std::mem::take(&mut *self.lock());
        for spare in spares {
            let _ = spare.trash.dir.remove_file(&spare.name);
            remove_if_empty(root, &spare.trash);
        }
    }
}

/// Removes the trash directory with its last file. What cannot be removed is removed when the directory is next opened.
fn remove_if_empty(root: &dyn Dir, trash: &Trash) {
    let _ = root.remove_dir(&trash.name);
}
