//! Steps of unusual variables: layouts, types, gradients. (tests/optim.rs compares the usual ones with tch.)

use super::*;
use crate::error::Error;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

fn numbers(shape: &[i64], kind: Kind) -> Tensor {
    let count: i64 = shape.iter().product();
    (Tensor::arange(count, (Kind::Double, Device::Cpu)) * 12.9898).sin().to_kind(kind).reshape(shape)
}

/// Steps a variable that starts as `start` five times. Returns its values.
fn five_steps<C: OptimizerConfig>(config: C, fused: bool, start: &Tensor, gradient: &Tensor) -> Tensor {
    let vs = VarStore::new(Device::Cpu);
    let mut copy = Tensor::empty_strided(start.size(), start.stride(), (start.kind(), Device::Cpu));
    copy.copy_(start);
    let w = vs.root().add("w", copy, true);
    let mut optimizer = config.build(&vs, 0.01).unwrap();
    optimizer.set_fused(fused);
    for step in 0..5 {
        let loss = (&w * gradient * (1.0 + f64::from(step))).sum(start.kind());
        optimizer.backward_step(&if loss.is_complex() { loss.real() } else { loss });
    }
    w.detach()
}

fn close(a: &Tensor, b: &Tensor, tolerance: f64) -> bool {
    (a.to_kind(Kind::Double) - b.to_kind(Kind::Double)).abs().max().double_value(&[]) <= tolerance
}

/// Every algorithm, with all options.
macro_rules! every {
    ($do:expr) => {
        $do(Sgd { momentum: 0.9, nesterov: true, wd: 0.1, ..Default::default() });
        $do(Adam::default().amsgrad(true).wd(0.1));
        $do(AdamW::default());
        $do(RmsProp { momentum: 0.9, centered: true, ..Default::default() });
    };
}

#[test]
fn any_layout_gives_the_same_values() {
    fn check<C: OptimizerConfig + Copy>(config: C) {
        let (plain, gradient) = (numbers(&[2, 3, 4, 5], Kind::Float), numbers(&[2, 3, 4, 5], Kind::Float) + 1.0);
        let expected = five_steps(config, false, &plain, &gradient);
        assert!(!close(&expected, &plain, 1e-3));
        let channels_last = Tensor::empty_strided([2, 3, 4, 5], [60, 1, 15, 3], (Kind::Float, Device::Cpu));
        let with_gaps = Tensor::zeros([2, 3, 4, 10], (Kind::Float, Device::Cpu)).slice(3, 0, 10, 2);
        for mut start in [plain.copy(), channels_last, with_gaps] {
            let strides = start.stride();
            start.copy_(&plain);
            for fused in [true, false] {
                let result = five_steps(config, fused, &start, &gradient);
                assert_eq!(result.stride(), strides);
                assert!(close(&result, &expected, 1e-6), "{strides:?} {fused}");
            }
        }
    }
    every!(check);
}

#[test]
fn low_precision_steps_as_well_as_the_type_allows() {
    fn check<C: OptimizerConfig + Copy>(config: C) {
        // Enough elements for the vector instructions; gradients whose squares half precision can hold.
        let (start, gradient) = (numbers(&[70], Kind::Double), numbers(&[70], Kind::Double) * 0.2 + 1.0);
        let exact = five_steps(config, false, &start, &gradient);
        for (kind, tolerance) in [(Kind::Half, 0.005), (Kind::BFloat16, 0.03)] {
            for fused in [true, false] {
                let result = five_steps(config, fused, &start.to_kind(kind), &gradient.to_kind(kind));
                assert!(close(&result, &exact, tolerance), "{kind:?} {fused}");
            }
        }
    }
    // An eps of 1e-8 is zero in half precision.
    check(Sgd { momentum: 0.9, ..Default::default() });
    check(AdamW::default().eps(1e-4));
    check(Adam::default().eps(1e-4).amsgrad(true));
}

#[test]
fn complex_numbers_are_stepped_as_pairs() {
    fn check<C: OptimizerConfig + Copy>(config: C) {
        let (start, gradient) = (numbers(&[6, 2], Kind::Float), numbers(&[6, 2], Kind::Float) + 0.5);
        let pairs = five_steps(config, false, &start, &gradient);
        // The gradient of Re(w · c) is the conjugate of c.
        let conjugate = gradient.view_as_complex().conj();
        let complex = five_steps(config, true, &start.view_as_complex(), &conjugate);
        assert!(close(&complex.view_as_real(), &pairs, 1e-6));
    }
    every!(check);
}

#[test]
fn empty_and_scalar_variables_are_stepped() {
    fn check<C: OptimizerConfig + Copy>(config: C) {
        for fused in [true, false] {
            let empty = Tensor::zeros([0, 3], (Kind::Float, Device::Cpu));
            assert_eq!(five_steps(config, fused, &empty, &empty.copy()).size(), [0, 3]);
            let scalar = Tensor::from(1f32);
            assert!(five_steps(config, fused, &scalar, &Tensor::from(2f32)).double_value(&[]) < 1.0);
        }
    }
    every!(check);
}

#[test]
fn sparse_gradients_are_refused_before_anything_changes() {
    let vs = VarStore::new(Device::Cpu);
    let dense = vs.root().ones("dense", &[2]);
    let table = vs.root().ones("table", &[4, 2]);
    let mut adam = Adam::default().build(&vs, 0.1).unwrap();
    let mut sgd = Sgd::default().build(&vs, 0.5).unwrap();
    let rows = Tensor::from_slice(&[1i64, 3]);
    let loss = || Tensor::embedding(&table, &rows, -1, false, true).sum(Kind::Float) + dense.sum(Kind::Float);
    let refusal = adam.f_backward_step(&loss()).unwrap_err();
    assert!(matches!(&refusal, Error::Object { name, .. } if name == "table"), "{refusal}");
    assert!(refusal.to_string().contains("sparse: false"), "{refusal}");
    assert_eq!(dense.double_value(&[0]), 1.0);
    assert!(adam.state("dense").is_none());
    assert_eq!(adam.steps(), 0);
    sgd.backward_step(&loss());
    assert_eq!((table.double_value(&[0, 0]), table.double_value(&[1, 0])), (1.0, 0.5));

    let complex = vs.root().add("complex", Tensor::ones([4, 2], (Kind::ComplexFloat, Device::Cpu)), true);
    let before = dense.double_value(&[0]);
    sgd.zero_grad();
    dense.sum(Kind::Float).backward();
    crate::torch::shim::set_gradient(&complex, Some(&complex.detach().to_sparse_sparse_dim(1))).unwrap();
    let refusal = sgd.f_step().unwrap_err().to_string();
    assert!(refusal.starts_with("complex: ") && refusal.contains("real numbers"), "{refusal}");
    assert_eq!((dense.double_value(&[0]), sgd.steps()), (before, 1));
}

#[test]
fn types_without_arithmetic_are_refused_before_anything_changes() {
    let vs = VarStore::new(Device::Cpu);
    let plain = vs.root().ones("plain", &[2]);
    let small = vs.root().add("small", Tensor::ones([2], (Kind::Float, Device::Cpu)).to_kind(Kind::Float8e4m3fn), true);
    assert!(small.requires_grad());
    let mut sgd = Sgd::default().build(&vs, 0.5).unwrap();
    plain.sum(Kind::Float).backward();
    crate::torch::shim::set_gradient(&small, Some(&small.detach().copy())).unwrap();
    let refusal = crate::GradScaler::new().unscale(&sgd).unwrap_err().to_string();
    assert!(refusal.contains("Float8_e4m3fn"), "{refusal}");
    assert_eq!(plain.grad().double_value(&[0]), 1.0);
    let refusal = sgd.f_step().unwrap_err().to_string();
    assert!(refusal.starts_with("small: ") && refusal.contains("Float8_e4m3fn"), "{refusal}");
    assert_eq!((plain.double_value(&[0]), sgd.steps()), (1.0, 0));
}

#[test]
fn after_half_a_step_only_a_restore_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let vs = VarStore::new(Device::Cpu);
    let plain = vs.root().ones("plain", &[2]);
    let memory = Tensor::ones([4], (Kind::Float, Device::Cpu));
    let odd = vs.root().add("odd", memory.narrow(0, 0, 3), true);
    let mut sgd = Sgd::default().build(&vs, 0.5).unwrap();
    sgd.set_fused(false);
    let mut checkpoint = crate::Checkpoint::new().track("model", &vs).unwrap().track("optimizer", &sgd).unwrap();
    let good = checkpoint.write(dir.path().join("good")).unwrap();
    // libtorch finds during the operation that the gradient overlaps the variable.
    plain.sum(Kind::Float).backward();
    crate::torch::shim::set_gradient(&odd, Some(&memory.narrow(0, 1, 3))).unwrap();
    for _ in 0..2 {
        let refusal = sgd.f_step().unwrap_err().to_string();
        assert!(refusal.starts_with("odd: ") && refusal.contains("restore a checkpoint"), "{refusal}");
        assert_eq!((plain.double_value(&[0]), sgd.steps()), (0.5, 0));
        sgd.zero_grad();
        let refusal = checkpoint.write(dir.path().join("bad")).unwrap_err().to_string();
        assert!(refusal.contains("restore a checkpoint"), "{refusal}");
        let mut model = crate::Checkpoint::new().track("model", &vs).unwrap();
        let refusal = model.write(dir.path().join("bad")).unwrap_err().to_string();
        assert!(refusal.contains("half-way"), "{refusal}");
    }
    checkpoint.restore(&good).unwrap().assert_consumed().unwrap();
    assert_eq!(plain.double_value(&[0]), 1.0);
    sgd.backward_step(&plain.sum(Kind::Float));
    assert_eq!((plain.double_value(&[0]), sgd.steps()), (0.5, 1));
    checkpoint.write(dir.path().join("next")).unwrap();
}

#[test]
fn slots_of_half_a_step_are_not_saved() {
    let dir = tempfile::tempdir().unwrap();
    let vs = VarStore::new(Device::Cpu);
    let plain = vs.root().ones("plain", &[2]);
    let memory = Tensor::ones([4], (Kind::Float, Device::Cpu));
    let odd = vs.root().set_group(1).add("odd", memory.narrow(0, 0, 3), true);
    let mut sgd = Sgd { momentum: 0.9, ..Default::default() }.build(&vs, 0.5).unwrap();
    sgd.set_fused(false);
    sgd.set_momentum_group(1, 0.0);
    sgd.backward_step(&plain.sum(Kind::Float));
    sgd.zero_grad();
    let mut checkpoint = crate::Checkpoint::new().track("model", &vs).unwrap().track("optimizer", &sgd).unwrap();
    let good = checkpoint.write(dir.path().join("good")).unwrap();
    // libtorch finds during the operation that the gradient overlaps the variable.
    plain.sum(Kind::Float).backward();
    crate::torch::shim::set_gradient(&odd, Some(&memory.narrow(0, 1, 3))).unwrap();
    sgd.f_step().unwrap_err();
    sgd.zero_grad();
    let after = 0.5 - 0.5 * 1.9;
    assert!((plain.double_value(&[0]) - after).abs() < 1e-6);
    // All values and variables come from the checkpoint, and the slots would stay as they are.
    let without = crate::RestoreOptions::new().skip("optimizer/state");
    let refusal = checkpoint.restore_with(&good, &without).unwrap_err().to_string();
    assert!(refusal.starts_with("optimizer/state/plain/") && refusal.contains("half-way"), "{refusal}");
    checkpoint.restore(&good).unwrap().assert_consumed().unwrap();
    checkpoint.write(dir.path().join("next")).unwrap();
    sgd.backward_step(&plain.sum(Kind::Float));
    assert!((plain.double_value(&[0]) - after).abs() < 1e-6);
}

#[test]
fn slots_follow_a_variable_to_another_type() {
    let mut vs = VarStore::new(Device::Cpu);
    let w = vs.root().ones("w", &[3]);
    let mut optimizer = Adam::default().build(&vs, 0.1).unwrap();
    optimizer.backward_step(&w.square().sum(Kind::Float));
    vs.double();
    optimizer.backward_step(&w.square().sum(Kind::Double));
    let state = optimizer.state("w").unwrap();
    assert_eq!((state["exp_avg"].kind(), state["step"].kind()), (Kind::Double, Kind::Float));
    assert_eq!(state["step"].double_value(&[]), 2.0);
    // 0.1 · 2 and then 0.9 · that + 0.1 · 1.8, as if it had always been double.
    assert!((state["exp_avg"].double_value(&[0]) - 0.36).abs() < 1e-6);
    w.shallow_clone().set_data(&Tensor::ones([4], (Kind::Double, Device::Cpu)));
    let refusal = optimizer.f_backward_step(&w.square().sum(Kind::Double)).unwrap_err().to_string();
    assert!(refusal.starts_with("w: ") && refusal.contains("has changed since"), "{refusal}");
}

#[test]
fn a_count_of_steps_that_is_no_longer_one_number_is_refused() {
    fn check<C: OptimizerConfig + Copy>(config: C) {
        for fused in [true, false] {
            let vs = VarStore::new(Device::Cpu);
            let w = vs.root().ones("w", &[3]);
            let mut optimizer = config.build(&vs, 0.1).unwrap();
            optimizer.set_fused(fused);
            optimizer.backward_step(&w.square().sum(Kind::Float));
            let Some(mut step) = optimizer.state("w").unwrap().remove("step") else { continue };
            let checkpoint = crate::Checkpoint::new().track("optimizer", &optimizer).unwrap();
            let before = w.detach().copy();
            let mut refused = || {
                let text = optimizer.f_backward_step(&w.square().sum(Kind::Float)).unwrap_err().to_string();
                assert!(text.starts_with("w: ") && text.contains("slot `step`"), "{text}");
                assert_eq!(w, before);
                optimizer.zero_grad();
                let text = checkpoint.snapshot().unwrap_err().to_string();
                assert!(text.contains("slot `step`"), "{text}");
            };
            for kind in [Kind::Int64, Kind::Half, Kind::Double] {
                step.set_data(&Tensor::ones([], (kind, Device::Cpu)));
                refused();
            }
            step.set_data(&Tensor::ones([], (Kind::Float, Device::Cpu)));
            let _ = step.resize_([0]);
            refused();
            step.set_data(&Tensor::from(3f32));
            optimizer.backward_step(&w.square().sum(Kind::Float));
            assert_eq!(optimizer.state("w").unwrap()["step"].double_value(&[]), 4.0);
            let _ = checkpoint.snapshot().unwrap();
        }
    }
    every!(check);
}

/// Small variables are otherwise stepped by several threads at once.
#[test]
fn variables_over_the_same_memory_are_stepped_one_after_the_other() {
    let run = |threads| {
        tch::set_num_threads(threads);
        let vs = VarStore::new(Device::Cpu);
        let a = vs.root().add("a", numbers(&[20_000], Kind::Float), true);
        let b = vs.root().add("b", a.detach(), true);
        let mut optimizer = Adam::default().build(&vs, 0.01).unwrap();
        for _ in 0..30 {
            optimizer.backward_step(&(&a * 2.0 + &b * &b).sum(Kind::Float));
        }
        a.detach()
    };
    let threads = tch::get_num_threads();
    let expected = run(1);
    for _ in 0..10 {
        assert_eq!(run(4), expected);
    }
    tch::set_num_threads(threads);
}

#[test]
fn a_step_is_a_change_that_autograd_sees() {
    fn check<C: OptimizerConfig + Copy>(config: C) {
        for fused in [true, false] {
            let vs = VarStore::new(Device::Cpu);
            let w = vs.root().ones("w", &[3]);
            let mut optimizer = config.build(&vs, 0.1).unwrap();
            optimizer.set_fused(fused);
            optimizer.backward_step(&w.square().sum(Kind::Float));
            let slots = optimizer.state("w").unwrap();
            let version = |tensor: &Tensor| crate::torch::shim::version(tensor);
            let before: Vec<_> = slots.values().chain([&w]).map(version).collect();
            let stale = w.square().sum(Kind::Float);
            optimizer.step();
            for (tensor, before) in slots.values().chain([&w]).zip(before) {
                assert!(version(tensor) > before, "{fused}");
            }
            assert!(stale.f_backward().is_err());
            assert!(w.requires_grad() && w.is_leaf());
        }
    }
    every!(check);
}

#[test]
fn gradients_are_clipped_and_cleared() {
    let vs = VarStore::new(Device::Cpu);
    let (a, b) = (vs.root().ones("a", &[2]), vs.root().ones("b", &[1]));
    let mut optimizer = Sgd::default().build(&vs, 1.0).unwrap();
    assert_eq!(optimizer.clip_grad_norm(1.0), 0.0);
    (&a * Tensor::from_slice(&[3f32, 0.0]) + &b * 2.0).sum(Kind::Float).backward();
    assert_eq!(optimizer.clip_grad_norm(100.0), 5.0);
    assert!((optimizer.clip_grad_norm(0.5) - 5.0).abs() < 1e-6);
    assert!((a.grad().double_value(&[0]) - 0.3).abs() < 1e-6 && (b.grad().double_value(&[0]) - 0.4).abs() < 1e-6);
    optimizer.clip_grad_value(0.35);
    assert!((b.grad().double_value(&[0]) - 0.35).abs() < 1e-6);
    optimizer.zero_grad();
    assert!(!a.grad().defined());
    optimizer.step();
    assert_eq!(a.double_value(&[0]), 1.0);
}

#[test]
fn options_out_of_range_do_not_build() {
    let vs = VarStore::new(Device::Cpu);
    let usage = |result: crate::Result<Optimizer>| match result {
        Err(Error::InvalidArgument(text)) => text,
        _ => panic!("a usage error"),
    };
    assert!(usage(Adam::default().build(&vs, -1.0)).contains("Adam cannot be built: the learning rate is -1"));
    assert!(usage(AdamW::default().beta2(1.0).build(&vs, 0.1)).contains("beta"));
    assert!(usage(sgd(0.0, 0.0, 0.0, true).build(&vs, 0.1)).contains("Nesterov"));
    assert!(usage(RmsProp { eps: f64::NAN, ..Default::default() }.build(&vs, 0.1)).contains("eps"));
    assert!(format!("{:?}", adam(0.9, 0.99, 0.0).build(&vs, 0.1).unwrap()).contains("Adam"));
}
