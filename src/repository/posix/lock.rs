//! The writer's lock of a directory.

use super::{Dir, LockFile};
use crate::error::{Error, Result};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// The lock file; it is never removed, since removing it would race with another taking it.
pub(super) const LOCK: &str = ".lock";

/// A lock file that this process holds. There is none if locking is turned off.
pub(super) struct Held {
    process: u32,
    file: Mutex<Option<Box<dyn LockFile>>>,
}

impl Held {
    pub(super) fn new(file: Option<Box<dyn LockFile>>) -> Held {
        Held { process: std::process::id(), file: Mutex::new(file) }
    }

    /// Checks that the lock file in the directory is the one that is held. One that was removed or replaced is locked
    /// again.
    pub(super) fn check(&self, dir: &dyn Dir, root: &Path) -> Result<()> {
        let path = root.join(LOCK);
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(held) = &*file else { return Ok(()) };
        let now = dir.stat_of(LOCK.as_ref()).map_err(|e| Error::io("look for", &path, e))?;
        if now.is_some_and(|now| now.id == held.id()) {
            return Ok(());
        }
        log::warn!("{} was removed or replaced; it is taken anew", path.display());
        let again = dir.lock(LOCK.as_ref(), &holder()).map_err(|e| Error::io("lock", &path, e))?;
        let taken = "the lock file was removed, and another writer took the one that is there now".to_string();
        let again = again.ok_or_else(|| Error::locked(root, taken))?;
        held.release();
        *file = Some(again);
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // A forked child shares the lock with its parent, which needs it.
        if self.process != std::process::id() {
            return;
        }
        if let Some(file) = self.file.get_mut().unwrap_or_else(PoisonError::into_inner) {
            file.release();
        }
    }
}

/// Returns the content of the lock file.
pub(super) fn holder() -> String {
    format!("process {}, since {}", std::process::id(), chrono::Utc::now().format("%Y-%m-%d %H:%M:%S UTC"))
}
