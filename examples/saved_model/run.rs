//! Pronounces words with a model whose code is not in this program: everything is in the saved model that `export.rs`
//! wrote.
//!
//! ```text
//! cargo run --release --example saved_model_run -- checkpoints/saved_model pronounce libtorch
//! ```

#[path = "../common/arguments.rs"]
mod arguments;

use std::error::Error;
use std::path::Path;

use tch::{Device, Tensor};
use tch_checkpoint::SavedModel;

const USAGE: &str = "\
Pronounces words with the saved models that the example `saved_model` wrote.

usage: saved_model_run [DIR [WORD]...]

  DIR   where the saved models are  [checkpoints/saved_model]
  WORD  a word to pronounce";

fn main() -> Result<(), Box<dyn Error>> {
    let (dir, spoken) = arguments::directory(USAGE, "checkpoints/saved_model", usize::MAX - 1);
    tch::set_num_threads(1);
    let model = SavedModel::load(dir.join("whole"), Device::Cpu)?;
    model.check(0.0)?;
    println!("{}: outputs equal to the original's, bit by bit", model.path().display());
    let pronounced = model.info().metadata.get("pronounced").and_then(|words| words.as_object()).ok_or("no words")?;
    for (word, expected) in pronounced {
        if expected != pronounce(&model, word)?.as_str() {
            return Err(format!("{word} is pronounced in another way than by the original").into());
        }
    }
    println!("{} words pronounced as by the original", pronounced.len());
    for word in &spoken {
        println!("{word}: {}", pronounce(&model, word)?);
    }
    put_together(&dir)
}

/// Greedy decoding: encodes the word once, then always takes the likeliest next phoneme.
fn pronounce(model: &SavedModel, word: &str) -> Result<String, Box<dyn Error>> {
    let letters: Vec<i64> =
        word.to_lowercase().bytes().filter(u8::is_ascii_lowercase).map(|letter| i64::from(letter - b'a') + 1).collect();
    if letters.is_empty() {
        return Err(format!("{word:?} has no letter from a to z").into());
    }
    let lengths = Tensor::from_slice(&[letters.len() as i64]);
    let encoded = model.run("encode", &[&Tensor::from_slice(&letters).unsqueeze(0), &lengths])?;
    let [memory, padding, state] = &encoded[..] else { return Err("`encode` should give three tensors".into()) };

    let metadata = &model.info().metadata;
    let number = |name: &str| metadata.get(name).and_then(|value| value.as_i64()).ok_or(format!("no `{name}`"));
    let end = number("end")?;
    let (mut previous, mut state) = (Tensor::from_slice(&[number("start")?]).unsqueeze(0), state.shallow_clone());
    let mut phonemes = Vec::new();
    while phonemes.len() < letters.len() + 4 {
        let decoded = model.run("decode_step", &[&previous, memory, padding, &state])?;
        previous = decoded[0].argmax(2, false);
        state = decoded[1].shallow_clone();
        let phoneme = previous.int64_value(&[0, 0]);
        if phoneme == end {
            break;
        }
        phonemes.push(metadata["phonemes"][phoneme as usize].as_str().unwrap_or("?"));
    }
    Ok(phonemes.join(" "))
}

/// Runs the parts, each from a separate saved model: the outputs of one are the inputs of the next.
fn put_together(dir: &Path) -> Result<(), Box<dyn Error>> {
    let load = |part: &str| SavedModel::load(dir.join(part), Device::Cpu);
    let (embedding, encoder, decoder) = (load("embedding")?, load("encoder")?, load("decoder")?);
    for part in [&embedding, &encoder, &decoder] {
        part.check(0.0)?;
    }
    let whole = load("whole")?;
    let (letters, lengths) = (Tensor::from_slice2(&[[3i64, 1, 20], [1, 20, 0]]), Tensor::from_slice(&[3i64, 2]));
    let expected = whole.run("encode", &[&letters, &lengths])?;
    let embedded = embedding.run("forward", &[&letters])?;
    let encoded = encoder.run("forward", &[&embedded[0], &lengths])?;
    let phonemes = Tensor::from_slice2(&[[1i64], [1]]);
    let step = |model: &SavedModel, memory: &Tensor| {
        model.run("decode_step", &[&phonemes, memory, &expected[1], &expected[2]]).map(|mut outputs| outputs.remove(0))
    };
    if !encoded[0].equal(&expected[0]) || !step(&decoder, &encoded[0])?.equal(&step(&whole, &expected[0])?) {
        return Err("the parts give something else than the whole".into());
    }
    println!("embedding, encoder and decoder, each loaded alone, give what the whole gives");
    Ok(())
}
