//! Whether the values of a tensor stay in their usual range.

use super::point::TensorPoint;
use serde::Serialize;

/// The course of a tensor's norm, the most serious one first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Trend {
    /// Some values are NaN or infinite.
    NonFinite,
    /// The largest norm is at least ten times the usual one: the median of the first half of the run. For tensors that
    /// are no variables although the checkpoints record which ones are, such as an optimizer's moments, at least a
    /// hundred times.
    Exploding,
    /// The last norm is at most a tenth of the usual one, or a hundredth.
    Vanishing,
    /// None of the other trends.
    Steady,
    /// There are fewer than three points, or the usual norm is 0.
    Unknown,
}

impl Trend {
    /// Returns `true` if the tensor needs attention.
    #[must_use]
    pub fn is_conspicuous(self) -> bool {
        matches!(self, Trend::NonFinite | Trend::Exploding | Trend::Vanishing)
    }
}

/// The factor from which the norm of a variable is unusual.
const VARIABLE: f64 = 10.0;

/// The same for tensors that are derived from the variables: second moments are squares.
const OTHER: f64 = 100.0;

/// The minimum number of points for a trend.
const POINTS: usize = 3;

/// Returns the trend, and the largest norm relative to the usual one.
pub(super) fn of(points: &[Option<TensorPoint>], is_variable: bool) -> (Trend, Option<f64>) {
    let known = || points.iter().flatten();
    let norms: Vec<f64> = known().filter_map(|point| point.stats.norm).collect();
    let factor = if is_variable { VARIABLE } else { OTHER };
    judge(&norms, factor, known().any(|point| point.stats.non_finite() > 0))
}

fn judge(norms: &[f64], factor: f64, has_non_finite: bool) -> (Trend, Option<f64>) {
    let usual = usual(norms).filter(|_| norms.len() >= POINTS);
    let growth = usual.map(|usual| norms.iter().copied().fold(0.0, f64::max) / usual);
    let last = usual.zip(norms.last()).map(|(usual, last)| last / usual);
    let trend = match (growth, last) {
        _ if has_non_finite => Trend::NonFinite,
        (Some(growth), _) if growth >= factor => Trend::Exploding,
        (_, Some(last)) if last <= 1.0 / factor => Trend::Vanishing,
        (Some(_), _) => Trend::Steady,
        _ => Trend::Unknown,
    };
    (trend, growth)
}

/// Returns the median of the first half, unless that is 0.
fn usual(norms: &[f64]) -> Option<f64> {
    let mut first: Vec<f64> = norms.iter().copied().take(norms.len().div_ceil(2)).collect();
    first.sort_by(f64::total_cmp);
    first.get(first.len() / 2).copied().filter(|usual| *usual > 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    fn trend(norms: &[f64]) -> (Trend, Option<f64>) {
        judge(norms, VARIABLE, false)
    }

    #[test]
    fn norms_that_leave_the_usual_range() {
        assert_eq!(trend(&[1.0, 1.0, 2.0, 2.0]), (Trend::Steady, Some(2.0)));
        assert_eq!(trend(&[0.0, 1.0, 2.0, 2.0, 3.0]), (Trend::Steady, Some(3.0)));
        assert_eq!(trend(&[1.0, 1.0, 2.0, 10.0]), (Trend::Exploding, Some(10.0)));
        assert_eq!(judge(&[1.0, 1.0, 2.0, 10.0], OTHER, false).0, Trend::Steady);
        // It came back.
        assert_eq!(trend(&[1.0, 1.0, 30.0, 1.0]), (Trend::Exploding, Some(30.0)));
        assert_eq!(trend(&[1.0, 1.0, 0.5, 0.1]), (Trend::Vanishing, Some(1.0)));
        assert_eq!(trend(&[0.0, 0.0, 0.0, 9.0]), (Trend::Unknown, None));
        assert_eq!(trend(&[1.0, 50.0]), (Trend::Unknown, None));
        assert_eq!(judge(&[1.0, 50.0], VARIABLE, true).0, Trend::NonFinite);
        assert_eq!(of(&[None, None], true), (Trend::Unknown, None));
        assert!(Trend::NonFinite < Trend::Exploding && Trend::Vanishing < Trend::Steady);
    }
}
