//! What a manager knows of its folder, and how that changes: a checkpoint more, old ones removed, the index after it.

use crate::checkpoint::index_entry;
use crate::error::Error;
use crate::format::{Index, IndexEntry};
use crate::restore::PassedOver;
use crate::retention::{Candidate, Retention};
use crate::save::{Memo, Saved};
use crate::store::{Directory, Entry, MANIFEST};
use chrono::{DateTime, Utc};
use std::path::PathBuf;

/// The checkpoints of a folder.
pub(super) struct Ledger {
    pub directory: Directory,
    pub retention: Retention,
    /// What is there, oldest commit first.
    pub known: Vec<IndexEntry>,
    pub last_preserved: Option<DateTime<Utc>>,
    /// Those that could not be restored or even be looked at, since the last restore.
    pub passed_over: Vec<PassedOver>,
    /// What the last checkpoint was made of.
    pub memo: Memo,
}

impl Ledger {
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.root().join(name)
    }

    /// Takes in a checkpoint that is durable, and removes what is too much. Failing to remove an old one, or to note
    /// it, fails nothing: it is tried again at the next save.
    pub(super) fn committed(&mut self, name: &str, saved: Saved) {
        self.known.push(index_entry(name, &saved.manifest));
        self.memo = saved.memo;
        let candidate = |entry: &IndexEntry| Candidate {
            name: entry.name.clone(),
            saved_at: entry.saved_at,
            preserved: entry.preserved,
        };
        let candidates: Vec<Candidate> = self.known.iter().map(candidate).collect();
        let verdict = self.retention.decide(&candidates, self.last_preserved);
        self.last_preserved = verdict.last_preserved;
        for entry in &mut self.known {
            entry.preserved |= verdict.preserve.contains(&entry.name);
        }
        let (victims, kept): (Vec<_>, Vec<_>) =
            self.known.drain(..).partition(|entry| verdict.remove.contains(&entry.name));
        self.known = kept;
        // The index is durable before anything is removed; on a full disk it can be only after.
        let noted = self.write_index();
        // The one saved just now needs no look.
        let older = &self.known[..self.known.len().saturating_sub(1)];
        match older.iter().find(|entry| !victims.is_empty() && !self.looks_whole(entry)) {
            None => self.remove(victims),
            Some(entry) => {
                log::warn!("nothing is removed to make room: {} has lost files", self.path(&entry.name).display());
                self.known.splice(0..0, victims);
            }
        }
        if let Err(e) = noted.or_else(|_| self.write_index()) {
            log::warn!("the index could not be written: {e}; the checkpoints are found without it");
        }
    }

    /// Whether a checkpoint has its manifest and at least as many bytes as were written. Cheap: no file is read.
    fn looks_whole(&self, entry: &IndexEntry) -> bool {
        let (disk, path) = (self.directory.disk(), self.path(&entry.name));
        let Ok(files) = disk.list(&path) else { return false };
        let length = |file: &Entry| disk.open(&path.join(&file.name)).and_then(|file| file.len()).ok();
        let others = files.iter().filter(|file| !file.is_dir && file.name != MANIFEST);
        others.filter_map(length).sum::<u64>() >= entry.bytes
            && files.iter().any(|file| file.name == MANIFEST && length(file) > Some(0))
    }

    fn remove(&mut self, victims: Vec<IndexEntry>) {
        let mut stuck = Vec::new();
        for entry in victims {
            if let Err(e) = self.directory.remove(&entry.name) {
                log::warn!("the old checkpoint {} could not be removed: {e}; it will be tried again", entry.name);
                stuck.push(entry);
            }
        }
        self.known.splice(0..0, stuck);
    }

    fn write_index(&self) -> crate::error::Result<()> {
        let latest = self.known.last().map(|entry| entry.name.clone());
        let index = Index { latest, checkpoints: self.known.clone(), last_preserved: self.last_preserved };
        self.directory.write_index(&index)
    }

    /// Takes a checkpoint that cannot be restored out of the list, and a damaged one out of the numbering.
    pub(super) fn pass_over(&mut self, name: &str, error: &Error) {
        let mut path = self.path(name);
        log::warn!("{} is passed over: {error}", path.display());
        if error.is_damage() {
            match self.directory.set_aside(name) {
                Ok(aside) => path = aside,
                Err(e) => log::warn!("{} could not be moved aside: {e}", path.display()),
            }
        }
        self.known.retain(|entry| entry.name != name);
        self.passed_over.push(PassedOver { path, reason: error.to_string() });
    }
}
