//! The model: an encoder-decoder with attention, from letters to phonemes.
//!
//! Each of its three components has its variables under its own name (`embedding`, `encoder`, `decoder`), so that each
//! can be saved and restored separately.

use tch::nn::{self, GRUState, Init, Module, RNN};
use tch::{Device, Kind, Reduction, TchError, Tensor};

use crate::words::{Batch, END, LETTERS, PAD, START, Word};

/// The dropout probability.
const DROPOUT: f64 = 0.1;
/// The maximum number of phonemes of a prediction beyond the number of letters.
const EXTRA_PHONEMES: usize = 4;

/// Letters to phonemes.
pub struct Pronouncer {
    pub embedding: nn::Embedding,
    pub encoder: Encoder,
    pub decoder: Decoder,
    device: Device,
}

impl Pronouncer {
    /// Creates the variables, with random values from libtorch's generator. `hidden` is the size of
    /// the states of both networks and of the embeddings; it is even.
    pub fn new(root: &nn::Path, phonemes: i64, hidden: i64) -> Self {
        Self {
            embedding: nn::embedding(root / "embedding", LETTERS, hidden, Default::default()),
            encoder: Encoder::new(&(root / "encoder"), hidden, hidden),
            decoder: Decoder::new(&(root / "decoder"), phonemes, hidden),
            device: root.device(),
        }
    }

    /// Returns the mean cross-entropy of the batch's phonemes in nats, a scalar, with teacher forcing: to predict a
    /// phoneme, the decoder is given the true ones before it. Applies dropout.
    pub fn loss(&self, batch: &Batch) -> Tensor {
        let (memory, state) = self.encode(&batch.letters, &batch.lengths, true);
        let (logits, _) = self.decoder.forward(&batch.decoder_input, &memory, &state, true);
        logits.flatten(0, 1).cross_entropy_loss(
            &batch.target.flatten(0, 1),
            None::<Tensor>,
            Reduction::Mean,
            PAD, // its loss does not count
            0.0,
        )
    }

    /// Returns the phonemes of each word, the likeliest one at each position (greedy decoding).
    pub fn predict(&self, words: &[&Word]) -> Result<Vec<Vec<i64>>, TchError> {
        let mut longest_first: Vec<_> = (0..words.len()).collect();
        longest_first.sort_by_key(|&i| std::cmp::Reverse(words[i].letters.len()));

        let mut predictions = vec![Vec::new(); words.len()];
        for positions in longest_first.chunks(512) {
            let batch: Vec<_> = positions.iter().map(|&i| words[i]).collect();
            let phonemes = tch::no_grad(|| self.greedy(&Batch::new(&batch, self.device)))?;
            for (&i, phonemes) in positions.iter().zip(phonemes) {
                predictions[i] = phonemes;
            }
        }
        Ok(predictions)
    }

    fn greedy(&self, batch: &Batch) -> Result<Vec<Vec<i64>>, TchError> {
        let (words, longest) = (batch.letters.size()[0] as usize, batch.letters.size()[1] as usize);
        let (memory, mut state) = self.encode(&batch.letters, &batch.lengths, false);
        let mut previous = Tensor::full([words as i64, 1], START, (Kind::Int64, self.device));
        let mut predictions = vec![Vec::new(); words];
        let mut ended = vec![false; words];
        for _ in 0..longest + EXTRA_PHONEMES {
            let (logits, next_state) = self.decoder.forward(&previous, &memory, &state, false);
            state = next_state;
            previous = logits.argmax(2, false);
            let phonemes: Vec<i64> = Vec::try_from(previous.view(-1))?;
            for ((phoneme, prediction), ended) in phonemes.into_iter().zip(&mut predictions).zip(&mut ended) {
                *ended |= phoneme == END;
                if !*ended {
                    prediction.push(phoneme);
                }
            }
            if ended.iter().all(|&ended| ended) {
                break;
            }
        }
        Ok(predictions)
    }

    /// What the decoder attends to, and its first state.
    pub fn encode(&self, letters: &Tensor, lengths: &Tensor, train: bool) -> (Memory, GRUState) {
        let embedded = self.embedding.forward(letters).dropout(DROPOUT, train);
        let (outputs, state) = self.encoder.forward(&embedded, lengths);
        let padding = letters.eq(PAD).unsqueeze(1);
        (Memory { outputs: outputs.dropout(DROPOUT, train), padding }, self.decoder.first_state(&state))
    }
}

/// What the decoder attends to.
pub struct Memory {
    /// The encoder's output at every letter, `[words, letters, hidden]`.
    pub outputs: Tensor,
    /// True where there is no letter, `[words, 1, letters]`.
    pub padding: Tensor,
}

/// A bidirectional GRU over the letters.
pub struct Encoder {
    /// The weights of the forward, then of the backward direction, in libtorch's order.
    weights: Vec<Tensor>,
    hidden_per_direction: i64,
}

impl Encoder {
    /// Half of the `hidden` outputs come from each direction.
    ///
    /// `tch::nn::gru` would run the backward direction over the padding first, so this one holds the weights itself,
    /// under PyTorch's names, and passes a packed sequence, which has no padding, to libtorch.
    fn new(path: &nn::Path, input: i64, hidden: i64) -> Self {
        let half = hidden / 2;
        let bound = 1.0 / (half as f64).sqrt(); // PyTorch's default
        let init = Init::Uniform { lo: -bound, up: bound };
        let mut weights = Vec::new();
        for direction in ["", "_reverse"] {
            weights.push(path.var(&format!("weight_ih_l0{direction}"), &[3 * half, input], init));
            weights.push(path.var(&format!("weight_hh_l0{direction}"), &[3 * half, half], init));
            weights.push(path.var(&format!("bias_ih_l0{direction}"), &[3 * half], init));
            weights.push(path.var(&format!("bias_hh_l0{direction}"), &[3 * half], init));
        }
        Self { weights, hidden_per_direction: half }
    }

    /// Maps `[words, letters, input]`, the longest word first, to the outputs `[words, letters, hidden]`, zero in the
    /// padding, and the last states `[words, hidden]`: at the last letter forward, at the first letter backward.
    pub fn forward(&self, embedded: &Tensor, lengths: &Tensor) -> (Tensor, Tensor) {
        let (words, letters) = (embedded.size()[0], embedded.size()[1]);
        let start = Tensor::zeros([2, words, self.hidden_per_direction], (embedded.kind(), embedded.device()));
        let (packed, batch_sizes) = embedded.internal_pack_padded_sequence(lengths, true);
        let (packed, state) = Tensor::gru_data(&packed, &batch_sizes, &start, &self.weights, true, 1, 0.0, false, true);
        let (outputs, _) = Tensor::internal_pad_packed_sequence(&packed, &batch_sizes, true, 0.0, letters);
        (outputs, state.transpose(0, 1).flatten(1, 2))
    }
}

/// A GRU over the phonemes so far, whose outputs attend to the letters: global attention with the "general" score
/// (Luong, Pham and Manning 2015).
pub struct Decoder {
    embedding: nn::Embedding,
    /// From the encoder's last states to the first state here.
    bridge: nn::Linear,
    gru: nn::GRU,
    /// Maps an output to its attention query.
    query: nn::Linear,
    /// From the letters found and the output, side by side, to the attentional output.
    combine: nn::Linear,
    logits: nn::Linear,
}

impl Decoder {
    fn new(path: &nn::Path, phonemes: i64, hidden: i64) -> Self {
        let no_bias = nn::LinearConfig { bias: false, ..Default::default() };
        Self {
            embedding: nn::embedding(path / "embedding", phonemes, hidden, Default::default()),
            bridge: nn::linear(path / "bridge", hidden, hidden, Default::default()),
            gru: nn::gru(path / "gru", hidden, hidden, Default::default()),
            query: nn::linear(path / "query", hidden, hidden, no_bias),
            combine: nn::linear(path / "combine", 2 * hidden, hidden, no_bias),
            logits: nn::linear(path / "logits", hidden, phonemes, Default::default()),
        }
    }
    /// From the encoder's last states, `[words, hidden]`.
    fn first_state(&self, encoder_state: &Tensor) -> GRUState {
        GRUState(encoder_state.apply(&self.bridge).tanh().unsqueeze(0))
    }

    /// Maps phonemes, `[words, phonemes]`, to the logits of the one after each of them, `[words, phonemes, alphabet]`,
    /// and the state after the last.
    pub fn forward(&self, phonemes: &Tensor, memory: &Memory, state: &GRUState, train: bool) -> (Tensor, GRUState) {
        let embedded = self.embedding.forward(phonemes).dropout(DROPOUT, train);
        let (outputs, state) = self.gru.seq_init(&embedded, state);
        let scores = outputs.apply(&self.query).bmm(&memory.outputs.transpose(1, 2));
        let attention = scores.masked_fill(&memory.padding, f64::NEG_INFINITY).softmax(2, Kind::Float);
        let found = attention.bmm(&memory.outputs);
        let attentional = Tensor::cat(&[found, outputs], 2).apply(&self.combine).tanh();
        (attentional.dropout(DROPOUT, train).apply(&self.logits), state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::words::Words;

    /// A short word in a batch with a long one, where it is padded, and on its own.
    #[test]
    fn padding_changes_nothing() {
        tch::manual_seed(1);
        let words = Words::load();
        let vs = nn::VarStore::new(Device::Cpu);
        let model = Pronouncer::new(&vs.root(), words.phoneme_count(), 16);
        let long = words.train.iter().max_by_key(|word| word.letters.len()).unwrap();
        let short = words.train.iter().min_by_key(|word| word.letters.len()).unwrap();

        let logits = |words: &[&Word]| {
            let batch = Batch::new(words, Device::Cpu);
            let (memory, state) = model.encode(&batch.letters, &batch.lengths, false);
            model.decoder.forward(&batch.decoder_input, &memory, &state, false).0
        };
        let alone = logits(&[short]).squeeze_dim(0);
        let beside = logits(&[long, short]).select(0, 1).narrow(0, 0, alone.size()[0]);
        assert!(alone.allclose(&beside, 1e-5, 1e-6, false));
    }

    #[test]
    fn every_variable_belongs_to_a_component() {
        let vs = nn::VarStore::new(Device::Cpu);
        Pronouncer::new(&vs.root(), 42, 16);
        for name in vs.variables().into_keys() {
            let component = name.split('.').next();
            assert!(matches!(component, Some("embedding" | "encoder" | "decoder")), "{name}");
            assert!(!name.contains("__"), "{name} was there before");
        }
    }
}
