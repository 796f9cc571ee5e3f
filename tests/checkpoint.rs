//! `Checkpoint`: what a user sees of saving and restoring, with tensors in plain memory.

mod common;

use common::Memory;
use common::steps::Steps;
use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;
#[cfg(feature = "huggingface")]
use tch_checkpoint::WeightsExport;
use tch_checkpoint::{
    AssetStream, BoxError, Checkpoint, CheckpointManager, CheckpointReader, Child, Collection, Counter, Created, Dtype,
    Error, Node, Preemption, Progress, RestoreOptions, SaveOptions, SavedTree, TensorBytes, TensorLeaf, TensorSpec,
    TensorTarget, Trackable, Value, Verify, checkpoints, latest_checkpoint,
};

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// A user's own struct.
struct Model {
    embedding: Memory,
    layers: Vec<Memory>,
    step: Counter,
}

impl Model {
    fn new(seed: u64) -> Model {
        Model {
            embedding: Memory::seeded(100, seed),
            layers: (0..3).map(|i| Memory::seeded(1000 + i, seed + i)).collect(),
            step: Counter::new(seed),
        }
    }

    fn state(&self) -> Vec<Vec<u8>> {
        let tensors = std::iter::once(&self.embedding).chain(&self.layers).map(|tensor| tensor.bytes().clone());
        tensors.chain([self.step.get().to_le_bytes().to_vec()]).collect()
    }
}

impl Trackable for Model {
    fn node(&self) -> Node {
        Node::group([("embedding", self.embedding.node()), ("layers", self.layers.node()), ("step", self.step.node())])
    }
}

fn checkpoint_of(model: &Model) -> Checkpoint {
    Checkpoint::new().track("model", model).unwrap()
}

#[test]
fn what_was_saved_comes_back_into_the_same_objects() -> Outcome {
    let dir = tempfile::tempdir()?;
    let saved = Model::new(1);
    let path = checkpoint_of(&saved).save(dir.path().join("deep/er/ckpt"))?;
    assert_eq!(path, dir.path().join("deep/er/ckpt-1"));

    let live = Model::new(2);
    let alias = live.layers[1].clone();
    let mut checkpoint = checkpoint_of(&live);
    let status = checkpoint.restore(&path)?;
    status.assert_consumed()?.assert_nontrivial_match()?;
    assert_eq!(live.state(), saved.state());
    assert_eq!(*alias.bytes(), *saved.layers[1].bytes(), "an alias sees the restored values");
    assert_eq!(checkpoint.save_counter(), 1);
    assert_eq!(checkpoint.save(dir.path().join("deep/er/ckpt"))?, dir.path().join("deep/er/ckpt-2"));
    Ok(())
}

#[test]
fn the_same_state_gives_the_same_bytes() -> Outcome {
    let dir = tempfile::tempdir()?;
    let model = Model::new(3);
    let a = checkpoint_of(&model).write(dir.path().join("a"))?;
    let b = checkpoint_of(&model).write_with(dir.path().join("b"), &SaveOptions::new().threads(5).chunk_bytes(1))?;
    assert_eq!(fs::read(a.join("model.safetensors"))?, fs::read(b.join("model.safetensors"))?);
    let lines = |path: &std::path::Path| {
        fs::read_to_string(path.join("manifest.json")).map(|text| text.lines().map(String::from).collect::<Vec<_>>())
    };
    let (a, b) = (lines(&a)?, lines(&b)?);
    let differing = a.iter().zip(&b).filter(|(a, b)| a != b).count();
    assert!(a.len() == b.len() && differing == 2, "only the commit line and the digest differ: {differing}");
    Ok(())
}

#[test]
fn every_dtype_and_shape_round_trips_and_the_safetensors_crate_reads_it() -> Outcome {
    let dir = tempfile::tempdir()?;
    let mut saved = BTreeMap::new();
    for &dtype in Dtype::ALL {
        for shape in [vec![], vec![0], vec![3, 0, 2], vec![2, 3], vec![1, 1, 1, 5]] {
            let count: u64 = shape.iter().product();
            let bytes = (0..count * dtype.size() as u64).map(|i| (i * 37 + 11) as u8 % 2).collect();
            saved.insert(format!("{dtype} {shape:?}"), Memory::new(dtype, &shape, bytes));
        }
    }
    let path = Checkpoint::new().track("all", &saved)?.write(dir.path().join("all"))?;
    let live: BTreeMap<_, _> = saved
        .iter()
        .map(|(name, tensor)| {
            let spec = tch_checkpoint::TensorLeaf::spec(tensor).unwrap();
            (name.clone(), Memory::new(spec.dtype, &spec.shape, vec![0xFF; tensor.bytes().len()]))
        })
        .collect();
    Checkpoint::new().track("all", &live)?.restore(&path)?.assert_consumed()?;
    let file = fs::read(path.join("all.safetensors"))?;
    let oracle = safetensors::SafeTensors::deserialize(&file)?;
    assert_eq!(oracle.len(), saved.len());
    for (name, tensor) in &saved {
        assert_eq!(*live[name].bytes(), *tensor.bytes(), "{name}");
        assert_eq!(oracle.tensor(name)?.data(), *tensor.bytes(), "{name}");
    }
    Ok(())
}

#[test]
fn shared_memory_is_saved_once_and_restored_to_both_names() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (tied, other) = (Memory::seeded(50_000, 1), Memory::seeded(10, 2));
    let build = |embedding: &Memory, head: &Memory, other: &Memory| -> Result<Checkpoint, Error> {
        Checkpoint::new()
            .track("embedding", embedding)?
            .track("decoder", Node::group([("head", head.node()), ("w", other.node())]))
    };
    let path = build(&tied, &tied, &other)?.write(dir.path().join("tied"))?;
    assert_eq!(fs::metadata(path.join("embedding.safetensors"))?.len(), 4096 + 200_000);
    assert!(fs::metadata(path.join("decoder.safetensors"))?.len() < 10_000);

    // Into an untied model: both get the values.
    let (a, b) = (Memory::seeded(50_000, 3), Memory::seeded(50_000, 4));
    build(&a, &b, &other)?.restore(&path)?.assert_consumed()?;
    assert!(*a.bytes() == *tied.bytes() && *b.bytes() == *tied.bytes());

    // The decoder alone finds its tensor in the other component's file.
    let head = Memory::seeded(50_000, 5);
    Checkpoint::new().track("decoder", Node::group([("head", head.node())]))?.restore(&path)?;
    assert_eq!(*head.bytes(), *tied.bytes());

    // Two different saved values cannot both go into one memory.
    let untied =
        build(&Memory::seeded(50_000, 6), &Memory::seeded(50_000, 7), &other)?.write(dir.path().join("untied"))?;
    let before = tied.bytes().clone();
    let refusal = build(&tied, &tied, &other)?.restore(&untied).unwrap_err().to_string();
    assert!(refusal.contains("shares its memory"), "{refusal}");
    assert_eq!(*tied.bytes(), before);
    Ok(())
}

#[test]
fn a_shape_dtype_or_value_that_differs_is_refused_and_nothing_changes() -> Outcome {
    let dir = tempfile::tempdir()?;
    let path = Checkpoint::new()
        .track("a", Memory::seeded(4, 1))?
        .track("b", Memory::f32(&[1], [1.0]))?
        .track("n", Value::new("text".to_string()))?
        .write(dir.path().join("saved"))?;
    let a = Memory::seeded(4, 9);
    let before = a.bytes().clone();
    // A [1] must not be broadcast, an F32 must not become an I32, and a string must not become a number.
    for (name, object) in [
        ("b", Memory::f32(&[3, 4], [0.0; 12]).node()),
        ("b", Memory::f32(&[], [0.0]).node()),
        ("b", Memory::new(Dtype::I32, &[1], vec![0; 4]).node()),
        ("n", Value::new(1.5f64).node()),
    ] {
        let mut checkpoint = Checkpoint::new().track("a", &a)?.track(name, object)?;
        let Err(Error::Mismatch { report, .. }) = checkpoint.restore(&path) else { panic!("{name} was accepted") };
        assert_eq!(report.mismatched[0].key, name);
        assert_eq!(*a.bytes(), before, "half restored");
    }
    Ok(())
}

#[test]
fn a_missing_value_is_an_error_with_a_hint_unless_allowed() -> Outcome {
    let dir = tempfile::tempdir()?;
    let path = Checkpoint::new()
        .track("encoder", Node::group([("weight", Memory::seeded(4, 1).node())]))?
        .write(dir.path().join("c"))?;
    let (weight, wieght) = (Memory::seeded(4, 2), Memory::seeded(4, 3));
    let build =
        || Checkpoint::new().track("encoder", Node::group([("weight", weight.node()), ("wieght", wieght.node())]));
    let refusal = build()?.restore(&path).unwrap_err().to_string();
    assert!(refusal.contains("\"encoder/wieght\" is not in the checkpoint"), "{refusal}");

    let renamed = Checkpoint::new()
        .track("encoder", Node::group([("wieght", wieght.node())]))?
        .restore(&path)
        .unwrap_err()
        .to_string();
    assert!(renamed.contains("(it has \"encoder/weight\")"), "{renamed}");

    let status = build()?.restore_with(&path, &RestoreOptions::new().allow_missing("*/wieght"))?;
    assert_eq!(status.report().matched, ["encoder/weight"]);
    assert!(status.assert_existing_objects_matched().unwrap_err().to_string().contains("encoder/wieght"));
    Ok(())
}

#[test]
fn the_wrong_root_restores_nothing_and_says_so() -> Outcome {
    // TensorFlow restores `Checkpoint(m)` into `Checkpoint(model=m)` without an error, and restores no value.
    let dir = tempfile::tempdir()?;
    let path = checkpoint_of(&Model::new(1)).write(dir.path().join("c"))?;
    let live = Model::new(2);
    let before = live.state();
    let error = Checkpoint::new().track("net", &live)?.restore(&path).unwrap_err();
    assert!(matches!(error, Error::Mismatch { .. }), "{error}");
    assert_eq!(live.state(), before);
    Ok(())
}

#[test]
fn objects_tracked_after_the_restore_get_their_values_then() -> Outcome {
    let dir = tempfile::tempdir()?;
    let saved = Model::new(1);
    let path = Checkpoint::new().track("early", Counter::new(5))?.track("late", &saved)?.write(dir.path().join("c"))?;

    let (early, late) = (Counter::new(0), Model::new(2));
    let mut checkpoint = Checkpoint::new().track("early", &early)?;
    let status = checkpoint.restore(&path)?;
    assert!(status.assert_consumed().is_err());
    checkpoint.track_mut("late", &late)?;
    assert_eq!(late.state(), saved.state());
    status.assert_consumed()?;

    // Used once, and not at all after `expect_partial`.
    let mut checkpoint = Checkpoint::new().track("early", &early)?;
    checkpoint.restore(&path)?.expect_partial();
    let untouched = Model::new(3);
    let before = untouched.state();
    checkpoint.track_mut("late", &untouched)?;
    assert_eq!(untouched.state(), before);

    // What does not fit is refused, and the object is not tracked.
    let mut checkpoint = Checkpoint::new().track("early", &early)?;
    let status = checkpoint.restore(&path)?;
    assert!(matches!(checkpoint.track_mut("late", Memory::seeded(1, 1)), Err(Error::Mismatch { .. })));
    checkpoint.track_mut("late", &untouched)?;
    assert_eq!(untouched.state(), saved.state());
    status.assert_consumed()?;
    Ok(())
}

/// Slots that are created at the first step, as an optimizer's are.
#[derive(Clone, Default)]
struct Slots(std::sync::Arc<std::sync::Mutex<BTreeMap<String, Memory>>>);

impl Collection for Slots {
    fn children(&self) -> Result<Vec<Child>, tch_checkpoint::BoxError> {
        Ok(self.0.lock().unwrap().iter().map(|(name, slot)| Child::new(name, slot.node())).collect())
    }

    fn create(&self, name: &str, saved: &SavedTree) -> Result<Option<Created>, tch_checkpoint::BoxError> {
        let spec = saved.tensor.clone().ok_or("not a tensor")?;
        let slot = Memory::new(spec.dtype, &spec.shape, vec![0; spec.bytes().unwrap() as usize]);
        let (slots, name, node) = (self.0.clone(), name.to_string(), slot.node());
        Ok(Some(Created::new(node, move || drop(slots.lock().unwrap().insert(name, slot)))))
    }

    fn may_lack(&self, _: &str) -> bool {
        true
    }

    fn remove(&self, names: &[String]) {
        self.0.lock().unwrap().retain(|name, _| !names.contains(name));
    }
}

impl Trackable for Slots {
    fn node(&self) -> Node {
        Node::collection(self.clone())
    }
}

#[test]
fn collections_follow_the_checkpoint_only_when_the_whole_restore_succeeds() -> Outcome {
    let dir = tempfile::tempdir()?;
    let slots = Slots::default();
    slots.0.lock().unwrap().insert("exp_avg".into(), Memory::seeded(8, 1));
    let path = Checkpoint::new().track("opt", &slots)?.track("n", Counter::new(1))?.write(dir.path().join("c"))?;

    let live = Slots::default();
    live.0.lock().unwrap().insert("stale".into(), Memory::seeded(8, 1));
    let refused = Checkpoint::new().track("opt", &live)?.track("n", Value::new("x".to_string()))?.restore(&path);
    assert!(refused.is_err());
    assert_eq!(live.0.lock().unwrap().keys().collect::<Vec<_>>(), ["stale"]);

    Checkpoint::new().track("opt", &live)?.track("n", Counter::new(0))?.restore(&path)?.assert_consumed()?;
    assert_eq!(live.0.lock().unwrap().keys().collect::<Vec<_>>(), ["exp_avg"]);
    assert_eq!(*live.0.lock().unwrap()["exp_avg"].bytes(), *Memory::seeded(8, 1).bytes());

    // An empty collection looks like one that was not saved: below an object that the checkpoint has it counts as
    // empty, and below one that it lacks it stays as it is.
    let with = |name: &str, slots: &Slots| {
        let node = Node::group([("n", Counter::new(2).node()), ("slots", slots.node())]);
        Checkpoint::new().track(name, node)
    };
    let path = with("opt", &Slots::default())?.write(dir.path().join("empty"))?;
    let options = RestoreOptions::new().allow_missing("other/*");
    with("other", &live)?.restore_with(&path, &options)?;
    assert_eq!(live.0.lock().unwrap().len(), 1);
    with("opt", &live)?.restore(&path)?.assert_consumed()?;
    assert!(live.0.lock().unwrap().is_empty());
    Ok(())
}

#[test]
fn names_with_every_character_work_and_lead_nowhere() -> Outcome {
    let dir = tempfile::tempdir()?;
    let names = ["a.b/c", "..", "../../etc/passwd", "50%", "ü λ", "[x]*?", "nul", "line\nbreak", "\u{1F600}"];
    let (mut saver, mut loader) = (Checkpoint::new(), Checkpoint::new());
    let mut pairs = Vec::new();
    for (i, name) in names.iter().enumerate() {
        let (saved, live) = (Memory::seeded(10, i as u64), Memory::seeded(10, 99));
        saver.track_mut(name, Node::group([(*name, saved.node())]))?;
        loader.track_mut(name, Node::group([(*name, live.node())]))?;
        pairs.push((saved, live));
    }
    let path = saver.write(dir.path().join("c"))?;
    assert_eq!(fs::read_dir(&path)?.count(), names.len() + 1);
    assert_eq!(fs::read_dir(dir.path())?.count(), 2, "the checkpoint and the lock");
    loader.restore(&path)?.assert_consumed()?;
    for (saved, live) in pairs {
        assert_eq!(*saved.bytes(), *live.bytes());
    }
    Ok(())
}

#[test]
fn names_that_cannot_be_are_refused_before_anything_is_written() -> Outcome {
    let dir = tempfile::tempdir()?;
    let tensor = Memory::seeded(1, 1);
    for (name, object) in [
        ("save_counter", tensor.node()),
        ("", tensor.node()),
        ("__metadata__", tensor.node()),
        ("m", Node::group([("__metadata__", tensor.node())])),
        ("m", Node::group([("x", tensor.node()), ("x", Memory::seeded(1, 2).node())])),
    ] {
        let error = Checkpoint::new().track(name, object).unwrap_err();
        assert!(matches!(error, Error::InvalidName { .. }), "{name}: {error}");
    }
    let taken = Checkpoint::new().track("x", &tensor)?.track("x", &tensor).unwrap_err();
    assert!(taken.to_string().contains("tracked already"));
    assert_eq!(fs::read_dir(dir.path())?.count(), 0);
    Ok(())
}

#[test]
fn nothing_is_ever_overwritten() -> Outcome {
    let dir = tempfile::tempdir()?;
    let mut first = checkpoint_of(&Model::new(1));
    let path = first.save(dir.path().join("ckpt"))?;
    let before = fs::read(path.join("model.safetensors"))?;
    // A fresh process that did not restore: TensorFlow overwrites ckpt-1 here.
    let mut second = checkpoint_of(&Model::new(2));
    let error = second.save(dir.path().join("ckpt")).unwrap_err();
    assert!(matches!(error, Error::AlreadyExists { .. }), "{error}");
    assert_eq!(second.save_counter(), 0, "a failed save does not count");
    assert_eq!(fs::read(path.join("model.safetensors"))?, before);
    assert_eq!(
        fs::read_dir(dir.path())?
            .filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().starts_with(".tmp"))
            .count(),
        0
    );
    Ok(())
}

#[test]
fn an_object_that_cannot_be_saved_is_named_and_nothing_is_written() -> Outcome {
    struct Broken;
    impl tch_checkpoint::ValueLeaf for Broken {
        fn save(&self) -> Result<serde_json::Value, tch_checkpoint::BoxError> {
            Err("it is on strike".into())
        }
        fn load(&self, _: &serde_json::Value) -> Result<tch_checkpoint::ValueApply, tch_checkpoint::BoxError> {
            Err("it is on strike".into())
        }
    }
    let dir = tempfile::tempdir()?;
    let mut checkpoint = Checkpoint::new().track("m", Node::group([("broken", Node::value(Broken))]))?;
    let error = checkpoint.write(dir.path().join("c")).unwrap_err();
    assert_eq!(error.to_string(), "m/broken: it is on strike");
    assert!(!dir.path().join("c").exists());
    Ok(())
}

#[test]
fn a_large_component_is_split_and_comes_back() -> Outcome {
    let dir = tempfile::tempdir()?;
    let tensors: Vec<Memory> = (0..10).map(|i| Memory::seeded(1000, i)).collect();
    let path = Checkpoint::new()
        .track("big", &tensors)?
        .write_with(dir.path().join("c"), &SaveOptions::new().max_file_bytes(9000))?;
    assert!(
        path.join("big-00001-of-00005.safetensors").exists() && path.join("big-00005-of-00005.safetensors").exists()
    );
    let live: Vec<Memory> = (0..10).map(|_| Memory::seeded(1000, 77)).collect();
    Checkpoint::new().track("big", &live)?.restore(&path)?.assert_consumed()?;
    assert!(live.iter().zip(&tensors).all(|(a, b)| *a.bytes() == *b.bytes()));
    assert!(CheckpointReader::open(&path)?.verify().is_intact());
    Ok(())
}

#[test]
fn errors_say_what_where_and_what_to_do() -> Outcome {
    let dir = tempfile::tempdir()?;
    let mut checkpoint = checkpoint_of(&Model::new(1));
    let missing = checkpoint.restore(dir.path().join("nowhere")).unwrap_err();
    assert!(matches!(missing, Error::NotFound { .. }) && missing.to_string().contains("nowhere"), "{missing}");
    checkpoint.save(dir.path().join("ckpt"))?;
    let directory = checkpoint.restore(dir.path()).unwrap_err();
    assert!(directory.to_string().contains("holds checkpoints"), "{directory}");
    let usage = checkpoint.save(dir.path().join("..")).unwrap_err();
    assert!(matches!(usage, Error::InvalidArgument(_)), "{usage}");
    let file = dir.path().join("file");
    fs::write(&file, "x")?;
    let not_a_directory = checkpoint.save(file.join("ckpt")).unwrap_err();
    assert!(not_a_directory.to_string().contains("file"), "{not_a_directory}");
    Ok(())
}

#[test]
fn the_index_follows_saves_and_is_only_a_hint() -> Outcome {
    let dir = tempfile::tempdir()?;
    let mut checkpoint = checkpoint_of(&Model::new(1));
    let first = checkpoint.save(dir.path().join("ckpt"))?;
    let second = checkpoint.save(dir.path().join("ckpt"))?;
    assert_eq!(latest_checkpoint(dir.path())?, Some(second));
    for text in ["", "garbage", "{\"latest\":\"../../etc\"}"] {
        fs::write(dir.path().join("checkpoint.json"), text)?;
        assert_eq!(latest_checkpoint(dir.path())?, Some(dir.path().join("ckpt-2").into()));
    }
    fs::remove_dir_all(dir.path().join("ckpt-2"))?;
    assert_eq!(latest_checkpoint(dir.path())?, Some(first));
    assert_eq!(checkpoint.save(dir.path().join("ckpt"))?, dir.path().join("ckpt-3"));
    Ok(())
}

#[test]
fn progress_counts_every_byte_once_or_twice() {
    let temp = tempfile::tempdir().unwrap();
    let weights = Memory::seeded(5_000_000, 1);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let note = |seen: &Arc<Mutex<Vec<Progress>>>| {
        let seen = seen.clone();
        move |progress| seen.lock().unwrap().push(progress)
    };
    let mut checkpoint = Checkpoint::new().track("weights", &weights).unwrap();
    let options = SaveOptions::new().on_progress(note(&seen));
    let path = checkpoint.save_with(temp.path().join("ckpt"), &options).unwrap();
    let file = path.join("weights.safetensors").metadata().unwrap().len();
    let saved = std::mem::take(&mut *seen.lock().unwrap());
    assert!(saved.len() > 3 && saved.iter().all(|progress| progress.total == file), "{saved:?}");
    assert_eq!(saved.iter().map(|progress| progress.done).max(), Some(file));
    for (options, passes) in [(RestoreOptions::new(), 2), (RestoreOptions::new().verify(Verify::WhileReading), 1)] {
        checkpoint.restore_with(&path, &options.on_progress(note(&seen))).unwrap();
        let restored = std::mem::take(&mut *seen.lock().unwrap());
        let last = restored.iter().max_by_key(|progress| progress.done).unwrap();
        assert_eq!((last.done, last.total, last.percent()), (passes * 20_000_000, passes * 20_000_000, 100.0));
    }
}

/// A tensor during whose reading a step ends, as if on another thread.
#[derive(Clone)]
struct Interrupted(Memory, Steps);

impl TensorLeaf for Interrupted {
    fn spec(&self) -> Result<TensorSpec, BoxError> {
        self.0.spec()
    }

    fn bytes(&self) -> Result<Box<dyn TensorBytes>, BoxError> {
        self.1.0.fetch_add(1, Ordering::SeqCst);
        TensorLeaf::bytes(&self.0)
    }

    fn target(&self) -> Result<Box<dyn TensorTarget>, BoxError> {
        self.0.target()
    }
}

#[test]
fn a_step_that_ends_during_a_save_makes_it_fail() {
    for other in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let (steps, others) = (Steps::default(), Steps::default());
        let tensor = Interrupted(Memory::seeded(10, 1), if other { others } else { steps.clone() });
        let checkpoint = Checkpoint::new().track("optimizer", Node::collection(steps)).unwrap();
        let mut checkpoint = checkpoint.track("weights", Node::tensor(tensor)).unwrap();
        let saved = checkpoint.save(dir.path().join("run"));
        assert_eq!(saved.is_ok(), other);
        if let Err(error) = saved {
            assert!(matches!(&error, Error::Object { name, .. } if name == "optimizer/steps"), "{error:?}");
            assert!(error.to_string().contains("a step on another thread"), "{error}");
            assert!(checkpoints(dir.path()).unwrap().is_empty());
        }
        // Nor is it copied to memory, or exported, or saved alone, even without the object that makes the steps.
        assert_eq!(checkpoint.snapshot().is_ok(), other);
        let part = checkpoint.get("weights").unwrap();
        assert_eq!(part.write(dir.path().join("part")).is_ok(), other);
        assert_eq!(dir.path().join("part").exists(), other);
        #[cfg(feature = "huggingface")]
        assert_eq!(
            checkpoint.export_weights(dir.path().join("weights.safetensors"), &WeightsExport::of(["weights"])).is_ok(),
            other
        );
        // The state that a guard has noted is only saved as a whole.
        let mut manager =
            CheckpointManager::builder(checkpoint, dir.path().join("guarded")).save_every(10).open().unwrap();
        let result = manager.guard(|manager| {
            manager.save_if_due(1)?;
            Err::<(), _>(Error::Assertion("no data".into()))
        });
        assert_eq!(result.unwrap_err().to_string(), "no data");
        assert_eq!(checkpoints(dir.path().join("guarded")).unwrap().len(), usize::from(other));
        manager.close().unwrap();
    }
}

#[test]
fn a_step_that_ends_while_an_asset_is_written_makes_the_save_fail() {
    let dir = tempfile::tempdir().unwrap();
    let steps = Steps::default();
    let checkpoint = Checkpoint::new().track("optimizer", Node::collection(steps.clone())).unwrap();
    let mut checkpoint = checkpoint.track("weights", Memory::seeded(10, 1)).unwrap();
    for ends in [true, false] {
        let path = dir.path().join(ends.to_string());
        // As the program of a saved model, it may be read from the live tensors.
        let program = AssetStream::new("program.pt", 1, |out| {
            steps.0.fetch_add(u64::from(ends), Ordering::SeqCst);
            out.write_all(b"x")
        });
        match checkpoint.write_with_assets(&path, &SaveOptions::new(), [program]) {
            Err(Error::Object { name, .. }) => assert!(ends && name == "optimizer/steps", "{name}"),
            saved => assert!(!ends && saved.is_ok()),
        }
        assert_eq!(path.exists(), !ends);
    }
}

#[test]
fn a_part_that_is_no_longer_tracked_has_its_own_steps() {
    let dir = tempfile::tempdir().unwrap();
    let steps = Steps::default();
    let tensor = Interrupted(Memory::seeded(10, 1), steps.clone());
    let model = Node::group([("steps", Node::collection(steps)), ("weights", Node::tensor(tensor))]);
    let mut checkpoint = Checkpoint::new().track("model", model).unwrap();
    let part = checkpoint.get("model").unwrap();
    checkpoint.untrack("model");
    checkpoint.track_mut("model", Memory::seeded(10, 2)).unwrap();
    assert!(part.write(dir.path().join("part")).is_err());
    checkpoint.get("model").unwrap().write(dir.path().join("other")).unwrap();
}

#[test]
fn a_step_during_the_last_save_of_weights_alone_makes_it_fail() {
    for other in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let (steps, others) = (Steps::default(), Steps::default());
        let tensor = Interrupted(Memory::seeded(10, 1), if other { others } else { steps.clone() });
        let checkpoint = Checkpoint::new().track("optimizer", Node::collection(steps)).unwrap();
        let checkpoint = checkpoint.track("weights", Node::tensor(tensor)).unwrap();
        let preemption = Preemption::new().grace(Duration::ZERO).save_only(["weights"]);
        let builder = CheckpointManager::builder(checkpoint, dir.path()).preemption(preemption.clone());
        let mut manager = builder.open().unwrap();
        preemption.request();
        assert_eq!(manager.save_if_due(1).is_ok(), other);
        assert_eq!(checkpoints(dir.path()).unwrap().len(), usize::from(other));
    }
}
