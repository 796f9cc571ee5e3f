//! `CheckpointManager`: numbering, retention, restart, damage, from the user's side.

mod common;

use common::Memory;
use common::run::{Run, names};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tch_checkpoint::format::Index;
use tch_checkpoint::retention::{Best, Goal, Latest};
use tch_checkpoint::{
    Checkpoint, CheckpointManager, CheckpointManagerBuilder, Counter, Error, checkpoints, latest_checkpoint,
    list_checkpoints,
};

type Outcome = Result<(), Box<dyn std::error::Error>>;

impl Run {
    fn new() -> Run {
        Run::of(1000)
    }

    fn builder(&self, dir: &Path) -> CheckpointManagerBuilder {
        CheckpointManager::builder(self.checkpoint(), dir)
    }
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_policy_that_keeps_as_many_as_there_can_be_keeps_all() -> Outcome {
    for best_too in [false, true] {
        let dir = tempfile::tempdir()?;
        let run = Run::new();
        let mut builder = run.builder(dir.path()).max_to_keep(usize::MAX);
        if best_too {
            builder = builder.keep(Latest(usize::MAX)).keep(Best::new("loss", Goal::Minimize, 2));
        }
        let mut manager = builder.open()?;
        for _ in 0..2 {
            manager.save_at(run.train())?;
        }
        assert_eq!(names(&manager.checkpoints()), ["ckpt-1", "ckpt-2"]);
    }
    Ok(())
}

#[test]
fn the_newest_stay_and_a_new_process_goes_on_from_the_latest() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager = run.builder(dir.path()).max_to_keep(3).save_every(10).open()?;
    assert!(manager.restore_or_initialize()?.restored.is_none());
    for _ in 0..75 {
        let step = run.train();
        let saved = manager.save_if_due(step)?;
        assert_eq!(saved.is_some(), step.is_multiple_of(10));
    }
    assert_eq!(names(&manager.checkpoints()), ["ckpt-50", "ckpt-60", "ckpt-70"]);
    assert_eq!(manager.save_at(75)?, dir.path().join("ckpt-75"));
    assert_eq!(manager.save_at(75)?, dir.path().join("ckpt-75"), "the same step again is done already");
    manager.close()?;

    let again = Run::new();
    let mut manager = again.builder(dir.path()).max_to_keep(3).save_every(10).open()?;
    let started = manager.restore_or_initialize()?;
    assert_eq!(started.restored.unwrap().assert_consumed()?.step(), Some(75));
    assert!(again.is_at(75));
    assert_eq!(manager.save_if_due(again.train())?, None);
    assert_eq!(manager.checkpoint().save_counter(), 8);
    Ok(())
}

#[test]
fn numbers_by_counter_go_on_and_overwrite_nothing() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager = run.builder(dir.path()).max_to_keep(None).open()?;
    run.train();
    assert_eq!(names(&[manager.save()?, manager.save()?]), ["ckpt-1", "ckpt-2"]);
    drop(manager);
    let mut manager = Run::new().builder(dir.path()).max_to_keep(None).open()?;
    // Without restoring: TensorFlow overwrites ckpt-1.
    for error in [manager.save().unwrap_err(), manager.save_at(2).unwrap_err(), manager.save_at(3).unwrap_err()] {
        let text = error.to_string();
        assert!(matches!(error, Error::AlreadyExists { .. }) && text.contains("restore it"), "{text}");
        assert!(text.contains("ckpt-2") && text.contains("fresh_start"), "{text}");
    }
    assert_eq!(names(&manager.checkpoints()), ["ckpt-1", "ckpt-2"]);
    manager.restore_or_initialize()?;
    assert_eq!(names(&[manager.save()?]), ["ckpt-3"]);
    drop(manager);
    // A new run on request: the other one stays until this one has as many checkpoints as are kept.
    let mut manager = Run::new().builder(dir.path()).max_to_keep(2).fresh_start().open()?;
    assert_eq!(names(&[manager.save_at(2)?]), ["ckpt-2"]);
    assert_eq!(names(&manager.checkpoints()), ["ckpt-2"]);
    assert_eq!(list_checkpoints(dir.path())?.superseded.len(), 3);
    manager.save_at(3)?;
    assert_eq!(list_checkpoints(dir.path())?.superseded.len(), 0);
    assert_eq!(names(&checkpoints(dir.path())?), ["ckpt-2", "ckpt-3"]);
    Ok(())
}

#[test]
fn a_damaged_latest_is_passed_over_kept_aside_and_its_number_is_free() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager = run.builder(dir.path()).open()?;
    for _ in 0..3 {
        manager.save_at(run.train())?;
    }
    drop(manager);
    flip(&dir.path().join("ckpt-3/weights.safetensors"), 5000);
    fs::remove_file(dir.path().join("ckpt-2/weights.safetensors"))?;

    let again = Run::new();
    let mut manager = again.builder(dir.path()).open()?;
    let started = manager.restore_or_initialize()?;
    assert!(again.is_at(1));
    assert_eq!(started.passed_over.len(), 2, "ckpt-2 was found at the opening already");
    assert!(started.passed_over.iter().all(|passed| passed.reason.contains("weights")), "{:?}", started.passed_over);
    assert!(started.passed_over.iter().all(|passed| passed.path.join("manifest.json").exists()));
    let aside = fs::read_dir(dir.path())?
        .filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().starts_with("damaged-ckpt-"));
    assert_eq!(aside.count(), 2);
    for step in 2..=3 {
        again.train();
        assert_eq!(manager.save_at(step)?, dir.path().join(format!("ckpt-{step}")));
    }
    Ok(())
}

#[test]
fn one_that_has_lost_files_is_set_aside_and_takes_no_place() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager = run.builder(dir.path()).max_to_keep(2).open()?;
    for _ in 0..2 {
        manager.save_at(run.train())?;
    }
    let weights = fs::File::options().write(true).open(dir.path().join("ckpt-2/weights.safetensors"))?;
    weights.set_len(weights.metadata()?.len() - 1)?;
    manager.save_at(run.train())?;
    assert_eq!(names(&manager.checkpoints()), ["ckpt-1", "ckpt-3"], "ckpt-1 is the only other good one");
    let is_aside = |name: &str| {
        let entries = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
        entries.into_iter().any(|entry| entry.to_string_lossy().starts_with(&format!("damaged-{name}")))
    };
    assert!(is_aside("ckpt-2"));
    manager.save_at(run.train())?;
    assert_eq!(names(&manager.checkpoints()), ["ckpt-3", "ckpt-4"], "and now there are two");
    assert!(!dir.path().join("ckpt-1").exists());
    // One with an empty manifest, or without one, is no checkpoint either.
    fs::write(dir.path().join("ckpt-4/manifest.json"), "")?;
    manager.save_at(run.train())?;
    assert_eq!(names(&manager.checkpoints()), ["ckpt-3", "ckpt-5"]);
    assert!(is_aside("ckpt-4"));
    manager.save_at(run.train())?;
    assert_eq!(names(&manager.checkpoints()), ["ckpt-5", "ckpt-6"]);
    fs::remove_file(dir.path().join("ckpt-6/manifest.json"))?;
    manager.save_at(run.train())?;
    assert_eq!(names(&manager.checkpoints()), ["ckpt-5", "ckpt-7"]);
    assert!(is_aside("ckpt-6"));
    Ok(())
}

#[test]
fn when_none_is_intact_it_does_not_silently_start_afresh() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager = run.builder(dir.path()).open()?;
    manager.save_at(run.train())?;
    drop(manager);
    flip(&dir.path().join("ckpt-1/weights.safetensors"), 5000);
    let fresh = Run::new();
    let initialized = Arc::new(AtomicUsize::new(0));
    let count = initialized.clone();
    let mut manager = fresh
        .builder(dir.path())
        .init(move || {
            count.fetch_add(1, Ordering::SeqCst);
            Ok(())
        })
        .open()?;
    let error = manager.restore_or_initialize().unwrap_err();
    // It was found damaged while it was read, so the objects have changed.
    assert!(matches!(error, Error::PartlyRestored { .. }), "{error}");
    let again = manager.restore_or_initialize().unwrap_err();
    assert!(matches!(again, Error::PartlyRestored { .. }) && format!("{again:#}").contains("weights"), "{again:#}");
    drop(manager);

    // Nor when it is found at the opening, nor in the next process, to which it is only a directory moved aside.
    let run = Run::new();
    let count = initialized.clone();
    let open = |dir: &Path| {
        let count = count.clone();
        let init = move || {
            count.fetch_add(1, Ordering::SeqCst);
            Ok(())
        };
        run.builder(dir).init(init).open()
    };
    let error = open(dir.path())?.restore_or_initialize().unwrap_err();
    assert!(error.to_string().contains("damaged-ckpt-1-"), "{error}");
    let dir = tempfile::tempdir()?;
    open(dir.path())?.save_at(1)?;
    fs::write(dir.path().join("ckpt-1/manifest.json"), "")?;
    let error = open(dir.path())?.restore_or_initialize().unwrap_err();
    assert!(error.to_string().contains("manifest.json"), "{error}");
    assert_eq!((initialized.load(Ordering::SeqCst), fresh.step.get()), (0, 0));
    Ok(())
}

#[test]
fn the_init_function_runs_only_for_a_fresh_start() -> Outcome {
    let dir = tempfile::tempdir()?;
    let initialized = Arc::new(AtomicUsize::new(0));
    for expected in [1, 1] {
        let run = Run::new();
        let count = initialized.clone();
        let mut manager = run
            .builder(dir.path())
            .init(move || {
                count.fetch_add(1, Ordering::SeqCst);
                Ok(())
            })
            .open()?;
        manager.restore_or_initialize()?;
        assert_eq!(initialized.load(Ordering::SeqCst), expected);
        manager.save_at(run.train())?;
    }
    Ok(())
}

#[test]
fn a_model_that_does_not_fit_is_an_error_not_a_fallback() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager = run.builder(dir.path()).open()?;
    manager.save_at(run.train())?;
    drop(manager);
    let checkpoint = Checkpoint::new().track("weights", Memory::seeded(7, 1))?;
    let mut manager = CheckpointManager::builder(checkpoint, dir.path()).open()?;
    assert!(matches!(manager.restore_or_initialize(), Err(Error::Mismatch { .. })));
    assert_eq!(manager.checkpoints().len(), 1);
    Ok(())
}

#[test]
fn one_writer_per_directory_and_readers_without_a_lock() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager = run.builder(dir.path()).open()?;
    manager.save_at(run.train())?;
    let error = Run::new().builder(dir.path()).open().unwrap_err();
    assert!(
        matches!(&error, Error::Locked { .. })
            && error.to_string().contains(&format!("process {}", std::process::id())),
        "{error}"
    );
    assert!(matches!(Run::new().checkpoint().save(dir.path().join("ckpt")), Err(Error::Locked { .. })));
    let reader = Run::new();
    reader.checkpoint().restore(latest_checkpoint(dir.path())?.unwrap())?;
    assert!(reader.is_at(1));
    drop(manager);
    Run::new().builder(dir.path()).open()?;
    Ok(())
}

#[test]
fn leftovers_go_and_strangers_stay() -> Outcome {
    let dir = tempfile::tempdir()?;
    let mine = [".tmp-ckpt-9-0123456789abcdef0123456789abcdef", ".trash-ckpt-1-0123456789abcdef0123456789abcdef"];
    let strangers =
        ["ckpt-1-backup", "ckpt-007", "ckpt-", "best", "other-3", ".tmp-mine", ".trash-1", ".tmp-ckpt-9-abc"];
    for name in mine.iter().chain(&strangers) {
        fs::create_dir(dir.path().join(name))?;
        fs::write(dir.path().join(name).join("file"), "x")?;
    }
    fs::write(dir.path().join("notes.txt"), "mine")?;
    let run = Run::new();
    let mut manager = run.builder(dir.path()).max_to_keep(1).open()?;
    for _ in 0..3 {
        manager.save_at(run.train())?;
    }
    assert!(mine.iter().all(|name| !dir.path().join(name).exists()));
    assert!(strangers.iter().all(|name| dir.path().join(name).join("file").exists()));
    assert!(dir.path().join("notes.txt").exists());
    Ok(())
}

#[test]
fn a_link_among_the_leftovers_leads_nowhere() -> Outcome {
    let outside = tempfile::tempdir()?;
    fs::write(outside.path().join("precious"), "x")?;
    let dir = tempfile::tempdir()?;
    let link = dir.path().join(".tmp-ckpt-9-0123456789abcdef0123456789abcdef");
    std::os::unix::fs::symlink(outside.path(), &link)?;
    Run::new().builder(dir.path()).open()?;
    assert!(outside.path().join("precious").exists() && fs::symlink_metadata(&link).is_err());
    Ok(())
}

#[test]
fn a_lock_file_that_leads_elsewhere_is_refused() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (directory, victim) = (dir.path().join("run"), dir.path().join("victim"));
    fs::create_dir(&directory)?;
    fs::write(&victim, "precious")?;
    std::os::unix::fs::symlink(&victim, directory.join(".lock"))?;
    assert!(matches!(Run::new().builder(&directory).open(), Err(Error::Io { .. })));
    fs::remove_file(directory.join(".lock"))?;
    fs::hard_link(&victim, directory.join(".lock"))?;
    Run::new().builder(&directory).open()?;
    assert_eq!(fs::read_to_string(&victim)?, "precious");
    Ok(())
}

#[test]
fn a_half_written_checkpoint_is_not_taken_for_a_whole_one() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager = run.builder(dir.path()).open()?;
    manager.save_at(run.train())?;
    drop(manager);
    fs::create_dir(dir.path().join("ckpt-2"))?; // no manifest
    fs::create_dir(dir.path().join("ckpt-3"))?;
    fs::write(dir.path().join("ckpt-3/manifest.json"), "")?; // as after a power cut without sync
    assert_eq!(names(&checkpoints(dir.path())?), ["ckpt-1"]);
    let mut manager = Run::new().builder(dir.path()).open()?;
    assert_eq!(names(&manager.checkpoints()), ["ckpt-1"]);
    manager.restore_or_initialize()?;
    Ok(())
}

#[test]
fn directories_of_any_name_can_be_moved() -> Outcome {
    let dir = tempfile::tempdir()?;
    for (i, name) in ["[brackets]*?", "with spaces", "übung λ", "a\\b", "new\nline", "-dash"].iter().enumerate() {
        let directory = dir.path().join(name);
        let run = Run::new();
        let mut manager = run.builder(&directory).max_to_keep(2).open()?;
        for _ in 0..4 {
            manager.save_at(run.train())?;
        }
        assert_eq!(names(&checkpoints(&directory)?), ["ckpt-3", "ckpt-4"], "{name}");
        drop(manager);
        let moved = dir.path().join(format!("moved {i}"));
        fs::rename(&directory, &moved)?;
        let again = Run::new();
        let mut manager = again.builder(&moved).max_to_keep(2).open()?;
        manager.restore_or_initialize()?;
        assert!(again.is_at(4));
        manager.save_at(again.train())?;
        assert_eq!(names(&manager.checkpoints()), ["ckpt-4", "ckpt-5"]);
    }
    Ok(())
}

#[test]
fn order_is_by_commit_not_by_number_or_index() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager = run.builder(dir.path()).max_to_keep(2).open()?;
    for step in [500, 600] {
        manager.save_at(step)?;
    }
    manager.restore(dir.path().join("ckpt-500"))?;
    // A new attempt from an earlier point, with lower numbers: the old, higher ones go.
    for step in [510, 520] {
        manager.save_at(step)?;
    }
    assert_eq!(names(&manager.checkpoints()), ["ckpt-510", "ckpt-520"]);
    drop(manager);
    fs::remove_file(dir.path().join("checkpoint.json"))?;
    let manager = Run::new().builder(dir.path()).max_to_keep(2).open()?;
    assert_eq!(names(&manager.checkpoints()), ["ckpt-510", "ckpt-520"]);
    Ok(())
}

#[test]
fn several_managers_for_several_components() -> Outcome {
    let dir = tempfile::tempdir()?;
    let parts = ["embedding", "encoder", "decoder"];
    let tensors: Vec<Memory> = (0..3).map(|i| Memory::seeded(100, i)).collect();
    let mut managers = Vec::new();
    for (part, tensor) in parts.iter().zip(&tensors) {
        let checkpoint = Checkpoint::new().track(part, tensor)?;
        managers.push(
            CheckpointManager::builder(checkpoint, dir.path().join(part))
                .max_to_keep(2)
                .checkpoint_name(*part)
                .open()?,
        );
    }
    for step in 1..=3 {
        for manager in &mut managers {
            manager.save_at(step)?;
        }
    }
    for (part, tensor) in parts.iter().zip(&tensors) {
        let found = checkpoints(dir.path().join(part))?;
        assert_eq!(names(&found), [format!("{part}-2"), format!("{part}-3")]);
        let live = Memory::seeded(100, 99);
        Checkpoint::new().track(part, &live)?.restore(&found[1])?;
        assert_eq!(*live.bytes(), *tensor.bytes());
    }
    Ok(())
}

#[test]
fn permanent_checkpoints_stay_across_restarts() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let open = || run.builder(dir.path()).max_to_keep(1).keep_every(std::time::Duration::from_nanos(1)).open();
    let mut manager = open()?;
    for _ in 0..3 {
        std::thread::sleep(std::time::Duration::from_millis(5));
        manager.save_at(run.train())?;
    }
    assert_eq!(names(&manager.permanent_checkpoints()), ["ckpt-1", "ckpt-2"]);
    drop(manager);
    assert_eq!(names(&open()?.permanent_checkpoints()), ["ckpt-1", "ckpt-2"]);
    // They know it themselves.
    fs::remove_file(dir.path().join("checkpoint.json"))?;
    let mut manager = open()?;
    manager.restore_or_initialize()?;
    manager.save_at(run.train())?;
    assert_eq!(names(&manager.permanent_checkpoints())[..2], ["ckpt-1", "ckpt-2"]);
    Ok(())
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let run = Run::new();
    let builder = || run.builder(dir.path());
    for (builder, word) in [
        (builder().max_to_keep(0), "max_to_keep"),
        (builder().save_every(0), "save_every"),
        (builder().checkpoint_name("a/b"), "checkpoint_name"),
        (builder().checkpoint_name(""), "checkpoint_name"),
        (builder().keep_every(std::time::Duration::ZERO), "keep_every"),
    ] {
        let error = builder.open().unwrap_err();
        assert!(matches!(&error, Error::InvalidArgument(text) if text.contains(word)), "{error}");
    }
    let mut manager = builder().open().unwrap();
    assert!(
        manager.save_with_metrics(1, [("loss", f64::NAN)]).is_ok(),
        "a bad figure is no reason to lose a checkpoint"
    );
}

#[test]
fn a_failed_save_changes_nothing_and_the_next_try_saves() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager = run.builder(dir.path()).save_every(5).open()?;
    for _ in 0..5 {
        run.train();
    }
    // A file where the checkpoint should appear: the rename is refused.
    fs::write(dir.path().join("ckpt-5"), "in the way")?;
    assert!(manager.save_if_due(5).is_err());
    assert_eq!((manager.checkpoints().len(), manager.checkpoint().save_counter()), (0, 0));
    fs::remove_file(dir.path().join("ckpt-5"))?;
    assert!(manager.save_if_due(5)?.is_some(), "the step is still due");
    let tmp =
        fs::read_dir(dir.path())?.filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().starts_with(".tmp"));
    assert_eq!(tmp.count(), 0);
    Ok(())
}

#[test]
fn files_of_removed_checkpoints_are_overwritten_only_when_nobody_sees_them() -> Outcome {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir()?;
    let (step, weights) = (Counter::new(0), Memory::seeded(1_000_000, 0));
    let checkpoint = Checkpoint::new().track("weights", &weights)?.track("step", &step)?;
    let mut manager = CheckpointManager::builder(checkpoint, dir.path()).max_to_keep(1).open()?;
    let file = |step: u64| dir.path().join(format!("ckpt-{step}/weights.safetensors"));
    let inode = |step: u64| fs::metadata(file(step)).map(|metadata| metadata.ino());
    let mut save = |number: u64| -> Outcome {
        *weights.bytes() = Memory::seeded(1_000_000, number).bytes().clone();
        manager.save_at(number)?;
        Ok(())
    };
    for number in 1..=3 {
        save(number)?;
    }
    // ckpt-2 was written into a new file, ckpt-1 still being there; ckpt-3 into that of ckpt-1; and so on.
    let (second, third) = (inode(2).ok(), inode(3)?);
    assert!(second.is_none());
    // Someone reads ckpt-3 while it is removed, and later.
    let reader = fs::File::open(file(3))?;
    let linked = dir.path().join("linked");
    save(4)?;
    fs::hard_link(file(4), &linked)?;
    for number in 5..=8 {
        save(number)?;
        assert_ne!(inode(number)?, third, "an open file was overwritten");
        assert_ne!(inode(number)?, fs::metadata(&linked)?.ino(), "a linked file was overwritten");
    }
    let content = |file: &mut dyn std::io::Read| -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes[4096..].to_vec())
    };
    assert!(content(&mut &reader)? == *Memory::seeded(1_000_000, 3).bytes());
    assert!(content(&mut fs::File::open(&linked)?)? == *Memory::seeded(1_000_000, 4).bytes());
    save(9)?;
    let nine = inode(9)?;
    save(10)?;
    save(11)?;
    assert_eq!(inode(11)?, nine, "and one that nobody sees is");
    assert!(tch_checkpoint::CheckpointReader::open(dir.path().join("ckpt-11"))?.verify().is_intact());
    manager.close()?;
    let left = fs::read_dir(dir.path())?
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with(".trash"));
    assert_eq!(left.count(), 0);
    Ok(())
}

/// A tensor that knows when it changes.
#[derive(Clone)]
struct Versioned(Memory, Arc<AtomicUsize>);

impl tch_checkpoint::TensorLeaf for Versioned {
    fn spec(&self) -> Result<tch_checkpoint::TensorSpec, tch_checkpoint::BoxError> {
        self.0.spec()
    }

    fn identity(&self) -> Option<tch_checkpoint::Identity> {
        self.0.identity()
    }

    fn bytes(&self) -> Result<Box<dyn tch_checkpoint::TensorBytes>, tch_checkpoint::BoxError> {
        tch_checkpoint::TensorLeaf::bytes(&self.0)
    }

    fn version(&self) -> Option<u64> {
        Some(self.1.load(Ordering::SeqCst) as u64)
    }

    fn target(&self) -> Result<Box<dyn tch_checkpoint::TensorTarget>, tch_checkpoint::BoxError> {
        self.0.target()
    }
}

#[test]
fn a_component_that_did_not_change_is_not_written_again() -> Outcome {
    use std::os::unix::fs::MetadataExt;
    for background in [false, true] {
        let dir = tempfile::tempdir()?;
        let frozen = Versioned(Memory::seeded(500_000, 1), Arc::default());
        let (trained, step) = (Memory::seeded(1000, 2), Counter::new(0));
        let node = tch_checkpoint::Node::tensor(frozen.clone());
        let checkpoint = Checkpoint::new().track("frozen", node)?.track("trained", &trained)?.track("step", &step)?;
        let builder = CheckpointManager::builder(checkpoint, dir.path()).max_to_keep(3);
        let builder = if background { builder.background(tch_checkpoint::Background::new()) } else { builder };
        let mut manager = builder.open()?;
        let inode =
            |step: u64| fs::metadata(dir.path().join(format!("ckpt-{step}/frozen.safetensors"))).map(|m| m.ino());
        let bytes = |step: u64| {
            tch_checkpoint::CheckpointReader::open(dir.path().join(format!("ckpt-{step}")))?.tensor("frozen")
        };
        for number in 1..=4 {
            trained.bytes().fill(number as u8);
            manager.save_at(number)?;
            manager.wait()?;
        }
        // Of the three that are kept, at least two never share a file.
        assert!(inode(2)? == inode(3)? && inode(3)? != inode(4)?);
        assert!(bytes(4)? == *Memory::seeded(500_000, 1).bytes());

        // Changed, and it reports it.
        *frozen.0.bytes() = Memory::seeded(500_000, 5).bytes().clone();
        frozen.1.fetch_add(1, Ordering::SeqCst);
        manager.save_at(5)?;
        manager.wait()?;
        assert!(bytes(5)? == *Memory::seeded(500_000, 5).bytes() && inode(5)? != inode(4)?);
        assert!(bytes(4)? == *Memory::seeded(500_000, 1).bytes());

        // Changed without its knowledge: never saved with its old bytes.
        *frozen.0.bytes() = Memory::seeded(500_000, 6).bytes().clone();
        manager.save_at(6)?;
        match manager.wait() {
            Ok(()) => assert!(bytes(6)? == *Memory::seeded(500_000, 6).bytes()),
            Err(error) => assert!(background && error.to_string().contains("version counter"), "{error}"),
        }
        manager.close()?;

        // The bytes of a checkpoint do not depend on how they were written.
        let found = checkpoints(dir.path())?;
        assert!(found.iter().all(|path| tch_checkpoint::CheckpointReader::open(path).unwrap().verify().is_intact()));
    }
    Ok(())
}

#[test]
fn a_checkpoint_may_have_any_name() -> Outcome {
    let dir = tempfile::tempdir()?;
    for name in ["my ckpt", "größe", "a[1]*?", "50%", "damaged-ckpt"] {
        let run = Run::new();
        let directory = dir.path().join(name);
        run.builder(&directory).checkpoint_name(name).open()?.save_at(1)?;
        let expected = [directory.join(format!("{name}-1"))];
        assert_eq!(run.builder(&directory).checkpoint_name(name).open()?.checkpoints(), expected);
        let index = Index::from_bytes(&fs::read(directory.join("checkpoint.json"))?)?;
        assert_eq!(index.latest, Some(format!("{name}-1")));
        let directory = dir.path().join("without a manager").join(name);
        let path = run.checkpoint().save(directory.join(name))?;
        assert_eq!(latest_checkpoint(&directory)?, Some(path));
    }
    // A name that starts with a dot would never be found again.
    let run = Run::new();
    assert!(matches!(run.builder(dir.path()).checkpoint_name(".hidden").open(), Err(Error::InvalidArgument(_))));
    assert!(matches!(run.checkpoint().save(dir.path().join(".hidden")), Err(Error::InvalidArgument(_))));
    Ok(())
}
