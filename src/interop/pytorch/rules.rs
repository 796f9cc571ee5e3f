//! The globals that files of torch may name, and the meaning of each. Everything else is rejected by name.

use super::numpy;
use super::pickle::{Arena, Id, Node, Object, Rules, Step, StorageRef};
use super::rebuild;
use super::types::{StorageType, TorchType};
use std::collections::HashMap;

/// Which of the formats a pickle belongs to: some globals and persistent ids are right in one only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// `torch.save` into a zip archive.
    Zip,
    /// `torch.save` before 1.6.
    Legacy,
    /// A TorchScript archive.
    Script,
    /// The `.metadata` of `torch.distributed.checkpoint`.
    Distributed,
    /// A pickle that has no tensors of its own.
    Plain,
}

/// What a global is for.
enum Known {
    Rebuild(rebuild::Rebuild),
    /// The constructor of an ordinary container or value.
    Make(Make),
    Numpy(numpy::Part),
    Dtype(TorchType),
    /// A value that is only its name.
    Name,
    Storage,
    /// A class whose objects are shown as what they were made of.
    Class,
    /// Known, and never held: the reason.
    Unreadable(&'static str),
}

#[derive(Clone, Copy)]
enum Make {
    Dict,
    DefaultDict,
    List,
    Set,
    Tuple,
    Complex,
    Bytes,
    Encoded,
    Device,
    Layout,
    /// Gives its first argument.
    First,
}

const DISTRIBUTED: [&str; 8] = [
    "BytesStorageMetadata",
    "ChunkStorageMetadata",
    "Metadata",
    "MetadataIndex",
    "StorageMeta",
    "TensorProperties",
    "TensorStorageMetadata",
    "_MEM_FORMAT_ENCODING",
];

fn known(dialect: Dialect, module: &str, name: &str) -> Option<Known> {
    if dialect == Dialect::Script && is_defined(module) {
        return Some(Known::Class);
    }
    let is_distributed = match module {
        "torch.distributed.checkpoint.metadata" => DISTRIBUTED.contains(&name),
        "torch.distributed.checkpoint.filesystem" => name == "_StorageInfo",
        _ => false,
    };
    if is_distributed {
        return (dialect == Dialect::Distributed).then_some(Known::Class);
    }
    if StorageType::named(module, name).is_some() {
        return Some(Known::Storage);
    }
    if let Some(part) = numpy::part(module, name) {
        return Some(Known::Numpy(part));
    }
    if let Some(rebuild) = rebuild::named(module, name) {
        return Some(Known::Rebuild(rebuild));
    }
    Some(match (module, name) {
        ("torch", _) if TorchType::named(name).is_some() => Known::Dtype(TorchType::named(name)?),
        ("torch", "Size") => Known::Make(Make::Tuple),
        ("torch", "device") => Known::Make(Make::Device),
        ("torch.serialization", "_get_layout") => Known::Make(Make::Layout),
        // The classes of tensors that were before there was one.
        ("torch", _) if dialect == Dialect::Plain && tensor_class(name).is_some() => Known::Name,
        ("torch", "Tensor") | ("torch.nn.parameter", "Parameter") => Known::Name,
        ("torch", "per_tensor_affine" | "per_channel_affine" | "per_channel_affine_float_qparams") => Known::Name,
        ("torch", "per_tensor_symmetric" | "per_channel_symmetric") => Known::Name,
        ("torch.jit._pickle", "restore_type_tag") if dialect == Dialect::Script => Known::Make(Make::First),
        (
            "torch.jit._pickle",
            "build_tensorlist" | "build_intlist" | "build_doublelist" | "build_boollist" | "build_tensor_from_id",
        ) if dialect == Dialect::Script => Known::Make(Make::First),
        ("collections", "OrderedDict" | "Counter") => Known::Make(Make::Dict),
        ("collections", "defaultdict") => Known::Make(Make::DefaultDict),
        ("__builtin__" | "builtins", "list") => Known::Make(Make::List),
        ("__builtin__" | "builtins", "dict") => Known::Make(Make::Dict),
        ("__builtin__" | "builtins", "tuple") => Known::Make(Make::Tuple),
        ("__builtin__" | "builtins", "set" | "frozenset") => Known::Make(Make::Set),
        ("__builtin__" | "builtins", "complex") => Known::Make(Make::Complex),
        ("__builtin__" | "builtins", "bytes" | "bytearray") => Known::Make(Make::Bytes),
        ("__builtin__" | "builtins", "int" | "float" | "str" | "bool") => Known::Name,
        ("_codecs", "encode") => Known::Make(Make::Encoded),
        ("argparse", "Namespace") => Known::Class,
        (
            "pathlib" | "pathlib._local",
            "Path" | "PosixPath" | "WindowsPath" | "PurePath" | "PurePosixPath" | "PureWindowsPath",
        ) => Known::Class,
        ("torch._utils", "_rebuild_sparse_tensor" | "_rebuild_sparse_csr_tensor") => Known::Unreadable("it is sparse"),
        ("torch._utils", "_rebuild_qtensor") => Known::Unreadable("it is quantized"),
        ("torch._utils", "_rebuild_meta_tensor_no_storage") => {
            Known::Unreadable("it is on the device `meta` and has no elements")
        }
        ("torch._utils", "_rebuild_nested_tensor") => Known::Unreadable("it is a nested tensor"),
        ("torch._utils", "_rebuild_wrapper_subclass" | "_rebuild_device_tensor_from_numpy") => {
            Known::Unreadable("it is of a device or class that only torch knows")
        }
        ("torch._utils", "_rebuild_device_tensor_from_cpu_tensor") => {
            Known::Unreadable("it is of a device that only torch knows")
        }
        _ => return None,
    })
}

/// Returns the type of a class such as `torch.FloatTensor`.
pub(super) fn tensor_class(name: &str) -> Option<StorageType> {
    StorageType::named("torch", &format!("{}Storage", name.strip_suffix("Tensor").filter(|name| !name.is_empty())?))
}

/// The most arguments of a call.
const MAX_ARGS: usize = 100;

/// The rules for one file.
#[derive(Debug)]
pub(super) struct TorchRules {
    pub dialect: Dialect,
    /// Places of storages by key.
    storages: HashMap<Box<str>, u32>,
    /// For the tar format: tensors by their key.
    pub named: HashMap<String, Id>,
}

impl TorchRules {
    pub(super) fn new(dialect: Dialect) -> TorchRules {
        TorchRules { dialect, storages: HashMap::new(), named: HashMap::new() }
    }
}

/// Returns the module and the name of a global.
fn names(arena: &Arena, global: u32) -> (&str, &str) {
    arena.globals.get(global as usize).map(|global| (&*global.module, &*global.name)).unwrap_or_default()
}

/// Returns `true` for a class that a TorchScript archive defines.
fn is_defined(module: &str) -> bool {
    module == "__torch__" || module.starts_with("__torch__.")
}

/// The longest key of a storage. Torch numbers them.
const MAX_KEY: usize = 255;

/// Returns the key of a storage: a short text or a number.
pub(super) fn storage_key(arena: &Arena, id: Id) -> Option<String> {
    let text = arena.text(id).filter(|key| key.len() <= MAX_KEY).map(str::to_string);
    text.or_else(|| arena.int(id).map(|key| key.to_string()))
}

impl Rules for TorchRules {
    fn allows(&self, module: &str, name: &str) -> bool {
        known(self.dialect, module, name).is_some()
    }

    fn global(&mut self, arena: &mut Arena, global: u32) -> Step<Node> {
        let (module, name) = names(arena, global);
        Ok(match known(self.dialect, module, name) {
            Some(Known::Dtype(torch_type)) => Node::Dtype(torch_type),
            _ => Node::Global(global),
        })
    }

    fn call(&mut self, arena: &mut Arena, global: u32, args: Id) -> Step<Id> {
        let (module, name) = names(arena, global);
        // No more than anything takes: a long tuple would be copied at every call.
        let args = arena.tuple(args).filter(|args| args.len() <= MAX_ARGS).map(<[Id]>::to_vec);
        let args = args.ok_or_else(|| format!("`{module}.{name}` is called with more than {MAX_ARGS} arguments"))?;
        match known(self.dialect, module, name) {
            Some(Known::Rebuild(rebuild)) => rebuild::call(arena, rebuild, &args).map_err(|e| at(arena, global, e)),
            Some(Known::Make(make)) => self::make(arena, make, &args).map_err(|e| at(arena, global, e)),
            Some(Known::Numpy(part)) => numpy::call(arena, part, &args).map_err(|e| at(arena, global, e)),
            Some(Known::Unreadable(reason)) => {
                let reason = format!("{reason} ({module}.{name}), which safetensors cannot hold");
                arena.add_charged(Node::Unreadable(reason.into()))
            }
            Some(Known::Class) if !is_defined(module) => {
                let args = arena.add_charged(Node::Tuple(args.into()))?;
                arena.add(Node::Object(Box::new(Object { class: global, args, state: None })))
            }
            _ => Err(format!("`{module}.{name}` is not to be called").into()),
        }
    }

    fn new_object(&mut self, arena: &mut Arena, global: u32, args: Id) -> Step<Id> {
        let (module, name) = names(arena, global);
        match known(self.dialect, module, name) {
            Some(Known::Class) => arena.add(Node::Object(Box::new(Object { class: global, args, state: None }))),
            _ => self.call(arena, global, args),
        }
    }

    fn build(&mut self, arena: &mut Arena, object: Id, state: Id) -> Step<()> {
        match arena.node(object) {
            // The attributes of a dictionary, such as `_metadata` of a state dict, are no entries of it.
            Node::Dict(_) if arena.dict(state).is_some() => Ok(()),
            Node::Array(_) | Node::NumpyDtype(_) => numpy::build(arena, object, state),
            Node::Object(_) => {
                if let Some(Node::Object(object)) = arena.node_mut(object) {
                    object.state = Some(state);
                }
                Ok(())
            }
            Node::Tensor(_) => Err("a tensor is given attributes".into()),
            _ => Err("a state is given to what has none".into()),
        }
    }

    fn persistent(&mut self, arena: &mut Arena, id: Id) -> Step<Id> {
        if let Some(named) = arena.text(id).and_then(|key| self.named.get(key)) {
            return Ok(*named);
        }
        let parts = arena.tuple(id).ok_or("a persistent id is no tuple")?;
        let is_storage = parts.first().is_some_and(|&kind| arena.text(kind) == Some("storage"));
        if let (Dialect::Legacy, [kind, class, _, _]) = (self.dialect, parts) {
            // A whole module, with its source text. Its class is refused already, or it is no class.
            if let (Some("module"), &Node::Refused(place)) = (arena.text(*kind), arena.node(*class)) {
                return arena.add(Node::Refused(place));
            }
        }
        let storage = match (self.dialect, parts) {
            (Dialect::Plain | Dialect::Distributed, _) => return Err("a persistent id, where none belongs".into()),
            (_, &[_, class, key, location, elements]) if is_storage => Some((class, key, location, elements, None)),
            (Dialect::Legacy, &[_, class, key, location, elements, view]) if is_storage => {
                Some((class, key, location, elements, Some(view)))
            }
            _ => None,
        };
        let (class, key, location, elements, view) = storage.ok_or("a persistent id that is not of a storage")?;
        let class = match arena.node(class) {
            Node::Global(place) => arena.globals.get(*place as usize),
            // Its name is reported already.
            &Node::Refused(place) => return arena.add(Node::Refused(place)),
            _ => None,
        };
        let kind = class.and_then(|class| StorageType::named(&class.module, &class.name));
        let kind = kind.ok_or("the persistent id of a storage has no type of storage")?;
        let key = storage_key(arena, key);
        let key = key.ok_or_else(|| format!("the key of a storage is no text of at most {MAX_KEY} bytes"))?;
        if arena.text(location).is_none() {
            return Err(format!("the storage {key:?} is at no location").into());
        }
        let elements = arena.int(elements).and_then(|elements| u64::try_from(elements).ok());
        let elements = elements.ok_or_else(|| format!("the storage {key:?} has no right number of elements"))?;
        let place = self.storage(arena, &key, kind, elements)?;
        match view {
            Some(view) if !matches!(arena.node(view), Node::None) => rebuild::storage_view(arena, place, view),
            _ => rebuild::whole_storage(arena, place),
        }
    }
}

impl TorchRules {
    /// Returns the storage `key`, the same for every time it is named.
    pub(super) fn storage(&mut self, arena: &mut Arena, key: &str, kind: StorageType, elements: u64) -> Step<u32> {
        let bytes = elements.checked_mul(kind.size()).filter(|&bytes| i64::try_from(bytes).is_ok());
        let bytes = bytes.ok_or_else(|| format!("the storage {key:?} would have {elements} elements"))?;
        if let Some(&place) = self.storages.get(key) {
            let known = arena.storages.get(place as usize).map(|known| known.elements * known.kind.size());
            if known != Some(bytes) {
                return Err(format!("the storage {key:?} has two different lengths").into());
            }
            if arena.storages.get(place as usize).is_some_and(|known| known.kind == kind) {
                return Ok(place);
            }
        }
        let place = u32::try_from(arena.storages.len()).map_err(|_| "it has too many storages")?;
        arena.charge(96 + key.len() as u64);
        arena.storages.push(StorageRef { key: key.into(), kind, elements });
        self.storages.entry(key.into()).or_insert(place);
        Ok(place)
    }
}

/// Adds the name of what was called to an error.
fn at(arena: &Arena, global: u32, e: super::pickle::PickleError) -> super::pickle::PickleError {
    let (module, name) = names(arena, global);
    match e {
        super::pickle::PickleError::Bad(reason) => format!("{module}.{name}: {reason}").into(),
        read @ super::pickle::PickleError::Read(_) => read,
    }
}

/// Calls the constructor of a container or value.
fn make(arena: &mut Arena, make: Make, args: &[Id]) -> Step<Id> {
    let wrong = || Err("its arguments are not right".into());
    let copied = |arena: &Arena, id: Id| match arena.node(id) {
        Node::Set(items) => Some(items.to_vec()),
        _ => arena.items(id).map(<[Id]>::to_vec),
    };
    let node = match (make, args) {
        (Make::First, [first, ..]) => return Ok(*first),
        (Make::Dict, []) => Node::Dict(Box::default()),
        // An ordinary dictionary, or a list of pairs as Python 2 has it.
        (Make::Dict, [from]) => match arena.dict(*from).map(<[_]>::to_vec) {
            Some(entries) => Node::Dict(Box::new(entries)),
            None => {
                let pairs = arena.items(*from).map(|pairs| {
                    pairs.iter().map(|pair| arena.items(*pair).and_then(|pair| Some((*pair.first()?, *pair.get(1)?))))
                });
                match pairs.and_then(Iterator::collect::<Option<Vec<_>>>) {
                    Some(entries) => Node::Dict(Box::new(entries)),
                    None => return wrong(),
                }
            }
        },
        // The function that makes missing values is not called here.
        (Make::DefaultDict, [] | [_]) => Node::Dict(Box::default()),
        (Make::List, []) => Node::List(Box::default()),
        (Make::Set, []) => Node::Set(Box::default()),
        (Make::Tuple, []) => Node::Tuple(Box::default()),
        (Make::List | Make::Set | Make::Tuple, [from]) => match (copied(arena, *from), make) {
            (Some(items), Make::List) => Node::List(Box::new(items)),
            (Some(items), Make::Set) => Node::Set(Box::new(items)),
            (Some(items), _) => Node::Tuple(items.into()),
            (None, _) => return wrong(),
        },
        (Make::Complex, [_, _]) => Node::Unreadable("it is a complex number, which JSON cannot hold".into()),
        (Make::Bytes, []) => Node::Bytes(Box::default()),
        (Make::Bytes, [from]) => match arena.node(*from) {
            Node::Bytes(bytes) => Node::Bytes(bytes.clone()),
            _ => return wrong(),
        },
        (Make::Bytes | Make::Encoded, &[text, encoding]) => return encoded(arena, text, encoding),
        (Make::Device, [kind]) if arena.text(*kind).is_some() => return Ok(*kind),
        (Make::Device, [kind, index]) => match (arena.text(*kind), arena.int(*index)) {
            (Some(kind), Some(index)) => Node::Text(format!("{kind}:{index}").into()),
            _ => return wrong(),
        },
        (Make::Layout, [name]) if arena.text(*name).is_some() => return Ok(*name),
        _ => return wrong(),
    };
    arena.add_charged(node)
}

/// How protocol 2 writes bytes: as a text whose characters are the bytes.
fn encoded(arena: &mut Arena, text: Id, encoding: Id) -> Step<Id> {
    let encoding = arena.text(encoding).ok_or("its encoding is no text")?;
    if !matches!(encoding, "latin1" | "latin-1" | "iso-8859-1") {
        return Err(format!("the encoding {encoding:?} is not read").into());
    }
    let Node::Text(text) = arena.node(text) else { return Err("what it encodes is no text".into()) };
    let bytes: Option<Box<[u8]>> = text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect();
    let bytes = bytes.ok_or("its text has characters that are no bytes")?;
    arena.add_charged(Node::Bytes(bytes))
}
