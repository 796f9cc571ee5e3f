//! Functions that are called after a checkpoint is durable.

mod common;

use common::Memory;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tch_checkpoint::{
    Background, Checkpoint, CheckpointManager, CheckpointManagerBuilder, Counter, Error, Location, SaveOptions,
    SavedCheckpoint, verify_checkpoint,
};

type Outcome = Result<(), Box<dyn std::error::Error>>;
type Failure = Box<dyn std::error::Error + Send + Sync>;

fn builder(dir: &Path, background: bool) -> Result<CheckpointManagerBuilder, Error> {
    let checkpoint = Checkpoint::new().track("weights", Memory::seeded(5000, 1))?.track("step", Counter::new(0))?;
    let builder = CheckpointManager::builder(checkpoint, dir).max_to_keep(2);
    Ok(if background { builder.background(Background::new()) } else { builder })
}

#[test]
fn it_is_called_when_the_checkpoint_is_durable_and_the_old_ones_are_gone() -> Outcome {
    for background in [false, true] {
        let dir = tempfile::tempdir()?;
        let seen: Arc<Mutex<Vec<(SavedCheckpoint, bool, usize)>>> = Arc::default();
        let (noted, root) = (seen.clone(), dir.path().to_path_buf());
        let training = std::thread::current().id();
        let mut manager = builder(dir.path(), background)?
            .on_saved(move |saved| -> Result<(), Failure> {
                assert_eq!(std::thread::current().id() == training, !background);
                let there = std::fs::read_dir(&root)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
                let there = there.filter(|name| name.starts_with("ckpt-")).count();
                let intact = verify_checkpoint(&saved.path).is_intact();
                noted.lock().unwrap().push((saved.clone(), intact, there));
                Ok(())
            })
            .open()?;
        let paths = (1..=4).map(|step| manager.save_with_metrics(step, [("loss", 0.5)]));
        let paths: Vec<Location> = paths.collect::<Result<_, _>>()?;
        // The state is that of the last one: nothing is saved, so nothing is called.
        manager.save_at(4)?;
        manager.close()?;
        let seen = seen.lock().unwrap();
        assert_eq!(seen.iter().map(|(saved, ..)| saved.path.clone()).collect::<Vec<_>>(), paths);
        assert!(seen.iter().all(|(_, intact, there)| *intact && *there <= 2));
        let info = &seen[3].0.info;
        assert_eq!((info.step, info.metrics["loss"], info.name.as_str()), (Some(4), 0.5, "ckpt-4"));
    }
    Ok(())
}

#[test]
fn its_errors_and_panics_are_those_of_the_save_and_the_checkpoint_stays() -> Outcome {
    for (background, panics) in [(false, false), (false, true), (true, false), (true, true)] {
        let dir = tempfile::tempdir()?;
        let later = Arc::new(AtomicBool::new(false));
        let called = later.clone();
        let mut manager = builder(dir.path(), background)?
            .on_saved(move |saved| match (saved.info.step, panics) {
                (Some(1), false) => Err("no room at the other place"),
                (Some(1), true) => panic!("no room at the other place"),
                _ => Ok(()),
            })
            .on_saved(move |_| -> Result<(), Failure> {
                called.store(true, Ordering::SeqCst);
                Ok(())
            })
            .open()?;
        let saved = manager.save_at(1);
        assert_eq!(saved.is_ok(), background);
        let error = saved.and_then(|_| manager.wait()).unwrap_err();
        assert!(matches!(&error, Error::Callback { path, .. } if path.ends_with("ckpt-1")), "{error}");
        assert!(error.to_string().contains("durable"), "{error}");
        let source = std::error::Error::source(&error).map(ToString::to_string);
        assert_eq!(source.as_deref(), Some("no room at the other place"));
        assert!(later.load(Ordering::SeqCst) && verify_checkpoint(dir.path().join("ckpt-1")).is_intact());
        // It is not due again, and what follows follows it.
        assert_eq!(manager.save_if_due(1)?, None);
        let next = manager.save_at(2)?;
        manager.close()?;
        let follows = tch_checkpoint::CheckpointReader::open(next)?.manifest().follows.clone();
        let first = tch_checkpoint::CheckpointReader::open(dir.path().join("ckpt-1"))?.manifest().id();
        assert_eq!(follows, Some(first));
    }
    Ok(())
}

/// The manager is where both threads can reach it.
#[test]
fn the_manager_and_restores_are_refused_in_it_instead_of_waiting_for_ever() -> Outcome {
    let dir = tempfile::tempdir()?;
    let shared: Arc<Mutex<Option<CheckpointManager>>> = Arc::default();
    let refusals: Arc<Mutex<Vec<String>>> = Arc::default();
    let (inner, noted) = (shared.clone(), refusals.clone());
    let manager = builder(dir.path(), true)?
        .on_saved(move |saved| -> Result<(), Failure> {
            let mut manager = inner.lock().unwrap();
            let manager = manager.as_mut().ok_or("no manager")?;
            let mut noted = noted.lock().unwrap();
            let mut note = |result: Result<(), Error>| noted.push(result.unwrap_err().to_string());
            note(manager.save_at(9).map(drop));
            note(manager.save().map(drop));
            note(manager.save_if_due(9).map(drop));
            note(manager.wait());
            note(manager.wait_timeout(Duration::from_secs(60)).map(drop));
            note(manager.restore(&saved.path).map(drop));
            note(manager.restore_or_initialize().map(drop));
            note(manager.pin(&saved.path, "a", ""));
            note(manager.unpin(&saved.path, "a").map(drop));
            note(Checkpoint::new().track("step", Counter::new(0))?.restore(&saved.path).map(drop));
            assert!(manager.is_saving());
            Ok(())
        })
        .open()?;
    *shared.lock().unwrap() = Some(manager);
    shared.lock().unwrap().as_mut().ok_or("no manager")?.save_at(1)?;
    while shared.lock().unwrap().as_ref().is_some_and(CheckpointManager::is_saving) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let manager = shared.lock().unwrap().take().ok_or("no manager")?;
    manager.close()?;
    let refusals = refusals.lock().unwrap();
    assert_eq!(refusals.len(), 10);
    assert!(refusals.iter().all(|refusal| refusal.contains("on_saved")), "{refusals:?}");
    Ok(())
}

#[test]
fn it_sees_what_was_added_while_the_checkpoint_was_written() -> Outcome {
    let dir = tempfile::tempdir()?;
    let go = Arc::new(AtomicBool::new(false));
    let may_go = go.clone();
    let options = SaveOptions::new().on_progress(move |_| {
        while !may_go.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    let seen: Arc<Mutex<Option<SavedCheckpoint>>> = Arc::default();
    let noted = seen.clone();
    let mut manager = builder(dir.path(), true)?
        .save_options(options)
        .on_saved(move |saved| -> Result<(), Failure> {
            *noted.lock().unwrap() = Some(saved.clone());
            Ok(())
        })
        .open()?;
    let path = manager.save_with_metrics(1, [("loss", 0.5)])?;
    manager.add_metrics(&path, [("accuracy", 0.9)])?;
    manager.pin(&path, "paper", "")?;
    manager.annotate(&path, "by", "the training")?;
    go.store(true, Ordering::SeqCst);
    manager.close()?;
    let info = seen.lock().unwrap().take().ok_or("it was not called")?.info;
    assert_eq!((info.metrics["loss"], info.metrics["accuracy"]), (0.5, 0.9));
    assert!(info.pins.contains_key("paper") && info.notes["by"] == "the training");
    Ok(())
}

#[test]
fn while_it_runs_the_manager_is_saving() -> Outcome {
    let dir = tempfile::tempdir()?;
    let go = Arc::new(AtomicBool::new(false));
    let may_go = go.clone();
    let mut manager = builder(dir.path(), true)?
        .on_saved(move |_| -> Result<(), Failure> {
            while !may_go.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok(())
        })
        .open()?;
    manager.save_at(1)?;
    assert!(!manager.wait_timeout(Duration::from_millis(30))? && manager.is_saving());
    go.store(true, Ordering::SeqCst);
    assert!(manager.wait_timeout(Duration::from_secs(600))? && !manager.is_saving());
    Ok(())
}
