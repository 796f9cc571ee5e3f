//! Determines the newest checkpoint: the head of the chain in which each follows the one before. Pure functions.
//!
//! A checkpoint follows the one that its manifest names. If that one was removed, it follows the latest earlier one of
//! the same run, or else of the runs that its run came from. Checkpoints that name none (those of format versions 1 and
//! 2, and the first of a run) follow one another in the order of their sequences. If two follow the same one, the run
//! went back: the one that was saved later counts. A checkpoint whose predecessors are all gone is the root of another
//! tree. Of several trees, the one that the index lists, or whose predecessor it lists, counts; otherwise nothing
//! decides. A permanent checkpoint whose neighbours were removed long ago is a tree of its own, which counts as well
//! unless the index, which would list it, decides.

use crate::format::Follows;
use chrono::{DateTime, Utc};
use std::collections::{HashMap, HashSet};

/// What is known about a checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Link {
    pub id: Follows,
    pub follows: Option<Follows>,
    pub earlier: Vec<Follows>,
    pub name: String,
    pub saved_at: DateTime<Utc>,
    /// Permanent: its neighbours may have been removed long ago.
    pub permanent: bool,
}

/// The checkpoints of one name, in order.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Chain {
    /// Oldest first, by name; the last is the newest.
    pub own: Vec<String>,
    /// Those of other runs, which are not ancestors of this one.
    pub others: Vec<String>,
}

/// How certain it is that one follows another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Sure {
    /// Only by their sequences.
    BySequence,
    /// By its manifest, or because both belong to one run.
    Certain,
}

/// What decides between several trees.
pub(super) enum Decides<F> {
    /// The checkpoints that the index lists, if it lists any: it lists all of this directory.
    Index(F),
    /// Some checkpoints of the tree that was chosen.
    Chosen(F),
}

/// Orders the checkpoints of one name. `gone` has those that left the numbering, and their predecessors; at most so many
/// `steps` are made through them.
///
/// # Errors
/// The names of two checkpoints if nothing decides which one is newer.
pub(super) fn order(
    links: &[Link],
    gone: &HashMap<Follows, Option<Follows>>,
    decides: &Decides<impl Fn(&Link) -> bool>,
    steps: &mut usize,
) -> Result<Chain, (String, String)> {
    let mut sorted: Vec<&Link> = links.iter().collect();
    sorted.sort_by_key(|link| (link.id.sequence, link.saved_at, &link.id.run, &link.name));
    let earlier = Earlier::of(&sorted);
    let parents: Vec<Option<(usize, Sure)>> = sorted.iter().map(|link| parent(link, &earlier, gone, steps)).collect();
    // A parent precedes its children: its tree is known.
    let mut trees: Vec<usize> = Vec::with_capacity(sorted.len());
    for (at, parent) in parents.iter().enumerate() {
        trees.push(parent.map_or(at, |(parent, _)| trees[parent]));
    }
    let own = own_trees(&sorted, &trees, decides)?;
    let all_own: HashSet<usize> = own.iter().copied().collect();
    let is_own = |at: &usize| all_own.contains(&trees[*at]);
    let newest = own.first().map(|&tree| head(tree, &parents));
    let names = |ats: Vec<usize>| ats.into_iter().map(|at| sorted[at].name.clone()).collect();
    let (mut mine, others): (Vec<usize>, Vec<usize>) = (0..sorted.len()).partition(is_own);
    // The newest is last, regardless of its sequence.
    mine.sort_by_key(|at| Some(*at) == newest);
    Ok(Chain { own: names(mine), others: names(others) })
}

/// Returns the number of the tree of each of `links`. Those of one tree have the same number.
pub(super) fn trees(links: &[Link]) -> Vec<usize> {
    let mut places: Vec<usize> = (0..links.len()).collect();
    places.sort_by_key(|&at| (links[at].id.sequence, links[at].saved_at, &links[at].id.run, &links[at].name));
    let sorted: Vec<&Link> = places.iter().map(|&at| &links[at]).collect();
    let earlier = Earlier::of(&sorted);
    let mut trees = vec![0; links.len()];
    for (at, link) in sorted.iter().enumerate() {
        let parent = parent(link, &earlier, &HashMap::new(), &mut STEPS_BESIDE.clone());
        trees[places[at]] = parent.map_or(at, |(parent, _)| trees[places[parent]]);
    }
    trees
}

/// Finds checkpoints by identity, in constant time.
struct Earlier<'a> {
    sorted: &'a [&'a Link],
    by_id: HashMap<&'a Follows, usize>,
    by_run: HashMap<&'a str, Vec<usize>>,
    without_follows: Vec<usize>,
}

impl<'a> Earlier<'a> {
    fn of(sorted: &'a [&'a Link]) -> Earlier<'a> {
        let mut by_run: HashMap<&str, Vec<usize>> = HashMap::new();
        for (at, link) in sorted.iter().enumerate() {
            by_run.entry(&link.id.run).or_default().push(at);
        }
        // Of copies of one checkpoint the last counts.
        let by_id = sorted.iter().enumerate().map(|(at, link)| (&link.id, at)).collect();
        let without_follows = (0..sorted.len()).filter(|&at| sorted[at].follows.is_none()).collect();
        Earlier { sorted, by_id, by_run, without_follows }
    }

    /// Returns the checkpoint `id`, if it was saved before the sequence `before`.
    fn with_id(&self, id: &Follows, before: u64) -> Option<usize> {
        self.by_id.get(id).copied().filter(|_| id.sequence < before)
    }

    /// Returns the last of `run` before the sequence `before`.
    fn of_run(&self, run: &str, before: u64) -> Option<usize> {
        self.last_of(self.by_run.get(run)?, before)
    }

    /// Returns the last one before the sequence `before` whose manifest names no predecessor.
    fn of_none(&self, before: u64) -> Option<usize> {
        self.last_of(&self.without_follows, before)
    }

    fn last_of(&self, ascending: &[usize], before: u64) -> Option<usize> {
        let end = ascending.partition_point(|&at| self.sorted[at].id.sequence < before);
        ascending[..end].last().copied()
    }
}

/// The total number of steps through those that left the numbering: this many per checkpoint, plus a constant. Real
/// runs stay far below it.
const STEPS_EACH: usize = 8;
const STEPS_BESIDE: usize = 100_000;

/// Returns the number of steps for the orders of so many checkpoints of any names.
pub(super) fn steps(checkpoints: usize) -> usize {
    STEPS_BESIDE + STEPS_EACH * checkpoints
}

/// Returns the earlier checkpoint that `link` follows.
fn parent(
    link: &Link,
    earlier: &Earlier<'_>,
    gone: &HashMap<Follows, Option<Follows>>,
    steps: &mut usize,
) -> Option<(usize, Sure)> {
    let own = link.id.sequence;
    let mut look = |mut follows| {
        // Those that left the numbering lead to their predecessors.
        for _ in 0..=gone.len().min(*steps) {
            if let Some(found) = earlier.with_id(follows, own) {
                return Some(found);
            }
            *steps = steps.saturating_sub(1);
            match gone.get(follows) {
                Some(Some(next)) => follows = next,
                _ => break,
            }
        }
        earlier.of_run(&follows.run, follows.sequence.min(own))
    };
    if let Some(follows) = &link.follows {
        let named = look(follows).or_else(|| earlier.of_run(&link.id.run, own));
        return named.or_else(|| link.earlier.iter().find_map(look)).map(|found| (found, Sure::Certain));
    }
    if let Some(found) = earlier.of_run(&link.id.run, own) {
        return Some((found, Sure::Certain));
    }
    earlier.of_none(own).map(|found| (found, Sure::BySequence))
}

/// Returns the trees that belong to this directory's run, the one with the newest first.
fn own_trees(
    sorted: &[&Link],
    trees: &[usize],
    by: &Decides<impl Fn(&Link) -> bool>,
) -> Result<Vec<usize>, (String, String)> {
    let roots: Vec<usize> = (0..sorted.len()).filter(|&at| trees[at] == at).collect();
    let mut members: Vec<Vec<usize>> = vec![Vec::new(); sorted.len()];
    trees.iter().enumerate().for_each(|(at, &tree)| members[tree].push(at));
    let members = |tree: usize| members[tree].iter().copied();
    let latest = |tree: &usize| members(*tree).next_back();
    // A permanent checkpoint may be alone because its neighbours are gone, and does not compete with other trees.
    let (kept, rivals): (Vec<usize>, Vec<usize>) =
        roots.iter().partition(|&&tree| members(tree).all(|at| sorted[at].permanent));
    let (Decides::Index(is_known) | Decides::Chosen(is_known)) = by;
    let known = |tree: &usize| members(*tree).any(|at| is_known(sorted[at]));
    // If the index lists any, a tree was not saved here unless the index lists a checkpoint of it, or the predecessor
    // of one.
    let decides = roots.iter().any(known);
    let counts = |trees: &[usize]| -> Vec<usize> {
        let mut trees: Vec<usize> = trees.iter().copied().filter(|tree| !decides || known(tree)).collect();
        trees.sort_by_key(|tree| std::cmp::Reverse(latest(tree)));
        trees
    };
    let mut own = counts(&rivals);
    if let [first, second, ..] = own[..]
        && !decides
    {
        let name = |tree: usize| latest(&tree).map(|at| sorted[at].name.clone()).unwrap_or_default();
        return Err((name(first), name(second)));
    }
    own.extend(counts(&kept));
    if matches!(by, Decides::Chosen(_)) {
        own.extend(kept.into_iter().filter(|tree| decides && !known(tree)));
    }
    Ok(own)
}

/// Follows the last saved child from the root of a tree, and certain ones before all others.
fn head(root: usize, parents: &[Option<(usize, Sure)>]) -> usize {
    let mut best: Vec<Option<(Sure, usize)>> = vec![None; parents.len()];
    for (child, parent) in parents.iter().enumerate() {
        if let Some((parent, sure)) = *parent {
            best[parent] = best[parent].max(Some((sure, child)));
        }
    }
    let mut at = root;
    while let Some((_, child)) = best[at] {
        at = child;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Like [`parent`], by looking at every other one.
    fn parent_by_looking<'a>(
        sorted: &[&'a Link],
        at: usize,
        gone: &'a HashMap<Follows, Option<Follows>>,
    ) -> Option<(usize, Sure)> {
        let link = sorted[at];
        let before = || (0..at).rev().filter(|&other| sorted[other].id.sequence < link.id.sequence);
        let of_run = |run: &str, below: u64| {
            before().find(|&other| sorted[other].id.run == run && sorted[other].id.sequence < below)
        };
        let Some(follows) = link.follows.as_ref() else {
            let of_none = || before().find(|&other| sorted[other].follows.is_none()).map(|at| (at, Sure::BySequence));
            return of_run(&link.id.run, link.id.sequence).map(|at| (at, Sure::Certain)).or_else(of_none);
        };
        let named = |mut follows: &'a Follows| {
            for _ in 0..=gone.len() {
                let found = before().find(|&other| sorted[other].id == *follows);
                match gone.get(follows) {
                    None | Some(None) => return found.or_else(|| of_run(&follows.run, follows.sequence)),
                    Some(Some(_)) if found.is_some() => return found,
                    Some(Some(next)) => follows = next,
                }
            }
            of_run(&follows.run, follows.sequence)
        };
        let found = named(follows).or_else(|| of_run(&link.id.run, link.id.sequence));
        found.or_else(|| link.earlier.iter().find_map(named)).map(|at| (at, Sure::Certain))
    }

    fn link(run: u64, sequence: u64, follows: Option<Follows>, n: usize) -> Link {
        let (id, earlier) = (Follows { run: run.to_string(), sequence }, Vec::new());
        Link { id, follows, earlier, name: format!("ckpt-{n}"), saved_at: DateTime::UNIX_EPOCH, permanent: false }
    }

    #[test]
    fn what_is_looked_up_is_what_looking_finds() {
        let mut state = 7u64;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        for _ in 0..3000 {
            let id = |random: &mut dyn FnMut(u64) -> u64| Follows { run: random(3).to_string(), sequence: random(9) };
            let links: Vec<Link> = (0..random(9) as usize)
                .map(|n| {
                    let follows = (random(3) > 0).then(|| id(&mut random));
                    let mut link = link(random(3), random(9), follows, n);
                    link.earlier = (0..random(3)).map(|_| id(&mut random)).collect();
                    link
                })
                .collect();
            let gone: HashMap<Follows, Option<Follows>> =
                (0..random(5)).map(|_| (id(&mut random), (random(4) > 0).then(|| id(&mut random)))).collect();
            let mut sorted: Vec<&Link> = links.iter().collect();
            sorted.sort_by_key(|link| (link.id.sequence, &link.id.run, &link.name));
            let earlier = Earlier::of(&sorted);
            for (at, link) in sorted.iter().enumerate() {
                let found = parent(link, &earlier, &gone, &mut STEPS_BESIDE.clone());
                assert_eq!(found, parent_by_looking(&sorted, at, &gone), "{links:?} {gone:?}");
            }
        }
    }

    /// Thousands of checkpoints, each of which leads through thousands that are gone, or stands alone.
    #[test]
    fn an_order_takes_time_in_proportion() {
        let count = 8_000;
        let id = |n: u64| Follows { run: "gone".to_string(), sequence: n };
        let gone: HashMap<Follows, Option<Follows>> = (0..count).map(|n| (id(n), Some(id((n + 1) % count)))).collect();
        let through: Vec<Link> = (0..count).map(|n| link(n, n, Some(id(0)), n as usize)).collect();
        let alone: Vec<Link> = (0..count).map(|n| link(n, n, Some(id(n)), n as usize)).collect();
        let line: Vec<Link> = (0..count).map(|n| link(0, n, None, n as usize)).collect();
        let started = std::time::Instant::now();
        for links in [through, alone, line] {
            for is_known in [false, true] {
                let _ =
                    order(&links, &gone, &Decides::Index(|_: &Link| is_known), &mut steps(links.len() + gone.len()));
            }
        }
        assert!(started.elapsed() < std::time::Duration::from_secs(10), "{:?}", started.elapsed());
    }
}
