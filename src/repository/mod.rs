//! Where checkpoints live: the traits that a storage implements.
//!
//! * [`Storage`]: what a [`Location`] leads to.
//! * [`Repository`]: a directory of checkpoints, with the few ways in which it may change. Each function is one guarantee.
//! * [`Transaction`] and [`StagedFile`]: a checkpoint that is being written, until it is committed.
//! * [`OpenDir`] and [`ReadFile`]: a directory that is being read.
//!
//! [`Posix`], the default, has directories of a file system, and [`Memory`] those in memory. Saves, restores and managers
//! use nothing else, so a new kind of storage is one implementation of these traits. An object store fits: nothing needs a
//! rename, a link or a lock of the system, and files are written in any order of their parts. `tests/repository` in the
//! repository of this crate has one, and a wrapper that counts requests.
//!
//! A storage knows no file format but one: what identifies a commit is in its manifest
//! ([`Manifest::from_bytes`](crate::format::Manifest::from_bytes)).
//!
//! ```
//! # fn main() -> tch_checkpoint::Result<()> {
//! use std::sync::Arc;
//! use tch_checkpoint::repository::{Memory, OpenOptions, Repository, Storage};
//! use tch_checkpoint::{Checkpoint, CheckpointDirectory, CheckpointManager, CheckpointReader, Counter};
//!
//! let memory = Arc::new(Memory::default());
//! let step = Counter::new(0);
//! let checkpoint = Checkpoint::in_storage(memory.clone()).track("step", &step)?;
//! let mut manager = CheckpointManager::builder(checkpoint, "mem://run").max_to_keep(2).open()?;
//! for _ in 0..3 {
//!     step.increment();
//!     manager.save_at(step.get())?;
//! }
//! let repository = memory.repository(&"mem://run".into(), &OpenOptions::default())?;
//! assert_eq!(repository.scan()?.checkpoints, ["ckpt-2", "ckpt-3"]);
//! let reader = CheckpointReader::open_in(&*memory, "mem://run/ckpt-3")?;
//! assert!(reader.verify().is_intact());
//! assert_eq!(CheckpointDirectory::in_storage(memory, "mem://run").checkpoints()?.len(), 2);
//! # Ok(())
//! # }
//! ```

mod directory;
mod memory;
mod names;
mod posix;
mod reading;

#[doc(hidden)]
pub use directory::Directory;
pub use memory::Memory;
pub use names::{Aside, before_aside};
pub(crate) use names::{MANIFEST, TRASH, checkpoint_name, nonce, parent_of};
pub use posix::Posix;
#[doc(hidden)]
pub use posix::{Dir, Disk, LocalDisk, LockFile, WriteFile, hold_lease};
pub(crate) use reading::{checkpoint_failed, link_met, open_failed, read_manifest};

use crate::error::{Error, Result};
use crate::format::Follows;
use crate::location::Location;
use chrono::{DateTime, Utc};
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fmt::{self, Debug};
use std::io;
use std::sync::Arc;

/// Where the locations that a user gives lead: a file system, memory, an object store.
pub trait Storage: Debug + Send + Sync {
    /// Returns the location whatever the working directory will be. Defaults to `location` itself.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a location that this storage does not serve ([`not_served`]), and when the working
    /// directory cannot be found out.
    fn absolute(&self, location: &Location) -> Result<Location> {
        Ok(location.clone())
    }

    /// Returns the directory of checkpoints at `root`. Nothing is opened or created yet.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a location that this storage does not serve ([`not_served`]).
    fn repository(&self, root: &Location, options: &OpenOptions) -> Result<Arc<dyn Repository>>;

    /// Opens one checkpoint for reading. Symbolic links in a path are followed: the user gave it.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is nothing; [`Error::InvalidArgument`] for a location that this storage does not serve
    /// ([`not_served`]).
    fn open(&self, location: &Location) -> Result<Arc<dyn OpenDir>>;
}

/// Returns the error for a `location` that a storage does not serve: it serves `what`.
#[must_use]
pub fn not_served(location: &Location, what: &str) -> Error {
    Error::InvalidArgument(format!(
        "{location} is not served by the storage in use, which has {what}; track the objects in a checkpoint of a storage \
         that serves it (`Checkpoint::in_storage`)"
    ))
}

/// How a directory of checkpoints is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct OpenOptions {
    /// What a finished save survives.
    pub durability: Durability,
    /// Whether writers keep each other out by a lock.
    pub lock: bool,
    /// Whether the files of removed checkpoints are overwritten by the next.
    pub recycle: bool,
}

impl Default for OpenOptions {
    fn default() -> OpenOptions {
        OpenOptions { durability: Durability::default(), lock: true, recycle: false }
    }
}

/// A directory of checkpoints: what is in it, and the few ways in which it may change. Each function is one guarantee,
/// which holds whenever the process or the machine dies.
///
/// A checkpoint is a directory of files under one name. Readers see it whole or not at all.
pub trait Repository: Debug + Send + Sync {
    /// Where it is, as results and messages show it.
    fn root(&self) -> &Location;

    /// Which one it is, whatever path it was opened by; `None` when it cannot be opened.
    fn id(&self) -> Option<FileId>;

    /// Returns the time now, which checkpoints are stamped with and rotation goes by.
    fn now(&self) -> DateTime<Utc> {
        Utc::now()
    }

    /// Returns the directory itself, for reading.
    ///
    /// # Errors
    /// [`Error::Io`] of the kind "not found" when there is none.
    fn dir(&self) -> Result<Arc<dyn OpenDir>>;

    /// Opens the checkpoint `name` for reading. Links are not followed. What is opened stays readable, or says that it
    /// is gone, but never changes into another checkpoint.
    ///
    /// # Errors
    /// Of the kind `NotFound` when there is nothing of that name.
    fn open(&self, name: &str) -> io::Result<Arc<dyn OpenDir>>;

    /// Returns what the directory holds; nothing where there is none.
    ///
    /// # Errors
    /// When it cannot be listed.
    fn scan(&self) -> Result<Scan>;

    /// Like [`scan`](Repository::scan). First makes durable what a predecessor that died may have left undone, so that
    /// nothing is acted upon that a power cut could still undo.
    ///
    /// # Errors
    /// As for [`scan`](Repository::scan).
    fn scan_for_writing(&self) -> Result<Scan> {
        self.scan()
    }

    /// Creates it where it is missing, durably.
    ///
    /// # Errors
    /// When it cannot be created.
    fn create(&self) -> Result<()>;

    /// Takes the right to write.
    ///
    /// # Errors
    /// [`Error::Locked`] when another writer has it.
    fn lock(&self) -> Result<Lock>;

    /// Returns whether this process may use it: not one that was forked from the process that opened it.
    ///
    /// # Errors
    /// [`Error::Moved`] when it may not.
    fn check_process(&self) -> Result<()> {
        Ok(())
    }

    /// Returns whether the path still leads to what was opened, and the lock is still held.
    ///
    /// # Errors
    /// [`Error::Moved`] or [`Error::Locked`] when not.
    fn check(&self) -> Result<()> {
        self.check_process()
    }

    /// Returns whether a checkpoint can have this name, and be set aside and removed later.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when not.
    fn check_name(&self, _name: &str) -> Result<()> {
        Ok(())
    }

    /// Begins the checkpoint `name`, for which about `bytes` will be written. Another one may have that name until this
    /// one is committed: it is then set aside just before.
    ///
    /// # Errors
    /// When it cannot be begun.
    fn begin(&self, name: &str, bytes: u64) -> Result<Box<dyn Transaction + '_>>;

    /// Takes the checkpoint `name`, which must be the commit `id`, out of the directory, durably, and then removes its
    /// files; `false`, and nothing has changed, when its marks say that it `stays`. What has the name but is another
    /// commit is left alone, and what no longer tells which one it is is set aside.
    ///
    /// # Errors
    /// When it cannot be told what it is, or it cannot be taken out.
    fn remove(&self, name: &str, id: &Follows, stays: Stays<'_>) -> Result<bool>;

    /// Sets the checkpoint `name`, or whatever has that name, aside: the name is free, and nothing of it is lost.
    /// Returns its new name, which is durable and tells why ([`before_aside`]).
    ///
    /// # Errors
    /// When there is nothing of that name, or it cannot be moved.
    fn quarantine(&self, name: &str, aside: Aside) -> Result<String>;

    /// Removes what was [set aside](Repository::quarantine) as damaged, whatever is in it; `false`, and nothing has
    /// changed, when its marks say that it `stays`, or it is none of those. Defaults to leaving it.
    ///
    /// # Errors
    /// When it cannot be told what it is, or it cannot be taken out.
    fn discard(&self, _aside: &str, _stays: Stays<'_>) -> Result<bool> {
        Ok(false)
    }

    /// Gives a checkpoint back the name it had before it was [set aside](Repository::quarantine).
    ///
    /// # Errors
    /// When it cannot be moved.
    fn release(&self, aside: &str, name: &str) -> Result<()>;

    /// Writes a small file beside the checkpoints, such as the index, durably, in the place of what has its name, in
    /// one step.
    ///
    /// # Errors
    /// When it cannot be written; the file is then as before.
    fn put_small(&self, file: &str, bytes: &[u8]) -> Result<()>;

    /// Removes the small file `file`, as far as that goes.
    fn remove_small(&self, file: &str);

    /// Adds the mark `file` to the checkpoint `of`, which is called `checkpoint`, or replaces it, durably and in one
    /// step. Needs no lock: whoever removes a checkpoint reads its marks again when it has left its name.
    ///
    /// # Errors
    /// [`Error::Removed`] when that checkpoint is not there any more, or was removed meanwhile.
    fn put_mark(&self, checkpoint: &str, of: &Follows, file: &str, bytes: &[u8]) -> Result<()>;

    /// Takes the mark `file` away from the checkpoint `of`, durably. Returns whether there was one.
    ///
    /// # Errors
    /// As for [`put_mark`](Repository::put_mark).
    fn remove_mark(&self, checkpoint: &str, of: &Follows, file: &str) -> Result<bool>;

    /// Removes what writers of marks left in a checkpoint that died. Only the directory's writer does.
    fn sweep_marks(&self, _checkpoint: &str) {}

    /// Removes what [`scan`](Repository::scan) called leftovers, as far as that goes.
    fn sweep(&self, leftovers: &[String]);

    /// Returns how many bytes can be written, as far as that is known. Defaults to `None`.
    fn free_space(&self) -> Option<u64> {
        None
    }

    /// Gives back the room of what is kept to be overwritten.
    fn clear_spares(&self) {}
}

/// Whether the marks of a checkpoint, by name, say that it stays.
pub type Stays<'a> = &'a dyn Fn(&[(String, Vec<u8>)]) -> bool;

/// A checkpoint being written. Dropped before it is committed, it removes what it wrote.
pub trait Transaction: Send + Sync {
    /// Makes room for files of these `lengths`, if that can be. Refuses nothing: the writing finds out.
    fn make_room(&self, _lengths: &[u64]) {}

    /// Creates a file of `bytes` in the end.
    ///
    /// # Errors
    /// When it cannot be created.
    fn create(&self, file: &str, bytes: u64) -> Result<Box<dyn StagedFile + '_>>;

    /// Gives this checkpoint the file of the checkpoint `earlier`, without its bytes being written again, if it is
    /// still what it was when it was `finished`.
    ///
    /// # Errors
    /// When it is not, or that cannot be done here; the file is then written.
    fn reuse(&self, file: &str, earlier: &str, finished: &Finished) -> Result<()>;

    /// Makes the checkpoint one, with this manifest: durable when this returns, and never visible without all its
    /// files. Syncs with so many `threads`.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] when the name is taken. After any error there is no
    /// checkpoint.
    fn commit(self: Box<Self>, manifest: &[u8], threads: usize) -> Result<()>;
}

/// A file of a checkpoint being written. Every byte is written once, in any order, from several threads.
pub trait StagedFile: Send + Sync {
    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// When they cannot be written.
    fn write_all_at(&self, offset: u64, bytes: &[u8]) -> Result<()>;

    /// Returns `true` if it had better be written in long pieces of whole [pages](PAGE).
    fn is_direct(&self) -> bool {
        false
    }

    /// Ends the file after `bytes`. It is durable when the checkpoint is committed.
    ///
    /// # Errors
    /// When it cannot be ended.
    fn finish(self: Box<Self>, bytes: u64) -> Result<Finished>;
}

/// What a file was when it was finished: as long as this stays so, nobody has written to it or exchanged it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finished {
    id: FileId,
    length: u64,
    modified: (i64, i64),
}

impl From<Stat> for Finished {
    fn from(stat: Stat) -> Finished {
        Finished { id: stat.id, length: stat.length, modified: stat.modified }
    }
}

/// The right to write into a directory, until the last clone is dropped. Whoever may write the index shows it.
#[derive(Clone)]
pub struct Lock(#[expect(dead_code, reason = "it is held, and that is all")] Arc<dyn Send + Sync>);

impl Lock {
    /// Held until `guard` is dropped.
    pub fn new(guard: Arc<dyn Send + Sync>) -> Lock {
        Lock(guard)
    }
}

impl fmt::Debug for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lock")
    }
}

/// What a finished save survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Durability {
    /// A power cut: every file and directory is synced to the device before the save counts as done. The default.
    #[default]
    PowerLoss,
    /// The death of the process, but not of the machine: nothing is synced, the system writes the data when it likes
    /// (within about 30 seconds on Linux). A power cut in between can lose the checkpoint, and with it older ones
    /// that were removed to make room; it is detected, never restored damaged.
    ///
    /// On file systems that are not known to be local (network file systems, FUSE) the files are synced all the same:
    /// only that tells whether they could be written.
    ProcessCrash,
}

/// What [`Repository::scan`] finds.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Scan {
    /// Names of directories that may be checkpoints, sorted.
    pub checkpoints: Vec<String>,
    /// Symbolic links, wherever they lead, sorted. None of them is followed.
    pub links: Vec<String>,
    /// Leftovers of a dead writer: safe to remove under the lock.
    pub leftovers: Vec<String>,
    /// What [`Repository::quarantine`] set aside.
    pub aside: Vec<(Aside, String)>,
    /// The names of everything that is there, whatever it is.
    pub names: BTreeSet<String>,
}

/// Files of at least so many bytes are long: they are written in chunks of several megabytes, and past the page cache
/// where there is one.
pub(crate) const DIRECT: u64 = 8 << 20;

/// What direct writes are aligned to: a multiple of every device's block size in use.
pub const PAGE: usize = 4096;

/// A directory that is open for reading. It stays the same one whatever becomes of its name. All names are single
/// components; a symbolic link of that name is never followed.
pub trait OpenDir: Debug + Send + Sync {
    /// Returns the directory itself.
    fn stat(&self) -> io::Result<Stat>;

    /// Returns what has this name, if anything has.
    fn stat_of(&self, name: &OsStr) -> io::Result<Option<Stat>>;

    /// Returns what is in the directory, unsorted.
    fn list(&self) -> io::Result<Vec<Entry>>;

    /// Opens a regular file for reading. A symbolic link is the error `ELOOP`; directories, pipes and devices are
    /// errors of the kind `InvalidInput`, whose text says what is there. Never waits for the other end of a pipe.
    fn open(&self, name: &OsStr) -> io::Result<Box<dyn ReadFile>>;
}

/// A file being read.
pub trait ReadFile: Send + Sync {
    /// Returns the file as it is now.
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
#[non_exhaustive]
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

impl Stat {
    /// Returns what is known of one of this `kind` and `length` in bytes.
    #[must_use]
    pub fn new(id: FileId, kind: Kind, length: u64) -> Stat {
        Stat { id, kind, length, modified: (0, 0) }
    }

    /// Sets when the content last changed, in seconds and nanoseconds. Defaults to 0: storages whose files cannot change
    /// under one [`FileId`] need no time.
    #[must_use]
    pub fn modified(mut self, seconds: i64, nanoseconds: i64) -> Stat {
        self.modified = (seconds, nanoseconds);
        self
    }
}

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry {
    /// The name.
    pub name: OsString,
    /// What it stands for.
    pub kind: Kind,
}

impl Entry {
    /// Returns the entry of `name`.
    #[must_use]
    pub fn new(name: impl Into<OsString>, kind: Kind) -> Entry {
        Entry { name: name.into(), kind }
    }
}
