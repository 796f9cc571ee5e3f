//! Small files that are added to a checkpoint after its commit, each atomically.

use super::Dir;
use super::directory::PosixDirectory;
use crate::error::{Error, Result};
use crate::format::Follows;
use crate::repository::names::nonce;
use crate::repository::reading::{checkpoint_failed, read_manifest};
use crate::repository::{Kind, Repository};
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// A mark being written.
pub(crate) const STAGED_MARK: &str = ".tmp-mark-";

impl PosixDirectory {
    /// Adds a mark to the checkpoint `of`, which is called `checkpoint`, or replaces it, durably and atomically. Needs
    /// no lock: a removal reads the marks again after renaming the checkpoint.
    pub(super) fn write_mark(&self, checkpoint: &str, of: &Follows, name: &str, bytes: &[u8]) -> Result<()> {
        self.check_process()?;
        let path = self.path(checkpoint);
        let dir = self.checkpoint_of(checkpoint, of)?;
        let mut tries = TRIES;
        loop {
            let staged = format!("{STAGED_MARK}{}", nonce());
            let written = self.write_small(&*dir, &staged, &path.join(&staged), bytes);
            let written = written.map(|()| dir.replace(staged.as_ref(), name.as_ref()));
            match written {
                Ok(Ok(())) => break,
                // The directory is gone, or a cleanup took the staged file for that of a dead writer.
                Ok(Err(e)) if e.kind() == io::ErrorKind::NotFound && tries > 0 => tries -= 1,
                Ok(Err(e)) => {
                    let _ = dir.remove_file(staged.as_ref());
                    return Err(Error::io("rename", path.join(name), e));
                }
                Err(e) => {
                    let _ = dir.remove_file(staged.as_ref());
                    let is_gone = matches!(&e, Error::Io { source, .. } if source.kind() == io::ErrorKind::NotFound);
                    return Err(if is_gone { Error::removed(path) } else { e });
                }
            }
        }
        self.sync(&*dir, &path)?;
        self.must_still_be(&*dir, checkpoint)
    }

    /// Removes a mark from the checkpoint `of`, whose name is `checkpoint`, durably. Returns whether there was one.
    pub(super) fn take_mark(&self, checkpoint: &str, of: &Follows, name: &str) -> Result<bool> {
        self.check_process()?;
        let path = self.path(checkpoint);
        let dir = self.checkpoint_of(checkpoint, of)?;
        let was_there = match dir.remove_file(name.as_ref()) {
            // It may have been removed by a call whose sync failed.
            Err(e) if e.kind() == io::ErrorKind::NotFound => false,
            result => result.map(|()| true).map_err(|e| Error::io("remove", path.join(name), e))?,
        };
        self.sync(&*dir, &path)?;
        self.must_still_be(&*dir, checkpoint).map(|()| was_there)
    }

    /// Makes the marks of the checkpoint `of`, which is called `checkpoint`, durable, whoever wrote them.
    pub(super) fn settle_marks(&self, checkpoint: &str, of: &Follows) -> Result<()> {
        let dir = self.checkpoint_of(checkpoint, of)?;
        self.sync(&*dir, &self.path(checkpoint))
    }

    /// Removes these files of the checkpoint `of`, which is called `checkpoint`. The directory is synced before the
    /// first of them: the mark by which they are removed may be that of a call whose sync failed, or of a process that
    /// ended before it.
    pub(super) fn take_files(&self, checkpoint: &str, of: &Follows, files: &[String]) -> Result<()> {
        self.check()?;
        let path = self.path(checkpoint);
        let dir = self.checkpoint_of(checkpoint, of)?;
        if !files.is_empty() {
            self.sync(&*dir, &path)?;
        }
        for file in files {
            match dir.remove_file(file.as_ref()) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                result => result.map_err(|e| Error::io("remove", path.join(file), e))?,
            }
        }
        self.freed();
        Ok(())
    }

    /// Removes the staged files of writers of marks that died. Only the writer of the directory calls it.
    pub(super) fn sweep_staged_marks(&self, checkpoint: &str) {
        let Ok(Ok(dir)) = self.open_root().map(|root| root.open_dir(checkpoint.as_ref())) else { return };
        for left in dir.list().unwrap_or_default() {
            if left.name.to_str().is_some_and(|name| name.starts_with(STAGED_MARK)) && left.kind != Kind::Directory {
                let _ = dir.remove_file(&left.name);
            }
        }
    }

    /// Returns the directory of the checkpoint `of`.
    fn checkpoint_of(&self, checkpoint: &str, of: &Follows) -> Result<Arc<dyn Dir>> {
        let path = self.path(checkpoint);
        let dir = self.open_root()?.open_dir(checkpoint.as_ref()).map_err(|e| checkpoint_failed(&path, e))?;
        let manifest = match read_manifest(&*dir, &path) {
            Err(Error::NotFound { .. }) => return Err(Error::removed(path)),
            result => result?,
        };
        if manifest.run == of.run && manifest.sequence == of.sequence { Ok(dir) } else { Err(Error::removed(path)) }
    }

    /// Checks that the name still leads to the directory. Tries several times: a removal that finds the mark restores
    /// the name.
    fn must_still_be(&self, dir: &dyn Dir, checkpoint: &str) -> Result<()> {
        let own = dir.stat().map_err(|e| Error::io("examine", self.path(checkpoint), e))?.id;
        for _ in 0..LOOKS.0 {
            let named = self.open_root()?.stat_of(checkpoint.as_ref());
            let named = named.map_err(|e| Error::io("look for", self.path(checkpoint), e))?;
            if named.is_some_and(|named| named.id == own) {
                return Ok(());
            }
            std::thread::sleep(LOOKS.1);
        }
        Err(Error::removed(self.path(checkpoint)))
    }
}

/// How often a mark is written again if a cleanup has removed its staged file.
const TRIES: usize = 20;

/// How often, and at which interval, the name is checked.
const LOOKS: (usize, Duration) = (25, Duration::from_millis(4));
