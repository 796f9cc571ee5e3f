//! The data: words and their pronunciations, the held-out split, and padded batches.

use std::collections::BTreeSet;

use tch::{Device, Tensor};

/// A subset of the CMU Pronouncing Dictionary; `data/README.md` says how it was chosen.
const DICTIONARY: &str = include_str!("data/cmudict-subset.dict");

/// The padding of the shorter words of a batch, in both alphabets, of letters and of phonemes.
pub const PAD: i64 = 0;
/// The phoneme with which the decoder starts a word.
pub const START: i64 = 1;
/// The phoneme with which the decoder ends a word.
pub const END: i64 = 2;
/// The first number of an actual phoneme.
const FIRST_PHONEME: i64 = 3;
/// The number of letters, including padding: `a` is 1 and `z` is 26.
pub const LETTERS: i64 = 27;

/// One entry of the dictionary.
pub struct Word {
    pub spelling: &'static str,
    /// The letters as numbers.
    pub letters: Vec<i64>,
    /// The phonemes as numbers, with neither [`START`] nor [`END`].
    pub phonemes: Vec<i64>,
}

/// All words, in two parts: one for training, the other for evaluation.
pub struct Words {
    pub train: Vec<Word>,
    pub held_out: Vec<Word>,
    /// The names of the actual phonemes, sorted. Stress is left out: `AH0`, `AH1` and `AH2` are `AH`.
    phoneme_names: Vec<&'static str>,
}

impl Words {
    /// Parses the dictionary that is compiled into the program. Every twentieth word is held out.
    pub fn load() -> Self {
        let entries = || DICTIONARY.lines().filter_map(|line| line.split_once(' '));
        let without_stress = |name: &'static str| name.trim_end_matches(['0', '1', '2']);

        let names: BTreeSet<_> = entries().flat_map(|(_, phonemes)| phonemes.split(' ').map(without_stress)).collect();
        let phoneme_names: Vec<_> = names.into_iter().collect();
        let number = |name| phoneme_names.partition_point(|&other| other < name) as i64;

        let (mut train, mut held_out) = (Vec::new(), Vec::new());
        for (i, (spelling, phonemes)) in entries().enumerate() {
            let word = Word {
                spelling,
                letters: spelling.bytes().map(|letter| i64::from(letter - b'a') + 1).collect(),
                phonemes: phonemes.split(' ').map(|name| FIRST_PHONEME + number(without_stress(name))).collect(),
            };
            if i % 20 == 19 { held_out.push(word) } else { train.push(word) }
        }
        Self { train, held_out, phoneme_names }
    }

    /// Returns the number of phonemes, including padding, [`START`] and [`END`].
    pub fn phoneme_count(&self) -> i64 {
        FIRST_PHONEME + self.phoneme_names.len() as i64
    }

    /// Returns the training words at these positions.
    pub fn batch(&self, positions: &[usize], device: Device) -> Batch {
        let mut words: Vec<_> = positions.iter().map(|&position| &self.train[position]).collect();
        words.sort_by_key(|word| std::cmp::Reverse(word.letters.len()));
        Batch::new(&words, device)
    }

    /// Phonemes in the dictionary's own spelling: `P R AH N AW N S`.
    pub fn spell(&self, phonemes: &[i64]) -> String {
        let names =
            phonemes.iter().map(|&phoneme| *self.phoneme_names.get((phoneme - FIRST_PHONEME) as usize).unwrap_or(&"?"));
        names.collect::<Vec<_>>().join(" ")
    }
}

/// Several words as padded tensors of 64-bit integers, the longest word first.
pub struct Batch {
    /// Letters, `[words, longest spelling]`.
    pub letters: Tensor,
    /// The number of letters of each word, `[words]`, always on the CPU.
    pub lengths: Tensor,
    /// The input of the decoder, `[words, longest pronunciation + 1]`: [`START`], then the phonemes.
    pub decoder_input: Tensor,
    /// The expected output of the decoder, of the same shape: the phonemes, then [`END`].
    pub target: Tensor,
}

impl Batch {
    /// Pads `words`, which must be sorted by descending number of letters.
    pub fn new(words: &[&Word], device: Device) -> Self {
        let lengths: Vec<_> = words.iter().map(|word| word.letters.len() as i64).collect();
        let with_start = |word: &&Word| [&[START], word.phonemes.as_slice()].concat();
        let with_end = |word: &&Word| [word.phonemes.as_slice(), &[END]].concat();
        Self {
            letters: padded(words.iter().map(|word| word.letters.clone()).collect(), device),
            lengths: Tensor::from_slice(&lengths),
            decoder_input: padded(words.iter().map(with_start).collect(), device),
            target: padded(words.iter().map(with_end).collect(), device),
        }
    }
}

/// Stacks the rows, and pads the shorter ones with [`PAD`].
fn padded(mut rows: Vec<Vec<i64>>, device: Device) -> Tensor {
    let width = rows.iter().map(Vec::len).max().unwrap_or(0);
    for row in &mut rows {
        row.resize(width, PAD);
    }
    Tensor::from_slice(&rows.concat()).view([rows.len() as i64, width as i64]).to_device(device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_has_the_longest_word_first() {
        let words = Words::load();
        let lengths = Vec::<i64>::try_from(words.batch(&[5, 9000, 20_000, 700, 31_000], Device::Cpu).lengths).unwrap();
        assert!(lengths.len() == 5 && lengths.is_sorted_by(|a, b| a >= b), "{lengths:?}");
    }

    #[test]
    fn held_out_words_are_not_trained_on() {
        let words = Words::load();
        let trained: BTreeSet<_> = words.train.iter().map(|word| word.spelling).collect();
        assert_eq!((words.train.len(), words.held_out.len()), (34_550, 1_818));
        assert!(words.held_out.iter().all(|word| !trained.contains(word.spelling)));
        assert_eq!(words.spell(&words.train[0].phonemes), "AA K AH N");
    }
}
