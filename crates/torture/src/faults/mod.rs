//! A disk that fails: any error at the n-th operation, once or permanently; short writes; syncs that report success
//! without effect.

mod disk;
mod session;
mod unsynced;

pub(crate) use disk::{Fault, FaultDisk, Only, Plan};

use super::check::{Asked, ROOT};
use super::crash::{Crashes, Model, empty_disk, program};
use super::run::{Run, Setup, restore};
use super::sim::{Files, Op, SimDisk};
use session::{check_error, recovered, session};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tch_checkpoint::internal::Disk;

/// The errors that are injected.
fn faults() -> Vec<Fault> {
    use rustix::io::Errno;
    let errnos = [
        Errno::IO,
        Errno::NOSPC,
        Errno::DQUOT,
        Errno::ROFS,
        Errno::MFILE,
        Errno::NOMEM,
        Errno::STALE,
        Errno::INTR,
        Errno::ACCESS,
        Errno::FBIG,
    ];
    errnos.iter().map(|errno| Fault::Errno(errno.raw_os_error())).chain([Fault::ShortWrite]).collect()
}

/// The result of [`faults_everywhere`].
#[derive(Debug, Clone, Default)]
pub struct FaultReport {
    /// The number of runs, each with one fault or one pair of faults.
    pub runs: u64,
    /// The number of runs in which the fault occurred.
    pub struck: u64,
    /// The number of runs that ended without an error.
    pub survived: u64,
    /// The number of images of crashes.
    pub images: u64,
    /// The violations.
    pub violations: Vec<String>,
}

impl FaultReport {
    fn add(&mut self, other: FaultReport) {
        self.runs += other.runs;
        self.struck += other.struck;
        self.survived += other.survived;
        self.images += other.images;
        self.violations.extend(other.violations);
    }
}

/// A part of [`faults_everywhere`]: its name, and what it does.
type Part = (String, Box<dyn Fn(&mut FaultReport) + Send + Sync>);

/// Every operation of opening, restoring, saving and rotating fails once, or from then on, in every way; pairs of
/// operations of a recovery fail; one sync fails, and then the machine crashes; syncs lie, and then it crashes.
/// Tries every `thin`-th case, on up to 4 threads. `progress` is called after each part, with its name and result.
#[must_use]
pub fn faults_everywhere(thin: u64, progress: impl Fn(&str, &FaultReport) + Sync) -> FaultReport {
    let parts = parts(thin);
    let next = AtomicUsize::new(0);
    let all = Mutex::new(FaultReport::default());
    let work = || {
        while let Some((name, part)) = parts.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut report = FaultReport::default();
            part(&mut report);
            progress(name, &report);
            all.lock().unwrap_or_else(PoisonError::into_inner).add(report);
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get()).min(4);
    std::thread::scope(|scope| {
        (1..threads).for_each(|_| drop(scope.spawn(work)));
        work();
    });
    all.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// The longest come first.
fn parts(thin: u64) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    let mut part = |name: String, part: Box<dyn Fn(&mut FaultReport) + Send + Sync>| parts.push((name, part));
    let chosen = move |ops: &[Op]| (ops.len() as u64).is_multiple_of(thin);
    for model in [Model::Weak, Model::Journal] {
        part(format!("bad syncs, {model:?}"), Box::new(move |report| crashes_with_bad_syncs(model, thin, report)));
        part(
            format!("failing syncs of directories, {model:?}"),
            Box::new(move |report| unsynced::failing_syncs(model, chosen, 20_000 / thin, report)),
        );
        part(format!("kills, {model:?}"), Box::new(move |report| unsynced::kills(model, chosen, 1_000 / thin, report)));
    }
    for keep in [Some(1), Some(2)] {
        let setup = Setup { keep, ..Setup::default() };
        let paired = setup.clone();
        part(format!("pairs, keep {keep:?}"), Box::new(move |report| pairs(&paired, thin, report)));
        for fault in faults() {
            let setup = setup.clone();
            part(format!("{fault:?}, keep {keep:?}"), Box::new(move |report| each(&setup, fault, thin, report)));
        }
    }
    parts
}

/// Each operation fails, once or from then on.
fn each(setup: &Setup, fault: Fault, thin: u64, report: &mut FaultReport) {
    let start = after(setup, 2);
    for for_ever in [false, true] {
        for at in 0.. {
            if !(at + fault_number(fault)).is_multiple_of(thin) {
                continue;
            }
            let plan = Plan::new(fault, &[at], for_ever);
            let context = format!("keep {:?}, {fault:?} at {at}, for ever: {for_ever}", setup.keep);
            session(&start, setup, &plan, &context, report);
            if plan.count() <= at {
                break;
            }
            report.struck += 1;
        }
    }
}

fn fault_number(fault: Fault) -> u64 {
    match fault {
        Fault::Errno(code) => code as u64,
        _ => 0,
    }
}

/// Returns the disk after some saves.
fn after(setup: &Setup, saves: usize) -> Files {
    let disk = SimDisk::new(empty_disk(setup), 0);
    program(&disk, Arc::new(disk.clone()), setup, saves);
    disk.files()
}

/// Of the recovery after every kill of a run, any two operations fail.
fn pairs(setup: &Setup, thin: u64, report: &mut FaultReport) {
    let start = empty_disk(setup);
    let disk = SimDisk::new(start.clone(), 1);
    program(&disk, Arc::new(disk.clone()), setup, 2);
    let ops = disk.ops();
    for at in (1..ops.len()).step_by(1 + 4 * thin as usize) {
        let killed = SimDisk::resumed(start.clone(), &ops[..at], 1);
        let saved = |op: &Op| match op {
            Op::Saved(step) => Some(*step),
            _ => None,
        };
        let acknowledged = ops[..at].iter().filter_map(saved).next_back();
        let files = killed.files();
        for first in 0..80 {
            for second in first + 1..80 {
                if (first * 7 + second) % thin != 0 {
                    continue;
                }
                let errno = [rustix::io::Errno::IO, rustix::io::Errno::NOSPC][(first + second) as usize % 2];
                let plan = Plan::new(Fault::Errno(errno.raw_os_error()), &[first, second], false);
                let disk = SimDisk::new(files.clone(), 0);
                let shared: Arc<dyn Disk> = Arc::new(FaultDisk::new(Arc::new(disk.clone()), plan.clone()));
                let context = format!("killed at {at}, {errno:?} at {first} and {second}");
                let run = Run::new(setup);
                report.runs += 1;
                // Three tries, as a supervisor would; the last has no faults left.
                for _ in 0..3 {
                    let tried = run.open(shared.clone(), Path::new(ROOT)).and_then(|mut m| restore(&mut m).map(|_| ()));
                    if let Err(e) = tried {
                        check_error(&e, &context, report);
                    }
                }
                plan.heal();
                recovered(&disk, &shared, setup, acknowledged, &context, report);
                if plan.count() <= first {
                    break;
                }
                report.struck += 1;
            }
        }
    }
}

/// A sync fails, or all of them lie, and the machine crashes at any point after that.
fn crashes_with_bad_syncs(model: Model, thin: u64, report: &mut FaultReport) {
    let setup = Setup { keep: Some(1), ..Setup::default() };
    let counted = Plan::new(Fault::LyingSync, &[u64::MAX], false);
    let disk = SimDisk::new(empty_disk(&setup), 1);
    program(&disk, Arc::new(FaultDisk::new(Arc::new(disk.clone()), counted.clone())), &setup, setup.saves);
    for at in (0..counted.count()).step_by(thin as usize) {
        let errno = rustix::io::Errno::IO.raw_os_error();
        for (fault, for_ever, asked) in [
            (Fault::Errno(errno), false, Asked::ButTheIndex),
            (Fault::LyingSync, false, Asked::NoWrongBytes),
            (Fault::LyingSync, true, Asked::NoWrongBytes),
        ] {
            let mut crashes = Crashes::new(&setup, model, at, 20_000);
            crashes.asked = asked;
            crashes.may_fail = true;
            crashes.first_through(|disk| {
                Arc::new(FaultDisk::new(Arc::new(disk.clone()), Plan::new(fault, &[at], for_ever)))
            });
            report.images += crashes.report.images;
            let context = |example: &String| format!("{model:?}, {fault:?} at {at}, {for_ever}: {example}");
            report.violations.extend(crashes.report.examples.iter().map(context));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::Rename;
    use tch_checkpoint::Error;
    use tch_checkpoint::format::Follows;
    use tch_checkpoint::format::Manifest;
    use tch_checkpoint::internal::{Directory, OpenOptions, Posix};

    #[test]
    fn a_failing_disk_loses_nothing() {
        let report = faults_everywhere(23, |_, _| ());
        println!("{report:?}");
        assert!(report.violations.is_empty(), "{}", report.violations.join("\n"));
        assert!(report.struck > 100);
    }

    fn manifest() -> Manifest {
        Manifest::new(1, "0123456789abcdef0123456789abcdef", chrono::Utc::now())
    }

    /// Removes a checkpoint whose move to the trash fails. Returns the result, and whether its directory is still
    /// there.
    fn remove(there: bool, errno: rustix::io::Errno) -> (tch_checkpoint::Result<()>, bool) {
        let disk = SimDisk::new(Files::default(), 1);
        let sim = disk.clone();
        disk.put(&format!("{ROOT}/"), b"");
        if there {
            disk.put(&format!("{ROOT}/ckpt-1/manifest.json"), &manifest().to_bytes().unwrap());
            disk.put(&format!("{ROOT}/ckpt-1/w.safetensors"), b"w");
        }
        let plan = Plan::of(Only::Names, Fault::Errno(errno.raw_os_error()), if there { &[0] } else { &[] }, false);
        let disk: Arc<dyn Disk> = Arc::new(FaultDisk::new(Arc::new(disk), plan));
        let directory = Directory::new(&Posix::new(disk), ROOT, &OpenOptions::default()).unwrap();
        let id = Follows { run: manifest().run, sequence: 1 };
        let removed = directory.remove("ckpt-1", &id, &|_| false).map(drop);
        (removed, sim.has(&Path::new(ROOT).join("ckpt-1")))
    }

    #[test]
    fn a_checkpoint_that_cannot_be_moved_to_the_trash_stays_whole_or_goes() {
        let (removed, there) = remove(true, rustix::io::Errno::IO);
        assert!(there && matches!(removed, Err(Error::Io { .. })), "{removed:?}");
        let (removed, there) = remove(true, rustix::io::Errno::XDEV);
        assert!(!there && removed.is_ok(), "an overlay's lower layer: {removed:?}");
        let (removed, there) = remove(false, rustix::io::Errno::IO);
        assert!(!there && removed.is_ok(), "removed by somebody else: {removed:?}");
    }

    /// Another program moves the new checkpoint away before the commit has ended.
    #[test]
    fn if_the_new_checkpoint_is_taken_away_at_once_the_one_that_it_superseded_has_its_name() {
        let publish = |taken: &[u64]| {
            let sim = SimDisk::new(Files::default(), 1);
            sim.put(&format!("{ROOT}/ckpt-1/manifest.json"), &manifest().to_bytes().unwrap());
            let plan = Plan::of(Only::Names, Fault::Taken, taken, false);
            let disk: Arc<dyn Disk> = Arc::new(FaultDisk::new(Arc::new(sim.clone()), plan.clone()));
            let directory = Directory::new(&Posix::new(disk), ROOT, &OpenOptions::default()).unwrap();
            let new = Manifest::new(2, manifest().run, chrono::Utc::now());
            let published = directory
                .begin("ckpt-1", 0)
                .and_then(|staging| staging.commit(&new.to_bytes()?, 1, &["ckpt-1".to_string()]));
            let mut names = sim.names(Path::new(ROOT));
            names.retain(|name| !name.starts_with('.'));
            names.sort();
            (published, names, plan.count())
        };
        let (published, names, operations) = publish(&[]);
        assert!(published.is_ok() && names.len() == 2, "{names:?}");
        let (published, names, _) = publish(&[operations - 1]);
        assert!(matches!(published, Err(Error::Moved { .. })), "{published:?}");
        assert_eq!(names, ["archived", "ckpt-1"]);
    }

    /// Another program exchanges the new checkpoint for a directory of its own: before the commit has ended, or while it is
    /// being undone because a sync failed.
    #[test]
    fn what_another_program_puts_in_the_place_of_a_new_checkpoint_is_left_alone() {
        let publish = |exchanged: &[u64], failing: &[u64]| {
            let sim = SimDisk::new(Files::default(), 1);
            sim.put(&format!("{ROOT}/ckpt-2/manifest.json"), &manifest().to_bytes().unwrap());
            let fails = Plan::of(Only::Names, Fault::Errno(rustix::io::Errno::IO.raw_os_error()), failing, false);
            let disk: Arc<dyn Disk> = Arc::new(FaultDisk::new(Arc::new(sim.clone()), fails));
            let plan = Plan::of(Only::Names, Fault::Exchanged, exchanged, false);
            let disk: Arc<dyn Disk> = Arc::new(FaultDisk::new(disk, plan.clone()));
            let directory = Directory::new(&Posix::new(disk), ROOT, &OpenOptions::default()).unwrap();
            let new = Manifest::new(2, manifest().run, chrono::Utc::now());
            let published = directory
                .begin("ckpt-1", 0)
                .and_then(|staging| staging.commit(&new.to_bytes()?, 1, &["ckpt-2".to_string()]));
            let mut names = sim.names(Path::new(ROOT));
            names.retain(|name| name != ".lock");
            names.sort();
            (published, names, sim.has(&Path::new(ROOT).join("ckpt-1/precious")), plan.count())
        };
        let (published, _, _, operations) = publish(&[], &[]);
        assert!(published.is_ok(), "{published:?}");
        for (exchanged, failing) in [(operations - 1, None), (operations, Some(operations - 1))] {
            let (published, names, is_there, _) = publish(&[exchanged], failing.as_slice());
            assert!(published.is_err(), "{published:?}");
            assert!(is_there, "{names:?}");
            assert_eq!(names, ["archived", "ckpt-1", "ckpt-2"]);
        }
    }

    #[test]
    fn a_commit_that_was_not_synced_is_taken_back_before_its_files_go() {
        let publish = |failing: &[u64]| {
            let sim = SimDisk::new(Files::default(), 1);
            sim.put(&format!("{ROOT}/"), b"");
            let plan = Plan::of(Only::Names, Fault::Errno(rustix::io::Errno::IO.raw_os_error()), failing, false);
            let disk: Arc<dyn Disk> = Arc::new(FaultDisk::new(Arc::new(sim.clone()), plan.clone()));
            let directory = Directory::new(&Posix::new(disk), ROOT, &OpenOptions::default()).unwrap();
            let published =
                directory.begin("ckpt-1", 0).and_then(|staging| staging.commit(&manifest().to_bytes()?, 1, &[]));
            assert_eq!(published.is_ok(), failing.is_empty());
            (sim.ops(), plan.count())
        };
        let (_, operations) = publish(&[]);
        let (ops, _) = publish(&[operations - 1]);
        let is_move = |op: &Op| matches!(op, Op::Rename(Rename::Move { .. }));
        let back = ops.iter().rposition(is_move).unwrap();
        assert!(is_move(&ops[back - 1]), "the commit's sync failed, and did nothing");
        assert!(matches!(ops[back + 1], Op::SyncDirectory(_)), "{ops:?}");
        assert!(ops[back + 2..].iter().any(|op| matches!(op, Op::Rename(Rename::Remove { .. }))), "{ops:?}");
        // While a power cut may bring the name back, its files stay.
        let (ops, _) = publish(&[operations - 1, operations + 1]);
        assert!(!ops.iter().any(|op| matches!(op, Op::Rename(Rename::Remove { .. }))), "{ops:?}");
    }
}
