//! Removes and renames checkpoints. Only what is known to be ours is removed, and no link is followed.

use super::Dir;
use super::directory::PosixDirectory;
use crate::error::{Error, Result};
use crate::format::{Follows, Mark, MarkKind};
use crate::repository::names::{Aside, MANIFEST, before_aside, before_trash, trash_name};
use crate::repository::reading::{is_no_directory, marks_in, read_manifest, thinned_in};
use crate::repository::{Entry, Kind, Repository, Scan, Stays};
use std::ffi::OsStr;
use std::io;
use std::sync::Arc;

/// The maximum depth of a directory that is removed. Those of checkpoints have only files.
const MAX_DEPTH: usize = 64;

impl PosixDirectory {
    /// Removes the checkpoint `name`, which must be the commit `id`: renames it to the trash, syncs the directory, and
    /// then removes the files or keeps them to be overwritten. If its marks require that it `stays`, it keeps or
    /// regains its name, and the result is `false`. Another commit of that name is left alone, and one that cannot be
    /// identified is moved aside. After the directory is synced, errors are only logged: the rest is removed when it is
    /// next opened.
    pub(super) fn remove_commit(&self, name: &str, id: &Follows, stays: Stays<'_>) -> Result<bool> {
        self.check()?;
        let root = self.open_root()?;
        let path = self.path(name);
        let dir = match root.open_dir(name.as_ref()) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(true),
            Err(e) if is_no_directory(&e) => {
                log::warn!("{} is not removed: it is no longer a directory, but a link or a file", path.display());
                return Ok(true);
            }
            result => result.map_err(|e| Error::io("open the checkpoint", &path, e))?,
        };
        match read_manifest(&*dir, &path) {
            Ok(manifest) if manifest.run == id.run && manifest.sequence == id.sequence => {}
            Ok(_) => {
                log::warn!("{} is not removed: another checkpoint has taken its place", path.display());
                return Ok(true);
            }
            Err(error) if error.is_damage() => {
                log::warn!("{} is not removed but moved aside: {error:#}", path.display());
                return self.move_aside(name, Aside::Damaged).map(|_| true);
            }
            Err(error) => return Err(error),
        }
        if stays(&marks_in(&*dir, &path)?) {
            return Ok(false);
        }
        let trash = trash_name(name);
        match root.rename_new(name.as_ref(), trash.as_ref()) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(true),
            // A directory of an overlay's lower layer cannot be renamed. Removing its manifest has the same effect.
            Err(e) if e.kind() == io::ErrorKind::CrossesDevices => {
                let manifest = path.join(MANIFEST);
                dir.remove_file(MANIFEST.as_ref()).map_err(|e| Error::io("remove", &manifest, e))?;
                self.sync(&*dir, &path)?;
                self.remove_leftover(name);
                return Ok(true);
            }
            result => result.map_err(|e| Error::io("move to the trash", &path, e))?,
        }
        self.freed();
        if !self.is_still(&*dir, &trash) {
            if matches!(root.stat_of(trash.as_ref()), Ok(None)) {
                log::warn!("{} is gone: someone has taken it out of the trash", path.display());
                return Ok(true);
            }
            let reason = "it was exchanged at this moment";
            self.give_back(name, &trash, reason)?;
            return Err(Error::io("remove", &path, io::Error::other(reason)));
        }
        // A mark may have been written meanwhile. If the marks cannot be read, the removal is tried again later.
        match marks_in(&*dir, &path) {
            Ok(marks) if stays(&marks) => {
                return self.give_back(name, &trash, "it was marked at this moment").map(|()| false);
            }
            Ok(_) => {}
            Err(error) => {
                self.give_back(name, &trash, "its marks cannot be read")?;
                return Err(error);
            }
        }
        match self.sync(&**root, self.root()) {
            Ok(()) => {
                let kept = self.spares.as_ref().map(|spares| spares.refill(&**root, dir, trash.as_ref()));
                if !matches!(kept, Some(Ok(()))) {
                    self.remove_leftover(&trash);
                }
            }
            // A power cut could bring back the name, which must not be that of half a checkpoint: nothing is removed.
            Err(e) => log::warn!("{trash} is removed when the directory is next opened: {e:#}"),
        }
        Ok(true)
    }

    /// Removes a checkpoint that was moved aside as damaged. Changes nothing and returns `false` if its marks require
    /// that it `stays`, or if it is no such directory.
    pub(super) fn discard_damaged(&self, aside: &str, stays: Stays<'_>) -> Result<bool> {
        self.check()?;
        if !matches!(before_aside(aside), Some((Aside::Damaged, _))) {
            return Ok(false);
        }
        let root = self.open_root()?;
        let path = self.path(aside);
        let dir = match root.open_dir(aside.as_ref()) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(true),
            Err(e) if is_no_directory(&e) => return Ok(false),
            result => result.map_err(|e| Error::io("open the checkpoint", &path, e))?,
        };
        if stays(&marks_in(&*dir, &path)?) {
            return Ok(false);
        }
        let trash = trash_name(aside);
        root.rename_new(aside.as_ref(), trash.as_ref()).map_err(|e| Error::io("move to the trash", &path, e))?;
        // A mark may have been written meanwhile.
        if !self.is_still(&*dir, &trash) || !matches!(marks_in(&*dir, &path), Ok(marks) if !stays(&marks)) {
            return self.give_back(aside, &trash, "it was marked or exchanged at this moment").map(|()| false);
        }
        self.sync(&**root, self.root())?;
        self.remove_leftover(&trash);
        Ok(true)
    }

    /// Gives the checkpoints in the trash that are whole and pinned their names back: whoever removed them ended before
    /// it read the marks again, and the pin may be acknowledged. Returns whether there was one, and those that cannot be
    /// read now and must not be swept.
    pub(super) fn rescue_pinned(&self, scan: &Scan) -> Result<(bool, Vec<String>)> {
        let (mut is_changed, mut unread) = (false, Vec::new());
        for trash in &scan.leftovers {
            let Some(name) = before_trash(trash) else { continue };
            match self.is_whole_and_pinned(trash) {
                Ok(true) => {
                    let why = "it was pinned while it was being removed, by a process that has ended";
                    self.give_back(&name, trash, why)?;
                    is_changed = true;
                }
                Ok(false) => {}
                Err(e) if e.is_damage() || e.is_not_found() => {}
                Err(Error::Io { source, .. }) if is_no_directory(&source) => {}
                Err(e) => {
                    log::warn!("{trash} is not removed yet, because it cannot be read now: {e:#}");
                    unread.push(trash.clone());
                }
            }
        }
        Ok((is_changed, unread))
    }

    fn is_whole_and_pinned(&self, trash: &str) -> Result<bool> {
        let path = self.path(trash);
        let dir = self.open_root()?.open_dir(trash.as_ref()).map_err(|e| Error::io("open", &path, e))?;
        let mut manifest = read_manifest(&*dir, &path)?;
        let id = manifest.id();
        // One that cannot be read may be a pin.
        let is_pin = |bytes: &Vec<u8>| {
            Mark::from_bytes(bytes).map_or(true, |mark| mark.of == id && matches!(mark.kind, MarkKind::Pin { .. }))
        };
        if !marks_in(&*dir, &path)?.iter().any(|(_, bytes)| is_pin(bytes)) {
            return Ok(false);
        }
        manifest.take_out(&thinned_in(&*dir, &path, &id).components);
        let files = manifest.files.iter().map(|(name, entry)| (name, entry.bytes));
        let mut files = files.chain(manifest.assets.iter().map(|(name, entry)| (name, entry.bytes)));
        let length = |name: &String| dir.stat_of(name.as_ref()).ok().flatten().map(|stat| stat.length);
        Ok(files.all(|(name, bytes)| length(name) == Some(bytes)))
    }

    /// Returns `true` if the name still leads to the examined directory.
    fn is_still(&self, dir: &dyn Dir, name: &str) -> bool {
        let now = self.open_root().ok().and_then(|root| root.stat_of(name.as_ref()).ok().flatten());
        now.is_some_and(|now| dir.stat().is_ok_and(|stat| stat.id == now.id))
    }

    /// Renames what was moved to the trash back to its name. If that is taken, moves it aside under a name that nothing
    /// removes.
    fn give_back(&self, name: &str, trash: &str, why: &str) -> Result<()> {
        log::warn!("{} is not removed: {why}", self.path(name).display());
        let root = self.open_root()?;
        let back = root.rename_new(trash.as_ref(), name.as_ref());
        let aside = Aside::PassedOver.new_name(name);
        back.or_else(|_| root.rename_new(trash.as_ref(), aside.as_ref()))
            .map_err(|e| Error::io("give the name back to", self.path(name), e))?;
        self.sync(&**root, self.root())
    }

    /// Removes a staging or trash directory and its contents, as far as possible. Errors are logged.
    pub(super) fn remove_leftover(&self, name: &str) {
        let removed = self.open_root().map(|root| remove_all(&**root, name.as_ref(), 0));
        let failed = match removed {
            Ok(Ok(())) => return self.freed(),
            Ok(Err(e)) => e.to_string(),
            Err(e) => format!("{e:#}"),
        };
        let path = self.path(name);
        log::warn!(
            "could not remove {}: {failed}; it is tried again when the directory is next opened",
            path.display()
        );
    }
}

/// Removes a file, or a directory and its contents, as far as possible. A symbolic link is removed itself, whatever it
/// leads to. What is mounted in it is left alone, even if it is a part of the same file system (a bind mount).
///
/// # Errors
/// The first one. The rest is removed anyway.
pub(super) fn remove_all(parent: &dyn Dir, name: &OsStr, depth: usize) -> io::Result<()> {
    let gone = |e: io::Error| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) };
    let mounted = || Err(io::Error::other(format!("something is mounted at {}", name.display())));
    let dir: Arc<dyn Dir> = match parent.open_dir_here(name) {
        Err(e) if is_no_directory(&e) => return parent.remove_file(name).or_else(gone),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) if e.kind() == io::ErrorKind::CrossesDevices => return mounted(),
        result => result?,
    };
    if dir.stat()?.id.device != parent.stat()?.id.device {
        return mounted();
    }
    if depth == MAX_DEPTH {
        return Err(io::Error::other(format!("it nests deeper than {MAX_DEPTH} directories")));
    }
    let remove = |entry: Entry| match entry.kind {
        Kind::Directory => remove_all(&*dir, &entry.name, depth + 1),
        _ => dir.remove_file(&entry.name).or_else(gone),
    };
    dir.list()?.into_iter().map(remove).fold(Ok(()), Result::and)?;
    drop(dir);
    parent.remove_dir(name).or_else(gone)
}
