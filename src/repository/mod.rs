//! Where checkpoints live: the traits that a storage implements.
//!
//! * [`Storage`]: resolves a [`Location`].
//! * [`Repository`]: a directory of checkpoints, with the few ways in which it may change. Each function is one
//!   guarantee.
//! * [`Transaction`] and [`StagedFile`]: a checkpoint that is being written, until it is committed.
//! * [`OpenDir`] and [`ReadFile`]: a directory that is being read.
//!
//! [`Posix`], the default, has directories of a file system, and [`Memory`] those in memory. Saves, restores and
//! managers use nothing else, so a new kind of storage is one implementation of these traits. An object store fits:
//! nothing needs a rename, a link or a lock of the system, and files are written in any order of their parts. The tests
//! of this crate run a manager on one (`tests/repository/object_store.rs` in its git repository), and on a wrapper that
//! counts requests (`tests/repository/counting.rs`).
//!
//! **A wrapper forwards every method, the provided ones too.** The defaults suit a storage that has nothing to report;
//! in a wrapper they hide what the wrapped storage reports, such as its clock and its free space. Methods whose default
//! would lose a guarantee have none.
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
mod open;
mod posix;
mod reading;

#[doc(hidden)]
pub use directory::Directory;
pub use memory::Memory;
pub use names::{Aside, before_aside};
pub(crate) use names::{MANIFEST, before_trash, checkpoint_name, nonce, parent_of, without_mark};
pub use open::{Entry, FileId, Kind, OpenDir, ReadFile, Stat};
pub use posix::Posix;
#[doc(hidden)]
pub use posix::{Dir, Disk, LocalDisk, LockFile, WriteFile, hold_lease};
pub(crate) use posix::{cannot_sync, no_promise, path_of};
pub(crate) use reading::{Thinned, checkpoint_failed, link_met, marks_in, open_failed, read_manifest, thinned_in};

use crate::error::{Error, Result};
use crate::format::Follows;
use crate::location::Location;
use chrono::{DateTime, Utc};
use std::collections::BTreeSet;
use std::fmt::{self, Debug};
use std::io;
use std::sync::Arc;

/// Resolves locations: a file system, memory, or an object store.
///
/// An [`Arc`] of a storage is a storage. A wrapper also wraps what [`repository`](Storage::repository) and
/// [`open`](Storage::open) return, and forwards every method of theirs, the provided ones too.
pub trait Storage: Debug + Send + Sync {
    /// Returns the location independent of the working directory, or `location` itself for a storage without working
    /// directories.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a location that this storage does not serve ([`not_served`]), and if the working
    /// directory is unknown.
    fn absolute(&self, location: &Location) -> Result<Location>;

    /// Returns the directory of checkpoints at `root`, without opening or creating anything.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a location that this storage does not serve ([`not_served`]).
    fn repository(&self, root: &Location, options: &OpenOptions) -> Result<Arc<dyn Repository>>;

    /// Opens one checkpoint for reading. Follows symbolic links in the path.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is nothing; [`Error::InvalidArgument`] for a location that this storage does not
    /// serve ([`not_served`]).
    fn open(&self, location: &Location) -> Result<Arc<dyn OpenDir>>;
}

impl<S: Storage + ?Sized> Storage for Arc<S> {
    fn absolute(&self, location: &Location) -> Result<Location> {
        (**self).absolute(location)
    }

    fn repository(&self, root: &Location, options: &OpenOptions) -> Result<Arc<dyn Repository>> {
        (**self).repository(root, options)
    }

    fn open(&self, location: &Location) -> Result<Arc<dyn OpenDir>> {
        (**self).open(location)
    }
}

/// Returns the error for a `location` that a storage does not serve: it serves `what`.
#[must_use]
pub fn not_served(location: &Location, what: &str) -> Error {
    Error::InvalidArgument(format!(
        "{location} is not served by the storage in use, which has {what}; name a storage that serves it: \
         `Checkpoint::in_storage` to save and restore, `CheckpointDirectory::in_storage` and \
         `CheckpointReader::open_in` to read"
    ))
}

/// How a directory of checkpoints is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct OpenOptions {
    /// What a finished save survives.
    pub durability: Durability,
    /// Whether writers take a lock.
    pub lock: bool,
    /// Whether the next save overwrites the files of removed checkpoints.
    pub recycle: bool,
    /// Whether it is a warning instead of an error that the file system cannot sync what is to be durable. For marks,
    /// removals and repairs; a save that is not durable is an error unless
    /// [`Durability::ProcessCrash`] was chosen.
    pub lenient: bool,
}

impl Default for OpenOptions {
    fn default() -> OpenOptions {
        OpenOptions { durability: Durability::default(), lock: true, recycle: false, lenient: false }
    }
}

/// A directory of checkpoints: its content, and the few ways in which it may change. Each function is one guarantee,
/// which holds even if the process or the machine dies at any time.
///
/// A checkpoint is a directory of files under one name. Readers see it completely or not at all.
///
/// A wrapper forwards every method, the provided ones too.
pub trait Repository: Debug + Send + Sync {
    /// Returns its location for results and messages.
    fn root(&self) -> &Location;

    /// Returns its identity, independent of its path; `None` if it cannot be opened.
    fn id(&self) -> Option<FileId>;

    /// Returns the present time, for checkpoints and retention. Defaults to the system's clock.
    fn now(&self) -> DateTime<Utc> {
        Utc::now()
    }

    /// Returns the directory itself, for reading.
    ///
    /// # Errors
    /// [`Error::Io`] of the kind "not found" if there is none.
    fn dir(&self) -> Result<Arc<dyn OpenDir>>;

    /// Opens the checkpoint `name` for reading. Links are not followed. An open checkpoint stays readable, or reports
    /// that it is gone, but never becomes another checkpoint.
    ///
    /// # Errors
    /// Of the kind `NotFound` if there is nothing of that name.
    fn open(&self, name: &str) -> io::Result<Arc<dyn OpenDir>>;

    /// Returns the content of the directory; empty if it does not exist.
    ///
    /// # Errors
    /// If it cannot be listed.
    fn scan(&self) -> Result<Scan>;

    /// Like [`scan`](Repository::scan). First makes durable what a dead predecessor may have left unsynced, so that no
    /// decision depends on something that a power cut could undo, and gives the checkpoints that an interrupted
    /// [commit](Transaction::commit) was to supersede their names back, and those that were pinned while they were removed
    /// by a writer that has ended. Only the directory's writer calls this. The same
    /// as [`scan`](Repository::scan) if nothing is visible before it is durable, and commits are never interrupted.
    ///
    /// # Errors
    /// As for [`scan`](Repository::scan).
    fn scan_for_writing(&self) -> Result<Scan>;

    /// Creates the directory durably if it is missing.
    ///
    /// # Errors
    /// If it cannot be created.
    fn create(&self) -> Result<()>;

    /// Takes the writer's lock.
    ///
    /// # Errors
    /// [`Error::Locked`] if another writer has it.
    fn lock(&self) -> Result<Lock>;

    /// Checks that this process may use it: it must not be forked from the process that opened it. Returns `Ok(())` if
    /// a forked process shares nothing with the storage.
    ///
    /// # Errors
    /// [`Error::Moved`] if it may not.
    fn check_process(&self) -> Result<()>;

    /// Checks that the path still leads to the open directory, and that the lock is still held. Includes
    /// [`check_process`](Repository::check_process).
    ///
    /// # Errors
    /// [`Error::Moved`] or [`Error::Locked`] otherwise.
    fn check(&self) -> Result<()>;

    /// Checks that a checkpoint can have this name, and can be renamed and removed later.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] otherwise.
    fn check_name(&self, name: &str) -> Result<()>;

    /// Starts the checkpoint `name` of about `bytes` bytes. Another one may have that name until this one is committed;
    /// it is renamed just before.
    ///
    /// # Errors
    /// If it cannot be started.
    fn begin(&self, name: &str, bytes: u64) -> Result<Box<dyn Transaction + '_>>;

    /// Removes the checkpoint `name`, which must be the commit `id`, from the directory, durably, and then its files.
    /// Returns `false`, without any change, if it `stays` because of its marks. Another commit of that name is left
    /// alone, and one that cannot be identified is quarantined.
    ///
    /// # Errors
    /// If it cannot be identified or removed.
    fn remove(&self, name: &str, id: &Follows, stays: Stays<'_>) -> Result<bool>;

    /// Renames the checkpoint `name`, or whatever has that name, so that the name is free and nothing is lost. Returns
    /// its new name, which is durable and shows the reason ([`before_aside`]).
    ///
    /// # Errors
    /// If there is nothing of that name, or it cannot be renamed.
    fn quarantine(&self, name: &str, aside: Aside) -> Result<String>;

    /// Removes what was [quarantined](Repository::quarantine) as damaged, whatever it contains. Returns `false`,
    /// without any change, if it `stays` because of its marks, or if it was not quarantined as damaged.
    ///
    /// # Errors
    /// If it cannot be identified or removed.
    fn discard(&self, aside: &str, stays: Stays<'_>) -> Result<bool>;

    /// Restores the name that a checkpoint had before it was [quarantined](Repository::quarantine).
    ///
    /// # Errors
    /// If it cannot be renamed.
    fn release(&self, aside: &str, name: &str) -> Result<()>;

    /// Writes a small file, such as the index, to the directory itself, atomically and durably. Replaces an existing
    /// one.
    ///
    /// # Errors
    /// If it cannot be written; the file is unchanged then.
    fn put_small(&self, file: &str, bytes: &[u8]) -> Result<()>;

    /// Removes the small file `file`, if possible.
    fn remove_small(&self, file: &str);

    /// Adds the mark `file` to the checkpoint `of`, whose name is `checkpoint`, or replaces it, atomically and durably.
    /// Needs no lock: a removal reads the marks again after it has renamed the checkpoint.
    ///
    /// # Errors
    /// [`Error::Removed`] if that checkpoint was removed.
    fn put_mark(&self, checkpoint: &str, of: &Follows, file: &str, bytes: &[u8]) -> Result<()>;

    /// Removes the mark `file` from the checkpoint `of`, durably. Returns whether there was one.
    ///
    /// # Errors
    /// As for [`put_mark`](Repository::put_mark).
    fn remove_mark(&self, checkpoint: &str, of: &Follows, file: &str) -> Result<bool>;

    /// Makes the marks of the checkpoint `of`, whose name is `checkpoint`, durable, whoever wrote them. Called before
    /// other checkpoints are removed because of them. Does nothing if every readable mark is durable.
    ///
    /// # Errors
    /// As for [`put_mark`](Repository::put_mark).
    fn sync_marks(&self, checkpoint: &str, of: &Follows) -> Result<()>;

    /// Removes these `files` of the checkpoint `of`, whose name is `checkpoint`, if they exist: they belong to
    /// components that a mark declares removed. Makes that mark durable before it removes the first file. The removal
    /// need not be durable: the next writer finds by the mark what is left. A file that other checkpoints share remains
    /// in those.
    ///
    /// # Errors
    /// [`Error::Removed`] if that checkpoint was removed; [`Error::Io`] if a file cannot be removed.
    fn remove_files(&self, checkpoint: &str, of: &Follows, files: &[String]) -> Result<()>;

    /// Removes what dead writers of marks left in a checkpoint. Only the directory's writer calls this.
    fn sweep_marks(&self, checkpoint: &str);

    /// Removes the leftovers that [`scan`](Repository::scan) reported, if possible.
    fn sweep(&self, leftovers: &[String]);

    /// Points the symbolic link `name` to `target` in the same directory, durably and atomically, or removes it if
    /// there is no target. An existing entry of that name is replaced only if it is a link whose target `is_ours`.
    /// Defaults to an error.
    ///
    /// # Errors
    /// If something else has the name, or the link cannot be created.
    fn put_link(&self, name: &str, target: Option<&str>, is_ours: &dyn Fn(&str) -> bool) -> Result<()> {
        let _ = (target, is_ours);
        Err(crate::error::Error::io("link", self.root().join(name), io::ErrorKind::Unsupported.into()))
    }

    /// Returns the free space in bytes, if known. Defaults to `None`.
    fn free_space(&self) -> Option<u64> {
        None
    }

    /// Frees the space of files that are kept for reuse. Defaults to nothing: such files exist only where a storage
    /// [recycles](OpenOptions::recycle).
    fn clear_spares(&self) {}
}

/// Decides whether a checkpoint is kept, given its marks by name.
pub type Stays<'a> = &'a dyn Fn(&[(String, Vec<u8>)]) -> bool;

/// A checkpoint being written. If it is dropped before it is committed, it removes what it wrote.
///
/// A wrapper forwards every method, the provided ones too.
pub trait Transaction: Send + Sync {
    /// Makes space for files of these `lengths`, if possible. A lack of space is reported by the writes.
    /// Defaults to nothing.
    fn make_room(&self, _lengths: &[u64]) {}

    /// Creates a file that will have about `bytes` bytes: of the content, or a mark, which can later be
    /// [replaced](Repository::put_mark) and [removed](Repository::remove_mark) as others.
    ///
    /// # Errors
    /// If it cannot be created.
    fn create(&self, file: &str, bytes: u64) -> Result<Box<dyn StagedFile + '_>>;

    /// Links the file of the checkpoint `earlier` into this checkpoint without writing it again, if it is unchanged
    /// since it was `finished`.
    ///
    /// # Errors
    /// If it has changed, or links are not supported; the file is then written.
    fn reuse(&self, file: &str, earlier: &str, finished: &Finished) -> Result<()>;

    /// Commits the checkpoint with this manifest. It is durable when this returns, and never visible without all its
    /// files. Syncs with this number of `threads`.
    ///
    /// The checkpoints that it `supersedes`, one of which may have its name, are renamed as by
    /// [`quarantine`](Repository::quarantine), durably, as the last step before the commit. Returns the former and the
    /// new names of those that were there. If the process ends between the two, the next
    /// [`scan_for_writing`](Repository::scan_for_writing) undoes the renames.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] if the name is taken. After any error, there is no checkpoint, and those that it was to
    /// supersede have their names.
    fn commit(self: Box<Self>, manifest: &[u8], threads: usize, supersedes: &[String])
    -> Result<Vec<(String, String)>>;
}

/// A file of a checkpoint being written. Every byte is written once, in any order, from several threads.
///
/// A wrapper forwards every method, the provided ones too.
pub trait StagedFile: Send + Sync {
    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// If they cannot be written.
    fn write_all_at(&self, offset: u64, bytes: &[u8]) -> Result<()>;

    /// Returns `true` if it should be written in large pieces of whole [pages](PAGE). Defaults to
    /// `false`.
    fn is_direct(&self) -> bool {
        false
    }

    /// Finishes the file after `bytes`. It is durable when the checkpoint is committed.
    ///
    /// # Errors
    /// If it cannot be finished.
    fn finish(self: Box<Self>, bytes: u64) -> Result<Finished>;
}

/// The state of a file when it was finished. While it stays the same, the file was not written or replaced.
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

/// A guard that holds a directory's write lock until the last clone is dropped. Functions that write the index require
/// it.
#[derive(Clone)]
#[must_use = "the lock is released when it is dropped"]
pub struct Lock {
    _guard: Arc<dyn Send + Sync>,
}

impl Lock {
    /// Creates a lock that is held until `guard` is dropped.
    pub fn new(guard: Arc<dyn Send + Sync>) -> Lock {
        Lock { _guard: guard }
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
    /// A power cut: every file and directory is synced to the device before the save is complete. This is the default.
    #[default]
    PowerLoss,
    /// A crash of the process, but not of the machine: nothing is synced, and the system writes the data later (within
    /// about 30 seconds on Linux). A power cut in between can lose the checkpoint, and older ones that were pruned;
    /// that is detected, and a damaged checkpoint is never restored.
    ///
    /// On file systems that are not known to be local (network file systems, FUSE), files are synced anyway, because
    /// write errors are reported only then.
    ProcessCrash,
}

/// The result of [`Repository::scan`].
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Scan {
    /// Names of directories that may be checkpoints, sorted.
    pub checkpoints: Vec<String>,
    /// Symbolic links, wherever they lead, sorted. None of them is followed.
    pub links: Vec<String>,
    /// Leftovers of a dead writer, safe to remove under the lock.
    pub leftovers: Vec<String>,
    /// What [`Repository::quarantine`] renamed.
    pub aside: Vec<(Aside, String)>,
    /// All names in the directory.
    pub names: BTreeSet<String>,
}

/// Files of at least this many bytes are large: they are written in chunks of several megabytes, and bypass the page
/// cache if there is one.
pub(crate) const DIRECT: u64 = 8 << 20;

/// The alignment of direct writes: a multiple of the block sizes in use.
pub const PAGE: usize = 4096;
