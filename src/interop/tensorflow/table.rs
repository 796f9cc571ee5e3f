//! The `.index` file: a LevelDB table of sorted keys and values.

use super::checksum::masked;
use super::wire::{Parsed, put_varint, take, varint};

/// The last eight bytes of a table.
pub(super) const MAGIC: [u8; 8] = [0x57, 0xfb, 0x80, 0x8b, 0x24, 0x75, 0x47, 0xdb];
/// Handles of the metaindex and the index block, padded, and [`MAGIC`].
const FOOTER: usize = 48;
/// A block's compression type and checksum.
const TRAILER: usize = 5;
/// Keys share prefixes on disk. All of them together may take this much more room than the file, and [`SLACK`] bytes.
const EXPANSION: usize = 8;
const SLACK: usize = 4 << 20;

/// Entries of a table, in order of their keys.
pub(super) type Entries = Vec<(Vec<u8>, Vec<u8>)>;

/// Where a block is.
struct Handle {
    offset: u64,
    size: u64,
}

impl Handle {
    fn parse(bytes: &mut &[u8]) -> Parsed<Handle> {
        let written = *bytes;
        let handle = varint(bytes).zip(varint(bytes)).map(|(offset, size)| Handle { offset, size });
        // In the footer no checksum covers it: a longer form of the same number is a flipped bit.
        let handle = handle.filter(|handle| written.starts_with(&handle.encode()));
        handle.ok_or_else(|| "a block's position in the table is not readable".into())
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        put_varint(&mut bytes, self.offset);
        put_varint(&mut bytes, self.size);
        bytes
    }
}

/// Returns all entries of the table `file`. Every block's checksum is verified, and that keys increase.
pub(super) fn parse(file: &[u8]) -> Parsed<Entries> {
    let Some(body) = file.len().checked_sub(FOOTER) else {
        return Err(format!("it has {} bytes, fewer than a TensorFlow index ends with", file.len()));
    };
    let (blocks, footer) = file.split_at(body);
    let (handles, magic) = footer.split_at(FOOTER - MAGIC.len());
    if magic != MAGIC {
        return Err("it does not end as a TensorFlow index does: it is cut off, or another kind of file".into());
    }
    let mut handles = handles;
    let metaindex = Handle::parse(&mut handles)?;
    let index = Handle::parse(&mut handles)?;
    if handles.iter().any(|byte| *byte != 0) {
        return Err("the footer's padding is not zero".into());
    }
    let mut budget = file.len().saturating_mul(EXPANSION).saturating_add(SLACK);
    if !entries(block(blocks, &metaindex)?, &mut budget)?.is_empty() {
        return Err("the table has a metaindex, which TensorFlow never writes".into());
    }
    let mut all: Entries = Vec::new();
    // No block may be read twice, and together they may not be longer than the file.
    let mut end = 0;
    for (bound, handle) in entries(block(blocks, &index)?, &mut budget)? {
        let handle = Handle::parse(&mut &handle[..])?;
        if handle.offset < end {
            return Err("data blocks of the table overlap".into());
        }
        let found = entries(block(blocks, &handle)?, &mut budget)?;
        end = handle.offset + handle.size;
        let (Some((first, _)), Some((last, _))) = (found.first(), found.last()) else {
            return Err("a data block of the table is empty".into());
        };
        let increases = all.last().is_none_or(|(previous, _)| previous < first);
        if !increases || *last > bound {
            return Err("keys of the table are not in order".into());
        }
        all.extend(found);
    }
    Ok(all)
}

/// Returns the body of a block whose checksum holds.
fn block<'a>(blocks: &'a [u8], handle: &Handle) -> Parsed<&'a [u8]> {
    let range = usize::try_from(handle.offset).ok().zip(usize::try_from(handle.size).ok());
    let whole = range.and_then(|(offset, size)| {
        let end = offset.checked_add(size)?.checked_add(TRAILER)?;
        blocks.get(offset..end)
    });
    let Some(whole) = whole else {
        return Err("a block of the table lies outside of the file".into());
    };
    let (checked, crc) = whole.split_at(whole.len() - 4);
    if crc != masked(checked).to_le_bytes() {
        return Err(format!("checksum mismatch in the block at {} of the table", handle.offset));
    }
    match checked.split_last() {
        Some((0, body)) => Ok(body),
        Some((1, _)) => Err("a block is compressed with Snappy, which TensorFlow never writes".into()),
        _ => Err("a block has an unknown compression".into()),
    }
}

/// Returns the entries of a block's body. `budget` is what keys may still take.
fn entries(body: &[u8], budget: &mut usize) -> Parsed<Entries> {
    let wrong = || "a block of the table is not readable".to_string();
    let count = body.last_chunk::<4>().map(|bytes| u32::from_le_bytes(*bytes) as usize).ok_or_else(wrong)?;
    let restarts = count.checked_add(1).and_then(|words| words.checked_mul(4)).ok_or_else(wrong)?;
    let mut rest = body.get(..body.len().checked_sub(restarts).ok_or_else(wrong)?).ok_or_else(wrong)?;
    if count == 0 {
        return Err(wrong());
    }
    let mut found: Entries = Vec::new();
    while !rest.is_empty() {
        let mut number = || varint(&mut rest).filter(|value| u32::try_from(*value).is_ok()).ok_or_else(wrong);
        let (shared, unshared, length) = (number()? as usize, number()?, number()?);
        let new = take(&mut rest, unshared).ok_or_else(wrong)?;
        let value = take(&mut rest, length).ok_or_else(wrong)?;
        let previous = found.last().map_or(&[][..], |(key, _)| key);
        let mut key = previous.get(..shared).ok_or_else(wrong)?.to_vec();
        key.extend_from_slice(new);
        if !found.is_empty() && *key <= *previous {
            return Err("keys of the table are not in order".into());
        }
        let taken = key.len() + 2 * std::mem::size_of::<Vec<u8>>();
        *budget = budget.checked_sub(taken).ok_or("the table's keys expand to many times the size of the file")?;
        found.push((key, value.to_vec()));
    }
    Ok(found)
}

/// Data blocks are closed at this size.
const BLOCK_SIZE: usize = 262_144;
/// Entries after which a key is written in full.
const RESTART_INTERVAL: usize = 16;

/// Writes a table as TensorFlow does, byte for byte. Keys must increase.
#[derive(Default)]
pub(super) struct TableWriter {
    file: Vec<u8>,
    data: BlockWriter,
    index: BlockWriter,
    /// The last key of a closed block, and where the block is: the index key depends on the key that follows.
    closed: Option<(Vec<u8>, Vec<u8>)>,
}

impl TableWriter {
    pub(super) fn add(&mut self, key: &[u8], value: &[u8]) {
        if !self.data.is_empty() && key.len() + value.len() >= 2 * BLOCK_SIZE {
            self.close_block();
        }
        if let Some((last, handle)) = self.closed.take() {
            self.index.add(&separator(&last, key), &handle, 1);
        }
        self.data.add(key, value, RESTART_INTERVAL);
        if self.data.size() >= BLOCK_SIZE {
            self.close_block();
        }
    }

    /// The finished file.
    pub(super) fn finish(mut self) -> Vec<u8> {
        if !self.data.is_empty() {
            self.close_block();
        }
        let metaindex = self.write_block(BlockWriter::default());
        if let Some((last, handle)) = self.closed.take() {
            self.index.add(&successor(&last), &handle, 1);
        }
        let index = std::mem::take(&mut self.index);
        let index = self.write_block(index);
        let mut footer = [metaindex, index].concat();
        footer.resize(FOOTER - MAGIC.len(), 0);
        self.file.extend(footer);
        self.file.extend(MAGIC);
        self.file
    }

    fn close_block(&mut self) {
        let block = std::mem::take(&mut self.data);
        let last = block.last.clone();
        let handle = self.write_block(block);
        self.closed = Some((last, handle));
    }

    /// Appends a block; its handle.
    fn write_block(&mut self, block: BlockWriter) -> Vec<u8> {
        let mut body = block.finish();
        let handle = Handle { offset: self.file.len() as u64, size: body.len() as u64 }.encode();
        body.push(0);
        let crc = masked(&body);
        self.file.extend(body);
        self.file.extend(crc.to_le_bytes());
        handle
    }
}

/// The entries of one block.
#[derive(Default)]
struct BlockWriter {
    body: Vec<u8>,
    restarts: Vec<u32>,
    since_restart: usize,
    last: Vec<u8>,
}

impl BlockWriter {
    fn is_empty(&self) -> bool {
        self.body.is_empty()
    }

    /// Returns bytes of the finished block. An empty one has a restart too.
    fn size(&self) -> usize {
        self.body.len() + 4 * self.restarts.len().max(1) + 4
    }

    fn add(&mut self, key: &[u8], value: &[u8], interval: usize) {
        let mut shared = 0;
        if self.restarts.is_empty() || self.since_restart >= interval {
            self.restarts.push(self.body.len() as u32);
            self.since_restart = 0;
        } else {
            shared = key.iter().zip(&self.last).take_while(|(a, b)| a == b).count();
        }
        for number in [shared, key.len() - shared, value.len()] {
            put_varint(&mut self.body, number as u64);
        }
        self.body.extend_from_slice(&key[shared..]);
        self.body.extend_from_slice(value);
        self.last = key.to_vec();
        self.since_restart += 1;
    }

    fn finish(self) -> Vec<u8> {
        let mut body = self.body;
        let restarts = if self.restarts.is_empty() { vec![0] } else { self.restarts };
        for restart in &restarts {
            body.extend(restart.to_le_bytes());
        }
        body.extend((restarts.len() as u32).to_le_bytes());
        body
    }
}

/// Returns a table with one data block whose entries are `bytes`, whatever they are: for fuzzing.
pub(super) fn of_entries(bytes: &[u8]) -> Vec<u8> {
    let mut writer = TableWriter::default();
    let handle = writer.write_block(BlockWriter { body: bytes.to_vec(), ..BlockWriter::default() });
    writer.closed = Some((vec![0xff; 64], handle));
    writer.finish()
}

/// A short key that is not less than `last` and less than `next`.
fn separator(last: &[u8], next: &[u8]) -> Vec<u8> {
    let common = last.iter().zip(next).take_while(|(a, b)| a == b).count();
    match (last.get(common), next.get(common)) {
        (Some(&a), Some(&b)) if a < 0xff && a + 1 < b => [&last[..common], &[a + 1]].concat(),
        _ => last.to_vec(),
    }
}

/// A short key that is not less than `last`.
fn successor(last: &[u8]) -> Vec<u8> {
    match last.iter().position(|byte| *byte != 0xff) {
        Some(at) => [&last[..at], &[last[at] + 1]].concat(),
        None => last.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(entries: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
        let mut writer = TableWriter::default();
        entries.iter().for_each(|(key, value)| writer.add(key, value));
        writer.finish()
    }

    #[test]
    fn tables_of_many_blocks_go_there_and_back() {
        let mut entries: Entries = vec![(vec![], vec![8, 1])];
        entries.extend((0..9000).map(|i| (format!("layer/{i:05}/kernel").into_bytes(), vec![i as u8; 90])));
        entries.push((b"long".to_vec(), vec![7; 2 * BLOCK_SIZE]));
        let file = written(&entries);
        assert_eq!(parse(&file).unwrap(), entries);
        assert_eq!(written(&[]).len(), 8 + 5 + 8 + 5 + 48);
        assert_eq!(parse(&written(&[])).unwrap(), []);
    }

    #[test]
    fn entries_come_back_from_a_table_around_them() {
        let mut block = BlockWriter::default();
        let entries: Entries = vec![(vec![], vec![8, 1]), (b"a".to_vec(), vec![7; 9])];
        entries.iter().for_each(|(key, value)| block.add(key, value, RESTART_INTERVAL));
        assert_eq!(parse(&of_entries(&block.body)).unwrap(), entries);
        assert!(parse(&of_entries(b"\x05")).unwrap_err().contains("not readable"));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_an_error() {
        let entries: Entries = (0..40u8).map(|i| (format!("key{i:02}").into_bytes(), vec![i; 9])).collect();
        let file = written(&entries);
        for at in 0..file.len() {
            for bit in 0..8 {
                let mut damaged = file.clone();
                damaged[at] ^= 1 << bit;
                assert!(parse(&damaged).is_err(), "bit {bit} of byte {at}");
            }
            assert!(parse(&file[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn keys_that_expand_without_bound_are_refused() {
        let mut block = BlockWriter::default();
        let mut key = vec![b'k'; 60_000];
        for i in 0..2000u32 {
            key.truncate(60_000);
            key.extend(i.to_be_bytes());
            block.add(&key, &[], usize::MAX);
        }
        let mut writer = TableWriter { data: block, ..TableWriter::default() };
        writer.add(b"l", b"");
        assert!(parse(&writer.finish()).unwrap_err().contains("expand"));
    }

    #[test]
    fn index_keys_are_shortened_as_in_leveldb() {
        assert_eq!(separator(b"abcdef", b"abzz"), b"abd");
        assert_eq!(separator(b"abc", b"abd"), b"abc");
        assert_eq!(separator(b"ab", b"abc"), b"ab");
        assert_eq!(successor(b"save_counter"), b"t");
        assert_eq!(successor(&[0xff, b'a', b'b']), [0xff, b'b']);
        assert_eq!(successor(&[0xff]), [0xff]);
    }
}
