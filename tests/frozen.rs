//! Frozen parameters: in a file of their own, which is linked; and left out where only what is trained is tracked.

use std::error::Error;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use tch::nn::{self, Module, ModuleT, VarStore};
use tch::{Device, Kind, Tensor};
use tch_checkpoint::map::NameMap;
use tch_checkpoint::{
    Checkpoint, CheckpointManager, CheckpointReader, Counter, RestoreOptions, Trainable, Variables, interop, optim,
    verify_checkpoint,
};

type Outcome = Result<(), Box<dyn Error>>;

/// An encoder whose first layer is frozen, with a batch norm, and a head that is trained.
struct Model {
    vs: VarStore,
    body: nn::Linear,
    norm: nn::BatchNorm,
    head: nn::Linear,
}

impl Model {
    fn new() -> Model {
        let vs = VarStore::new(Device::Cpu);
        let encoder = vs.root() / "encoder";
        let body = nn::linear(&encoder / "body", 8, 64, Default::default());
        let norm = nn::batch_norm1d(&encoder / "norm", 64, Default::default());
        let head = nn::linear(&encoder / "head", 64, 2, Default::default());
        Model { vs, body, norm, head }
    }

    fn freeze(&self, freeze: bool) {
        for (name, tensor) in self.vs.variables() {
            if name.starts_with("encoder.body") {
                let _ = tensor.set_requires_grad(!freeze);
            }
        }
    }

    fn step(&self, optimizer: &mut optim::Optimizer) {
        let x = Tensor::randn([16, 8], (Kind::Float, Device::Cpu));
        let y = self.head.forward(&self.norm.forward_t(&self.body.forward(&x).relu(), true));
        optimizer.backward_step(&y.square().mean(Kind::Float));
    }

    fn is_as(&self, other: &Model) -> bool {
        let (own, others) = (self.vs.variables(), other.vs.variables());
        own.iter().all(|(name, tensor)| *tensor == others[name])
    }
}

fn tensors_of(path: &Path) -> Result<Vec<String>, tch::TchError> {
    let mut names: Vec<String> = Tensor::read_safetensors(path)?.into_iter().map(|(name, _)| name).collect();
    names.sort();
    Ok(names)
}

#[test]
fn the_frozen_parameters_of_a_component_are_in_a_second_file_that_is_linked() -> Outcome {
    let dir = tempfile::tempdir()?;
    let model = Model::new();
    model.freeze(true);
    let mut optimizer = optim::Adam::default().build(&model.vs, 1e-2)?;
    let step = Counter::new(0);
    let open = |model: &Model, keep: usize| {
        let checkpoint = Checkpoint::new().track("encoder", Variables::of(&model.vs).under("encoder"))?;
        CheckpointManager::builder(checkpoint.track("step", &step)?, dir.path()).max_to_keep(keep).open()
    };
    let mut manager = open(&model, 3)?;
    for _ in 0..3 {
        model.step(&mut optimizer);
        manager.save_at(step.increment())?;
    }
    let file = |step: u64, name: &str| dir.path().join(format!("ckpt-{step}/{name}.safetensors"));
    assert_eq!(tensors_of(&file(3, "encoder-frozen"))?, ["encoder.body.bias", "encoder.body.weight"]);
    // The running statistics require no gradient, and change.
    assert!(tensors_of(&file(3, "encoder"))?.contains(&"encoder.norm.running_mean".to_string()));
    let inode = |step, name| fs::metadata(file(step, name)).map(|found| found.ino());
    // The first two that are kept do not share it.
    assert_eq!(inode(2, "encoder-frozen")?, inode(3, "encoder-frozen")?);
    assert_ne!(inode(2, "encoder")?, inode(3, "encoder")?);
    assert!(verify_checkpoint(dir.path().join("ckpt-3")).is_intact());
    // The component alone, by tch: one file after the other.
    let mut alone = Model::new();
    for name in ["encoder", "encoder-frozen"] {
        let missing = alone.vs.load_partial(file(3, name))?;
        assert!(!missing.is_empty());
    }
    assert!(alone.is_as(&model));
    // Restored in one piece, also where nothing is frozen any more.
    manager.close()?;
    let again = Model::new();
    let mut manager = open(&again, 3)?;
    manager.restore_or_initialize_with(&RestoreOptions::new().trainable(Trainable::Live))?;
    assert!(again.is_as(&model));
    // Unfrozen: one file, and complete.
    let mut optimizer = optim::Adam::default().build(&again.vs, 1e-2)?;
    again.step(&mut optimizer);
    let path = manager.save_at(step.increment())?;
    assert!(!path.join("encoder-frozen.safetensors").exists());
    let reader = CheckpointReader::open(&path)?;
    assert_eq!(reader.keys().count(), again.vs.variables().len());
    Ok(())
}

/// Whether a restore reads a path or an open source makes no difference.
#[test]
fn saved_flags_of_any_source_are_compared() -> Outcome {
    let dir = tempfile::tempdir()?;
    let model = Model::new();
    model.freeze(true);
    let path = Checkpoint::new().track("model", &model.vs)?.write(dir.path().join("c"))?;
    let source = interop::open(&path)?;
    for map in [None, Some(NameMap::new().rename("model/encoder.body.*", "model/encoder.body.*"))] {
        let options = map.into_iter().fold(RestoreOptions::new(), RestoreOptions::map);
        let live = Model::new();
        let mut checkpoint = Checkpoint::new().track("model", &live.vs)?;
        let status = checkpoint.restore_source(&*source, &options)?;
        let differ: Vec<_> = status.report().trainable.iter().map(|one| (one.key.clone(), one.saved)).collect();
        let frozen = |name: &str| (format!("model/encoder.body.{name}"), false);
        assert_eq!(differ, [frozen("bias"), frozen("weight")]);
        assert!(live.body.ws.requires_grad());
        checkpoint.restore_source(&*source, &options.trainable(Trainable::Saved))?;
        assert!(!live.body.ws.requires_grad() && live.head.ws.requires_grad());
    }
    Ok(())
}

#[test]
fn freezing_between_saves_never_saves_old_values() -> Outcome {
    let dir = tempfile::tempdir()?;
    let model = Model::new();
    let mut optimizer = optim::Adam::default().build(&model.vs, 1e-2)?;
    let step = Counter::new(0);
    let checkpoint = Checkpoint::new().track("encoder", &model.vs)?.track("step", &step)?;
    let mut manager = CheckpointManager::builder(checkpoint, dir.path()).max_to_keep(None).open()?;
    for freeze in [false, true, true, false, false, true] {
        model.freeze(freeze);
        model.step(&mut optimizer);
        let path = manager.save_at(step.increment())?;
        let again = Model::new();
        Checkpoint::new()
            .track("encoder", &again.vs)?
            .read_with(&path, &RestoreOptions::new().trainable(Trainable::Live))?;
        assert!(again.is_as(&model), "step {}", step.get());
    }
    Ok(())
}

#[test]
fn only_what_is_trained_or_selected_is_tracked() -> Outcome {
    let dir = tempfile::tempdir()?;
    let model = Model::new();
    model.freeze(true);
    let keys = |variables: Variables| -> Result<Vec<String>, tch_checkpoint::Error> {
        let contents = Checkpoint::new().track("m", variables)?.contents()?;
        Ok(contents
            .entries()
            .iter()
            .map(|entry| entry.key.strip_prefix("m/").unwrap_or_default().to_string())
            .collect())
    };
    let encoder = || Variables::of(&model.vs).under("encoder");
    assert_eq!(keys(encoder().trainable())?, ["head.bias", "head.weight", "norm.bias", "norm.weight"]);
    assert_eq!(keys(encoder().include("head.*").include("body.*").exclude("*.bias"))?, ["body.weight", "head.weight"]);
    assert_eq!(keys(encoder().trainable().exclude("norm.*"))?, ["head.bias", "head.weight"]);
    let refusal = keys(encoder().include("tail.*")).unwrap_err().to_string();
    assert!(refusal.contains("none of the variables is selected by") && refusal.contains("tail.*"), "{refusal}");

    // A manager's plan follows what is frozen, and a restore leaves the rest.
    let checkpoint = Checkpoint::new().track("adapters", encoder().trainable())?;
    let mut manager = CheckpointManager::builder(checkpoint, dir.path()).open()?;
    let count = |path: &Path| CheckpointReader::open(path).map(|reader| reader.keys().count());
    assert_eq!(count(&manager.save_at(1)?)?, 4);
    model.freeze(false);
    assert_eq!(count(&manager.save_at(2)?)?, 6);
    model.freeze(true);
    assert_eq!(count(&manager.save_at(3)?)?, 4);
    let other = Model::new();
    other.freeze(true);
    let body = other.body.ws.copy();
    Checkpoint::new()
        .track("adapters", Variables::of(&other.vs).under("encoder").trainable())?
        .read(dir.path().join("ckpt-3"))?;
    assert_eq!(other.head.ws, model.head.ws);
    assert_eq!(other.body.ws, body);
    Ok(())
}

#[test]
fn a_damaged_checkpoint_leaves_nothing_in_a_frozen_variable_that_the_older_one_lacks() -> Outcome {
    for trainable in [Trainable::Live, Trainable::Saved] {
        let dir = tempfile::tempdir()?;
        let open = |model: &Model| {
            let adapters = Variables::of(&model.vs).under("encoder").trainable();
            let checkpoint = Checkpoint::new()
                .track("adapters", adapters)?
                .track("last", Tensor::ones([300], (Kind::Float, Device::Cpu)))?;
            CheckpointManager::builder(checkpoint, dir.path()).open()
        };
        let model = Model::new();
        model.freeze(true);
        let mut manager = open(&model)?;
        manager.save_at(1)?;
        model.freeze(false);
        let path = manager.save_at(2)?;
        manager.close()?;
        let file = path.join("last.safetensors");
        let mut bytes = fs::read(&file)?;
        *bytes.last_mut().ok_or("an empty file")? ^= 1;
        fs::write(&file, bytes)?;
        let other = Model::new();
        other.freeze(true);
        let before = other.body.ws.copy();
        let start = open(&other)?.restore_or_initialize_with(&RestoreOptions::new().trainable(trainable))?;
        assert_eq!(start.restored.and_then(|status| status.step()), Some(1));
        assert_eq!(other.body.ws, before);
    }
    Ok(())
}

#[test]
fn what_was_trained_is_restored_where_only_what_is_trained_is_tracked() -> Outcome {
    let dir = tempfile::tempdir()?;
    let model = Model::new();
    let open = |model: &Model| {
        let adapters = Variables::of(&model.vs).under("encoder").trainable();
        let checkpoint = Checkpoint::new().track("adapters", adapters)?;
        CheckpointManager::builder(checkpoint, dir.path()).open()
    };
    let mut manager = open(&model)?;
    manager.save_at(1)?;
    manager.close()?;
    // The resumed run freezes the body at first, and unfreezes it at a later step than the last one.
    for trainable in [Trainable::Live, Trainable::Saved] {
        let other = Model::new();
        other.freeze(true);
        let before = other.head.ws.copy();
        let mut manager = open(&other)?;
        let refusal = manager.restore_or_initialize().map(drop).unwrap_err().to_string();
        assert!(refusal.contains("body.weight") && refusal.contains("Trainable::Saved"), "{refusal}");
        assert_eq!(other.head.ws, before);
        manager.restore_or_initialize_with(&RestoreOptions::new().trainable(trainable))?;
        assert_eq!((&other.body.ws, &other.head.ws), (&model.body.ws, &model.head.ws));
        assert_eq!(other.body.ws.requires_grad(), trainable == Trainable::Saved);
    }
    // Under other names, or through a reader of any format, too.
    let path = dir.path().join("ckpt-1");
    for by_name in [true, false] {
        let other = Model::new();
        other.freeze(true);
        let mut checkpoint =
            Checkpoint::new().track("adapters", Variables::of(&other.vs).under("encoder").trainable())?;
        if by_name {
            checkpoint.restore_with(&path, &RestoreOptions::new().map(NameMap::new()))?.assert_consumed()?;
        } else {
            checkpoint.restore_source(&*interop::open(&path)?, &RestoreOptions::new())?;
        }
        assert_eq!((&other.body.ws, &other.head.ws), (&model.body.ws, &model.head.ws), "{by_name}");
    }
    // Back in the process that has frozen it since.
    let mut checkpoint = Checkpoint::new().track("adapters", Variables::of(&model.vs).under("encoder").trainable())?;
    let (before, good) = (model.body.ws.copy(), checkpoint.snapshot()?);
    model.freeze(true);
    let _ = tch::no_grad(|| model.body.ws.shallow_clone().fill_(7.0));
    checkpoint.rollback(&good)?;
    assert_eq!(model.body.ws, before);
    // Of a checkpoint of all variables, those that were frozen are left as they are.
    let mut all = Checkpoint::new().track("adapters", Variables::of(&model.vs).under("encoder"))?;
    let path = all.write(dir.path().join("all"))?;
    let _ = tch::no_grad(|| model.body.ws.shallow_clone().fill_(7.0));
    checkpoint.restore(path)?;
    assert!(model.body.ws != before);
    // Where everything is frozen now.
    let freeze_all = |model: &Model| {
        model.vs.variables().values().for_each(|tensor| drop(tensor.set_requires_grad(false)));
    };
    freeze_all(&model);
    checkpoint.rollback(&good)?;
    assert_eq!(model.body.ws, before);
    let evaluated = Model::new();
    freeze_all(&evaluated);
    let mut manager = open(&evaluated)?;
    manager.restore_or_initialize_with(&RestoreOptions::new().trainable(Trainable::Live))?;
    assert_eq!((&evaluated.body.ws, &evaluated.head.ws), (&model.body.ws, &model.head.ws));
    let path = manager.save_at(9)?;
    assert_eq!(CheckpointReader::open(&path)?.keys().count(), 0);
    assert!(verify_checkpoint(&path).is_intact());
    manager.restore(&path)?.assert_consumed()?;
    // A pattern that selects no parameter is still an error.
    let buffers = Variables::of(&model.vs).trainable().include("*.running_mean");
    assert!(Checkpoint::new().track("buffers", buffers).is_err());
    Ok(())
}
