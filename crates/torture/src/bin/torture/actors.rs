//! `torture actors`.

use std::path::Path;
use std::process::Command;
use tch_checkpoint_torture::{Beside, actor_child, actors};

pub(crate) fn run(scratch: &Path, operations: u64, seed: u64) -> bool {
    let this = std::env::current_exe().unwrap_or_else(|_| "torture".into());
    let result = actors(scratch, operations, seed, Beside { careless: None, wanders: true }, |directory, seed| {
        let mut command = Command::new(&this);
        command.arg("actor-child").arg(directory).arg(seed.to_string());
        command
    });
    let _ = std::fs::remove_dir_all(scratch);
    match result {
        Ok(report) => {
            println!(
                "actors: {} operations; {} saves acknowledged, {} refused, {} restarts; of those looked at {} were right \
                 ({} out of the numbering), {} destroyed and reported; {} windows that nothing closes; {} violations; {:?}",
                report.operations,
                report.saved,
                report.refused,
                report.restarts,
                report.right,
                report.aside,
                report.reported,
                report.windows,
                report.violations.len(),
                report.did
            );
            report.violations.iter().take(10).for_each(|violation| println!("{violation}"));
            report.violations.is_empty()
        }
        Err(e) => {
            println!("actors: cannot be run: {e}");
            false
        }
    }
}

pub(crate) fn child(directory: &str, seed: &str) -> bool {
    seed.parse().is_ok_and(|seed| actor_child(Path::new(directory), seed).is_ok())
}
