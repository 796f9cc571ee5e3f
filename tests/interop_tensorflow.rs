//! TensorFlow's bundles: the files in `tests/fixtures/tensorflow` were written by TensorFlow 2.21; `FIXTURES=DIR` runs
//! the same checks over more.
#![cfg(feature = "tensorflow")]

#[path = "common/fixtures.rs"]
mod fixtures;
#[path = "common/python.rs"]
mod python;
#[path = "common/sources.rs"]
mod sources;

use fixtures::{find, json, sha256, shape, without};
use serde_json::{Value, json};
use sources::fixture;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use tch_checkpoint::interop::tensorflow::{self, Bundle, CheckpointState, WriteOptions};
use tch_checkpoint::{Checkpoint, Dtype, Error, TensorSource, TensorSpec, Value as Handle, VerifiedBy, interop};

const EXPECTED: &str = ".expected.json";

/// Prefixes of bundles and their content.
fn bundles() -> Vec<(PathBuf, Value)> {
    let all = find("tensorflow", EXPECTED).into_iter().map(|path| (without(&path, EXPECTED), json(&path)));
    all.filter(|(_, expected)| expected.get("prefix").is_some()).collect()
}

/// Our key of a tensor of TensorFlow's.
fn keys(bundle: &Bundle) -> BTreeMap<String, String> {
    let all = bundle.tensors().keys().chain(bundle.values().keys()).chain(bundle.unreadable().keys());
    let mut keys = BTreeMap::new();
    for key in all {
        keys.entry(bundle.tensorflow_key(key).unwrap().to_string()).or_insert_with(|| key.clone());
    }
    keys
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn flat(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Array(values) => values.iter().for_each(|value| flat(value, found)),
        Value::String(text) => found.push(hex(text.as_bytes())),
        value => found.push(value["hex"].as_str().unwrap().to_string()),
    }
}

#[test]
fn every_fixture_is_bit_exact() {
    let (mut files, mut tensors) = (0, 0);
    for (prefix, expected) in bundles() {
        let name = prefix.display();
        let bundle = Bundle::open(&prefix).unwrap();
        bundle.verify().unwrap();
        let keys = keys(&bundle);
        let wanted = expected["tensors"].as_object().unwrap();
        let held: BTreeSet<&String> = keys.keys().collect();
        assert_eq!(held, wanted.keys().filter(|key| !key.starts_with("_CHECKPOINTABLE")).collect(), "{name}");
        for (tensorflow, key) in &keys {
            let (context, wanted) = (format!("{name}: {key}"), &wanted[tensorflow]);
            assert_eq!(bundle.tensorflow_dtype(key), wanted["dtype"].as_str(), "{context}");
            assert_eq!(bundle.shape(key).unwrap(), shape(wanted), "{context}");
            if let Some(strings) = wanted.get("values_hex") {
                let mut found = Vec::new();
                flat(&bundle.values()[key], &mut found);
                assert_eq!(json!(found), *strings, "{context}");
                continue;
            }
            let raw = bundle.read_raw(key).unwrap();
            assert_eq!(sha256(&raw), wanted["sha256"].as_str().unwrap(), "{context}");
            tensors += 1;
            let Some(spec) = bundle.tensors().get(key) else {
                let types = ["complex128", "float8_e4m3b11fnuz", "int4", "uint4", "int2", "uint2", "float4_e2m1fn"];
                assert!(types.contains(&wanted["dtype"].as_str().unwrap()), "{context}");
                assert!(bundle.unreadable()[key].contains("no type"), "{context}");
                continue;
            };
            assert_eq!(spec.shape, shape(wanted), "{context}");
            assert_eq!(bundle.verified_by(key), VerifiedBy::Container);
            let mut bytes = vec![0; spec.bytes().unwrap() as usize];
            bundle.read(key, &mut bytes).unwrap();
            assert_eq!(bytes, raw, "{context}");
            // In pieces, which is how large tensors are converted.
            let element = spec.dtype.size();
            let elements = bytes.len() / element;
            for piece in [1, 7, 64] {
                let mut pieces = vec![0; bytes.len()];
                for (i, part) in pieces.chunks_mut(piece * element).enumerate() {
                    let begin = (i * piece) as u64;
                    bundle.read_range(key, begin..begin + (part.len() / element) as u64, part).unwrap();
                }
                assert_eq!(pieces, raw, "{context} in pieces of {piece}");
            }
            assert!(bundle.read_range(key, 0..elements as u64 + 1, &mut vec![0; bytes.len() + element]).is_err());
            assert!(bundle.read(key, &mut vec![0; bytes.len() + 1]).is_err());
        }
        files += 1;
    }
    println!("{tensors} tensors of {files} bundles are bit-exact");
}

#[test]
fn variables_have_every_name_that_the_graph_gives_them() {
    let bundle = Bundle::open(fixture("tensorflow/a_seq2seq_gru/ckpt-5")).unwrap();
    // TensorFlow's key is the shortest path, which leads through the optimizer.
    let key = "encoder/rnn/cell/kernel";
    assert_eq!(
        bundle.tensorflow_key(key),
        Some("optimizer/_trainable_variables/1/.ATTRIBUTES/VARIABLE_VALUE"),
        "the trap of this fixture"
    );
    assert!(bundle.tensors().contains_key("optimizer/_trainable_variables/1"));
    assert_eq!(bundle.first_alias("optimizer/_trainable_variables/1"), key);
    assert_eq!(bundle.aliases(key).collect::<Vec<_>>(), [key, "optimizer/_trainable_variables/1"]);
    for name in ["encoder/embedding/_embeddings", "decoder/attention/W1/_kernel", "decoder/rnn/cell/bias", "step"] {
        assert!(bundle.tensors().contains_key(name), "{name}");
    }
    // A model saved on its own: the edge `root` leads back to it.
    let weights = Bundle::open(fixture("tensorflow/g_keras2_weights/weights")).unwrap();
    assert_eq!(
        weights.aliases("layer-0/kernel").collect::<Vec<_>>(),
        ["layer-0/kernel", "layer_with_weights-0/kernel"]
    );
}

#[test]
fn names_of_every_graph_lead_to_their_tensor() {
    for (prefix, expected) in bundles() {
        let bundle = Bundle::open(&prefix).unwrap();
        let Some(graph) = expected["object_graph"].as_array() else { continue };
        // Every walk of at most four edges from the root.
        let mut walks = vec![(0, Vec::<String>::new())];
        for depth in 0..5 {
            for (object, path) in walks.clone().into_iter().filter(|(_, path)| path.len() == depth) {
                for attribute in graph[object]["attributes"].as_array().unwrap() {
                    let key = tch_checkpoint::name::key(&path);
                    if attribute[0] == "VARIABLE_VALUE" && bundle.tensorflow_key(&key).is_some() {
                        assert_eq!(bundle.tensorflow_key(&key), attribute[2].as_str(), "{}: {key}", prefix.display());
                    } else if attribute[0] == "VARIABLE_VALUE" {
                        let passed: Vec<&String> = path.iter().filter(|name| *name == "root").collect();
                        assert!(!passed.is_empty() || path.iter().any(String::is_empty), "{}: {key}", prefix.display());
                    }
                }
                for child in graph[object]["children"].as_array().unwrap() {
                    let mut path = path.clone();
                    path.push(child[1].as_str().unwrap().to_string());
                    walks.push((child[0].as_u64().unwrap() as usize, path));
                }
            }
        }
    }
}

#[test]
fn slots_are_named_after_their_variable() {
    for (file, optimizer, variable, slots) in [
        (
            "a_seq2seq_gru/ckpt-5",
            "optimizer",
            "encoder/rnn/cell/kernel",
            [("momentum", "exp_avg"), ("velocity", "exp_avg_sq")],
        ),
        (
            "e_slots/keras2_adam-1",
            "optimizer",
            "model/layer-0/kernel",
            [("momentum", "exp_avg"), ("velocity", "exp_avg_sq")],
        ),
        ("e_slots/keras2_legacy_adam-1", "optimizer", "model/layer-1/bias", [("m", "exp_avg"), ("v", "exp_avg_sq")]),
        (
            "g_keras2_weights/weights",
            "optimizer",
            "layer-1/gamma",
            [("momentum", "exp_avg"), ("velocity", "exp_avg_sq")],
        ),
    ] {
        let bundle = Bundle::open(fixture("tensorflow").join(file)).unwrap();
        for (name, torch) in slots {
            let slot = bundle.slots().iter().find(|slot| slot.variable == variable && slot.name == name);
            let slot = slot.unwrap_or_else(|| panic!("{file}: {variable} {name} in {:?}", bundle.slots()));
            assert_eq!((&*slot.optimizer, slot.torch), (optimizer, Some(torch)));
            assert_eq!(slot.key, format!("{optimizer}/{variable}/{torch}"));
            assert_eq!(bundle.tensors()[&slot.key], bundle.tensors()[variable], "{file}");
        }
    }
    let sgd = Bundle::open(fixture("tensorflow/e_slots/keras2_legacy_sgd-1")).unwrap();
    assert_eq!(sgd.slots().len(), 4);
    assert!(sgd.tensors().contains_key("optimizer/model/layer-0/kernel/momentum_buffer"));
    // In the Keras 3 optimizer of the sequence model the right one of many of the same shape.
    let adam = Bundle::open(fixture("tensorflow/a_seq2seq_gru/ckpt-5")).unwrap();
    assert_eq!(adam.slots().len(), 32);
    let key = adam.tensorflow_key("optimizer/decoder/attention/W2/_kernel/exp_avg_sq");
    assert_eq!(key, Some("optimizer/_variables/27/.ATTRIBUTES/VARIABLE_VALUE"));
}

#[test]
fn a_directory_means_its_newest_checkpoint_or_its_saved_model() {
    let newest = Bundle::open(fixture("tensorflow/a_seq2seq_gru")).unwrap();
    assert!(newest.prefix().ends_with("ckpt-5"));
    assert!(Bundle::open(fixture("tensorflow/a_seq2seq_gru/ckpt-5.index")).unwrap().prefix().ends_with("ckpt-5"));
    assert!(Bundle::open(fixture("tensorflow/g_keras2_weights/saved_model")).unwrap().tensors().contains_key("v"));
    for path in
        ["a_seq2seq_gru", "a_seq2seq_gru/ckpt-5.index", "g_keras2_weights/saved_model", "f_name_based/model.ckpt-7"]
    {
        assert_eq!(interop::open(fixture("tensorflow").join(path)).unwrap().format(), "TensorFlow", "{path}");
    }
    assert!(matches!(interop::open(fixture("tensorflow/e_slots")), Err(Error::Unsupported { .. })));
    for missing in ["a_seq2seq_gru/ckpt-4", "c_sharded", "e_slots", "nowhere"] {
        assert!(matches!(Bundle::open(fixture("tensorflow").join(missing)), Err(Error::NotFound { .. })), "{missing}");
    }
    let state = CheckpointState::read(fixture("tensorflow/a_seq2seq_gru/checkpoint")).unwrap();
    assert_eq!(state.all_model_checkpoint_paths, ["ckpt-3", "ckpt-4", "ckpt-5"]);
    assert_eq!(state.to_string(), fs::read_to_string(fixture("tensorflow/a_seq2seq_gru/checkpoint")).unwrap());
}

#[test]
fn a_state_file_leads_nowhere_else() {
    let root = tempfile::tempdir().unwrap();
    for name in ["ckpt-5.index", "ckpt-5.data-00000-of-00001"] {
        fs::create_dir_all(root.path().join("run")).unwrap();
        fs::copy(fixture("tensorflow/a_seq2seq_gru").join(name), root.path().join(name)).unwrap();
    }
    for path in ["../ckpt-5", "/etc/passwd"] {
        fs::write(root.path().join("run/checkpoint"), format!("model_checkpoint_path: {path:?}\n")).unwrap();
        let error = Bundle::open(root.path().join("run")).unwrap_err().to_string();
        assert!(error.contains("not in this directory"), "{error}");
    }
    // The directory was moved: TensorFlow 1 wrote absolute paths.
    fs::write(root.path().join("checkpoint"), "model_checkpoint_path: \"/gone/ckpt-5\"\n").unwrap();
    assert!(Bundle::open(root.path()).is_ok());
}

/// A copy of a small fixture.
fn copied(name: &str) -> (tempfile::TempDir, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let source = fixture("tensorflow").join(name);
    let stem = source.file_name().unwrap().to_str().unwrap();
    for entry in fs::read_dir(source.parent().unwrap()).unwrap() {
        let path = entry.unwrap().path();
        let file = path.file_name().unwrap().to_str().unwrap();
        if file.starts_with(stem) && !file.ends_with(".json") {
            fs::copy(&path, root.path().join(file)).unwrap();
        }
    }
    let prefix = root.path().join(stem);
    (root, prefix)
}

#[test]
fn every_flipped_byte_and_every_cut_is_found() {
    let saved_model = "g_keras2_weights/saved_model/variables/variables";
    for (name, step) in [("f_name_based/model.ckpt-7", 1), (saved_model, 1), ("c_sharded/ckpt-1", 23)] {
        let (root, prefix) = copied(name);
        for entry in fs::read_dir(root.path()).unwrap() {
            let path = entry.unwrap().path();
            let whole = fs::read(&path).unwrap();
            for at in (0..whole.len()).step_by(step) {
                let mut damaged = whole.clone();
                damaged[at] ^= 0x55;
                fs::write(&path, &damaged).unwrap();
                let found = Bundle::open(&prefix).and_then(|bundle| bundle.verify());
                let error = found.expect_err(&format!("{} with byte {at} flipped", path.display()));
                assert!(matches!(error, Error::Damaged { .. } | Error::Unsupported { .. }), "{error}");
            }
            for at in (0..whole.len()).step_by(3 * step) {
                fs::write(&path, &whole[..at]).unwrap();
                let error = Bundle::open(&prefix).and_then(|bundle| bundle.verify()).unwrap_err();
                assert!(matches!(error, Error::Damaged { .. }), "{error}");
            }
            fs::write(&path, &whole).unwrap();
        }
        Bundle::open(&prefix).unwrap().verify().unwrap();
    }
}

/// The files of a prefix, by what is behind it.
fn files_of(prefix: &Path) -> BTreeMap<String, Vec<u8>> {
    let stem = prefix.file_name().unwrap().to_str().unwrap();
    let entries = fs::read_dir(prefix.parent().unwrap()).unwrap().map(|entry| entry.unwrap().path());
    let files = entries.filter_map(|path| {
        let suffix = path.file_name().unwrap().to_str().unwrap().strip_prefix(stem)?.to_string();
        let is_part = suffix.starts_with(".index") || suffix.starts_with(".data");
        is_part.then(|| (suffix, fs::read(&path).unwrap()))
    });
    files.collect()
}

#[test]
fn a_bundle_that_is_written_again_is_the_same() {
    let mut count = 0;
    for (prefix, _) in bundles() {
        let root = tempfile::tempdir().unwrap();
        let copy = root.path().join("copy-1");
        let bundle = Bundle::open(&prefix).unwrap();
        bundle.copy_to(&copy).unwrap();
        let (old, new) = (files_of(&prefix), files_of(&copy));
        assert_eq!(old.keys().collect::<Vec<_>>(), new.keys().collect::<Vec<_>>());
        for (suffix, bytes) in &old {
            assert!(*bytes == new[suffix], "{}{suffix} is not the same", prefix.display());
        }
        assert!(matches!(bundle.copy_to(&copy), Err(Error::AlreadyExists { .. })));
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), new.len(), "nothing is left behind");
        count += 1;
    }
    println!("{count} bundles are the same when written again");
}

/// Tensors in memory.
#[derive(Debug, Default)]
struct Memory {
    specs: BTreeMap<String, TensorSpec>,
    bytes: BTreeMap<String, Vec<u8>>,
    aliases: BTreeMap<String, String>,
    values: BTreeMap<String, Value>,
    unreadable: BTreeMap<String, String>,
}

impl Memory {
    fn tensor(&mut self, key: &str, dtype: Dtype, shape: &[u64], seed: u64) {
        let spec = TensorSpec::new(dtype, shape);
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let bytes = (0..spec.bytes().unwrap()).map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 57) as u8 & if dtype == Dtype::Bool { 1 } else { 0x3f }
        });
        self.bytes.insert(key.to_string(), bytes.collect());
        self.specs.insert(key.to_string(), spec);
    }

    fn alias(&mut self, key: &str, first: &str) {
        self.specs.insert(key.to_string(), self.specs[first].clone());
        self.bytes.insert(key.to_string(), self.bytes[first].clone());
        self.aliases.insert(key.to_string(), first.to_string());
    }
}

impl TensorSource for Memory {
    fn format(&self) -> &'static str {
        "memory"
    }
    fn path(&self) -> &tch_checkpoint::Location {
        static PATH: LazyLock<tch_checkpoint::Location> = LazyLock::new(|| "memory".into());
        &PATH
    }
    fn tensors(&self) -> &BTreeMap<String, TensorSpec> {
        &self.specs
    }
    fn values(&self) -> &BTreeMap<String, Value> {
        &self.values
    }
    fn unreadable(&self) -> &BTreeMap<String, String> {
        &self.unreadable
    }
    fn first_alias<'a>(&'a self, key: &'a str) -> &'a str {
        self.aliases.get(key).map_or(key, String::as_str)
    }
    fn verified_by(&self, _key: &str) -> VerifiedBy {
        VerifiedBy::Nothing
    }
    fn read(&self, key: &str, target: &mut [u8]) -> Result<(), Error> {
        target.copy_from_slice(&self.bytes[key]);
        Ok(())
    }
    fn read_range(&self, key: &str, range: Range<u64>, target: &mut [u8]) -> Result<(), Error> {
        let size = self.specs[key].dtype.size();
        target.copy_from_slice(&self.bytes[key][range.start as usize * size..range.end as usize * size]);
        Ok(())
    }
    fn verify(&self) -> Result<(), Error> {
        Ok(())
    }
}

fn memory() -> Memory {
    let mut memory = Memory::default();
    let types = [Dtype::F32, Dtype::F64, Dtype::F16, Dtype::BF16, Dtype::I8, Dtype::I32, Dtype::I64, Dtype::U8];
    for (i, dtype) in types.into_iter().chain([Dtype::U16, Dtype::U32, Dtype::U64, Dtype::Bool, Dtype::C64]).enumerate()
    {
        memory.tensor(&format!("types/{}", dtype.name().to_lowercase()), dtype, &[2, 3], i as u64);
    }
    memory.tensor("model/encoder.gru/w%2Fih", Dtype::F32, &[4, 5], 20);
    memory.tensor("model/embedding", Dtype::F32, &[1200, 1000], 21);
    memory.alias("model/logits", "model/embedding");
    memory.tensor("model/layers/0", Dtype::F32, &[], 22);
    memory.tensor("model/layers/1", Dtype::F32, &[0, 7], 23);
    memory.tensor("scales", Dtype::F8E8m0, &[4], 24);
    memory.values.insert("step".into(), json!(41));
    memory.values.insert("loss".into(), json!(0.125));
    memory.values.insert("run".into(), json!("née"));
    memory.values.insert("nothing".into(), Value::Null);
    memory
}

#[test]
fn any_source_becomes_a_bundle() {
    let root = tempfile::tempdir().unwrap();
    let prefix = root.path().join("ckpt-41");
    let memory = memory();
    let left_out = tensorflow::write(&memory, &prefix, &WriteOptions::default()).unwrap();
    assert_eq!(left_out.keys().collect::<Vec<_>>(), ["nothing", "scales"]);
    assert!(left_out["scales"].contains("F8_E8M0"));
    let bundle = Bundle::open(root.path()).unwrap();
    assert_eq!(bundle.prefix(), prefix);
    bundle.verify().unwrap();
    for (key, spec) in memory.specs.iter().filter(|(key, _)| *key != "scales") {
        assert_eq!(&bundle.tensors()[key], spec);
        let mut bytes = vec![0; spec.bytes().unwrap() as usize];
        bundle.read(key, &mut bytes).unwrap();
        assert!(bytes == memory.bytes[key], "{key}");
    }
    assert_eq!(bundle.first_alias("model/logits"), "model/embedding");
    assert_eq!(bundle.values()["run"], json!("née"));
    assert_eq!(bundle.read_raw("save_counter").unwrap(), 41i64.to_le_bytes(), "as the prefix says");
    assert_eq!(bundle.read_raw("step").unwrap(), 41i64.to_le_bytes());
    // The bytes are reproducible, no file is overwritten, and no temporary file is left.
    let again = root.path().join("again/ckpt-41");
    fs::create_dir(root.path().join("again")).unwrap();
    tensorflow::write(&memory, &again, &WriteOptions::default()).unwrap();
    assert!(files_of(&prefix) == files_of(&again));
    let error = tensorflow::write(&memory, &prefix, &WriteOptions::default()).unwrap_err();
    assert!(matches!(error, Error::AlreadyExists { .. }), "{error}");
    assert_eq!(fs::read_dir(root.path().join("again")).unwrap().count(), 3);
}

#[test]
fn a_failed_conversion_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join("x");
    fs::create_dir_all(directory.join("checkpoint")).unwrap();
    let prefix = directory.join("ckpt-1");
    let left = || fs::read_dir(&directory).unwrap().count();
    for _ in 0..2 {
        let error = tensorflow::write(&memory(), &prefix, &WriteOptions::default()).unwrap_err();
        assert!(matches!(error, Error::AlreadyExists { .. }) && error.to_string().contains("x/checkpoint"), "{error}");
        assert_eq!(left(), 1);
    }
    let name = std::os::unix::ffi::OsStrExt::from_bytes(&b"ckpt\xff"[..]);
    let error = tensorflow::write(&memory(), directory.join::<&std::ffi::OsStr>(name), &WriteOptions::default());
    assert!(matches!(error, Err(Error::InvalidArgument(_))) && left() == 1, "{error:?}");
    // Data that cannot get its name; a copy of it neither.
    fs::create_dir(directory.join("ckpt-1.data-00000-of-00001")).unwrap();
    let without = WriteOptions::default().state_file(false);
    assert!(tensorflow::write(&memory(), &prefix, &without).is_err() && left() == 2);
    fs::remove_dir(directory.join("ckpt-1.data-00000-of-00001")).unwrap();
    tensorflow::write(&memory(), &prefix, &without).unwrap();
    assert_eq!(left(), 3);
    // Nor a copy of which one file cannot get its name.
    let sharded = Bundle::open(fixture("tensorflow/c_sharded/ckpt-1")).unwrap();
    fs::create_dir(root.path().join("copy.data-00011-of-00012")).unwrap();
    assert!(sharded.copy_to(root.path().join("copy")).is_err());
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 2);
}

#[test]
fn numbers_that_json_lacks_are_written() {
    let root = tempfile::tempdir().unwrap();
    let ours = Checkpoint::new()
        .track("best", Handle::new(f64::INFINITY))
        .unwrap()
        .track("pair", Handle::new([0.5, f64::NAN]))
        .unwrap()
        .track("seed", Handle::new((u64::MAX, 0.5)))
        .unwrap()
        .write(root.path().join("ours"))
        .unwrap();
    let prefix = root.path().join("ckpt-1");
    let ours = interop::open(ours).unwrap();
    let left_out = tensorflow::write(&*ours, &prefix, &WriteOptions::default()).unwrap();
    assert_eq!(left_out.keys().collect::<Vec<_>>(), ["seed"]);
    let bundle = Bundle::open(&prefix).unwrap();
    assert_eq!(bundle.read_raw("best").unwrap(), f64::INFINITY.to_le_bytes());
    let pair = bundle.read_raw("pair").unwrap();
    assert!(pair[..8] == 0.5f64.to_le_bytes() && f64::from_le_bytes(pair[8..].try_into().unwrap()).is_nan());
}

#[test]
fn tensorflow_restores_what_was_written() {
    let Some(python) = python::python("tensorflow") else { return };
    let root = tempfile::tempdir().unwrap();
    let memory = memory();
    tensorflow::write(&memory, root.path().join("ckpt-41"), &WriteOptions::default()).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop_tensorflow.py");
    let printed = python::output(python::command(python).arg(script).arg(root.path()));
    let digests: BTreeMap<&str, &str> = printed.lines().filter_map(|line| line.split_once(' ')).collect();
    for (key, bytes) in memory.bytes.iter().filter(|(key, _)| *key != "scales") {
        assert_eq!(digests.get(&**key).copied(), Some(&*sha256(bytes)), "{key}: {printed}");
    }
    assert_eq!((digests["step"], digests["save_counter"]), ("41", "41"));
    // What TensorFlow saved after that, with its own writer, is read again.
    let theirs = Bundle::open(root.path()).unwrap();
    assert!(theirs.prefix().ends_with("ckpt-42"), "it goes on counting");
    for (key, bytes) in memory.bytes.iter().filter(|(key, _)| *key != "scales") {
        let mut read = vec![0; bytes.len()];
        theirs.read(key, &mut read).unwrap();
        assert!(read == *bytes, "{key}");
    }
}
