//! Where checkpoints live: one narrow trait of file operations, so that the same protocol runs on the operating
//! system and on a simulated disk. Every promise about durability is a sequence of these calls.

mod aside;
mod directory;
mod local;
mod marks;
mod spares;

pub(crate) use aside::{Aside, before_aside};
pub use directory::Durability;
pub(crate) use directory::{
    DIRECT, Directory, Lock, MANIFEST, Scan, StagedFile, Staging, TRASH, nonce, open_failed, parent_of, read_manifest,
};
pub(crate) use local::LocalDisk;

use std::fmt::Debug;
use std::io;
use std::path::Path;

/// The operations of a file system that the crate uses; all else is built of these.
pub(crate) trait Disk: Send + Sync + Debug {
    /// Creates a folder whose parent exists; an error if anything of that name exists.
    fn create_dir(&self, path: &Path) -> io::Result<()>;

    /// Creates a file for writing; an error if anything of that name exists.
    fn create(&self, path: &Path) -> io::Result<Box<dyn NewFile>>;

    /// Renames the file `from` to the free name `to` and opens it for overwriting: blocks that exist already are
    /// written about twice as fast as new ones. `None`, and `from` is left alone, when somebody could see the change:
    /// it has a second link, or is open anywhere.
    fn recycle(&self, from: &Path, to: &Path) -> io::Result<Option<Box<dyn NewFile>>> {
        let _ = (from, to);
        Ok(None)
    }

    /// Gives the file `existing` a second name. Neither name may ever be written to again.
    fn link(&self, existing: &Path, new: &Path) -> io::Result<()>;

    /// Opens a regular file for reading. Symbolic links, folders, pipes and devices are errors of the kind
    /// `InvalidInput`, whose text says what is there.
    fn open(&self, path: &Path) -> io::Result<Box<dyn OldFile>>;

    /// What is in a folder, unsorted.
    fn list(&self, path: &Path) -> io::Result<Vec<Entry>>;

    /// Whether anything has this name.
    fn exists(&self, path: &Path) -> io::Result<bool>;

    /// Makes the names in a folder durable: created, renamed and removed ones.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;

    /// Renames to a name that must be free.
    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Renames a file over another, in one step.
    fn replace(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    fn remove_file(&self, path: &Path) -> io::Result<()>;

    /// Removes an empty folder.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;

    /// Bytes that can still be written to the file system of a folder, where it tells.
    fn free_space(&self, path: &Path) -> io::Result<Option<u64>>;

    /// Takes the lock file `path`, creating it if need be, and writes `holder` into it; `None` when another has it.
    /// Dropping the result, or dying, gives it back.
    fn lock(&self, path: &Path, holder: &str) -> io::Result<Option<Box<dyn Send + Sync>>>;
}

/// What direct writes are aligned to: a multiple of every device's block size in use.
pub(crate) const PAGE: usize = 4096;

/// A file being written. Write, `sync` where durability asks for it, drop.
pub(crate) trait NewFile: Send + Sync {
    /// Writes all of `bytes` at `offset`. Where the memory, the offset and the length are multiples of [`PAGE`], the
    /// bytes may go to the device directly.
    fn write_all_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// From now on what [`write_all_at`](NewFile::write_all_at) may write directly is written so, if the file system can.
    fn go_direct(&mut self) {}

    /// Ends the file after `length` bytes: a recycled one may have been longer.
    fn set_len(&self, length: u64) -> io::Result<()>;

    /// Makes content and length durable. After an error the file must be given up, never synced again: the system
    /// may have dropped the data and would answer "done".
    fn sync(&self) -> io::Result<()>;
}

/// A file being read.
pub(crate) trait OldFile: Send + Sync {
    /// Its length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Fills `buffer` from `offset`; an error if the file ends before.
    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
}

/// A name in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub name: String,
    pub is_dir: bool,
}
