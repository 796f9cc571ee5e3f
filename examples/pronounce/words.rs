//! The data: words and how they are pronounced, the held-out split, and the order of the batches.

use std::collections::BTreeSet;

use tch::{Device, Tensor};

/// A subset of the CMU Pronouncing Dictionary; `data/README.md` says how it was chosen.
const DICTIONARY: &str = include_str!("data/cmudict-subset.dict");

/// Fills up the shorter words of a batch. Both alphabets, of letters and of phonemes, have it.
pub const PAD: i64 = 0;
/// The phoneme that the decoder is given to begin with.
pub const START: i64 = 1;
/// The phoneme with which the decoder ends a word.
pub const END: i64 = 2;
/// Where the phonemes proper begin.
const FIRST_PHONEME: i64 = 3;
/// How many letters there are, padding included: `a` is 1 and `z` is 26.
pub const LETTERS: i64 = 27;

/// One entry of the dictionary.
pub struct Word {
    pub spelling: &'static str,
    /// The letters as numbers.
    pub letters: Vec<i64>,
    /// The phonemes as numbers, with neither [`START`] nor [`END`].
    pub phonemes: Vec<i64>,
}

/// All words, in two parts: one to learn from, the other only to measure with.
pub struct Words {
    pub train: Vec<Word>,
    pub held_out: Vec<Word>,
    /// The names of the phonemes proper, sorted. Stress is left out: `AH0`, `AH1` and `AH2` are `AH`.
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

    /// How many phonemes there are, padding, [`START`] and [`END`] included.
    pub fn phoneme_count(&self) -> i64 {
        FIRST_PHONEME + self.phoneme_names.len() as i64
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
    /// How many letters each word has, `[words]`, always on the CPU.
    pub lengths: Tensor,
    /// What the decoder is given, `[words, longest pronunciation + 1]`: [`START`], then the phonemes.
    pub decoder_input: Tensor,
    /// What the decoder should answer, of the same shape: the phonemes, then [`END`].
    pub target: Tensor,
}

impl Batch {
    /// Pads `words`, which must be sorted by falling number of letters.
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

/// The rows under each other, the shorter ones filled up with [`PAD`].
fn padded(mut rows: Vec<Vec<i64>>, device: Device) -> Tensor {
    let width = rows.iter().map(Vec::len).max().unwrap_or(0);
    for row in &mut rows {
        row.resize(width, PAD);
    }
    Tensor::from_slice(&rows.concat()).view([rows.len() as i64, width as i64]).to_device(device)
}

/// The training batches in an order that is a function of the seed and the step alone: a run that goes
/// on from a checkpoint needs nothing but its step to see the very batches it would have seen.
pub struct Batches<'a> {
    words: &'a [Word],
    size: usize,
    seed: u64,
    device: Device,
    /// The epoch that `order` belongs to.
    epoch: Option<usize>,
    /// Each batch's words, as positions in `words`.
    order: Vec<Vec<usize>>,
}

impl<'a> Batches<'a> {
    /// Batches of `size` words, `size` not zero.
    pub fn new(words: &'a [Word], size: usize, seed: u64, device: Device) -> Self {
        Self { words, size, seed, device, epoch: None, order: Vec::new() }
    }

    /// How many batches make an epoch, in which every word comes once.
    pub fn per_epoch(&self) -> usize {
        self.words.len().div_ceil(self.size)
    }

    /// The batch of one step, counted from zero.
    pub fn at(&mut self, step: usize) -> Batch {
        let epoch = step / self.per_epoch();
        if self.epoch != Some(epoch) {
            self.order = self.shuffled(epoch);
            self.epoch = Some(epoch);
        }
        let words: Vec<_> = self.order[step % self.per_epoch()].iter().map(|&position| &self.words[position]).collect();
        Batch::new(&words, self.device)
    }

    /// The batches of an epoch. Words of about the same length share a batch, so that little of it is
    /// padding: the shuffled words are sorted by length within pools of 32 batches.
    fn shuffled(&self, epoch: usize) -> Vec<Vec<usize>> {
        let mut random = SplitMix64::new(self.seed, epoch as u64);
        let mut order: Vec<_> = (0..self.words.len()).collect();
        random.shuffle(&mut order);
        for pool in order.chunks_mut(32 * self.size) {
            pool.sort_by_key(|&position| {
                let word = &self.words[position];
                std::cmp::Reverse((word.letters.len(), word.phonemes.len()))
            });
        }
        let mut batches: Vec<_> = order.chunks(self.size).map(<[usize]>::to_vec).collect();
        random.shuffle(&mut batches);
        batches
    }
}

/// A small random number generator of our own (Steele, Lea and Flood 2014), so that the order of the
/// data neither draws from libtorch's generator nor depends on another crate's version.
struct SplitMix64(u64);

impl SplitMix64 {
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

    /// A generator for one epoch; neighbouring seeds and epochs have nothing in common.
    fn new(seed: u64, epoch: u64) -> Self {
        Self(Self(Self(seed).next().wrapping_add(epoch)).next())
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(Self::STEP);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Fisher and Yates's shuffle.
    fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = (u128::from(self.next()) * (last as u128 + 1)) >> 64;
            items.swap(last, other as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_has_every_word_once_and_its_order_follows_from_seed_and_step() {
        let words = Words::load();
        let mut orders = Vec::new();
        for (seed, epoch) in [(1, 0), (1, 0), (1, 1), (2, 0)] {
            let batches = Batches::new(&words.train, 64, seed, Device::Cpu).shuffled(epoch);
            let mut positions = batches.concat();
            positions.sort_unstable();
            assert!(positions.into_iter().eq(0..words.train.len()));
            orders.push(batches);
        }
        assert_eq!(orders[0], orders[1]);
        assert_ne!(orders[0], orders[2]);
        assert_ne!(orders[0], orders[3]);
    }

    #[test]
    fn the_batch_of_a_step_does_not_depend_on_the_steps_before() {
        let words = Words::load();
        let batches = || Batches::new(&words.train, 64, 1, Device::Cpu);
        let mut from_the_start = batches();
        let step = from_the_start.per_epoch() + 2;
        (0..step).step_by(100).for_each(|step| drop(from_the_start.at(step)));
        assert_eq!(from_the_start.at(step).letters, batches().at(step).letters);
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
