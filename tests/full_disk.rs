//! A full disk, a limit of file sizes, a read-only file system: on real ones, in a mount namespace of the test's own
//! where the system allows that.

mod common;

use common::Memory;
use std::fs;
use std::path::Path;
use std::process::Command;
use tch_checkpoint::{Checkpoint, CheckpointManager, Counter, Error, latest_checkpoint};

const CHILD: &str = "FULL_DISK_CHILD";

struct Run {
    step: Counter,
    parts: Vec<Memory>,
}

impl Run {
    fn new() -> Run {
        Run { step: Counter::new(0), parts: (0..3).map(|i| Memory::seeded(2000, i)).collect() }
    }

    fn open(&self, dir: &Path, keep: usize) -> Result<CheckpointManager, Error> {
        CheckpointManager::builder(self.checkpoint(), dir).max_to_keep(keep).open()
    }

    fn checkpoint(&self) -> Checkpoint {
        let mut checkpoint = Checkpoint::new().track("step", &self.step).unwrap();
        for (i, part) in self.parts.iter().enumerate() {
            checkpoint.add(&format!("part{i}"), part).unwrap();
        }
        checkpoint
    }

    fn set(&self, step: i64) {
        self.step.set(step);
        for (i, part) in self.parts.iter().enumerate() {
            *part.bytes() = Memory::seeded(2000, step as u64 * 10 + i as u64).bytes().clone();
        }
    }

    fn is_at(&self, step: i64) -> bool {
        let right =
            |(i, part): (usize, &Memory)| *part.bytes() == *Memory::seeded(2000, step as u64 * 10 + i as u64).bytes();
        self.step.get() == step && self.parts.iter().enumerate().all(right)
    }
}

/// Runs this test program again, with one test, in a shell.
fn again(test: &str, folder: &Path, script: &str) -> Option<String> {
    let this = std::env::current_exe().unwrap();
    let child = format!("\"{}\" --exact {test} --nocapture", this.display());
    let script = script.replace("CHILD", &child).replace("FOLDER", &folder.display().to_string());
    let mut command = if script.contains("mount") { Command::new("unshare") } else { Command::new("env") };
    if script.contains("mount") {
        command.args(["-r", "-m"]);
    }
    let output = command.args(["sh", "-c", &script]).env(CHILD, folder).output();
    let output = match output {
        Ok(output) => output,
        Err(e) => {
            println!("SKIPPED: no user and mount namespace: {e}");
            return None;
        }
    };
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if text.contains("NOT MOUNTED") || text.contains("unshare") {
        println!("SKIPPED: no user and mount namespace: {text}");
        return None;
    }
    assert!(output.status.success(), "{text}");
    Some(text)
}

#[test]
fn on_a_full_disk_nothing_is_lost_and_the_next_save_works() {
    if let Some(folder) = std::env::var_os(CHILD) {
        return every_size(Path::new(&folder));
    }
    let folder = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs -o size=400k tmpfs FOLDER || { echo NOT MOUNTED; exit 0; }; CHILD";
    if let Some(text) = again("on_a_full_disk_nothing_is_lost_and_the_next_save_works", folder.path(), script) {
        println!("{text}");
        assert!(text.contains("sizes tried"));
    }
}

/// Leaves 0, 1, 2 … pages free and saves.
fn every_size(folder: &Path) {
    let (root, filler) = (folder.join("run"), folder.join("filler"));
    let (mut failed, mut saved) = (0, 0);
    let run = Run::new();
    let mut manager = run.open(&root, 1).unwrap();
    run.set(1);
    manager.save_at(1).unwrap();
    let mut newest = 1;
    // Beside what was removed and waits to be overwritten: that may go.
    let trash = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with(".trash-");
    let used = || fs::read_dir(&root).unwrap().filter(|entry| !trash(entry.as_ref().unwrap())).count();
    for pages in 0.. {
        // All that is free, but for some pages.
        let mut blocks = 0;
        fs::write(&filler, "").unwrap();
        let mut file = fs::OpenOptions::new().append(true).open(&filler).unwrap();
        while std::io::Write::write_all(&mut file, &[1; 4096]).is_ok() {
            blocks += 1;
        }
        if pages > blocks {
            break;
        }
        file.set_len((blocks - pages) * 4096).unwrap();
        drop(file);
        let (before, list, counter) = (used(), manager.checkpoints(), manager.checkpoint().save_counter());
        let step = newest + 1;
        run.set(step);
        match manager.save_at(step) {
            Ok(_) => {
                saved += 1;
                newest = step;
            }
            Err(error) => {
                failed += 1;
                assert!(matches!(error, Error::NoSpace { .. }) && error.to_string().contains("free some"), "{error}");
                assert_eq!(
                    (before, list, counter),
                    (used(), manager.checkpoints(), manager.checkpoint().save_counter())
                );
                // Another process can restore while the disk is full, and a manager can be opened on it.
                drop(manager);
                let other = Run::new();
                let mut opened = other.open(&root, 1).unwrap();
                opened.restore_or_initialize().unwrap();
                assert!(other.is_at(newest));
                drop(opened);
                manager = run.open(&root, 1).unwrap();
                manager.restore_or_initialize().unwrap();
                fs::remove_file(&filler).unwrap();
                run.set(step);
                manager.save_at(step).unwrap();
                newest = step;
            }
        }
        let _ = fs::remove_file(&filler);
        assert_eq!(manager.checkpoints().len(), 1);
    }
    println!("{} sizes tried, {failed} too small, {saved} large enough", failed + saved);
    assert!(failed > 5 && saved > 5);
}

#[test]
fn on_a_read_only_file_system_saving_is_an_error_and_restoring_works() {
    if let Some(folder) = std::env::var_os(CHILD) {
        let folder = Path::new(&folder).join("run");
        let run = Run::new();
        if !folder.exists() {
            run.set(1);
            run.open(&folder, 2).unwrap().save_at(1).unwrap();
            return;
        }
        let error = run.open(&folder, 2).unwrap_err();
        assert!(matches!(error, Error::Io { .. }) && error.to_string().contains("read-only"), "{error}");
        run.checkpoint().restore(latest_checkpoint(&folder).unwrap().unwrap()).unwrap();
        assert!(run.is_at(1));
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let script =
        "mount -t tmpfs tmpfs FOLDER || { echo NOT MOUNTED; exit 0; }; CHILD && mount -o remount,ro FOLDER && CHILD";
    again("on_a_read_only_file_system_saving_is_an_error_and_restoring_works", folder.path(), script);
}

#[test]
fn a_limit_of_file_sizes_is_an_error_and_leaves_nothing() {
    if let Some(folder) = std::env::var_os(CHILD) {
        let folder = Path::new(&folder);
        let error = Run::new().open(folder, 2).unwrap().save_at(1).unwrap_err();
        assert!(matches!(error, Error::NoSpace { .. }), "{error}");
        assert_eq!(fs::read_dir(folder).unwrap().count(), 1, "only the lock file");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let script = "trap '' XFSZ; ulimit -f 8; CHILD";
    again("a_limit_of_file_sizes_is_an_error_and_leaves_nothing", folder.path(), script);
}
