//! A range of bytes that a format stores as one unit, such as a record of an archive, a storage or a tensor; stored or
//! deflated.

use super::input::{CHUNK, Input};
use crate::error::{Error, Result};
use flate2::{Decompress, FlushDecompress, Status};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Compressed bytes read at a time.
const COMPRESSED_CHUNK: u64 = 32 << 10;

/// How its bytes are stored.
#[derive(Debug)]
enum Encoding {
    Stored,
    /// With a number that no other blob has.
    Deflated(u64),
}

/// The most cursors that are kept, each of up to 75 KB. More than there are threads that read.
const MAX_CURSORS: usize = 16;

/// Where the last reads of deflated blobs ended before the end, by the number of the blob: the next read often
/// continues there.
static CURSORS: Mutex<Vec<(u64, Box<Cursor>)>> = Mutex::new(Vec::new());

fn cursors() -> MutexGuard<'static, Vec<(u64, Box<Cursor>)>> {
    CURSORS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes the cursor of a blob that is closest before `offset`.
fn take_cursor(blob: u64, offset: u64) -> Option<Box<Cursor>> {
    let mut cursors = cursors();
    let usable = cursors.iter().enumerate().filter(|(_, (own, cursor))| *own == blob && cursor.at <= offset);
    let place = usable.max_by_key(|(_, (_, cursor))| cursor.at)?.0;
    Some(cursors.remove(place).1)
}

fn keep_cursor(blob: u64, cursor: Box<Cursor>) {
    let mut cursors = cursors();
    if cursors.len() == MAX_CURSORS {
        cursors.remove(0);
    }
    cursors.push((blob, cursor));
}

/// A range of bytes, read by position.
#[derive(Debug)]
pub(crate) struct Blob {
    /// What it is called in messages.
    name: String,
    stored: Input,
    encoding: Encoding,
    len: u64,
    crc: Option<u32>,
    /// Whether the checksum has been compared.
    verified: AtomicBool,
}

impl Blob {
    /// Returns bytes as they are in the file.
    pub(crate) fn stored(name: impl Into<String>, stored: Input, crc: Option<u32>) -> Blob {
        let len = stored.len();
        Blob { name: name.into(), stored, encoding: Encoding::Stored, len, crc, verified: AtomicBool::new(false) }
    }

    /// Creates a blob of `len` deflated bytes.
    pub(crate) fn deflated(name: impl Into<String>, stored: Input, len: u64, crc: Option<u32>) -> Blob {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let encoding = Encoding::Deflated(NEXT.fetch_add(1, Ordering::Relaxed));
        Blob { name: name.into(), stored, encoding, len, crc, verified: AtomicBool::new(false) }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn has_checksum(&self) -> bool {
        self.crc.is_some()
    }

    /// Returns the position of its bytes, if they are stored as they are.
    pub(crate) fn input(&self) -> Option<&Input> {
        matches!(self.encoding, Encoding::Stored).then_some(&self.stored)
    }

    /// Returns an [`Error::Damaged`] about it.
    pub(crate) fn damaged(&self, reason: impl AsRef<str>) -> Error {
        self.stored.damaged(format!("{}: {}", self.name, reason.as_ref()))
    }

    /// Fills `buffer` from `offset`. Verifies nothing.
    pub(crate) fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        if offset.checked_add(buffer.len() as u64).is_none_or(|end| end > self.len) {
            return Err(self.damaged("it ends early"));
        }
        let Encoding::Deflated(number) = self.encoding else {
            return self.stored.read(offset, buffer);
        };
        if buffer.is_empty() {
            return Ok(());
        }
        let mut cursor = take_cursor(number, offset).unwrap_or_default();
        let mut skipped = [0; 8 << 10];
        while cursor.at < offset {
            let length = (offset - cursor.at).min(skipped.len() as u64) as usize;
            self.inflate(&mut cursor, &mut skipped[..length])?;
        }
        self.inflate(&mut cursor, buffer)?;
        if cursor.at < self.len {
            keep_cursor(number, cursor);
        }
        Ok(())
    }

    /// Makes sure that the bytes `range` can be read, and verifies nothing. Returns `false` if that takes reading them,
    /// because they are compressed.
    pub(crate) fn fetch(&self, range: Range<u64>) -> Result<bool> {
        self.input().map_or(Ok(false), |input| input.fetch(range).map(|()| true))
    }

    /// Returns all bytes, at most `most`, verified.
    pub(crate) fn read_vec(&self, most: u64) -> Result<Vec<u8>> {
        if self.len > most {
            return Err(self.damaged(format!("it has {} bytes, at most {most} are allowed", self.len)));
        }
        let mut bytes = Vec::new();
        let mut at = 0;
        // Grows as bytes are read: a false length costs nothing.
        while at < self.len {
            let length = (self.len - at).min(CHUNK) as usize;
            bytes.resize(at as usize + length, 0);
            self.read(at, &mut bytes[at as usize..])?;
            at += length as u64;
        }
        self.check(crc32fast::hash(&bytes))?;
        Ok(bytes)
    }

    /// Fills `target`, which has the blob's length, and verifies the bytes.
    pub(crate) fn read_all(&self, target: &mut [u8]) -> Result<()> {
        let mut hasher = crc32fast::Hasher::new();
        let mut at = 0;
        for chunk in target.chunks_mut(CHUNK as usize) {
            self.read(at, chunk)?;
            if self.crc.is_some() {
                hasher.update(chunk);
            }
            at += chunk.len() as u64;
        }
        self.check(hasher.finalize())
    }

    /// Compares the checksum, if there is one that has not been compared.
    pub(crate) fn verify(&self) -> Result<()> {
        if self.crc.is_none() || self.verified.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.verify_again()
    }

    /// Compares the checksum, if there is one.
    pub(crate) fn verify_again(&self) -> Result<()> {
        if self.crc.is_none() {
            return Ok(());
        }
        let mut hasher = crc32fast::Hasher::new();
        let mut buffer = vec![0; self.len.min(CHUNK) as usize];
        let mut at = 0;
        while at < self.len {
            let length = (self.len - at).min(CHUNK) as usize;
            self.read(at, &mut buffer[..length])?;
            hasher.update(&buffer[..length]);
            at += length as u64;
        }
        self.check(hasher.finalize())
    }

    fn check(&self, found: u32) -> Result<()> {
        match self.crc {
            Some(written) if written != found => {
                let reason = format!("its CRC-32 is {found:08x}, {written:08x} was written: the bytes have changed");
                Err(self.damaged(reason))
            }
            _ => {
                self.verified.store(true, Ordering::Relaxed);
                Ok(())
            }
        }
    }

    /// Fills `target` with the next bytes of a deflated blob.
    fn inflate(&self, cursor: &mut Cursor, target: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < target.len() {
            if cursor.is_at_end {
                return Err(self.damaged("its compressed data end early"));
            }
            self.refill(cursor)?;
            done += self.step(cursor, &mut target[done..])?;
        }
        cursor.at += done as u64;
        if cursor.at == self.len {
            // No more bytes may follow.
            while !cursor.is_at_end {
                self.refill(cursor)?;
                if self.step(cursor, &mut [0])? > 0 {
                    return Err(self.damaged(format!("its compressed data are longer than {} bytes", self.len)));
                }
            }
        }
        Ok(())
    }

    /// Reads more compressed bytes if all have been used.
    fn refill(&self, cursor: &mut Cursor) -> Result<()> {
        if cursor.used == cursor.buffer.len() && cursor.read < self.stored.len() {
            let length = (self.stored.len() - cursor.read).min(COMPRESSED_CHUNK);
            cursor.buffer.resize(length as usize, 0);
            self.stored.read(cursor.read, &mut cursor.buffer)?;
            cursor.read += length;
            cursor.used = 0;
        }
        Ok(())
    }

    /// Calls the decompressor once. Returns the number of bytes it produced.
    fn step(&self, cursor: &mut Cursor, target: &mut [u8]) -> Result<usize> {
        let (before_in, before_out) = (cursor.state.total_in(), cursor.state.total_out());
        let input = &cursor.buffer[cursor.used..];
        let status = cursor.state.decompress(input, target, FlushDecompress::None);
        let status = status.map_err(|e| self.damaged(format!("its compressed data are not right: {e}")))?;
        let used = (cursor.state.total_in() - before_in) as usize;
        let given = (cursor.state.total_out() - before_out) as usize;
        cursor.used += used;
        cursor.is_at_end = status == Status::StreamEnd;
        if used == 0 && given == 0 && !cursor.is_at_end {
            return Err(self.damaged("its compressed data end early"));
        }
        Ok(given)
    }
}

impl Drop for Blob {
    fn drop(&mut self) {
        if let Encoding::Deflated(number) = self.encoding {
            cursors().retain(|(own, _)| *own != number);
        }
    }
}

/// The position in a deflated blob where a read has ended.
#[derive(Debug)]
struct Cursor {
    state: Decompress,
    /// Decompressed bytes so far.
    at: u64,
    is_at_end: bool,
    /// Compressed bytes, of which the first `used` have been used.
    buffer: Vec<u8>,
    used: usize,
    /// Compressed bytes read so far.
    read: u64,
}

impl Default for Cursor {
    fn default() -> Self {
        Cursor { state: Decompress::new(false), at: 0, is_at_end: false, buffer: Vec::new(), used: 0, read: 0 }
    }
}
