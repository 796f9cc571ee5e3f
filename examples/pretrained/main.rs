//! Starts from an encoder that was trained in PyTorch, with a new decoder, and exports the result to PyTorch.
//!
//! `encoder.pt` has an embedding and a GRU that learned in PyTorch to predict the next letter of a word
//! (`make_encoder.py`). Here they learn, with a new linear layer, how many syllables a word has.
//!
//! ```text
//! cargo run --release --example pretrained -- checkpoints/pretrained
//! ```

#[path = "../common/arguments.rs"]
mod arguments;

use std::error::Error;
use std::path::Path;

use tch::nn::{self, Module, RNN, VarStore};
use tch::{Device, Kind, Tensor};
use tch_checkpoint::interop::{self, pytorch};
use tch_checkpoint::map::NameMap;
use tch_checkpoint::{Checkpoint, CheckpointManager, Counter, RestoreOptions, StartOutcome, optim};

const USAGE: &str = "\
Takes over an encoder from PyTorch, trains it with a new decoder, and exports both for PyTorch.

usage: pretrained [DIR]

  DIR  where the checkpoints and model.pt are  [checkpoints/pretrained]";

const ENCODER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/pretrained/encoder.pt");
const DICTIONARY: &str = include_str!("../pronounce/data/cmudict-subset.dict");
/// 1, 2, 3, 4, and 5 or more syllables.
const CLASSES: i64 = 5;
const STEPS: u64 = 200;

/// The names are those of the modules in PyTorch.
struct Model {
    embedding: nn::Embedding,
    rnn: nn::GRU,
    decoder: nn::Linear,
}

impl Model {
    fn new(root: &nn::Path<'_>) -> Model {
        let encoder = root / "encoder";
        Model {
            embedding: nn::embedding(&encoder / "embedding", 27, 16, Default::default()),
            rnn: nn::gru(&encoder / "rnn", 16, 48, Default::default()),
            decoder: nn::linear(root / "decoder", 48, CLASSES, Default::default()),
        }
    }

    /// Maps `[words, letters]`, and the position of each word's last letter, `[words]`, to `[words, CLASSES]`.
    fn forward(&self, letters: &Tensor, last: &Tensor) -> Tensor {
        let (states, _) = self.rnn.seq(&self.embedding.forward(letters));
        let last = last.view([-1, 1, 1]).expand([-1, 1, states.size()[2]], false);
        self.decoder.forward(&states.gather(1, &last, false).squeeze_dim(1))
    }
}

/// Words, where they end, and how many syllables they have, less 1.
struct Words {
    letters: Tensor,
    last: Tensor,
    syllables: Tensor,
}

impl Words {
    /// Returns every twentieth word of the dictionary, or all others.
    fn load(held_out: bool) -> Words {
        let entries = DICTIONARY.lines().filter_map(|line| line.split_once(' ')).enumerate();
        let entries: Vec<(&str, &str)> =
            entries.filter(|(i, _)| (i % 20 == 19) == held_out).map(|(_, entry)| entry).collect();
        let longest = entries.iter().map(|(word, _)| word.len()).max().unwrap_or(0);
        let letters: Vec<i64> = entries
            .iter()
            .flat_map(|(word, _)| {
                let letters = word.bytes().map(|letter| i64::from(letter - b'a') + 1);
                letters.chain(std::iter::repeat(0)).take(longest)
            })
            .collect();
        let last: Vec<i64> = entries.iter().map(|(word, _)| word.len() as i64 - 1).collect();
        // The phoneme of a vowel ends with its stress, a digit.
        let vowels = |phonemes: &str| phonemes.bytes().filter(u8::is_ascii_digit).count() as i64;
        let syllables: Vec<i64> =
            entries.iter().map(|(_, phonemes)| (vowels(phonemes) - 1).clamp(0, CLASSES - 1)).collect();
        Words {
            letters: Tensor::from_slice(&letters).view([-1, longest as i64]),
            last: Tensor::from_slice(&last),
            syllables: Tensor::from_slice(&syllables),
        }
    }

    fn batch(&self, size: i64) -> Words {
        let chosen = Tensor::randint(self.last.size()[0], [size], (Kind::Int64, Device::Cpu));
        let of = |tensor: &Tensor| tensor.index_select(0, &chosen);
        Words { letters: of(&self.letters), last: of(&self.last), syllables: of(&self.syllables) }
    }
}

fn accuracy(model: &Model, words: &Words) -> f64 {
    tch::no_grad(|| {
        let right = model.forward(&words.letters, &words.last).argmax(1, false).eq_tensor(&words.syllables);
        100.0 * right.to_kind(Kind::Float).mean(Kind::Float).double_value(&[])
    })
}

fn main() -> Result<(), Box<dyn Error>> {
    let (dir, _) = arguments::directory(USAGE, "checkpoints/pretrained", 0);
    tch::manual_seed(1);
    let vs = VarStore::new(Device::Cpu);
    let model = Model::new(&vs.root());
    let mut optimizer = optim::Adam::default().build(&vs, 3e-3)?;
    let step = Counter::new(0);
    let checkpoint = Checkpoint::new().track("model", &vs)?.track("optimizer", &optimizer)?.track("step", &step)?;

    // If there is nothing to resume, the encoder comes from the file, under its names below `encoder`.
    let encoder = RestoreOptions::new()
        .map(NameMap::new().add_prefix("model/encoder."))
        .allow_missing("model/decoder.*")
        .skip("optimizer")
        .skip("step");
    let mut manager = CheckpointManager::builder(checkpoint, &dir)
        .max_to_keep(2)
        .save_every(50)
        .initialize_from(ENCODER, encoder)
        .open()?;
    told(&manager.restore_or_initialize()?, step.get());

    let (train, held_out) = (Words::load(false), Words::load(true));
    while step.get() < STEPS {
        let batch = train.batch(32);
        let loss = model.forward(&batch.letters, &batch.last).cross_entropy_for_logits(&batch.syllables);
        optimizer.backward_step(&loss);
        if manager.save_if_due(step.increment())?.is_some() {
            println!("step {:3}: {:.1} % of the held-out words", step.get(), accuracy(&model, &held_out));
        }
    }
    let newest = manager.latest_checkpoint().ok_or("nothing was saved")?;
    manager.close()?;
    export(&newest, &dir.join("model.pt"))
}

fn told(start: &StartOutcome, step: u64) {
    if let Some(encoder) = &start.initialized {
        println!("from PyTorch: {}", encoder.report().matched.join(", "));
    } else if start.restored.is_some() {
        println!("goes on from step {step}");
    }
}

/// Writes a `state_dict` with the names of the modules. Replaces an existing export.
fn export(checkpoint: &Path, path: &Path) -> Result<(), Box<dyn Error>> {
    let source = interop::open(checkpoint)?;
    pytorch::write(&*source, path, &pytorch::WriteOptions::default().only("model"))?;
    println!("for PyTorch: model.load_state_dict(torch.load({:?}, weights_only=True))", path.display().to_string());
    Ok(())
}
