//! Every state a disk can be in after a crash, at every point of a run.
//!
//! **Weak model**, all that POSIX promises: of the changes of names that no sync of their directory covers, any subset
//! may have reached the device; of the written parts and lengths that no sync of the file covers, any subset; syncing
//! a file does not make its name durable.
//!
//! **Journal model**, as ext4 and XFS: changes of names reach the device in order, every sync brings all earlier ones;
//! written parts and lengths as above.

use super::check::{Asked, Outcome, ROOT, STRANGERS, inspect, judge};
use super::marked::{self, Noted};
use super::random::Random;
use super::run::{Run, Setup, restore, save};
use super::sim::{Files, Id, Node, Op, Rename, SimDisk, TOP, partly_written};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tch_checkpoint::Error;
use tch_checkpoint::internal::Disk;

/// So many pending changes of names are tried in all subsets; of more, a choice.
const ALL_RENAMES: usize = 14;
/// So many pending parts of a file are tried in all subsets; of more, a choice.
const ALL_PARTS: usize = 10;
/// States tried where not all are.
const CHOICE: usize = 2000;

/// Which crashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// A crash of a run that starts in an empty directory.
    First,
    /// After a crash, a second one during recovery or the next saves.
    Second,
}

/// What to run.
#[derive(Debug, Clone)]
pub struct CrashRun {
    /// Repeats a run.
    pub seed: u64,
    /// Stop when so many images were examined.
    pub images: u64,
    /// Stop after this time.
    pub limit: Duration,
    /// Which crashes.
    pub phase: Phase,
    /// What the program does.
    pub programs: Programs,
}

/// What the program does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Programs {
    /// It saves.
    Saves,
    /// It also pins, gets late metrics, keeps links, removes a component from older checkpoints, and ends by an error.
    Marks,
    /// The one and the other in turn.
    Both,
}

/// What came of it.
#[derive(Debug, Clone, Default)]
pub struct CrashReport {
    /// States of the disk that were made: crash points times subsets.
    pub images: u64,
    /// Different ones, on which the library was run.
    pub distinct: u64,
    /// Points at which the machine stopped.
    pub points: u64,
    /// Settings of the program.
    pub setups: u64,
    /// Images that break an invariant.
    pub violations: u64,
    /// Some of them, in words.
    pub examples: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Model {
    Weak,
    Journal,
}

/// Crashes until the images are enough.
pub fn crash(run: &CrashRun, mut progress: impl FnMut(&CrashReport)) -> CrashReport {
    let mut report = CrashReport::default();
    let mut random = Random::new(run.seed);
    let begun = Instant::now();
    for round in 0.. {
        if report.images >= run.images || begun.elapsed() >= run.limit {
            break;
        }
        let marks = match run.programs {
            Programs::Saves => false,
            Programs::Marks => true,
            Programs::Both => round % 2 == 1,
        };
        let setup = setup(round, &mut random);
        let setup = if marks { marked(round, setup, &mut random) } else { setup };
        for model in [Model::Weak, Model::Journal] {
            // No setting takes it all.
            let enough = run.images.saturating_sub(report.images).min((run.images / 50).max(2000));
            let mut crashes = Crashes::new(&setup, model, random.next(), enough);
            match run.phase {
                Phase::First => crashes.first(),
                Phase::Second => crashes.second(),
            }
            report.setups += 1;
            report.add(crashes.report, &setup, model, run.seed);
        }
        progress(&report);
    }
    report
}

/// The first rounds are the same for every seed and have the smallest settings; then chance rules.
fn setup(round: u64, random: &mut Random) -> Setup {
    let keeps = [Some(2), Some(1), Some(3), None];
    match round {
        0..4 => Setup {
            keep: keeps[round as usize],
            frozen: (round % 3) as usize,
            strangers: round % 2 == 1,
            ..Setup::default()
        },
        _ => {
            let components = 1 + random.below(4);
            Setup {
                components,
                frozen: random.below(components + 1),
                keep: keeps[random.below(4)],
                saves: 2 + random.below(4),
                bytes: random.below(40),
                atoms: 1 + random.below(3),
                background: random.one_in(4),
                strangers: random.one_in(2),
                ..Setup::default()
            }
        }
    }
}

/// The same program, which also does something beside saving.
fn marked(round: u64, setup: Setup, random: &mut Random) -> Setup {
    match round {
        0..4 => Setup {
            marks: true,
            links: true,
            thin: Some(1 + round as usize % 2),
            unclean: round.is_multiple_of(2),
            strangers: false,
            keep: setup.keep.map(|keep| keep + 1),
            saves: 4,
            bytes: 8,
            ..setup
        },
        _ => Setup {
            marks: random.one_in(2),
            links: random.one_in(2),
            thin: random.one_in(2).then(|| 1 + random.below(3)),
            unclean: random.one_in(3),
            ..setup
        },
    }
}

impl CrashReport {
    fn add(&mut self, other: CrashReport, setup: &Setup, model: Model, seed: u64) {
        self.images += other.images;
        self.distinct += other.distinct;
        self.points += other.points;
        self.violations += other.violations;
        let told = other.examples.into_iter().map(|example| format!("seed {seed}, {model:?}, {setup:?}:\n{example}"));
        self.examples.extend(told.take(3));
        self.examples.truncate(10);
    }
}

/// A disk before the program's first run.
pub(super) fn empty_disk(setup: &Setup) -> Files {
    let disk = SimDisk::new(Files::default(), 0);
    disk.put("/data/", &[]);
    if setup.strangers {
        for path in STRANGERS {
            disk.put(path, b"mine");
        }
    }
    disk.files()
}

/// A run of the program: opens, restores, and saves; marks what it was told. Goes on when a save fails. Returns the
/// last step it tried to save, and the first error.
pub(super) fn program(disk: &SimDisk, shared: Arc<dyn Disk>, setup: &Setup, saves: usize) -> (u64, Option<Error>) {
    let run = Run::new(setup);
    let mut manager = match run.open(shared.clone(), Path::new(ROOT)) {
        Ok(manager) => manager,
        Err(e) => return (0, Some(e)),
    };
    let first = match restore(&mut manager) {
        Ok(begun) => begun.restored.and_then(|status| status.step()).map_or(1, |step| step + 1),
        Err(e) => return (0, Some(e)),
    };
    let mut error = None;
    for step in first..first + saves as u64 {
        run.set(step);
        match save(&mut manager, step) {
            Ok(()) => disk.saved(step),
            Err(e) => {
                error = error.or(Some(e));
                continue;
            }
        }
        if setup.marks {
            let marked = marked::mark(&mut manager, &shared, step, |noted| disk.noted(noted));
            error = error.or(marked.err());
        }
    }
    if setup.unclean {
        marked::fail(&run, &mut manager, first + saves as u64);
    }
    (first + saves as u64 - 1, error)
}

/// What is known of the machine at a crash.
#[derive(Debug, Clone, Default)]
pub(super) struct Told {
    pub acknowledged: Vec<u64>,
    pub attempted: u64,
    pub noted: Vec<Noted>,
}

/// The first of two crashes.
enum First {
    /// What was on the device, and known.
    PowerCut((Files, Told)),
    /// After so many operations.
    Kill(usize),
}

/// The crashes of one setting.
pub(super) struct Crashes<'a> {
    setup: &'a Setup,
    model: Model,
    random: Random,
    seen: HashMap<u64, Outcome>,
    /// Of every distinct image, the files and the most that had been acknowledged in it; kept for a second crash.
    starts: Option<HashMap<u64, (Files, Told)>>,
    enough: u64,
    pub asked: Asked,
    /// An error of the program is no violation: its disk fails.
    pub may_fail: bool,
    pub report: CrashReport,
}

impl<'a> Crashes<'a> {
    pub(super) fn new(setup: &'a Setup, model: Model, seed: u64, enough: u64) -> Crashes<'a> {
        Crashes {
            setup,
            model,
            random: Random::new(seed),
            seen: HashMap::new(),
            starts: None,
            enough,
            asked: Asked::Invariants,
            may_fail: false,
            report: CrashReport::default(),
        }
    }

    /// The run that starts with nothing.
    pub(super) fn first(&mut self) {
        self.first_through(|disk| Arc::new(disk.clone()));
    }

    /// The run that starts with nothing, through a disk that may be made to misbehave.
    pub(super) fn first_through(&mut self, wrap: impl Fn(&SimDisk) -> Arc<dyn Disk>) {
        let start = empty_disk(self.setup);
        let disk = SimDisk::new(start.clone(), self.setup.atoms);
        let (attempted, error) = program(&disk, wrap(&disk), self.setup, self.setup.saves);
        if let Some(e) = error.filter(|_| !self.may_fail) {
            self.violation(|| format!("the program fails without a crash: {e}"));
        }
        self.crashes(&start, &disk.ops(), 0, Told { attempted, ..Told::default() });
    }

    /// After every state of the first run: recovery and two more saves, with a crash anywhere in them. The first crash
    /// is a power cut, or only the end of the process, after which what is not yet durable can still be lost.
    pub(super) fn second(&mut self) {
        self.second_through(true, |disk| Arc::new(disk.clone()));
    }

    /// As [`Crashes::second`], the second run through a disk that may be made to misbehave; perhaps only after kills.
    pub(super) fn second_through(&mut self, power_cuts: bool, wrap: impl Fn(&SimDisk) -> Arc<dyn Disk>) {
        if power_cuts {
            self.starts = Some(HashMap::new());
            self.first();
        }
        let mut starts: Vec<_> = self.starts.take().unwrap_or_default().into_iter().collect();
        starts.sort_by_key(|(hash, _)| *hash);
        // The images of the first crash are not counted here.
        let violations = std::mem::take(&mut self.report);
        self.report.violations = violations.violations;
        self.report.examples = violations.examples;
        let start = empty_disk(self.setup);
        let disk = SimDisk::new(start.clone(), self.setup.atoms);
        program(&disk, Arc::new(disk.clone()), self.setup, self.setup.saves);
        let ops = disk.ops();
        // Both kinds of first crash, mixed, so that a short run has some of each.
        let kills = (1..ops.len()).map(First::Kill);
        let mut firsts: Vec<First> = starts.into_iter().map(|(_, start)| First::PowerCut(start)).chain(kills).collect();
        while !firsts.is_empty() && self.report.images < self.enough {
            match firsts.swap_remove(self.random.below(firsts.len())) {
                First::PowerCut((files, told)) => {
                    let disk = SimDisk::new(files.clone(), self.setup.atoms);
                    self.again(&files, disk, 0, told, &wrap);
                }
                First::Kill(at) => {
                    let disk = SimDisk::resumed(start.clone(), &ops[..at], self.setup.atoms);
                    let told = Told { attempted: self.setup.saves as u64, ..Told::default() };
                    self.again(&start, disk, at, told, &wrap);
                }
            }
        }
    }

    fn again(
        &mut self,
        start: &Files,
        disk: SimDisk,
        from: usize,
        mut told: Told,
        wrap: impl Fn(&SimDisk) -> Arc<dyn Disk>,
    ) {
        let (attempted, error) = program(&disk, wrap(&disk), self.setup, 2);
        if let Some(e) = error.filter(|_| !self.may_fail) {
            self.violation(|| format!("the program fails after a crash: {e}\n{}", disk.files().tree()));
        }
        told.attempted = told.attempted.max(attempted);
        self.crashes(start, &disk.ops(), from, told);
    }

    fn violation(&mut self, text: impl FnOnce() -> String) {
        self.report.violations += 1;
        if self.report.examples.len() < 3 {
            self.report.examples.push(text());
        }
    }

    /// A crash after every operation but the first `from`.
    fn crashes(&mut self, start: &Files, ops: &[Op], from: usize, mut told: Told) {
        let mut device = Device { files: start.clone(), renames: Vec::new(), data: Vec::new() };
        for (i, op) in ops.iter().enumerate() {
            device.take(op, self.model);
            match op {
                Op::Saved(step) => told.acknowledged.push(*step),
                Op::Noted(noted) => told.noted.push(*noted),
                _ => {}
            }
            // A new file is none before it has a name.
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

    /// Every state of the device.
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

    /// With these names, every content of the files that have one.
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

    /// The different contents a file can have.
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

    /// One state: what the library makes of it, and whether it may.
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

/// A device: what is certainly on it, and what may be.
struct Device {
    files: Files,
    renames: Vec<Rename>,
    data: Vec<(Id, Op)>,
}

impl Device {
    /// Takes in an operation.
    fn take(&mut self, op: &Op, model: Model) {
        match op {
            Op::New(node) => self.files.nodes.push(node.clone()),
            Op::Rename(rename) => self.renames.push(rename.clone()),
            Op::Write { id, .. } | Op::Resize { id, .. } => self.data.push((*id, op.clone())),
            Op::SyncFile(id) => {
                if let Some(durable) = self.files.content(*id) {
                    let parts = self.data.iter().filter(|(file, _)| file == id).map(|(_, part)| part);
                    let content = partly_written(durable, parts);
                    self.files.nodes[*id] = Node::File(content);
                }
                self.data.retain(|(file, _)| file != id);
                if model == Model::Journal {
                    self.settle(|_| true);
                }
            }
            Op::SyncFolder(id) => match model {
                Model::Weak => self.settle(|rename| rename.folder() == *id),
                Model::Journal => self.settle(|_| true),
            },
            Op::Saved(_) | Op::Noted(_) => {}
        }
    }

    /// Makes changes of names durable.
    fn settle(&mut self, which: impl Fn(&Rename) -> bool) {
        let (durable, pending) = std::mem::take(&mut self.renames).into_iter().partition(which);
        self.renames = pending;
        let durable: Vec<Rename> = durable;
        for rename in &durable {
            self.files.apply(rename);
        }
    }

    /// Drops what concerns only directories and files that no state has a name for.
    fn forget_unreachable(&mut self) {
        let mut reachable = vec![false; self.files.nodes.len()];
        let mut queue = vec![TOP];
        while let Some(id) = queue.pop() {
            if std::mem::replace(&mut reachable[id], true) {
                continue;
            }
            queue.extend(self.files.entries(id).iter().map(|(_, id)| *id));
            let added = self.renames.iter().filter(|rename| rename.folder() == id);
            queue.extend(added.filter_map(|rename| match rename {
                Rename::Add { id, .. } => Some(*id),
                _ => None,
            }));
        }
        self.renames.retain(|rename| reachable[rename.folder()]);
        self.data.retain(|(file, _)| reachable[*file]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(phase: Phase, programs: Programs, images: u64) -> CrashReport {
        let report = crash(&CrashRun { seed: 1, images, limit: Duration::from_secs(3600), phase, programs }, |_| {});
        println!("{phase:?}: {report:#?}");
        assert_eq!(report.violations, 0, "{}", report.examples.join("\n\n"));
        assert!(report.images >= images);
        report
    }

    #[test]
    fn the_program_links_unchanged_files_and_overwrites_old_ones() {
        let setup = Setup { frozen: 1, keep: Some(3), ..Setup::default() };
        let disk = SimDisk::new(empty_disk(&setup), 0);
        program(&disk, Arc::new(disk.clone()), &setup, 5);
        let files = disk.files();
        let mut named = Vec::new();
        files.named_files(TOP, &mut named);
        assert_eq!(named.iter().filter(|id| files.links(**id) == 2).count(), 1, "{}", files.tree());
        assert!(disk.recycled() > 0);
    }

    #[test]
    fn nothing_is_lost_by_a_crash() {
        run(Phase::First, Programs::Saves, 8_000);
    }

    #[test]
    fn nothing_is_lost_by_a_crash_after_a_crash() {
        run(Phase::Second, Programs::Saves, 8_000);
    }

    #[test]
    fn nothing_that_was_marked_or_linked_is_lost_by_a_crash() {
        run(Phase::First, Programs::Marks, 6_000);
    }

    #[test]
    fn nothing_that_was_marked_or_linked_is_lost_by_a_crash_after_a_crash() {
        run(Phase::Second, Programs::Marks, 4_000);
    }
}
