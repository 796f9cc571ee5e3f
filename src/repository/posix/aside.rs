//! Renames checkpoints out of the numbering. Their names become free, and none of their files are lost.

use super::directory::PosixDirectory;
use crate::error::{Error, Result};
use crate::repository::names::{Aside, MANIFEST, STAGING, SUPERSEDED, before_aside, nonce_of};
use crate::repository::reading::is_no_directory;
use crate::repository::{Entry, Kind, Repository, Scan, Stat};
use std::collections::HashSet;
use std::io;

impl PosixDirectory {
    /// Renames a checkpoint, or whatever has its name, out of the numbering, durably. Returns the new name. Reads none
    /// of its files.
    pub(super) fn move_aside(&self, name: &str, aside: Aside) -> Result<String> {
        self.check()?;
        let new = aside.new_name(name);
        self.rename_aside(name, &new)?;
        self.sync(&**self.open_root()?, self.root())?;
        Ok(new)
    }

    /// Renames a checkpoint, which is not durable yet.
    pub(super) fn rename_aside(&self, name: &str, new: &str) -> Result<()> {
        let root = self.open_root()?;
        match root.rename_new(name.as_ref(), new.as_ref()) {
            // A directory of an overlay's lower layer cannot be renamed, but its files can be moved.
            Err(e) if e.kind() == io::ErrorKind::CrossesDevices => self.move_files(name, new),
            result => result.map_err(|e| Error::io("move aside", self.path(name), e)),
        }
    }

    /// Gives a checkpoint back the name it had before [`move_aside`](PosixDirectory::move_aside).
    pub(super) fn move_back(&self, aside: &str, name: &str) -> Result<()> {
        let root = self.open_root()?;
        root.rename_new(aside.as_ref(), name.as_ref()).map_err(|e| Error::io("rename", self.path(aside), e))?;
        self.sync(&**root, self.root())
    }

    /// Gives the checkpoints that an interrupted commit was to supersede their names back: those whose new name was made
    /// with that of a staging directory that is still there. Returns whether there was one. The staging directory is
    /// removed only afterwards.
    pub(super) fn undo_superseding(&self, scan: &Scan) -> Result<bool> {
        let staged: HashSet<&str> = scan.leftovers.iter().filter_map(|name| nonce_of(name, STAGING)).collect();
        let mut is_changed = false;
        for (_, aside) in &scan.aside {
            let Some((Aside::Superseded, name)) = before_aside(aside) else { continue };
            let is_of_it = nonce_of(aside, SUPERSEDED).is_some_and(|nonce| staged.contains(nonce));
            if !is_of_it {
                continue;
            }
            // Moving the files of an overlay's lower layer leaves both, if it is interrupted.
            if !scan.names.contains(name) {
                self.move_back(aside, name)?;
            } else if !self.move_files_back(name, aside)? {
                continue;
            }
            log::warn!(
                "{} has its name back: the save that was to replace it was interrupted",
                self.path(name).display()
            );
            is_changed = true;
        }
        Ok(is_changed)
    }

    /// Moves the files of a directory into a new one. The old one is complete until all have second names there,
    /// durably, and after an error.
    fn move_files(&self, from: &str, to: &str) -> Result<()> {
        let root = self.open_root()?;
        let failed = |e| Error::io("move aside", self.path(from), e);
        let old = root.open_dir(from.as_ref()).map_err(failed)?;
        root.create_dir(to.as_ref()).map_err(failed)?;
        let new = root.open_dir(to.as_ref()).inspect_err(|_| drop(root.remove_dir(to.as_ref()))).map_err(failed)?;
        let moved = || {
            let mut entries = old.list().map_err(failed)?;
            entries.iter().try_for_each(|entry| old.link(&entry.name, &*new, &entry.name)).map_err(failed)?;
            self.sync(&*new, &self.path(to))?;
            self.sync(&**root, self.root())?;
            // Without its manifest, the old one is no checkpoint.
            entries.sort_by_key(|entry| entry.name != MANIFEST);
            entries.iter().try_for_each(|entry| old.remove_file(&entry.name)).map_err(failed)?;
            root.remove_dir(from.as_ref()).map_err(failed)
        };
        moved().inspect_err(|_| {
            if let Err(e) = self.move_files_back(from, to) {
                log::warn!("{} could not be given its files back: {e:#}", self.path(from).display());
            }
        })
    }

    /// Undoes [`move_files`](PosixDirectory::move_files), however far it came. Returns `false`, and changes nothing, if
    /// the two directories are not what it left.
    fn move_files_back(&self, from: &str, to: &str) -> Result<bool> {
        let root = self.open_root()?;
        let failed = |e| Error::io("move back", self.path(to), e);
        let (old, new) = match (root.open_dir(from.as_ref()), root.open_dir(to.as_ref())) {
            (Err(e), _) | (_, Err(e)) if is_no_directory(&e) => return Ok(false),
            (old, new) => (old.map_err(failed)?, new.map_err(failed)?),
        };
        // An overlay can report two numbers for two names of one file.
        let is_same = |a: &Stat, b: &Stat| (a.kind, a.length, a.modified) == (b.kind, b.length, b.modified);
        let (mut both, mut lost) = (Vec::new(), Vec::new());
        for Entry { name, .. } in new.list().map_err(failed)? {
            match (old.stat_of(&name).map_err(failed)?, new.stat_of(&name).map_err(failed)?) {
                (None, Some(moved)) if moved.kind != Kind::Directory => lost.push(name),
                (Some(there), Some(moved)) if is_same(&there, &moved) => both.push(name),
                _ => return Ok(false),
            }
        }
        lost.iter().try_for_each(|name| new.link(name, &*old, name)).map_err(failed)?;
        self.sync(&*old, &self.path(from))?;
        both.iter().chain(&lost).try_for_each(|name| new.remove_file(name)).map_err(failed)?;
        root.remove_dir(to.as_ref()).map_err(failed)?;
        Ok(true)
    }
}
