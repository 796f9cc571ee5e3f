//! A restricted unpickler: opcodes in, a graph of plain nodes out. Nothing is executed, imported or looked up.
//!
//! A global is only its two names. What calling one means is decided by [`Rules`]; a global that they do not know makes
//! every object built with it a [`Node::Refused`].

mod machine;
mod opcodes;
mod reader;
#[cfg(test)]
mod tests;

pub(crate) use machine::{not_allowed, unpickle};
pub(crate) use reader::PickleReader;

use super::types::{NumpyDtype, StorageType, TorchType};

/// A node's place in the [`Arena`].
pub(crate) type Id = u32;

/// An error, and the byte at which it occurred.
#[derive(Debug)]
pub(crate) enum PickleError {
    /// Not a pickle, or not a sane one.
    Bad(String),
    /// The file could not be read.
    Read(crate::error::Error),
}

impl From<String> for PickleError {
    fn from(reason: String) -> Self {
        PickleError::Bad(reason)
    }
}

impl From<&str> for PickleError {
    fn from(reason: &str) -> Self {
        PickleError::Bad(reason.to_string())
    }
}

/// The result of one step.
pub(crate) type Step<T> = Result<T, PickleError>;

/// A Python object. Containers refer to other nodes by their place, so that cycles and sharing are what they were, and
/// freeing never recurses.
#[derive(Debug)]
#[allow(clippy::box_collection, reason = "there can be millions: a node has 24 bytes")]
pub(crate) enum Node {
    None,
    Bool(bool),
    Int(i64),
    /// An integer that does not fit an `i64`, little-endian, two's complement.
    BigInt(Box<[u8]>),
    Float(f64),
    Text(Box<str>),
    Bytes(Box<[u8]>),
    Tuple(Box<[Id]>),
    List(Box<Vec<Id>>),
    Set(Box<Vec<Id>>),
    Dict(Box<Vec<(Id, Id)>>),
    /// A place in [`Arena::globals`].
    Global(u32),
    /// Plain data of a class that is only shown: class, arguments, state.
    Object(Box<Object>),
    /// A place in [`Arena::spans`].
    Storage(u32),
    /// A place in [`Arena::tensors`].
    Tensor(u32),
    /// `torch.dtype`.
    Dtype(TorchType),
    /// A numpy dtype: kind, bytes, and whether it is big-endian.
    NumpyDtype(NumpyDtype),
    /// A place in [`Arena::arrays`].
    Array(u32),
    /// Something that is known, and that this crate cannot hold: the reason.
    Unreadable(Box<str>),
    /// An object built with the global at that place, which is not allowed.
    Refused(u32),
}

#[derive(Debug)]
pub(crate) struct Object {
    /// A place in [`Arena::globals`].
    pub class: u32,
    pub args: Id,
    pub state: Option<Id>,
}

/// A global, by name only.
#[derive(Debug)]
pub(crate) struct Global {
    pub module: Box<str>,
    pub name: Box<str>,
    /// Where in the pickle it was met.
    pub offset: u64,
    pub allowed: bool,
}

impl Global {
    /// `module.name`, with Python 3's name of the module of built-in functions.
    pub(crate) fn text(&self) -> String {
        let module = if &*self.module == "__builtin__" { "builtins" } else { &self.module };
        if self.module.is_empty() { self.name.to_string() } else { format!("{module}.{}", self.name) }
    }
}

/// A storage that a pickle refers to. Two with one key are the same.
#[derive(Debug)]
pub(crate) struct StorageRef {
    pub key: Box<str>,
    pub kind: StorageType,
    /// Elements of `kind` in the whole storage.
    pub elements: u64,
}

/// A storage, or a run of its elements (which only very old files have).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    pub storage: u32,
    /// In elements of the storage's type.
    pub begin: u64,
    pub elements: u64,
}

/// A tensor over a storage.
#[derive(Debug, Clone)]
pub(crate) struct TensorRef {
    pub storage: u32,
    pub dtype: TorchType,
    /// In elements of `dtype`, as are the strides.
    pub offset: u64,
    pub shape: Vec<u64>,
    pub stride: Vec<u64>,
    /// The imaginary parts are stored with the other sign.
    pub conj: bool,
    /// All is stored with the other sign.
    pub neg: bool,
}

/// An array of numpy, whose elements are in the pickle.
#[derive(Debug)]
pub(crate) struct ArrayRef {
    pub dtype: NumpyDtype,
    pub shape: Vec<u64>,
    pub fortran: bool,
    pub data: std::sync::Arc<[u8]>,
}

/// All nodes of one pickle or of several, and what they refer to.
#[derive(Debug, Default)]
pub(crate) struct Arena {
    nodes: Vec<Node>,
    pub globals: Vec<Global>,
    pub storages: Vec<StorageRef>,
    pub spans: Vec<Span>,
    pub tensors: Vec<TensorRef>,
    pub arrays: Vec<ArrayRef>,
    /// Small values that any number of places share.
    small: Vec<Option<Id>>,
    /// Bytes of memory taken, estimated.
    used: u64,
}

/// Memory that a pickle may take whatever its length, and for each of its bytes.
const FREE: u64 = 24 << 20;
const PER_BYTE: u64 = 24;

/// The longest bytes that are taken for a text.
const MAX_BYTES: usize = 4096;

impl Arena {
    pub(crate) fn node(&self, id: Id) -> &Node {
        // Ids are given out by `add` only.
        self.nodes.get(id as usize).unwrap_or(&Node::None)
    }

    pub(crate) fn node_mut(&mut self, id: Id) -> Option<&mut Node> {
        self.nodes.get_mut(id as usize)
    }

    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(crate) fn add(&mut self, node: Node) -> Step<Id> {
        let id = Id::try_from(self.nodes.len()).map_err(|_| "it has too many objects")?;
        self.used += 48;
        self.nodes.push(node);
        Ok(id)
    }

    /// Adds a node and accounts for what it holds.
    pub(crate) fn add_charged(&mut self, node: Node) -> Step<Id> {
        let bytes = match &node {
            Node::Text(text) | Node::Unreadable(text) => text.len(),
            Node::Bytes(bytes) | Node::BigInt(bytes) => bytes.len(),
            Node::Tuple(items) => 8 * items.len(),
            Node::List(items) | Node::Set(items) => 24 + 8 * items.len(),
            Node::Dict(items) => 24 + 16 * items.len(),
            _ => 0,
        };
        self.charge(bytes as u64);
        self.add(node)
    }

    /// A value that is never changed and costs one node however often it is there.
    pub(crate) fn small(&mut self, place: usize, node: impl FnOnce() -> Node) -> Step<Id> {
        if let Some(Some(id)) = self.small.get(place) {
            return Ok(*id);
        }
        let id = self.add(node())?;
        if self.small.len() <= place {
            self.small.resize(place + 1, None);
        }
        self.small[place] = Some(id);
        Ok(id)
    }

    /// Accounts for `bytes` of memory.
    pub(crate) fn charge(&mut self, bytes: u64) {
        self.used = self.used.saturating_add(bytes);
    }

    /// Returns an error if more memory is used than `read` bytes of pickle may require.
    pub(crate) fn check(&self, read: u64) -> Result<(), String> {
        if self.used <= FREE + read.saturating_mul(PER_BYTE) {
            return Ok(());
        }
        Err(format!("{read} bytes of it already take {} bytes of memory: it describes more than it holds", self.used))
    }

    /// Returns a text, or short bytes that are one: they are examined at each call.
    pub(crate) fn text(&self, id: Id) -> Option<&str> {
        match self.node(id) {
            Node::Text(text) => Some(text),
            Node::Bytes(bytes) if bytes.len() <= MAX_BYTES => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    pub(crate) fn tuple(&self, id: Id) -> Option<&[Id]> {
        match self.node(id) {
            Node::Tuple(items) => Some(items),
            _ => None,
        }
    }

    /// Returns the items of a tuple or a list.
    pub(crate) fn items(&self, id: Id) -> Option<&[Id]> {
        match self.node(id) {
            Node::Tuple(items) => Some(items),
            Node::List(items) => Some(items),
            _ => None,
        }
    }

    pub(crate) fn dict(&self, id: Id) -> Option<&[(Id, Id)]> {
        match self.node(id) {
            Node::Dict(items) => Some(items),
            _ => None,
        }
    }

    pub(crate) fn int(&self, id: Id) -> Option<i64> {
        match self.node(id) {
            Node::Int(value) => Some(*value),
            Node::Bool(value) => Some((*value).into()),
            _ => None,
        }
    }

    /// Returns the value of a text key in a dictionary: the last, as Python has it.
    pub(crate) fn field(&self, dict: Id, name: &str) -> Option<Id> {
        self.dict(dict)?.iter().rev().find(|(key, _)| self.text(*key) == Some(name)).map(|(_, value)| *value)
    }
}

/// The meaning of globals, calls and persistent ids. A method returns `None` for an unknown global.
pub(crate) trait Rules {
    /// Returns `true` if a global is allowed.
    fn allows(&self, module: &str, name: &str) -> bool;

    /// Returns what `module.name(*args)` is: an existing node or a new one.
    fn call(&mut self, arena: &mut Arena, global: u32, args: Id) -> Step<Id>;

    /// Returns what `class.__new__(class, *args)` is.
    fn new_object(&mut self, arena: &mut Arena, global: u32, args: Id) -> Step<Id>;

    /// Gives the state of an object to it.
    fn build(&mut self, arena: &mut Arena, object: Id, state: Id) -> Step<()>;

    /// Returns what a persistent id stands for.
    fn persistent(&mut self, arena: &mut Arena, id: Id) -> Step<Id>;

    /// A global as a value that is not called.
    fn global(&mut self, arena: &mut Arena, global: u32) -> Step<Node> {
        let _ = arena;
        Ok(Node::Global(global))
    }
}
