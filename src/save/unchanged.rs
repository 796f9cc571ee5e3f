//! Components that have not changed since the last checkpoint are not written again: their file is hard-linked.
//!
//! The version counters of its tensors, which are cheap to read, show that a component may be unchanged. The digests of
//! its bytes at the time of the call decide: for tensors that are copied after the call, once they are copied; for all
//! others, during the call. Of the checkpoints that are kept, at least two never share a file, so that one bad sector
//! cannot damage them all: if one checkpoint is kept, files are always linked; if two are kept, never; otherwise, as
//! long as one of the others has another file.

use super::lazy::AllSeen;
use super::plan::{Plan, PlannedFile};
use super::tracked::{Earlier, SavedAsset};
use crate::error::Error;
use crate::format::{Digest, Manifest, Statistics};
use crate::graph::{Seen, bytes_as};
use crate::location::Location;
use crate::name;
use crate::parallel;
use crate::repository::{Directory, Finished, ReadFile, Stat};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::sync::Arc;

/// The maximum number of checkpoints that share a file, regardless of how many are kept.
const MAX_SHARES: usize = 16;

/// The maximum number of files of the last checkpoint that are held open until they are linked. Further unchanged files,
/// the smallest, are captured as if they had changed.
const MAX_HELD: usize = 64;

/// The parts of a manager's last checkpoint.
#[derive(Default)]
pub(crate) struct Memo {
    /// The name of the checkpoint.
    name: String,
    files: HashMap<String, MemoFile>,
    assets: HashMap<String, Earlier>,
    /// The checkpoints that will exist together with the next one.
    kept: BTreeSet<String>,
    /// Which of these checkpoints lack a component, by the first part of its keys.
    lacking: HashMap<String, BTreeSet<String>>,
    /// Its files could not be linked: components that may be unchanged are captured anyway.
    no_links: bool,
}

impl Memo {
    /// Sets which checkpoints will exist together with the next one, each with the components that it lacks then.
    pub(crate) fn keep(&mut self, checkpoints: BTreeMap<String, Vec<String>>) {
        self.lacking.clear();
        for (checkpoint, lacks) in &checkpoints {
            for component in lacks {
                self.lacking.entry(name::key([component])).or_default().insert(checkpoint.clone());
            }
        }
        self.kept = checkpoints.into_keys().collect();
    }

    /// Returns `true` if one more checkpoint may share this file, which belongs to this component, if to any.
    fn may_share(&self, shares: &BTreeSet<String>, component: Option<&str>) -> bool {
        let lacking = component.and_then(|component| self.lacking.get(component));
        let mut kept =
            self.kept.iter().filter(|name| !lacking.is_some_and(|lacking| lacking.contains(*name))).peekable();
        kept.peek().is_none() || !kept.all(|name| shares.contains(name)) && shares.len() < MAX_SHARES
    }
}

struct MemoFile {
    header: Arc<[u8]>,
    versions: Versions,
    digests: Vec<Digest>,
    statistics: Vec<Option<Statistics>>,
    /// The state of the file when it was finished.
    finished: Finished,
    /// The checkpoints that share this file.
    shares: BTreeSet<String>,
}

/// The address and the version of every tensor of a file; `None` if a tensor has none.
type Versions = Option<Vec<(usize, u64)>>;

/// The files of a plan that have not changed, according to the version counters.
pub(crate) struct Unchanged {
    /// The last checkpoint.
    from: String,
    /// For every file of the plan: the digests that its tensors had, if they may still have them.
    digests: Vec<Option<Vec<Digest>>>,
    /// The records of the tensors of those files.
    statistics: Vec<Vec<Option<Statistics>>>,
    /// For those that are known to be unchanged: the file of the last checkpoint. It can be copied even if the checkpoint
    /// is removed before its files are linked.
    held: Vec<Option<Arc<dyn ReadFile>>>,
    no_links: bool,
    /// What the tensors report.
    seen: AllSeen,
    /// For the same files: their state when they were finished, and the checkpoints that share them.
    shared: Vec<Option<(Finished, BTreeSet<String>)>>,
    assets: HashMap<String, Earlier>,
}

fn versions<'a>(plan: &'a Plan, file: &'a PlannedFile, seen: &'a [Seen]) -> impl Iterator<Item = Option<(usize, u64)>> {
    file.tensors.iter().map(|&place| Some((plan.tensors[place].address?, seen[place].version()?)))
}

impl Unchanged {
    /// Compares a plan, with its tensors as they are [`seen`](Plan::look), with the last checkpoint. The next save
    /// detects later changes.
    pub(crate) fn since(memo: &Memo, plan: &Plan, seen: AllSeen) -> Unchanged {
        let same = plan.files.iter().map(|file| {
            let known = memo.files.get(&file.name)?;
            let then = known.versions.as_ref()?.iter().copied().map(Some);
            let same_header = || Arc::ptr_eq(&file.header, &known.header) || file.header == known.header;
            let same = versions(plan, file, &seen).eq(then) && same_header();
            let component = file.tensors.first().map(|&place| name::component(&plan.tensors[place].key));
            (same && memo.may_share(&known.shares, component)).then_some(known)
        });
        let of_kept = |known: &MemoFile| known.shares.intersection(&memo.kept).cloned().collect();
        let (digests, shared) = same
            .map(|known| {
                let known: Option<&MemoFile> = known;
                (known.map(|known| known.digests.clone()), known.map(|known| (known.finished, of_kept(known))))
            })
            .unzip();
        let held = plan.files.iter().map(|_| None).collect();
        let assets = memo.assets.iter().map(|(name, earlier)| {
            let may_share = !memo.no_links && memo.may_share(&earlier.shares, None);
            let shares = earlier.shares.intersection(&memo.kept).cloned().collect();
            (name.clone(), Earlier { may_share, shares, ..earlier.clone() })
        });
        let (from, assets) = (memo.name.clone(), assets.collect());
        let noted = |file: &PlannedFile| memo.files.get(&file.name).map(|known| known.statistics.clone());
        let statistics = plan.files.iter().map(|file| noted(file).unwrap_or_default()).collect();
        Unchanged { from, digests, statistics, held, no_links: memo.no_links, seen, shared, assets }
    }

    /// The result if there is no last checkpoint.
    pub(crate) fn since_nothing(plan: &Plan, seen: AllSeen) -> Unchanged {
        Unchanged::since(&Memo::default(), plan, seen)
    }

    /// Compares the files that may be unchanged now, during the call: those that are unchanged, and are held open, need not
    /// be captured. Skips files of which something `is_behind` the call. A file that is no longer in the last checkpoint as
    /// it was finished is captured.
    pub(crate) fn prove(
        &mut self,
        plan: &Plan,
        directory: &Directory,
        is_behind: impl Fn(usize) -> bool,
        threads: usize,
    ) {
        let mut places: Vec<usize> = (0..plan.files.len()).filter(|&place| self.digests[place].is_some()).collect();
        places.retain(|&place| !self.no_links && !is_behind(place));
        places.sort_by_key(|&place| Reverse(plan.files[place].bytes));
        places.truncate(MAX_HELD);
        let mut last = None;
        for place in places {
            let last = last.get_or_insert_with(|| directory.open(&self.from).ok());
            let name: &OsStr = plan.files[place].name.as_ref();
            let finished = self.shared[place].as_ref().map(|(finished, _)| *finished);
            let is_it = |stat: Stat| finished == Some(Finished::from(stat));
            let file = last.as_ref().and_then(|last| last.open(name).ok());
            let file = file.filter(|file| file.stat().is_ok_and(is_it));
            self.held[place] = file.filter(|_| self.live_digests(plan, place, threads).is_some()).map(Arc::from);
            if self.held[place].is_none() {
                self.digests[place] = None;
            }
        }
    }

    /// Returns the file of the last checkpoint, for reading, if the component was unchanged at the call.
    pub(super) fn last(&self, place: usize) -> Option<Arc<dyn ReadFile>> {
        self.held.get(place)?.clone()
    }

    pub(super) fn path_in_last(&self, plan: &Plan, place: usize, directory: &Directory) -> Location {
        directory.path(&self.from).join(&plan.files[place].name)
    }

    /// Returns `true` if a file of the plan, by its place, was unchanged at the call, so that it was not captured.
    pub(crate) fn is_proved(&self, file: usize) -> bool {
        self.held.get(file).is_some_and(Option::is_some)
    }

    /// Returns the digests that a file's tensors had, with their places, if they may still have them.
    pub(super) fn known(&self, plan: &Plan, place: usize) -> Option<Vec<(usize, Digest)>> {
        let (file, digests) = (plan.files.get(place)?, self.digests.get(place)?.as_ref()?);
        Some(file.tensors.iter().copied().zip(digests.iter().copied()).collect())
    }

    /// Returns what the tensors have reported.
    pub(crate) fn seen(&self) -> &[Seen] {
        &self.seen
    }

    /// Returns the records of the tensors of a file that may be unchanged, in their order.
    pub(super) fn statistics(&self, place: usize) -> &[Option<Statistics>] {
        self.statistics.get(place).map_or(&[], Vec::as_slice)
    }

    /// Returns the last checkpoint.
    pub(super) fn from(&self) -> &str {
        &self.from
    }

    /// Returns an asset of the last checkpoint.
    pub(crate) fn earlier(&self, asset: &str) -> Option<&Earlier> {
        self.assets.get(asset)
    }

    /// Records that a file of the last checkpoint could not be linked.
    pub(super) fn cannot_link(&mut self) {
        self.no_links = true;
    }

    /// Returns the checkpoint that has the file, and the state of the file when it was finished.
    pub(crate) fn shared(&self, file: usize) -> Option<(&str, Finished)> {
        let (finished, _) = self.shared.get(file)?.as_ref()?;
        Some((&self.from, *finished))
    }

    /// Like [`known`](Unchanged::known), if the tensors have these digests at the moment.
    pub(super) fn live_digests(&self, plan: &Plan, place: usize, threads: usize) -> Option<Vec<(usize, Digest)>> {
        let pairs = self.known(plan, place)?;
        let bytes = pairs.iter().map(|(place, _)| plan.tensors[*place].range.end - plan.tensors[*place].range.start);
        let threads = parallel::worth(threads, bytes.sum());
        let compared = parallel::for_each(
            &pairs,
            threads,
            || (),
            |&(place, digest), ()| {
                let tensor = &plan.tensors[place];
                let bytes = bytes_as(&*tensor.leaf, &tensor.spec).map_err(|e| Error::object(&tensor.key, e))?;
                match Digest::of(bytes.as_slice()) == digest {
                    true => Ok(()),
                    false => Err(Error::object(&tensor.key, "it has changed")),
                }
            },
        );
        compared.is_ok().then_some(pairs)
    }

    /// Returns the state with which the next save is compared. `linked` has the files that were not written again,
    /// `finished` the states of those that were.
    pub(crate) fn into_memo(
        mut self,
        plan: &Plan,
        name: &str,
        manifest: &Manifest,
        linked: &[bool],
        finished: &[Option<Finished>],
        assets: Vec<SavedAsset>,
    ) -> Memo {
        let mut files = HashMap::new();
        for (i, file) in plan.files.iter().enumerate() {
            let digest = |&place: &usize| Some(manifest.tensors.get(&plan.tensors[place].key)?.digest);
            let Some(digests) = file.tensors.iter().map(digest).collect() else { continue };
            let record = |&place: &usize| manifest.tensors.get(&plan.tensors[place].key);
            let statistics = file.tensors.iter().map(|place| record(place)?.statistics).collect();
            let before = self.shared[i].take().filter(|_| linked[i]);
            let fresh = || finished[i].map(|finished| (finished, BTreeSet::new()));
            let Some((finished, mut shares)) = before.or_else(fresh) else { continue };
            shares.insert(name.to_string());
            let versions = versions(plan, file, &self.seen).collect();
            let header = file.header.clone();
            files.insert(file.name.clone(), MemoFile { header, versions, digests, statistics, finished, shares });
        }
        let mut known = HashMap::new();
        for SavedAsset { captured, finished } in assets {
            let before = self.assets.remove(&captured.name).map(|earlier| (earlier.finished, earlier.shares));
            let fresh = finished.map(|finished| (finished, BTreeSet::new()));
            let Some((finished, mut shares)) = fresh.or(before) else { continue };
            shares.insert(name.to_string());
            let earlier = Earlier { entry: captured.entry, stamp: captured.stamp, finished, may_share: false, shares };
            known.insert(captured.name, earlier);
        }
        let no_links = self.no_links;
        Memo { name: name.to_string(), files, assets: known, no_links, ..Memo::default() }
    }
}
