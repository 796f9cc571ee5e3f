//! Managers with policies: restarts, a lost index, policies of one's own.

use super::Outcome;
use chrono::{DateTime, Utc};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;
use tch_checkpoint::format::Manifest;
use tch_checkpoint::retention::{Best, CheckpointInfo, EveryNSteps, Goal, KeptBy, Reason, RetentionPolicy, Steps};
use tch_checkpoint::{
    Background, Checkpoint, CheckpointDirectory, CheckpointManager, CheckpointManagerBuilder, CheckpointReader,
    Counter, Durability, SaveOptions, list_checkpoints,
};

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

/// The first checkpoint, saved again after a restart, counts from the beginning of the run.
#[test]
fn the_first_interval_begins_when_the_directory_is_first_opened() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let open = || run.builder(dir.path()).max_to_keep(1).keep_every(Duration::from_secs(3600)).open();
    let counted_from = || {
        let manifest = Manifest::from_bytes(&fs::read(dir.path().join("ckpt-1/manifest.json"))?)?;
        Ok::<_, Box<dyn std::error::Error>>((manifest.sequence, manifest.counted_from))
    };
    let mut manager = open()?;
    run.train(&mut manager, &[0.5])?;
    manager.close()?;
    let (first, began) = counted_from()?;
    assert!(began.is_some());
    std::thread::sleep(Duration::from_millis(20));
    let mut manager = open()?;
    manager.restore_or_initialize()?;
    manager.set_next_metadata("note", &"saved again")?;
    manager.save_at(1)?;
    assert_eq!(counted_from()?, (first + 1, began));
    manager.close()?;
    // A new run has its own.
    let builder = run.builder(dir.path()).max_to_keep(1).keep_every(Duration::from_secs(3600));
    builder.fresh_start().open()?.save_at(1)?;
    assert!(counted_from()?.1 > began);
    Ok(())
}

/// The checkpoint to be saved goes back to that of the earlier run, also where none that is there does.
#[test]
fn a_plan_knows_what_the_next_checkpoint_goes_back_to() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    run.train(&mut run.builder(dir.path()).max_to_keep(1).open()?, &[0.9])?;
    let mut manager = run.builder(dir.path()).max_to_keep(1).protect_restored(3).open()?;
    manager.restore_or_initialize()?;
    run.train(&mut manager, &[0.5])?;
    manager.restore(dir.path().join("ckpt-2"))?;
    run.0.set(7);
    let plan = manager.plan_removal(Some(2), [("loss", 0.4)]);
    let stay = |name: &str| plan.iter().any(|of| of.checkpoint.name == name && of.is_kept());
    assert!(stay("ckpt-1"), "{plan:?}");
    manager.save_with_metrics(2, [("loss", 0.4)])?;
    assert_eq!(steps(dir.path())?, [1, 2]);
    Ok(())
}

#[test]
fn a_plan_knows_what_was_restored_since_the_last_save() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager = run.builder(dir.path()).max_to_keep(1).protect_restored(2).open()?;
    run.train(&mut manager, &[0.9, 0.5])?;
    manager.restore(dir.path().join("ckpt-2"))?;
    let plan = manager.plan_removal(Some(3), [("loss", 0.4)]);
    assert!(plan.iter().all(|of| of.checkpoint.name != "ckpt-2" || of.is_kept()), "{plan:?}");
    run.train(&mut manager, &[0.4])?;
    assert_eq!(steps(dir.path())?, [2, 3]);
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

/// Panics wherever it is asked.
struct Panics;

impl std::fmt::Debug for Panics {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        panic!("a policy that cannot be shown")
    }
}

impl RetentionPolicy for Panics {
    fn keep(&self, checkpoints: &[CheckpointInfo], _now: DateTime<Utc>) -> Vec<Option<Reason>> {
        checkpoints.iter().map(|info| (info.step == Some(1)).then(|| Reason::new("it is the first"))).collect()
    }

    fn bound(&self) -> Option<usize> {
        panic!("a policy without a bound")
    }

    fn counted_from(&self, _: &[CheckpointInfo], _: DateTime<Utc>) -> Option<DateTime<Utc>> {
        panic!("a policy that does not count")
    }
}

#[test]
fn a_policy_that_panics_ends_no_save_and_keeps_what_it_keeps() -> Outcome {
    for background in [false, true] {
        let dir = tempfile::tempdir()?;
        let run = Run::new();
        let builder = run.builder(dir.path()).max_to_keep(1).keep(Panics);
        let mut manager = if background { builder.background(Background::new()) } else { builder }.open()?;
        run.train(&mut manager, &[0.0; 4])?;
        manager.wait()?;
        assert_eq!(steps(dir.path())?, [1, 4]);
        let last = CheckpointReader::open(dir.path().join("ckpt-4"))?.manifest().id();
        run.train(&mut manager, &[0.0])?;
        manager.wait()?;
        assert_eq!(CheckpointReader::open(dir.path().join("ckpt-5"))?.manifest().follows, Some(last));
        assert!(manager.why(dir.path().join("ckpt-1"))?.to_string().contains("it is the first"));
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
    let version = |step: u64| -> Result<String, Box<dyn std::error::Error>> {
        let mut manifest = CheckpointReader::open(dir.path().join(format!("ckpt-{step}")))?.manifest().clone();
        // They need a later one.
        manifest.figures = None;
        Ok(String::from_utf8(manifest.to_bytes()?)?.lines().next().unwrap_or_default().to_string())
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

/// The checkpoints of any name in a directory, by inode, held open so that none of these numbers is used again.
fn there(dir: &Path) -> Result<(BTreeMap<u64, String>, Vec<File>), std::io::Error> {
    let (mut names, mut open) = (BTreeMap::new(), Vec::new());
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type()?.is_dir() && !name.starts_with('.') {
            names.insert(entry.metadata()?.ino(), name);
            open.push(File::open(entry.path())?);
        }
    }
    Ok((names, open))
}

/// The new one follows what the one that it replaces had followed, which a process before saved.
#[test]
fn a_dry_run_knows_what_the_next_save_goes_back_to() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager = run.builder(dir.path()).max_to_keep(2).open()?;
    run.train(&mut manager, &[0.5, 0.4])?;
    manager.close()?;
    let run = Run::new();
    let mut manager = run.builder(dir.path()).max_to_keep(1).protect_restored(3).open()?;
    manager.restore_or_initialize()?;
    run.0.set(7);
    let planned = manager.plan_removal(Some(2), [("loss", 0.3)]);
    let kept: Vec<_> = planned.iter().filter(|why| why.is_kept()).map(|why| why.checkpoint.name.as_str()).collect();
    assert!(kept.contains(&"ckpt-1"), "{kept:?}");
    manager.save_with_metrics(2, [("loss", 0.3)])?;
    assert_eq!(steps(dir.path())?, [1, 2]);
    Ok(())
}

/// Also of what left the numbering, after going back, and by the marks of another process.
#[test]
fn a_dry_run_names_all_that_the_next_save_removes() -> Outcome {
    let (mut kinds, mut went_back) = (BTreeMap::new(), 0);
    for seed in 0..9_u64 {
        let dir = tempfile::tempdir()?;
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mut random = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let run = Run::new();
        let keep = 1 + (seed % 3) as usize;
        let open = || {
            let quick = SaveOptions::new().durability(Durability::ProcessCrash);
            let builder = run.builder(dir.path()).save_options(quick).max_to_keep(keep).keep(EveryNSteps(5));
            builder.keep(Best::new("loss", Goal::Minimize, 1)).keep_damaged(Some(1)).open()
        };
        let mut manager = open()?;
        manager.restore_or_initialize()?;
        let other = CheckpointDirectory::new(dir.path());
        for _ in 0..40 {
            let known = manager.checkpoints();
            let (before, _open) = there(dir.path())?;
            let chosen = before.values().nth(random(before.len().max(1) as u64) as usize);
            match (random(8), chosen) {
                (0 | 1, _) if known.len() > 1 => {
                    manager.restore(known[random(known.len() as u64) as usize].clone())?;
                    went_back += 1;
                }
                (2, _) if known.len() > 1 => {
                    let newest = known.last().ok_or("none")?;
                    fs::write(newest.join("manifest.json"), "not what was written")?;
                    manager.close()?;
                    manager = open()?;
                    manager.restore_or_initialize()?;
                }
                // Of damaged ones there is nothing to mark.
                (3, Some(name)) => drop(other.pin(name, "a", "by another process")),
                (4, Some(name)) => drop(other.unpin(name, "a")),
                (5, Some(name)) => drop(other.add_metrics(name, [("loss", random(100) as f64)])),
                _ => {}
            }
            let loss = random(100) as f64;
            let planned = manager.plan_removal(Some(run.0.get() + 1), [("loss", loss)]);
            let planned: BTreeSet<String> =
                planned.into_iter().filter(|why| !why.is_kept()).map(|why| why.checkpoint.name).collect();
            let (before, _open) = there(dir.path())?;
            run.train(&mut manager, &[loss])?;
            let (after, _) = there(dir.path())?;
            let gone = before.iter().filter(|(inode, _)| !after.contains_key(inode)).map(|(_, name)| name.clone());
            let gone: BTreeSet<String> = gone.collect();
            assert_eq!(planned, gone, "seed {seed}, step {}", run.0.get());
            for name in gone {
                *kinds.entry(name.split('-').next().unwrap_or_default().to_string()).or_insert(0) += 1;
            }
        }
    }
    println!("removed: {kinds:?}; went back {went_back} times");
    assert!(kinds.len() == 3 && kinds.values().all(|count| *count > 5) && went_back > 20, "{kinds:?}");
    Ok(())
}

#[test]
fn what_another_process_notes_counts_in_explanations_at_once() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager = run.builder(dir.path()).max_to_keep(1).keep(Best::new("loss", Goal::Minimize, 1)).open()?;
    run.train(&mut manager, &[0.5, 0.2, 0.4])?;
    let removed = |manager: &CheckpointManager| -> Vec<String> {
        let planned = manager.plan_removal(Some(4), [("loss", 0.9)]).into_iter();
        planned.filter(|why| !why.is_kept()).map(|why| why.checkpoint.name).collect()
    };
    assert_eq!(removed(&manager), ["ckpt-3"]);
    let other = CheckpointDirectory::new(dir.path());
    other.add_metrics("ckpt-3", [("loss", 0.1)])?;
    assert!(!manager.why("ckpt-2")?.is_kept());
    assert_eq!(removed(&manager), ["ckpt-2"]);
    other.pin("ckpt-2", "paper", "table 2")?;
    let why = manager.why("ckpt-2")?;
    assert_eq!(why.to_string(), "ckpt-2 stays: it is pinned as \"paper\" (table 2), until the pin is removed");
    assert_eq!(removed(&manager), [""; 0]);
    // What was removed by hand is not there.
    fs::remove_dir_all(dir.path().join("ckpt-3"))?;
    let names: Vec<String> = manager.explain().into_iter().map(|why| why.checkpoint.name).collect();
    assert_eq!(names, ["ckpt-2"]);
    Ok(())
}

#[test]
fn what_left_the_numbering_is_explained_too() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager = run.builder(dir.path()).max_to_keep(2).keep_damaged(Some(1)).open()?;
    run.train(&mut manager, &[0.5, 0.2])?;
    manager.restore(dir.path().join("ckpt-1"))?;
    let planned = manager.plan_removal(Some(2), [("loss", 0.9)]);
    assert_eq!(
        planned.last().map(ToString::to_string).as_deref(),
        Some("ckpt-2 stays: a run went back to an older one, until 1 newer one is saved")
    );
    run.train(&mut manager, &[0.3])?;
    let superseded = manager.explain().pop().ok_or("none")?;
    assert!(superseded.checkpoint.name.starts_with("superseded-ckpt-2-"), "{superseded}");
    assert_eq!(superseded.kept_by, [KeptBy::Superseded { newer: 1, needed: Some(2) }]);
    assert!(manager.why(dir.path().join(&superseded.checkpoint.name))?.is_kept());
    for number in [2, 2] {
        fs::write(dir.path().join(format!("ckpt-{number}/manifest.json")), "not what was written")?;
        manager.close()?;
        manager = run.builder(dir.path()).max_to_keep(2).keep_damaged(Some(1)).open()?;
        manager.restore_or_initialize()?;
        let damaged: Vec<String> = manager.explain().iter().map(ToString::to_string).collect();
        assert!(damaged.iter().any(|why| why.contains("it was found damaged, and is among the 1")), "{damaged:?}");
        run.train(&mut manager, &[0.4])?;
    }
    Ok(())
}
