//! Files of PyTorch, TorchScript, tch, NumPy and Hugging Face: every fixture bit for bit, and hostile files as specified.
//!
//! `tests/fixtures` holds some of each kind. With the environment variable `FIXTURES` the same checks run over every
//! file with an `expected.json` under that directory.

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tch_checkpoint::interop::{self, ReadOptions};
use tch_checkpoint::{Dtype, TensorSource, VerifiedBy, name};

/// Counts what a thread allocates.
struct Counting;

thread_local! {
    static NOW: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    let _ = NOW.try_with(|now| {
        now.set(now.get() + bytes);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(now.get())));
    });
}

// SAFETY: all is done by the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What a piece of work took: its result, time, and bytes of memory above what was there before.
fn measured<T>(work: impl FnOnce() -> T) -> (T, Duration, isize) {
    let before = NOW.get();
    PEAK.set(before);
    let begin = Instant::now();
    let result = work();
    (result, begin.elapsed(), PEAK.get() - before)
}

fn roots() -> Vec<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let other = std::env::var_os("FIXTURES").map(PathBuf::from);
    [Some(own), other].into_iter().flatten().collect()
}

fn files(directory: &Path, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        match path.is_dir() {
            true => files(&path, found),
            false => found.push(path),
        }
    }
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The formats that these tests are about.
fn is_ours(path: &Path) -> bool {
    path.components().any(|part| matches!(part.as_os_str().to_str(), Some("pytorch" | "huggingface")))
}

/// Every fixture with what is in it.
fn fixtures() -> Vec<(PathBuf, Value)> {
    let mut all = Vec::new();
    for root in roots() {
        let mut found = Vec::new();
        files(&root, &mut found);
        for file in found.iter().filter(|file| is_ours(file)) {
            let name = file.file_name().unwrap().to_str().unwrap();
            if name == "expected.json" {
                all.push((file.parent().unwrap().to_path_buf(), read_json(file)));
            } else if let Some(stem) = name.strip_suffix(".expected.json").filter(|stem| *stem != "hostile") {
                let mut path = file.with_file_name(stem);
                if !path.exists() {
                    path = file.with_file_name(format!("{stem}.safetensors"));
                }
                all.push((path, read_json(file)));
            }
        }
    }
    assert!(all.len() > 10, "{all:?}");
    all
}

fn dtype(name: &str) -> Option<Dtype> {
    Some(match name {
        "bool" => Dtype::Bool,
        "uint8" => Dtype::U8,
        "int8" => Dtype::I8,
        "int16" => Dtype::I16,
        "uint16" => Dtype::U16,
        "int32" => Dtype::I32,
        "uint32" => Dtype::U32,
        "int64" => Dtype::I64,
        "uint64" => Dtype::U64,
        "float16" => Dtype::F16,
        "bfloat16" => Dtype::BF16,
        "float32" => Dtype::F32,
        "float64" => Dtype::F64,
        "complex64" => Dtype::C64,
        "float8_e4m3fn" => Dtype::F8E4m3,
        "float8_e5m2" => Dtype::F8E5m2,
        "float8_e4m3fnuz" => Dtype::F8E4m3fnuz,
        "float8_e5m2fnuz" => Dtype::F8E5m2fnuz,
        "float8_e8m0fnu" => Dtype::F8E8m0,
        "complex128" => return None,
        other => panic!("{other}"),
    })
}

/// A key as the fixtures write it.
fn plain(key: &str) -> String {
    name::path(key).unwrap_or_default().join("/")
}

fn read(source: &dyn TensorSource, key: &str) -> Vec<u8> {
    let mut bytes = vec![0; source.tensors()[key].bytes().unwrap() as usize];
    source.read(key, &mut bytes).unwrap_or_else(|e| panic!("{key}: {e}"));
    bytes
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// All tensors are there, as they were written; the same elements have one first name.
fn check_tensors(path: &Path, source: &dyn TensorSource, expected: &Map<String, Value>) -> usize {
    let keys: BTreeMap<String, &String> = source.tensors().keys().map(|key| (plain(key), key)).collect();
    let unreadable: BTreeSet<String> = source.unreadable().keys().map(|key| plain(key)).collect();
    let mut same: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (key, tensor) in expected {
        let Some(dtype) = dtype(tensor["dtype"].as_str().unwrap()) else {
            assert!(unreadable.contains(key), "{}: {key}", path.display());
            continue;
        };
        let own = keys.get(key).unwrap_or_else(|| panic!("{}: no {key:?} in {keys:?}", path.display()));
        let spec = &source.tensors()[*own];
        assert_eq!(spec.dtype, dtype, "{}: {key}", path.display());
        assert_eq!(json!(spec.shape), tensor["shape"], "{}: {key}", path.display());
        let bytes = read(source, own);
        assert_eq!(tensor["sha256"], sha256(&bytes), "{}: {key}", path.display());
        for step in [1, 3, 7] {
            let count = bytes.len() / dtype.size();
            let mut parts = Vec::new();
            for begin in (0..count).step_by(step) {
                let end = (begin + step).min(count);
                let mut part = vec![0; (end - begin) * dtype.size()];
                source.read_range(own, begin as u64..end as u64, &mut part).unwrap();
                parts.extend(part);
            }
            assert!(parts == bytes, "{}: {key} by {step}", path.display());
        }
        if let (Some(storage), Some(1..)) = (tensor.get("storage"), tensor["nbytes"].as_u64()) {
            let place = json!([
                storage,
                tensor["offset"],
                tensor["shape"],
                tensor["stride"],
                tensor["dtype"],
                tensor["sha256"]
            ]);
            same.entry(place.to_string()).or_default().push(own);
        }
    }
    for names in same.values() {
        let first: BTreeSet<&str> = names.iter().map(|name| source.first_alias(name)).collect();
        assert_eq!(first, BTreeSet::from([*names.iter().min().unwrap()]), "{}", path.display());
    }
    let held = expected.values().filter(|tensor| dtype(tensor["dtype"].as_str().unwrap()).is_some()).count();
    assert_eq!(keys.len(), held, "{}: {:?}", path.display(), keys.keys().collect::<Vec<_>>());
    held
}

/// A node of an expected tree as JSON; `None` for what JSON cannot hold.
fn as_json(node: &Value) -> Option<Value> {
    let list =
        |items: &Value| items.as_array().unwrap().iter().map(as_json).collect::<Option<Vec<_>>>().map(Value::Array);
    let entries = |items: &Value| {
        let entries = items.as_array().unwrap().iter().map(|entry| Some((key_text(&entry[0]), as_json(&entry[1])?)));
        entries.collect::<Option<Map<_, _>>>().map(Value::Object)
    };
    let Some(object) = node.as_object() else {
        return if node.is_array() { list(node) } else { Some(node.clone()) };
    };
    let (kind, inner) =
        object.iter().find(|(kind, _)| !matches!(kind.as_str(), "state" | "attributes" | "class")).unwrap();
    match kind.as_str() {
        "dict" | "odict" => entries(inner),
        "tuple" | "set" | "frozenset" | "size" => list(inner),
        "float" => Some(match inner.as_str().unwrap() {
            "nan" => "NaN".into(),
            "inf" => "Infinity".into(),
            "-inf" => "-Infinity".into(),
            text => text.parse::<f64>().unwrap().into(),
        }),
        "dtype" | "device" => Some(inner.clone()),
        // What a path consists of is not in the fixtures.
        "object" if inner.as_str().unwrap().starts_with("pathlib") => Some(Value::Null),
        "object" => as_json(&object["state"]),
        "int" => inner.as_str().unwrap().parse::<u64>().ok().map(Value::from),
        _ => None,
    }
}

fn key_text(key: &Value) -> String {
    key.as_str().map_or_else(|| key.to_string(), str::to_string)
}

fn holds_tensors(node: &Value) -> bool {
    match node {
        Value::Object(object) => {
            object.contains_key("tensor") || object.contains_key("ndarray") || object.values().any(holds_tensors)
        }
        Value::Array(items) => items.iter().any(holds_tensors),
        _ => false,
    }
}

/// Values are there, as JSON, or named as unreadable.
fn check_values(path: &Path, source: &dyn TensorSource, at: &mut Vec<String>, node: &Value) {
    let children: Vec<(String, &Value)> = match node {
        Value::Object(object) => match object.get("dict").or(object.get("odict")) {
            Some(entries) => entries.as_array().unwrap().iter().map(|entry| (key_text(&entry[0]), &entry[1])).collect(),
            None => match object.get("tuple").filter(|_| holds_tensors(node)) {
                Some(items) => {
                    items.as_array().unwrap().iter().enumerate().map(|(i, item)| (i.to_string(), item)).collect()
                }
                None => Vec::new(),
            },
        },
        Value::Array(items) if holds_tensors(node) => {
            items.iter().enumerate().map(|(i, item)| (i.to_string(), item)).collect()
        }
        _ => Vec::new(),
    };
    if !children.is_empty() {
        for (part, child) in children {
            at.push(part);
            check_values(path, source, at, child);
            at.pop();
        }
        return;
    }
    if holds_tensors(node) {
        return;
    }
    let key = name::key(&at[..]);
    match as_json(node) {
        Some(expected) => {
            let mut found =
                source.values().get(&key).cloned().unwrap_or_else(|| panic!("{}: no {key}", path.display()));
            if let Some(data) = found.get_mut("data").filter(|_| expected.get("data") == Some(&Value::Null)) {
                assert!(data.is_string());
                *data = Value::Null;
            }
            // Sets have no order.
            if let Some(items) = node.get("set").and_then(|_| found.as_array_mut()) {
                items.sort_by_key(Value::to_string);
            }
            if let Some(flags) = found.get_mut("flags").and_then(Value::as_array_mut) {
                flags.sort_by_key(Value::to_string);
            }
            assert_eq!(found, expected, "{}: {key}", path.display());
        }
        None => assert!(source.unreadable().contains_key(&key), "{}: {key}", path.display()),
    }
}

#[test]
fn every_fixture_is_read_bit_for_bit() {
    let (mut count, mut tensors) = (0, 0);
    for (path, expected) in fixtures() {
        let (all, refused) = (expected["tensors"].as_object().unwrap(), expected.get("refused"));
        if refused.is_some() {
            continue;
        }
        let source = interop::open(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        tensors += check_tensors(&path, &*source, all);
        if let Some(tree) = expected.get("tree").filter(|tree| !tree.is_null()) {
            check_values(&path, &*source, &mut Vec::new(), tree);
        }
        source.verify().unwrap();
        count += 1;
    }
    println!("{count} fixtures, {tensors} tensors bit for bit");
}

/// What torch knows and this crate cannot hold is named, and the rest is read.
const KNOWN: [&str; 3] = ["_rebuild_sparse_tensor", "_rebuild_qtensor", "_rebuild_meta_tensor_no_storage"];

#[test]
fn what_cannot_be_held_is_refused_by_name() {
    let mut count = 0;
    for (path, expected) in fixtures() {
        let Some(refused) = expected.get("refused") else { continue };
        let (global, place) = (refused["global"].as_str().unwrap(), refused["path"].as_str().unwrap());
        if KNOWN.iter().any(|known| global.ends_with(known)) {
            let source = interop::open(&path).unwrap();
            assert!(source.unreadable()[place].contains(global), "{:?}", source.unreadable());
            check_tensors(&path, &*source, expected["tensors"].as_object().unwrap());
        } else {
            let error = interop::open(&path).unwrap_err().to_string();
            assert!(error.contains(global) && error.contains(&format!("`{place}`")), "{error}");
            assert!(error.contains("at byte "), "{error}");
        }
        let source = interop::open_with(&path, &ReadOptions::default().unknown_objects(true)).unwrap();
        let good = expected["tensors"].as_object().unwrap();
        for (key, tensor) in good {
            assert_eq!(tensor["sha256"], sha256(&read(&*source, key)), "{}: {key}", path.display());
        }
        let is_named = |reason: &String| reason.contains(global);
        assert!(source.unreadable().values().any(is_named), "{}: {:?}", path.display(), source.unreadable());
        count += 1;
    }
    assert!(count > 0);
    println!("{count} files refused by name");
}

/// Memory that a hostile file may take above its own length.
const MEMORY: u64 = 32 << 20;

/// Opens, reads and verifies all there is.
fn read_all(path: &Path) -> Result<(), String> {
    let source = interop::open(path).map_err(|e| e.to_string())?;
    let mut buffer = vec![0; 1 << 20];
    for (key, spec) in source.tensors() {
        let (size, count) = (spec.dtype.size() as u64, spec.bytes().unwrap() / spec.dtype.size() as u64);
        let step = buffer.len() as u64 / size;
        for begin in (0..count).step_by(step as usize) {
            let end = (begin + step).min(count);
            let target = &mut buffer[..((end - begin) * size) as usize];
            source.read_range(key, begin..end, target).map_err(|e| e.to_string())?;
        }
    }
    source.verify().map_err(|e| e.to_string())
}

#[test]
fn hostile_files_end_in_errors() {
    let (mut refused, mut read) = (0, 0);
    let (mut longest, mut largest) = (Duration::ZERO, 0);
    for root in roots() {
        let mut found = Vec::new();
        files(&root, &mut found);
        for list in found.iter().filter(|file| is_ours(file) && file.ends_with("hostile.expected.json")) {
            for (name, entry) in read_json(list)["files"].as_object().unwrap() {
                let path = list.with_file_name(name);
                let (result, time, memory) = measured(|| read_all(&path));
                let length = fs::metadata(&path).unwrap().len();
                assert!(memory as u64 <= MEMORY + length, "{name}: {memory} bytes");
                assert!(time < Duration::from_secs(if cfg!(debug_assertions) { 5 } else { 1 }), "{name}: {time:?}");
                (longest, largest) = (longest.max(time), largest.max(memory));
                match (entry["expect"].as_str().unwrap(), &result) {
                    ("refuse", Ok(())) => panic!("{name} was read: {}", entry["what"]),
                    ("read", Err(e)) => panic!("{name}: {e}"),
                    ("refuse", Err(e)) => {
                        let names = entry.get("names").and_then(Value::as_str).unwrap_or_default();
                        assert!(e.contains(names), "{name}: {e}");
                        refused += 1;
                    }
                    _ => read += 1,
                }
            }
        }
    }
    assert!(!Path::new("HOSTILE_WAS_EXECUTED").exists());
    println!("{refused} hostile files refused, {read} controls or either; at most {longest:?}, {largest} bytes");
}

#[test]
fn verified_as_far_as_the_file_allows() {
    for (path, expected) in fixtures() {
        if expected.get("refused").is_some() {
            continue;
        }
        let source = interop::open(&path).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap().to_string();
        for key in source.tensors().keys() {
            let verified = source.verified_by(key);
            if name == "seq2seq.pt" {
                assert_eq!(verified, VerifiedBy::Container, "{name} {key}");
            } else if name == "no_crc32.pt" || name.ends_with(".safetensors") {
                assert_eq!(verified, VerifiedBy::Nothing, "{name} {key}");
            }
        }
    }
}
