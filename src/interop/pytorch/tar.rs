//! The tar files that `torch.save` wrote before 0.1.10. Nothing is unpacked: members are read where they are.

use super::bind::StorageBinder;
use super::legacy::{ByKey, plain};
use super::pickle::{Arena, Id, Node, PickleError, PickleReader, StorageRef, TensorRef, unpickle};
use super::rules::{Dialect, TorchRules, storage_key, tensor_class};
use super::tree::Style;
use super::types::StorageType;
use super::{check_refused, collect, unpickle_failed};
use crate::error::Result;
use crate::interop::ReadOptions;
use crate::interop::blob::Blob;
use crate::interop::foreign::{Foreign, Found};
use crate::interop::input::Input;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

const BLOCK: u64 = 512;

/// The members that such a file has.
const MEMBERS: [&str; 4] = ["sys_info", "pickle", "tensors", "storages"];

/// The most storages and tensors.
const MAX_ENTRIES: i64 = 1_000_000;

fn octal(field: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(field).ok()?.trim_matches(['\0', ' ']);
    if text.is_empty() { Some(0) } else { u64::from_str_radix(text, 8).ok() }
}

/// Returns the members, by name.
fn members(input: &Input) -> Result<BTreeMap<String, Input>> {
    let damaged = |reason: &str| input.damaged(format!("the tar file: {reason}"));
    let mut members = BTreeMap::new();
    let mut at = 0;
    while at + BLOCK <= input.len() {
        let header = input.read_vec(at..at + BLOCK, BLOCK)?;
        if header.iter().all(|&byte| byte == 0) {
            break;
        }
        let sum: u64 = header
            .iter()
            .enumerate()
            .map(|(i, &byte)| u64::from(if (148..156).contains(&i) { b' ' } else { byte }))
            .sum();
        if octal(&header[148..156]) != Some(sum) {
            return Err(damaged("the checksum of a header is wrong"));
        }
        let name = header[..100].split(|&byte| byte == 0).next().unwrap_or_default();
        let name = String::from_utf8_lossy(name).into_owned();
        let name = name.strip_prefix("./").unwrap_or(&name);
        let size = octal(&header[124..136]).ok_or_else(|| damaged("a length is not right"))?;
        let is_file = matches!(header[156], b'0' | 0);
        let is_dir = header[156] == b'5' && size == 0;
        if !is_file && !is_dir {
            return Err(damaged(&format!("the member {name:?} is a link or a device")));
        }
        let begin = at + BLOCK;
        let bytes = begin.checked_add(size).and_then(|end| input.slice(begin..end));
        let bytes = bytes.ok_or_else(|| damaged(&format!("the member {name:?} leads beyond the file")))?;
        if is_file {
            if !MEMBERS.contains(&name) {
                return Err(damaged(&format!("the member {name:?} is none that torch writes")));
            }
            if members.insert(name.to_string(), bytes).is_some() {
                return Err(damaged(&format!("two members have the name {name:?}")));
            }
        }
        at = begin.checked_add(size.next_multiple_of(BLOCK)).ok_or_else(|| damaged("a length is not right"))?;
    }
    Ok(members)
}

pub(super) fn open(input: Input, options: &ReadOptions) -> Result<Foreign> {
    let members = members(&input)?;
    let member = |name: &str| {
        let bytes = members.get(name).ok_or_else(|| input.unsupported(format!("it is a tar file without `{name}`")))?;
        Ok::<_, crate::error::Error>(Blob::stored(name, bytes.clone(), None))
    };
    let mut arena = Arena::default();
    let mut rules = TorchRules::new(Dialect::Zip);
    let mut blobs = ByKey(HashMap::new());
    let storages = storages(&input, &member("storages")?, &mut arena, &mut rules, &mut blobs)?;
    tensors(&input, &member("tensors")?, &mut arena, &mut rules, &storages)?;

    let pickle = member("pickle")?;
    let mut reader = PickleReader::new(&pickle);
    let part = "the member `pickle`";
    let unpickled = unpickle(&mut reader, &mut arena, &mut rules).map_err(|e| unpickle_failed(&input, part, e))?;
    check_refused(&input, part, &arena, unpickled.root, unpickled.refused, options)?;
    let mut found = Found { file_bytes: input.len(), ..Found::default() };
    let mut binder = StorageBinder::new(blobs, input.path());
    collect(&input, part, &arena, unpickled.root, Style::Tree, &mut binder, &mut found)?;
    Foreign::new("PyTorch (before 0.1.10)", input.path(), found, options)
}

/// Pickles and fields, one after the other. One reader for all of them: each byte is read once.
struct Member<'a> {
    input: &'a Input,
    blob: &'a Blob,
    reader: PickleReader<'a>,
}

impl<'a> Member<'a> {
    fn new(input: &'a Input, blob: &'a Blob) -> Member<'a> {
        Member { input, blob, reader: PickleReader::new(blob) }
    }

    /// Returns the next pickle: numbers, texts and classes of storages.
    fn pickle(&mut self) -> Result<(Arena, Id)> {
        plain(self.input, &mut self.reader, &format!("the member `{}`", self.blob.name()))
    }

    fn count(&mut self) -> Result<i64> {
        let (arena, root) = self.pickle()?;
        let count = arena.int(root).filter(|count| (0..=MAX_ENTRIES).contains(count));
        count.ok_or_else(|| self.blob.damaged("its number of entries is not right"))
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.reader.array().map_err(|e| match e {
            PickleError::Bad(reason) => self.blob.damaged(reason),
            PickleError::Read(e) => e,
        })
    }

    fn length(&mut self) -> Result<u64> {
        let length = u64::try_from(i64::from_le_bytes(self.bytes()?));
        length.map_err(|_| self.blob.damaged("a length is negative"))
    }
}

/// Where a key leads: a storage, the first element, how many.
type Spans = HashMap<String, (u32, u64, u64)>;

fn storages(input: &Input, blob: &Blob, arena: &mut Arena, rules: &mut TorchRules, blobs: &mut ByKey) -> Result<Spans> {
    let wrong = |what: &str| blob.damaged(what);
    let mut member = Member::new(input, blob);
    let mut spans = Spans::new();
    for _ in 0..member.count()? {
        let (own, root) = member.pickle()?;
        let (key, kind) = match own.tuple(root) {
            Some(&[key, _, class]) => (storage_key(&own, key), storage_class(&own, class)),
            _ => (None, None),
        };
        let (Some(key), Some(kind)) = (key, kind) else { return Err(wrong("an entry is no storage")) };
        let elements = member.length()?;
        let begin = member.reader.position();
        let end = elements.checked_mul(kind.size()).and_then(|bytes| begin.checked_add(bytes));
        let bytes = end.and_then(|end| blob.input()?.slice(begin..end));
        let bytes = bytes.ok_or_else(|| wrong("it ends inside a storage"))?;
        member.reader.skip(bytes.len());
        if spans.contains_key(&key) {
            return Err(wrong("two storages have one key"));
        }
        let place = rules.storage(arena, &key, kind, elements).map_err(|e| unpickle_failed(input, blob.name(), e))?;
        spans.insert(key.clone(), (place, 0, elements));
        blobs.0.insert(key.as_str().into(), Arc::new(Blob::stored(format!("the storage {key:?}"), bytes, None)));
    }
    let (own, root) = member.pickle()?;
    for &view in own.items(root).ok_or_else(|| wrong("its views are no list"))? {
        let number = |id: Id| own.int(id).and_then(|value| u64::try_from(value).ok());
        let parts = match own.items(view) {
            Some(&[key, root, begin, elements]) => {
                Some((storage_key(&own, key), storage_key(&own, root), number(begin), number(elements)))
            }
            _ => None,
        };
        let Some((Some(key), Some(root), Some(begin), Some(elements))) = parts else {
            return Err(wrong("a view of a storage is not right"));
        };
        let Some(&(place, first, whole)) = spans.get(&root) else {
            return Err(wrong("a view is of a storage that is not there"));
        };
        if begin.checked_add(elements).is_none_or(|end| end > whole) {
            return Err(wrong("a view is outside of its storage"));
        }
        spans.insert(key, (place, first + begin, elements));
    }
    Ok(spans)
}

fn storage_class(arena: &Arena, class: Id) -> Option<StorageType> {
    let Node::Global(place) = arena.node(class) else { return None };
    let global = arena.globals.get(*place as usize)?;
    StorageType::named(&global.module, &global.name).or_else(|| tensor_class(&global.name))
}

fn tensors(input: &Input, blob: &Blob, arena: &mut Arena, rules: &mut TorchRules, spans: &Spans) -> Result<()> {
    let mut member = Member::new(input, blob);
    for _ in 0..member.count()? {
        let (own, root) = member.pickle()?;
        let keys = match own.tuple(root) {
            Some(&[key, storage, _]) => (storage_key(&own, key), Some(storage)),
            _ => (None, None),
        };
        let (Some(key), Some(storage)) = keys else { return Err(blob.damaged("an entry is no tensor")) };
        let rank = i32::from_le_bytes(member.bytes()?);
        member.bytes::<4>()?;
        if !(0..=64).contains(&rank) {
            return Err(blob.damaged(format!("a tensor has {rank} dimensions")));
        }
        let shape: Vec<u64> = (0..rank).map(|_| member.length()).collect::<Result<_>>()?;
        let stride: Vec<u64> = (0..rank).map(|_| member.length()).collect::<Result<_>>()?;
        let offset = member.length()?;
        let id = if matches!(own.node(storage), Node::None) {
            arena.add(Node::Unreadable("it has no storage".into()))
        } else {
            let span = storage_key(&own, storage).and_then(|storage| spans.get(&storage));
            let Some(&(place, begin, elements)) = span else {
                return Err(blob.damaged("a tensor is in a storage that is not there"));
            };
            let kind = arena.storages.get(place as usize).map(|storage: &StorageRef| storage.kind);
            let Some(StorageType::Of(dtype)) = kind else { return Err(blob.damaged("a tensor has no type")) };
            super::rebuild::check_bounds(&shape, &stride, offset, elements, dtype.size(), dtype.size())
                .map_err(|e| unpickle_failed(input, blob.name(), e))?;
            let tensor =
                TensorRef { storage: place, dtype, offset: begin + offset, shape, stride, conj: false, neg: false };
            arena.tensors.push(tensor);
            arena.add(Node::Tensor(arena.tensors.len() as u32 - 1))
        };
        rules.named.insert(key, id.map_err(|e| unpickle_failed(input, blob.name(), e))?);
    }
    Ok(())
}
