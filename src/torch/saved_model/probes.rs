//! Inputs of other sizes, derived from the examples, on which the traces of the examples are tested.

use super::examples::same_bits;
use super::lengths::{self, Class};
use tch::{Device, Kind, Tensor};

/// The number of elements from which inputs count as large.
const LARGE: u64 = 1 << 16;

/// The number of inputs whose lengths are on different levels, for small and for large inputs.
const MIXED: [usize; 2] = [LEVELS, 4];

/// The levels of the inputs whose lengths are all on one level, for small and for large inputs: a condition on a
/// product of lengths often changes only where all of them are small, or all are large.
const JOINT: [&[usize]; 2] = [&[1, 7, 6], &[1]];

/// Inputs whose free lengths have other values than in the examples; lengths that are equal in all examples are equal
/// here too. Their elements are taken from the examples, so that words stay words. The last one has the lengths of an
/// example and other elements. Empty in a program that aborts on a panic.
pub(super) fn of(examples: &[Vec<Tensor>]) -> Vec<Vec<Tensor>> {
    let classes = lengths::free(examples);
    if cfg!(panic = "abort") {
        return Vec::new();
    }
    let elements = |example: &Vec<Tensor>| example.iter().map(|input| input.numel() as u64).sum::<u64>();
    let largest = examples.iter().map(elements).max().unwrap_or(0);
    let is_large = usize::from(largest > LARGE);
    let mixed = (0..MIXED[is_large]).map(|round| (round, STRIDE));
    let joint = JOINT[is_large].iter().map(|level| (*level, 0));
    let mut numbers = Numbers(1);
    let probe = |(round, stride): (usize, usize)| {
        let length = |(place, class): (usize, &Class)| {
            let values = examples.iter().map(|example| example[class[0].0].size()[class[0].1]);
            let (low, high) = values.fold((i64::MAX, 0), |(low, high), value| (low.min(value), high.max(value)));
            numbers.length((round + place * stride) % LEVELS, low, high)
        };
        let sizes: Vec<i64> = classes.iter().enumerate().map(length).collect();
        let example = &examples[round % examples.len()];
        let fits = elements_resized(example, &classes, &sizes) <= largest.saturating_mul(2).max(LARGE);
        fits.then(|| resized(example, &classes, &sizes, &mut numbers)).flatten()
    };
    mixed.chain(joint).filter_map(probe).chain(other_elements(examples)).collect()
}

/// An example with its own lengths and other elements, also where these are the same in all examples.
fn other_elements(examples: &[Vec<Tensor>]) -> Option<Vec<Tensor>> {
    let _no_grad = tch::no_grad_guard();
    let (first, others) = examples.split_first()?;
    let differs = |a: &Tensor, b: &Tensor| !same_bits(a, b).unwrap_or(true);
    let mut is_other = false;
    let other = |(place, input): (usize, &Tensor)| {
        let is_whole = !input.is_floating_point() && !input.is_complex();
        // An index that is out of range ends the use of a GPU.
        if is_whole && input.device() != Device::Cpu {
            return input.copy();
        }
        let given = others.iter().map(|example| &example[place]).filter(|other| other.size() == input.size());
        let given = given.map(Tensor::copy);
        let moved = || input.f_roll([1], [0]).ok();
        // 0 is a valid index in most cases.
        let made = || match is_whole {
            true if differs(input, &input.zeros_like()) => input.f_zeros_like().ok(),
            true => input.f_ones_like().ok(),
            false => input.f_add_scalar(1).ok(),
        };
        let mut found = given.chain(std::iter::once_with(moved).flatten()).chain(std::iter::once_with(made).flatten());
        let found = found.find(|other| other.kind() == input.kind() && differs(other, input));
        is_other |= found.is_some();
        found.unwrap_or_else(|| input.copy())
    };
    let inputs = first.iter().enumerate().map(other).collect();
    is_other.then_some(inputs)
}

/// Returns the number of elements of an example with these lengths.
fn elements_resized(example: &[Tensor], classes: &[Class], sizes: &[i64]) -> u64 {
    let mut shapes: Vec<Vec<i64>> = example.iter().map(Tensor::size).collect();
    for (class, &size) in classes.iter().zip(sizes) {
        for &(input, dim) in class {
            shapes[input][dim] = size;
        }
    }
    let count = |shape: &Vec<i64>| shape.iter().fold(1u64, |count, &size| count.saturating_mul(size.unsigned_abs()));
    shapes.iter().map(count).fold(0, u64::saturating_add)
}

/// An example with these lengths: its own elements, at other places.
fn resized(example: &[Tensor], classes: &[Class], sizes: &[i64], numbers: &mut Numbers) -> Option<Vec<Tensor>> {
    let _no_grad = tch::no_grad_guard();
    let mut inputs: Vec<Tensor> = example.iter().map(Tensor::copy).collect();
    for (class, &size) in classes.iter().zip(sizes) {
        for &(input, dim) in class {
            let tensor = &inputs[input];
            let length = u64::try_from(tensor.size()[dim]).ok().filter(|length| *length > 0)?;
            let places: Vec<i64> = (0..size).map(|_| (numbers.next() % length) as i64).collect();
            let places = Tensor::from_slice(&places).to_kind(Kind::Int64).to_device(tensor.device());
            inputs[input] = tensor.f_index_select(dim as i64, &places).ok()?;
        }
    }
    Some(inputs)
}

/// Pseudo-random numbers that are the same in every export: SplitMix64.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }

    fn between(&mut self, low: i64, high: i64) -> i64 {
        let count = u64::try_from(high.saturating_sub(low)).unwrap_or(0) + 1;
        low + (self.next() % count) as i64
    }

    /// Returns a length on one of the levels, from the minimum to far above the examples: if a model behaves
    /// differently for some sizes, these are mostly very small or large.
    fn length(&mut self, level: usize, low: i64, high: i64) -> i64 {
        // Time and memory may grow with the square of a length, so long ones grow slowly.
        let far = |times: i64, more: i64| if high <= 64 { high * times + more } else { high + high / 2 + more };
        match level {
            0 => self.between(high + 1, far(2, 3)),
            1 => 1,
            2 => self.between(low, high),
            3 => far(4, 16),
            4 => high + 1,
            5 => self.between(1, low),
            6 => far(3, 4),
            7 => 2,
            8 => high + 2,
            9 => self.between(1, high + 20),
            10 => self.between((low / 2).max(1), high),
            _ => far(2, 1),
        }
    }
}

/// Levels of [`Numbers::length`].
const LEVELS: usize = 12;

/// The step of the level from one length to the next, so that any two lengths are on different levels in every round.
const STRIDE: usize = 5;
