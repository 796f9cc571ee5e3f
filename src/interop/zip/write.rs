//! Writing zip archives: stored records only, aligned, without time stamps; the same records give the same bytes.

use crate::error::{Error, Result};

/// The destination of an archive.
pub(crate) trait Sink {
    /// Writes all of `bytes` at `offset`.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()>;
}

/// Passes bytes, piece by piece, to the function that it is given.
pub(crate) type Produce<'a> = dyn FnMut(&mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> + 'a;

/// A record that was written.
struct Written {
    name: String,
    offset: u64,
    size: u64,
    crc: u32,
}

/// Writes an archive, record after record.
pub(crate) struct ZipWriter<'a> {
    sink: &'a mut dyn Sink,
    at: u64,
    alignment: u64,
    records: Vec<Written>,
}

/// 1 January 1980, the earliest date in zip archives.
const DATE: u16 = 0x21;

/// The mark of the extra field that torch pads with.
const PADDING: [u8; 2] = *b"FB";

/// UTF-8 names.
const FLAGS: u16 = 0x0800;

fn too_many(what: &str) -> Error {
    Error::InvalidArgument(format!("a zip archive cannot hold {what}"))
}

impl<'a> ZipWriter<'a> {
    /// Creates a writer that starts the data of records on multiples of `alignment`.
    pub(crate) fn new(sink: &'a mut dyn Sink, alignment: u64) -> ZipWriter<'a> {
        ZipWriter { sink, at: 0, alignment, records: Vec::new() }
    }

    /// Writes a record that is in memory.
    pub(crate) fn record(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let mut left = Some(bytes);
        self.stream(name, bytes.len() as u64, &mut |write| left.take().map_or(Ok(()), &mut *write))
    }

    /// Writes a record of `size` bytes, which `produce` passes in pieces.
    pub(crate) fn stream(&mut self, name: &str, size: u64, produce: &mut Produce<'_>) -> Result<()> {
        let offset = self.at;
        let is_large = size >= u64::from(u32::MAX);
        let wide = if is_large { 20 } else { 0 };
        let length = 30 + name.len() as u64 + wide;
        // The padding is a field of at least 4 bytes.
        let begin = (offset + length + 4).next_multiple_of(self.alignment);
        let padding = begin - offset - length - 4;
        let mut crc = crc32fast::Hasher::new();
        let (mut done, sink) = (0u64, &mut *self.sink);
        produce(&mut |bytes| {
            crc.update(bytes);
            let at = begin + done;
            done += bytes.len() as u64;
            if done > size {
                Err(too_many("more bytes than a record was announced with"))
            } else {
                sink.write_at(at, bytes)
            }
        })?;
        if done != size {
            return Err(Error::InvalidArgument(format!("the record {name:?} has {done} bytes, {size} were announced")));
        }
        let crc = crc.finalize();
        let mut header = Vec::with_capacity((begin - offset) as usize);
        header.extend_from_slice(b"PK\x03\x04");
        let plain = if is_large { u32::MAX } else { size as u32 };
        put16(&mut header, if is_large { 45 } else { 20 });
        [FLAGS, 0, 0, DATE].iter().for_each(|field| put16(&mut header, *field));
        [crc, plain, plain].iter().for_each(|field| put32(&mut header, *field));
        put16(&mut header, u16::try_from(name.len()).map_err(|_| too_many("a name of that length"))?);
        put16(&mut header, u16::try_from(wide + 4 + padding).map_err(|_| too_many("an alignment of that size"))?);
        header.extend_from_slice(name.as_bytes());
        if is_large {
            put16(&mut header, 1);
            put16(&mut header, 16);
            [size, size].iter().for_each(|field| header.extend_from_slice(&field.to_le_bytes()));
        }
        header.extend_from_slice(&PADDING);
        put16(&mut header, padding as u16);
        header.resize((begin - offset) as usize, b'Z');
        self.sink.write_at(offset, &header)?;
        self.at = begin + size;
        self.records.push(Written { name: name.to_string(), offset, size, crc });
        Ok(())
    }

    /// Writes the directory. Returns the length of the archive.
    pub(crate) fn finish(self) -> Result<u64> {
        let start = self.at;
        let mut directory = Vec::new();
        for Written { name, offset, size, crc } in &self.records {
            let limit = u64::from(u32::MAX);
            let mut wide: Vec<u64> = Vec::new();
            if *size >= limit {
                wide.extend([*size, *size]);
            }
            if *offset >= limit {
                wide.push(*offset);
            }
            let is_wide = !wide.is_empty();
            directory.extend_from_slice(b"PK\x01\x02");
            let version = if is_wide { 45 } else { 20 };
            [version, version, FLAGS, 0, 0, DATE].iter().for_each(|field| put16(&mut directory, *field));
            let plain = |value: u64| if value >= limit { u32::MAX } else { value as u32 };
            [*crc, plain(*size), plain(*size)].iter().for_each(|field| put32(&mut directory, *field));
            put16(&mut directory, name.len() as u16);
            put16(&mut directory, if is_wide { 4 + 8 * wide.len() as u16 } else { 0 });
            [0, 0, 0].iter().for_each(|field| put16(&mut directory, *field));
            [0, plain(*offset)].iter().for_each(|field| put32(&mut directory, *field));
            directory.extend_from_slice(name.as_bytes());
            if is_wide {
                put16(&mut directory, 1);
                put16(&mut directory, 8 * wide.len() as u16);
                wide.iter().for_each(|field| directory.extend_from_slice(&field.to_le_bytes()));
            }
        }
        let (count, length) = (self.records.len() as u64, directory.len() as u64);
        let needs_wide = count >= u64::from(u16::MAX) || start + length >= u64::from(u32::MAX);
        if needs_wide {
            let at = start + length;
            directory.extend_from_slice(b"PK\x06\x06");
            directory.extend_from_slice(&44u64.to_le_bytes());
            [45, 45].iter().for_each(|field| put16(&mut directory, *field));
            [0, 0].iter().for_each(|field| put32(&mut directory, *field));
            [count, count, length, start].iter().for_each(|field| directory.extend_from_slice(&field.to_le_bytes()));
            directory.extend_from_slice(b"PK\x06\x07");
            put32(&mut directory, 0);
            directory.extend_from_slice(&at.to_le_bytes());
            put32(&mut directory, 1);
        }
        directory.extend_from_slice(b"PK\x05\x06");
        let count16 = u16::try_from(count).unwrap_or(u16::MAX);
        [0, 0, count16, count16].iter().for_each(|field| put16(&mut directory, *field));
        let plain = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        [plain(length), plain(start)].iter().for_each(|field| put32(&mut directory, *field));
        put16(&mut directory, 0);
        self.sink.write_at(start, &directory)?;
        Ok(start + directory.len() as u64)
    }
}

fn put16(bytes: &mut Vec<u8>, field: u16) {
    bytes.extend_from_slice(&field.to_le_bytes());
}

fn put32(bytes: &mut Vec<u8>, field: u32) {
    bytes.extend_from_slice(&field.to_le_bytes());
}

impl Sink for Vec<u8> {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let end = usize::try_from(offset).ok().and_then(|at| at.checked_add(bytes.len()));
        let end = end.ok_or_else(|| Error::out_of_memory("the archive", None))?;
        if self.len() < end {
            self.resize(end, 0);
        }
        self[offset as usize..end].copy_from_slice(bytes);
        Ok(())
    }
}
