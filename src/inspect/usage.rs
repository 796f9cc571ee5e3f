//! The disk space that checkpoints use, and what they share.

use super::files::files_in;
use super::lossy;
use super::target::{Place, lost_manifest, place};
use crate::error::{Error, Result};
use crate::format::{Digest, Manifest};
use crate::location::Location;
use crate::reader::CheckpointReader;
use crate::repository::FileId;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The result of [`disk_usage`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DiskUsage {
    /// The given directories and checkpoints, in order.
    pub paths: Vec<PathUsage>,
    /// Bytes of all files of all checkpoints, as if they shared nothing.
    pub bytes: u64,
    /// Bytes on the disk: a file to which several checkpoints link counts once.
    pub disk_bytes: u64,
    /// Bytes of tensors that are stored more than once although they have the same digest: what linking all of them
    /// would save.
    pub duplicate_bytes: u64,
    /// The pairs of paths that have these tensors, most bytes first.
    pub duplicates: Vec<DuplicateUsage>,
}

/// Tensors with the same digests in different files of two paths, or of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DuplicateUsage {
    /// The first path.
    #[serde(serialize_with = "lossy")]
    pub a: Location,
    /// The second path; the same as the first for duplicates within one.
    #[serde(serialize_with = "lossy")]
    pub b: Location,
    /// Bytes of the tensors that both have and do not share by a link, each counted once; within one path the bytes
    /// that linking them would save.
    pub bytes: u64,
}

/// The disk space of a directory of checkpoints, or of a single checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PathUsage {
    /// The path.
    #[serde(serialize_with = "lossy")]
    pub path: Location,
    /// Bytes of all its files, as if they shared nothing.
    pub bytes: u64,
    /// Bytes on the disk: a file that several of its checkpoints link counts once.
    pub disk_bytes: u64,
    /// Of these, bytes to which nothing else in [`DiskUsage::paths`] links.
    pub unique_bytes: u64,
    /// Its checkpoints, oldest first; then those that are damaged, moved aside, superseded, unfinished or removed.
    pub checkpoints: Vec<CheckpointUsage>,
}

/// The disk space of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CheckpointUsage {
    /// The name of its directory.
    pub name: String,
    /// Bytes of all its files.
    pub bytes: u64,
    /// Of these, bytes to which nothing else in [`DiskUsage::paths`] links: removing the checkpoint would free them.
    pub unique_bytes: u64,
    /// Of these, bytes to which something else links as well.
    pub shared_bytes: u64,
}

/// The files of a checkpoint.
struct Files {
    name: String,
    files: Vec<(FileId, u64)>,
}

/// Measures the disk space of checkpoints and directories of checkpoints. Reads manifests and file sizes, not tensors.
/// Sizes are lengths of files.
///
/// # Errors
/// [`Error::NotFound`] if nothing is there; [`Error::InvalidArgument`] for a checkpoint of another tool;
/// [`Error::Damaged`] for a single checkpoint without its manifest; [`Error::Io`].
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let dir = dir.path();
/// use tch_checkpoint::{Checkpoint, Counter, inspect};
/// Checkpoint::new().track("step", &Counter::new(7))?.save(dir.join("ckpt"))?;
/// let usage = inspect::disk_usage([dir])?;
/// assert_eq!(usage.paths[0].checkpoints[0].name, "ckpt-1");
/// assert_eq!(usage.bytes, usage.disk_bytes);
/// # Ok(())
/// # }
/// ```
pub fn disk_usage<P: AsRef<Path>>(paths: impl IntoIterator<Item = P>) -> Result<DiskUsage> {
    let mut all = Vec::new();
    let mut stored = Stored::default();
    for path in paths {
        let path = Location::from(path.as_ref());
        let found = checkpoints_at(&path)?;
        found.iter().for_each(|path| stored.add(all.len(), path));
        let ids = |path| files_in(path).into_iter().map(|(_, id, bytes)| (id, bytes)).collect();
        let files = found.iter().map(|path| Files { name: name_of(path), files: ids(path) });
        all.push((path, files.collect::<Vec<Files>>()));
    }
    // In how many checkpoints, and in how many paths, each file is.
    let (mut links, mut owners) = (HashMap::<FileId, u32>::new(), HashMap::<FileId, u32>::new());
    for (_, checkpoints) in &all {
        let files = || checkpoints.iter().flat_map(|checkpoint| &checkpoint.files).map(|(id, _)| *id);
        files().for_each(|id| *links.entry(id).or_default() += 1);
        files().collect::<HashSet<_>>().into_iter().for_each(|id| *owners.entry(id).or_default() += 1);
    }
    let is_only = |counts: &HashMap<FileId, u32>, id: &FileId| counts.get(id) == Some(&1);
    let (mut everything, mut bytes) = (HashMap::new(), 0);
    let mut paths = Vec::new();
    for (path, checkpoints) in all {
        let own: HashMap<FileId, u64> =
            checkpoints.iter().flat_map(|checkpoint| checkpoint.files.iter().copied()).collect();
        let usage = checkpoints.into_iter().map(|Files { name, files }| {
            let bytes = files.iter().map(|(_, bytes)| bytes).sum();
            let unique = files.iter().filter(|(id, _)| is_only(&links, id));
            let unique_bytes = unique.map(|(_, bytes)| bytes).sum();
            CheckpointUsage { name, bytes, unique_bytes, shared_bytes: bytes - unique_bytes }
        });
        let usage: Vec<CheckpointUsage> = usage.collect();
        let total = usage.iter().map(|checkpoint| checkpoint.bytes).sum::<u64>();
        bytes += total;
        paths.push(PathUsage {
            path,
            bytes: total,
            disk_bytes: own.values().sum(),
            unique_bytes: own.iter().filter(|(id, _)| is_only(&owners, id)).map(|(_, bytes)| bytes).sum(),
            checkpoints: usage,
        });
        everything.extend(own);
    }
    let (duplicate_bytes, duplicates) = stored.duplicates(&paths);
    Ok(DiskUsage { paths, bytes, disk_bytes: everything.values().sum(), duplicate_bytes, duplicates })
}

/// Returns the directories of the checkpoints at a path.
fn checkpoints_at(path: &Location) -> Result<Vec<Location>> {
    match place(path)? {
        Place::Checkpoint => Ok(vec![path.clone()]),
        Place::LostManifest => Err(lost_manifest(path)),
        Place::Foreign(_) => {
            let reason = format!("{} is a checkpoint of another tool, which shares nothing", path.display());
            Err(Error::InvalidArgument(reason))
        }
        Place::Directory(listing) => {
            let whole = listing.checkpoints.iter().map(|listed| &listed.path);
            let damaged = listing.damaged.iter().map(|(path, _)| path);
            let rest = [&listing.moved_aside, &listing.superseded, &listing.unfinished_saves, &listing.removed];
            let all = whole.chain(damaged).chain(rest.into_iter().flatten());
            Ok(all.filter(|path| path.is_dir() && !path.is_symlink()).cloned().collect())
        }
    }
}

fn name_of(path: &Location) -> String {
    path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}

/// Where tensors of each digest and length are stored, by the number of the path: in which file, and from which byte
/// on.
#[derive(Default)]
struct Stored(HashMap<(Digest, u64), BTreeMap<usize, BTreeSet<StoredAt>>>);

/// The device and inode of a file, and a byte in it.
type StoredAt = (u64, u64, u64);

impl Stored {
    /// Adds the tensors of a checkpoint of the path `owner`, if it can be read.
    fn add(&mut self, owner: usize, path: &Location) {
        let Ok(reader) = CheckpointReader::open(path) else { return };
        let manifest: &Manifest = &reader.source.manifest;
        let files: HashMap<&str, FileId> =
            manifest.files.keys().filter_map(|name| Some((name.as_str(), id(&path.join(name))?))).collect();
        for record in manifest.tensors.values() {
            let Some(piece) = record.pieces.first() else { continue };
            let Some(file) = files.get(piece.file.as_str()) else { continue };
            let bytes = record.spec.bytes().unwrap_or_default();
            let places = self.0.entry((record.digest, bytes)).or_default().entry(owner).or_default();
            places.insert((file.device, file.inode, piece.begin));
        }
    }

    /// Returns how many bytes are stored more than once, and between which paths.
    fn duplicates(&self, paths: &[PathUsage]) -> (u64, Vec<DuplicateUsage>) {
        let mut total: u64 = 0;
        let mut pairs: BTreeMap<(usize, usize), u64> = BTreeMap::new();
        for ((_, bytes), owners) in &self.0 {
            let places: BTreeSet<&StoredAt> = owners.values().flatten().collect();
            total = total.saturating_add(bytes.saturating_mul(places.len() as u64 - 1));
            let mut add = |pair, times: usize| {
                let sum: &mut u64 = pairs.entry(pair).or_default();
                *sum = sum.saturating_add(bytes.saturating_mul(times as u64));
            };
            for (a, own) in owners {
                add((*a, *a), own.len() - 1);
                // Where they are the same places, all is linked.
                let others = owners.range(a + 1..).filter(|(_, other)| *other != own);
                others.for_each(|(b, _)| add((*a, *b), 1));
            }
        }
        let path = |at: usize| paths.get(at).map(|usage| usage.path.clone()).unwrap_or_default();
        let pairs = pairs.into_iter().filter(|(_, bytes)| *bytes > 0);
        let mut pairs: Vec<DuplicateUsage> =
            pairs.map(|((a, b), bytes)| DuplicateUsage { a: path(a), b: path(b), bytes }).collect();
        pairs.sort_by_key(|pair| std::cmp::Reverse(pair.bytes));
        (total, pairs)
    }
}

fn id(path: &Path) -> Option<FileId> {
    let file = fs::symlink_metadata(path).ok()?;
    Some(FileId { device: file.dev(), inode: file.ino() })
}
