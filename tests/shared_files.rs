//! A component that did not change is one file in several checkpoints, which must never lose data.

mod common;

use common::child::{CHILD, again};
use common::{Frozen, Memory};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tch_checkpoint::{
    Background, BoxError, Checkpoint, CheckpointManager, Counter, Durability, Error, Identity, Node, SaveOptions,
    TensorBytes, TensorLeaf, TensorSpec, TensorTarget, verify_checkpoint,
};

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn manager(dir: &Path, frozen: u64, keep: Option<usize>, step: &Counter) -> Result<CheckpointManager, Error> {
    let frozen = Node::tensor(Frozen(Memory::seeded(frozen, 1)));
    let checkpoint = Checkpoint::new().track("frozen", frozen)?.track("step", step)?;
    CheckpointManager::builder(checkpoint.track("trained", Memory::seeded(4000, 2))?, dir).max_to_keep(keep).open()
}

fn file(dir: &Path, step: u64) -> std::path::PathBuf {
    dir.join(format!("ckpt-{step}/frozen.safetensors"))
}

fn inodes(manager: &CheckpointManager) -> Vec<u64> {
    let inode = |path: tch_checkpoint::Location| fs::metadata(path.join("frozen.safetensors")).unwrap().ino();
    manager.checkpoints().into_iter().map(inode).collect()
}

#[test]
fn at_least_two_of_those_kept_never_share_a_file() -> Outcome {
    for keep in [Some(1), Some(2), Some(3), Some(4), Some(7), Some(40), None] {
        let dir = tempfile::tempdir()?;
        let mut manager = manager(dir.path(), 100, keep, &Counter::new(0))?;
        let mut written = BTreeSet::new();
        let mut in_a_row = (0, 0);
        for step in 1..=45 {
            manager.save_at(step)?;
            let found = inodes(&manager);
            let distinct: BTreeSet<u64> = found.iter().copied().collect();
            assert!(found.len() == 1 || distinct.len() > 1, "keep {keep:?}, step {step}: {found:?}");
            let newest = found.last().copied().unwrap_or_default();
            in_a_row = if in_a_row.0 == newest { (newest, in_a_row.1 + 1) } else { (newest, 1) };
            assert!(keep == Some(1) || in_a_row.1 <= 16, "keep {keep:?}: {in_a_row:?}");
            written.insert(newest);
        }
        match keep {
            Some(1) => assert_eq!(written.len(), 1, "it is always linked"),
            // The system reuses freed numbers, so only the neighbours show it.
            Some(2) => assert!(inodes(&manager)[0] != inodes(&manager)[1]),
            _ => assert!(written.len() < 40, "keep {keep:?}: it is linked, mostly or every second time"),
        }
    }
    Ok(())
}

#[test]
fn those_that_were_removed_by_hand_do_not_count_as_other_files() -> Outcome {
    let dir = tempfile::tempdir()?;
    let mut manager = manager(dir.path(), 100, Some(4), &Counter::new(0))?;
    for step in 1..=4 {
        manager.save_at(step)?;
    }
    // Only those that have the file of the newest are left.
    let newest = fs::metadata(file(dir.path(), 4))?.ino();
    for step in 1..=4 {
        if fs::metadata(file(dir.path(), step))?.ino() != newest {
            fs::remove_dir_all(dir.path().join(format!("ckpt-{step}")))?;
        }
    }
    manager.save_at(5)?;
    let found: BTreeSet<u64> = inodes(&manager).into_iter().collect();
    assert_eq!(found.len(), 2, "{found:?}");
    Ok(())
}

#[test]
fn damage_to_one_is_not_inherited_by_the_next() -> Outcome {
    let dir = tempfile::tempdir()?;
    let step = Counter::new(0);
    let mut first = manager(dir.path(), 5000, Some(3), &step)?;
    for number in 1..=6 {
        step.set(number);
        first.save_at(number)?;
    }
    let newest = file(dir.path(), 6);
    for (number, damage) in [(7, 0), (10, 1), (13, 2)] {
        let damaged = file(dir.path(), number - 1);
        match damage {
            // A program writes to the file in place.
            0 => fs::OpenOptions::new().write(true).open(&newest)?.write_all_at(&[0xFF], 5000)?,
            1 => fs::OpenOptions::new().write(true).open(&damaged)?.set_len(100)?,
            // A link to the same bytes is another file.
            _ => {
                fs::rename(&damaged, dir.path().join("moved"))?;
                std::os::unix::fs::symlink(dir.path().join("moved"), &damaged)?;
            }
        }
        for number in number..number + 3 {
            step.set(number);
            first.save_at(number)?;
            let path = dir.path().join(format!("ckpt-{number}"));
            assert!(verify_checkpoint(&path).is_intact(), "{damage}: {}", path.display());
        }
    }
    first.close()?;
    manager(dir.path(), 5000, Some(3), &step)?.restore_or_initialize()?;
    assert_eq!(step.get(), 15);
    Ok(())
}

#[test]
fn with_one_kept_a_damaged_file_is_written_anew() -> Outcome {
    let dir = tempfile::tempdir()?;
    let mut manager = manager(dir.path(), 5000, Some(1), &Counter::new(0))?;
    manager.save_at(1)?;
    fs::OpenOptions::new().write(true).open(file(dir.path(), 1))?.set_len(4000)?;
    manager.save_at(2)?;
    assert!(verify_checkpoint(dir.path().join("ckpt-2")).is_intact());
    Ok(())
}

/// What is unchanged is not captured: its bytes come from the last checkpoint, if they are still there.
#[test]
fn in_the_background_a_last_checkpoint_that_was_removed_or_changed_fails_no_save() -> Outcome {
    for (damage, at_once) in [(false, true), (true, true), (false, false)] {
        let dir = tempfile::tempdir()?;
        let (wait, may_go) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(true)));
        let (waits, go) = (wait.clone(), may_go.clone());
        let options = SaveOptions::new().durability(Durability::ProcessCrash).threads(1);
        let frozen = Node::tensor(Frozen(Memory::seeded(5000, 1)));
        let trained = Node::tensor(Slow { memory: Memory::seeded(4000, 2), wait: waits, go });
        let mut checkpoint = Checkpoint::new().track("a", trained)?.track("frozen", frozen)?;
        // More than are held open.
        for n in 0..100 {
            checkpoint = checkpoint.track(&format!("small{n}"), Node::tensor(Frozen(Memory::seeded(100, n))))?;
        }
        let builder = CheckpointManager::builder(checkpoint, dir.path()).max_to_keep(3).save_options(options);
        let mut manager = builder.background(Background::new()).open()?;
        for step in 1..=2 {
            manager.save_at(step)?;
            manager.wait()?;
        }
        assert_eq!(fs::metadata(file(dir.path(), 2))?.len(), fs::metadata(file(dir.path(), 1))?.len());
        let spoil = || match damage {
            false => fs::remove_dir_all(dir.path().join("ckpt-2")),
            true => fs::OpenOptions::new().write(true).open(file(dir.path(), 2))?.write_all_at(&[0xFF], 5000),
        };
        if at_once {
            spoil()?;
            manager.save_at(3)?;
        } else {
            wait.store(true, Ordering::SeqCst);
            may_go.store(false, Ordering::SeqCst);
            let other = dir.path().join("ckpt-2");
            let release = may_go.clone();
            // While the call copies, after it has compared.
            let remover = std::thread::spawn(move || {
                std::thread::sleep(std::time::Duration::from_millis(300));
                let removed = fs::remove_dir_all(other);
                release.store(true, Ordering::SeqCst);
                removed
            });
            manager.save_at(3)?;
            remover.join().unwrap()?;
        }
        manager.wait()?;
        assert!(verify_checkpoint(dir.path().join("ckpt-3")).is_intact(), "{damage} {at_once}");
        manager.save_at(4)?;
        manager.close()?;
        assert!(verify_checkpoint(dir.path().join("ckpt-4")).is_intact());
    }
    Ok(())
}

/// A tensor whose bytes are copied only when `go` is set, if `wait` is.
#[derive(Clone)]
struct Slow {
    memory: Memory,
    wait: Arc<AtomicBool>,
    go: Arc<AtomicBool>,
}

impl TensorLeaf for Slow {
    fn spec(&self) -> Result<TensorSpec, BoxError> {
        self.memory.spec()
    }

    fn identity(&self) -> Option<Identity> {
        self.memory.identity()
    }

    fn bytes(&self) -> Result<Box<dyn TensorBytes>, BoxError> {
        while self.wait.load(Ordering::SeqCst) && !self.go.load(Ordering::SeqCst) {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        TensorLeaf::bytes(&self.memory)
    }

    fn target(&self) -> Result<Box<dyn TensorTarget>, BoxError> {
        self.memory.target()
    }
}

/// 12 MB of frozen weights in 20 MB: what is linked needs no room.
#[test]
fn what_is_linked_needs_no_room() {
    const TEST: &str = "what_is_linked_needs_no_room";
    if let Some(dir) = std::env::var_os(CHILD) {
        let mut manager = manager(&Path::new(&dir).join("run"), 3_000_000, Some(1), &Counter::new(0)).unwrap();
        for step in 1..=5 {
            manager.save_at(step).unwrap();
        }
        println!("five saved");
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs -o size=20m tmpfs DIRECTORY || { echo NOT MOUNTED; exit 0; }; CHILD";
    let Some(text) = again(TEST, temp.path(), script) else { return };
    assert!(text.contains("five saved"), "{text}");
}

#[test]
fn of_those_that_keep_a_component_two_never_share_its_file_and_the_others_only_lose_a_name() -> Outcome {
    for keep in 2..=4 {
        let (dir, step) = (tempfile::tempdir()?, Counter::new(0));
        let frozen = Node::tensor(Frozen(Memory::seeded(100, 1)));
        let checkpoint = Checkpoint::new().track("frozen", frozen)?.track("step", &step)?;
        let checkpoint = checkpoint.track("trained", Memory::seeded(40, 2))?;
        let builder = CheckpointManager::builder(checkpoint, dir.path()).max_to_keep(8);
        let mut manager = builder.keep_component("frozen", keep).open()?;
        let mut linked = false;
        for step in 1..=20 {
            manager.save_at(step)?;
            let have: Vec<u64> = (1..=step).filter(|step| file(dir.path(), *step).exists()).collect();
            assert_eq!(have.len(), keep.min(step as usize), "step {step}");
            let inode = |step: &u64| fs::metadata(file(dir.path(), *step)).map(|found| found.ino());
            let inodes: BTreeSet<u64> = have.iter().map(inode).collect::<Result<_, _>>()?;
            assert!(have.len() == 1 || inodes.len() > 1, "keep {keep}, step {step}: {inodes:?}");
            linked |= inodes.len() < have.len();
            for path in manager.checkpoints() {
                assert!(verify_checkpoint(path).is_intact());
            }
        }
        assert_eq!(linked, keep > 2);
    }
    Ok(())
}
