//! Checkpoints that leave the numbering and stay on the disk: their names are free again, and nothing of them is lost.

use super::directory::without_mark;
use super::{Directory, nonce};
use crate::error::{Error, Result};
use std::io;
use std::path::Path;

/// Why a checkpoint left the numbering, which the first part of its new name tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Aside {
    /// It was found damaged. Never removed by this crate.
    Damaged,
    /// It could not be read, and an older one was restored in its place. Never removed by this crate.
    PassedOver,
    /// An older one was restored and the run went on from there. Removed when enough newer ones are complete.
    Superseded,
}

const PREFIXES: [(Aside, &str); 3] =
    [(Aside::Damaged, "damaged-"), (Aside::PassedOver, "passed-over-"), (Aside::Superseded, "superseded-")];

impl Aside {
    fn prefix(self) -> &'static str {
        PREFIXES.iter().find(|(aside, _)| *aside == self).map_or("", |(_, prefix)| prefix)
    }
}

/// Why the directory `name` left the numbering, and what it was called; `None` for all others.
pub(crate) fn before_aside(name: &str) -> Option<(Aside, &str)> {
    PREFIXES.iter().find_map(|(aside, prefix)| Some((*aside, without_mark(name, prefix)?)))
}

impl Directory {
    /// Moves a checkpoint out of the numbering; returns its new name, which is durable. Reads nothing of it.
    pub(crate) fn move_aside(&self, name: &str, aside: Aside) -> Result<String> {
        let new = format!("{}{name}-{}", aside.prefix(), nonce());
        let (from, to) = (self.path(name), self.path(&new));
        match self.disk().rename_new(&from, &to) {
            // A directory of an overlay's lower layer cannot be renamed, but its files can.
            Err(e) if e.kind() == io::ErrorKind::CrossesDevices => self.move_files(&from, &to)?,
            result => result.map_err(|e| Error::io("move aside", &from, e))?,
        }
        self.sync_dir(self.root())?;
        Ok(new)
    }

    /// Gives a checkpoint back the name it had before [`move_aside`](Directory::move_aside).
    pub(crate) fn move_back(&self, aside: &str, name: &str) -> Result<()> {
        let (from, to) = (self.path(aside), self.path(name));
        self.disk().rename_new(&from, &to).map_err(|e| Error::io("rename", &from, e))?;
        self.sync_dir(self.root())
    }

    /// Moves what is in a directory into a new one, the manifest first: without it the old one is no checkpoint.
    fn move_files(&self, from: &Path, to: &Path) -> Result<()> {
        let failed = |e| Error::io("move aside", from, e);
        let disk = self.disk();
        disk.create_dir(to).map_err(failed)?;
        let mut entries = disk.list(from).map_err(failed)?;
        entries.sort_by_key(|entry| entry.name != super::MANIFEST);
        for entry in entries {
            disk.rename_new(&from.join(&entry.name), &to.join(&entry.name)).map_err(failed)?;
        }
        self.sync_dir(to)?;
        disk.remove_dir(from).map_err(failed)
    }
}
