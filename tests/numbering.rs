//! Numbers, going back, marks, other runs and other programs in the directory of a manager: the entries of the
//! directory decide.

mod common;

use common::Memory;
use common::run::{Run, names};
use std::fs;
use std::path::{Path, PathBuf};
use tch_checkpoint::format::{Digest, Index, Manifest, Mark, MarkKind};
use tch_checkpoint::retention::{Best, Goal};
use tch_checkpoint::{
    Checkpoint, CheckpointDirectory, CheckpointManager, CheckpointManagerBuilder, CheckpointReader, Counter, Error,
    Preemption, checkpoints, latest_checkpoint, list_checkpoints,
};

type Outcome = Result<(), Box<dyn std::error::Error>>;

impl Run {
    fn new() -> Run {
        Run::of(100)
    }

    fn builder(&self, dir: &Path) -> CheckpointManagerBuilder {
        CheckpointManager::builder(self.checkpoint(), dir)
    }

    fn open(&self, dir: &Path) -> CheckpointManager {
        self.builder(dir).open().unwrap()
    }

    /// Saves these steps.
    fn save(&self, manager: &mut CheckpointManager, steps: &[u64]) -> Outcome {
        for &step in steps {
            self.set(step);
            manager.save_at(step)?;
        }
        Ok(())
    }
}

fn in_dir(dir: &Path, prefix: &str) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| name.starts_with(prefix));
    names.sort();
    names
}

fn step_in(path: &Path) -> u64 {
    let step = Counter::new(0);
    let mut checkpoint = Checkpoint::new().track("step", &step).unwrap();
    checkpoint.restore(path).unwrap().expect_partial();
    step.get()
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// What gets its name back later is older than what was saved meanwhile.
#[test]
fn what_was_passed_over_stays_older_after_a_restart() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager = run.open(dir.path());
    run.save(&mut manager, &[1, 2, 3])?;
    manager.close()?;
    let mut manager = run.open(dir.path());
    let aside = manager.pass_over(dir.path().join("ckpt-3"))?;
    manager.pass_over(dir.path().join("ckpt-2"))?;
    manager.close()?;
    let mut manager = run.open(dir.path());
    manager.restore_or_initialize()?;
    run.save(&mut manager, &[4])?;
    manager.close()?;
    assert_eq!(CheckpointReader::open(dir.path().join("ckpt-4"))?.manifest().sequence, 4);
    fs::rename(aside.as_path().ok_or("it has no path")?, dir.path().join("ckpt-3"))?;
    assert_eq!(latest_checkpoint(dir.path())?, Some(dir.path().join("ckpt-4").into()));
    Ok(())
}

#[test]
fn whatever_has_a_number_its_number_is_taken() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager = run.open(dir.path());
    assert_eq!(names(&[manager.save()?]), ["ckpt-1"]);
    fs::write(dir.path().join("ckpt-2"), "a file")?;
    assert_eq!(names(&[manager.save()?]), ["ckpt-3"]);
    std::os::unix::fs::symlink("/nowhere", dir.path().join("ckpt-7"))?;
    fs::create_dir(dir.path().join("ckpt-4"))?;
    assert_eq!(names(&[manager.save()?]), ["ckpt-8"]);
    // If a certain number is requested and is taken, the error comes before a byte is written.
    let error = manager.save_at(7).unwrap_err();
    assert!(matches!(error, Error::AlreadyExists { .. }), "{error}");
    assert_eq!((manager.checkpoint().save_counter(), in_dir(dir.path(), ".tmp").len()), (8, 0));
    fs::create_dir(dir.path().join(format!("ckpt-{}", u64::MAX)))?;
    fs::create_dir(dir.path().join("ckpt-9"))?;
    let error = manager.save().unwrap_err();
    assert!(matches!(&error, Error::InvalidArgument(text) if text.contains("highest number")), "{error}");
    Ok(())
}

#[test]
fn going_back_supersedes_what_came_later_until_enough_newer_ones_are_there() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager = run.builder(dir.path()).max_to_keep(4).open()?;
    run.save(&mut manager, &[10, 20, 30, 40])?;
    drop(manager);

    // Examining an older one changes nothing.
    let mut manager = run.builder(dir.path()).max_to_keep(4).open()?;
    manager.restore(dir.path().join("ckpt-10"))?;
    manager.close()?;
    assert_eq!(names(&checkpoints(dir.path())?), ["ckpt-10", "ckpt-20", "ckpt-30", "ckpt-40"]);

    let mut manager = run.builder(dir.path()).max_to_keep(4).open()?;
    manager.restore(dir.path().join("ckpt-10"))?;
    run.set(20);
    run.step.set(21);
    assert!(manager.save_if_due(20)?.is_some());
    assert_eq!(names(&manager.checkpoints()), ["ckpt-10", "ckpt-20"]);
    let listing = list_checkpoints(dir.path())?;
    assert_eq!(listing.superseded.len(), 3, "{listing:?}");
    assert!(listing.superseded.iter().all(|path| CheckpointReader::open(path).unwrap().verify().is_intact()));
    manager.close()?;

    // The next process continues from there, and not from the abandoned ones.
    let next = Run::new();
    let mut manager = next.builder(dir.path()).max_to_keep(4).open()?;
    assert_eq!(manager.restore_or_initialize()?.restored.unwrap().step(), Some(20));
    assert_eq!(next.step.get(), 21);
    next.save(&mut manager, &[30, 40])?;
    assert_eq!(list_checkpoints(dir.path())?.superseded.len(), 3, "three newer ones are complete, four are kept");
    next.save(&mut manager, &[50])?;
    assert_eq!(list_checkpoints(dir.path())?.superseded.len(), 0);
    assert_eq!(names(&manager.checkpoints()), ["ckpt-20", "ckpt-30", "ckpt-40", "ckpt-50"]);
    Ok(())
}

#[test]
fn one_can_go_back_to_what_was_superseded() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager = run.open(dir.path());
    run.save(&mut manager, &[1, 2, 3])?;
    manager.restore(dir.path().join("ckpt-1"))?;
    run.save(&mut manager, &[2])?;
    let third = in_dir(dir.path(), "superseded-ckpt-3-").remove(0);
    manager.restore(dir.path().join(third))?;
    assert_eq!(run.step.get(), 3);
    run.save(&mut manager, &[4])?;
    assert_eq!(names(&manager.checkpoints()), ["ckpt-1", "ckpt-4"]);
    manager.close()?;
    let mut manager = run.open(dir.path());
    assert_eq!(manager.restore_or_initialize()?.restored.unwrap().step(), Some(4));
    Ok(())
}

#[test]
fn a_failed_save_supersedes_nothing() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager = run.open(dir.path());
    run.save(&mut manager, &[1, 2, 3])?;
    manager.restore(dir.path().join("ckpt-1"))?;
    fs::write(dir.path().join("ckpt-5"), "in the way")?;
    assert!(manager.save_at(5).is_err());
    assert_eq!(names(&manager.checkpoints()), ["ckpt-1", "ckpt-2", "ckpt-3"]);
    assert_eq!(names(&checkpoints(dir.path())?), ["ckpt-1", "ckpt-2", "ckpt-3"]);
    Ok(())
}

/// A process ends while a step is saved again, after the first one has left the numbering.
#[test]
fn an_interrupted_save_supersedes_nothing() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    run.save(&mut run.builder(dir.path()).max_to_keep(1).open()?, &[4, 5])?;
    let nonce = "0123456789abcdef0123456789abcdef";
    let interrupt = |names: &[&str]| -> Outcome {
        for name in names {
            fs::rename(dir.path().join(name), dir.path().join(format!("superseded-{name}-{nonce}")))?;
        }
        Ok(fs::create_dir(dir.path().join(format!(".tmp-ckpt-5-{nonce}")))?)
    };
    interrupt(&["ckpt-5"])?;
    let mut manager = run.builder(dir.path()).max_to_keep(2).open()?;
    assert_eq!(manager.restore_or_initialize()?.restored.and_then(|status| status.step()), Some(5));
    run.save(&mut manager, &[6])?;
    drop(manager);
    // Whoever takes the lock: also a removal. What a user has put in the place stays there.
    interrupt(&["ckpt-5", "ckpt-6"])?;
    fs::write(dir.path().join("ckpt-5"), "mine")?;
    assert!(matches!(
        tch_checkpoint::CheckpointDirectory::new(dir.path()).delete("ckpt-7"),
        Err(Error::NotFound { .. })
    ));
    assert_eq!(in_dir(dir.path(), "ckpt"), ["ckpt-5", "ckpt-6"]);
    assert_eq!(fs::read(dir.path().join("ckpt-5"))?, b"mine");
    assert_eq!((in_dir(dir.path(), ".tmp"), in_dir(dir.path(), "superseded").len()), (Vec::new(), 1));
    Ok(())
}

#[test]
fn a_new_run_beside_a_finished_one_is_asked_for() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    run.save(&mut run.open(dir.path()), &[1, 2])?;
    let mut manager = run.open(dir.path());
    for error in [manager.save_at(3).unwrap_err(), manager.save().unwrap_err(), manager.save_if_due(9).unwrap_err()] {
        assert!(error.to_string().contains("fresh_start"), "{error}");
    }
    assert_eq!(in_dir(dir.path(), "ckpt-"), ["ckpt-1", "ckpt-2"]);
    drop(manager);
    // A checkpoint that was restored by itself is a restore too.
    let mut checkpoint = run.checkpoint();
    checkpoint.restore(latest_checkpoint(dir.path())?.unwrap())?;
    let mut manager = CheckpointManager::builder(checkpoint, dir.path()).open()?;
    run.save(&mut manager, &[3])?;
    assert_eq!(names(&manager.checkpoints()), ["ckpt-1", "ckpt-2", "ckpt-3"]);
    manager.close()?;
    // One of another directory is none.
    let other = tempfile::tempdir()?;
    run.save(&mut run.open(other.path()), &[7])?;
    let mut manager = run.open(dir.path());
    manager.restore(other.path().join("ckpt-7"))?;
    assert!(matches!(manager.save_at(8), Err(Error::AlreadyExists { .. })));
    Ok(())
}

#[test]
fn directories_of_other_programs_are_left_alone() -> Outcome {
    let dir = tempfile::tempdir()?;
    fs::create_dir(dir.path().join("checkpoint-500"))?;
    fs::write(dir.path().join("checkpoint-500/trainer_state.json"), "{}")?;
    fs::create_dir(dir.path().join("lost+found"))?;
    let run = Run::new();
    let mut manager = run.builder(dir.path()).checkpoint_name("checkpoint").open()?;
    let started = manager.restore_or_initialize()?;
    assert!(started.restored.is_none() && started.passed_over.is_empty(), "{started:?}");
    run.save(&mut manager, &[1, 2])?;
    manager.close()?;
    let listing = list_checkpoints(dir.path())?;
    assert!(listing.damaged.is_empty() && listing.checkpoints.len() == 2, "{listing:?}");
    assert_eq!(in_dir(dir.path(), "checkpoint-"), ["checkpoint-1", "checkpoint-2", "checkpoint-500"]);
    Ok(())
}

/// Directories of Hugging Face's trainer, which have components and no manifest.
#[test]
fn directories_with_components_of_other_programs_are_reported_and_left_alone() -> Outcome {
    let dir = tempfile::tempdir()?;
    let theirs: Vec<PathBuf> = (1..=10).map(|n| dir.path().join(format!("checkpoint-{n}00"))).collect();
    for path in &theirs {
        fs::create_dir(path)?;
        fs::write(path.join("model.safetensors"), "weights")?;
    }
    let run = Run::new();
    let builder = || run.builder(dir.path()).checkpoint_name("checkpoint").max_to_keep(1);
    let mut manager = builder().open()?;
    for error in [manager.restore_or_initialize().unwrap_err(), manager.save_at(1).unwrap_err()] {
        let error = error.to_string();
        assert!(error.contains("manifest.json") && error.contains("fresh_start"), "{error}");
    }
    drop(manager);
    let mut manager = builder().fresh_start().open()?;
    assert_eq!(manager.restore_or_initialize()?.passed_over.len(), 10);
    run.save(&mut manager, &[1, 2])?;
    // Their numbers are taken.
    assert!(matches!(manager.save_at(300), Err(Error::AlreadyExists { .. })));
    manager.close()?;
    // The index tells that they are not ours.
    let mut manager = builder().open()?;
    let started = manager.restore_or_initialize()?;
    assert_eq!((run.step.get(), started.passed_over.len()), (2, 0));
    run.save(&mut manager, &[3, 4])?;
    manager.close()?;
    assert!(tch_checkpoint::inspect::repair(dir.path())?.actions.is_empty());
    assert!(theirs.iter().all(|path| path.join("model.safetensors").exists()));
    assert!(in_dir(dir.path(), "damaged-").is_empty());
    // One of ours that lost its manifest is known by the index; without that, it is reported.
    fs::remove_file(dir.path().join("checkpoint-4/manifest.json"))?;
    fs::remove_file(dir.path().join("checkpoint.json"))?;
    let error = builder().open()?.restore_or_initialize().unwrap_err().to_string();
    assert!(error.contains("checkpoint-4"), "{error}");
    Ok(())
}

/// What an earlier version, which renamed other programs' directories, has moved aside.
#[test]
fn what_was_moved_aside_without_a_manifest_is_not_removed() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    for n in 0..3 {
        let path = dir.path().join(format!("damaged-ckpt-{n}-{n}123456789abcdef0123456789abcdef"));
        fs::create_dir(&path)?;
        fs::write(path.join("model.safetensors"), "weights")?;
    }
    let mut manager = run.builder(dir.path()).fresh_start().keep_damaged(0).max_to_keep(1).open()?;
    manager.restore_or_initialize()?;
    run.save(&mut manager, &[1, 2, 3])?;
    assert_eq!(in_dir(dir.path(), "damaged-").len(), 3);
    Ok(())
}

const NONCE: &str = "0123456789abcdef0123456789abcdef";

/// Replaces a part of a manifest, with a valid digest.
fn rewrite(checkpoint: &Path, from: &str, to: &str) -> Outcome {
    let manifest = checkpoint.join("manifest.json");
    let text = fs::read_to_string(&manifest)?;
    assert!(text.contains(from), "{text}");
    let text = text.replacen(from, to, 1);
    let body = text.rsplit_once("\"xxh3_128\"").unwrap().0;
    Ok(fs::write(&manifest, format!("{body}\"xxh3_128\":\"{}\"}}\n", Digest::of(body.as_bytes())))?)
}

/// The only checkpoint is superseded, and damaged, or of a newer version.
#[test]
fn a_superseded_checkpoint_that_cannot_be_read_is_no_empty_directory() -> Outcome {
    for is_damaged in [true, false] {
        let dir = tempfile::tempdir()?;
        let run = Run::new();
        run.save(&mut run.open(dir.path()), &[1])?;
        match is_damaged {
            true => fs::write(dir.path().join("ckpt-1/manifest.json"), "{")?,
            false => rewrite(&dir.path().join("ckpt-1"), "\"version\":6", "\"version\":999")?,
        }
        fs::rename(dir.path().join("ckpt-1"), dir.path().join(format!("superseded-ckpt-1-{NONCE}")))?;
        for _ in 0..2 {
            let mut manager = run.open(dir.path());
            for error in [manager.restore_or_initialize().unwrap_err(), manager.save_at(1).unwrap_err()] {
                assert!(error.to_string().contains("fresh_start"), "{error}");
            }
        }
        assert_eq!(in_dir(dir.path(), "damaged-ckpt-1-").len(), usize::from(is_damaged));
        let mut manager = run.builder(dir.path()).fresh_start().keep_damaged(0).open()?;
        manager.restore_or_initialize()?;
        run.save(&mut manager, &[2])?;
        assert!(in_dir(dir.path(), "damaged-").is_empty());
    }
    Ok(())
}

#[test]
fn a_run_beside_what_left_the_numbering_is_asked_for() -> Outcome {
    for aside in ["damaged", "superseded", "passed-over"] {
        let dir = tempfile::tempdir()?;
        let run = Run::new();
        run.save(&mut run.open(dir.path()), &[1])?;
        fs::rename(dir.path().join("ckpt-1"), dir.path().join(format!("{aside}-ckpt-1-{NONCE}")))?;
        let error = run.open(dir.path()).save_at(2).unwrap_err().to_string();
        assert!(error.contains("fresh_start"), "{aside}: {error}");
        run.save(&mut run.builder(dir.path()).fresh_start().open()?, &[2])?;
        // One of another name does not stop it: it stays as it is.
        run.save(&mut run.builder(dir.path()).checkpoint_name("best").open()?, &[2])?;
    }
    Ok(())
}

/// Numbers do not tell which is the newest; the index does.
#[test]
fn a_link_in_the_place_of_the_newest_is_not_ignored() -> Outcome {
    let (dir, elsewhere) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let run = Run::new();
    run.save(&mut run.builder(dir.path()).max_to_keep(None).open()?, &[1000])?;
    let mut manager = run.builder(dir.path()).max_to_keep(None).open()?;
    manager.restore_or_initialize()?;
    run.save(&mut manager, &[10, 20])?;
    manager.close()?;
    let (inside, moved) = (dir.path().join("ckpt-20"), elsewhere.path().join("ckpt-20"));
    copy_dir(&inside, &moved);
    fs::remove_dir_all(&inside)?;
    std::os::unix::fs::symlink(&moved, &inside)?;
    let error = run.open(dir.path()).restore_or_initialize().unwrap_err();
    assert!(matches!(error, Error::Link { .. }), "{error}");
    assert!(matches!(latest_checkpoint(dir.path()), Err(Error::Link { .. })));
    // Without the index, the numbers of others do not count either.
    fs::remove_file(dir.path().join("checkpoint.json"))?;
    fs::remove_dir_all(dir.path().join("ckpt-1000"))?;
    assert!(matches!(run.open(dir.path()).restore_or_initialize(), Err(Error::Link { .. })));
    Ok(())
}

/// Its target is asked for while it is being restored: a hand removes the checkpoint at that moment.
struct Removing(Memory, PathBuf);

impl tch_checkpoint::Trackable for Removing {
    fn node(&self) -> tch_checkpoint::Node {
        tch_checkpoint::Node::tensor(Removing(self.0.clone(), self.1.clone()))
    }
}

impl tch_checkpoint::TensorLeaf for Removing {
    fn spec(&self) -> Result<tch_checkpoint::TensorSpec, tch_checkpoint::BoxError> {
        self.0.spec()
    }

    fn identity(&self) -> Option<tch_checkpoint::Identity> {
        self.0.identity()
    }

    fn bytes(&self) -> Result<Box<dyn tch_checkpoint::TensorBytes>, tch_checkpoint::BoxError> {
        tch_checkpoint::TensorLeaf::bytes(&self.0)
    }

    fn target(&self) -> Result<Box<dyn tch_checkpoint::TensorTarget>, tch_checkpoint::BoxError> {
        let _ = fs::remove_dir_all(&self.1);
        self.0.target()
    }
}

#[test]
fn what_is_removed_while_it_is_found_damaged_stops_nothing() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    run.save(&mut run.open(dir.path()), &[1, 2, 3])?;
    let file = dir.path().join("ckpt-3/weights.safetensors");
    let mut bytes = fs::read(&file)?;
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&file, bytes)?;
    let checkpoint = Checkpoint::new().track("step", &run.step)?;
    let checkpoint = checkpoint.track("weights", Removing(run.weights.clone(), dir.path().join("ckpt-3")))?;
    let mut manager = CheckpointManager::builder(checkpoint, dir.path()).open()?;
    manager.restore_or_initialize()?;
    assert_eq!(run.step.get(), 2);
    assert_eq!(in_dir(dir.path(), "ckpt-"), ["ckpt-1", "ckpt-2"]);
    manager.save_at(3)?;
    Ok(())
}

#[test]
fn the_highest_sequence_is_an_error_before_anything_is_written() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    run.save(&mut run.open(dir.path()), &[1])?;
    rewrite(&dir.path().join("ckpt-1"), "\"sequence\":1", &format!("\"sequence\":{}", 1u64 << 63))?;
    let mut manager = run.open(dir.path());
    manager.restore_or_initialize()?;
    let error = manager.save_at(2).unwrap_err().to_string();
    assert!(error.contains("highest sequence") && error.contains("move it"), "{error}");
    assert_eq!(in_dir(dir.path(), "ckpt-"), ["ckpt-1"]);
    Ok(())
}

/// The process that removes a checkpoint ends before it sees the pin.
#[test]
fn a_pinned_checkpoint_comes_back_from_the_trash() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager = run.open(dir.path());
    run.save(&mut manager, &[1, 2, 3])?;
    manager.pin("ckpt-1", "paper", "")?;
    manager.pin("ckpt-2", "paper", "")?;
    manager.close()?;
    for name in ["ckpt-1", "ckpt-2"] {
        fs::rename(dir.path().join(name), dir.path().join(format!(".trash-{name}-{NONCE}")))?;
    }
    // Its files were being removed: the pin came too late.
    fs::remove_file(dir.path().join(format!(".trash-ckpt-2-{NONCE}/weights.safetensors")))?;
    let manager = run.open(dir.path());
    assert_eq!(names(&manager.checkpoints()), ["ckpt-1", "ckpt-3"]);
    assert!(in_dir(dir.path(), ".trash").is_empty());
    Ok(())
}

/// One that the run had abandoned comes back as such, not into the numbering.
#[test]
fn a_pinned_superseded_checkpoint_comes_back_superseded() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager = run.open(dir.path());
    run.save(&mut manager, &[1, 2, 3])?;
    manager.restore(dir.path().join("ckpt-1"))?;
    run.save(&mut manager, &[4])?;
    manager.close()?;
    let [second, third] = [0, 1].map(|n| in_dir(dir.path(), "superseded-")[n].clone());
    CheckpointDirectory::new(dir.path()).pin(&second, "paper", "")?;
    for name in [&second, &third] {
        fs::rename(dir.path().join(name), dir.path().join(name.replacen("superseded-", ".trash-.s-", 1)))?;
    }
    let mut manager = run.open(dir.path());
    assert_eq!(names(&manager.checkpoints()), ["ckpt-1", "ckpt-4"]);
    assert_eq!((in_dir(dir.path(), "superseded-"), in_dir(dir.path(), ".trash").len()), (vec![second], 0));
    manager.restore_or_initialize()?;
    assert_eq!(run.step.get(), 4);
    Ok(())
}

/// What may be a pin comes back, and what a newer version wrote stays where it is.
#[test]
fn what_cannot_be_read_in_the_trash_is_not_swept() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager = run.open(dir.path());
    run.save(&mut manager, &[1, 2, 3])?;
    manager.close()?;
    for name in ["ckpt-1", "ckpt-2"] {
        fs::write(dir.path().join(name).join("mark-pin-0123.json"), "{\"version\":99}")?;
        fs::rename(dir.path().join(name), dir.path().join(format!(".trash-{name}-{NONCE}")))?;
    }
    let newer = dir.path().join(format!(".trash-ckpt-2-{NONCE}"));
    rewrite(&newer, "\"version\":6", "\"version\":999")?;
    let mut manager = run.open(dir.path());
    manager.restore_or_initialize()?;
    run.save(&mut manager, &[4])?;
    assert_eq!(names(&manager.checkpoints()), ["ckpt-1", "ckpt-3", "ckpt-4"]);
    assert!(newer.exists());
    Ok(())
}

/// A mark that cannot be read keeps its checkpoint as long as it is there, and no longer.
#[test]
fn an_unreadable_mark_makes_nothing_permanent() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager = run.builder(dir.path()).max_to_keep(1).open()?;
    run.save(&mut manager, &[1])?;
    let mark = dir.path().join("ckpt-1/mark-pin-0123.json");
    fs::write(&mark, "{")?;
    run.save(&mut manager, &[2, 3])?;
    assert_eq!(in_dir(dir.path(), "ckpt-"), ["ckpt-1", "ckpt-3"]);
    manager.close()?;
    let mut manager = run.builder(dir.path()).max_to_keep(1).open()?;
    manager.restore_or_initialize()?;
    fs::remove_file(&mark)?;
    run.save(&mut manager, &[4])?;
    assert_eq!(in_dir(dir.path(), "ckpt-"), ["ckpt-4"]);
    Ok(())
}

#[test]
fn a_step_that_goes_back_is_due_again() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager = run.builder(dir.path()).save_every(100).open()?;
    run.save(&mut manager, &[1000])?;
    let mut saved = Vec::new();
    for step in 1..=1000 {
        run.set(step);
        run.step.set(10_000 + step);
        saved.extend(manager.save_if_due(step)?);
    }
    assert_eq!(names(&saved)[..2], ["ckpt-1", "ckpt-101"]);
    assert_eq!(saved.len(), 10);
    run.set(1000);
    run.step.set(11_000);
    manager.save_at(1000)?;
    assert_eq!(step_in(&dir.path().join("ckpt-1000")), 11_000, "and not that of the first phase");
    Ok(())
}

#[test]
fn the_same_step_again_adds_metrics_or_saves_anew() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager = run.open(dir.path());
    run.set(1);
    manager.save_with_metrics(1, [("loss", 0.5)])?;
    run.set(2);
    manager.save_if_due(2)?;
    let sequence = |path: &Path| CheckpointReader::open(path).unwrap().manifest().sequence;
    let before = sequence(&dir.path().join("ckpt-2"));
    assert_eq!(manager.save_if_due(2)?, None);
    let metrics = [("accuracy", 0.75), ("loss", f64::NAN), ("a/b \u{fc}", f64::INFINITY)];
    assert_eq!(manager.save_with_metrics(2, metrics)?, dir.path().join("ckpt-2"));
    assert_eq!(sequence(&dir.path().join("ckpt-2")), before, "nothing was written but the metrics");
    manager.save_with_metrics(2, [("accuracy", 0.8)])?;
    manager.close()?;
    fs::remove_file(dir.path().join("checkpoint.json"))?;
    let listed = list_checkpoints(dir.path())?.checkpoints.pop().unwrap();
    assert_eq!(listed.entry.metrics.len(), 3);
    assert_eq!((listed.entry.metrics["accuracy"], listed.entry.metrics["a/b \u{fc}"]), (0.8, f64::INFINITY));
    assert!(listed.entry.metrics["loss"].is_nan());
    let verified = tch_checkpoint::verify_checkpoint(&listed.path);
    assert!(verified.is_intact() && verified.unexpected.is_empty(), "marks are no strangers");

    // A state that has changed since is saved, whether the checkpoint was saved or restored before.
    for change in [20, 21] {
        let mut manager = run.open(dir.path());
        manager.restore_or_initialize()?;
        run.step.set(change);
        assert_eq!(manager.save_at(2)?, dir.path().join("ckpt-2"));
        assert_eq!(step_in(&dir.path().join("ckpt-2")), change);
        run.weights.bytes()[0] ^= 1;
        manager.save_at(2)?;
        assert_eq!(names(&manager.checkpoints()), ["ckpt-1", "ckpt-2"]);
        manager.close()?;
    }
    Ok(())
}

#[test]
fn a_metric_that_is_no_number_is_stored() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager = run.open(dir.path());
    manager.save_with_metrics(1, [("nan", f64::NAN), ("less", f64::NEG_INFINITY), ("one", 1.0)])?;
    let metrics = &CheckpointReader::open(dir.path().join("ckpt-1"))?.manifest().metrics.clone();
    assert!(metrics["nan"].is_nan() && metrics["less"] == f64::NEG_INFINITY && metrics["one"] == 1.0);
    manager.save_at(2)?;
    assert_eq!(names(&run_again(dir.path())?.checkpoints()), ["ckpt-1", "ckpt-2"]);
    Ok(())
}

fn run_again(dir: &Path) -> Result<CheckpointManager, Error> {
    // The lock is free when the other manager is gone.
    std::thread::sleep(std::time::Duration::from_millis(1));
    let copy = dir.with_extension("copy");
    fs::create_dir(&copy).unwrap();
    for name in in_dir(dir, "ckpt-") {
        copy_dir(&dir.join(&name), &copy.join(&name));
    }
    Run::new().builder(&copy).open()
}

#[test]
fn what_is_kept_for_good_is_never_forgotten() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let open = || run.builder(dir.path()).max_to_keep(1).keep_every(std::time::Duration::from_nanos(1)).open();
    let mut manager = open()?;
    for step in 1..=3 {
        std::thread::sleep(std::time::Duration::from_millis(5));
        run.save(&mut manager, &[step])?;
    }
    assert_eq!(names(&manager.permanent_checkpoints()), ["ckpt-1", "ckpt-2"]);
    manager.close()?;
    let mark = fs::read(dir.path().join("ckpt-1/mark-permanent.json"))?;
    assert_eq!(Mark::from_bytes(&mark)?.kind, MarkKind::Permanent);

    // A manager of another name, a lost index, and a save without a manager in between.
    let mut other = run.builder(dir.path()).checkpoint_name("best").open()?;
    run.save(&mut other, &[1])?;
    other.close()?;
    fs::remove_file(dir.path().join("checkpoint.json"))?;
    run.checkpoint().save(dir.path().join("alone"))?;
    // And then one that keeps nothing permanently.
    let mut manager = run.builder(dir.path()).max_to_keep(1).open()?;
    manager.restore_or_initialize()?;
    run.save(&mut manager, &[4, 5])?;
    assert_eq!(names(&manager.permanent_checkpoints()), ["ckpt-1", "ckpt-2"]);
    assert_eq!(in_dir(dir.path(), "ckpt-"), ["ckpt-1", "ckpt-2", "ckpt-5"]);

    // The content of a mark that cannot be read is unknown: it stays.
    fs::write(dir.path().join("ckpt-5/mark-of-the-future.json"), "?")?;
    run.save(&mut manager, &[6, 7])?;
    assert_eq!(in_dir(dir.path(), "ckpt-"), ["ckpt-1", "ckpt-2", "ckpt-5", "ckpt-7"]);

    // What the user removes is gone, and rotation continues.
    fs::remove_dir_all(dir.path().join("ckpt-1"))?;
    fs::remove_dir_all(dir.path().join("ckpt-5"))?;
    run.save(&mut manager, &[8, 9])?;
    assert_eq!(in_dir(dir.path(), "ckpt-"), ["ckpt-2", "ckpt-9"]);
    assert_eq!(names(&manager.permanent_checkpoints()), ["ckpt-2"]);
    Ok(())
}

#[test]
fn what_only_an_old_index_knows_is_written_into_the_checkpoints() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager = run.builder(dir.path()).max_to_keep(3).open()?;
    run.save(&mut manager, &[1, 2, 3])?;
    manager.close()?;
    let index = dir.path().join("checkpoint.json");
    let mut hints = Index::from_bytes(&fs::read(&index)?)?;
    hints.checkpoints[0].permanent = true;
    // And with a clock that was wrong once.
    hints.last_permanent = Some("2100-01-01T00:00:00Z".parse()?);
    fs::write(&index, hints.to_bytes()?)?;
    drop(run.open(dir.path()));
    fs::remove_file(&index)?;
    let mut manager = run.builder(dir.path()).max_to_keep(1).keep_every(std::time::Duration::from_nanos(1)).open()?;
    manager.restore_or_initialize()?;
    assert_eq!(names(&manager.permanent_checkpoints()), ["ckpt-1"]);
    for step in 4..=6 {
        std::thread::sleep(std::time::Duration::from_millis(5));
        run.save(&mut manager, &[step])?;
    }
    assert!(manager.permanent_checkpoints().len() >= 3, "{:?}", manager.permanent_checkpoints());
    Ok(())
}

#[test]
fn a_clock_in_the_index_that_is_ahead_ends_nothing() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    run.save(&mut run.open(dir.path()), &[1])?;
    let index = dir.path().join("checkpoint.json");
    let mut hints = Index::from_bytes(&fs::read(&index)?)?;
    hints.last_permanent = Some("2100-01-01T00:00:00Z".parse()?);
    fs::write(&index, hints.to_bytes()?)?;
    let mut manager = run.builder(dir.path()).max_to_keep(1).keep_every(std::time::Duration::from_nanos(1)).open()?;
    manager.restore_or_initialize()?;
    for step in 2..=4 {
        std::thread::sleep(std::time::Duration::from_millis(5));
        run.save(&mut manager, &[step])?;
    }
    assert_eq!(names(&manager.permanent_checkpoints()), ["ckpt-2", "ckpt-3"]);
    Ok(())
}

#[test]
fn what_was_removed_by_hand_can_be_saved_again() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager = run.builder(dir.path()).max_to_keep(3).open()?;
    run.save(&mut manager, &[1, 2, 3])?;
    for step in [3, 2] {
        fs::remove_dir_all(dir.path().join(format!("ckpt-{step}")))?;
        run.save(&mut manager, &[step])?;
        assert!(dir.path().join(format!("ckpt-{step}")).exists());
    }
    assert_eq!(names(&manager.checkpoints()), ["ckpt-1", "ckpt-3", "ckpt-2"]);
    run.save(&mut manager, &[4])?;
    assert_eq!(in_dir(dir.path(), "ckpt-"), ["ckpt-2", "ckpt-3", "ckpt-4"]);
    Ok(())
}

/// The last checkpoint of a run that saved 30 times.
fn foreign(dir: &Path) -> PathBuf {
    let other = Run::new();
    let mut manager = other.builder(dir).max_to_keep(2).open().unwrap();
    for i in 1..=30 {
        other.set(10 * i);
        other.step.set(u64::MAX);
        manager.save_at(10 * i).unwrap();
    }
    dir.join("ckpt-300")
}

#[test]
fn a_checkpoint_of_another_run_neither_wins_nor_costs_the_own_ones() -> Outcome {
    for restarts in [false, true] {
        let (dir, other) = (tempfile::tempdir()?, tempfile::tempdir()?);
        let run = Run::new();
        let mut manager = run.builder(dir.path()).max_to_keep(2).open()?;
        for step in [1000, 2000, 3000] {
            if restarts {
                drop(manager);
                manager = run.builder(dir.path()).max_to_keep(2).open()?;
                manager.restore_or_initialize()?;
            }
            run.save(&mut manager, &[step])?;
        }
        manager.close()?;
        copy_dir(&foreign(other.path()), &dir.path().join("ckpt-300"));
        assert_eq!(latest_checkpoint(dir.path())?, Some(dir.path().join("ckpt-3000").into()));
        let mut manager = run.builder(dir.path()).max_to_keep(2).open()?;
        assert_eq!(manager.restore_or_initialize()?.restored.unwrap().step(), Some(3000));
        run.save(&mut manager, &[4000, 5000])?;
        manager.close()?;
        assert_eq!(in_dir(dir.path(), "ckpt-"), ["ckpt-300", "ckpt-4000", "ckpt-5000"], "it is left alone");
        assert_eq!(latest_checkpoint(dir.path())?, Some(dir.path().join("ckpt-5000").into()));
    }
    Ok(())
}

#[test]
fn two_runs_that_nothing_decides_between_are_an_error_that_names_both() -> Outcome {
    let (dir, other) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let run = Run::new();
    let mut manager = run.builder(dir.path()).max_to_keep(2).open()?;
    run.save(&mut manager, &[1000, 2000, 3000])?;
    manager.close()?;
    copy_dir(&foreign(other.path()), &dir.path().join("ckpt-300"));
    fs::remove_file(dir.path().join("checkpoint.json"))?;
    let named = |error: Error| {
        let text = error.to_string();
        assert!(matches!(error, Error::Undecided { .. }), "{text}");
        assert!(text.contains("ckpt-300 ") && text.contains("ckpt-3000 "), "{text}");
    };
    named(latest_checkpoint(dir.path()).unwrap_err());
    assert_eq!(list_checkpoints(dir.path())?.checkpoints.len(), 3);
    let mut manager = run.builder(dir.path()).max_to_keep(2).open()?;
    named(manager.restore_or_initialize().unwrap_err());
    named(manager.save_at(1).unwrap_err());
    // Restoring one of them decides.
    manager.restore(dir.path().join("ckpt-3000"))?;
    run.save(&mut manager, &[4000])?;
    assert_eq!(names(&manager.checkpoints()), ["ckpt-3000", "ckpt-4000"]);
    manager.close()?;
    assert_eq!(latest_checkpoint(dir.path())?, Some(dir.path().join("ckpt-4000").into()));
    assert!(dir.path().join("ckpt-300").exists());
    Ok(())
}

/// Each remedy that the error names works in the manager that returned it.
#[test]
fn moving_one_of_two_undecided_runs_away_decides() -> Outcome {
    for (moves, saves) in [(false, false), (false, true), (true, false), (true, true)] {
        let (dir, other) = (tempfile::tempdir()?, tempfile::tempdir()?);
        let run = Run::new();
        let mut manager = run.builder(dir.path()).max_to_keep(2).open()?;
        run.save(&mut manager, &[1000, 2000, 3000])?;
        manager.close()?;
        copy_dir(&foreign(other.path()), &dir.path().join("ckpt-300"));
        fs::remove_file(dir.path().join("checkpoint.json"))?;
        let mut manager = run.builder(dir.path()).max_to_keep(2).open()?;
        assert!(matches!(manager.restore_or_initialize(), Err(Error::Undecided { .. })));
        if moves {
            fs::rename(dir.path().join("ckpt-300"), other.path().join("moved"))?;
        } else {
            manager.pass_over(dir.path().join("ckpt-300"))?;
        }
        if saves {
            let error = manager.save_at(4000).unwrap_err();
            assert!(matches!(error, Error::AlreadyExists { .. }), "{error}");
            assert!(matches!(manager.save(), Err(Error::AlreadyExists { .. })));
        }
        assert_eq!(manager.restore_or_initialize()?.restored.unwrap().step(), Some(3000));
        run.save(&mut manager, &[4000])?;
        assert_eq!(names(&manager.checkpoints()), ["ckpt-3000", "ckpt-4000"]);
    }
    Ok(())
}

/// The last save of a run looks again at what an earlier one was refused for.
#[test]
fn what_was_in_the_way_of_a_run_and_is_gone_does_not_stop_its_last_save() -> Outcome {
    for kind in ["part", "guard", "unclean"] {
        let dir = tempfile::tempdir()?;
        let run = Run::new();
        run.save(&mut run.open(dir.path()), &[1])?;
        let preemption = Preemption::new().save_only(["step"]);
        let builder = run.builder(dir.path()).save_every(1_000_000).preemption(preemption.clone());
        let mut manager = builder.unclean_on_failure().open()?;
        assert!(matches!(manager.save_at(2), Err(Error::AlreadyExists { .. })));
        fs::remove_dir_all(dir.path().join("ckpt-1"))?;
        run.set(2);
        if kind == "part" {
            preemption.request();
            manager.save_if_due(2)?;
        } else {
            let ended: Result<(), Error> = manager.guard(|manager| {
                // Without a call, nobody knows which state belongs together.
                if kind == "guard" {
                    manager.save_if_due(2)?;
                }
                Err(Error::InvalidArgument("the data is gone".to_string()))
            });
            assert!(ended.is_err());
        }
        let saved = in_dir(dir.path(), "ckpt-").remove(0);
        let manifest = Manifest::from_bytes(&fs::read(dir.path().join(saved).join("manifest.json"))?)?;
        assert_eq!((manifest.unclean, !manifest.without.is_empty()), (kind == "unclean", kind == "part"), "{kind}");
    }
    Ok(())
}

#[test]
fn restoring_a_superseded_checkpoint_decides_for_the_run_that_went_back_from_it() -> Outcome {
    let (dir, other) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let run = Run::new();
    let mut manager = run.builder(dir.path()).max_to_keep(4).open()?;
    for (step, value) in [(1, 1), (2, 2), (1, 3), (2, 4), (3, 5)] {
        run.set(value);
        manager.save_at(step)?;
    }
    manager.close()?;
    copy_dir(&foreign(other.path()), &dir.path().join("ckpt-300"));
    fs::remove_file(dir.path().join("checkpoint.json"))?;
    let mut manager = run.builder(dir.path()).max_to_keep(4).open()?;
    assert!(matches!(manager.restore_or_initialize(), Err(Error::Undecided { .. })));
    // All that are in the numbering come from it, and it from none of them.
    let second = in_dir(dir.path(), "superseded-ckpt-2-").remove(0);
    manager.restore(dir.path().join(second))?;
    assert_eq!(run.step.get(), 2);
    run.save(&mut manager, &[4])?;
    assert_eq!(names(&manager.checkpoints()), ["ckpt-4"]);
    assert_eq!(in_dir(dir.path(), "ckpt-"), ["ckpt-300", "ckpt-4"]);
    assert_eq!(in_dir(dir.path(), "superseded-").len(), 5);
    manager.close()?;
    assert_eq!(latest_checkpoint(dir.path())?, Some(dir.path().join("ckpt-4").into()));
    Ok(())
}

/// The checkpoint that both come from is gone: only the names of the runs connect them.
#[test]
fn restoring_a_superseded_checkpoint_decides_without_the_one_that_the_run_went_back_to() -> Outcome {
    let (dir, other) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let run = Run::new();
    let open = || run.builder(dir.path()).max_to_keep(4).open();
    let mut manager = open()?;
    run.save(&mut manager, &[1, 2])?;
    manager.close()?;
    let mut manager = open()?;
    manager.restore(dir.path().join("ckpt-1"))?;
    run.save(&mut manager, &[3, 4])?;
    manager.close()?;
    fs::remove_dir_all(dir.path().join("ckpt-1"))?;
    copy_dir(&foreign(other.path()), &dir.path().join("ckpt-300"));
    fs::remove_file(dir.path().join("checkpoint.json"))?;
    let mut manager = open()?;
    assert!(matches!(manager.restore_or_initialize(), Err(Error::Undecided { .. })));
    manager.restore(dir.path().join(in_dir(dir.path(), "superseded-ckpt-2-").remove(0)))?;
    assert_eq!(run.step.get(), 2);
    run.save(&mut manager, &[3])?;
    assert_eq!(in_dir(dir.path(), "ckpt-"), ["ckpt-3", "ckpt-300"]);
    assert_eq!(in_dir(dir.path(), "superseded-").len(), 3);
    manager.close()?;
    assert_eq!(latest_checkpoint(dir.path())?, Some(dir.path().join("ckpt-3").into()));
    Ok(())
}

#[test]
fn what_a_restore_decided_stays_decided_when_a_checkpoint_is_removed_by_hand() -> Outcome {
    let (dir, other) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let run = Run::new();
    let open = || run.builder(dir.path()).max_to_keep(3).open();
    let mut manager = open()?;
    run.save(&mut manager, &[1, 2, 3])?;
    manager.close()?;
    copy_dir(&foreign(other.path()), &dir.path().join("ckpt-300"));
    fs::remove_file(dir.path().join("checkpoint.json"))?;
    let mut manager = open()?;
    manager.restore(dir.path().join("ckpt-2"))?;
    fs::remove_dir_all(dir.path().join("ckpt-1"))?;
    assert_eq!(manager.restore_or_initialize()?.restored.unwrap().step(), Some(3));
    // It also knows what it has removed since.
    manager.restore(dir.path().join("ckpt-2"))?;
    let snapshot = manager.checkpoint().snapshot()?;
    run.save(&mut manager, &[4, 5, 6])?;
    assert_eq!(names(&manager.checkpoints()), ["ckpt-4", "ckpt-5", "ckpt-6"]);
    manager.checkpoint_mut().rollback(&snapshot)?;
    run.save(&mut manager, &[3])?;
    assert_eq!(in_dir(dir.path(), "ckpt-"), ["ckpt-3", "ckpt-300"]);
    Ok(())
}

/// With the index it does not count. Without, it may be the run's own: what is connected with the newest comes first.
#[test]
fn a_permanent_checkpoint_of_another_run_neither_wins_nor_costs_the_own_ones() -> Outcome {
    for has_index in [true, false] {
        let (dir, other) = (tempfile::tempdir()?, tempfile::tempdir()?);
        let elsewhere = Run::new();
        let mut manager = elsewhere.builder(other.path()).keep_every(std::time::Duration::from_nanos(1)).open()?;
        for step in 1..=30 {
            elsewhere.set(step);
            manager.save_with_metrics(step, [("loss", 0.0)])?;
        }
        assert!(names(&manager.permanent_checkpoints()).contains(&"ckpt-20".to_string()));
        let run = Run::new();
        let best = || Best::new("loss", Goal::Minimize, 1);
        let open = || run.builder(dir.path()).max_to_keep(3).keep(best()).open();
        let mut manager = open()?;
        for (step, loss) in [(1, 0.1), (2, 0.2), (3, 0.3)] {
            run.set(step);
            manager.save_with_metrics(step, [("loss", loss)])?;
        }
        manager.close()?;
        let foreign = dir.path().join("ckpt-300");
        copy_dir(&other.path().join("ckpt-20"), &foreign);
        if !has_index {
            fs::remove_file(dir.path().join("checkpoint.json"))?;
        }
        damage_last_byte(&dir.path().join("ckpt-3/weights.safetensors"))?;
        let mut manager = open()?;
        assert_eq!(manager.restore_or_initialize()?.restored.unwrap().step(), Some(2), "index: {has_index}");
        manager.restore(dir.path().join("ckpt-1"))?;
        run.save(&mut manager, &[4])?;
        assert_eq!(in_dir(dir.path(), "ckpt-"), ["ckpt-1", "ckpt-300", "ckpt-4"], "index: {has_index}");
        let set_aside: Vec<_> = in_dir(dir.path(), "superseded-").iter().map(|name| name[..17].to_string()).collect();
        assert_eq!(set_aside, ["superseded-ckpt-2"], "index: {has_index}");
        if has_index {
            run.save(&mut manager, &[5, 6, 7])?;
            assert_eq!(
                names(&manager.checkpoints()),
                ["ckpt-1", "ckpt-5", "ckpt-6", "ckpt-7"],
                "the first is the best"
            );
            assert!(manager.permanent_checkpoints().is_empty());
            assert_eq!(manager.restore_best("loss", Goal::Minimize)?.step(), Some(1));
        }
        assert!(foreign.join("manifest.json").exists());
    }
    Ok(())
}

/// Elsewhere, sequences begin anew: they do not tell which checkpoints of this directory are later.
#[test]
fn restoring_what_was_written_elsewhere_supersedes_nothing() -> Outcome {
    let (dir, other) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let run = Run::new();
    let mut manager = run.builder(dir.path()).max_to_keep(2).open()?;
    run.save(&mut manager, &[1, 2, 3, 4])?;
    let best = manager.checkpoint_mut().write(other.path().join("best"))?;
    manager.restore(best)?;
    run.save(&mut manager, &[5])?;
    assert_eq!(in_dir(dir.path(), "ckpt-"), ["ckpt-4", "ckpt-5"]);
    assert!(in_dir(dir.path(), "superseded-").is_empty());
    Ok(())
}

/// Whether this process or an earlier one saved it.
#[test]
fn going_back_to_a_copy_of_what_is_gone_supersedes_what_came_later() -> Outcome {
    for restarts in [false, true] {
        let (dir, other) = (tempfile::tempdir()?, tempfile::tempdir()?);
        let run = Run::new();
        let open = || run.builder(dir.path()).max_to_keep(2).open();
        let mut manager = open()?;
        run.save(&mut manager, &[1])?;
        let backup = other.path().join("ckpt-1");
        copy_dir(&dir.path().join("ckpt-1"), &backup);
        run.save(&mut manager, &[2, 3, 4])?;
        if restarts {
            manager.close()?;
            manager = open()?;
            manager.restore_or_initialize()?;
        }
        run.save(&mut manager, &[5])?;
        manager.restore(&backup)?;
        run.save(&mut manager, &[2])?;
        assert_eq!(in_dir(dir.path(), "ckpt-"), ["ckpt-2"], "restarts: {restarts}");
    }
    Ok(())
}

fn damage_last_byte(file: &Path) -> Outcome {
    let mut bytes = fs::read(file)?;
    *bytes.last_mut().ok_or("an empty file")? ^= 0x80;
    Ok(fs::write(file, bytes)?)
}

/// All that have a number were removed by hand, and one of another run was copied in: it counts, until it turns out
/// that it does not belong to what was superseded.
#[test]
fn a_foreign_checkpoint_that_is_alone_is_left_alone_when_a_superseded_one_is_restored() -> Outcome {
    for case in ["", "no index", "noted", "removed meanwhile", "permanent"] {
        let (dir, other) = (tempfile::tempdir()?, tempfile::tempdir()?);
        let open = |run: &Run| run.builder(dir.path()).max_to_keep(2).open();
        let run = Run::new();
        let mut manager = open(&run)?;
        for value in [1, 2] {
            run.set(value);
            manager.save_at(1)?;
        }
        let foreign_one = dir.path().join("ckpt-300");
        let copy_in = || -> Outcome {
            fs::remove_dir_all(dir.path().join("ckpt-1"))?;
            copy_dir(&foreign(other.path()), &foreign_one);
            if case == "permanent" {
                let of = CheckpointReader::open(&foreign_one)?.manifest().id();
                let mark = Mark::new(of, MarkKind::Permanent);
                fs::write(foreign_one.join(mark.file_name()), mark.to_bytes()?)?;
            }
            Ok(())
        };
        let aside = dir.path().join(in_dir(dir.path(), "superseded-ckpt-1-").remove(0));
        if case == "removed meanwhile" {
            copy_in()?;
            // It notices, and continues from the only one.
            manager.restore_or_initialize()?;
            assert_eq!(run.step.get(), u64::MAX);
        } else {
            manager.close()?;
            copy_in()?;
            if case == "no index" {
                fs::remove_file(dir.path().join("checkpoint.json"))?;
            }
            if case == "noted" {
                let mut manager = open(&run)?;
                manager.annotate(&aside, "note", "the right one")?;
                manager.close()?;
            }
            manager = open(&run)?;
        }
        manager.restore(&aside)?;
        assert_eq!(run.step.get(), 1, "{case}");
        run.save(&mut manager, &[2, 3, 4, 5])?;
        assert_eq!(in_dir(dir.path(), "ckpt-"), ["ckpt-300", "ckpt-4", "ckpt-5"], "{case}");
        assert_eq!(in_dir(dir.path(), "superseded-"), [] as [&str; 0], "{case}");
        manager.close()?;
        assert_eq!(step_in(&foreign_one), u64::MAX);
        assert_eq!(latest_checkpoint(dir.path())?, Some(dir.path().join("ckpt-5").into()), "{case}");
    }
    Ok(())
}

/// Nor when there are permanent ones, the index is missing, and one of them is restored.
#[test]
fn a_foreign_checkpoint_is_left_alone_when_a_permanent_one_is_restored() -> Outcome {
    let (dir, other) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let run = Run::new();
    let open = || run.builder(dir.path()).max_to_keep(1).keep_every(std::time::Duration::from_nanos(1)).open();
    let mut manager = open()?;
    run.save(&mut manager, &[1, 2, 3])?;
    assert_eq!(names(&manager.permanent_checkpoints()), ["ckpt-1", "ckpt-2"]);
    manager.close()?;
    fs::remove_dir_all(dir.path().join("ckpt-3"))?;
    fs::remove_file(dir.path().join("checkpoint.json"))?;
    copy_dir(&foreign(other.path()), &dir.path().join("ckpt-300"));
    let mut manager = open()?;
    manager.restore(dir.path().join("ckpt-1"))?;
    run.save(&mut manager, &[4])?;
    assert_eq!(in_dir(dir.path(), "ckpt-"), ["ckpt-1", "ckpt-300", "ckpt-4"]);
    assert_eq!(in_dir(dir.path(), "superseded-").len(), 1, "it went back to the first");
    Ok(())
}

#[test]
fn what_went_back_is_superseded_in_turn() -> Outcome {
    for has_index in [true, false] {
        let dir = tempfile::tempdir()?;
        let run = Run::new();
        let open = || run.builder(dir.path()).max_to_keep(4).open();
        let mut manager = open()?;
        run.save(&mut manager, &[1, 2, 3])?;
        manager.close()?;
        let mut manager = open()?;
        manager.restore(dir.path().join("ckpt-2"))?;
        run.save(&mut manager, &[4])?;
        manager.close()?;
        // The checkpoint that both runs come from is gone.
        fs::remove_dir_all(dir.path().join("ckpt-1"))?;
        fs::remove_dir_all(dir.path().join("ckpt-2"))?;
        if !has_index {
            fs::remove_file(dir.path().join("checkpoint.json"))?;
        }
        let mut manager = open()?;
        manager.restore(dir.path().join(in_dir(dir.path(), "superseded-ckpt-3-").remove(0)))?;
        run.save(&mut manager, &[5])?;
        assert_eq!(in_dir(dir.path(), "ckpt-"), ["ckpt-5"], "index: {has_index}");
        assert_eq!(in_dir(dir.path(), "superseded-ckpt-4-").len(), 1, "index: {has_index}");
    }
    Ok(())
}

/// A run that began anew names no other one. Only the index records that both are of one directory.
#[test]
fn what_began_afresh_is_superseded_if_the_index_has_it_and_else_left_alone() -> Outcome {
    for has_index in [true, false] {
        let dir = tempfile::tempdir()?;
        let run = Run::new();
        let mut manager = run.open(dir.path());
        run.save(&mut manager, &[1, 2])?;
        manager.close()?;
        let mut manager = run.builder(dir.path()).fresh_start().open()?;
        run.save(&mut manager, &[3])?;
        assert_eq!((in_dir(dir.path(), "ckpt-").len(), in_dir(dir.path(), "superseded-").len()), (1, 2));
        manager.close()?;
        fs::remove_dir_all(dir.path().join(in_dir(dir.path(), "superseded-ckpt-1-").remove(0)))?;
        if !has_index {
            fs::remove_file(dir.path().join("checkpoint.json"))?;
        }
        let mut manager = run.open(dir.path());
        manager.restore(dir.path().join(in_dir(dir.path(), "superseded-ckpt-2-").remove(0)))?;
        run.save(&mut manager, &[4])?;
        let there = in_dir(dir.path(), "ckpt-");
        assert_eq!(there, if has_index { vec!["ckpt-4"] } else { vec!["ckpt-3", "ckpt-4"] });
        assert_eq!(names(&manager.checkpoints()), ["ckpt-4"]);
        assert_eq!(latest_checkpoint(dir.path())?, Some(dir.path().join("ckpt-4").into()));
    }
    Ok(())
}

#[test]
fn what_is_in_the_place_of_a_checkpoint_removed_by_hand_does_not_count_for_it() -> Outcome {
    let (dir, other) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let run = Run::new();
    let mut manager = run.builder(dir.path()).max_to_keep(3).open()?;
    for (step, value) in [(1, 1), (2, 2), (2, 3), (3, 4)] {
        run.set(value);
        manager.save_at(step)?;
    }
    fs::remove_dir_all(dir.path().join("ckpt-3"))?;
    copy_dir(&foreign(other.path()), &dir.path().join("ckpt-3"));
    // The number is taken: it is not superseded by a save of the same step.
    let copied = fs::read(dir.path().join("ckpt-3").join("manifest.json"))?;
    run.set(5);
    assert!(matches!(manager.save_at(3), Err(Error::AlreadyExists { .. })));
    manager.save_at(4)?;
    assert_eq!(names(&manager.checkpoints()), ["ckpt-1", "ckpt-2", "ckpt-4"], "three of its own are kept");
    assert_eq!(in_dir(dir.path(), "superseded-ckpt-2-").len(), 1, "two newer ones are there, three are kept");
    run.save(&mut manager, &[5])?;
    assert_eq!(names(&manager.checkpoints()), ["ckpt-2", "ckpt-4", "ckpt-5"]);
    assert!(in_dir(dir.path(), "superseded-").is_empty());
    assert_eq!(fs::read(dir.path().join("ckpt-3").join("manifest.json"))?, copied);
    // It is not restored in its place either.
    fs::remove_dir_all(dir.path().join("ckpt-5"))?;
    fs::rename(dir.path().join("ckpt-3"), dir.path().join("ckpt-5"))?;
    assert_eq!(manager.restore_or_initialize()?.restored.unwrap().step(), Some(4));
    assert_eq!(run.step.get(), 4 + 1);
    manager.close()?;
    Ok(())
}

#[test]
fn an_init_function_that_failed_is_called_again() -> Outcome {
    let dir = tempfile::tempdir()?;
    let mut calls = 0;
    let init = move || {
        calls += 1;
        if calls == 1 { Err(Error::InvalidArgument("not yet".into())) } else { Ok(()) }
    };
    let mut manager = Run::new().builder(dir.path()).init(init).open()?;
    assert!(manager.restore_or_initialize().is_err());
    assert!(manager.restore_or_initialize()?.restored.is_none());
    Ok(())
}

#[test]
fn sound_checkpoints_of_another_name_are_no_fresh_start() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    run.save(&mut run.open(dir.path()), &[1])?;
    let builder = || run.builder(dir.path()).checkpoint_name("model");
    let error = builder().open()?.restore_or_initialize().unwrap_err().to_string();
    assert!(error.contains("checkpoint_name(\"ckpt\")") && error.contains("fresh_start"), "{error}");
    let mut manager = builder().fresh_start().open()?;
    assert!(manager.restore_or_initialize()?.restored.is_none());
    run.save(&mut manager, &[1])?;
    manager.close()?;
    assert!(builder().open()?.restore_or_initialize()?.restored.is_some());

    // Those that cannot be used, too; but not what has only such a name.
    for is_damaged in [true, false] {
        let dir = tempfile::tempdir()?;
        run.save(&mut run.open(dir.path()), &[1])?;
        if is_damaged {
            fs::write(dir.path().join("ckpt-1/manifest.json"), "{}")?;
        } else {
            rewrite(&dir.path().join("ckpt-1"), "\"version\":6", "\"version\":999")?;
        }
        fs::create_dir(dir.path().join("data-2024"))?;
        std::os::unix::fs::symlink("/nowhere", dir.path().join("more-2025"))?;
        let builder = || run.builder(dir.path()).checkpoint_name("model");
        let error = builder().open()?.restore_or_initialize().unwrap_err().to_string();
        assert!(error.contains("of another name") && error.contains("which cannot be used"), "{error}");
        // The same of another program.
        fs::rename(dir.path().join("ckpt-1"), dir.path().join("build-1"))?;
        if !is_damaged {
            fs::remove_dir_all(dir.path().join("build-1"))?;
        }
        fs::remove_file(dir.path().join("checkpoint.json"))?;
        assert!(builder().open()?.restore_or_initialize()?.restored.is_none());
    }
    Ok(())
}

#[test]
fn a_checkpoint_cannot_take_the_place_of_the_index() -> Outcome {
    let dir = tempfile::tempdir()?;
    for name in ["checkpoint.json", "manifest.json", "damaged-ckpt-1-0123456789abcdef0123456789abcdef"] {
        assert!(
            matches!(Run::new().checkpoint().write(dir.path().join(name)), Err(Error::InvalidArgument(_))),
            "{name}"
        );
    }
    Ok(())
}

#[test]
fn what_this_version_does_not_read_may_be_the_newest() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    run.save(&mut run.open(dir.path()), &[1, 2, 3])?;
    rewrite(&dir.path().join("ckpt-3"), "\"version\":6", "\"version\":999")?;
    assert!(matches!(latest_checkpoint(dir.path()), Err(Error::Unsupported { .. })));
    let mut manager = run.open(dir.path());
    for error in [manager.restore_or_initialize().unwrap_err(), manager.save_at(4).unwrap_err()] {
        assert!(matches!(error, Error::Unsupported { .. }) && error.to_string().contains("pass_over"), "{error}");
    }
    manager.pass_over(dir.path().join("ckpt-3"))?;
    let started = manager.restore_or_initialize()?;
    assert_eq!(run.step.get(), 2);
    assert!(started.passed_over[0].path.join("manifest.json").exists(), "{:?}", started.passed_over);
    run.save(&mut manager, &[3, 4])?;
    assert_eq!(in_dir(dir.path(), "passed-over-ckpt-3-").len(), 1);
    Ok(())
}

#[test]
fn a_checkpoint_can_be_passed_over_by_name() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    run.save(&mut run.open(dir.path()), &[1, 2])?;
    let mut manager = run.open(dir.path());
    let aside = manager.pass_over(dir.path().join("ckpt-2"))?;
    let started = manager.restore_or_initialize()?;
    assert_eq!((run.step.get(), &started.passed_over[0].path), (1, &aside));
    run.save(&mut manager, &[2])?;
    for wrong in ["ckpt-9", "other-1", "../ckpt-1"] {
        assert!(manager.pass_over(dir.path().join(wrong)).is_err(), "{wrong}");
    }
    assert!(CheckpointReader::open(aside)?.verify().is_intact());
    Ok(())
}

#[test]
fn a_directory_that_is_a_link_to_nowhere_is_not_an_empty_one() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = dir.path().join("run");
    std::os::unix::fs::symlink(dir.path().join("not mounted"), &run)?;
    let error = latest_checkpoint(&run).unwrap_err().to_string();
    assert!(error.contains("link"), "{error}");
    assert!(Run::new().builder(&run).open().is_err());
    assert_eq!(latest_checkpoint(dir.path().join("nothing"))?, None);
    Ok(())
}

#[test]
fn the_managers_own_checkpoint_can_be_saved_beside_the_others() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager = run.builder(dir.path()).max_to_keep(2).open()?;
    run.save(&mut manager, &[1])?;
    manager.checkpoint_mut().write(dir.path().join("best"))?;
    run.save(&mut manager, &[2])?;
    manager.checkpoint_mut().save(dir.path().join("other"))?;
    run.save(&mut manager, &[3, 4])?;
    assert_eq!(names(&manager.checkpoints()), ["ckpt-3", "ckpt-4"]);
    manager.close()?;
    let mut sequences: Vec<u64> = Vec::new();
    for listed in list_checkpoints(dir.path())?.checkpoints {
        sequences.push(listed.entry.sequence);
    }
    assert_eq!(sequences, [2, 4, 5, 6], "no sequence twice");
    let mut manager = run.open(dir.path());
    assert_eq!(manager.restore_or_initialize()?.restored.unwrap().step(), Some(4));
    Ok(())
}

#[test]
fn each_names_the_one_it_follows() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    run.save(&mut run.open(dir.path()), &[1, 2])?;
    let mut manager = run.open(dir.path());
    manager.restore_or_initialize()?;
    run.save(&mut manager, &[3])?;
    let manifest = |step: u64| -> Manifest {
        CheckpointReader::open(dir.path().join(format!("ckpt-{step}"))).unwrap().manifest().clone()
    };
    assert_eq!(manifest(1).follows, None);
    for (step, before) in [(2, 1), (3, 2)] {
        let follows = manifest(step).follows.unwrap();
        assert_eq!((follows.run, follows.sequence), (manifest(before).run, manifest(before).sequence));
    }
    Ok(())
}

/// The first checkpoint of a resumed run is the only one that names the run before: the others must lead back without
/// it.
#[test]
fn a_resumed_run_is_found_without_its_first_checkpoint_and_the_index() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let open = || run.builder(dir.path()).max_to_keep(None).open();
    run.save(&mut open()?, &[1])?;
    for steps in [[2, 3], [4, 5], [6, 7]] {
        let mut manager = open()?;
        manager.restore_or_initialize()?;
        run.save(&mut manager, &steps)?;
    }
    let earlier = |step: u64| {
        let manifest = CheckpointReader::open(dir.path().join(format!("ckpt-{step}"))).unwrap().manifest().clone();
        manifest.earlier.iter().map(|earlier| earlier.sequence).collect::<Vec<_>>()
    };
    assert_eq!((earlier(2), earlier(3), earlier(6), earlier(7)), (vec![], vec![1], vec![3, 1], vec![5, 3, 1]));
    for removed in [[2, 6], [4, 5]] {
        for step in removed {
            fs::remove_dir_all(dir.path().join(format!("ckpt-{step}")))?;
        }
        let _ = fs::remove_file(dir.path().join("checkpoint.json"));
        let mut manager = open()?;
        assert_eq!(manager.restore_or_initialize()?.restored.unwrap().step(), Some(7));
        manager.close()?;
    }
    Ok(())
}

/// Once released their bytes do not change, and stay readable.
#[test]
fn marks_are_written_as_the_golden_files_are() -> Outcome {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v3/ckpt-1500");
    let manifest = Manifest::from_bytes(&fs::read(golden.join("manifest.json"))?)?;
    let of = tch_checkpoint::format::Follows { run: manifest.run, sequence: manifest.sequence };
    let metric = MarkKind::Metric { name: "val loss".to_string(), value: f64::NAN };
    for mark in [Mark::new(of.clone(), MarkKind::Permanent), Mark::new(of, metric)] {
        let bytes = fs::read(golden.join(mark.file_name()))?;
        assert_eq!(String::from_utf8_lossy(&bytes), String::from_utf8_lossy(&mark.to_bytes()?));
        let read = Mark::from_bytes(&bytes)?;
        assert_eq!((read.of, read.kind == MarkKind::Permanent), (mark.of, mark.kind == MarkKind::Permanent));
        let changed = String::from_utf8(bytes)?.replace("permanent", "temporary").replace("NaN", "none");
        assert!(Mark::from_bytes(changed.as_bytes()).is_err());
    }
    Ok(())
}
