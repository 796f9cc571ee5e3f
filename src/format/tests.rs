//! Tests of the format as a whole: round trips, hostile bytes, the `safetensors` crate as an oracle, golden files and
//! the Python reader.

use super::safetensors::{MAX_HEADER, header_bytes, layout, parse_header};
use super::*;
use crate::dtype::TensorSpec;
use crate::figures::SaveFigures;
use crate::name;
use ::safetensors as oracle;
use chrono::{DateTime, Utc};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const RUN: &str = "0123456789abcdef0123456789abcdef";

// ---- Files and manifests to test with

/// A safetensors file with these tensors, each filled with bytes of its own.
fn file_of(tensors: &[(&str, TensorSpec)]) -> (safetensors::Layout, Vec<u8>) {
    let layout = layout(tensors.iter().map(|(name, spec)| (name.to_string(), spec.clone())).collect()).unwrap();
    let mut bytes = layout.header.clone();
    for tensor in &layout.tensors {
        bytes.extend((tensor.begin..tensor.end).map(|i| {
            let byte = (i as usize * 7 + tensor.index * 31) as u8;
            if tensor.spec.dtype == Dtype::Bool { byte & 1 } else { byte }
        }));
    }
    assert_eq!(bytes.len() as u64, layout.file_bytes);
    (layout, bytes)
}

/// Adds a file and its tensors, under the keys `component/name`.
fn add_file(manifest: &mut Manifest, component: &str, layout: &safetensors::Layout, bytes: &[u8]) {
    let file = format!("{}.safetensors", name::file_stem(component));
    let header = HeaderEntry { bytes: layout.header.len() as u64, digest: Digest::of(&layout.header) };
    manifest.files.insert(file.clone(), FileEntry { bytes: layout.file_bytes, header });
    for tensor in &layout.tensors {
        let digest = Digest::of(&bytes[tensor.begin as usize..tensor.end as usize]);
        let piece =
            Piece { file: file.clone(), name: tensor.name.clone(), begin: tensor.begin, end: tensor.end, slice: None };
        let record = TensorRecord {
            spec: tensor.spec.clone(),
            digest,
            pieces: vec![piece],
            requires_grad: None,
            statistics: None,
        };
        manifest.tensors.insert(format!("{}/{}", name::key([component]), tensor.name), record);
    }
}

/// A checkpoint with all there is: several element types, a scalar, an empty tensor, two names for one tensor, a
/// tensor in two files, values and metrics.
fn sample() -> (Manifest, BTreeMap<String, Vec<u8>>) {
    let saved_at: DateTime<Utc> = "2026-11-22T10:11:12.123456789Z".parse().unwrap();
    let mut manifest = Manifest::new(17, RUN, saved_at);
    manifest.step = Some(1500);
    manifest.save_counter = Some(15);
    let mut files = BTreeMap::new();
    let encoder = file_of(&[
        ("embedding.weight", TensorSpec::new(Dtype::F32, [5, 3])),
        ("gru.weight", TensorSpec::new(Dtype::F64, [2, 2])),
        ("gru.half", TensorSpec::new(Dtype::F16, [3])),
        ("mask", TensorSpec::new(Dtype::Bool, [3])),
        ("none", TensorSpec::new(Dtype::I64, [0, 4])),
        ("steps", TensorSpec::new(Dtype::I64, [])),
        ("Ümläut \"q\"", TensorSpec::new(Dtype::C64, [1])),
    ]);
    add_file(&mut manifest, "my encoder", &encoder.0, &encoder.1);
    files.insert("my%20encoder.safetensors".to_string(), encoder.1);

    let tied = manifest.tensors["my encoder/embedding.weight"].clone();
    manifest.tensors.insert("decoder/embedding".to_string(), tied);

    // A tensor of shape [5, 2]: three rows in one file, two in another.
    let (first, first_bytes) = file_of(&[("large", TensorSpec::new(Dtype::I32, [3, 2]))]);
    let (second, second_bytes) = file_of(&[("large", TensorSpec::new(Dtype::I32, [2, 2]))]);
    let mut hasher = Hasher::new();
    let mut pieces = Vec::new();
    for (number, layout, bytes, slice) in
        [(1, first, first_bytes, [[0, 3], [0, 2]]), (2, second, second_bytes, [[3, 2], [0, 2]])]
    {
        let file = format!("decoder-{number}.safetensors");
        let header = HeaderEntry { bytes: layout.header.len() as u64, digest: Digest::of(&layout.header) };
        manifest.files.insert(file.clone(), FileEntry { bytes: layout.file_bytes, header });
        let placed = &layout.tensors[0];
        hasher.update(&bytes[placed.begin as usize..placed.end as usize]);
        pieces.push(Piece {
            file: file.clone(),
            name: placed.name.clone(),
            begin: placed.begin,
            end: placed.end,
            slice: Some(slice.to_vec()),
        });
        files.insert(file, bytes);
    }
    let spec = TensorSpec::new(Dtype::I32, [5, 2]);
    manifest.tensors.insert(
        "decoder/large".to_string(),
        TensorRecord { spec, digest: hasher.finish(), pieces, requires_grad: None, statistics: None },
    );

    let values = [
        ("step", serde_json::json!(1500)),
        ("config", serde_json::json!({ "z": [1, 2.5, -0.0], "a": { "name": "ü\n\u{0}", "none": null } })),
        ("limits/most", serde_json::json!([u64::MAX, i64::MIN, true, ""])),
        ("best loss", serde_json::json!({ "$cbor": "f97c00" })),
    ];
    manifest.values = values.map(|(key, value)| (key.to_string(), value)).into();
    manifest.metrics = [("loss".to_string(), 0.1 + 0.2), ("error rate".to_string(), 0.0625)].into();
    (manifest, files)
}

fn sample_index() -> Index {
    let (manifest, _) = sample();
    let entry = |name: &str, step, permanent| IndexEntry {
        name: name.to_string(),
        sequence: manifest.sequence,
        run: manifest.run.clone(),
        step,
        saved_at: manifest.saved_at,
        bytes: 123_456,
        metrics: manifest.metrics.clone(),
        permanent,
    };
    Index {
        latest: Some("ckpt-1500".to_string()),
        checkpoints: vec![entry("ckpt-1400", Some(1400), true), entry("ckpt-1500", None, false)],
        last_permanent: Some(manifest.saved_at),
    }
}

/// Puts the right digest under any text.
fn seal(text: &str) -> Vec<u8> {
    format!("{text}\"xxh3_128\":\"{}\"}}\n", Digest::of(text.as_bytes())).into_bytes()
}

/// Returns the text without its last line.
fn unseal(bytes: &[u8]) -> String {
    let text = std::str::from_utf8(bytes).unwrap();
    text[..text.len() - "\"xxh3_128\":\"\"}\n".len() - 32].to_string()
}

// ---- Round trips

fn any_spec() -> impl Strategy<Value = TensorSpec> {
    let dtype = prop::sample::select(Dtype::ALL);
    (dtype, prop::collection::vec(0u64..5, 0..4)).prop_map(|(dtype, shape)| TensorSpec::new(dtype, shape))
}

fn any_tensors() -> impl Strategy<Value = BTreeMap<String, TensorSpec>> {
    prop::collection::btree_map("\\PC{1,8}|[a-z.]{1,8}|[\u{0}\"\\\\\n]{1,3}", any_spec(), 0..12)
}

fn any_json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<u64>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        ".{0,6}".prop_map(Into::into),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
            prop::collection::btree_map(".{0,4}", inner, 0..4).prop_map(|map| map.into_iter().collect()),
        ]
    })
}

proptest! {
    #[test]
    fn a_layout_is_read_as_it_was_written(tensors in any_tensors()) {
        let file = layout(tensors.clone().into_iter().collect()).unwrap();
        let reversed = layout(tensors.clone().into_iter().rev().collect()).unwrap();
        prop_assert_eq!(&file.header, &reversed.header);
        prop_assert_eq!(file.header.len() % safetensors::DATA_ALIGNMENT, 0);
        prop_assert_eq!(header_bytes(&file.header[..8], file.file_bytes), Ok(file.header.len()));

        let header = parse_header(&file.header, file.file_bytes).unwrap();
        prop_assert_eq!(header.data_start, file.header.len() as u64);
        prop_assert_eq!(header.metadata, [("format".to_string(), "pt".to_string())].into());
        prop_assert_eq!(header.tensors.len(), tensors.len());
        for entry in &header.tensors {
            prop_assert_eq!(&entry.spec, &tensors[&entry.name]);
            let placed = file.tensors.iter().find(|placed| placed.name == entry.name).unwrap();
            prop_assert_eq!((entry.begin + header.data_start, entry.end + header.data_start), (placed.begin, placed.end));
            prop_assert_eq!(placed.begin % placed.spec.dtype.size() as u64, 0);
            prop_assert_eq!(tensors.keys().nth(placed.index), Some(&placed.name));
        }
    }

    #[test]
    fn the_oracle_reads_what_we_write(tensors in any_tensors()) {
        let list: Vec<(&str, TensorSpec)> = tensors.iter().map(|(name, spec)| (name.as_str(), spec.clone())).collect();
        let (file, bytes) = file_of(&list);
        let read = oracle::SafeTensors::deserialize(&bytes).unwrap();
        prop_assert_eq!(read.len(), tensors.len());
        for placed in &file.tensors {
            let tensor = read.tensor(&placed.name).unwrap();
            prop_assert_eq!(tensor.dtype().to_string(), placed.spec.dtype.name());
            prop_assert_eq!(tensor.shape().iter().map(|&n| n as u64).collect::<Vec<_>>(), placed.spec.shape.clone());
            prop_assert_eq!(tensor.data(), &bytes[placed.begin as usize..placed.end as usize]);
        }
    }

    #[test]
    fn we_read_what_the_oracle_writes(
        tensors in any_tensors(),
        metadata in prop::option::of(prop::collection::hash_map(".{0,5}", ".{0,5}", 0..4)),
    ) {
        let data: BTreeMap<&String, Vec<u8>> =
            tensors.iter().map(|(name, spec)| (name, vec![name.len() as u8; spec.bytes().unwrap() as usize])).collect();
        let views = tensors.iter().map(|(name, spec)| {
            let dtype = serde_json::from_value(spec.dtype.name().into()).unwrap();
            let shape = spec.shape.iter().map(|&n| n as usize).collect();
            (name.clone(), oracle::tensor::TensorView::new(dtype, shape, &data[name]).unwrap())
        });
        // Of no tensors and some metadata the oracle makes text that is not JSON.
        let metadata = metadata.filter(|_| !tensors.is_empty());
        let bytes = oracle::serialize(views, metadata.clone()).unwrap();
        let length = header_bytes(&bytes, bytes.len() as u64).unwrap();
        let header = parse_header(&bytes[..length], bytes.len() as u64).unwrap();
        prop_assert_eq!(header.metadata, metadata.unwrap_or_default().into_iter().collect());
        prop_assert_eq!(header.tensors.len(), tensors.len());
        for entry in header.tensors {
            prop_assert_eq!(&entry.spec, &tensors[&entry.name]);
            let range = (header.data_start + entry.begin) as usize..(header.data_start + entry.end) as usize;
            prop_assert_eq!(&bytes[range], &data[&entry.name]);
        }
    }

    #[test]
    fn a_manifest_is_read_as_it_was_written(
        files in prop::collection::btree_map("\\PC{1,8}", any_tensors(), 0..4),
        values in prop::collection::btree_map("\\PC{1,8}", any_json(), 0..4),
        metrics in prop::collection::btree_map(".{0,8}", prop::num::f64::NORMAL | prop::num::f64::ZERO, 0..4),
        (sequence, step, save_counter) in (0..=1u64 << 63, any::<Option<u64>>(), any::<Option<u64>>()),
        (seconds, nanoseconds) in (-62_167_219_200i64..253_402_300_800, 0u32..1_000_000_000),
    ) {
        let mut manifest = Manifest::new(sequence, RUN, DateTime::from_timestamp(seconds, nanoseconds).unwrap());
        (manifest.step, manifest.save_counter, manifest.metrics) = (step, save_counter, metrics);
        let mut stems = std::collections::HashSet::new();
        for (component, tensors) in &files {
            if !stems.insert(name::file_stem(component).to_ascii_lowercase()) {
                continue;
            }
            let names: Vec<String> = tensors.keys().map(|name| name::key([name])).collect();
            let list: Vec<_> = names.iter().map(String::as_str).zip(tensors.values().cloned()).collect();
            let (layout, bytes) = file_of(&list);
            add_file(&mut manifest, component, &layout, &bytes);
        }
        manifest.values = values.into_iter().map(|(name, value)| (name::key([name]), value)).collect();
        let bytes = manifest.to_bytes().unwrap();
        let read = Manifest::from_bytes(&bytes).unwrap();
        prop_assert_eq!(read.to_bytes().unwrap(), bytes);
        prop_assert_eq!(read, manifest);
    }
}

#[test]
fn every_element_type_is_read_by_the_oracle_and_no_other_by_us() {
    let names: Vec<String> = Dtype::ALL.iter().map(|dtype| format!("of {dtype}")).collect();
    let list: Vec<_> =
        names.iter().map(String::as_str).zip(Dtype::ALL.iter().map(|d| TensorSpec::new(*d, [2]))).collect();
    let (_, bytes) = file_of(&list);
    assert_eq!(oracle::SafeTensors::deserialize(&bytes).unwrap().len(), Dtype::ALL.len());

    let view = oracle::tensor::TensorView::new(oracle::Dtype::F4, vec![2], &[0]).unwrap();
    let bytes = oracle::serialize([("weight", view)], None).unwrap();
    let refusal = parse_header(&bytes[..header_bytes(&bytes, bytes.len() as u64).unwrap()], bytes.len() as u64);
    let Err(FormatError::Unsupported(reason)) = refusal else { panic!("{refusal:?}") };
    assert_eq!(reason, r#"the tensor "weight" is of the unknown element type "F4""#);
}

#[test]
fn manifests_of_the_same_state_differ_in_the_last_two_lines_only() {
    let (mut manifest, _) = sample();
    let first = String::from_utf8(manifest.to_bytes().unwrap()).unwrap();
    manifest.sequence += 1;
    manifest.run = "f".repeat(32);
    manifest.saved_at = Utc::now();
    let second = String::from_utf8(manifest.to_bytes().unwrap()).unwrap();
    let (first, second): (Vec<_>, Vec<_>) = (first.lines().collect(), second.lines().collect());
    assert_eq!(first.len(), second.len());
    let different: Vec<_> = (0..first.len()).filter(|&line| first[line] != second[line]).collect();
    assert_eq!(different, [first.len() - 2, first.len() - 1]);
    assert!(first[first.len() - 2].starts_with("\"commit\":{"));
}

#[test]
fn the_index_is_read_as_it_was_written() {
    for index in [Index::default(), sample_index()] {
        assert_eq!(Index::from_bytes(&index.to_bytes().unwrap()), Ok(index));
    }
}

// ---- What must not be written

#[test]
fn a_layout_refuses_by_name_what_it_cannot_hold() {
    let spec = |shape: &[u64]| TensorSpec::new(Dtype::F32, shape);
    let refused = |tensors: Vec<(&str, TensorSpec)>| {
        let tensors = tensors.into_iter().map(|(name, spec)| (name.to_string(), spec)).collect();
        layout(tensors).unwrap_err().to_string()
    };
    let twice = refused(vec![("a", spec(&[1])), ("b", spec(&[1])), ("a", TensorSpec::new(Dtype::I8, []))]);
    assert!(twice.contains("\"a\""), "{twice}");
    assert!(refused(vec![("__metadata__", spec(&[1]))]).contains("__metadata__"));
    assert!(refused(vec![(&"n".repeat(MAX_TENSOR_NAME + 1), spec(&[1]))]).contains("65537 bytes"));
    assert!(refused(vec![("deep", spec(&[1; MAX_RANK + 1]))]).contains("deep"));
    assert!(refused(vec![("vast", spec(&[u64::MAX, 2]))]).contains("vast"));
    assert!(refused(vec![("one", spec(&[1 << 60])), ("two", spec(&[1 << 60]))]).contains("two"));
    let many: Vec<_> = (0..100).map(|i| (i.to_string(), spec(&[1]))).collect();
    assert_eq!(safetensors::layout_within(many.clone(), 8184).unwrap().header.len(), 8192);
    assert!(safetensors::layout_within(many, 8183).unwrap_err().to_string().contains("header of 8184 bytes"));
    let largest = layout(vec![("x".repeat(MAX_TENSOR_NAME), spec(&[1; MAX_RANK]))]).unwrap();
    parse_header(&largest.header, largest.file_bytes).unwrap();
}

#[test]
fn a_manifest_that_would_not_be_read_is_not_written() {
    type Change = fn(&mut Manifest);
    let changes: [(&str, Change); 15] = [
        ("run", |m| m.run = "0123".into()),
        ("out of range", |m| m.saved_at = DateTime::<Utc>::MAX_UTC),
        ("not a key", |m| _ = m.values.insert("a//b".into(), 1.into())),
        ("identity of a run", |m| m.follows = Some(Follows { run: "0123".into(), sequence: 1 })),
        ("identity of a run", |m| {
            m.follows = Some(Follows { run: RUN.into(), sequence: 1 });
            m.earlier = vec![Follows { run: "0123".into(), sequence: 1 }];
        }),
        ("1 earlier run", |m| m.earlier = vec![Follows { run: RUN.into(), sequence: 1 }]),
        ("9 earlier run", |m| {
            m.follows = Some(Follows { run: RUN.into(), sequence: 1 });
            m.earlier = vec![Follows { run: RUN.into(), sequence: 1 }; 9];
        }),
        ("both a tensor and a value", |m| _ = m.values.insert("decoder/large".into(), 1.into())),
        ("nests deeper", |m| {
            let deep = (0..200).fold(serde_json::Value::Null, |value, _| vec![value].into());
            m.values.insert("deep".into(), deep);
        }),
        ("not the name of a component's file", |m| {
            let entry = m.files["decoder-1.safetensors"].clone();
            m.files.insert("../up.safetensors".into(), entry);
        }),
        ("only in case", |m| {
            let entry = m.files["decoder-1.safetensors"].clone();
            m.files.insert("Decoder-1.safetensors".into(), entry);
        }),
        ("is in no file", |m| m.tensors.get_mut("decoder/large").unwrap().pieces.clear()),
        ("is in no file", |m| _ = m.tensors.get_mut("decoder/large").unwrap().pieces.pop()),
        ("not listed", |m| _ = m.files.remove("decoder-2.safetensors")),
        ("end at byte", |m| m.files.get_mut("decoder-2.safetensors").unwrap().bytes += 1),
    ];
    for (expected, change) in changes {
        let (mut manifest, _) = sample();
        change(&mut manifest);
        let refusal = manifest.to_bytes().unwrap_err().to_string();
        assert!(refusal.starts_with("the manifest cannot be written: ") && refusal.contains(expected), "{refusal}");
    }
    let mut index = sample_index();
    index.checkpoints[1].name = "../x".to_string();
    assert!(index.to_bytes().is_err());
    index.checkpoints[1].name = "ckpt-1400".to_string();
    assert!(index.to_bytes().unwrap_err().to_string().contains("twice"));
}

// ---- Hostile bytes

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..400), length in any::<u64>()) {
        let _ = header_bytes(&bytes, length);
        let _ = parse_header(&bytes, length);
        let _ = Manifest::from_bytes(&bytes);
        let _ = Index::from_bytes(&bytes);
        let mut framed = (bytes.len() as u64).to_le_bytes().to_vec();
        framed.extend_from_slice(&bytes);
        let _ = parse_header(&framed, framed.len() as u64);
    }

    #[test]
    fn a_changed_header_is_read_only_if_the_oracle_reads_the_same(
        tensors in any_tensors(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let list: Vec<(&str, TensorSpec)> = tensors.iter().map(|(name, spec)| (name.as_str(), spec.clone())).collect();
        let (file, mut bytes) = file_of(&list);
        let json_end = bytes[..file.header.len()].iter().rposition(|&byte| byte == b'}').unwrap();
        for (at, byte) in changes {
            let at = at.index(json_end + 2);
            bytes[at] = if byte < 128 { byte } else { b"0123456789[]{},:\" "[usize::from(byte) % 18] };
        }
        let total = bytes.len() as u64;
        let Ok(length) = header_bytes(&bytes, total) else { return Ok(()) };
        let Ok(header) = parse_header(&bytes[..length], total) else { return Ok(()) };
        let read = oracle::SafeTensors::deserialize(&bytes).unwrap();
        prop_assert_eq!(read.len(), header.tensors.len());
        for entry in &header.tensors {
            let tensor = read.tensor(&entry.name).unwrap();
            let range = (header.data_start + entry.begin) as usize..(header.data_start + entry.end) as usize;
            prop_assert_eq!(tensor.data(), &bytes[range]);
        }
    }

    /// With the right digest under it, so that what is inside is examined.
    #[test]
    fn a_changed_manifest_of_right_digest_is_read_or_refused(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let (manifest, _) = sample();
        let mut text = unseal(&manifest.to_bytes().unwrap()).into_bytes();
        for (at, byte) in changes {
            let at = at.index(text.len());
            text[at] = byte & 127;
        }
        if let Ok(read) = Manifest::from_bytes(&seal(std::str::from_utf8(&text).unwrap_or_default())) {
            prop_assert_eq!(Manifest::from_bytes(&read.to_bytes().unwrap()), Ok(read));
        }
    }
}

#[test]
fn every_flipped_bit_and_every_cut_is_refused() {
    let (manifest, _) = sample();
    let index = sample_index();
    let refused = |bytes: &[u8]| (Manifest::from_bytes(bytes).is_err(), Index::from_bytes(bytes).is_err());
    for mut bytes in [manifest.to_bytes().unwrap(), index.to_bytes().unwrap()] {
        for i in 0..bytes.len() {
            for bit in 0..8 {
                bytes[i] ^= 1 << bit;
                assert_eq!(refused(&bytes), (true, true), "bit {bit} of byte {i}");
                bytes[i] ^= 1 << bit;
            }
            assert_eq!(refused(&bytes[..i]), (true, true), "cut off at {i}");
            assert_eq!(refused(&bytes[i + 1..]), (true, true), "begun at {i}");
        }
        for end in [" ", "\n", "\0", "{}"] {
            let longer = [&bytes, end.as_bytes()].concat();
            assert_eq!(refused(&longer), (true, true), "{end:?} added");
        }
    }
}

/// A header of this JSON, for a file with `data` bytes of data.
fn parse_json(json: &str, data: u64) -> Result<safetensors::Header, FormatError> {
    let bytes = [&(json.len() as u64).to_le_bytes(), json.as_bytes()].concat();
    parse_header(&bytes, bytes.len() as u64 + data)
}

#[test]
fn hostile_headers_are_refused_with_a_reason() {
    let entry = |name: &str, dtype: &str, shape: &str, begin: u64, end: u64| {
        format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
    };
    let good = entry("a", "F32", "[2]", 0, 8);
    assert!(parse_json(&format!("{{{good}}}"), 8).is_ok());
    assert!(parse_json(&format!("{{{good}}}   \t\n"), 8).is_ok());
    assert!(parse_json("{}", 0).is_ok());
    let cases = [
        (format!(" {{{good}}}"), 8, "begin with"),
        (format!("{{{good}}}x"), 8, "trailing"),
        (format!("{{{good}}}"), 9, "there are 9"),
        (format!("{{{good}}}"), 7, "there are 7"),
        (format!("{{{good},{good}}}"), 8, "two tensors"),
        (format!("{{{good},{}}}", good.replace("\"a\"", "\"\\u0061\"")), 8, "two tensors"),
        (format!("{{{good},{}}}", entry("b", "U8", "[4]", 4, 8)), 8, "end at 8"),
        (format!("{{{good},{}}}", entry("b", "U8", "[4]", 12, 16)), 16, "end at 8"),
        (format!("{{{good},{}}}", entry("b", "F32", "[2]", 0, 8)), 8, "end at 8"),
        (format!("{{{good}"), 8, "EOF"),
        (format!("{{{}}}", entry("a", "F32", "[2]", 8, 0)), 8, "cannot have the bytes"),
        (format!("{{{}}}", entry("a", "F32", "[3]", 0, 8)), 8, "cannot have the bytes"),
        (format!("{{{}}}", entry("a", "F32", "[4611686018427387904]", 0, 0)), 0, "cannot have the bytes"),
        (format!("{{{}}}", entry("a", "U8", "[4294967296,4294967296]", 0, 0)), 0, "cannot have the bytes"),
        (format!("{{{}}}", entry("a", "U8", "[-1]", 0, 0)), 0, "invalid"),
        (format!("{{{}}}", entry("a", "U8", "[1.0]", 0, 1)), 1, "invalid"),
        (format!("{{{}}}", entry("a", "U8", "[18446744073709551616]", 0, 1)), 1, "invalid"),
        (format!("{{{}}}", entry("a", "U8", &format!("{:?}", [1; 65]), 0, 1)), 1, "64 dimensions"),
        (format!("{{{}}}", entry(&"n".repeat(65537), "U8", "[1]", 0, 1)), 1, "65537 bytes"),
        (format!("{{{}}}", entry("a", "F33", "[2]", 0, 8)), 8, "element type \"F33\""),
        (format!("{{{}}}", good.replace("\"dtype\"", "\"more\":1,\"dtype\"")), 8, "unknown field"),
        (format!("{{{}}}", good.replace("\"dtype\"", "\"dtype\":\"F32\",\"dtype\"")), 8, "duplicate field"),
        (format!("{{{}}}", good.replace("[0,8]", "[0,8,8]")), 8, "trailing"),
        (r#"{"__metadata__":{"a":"b","a":"c"}}"#.to_string(), 0, "twice"),
        (r#"{"__metadata__":{},"__metadata__":{}}"#.to_string(), 0, "twice"),
        (r#"{"__metadata__":{"a":1}}"#.to_string(), 0, "invalid type"),
        (r#"{"__metadata__":{"a":{"a":{}}}}"#.to_string(), 0, "invalid type"),
        (format!("{{\"a\":{}", "{\"a\":".repeat(100_000)), 0, "unknown field"),
        (format!("{{\"a\":{}", "[".repeat(100_000)), 0, "invalid"),
        ("[]".to_string(), 0, "begin with"),
        ("{\"a\":\"\u{0}\"}".to_string(), 0, "control character"),
    ];
    for (json, data, expected) in cases {
        let shown: String = json.chars().take(200).collect();
        let refusal = parse_json(&json, data).expect_err(&shown).to_string();
        assert!(refusal.contains(expected), "{shown}: {refusal}");
    }
    // Offsets whose sum leaves 64 bits: the oracle's unchecked addition.
    let half = 1u64 << 63;
    let json = format!("{{{},{}}}", entry("a", "U8", &format!("[{half}]"), 0, half), entry("b", "U8", "[8]", half, 7));
    assert!(parse_json(&json, 16).is_err());
}

#[test]
fn a_header_length_is_checked_before_anything_is_allocated() {
    for (length, file) in [(u64::MAX, u64::MAX), (u64::MAX - 7, 1 << 40), (MAX_HEADER + 1, 1 << 40), (100, 107), (1, 8)]
    {
        assert!(header_bytes(&length.to_le_bytes(), file).is_err(), "{length} in {file}");
    }
    assert_eq!(header_bytes(&MAX_HEADER.to_le_bytes(), 1 << 40), Ok(100_000_008));
    for short in 0..8 {
        let refusal = header_bytes(&[0; 8][..short], short as u64).unwrap_err().to_string();
        assert!(refusal.contains("too few"), "{refusal}");
    }
    assert!(parse_header(&[0; 8], 8).is_err());
    assert!(parse_header(&[2, 0, 0, 0, 0, 0, 0, 0, b'{', b'}', b' '], 11).is_err());
}

#[test]
fn many_empty_tensors_take_time_in_proportion() {
    let mut json = "{".to_string();
    for i in 0..200_000 {
        let comma = if i == 0 { "" } else { "," };
        json.push_str(&format!(r#"{comma}"{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#));
    }
    json.push('}');
    let start = Instant::now();
    assert_eq!(parse_json(&json, 0).unwrap().tensors.len(), 200_000);
    let seconds = start.elapsed().as_secs_f64();
    println!("200,000 empty tensors: a header of {} bytes read in {seconds:.2} s", json.len());
    assert!(seconds < 20.0);
}

#[test]
fn hostile_manifests_of_right_digest_are_refused_with_a_reason() {
    let (manifest, _) = sample();
    let text = unseal(&manifest.to_bytes().unwrap());
    assert_eq!(Manifest::from_bytes(&seal(&text)), Ok(manifest));
    let cases = [
        // The frame.
        ("\"version\":1,", "\"version\":7,\"new\":[{}],", "use a newer crate"),
        ("\"version\":1,", "\"version\":2,", "`assets`"),
        ("\"step\":1500,\n", "\"step\":1500,\n\"assets\":{},\n", "`assets`"),
        ("\"step\":1500,\n", "\"step\":1500,\n\"assets\":null,\n", "invalid"),
        ("\"version\":1,", "\"version\":18446744073709551615,", "use a newer crate"),
        ("\"version\":1,", "\"version\":18446744073709551616,", "no version"),
        ("\"version\":1,", "\"version\":0,", "no version"),
        ("\"version\":1,", "\"version\":01,", "no version"),
        ("\"version\":1,", "\"version\":+1,", "no version"),
        ("\"version\":1,", "\"version\":1.5,", "no version"),
        ("\"version\":1,", "\"version\":\"1\",", "no version"),
        ("\"version\":1,", "\"version\":1,\"version\":1,", "duplicate field"),
        ("{\"format\":\"tch-checkpoint\"", "{\"format\":\"tch-checkpoint-index\"", "does not begin"),
        ("{\"format\"", " {\"format\"", "does not begin"),
        // Keys there twice, or unknown, or missing.
        ("\"step\":1500,\n", "\"step\":1500,\n\"step\":1500,\n", "duplicate field"),
        ("\"step\":1500,\n", "\"step\":1500,\n\"stop\":1500,\n", "unknown field"),
        ("\"sequence\":17,", "\"sequence\":17,\"sequence\":17,", "duplicate field"),
        ("\"sequence\":17,", "", "missing field"),
        ("\"step\":1500,\n", "", "missing field"),
        ("\"save_counter\":15,\n", "", "missing field"),
        (
            "\"files\":{\n",
            "\"files\":{\n\"decoder-1.safetensors\":{\"bytes\":4120,\"header\":{\"bytes\":4096,\"xxh3_128\":\"00000000000000000000000000000000\"}},\n",
            "twice",
        ),
        ("\"values\":{\n", "\"values\":{\n\"step\":1,\n", "twice"),
        ("\"metrics\":{\n", "\"metrics\":{\n\"loss\":1,\n", "twice"),
        ("\"values\":{\n", "\"values\":{\n\"new\":[{\"a\":1,\"\\u0061\":2}],\n", "twice"),
        ("\"none\":null", "\"none\":null,\"none\":null", "twice"),
        // Numbers.
        ("\"sequence\":17", "\"sequence\":-1", "invalid"),
        ("\"sequence\":17", "\"sequence\":17.0", "invalid"),
        ("\"sequence\":17", "\"sequence\":18446744073709551616", "invalid"),
        ("\"step\":1500,\n", "\"step\":\"1500\",\n", "invalid"),
        ("\"loss\":", "\"loss\":1e999,\"other\":", "out of range"),
        ("\"loss\":", "\"loss\":null,\"other\":", "invalid"),
        ("\"values\":{\n", "\"values\":{\n\"new\":1e999,\n", "out of range"),
        ("\"values\":{\n", "\"values\":{\n\"new\":NaN,\n", "expected value"),
        // Names.
        ("\"decoder/large\"", "\"decoder//large\"", "not a key"),
        ("\"decoder/large\"", "\"/decoder/large\"", "not a key"),
        ("\"decoder/large\"", "\"decoder/%6Carge\"", "not a key"),
        ("\"decoder/large\"", "\"decoder/%zzarge\"", "not a key"),
        ("\"decoder/large\"", "\"decoder/a\\nb\"", "not a key"),
        ("\"decoder/large\"", "\"\"", "not a key"),
        ("\"limits/most\"", "\"decoder/large\"", "both a tensor and a value"),
        ("decoder-1.safetensors", "../decoder-1.safetensors", "not the name of"),
        ("decoder-1.safetensors", "/etc/passwd", "not the name of"),
        ("decoder-1.safetensors", ".safetensors", "not the name of"),
        ("decoder-1.safetensors", "manifest.json", "not the name of"),
        ("decoder-1.safetensors", "DECODER-2.safetensors", "only in case"),
        ("\"run\":\"0", "\"run\":\"G", "identity of a run"),
        ("\"run\":\"0", "\"run\":\"", "identity of a run"),
        ("2026-11-22T", "2026-13-22T", "out of range"),
        // Tensors and their places.
        ("\"I32\",\"shape\":[5,2]", "\"I33\",\"shape\":[5,2]", "unknown element type \"I33\""),
        ("\"shape\":[5,2]", "\"shape\":[6,2]", "is in no file"),
        ("\"shape\":[5,2]", "\"shape\":[5,3]", "first dimension alone"),
        ("\"shape\":[5,2]", "\"shape\":[5]", "not a part of its shape"),
        ("\"shape\":[5,2]", "\"shape\":[5,18446744073709551615]", "too large"),
        ("[[3,2],[0,2]]", "[[2,2],[0,2]]", "first dimension alone"),
        ("[[3,2],[0,2]]", "[[3,1],[0,2]]", "cannot be the bytes"),
        ("[[3,2],[0,2]]", "[[3,18446744073709551615],[0,2]]", "not a part of its shape"),
        ("[[3,2],[0,2]]", "[[3,2],[0,1]]", "first dimension alone"),
        ("[[3,2],[0,2]]", "[[3,0],[0,2]]", "first dimension alone"),
        ("[[3,2],[0,2]]", "[[3,2],[0,2],[0,1]]", "not a part of its shape"),
        ("[[3,2],[0,2]]", "[[3,2,1],[0,2]]", "trailing"),
        ("[[3,2],[0,2]]", "null", "and there is another"),
        ("\"end\":4112", "\"end\":4111", "cannot be the bytes"),
        ("\"end\":4112", "\"end\":4095", "cannot be the bytes"),
        ("\"end\":4112", "\"end\":18446744073709551615", "cannot be the bytes"),
        ("\"begin\":4096,\"end\":4112", "\"begin\":4097,\"end\":4113", "the bytes before end at 4096"),
        ("\"begin\":4096,\"end\":4112", "\"begin\":0,\"end\":16", "the bytes before end at 4096"),
        ("\"bytes\":4112,", "\"bytes\":4113,", "end at byte 4112"),
        (
            "\"bytes\":4112,\"header\":{\"bytes\":4096",
            "\"bytes\":4112,\"header\":{\"bytes\":4100",
            "bytes before end at 4100",
        ),
        (
            "\"bytes\":4112,\"header\":{\"bytes\":4096",
            "\"bytes\":4095,\"header\":{\"bytes\":4096",
            "cannot have a header",
        ),
        ("\"bytes\":4112,\"header\":{\"bytes\":4096", "\"bytes\":4112,\"header\":{\"bytes\":0", "cannot have a header"),
        ("\"name\":\"large\"", "\"name\":\"__metadata__\"", "not allowed"),
        ("\"pieces\":[", "\"more\":1,\"pieces\":[", "unknown field"),
        ("\"name\":\"mask\"", "\"name\":\"steps\"", "stands for two tensors"),
    ];
    for (from, to, expected) in cases {
        assert!(text.contains(from), "{from} is not in the sample");
        // Everywhere, where it is a file's name, so that it is that name that is refused.
        let changed = if from.ends_with(".safetensors") { text.replace(from, to) } else { text.replacen(from, to, 1) };
        let refusal = Manifest::from_bytes(&seal(&changed)).expect_err(to).to_string();
        assert!(refusal.contains(expected), "{from} -> {to}: {refusal}");
    }
}

#[test]
fn hostile_indexes_of_right_digest_are_refused_with_a_reason() {
    let text = unseal(&sample_index().to_bytes().unwrap());
    for (from, to, expected) in [
        ("\"name\":\"ckpt-1400\"", "\"name\":\"../ckpt-1400\"", "not the name of a checkpoint"),
        ("\"name\":\"ckpt-1400\"", "\"name\":\"\"", "not the name of a checkpoint"),
        ("\"name\":\"ckpt-1400\"", "\"name\":\"ckpt-1500\"", "listed twice"),
        ("\"latest\":\"ckpt-1500\"", "\"latest\":\"/ckpt-1500\"", "not the name of a checkpoint"),
        ("\"latest\":\"ckpt-1500\",\n", "", "missing field"),
        ("\"step\":1400,", "", "missing field"),
        ("\"step\":1400,", "\"step\":1400,\"step\":1400,", "duplicate field"),
        ("\"step\":1400,", "\"step\":1400,\"stop\":1400,", "unknown field"),
        ("\"step\":1400,", "\"step\":-1,", "invalid"),
        ("\"loss\":", "\"error rate\":", "twice"),
        ("\"run\":\"0", "\"run\":\"x", "identity of a run"),
        ("\"preserved\":true", "\"preserved\":1", "invalid"),
        ("\"checkpoints\":[", "\"checkpoints\":[[", "invalid"),
    ] {
        let refusal = Index::from_bytes(&seal(&text.replacen(from, to, 1))).expect_err(to).to_string();
        assert!(refusal.contains(expected), "{from} -> {to}: {refusal}");
    }
}

#[test]
fn a_newer_version_is_told_from_damage() {
    let newer = "{\"format\":\"tch-checkpoint\",\"version\":7,\n\"anything\":[[[]]] whatever\n";
    assert!(matches!(Manifest::from_bytes(&seal(newer)), Err(FormatError::Unsupported(_))));
    let mut damaged = seal(newer);
    damaged[40] ^= 1;
    assert!(matches!(Manifest::from_bytes(&damaged), Err(FormatError::Damaged(_))));
    let newer = "{\"format\":\"tch-checkpoint-index\",\"version\":3,\n";
    assert!(matches!(Index::from_bytes(&seal(newer)), Err(FormatError::Unsupported(_))));
}

#[test]
fn two_names_of_a_tensor_agree_on_everything() {
    for (expected, change) in [
        ("bytes before end at", (|record| record.digest = Digest::of(b"other")) as fn(&mut TensorRecord)),
        ("bytes before end at", |record| record.spec.dtype = Dtype::I32),
        ("bytes before end at", |record| record.spec.shape = vec![3, 5]),
        ("bytes before end at", |record| record.pieces[0].name = "other".to_string()),
    ] {
        let (mut manifest, _) = sample();
        change(manifest.tensors.get_mut("decoder/embedding").unwrap());
        let refusal = manifest.to_bytes().unwrap_err().to_string();
        assert!(refusal.contains(expected), "{refusal}");
    }
}

#[test]
fn headers_and_manifest_say_the_same() {
    let (manifest, files) = sample();
    let headers: BTreeMap<String, safetensors::Header> = files
        .iter()
        .map(|(file, bytes)| {
            let length = header_bytes(bytes, bytes.len() as u64).unwrap();
            (file.clone(), parse_header(&bytes[..length], bytes.len() as u64).unwrap())
        })
        .collect();
    assert_eq!(manifest.check_headers(&headers), Ok(()));
    type Change = fn(&mut safetensors::Header);
    let changes: [(&str, Change); 5] = [
        ("\"large\"", |header| header.tensors[0].spec.dtype = Dtype::U32),
        ("\"large\"", |header| header.tensors[0].spec.shape = vec![2, 3]),
        ("\"large\"", |header| header.tensors[0].name = "other".to_string()),
        ("\"large\"", |header| header.data_start += 8),
        ("\"more\" more", |header| {
            let mut more = header.tensors[0].clone();
            more.name = "more".to_string();
            header.tensors.push(more);
        }),
    ];
    for (expected, change) in changes {
        let mut headers = headers.clone();
        change(headers.get_mut("decoder-1.safetensors").unwrap());
        let refusal = manifest.check_headers(&headers).unwrap_err().to_string();
        assert!(refusal.contains("decoder-1.safetensors") && refusal.contains(expected), "{refusal}");
    }
}

#[test]
fn nesting_and_number_of_values_are_bounded() {
    let (manifest, _) = sample();
    let text = unseal(&manifest.to_bytes().unwrap());
    let with = |value: &str| {
        Manifest::from_bytes(&seal(&text.replace("\"values\":{\n", &format!("\"values\":{{\n\"new\":{value},\n"))))
    };
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    assert!(with(&nested(json::MAX_DEPTH)).is_ok());
    assert!(with(&nested(json::MAX_DEPTH + 2)).unwrap_err().to_string().contains("nests deeper"));
    assert!(with(&nested(100_000)).unwrap_err().to_string().contains("recursion"));
    assert!(with(&"{\"a\":".repeat(1_000)).unwrap_err().to_string().contains("recursion"));
}

// ---- Golden files

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
    for (from, to) in [
        ("\"program.pt\"", "\"../program.pt\""),
        ("\"program.pt\"", "\"program.safetensors\""),
        ("\"program.pt\"", "\"Manifest.json\""),
        ("\"program.pt\"", "\"Examples.st\""),
        ("\"program.pt\"", "\"examples.st\""),
        ("\"version\":2", "\"version\":1"),
        ("\"program.pt\":{", "\"program.pt\":{\"new\":1,"),
    ] {
        assert!(text.contains(from), "{from}");
        assert!(
            matches!(Manifest::from_bytes(&seal(&text.replacen(from, to, 1))), Err(FormatError::Damaged(_))),
            "{to}"
        );
    }
}

#[test]
fn version_4_is_read_as_it_was_written_and_is_needed() {
    let (mut manifest, _) = sample();
    manifest.counted_from = Some("2026-11-22T09:00:00Z".parse().unwrap());
    let text = manifest.to_bytes().unwrap();
    golden("v4/ckpt-1500/manifest.json", &text);
    assert_eq!(Manifest::from_bytes(&text), Ok(manifest));
    let text = unseal(&text);
    for (from, to) in [
        ("\"version\":4", "\"version\":3"),
        ("\"counted_from\":\"2026-11-22T09:00:00Z\"", "\"counted_from\":null"),
        ("\"counted_from\":\"2026-11-22T09:00:00Z\"", "\"counted_from\":\"+12026-11-22T09:00:00Z\""),
    ] {
        assert!(text.contains(from), "{from}");
        let changed = Manifest::from_bytes(&seal(&text.replacen(from, to, 1)));
        assert!(matches!(changed, Err(FormatError::Damaged(_))), "{to}: {changed:?}");
    }
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
    for (from, to) in [
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
    ] {
        assert!(text.contains(from), "{from}");
        let read = Manifest::from_bytes(&seal(&text.replacen(from, to, 1)));
        assert!(matches!(read, Err(FormatError::Damaged(_))), "{to}: {read:?}");
    }
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
    for (from, to) in [
        ("\"version\":4", "\"version\":3"),
        ("\"non_finite\":4", "\"non_finite\":0"),
        ("\"non_finite\":4", "\"non_finite\":-1"),
        ("\"norm\":1.5", "\"norm\":-1.5"),
        ("\"norm\":1.5,", ""),
        ("\"min\":-1.0", "\"min\":1.0"),
        ("\"min\":-1.0,", ""),
        ("\"min\":-1.0", "\"min\":null"),
        ("\"statistics\":{\"norm\":1.5", "\"statistics\":{\"new\":1,\"norm\":1.5"),
    ] {
        assert!(text.contains(from), "{from}");
        let changed = Manifest::from_bytes(&seal(&text.replacen(from, to, 1)));
        assert!(matches!(changed, Err(FormatError::Damaged(_))), "{to}: {changed:?}");
    }
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
    for (from, to) in [
        ("\"version\":3", "\"version\":2"),
        ("\"version\":3", "\"version\":1"),
        ("\"NaN\"", "\"nan\""),
        ("\"NaN\"", "null"),
        ("\"NaN\"", "[1]"),
        ("\"requires_grad\":true", "\"requires_grad\":null"),
        ("\"follows\":{", "\"follows\":{\"new\":1,"),
    ] {
        assert!(text.contains(from), "{from}");
        let changed = Manifest::from_bytes(&seal(&text.replacen(from, to, 1)));
        assert!(matches!(changed, Err(FormatError::Damaged(_))), "{to}: {changed:?}");
    }
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
    for (from, to) in [
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
    ] {
        assert!(text.contains(from), "{from}");
        let read = SavedModelInfo::from_bytes(text.replacen(from, to, 1).as_bytes());
        assert!(matches!(read, Err(FormatError::Damaged(_))), "{to}: {read:?}");
    }
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
    for (from, to) in [
        ("\"version\": 2", "\"version\": 1"),
        (first, "\"dim\": 1"),
        (first, "\"dim\": 2"),
        (first, "\"dim\": 18446744073709551615"),
        (first, "\"dim\": 0, \"more\": 1"),
        ("\"input\": \"letters\"", "\"input\": \"words\""),
        ("\"embedding.weight\"\n  }\n}", "\"other\"\n  }\n}"),
        ("\"decoder/weight\"", "\"my encoder/embedding.weight\""),
    ] {
        assert!(text.contains(from), "{from}");
        let read = SavedModelInfo::from_bytes(text.replacen(from, to, 1).as_bytes());
        assert!(matches!(read, Err(FormatError::Damaged(_))), "{to}: {read:?}");
    }
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

// ---- The Python reader

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
