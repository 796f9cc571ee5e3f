//! Going back to a state in memory.

mod common;

use common::Memory;
use tch_checkpoint::{
    Background, Checkpoint, CheckpointManager, CheckpointReader, Counter, Error, OnUnhealthy, Value, Verify,
    checkpoints,
};

type Outcome = Result<(), Box<dyn std::error::Error>>;

struct Run {
    weights: Vec<Memory>,
    step: Counter,
    best: Value<f64>,
}

impl Run {
    fn new(seed: u64) -> Run {
        let weights = [0, 1, 5000, 300_000].map(|count| Memory::seeded(count, seed + count)).to_vec();
        Run { weights, step: Counter::new(0), best: Value::new(f64::INFINITY) }
    }

    fn checkpoint(&self) -> Result<Checkpoint, Error> {
        let checkpoint = Checkpoint::new().track("weights", &self.weights)?;
        // Shared memory under a second name.
        checkpoint.track("tied", &self.weights[2])?.track("step", &self.step)?.track("best", &self.best)
    }

    fn train(&self) -> u64 {
        for weights in &self.weights {
            weights.bytes().iter_mut().for_each(|byte| *byte = byte.wrapping_mul(3).wrapping_add(1));
        }
        self.best.set(1.0 / self.step.increment() as f64);
        self.step.get()
    }

    fn state(&self) -> (Vec<Vec<u8>>, u64, u64) {
        let weights = self.weights.iter().map(|weights| weights.bytes().clone()).collect();
        (weights, self.step.get(), self.best.get().to_bits())
    }
}

#[test]
fn everything_is_as_it_was_as_often_as_wanted() -> Outcome {
    let run = Run::new(1);
    let mut checkpoint = run.checkpoint()?;
    let first = (checkpoint.snapshot()?, run.state());
    run.train();
    let second = (checkpoint.snapshot()?, run.state());
    assert_eq!(second.0.bytes(), 4 * (1 + 5000 + 300_000), "shared memory is copied once");
    for (snapshot, state) in [&first, &second, &first, &first] {
        run.train();
        checkpoint.rollback(snapshot)?;
        assert!(run.state() == *state);
    }
    Ok(())
}

#[test]
fn what_does_not_fit_changes_nothing() -> Outcome {
    let run = Run::new(1);
    let mut checkpoint = run.checkpoint()?;
    let snapshot = checkpoint.snapshot()?;
    run.train();
    checkpoint.track_mut("more", Counter::new(0))?;
    let before = run.state();
    let error = checkpoint.rollback(&snapshot).unwrap_err();
    assert!(matches!(&error, Error::Mismatch { report, .. } if report.missing == ["more"]), "{error}");
    assert!(run.state() == before);
    checkpoint.untrack("more");
    checkpoint.rollback(&snapshot)?;
    // It makes no difference if an object is missing.
    checkpoint.untrack("tied");
    checkpoint.rollback(&snapshot)?;
    Ok(())
}

/// The later checkpoints are of a path that the run does not take.
#[test]
fn the_run_goes_on_from_the_checkpoint_before_the_snapshot() -> Outcome {
    for background in [false, true] {
        let dir = tempfile::tempdir()?;
        let run = Run::new(1);
        let builder = CheckpointManager::builder(run.checkpoint()?, dir.path());
        let mut manager = if background { builder.background(Background::new()).open()? } else { builder.open()? };
        manager.save_at(run.train())?;
        manager.save_at(run.train())?;
        let (good, state) = (manager.checkpoint().snapshot()?, run.state());
        manager.save_at(run.train())?;
        manager.save_at(run.train())?;
        manager.checkpoint_mut().rollback(&good)?;
        assert!(run.state() == state);
        // The step went back, so a save is due.
        assert_eq!(run.train(), 3);
        let path = manager.save_if_due(3)?.ok_or("it is due")?;
        manager.close()?;
        let names: Vec<_> =
            checkpoints(dir.path())?.iter().filter_map(|path| Some(path.file_name()?.to_owned())).collect();
        assert_eq!(names, ["ckpt-1", "ckpt-2", "ckpt-3"]);
        let second = CheckpointReader::open(dir.path().join("ckpt-2"))?.manifest().id();
        let manifest = CheckpointReader::open(path)?.manifest().clone();
        assert_eq!((manifest.follows, manifest.save_counter), (Some(second), Some(3)));
        let again = Run::new(2);
        CheckpointManager::builder(again.checkpoint()?, dir.path()).open()?.restore_or_initialize()?;
        assert!(again.state() == run.state());
    }
    Ok(())
}

/// The later checkpoints are of a path that the run does not take, even if the one before the snapshot was pruned.
#[test]
fn going_back_further_than_what_is_kept_abandons_all_that_is_there() -> Outcome {
    for background in [false, true] {
        let dir = tempfile::tempdir()?;
        let run = Run::new(1);
        let builder = CheckpointManager::builder(run.checkpoint()?, dir.path()).max_to_keep(2);
        let mut manager = if background { builder.background(Background::new()).open()? } else { builder.open()? };
        manager.save_at(run.train())?;
        let good = manager.checkpoint().snapshot()?;
        for _ in 0..3 {
            manager.save_at(run.train())?;
        }
        manager.wait()?;
        manager.checkpoint_mut().rollback(&good)?;
        manager.save_if_due(run.train())?.ok_or("it is due")?;
        manager.close()?;
        let names: Vec<_> =
            checkpoints(dir.path())?.iter().filter_map(|path| Some(path.file_name()?.to_owned())).collect();
        assert_eq!(names, ["ckpt-2"]);
        let again = Run::new(2);
        CheckpointManager::builder(again.checkpoint()?, dir.path()).open()?.restore_or_initialize()?;
        assert!(again.state() == run.state());
    }
    Ok(())
}

/// The same if an earlier process had superseded it.
#[test]
fn going_back_to_what_was_superseded_and_is_gone_abandons_all_that_is_there() -> Outcome {
    let dir = tempfile::tempdir()?;
    let entries = |prefix: &str| -> Result<Vec<String>, std::io::Error> {
        let names = std::fs::read_dir(dir.path())?.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| name.starts_with(prefix)).collect();
        names.sort();
        Ok(names)
    };
    let run = Run::new(1);
    let open = || CheckpointManager::builder(run.checkpoint()?, dir.path()).max_to_keep(2).open();
    let mut manager = open()?;
    manager.save_at(run.train())?;
    manager.save_at(run.train())?;
    manager.restore(dir.path().join("ckpt-1"))?;
    run.train();
    manager.save_at(run.train())?;
    manager.close()?;
    let mut manager = open()?;
    manager.restore(dir.path().join(entries("superseded-ckpt-2-")?.remove(0)))?;
    let good = manager.checkpoint().snapshot()?;
    for _ in 0..3 {
        manager.save_at(run.train())?;
    }
    assert!(entries("superseded-")?.is_empty());
    manager.checkpoint_mut().rollback(&good)?;
    manager.save_at(run.train())?;
    manager.close()?;
    assert_eq!(entries("ckpt-")?, ["ckpt-3"]);
    Ok(())
}

/// The later checkpoints are of a path that the run does not take, whatever became of the save that was in flight.
#[test]
fn a_snapshot_after_a_save_that_failed_follows_the_one_before() -> Outcome {
    for on_unhealthy in [OnUnhealthy::Fail, OnUnhealthy::Skip] {
        let dir = tempfile::tempdir()?;
        let weights = Memory::f32(&[1], [1.0]);
        let checkpoint = Checkpoint::new().track("weights", &weights)?;
        let builder = CheckpointManager::builder(checkpoint, dir.path()).on_unhealthy(on_unhealthy);
        let mut manager = builder.background(Background::new()).open()?;
        let set = |value: f32| *weights.bytes() = value.to_le_bytes().to_vec();
        manager.save_at(1)?;
        let mut snapshots = Vec::new();
        for step in [2, 3] {
            set(f32::NAN);
            manager.save_at(step)?;
            snapshots.push(manager.checkpoint().snapshot()?);
            assert_eq!(manager.wait().is_ok(), on_unhealthy == OnUnhealthy::Skip);
        }
        for good in &snapshots {
            set(4.0);
            manager.save_at(4)?;
            set(5.0);
            manager.save_at(5)?;
            manager.checkpoint_mut().rollback(good)?;
            set(6.0);
            manager.save_at(3)?;
            manager.wait()?;
            let names = checkpoints(dir.path())?;
            assert_eq!(names.iter().filter_map(|path| path.file_name()).collect::<Vec<_>>(), ["ckpt-1", "ckpt-3"]);
            let id = |name: &str| CheckpointReader::open(dir.path().join(name)).map(|reader| reader.manifest().id());
            let third = CheckpointReader::open(dir.path().join("ckpt-3"))?.manifest().clone();
            assert_eq!(third.follows, Some(id("ckpt-1")?));
        }
        manager.close()?;
    }
    Ok(())
}

/// Otherwise the checkpoint of that step, of the path that the run does not take, would stay the newest.
#[test]
fn the_step_that_was_saved_last_is_due_again_after_going_back_to_before_it() -> Outcome {
    for background in [false, true] {
        let dir = tempfile::tempdir()?;
        let run = Run::new(1);
        let builder = CheckpointManager::builder(run.checkpoint()?, dir.path());
        let mut manager = if background { builder.background(Background::new()).open()? } else { builder.open()? };
        manager.save_if_due(run.train())?;
        manager.save_if_due(run.train())?;
        let good = manager.checkpoint().snapshot()?;
        run.train();
        for _ in 0..2 {
            // The step after it fails.
            manager.save_if_due(3)?.ok_or("it is due")?;
            assert_eq!(manager.save_if_due(3)?, None);
            manager.checkpoint_mut().rollback(&good)?;
            run.train();
            // It would otherwise have the same state.
            *run.weights[1].bytes() = vec![7; 4];
        }
        manager.wait()?;
        manager.save_if_due(3)?.ok_or("it is due")?;
        manager.wait()?;
        assert_eq!(manager.save_if_due(3)?, None);
        // Back to the state of the newest checkpoint: nothing is abandoned.
        let newest = manager.checkpoint().snapshot()?;
        run.train();
        manager.checkpoint_mut().rollback(&newest)?;
        assert_eq!(manager.save_if_due(3)?, None);
        manager.close()?;
        let again = Run::new(2);
        let mut manager = CheckpointManager::builder(again.checkpoint()?, dir.path()).open()?;
        manager.restore_or_initialize()?;
        assert!(again.state() == run.state());
        // What was restored is not due either.
        manager.restore(dir.path().join("ckpt-2"))?;
        assert_eq!(manager.save_if_due(2)?, None);
    }
    Ok(())
}

/// A skipped save counts as one that succeeded, but not for the state that takes its place.
#[test]
fn a_step_that_was_skipped_is_due_again_after_going_back() -> Outcome {
    let dir = tempfile::tempdir()?;
    let weights = Memory::f32(&[1], [1.0]);
    let checkpoint = Checkpoint::new().track("weights", &weights)?;
    let mut manager = CheckpointManager::builder(checkpoint, dir.path()).on_unhealthy(OnUnhealthy::Skip).open()?;
    manager.save_if_due(1)?.ok_or("it is due")?;
    let good = manager.checkpoint().snapshot()?;
    *weights.bytes() = f32::NAN.to_le_bytes().to_vec();
    for _ in 0..2 {
        assert_eq!(manager.save_if_due(2)?, None);
    }
    manager.checkpoint_mut().rollback(&good)?;
    *weights.bytes() = 2f32.to_le_bytes().to_vec();
    manager.save_if_due(2)?.ok_or("it is due")?;
    Ok(())
}

/// Before the first save there is no such checkpoint: all later ones are of the other path.
#[test]
fn the_run_goes_back_to_before_its_first_save() -> Outcome {
    for (background, starts) in [(false, false), (true, false), (false, true), (true, true)] {
        let dir = tempfile::tempdir()?;
        let run = Run::new(1);
        let builder = CheckpointManager::builder(run.checkpoint()?, dir.path());
        let mut manager = if background { builder.background(Background::new()).open()? } else { builder.open()? };
        if starts {
            manager.restore_or_initialize()?;
        }
        let good = manager.checkpoint().snapshot()?;
        for _ in 0..3 {
            manager.save_at(run.train())?;
        }
        manager.checkpoint_mut().rollback(&good)?;
        manager.save_at(run.train())?;
        let path = manager.save_at(run.train())?;
        manager.close()?;
        let names: Vec<_> =
            checkpoints(dir.path())?.iter().filter_map(|path| Some(path.file_name()?.to_owned())).collect();
        assert_eq!(names, ["ckpt-1", "ckpt-2"], "background: {background}");
        let first = CheckpointReader::open(dir.path().join("ckpt-1"))?.manifest().clone();
        assert_eq!(first.follows, None);
        assert_eq!(CheckpointReader::open(path)?.manifest().follows, Some(first.id()));
        let again = Run::new(2);
        CheckpointManager::builder(again.checkpoint()?, dir.path()).open()?.restore_or_initialize()?;
        assert!(again.state() == run.state());
    }
    Ok(())
}

/// The loop of docs/training.md: a checkpoint that was saved before the snapshot remains one to restart from.
#[test]
fn the_checkpoint_saved_before_the_snapshot_stays() -> Outcome {
    for background in [false, true] {
        let dir = tempfile::tempdir()?;
        let run = Run::new(1);
        let builder = CheckpointManager::builder(run.checkpoint()?, dir.path());
        let mut manager = if background { builder.background(Background::new()).open()? } else { builder.open()? };
        manager.restore_or_initialize()?;
        let mut good = manager.checkpoint().snapshot()?;
        for step in 1..=4 {
            run.train();
            if step == 3 {
                manager.checkpoint_mut().rollback(&good)?;
                continue;
            }
            if step % 2 == 0 {
                manager.save_at(step)?;
                good = manager.checkpoint().snapshot()?;
            }
        }
        manager.close()?;
        let mut entries: Vec<_> = std::fs::read_dir(dir.path())?.map(|entry| entry.unwrap().file_name()).collect();
        entries.retain(|name| name.to_string_lossy().contains("ckpt-"));
        entries.sort();
        assert_eq!(entries, ["ckpt-2", "ckpt-4"]);
    }
    Ok(())
}

/// Objects that an interrupted restore has filled partly can be reset from a snapshot too.
#[test]
fn a_snapshot_mends_what_is_partly_overwritten() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new(1);
    let mut checkpoint = run.checkpoint()?;
    let path = checkpoint.write(dir.path().join("bad"))?;
    let file = path.join("weights.safetensors");
    let mut bytes = std::fs::read(&file)?;
    *bytes.last_mut().ok_or("empty")? ^= 1;
    std::fs::write(&file, bytes)?;
    run.train();
    let (snapshot, state) = (checkpoint.snapshot()?, run.state());
    let options = tch_checkpoint::RestoreOptions::new().verify(Verify::WhileReading);
    assert!(matches!(checkpoint.restore_with(&path, &options), Err(Error::PartlyRestored { .. })));
    assert!(checkpoint.snapshot().is_err());
    checkpoint.rollback(&snapshot)?;
    assert!(run.state() == state);
    checkpoint.write(dir.path().join("good"))?;
    Ok(())
}

#[cfg(feature = "torch")]
mod torch {
    use super::Outcome;
    use tch::nn::{self, ModuleT, VarStore};
    use tch::{Device, Kind, Tensor};
    use tch_checkpoint::{Background, Checkpoint, CheckpointManager, Ema, Rng, Variables, optim};

    /// After going back the training takes the same course, bit for bit: slots, random numbers and averages included.
    #[test]
    fn the_same_steps_follow() -> Outcome {
        tch::manual_seed(3);
        let vs = VarStore::new(Device::Cpu);
        let root = vs.root();
        let net = nn::seq_t()
            .add(nn::linear(&root / "a", 20, 30, Default::default()))
            .add(nn::batch_norm1d(&root / "n", 30, Default::default()))
            .add_fn_t(|xs, train| xs.dropout(0.5, train))
            .add(nn::linear(&root / "b", 30, 1, Default::default()));
        let mut optimizer = optim::AdamW::default().build(&vs, 1e-2)?;
        let mut ema = Ema::new(&vs, 0.9)?;
        let checkpoint = Checkpoint::new()
            .track("model", Variables::of(&vs))?
            .track("optimizer", &optimizer)?
            .track("ema", &ema)?
            .track("rng", Rng::global())?;
        let dir = tempfile::tempdir()?;
        let mut manager = CheckpointManager::builder(checkpoint, dir.path()).background(Background::new()).open()?;
        let addresses: Vec<_> = vs.trainable_variables().iter().map(Tensor::data_ptr).collect();
        let mut train = |steps: usize| -> Result<Vec<f64>, tch_checkpoint::Error> {
            let mut losses = Vec::new();
            for _ in 0..steps {
                let xs = Tensor::randn([16, 20], (Kind::Float, Device::Cpu));
                let loss = net.forward_t(&xs, true).square().mean(Kind::Float);
                optimizer.backward_step(&loss);
                ema.update()?;
                losses.push(loss.double_value(&[]));
            }
            Ok(losses)
        };
        // Before the first step the optimizer has no slots.
        let fresh = manager.checkpoint().snapshot()?;
        let from_the_start = train(4)?;
        let good = manager.checkpoint().snapshot()?;
        let course = train(5)?;
        // A background save is still copying what is overwritten.
        manager.save_at(9)?;
        manager.checkpoint_mut().rollback(&good)?;
        assert_eq!(train(5)?, course);
        manager.checkpoint_mut().rollback(&fresh)?;
        assert_eq!(train(4)?, from_the_start);
        assert_eq!(train(5)?, course);
        manager.close()?;
        assert!(tch_checkpoint::verify_checkpoint(dir.path().join("ckpt-9")).is_intact());
        assert_eq!(vs.trainable_variables().iter().map(Tensor::data_ptr).collect::<Vec<_>>(), addresses);
        Ok(())
    }
}
