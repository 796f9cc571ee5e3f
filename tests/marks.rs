//! Pins, notes and late metrics: set by the process that trains and by others, and what they keep.

mod common;

use chrono::{DateTime, Utc};
use common::Memory;
use common::run::steps_in;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tch_checkpoint::format::{Index, Manifest, Mark, MarkKind};
use tch_checkpoint::retention::{Best, CheckpointInfo, Every, Goal, KeptBy, Latest, Reason, RetentionPolicy};
use tch_checkpoint::{
    Background, Checkpoint, CheckpointDirectory, CheckpointManager, CheckpointManagerBuilder, Counter, Durability,
    Error, SaveOptions,
};

type Outcome = Result<(), Box<dyn std::error::Error>>;

struct Run(Counter);

impl Run {
    fn new() -> Run {
        Run(Counter::new(0))
    }

    fn builder(&self, dir: &Path) -> CheckpointManagerBuilder {
        let options = SaveOptions::new().durability(Durability::ProcessCrash);
        let checkpoint = Checkpoint::new().track("step", &self.0).unwrap();
        CheckpointManager::builder(checkpoint, dir).save_options(options)
    }

    fn train(&self, manager: &mut CheckpointManager, steps: usize) -> Outcome {
        for _ in 0..steps {
            manager.save_at(self.0.increment())?;
        }
        Ok(())
    }
}

#[test]
fn late_metrics_of_another_process_decide_what_stays() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager = run.builder(dir.path()).max_to_keep(3).keep(Best::new("accuracy", Goal::Maximize, 1)).open()?;
    let evaluator = CheckpointDirectory::new(dir.path());
    for accuracy in [0.1, 0.9, 0.3, 0.2, 0.4, 0.5] {
        run.train(&mut manager, 1)?;
        let latest = evaluator.latest()?.ok_or("none")?;
        evaluator.add_metrics(&latest.name, [("accuracy", accuracy)])?;
    }
    assert_eq!(steps_in(dir.path())?, [2, 4, 5, 6]);
    // Without the index, and in another process.
    manager.close()?;
    fs::remove_file(dir.path().join("checkpoint.json"))?;
    let mut manager = run.builder(dir.path()).max_to_keep(1).keep(Best::new("accuracy", Goal::Maximize, 1)).open()?;
    manager.restore_or_initialize()?;
    run.train(&mut manager, 1)?;
    assert_eq!(steps_in(dir.path())?, [2, 7]);
    assert_eq!(evaluator.best("accuracy", Goal::Maximize)?.ok_or("none")?.metrics["accuracy"], 0.9);
    Ok(())
}

/// The first one is permanent, and its metric, which came later, is better than the others'.
#[test]
fn late_metrics_of_what_is_kept_for_good_count() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let best = || Best::new("loss", Goal::Minimize, 1);
    let mut manager = run.builder(dir.path()).max_to_keep(2).keep(best()).keep(FirstForGood).open()?;
    run.train(&mut manager, 3)?;
    assert!(dir.path().join("ckpt-1/mark-permanent.json").exists());
    let evaluator = CheckpointDirectory::new(dir.path());
    evaluator.add_metrics("ckpt-2", [("loss", 0.5)])?;
    evaluator.add_metrics("ckpt-1", [("loss", 0.1)])?;
    run.train(&mut manager, 1)?;
    assert_eq!(steps_in(dir.path())?, [1, 3, 4]);
    Ok(())
}

/// Keeps all. In the thread of a background save it waits once, when it is told to.
#[derive(Debug, Clone, Default)]
struct Waits {
    shall_wait: Arc<AtomicBool>,
    is_waiting: Arc<AtomicBool>,
}

impl RetentionPolicy for Waits {
    fn keep(&self, checkpoints: &[CheckpointInfo], _now: DateTime<Utc>) -> Vec<Option<Reason>> {
        if std::thread::current().name() == Some("tch-checkpoint") {
            while self.shall_wait.load(Ordering::SeqCst) {
                self.is_waiting.store(true, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        checkpoints.iter().map(|_| Some(Reason::new("all stay"))).collect()
    }
}

#[test]
fn a_metric_that_comes_while_a_save_decides_what_goes_is_not_forgotten() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (run, policy) = (Run::new(), Waits::default());
    let builder = run.builder(dir.path()).keep(policy.clone()).link_best("loss", Goal::Minimize);
    let mut manager = builder.background(Background::new()).open()?;
    for (step, loss) in [(1, 0.5), (2, 0.4), (3, 0.6)] {
        manager.wait()?;
        policy.shall_wait.store(step == 3, Ordering::SeqCst);
        manager.save_with_metrics(step, [("loss", loss)])?;
    }
    while !policy.is_waiting.load(Ordering::SeqCst) {
        std::thread::yield_now();
    }
    manager.add_metrics("ckpt-1", [("loss", 0.1)])?;
    policy.shall_wait.store(false, Ordering::SeqCst);
    manager.wait()?;
    assert_eq!(fs::read_link(dir.path().join("best"))?.to_str(), Some("ckpt-1"));
    assert_eq!(manager.why("ckpt-1")?.checkpoint.metrics["loss"], 0.1);
    Ok(())
}

/// Before there were marks, only the index had it.
#[test]
fn what_only_the_index_lists_as_permanent_is_not_pruned() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager = run.builder(dir.path()).max_to_keep(None).open()?;
    run.train(&mut manager, 4)?;
    manager.close()?;
    let file = dir.path().join("checkpoint.json");
    let mut index = Index::from_bytes(&fs::read(&file)?)?;
    index.checkpoints.iter_mut().find(|entry| entry.name == "ckpt-2").ok_or("not listed")?.permanent = true;
    fs::write(&file, index.to_bytes()?)?;
    let directory = CheckpointDirectory::new(dir.path());
    let policies: [Arc<dyn RetentionPolicy>; 1] = [Arc::new(Latest(1))];
    let explained = directory.explain(&policies)?;
    assert_eq!(explained[1].kept_by, [KeptBy::Permanent], "{}", explained[1]);
    let removed = directory.prune(&policies)?.removed;
    assert_eq!(removed, ["ckpt-1", "ckpt-3"].map(|name| dir.path().join(name)));
    assert_eq!(steps_in(dir.path())?, [2, 4]);
    Ok(())
}

/// Keeps the first step permanently.
#[derive(Debug)]
struct FirstForGood;

impl RetentionPolicy for FirstForGood {
    fn keep(&self, checkpoints: &[CheckpointInfo], _now: DateTime<Utc>) -> Vec<Option<Reason>> {
        let is_first = |info: &CheckpointInfo| info.step == Some(1);
        checkpoints.iter().map(|info| is_first(info).then(|| Reason::new("its step is 1").for_good())).collect()
    }
}

#[test]
fn what_is_pinned_stays_until_it_is_not() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager = run.builder(dir.path()).max_to_keep(1).open()?;
    let path = manager.save_at(run.0.increment())?;
    manager.pin(&path, "paper", "the numbers of table 2")?;
    let beside = CheckpointDirectory::new(dir.path());
    beside.pin("ckpt-1", "demo", "")?;
    let refused =
        [beside.pin("ckpt-1", "", "why"), beside.annotate("ckpt-1", "", "text"), manager.pin(&path, "", "why")];
    assert!(refused.iter().all(|refused| matches!(refused, Err(Error::InvalidArgument(_)))), "{refused:?}");
    run.train(&mut manager, 3)?;
    assert_eq!(steps_in(dir.path())?, [1, 4]);
    let why = manager.why("ckpt-1")?;
    let names: Vec<&str> = why
        .kept_by
        .iter()
        .filter_map(|by| match by {
            KeptBy::Pin { name, .. } => Some(name.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(names, ["demo", "paper"], "{why}");
    assert_eq!(
        why.to_string(),
        "ckpt-1 stays: it is pinned as \"demo\", until the pin is removed; it is pinned as \"paper\" (the numbers of \
         table 2), until the pin is removed"
    );
    manager.close()?;
    let error = beside.delete("ckpt-1").unwrap_err();
    assert!(matches!(&error, Error::Pinned { pins, .. } if *pins == ["demo", "paper"]), "{error}");
    assert!(beside.unpin("ckpt-1", "demo")? && !beside.unpin("ckpt-1", "demo")?);
    let mut manager = run.builder(dir.path()).max_to_keep(1).open()?;
    manager.restore_or_initialize()?;
    run.train(&mut manager, 1)?;
    assert_eq!(steps_in(dir.path())?, [1, 5]);
    assert!(manager.unpin(&path, "paper")?);
    run.train(&mut manager, 1)?;
    assert_eq!(steps_in(dir.path())?, [6]);
    assert!(matches!(beside.pin("ckpt-1", "late", ""), Err(Error::NotFound { .. })));
    Ok(())
}

#[test]
fn a_pinned_checkpoint_stays_when_the_run_goes_back() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager = run.builder(dir.path()).max_to_keep(2).open()?;
    run.train(&mut manager, 2)?;
    manager.pin("ckpt-2", "keep", "")?;
    manager.restore(dir.path().join("ckpt-1"))?;
    run.train(&mut manager, 4)?;
    let superseded = CheckpointDirectory::new(dir.path()).list()?.superseded;
    assert_eq!(superseded.len(), 1);
    assert!(superseded[0].join("mark-pin-keep.json").exists());
    assert!(manager.unpin(&superseded[0], "keep")?);
    run.train(&mut manager, 1)?;
    assert!(CheckpointDirectory::new(dir.path()).list()?.superseded.is_empty());
    Ok(())
}

#[test]
fn a_checkpoint_that_is_still_written_gets_its_marks() -> Outcome {
    let dir = tempfile::tempdir()?;
    let weights = Memory::seeded(4 << 20, 1);
    let checkpoint = Checkpoint::new().track("weights", &weights)?;
    let best = Best::new("accuracy", Goal::Maximize, 1);
    let mut manager = CheckpointManager::builder(checkpoint, dir.path())
        .save_options(SaveOptions::new().durability(Durability::ProcessCrash))
        .max_to_keep(1)
        .keep(best)
        .background(Background::new())
        .open()?;
    for (step, accuracy) in [(1, 0.5), (2, 0.9), (3, 0.7), (4, 0.6)] {
        *weights.bytes() = Memory::seeded(4 << 20, step).bytes().clone();
        let path = manager.save_at(step)?;
        manager.add_metrics(&path, [("accuracy", accuracy)])?;
        manager.annotate(&path, "by", "the training")?;
    }
    manager.wait()?;
    assert_eq!(steps_in(dir.path())?, [2, 4]);
    let found = CheckpointDirectory::new(dir.path()).checkpoints()?;
    assert_eq!(found.iter().map(|info| info.metrics["accuracy"]).collect::<Vec<_>>(), [0.9, 0.6]);
    assert!(found.iter().all(|info| info.notes["by"] == "the training"));
    Ok(())
}

#[test]
fn a_save_fails_if_a_mark_that_was_accepted_cannot_be_written_with_it() -> Outcome {
    let dir = tempfile::tempdir()?;
    let go = Arc::new(AtomicBool::new(false));
    let may_go = go.clone();
    let options = SaveOptions::new().durability(Durability::ProcessCrash).on_progress(move |_| {
        while !may_go.load(Ordering::SeqCst) {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    });
    let checkpoint = Checkpoint::new().track("weights", Memory::seeded(1000, 1))?;
    let builder = CheckpointManager::builder(checkpoint, dir.path()).save_options(options);
    let mut manager = builder.background(Background::new()).open()?;
    let path = manager.save_at(1)?;
    manager.pin(&path, "keep", "")?;
    assert!(matches!(manager.pin(&path, "keep", "x".repeat(100_000)), Err(Error::InvalidArgument(_))));
    manager.annotate(&path, "by", "the training")?;
    // Something has the name of the mark.
    let staged = || -> Result<Option<std::path::PathBuf>, std::io::Error> {
        let names = fs::read_dir(dir.path())?.map(|entry| entry.map(|entry| entry.path()));
        let names: Vec<_> = names.collect::<Result<_, _>>()?;
        Ok(names
            .into_iter()
            .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(".tmp-"))))
    };
    let staged = loop {
        if let Some(staged) = staged()? {
            break staged;
        }
    };
    fs::create_dir(staged.join("mark-pin-keep.json"))?;
    go.store(true, Ordering::SeqCst);
    assert!(manager.wait().is_err());
    // There is neither the checkpoint nor the other mark.
    assert_eq!(manager.latest_checkpoint(), None);
    assert!(!path.exists() && !staged.exists());
    manager.save_at(1)?;
    manager.wait()?;
    assert!(!path.join("mark-note-by.json").exists());
    manager.pin(&path, "keep", "")?;
    manager.close()?;
    Ok(())
}

/// Every pin that succeeded keeps its checkpoint, whenever it was set.
#[test]
fn pins_beside_a_training_that_rotates_hold_or_say_that_they_came_too_late() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager = run.builder(dir.path()).max_to_keep(1).open()?;
    run.train(&mut manager, 1)?;
    let stop = Arc::new(AtomicBool::new(false));
    let pinners: Vec<_> = (0..2)
        .map(|number| {
            let (stop, path) = (stop.clone(), dir.path().to_path_buf());
            std::thread::spawn(move || {
                let beside = CheckpointDirectory::new(&path);
                let (mut pinned, mut late) = (Vec::new(), 0);
                while !stop.load(Ordering::Relaxed) {
                    let Ok(Some(latest)) = beside.latest() else { continue };
                    match beside.pin(&latest.name, format!("pinner {number}"), "") {
                        Ok(()) => pinned.push(latest.name),
                        Err(Error::Removed { .. } | Error::NotFound { .. }) => late += 1,
                        Err(e) => panic!("{e}"),
                    }
                }
                (pinned, late)
            })
        })
        .collect();
    run.train(&mut manager, 150)?;
    stop.store(true, Ordering::Relaxed);
    let (mut pinned, mut late) = (Vec::new(), 0);
    for pinner in pinners {
        let (names, too_late): (Vec<String>, usize) = pinner.join().map_err(|_| "a pinner panicked")?;
        pinned.extend(names);
        late += too_late;
    }
    run.train(&mut manager, 2)?;
    assert!(!pinned.is_empty());
    for name in &pinned {
        assert!(
            dir.path().join(name).join("manifest.json").exists(),
            "{name} was pinned and is gone; {late} were late"
        );
    }
    Ok(())
}

#[test]
fn prune_asks_the_policies_and_leaves_pins_alone() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager = run.builder(dir.path()).max_to_keep(None).open()?;
    run.train(&mut manager, 6)?;
    let beside = CheckpointDirectory::new(dir.path());
    beside.pin("ckpt-2", "p", "")?;
    let policies: [Arc<dyn RetentionPolicy>; 1] = [Arc::new(Latest(2))];
    assert!(matches!(beside.prune(&policies), Err(Error::Locked { .. })));
    manager.close()?;
    let kept: Vec<String> = beside
        .explain(&policies)?
        .into_iter()
        .filter(|explanation| explanation.is_kept())
        .map(|explanation| explanation.checkpoint.name)
        .collect();
    assert_eq!(kept, ["ckpt-2", "ckpt-5", "ckpt-6"]);
    let pruned = beside.prune(&policies)?;
    assert_eq!((pruned.removed.len(), pruned.spared.len()), (3, 0));
    assert_eq!(steps_in(dir.path())?, [2, 5, 6]);
    beside.delete("ckpt-5")?;
    assert_eq!(steps_in(dir.path())?, [2, 6]);
    Ok(())
}

/// The marks have more bytes than the file that is missing.
#[test]
fn marks_do_not_stand_in_for_a_lost_file() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (weights, tiny) = (Memory::seeded(1000, 1), Memory::seeded(1, 1));
    let checkpoint = Checkpoint::new().track("weights", &weights)?.track("tiny", &tiny)?;
    let mut manager = CheckpointManager::builder(checkpoint, dir.path()).max_to_keep(2).open()?;
    for step in 1..=2 {
        weights.bytes()[0] += 1;
        manager.save_at(step)?;
    }
    manager.add_metrics("ckpt-2", (0..30).map(|i| (format!("metric-{i}"), 0.5)))?;
    fs::remove_file(dir.path().join("ckpt-2/tiny.safetensors"))?;
    manager.save_at(3)?;
    assert_eq!(steps_in(dir.path())?, [1, 3]);
    let aside = CheckpointDirectory::new(dir.path()).list()?.moved_aside;
    assert!(aside.len() == 1 && aside[0].to_string_lossy().contains("damaged-ckpt-2-"), "{aside:?}");
    Ok(())
}

/// Keeps those of steps 2 and 4 permanently.
#[derive(Debug)]
struct ForGood;

impl RetentionPolicy for ForGood {
    fn keep(&self, checkpoints: &[CheckpointInfo], _now: DateTime<Utc>) -> Vec<Option<Reason>> {
        let is_kept = |info: &CheckpointInfo| matches!(info.step, Some(2 | 4));
        checkpoints.iter().map(|info| is_kept(info).then(|| Reason::new("2 and 4").for_good())).collect()
    }
}

#[test]
fn a_path_into_another_directory_names_no_checkpoint_of_this_one() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (here, other) = (dir.path().join("here"), dir.path().join("other"));
    let run = Run::new();
    let mut manager = run.builder(&here).link_latest().open()?;
    run.train(&mut manager, 1)?;
    run.0.set(0);
    run.train(&mut run.builder(&other).open()?, 1)?;
    let beside = CheckpointDirectory::new(&here);
    let wrong = other.join("ckpt-1");
    let errors = [
        manager.add_metrics(&wrong, [("loss", 0.1)]).unwrap_err(),
        manager.pin(&wrong, "paper", "").unwrap_err(),
        manager.unpin(&wrong, "paper").unwrap_err(),
        manager.why(&wrong).unwrap_err(),
        manager.pass_over(&wrong).unwrap_err(),
        beside.add_metrics(&wrong, [("loss", 0.1)]).unwrap_err(),
        beside.annotate(&wrong, "note", "text").unwrap_err(),
        beside.get(&wrong).unwrap_err(),
        beside.delete(&wrong).unwrap_err(),
    ];
    for error in errors {
        assert!(matches!(&error, Error::InvalidArgument(_)) && error.to_string().contains("is not in"), "{error}");
    }
    let gone = beside.delete(dir.path().join("gone/ckpt-1")).unwrap_err();
    assert!(matches!(gone, Error::InvalidArgument(_)), "{gone}");
    // A name, and the same directory by another path.
    fs::create_dir(dir.path().join("beside"))?;
    for (right, name) in [("ckpt-1", "name"), ("beside/../here/ckpt-1", "path")] {
        let right = if name == "name" { right.into() } else { dir.path().join(right) };
        beside.pin(&right, name, "")?;
        assert!(manager.why(&right)?.checkpoint.pins.contains_key(name));
    }
    // The link stands for a checkpoint that has a name.
    for error in [beside.pin("latest", "paper", ""), manager.pin(here.join("latest"), "paper", "")] {
        let error = error.unwrap_err().to_string();
        assert!(error.contains("name the checkpoint that it leads to"), "{error}");
    }
    Ok(())
}

#[test]
fn of_several_marks_all_are_written_or_none() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager = run.builder(dir.path()).open()?;
    run.train(&mut manager, 1)?;
    let beside = CheckpointDirectory::new(dir.path());
    let too_long = "l".repeat(8 << 20);
    let metrics = || [("loss", 0.1), (too_long.as_str(), 0.2)];
    assert!(matches!(beside.add_metrics("ckpt-1", metrics()), Err(Error::InvalidArgument(_))));
    assert!(matches!(manager.add_metrics("ckpt-1", metrics()), Err(Error::InvalidArgument(_))));
    assert!(beside.get("ckpt-1")?.metrics.is_empty());
    Ok(())
}

#[test]
fn without_a_policy_nothing_is_pruned() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    run.train(&mut run.builder(dir.path()).max_to_keep(None).open()?, 3)?;
    let error = CheckpointDirectory::new(dir.path()).prune(&[]).unwrap_err();
    assert!(matches!(&error, Error::InvalidArgument(_)) && error.to_string().contains("Latest(3)"), "{error}");
    assert_eq!(steps_in(dir.path())?, [1, 2, 3]);
    Ok(())
}

#[test]
fn what_prune_keeps_for_good_is_marked() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager = run.builder(dir.path()).max_to_keep(None).open()?;
    run.train(&mut manager, 6)?;
    manager.close()?;
    let beside = CheckpointDirectory::new(dir.path());
    beside.prune(&[Arc::new(ForGood)])?;
    assert_eq!(steps_in(dir.path())?, [2, 4, 6]);
    let is_marked = |step: u64| dir.path().join(format!("ckpt-{step}/mark-permanent.json")).exists();
    assert_eq!([2, 4, 6].map(is_marked), [true, true, false]);
    beside.prune(&[Arc::new(Latest(1))])?;
    assert_eq!(steps_in(dir.path())?, [2, 4, 6]);
    Ok(())
}

#[test]
fn the_same_prune_again_removes_nothing() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager = run.builder(dir.path()).max_to_keep(None).open()?;
    for _ in 0..8 {
        run.train(&mut manager, 1)?;
        std::thread::sleep(Duration::from_millis(15));
    }
    manager.close()?;
    let beside = CheckpointDirectory::new(dir.path());
    let policies: [Arc<dyn RetentionPolicy>; 1] = [Arc::new(Every(Duration::from_millis(40)))];
    beside.prune(&policies)?;
    let kept = steps_in(dir.path())?;
    assert!(kept.len() > 2, "{kept:?}");
    assert!(beside.prune(&policies)?.removed.is_empty());
    assert_eq!(steps_in(dir.path())?, kept);
    Ok(())
}

#[test]
fn one_that_has_lost_files_does_not_stop_the_rotation() -> Outcome {
    for pinned in [false, true] {
        let dir = tempfile::tempdir()?;
        let step = Counter::new(0);
        let weights = Memory::seeded(1000, 1);
        let checkpoint = Checkpoint::new().track("weights", &weights)?.track("step", &step)?;
        let builder = CheckpointManager::builder(checkpoint, dir.path()).max_to_keep(2);
        let mut manager = builder.keep(Best::new("loss", Goal::Minimize, 1)).open()?;
        let save = |manager: &mut CheckpointManager| {
            weights.bytes()[0] += 1;
            let step = step.increment();
            manager.save_with_metrics(step, [("loss", step as f64)]).map(drop)
        };
        save(&mut manager)?;
        if pinned {
            manager.pin("ckpt-1", "keep", "the first")?;
        }
        fs::remove_file(dir.path().join("ckpt-1/weights.safetensors"))?;
        for _ in 0..8 {
            save(&mut manager)?;
        }
        // The best of those that are whole takes its place.
        assert_eq!(steps_in(dir.path())?, [2, 8, 9]);
        assert!(!dir.path().join("ckpt-1").exists());
        let aside = CheckpointDirectory::new(dir.path()).list()?.moved_aside;
        assert_eq!(aside.len(), 1);
        assert_eq!(aside[0].join("mark-pin-keep.json").exists(), pinned);
        assert!(manager.explain().iter().any(|explanation| aside[0].ends_with(&explanation.checkpoint.name)));
        manager.close()?;
    }
    Ok(())
}

#[test]
fn nothing_is_pruned_while_one_that_stays_has_lost_files() -> Outcome {
    let dir = tempfile::tempdir()?;
    let weights = Memory::seeded(1000, 1);
    let checkpoint = Checkpoint::new().track("weights", &weights)?;
    let mut manager = CheckpointManager::builder(checkpoint, dir.path()).max_to_keep(None).open()?;
    for step in 1..=3u8 {
        weights.bytes()[0] = step;
        manager.save_at(u64::from(step))?;
    }
    manager.close()?;
    let file = dir.path().join("ckpt-3/weights.safetensors");
    let bytes = fs::read(&file)?;
    fs::write(&file, &bytes[..bytes.len() - 8])?;
    let beside = CheckpointDirectory::new(dir.path());
    let policies: [Arc<dyn RetentionPolicy>; 1] = [Arc::new(Latest(1))];
    // The damaged one is no longer a valid checkpoint, so another one is the newest.
    let pruned = beside.prune(&policies)?;
    assert_eq!(pruned.removed, [dir.path().join("ckpt-1")]);
    Ok(())
}

/// Once released their bytes stay as they are, and stay readable. With `UPDATE_GOLDEN=1` in the environment they are
/// written.
#[test]
fn marks_of_version_2_are_written_as_the_golden_files_are() -> Outcome {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v4/ckpt-1500");
    let of = Manifest::from_bytes(&fs::read(golden.join("manifest.json"))?)?.id();
    let pin = MarkKind::Pin { name: "paper".to_string(), note: "the numbers of \"table 2\"".to_string() };
    let note = MarkKind::Note { name: "val set".to_string(), text: "ü: 1,000 words".to_string() };
    for mark in [Mark::new(of.clone(), pin), Mark::new(of, note)] {
        let file = golden.join(mark.file_name());
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&file, mark.to_bytes()?)?;
        }
        let bytes = fs::read(&file)?;
        assert_eq!(String::from_utf8_lossy(&bytes), String::from_utf8_lossy(&mark.to_bytes()?));
        assert_eq!(Mark::from_bytes(&bytes)?, mark);
        let text = String::from_utf8(bytes)?;
        assert!(text.contains("\"version\":2,"));
        assert!(Mark::from_bytes(text.replace("pin", "pen").replace("note", "mote").as_bytes()).is_err());
    }
    Ok(())
}

/// `cargo test --test marks -- --ignored --nocapture many_permanent` says how long a save takes in a directory with
/// 10,000 of them, and how much of it on a processor.
#[test]
#[ignore = "it measures"]
fn saves_beside_many_permanent_checkpoints() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager = run.builder(dir.path()).max_to_keep(1).open()?;
    run.train(&mut manager, 1)?;
    manager.close()?;
    let first = Manifest::from_bytes(&fs::read(dir.path().join("ckpt-1/manifest.json"))?)?;
    for number in 2..=10_000 {
        let checkpoint = dir.path().join(format!("ckpt-{number}"));
        fs::create_dir(&checkpoint)?;
        let mut manifest = first.clone();
        (manifest.sequence, manifest.step) = (first.sequence + number - 1, Some(number));
        manifest.follows = Some(first.id());
        if let Some(follows) = &mut manifest.follows {
            follows.sequence = manifest.sequence - 1;
        }
        fs::write(checkpoint.join("manifest.json"), manifest.to_bytes()?)?;
        let mark = Mark::new(manifest.id(), MarkKind::Permanent);
        fs::write(checkpoint.join(mark.file_name()), mark.to_bytes()?)?;
    }
    std::thread::sleep(std::time::Duration::from_secs(4));
    let mut manager = run.builder(dir.path()).max_to_keep(1).open()?;
    manager.restore_or_initialize()?;
    run.0.set(10_000);
    let busy = || {
        let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
        std::time::Duration::from_nanos(text.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or_default())
    };
    for _ in 0..5 {
        let (begun, before) = (std::time::Instant::now(), busy());
        run.train(&mut manager, 1)?;
        let (count, took, busy) =
            (manager.permanent_checkpoints().len(), begun.elapsed(), busy().saturating_sub(before));
        println!("a save beside {count} permanent checkpoints takes {took:?}, {busy:?} of it on a processor");
    }
    Ok(())
}
