//! Restoring: match the objects with the checkpoint, verify every byte that will be used, and only then change
//! anything.

mod apply;
mod matching;
mod opened;
mod options;
mod origin;
mod overlap;
mod pending;
mod stamp;
mod status;
mod whence;

pub(crate) use apply::run;
pub(crate) use matching::{Request, match_objects};
pub(crate) use opened::{About, Opened, with_names};
pub use options::{RestoreOptions, Trainable, Verify};
pub(crate) use origin::Origin;
pub(crate) use pending::{Pending, Restored, check};
pub use status::{PassedOver, RestoreStatus, StartOutcome};
pub(crate) use whence::Whence;
