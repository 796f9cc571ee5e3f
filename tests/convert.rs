//! Conversion from any format into any, and averages.
#![cfg(all(feature = "huggingface", feature = "tensorflow", feature = "keras"))]

mod common;

use common::Memory;
use common::sources::{fixture, read};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use tch_checkpoint::convert::{Format, convert};
use tch_checkpoint::format::{Manifest, SavedModelInfo};
use tch_checkpoint::map::{Average, Merged, NameMap};
use tch_checkpoint::{
    Asset, AssetStream, Checkpoint, CheckpointDirectory, CheckpointManager, CheckpointReader, Dtype, Error,
    RestoreOptions, SaveOptions, TensorSource, Value, VerifiedBy, interop, verify_checkpoint,
};

#[test]
fn every_format_becomes_a_checkpoint_with_the_same_elements() {
    let temp = tempfile::tempdir().unwrap();
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
        let to = temp.path().join(format!("c{i}"));
        let written = convert(&*source, &to, Format::Checkpoint).unwrap_or_else(|e| panic!("{path}: {e}"));
        assert_eq!(written.tensors, source.tensors().len());
        assert!(verify_checkpoint(&to).is_intact());
        let ours = interop::open(&to).unwrap();
        let key = |key: &str| if key.contains('/') { key.to_string() } else { format!("model/{key}") };
        assert_eq!(ours.tensors().len(), source.tensors().len());
        for (old, spec) in source.tensors() {
            assert_eq!(ours.tensors()[&key(old)], *spec, "{path} {old}");
            assert!(read(&*ours, &key(old)) == read(&*source, old), "{path} {old}");
            // A tensor with several names is saved once.
            assert_eq!(ours.first_alias(&key(old)) == key(old), source.first_alias(old) == old, "{path} {old}");
        }
        for (old, value) in source.values() {
            assert_eq!(ours.values()[&key(old)], *value);
        }
        // Nothing is overwritten.
        let error = convert(&*source, &to, Format::Checkpoint).unwrap_err();
        assert!(matches!(error, Error::AlreadyExists { .. }), "{error}");
        assert!(error.to_string().contains("choose another name"), "{error}");
    }
}

#[test]
fn a_map_goes_with_the_conversion_into_every_format() {
    let temp = tempfile::tempdir().unwrap();
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
        let to = temp.path().join(name);
        assert_eq!(convert(&mapped, &to, format).unwrap().tensors, 1, "{name}");
        let back = interop::open(&to).unwrap();
        assert_eq!((back.tensors()[key].clone(), read(&*back, key)), wanted, "{name}");
    }
}

#[test]
fn what_fails_leaves_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let tensors = BTreeMap::from([("a", Memory::seeded(5000, 1)), ("b", Memory::seeded(5000, 2))]);
    let ours = Checkpoint::new().track("m", &tensors).unwrap().write(temp.path().join("first")).unwrap();
    let pt = temp.path().join("m.pt");
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
        let to = temp.path().join("to").join(name);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        let error = convert(&*source, &to, format).unwrap_err();
        assert!(error.to_string().contains("CRC-32"), "{error}");
        let left: Vec<_> =
            fs::read_dir(to.parent().unwrap()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(left.iter().all(|name| name.to_str().unwrap().starts_with('.')), "{name}: {left:?}");
    }
    // One key is a prefix of another.
    let two = Checkpoint::new().track("m", Memory::seeded(1, 1)).unwrap().track("n", Memory::seeded(1, 2)).unwrap();
    let two = interop::open({ two }.write(temp.path().join("two")).unwrap()).unwrap();
    let mapped = NameMap::new().rename("m", "x/a").rename("n", "x/a/b").apply(&*two).unwrap();
    let error = convert(&mapped, temp.path().join("nested"), Format::Checkpoint).unwrap_err();
    assert!(matches!(error, Error::InvalidName { .. }) && !temp.path().join("nested").exists(), "{error}");
}

#[test]
fn averages_are_exact_and_go_into_objects_and_files() {
    let temp = tempfile::tempdir().unwrap();
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
            let path = { checkpoint }.write(temp.path().join(format!("c{i}"))).unwrap();
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

    let path = temp.path().join("average");
    convert(&uniform, &path, Format::Checkpoint).unwrap();
    let live = BTreeMap::from([("w", Memory::f32(&[3], [0.0; 3]))]);
    let mut checkpoint = Checkpoint::new().track("m", &live).unwrap();
    checkpoint.restore(&path).unwrap();
    assert_eq!(*live["w"].bytes(), read(&uniform, "m/w"));
    checkpoint.restore_source(&decayed, &RestoreOptions::new()).unwrap();
    assert_eq!(*live["w"].bytes(), read(&decayed, "m/w"));

    let other =
        Checkpoint::new().track("m", Memory::f32(&[2], [1.0; 2])).unwrap().write(temp.path().join("o")).unwrap();
    let other = interop::open(other).unwrap();
    let error = Average::uniform(all().chain([&*other])).unwrap_err();
    assert!(matches!(error, Error::Object { .. }), "{error}");
    assert!(matches!(Average::uniform([]).unwrap_err(), Error::InvalidArgument(_)));
    assert!(matches!(Average::exponential(all(), 1.5).unwrap_err(), Error::InvalidArgument(_)));
}

/// Saves a run of two checkpoints that have everything that a checkpoint can have in addition to its state.
fn run(dir: &Path) -> Vec<Box<dyn TensorSource>> {
    let tokenizer = Asset::writer("tokenizer.json", |out| out.write_all(b"[\"never\", \"odd\"]"));
    let weight = Memory::f32(&[2], [1.0, 2.0]);
    let checkpoint = Checkpoint::new()
        .track("model", BTreeMap::from([("w", &weight)]))
        .unwrap()
        .track("rate", Value::new(0.5))
        .unwrap()
        .metadata("layers", &2)
        .unwrap()
        .metadata("seed", &7)
        .unwrap()
        .asset(tokenizer)
        .unwrap();
    let mut manager = CheckpointManager::builder(checkpoint, dir.join("run")).max_to_keep(None).open().unwrap();
    for step in [10, 20] {
        weight.bytes()[0] = step as u8;
        manager.checkpoint_mut().set_metadata("seed", &step).unwrap();
        manager.save_with_metrics(step, [("loss", 1.0 / step as f64)]).unwrap();
    }
    manager.close().unwrap();
    let paths = tch_checkpoint::checkpoints(dir.join("run")).unwrap();
    for path in &paths {
        // As a variable of libtorch that requires a gradient.
        let file = path.join("manifest.json");
        let mut manifest = Manifest::from_bytes(&fs::read(&file).unwrap()).unwrap();
        manifest.tensors.get_mut("model/w").unwrap().requires_grad = Some(true);
        fs::write(&file, manifest.to_bytes().unwrap()).unwrap();
    }
    let marks = CheckpointDirectory::new(dir.join("run"));
    marks.add_metrics(&paths[1], [("accuracy", 0.75)]).unwrap();
    marks.annotate(&paths[1], "reviewed", "listened to 50 words").unwrap();
    paths.iter().map(|path| interop::open(path).unwrap()).collect()
}

/// What a checkpoint has in addition to its state is converted with it, under other names too.
#[test]
fn a_checkpoint_keeps_what_it_has_beside_its_state() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let sources = run(dir);
    let source = &*sources[1];
    let renamed = NameMap::new().rename("model/*", "net/*").apply(source).unwrap();
    for (name, source, key) in [("same", source, "model/w"), ("renamed", &renamed as &dyn TensorSource, "net/w")] {
        let written = convert(source, dir.join(name), Format::Checkpoint).unwrap();
        let names: Vec<&String> = written.attributes_left_out.keys().collect();
        assert_eq!(names, ["notes/reviewed"], "{name}");
        let reader = CheckpointReader::open(dir.join(name)).unwrap();
        let manifest = reader.manifest();
        assert_eq!((manifest.step, manifest.save_counter), (Some(20), Some(2)));
        assert_eq!(manifest.metrics, BTreeMap::from([("accuracy".to_string(), 0.75), ("loss".to_string(), 0.05)]));
        assert_eq!(
            manifest.metadata,
            BTreeMap::from([("layers".to_string(), json!(2)), ("seed".to_string(), json!(20))])
        );
        assert_eq!(manifest.tensors[key].requires_grad, Some(true));
        assert_eq!(reader.asset("tokenizer.json").unwrap(), b"[\"never\", \"odd\"]");
        assert!(reader.verify().is_intact());
        // It is another checkpoint, of another run.
        assert_ne!(Some(manifest.id()), source.attributes().unwrap().id);
        assert_eq!(manifest.follows, None);
    }
    for (name, format) in
        [("x.safetensors", Format::Safetensors), ("x.pt", Format::PyTorch), ("tf", Format::TensorFlow)]
    {
        let written = convert(source, dir.join(name), format).unwrap();
        let names: Vec<&String> = written.attributes_left_out.keys().collect();
        let all = ["assets/tokenizer.json", "metadata/layers", "metadata/seed", "metrics/accuracy", "metrics/loss"];
        assert_eq!(names, [&all[..], &["notes/reviewed", "requires_grad", "step"]].concat(), "{name}");
        // Only what another tool's file has can be left out.
        let back = interop::open(dir.join(name)).unwrap();
        let written = convert(&*back, dir.join(format!("{name}-back")), Format::Checkpoint).unwrap();
        assert_eq!(written.attributes_left_out, BTreeMap::new());
    }
}

/// An average and a merge record their sources.
#[test]
fn several_sources_are_recorded() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let sources = run(dir);
    let all = || sources.iter().map(|source| &**source);
    let average = Average::weighted(all().zip([1.0, 3.0])).unwrap();
    let written = convert(&average, dir.join("average"), Format::Checkpoint).unwrap();
    let names: Vec<&String> = written.attributes_left_out.keys().collect();
    assert_eq!(names, ["metrics/accuracy", "metrics/loss", "notes/reviewed"]);
    let reader = CheckpointReader::open(dir.join("average")).unwrap();
    let manifest = reader.manifest();
    assert_eq!((manifest.step, manifest.metrics.len()), (Some(20), 0));
    assert_eq!((&manifest.metadata["layers"], &manifest.metadata["seed"]), (&json!(2), &json!(20)));
    assert_eq!(reader.asset("tokenizer.json").unwrap().len(), 16);
    let recorded = &manifest.metadata["sources"];
    assert_eq!((&recorded[0]["weight"], &recorded[1]["weight"]), (&json!(0.25), &json!(0.75)));
    assert_eq!((&recorded[0]["step"], &recorded[0]["metrics"]), (&json!(10), &json!({ "loss": 0.1 })));
    assert_eq!((&recorded[0]["metadata"], &recorded[1]["metadata"]), (&json!({ "seed": 10 }), &json!(null)));
    assert_eq!(recorded[0]["path"], json!(sources[0].path().to_string()));

    // If the steps of the sources differ, the result has none.
    let other = NameMap::new().include(["model/w"]).rename("model/w", "other/w").apply(&*sources[0]).unwrap();
    let merged = Merged::new([&*sources[1], &other]).unwrap();
    let written = convert(&merged, dir.join("merged"), Format::Checkpoint).unwrap();
    let names: Vec<&String> = written.attributes_left_out.keys().collect();
    assert_eq!(names, ["metadata/seed", "metrics/accuracy", "metrics/loss", "notes/reviewed", "step"]);
    let reader = CheckpointReader::open(dir.join("merged")).unwrap();
    let manifest = reader.manifest();
    assert_eq!((manifest.step, &manifest.metadata["layers"]), (None, &json!(2)));
    assert_eq!(manifest.metadata["sources"][1]["metadata"], json!({ "seed": 10 }));
    assert_eq!(manifest.metadata["sources"][0]["metrics"], json!({ "accuracy": 0.75, "loss": 0.05 }));
    assert_eq!(manifest.tensors["other/w"].requires_grad, Some(true));
    assert_eq!(reader.asset("tokenizer.json").unwrap().len(), 16);
    // A file that both have in common is copied; if two differ under one name, neither is.
    let mut other = Checkpoint::new()
        .track("third", Memory::f32(&[1], [3.0]))
        .unwrap()
        .asset(Asset::writer("tokenizer.json", |out| out.write_all(b"[]")))
        .unwrap();
    let third = interop::open(other.write(dir.join("third")).unwrap()).unwrap();
    let merged = Merged::new([&*sources[1], &*third]).unwrap();
    let written = convert(&merged, dir.join("conflict"), Format::Checkpoint).unwrap();
    assert!(written.attributes_left_out["assets/tokenizer.json"].contains("different files"));
    assert!(CheckpointReader::open(dir.join("conflict")).unwrap().manifest().assets.is_empty());
}

/// Metadata that already has the record's name is listed, and records are not nested.
#[test]
fn no_metadata_are_lost_to_the_record_unseen() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let open = |name: &str| interop::open(dir.join(name)).unwrap();
    for (name, own) in [("a", json!(["a corpus"])), ("b", json!(["a corpus"])), ("c", json!("another"))] {
        let weight = BTreeMap::from([(name, Memory::f32(&[1], [1.0]))]);
        let checkpoint = Checkpoint::new().track(if name == "c" { "c" } else { "model" }, &weight).unwrap();
        checkpoint.metadata("sources", &own).unwrap().write(dir.join(name)).unwrap();
    }
    let names = NameMap::new().rename("model/b", "model/a");
    let (a, b, c) = (open("a"), open("b"), open("c"));
    let b = names.apply(&*b).unwrap();
    let average = Average::uniform([&*a as &dyn TensorSource, &b]).unwrap();
    let merged = Merged::new([&*a, &*c]).unwrap();
    for (name, source) in [("average", &average as &dyn TensorSource), ("merged", &merged)] {
        let written = convert(source, dir.join(name), Format::Checkpoint).unwrap();
        assert!(written.attributes_left_out["metadata/sources"].contains("record"), "{name}: {written:?}");
    }
    // The average of an average.
    let (first, second) = (open("average"), open("average"));
    let again = Average::uniform([&*first, &*second]).unwrap();
    let written = convert(&again, dir.join("again"), Format::Checkpoint).unwrap();
    assert_eq!(written.attributes_left_out.keys().collect::<Vec<_>>(), ["metadata/sources"]);
    for name in ["average", "merged", "again"] {
        let reader = CheckpointReader::open(dir.join(name)).unwrap();
        let records = reader.manifest().metadata["sources"].as_array().unwrap().clone();
        assert_eq!(records.len(), 2);
        assert!(records.iter().all(|record| record["path"].is_string() && record["metadata"].is_null()), "{records:?}");
    }
}

#[test]
fn what_is_salvaged_is_as_trainable_and_as_unclean_as_before() {
    let temp = tempfile::tempdir().unwrap();
    let path = run(temp.path())[1].path().clone();
    let file = path.join("manifest.json");
    let mut manifest = Manifest::from_bytes(&fs::read(&file).unwrap()).unwrap();
    manifest.unclean = true;
    fs::write(&file, manifest.to_bytes().unwrap()).unwrap();
    tch_checkpoint::inspect::salvage(&path, temp.path().join("salvaged")).unwrap();
    let salvaged = CheckpointReader::open(temp.path().join("salvaged")).unwrap();
    let manifest = salvaged.manifest();
    assert_eq!((manifest.tensors["model/w"].requires_grad, manifest.unclean, manifest.step), (Some(true), true, None));
}

/// A program fits the variables that it was exported with, as they were.
#[test]
fn a_program_goes_only_with_its_variables() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let mut info = serde_json::to_value(SavedModelInfo::new("cpu")).unwrap();
    info["variables"] = json!({ "w": { "key": "model/w", "trainable": true, "group": 0 } });
    let info = SavedModelInfo::from_bytes(info.to_string().as_bytes()).unwrap().to_bytes().unwrap();
    let model = BTreeMap::from([("w", Memory::f32(&[2], [1.0, 2.0]))]);
    let mut checkpoint =
        Checkpoint::new().track("model", &model).unwrap().track("optimizer", Memory::f32(&[2], [0.0, 0.5])).unwrap();
    let asset = |name: &'static str, bytes: Vec<u8>| {
        AssetStream::new(name, bytes.len() as u64, move |out| out.write_all(&bytes))
    };
    let assets = [
        asset("saved_model.json", info),
        asset("program.pt", b"program".to_vec()),
        asset("examples.st", b"examples".to_vec()),
        asset("words.txt", b"never odd".to_vec()),
    ];
    let path = checkpoint.write_with_assets(dir.join("saved"), &SaveOptions::new(), assets).unwrap();
    let source = &*interop::open(path).unwrap();
    let part = NameMap::new().include(["model/*"]).apply(source).unwrap();
    let renamed = NameMap::new().rename("model/*", "net/*").apply(source).unwrap();
    let half = tch_checkpoint::map::Transform::of("model/w").cast(Dtype::F16);
    let cast = NameMap::new().define("model/w", half).apply(source).unwrap();
    let average = Average::uniform([source, source]).unwrap();
    for (name, source, has_program) in [
        ("same", source, true),
        ("part", &part as &dyn TensorSource, true),
        ("renamed", &renamed, false),
        ("cast", &cast, false),
        ("average", &average, false),
    ] {
        let written = convert(source, dir.join(name), Format::Checkpoint).unwrap();
        let reader = CheckpointReader::open(dir.join(name)).unwrap();
        let files: Vec<&str> = reader.manifest().assets.keys().map(String::as_str).collect();
        let left_out: Vec<&str> = written.attributes_left_out.keys().map(String::as_str).collect();
        let program = ["examples.st", "program.pt", "saved_model.json"];
        match has_program {
            true => assert_eq!((files, left_out), ([&program[..], &["words.txt"]].concat(), vec![]), "{name}"),
            false => {
                let wanted = ["assets/examples.st", "assets/program.pt", "assets/saved_model.json"];
                assert_eq!((files, left_out), (vec!["words.txt"], wanted.to_vec()), "{name}");
            }
        }
        assert!(reader.verify().is_intact());
    }
}

/// What `interop::open` returns, within some seconds.
fn opened_in_time(path: &Path) -> Result<(), Error> {
    let (send, receive) = std::sync::mpsc::channel();
    let path = path.to_path_buf();
    std::thread::spawn(move || send.send(interop::open(path).map(drop)));
    receive.recv_timeout(std::time::Duration::from_secs(20)).expect("it waits")
}

#[test]
fn a_seal_is_a_file_of_bounded_length() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("model.safetensors");
    fs::copy(fixture("huggingface/single/model.safetensors"), &path).unwrap();
    let seal = interop::seal(&path).unwrap();
    let aside = temp.path().join("aside");
    fs::rename(&seal, &aside).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&seal).status().unwrap().success());
    let error = opened_in_time(&path).unwrap_err();
    assert!(matches!(&error, Error::Unsupported { path, .. } if *path == seal), "{error}");
    fs::remove_file(&seal).unwrap();
    let socket = std::os::unix::net::UnixListener::bind(&seal).unwrap();
    assert!(matches!(opened_in_time(&path), Err(Error::Unsupported { .. })));
    drop(socket);
    fs::remove_file(&seal).unwrap();
    // The link leads to exactly what was written.
    std::os::unix::fs::symlink(&aside, &seal).unwrap();
    let error = opened_in_time(&path).unwrap_err();
    assert!(matches!(&error, Error::Link { path, .. } if *path == seal), "{error}");
    fs::remove_file(&seal).unwrap();
    fs::File::create(&seal).unwrap().set_len((256 << 20) + 1).unwrap();
    let error = opened_in_time(&path).unwrap_err();
    assert!(error.is_damaged() && error.to_string().contains("at most"), "{error}");
    fs::remove_file(&seal).unwrap();
    fs::rename(&aside, &seal).unwrap();
    opened_in_time(&path).unwrap();
    // There is no seal for a name that cannot be extended.
    let long = temp.path().join(format!("{}.safetensors", "a".repeat(240)));
    fs::copy(&path, &long).unwrap();
    opened_in_time(&long).unwrap();
}

/// Tensors above 8 MiB are verified first, and then read and written in pieces, which need not begin at an element.
#[test]
fn large_tensors_go_in_pieces() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    // A pattern whose length has no common divisor with that of a piece.
    let long = |seed| {
        let bytes = Memory::seeded(16_381, seed).bytes().repeat(129);
        Memory::new(Dtype::F32, &[bytes.len() as u64 / 4], bytes)
    };
    let tensors = BTreeMap::from([("a", Memory::new(Dtype::U8, &[3], vec![1, 2, 3])), ("w", long(5)), ("z", long(6))]);
    let path = Checkpoint::new().track("m", &tensors).unwrap().write(dir.join("first")).unwrap();
    let source = interop::open(&path).unwrap();
    let half = tch_checkpoint::map::Transform::of("m/w").cast(Dtype::F64);
    let cast = NameMap::new().define("m/w", half).apply(&*source).unwrap();
    let turned = tch_checkpoint::map::Transform::of("m/w").slice(0, 1, None);
    let other = tch_checkpoint::map::Transform::of("m/z").slice(0, 2, None);
    let whole = NameMap::new().define("m/w", turned).define("m/z", other).apply(&*source).unwrap();
    let part = NameMap::new().exclude(["m/z"]).apply(&*source).unwrap();
    let average = Average::uniform([&part as &dyn TensorSource, &part]).unwrap();
    let sources: [(&str, &dyn TensorSource); 4] =
        [("same", &*source), ("cast", &cast), ("whole", &whole), ("average", &average)];
    for (name, source) in sources {
        convert(source, dir.join(name), Format::Checkpoint).unwrap();
        let back = interop::open(dir.join(name)).unwrap();
        assert!(verify_checkpoint(dir.join(name)).is_intact());
        for key in source.tensors().keys() {
            assert!(read(&*back, key) == read(source, key), "{name} {key}");
        }
    }
    let first = read(&*source, "m/w");
    let double = read(&cast, "m/w");
    for at in [0, 1, 262_143, 262_144, 1_048_577, 2_113_148] {
        let (single, double) = (first[4 * at..].first_chunk().unwrap(), double[8 * at..].first_chunk().unwrap());
        assert_eq!(f64::from(f32::from_le_bytes(*single)), f64::from_le_bytes(*double), "{at}");
    }
    assert!(read(&average, "m/w") == first && read(&whole, "m/w") == first[4..]);

    // One changed byte, and nothing is written.
    let file = path.join("m.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let manifest = CheckpointReader::open(&path).unwrap().manifest().clone();
    bytes[manifest.tensors["m/w"].pieces[0].begin as usize + (4 << 20)] ^= 1;
    fs::write(&file, bytes).unwrap();
    for (name, source) in sources {
        let error = convert(source, dir.join("no"), Format::Checkpoint).unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }) && !dir.join("no").exists(), "{name}: {error}");
        let mut target = vec![0; source.tensors()["m/w"].bytes().unwrap() as usize];
        assert!(matches!(source.read("m/w", &mut target).unwrap_err(), Error::Damaged { .. }), "{name}");
    }
}
