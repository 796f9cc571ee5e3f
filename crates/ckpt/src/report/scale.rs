//! Maps values to positions, and computes the ticks of an axis.

/// A range of values on an axis.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scale {
    low: f64,
    high: f64,
    is_log: bool,
}

/// How many times the largest value is as large as the smallest one where an axis is logarithmic.
const LOG_FROM: f64 = 1000.0;

impl Scale {
    /// Returns the linear scale of the finite values.
    pub fn linear(values: impl IntoIterator<Item = f64>) -> Option<Scale> {
        let (low, high) = range(values)?;
        Some(Scale { low, high, is_log: false })
    }

    /// Returns a scale of the finite values, with some room; logarithmic if all are positive and differ by a factor of
    /// more than 1000.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Scale> {
        let (low, high) = range(values)?;
        if low > 0.0 && high / low > LOG_FROM {
            return Some(Scale { low: low.log10(), high: high.log10(), is_log: true });
        }
        let room = match high - low {
            0.0 => (high.abs() * 0.1).max(f64::MIN_POSITIVE),
            width if width.is_finite() => width * 0.05,
            _ => 0.0,
        };
        Some(Scale { low: low - room, high: high + room, is_log: false })
    }

    /// Returns a scale that starts at 0.
    pub fn from_zero(values: impl IntoIterator<Item = f64>) -> Option<Scale> {
        let (_, high) = range(values)?;
        Some(Scale { low: 0.0, high: if high > 0.0 { high } else { 1.0 }, is_log: false })
    }

    /// Returns the position of a value, from 0 to 1.
    pub fn at(&self, value: f64) -> f64 {
        let value = if self.is_log { value.log10() } else { value };
        // Halves, so that the width of a range from the lowest to the highest number is finite.
        let (offset, width) = (value / 2.0 - self.low / 2.0, self.high / 2.0 - self.low / 2.0);
        if width > 0.0 { (offset / width).clamp(0.0, 1.0) } else { 0.5 }
    }

    /// Returns about `count` round values; twice as many if they would be too few to read other values by.
    pub fn legible_ticks(&self, count: usize) -> Vec<f64> {
        let ticks = self.ticks(count);
        if ticks.len() < ENOUGH { self.ticks(2 * count) } else { ticks }
    }

    /// Returns about `count` round values.
    pub fn ticks(&self, count: usize) -> Vec<f64> {
        if self.is_log {
            let (first, last) = (self.low.ceil() as i64, self.high.floor() as i64);
            let step = ((last - first) / count.max(1) as i64 + 1).max(1);
            return (first..=last).step_by(step as usize).map(|power| 10f64.powi(power as i32)).collect();
        }
        let rough = (self.high / 2.0 - self.low / 2.0) / count.max(1) as f64 * 2.0;
        if !(rough.is_normal() && rough > 0.0) {
            return vec![self.low];
        }
        let unit = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * unit).find(|step| *step >= rough).unwrap_or(rough);
        let first = (self.low / step).ceil();
        let ticks = (0..=2 * count).map(|n| (first + n as f64) * step);
        // Avoids -0 and superfluous digits.
        let ticks = ticks.take_while(|tick| *tick <= self.high * (1.0 + f64::EPSILON)).map(|tick| tick + 0.0);
        ticks.map(|tick| format!("{tick:.12e}").parse().unwrap_or(tick)).collect()
    }
}

/// The smallest number of ticks from which values between them can be read.
const ENOUGH: usize = 3;

/// Returns about `count` values from 0 to `largest` that are round as sizes: multiples of KiB, MiB and so on.
pub fn byte_ticks(largest: f64, count: usize) -> Vec<f64> {
    let mut unit = 1.0;
    while largest / unit >= 1024.0 {
        unit *= 1024.0;
    }
    let scale = Scale { low: 0.0, high: largest / unit, is_log: false };
    scale.legible_ticks(count).into_iter().map(|tick| tick * unit).collect()
}

/// Returns about `count` values from 0 to `largest` seconds that are round in the unit of the largest.
pub fn second_ticks(largest: f64, count: usize) -> Vec<f64> {
    let unit = match largest {
        ..120.0 => 1.0,
        ..7200.0 => 60.0,
        _ => 3600.0,
    };
    let scale = Scale { low: 0.0, high: largest / unit, is_log: false };
    scale.legible_ticks(count).into_iter().map(|tick| tick * unit).collect()
}

fn range(values: impl IntoIterator<Item = f64>) -> Option<(f64, f64)> {
    let finite = values.into_iter().filter(|value| value.is_finite());
    finite.fold(None, |range, value| {
        let (low, high) = range.unwrap_or((value, value));
        Some((low.min(value), high.max(value)))
    })
}

/// Returns at most about `2 * buckets` of `points`, which are in order: of each of `buckets` equal parts the lowest and
/// the highest one, so that no peak is lost.
pub fn thinned(points: &[(f64, f64)], buckets: usize) -> Vec<(f64, f64)> {
    if points.len() <= 2 * buckets {
        return points.to_vec();
    }
    let mut kept = Vec::with_capacity(2 * buckets);
    for part in points.chunks(points.len().div_ceil(buckets)) {
        let by_value = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
        let (low, high) = (part.iter().min_by(by_value), part.iter().max_by(by_value));
        if let (Some(low), Some(high)) = (low, high) {
            kept.extend(if low.0 <= high.0 { [*low, *high] } else { [*high, *low] });
        }
    }
    kept.dedup();
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_between_0_and_1() {
        let scale = Scale::linear([2.0, 4.0, f64::NAN, f64::INFINITY]).unwrap();
        assert_eq!([scale.at(2.0), scale.at(3.0), scale.at(9.0)], [0.0, 0.5, 1.0]);
        let scale = Scale::of([1.0, 1e4]).unwrap();
        assert_eq!(scale.at(100.0), 0.5);
        assert_eq!(Scale::of([3.0]).unwrap().at(3.0), 0.5);
        assert_eq!(Scale::of([0.0]).unwrap().at(0.0), 0.5);
        assert_eq!(Scale::of([f64::NAN]), None);
        let scale = Scale::of([f64::MIN, f64::MAX]).unwrap();
        assert_eq!(scale.at(0.0), 0.5);
    }

    #[test]
    fn ticks_are_round() {
        let ticks = |values: [f64; 2], count| Scale::linear(values).unwrap().ticks(count);
        assert_eq!(ticks([0.0, 1.0], 5), [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]);
        assert_eq!(ticks([-0.1, 0.25], 4), [-0.1, 0.0, 0.1, 0.2]);
        assert_eq!(ticks([100.0, 1400.0], 4), [500.0, 1000.0]);
        assert_eq!(Scale::of([1e-6, 10.0]).unwrap().ticks(3), [1e-6, 1e-3, 1.0]);
        let legible = |values: [f64; 2]| Scale::linear(values).unwrap().legible_ticks(4);
        assert_eq!(legible([2.05, 2.98]), [2.2, 2.4, 2.6, 2.8]);
        assert_eq!(legible([0.0, 1.0]), ticks([0.0, 1.0], 4));
        for values in [[f64::MIN, f64::MAX], [1.0, 1.0], [0.0, f64::MIN_POSITIVE], [1e300, 1.1e300]] {
            assert!(Scale::of(values).unwrap().ticks(4).len() <= 9, "{values:?}");
        }
    }

    #[test]
    fn sizes_have_binary_units() {
        assert_eq!(byte_ticks(1.1 * 1024.0 * 1024.0, 4), [0.0, 0.5, 1.0].map(|mib| mib * 1024.0 * 1024.0));
        assert_eq!(byte_ticks(900.0, 4), [0.0, 200.0, 400.0, 600.0, 800.0]);
    }

    #[test]
    fn times_have_units_of_time() {
        assert_eq!(second_ticks(0.004, 4), [0.0, 0.001, 0.002, 0.003, 0.004]);
        assert_eq!(second_ticks(600.0, 2), [0.0, 300.0, 600.0]);
        assert_eq!(second_ticks(36_000.0, 2), [0.0, 18_000.0, 36_000.0]);
        assert_eq!(second_ticks(0.0, 2), [0.0]);
    }

    #[test]
    fn thinned_points_keep_the_peaks() {
        let mut points: Vec<(f64, f64)> = (0..1000).map(|n| (f64::from(n), 0.0)).collect();
        points[777].1 = 9.0;
        let thinned = thinned(&points, 50);
        assert!(thinned.len() <= 100);
        assert!(thinned.contains(&(777.0, 9.0)));
        assert!(thinned.windows(2).all(|pair| pair[0].0 <= pair[1].0));
    }
}
