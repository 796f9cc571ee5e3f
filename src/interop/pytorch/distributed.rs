//! Directories of `torch.distributed.checkpoint`: one pickle with the locations of all items, and files that are
//! sequences of small zip archives.

use super::archive::Contents;
use super::bind::{Binder, StorageBinder};
use super::pickle::{Arena, Id, Node, PickleReader, unpickle};
use super::rules::{Dialect, TorchRules};
use super::tree::Style;
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
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;

/// The file whose presence makes a directory a checkpoint.
pub(super) const METADATA: &str = ".metadata";

/// The longest path in the nested object.
const MAX_DEPTH: usize = 100;

/// Where an item is.
struct Item {
    file: String,
    begin: u64,
    length: u64,
}

/// An item is known by its name and, of a piece of a tensor, by its first element.
type ItemKey = (String, Option<Vec<u64>>);

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
    let mut pieces = Pieces { metadata: &metadata, items, files: &mut files, options };
    let state = metadata.field(unpickled.root, "state_dict_metadata")?;
    let planner = metadata.attribute(unpickled.root, "planner_data");
    for &(name, entry) in metadata.dict(state)? {
        let name = metadata.text(name)?;
        let path = planner.and_then(|planner| metadata.path_of(planner, name));
        let path = path.unwrap_or_else(|| vec![Step::Name(name.to_string())]);
        let key = name::key(path.iter().map(Step::text));
        let own = match metadata.class(entry) {
            Some("TensorStorageMetadata") => pieces.tensor(name, entry)?,
            Some("BytesStorageMetadata") => pieces.object(name)?,
            _ => return Err(input.damaged(format!("{name:?} is neither a tensor nor an object"))),
        };
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
#[derive(Debug, Clone, PartialEq)]
enum Step {
    Name(String),
    Position(u64),
}

impl Step {
    fn text(&self) -> String {
        match self {
            Step::Name(name) => name.clone(),
            Step::Position(i) => i.to_string(),
        }
    }
}

/// Lists in the nested object. Those of plain data become one value, as in files of `torch.save`.
#[derive(Default)]
struct Lists {
    /// The keys of the outermost lists.
    keys: BTreeSet<String>,
    /// Those of them that hold tensors.
    mixed: BTreeSet<String>,
    /// Paths by key.
    paths: BTreeMap<String, Vec<Step>>,
}

impl Lists {
    fn note(&mut self, path: &[Step], own: &Found) -> bool {
        if let Some(at) = path.iter().position(|step| matches!(step, Step::Position(_))) {
            let list = name::key(path[..at].iter().map(Step::text));
            if !own.stored.is_empty() || !own.unreadable.is_empty() || !own.values.contains_key("") {
                self.mixed.insert(list.clone());
            }
            self.keys.insert(list);
            self.paths.insert(name::key(path.iter().map(Step::text)), path[at..].to_vec());
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
struct Nest {
    value: Option<Value>,
    items: BTreeMap<u64, Nest>,
    entries: BTreeMap<String, Nest>,
}

impl Nest {
    fn insert(&mut self, path: &[Step], value: Value) {
        let mut at = self;
        for step in path {
            at = match step {
                Step::Name(name) => at.entries.entry(name.clone()).or_default(),
                Step::Position(i) => at.items.entry(*i).or_default(),
            };
        }
        at.value = Some(value);
    }

    fn json(self) -> Value {
        match (self.value, self.items.is_empty()) {
            (Some(value), _) => value,
            (None, false) => Value::Array(self.items.into_values().map(Nest::json).collect()),
            (None, true) => Value::Object(self.entries.into_iter().map(|(key, nest)| (key, nest.json())).collect()),
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

    fn attribute(&self, id: Id, name: &str) -> Option<Id> {
        self.arena.field(self.state(id)?, name)
    }

    fn field(&self, id: Id, name: &str) -> Result<Id> {
        self.attribute(id, name).ok_or_else(|| self.input.damaged(format!("it has no `{name}` where one belongs")))
    }

    fn dict(&self, id: Id) -> Result<&'a [(Id, Id)]> {
        self.arena.dict(id).ok_or_else(|| self.input.damaged("what should be a dictionary is none"))
    }

    fn text(&self, id: Id) -> Result<&'a str> {
        self.arena.text(id).ok_or_else(|| self.input.damaged("a name is no text"))
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

    /// Returns the path of a flattened name: texts of dictionaries, and positions in lists.
    fn path_of(&self, planner: Id, name: &str) -> Option<Vec<Step>> {
        let path = self.arena.items(self.arena.field(planner, name)?).filter(|path| path.len() <= MAX_DEPTH)?;
        let step = |&step: &Id| match self.arena.text(step) {
            Some(name) => Some(Step::Name(name.to_string())),
            None => self.arena.int(step).and_then(|i| u64::try_from(i).ok()).map(Step::Position),
        };
        path.iter().map(step).collect::<Option<Vec<_>>>().filter(|path| !path.is_empty())
    }

    /// Where all items are.
    fn items(&self, root: Id) -> Result<HashMap<ItemKey, Item>> {
        let mut items = HashMap::new();
        let storage = self.field(root, "storage_data")?;
        for &(index, info) in self.dict(storage)? {
            let name = self.text(self.field(index, "fqn")?)?.to_string();
            let offset = match self.attribute(index, "offset") {
                Some(offset) if !matches!(self.arena.node(offset), Node::None) => Some(self.numbers(offset)?),
                _ => None,
            };
            let file = self.text(self.field(info, "relative_path")?)?.to_string();
            let is_plain = !file.is_empty() && !file.contains(['/', '\\', '\0']) && file != "." && file != "..";
            if !is_plain {
                return Err(self.input.damaged(format!("an item is in {file:?}, outside of the directory")));
            }
            let transform = self.attribute(info, "transform_descriptors");
            if transform.is_some_and(|transform| !matches!(self.arena.node(transform), Node::None)) {
                return Err(self
                    .input
                    .unsupported(format!("{name:?} is compressed or transformed, which is not read")));
            }
            let (begin, length) =
                (self.number(self.field(info, "offset")?)?, self.number(self.field(info, "length")?)?);
            if items.insert((name.clone(), offset), Item { file, begin, length }).is_some() {
                return Err(self.input.damaged(format!("a piece of {name:?} appears twice")));
            }
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
    fn item(&mut self, name: &str, item: &Item) -> Result<Archive> {
        if !self.open.contains_key(&item.file) {
            let input = Input::open(&self.directory.join(&item.file))?;
            self.open.insert(item.file.clone(), input);
        }
        let file = self.open.get(&item.file);
        let range = item.begin.checked_add(item.length).map(|end| item.begin..end);
        let input = file.zip(range).and_then(|(file, range)| file.slice(range));
        let input = input.ok_or_else(|| {
            let reason = format!("{name:?} should have the {} bytes from {}, beyond its end", item.length, item.begin);
            Error::damaged(self.directory.join(&item.file), reason)
        })?;
        let archive = Archive::open(input)?;
        self.checks.extend(archive.records().values().cloned());
        Ok(archive)
    }
}

/// Reads items.
struct Pieces<'a, 'b> {
    metadata: &'a Metadata<'a>,
    items: HashMap<ItemKey, Item>,
    files: &'a mut Files<'b>,
    options: &'a ReadOptions,
}

impl Pieces<'_, '_> {
    fn item(&self, name: &str, offset: Option<Vec<u64>>) -> Result<&Item> {
        let key = (name.to_string(), offset);
        self.items.get(&key).ok_or_else(|| {
            let piece = key.1.as_ref().map(|offset| format!(" at {offset:?}")).unwrap_or_default();
            self.metadata.input.damaged(format!("it does not say where {name:?}{piece} is"))
        })
    }

    fn contents(&mut self, name: &str, offset: Option<Vec<u64>>) -> Result<Contents> {
        let Item { file, begin, length } = self.item(name, offset)?;
        let item = Item { file: file.clone(), begin: *begin, length: *length };
        Contents::read(self.files.item(name, &item)?, self.options)
    }

    /// An object that was saved alone.
    fn object(&mut self, name: &str) -> Result<Found> {
        let contents = self.contents(name, None)?;
        let input = contents.archive.input();
        let mut found = Found::default();
        let mut binder = StorageBinder::new(contents.storages(), input.path());
        collect(
            input,
            &format!("the object {name:?}"),
            &contents.arena,
            contents.root,
            Style::Tree,
            &mut binder,
            &mut found,
        )?;
        Ok(found)
    }

    /// A tensor, put together from its pieces.
    fn tensor(&mut self, name: &str, entry: Id) -> Result<Found> {
        let root = String::new();
        Ok(match self.stored(name, entry)? {
            Ok(stored) => Found { stored: [(root, stored)].into(), ..Found::default() },
            Err(reason) => Found { unreadable: [(root, reason)].into(), ..Found::default() },
        })
    }

    fn stored(&mut self, name: &str, entry: Id) -> Result<Result<Stored, String>> {
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
        if covered != count || overlap(&parts) {
            return Err(damaged(format!(
                "its pieces have {covered} elements, it has {count}: they overlap, or leave some out"
            )));
        }
        Ok(Ok(Stored { spec, parts }))
    }
}
