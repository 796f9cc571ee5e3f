//! How a run starts from others, how an evaluator follows it, and steps and metrics of any save.

mod common;

use common::Memory;
use std::path::Path;
use std::time::{Duration, Instant};
use tch_checkpoint::{
    Background, Checkpoint, CheckpointDirectory, CheckpointManager, CheckpointWatcher, Counter, Error, RestoreOptions,
};

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn run(dir: &Path, max_to_keep: usize) -> Result<(Counter, CheckpointManager), Error> {
    let step = Counter::new(0);
    let checkpoint = Checkpoint::new().track("step", &step)?;
    Ok((step, CheckpointManager::builder(checkpoint, dir).max_to_keep(max_to_keep).save_every(2).open()?))
}

#[test]
fn a_warm_start_reads_another_run_only_when_there_is_nothing_to_resume() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (pretrained, fine_tuned) = (dir.path().join("pretrained"), dir.path().join("fine-tuned"));
    let weights = Memory::seeded(100, 1);
    let checkpoint = |weights: &Memory, step: &Counter| -> Result<Checkpoint, Error> {
        Checkpoint::new().track("weights", weights)?.track("step", step)
    };
    let mut manager = CheckpointManager::builder(checkpoint(&weights, &Counter::new(9))?, &pretrained).open()?;
    let from = manager.save_at(9)?;
    manager.close()?;
    for resumed in [false, true] {
        let (live, step) = (Memory::seeded(100, 2), Counter::new(0));
        let mut manager = CheckpointManager::builder(checkpoint(&live, &step)?, &fine_tuned)
            .initialize_from(&from, RestoreOptions::new().skip("step"))
            .open()?;
        let started = manager.restore_or_initialize()?;
        assert_eq!((started.restored.is_some(), started.initialized.is_some()), (resumed, !resumed));
        assert_eq!(step.get(), u64::from(resumed));
        let expected = if resumed { Memory::seeded(100, 3) } else { weights.clone() };
        assert_eq!(*live.bytes(), *expected.bytes());
        if !resumed {
            assert_eq!(manager.checkpoint().save_counter(), 0);
            *live.bytes() = Memory::seeded(100, 3).bytes().clone();
            step.increment();
            let saved = manager.save_at(1)?;
            let manifest = tch_checkpoint::CheckpointReader::open(saved)?.manifest().clone();
            assert_eq!(manifest.follows, None);
        }
        manager.close()?;
    }
    Ok(())
}

/// Two runs in one directory: one whose newest checkpoint is unhealthy, and `other-20`.
fn some_runs(dir: &Path) -> Outcome {
    let weights = Memory::seeded(100, 0);
    let open = |name: &str| -> Result<CheckpointManager, Error> {
        let checkpoint = Checkpoint::new().track("weights", &weights)?;
        CheckpointManager::builder(checkpoint, dir).checkpoint_name(name).fresh_start().open()
    };
    let mut other = open("other")?;
    other.save_with_metrics(20, [("loss", 0.0)])?;
    other.close()?;
    let mut manager = open("ckpt")?;
    for (step, loss) in [(10, 0.5), (20, 0.2), (30, 0.2), (40, f64::NAN)] {
        *weights.bytes() = Memory::seeded(100, step).bytes().clone();
        manager.save_with_metrics(step, [("loss", loss), ("accuracy", 1.0 - loss)])?;
    }
    weights.bytes()[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    manager.save_with_metrics(50, [("loss", 0.1)])?;
    manager.pin(dir.join("ckpt-10"), "paper", "")?;
    Ok(manager.close()?)
}

#[test]
fn a_selection_stands_for_one_checkpoint() -> Outcome {
    let dir = tempfile::tempdir()?;
    some_runs(dir.path())?;
    let run = CheckpointDirectory::new(dir.path());
    for (selection, name) in [
        ("latest", "ckpt-40"),
        ("best:accuracy:max", "ckpt-30"),
        ("best:accuracy:min", "ckpt-10"),
        ("best:loss:min", "other-20"),
        ("pin:paper", "ckpt-10"),
        ("30", "ckpt-30"),
        ("50", "ckpt-50"),
        ("ckpt-50", "ckpt-50"),
        ("other-20", "other-20"),
    ] {
        assert_eq!(run.select(selection)?.name, name, "{selection}");
        // The tool opens it at a path.
        let target = tch_checkpoint::inspect::Target::open(dir.path().join(selection))?;
        assert_eq!(target.source().path(), &dir.path().join(name), "{selection}");
    }
    for (selection, says) in [
        ("60", "number 60"),
        ("pin:papers", "the nearest is \"paper\""),
        ("best:los:min", "the nearest is \"loss\""),
        ("ckpt-60", "ckpt-60"),
    ] {
        let error = run.select(selection).unwrap_err();
        assert!(matches!(error, Error::NotFound { .. }) && error.to_string().contains(says), "{error}");
        let error = tch_checkpoint::inspect::Target::open(dir.path().join(selection)).unwrap_err();
        assert!(matches!(error, Error::NotFound { .. }), "{error}");
    }
    for (selection, says) in [("20", "other-20 and ckpt-20"), ("best:loss", "best:METRIC:min")] {
        let error = run.select(selection).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument(_)) && error.to_string().contains(says), "{error}");
    }
    let error = CheckpointDirectory::new(dir.path().join("none")).select("latest").unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }) && error.to_string().contains("no such directory"), "{error}");
    // What is damaged is not said to be missing.
    std::fs::write(dir.path().join("ckpt-30/manifest.json"), "{}")?;
    let error = run.select("30").unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }) && error.to_string().contains("ckpt-30"), "{error}");
    let error = run.select("pin:papers").unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }) && error.to_string().contains("1 are damaged"), "{error}");
    Ok(())
}

#[test]
fn a_warm_start_takes_what_its_path_selects() -> Outcome {
    let dir = tempfile::tempdir()?;
    let pretrained = dir.path().join("pretrained");
    some_runs(&pretrained)?;
    // Existing checkpoints come first.
    std::fs::rename(pretrained.join("other-20"), pretrained.join("30"))?;
    let mut number = 0;
    let mut start = |selection: &str| -> Result<Memory, Error> {
        number += 1;
        let live = Memory::seeded(100, 99);
        let checkpoint = Checkpoint::new().track("weights", &live)?;
        let mut manager = CheckpointManager::builder(checkpoint, dir.path().join(number.to_string()))
            .initialize_from(pretrained.join(selection), RestoreOptions::new())
            .open()?;
        assert!(manager.restore_or_initialize()?.initialized.is_some());
        Ok(live)
    };
    for (selection, seed) in
        [("latest", 40), ("best:accuracy:max", 30), ("pin:paper", 10), ("20", 20), ("ckpt-30", 30), ("30", 0)]
    {
        assert_eq!(*start(selection)?.bytes(), *Memory::seeded(100, seed).bytes(), "{selection}");
    }
    for selection in ["60", "pin:nothing", "best:nothing:min", "ckpt-60"] {
        assert!(matches!(start(selection), Err(Error::NotFound { .. })), "{selection}");
    }
    Ok(())
}

#[test]
fn an_evaluator_sees_the_newest_or_each_until_none_comes() -> Outcome {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("run");
    let quick = |watcher: CheckpointWatcher| watcher.poll(Duration::from_millis(2)).timeout(Duration::from_millis(400));
    let names = |watcher: CheckpointWatcher| -> Result<Vec<String>, Error> {
        watcher.map(|info| info.map(|info| info.name)).collect()
    };
    // The directory is not there yet.
    assert_eq!(names(quick(CheckpointWatcher::new(&path)).timeout(Duration::ZERO))?, [] as [&str; 0]);
    let (_, mut manager) = run(&path, 2)?;
    let trained = path.clone();
    let evaluator = std::thread::spawn(move || {
        let checkpoints = CheckpointDirectory::new(&trained);
        let mut seen = Vec::new();
        for info in quick(CheckpointWatcher::new(&trained)).each() {
            let info = info?;
            match checkpoints.add_metrics(&info.name, [("seen", 1.0)]) {
                Ok(()) | Err(Error::Removed { .. } | Error::NotFound { .. }) => seen.push(info.name),
                Err(error) => return Err(error),
            }
        }
        Ok(seen)
    });
    for step in 1..=5 {
        manager.save_at(step)?;
        std::thread::sleep(Duration::from_millis(60));
    }
    let seen = evaluator.join().map_err(|_| "it panicked")??;
    let mut sorted = seen.clone();
    sorted.sort();
    sorted.dedup();
    assert_eq!(seen, sorted, "each once, and in order");
    assert_eq!(seen.last().map(String::as_str), Some("ckpt-5"));
    // Only the newest one, without waiting.
    assert_eq!(names(quick(CheckpointWatcher::new(&path)).timeout(Duration::ZERO))?, ["ckpt-5"]);
    assert_eq!(names(quick(CheckpointWatcher::new(&path)).each().timeout(Duration::ZERO))?, ["ckpt-4", "ckpt-5"]);
    let mut asked = 0;
    let stopped = CheckpointWatcher::new(&path).poll(Duration::from_millis(1)).stop_when(move || {
        asked += 1;
        asked > 3
    });
    assert_eq!(names(stopped)?, ["ckpt-5"]);
    // Also between two items.
    let mut asked = 0;
    let mut stopped =
        CheckpointWatcher::new(&path).each().poll(Duration::from_millis(1)).min_interval(Duration::MAX).stop_when(
            move || {
                asked += 1;
                asked > 3
            },
        );
    assert_eq!(stopped.next().transpose()?.map(|info| info.name).as_deref(), Some("ckpt-4"));
    assert!(stopped.next().is_none());
    let began = Instant::now();
    let slow = quick(CheckpointWatcher::new(&path)).each().min_interval(Duration::from_millis(150));
    assert_eq!(slow.take(2).count(), 2);
    assert!(began.elapsed() >= Duration::from_millis(150));
    Ok(())
}

#[test]
fn metrics_come_with_a_save_that_is_due_and_are_not_computed_otherwise() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (step, mut manager) = run(dir.path(), 9)?;
    let mut evaluations = 0;
    for _ in 0..6 {
        let now = step.increment();
        manager.save_if_due_with_metrics(now, || {
            evaluations += 1;
            [("loss", now as f64)]
        })?;
    }
    assert_eq!(evaluations, 3);
    let found = CheckpointDirectory::new(dir.path()).checkpoints()?;
    assert_eq!(found.iter().map(|info| info.metrics["loss"]).collect::<Vec<_>>(), [2.0, 4.0, 6.0]);
    Ok(())
}

#[test]
fn metrics_of_a_step_that_is_saved_already_are_added() -> Outcome {
    let dir = tempfile::tempdir()?;
    for background in [false, true] {
        let dir = dir.path().join(background.to_string());
        let open = || -> Result<CheckpointManager, Error> {
            let checkpoint = Checkpoint::new().track("weights", Memory::seeded(1 << 20, 1))?;
            let builder = CheckpointManager::builder(checkpoint, &dir).save_every(2);
            if background { builder.background(Background::new()).open() } else { builder.open() }
        };
        let metrics = |name: &str| CheckpointDirectory::new(&dir).get(name).map(|info| info.metrics);
        let never = || -> [(&str, f64); 0] { panic!("nothing is computed for nothing") };
        let mut manager = open()?;
        assert!(manager.save_if_due(2)?.is_some());
        // Perhaps while it is written, and again when it is durable.
        assert_eq!(manager.save_if_due_with_metrics(2, || [("loss", 0.5)])?, None);
        manager.wait()?;
        assert_eq!(manager.save_if_due_with_metrics(2, || [("loss", 0.25), ("bleu", 30.0)])?, None);
        assert_eq!(metrics("ckpt-2")?, [("bleu", 30.0), ("loss", 0.25)].map(|(name, x)| (name.to_string(), x)).into());
        assert_eq!(manager.save_if_due_with_metrics(3, never)?, None);
        manager.save_at(4)?;
        manager.close()?;
        // What was restored is that step's, too, also if it is not the newest.
        let mut manager = open()?;
        manager.restore(dir.join("ckpt-2"))?;
        assert_eq!(manager.save_if_due_with_metrics(2, || [("loss", 0.125)])?, None);
        assert_eq!((metrics("ckpt-2")?["loss"], metrics("ckpt-4")?.len()), (0.125, 0));
        manager.restore_or_initialize()?;
        // It was removed by hand.
        std::fs::remove_dir_all(dir.join("ckpt-4"))?;
        assert_eq!(manager.save_if_due_with_metrics(4, never)?, None);
    }
    Ok(())
}

#[test]
fn a_step_may_be_the_highest_number_there_is() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (_, mut manager) = run(dir.path(), 9)?;
    manager.save_at(1)?;
    let last = manager.save_at(u64::MAX)?;
    assert!(last.ends_with(format!("ckpt-{}", u64::MAX)));
    assert_eq!(CheckpointDirectory::new(dir.path()).latest()?.and_then(|info| info.step), Some(u64::MAX));
    Ok(())
}

#[test]
fn a_wait_with_a_limit_tells_whether_all_is_durable() -> Outcome {
    let dir = tempfile::tempdir()?;
    let weights = Memory::seeded(1 << 20, 1);
    let checkpoint = Checkpoint::new().track("weights", &weights)?;
    let mut manager = CheckpointManager::builder(checkpoint, dir.path()).background(Background::new()).open()?;
    assert!(!manager.is_saving() && manager.wait_timeout(Duration::ZERO)?);
    let path = manager.save_at(1)?;
    let durable = manager.wait_timeout(Duration::ZERO)?;
    assert!(!durable || path.join("manifest.json").exists());
    assert!(manager.wait_timeout(Duration::from_secs(600))?);
    assert!(path.join("manifest.json").exists() && !manager.is_saving());
    Ok(())
}
