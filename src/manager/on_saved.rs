//! Functions that are called after a checkpoint is durable.

use super::retention::CheckpointInfo;
use crate::callback;
use crate::error::{Error, Result};
use crate::figures::SaveFigures;
use crate::location::Location;
use crate::sync::{Arc, Mutex, PoisonError};
use std::fmt;

/// A durable checkpoint, passed to the function of [`on_saved`](crate::CheckpointManagerBuilder::on_saved).
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct SavedCheckpoint {
    /// The checkpoint's directory.
    pub path: Location,
    /// Its step, metrics, size and health, and what was added to it while it was written.
    pub info: CheckpointInfo,
    /// The cost of the save.
    pub figures: SaveFigures,
}

/// The error type of the functions.
type Failure = Box<dyn std::error::Error + Send + Sync>;

type Function = dyn FnMut(&SavedCheckpoint) -> std::result::Result<(), Failure> + Send;

/// The functions, in the order in which they were given.
#[derive(Clone, Default)]
pub(super) struct OnSaved(Arc<Mutex<Vec<Box<Function>>>>);

impl OnSaved {
    pub(super) fn add<E: Into<Failure>>(
        &self,
        mut function: impl FnMut(&SavedCheckpoint) -> std::result::Result<(), E> + Send + 'static,
    ) {
        let function = move |saved: &SavedCheckpoint| function(saved).map_err(Into::into);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(function));
    }

    /// Calls all functions.
    ///
    /// # Errors
    /// [`Error::Callback`] for the first one that fails; the others are called anyway.
    pub(super) fn call(&self, saved: impl FnOnce() -> SavedCheckpoint) -> Result<()> {
        let mut functions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if functions.is_empty() {
            return Ok(());
        }
        let saved = saved();
        let mut first = Ok(());
        for function in functions.iter_mut() {
            let result = callback::call(|| function(&saved)).unwrap_or_else(|panic| Err(panic.into()));
            let Err(source) = result else { continue };
            if first.is_err() {
                log::error!("{}: a function given to `on_saved` failed: {source}", saved.path.display());
            } else {
                first = Err(Error::Callback { path: saved.path.clone(), source });
            }
        }
        first
    }
}

impl fmt::Debug for OnSaved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} functions", self.0.lock().unwrap_or_else(PoisonError::into_inner).len())
    }
}
