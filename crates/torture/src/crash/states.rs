//! Enumerates the states of a device after a crash, and examines each.

use super::Model;
use super::crashes::{Crashes, Told};
use super::device::Device;
use crate::check::{inspect, judge};
use crate::marked::Noted;
use crate::sim::{Files, Id, Node, Op, Rename, TOP, partly_written};

/// The maximum number of pending changes of names of which all subsets are tried.
const ALL_RENAMES: usize = 14;
/// The maximum number of pending parts of a file of which all subsets are tried.
const ALL_PARTS: usize = 10;
/// The number of states that are tried where not all are.
const CHOICE: usize = 2000;

impl Crashes<'_> {
    /// Crashes after every operation but the first `from`.
    pub(super) fn crashes(&mut self, start: &Files, ops: &[Op], from: usize, mut told: Told) {
        let mut device = Device { files: start.clone(), renames: Vec::new(), data: Vec::new() };
        for (i, op) in ops.iter().enumerate() {
            if i == from {
                // A run after a crash saves anew what is not there.
                told.noted.retain(|noted| !matches!(noted, Noted::Early(_)));
            }
            device.take(op, self.model);
            match op {
                Op::Saved(step) => told.acknowledged.push(*step),
                Op::Noted(noted) => told.noted.push(*noted),
                _ => {}
            }
            // A new file does not exist before it has a name.
            if i + 1 < from || matches!(op, Op::New(_)) {
                continue;
            }
            self.report.points += 1;
            if self.report.images >= self.enough {
                return;
            }
            self.states(&mut device, &told, i + 1, ops);
        }
    }

    /// Examines every state of the device.
    fn states(&mut self, device: &mut Device, told: &Told, point: usize, ops: &[Op]) {
        device.forget_unreachable();
        let renames = std::mem::take(&mut device.renames);
        let mut files = device.files.clone();
        match self.model {
            Model::Journal => {
                self.contents(&mut files, device, told, point, ops);
                for rename in &renames {
                    if files.apply(rename).is_some() {
                        self.contents(&mut files, device, told, point, ops);
                    }
                }
            }
            Model::Weak if renames.len() <= ALL_RENAMES => {
                self.subsets(&renames, &mut files, device, told, point, ops);
            }
            Model::Weak => {
                let n = renames.len();
                let mut chosen: Vec<Vec<bool>> = Vec::new();
                for at in 0..=n {
                    chosen.push((0..n).map(|i| i < at).collect());
                    chosen.push((0..n).map(|i| i >= at).collect());
                    chosen.push((0..n).map(|i| i == at).collect());
                    chosen.push((0..n).map(|i| i != at).collect());
                }
                for _ in 0..CHOICE {
                    chosen.push((0..n).map(|_| self.random.one_in(2)).collect());
                }
                for subset in chosen {
                    let mut files = device.files.clone();
                    for (rename, _) in renames.iter().zip(&subset).filter(|(_, taken)| **taken) {
                        files.apply(rename);
                    }
                    self.contents(&mut files, device, told, point, ops);
                }
            }
        }
        device.renames = renames;
    }

    fn subsets(&mut self, rest: &[Rename], files: &mut Files, device: &Device, told: &Told, point: usize, ops: &[Op]) {
        let Some((rename, rest)) = rest.split_first() else {
            return self.contents(files, device, told, point, ops);
        };
        self.subsets(rest, files, device, told, point, ops);
        if let Some(undo) = files.apply(rename) {
            self.subsets(rest, files, device, told, point, ops);
            files.undo(undo);
        }
    }

    /// Examines every content of the files that have a name.
    fn contents(&mut self, files: &mut Files, device: &Device, told: &Told, point: usize, ops: &[Op]) {
        if device.data.is_empty() {
            return self.image(files, told, point, ops);
        }
        let mut named = Vec::new();
        files.named_files(TOP, &mut named);
        let mut choices = Vec::new();
        for id in named {
            let parts: Vec<&Op> = device.data.iter().filter(|(file, _)| *file == id).map(|(_, op)| op).collect();
            if !parts.is_empty() {
                choices.push((id, self.variants(files, id, &parts)));
            }
        }
        let all: usize = choices.iter().map(|(_, variants)| variants.len()).fold(1, usize::saturating_mul);
        if all > CHOICE {
            for _ in 0..CHOICE {
                let mut files = files.clone();
                for (id, variants) in &choices {
                    files.nodes[*id] = variants[self.random.below(variants.len())].clone();
                }
                self.image(&files, told, point, ops);
            }
            return;
        }
        self.combine(&choices, files, told, point, ops);
    }

    fn combine(&mut self, choices: &[(Id, Vec<Node>)], files: &mut Files, told: &Told, point: usize, ops: &[Op]) {
        let Some(((id, variants), rest)) = choices.split_first() else {
            return self.image(files, told, point, ops);
        };
        let before = files.nodes[*id].clone();
        for variant in variants {
            files.nodes[*id] = variant.clone();
            self.combine(rest, files, told, point, ops);
        }
        files.nodes[*id] = before;
    }

    /// Returns the distinct contents that a file can have.
    fn variants(&mut self, files: &Files, id: Id, parts: &[&Op]) -> Vec<Node> {
        let Some(durable) = files.content(id) else {
            return Vec::new();
        };
        let n = parts.len();
        let mut subsets: Vec<Vec<bool>> = Vec::new();
        if n <= ALL_PARTS {
            subsets.extend((0..1usize << n).map(|mask| (0..n).map(|i| mask >> i & 1 == 1).collect()));
        } else {
            for at in 0..=n {
                subsets.push((0..n).map(|i| i < at).collect());
                subsets.push((0..n).map(|i| i >= at).collect());
                subsets.push((0..n).map(|i| i != at).collect());
                subsets.push((0..n).map(|_| self.random.one_in(2)).collect());
            }
        }
        let mut variants: Vec<Node> = Vec::new();
        let mut hashes = Vec::new();
        for subset in subsets {
            let taken = parts.iter().zip(&subset).filter(|(_, taken)| **taken).map(|(part, _)| *part);
            let content = partly_written(durable, taken);
            if !hashes.contains(&content.hash()) {
                hashes.push(content.hash());
                variants.push(Node::File(content));
            }
        }
        variants
    }

    /// Examines one state.
    fn image(&mut self, files: &Files, told: &Told, point: usize, ops: &[Op]) {
        self.report.images += 1;
        let hash = files.hash();
        if let Some(starts) = &mut self.starts {
            let start = starts.entry(hash).or_insert_with(|| (files.clone(), told.clone()));
            if start.1.acknowledged.len() < told.acknowledged.len() {
                start.1 = told.clone();
            }
        }
        let (setup, report) = (self.setup, &mut self.report);
        let outcome = self.seen.entry(hash).or_insert_with(|| {
            report.distinct += 1;
            inspect(files, setup)
        });
        let broken = judge(outcome, told, setup, self.asked);
        if !broken.is_empty() {
            self.violation(|| {
                let last: Vec<String> = ops[..point].iter().rev().take(6).map(|op| format!("{op:?}")).collect();
                format!(
                    "after operation {point}, acknowledged {:?}: {}\nthe disk:\n{}\nthe last operations, newest first:\n{}",
                    told.acknowledged,
                    broken.join("; "),
                    files.tree(),
                    last.join("\n")
                )
            });
        }
    }
}
