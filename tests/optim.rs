//! Our optimizers against tch's: 100 steps of every configuration on the same model and data.
//!
//! `cargo test --test optim -- --nocapture` prints the largest differences;
//! `cargo test --release --test optim -- --ignored --nocapture` measures the time of a step.
#![cfg(feature = "torch")]

use std::time::Instant;
use tch::nn::{self, Module, OptimizerConfig, VarStore};
use tch::{Device, Kind, Tensor};
use tch_checkpoint::{Checkpoint, optim};

/// What both optimizers can do, under the same names.
trait Optimizer {
    fn zero_grad(&mut self);
    fn step(&mut self);
    fn backward_step(&mut self, loss: &Tensor);
    fn backward_step_clip(&mut self, loss: &Tensor, max: f64);
    fn backward_step_clip_norm(&mut self, loss: &Tensor, max: f64);
    fn set_lr(&mut self, lr: f64);
    fn set_lr_group(&mut self, group: usize, lr: f64);
    fn set_momentum(&mut self, m: f64);
    fn set_weight_decay(&mut self, weight_decay: f64);
    fn set_weight_decay_group(&mut self, group: usize, weight_decay: f64);
    fn trainable_variables(&self) -> Vec<Tensor>;
}

macro_rules! optimizer {
    ($($optimizer:ty)*) => { $(
        impl Optimizer for $optimizer {
            fn zero_grad(&mut self) { self.zero_grad() }
            fn step(&mut self) { self.step() }
            fn backward_step(&mut self, loss: &Tensor) { self.backward_step(loss) }
            fn backward_step_clip(&mut self, loss: &Tensor, max: f64) { self.backward_step_clip(loss, max) }
            fn backward_step_clip_norm(&mut self, loss: &Tensor, max: f64) { self.backward_step_clip_norm(loss, max) }
            fn set_lr(&mut self, lr: f64) { self.set_lr(lr) }
            fn set_lr_group(&mut self, group: usize, lr: f64) { self.set_lr_group(group, lr) }
            fn set_momentum(&mut self, m: f64) { self.set_momentum(m) }
            fn set_weight_decay(&mut self, weight_decay: f64) { self.set_weight_decay(weight_decay) }
            fn set_weight_decay_group(&mut self, group: usize, weight_decay: f64) {
                self.set_weight_decay_group(group, weight_decay)
            }
            fn trainable_variables(&self) -> Vec<Tensor> { self.trainable_variables() }
        }
    )* };
}

optimizer! { nn::Optimizer optim::Optimizer }

/// Numbers that look random and are the same everywhere.
fn numbers(shape: &[i64], seed: f64) -> Tensor {
    let count: i64 = shape.iter().product();
    ((Tensor::arange(count, (Kind::Double, Device::Cpu)) + seed) * 12.9898).sin().to_kind(Kind::Float).reshape(shape)
}

struct Model {
    vs: VarStore,
    layers: Vec<nn::Linear>,
}

impl Model {
    fn new(kind: Kind) -> Model {
        let mut vs = VarStore::new(Device::Cpu);
        let root = vs.root();
        let layers = vec![
            nn::linear(&root / "first", 7, 33, Default::default()),
            nn::linear((&root / "second").set_group(1), 33, 17, Default::default()),
            nn::linear((&root / "third").set_group(1), 17, 3, Default::default()),
        ];
        // Trainable, but no gradient ever reaches it.
        let _ = root.ones("unused", &[3]);
        vs.set_kind(kind);
        let mut model = Model { vs, layers };
        model.initialize();
        model
    }

    fn initialize(&mut self) {
        let mut variables: Vec<_> = self.vs.variables().into_iter().collect();
        variables.sort_by(|a, b| a.0.cmp(&b.0));
        for (i, (_, mut tensor)) in variables.into_iter().enumerate() {
            let values = numbers(&tensor.size(), i as f64) * 0.3;
            tch::no_grad(|| tensor.copy_(&values));
        }
    }

    fn loss(&self, step: i64) -> Tensor {
        let kind = self.layers[0].ws.kind();
        let x = numbers(&[16, 7], step as f64 * 0.37).to_kind(kind);
        let y = numbers(&[16, 3], step as f64 * 0.11 + 5.0).to_kind(kind);
        let mut out = x;
        for layer in &self.layers {
            out = layer.forward(&out.tanh());
        }
        (out - y).square().mean(kind)
    }
}

/// The largest difference between two models' variables, relative to the largest element of each.
fn difference(a: &VarStore, b: &VarStore) -> f64 {
    let (a, b) = (a.variables(), b.variables());
    assert_eq!(a.len(), b.len());
    a.iter()
        .map(|(name, a)| {
            let (a, b) = (a.to_kind(Kind::Double), b[name].to_kind(Kind::Double));
            ((&a - &b).abs().max() / b.abs().max()).double_value(&[])
        })
        .fold(0.0, f64::max)
}

type Scenario = fn(&mut Model, &mut dyn Optimizer);

fn plain(model: &mut Model, optimizer: &mut dyn Optimizer) {
    for step in 0..100 {
        optimizer.backward_step(&model.loss(step));
    }
}

fn groups(model: &mut Model, optimizer: &mut dyn Optimizer) {
    for step in 0..100 {
        if step == 10 {
            optimizer.set_lr_group(1, 2e-4);
            optimizer.set_weight_decay_group(0, 0.01);
        }
        if step == 60 {
            optimizer.set_lr(5e-4);
            optimizer.set_weight_decay(0.002);
        }
        optimizer.backward_step(&model.loss(step));
    }
}

fn momentum_set(model: &mut Model, optimizer: &mut dyn Optimizer) {
    for step in 0..100 {
        if step == 40 {
            optimizer.set_momentum(0.8);
        }
        optimizer.backward_step(&model.loss(step));
    }
}

fn clipping(model: &mut Model, optimizer: &mut dyn Optimizer) {
    for step in 0..50 {
        optimizer.backward_step_clip(&(model.loss(step) * 10.0), 0.05);
    }
    for step in 50..100 {
        optimizer.backward_step_clip_norm(&(model.loss(step) * 10.0), 0.5);
    }
}

fn accumulated(model: &mut Model, optimizer: &mut dyn Optimizer) {
    for step in 0..100 {
        optimizer.zero_grad();
        model.loss(step).backward();
        model.loss(step + 1000).backward();
        optimizer.step();
    }
}

fn frozen(model: &mut Model, optimizer: &mut dyn Optimizer) {
    let set = |model: &Model, trained: bool| {
        let _ = model.layers[0].ws.set_requires_grad(trained);
        let _ = model.layers[1].bs.as_ref().unwrap().set_requires_grad(trained);
    };
    for step in 0..100 {
        match step {
            20 => set(model, false),
            70 => set(model, true),
            _ => (),
        }
        optimizer.backward_step(&model.loss(step));
    }
}

fn added_later(model: &mut Model, optimizer: &mut dyn Optimizer) {
    let before = optimizer.trainable_variables().len();
    for step in 0..100 {
        if step == 30 {
            let path = (model.vs.root() / "late").set_group(2);
            let late = nn::linear(path, 3, 3, Default::default());
            tch::no_grad(|| {
                late.ws.shallow_clone().copy_(&numbers(&[3, 3], 1.0));
                let _ = late.bs.as_ref().unwrap().shallow_clone().fill_(0.1);
            });
            model.layers.push(late);
        }
        optimizer.backward_step(&model.loss(step));
    }
    assert_eq!(optimizer.trainable_variables().len(), before + 2);
}

const SCENARIOS: [(&str, Scenario); 7] = [
    ("plain", plain),
    ("groups", groups),
    ("momentum set", momentum_set),
    ("clipping", clipping),
    ("accumulated", accumulated),
    ("frozen", frozen),
    ("added later", added_later),
];

/// Ours and tch's, trained alike; `difference` of the two models.
fn compare(
    scenario: Scenario,
    kind: Kind,
    fused: bool,
    ours: &dyn Fn(&VarStore) -> optim::Optimizer,
    theirs: &dyn Fn(&VarStore) -> nn::Optimizer,
) -> f64 {
    // Small tensors: more threads would wait for each other.
    tch::set_num_threads(1);
    let (mut a, mut b) = (Model::new(kind), Model::new(kind));
    let start = Model::new(kind);
    assert_eq!(difference(&a.vs, &b.vs), 0.0);
    let mut optimizer = ours(&a.vs);
    optimizer.set_fused(fused);
    scenario(&mut a, &mut optimizer);
    let mut optimizer = theirs(&b.vs);
    scenario(&mut b, &mut optimizer);
    // It was trained, and what no gradient reached did not change.
    let (a_vars, start_vars) = (a.vs.variables(), start.vs.variables());
    assert_ne!(a_vars["third.weight"], start_vars["third.weight"]);
    assert_eq!(a_vars["unused"], start_vars["unused"]);
    difference(&a.vs, &b.vs)
}

/// Compares every configuration in all scenarios: bit for bit without the fused kernels, approximately with them.
macro_rules! against_tch {
    ($test:ident, $($label:literal: $config:ident { $($field:ident: $value:expr),* }, $lr:literal;)*) => {
        #[test]
        #[allow(clippy::needless_update, reason = "some configurations name every option")]
        fn $test() {
            $(
                let ours = |vs: &VarStore| optim::$config { $($field: $value,)* ..Default::default() }.build(vs, $lr).unwrap();
                let theirs = |vs: &VarStore| nn::$config { $($field: $value,)* ..Default::default() }.build(vs, $lr).unwrap();
                // tch's RMSprop crashes when it gets a momentum after it started without one.
                let stuck = $label.starts_with("rmsprop") && !$label.contains("momentum");
                for (scenario, run) in SCENARIOS.into_iter().filter(|(name, _)| !(stuck && *name == "momentum set")) {
                    let plain = compare(run, Kind::Float, false, &ours, &theirs);
                    let fused = compare(run, Kind::Float, true, &ours, &theirs);
                    println!("{:<28} {scenario:<12}  without fused kernels {plain:.1e}, with them {fused:.1e}", $label);
                    assert_eq!(plain, 0.0, "{} {scenario}", $label);
                    assert!(fused < 3e-6, "{} {scenario}: {fused}", $label);
                }
                let double = compare(plain, Kind::Double, true, &ours, &theirs);
                println!("{:<28} double        with them {double:.1e}", $label);
                assert!(double < 1e-14, "{}: {double}", $label);
            )*
        }
    };
}

against_tch! { sgd,
    "sgd": Sgd {}, 0.05;
    "sgd weight decay": Sgd { wd: 0.01 }, 0.05;
    "sgd momentum": Sgd { momentum: 0.9 }, 0.01;
    "sgd momentum, dampening": Sgd { momentum: 0.9, dampening: 0.5 }, 0.01;
    "sgd nesterov, weight decay": Sgd { momentum: 0.9, nesterov: true, wd: 0.01 }, 0.01;
}

against_tch! { adam,
    "adam": Adam {}, 1e-3;
    "adam weight decay": Adam { wd: 0.01 }, 1e-3;
    "adam amsgrad": Adam { amsgrad: true }, 1e-3;
    "adam betas, eps": Adam { beta1: 0.8, beta2: 0.95, eps: 1e-6, wd: 0.001, amsgrad: true }, 1e-3;
}

against_tch! { adamw,
    "adamw": AdamW {}, 1e-3;
    "adamw no weight decay": AdamW { wd: 0.0 }, 1e-3;
    "adamw amsgrad": AdamW { amsgrad: true, wd: 0.1 }, 1e-3;
}

against_tch! { rms_prop,
    "rmsprop": RmsProp {}, 1e-3;
    "rmsprop weight decay": RmsProp { wd: 0.01 }, 1e-3;
    "rmsprop momentum": RmsProp { momentum: 0.9 }, 1e-4;
    "rmsprop centered": RmsProp { centered: true }, 1e-3;
    "rmsprop centered, momentum": RmsProp { centered: true, momentum: 0.9, wd: 0.01, alpha: 0.9 }, 1e-4;
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Milliseconds a step takes, on a model of these shapes with gradients in place.
fn time_steps(shapes: &[&[i64]], build: impl Fn(&VarStore) -> Box<dyn Optimizer>) -> f64 {
    let vs = VarStore::new(Device::Cpu);
    for (i, shape) in shapes.iter().enumerate() {
        let variable = vs.root().zeros(&format!("v{i}"), shape);
        (variable * numbers(shape, 1.0)).sum(Kind::Float).backward();
    }
    let mut optimizer = build(&vs);
    let mut times = Vec::new();
    for _ in 0..40 {
        let start = Instant::now();
        optimizer.step();
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    median(times.split_off(5))
}

#[test]
#[ignore = "a measurement"]
fn time_of_a_step() {
    let large: &[&[i64]] = &[&[2048, 2048], &[2048]];
    let small: Vec<&[i64]> = vec![&[16, 16]; 1000];
    for (label, shapes) in [("one 2048x2048 layer", large), ("1000 variables of 16x16", &small)] {
        type Build = Box<dyn Fn(&VarStore, bool) -> Box<dyn Optimizer>>;
        let pairs: [(&str, Build, Build); 4] = [
            (
                "sgd momentum",
                Box::new(|vs, fused| ours(optim::sgd(0.9, 0., 0., false).build(vs, 1e-3), fused)),
                Box::new(|vs, _| Box::new(nn::sgd(0.9, 0., 0., false).build(vs, 1e-3).unwrap())),
            ),
            (
                "adam",
                Box::new(|vs, fused| ours(optim::Adam::default().build(vs, 1e-3), fused)),
                Box::new(|vs, _| Box::new(nn::Adam::default().build(vs, 1e-3).unwrap())),
            ),
            (
                "adamw",
                Box::new(|vs, fused| ours(optim::AdamW::default().build(vs, 1e-3), fused)),
                Box::new(|vs, _| Box::new(nn::AdamW::default().build(vs, 1e-3).unwrap())),
            ),
            (
                "rmsprop",
                Box::new(|vs, fused| ours(optim::RmsProp::default().build(vs, 1e-3), fused)),
                Box::new(|vs, _| Box::new(nn::RmsProp::default().build(vs, 1e-3).unwrap())),
            ),
        ];
        for (name, our, their) in pairs {
            let fused = time_steps(shapes, |vs| our(vs, true));
            let plain = time_steps(shapes, |vs| our(vs, false));
            let tch = time_steps(shapes, |vs| their(vs, false));
            println!("{label}, {name}: ours {fused:.2} ms, ours without fused kernels {plain:.2} ms, tch {tch:.2} ms");
        }
    }
}

fn ours(optimizer: tch_checkpoint::Result<optim::Optimizer>, fused: bool) -> Box<dyn Optimizer> {
    let mut optimizer = optimizer.unwrap();
    optimizer.set_fused(fused);
    Box::new(optimizer)
}

// ------------------------------------------------------------------------------------------ saved and restored

mod saved {
    use super::{Device, Kind, Tensor, VarStore, optim};
    use proptest::prelude::*;
    use std::path::Path;
    use tch_checkpoint::{
        Checkpoint, CheckpointManager, CheckpointReader, Error, RestoreOptions, RestoreStatus, SkipReason, Trainable,
        Variables,
    };

    type Outcome = Result<(), Box<dyn std::error::Error>>;

    fn ones(vs: &VarStore, name: &str, count: i64) -> Tensor {
        let mut parts: Vec<&str> = name.split('.').collect();
        let last = parts.pop().unwrap();
        parts.into_iter().fold(vs.root(), |path, part| path / part).ones(last, &[count])
    }

    fn sum(tensors: &[&Tensor]) -> Tensor {
        tensors.iter().map(|tensor| tensor.square().sum(Kind::Float)).fold(Tensor::from(0f32), |a, b| a + b)
    }

    fn tracked(vs: &VarStore, optimizer: &optim::Optimizer) -> Checkpoint {
        Checkpoint::new().track("model", Variables::of(vs)).unwrap().track("optimizer", optimizer).unwrap()
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor.flatten(0, -1)).unwrap()
    }

    #[derive(Debug, Clone)]
    enum Change {
        Lr(f64),
        LrGroup(f64),
        Momentum(f64),
        MomentumGroup(f64),
        WeightDecay(f64),
        Step,
    }

    fn change() -> impl Strategy<Value = Change> {
        let number =
            prop_oneof![Just(0.0), Just(1.0), Just(-0.001), Just(0.9), -2.0..2.0f64, Just(1e-300), Just(1e300)];
        let number = || number.clone();
        prop_oneof![
            number().prop_map(Change::Lr),
            number().prop_map(Change::LrGroup),
            number().prop_map(Change::Momentum),
            number().prop_map(Change::MomentumGroup),
            number().prop_map(Change::WeightDecay),
            Just(Change::Step),
        ]
    }

    fn build(algorithm: u8, flag: bool, vs: &VarStore) -> optim::Optimizer {
        match algorithm {
            0 => optim::Sgd { momentum: 0.9, nesterov: flag, ..Default::default() }.build(vs, 0.01),
            1 => optim::Adam::default().amsgrad(flag).build(vs, 0.01),
            2 => optim::AdamW::default().amsgrad(flag).build(vs, 0.01),
            3 => optim::RmsProp { centered: flag, momentum: 0.5, ..Default::default() }.build(vs, 0.01),
            _ => optim::Sgd::default().build(vs, 0.01),
        }
        .unwrap()
    }

    fn two_groups() -> (VarStore, Tensor, Tensor) {
        let vs = VarStore::new(Device::Cpu);
        let (a, b) = (ones(&vs, "a", 3), vs.root().set_group(1).ones("b", &[2]));
        (vs, a, b)
    }

    /// Keys, with their values as text.
    type Texts = Vec<(String, String)>;

    /// What the optimizer saves.
    fn state(path: &Path) -> (Texts, Texts) {
        let reader = CheckpointReader::open(path).unwrap();
        let manifest = reader.manifest();
        let values = manifest.values.iter().map(|(key, value)| (key.clone(), value.to_string())).collect();
        let tensors = manifest.tensors.iter().map(|(key, record)| (key.clone(), record.digest.to_string())).collect();
        (values, tensors)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn whatever_is_saved_is_restored(algorithm in 0u8..5, flag: bool, changes in prop::collection::vec(change(), 0..8)) {
            let dir = tempfile::tempdir().unwrap();
            let (vs, a, b) = two_groups();
            let mut optimizer = build(algorithm, flag, &vs);
            for change in changes {
                match change {
                    Change::Lr(x) => optimizer.set_lr(x),
                    Change::LrGroup(x) => optimizer.set_lr_group(1, x),
                    Change::Momentum(x) => optimizer.set_momentum(x),
                    Change::MomentumGroup(x) => optimizer.set_momentum_group(1, x),
                    Change::WeightDecay(x) => optimizer.set_weight_decay(x),
                    Change::Step => optimizer.backward_step(&sum(&[&a, &b])),
                }
            }
            let path = tracked(&vs, &optimizer).write(dir.path().join("c")).unwrap();
            let (other, ..) = two_groups();
            let fresh = build(algorithm, flag, &other);
            tracked(&other, &fresh).restore(&path).unwrap().assert_consumed().unwrap();
            let again = tracked(&other, &fresh).write(dir.path().join("again")).unwrap();
            prop_assert_eq!(state(&path), state(&again));
        }
    }

    #[test]
    fn schedules_past_their_end_and_warm_ups_can_be_resumed() -> Outcome {
        let dir = tempfile::tempdir()?;
        type Build = fn(&VarStore) -> optim::Optimizer;
        type Set = fn(&mut optim::Optimizer);
        let cases: [(Build, Set); 4] = [
            (|vs| optim::sgd(0.9, 0.0, 0.0, true).build(vs, 0.1).unwrap(), |o| o.set_momentum(0.0)),
            (|vs| optim::Sgd::default().build(vs, 0.1).unwrap(), |o| o.set_lr(-0.001)),
            (|vs| optim::AdamW::default().build(vs, 0.1).unwrap(), |o| o.set_weight_decay(-0.1)),
            (|vs| optim::Adam::default().build(vs, 0.1).unwrap(), |o| o.set_momentum(1.0)),
        ];
        for (i, (build, set)) in cases.into_iter().enumerate() {
            let (vs, ..) = two_groups();
            let mut optimizer = build(&vs);
            set(&mut optimizer);
            let path = tracked(&vs, &optimizer).write(dir.path().join(format!("c{i}")))?;
            let (other, ..) = two_groups();
            tracked(&other, &build(&other)).restore(&path)?.assert_consumed()?;
        }
        Ok(())
    }

    fn refusal(result: Result<RestoreStatus, Error>) -> String {
        result.map(|_| ()).unwrap_err().to_string()
    }

    #[test]
    fn another_head_goes_on_with_its_optimizer() -> Outcome {
        let dir = tempfile::tempdir()?;
        let model = |classes| {
            let vs = VarStore::new(Device::Cpu);
            let (body, head) = (ones(&vs, "body.w", 4), ones(&vs, "head.w", classes));
            (vs, body, head)
        };
        let (vs, body, head) = model(4);
        let mut optimizer = optim::Adam::default().build(&vs, 0.1)?;
        for _ in 0..3 {
            optimizer.backward_step(&sum(&[&body, &head]));
        }
        let path = tracked(&vs, &optimizer).write(dir.path().join("c"))?;
        for stepped in [false, true] {
            let (vs, body, head) = model(7);
            let mut optimizer = optim::Adam::default().build(&vs, 0.1)?;
            if stepped {
                optimizer.backward_step(&sum(&[&body, &head]));
            }
            let mut checkpoint = tracked(&vs, &optimizer);
            let text = refusal(checkpoint.restore_with(&path, &RestoreOptions::new().allow_mismatch("model/head*")));
            assert!(text.contains("allow_mismatch(\"optimizer/state/head.w"), "{text}");
            let options = RestoreOptions::new().allow_mismatch("model/head*").allow_mismatch("optimizer/state/head.w*");
            let status = checkpoint.restore_with(&path, &options)?;
            assert!(status.report().skipped.iter().any(|s| s.key == "model/head.w"));
            assert_eq!(optimizer.state("body.w").unwrap()["step"].double_value(&[]), 3.0);
            // Its moments are of one step, and so is its count.
            let steps = optimizer.state("head.w").map(|slots| slots["step"].double_value(&[]));
            assert_eq!(steps, stepped.then_some(1.0));
            let skipped = |key: &str| status.report().skipped.iter().any(|skipped| skipped.key == key);
            assert_eq!(skipped("optimizer/state/head.w/step"), stepped);
            assert!(!status.report().matched.iter().any(|key| key.starts_with("optimizer/state/head.w")));
            let more = (vs.root() / "more").ones("w", &[2]);
            optimizer.backward_step(&sum(&[&body, &head, &more]));
            // What was made since is not made like the checkpoint when the component is tracked again.
            let before = optimizer.state("more.w").unwrap()["exp_avg"].copy();
            checkpoint.untrack("optimizer");
            checkpoint.track_mut("optimizer", &optimizer)?;
            assert_eq!(optimizer.state("more.w").map(|slots| values(&slots["exp_avg"])), Some(values(&before)));
            let again = checkpoint.write(dir.path().join(format!("again{stepped}")))?;
            checkpoint.restore(&again)?.assert_consumed()?;
        }
        Ok(())
    }

    #[test]
    fn another_optimizer_and_one_more_group_have_ways_that_work() -> Outcome {
        let dir = tempfile::tempdir()?;
        let (vs, a, b) = two_groups();
        let mut adam = optim::Adam::default().build(&vs, 0.1)?;
        adam.backward_step(&sum(&[&a, &b]));
        let path = tracked(&vs, &adam).write(dir.path().join("c"))?;

        let (other, ..) = two_groups();
        let sgd = optim::Sgd { momentum: 0.9, ..Default::default() }.build(&other, 0.25)?;
        let mut checkpoint = tracked(&other, &sgd);
        let text = refusal(checkpoint.restore(&path));
        assert!(text.contains("this one is SGD") && text.contains("skip(\"optimizer\")"), "{text}");
        let status = checkpoint.restore_with(&path, &RestoreOptions::new().skip("optimizer"))?;
        status.assert_consumed()?;
        assert!(matches!(&status.report().skipped[..], [one] if one.why == SkipReason::Requested));
        assert_eq!((sgd.lr(), sgd.steps(), values(&other.variables()["a"])), (0.25, 0, values(&a)));
        tracked(&other, &sgd).restore_with(&path, &RestoreOptions::new().allow_mismatch("optimizer/*"))?;
        assert_eq!(sgd.lr(), 0.25);
        // The parts of another optimizer's state that fit.
        let adamw = optim::AdamW::default().build(&other, 0.25)?;
        tracked(&other, &adamw).restore_with(&path, &RestoreOptions::new().allow_mismatch("optimizer/algorithm"))?;
        assert_eq!(adamw.state("a").unwrap()["step"].double_value(&[]), 1.0);

        // An additional group.
        let (third, ..) = two_groups();
        let _ = third.root().set_group(2).ones("c", &[2]);
        let mut adam = optim::Adam::default().build(&third, 0.5)?;
        adam.set_lr_group(2, 0.75);
        let mut checkpoint = tracked(&third, &adam);
        let allow = RestoreOptions::new().allow_missing("model/c");
        let text = refusal(checkpoint.restore_with(&path, &allow));
        assert!(text.contains("2 parameter groups, the optimizer 3"), "{text}");
        assert!(text.contains("allow_mismatch(\"optimizer/param_groups\")"), "{text}");
        checkpoint.restore_with(&path, &allow.allow_mismatch("optimizer/param_groups"))?;
        assert_eq!((adam.lr_group(0), adam.lr_group(1), adam.lr_group(2)), (Some(0.1), Some(0.1), Some(0.75)));
        Ok(())
    }

    #[test]
    fn the_state_of_a_tied_weight_is_found_under_any_of_its_names() -> Outcome {
        let dir = tempfile::tempdir()?;
        let store = |names: &[&str]| {
            let vs = VarStore::new(Device::Cpu);
            let w = ones(&vs, names[0], 3);
            for name in &names[1..] {
                let _ = vs.root().add(name, w.shallow_clone(), true);
            }
            (vs, w)
        };
        let sets: [&[&str]; 4] = [&["decoder", "encoder"], &["encoder"], &["decoder"], &["encoder", "decoder", "z"]];
        for (i, before) in sets.iter().enumerate() {
            let (vs, w) = store(before);
            let mut optimizer = optim::Adam::default().build(&vs, 0.1)?;
            for _ in 0..5 {
                optimizer.backward_step(&sum(&[&w]));
            }
            let path = tracked(&vs, &optimizer).write(dir.path().join(format!("c{i}")))?;
            optimizer.backward_step(&sum(&[&w]));
            for after in sets.iter().filter(|after| after.iter().any(|name| before.contains(name))) {
                for stepped in [false, true] {
                    let (vs, other) = store(after);
                    let mut optimizer = optim::Adam::default().build(&vs, 0.1)?;
                    if stepped {
                        optimizer.backward_step(&sum(&[&other]));
                    }
                    let status = tracked(&vs, &optimizer)
                        .restore_with(&path, &RestoreOptions::new().allow_missing("model/*"))?;
                    let all = before.iter().all(|name| after.contains(name));
                    assert_eq!(status.report().unused.is_empty(), all, "{before:?} {after:?}");
                    optimizer.backward_step(&sum(&[&other]));
                    assert_eq!(values(&other), values(&w), "{before:?} {after:?} {stepped}");
                }
            }
            // Built after the restore.
            let vs = VarStore::new(Device::Cpu);
            let mut optimizer = optim::Adam::default().build(&vs, 0.1)?;
            let status = Checkpoint::new().track("optimizer", &optimizer)?.restore(&path)?;
            assert!(status.report().unused.iter().any(|key| key.contains("exp_avg_sq")));
            assert!(status.assert_consumed().is_err());
            let mut other = ones(&vs, before[0], 3);
            let saved: Vec<f32> = values(&{
                let (at, tensor) = store(before);
                Checkpoint::new().track("model", Variables::of(&at))?.restore(&path)?;
                tensor
            });
            tch::no_grad(|| other.copy_(&Tensor::from_slice(&saved)));
            optimizer.backward_step(&sum(&[&other]));
            assert_eq!(values(&other), values(&w));
        }
        Ok(())
    }

    #[test]
    fn slots_kept_for_a_variable_are_unused_until_it_comes() -> Outcome {
        let dir = tempfile::tempdir()?;
        let (vs, a, b) = two_groups();
        let mut optimizer = optim::Sgd { momentum: 0.9, ..Default::default() }.build(&vs, 0.1)?;
        optimizer.backward_step(&sum(&[&a, &b]));
        let path = Checkpoint::new().track("optimizer", &optimizer)?.write(dir.path().join("c"))?;
        let later = VarStore::new(Device::Cpu);
        let _ = ones(&later, "a", 3);
        let fresh = optim::Sgd { momentum: 0.9, ..Default::default() }.build(&later, 0.1)?;
        let status = Checkpoint::new().track("optimizer", &fresh)?.restore(&path)?;
        assert_eq!(status.report().unused, ["optimizer/state/b/momentum_buffer"]);
        assert!(status.assert_consumed().is_err());
        let _ = later.root().set_group(1).ones("b", &[2]);
        status.assert_consumed()?;
        Ok(())
    }

    #[test]
    fn slots_of_another_type_than_their_variable_come_back_as_they_were() -> Outcome {
        let dir = tempfile::tempdir()?;
        let bits = |vs: &VarStore| ["a", "b"].map(|name| values(&vs.variables()[name].to_kind(Kind::Float)));
        for algorithm in 0..4 {
            let at = |name: &str| dir.path().join(format!("{algorithm}-{name}"));
            let (mut vs, a, b) = two_groups();
            let mut optimizer = build(algorithm, true, &vs);
            for _ in 0..3 {
                optimizer.backward_step(&sum(&[&a, &b]));
            }
            let _ = b.set_requires_grad(false);
            vs.bfloat16();
            let converted = tracked(&vs, &optimizer).write(at("converted"))?;
            // The slots of `a` are converted, those of `b` are not.
            optimizer.backward_step(&sum(&[&a]));
            let trained = tracked(&vs, &optimizer).write(at("trained"))?;
            let unchanged = bits(&vs);

            for (i, path) in [&converted, &trained].into_iter().enumerate() {
                let (mut other, c, d) = two_groups();
                let _ = d.set_requires_grad(false);
                other.bfloat16();
                let mut fresh = build(algorithm, true, &other);
                let mut checkpoint = tracked(&other, &fresh);
                checkpoint.restore(path)?.assert_consumed()?;
                let again = checkpoint.write(at(&format!("again{i}")))?;
                assert_eq!(state(again.as_path().unwrap()), state(path.as_path().unwrap()), "{algorithm} {i}");
                if i == 0 {
                    fresh.backward_step(&sum(&[&c]));
                }
                assert_eq!(bits(&other), unchanged, "{algorithm} {i}");
                // Into slots that have the other type by now.
                let other_path = [&trained, &converted][i];
                checkpoint.restore(other_path)?.assert_consumed()?;
                let again = checkpoint.write(at(&format!("back{i}")))?;
                assert_eq!(state(again.as_path().unwrap()), state(other_path.as_path().unwrap()), "{algorithm} {i}");

                // Into variables that come later.
                let mut later = VarStore::new(Device::Cpu);
                let fresh = build(algorithm, true, &later);
                Checkpoint::new().track("optimizer", &fresh)?.restore(path)?;
                let _ = (ones(&later, "a", 3), later.root().set_group(1).ones("b", &[2]));
                later.bfloat16();
                Checkpoint::new().track("model", Variables::of(&later))?.restore(path)?;
                let again = tracked(&later, &fresh).write(at(&format!("later{i}")))?;
                assert_eq!(state(again.as_path().unwrap()), state(path.as_path().unwrap()), "{algorithm} {i}");
            }
        }
        Ok(())
    }

    #[test]
    fn what_belongs_to_a_variable_before_it_was_exchanged_is_not_saved() -> Outcome {
        let dir = tempfile::tempdir()?;
        let (vs, a, b) = two_groups();
        let mut optimizer = optim::Adam::default().build(&vs, 0.1)?;
        let mut manager = manager(&vs, &optimizer, dir.path(), 1);
        optimizer.backward_step(&sum(&[&a, &b]));
        manager.save_at(1)?;
        let old = a.detach().copy();
        a.shallow_clone().set_data(&Tensor::ones([5], (Kind::Float, Device::Cpu)));
        let text = manager.save_at(2).map(|_| ()).unwrap_err().to_string();
        assert!(text.contains("build a new optimizer") && text.contains("F32 [3]"), "{text}");
        a.shallow_clone().set_data(&old);
        manager.save_at(2)?;

        // A gradient keeps its type.
        let dir = tempfile::tempdir()?;
        let (mut vs, a, b) = two_groups();
        let mut optimizer = optim::Adam::default().build(&vs, 0.1)?;
        let mut checkpoint = tracked(&vs, &optimizer);
        sum(&[&a, &b]).backward();
        vs.half();
        let text = checkpoint.write(dir.path().join("half")).map(|_| ()).unwrap_err().to_string();
        assert!(text.contains("zero_grad") && text.contains("F32 [3]") && text.contains("F16 [3]"), "{text}");
        optimizer.zero_grad();
        checkpoint.write(dir.path().join("half"))?;
        Ok(())
    }

    /// A snapshot has nothing of a head that is built later; a restore before it has.
    #[test]
    fn a_rollback_keeps_what_waits_for_later_variables() -> Outcome {
        let dir = tempfile::tempdir()?;
        let part = |vs: &VarStore, name: &str| Variables::of(vs).under(name);
        let path = {
            let vs = VarStore::new(Device::Cpu);
            let (encoder, head) = (ones(&vs, "encoder.w", 4), ones(&vs, "head.w", 4));
            let mut optimizer = optim::Adam::default().build(&vs, 0.1)?;
            for _ in 0..3 {
                optimizer.backward_step(&sum(&[&encoder, &head]));
            }
            let checkpoint = Checkpoint::new().track("encoder", part(&vs, "encoder"))?;
            let mut checkpoint = checkpoint.track("head", part(&vs, "head"))?.track("optimizer", &optimizer)?;
            checkpoint.write(dir.path().join("c"))?
        };
        let run = |rolls_back| -> Result<_, Box<dyn std::error::Error>> {
            let vs = VarStore::new(Device::Cpu);
            let encoder = ones(&vs, "encoder.w", 4);
            let mut optimizer = optim::Adam::default().build(&vs, 0.1)?;
            let checkpoint = Checkpoint::new().track("encoder", part(&vs, "encoder"))?;
            let mut checkpoint = checkpoint.track("optimizer", &optimizer)?;
            let status = checkpoint.restore(&path)?;
            if rolls_back {
                let good = checkpoint.snapshot()?;
                optimizer.backward_step(&sum(&[&encoder]));
                checkpoint.rollback(&good)?;
                assert!(status.report().unused.iter().any(|key| key.starts_with("optimizer/state/head.w/")));
            }
            let head = ones(&vs, "head.w", 4);
            checkpoint.track_mut("head", part(&vs, "head"))?;
            status.assert_consumed()?;
            optimizer.backward_step(&sum(&[&encoder, &head]));
            let slots = optimizer.state("head.w").unwrap();
            Ok((values(&encoder), values(&head), values(&slots["exp_avg"]), slots["step"].double_value(&[])))
        };
        let expected = run(false)?;
        assert_eq!(expected.3, 4.0);
        assert_eq!(run(true)?, expected);
        Ok(())
    }

    #[test]
    fn an_exception_reaches_slots_that_wait_for_another_head() -> Outcome {
        let dir = tempfile::tempdir()?;
        let (vs, body, head) = {
            let vs = VarStore::new(Device::Cpu);
            let (body, head) = (ones(&vs, "body.w", 4), ones(&vs, "head.w", 4));
            (vs, body, head)
        };
        let mut optimizer = optim::Adam::default().build(&vs, 0.1)?;
        optimizer.backward_step(&sum(&[&body, &head]));
        let path = tracked(&vs, &optimizer).write(dir.path().join("c"))?;
        for (allowed, another) in [(true, false), (false, false), (false, true)] {
            let vs = VarStore::new(Device::Cpu);
            let body = ones(&vs, "body.w", 4);
            let mut optimizer = match another {
                true => optim::AdamW::default().build(&vs, 0.1)?,
                false => optim::Adam::default().build(&vs, 0.1)?,
            };
            let mut checkpoint = tracked(&vs, &optimizer);
            let options = RestoreOptions::new();
            let options = if another { options.allow_mismatch("optimizer/algorithm") } else { options };
            let begun = options.clone();
            let options = if allowed { options.allow_mismatch("optimizer/state/head*") } else { options };
            checkpoint.restore_with(&path, &options)?;
            let head = ones(&vs, "head.w", 7);
            if !allowed {
                let exception = "*/state/head.w/*";
                for _ in 0..2 {
                    let text = optimizer.f_backward_step(&sum(&[&body, &head])).unwrap_err().to_string();
                    assert!(text.starts_with("head.w: ") && text.contains("F32 [7]"), "{text}");
                    assert!(text.contains(&format!("allow_mismatch(\"{exception}\")")), "{text}");
                    optimizer.zero_grad();
                    let text = checkpoint.write(dir.path().join("bad")).map(|_| ()).unwrap_err().to_string();
                    assert!(text.contains(exception), "{text}");
                }
                let options = begun.allow_mismatch("model/head.w").allow_mismatch(exception);
                checkpoint.restore_with(&path, &options)?;
            }
            assert_eq!(optimizer.state("body.w").unwrap()["step"].double_value(&[]), 1.0);
            optimizer.f_backward_step(&sum(&[&body, &head]))?;
            assert_eq!(optimizer.state("head.w").unwrap()["step"].double_value(&[]), 1.0);
            let again = checkpoint.write(dir.path().join(format!("again{allowed}{another}")))?;
            checkpoint.restore(&again)?.assert_consumed()?;
        }
        Ok(())
    }

    #[test]
    fn slots_that_wait_follow_the_variable_to_its_device() -> Outcome {
        if !tch::Cuda::is_available() {
            println!("SKIPPED slots_that_wait_follow_the_variable_to_its_device: libtorch sees no CUDA device");
            return Ok(());
        }
        let dir = tempfile::tempdir()?;
        let (vs, a, b) = two_groups();
        let mut optimizer = optim::Adam::default().build(&vs, 0.1)?;
        optimizer.backward_step(&sum(&[&a, &b]));
        optimizer.zero_grad();
        sum(&[&a, &b]).backward();
        let path = tracked(&vs, &optimizer).write(dir.path().join("c"))?;
        let later = VarStore::new(Device::Cuda(0));
        let mut optimizer = optim::Adam::default().build(&later, 0.1)?;
        Checkpoint::new().track("optimizer", &optimizer)?.restore(&path)?;
        let (c, _) = (ones(&later, "a", 3), later.root().set_group(1).ones("b", &[2]));
        optimizer.step();
        assert_eq!((c.grad().device(), optimizer.steps()), (Device::Cuda(0), 2));
        Ok(())
    }

    #[test]
    fn a_huge_parameter_group_is_an_error_and_not_as_many_options() -> Outcome {
        let vs = VarStore::new(Device::Cpu);
        let _ = vs.root().set_group(50_000_000).ones("w", &[2]);
        let error = optim::Sgd::default().build(&vs, 0.1).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("50000000") && error.contains("9999"), "{error}");
        let vs = VarStore::new(Device::Cpu);
        let _ = vs.root().set_group(9_999).ones("w", &[2]);
        assert_eq!(optim::Sgd::default().build(&vs, 0.1)?.groups(), 10_000);
        let _ = vs.root().set_group(usize::MAX).ones("v", &[2]);
        Ok(())
    }

    #[test]
    fn a_step_that_fails_leaves_everything_as_it_was() -> Outcome {
        let options = (Kind::ComplexFloat, Device::Cpu);
        let odd: [fn((Kind, Device)) -> Tensor; 2] =
            [|options| Tensor::ones([2], options).conj(), |options| Tensor::ones([2], options).conj().imag()];
        for (i, make) in odd.into_iter().enumerate() {
            for fused in [true, false] {
                let vs = VarStore::new(Device::Cpu);
                let w = ones(&vs, "w", 3);
                let odd = vs.root().add("z", make(options), true);
                let mut optimizer = optim::Adam::default().build(&vs, 0.1)?;
                optimizer.set_fused(fused);
                (sum(&[&w]) + odd.abs().sum(Kind::Float)).backward();
                let error = optimizer.f_step().unwrap_err().to_string();
                assert!(error.starts_with("z: ") && error.contains("conjugate or negative"), "{i} {error}");
                assert_eq!((values(&w), optimizer.steps()), (vec![1.0; 3], 0));
                assert!(optimizer.state("w").is_none());
            }
        }
        Ok(())
    }

    // -------------------------------------------------------------------------------------- gradients

    fn manager(vs: &VarStore, optimizer: &optim::Optimizer, dir: &Path, every: u64) -> CheckpointManager {
        CheckpointManager::builder(tracked(vs, optimizer), dir).save_every(every).open().unwrap()
    }

    #[test]
    fn a_save_that_is_due_waits_for_the_step() -> Outcome {
        let dir = tempfile::tempdir()?;
        let (vs, a, b) = two_groups();
        let mut optimizer = optim::Adam::default().build(&vs, 0.1)?;
        let mut manager = manager(&vs, &optimizer, dir.path(), 1);
        let mut saved = Vec::new();
        for micro in 1..=12 {
            (sum(&[&a, &b]) / 4.0).backward();
            if micro % 4 == 0 {
                optimizer.step();
                if micro == 8 {
                    optimizer.zero_grad();
                }
                if micro == 12 {
                    // In place, as tch does it: there is no need to wait for zeros.
                    vs.trainable_variables().into_iter().for_each(|mut variable| variable.zero_grad());
                }
            }
            saved.extend(manager.save_if_due(micro)?.map(|_| micro));
            if micro == 4 {
                // Left over from the step.
                assert!(a.grad().defined());
            }
        }
        assert_eq!(saved, [4, 8, 12]);
        Ok(())
    }

    #[test]
    fn a_save_between_micro_batches_goes_on_exactly() -> Outcome {
        let train = |vs: &VarStore, optimizer: &mut optim::Optimizer, micro: std::ops::RangeInclusive<i64>| {
            let (a, b) = (vs.variables()["a"].shallow_clone(), vs.variables()["b"].shallow_clone());
            for micro in micro {
                (sum(&[&a, &b]) * micro as f64).backward();
                if micro % 4 == 0 {
                    optimizer.step();
                    optimizer.zero_grad();
                }
            }
        };
        let bits = |vs: &VarStore| ["a", "b"].map(|name| values(&vs.variables()[name]));
        for algorithm in 0..5 {
            for stop in [2, 6, 8] {
                let dir = tempfile::tempdir()?;
                let (vs, ..) = two_groups();
                let mut optimizer = build(algorithm, true, &vs);
                train(&vs, &mut optimizer, 1..=stop);
                let path = manager(&vs, &optimizer, dir.path(), 1).save_at(stop as u64)?;
                train(&vs, &mut optimizer, stop + 1..=12);

                let (other, ..) = two_groups();
                let mut resumed = build(algorithm, true, &other);
                let mut checkpoint = tracked(&other, &resumed);
                checkpoint.restore(&path)?.assert_consumed()?;
                train(&other, &mut resumed, stop + 1..=12);
                assert_eq!(bits(&other), bits(&vs), "{algorithm} {stop}");

                // Into an optimizer that is between two steps itself and was built after the restore.
                train(&other, &mut resumed, 1..=3);
                checkpoint.restore(&path)?.assert_consumed()?;
                train(&other, &mut resumed, stop + 1..=12);
                assert_eq!(bits(&other), bits(&vs), "{algorithm} {stop}, again");
                let later = VarStore::new(Device::Cpu);
                let mut resumed = build(algorithm, true, &later);
                Checkpoint::new().track("optimizer", &resumed)?.restore(&path)?;
                let _ = (ones(&later, "a", 3), later.root().set_group(1).ones("b", &[2]));
                Checkpoint::new().track("model", Variables::of(&later))?.restore(&path)?;
                // It takes them in at the next call; what was accumulated by then would be added in another order.
                assert_eq!(resumed.trainable_variables().len(), 2);
                train(&later, &mut resumed, stop + 1..=12);
                assert_eq!(bits(&later), bits(&vs), "{algorithm} {stop}, built later");
            }
        }
        Ok(())
    }

    #[test]
    fn gradients_that_another_optimizer_has_used_are_used() -> Outcome {
        let dir = tempfile::tempdir()?;
        let (vs, a, b) = two_groups();
        let adam = optim::Adam::default().build(&vs, 0.1)?;
        let mut sgd = optim::Sgd::default().build(&vs, 1e-3)?;
        let mut manager = manager(&vs, &adam, dir.path(), 1);
        for step in 1..=3 {
            sgd.backward_step(&sum(&[&a, &b]));
            let path = manager.save_if_due(step)?.ok_or("it waits")?;
            assert!(CheckpointReader::open(&path)?.manifest().tensors.keys().all(|key| !key.ends_with("/grad")));
        }
        Ok(())
    }

    #[test]
    fn gradients_that_are_never_used_do_not_end_saving() -> Outcome {
        // A generator's loss leaves gradients in the discriminator.
        let dir = tempfile::tempdir()?;
        let (vs, a, b) = two_groups();
        let mut optimizer = optim::Sgd::default().build(&vs, 1e-4)?;
        let mut manager = manager(&vs, &optimizer, dir.path(), 10);
        let mut saved: Vec<tch_checkpoint::Location> = Vec::new();
        for step in 1..=300 {
            optimizer.backward_step(&sum(&[&a, &b]));
            sum(&[&a]).backward();
            saved.extend(manager.save_if_due(step)?);
        }
        // The first one waits; gradients that are never used keep no other one from being saved.
        assert!(saved.len() >= 15, "{saved:?}");
        Ok(())
    }

    #[test]
    fn each_due_save_waits_for_the_step_anew() -> Outcome {
        let dir = tempfile::tempdir()?;
        let (vs, a, b) = two_groups();
        let mut optimizer = optim::Sgd::default().build(&vs, 1e-4)?;
        let mut manager = manager(&vs, &optimizer, dir.path(), 10);
        // A due save in the middle of an accumulation waits for the step after it, before which another one is taken.
        sum(&[&a, &b]).backward();
        assert_eq!(manager.save_if_due(10)?, None);
        optimizer.step();
        optimizer.zero_grad();
        manager.save_at(11)?;
        for _ in 0..200 {
            optimizer.backward_step(&sum(&[&a, &b]));
        }
        sum(&[&a, &b]).backward();
        assert_eq!(manager.save_if_due(21)?, None);
        optimizer.step();
        let path = manager.save_if_due(22)?.ok_or("it is due")?;
        assert!(!CheckpointReader::open(&path)?.keys().any(|key| key.ends_with("/grad")));

        // Another optimizer has made more steps, which are not those of this wait.
        let (others, c, _) = two_groups();
        let mut other = optim::Sgd::default().build(&others, 1e-4)?;
        (0..300).for_each(|_| other.backward_step(&sum(&[&c])));
        manager.checkpoint_mut().track_mut("other", &other)?;
        sum(&[&a, &b]).backward();
        assert_eq!(manager.save_if_due(40)?, None);
        optimizer.step();
        sum(&[&c]).backward();
        assert_eq!(manager.save_if_due(41)?, None);
        Ok(())
    }

    // -------------------------------------------------------------------------------------- requires_grad

    #[test]
    fn what_was_trainable_is_saved_and_a_difference_is_not_passed_over() -> Outcome {
        let dir = tempfile::tempdir()?;
        let (vs, a, _b) = two_groups();
        let frozen = |vs: &VarStore, name: &str| !vs.variables()[name].requires_grad();
        let optimizer = optim::Adam::default().build(&vs, 0.1)?;
        let _ = a.set_requires_grad(false);
        let mut saver = manager(&vs, &optimizer, dir.path(), 1);
        let path = saver.save_at(1)?;
        // The flag at the call, not that of the plan.
        let _ = a.set_requires_grad(true);
        let other_flag = saver.save_at(2)?;
        saver.close()?;
        let flag = |path: &Path| CheckpointReader::open(path).unwrap().manifest().tensors["model/a"].requires_grad;
        assert_eq!((flag(&path), flag(&other_flag)), (Some(false), Some(true)));
        std::fs::remove_dir_all(&other_flag)?;

        let (live, ..) = two_groups();
        let optimizer = optim::Adam::default().build(&live, 0.1)?;
        let status = tracked(&live, &optimizer).restore(&path)?;
        let report = status.assert_consumed()?.report();
        assert!(matches!(&report.trainable[..], [one] if one.key == "model/a" && !one.saved), "{report:?}");
        assert!(!frozen(&live, "a"));
        {
            let mut manager = manager(&live, &optimizer, dir.path(), 1);
            let error = manager.restore_or_initialize().map(|_| ()).unwrap_err();
            assert!(matches!(error, Error::Mismatch { .. }), "{error}");
            let text = error.to_string();
            assert!(
                text.contains("\"model/a\"") && text.contains("Trainable::Saved") && text.contains("Trainable::Live"),
                "{text}"
            );
            manager.restore_or_initialize_with(&RestoreOptions::new().trainable(Trainable::Live))?;
            assert!(!frozen(&live, "a"));
            manager.restore_or_initialize_with(&RestoreOptions::new().trainable(Trainable::Saved))?;
            assert!(frozen(&live, "a") && !frozen(&live, "b"));
            manager.restore_or_initialize()?;
        }
        let _ = live.variables()["a"].set_requires_grad(true);
        tracked(&live, &optimizer).restore_with(&path, &RestoreOptions::new().trainable(Trainable::Saved))?;
        assert!(frozen(&live, "a"));
        Ok(())
    }
}

/// docs/training.md: a restore sets the options back; what is set afterwards is what continues, and is saved.
#[test]
fn options_changed_by_hand_after_a_restore_stay_and_are_saved() {
    let dir = tempfile::tempdir().unwrap();
    let vs = VarStore::new(Device::Cpu);
    let w = vs.root().var("w", &[2], nn::Init::Const(1.0));
    let mut optimizer = optim::Sgd { wd: 0.5, ..optim::Sgd::default() }.build(&vs, 0.1).unwrap();
    let mut checkpoint = Checkpoint::new().track("optimizer", &optimizer).unwrap();
    let first = checkpoint.write(dir.path().join("first")).unwrap();
    optimizer.set_lr(7.0);
    checkpoint.restore(&first).unwrap();
    assert_eq!(optimizer.lr(), 0.1);
    optimizer.set_lr(0.25);
    optimizer.set_weight_decay(0.0);
    let second = checkpoint.write(dir.path().join("second")).unwrap();
    // One step with the new options: 1 - 0.25 * 4.
    optimizer.backward_step(&(&w * 4.0).sum(Kind::Float));
    assert_eq!(w.double_value(&[0]), 0.0);
    checkpoint.restore(&first).unwrap();
    checkpoint.restore(&second).unwrap();
    assert_eq!(optimizer.lr(), 0.25);
    optimizer.backward_step(&(&w * 4.0).sum(Kind::Float));
    assert_eq!(w.double_value(&[0]), -1.0);
}
