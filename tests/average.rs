//! `Ema` and `Swa`: what they compute, how they are saved, and that the variables get their own values back.

#[path = "common/bits.rs"]
mod bits;
mod common;
#[path = "common/recorded.rs"]
mod recorded;

use bits::bits;
use common::{python, turn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use tch::nn::{self, ModuleT, VarStore};
use tch::{Device, Kind, Tensor, no_grad};
use tch_checkpoint::{
    Background, BoxError, Checkpoint, CheckpointManager, CheckpointReader, Dtype, Ema, Node, RestoreOptions, Swa,
    TensorBytes, TensorLeaf, TensorSpec, TensorTarget, Trackable, ValueApply, ValueLeaf, Variables, optim,
};

const FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);

fn all_bits(vs: &VarStore) -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<_> = vs.variables().iter().map(|(name, tensor)| (name.clone(), bits(tensor))).collect();
    all.sort();
    all
}

fn fill(tensor: &Tensor, value: f64) {
    let _ = no_grad(|| tensor.shallow_clone().fill_(value));
}

/// A layer and a normalization, which has buffers.
fn model() -> (VarStore, nn::Linear, nn::BatchNorm) {
    let vs = VarStore::new(Device::Cpu);
    let layer = nn::linear(vs.root() / "layer", 5, 3, Default::default());
    let norm = nn::batch_norm1d(vs.root() / "norm", 3, Default::default());
    (vs, layer, norm)
}

/// libtorch's own kernel, as PyTorch's `get_ema_multi_avg_fn` and `get_swa_multi_avg_fn` call it.
fn lerp(average: &Tensor, variable: &Tensor, weight: f64) -> Tensor {
    no_grad(|| average.lerp(&variable.detach(), weight))
}

#[test]
fn an_ema_is_what_lerp_gives() {
    let _turn = turn();
    tch::manual_seed(1);
    let (vs, layer, _norm) = model();
    let mut ema = Ema::new(&vs, 0.9).unwrap();
    let mut expected = layer.ws.detach().copy();
    for _ in 0..20 {
        let _ = no_grad(|| layer.ws.shallow_clone().g_add_(&Tensor::randn([3, 5], FLOAT)));
        ema.update().unwrap();
        expected = lerp(&expected, &layer.ws, 1.0 - 0.9);
    }
    assert_eq!(bits(&ema.average("layer.weight").unwrap()), bits(&expected));
    assert_eq!(ema.updates(), 20);
}

#[test]
fn warm_up_and_every_n_calls() {
    let _turn = turn();
    let (vs, layer, _norm) = model();
    let mut ema = Ema::new(&vs, 0.5).unwrap().warm_up().every(3);
    let mut expected = layer.ws.detach().copy();
    for call in 1..=24 {
        fill(&layer.ws, f64::from(call));
        ema.update().unwrap();
        if call % 3 == 0 {
            let n = f64::from(call / 3 - 1);
            expected = lerp(&expected, &layer.ws, 1.0 - ((1.0 + n) / (10.0 + n)).min(0.5));
        }
        assert_eq!(bits(&ema.average("layer.weight").unwrap()), bits(&expected), "call {call}");
    }
    assert_eq!(ema.updates(), 8);
}

#[test]
fn an_swa_is_the_mean() {
    let _turn = turn();
    let (vs, layer, _norm) = model();
    let mut swa = Swa::new(&vs).unwrap();
    for value in [4.0, 8.0, 0.0, 12.0] {
        fill(&layer.ws, value);
        swa.update().unwrap();
    }
    assert_eq!(bits(&swa.average("layer.weight").unwrap()), bits(&Tensor::full([3, 5], 6.0, FLOAT)));
    fill(&layer.ws, 1.0);
    swa.apply().unwrap();
    assert_eq!(bits(&layer.ws), bits(&Tensor::full([3, 5], 6.0, FLOAT)));
    fill(&layer.ws, 1.0);
    swa.reset().unwrap();
    assert_eq!((swa.updates(), bits(&swa.average("layer.weight").unwrap())), (0, bits(&layer.ws)));
}

#[test]
fn buffers_are_copied_or_averaged() {
    let _turn = turn();
    for averaged in [false, true] {
        let (vs, _layer, norm) = model();
        let count = vs.root().add("count", Tensor::from(7i64), false);
        let ema = Ema::new(&vs, 0.75).unwrap();
        let mut ema = if averaged { ema.average_buffers() } else { ema };
        fill(&norm.running_mean, 8.0);
        let _ = count.shallow_clone().fill_(9);
        ema.update().unwrap();
        let mean = ema.average("norm.running_mean").unwrap();
        assert_eq!(mean.double_value(&[0]), if averaged { 2.0 } else { 8.0 });
        // Integers have no average.
        assert_eq!(ema.average("count").unwrap().int64_value(&[]), 9);
    }
}

#[test]
fn half_precision_is_averaged_in_single_precision_and_comes_back_bit_for_bit() {
    let _turn = turn();
    let (mut vs, layer, _norm) = model();
    let mut ema = Ema::new(&vs, 0.999).unwrap();
    vs.half();
    fill(&layer.ws, 1.0);
    ema.reset().unwrap();
    fill(&layer.ws, 2.0);
    for _ in 0..10 {
        ema.update().unwrap();
    }
    let average = ema.average("layer.weight").unwrap();
    assert_eq!(average.kind(), Kind::Float);
    assert!((average.double_value(&[0, 0]) - (2.0 - 0.999f64.powi(10))).abs() < 1e-6, "{average}");
    let (before, averages) = (all_bits(&vs), bits(&average));
    let seen = ema.with_averaged(|| layer.ws.double_value(&[0, 0])).unwrap();
    assert!((seen - 1.01).abs() < 1e-2 && layer.ws.kind() == Kind::Half);
    assert_eq!((all_bits(&vs), bits(&average)), (before, averages));
    // And back: the handles see the type that the averages have now.
    vs.double();
    ema.update().unwrap();
    assert_eq!(average.kind(), Kind::Double);
}

#[test]
fn averages_are_swapped_in_and_out() {
    let _turn = turn();
    tch::manual_seed(2);
    let (vs, layer, norm) = model();
    let tied = (vs.root() / "decoder").add("weight", layer.ws.shallow_clone(), true);
    let _view = (vs.root() / "part").add("row", layer.ws.detach().narrow(0, 1, 1), false);
    let mut ema = Ema::new(&vs, 0.5).unwrap();
    for _ in 0..3 {
        let _ = no_grad(|| layer.ws.shallow_clone().normal_(0.0, 1.0));
        ema.update().unwrap();
    }
    let x = Tensor::randn([4, 5], FLOAT);
    let forward = || norm.forward_t(&x.apply(&layer), false);
    let (before, outside) = (all_bits(&vs), forward());
    let averages: Vec<_> = ema.averages().values().map(bits).collect();
    let average = ema.average("decoder.weight").unwrap().copy();
    let inside = ema
        .with_averaged(|| {
            assert_eq!(bits(&tied), bits(&layer.ws));
            // The view shows the same memory, of which it has an average of its own.
            assert_eq!(bits(&layer.ws.narrow(0, 0, 1)), bits(&average.narrow(0, 0, 1)));
            forward()
        })
        .unwrap();
    assert_ne!(bits(&inside), bits(&outside));
    assert_eq!(all_bits(&vs), before);
    assert_eq!(bits(&forward()), bits(&outside));
    assert_eq!(ema.averages().values().map(bits).collect::<Vec<_>>(), averages);

    let panicked = catch_unwind(AssertUnwindSafe(|| ema.with_averaged(|| panic!("no evaluation today"))));
    assert!(panicked.is_err());
    assert_eq!(all_bits(&vs), before);
    assert_eq!(ema.averages().values().map(bits).collect::<Vec<_>>(), averages);
    ema.update().unwrap();
}

#[test]
fn a_failed_evaluation_loses_nothing() {
    let _turn = turn();
    for (background, changes) in [(false, false), (true, false), (false, true)] {
        let dir = tempfile::tempdir().unwrap();
        let vs = VarStore::new(Device::Cpu);
        let w = vs.root().var("w", &[300], nn::Init::Const(1.0));
        let _half = vs.root().add("half", Tensor::ones([30], (Kind::Half, Device::Cpu)), false);
        let mut optimizer = optim::Adam::default().build(&vs, 0.1).unwrap();
        let mut ema = Ema::new(&vs, 0.5).unwrap();
        let checkpoint = Checkpoint::new().track("model", &vs).unwrap().track("optimizer", &optimizer).unwrap();
        let builder = CheckpointManager::builder(checkpoint.track("ema", &ema).unwrap(), dir.path()).save_every(1000);
        let builder = if background { builder.background(Background::new()) } else { builder };
        let mut manager = builder.open().unwrap();
        let mut saved = None;
        let failed = catch_unwind(AssertUnwindSafe(|| {
            manager.guard(|manager| -> Result<(), tch_checkpoint::Error> {
                for step in 1..4 {
                    optimizer.backward_step(&w.square().sum(Kind::Float));
                    ema.update()?;
                    manager.save_if_due(step)?;
                    saved = Some((all_bits(&vs), ema.averages().values().map(bits).collect::<Vec<_>>()));
                    let _ = ema.with_averaged(|| w.sum(Kind::Float))?;
                }
                // The next step begins: its learning rate belongs to the update that does not come.
                optimizer.set_lr(0.5);
                ema.with_averaged(|| if changes { fill(&w, 3.0) } else { panic!("no evaluation today") })?;
                panic!("no step today")
            })
        }));
        assert!(failed.is_err());
        manager.close().unwrap();
        let path = dir.path().join("ckpt-3");
        // What an evaluation has changed is of no step.
        assert_eq!(path.exists(), !changes);
        if !changes {
            let vs = VarStore::new(Device::Cpu);
            let _ = vs.root().var("w", &[300], nn::Init::Const(0.0));
            let _ = vs.root().add("half", Tensor::zeros([30], (Kind::Half, Device::Cpu)), false);
            let again = optim::Adam::default().build(&vs, 0.25).unwrap();
            let ema = Ema::new(&vs, 0.5).unwrap();
            let checkpoint = Checkpoint::new().track("model", &vs).unwrap().track("optimizer", &again).unwrap();
            checkpoint.track("ema", &ema).unwrap().restore(path).unwrap().assert_consumed().unwrap();
            assert_eq!(again.lr(), 0.1);
            assert_eq!(Some((all_bits(&vs), ema.averages().values().map(bits).collect())), saved);
        }
    }
}

#[test]
fn what_cannot_be_exchanged_back_is_not_saved() {
    let _turn = turn();
    for panics in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let mut vs = VarStore::new(Device::Cpu);
        let w = vs.root().var("w", &[300], nn::Init::Const(1.0));
        let mut ema = Ema::new(&vs, 0.5).unwrap();
        fill(&w, 3.1);
        ema.update().unwrap();
        let checkpoint = Checkpoint::new().track("model", &vs).unwrap();
        let mut checkpoint = checkpoint.track("ema", &ema).unwrap();
        let good = checkpoint.snapshot().unwrap();
        let before = (all_bits(&vs), bits(&ema.average("w").unwrap()));
        // An evaluation in half precision that ends early.
        let ended = catch_unwind(AssertUnwindSafe(|| {
            ema.with_averaged(|| {
                vs.half();
                assert!(!panics, "no evaluation today");
            })
        }));
        match ended {
            Ok(ended) => assert!(ended.unwrap_err().to_string().contains("reinitialized")),
            Err(_) => assert!(panics),
        }
        vs.float();
        let mut other = Checkpoint::new().track("other", &vs).unwrap();
        for tracked in [&mut checkpoint, &mut other] {
            let refusal = tracked.write(dir.path().join("mixed")).unwrap_err().to_string();
            assert!(refusal.contains("half-way"), "{refusal}");
        }
        checkpoint.rollback(&good).unwrap();
        assert_eq!((all_bits(&vs), bits(&ema.average("w").unwrap())), before);
        checkpoint.write(dir.path().join("good")).unwrap();
        other.write(dir.path().join("other")).unwrap();
        ema.with_averaged(|| ()).unwrap();
        assert_eq!((all_bits(&vs), bits(&ema.average("w").unwrap())), before);
    }
}

/// Two stores with variables `a` and `b`. If `overlap`, the memory of one `b` is partly that of the other, which libtorch
/// finds when it writes there.
fn two_models(overlap: bool) -> [VarStore; 2] {
    let memory = Tensor::ones([4], FLOAT);
    [(0, 1.0), (1, 5.0)].map(|(begin, value)| {
        let vs = VarStore::new(Device::Cpu);
        let _ = vs.root().var("a", &[3], nn::Init::Const(value));
        let b = if overlap { memory.narrow(0, begin, 3) } else { Tensor::ones([3], FLOAT) };
        let _ = vs.root().add("b", b, true);
        vs
    })
}

#[test]
fn averages_that_are_updated_in_part_are_not_saved() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    // The target gets its first values.
    let [online, target] = two_models(true);
    let refusal = Ema::for_target(&online, &target, 0.5).unwrap_err().to_string();
    assert!(refusal.starts_with("b: ") && refusal.contains("reinitialized"), "{refusal}");
    assert_eq!(target.variables()["a"].double_value(&[0]), 1.0);
    let mut checkpoint = Checkpoint::new().track("target", &target).unwrap();
    assert!(checkpoint.write(dir.path().join("target")).unwrap_err().to_string().contains("half-way"));
    checkpoint.reinitialized("target").unwrap();
    checkpoint.write(dir.path().join("target")).unwrap();

    let [online, target] = two_models(false);
    let mut ema = Ema::for_target(&online, &target, 0.5).unwrap();
    let mut checkpoint = Checkpoint::new().track("ema", &ema).unwrap();
    let memory = Tensor::ones([4], FLOAT);
    online.variables()["b"].shallow_clone().set_data(&memory.narrow(0, 0, 3));
    target.variables()["b"].shallow_clone().set_data(&memory.narrow(0, 1, 3));
    fill(&online.variables()["a"], 3.0);
    assert!(ema.update().unwrap_err().to_string().contains("reinitialized"));
    assert_eq!((ema.updates(), target.variables()["a"].double_value(&[0])), (0, 2.0));
    assert!(checkpoint.write(dir.path().join("ema")).unwrap_err().to_string().contains("half-way"));
    target.variables()["b"].shallow_clone().set_data(&Tensor::ones([3], FLOAT));
    ema.reset().unwrap();
    checkpoint.reinitialized("ema").unwrap();
    checkpoint.write(dir.path().join("ema")).unwrap();
    // The variables themselves were not written.
    Checkpoint::new().track("online", &online).unwrap().write(dir.path().join("online")).unwrap();
}

#[test]
fn averages_of_8_bit_types_are_in_single_precision_or_refused_before_anything_changes() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let small = |kind: Kind| Tensor::full([2], 0.5, FLOAT).to_kind(kind);
    for kind in [Kind::Float8e5m2, Kind::Float8e4m3fn, Kind::Float8e5m2fnuz, Kind::Float8e4m3fnuz] {
        let vs = VarStore::new(Device::Cpu);
        let w = vs.root().var("w", &[2], nn::Init::Const(1.0));
        let w8 = vs.root().add("w8", small(kind), true);
        let mut ema = Ema::new(&vs, 0.75).unwrap();
        fill(&w, 2.0);
        fill(&w8, 1.0);
        ema.update().unwrap();
        let average = |name| ema.average(name).unwrap();
        assert_eq!((average("w8").kind(), average("w8").double_value(&[0])), (Kind::Float, 0.625));
        assert_eq!((average("w").double_value(&[0]), ema.updates()), (1.25, 1));
        let before = all_bits(&vs);
        assert_eq!(ema.with_averaged(|| w8.to_kind(Kind::Float).double_value(&[1])).unwrap(), 0.625);
        assert_eq!(all_bits(&vs), before);

        // A target has its own type.
        let target = VarStore::new(Device::Cpu);
        let a = target.root().var("w", &[2], nn::Init::Const(7.0));
        let _ = target.root().add("w8", small(kind), true);
        let mut polyak = Ema::for_target(&vs, &target, 0.5).unwrap();
        fill(&w, 4.0);
        let refusal = polyak.update().unwrap_err().to_string();
        assert!(refusal.starts_with("w8: ") && refusal.contains("Float8"), "{refusal}");
        assert_eq!(a.double_value(&[0]), 2.0);
        Checkpoint::new().track("polyak", &polyak).unwrap().write(dir.path().join(format!("{kind:?}"))).unwrap();
    }
}

#[test]
fn within_the_swap_nothing_of_the_averages_is_saved_or_restored() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let (vs, layer, _norm) = model();
    let mut ema = Ema::new(&vs, 0.5).unwrap();
    let mut whole = Checkpoint::new().track("model", Variables::of(&vs)).unwrap().track("ema", &ema).unwrap();
    let mut model_only = Checkpoint::new().track("model", Variables::of(&vs)).unwrap();
    let good = whole.write(dir.path().join("good")).unwrap();
    fill(&layer.ws, 3.0);
    ema.update().unwrap();
    let before = all_bits(&vs);
    ema.with_averaged(|| {
        let refusal = whole.write(dir.path().join("bad")).unwrap_err().to_string();
        assert!(refusal.contains("with_averaged"), "{refusal}");
        assert!(whole.restore(&good).is_err());
        // The optimizer and the averages beside it are asked whether they change meanwhile.
        assert!(whole.get("model").unwrap().write(dir.path().join("part")).is_err());
        model_only.write(dir.path().join("averaged")).unwrap();
    })
    .unwrap();
    assert_eq!(all_bits(&vs), before);
    whole.write(dir.path().join("after")).unwrap();
    // The averages under the variables' names.
    model_only.restore(dir.path().join("averaged")).unwrap();
    assert_eq!(bits(&layer.ws), bits(&ema.average("layer.weight").unwrap()));
}

#[test]
fn it_resumes_bit_for_bit_and_its_file_is_one_of_tch() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let program = |steps: i64, resume: Option<&str>| {
        tch::manual_seed(3);
        let (vs, layer, norm) = model();
        let mut ema = Ema::new(&vs, 0.99).unwrap().warm_up().every(2);
        let mut swa = Swa::new(Variables::of(&vs).under("layer")).unwrap();
        let mut optimizer = optim::Adam::default().build(&vs, 1e-2).unwrap();
        let mut checkpoint = Checkpoint::new()
            .track("model", Variables::of(&vs))
            .and_then(|all| all.track("optimizer", &optimizer)?.track("ema", &ema)?.track("swa", &swa))
            .unwrap();
        let mut step = 0;
        if let Some(name) = resume {
            checkpoint.restore(dir.path().join(name)).unwrap().assert_consumed().unwrap();
            step = optimizer.steps() as i64;
        }
        while step < steps {
            step += 1;
            let x = (Tensor::arange(20, FLOAT) * step).sin().reshape([4, 5]);
            optimizer.backward_step(&norm.forward_t(&x.apply(&layer), true).pow_tensor_scalar(3).mean(Kind::Float));
            ema.update().unwrap();
            swa.update().unwrap();
        }
        let name = format!("{steps}-{}", resume.unwrap_or("whole"));
        checkpoint.write(dir.path().join(&name)).unwrap();
        name
    };
    let whole = program(11, None);
    let first = program(5, None);
    let resumed = program(11, Some(&first));
    let manifest = |name: &str| CheckpointReader::open(dir.path().join(name)).unwrap().manifest().clone();
    assert_eq!(manifest(&whole).tensors, manifest(&resumed).tensors);
    assert_eq!(manifest(&whole).values, manifest(&resumed).values);
    assert_ne!(manifest(&whole).tensors, manifest(&first).tensors);

    // Every variable by its own name, in both files.
    let (mut vs, layer, _norm) = model();
    vs.load(dir.path().join(&whole).join("ema.safetensors")).unwrap();
    let averaged = bits(&layer.ws);
    vs.load(dir.path().join(&whole).join("model.safetensors")).unwrap();
    assert_ne!(averaged, bits(&layer.ws));
    vs.load_partial(dir.path().join(&whole).join("swa.safetensors")).unwrap();
}

#[test]
fn a_target_network_is_an_average() {
    let _turn = turn();
    let ((online, layer, _), (mut target, goal, _)) = (model(), model());
    target.freeze();
    fill(&layer.ws, 4.0);
    let mut polyak = Ema::for_target(&online, &target, 0.75).unwrap();
    assert_eq!(bits(&goal.ws), bits(&layer.ws));
    fill(&layer.ws, 8.0);
    polyak.update().unwrap();
    assert_eq!(goal.ws.double_value(&[0, 0]), 5.0);
    // What the target shows is what is saved, once.
    let dir = tempfile::tempdir().unwrap();
    let mut checkpoint =
        Checkpoint::new().track("target", Variables::of(&target)).unwrap().track("polyak", &polyak).unwrap();
    let path = checkpoint.write(dir.path().join("one")).unwrap();
    fill(&goal.ws, 0.0);
    checkpoint.restore(path).unwrap();
    assert_eq!(goal.ws.double_value(&[0, 0]), 5.0);

    let other = VarStore::new(Device::Cpu);
    let _ = nn::linear(other.root() / "layer", 6, 3, Default::default());
    let refusal = Ema::for_target(&online, &other, 0.5).unwrap_err().to_string();
    assert!(refusal.contains("layer.weight") || refusal.contains("norm"), "{refusal}");
}

#[test]
fn a_target_of_another_shape_changes_no_average() {
    let _turn = turn();
    let ((online, layer, _norm), (mut target, goal, goal_norm)) = (model(), model());
    target.freeze();
    let mut polyak = Ema::for_target(&online, &target, 0.75).unwrap();
    fill(&layer.ws, 8.0);
    let before = bits(&goal.ws);
    goal_norm.running_mean.shallow_clone().set_data(&Tensor::zeros([7], FLOAT));
    let refusal = polyak.update().unwrap_err().to_string();
    assert!(refusal.contains("norm.running_mean"), "{refusal}");
    assert_eq!((bits(&goal.ws), polyak.updates()), (before, 0));
}

#[test]
fn variables_that_are_unfrozen_are_averaged_and_frozen_ones_stay() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let vs = VarStore::new(Device::Cpu);
    let (body, head) =
        (vs.root().var("body", &[2], nn::Init::Const(1.0)), vs.root().var("head", &[2], nn::Init::Const(1.0)));
    let _ = body.set_requires_grad(false);
    let trainable = || Variables::of(&vs).trainable();
    let mut ema = Ema::new(trainable(), 0.5).unwrap();
    let mut checkpoint = Checkpoint::new().track("ema", &ema).unwrap();
    checkpoint.write(dir.path().join("frozen")).unwrap();
    assert!(ema.average("body").is_none());
    let body_average = |ema: &Ema| ema.average("body").unwrap().double_value(&[0]);

    let _ = body.set_requires_grad(true);
    fill(&body, 4.0);
    ema.update().unwrap();
    assert_eq!(body_average(&ema), 4.0);
    fill(&body, 8.0);
    ema.update().unwrap();
    assert_eq!(body_average(&ema), 6.0);
    let path = checkpoint.write(dir.path().join("unfrozen")).unwrap();
    let resumed = Ema::new(trainable(), 0.5).unwrap();
    Checkpoint::new().track("ema", &resumed).unwrap().restore(&path).unwrap().assert_consumed().unwrap();
    assert_eq!(body_average(&resumed), 6.0);

    // An average of a variable that is frozen when the run is resumed is restored.
    let _ = body.set_requires_grad(false);
    let mut resumed = Ema::new(trainable(), 0.5).unwrap();
    assert!(resumed.average("body").is_none());
    let mut with_resumed = Checkpoint::new().track("ema", &resumed).unwrap();
    with_resumed.restore(&path).unwrap().assert_consumed().unwrap();
    assert_eq!(body_average(&resumed), 6.0);
    resumed.update().unwrap();
    assert_eq!(body_average(&resumed), 7.0);
    let _ = body.set_requires_grad(true);
    resumed.update().unwrap();
    assert_eq!(body_average(&resumed), 7.5);
    let again = with_resumed.write(dir.path().join("resumed")).unwrap();
    assert!(CheckpointReader::open(&again).unwrap().manifest().tensors.contains_key("ema/body"));

    // Back before it was unfrozen, where it had no average. It begins anew when it is unfrozen.
    let model = Variables::of(&vs);
    let both = Checkpoint::new().track("model", &model).unwrap();
    let _ = body.set_requires_grad(false);
    let mut again = Ema::new(trainable(), 0.5).unwrap();
    let mut both = both.track("ema", &again).unwrap();
    let before = (both.snapshot().unwrap(), both.write(dir.path().join("before")).unwrap());
    for by_snapshot in [true, false] {
        let _ = body.set_requires_grad(true);
        fill(&body, 100.0);
        again.update().unwrap();
        assert_eq!(body_average(&again), 100.0);
        let _ = body.set_requires_grad(false);
        if by_snapshot {
            both.rollback(&before.0).unwrap();
        } else {
            both.restore(&before.1).unwrap().assert_consumed().unwrap();
        }
        assert!(again.average("body").is_none());
        assert_eq!((again.average("head").unwrap().double_value(&[0]), body.double_value(&[0])), (1.0, 8.0));
    }
    let _ = body.set_requires_grad(true);
    fill(&body, 2.0);
    again.update().unwrap();
    assert_eq!(body_average(&again), 2.0);
    fill(&body, 8.0);

    // A checkpoint without any averages takes none away.
    let without = Checkpoint::new().track("model", &model).unwrap().write(dir.path().join("without")).unwrap();
    fill(&head, 3.0);
    let _ = body.set_requires_grad(false);
    let kept = ["body", "head"].map(|name| again.average(name).unwrap().copy());
    let lacking = both.restore(&without).unwrap_err().to_string();
    assert!(lacking.contains("ema/body") && lacking.contains("ema/head"), "{lacking}");
    let report = both.restore_with(&without, &RestoreOptions::new().allow_missing("ema/*")).unwrap().report().clone();
    assert_eq!(["body", "head"].map(|name| again.average(name).unwrap()), kept);
    assert!(report.skipped.iter().any(|skipped| skipped.key == "ema/body"));

    // Even if all of them are.
    for variable in [&body, &head] {
        let _ = variable.set_requires_grad(false);
        ema.update().unwrap();
    }
    assert_eq!(body_average(&ema), 7.5);
    let path = checkpoint.write(dir.path().join("all-frozen")).unwrap();
    assert!(CheckpointReader::open(&path).unwrap().manifest().tensors.contains_key("ema/body"));
    let resumed = Ema::new(trainable(), 0.5).unwrap();
    assert!(resumed.averages().is_empty());
    Checkpoint::new().track("ema", &resumed).unwrap().restore(&path).unwrap().assert_consumed().unwrap();
    assert_eq!((body_average(&resumed), resumed.averages().len()), (7.5, 2));
}

#[test]
fn averages_of_frozen_variables_have_the_names_and_the_ties_of_the_variables() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let build = |is_tied: bool| {
        let vs = VarStore::new(Device::Cpu);
        let encoder = vs.root() / "encoder";
        let body = encoder.var("w", &[2], nn::Init::Const(1.0));
        // The same name without its prefix as the other one has with it.
        let inner = (&encoder / "encoder").var("w", &[2], nn::Init::Const(2.0));
        let tied = match is_tied {
            true => encoder.add("tied", inner.shallow_clone(), true),
            false => encoder.var("tied", &[2], nn::Init::Const(3.0)),
        };
        let ema = Ema::new(Variables::of(&vs).under("encoder").trainable(), 0.5).unwrap();
        (vs, body, inner, tied, ema)
    };
    for (saved, live) in [(true, true), (false, false), (false, true)] {
        let (_vs, _body, _inner, _tied, ema) = build(saved);
        let name = dir.path().join(format!("{saved}-{live}"));
        let path = Checkpoint::new().track("ema", &ema).unwrap().write(name).unwrap();
        let (vs, _body, inner, tied, _) = build(live);
        for variable in [inner, tied] {
            let _ = variable.set_requires_grad(false);
        }
        let ema = Ema::new(Variables::of(&vs).under("encoder").trainable(), 0.5).unwrap();
        assert_eq!(ema.averages().len(), 1);
        let restored = Checkpoint::new().track("ema", &ema).unwrap().restore(&path);
        if saved == live {
            restored.unwrap().assert_consumed().unwrap();
            let [inner, tied] = ["encoder.w", "tied"].map(|name| ema.average(name).unwrap());
            assert_eq!(tied.double_value(&[0]), if live { 2.0 } else { 3.0 });
            assert_eq!(inner.data_ptr() == tied.data_ptr(), live);
        } else {
            let refusal = restored.unwrap_err().to_string();
            assert!(refusal.contains("ema/tied"), "{refusal}");
        }
    }
}

/// A tensor during whose reading another thread swaps averages in.
struct Swapping(Mutex<Option<Ema>>, bool);

impl TensorLeaf for Swapping {
    fn spec(&self) -> Result<TensorSpec, BoxError> {
        Ok(TensorSpec::new(Dtype::U8, [1]))
    }

    fn bytes(&self) -> Result<Box<dyn TensorBytes>, BoxError> {
        let Some(mut ema) = self.0.lock().unwrap().take() else { return Ok(Box::new(vec![0])) };
        let (swapped, is_swapped) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            let inside = || {
                swapped.send(()).unwrap();
                let _ = ended.recv();
            };
            ema.with_averaged(inside).unwrap();
        });
        is_swapped.recv()?;
        if self.1 {
            drop(end);
            thread.join().unwrap();
        } else {
            std::mem::forget(end);
        }
        Ok(Box::new(vec![0]))
    }

    fn target(&self) -> Result<Box<dyn TensorTarget>, BoxError> {
        Err("read only".into())
    }
}

#[test]
fn a_swap_on_another_thread_makes_a_save_fail() {
    let _turn = turn();
    for ends in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let vs = VarStore::new(Device::Cpu);
        let w = vs.root().var("w", &[2], nn::Init::Const(0.0));
        let ema = Ema::new(&vs, 0.5).unwrap();
        fill(&w, 1.0);
        let checkpoint = Checkpoint::new().track("model", &vs).unwrap().track("ema", &ema).unwrap();
        let swapping = Node::tensor(Swapping(Mutex::new(Some(ema)), ends));
        let mut checkpoint = checkpoint.track("a", swapping).unwrap();
        let error = checkpoint.write(dir.path().join("swapped")).unwrap_err().to_string();
        assert!(error.starts_with("ema"), "{error}");
        assert!(!dir.path().join("swapped").exists());
    }
}

#[test]
fn what_is_wrong_is_said() {
    let _turn = turn();
    let (vs, layer, _norm) = model();
    for decay in [-0.1, 1.1, f64::NAN] {
        assert!(Ema::new(&vs, decay).unwrap_err().to_string().contains("within 0 and 1"));
    }
    let mut ema = Ema::new(&vs, 0.5).unwrap();
    assert!(ema.set_decay(2.0).is_err());
    // A variable that is added later starts as it is.
    let late = vs.root().var("late", &[2], nn::Init::Const(4.0));
    fill(&late, 8.0);
    ema.update().unwrap();
    assert_eq!(ema.average("late").unwrap().double_value(&[0]), 8.0);
    fill(&layer.bs.as_ref().unwrap().shallow_clone(), 100.0);
    let before: Vec<_> = ema.averages().values().map(bits).collect();
    layer.ws.shallow_clone().set_data(&Tensor::zeros([2, 2], FLOAT));
    let refusal = ema.update().unwrap_err().to_string();
    assert!(refusal.contains("layer.weight") && refusal.contains("[2, 2]"), "{refusal}");
    assert_eq!(ema.averages().values().map(bits).collect::<Vec<_>>(), before);
    assert!(Ema::new(Variables::of(&vs).under("nothing"), 0.5).is_err());
    let _ = vs.root().var("averaging", &[2], nn::Init::Const(4.0));
    let ema = Ema::new(&vs, 0.5).unwrap();
    let refusal = Checkpoint::new().track("ema", &ema).unwrap_err().to_string();
    assert!(refusal.contains("rename it"), "{refusal}");
}

#[test]
fn an_older_checkpoint_without_it_is_restored_and_averages_begin_anew() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let (vs, layer, _norm) = model();
    let path = Checkpoint::new().track("model", Variables::of(&vs)).unwrap().write(dir.path().join("old")).unwrap();
    let (vs, other, _norm) = model();
    let mut ema = Ema::new(&vs, 0.9).unwrap();
    let mut both = Checkpoint::new().track("model", Variables::of(&vs)).unwrap().track("ema", &ema).unwrap();
    assert!(both.restore(&path).is_err());
    both.restore_with(&path, &RestoreOptions::new().allow_missing("ema/*")).unwrap();
    ema.reset().unwrap();
    assert_eq!(bits(&other.ws), bits(&layer.ws));
    assert_eq!(bits(&ema.average("layer.weight").unwrap()), bits(&layer.ws));
}

#[test]
fn averages_are_copied_behind_the_call_and_updates_wait() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let vs = VarStore::new(Device::Cpu);
    let w = vs.root().var("w", &[1024, 1024], nn::Init::Const(0.0));
    let mut ema = Ema::new(&vs, 0.0).unwrap();
    let checkpoint = Checkpoint::new().track("ema", &ema).unwrap();
    let builder = CheckpointManager::builder(checkpoint, dir.path()).max_to_keep(1);
    let mut manager = builder.background(Background::new().without_detection().without_hooks()).open().unwrap();
    for step in 1..=20 {
        let path = manager.save_at(step).unwrap();
        fill(&w, step as f64);
        ema.update().unwrap();
        manager.wait().unwrap();
        let saved = CheckpointReader::open(&path).unwrap().tensor("ema/w").unwrap();
        assert!(saved.chunks(4).all(|value| value == ((step - 1) as f32).to_le_bytes()), "step {step}");
    }
    manager.close().unwrap();
}

/// A value that another thread changes all the time.
#[derive(Default)]
struct Clock(AtomicU64);

impl ValueLeaf for Clock {
    fn save(&self) -> Result<serde_json::Value, BoxError> {
        Ok(self.0.fetch_add(1, Ordering::Relaxed).into())
    }

    fn load(&self, _: &serde_json::Value) -> Result<ValueApply, BoxError> {
        Ok(Box::new(|| ()))
    }
}

#[test]
fn a_value_beside_averages_is_not_one_of_them() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let vs = VarStore::new(Device::Cpu);
    let w = vs.root().var("w", &[1024], nn::Init::Const(0.0));
    let mut ema = Ema::new(&vs, 0.0).unwrap();
    let training = Node::group([("ema", ema.node()), ("clock", Node::value(Clock::default()))]);
    let checkpoint = Checkpoint::new().track("training", training).unwrap();
    let builder = CheckpointManager::builder(checkpoint, dir.path()).background(Background::new());
    let mut manager = builder.open().unwrap();
    for step in 1..=3 {
        fill(&w, step as f64);
        ema.update().unwrap();
        let path = manager.save_at(step).unwrap();
        manager.wait().unwrap();
        let saved = CheckpointReader::open(&path).unwrap();
        assert_eq!(saved.manifest().values["training/ema/averaging"]["updates"], step);
    }
    manager.close().unwrap();
}

// ------------------------------------------------------------------------------------------ PyTorch

/// The model of record.py.
struct Recorded {
    vs: VarStore,
    weight: Tensor,
    buffer: Tensor,
}

impl Recorded {
    fn new() -> Recorded {
        let vs = VarStore::new(Device::Cpu);
        let weight = vs.root().var_copy("weight", &Tensor::zeros([15], FLOAT));
        let buffer = vs.root().add("buffer", Tensor::zeros([4], FLOAT), false);
        let model = Recorded { vs, weight, buffer };
        model.set(0);
        model
    }

    fn set(&self, update: usize) {
        no_grad(|| {
            self.weight.shallow_clone().copy_(&Tensor::from_slice(&recorded::values(update, 15, 0)));
            self.buffer.shallow_clone().copy_(&Tensor::from_slice(&recorded::values(update, 4, 15)));
        });
    }
}

fn floats(average: Option<Tensor>) -> Vec<f32> {
    Vec::try_from(average.unwrap()).unwrap()
}

#[test]
fn averages_are_those_of_pytorch() {
    for name in ["ema", "ema_buffers", "swa", "swa_buffers"] {
        let expected = recorded::table(&recorded::directory(), name);
        let model = Recorded::new();
        let mut found = Vec::new();
        if name.starts_with("ema") {
            let ema = Ema::new(&model.vs, 0.9).unwrap();
            let mut ema = if name == "ema" { ema } else { ema.average_buffers() };
            for update in 0..30 {
                model.set(update);
                // The first call of PyTorch copies the variables, as `Ema::new` does.
                if update > 0 {
                    ema.update().unwrap();
                }
                found.extend([floats(ema.average("weight")), floats(ema.average("buffer"))].concat());
            }
        } else {
            let swa = Swa::new(&model.vs).unwrap();
            let mut swa = if name == "swa" { swa } else { swa.average_buffers() };
            for update in 0..30 {
                model.set(update);
                swa.update().unwrap();
                found.extend([floats(swa.average("weight")), floats(swa.average("buffer"))].concat());
            }
        }
        let largest = recorded::difference(&found, &expected);
        println!("{name}: the largest difference is {largest:e}");
        assert!(largest <= recorded::LIMIT, "{name}: {largest:e}");
    }
}

/// The tables are what PyTorch computes: records them again where PyTorch is installed.
#[test]
fn the_tables_can_be_recorded_again() {
    let Some(python) = python::python("torch.optim.swa_utils") else { return };
    let dir = tempfile::tempdir().unwrap();
    python::output(python::command(python).arg(recorded::directory().join("record.py")).arg(dir.path()));
    for name in ["ema", "ema_buffers", "swa", "swa_buffers", "grad_scaler", "grad_scaler_rounding"] {
        let [now, then] = [dir.path(), &recorded::directory()].map(|directory| recorded::table(directory, name));
        let largest = recorded::difference(&now, &then);
        assert!(largest <= recorded::LIMIT, "{name}: {largest:e}");
    }
}

// ------------------------------------------------------------------------------------------ export

#[cfg(feature = "huggingface")]
#[test]
fn averages_are_exported_as_weights() {
    use tch_checkpoint::{Dtype, WeightsExport};
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let (vs, layer, _norm) = model();
    let mut ema = Ema::new(&vs, 0.5).unwrap();
    for value in [1.0, 2.0, 4.0] {
        fill(&layer.ws, value);
        ema.update().unwrap();
    }
    let checkpoint = Checkpoint::new().track("model", Variables::of(&vs)).unwrap().track("ema", &ema).unwrap();
    let path = dir.path().join("averaged.safetensors");
    checkpoint.export_weights(&path, &WeightsExport::of(["ema"])).unwrap();
    // A model of the same code loads them as its weights.
    let (mut loaded, _, _) = model();
    loaded.load(&path).unwrap();
    let averages: Vec<_> = ema.averages().iter().map(|(name, average)| (name.clone(), bits(average))).collect();
    assert_eq!(all_bits(&loaded), averages);
    assert_ne!(all_bits(&loaded), all_bits(&vs));
    // And with another element type.
    checkpoint.export_weights(&path, &WeightsExport::of(["ema"]).dtype(Dtype::BF16).unwrap()).unwrap();
    let source = tch_checkpoint::interop::open(&path).unwrap();
    assert!(source.tensors().values().all(|spec| spec.dtype == Dtype::BF16));
    assert_eq!(source.tensors().len(), averages.len());
    // Not while they are swapped in.
    let refused = ema.with_averaged(|| checkpoint.export_weights(&path, &WeightsExport::of(["ema"]))).unwrap();
    assert!(refused.is_err());
}
