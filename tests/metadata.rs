//! Metadata of a run and of a save, read before the model is built.

mod common;

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use tch_checkpoint::{
    Background, Checkpoint, CheckpointDirectory, CheckpointManager, CheckpointReader, Counter, Error, Provenance,
};

type Outcome = Result<(), Box<dyn std::error::Error>>;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Hyperparameters {
    layers: usize,
    /// JSON has no such number.
    clip: f64,
    names: BTreeMap<u8, String>,
}

fn hyperparameters() -> Hyperparameters {
    Hyperparameters { layers: 3, clip: f64::INFINITY, names: BTreeMap::from([(7, "seven".to_string())]) }
}

fn manager(dir: &Path, background: bool) -> Result<CheckpointManager, Error> {
    let checkpoint = Checkpoint::new().track("step", Counter::new(0))?.metadata("model", &hyperparameters())?;
    let builder = CheckpointManager::builder(checkpoint, dir);
    if background { builder.background(Background::new()).open() } else { builder.open() }
}

#[test]
fn it_is_there_before_the_model_and_with_every_save() -> Outcome {
    for background in [false, true] {
        let dir = tempfile::tempdir()?;
        let mut manager = manager(dir.path(), background)?;
        manager.set_next_metadata("sample", "never odd or even")?;
        manager.set_next_metadata("model", &1)?;
        manager.save_at(1)?;
        manager.save_at(2)?;
        manager.checkpoint_mut().set_metadata("phase", "fine-tuning")?;
        let last = manager.save_at(3)?;
        manager.close()?;

        let directory = CheckpointDirectory::new(dir.path());
        assert_eq!(directory.metadata("ckpt-1", "sample")?, Some("never odd or even".to_string()));
        assert_eq!(directory.metadata("ckpt-1", "model")?, Some(1));
        assert_eq!(directory.metadata::<String>("ckpt-2", "sample")?, None);
        assert_eq!(directory.metadata("ckpt-2", "model")?, Some(hyperparameters()));
        let reader = CheckpointReader::open(last)?;
        assert_eq!(reader.metadata("phase")?, Some("fine-tuning".to_string()));
        assert_eq!(reader.manifest().metadata.len(), 2);
        let refusal = reader.metadata::<Vec<u8>>("phase").unwrap_err();
        assert!(matches!(&refusal, Error::Object { name, .. } if name == "phase"), "{refusal}");
        // It is not part of the state.
        Checkpoint::new().track("step", Counter::new(0))?.restore(reader.path())?.assert_consumed()?;
    }
    Ok(())
}

#[test]
fn it_alone_needs_the_version() -> Outcome {
    let dir = tempfile::tempdir()?;
    let version = |checkpoint: Checkpoint, name: &str| -> Result<String, Box<dyn std::error::Error>> {
        let mut checkpoint = checkpoint.track("step", Counter::new(0))?;
        let path = checkpoint.write(dir.path().join(name))?;
        let mut manifest = CheckpointReader::open(path)?.manifest().clone();
        // They need a later version.
        manifest.figures = None;
        Ok(String::from_utf8(manifest.to_bytes()?)?.lines().next().unwrap_or_default().to_string())
    };
    assert_eq!(version(Checkpoint::new(), "a")?, "{\"format\":\"tch-checkpoint\",\"version\":1,");
    assert_eq!(version(Checkpoint::new().metadata("a", &1)?, "b")?, "{\"format\":\"tch-checkpoint\",\"version\":5,");
    Ok(())
}

#[test]
fn a_checkpoint_that_is_saved_again_for_it_keeps_what_was_noted_about_its_state() -> Outcome {
    for background in [false, true] {
        let dir = tempfile::tempdir()?;
        let step = Counter::new(1);
        let builder = CheckpointManager::builder(Checkpoint::new().track("step", &step)?, dir.path()).max_to_keep(1);
        let mut manager = if background { builder.background(Background::new()).open()? } else { builder.open()? };
        manager.save_with_metrics(1, [("loss", 0.1), ("bleu", 20.0)])?;
        manager.wait()?;
        let directory = CheckpointDirectory::new(dir.path());
        directory.add_metrics("ckpt-1", [("accuracy", 0.9)])?;
        directory.pin("ckpt-1", "paper", "table 2")?;
        directory.annotate("ckpt-1", "by", "the evaluator")?;
        manager.set_next_metadata("samples", &["never odd or even"])?;
        manager.save_with_metrics(1, [("bleu", 30.0)])?;
        manager.wait()?;
        let found = directory.get("ckpt-1")?;
        let metrics = [("accuracy", 0.9), ("bleu", 30.0), ("loss", 0.1)].map(|(name, value)| (name.to_string(), value));
        assert_eq!(found.metrics, metrics.into());
        assert_eq!((found.pins["paper"].as_str(), found.notes["by"].as_str()), ("table 2", "the evaluator"));
        assert_eq!(directory.metadata("ckpt-1", "samples")?, Some(vec!["never odd or even".to_string()]));
        // The pin keeps one copy of the state.
        assert!(directory.list()?.superseded.is_empty());
        // Another state is not what was noted about.
        step.set(2);
        manager.set_next_metadata("samples", &["step on no pets"])?;
        manager.save_at(1)?;
        manager.close()?;
        let found = directory.get("ckpt-1")?;
        assert!(found.metrics.is_empty() && found.pins.is_empty() && found.notes.is_empty());
        assert_eq!(directory.list()?.superseded.len(), 1, "the pinned one");
    }
    Ok(())
}

/// A process that ends in between leaves both of them pinned.
#[test]
fn a_pin_that_the_same_state_has_taken_over_is_taken_off_at_the_latest_at_the_next_start() -> Outcome {
    let dir = tempfile::tempdir()?;
    let directory = CheckpointDirectory::new(dir.path());
    let step = Counter::new(1);
    let open = || -> Result<CheckpointManager, Error> {
        CheckpointManager::builder(Checkpoint::new().track("step", &step)?, dir.path()).max_to_keep(3).open()
    };
    let mut manager = open()?;
    manager.save_at(1)?;
    manager.pin("ckpt-1", "paper", "table 2")?;
    manager.set_next_metadata("samples", &1)?;
    manager.save_at(1)?;
    manager.close()?;
    let first = directory.list()?.superseded.remove(0);
    let pins = |path: &Path| -> Result<Vec<String>, Error> { Ok(directory.get(path)?.pins.into_keys().collect()) };
    assert!(pins(&first)?.is_empty() && pins("ckpt-1".as_ref())? == ["paper"]);
    directory.pin(&first, "paper", "table 2")?;
    directory.pin(&first, "reviewer", "")?;
    let mut manager = open()?;
    assert_eq!(pins(&first)?, ["reviewer"], "nothing else has that one");
    // The same pin on another state is another one.
    manager.restore_or_initialize()?;
    step.set(2);
    manager.save_at(1)?;
    manager.pin("ckpt-1", "paper", "table 2")?;
    manager.close()?;
    open()?.close()?;
    let mut superseded = directory.list()?.superseded;
    superseded.retain(|path| *path != first);
    assert_eq!(pins(&superseded[0])?, ["paper"]);
    Ok(())
}

/// What another process has unpinned meanwhile has taken over nothing.
#[test]
fn a_pin_is_never_taken_off_both() -> Outcome {
    let dir = tempfile::tempdir()?;
    let directory = CheckpointDirectory::new(dir.path());
    let step = Counter::new(1);
    let checkpoint = Checkpoint::new().track("step", &step)?;
    let mut manager = CheckpointManager::builder(checkpoint, dir.path()).max_to_keep(None).open()?;
    manager.save_at(1)?;
    manager.set_next_metadata("samples", &1)?;
    manager.save_at(1)?;
    let first = directory.list()?.superseded.remove(0);
    directory.pin("ckpt-1", "paper", "")?;
    step.set(2);
    manager.save_at(2)?;
    directory.unpin("ckpt-1", "paper")?;
    directory.pin(&first, "paper", "")?;
    step.set(3);
    manager.save_at(3)?;
    step.set(4);
    manager.save_at(4)?;
    assert!(directory.get(&first)?.pins.contains_key("paper"));
    Ok(())
}

/// If a save fails, the next one records its metadata, in the background too.
#[test]
fn a_failed_save_does_not_use_it_up() -> Outcome {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use tch_checkpoint::OnUnhealthy;
    for background in [false, true] {
        let dir = tempfile::tempdir()?;
        let weights = common::Memory::f32(&[2], [f32::NAN, 1.0]);
        let called = Arc::new(AtomicBool::new(false));
        let seen = called.clone();
        let builder = CheckpointManager::builder(Checkpoint::new().track("weights", &weights)?, dir.path());
        let builder = builder.on_unhealthy(OnUnhealthy::Fail).on_saved(move |_| {
            seen.store(true, Ordering::SeqCst);
            Ok::<(), Error>(())
        });
        let mut manager = if background { builder.background(Background::new()).open()? } else { builder.open()? };
        manager.set_next_metadata("sample", &1)?;
        assert!(manager.save_at(1).and_then(|_| manager.wait()).is_err());
        assert!(!called.load(Ordering::SeqCst), "nothing was saved, so nothing is called");
        weights.bytes()[..4].copy_from_slice(&1f32.to_le_bytes());
        let path = manager.save_at(1)?;
        manager.close()?;
        assert_eq!(CheckpointReader::open(path)?.metadata("sample")?, Some(1));
    }
    Ok(())
}

#[test]
fn where_a_run_comes_from_is_recorded_on_request_and_nothing_else_is() -> Outcome {
    let dir = tempfile::tempdir()?;
    let provenance = Provenance::new().dirty(false);
    let mut checkpoint = Checkpoint::new().track("step", Counter::new(0))?.provenance(&provenance)?;
    let path = checkpoint.write(dir.path().join("one"))?;
    assert_eq!(CheckpointReader::open(&path)?.metadata("provenance")?, Some(provenance));
    let text = std::fs::read_to_string(path.join("manifest.json"))?;
    for (name, value) in std::env::vars().filter(|(_, value)| value.len() > 8 && value.contains('/')) {
        assert!(!text.contains(&value), "the manifest has the value of {name}");
    }
    Ok(())
}
