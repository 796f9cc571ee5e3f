//! Caches checkpoints as they were last examined, for callers that examine a directory repeatedly.

use super::{Found, look};
use crate::error::Result;
use crate::repository::{Directory, Stat};
use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, SystemTime};

/// A directory that was modified more recently than this may change again without getting another modification time,
/// because the file system's clock is coarse.
const SETTLED: Duration = Duration::from_secs(3);

/// Returns `true` if any later change gives the entry with this `stat` another modification time. Always `false` for a
/// storage that reports no times.
pub(crate) fn is_settled(stat: &Stat) -> bool {
    let seconds = u64::try_from(stat.modified.0).ok().filter(|seconds| *seconds > 0);
    let age = seconds.and_then(|seconds| {
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).ok()
    });
    age.is_some_and(|age| age > SETTLED)
}

/// The checkpoints by name, with the `stat` of their directories before they were read: adding, replacing or removing
/// an entry of a directory changes its modification time.
#[derive(Debug, Default)]
pub(crate) struct Looks(HashMap<String, (Stat, Found)>);

impl Looks {
    /// Examines the checkpoint `name`, unless its directory is unchanged.
    pub(super) fn look(&mut self, directory: &Directory, name: &str) -> Result<Found> {
        let stat = directory.stat_of(name).filter(is_settled);
        if let Some((seen, found)) = self.0.get(name)
            && stat.as_ref() == Some(seen)
        {
            return Ok(found.clone());
        }
        let found = look(directory, name);
        match (&found, stat) {
            (Ok(found), Some(stat)) => drop(self.0.insert(name.to_string(), (stat, found.clone()))),
            _ => drop(self.0.remove(name)),
        }
        found
    }

    /// Forgets all checkpoints but these.
    pub(super) fn keep(&mut self, names: &BTreeSet<String>) {
        self.0.retain(|name, _| names.contains(name));
    }
}
