//! The documented rules over all checkpoints that were ever saved, by brute force. It shares no code with the policies,
//! which see only checkpoints that still exist.

use std::collections::BTreeSet;

/// A save: nothing else is known of it.
#[derive(Debug, Clone)]
pub struct Save {
    pub step: Option<u64>,
    /// When, in minutes.
    pub minutes: i64,
    pub metric: Option<f64>,
}

/// A rule by its parameters.
#[derive(Debug, Clone, PartialEq)]
pub enum Rule {
    Latest(usize),
    Lowest(usize),
    Highest(usize),
    Multiples(u64),
    Closest(u64),
    Every(i64),
    Steps(Vec<u64>),
    Younger(i64),
}

impl Rule {
    /// Which of the saves at `pool` stay by this rule; intervals start at `start`, and with what is kept `for_good`.
    pub fn wants(&self, saves: &[Save], pool: &[usize], start: i64, for_good: &BTreeSet<usize>) -> Vec<usize> {
        let now = saves.last().map_or(start, |save| save.minutes);
        let with = |test: &dyn Fn(usize, &Save) -> bool| -> Vec<usize> {
            pool.iter().copied().filter(|&at| test(at, &saves[at])).collect()
        };
        match self {
            Rule::Latest(n) => pool.iter().rev().filter(|at| !for_good.contains(at)).take(*n).copied().collect(),
            Rule::Lowest(n) => best(saves, pool, *n, |own, other| other < own),
            Rule::Highest(n) => best(saves, pool, *n, |own, other| other > own),
            Rule::Multiples(n) => with(&|_, save| save.step.is_some_and(|step| step / n * n == step)),
            Rule::Steps(steps) => with(&|_, save| save.step.is_some_and(|step| steps.contains(&step))),
            Rule::Younger(minutes) => with(&|_, save| save.minutes + minutes > now),
            Rule::Closest(n) => closest(saves, pool, *n),
            Rule::Every(minutes) => every(saves, pool, *minutes, start, for_good),
        }
    }
}

/// Those of which fewer than `n` others are better, or as good and newer.
fn best(saves: &[Save], pool: &[usize], n: usize, is_better: impl Fn(f64, f64) -> bool) -> Vec<usize> {
    let value = |at: usize| saves[at].metric.filter(|value| value.is_finite());
    let beats = |at: usize, other: usize| match (value(at), value(other)) {
        (Some(own), Some(value)) => is_better(own, value) || own == value && other > at,
        _ => false,
    };
    let is_best = |at: &usize| value(*at).is_some() && pool.iter().filter(|&&other| beats(*at, other)).count() < n;
    pool.iter().copied().filter(is_best).collect()
}

/// For every multiple, of the steps that are at most half of the interval away, and not half above it, the closest.
fn closest(saves: &[Save], pool: &[usize], n: u64) -> Vec<usize> {
    let highest = saves.iter().filter_map(|save| save.step).max().unwrap_or(0);
    let mut wanted = Vec::new();
    for multiple in (0..=highest + n).step_by(n as usize) {
        let near = pool.iter().copied().filter_map(|at| {
            let step = saves[at].step?;
            // A step halfway between two multiples is with the higher one.
            let is_near = if step >= multiple { 2 * (step - multiple) < n } else { 2 * (multiple - step) <= n };
            is_near.then(|| (step.abs_diff(multiple), at))
        });
        wanted.extend(near.min().map(|(_, at)| at));
    }
    wanted
}

fn every(saves: &[Save], pool: &[usize], minutes: i64, start: i64, for_good: &BTreeSet<usize>) -> Vec<usize> {
    let (mut last, mut wanted) = (start, Vec::new());
    for &at in pool {
        let time = saves[at].minutes;
        if time >= last + minutes {
            wanted.push(at);
            last = time;
        } else if for_good.contains(&at) {
            last = last.max(time);
        }
    }
    wanted
}
