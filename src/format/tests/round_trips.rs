//! Round trips, compared with the `safetensors` crate, and what is not written.

use super::*;
use ::safetensors as oracle;

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
