//! Sums over many numbers of 32 bits at once, computed in 64.
//!
//! Every sum is kept in several parts, which vector registers hold: those that every processor of an architecture has
//! are enough. Compilers find them where a function takes arrays of such parts, adds to them in steps of one operation
//! each, and gives them back; reducing them in the same function mixes them up. The order of additions is the same on
//! every machine, and so are the results.

/// A number of 32 bits as its little-endian bytes.
pub(super) type Single = [u8; 4];

/// The numbers of one step, for a sum of its own each.
const LANES: usize = 8;

/// As many for five sums at once.
const FEW_LANES: usize = 4;

pub(super) fn value(single: Single) -> f64 {
    f32::from_le_bytes(single).into()
}

/// The sum of numbers and that of their squares, which are finite if and only if all numbers are.
pub(super) fn powers(singles: &[Single]) -> (f64, f64) {
    let (steps, rest) = singles.as_chunks();
    let (mut sums, mut squares) = ([0.0; LANES], [0.0; LANES]);
    add_powers(steps, &mut sums, &mut squares);
    let (mut sum, mut square) = (total(&sums), total(&squares));
    for number in rest.iter().copied().map(value) {
        sum += number;
        square += number * number;
    }
    (sum, square)
}

#[inline(never)]
fn add_powers(steps: &[[Single; LANES]], sums: &mut [f64; LANES], squares: &mut [f64; LANES]) {
    let (mut first, mut second) = (*sums, *squares);
    for step in steps {
        let numbers = step.map(value);
        (0..LANES).for_each(|i| first[i] += numbers[i]);
        (0..LANES).for_each(|i| second[i] += numbers[i] * numbers[i]);
    }
    (*sums, *squares) = (first, second);
}

/// The sum of the squared distances from `mean`.
pub(super) fn deviation(singles: &[Single], mean: f64) -> f64 {
    let (steps, rest) = singles.as_chunks();
    let mut sums = [0.0; LANES];
    add_deviations(steps, mean, &mut sums);
    rest.iter().fold(total(&sums), |sum, single| sum + (value(*single) - mean) * (value(*single) - mean))
}

#[inline(never)]
fn add_deviations(steps: &[[Single; LANES]], mean: f64, sums: &mut [f64; LANES]) {
    let mut all = *sums;
    for step in steps {
        let distances = step.map(|single| value(single) - mean);
        (0..LANES).for_each(|i| all[i] += distances[i] * distances[i]);
    }
    *sums = all;
}

/// The smallest and the largest of finite numbers, infinite if there are none, and how many are zero.
pub(super) fn range(singles: &[Single]) -> (f32, f32, u64) {
    const LANES: usize = 16;
    let (mut low, mut high, mut zeros) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES], [0u32; LANES]);
    let (steps, rest) = singles.as_chunks::<LANES>();
    for step in steps {
        let numbers = step.map(f32::from_le_bytes);
        for i in 0..LANES {
            low[i] = if numbers[i] < low[i] { numbers[i] } else { low[i] };
            high[i] = if numbers[i] > high[i] { numbers[i] } else { high[i] };
            zeros[i] += u32::from(numbers[i] == 0.0);
        }
    }
    let mut zeros: u64 = zeros.iter().copied().map(u64::from).sum();
    let (mut min, mut max) =
        (low.into_iter().fold(f32::INFINITY, f32::min), high.into_iter().fold(f32::NEG_INFINITY, f32::max));
    for number in rest.iter().copied().map(f32::from_le_bytes) {
        (min, max) = (min.min(number), max.max(number));
        zeros += u64::from(number == 0.0);
    }
    (min, max, zeros)
}

/// Sums over pairs of numbers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pairs {
    /// Of the squares of each side. They are finite if and only if all numbers are.
    pub(super) squares: [f64; 2],
    /// Of the products.
    pub(super) products: f64,
    /// Of the squares of the distances.
    pub(super) distances: f64,
    /// The largest distance.
    pub(super) largest: f64,
}

/// Sums up pairs of numbers: `a[i]` and `b[i]`.
pub(super) fn pairs(a: &[Single], b: &[Single]) -> Pairs {
    let ((a_steps, a_rest), (b_steps, b_rest)) = (a.as_chunks(), b.as_chunks());
    let mut sums = [[0.0; FEW_LANES]; 5];
    add_pairs(a_steps, b_steps, &mut sums);
    let [a_squares, b_squares, products, distances, largest] = sums;
    let mut pairs = Pairs {
        squares: [total(&a_squares), total(&b_squares)],
        products: total(&products),
        distances: total(&distances),
        largest: largest.into_iter().fold(0.0, f64::max),
    };
    for (a, b) in a_rest.iter().zip(b_rest).map(|(a, b)| (value(*a), value(*b))) {
        let distance = (a - b) * (a - b);
        pairs.squares[0] += a * a;
        pairs.squares[1] += b * b;
        pairs.products += a * b;
        pairs.distances += distance;
        pairs.largest = pairs.largest.max(distance);
    }
    // The root of a rounded square is the number itself.
    Pairs { largest: pairs.largest.sqrt(), ..pairs }
}

#[inline(never)]
fn add_pairs(a: &[[Single; FEW_LANES]], b: &[[Single; FEW_LANES]], sums: &mut [[f64; FEW_LANES]; 5]) {
    let [mut a_squares, mut b_squares, mut products, mut distances, mut largest] = *sums;
    for (a, b) in a.iter().zip(b) {
        let (a, b) = (a.map(value), b.map(value));
        (0..FEW_LANES).for_each(|i| a_squares[i] += a[i] * a[i]);
        (0..FEW_LANES).for_each(|i| b_squares[i] += b[i] * b[i]);
        (0..FEW_LANES).for_each(|i| products[i] += a[i] * b[i]);
        let mut squares = [0.0; FEW_LANES];
        (0..FEW_LANES).for_each(|i| squares[i] = a[i] - b[i]);
        (0..FEW_LANES).for_each(|i| squares[i] *= squares[i]);
        (0..FEW_LANES).for_each(|i| distances[i] += squares[i]);
        (0..FEW_LANES).for_each(|i| largest[i] = if squares[i] > largest[i] { squares[i] } else { largest[i] });
    }
    *sums = [a_squares, b_squares, products, distances, largest];
}

/// The sum of the squares of the distances of pairs of numbers, which is finite if and only if all numbers are.
pub(super) fn squared_distance(a: &[Single], b: &[Single]) -> f64 {
    let ((a_steps, a_rest), (b_steps, b_rest)) = (a.as_chunks(), b.as_chunks());
    let mut sums = [0.0; LANES];
    add_distances(a_steps, b_steps, &mut sums);
    let rest = a_rest.iter().zip(b_rest).map(|(a, b)| value(*a) - value(*b));
    rest.fold(total(&sums), |sum, distance| sum + distance * distance)
}

#[inline(never)]
fn add_distances(a: &[[Single; LANES]], b: &[[Single; LANES]], sums: &mut [f64; LANES]) {
    let mut all = *sums;
    for (a, b) in a.iter().zip(b) {
        let (mut distances, b) = (a.map(value), b.map(value));
        (0..LANES).for_each(|i| distances[i] -= b[i]);
        (0..LANES).for_each(|i| all[i] += distances[i] * distances[i]);
    }
    *sums = all;
}

/// Returns how many elements of `N` bytes differ.
pub(super) fn differing<const N: usize>(a: &[u8], b: &[u8]) -> u64 {
    const LANES: usize = 16;
    let ((a_steps, a_rest), (b_steps, b_rest)) =
        (a.as_chunks::<N>().0.as_chunks::<LANES>(), b.as_chunks::<N>().0.as_chunks::<LANES>());
    // An element of at most 8 bytes as a number: there is one comparison for each.
    let number = |bytes: &[u8; N]| {
        let mut all = [0; 8];
        all[..N].copy_from_slice(bytes);
        u64::from_le_bytes(all)
    };
    let mut counts = [0u32; LANES];
    for (a, b) in a_steps.iter().zip(b_steps) {
        for i in 0..LANES {
            counts[i] += u32::from(number(&a[i]) != number(&b[i]));
        }
    }
    let rest = a_rest.iter().zip(b_rest).filter(|(a, b)| a != b).count();
    counts.iter().copied().map(u64::from).sum::<u64>() + rest as u64
}

fn total(sums: &[f64]) -> f64 {
    sums.iter().sum()
}
