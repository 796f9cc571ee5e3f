//! How the elements of two tensors of one type differ.

use super::lanes::{self, differing};
use super::moments::sum;
use super::numbers::{Singles, Special, decode, float, power_of_two};
use super::reading::Part;
use crate::dtype::Dtype;
use serde::Serialize;

/// How the elements of two tensors of one type and shape differ.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ElementDiff {
    /// The number of elements.
    pub total: u64,
    /// The number of elements whose bits differ.
    pub differing: u64,
    /// The largest finite distance between two elements; for complex numbers, the absolute value of their difference.
    /// `None` if there is no finite distance, and for booleans.
    pub largest_difference: Option<f64>,
    /// The number of differing pairs without a finite distance: one of the two is NaN or infinite.
    pub not_finite: u64,
    /// The L2 norm of the difference divided by that of the first tensor, `‖b − a‖ / ‖a‖`, of the pairs that are both
    /// finite. `None` if the first tensor is all zeros there, if the result exceeds an `f64`, and for booleans.
    pub relative_l2: Option<f64>,
    /// The cosine of the angle between the two tensors, `a · b / (‖a‖ ‖b‖)`, of the pairs that are both finite: 1 for
    /// the same direction. `None` if one of the two is all zeros there, if the result exceeds an `f64`, and for
    /// booleans.
    pub cosine: Option<f64>,
}

impl ElementDiff {
    /// Returns the share of the elements that differ, from 0 to 1.
    #[must_use]
    pub fn changed_share(&self) -> f64 {
        if self.total == 0 { 0.0 } else { self.differing as f64 / self.total as f64 }
    }

    /// Returns `true` if no two elements are further apart than `tolerance`. Booleans have no distance: they have to be
    /// equal.
    #[must_use]
    pub fn is_within(&self, tolerance: f64) -> bool {
        let measured = self.differing == 0 || self.largest_difference.is_some_and(|largest| largest <= tolerance);
        measured && self.not_finite == 0
    }
}

/// The comparison of two tensors, piece by piece.
#[derive(Debug, Default)]
pub(super) struct Comparison {
    found: ElementDiff,
    /// The sums of `a * b`, `a²`, `b²` and `(a − b)²`.
    products: f64,
    squares: [f64; 2],
    distances: f64,
}

/// The number of bytes that are compared at a time: a multiple of every element size.
const BLOCK: usize = 8192;

impl Comparison {
    /// Compares little-endian elements of type `dtype`, the same number in `a` and `b`.
    pub(super) fn of(dtype: Dtype, a: &[u8], b: &[u8]) -> Comparison {
        let found = ElementDiff { total: (a.len() / dtype.size()) as u64, ..ElementDiff::default() };
        let mut comparison = Comparison { found, ..Comparison::default() };
        // The distances of these are others than those of their numbers.
        let is_other = matches!(dtype, Dtype::Bool | Dtype::C64);
        let mut singles = (!is_other).then(|| Some((Singles::of(dtype)?, Singles::of(dtype)?))).flatten();
        let mut numbers = [Vec::new(), Vec::new()];
        for (a, b) in a.chunks(BLOCK).zip(b.chunks(BLOCK)) {
            let is_added = singles.as_mut().is_some_and(|singles| comparison.add_singles(dtype, a, b, singles));
            if !is_added {
                comparison.add(dtype, a, b, &mut numbers);
            }
        }
        if dtype == Dtype::Bool {
            (comparison.products, comparison.squares, comparison.distances) = (0.0, [0.0; 2], 0.0);
        }
        comparison
    }

    /// Adds a block, unless there is a number that is not finite in it: returns `false` then.
    fn add_singles(&mut self, dtype: Dtype, a: &[u8], b: &[u8], singles: &mut (Singles, Singles)) -> bool {
        if a == b {
            let (_, squares) = lanes::powers(singles.0.decode(a));
            if squares.is_finite() {
                self.squares = self.squares.map(|sum| sum + squares);
                self.products += squares;
            }
            return squares.is_finite();
        }
        let pairs = lanes::pairs(singles.0.decode(a), singles.1.decode(b));
        let is_finite = pairs.squares.iter().all(|sum| sum.is_finite());
        if is_finite {
            self.differ(dtype, a, b, pairs.largest);
            self.squares = [self.squares[0] + pairs.squares[0], self.squares[1] + pairs.squares[1]];
            self.products += pairs.products;
            self.distances += pairs.distances;
        }
        is_finite
    }

    /// Adds a block of any numbers.
    fn add(&mut self, dtype: Dtype, a: &[u8], b: &[u8], [x, y]: &mut [Vec<f64>; 2]) {
        let is_equal = a == b;
        decode(dtype, a, x);
        decode(dtype, b, y);
        let is_finite = (sum(x, |number| number * 0.0) + sum(y, |number| number * 0.0)).is_finite();
        if !is_equal {
            let is_compared = is_finite && self.compare_numbers(dtype, [a, b], [x, y]);
            if !is_compared {
                compare(&mut self.found, dtype, a, b);
            }
        }
        if !is_finite {
            // Pairs of which one is not finite count as zeros.
            for (x, y) in x.iter_mut().zip(y.iter_mut()).filter(|(x, y)| !(x.is_finite() && y.is_finite())) {
                (*x, *y) = (0.0, 0.0);
            }
        }
        self.squares[0] += sum(x, |number| number * number);
        self.squares[1] += sum(y, |number| number * number);
        if !is_equal {
            self.distances += x.iter().zip(y.iter()).map(|(x, y)| (x - y) * (x - y)).sum::<f64>();
        }
        x.iter_mut().zip(y.iter()).for_each(|(x, y)| *x *= y);
        self.products += sum(x, |number| number);
    }

    /// Compares the elements of a block, which are the finite `numbers`, as [`compare`] does, many at once. Returns
    /// `false`, and adds nothing, where the numbers are not the elements, or a distance is not finite.
    fn compare_numbers(&mut self, dtype: Dtype, [a, b]: [&[u8]; 2], [x, y]: [&[f64]; 2]) -> bool {
        if matches!(dtype, Dtype::Bool | Dtype::I64 | Dtype::U64 | Dtype::C64) {
            return false;
        }
        let (pairs, mut largest) = (x.iter().zip(y), 0f64);
        for (x, y) in pairs {
            let distance = (x - y).abs();
            largest = if distance > largest { distance } else { largest };
        }
        if largest.is_finite() {
            self.differ(dtype, a, b, largest);
        }
        largest.is_finite()
    }

    /// Adds blocks of finite elements that differ, by `largest` at most.
    fn differ(&mut self, dtype: Dtype, a: &[u8], b: &[u8], largest: f64) {
        self.found.differing += match dtype.size() {
            1 => differing::<1>(a, b),
            2 => differing::<2>(a, b),
            4 => differing::<4>(a, b),
            _ => differing::<8>(a, b),
        };
        self.found.largest_difference = Some(self.found.largest_difference.map_or(largest, |known| known.max(largest)));
    }

    /// Returns the result.
    pub(super) fn finish(self) -> ElementDiff {
        let [a, b] = self.squares.map(f64::sqrt);
        let known = |number: f64| Some(number).filter(|number| number.is_finite());
        ElementDiff {
            relative_l2: known(self.distances.sqrt() / a),
            // Rounding must not make it more than 1.
            cosine: known(self.products / a / b).map(|cosine| cosine.clamp(-1.0, 1.0)),
            ..self.found
        }
    }
}

impl Part for Comparison {
    fn append(&mut self, next: Comparison) {
        self.found.total += next.found.total;
        self.found.differing += next.found.differing;
        self.found.not_finite += next.found.not_finite;
        let largest = [self.found.largest_difference, next.found.largest_difference];
        self.found.largest_difference = largest.into_iter().flatten().reduce(f64::max);
        self.products += next.products;
        self.squares = [self.squares[0] + next.squares[0], self.squares[1] + next.squares[1]];
        self.distances += next.distances;
    }
}

/// Compares little-endian elements of type `dtype`, the same number in `a` and `b`, and adds the result to `compared`.
fn compare(compared: &mut ElementDiff, dtype: Dtype, a: &[u8], b: &[u8]) {
    let size = dtype.size();
    for (a, b) in a.chunks_exact(size).zip(b.chunks_exact(size)).filter(|(a, b)| a != b) {
        compared.differing += 1;
        match distance(dtype, a, b) {
            Some(distance) if distance.is_finite() => {
                let largest = compared.largest_difference.get_or_insert(distance);
                *largest = largest.max(distance);
            }
            Some(_) => compared.not_finite += 1,
            None => {}
        }
    }
}

/// Returns the distance between two elements; not finite where one of them is not; `None` for types without distances.
fn distance(dtype: Dtype, a: &[u8], b: &[u8]) -> Option<f64> {
    let real = |part: &dyn Fn(&[u8]) -> f64| Some((part(a) - part(b)).abs());
    match dtype {
        Dtype::U8 | Dtype::U16 | Dtype::U32 | Dtype::U64 => Some(unsigned(a).abs_diff(unsigned(b)) as f64),
        Dtype::I8 | Dtype::I16 | Dtype::I32 | Dtype::I64 => Some(signed(a).abs_diff(signed(b)) as f64),
        Dtype::F8E5m2 => real(&|x| float(unsigned(x), 5, 2, 15, Special::Ieee)),
        Dtype::F8E4m3 => real(&|x| float(unsigned(x), 4, 3, 7, Special::NanOnly)),
        Dtype::F8E5m2fnuz => real(&|x| float(unsigned(x), 5, 2, 16, Special::NoNegativeZero)),
        Dtype::F8E4m3fnuz => real(&|x| float(unsigned(x), 4, 3, 8, Special::NoNegativeZero)),
        Dtype::F8E8m0 => real(&|x| power_of_two(unsigned(x))),
        Dtype::F16 => real(&|x| float(unsigned(x), 5, 10, 15, Special::Ieee)),
        Dtype::BF16 => real(&|x| float(unsigned(x), 8, 7, 127, Special::Ieee)),
        Dtype::F32 => real(&single),
        Dtype::F64 => real(&|x| f64::from_bits(unsigned(x))),
        Dtype::C64 => {
            let ((a_re, a_im), (b_re, b_im)) = (a.split_at(4), b.split_at(4));
            let (re, im) = (single(a_re) - single(b_re), single(a_im) - single(b_im));
            // hypot(infinity, NaN) is infinite: not finite either.
            Some(re.hypot(im))
        }
        // Booleans.
        _ => None,
    }
}

/// Returns at most 8 bytes as a number.
fn unsigned(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

/// Returns at most 8 bytes as a number in two's complement.
fn signed(bytes: &[u8]) -> i64 {
    let unused = 64 - 8 * bytes.len() as u32;
    (unsigned(bytes) << unused) as i64 >> unused
}

fn single(bytes: &[u8]) -> f64 {
    f64::from(f32::from_bits(unsigned(bytes) as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floats(a: &[f32], b: &[f32]) -> ElementDiff {
        let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        Comparison::of(Dtype::F32, &bytes(a), &bytes(b)).finish()
    }

    #[test]
    fn differences_are_counted_and_measured() {
        let compared = floats(&[1.0, 2.0, -3.0, 0.0], &[1.0, 2.5, -4.0, -0.0]);
        assert_eq!(
            compared,
            ElementDiff { total: 4, differing: 3, largest_difference: Some(1.0), not_finite: 0, ..compared }
        );
        let compared = floats(&[f32::NAN, 1.0, f32::INFINITY, 0.0], &[f32::NAN, f32::NAN, 1.0, 0.5]);
        assert_eq!(
            compared,
            ElementDiff { total: 4, differing: 3, largest_difference: Some(0.5), not_finite: 2, ..compared }
        );
    }

    #[test]
    fn blocks_do_not_matter() {
        let a: Vec<f32> = (0..5000).map(|i| i as f32).collect();
        let mut b = a.clone();
        b[1023] += 1.0;
        b[1024] += 2.0;
        b[4999] -= 8.0;
        let compared = floats(&a, &b);
        assert_eq!((compared.total, compared.differing, compared.largest_difference), (5000, 3, Some(8.0)));
        let sums = |of: fn(f64, f64) -> f64| a.iter().zip(&b).map(|(a, b)| of((*a).into(), (*b).into())).sum::<f64>();
        let (aa, bb) = (sums(|a, _| a * a).sqrt(), sums(|_, b| b * b).sqrt());
        let close = |found: Option<f64>, expected: f64| (found.unwrap() / expected - 1.0).abs() < 1e-12;
        assert!(close(compared.relative_l2, 69f64.sqrt() / aa), "{compared:?}");
        assert!(close(compared.cosine, sums(|a, b| a * b) / aa / bb), "{compared:?}");
    }

    /// The two ways to compare a block agree, for every type and for bytes of all kinds.
    #[test]
    fn blocks_of_numbers_are_compared_as_single_elements_are() {
        let mut state = 1u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as u8
        };
        for &dtype in Dtype::ALL {
            for round in 0..40 {
                // Every other time without the exponents of NaN and infinity.
                let top = |i: usize| i % dtype.size() == dtype.size() - 1 || dtype == Dtype::C64 && i % 4 == 3;
                let mut byte = |i: usize| if round % 2 == 0 && top(i) { random() & 0xbf } else { random() };
                let a: Vec<u8> = (0..1024).map(&mut byte).collect();
                let mut b = a.clone();
                // From nothing to everything.
                (0..1usize << (round / 4)).for_each(|_| {
                    let at = usize::from(byte(0)) * 4 + 3;
                    b[at] = byte(at);
                });
                let mut one = ElementDiff::default();
                compare(&mut one, dtype, &a, &b);
                let found = Comparison::of(dtype, &a, &b).finish();
                assert_eq!(
                    (found.differing, found.largest_difference, found.not_finite),
                    (one.differing, one.largest_difference, one.not_finite),
                    "{dtype}"
                );
            }
        }
    }

    #[test]
    fn directions_and_relative_distances() {
        let compared = floats(&[1.0, 0.0, f32::NAN], &[0.0, 2.0, 7.0]);
        assert_eq!((compared.relative_l2, compared.cosine), (Some(5f64.sqrt()), Some(0.0)));
        let compared = floats(&[3.0, -4.0], &[-6.0, 8.0]);
        assert_eq!((compared.relative_l2, compared.cosine), (Some(3.0), Some(-1.0)));
        // Nothing has no direction.
        let compared = floats(&[0.0, 0.0], &[1.0, f32::INFINITY]);
        assert_eq!((compared.relative_l2, compared.cosine), (None, None));
        assert_eq!((compared.changed_share(), compared.is_within(1.0)), (1.0, false));
        assert!(floats(&[1.0, 2.0], &[1.5, 2.0]).is_within(0.5) && !floats(&[1.0], &[1.5]).is_within(0.4));
        let compared = Comparison::of(Dtype::Bool, &[0, 1], &[1, 1]).finish();
        assert_eq!((compared.relative_l2, compared.cosine, compared.is_within(9.0)), (None, None, false));
    }

    #[test]
    fn whole_numbers_have_distances_of_any_size() {
        let distance =
            |dtype, a: i64, b: i64, size| distance(dtype, &a.to_le_bytes()[..size], &b.to_le_bytes()[..size]);
        assert_eq!(distance(Dtype::I8, -128, 127, 1), Some(255.0));
        assert_eq!(distance(Dtype::U8, 0, 255, 1), Some(255.0));
        assert_eq!(distance(Dtype::I16, -1, 1, 2), Some(2.0));
        assert_eq!(distance(Dtype::I64, i64::MIN, i64::MAX, 8), Some(u64::MAX as f64));
        assert_eq!(distance(Dtype::U64, 0, -1, 8), Some(u64::MAX as f64));
        assert_eq!(distance(Dtype::Bool, 0, 1, 1), None);
    }

    #[test]
    fn complex_numbers_are_points() {
        let point = |re: f32, im: f32| [re.to_le_bytes(), im.to_le_bytes()].concat();
        assert_eq!(distance(Dtype::C64, &point(1.0, 1.0), &point(4.0, 5.0)), Some(5.0));
    }
}
