//! Files of PyTorch, TorchScript, tch, NumPy and Hugging Face: every fixture bit for bit, and hostile files as
//! specified.
//!
//! `tests/fixtures` holds some of each kind. With the environment variable `FIXTURES` the same checks run over every
//! file with an `expected.json` under that directory.

#[path = "common/fixtures.rs"]
mod fixtures;
#[path = "common/memory.rs"]
mod memory;
#[path = "common/python.rs"]
mod python;
#[path = "common/sources.rs"]
mod sources;
#[path = "common/table.rs"]
mod table;

use fixtures::{json as json_of, sha256};
use memory::measured;
use serde_json::{Map, Value, json};
use sources::{fixture, read};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use table::Table;
use tch_checkpoint::interop::{self, ReadOptions, huggingface, pytorch};
use tch_checkpoint::map::NameMap;
use tch_checkpoint::{
    Checkpoint, Dtype, Error, Node, TensorSource, TensorSpec, Trackable, Value as Handle, VerifiedBy, name,
};

fn roots() -> Vec<PathBuf> {
    let own = fixture("");
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

/// The files of the formats that these tests are about.
fn ours(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    ["pytorch", "huggingface"].iter().map(|format| root.join(format)).for_each(|format| files(&format, &mut found));
    found
}

/// Every fixture with what is in it.
fn fixtures() -> Vec<(PathBuf, Value)> {
    let mut all = Vec::new();
    for root in roots() {
        for file in ours(&root) {
            let name = file.file_name().unwrap().to_str().unwrap();
            if name == "expected.json" {
                all.push((file.parent().unwrap().to_path_buf(), json_of(&file)));
            } else if let Some(stem) = name.strip_suffix(".expected.json").filter(|stem| *stem != "hostile") {
                let mut path = file.with_file_name(stem);
                if !path.exists() {
                    path = file.with_file_name(format!("{stem}.safetensors"));
                }
                all.push((path, json_of(&file)));
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

/// All tensors are read as they were written; tensors that share elements have the same first name.
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
        // The fixtures do not record the components of a path.
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

/// Types of torch that this crate does not support are named, and the rest is read.
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

/// The memory that a hostile file may need in addition to its own length.
const MEMORY: u64 = 32 << 20;

/// Opens, reads and verifies everything in a file.
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
        for list in ours(&root).iter().filter(|file| file.ends_with("hostile.expected.json")) {
            for (name, entry) in json_of(list)["files"].as_object().unwrap() {
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

fn readable() -> Vec<(PathBuf, Box<dyn TensorSource>)> {
    let fixtures = fixtures().into_iter().filter(|(_, expected)| expected.get("refused").is_none());
    fixtures.map(|(path, _)| (path.clone(), interop::open(path).unwrap())).collect()
}

fn assert_same_tensors(path: &Path, a: &dyn TensorSource, b: &dyn TensorSource) {
    assert_eq!(a.tensors(), b.tensors(), "{}", path.display());
    for key in a.tensors().keys() {
        assert!(read(a, key) == read(b, key), "{}: {key}", path.display());
        assert_eq!(a.first_alias(key), b.first_alias(key), "{}: {key}", path.display());
    }
}

#[test]
fn what_is_written_as_pt_is_read_again() {
    let temp = tempfile::tempdir().unwrap();
    let (one, two) = (temp.path().join("one.pt"), temp.path().join("two.pt"));
    for (path, source) in readable() {
        if source.tensors().contains_key("") && source.tensors().len() > 1 {
            continue;
        }
        let written = pytorch::write(&*source, &one, &pytorch::WriteOptions::default()).unwrap();
        assert_eq!(written.tensors, source.tensors().len());
        assert_eq!(written.left_out.len(), source.unreadable().len());
        let again = interop::open(&one).unwrap();
        assert_same_tensors(&path, &*source, &*again);
        for (key, value) in source.values() {
            assert_eq!(again.value(key).as_ref(), Some(value), "{}: {key}", path.display());
        }
        assert_eq!(source.order(), again.order(), "{}", path.display());
        again.verify().unwrap();
        let keys = again.tensors().keys().map(|key| again.verified_by(key));
        assert!(keys.into_iter().all(|by| by == VerifiedBy::Container));
        // The same bytes twice, and no other file is left.
        pytorch::write(&*again, &two, &pytorch::WriteOptions::default()).unwrap();
        assert!(fs::read(&one).unwrap() == fs::read(&two).unwrap(), "{}", path.display());
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 2);
    }
}

/// Values that JSON cannot represent.
fn beyond_json(dir: &Path) -> Result<Box<dyn TensorSource>, Error> {
    let path = Checkpoint::new()
        .track("best", Handle::new(f64::INFINITY))?
        .track("map", Handle::new(BTreeMap::from([(1u32, f64::NAN), (2, 0.5)])))?
        .track("large", Handle::new([u128::MAX, 1 << 64]))?
        .track("small", Handle::new(i128::MIN))?
        .track("pair", Handle::new((-f64::INFINITY, "x".to_string(), Option::<u8>::None)))?
        .track("pairs", Handle::new(BTreeMap::from([((1, 2), "x".to_string())])))?
        .write(dir.join("beyond"))?;
    interop::open(path)
}

#[test]
fn values_that_json_cannot_represent_become_python_objects() {
    let temp = tempfile::tempdir().unwrap();
    let source = beyond_json(temp.path()).unwrap();
    let file = temp.path().join("x.pt");
    let written = pytorch::write(&*source, &file, &pytorch::WriteOptions::default()).unwrap();
    assert_eq!(written.left_out.keys().collect::<Vec<_>>(), ["pairs"]);
    assert!(written.left_out["pairs"].contains("key"), "{written:?}");
    let read = interop::open(&file).unwrap();
    assert_eq!(read.values()["best"], "Infinity");
    assert_eq!(read.value("map"), Some(json!({ "1": "NaN", "2": 0.5 })));
    assert_eq!(read.values()["pair"], json!(["-Infinity", "x", null]));
    let unreadable: Vec<_> = read.unreadable().keys().collect();
    assert_eq!(unreadable, ["large", "small"], "integers beyond 64 bits");
    for python in python::pythons("torch") {
        let script = "import sys, torch\nd = torch.load(sys.argv[1])\n\
             print(set(d) - {'save_counter'} == {'best', 'large', 'map', 'pair', 'small'}, d['best'] == float('inf'), \
             d['map'][1] != d['map'][1], d['map'][2] == .5, d['large'] == [2**128 - 1, 2**64], d['small'] == -2**127, \
             d['pair'] == [-float('inf'), 'x', None])";
        let printed = python::output(python::command(&python).args(["-c", script]).arg(&file));
        assert_eq!(printed.trim(), ["True"; 7].join(" "));
    }
}

/// An option of an optimizer may be infinite.
#[test]
fn an_optimizer_with_an_infinite_option_is_written() {
    let temp = tempfile::tempdir().unwrap();
    let groups = vec![BTreeMap::from([("lr".to_string(), 0.5), ("clip".to_string(), f64::INFINITY)])];
    let optimizer = Node::group([
        ("algorithm", Handle::new("SGD".to_string()).node()),
        ("param_groups", Handle::new(groups).node()),
    ]);
    let ours = Checkpoint::new().track("optimizer", optimizer).unwrap().write(temp.path().join("ours")).unwrap();
    let options = pytorch::WriteOptions::default().optimizer("optimizer", [["w"]]);
    let file = temp.path().join("x.pt");
    pytorch::write(&*interop::open(ours).unwrap(), &file, &options).unwrap();
    let groups = interop::open(&file).unwrap().value("optimizer/param_groups").unwrap();
    assert_eq!(
        (&groups[0]["clip"], &groups[0]["lr"], &groups[0]["params"]),
        (&json!("Infinity"), &json!(0.5), &json!([0]))
    );
}

#[test]
fn what_is_written_as_safetensors_is_read_again() {
    let temp = tempfile::tempdir().unwrap();
    let mut sharded = 0;
    for (i, (path, source)) in readable().into_iter().enumerate() {
        let has_one_level = |key: &String| name::path(key).is_some_and(|path| path.len() == 1);
        if source.tensors().is_empty() || !source.tensors().keys().all(has_one_level) {
            continue;
        }
        let (file, directory) = (temp.path().join(format!("{i}.safetensors")), temp.path().join(format!("{i}")));
        huggingface::write(&*source, &file, &huggingface::WriteOptions::default()).unwrap();
        let options = huggingface::WriteOptions::default().max_shard_bytes(600);
        huggingface::write(&*source, &directory, &options).unwrap();
        assert!(directory.join("model.safetensors.index.json").exists());
        sharded += usize::from(!directory.join("model.safetensors").exists());
        for written in [&file, &directory] {
            let again = interop::open(written).unwrap();
            assert_eq!(source.tensors(), again.tensors(), "{}", path.display());
            for key in source.tensors().keys() {
                assert!(read(&*source, key) == read(&*again, key), "{}: {key}", path.display());
            }
        }
        let error = huggingface::write(&*source, &directory, &options).unwrap_err();
        assert!(matches!(error, Error::AlreadyExists { .. }), "{error}");
    }
    assert!(sharded > 3);
    let names = fs::read_dir(temp.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert!(names.into_iter().all(|name| !name.starts_with('.')));
}

/// The fixture of a training with Adam, its tree, and the order of its parameters.
fn training() -> (Box<dyn TensorSource>, Vec<String>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/pytorch/b_training/checkpoint_adam_legacy_t1_6_0.pth.tar");
    let expected = json_of(&path.with_file_name("checkpoint_adam_legacy_t1_6_0.pth.tar.expected.json"));
    let order = expected["parameter_order"].as_array().unwrap();
    (interop::open(path).unwrap(), order.iter().map(|name| name.as_str().unwrap().to_string()).collect())
}

#[test]
fn an_optimizer_gets_names_in_the_order_given() {
    let (source, order) = training();
    let options = pytorch::OptimizerOptions::in_order(order.clone()).algorithm("Adam").name("opt");
    let state = pytorch::optimizer_state(&*source, "optimizer", &options).unwrap();
    assert_eq!(state.values()["opt/algorithm"], "Adam");
    assert!(state.values()["opt/param_groups"][0]["lr"].is_f64());
    assert!(state.values()["opt/steps"].as_u64() > Some(0));
    let mut with_state = 0;
    for (i, variable) in order.iter().enumerate() {
        for slot in ["exp_avg", "exp_avg_sq"] {
            let theirs = format!("optimizer/state/{i}/{slot}");
            let Some(spec) = source.tensors().get(&theirs) else { continue };
            let ours = name::key(["opt", "state", variable, slot]);
            assert_eq!(&state.tensors()[&ours], spec);
            assert!(read(&state, &ours) == read(&*source, &theirs));
            // A count in Python is one in a tensor here.
            let step = name::key(["opt", "state", variable, "step"]);
            assert_eq!(state.tensors()[&step].to_string(), "F32 []");
            let count = source.values()[&format!("optimizer/state/{i}/step")].as_f64().unwrap() as f32;
            assert_eq!(read(&state, &step), count.to_le_bytes());
            with_state += 1;
        }
    }
    assert!(with_state > 10);
}

#[test]
fn an_optimizer_whose_names_are_not_certain_is_refused() {
    let (source, order) = training();
    let refuse = |options: pytorch::OptimizerOptions| {
        pytorch::optimizer_state(&*source, "optimizer", &options).unwrap_err().to_string()
    };
    let error = refuse(pytorch::OptimizerOptions::in_order(order.clone()));
    assert!(error.contains("Adam or of AdamW"), "{error}");
    let error = refuse(pytorch::OptimizerOptions::in_order(order.clone()).algorithm("SGD"));
    assert!(error.contains("Adam"), "{error}");
    let error = refuse(pytorch::OptimizerOptions::in_order(order[1..].to_vec()).algorithm("Adam"));
    assert!(error.contains("names were given"), "{error}");
    // All variables of the model, including buffers: there is more than one way to assign them.
    let model: Vec<_> = source.order().into_iter().filter_map(|key| key.strip_prefix("model/")).collect();
    let shape = |name: &str| source.tensors()[&format!("model/{name}")].shape.clone();
    let all = pytorch::OptimizerOptions::among(model.iter().map(|name| (*name, shape(name)))).algorithm("Adam");
    let error = refuse(all);
    assert!(error.contains("can be any of `"), "{error}");
    // The parameters alone: there is one way, which is right.
    let among =
        pytorch::OptimizerOptions::among(order.iter().map(|name| (name.as_str(), shape(name)))).algorithm("Adam");
    let state = pytorch::optimizer_state(&*source, "optimizer", &among).unwrap();
    let named = pytorch::OptimizerOptions::in_order(order).algorithm("Adam");
    assert_eq!(state.tensors(), pytorch::optimizer_state(&*source, "optimizer", &named).unwrap().tensors());
    let error = pytorch::optimizer_state(&*source, "nothing", &among).unwrap_err().to_string();
    assert!(error.contains("param_groups"), "{error}");
}

#[test]
fn an_optimizer_is_written_as_torch_has_it() {
    let (source, order) = training();
    let options = pytorch::OptimizerOptions::in_order(order.clone()).algorithm("Adam");
    let state = pytorch::optimizer_state(&*source, "optimizer", &options).unwrap();
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("optimizer.pt");
    let save = pytorch::WriteOptions::default().optimizer("optimizer", [order[..15].to_vec(), order[15..].to_vec()]);
    pytorch::write(&state, &file, &save).unwrap();
    let written = interop::open(&file).unwrap();
    let keys = |source: &dyn TensorSource| -> Vec<String> {
        let keys = source.tensors().keys().filter(|key| key.starts_with("optimizer/state/") && !key.ends_with("step"));
        keys.cloned().collect()
    };
    assert_eq!(keys(&*written), keys(&*source));
    for key in keys(&*source) {
        assert!(read(&*written, &key) == read(&*source, &key), "{key}");
    }
    let groups = [&*written, &*source].map(|source| source.values()["optimizer/param_groups"][0].clone());
    assert_eq!(groups[0]["params"], groups[1]["params"]);
    assert_eq!(groups[0]["betas"], groups[1]["betas"]);
    // And back.
    let back = pytorch::optimizer_state(&*written, "optimizer", &options).unwrap();
    assert_same_tensors(&file, &state, &back);
    assert_eq!(state.values(), back.values());
    let too_few =
        pytorch::WriteOptions::default().optimizer("optimizer", [order[1..15].to_vec(), order[15..].to_vec()]);
    let error = pytorch::write(&state, &file, &too_few).unwrap_err().to_string();
    assert!(error.contains(&order[0]), "{error}");
}

/// A program that reads what was written, with torch's own readers, and writes what it found, a file in a line. Before
/// 2.1 there is one way to read.
const READER: &str = r#"
import sys, json, hashlib, torch
def leaf(value):
    if isinstance(value, torch.Tensor):
        flat = value.detach().contiguous().reshape(-1)
        raw = b"" if flat.numel() == 0 else flat.numpy().tobytes() if OLD else bytes(flat.view(torch.uint8).numpy())
        return {"tensor": [str(value.dtype)[6:], list(value.shape), hashlib.sha256(raw).hexdigest()]}
    return {"value": value}
def walk(value, path, found):
    if isinstance(value, dict) and value:
        for key, inner in value.items(): walk(inner, path + [str(key)], found)
    else:
        found["/".join(path)] = leaf(value)
OLD = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) < (2, 1)
WAYS = [{}] if OLD else [{"weights_only": True, "mmap": False}, {"weights_only": True, "mmap": True}]
for path in sys.argv[1:]:
    for way in WAYS:
        found = {}
        walk(torch.load(path, **way), [], found)
        print(json.dumps(found))
"#;

/// What torch 1.6 knows, and its NumPy.
const OLD_TYPES: [Dtype; 9] =
    [Dtype::Bool, Dtype::U8, Dtype::I8, Dtype::I16, Dtype::I32, Dtype::I64, Dtype::F16, Dtype::F32, Dtype::F64];

#[test]
fn a_slice_is_not_read_as_the_tensor() {
    let directory = fixture("pytorch/h_dcp/hf_two_ranks");
    let second = "shard-00002-model-00001-of-00001.safetensors";
    let refusal = |path: &Path| interop::open(path).map(drop).unwrap_err().to_string();
    assert!(refusal(&directory.join(second)).contains("only a slice of"), "{}", refusal(&directory.join(second)));
    assert!(interop::open(&directory).is_ok());
    // The other file is lost; and an index that lists only this one.
    let temp = tempfile::tempdir().unwrap();
    fs::copy(directory.join(second), temp.path().join(second)).unwrap();
    assert!(refusal(temp.path()).contains("only a slice of"));
    let source = interop::open(&directory).unwrap();
    let map: Map<String, Value> = source.tensors().keys().map(|key| (plain(key), second.into())).collect();
    let index = temp.path().join("model.safetensors.index.json");
    fs::write(&index, json!({ "metadata": {}, "weight_map": map }).to_string()).unwrap();
    assert!(refusal(&index).contains("only a slice of"));
    fs::rename(temp.path().join(second), temp.path().join("model.safetensors")).unwrap();
    fs::remove_file(&index).unwrap();
    assert!(refusal(temp.path()).contains("only a slice of"));
}

#[test]
fn one_of_several_shards_is_not_read_as_the_model() {
    let temp = tempfile::tempdir().unwrap();
    let shards = fixture("huggingface/sharded");
    let name = |number: u32| format!("model-{number:05}-of-00003.safetensors");
    for number in 1..=3 {
        let directory = temp.path().join(format!("{number}"));
        fs::create_dir(&directory).unwrap();
        fs::copy(shards.join(name(number)), directory.join(name(number))).unwrap();
        let error = interop::open(&directory).map(drop).unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{error}");
        let missing = (1..=3).filter(|other| *other != number).map(name).collect::<Vec<_>>().join(", ");
        assert!(error.to_string().contains(&missing), "{error}");
        assert!(interop::open(directory.join(name(number))).is_ok());
    }
    // Also one that tells which slices it has, as DCP's do.
    let dcp = fixture("pytorch/h_dcp/hf_writer");
    let names = [1, 2].map(|number| format!("model-{number:05}-of-00002.safetensors"));
    for (there, missing) in [(&names[0], &names[1]), (&names[1], &names[0])] {
        let directory = temp.path().join(format!("dcp without {missing}"));
        fs::create_dir(&directory).unwrap();
        fs::copy(dcp.join(there), directory.join(there)).unwrap();
        let error = interop::open(&directory).map(drop).unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }) && error.to_string().contains(missing), "{error}");
        fs::copy(dcp.join(missing), directory.join(missing)).unwrap();
        assert_eq!(interop::open(&directory).unwrap().tensors().len(), 3);
    }
    // The only one of one, and a name that numbers no shards.
    for alone in ["model-00001-of-00001.safetensors", "run-epoch-10-of-20.safetensors"] {
        let directory = temp.path().join(alone.trim_end_matches(".safetensors"));
        fs::create_dir(&directory).unwrap();
        fs::copy(shards.join(name(1)), directory.join(alone)).unwrap();
        assert!(interop::open(&directory).is_ok(), "{alone}");
    }
}

/// The tensors do not need it.
#[test]
fn a_configuration_of_any_kind_leaves_the_model_readable() {
    let temp = tempfile::tempdir().unwrap();
    let table = Table::default().with("embed_tokens.weight", Dtype::U8, &[2], vec![1, 2]);
    huggingface::write(&table, temp.path().join("m"), &huggingface::WriteOptions::default()).unwrap();
    let (directory, config) = (temp.path().join("m"), temp.path().join("m/config.json"));
    let unreadable = || interop::open(&directory).unwrap().unreadable().clone();
    let labels: Map<String, Value> =
        (0..70_000).map(|i| (i.to_string(), json!(format!("label {i}, at length")))).collect();
    let text = json!({ "id2label": labels, "tie_word_embeddings": true }).to_string();
    assert!(text.len() > 2_000_000, "{}", text.len());
    fs::write(&config, text).unwrap();
    assert!(unreadable()["lm_head.weight"].contains("tied"));
    for text in ["", "{", "[]", r#"{"tie_word_embeddings":"yes"}"#, r#"{"tie_word_embeddings":null}"#, "{}"] {
        fs::write(&config, text).unwrap();
        assert_eq!(unreadable(), BTreeMap::new(), "{text}");
    }
    fs::remove_file(&config).unwrap();
    fs::create_dir(&config).unwrap();
    assert_eq!(unreadable(), BTreeMap::new());
}

#[test]
fn a_slot_that_cannot_be_read_is_an_error() {
    let momentum = |id: u32| format!("optimizer/state/{id}/momentum_buffer");
    let group = json!({
        "lr": 0.1, "momentum": 0.9, "dampening": 0, "weight_decay": 0, "nesterov": false, "params": [0, 1],
    });
    let options = pytorch::OptimizerOptions::in_order(["embedding", "head"]);
    for place in [momentum(0), "optimizer/state/0".to_string(), "optimizer/state".to_string()] {
        let mut table = Table::default().with(&momentum(1), Dtype::F32, &[1], vec![0; 4]);
        table.values.insert("optimizer/param_groups".to_string(), json!([group.clone()]));
        assert_eq!(pytorch::optimizer_state(&table, "optimizer", &options).unwrap().tensors().len(), 1);
        table.unreadable.insert(place.clone(), "it is sparse".to_string());
        let error = pytorch::optimizer_state(&table, "optimizer", &options).unwrap_err().to_string();
        assert!(error.contains(&place) && error.contains("sparse"), "{error}");
    }
}

/// The entries of dictionaries in dictionaries.
fn flatten(path: String, value: &Value, found: &mut BTreeMap<String, Value>) {
    match value.as_object().filter(|entries| !entries.is_empty()) {
        Some(entries) => entries.iter().for_each(|(key, value)| flatten(format!("{path}/{key}"), value, found)),
        None => drop(found.insert(path, value.clone())),
    }
}

#[test]
fn torch_reads_what_is_written() {
    let temp = tempfile::tempdir().unwrap();
    let names =
        ["seq2seq.pt", "dtypes_zip.pt", "checkpoint_objects.pth", "views_zip.pt", "dtypes.ot", "sharded", "two_ranks"];
    let mut sources = readable();
    sources.retain(|(path, _)| names.contains(&path.file_name().unwrap().to_str().unwrap()));
    for python in python::pythons("torch") {
        let version = python::output(python::command(&python).args(["-c", "import torch; print(torch.__version__)"]));
        let (is_old, version) = (version.starts_with("1."), version.trim());
        let is_unknown = |spec: &TensorSpec| is_old && !OLD_TYPES.contains(&spec.dtype);
        let (mut files, mut wanted) = (Vec::new(), Vec::new());
        for (path, source) in &sources {
            let unknown = source.tensors().iter().filter(|(_, spec)| is_unknown(spec)).map(|(key, _)| key);
            let known = NameMap::new().exclude(unknown).apply(&**source).unwrap();
            let file = temp.path().join(format!("{version}-{}.pt", files.len()));
            pytorch::write(&known, &file, &pytorch::WriteOptions::default()).unwrap();
            files.push(file);
            wanted.push((path, known));
        }
        let output = python::output(python::command(&python).args(["-c", READER]).args(&files));
        let lines: Vec<Map<String, Value>> = output.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let ways = if is_old { 1 } else { 2 };
        assert_eq!(lines.len(), ways * wanted.len());
        for (i, found) in lines.iter().enumerate() {
            let (path, source) = &wanted[i / ways];
            assert!(!source.tensors().is_empty(), "{}", path.display());
            let mut values = BTreeMap::new();
            source.values().iter().for_each(|(key, value)| flatten(plain(key), value, &mut values));
            assert_eq!(found.len(), source.tensors().len() + values.len(), "{}", path.display());
            for (key, spec) in source.tensors() {
                let tensor = &found[&plain(key)]["tensor"];
                assert_eq!(dtype(tensor[0].as_str().unwrap()), Some(spec.dtype), "{key}");
                assert_eq!(tensor[1], json!(spec.shape), "{key}");
                assert_eq!(tensor[2], sha256(&read(source, key)), "{}: {key}", path.display());
            }
            for (key, value) in values {
                assert_eq!(found[&key]["value"], value, "{key}");
            }
        }
        println!("torch {version} reads {} files as they were written", wanted.len());
    }
}

#[test]
fn an_optimizer_of_torch_takes_what_is_written() {
    let (source, order) = training();
    let options = pytorch::OptimizerOptions::in_order(order.clone()).algorithm("Adam");
    let state = pytorch::optimizer_state(&*source, "optimizer", &options).unwrap();
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("optimizer.pt");
    let save = pytorch::WriteOptions::default()
        .only("optimizer")
        .optimizer("optimizer", [order[..15].to_vec(), order[15..].to_vec()]);
    pytorch::write(&state, &file, &save).unwrap();
    let shapes: Vec<_> = order.iter().map(|name| json!(source.tensors()[&format!("model/{name}")].shape)).collect();
    let program = "import sys, json, torch\n\
        params = [torch.nn.Parameter(torch.zeros(shape)) for shape in json.loads(sys.argv[2])]\n\
        optimizer = torch.optim.Adam([{'params': params[:15]}, {'params': params[15:]}])\n\
        optimizer.load_state_dict(torch.load(sys.argv[1], weights_only=True))\n\
        for p in params: p.grad = torch.ones_like(p)\n\
        optimizer.step()\n\
        print(int(optimizer.state[params[0]]['step']))";
    let Some(steps) = python::run("torch", program, &[file.to_str().unwrap(), &Value::from(shapes).to_string()]) else {
        return;
    };
    let before = state.values()["optimizer/steps"].as_u64().unwrap();
    assert_eq!(steps.trim().parse::<u64>().unwrap(), before + 1);
}
