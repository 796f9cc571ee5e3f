//! `Checkpoint::restore` from files of other tools: exact, all or nothing, verified as far as the format allows.
#![cfg(all(feature = "huggingface", feature = "tensorflow", feature = "keras"))]

mod common;

use common::Memory;
use common::sources::{fixture, read};
use common::table::Table;
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use tch_checkpoint::interop::{self, huggingface, pytorch, tensorflow};
use tch_checkpoint::map::NameMap;
use tch_checkpoint::{
    Checkpoint, Dtype, Error, Location, Node, RestoreOptions, TensorSource, TensorSpec, Trackable, Value, VerifiedBy,
    name,
};

/// Objects of the same names, types and shapes, all of whose bytes are 0x55.
#[derive(Default)]
struct Tree {
    leaf: Option<Node>,
    children: BTreeMap<String, Tree>,
}

impl Tree {
    fn node(&self) -> Node {
        self.leaf.clone().unwrap_or_else(|| Node::group(self.children.iter().map(|(name, tree)| (name, tree.node()))))
    }
}

fn blank(spec: &TensorSpec) -> Memory {
    Memory::new(spec.dtype, &spec.shape, vec![0x55; spec.bytes().unwrap() as usize])
}

type Objects = BTreeMap<String, Memory>;

fn objects(source: &dyn TensorSource) -> Result<(Checkpoint, Objects), Error> {
    let mut root = Tree::default();
    let mut memories = Objects::new();
    // The checkpoint's own counter has this name.
    for (key, spec) in source.tensors().iter().filter(|(key, _)| *key != "save_counter") {
        let memory = blank(spec);
        let place =
            name::path(key).unwrap().into_iter().fold(&mut root, |at, part| at.children.entry(part).or_default());
        place.leaf = Some(memory.node());
        memories.insert(key.clone(), memory);
    }
    let mut checkpoint = Checkpoint::new();
    for (name, tree) in &root.children {
        checkpoint.track_mut(name, tree.node())?;
    }
    Ok((checkpoint, memories))
}

/// One of each format, and how far it is verified.
const GOOD: [(&str, VerifiedBy); 13] = [
    ("pytorch/a_state_dict/seq2seq.pt", VerifiedBy::Container),
    ("pytorch/a_state_dict/seq2seq_legacy.pt", VerifiedBy::Nothing),
    ("pytorch/d_views/views_zip.pt", VerifiedBy::Container),
    ("pytorch/g_torchscript/scripted.pt", VerifiedBy::Container),
    ("pytorch/h_dcp/two_ranks", VerifiedBy::Container),
    ("pytorch/i_tch/dtypes.ot", VerifiedBy::Container),
    ("pytorch/i_tch/seq2seq.npz", VerifiedBy::Container),
    ("huggingface/single", VerifiedBy::Nothing),
    ("huggingface/sharded", VerifiedBy::Nothing),
    ("huggingface/bin_sharded", VerifiedBy::Container),
    ("tensorflow/c_sharded/ckpt-1", VerifiedBy::Container),
    ("keras/a_keras3/subclassed.weights.h5", VerifiedBy::Nothing),
    ("keras/a_keras3/tagger.keras", VerifiedBy::Container),
];

#[test]
fn every_format_restores_bit_for_bit_and_says_how_far_it_was_verified() {
    for (path, verified_by) in GOOD {
        let path = fixture(path);
        let source = interop::open(&path).unwrap_or_else(|e| panic!("{e}"));
        let (mut checkpoint, memories) = objects(&*source).unwrap();
        let status = checkpoint.restore(&path).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(status.verified_by(), verified_by, "{}", path.display());
        status.assert_existing_objects_matched().unwrap();
        assert_eq!(status.report().matched.len(), memories.len());
        for (key, memory) in &memories {
            assert!(*memory.bytes() == read(&*source, key), "{} {key}", path.display());
        }
    }
}

#[test]
fn an_open_source_is_restored_too() {
    let source = interop::open(fixture("pytorch/i_tch/seq2seq.npz")).unwrap();
    let (mut checkpoint, memories) = objects(&*source).unwrap();
    let status = checkpoint.restore_source(&*source, &RestoreOptions::new()).unwrap();
    status.assert_consumed().unwrap();
    assert_eq!((status.verified_by(), status.step()), (VerifiedBy::Container, None));
    assert!(memories.iter().all(|(key, memory)| *memory.bytes() == read(&*source, key)));
}

/// A file with the tensors `a`, `b` and `other`.
fn small(directory: &Path, name: &str) -> PathBuf {
    let mut ours = Checkpoint::new()
        .track("a", Memory::seeded(500, 1))
        .unwrap()
        .track("b", Memory::seeded(300, 2))
        .unwrap()
        .track("other", Memory::seeded(300, 3))
        .unwrap();
    let ours = interop::open(ours.write(directory.join(format!("of-{name}"))).unwrap()).unwrap();
    let path = directory.join(name);
    match name.ends_with(".pt") {
        true => drop(pytorch::write(&*ours, &path, &pytorch::WriteOptions::default()).unwrap()),
        false => drop(huggingface::write(&*ours, &path, &huggingface::WriteOptions::default()).unwrap()),
    }
    path
}

/// Like the variables of [`small`], with other names or shapes.
fn model(a: &str, count: u64) -> (Checkpoint, Memory, Memory) {
    let (first, second) = (Memory::seeded(count, 8), Memory::seeded(300, 9));
    (Checkpoint::new().track(a, &first).unwrap().track("b", &second).unwrap(), first, second)
}

#[test]
fn what_does_not_fit_changes_nothing_and_names_what_may_be_meant() {
    let temp = tempfile::tempdir().unwrap();
    for file in ["x.pt", "x.safetensors"] {
        let path = small(temp.path(), file);
        for (name, count, wanted) in [("aa", 500, "(it has \"a\""), ("a", 501, "the checkpoint has F32 [500]")] {
            let (mut checkpoint, first, second) = model(name, count);
            let before = (first.bytes().clone(), second.bytes().clone());
            let error = checkpoint.restore(&path).unwrap_err();
            assert!(matches!(error, Error::Mismatch { .. }) && error.to_string().contains(wanted), "{error}");
            assert!((first.bytes().clone(), second.bytes().clone()) == before);
        }
    }
    // Matched by shape: the error has no such text.
    let path = small(temp.path(), "y.pt");
    let mut checkpoint = Checkpoint::new().track("zzz", Memory::seeded(500, 1)).unwrap();
    let Error::Mismatch { report, .. } = checkpoint.restore(&path).unwrap_err() else { panic!() };
    assert_eq!(report.nearest["zzz"], ["a"]);
}

/// An unreadable tensor is not missing: the error has the reason, and no advice that would hide it.
#[test]
fn the_reason_why_a_tensor_is_unreadable_is_in_the_error() {
    let elements = |memory: &Memory| memory.bytes().clone();
    let (one, odd) = (Memory::seeded(3, 1), Memory::seeded(2, 2));
    let mut source = Table::default().with("model/one", Dtype::F32, &[3], elements(&Memory::seeded(3, 7)));
    source.unreadable.insert("model/odd".into(), "its elements are complex128".into());
    source.unreadable.insert("config/when".into(), "a date".into());
    let mut checkpoint =
        Checkpoint::new().track("model", Node::group([("one", one.node()), ("odd", odd.node())])).unwrap();
    let before = (elements(&one), elements(&odd));
    let error = checkpoint.restore_source(&source, &RestoreOptions::new()).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("\"model/odd\" is in the checkpoint and cannot be read: its elements are complex128"),
        "{text}"
    );
    assert!(text.contains("skip(\"model/odd\")") && !text.contains("allow_missing"), "{text}");
    let Error::Mismatch { report, .. } = error else { panic!("{text}") };
    assert_eq!((report.missing.as_slice(), report.unreadable.len()), (&["model/odd".to_string()][..], 1));
    assert!((elements(&one), elements(&odd)) == before);
    // An exception leaves the object unchanged, and the report keeps the reason.
    let lenient = RestoreOptions::new().allow_missing("model/*");
    let report = checkpoint.restore_source(&source, &lenient).unwrap().report();
    assert_eq!(report.unreadable["model/odd"], "its elements are complex128");
    // What the advice says works.
    let status = checkpoint.restore_source(&source, &RestoreOptions::new().skip("model/odd")).unwrap();
    assert_eq!((status.report().matched, status.report().unreadable.len()), (vec!["model/one".to_string()], 0));
    assert!(elements(&one) == elements(&Memory::seeded(3, 7)) && elements(&odd) == before.1);
    // If an object is really missing too, each gets its own advice; a value may be unreadable below its name.
    let mut checkpoint = Checkpoint::new()
        .track("config", Value::new(Json::Null))
        .unwrap()
        .track("model", Node::group([("odd", odd.node()), ("two", one.node())]))
        .unwrap();
    let text = checkpoint.restore_source(&source, &RestoreOptions::new()).unwrap_err().to_string();
    assert!(text.contains("\"config\" is in the checkpoint and cannot be read: config/when: a date"), "{text}");
    assert!(text.contains("allow_missing(\"model/two\"), skip(\"config\"), or skip(\"model\")"), "{text}");
}

#[test]
fn a_directory_of_no_known_format_says_so_and_names_the_way_for_others() {
    let temp = tempfile::tempdir().unwrap();
    let mut checkpoint = Checkpoint::new().track("a", Memory::seeded(3, 1)).unwrap();
    let empty = checkpoint.restore(temp.path()).unwrap_err().to_string();
    assert!(empty.contains("it has no manifest.json") && !empty.contains("restore_source"), "{empty}");
    fs::write(temp.path().join("weights.own"), "own").unwrap();
    let error = checkpoint.restore(temp.path()).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, Error::NotFound { .. }) && text.contains("it has no manifest.json"), "{text}");
    assert!(text.contains("holds no checkpoint of a format this version reads"), "{text}");
    assert!(text.contains("`Checkpoint::restore_source`"), "{text}");
    // A directory of checkpoints has its own advice.
    let saved = temp.path().join("run");
    checkpoint.save(saved.join("ckpt")).unwrap();
    let text = checkpoint.restore(&saved).unwrap_err().to_string();
    assert!(text.contains("latest_checkpoint") && !text.contains("restore_source"), "{text}");
}

#[test]
fn changed_bytes_are_found_before_anything_changes() {
    let temp = tempfile::tempdir().unwrap();
    let path = small(temp.path(), "x.pt");
    let good = fs::read(&path).unwrap();
    let data = Memory::seeded(300, 2).bytes()[..16].to_vec();
    let at = good.windows(16).position(|window| window == data).unwrap();
    let mut bad = good.clone();
    bad[at] ^= 1;
    fs::write(&path, bad).unwrap();
    let (mut checkpoint, first, second) = model("a", 500);
    let before = (first.bytes().clone(), second.bytes().clone());
    let error = checkpoint.restore(&path).unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
    assert!((first.bytes().clone(), second.bytes().clone()) == before);
    // A file that is cut off.
    for file in ["x.pt", "x.safetensors"] {
        let path = small(&temp.path().join("."), &format!("cut-{file}"));
        let good = fs::read(&path).unwrap();
        fs::write(&path, &good[..good.len() - 700]).unwrap();
        assert!(checkpoint.restore(&path).is_err());
        assert!((first.bytes().clone(), second.bytes().clone()) == before);
    }
}

#[test]
fn a_file_that_changes_after_it_was_opened_is_noticed() {
    let temp = tempfile::tempdir().unwrap();
    for file in ["x.pt", "x.safetensors"] {
        let path = small(temp.path(), file);
        let source = interop::open(&path).unwrap();
        // One byte, in place, same length: no checksum of safetensors would tell.
        std::thread::sleep(std::time::Duration::from_millis(20));
        let mut bytes = fs::read(&path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs::write(&path, bytes).unwrap();
        let (mut checkpoint, first, second) = model("a", 500);
        let before = (first.bytes().clone(), second.bytes().clone());
        let error = checkpoint.restore_source(&*source, &RestoreOptions::new()).unwrap_err();
        assert!(matches!(&error, Error::Damaged { .. }) && error.to_string().contains("changed since"), "{error}");
        assert!((first.bytes().clone(), second.bytes().clone()) == before);
    }
}

/// The same for a tensor that the system passes without copying it.
#[test]
fn a_long_tensor_that_cannot_be_read_changes_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("x.safetensors");
    let table =
        Table::default().with("a", Dtype::U8, &[100], vec![1; 100]).with("b", Dtype::U8, &[1 << 20], vec![2; 1 << 20]);
    huggingface::write(&table, &path, &huggingface::WriteOptions::default()).unwrap();
    let (a, b) = (Memory::new(Dtype::U8, &[100], vec![0; 100]), Memory::new(Dtype::U8, &[1 << 20], vec![0; 1 << 20]));
    let mut checkpoint = Checkpoint::new().track("a", &a).unwrap().track("b", &b).unwrap();
    checkpoint.restore(&path).unwrap();
    assert!(a.bytes().iter().all(|byte| *byte == 1) && b.bytes().iter().all(|byte| *byte == 2));
    let source = interop::open(&path).unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_len(1 << 20).unwrap();
    a.bytes().fill(0);
    let error = checkpoint.restore_source(&*source, &RestoreOptions::new()).unwrap_err();
    assert!(matches!(&error, Error::Damaged { .. }), "{error}");
    assert!(a.bytes().iter().all(|byte| *byte == 0) && b.bytes().iter().all(|byte| *byte == 2));
}

/// A table that counts how often its tensors are read, and returns different ones each time if it is fickle.
#[derive(Debug, Default)]
struct Fickle {
    table: Table,
    is_fickle: bool,
    reads: AtomicU8,
}

impl TensorSource for Fickle {
    fn format(&self) -> &'static str {
        "fickle"
    }
    fn path(&self) -> &Location {
        self.table.path()
    }
    fn tensors(&self) -> &BTreeMap<String, TensorSpec> {
        self.table.tensors()
    }
    fn verified_by(&self, _: &str) -> VerifiedBy {
        VerifiedBy::Nothing
    }
    fn read(&self, key: &str, target: &mut [u8]) -> Result<(), Error> {
        self.table.read(key, target)?;
        let reads = self.reads.fetch_add(1, Relaxed);
        target[0] += if self.is_fickle { reads } else { 0 };
        Ok(())
    }
    fn read_range(&self, key: &str, _: Range<u64>, target: &mut [u8]) -> Result<(), Error> {
        self.read(key, target)
    }
    fn ensure_readable(&self, _: &str) -> Result<bool, Error> {
        Ok(!self.is_fickle)
    }
    fn verify(&self) -> Result<(), Error> {
        Ok(())
    }
}

#[test]
fn what_may_change_unnoticed_is_read_twice_and_compared() {
    for is_fickle in [true, false] {
        let source = Fickle { table: Table::of(&["x"]), is_fickle, ..Fickle::default() };
        let x = Memory::new(Dtype::I32, &[], vec![0; 4]);
        let mut checkpoint = Checkpoint::new().track("x", &x).unwrap();
        let restored = checkpoint.restore_source(&source, &RestoreOptions::new());
        assert_eq!(source.reads.load(Relaxed), if is_fickle { 2 } else { 1 });
        match restored {
            Ok(status) => assert!(!is_fickle && status.verified_by() == VerifiedBy::Nothing),
            Err(error) => {
                let text = format!("{error:?}");
                assert!(
                    is_fickle && matches!(error, Error::PartlyRestored { .. }) && text.contains("changed while"),
                    "{text}"
                );
            }
        }
        // And under another name.
        source.reads.store(0, Relaxed);
        let mut checkpoint = Checkpoint::new().track("y", &x).unwrap();
        let map = NameMap::new().rename("x", "y");
        assert_eq!(checkpoint.restore_source(&source, &RestoreOptions::new().map(map)).is_err(), is_fickle);
        assert_eq!(source.reads.load(Relaxed), if is_fickle { 2 } else { 1 });
    }
}

#[test]
fn what_is_tracked_later_gets_its_values_unless_the_file_has_changed() {
    let temp = tempfile::tempdir().unwrap();
    let path = small(temp.path(), "x.safetensors");
    let (mut checkpoint, ..) = model("a", 500);
    let status = checkpoint.restore(&path).unwrap();
    assert!(status.report().unused.contains(&"other".to_string()));
    let other = Memory::seeded(300, 0);
    checkpoint.track_mut("other", &other).unwrap();
    assert!(*other.bytes() == *Memory::seeded(300, 3).bytes());
    status.assert_existing_objects_matched().unwrap();

    let (mut checkpoint, ..) = model("a", 500);
    checkpoint.restore(&path).unwrap();
    let bytes = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let error = checkpoint.track_mut("other", &other).unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error}");
    fs::write(&path, bytes).unwrap();
    let error = checkpoint.track_mut("other", &other).unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error}");
}

/// By any path that `restore` takes: a relative one, a directory, an index.
/// The file has the fields of a value one by one.
#[test]
fn a_value_of_several_entries_that_is_tracked_later_leaves_none_unused() {
    let temp = tempfile::tempdir().unwrap();
    let progress = serde_json::json!({"epoch": 3, "losses": {"best": 0.5}});
    let weights = Memory::seeded(10, 1);
    let objects = Checkpoint::new().track("weights", &weights).unwrap();
    let mut objects = objects.track("progress", Value::new(progress.clone())).unwrap();
    let source = interop::open(objects.write(temp.path().join("c")).unwrap()).unwrap();
    let file = temp.path().join("c.pt");
    tch_checkpoint::convert::convert(&*source, &file, tch_checkpoint::convert::Format::PyTorch).unwrap();
    let mut checkpoint = Checkpoint::new().track("weights", Memory::seeded(10, 2)).unwrap();
    let status = checkpoint.restore(&file).unwrap();
    assert_eq!(status.report().unused.len(), 2, "{:?}", status.report().unused);
    let later = Value::new(Json::Null);
    checkpoint.track_mut("progress", &later).unwrap();
    assert_eq!(later.get(), progress);
    status.assert_consumed().unwrap();
}

#[test]
fn what_is_tracked_later_gets_its_values_by_whatever_path_they_were_restored() {
    let temp = tempfile::tempdir().unwrap();
    let (file, directory) = (small(temp.path(), "x.safetensors"), small(temp.path(), "x"));
    let mut to_the_root: PathBuf = std::env::current_dir().unwrap().iter().skip(1).map(|_| "..").collect();
    to_the_root.push(file.strip_prefix("/").unwrap());
    let source = interop::open(&file).unwrap();
    let bundle = temp.path().join("training/ckpt-5");
    fs::create_dir(temp.path().join("training")).unwrap();
    tensorflow::write(&*source, &bundle, &tensorflow::WriteOptions::default()).unwrap();
    let index = temp.path().join("training/ckpt-5.index");
    for path in [&to_the_root, &directory, &temp.path().join("training"), &bundle, &index] {
        let (mut checkpoint, ..) = model("a", 500);
        checkpoint.restore(path).unwrap();
        let other = Memory::seeded(300, 0);
        checkpoint.track_mut("other", &other).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert!(*other.bytes() == *Memory::seeded(300, 3).bytes());
    }
}

#[test]
fn a_shard_that_has_changed_is_not_taken_for_what_was_restored() {
    let temp = tempfile::tempdir().unwrap();
    let source = interop::open(small(temp.path(), "x.safetensors")).unwrap();
    let directory = temp.path().join("model");
    huggingface::write(&*source, &directory, &huggingface::WriteOptions::default().max_shard_bytes(1)).unwrap();
    let index = directory.join("model.safetensors.index.json");
    let (mut checkpoint, ..) = model("a", 500);
    checkpoint.restore(&index).unwrap();
    // What the index does not list may change.
    fs::write(directory.join("train.log"), "a line").unwrap();
    let other = Memory::seeded(300, 0);
    checkpoint.track_mut("other", &other).unwrap();
    assert!(*other.bytes() == *Memory::seeded(300, 3).bytes());

    let (mut checkpoint, ..) = model("a", 500);
    checkpoint.restore(&index).unwrap();
    let json: Json = serde_json::from_slice(&fs::read(&index).unwrap()).unwrap();
    let shard = directory.join(json["weight_map"]["other"].as_str().unwrap());
    let mut bytes = fs::read(&shard).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::thread::sleep(std::time::Duration::from_millis(20));
    fs::write(&shard, bytes).unwrap();
    let error = checkpoint.track_mut("other", Memory::seeded(300, 0)).unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }) && error.to_string().contains("another"), "{error}");
}

#[test]
fn values_come_from_dictionaries_lists_and_numbers() {
    let path = fixture("pytorch/b_training/checkpoint_adam_legacy_t1_6_0.pth.tar");
    let source = interop::open(&path).unwrap();
    let (key, wanted) = source.values().iter().find(|(_, value)| value.is_i64()).unwrap();
    let path_of = name::path(key).unwrap();
    let value = Value::new(Json::Null);
    let inner = path_of[1..].iter().rev().fold(value.node(), |node, part| Node::group([(part, node)]));
    let mut checkpoint = Checkpoint::new().track(&path_of[0], inner).unwrap();
    checkpoint.restore(&path).unwrap();
    assert_eq!(value.get(), *wanted);
    // A whole dictionary, as one value.
    let group = Value::new(Json::Null);
    let groups = source.value("args").map(|value| (value, "args"));
    let (wanted, key) = groups.unwrap_or_else(|| panic!("{:?}", source.values().keys()));
    let path_of = name::path(key).unwrap();
    let inner = path_of[1..].iter().rev().fold(group.node(), |node, part| Node::group([(part, node)]));
    let mut checkpoint = Checkpoint::new().track(&path_of[0], inner).unwrap();
    let status = checkpoint.restore(&path).unwrap();
    assert_eq!(group.get(), wanted);
    assert!(status.report().unused.iter().all(|key| !key.starts_with("args/")));
    // TensorFlow keeps numbers as tensors.
    let path = fixture("tensorflow/a_seq2seq_gru/ckpt-5");
    let source = interop::open(&path).unwrap();
    let iterations = TensorSpec::new(Dtype::I64, []);
    let key =
        source.tensors().iter().find(|(key, spec)| key.ends_with("iterations") && **spec == iterations).unwrap().0;
    let wanted = i64::from_le_bytes(read(&*source, key).try_into().unwrap());
    let number = Value::new(0i64);
    let path_of = name::path(key).unwrap();
    let inner = path_of[1..].iter().rev().fold(number.node(), |node, part| Node::group([(part, node)]));
    Checkpoint::new().track(&path_of[0], inner).unwrap().restore(&path).unwrap();
    assert!(wanted > 0 && number.get() == wanted);
}

#[test]
fn a_checkpoint_without_a_manifest_and_a_directory_of_others_say_what_they_are() {
    let temp = tempfile::tempdir().unwrap();
    let (mut checkpoint, ..) = model("a", 500);
    for (path, wanted) in
        [(temp.path().to_path_buf(), "no checkpoint"), (temp.path().join("nothing"), "nothing of that name")]
    {
        let error = checkpoint.restore(path).unwrap_err();
        assert!(matches!(error, Error::NotFound { .. }) && error.to_string().contains(wanted), "{error}");
    }
    let text = temp.path().join("text.pt");
    fs::write(&text, "<html>").unwrap();
    let error = checkpoint.restore(text).unwrap_err();
    assert!(error.to_string().contains("HTML"), "{error}");
}

/// One component file is a directory of Hugging Face too, whose bytes nothing verifies.
#[test]
fn what_is_left_of_a_checkpoint_is_not_restored_as_a_model_of_another_tool() {
    let temp = tempfile::tempdir().unwrap();
    let memory = Memory::seeded(500, 1);
    let mut checkpoint = Checkpoint::new().track("w", &memory).unwrap();
    let path = checkpoint.save(temp.path().join("ckpt")).unwrap();
    let file = path.join("w.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&file, bytes).unwrap();
    fs::remove_file(path.join("manifest.json")).unwrap();
    std::os::unix::fs::symlink("ckpt-1", temp.path().join("latest")).unwrap();
    let before = memory.bytes().clone();
    for name in ["ckpt-1", "latest"] {
        let path = temp.path().join(name);
        let refused = |error: Error| {
            let text = error.to_string();
            assert!(error.is_not_found() && text.contains("it has no manifest.json"), "{text}");
        };
        refused(checkpoint.restore(&path).unwrap_err());
        refused(interop::open(&path).unwrap_err());
        // A file of its own name, such as the configuration of the model, makes no model of it.
        fs::write(path.join("config.json"), "{}").unwrap();
        refused(checkpoint.restore(&path).unwrap_err());
        assert!(matches!(tch_checkpoint::inspect::Target::open(&path), Err(Error::Damaged { .. })));
        fs::remove_file(path.join("config.json")).unwrap();
        assert!(*memory.bytes() == before);
    }
    // A directory that no index lists is what its files say.
    let model = temp.path().join("model");
    fs::create_dir(&model).unwrap();
    fs::copy(&file, model.join("model.safetensors")).unwrap();
    checkpoint.restore(&model).unwrap();
    assert!(*memory.bytes() != before);
}
