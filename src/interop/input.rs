//! Bytes of a file or of a part of a file, read by position.

use super::probe::open_file;
use crate::error::{Error, Result};
use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
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

/// Bytes read at a time, to find out whether they can be read or to check them: few enough to stay in the core's cache.
pub(super) const CHUNK: u64 = 256 << 10;

/// A shorter range is read.
const DISCARDED: u64 = 64 << 10;

/// Lets the system bring bytes of a file into its cache and send them to `/dev/null`, which copies nothing and fails as
/// reading them would. Returns how many it has brought: fewer if one cannot be read, or where this does not work.
#[cfg(target_os = "linux")]
fn discard(file: &File, offset: u64, length: u64) -> u64 {
    // What waits in other places for a reader is refused.
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let Ok(null) = File::options().write(true).custom_flags(flags).open("/dev/null") else { return 0 };
    // Some systems have a file of that name instead.
    let is_null = |of: std::fs::Metadata| of.file_type().is_char_device() && of.rdev() == rustix::fs::makedev(1, 3);
    if !null.metadata().is_ok_and(is_null) {
        return 0;
    }
    let (mut at, end) = (offset, offset + length);
    while at < end {
        let rest = (end - at) as usize;
        match rustix::fs::sendfile(&null, file, Some(&mut at), rest) {
            Ok(sent) if sent > 0 => {}
            _ => break,
        }
    }
    at - offset
}

#[cfg(not(target_os = "linux"))]
fn discard(_: &File, _: u64, _: u64) -> u64 {
    0
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
        let stamp = Stamp::of(&file).map_err(|e| Error::io("open the file", path, e))?;
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
        let len = self.length(&range)?;
        Some(Input { start: self.start + range.start, len, ..self.clone() })
    }

    /// Returns the length of a range, or `None` if it is outside.
    fn length(&self, range: &Range<u64>) -> Option<u64> {
        range.end.checked_sub(range.start).filter(|_| range.end <= self.len)
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
                    _ => Error::io("read the file", &*self.path, e),
                })?;
                match Stamp::of(file).map_err(|e| Error::io("read the file", &*self.path, e))? {
                    now if now == *stamp => Ok(()),
                    _ => {
                        Err(self
                            .damaged("it has changed since it was opened; open it again when its writer has finished"))
                    }
                }
            }
            Bytes::Memory(bytes) => {
                buffer.copy_from_slice(&bytes[at as usize..at as usize + buffer.len()]);
                Ok(())
            }
        }
    }

    /// Makes sure that the bytes `range` can be read. Where the system can tell, they are not copied out of its cache.
    pub(crate) fn fetch(&self, range: Range<u64>) -> Result<()> {
        let length = self.length(&range).ok_or_else(|| Error::damaged(&*self.path, "the file ends early"))?;
        let Bytes::File(file, _) = &self.bytes else { return Ok(()) };
        let mut at = range.start;
        if length > DISCARDED {
            at += discard(file, self.start + at, length);
        }
        let mut buffer = vec![0; (range.end - at).min(CHUNK) as usize];
        // Whatever the system did not bring, and why, is found by reading; and that the file is still the same.
        loop {
            let chunk = (range.end - at).min(CHUNK);
            self.read(at, &mut buffer[..chunk as usize])?;
            at += chunk;
            if at == range.end {
                return Ok(());
            }
        }
    }

    /// Reads `range`, which must have at most `most` bytes.
    pub(crate) fn read_vec(&self, range: Range<u64>, most: u64) -> Result<Vec<u8>> {
        let length = self.length(&range).ok_or_else(|| Error::damaged(&*self.path, "the file ends early"))?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn what_cannot_be_read_is_found_without_copying_it() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("file");
        let bytes = vec![7; 1 << 20];
        std::fs::write(&path, &bytes).unwrap();
        let input = Input::open(&path).unwrap();
        let part = input.slice(1000..1_000_000).unwrap();
        for range in [0..999_000, 5..70_000, 5..9, 9..9, 999_000..999_000] {
            part.fetch(range.clone()).unwrap_or_else(|e| panic!("{range:?}: {e}"));
        }
        for range in [0..999_001, 999_001..999_001, std::ops::Range { start: 9, end: 5 }] {
            assert!(part.fetch(range.clone()).unwrap_err().is_damaged(), "{range:?}");
        }
        #[cfg(target_os = "linux")]
        {
            let file = File::open(&path).unwrap();
            assert_eq!((discard(&file, 3, 1000), discard(&file, 0, 2 << 20)), (1000, 1 << 20));
            // The system refuses to read a directory.
            assert_eq!(discard(&File::open(temp.path()).unwrap(), 0, 1000), 0);
        }
        // Changed, and cut off.
        File::options().append(true).open(&path).unwrap().write_all(b"more").unwrap();
        assert!(part.fetch(0..999_000).unwrap_err().to_string().contains("has changed"));
        File::options().write(true).open(&path).unwrap().set_len(5000).unwrap();
        assert!(part.fetch(0..999_000).unwrap_err().to_string().contains("ends early"));
        assert!(Input::memory(&path, bytes).fetch(0..(1 << 20)).is_ok());
    }
}
