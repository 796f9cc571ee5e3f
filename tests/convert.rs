//! Conversion from any format into any, and averages.
#![cfg(all(feature = "huggingface", feature = "tensorflow", feature = "keras"))]

mod common;

use common::Memory;
use serde_json::json;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use tch_checkpoint::convert::{Format, convert};
use tch_checkpoint::map::{Average, NameMap};
use tch_checkpoint::{
    Checkpoint, Dtype, Error, RestoreOptions, TensorSource, Value, VerifiedBy, interop, verify_checkpoint,
};

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)
}

fn read(source: &dyn TensorSource, key: &str) -> Vec<u8> {
    let mut bytes = vec![0; source.tensors()[key].bytes().unwrap() as usize];
    source.read(key, &mut bytes).unwrap();
    bytes
}

#[test]
fn every_format_becomes_a_checkpoint_with_the_same_elements() {
    let folder = tempfile::tempdir().unwrap();
    let sources = [
        "pytorch/a_state_dict/seq2seq.pt",
        "pytorch/b_training/checkpoint_objects.pth",
        "pytorch/h_dcp/two_ranks",
        "pytorch/i_tch/seq2seq.npz",
        "huggingface/sharded",
        "tensorflow/c_sharded/ckpt-1",
        "keras/a_keras3/tagger.keras",
    ];
    for (i, path) in sources.into_iter().enumerate() {
        let source = interop::open(fixture(path)).unwrap();
        let to = folder.path().join(format!("c{i}"));
        let written = convert(&*source, &to, Format::Checkpoint).unwrap_or_else(|e| panic!("{path}: {e}"));
        assert_eq!(written.tensors, source.tensors().len());
        assert!(verify_checkpoint(&to).is_intact());
        let ours = interop::open(&to).unwrap();
        let key = |key: &str| if key.contains('/') { key.to_string() } else { format!("model/{key}") };
        assert_eq!(ours.tensors().len(), source.tensors().len());
        for (old, spec) in source.tensors() {
            assert_eq!(ours.tensors()[&key(old)], *spec, "{path} {old}");
            assert!(read(&*ours, &key(old)) == read(&*source, old), "{path} {old}");
            // What is one tensor under several names is saved once.
            assert_eq!(ours.first_alias(&key(old)) == key(old), source.first_alias(old) == old, "{path} {old}");
        }
        for (old, value) in source.values() {
            assert_eq!(ours.values()[&key(old)], *value);
        }
        // Nothing is overwritten.
        let error = convert(&*source, &to, Format::Checkpoint).unwrap_err();
        assert!(matches!(error, Error::AlreadyExists { .. }), "{error}");
    }
}

#[test]
fn a_map_goes_with_the_conversion_into_every_format() {
    let folder = tempfile::tempdir().unwrap();
    let source = interop::open(fixture("pytorch/a_state_dict/seq2seq.pt")).unwrap();
    let key = source.tensors().iter().find(|(_, spec)| spec.shape.len() == 2).unwrap().0.clone();
    let map = NameMap::new().include([&key]).define("net/w", tch_checkpoint::map::Transform::of(&key).transpose());
    let mapped = map.apply(&*source).unwrap();
    let wanted = (mapped.tensors()["net/w"].clone(), read(&mapped, "net/w"));
    for (name, format, key) in [
        ("ours", Format::Checkpoint, "net/w"),
        ("a.safetensors", Format::Safetensors, "net.w"),
        ("a.pt", Format::PyTorch, "net/w"),
        ("tf", Format::TensorFlow, "net/w"),
    ] {
        let to = folder.path().join(name);
        assert_eq!(convert(&mapped, &to, format).unwrap().tensors, 1, "{name}");
        let back = interop::open(&to).unwrap();
        assert_eq!((back.tensors()[key].clone(), read(&*back, key)), wanted, "{name}");
    }
}

#[test]
fn what_fails_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let tensors = BTreeMap::from([("a", Memory::seeded(5000, 1)), ("b", Memory::seeded(5000, 2))]);
    let ours = Checkpoint::new().track("m", &tensors).unwrap().write(folder.path().join("first")).unwrap();
    let pt = folder.path().join("m.pt");
    convert(&*interop::open(&ours).unwrap(), &pt, Format::PyTorch).unwrap();
    // A changed byte in one of the tensors.
    let mut bytes = fs::read(&pt).unwrap();
    let data = tensors["b"].bytes()[..32].to_vec();
    let at = bytes.windows(32).position(|window| window == data).unwrap();
    bytes[at] ^= 1;
    fs::write(&pt, bytes).unwrap();
    let source = interop::open(&pt).unwrap();
    for (name, format) in [
        ("ours", Format::Checkpoint),
        ("x.safetensors", Format::Safetensors),
        ("x.pt", Format::PyTorch),
        ("tf", Format::TensorFlow),
    ] {
        let to = folder.path().join("to").join(name);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        let error = convert(&*source, &to, format).unwrap_err();
        assert!(error.to_string().contains("CRC-32"), "{error}");
        let left: Vec<_> =
            fs::read_dir(to.parent().unwrap()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(left.iter().all(|name| name.to_str().unwrap().starts_with('.')), "{name}: {left:?}");
    }
    // One key is the beginning of another.
    let two = Checkpoint::new().track("m", Memory::seeded(1, 1)).unwrap().track("n", Memory::seeded(1, 2)).unwrap();
    let two = interop::open({ two }.write(folder.path().join("two")).unwrap()).unwrap();
    let mapped = NameMap::new().rename("m", "x/a").rename("n", "x/a/b").apply(&*two).unwrap();
    let error = convert(&mapped, folder.path().join("nested"), Format::Checkpoint).unwrap_err();
    assert!(matches!(error, Error::InvalidName { .. }) && !folder.path().join("nested").exists(), "{error}");
}

#[test]
fn averages_are_exact_and_go_into_objects_and_files() {
    let folder = tempfile::tempdir().unwrap();
    let numbers = [[1.0f32, 2.0, 1e30], [2.0, 4.0, 3e30], [6.0, 0.5, 2e30]];
    let sources: Vec<Box<dyn TensorSource>> = (0..3)
        .map(|i| {
            let half: Vec<u8> = numbers[i].iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect();
            let model = BTreeMap::from([
                ("w", Memory::f32(&[3], numbers[i])),
                ("h", Memory::new(Dtype::BF16, &[3], half)),
                ("steps", Memory::new(Dtype::I64, &[], (i as i64).to_le_bytes().to_vec())),
            ]);
            let checkpoint = Checkpoint::new().track("m", model).unwrap().track("epoch", Value::new(i)).unwrap();
            let path = { checkpoint }.write(folder.path().join(format!("c{i}"))).unwrap();
            interop::open(path).unwrap()
        })
        .collect();
    let all = || sources.iter().map(|source| &**source);
    let single = |bytes: Vec<u8>| bytes.as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect::<Vec<_>>();
    let mean = |weights: [f64; 3]| {
        (0..3).map(|at| (0..3).map(|i| weights[i] * f64::from(numbers[i][at])).sum::<f64>() as f32).collect::<Vec<_>>()
    };
    let uniform = Average::uniform(all()).unwrap();
    let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() <= f32::EPSILON * b.abs());
    assert!(close(&single(read(&uniform, "m/w")), &mean([1.0 / 3.0; 3])));
    let decayed = Average::exponential(all(), 0.75).unwrap();
    // 0.75 · (0.75 · first + 0.25 · second) + 0.25 · third.
    assert!(close(&single(read(&decayed, "m/w")), &mean([0.5625, 0.1875, 0.25])));
    assert_eq!(read(&uniform, "m/steps"), 2i64.to_le_bytes());
    assert_eq!((uniform.values()["epoch"].clone(), uniform.verified_by("m/w")), (json!(2), VerifiedBy::Digest));

    let path = folder.path().join("average");
    convert(&uniform, &path, Format::Checkpoint).unwrap();
    let live = BTreeMap::from([("w", Memory::f32(&[3], [0.0; 3]))]);
    let mut checkpoint = Checkpoint::new().track("m", &live).unwrap();
    checkpoint.restore(&path).unwrap();
    assert_eq!(*live["w"].bytes(), read(&uniform, "m/w"));
    checkpoint.restore_source(&decayed, &RestoreOptions::new()).unwrap();
    assert_eq!(*live["w"].bytes(), read(&decayed, "m/w"));

    let other =
        Checkpoint::new().track("m", Memory::f32(&[2], [1.0; 2])).unwrap().write(folder.path().join("o")).unwrap();
    let other = interop::open(other).unwrap();
    let error = Average::uniform(all().chain([&*other])).unwrap_err();
    assert!(matches!(error, Error::Object { .. }), "{error}");
    assert!(matches!(Average::uniform([]).unwrap_err(), Error::InvalidArgument(_)));
    assert!(matches!(Average::exponential(all(), 1.5).unwrap_err(), Error::InvalidArgument(_)));
}
