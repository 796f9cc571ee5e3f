//! Files of removed checkpoints, waiting to be overwritten by the next one.
//!
//! Blocks and cached pages that exist already are written about twice as fast as new ones. A spare lies in a trash
//! folder: its name left the namespace, durably, before it became one, and a process that dies leaves it to the sweep.
//! Whether anyone still sees the old content is asked when it is taken ([`Disk::recycle`]).

use super::{Disk, NewFile};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Smaller files are not worth it, but the crash tests have no others.
const MIN_BYTES: u64 = if cfg!(any(test, feature = "torture")) { 1 } else { 64 << 10 };

#[derive(Debug, Default)]
pub(super) struct Spares(Mutex<Vec<Spare>>);

#[derive(Debug)]
struct Spare {
    path: PathBuf,
    bytes: u64,
}

impl Spares {
    fn lock(&self) -> MutexGuard<'_, Vec<Spare>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes that the spares occupy.
    pub(super) fn bytes(&self) -> u64 {
        self.lock().iter().map(|spare| spare.bytes).sum()
    }

    /// Takes the files of a trash folder in the place of those there were; all others are removed.
    pub(super) fn refill(&self, disk: &dyn Disk, trash: &Path) -> std::io::Result<()> {
        self.clear(disk);
        for entry in disk.list(trash)?.into_iter().filter(|entry| !entry.is_dir) {
            let path = trash.join(&entry.name);
            match disk.open(&path).and_then(|file| file.len()) {
                Ok(bytes) if bytes >= MIN_BYTES => self.lock().push(Spare { path, bytes }),
                _ => disk.remove_file(&path)?,
            }
        }
        if self.lock().is_empty() { disk.remove_dir(trash) } else { Ok(()) }
    }

    /// A spare of about `bytes` bytes, renamed to `to` and open for overwriting, if there is one that nobody sees.
    pub(super) fn take(&self, disk: &dyn Disk, to: &Path, bytes: u64) -> Option<Box<dyn NewFile>> {
        while let Some(spare) = self.nearest(bytes) {
            let file = disk.recycle(&spare.path, to).ok().flatten();
            if file.is_none() {
                let _ = disk.remove_file(&spare.path);
            }
            remove_if_empty(disk, &spare.path);
            if file.is_some() {
                return file;
            }
        }
        None
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
    pub(super) fn clear(&self, disk: &dyn Disk) {
        for spare in self.lock().drain(..) {
            let _ = disk.remove_file(&spare.path);
            remove_if_empty(disk, &spare.path);
        }
    }
}

/// The trash folder goes with its last file. What cannot be removed now is swept when the folder is next opened.
fn remove_if_empty(disk: &dyn Disk, spare: &Path) {
    if let Some(trash) = spare.parent() {
        let _ = disk.remove_dir(trash);
    }
}
