//! Components that have not changed since the last checkpoint are not written again: their file gets a second name.
//!
//! That a component may be unchanged is told by its tensors' version counters, which cost nothing to ask; that it is, by
//! its digests. Of the checkpoints that are kept, at least two never share a file, so that one bad sector cannot spoil
//! them all: where one is kept, a file is always given another name; where two are kept, never; else as long as one of
//! the others has another file.

use super::plan::{Plan, PlannedFile};
use crate::error::{Error, Result};
use crate::format::{Digest, Manifest};
use crate::parallel;
use crate::store::Finished;
use std::collections::{BTreeSet, HashMap};

/// So many checkpoints at most have the same file, however many are kept.
const MAX_SHARES: usize = 16;

/// What the last checkpoint of a manager was made of.
#[derive(Default)]
pub(crate) struct Memo {
    /// Its name.
    name: String,
    files: HashMap<String, MemoFile>,
    /// The checkpoints that will be there beside the next one.
    kept: BTreeSet<String>,
}

impl Memo {
    /// Says which checkpoints will be there beside the next one, when that is saved.
    pub(crate) fn keep(&mut self, names: impl IntoIterator<Item = String>) {
        self.kept = names.into_iter().collect();
    }

    /// Whether one checkpoint more may have this file.
    fn may_share(&self, file: &MemoFile) -> bool {
        let all = self.kept.iter().all(|name| file.shares.contains(name));
        self.kept.is_empty() || !all && file.shares.len() < MAX_SHARES
    }
}

struct MemoFile {
    header: Vec<u8>,
    versions: Versions,
    digests: Vec<Digest>,
    /// What the file was when it was finished.
    finished: Finished,
    /// The checkpoints that have this very file.
    shares: BTreeSet<String>,
}

/// Of every tensor of a file the address and the version; `None` when one of them has none.
type Versions = Option<Vec<(usize, u64)>>;

/// The files of a plan that have not changed, as far as the version counters tell.
pub(crate) struct Unchanged {
    /// The last checkpoint.
    from: String,
    /// For every file of the plan: the digests its tensors had, if they may have them still.
    digests: Vec<Option<Vec<Digest>>>,
    versions: Vec<Versions>,
    /// For the same files: what they were when they were finished, and who has them.
    shared: Vec<Option<(Finished, BTreeSet<String>)>>,
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
            (same && memo.may_share(known)).then_some(known)
        });
        let of_kept = |known: &MemoFile| known.shares.intersection(&memo.kept).cloned().collect();
        let (digests, shared) = same
            .map(|known| {
                let known: Option<&MemoFile> = known;
                (known.map(|known| known.digests.clone()), known.map(|known| (known.finished, of_kept(known))))
            })
            .unzip();
        Unchanged { from: memo.name.clone(), digests, versions, shared }
    }

    /// Whether a file of the plan, by its place, may be unchanged.
    pub(crate) fn has(&self, file: usize) -> bool {
        self.digests.get(file).is_some_and(Option::is_some)
    }

    /// The checkpoint that has the file, and what the file was when it was finished.
    pub(crate) fn shared(&self, file: usize) -> Option<(&str, Finished)> {
        let (finished, _) = self.shared.get(file)?.as_ref()?;
        Some((&self.from, *finished))
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

    /// What to compare the next save with. `linked` tells which files were not written again, `finished` what those were
    /// that were.
    pub(crate) fn into_memo(
        mut self,
        plan: &Plan,
        name: &str,
        manifest: &Manifest,
        linked: &[bool],
        finished: &[Option<Finished>],
    ) -> Memo {
        let mut files = HashMap::new();
        for (i, file) in plan.files.iter().enumerate() {
            let digest = |&place: &usize| Some(manifest.tensors.get(&plan.tensors[place].key)?.digest);
            let Some(digests) = file.tensors.iter().map(digest).collect() else { continue };
            let before = self.shared[i].take().filter(|_| linked[i]);
            let fresh = || finished[i].map(|finished| (finished, BTreeSet::new()));
            let Some((finished, mut shares)) = before.or_else(fresh) else { continue };
            shares.insert(name.to_string());
            let versions = self.versions[i].take();
            let header = file.header.clone();
            files.insert(file.name.clone(), MemoFile { header, versions, digests, finished, shares });
        }
        Memo { name: name.to_string(), files, kept: BTreeSet::new() }
    }
}
