//! Reads metadata by address, with a budget, so that time and memory are proportional to the length of the file.

use crate::error::{Error, Result};
use crate::interop::input::Input;
use crate::interop::room::Room;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

/// The address that stands for data that was never written.
pub(super) const UNDEFINED: u64 = u64::MAX;
/// Descriptions may be read this many times the file's length, and [`SLACK`] bytes: links may lead to one object twice.
const TIMES: u64 = 16;
const SLACK: u64 = 1 << 20;
/// Bytes of string collections that are kept.
const KEPT: u64 = 8 << 20;

/// A file whose description is being read.
pub(super) struct Metadata<'a> {
    pub input: &'a Input,
    budget: Cell<u64>,
    collections: RefCell<BTreeMap<u64, Rc<Collection>>>,
    /// Bytes of the collections that are kept.
    kept: Cell<u64>,
    /// For texts that are values.
    texts: RefCell<Room>,
}

/// Texts of variable length: their bytes, by their number.
#[derive(Default)]
struct Collection {
    bytes: Vec<u8>,
    objects: BTreeMap<u32, std::ops::Range<usize>>,
}

impl<'a> Metadata<'a> {
    pub(super) fn new(input: &'a Input) -> Metadata<'a> {
        let budget = input.len().saturating_mul(TIMES).saturating_add(SLACK);
        Metadata {
            input,
            budget: Cell::new(budget),
            collections: RefCell::default(),
            kept: Cell::new(0),
            texts: RefCell::new(Room::of(input.len())),
        }
    }

    pub(super) fn damaged(&self, reason: impl Into<String>) -> Error {
        self.input.damaged(reason)
    }

    pub(super) fn unsupported(&self, reason: impl Into<String>) -> Error {
        self.input.unsupported(reason)
    }

    /// Counts `length` bytes that are read or copied.
    pub(super) fn charge(&self, length: u64) -> Result<()> {
        match self.budget.get().checked_sub(length.saturating_add(8)) {
            Some(left) => self.budget.set(left),
            None => return Err(self.damaged("its descriptions lead to the same bytes over and over")),
        }
        Ok(())
    }

    /// Returns `true` if there is room for texts of `bytes` bytes, which is then taken.
    pub(super) fn has_room(&self, bytes: u64) -> bool {
        usize::try_from(bytes).is_ok_and(|bytes| self.texts.borrow_mut().take(bytes))
    }

    /// Returns the `length` bytes at `address`.
    pub(super) fn read(&self, address: u64, length: u64) -> Result<Vec<u8>> {
        self.charge(length)?;
        self.input.read_vec(address..address.saturating_add(length), u64::MAX)
    }

    /// Like [`read`](Metadata::read), after a signature of four bytes, which is not returned.
    pub(super) fn read_signed(&self, signature: &[u8; 4], address: u64, length: u64) -> Result<Vec<u8>> {
        let bytes = self.read(address, length)?;
        match bytes.strip_prefix(signature) {
            Some(rest) => Ok(rest.to_vec()),
            None => Err(self.damaged(format!("at {address} there is no {}", String::from_utf8_lossy(signature)))),
        }
    }

    /// A cursor over bytes of this file.
    pub(super) fn cursor<'b>(&self, bytes: &'b [u8]) -> Cursor<'b, '_, 'a> {
        Cursor { bytes, metadata: self }
    }

    /// Returns the text of variable length that the 16 bytes `reference` lead to.
    pub(super) fn text(&self, reference: &[u8]) -> Result<Vec<u8>> {
        let mut cursor = self.cursor(reference);
        let (length, address, number) = (cursor.u32()? as usize, cursor.u64()?, cursor.u32()?);
        if length == 0 {
            return Ok(Vec::new());
        }
        self.charge(length as u64)?;
        let collection = self.collection(address)?;
        let object = collection.objects.get(&number).and_then(|range| collection.bytes.get(range.clone()));
        let text = object.and_then(|bytes| bytes.get(..length));
        text.map(<[u8]>::to_vec).ok_or_else(|| self.damaged("a text of variable length is missing"))
    }

    fn collection(&self, address: u64) -> Result<Rc<Collection>> {
        if let Some(known) = self.collections.borrow().get(&address) {
            return Ok(known.clone());
        }
        let header = self.read_signed(b"GCOL", address, 16)?;
        let mut cursor = self.cursor(&header);
        cursor.skip(4)?;
        let size = cursor.u64()?;
        let bytes = self.read(address.saturating_add(16), size.saturating_sub(16))?;
        let mut objects = BTreeMap::new();
        let mut cursor = self.cursor(&bytes);
        // Number 0 is the free space at the end.
        while cursor.bytes.len() >= 16 {
            let number = u32::from(cursor.u16()?);
            cursor.skip(6)?;
            let length = cursor.u64()?;
            if number == 0 {
                break;
            }
            let begin = bytes.len() - cursor.bytes.len();
            cursor.take(length)?;
            objects.insert(number, begin..begin + length as usize);
            cursor.skip((length.wrapping_neg() % 8).min(cursor.bytes.len() as u64))?;
        }
        let collection = Rc::new(Collection { bytes, objects });
        let mut kept = self.collections.borrow_mut();
        if self.kept.get() > KEPT {
            kept.clear();
            self.kept.set(0);
        }
        self.kept.set(self.kept.get() + collection.bytes.len() as u64);
        kept.insert(address, collection.clone());
        Ok(collection)
    }
}

/// Numbers out of bytes, in order.
pub(super) struct Cursor<'b, 'm, 'a> {
    pub bytes: &'b [u8],
    metadata: &'m Metadata<'a>,
}

impl<'b> Cursor<'b, '_, '_> {
    pub(super) fn take(&mut self, count: u64) -> Result<&'b [u8]> {
        let split = usize::try_from(count).ok().and_then(|count| self.bytes.split_at_checked(count));
        let (head, tail) = split.ok_or_else(|| self.metadata.damaged("a description ends early"))?;
        self.bytes = tail;
        Ok(head)
    }

    pub(super) fn skip(&mut self, count: u64) -> Result<()> {
        self.take(count).map(drop)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64)?);
        Ok(array)
    }

    pub(super) fn u8(&mut self) -> Result<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self) -> Result<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// Returns bytes up to a NUL, which is passed; as many more as fill `multiple` with the bytes and the NUL.
    pub(super) fn name(&mut self, multiple: usize) -> Result<&'b [u8]> {
        let end = self.bytes.iter().position(|byte| *byte == 0);
        let end = end.ok_or_else(|| self.metadata.damaged("a name has no end"))?;
        let name = self.take(end as u64)?;
        self.skip(((end + 1).next_multiple_of(multiple) - end) as u64)?;
        Ok(name)
    }
}
