//! Where checkpoints live: narrow traits of file operations, so that the same protocol runs on the operating system
//! and on a simulated disk. Every promise about durability is a sequence of these calls.
//!
//! A directory is opened once, by the path that the user gave, and is an open directory from then on. Everything
//! below it is reached from there, by names of one component, and no symbolic link is followed on the way.

mod aside;
mod directory;
mod lease;
mod local;
mod lock;
mod marks;
mod removal;
mod spares;
mod staging;

pub use aside::{Aside, before_aside};
pub use directory::{Directory, Durability, Scan};
pub(crate) use directory::{
    MANIFEST, TRASH, checkpoint_failed, link_met, nonce, open_failed, parent_of, read_manifest,
};
pub use lease::hold_lease;
pub use local::LocalDisk;
pub(crate) use lock::Lock;
pub use removal::Stays;
pub use staging::Staging;
pub(crate) use staging::{DIRECT, Finished, StagedFile};

use chrono::{DateTime, Utc};
use std::any::Any;
use std::ffi::{OsStr, OsString};
use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A file system, as far as paths are concerned: those that the user gives.
pub trait Disk: Send + Sync + Debug {
    /// The path from the root directory, whatever the working directory will be.
    fn absolute(&self, path: &Path) -> io::Result<PathBuf>;

    /// Opens a directory. Symbolic links in the path are followed: the user gave it.
    fn open_dir(&self, path: &Path) -> io::Result<Arc<dyn Dir>>;

    /// The time now, which checkpoints are stamped with and rotation goes by.
    fn now(&self) -> DateTime<Utc> {
        Utc::now()
    }

    /// Files of fewer bytes are not worth [recycling](Dir::recycle).
    fn least_recycled(&self) -> u64 {
        64 << 10
    }
}

/// An open directory. It stays the same one whatever becomes of its name. All names are single components; a symbolic
/// link of that name is never followed.
pub trait Dir: Send + Sync + Debug {
    /// For [`recycle`](Dir::recycle) and [`link`](Dir::link), which need two directories of one kind.
    fn as_any(&self) -> &dyn Any;

    /// The directory itself.
    fn stat(&self) -> io::Result<Stat>;

    /// What has this name, if anything has.
    fn stat_of(&self, name: &OsStr) -> io::Result<Option<Stat>>;

    /// What is in the directory, unsorted.
    fn list(&self) -> io::Result<Vec<Entry>>;

    /// Opens a directory in this one. A symbolic link is the error `ELOOP`.
    fn open_dir(&self, name: &OsStr) -> io::Result<Arc<dyn Dir>>;

    /// Opens a regular file for reading. A symbolic link is the error `ELOOP`; directories, pipes and devices are errors
    /// of the kind `InvalidInput`, whose text says what is there. Never waits for the other end of a pipe.
    fn open(&self, name: &OsStr) -> io::Result<Box<dyn OldFile>>;

    /// Creates a directory; an error if anything of that name exists.
    fn create_dir(&self, name: &OsStr) -> io::Result<()>;

    /// Creates a file for writing; an error if anything of that name exists. Where `direct` is true, what
    /// [`write_all_at`](NewFile::write_all_at) may write directly is written so, if the file system can.
    fn create(&self, name: &OsStr, direct: bool) -> io::Result<Box<dyn NewFile>>;

    /// Moves the file `name` to the free name `new` of the directory `to` and opens it for overwriting: blocks that
    /// exist already are written about twice as fast as new ones. `None`, and the file is removed, when it differs
    /// from a new file in more than its content, or when somebody could see the change: it has a second link, or is
    /// open anywhere.
    fn recycle(&self, name: &OsStr, to: &dyn Dir, new: &OsStr, direct: bool) -> io::Result<Option<Box<dyn NewFile>>>;

    /// Gives the file `name` a second name in the directory `to`. Neither may ever be written to again.
    fn link(&self, name: &OsStr, to: &dyn Dir, new: &OsStr) -> io::Result<()>;

    /// Renames to a name that must be free.
    fn rename_new(&self, from: &OsStr, to: &OsStr) -> io::Result<()>;

    /// Renames a file over another, in one step.
    fn replace(&self, from: &OsStr, to: &OsStr) -> io::Result<()>;

    /// Removes a file. A symbolic link is a file here, wherever it leads: only the link goes.
    fn remove_file(&self, name: &OsStr) -> io::Result<()>;

    /// Removes an empty directory.
    fn remove_dir(&self, name: &OsStr) -> io::Result<()>;

    /// Makes the names in the directory durable: created, renamed and removed ones.
    fn sync(&self) -> io::Result<()>;

    /// Bytes that can still be written to the file system, where it tells.
    fn free_space(&self) -> io::Result<Option<u64>>;

    /// How many bytes a name may have.
    fn name_limit(&self) -> usize {
        255
    }

    /// Whether the file system is known to be local: nobody reaches its files past this system.
    fn is_local(&self) -> bool;

    /// Takes the lock file `name`, creating it if need be, and writes `holder` into it; `None` when another has it.
    fn lock(&self, name: &OsStr, holder: &str) -> io::Result<Option<Box<dyn LockFile>>>;
}

/// A lock file that is held. Dying gives it back too.
pub trait LockFile: Send + Sync {
    /// The file.
    fn id(&self) -> FileId;

    /// Gives it back, whoever else has the file open.
    fn release(&self);
}

/// What direct writes are aligned to: a multiple of every device's block size in use.
pub const PAGE: usize = 4096;

/// A file being written. Write, `sync` where durability asks for it, drop.
pub trait NewFile: Send + Sync {
    /// Writes all of `bytes` at `offset`. Where the memory, the offset and the length are multiples of [`PAGE`], the
    /// bytes may go to the device directly.
    fn write_all_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Ends the file after `length` bytes: a recycled one may have been longer.
    fn set_len(&self, length: u64) -> io::Result<()>;

    /// Makes content and length durable. After an error the file must be given up, never synced again: the system
    /// may have dropped the data and would answer "done".
    fn sync(&self) -> io::Result<()>;

    /// The file as it is now.
    fn stat(&self) -> io::Result<Stat>;
}

/// A file being read.
pub trait OldFile: Send + Sync {
    /// The file as it is now.
    fn stat(&self) -> io::Result<Stat>;

    /// Fills `buffer` from `offset`; an error if the file ends before.
    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
}

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
    /// A pipe, a socket, a device.
    Other,
}

/// Which file or directory it is, whatever it is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileId {
    /// The number of the file system.
    pub device: u64,
    /// The number in it.
    pub inode: u64,
}

/// What is known of a file or directory without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// Which one it is.
    pub id: FileId,
    /// What it is.
    pub kind: Kind,
    /// Its length in bytes.
    pub length: u64,
    /// When the content last changed, in seconds and nanoseconds.
    pub modified: (i64, i64),
}

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name.
    pub name: OsString,
    /// What it stands for.
    pub kind: Kind,
}
