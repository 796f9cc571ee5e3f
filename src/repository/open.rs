//! A directory and a file that are open for reading, and what there is to know of them.

use std::ffi::{OsStr, OsString};
use std::fmt::Debug;
use std::io;

/// A directory that is open for reading. It remains the same directory even if its name changes. All names are single
/// components; a symbolic link of that name is never followed.
pub trait OpenDir: Debug + Send + Sync {
    /// Returns the directory itself.
    ///
    /// # Errors
    /// Those of the storage.
    fn stat(&self) -> io::Result<Stat>;

    /// Returns the entry with this name, if there is one.
    ///
    /// # Errors
    /// Those of the storage.
    fn stat_of(&self, name: &OsStr) -> io::Result<Option<Stat>>;

    /// Returns the entries of the directory, unsorted.
    ///
    /// # Errors
    /// Those of the storage.
    fn list(&self) -> io::Result<Vec<Entry>>;

    /// Opens a regular file for reading. A symbolic link is the error `ELOOP`; directories, pipes and devices are
    /// errors of the kind `InvalidInput`, whose text states what is there. Never waits for the other end of a pipe.
    ///
    /// # Errors
    /// As above, and those of the storage.
    fn open(&self, name: &OsStr) -> io::Result<Box<dyn ReadFile>>;
}

/// A file being read.
pub trait ReadFile: Send + Sync {
    /// Returns the file as it is now.
    ///
    /// # Errors
    /// Those of the storage.
    fn stat(&self) -> io::Result<Stat>;

    /// Fills `buffer` from `offset`; an error if the file ends before.
    ///
    /// # Errors
    /// `UnexpectedEof` if the file ends before, and those of the storage.
    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
}

/// The kind of an entry.
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

/// The identity of a file or directory, independent of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileId {
    /// The number of the file system.
    pub device: u64,
    /// The number in it.
    pub inode: u64,
}

/// Metadata of a file or directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stat {
    /// Its identity.
    pub id: FileId,
    /// Its kind.
    pub kind: Kind,
    /// Its length in bytes.
    pub length: u64,
    /// When the content last changed, in seconds and nanoseconds.
    pub modified: (i64, i64),
}

impl Stat {
    /// Creates the metadata of an entry of this `kind` and `length` in bytes.
    #[must_use]
    pub fn new(id: FileId, kind: Kind, length: u64) -> Stat {
        Stat { id, kind, length, modified: (0, 0) }
    }

    /// Sets when the content last changed, in seconds and nanoseconds. Defaults to 0: storages whose files cannot
    /// change under one [`FileId`] need no time.
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
    /// Its kind.
    pub kind: Kind,
}

impl Entry {
    /// Returns the entry of `name`.
    #[must_use]
    pub fn new(name: impl Into<OsString>, kind: Kind) -> Entry {
        Entry { name: name.into(), kind }
    }
}
