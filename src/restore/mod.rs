//! Restoring: match the objects with the checkpoint, verify every byte that will be used, and only then change
//! anything.

mod apply;
mod matching;
mod options;
mod report;
mod status;

pub(crate) use apply::run;
pub(crate) use matching::{Matching, match_objects};
pub use options::RestoreOptions;
pub use report::{Difference, Report};
pub(crate) use status::Pending;
pub use status::{PassedOver, RestoreStatus, Started};
