//! Small objects of a training loop that need no libtorch: schedules, the order of the data, when to stop. Each stands
//! alone; what has state is [`Trackable`](crate::Trackable).

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
