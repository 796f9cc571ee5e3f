//! A bundle that is open for reading.

use super::checksum::mask;
use super::graph::{self, TF1_SLOTS};
use super::messages::{Entry, Header, Object, parse_graph};
use super::names;
use super::ordered::parse_slice_key;
use super::slices::{MAX_COMPARISONS, Slice, check_complete};
use super::types::{self, Type};
use super::wire::Parsed;
use super::{place, strings, table};
use crate::dtype::TensorSpec;
use crate::error::{Error, Result};
use crate::interop::Slot;
use crate::interop::input::Input;
use crate::interop::slot::torch_slot;
use crate::location::Location;
use crate::source::{TensorSource, VerifiedBy};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;

/// The key of the object graph.
pub(super) const GRAPH: &[u8] = b"_CHECKPOINTABLE_OBJECT_GRAPH";
/// The longest index that is read.
const MAX_INDEX: u64 = 1 << 30;
/// The longest object graph that is read.
const MAX_GRAPH: u64 = 64 << 20;
/// The longest tensor of strings that becomes a value.
const MAX_STRINGS: u64 = 4 << 20;
/// Values longer than this have one name only.
const MAX_REPEATED: usize = 1 << 10;
/// Bytes read at a time.
const CHUNK: u64 = 1 << 20;

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

/// A tensor of the file.
pub(super) struct Stored {
    /// TensorFlow's key.
    pub name: Vec<u8>,
    pub entry: Entry,
    pub kind: Type,
    /// Where its elements are: empty for a tensor in one piece.
    pub slices: Vec<Slice>,
    /// Its names here, in order.
    keys: BTreeSet<String>,
}

impl Stored {
    /// Returns bytes of all elements.
    fn bytes(&self) -> u64 {
        match self.slices.is_empty() {
            true => self.entry.size,
            false => self.slices.iter().map(|slice| slice.entry.size).sum(),
        }
    }

    /// Returns the entries that have bytes.
    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> {
        let whole = self.slices.is_empty().then_some(&self.entry);
        whole.into_iter().chain(self.slices.iter().map(|slice| &slice.entry))
    }
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
    /// [`Error::NotFound`]; [`Error::Damaged`] where a checksum does not match, a data file is missing or too short, or
    /// the files are no TensorFlow checkpoint; [`Error::Io`].
    pub fn open(path: impl AsRef<Path>) -> Result<Bundle> {
        let prefix = place::prefix(path.as_ref())?;
        let index = Input::open(&place::index(&prefix))?;
        let entries = table::parse(&index.read_vec(0..index.len(), MAX_INDEX)?);
        let wrong = |reason: String| Error::damaged(index.path(), reason);
        let (header, stored) = entries.and_then(stored).map_err(wrong)?;
        let shards = open_shards(&prefix, header, &stored)?;
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
        bundle.name_tensors();
        bundle.name_slots();
        bundle.list()?;
        Ok(bundle)
    }

    /// Returns the prefix of the names of the checkpoint's files.
    #[must_use]
    pub fn prefix(&self) -> &Path {
        &self.prefix
    }

    /// TensorFlow's key of a tensor or value, such as `model/kernel/.ATTRIBUTES/VARIABLE_VALUE`.
    #[must_use]
    pub fn tensorflow_key(&self, key: &str) -> Option<&str> {
        std::str::from_utf8(&self.stored(key)?.name).ok()
    }

    /// TensorFlow's name of the type of a tensor or value, such as `bfloat16`. Also for
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

    /// Returns what optimizers keep for variables: slot variables, the lists of Keras' newer optimizers, and TensorFlow
    /// 1's slots, which are known by their names.
    #[must_use]
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Returns the elements of a tensor of any type as they are in the file, verified. Strings are in their encoded
    /// form, slice by slice; types below 8 bits take a byte for each element.
    ///
    /// # Errors
    /// [`Error::Object`] for an unknown key; [`Error::Damaged`], [`Error::Io`].
    pub fn read_raw(&self, key: &str) -> Result<Vec<u8>> {
        let stored = self.stored(key).ok_or_else(|| unknown(key))?;
        let mut bytes = vec![0; stored.bytes() as usize];
        self.read_stored(stored, &mut bytes)?;
        Ok(bytes)
    }

    /// Compares the checksums of a tensor's slices.
    fn verify_stored(&self, stored: &Stored) -> Result<()> {
        for entry in stored.entries() {
            if stored.kind.size == 0 {
                let bytes = self.bytes(entry)?;
                self.check_strings(stored, entry, &bytes)?;
                continue;
            }
            let mut crc = 0;
            self.copy_entry(entry, |chunk| {
                crc = crc32c::crc32c_append(crc, chunk);
                Ok(())
            })?;
            self.check(stored, entry, crc)?;
        }
        Ok(())
    }

    fn stored(&self, key: &str) -> Option<&Stored> {
        self.by_key.get(key).and_then(|at| self.stored.get(*at))
    }

    fn shard(&self, number: u32) -> Result<&Input> {
        self.shards.get(&number).ok_or_else(|| {
            Error::damaged(place::index(&self.prefix), format!("it names data file {number} of {}", self.header.shards))
        })
    }

    /// Returns the bytes of an entry whose range has been checked.
    fn bytes(&self, entry: &Entry) -> Result<Vec<u8>> {
        self.shard(entry.shard)?.read_vec(entry.offset..entry.offset.saturating_add(entry.size), u64::MAX)
    }

    /// Every tensor lies in its file, and no two lie in the same bytes: a small file cannot become terabytes.
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

    /// Gives every tensor its names: from its key, and from the paths of the graph.
    fn name_tensors(&mut self) {
        let based_on_names = self.graph.is_none();
        for at in 0..self.stored.len() {
            let Ok(name) = std::str::from_utf8(&self.stored[at].name) else {
                let key = String::from_utf8_lossy(&self.stored[at].name).into_owned();
                self.unreadable.insert(names::key(names::plain_path(&key)), "its name is not UTF-8".into());
                continue;
            };
            if name.as_bytes() == GRAPH {
                continue;
            }
            let path = if based_on_names { names::plain_path(name) } else { names::path(name) };
            let (key, whole) = (names::key(path), names::key([name]));
            if !self.offer(key.clone(), at) && !self.offer(whole.clone(), at) {
                self.unreadable.insert(whole, format!("another tensor has the name {key:?} too"));
            }
        }
        let graph = self.graph.take().unwrap_or_default();
        let found = graph::paths(&graph, |object| !graph[object as usize].attributes.is_empty());
        let by_name: BTreeMap<Vec<u8>, usize> =
            self.stored.iter().enumerate().map(|(at, stored)| (stored.name.clone(), at)).collect();
        for (object, paths) in graph.iter().zip(&found) {
            for attribute in &object.attributes {
                let Some(at) = by_name.get(attribute.key.as_bytes()).copied() else { continue };
                for path in paths {
                    let attribute = (attribute.name != names::VARIABLE_VALUE).then_some(&attribute.name);
                    self.offer(names::key(path.names.iter().chain(attribute)), at);
                }
            }
        }
        self.graph = (!based_on_names).then_some(graph);
    }

    /// Offers the tensor under a name, unless another has it.
    fn offer(&mut self, key: String, at: usize) -> bool {
        let own = *self.by_key.entry(key.clone()).or_insert(at) == at;
        if own {
            self.stored[at].keys.insert(key);
        }
        own
    }

    /// Gives what optimizers keep for variables its names.
    fn name_slots(&mut self) {
        let found = match &self.graph {
            Some(graph) => self.slots_of_graph(graph),
            None => self.slots_by_name(),
        };
        let mut names: BTreeMap<(usize, String), Vec<String>> = BTreeMap::new();
        for slot in &found {
            names.entry((slot.variable, slot.optimizer.clone())).or_default().push(slot.name.clone());
        }
        for slot in found {
            let Some(variable) = slot.variable_key.or_else(|| self.stored[slot.variable].keys.first().cloned()) else {
                continue;
            };
            let beside = names.get(&(slot.variable, slot.optimizer.clone())).map_or(&[][..], |names| names);
            let beside: Vec<&str> = beside.iter().map(String::as_str).collect();
            let torch = torch_slot(&slot.name, &beside);
            let name = names::key([torch.unwrap_or(&slot.name)]);
            let mut key = format!("{}/{variable}/{name}", slot.optimizer);
            if !self.offer(key.clone(), slot.slot) {
                let Some(other) = self.stored[slot.slot].keys.first() else { continue };
                key = other.clone();
            }
            self.slots.push(Slot { optimizer: slot.optimizer, variable, name: slot.name, torch, key });
        }
        self.slots.sort_by(|a, b| (&a.optimizer, &a.variable, &a.name).cmp(&(&b.optimizer, &b.variable, &b.name)));
    }

    fn slots_of_graph(&self, graph: &[Object]) -> Vec<FoundSlot> {
        let kept = graph::kept(graph);
        let optimizers: BTreeSet<u32> = kept.iter().map(|kept| kept.optimizer).collect();
        let variables: BTreeSet<u32> = kept.iter().map(|kept| kept.variable).collect();
        let paths = graph::paths(graph, |object| optimizers.contains(&object) || variables.contains(&object));
        let by_name: BTreeMap<&[u8], usize> =
            self.stored.iter().enumerate().map(|(at, stored)| (&*stored.name, at)).collect();
        let stored = |object: u32| {
            let attribute = graph[object as usize].attributes.iter().find(|a| a.name == names::VARIABLE_VALUE)?;
            by_name.get(attribute.key.as_bytes()).copied()
        };
        let found = kept.iter().filter_map(|kept| {
            // The model's name for the variable, not the optimizer's.
            let own = paths[kept.variable as usize].iter();
            let own = own.filter(|path| !path.objects.iter().any(|object| optimizers.contains(object)));
            let optimizer = paths[kept.optimizer as usize].first()?;
            Some(FoundSlot {
                optimizer: names::key(&optimizer.names),
                variable: stored(kept.variable)?,
                variable_key: own.map(|path| names::key(&path.names)).min(),
                name: kept.name.clone(),
                slot: stored(kept.slot)?,
            })
        });
        found.collect()
    }

    fn slots_by_name(&self) -> Vec<FoundSlot> {
        let mut found = Vec::new();
        for (key, at) in &self.by_key {
            let Some((variable, last)) = key.rsplit_once('/') else { continue };
            let slot = TF1_SLOTS.iter().find(|(name, _)| *name == last);
            let Some((name, variable)) = slot.map(|(_, name)| *name).zip(self.by_key.get(variable)) else { continue };
            if self.stored[*variable].entry.shape == self.stored[*at].entry.shape {
                let (optimizer, name) = ("optimizer".to_string(), name.to_string());
                found.push(FoundSlot { optimizer, variable: *variable, variable_key: None, name, slot: *at });
            }
        }
        found
    }

    /// Fills the lists that a source has.
    fn list(&mut self) -> Result<()> {
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
                    let count = if value.to_string().len() > MAX_REPEATED { 1 } else { usize::MAX };
                    self.values.extend(stored.keys.iter().take(count).map(|key| (key.clone(), value.clone())));
                }
                Err(reason) => self.unreadable.extend(stored.keys.iter().map(|key| (key.clone(), reason.clone()))),
            }
        }
        Ok(())
    }

    /// Returns a tensor of strings as a value; the inner error is the reason if it cannot be one.
    fn value(&self, stored: &Stored) -> Result<Result<Value, String>> {
        if stored.bytes() > MAX_STRINGS {
            return Ok(Err(format!("strings of {} bytes are too long for a value", stored.bytes())));
        }
        let mut parts = Vec::new();
        for entry in stored.entries() {
            parts.push(self.bytes(entry)?);
        }
        let mut elements = vec![&[][..]; stored.entry.elements().unwrap_or(0).min(MAX_STRINGS) as usize];
        for (i, (entry, bytes)) in stored.entries().zip(&parts).enumerate() {
            for (j, element) in self.decode(stored, entry, bytes)?.into_iter().enumerate() {
                let position = stored.slices.get(i).map_or(j as u64, |slice| slice.position(j as u64));
                if let Some(place) = elements.get_mut(position as usize) {
                    *place = element;
                }
            }
        }
        Ok(Ok(strings::to_json(&elements, &stored.entry.shape)))
    }

    /// Returns the strings of an entry, verified.
    fn decode<'a>(&self, stored: &Stored, entry: &Entry, bytes: &'a [u8]) -> Result<Vec<&'a [u8]>> {
        strings::decode(bytes, entry.elements().unwrap_or(u64::MAX), entry.crc).map_err(|reason| {
            let reason = format!("{reason} ({})", String::from_utf8_lossy(&stored.name));
            self.shard(entry.shard).map_or_else(|e| e, |file| Error::damaged(file.path(), reason))
        })
    }

    /// Reads all bytes of a tensor and compares its checksums.
    fn read_stored(&self, stored: &Stored, target: &mut [u8]) -> Result<()> {
        if stored.kind.size == 0 {
            let mut rest = target;
            for entry in stored.entries() {
                let (part, tail) = rest.split_at_mut(entry.size as usize);
                self.shard(entry.shard)?.read(entry.offset, part)?;
                self.check_strings(stored, entry, part)?;
                rest = tail;
            }
            return Ok(());
        }
        if stored.slices.is_empty() {
            let file = self.shard(stored.entry.shard)?;
            let mut crc = 0;
            for (i, chunk) in target.chunks_mut(CHUNK as usize).enumerate() {
                file.read(stored.entry.offset + i as u64 * CHUNK, chunk)?;
                crc = crc32c::crc32c_append(crc, chunk);
            }
            return self.check(stored, &stored.entry, crc);
        }
        let mut buffer = Vec::new();
        for slice in &stored.slices {
            let mut crc = 0;
            self.read_slice(slice, 0..slice.entry.size, stored.kind.size, 0, target, &mut buffer, &mut crc)?;
            self.check(stored, &slice.entry, crc)?;
        }
        Ok(())
    }

    /// Reads the bytes `range` of a slice to their place in `target`, which starts at byte `begin` of the tensor.
    #[allow(clippy::too_many_arguments, reason = "a loop's state")]
    fn read_slice(
        &self,
        slice: &Slice,
        range: Range<u64>,
        element: u64,
        begin: u64,
        target: &mut [u8],
        buffer: &mut Vec<u8>,
        crc: &mut u32,
    ) -> Result<()> {
        let file = self.shard(slice.entry.shard)?;
        let mut position = range.start;
        while position < range.end {
            let length = (range.end - position).min(CHUNK);
            buffer.resize(length as usize, 0);
            file.read(slice.entry.offset + position, buffer)?;
            *crc = crc32c::crc32c_append(*crc, buffer);
            slice.scatter(position, buffer, element, begin, target);
            position += length;
        }
        Ok(())
    }

    fn check(&self, stored: &Stored, entry: &Entry, crc: u32) -> Result<()> {
        if mask(crc) == entry.crc {
            return Ok(());
        }
        let name = String::from_utf8_lossy(&stored.name);
        let reason = format!("checksum mismatch: the tensor {name:?} is not what was written");
        Err(Error::damaged(self.shard(entry.shard)?.path(), reason))
    }

    /// Strings have a checksum of their own kind; resources and variants are not verified.
    fn check_strings(&self, stored: &Stored, entry: &Entry, bytes: &[u8]) -> Result<()> {
        if stored.kind.name == "string" { self.decode(stored, entry, bytes).map(drop) } else { Ok(()) }
    }

    /// Reads an entry's bytes in chunks, in order, without verifying them.
    pub(super) fn copy_entry(&self, entry: &Entry, mut with: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let file = self.shard(entry.shard)?;
        let mut buffer = vec![0; entry.size.min(CHUNK) as usize];
        let mut position = 0;
        while position < entry.size {
            let length = (entry.size - position).min(CHUNK) as usize;
            file.read(entry.offset + position, &mut buffer[..length])?;
            with(&buffer[..length])?;
            position += length as u64;
        }
        Ok(())
    }
}

/// A slot, by where its tensors are stored.
struct FoundSlot {
    optimizer: String,
    variable: usize,
    variable_key: Option<String>,
    name: String,
    slot: usize,
}

fn unknown(key: &str) -> Error {
    Error::object(key, "there is no such tensor in the checkpoint")
}

/// Returns the tensors of a table's entries.
fn stored(entries: table::Entries) -> Parsed<(Header, Vec<Stored>)> {
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
        let bytes = elements.checked_mul(kind.size.max(1)).ok_or_else(|| wrong("its elements take too many bytes"))?;
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
fn open_shards(prefix: &Path, header: Header, stored: &[Stored]) -> Result<BTreeMap<u32, Input>> {
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
            self.read_slice(slice, bytes, element, range.start * element, target, &mut buffer, &mut 0)?;
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
