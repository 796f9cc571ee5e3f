//! Settings for saves that fail, and for states that should not be saved.

/// How a manager treats a state with values that are NaN or infinite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum OnUnhealthy {
    /// Saves it. No policy counts the checkpoint, and
    /// [`restore_or_initialize`](crate::CheckpointManager::restore_or_initialize) skips it.
    #[default]
    Keep,
    /// Does not save it and logs a warning. [`save_if_due`](crate::CheckpointManager::save_if_due) returns `None`, and
    /// the next save is due as if this one had succeeded. Calls that always save return
    /// [`Error::Unhealthy`](crate::Error::Unhealthy), and so does `save_if_due` once the end was requested
    /// ([`Preemption`](crate::Preemption)). A background save is dropped, with what was noted about it meanwhile, which
    /// the warning lists.
    Skip,
    /// Does not save it. The call, or with background saves the next call, returns
    /// [`Error::Unhealthy`](crate::Error::Unhealthy).
    Fail,
}

/// What [`save_if_due`](crate::CheckpointManager::save_if_due) does when a save fails. Calls that always save return
/// the error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum OnSaveError {
    /// It returns the error.
    #[default]
    Return,
    /// It logs the error and returns `None`. The save is due again at the next call. Once the end was requested
    /// ([`Preemption`](crate::Preemption)), it returns the error.
    Continue {
        /// The number of consecutive failures after which the error is returned.
        give_up_after: u32,
    },
}

/// What a manager does if there is no space for a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum OnNoSpace {
    /// The save fails with [`Error::NoSpace`](crate::Error::NoSpace).
    #[default]
    Fail,
    /// Skips the save with a warning. [`save_if_due`](crate::CheckpointManager::save_if_due) returns `None`, and the
    /// next save is due as if this one had succeeded. Calls that always save return the error, and so does
    /// `save_if_due` once the end was requested ([`Preemption`](crate::Preemption)). A background save is dropped, with
    /// what was noted about it meanwhile, which the warning lists.
    Skip,
    /// Removes the checkpoints that would be removed after this save, and retries once. A healthy, complete checkpoint
    /// must remain, and every byte of it is verified before the removal. The checkpoint from which the run continues is
    /// never removed, and neither is a component of another one
    /// ([`keep_component`](crate::CheckpointManagerBuilder::keep_component)). If the retry fails as well, the removed
    /// checkpoints are gone without a replacement. For a background save, the next call that saves does this.
    /// [`save_if_due`](crate::CheckpointManager::save_if_due) returns the error of the background save only if nothing
    /// could be removed.
    PruneFirst,
}
