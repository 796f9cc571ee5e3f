//! Gives each component its own manager and numbered checkpoints: the embedding, the encoder and the decoder of a model
//! are saved at different intervals, and restored separately.
//!
//! ```text
//! cargo run --release --example components -- checkpoints/components
//! ```

#[path = "common/arguments.rs"]
mod arguments;

use std::error::Error;
use std::path::Path;

use tch::nn::{self, Module, VarStore};
use tch::{Device, Kind, Tensor};
use tch_checkpoint::{Checkpoint, CheckpointManager, Variables, latest_checkpoint, optim};

const USAGE: &str = "\
Trains a small model and saves each of its components on its own.

usage: components [DIR]

  DIR  where the checkpoints are  [checkpoints/components]";

const PARTS: [&str; 3] = ["embedding", "encoder", "decoder"];

/// Names numbers: digits in, the same digits reversed out.
struct Model {
    embedding: nn::Embedding,
    encoder: nn::Linear,
    decoder: nn::Linear,
}

impl Model {
    fn new(root: &nn::Path<'_>) -> Model {
        Model {
            embedding: nn::embedding(root / "embedding", 10, 16, Default::default()),
            encoder: nn::linear(root / "encoder", 4 * 16, 64, Default::default()),
            decoder: nn::linear(root / "decoder", 64, 4 * 10, Default::default()),
        }
    }

    /// Logits `[batch, 4, 10]` of the digits `[batch, 4]`, reversed.
    fn forward(&self, digits: &Tensor) -> Tensor {
        let state = self.encoder.forward(&self.embedding.forward(digits).flatten(1, 2)).relu();
        self.decoder.forward(&state).view([-1, 4, 10])
    }

    fn loss(&self, digits: &Tensor) -> Tensor {
        self.forward(digits).view([-1, 10]).cross_entropy_for_logits(&digits.flip([1]).flatten(0, 1))
    }
}

fn digits(batch: i64) -> Tensor {
    Tensor::randint(10, [batch, 4], (Kind::Int64, Device::Cpu))
}

fn accuracy(model: &Model) -> f64 {
    tch::no_grad(|| {
        let digits = digits(1000);
        let right = model.forward(&digits).argmax(-1, false).eq_tensor(&digits.flip([1]));
        right.to_kind(Kind::Float).mean(Kind::Float).double_value(&[])
    })
}

fn main() -> Result<(), Box<dyn Error>> {
    let (dir, _) = arguments::directory(USAGE, "checkpoints/components", 0);
    tch::manual_seed(1);
    train(&dir)?;
    assemble(&dir)
}

/// One training run, three managers.
fn train(dir: &Path) -> Result<(), Box<dyn Error>> {
    let vs = VarStore::new(Device::Cpu);
    let model = Model::new(&vs.root());
    let mut optimizer = optim::Adam::default().build(&vs, 3e-3)?;

    let mut managers = Vec::new();
    for (part, save_every) in PARTS.into_iter().zip([300, 200, 100]) {
        let checkpoint = Checkpoint::new().track(part, Variables::of(&vs).under(part))?;
        let manager = CheckpointManager::builder(checkpoint, dir.join(part))
            .checkpoint_name(part)
            .max_to_keep(2)
            .save_every(save_every);
        managers.push(manager.open()?);
    }
    // An earlier run may have left checkpoints, whose numbers continue.
    let mut first = 0;
    for manager in &mut managers {
        let restored = manager.restore_or_initialize()?.restored.and_then(|restored| restored.step());
        first = first.max(restored.unwrap_or(0));
    }
    println!("{:5.1} % of the digits are right before step {first}", 100.0 * accuracy(&model));
    for step in first + 1..=first + 600 {
        let digits = digits(64);
        optimizer.backward_step(&model.loss(&digits));
        for manager in &mut managers {
            if let Some(path) = manager.save_if_due(step)? {
                println!("step {step}: saved {}", path.display());
            }
        }
    }
    println!("{:5.1} % of the digits are right after step {}", 100.0 * accuracy(&model), first + 600);
    managers.into_iter().try_for_each(CheckpointManager::close)?;
    Ok(())
}

/// Builds a new model from the latest checkpoints of its parts.
fn assemble(dir: &Path) -> Result<(), Box<dyn Error>> {
    let vs = VarStore::new(Device::Cpu);
    let model = Model::new(&vs.root());
    let mut whole = Checkpoint::new();
    PARTS.into_iter().try_for_each(|part| whole.track_mut(part, Variables::of(&vs).under(part)))?;
    for part in PARTS {
        let latest = latest_checkpoint(dir.join(part))?.ok_or("the training has just saved one")?;
        whole.get(part).ok_or("it is tracked")?.restore(&latest)?.assert_consumed()?;
        println!("{part} from {}", latest.display());
    }
    println!("{}", whole.contents()?);
    println!("{:5.1} % of the digits are right with the parts put together", 100.0 * accuracy(&model));
    Ok(())
}
