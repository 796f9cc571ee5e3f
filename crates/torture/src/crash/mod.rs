//! Every state a disk can be in after a crash, at every point of a run.
//!
//! **Weak model**, all that POSIX promises: of the changes of names that no sync of their directory covers, any subset
//! may have reached the device; of the written parts and lengths that no sync of the file covers, any subset; syncing
//! a file does not make its name durable.
//!
//! **Journal model**, as ext4 and XFS: changes of names reach the device in order, every sync brings all earlier ones;
//! written parts and lengths as above.

mod crashes;
mod device;
mod states;

pub(crate) use crashes::{Crashes, Told};
#[cfg(test)]
pub(crate) use device::durable;

use super::check::{ROOT, STRANGERS};
use super::marked;
use super::random::Random;
use super::run::{Run, Setup, restore, save};
use super::sim::{Files, SimDisk};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tch_checkpoint::internal::Disk;
use tch_checkpoint::{Error, RestoreOptions};

/// The crashes to simulate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// A crash of a run that starts in an empty directory.
    First,
    /// After a crash, a second one during recovery or the next saves.
    Second,
}

/// The parameters of a run.
#[derive(Debug, Clone)]
pub struct CrashRun {
    /// The seed.
    pub seed: u64,
    /// The number of images to examine.
    pub images: u64,
    /// The maximum time.
    pub limit: Duration,
    /// The crashes to simulate.
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
    /// It saves a step again with another state, or goes back: checkpoints are superseded.
    Again,
    /// It pins, gives notes while it saves, and saves each step again with the same state, for its metadata.
    Noted,
    /// All in turn.
    All,
}

/// The result of [`crash`].
#[derive(Debug, Clone, Default)]
pub struct CrashReport {
    /// The number of examined states of the disk: crash points times subsets.
    pub images: u64,
    /// The number of distinct states.
    pub distinct: u64,
    /// The number of crash points.
    pub points: u64,
    /// The number of settings of the program.
    pub setups: u64,
    /// The number of images with a violation.
    pub violations: u64,
    /// Some of them.
    pub examples: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Model {
    Weak,
    Journal,
}

/// Simulates crashes until enough images are examined.
pub fn crash(run: &CrashRun, mut progress: impl FnMut(&CrashReport)) -> CrashReport {
    let mut report = CrashReport::default();
    let mut random = Random::new(run.seed);
    let begun = Instant::now();
    for round in 0.. {
        if report.images >= run.images || begun.elapsed() >= run.limit {
            break;
        }
        let programs = match (run.programs, round % 4) {
            (Programs::All, 0) => Programs::Saves,
            (Programs::All, 1) => Programs::Marks,
            (Programs::All, 2) => Programs::Again,
            (Programs::All, _) => Programs::Noted,
            (programs, _) => programs,
        };
        let setup = setup(round, &mut random);
        let setup = match programs {
            Programs::Marks => marked(round, setup, &mut random),
            Programs::Again => again(round, setup, &mut random),
            Programs::Noted => {
                let background = round % 2 == 1;
                Setup { marks: true, noted: true, saves: setup.saves.min(3), bytes: 8, background, ..setup }
            }
            _ => setup,
        };
        for model in [Model::Weak, Model::Journal] {
            // No setting uses all images.
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

/// Returns the settings of a round: the same small ones for every seed first, and then random ones.
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

/// Returns settings with marks, links, removed components and unclean saves.
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

/// Returns settings in which checkpoints are superseded.
fn again(round: u64, setup: Setup, random: &mut Random) -> Setup {
    let (again, back) = match round {
        0..4 => (round != 2, round >= 2),
        _ => [(true, false), (false, true), (true, true)][random.below(3)],
    };
    Setup { again, back, saves: setup.saves + 2, ..setup }
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

/// Returns the disk before the first run of the program.
pub(crate) fn empty_disk(setup: &Setup) -> Files {
    let disk = SimDisk::new(Files::default(), 0);
    disk.put("/data/", &[]);
    if setup.strangers {
        for path in STRANGERS {
            disk.put(path, b"mine");
        }
    }
    disk.files()
}

/// A run of the program: opens, restores, and saves; marks what it was told. Continues if a save fails. Returns the
/// last step it tried to save, and the first error.
pub(crate) fn program(disk: &SimDisk, shared: Arc<dyn Disk>, setup: &Setup, saves: usize) -> (u64, Option<Error>) {
    let run = Run::new(setup);
    let mut manager = match run.open(shared.clone(), Path::new(ROOT)) {
        Ok(manager) => manager,
        Err(e) => return (0, Some(e)),
    };
    let first = match restore(&mut manager) {
        Ok(begun) => begun.restored.map_or(1, |_| run.state() + 1),
        Err(e) => return (0, Some(e)),
    };
    let mut error = None;
    for step in first..first + saves as u64 {
        if setup.back
            && step % 3 == 0
            && let Some(oldest) = manager.checkpoints().into_iter().next()
        {
            error = error.or(manager.restore_with(oldest, &RestoreOptions::new().threads(1)).err());
        }
        run.set(step);
        let saved = match setup.noted {
            true => marked::save_noted(&mut manager, setup, step, |noted| disk.noted(noted)),
            false => save(&mut manager, setup, step),
        };
        match saved {
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
        if setup.noted {
            error = error.or(marked::save_again(&mut manager, setup, step).err());
        }
    }
    if setup.unclean {
        marked::fail(&run, &mut manager, first + saves as u64);
    }
    (first + saves as u64 - 1, error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::TOP;

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
    fn nothing_is_lost_by_a_crash_while_checkpoints_are_superseded() {
        run(Phase::First, Programs::Again, 6_000);
    }

    #[test]
    fn nothing_is_lost_by_a_crash_after_a_crash_while_checkpoints_are_superseded() {
        run(Phase::Second, Programs::Again, 4_000);
    }

    #[test]
    fn what_was_noted_stays_with_its_state_when_a_crash_meets_a_save_for_metadata() {
        run(Phase::First, Programs::Noted, 6_000);
    }

    #[test]
    fn what_was_noted_stays_with_its_state_when_a_crash_follows_a_crash() {
        run(Phase::Second, Programs::Noted, 4_000);
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
