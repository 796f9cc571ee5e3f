//! When a manager saves, and what it does when a save fails.

mod common;

use common::run::steps_in;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tch_checkpoint::save_policy::{AtSteps, Continuous, EveryDuration, EverySteps, First, SaveContext, SavePolicy};
use tch_checkpoint::{
    Background, Checkpoint, CheckpointManager, CheckpointManagerBuilder, Counter, Error, OnSaveError, WhenBusy,
};

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn builder(dir: &Path) -> Result<CheckpointManagerBuilder, Error> {
    let checkpoint = Checkpoint::new().track("step", Counter::new(0))?;
    Ok(CheckpointManager::builder(checkpoint, dir).max_to_keep(None))
}

/// A context.
fn at(step: u64, previous: impl Into<Option<u64>>, last_saved: impl Into<Option<u64>>) -> SaveContext {
    let mut context = SaveContext::new(step);
    (context.previous, context.last_saved) = (previous.into(), last_saved.into());
    context
}

#[test]
fn policies_alone() {
    assert!(EverySteps(5).is_due(&at(5, 4, None)) && !EverySteps(5).is_due(&at(4, 3, None)));
    assert!(EverySteps(5).is_due(&at(12, 11, 7)) && !EverySteps(5).is_due(&at(11, 10, 7)));
    assert!(EverySteps(u64::MAX).is_due(&at(u64::MAX, 11, 7)), "it does not overflow");
    let milestones = AtSteps::new([3, 10]);
    assert!(milestones.is_due(&at(3, 2, 1)) && !milestones.is_due(&at(4, 3, 3)));
    assert!(milestones.is_due(&at(12, 8, 3)), "one that was skipped");
    assert!(milestones.is_due(&at(4, 3, 1)), "one that could not be saved");
    assert!(!milestones.is_due(&at(12, None, None)) && milestones.is_due(&at(10, None, None)));
    assert!(!milestones.is_due(&at(9, 11, 8)) && !milestones.is_due(&at(2, 11, 11)));
    let mut context = at(12, 11, None);
    context.first = 10;
    assert!(milestones.is_due(&context), "one that could not be saved, before anything was");
    context.first = 11;
    assert!(!milestones.is_due(&context), "one before the run began");
    assert!(First.is_due(&at(7, None, None)) && !First.is_due(&at(7, None, 0)));
    context = at(2, 1, 1);
    assert!(!EveryDuration(Duration::from_secs(2)).is_due(&context) && Continuous.is_due(&context));
    (context.since_last_save, context.is_saving) = (Duration::from_secs(2), true);
    assert!(EveryDuration(Duration::from_secs(2)).is_due(&context) && !Continuous.is_due(&context));
}

/// A checkpoint without a step does not count, whether the run is interrupted after it or not.
#[test]
fn steps_are_counted_from_the_last_save_with_a_step() -> Outcome {
    for (restart, keep) in [(false, Some(2)), (true, Some(2)), (true, None)] {
        let dir = tempfile::tempdir()?;
        let open = || builder(dir.path())?.save_every(10).max_to_keep(keep).open();
        let mut manager = open()?;
        assert!(manager.save_if_due(10)?.is_some());
        manager.save()?;
        if restart {
            manager.close()?;
            manager = open()?;
            manager.restore_or_initialize()?;
        }
        for step in 16..=30 {
            assert_eq!(manager.save_if_due(step)?.is_some(), step % 10 == 0, "{restart} {step}");
        }
    }
    Ok(())
}

#[test]
fn policies_combine_and_go_on_after_a_restart() -> Outcome {
    let whole = tempfile::tempdir()?;
    let open = |dir: &Path| builder(dir)?.save_every(10).save_when(AtSteps::new([3, 14])).save_when(First).open();
    let mut manager = open(whole.path())?;
    for step in 1..=30 {
        manager.save_if_due(step)?;
    }
    assert_eq!(steps_in(whole.path())?, [1, 3, 13, 14, 24]);
    let dir = tempfile::tempdir()?;
    for (from, to) in [(1, 8), (4, 13), (14, 30)] {
        let mut manager = open(dir.path())?;
        manager.restore_or_initialize()?;
        for step in from..=to {
            manager.save_if_due(step)?;
        }
    }
    assert_eq!(steps_in(dir.path())?, [1, 3, 13, 14, 24]);
    // Without the default of every step.
    let dir = tempfile::tempdir()?;
    let mut manager = builder(dir.path())?.save_when(AtSteps::new([2])).open()?;
    for step in 1..=4 {
        manager.save_if_due(step)?;
    }
    assert_eq!(steps_in(dir.path())?, [2]);
    Ok(())
}

#[test]
fn what_has_no_step_is_not_saved_again_as_the_first() -> Outcome {
    for background in [false, true] {
        let dir = tempfile::tempdir()?;
        let open = || {
            let builder = builder(dir.path())?.save_when(First).save_every(1000);
            if background { builder.background(Background::new()).open() } else { builder.open() }
        };
        let mut manager = open()?;
        manager.save()?;
        assert_eq!(manager.save_if_due(7)?, None, "background: {background}");
        manager.close()?;
        let mut manager = open()?;
        manager.restore_or_initialize()?;
        assert_eq!(manager.save_if_due(8)?, None, "background: {background}");
        // Steps are counted from those that are known.
        assert!(manager.save_if_due(1000)?.is_some());
        manager.save()?;
        assert_eq!(manager.save_if_due(1999)?, None);
        assert!(manager.save_if_due(2000)?.is_some());
        manager.close()?;
    }
    Ok(())
}

/// Is due at every Nth call, which it counts.
#[derive(Debug)]
struct EveryCalls(u64, Arc<AtomicU64>);

impl SavePolicy for EveryCalls {
    fn is_due(&self, _: &SaveContext) -> bool {
        (self.1.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(self.0)
    }
}

#[test]
fn every_policy_is_asked_at_every_call() -> Outcome {
    let dir = tempfile::tempdir()?;
    let counts: [Arc<AtomicU64>; 2] = Default::default();
    let [two, three] = counts.clone();
    let mut manager = builder(dir.path())?.save_when(EveryCalls(2, two)).save_when(EveryCalls(3, three)).open()?;
    for step in 1..=12 {
        manager.save_if_due(step)?;
    }
    assert_eq!(steps_in(dir.path())?, [2, 3, 4, 6, 8, 9, 10, 12]);
    // Also where a save is due without them.
    assert!(manager.save_if_due(5)?.is_some());
    assert_eq!(counts.map(|count| count.load(Ordering::Relaxed)), [13, 13]);
    Ok(())
}

#[test]
fn a_duration_begins_with_the_last_save() -> Outcome {
    let dir = tempfile::tempdir()?;
    let mut manager = builder(dir.path())?.save_when(EveryDuration(Duration::from_millis(300))).open()?;
    assert_eq!(manager.save_if_due(1)?, None);
    std::thread::sleep(Duration::from_millis(310));
    assert!(manager.save_if_due(2)?.is_some());
    assert_eq!(manager.save_if_due(3)?, None);
    std::thread::sleep(Duration::from_millis(310));
    assert!(manager.save_if_due(4)?.is_some());
    Ok(())
}

#[test]
fn failed_saves_are_logged_until_there_are_too_many() -> Outcome {
    let dir = tempfile::tempdir()?;
    let mut manager = builder(dir.path())?.on_save_error(OnSaveError::Continue { give_up_after: 3 }).open()?;
    assert!(manager.save_if_due(1)?.is_some());
    // Something else has the names of the next checkpoints.
    for step in 2..=6 {
        fs::write(dir.path().join(format!("ckpt-{step}")), "mine")?;
    }
    assert_eq!(manager.save_if_due(2)?, None);
    assert_eq!(manager.save_if_due(3)?, None);
    assert!(matches!(manager.save_if_due(4), Err(Error::AlreadyExists { .. })));
    assert_eq!(manager.save_if_due(5)?, None, "it counts anew");
    // Functions that save in any case return the error.
    assert!(manager.save_at(6).is_err());
    assert!(manager.save_if_due(7)?.is_some());
    assert_eq!(steps_in(dir.path())?, [1, 7]);
    Ok(())
}

/// A policy says when a save is due, not that it was.
#[derive(Debug)]
struct Doubling;

impl SavePolicy for Doubling {
    fn is_due(&self, context: &SaveContext) -> bool {
        context.step.is_power_of_two()
    }
}

#[test]
fn a_due_save_that_fails_stays_due_whatever_the_policy() -> Outcome {
    for background in [false, true] {
        for continues in [false, true] {
            let dir = tempfile::tempdir()?;
            let mut builder = builder(dir.path())?.save_when(Doubling);
            if background {
                builder = builder.background(Background::new());
            }
            if continues {
                builder = builder.on_save_error(OnSaveError::Continue { give_up_after: 9 });
            }
            let mut manager = builder.open()?;
            fs::write(dir.path().join("ckpt-4"), "mine")?;
            let failed = manager.save_if_due(4).and_then(|_| manager.wait());
            assert!(failed.is_err() || continues && !background, "{failed:?}");
            assert!(manager.save_if_due(5)?.is_some(), "background: {background}, continues: {continues}");
            manager.wait()?;
            assert_eq!(manager.save_if_due(6)?, None);
            // A restore begins anew.
            fs::write(dir.path().join("ckpt-8"), "mine")?;
            assert!(manager.save_if_due(8).and_then(|_| manager.wait()).is_err() || continues && !background);
            manager.restore(dir.path().join("ckpt-5"))?;
            assert_eq!(manager.save_if_due(6)?, None);
            assert_eq!(steps_in(dir.path())?, [5]);
        }
    }
    Ok(())
}

/// Also where nothing was saved before.
#[test]
fn a_step_whose_save_fails_is_due_until_it_is_saved() -> Outcome {
    for background in [false, true] {
        let dir = tempfile::tempdir()?;
        let builder = builder(dir.path())?.save_when(AtSteps::new([2]));
        let mut manager = if background { builder.background(Background::new()).open()? } else { builder.open()? };
        fs::write(dir.path().join("ckpt-2"), "mine")?;
        assert_eq!(manager.save_if_due(1)?, None);
        let failed = manager.save_if_due(2).and_then(|_| manager.wait());
        assert!(matches!(failed, Err(Error::AlreadyExists { .. })), "{failed:?}");
        assert!(manager.save_if_due(3)?.is_some(), "background: {background}");
        manager.wait()?;
        assert_eq!(manager.save_if_due(4)?, None);
        assert_eq!(steps_in(dir.path())?, [3]);
    }
    // The call that returns the error asks no policy.
    let dir = tempfile::tempdir()?;
    let builder = builder(dir.path())?.save_when(AtSteps::new([2]));
    let mut manager =
        builder.on_save_error(OnSaveError::Continue { give_up_after: 9 }).background(Background::new()).open()?;
    fs::write(dir.path().join("ckpt-2"), "mine")?;
    assert!(manager.save_if_due(2)?.is_some());
    while manager.is_saving() {
        std::thread::yield_now();
    }
    assert_eq!(manager.save_if_due(3)?, None);
    assert!(manager.save_if_due(4)?.is_some());
    Ok(())
}

/// The call that begins a save does not know how it ends.
#[test]
fn failures_in_the_background_are_counted_in_a_row() -> Outcome {
    for when_busy in [WhenBusy::Wait, WhenBusy::Skip] {
        let dir = tempfile::tempdir()?;
        let builder = builder(dir.path())?.on_save_error(OnSaveError::Continue { give_up_after: 3 });
        let mut manager = builder.background(Background::new().when_busy(when_busy)).open()?;
        let mut call = |step: u64, is_in_the_way: bool| {
            let path = dir.path().join(format!("ckpt-{step}"));
            if is_in_the_way {
                fs::write(path, "mine").unwrap();
            }
            let result = manager.save_if_due(step);
            while manager.is_saving() {
                std::thread::yield_now();
            }
            result
        };
        // Two fail, and one that succeeds ends the row.
        for step in 1..=4 {
            call(step, true)?;
        }
        assert_eq!(call(5, false)?.map(|path| path.ends_with("ckpt-5")), Some(true));
        // The error of each is returned by the next call, which saves nothing.
        for step in 6..=10 {
            call(step, true)?;
        }
        assert!(matches!(call(11, true), Err(Error::AlreadyExists { .. })), "{when_busy:?}");
        // A third one failed there, and it counts anew.
        for step in 12..=15 {
            call(step, true)?;
        }
        assert_eq!(steps_in(dir.path())?, [5]);
    }
    Ok(())
}
