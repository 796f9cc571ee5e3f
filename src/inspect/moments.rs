//! Range, mean, standard deviation and norm of numbers that arrive in blocks.

use super::lanes::{self, Single};
use super::numbers::{Singles, decode};
use super::reading::Part;
use crate::dtype::Dtype;

/// The number of elements that are summed up at a time: few enough for a core's first cache.
pub(super) const BLOCK: usize = 2048;

/// The moments of the numbers so far.
#[derive(Debug, Default)]
pub(super) struct Moments {
    /// How many numbers there were.
    pub(super) count: u64,
    /// How many of them were zero.
    pub(super) zeros: u64,
    /// How many were NaN.
    pub(super) nan: u64,
    /// How many were infinite.
    pub(super) infinite: u64,
    /// The smallest and the largest finite number.
    pub(super) range: Option<(f64, f64)>,
    finite: u64,
    mean: f64,
    /// The sum of the squared distances from the mean.
    deviation: f64,
    squares: Squares,
}

impl Moments {
    /// Returns the moments of little-endian elements of type `dtype`.
    ///
    /// Each block is summed up on its own and then combined with what was before, as in Chan, Golub, LeVeque, "Updating
    /// formulae and a pairwise algorithm for computing sample variances" (1979), so that precision does not depend on
    /// the number of values.
    pub(super) fn of(dtype: Dtype, bytes: &[u8]) -> Moments {
        let mut moments = Moments::default();
        let (mut singles, mut numbers) = (Singles::of(dtype), Vec::new());
        for block in bytes.chunks(BLOCK * dtype.size()) {
            let is_added = singles.as_mut().is_some_and(|singles| moments.add_singles(singles.decode(block)));
            if !is_added {
                decode(dtype, block, &mut numbers);
                moments.add(&mut numbers);
            }
        }
        moments
    }

    /// Adds a block of numbers, unless there is one among them that is not finite: returns `false` then.
    fn add_singles(&mut self, numbers: &[Single]) -> bool {
        let (sum, squares) = lanes::powers(numbers);
        if !squares.is_finite() {
            return false;
        }
        let (min, max, zeros) = lanes::range(numbers);
        self.count += numbers.len() as u64;
        self.zeros += zeros;
        // The squares of numbers of 32 bits neither overflow nor underflow in 64.
        self.squares.medium += squares;
        let count = numbers.len() as f64;
        self.combine(numbers.len() as u64, sum / count, (min.into(), max.into()), |mean| {
            let deviation = squares - sum * mean;
            // Numbers that are close together leave few digits of that.
            if deviation < squares / 64.0 { lanes::deviation(numbers, mean) } else { deviation }
        });
        true
    }

    /// Adds a block of numbers, and removes those that are not finite from it.
    fn add(&mut self, numbers: &mut Vec<f64>) {
        self.count += numbers.len() as u64;
        // 0 times a number that is not finite is NaN.
        if sum(numbers, |x| x * 0.0).is_nan() {
            self.nan += numbers.iter().filter(|x| x.is_nan()).count() as u64;
            self.infinite += numbers.iter().filter(|x| x.is_infinite()).count() as u64;
            numbers.retain(|x| x.is_finite());
        }
        let Some((min, max)) = range(numbers) else { return };
        self.zeros += sum(numbers, |x| if x == 0.0 { 1.0 } else { 0.0 }) as u64;
        self.squares.add(numbers, min.abs().max(max.abs()));
        let (total, count) = (sum(numbers, |x| x), numbers.len() as f64);
        // The sum of large numbers may exceed 64 bits, and their mean does not.
        let mean = if total.is_finite() { total / count } else { sum(numbers, |x| x / count) };
        self.combine(numbers.len() as u64, mean, (min, max), |mean| sum(numbers, |x| (x - mean) * (x - mean)));
    }

    /// Adds a block of `count` finite numbers, of which there is at least one. `deviation` returns the sum of their
    /// squared distances from their mean.
    fn combine(&mut self, count: u64, mean: f64, (min, max): (f64, f64), deviation: impl FnOnce(f64) -> f64) {
        // Rounding must not move the mean out of the range: the deviation of equal numbers is 0.
        let mean = mean.clamp(min, max);
        let deviation = deviation(mean);
        self.join(count, mean, deviation, (min, max));
    }

    fn join(&mut self, count: u64, mean: f64, deviation: f64, (min, max): (f64, f64)) {
        self.range = Some(self.range.map_or((min, max), |(low, high)| (low.min(min), high.max(max))));
        let (before, added) = (self.finite as f64, count as f64);
        (self.mean, self.deviation) = match self.finite {
            0 => (mean, deviation),
            _ => {
                let (all, step) = (before + added, mean - self.mean);
                let between = step * step * (before * added / all);
                (self.mean + step * (added / all), self.deviation + deviation + between)
            }
        };
        self.finite += count;
    }

    /// Returns the mean of the finite numbers, if there are any and it is finite.
    pub(super) fn mean(&self) -> Option<f64> {
        Some(self.mean).filter(|mean| self.finite > 0 && mean.is_finite())
    }

    /// Returns the population standard deviation of the finite numbers, if there are any and it is finite.
    pub(super) fn std(&self) -> Option<f64> {
        Some((self.deviation / self.finite as f64).sqrt()).filter(|std| std.is_finite())
    }

    /// Returns the L2 norm of the finite numbers, if it is finite.
    pub(super) fn norm(&self) -> Option<f64> {
        Some(self.squares.root()).filter(|norm| norm.is_finite())
    }
}

impl Part for Moments {
    fn append(&mut self, next: Moments) {
        self.count += next.count;
        self.zeros += next.zeros;
        self.nan += next.nan;
        self.infinite += next.infinite;
        self.squares.append(&next.squares);
        if let Some(range) = next.range {
            self.join(next.finite, next.mean, next.deviation, range);
        }
    }
}

/// A sum of squares that neither overflows nor underflows: those of very large and of very small numbers are kept
/// apart, scaled by a power of two.
#[derive(Debug, Default)]
struct Squares {
    large: f64,
    medium: f64,
    small: f64,
}

const SCALE: f64 = f64::from_bits((1023 + 600) << 52);

impl Squares {
    /// Adds numbers, the largest of which is `largest` in absolute value.
    fn add(&mut self, numbers: &[f64], largest: f64) {
        match largest {
            1e140.. => self.large += sum(numbers, |x| (x / SCALE) * (x / SCALE)),
            1e-140.. => self.medium += sum(numbers, |x| x * x),
            _ => self.small += sum(numbers, |x| (x * SCALE) * (x * SCALE)),
        }
    }

    fn append(&mut self, next: &Squares) {
        self.large += next.large;
        self.medium += next.medium;
        self.small += next.small;
    }

    /// Returns the square root.
    fn root(&self) -> f64 {
        let (large, small) = (self.large.sqrt() * SCALE, self.small.sqrt() / SCALE);
        large.hypot(self.medium.sqrt()).hypot(small)
    }
}

/// Returns the sum of a term over all numbers, in eight sums of their own, which a processor computes at once.
pub(super) fn sum(numbers: &[f64], term: impl Fn(f64) -> f64) -> f64 {
    let (blocks, rest) = numbers.as_chunks::<8>();
    let mut sums = [0.0; 8];
    for block in blocks {
        for (sum, number) in sums.iter_mut().zip(block) {
            *sum += term(*number);
        }
    }
    sums.iter().sum::<f64>() + rest.iter().map(|number| term(*number)).sum::<f64>()
}

/// Returns the smallest and the largest of finite numbers.
fn range(numbers: &[f64]) -> Option<(f64, f64)> {
    let first = *numbers.first()?;
    let (mut low, mut high) = ([first; 8], [first; 8]);
    let (blocks, rest) = numbers.as_chunks::<8>();
    for block in blocks {
        for ((low, high), &number) in low.iter_mut().zip(&mut high).zip(block) {
            *low = if number < *low { number } else { *low };
            *high = if number > *high { number } else { *high };
        }
    }
    let all = low.iter().chain(&high).chain(rest);
    Some(all.fold((first, first), |(low, high), &number| (low.min(number), high.max(number))))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In blocks of three, and in parts of five blocks.
    fn of(numbers: &[f64]) -> Moments {
        let mut moments = Moments::default();
        for part in numbers.chunks(15) {
            let mut added = Moments::default();
            part.chunks(3).for_each(|block| added.add(&mut block.to_vec()));
            moments.append(added);
        }
        moments
    }

    /// Numbers of 32 bits are summed up in another way.
    #[test]
    fn singles_have_the_moments_of_their_numbers() {
        let close = |found: Option<f64>, expected: Option<f64>, scale: f64| match (found, expected) {
            (Some(found), Some(expected)) => (found - expected).abs() <= 1e-13 * scale,
            (found, expected) => found == expected,
        };
        let mut state = 7u32;
        let mut random = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 16_777_216.0 - 0.5
        };
        for (center, width) in [(0.0, 1.0), (1.0, 0.01), (1e6, 1.0), (-3e38, 1e37), (1e-44, 1e-44), (0.25, 0.0)] {
            for count in [1, 7, 8, 31, 2047, 2048, 5003] {
                let singles: Vec<f32> = (0..count).map(|_| center + width * random()).collect();
                let found = Moments::of(Dtype::F32, &singles.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>());
                let mut expected = Moments::default();
                expected.add(&mut singles.iter().map(|x| f64::from(*x)).collect());
                let largest = expected.range.map_or(0.0, |(low, high)| low.abs().max(high.abs()));
                let name = format!("{center} {width} {count}");
                assert_eq!((found.count, found.zeros), (expected.count, expected.zeros), "{name}");
                assert_eq!((found.range, found.finite), (expected.range, expected.finite), "{name}");
                assert!(close(found.mean(), expected.mean(), largest), "{name}");
                assert!(close(found.std(), expected.std(), expected.std().unwrap()), "{name}: {found:?}, {expected:?}");
                assert!(close(found.norm(), expected.norm(), expected.norm().unwrap()), "{name}");
            }
        }
    }

    #[test]
    fn known_moments() {
        let moments = of(&[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]);
        assert_eq!((moments.range, moments.mean(), moments.std()), (Some((2.0, 9.0)), Some(5.0), Some(2.0)));
        assert!((moments.norm().unwrap() - 232f64.sqrt()).abs() < 1e-12);
        let moments = of(&[0.0, f64::NAN, -0.0, f64::INFINITY, 3.0, f64::NEG_INFINITY, -4.0]);
        assert_eq!((moments.count, moments.zeros, moments.nan, moments.infinite), (7, 2, 1, 2));
        assert_eq!((moments.range, moments.norm()), (Some((-4.0, 3.0)), Some(5.0)));
    }

    #[test]
    fn nothing_has_no_mean() {
        for none in [of(&[]), of(&[f64::NAN; 5])] {
            assert_eq!((none.range, none.mean(), none.std(), none.norm()), (None, None, None, Some(0.0)));
        }
    }

    #[test]
    fn equal_numbers_have_no_deviation() {
        for number in [0.1, -1e300, 1.0 / 3.0, 5e-324] {
            let moments = of(&[number; 1000]);
            assert_eq!((moments.mean(), moments.std()), (Some(number), Some(0.0)));
        }
    }

    #[test]
    fn norms_have_the_whole_range() {
        let close =
            |norm: Option<f64>, expected: f64| assert!((norm.unwrap() / expected - 1.0).abs() < 1e-15, "{norm:?}");
        close(of(&[3e300, -4e300]).norm(), 5e300);
        close(of(&[3e-200, -4e-200]).norm(), 5e-200);
        assert_eq!(of(&[f64::MAX; 9]).norm(), None);
        // Neither is the mean of those whose sum exceeds 64 bits.
        let mean = of(&[f64::MAX, f64::MAX, 0.0, 0.0]).mean().unwrap();
        assert!((mean / (f64::MAX / 2.0) - 1.0).abs() < 1e-15, "{mean:?}");
        // Digits far from zero are not lost.
        let moments = of(&[1e9 + 1.0, 1e9 + 2.0, 1e9 + 3.0, 1e9 + 4.0]);
        assert!((moments.std().unwrap() - 1.25f64.sqrt()).abs() < 1e-12);
    }
}
