//! Small independent objects of a training loop that need no libtorch: schedules, the order of the data, early
//! stopping. Those with state are [`Trackable`](crate::Trackable).

mod best;
mod order;
mod permutation;
mod plateau;
mod schedule;

pub use best::{BestMetric, EarlyStopping, Stop};
pub use order::Batches;
pub use permutation::{Permutation, Shuffle};
pub use plateau::ReduceOnPlateau;
pub use schedule::{OneCycle, Schedule};
