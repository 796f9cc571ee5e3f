//! The bytes of each version: golden files, the example in docs/format.md and the Python reader.

use super::*;
use crate::figures::SaveFigures;
use std::path::PathBuf;
use std::time::Duration;

/// Compares with a file under tests/golden; with `UPDATE_GOLDEN=1` in the environment, writes it.
fn golden(file: &str, bytes: &[u8]) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
    }
    let hint = "the format changed! If that is meant, it needs a new version number, or must be readable by every \
                reader of this one; then regenerate with UPDATE_GOLDEN=1";
    assert!(std::fs::read(&path).unwrap_or_default() == bytes, "{}: {hint}", path.display());
}

/// A whole checkpoint: once a version is released its files stay as they are, and stay readable.
#[test]
fn the_bytes_written_are_those_of_the_golden_files() {
    let (manifest, files) = sample();
    let text = manifest.to_bytes().unwrap();
    golden("v1/ckpt-1500/manifest.json", &text);
    for (file, bytes) in &files {
        golden(&format!("v1/ckpt-1500/{file}"), bytes);
    }
    golden("v1/checkpoint.json", &sample_index().to_bytes().unwrap());
}

/// Returns the sample as a saved model: with assets, so of version 2.
fn sample_with_assets() -> (Manifest, BTreeMap<String, Vec<u8>>) {
    let (mut manifest, files) = sample();
    let mut info = SavedModelInfo::new("cpu");
    let tensor =
        |name: &str, dtype, shape: &[Option<u64>]| TensorInfo { name: name.into(), dtype, shape: shape.into() };
    let signature = Signature {
        inputs: vec![tensor("letters", Dtype::I64, &[None, None])],
        outputs: vec![tensor("logits", Dtype::F32, &[None, Some(5)])],
        examples: 2,
    };
    info.signatures.insert("forward".to_string(), signature);
    let variable = Variable { key: "my encoder/embedding.weight".to_string(), trainable: true, group: 0 };
    info.variables.insert("embedding.weight".to_string(), variable);
    info.metadata.insert("language".to_string(), "en".into());
    let program = b"TorchScript, as far as the manifest is concerned".to_vec();
    let mut assets = BTreeMap::new();
    for (name, bytes) in
        [(PROGRAM_FILE, program), (SAVED_MODEL_FILE, info.to_bytes().unwrap()), (EXAMPLES_FILE, vec![])]
    {
        let entry = AssetEntry { bytes: bytes.len() as u64, digest: Digest::of(&bytes) };
        manifest.assets.insert(name.to_string(), entry);
        assets.insert(name.to_string(), bytes);
    }
    assets.extend(files);
    (manifest, assets)
}

#[test]
fn a_manifest_with_assets_is_of_version_2_and_read_as_it_was_written() {
    let (manifest, files) = sample_with_assets();
    let text = manifest.to_bytes().unwrap();
    assert!(text.starts_with(b"{\"format\":\"tch-checkpoint\",\"version\":2,"));
    assert_eq!(Manifest::from_bytes(&text), Ok(manifest.clone()));
    for (file, bytes) in
        [("manifest.json", &text)].into_iter().chain(files.iter().map(|(file, bytes)| (&**file, bytes)))
    {
        golden(&format!("v2/model/{file}"), bytes);
    }
    let info = SavedModelInfo::from_bytes(&files[SAVED_MODEL_FILE]).unwrap();
    assert_eq!(info.signatures["forward"].inputs[0].to_string(), "letters: I64 [?, ?]");
    let text = unseal(&text);
    let changes = [
        ("\"program.pt\"", "\"../program.pt\""),
        ("\"program.pt\"", "\"program.safetensors\""),
        ("\"program.pt\"", "\"Manifest.json\""),
        ("\"program.pt\"", "\"Examples.st\""),
        ("\"program.pt\"", "\"examples.st\""),
        ("\"version\":2", "\"version\":1"),
        ("\"program.pt\":{", "\"program.pt\":{\"new\":1,"),
    ];
    each_is_damage(&text, &changes, |text| Manifest::from_bytes(&seal(text)));
}

#[test]
fn version_4_is_read_as_it_was_written_and_is_needed() {
    let (mut manifest, _) = sample();
    manifest.counted_from = Some("2026-11-22T09:00:00Z".parse().unwrap());
    let text = manifest.to_bytes().unwrap();
    golden("v4/ckpt-1500/manifest.json", &text);
    assert_eq!(Manifest::from_bytes(&text), Ok(manifest));
    let text = unseal(&text);
    let changes = [
        ("\"version\":4", "\"version\":3"),
        ("\"counted_from\":\"2026-11-22T09:00:00Z\"", "\"counted_from\":null"),
        ("\"counted_from\":\"2026-11-22T09:00:00Z\"", "\"counted_from\":\"+12026-11-22T09:00:00Z\""),
    ];
    each_is_damage(&text, &changes, |text| Manifest::from_bytes(&seal(text)));
}

#[test]
fn version_5_is_read_as_it_was_written_and_is_needed() {
    let (mut manifest, _) = sample();
    manifest.metadata.insert("hyperparameters".to_string(), serde_json::json!({ "layers": 2, "dropout": 0.1 }));
    manifest.metadata.insert("data/split".to_string(), serde_json::json!("train"));
    manifest.unclean = true;
    manifest.without = vec!["averages".to_string(), "optimizer".to_string()];
    let text = manifest.to_bytes().unwrap();
    golden("v5/ckpt-1500/manifest.json", &text);
    assert_eq!(Manifest::from_bytes(&text).as_ref(), Ok(&manifest));
    let text = unseal(&text);
    let dropped = |from: &str| text.replacen(from, "", 1);
    for changed in [
        text.replacen("\"version\":5", "\"version\":4", 1),
        text.replacen("\"unclean\":true", "\"unclean\":null", 1),
        text.replacen("\"unclean\":true", "\"unclean\":1", 1),
        text.replacen("[\"averages\",\"optimizer\"]", "[\"optimizer\",\"averages\"]", 1),
        text.replacen("[\"averages\",\"optimizer\"]", "[\"optimizer\",\"optimizer\"]", 1),
        text.replacen("[\"averages\",\"optimizer\"]", "[\"my encoder\",\"optimizer\"]", 1),
        text.replacen("\"metadata\":{", "\"metadata\":{\n\"data/split\":1,", 1),
    ] {
        assert_ne!(changed, text);
        let read = Manifest::from_bytes(&seal(&changed));
        assert!(matches!(read, Err(FormatError::Damaged(_))), "{changed}: {read:?}");
    }
    // Each of the three alone needs the version.
    for alone in [",\"unclean\":true", ",\"without\":[\"averages\",\"optimizer\"]"] {
        assert!(Manifest::from_bytes(&seal(&dropped(alone))).is_ok(), "{alone}");
    }
    let mut alone = sample().0;
    alone.unclean = true;
    assert!(alone.to_bytes().unwrap().starts_with(b"{\"format\":\"tch-checkpoint\",\"version\":5,"));
}

#[test]
fn version_6_is_read_as_it_was_written_and_is_needed() {
    let (mut manifest, _) = sample();
    manifest.figures = Some(SaveFigures {
        stall: Duration::from_micros(1500),
        total: Duration::from_millis(2250),
        waited: Duration::from_nanos(1),
        bytes_written: 123_456_789,
        bytes_linked: 4096,
    });
    let text = manifest.to_bytes().unwrap();
    golden("v6/ckpt-1500/manifest.json", &text);
    assert_eq!(Manifest::from_bytes(&text).as_ref(), Ok(&manifest));
    let text = unseal(&text);
    let changes = [
        ("\"version\":6", "\"version\":5"),
        ("\"stall_ns\":1500000", "\"stall_ns\":-1"),
        ("\"stall_ns\":1500000", "\"stall_ns\":1.5"),
        ("\"stall_ns\":1500000", "\"stall_ns\":null"),
        ("\"stall_ns\":1500000", "\"stall_ns\":\"NaN\""),
        ("\"stall_ns\":1500000", "\"stall_ns\":18446744073709551616"),
        ("\"stall_ns\":1500000,", ""),
        ("\"stall_ns\":1500000", "\"stall_ns\":1500000,\"more\":0"),
        ("\"bytes_linked\":4096", "\"bytes_linked\":-4096"),
        ("\"figures\":{", "\"figures\":null,\"other\":{"),
    ];
    each_is_damage(&text, &changes, |text| Manifest::from_bytes(&seal(text)));
    // Whatever the numbers are, they are only shown.
    let most = u64::MAX.to_string();
    let changed = text.replacen("2250000000", "0", 1).replacen("1500000", &most, 1).replacen(
        "\"bytes_written\":123456789",
        &format!("\"bytes_written\":{most}"),
        1,
    );
    let read = Manifest::from_bytes(&seal(&changed)).unwrap().figures.unwrap();
    assert_eq!((read.stall, read.total, read.rate()), (Duration::from_nanos(u64::MAX), Duration::ZERO, None));
    assert!(read.bytes_written == u64::MAX);
}

#[test]
fn statistics_are_read_as_they_were_written() {
    let (mut manifest, _) = sample();
    let note = |manifest: &mut Manifest, key: &str, non_finite, norm, range| {
        manifest.tensors.get_mut(key).unwrap().statistics = Some(Statistics { non_finite, norm, range });
    };
    note(&mut manifest, "my encoder/embedding.weight", 0, 1.5, Some((-1.0, 0.25)));
    note(&mut manifest, "my encoder/gru.weight", 4, 0.0, None);
    note(&mut manifest, "my encoder/gru.half", 1, f64::MAX, Some((-0.5, -0.5)));
    let text = manifest.to_bytes().unwrap();
    golden("v4/statistics.json", &text);
    assert_eq!(Manifest::from_bytes(&text).as_ref(), Ok(&manifest));
    assert_eq!(manifest.non_finite().collect::<Vec<_>>(), ["my encoder/gru.half", "my encoder/gru.weight"]);
    let text = unseal(&text);
    let changes = [
        ("\"version\":4", "\"version\":3"),
        ("\"non_finite\":4", "\"non_finite\":0"),
        ("\"non_finite\":4", "\"non_finite\":-1"),
        ("\"norm\":1.5", "\"norm\":-1.5"),
        ("\"norm\":1.5,", ""),
        ("\"min\":-1.0", "\"min\":1.0"),
        ("\"min\":-1.0,", ""),
        ("\"min\":-1.0", "\"min\":null"),
        ("\"statistics\":{\"norm\":1.5", "\"statistics\":{\"new\":1,\"norm\":1.5"),
    ];
    each_is_damage(&text, &changes, |text| Manifest::from_bytes(&seal(text)));
}

/// Returns the sample with what only version 3 has: a checkpoint that it follows, metrics that are no numbers, and
/// which variables require a gradient.
fn sample_of_version_3() -> Manifest {
    let (mut manifest, _) = sample();
    manifest.follows = Some(Follows { run: RUN.to_string(), sequence: 16 });
    let metrics = [("nan", f64::NAN), ("infinite", f64::INFINITY), ("least", f64::NEG_INFINITY)];
    manifest.metrics.extend(metrics.map(|(name, value)| (name.to_string(), value)));
    for (key, requires_grad) in [("my encoder/embedding.weight", false), ("my encoder/gru.weight", true)] {
        manifest.tensors.get_mut(key).unwrap().requires_grad = Some(requires_grad);
    }
    manifest.tensors.get_mut("decoder/embedding").unwrap().requires_grad = Some(false);
    manifest
}

#[test]
fn version_3_is_read_as_it_was_written_and_is_needed() {
    let manifest = sample_of_version_3();
    let text = manifest.to_bytes().unwrap();
    golden("v3/ckpt-1500/manifest.json", &text);
    let mut read = Manifest::from_bytes(&text).unwrap();
    assert!(read.metrics["nan"].is_nan());
    // NaN is not equal to itself.
    read.metrics.insert("nan".to_string(), 0.0);
    let mut expected = manifest.clone();
    expected.metrics.insert("nan".to_string(), 0.0);
    assert_eq!(read, expected);
    let text = unseal(&text);
    let changes = [
        ("\"version\":3", "\"version\":2"),
        ("\"version\":3", "\"version\":1"),
        ("\"NaN\"", "\"nan\""),
        ("\"NaN\"", "null"),
        ("\"NaN\"", "[1]"),
        ("\"requires_grad\":true", "\"requires_grad\":null"),
        ("\"follows\":{", "\"follows\":{\"new\":1,"),
    ];
    each_is_damage(&text, &changes, |text| Manifest::from_bytes(&seal(text)));
    let mut resumed = sample_of_version_3();
    resumed.metrics.clear();
    resumed.earlier =
        vec![Follows { run: RUN.replace('0', "1"), sequence: 9 }, Follows { run: RUN.into(), sequence: 4 }];
    let text = resumed.to_bytes().unwrap();
    golden("v3/resumed.json", &text);
    assert_eq!(Manifest::from_bytes(&text).unwrap(), resumed);
    // Each of the three alone needs it.
    let alone: [fn(&mut Manifest); 3] = [
        |m| m.follows = sample_of_version_3().follows,
        |m| _ = m.metrics.insert("loss".into(), f64::NAN),
        |m| m.tensors.get_mut("decoder/large").unwrap().requires_grad = Some(true),
    ];
    for change in alone {
        let (mut manifest, _) = sample();
        change(&mut manifest);
        assert!(manifest.to_bytes().unwrap().starts_with(b"{\"format\":\"tch-checkpoint\",\"version\":3,"));
    }
    let mut index = sample_index();
    index.checkpoints[0].metrics.insert("loss".into(), f64::INFINITY);
    let text = index.to_bytes().unwrap();
    assert_eq!(Index::from_bytes(&text), Ok(index));
    let older = unseal(&text).replacen("\"version\":2", "\"version\":1", 1);
    assert!(matches!(Index::from_bytes(&seal(&older)), Err(FormatError::Damaged(_))));
}

#[test]
fn hostile_descriptions_of_saved_models_are_refused() {
    let text = String::from_utf8(sample_with_assets().1[SAVED_MODEL_FILE].clone()).unwrap();
    let changes = [
        ("tch-checkpoint-saved-model", "tch-checkpoint"),
        ("\"version\": 1", "\"version\": 0"),
        ("\"language\": \"en\"", "\"language\": \"en\", \"language\": \"de\""),
        ("\"forward\"", "\"for\""),
        ("\"letters\"", "\"a.b\""),
        ("\"I64\"", "\"I65\""),
        ("\"examples\": 2", "\"examples\": 0"),
        ("\"group\": 0", "\"group\": -1"),
        ("\"group\": 0", "\"group\": 4096"),
        ("\"group\": 0", "\"group\": 50000000"),
        ("\"device\"", "\"code\": \"\", \"device\""),
    ];
    each_is_damage(&text, &changes, |text| SavedModelInfo::from_bytes(text.as_bytes()));
    // One of version 2 has something that version 1 has no place for.
    for version in [2, 3] {
        let newer = text.replacen("\"version\": 1", &format!("\"version\": {version}"), 1);
        assert!(matches!(SavedModelInfo::from_bytes(newer.as_bytes()), Err(FormatError::Unsupported(_))));
    }
}

#[test]
fn a_saved_model_says_which_lengths_are_the_same_and_other_keys() {
    let plain = SavedModelInfo::from_bytes(&sample_with_assets().1[SAVED_MODEL_FILE]).unwrap();
    let length = |dim| Length { input: "letters".to_string(), dim };
    let mut info = plain.clone();
    info.same_lengths.insert("forward".to_string(), vec![vec![length(0), length(1)]]);
    info.other_keys.insert("decoder/weight".to_string(), "embedding.weight".to_string());
    let text = info.to_bytes().unwrap();
    assert!(String::from_utf8_lossy(&text).contains("\"version\": 2"));
    let read = SavedModelInfo::from_bytes(&text).unwrap();
    assert_eq!((&read.same_lengths, &read.other_keys), (&info.same_lengths, &info.other_keys));
    assert_eq!(read.to_bytes().unwrap(), text);
    // What has no need of them is of version 1, for older readers too.
    let mut again = read;
    again.same_lengths.clear();
    again.other_keys.clear();
    assert_eq!(again.to_bytes().unwrap(), plain.to_bytes().unwrap());
    let text = String::from_utf8(text).unwrap();
    let first = "\"dim\": 0";
    let changes = [
        ("\"version\": 2", "\"version\": 1"),
        (first, "\"dim\": 1"),
        (first, "\"dim\": 2"),
        (first, "\"dim\": 18446744073709551615"),
        (first, "\"dim\": 0, \"more\": 1"),
        ("\"input\": \"letters\"", "\"input\": \"words\""),
        ("\"embedding.weight\"\n  }\n}", "\"other\"\n  }\n}"),
        ("\"decoder/weight\"", "\"my encoder/embedding.weight\""),
    ];
    each_is_damage(&text, &changes, |text| SavedModelInfo::from_bytes(text.as_bytes()));
    for classes in [vec![], vec![vec![]], vec![vec![length(0)]]] {
        let mut info = plain.clone();
        info.same_lengths.insert("forward".to_string(), classes);
        assert!(info.to_bytes().is_err());
    }
    let mut info = plain;
    info.same_lengths.insert("backward".to_string(), vec![vec![length(0), length(1)]]);
    assert!(info.to_bytes().is_err());
}

/// The worked example of docs/format.md, byte for byte.
#[test]
fn the_example_in_the_specification_is_right() {
    let layout = layout(vec![
        ("weight".to_string(), TensorSpec::new(Dtype::F32, [2, 2])),
        ("updates".to_string(), TensorSpec::new(Dtype::I64, [])),
    ])
    .unwrap();
    let data = [&7i64.to_le_bytes()[..], &[1f32, 2.0, 3.0, 4.0].map(f32::to_le_bytes).concat()].concat();
    let bytes = [&layout.header[..], &data].concat();
    let mut manifest = Manifest::new(3, RUN, "2026-11-22T10:11:12.5Z".parse().unwrap());
    (manifest.step, manifest.save_counter) = (Some(300), Some(3));
    add_file(&mut manifest, "encoder", &layout, &bytes);
    manifest.tensors.insert("decoder/weight".to_string(), manifest.tensors["encoder/weight"].clone());
    manifest.values.insert("step".to_string(), 300.into());
    manifest.metrics.insert("loss".to_string(), 0.25);

    let document = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/format.md")).unwrap();
    let header = String::from_utf8(layout.header[8..].to_vec()).unwrap();
    for text in [header.trim_end(), &String::from_utf8(manifest.to_bytes().unwrap()).unwrap()] {
        let block = format!("```json\n{}\n```\n", text.trim_end());
        assert!(document.contains(&block), "docs/format.md should have\n{block}");
    }
}

/// Runs `docs/read_checkpoint.py` on the sample and compares every tensor's type, shape and digest, and the values.
/// Needs Python with safetensors and numpy; PYTHON names another interpreter than `python3`.
#[test]
fn the_python_reader_reads_the_sample() {
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".to_string());
    let has = std::process::Command::new(&python).args(["-c", "import numpy, safetensors"]).output();
    if !has.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED the_python_reader_reads_the_sample: {python} has no safetensors and numpy");
        return;
    }
    let (manifest, files) = sample();
    let temp = tempfile::tempdir().unwrap();
    std::fs::write(temp.path().join(MANIFEST_FILE), manifest.to_bytes().unwrap()).unwrap();
    for (file, bytes) in &files {
        std::fs::write(temp.path().join(file), bytes).unwrap();
    }
    let program = "import json, sys; sys.path.insert(0, sys.argv[1]); import read_checkpoint as r\n\
                   tensors, values = r.load(sys.argv[2])\n\
                   print(json.dumps([{k: [str(t.dtype), list(t.shape), t.tobytes().hex()] for k, t in tensors.items()}, values]))";
    let output = std::process::Command::new(&python)
        .args(["-B", "-c", program, concat!(env!("CARGO_MANIFEST_DIR"), "/docs")])
        .arg(temp.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    type Tensors = BTreeMap<String, (String, Vec<u64>, String)>;
    let (tensors, values): (Tensors, BTreeMap<String, serde_json::Value>) =
        serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(values, manifest.values);
    assert_eq!(tensors.len(), manifest.tensors.len());
    for (key, (dtype, shape, hex)) in tensors {
        let record = &manifest.tensors[&key];
        let bytes: Vec<u8> =
            (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect();
        assert_eq!((Digest::of(&bytes), shape), (record.digest, record.spec.shape.clone()), "{key}");
        let expected = match record.spec.dtype {
            Dtype::F32 => "float32",
            Dtype::F64 => "float64",
            Dtype::F16 => "float16",
            Dtype::Bool => "bool",
            Dtype::I32 => "int32",
            Dtype::I64 => "int64",
            Dtype::C64 => "complex64",
            other => panic!("{other}"),
        };
        assert_eq!(dtype, expected, "{key}");
    }
}

// ---- Speed, to be examined: cargo test --release --no-default-features --lib speed -- --ignored --nocapture

/// Seconds this thread has computed, so that other programs on the machine do not count; elsewhere than on Linux,
/// seconds.
fn cpu_seconds(start: Instant) -> f64 {
    let schedstat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanoseconds = schedstat.split(' ').next().and_then(|field| field.parse::<f64>().ok());
    nanoseconds.map_or_else(|| start.elapsed().as_secs_f64(), |nanoseconds| nanoseconds / 1e9)
}

#[test]
#[ignore = "prints figures, proves nothing"]
fn speed() {
    let zero = Instant::now();
    let megabytes = 256;
    let data: Vec<u8> = (0..megabytes << 20).map(|i: u32| (i >> 3) as u8 ^ i as u8).collect();
    for _ in 0..2 {
        let start = cpu_seconds(zero);
        let whole = Digest::of(&data);
        let seconds = cpu_seconds(zero) - start;
        println!("digest in one call: {:.1} GB/s", data.len() as f64 / seconds / 1e9);
        for chunk in [64 << 10, 1 << 20, 8 << 20] {
            let start = cpu_seconds(zero);
            let mut hasher = Hasher::new();
            data.chunks(chunk).for_each(|chunk| hasher.update(chunk));
            assert_eq!(hasher.finish(), whole);
            let seconds = cpu_seconds(zero) - start;
            println!("digest in chunks of {} KiB: {:.1} GB/s", chunk >> 10, data.len() as f64 / seconds / 1e9);
        }
    }
    for count in [100_000, 1_000_000] {
        let tensors: Vec<(String, TensorSpec)> = (0..count)
            .map(|i| (format!("layers.{i}.attention.query.weight"), TensorSpec::new(Dtype::F32, [4, 4])))
            .collect();
        let start = cpu_seconds(zero);
        let mut manifest = Manifest::new(1, RUN, Utc::now());
        for (number, part) in tensors.chunks(100_000).enumerate() {
            let file = format!("model-{number}.safetensors");
            let layout = layout(part.to_vec()).unwrap();
            parse_header(&layout.header, layout.file_bytes).unwrap();
            let header = HeaderEntry { bytes: layout.header.len() as u64, digest: Digest::of(&layout.header) };
            manifest.files.insert(file.clone(), FileEntry { bytes: layout.file_bytes, header });
            for placed in layout.tensors {
                let key = format!("model/{}", placed.name);
                let (begin, end) = (placed.begin, placed.end);
                let piece = Piece { file: file.clone(), name: placed.name, begin, end, slice: None };
                let record = TensorRecord {
                    spec: placed.spec,
                    digest: Digest::of(key.as_bytes()),
                    pieces: vec![piece],
                    requires_grad: None,
                    statistics: None,
                };
                manifest.tensors.insert(key, record);
            }
        }
        println!("{count} tensors: laid out, headers read, manifest filled in {:.2} s", cpu_seconds(zero) - start);
        let start = cpu_seconds(zero);
        let bytes = manifest.to_bytes().unwrap();
        println!("{count} tensors: manifest of {} MB written in {:.2} s", bytes.len() >> 20, cpu_seconds(zero) - start);
        let start = cpu_seconds(zero);
        let read = Manifest::from_bytes(&bytes).unwrap();
        println!("{count} tensors: manifest read in {:.2} s", cpu_seconds(zero) - start);
        assert_eq!(read, manifest);
    }
}
