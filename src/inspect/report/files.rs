//! Counts how many bytes of a checkpoint were written for it, and how many are links.

use crate::format::MANIFEST_FILE;
use crate::source::Source;
use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;

/// The files of the checkpoints seen so far.
#[derive(Debug, Default)]
pub(super) struct Files {
    /// By device and inode.
    seen: HashSet<(u64, u64)>,
}

impl Files {
    /// Returns the bytes of files that no earlier checkpoint has, and of those that one has. Files that were removed
    /// meanwhile do not count.
    pub(super) fn count(&mut self, source: &Source) -> (u64, u64) {
        let (mut written, mut linked) = (0u64, 0u64);
        let files = source.manifest.files.keys().chain(source.manifest.assets.keys()).map(String::as_str);
        for name in files.chain([MANIFEST_FILE]) {
            let Ok(metadata) = fs::symlink_metadata(source.path.join(name)) else { continue };
            let sum = if self.seen.insert((metadata.dev(), metadata.ino())) { &mut written } else { &mut linked };
            *sum = sum.saturating_add(metadata.len());
        }
        (written, linked)
    }
}
