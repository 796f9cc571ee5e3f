//! Managers of other names that save into the same directory.

use super::{KEEP, setup};
use crate::run::{Run, restore};
use crate::system::System;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use tch_checkpoint::{CheckpointManager, Result};

/// In the environment of a process that saves until it is killed.
pub(super) const LEFT_TO_DIE: &str = "TORTURE_LEFT_TO_DIE";

/// Opens the directory as soon as nobody else writes there, continues from the newest of its name, and saves.
pub(super) fn save_some(root: &Path, name: &str, saves: u64, mut saved: impl FnMut(u64)) -> Result<()> {
    let run = Run::new(&setup());
    let open = || {
        let checkpoint = run.checkpoint(Arc::new(System::default()))?;
        let builder = CheckpointManager::builder(checkpoint, root).save_options(run.options());
        builder.checkpoint_name(name).max_to_keep(KEEP).fresh_start().open()
    };
    let mut opened = open();
    for _ in 0..30 {
        if opened.is_ok() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
        opened = open();
    }
    let mut manager = opened?;
    let started = restore(&mut manager)?;
    let before = started.restored.and_then(|status| status.step()).unwrap_or(0);
    for step in (before + 1..).take(saves as usize) {
        run.set(step);
        manager.save_at(step)?;
        saved(step);
    }
    manager.close()
}

/// Saves, and reports it, until it is killed.
pub(super) fn save_until_killed(root: &Path) {
    let _ = save_some(root, "killed", u64::MAX >> 1, |step| {
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "saved {step}").and_then(|()| out.flush());
    });
}
