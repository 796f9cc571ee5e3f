//! Bytes of a file or of a part of a file, read by position.

use super::probe::open_file;
use crate::error::{Error, Result};
use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

/// The origin of bytes.
#[derive(Clone)]
enum Bytes {
    File(Arc<File>, Stamp),
    Memory(Arc<[u8]>),
}

/// The state of a file when it was opened.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    len: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(file: &File) -> io::Result<Stamp> {
        let metadata = file.metadata()?;
        Ok(Stamp { len: metadata.len(), modified: (metadata.mtime(), metadata.mtime_nsec()) })
    }
}

/// A range of a file. Clones are cheap and share the open file.
#[derive(Clone)]
pub(crate) struct Input {
    path: Arc<Path>,
    bytes: Bytes,
    start: u64,
    len: u64,
}

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} from {}, {} bytes", self.path.display(), self.start, self.len)
    }
}

impl Input {
    /// Returns all of a file.
    pub(crate) fn open(path: &Path) -> Result<Input> {
        let file = open_file(path)?;
        let stamp = Stamp::of(&file).map_err(|e| Error::io("open", path, e))?;
        Ok(Input { path: path.into(), bytes: Bytes::File(Arc::new(file), stamp), start: 0, len: stamp.len })
    }

    /// Creates an input from bytes in memory.
    pub(crate) fn memory(path: &Path, bytes: impl Into<Arc<[u8]>>) -> Input {
        let bytes = bytes.into();
        let len = bytes.len() as u64;
        Input { path: path.into(), bytes: Bytes::Memory(bytes), start: 0, len }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Returns a part of it, or `None` if the range is outside.
    pub(crate) fn slice(&self, range: Range<u64>) -> Option<Input> {
        let len = range.end.checked_sub(range.start).filter(|_| range.end <= self.len)?;
        Some(Input { start: self.start + range.start, len, ..self.clone() })
    }

    /// Fills `buffer` from `offset`. A file that has changed since it was opened is an error.
    pub(crate) fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let end = offset.checked_add(buffer.len() as u64).filter(|&end| end <= self.len);
        let Some(_) = end else {
            return Err(Error::damaged(&*self.path, "the file ends early"));
        };
        let at = self.start + offset;
        match &self.bytes {
            Bytes::File(file, stamp) => {
                file.read_exact_at(buffer, at).map_err(|e| match e.kind() {
                    io::ErrorKind::UnexpectedEof => Error::damaged(&*self.path, "the file ends early"),
                    _ => Error::io("read", &*self.path, e),
                })?;
                match Stamp::of(file).map_err(|e| Error::io("read", &*self.path, e))? {
                    now if now == *stamp => Ok(()),
                    _ => Err(self.damaged("it was changed since it was opened; open it again when its writer is done")),
                }
            }
            Bytes::Memory(bytes) => {
                buffer.copy_from_slice(&bytes[at as usize..at as usize + buffer.len()]);
                Ok(())
            }
        }
    }

    /// Reads `range`, which must have at most `most` bytes.
    pub(crate) fn read_vec(&self, range: Range<u64>, most: u64) -> Result<Vec<u8>> {
        let length = range.end.checked_sub(range.start).filter(|_| range.end <= self.len);
        let length = length.ok_or_else(|| Error::damaged(&*self.path, "the file ends early"))?;
        if length > most {
            return Err(
                self.damaged(format!("a part that is read at once has {length} bytes, at most {most} are allowed"))
            );
        }
        let mut buffer = vec![0; length as usize];
        self.read(range.start, &mut buffer)?;
        Ok(buffer)
    }

    /// Returns an [`Error::Damaged`] about this file.
    pub(crate) fn damaged(&self, reason: impl Into<String>) -> Error {
        Error::damaged(&*self.path, reason)
    }

    /// Returns an [`Error::Unsupported`] about this file.
    pub(crate) fn unsupported(&self, reason: impl Into<String>) -> Error {
        Error::unsupported(&*self.path, reason)
    }
}
