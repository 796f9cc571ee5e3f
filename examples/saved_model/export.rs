//! Trains `pronounce` briefly and exports it: the complete model, and its parts separately. `run.rs` loads the result
//! without the model's code.
//!
//! ```text
//! cargo run --release --example saved_model -- checkpoints/saved_model
//! cargo run --release --example saved_model_run -- checkpoints/saved_model pronounce libtorch
//! ```

#[path = "../common/arguments.rs"]
mod arguments;
#[path = "../pronounce/model.rs"]
mod model;
#[path = "../pronounce/words.rs"]
mod words;

use std::error::Error;
use std::path::Path;

use tch::nn::{GRUState, Module, VarStore};
use tch::{Device, Tensor};
use tch_checkpoint::{Batches, Checkpoint, Counter, SavedModel, SignatureDef, Variables, optim};

use model::{Memory, Pronouncer};
use words::{Batch, END, START, Word, Words};

const USAGE: &str = "\
Trains `pronounce` for a little and exports it as saved models.

usage: saved_model [DIR]

  DIR  where the saved models are written  [checkpoints/saved_model]";

const STEPS: i64 = 150;
const HIDDEN: i64 = 64;

fn main() -> Result<(), Box<dyn Error>> {
    let (dir, _) = arguments::directory(USAGE, "checkpoints/saved_model", 0);
    tch::set_num_threads(1);
    tch::manual_seed(1);
    let words = Words::load();
    let vs = VarStore::new(Device::Cpu);
    let model = Pronouncer::new(&vs.root(), words.phoneme_count(), HIDDEN);
    let mut optimizer = optim::Adam::default().build(&vs, 3e-3)?;
    let step = Counter::new(0);

    let batches = Batches::new(words.train.len(), 64)?.shuffle(1);
    for positions in batches.take(STEPS as usize) {
        let loss = model.loss(&words.batch(&positions, Device::Cpu));
        optimizer.backward_step_clip_norm(&loss, 1.0);
        if step.increment().is_multiple_of(50) {
            println!("step {:3}: loss {:.3}", step.get(), loss.double_value(&[]));
        }
    }

    let mut checkpoint = Checkpoint::new()
        .track("embedding", Variables::of(&vs).under("embedding"))?
        .track("encoder", Variables::of(&vs).under("encoder"))?
        .track("decoder", Variables::of(&vs).under("decoder"))?
        .track("optimizer", &optimizer)?
        .track("step", &step)?;
    // The examples differ in the number of words, the length of the longest one, and the number of phonemes.
    let examples = [3, 5, 8].map(|n| Example::new(&model, &words, n));
    let phonemes: Vec<String> = (0..words.phoneme_count()).map(|phoneme| words.spell(&[phoneme])).collect();
    // The outputs of the model's own code, for comparison.
    let some: Vec<&Word> = words.held_out.iter().step_by(90).collect();
    let predicted = model.predict(&some)?;
    let pronounced: serde_json::Map<_, _> = some
        .iter()
        .zip(&predicted)
        .map(|(word, phonemes)| (word.spelling.to_string(), words.spell(phonemes).into()))
        .collect();
    let mut whole = SavedModel::export(dir.join("whole"), &vs)
        .checkpoint(&mut checkpoint)
        .step(step.get())
        .metadata("phonemes", phonemes)
        .metadata("start", START)
        .metadata("end", END)
        .metadata("pronounced", pronounced);
    for definition in signatures(&model, &examples) {
        whole = whole.signature(definition);
    }
    println!("exported {}", whole.write()?.display());
    export_parts(&dir, &vs, &model, &examples)
}

/// Returns the inputs of every part for one batch.
struct Example {
    batch: Batch,
    embedded: Tensor,
    memory: Memory,
    state: Tensor,
}

impl Example {
    /// Returns a batch of `n` words that no other example has.
    fn new(model: &Pronouncer, words: &Words, n: usize) -> Example {
        let mut words: Vec<&Word> = words.held_out.iter().skip(17 * n).step_by(23).take(n).collect();
        words.sort_by_key(|word| std::cmp::Reverse(word.letters.len()));
        let batch = Batch::new(&words, Device::Cpu);
        tch::no_grad(|| {
            let embedded = model.embedding.forward(&batch.letters);
            let (memory, GRUState(state)) = model.encode(&batch.letters, &batch.lengths, false);
            Example { batch, embedded, memory, state }
        })
    }
}

/// The complete model, which is given the true phonemes; and its two halves, for pronouncing a word phoneme by phoneme.
fn signatures<'a>(model: &'a Pronouncer, examples: &'a [Example]) -> [SignatureDef<'a>; 3] {
    let forward = SignatureDef::new("forward", |x| {
        let (memory, state) = model.encode(&x[0], &x[1], false);
        vec![model.decoder.forward(&x[2], &memory, &state, false).0]
    });
    let encode = SignatureDef::new("encode", |x| {
        let (memory, GRUState(state)) = model.encode(&x[0], &x[1], false);
        vec![memory.outputs, memory.padding, state]
    });
    let [forward, encode, decode_step] = [forward, encode, decoder(model)];
    let mut forward = forward.inputs(["letters", "lengths", "phonemes"]).outputs(["logits"]);
    let mut encode = encode.inputs(["letters", "lengths"]).outputs(["memory", "padding", "state"]);
    for Example { batch, .. } in examples {
        let [letters, lengths] = [&batch.letters, &batch.lengths].map(Tensor::shallow_clone);
        forward = forward.example([letters.copy(), lengths.copy(), batch.decoder_input.copy()]);
        encode = encode.example([letters, lengths]);
    }
    [forward, encode, with_examples(decode_step, examples)]
}

/// One step of the decoder, or several at once: maps phonemes to the logits of the next ones. Takes the outputs of
/// `encode`.
fn decoder(model: &Pronouncer) -> SignatureDef<'_> {
    SignatureDef::new("decode_step", |x| {
        let memory = Memory { outputs: x[1].shallow_clone(), padding: x[2].shallow_clone() };
        let (logits, GRUState(state)) = model.decoder.forward(&x[0], &memory, &GRUState(x[3].shallow_clone()), false);
        vec![logits, state]
    })
    .inputs(["phonemes", "memory", "padding", "state"])
    .outputs(["logits", "next_state"])
}

fn with_examples<'a>(decoder: SignatureDef<'a>, examples: &[Example]) -> SignatureDef<'a> {
    examples.iter().fold(decoder, |decoder, Example { batch, memory, state, .. }| {
        let inputs = [&batch.decoder_input, &memory.outputs, &memory.padding, state];
        decoder.example(inputs.map(Tensor::shallow_clone))
    })
}

/// Exports each component as a separate saved model with only its own variables.
fn export_parts(dir: &Path, vs: &VarStore, model: &Pronouncer, examples: &[Example]) -> Result<(), Box<dyn Error>> {
    let embed = SignatureDef::new("forward", |x| vec![model.embedding.forward(&x[0])]);
    let mut embed = embed.inputs(["letters"]).outputs(["embedded"]);
    let encode = SignatureDef::new("forward", |x| {
        let (outputs, state) = model.encoder.forward(&x[0], &x[1]);
        vec![outputs, state]
    });
    let mut encode = encode.inputs(["embedded", "lengths"]).outputs(["memory", "last"]);
    for Example { batch, embedded, .. } in examples {
        embed = embed.example([batch.letters.copy()]);
        encode = encode.example([embedded.copy(), batch.lengths.copy()]);
    }
    let decode = with_examples(decoder(model), examples);
    for (part, definition) in [("embedding", embed), ("encoder", encode), ("decoder", decode)] {
        let path = SavedModel::export(dir.join(part), vs).under(part).signature(definition).write()?;
        println!("exported {}", path.display());
    }
    Ok(())
}
