//! Writing any source as a bundle with an object graph.

use super::bundle::GRAPH;
use super::checksum::mask;
use super::copy::check_free;
use super::messages::{Attribute, Entry, Header, Object, encode_graph};
use super::names::{VARIABLE_VALUE, variable_key};
use super::state::CheckpointState;
use super::table::TableWriter;
use super::types::{self, STRING};
use super::value::{self, Encoded};
use super::{place, strings};
use crate::error::{Error, Result};
use crate::interop::durable::{DurableFile, already_there, publish_all};
use crate::name;
use crate::source::{TensorSource, VerifiedBy};
use serde_json::Value;
use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};

/// The name under which `tf.train.Checkpoint` counts its saves.
const SAVE_COUNTER: &str = "save_counter";
/// Larger tensors are written in parts.
const PART: u64 = 4 << 20;

/// Options of [`write()`].
///
/// ```
/// use tch_checkpoint::interop::tensorflow::WriteOptions;
/// let options = WriteOptions::default().save_counter(7).state_file(false);
/// # let _ = options;
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct WriteOptions {
    save_counter: Option<u64>,
    state_file: bool,
}

impl Default for WriteOptions {
    fn default() -> Self {
        WriteOptions { save_counter: None, state_file: true }
    }
}

impl WriteOptions {
    /// Sets the number of saves so far, from which `tf.train.Checkpoint` continues to count. Defaults to the number at
    /// the end of the prefix, or 1. A source that has a value `save_counter` keeps it.
    #[must_use]
    pub fn save_counter(mut self, saves: u64) -> Self {
        self.save_counter = Some(saves);
        self
    }

    /// Sets whether the directory's file `checkpoint` is written, which names this checkpoint as the newest, and the
    /// only one, as `tf.train.Checkpoint.save` does. Defaults to `true`.
    #[must_use]
    pub fn state_file(mut self, is_written: bool) -> Self {
        self.state_file = is_written;
        self
    }
}

/// Writes `source` as the TensorFlow checkpoint `prefix`, such as `export/ckpt-1`. The directory must exist.
///
/// The keys of the source become paths of objects: for `model/dense/kernel`, `tf.train.Checkpoint(model=…)` restores
/// the variable `kernel` of the attribute `dense` of `model`. Tensors with several keys become one variable with
/// several paths. Values become variables too: integers `int64` or `uint64`, other numbers `float64`, texts `string`.
/// Entries that TensorFlow cannot represent exactly are left out and returned by key, with the reason.
///
/// Everything is verified as far as `source` can. The checkpoint is complete and durable when its `.index` file
/// appears; the same source produces the same bytes.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let temp = tempfile::tempdir()?;
/// # let dir = temp.path();
/// use tch_checkpoint::interop::{self, tensorflow::{self, WriteOptions}};
/// use tch_checkpoint::{Checkpoint, Counter};
///
/// let ours = Checkpoint::new().track("step", &Counter::new(7))?.write(dir.join("ours"))?;
/// tensorflow::write(&*interop::open(ours)?, dir.join("ckpt-1"), &WriteOptions::default())?;
/// let theirs = interop::open(dir.join("ckpt-1"))?;
/// assert!(theirs.tensors().contains_key("step"));
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Error::AlreadyExists`] if there is such a checkpoint, or a directory has the name of the state file;
/// [`Error::InvalidArgument`] for a name that is not UTF-8, which a state file cannot hold; [`Error::Damaged`] if the
/// source is; [`Error::Io`], [`Error::NoSpace`]. After an error, nothing is left at `prefix`.
pub fn write(
    source: &dyn TensorSource,
    prefix: impl AsRef<Path>,
    options: &WriteOptions,
) -> Result<BTreeMap<String, String>> {
    let prefix = prefix.as_ref();
    check_free(prefix)?;
    let state = options.state_file.then(|| state_of(prefix)).transpose()?;
    let mut left_out = source.unreadable().clone();
    let mut tree = Tree::default();
    let mut leaves = Vec::new();
    let mut large = false;
    let mut first = BTreeMap::new();
    for (key, spec) in source.tensors() {
        let alias = source.first_alias(key);
        if let Some(object) = first.get(alias) {
            tree.alias(key, *object);
            continue;
        }
        let Some(dtype) = types::number(spec.dtype) else {
            left_out.insert(key.clone(), format!("TensorFlow has no type for {}", spec.dtype));
            continue;
        };
        large |= spec.bytes().is_none_or(|bytes| bytes > PART) && source.verified_by(key) > VerifiedBy::Nothing;
        let Some(object) = tree.add(key) else {
            left_out.insert(key.clone(), "its key is no path of names".to_string());
            continue;
        };
        first.insert(alias, object);
        leaves.push((object, Leaf::Tensor(key, dtype)));
    }
    for (key, value) in source.values() {
        // Only what can be written becomes an object: one without a tensor could not be restored.
        let encoded = value::encode(value).and_then(|encoded| Some((tree.add(key)?, Leaf::Value(encoded))));
        match encoded {
            Some(leaf) => leaves.push(leaf),
            None => drop(left_out.insert(key.clone(), "TensorFlow has no type for such a value".to_string())),
        }
    }
    if let Some(object) = (!tree.has(SAVE_COUNTER)).then(|| tree.add(SAVE_COUNTER)).flatten() {
        let saves = options.save_counter.unwrap_or_else(|| number_of(prefix).unwrap_or(1));
        leaves.extend(value::encode(&Value::from(saves)).map(|encoded| (object, Leaf::Value(encoded))));
    }
    if large {
        // Parts of tensors are not verified as they are read.
        source.verify()?;
    }
    write_files(source, prefix, tree.into_graph(), leaves, state)?;
    Ok(left_out)
}

/// What a variable holds.
enum Leaf<'a> {
    Tensor(&'a str, u32),
    Value(Encoded),
}

fn write_files(
    source: &dyn TensorSource,
    prefix: &Path,
    graph: Graph,
    leaves: Vec<(usize, Leaf<'_>)>,
    state: Option<(PathBuf, CheckpointState)>,
) -> Result<()> {
    let data = DurableFile::create(&place::data(prefix, 0, 1))?;
    let mut entries = BTreeMap::new();
    let mut offset = 0;
    let mut sorted: Vec<(&String, Leaf<'_>)> = Vec::new();
    for (object, leaf) in leaves {
        sorted.extend(graph.keys.get(&object).map(|key| (key, leaf)));
    }
    sorted.sort_by(|a, b| a.0.cmp(b.0));
    for (key, leaf) in sorted {
        let entry = match leaf {
            Leaf::Tensor(tensor, dtype) => write_tensor(source, tensor, dtype, &data, offset)?,
            Leaf::Value(Encoded { dtype, shape, bytes, crc }) => {
                data.write_at(offset, &bytes)?;
                let crc = crc.unwrap_or_else(|| super::checksum::masked(&bytes));
                Entry { dtype, shape, offset, size: bytes.len() as u64, crc, ..Entry::default() }
            }
        };
        offset += entry.size;
        entries.insert(key.clone().into_bytes(), entry);
    }
    let (bytes, crc) = strings::encode(&[&encode_graph(&graph.objects)]);
    data.write_at(offset, &bytes)?;
    let graph = Entry { dtype: STRING, offset, size: bytes.len() as u64, crc, ..Entry::default() };
    entries.insert(GRAPH.to_vec(), graph);
    let mut table = TableWriter::default();
    table.add(&[], &Header::new(1).encode());
    entries.iter().for_each(|(key, entry)| table.add(key, &entry.encode()));
    let index = DurableFile::create(&place::index(prefix))?;
    index.write_at(0, &table.finish())?;
    let mut files = vec![data, index];
    if let Some((path, state)) = state {
        let file = DurableFile::create(&path)?;
        file.write_at(0, state.to_string().as_bytes())?;
        files.push(file);
    }
    publish_all(files)
}

fn write_tensor(source: &dyn TensorSource, key: &str, dtype: u32, data: &DurableFile, offset: u64) -> Result<Entry> {
    let spec = source.tensors().get(key).ok_or_else(|| Error::object(key, "it is gone from its source"))?;
    let size = spec.bytes().ok_or_else(|| Error::object(key, "it has more elements than there are"))?;
    let element = spec.dtype.size() as u64;
    let mut buffer = vec![0; size.min(PART) as usize];
    let mut crc = 0;
    if size <= PART {
        source.read(key, &mut buffer)?;
        data.write_at(offset, &buffer)?;
        crc = crc32c::crc32c(&buffer);
    } else {
        let mut position = 0;
        while position < size {
            let length = (size - position).min(PART);
            let part = &mut buffer[..length as usize];
            source.read_range(key, position / element..(position + length) / element, part)?;
            data.write_at(offset + position, part)?;
            crc = crc32c::crc32c_append(crc, part);
            position += length;
        }
    }
    Ok(Entry { dtype, shape: spec.shape.clone(), offset, size, crc: mask(crc), ..Entry::default() })
}

/// Returns the state file that names `prefix` as the newest.
fn state_of(prefix: &Path) -> Result<(PathBuf, CheckpointState)> {
    let Some(name) = prefix.file_name().and_then(|name| name.to_str()) else {
        return Err(Error::InvalidArgument(format!("{} is no name for a checkpoint", prefix.display())));
    };
    let path = prefix.with_file_name(place::STATE);
    if path.is_dir() {
        return Err(already_there(path));
    }
    Ok((path, CheckpointState::new(name)))
}

/// Returns the number at the end of a prefix: 5 for `ckpt-5`.
fn number_of(prefix: &Path) -> Option<u64> {
    prefix.file_name()?.to_str()?.rsplit_once('-')?.1.parse().ok()
}

/// Objects and their names, from the root, which is the first.
struct Tree {
    nodes: Vec<BTreeMap<String, usize>>,
    /// Whether the object is a variable.
    is_leaf: Vec<bool>,
}

impl Default for Tree {
    fn default() -> Self {
        Tree { nodes: vec![BTreeMap::new()], is_leaf: vec![false] }
    }
}

/// The objects of a tree, and the key of every variable, by its number in the tree.
struct Graph {
    objects: Vec<Object>,
    keys: BTreeMap<usize, String>,
}

impl Tree {
    /// Returns the variable of this key, made with all above it; `None` where there is one, or for the root.
    fn add(&mut self, key: &str) -> Option<usize> {
        let path = name::path(key)?;
        let at = path.iter().fold(0, |at, name| self.child(at, name));
        if at == 0 || std::mem::replace(&mut self.is_leaf[at], true) {
            return None;
        }
        Some(at)
    }

    /// Another name for a variable. A name that leads elsewhere already stays as it is.
    fn alias(&mut self, key: &str, object: usize) {
        if let Some((last, above)) = name::path(key).as_ref().and_then(|path| path.split_last()) {
            let parent = above.iter().fold(0, |at, name| self.child(at, name));
            self.nodes[parent].entry(last.clone()).or_insert(object);
        }
    }

    fn has(&self, name: &str) -> bool {
        self.nodes[0].contains_key(name)
    }

    fn child(&mut self, at: usize, name: &str) -> usize {
        let next = self.nodes.len();
        let child = *self.nodes[at].entry(name.to_string()).or_insert(next);
        if child == next {
            self.nodes.push(BTreeMap::new());
            self.is_leaf.push(false);
        }
        child
    }

    /// Numbers objects as TensorFlow does: by how many names they are away from the root, its counter of saves last.
    fn into_graph(self) -> Graph {
        let mut number = BTreeMap::from([(0, 0u32)]);
        let mut order = vec![(0, Vec::<String>::new())];
        let mut queue = VecDeque::from([0]);
        while let Some(at) = queue.pop_front() {
            let (object, path) = order[at].clone();
            for (name, child) in children(&self.nodes[object], object == 0) {
                if number.contains_key(child) {
                    continue;
                }
                number.insert(*child, order.len() as u32);
                queue.push_back(order.len());
                order.push((*child, [&path[..], std::slice::from_ref(name)].concat()));
            }
        }
        let mut graph = Graph { objects: Vec::new(), keys: BTreeMap::new() };
        for (object, path) in order {
            let mut described = Object { has_values: Some(true), ..Object::default() };
            for (name, child) in children(&self.nodes[object], object == 0) {
                described.children.extend(number.get(child).map(|id| (*id, name.clone())));
            }
            if self.is_leaf[object] {
                let key = variable_key(&path);
                let (name, full_name) = (VARIABLE_VALUE.to_string(), path.join("/"));
                described.attributes.push(Attribute { name, full_name, key: key.clone() });
                graph.keys.insert(object, key);
            }
            graph.objects.push(described);
        }
        graph
    }
}

fn children(names: &BTreeMap<String, usize>, is_root: bool) -> impl Iterator<Item = (&String, &usize)> {
    let last = move |name: &str| is_root && name == SAVE_COUNTER;
    let others = names.iter().filter(move |(name, _)| !last(name));
    others.chain(names.iter().filter(move |(name, _)| last(name)))
}
