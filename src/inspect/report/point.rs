//! A tensor at one checkpoint.

use crate::inspect::stats::TensorStats;
use serde::Serialize;

/// The values of a tensor in a checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TensorPoint {
    /// Statistics of its values. Some points have a histogram.
    #[serde(flatten)]
    pub stats: TensorStats,
    /// The L2 norm of the difference from the previous sample, divided by the norm there: the update-to-weight ratio
    /// between them. `None` for the first sample, and if type or shape changed, the norm was 0, or a value is not
    /// finite.
    pub update: Option<f64>,
}
