//! Which paths lead to a TensorFlow checkpoint.

use super::Bundle;
use super::place::{STATE, index, is_saved_model};
use super::state::CheckpointState;
use super::table::MAGIC;
use crate::error::Result;
use crate::interop::ReadOptions;
use crate::interop::input::Input;
use crate::interop::probe::Probe;
use crate::source::TensorSource;
use std::path::Path;

/// Opens what is a TensorFlow checkpoint: a prefix, an `.index` file, a directory with a state file, a SavedModel.
pub(crate) fn detect(probe: &Probe<'_>, _options: &ReadOptions) -> Option<Result<Box<dyn TensorSource>>> {
    let path = probe.path;
    let is_ours = match (&probe.start, &probe.names) {
        (Some(_), _) => is_table(path),
        (_, Some(_)) => is_saved_model(path) || CheckpointState::read(path.join(STATE)).is_ok(),
        _ => index(path).exists(),
    };
    is_ours.then(|| Bundle::open(path).map(|bundle| Box::new(bundle) as Box<dyn TensorSource>))
}

/// Returns `true` if the file ends as an index does.
fn is_table(path: &Path) -> bool {
    let Ok(file) = Input::open(path) else {
        return false;
    };
    let mut end = [0; MAGIC.len()];
    let offset = file.len().checked_sub(end.len() as u64);
    offset.is_some_and(|offset| file.read(offset, &mut end).is_ok()) && end == MAGIC
}
