//! Exports of weights on their own schedule.

use super::save_policy::{SaveContext, SavePolicy};
use super::{CheckpointManager, OnSaveError};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::export::WeightsExport;
use crate::format::safetensors::LENGTH_BYTES;
use crate::interop::temporary;
use crate::location::Location;
use crate::name::COMPONENT_EXTENSION;
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashSet};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// When to export weights, which ones, and where.
pub(super) struct WeightsCadence {
    policy: Box<dyn SavePolicy>,
    export: WeightsExport,
    directory: PathBuf,
    /// The steps of the last call and of the last export, and the lowest of all calls and restored checkpoints.
    previous: Option<u64>,
    last: Option<u64>,
    first: Option<u64>,
    last_at: Instant,
    /// The restores and rollbacks before the last call, and the step that was restored since.
    restores: u64,
    restored: Option<u64>,
    /// Whether an export that was due has failed.
    owed: bool,
    /// Whether this process has removed what others left that were killed.
    is_swept: bool,
}

impl WeightsCadence {
    pub(super) fn new(policy: Box<dyn SavePolicy>, export: WeightsExport, directory: &Path) -> WeightsCadence {
        let directory = std::path::absolute(directory).unwrap_or_else(|_| directory.to_path_buf());
        WeightsCadence {
            policy,
            export,
            directory,
            previous: None,
            last: None,
            first: None,
            last_at: Instant::now(),
            restores: 0,
            restored: None,
            owed: false,
            is_swept: false,
        }
    }

    /// # Errors
    /// If two of these export into one directory, where the names of their files are the same.
    pub(super) fn check(exports: &[WeightsCadence]) -> Result<()> {
        let mut directories = HashSet::new();
        for WeightsCadence { directory, .. } in exports {
            if !directories.insert(directory.canonicalize().unwrap_or_else(|_| directory.clone())) {
                return Err(Error::InvalidArgument(format!(
                    "export_weights_when: two exports into {} would replace each other's files; each needs a directory of \
                     its own",
                    directory.display()
                )));
            }
        }
        Ok(())
    }

    /// The run continues from this step.
    pub(super) fn goes_on_from(&mut self, step: Option<u64>) {
        self.restored = step;
    }

    /// The step of the last whole export before `step`, from which a run that was resumed, or went back, continues. One of
    /// `step` itself, or later, is of another path.
    fn last_before(&self, step: u64) -> Option<u64> {
        let is_whole = |number: &u64| {
            let path = self.export.path_of_step(&self.directory, *number);
            self.export.files(&path).iter().all(|file| file.is_file())
        };
        self.steps().filter(|number| *number < step && is_whole(number)).max()
    }

    /// The steps of the entries that have the name of an export.
    fn steps(&self) -> impl Iterator<Item = u64> {
        let entries = fs::read_dir(&self.directory).into_iter().flatten();
        entries.filter_map(|entry| step_of(entry.ok()?.file_name().to_str()?))
    }

    /// Removes what exports left that were killed, the first time.
    fn sweep(&mut self) {
        if std::mem::replace(&mut self.is_swept, true) {
            return;
        }
        temporary::sweep(&self.directory, |name| step_of(name).is_some());
        for step in self.steps() {
            let path = self.export.path_of_step(&self.directory, step);
            let files = self.export.files(&path);
            let is_one = |name: &str| files.iter().any(|file| file.file_name() == Some(name.as_ref()));
            if path.is_dir() && temporary::sweep(&path, is_one) {
                // Unless there is something else in it.
                let _ = fs::remove_dir(&path);
            }
        }
    }

    /// Removes superfluous exports after that of `step`, whose files are `written`. If one cannot be removed now, this
    /// is retried after the next export.
    fn prune(&self, step: u64, written: &[PathBuf]) {
        let Some(keep) = self.export.kept() else { return };
        let headers: io::Result<BTreeMap<OsString, Vec<u8>>> = written
            .iter()
            .map(|path| Ok((path.file_name().unwrap_or_default().to_owned(), header_of(path)?)))
            .collect();
        let headers = match headers {
            Ok(headers) => headers,
            Err(e) => return log::warn!("no export is removed: that of step {step} cannot be read: {e}"),
        };
        let mut steps: Vec<u64> = self.steps().collect();
        // Newest first; exports of later steps, from which the run went back, count as the oldest.
        steps.sort_unstable_by_key(|other| (*other > step, Reverse(*other)));
        steps.dedup();
        let ours =
            steps.into_iter().filter_map(|other| self.files_of(other, step, &headers).map(|files| (other, files)));
        let mut newer = 0;
        for (other, files) in ours {
            let is_kept = newer < keep;
            // One that lacks files takes no other's place.
            newer += usize::from(files.len() == headers.len());
            if is_kept {
                continue;
            }
            let path = self.export.path_of_step(&self.directory, other);
            let removed = files.iter().try_for_each(fs::remove_file);
            let removed =
                removed.and_then(|()| if files[..] == [path.clone()] { Ok(()) } else { fs::remove_dir(&path) });
            if let Err(e) = removed {
                log::warn!("the export {} could not be removed: {e}; it is tried again later", path.display());
            }
        }
    }

    /// Returns the files of the export of `other`, if it is one like that of `step`, whose files have these headers.
    fn files_of(&self, other: u64, step: u64, headers: &BTreeMap<OsString, Vec<u8>>) -> Option<Vec<PathBuf>> {
        let (path, new) =
            (self.export.path_of_step(&self.directory, other), self.export.path_of_step(&self.directory, step));
        let kind = fs::symlink_metadata(&path).ok()?.file_type();
        let is_same = |path: &Path, header: &Vec<u8>| {
            fs::symlink_metadata(path).is_ok_and(|found| found.is_file()) && starts_with(path, header).unwrap_or(false)
        };
        if kind.is_file() {
            let header = headers.get(new.file_name()?)?;
            return is_same(&path, header).then(|| vec![path]);
        }
        let files: Vec<PathBuf> =
            fs::read_dir(&path).ok()?.map(|entry| Some(entry.ok()?.path())).collect::<Option<_>>()?;
        let ours = |file: &PathBuf| {
            file.file_name().and_then(|name| headers.get(name)).is_some_and(|header| is_same(file, header))
        };
        (kind.is_dir() && !files.is_empty() && files.iter().all(ours)).then_some(files)
    }
}

/// Returns the step of the export that has this name.
fn step_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("weights-")?;
    let digits = digits.strip_suffix(COMPONENT_EXTENSION).unwrap_or(digits);
    digits.parse::<u64>().ok().filter(|number| number.to_string() == digits)
}

/// Returns the header of a safetensors file.
fn header_of(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let mut length = [0; LENGTH_BYTES];
    file.read_exact(&mut length)?;
    let mut header = length.to_vec();
    file.take(u64::from_le_bytes(length)).read_to_end(&mut header)?;
    Ok(header)
}

fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path, e)),
        _ => Ok(()),
    }
}

/// Returns `true` if a file begins with these bytes.
fn starts_with(path: &Path, header: &[u8]) -> io::Result<bool> {
    let mut start = vec![0; header.len()];
    File::open(path)?.read_exact(&mut start)?;
    Ok(start == header)
}

impl CheckpointManager {
    /// Performs the exports that are due at this step, whether or not its save has failed. Returns the result of the call of
    /// `save_if_due`.
    pub(super) fn export_beside(
        &mut self,
        step: u64,
        is_last: bool,
        saved: Result<Option<Location>>,
    ) -> Result<Option<Location>> {
        let exported = match &saved {
            _ if self.exports.is_empty() => Ok(()),
            // There may not be time for another file.
            Err(_) if is_last => Ok(()),
            // The state is not exported either, or this manager may not write at all.
            Err(Error::Unhealthy { .. } | Error::PartlyRestored { .. }) => Ok(()),
            Err(_) if self.directory.check().is_err() => Ok(()),
            // A run that has begun nothing here must not replace the exports of another.
            saved if !self.begun => match self.superseded_by(None) {
                Ok(_) => self.export_if_due(step),
                Err(_) if saved.is_err() => Ok(()),
                Err(error) => Err(error),
            },
            _ => self.export_if_due(step),
        };
        let saved = self.after_call(step, is_last, saved);
        match (saved, exported) {
            (saved, Ok(())) => saved,
            (saved @ Ok(_), Err(error)) if matches!(self.on_save_error, OnSaveError::Continue { .. }) => {
                log::error!("an export failed, and training continues: {error:#}");
                saved
            }
            (Ok(_), Err(error)) => Err(error),
            (saved @ Err(_), Err(error)) => {
                log::error!("an export failed, too: {error:#}");
                saved
            }
        }
    }

    /// Performs the exports that are due at this step. Returns the first error.
    fn export_if_due(&mut self, step: u64) -> Result<()> {
        let (mut all, is_saving) = (Ok(()), self.in_flight.is_some());
        for cadence in &mut self.exports {
            match (&all, cadence.call(&self.checkpoint, step, is_saving)) {
                (Ok(()), done) => all = done,
                (Err(_), Err(error)) => log::error!("another export failed, too: {error:#}"),
                (Err(_), Ok(())) => {}
            }
        }
        all
    }
}

impl WeightsCadence {
    /// Exports at this step if that is due.
    fn call(&mut self, checkpoint: &Checkpoint, step: u64, is_saving: bool) -> Result<()> {
        let (_, restores) = checkpoint.restored();
        let goes_on = self.previous.is_some_and(|previous| previous <= step) && self.restores == restores;
        let restored = self.restored.take();
        if !goes_on {
            self.last = self.last_before(restored.map_or(step, |last| step.min(last.saturating_add(1))));
        }
        self.restores = restores;
        // That of the restored step may not have been made.
        let first = self.first.into_iter().chain(restored).fold(step, u64::min);
        self.first = Some(first);
        let context = SaveContext {
            previous: self.previous.replace(step),
            first,
            last_saved: self.last,
            since_last_save: self.last_at.elapsed(),
            is_saving,
            last_save_at: Some(self.last_at),
            ..SaveContext::new(step)
        };
        self.owed &= goes_on;
        self.owed |= self.policy.is_due(&context);
        if !self.owed {
            return Ok(());
        }
        fs::create_dir_all(&self.directory).map_err(|e| Error::io("create", &self.directory, e))?;
        self.sweep();
        let path = self.export.path_of_step(&self.directory, step);
        // Of an earlier export of this step: until all files are those of this one, it is not whole.
        let begin = || match self.export.files(&path).split_first() {
            Some((_, [.., last])) => remove_if_there(last),
            _ => Ok(()),
        };
        let written = checkpoint.export_after(&path, &self.export, begin)?;
        self.prune(step, &written);
        (self.last, self.last_at, self.owed) = (Some(step), Instant::now(), false);
        Ok(())
    }
}
