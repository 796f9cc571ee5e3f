//! A few elements of what is copied behind a call, as they were at the call: the copy is compared with them, to find
//! writers that move no version counter.

use super::chunk::{Part, Pins, Source};
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

/// Elements, in the order of tensors and places.
#[derive(Default)]
pub(super) struct Samples(Vec<Sample>);

/// A tensor that can be sampled.
struct Sampled<'a> {
    place: usize,
    pin: &'a dyn TensorPin,
    elements: u64,
    size: u64,
}

impl<'a> Sampled<'a> {
    fn of(plan: &Plan, place: usize, pin: &'a dyn TensorPin) -> Option<Sampled<'a>> {
        let spec = &plan.tensors[place].spec;
        let size = spec.dtype.size() as u64;
        let elements = spec.bytes()? / size;
        (elements > 0 && size <= WIDEST as u64).then_some(Sampled { place, pin, elements, size })
    }
}

impl Samples {
    /// Looks at the first and the last element of every pinned tensor, and at others, spread by bytes; at other places
    /// every time.
    pub(super) fn take(plan: &Plan, pins: &Pins) -> Samples {
        let pinned = pins.iter().enumerate().filter_map(|(place, pin)| Some((place, pin.as_deref()?)));
        let tensors: Vec<_> = pinned.filter_map(|(place, pin)| Sampled::of(plan, place, pin)).collect();
        let mut random = Random(RandomState::new().hash_one(0));
        let bytes: u64 = tensors.iter().map(|tensor| tensor.elements * tensor.size).sum();
        let (count, ends) = (tensors.len() as u64, 2 * tensors.len() as u64);
        let mut samples = Samples(Vec::with_capacity(MOST.min(ends + bytes) as usize));
        // Of too many tensors not all get a look.
        let first = if ends > MOST { random.below(count) } else { 0 };
        let is_looked_at = |i: usize| (i as u64 + count - first) % count < MOST / 2;
        // One in every stretch of this length.
        let stretch = if ends < MOST { bytes.div_ceil(MOST - ends).max(1) } else { u64::MAX };
        let mut next = random.below(stretch);
        let mut begin = 0;
        for (_, tensor) in tensors.iter().enumerate().filter(|(i, _)| is_looked_at(*i)) {
            samples.look(tensor, 0);
            let end = begin + tensor.elements * tensor.size;
            while next < end {
                samples.look(tensor, (next - begin) / tensor.size);
                next = (next / stretch + 1).saturating_mul(stretch).saturating_add(random.below(stretch));
            }
            samples.look(tensor, tensor.elements - 1);
            begin = end;
        }
        samples
    }

    fn look(&mut self, tensor: &Sampled<'_>, element: u64) {
        let mut value = [0; WIDEST];
        if tensor.pin.sample(element, &mut value[..tensor.size as usize]) {
            self.0.push(Sample { tensor: tensor.place, offset: (element * tensor.size) as usize, value });
        }
    }

    /// Whether the bytes of a part, copied, have all samples as they were.
    pub(super) fn fit(&self, plan: &Plan, part: &Part, bytes: &[u8]) -> bool {
        let Source::Tensor(place) = part.source else { return true };
        let size = plan.tensors[place].spec.dtype.size();
        let first = self.0.partition_point(|sample| (sample.tensor, sample.offset) < (place, part.from));
        let until = (place, part.from + bytes.len());
        // An element that is cut by the border of two parts is not compared.
        let same = |sample: &Sample| {
            let at = sample.offset - part.from;
            bytes.get(at..at + size).is_none_or(|bytes| *bytes == sample.value[..size])
        };
        self.0[first..].iter().take_while(|sample| (sample.tensor, sample.offset) < until).all(same)
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
        (x ^ (x >> 31)) % limit.max(1)
    }
}
