//! What the files of another tool's checkpoint were, to notice later that they have changed.

use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use walkdir::WalkDir;

/// The files of another tool's checkpoint.
#[derive(Debug)]
pub(crate) struct Stamp {
    /// The path that was opened, as an absolute one.
    path: PathBuf,
    /// Name, length, modification time and inode of each file, sorted.
    files: Vec<(PathBuf, u64, (i64, i64), u64)>,
}

/// The maximum number of files in a directory that are recorded.
const MAX_FILES: usize = 100_000;

/// The longest index of shards.
const MAX_INDEX: u64 = 100 << 20;

impl Stamp {
    /// Records the files that [`interop::open`](crate::interop::open) opens for `path`.
    pub(crate) fn of(path: &Path) -> Stamp {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
        let mut files = Vec::new();
        for file in names(&path) {
            if let Some(metadata) = fs::metadata(&file).ok().filter(fs::Metadata::is_file) {
                let modified = (metadata.mtime(), metadata.mtime_nsec());
                files.push((file, metadata.len(), modified, metadata.ino()));
            }
        }
        files.sort_unstable();
        Stamp { path, files }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns `true` if all of these files are unchanged; there may be other files.
    pub(crate) fn is_in(&self, now: &Stamp) -> bool {
        !self.files.is_empty() && self.files.iter().all(|file| now.files.binary_search(file).is_ok())
    }
}

/// Returns the paths of all files of what is at `path`.
fn names(path: &Path) -> Vec<PathBuf> {
    let below = |root: &Path, depth| {
        let walk = WalkDir::new(root).follow_links(true).max_depth(depth).into_iter().take(MAX_FILES);
        walk.filter_map(|entry| Some(entry.ok()?.into_path())).collect::<Vec<PathBuf>>()
    };
    if path.is_dir() {
        return below(path, 2);
    }
    let Some(directory) = path.parent() else { return Vec::new() };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let bundle = name.strip_suffix(".index").filter(|_| path.is_file());
    if path.is_file() && bundle.is_none() {
        let shards = shards(path).unwrap_or_default();
        return [path.to_path_buf()].into_iter().chain(shards.iter().map(|name| directory.join(name))).collect();
    }
    // The prefix of a TensorFlow bundle, or its index.
    let prefix = format!("{}.", bundle.unwrap_or(&name));
    let is_part = |file: &PathBuf| file.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix));
    let mut files = below(directory, 1);
    files.retain(is_part);
    files
}

/// An index of Hugging Face or Keras.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, Shards>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Shards {
    One(String),
    Many(BTreeSet<String>),
}

/// Returns the names of the files that an index lists, or `None` if the file is no index.
fn shards(path: &Path) -> Option<BTreeSet<String>> {
    let mut file = File::open(path).ok()?.take(MAX_INDEX);
    let mut text = Vec::new();
    (&mut file).take(16).read_to_end(&mut text).ok()?;
    if !text.trim_ascii_start().starts_with(b"{") {
        return None;
    }
    file.read_to_end(&mut text).ok()?;
    let index: Index = serde_json::from_slice(&text).ok()?;
    let names = index.weight_map.into_values().flat_map(|shards| match shards {
        Shards::One(name) => BTreeSet::from([name]),
        Shards::Many(names) => names,
    });
    Some(names.collect())
}
