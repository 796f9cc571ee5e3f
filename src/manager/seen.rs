//! What has not changed in the directories of checkpoints since they were last read.

use crate::catalog::{Found, is_settled};
use crate::format::Follows;
use crate::repository::{Directory, Stat};
use std::collections::{HashMap, HashSet};

/// The manifests of checkpoints as they were when they were last read, so that one that took the place of another is
/// noticed without reading all of them again.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    manifests: HashMap<String, (Follows, Stat)>,
    /// The directories of checkpoints as they were when their marks were read. Whatever is added, replaced or removed
    /// in a directory changes its time.
    marked: HashMap<String, Stat>,
}

impl Seen {
    /// Returns `true` if `found` still has its name, as far as the system reports.
    pub(super) fn is_there(&mut self, directory: &Directory, found: &Found) -> bool {
        let name = &found.entry.name;
        if !directory.may_hold(name) {
            return false;
        }
        let Some(stat) = directory.stat_of_manifest(name) else { return true };
        let seen = (found.id(), stat);
        if self.manifests.get(name) == Some(&seen) {
            return true;
        }
        match directory.manifest(name) {
            Ok(manifest) if manifest.id() != found.id() => false,
            Ok(_) => {
                self.manifests.insert(name.clone(), seen);
                true
            }
            Err(_) => true,
        }
    }

    /// `found` was saved just now.
    pub(super) fn saved(&mut self, directory: &Directory, found: &Found) {
        if let Some(stat) = directory.stat_of_manifest(&found.entry.name) {
            self.manifests.insert(found.entry.name.clone(), (found.id(), stat));
        }
    }

    /// Forgets all but these.
    pub(super) fn keep(&mut self, known: &[Found]) {
        let names: HashSet<&str> = known.iter().map(|found| found.entry.name.as_str()).collect();
        self.manifests.retain(|name, _| names.contains(name.as_str()));
        self.marked.retain(|name, _| names.contains(name.as_str()));
    }

    /// Records that the marks of this checkpoint could not be read.
    pub(super) fn forget_marks(&mut self, name: &str) {
        self.marked.remove(name);
    }

    /// Returns `false` if the marks of `found` are those that were read last, as far as the time of its directory
    /// tells. Marks that are read for nothing cost time; a change that is not noticed is noticed before anything is
    /// removed.
    pub(super) fn may_be_marked(&mut self, directory: &Directory, found: &Found) -> bool {
        let name = &found.entry.name;
        let stat = directory.stat_of(name);
        if stat.is_some() && self.marked.get(name) == stat.as_ref() {
            return false;
        }
        // Before they are read. Storages that tell no time are always asked.
        match stat.filter(is_settled) {
            Some(stat) => drop(self.marked.insert(name.clone(), stat)),
            None => drop(self.marked.remove(name)),
        }
        true
    }
}
