//! The names of files and directories that are being written, and what writers that died left under them.

use crate::error::{Error, Result};
use crate::repository::{nonce, without_mark};
use rustix::fs::OFlags;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Stands between the name that it is to get and the nonce.
const MARK: &str = ".tch-checkpoint";

/// Creates what will become `path`, under a name of its own in the same directory. Returns that name, and what was opened:
/// as long as it is open, it is locked, so that no other writer takes it for a leftover, where the file system has locks.
/// Removes what writers of the same `path` left that are gone.
pub(super) fn create(path: &Path, create: impl Fn(&Path) -> std::io::Result<File>) -> Result<(PathBuf, File)> {
    let name = path
        .file_name()
        .ok_or_else(|| Error::InvalidArgument(format!("{} is no name of a file or directory", path.display())))?;
    let name = name.to_string_lossy();
    sweep(parent_of(path), |left| left == name);
    loop {
        let temporary = path.with_file_name(format!(".{name}{MARK}-{}", nonce()));
        let file = create(&temporary).map_err(|e| match e.kind() {
            ErrorKind::NotFound => Error::io("open the directory", parent_of(path), e),
            _ => Error::io("create", path, e),
        })?;
        let is_locked_by_another = matches!(file.try_lock(), Err(TryLockError::WouldBlock));
        // Another writer may have taken it for a leftover before it was locked.
        if !is_locked_by_another && fs::symlink_metadata(&temporary).is_ok() {
            return Ok((temporary, file));
        }
    }
}

pub(super) fn parent_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Removes from a directory what writers left that are gone: what was to get a name of which `is_wanted` returns `true`.
/// Returns whether something was removed. What is locked is being written; where the file system has no locks, everything
/// stays.
pub(crate) fn sweep(directory: &Path, is_wanted: impl Fn(&str) -> bool) -> bool {
    let mut has_removed = false;
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_str().and_then(|name| without_mark(name, ".")).and_then(|name| name.strip_suffix(MARK));
        if !name.is_some_and(&is_wanted) {
            continue;
        }
        let path = entry.path();
        match remove(&path) {
            Ok(removed) => has_removed |= removed,
            Err(e) => log::warn!("{}, which a writer left that is gone, could not be removed: {e}", path.display()),
        }
    }
    has_removed
}

/// Removes a file or directory, unless its writer holds the lock.
fn remove(path: &Path) -> std::io::Result<bool> {
    let kind = fs::symlink_metadata(path)?.file_type();
    let file = match (kind.is_file(), kind.is_dir()) {
        (true, _) => OpenOptions::new().write(true).custom_flags(flags()).open(path)?,
        (_, true) => open_directory(path)?,
        _ => return Ok(false),
    };
    match file.try_lock() {
        Ok(()) if kind.is_dir() => fs::remove_dir_all(path)?,
        Ok(()) => fs::remove_file(path)?,
        Err(_) => return Ok(false),
    }
    Ok(true)
}

/// Neither follows links nor waits for the other end of a pipe.
fn flags() -> i32 {
    (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32
}

/// Opens a directory, to lock it.
pub(super) fn open_directory(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).custom_flags(flags()).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_being_written_is_no_leftover() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.pt");
        let new_file = |path: &Path| OpenOptions::new().write(true).create_new(true).open(path);
        let new_directory = |path: &Path| fs::create_dir(path).and_then(|()| open_directory(path));
        let (first, first_lock) = create(&path, new_file).unwrap();
        let (second, second_lock) = create(&path, new_directory).unwrap();
        let (third, _lock) = create(&path, new_file).unwrap();
        assert!(first.exists() && second.exists() && third.exists());
        // As when a process ends.
        drop((first_lock, second_lock));
        assert!(!sweep(dir.path(), |name| name == "other.pt"));
        assert!(sweep(dir.path(), |name| name == "model.pt"));
        assert!(!first.exists() && !second.exists() && third.exists());
    }

    #[test]
    fn what_is_taken_for_a_leftover_before_it_is_locked_is_created_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.pt");
        let calls = std::cell::Cell::new(0);
        let (temporary, _lock) = create(&path, |new| {
            let file = File::create_new(new)?;
            calls.set(calls.get() + 1);
            if calls.get() == 1 {
                assert!(sweep(dir.path(), |_| true));
            }
            Ok(file)
        })
        .unwrap();
        assert!(temporary.exists() && calls.get() == 2);
    }
}
