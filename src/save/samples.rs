//! A few elements of what is copied behind a call, as they were at the call: the copy is compared with them, to find
//! writers that move no version counter.

use super::chunk::{Part, Source};
use super::gather::Pins;
use super::plan::Plan;
use crate::graph::TensorPin;
use std::hash::{BuildHasher, RandomState};

/// So many elements at most, whatever the state's size: one in cold memory takes about 0.1 µs to look at.
const MOST: u64 = 8192;

/// The largest element there is.
const WIDEST: usize = 8;

struct Sample {
    /// By place in `Plan::tensors`.
    tensor: usize,
    /// In the tensor's bytes.
    offset: usize,
    value: [u8; WIDEST],
}

/// Elements of tensors. Those of one tensor follow each other, in the order of their places.
pub(super) struct Samples {
    samples: Vec<Sample>,
    /// The first of every tensor, by place in `Plan::tensors`; past the end where there is none.
    firsts: Vec<u32>,
}

/// The tensors of a plan of which elements are looked at.
pub(super) struct Sampled {
    /// In the order of their memory, which is faster to look at than another one.
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
}

impl Sampled {
    pub(super) fn new(plan: &Plan, places: &[usize]) -> Sampled {
        let tensor = |&place: &usize| {
            let spec = &plan.tensors[place].spec;
            let size = spec.dtype.size() as u64;
            let elements = spec.bytes()? / size;
            (elements > 0 && size <= WIDEST as u64).then_some(Tensor { place, elements, size })
        };
        let mut tensors: Vec<_> = places.iter().filter_map(tensor).collect();
        tensors.sort_by_key(|tensor| plan.tensors[tensor.place].address);
        let bytes = tensors.iter().map(|tensor| tensor.elements * tensor.size).sum();
        Sampled { tensors, bytes, planned: plan.tensors.len() }
    }
}

impl Samples {
    /// Looks at the first and the last element of every tensor that is pinned, and at others, spread by bytes; at other
    /// places every time.
    pub(super) fn take(sampled: &Sampled, pins: &Pins) -> Samples {
        let Sampled { tensors, bytes, planned } = sampled;
        let mut random = Random(RandomState::new().hash_one(0));
        let (count, ends) = (tensors.len() as u64, 2 * tensors.len() as u64);
        let most = MOST.min(ends.saturating_add(*bytes)) as usize;
        let (samples, elements) = (Vec::with_capacity(most), Vec::with_capacity(most));
        let mut looks = Looks { samples, elements, firsts: vec![u32::MAX; *planned] };
        // Of too many tensors not all get a look.
        let first = if ends > MOST { random.below(count) } else { 0 };
        let end = first + MOST / 2;
        let is_looked_at = |i: u64| (first..end).contains(&i) || i + count < end;
        // One in every stretch of this length.
        let stretch = if ends < MOST { bytes.div_ceil(MOST - ends).max(1) } else { u64::MAX };
        let (mut begin, mut stretch_begin, mut next) = (0, 0u64, random.below(stretch));
        for tensor in (0..).zip(tensors).filter(|(i, _)| is_looked_at(*i)).map(|(_, tensor)| tensor) {
            let Some(pin) = pins.get(tensor.place) else { continue };
            let memory = pin.memory();
            let end = begin + tensor.elements * tensor.size;
            looks.firsts[tensor.place] = looks.samples.len() as u32;
            looks.add(tensor, pin, memory, 0);
            while next < end {
                looks.add(tensor, pin, memory, (next - begin) >> tensor.size.trailing_zeros());
                stretch_begin = stretch_begin.saturating_add(stretch);
                next = stretch_begin.saturating_add(random.below(stretch));
            }
            looks.add(tensor, pin, memory, tensor.elements - 1);
            begin = end;
        }
        looks.take()
    }

    /// Whether the bytes of a part, copied, have all samples as they were.
    pub(super) fn fit(&self, plan: &Plan, part: &Part, bytes: &[u8]) -> bool {
        let Source::Tensor(place) = part.source else { return true };
        let size = plan.tensors[place].spec.dtype.size();
        let of_tensor =
            self.firsts.get(place).and_then(|&first| self.samples.get(first as usize..)).unwrap_or_default();
        let before = of_tensor.partition_point(|sample| sample.tensor == place && sample.offset < part.from);
        let until = part.from + bytes.len();
        // An element that is cut by the border of two parts is not compared.
        let same = |sample: &Sample| {
            let at = sample.offset - part.from;
            bytes.get(at..at + size).is_none_or(|bytes| *bytes == sample.value[..size])
        };
        of_tensor[before..].iter().take_while(|sample| sample.tensor == place && sample.offset < until).all(same)
    }
}

/// Samples to be taken. Their memory is read in the end, one right after the other: it is cold, and the processor then waits
/// for many at a time.
struct Looks<'a> {
    samples: Vec<Sample>,
    /// The elements of the samples; nothing for one that is taken already.
    elements: Vec<&'a [u8]>,
    firsts: Vec<u32>,
}

impl<'a> Looks<'a> {
    /// `memory` is that of the pin.
    fn add(&mut self, tensor: &Tensor, pin: &dyn TensorPin, memory: Option<&'a [u8]>, element: u64) {
        let (size, mut value) = (tensor.size as usize, [0; WIDEST]);
        let offset = element as usize * size;
        let element = match memory {
            Some(memory) => memory.get(offset..offset + size),
            None => pin.sample(element, &mut value[..size]).then_some(&[][..]),
        };
        if let Some(element) = element {
            self.samples.push(Sample { tensor: tensor.place, offset, value });
            self.elements.push(element);
        }
    }

    fn take(mut self) -> Samples {
        for (sample, element) in self.samples.iter_mut().zip(self.elements) {
            match element {
                // The common size, as one read.
                &[a, b, c, d] => sample.value[..4].copy_from_slice(&[a, b, c, d]),
                _ => sample.value[..element.len()].copy_from_slice(element),
            }
        }
        Samples { samples: self.samples, firsts: self.firsts }
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
