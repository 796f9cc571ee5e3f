//! `torture processes`.

use std::path::Path;
use std::process::Command;
use std::time::Duration;
use tch_checkpoint_torture::{process_child, processes};

pub(crate) fn run(scratch: &Path, minutes: u64, seed: u64) -> bool {
    let this = std::env::current_exe().unwrap_or_else(|_| "torture".into());
    let result = std::fs::create_dir_all(scratch).and_then(|()| {
        processes(scratch, Duration::from_secs(60 * minutes), seed, |role, directory, seed| {
            let mut command = Command::new(&this);
            command.args(["process-child", role]).arg(directory).arg(seed.to_string());
            command
        })
    });
    let _ = std::fs::remove_dir_all(scratch);
    match result {
        Ok(report) => {
            println!(
                "processes: {minutes} minutes, {} killed; writers were let in {} times, {} saves acknowledged; \
                 {} restores by readers, {} times the chosen one was gone; {} violations",
                report.killed,
                report.opened,
                report.saved,
                report.restored,
                report.again,
                report.violations.len()
            );
            report.violations.iter().take(10).for_each(|violation| println!("{violation}"));
            report.violations.is_empty()
        }
        Err(e) => {
            println!("processes: cannot be run: {e}");
            false
        }
    }
}

pub(crate) fn child(role: &str, directory: &str, seed: &str) -> bool {
    let Ok(seed) = seed.parse() else { return false };
    process_child(role, Path::new(directory), seed).inspect_err(|e| println!("BROKEN: {e}")).is_ok()
}
