//! A disk that fails: any error at the n-th operation, once or for ever; writes cut short; syncs that lie.

use super::check::{Asked, ROOT};
use super::crash::{Crashes, Model, empty_disk, program};
use super::run::{Run, Setup, restore};
use super::sim::{Files, SimDisk};
use std::any::Any;
use std::cell::Cell;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tch_checkpoint::Error;
use tch_checkpoint::internal::{Dir, Disk, Entry, LockFile, OpenDir, Posix, ReadFile, Source, Stat, WriteFile};

/// What happens at an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// It fails with this number, and changes nothing.
    Errno(i32),
    /// A write puts down the first half and then finds the disk full; other operations find it full at once.
    ShortWrite,
    /// A sync says it is done and does nothing; other operations work.
    LyingSync,
    /// The process ends.
    Die,
}

/// Which operations a plan counts.
#[cfg_attr(not(test), allow(dead_code, reason = "the tests ask for single kinds"))]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Only {
    Any,
    /// Renames, and syncs of directories.
    Names,
    /// Locks.
    Locks,
    /// Syncs of files and directories.
    Syncs,
}

/// When it happens: at these operations, counted from 0, or from the first of them on.
#[derive(Debug)]
pub(super) struct Plan {
    pub fault: Fault,
    pub at: Vec<u64>,
    pub for_ever: bool,
    /// Which operations count.
    only: Only,
    count: AtomicU64,
    healed: AtomicU64,
}

impl Plan {
    pub(super) fn new(fault: Fault, at: &[u64], for_ever: bool) -> Arc<Plan> {
        let (count, healed) = (AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Plan { fault, at: at.to_vec(), for_ever, only: Only::Any, count, healed })
    }

    /// Counted are only some operations.
    #[cfg(test)]
    pub(super) fn of(only: Only, fault: Fault, at: &[u64], for_ever: bool) -> Arc<Plan> {
        let (count, healed) = (AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Plan { fault, at: at.to_vec(), for_ever, only, count, healed })
    }

    /// Operations so far.
    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }

    /// From now on nothing fails.
    pub(super) fn heal(&self) {
        self.healed.store(1, Ordering::SeqCst);
    }

    fn strikes(&self) -> bool {
        let now = self.count.fetch_add(1, Ordering::SeqCst);
        let struck = self.at.contains(&now) || self.for_ever && self.at.first().is_some_and(|first| now > *first);
        struck && self.healed.load(Ordering::SeqCst) == 0
    }

    /// Whether this operation, which is no write and no sync, continues.
    fn pass(&self) -> io::Result<()> {
        self.pass_as(Only::Any)
    }

    /// As [`pass`](Plan::pass), for an operation of a kind of its own.
    fn pass_as(&self, kind: Only) -> io::Result<()> {
        let counts = match self.only {
            Only::Any => true,
            Only::Names => kind == Only::Names,
            Only::Locks | Only::Syncs => kind == self.only,
        };
        if !counts || !self.strikes() {
            return Ok(());
        }
        match self.fault {
            Fault::Errno(code) => Err(io::Error::from_raw_os_error(code)),
            Fault::ShortWrite => Err(full()),
            Fault::LyingSync => Ok(()),
            Fault::Die => std::process::abort(),
        }
    }

    /// As [`pass`](Plan::pass), for an operation that changes nothing. Dying before it is dying before the next that
    /// does.
    fn look(&self) -> io::Result<()> {
        if self.fault == Fault::Die { Ok(()) } else { self.pass() }
    }

    fn sync(&self, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        if !self.strikes() {
            return sync();
        }
        match self.fault {
            Fault::Errno(code) => Err(io::Error::from_raw_os_error(code)),
            Fault::ShortWrite => Err(full()),
            Fault::LyingSync => Ok(()),
            Fault::Die => std::process::abort(),
        }
    }
}

fn full() -> io::Error {
    rustix::io::Errno::NOSPC.into()
}

/// A disk that does what a plan says.
#[derive(Debug, Clone)]
pub(super) struct FaultDisk {
    inner: Arc<dyn Disk>,
    plan: Arc<Plan>,
}

impl FaultDisk {
    pub(super) fn new(inner: Arc<dyn Disk>, plan: Arc<Plan>) -> FaultDisk {
        FaultDisk { inner, plan }
    }
}

impl FaultDisk {
    fn dir(&self, dir: io::Result<Arc<dyn Dir>>) -> io::Result<Arc<dyn Dir>> {
        Ok(Arc::new(FaultDir { dir: dir?, disk: self.clone() }))
    }

    fn new_file(&self, file: Box<dyn WriteFile>) -> Box<dyn WriteFile> {
        Box::new(FaultFile { file, plan: self.plan.clone() })
    }
}

impl Disk for FaultDisk {
    fn absolute(&self, path: &Path) -> io::Result<PathBuf> {
        self.inner.absolute(path)
    }

    fn least_recycled(&self) -> u64 {
        self.inner.least_recycled()
    }

    fn open_dir(&self, path: &Path) -> io::Result<Arc<dyn Dir>> {
        self.plan.look().and_then(|()| self.dir(self.inner.open_dir(path)))
    }
}

#[derive(Debug)]
struct FaultDir {
    dir: Arc<dyn Dir>,
    disk: FaultDisk,
}

impl FaultDir {
    fn plan(&self) -> &Plan {
        &self.disk.plan
    }
}

impl OpenDir for FaultDir {
    fn stat(&self) -> io::Result<Stat> {
        self.plan().look().and_then(|()| self.dir.stat())
    }

    fn stat_of(&self, name: &OsStr) -> io::Result<Option<Stat>> {
        self.plan().look().and_then(|()| self.dir.stat_of(name))
    }

    fn list(&self) -> io::Result<Vec<Entry>> {
        self.plan().look().and_then(|()| self.dir.list())
    }

    fn open(&self, name: &OsStr) -> io::Result<Box<dyn ReadFile>> {
        self.plan().look()?;
        Ok(Box::new(FaultFile { file: self.dir.open(name)?, plan: self.disk.plan.clone() }))
    }
}

impl Dir for FaultDir {
    fn as_any(&self) -> &dyn Any {
        self.dir.as_any()
    }

    fn open_dir(&self, name: &OsStr) -> io::Result<Arc<dyn Dir>> {
        self.plan().look().and_then(|()| self.disk.dir(self.dir.open_dir(name)))
    }

    fn create_dir(&self, name: &OsStr) -> io::Result<()> {
        self.plan().pass().and_then(|()| self.dir.create_dir(name))
    }

    fn create(&self, name: &OsStr, direct: bool) -> io::Result<Box<dyn WriteFile>> {
        self.plan().pass()?;
        Ok(self.disk.new_file(self.dir.create(name, direct)?))
    }

    fn recycle(&self, name: &OsStr, to: &dyn Dir, new: &OsStr, direct: bool) -> io::Result<Option<Box<dyn WriteFile>>> {
        self.plan().pass()?;
        Ok(self.dir.recycle(name, to, new, direct)?.map(|file| self.disk.new_file(file)))
    }

    fn link(&self, name: &OsStr, to: &dyn Dir, new: &OsStr) -> io::Result<()> {
        self.plan().pass().and_then(|()| self.dir.link(name, to, new))
    }

    fn rename_new(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        self.plan().pass_as(Only::Names).and_then(|()| self.dir.rename_new(from, to))
    }

    fn replace(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        self.plan().pass().and_then(|()| self.dir.replace(from, to))
    }

    fn remove_file(&self, name: &OsStr) -> io::Result<()> {
        self.plan().pass().and_then(|()| self.dir.remove_file(name))
    }

    fn remove_dir(&self, name: &OsStr) -> io::Result<()> {
        self.plan().pass().and_then(|()| self.dir.remove_dir(name))
    }

    fn sync(&self) -> io::Result<()> {
        if self.plan().only == Only::Locks { self.dir.sync() } else { self.plan().sync(|| self.dir.sync()) }
    }

    fn free_space(&self) -> io::Result<Option<u64>> {
        self.plan().look().and_then(|()| self.dir.free_space())
    }

    fn is_local(&self) -> bool {
        self.dir.is_local()
    }

    fn lock(&self, name: &OsStr, holder: &str) -> io::Result<Option<Box<dyn LockFile>>> {
        self.plan().pass_as(Only::Locks).and_then(|()| self.dir.lock(name, holder))
    }
}

struct FaultFile<F: ?Sized> {
    plan: Arc<Plan>,
    file: Box<F>,
}

impl WriteFile for FaultFile<dyn WriteFile> {
    fn write_all_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if self.plan.fault == Fault::ShortWrite && self.plan.at.contains(&self.plan.count()) {
            self.file.write_all_at(offset, &bytes[..bytes.len() / 2])?;
        }
        self.plan.pass().and_then(|()| self.file.write_all_at(offset, bytes))
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.plan.pass().and_then(|()| self.file.set_len(length))
    }

    fn sync(&self) -> io::Result<()> {
        let counts = matches!(self.plan.only, Only::Any | Only::Syncs);
        if counts { self.plan.sync(|| self.file.sync()) } else { self.file.sync() }
    }

    fn stat(&self) -> io::Result<Stat> {
        self.plan.look().and_then(|()| self.file.stat())
    }
}

impl ReadFile for FaultFile<dyn ReadFile> {
    fn stat(&self) -> io::Result<Stat> {
        self.plan.look().and_then(|()| self.file.stat())
    }

    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.plan.look().and_then(|()| self.file.read_exact_at(offset, buffer))
    }
}

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

/// What came of the faults.
#[derive(Debug, Clone, Default)]
pub struct FaultReport {
    /// Runs, each with one fault or one pair of faults.
    pub runs: u64,
    /// Of these, such in which it struck.
    pub struck: u64,
    /// Runs that ended without an error all the same.
    pub survived: u64,
    /// Images of crashes of runs with a failing sync.
    pub images: u64,
    /// What broke a promise.
    pub violations: Vec<String>,
}

/// Every operation of opening, restoring, saving and rotating fails once, or from then on, in every way; pairs of
/// operations of a recovery fail; one sync fails, and then the machine crashes; syncs lie, and then it crashes.
/// `thin` of 1 tries all of it, of n every n-th.
#[must_use]
pub fn faults_everywhere(thin: u64) -> FaultReport {
    let mut report = FaultReport::default();
    for keep in [Some(1), Some(2)] {
        let setup = Setup { keep, ..Setup::default() };
        let start = after(&setup, 2);
        for fault in faults() {
            for for_ever in [false, true] {
                for at in 0.. {
                    if !(at + fault_number(fault)).is_multiple_of(thin) {
                        continue;
                    }
                    let plan = Plan::new(fault, &[at], for_ever);
                    let context = format!("keep {keep:?}, {fault:?} at {at}, for ever: {for_ever}");
                    session(&start, &setup, &plan, &context, &mut report);
                    if plan.count() <= at {
                        break;
                    }
                    report.struck += 1;
                }
            }
        }
        pairs(&setup, thin, &mut report);
    }
    crashes_with_bad_syncs(thin, &mut report);
    report
}

fn fault_number(fault: Fault) -> u64 {
    match fault {
        Fault::Errno(code) => code as u64,
        _ => 0,
    }
}

/// The disk after some saves.
fn after(setup: &Setup, saves: usize) -> Files {
    let disk = SimDisk::new(empty_disk(setup), 0);
    program(&disk, Arc::new(disk.clone()), setup, saves);
    disk.files()
}

/// What each error must be: typed, with the path, and with what to do.
fn check_error(error: &Error, context: &str, report: &mut FaultReport) {
    let text = error.to_string();
    let telling = match error {
        Error::NoSpace { .. } => text.contains("free some space"),
        Error::Io { .. } => text.contains(';') || text.contains("File too large"),
        Error::PartlyRestored { .. } => text.contains("restore another"),
        Error::Damaged { .. } | Error::NotFound { .. } => true,
        // A save of a run of which nothing could be restored.
        Error::InvalidArgument(_) => text.contains("pass_over"),
        _ => false,
    };
    if !telling || !text.contains(" /") {
        report.violations.push(format!("{context}: the error says too little: {error:?}: {text}"));
    }
}

/// A checkpoint that is whole.
fn is_whole(disk: &SimDisk, step: u64) -> bool {
    let storage = Posix::new(Arc::new(disk.clone()));
    let path = Path::new(ROOT).join(format!("ckpt-{step}"));
    Source::open(&storage, &path).is_ok_and(|source| {
        let mut buffer = Vec::new();
        source.manifest.tensors.iter().all(|(key, record)| source.verify_tensor(key, record, &mut buffer).is_ok())
    })
}

fn steps(disk: &SimDisk) -> Vec<u64> {
    let names = disk.names(Path::new(ROOT));
    let mut steps: Vec<u64> = names.iter().filter_map(|name| name.strip_prefix("ckpt-")?.parse().ok()).collect();
    steps.sort_unstable();
    steps
}

/// Opens, restores, and saves 3 and 4 into a directory that has 2 (and 1); what fails is examined, and tried again.
fn session(start: &Files, setup: &Setup, plan: &Arc<Plan>, context: &str, report: &mut FaultReport) {
    report.runs += 1;
    let disk = SimDisk::new(start.clone(), 0);
    let shared: Arc<dyn Disk> = Arc::new(FaultDisk::new(Arc::new(disk.clone()), plan.clone()));
    let run = Run::new(setup);
    let mut failures = 0;
    let acknowledged = Cell::new(2);
    let mut note = |error: &Error, what: &str, report: &mut FaultReport| {
        failures += 1;
        check_error(error, &format!("{context}, {what}"), report);
        for step in steps(&disk) {
            if !is_whole(&disk, step) {
                report.violations.push(format!("{context}, {what}: ckpt-{step} is broken"));
            }
        }
        if !steps(&disk).contains(&acknowledged.get()) {
            report.violations.push(format!("{context}, {what}: what was there is gone: {:?}", steps(&disk)));
        }
    };
    let opened = run.open(shared.clone(), Path::new(ROOT)).or_else(|e| {
        note(&e, "open", report);
        plan.heal();
        run.open(shared.clone(), Path::new(ROOT))
    });
    let Ok(mut manager) = opened else {
        return report.violations.push(format!("{context}: cannot be opened afterwards"));
    };
    let restored = restore(&mut manager).or_else(|e| {
        note(&e, "restore", report);
        if !run.is_untouched() && !matches!(e, Error::PartlyRestored { .. }) && !run.is_at(2) && !run.is_at(1) {
            report.violations.push(format!("{context}: a failed restore changed the objects"));
        }
        plan.heal();
        restore(&mut manager)
    });
    match &restored {
        Ok(started) => {
            let step = started.restored.as_ref().and_then(|status| status.step());
            let told = !started.passed_over.is_empty();
            if step != Some(2) && !(told && step == Some(1)) {
                report.violations.push(format!("{context}: {step:?} was restored, told: {told}"));
            }
            if step.is_some_and(|step| !run.is_at(step)) {
                report.violations.push(format!("{context}: wrong values were restored"));
            }
        }
        // With one checkpoint that could not be read, a restart of the process is what helps.
        Err(e) => check_error(e, &format!("{context}, second restore"), report),
    }
    let mut step = 3;
    while step <= 5 {
        run.set(step);
        let before = (manager.checkpoints(), manager.checkpoint().save_counter(), index(&disk));
        match manager.save_at(step) {
            Ok(_) => acknowledged.set(step),
            Err(e) => {
                note(&e, "save", report);
                let after = (manager.checkpoints(), manager.checkpoint().save_counter(), index(&disk));
                if before != after {
                    report.violations.push(format!("{context}: a failed save changed {before:?} to {after:?}"));
                }
                if !plan.for_ever && steps(&disk).contains(&step) {
                    report.violations.push(format!("{context}: a failed save left ckpt-{step}"));
                }
                plan.heal();
                if !steps(&disk).contains(&step) {
                    // The same step again.
                    match manager.save_at(step) {
                        Ok(_) => acknowledged.set(step),
                        Err(e) => report.violations.push(format!("{context}: the next save fails: {e}")),
                    }
                }
            }
        }
        step += 1;
    }
    drop(manager);
    drop(restored);
    if failures == 0 {
        report.survived += 1;
    }
    plan.heal();
    recovered(&disk, &shared, setup, Some(acknowledged.get()), context, report);
    drop(shared);
    if disk.holders() != 1 {
        report.violations.push(format!("{context}: {} files or locks are still open", disk.holders() - 1));
    }
}

fn index(disk: &SimDisk) -> Option<Vec<u8>> {
    disk.read(&Path::new(ROOT).join("checkpoint.json"))
}

/// Opened again: what was acknowledged is restored, and nothing is left behind.
fn recovered(
    disk: &SimDisk,
    shared: &Arc<dyn Disk>,
    setup: &Setup,
    acknowledged: Option<u64>,
    context: &str,
    report: &mut FaultReport,
) {
    let run = Run::new(setup);
    let result = run.open(shared.clone(), Path::new(ROOT)).and_then(|mut manager| {
        let started = restore(&mut manager)?;
        Ok(started.restored.and_then(|status| status.step()))
    });
    match result {
        Ok(step) if step >= acknowledged && step.map_or(run.is_untouched(), |step| run.is_at(step)) => {}
        Ok(step) => {
            report.violations.push(format!("{context}: {acknowledged:?} was acknowledged, {step:?} is restored"));
        }
        Err(e) => report.violations.push(format!("{context}: cannot be restored afterwards: {e}")),
    }
    for name in disk.names(Path::new(ROOT)) {
        if name.starts_with(".t") || name.starts_with("damaged-") {
            report.violations.push(format!("{context}: {name} is left behind"));
        }
    }
}

/// Of the recovery after every kill of a run, any two operations fail.
fn pairs(setup: &Setup, thin: u64, report: &mut FaultReport) {
    let start = empty_disk(setup);
    let disk = SimDisk::new(start.clone(), 1);
    program(&disk, Arc::new(disk.clone()), setup, 2);
    let ops = disk.ops();
    for at in (1..ops.len()).step_by(1 + 4 * thin as usize) {
        let killed = SimDisk::resumed(start.clone(), &ops[..at], 1);
        let saved = |op: &super::sim::Op| match op {
            super::sim::Op::Saved(step) => Some(*step),
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
fn crashes_with_bad_syncs(thin: u64, report: &mut FaultReport) {
    let setup = Setup { keep: Some(1), ..Setup::default() };
    for model in [Model::Weak, Model::Journal] {
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::{Op, Rename};
    use tch_checkpoint::format::Follows;
    use tch_checkpoint::format::Manifest;
    use tch_checkpoint::internal::{Directory, OpenOptions};

    #[test]
    fn a_failing_disk_loses_nothing() {
        let report = faults_everywhere(23);
        println!("{report:?}");
        assert!(report.violations.is_empty(), "{}", report.violations.join("\n"));
        assert!(report.struck > 100);
    }

    fn manifest() -> Manifest {
        Manifest::new(1, "0123456789abcdef0123456789abcdef", chrono::Utc::now())
    }

    /// What removing a checkpoint says whose move to the trash fails, and whether its directory is still there.
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

    #[test]
    fn a_commit_that_was_not_synced_is_taken_back_before_its_files_go() {
        let publish = |failing: &[u64]| {
            let sim = SimDisk::new(Files::default(), 1);
            sim.put(&format!("{ROOT}/"), b"");
            let plan = Plan::of(Only::Names, Fault::Errno(rustix::io::Errno::IO.raw_os_error()), failing, false);
            let disk: Arc<dyn Disk> = Arc::new(FaultDisk::new(Arc::new(sim.clone()), plan.clone()));
            let directory = Directory::new(&Posix::new(disk), ROOT, &OpenOptions::default()).unwrap();
            let published = directory.begin("ckpt-1", 0).and_then(|staging| staging.commit(&manifest().to_bytes()?, 1));
            assert_eq!(published.is_ok(), failing.is_empty());
            (sim.ops(), plan.count())
        };
        let (_, operations) = publish(&[]);
        let (ops, _) = publish(&[operations - 1]);
        let is_move = |op: &Op| matches!(op, Op::Rename(Rename::Move { .. }));
        let back = ops.iter().rposition(is_move).unwrap();
        assert!(is_move(&ops[back - 1]), "the commit's sync failed, and did nothing");
        assert!(matches!(ops[back + 1], Op::SyncFolder(_)), "{ops:?}");
        assert!(ops[back + 2..].iter().any(|op| matches!(op, Op::Rename(Rename::Remove { .. }))), "{ops:?}");
        // While a power cut may bring the name back, its files stay.
        let (ops, _) = publish(&[operations - 1, operations + 1]);
        assert!(!ops.iter().any(|op| matches!(op, Op::Rename(Rename::Remove { .. }))), "{ops:?}");
    }
}
