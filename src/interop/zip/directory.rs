//! The central directory of a zip archive.

use super::MAX_DEFLATE;
use crate::error::Result;
use crate::interop::input::Input;
use std::collections::BTreeSet;

/// The longest directory that is read.
const MAX_DIRECTORY: u64 = 512 << 20;

/// The end record, without its comment.
const END: usize = 22;

/// The zip64 end record, and the locator between it and the end record.
const END64: u64 = 56;
const LOCATOR: u64 = 20;

/// A record as the directory lists it.
#[derive(Debug)]
pub(super) struct Entry {
    pub name: String,
    pub raw_name: Vec<u8>,
    pub flags: u16,
    pub method: u16,
    pub crc: u32,
    pub compressed: u64,
    pub size: u64,
    pub offset: u64,
}

#[derive(Debug)]
pub(super) struct Directory {
    /// Its start: all records lie before it.
    pub start: u64,
    pub entries: Vec<Entry>,
}

/// Little-endian numbers, one after another.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (first, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(first)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2)?.first_chunk().map(|bytes| u16::from_le_bytes(*bytes))
    }

    fn u32(&mut self) -> Option<u32> {
        self.take(4)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
    }

    fn u64(&mut self) -> Option<u64> {
        self.take(8)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
    }
}

/// Reads all entries.
pub(super) fn read_directory(input: &Input) -> Result<Directory> {
    let damaged = |reason: &str| input.damaged(format!("the zip archive: {reason}"));
    let end = find_end(input)?;
    let (start, length, count) = (end.start, end.length, end.count);
    let stop = start.checked_add(length).filter(|&stop| stop == end.at);
    let Some(stop) = stop else {
        return Err(damaged("its directory does not end where its end record starts"));
    };
    // 46 bytes an entry, at least.
    if count > length / 46 {
        return Err(damaged(&format!("{count} records do not fit into a directory of {length} bytes")));
    }
    let bytes = input.read_vec(start..stop, MAX_DIRECTORY)?;
    let mut fields = Fields(&bytes);
    let mut entries = Vec::new();
    let mut names = BTreeSet::new();
    for _ in 0..count {
        let entry =
            entry(&mut fields).ok_or_else(|| damaged("its directory ends early, or has a record that is not right"))?;
        check(&entry).map_err(|reason| damaged(&format!("the record {:?}: {reason}", entry.name)))?;
        if !names.insert(entry.raw_name.clone()) {
            return Err(damaged(&format!("two records have the name {:?}", entry.name)));
        }
        entries.push(entry);
    }
    if !fields.0.is_empty() {
        return Err(damaged(&format!("its directory holds more than the {count} records of its end record")));
    }
    Ok(Directory { start, entries })
}

/// The content of the end record.
struct End {
    /// Its start, or that of the zip64 record that belongs to it.
    at: u64,
    start: u64,
    length: u64,
    count: u64,
}

/// Finds the end record: the last bytes of the file, but for a comment.
fn find_end(input: &Input) -> Result<End> {
    let damaged = |reason: &str| input.damaged(format!("the zip archive: {reason}"));
    let none = || damaged("it has no end record: the file is cut off, or is no zip archive");
    let longest = (END as u64 + u64::from(u16::MAX)).min(input.len());
    let tail_start = input.len() - longest;
    let tail = input.read_vec(tail_start..input.len(), longest)?;
    let is_end = |at: usize| {
        tail[at..].starts_with(b"PK\x05\x06")
            && usize::from(u16::from_le_bytes([tail[at + 20], tail[at + 21]])) == tail.len() - at - END
    };
    let at = (0..=tail.len().checked_sub(END).ok_or_else(none)?).rev().find(|&at| is_end(at)).ok_or_else(none)?;
    let mut fields = Fields(&tail[at + 4..]);
    let mut read = || {
        let (disk, first_disk) = (fields.u16()?, fields.u16()?);
        Some((disk, first_disk, fields.u16()?, fields.u16()?, fields.u32()?, fields.u32()?))
    };
    let (disk, first_disk, on_disk, count, length, start) = read().ok_or_else(none)?;
    let at = tail_start + at as u64;
    let plain = End { at, start: start.into(), length: length.into(), count: count.into() };
    let found = match find_end64(input, at)? {
        None if count == u16::MAX || length == u32::MAX || start == u32::MAX => {
            return Err(damaged("it needs a zip64 end record, and has none"));
        }
        None => plain,
        Some(end) => {
            let agrees = |plain: u64, most: u64, wide: u64| plain == most || plain == wide;
            let agree = agrees(plain.count, u16::MAX.into(), end.count)
                && agrees(plain.length, u32::MAX.into(), end.length)
                && agrees(plain.start, u32::MAX.into(), end.start);
            if !agree {
                return Err(damaged("its two end records differ"));
            }
            end
        }
    };
    if disk != 0 || first_disk != 0 || on_disk != count {
        return Err(damaged("it is one part of several"));
    }
    Ok(found)
}

/// Returns the zip64 end record before the end record at `end`, if there is one.
fn find_end64(input: &Input, end: u64) -> Result<Option<End>> {
    let damaged = |reason: &str| input.damaged(format!("the zip archive: {reason}"));
    let Some(locator_at) = end.checked_sub(LOCATOR) else {
        return Ok(None);
    };
    let locator = input.read_vec(locator_at..end, LOCATOR)?;
    if !locator.starts_with(b"PK\x06\x07") {
        return Ok(None);
    }
    let mut fields = Fields(&locator[4..]);
    let mut place = || Some((fields.u32()?, fields.u64()?, fields.u32()?));
    let wrong = || damaged("its zip64 end record is not right");
    let (disk, at, disks) = place().ok_or_else(wrong)?;
    if at.checked_add(END64) != Some(locator_at) || disk != 0 || disks > 1 {
        return Err(wrong());
    }
    let record = input.read_vec(at..locator_at, END64)?;
    if !record.starts_with(b"PK\x06\x06") {
        return Err(wrong());
    }
    let mut fields = Fields(&record[4..]);
    let mut read = || {
        let length = fields.u64()?;
        fields.take(4)?;
        let disks = (fields.u32()?, fields.u32()?);
        let (on_disk, count, bytes, start) = (fields.u64()?, fields.u64()?, fields.u64()?, fields.u64()?);
        (length == END64 - 12 && disks == (0, 0) && on_disk == count).then_some(End { at, start, length: bytes, count })
    };
    read().ok_or_else(wrong).map(Some)
}

/// Returns the next entry of the directory.
fn entry(fields: &mut Fields<'_>) -> Option<Entry> {
    if fields.take(4)? != b"PK\x01\x02" {
        return None;
    }
    fields.take(4)?;
    let (flags, method) = (fields.u16()?, fields.u16()?);
    fields.take(4)?;
    let crc = fields.u32()?;
    let (mut compressed, mut size) = (u64::from(fields.u32()?), u64::from(fields.u32()?));
    let (name, extra, comment) = (fields.u16()?, fields.u16()?, fields.u16()?);
    let disk = fields.u16()?;
    fields.take(6)?;
    let mut offset = u64::from(fields.u32()?);
    let raw_name = fields.take(name.into())?.to_vec();
    let mut extras = Fields(fields.take(extra.into())?);
    fields.take(comment.into())?;
    let most = u64::from(u32::MAX);
    while extras.0.len() >= 4 {
        let (kind, length) = (extras.u16()?, extras.u16()?);
        let mut wide = Fields(extras.take(length.into())?);
        if kind == 1 {
            for field in [&mut size, &mut compressed, &mut offset].into_iter().filter(|field| **field == most) {
                *field = wide.u64()?;
            }
        }
    }
    if disk != 0 {
        return None;
    }
    let name = String::from_utf8(raw_name.clone()).ok()?;
    Some(Entry { name, raw_name, flags, method, crc, compressed, size, offset })
}

fn check(entry: &Entry) -> Result<(), String> {
    let Entry { name, flags, method, compressed, size, .. } = entry;
    let leads_out = name.starts_with('/') || name.contains(['\\', '\0']) || name.split('/').any(|part| part == "..");
    if name.is_empty() || leads_out || name.as_bytes().get(1) == Some(&b':') {
        return Err("its name leads out of the archive".to_string());
    }
    // Encrypted, strongly encrypted, or with a masked header.
    if flags & (1 | 1 << 6 | 1 << 13) != 0 {
        return Err("it is encrypted".to_string());
    }
    match method {
        0 if compressed != size => Err(format!("it is stored, with {compressed} bytes for {size}")),
        8 if *size > compressed.saturating_mul(MAX_DEFLATE) => {
            Err(format!("{compressed} deflated bytes cannot become {size}"))
        }
        0 | 8 => Ok(()),
        _ => Err(format!("the compression method {method} is not read; only stored and deflated records are")),
    }
}
