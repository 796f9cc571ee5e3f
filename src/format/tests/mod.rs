//! Tests of the whole format: this file has the samples and the hostile bytes; the `safetensors` crate is the oracle.

mod round_trips;
mod versions;

use super::safetensors::{MAX_HEADER, header_bytes, layout, parse_header};
use super::*;
use crate::dtype::TensorSpec;
use crate::name;
use ::safetensors as oracle;
use chrono::{DateTime, Utc};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Instant;

const RUN: &str = "0123456789abcdef0123456789abcdef";

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

/// Checks that a text is damaged by each change: the first of what it has, replaced.
#[track_caller]
fn each_is_damage<T: Debug>(text: &str, changes: &[(&str, &str)], read: impl Fn(&str) -> Result<T, FormatError>) {
    for (from, to) in changes {
        assert!(text.contains(from), "{from}");
        let read = read(&text.replacen(from, to, 1));
        assert!(matches!(read, Err(FormatError::Damaged(_))), "{to}: {read:?}");
    }
}

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
