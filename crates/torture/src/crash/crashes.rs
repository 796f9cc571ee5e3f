//! The crashes of one setting of the program.

use super::{CrashReport, Model, empty_disk, program};
use crate::check::{Asked, Outcome};
use crate::marked::Noted;
use crate::random::Random;
use crate::run::Setup;
use crate::sim::{Files, Op, SimDisk};
use std::collections::HashMap;
use std::sync::Arc;
use tch_checkpoint::internal::Disk;

/// What was acknowledged before a crash.
#[derive(Debug, Clone, Default)]
pub(crate) struct Told {
    pub acknowledged: Vec<u64>,
    pub attempted: u64,
    pub noted: Vec<Noted>,
}

/// The first of two crashes.
enum First {
    /// The device, and what was acknowledged.
    PowerCut((Files, Told)),
    /// After so many operations.
    Kill(usize),
}

/// The crashes of one setting.
pub(crate) struct Crashes<'a> {
    pub(super) setup: &'a Setup,
    pub(super) model: Model,
    pub(super) random: Random,
    pub(super) seen: HashMap<u64, Outcome>,
    /// The files of every distinct image, with the most that had been acknowledged, for a second crash.
    pub(super) starts: Option<HashMap<u64, (Files, Told)>>,
    pub(super) enough: u64,
    pub asked: Asked,
    /// Errors of the program are expected, because its disk fails.
    pub may_fail: bool,
    /// The number of operations before the first crash.
    pub from: usize,
    pub report: CrashReport,
}

impl<'a> Crashes<'a> {
    pub(crate) fn new(setup: &'a Setup, model: Model, seed: u64, enough: u64) -> Crashes<'a> {
        Crashes {
            setup,
            model,
            random: Random::new(seed),
            seen: HashMap::new(),
            starts: None,
            enough,
            asked: Asked::Invariants,
            may_fail: false,
            from: 0,
            report: CrashReport::default(),
        }
    }

    /// Crashes the run that starts with an empty disk.
    pub(crate) fn first(&mut self) {
        self.first_through(|disk| Arc::new(disk.clone()));
    }

    /// As [`Crashes::first`], through a disk that can misbehave.
    pub(crate) fn first_through(&mut self, wrap: impl Fn(&SimDisk) -> Arc<dyn Disk>) {
        let start = empty_disk(self.setup);
        let disk = SimDisk::new(start.clone(), self.setup.atoms);
        let (attempted, error) = program(&disk, wrap(&disk), self.setup, self.setup.saves);
        if let Some(e) = error.filter(|_| !self.may_fail) {
            self.violation(|| format!("the program fails without a crash: {e}"));
        }
        self.crashes(&start, &disk.ops(), self.from, Told { attempted, ..Told::default() });
    }

    /// After a kill that follows these operations of the first run: recovery and two more saves, with a crash anywhere
    /// in them.
    pub(crate) fn after_kill(&mut self, ops: &[Op]) {
        let start = empty_disk(self.setup);
        let disk = SimDisk::resumed(start.clone(), ops, self.setup.atoms);
        let told = Told { attempted: self.setup.saves as u64, ..Told::default() };
        self.again(&start, disk, ops.len(), told, |disk| Arc::new(disk.clone()));
    }

    /// After every state of the first run: recovery and two more saves, with a crash anywhere in them. The first crash
    /// is a power cut, or only the end of the process, after which what is not yet durable can still be lost.
    pub(crate) fn second(&mut self) {
        self.second_through(true, |disk| Arc::new(disk.clone()));
    }

    /// As [`Crashes::second`], the second run through a disk that may be made to misbehave; perhaps only after kills.
    pub(crate) fn second_through(&mut self, power_cuts: bool, wrap: impl Fn(&SimDisk) -> Arc<dyn Disk>) {
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

    pub(super) fn violation(&mut self, text: impl FnOnce() -> String) {
        self.report.violations += 1;
        if self.report.examples.len() < 3 {
            self.report.examples.push(text());
        }
    }
}
