use super::super::{Adam, AdamW, Optimizer, OptimizerConfig, RmsProp, Sgd};
use super::*;
use crate::dtype::{Dtype, TensorSpec};
use crate::error::BoxError;
use crate::graph::{Adopt, Counter, LeafObject, Trackable, walk};
use crate::restore::RestoreOptions;
use std::collections::BTreeMap;
use tch::nn::VarStore;
use tch::{Device, Kind};

/// What a checkpoint holds of an optimizer.
#[derive(Debug, Clone, PartialEq)]
struct Checkpoint {
    values: BTreeMap<String, Value>,
    tensors: BTreeMap<String, (TensorSpec, Vec<u8>)>,
}

fn save(optimizer: &Optimizer) -> Checkpoint {
    try_save(optimizer).unwrap()
}

fn try_save(optimizer: &Optimizer) -> Result<Checkpoint, BoxError> {
    let mut checkpoint = Checkpoint { values: BTreeMap::new(), tensors: BTreeMap::new() };
    for leaf in walk(&[("o".to_string(), optimizer.node())])?.leaves {
        match leaf.object {
            LeafObject::Value(value) => {
                // Through text, as a manifest does it.
                let text = value.save()?.to_string();
                checkpoint.values.insert(leaf.key, serde_json::from_str(&text).unwrap());
            }
            LeafObject::Tensor(tensor) => {
                let bytes = tensor.bytes()?.as_slice().to_vec();
                checkpoint.tensors.insert(leaf.key, (tensor.spec()?, bytes));
            }
        }
    }
    Ok(checkpoint)
}

impl Checkpoint {
    /// Returns the slots of every variable, as a restore gives them to a collection.
    fn state(&self) -> BTreeMap<String, SavedTree> {
        let mut state: BTreeMap<String, SavedTree> = BTreeMap::new();
        for (key, (spec, _)) in &self.tensors {
            let path = crate::name::path(key).unwrap();
            let slot = SavedTree { tensor: Some(spec.clone()), ..SavedTree::default() };
            state.entry(path[2].clone()).or_default().children.insert(path[3].clone(), slot);
        }
        state
    }

    fn bytes(&self, variable: &str, slot: &str) -> &[u8] {
        &self.tensors[&crate::name::key(["o", "state", variable, slot])].1
    }
}

/// A collection, the children it loses, and what makes it have those it gets.
type Replaced = (Box<dyn Collection>, Vec<String>, Vec<Adopt>);

/// A restore that is checked and not yet applied.
struct Planned {
    values: Vec<ValueApply>,
    collections: Vec<Replaced>,
    writes: Vec<(Node, Vec<u8>)>,
}

fn plan(optimizer: &Optimizer, checkpoint: &Checkpoint) -> Result<Planned, BoxError> {
    let mut planned = Planned { values: Vec::new(), collections: Vec::new(), writes: Vec::new() };
    for leaf in walk(&[("o".to_string(), optimizer.node())])?.leaves {
        if let LeafObject::Value(value) = leaf.object {
            planned.values.push(value.load(&checkpoint.values[&leaf.key])?);
        }
    }
    let (all, saved) = (AllSlots(optimizer.shared().clone()), checkpoint.state());
    let (mut adopt, mut dropped) = (Vec::new(), Vec::new());
    let live: Vec<String> = all.children()?.into_iter().map(|child| child.name).collect();
    for variable in &live {
        let Some(saved) = saved.get(variable) else {
            assert!(all.may_lack(variable));
            dropped.push(variable.clone());
            continue;
        };
        let place = optimizer.shared().lock().place(variable).unwrap();
        let slots = VariableSlots { shared: optimizer.shared().clone(), place };
        let (mut adopt, mut dropped, mut live) = (Vec::new(), Vec::new(), Vec::new());
        for child in slots.children()? {
            if saved.children.contains_key(&child.name) {
                planned.writes.push((child.node, checkpoint.bytes(variable, &child.name).to_vec()));
                live.push(child.name);
            } else if slots.may_lack(&child.name) {
                dropped.push(child.name);
            } else {
                return Err(format!("{} is missing", child.name).into());
            }
        }
        for (name, saved) in saved.children.iter().filter(|(name, _)| !live.contains(name)) {
            let created = slots.create(name, saved)?.unwrap();
            planned.writes.push((created.node, checkpoint.bytes(variable, name).to_vec()));
            adopt.push(created.adopt);
        }
        planned.collections.push((Box::new(slots), dropped, adopt));
    }
    for (variable, saved) in saved.iter().filter(|(variable, _)| !live.contains(variable)) {
        let created = all.create(variable, saved)?.unwrap();
        for leaf in walk(&[("v".to_string(), created.node)]).unwrap().leaves {
            let LeafObject::Tensor(tensor) = leaf.object else { panic!("a slot is a tensor") };
            let bytes = checkpoint.bytes(variable, &leaf.name_in_file).to_vec();
            planned.writes.push((Node::tensor(Again(tensor)), bytes));
        }
        adopt.push(created.adopt);
    }
    if !adopt.is_empty() || !dropped.is_empty() {
        planned.collections.push((Box::new(all), dropped, adopt));
    }
    Ok(planned)
}

/// A leaf that was taken out of its node.
struct Again(std::sync::Arc<dyn crate::graph::TensorLeaf>);

impl crate::graph::TensorLeaf for Again {
    fn spec(&self) -> Result<TensorSpec, BoxError> {
        self.0.spec()
    }
    fn bytes(&self) -> Result<Box<dyn crate::graph::TensorBytes>, BoxError> {
        self.0.bytes()
    }
    fn target(&self) -> Result<Box<dyn crate::graph::TensorTarget>, BoxError> {
        self.0.target()
    }
}

fn apply(planned: Planned) {
    for (node, bytes) in planned.writes {
        let LeafObject::Tensor(leaf) = walk(&[("t".to_string(), node)]).unwrap().leaves.remove(0).object else {
            panic!("a tensor")
        };
        let mut target = leaf.target().unwrap();
        target.as_mut_slice().copy_from_slice(&bytes);
        target.finish().unwrap();
    }
    planned.values.into_iter().for_each(|apply| apply());
    for (collection, dropped, adopt) in planned.collections {
        collection.remove(&dropped);
        adopt.into_iter().for_each(|adopt| adopt());
    }
}

fn restore(optimizer: &Optimizer, checkpoint: &Checkpoint) -> Result<(), BoxError> {
    plan(optimizer, checkpoint).map(apply)
}

fn numbers(shape: &[i64], seed: f64) -> Tensor {
    let count: i64 = shape.iter().product();
    ((Tensor::arange(count, (Kind::Double, Device::Cpu)) + seed) * 12.9898).sin().to_kind(Kind::Float).reshape(shape)
}

/// Two variables in two groups, and one that gets no gradient.
struct Model {
    vs: VarStore,
}

impl Model {
    fn new() -> Model {
        let vs = VarStore::new(Device::Cpu);
        let _ = (vs.root() / "layer").zeros("w", &[5, 3]);
        let _ = (vs.root() / "layer").set_group(1).zeros("b", &[3]);
        let _ = vs.root().zeros("unused", &[2]);
        Model { vs }
    }

    fn get(&self, name: &str) -> Tensor {
        self.vs.variables()[name].shallow_clone()
    }

    fn loss(&self, step: i64) -> Tensor {
        let out = numbers(&[4, 5], step as f64).matmul(&self.get("layer.w")) + self.get("layer.b");
        (out - numbers(&[4, 3], step as f64 + 0.5)).square().mean(Kind::Float)
    }

    fn train(&self, optimizer: &mut Optimizer, steps: std::ops::Range<i64>) {
        for step in steps {
            optimizer.backward_step(&self.loss(step));
        }
    }

    fn bits(&self) -> BTreeMap<String, Vec<f32>> {
        let values = |tensor: Tensor| Vec::<f32>::try_from(tensor.flatten(0, -1)).unwrap();
        self.vs.variables().into_iter().map(|(name, tensor)| (name, values(tensor))).collect()
    }

    fn set(&self, bits: &BTreeMap<String, Vec<f32>>) {
        for (name, mut tensor) in self.vs.variables() {
            if let Some(values) = bits.get(&name) {
                let values = Tensor::from_slice(values).reshape(tensor.size());
                tch::no_grad(|| tensor.copy_(&values));
            }
        }
    }
}

type Build = Box<dyn Fn(&Model) -> Optimizer>;

fn build(config: impl OptimizerConfig + Copy + 'static) -> Build {
    Box::new(move |model| config.build(&model.vs, 0.01).unwrap())
}

/// Every algorithm with all its slots.
fn all() -> Vec<(&'static str, Build, &'static [&'static str])> {
    vec![
        ("SGD", build(Sgd { momentum: 0.9, ..Default::default() }), &["momentum_buffer"]),
        ("Adam", build(Adam::default().amsgrad(true)), &["exp_avg", "exp_avg_sq", "max_exp_avg_sq", "step"]),
        ("AdamW", build(AdamW::default()), &["exp_avg", "exp_avg_sq", "step"]),
        (
            "RMSprop",
            build(RmsProp { momentum: 0.9, centered: true, ..Default::default() }),
            &["grad_avg", "momentum_buffer", "square_avg", "step"],
        ),
    ]
}

#[test]
fn keys_are_variables_and_slots_by_pytorchs_names() {
    for (name, build, slots) in all() {
        let model = Model::new();
        let mut optimizer = build(&model);
        assert!(save(&optimizer).tensors.is_empty());
        model.train(&mut optimizer, 0..3);
        let checkpoint = save(&optimizer);
        let keys: Vec<&String> = checkpoint.tensors.keys().collect();
        let variables = ["layer.b", "layer.w"];
        let expected: Vec<String> =
            variables.iter().flat_map(|v| slots.iter().map(move |s| format!("o/state/{v}/{s}"))).collect();
        assert_eq!(keys, expected.iter().collect::<Vec<_>>());
        assert_eq!(checkpoint.values["o/algorithm"], name);
        assert_eq!(checkpoint.values["o/steps"], 3);
        assert_eq!(checkpoint.values["o/param_groups"].as_array().unwrap().len(), 2);
        assert_eq!(checkpoint.values["o/param_groups"][0]["lr"], 0.01);
        if slots.contains(&"step") {
            let (spec, bytes) = &checkpoint.tensors["o/state/layer.w/step"];
            assert_eq!((spec.to_string().as_str(), bytes.as_slice()), ("F32 []", &3f32.to_le_bytes()[..]));
        }
        assert_eq!(optimizer.state("layer.w").unwrap().keys().collect::<Vec<_>>(), slots);
        assert!(optimizer.state("unused").is_none() && optimizer.state("nobody").is_none());
    }
}

#[test]
fn a_restored_optimizer_goes_on_bit_for_bit() {
    for (name, build, _) in all() {
        let model = Model::new();
        let mut optimizer = build(&model);
        optimizer.set_lr_group(1, 0.02);
        model.train(&mut optimizer, 0..7);
        let (checkpoint, at_7) = (save(&optimizer), model.bits());
        model.train(&mut optimizer, 7..20);
        let (at_20, last) = (model.bits(), save(&optimizer));

        // Into a new one that has made no slots yet.
        let other = Model::new();
        let mut fresh = build(&other);
        other.set(&at_7);
        restore(&fresh, &checkpoint).unwrap();
        assert_eq!(save(&fresh), checkpoint, "{name}");
        assert_eq!((fresh.steps(), fresh.lr(), fresh.lr_group(1)), (7, 0.01, Some(0.02)));
        other.train(&mut fresh, 7..20);
        assert_eq!(other.bits(), at_20, "{name}");
        assert_eq!(save(&fresh), last, "{name}");

        // Back, in the one that has gone on.
        model.set(&at_7);
        let slots = optimizer.state("layer.w").unwrap();
        optimizer.set_lr(5.0);
        optimizer.set_weight_decay(0.5);
        restore(&optimizer, &checkpoint).unwrap();
        assert_eq!(save(&optimizer), checkpoint, "{name}");
        model.train(&mut optimizer, 7..20);
        assert_eq!(model.bits(), at_20, "{name}");
        // In place: the tensors are the ones that there were.
        for (slot, tensor) in slots {
            assert!(tensor.equal(&optimizer.state("layer.w").unwrap()[&slot]));
        }
    }
}

#[test]
fn slots_that_the_checkpoint_lacks_are_dropped() {
    for (name, build, _) in all() {
        let model = Model::new();
        let mut optimizer = build(&model);
        let start = save(&optimizer);
        model.train(&mut optimizer, 0..2);
        let two = save(&optimizer);
        (model.loss(2) + model.get("unused").sum(Kind::Float)).backward();
        optimizer.step();
        assert!(optimizer.state("unused").is_some());
        restore(&optimizer, &two).unwrap();
        assert!(optimizer.state("unused").is_none(), "{name}");
        assert_eq!(save(&optimizer), two, "{name}");
        restore(&optimizer, &start).unwrap();
        assert_eq!(save(&optimizer), start, "{name}");
    }
}

#[test]
fn a_checkpoint_without_the_optimizer_leaves_its_slots() {
    let model = Model::new();
    let mut optimizer = Adam::default().build(&model.vs, 0.1).unwrap();
    model.train(&mut optimizer, 0..2);
    let before = save(&optimizer);
    // A restore that allows the optimizer to be missing, after one that had it.
    restore(&optimizer, &before).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let count = Counter::new(1);
    let mut checkpoint = crate::Checkpoint::new().track("count", &count).unwrap();
    let without = checkpoint.write(dir.path().join("without")).unwrap();
    checkpoint.track_mut("optimizer", &optimizer).unwrap();
    let options = RestoreOptions::new().allow_missing("optimizer/*");
    checkpoint.restore_with(&without, &options).unwrap();
    assert_eq!(save(&optimizer), before);
    // One that was saved before the first step has no slots, and its options.
    let start = Adam::default().build(&Model::new().vs, 0.1).unwrap();
    let with = crate::Checkpoint::new().track("count", &count).and_then(|all| all.track("optimizer", &start));
    let with = with.unwrap().write(dir.path().join("with")).unwrap();
    checkpoint.restore(&with).unwrap().assert_consumed().unwrap();
    assert!(save(&optimizer).tensors.is_empty());
}

#[test]
fn its_generation_moves_with_what_is_saved() {
    let mut model = Model::new();
    let mut optimizer = Adam::default().build(&model.vs, 0.1).unwrap();
    let (all, optimizer_node) = (AllSlots(optimizer.shared().clone()), optimizer.node());
    // That of the slots together, and those of the tensors.
    let generations = || {
        let leaves = walk(&[("o".to_string(), optimizer_node.clone())]).unwrap().leaves.into_iter();
        let of_leaf = |leaf: crate::graph::Leaf| match leaf.object {
            LeafObject::Tensor(leaf) => leaf.generation(),
            LeafObject::Value(_) => None,
        };
        (all.generation().unwrap(), leaves.map(of_leaf).collect::<Vec<_>>())
    };
    let mut seen = vec![generations()];
    let mut is_new = || {
        let generation = generations();
        let new = !seen.contains(&generation);
        seen.push(generation);
        new
    };
    let nothing = save(&optimizer);
    model.train(&mut optimizer, 0..1);
    assert!(is_new());
    model.train(&mut optimizer, 1..3);
    assert!(!is_new());
    let checkpoint = save(&optimizer);
    restore(&optimizer, &checkpoint).unwrap();
    assert!(!is_new());
    // A handle to a slot sees it change its type.
    let slot = optimizer.state("layer.w").unwrap()["exp_avg"].shallow_clone();
    assert!(is_new());
    model.vs.double();
    assert!(!is_new());
    (model.get("layer.w").sum(Kind::Double)).backward();
    optimizer.step();
    assert!(is_new());
    assert_eq!(slot.kind(), Kind::Double);
    assert!(slot.equal(&optimizer.state("layer.w").unwrap()["exp_avg"]));
    let addresses = all.guarded().unwrap().addresses;
    assert!(addresses.contains(&(slot.data_ptr() as usize)) && addresses.len() == 3 + 6);
    restore(&optimizer, &nothing).unwrap();
    assert!(is_new());
}

#[test]
fn options_come_with_their_slots() {
    let model = Model::new();
    let mut with = Adam::default().amsgrad(true).build(&model.vs, 0.1).unwrap();
    let mut without = Adam::default().build(&model.vs, 0.1).unwrap();
    model.train(&mut with, 0..3);
    model.train(&mut without, 0..3);
    let (a, b) = (save(&with), save(&without));
    restore(&with, &b).unwrap();
    restore(&without, &a).unwrap();
    assert_eq!((save(&with), save(&without)), (b, a));

    // A momentum that starts in the middle.
    let mut sgd = Sgd::default().build(&model.vs, 0.1).unwrap();
    let mut rms = RmsProp::default().build(&model.vs, 0.1).unwrap();
    for optimizer in [&mut sgd, &mut rms] {
        model.train(optimizer, 0..2);
        let before = save(optimizer);
        optimizer.set_momentum(0.5);
        model.train(optimizer, 2..4);
        let after = save(optimizer);
        assert!(after.tensors.contains_key("o/state/layer.w/momentum_buffer"));
        restore(optimizer, &before).unwrap();
        assert_eq!(save(optimizer), before);
        restore(optimizer, &after).unwrap();
        assert_eq!(save(optimizer), after);
    }
}

#[test]
fn another_algorithm_is_refused_by_name() {
    let model = Model::new();
    let mut sgd = Sgd { momentum: 0.9, ..Default::default() }.build(&model.vs, 0.1).unwrap();
    model.train(&mut sgd, 0..1);
    let checkpoint = save(&sgd);
    let adam = Adam::default().build(&model.vs, 0.1).unwrap();
    let refusal = restore(&adam, &checkpoint).unwrap_err().to_string();
    assert!(refusal.contains("SGD") && refusal.contains("this one is Adam"), "{refusal}");
    let adamw = AdamW::default().build(&model.vs, 0.1).unwrap();
    assert!(restore(&adam, &save(&adamw)).is_err());
    let saved = checkpoint.state();
    let all = AllSlots(adam.shared().clone());
    let mut alien = saved["layer.w"].clone();
    assert!(all.create("layer.w", &alien).unwrap_err().to_string().contains("no slot `step`"));
    for (name, dtype, shape) in [("step", Dtype::F32, vec![]), ("exp_avg", Dtype::F32, vec![5, 3])] {
        alien.children.insert(
            name.to_string(),
            SavedTree { tensor: Some(TensorSpec::new(dtype, shape)), ..SavedTree::default() },
        );
    }
    alien.children.insert("exp_avg_sq".to_string(), alien.children["exp_avg"].clone());
    assert!(all.create("layer.w", &alien).unwrap_err().to_string().contains("Adam keeps no slot `momentum_buffer`"));
    alien.children.remove("momentum_buffer");
    assert!(all.create("layer.w", &alien).unwrap().is_some());
}

#[test]
fn slots_of_another_shape_or_type_are_refused() {
    let model = Model::new();
    let mut optimizer = Adam::default().build(&model.vs, 0.1).unwrap();
    model.train(&mut optimizer, 0..1);
    let good = save(&optimizer).state()["layer.w"].clone();
    let fresh = Adam::default().build(&model.vs, 0.1).unwrap();
    let all = AllSlots(fresh.shared().clone());
    for (slot, spec) in [
        ("exp_avg", TensorSpec::new(Dtype::F32, [3, 5])),
        ("exp_avg", TensorSpec::new(Dtype::C64, [5, 3])),
        ("exp_avg", TensorSpec::new(Dtype::F8E5m2, [5, 3])),
        ("step", TensorSpec::new(Dtype::F64, [])),
        ("step", TensorSpec::new(Dtype::F32, [1])),
    ] {
        let mut bad = good.clone();
        bad.children.get_mut(slot).unwrap().tensor = Some(spec.clone());
        let refusal = all.create("layer.w", &bad).unwrap_err().to_string();
        assert!(refusal.contains(slot) && refusal.contains(&spec.to_string()), "{refusal}");
    }
    let mut bad = good.clone();
    bad.children.get_mut("step").unwrap().tensor = None;
    assert!(all.create("layer.w", &bad).unwrap_err().to_string().contains("not a tensor"));
    // Of a variable that was converted since.
    let mut converted = good.clone();
    let spec = TensorSpec::new(Dtype::BF16, [5, 3]);
    converted.children.get_mut("exp_avg").unwrap().tensor = Some(spec.clone());
    let created = all.create("layer.w", &converted).unwrap().unwrap();
    for leaf in walk(&[("v".to_string(), created.node)]).unwrap().leaves {
        let LeafObject::Tensor(tensor) = leaf.object else { panic!("a slot is a tensor") };
        assert_eq!(tensor.spec().unwrap() == spec, leaf.key == "v/exp_avg");
    }
}

#[test]
fn slots_wait_for_variables_that_come_later() {
    for (name, build, _) in all() {
        let model = Model::new();
        let mut optimizer = build(&model);
        model.train(&mut optimizer, 0..5);
        let (checkpoint, at_5) = (save(&optimizer), model.bits());
        model.train(&mut optimizer, 5..9);

        let later = Model { vs: VarStore::new(Device::Cpu) };
        let mut fresh = build(&later);
        restore(&fresh, &checkpoint).unwrap();
        // What is not there is not saved.
        assert!(save(&fresh).tensors.is_empty());
        let _ = (later.vs.root() / "layer").zeros("w", &[5, 3]);
        let _ = (later.vs.root() / "layer").set_group(1).zeros("b", &[3]);
        later.set(&at_5);
        assert_eq!(save(&fresh), checkpoint, "{name}");
        later.train(&mut fresh, 5..9);
        assert_eq!(save(&fresh), save(&optimizer), "{name}");
        assert_eq!(later.bits()["layer.w"], model.bits()["layer.w"], "{name}");
    }
}

#[test]
fn waiting_slots_that_do_not_fit_are_refused() {
    let model = Model::new();
    let mut optimizer = Adam::default().build(&model.vs, 0.1).unwrap();
    model.train(&mut optimizer, 0..1);
    let checkpoint = save(&optimizer);
    let later = VarStore::new(Device::Cpu);
    let mut fresh = Adam::default().build(&later, 0.1).unwrap();
    restore(&fresh, &checkpoint).unwrap();
    let _ = (later.root() / "layer").zeros("w", &[7]);
    for _ in 0..2 {
        let refusal = fresh.f_step().unwrap_err().to_string();
        assert!(refusal.starts_with("layer.w: ") && refusal.contains("F32 [7]"), "{refusal}");
        assert!(try_save(&fresh).is_err());
    }
    // Another restore forgets what waits.
    let empty = Model::new();
    let nothing = save(&Adam::default().build(&empty.vs, 0.1).unwrap());
    let third = VarStore::new(Device::Cpu);
    let fresh = Adam::default().build(&third, 0.1).unwrap();
    restore(&fresh, &checkpoint).unwrap();
    restore(&fresh, &nothing).unwrap();
    let _ = (third.root() / "layer").zeros("w", &[7]);
    assert!(save(&fresh).tensors.is_empty());
}

#[test]
fn a_restore_that_is_not_applied_changes_nothing() {
    for (name, build, _) in all() {
        let model = Model::new();
        let mut optimizer = build(&model);
        model.train(&mut optimizer, 0..3);
        let checkpoint = save(&optimizer);
        let fresh = build(&model);
        let before = save(&fresh);
        for _ in 0..3 {
            drop(plan(&fresh, &checkpoint).unwrap());
            assert_eq!(save(&fresh), before, "{name}");
        }
        // Two at once: what was not filled is never used.
        let (unused, planned) = (plan(&fresh, &checkpoint).unwrap(), plan(&fresh, &checkpoint).unwrap());
        apply(planned);
        drop(unused);
        assert_eq!(save(&fresh), checkpoint, "{name}");
    }
}

#[test]
fn parameter_groups_must_be_known() {
    let one = VarStore::new(Device::Cpu);
    let two = Model::new();
    let of_one = save(&Sgd::default().build(&one, 0.5).unwrap());
    let mut optimizer = Sgd::default().build(&two.vs, 0.1).unwrap();
    let of_two = save(&optimizer);
    let refusal = restore(&optimizer, &of_one).unwrap_err().to_string();
    assert!(refusal.contains("1 parameter groups, the optimizer 2"), "{refusal}");
    // The other way round, they wait for variables to come.
    let mut single = Sgd::default().build(&one, 0.5).unwrap();
    restore(&single, &of_two).unwrap();
    assert_eq!((single.groups(), single.lr()), (2, 0.1));
    assert!(single.f_set_lr_group(2, 0.3).unwrap_err().to_string().contains("no parameter group 2; there are 2"));
    assert_eq!(optimizer.lr_group(2), None);
    optimizer.set_lr_group(1, f64::NAN);
    assert!(try_save(&optimizer).unwrap_err().to_string().contains("`lr` of SGD is NaN"));
    single.set_lr(0.25);
    assert_eq!((single.lr(), single.lr_group(1)), (0.25, Some(0.25)));
}

#[test]
fn state_without_a_name_to_rely_on_is_not_saved() {
    let vs = VarStore::new(Device::Cpu);
    let variables = [vs.root().zeros("w", &[2]), vs.root().zeros("w", &[2])];
    let mut optimizer = Adam::default().build(&vs, 0.1).unwrap();
    variables[1].sum(Kind::Float).backward();
    optimizer.step();
    assert!(try_save(&optimizer).unwrap_err().to_string().contains("may have been created as \"w\""));
    // What was saved for it waits until the program says that the name is its own, unless it was stepped before.
    let saved = {
        let vs = VarStore::new(Device::Cpu);
        let one = vs.root().zeros("w__1", &[2]);
        let mut optimizer = Adam::default().build(&vs, 0.1).unwrap();
        optimizer.backward_step(&one.sum(Kind::Float));
        save(&optimizer)
    };
    let other = VarStore::new(Device::Cpu);
    let _ = [other.root().zeros("w", &[2]), other.root().zeros("w", &[2])];
    let later = Adam::default().build(&other, 0.1).unwrap();
    restore(&later, &saved).unwrap();
    assert!(later.state("w__1").is_none());
    for (vs, optimizer) in [(&vs, &optimizer), (&other, &later)] {
        let _ = crate::Variables::of(vs).allow_numbered_names();
        assert!(try_save(optimizer).is_ok());
        assert_eq!(optimizer.state("w__1").unwrap()["step"].double_value(&[]), 1.0);
    }

    let vs = VarStore::new(Device::Cpu);
    let stray = vs.root().zeros("w", &[2]);
    vs.variables_.lock().unwrap().named_variables.clear();
    let mut optimizer = Adam::default().build(&vs, 0.1).unwrap();
    stray.sum(Kind::Float).backward();
    optimizer.step();
    assert!(try_save(&optimizer).unwrap_err().to_string().contains("has no name"));
}

#[test]
fn a_variable_under_two_names_is_stepped_once() {
    let vs = VarStore::new(Device::Cpu);
    let w = vs.root().zeros("z", &[2]);
    let _ = vs.root().add("a", w.shallow_clone(), true);
    let mut optimizer = Sgd::default().build(&vs, 1.0).unwrap();
    assert_eq!(optimizer.trainable_variables().len(), 1);
    optimizer.backward_step(&w.sum(Kind::Float));
    assert_eq!(w.double_value(&[0]), -1.0);
    optimizer.set_momentum(0.9);
    optimizer.backward_step(&w.sum(Kind::Float));
    assert_eq!(
        save(&optimizer).tensors.keys().collect::<Vec<_>>(),
        ["o/state/a/momentum_buffer", "o/state/z/momentum_buffer"]
    );
}
