//! Verifies that every byte is what was written.

use super::files::files_in;
use super::problem::{Problem, ProblemKind};
use super::target::{ATTEMPTS, Place, lost_manifest, no_checkpoint_in, place, place_with};
use super::{lossy, lossy_all};
use crate::error::Error;
use crate::interop::ReadOptions;
use crate::location::Location;
use crate::manager::{Listing, list_checkpoints};
use crate::progress::{Observer, Progress, Tally};
use crate::reader::{CheckpointReader, Verification, verify_checkpoint_as};
use crate::source::{TensorSource, VerifiedBy};
use serde::Serialize;
use std::path::Path;

/// The result of [`verify`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[must_use = "check `intact`"]
#[non_exhaustive]
pub struct VerifyReport {
    /// Whether every byte of every checkpoint was read and is what was written. Always `false` for a
    /// [quick](VerifyOptions::quick) verification.
    pub intact: bool,
    /// Whether everything that was read is what was written.
    pub complete: bool,
    /// The checkpoints that were verified, and the paths without a checkpoint.
    pub checkpoints: Vec<VerifiedCheckpoint>,
    /// The entries of directories of checkpoints that were not verified.
    pub skipped: Vec<SkippedPath>,
}

/// The result for one checkpoint, or for a path at which there is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct VerifiedCheckpoint {
    /// The checkpoint.
    #[serde(serialize_with = "lossy")]
    pub path: Location,
    /// The result.
    pub state: VerifyState,
    /// How far every tensor was verified. `None` if the checkpoint could not be opened.
    pub verified_by: Option<VerifiedBy>,
    /// The components that it lacks: left out of the save, or removed later. They do not make a checkpoint damaged.
    pub without: Vec<String>,
    /// Everything that is wrong.
    pub problems: Vec<Problem>,
    /// Files that the manifest does not list. They do not make a checkpoint damaged.
    #[serde(serialize_with = "lossy_all")]
    pub unexpected: Vec<Location>,
}

/// The result of verifying a checkpoint, from best to worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum VerifyState {
    /// Every byte is what was written, as far as the format allows verifying it.
    Intact,
    /// The manifest, the headers and the lengths of the files are what was written. No tensor was read, because the
    /// verification was [quick](VerifyOptions::quick).
    Complete,
    /// Bytes were changed, are missing or were added.
    Damaged,
    /// The checkpoint could not be read.
    Unreadable,
}

/// An entry of a directory of checkpoints that was not verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SkippedPath {
    /// The path.
    #[serde(serialize_with = "lossy")]
    pub path: Location,
    /// Why it was skipped.
    pub reason: &'static str,
}

/// A result that [`verify_with`] reports as soon as it is known.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum VerifyItem<'a> {
    /// A checkpoint was verified.
    Checkpoint(&'a VerifiedCheckpoint),
    /// Something was skipped.
    Skipped(&'a SkippedPath),
}

/// How [`VerifyOptions::verify`] verifies.
///
/// ```
/// use tch_checkpoint::inspect::{VerifyOptions, VerifyReport};
/// let options = VerifyOptions::new().quick(true);
/// let report: VerifyReport = options.verify(["run/ckpt-100"], |_| {});
/// # let _ = report;
/// ```
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
#[must_use = "call `verify`"]
pub struct VerifyOptions {
    quick: bool,
    reading: ReadOptions,
    progress: Observer,
}

impl VerifyOptions {
    /// Returns options that read everything.
    pub fn new() -> VerifyOptions {
        VerifyOptions::default()
    }

    /// Sets whether only manifests, the presence and lengths of files, and the structure of other tools' files are
    /// checked. No tensor is read then, and what has no problem is [`Complete`](VerifyState::Complete), not intact.
    /// Defaults to `false`.
    pub fn quick(mut self, quick: bool) -> Self {
        self.quick = quick;
        self
    }

    /// Sets the limits for files of other tools, and how unknown objects in them are treated.
    pub fn reading(mut self, options: ReadOptions) -> Self {
        self.reading = options;
        self
    }

    /// Sets a function that is called with the bytes read so far and the bytes of everything, on the threads that read.
    /// Bytes of another tool's checkpoint are counted when the checkpoint is complete.
    pub fn on_progress(mut self, report: impl Fn(Progress) + Send + Sync + 'static) -> Self {
        self.progress = Observer::new(report);
        self
    }

    /// Verifies the checkpoints at `paths` as [`verify_with`] does; calls `each` with every result as soon as it is
    /// known.
    pub fn verify<P: AsRef<Path>>(
        &self,
        paths: impl IntoIterator<Item = P>,
        each: impl FnMut(VerifyItem<'_>),
    ) -> VerifyReport {
        let paths: Vec<P> = paths.into_iter().collect();
        let total = if self.quick { 0 } else { paths.iter().map(|path| bytes_at(path.as_ref())).sum() };
        let report = VerifyReport { intact: !self.quick, complete: true, ..VerifyReport::default() };
        let reading = &self.reading;
        let mut run = Run { report, each, quick: self.quick, reading, tally: self.progress.begin(total) };
        for path in &paths {
            run.path(path.as_ref());
        }
        run.report
    }
}

/// Returns the bytes of the files that will be read.
fn bytes_at(path: &Path) -> u64 {
    let inside = |path: &Path| files_in(path).into_iter().map(|(_, _, bytes)| bytes).sum::<u64>();
    match place(path) {
        Ok(Place::Directory(listing)) => {
            let damaged = listing.damaged.iter().map(|(path, _)| inside(path));
            listing.checkpoints.iter().map(|listed| inside(&listed.path)).chain(damaged).sum()
        }
        Ok(_) if path.is_dir() => inside(path),
        _ => std::fs::metadata(path).map_or(0, |file| file.len()),
    }
}

/// Reads every byte of the checkpoints at `paths` and compares it with what was written.
///
/// A path is a checkpoint of any format, or a directory of checkpoints, all of which are verified except those that a
/// manager moved aside. Checkpoints of other tools are verified as far as their format, or their seal, allows.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// use tch_checkpoint::{Checkpoint, Counter, inspect};
/// let path = Checkpoint::new().track("step", &Counter::new(7))?.write(dir.path().join("seven"))?;
/// assert!(inspect::verify([&path]).intact);
/// std::fs::write(path.join("manifest.json"), "overwritten")?;
/// let report = inspect::verify([&path]);
/// assert_eq!(report.checkpoints[0].state, inspect::VerifyState::Damaged);
/// # Ok(())
/// # }
/// ```
pub fn verify<P: AsRef<Path>>(paths: impl IntoIterator<Item = P>) -> VerifyReport {
    verify_with(paths, |_| {})
}

/// Like [`verify`]; calls `each` with every result as soon as it is known.
pub fn verify_with<P: AsRef<Path>>(
    paths: impl IntoIterator<Item = P>,
    each: impl FnMut(VerifyItem<'_>),
) -> VerifyReport {
    VerifyOptions::new().verify(paths, each)
}

/// The findings of verifying one checkpoint.
struct Found {
    verified_by: Option<VerifiedBy>,
    without: Vec<String>,
    problems: Vec<Problem>,
    unexpected: Vec<Location>,
}

impl Found {
    fn problem(error: &Error) -> Found {
        let problems = vec![Problem::of(error)];
        Found { verified_by: None, without: Vec::new(), problems, unexpected: Vec::new() }
    }
}

/// Reads all of a checkpoint of this crate, or all but its tensors and assets.
fn own(path: &Path, quick: bool, tally: &Tally) -> Found {
    // An open checkpoint stays readable even if it is removed meanwhile.
    let (without, Verification { problems, unexpected }) = match CheckpointReader::open(path) {
        Ok(reader) => (Some(reader.manifest().without.clone()), reader.verify_as(quick, tally)),
        Err(_) => (None, verify_checkpoint_as(path, quick, tally)),
    };
    let problems = problems.iter().map(Problem::of).collect();
    let verified_by = without.as_ref().map(|_| if quick { VerifiedBy::Nothing } else { VerifiedBy::Digest });
    Found { verified_by, without: without.unwrap_or_default(), problems, unexpected }
}

/// Reads everything in another tool's checkpoint that has a checksum, or a digest in a seal.
fn foreign(source: &dyn TensorSource, quick: bool) -> Found {
    if quick {
        let (without, problems, unexpected) = (Vec::new(), Vec::new(), Vec::new());
        return Found { verified_by: Some(VerifiedBy::Nothing), without, problems, unexpected };
    }
    let verified_by = source.tensors().keys().map(|key| source.verified_by(key)).min();
    let problems = source.verify().err().iter().map(Problem::of).collect();
    let verified_by = Some(verified_by.unwrap_or(VerifiedBy::Nothing));
    Found { verified_by, without: Vec::new(), problems, unexpected: Vec::new() }
}

struct Run<'a, F> {
    report: VerifyReport,
    each: F,
    quick: bool,
    reading: &'a ReadOptions,
    tally: Tally,
}

/// Returns the paths of the checkpoints, damaged ones included.
fn names(listing: &Listing) -> Vec<Location> {
    let whole = listing.checkpoints.iter().map(|listed| listed.path.clone());
    whole.chain(listing.damaged.iter().map(|(path, _)| path.clone())).collect()
}

impl<F: FnMut(VerifyItem<'_>)> Run<'_, F> {
    fn path(&mut self, path: &Path) {
        match place_with(path, self.reading) {
            Ok(Place::Checkpoint) => self.checked(path, own(path, self.quick, &self.tally)),
            Ok(Place::LostManifest) => self.checked(path, Found::problem(&lost_manifest(path))),
            Ok(Place::Foreign(source)) => {
                self.checked(path, foreign(&*source, self.quick));
                self.tally.add(bytes_at(path));
            }
            Ok(Place::Directory(listing)) => self.directory(path, *listing),
            Err(error) => self.checked(path, Found::problem(&error)),
        }
    }

    /// Verifies all checkpoints of a directory, oldest first.
    fn directory(&mut self, directory: &Path, mut listing: Listing) {
        let mut any = self.listed(&listing);
        for _ in 0..ATTEMPTS {
            if any || listing.checkpoints.is_empty() && listing.damaged.is_empty() {
                break;
            }
            // A training saved newer ones, and removed these before they were opened.
            let before = names(&listing);
            listing = match list_checkpoints(directory) {
                Ok(listing) => listing,
                Err(error) => return self.checked(directory, Found::problem(&error)),
            };
            if names(&listing) == before {
                break;
            }
            any = self.listed(&listing);
        }
        let rest = [
            (&listing.moved_aside, "moved aside as damaged"),
            (&listing.superseded, "superseded"),
            (&listing.unfinished_saves, "an unfinished save"),
            (&listing.removed, "removed"),
        ];
        for (paths, reason) in rest {
            paths.iter().for_each(|path| self.skip(path, reason));
        }
        if !any {
            let reason = no_checkpoint_in(directory, &listing);
            self.checked(directory, Found::problem(&Error::not_found(directory, reason)));
        }
    }

    /// Verifies the checkpoints of a listing. Returns `false` if there are none, or all of them are gone.
    fn listed(&mut self, listing: &Listing) -> bool {
        let whole = listing.checkpoints.iter().map(|listed| &*listed.path);
        let damaged = listing.damaged.iter().map(|(path, _)| &**path);
        let mut any = false;
        for path in whole.chain(damaged) {
            let found = match place(path) {
                Ok(Place::LostManifest) => Found::problem(&lost_manifest(path)),
                _ => own(path, self.quick, &self.tally),
            };
            if !found.problems.is_empty() && !path.exists() {
                self.skip(path, "it was removed meanwhile");
                continue;
            }
            any = true;
            self.checked(path, found);
        }
        any
    }

    fn checked(&mut self, path: &Path, Found { verified_by, without, problems, unexpected }: Found) {
        let state = match problems.iter().any(|problem| problem.kind != ProblemKind::Damaged) {
            true => VerifyState::Unreadable,
            false if problems.is_empty() && self.quick => VerifyState::Complete,
            false if problems.is_empty() => VerifyState::Intact,
            false => VerifyState::Damaged,
        };
        self.report.intact &= state == VerifyState::Intact;
        self.report.complete &= state <= VerifyState::Complete;
        let checked = VerifiedCheckpoint { path: path.into(), state, verified_by, without, problems, unexpected };
        (self.each)(VerifyItem::Checkpoint(&checked));
        self.report.checkpoints.push(checked);
    }

    fn skip(&mut self, path: &Path, reason: &'static str) {
        let skipped = SkippedPath { path: path.into(), reason };
        (self.each)(VerifyItem::Skipped(&skipped));
        self.report.skipped.push(skipped);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Checkpoint, Counter};

    /// A training removes those that were listed, before they are opened, and saves others.
    #[test]
    fn what_was_removed_meanwhile_is_not_verified() {
        for saves_on in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let mut checkpoint = Checkpoint::new().track("step", Counter::new(7)).unwrap();
            let mut save = || checkpoint.save(dir.path().join("ckpt")).unwrap();
            let first = save();
            let listing = list_checkpoints(dir.path()).unwrap();
            let second = saves_on.then(save);
            std::fs::remove_dir_all(&first).unwrap();
            let report = VerifyReport { intact: true, complete: true, ..VerifyReport::default() };
            let (reading, tally) = (ReadOptions::default(), Observer::default().begin(0));
            let mut run = Run { report, each: |_: VerifyItem<'_>| {}, quick: false, reading: &reading, tally };
            run.directory(dir.path(), listing);
            let VerifyReport { intact, complete, checkpoints, skipped } = run.report;
            assert_eq!(skipped, [SkippedPath { path: first, reason: "it was removed meanwhile" }]);
            assert_eq!((intact, complete), (saves_on, saves_on));
            let found: Vec<_> = checkpoints.iter().map(|found| (&*found.path, found.state)).collect();
            let expected = match &second {
                Some(second) => (&**second, VerifyState::Intact),
                None => (dir.path(), VerifyState::Unreadable),
            };
            assert_eq!(found, [expected]);
        }
    }
}
