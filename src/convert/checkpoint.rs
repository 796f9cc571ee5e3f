//! Writing any source as a checkpoint of this crate.

use crate::checkpoint::Checkpoint;
use crate::dtype::TensorSpec;
use crate::error::{BoxError, Error, Result};
use crate::graph::{Identity, Node, TensorBytes, TensorLeaf, TensorTarget, ValueApply, ValueLeaf};
use crate::interop::durable::already_there;
use crate::interop::{self, AT_ONCE, Written, verify_before_streaming};
use crate::location::Location;
use crate::name;
use crate::save::{AssetStream, SaveOptions};
use crate::source::{SOURCES, SourceAttributes, TensorSource, room};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};
use std::ops::Range;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread;

/// The component of tensors and values whose key is a single name.
const COMPONENT: &str = "model";

/// Writes the checkpoint `path`.
pub(super) fn checkpoint(
    source: &dyn TensorSource,
    mut attributes: SourceAttributes,
    path: &Location,
) -> Result<Written> {
    if !attributes.sources.is_empty() {
        attributes.metadata.insert(SOURCES.to_string(), std::mem::take(&mut attributes.sources).into());
    }
    let (requests, asked) = channel::<Request>();
    // In checkpoints of this crate, an object can be a tensor or a value itself.
    let mut root = Tree { has_components: source.format() == interop::FORMAT, ..Tree::default() };
    let mut addresses = HashMap::new();
    for (key, spec) in source.tensors() {
        let next = addresses.len();
        let address = *addresses.entry(source.first_alias(key)).or_insert(next);
        let (requires_grad, requests) = (source.requires_grad(key), Mutex::new(requests.clone()));
        let leaf = FromSource { key: key.clone(), spec: spec.clone(), address, requires_grad, requests };
        root.put(key, Node::tensor(leaf))?;
    }
    for (key, value) in source.values() {
        root.put(key, Node::value(Fixed(value.clone())))?;
    }
    drop(requests);
    verify_before_streaming(source, source.tensors().keys().map(String::as_str))?;
    // Another of several sources may have what this one lacks.
    attributes.without.retain(|component| !root.children.contains_key(component));
    let asked = Mutex::new(asked);
    let answer = || loop {
        let next = asked.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Request { key, range, reply }) = next else { return };
        // The requester may have stopped waiting.
        let _ = reply.send(read(source, &key, range));
    };
    let write = || {
        let mut checkpoint = Checkpoint::new();
        for (name, tree) in root.children {
            checkpoint.track_mut(&name, tree.node())?;
        }
        let assets = attributes.assets.iter().map(|(name, entry)| {
            AssetStream::new(name, entry.bytes, move |out| copy_asset(source, name, out).map_err(io::Error::other))
        });
        checkpoint.write_stamped(path, &SaveOptions::new().threads(READERS), assets.collect(), None, |stamp| {
            // No training loop is waiting for it.
            stamp.records_figures = false;
            stamp.step = attributes.step;
            stamp.save_counter = attributes.save_counter.unwrap_or_default();
            (stamp.metrics, stamp.metadata) = (attributes.metrics.clone(), attributes.metadata.clone());
            (stamp.unclean, stamp.without) = (attributes.unclean, attributes.without.clone());
        })
    };
    // Leaves outlive every borrow, so the source is read by separate threads that hold it.
    thread::scope(|scope| {
        (0..READERS).for_each(|_| drop(scope.spawn(answer)));
        write()
    })
    .map_err(|error| match of_source(error) {
        // The usual remedy is for a training, and this is a conversion.
        Error::AlreadyExists { path, .. } => already_there(path),
        error => error,
    })?;
    let (left_out, attributes_left_out) = (source.unreadable().clone(), attributes.left_out);
    Ok(Written { tensors: source.tensors().len(), left_out, attributes_left_out })
}

/// Writes a file of the source, verified.
fn copy_asset(source: &dyn TensorSource, name: &str, out: &mut dyn Write) -> Result<()> {
    source.read_asset(name, &mut |bytes| {
        out.write_all(bytes)
            .map_err(|e| e.downcast().unwrap_or_else(|e| Error::io("write", source.path().join(name), e)))
    })
}

/// The number of threads that read, and of those that write: each of them has a piece of a tensor in memory.
const READERS: usize = 2;

/// Reads a complete tensor, verified, or a range of its elements.
fn read(source: &dyn TensorSource, key: &str, range: Option<Range<u64>>) -> Result<Vec<u8>> {
    let spec = source.tensors().get(key);
    match range {
        None => {
            let mut bytes = room(key, spec.and_then(TensorSpec::bytes))?;
            source.read(key, &mut bytes)?;
            Ok(bytes)
        }
        Some(range) => {
            let size = spec.map_or(1, |spec| spec.dtype.size() as u64);
            let mut bytes = room(key, (range.end - range.start).checked_mul(size))?;
            source.read_range(key, range, &mut bytes)?;
            Ok(bytes)
        }
    }
}

/// Returns the error of the source that made a save fail: it names the file or the tensor itself.
fn of_source(error: Error) -> Error {
    match error {
        Error::Object { name, reason } => match reason.downcast::<Error>() {
            Ok(error) => *error,
            Err(reason) => Error::Object { name, reason },
        },
        error => error,
    }
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
    /// Elements; `None` for all of them.
    range: Option<Range<u64>>,
    reply: Sender<Result<Vec<u8>>>,
}

/// A tensor of the source.
struct FromSource {
    key: String,
    spec: TensorSpec,
    /// Equal for tensors that share their elements.
    address: usize,
    requires_grad: Option<bool>,
    requests: Mutex<Sender<Request>>,
}

impl FromSource {
    /// Asks the threads that hold the source.
    fn ask(&self, range: Option<Range<u64>>) -> Result<Vec<u8>, BoxError> {
        let (reply, answer) = channel();
        let request = Request { key: self.key.clone(), range, reply };
        let sent = self.requests.lock().unwrap_or_else(PoisonError::into_inner).send(request);
        let closed = "its source is closed";
        sent.map_err(|_| closed)?;
        Ok(answer.recv().map_err(|_| closed)??)
    }
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
        Ok(Box::new(self.ask(None)?))
    }

    fn copy_range(&self, _: &TensorSpec, offset: u64, target: &mut [u8]) -> Result<bool, BoxError> {
        if self.spec.bytes().is_none_or(|bytes| bytes <= AT_ONCE) {
            return Ok(false);
        }
        // Where a file is divided is not always between two elements.
        let size = self.spec.dtype.size() as u64;
        let (begin, end) = (offset / size, (offset + target.len() as u64).div_ceil(size));
        let bytes = self.ask(Some(begin..end))?;
        let from = (offset - begin * size) as usize;
        target.copy_from_slice(bytes.get(from..from + target.len()).ok_or("its source returned too few bytes")?);
        Ok(true)
    }

    fn target(&self) -> Result<Box<dyn TensorTarget>, BoxError> {
        Err("a source is only read".into())
    }

    fn requires_grad(&self) -> Option<bool> {
        self.requires_grad
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
