//! A random order of many items in constant memory.

/// The number of rounds of the Feistel network.
const ROUNDS: usize = 12;

/// With halves of less than three bits, the orders of few items are not equally frequent.
const MIN_BITS: u32 = 6;

/// Random orders of `0 .. len`, a new one per epoch, computed one place at a time in constant memory. The same seed
/// produces the same orders on every machine and in every version of this crate.
///
/// The order is a bijection of `0 .. 2^b`, the smallest power of two that is not below `len` (at least 64): an
/// alternating Feistel network of 12 rounds over the bits of the place. Places that it leads out of `0 .. len` go
/// through it again until they are inside ("cycle walking": Black and Rogaway, "Ciphers with Arbitrary Finite Domains",
/// 2002), on average less than twice from 64 items on. The round function is the finalizer of SplitMix64 (Steele, Lea
/// and Flood, "Fast Splittable Pseudorandom Number Generators", 2014). Finally, all places are rotated by a random
/// distance. The order is not cryptographically secure.
///
/// ```
/// use tch_checkpoint::Shuffle;
/// let shuffle = Shuffle::new(1_000_000_000, 7);
/// let order = shuffle.epoch(0);
/// assert_eq!(order.get(0), order.get(0));
/// assert_ne!(order.get(0), shuffle.epoch(1).get(0));
/// let mut few: Vec<usize> = Shuffle::new(10, 7).epoch(3).iter().collect();
/// few.sort();
/// assert_eq!(few, (0..10).collect::<Vec<_>>());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shuffle {
    len: usize,
    seed: u64,
}

impl Shuffle {
    /// Creates orders of `len` items.
    #[must_use]
    pub fn new(len: usize, seed: u64) -> Shuffle {
        Shuffle { len, seed }
    }

    /// Returns the order of an epoch.
    #[must_use]
    pub fn epoch(&self, epoch: u64) -> Permutation {
        // Two rounds of mixing, so that neighbouring seeds and epochs are unrelated.
        let mut state = mix(mix(self.seed.wrapping_add(GOLDEN)) ^ epoch.wrapping_mul(GOLDEN).wrapping_add(GOLDEN));
        let mut next = || {
            state = state.wrapping_add(GOLDEN);
            mix(state)
        };
        let mut keys = [0; ROUNDS];
        keys.iter_mut().for_each(|key| *key = next());
        let len = self.len as u64;
        let bits = len.saturating_sub(1).checked_ilog2().map_or(0, |last| last + 1).max(MIN_BITS);
        let rotation = if len > 0 { ((u128::from(next()) * u128::from(len)) >> 64) as u64 } else { 0 };
        Permutation { len, low: bits / 2, high: bits - bits / 2, keys, rotation }
    }
}

/// 2^64 divided by the golden ratio: the step of SplitMix64.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// Applies the finalizer of SplitMix64.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// An order of `0 .. len`: every number once. See [`Shuffle`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permutation {
    len: u64,
    /// Bits of the two halves of a place.
    low: u32,
    high: u32,
    keys: [u64; ROUNDS],
    rotation: u64,
}

impl Permutation {
    /// Returns the number at a place, or `None` past the end.
    #[must_use]
    pub fn get(&self, place: usize) -> Option<usize> {
        let mut x = place as u64;
        if x >= self.len {
            return None;
        }
        // The cycle returns to `place` at the latest.
        loop {
            x = self.permuted(x);
            if x < self.len {
                break;
            }
        }
        // Cannot overflow: both are below `len`.
        let room = self.len - self.rotation;
        usize::try_from(if x < room { x + self.rotation } else { x - room }).ok()
    }

    /// Returns all numbers in order.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        (0..).map_while(|place| self.get(place))
    }

    /// Returns the number of items.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Returns `true` if there are no items.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Applies a bijection of the numbers of `low + high` bits.
    fn permuted(&self, x: u64) -> u64 {
        let mask = |bits: u32| (1u64 << bits) - 1;
        let (mut a, mut b) = (x >> self.low, x & mask(self.low));
        for (round, key) in self.keys.iter().enumerate() {
            // The upper bits of a product are mixed better.
            match round % 2 {
                0 => a ^= upper(mix(b ^ key), self.high),
                _ => b ^= upper(mix(a ^ key), self.low),
            }
        }
        (a << self.low) | b
    }
}

/// Returns the upper bits of a number.
fn upper(x: u64, bits: u32) -> u64 {
    x.checked_shr(64 - bits).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    /// Pearson's statistic against equal frequencies, as a distance from its mean in standard deviations.
    fn chi_square(counts: &[u64]) -> f64 {
        let expected = counts.iter().sum::<u64>() as f64 / counts.len() as f64;
        let statistic: f64 = counts.iter().map(|&count| (count as f64 - expected).powi(2) / expected).sum();
        let freedom = counts.len() as f64 - 1.0;
        (statistic - freedom) / (2.0 * freedom).sqrt()
    }

    #[test]
    fn every_number_comes_once() {
        for len in (0..70).chain([127, 128, 129, 1000, 65_535, 65_536, 65_537]) {
            for epoch in 0..3 {
                let mut seen: Vec<usize> = Shuffle::new(len, 5).epoch(epoch).iter().collect();
                seen.sort_unstable();
                assert_eq!(seen, (0..len).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn large_sets_need_no_memory() {
        for len in [1_000_000_000, 1 << 40, usize::MAX] {
            let order = Shuffle::new(len, 1).epoch(9);
            let seen: std::collections::HashSet<_> = (0..20_000).map(|place| order.get(place).unwrap()).collect();
            assert!(seen.len() == 20_000 && seen.iter().all(|number| *number < len));
            assert!(order.get(len).is_none() && order.get(len - 1).is_some());
            // Spread over all of it.
            let mut counts = [0; 64];
            seen.iter().for_each(|number| counts[(*number as u128 * 64 / len as u128) as usize] += 1);
            assert!(chi_square(&counts).abs() < 6.0, "{len}: {counts:?}");
        }
    }

    /// What was promised to stay as it is: checkpoints in the middle of an epoch rely on it.
    #[test]
    fn the_order_never_changes() {
        let first = |len, seed, epoch| Shuffle::new(len, seed).epoch(epoch).iter().take(6).collect::<Vec<_>>();
        let known = GOLDEN_ORDERS;
        assert_eq!([first(10, 0, 0), first(1000, 1, 2), first(1_000_000_007, u64::MAX, 3)], known.map(|k| k.to_vec()));
    }

    const GOLDEN_ORDERS: [[usize; 6]; 3] = [
        [0, 9, 5, 6, 4, 2],
        [205, 693, 188, 759, 828, 600],
        [788_375_169, 544_581_049, 719_416_171, 900_596_878, 659_078_632, 368_883_426],
    ];

    #[test]
    fn all_orders_of_few_items_are_equally_frequent() {
        for (len, orders) in [(2usize, 2usize), (3, 6), (4, 24), (5, 120), (6, 720)] {
            let mut counts: HashMap<Vec<usize>, u64> = HashMap::new();
            let tries = orders as u64 * 150;
            for seed in 0..tries {
                *counts.entry(Shuffle::new(len, seed).epoch(seed % 3).iter().collect()).or_default() += 1;
            }
            assert_eq!(counts.len(), orders, "{len} items");
            let distance = chi_square(&counts.into_values().collect::<Vec<_>>());
            assert!(distance.abs() < 5.0, "{len} items: {distance}");
        }
    }

    #[test]
    fn places_pairs_and_epochs_are_independent() {
        for len in [64usize, 100, 1000, 4096] {
            let mut first = vec![0; 50];
            let mut distance = vec![0; 50];
            let mut between = vec![0; 50];
            for seed in 0..200 {
                let (now, next) = (Shuffle::new(len, seed).epoch(0), Shuffle::new(len, seed).epoch(1));
                let numbers: Vec<usize> = now.iter().collect();
                let bin = |number: usize| number * 50 / len;
                for place in 0..len.min(40) {
                    let number = numbers[place];
                    first[bin(number)] += 1;
                    distance[bin((number + len - numbers[(place + 1) % len]) % len)] += 1;
                    between[bin((number + len - next.get(place).unwrap()) % len)] += 1;
                }
            }
            // Bins of lengths that do not divide by 50 are not equal.
            if len % 50 == 0 {
                for (name, counts) in [("number", &first), ("next epoch", &between)] {
                    assert!(chi_square(counts).abs() < 6.0, "{name} of {len}: {counts:?}");
                }
            }
            let zero_is_rare = distance[0] as f64 / distance.iter().sum::<u64>() as f64;
            assert!(zero_is_rare < 0.04, "{len}: {zero_is_rare}");
        }
        // A random order of n items leaves one in its place on average, and has (n - 1) / 2 descents.
        let (mut fixed, mut descents) = (0, 0);
        for seed in 0..1000 {
            let numbers: Vec<usize> = Shuffle::new(500, seed).epoch(1).iter().collect();
            fixed += numbers.iter().enumerate().filter(|(place, number)| place == *number).count();
            descents += numbers.windows(2).filter(|pair| pair[0] > pair[1]).count();
        }
        assert!((900..1100).contains(&fixed), "{fixed}");
        let mean = f64::from(u32::try_from(descents).unwrap()) / 1000.0;
        assert!((mean - 249.5).abs() < 1.0, "{mean}");
    }
}
