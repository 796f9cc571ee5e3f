//! Writes any source as a checkpoint of this crate, or as files of another tool.

use crate::checkpoint::Checkpoint;
use crate::dtype::TensorSpec;
use crate::error::{BoxError, Error, Result};
use crate::graph::{Identity, Node, TensorBytes, TensorLeaf, TensorTarget, ValueApply, ValueLeaf};
use crate::interop::Written;
#[cfg(feature = "huggingface")]
use crate::interop::huggingface;
#[cfg(feature = "pytorch")]
use crate::interop::pytorch;
#[cfg(feature = "tensorflow")]
use crate::interop::tensorflow;
use crate::location::Location;
use crate::name;
use crate::source::{TensorSource, room};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread;

/// The format that [`convert`] writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Format {
    /// A checkpoint of this crate.
    Checkpoint,
    /// A safetensors file if the path ends in `.safetensors`, otherwise a Hugging Face directory.
    #[cfg(feature = "huggingface")]
    Safetensors,
    /// A file for `torch.load`.
    #[cfg(feature = "pytorch")]
    PyTorch,
    /// A TensorFlow checkpoint; the path is its prefix.
    #[cfg(feature = "tensorflow")]
    TensorFlow,
}

/// The format of checkpoints of this crate.
const OWN: &str = crate::interop::FORMAT;

/// The component of tensors and values whose key is a single name.
const COMPONENT: &str = "model";

/// Writes the content of `source` to `path`, atomically and durably. The source is verified as it is read, as far as
/// its format allows. A [`Mapped`](crate::map::Mapped) source is written under its new names.
///
/// In a checkpoint of this crate, the first name of a key is the component and its file. A key of a single name, as in
/// safetensors files, becomes `model/NAME` unless the source is a checkpoint of this crate. Entries that the format cannot hold are left out and listed in the result.
///
/// # Errors
/// [`Error::AlreadyExists`] if a checkpoint, directory or TensorFlow prefix exists (files are replaced);
/// [`Error::InvalidName`] for names that the format cannot hold; errors of reading and writing. After an error, nothing
/// is left at `path`.
///
/// ```no_run
/// # fn main() -> tch_checkpoint::Result<()> {
/// use tch_checkpoint::convert::{Format, convert};
/// use tch_checkpoint::{interop, map::NameMap};
/// let source = interop::open("encoder.weights.h5")?;
/// let names = NameMap::open("encoder.map")?.apply(&*source)?;
/// let written = convert(&names, "encoder", Format::Checkpoint)?;
/// println!("{} tensors", written.tensors);
/// # Ok(())
/// # }
/// ```
pub fn convert(source: &dyn TensorSource, path: impl Into<Location>, format: Format) -> Result<Written> {
    let path = &path.into();
    match format {
        Format::Checkpoint => checkpoint(source, path),
        #[cfg(feature = "huggingface")]
        Format::Safetensors => huggingface::write(source, path, &huggingface::WriteOptions::default()),
        #[cfg(feature = "pytorch")]
        Format::PyTorch => pytorch::write(source, path, &pytorch::WriteOptions::default()),
        #[cfg(feature = "tensorflow")]
        Format::TensorFlow => {
            let left_out = tensorflow::write(source, path, &tensorflow::WriteOptions::default())?;
            let tensors = source.tensors().keys().filter(|key| !left_out.contains_key(*key)).count();
            Ok(Written { tensors, left_out })
        }
    }
}

fn checkpoint(source: &dyn TensorSource, path: &Location) -> Result<Written> {
    let (requests, asked) = channel::<Request>();
    // In checkpoints of this crate, an object can be a tensor or a value itself.
    let mut root = Tree { has_components: source.format() == OWN, ..Tree::default() };
    let mut addresses = HashMap::new();
    for (key, spec) in source.tensors() {
        let next = addresses.len();
        let address = *addresses.entry(source.first_alias(key)).or_insert(next);
        let leaf = FromSource { key: key.clone(), spec: spec.clone(), address, requests: Mutex::new(requests.clone()) };
        root.put(key, Node::tensor(leaf))?;
    }
    for (key, value) in source.values() {
        root.put(key, Node::value(Fixed(value.clone())))?;
    }
    drop(requests);
    let asked = Mutex::new(asked);
    let answer = || loop {
        let next = asked.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Request { key, reply }) = next else { return };
        // The requester may have given up.
        let _ = reply.send(read(source, &key));
    };
    let write = move || {
        let mut checkpoint = Checkpoint::new();
        for (name, tree) in root.children {
            checkpoint.track_mut(&name, tree.node())?;
        }
        checkpoint.write(path)
    };
    // Leaves outlive every borrow, so the source is read by separate threads that hold it.
    thread::scope(|scope| {
        (0..READERS).for_each(|_| drop(scope.spawn(answer)));
        write()
    })?;
    let left_out = source.unreadable().clone();
    Ok(Written { tensors: source.tensors().len(), left_out })
}

/// The number of threads that read.
const READERS: usize = 2;

fn read(source: &dyn TensorSource, key: &str) -> Result<Vec<u8>> {
    let mut bytes = room(key, source.tensors().get(key).and_then(|spec| spec.bytes()))?;
    source.read(key, &mut bytes)?;
    Ok(bytes)
}

/// Objects by their names.
#[derive(Default)]
struct Tree {
    /// Whether a key of a single name is a component.
    has_components: bool,
    leaf: Option<Node>,
    children: BTreeMap<String, Tree>,
}

impl Tree {
    fn put(&mut self, key: &str, leaf: Node) -> Result<()> {
        let mut path = name::path(key).ok_or_else(|| Error::name(key, "it is not a key"))?;
        if path.len() == 1 && !self.has_components {
            path.insert(0, COMPONENT.to_string());
        }
        let mut at = self;
        for part in path {
            if at.leaf.is_some() {
                return Err(both(key));
            }
            at = at.children.entry(part).or_default();
        }
        if at.leaf.is_some() || !at.children.is_empty() {
            return Err(both(key));
        }
        at.leaf = Some(leaf);
        Ok(())
    }

    fn node(self) -> Node {
        match self.leaf {
            Some(leaf) => leaf,
            None => Node::group(self.children.into_iter().map(|(name, tree)| (name, tree.node()))),
        }
    }
}

fn both(key: &str) -> Error {
    let reason = "one key is the beginning of another, or both would be the same; rename one of them with a map";
    Error::name(name::shown(key).to_string(), reason)
}

/// A request for a tensor.
struct Request {
    key: String,
    reply: Sender<Result<Vec<u8>>>,
}

/// A tensor of the source.
struct FromSource {
    key: String,
    spec: TensorSpec,
    /// Equal for tensors that share their elements.
    address: usize,
    requests: Mutex<Sender<Request>>,
}

impl TensorLeaf for FromSource {
    fn spec(&self) -> Result<TensorSpec, BoxError> {
        Ok(self.spec.clone())
    }

    fn identity(&self) -> Option<Identity> {
        let (device, strides) = ("source".to_string(), Vec::new());
        (self.spec.bytes() != Some(0)).then(|| Identity {
            device,
            address: self.address,
            spec: self.spec.clone(),
            strides,
        })
    }

    fn bytes(&self) -> Result<Box<dyn TensorBytes>, BoxError> {
        let (reply, answer) = channel();
        let request = Request { key: self.key.clone(), reply };
        let sent = self.requests.lock().unwrap_or_else(PoisonError::into_inner).send(request);
        let closed = || "its source is closed".to_string();
        sent.map_err(|_| closed())?;
        let bytes = answer.recv().map_err(|_| closed())?;
        Ok(Box::new(bytes?))
    }

    fn target(&self) -> Result<Box<dyn TensorTarget>, BoxError> {
        Err("a source is only read".into())
    }
}

/// A value of the source.
struct Fixed(Value);

impl ValueLeaf for Fixed {
    fn save(&self) -> Result<Value, BoxError> {
        Ok(self.0.clone())
    }

    fn load(&self, _: &Value) -> Result<ValueApply, BoxError> {
        Err("a source is only read".into())
    }
}
