//! tch-checkpoint
#![warn(missing_docs)]

mod checkpoint;
mod dtype;
mod error;
pub mod format;
mod graph;
mod manager;
pub mod name;
mod parallel;
mod reader;
mod restore;
mod retention;
mod save;
mod source;
mod store;
#[cfg(feature = "torch")]
mod torch;
#[cfg(any(test, feature = "torture"))]
#[doc(hidden)]
pub mod torture;

pub use checkpoint::Checkpoint;
pub use dtype::{Dtype, TensorSpec};
pub use error::{Error, Result};
pub use graph::{
    Child, Collection, Counter, Gate, Guarded, Identity, Node, Saved, TensorBytes, TensorLeaf, TensorTarget, Trackable,
    Value, ValueApply, ValueLeaf,
};
pub use manager::{
    Background, CheckpointManager, CheckpointManagerBuilder, Listed, Listing, Overlap, checkpoints, latest_checkpoint,
    list_checkpoints,
};
pub use reader::{CheckpointReader, verify_checkpoint};
pub use restore::{Difference, PassedOver, Report, RestoreOptions, RestoreStatus, Started};
pub use store::Durability;
#[cfg(feature = "torch")]
pub use torch::{Rng, Variables, optim};
