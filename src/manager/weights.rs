//! Exports of weights on a cadence of their own.

use super::CheckpointManager;
use super::save_policy::{SaveContext, SavePolicy};
use crate::error::{Error, Result};
use crate::export::WeightsExport;
use crate::name::COMPONENT_EXTENSION;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// When weights are exported, what, and where to.
pub(super) struct WeightsCadence {
    policy: Box<dyn SavePolicy>,
    export: WeightsExport,
    directory: PathBuf,
    /// The steps of the last call and of the last export.
    previous: Option<u64>,
    last: Option<u64>,
    last_at: Instant,
}

impl WeightsCadence {
    pub(super) fn new(policy: Box<dyn SavePolicy>, export: WeightsExport, directory: &Path) -> WeightsCadence {
        let directory = std::path::absolute(directory).unwrap_or_else(|_| directory.to_path_buf());
        WeightsCadence { policy, export, directory, previous: None, last: None, last_at: Instant::now() }
    }

    /// The step of the last export there is: a run that is resumed goes on from it.
    fn last_before(&self, step: u64) -> Option<u64> {
        let number = |name: std::ffi::OsString| {
            let name = name.into_string().ok()?;
            let number = name.strip_prefix("weights-")?;
            number.strip_suffix(COMPONENT_EXTENSION).unwrap_or(number).parse::<u64>().ok()
        };
        let entries = fs::read_dir(&self.directory).ok()?;
        entries.filter_map(|entry| number(entry.ok()?.file_name())).filter(|number| *number <= step).max()
    }
}

impl CheckpointManager {
    /// Exports what is due at this step.
    pub(super) fn export_if_due(&mut self, step: u64) -> Result<()> {
        let (checkpoint, is_saving) = (&self.checkpoint, self.in_flight.is_some());
        for cadence in &mut self.exports {
            if cadence.previous.is_none() {
                cadence.last = cadence.last_before(step);
            }
            let context = SaveContext {
                previous: cadence.previous.replace(step),
                last_saved: cadence.last,
                since_last_save: cadence.last_at.elapsed(),
                is_saving,
                ..SaveContext::new(step)
            };
            if !cadence.policy.is_due(&context) {
                continue;
            }
            fs::create_dir_all(&cadence.directory).map_err(|e| Error::io("create", &cadence.directory, e))?;
            checkpoint.export_weights(cadence.export.path_of_step(&cadence.directory, step), &cadence.export)?;
            (cadence.last, cadence.last_at) = (Some(step), Instant::now());
        }
        Ok(())
    }
}
