//! Which handles can be sent to and shared with other threads.

use std::sync::Arc;
use tch_checkpoint::repository::{Memory, Repository, Storage, Transaction};
use tch_checkpoint::retention::{CheckpointInfo, RetentionPolicy};
use tch_checkpoint::{
    Asset, Background, Batches, BestMetric, Checkpoint, CheckpointDirectory, CheckpointManager,
    CheckpointManagerBuilder, CheckpointReader, CheckpointWatcher, Contents, Counter, EarlyStopping, Error, Gate,
    Listing, Location, Node, Part, Preemption, ReduceOnPlateau, RestoreOptions, RestoreReport, RestoreStatus,
    SaveOptions, Snapshot, StartOutcome, TensorLeaf, TensorSource, Value, ValueLeaf, Verification,
};

fn is_send<T: Send + ?Sized>() {}

fn is_shared<T: Send + Sync + ?Sized>() {}

#[test]
fn handles_are_sent_to_other_threads() {
    is_send::<CheckpointManager>();
    is_send::<CheckpointManagerBuilder>();
    is_send::<CheckpointWatcher>();
    is_send::<Preemption>();
    is_send::<Asset>();
    is_send::<Background>();
    is_send::<Batches>();
    is_send::<ReduceOnPlateau>();
    is_send::<EarlyStopping>();
    is_send::<BestMetric>();
}

#[test]
fn handles_are_shared_with_other_threads() {
    is_shared::<Checkpoint>();
    is_shared::<CheckpointDirectory>();
    is_shared::<CheckpointReader>();
    is_shared::<CheckpointInfo>();
    is_shared::<Contents>();
    is_shared::<Counter>();
    is_shared::<Error>();
    is_shared::<Gate>();
    is_shared::<Listing>();
    is_shared::<Location>();
    is_shared::<Node>();
    is_shared::<Part>();
    is_shared::<RestoreReport>();
    is_shared::<RestoreOptions>();
    is_shared::<RestoreStatus>();
    is_shared::<SaveOptions>();
    is_shared::<Snapshot>();
    is_shared::<StartOutcome>();
    is_shared::<Value<Vec<String>>>();
    is_shared::<Verification>();
    is_shared::<Memory>();
}

#[test]
fn what_is_implemented_outside_is_shared() {
    is_shared::<dyn Storage>();
    is_shared::<dyn Repository>();
    is_shared::<dyn Transaction>();
    is_shared::<dyn RetentionPolicy>();
    is_shared::<dyn TensorLeaf>();
    is_shared::<dyn TensorSource>();
    is_shared::<dyn ValueLeaf>();
    is_shared::<Arc<dyn Storage>>();
}

#[cfg(feature = "torch")]
#[test]
fn those_of_libtorch_are_sent_to_other_threads() {
    use tch_checkpoint::{Ema, GradScaler, Rng, SavedModel, Swa, Variables, optim::Optimizer};
    is_shared::<Variables>();
    is_shared::<Rng>();
    is_send::<Optimizer>();
    is_send::<Ema>();
    is_send::<Swa>();
    is_send::<GradScaler>();
    is_send::<SavedModel>();
}
