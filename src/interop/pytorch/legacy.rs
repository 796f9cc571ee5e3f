//! The streams that `torch.save` wrote before 1.6: five pickles, and the storages one after another.

use super::bind::{StorageBinder, Storages};
use super::pickle::{Arena, Id, Node, PickleReader, StorageRef, unpickle};
use super::rules::{Dialect, TorchRules};
use super::tree::Style;
use super::{check_refused, collect, unpickle_failed};
use crate::error::Result;
use crate::interop::ReadOptions;
use crate::interop::blob::Blob;
use crate::interop::foreign::{Foreign, Found};
use crate::interop::input::Input;
use std::collections::HashMap;
use std::sync::Arc;

/// The first pickle: the number 0x1950a86a20f9469cfc6c.
pub(super) const MAGIC: [u8; 15] =
    [0x80, 2, 0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19, 0x2e];

/// The one version there was.
const PROTOCOL: i64 = 1001;

/// Bytes of a storage by key.
pub(super) struct ByKey(pub HashMap<Box<str>, Arc<Blob>>);

impl Storages for ByKey {
    fn storage(&mut self, storage: &StorageRef) -> Result<(Option<Arc<Blob>>, bool)> {
        Ok((self.0.get(&storage.key).cloned(), false))
    }
}

/// Reads one pickle that has neither tensors nor storages.
pub(super) fn plain(input: &Input, reader: &mut PickleReader<'_>, part: &str) -> Result<(Arena, Id)> {
    let mut arena = Arena::default();
    let unpickled = unpickle(reader, &mut arena, &mut TorchRules::new(Dialect::Plain));
    let unpickled = unpickled.map_err(|e| unpickle_failed(input, part, e))?;
    // Whatever is asked for: here nothing but numbers and texts belongs.
    check_refused(input, part, &arena, unpickled.root, unpickled.refused, &ReadOptions::default())?;
    Ok((arena, unpickled.root))
}

pub(super) fn open(input: Input, options: &ReadOptions) -> Result<Foreign> {
    let whole = Blob::stored("the file", input.clone(), None);
    let mut start = vec![0; MAGIC.len().min(input.len() as usize)];
    input.read(0, &mut start)?;
    if start != MAGIC {
        return Err(input.unsupported("it starts with a pickle, but not with the magic number of `torch.save`"));
    }
    let mut reader = PickleReader::at(&whole, MAGIC.len() as u64);
    let (arena, version) = plain(&input, &mut reader, "the pickle of the version")?;
    if arena.int(version) != Some(PROTOCOL) {
        return Err(input.unsupported("it is of a version that is not known"));
    }
    plain(&input, &mut reader, "the pickle of the system")?;

    let mut arena = Arena::default();
    let mut rules = TorchRules::new(Dialect::Legacy);
    let part = "the pickle of the object";
    let unpickled = unpickle(&mut reader, &mut arena, &mut rules).map_err(|e| unpickle_failed(&input, part, e))?;
    check_refused(&input, part, &arena, unpickled.root, unpickled.refused, options)?;

    let (keys, list) = plain(&input, &mut reader, "the pickle of the storages' keys")?;
    let keys = match keys.node(list) {
        Node::List(items) => items.iter().map(|&key| keys.text(key)).collect::<Option<Vec<_>>>(),
        _ => None,
    };
    let keys = keys.ok_or_else(|| input.damaged("the keys of its storages are no list of texts"))?;
    let storages = storages(&input, reader.position(), &keys, &arena)?;

    let mut found = Found { file_bytes: input.len(), ..Found::default() };
    let mut binder = StorageBinder::new(storages, input.path());
    collect(&input, part, &arena, unpickled.root, Style::Tree, &mut binder, &mut found)?;
    Foreign::new("PyTorch (before 1.6)", input.path(), found, options)
}

/// Returns the storages, each a number of elements and these.
fn storages(input: &Input, mut at: u64, keys: &[&str], arena: &Arena) -> Result<ByKey> {
    let mut wanted: HashMap<&str, &StorageRef> = HashMap::new();
    for storage in &arena.storages {
        wanted.entry(&storage.key).or_insert(storage);
    }
    let mut found = HashMap::new();
    for key in keys {
        let Some(storage) = wanted.remove(key) else {
            return Err(input.damaged(format!("it has the storage {key:?} twice, or no tensor that is in it")));
        };
        let mut count = [0; 8];
        input.read(at, &mut count)?;
        let count = i64::from_le_bytes(count);
        if u64::try_from(count) != Ok(storage.elements) {
            let reason = format!("the storage {key:?} has {count} elements, its tensors need {}", storage.elements);
            return Err(input.damaged(reason));
        }
        let begin = at + 8;
        let end = storage.elements.checked_mul(storage.kind.size()).and_then(|bytes| begin.checked_add(bytes));
        let bytes = end.and_then(|end| input.slice(begin..end));
        let bytes = bytes.ok_or_else(|| input.damaged(format!("the file ends inside the storage {key:?}")))?;
        at = begin + bytes.len();
        found.insert((*key).into(), Arc::new(Blob::stored(format!("the storage {key:?}"), bytes, None)));
    }
    if let Some(key) = wanted.keys().min() {
        return Err(input.damaged(format!("there is no data for the storage {key:?}")));
    }
    if at != input.len() {
        return Err(input.damaged(format!("{} bytes follow the last storage", input.len() - at)));
    }
    Ok(ByKey(found))
}
