//! The bytes of a pickle, read forward through a small buffer.

use super::{PickleError, Step};
use crate::interop::blob::Blob;

/// Bytes read at a time.
const BUFFER: usize = 64 << 10;

/// The longest text or bytes that are read at once beyond the buffer.
const MAX_RUN: u64 = 1 << 30;

/// Reads a blob forward.
#[derive(Debug)]
pub(crate) struct PickleReader<'a> {
    blob: &'a Blob,
    buffer: Vec<u8>,
    /// The offset of the buffer in the blob, and the position in the buffer.
    start: u64,
    at: usize,
}

impl<'a> PickleReader<'a> {
    pub(crate) fn new(blob: &'a Blob) -> PickleReader<'a> {
        PickleReader { blob, buffer: Vec::new(), start: 0, at: 0 }
    }

    /// Creates a reader from `offset`.
    pub(crate) fn at(blob: &'a Blob, offset: u64) -> PickleReader<'a> {
        PickleReader { blob, buffer: Vec::new(), start: offset, at: 0 }
    }

    /// Returns bytes before the next one.
    pub(crate) fn position(&self) -> u64 {
        self.start + self.at as u64
    }

    /// Returns bytes that are left.
    pub(crate) fn left(&self) -> u64 {
        self.blob.len().saturating_sub(self.position())
    }

    fn fill(&mut self) -> Step<()> {
        let position = self.position();
        let length = self.left().min(BUFFER as u64) as usize;
        if length == 0 {
            return Err("it ends early".into());
        }
        self.buffer.resize(length, 0);
        self.blob.read(position, &mut self.buffer).map_err(PickleError::Read)?;
        (self.start, self.at) = (position, 0);
        Ok(())
    }

    pub(crate) fn byte(&mut self) -> Step<u8> {
        if self.at == self.buffer.len() {
            self.fill()?;
        }
        let byte = self.buffer.get(self.at).copied().ok_or("it ends early")?;
        self.at += 1;
        Ok(byte)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Step<[u8; N]> {
        let mut array = [0; N];
        for byte in &mut array {
            *byte = self.byte()?;
        }
        Ok(array)
    }

    /// Returns the next `length` bytes. No memory is taken for more than is there.
    pub(crate) fn bytes(&mut self, length: u64) -> Step<Vec<u8>> {
        if length > self.left() {
            return Err(format!("{length} bytes should follow, {} are left", self.left()).into());
        }
        if length > MAX_RUN {
            return Err(format!("one object has {length} bytes, at most {MAX_RUN} are read").into());
        }
        let ready = (self.buffer.len() - self.at).min(length as usize);
        let mut bytes = self.buffer[self.at..self.at + ready].to_vec();
        self.at += ready;
        let rest = length as usize - ready;
        if rest > 0 {
            bytes.resize(length as usize, 0);
            let position = self.position();
            self.blob.read(position, &mut bytes[ready..]).map_err(PickleError::Read)?;
            (self.start, self.at) = (position + rest as u64, 0);
            self.buffer.clear();
        }
        Ok(bytes)
    }

    /// Passes over the next `length` bytes, of which it reads none that are not in the buffer.
    pub(crate) fn skip(&mut self, length: u64) {
        if length <= (self.buffer.len() - self.at) as u64 {
            self.at += length as usize;
        } else {
            (self.start, self.at) = (self.position().saturating_add(length), 0);
            self.buffer.clear();
        }
    }

    /// Returns the bytes before the next line feed.
    pub(crate) fn line(&mut self, most: usize) -> Step<Vec<u8>> {
        let mut line = Vec::new();
        loop {
            match self.byte()? {
                b'\n' => return Ok(line),
                _ if line.len() == most => return Err(format!("a line is longer than {most} bytes").into()),
                byte => line.push(byte),
            }
        }
    }
}
