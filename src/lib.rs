//! Checkpoints for training loops with tch (libtorch), which restart automatically and continue bit for bit.
//!
//! A [`Checkpoint`] tracks named objects: the variables of a `VarStore` ([`Variables`]), an optimizer of [`optim`], the
//! random state ([`Rng`]), a [`Counter`], a [`Value`] of any serde type, tensors, lists, maps, and your own structs
//! ([`Trackable`]). A [`CheckpointManager`] saves it to numbered checkpoints, durably and atomically, keeps the newest,
//! and restores the newest intact one into the existing objects.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let temp = tempfile::tempdir()?;
//! # let dir = temp.path().join("run");
//! use tch_checkpoint::{Checkpoint, CheckpointManager, Counter, Value};
//!
//! let (step, best) = (Counter::new(0), Value::new(f64::INFINITY));
//! let checkpoint = Checkpoint::new().track("step", &step)?.track("best_loss", &best)?;
//! let mut manager = CheckpointManager::builder(checkpoint, &dir).max_to_keep(3).save_every(10).open()?;
//! manager.restore_or_initialize()?;
//! while step.get() < 20 {
//!     best.set(1.0 / step.increment() as f64); // train
//!     manager.save_if_due(step.get())?;
//! }
//! manager.close()?;
//! # Ok(())
//! # }
//! ```
//!
//! # Background saves
//!
//! With [`Background`], a save returns as soon as a consistent snapshot is guaranteed, and a background thread writes
//! it. Tensors that an optimizer of [`optim`] changes are copied while training continues; the optimizer's next step
//! waits at a [`Gate`] until they have been copied.
//!
//! # Restoring
//!
//! [`Checkpoint::restore`] is all-or-nothing: it requires exact types and shapes and verifies every byte before it
//! changes anything. Otherwise it returns an error that lists all differences. [`RestoreOptions`] allows exceptions by
//! name. The [`RestoreStatus`] has TensorFlow's assertions. Objects that are tracked later are restored when they are
//! tracked.
//!
//! # The rest of a training loop
//!
//! Averages of weights ([`Ema`], [`Swa`]), learning rates ([`Schedule`], [`ReduceOnPlateau`]), the order of the data
//! ([`Batches`]), when to stop ([`EarlyStopping`]) and loss scaling ([`GradScaler`]) are small independent objects that
//! resume exactly. See `docs/training.md`.
//!
//! # Running
//!
//! [`save_policy`] decides when a save is taken, [`retention`] which checkpoints stay, [`Preemption`] ends a run on a
//! signal or before a time limit, [`CheckpointManager::guard`] saves when the loop fails, and a [`CheckpointWatcher`]
//! follows a run from another process. See `docs/running.md`.
//!
//! # Running without the model's code
//!
//! [`SavedModel`] exports a model as a TorchScript program, together with a checkpoint. See `docs/saved_model.md`.
//!
//! # Inspecting checkpoints
//!
//! [`CheckpointReader`], [`checkpoints`], [`latest_checkpoint`], [`inspect`], and the command-line tool `ckpt` (package
//! `tch-checkpoint-cli`) need no libtorch (`default-features = false`). The format is specified in `docs/format.md`;
//! its structs are in [`format`](mod@format).
//!
//! # Implementing the traits
//!
//! A custom storage implements [`repository::Storage`], a retention policy [`retention::RetentionPolicy`], a file
//! format [`TensorSource`], and a tensor of another library [`graph::TensorLeaf`]. The signatures use [`chrono`] and
//! [`serde_json`], which this crate re-exports in the versions that it uses.
//!
//! # Features
//!
//! * `derive` (default): `#[derive(Trackable)]`.
//! * `torch` (default): everything that needs libtorch: [`Variables`], [`Rng`], [`optim`], [`SavedModel`], tensors.
//! * `pytorch`, `huggingface`, `tensorflow`, `keras` (default): checkpoints of other tools; see [`interop`].
//! * `signals` (default): [`Preemption`] on a signal.
//!
//! # Limits
//!
//! The crate cannot protect against storage that acknowledges writes and then loses them, or against another process
//! that modifies a checkpoint during a restore. Digests detect the former when the checkpoint is restored, and the
//! latter unless it happens between verifying and reading. They detect accidental corruption, not tampering. Linux and
//! macOS are supported; Windows is not.
//!
// Without libtorch these items do not exist, and their links lead to the published documentation.
#![cfg_attr(feature = "torch", doc = "[`Ema`]: crate::Ema")]
#![cfg_attr(feature = "torch", doc = "[`GradScaler`]: crate::GradScaler")]
#![cfg_attr(feature = "torch", doc = "[`Rng`]: crate::Rng")]
#![cfg_attr(feature = "torch", doc = "[`SavedModel`]: crate::SavedModel")]
#![cfg_attr(feature = "torch", doc = "[`Swa`]: crate::Swa")]
#![cfg_attr(feature = "torch", doc = "[`Variables`]: crate::Variables")]
#![cfg_attr(feature = "torch", doc = "[`optim`]: crate::optim")]
#![cfg_attr(not(feature = "torch"), doc = "[`Ema`]: https://docs.rs/tch-checkpoint")]
#![cfg_attr(not(feature = "torch"), doc = "[`GradScaler`]: https://docs.rs/tch-checkpoint")]
#![cfg_attr(not(feature = "torch"), doc = "[`Rng`]: https://docs.rs/tch-checkpoint")]
#![cfg_attr(not(feature = "torch"), doc = "[`SavedModel`]: https://docs.rs/tch-checkpoint")]
#![cfg_attr(not(feature = "torch"), doc = "[`Swa`]: https://docs.rs/tch-checkpoint")]
#![cfg_attr(not(feature = "torch"), doc = "[`Variables`]: https://docs.rs/tch-checkpoint")]
#![cfg_attr(not(feature = "torch"), doc = "[`optim`]: https://docs.rs/tch-checkpoint")]
#![warn(missing_debug_implementations, unreachable_pub)]
#![deny(missing_docs, unsafe_op_in_unsafe_fn, unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::todo, clippy::unimplemented, clippy::dbg_macro)
)]

mod callback;
mod catalog;
mod checkpoint;
mod contents;
pub mod convert;
mod dtype;
mod error;
#[cfg(feature = "huggingface")]
mod export;
mod figures;
pub mod format;
pub mod graph;
pub mod inspect;
#[doc(hidden)]
pub mod internal;
pub mod interop;
mod location;
mod manager;
pub mod map;
pub mod name;
mod parallel;
mod part;
mod progress;
mod provenance;
mod reader;
pub mod repository;
mod restore;
mod rules;
mod save;
mod snapshot;
mod source;
mod sync;
mod text;
#[cfg(feature = "torch")]
#[allow(unsafe_code, reason = "the only layer that calls C++")]
mod torch;
mod training;

// Implementations of the traits need them, because the signatures use them.
#[doc(no_inline)]
pub use {chrono, serde_json};

pub use checkpoint::Checkpoint;
pub use contents::{Content, Contents, ContentsEntry};
pub use dtype::{Dtype, TensorSpec};
pub use error::{BoxError, Error, Mismatch, RestoreReport, Result, SkipReason, Skipped, TrainableDifference};
#[cfg(feature = "huggingface")]
pub use export::WeightsExport;
pub use figures::SaveFigures;
pub use graph::{Counter, Node, Trackable, Value};
// Documented in `graph`.
#[doc(hidden)]
pub use graph::{
    Child, Collection, Created, Field, Gate, Guarded, Identity, SavedTree, TensorBytes, TensorLeaf, TensorPin,
    TensorTarget, Unfinished, ValueApply, ValueLeaf,
};
#[doc(hidden)]
pub use graph::{Seen, TensorGroup};
pub use location::Location;
#[cfg(feature = "signals")]
pub use manager::Signal;
pub use manager::retention::{self, Goal};
pub use manager::save_policy;
pub use manager::{
    Background, CheckpointDirectory, CheckpointManager, CheckpointManagerBuilder, CheckpointRef, CheckpointWatcher,
    ListedCheckpoint, Listing, OnNoSpace, OnSaveError, OnUnhealthy, Preemption, Pruned, SavedCheckpoint, WhenBusy,
    checkpoints, latest_checkpoint, list_checkpoints,
};
pub use part::Part;
pub use progress::Progress;
pub use provenance::Provenance;
pub use reader::{CheckpointReader, Verification, verify_checkpoint};
pub use repository::Durability;
pub use restore::{PassedOver, RestoreOptions, RestoreStatus, StartOutcome, Trainable, Verify};
pub use save::UserAsset as Asset;
pub use save::{AssetStream, Health, SaveOptions};
pub use snapshot::Snapshot;
pub use source::{SourceAttributes, TensorSource, VerifiedBy};
#[cfg(feature = "derive")]
pub use tch_checkpoint_derive::Trackable;
#[cfg(feature = "torch")]
pub use torch::{Ema, Export, GradScaler, Rng, SavedModel, SignatureDef, Swa, Variables, optim};
pub use training::{
    Batches, BestMetric, EarlyStopping, OneCycle, Permutation, ReduceOnPlateau, Schedule, Shuffle, Stop,
};

/// The README's code compiles.
#[cfg(all(doctest, feature = "torch"))]
#[doc = include_str!("../README.md")]
struct Readme;

/// The code in docs/retention.md compiles and does what the page says.
#[cfg(doctest)]
#[doc = include_str!("../docs/retention.md")]
struct RetentionPage;

/// The code in docs/running.md compiles and does what the page says.
#[cfg(all(doctest, feature = "signals"))]
#[doc = include_str!("../docs/running.md")]
struct Running;

/// The code in docs/training.md compiles.
#[cfg(all(doctest, feature = "torch"))]
#[doc = include_str!("../docs/training.md")]
struct Training;
