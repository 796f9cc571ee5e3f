//! Our optimizers against tch's: 100 steps of every configuration on the same model and data.
//!
//! `cargo test --test optim -- --nocapture` prints the largest differences;
//! `cargo test --release --test optim -- --ignored --nocapture` measures the time of a step.
#![cfg(feature = "torch")]

use std::time::Instant;
use tch::nn::{self, Module, OptimizerConfig, VarStore};
use tch::{Device, Kind, Tensor};
use tch_checkpoint::optim;

/// What both optimizers can do, by the same names.
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
    // It was trained, and what no gradient reached was left alone.
    let (a_vars, start_vars) = (a.vs.variables(), start.vs.variables());
    assert_ne!(a_vars["third.weight"], start_vars["third.weight"]);
    assert_eq!(a_vars["unused"], start_vars["unused"]);
    difference(&a.vs, &b.vs)
}

/// Compares every configuration in all scenarios: bit for bit without the fused kernels, nearly with them.
macro_rules! against_tch {
    ($test:ident, $($label:literal: $config:ident { $($field:ident: $value:expr),* }, $lr:literal;)*) => {
        #[test]
        #[allow(clippy::needless_update, reason = "some configurations name every option")]
        fn $test() {
            $(
                let ours = |vs: &VarStore| optim::$config { $($field: $value,)* ..Default::default() }.build(vs, $lr).unwrap();
                let theirs = |vs: &VarStore| nn::$config { $($field: $value,)* ..Default::default() }.build(vs, $lr).unwrap();
                // tch's RMSprop crashes when it gets a momentum after it began without one.
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
