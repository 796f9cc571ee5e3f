//! `GradScaler`: its arithmetic on the CPU, and training in float16 where there is a GPU.

#[path = "common/recorded.rs"]
mod recorded;

use tch::nn::{self, VarStore};
use tch::{Device, Kind, Tensor, no_grad};
use tch_checkpoint::{Checkpoint, GradScaler, optim};

const FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);

fn bits(tensor: &Tensor) -> Vec<u32> {
    Vec::<f32>::try_from(tensor.detach().flatten(0, -1)).unwrap().into_iter().map(f32::to_bits).collect()
}

/// The same model every time. Its weights are not drawn: other tests draw from the same generator.
fn model() -> (VarStore, nn::Linear, optim::Optimizer) {
    let vs = VarStore::new(Device::Cpu);
    let layer = nn::linear(vs.root(), 4, 2, Default::default());
    no_grad(|| layer.ws.shallow_clone().copy_(&Tensor::arange(8, FLOAT).sin().reshape([2, 4])));
    no_grad(|| layer.bs.as_ref().unwrap().shallow_clone().copy_(&Tensor::arange(2, FLOAT).cos()));
    let optimizer = optim::Adam::default().build(&vs, 1e-2).unwrap();
    (vs, layer, optimizer)
}

fn loss(layer: &nn::Linear, step: i64) -> Tensor {
    let x = (Tensor::arange(12, FLOAT) * step).sin().reshape([3, 4]);
    x.apply(layer).square().mean(Kind::Float)
}

/// A loss whose gradients overflow once they are scaled.
fn exploding(layer: &nn::Linear) -> Tensor {
    layer.ws.sum(Kind::Float) * f64::from(f32::MAX / 2.0)
}

#[test]
fn a_power_of_two_changes_no_bit() {
    for clipped in [false, true] {
        let ((_a, plain, mut one), (_b, scaled, mut other)) = (model(), model());
        let mut scaler = GradScaler::new().growth_interval(3);
        for step in 1..=10 {
            one.zero_grad();
            loss(&plain, step).backward();
            other.zero_grad();
            scaler.scale(&loss(&scaled, step)).backward();
            if clipped {
                one.clip_grad_norm(0.01);
                assert!(scaler.unscale(&other).unwrap());
                assert!(scaler.unscale(&other).unwrap_err().to_string().contains("already"));
                other.clip_grad_norm(0.01);
            }
            one.step();
            assert!(scaler.step(&mut other).unwrap());
            scaler.update();
            assert_eq!(bits(&plain.ws), bits(&scaled.ws), "step {step}, clipped: {clipped}");
        }
        assert_eq!(scaler.factor(), 65536.0 * 8.0);
    }
}

#[test]
fn steps_are_skipped_and_the_scale_backs_off_and_grows() {
    let (_vs, layer, mut optimizer) = model();
    let mut scaler =
        GradScaler::new().initial_scale(1024.0).growth_interval(2).growth_factor(4.0).back_off_factor(0.25);
    let mut scales = Vec::new();
    for (step, explodes) in [false, true, false, false, false, true, true, false, false].into_iter().enumerate() {
        let before = bits(&layer.ws);
        let loss = if explodes { exploding(&layer) } else { loss(&layer, step as i64 + 1) };
        assert_eq!(scaler.backward_step(&mut optimizer, &loss).unwrap(), !explodes);
        assert_eq!(bits(&layer.ws) == before, explodes);
        assert_eq!(layer.ws.grad().defined(), !explodes);
        scales.push(scaler.factor());
    }
    assert_eq!(scales, [1024.0, 256.0, 256.0, 1024.0, 1024.0, 256.0, 64.0, 64.0, 256.0]);
    assert_eq!(optimizer.steps(), 6);
    // The largest finite scale stays.
    let mut scaler = GradScaler::new().initial_scale(f32::MAX).growth_interval(1);
    let zero = layer.ws.sum(Kind::Float) * 0.0;
    assert!(scaler.backward_step(&mut optimizer, &zero).unwrap());
    assert_eq!(scaler.factor(), f32::MAX);
}

/// As in record.py.
fn overflows(step: usize) -> bool {
    [1, 5, 6].contains(&(step % 7)) || (30..34).contains(&step)
}

#[test]
fn scales_and_weights_are_those_of_pytorch() {
    let powers = GradScaler::new().initial_scale(1024.0).growth_interval(3);
    let rounding = GradScaler::new().initial_scale(1000.0).growth_factor(1.7).back_off_factor(0.3).growth_interval(2);
    for (name, mut scaler) in [("grad_scaler", powers), ("grad_scaler_rounding", rounding)] {
        let expected = recorded::table(&recorded::directory(), name);
        let vs = VarStore::new(Device::Cpu);
        let weight = vs.root().var_copy("weight", &Tensor::from_slice(&recorded::values(1, 8, 0)));
        let mut optimizer = optim::Sgd::default().build(&vs, 0.1).unwrap();
        let mut largest = 0.0f32;
        for (step, expected) in expected.chunks_exact(9).enumerate() {
            let factor = if overflows(step) { f32::INFINITY } else { 1.0 };
            let factors: Vec<f32> = recorded::values(step, 8, 0).into_iter().map(|value| value * factor).collect();
            let loss = (&weight * Tensor::from_slice(&factors)).sum(Kind::Float);
            assert_eq!(scaler.backward_step(&mut optimizer, &loss).unwrap(), !overflows(step), "{name} {step}");
            assert_eq!(scaler.factor().to_bits(), expected[0].to_bits(), "{name}: the scale after step {step}");
            let found = Vec::<f32>::try_from(weight.detach()).unwrap();
            largest = largest.max(recorded::difference(&found, &expected[1..]));
        }
        println!("{name}: the largest difference of a weight is {largest:e}");
        assert!(expected.len() == 60 * 9 && largest <= recorded::LIMIT, "{name}: {largest:e}");
    }
}

#[test]
fn nan_is_not_finite_and_an_update_without_a_step_changes_nothing() {
    let (_vs, layer, mut optimizer) = model();
    let mut scaler = GradScaler::new();
    scaler.update();
    assert_eq!(scaler.factor(), 65536.0);
    let nan = layer.ws.sum(Kind::Float) * f64::NAN;
    assert!(!scaler.backward_step(&mut optimizer, &nan).unwrap());
    assert_eq!(scaler.factor(), 32768.0);
    let mut scaler = GradScaler::new().enabled(false);
    assert!(scaler.backward_step(&mut optimizer, &loss(&layer, 1)).unwrap());
    assert_eq!((scaler.factor(), optimizer.steps()), (1.0, 1));
}

#[test]
fn one_of_two_optimizers_is_enough_for_a_smaller_scale() {
    let ((_a, one, mut first), (_b, other, mut second)) = (model(), model());
    let mut scaler = GradScaler::new();
    scaler.scale(&exploding(&one)).backward();
    scaler.scale(&loss(&other, 1)).backward();
    assert!(!scaler.step(&mut first).unwrap());
    assert!(scaler.step(&mut second).unwrap());
    scaler.update();
    assert_eq!(scaler.factor(), 32768.0);
}

#[test]
fn it_resumes_in_the_middle_of_a_growth_interval() {
    let dir = tempfile::tempdir().unwrap();
    let (_vs, layer, mut optimizer) = model();
    let mut scaler = GradScaler::new().growth_interval(3);
    for step in 1..=5 {
        scaler.backward_step(&mut optimizer, &loss(&layer, step)).unwrap();
    }
    let path = Checkpoint::new().track("scaler", &scaler).unwrap().write(dir.path().join("five")).unwrap();
    let mut resumed = GradScaler::new().growth_interval(3);
    Checkpoint::new().track("scaler", &resumed).unwrap().restore(path).unwrap().assert_consumed().unwrap();
    assert_eq!(resumed.factor(), 65536.0 * 2.0);
    assert!(resumed.backward_step(&mut optimizer, &loss(&layer, 6)).unwrap());
    assert_eq!(resumed.factor(), 65536.0 * 4.0);
}

#[test]
fn a_restore_ends_the_step_in_progress() {
    for (name, all) in [("the optimizer alone", false), ("all", true)] {
        for clipped in [false, true] {
            let (vs, layer, mut optimizer) = model();
            let mut scaler = GradScaler::new();
            let mut checkpoint = Checkpoint::new().track("model", &vs).unwrap().track("optimizer", &optimizer).unwrap();
            if all {
                checkpoint.track_mut("scaler", &scaler).unwrap();
            }
            scaler.backward_step(&mut optimizer, &loss(&layer, 1)).unwrap();
            let good = checkpoint.snapshot().unwrap();
            scaler.backward_step(&mut optimizer, &loss(&layer, 2)).unwrap();
            let expected = bits(&layer.ws);

            checkpoint.rollback(&good).unwrap();
            optimizer.zero_grad();
            scaler.scale(&exploding(&layer)).backward();
            assert!(!scaler.unscale(&optimizer).unwrap());
            checkpoint.rollback(&good).unwrap();
            optimizer.zero_grad();
            scaler.scale(&loss(&layer, 2)).backward();
            if clipped {
                assert!(scaler.unscale(&optimizer).unwrap());
            }
            assert!(scaler.step(&mut optimizer).unwrap());
            scaler.update();
            assert_eq!(bits(&layer.ws), expected, "{name}, clipped: {clipped}");
        }
    }
    // A step that was made before the restore does not count.
    let (_vs, layer, mut optimizer) = model();
    let mut scaler = GradScaler::new();
    let mut checkpoint = Checkpoint::new().track("scaler", &scaler).unwrap();
    let good = checkpoint.snapshot().unwrap();
    scaler.scale(&exploding(&layer)).backward();
    assert!(!scaler.step(&mut optimizer).unwrap());
    checkpoint.rollback(&good).unwrap();
    scaler.update();
    assert_eq!(scaler.factor(), 65536.0);
}

#[test]
fn float16_on_a_gpu() {
    if !tch::Cuda::is_available() {
        println!("SKIPPED float16_on_a_gpu: libtorch sees no CUDA device");
        return;
    }
    tch::manual_seed(4);
    let vs = VarStore::new(Device::Cuda(0));
    let layer = nn::linear(vs.root(), 64, 64, Default::default());
    let mut optimizer = optim::Adam::default().build(&vs, 1e-3).unwrap();
    let mut scaler = GradScaler::new();
    let x = Tensor::randn([32, 64], (Kind::Float, Device::Cuda(0)));
    let loss = || tch::autocast(true, || (x.apply(&layer) - &x).square().mean(Kind::Float));
    let first = no_grad(|| loss().double_value(&[]));
    let steps = (0..200).filter(|_| scaler.backward_step(&mut optimizer, &loss()).unwrap()).count();
    assert!(steps > 180 && scaler.factor() >= 1.0);
    assert!(no_grad(|| loss().double_value(&[])) < first / 2.0);
}
