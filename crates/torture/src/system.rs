//! The file system of the operating system, on which files of any length are recycled, and a clock that can be wrong.

use chrono::{DateTime, TimeDelta, Utc};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tch_checkpoint::internal::{Dir, Disk, LocalDisk};

/// Clones share the clock.
#[derive(Debug, Clone, Default)]
pub(super) struct System {
    shift: Arc<Mutex<TimeDelta>>,
    /// The time of a clock that does not advance by itself.
    stands_at: Option<DateTime<Utc>>,
}

impl System {
    /// Returns a system whose clock advances only by [`shift`](System::shift).
    pub(super) fn standing_at(time: DateTime<Utc>) -> System {
        System { stands_at: Some(time), ..System::default() }
    }

    /// Moves the clock forward, or back.
    pub(super) fn shift(&self, by: TimeDelta) {
        let mut shift = self.shift.lock().unwrap_or_else(PoisonError::into_inner);
        *shift = shift.checked_add(&by).unwrap_or(*shift);
    }
}

impl Disk for System {
    fn absolute(&self, path: &Path) -> io::Result<PathBuf> {
        LocalDisk.absolute(path)
    }

    fn open_dir(&self, path: &Path) -> io::Result<Arc<dyn Dir>> {
        LocalDisk.open_dir(path)
    }

    fn now(&self) -> DateTime<Utc> {
        let now = self.stands_at.unwrap_or_else(Utc::now);
        now.checked_add_signed(*self.shift.lock().unwrap_or_else(PoisonError::into_inner)).unwrap_or(now)
    }

    fn least_recycled(&self) -> u64 {
        1
    }
}
