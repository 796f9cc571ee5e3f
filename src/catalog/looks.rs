//! Caches checkpoints as they were last examined, for callers that examine a directory repeatedly.

use super::{Found, look};
use crate::error::Result;
use crate::parallel;
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
    /// Examines the checkpoints `names` on several threads, except those whose directories are unchanged. Returns what
    /// was found, in the same order.
    pub(super) fn look(&mut self, directory: &Directory, names: &[String]) -> Vec<Result<Found>> {
        let all = parallel::of_each(names, |name| {
            let stat = directory.stat_of(name).filter(is_settled);
            match self.0.get(name) {
                Some((seen, found)) if stat.as_ref() == Some(seen) => (stat, Ok(found.clone())),
                _ => (stat, look(directory, name)),
            }
        });
        let all = names.iter().zip(all).map(|(name, (stat, found))| {
            match (&found, stat) {
                (Ok(_), Some(stat)) if self.0.get(name).is_some_and(|(seen, _)| *seen == stat) => {}
                (Ok(found), Some(stat)) => drop(self.0.insert(name.clone(), (stat, found.clone()))),
                _ => drop(self.0.remove(name)),
            }
            found
        });
        all.collect()
    }

    /// Forgets all checkpoints but these.
    pub(super) fn keep(&mut self, names: &BTreeSet<String>) {
        self.0.retain(|name, _| names.contains(name));
    }
}
