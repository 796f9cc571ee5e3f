//! Fine-tuning: a pre-trained encoder, frozen except for its last layer, with a new decoder for another task.
//! Checkpoints are complete, but the frozen layers are written only the first time; later checkpoints link their file.
//!
//! ```text
//! cargo run --release --example fine_tune -- checkpoints/fine_tune
//! ```

#[path = "common/arguments.rs"]
mod arguments;

use std::error::Error;
use std::path::Path;

use tch::nn::{self, Module, VarStore};
use tch::{Device, Kind, Tensor};
use tch_checkpoint::{
    Checkpoint, CheckpointManager, Counter, Location, RestoreOptions, SaveFigures, SavedCheckpoint, Variables,
    latest_checkpoint, optim,
};

const USAGE: &str = "\
Trains a classifier, then fine-tunes it for another task with its encoder frozen.

usage: fine_tune [DIR]

  DIR  where the checkpoints are  [checkpoints/fine_tune]";

/// An encoder of points in the plane, and a decoder with as many outputs as the task has classes.
struct Model {
    encoder: nn::Sequential,
    decoder: nn::Linear,
}

impl Model {
    fn new(root: &nn::Path<'_>, answers: i64) -> Model {
        let path = root / "encoder";
        let encoder = nn::seq()
            .add(nn::linear(&path / "in", 2, 512, Default::default()))
            .add_fn(|x| x.tanh())
            .add(nn::linear(&path / "middle", 512, 512, Default::default()))
            .add_fn(|x| x.tanh())
            .add(nn::linear(&path / "out", 512, 64, Default::default()))
            .add_fn(|x| x.tanh());
        Model { encoder, decoder: nn::linear(root / "decoder", 64, answers, Default::default()) }
    }

    fn forward(&self, points: &Tensor) -> Tensor {
        self.decoder.forward(&self.encoder.forward(points))
    }
}

/// Returns which of 4 rings a point is in: the task of the pre-training.
fn ring(points: &Tensor) -> Tensor {
    (points.square().sum_dim_intlist(1, false, Kind::Float).sqrt() * 2.0).clamp(0.0, 3.0).to_kind(Kind::Int64)
}

/// Returns whether a point is in an even ring: the new task.
fn even(points: &Tensor) -> Tensor {
    ring(points).remainder(2)
}

fn train(
    model: &Model,
    optimizer: &mut optim::Optimizer,
    task: fn(&Tensor) -> Tensor,
    steps: i64,
    mut after: impl FnMut() -> Result<(), Box<dyn Error>>,
) -> Result<(), Box<dyn Error>> {
    for _ in 0..steps {
        let points = Tensor::randn([128, 2], (Kind::Float, Device::Cpu));
        optimizer.backward_step(&model.forward(&points).cross_entropy_for_logits(&task(&points)));
        after()?;
    }
    Ok(())
}

fn accuracy(model: &Model, task: fn(&Tensor) -> Tensor) -> f64 {
    tch::no_grad(|| {
        let points = Tensor::randn([2000, 2], (Kind::Float, Device::Cpu));
        let right = model.forward(&points).argmax(1, false).eq_tensor(&task(&points));
        100.0 * right.to_kind(Kind::Float).mean(Kind::Float).double_value(&[])
    })
}

fn main() -> Result<(), Box<dyn Error>> {
    let (dir, _) = arguments::directory(USAGE, "checkpoints/fine_tune", 0);
    tch::manual_seed(1);
    let pretrained = pretrain(&dir)?;
    fine_tune(&dir, &pretrained)
}

/// Trains encoder and decoder on the first task and saves both, unless an earlier run has done so.
fn pretrain(dir: &Path) -> Result<Location, Box<dyn Error>> {
    if let Some(path) = latest_checkpoint(dir.join("pretrained"))? {
        println!("pre-trained by an earlier run: {}", path.display());
        return Ok(path);
    }
    let vs = VarStore::new(Device::Cpu);
    let model = Model::new(&vs.root(), 4);
    let mut optimizer = optim::Adam::default().build(&vs, 3e-3)?;
    let checkpoint = Checkpoint::new()
        .track("encoder", Variables::of(&vs).under("encoder"))?
        .track("decoder", Variables::of(&vs).under("decoder"))?;
    let mut manager = CheckpointManager::builder(checkpoint, dir.join("pretrained")).max_to_keep(1).open()?;
    train(&model, &mut optimizer, ring, 1500, || Ok(()))?;
    let path = manager.save()?;
    println!("pre-trained: {:.1} % of the rings, saved as {}", accuracy(&model, ring), path.display());
    Ok(path)
}

/// The encoder comes from the checkpoint; the decoder, which has another shape now, keeps its initial values.
fn fine_tune(dir: &Path, pretrained: &Path) -> Result<(), Box<dyn Error>> {
    let vs = VarStore::new(Device::Cpu);
    let model = Model::new(&vs.root(), 2);
    let step = Counter::new(0);
    let mut checkpoint = Checkpoint::new()
        .track("encoder", Variables::of(&vs).under("encoder"))?
        .track("decoder", Variables::of(&vs).under("decoder"))?
        .track("step", &step)?;

    // Without these exceptions, the restore fails and lists the names that differ.
    if let Err(refusal) = checkpoint.restore(pretrained) {
        println!("as it is: {refusal}");
    }
    let options = RestoreOptions::new().allow_mismatch("decoder/*").allow_missing("step");
    let report = checkpoint.restore_with(pretrained, &options)?.report();
    println!("from the pre-trained model: {}", report.matched.join(", "));

    for (name, tensor) in vs.variables() {
        let _ = tensor.set_requires_grad(name.starts_with("decoder") || name.starts_with("encoder.out"));
    }
    let mut optimizer = optim::Adam::default().build(&vs, 3e-3)?;
    checkpoint.track_mut("optimizer", &optimizer)?;
    let builder = CheckpointManager::builder(checkpoint, dir.join("tuned")).max_to_keep(1).save_every(250);
    let mut manager = builder.on_saved(report_bytes()).open()?;
    if manager.restore_or_initialize()?.restored.is_some() {
        println!("an earlier fine-tuning goes on from step {}", step.get());
    }
    println!("before: {:.1} % of the new task", accuracy(&model, even));
    train(&model, &mut optimizer, even, 1000, || {
        manager.save_if_due(step.increment())?;
        Ok(())
    })?;
    println!("after:  {:.1} % of the new task, saved as {:?}", accuracy(&model, even), manager.latest_checkpoint());
    manager.close()?;
    Ok(())
}

/// Prints after each save what it wrote, and what it linked because the last checkpoint has the same file.
fn report_bytes() -> impl FnMut(&SavedCheckpoint) -> std::io::Result<()> + Send {
    |saved| {
        let SaveFigures { bytes_written: written, bytes_linked: linked, .. } = saved.figures;
        println!("{}: {written} bytes written, {linked} bytes linked", saved.info.name);
        Ok(())
    }
}
