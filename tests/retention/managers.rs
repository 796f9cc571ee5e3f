//! Managers with policies: restarts, a lost index, policies of one's own.

use super::Outcome;
use chrono::{DateTime, Utc};
use std::fs;
use std::path::Path;
use std::time::Duration;
use tch_checkpoint::retention::{Best, CheckpointInfo, EveryNSteps, Goal, KeptBy, Reason, RetentionPolicy, Steps};
use tch_checkpoint::{Checkpoint, CheckpointManager, CheckpointManagerBuilder, Counter, list_checkpoints};

struct Run(Counter);

impl Run {
    fn new() -> Run {
        Run(Counter::new(0))
    }

    fn builder(&self, dir: &Path) -> CheckpointManagerBuilder {
        CheckpointManager::builder(Checkpoint::new().track("step", &self.0).unwrap(), dir)
    }

    /// Saves at the steps with these losses.
    fn train(&self, manager: &mut CheckpointManager, losses: &[f64]) -> Outcome {
        for loss in losses {
            manager.save_with_metrics(self.0.increment(), [("loss", *loss)])?;
        }
        Ok(())
    }
}

/// The steps of what is in the directory.
fn steps(dir: &Path) -> Result<Vec<u64>, Box<dyn std::error::Error>> {
    Ok(list_checkpoints(dir)?.checkpoints.iter().filter_map(|listed| listed.entry.step).collect())
}

#[test]
fn policies_combine_and_a_restart_without_an_index_decides_the_same() -> Outcome {
    let losses = [0.9, 0.2, 0.5, f64::NAN, 0.2, 0.8, f64::INFINITY, 0.4, 0.3];
    let whole = tempfile::tempdir()?;
    let open = |run: &Run, dir: &Path| {
        let best = Best::new("loss", Goal::Minimize, 2);
        run.builder(dir).max_to_keep(1).keep(best).keep(EveryNSteps(4)).keep(Steps::new([1])).open()
    };
    let run = Run::new();
    run.train(&mut open(&run, whole.path())?, &losses)?;
    assert_eq!(steps(whole.path())?, [1, 2, 4, 5, 8, 9]);
    for split in 1..losses.len() {
        let dir = tempfile::tempdir()?;
        let run = Run::new();
        run.train(&mut open(&run, dir.path())?, &losses[..split])?;
        let run = Run::new();
        fs::remove_file(dir.path().join("checkpoint.json"))?;
        let mut manager = open(&run, dir.path())?;
        manager.restore_or_initialize()?;
        run.train(&mut manager, &losses[split..])?;
        assert_eq!(steps(dir.path())?, [1, 2, 4, 5, 8, 9], "interrupted after {split}");
    }
    Ok(())
}

#[test]
fn other_policies_decide_over_what_is_there() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    run.train(&mut run.builder(dir.path()).max_to_keep(8).open()?, &[0.9, 0.2, 0.5, 0.7, 0.3])?;
    let mut manager = run.builder(dir.path()).keep(Best::new("loss", Goal::Maximize, 2)).open()?;
    manager.restore_or_initialize()?;
    run.train(&mut manager, &[0.1])?;
    assert_eq!(steps(dir.path())?, [1, 4, 6]);
    Ok(())
}

#[test]
fn what_was_restored_stays_until_enough_newer_ones_are_there() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    run.train(&mut run.builder(dir.path()).max_to_keep(3).open()?, &[0.0; 3])?;
    let open = || run.builder(dir.path()).max_to_keep(2).protect_restored(2).open();
    let mut manager = open()?;
    manager.restore_or_initialize()?;
    run.train(&mut manager, &[0.0])?;
    assert_eq!(steps(dir.path())?, [3, 4]);
    manager.close()?;
    // With one that is kept more, and in a process that restored another one.
    let mut manager = run.builder(dir.path()).max_to_keep(1).protect_restored(2).open()?;
    manager.restore_or_initialize()?;
    let why = manager.why(dir.path().join("ckpt-3"))?;
    assert!(matches!(why.kept_by[..], [KeptBy::Restored { newer: 1, needed: 2 }]), "{why}");
    assert_eq!(why.to_string(), "ckpt-3 stays: a run was restored from it, until 1 newer one is saved");
    run.train(&mut manager, &[0.0])?;
    assert_eq!(steps(dir.path())?, [4, 5]);
    run.train(&mut manager, &[0.0, 0.0])?;
    assert_eq!(steps(dir.path())?, [7]);
    Ok(())
}

/// Says nothing of the last one, or panics.
#[derive(Debug)]
struct Broken(bool);

impl RetentionPolicy for Broken {
    fn keep(&self, checkpoints: &[CheckpointInfo], _now: DateTime<Utc>) -> Vec<Option<Reason>> {
        assert!(!self.0, "a policy that panics");
        vec![None; checkpoints.len() - 1]
    }
}

#[test]
fn a_broken_policy_removes_nothing() -> Outcome {
    for panics in [false, true] {
        let dir = tempfile::tempdir()?;
        let run = Run::new();
        let mut manager = run.builder(dir.path()).max_to_keep(1).keep(Broken(panics)).open()?;
        run.train(&mut manager, &[0.0; 4])?;
        assert_eq!(steps(dir.path())?, [1, 2, 3, 4]);
    }
    Ok(())
}

#[test]
fn a_lost_index_keeps_nothing_for_good() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let hour = Duration::from_secs(3600);
    let mut manager = run.builder(dir.path()).max_to_keep(1).keep(EveryNSteps(1)).keep_every(hour).open()?;
    run.train(&mut manager, &[0.0; 2])?;
    manager.close()?;
    fs::remove_file(dir.path().join("checkpoint.json"))?;
    let mut manager = run.builder(dir.path()).max_to_keep(1).keep_every(hour).open()?;
    manager.restore_or_initialize()?;
    run.train(&mut manager, &[0.0])?;
    assert!(manager.permanent_checkpoints().is_empty());
    assert_eq!(steps(dir.path())?, [3]);
    Ok(())
}

/// Keeps even steps permanently.
#[derive(Debug)]
struct EvenForGood;

impl RetentionPolicy for EvenForGood {
    fn keep(&self, checkpoints: &[CheckpointInfo], _now: DateTime<Utc>) -> Vec<Option<Reason>> {
        let is_even = |info: &CheckpointInfo| info.step.is_some_and(|step| step % 2 == 0);
        checkpoints.iter().map(|info| is_even(info).then(|| Reason::new("its step is even").for_good())).collect()
    }
}

#[test]
fn what_a_policy_keeps_for_good_is_marked_and_outlives_the_policy() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager = run.builder(dir.path()).max_to_keep(2).keep(EvenForGood).open()?;
    run.train(&mut manager, &[0.0; 6])?;
    assert_eq!(steps(dir.path())?, [2, 4, 5, 6]);
    let marked = |step: u64| dir.path().join(format!("ckpt-{step}/mark-permanent.json")).exists();
    assert_eq!([2, 4, 5, 6].map(marked), [true, true, false, false]);
    manager.close()?;
    let mut manager = run.builder(dir.path()).max_to_keep(1).open()?;
    manager.restore_or_initialize()?;
    run.train(&mut manager, &[0.0])?;
    assert_eq!(steps(dir.path())?, [2, 4, 7]);
    Ok(())
}

#[test]
fn only_policies_that_count_intervals_change_the_version() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let version = |step: u64| -> Result<String, std::io::Error> {
        let text = fs::read_to_string(dir.path().join(format!("ckpt-{step}/manifest.json")))?;
        Ok(text.lines().next().unwrap_or_default().to_string())
    };
    run.train(&mut run.builder(dir.path()).keep(EveryNSteps(2)).open()?, &[0.0])?;
    assert!(version(1)?.contains("\"version\":1,"), "{}", version(1)?);
    let mut manager = run.builder(dir.path()).keep_every(Duration::from_secs(3600)).open()?;
    manager.restore_or_initialize()?;
    run.train(&mut manager, &[0.0])?;
    assert!(version(2)?.contains("\"version\":4,"), "{}", version(2)?);
    Ok(())
}

#[test]
fn a_dry_run_says_what_the_next_save_removes() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager = run.builder(dir.path()).max_to_keep(2).keep(Best::new("loss", Goal::Minimize, 1)).open()?;
    run.train(&mut manager, &[0.5, 0.1, 0.6, 0.7])?;
    for loss in [0.3, 0.05, 0.2] {
        let metrics = [("loss", loss)];
        let planned = manager.plan_removal(Some(run.0.get() + 1), metrics);
        let before = steps(dir.path())?;
        run.train(&mut manager, &[loss])?;
        let after = steps(dir.path())?;
        let gone: Vec<String> =
            before.iter().filter(|step| !after.contains(step)).map(|step| format!("ckpt-{step}")).collect();
        let planned: Vec<String> =
            planned.into_iter().filter(|why| !why.is_kept()).map(|why| why.checkpoint.name).collect();
        assert_eq!(planned, gone);
        assert!(!gone.is_empty());
    }
    Ok(())
}
