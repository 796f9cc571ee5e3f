//! Samples of elements at the time of the call, with which the later copy is compared, to detect writers that change no
//! version counter.

use super::chunk::{Part, Source};
use crate::dtype::TensorSpec;
use crate::graph::TensorPin;
use std::hash::{BuildHasher, RandomState};

/// The maximum number of elements, regardless of the size of the state: reading one from cold memory takes about 0.1
/// µs.
const MOST: u64 = 8192;

/// The size of the largest element.
const WIDEST: usize = 8;

struct Sample {
    /// By place in `Plan::tensors`.
    tensor: u32,
    /// The size of the element.
    size: u32,
    /// The offset in the tensor's bytes.
    offset: usize,
    value: [u8; WIDEST],
}

/// Sampled elements. Those of one tensor are consecutive, in the order of their places.
#[derive(Default)]
pub(super) struct Samples {
    samples: Vec<Sample>,
    /// The index of the first sample of every tensor, by place in `Plan::tensors`; past the end if there is none.
    firsts: Vec<u32>,
}

/// The tensors of a plan that are sampled.
pub(super) struct Sampled {
    /// In the order of their memory, which is the fastest to read.
    tensors: Vec<Tensor>,
    bytes: u64,
    /// How many tensors the plan has.
    planned: usize,
}

struct Tensor {
    /// In `Plan::tensors`.
    place: usize,
    elements: u64,
    /// Of an element, a power of two.
    size: u64,
    /// Whether its memory stays pinned from save to save. Then it need not be asked for that memory to choose elements.
    is_kept: bool,
}

impl Sampled {
    /// `tensors` has place, specification and address of each, and whether it stays pinned; `planned` is the number of
    /// all tensors of the plan.
    pub(super) fn new<'a>(
        tensors: impl Iterator<Item = (usize, &'a TensorSpec, Option<usize>, bool)>,
        planned: usize,
    ) -> Sampled {
        let tensor = |(place, spec, address, is_kept): (usize, &TensorSpec, Option<usize>, bool)| {
            let size = spec.dtype.size() as u64;
            let elements = spec.bytes()? / size;
            (elements > 0 && size <= WIDEST as u64).then_some((address, Tensor { place, elements, size, is_kept }))
        };
        let mut tensors: Vec<_> = tensors.filter_map(tensor).collect();
        tensors.sort_by_key(|(address, _)| *address);
        let tensors: Vec<Tensor> = tensors.into_iter().map(|(_, tensor)| tensor).collect();
        let bytes = tensors.iter().map(|tensor| tensor.elements * tensor.size).sum();
        Sampled { tensors, bytes, planned }
    }
}

/// The memory of tensors, by place in `Plan::tensors`.
pub(super) trait Pinned {
    /// Returns the memory of a tensor that is held.
    fn get(&self, place: usize) -> Option<&dyn TensorPin>;
}

impl Samples {
    /// Samples the first and the last element of every pinned tensor, and further elements spread by bytes, at
    /// different places each time. `spare` provides the memory.
    pub(super) fn take(spare: Samples, sampled: &Sampled, pins: &impl Pinned) -> Samples {
        let mut samples = spare;
        samples.choose(sampled, pins);
        samples.read(pins);
        samples
    }

    /// Samples the same elements again.
    pub(super) fn look_again(&mut self, pins: &impl Pinned) {
        self.read(pins);
    }

    /// Returns the place of a tensor with an element that has changed.
    pub(super) fn changed(&self, pins: &impl Pinned) -> Option<usize> {
        let differs = |Sample { tensor, size, offset, value }: &&Sample| {
            let memory = pins.get(*tensor as usize).and_then(|pin| pin.memory());
            let now = memory.and_then(|memory| memory.get(*offset..*offset + *size as usize));
            now.is_some_and(|now| *now != value[..*size as usize])
        };
        self.samples.iter().find(differs).map(|sample| sample.tensor as usize)
    }

    fn choose(&mut self, sampled: &Sampled, pins: &impl Pinned) {
        let Sampled { tensors, bytes, planned } = sampled;
        let mut random = Random(RandomState::new().hash_one(0));
        let (count, ends) = (tensors.len() as u64, 2 * tensors.len() as u64);
        self.samples.clear();
        self.samples.reserve(MOST.min(ends.saturating_add(*bytes)) as usize);
        self.firsts.clear();
        self.firsts.resize(*planned, u32::MAX);
        // If there are too many tensors, not all are sampled.
        let first = if ends > MOST { random.below(count) } else { 0 };
        let end = first + MOST / 2;
        let is_looked_at = |i: u64| (first..end).contains(&i) || i + count < end;
        // One in every stretch of this length.
        let stretch = if ends < MOST { bytes.div_ceil(MOST - ends).max(1) } else { u64::MAX };
        let (mut begin, mut stretch_begin, mut next) = (0, 0u64, random.below(stretch));
        for tensor in (0..).zip(tensors).filter(|(i, _)| is_looked_at(*i)).map(|(_, tensor)| tensor) {
            let Some(pin) = pins.get(tensor.place) else { continue };
            let end = begin + tensor.elements * tensor.size;
            self.firsts[tensor.place] = self.samples.len() as u32;
            self.add(tensor, pin, 0);
            while next < end {
                self.add(tensor, pin, (next - begin) >> tensor.size.trailing_zeros());
                stretch_begin = stretch_begin.saturating_add(stretch);
                next = stretch_begin.saturating_add(random.below(stretch));
            }
            self.add(tensor, pin, tensor.elements - 1);
            begin = end;
        }
    }

    /// Adds an element. One that is not in plain memory is read now.
    fn add(&mut self, tensor: &Tensor, pin: &dyn TensorPin, element: u64) {
        let (mut value, size) = ([0; WIDEST], tensor.size as usize);
        let offset = element as usize * size;
        let is_read_later = || pin.memory().is_some_and(|memory| offset + size <= memory.len());
        if tensor.is_kept || is_read_later() || pin.sample(element, &mut value[..size]) {
            self.samples.push(Sample { tensor: tensor.place as u32, size: tensor.size as u32, offset, value });
        }
    }

    /// Reads the chosen elements in a tight loop: their memory is cold, and the processor can then wait for many of
    /// them at a time.
    fn read(&mut self, pins: &impl Pinned) {
        let (mut current, mut memory): (Option<u32>, Option<&[u8]>) = (None, None);
        for Sample { tensor, size, offset, value } in &mut self.samples {
            if current != Some(*tensor) {
                current = Some(*tensor);
                memory = pins.get(*tensor as usize).and_then(|pin| pin.memory());
            }
            match memory.and_then(|memory| memory.get(*offset..*offset + *size as usize)) {
                // The common size, as one read.
                Some(&[a, b, c, d]) => value[..4].copy_from_slice(&[a, b, c, d]),
                Some(element) => value[..element.len()].copy_from_slice(element),
                None => {}
            }
        }
    }

    /// Returns `true` if the copied bytes of a part have all samples unchanged.
    pub(super) fn fit(&self, part: &Part, bytes: &[u8]) -> bool {
        let Source::Tensor(place) = part.source else { return true };
        let of_tensor =
            self.firsts.get(place).and_then(|&first| self.samples.get(first as usize..)).unwrap_or_default();
        let is_of = |sample: &Sample| sample.tensor as usize == place;
        let before = of_tensor.partition_point(|sample| is_of(sample) && sample.offset < part.from);
        let until = part.from + bytes.len();
        // An element that is cut by the border of two parts is not compared.
        let same = |sample: &Sample| {
            let (at, size) = (sample.offset - part.from, sample.size as usize);
            bytes.get(at..at + size).is_none_or(|bytes| *bytes == sample.value[..size])
        };
        of_tensor[before..].iter().take_while(|sample| is_of(sample) && sample.offset < until).all(same)
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^= x >> 31;
        ((u128::from(x) * u128::from(limit)) >> 64) as u64
    }
}
