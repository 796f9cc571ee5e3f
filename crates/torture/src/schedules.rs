//! The state machine of saves in the background under random schedules of its threads: the manager, the thread that
//! writes, and optimizers at the gate. Only compiled with `--cfg shuttle`: `cargo xtask torture schedules`.

use super::check::ROOT;
use super::crash::empty_disk;
use super::faults::{Fault, FaultDisk, Plan};
use super::run::Setup;
use super::sim::SimDisk;
use super::words::{Optimizer, Words, others};
use shuttle::rand::{Rng, thread_rng};
use shuttle::sync::Arc;
use shuttle::thread;
use std::path::Path;
use tch_checkpoint::internal::{Disk, Posix, Source};
use tch_checkpoint::{Background, CheckpointManager, SaveOptions, WhenBusy};

/// Tries so many schedules, as many as the environment says.
fn try_schedules(scenario: impl Fn() + Send + Sync + 'static) {
    let count = std::env::var("SCHEDULES").ok().and_then(|text| text.parse().ok()).unwrap_or(500);
    let mut config = shuttle::Config::new();
    config.stack_size = 1 << 20;
    let scheduler = shuttle::scheduler::RandomScheduler::new(count);
    let tried = shuttle::Runner::new(scheduler, config).run(scenario);
    println!("{tried} schedules");
    assert_eq!(tried, count);
}

struct Run {
    disk: SimDisk,
    optimizer: Optimizer,
    buffer: Words,
}

impl Run {
    fn new() -> Run {
        let disk = SimDisk::new(empty_disk(&Setup::default()), 0);
        Run { disk, optimizer: Optimizer::new(&[2, 1]), buffer: Words::new(2) }
    }

    fn open(&self, fault: Option<(Fault, u64)>, when_busy: WhenBusy) -> CheckpointManager {
        let sim: Arc<dyn Disk> = Arc::new(self.disk.clone());
        let disk: Arc<dyn Disk> = match fault {
            None => sim,
            Some((fault, at)) => Arc::new(FaultDisk::new(sim, Plan::new(fault, &[at], false))),
        };
        let mut checkpoint = tch_checkpoint::internal::checkpoint_on(disk);
        checkpoint.track_mut("model", self.optimizer.clone()).unwrap();
        checkpoint.track_mut("buffer", self.buffer.clone()).unwrap();
        let builder = CheckpointManager::builder(checkpoint, ROOT).max_to_keep(None);
        let builder = builder.save_options(SaveOptions::new().threads(1));
        builder.background(Background::new().when_busy(when_busy)).open().unwrap()
    }

    fn set(&self, stamp: u64) {
        self.optimizer.step(stamp);
        self.buffer.fill(stamp);
    }

    /// The checkpoint is there and every word has its stamp.
    fn check(&self, step: u64) {
        let storage = Posix::new(Arc::new(self.disk.clone()));
        let source = Source::open(&storage, &Path::new(ROOT).join(format!("ckpt-{step}"))).unwrap();
        assert_eq!(source.manifest.tensors.len(), 3);
        for (key, record) in &source.manifest.tensors {
            let mut bytes = vec![0; record.spec.bytes().unwrap() as usize];
            source.read_tensor(key, record, &mut bytes, true).unwrap();
            assert!(others(&bytes, step).is_empty(), "{key} of step {step}: {:?}", others(&bytes, step));
        }
    }
}

/// Two optimizer threads and the buffers overwrite everything while saves are written and queued.
#[test]
fn what_is_saved_is_of_the_call() {
    try_schedules(|| {
        let run = Run::new();
        let mut manager = run.open(None, WhenBusy::Wait);
        for step in 1..=3 {
            run.set(step);
            manager.save_at(step as u64).unwrap();
            run.buffer.fill(99);
            let steppers: Vec<_> = (0..2).map(|_| (run.optimizer.clone(), 90 + step)).collect();
            let steppers = steppers.into_iter().map(|(optimizer, stamp)| thread::spawn(move || optimizer.step(stamp)));
            let steppers: Vec<_> = steppers.collect();
            if thread_rng().gen_bool(0.3) {
                manager.wait().unwrap();
            }
            steppers.into_iter().for_each(|stepper| stepper.join().unwrap());
        }
        manager.close().unwrap();
        (1..=3).for_each(|step| run.check(step));
    });
}

/// A fault at any operation is returned exactly once, by whichever call comes next, and takes back what it must.
#[test]
fn an_error_is_returned_once() {
    try_schedules(|| {
        let run = Run::new();
        drop(run.open(None, WhenBusy::Wait));
        let mut manager = run.open(Some((Fault::Errno(libc::EIO), thread_rng().gen_range(9..40))), WhenBusy::Wait);
        run.set(1);
        let first = manager.save_at(1);
        let optimizer = run.optimizer.clone();
        let stepper = thread::spawn(move || optimizer.step(50));
        let mut errors = u64::from(first.is_err());
        errors += u64::from(thread_rng().gen_bool(0.5) && manager.wait().is_err());
        stepper.join().unwrap();
        run.set(2);
        let second = manager.save_at(2);
        // What the first met is returned by this one, which then has not begun.
        errors += u64::from(second.is_err());
        let waited = manager.wait();
        errors += u64::from(waited.is_err());
        manager.wait().unwrap();
        assert!(errors <= 1, "{errors} errors of one fault");
        let there: Vec<_> = manager.checkpoints();
        let said = format!("{first:?}, {second:?}, {waited:?}: {there:?}");
        assert_eq!(manager.checkpoint().save_counter(), there.len() as u64, "{said}");
        // One fault spoils one save, and the call that returns it does not start another; it may spoil none.
        let spoiled = if second.is_err() && !said.contains("ckpt-2") { 2 } else { errors };
        assert_eq!(there.len() as u64, 2 - spoiled, "{said}");
        for path in &there {
            let step = path.to_string_lossy().rsplit('-').next().and_then(|step| step.parse().ok()).unwrap();
            run.check(step);
        }
        manager.close().unwrap();
    });
}

/// The manager is dropped, and another opened, while a save is written and optimizers are at the gate.
#[test]
fn dropping_waits_and_nobody_hangs() {
    try_schedules(|| {
        let run = Run::new();
        let mut manager = run.open(None, WhenBusy::Wait);
        run.set(1);
        manager.save_at(1).unwrap();
        let optimizer = run.optimizer.clone();
        let stepper = thread::spawn(move || (2..4).for_each(|stamp| optimizer.step(stamp)));
        drop(manager);
        run.check(1);
        let manager = run.open(None, WhenBusy::Wait);
        assert_eq!(manager.checkpoints().len(), 1);
        stepper.join().unwrap();
    });
}

/// With `WhenBusy::Skip` a save that comes too early is left out, and never torn or lost when it is not.
#[test]
fn overlapping_saves_are_left_out_or_whole() {
    try_schedules(|| {
        let run = Run::new();
        let mut manager = run.open(None, WhenBusy::Skip);
        let mut saved = Vec::new();
        for step in 1..=4 {
            run.set(step);
            if manager.save_if_due(step as u64).unwrap().is_some() {
                saved.push(step);
            }
            thread::yield_now();
        }
        manager.wait().unwrap();
        assert_eq!(manager.checkpoints().len(), saved.len());
        assert!(saved.contains(&1));
        saved.into_iter().for_each(|step| run.check(step));
        manager.close().unwrap();
    });
}
