//! Files and directories that get their names only when they are completely on the disk.

use super::temporary::{self, parent_of};
#[cfg(feature = "pytorch")]
use super::zip::Sink;
use crate::error::{Error, Result};
use crate::location::Location;
use crate::repository::{cannot_sync, no_promise};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// A file that is written under a temporary name in its final directory.
#[derive(Debug)]
pub(crate) struct DurableFile {
    path: PathBuf,
    temporary: PathBuf,
    file: File,
    /// Whether an existing entry is kept.
    is_new: bool,
    is_done: bool,
}

impl DurableFile {
    /// Creates a file that will become `path`, which must not exist.
    #[cfg(feature = "pytorch")]
    pub(crate) fn create_new(path: &Path) -> Result<DurableFile> {
        if fs::symlink_metadata(path).is_ok() {
            return Err(file_is_there(path));
        }
        let mut file = DurableFile::create(path)?;
        file.is_new = true;
        Ok(file)
    }

    /// Creates a file that will replace `path`.
    pub(crate) fn create(path: &Path) -> Result<DurableFile> {
        let new = |temporary: &Path| File::options().write(true).create_new(true).open(temporary);
        let (temporary, file) = temporary::create(path, new)?;
        Ok(DurableFile { path: path.to_path_buf(), temporary, file, is_new: false, is_done: false })
    }

    pub(crate) fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.file.write_all_at(bytes, offset).map_err(|e| Error::io("write", &self.temporary, e))
    }

    /// Makes the content durable, for a file in a [`DurableDirectory`].
    #[cfg(feature = "huggingface")]
    #[cfg(feature = "pytorch")]
    pub(crate) fn sync(mut self) -> Result<()> {
        self.is_done = true;
        self.file.sync_all().map_err(|e| Error::io("sync the file", &self.temporary, e))
    }

    /// Makes the content durable, renames the file atomically, and makes the name durable. Replaces an existing file
    /// unless it is to be a new one.
    pub(crate) fn publish(mut self) -> Result<()> {
        self.rename()?;
        sync_directory(parent_of(&self.path))
    }

    /// Makes the content durable, and renames the file atomically.
    fn rename(&mut self) -> Result<()> {
        self.file.sync_all().map_err(|e| Error::io("sync the file", &self.temporary, e))?;
        let renamed = match self.is_new {
            true => rename_to_free(&self.temporary, &self.path),
            false => fs::rename(&self.temporary, &self.path),
        };
        renamed.map_err(|e| match e.kind() {
            std::io::ErrorKind::AlreadyExists => file_is_there(&self.path),
            _ => Error::io("rename", &self.temporary, e),
        })?;
        self.is_done = true;
        Ok(())
    }
}

/// Publishes files in this order, each before the next one gets its name. After an error, none of them is left.
#[cfg(feature = "tensorflow")]
pub(crate) fn publish_all(files: Vec<DurableFile>) -> Result<()> {
    let mut published = Vec::new();
    let result = files.into_iter().try_for_each(|mut file| {
        file.rename()?;
        published.push(file.path.clone());
        sync_directory(parent_of(&file.path))
    });
    if result.is_err() {
        published.iter().rev().for_each(|path| drop(fs::remove_file(path)));
    }
    result
}

fn file_is_there(path: &Path) -> Error {
    let hint = "choose another name, or replace it (`ConvertOptions::replace`, `ckpt convert --force`)".to_string();
    Error::AlreadyExists { path: path.into(), hint }
}

/// Renames atomically, unless something has that name by now.
fn rename_to_free(from: &Path, to: &Path) -> std::io::Result<()> {
    let flags = rustix::fs::RenameFlags::NOREPLACE;
    match rustix::fs::renameat_with(rustix::fs::CWD, from, rustix::fs::CWD, to, flags) {
        // A file system without that flag: a file that appears at this moment is replaced.
        Err(rustix::io::Errno::INVAL) if fs::symlink_metadata(to).is_err() => fs::rename(from, to),
        Err(rustix::io::Errno::INVAL) => Err(std::io::ErrorKind::AlreadyExists.into()),
        renamed => Ok(renamed?),
    }
}

/// Makes the names in a directory durable. Where the file system cannot do that, nothing more can be done.
fn sync_directory(path: &Path) -> Result<()> {
    match File::open(path).and_then(|directory| directory.sync_all()) {
        Err(e) if cannot_sync(&e) => {
            no_promise(path, &e);
            Ok(())
        }
        synced => synced.map_err(|e| Error::io("sync", path, e)),
    }
}

/// A new directory that is filled under a temporary name next to its final place.
#[cfg(feature = "huggingface")]
#[cfg(feature = "pytorch")]
#[derive(Debug)]
pub(crate) struct DurableDirectory {
    path: PathBuf,
    temporary: PathBuf,
    /// Holds the lock.
    _opened: File,
    is_done: bool,
}

#[cfg(feature = "pytorch")]
#[cfg(feature = "huggingface")]
impl DurableDirectory {
    /// Creates a directory that will become `path`, which must not exist.
    pub(crate) fn create(path: &Path) -> Result<DurableDirectory> {
        if fs::symlink_metadata(path).is_ok() {
            return Err(already_there(path));
        }
        let parent = parent_of(path);
        fs::create_dir_all(parent).map_err(|e| Error::io("create", parent, e))?;
        let new = |temporary: &Path| fs::create_dir(temporary).and_then(|()| temporary::open_directory(temporary));
        let (temporary, opened) = temporary::create(path, new)?;
        Ok(DurableDirectory { path: path.to_path_buf(), temporary, _opened: opened, is_done: false })
    }

    /// Creates a file in it, to be completed by [`DurableFile::sync`].
    pub(crate) fn file(&self, name: &str) -> Result<DurableFile> {
        let path = self.temporary.join(name);
        let file =
            File::options().write(true).create_new(true).open(&path).map_err(|e| Error::io("create", &path, e))?;
        Ok(DurableFile { path: path.clone(), temporary: path, file, is_new: true, is_done: false })
    }

    /// Makes it durable and renames it atomically, unless something has that name by now.
    pub(crate) fn publish(mut self) -> Result<()> {
        sync_directory(&self.temporary)?;
        rename_to_free(&self.temporary, &self.path).map_err(|e| match e.kind() {
            std::io::ErrorKind::AlreadyExists => already_there(&*self.path),
            _ => Error::io("rename", &self.temporary, e),
        })?;
        self.is_done = true;
        sync_directory(parent_of(&self.path))
    }
}

/// Returns the error for a name that a conversion finds taken, where it replaces nothing.
pub(crate) fn already_there(path: impl Into<Location>) -> Error {
    let hint = "choose another name, or remove what has this one".to_string();
    Error::AlreadyExists { path: path.into(), hint }
}

#[cfg(feature = "pytorch")]
#[cfg(feature = "huggingface")]
impl Drop for DurableDirectory {
    fn drop(&mut self) {
        if !self.is_done {
            let _ = fs::remove_dir_all(&self.temporary);
        }
    }
}

impl Drop for DurableFile {
    fn drop(&mut self) {
        if !self.is_done {
            // Leftovers have a name that marks them as such.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

#[cfg(feature = "pytorch")]
impl Sink for DurableFile {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        DurableFile::write_at(self, offset, bytes)
    }
}
