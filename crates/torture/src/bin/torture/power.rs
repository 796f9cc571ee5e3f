//! `torture power`: in a mount namespace of its own, so that nothing stays mounted however it ends.

use std::path::Path;
use std::process::Command;
use tch_checkpoint::Durability;
use tch_checkpoint_torture::{FileSystem, PowerReport, PowerRun, power, power_child};

/// Says that the program runs in the namespace.
const INSIDE: &str = "--inside";

pub(crate) fn cut(args: &[String], scratch: &Path, only: Option<&str>, cuts: u64, seed: u64) -> bool {
    if !args.iter().any(|arg| arg == INSIDE) {
        let this = std::env::current_exe().unwrap_or_else(|_| "torture".into());
        let status = Command::new("unshare").arg("-m").arg(this).args(args).arg(INSIDE).status();
        return match status {
            Ok(status) => status.success(),
            Err(e) => {
                println!("SKIPPED: power: no mount namespace: {e}");
                true
            }
        };
    }
    let scratch = scratch.with_extension("power");
    let wanted = |kind: &FileSystem| only.is_none_or(|name| name == kind.name());
    let passed = FileSystem::ALL.into_iter().filter(wanted).fold(true, |passed, kind| {
        let run = PowerRun { file_system: kind, cuts, seed, durability: Durability::PowerLoss };
        // That what is not synced is lost shows that a loss would be seen.
        let unsynced = PowerRun { cuts: cuts.div_ceil(6), durability: Durability::ProcessCrash, ..run.clone() };
        one(&scratch, &run) & one(&scratch, &unsynced) & passed
    });
    let _ = std::fs::remove_dir_all(&scratch);
    passed
}

fn one(scratch: &Path, run: &PowerRun) -> bool {
    let synced = run.durability == Durability::PowerLoss;
    let name = format!("power: {}, {}", run.file_system.name(), if synced { "synced" } else { "NOT synced" });
    let scratch = scratch.join(format!("{}-{synced}", run.file_system.name()));
    let this = std::env::current_exe().unwrap_or_else(|_| "torture".into());
    let result = power(&scratch, run, |directory, seed, durability| {
        let mut command = Command::new(&this);
        let level = if durability == Durability::PowerLoss { "synced" } else { "unsynced" };
        command.arg("power-child").arg(directory).args([seed.to_string(), level.to_string()]);
        command
    });
    let _ = std::fs::remove_dir_all(&scratch);
    match result {
        Ok(PowerReport { skipped: Some(why), .. }) => {
            println!("SKIPPED: {name}: {why}");
            true
        }
        Ok(report) => {
            println!(
                "{name}: {} cuts ({} with the journal, {} of the device), {} saves acknowledged, {} cuts broke a promise",
                report.cuts, report.with_journal, report.of_device, report.acknowledged, report.broken
            );
            if synced {
                report.violations.iter().take(10).for_each(|violation| println!("{violation}"));
            } else if report.broken == 0 {
                println!("  and yet nothing was synced: these cuts cannot lose anything");
            }
            synced == (report.broken == 0)
        }
        Err(e) => {
            println!("{name}: cannot be run: {e}");
            false
        }
    }
}

/// The process whose power is cut.
pub(crate) fn child(directory: &str, seed: &str, level: &str) -> bool {
    let durability = if level == "synced" { Durability::PowerLoss } else { Durability::ProcessCrash };
    seed.parse().is_ok_and(|seed| power_child(Path::new(directory), seed, durability).is_ok())
}
