//! Reading a checkpoint beside a writer that removes it, and what verifying one says.

mod common;

use common::Memory;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tch_checkpoint::{Checkpoint, CheckpointManager, CheckpointReader, Durability, Error, latest_checkpoint};

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// A manager that keeps one checkpoint removes the others while they are being opened: each open succeeds, or says that
/// the checkpoint is gone. None is called damaged.
#[test]
fn what_is_removed_while_it_is_opened_is_not_called_damaged() -> Outcome {
    let dir = tempfile::tempdir()?;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| -> Outcome {
        let writer = scope.spawn(|| {
            let mut checkpoint = Checkpoint::new().durability(Durability::ProcessCrash);
            for n in 0..20 {
                checkpoint = checkpoint.track(&format!("part{n}"), &Memory::seeded(8, n)).unwrap();
            }
            let builder = CheckpointManager::builder(checkpoint, dir.path()).max_to_keep(1).recycle(false);
            let mut manager = builder.open().unwrap();
            let started = Instant::now();
            for step in 0.. {
                manager.save_at(step).unwrap();
                if started.elapsed() > Duration::from_secs(2) {
                    break;
                }
            }
            done.store(true, Ordering::SeqCst);
        });
        let (mut opened, mut gone) = (0, 0);
        while !done.load(Ordering::SeqCst) {
            let Some(path) = latest_checkpoint(dir.path())? else { continue };
            match CheckpointReader::open(&path) {
                Ok(_) => opened += 1,
                Err(Error::NotFound { .. }) => gone += 1,
                Err(other) => panic!("{other}"),
            }
        }
        writer.join().map_err(|_| "the writer failed")?;
        assert!(opened > 0, "{gone} gone");
        Ok(())
    })
}
