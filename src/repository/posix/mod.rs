//! Checkpoints in directories of a file system, over narrow traits of file operations, so that the same protocol runs
//! on the operating system and on a simulated disk. Every promise about durability is a sequence of these calls.
//!
//! A directory is opened once, by the path that the user gave, and stays open. Everything below it is reached from
//! there, by names of one component, and no symbolic link is followed on the way.

mod aside;
mod directory;
mod lease;
mod links;
mod local;
mod lock;
mod marks;
mod removal;
mod spares;
mod staging;

use directory::PosixDirectory;
pub(crate) use directory::{cannot_sync, no_promise};
pub use lease::hold_lease;
pub use local::LocalDisk;

use super::reading::checkpoint_failed;
use super::{FileId, OpenDir, OpenOptions, Repository, Stat, Storage, not_served};
use crate::error::{Error, Result};
use crate::location::Location;
use chrono::{DateTime, Utc};
use std::any::Any;
use std::ffi::{OsStr, OsString};
use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Directories of a [`Disk`].
#[derive(Debug, Clone)]
pub struct Posix(Arc<dyn Disk>);

impl Posix {
    /// Returns those of `disk`.
    #[doc(hidden)]
    pub fn new(disk: Arc<dyn Disk>) -> Posix {
        Posix(disk)
    }
}

impl Default for Posix {
    /// Returns the operating system's.
    fn default() -> Posix {
        Posix(Arc::new(LocalDisk))
    }
}

impl Storage for Posix {
    fn absolute(&self, location: &Location) -> Result<Location> {
        let absolute = self.0.absolute(path_of(location)?);
        absolute.map(Location::from).map_err(|e| Error::io("find out the absolute path of", location, e))
    }

    fn repository(&self, root: &Location, options: &OpenOptions) -> Result<Arc<dyn Repository>> {
        path_of(root)?;
        Ok(Arc::new(PosixDirectory::new(self.0.clone(), root.clone(), options)))
    }

    fn open(&self, location: &Location) -> Result<Arc<dyn OpenDir>> {
        match self.0.open_dir(path_of(location)?) {
            Ok(dir) => Ok(dir),
            Err(e) => Err(checkpoint_failed(location, e)),
        }
    }
}

/// Returns the path that a location is.
///
/// # Errors
/// [`Error::InvalidArgument`] for a URL.
pub(crate) fn path_of(location: &Location) -> Result<&Path> {
    location.as_path().ok_or_else(|| not_served(location, "the paths of this system"))
}

/// A file system, by the paths that the user gives.
#[allow(clippy::missing_errors_doc, reason = "every error is one of the operating system")]
pub trait Disk: Send + Sync + Debug {
    /// Returns the absolute path, which does not depend on the working directory.
    fn absolute(&self, path: &Path) -> io::Result<PathBuf>;

    /// Opens a directory. Symbolic links in the path are followed: the user gave it.
    fn open_dir(&self, path: &Path) -> io::Result<Arc<dyn Dir>>;

    /// Returns the current time, for time stamps and retention.
    fn now(&self) -> DateTime<Utc> {
        Utc::now()
    }

    /// Files of fewer bytes are not worth [recycling](Dir::recycle).
    fn least_recycled(&self) -> u64 {
        64 << 10
    }
}

/// An open directory. It remains the same directory even if its name changes. All names are single components; a
/// symbolic link of that name is never followed.
#[allow(clippy::missing_errors_doc, reason = "every error is one of the operating system")]
pub trait Dir: OpenDir {
    /// For [`recycle`](Dir::recycle) and [`link`](Dir::link), which need two directories of one kind.
    fn as_any(&self) -> &dyn Any;

    /// Opens a directory in this one. A symbolic link is the error `ELOOP`.
    fn open_dir(&self, name: &OsStr) -> io::Result<Arc<dyn Dir>>;

    /// Like [`open_dir`](Dir::open_dir), but what is mounted there is an error of the kind `CrossesDevices`. Defaults
    /// to `open_dir`: where the system cannot tell, only another [device](FileId) shows a mount.
    fn open_dir_here(&self, name: &OsStr) -> io::Result<Arc<dyn Dir>> {
        Dir::open_dir(self, name)
    }

    /// Creates a directory; an error if anything of that name exists.
    fn create_dir(&self, name: &OsStr) -> io::Result<()>;

    /// Creates a file for writing; an error if anything of that name exists. If `direct`,
    /// [`write_all_at`](WriteFile::write_all_at) writes directly where possible.
    fn create(&self, name: &OsStr, direct: bool) -> io::Result<Box<dyn WriteFile>>;

    /// Moves the file `name` to the free name `new` of the directory `to` and opens it for overwriting: blocks that
    /// exist already are written about twice as fast as new ones. `None`, and the file is removed, when it differs from
    /// a new file in more than its content, or if another process could see the change: it has a second link, or is
    /// open anywhere.
    fn recycle(&self, name: &OsStr, to: &dyn Dir, new: &OsStr, direct: bool) -> io::Result<Option<Box<dyn WriteFile>>>;

    /// Gives the file `name` a second name in the directory `to`. Neither may ever be written to again.
    fn link(&self, name: &OsStr, to: &dyn Dir, new: &OsStr) -> io::Result<()>;

    /// Renames to a name that must be free.
    fn rename_new(&self, from: &OsStr, to: &OsStr) -> io::Result<()>;

    /// Renames a file over another, atomically.
    fn replace(&self, from: &OsStr, to: &OsStr) -> io::Result<()>;

    /// Creates a symbolic link to `target`; an error if anything of that name exists. Defaults to an error of the kind
    /// `Unsupported`.
    fn symlink(&self, target: &OsStr, name: &OsStr) -> io::Result<()> {
        let _ = (target, name);
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Returns what the symbolic link `name` leads to. Defaults to an error of the kind `Unsupported`.
    fn read_link(&self, name: &OsStr) -> io::Result<OsString> {
        let _ = name;
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Removes a file. For a symbolic link, only the link itself is removed.
    fn remove_file(&self, name: &OsStr) -> io::Result<()>;

    /// Removes an empty directory.
    fn remove_dir(&self, name: &OsStr) -> io::Result<()>;

    /// Makes the names in the directory durable: created, renamed and removed ones.
    fn sync(&self) -> io::Result<()>;

    /// Returns the free space of the file system in bytes, if it reports it.
    fn free_space(&self) -> io::Result<Option<u64>>;

    /// Returns how many bytes a name may have.
    fn name_limit(&self) -> usize {
        255
    }

    /// Returns `true` if the file system is known to be local: its files are only accessible through this system.
    fn is_local(&self) -> bool;

    /// Locks the lock file `name`, creating it if necessary, and writes `holder` into it; `None` if another process
    /// holds the lock.
    fn lock(&self, name: &OsStr, holder: &str) -> io::Result<Option<Box<dyn LockFile>>>;
}

/// A held lock file. The system releases it when the process exits.
pub trait LockFile: Send + Sync {
    /// Returns the file.
    fn id(&self) -> FileId;

    /// Releases it, even if the file is open elsewhere.
    fn release(&self);
}

/// A file being written. Call `sync` if the durability requires it, then drop it.
#[allow(clippy::missing_errors_doc, reason = "every error is one of the operating system")]
pub trait WriteFile: Send + Sync {
    /// Writes all of `bytes` at `offset`. Where the memory, the offset and the length are multiples of
    /// [`PAGE`](crate::repository::PAGE), the bytes may go to the device directly.
    fn write_all_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Ends the file after `length` bytes: a recycled one may have been longer.
    fn set_len(&self, length: u64) -> io::Result<()>;

    /// Makes content and length durable. After an error the file must be abandoned and never synced again: the system
    /// may have dropped the data and would report success.
    fn sync(&self) -> io::Result<()>;

    /// Returns the file as it is now.
    fn stat(&self) -> io::Result<Stat>;
}
