//! The tensors that an index lists, and the data files they are in.

use super::messages::{Entry, Header};
use super::ordered::parse_slice_key;
use super::slices::{MAX_COMPARISONS, Slice, check_complete};
use super::types::{self, Type};
use super::wire::Parsed;
use super::{place, table};
use crate::error::{Error, Result};
use crate::interop::input::Input;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// A tensor of the file.
pub(super) struct Stored {
    /// TensorFlow's key.
    pub name: Vec<u8>,
    pub entry: Entry,
    pub kind: Type,
    /// Where its elements are: empty for a tensor in one piece.
    pub slices: Vec<Slice>,
    /// Its names here, in order.
    pub keys: BTreeSet<String>,
}

impl Stored {
    /// Returns bytes of all elements.
    pub(super) fn bytes(&self) -> u64 {
        match self.slices.is_empty() {
            true => self.entry.size,
            false => self.slices.iter().map(|slice| slice.entry.size).sum(),
        }
    }

    /// Returns the entry of this number among those that have bytes.
    pub(super) fn entry(&self, part: usize) -> Option<&Entry> {
        match self.slices.is_empty() {
            true => (part == 0).then_some(&self.entry),
            false => self.slices.get(part).map(|slice| &slice.entry),
        }
    }

    /// Returns the entries that have bytes.
    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> {
        let whole = self.slices.is_empty().then_some(&self.entry);
        whole.into_iter().chain(self.slices.iter().map(|slice| &slice.entry))
    }
}

/// Returns the tensors of a table's entries.
pub(super) fn stored(entries: table::Entries) -> Parsed<(Header, Vec<Stored>)> {
    let mut entries = entries.into_iter().peekable();
    let header = entries.next_if(|(key, _)| key.is_empty()).ok_or("the index has no header")?;
    let header = Header::parse(&header.1)?;
    let mut slices = BTreeMap::new();
    while let Some((key, value)) = entries.next_if(|(key, _)| key.first() == Some(&0)) {
        slices.insert(parse_slice_key(&key)?, Entry::parse(&value)?);
    }
    let mut all = Vec::new();
    let mut comparisons = MAX_COMPARISONS;
    for (name, value) in entries {
        let mut entry = Entry::parse(&value)?;
        let shown = String::from_utf8_lossy(&name).into_owned();
        let wrong = |reason: &str| format!("the tensor {shown:?}: {reason}");
        let kind = types::by_number(entry.dtype).ok_or_else(|| wrong("its type is unknown"))?;
        let elements = entry.elements().ok_or_else(|| wrong("its shape has more elements than there are"))?;
        // The last length may be 0: then the elements are few, and a `TensorSpec` of the shape has no length.
        let has_length =
            entry.shape.iter().try_fold(kind.size.max(1), |all, length| all.checked_mul(*length)).is_some();
        let bytes = elements.checked_mul(kind.size.max(1)).filter(|_| has_length);
        let bytes = bytes.ok_or_else(|| wrong("its elements take too many bytes"))?;
        let mut parts = Vec::new();
        for extents in &entry.slices {
            let part = slices.remove(&(name.clone(), extents.clone()));
            let part = part.ok_or_else(|| wrong("one of its slices is not in the index"))?;
            if part.dtype != entry.dtype || !part.slices.is_empty() {
                return Err(wrong("one of its slices has another type"));
            }
            let slice = Slice::new(&entry.shape, extents, part);
            parts.push(slice.ok_or_else(|| wrong("one of its slices lies outside of it"))?);
        }
        if parts.is_empty() {
            if kind.size > 0 && entry.size != bytes {
                return Err(wrong(&format!("it has {} bytes, its shape needs {bytes}", entry.size)));
            }
        } else {
            let sizes = parts.iter().all(|slice| kind.size == 0 || slice.entry.size == slice.elements() * kind.size);
            if !sizes {
                return Err(wrong("one of its slices has another number of bytes than its shape needs"));
            }
            check_complete(&mut parts, elements, &mut comparisons).map_err(|reason| wrong(&reason))?;
        }
        entry.slices.shrink_to_fit();
        all.push(Stored { name, entry, kind, slices: parts, keys: BTreeSet::new() });
    }
    match slices.into_keys().next() {
        Some((name, _)) => Err(format!("a slice of {:?} belongs to no tensor", String::from_utf8_lossy(&name))),
        None => Ok((header, all)),
    }
}

/// Opens the data files that tensors are in. One that holds none may be missing.
pub(super) fn open_shards(prefix: &Path, header: Header, stored: &[Stored]) -> Result<BTreeMap<u32, Input>> {
    let mut shards = BTreeMap::new();
    for entry in stored.iter().flat_map(Stored::entries) {
        if shards.contains_key(&entry.shard) {
            continue;
        }
        if entry.shard >= header.shards {
            let reason = format!("a tensor is in data file {}, there are {}", entry.shard, header.shards);
            return Err(Error::damaged(place::index(prefix), reason));
        }
        let path = place::data(prefix, entry.shard, header.shards);
        if !path.exists() {
            return Err(Error::damaged(path, "the file is missing"));
        }
        shards.insert(entry.shard, Input::open(&path)?);
    }
    Ok(shards)
}
