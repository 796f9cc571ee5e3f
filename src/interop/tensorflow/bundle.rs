//! A bundle that is open for reading.

use super::messages::{Header, Object, parse_graph};
use super::stored::{self, Stored};
use super::{place, strings, table};
use crate::dtype::TensorSpec;
use crate::error::{Error, Result};
use crate::interop::Slot;
use crate::interop::input::Input;
use crate::interop::room::Room;
use crate::location::Location;
use crate::source::{TensorSource, VerifiedBy};
use serde_json::Value;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

mod naming;
mod reading;

/// The key of the object graph.
pub(super) const GRAPH: &[u8] = b"_CHECKPOINTABLE_OBJECT_GRAPH";
/// The longest index that is read.
const MAX_INDEX: u64 = 1 << 30;
/// The longest object graph that is read.
const MAX_GRAPH: u64 = 64 << 20;
/// Values longer than this have one name only.
const MAX_REPEATED: usize = 1 << 10;
/// Bytes in memory for each byte of a value's text.
const VALUE: usize = 32;

/// A TensorFlow checkpoint that is open for reading.
///
/// ```no_run
/// use tch_checkpoint::TensorSource;
/// use tch_checkpoint::interop::tensorflow::Bundle;
///
/// # fn main() -> tch_checkpoint::Result<()> {
/// let bundle = Bundle::open("training/ckpt-5")?;
/// for (key, spec) in bundle.tensors() {
///     println!("{key}: {spec}");
/// }
/// # Ok(())
/// # }
/// ```
pub struct Bundle {
    prefix: Location,
    pub(super) header: Header,
    shards: BTreeMap<u32, Input>,
    pub(super) stored: Vec<Stored>,
    by_key: BTreeMap<String, usize>,
    tensors: BTreeMap<String, TensorSpec>,
    values: BTreeMap<String, Value>,
    unreadable: BTreeMap<String, String>,
    slots: Vec<Slot>,
    pub(super) graph: Option<Vec<Object>>,
}

impl std::fmt::Debug for Bundle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bundle").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl Bundle {
    /// Opens the checkpoint `path`: its prefix, its `.index` file, a directory with a state file `checkpoint`, whose
    /// newest checkpoint is opened, or a SavedModel's directory.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Damaged`] if a checksum does not match, a data file is missing or too short, or
    /// the files are not a TensorFlow checkpoint; [`Error::Io`].
    pub fn open(path: impl AsRef<Path>) -> Result<Bundle> {
        let prefix = place::prefix(path.as_ref())?;
        let index = Input::open(&place::index(&prefix))?;
        let entries = table::parse(&index.read_vec(0..index.len(), MAX_INDEX)?);
        let wrong = |reason: String| Error::damaged(index.path(), reason);
        let (header, stored) = entries.and_then(stored::stored).map_err(wrong)?;
        let shards = stored::open_shards(&prefix, header, &stored)?;
        let mut bundle = Bundle {
            prefix: prefix.into(),
            header,
            shards,
            stored,
            by_key: BTreeMap::new(),
            tensors: BTreeMap::new(),
            values: BTreeMap::new(),
            unreadable: BTreeMap::new(),
            slots: Vec::new(),
            graph: None,
        };
        bundle.check_ranges()?;
        bundle.graph = bundle.read_graph()?;
        let graph = bundle.stored.iter().find(|stored| stored.name == GRAPH).map_or(0, Stored::bytes);
        let mut room = Room::of(index.len().saturating_add(graph));
        bundle.name_tensors(&mut room);
        bundle.name_slots(&mut room);
        bundle.list(&mut room)?;
        Ok(bundle)
    }

    /// Returns the prefix of the names of the checkpoint's files.
    #[must_use]
    pub fn prefix(&self) -> &Path {
        &self.prefix
    }

    /// Returns TensorFlow's key of a tensor or value, such as `model/kernel/.ATTRIBUTES/VARIABLE_VALUE`.
    #[must_use]
    pub fn tensorflow_key(&self, key: &str) -> Option<&str> {
        std::str::from_utf8(&self.stored(key)?.name).ok()
    }

    /// Returns TensorFlow's name of the type of a tensor or value, such as `bfloat16`; also for
    /// [`unreadable`](TensorSource::unreadable) ones.
    #[must_use]
    pub fn tensorflow_dtype(&self, key: &str) -> Option<&'static str> {
        Some(self.stored(key)?.kind.name)
    }

    /// Returns the shape of a tensor, also of an [`unreadable`](TensorSource::unreadable) one.
    #[must_use]
    pub fn shape(&self, key: &str) -> Option<&[u64]> {
        Some(&self.stored(key)?.entry.shape)
    }

    /// Returns all keys of the same variable, in order.
    pub fn aliases(&self, key: &str) -> impl Iterator<Item = &str> {
        self.stored(key).into_iter().flat_map(|stored| stored.keys.iter().map(String::as_str))
    }

    /// Returns the slots of optimizers: slot variables, the lists of Keras' newer optimizers, and TensorFlow 1's slots,
    /// which are recognized by their names.
    #[must_use]
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Returns the elements of a tensor of any type in the form in which the file has them, verified. Strings are
    /// encoded, slice by slice; types below 8 bits have one byte per element.
    ///
    /// # Errors
    /// [`Error::Object`] for an unknown key; [`Error::Damaged`], [`Error::Io`].
    pub fn read_raw(&self, key: &str) -> Result<Vec<u8>> {
        let stored = self.stored(key).ok_or_else(|| unknown(key))?;
        let mut bytes = vec![0; stored.bytes() as usize];
        self.read_stored(stored, &mut bytes)?;
        Ok(bytes)
    }

    fn stored(&self, key: &str) -> Option<&Stored> {
        self.by_key.get(key).and_then(|at| self.stored.get(*at))
    }

    fn shard(&self, number: u32) -> Result<&Input> {
        self.shards.get(&number).ok_or_else(|| {
            Error::damaged(place::index(&self.prefix), format!("it names data file {number} of {}", self.header.shards))
        })
    }

    /// Every tensor lies within its file, and no two share bytes, so a small file cannot expand to terabytes.
    fn check_ranges(&self) -> Result<()> {
        let mut ranges = Vec::new();
        for entry in self.stored.iter().flat_map(Stored::entries) {
            let file = self.shard(entry.shard)?;
            let end = entry.offset.checked_add(entry.size).filter(|end| *end <= file.len());
            let Some(end) = end else {
                let (size, offset) = (entry.size, entry.offset);
                let reason =
                    format!("a tensor of {size} bytes at {offset} lies outside of it: it is cut off or damaged");
                return Err(Error::damaged(file.path(), reason));
            };
            if entry.size > 0 {
                ranges.push((entry.shard, entry.offset, end));
            }
        }
        ranges.sort_unstable();
        for pair in ranges.windows(2) {
            let [(shard, _, end), (other, begin, _)] = pair else { continue };
            if shard == other && begin < end {
                return Err(Error::damaged(self.shard(*shard)?.path(), "two tensors lie in the same bytes"));
            }
        }
        Ok(())
    }

    fn read_graph(&self) -> Result<Option<Vec<Object>>> {
        let Some(stored) = self.stored.iter().find(|stored| stored.name == GRAPH) else {
            return Ok(None);
        };
        let file = self.shard(stored.entry.shard)?;
        let wrong = |reason: String| Error::damaged(file.path(), format!("the object graph: {reason}"));
        if stored.kind.name != "string" || !stored.entry.shape.is_empty() || !stored.slices.is_empty() {
            return Err(wrong("it is not text".into()));
        }
        let bytes = file.read_vec(stored.entry.offset..stored.entry.offset + stored.entry.size, MAX_GRAPH)?;
        let elements = strings::decode(&bytes, 1, stored.entry.crc).map_err(wrong)?;
        parse_graph(elements.first().copied().unwrap_or_default()).map(Some).map_err(wrong)
    }

    /// Fills the lists that a source has.
    fn list(&mut self, room: &mut Room) -> Result<()> {
        for stored in &self.stored {
            let TensorSpec { shape, .. } = TensorSpec::new(crate::Dtype::U8, stored.entry.shape.clone());
            if let Some(dtype) = stored.kind.dtype {
                let spec = TensorSpec { dtype, shape };
                self.tensors.extend(stored.keys.iter().map(|key| (key.clone(), spec.clone())));
                continue;
            }
            let value = match stored.kind.name {
                "string" if !stored.keys.is_empty() => self.value(stored)?,
                name => Err(format!("this crate has no type for {name}")),
            };
            match value {
                Ok(value) => {
                    let length = value.to_string().len();
                    let has_room = length <= MAX_REPEATED && room.take(stored.keys.len() * length * VALUE);
                    let count = if has_room { usize::MAX } else { 1 };
                    self.values.extend(stored.keys.iter().take(count).map(|key| (key.clone(), value.clone())));
                }
                Err(reason) => self.unreadable.extend(stored.keys.iter().map(|key| (key.clone(), reason.clone()))),
            }
        }
        Ok(())
    }
}

fn unknown(key: &str) -> Error {
    Error::object(key, "there is no such tensor in the checkpoint")
}

impl TensorSource for Bundle {
    fn format(&self) -> &'static str {
        "TensorFlow"
    }

    fn path(&self) -> &Location {
        &self.prefix
    }

    fn tensors(&self) -> &BTreeMap<String, TensorSpec> {
        &self.tensors
    }

    fn values(&self) -> &BTreeMap<String, Value> {
        &self.values
    }

    fn unreadable(&self) -> &BTreeMap<String, String> {
        &self.unreadable
    }

    fn first_alias<'a>(&'a self, key: &'a str) -> &'a str {
        self.stored(key).and_then(|stored| stored.keys.first()).map_or(key, String::as_str)
    }

    fn verified_by(&self, _key: &str) -> VerifiedBy {
        VerifiedBy::Container
    }

    fn read(&self, key: &str, target: &mut [u8]) -> Result<()> {
        let stored = self.stored(key).filter(|stored| stored.kind.dtype.is_some()).ok_or_else(|| unknown(key))?;
        if target.len() as u64 != stored.bytes() {
            return Err(Error::object(key, format!("it has {} bytes, its target {}", stored.bytes(), target.len())));
        }
        self.read_stored(stored, target)
    }

    fn read_range(&self, key: &str, range: Range<u64>, target: &mut [u8]) -> Result<()> {
        let stored = self.stored(key).filter(|stored| stored.kind.dtype.is_some()).ok_or_else(|| unknown(key))?;
        let element = stored.kind.size;
        let elements = stored.bytes() / element;
        let length = range.end.checked_sub(range.start).filter(|_| range.end <= elements);
        if length.and_then(|length| length.checked_mul(element)) != Some(target.len() as u64) {
            return Err(Error::object(key, format!("elements {range:?} of {elements} do not fit the target")));
        }
        if stored.slices.is_empty() {
            return self.shard(stored.entry.shard)?.read(stored.entry.offset + range.start * element, target);
        }
        let mut buffer = Vec::new();
        for slice in &stored.slices {
            let within = slice.elements_within(range.start, range.end);
            let bytes = within.start * element..within.end * element;
            self.read_slice(slice, bytes, element, range.start * element, target, &mut buffer)?;
        }
        Ok(())
    }

    fn verify_tensor(&self, key: &str) -> Result<()> {
        self.verify_stored(self.stored(key).ok_or_else(|| unknown(key))?)
    }

    fn verify(&self) -> Result<()> {
        self.stored.iter().try_for_each(|stored| self.verify_stored(stored))
    }
}
