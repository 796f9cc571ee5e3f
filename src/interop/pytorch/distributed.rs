//! Directories of `torch.distributed.checkpoint`: one pickle with the locations of all items, and files that are
//! sequences of small zip archives.

use super::archive::Contents;
use super::bind::{Binder, StorageBinder};
use super::pickle::{Arena, Id, Node, PickleReader, unpickle};
use super::rules::{Dialect, TorchRules};
use super::tree::{self, Style};
use super::types::TorchType;
use super::{check_refused, collect, unpickle_failed};
use crate::dtype::TensorSpec;
use crate::error::{Error, Result};
use crate::interop::ReadOptions;
use crate::interop::blob::Blob;
use crate::interop::foreign::{Foreign, Found};
use crate::interop::input::Input;
use crate::interop::view::{Part, Stored, overlap};
use crate::interop::zip::Archive;
use crate::name;
use serde_json::Value;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;

/// The file whose presence makes a directory a checkpoint.
pub(super) const METADATA: &str = ".metadata";

/// The longest path in the nested object.
const MAX_DEPTH: usize = 100;

/// The longest name of an entry, a file or a step of a path.
const MAX_NAME: usize = 1024;

/// The most attributes of an object; the classes of torch have six at most.
const MAX_ATTRIBUTES: usize = 64;

/// Bytes of memory for a step of a path in a list, which may have a map of its own.
const PER_STEP: usize = 500;

/// Where an item is.
struct Item<'a> {
    file: &'a str,
    begin: u64,
    length: u64,
}

/// An item is known by its name and, of a piece of a tensor, by its first element.
type ItemKey<'a> = (&'a str, Option<Vec<u64>>);

pub(super) fn open(path: &Path, options: &ReadOptions) -> Result<Foreign> {
    let input = Input::open(&path.join(METADATA))?;
    let blob = Blob::stored(METADATA, input.clone(), None);
    let mut arena = Arena::default();
    let mut reader = PickleReader::new(&blob);
    let mut rules = TorchRules::new(Dialect::Distributed);
    let unpickled = unpickle(&mut reader, &mut arena, &mut rules).map_err(|e| unpickle_failed(&input, METADATA, e))?;
    check_refused(&input, METADATA, &arena, unpickled.root, unpickled.refused, &ReadOptions::default())?;
    if reader.left() > 0 {
        return Err(input.damaged(format!("{} bytes follow the end of its pickle", reader.left())));
    }
    let metadata = Metadata { arena: &arena, input: &input };
    let items = metadata.items(unpickled.root)?;
    let mut files = Files { directory: path, open: BTreeMap::new(), checks: Vec::new() };
    let mut found = Found::default();
    let mut lists = Lists::default();
    let left = tree::FREE + tree::PER_OBJECT * arena.len() as u64;
    let mut pieces = Pieces { metadata: &metadata, items, files: &mut files, options, left };
    let state = metadata.field(unpickled.root, "state_dict_metadata")?;
    let paths = metadata.paths(unpickled.root)?;
    for &(name, entry) in metadata.dict(state)? {
        let name = metadata.text(name)?;
        let path = paths.get(name).map_or(Ok(None), |&path| metadata.path(path))?;
        let path = path.unwrap_or_else(|| vec![Step::Name(name)]);
        let key = name::key(path.iter().map(Step::text));
        let own = match metadata.class(entry) {
            Some("TensorStorageMetadata") => pieces.tensor(name, entry)?,
            Some("BytesStorageMetadata") => pieces.object(name)?,
            _ => return Err(input.damaged(format!("{name:?} is neither a tensor nor an object"))),
        };
        let count = own.stored.len() + own.values.len() + own.unreadable.len();
        pieces.charge((4 + count) * key.len() + PER_STEP * Lists::steps(&path).map_or(0, <[_]>::len))?;
        let is_new = lists.note(&path, &own)
            & merge(&mut found.stored, &key, own.stored)
            & merge(&mut found.values, &key, own.values)
            & merge(&mut found.unreadable, &key, own.unreadable);
        if !is_new {
            return Err(input.damaged(format!("the name {name:?} has the path of another")));
        }
    }
    lists.join(&mut found.values);
    found.file_bytes = input.len() + files.open.values().map(Input::len).sum::<u64>();
    found.checks = files.checks;
    Foreign::new("PyTorch (distributed checkpoint)", path, found, options)
}

/// Moves entries under `key`; `false` when one is there already.
fn merge<V>(into: &mut BTreeMap<String, V>, key: &str, from: BTreeMap<String, V>) -> bool {
    from.into_iter().all(|(inner, value)| {
        let key = if inner.is_empty() { key.to_string() } else { format!("{key}/{inner}") };
        into.insert(key, value).is_none()
    })
}

/// One step of a path in the nested object.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Step<'a> {
    Name(&'a str),
    Position(u64),
}

impl<'a> Step<'a> {
    fn text(&self) -> Cow<'a, str> {
        match self {
            Step::Name(name) => (*name).into(),
            Step::Position(i) => i.to_string().into(),
        }
    }
}

/// Lists in the nested object. Those of plain data become one value, as in files of `torch.save`.
#[derive(Default)]
struct Lists<'a> {
    /// The keys of the outermost lists.
    keys: BTreeSet<String>,
    /// Those of them that hold tensors.
    mixed: BTreeSet<String>,
    /// Paths by key.
    paths: BTreeMap<String, Vec<Step<'a>>>,
}

impl<'a> Lists<'a> {
    /// Returns the steps of a path from the outermost list on.
    fn steps<'b>(path: &'b [Step<'a>]) -> Option<&'b [Step<'a>]> {
        path.iter().position(|step| matches!(step, Step::Position(_))).map(|at| &path[at..])
    }

    fn note(&mut self, path: &[Step<'a>], own: &Found) -> bool {
        if let Some(steps) = Lists::steps(path) {
            let list = name::key(path[..path.len() - steps.len()].iter().map(Step::text));
            if !own.stored.is_empty() || !own.unreadable.is_empty() || !own.values.contains_key("") {
                self.mixed.insert(list.clone());
            }
            self.keys.insert(list);
            self.paths.insert(name::key(path.iter().map(Step::text)), steps.to_vec());
        }
        true
    }

    fn join(self, values: &mut BTreeMap<String, Value>) {
        for list in self.keys.difference(&self.mixed) {
            let prefix = format!("{list}/");
            let inside: Vec<String> = values
                .range(prefix.clone()..)
                .map(|(key, _)| key)
                .take_while(|key| key.starts_with(&prefix))
                .cloned()
                .collect();
            let mut whole = Nest::default();
            for key in inside {
                if let Some((value, path)) = values.remove(&key).zip(self.paths.get(&key)) {
                    whole.insert(path, value);
                }
            }
            values.insert(list.clone(), whole.json());
        }
    }
}

/// Values by path, on the way to JSON.
#[derive(Default)]
struct Nest<'a> {
    value: Option<Value>,
    items: BTreeMap<u64, Nest<'a>>,
    entries: BTreeMap<&'a str, Nest<'a>>,
}

impl<'a> Nest<'a> {
    fn insert(&mut self, path: &[Step<'a>], value: Value) {
        let mut at = self;
        for step in path {
            at = match step {
                Step::Name(name) => at.entries.entry(name).or_default(),
                Step::Position(i) => at.items.entry(*i).or_default(),
            };
        }
        at.value = Some(value);
    }

    fn json(self) -> Value {
        match (self.value, self.items.is_empty()) {
            (Some(value), _) => value,
            (None, false) => Value::Array(self.items.into_values().map(Nest::json).collect()),
            (None, true) => {
                Value::Object(self.entries.into_iter().map(|(key, nest)| (key.to_string(), nest.json())).collect())
            }
        }
    }
}

/// The parsed `.metadata`.
struct Metadata<'a> {
    arena: &'a Arena,
    input: &'a Input,
}

impl<'a> Metadata<'a> {
    fn class(&self, id: Id) -> Option<&'a str> {
        let Node::Object(object) = self.arena.node(id) else { return None };
        self.arena.globals.get(object.class as usize).map(|class| &*class.name)
    }

    fn state(&self, id: Id) -> Option<Id> {
        let Node::Object(object) = self.arena.node(id) else { return None };
        object.state
    }

    /// Returns an attribute. They are searched, so there must be few.
    fn attribute(&self, id: Id, name: &str) -> Result<Option<Id>> {
        let Some(state) = self.state(id) else { return Ok(None) };
        let count = self.arena.dict(state).map_or(0, <[_]>::len);
        if count > MAX_ATTRIBUTES {
            return Err(self
                .input
                .unsupported(format!("an object has {count} attributes, at most {MAX_ATTRIBUTES} are read")));
        }
        Ok(self.arena.field(state, name))
    }

    fn field(&self, id: Id, name: &str) -> Result<Id> {
        self.attribute(id, name)?.ok_or_else(|| self.input.damaged(format!("it has no `{name}` where one belongs")))
    }

    fn dict(&self, id: Id) -> Result<&'a [(Id, Id)]> {
        self.arena.dict(id).ok_or_else(|| self.input.damaged("what should be a dictionary is none"))
    }

    fn text(&self, id: Id) -> Result<&'a str> {
        let text = self.arena.text(id).filter(|text| text.len() <= MAX_NAME);
        text.ok_or_else(|| self.input.unsupported(format!("a name is no text of at most {MAX_NAME} bytes")))
    }

    fn number(&self, id: Id) -> Result<u64> {
        let number = self.arena.int(id).and_then(|number| u64::try_from(number).ok());
        number.ok_or_else(|| self.input.damaged("what should be a length is none"))
    }

    fn numbers(&self, id: Id) -> Result<Vec<u64>> {
        let items = self.arena.items(id).filter(|items| items.len() <= 64);
        let items = items.ok_or_else(|| self.input.damaged("what should be a shape is none"))?;
        items.iter().map(|&item| self.number(item)).collect()
    }

    /// Returns the paths of flattened names. Of two with one name the last counts, as in Python.
    fn paths(&self, root: Id) -> Result<HashMap<&'a str, Id>> {
        let planner = self.attribute(root, "planner_data")?.and_then(|planner| self.arena.dict(planner));
        let named = planner.unwrap_or_default().iter().filter_map(|&(name, path)| Some((self.text(name).ok()?, path)));
        Ok(named.collect())
    }

    /// Returns a path: texts of dictionaries, and positions in lists.
    fn path(&self, path: Id) -> Result<Option<Vec<Step<'a>>>> {
        let path = self.arena.items(path).filter(|path| path.len() <= MAX_DEPTH).unwrap_or_default();
        let mut steps = Vec::with_capacity(path.len());
        for &step in path {
            match self.arena.int(step).map(u64::try_from) {
                Some(Ok(position)) => steps.push(Step::Position(position)),
                None if self.arena.text(step).is_some() => steps.push(Step::Name(self.text(step)?)),
                _ => return Ok(None),
            }
        }
        Ok(Some(steps).filter(|steps| !steps.is_empty()))
    }

    /// Where all items are.
    fn items(&self, root: Id) -> Result<HashMap<ItemKey<'a>, Item<'a>>> {
        let mut items = HashMap::new();
        let mut ranges = Vec::new();
        let storage = self.field(root, "storage_data")?;
        for &(index, info) in self.dict(storage)? {
            let name = self.text(self.field(index, "fqn")?)?;
            let offset = match self.attribute(index, "offset")? {
                Some(offset) if !matches!(self.arena.node(offset), Node::None) => Some(self.numbers(offset)?),
                _ => None,
            };
            let file = self.text(self.field(info, "relative_path")?)?;
            let is_plain = !file.is_empty() && !file.contains(['/', '\\', '\0']) && file != "." && file != "..";
            if !is_plain {
                return Err(self.input.damaged(format!("an item is in {file:?}, outside of the directory")));
            }
            let transform = self.attribute(info, "transform_descriptors")?;
            if transform.is_some_and(|transform| !matches!(self.arena.node(transform), Node::None)) {
                return Err(self
                    .input
                    .unsupported(format!("{name:?} is compressed or transformed, which is not read")));
            }
            let (begin, length) =
                (self.number(self.field(info, "offset")?)?, self.number(self.field(info, "length")?)?);
            if items.insert((name, offset), Item { file, begin, length }).is_some() {
                return Err(self.input.damaged(format!("a piece of {name:?} appears twice")));
            }
            ranges.push((file, begin, begin.saturating_add(length), name));
        }
        // Each is read once, so that no byte is read more often.
        ranges.sort_unstable();
        if let Some(pair) = ranges.windows(2).find(|pair| pair[0].0 == pair[1].0 && pair[1].1 < pair[0].2) {
            let (file, a, b) = (pair[0].0, pair[0].3, pair[1].3);
            return Err(self.input.damaged(format!("pieces of {a:?} and {b:?} lie in the same bytes of {file:?}")));
        }
        Ok(items)
    }
}

/// The data files, each opened once.
struct Files<'a> {
    directory: &'a Path,
    open: BTreeMap<String, Input>,
    checks: Vec<std::sync::Arc<Blob>>,
}

impl Files<'_> {
    fn item(&mut self, name: &str, item: &Item<'_>) -> Result<Archive> {
        if !self.open.contains_key(item.file) {
            let input = Input::open(&self.directory.join(item.file))?;
            self.open.insert(item.file.to_string(), input);
        }
        let file = self.open.get(item.file);
        let range = item.begin.checked_add(item.length).map(|end| item.begin..end);
        let input = file.zip(range).and_then(|(file, range)| file.slice(range));
        let input = input.ok_or_else(|| {
            let reason = format!("{name:?} should have the {} bytes from {}, beyond its end", item.length, item.begin);
            Error::damaged(self.directory.join(item.file), reason)
        })?;
        let archive = Archive::open(input)?;
        self.checks.extend(archive.records().values().cloned());
        Ok(archive)
    }
}

/// Reads items.
struct Pieces<'a, 'b> {
    metadata: &'a Metadata<'a>,
    /// Those that have not been read.
    items: HashMap<ItemKey<'a>, Item<'a>>,
    files: &'a mut Files<'b>,
    options: &'a ReadOptions,
    /// Bytes of memory that names and values may still take.
    left: u64,
}

impl<'a> Pieces<'a, '_> {
    fn charge(&mut self, bytes: usize) -> Result<()> {
        let left = self.left.checked_sub(bytes as u64).ok_or_else(|| {
            let reason = "its names and values would take more memory than its objects account for";
            self.metadata.input.unsupported(reason)
        });
        self.left = left?;
        Ok(())
    }

    fn contents(&mut self, name: &'a str, offset: Option<Vec<u64>>) -> Result<Contents> {
        let key = (name, offset);
        let item = self.items.remove(&key).ok_or_else(|| {
            let piece = key.1.map(|offset| format!(" at {offset:?}")).unwrap_or_default();
            self.metadata.input.damaged(format!("it does not say where {name:?}{piece} is, or names it twice"))
        })?;
        Contents::read(self.files.item(name, &item)?, self.options)
    }

    /// An object that was saved alone.
    fn object(&mut self, name: &'a str) -> Result<Found> {
        let contents = self.contents(name, None)?;
        let input = contents.archive.input();
        let mut found = Found::default();
        let mut binder = StorageBinder::new(contents.storages(), input.path());
        let bytes = collect(
            input,
            &format!("the object {name:?}"),
            &contents.arena,
            contents.root,
            Style::Tree,
            &mut binder,
            &mut found,
        )?;
        // All objects together have the allowance of one file.
        self.left = self.left.saturating_add(tree::PER_OBJECT * contents.arena.len() as u64);
        self.charge(bytes as usize)?;
        Ok(found)
    }

    /// A tensor, put together from its pieces.
    fn tensor(&mut self, name: &'a str, entry: Id) -> Result<Found> {
        let root = String::new();
        Ok(match self.stored(name, entry)? {
            Ok(stored) => Found { stored: [(root, stored)].into(), ..Found::default() },
            Err(reason) => Found { unreadable: [(root, reason)].into(), ..Found::default() },
        })
    }

    fn stored(&mut self, name: &'a str, entry: Id) -> Result<Result<Stored, String>> {
        let metadata = self.metadata;
        let damaged = |reason: String| metadata.input.damaged(format!("the tensor {name:?}: {reason}"));
        let shape = metadata.numbers(metadata.field(entry, "size")?)?;
        let properties = metadata.state(metadata.field(entry, "properties")?);
        let dtype = properties.and_then(|state| metadata.arena.items(state)?.first().copied());
        let dtype = dtype.map(|dtype| metadata.arena.node(dtype));
        let Some(Node::Dtype(torch_type)) = dtype else { return Err(damaged("it has no dtype".into())) };
        let torch_type: TorchType = *torch_type;
        let Some(dtype) = torch_type.dtype() else {
            return Ok(Err(format!("it is of the type torch.{}, which safetensors cannot hold", torch_type.name())));
        };
        let spec = TensorSpec::new(dtype, shape);
        let count = spec.bytes().filter(|&bytes| i64::try_from(bytes).is_ok()).map(|bytes| bytes / dtype.size() as u64);
        let count = count.ok_or_else(|| damaged("it would have more bytes than there can be".into()))?;
        let chunks = metadata.field(entry, "chunks")?;
        let chunks = metadata.arena.items(chunks).ok_or_else(|| damaged("its pieces are no list".into()))?;
        let mut parts = Vec::new();
        let (mut covered, mut seen) = (0u64, HashSet::new());
        for &chunk in chunks {
            let offsets = metadata.numbers(metadata.field(chunk, "offsets")?)?;
            let sizes = metadata.numbers(metadata.field(chunk, "sizes")?)?;
            let is_inside = offsets.len() == spec.shape.len()
                && sizes.len() == spec.shape.len()
                && spec
                    .shape
                    .iter()
                    .zip(offsets.iter().zip(&sizes))
                    .all(|(&length, (&offset, &size))| offset.checked_add(size).is_some_and(|end| end <= length));
            if !is_inside {
                return Err(damaged(format!("its piece of {sizes:?} at {offsets:?} is outside of {:?}", spec.shape)));
            }
            if !seen.insert(offsets.clone()) {
                return Err(damaged(format!("two pieces of it are at {offsets:?}")));
            }
            // Inside the tensor, whose product fits.
            covered = covered.saturating_add(sizes.iter().product());
            let contents = self.contents(name, Some(offsets.clone()))?;
            let mut binder = StorageBinder::new(contents.storages(), contents.archive.input().path());
            let stored = match binder.bind(&contents.arena, contents.root)? {
                Ok(stored) => stored,
                Err(reason) => return Err(damaged(format!("its piece at {offsets:?}: {reason}"))),
            };
            if stored.spec.dtype != dtype || stored.spec.shape != sizes {
                return Err(damaged(format!("its piece at {offsets:?} of {sizes:?} is {} in the file", stored.spec)));
            }
            parts.extend(stored.parts.into_iter().map(|part| Part { begin: offsets.clone(), ..part }));
        }
        let overlaps = overlap(&parts)
            .ok_or_else(|| metadata.input.unsupported(format!("the tensor {name:?} has too many pieces to compare")))?;
        if covered != count || overlaps {
            return Err(damaged(format!(
                "its pieces have {covered} elements, it has {count}: they overlap, or leave some out"
            )));
        }
        Ok(Ok(Stored { spec, parts }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interop::pytorch::archive_of;
    use crate::source::TensorSource;

    fn text(text: &str) -> Vec<u8> {
        [b"X".as_slice(), &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()
    }

    fn number(number: u32) -> Vec<u8> {
        [b"J".as_slice(), &number.to_le_bytes()].concat()
    }

    fn dict(entries: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
        let entries: Vec<u8> = entries.iter().flat_map(|(key, value)| [key.as_slice(), value].concat()).collect();
        [b"}(".as_slice(), &entries, b"u"].concat()
    }

    fn object(class: &str, state: &[(&str, Vec<u8>)]) -> Vec<u8> {
        let module = if class == "_StorageInfo" { "filesystem" } else { "metadata" };
        let class = format!("ctorch.distributed.checkpoint.{module}\n{class}\n)");
        let state: Vec<_> = state.iter().map(|(name, value)| (text(name), value.clone())).collect();
        [class.as_bytes(), b"\x81", &dict(&state), b"b"].concat()
    }

    /// An entry of `storage_data` for an object.
    fn stored(name: &str, begin: usize, length: usize) -> (Vec<u8>, Vec<u8>) {
        let place =
            [("relative_path", text("data")), ("offset", number(begin as u32)), ("length", number(length as u32))];
        (object("MetadataIndex", &[("fqn", text(name)), ("offset", b"N".to_vec())]), object("_StorageInfo", &place))
    }

    /// Opens a checkpoint of objects, all of them of one item.
    fn open_objects(
        names: &[String],
        planner: &[(Vec<u8>, Vec<u8>)],
        storage: &[(Vec<u8>, Vec<u8>)],
        data: &[u8],
    ) -> Result<Foreign> {
        let directory = tempfile::tempdir().unwrap();
        let entries: Vec<_> = names.iter().map(|name| (text(name), object("BytesStorageMetadata", &[]))).collect();
        let root = object(
            "Metadata",
            &[
                ("state_dict_metadata", dict(&entries)),
                ("planner_data", dict(planner)),
                ("storage_data", dict(storage)),
            ],
        );
        std::fs::write(directory.path().join("data"), data).unwrap();
        std::fs::write(directory.path().join(METADATA), [b"\x80\x02", root.as_slice(), b"."].concat()).unwrap();
        open(directory.path(), &ReadOptions::default())
    }

    /// An item: the number 7.
    fn item() -> Vec<u8> {
        archive_of(&[("x/data.pkl", b"\x80\x02K\x07.")]).unwrap()
    }

    #[test]
    fn every_item_is_read_once() {
        let (item, names) = (item(), ["a", "b"].map(String::from));
        let length = item.len();
        let two = item.repeat(2);
        let opened = open_objects(&names, &[], &[stored("a", length, length), stored("b", 0, length)], &two).unwrap();
        assert_eq!(opened.values()["b"], 7);
        let same = open_objects(&names, &[], &[stored("a", 0, length), stored("b", 0, length)], &two);
        assert!(same.unwrap_err().to_string().contains("same bytes"));
        let twice = ["a", "a"].map(String::from);
        let twice = open_objects(&twice, &[], &[stored("a", 0, length), stored("b", length, length)], &two);
        assert!(twice.unwrap_err().to_string().contains("names it twice"));
    }

    #[test]
    fn names_and_attributes_are_bounded() {
        let (item, long) = (item(), "a".repeat(2_000));
        let refusal = |names: &[String], planner: &[_], storage: &[_]| {
            open_objects(names, planner, storage, &item).unwrap_err().to_string()
        };
        assert!(refusal(&["a".to_string()], &[], &[stored(&long, 0, 9)]).contains("1024 bytes"));
        let step = [b"(".as_slice(), &text(&long), b"t"].concat();
        assert!(refusal(&["a".to_string()], &[(text("a"), step)], &[stored("a", 0, 9)]).contains("1024 bytes"));
        let attributes: Vec<(String, Vec<u8>)> = (0..100_000).map(|i| (i.to_string(), b"N".to_vec())).collect();
        let attributes: Vec<(&str, Vec<u8>)> = attributes.iter().map(|(name, n)| (name.as_str(), n.clone())).collect();
        let info = object("_StorageInfo", &attributes);
        let storage = [(stored("a", 0, 9).0, info)];
        assert!(refusal(&["a".to_string()], &[], &storage).contains("100000 attributes"));
    }

    /// Paths of many steps that share their texts.
    #[test]
    fn paths_are_bounded() {
        let (item, count) = (item(), 300);
        let names: Vec<String> = (0..count).map(|i| format!("n{i}")).collect();
        let storage: Vec<_> =
            names.iter().enumerate().map(|(i, name)| stored(name, i * item.len(), item.len())).collect();
        let path = |i: u32| [b"(".as_slice(), &b"h\0".repeat(99), &number(i), b"t"].concat();
        let mut planner: Vec<_> = (0..count).map(|i| (text(&names[i]), path(i as u32))).collect();
        planner[0].1 =
            [b"(".as_slice(), &text(&"a".repeat(1_000)), b"q\0", &b"h\0".repeat(98), &number(0), b"t"].concat();
        let data = item.repeat(count);
        let reason = open_objects(&names, &planner, &storage, &data).unwrap_err().to_string();
        assert!(reason.contains("more memory than its objects"), "{reason}");
        // Values of 10 MB in all of 10 KB.
        let text = text(&"a".repeat(5_000));
        let many = [b"\x80\x02(".as_slice(), &text, b"q\0", &b"h\0".repeat(2_000), b"l."].concat();
        let item = archive_of(&[("x/data.pkl", &many)]).unwrap();
        let place = |i: usize| stored(&names[i], i * item.len(), item.len());
        assert!(open_objects(&names[..1], &[], &[place(0)], &item).is_ok());
        let two = open_objects(&names[..2], &[], &[place(0), place(1)], &item.repeat(2));
        assert!(two.unwrap_err().to_string().contains("more memory than its objects"));
    }
}
