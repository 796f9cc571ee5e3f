//! Marks that are in a directory and may not be durable: the sync failed, or the process ended before it. What is
//! removed because of such a mark must not be gone after a power cut that takes the mark.

use super::{Fault, FaultDisk, FaultReport, Only, Plan};
use crate::check::Asked;
use crate::crash::{Crashes, Model, empty_disk, program};
use crate::run::Setup;
use crate::sim::{Op, SimDisk};
use std::sync::Arc;

/// All checkpoints are kept, and a component by the newest only.
fn setup() -> Setup {
    Setup { keep: None, thin: Some(1), saves: 2, bytes: 8, ..Setup::default() }
}

/// The operations of a run that nothing disturbs.
fn undisturbed(setup: &Setup) -> Vec<Op> {
    let disk = SimDisk::new(empty_disk(setup), setup.atoms);
    program(&disk, Arc::new(disk.clone()), setup, setup.saves);
    disk.ops()
}

/// Each sync of a directory that comes after such operations fails, and then the power is cut. At most so many images
/// of each.
pub(super) fn failing_syncs(model: Model, after: impl Fn(&[Op]) -> bool, images: u64, report: &mut FaultReport) {
    let setup = setup();
    let ops = undisturbed(&setup);
    let syncs = ops.iter().enumerate().filter(|(_, op)| matches!(op, Op::SyncDirectory(_)));
    for (nth, (point, _)) in syncs.enumerate().filter(|(_, (point, _))| after(&ops[..*point])) {
        let mut crashes = Crashes::new(&setup, model, nth as u64, images);
        (crashes.asked, crashes.may_fail, crashes.from) = (Asked::ButTheIndex, true, point);
        crashes.first_through(|disk| {
            let failing = Fault::Errno(rustix::io::Errno::IO.raw_os_error());
            let plan = Plan::of(Only::Directories, failing, &[nth as u64], false);
            Arc::new(FaultDisk::new(Arc::new(disk.clone()), plan))
        });
        add(crashes, report, &format!("{model:?}, sync {nth} of a directory fails"));
    }
}

/// The process is killed after such operations, another one goes on, and then the power is cut. At most so many images
/// of each.
pub(super) fn kills(model: Model, after: impl Fn(&[Op]) -> bool, images: u64, report: &mut FaultReport) {
    let setup = setup();
    let ops = undisturbed(&setup);
    for at in (1..ops.len()).filter(|at| after(&ops[..*at])) {
        let mut crashes = Crashes::new(&setup, model, at as u64, images);
        crashes.after_kill(&ops[..at]);
        add(crashes, report, &format!("{model:?}, killed after operation {at}"));
    }
}

fn add(crashes: Crashes<'_>, report: &mut FaultReport, context: &str) {
    report.runs += 1;
    report.struck += 1;
    report.images += crashes.report.images;
    report.violations.extend(crashes.report.examples.iter().map(|example| format!("{context}: {example}")));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::ROOT;
    use crate::crash::durable;
    use crate::run::Run;
    use crate::sim::Rename;
    use rustix::io::Errno;
    use std::collections::BTreeMap;
    use std::path::Path;
    use tch_checkpoint::internal::{Disk, Posix};
    use tch_checkpoint::retention::{Best, Goal, Latest, RetentionPolicy};
    use tch_checkpoint::{CheckpointDirectory, CheckpointManager};

    /// Returns `true` if a mark has just got its name.
    fn ends_in_mark(ops: &[Op]) -> bool {
        matches!(ops.last(), Some(Op::Rename(Rename::Move { to, .. })) if to.text.starts_with("mark-"))
    }

    #[test]
    fn a_component_is_not_removed_before_its_mark_is_durable() {
        let mut report = FaultReport::default();
        for model in [Model::Weak, Model::Journal] {
            failing_syncs(model, ends_in_mark, 500, &mut report);
            kills(model, ends_in_mark, 500, &mut report);
        }
        println!("{report:?}");
        assert!(report.violations.is_empty(), "{}", report.violations.join("\n\n"));
        assert!(report.runs == 4 && report.images > 400);
    }

    /// The metric `loss` of each checkpoint that is there.
    fn losses(disk: &SimDisk) -> BTreeMap<u64, f64> {
        let infos = beside(disk).checkpoints().unwrap();
        infos.iter().filter_map(|info| Some((info.step?, *info.metrics.get("loss")?))).collect()
    }

    fn beside(disk: &SimDisk) -> CheckpointDirectory {
        CheckpointDirectory::in_storage(Arc::new(Posix::new(Arc::new(disk.clone()))), ROOT)
    }

    /// Every sync of a directory fails.
    fn without_syncs(disk: &SimDisk) -> CheckpointDirectory {
        let plan = Plan::of(Only::Directories, Fault::Errno(Errno::IO.raw_os_error()), &[0], true);
        let disk: Arc<dyn Disk> = Arc::new(FaultDisk::new(Arc::new(disk.clone()), plan));
        CheckpointDirectory::in_storage(Arc::new(Posix::new(disk)), ROOT)
    }

    /// A directory with checkpoints 1 and 2 of the losses 1 and 2, and a metric of another process, 0.5, for the
    /// second, which is not durable.
    fn evaluated(setup: &Setup) -> (SimDisk, Run, CheckpointManager) {
        let disk = SimDisk::new(empty_disk(setup), 1);
        let run = Run::new(setup);
        let checkpoint = run.checkpoint(Arc::new(disk.clone())).unwrap();
        let builder = CheckpointManager::builder(checkpoint, Path::new(ROOT)).save_options(run.options());
        let mut manager = builder.max_to_keep(1).keep(Best::new("loss", Goal::Minimize, 1)).open().unwrap();
        for step in 1..=2 {
            run.set(step);
            manager.save_with_metrics(step, [("loss", step as f64)]).unwrap();
        }
        assert!(without_syncs(&disk).add_metrics("ckpt-2", [("loss", 0.5)]).is_err());
        assert_eq!(losses(&disk), BTreeMap::from([(1, 1.0), (2, 0.5)]));
        (disk, run, manager)
    }

    #[test]
    fn a_checkpoint_is_not_removed_for_a_better_one_whose_metric_is_not_durable() {
        let setup = Setup { keep: Some(1), bytes: 8, ..Setup::default() };
        let (disk, run, mut manager) = evaluated(&setup);
        run.set(3);
        manager.save_with_metrics(3, [("loss", 3.0)]).unwrap();
        assert_eq!(losses(&disk), BTreeMap::from([(2, 0.5), (3, 3.0)]));
        let after = SimDisk::new(durable(&empty_disk(&setup), &disk.ops()), 0);
        assert_eq!(losses(&after), BTreeMap::from([(2, 0.5), (3, 3.0)]));
    }

    #[test]
    fn prune_does_not_rely_on_a_metric_that_is_not_durable() {
        let setup = Setup { keep: Some(1), bytes: 8, ..Setup::default() };
        let (disk, _, manager) = evaluated(&setup);
        manager.close().unwrap();
        let policies: [Arc<dyn RetentionPolicy>; 2] =
            [Arc::new(Latest(1)), Arc::new(Best::new("loss", Goal::Minimize, 1))];
        let syncs = |disk: &SimDisk| disk.ops().iter().filter(|op| matches!(op, Op::SyncDirectory(_))).count();
        let before = syncs(&disk);
        // The disk that cannot make it durable removes nothing.
        assert!(without_syncs(&disk).prune(&policies).is_err());
        assert_eq!((syncs(&disk), losses(&disk).len()), (before, 2));
        assert_eq!(beside(&disk).prune(&policies).unwrap().removed.len(), 1);
        let after = SimDisk::new(durable(&empty_disk(&setup), &disk.ops()), 0);
        assert_eq!(losses(&after), BTreeMap::from([(2, 0.5)]));
    }

    /// The second call finds no pin, since the first has removed it; that is durable all the same.
    #[test]
    fn a_pin_that_is_removed_twice_is_removed_durably() {
        let setup = Setup { bytes: 8, ..Setup::default() };
        let disk = SimDisk::new(empty_disk(&setup), 1);
        program(&disk, Arc::new(disk.clone()), &setup, 1);
        beside(&disk).pin("ckpt-1", "p", "").unwrap();
        assert!(without_syncs(&disk).unpin("ckpt-1", "p").is_err());
        assert!(!beside(&disk).unpin("ckpt-1", "p").unwrap());
        let after = SimDisk::new(durable(&empty_disk(&setup), &disk.ops()), 0);
        assert!(beside(&after).get("ckpt-1").unwrap().pins.is_empty());
    }
}
