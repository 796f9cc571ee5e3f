//! Leftovers are bounded, rejected states are not saved, and the last save fits into the remaining time.

mod common;

use common::Memory;
use common::run::names_in;
use std::fs;
use std::path::Path;
use std::time::Duration;
use tch_checkpoint::retention::KeptBy;
use tch_checkpoint::{
    Background, Checkpoint, CheckpointDirectory, CheckpointManager, CheckpointManagerBuilder, Counter, Error,
    OnSaveError, OnUnhealthy, Preemption, RestoreOptions,
};

type Outcome = Result<(), Box<dyn std::error::Error>>;

struct Run {
    model: Memory,
    slots: Memory,
    step: Counter,
}

impl Run {
    fn new() -> Run {
        Run { model: Memory::seeded(1000, 1), slots: Memory::seeded(1000, 2), step: Counter::new(0) }
    }

    fn builder(&self, dir: &Path) -> Result<CheckpointManagerBuilder, Error> {
        let checkpoint = Checkpoint::new().track("model", &self.model)?.track("optimizer", &self.slots)?;
        Ok(CheckpointManager::builder(checkpoint.track("step", &self.step)?, dir))
    }

    fn train(&self) -> u64 {
        let step = self.step.increment();
        for tensor in [&self.model, &self.slots] {
            *tensor.bytes() = Memory::seeded(1000, 10 * step).bytes().clone();
        }
        step
    }

    fn set(&self, value: f32) {
        self.model.bytes()[..4].copy_from_slice(&value.to_le_bytes());
    }
}

fn aside(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().filter_map(|entry| entry.unwrap().file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| name.starts_with("damaged-")).collect();
    names.sort();
    names
}

// ------------------------------------------------------------------------------------------ unhealthy

#[test]
fn refused_values_are_skipped_and_the_training_goes_on() -> Outcome {
    for background in [false, true] {
        let dir = tempfile::tempdir()?;
        let run = Run::new();
        let builder = run.builder(dir.path())?.save_every(2).on_unhealthy(OnUnhealthy::Skip);
        let mut manager = if background { builder.background(Background::new()).open()? } else { builder.open()? };
        let mut attempts = 0;
        for step in 1..=8 {
            run.train();
            if step > 3 && step < 7 {
                run.set(f32::NAN);
            }
            attempts += usize::from(manager.save_if_due(step)?.is_some());
        }
        manager.wait()?;
        assert_eq!(names_in(dir.path())?, ["ckpt-2", "ckpt-8"], "background: {background}");
        // It was due at 4 and 6 only: a skipped save is not tried again at every step.
        assert_eq!(attempts, if background { 4 } else { 2 });
        run.set(f32::NAN);
        let forced = manager.save_at(9).and_then(|_| manager.wait());
        assert_eq!(matches!(forced, Err(Error::Unhealthy { .. })), !background);
        manager.close()?;
        assert_eq!(names_in(dir.path())?, ["ckpt-2", "ckpt-8"]);
    }
    Ok(())
}

// ------------------------------------------------------------------------------------------ damaged

/// Saves, damages what was saved, and restores, `count` times.
fn damage(dir: &Path, count: usize, keep: Option<usize>) -> Outcome {
    for _ in 0..count {
        let run = Run::new();
        let mut manager = run.builder(dir)?.keep_damaged(keep).open()?;
        manager.restore_or_initialize()?;
        run.train();
        manager.save_at(run.step.get())?;
        let bad = manager.save_at(run.train())?;
        manager.close()?;
        fs::write(bad.join("manifest.json"), "not what was written")?;
    }
    let run = Run::new();
    let mut manager = run.builder(dir)?.keep_damaged(keep).open()?;
    manager.restore_or_initialize()?;
    manager.save_at(run.train())?;
    Ok(manager.close()?)
}

#[test]
fn of_those_found_damaged_the_newest_stay() -> Outcome {
    let dir = tempfile::tempdir()?;
    damage(dir.path(), 6, Some(2))?;
    let left = aside(dir.path());
    assert_eq!(left.len(), 2, "{left:?}");
    assert!(left[0].starts_with("damaged-ckpt-6-") && left[1].starts_with("damaged-ckpt-7-"), "{left:?}");
    // And they are shown.
    assert_eq!(CheckpointDirectory::new(dir.path()).list()?.moved_aside.len(), 2);
    let dir = tempfile::tempdir()?;
    damage(dir.path(), 5, None)?;
    assert_eq!(aside(dir.path()).len(), 5);
    Ok(())
}

#[test]
fn a_damaged_one_without_a_component_does_not_stay_for_that() -> Outcome {
    let dir = tempfile::tempdir()?;
    damage(dir.path(), 1, None)?;
    let thinned = aside(dir.path()).remove(0);
    fs::write(dir.path().join(&thinned).join("mark-thinned-optimizer.json"), "whatever it says")?;
    damage(dir.path(), 2, Some(0))?;
    assert_eq!(aside(dir.path()).len(), 0);
    Ok(())
}

#[test]
fn a_damaged_one_with_a_pin_stays_and_so_does_what_only_looks_like_one() -> Outcome {
    let dir = tempfile::tempdir()?;
    damage(dir.path(), 1, None)?;
    let pinned = aside(dir.path()).remove(0);
    fs::write(dir.path().join(&pinned).join("mark-pin-mine.json"), "whatever it says")?;
    // Not by this crate: another form of name, and a link.
    let other = tempfile::tempdir()?;
    fs::write(other.path().join("precious"), "data")?;
    let nonce = "0123456789abcdef0123456789abcdef";
    fs::create_dir(dir.path().join("damaged-goods"))?;
    std::os::unix::fs::symlink(other.path(), dir.path().join(format!("damaged-ckpt-1-{nonce}")))?;
    damage(dir.path(), 2, Some(0))?;
    assert_eq!(aside(dir.path()).len(), 3);
    assert!(dir.path().join(pinned).join("mark-pin-mine.json").exists());
    assert!(dir.path().join("damaged-goods").exists() && other.path().join("precious").exists());
    Ok(())
}

// ------------------------------------------------------------------------------------------ the end

fn end(dir: &Path, preemption: Preemption, steps: u64, background: bool) -> Result<Run, Error> {
    let run = Run::new();
    let builder = run.builder(dir)?.save_every(100).preemption(preemption.clone());
    let mut manager = if background { builder.background(Background::new()).open()? } else { builder.open()? };
    manager.restore_or_initialize()?;
    for _ in 0..steps {
        manager.save_if_due(run.train())?;
    }
    manager.save_at(run.step.get())?;
    preemption.request();
    assert!(manager.preempted());
    manager.save_if_due(run.train())?;
    assert!(!manager.is_saving(), "it is durable when the call returns");
    manager.close()?;
    Ok(run)
}

#[test]
fn the_full_state_is_saved_if_there_is_time_and_else_only_the_weights() -> Outcome {
    // Clones share the request, so that each run has one of its own.
    let only = || Preemption::new().save_only(["model", "step"]);
    let kinds: [(&dyn Fn() -> Preemption, bool); 5] = [
        (&Preemption::new, true),
        (&|| Preemption::new().grace(Duration::ZERO), true),
        (&only, false),
        (&|| only().grace(Duration::ZERO), false),
        (&|| only().grace(Duration::from_secs(3600)), true),
    ];
    for (preemption, is_complete) in kinds {
        for background in [false, true] {
            let dir = tempfile::tempdir()?;
            end(dir.path(), preemption(), 3, background)?;
            assert_eq!(names_in(dir.path())?, ["ckpt-3", "ckpt-4"]);
            let info = CheckpointDirectory::new(dir.path()).get("ckpt-4")?;
            assert_eq!(info.is_complete(), is_complete, "{:?}", preemption());
            assert!(is_complete || info.without == ["optimizer"]);
        }
    }
    Ok(())
}

#[test]
fn weights_alone_are_not_resumed_from_unless_that_is_asked_for() -> Outcome {
    let dir = tempfile::tempdir()?;
    let ended = end(dir.path(), Preemption::new().save_only(["model", "step"]), 3, false)?;
    let run = Run::new();
    let mut manager = run.builder(dir.path())?.max_to_keep(1).open()?;
    let started = manager.restore_or_initialize()?;
    assert_eq!((started.restored.and_then(|status| status.step()), run.step.get()), (Some(3), 3));
    let reason = &started.passed_over[0].reason;
    assert!(reason.contains("optimizer") && reason.contains("restore_incomplete"), "{reason}");
    manager.close()?;

    // A restore by path says what is missing.
    let refusal = run.builder(dir.path())?.open()?.restore(dir.path().join("ckpt-4")).unwrap_err();
    assert!(matches!(&refusal, Error::Mismatch { report, .. } if report.missing == ["optimizer"]), "{refusal}");

    let run = Run::new();
    let slots = run.slots.bytes().clone();
    let mut manager = run.builder(dir.path())?.max_to_keep(1).restore_incomplete().open()?;
    let started = manager.restore_or_initialize_with(&RestoreOptions::new())?;
    assert_eq!(started.restored.and_then(|status| status.step()), Some(4));
    assert!(*run.model.bytes() == *ended.model.bytes() && *run.slots.bytes() == slots && run.step.get() == 4);
    // The newest complete one stays too, whatever the policies say.
    let explained = manager.explain();
    assert_eq!(explained[0].kept_by[0], KeptBy::NewestComplete, "{}", explained[0]);
    manager.save_at(run.train())?;
    assert_eq!(names_in(dir.path())?, ["ckpt-5"]);
    Ok(())
}

#[test]
fn a_component_that_is_not_tracked_is_an_error_and_a_complete_one_is_not_replaced() -> Outcome {
    let dir = tempfile::tempdir()?;
    // Long before the last save.
    for background in [false, true] {
        let refusal = end(dir.path(), Preemption::new().save_only(["step", "modell"]), 3, background);
        let refusal = refusal.err().ok_or("it was saved")?.to_string();
        assert!(refusal.contains("modell") && refusal.contains("the nearest is \"model\""), "{refusal}");
        assert_eq!(names_in(dir.path())?, [] as [&str; 0]);
    }
    // The last save saves what there is.
    for (only, without) in [(&["step", "modell"][..], &["model", "optimizer"][..]), (&["modell"], &[])] {
        let dir = tempfile::tempdir()?;
        let preemption = Preemption::new().save_only(only.iter().copied());
        let run = Run::new();
        let mut manager = run.builder(dir.path())?.preemption(preemption.clone()).open()?;
        preemption.request();
        manager.save_if_due(run.train())?;
        assert_eq!(CheckpointDirectory::new(dir.path()).get("ckpt-1")?.without, without);
    }

    let dir = tempfile::tempdir()?;
    let preemption = Preemption::new().save_only(["model"]);
    let run = Run::new();
    let mut manager = run.builder(dir.path())?.save_every(100).preemption(preemption.clone()).open()?;
    manager.save_at(run.train())?;
    preemption.request();
    manager.save_if_due(1)?;
    assert!(CheckpointDirectory::new(dir.path()).get("ckpt-1")?.is_complete());
    Ok(())
}

/// Whatever the policy about refused saves says: this may be the last call.
#[test]
fn a_state_that_is_refused_ends_the_loop_with_the_error() -> Outcome {
    let go_on = OnSaveError::Continue { give_up_after: 5 };
    let kinds = [(OnUnhealthy::Skip, OnSaveError::Return), (OnUnhealthy::Skip, go_on), (OnUnhealthy::Fail, go_on)];
    for (background, (on_unhealthy, on_save_error)) in
        [false, true].into_iter().flat_map(|it| kinds.map(|kind| (it, kind)))
    {
        let dir = tempfile::tempdir()?;
        let (run, preemption) = (Run::new(), Preemption::new());
        let builder = run.builder(dir.path())?.save_every(100).preemption(preemption.clone());
        let builder = builder.on_unhealthy(on_unhealthy).on_save_error(on_save_error);
        let mut manager = if background { builder.background(Background::new()).open()? } else { builder.open()? };
        manager.save_at(run.train())?;
        preemption.request();
        run.train();
        run.set(f32::NAN);
        assert!(!manager.should_stop());
        let refusal = manager.save_if_due(2).unwrap_err();
        assert!(matches!(refusal, Error::Unhealthy { .. }), "{refusal}");
        assert!(manager.should_stop() && !manager.is_saving());
        assert_eq!(names_in(dir.path())?, ["ckpt-1"], "{on_unhealthy:?} {on_save_error:?} background: {background}");
        // If the training goes on, its state is saved.
        let path = manager.save_if_due(run.train())?.ok_or("it is not saved")?;
        assert!(path.ends_with("ckpt-3") && path.join("manifest.json").exists() && manager.should_stop());
        assert_eq!(manager.save_if_due(run.train())?, None);
        manager.close()?;
        assert_eq!(names_in(dir.path())?, ["ckpt-1", "ckpt-3"]);
    }
    Ok(())
}

/// The present state is saved, even if an earlier save failed.
#[test]
fn a_save_in_flight_that_fails_does_not_prevent_the_last_one() -> Outcome {
    for on_unhealthy in [OnUnhealthy::Skip, OnUnhealthy::Fail] {
        let dir = tempfile::tempdir()?;
        let (run, preemption) = (Run::new(), Preemption::new());
        let builder = run.builder(dir.path())?.save_every(100).preemption(preemption.clone());
        let mut manager = builder.on_unhealthy(on_unhealthy).background(Background::new()).open()?;
        run.train();
        run.set(f32::NAN);
        manager.save_at(1)?;
        preemption.request();
        let path = manager.save_if_due(run.train())?.ok_or("it is not saved")?;
        assert!(path.ends_with("ckpt-2") && path.join("manifest.json").exists() && manager.should_stop());
        manager.close()?;
        assert_eq!(names_in(dir.path())?, ["ckpt-2"]);
    }
    Ok(())
}
