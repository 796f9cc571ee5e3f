//! Restores with exceptions, of objects that are tracked later, and what they leave behind; with tensors in plain
//! memory.

mod common;

use common::Memory;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tch_checkpoint::map::NameMap;
use tch_checkpoint::repository::{self, Posix, Storage};
use tch_checkpoint::{
    Checkpoint, Child, Collection, Counter, Created, Dtype, Error, Identity, Location, Node, RestoreOptions,
    RestoreReport, SavedTree, SkipReason, TensorBytes, TensorLeaf, TensorSpec, TensorTarget, Trackable, Value, Verify,
};

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn group<const N: usize>(children: [(&str, Node); N]) -> Node {
    Node::group(children)
}

fn mismatch(result: Result<tch_checkpoint::RestoreStatus, Error>) -> (RestoreReport, String) {
    let error = result.unwrap_err();
    let text = error.to_string();
    match error {
        Error::Mismatch { report, .. } => (*report, text),
        other => panic!("a mismatch, not {other}"),
    }
}

/// The files that this process holds open below a directory.
fn open_files(below: &Path) -> Vec<PathBuf> {
    let below = fs::canonicalize(below).unwrap();
    let links = fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
    links.filter(|path| path.starts_with(&below)).collect()
}

// ------------------------------------------------------------------------------------------ exceptions

#[test]
fn allow_mismatch_does_not_forgive_what_is_missing_nor_the_other_way_round() -> Outcome {
    let dir = tempfile::tempdir()?;
    let path = Checkpoint::new().track("encoder", Memory::seeded(4, 1))?.write(dir.path().join("c"))?;
    let (encoder, decoder) = (Memory::seeded(4, 2), Memory::seeded(4, 3));
    let mut checkpoint =
        Checkpoint::new().track("encoder", &encoder)?.track("decoder", group([("w", decoder.node())]))?;
    let before = encoder.bytes().clone();
    let options = RestoreOptions::new().allow_mismatch("decoder/*").allow_mismatch("*");
    let (report, text) = mismatch(checkpoint.restore_with(&path, &options));
    assert_eq!((report.missing.as_slice(), report.mismatched.len()), (&["decoder/w".to_string()][..], 0));
    assert!(text.contains("allow_missing(\"decoder/w\")") && text.contains("skip(\"decoder\")"), "{text}");
    assert_eq!(*encoder.bytes(), before);

    let wrong = Memory::seeded(5, 1);
    let mut checkpoint = Checkpoint::new().track("encoder", &wrong)?;
    let (report, text) = mismatch(checkpoint.restore_with(&path, &RestoreOptions::new().allow_missing("*")));
    assert_eq!((report.missing.len(), report.mismatched.len()), (0, 1));
    assert!(text.contains("allow_mismatch(\"encoder\")"), "{text}");
    Ok(())
}

#[test]
fn what_an_exception_leaves_alone_is_skipped_with_the_reason_and_not_missing() -> Outcome {
    let dir = tempfile::tempdir()?;
    let path = Checkpoint::new()
        .track("a", Memory::seeded(4, 1))?
        .track("b", Memory::seeded(4, 2))?
        .write(dir.path().join("c"))?;
    let (a, b, c) = (Memory::seeded(4, 7), Memory::seeded(9, 8), Memory::seeded(4, 9));
    let before = (b.bytes().clone(), c.bytes().clone());
    let mut checkpoint = Checkpoint::new().track("a", &a)?.track("b", &b)?.track("c", &c)?;
    let options = RestoreOptions::new().allow_mismatch("b").allow_missing("c");
    let status = checkpoint.restore_with(&path, &options)?;
    let report = status.report();
    assert_eq!(
        (report.matched.as_slice(), report.missing.len(), report.mismatched.len()),
        (&["a".to_string()][..], 0, 0)
    );
    let skipped: Vec<_> = report.skipped.iter().map(|skipped| (skipped.key.as_str(), &skipped.why)).collect();
    assert!(matches!(skipped[0], ("b", SkipReason::Mismatch(reason)) if reason.contains("F32 [9]")), "{skipped:?}");
    assert_eq!(skipped[1], ("c", &SkipReason::Missing));
    assert_eq!((b.bytes().clone(), c.bytes().clone()), before);
    let refusal = status.assert_existing_objects_matched().unwrap_err().to_string();
    assert!(refusal.contains("\"b\"") && refusal.contains("\"c\""), "{refusal}");
    Ok(())
}

/// What was left alone is forgotten with the object, and what comes later is in the report as if it had been there.
#[test]
fn the_report_follows_objects_that_are_replaced() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (body, head) = (Memory::seeded(4, 1), Memory::seeded(4, 2));
    let path = Checkpoint::new().track("body", &body)?.track("head", &head)?.write(dir.path().join("c"))?;
    let mut checkpoint = Checkpoint::new().track("body", Memory::seeded(4, 7))?.track("head", Memory::seeded(9, 8))?;
    let status = checkpoint.restore_with(&path, &RestoreOptions::new().allow_mismatch("head"))?;
    assert!(status.assert_existing_objects_matched().is_err());
    checkpoint.untrack("head");
    status.assert_existing_objects_matched()?;
    let right = Memory::seeded(4, 9);
    checkpoint.track_mut("head", &right)?;
    assert_eq!(*right.bytes(), *head.bytes());
    status.assert_consumed()?;

    let map = NameMap::new().rename("body", "encoder").rename("head", "decoder");
    let mut checkpoint = Checkpoint::new().track("encoder", Memory::seeded(4, 7))?;
    let status = checkpoint.restore_with(&path, &RestoreOptions::new().map(map))?;
    checkpoint.track_mut("decoder", Memory::seeded(4, 8))?;
    let mapped: Vec<String> = status.report().mapped.iter().map(|mapping| mapping.key.clone()).collect();
    assert_eq!(mapped, ["encoder", "decoder"]);
    status.assert_consumed()?;
    Ok(())
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Progress {
    epoch: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Longer {
    epoch: u32,
    best: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct WithDefault {
    epoch: u32,
    #[serde(default)]
    best: f64,
}

#[test]
fn a_field_more_in_a_saved_struct_has_ways_that_work_and_are_named() -> Outcome {
    let dir = tempfile::tempdir()?;
    let path = Checkpoint::new()
        .track("progress", Value::new(Progress { epoch: 3 }))?
        .track("step", Counter::new(7))?
        .write(dir.path().join("c"))?;
    let (longer, step) = (Value::new(Longer { epoch: 0, best: 0.5 }), Counter::new(0));
    let mut checkpoint = Checkpoint::new().track("progress", &longer)?.track("step", &step)?;
    let (_, text) = mismatch(checkpoint.restore(&path));
    for way in ["missing field `best`", "#[serde(default)]", "allow_mismatch(\"progress\")", "skip(\"progress\")"] {
        assert!(text.contains(way), "{way}: {text}");
    }
    // Each of the ways.
    let status = checkpoint.restore_with(&path, &RestoreOptions::new().allow_mismatch("progress"))?;
    assert_eq!((longer.get(), step.get()), (Longer { epoch: 0, best: 0.5 }, 7));
    assert!(matches!(status.report().skipped[0].why, SkipReason::Mismatch(_)));
    step.set(0);
    checkpoint.restore_with(&path, &RestoreOptions::new().skip("progress"))?.assert_consumed()?;
    assert_eq!((longer.get().epoch, step.get()), (0, 7));
    let with_default = Value::new(WithDefault { epoch: 0, best: 1.0 });
    let mut checkpoint = Checkpoint::new().track("progress", &with_default)?.track("step", &step)?;
    checkpoint.restore(&path)?.assert_consumed()?;
    assert_eq!(with_default.get(), WithDefault { epoch: 3, best: 0.0 });
    Ok(())
}

#[test]
fn a_skipped_object_keeps_its_values_now_and_when_it_is_tracked_later() -> Outcome {
    let dir = tempfile::tempdir()?;
    let saved = group([("lr", Value::new(0.1).node()), ("state", group([("m", Memory::seeded(4, 1).node())]))]);
    let path =
        Checkpoint::new().track("optimizer", saved)?.track("step", Counter::new(7))?.write(dir.path().join("c"))?;
    // Another optimizer altogether: another type of value, another shape, another name.
    let step = Counter::new(0);
    let (lr, m, v) = (Value::new("high".to_string()), Memory::seeded(5, 2), Memory::seeded(1, 3));
    let optimizer = || group([("lr", lr.node()), ("state", group([("m", m.node()), ("v", v.node())]))]);
    for pattern in ["optimizer", "optimizer/*", "opt*"] {
        step.set(0);
        let before = m.bytes().clone();
        let mut checkpoint = Checkpoint::new().track("optimizer", optimizer())?.track("step", &step)?;
        let status = checkpoint.restore_with(&path, &RestoreOptions::new().skip(pattern))?;
        status.assert_consumed()?;
        assert!(status.report().skipped.iter().all(|skipped| skipped.why == SkipReason::Requested));
        assert!(!status.report().skipped.is_empty());
        assert_eq!((step.get(), lr.get().as_str(), &*m.bytes()), (7, "high", &before), "{pattern}");

        let mut checkpoint = Checkpoint::new().track("step", &step)?;
        let status = checkpoint.restore_with(&path, &RestoreOptions::new().skip(pattern))?;
        checkpoint.track_mut("optimizer", optimizer())?;
        status.assert_consumed()?;
        assert_eq!((lr.get().as_str(), &*m.bytes()), ("high", &before), "{pattern}");
    }
    Ok(())
}

#[test]
fn exceptions_hold_for_what_is_tracked_later() -> Outcome {
    let dir = tempfile::tempdir()?;
    let path = Checkpoint::new()
        .track("early", Counter::new(5))?
        .track("late", group([("a", Memory::seeded(4, 1).node()), ("b", Memory::seeded(4, 2).node())]))?
        .write(dir.path().join("c"))?;
    let (a, b, c) = (Memory::seeded(4, 7), Memory::seeded(9, 8), Memory::seeded(4, 9));
    let late = || group([("a", a.node()), ("b", b.node()), ("c", c.node())]);
    let early = Counter::new(0);
    let before = (b.bytes().clone(), c.bytes().clone());

    let mut checkpoint = Checkpoint::new().track("early", &early)?;
    checkpoint.restore(&path)?;
    assert!(matches!(checkpoint.track_mut("late", late()), Err(Error::Mismatch { .. })));

    let options = RestoreOptions::new().allow_mismatch("late/b").allow_missing("late/c");
    let status = checkpoint.restore_with(&path, &options)?;
    checkpoint.track_mut("late", late())?;
    assert_eq!(*a.bytes(), *Memory::seeded(4, 1).bytes());
    assert_eq!((b.bytes().clone(), c.bytes().clone()), before);
    assert_eq!(status.report().skipped.len(), 2);
    assert!(status.assert_existing_objects_matched().is_err());
    Ok(())
}

#[test]
fn messages_are_bounded() -> Outcome {
    let dir = tempfile::tempdir()?;
    let path = Checkpoint::new().track("n", Counter::new(1))?.write(dir.path().join("c"))?;
    let mut node = Counter::new(0).node();
    for i in 0..60 {
        let children: Vec<(String, Node)> = vec![(format!("{i}{}", "x".repeat(250)), node)];
        node = Node::group(children);
    }
    let many: Vec<Node> = (0..1000).map(|_| node.clone()).collect();
    let (report, text) = mismatch(Checkpoint::new().track("deep", many)?.restore(&path));
    assert_eq!(report.missing.len(), 1000);
    assert!(text.len() < 10_000, "{} bytes", text.len());
    Ok(())
}

// ------------------------------------------------------------------------------------------ slots that a restore makes

/// An optimizer's slots: one per variable, made by a restore where there is none; of the variable's shape or not at
/// all.
#[derive(Clone, Default)]
struct Slots {
    shapes: BTreeMap<String, u64>,
    slots: Arc<Mutex<BTreeMap<String, Memory>>>,
    asked: Arc<AtomicUsize>,
}

impl Collection for Slots {
    fn children(&self) -> Result<Vec<Child>, tch_checkpoint::BoxError> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let group = |slot: &Memory| group([("m", slot.node())]);
        Ok(self.slots.lock().unwrap().iter().map(|(name, slot)| Child::new(name, group(slot))).collect())
    }

    fn create(&self, name: &str, saved: &SavedTree) -> Result<Option<Created>, tch_checkpoint::BoxError> {
        let spec = saved.children["m"].tensor.clone().ok_or("not a tensor")?;
        match self.shapes.get(name) {
            Some(&wanted) if spec.shape != [wanted] => {
                Err(format!("the slot is {spec}, the variable needs [{wanted}]").into())
            }
            _ => {
                let (slots, name, slot) = (self.slots.clone(), name.to_string(), Memory::seeded(spec.shape[0], 0));
                let adopt = move |slot| drop(slots.lock().unwrap().insert(name, slot));
                Ok(Some(Created::new(group([("m", slot.node())]), move || adopt(slot))))
            }
        }
    }

    fn may_lack(&self, _: &str) -> bool {
        true
    }

    fn remove(&self, names: &[String]) {
        self.slots.lock().unwrap().retain(|name, _| !names.contains(name));
    }
}

impl Trackable for Slots {
    fn node(&self) -> Node {
        group([("state", Node::collection(self.clone()))])
    }
}

fn slots<const N: usize>(shapes: [(&str, u64); N]) -> Slots {
    Slots { shapes: shapes.map(|(name, count)| (name.to_string(), count)).into(), ..Slots::default() }
}

#[test]
fn exceptions_reach_slots_that_the_restore_would_make() -> Outcome {
    let dir = tempfile::tempdir()?;
    let saved = slots([("body.w", 4), ("head.w", 4)]);
    for name in ["body.w", "head.w"] {
        saved.slots.lock().unwrap().insert(name.into(), Memory::seeded(4, 1));
    }
    let path =
        Checkpoint::new().track("optimizer", &saved)?.track("n", Counter::new(1))?.write(dir.path().join("c"))?;
    let fresh = || slots([("body.w", 4), ("head.w", 7)]);
    let build = |fresh: &Slots| Checkpoint::new().track("optimizer", fresh)?.track("n", Counter::new(0));
    let (report, text) = mismatch(build(&fresh())?.restore(&path));
    assert_eq!(report.mismatched[0].key, "optimizer/state/head.w");
    assert!(text.contains("allow_mismatch(\"optimizer/state/head.w\")"), "{text}");
    for pattern in ["optimizer/state/head.w*", "optimizer/state/head.w", "optimizer/state/head.w/*", "*head*", "*"] {
        let fresh = fresh();
        let status = build(&fresh)?.restore_with(&path, &RestoreOptions::new().allow_mismatch(pattern))?;
        assert_eq!(fresh.slots.lock().unwrap().keys().collect::<Vec<_>>(), ["body.w"], "{pattern}");
        assert!(matches!(&status.report().skipped[..], [one] if one.key == "optimizer/state/head.w"), "{pattern}");
    }
    for option in [RestoreOptions::new().skip("optimizer/state/head.w*"), RestoreOptions::new().skip("*head.w/m")] {
        let fresh = fresh();
        let result = build(&fresh)?.restore_with(&path, &option);
        if result.is_ok() {
            assert_eq!(fresh.slots.lock().unwrap().keys().collect::<Vec<_>>(), ["body.w"]);
        }
    }
    assert!(build(&fresh())?.restore_with(&path, &RestoreOptions::new().allow_missing("*")).is_err());
    // If a part of what would be created is left out, all of it is, so that nothing is filled partly.
    let fresh = slots([("body.w", 4), ("head.w", 4)]);
    build(&fresh)?.restore_with(&path, &RestoreOptions::new().skip("optimizer/state/head.w/m"))?.assert_consumed()?;
    assert_eq!(fresh.slots.lock().unwrap().keys().collect::<Vec<_>>(), ["body.w"]);
    Ok(())
}

#[test]
fn a_restore_walks_the_graph_once_and_tracking_walks_what_is_added() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (first, second) = (slots([]), slots([]));
    let path = Checkpoint::new()
        .track("first", &first)?
        .track("second", &second)?
        .track("n", Counter::new(1))?
        .write(dir.path().join("c"))?;
    let asked = |slots: &Slots| slots.asked.swap(0, Ordering::Relaxed);
    let mut checkpoint = Checkpoint::new().track("first", &first)?;
    let _ = (asked(&first), asked(&second));
    checkpoint.track_mut("second", &second)?;
    checkpoint.track_mut("n", Counter::new(0))?;
    assert_eq!((asked(&first), asked(&second)), (0, 1));
    checkpoint.restore(&path)?;
    assert_eq!((asked(&first), asked(&second)), (1, 1));
    Ok(())
}

#[test]
fn tracking_many_objects_takes_time_in_proportion() -> Outcome {
    let time = |count: usize| -> Result<f64, Error> {
        let start = thread_time();
        let mut checkpoint = Checkpoint::new();
        for i in 0..count {
            checkpoint.track_mut(&format!("object {i}"), Counter::new(0))?;
        }
        Ok(thread_time() - start)
    };
    time(1000)?;
    let (few, many) = (time(2_000)?, time(20_000)?);
    assert!(many < few * 40.0, "2,000 in {few:.3} s, 20,000 in {many:.3} s");

    // Also if an earlier restore has their values.
    let dir = tempfile::tempdir()?;
    let places: [(Arc<dyn Storage>, Location); 2] = [
        (Arc::new(Posix::default()), dir.path().into()),
        (Arc::new(repository::Memory::default()), "mem://run".into()),
    ];
    for (storage, root) in places {
        let (few, many) = (fill(&storage, &root, 200)?, fill(&storage, &root, 2_000)?);
        assert!(many < few * 40.0, "200 in {few:.3} s, 2,000 in {many:.3} s, in {root}");
    }
    Ok(())
}

/// The time of the processor that this thread has used, in seconds: how busy the machine is does not matter.
fn thread_time() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// The time to track so many objects that an earlier restore has values for.
fn fill(storage: &Arc<dyn Storage>, root: &Location, count: u64) -> Result<f64, Error> {
    let mut saver = Checkpoint::in_storage(storage.clone());
    for i in 0..count {
        saver.track_mut(&format!("object {i}"), Memory::seeded(4, i))?;
    }
    let path = saver.write(root.join(format!("of-{count}")))?;
    has_settled(&path);
    let objects: Vec<Memory> = (0..count).map(|i| Memory::seeded(4, count + i)).collect();
    let mut checkpoint = Checkpoint::in_storage(storage.clone());
    let status = checkpoint.restore(&path)?;
    let start = thread_time();
    for (i, object) in objects.iter().enumerate() {
        checkpoint.track_mut(&format!("object {i}"), object)?;
    }
    let time = thread_time() - start;
    status.assert_consumed()?;
    assert!((0..count).zip(&objects).all(|(i, object)| *object.bytes() == *Memory::seeded(4, i).bytes()));
    Ok(time)
}

/// Makes the manifest of a checkpoint seem to have been written long ago: until then, it may change again without
/// getting another time of modification.
fn has_settled(checkpoint: &Path) {
    if let Ok(manifest) = fs::File::options().write(true).open(checkpoint.join("manifest.json")) {
        manifest.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(60)).unwrap();
    }
}

#[test]
fn what_happens_to_a_checkpoint_is_noticed_by_what_is_tracked_later() -> Outcome {
    let dir = tempfile::tempdir()?;
    let all = ["first", "byte", "header", "short", "gone", "exchanged", "sound", "again", "last", "never"];
    let path = dir.path().join("c");
    let save = |seed: u64| -> Result<Location, Error> {
        let mut saver = Checkpoint::new();
        for (name, i) in all.iter().zip(seed..) {
            saver.track_mut(name, group([("w", Memory::seeded(100, i).node()), ("n", Counter::new(i).node())]))?;
        }
        saver.write(&path)
    };
    save(1)?;
    has_settled(&path);
    let mut checkpoint = Checkpoint::new();
    let status = checkpoint.restore(&path)?;
    let mut track = |name: &str| -> Result<(), Error> {
        let (memory, counter) = (Memory::seeded(100, 99), Counter::new(99));
        let before = memory.bytes().clone();
        let result = checkpoint.track_mut(name, group([("w", memory.node()), ("n", counter.node())]));
        let seed = all.iter().position(|other| *other == name).unwrap() as u64 + 1;
        match result.is_ok() {
            true => assert_eq!((&*memory.bytes(), counter.get()), (&*Memory::seeded(100, seed).bytes(), seed)),
            false => assert_eq!((&*memory.bytes(), counter.get()), (&before, 99), "{name}"),
        }
        result
    };
    let file = |name: &str| path.join(format!("{name}.safetensors"));
    track("first")?;

    // Its own files.
    damage(&file("byte"))?;
    let mut header = fs::read(file("header"))?;
    header[9] ^= 1;
    fs::write(file("header"), header)?;
    fs::write(file("short"), &fs::read(file("short"))?[1..])?;
    fs::remove_file(file("gone"))?;
    fs::copy(file("last"), file("exchanged"))?;
    for name in ["byte", "header", "short", "gone", "exchanged"] {
        let error = track(name).unwrap_err();
        assert!(matches!(&error, Error::Damaged { path, .. } if *path == file(name)), "{name}: {error}");
    }
    // Those of others say nothing about it, unless all are restored.
    track("sound")?;
    assert!(matches!(Checkpoint::new().restore(&path), Err(Error::Damaged { .. })));

    // The manifest.
    let manifest = fs::read(path.join("manifest.json"))?;
    damage(&path.join("manifest.json"))?;
    let error = track("again").unwrap_err();
    assert!(matches!(&error, Error::Damaged { path: named, .. } if *named == path.join("manifest.json")), "{error}");
    fs::write(path.join("manifest.json"), manifest)?;
    track("again")?;
    has_settled(&path);
    track("last")?;

    // All of it.
    fs::remove_dir_all(&path)?;
    let error = track("never").unwrap_err();
    assert!(matches!(&error, Error::NotFound { .. }) && error.to_string().contains("was removed"), "{error}");
    save(1)?;
    has_settled(&path);
    let error = track("never").unwrap_err();
    assert!(matches!(&error, Error::NotFound { .. }) && error.to_string().contains("another checkpoint"), "{error}");
    assert_eq!(status.report().unused.len(), 2 * 6);
    Ok(())
}

// ------------------------------------------------------------------------------------------ after the restore

#[test]
fn a_finished_restore_holds_no_files() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (model, optimizer) = (Memory::seeded(1000, 1), Memory::seeded(1000, 2));
    let mut saver = Checkpoint::new().track("model", &model)?.track("optimizer", &optimizer)?;
    let mut evaluator = Checkpoint::new().track("model", Memory::seeded(1000, 3))?;
    let mut statuses = Vec::new();
    for i in 0..50 {
        saver.write(dir.path().join(format!("c{i}")))?;
    }
    for i in 0..1000 {
        let path = dir.path().join(format!("c{}", i % 50));
        statuses.push(evaluator.restore(&path)?);
        assert_eq!(open_files(&path), [] as [PathBuf; 0], "{i}");
    }
    assert_eq!(open_files(dir.path()), [] as [PathBuf; 0]);
    // All of it is taken, too.
    saver.restore(dir.path().join("c3"))?.assert_consumed()?;
    assert_eq!(open_files(dir.path()), [] as [PathBuf; 0]);
    evaluator.track_mut("optimizer", Memory::seeded(1000, 4))?;
    assert_eq!(open_files(dir.path()), [] as [PathBuf; 0]);
    Ok(())
}

#[test]
fn a_checkpoint_that_was_removed_before_its_values_were_taken_is_an_error_that_names_it() -> Outcome {
    let dir = tempfile::tempdir()?;
    let save = |name: &str, late: u64| -> Result<Location, Error> {
        Checkpoint::new()
            .track("early", Counter::new(5))?
            .track("late", Counter::new(late))?
            .write(dir.path().join(name))
    };
    let path = save("c", 6)?;
    let (early, late) = (Counter::new(0), Counter::new(0));
    let mut checkpoint = Checkpoint::new().track("early", &early)?;
    let status = checkpoint.restore(&path)?;
    fs::remove_dir_all(&path)?;
    let error = checkpoint.track_mut("late", &late).unwrap_err();
    assert!(matches!(&error, Error::NotFound { path: named, .. } if *named == path), "{error}");
    assert!(error.to_string().contains("\"late\"") && error.to_string().contains("expect_partial"), "{error}");
    // Another one in its place is not that one.
    save("c", 99)?;
    let error = checkpoint.track_mut("late", &late).unwrap_err().to_string();
    assert!(error.contains("another checkpoint"), "{error}");
    assert_eq!(late.get(), 0);
    status.expect_partial();
    checkpoint.track_mut("late", &late)?;
    assert_eq!(late.get(), 0);
    assert!(status.assert_existing_objects_matched().is_err(), "it got no value");
    Ok(())
}

#[test]
fn a_process_that_changes_its_directory_fills_from_the_same_checkpoint() -> Outcome {
    // In a process of its own: the working directory belongs to all threads.
    if std::env::var_os("RESTORE_CHDIR").is_none() {
        let name = "a_process_that_changes_its_directory_fills_from_the_same_checkpoint";
        let status = std::process::Command::new(std::env::current_exe()?)
            .args(["--exact", name])
            .env("RESTORE_CHDIR", "1")
            .output()?;
        assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stdout));
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    std::env::set_current_dir(dir.path())?;
    fs::create_dir("elsewhere")?;
    Checkpoint::new().track("a", Counter::new(1))?.track("b", Counter::new(2))?.write("c")?;
    let (a, b) = (Counter::new(0), Counter::new(0));
    let mut checkpoint = Checkpoint::new().track("a", &a)?;
    checkpoint.restore("c")?;
    std::env::set_current_dir("elsewhere")?;
    checkpoint.track_mut("b", &b)?;
    assert_eq!((a.get(), b.get()), (1, 2));
    Ok(())
}

#[test]
fn of_several_restores_the_newest_that_has_the_object_counts() -> Outcome {
    let dir = tempfile::tempdir()?;
    let save = |name: &str, a: u64, others: &[(&str, u64)]| -> Result<Location, Error> {
        let mut checkpoint = Checkpoint::new().track("a", Counter::new(a))?;
        for (name, value) in others {
            checkpoint.track_mut(name, Counter::new(*value))?;
        }
        checkpoint.write(dir.path().join(name))
    };
    let first = save("first", 1, &[("b", 10), ("c", 100)])?;
    let second = save("second", 2, &[("b", 20)])?;
    let (a, b, c) = (Counter::new(0), Counter::new(0), Counter::new(0));
    let mut checkpoint = Checkpoint::new().track("a", &a)?;
    let older = checkpoint.restore(&first)?;
    let newer = checkpoint.restore(&second)?;
    checkpoint.track_mut("b", &b)?;
    checkpoint.track_mut("c", &c)?;
    assert_eq!((a.get(), b.get(), c.get()), (2, 20, 100));
    assert!(newer.assert_consumed().unwrap_err().to_string().contains("\"c\""), "c is tracked and not of it");
    assert!(older.assert_consumed().is_err(), "its value of b was never taken");

    // A newer restore that waits for nothing of it does not bring the older one back.
    let mut checkpoint = Checkpoint::new().track("a", &a)?;
    checkpoint.restore(&first)?;
    checkpoint.restore(&second)?.expect_partial();
    b.set(0);
    checkpoint.track_mut("b", &b)?;
    assert_eq!(b.get(), 0);
    Ok(())
}

#[test]
fn assertions_look_at_the_objects_as_they_are() -> Outcome {
    let dir = tempfile::tempdir()?;
    let path = Checkpoint::new().track("early", Counter::new(5))?.write(dir.path().join("c"))?;
    let mut checkpoint = Checkpoint::new().track("early", Counter::new(0))?;
    let status = checkpoint.restore(&path)?;
    status.assert_consumed()?;
    checkpoint.track_mut("late", Counter::new(0))?;
    let refusal = status.assert_existing_objects_matched().unwrap_err().to_string();
    assert!(refusal.contains("\"late\""), "{refusal}");
    assert_eq!(status.report().missing, ["late"]);
    assert!(status.assert_consumed().is_err());
    assert!(checkpoint.untrack("late"));
    status.assert_consumed()?;
    Ok(())
}

/// Variables that are created with the layers of a model.
#[derive(Clone, Default)]
struct Store(Arc<Mutex<BTreeMap<String, Memory>>>);

impl Store {
    fn with(names: &[&str], seed: u64) -> Store {
        let store = Store::default();
        names.iter().for_each(|name| store.make(name, seed));
        store
    }

    fn make(&self, name: &str, seed: u64) {
        self.0.lock().unwrap().insert(name.to_string(), Memory::seeded(8, seed));
    }
}

impl Collection for Store {
    fn children(&self) -> Result<Vec<Child>, tch_checkpoint::BoxError> {
        Ok(self.0.lock().unwrap().iter().map(|(name, tensor)| Child::new(name, tensor.node())).collect())
    }
}

impl Trackable for Store {
    fn node(&self) -> Node {
        Node::collection(self.clone())
    }
}

#[test]
fn variables_created_after_the_restore_fail_the_assertion() -> Outcome {
    let dir = tempfile::tempdir()?;
    let path = Checkpoint::new().track("model", Store::with(&["w", "b"], 1))?.write(dir.path().join("c"))?;
    // All of it, or a part, is built afterwards.
    for before in [&[][..], &["w"][..]] {
        let model = Store::with(before, 2);
        let mut checkpoint = Checkpoint::new().track("model", &model)?;
        let status = checkpoint.restore(&path)?;
        ["w", "b"].iter().filter(|name| !before.contains(name)).for_each(|name| model.make(name, 3));
        let refusal = status.assert_existing_objects_matched().unwrap_err().to_string();
        assert!(refusal.contains("\"model/b\"") && refusal.contains("restore it again"), "{refusal}");
        assert!(status.assert_consumed().is_err());
        checkpoint.restore(&path)?.assert_consumed()?;
        assert_eq!(*model.0.lock().unwrap()["b"].bytes(), *Memory::seeded(8, 1).bytes());
    }
    // One that the checkpoint never had.
    let model = Store::with(&["w", "b"], 2);
    let mut checkpoint = Checkpoint::new().track("model", &model)?;
    let status = checkpoint.restore(&path)?;
    model.make("new", 3);
    let refusal = status.assert_existing_objects_matched().unwrap_err().to_string();
    assert!(refusal.contains("\"model/new\"") && !refusal.contains("restore it again"), "{refusal}");
    Ok(())
}

// ------------------------------------------------------------------------------------------ replacing

#[test]
fn a_list_that_has_grown_can_be_tracked_again() -> Outcome {
    let dir = tempfile::tempdir()?;
    let saved: Vec<Counter> = (10..13).map(Counter::new).collect();
    let path = Checkpoint::new().track("list", &saved)?.write(dir.path().join("c"))?;
    let mut list: Vec<Counter> = vec![Counter::new(0)];
    let mut checkpoint = Checkpoint::new().track("list", &list)?;
    let status = checkpoint.restore(&path)?;
    assert_eq!(list[0].get(), 10);
    list[0].set(77); // training goes on
    list.extend([Counter::new(0), Counter::new(0)]);
    assert!(checkpoint.track_mut("list", &list).unwrap_err().to_string().contains("untrack"));
    assert!(checkpoint.untrack("list") && !checkpoint.untrack("list"));
    checkpoint.track_mut("list", &list)?;
    let values: Vec<u64> = list.iter().map(Counter::get).collect();
    assert_eq!(values, [77, 11, 12], "what waited is filled, what was taken before is not given again");
    let refusal = status.assert_existing_objects_matched().unwrap_err().to_string();
    assert!(refusal.contains("\"list/0\"") && !refusal.contains("\"list/1\""), "{refusal}");
    checkpoint.restore(&path)?.assert_consumed()?;
    assert_eq!(list[0].get(), 10);
    // And it is saved as it is now.
    let again = checkpoint.write(dir.path().join("again"))?;
    Checkpoint::new()
        .track("list", (0..3).map(Counter::new).collect::<Vec<_>>())?
        .restore(&again)?
        .assert_consumed()?;
    Ok(())
}

#[test]
fn an_object_in_the_place_of_another_has_not_got_its_value() -> Outcome {
    let dir = tempfile::tempdir()?;
    let path =
        Checkpoint::new().track("a", Counter::new(5))?.track("B", Counter::new(6))?.write(dir.path().join("c"))?;
    let mut checkpoint = Checkpoint::new().track("a", Counter::new(0))?.track("B", Counter::new(0))?;
    let status = checkpoint.restore(&path)?;
    assert!(checkpoint.untrack("a"));
    status.assert_consumed()?;
    let another = Counter::new(1);
    checkpoint.track_mut("a", &another)?;
    assert_eq!(another.get(), 1);
    assert!(status.assert_existing_objects_matched().is_err());
    // Names that mean one file on some systems stay taken.
    assert!(!checkpoint.untrack("b"));
    assert!(checkpoint.track_mut("b", Counter::new(0)).unwrap_err().to_string().contains("case"));
    Ok(())
}

#[test]
fn an_object_that_contains_itself_is_refused() {
    #[derive(Clone)]
    struct Itself;
    impl Collection for Itself {
        fn children(&self) -> Result<Vec<Child>, tch_checkpoint::BoxError> {
            Ok(vec![Child::new("again", Node::collection(Itself))])
        }
    }
    let refusal = Checkpoint::new().track("loop", Node::collection(Itself)).unwrap_err();
    assert!(
        matches!(refusal, Error::InvalidName { .. }) && refusal.to_string().contains("contain itself"),
        "{refusal}"
    );
}

// ------------------------------------------------------------------------------------------ half restored

#[test]
fn what_a_restore_left_half_overwritten_must_get_a_value() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (a, b) = (Memory::seeded(300_000, 1), Memory::seeded(300_000, 2));
    let older = Checkpoint::new().track("a", &a)?.track("n", Counter::new(1))?.write(dir.path().join("older"))?;
    let both = || Checkpoint::new().track("a", &a)?.track("b", &b)?.track("n", Counter::new(0));
    let good = both()?.write(dir.path().join("good"))?;
    let bad = both()?.write(dir.path().join("bad"))?;
    let file = bad.join("b.safetensors");
    let mut bytes = fs::read(&file)?;
    *bytes.last_mut().ok_or("empty")? ^= 1;
    fs::write(&file, bytes)?;

    let mut checkpoint = both()?;
    let lenient = RestoreOptions::new().allow_missing("b").allow_mismatch("*").verify(Verify::WhileReading);
    assert!(matches!(checkpoint.restore_with(&bad, &lenient), Err(Error::PartlyRestored { .. })));
    for options in [lenient.clone(), RestoreOptions::new().skip("b"), RestoreOptions::new().skip("*")] {
        let error = checkpoint.restore_with(&older, &options).unwrap_err().to_string();
        assert!(
            error.contains("half-way") && error.starts_with(if error.starts_with('a') { "a:" } else { "b:" }),
            "{error}"
        );
    }
    // Nothing is saved of it.
    let error = checkpoint.write(dir.path().join("torn")).unwrap_err().to_string();
    assert!(error.contains("half-way"), "{error}");
    checkpoint.restore_with(&good, &lenient)?.assert_consumed()?;
    checkpoint.restore_with(&older, &lenient)?;
    checkpoint.write(dir.path().join("whole"))?;
    Ok(())
}

/// Damages the last byte of a file.
fn damage(file: &Path) -> Outcome {
    let mut bytes = fs::read(file)?;
    *bytes.last_mut().ok_or("empty")? ^= 1;
    Ok(fs::write(file, bytes)?)
}

fn refuses_to_save(checkpoint: &mut Checkpoint, dir: &Path) -> Outcome {
    let error = checkpoint.write(dir.join("torn")).unwrap_err().to_string();
    assert!(error.contains("half-way") && error.contains("reinitialized"), "{error}");
    assert!(checkpoint.snapshot().is_err());
    Ok(())
}

#[test]
fn whoever_has_a_partly_overwritten_tensor_does_not_save_it() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (a, b) = (Memory::seeded(300_000, 1), Memory::seeded(300_000, 2));
    let both = || Checkpoint::new().track("a", &a)?.track("b", &b);
    let good = both()?.write(dir.path().join("good"))?;
    let bad = both()?.write(dir.path().join("bad"))?;
    damage(&bad.join("b.safetensors"))?;
    let once = RestoreOptions::new().verify(Verify::WhileReading);

    // A checkpoint that is dropped, others that have the same tensors, and one that has them under another name.
    let mut older = both()?;
    assert!(matches!(both()?.restore_with(&bad, &once), Err(Error::PartlyRestored { .. })));
    refuses_to_save(&mut older, dir.path())?;
    refuses_to_save(&mut Checkpoint::new().track("other", &b)?, dir.path())?;
    assert!(older.untrack("a") && older.untrack("b"));
    older.track_mut("b", &b)?;
    refuses_to_save(&mut older, dir.path())?;
    Checkpoint::new().track("apart", Memory::seeded(10, 3))?.write(dir.path().join("apart"))?;
    assert!(older.reinitialized("a").is_err(), "it is not tracked");
    // A restore mends what it overwrites.
    older.restore_with(&good, &RestoreOptions::new().skip("a"))?;
    older.write(dir.path().join("b"))?;
    refuses_to_save(&mut Checkpoint::new().track("a", &a)?, dir.path())?;
    both()?.restore(&good)?;
    both()?.write(dir.path().join("both"))?;
    Ok(())
}

/// A tensor that does not tell which one it is.
struct Anonymous(Memory);

impl TensorLeaf for Anonymous {
    fn spec(&self) -> Result<TensorSpec, tch_checkpoint::BoxError> {
        self.0.spec()
    }

    fn bytes(&self) -> Result<Box<dyn TensorBytes>, tch_checkpoint::BoxError> {
        TensorLeaf::bytes(&self.0)
    }

    fn target(&self) -> Result<Box<dyn TensorTarget>, tch_checkpoint::BoxError> {
        self.0.target()
    }
}

/// Tensors whose nodes are made anew at each call. It creates those that a checkpoint has.
#[derive(Clone, Default)]
struct Layers(Arc<Mutex<BTreeMap<String, Memory>>>);

impl Layers {
    fn new(names: &[&str]) -> Layers {
        let layers = names.iter().map(|name| (name.to_string(), Memory::seeded(300_000, 1)));
        Layers(Arc::new(Mutex::new(layers.collect())))
    }
}

impl Collection for Layers {
    fn children(&self) -> Result<Vec<Child>, tch_checkpoint::BoxError> {
        let layers = self.0.lock().unwrap();
        Ok(layers.iter().map(|(name, layer)| Child::new(name, Node::tensor(Anonymous(layer.clone())))).collect())
    }

    fn create(&self, name: &str, _: &SavedTree) -> Result<Option<Created>, tch_checkpoint::BoxError> {
        let (layers, name, layer) = (self.0.clone(), name.to_string(), Memory::seeded(300_000, 2));
        let node = Node::tensor(Anonymous(layer.clone()));
        Ok(Some(Created::new(node, move || drop(layers.lock().unwrap().insert(name, layer)))))
    }
}

#[test]
fn a_tensor_whose_node_is_made_anew_is_known_to_be_partly_overwritten() -> Outcome {
    let dir = tempfile::tempdir()?;
    let layers = Layers::new(&["a", "b"]);
    let node = group([("layers", Node::collection(layers.clone()))]);
    let tracked = |name: &str| Checkpoint::new().track(name, &node);
    let good = tracked("model")?.write(dir.path().join("good"))?;
    let bad = tracked("model")?.write(dir.path().join("bad"))?;
    damage(&bad.join("model.safetensors"))?;
    let once = RestoreOptions::new().verify(Verify::WhileReading);
    let mut checkpoint = tracked("model")?;
    checkpoint.write(dir.path().join("planned"))?;
    assert!(matches!(checkpoint.restore_with(&bad, &once), Err(Error::PartlyRestored { .. })));
    // Under each name, and as a part; not what only looks like it.
    refuses_to_save(&mut checkpoint, dir.path())?;
    refuses_to_save(&mut tracked("other")?, dir.path())?;
    assert!(checkpoint.get("model").ok_or("it is tracked")?.write(dir.path().join("part")).is_err());
    let equal = group([("layers", Node::collection(Layers::new(&["a", "b"])))]);
    Checkpoint::new().track("model", equal)?.write(dir.path().join("equal"))?;
    checkpoint.restore(&good)?;
    tracked("other")?.write(dir.path().join("other"))?;
    assert!(matches!(checkpoint.restore_with(&bad, &once), Err(Error::PartlyRestored { .. })));
    let mut other = tracked("other")?;
    refuses_to_save(&mut other, dir.path())?;
    other.reinitialized("other")?;
    checkpoint.write(dir.path().join("whole"))?;

    // What the restore was to create is not there: a later tensor of its name is another one.
    let fresh = Layers::new(&["a"]);
    let mut checkpoint = Checkpoint::new().track("model", group([("layers", Node::collection(fresh.clone()))]))?;
    assert!(matches!(checkpoint.restore_with(&bad, &once), Err(Error::PartlyRestored { .. })));
    refuses_to_save(&mut checkpoint, dir.path())?;
    fresh.0.lock().unwrap().clear();
    drop(fresh.0.lock().unwrap().insert("b".to_string(), Memory::seeded(300_000, 3)));
    checkpoint.write(dir.path().join("later"))?;
    Ok(())
}

#[test]
fn what_a_deferred_restore_left_half_overwritten_is_not_saved() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (a, b) = (Memory::seeded(300_000, 1), Memory::seeded(300_000, 2));
    let bad = Checkpoint::new().track("a", &a)?.track("b", &b)?.write(dir.path().join("bad"))?;
    damage(&bad.join("b.safetensors"))?;
    let mut checkpoint = Checkpoint::new().track("a", &a)?;
    let status = checkpoint.restore_with(&bad, &RestoreOptions::new().verify(Verify::WhileReading))?;
    assert!(matches!(checkpoint.track_mut("b", &b), Err(Error::PartlyRestored { .. })));
    checkpoint.write(dir.path().join("without"))?;
    status.expect_partial();
    checkpoint.track_mut("b", &b)?;
    refuses_to_save(&mut checkpoint, dir.path())?;
    checkpoint.reinitialized("b")?;
    checkpoint.write(dir.path().join("whole"))?;
    Ok(())
}

#[test]
fn an_object_of_another_kind_is_called_that() -> Outcome {
    let dir = tempfile::tempdir()?;
    let path = Checkpoint::new().track("v", Counter::new(1))?.write(dir.path().join("c"))?;
    let error = Checkpoint::new().track("v", Memory::seeded(10, 1))?.restore(&path).unwrap_err().to_string();
    assert!(error.contains("\"v\" is in the checkpoint, and was not restored: it is a tensor there"), "{error}");
    Ok(())
}

#[test]
fn a_restore_or_rollback_while_a_value_is_updated_is_an_error() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (weights, progress) = (Memory::seeded(1000, 1), Value::new(1));
    let mut checkpoint = Checkpoint::new().track("weights", &weights)?.track("progress", &progress)?;
    let (path, snapshot) = (checkpoint.write(dir.path().join("c"))?, checkpoint.snapshot()?);
    weights.bytes().fill(7);
    let errors = progress.update(|_| [checkpoint.restore(&path).err(), checkpoint.rollback(&snapshot).err()]);
    for error in errors {
        let error = error.ok_or("it was restored")?.to_string();
        assert!(error.contains("being updated"), "{error}");
    }
    assert!(weights.bytes().iter().all(|&byte| byte == 7));
    checkpoint.restore(&path)?.assert_consumed()?;
    Ok(())
}

// --------------------------------------------------------------------------------------- memory in common

/// Bytes of a block: enough that several threads restore.
const BLOCK: usize = 1 << 16;

/// A part of a memory, as rows and columns of a matrix of blocks that has 8 columns.
#[derive(Clone)]
struct Part {
    memory: Arc<Mutex<Vec<u8>>>,
    rows: Range<usize>,
    columns: Range<usize>,
    open: Arc<AtomicUsize>,
}

/// Opened to be overwritten.
struct Opened(Part, Vec<u8>);

/// The matrix with these numbers in its blocks.
fn blocks(numbers: &[u8]) -> Vec<u8> {
    numbers.iter().flat_map(|&number| std::iter::repeat_n(number, BLOCK)).collect()
}

impl Part {
    fn pieces(&self) -> impl Iterator<Item = Range<usize>> {
        let columns = self.columns.clone();
        self.rows.clone().map(move |row| BLOCK * (8 * row + columns.start)..BLOCK * (8 * row + columns.end))
    }

    fn part(&self, rows: Range<usize>, columns: Range<usize>) -> Part {
        Part { rows, columns, ..self.clone() }
    }

    fn get(&self) -> Vec<u8> {
        let memory = self.memory.lock().unwrap();
        self.pieces().flat_map(|piece| memory[piece].to_vec()).collect()
    }
}

impl TensorLeaf for Part {
    fn spec(&self) -> Result<TensorSpec, tch_checkpoint::BoxError> {
        Ok(TensorSpec::new(Dtype::U8, [self.rows.len() as u64, (BLOCK * self.columns.len()) as u64]))
    }

    fn identity(&self) -> Option<Identity> {
        let address = self.memory.lock().unwrap().as_ptr() as usize + self.pieces().next()?.start;
        Some(Identity::new("matrix", address, self.spec().ok()?, vec![8 * BLOCK as i64, 1]))
    }

    fn bytes(&self) -> Result<Box<dyn TensorBytes>, tch_checkpoint::BoxError> {
        Ok(Box::new(self.get()))
    }

    fn target(&self) -> Result<Box<dyn TensorTarget>, tch_checkpoint::BoxError> {
        assert_eq!(self.open.fetch_add(1, Ordering::SeqCst), 0, "two are written at the same time");
        std::thread::sleep(std::time::Duration::from_millis(5));
        Ok(Box::new(Opened(self.clone(), vec![0; self.pieces().map(|piece| piece.len()).sum()])))
    }
}

impl TensorTarget for Opened {
    fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.1
    }

    fn finish(self: Box<Self>) -> Result<(), tch_checkpoint::BoxError> {
        let mut memory = self.0.memory.lock().unwrap();
        let pieces = self.0.pieces().zip(self.1.chunks_exact(BLOCK * self.0.columns.len()));
        pieces.for_each(|(piece, bytes)| memory[piece].copy_from_slice(bytes));
        self.0.open.fetch_sub(1, Ordering::SeqCst);
        Ok(())
    }
}

#[test]
fn tensors_that_share_a_part_of_their_memory_get_it_once_and_alike() -> Outcome {
    let dir = tempfile::tempdir()?;
    let numbers: Vec<u8> = (0..80).collect();
    let memory = Arc::new(Mutex::new(blocks(&numbers)));
    let all = Part { memory, rows: 0..10, columns: 0..8, open: Arc::default() };
    let parts = [all.clone(), all.part(2..5, 0..8), all.part(0..10, 3..5), all.part(1..9, 6..8), all.part(9..10, 0..3)];
    let track = |parts: &[Part]| {
        let named = parts.iter().enumerate().map(|(i, part)| (i.to_string(), Node::tensor(part.clone())));
        named.into_iter().try_fold(Checkpoint::new(), |checkpoint, (name, node)| checkpoint.track(&name, node))
    };
    let path = track(&parts)?.write(dir.path().join("one"))?;
    let options = RestoreOptions::new().threads(4);
    for verify in [Verify::Before, Verify::WhileReading] {
        all.memory.lock().unwrap().fill(99);
        track(&parts)?.restore_with(&path, &options.clone().verify(verify))?.assert_consumed()?;
        assert!(all.get() == blocks(&numbers));
    }
    // Columns that overlap as ranges, but have no element in common.
    let apart = [all.part(0..10, 0..4), all.part(0..10, 4..8)];
    let separate = |part: &Part, byte: u8| Part {
        memory: Arc::new(Mutex::new(blocks(&[byte; 80]))),
        open: Arc::default(),
        ..part.clone()
    };
    let path = track(&[separate(&apart[0], 1), separate(&apart[1], 2)])?.write(dir.path().join("columns"))?;
    track(&apart)?.restore_with(&path, &options)?.assert_consumed()?;
    assert!(all.get() == blocks(&[1, 1, 1, 1, 2, 2, 2, 2].repeat(10)));

    // The checkpoint is of a model in which they were separate.
    let path = track(&[separate(&parts[0], 1), separate(&parts[1], 2)])?.write(dir.path().join("separate"))?;
    let before = all.get();
    let error = track(&parts[..2])?.restore_with(&path, &options).unwrap_err();
    assert!(matches!(error, Error::Mismatch { .. }), "{error}");
    assert!(error.to_string().contains("shares a part of its memory with \"0\""), "{error}");
    assert!(all.get() == before);
    let status = track(&parts[..2])?.restore_with(&path, &options.allow_mismatch("1"))?;
    assert_eq!(status.report().matched, ["0"]);
    assert!(all.get() == blocks(&[1; 80]));
    Ok(())
}
