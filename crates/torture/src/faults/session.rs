//! One session on a failing disk, and what must hold of every error in it.

use super::{FaultDisk, FaultReport, Plan};
use crate::check::ROOT;
use crate::run::{Run, Setup, restore};
use crate::sim::{Files, SimDisk};
use std::cell::Cell;
use std::path::Path;
use std::sync::Arc;
use tch_checkpoint::Error;
use tch_checkpoint::internal::{Disk, Posix, Source};

/// Checks that an error is typed, and names the path and the remedy.
pub(super) fn check_error(error: &Error, context: &str, report: &mut FaultReport) {
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

/// Returns `true` if a checkpoint is intact.
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
pub(super) fn session(start: &Files, setup: &Setup, plan: &Arc<Plan>, context: &str, report: &mut FaultReport) {
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
        // If the only checkpoint could not be read, the process must be restarted.
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

/// Opens again, and checks that what was acknowledged is restored and that nothing is left behind.
pub(super) fn recovered(
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
