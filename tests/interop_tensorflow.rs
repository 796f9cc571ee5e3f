//! TensorFlow's bundles: the files in `tests/fixtures/tensorflow` were written by TensorFlow 2.21; `FIXTURES=DIR` runs the
//! same checks over more.
#![cfg(feature = "tensorflow")]

#[path = "common/fixtures.rs"]
mod fixtures;

use fixtures::{find, json, sha256, shape, without};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use tch_checkpoint::interop::tensorflow::{Bundle, CheckpointState};
use tch_checkpoint::{Error, TensorSource, VerifiedBy, interop};

const EXPECTED: &str = ".expected.json";

/// Prefixes of bundles, and what is in them.
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

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tensorflow").join(name)
}

#[test]
fn variables_have_every_name_that_the_graph_gives_them() {
    let bundle = Bundle::open(fixture("a_seq2seq_gru/ckpt-5")).unwrap();
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
    let weights = Bundle::open(fixture("g_keras2_weights/weights")).unwrap();
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
        let bundle = Bundle::open(fixture(file)).unwrap();
        for (name, torch) in slots {
            let slot = bundle.slots().iter().find(|slot| slot.variable == variable && slot.name == name);
            let slot = slot.unwrap_or_else(|| panic!("{file}: {variable} {name} in {:?}", bundle.slots()));
            assert_eq!((&*slot.optimizer, slot.torch), (optimizer, Some(torch)));
            assert_eq!(slot.key, format!("{optimizer}/{variable}/{torch}"));
            assert_eq!(bundle.tensors()[&slot.key], bundle.tensors()[variable], "{file}");
        }
    }
    let sgd = Bundle::open(fixture("e_slots/keras2_legacy_sgd-1")).unwrap();
    assert_eq!(sgd.slots().len(), 4);
    assert!(sgd.tensors().contains_key("optimizer/model/layer-0/kernel/momentum_buffer"));
    // In the Keras 3 optimizer of the sequence model the right one of many of the same shape.
    let adam = Bundle::open(fixture("a_seq2seq_gru/ckpt-5")).unwrap();
    assert_eq!(adam.slots().len(), 32);
    let key = adam.tensorflow_key("optimizer/decoder/attention/W2/_kernel/exp_avg_sq");
    assert_eq!(key, Some("optimizer/_variables/27/.ATTRIBUTES/VARIABLE_VALUE"));
}

#[test]
fn a_directory_means_its_newest_checkpoint_or_its_saved_model() {
    let newest = Bundle::open(fixture("a_seq2seq_gru")).unwrap();
    assert!(newest.prefix().ends_with("ckpt-5"));
    assert!(Bundle::open(fixture("a_seq2seq_gru/ckpt-5.index")).unwrap().prefix().ends_with("ckpt-5"));
    assert!(Bundle::open(fixture("g_keras2_weights/saved_model")).unwrap().tensors().contains_key("v"));
    for path in
        ["a_seq2seq_gru", "a_seq2seq_gru/ckpt-5.index", "g_keras2_weights/saved_model", "f_name_based/model.ckpt-7"]
    {
        assert_eq!(interop::open(fixture(path)).unwrap().format(), "TensorFlow", "{path}");
    }
    assert!(matches!(interop::open(fixture("e_slots")), Err(Error::Unsupported { .. })));
    for missing in ["a_seq2seq_gru/ckpt-4", "c_sharded", "e_slots", "nowhere"] {
        assert!(matches!(Bundle::open(fixture(missing)), Err(Error::NotFound { .. })), "{missing}");
    }
    let state = CheckpointState::read(fixture("a_seq2seq_gru/checkpoint")).unwrap();
    assert_eq!(state.all_model_checkpoint_paths, ["ckpt-3", "ckpt-4", "ckpt-5"]);
    assert_eq!(state.to_string(), fs::read_to_string(fixture("a_seq2seq_gru/checkpoint")).unwrap());
}

#[test]
fn a_state_file_leads_nowhere_else() {
    let root = tempfile::tempdir().unwrap();
    for name in ["ckpt-5.index", "ckpt-5.data-00000-of-00001"] {
        fs::create_dir_all(root.path().join("run")).unwrap();
        fs::copy(fixture("a_seq2seq_gru").join(name), root.path().join(name)).unwrap();
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
    let source = fixture(name);
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
