//! Components that have not changed since the last checkpoint are not written again: their file gets a second name.
//!
//! That a component may be unchanged is told by its tensors' version counters, which cost nothing to ask; that it is, by
//! its digests. A file is given another name a few times only, so that one bad sector cannot spoil every checkpoint.

use super::plan::{Plan, PlannedFile};
use crate::error::{Error, Result};
use crate::format::{Digest, Manifest};
use crate::parallel;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// After so many checkpoints in a row with the same file it is written anew.
const MAX_LINKS: u32 = 16;

/// What the last checkpoint of a manager was made of.
#[derive(Default)]
pub(crate) struct Memo {
    /// Its folder.
    path: PathBuf,
    files: HashMap<String, MemoFile>,
}

struct MemoFile {
    header: Vec<u8>,
    versions: Versions,
    digests: Vec<Digest>,
    links: u32,
}

/// Of every tensor of a file the address and the version; `None` when one of them has none.
type Versions = Option<Vec<(usize, u64)>>;

/// The files of a plan that have not changed, as far as the version counters tell.
pub(crate) struct Unchanged {
    /// The last checkpoint's folder.
    from: PathBuf,
    /// For every file of the plan: the digests its tensors had, if they may have them still.
    digests: Vec<Option<Vec<Digest>>>,
    versions: Vec<Versions>,
    links: Vec<u32>,
}

fn versions(plan: &Plan, file: &PlannedFile) -> Versions {
    let version = |&place: &usize| {
        let tensor = &plan.tensors[place];
        Some((tensor.address?, tensor.leaf.version()?))
    };
    file.tensors.iter().map(version).collect()
}

impl Unchanged {
    /// Compares a plan with the last checkpoint; to be called when the state to be saved is there, and nobody changes it.
    pub(crate) fn since(memo: &Memo, plan: &Plan) -> Unchanged {
        let versions: Vec<Versions> = plan.files.iter().map(|file| versions(plan, file)).collect();
        let same = plan.files.iter().zip(&versions).map(|(file, versions)| {
            let known = memo.files.get(&file.name)?;
            let same = versions.is_some() && *versions == known.versions && file.header == known.header;
            (same && known.links < MAX_LINKS).then_some(known)
        });
        let (digests, links) = same
            .map(|known| (known.map(|known| known.digests.clone()), known.map_or(0, |known| known.links + 1)))
            .unzip();
        Unchanged { from: memo.path.clone(), digests, versions, links }
    }

    /// Whether a file of the plan, by its place, may be unchanged.
    pub(crate) fn has(&self, file: usize) -> bool {
        self.digests.get(file).is_some_and(Option::is_some)
    }

    /// The file of the last checkpoint.
    pub(crate) fn path(&self, file: &PlannedFile) -> PathBuf {
        self.from.join(&file.name)
    }

    /// Looks at the bytes: the digests, if they are what they were; an error names a tensor that did change.
    pub(crate) fn digests(&self, plan: &Plan, place: usize, threads: usize) -> Result<Option<Vec<(usize, Digest)>>> {
        let (Some(file), Some(Some(digests))) = (plan.files.get(place), self.digests.get(place)) else {
            return Ok(None);
        };
        let pairs: Vec<(usize, Digest)> = file.tensors.iter().copied().zip(digests.iter().copied()).collect();
        parallel::for_each(
            &pairs,
            threads,
            || (),
            |&(place, digest), ()| {
                let tensor = &plan.tensors[place];
                let bytes = tensor.leaf.bytes().map_err(|reason| Error::object(&tensor.key, reason))?;
                match Digest::of(bytes.as_slice()) == digest {
                    true => Ok(()),
                    false => Err(Error::object(
                        &tensor.key,
                        "it changed without its version counter moving, or while it was being saved",
                    )),
                }
            },
        )?;
        Ok(Some(pairs))
    }

    /// What to compare the next save with. `linked` tells which files were not written again.
    pub(crate) fn into_memo(mut self, plan: &Plan, path: &Path, manifest: &Manifest, linked: &[bool]) -> Memo {
        let mut files = HashMap::new();
        for (i, file) in plan.files.iter().enumerate() {
            let digest = |&place: &usize| Some(manifest.tensors.get(&plan.tensors[place].key)?.digest);
            let Some(digests) = file.tensors.iter().map(digest).collect() else { continue };
            let links = if linked[i] { self.links[i] } else { 0 };
            let versions = self.versions[i].take();
            files.insert(file.name.clone(), MemoFile { header: file.header.clone(), versions, digests, links });
        }
        Memo { path: path.to_path_buf(), files }
    }
}
