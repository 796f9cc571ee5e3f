//! `inspect::tensor_stats` and `Target::stats`, compared with straightforward sums.

mod common;

use common::Memory;
use common::table::Table;
use half::{bf16, f16};
use proptest::prelude::*;
use tch_checkpoint::inspect::{self, StatsOptions, Target, TensorStats};
use tch_checkpoint::{Checkpoint, Dtype, Error};

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn stats_of(dtype: Dtype, bytes: Vec<u8>, options: &StatsOptions) -> TensorStats {
    let count = bytes.len() / dtype.size();
    let table = Table::default().with("x", dtype, &[count as u64], bytes);
    inspect::tensor_stats(&table, "x", options).unwrap()
}

/// The elements as numbers, by the standard library and `half`.
fn numbers(dtype: Dtype, bytes: &[u8]) -> Vec<f64> {
    let four = |x: &[u8]| [x[0], x[1], x[2], x[3]];
    let element = |x: &[u8]| match dtype {
        Dtype::F16 => f16::from_le_bytes([x[0], x[1]]).to_f64(),
        Dtype::BF16 => bf16::from_le_bytes([x[0], x[1]]).to_f64(),
        Dtype::I16 => i16::from_le_bytes([x[0], x[1]]).into(),
        Dtype::U8 => x[0].into(),
        _ => f32::from_le_bytes(four(x)).into(),
    };
    let size = if dtype == Dtype::C64 { 4 } else { dtype.size() };
    bytes.chunks(size).map(element).collect()
}

fn close(found: Option<f64>, expected: f64, scale: f64) -> bool {
    found.is_some_and(|found| (found - expected).abs() <= 1e-12 * scale.max(f64::MIN_POSITIVE))
}

fn check(dtype: Dtype, bytes: &[u8]) -> Result<(), TestCaseError> {
    let stats = stats_of(dtype, bytes.to_vec(), &StatsOptions::new().histogram(7));
    let all = numbers(dtype, bytes);
    let finite: Vec<f64> = all.iter().copied().filter(|x| x.is_finite()).collect();
    let count = |of: fn(&f64) -> bool| all.iter().filter(|x| of(x)).count() as u64;
    prop_assert_eq!(stats.count, all.len() as u64);
    prop_assert_eq!(stats.nan, count(|x| x.is_nan()));
    prop_assert_eq!(stats.infinite, count(|x| x.is_infinite()));
    prop_assert_eq!(stats.zeros, count(|x| *x == 0.0));
    prop_assert_eq!(stats.min, finite.iter().copied().reduce(f64::min));
    prop_assert_eq!(stats.max, finite.iter().copied().reduce(f64::max));
    let n = finite.len() as f64;
    let norm = finite.iter().map(|x| x * x).sum::<f64>().sqrt();
    prop_assert!(close(stats.norm, norm, norm), "{:?} is not {}", stats.norm, norm);
    if finite.is_empty() {
        prop_assert_eq!((stats.mean, stats.std, stats.histogram), (None, None, None));
        return Ok(());
    }
    let largest = finite.iter().fold(0f64, |largest, x| largest.max(x.abs()));
    let mean = finite.iter().sum::<f64>() / n;
    let std = (finite.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n).sqrt();
    prop_assert!(close(stats.mean, mean, largest), "{:?} is not {}", stats.mean, mean);
    prop_assert!(close(stats.std, std, largest), "{:?} is not {}", stats.std, std);
    let histogram = stats.histogram.unwrap();
    prop_assert_eq!(histogram.counts.iter().sum::<u64>(), finite.len() as u64);
    // Edges are rounded: a bin may differ by the values that lie on them. Where one large value makes a narrow range,
    // the rounding is larger than a share of that range.
    let (low, high) = (histogram.min, histogram.max);
    let edge = |i: usize| low + (high - low) * i as f64 / 7.0;
    let slack = f64::max(1e-9 * (high - low), 4.0 * f64::EPSILON * low.abs().max(high.abs()));
    for (i, counted) in histogram.counts.iter().enumerate() {
        let within = |from: f64, to: f64| finite.iter().filter(|x| **x >= from && **x <= to).count() as u64;
        let (least, most) =
            (within(edge(i) + slack, edge(i + 1) - slack), within(edge(i) - slack, edge(i + 1) + slack));
        prop_assert!((least..=most).contains(counted), "bin {} has {}, not {}..={}", i, counted, least, most);
    }
    Ok(())
}

proptest! {
    /// Any bits: NaN, infinities, subnormal numbers and zeros among them.
    #[test]
    fn statistics_are_those_of_plain_sums(
        bytes in proptest::collection::vec(any::<u8>(), 0..3000).prop_map(|mut bytes| { bytes.truncate(bytes.len() / 8 * 8); bytes }),
        dtype in proptest::sample::select(vec![Dtype::F16, Dtype::BF16, Dtype::F32, Dtype::C64, Dtype::I16, Dtype::U8]),
    ) {
        check(dtype, &bytes)?;
    }

    #[test]
    fn also_of_one_number(bits in any::<u32>()) {
        check(Dtype::F32, &bits.to_le_bytes())?;
    }

    #[test]
    fn also_of_ordinary_numbers(numbers in proptest::collection::vec(-1e3f32..1e3, 0..3000)) {
        check(Dtype::F32, &numbers.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())?;
    }
}

/// The range is one wide, and the numbers beside this one are half of that apart.
#[test]
fn one_number_so_large_that_the_edges_of_its_bins_are_rounded_to_it() {
    check(Dtype::F32, &2f32.powi(51).to_le_bytes()).unwrap();
}

/// Longer than what is kept in memory for a histogram, and than many pieces.
#[test]
fn a_tensor_of_many_pieces() {
    let numbers = (0..1_500_000u32).map(|i| if i % 3 == 0 { 0.0 } else { (i % 1000) as f32 - 499.5 });
    check(Dtype::F32, &numbers.flat_map(f32::to_le_bytes).collect::<Vec<u8>>()).unwrap();
}

/// For one large tensor, by as many threads as there are processors, and for each type that is summed in its own way.
#[test]
fn several_threads_find_the_same() -> Outcome {
    let bytes: Vec<u8> = (0..600_000u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    for dtype in [Dtype::F32, Dtype::BF16, Dtype::F16, Dtype::F64, Dtype::C64, Dtype::I8, Dtype::U64] {
        let table = || Table::default().with("x", dtype, &[bytes.len() as u64 / dtype.size() as u64], bytes.clone());
        let options = StatsOptions::new().histogram(9).range(-100.0..=1000.0);
        let one = inspect::tensor_stats(&table(), "x", &options)?;
        assert_eq!(Target::of(Box::new(table())).stats(None, &options)?["x"], one, "{dtype}");
    }
    Ok(())
}

#[test]
fn the_range_of_a_histogram_can_be_given() -> Outcome {
    let bytes: Vec<u8> = [-2f64, -1.0, 0.0, 0.5, 1.0, 9.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    let histogram = |options: StatsOptions| stats_of(Dtype::F64, bytes.clone(), &options).histogram.unwrap();
    assert_eq!(histogram(StatsOptions::new().histogram(2).range(-1.0..=1.0)).counts, [1, 3]);
    let own = histogram(StatsOptions::new().histogram(11));
    assert_eq!((own.min, own.max, own.counts[0], own.counts[10]), (-2.0, 9.0, 1, 1));
    // One value only, and the widest range there is.
    let one = stats_of(Dtype::F64, 3f64.to_le_bytes().to_vec(), &StatsOptions::new().histogram(2)).histogram.unwrap();
    assert_eq!((one.min, one.max, one.counts), (2.5, 3.5, vec![0, 1]));
    let widest = [f64::MIN, -1.0, f64::MAX].iter().flat_map(|x| x.to_le_bytes()).collect();
    assert_eq!(stats_of(Dtype::F64, widest, &StatsOptions::new().histogram(3)).histogram.unwrap().counts, [1, 1, 1]);
    for options in [
        StatsOptions::new().histogram(0),
        StatsOptions::new().histogram(inspect::MAX_BINS + 1),
        StatsOptions::new().histogram(2).range(1.0..=0.0),
        StatsOptions::new().histogram(2).range(0.0..=f64::INFINITY),
    ] {
        let refused = inspect::tensor_stats(&Table::of(&["x"]), "x", &options);
        assert!(matches!(refused, Err(Error::InvalidArgument(_))), "{options:?}: {refused:?}");
    }
    assert!(matches!(inspect::tensor_stats(&Table::of(&["x"]), "y", &StatsOptions::new()), Err(Error::Object { .. })));
    Ok(())
}

#[test]
fn statistics_of_a_checkpoint() -> Outcome {
    let dir = tempfile::tempdir()?;
    let weight = Memory::f32(&[2, 2], [1.0, 0.0, -1.0, f32::NAN]);
    let checkpoint = Checkpoint::new().track("encoder", &weight)?.track("tied", &weight)?;
    let path = checkpoint.track("other", Memory::seeded(600_000, 1))?.write(dir.path().join("a"))?;
    let target = Target::open(&path)?;
    let stats = target.stats(None, &StatsOptions::new())?;
    assert_eq!(stats.keys().copied().collect::<Vec<_>>(), ["encoder", "other", "tied"]);
    assert_eq!(stats["encoder"], stats["tied"]);
    assert_eq!((stats["tied"].non_finite(), stats["tied"].zero_share(), stats["tied"].mean), (1, 0.25, Some(0.0)));
    let filtered = target.stats(Some("t*"), &StatsOptions::new())?;
    assert_eq!(filtered.keys().copied().collect::<Vec<_>>(), ["tied"]);
    // What was read is verified.
    let file = path.join("other.safetensors");
    let mut bytes = std::fs::read(&file)?;
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&file, bytes)?;
    assert!(matches!(target.stats(None, &StatsOptions::new()), Err(Error::Damaged { .. })));
    assert!(target.stats(Some("t*"), &StatsOptions::new()).is_ok());
    Ok(())
}
