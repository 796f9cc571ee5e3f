//! The cost of a save: returned, passed to `on_saved`, and recorded in the manifest.

mod common;

use common::{Frozen, Memory};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tch_checkpoint::format::Manifest;
use tch_checkpoint::{
    Asset, AssetStream, Background, Checkpoint, CheckpointManager, CheckpointReader, Counter, Error, Node, Preemption,
    SaveFigures, SaveOptions, list_checkpoints,
};

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn recorded(path: impl AsRef<Path>) -> Result<SaveFigures, Box<dyn std::error::Error>> {
    let manifest = Manifest::from_bytes(&fs::read(path.as_ref().join("manifest.json"))?)?;
    Ok(manifest.figures.ok_or("no figures")?)
}

fn length(path: impl AsRef<Path>) -> u64 {
    fs::metadata(path).unwrap().len()
}

#[test]
fn a_blocking_save_stalls_until_it_is_durable() -> Outcome {
    let dir = tempfile::tempdir()?;
    let mut checkpoint = Checkpoint::new().track("weights", Memory::seeded(5000, 1))?;
    assert_eq!(checkpoint.last_save_figures(), None);
    let asset = AssetStream::new("words.txt", 3, |out| out.write_all(b"one"));
    let began = Instant::now();
    let path = checkpoint.write_with_assets(dir.path().join("a"), &SaveOptions::new(), [asset])?;
    let took = began.elapsed();
    let figures = checkpoint.last_save_figures().ok_or("none")?;
    assert_eq!((figures.stall, figures.waited), (figures.total, Duration::ZERO));
    assert!(figures.total > Duration::ZERO && figures.total <= took);
    assert_eq!(figures.bytes_written, length(path.join("weights.safetensors")) + 3);
    assert_eq!(figures.bytes_linked, 0);
    assert!(figures.rate().is_some_and(|rate| rate > 0.0));
    // The manifest has what was known when it was written.
    let kept = recorded(&path)?;
    assert!(kept.total <= figures.total && kept.stall == kept.total, "{kept:?} {figures:?}");
    assert_eq!((kept.bytes_written, kept.bytes_linked), (figures.bytes_written, 0));
    // A failed save changes nothing, and a copy has no save of its own.
    assert!(matches!(checkpoint.write(&path), Err(Error::AlreadyExists { .. })));
    assert_eq!(checkpoint.last_save_figures(), Some(figures));
    let copy = CheckpointReader::open(&path)?.copy_to(dir.path().join("copy"), &SaveOptions::new(), [])?;
    assert_eq!(CheckpointReader::open(copy)?.manifest().figures, None);
    Ok(())
}

#[test]
fn linked_files_count_apart_from_those_that_are_written() -> Outcome {
    let dir = tempfile::tempdir()?;
    let words = dir.path().join("words.txt");
    fs::write(&words, "one two")?;
    // A file that was changed just now could change again unnoticed.
    let old = fs::File::options().write(true).open(&words)?;
    old.set_modified(std::time::SystemTime::now() - Duration::from_secs(60))?;
    std::thread::sleep(Duration::from_millis(3100));
    let (run, step) = (dir.path().join("run"), Counter::new(0));
    let checkpoint = Checkpoint::new()
        .track("frozen", Node::tensor(Frozen(Memory::seeded(9000, 1))))?
        .track("trained", Memory::seeded(4000, 2))?
        .track("step", &step)?
        .asset(Asset::file(&words))?;
    let mut manager = CheckpointManager::builder(checkpoint, &run).max_to_keep(1).open()?;
    for number in 1..=2 {
        step.set(number);
        let path = manager.save_at(number)?;
        let of = |file: &str| length(path.join(file));
        let (may_link, changed) = (of("frozen.safetensors") + of("words.txt"), of("trained.safetensors"));
        let bytes = if number == 1 { (may_link + changed, 0) } else { (changed, may_link) };
        let figures = manager.last_save_figures().ok_or("none")?;
        assert_eq!((figures.bytes_written, figures.bytes_linked), bytes, "{number}");
        let kept = recorded(path)?;
        assert_eq!((kept.bytes_written, kept.bytes_linked), bytes, "{number}");
    }
    assert_eq!(list_checkpoints(&run)?.checkpoints[0].figures, Some(recorded(run.join("ckpt-2"))?));
    Ok(())
}

/// A flag that the writer waits for, for at most a minute.
fn until(flag: &AtomicBool) {
    let began = Instant::now();
    while !flag.load(Ordering::Acquire) && began.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_background_save_stalls_until_the_call_returns_and_the_next_one_waits_for_it() -> Outcome {
    let dir = tempfile::tempdir()?;
    let returned = Arc::new(AtomicBool::new(false));
    let seen: Arc<Mutex<Vec<SaveFigures>>> = Arc::default();
    let step = Counter::new(0);
    let checkpoint = Checkpoint::new().track("weights", Memory::seeded(5000, 1))?.track("step", &step)?;
    let (gate, noted) = (returned.clone(), seen.clone());
    let mut manager = CheckpointManager::builder(checkpoint, dir.path())
        .background(Background::new())
        // Called by the writer.
        .save_options(SaveOptions::new().on_progress(move |_| until(&gate)))
        .on_saved(move |saved| {
            noted.lock().unwrap().push(saved.figures);
            std::thread::sleep(Duration::from_millis(200));
            Ok::<(), Error>(())
        })
        .open()?;
    let mut took = Vec::new();
    for number in 1..=2 {
        step.set(number);
        let began = Instant::now();
        manager.save_at(number)?;
        took.push(began.elapsed());
        if number == 1 {
            assert_eq!(manager.last_save_figures(), None, "it is not durable");
        }
        returned.store(true, Ordering::Release);
    }
    manager.wait()?;
    let seen = seen.lock().unwrap().clone();
    assert_eq!(manager.last_save_figures(), Some(seen[1]));
    let (first, second) = (seen[0], seen[1]);
    // The writer cannot have ended before the call did.
    assert!(first.stall < first.total && first.stall <= took[0], "{first:?}");
    assert_eq!(recorded(dir.path().join("ckpt-1"))?.stall, first.stall);
    assert!(recorded(dir.path().join("ckpt-1"))?.total <= first.total);
    // The second one waited for the first, with the function that was called after it.
    assert_eq!(first.waited, Duration::ZERO);
    assert!(second.waited >= Duration::from_millis(150), "{second:?}");
    assert!(second.waited <= second.stall && second.stall <= second.total && second.stall <= took[1], "{second:?}");
    assert_eq!(recorded(dir.path().join("ckpt-2"))?.waited, second.waited);
    Ok(())
}

/// It is made by the call, after a request to end or a failure.
#[test]
fn the_last_save_waits_for_the_one_in_the_background() -> Outcome {
    for kind in ["whole", "part", "guarded", "unclean"] {
        let dir = tempfile::tempdir()?;
        let (step, preemption) = (Counter::new(0), Preemption::new());
        let checkpoint = Checkpoint::new().track("weights", Memory::seeded(5000, 1))?.track("step", &step)?;
        let request = if kind == "part" { preemption.clone().save_only(["step"]) } else { preemption.clone() };
        let mut manager = CheckpointManager::builder(checkpoint, dir.path())
            .background(Background::new())
            .save_every(2)
            .preemption(request)
            .unclean_on_failure()
            .on_saved(|_| {
                std::thread::sleep(Duration::from_millis(200));
                Ok::<(), Error>(())
            })
            .open()?;
        step.set(2);
        manager.save_if_due(2)?.ok_or("it is not due")?;
        let began = Instant::now();
        match kind {
            "guarded" | "unclean" => {
                let fails: Result<(), Error> = manager.guard(|manager| {
                    step.set(3);
                    manager.save_if_due(3)?;
                    if kind == "unclean" {
                        step.set(4);
                    }
                    Err(Error::Assertion("no data".into()))
                });
                assert!(fails.is_err());
            }
            _ => {
                preemption.request();
                step.set(3);
                manager.save_if_due(3)?.ok_or("it is not saved")?;
            }
        }
        let took = began.elapsed();
        let figures = manager.last_save_figures().ok_or("none")?;
        assert!(figures.waited >= Duration::from_millis(150), "{kind}: {figures:?}");
        assert!(figures.waited <= figures.stall && figures.stall == figures.total, "{kind}: {figures:?}");
        assert!(figures.total <= took, "{kind}: {figures:?} of {took:?}");
    }
    Ok(())
}
