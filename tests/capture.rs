//! Background saves at the same time as everything that may write to a model: the state at the time of the call is
//! committed.

use std::path::{Path, PathBuf};
use tch::nn::{self, ModuleT, OptimizerConfig, VarStore};
use tch::{Device, Kind, Tensor, no_grad};
use tch_checkpoint::{
    Background, Checkpoint, CheckpointManager, CheckpointReader, Dtype, Durability, Error, Location, RestoreOptions,
    Rng, SaveOptions, Variables, optim, verify_checkpoint,
};

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// The number of elements of a tensor that takes a while to copy.
const LARGE: i64 = 4 << 20;

const FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);

fn variable(vs: &VarStore, path: &str, elements: i64, value: f64) -> Tensor {
    (vs.root() / path).var("w", &[elements], nn::Init::Const(value))
}

fn manager(checkpoint: Checkpoint, dir: &Path) -> CheckpointManager {
    manager_with(checkpoint, dir, Background::new())
}

fn manager_with(checkpoint: Checkpoint, dir: &Path, background: Background) -> CheckpointManager {
    let options = SaveOptions::new().durability(Durability::ProcessCrash);
    let builder = CheckpointManager::builder(checkpoint, dir).save_options(options);
    builder.max_to_keep(None).background(background).open().unwrap()
}

/// The floats of a saved tensor.
fn saved(path: &Path, key: &str) -> Vec<f32> {
    let bytes = CheckpointReader::open(path).unwrap().tensor(key).unwrap();
    bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

fn live(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(tensor.detach().flatten(0, -1)).unwrap()
}

/// Every element of a saved tensor has this value.
fn is_all(path: &Path, key: &str, value: f32) -> bool {
    let others = saved(path, key).into_iter().filter(|x| *x != value).count();
    println!("{key}: {others} elements are not {value}");
    others == 0
}

/// Sets the gradient of every element to `gradient`.
fn backward(tensor: &Tensor, gradient: f64) {
    tensor.shallow_clone().zero_grad();
    (tensor.sum(Kind::Float) * gradient).backward();
}

fn plain_sgd(vs: &VarStore) -> optim::Optimizer {
    optim::Sgd::default().build(vs, 1.0).unwrap()
}

/// libtorch's own SGD moves no version counter.
#[test]
fn tchs_own_optimizers_save_every_time() -> Outcome {
    for momentum in [0.0, 0.9] {
        let dir = tempfile::tempdir()?;
        let vs = VarStore::new(Device::Cpu);
        let layer = nn::linear(vs.root(), 30, 20, Default::default());
        let mut sgd = nn::Sgd { momentum, ..Default::default() }.build(&vs, 0.1)?;
        let mut manager = manager(Checkpoint::new().track("model", Variables::of(&vs))?, dir.path());
        let mut states = Vec::new();
        for step in 1..=20 {
            sgd.backward_step(&layer.forward_t(&Tensor::randn([4, 30], FLOAT), true).square().mean(Kind::Float));
            if step % 3 == 0 {
                states.push((manager.save_at(step)?, live(&layer.ws)));
            }
        }
        manager.close()?;
        for (path, state) in states {
            assert_eq!(saved(&path, "model/weight"), state);
        }
    }
    Ok(())
}

#[test]
fn statistics_of_a_frozen_encoder_are_those_of_the_call() -> Outcome {
    let dir = tempfile::tempdir()?;
    let vs = VarStore::new(Device::Cpu);
    let norm = nn::batch_norm1d(vs.root() / "encoder" / "norm", 8, Default::default());
    let head = nn::linear(vs.root() / "head", 8, 2, Default::default());
    for (name, variable) in vs.variables() {
        let _ = variable.set_requires_grad(name.starts_with("head"));
    }
    let mut adam = optim::Adam::default().build(&vs, 0.1)?;
    let checkpoint = Checkpoint::new().track("encoder", Variables::of(&vs).under("encoder"))?;
    let checkpoint = checkpoint.track("head", Variables::of(&vs).under("head"))?.track("optimizer", &adam)?;
    let mut manager = manager(checkpoint, dir.path());
    let mean = vs.variables()["encoder.norm.running_mean"].shallow_clone();
    let mut states = Vec::new();
    for step in 1..=12 {
        let x = norm.forward_t(&(Tensor::randn([4, 8], FLOAT) + 3.0), true);
        adam.backward_step(&head.forward_t(&x, true).square().mean(Kind::Float));
        states.push((manager.save_at(step)?, live(&mean)));
    }
    manager.close()?;
    for (path, state) in states {
        assert_eq!(saved(&path, "encoder/norm.running_mean"), state);
    }
    Ok(())
}

#[test]
fn what_changes_now_and_then_is_saved_every_time() -> Outcome {
    let dir = tempfile::tempdir()?;
    let vs = VarStore::new(Device::Cpu);
    let w = variable(&vs, "net", 3_000_000, 0.0);
    let mut average = w.detach().copy();
    let mut sgd = plain_sgd(&vs);
    let checkpoint = Checkpoint::new().track("model", Variables::of(&vs))?.track("average", &average)?;
    let mut manager = manager(checkpoint.track("optimizer", &sgd)?, dir.path());
    let mut states = Vec::new();
    for micro in 1..=24 {
        // Gradients of four micro-batches are accumulated, and the average follows every other step.
        w.sum(Kind::Float).backward();
        states.push((manager.save_at(micro)?, w.double_value(&[5]) as f32, average.double_value(&[7]) as f32));
        if micro % 4 == 0 {
            sgd.step();
            sgd.zero_grad();
        }
        if micro % 8 == 0 {
            no_grad(|| average.copy_(&w));
        }
    }
    manager.close()?;
    for (path, w, average) in states {
        assert!(is_all(&path, "model/net.w", w) && is_all(&path, "average", average), "{}", path.display());
    }
    Ok(())
}

/// A momentum encoder, a mean teacher: frozen, in the optimizer's store, and moved by hand.
#[test]
fn a_momentum_encoder_is_that_of_the_call() -> Outcome {
    let dir = tempfile::tempdir()?;
    let vs = VarStore::new(Device::Cpu);
    let student = variable(&vs, "student", 1000, 1.0);
    let teacher = variable(&vs, "teacher", LARGE, 1.0).set_requires_grad(false);
    let mut sgd = plain_sgd(&vs);
    let checkpoint = Checkpoint::new().track("model", Variables::of(&vs))?.track("optimizer", &sgd)?;
    let mut manager = manager(checkpoint, dir.path());
    for step in 1..=3 {
        backward(&student, 1.0);
        sgd.step();
        let before = teacher.double_value(&[0]) as f32;
        let path = manager.save_at(step)?;
        let _ = no_grad(|| teacher.shallow_clone().g_add_scalar_(1.0));
        manager.wait()?;
        assert!(is_all(&path, "model/teacher.w", before));
    }
    Ok(())
}

#[test]
fn what_is_frozen_during_a_run_may_be_changed_by_anyone() -> Outcome {
    let dir = tempfile::tempdir()?;
    let vs = VarStore::new(Device::Cpu);
    let w = variable(&vs, "net", LARGE, 1.0);
    let mut sgd = plain_sgd(&vs);
    let checkpoint = Checkpoint::new().track("model", Variables::of(&vs))?.track("optimizer", &sgd)?;
    let mut manager = manager(checkpoint, dir.path());
    backward(&w, 1.0);
    sgd.step();
    manager.save_at(1)?;
    manager.wait()?;
    let _ = w.set_requires_grad(false);
    sgd.zero_grad();
    let path = manager.save_at(2)?;
    let _ = no_grad(|| w.shallow_clone().fill_(9.0));
    manager.wait()?;
    assert!(is_all(&path, "model/net.w", 0.0));
    // Thawed after the call: it was copied at the call.
    let path = manager.save_at(3)?;
    let _ = w.set_requires_grad(true);
    backward(&w, 1.0);
    sgd.step();
    manager.wait()?;
    assert!(is_all(&path, "model/net.w", 9.0));
    let path = manager.save_at(4)?;
    backward(&w, 1.0);
    sgd.step();
    manager.wait()?;
    assert!(is_all(&path, "model/net.w", 8.0));
    Ok(())
}

#[test]
fn restores_wait_for_the_save_before_them() -> Outcome {
    let dir = tempfile::tempdir()?;
    let vs = VarStore::new(Device::Cpu);
    let (body, head) = (variable(&vs, "body", LARGE, 0.0), variable(&vs, "head", LARGE, 0.0));
    let sgd = plain_sgd(&vs);
    let part = |name: &str| Variables::of(&vs).under(name);
    let both = || Checkpoint::new().track("body", part("body"))?.track("head", part("head"));
    let older = both()?.write(dir.path().join("older"))?;
    let mut manager = manager(both()?.track("optimizer", &sgd)?, &dir.path().join("run"));
    for (step, way) in [(1, "all"), (2, "part"), (3, "later"), (4, "own"), (5, "part"), (6, "later")] {
        let _ = no_grad(|| [&body, &head].map(|w| w.shallow_clone().fill_(step as f64)));
        let mut other = Checkpoint::new();
        if way == "later" {
            other.restore(&older)?;
        }
        let path = manager.save_at(step)?;
        match way {
            "all" => drop(both()?.restore(&older)?),
            "own" => drop(manager.checkpoint_mut().restore_with(&older, &RestoreOptions::new().allow_missing("*"))?),
            "part" => drop(other.track("head", part("head"))?.restore(&older)?),
            _ => other.track_mut("head", part("head"))?,
        }
        manager.wait()?;
        assert!(is_all(&path, "body/w", step as f32) && is_all(&path, "head/w", step as f32), "{way}");
        assert!(live(&head).iter().all(|x| *x == 0.0));
    }
    Ok(())
}

/// The end of many trainings: save, then convert.
#[test]
fn other_memory_right_after_a_save_is_safe_and_no_change() -> Outcome {
    let ways = ["half", "double", "set_data", "resize", "resize, first handle", "drop", "load", "device"];
    for way in ways.into_iter().chain(["step after set_data"]) {
        let dir = tempfile::tempdir()?;
        let mut vs = VarStore::new(Device::Cpu);
        let mut w = variable(&vs, "net", LARGE, 1.0);
        let mut sgd = optim::Sgd { momentum: 0.9, ..Default::default() }.build(&vs, 1.0)?;
        backward(&w, 1.0);
        sgd.step();
        if way == "resize" {
            drop(sgd.state("net.w"));
        }
        let other = dir.path().join("other.safetensors");
        if way == "load" {
            vs.save(&other)?;
        }
        let checkpoint = Checkpoint::new().track("model", Variables::of(&vs))?.track("optimizer", &sgd)?;
        let mut manager = manager(checkpoint, &dir.path().join("run"));
        let path = manager.save_at(1)?;
        match way {
            "half" => vs.half(),
            "double" => vs.double(),
            "set_data" => w.set_data(&Tensor::ones([LARGE], FLOAT)),
            "resize" | "resize, first handle" => {
                let mut slot = sgd.state("net.w").unwrap().remove("momentum_buffer").unwrap();
                let _ = slot.resize_([2 * LARGE]);
            }
            "drop" => {
                drop(std::mem::replace(&mut sgd, plain_sgd(&VarStore::new(Device::Cpu))));
                drop(std::mem::replace(&mut w, Tensor::new()));
                drop(std::mem::replace(&mut vs, VarStore::new(Device::Cpu)));
            }
            "load" => vs.load(&other)?,
            "device" => vs.set_device(Device::Cpu),
            _ => {
                w.set_data(&Tensor::ones([LARGE], FLOAT));
                backward(&w, 1.0);
                sgd.step();
            }
        }
        // These would get the memory that was freed.
        let others: Vec<Tensor> = (0..4).map(|_| Tensor::full([LARGE], 7.0, FLOAT)).collect();
        let waited = manager.wait();
        drop(others);
        if waited.is_err() {
            // They move the version counter too, which counts as a change.
            assert!(["load", "resize"].contains(&way) && !path.exists(), "{way}: {waited:?}");
            continue;
        }
        assert!(is_all(&path, "model/net.w", 0.0), "{way}");
        assert!(is_all(&path, "optimizer/state/net.w/momentum_buffer", 1.0), "{way}");
    }
    Ok(())
}

/// Until the first handle to a slot is given out, a save asks only the optimizer.
#[test]
fn slots_are_watched_once_there_is_a_handle_to_them() -> Outcome {
    const KEY: &str = "optimizer/state/net.w/momentum_buffer";
    let of_optimizer =
        |_: &Checkpoint, sgd: &optim::Optimizer| sgd.state("net.w").unwrap()["momentum_buffer"].shallow_clone();
    let of_checkpoint = |checkpoint: &Checkpoint, _: &optim::Optimizer| {
        checkpoint.get("optimizer").unwrap().tensors().unwrap()["state/net.w/momentum_buffer"].shallow_clone()
    };
    let ways: [fn(&Checkpoint, &optim::Optimizer) -> Tensor; 2] = [of_optimizer, of_checkpoint];
    for (hand_out, has_hooks) in ways.into_iter().flat_map(|way| [(way, true), (way, false)]) {
        let dir = tempfile::tempdir()?;
        let vs = VarStore::new(Device::Cpu);
        let w = variable(&vs, "net", LARGE, 1.0);
        let mut sgd = optim::Sgd { momentum: 0.9, ..Default::default() }.build(&vs, 1.0)?;
        backward(&w, 1.0);
        sgd.step();
        let checkpoint = Checkpoint::new().track("model", Variables::of(&vs))?.track("optimizer", &sgd)?;
        let background = if has_hooks { Background::new() } else { Background::new().without_hooks() };
        let mut manager = manager_with(checkpoint, dir.path(), background);
        let path = manager.save_at(1)?;
        manager.wait()?;
        assert!(is_all(&path, KEY, 1.0));
        // The first handle waits for the copy.
        let path = manager.save_at(2)?;
        let mut slot = hand_out(manager.checkpoint(), &sgd);
        let _ = no_grad(|| slot.fill_(2.0));
        manager.wait()?;
        assert!(is_all(&path, KEY, 1.0));
        let path = manager.save_at(3)?;
        let _ = no_grad(|| slot.fill_(3.0));
        match manager.wait() {
            Ok(()) => assert!(is_all(&path, KEY, 2.0)),
            Err(error) => {
                assert!(!has_hooks && error.to_string().contains(KEY) && !path.exists(), "{error}");
                assert!(error.to_string().contains("copy_at_call"), "{error}");
            }
        }
        let path = manager.save_at(4)?;
        manager.close()?;
        assert!(is_all(&path, KEY, 3.0));
    }
    Ok(())
}

/// Every way of writing past the optimizer right after a save: the checkpoint has the state of the call. Where libtorch
/// does not make the writer wait, there may instead be no checkpoint; the error then names the tensor and what to do,
/// and the next saves succeed.
fn past_the_optimizer(name: &str, mut write: impl FnMut(&mut VarStore, &Tensor)) -> Outcome {
    let failed = past_the_optimizer_with(name, Background::new(), &mut write)?;
    assert!(failed == 0 || name == "memory exchanged and written", "{name}: {failed}");
    past_the_optimizer_with(name, Background::new().without_detection(), &mut write)?;
    let failed = past_the_optimizer_with(name, Background::new().without_hooks(), &mut write)?;
    assert!(failed <= 1, "{name}: {failed}");
    Ok(())
}

fn past_the_optimizer_with(
    name: &str,
    background: Background,
    mut write: impl FnMut(&mut VarStore, &Tensor),
) -> Result<u64, Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let mut vs = VarStore::new(Device::Cpu);
    let w = variable(&vs, "net", LARGE, 0.0);
    let sgd = plain_sgd(&vs);
    let checkpoint = Checkpoint::new().track("model", Variables::of(&vs))?.track("optimizer", &sgd)?;
    let mut manager = manager_with(checkpoint, dir.path(), background);
    let mut failed = 0;
    for step in 1..=6 {
        let _ = no_grad(|| w.shallow_clone().fill_(step as f64));
        let path = manager.save_at(step)?;
        write(&mut vs, &w);
        match manager.wait() {
            Ok(()) => assert!(is_all(&path, "model/net.w", step as f32), "{name}"),
            Err(error) => {
                failed += 1;
                let text = error.to_string();
                assert!(matches!(error, Error::Object { .. }), "{text}");
                assert!(text.contains("model/net.w") && text.contains("copy_at_call(\"model/*\")"), "{text}");
                assert!(!path.exists());
            }
        }
    }
    println!("{name}: {failed} saves failed");
    Ok(failed)
}

#[test]
fn writers_past_the_optimizer_wait_or_are_noticed() -> Outcome {
    past_the_optimizer("fill_", |_, w| drop(no_grad(|| w.shallow_clone().fill_(99.0))))?;
    past_the_optimizer("data", |_, w| drop(w.data().fill_(99.0)))?;
    past_the_optimizer("VarStore::copy", |vs, _| {
        let other = VarStore::new(Device::Cpu);
        let _ = variable(&other, "net", LARGE, 99.0);
        vs.copy(&other).unwrap();
    })?;
    past_the_optimizer("tch's SGD", |vs, w| {
        backward(w, 1.0);
        nn::Sgd::default().build(vs, 1.0).unwrap().step();
    })?;
    past_the_optimizer("tch's Adam", |vs, w| {
        backward(w, 1.0);
        nn::Adam::default().build(vs, 1.0).unwrap().step();
    })?;
    past_the_optimizer("memory exchanged and written", |_, w| {
        let mut w = w.shallow_clone();
        w.set_data(&Tensor::ones([LARGE], FLOAT));
        let _ = no_grad(|| w.fill_(99.0));
    })
}

#[test]
fn what_is_copied_at_the_call_may_be_written_by_anyone() -> Outcome {
    let dir = tempfile::tempdir()?;
    let vs = VarStore::new(Device::Cpu);
    let w = variable(&vs, "net", LARGE, 0.0);
    let sgd = plain_sgd(&vs);
    let checkpoint = Checkpoint::new().track("model", Variables::of(&vs))?.track("optimizer", &sgd)?;
    let mut manager = manager_with(checkpoint, dir.path(), Background::new().copy_at_call("model/*"));
    for step in 1..=3 {
        let _ = no_grad(|| w.shallow_clone().fill_(step as f64));
        let path = manager.save_at(step)?;
        let _ = w.data().fill_(99.0);
        manager.wait()?;
        assert!(is_all(&path, "model/net.w", step as f32));
    }
    Ok(())
}

#[test]
fn an_optimizer_that_is_not_tracked_waits() -> Outcome {
    let dir = tempfile::tempdir()?;
    let vs = VarStore::new(Device::Cpu);
    let w = variable(&vs, "net", LARGE, 0.0);
    let adam = optim::Adam::default().build(&vs, 1e-3)?;
    let mut other = plain_sgd(&vs);
    let checkpoint = Checkpoint::new().track("model", Variables::of(&vs))?.track("optimizer", &adam)?;
    let mut manager = manager(checkpoint, dir.path());
    for step in 1..=4 {
        backward(&w, 1.0);
        let before = w.double_value(&[0]) as f32;
        let path = manager.save_at(step)?;
        match step % 2 {
            0 => other.step(),
            _ => std::thread::scope(|scope| drop(scope.spawn(|| other.step()).join())),
        }
        manager.wait()?;
        assert!(is_all(&path, "model/net.w", before));
        assert_eq!(w.double_value(&[0]) as f32, before - 1.0);
    }
    Ok(())
}

#[test]
fn a_part_of_a_larger_memory_is_copied_at_the_call() -> Outcome {
    let dir = tempfile::tempdir()?;
    let vs = VarStore::new(Device::Cpu);
    let all = Tensor::zeros([2 * LARGE], FLOAT);
    let w = vs.root().add("w", all.narrow(0, 0, LARGE), true);
    let mut sgd = plain_sgd(&vs);
    let checkpoint = Checkpoint::new().track("all", &all)?.track("model", Variables::of(&vs))?;
    let mut manager = manager(checkpoint.track("optimizer", &sgd)?, dir.path());
    let path = manager.save_at(1)?;
    let _ = no_grad(|| all.narrow(0, LARGE, LARGE).fill_(5.0));
    backward(&w, 1.0);
    sgd.step();
    manager.wait()?;
    assert!(is_all(&path, "all", 0.0) && is_all(&path, "model/w", 0.0));
    Ok(())
}

/// A frozen file of the last checkpoint that cannot be linked is copied; if it is gone, only one save fails.
#[test]
fn unchanged_files_that_are_gone() -> Outcome {
    let dir = tempfile::tempdir()?;
    let vs = VarStore::new(Device::Cpu);
    let (frozen, w) = (variable(&vs, "frozen", 100_000, 3.0), variable(&vs, "net", LARGE, 0.0));
    let _ = frozen.set_requires_grad(false);
    let mut sgd = plain_sgd(&vs);
    let part = |name: &str| Variables::of(&vs).under(name);
    let checkpoint = Checkpoint::new().track("frozen", part("frozen"))?.track("net", part("net"))?;
    let mut manager = manager(checkpoint.track("optimizer", &sgd)?, dir.path());
    let first = manager.save_at(1)?;
    manager.wait()?;
    // Guarded, and no step since: it is captured and found unchanged, but cannot be linked, and so is written.
    std::fs::remove_file(first.join("net.safetensors"))?;
    let path = manager.save_at(2)?;
    backward(&w, 1.0);
    sgd.step();
    manager.wait()?;
    assert!(is_all(&path, "net/w", 0.0) && is_all(&path, "frozen/w", 3.0));
    std::fs::remove_file(path.join("frozen.safetensors"))?;
    manager.save_at(3)?;
    let third = manager.wait();
    let path = manager.save_at(4)?;
    manager.wait()?;
    assert!(is_all(&path, "net/w", -1.0) && is_all(&path, "frozen/w", 3.0));
    println!("{third:?}");
    assert!(verify_checkpoint(&path).is_intact());
    Ok(())
}

#[test]
fn a_plan_is_made_anew_when_a_tensor_does_not_fit_it() -> Outcome {
    let dir = tempfile::tempdir()?;
    let path = |name: &str| -> PathBuf { dir.path().join(name) };
    let mut vs = VarStore::new(Device::Cpu);
    let w = variable(&vs, "net", 6, 1.0);
    let mut checkpoint = Checkpoint::new().track("w", &w)?;
    checkpoint.write(path("float"))?;
    vs.double();
    checkpoint.write(path("double"))?;
    w.shallow_clone().set_data(&Tensor::zeros([3, 4], (Kind::Double, Device::Cpu)));
    checkpoint.write(path("shape"))?;
    let shapes = ["float", "double", "shape"]
        .map(|name| CheckpointReader::open(path(name)).unwrap().manifest().tensors["w"].spec.to_string());
    assert_eq!(shapes, ["F32 [6]", "F64 [6]", "F64 [3, 4]"]);

    // Tied, then untied, then tied again.
    let a = Tensor::ones([3], FLOAT);
    let mut b = a.detach();
    let mut checkpoint = Checkpoint::new().track("a", &a)?.track("b", &b)?;
    checkpoint.write(path("tied"))?;
    b.set_data(&Tensor::full([3], 5.0, FLOAT));
    checkpoint.write(path("untied"))?;
    b.set_data(&a);
    checkpoint.write(path("again"))?;
    assert_eq!(["tied", "untied", "again"].map(|name| saved(&path(name), "b")[0]), [1.0, 5.0, 1.0]);

    // A manager, in the background.
    let mut t = Tensor::ones([3], FLOAT);
    let mut manager = manager(Checkpoint::new().track("t", &t)?, &path("run"));
    for step in 1..=4 {
        let saved_at = manager.save_at(step)?;
        manager.wait()?;
        assert_eq!(saved(&saved_at, "t").len() as u64, 2 + step);
        t.set_data(&Tensor::ones([3 + step as i64], FLOAT));
    }
    Ok(())
}

/// Some leaves are asked one by one, aliases come after all tensors, and memory and types change between saves.
#[test]
fn what_is_asked_together_stays_in_its_place() -> Outcome {
    let dir = tempfile::tempdir()?;
    let mut vs = VarStore::new(Device::Cpu);
    let weights: Vec<Tensor> = (0..40).map(|i| variable(&vs, &format!("layer{i}"), 1 + 1500 * (i % 5), 0.0)).collect();
    let frozen = variable(&vs, "frozen", 10, 5.0).set_requires_grad(false);
    let _tied = (vs.root() / "again").add("w", weights[7].shallow_clone(), true);
    let mut sgd = optim::Sgd { momentum: 0.9, ..Default::default() }.build(&vs, 1.0)?;
    let checkpoint = Checkpoint::new().track("rng", Rng::global())?.track("optimizer", &sgd)?;
    let checkpoint = checkpoint.track("rng too", Rng::global())?.track("model", Variables::of(&vs))?;
    let mut manager = manager(checkpoint, dir.path());
    let mut states: Vec<(Location, Vec<Vec<f32>>, bool)> = Vec::new();
    for step in 1..=12 {
        weights.iter().for_each(|w| backward(w, f64::from(step)));
        sgd.step();
        match step {
            4 => vs.double(),
            6 => vs.float(),
            8 => weights[3].shallow_clone().set_data(&Tensor::full([4501], 3.0, FLOAT)),
            9 => drop(frozen.set_requires_grad(true)),
            10 => drop(frozen.set_requires_grad(false)),
            _ => {}
        }
        let path = manager.save_at(step as u64)?;
        states.push((path, weights.iter().map(live).collect(), frozen.requires_grad()));
    }
    manager.close()?;
    for (path, state, is_trained) in states {
        let reader = CheckpointReader::open(&path)?;
        let tensors = &reader.manifest().tensors;
        for (i, state) in state.iter().enumerate() {
            let record = &tensors[&format!("model/layer{i}.w")];
            assert_eq!(record.requires_grad, Some(true));
            let bytes = reader.tensor(&format!("model/layer{i}.w"))?;
            let values: Vec<f32> = match record.spec.dtype {
                Dtype::F64 => bytes.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap()) as f32).collect(),
                _ => bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
            };
            assert!(values == *state, "{path:?} layer {i}");
        }
        assert_eq!(tensors["model/again.w"].pieces, tensors["model/layer7.w"].pieces);
        assert_eq!(tensors["model/frozen.w"].requires_grad, Some(is_trained));
        assert_eq!(tensors["rng/cpu"].requires_grad, None);
        assert!(verify_checkpoint(&path).is_intact());
    }
    Ok(())
}

/// Another thread writes all the time: at worst a mixture is saved, which can be read all the same.
#[test]
fn a_blocking_save_digests_what_it_writes() -> Outcome {
    let dir = tempfile::tempdir()?;
    let w = Tensor::zeros([3 << 20], FLOAT);
    let small = Tensor::zeros([1000], FLOAT);
    let stop = std::sync::atomic::AtomicBool::new(false);
    let others = [w.shallow_clone(), small.shallow_clone()];
    let mut problems = Vec::new();
    std::thread::scope(|scope| {
        let stop = &stop;
        scope.spawn(move || {
            let mut others = others;
            let mut value = 0.0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                value += 1.0;
                others.iter_mut().for_each(|w| drop(w.fill_(value)));
            }
        });
        for (name, durability) in [("a", Durability::ProcessCrash), ("b", Durability::PowerLoss)] {
            let mut checkpoint = Checkpoint::new().track("w", &w).unwrap().track("small", &small).unwrap();
            let options = SaveOptions::new().durability(durability);
            for i in 0..10 {
                let path = checkpoint.write_with(dir.path().join(format!("{name}{i}")), &options).unwrap();
                problems.extend(verify_checkpoint(&path).problems);
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert!(problems.is_empty(), "{problems:?}");
    Ok(())
}

/// The processor time of this thread, in ms.
fn processor_time() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|ns| ns.parse::<f64>().ok()).unwrap_or_default() / 1e6
}

/// How long a call of a save in the background takes, in ms:
/// `cargo test --release --test capture -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn stall() -> Outcome {
    for (tensors, elements, frozen) in [(170, 197_000, 0), (3333, 1024, 0), (1, 1000, 64 << 20)] {
        let dir = tempfile::tempdir()?;
        let vs = VarStore::new(Device::Cpu);
        for i in 0..tensors {
            let _ = variable(&vs, &format!("net{i}"), elements, 0.5);
        }
        if frozen > 0 {
            let _ = variable(&vs, "frozen", frozen, 0.5).set_requires_grad(false);
        }
        let mut adam = optim::Adam::default().build(&vs, 1e-3)?;
        let mut checkpoint = Checkpoint::new().track("optimizer", &adam)?;
        if frozen > 0 {
            checkpoint.track_mut("frozen", Variables::of(&vs).under("frozen"))?;
        } else {
            checkpoint.track_mut("model", Variables::of(&vs))?;
        }
        let options = SaveOptions::new().durability(Durability::ProcessCrash);
        let builder = CheckpointManager::builder(checkpoint, dir.path()).max_to_keep(1).save_options(options);
        let mut manager = builder.background(Background::new()).open()?;
        let (mut times, mut worked_for) = (Vec::new(), Vec::new());
        for step in 1..=8 {
            let loss: Tensor = vs.trainable_variables().iter().map(|w| w.sum(Kind::Float)).sum();
            adam.backward_step(&loss);
            let (began, worked) = (std::time::Instant::now(), processor_time());
            manager.save_at(step)?;
            times.push(began.elapsed().as_secs_f64() * 1e3);
            worked_for.push(processor_time() - worked);
            manager.wait()?;
        }
        for (what, mut times) in [("wall", times), ("processor", worked_for)] {
            times.remove(0);
            times.sort_by(f64::total_cmp);
            println!(
                "{tensors} variables of {elements}, {frozen} frozen: {what} {:.2} to {:.2} ms",
                times[0], times[6]
            );
        }
    }
    Ok(())
}
