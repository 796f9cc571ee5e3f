//! A real process on a real disk, killed before each of its file operations.

use super::faults::{Fault, FaultDisk, Plan};
use super::run::{Run, Setup, restore};
use super::system::System;
use std::io::{self, Write};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use tch_checkpoint::internal::Disk;

/// The result of [`kills`].
#[derive(Debug, Clone, Default)]
pub struct KillReport {
    /// The number of processes killed, each at a different point.
    pub killed: u64,
    /// The violations.
    pub violations: Vec<String>,
}

const SAVES: u64 = 3;

fn setup(keep: usize) -> Setup {
    Setup { keep: Some(keep), bytes: 5000, ..Setup::default() }
}

/// The process: opens, restores, saves three times, and says on its standard output what was saved. It ends itself
/// without any cleaning up before its operation `at`.
pub fn kill_child(directory: &Path, keep: usize, at: u64) -> tch_checkpoint::Result<()> {
    let plan = Plan::new(Fault::Die, &[at], false);
    let disk: Arc<dyn Disk> = Arc::new(FaultDisk::new(Arc::new(System::default()), plan));
    let run = Run::new(&setup(keep));
    let mut manager = run.open(disk, directory)?;
    let first = restore(&mut manager)?.restored.and_then(|status| status.step()).map_or(1, |step| step + 1);
    for step in first..first + SAVES {
        run.set(step);
        manager.save_at(step)?;
        let mut out = io::stdout().lock();
        let _ = writeln!(out, "saved {step}").and_then(|()| out.flush());
    }
    manager.close()
}

/// Kills the process that `command` starts (it is given the directory, how many to keep, and the operation) before
/// every operation, in a directory under `scratch`: each time the next process continues where the last one was killed.
pub fn kills(scratch: &Path, mut command: impl FnMut(&Path, usize, u64) -> Command) -> io::Result<KillReport> {
    let mut report = KillReport::default();
    for keep in [1, 2] {
        let directory = scratch.join(format!("keep-{keep}"));
        for at in 0.. {
            let one = directory.join(format!("run-{at}"));
            std::fs::create_dir_all(&directory)?;
            let mut acknowledged = 0;
            let mut ended = false;
            // Twice, so that the second starts with what the first left.
            for round in 0..2 {
                let output = command(&one, keep, at).output()?;
                let said = String::from_utf8_lossy(&output.stdout).into_owned();
                let saved = said.lines().filter_map(|line| line.split("saved ").nth(1)?.trim().parse().ok());
                acknowledged = saved.fold(acknowledged, u64::max);
                ended = output.status.success();
                report.killed += u64::from(!ended);
                let context = format!("keep {keep}, killed at {at}, round {round}");
                report.violations.extend(look(&one, &one.with_extension("copy"), &setup(keep), acknowledged, &context));
            }
            let _ = std::fs::remove_dir_all(&one);
            if ended {
                break;
            }
        }
    }
    Ok(report)
}

/// What breaks a promise in what a reader finds in the directory, and then a manager in a copy of it: the next process
/// is to find what the killed one left.
pub(super) fn look(directory: &Path, copy: &Path, setup: &Setup, acknowledged: u64, context: &str) -> Vec<String> {
    let mut violations = Vec::new();
    let mut broken = |what: String| violations.push(format!("{context}: {what}"));
    match tch_checkpoint::list_checkpoints(directory) {
        Ok(listing) => {
            let listed =
                listing.checkpoints.iter().flat_map(|listed| tch_checkpoint::verify_checkpoint(&listed.path).problems);
            listed.chain(listing.damaged.into_iter().map(|(_, e)| e)).for_each(|e| broken(e.to_string()));
        }
        Err(e) => broken(format!("it cannot be listed: {e}")),
    }
    // The process was killed before it created the directory.
    if !directory.exists() {
        if acknowledged > 0 {
            broken(format!("{acknowledged} was acknowledged, there is no directory"));
        }
        return violations;
    }
    let _ = std::fs::remove_dir_all(copy);
    let copied = Command::new("cp").arg("-r").arg(directory).arg(copy).status();
    if !copied.is_ok_and(|status| status.success()) {
        broken("it cannot be copied".into());
        return violations;
    }
    let run = Run::new(setup);
    let result = run.open(Arc::new(System::default()), copy).and_then(|mut manager| {
        let started = restore(&mut manager)?;
        Ok((started.restored.and_then(|status| status.step()).unwrap_or(0), manager.checkpoints()))
    });
    match result {
        Ok((step, there)) => {
            if step < acknowledged || step > 0 && !run.is_at(step) || step == 0 && !run.is_untouched() {
                broken(format!("{acknowledged} was acknowledged, {step} is restored"));
            }
            if there.len() < setup.keep.unwrap_or(usize::MAX).min(acknowledged as usize) {
                broken(format!("only {there:?} are there"));
            }
        }
        Err(e) => broken(format!("it cannot be restored: {e}")),
    }
    for entry in std::fs::read_dir(copy).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(".t") || name.starts_with("damaged-") {
            broken(format!("{name} is left behind"));
        }
    }
    let _ = std::fs::remove_dir_all(copy);
    violations
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHILD: &str = "TORTURE_KILL";

    /// The process that [`a_killed_process_loses_nothing`] kills; not a test of its own.
    #[test]
    fn child() {
        let Ok(order) = std::env::var(CHILD) else { return };
        let mut parts = order.splitn(3, ' ');
        let mut number = || parts.next().and_then(|part| part.parse::<u64>().ok());
        let (Some(keep), Some(at)) = (number(), number()) else { return };
        if let Some(directory) = parts.next() {
            kill_child(Path::new(directory), keep as usize, at).unwrap();
        }
    }

    #[test]
    #[cfg_attr(libtorch, ignore = "hundreds of processes would load libtorch; it runs without libtorch")]
    fn a_killed_process_loses_nothing() {
        let scratch = tempfile::tempdir().unwrap();
        let this = std::env::current_exe().unwrap();
        let command = |directory: &Path, keep: usize, at: u64| {
            let mut command = Command::new(&this);
            command.args(["--exact", "kills::tests::child", "--nocapture"]);
            command.env(CHILD, format!("{keep} {at} {}", directory.display()));
            command
        };
        let report = kills(scratch.path(), command).unwrap();
        println!("{report:?}");
        assert!(report.violations.is_empty(), "{}", report.violations.join("\n"));
        assert!(report.killed > 100);
    }
}
