//! Which checkpoint is the newest: the head of the chain in which each follows the one before. Pure functions.
//!
//! A checkpoint follows the one that its manifest names. Where that one is gone (rotated, removed by hand) it follows
//! the latest of the same run before it. Checkpoints that name none (those of format versions 1 and 2, and the first of
//! a run) follow one another in the order of their sequences. Where two follow the same one, the run went back: the one
//! that was saved later counts. What follows nothing that is here begins another tree; of several trees that counts
//! which the index knows, and if that does not tell them apart, nothing does.

use crate::format::Follows;
use chrono::{DateTime, Utc};
use std::collections::HashMap;

/// What is known of a checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Link {
    pub id: Follows,
    pub follows: Option<Follows>,
    pub name: String,
    pub saved_at: DateTime<Utc>,
    /// Kept for good: its neighbours may be long gone.
    pub permanent: bool,
}

/// The checkpoints of one name, in order.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Chain {
    /// Oldest first, by name; the last is the newest.
    pub own: Vec<String>,
    /// Those of other runs, which nothing of this one leads to.
    pub others: Vec<String>,
}

/// How sure it is that one follows another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Sure {
    /// By their sequences alone.
    BySequence,
    /// Its manifest says so, or both are of one run.
    Certain,
}

/// Orders the checkpoints of one name. `gone` are those that left the numbering, and what they follow; `indexed` tells
/// whether the index knows a checkpoint.
///
/// # Errors
/// The names of two of which nothing tells which is the newer one.
pub(super) fn order(
    links: &[Link],
    gone: &HashMap<Follows, Option<Follows>>,
    indexed: impl Fn(&Link) -> bool,
) -> Result<Chain, (String, String)> {
    let mut sorted: Vec<&Link> = links.iter().collect();
    sorted.sort_by_key(|link| (link.id.sequence, link.saved_at, &link.id.run, &link.name));
    let parents: Vec<Option<(usize, Sure)>> = (0..sorted.len()).map(|at| parent(&sorted, at, gone)).collect();
    // A parent stands before its children: its tree is known already.
    let mut trees: Vec<usize> = Vec::with_capacity(sorted.len());
    for (at, parent) in parents.iter().enumerate() {
        trees.push(parent.map_or(at, |(parent, _)| trees[parent]));
    }
    let own = own_trees(&sorted, &trees, indexed)?;
    let is_own = |at: &usize| own.contains(&trees[*at]);
    let newest = own.first().map(|&tree| head(tree, &parents));
    let names = |ats: Vec<usize>| ats.into_iter().map(|at| sorted[at].name.clone()).collect();
    let (mut mine, others): (Vec<usize>, Vec<usize>) = (0..sorted.len()).partition(is_own);
    // Whatever its sequence, the newest is last.
    mine.sort_by_key(|at| Some(*at) == newest);
    Ok(Chain { own: names(mine), others: names(others) })
}

/// Which one the checkpoint at `at` follows, of those before it.
fn parent(sorted: &[&Link], at: usize, gone: &HashMap<Follows, Option<Follows>>) -> Option<(usize, Sure)> {
    let link = sorted[at];
    let before = || (0..at).rev().filter(|&other| sorted[other].id.sequence < link.id.sequence);
    let of_run = |run: &str, below: u64| {
        before().find(|&other| sorted[other].id.run == run && sorted[other].id.sequence < below)
    };
    if let Some(mut follows) = link.follows.as_ref() {
        // Those that left the numbering lead on to what they follow.
        for _ in 0..=gone.len() {
            if let Some(found) = before().find(|&other| sorted[other].id == *follows) {
                return Some((found, Sure::Certain));
            }
            match gone.get(follows) {
                Some(Some(next)) => follows = next,
                _ => break,
            }
        }
        let named = of_run(&follows.run, follows.sequence);
        return named.or_else(|| of_run(&link.id.run, link.id.sequence)).map(|found| (found, Sure::Certain));
    }
    if let Some(found) = of_run(&link.id.run, link.id.sequence) {
        return Some((found, Sure::Certain));
    }
    before().find(|&other| sorted[other].follows.is_none()).map(|found| (found, Sure::BySequence))
}

/// The trees that belong to this directory's run, the one with the newest first.
fn own_trees(
    sorted: &[&Link],
    trees: &[usize],
    indexed: impl Fn(&Link) -> bool,
) -> Result<Vec<usize>, (String, String)> {
    let roots: Vec<usize> = (0..sorted.len()).filter(|&at| trees[at] == at).collect();
    let members = |tree: usize| (0..sorted.len()).filter(move |&at| trees[at] == tree);
    let latest = |tree: &usize| members(*tree).last();
    // What is kept for good is ours, and stands alone when its neighbours are gone: it is no rival.
    let (mut kept, mut rivals): (Vec<usize>, Vec<usize>) =
        roots.iter().partition(|&&tree| members(tree).all(|at| sorted[at].permanent));
    let all_kept = rivals.is_empty();
    if all_kept {
        rivals = std::mem::take(&mut kept);
    }
    rivals.sort_by_key(|tree| std::cmp::Reverse(latest(tree)));
    let known: Vec<usize> =
        rivals.iter().copied().filter(|&tree| members(tree).any(|at| indexed(sorted[at]))).collect();
    if !known.is_empty() {
        rivals = known;
    } else if let [first, second, ..] = rivals[..]
        && !all_kept
    {
        let name = |tree: usize| latest(&tree).map(|at| sorted[at].name.clone()).unwrap_or_default();
        return Err((name(first), name(second)));
    }
    rivals.extend(kept);
    Ok(rivals)
}

/// From the root of a tree always to the child that was saved last, a certain one before all others.
fn head(root: usize, parents: &[Option<(usize, Sure)>]) -> usize {
    let mut at = root;
    loop {
        let children = (0..parents.len()).filter_map(|child| {
            let (parent, sure) = parents[child]?;
            (parent == at).then_some((sure, child))
        });
        match children.max() {
            Some((_, child)) => at = child,
            None => return at,
        }
    }
}
