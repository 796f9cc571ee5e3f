//! Checkpoints that leave the numbering and stay on the disk: their names are free again, and nothing of them is lost.

use super::directory::nonce;
use super::removal::without_mark;
use super::{Dir, Directory, MANIFEST};
use crate::error::{Error, Result};
use std::ffi::OsStr;
use std::io;

/// Why a checkpoint left the numbering, which the first part of its new name tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aside {
    /// It was found damaged. Never removed by this crate.
    Damaged,
    /// It could not be read, and an older one was restored in its place. Never removed by this crate.
    PassedOver,
    /// An older one was restored and the run went on from there. Removed when enough newer ones are complete.
    Superseded,
}

const PREFIXES: [(Aside, &str); 3] =
    [(Aside::Damaged, "damaged-"), (Aside::PassedOver, "passed-over-"), (Aside::Superseded, "superseded-")];

/// The length of the longest prefix that the name of a checkpoint is ever given.
pub(super) const LONGEST_PREFIX: usize = "passed-over-".len();

impl Aside {
    pub(super) fn prefix(self) -> &'static str {
        PREFIXES.iter().find(|(aside, _)| *aside == self).map_or("", |(_, prefix)| prefix)
    }
}

/// Why the directory `name` left the numbering, and what it was called; `None` for all others.
pub fn before_aside(name: &str) -> Option<(Aside, &str)> {
    PREFIXES.iter().find_map(|(aside, prefix)| Some((*aside, without_mark(name, prefix)?)))
}

impl Directory {
    /// Moves a checkpoint, or whatever has its name, out of the numbering; returns its new name, which is durable. Reads
    /// nothing of it.
    pub(crate) fn move_aside(&self, name: &str, aside: Aside) -> Result<String> {
        self.check()?;
        let root = self.dir()?;
        let new = format!("{}{name}-{}", aside.prefix(), nonce());
        let failed = |e| Error::io("move aside", self.path(name), e);
        match root.rename_new(name.as_ref(), new.as_ref()) {
            // A directory of an overlay's lower layer cannot be renamed, but its files can be moved.
            Err(e) if e.kind() == io::ErrorKind::CrossesDevices => {
                move_files(&**root, name.as_ref(), new.as_ref()).map_err(failed)?;
            }
            result => result.map_err(failed)?,
        }
        self.sync(&**root, self.root())?;
        Ok(new)
    }

    /// Gives a checkpoint back the name it had before [`move_aside`](Directory::move_aside).
    pub(crate) fn move_back(&self, aside: &str, name: &str) -> Result<()> {
        let root = self.dir()?;
        root.rename_new(aside.as_ref(), name.as_ref()).map_err(|e| Error::io("rename", self.path(aside), e))?;
        self.sync(&**root, self.root())
    }
}

/// Moves what is in a directory into a new one, the manifest first: without it the old one is no checkpoint.
fn move_files(root: &dyn Dir, from: &OsStr, to: &OsStr) -> io::Result<()> {
    let old = root.open_dir(from)?;
    root.create_dir(to)?;
    let new = root.open_dir(to)?;
    let mut entries = old.list()?;
    entries.sort_by_key(|entry| entry.name != MANIFEST);
    for entry in entries {
        old.link(&entry.name, &*new, &entry.name)?;
        old.remove_file(&entry.name)?;
    }
    new.sync()?;
    root.remove_dir(from)
}
