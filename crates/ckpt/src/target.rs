//! What a path on the command line stands for.

use crate::output::Output;
use crate::problem::{Problem, text};
use serde::Serialize;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use tch_checkpoint::format::{INDEX_FILE, MANIFEST_FILE};
use tch_checkpoint::{CheckpointReader, Error, Listing, list_checkpoints};

/// An open checkpoint.
pub struct Target {
    pub reader: CheckpointReader,
    /// The directory whose latest checkpoint it is, where the path was that of the directory.
    pub latest_of: Option<PathBuf>,
}

/// A checkpoint in a JSON document.
#[derive(Serialize)]
pub struct TargetJson {
    path: String,
    latest_of: Option<String>,
    step: Option<u64>,
    saved_at: chrono::DateTime<chrono::Utc>,
    sequence: u64,
    run: String,
    save_counter: Option<i64>,
}

impl Target {
    /// Opens the checkpoint at `path`, or the latest in the directory `path`.
    pub fn open(path: &Path, out: &mut Output) -> Result<Target, Error> {
        match what_is(path)? {
            Place::Checkpoint => Ok(Target { reader: CheckpointReader::open(path)?, latest_of: None }),
            Place::LostManifest => Err(lost_manifest(path)),
            Place::Folder(listing) => Target::latest(path, *listing, out),
        }
    }

    /// Opens the latest checkpoint in the directory `path`.
    fn latest(path: &Path, mut listing: Listing, out: &mut Output) -> Result<Target, Error> {
        let mut reader = open_latest(path, &listing);
        for _ in 0..ATTEMPTS {
            match listing.checkpoints.last() {
                // It was removed meanwhile, as there is a newer one.
                Some(latest) if reader.is_err() && !latest.path.exists() => {}
                _ => break,
            }
            listing = list_checkpoints(path)?;
            reader = open_latest(path, &listing);
        }
        for (path, error) in &listing.damaged {
            out.note(format!("{} was passed over: {}", path.display(), Problem::of(error).within(path)));
        }
        Ok(Target { reader: reader?, latest_of: Some(path.to_path_buf()) })
    }

    pub fn json(&self) -> TargetJson {
        let manifest = self.reader.manifest();
        TargetJson {
            path: text(self.reader.path()),
            latest_of: self.latest_of.as_deref().map(text),
            step: manifest.step,
            saved_at: manifest.saved_at,
            sequence: manifest.sequence,
            run: manifest.run.clone(),
            save_counter: manifest.save_counter,
        }
    }

    /// The path, and that it is the latest of its directory where that was asked for.
    pub fn title(&self) -> String {
        let path = self.reader.path().display();
        match &self.latest_of {
            Some(folder) => format!("{path} (the latest in {})", folder.display()),
            None => path.to_string(),
        }
    }
}

/// How often to look again for the latest checkpoint, in a directory in which they come and go.
const ATTEMPTS: usize = 10;

fn open_latest(folder: &Path, listing: &Listing) -> Result<CheckpointReader, Error> {
    let latest = listing.checkpoints.last().ok_or_else(|| no_checkpoint_in(folder))?;
    CheckpointReader::open(&latest.path)
}

/// What is at a path.
pub enum Place {
    /// A checkpoint, sound or not.
    Checkpoint,
    /// A checkpoint whose manifest is gone.
    LostManifest,
    /// Any other folder: one of checkpoints, perhaps an empty one.
    Folder(Box<Listing>),
}

/// Looks at `path`.
///
/// # Errors
/// [`Error::NotFound`] when there is nothing, or a file; [`Error::Io`].
pub fn what_is(path: &Path) -> Result<Place, Error> {
    let not_found = |reason: &str| Err(Error::not_found(path, reason));
    match fs::metadata(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return not_found("there is nothing of that name"),
        Err(e) => return Err(Error::io("look for", path, e)),
        Ok(found) if !found.is_dir() => return not_found("this is a file; a checkpoint is a folder"),
        Ok(_) => {}
    }
    // Whatever has the manifest's name: if it is a directory or leads nowhere, that is damage.
    if fs::symlink_metadata(path.join(MANIFEST_FILE)).is_ok() {
        return Ok(Place::Checkpoint);
    }
    let listing = list_checkpoints(path)?;
    let holds_none = listing.checkpoints.is_empty() && listing.damaged.is_empty() && listing.moved_aside.is_empty();
    // Weights that were exported beside checkpoints do not make a directory of checkpoints a damaged one.
    let lost = holds_none
        && fs::symlink_metadata(path.join(INDEX_FILE)).is_err()
        && (has_component_file(path) || is_listed_as_damaged(path));
    Ok(if lost { Place::LostManifest } else { Place::Folder(Box::new(listing)) })
}

fn has_component_file(path: &Path) -> bool {
    let mut entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.any(|entry| entry.path().extension().is_some_and(|extension| extension == "safetensors"))
}

/// Whether the directory around `path` has it as a checkpoint that lost its manifest.
fn is_listed_as_damaged(path: &Path) -> bool {
    let Some(name) = path.file_name() else { return false };
    let around = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let listing = list_checkpoints(around).unwrap_or_default();
    listing.damaged.iter().any(|(damaged, _)| damaged.file_name() == Some(name))
}

/// The error for a checkpoint whose manifest is gone.
pub fn lost_manifest(path: &Path) -> Error {
    Error::damaged(path.join(MANIFEST_FILE), "the file is missing")
}

/// The error for a directory without any whole checkpoint.
pub fn no_checkpoint_in(path: &Path) -> Error {
    let mut reason = "this folder holds no whole checkpoint".to_string();
    let below = folders_below(path);
    if let Some(first) = below.first() {
        let more = if below.len() > 1 { format!(" and {} more folders", below.len() - 1) } else { String::new() };
        reason.push_str(&format!("; {}{more} in it may", first.display()));
    }
    Error::not_found(path, reason)
}

/// The directories in `path` in which checkpoints were saved, by name.
pub fn folders_below(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let mut folders: Vec<PathBuf> =
        entries.map(|entry| entry.path()).filter(|folder| folder.join(INDEX_FILE).is_file()).collect();
    folders.sort();
    folders
}
