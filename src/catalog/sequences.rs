//! The highest sequence of a directory, without reading a manifest twice.

use super::is_final;
use super::rule::{self, Whose};
use crate::error::Result;
use crate::repository::{Directory, FileId, Scan, Stat};
use std::collections::HashMap;

/// The sequences of a directory's checkpoints, as far as their manifests were read. Each is valid while the checkpoint
/// is the same directory, in which nothing was added, renamed or removed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sequences {
    directory: Option<FileId>,
    known: HashMap<String, (Stat, u64)>,
}

impl Sequences {
    /// Returns the highest sequence of `directory`, which was scanned under its lock. Reads manifests that are new
    /// since the last call, and only stats the others.
    ///
    /// # Errors
    /// If a checkpoint cannot be read: the next save must be later.
    pub(crate) fn highest(&mut self, directory: &Directory, scan: &Scan) -> Result<u64> {
        let id = directory.id();
        if id.is_none() || self.directory != id {
            *self = Sequences { directory: id, known: HashMap::new() };
        }
        let index = directory.index();
        let indexed = index.iter().flat_map(|index| &index.checkpoints);
        let indexed = indexed.filter(|entry| scan.names.contains(&entry.name)).map(|entry| entry.sequence);
        let mut highest = indexed.max().unwrap_or(0);
        let indexed = rule::indexed(index.as_ref());
        let root = directory.dir().ok();
        let mut before = std::mem::take(&mut self.known);
        let aside = scan.aside.iter().map(|(_, name)| (name, false));
        for (name, counts) in scan.checkpoints.iter().map(|name| (name, true)).chain(aside) {
            // Before the manifest is read, so that a replacement meanwhile is not mistaken for it.
            let stat = root.as_ref().and_then(|root| root.stat_of(name.as_ref()).ok().flatten());
            let known = before.remove(name).filter(|(then, _)| Some(*then) == stat).map(|(_, sequence)| Ok(sequence));
            match known.unwrap_or_else(|| directory.manifest(name).map(|manifest| manifest.sequence)) {
                Ok(sequence) => {
                    highest = highest.max(sequence);
                    self.known.extend(stat.map(|stat| (name.clone(), (stat, sequence))));
                }
                Err(e)
                    if counts
                        && !is_final(&e)
                        && rule::whose(directory, indexed.contains(name), name) == Whose::Ours =>
                {
                    return Err(e);
                }
                Err(_) => {}
            }
        }
        Ok(highest)
    }
}
