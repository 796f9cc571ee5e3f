//! Writers that do not know about saves: libtorch makes them wait, so that a background save has the state at the time
//! of the call without any detection.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tch::nn::{self, Module, OptimizerConfig, RNN, VarStore};
use tch::{Device, Kind, Tensor, no_grad};
use tch_checkpoint::{
    Background, Checkpoint, CheckpointManager, CheckpointReader, Durability, SaveOptions, Variables, optim,
};

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// Elements of a tensor that takes a while to be copied.
const LARGE: i64 = 4 << 20;

const FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);

fn manager(vs: &VarStore, dir: &Path) -> CheckpointManager {
    let optimizer = optim::Sgd::default().build(vs, 1.0).unwrap();
    let checkpoint = Checkpoint::new().track("model", Variables::of(vs)).unwrap();
    let checkpoint = checkpoint.track("optimizer", &optimizer).unwrap();
    let options = SaveOptions::new().durability(Durability::ProcessCrash);
    let background = Background::new().without_detection();
    let builder = CheckpointManager::builder(checkpoint, dir).save_options(options);
    builder.max_to_keep(2).background(background).open().unwrap()
}

fn bytes(tensor: &Tensor) -> Vec<u8> {
    // A copy, since looking at memory must not open it for writing.
    let copy = tensor.detach().copy();
    let mut bytes = vec![0; copy.numel() * copy.kind().elt_size_in_bytes()];
    copy.copy_data_u8(&mut bytes, copy.numel());
    bytes
}

/// Whether the checkpoint has these bytes of the variables.
fn is_state(path: &Path, state: &[(String, Vec<u8>)]) -> bool {
    let reader = CheckpointReader::open(path).unwrap();
    state.iter().all(|(name, bytes)| reader.tensor(&format!("model/{name}")).unwrap() == *bytes)
}

fn state(vs: &VarStore) -> Vec<(String, Vec<u8>)> {
    vs.variables().into_iter().map(|(name, tensor)| (name, bytes(&tensor))).collect()
}

/// Saves and writes several times; every checkpoint is the state of its call.
fn never_torn(name: &str, vs: &VarStore, mut write: impl FnMut(i64)) {
    let dir = tempfile::tempdir().unwrap();
    let mut manager = manager(vs, dir.path());
    for step in 1..=6 {
        let before = state(vs);
        let path = manager.save_at(step).unwrap();
        write(step as i64);
        manager.wait().unwrap();
        assert!(is_state(&path, &before), "{name}, step {step}");
    }
}

fn one_variable() -> (VarStore, Tensor) {
    let vs = VarStore::new(Device::Cpu);
    let w = vs.root().var("w", &[LARGE], nn::Init::Const(0.5));
    (vs, w)
}

#[test]
fn writes_through_views_and_other_handles() {
    let (vs, w) = one_variable();
    let (view, older) = (w.detach().narrow(0, LARGE - 1, 1), w.data());
    never_torn("a view made before", &vs, |step| drop(view.shallow_clone().fill_(step as f64)));
    never_torn("a view made after", &vs, |step| drop(w.data().view([-1, 4]).get(7).fill_(step as f64)));
    never_torn("data made before", &vs, |_| drop(older.shallow_clone().g_add_scalar_(1.0)));
    never_torn("one element", &vs, |step| drop(w.data().get(LARGE / 2).fill_(step as f64)));
    never_torn("out=", &vs, |_| drop(w.data().f_add_out(&older, &older).unwrap()));
    never_torn("copy_", &vs, |step| w.data().copy_(&Tensor::full([LARGE], step, FLOAT)));
    never_torn("another thread", &vs, |step| {
        let mut data = w.data();
        std::thread::scope(|scope| drop(scope.spawn(move || data.fill_(step as f64)).join()));
    });
}

#[test]
fn writes_by_optimizers_of_libtorch() {
    let (vs, w) = one_variable();
    let mut sgd = nn::Sgd::default().build(&vs, 0.5).unwrap();
    let mut adam = nn::AdamW::default().build(&vs, 0.5).unwrap();
    never_torn("SGD", &vs, |_| sgd.backward_step(&w.square().sum(Kind::Float)));
    never_torn("AdamW", &vs, |_| adam.backward_step(&w.square().sum(Kind::Float)));
}

#[test]
fn pointers_taken_after_the_call_wait() {
    let (vs, w) = one_variable();
    never_torn("a raw pointer", &vs, |step| {
        let data = w.data_ptr().cast::<f32>();
        // SAFETY: the tensor is that long, in plain memory, and nobody else uses it but the save.
        unsafe { std::slice::from_raw_parts_mut(data, LARGE as usize) }.fill(step as f32);
    });
}

/// Memory that does not come from the allocator, or is shared until it is written.
#[test]
fn memory_of_every_kind() {
    let outside = vec![1f32; LARGE as usize];
    // SAFETY: the memory lives longer than the tensor.
    let blob = unsafe { Tensor::from_blob(outside.as_ptr().cast(), &[LARGE], &[1], Kind::Float, Device::Cpu) };
    let vs = VarStore::new(Device::Cpu);
    let blob = vs.root().add("blob", blob, true);
    never_torn("from_blob", &vs, |step| drop(blob.data().fill_(step as f64)));

    let vs = VarStore::new(Device::Cpu);
    let original = Tensor::ones([LARGE], FLOAT);
    let clone = vs.root().add("w", original.internal_lazy_clone(), true);
    never_torn("copy-on-write", &vs, |step| {
        let _ = (original.shallow_clone().fill_(step as f64), clone.data().g_add_scalar_(1.0));
    });
}

/// Exchanging memory is not a write, and the hook that the storage still has does not prevent the next one.
#[test]
fn a_resize_and_a_write_after_it() {
    let (vs, w) = one_variable();
    never_torn("resize_", &vs, |step| {
        let mut data = w.data();
        let _ = data.resize_([LARGE * 3]).fill_(step as f64);
        let _ = data.resize_([LARGE]).fill_(step as f64);
        // A tensor that is part of larger memory is copied at the call; then it gets memory of its own again.
        w.shallow_clone().set_data(&Tensor::full([LARGE], step + 1, FLOAT));
    });
    never_torn("set_data", &vs, |step| {
        let older = w.data();
        w.shallow_clone().set_data(&Tensor::full([LARGE], step, FLOAT));
        let _ = older.shallow_clone().fill_(77.0);
    });
}

/// oneDNN's LSTM takes the weights as if it wrote to them, on as many threads as there are forward passes.
#[test]
fn forward_passes_on_several_threads() -> Outcome {
    let vs = VarStore::new(Device::Cpu);
    let config = nn::RNNConfig { num_layers: 2, ..Default::default() };
    let lstm = nn::lstm(vs.root() / "lstm", 256, 256, config);
    let layer = nn::linear(vs.root() / "layer", 256, 256, Default::default());
    let input = Tensor::randn([4, 5, 256], FLOAT);
    let expected = no_grad(|| layer.forward(&lstm.seq(&input).0));
    let (dir, end) = (tempfile::tempdir()?, AtomicBool::new(false));
    let before = state(&vs);
    let mut manager = manager(&vs, dir.path());
    let (lstm, layer) = (Shared(&lstm), Shared(&layer));
    std::thread::scope(|scope| -> Outcome {
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let (input, expected, end) = (input.copy(), expected.copy(), &end);
                let (lstm, layer) = (&lstm, &layer);
                scope.spawn(move || {
                    let mut passes = 0;
                    while !end.load(Ordering::SeqCst) || passes == 0 {
                        assert_eq!(no_grad(|| layer.0.forward(&lstm.0.seq(&input).0)), expected);
                        passes += 1;
                    }
                    passes
                })
            })
            .collect();
        let result = (1..=30).try_for_each(|step| {
            let path = manager.save_at(step)?;
            manager.wait()?;
            assert!(is_state(&path, &before), "step {step}");
            Ok(())
        });
        end.store(true, Ordering::SeqCst);
        for thread in threads {
            assert!(thread.join().map_err(|_| "a forward pass failed")? > 0);
        }
        result
    })
}

/// libtorch allows forward passes over the same weights on several threads, which tch's types do not say.
struct Shared<T>(T);

// SAFETY: the weights are only read.
unsafe impl<T> Sync for Shared<T> {}

/// The cost of the hooks is small for the number of tensors that models have.
#[test]
fn thousands_of_small_tensors() {
    let vs = VarStore::new(Device::Cpu);
    let variables: Vec<Tensor> =
        (0..10_000).map(|i| vs.root().var(&format!("w{i}"), &[8], nn::Init::Const(0.5))).collect();
    let write = || {
        let began = Instant::now();
        variables.iter().for_each(|w| drop(w.data().g_add_scalar_(1.0)));
        began.elapsed()
    };
    let without = (0..5).map(|_| write()).min().unwrap_or_default();
    let mut after = Duration::MAX;
    never_torn("many", &vs, |_| {
        let _ = write();
    });
    let dir = tempfile::tempdir().unwrap();
    let mut manager = manager(&vs, dir.path());
    for step in 1..=5 {
        manager.save_at(step).unwrap();
        manager.wait().unwrap();
        after = after.min(write());
    }
    println!("10,000 writes: {without:?}, the first ones after a save {after:?}");
}
