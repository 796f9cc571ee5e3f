//! The start of a run reads every byte once. Damage that is found while reading may already be in objects: an older
//! checkpoint overwrites them, or nothing is saved.

mod common;

use common::Memory;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tch_checkpoint::{Checkpoint, CheckpointManager, CheckpointManagerBuilder, Counter, Error, RestoreOptions, Verify};

type Outcome = Result<(), Box<dyn std::error::Error>>;

struct Run {
    step: Counter,
    first: Memory,
    second: Memory,
}

impl Run {
    fn new(seed: u64) -> Run {
        Run { step: Counter::new(0), first: Memory::seeded(300_000, seed), second: Memory::seeded(300_000, seed + 1) }
    }

    fn builder(&self, dir: &Path) -> Result<CheckpointManagerBuilder, Error> {
        let checkpoint = Checkpoint::new().track("first", &self.first)?.track("second", &self.second)?;
        Ok(CheckpointManager::builder(checkpoint.track("step", &self.step)?, dir))
    }

    fn set(&self, step: u64) {
        self.step.set(step);
        *self.first.bytes() = Memory::seeded(300_000, 100 * step).bytes().clone();
        *self.second.bytes() = Memory::seeded(300_000, 100 * step + 1).bytes().clone();
    }

    fn is_at(&self, step: u64) -> bool {
        let other = Run::new(0);
        other.set(step);
        self.step.get() == step
            && *self.first.bytes() == *other.first.bytes()
            && *self.second.bytes() == *other.second.bytes()
    }
}

/// Checkpoints of the steps 1 to `count`.
fn saved(dir: &Path, count: u64) -> Outcome {
    let run = Run::new(7);
    let mut manager = run.builder(dir)?.open()?;
    for step in 1..=count {
        run.set(step);
        manager.save_at(step)?;
    }
    Ok(manager.close()?)
}

/// Changes the last byte of the second component, after the first one was read.
fn damage(dir: &Path, step: u64) -> Outcome {
    let file = dir.join(format!("ckpt-{step}/second.safetensors"));
    let mut bytes = fs::read(&file)?;
    *bytes.last_mut().ok_or("empty")? ^= 1;
    Ok(fs::write(&file, bytes)?)
}

#[test]
fn every_byte_is_read_once() -> Outcome {
    let dir = tempfile::tempdir()?;
    saved(dir.path(), 1)?;
    let total = Arc::new(AtomicU64::new(0));
    let read = |options: RestoreOptions| {
        let total = total.clone();
        options.on_progress(move |progress| total.store(progress.total, Ordering::SeqCst))
    };
    let run = Run::new(7);
    let mut manager = run.builder(dir.path())?.open()?;
    manager.restore_or_initialize_with(&read(RestoreOptions::new()))?;
    assert_eq!(total.load(Ordering::SeqCst), 2 * 4 * 300_000);
    assert!(run.is_at(1));
    // With an exception, and nothing older that could overwrite it, it is verified first.
    manager.restore_or_initialize_with(&read(RestoreOptions::new().allow_missing("other")))?;
    assert_eq!(total.load(Ordering::SeqCst), 2 * 2 * 4 * 300_000);
    Ok(())
}

#[test]
fn what_was_touched_is_overwritten_by_the_one_before() -> Outcome {
    for threads in [1, 2] {
        let dir = tempfile::tempdir()?;
        saved(dir.path(), 3)?;
        damage(dir.path(), 3)?;
        let run = Run::new(7);
        let mut manager = run.builder(dir.path())?.open()?;
        let started = manager.restore_or_initialize_with(&RestoreOptions::new().threads(threads))?;
        assert!(run.is_at(2));
        assert_eq!(started.passed_over.len(), 1);
        let reason = &started.passed_over[0].reason;
        assert!(reason.contains("second.safetensors") && !reason.contains("partly"), "{reason}");
        // Nothing of the damaged one is left that would prevent saving.
        run.set(3);
        manager.save_at(3)?;
    }
    Ok(())
}

#[test]
fn if_none_is_intact_the_error_says_that_objects_are_mixed_and_nothing_is_saved() -> Outcome {
    for fresh_start in [false, true] {
        let dir = tempfile::tempdir()?;
        saved(dir.path(), 2)?;
        damage(dir.path(), 1)?;
        damage(dir.path(), 2)?;
        let run = Run::new(7);
        let builder = run.builder(dir.path())?;
        let mut manager = if fresh_start { builder.fresh_start().open()? } else { builder.open()? };
        for _ in 0..2 {
            let error = manager.restore_or_initialize().unwrap_err();
            assert!(matches!(error, Error::PartlyRestored { .. }), "{error}");
            assert!(error.to_string().contains("partly"), "{error}");
            let refusal = manager.save_at(3).unwrap_err().to_string();
            assert!(refusal.contains("half-way"), "{refusal}");
        }
        // Restoring a checkpoint from elsewhere repairs it.
        let other = tempfile::tempdir()?;
        saved(other.path(), 5)?;
        manager.restore(other.path().join("ckpt-5"))?;
        assert!(run.is_at(5));
        drop(manager);
        // And a program that is started again has new objects.
        let run = Run::new(9);
        assert!(run.builder(dir.path())?.fresh_start().open()?.restore_or_initialize()?.restored.is_none());
    }
    Ok(())
}

#[test]
fn an_initialization_that_stopped_half_way_is_tried_again() -> Outcome {
    let (dir, pretrained) = (tempfile::tempdir()?, tempfile::tempdir()?);
    saved(pretrained.path(), 1)?;
    damage(pretrained.path(), 1)?;
    let run = Run::new(7);
    let while_reading = RestoreOptions::new().verify(Verify::WhileReading);
    let from = pretrained.path().join("ckpt-1");
    let mut manager = run.builder(dir.path())?.initialize_from(from, while_reading).open()?;
    for _ in 0..2 {
        let error = manager.restore_or_initialize().unwrap_err();
        assert!(matches!(error, Error::PartlyRestored { .. }), "{error}");
        assert!(manager.save_at(3).is_err());
    }
    // Repaired.
    damage(pretrained.path(), 1)?;
    assert!(manager.restore_or_initialize()?.initialized.is_some());
    assert!(run.is_at(1));
    manager.save_at(2)?;
    Ok(())
}

/// Saves a first checkpoint without the second component, and another one, which is damaged.
fn saved_before_a_component(dir: &Path, lenient: &RestoreOptions) -> Outcome {
    let small = Run::new(7);
    small.set(1);
    let checkpoint = Checkpoint::new().track("first", &small.first)?.track("step", &small.step)?;
    CheckpointManager::builder(checkpoint, dir).open()?.save_at(1)?;
    let run = Run::new(7);
    let mut manager = run.builder(dir)?.open()?;
    manager.restore_or_initialize_with(lenient)?;
    run.set(2);
    manager.save_at(2)?;
    manager.close()?;
    damage(dir, 2)
}

#[test]
fn an_exception_never_leaves_what_was_touched() -> Outcome {
    let (dir, lenient) = (tempfile::tempdir()?, RestoreOptions::new().allow_missing("second"));
    saved_before_a_component(dir.path(), &lenient)?;
    let run = Run::new(7);
    let before = run.second.bytes().clone();
    let mut manager = run.builder(dir.path())?.open()?;
    let started = manager.restore_or_initialize_with(&lenient)?;
    assert_eq!(started.restored.and_then(|status| status.step()), Some(1));
    assert!(*run.second.bytes() == before, "it was verified first, so nothing touched it");
    Ok(())
}

/// The run needs no exception any more, but the only older one is of the time before the component.
#[test]
fn a_fallback_of_before_a_component_never_leaves_what_was_touched() -> Outcome {
    let (dir, lenient) = (tempfile::tempdir()?, RestoreOptions::new().allow_missing("second"));
    saved_before_a_component(dir.path(), &lenient)?;
    let run = Run::new(7);
    let before = (run.first.bytes().clone(), run.second.bytes().clone());
    let mut manager = run.builder(dir.path())?.open()?;
    let error = manager.restore_or_initialize().unwrap_err();
    assert!(matches!(error, Error::Mismatch { .. }), "{error}");
    assert!((run.first.bytes().clone(), run.second.bytes().clone()) == before, "it was verified first");
    // What the error asks for still works.
    manager.restore_or_initialize_with(&lenient)?;
    assert!(run.step.get() == 1 && *run.second.bytes() == before.1);
    Ok(())
}

#[test]
fn a_header_is_checked_before_anything_is_touched() -> Outcome {
    let dir = tempfile::tempdir()?;
    saved(dir.path(), 1)?;
    let file = dir.path().join("ckpt-1/second.safetensors");
    let mut bytes = fs::read(&file)?;
    bytes[4000] ^= 1;
    fs::write(&file, bytes)?;
    let run = Run::new(7);
    let before = run.first.bytes().clone();
    let error = run.builder(dir.path())?.open()?.restore_or_initialize().unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
    assert!(*run.first.bytes() == before && run.step.get() == 0);
    Ok(())
}
