//! Files of Keras and of h5py: those in `tests/fixtures/keras` were written by Keras 3.15, `tf_keras` 2.21 and h5py
//! 3.14; `FIXTURES=DIR` runs the same checks over more.
#![cfg(feature = "keras")]

#[path = "common/fixtures.rs"]
mod fixtures;
#[path = "common/memory.rs"]
mod memory;
#[path = "common/python.rs"]
mod python;
#[path = "common/sources.rs"]
mod sources;

use fixtures::{find, json, sha256, shape, without};
use memory::measured;
use serde_json::Value;
use sources::{fixture, read};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tch_checkpoint::convert::{Format, convert};
use tch_checkpoint::interop::keras::{self, Weights};
use tch_checkpoint::interop::{self, KerasOptimizer, ReadOptions, tensorflow};
use tch_checkpoint::map::{NameMap, Preset};
use tch_checkpoint::{Dtype, Error, TensorSource, VerifiedBy, name};

const EXPECTED: &str = ".expected.json";
const HOSTILE: &str = "hostile.expected.json";

/// Files and their content.
fn files() -> Vec<(PathBuf, Value)> {
    let mut all = Vec::new();
    for path in find("keras", EXPECTED) {
        if path.ends_with(HOSTILE) {
            continue;
        }
        let expected = json(&path);
        let file = match expected.get("files") {
            Some(files) => without(&path, EXPECTED).join(files[0].as_str().unwrap()),
            None => without(&path, EXPECTED),
        };
        // Of TensorFlow's bundles, the prefix is no file.
        if file.is_file() {
            all.push((file, expected));
        }
    }
    all
}

fn dtype(name: &str) -> Option<Dtype> {
    Some(match name {
        "float32" => Dtype::F32,
        "float64" => Dtype::F64,
        "float16" => Dtype::F16,
        "bfloat16" => Dtype::BF16,
        "int8" => Dtype::I8,
        "int16" => Dtype::I16,
        "int32" => Dtype::I32,
        "int64" => Dtype::I64,
        "uint8" => Dtype::U8,
        "uint16" => Dtype::U16,
        "uint32" => Dtype::U32,
        "uint64" => Dtype::U64,
        "bool" => Dtype::Bool,
        "complex64" => Dtype::C64,
        _ => return None,
    })
}

#[test]
fn every_fixture_is_bit_exact() {
    let (mut count, mut tensors, mut newer) = (0, 0, 0);
    for (file, expected) in files() {
        let shown = file.display();
        if expected["superblock"].as_u64().is_some_and(|version| version > 1) {
            let error = Weights::open(&file).unwrap_err();
            assert!(matches!(error, Error::Unsupported { .. }), "{shown}: {error}");
            assert!(error.to_string().contains("libver=\"latest\""), "{shown}: {error}");
            newer += 1;
            continue;
        }
        let weights = Weights::open(&file).unwrap_or_else(|error| panic!("{error}"));
        weights.verify().unwrap();
        assert_eq!(interop::open(&file).unwrap().format(), weights.format());
        let wanted = expected["tensors"].as_object().unwrap();
        for (path, wanted) in wanted {
            let key = name::key(path.split('/'));
            let context = format!("{shown}: {key}");
            let spec = weights.tensors().get(&key).unwrap_or_else(|| panic!("{context} in {weights:?}"));
            assert_eq!(Some(spec.dtype), dtype(wanted["dtype"].as_str().unwrap()), "{context}");
            assert_eq!(spec.shape, shape(wanted), "{context}");
            let whole = read(&weights, &key);
            assert_eq!(sha256(&whole), wanted["sha256"].as_str().unwrap(), "{context}");
            let verified = wanted.get("filters").is_some() || file.extension().is_some_and(|suffix| suffix == "keras");
            assert_eq!(weights.verified_by(&key) == VerifiedBy::Container, verified, "{context}");
            let element = spec.dtype.size();
            for piece in [1, 7, 64] {
                let mut pieces = vec![0; whole.len()];
                for (i, part) in pieces.chunks_mut(piece * element).enumerate() {
                    let begin = (i * piece) as u64;
                    weights.read_range(&key, begin..begin + (part.len() / element) as u64, part).unwrap();
                }
                assert_eq!(pieces, whole, "{context} in pieces of {piece}");
            }
            tensors += 1;
        }
        // Only these, and other names of them.
        let paths: BTreeSet<String> = wanted.keys().map(|path| name::key(path.split('/'))).collect();
        for key in weights.tensors().keys().filter(|key| !paths.contains(*key)) {
            let known = weights.aliases(key).any(|alias| paths.contains(alias));
            assert!(known, "{shown}: {key}");
        }
        count += 1;
    }
    assert!(newer > 0, "the newer form is refused by name");
    println!("{tensors} tensors of {count} files are bit-exact");
}

#[test]
fn layers_have_their_names() {
    for (file, expected) in files() {
        let Some(variables) = expected["variables"].as_array().filter(|_| expected.get("tf_keras").is_none()) else {
            continue;
        };
        let Ok(weights) = Weights::open(&file) else { continue };
        let subclassed = file.to_str().unwrap().contains("subclassed");
        for variable in variables {
            let path = variable[0].as_str().unwrap();
            // Sequential models put their own name in front.
            let tail = path.split_once('/').map_or(path, |(_, tail)| tail);
            let found = [path, tail].into_iter().find_map(|key| weights.tensors().get(key));
            match found {
                Some(spec) => assert_eq!(spec.shape, shape(&serde_json::json!({ "shape": variable[1] })), "{path}"),
                None => assert!(subclassed || path.contains('/'), "{}: {path}", file.display()),
            }
        }
    }
    let tagger = Weights::open(fixture("keras/a_keras3/tagger.keras")).unwrap();
    for (alias, path) in [
        ("logits/kernel", "layers/dense/vars/0"),
        ("source_embedding/embeddings", "layers/embedding/vars/0"),
        ("encoder/forward_gru/gru_cell/recurrent_kernel", "layers/bidirectional/forward_layer/cell/vars/1"),
        ("lstm/lstm_cell/bias", "layers/lstm/cell/vars/2"),
        ("batch_normalization/moving_variance", "layers/batch_normalization/vars/3"),
    ] {
        assert_eq!(tagger.first_alias(path), tagger.first_alias(alias));
        assert_eq!(tagger.aliases(alias).collect::<BTreeSet<_>>(), BTreeSet::from([alias, path]));
    }
    let old = Weights::open(fixture("keras/b_keras2/old_fixed_strings.h5")).unwrap();
    assert_eq!(old.format(), "Keras 2 (HDF5)");
    assert!(old.tensors().contains_key("encoder/forward_gru/gru_cell/kernel"));
}

/// The variables that an optimizer of the model updates.
fn trainable(expected: &Value) -> Vec<&str> {
    let names = expected["variables"].as_array().unwrap().iter().map(|variable| variable[0].as_str().unwrap());
    names.filter(|name| !name.contains("/moving_") && !name.contains("seed")).collect()
}

#[test]
fn optimizers_are_named_after_their_variables() {
    // Keras 2 names them in the file.
    let model = Weights::open(fixture("keras/b_keras2/model.h5")).unwrap();
    assert_eq!(model.slots().len(), 28);
    let slot = model.slots().iter().find(|slot| slot.variable == "logits/kernel" && slot.name == "v").unwrap();
    assert_eq!((slot.torch, &*slot.key), (Some("exp_avg_sq"), "optimizer/logits/kernel/exp_avg_sq"));
    assert_eq!(read(&model, &slot.key), read(&model, "optimizer_weights/Adam/v/logits/kernel:0"));
    // Keras 3 has numbers, in the order of the model's trainable variables.
    let tagger = Weights::open(fixture("keras/a_keras3/tagger.keras")).unwrap();
    let expected = json(&fixture("keras/a_keras3/tagger.keras.expected.json"));
    let trainable = trainable(&expected);
    let slots = tagger.slots_of(&trainable).unwrap();
    assert_eq!(slots.len(), 28);
    let names: BTreeMap<String, String> = (expected["optimizer_variables"].as_array().unwrap().iter().enumerate())
        .map(|(i, variable)| (format!("optimizer/vars/{i}"), variable[0].as_str().unwrap().to_string()))
        .collect();
    for slot in &slots {
        let name = format!("adam/{}_{}", slot.variable.replace('/', "_"), slot.name);
        assert_eq!(names[&slot.key], name);
    }
    assert_eq!((slots[1].name.as_str(), slots[1].torch), ("velocity", Some("exp_avg_sq")));
    // Another order, too few, and unknown ones.
    assert!(tagger.slots_of(&trainable[1..]).is_err());
    let mut swapped = trainable.clone();
    swapped.swap(0, 1);
    assert!(tagger.slots_of(&swapped).is_err());
    assert!(tagger.slots_of(&["nothing"]).is_err());
    assert!(tagger.slots_of(&[]).is_err());
}

/// What an optimizer keeps gets the names and layouts of the variables.
#[test]
fn the_state_of_an_optimizer_goes_through_a_map() {
    let tagger = Weights::open(fixture("keras/a_keras3/tagger.keras")).unwrap();
    let expected = json(&fixture("keras/a_keras3/tagger.keras.expected.json"));
    let trainable = trainable(&expected);
    let state = keras::optimizer_state(&tagger, &trainable, &KerasOptimizer::adam().name("opt")).unwrap();
    assert_eq!(state.values()["opt/algorithm"], "Adam");
    assert!(state.values()["opt/steps"].as_u64() > Some(0));
    assert_eq!(state.tensors().len(), 3 * trainable.len());
    let map = NameMap::new()
        .layer("model/vs/logits", Preset::KerasDense, "logits")
        .layer("model/vs/encoder", Preset::KerasBidirectional, "encoder")
        .layer("model/vs/lstm", Preset::KerasLstm, "lstm")
        .layer("model/vs/norm", Preset::KerasBatchNorm, "batch_normalization");
    let mapped = map.apply_to_optimizer(&tagger, &state, "model/vs").unwrap();
    assert_eq!(mapped.values(), state.values());
    // Two layers of the bidirectional GRU, of its kernels, recurrent kernels and both of its biases; two variables of
    // the dense layer and of the normalization, whose running statistics have no state; three of the LSTM.
    let variables: BTreeSet<String> = mapped.tensors().keys().map(|key| name::path(key).unwrap()[2].clone()).collect();
    assert_eq!(variables.len(), 8 + 2 + 2 + 3, "{variables:?}");
    assert!(!variables.contains("norm.running_mean") && variables.contains("norm.weight"));
    // Keras has one bias, which becomes PyTorch's first one.
    let left_out: Vec<&String> = mapped.left_out().keys().collect();
    assert_eq!(left_out, ["lstm.bias_hh_l0"]);
    assert!(mapped.left_out()["lstm.bias_hh_l0"].contains("made of zeros"));
    // The moments of a kernel are transposed as the kernel is.
    for slot in ["exp_avg", "exp_avg_sq"] {
        let theirs = read(&state, &format!("opt/state/logits%2Fkernel/{slot}"));
        let ours = read(&mapped, &format!("opt/state/logits.weight/{slot}"));
        let shape = &mapped.tensors()[&format!("opt/state/logits.weight/{slot}")].shape;
        let (rows, columns) = (shape[0] as usize, shape[1] as usize);
        let element = |bytes: &[u8], at: usize| bytes[4 * at..4 * at + 4].to_vec();
        for row in 0..rows {
            for column in 0..columns {
                assert_eq!(element(&ours, row * columns + column), element(&theirs, column * rows + row));
            }
        }
        let mut part = vec![0; 4 * columns];
        let range = columns as u64..2 * columns as u64;
        mapped.read_range(&format!("opt/state/logits.weight/{slot}"), range, &mut part).unwrap();
        assert_eq!(part, ours[4 * columns..8 * columns]);
    }
    let step = read(&mapped, "opt/state/logits.weight/step");
    assert_eq!(f32::from_le_bytes(step.try_into().unwrap()) as u64, state.values()["opt/steps"].as_u64().unwrap());
    // A file without an optimizer's state, and a state of other variables.
    assert!(map.apply_to_optimizer(&tagger, &tagger, "model").is_err());
    let other = Weights::open(fixture("keras/b_keras2/model.h5")).unwrap();
    let old = keras::optimizer_state(&other, &[], &KerasOptimizer::adam().learning_rate(0.1)).unwrap();
    assert_eq!(old.tensors().len(), 28 / 2 * 3);
    let sharded = Weights::open(fixture("keras/a_keras3/float16.weights.h5")).unwrap();
    let error = map.apply_to_optimizer(&sharded, &old, "model").unwrap_err().to_string();
    assert!(error.contains("has no variable"), "{error}");
    let error = keras::optimizer_state(&other, &[], &KerasOptimizer::adam()).unwrap_err().to_string();
    assert!(error.contains("set `learning_rate`"), "{error}");
}

#[test]
fn an_archive_has_a_checksum() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("tagger.keras");
    let mut bytes = fs::read(fixture("keras/a_keras3/tagger.keras")).unwrap();
    let whole = Weights::open(fixture("keras/a_keras3/tagger.keras")).unwrap();
    // In the elements of a tensor, where HDF5 has no checksum.
    let mut kernel = vec![0; 4 * 33];
    whole.read("logits/kernel", &mut kernel).unwrap();
    let at = bytes.windows(kernel.len()).position(|window| window == kernel).unwrap();
    bytes[at + 5] ^= 1;
    fs::write(&path, bytes).unwrap();
    let damaged = Weights::open(&path).unwrap();
    assert!(matches!(damaged.read("logits/kernel", &mut kernel), Err(Error::Damaged { .. })));
    assert!(matches!(damaged.verify(), Err(Error::Damaged { .. })));
}

/// The memory that a hostile file may need in addition to its own length and its tensors.
const MEMORY: u64 = 64 << 20;

/// Opens a file and reads all of it.
fn read_all(path: &Path) -> Result<(), Error> {
    let source = interop::open(path)?;
    source.verify()?;
    for (key, spec) in source.tensors() {
        source.read(key, &mut vec![0; spec.bytes().unwrap() as usize])?;
    }
    Ok(())
}

#[test]
fn hostile_files_are_refused() {
    let (mut refused, mut files, mut largest) = (0, 0, 0);
    for list in find("keras", HOSTILE) {
        for (file, expected) in json(&list)["files"].as_object().unwrap() {
            let path = list.with_file_name(file);
            let (result, time, memory) = measured(|| read_all(&path));
            let tensors = interop::open(&path)
                .map_or(0, |source| source.tensors().values().map(|spec| spec.bytes().unwrap()).sum::<u64>());
            let allowed = MEMORY + fs::metadata(&path).unwrap().len() + tensors;
            assert!(memory as u64 <= allowed, "{file}: {memory} bytes of memory");
            largest = largest.max(memory as u64 - (memory as u64).min(tensors));
            match (expected["expect"].as_str().unwrap(), &result) {
                ("read", Ok(())) | ("refuse", Err(_)) | ("either", _) => {}
                (expect, result) => panic!("{file}: {expect}, but {result:?}"),
            }
            if let Err(error) = &result {
                refused += 1;
                assert!(matches!(error, Error::Damaged { .. } | Error::Unsupported { .. }), "{file}: {error}");
                println!("{file}: {error}");
            }
            assert!(time < Duration::from_secs(5), "{file}: {time:?}");
            files += 1;
        }
    }
    assert!(!Path::new("HOSTILE_WAS_EXECUTED").exists());
    println!("{refused} of {files} hostile files are refused, the others are read; at most {largest} bytes of memory");
}

#[test]
fn what_expands_beyond_reason_is_refused_unless_asked_for() {
    let bomb = fixture("keras/hostile/shape_bomb.h5");
    let error = Weights::open(&bomb).unwrap_err().to_string();
    assert!(error.contains("max_expansion"), "{error}");
    let weights = Weights::open_with(&bomb, &ReadOptions::default().max_expansion(u64::MAX)).unwrap();
    let (key, spec) = weights.tensors().iter().next().unwrap();
    let elements = spec.bytes().unwrap() / spec.dtype.size() as u64;
    let mut part = [1; 16];
    weights.read_range(key, elements - 4..elements, &mut part).unwrap();
    assert_eq!(part, [0; 16]);
}

#[test]
fn no_flipped_byte_and_no_cut_panics() {
    let root = tempfile::tempdir().unwrap();
    // `MUTATIONS=all` takes minutes.
    let all = std::env::var_os("MUTATIONS").is_some();
    for (name, step) in [
        ("hostile/fletcher_wrong.h5", 11),
        ("hostile/hard_link_cycle.h5", 7),
        ("a_keras3/float16.weights.h5", 71),
        ("c_hdf5/features.h5", 307),
        ("hostile/config_calls_system.keras", 23),
    ] {
        let whole = fs::read(fixture("keras").join(name)).unwrap();
        let path = root.path().join("damaged");
        let check = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            let begin = Instant::now();
            if let Err(error) = read_all(&path) {
                let kind = matches!(error, Error::Damaged { .. } | Error::Unsupported { .. });
                assert!(kind, "{name}: {error:?}");
            }
            assert!(begin.elapsed() < Duration::from_secs(10), "{name}");
        };
        for at in (0..whole.len()).step_by(if all { 1 } else { step }) {
            for value in [0xff, whole[at] ^ 0x01, whole[at] ^ 0x80] {
                let mut damaged = whole.clone();
                damaged[at] = value;
                check(&damaged);
            }
            check(&whole[..at]);
        }
    }
}

/// A model of Keras takes the weights of a checkpoint of ours, and computes with them what it did before.
#[cfg(feature = "tensorflow")]
#[test]
fn keras_computes_with_what_is_written() {
    let Some(python) = python::python("keras") else { return };
    let training = fixture("training");
    let root = tempfile::tempdir().unwrap();
    let bundle = interop::open(training.join("keras_seq2seq")).unwrap();
    let weights = NameMap::new().weights().apply(&*bundle).unwrap();
    let ours = convert(&weights, root.path().join("ours"), Format::Checkpoint).unwrap();
    assert!(!ours.left_out.contains_key("logits/bias"));
    let ours = interop::open(root.path().join("ours")).unwrap();
    fs::create_dir(root.path().join("theirs")).unwrap();
    tensorflow::write(&*ours, root.path().join("theirs/ckpt-1"), &tensorflow::WriteOptions::default()).unwrap();
    let mut command = python::command(python);
    command
        .arg(training.join("record_keras.py"))
        .args(["check".as_ref(), root.path().join("theirs/ckpt-1").as_os_str()]);
    let printed = python::output(&mut command);
    let output: Vec<f64> = serde_json::from_str(printed.lines().last().unwrap()).unwrap();
    let recorded = interop::open(training.join("keras_seq2seq.npz")).unwrap();
    let wanted = read(&*recorded, "output");
    let wanted: Vec<f64> = wanted.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes).into()).collect();
    assert_eq!(output.len(), wanted.len());
    assert!(
        output.iter().zip(&wanted).all(|(output, wanted)| (output - wanted).abs() <= 1e-6),
        "{output:?} {wanted:?}"
    );
}
