//! Background saves: what a user can rely on, with a stand-in for an optimizer.

mod common;

use common::Memory;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tch_checkpoint::{
    Background, Checkpoint, CheckpointManager, CheckpointReader, Child, Collection, Counter, Dtype, Gate, Guarded,
    Node, TensorBytes, TensorLeaf, TensorSpec, TensorTarget, Trackable, WhenBusy,
};

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// Changes its tensors in place, after passing its gate.
#[derive(Clone)]
struct Optimizer {
    gate: Gate,
    tensors: Vec<Memory>,
}

impl Optimizer {
    fn step(&self, generation: u8) {
        self.gate.pass();
        for tensor in &self.tensors {
            tensor.bytes().fill(generation);
        }
    }
}

impl Collection for Optimizer {
    fn children(&self) -> Result<Vec<Child>, tch_checkpoint::BoxError> {
        Ok(self.tensors.iter().enumerate().map(|(i, tensor)| Child::new(i.to_string(), tensor.node())).collect())
    }

    fn guarded(&self) -> Option<Guarded> {
        let addresses = self.tensors.iter().filter_map(|tensor| Some(tensor.identity()?.address));
        Some(Guarded::new(self.gate.clone(), addresses))
    }

    fn generation(&self) -> Option<u64> {
        Some(0)
    }
}

impl Trackable for Optimizer {
    fn node(&self) -> Node {
        Node::collection(self.clone())
    }
}

fn memory(bytes: usize) -> Memory {
    Memory::new(Dtype::U8, &[bytes as u64], vec![0; bytes])
}

/// Every byte of every tensor of the checkpoint is `generation`.
fn is_pure(path: &std::path::Path, generation: u8) -> bool {
    let reader = CheckpointReader::open(path).unwrap();
    reader.manifest().tensors.keys().all(|key| reader.tensor(key).unwrap().iter().all(|&byte| byte == generation))
}

#[test]
fn a_step_right_after_the_call_never_tears_what_is_saved() -> Outcome {
    let dir = tempfile::tempdir()?;
    // Small ones, one of several chunks, and buffers that anyone may change.
    let optimizer = Optimizer { gate: Gate::new(), tensors: [10, 3000, 70_000, 9_000_000].map(memory).to_vec() };
    let buffers = [memory(100), memory(5_000_000)];
    let step = Counter::new(0);
    let checkpoint = Checkpoint::new().track("model", &optimizer)?.track("buffers", &buffers)?.track("step", &step)?;
    let mut manager =
        CheckpointManager::builder(checkpoint, dir.path()).max_to_keep(2).background(Background::new()).open()?;
    for generation in 1..=30u8 {
        optimizer.step(generation);
        buffers.iter().for_each(|buffer| buffer.bytes().fill(generation));
        step.set(generation.into());
        let path = manager.save_at(generation.into())?;
        // The next forward pass changes the buffers at once, and the next step everything else.
        buffers.iter().for_each(|buffer| buffer.bytes().fill(255));
        step.set(255);
        optimizer.step(254);
        manager.wait()?;
        assert!(is_pure(&path, generation), "generation {generation}");
        assert_eq!(CheckpointReader::open(&path)?.manifest().values["step"], generation);
    }
    Ok(())
}

#[test]
fn nothing_stays_in_memory_when_no_step_follows() -> Outcome {
    let dir = tempfile::tempdir()?;
    let optimizer = Optimizer { gate: Gate::new(), tensors: vec![memory(1000)] };
    let tensor = Arc::downgrade(&optimizer.tensors[0].0);
    let checkpoint = Checkpoint::new().track("model", &optimizer)?;
    let mut manager = CheckpointManager::builder(checkpoint, dir.path()).background(Background::new()).open()?;
    manager.save_at(1)?;
    manager.close()?;
    drop(optimizer);
    assert_eq!(tensor.strong_count(), 0);
    Ok(())
}

#[test]
fn many_saves_and_steps_without_waiting() -> Outcome {
    let dir = tempfile::tempdir()?;
    let optimizer = Optimizer { gate: Gate::new(), tensors: (0..50).map(|i| memory(1 + i * 997)).collect() };
    let checkpoint = Checkpoint::new().track("model", &optimizer)?;
    let builder = CheckpointManager::builder(checkpoint, dir.path()).max_to_keep(None);
    let mut manager = builder.background(Background::new()).open()?;
    for step in 1..=200u8 {
        optimizer.step(step);
        manager.save_at(step.into())?;
    }
    manager.close()?;
    for step in 1..=200u8 {
        assert!(is_pure(&dir.path().join(format!("ckpt-{step}")), step), "step {step}");
    }
    Ok(())
}

#[test]
fn a_failure_behind_the_call_is_returned_once_and_the_step_is_due_again() -> Outcome {
    let dir = tempfile::tempdir()?;
    let step = Counter::new(0);
    let checkpoint = Checkpoint::new().track("m", memory(1000))?.track("step", &step)?;
    let builder = CheckpointManager::builder(checkpoint, dir.path()).save_every(5);
    let mut manager = builder.background(Background::new()).open()?;
    fs::write(dir.path().join("ckpt-5"), "in the way")?;
    assert!(manager.save_if_due(5)?.is_some());
    assert!(manager.wait().is_err());
    manager.wait()?;
    assert_eq!((manager.latest_checkpoint(), manager.checkpoint().save_counter()), (None, 0));
    fs::remove_file(dir.path().join("ckpt-5"))?;
    assert!(manager.save_if_due(6)?.is_some());
    manager.close()?;
    assert!(is_pure(&dir.path().join("ckpt-6"), 0));

    // Or by the next save, which then does not begin.
    let checkpoint = Checkpoint::new().track("m", memory(1000))?.track("step", &step)?;
    let mut manager = CheckpointManager::builder(checkpoint, dir.path()).background(Background::new()).open()?;
    manager.restore_or_initialize()?;
    fs::write(dir.path().join("ckpt-7"), "in the way")?;
    manager.save_at(7)?;
    assert!(manager.save_at(8).is_err());
    assert!(!dir.path().join("ckpt-8").exists());
    manager.save_at(8)?;
    drop(manager);
    assert!(is_pure(&dir.path().join("ckpt-8"), 0), "dropping waits");
    Ok(())
}

/// A tensor that is slow, or panics, when it is read.
struct Awkward {
    spec: TensorSpec,
    release: Arc<AtomicBool>,
    panics: bool,
}

impl TensorLeaf for Awkward {
    fn spec(&self) -> Result<TensorSpec, tch_checkpoint::BoxError> {
        Ok(self.spec.clone())
    }

    fn identity(&self) -> Option<tch_checkpoint::Identity> {
        Some(tch_checkpoint::Identity::new("x", 42, self.spec.clone(), vec![]))
    }

    fn bytes(&self) -> Result<Box<dyn TensorBytes>, tch_checkpoint::BoxError> {
        assert!(!self.panics, "awkward");
        while !self.release.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        Ok(Box::new(vec![7; 100]))
    }

    fn target(&self) -> Result<Box<dyn TensorTarget>, tch_checkpoint::BoxError> {
        Err("it is read only".into())
    }
}

struct Owner(Gate);

impl Collection for Owner {
    fn children(&self) -> Result<Vec<Child>, tch_checkpoint::BoxError> {
        Ok(Vec::new())
    }

    fn guarded(&self) -> Option<Guarded> {
        Some(Guarded::new(self.0.clone(), [42]))
    }
}

fn awkward(dir: &std::path::Path, panics: bool) -> (Arc<AtomicBool>, Gate, tch_checkpoint::CheckpointManagerBuilder) {
    let release = Arc::new(AtomicBool::new(false));
    let gate = Gate::new();
    let leaf = Awkward { spec: TensorSpec::new(Dtype::U8, [100]), release: release.clone(), panics };
    let checkpoint = Checkpoint::new().track("m", Node::tensor(leaf)).unwrap();
    let checkpoint = checkpoint.track("owner", Node::collection(Owner(gate.clone()))).unwrap();
    (release, gate, CheckpointManager::builder(checkpoint, dir))
}

#[test]
fn saves_that_overlap_are_skipped_when_asked() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (release, _, builder) = awkward(dir.path(), false);
    let mut manager = builder.background(Background::new().when_busy(WhenBusy::Skip)).open()?;
    assert!(manager.save_if_due(1)?.is_some());
    assert_eq!(manager.save_if_due(2)?, None);
    assert_eq!(manager.latest_checkpoint(), None, "it is not there before it is durable");
    release.store(true, Ordering::SeqCst);
    manager.wait()?;
    assert!(manager.save_if_due(3)?.is_some());
    manager.close()?;
    Ok(())
}

#[test]
fn a_panic_behind_the_call_is_an_error_and_nobody_hangs_at_the_gate() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (_, gate, builder) = awkward(dir.path(), true);
    let mut manager = builder.background(Background::new()).open()?;
    manager.save_at(1)?;
    let error = manager.wait().unwrap_err();
    assert!(error.to_string().contains("panicked"), "{error}");
    gate.pass();
    assert!(!dir.path().join("ckpt-1").exists());
    Ok(())
}

#[test]
fn a_state_above_the_budget_is_saved_before_the_call_returns() -> Outcome {
    let dir = tempfile::tempdir()?;
    let checkpoint = Checkpoint::new().track("m", memory(100_000))?;
    let background = Background::new().memory_budget(50_000);
    let mut manager = CheckpointManager::builder(checkpoint, dir.path()).background(background).open()?;
    let path = manager.save_at(1)?;
    assert_eq!(manager.latest_checkpoint(), Some(path));
    Ok(())
}

/// A tensor that counts its changes, unless told not to, and can be given other memory.
#[derive(Clone)]
struct Counting(Arc<std::sync::Mutex<(Vec<u8>, u64, usize)>>);

impl Counting {
    fn new(bytes: usize, address: usize) -> Counting {
        Counting(Arc::new(std::sync::Mutex::new((vec![0; bytes], 0, address))))
    }

    fn fill(&self, value: u8, counts: bool) {
        let mut inner = self.0.lock().unwrap();
        inner.0.fill(value);
        inner.1 += u64::from(counts);
    }

    fn exchange(&self, bytes: Vec<u8>, address: usize) {
        let mut inner = self.0.lock().unwrap();
        (inner.0, inner.2) = (bytes, address);
    }
}

impl TensorLeaf for Counting {
    fn spec(&self) -> Result<TensorSpec, tch_checkpoint::BoxError> {
        Ok(TensorSpec::new(Dtype::U8, [self.0.lock().unwrap().0.len() as u64]))
    }

    fn identity(&self) -> Option<tch_checkpoint::Identity> {
        let address = self.0.lock().unwrap().2;
        Some(tch_checkpoint::Identity::new("y", address, self.spec().ok()?, vec![]))
    }

    fn bytes(&self) -> Result<Box<dyn TensorBytes>, tch_checkpoint::BoxError> {
        Ok(Box::new(self.0.lock().unwrap().0.clone()))
    }

    fn version(&self) -> Option<u64> {
        Some(self.0.lock().unwrap().1)
    }

    fn target(&self) -> Result<Box<dyn TensorTarget>, tch_checkpoint::BoxError> {
        Err("it is read only".into())
    }
}

struct Behind(Gate, usize);

impl Collection for Behind {
    fn children(&self) -> Result<Vec<Child>, tch_checkpoint::BoxError> {
        Ok(Vec::new())
    }

    fn guarded(&self) -> Option<Guarded> {
        Some(Guarded::new(self.0.clone(), [self.1]))
    }

    fn generation(&self) -> Option<u64> {
        Some(0)
    }
}

#[test]
fn a_writer_past_the_gate_is_noticed_once() -> Outcome {
    let dir = tempfile::tempdir()?;
    let tensor = Counting::new(9_000_000, 1000);
    let checkpoint = Checkpoint::new().track("part", Node::group([("t", Node::tensor(tensor.clone()))]))?;
    let checkpoint = checkpoint.track("owner", Node::collection(Behind(Gate::new(), 1000)))?;
    let mut manager = CheckpointManager::builder(checkpoint, dir.path()).background(Background::new()).open()?;
    let mut failed = 0;
    for step in 1..=6 {
        tensor.fill(step as u8, true);
        let path = manager.save_at(step)?;
        tensor.fill(99, true);
        match manager.wait() {
            Ok(()) => assert!(is_pure(&path, step as u8), "step {step}"),
            Err(error) => {
                let text = error.to_string();
                assert!(text.contains("part/t") && text.contains("copy_at_call(\"part/*\")"), "{text}");
                assert!(!path.exists());
                failed += 1;
            }
        }
    }
    assert!(failed <= 1, "{failed}");

    // Declared beforehand, it never fails.
    let dir = tempfile::tempdir()?;
    let checkpoint = Checkpoint::new().track("part", Node::group([("t", Node::tensor(tensor.clone()))]))?;
    let checkpoint = checkpoint.track("owner", Node::collection(Behind(Gate::new(), 1000)))?;
    let background = Background::new().copy_at_call("*/t");
    let mut manager = CheckpointManager::builder(checkpoint, dir.path()).background(background).open()?;
    for step in 1..=3 {
        tensor.fill(step as u8, true);
        let path = manager.save_at(step)?;
        tensor.fill(99, true);
        manager.wait()?;
        assert!(is_pure(&path, step as u8), "step {step}");
    }
    Ok(())
}

/// A component whose version counter does not move is compared with the last checkpoint at the call.
#[test]
fn what_seems_unchanged_is_that_of_the_call() -> Outcome {
    for counts in [true, false] {
        let dir = tempfile::tempdir()?;
        let tensor = Counting::new(5_000_000, 2000);
        let checkpoint = Checkpoint::new().track("t", Node::tensor(tensor.clone()))?;
        let mut manager = CheckpointManager::builder(checkpoint, dir.path()).background(Background::new()).open()?;
        for step in 1..=8 {
            let now = tensor.0.lock().unwrap().0[0];
            let path = manager.save_at(step)?;
            if step % 3 == 0 {
                tensor.fill(step as u8, counts);
            }
            manager.wait()?;
            assert!(is_pure(&path, now), "step {step}");
        }
    }
    Ok(())
}

#[test]
fn a_plan_is_made_anew_when_a_tensor_has_other_memory_or_another_shape() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (a, b) = (Counting::new(10, 3000), Counting::new(10, 3000));
    let checkpoint = Checkpoint::new().track("a", Node::tensor(a.clone()))?;
    let mut checkpoint = checkpoint.track("b", Node::tensor(b.clone()))?;
    checkpoint.write(dir.path().join("tied"))?;
    b.exchange(vec![5; 10], 3001);
    let path = checkpoint.write(dir.path().join("untied"))?;
    assert_eq!(CheckpointReader::open(&path)?.tensor("b")?, [5; 10]);
    b.exchange(vec![6; 20], 3001);
    let path = checkpoint.write(dir.path().join("grown"))?;
    assert_eq!(CheckpointReader::open(&path)?.tensor("b")?, [6; 20]);
    Ok(())
}

#[test]
fn a_panic_in_one_save_does_not_let_writers_pass_another() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (_, gate, builder) = awkward(&dir.path().join("awkward"), true);
    let optimizer = Optimizer { gate: gate.clone(), tensors: vec![memory(9_000_000), memory(9_000_000)] };
    let mut first = builder.background(Background::new()).open()?;
    let checkpoint = Checkpoint::new().track("model", &optimizer)?;
    let builder = CheckpointManager::builder(checkpoint, dir.path().join("right"));
    let mut second = builder.background(Background::new()).open()?;
    for generation in 1..=10u8 {
        optimizer.step(generation);
        first.save_at(generation.into())?;
        let path = second.save_at(generation.into())?;
        optimizer.step(200);
        assert!(first.wait().is_err());
        second.wait()?;
        assert!(is_pure(&path, generation));
    }
    Ok(())
}

#[test]
fn a_restore_of_another_checkpoint_waits_for_the_save() -> Outcome {
    let dir = tempfile::tempdir()?;
    let optimizer = Optimizer { gate: Gate::new(), tensors: vec![memory(9_000_000), memory(5_000_000)] };
    let older = Checkpoint::new().track("part", &optimizer.tensors[0])?.write(dir.path().join("older"))?;
    let checkpoint = Checkpoint::new().track("model", &optimizer)?;
    let builder = CheckpointManager::builder(checkpoint, dir.path().join("run"));
    let mut manager = builder.background(Background::new()).open()?;
    for generation in 1..=10u8 {
        optimizer.step(generation);
        let path = manager.save_at(generation.into())?;
        if generation % 2 == 0 {
            Checkpoint::new().track("part", &optimizer.tensors[0])?.restore(&older)?;
        } else {
            let mut later = Checkpoint::new();
            later.restore(&older)?;
            later.track_mut("part", &optimizer.tensors[0])?;
        }
        manager.wait()?;
        assert!(is_pure(&path, generation), "generation {generation}");
        assert_eq!(optimizer.tensors[0].bytes()[0], 0);
    }
    Ok(())
}

#[test]
fn a_save_while_a_value_is_updated_is_an_error() -> Outcome {
    let dir = tempfile::tempdir()?;
    let value = tch_checkpoint::Value::new(1);
    let mut checkpoint = Checkpoint::new().track("value", &value)?;
    let error = value.update(|_| checkpoint.write(dir.path().join("inside"))).unwrap_err();
    assert!(error.to_string().contains("is being updated"), "{error}");
    value.update(|value| *value += 1);
    checkpoint.write(dir.path().join("after"))?;
    Ok(())
}
