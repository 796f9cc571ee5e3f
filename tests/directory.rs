//! A directory of checkpoints is an open directory: other programs rename, replace, link and remove in and around it.

mod common;

use common::Memory;
use common::child::{CHILD, again};
use common::run::Run;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use tch_checkpoint::retention::{Latest, RetentionPolicy};
use tch_checkpoint::{
    Background, Checkpoint, CheckpointDirectory, CheckpointManager, CheckpointManagerBuilder, CheckpointReader,
    CheckpointWatcher, Error, RestoreOptions, WhenBusy, checkpoints, latest_checkpoint, verify_checkpoint,
};

type Outcome = Result<(), Box<dyn std::error::Error>>;

impl Run {
    fn new() -> Run {
        Run::of(20_000)
    }

    fn builder(&self, dir: &Path) -> CheckpointManagerBuilder {
        CheckpointManager::builder(self.checkpoint(), dir).max_to_keep(2).fresh_start()
    }

    fn save(&self, manager: &mut CheckpointManager, step: u64) -> Result<(), Error> {
        self.set(step);
        manager.save_at(step).map(drop)
    }
}

fn is_intact(path: impl AsRef<Path>) -> bool {
    verify_checkpoint(path.as_ref()).is_intact()
}

#[test]
fn a_change_of_the_working_directory_changes_nothing() {
    if let Some(dir) = std::env::var_os(CHILD) {
        let dir = Path::new(&dir);
        for name in ["one", "two"] {
            fs::create_dir(dir.join(name)).unwrap();
        }
        std::env::set_current_dir(dir.join("one")).unwrap();
        let run = Run::new();
        let mut manager = run.builder(Path::new("run")).open().unwrap();
        for step in 1..=4 {
            run.save(&mut manager, step).unwrap();
            std::env::set_current_dir(dir.join("two")).unwrap();
        }
        assert!(!dir.join("two/run").exists());
        let latest = manager.latest_checkpoint().unwrap();
        assert_eq!(latest, dir.join("one/run/ckpt-4"));
        run.checkpoint().restore(latest).unwrap();
        assert_eq!(manager.checkpoints().len(), 2);
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let temp = temp.path().canonicalize().unwrap();
    again("a_change_of_the_working_directory_changes_nothing", &temp, "CHILD");
    assert_eq!(checkpoints(temp.join("one/run")).unwrap().len(), 2);
}

#[test]
fn a_handle_means_what_its_path_meant_when_it_was_made() {
    if let Some(dir) = std::env::var_os(CHILD) {
        let dir = Path::new(&dir);
        for name in ["one", "two"] {
            fs::create_dir(dir.join(name)).unwrap();
        }
        std::env::set_current_dir(dir.join("one")).unwrap();
        let beside = CheckpointDirectory::new("run");
        let mut watcher = CheckpointWatcher::new("run").timeout(Duration::ZERO);
        std::env::set_current_dir(dir.join("two")).unwrap();
        assert!(watcher.next().is_none());
        for (name, step) in [("one", 1), ("two", 2)] {
            let run = Run::new();
            let mut manager = run.builder(&dir.join(name).join("run")).open().unwrap();
            run.save(&mut manager, step).unwrap();
            manager.close().unwrap();
        }
        assert_eq!(beside.latest().unwrap().unwrap().step, Some(1));
        assert_eq!(watcher.next().unwrap().unwrap().step, Some(1));
        println!("as at first");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let text = again("a_handle_means_what_its_path_meant_when_it_was_made", dir.path(), "CHILD").unwrap();
    assert!(text.contains("as at first"), "{text}");
}

#[test]
fn a_handle_and_a_watcher_go_to_the_directory_that_takes_the_place_of_theirs() -> Outcome {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("run");
    let save = |step: u64| -> Outcome {
        let run = Run::new();
        let mut manager = run.builder(&path).open()?;
        run.save(&mut manager, step)?;
        Ok(manager.close()?)
    };
    save(1)?;
    let beside = CheckpointDirectory::new(&path);
    let watcher = CheckpointWatcher::new(&path).each().poll(Duration::from_millis(2));
    let mut watcher = watcher.timeout(Duration::from_millis(50));
    let mut next = || watcher.next().transpose().map(|found| found.and_then(|found| found.step));
    beside.pin("ckpt-1", "first", "")?;
    assert_eq!((next()?, next()?), (Some(1), None));
    fs::rename(&path, dir.path().join("old"))?;
    assert_eq!((next()?, beside.checkpoints()?.len()), (None, 0));
    assert!(beside.pin("ckpt-1", "second", "").unwrap_err().is_not_found());
    assert!(!dir.path().join("old/ckpt-1/mark-pin-second.json").exists());
    save(2)?;
    assert_eq!((next()?, next()?), (Some(2), None));
    beside.add_metrics("ckpt-2", [("loss", 0.5)])?;
    assert_eq!(beside.latest()?.map(|info| info.metrics["loss"]), Some(0.5));
    // The new one of the same names.
    fs::remove_dir_all(&path)?;
    save(2)?;
    assert_eq!(next()?, Some(2));
    assert!(beside.latest()?.ok_or("none")?.metrics.is_empty());
    Ok(())
}

#[test]
fn a_watcher_whose_polls_fail_waits_between_them_and_ends() -> Outcome {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("run");
    fs::write(&path, "not a directory")?;
    let watcher = CheckpointWatcher::new(&path).poll(Duration::from_millis(20)).timeout(Duration::from_millis(100));
    let errors = watcher.map(|found| assert!(found.is_err())).count();
    assert!((1..=7).contains(&errors), "{errors}");
    Ok(())
}

#[test]
fn what_removes_makes_nothing_and_leaves_no_link_that_leads_nowhere() -> Outcome {
    let dir = tempfile::tempdir()?;
    let mistyped = CheckpointDirectory::new(dir.path().join("rnu"));
    assert!(mistyped.delete("ckpt-1").unwrap_err().is_not_found());
    let policies: [Arc<dyn RetentionPolicy>; 1] = [Arc::new(Latest(1))];
    assert!(mistyped.prune(&policies).unwrap_err().is_not_found());
    assert_eq!(fs::read_dir(dir.path())?.count(), 0);

    let run = Run::new();
    let mut manager = run.builder(dir.path()).max_to_keep(None).open()?;
    for step in 1..=4 {
        run.save(&mut manager, step)?;
    }
    manager.close()?;
    for (target, link) in [("ckpt-2", "latest"), ("ckpt-1", "best"), ("ckpt-3", "good"), ("elsewhere", "other")] {
        symlink(target, dir.path().join(link))?;
    }
    let links = || ["latest", "best", "good", "other"].map(|link| fs::symlink_metadata(dir.path().join(link)).is_ok());
    let beside = CheckpointDirectory::new(dir.path());
    beside.pin("ckpt-2", "keep", "")?;
    assert!(matches!(beside.delete("ckpt-2"), Err(Error::Pinned { .. })));
    assert_eq!(links(), [true; 4]);
    beside.unpin("ckpt-2", "keep")?;
    beside.delete("ckpt-2")?;
    assert_eq!(links(), [false, true, true, true]);
    beside.pin("ckpt-3", "keep", "")?;
    assert_eq!(beside.prune(&policies)?.removed.len(), 1);
    assert_eq!(links(), [false, false, true, true]);
    Ok(())
}

/// A mark that cannot be read may be a pin.
#[test]
fn what_may_be_pinned_is_not_deleted() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager = run.builder(dir.path()).open()?;
    run.save(&mut manager, 1)?;
    manager.pin("ckpt-1", "p", "")?;
    manager.close()?;
    symlink("ckpt-1", dir.path().join("latest"))?;
    let mark = dir.path().join("ckpt-1/mark-pin-p.json");
    let beside = CheckpointDirectory::new(dir.path());
    for content in ["{\"version\":9}", ""] {
        fs::write(&mark, content)?;
        let error = beside.delete("ckpt-1").unwrap_err();
        assert!(matches!(&error, Error::Unsupported { path, .. } if *path == mark), "{error:#}");
        assert!(is_intact(dir.path().join("latest")));
    }
    fs::remove_file(mark)?;
    beside.delete("ckpt-1")?;
    assert_eq!(checkpoints(dir.path())?, [""; 0]);
    Ok(())
}

#[test]
fn a_description_means_that_checkpoint_and_not_its_name() -> Outcome {
    for background in [false, true] {
        let dir = tempfile::tempdir()?;
        let run = Run::new();
        let builder = run.builder(dir.path());
        let mut manager = if background { builder.background(Background::new()) } else { builder }.open()?;
        run.save(&mut manager, 5)?;
        manager.wait()?;
        let beside = CheckpointDirectory::new(dir.path());
        let found = beside.latest()?.ok_or("none")?;
        beside.add_metrics(&found, [("loss", 0.5), ("accuracy", 0.5)])?;
        manager.pin(&found, "first", "")?;
        assert!(manager.unpin(&found, "first")?);
        // The state of that step is saved anew.
        run.set(6);
        manager.save_at(5)?;
        manager.wait()?;
        let gone = |result: Result<(), Error>| assert!(matches!(result, Err(Error::Removed { .. })), "{result:?}");
        gone(beside.add_metrics(&found, [("loss", 0.1)]));
        gone(beside.annotate(&found, "by", "the evaluator"));
        gone(beside.pin(&found, "best", ""));
        gone(beside.unpin(&found, "best").map(drop));
        gone(beside.get(&found).map(drop));
        gone(beside.metadata::<String>(&found, "none").map(drop));
        gone(manager.add_metrics(&found, [("loss", 0.1)]));
        gone(manager.pin(&found, "best", ""));
        manager.close()?;
        gone(beside.delete(&found));
        let now = beside.get("ckpt-5")?;
        assert!(now.metrics.is_empty() && now.pins.is_empty() && now.notes.is_empty());
        beside.delete(&now)?;
    }
    Ok(())
}

#[test]
fn a_warm_start_reads_what_its_path_meant_at_the_call() {
    if let Some(dir) = std::env::var_os(CHILD) {
        let dir = Path::new(&dir);
        fs::create_dir(dir.join("elsewhere")).unwrap();
        std::env::set_current_dir(dir).unwrap();
        let (pretrained, run) = (Run::new(), Run::new());
        let mut manager = pretrained.builder(Path::new("pretrained")).open().unwrap();
        pretrained.save(&mut manager, 7).unwrap();
        let builder = run.builder(Path::new("run")).initialize_from("pretrained/ckpt-7", RestoreOptions::new());
        let mut manager = builder.open().unwrap();
        std::env::set_current_dir(dir.join("elsewhere")).unwrap();
        assert!(manager.restore_or_initialize().unwrap().initialized.is_some());
        assert_eq!(run.step.get(), 7);
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    again("a_warm_start_reads_what_its_path_meant_at_the_call", temp.path(), "CHILD");
    assert!(temp.path().join("run").exists());
}

#[test]
fn the_run_that_took_the_place_of_a_renamed_one_is_left_alone() -> Outcome {
    for recycle in [true, false] {
        let dir = tempfile::tempdir()?;
        let (root, old) = (dir.path().join("run"), dir.path().join("old"));
        let (first, second) = (Run::new(), Run::new());
        let mut manager = first.builder(&root).recycle(recycle).open()?;
        first.save(&mut manager, 1)?;
        first.save(&mut manager, 2)?;
        fs::rename(&root, &old)?;
        let error = first.save(&mut manager, 3).unwrap_err();
        assert!(matches!(error, Error::Moved { .. }) && error.to_string().contains("renamed or removed"), "{error}");
        let mut other = second.builder(&root).open()?;
        for step in 1..=3 {
            second.save(&mut other, step)?;
        }
        let error = first.save(&mut manager, 3).unwrap_err();
        assert!(matches!(error, Error::Moved { .. }) && error.to_string().contains("taken the place"), "{error}");
        assert!(matches!(manager.restore_or_initialize(), Err(Error::Moved { .. })));
        drop(manager);
        assert_eq!(other.checkpoints(), [root.join("ckpt-2"), root.join("ckpt-3")]);
        let there = |path: &Path| {
            let names = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
            let mut names: Vec<String> = names.filter(|name| !name.starts_with(".trash")).collect();
            names.sort();
            names
        };
        assert_eq!(there(&old), [".lock", "checkpoint.json", "ckpt-1", "ckpt-2"]);
        assert_eq!(there(&root), [".lock", "checkpoint.json", "ckpt-2", "ckpt-3"]);
        // Once it is back in its place the first continues.
        other.close()?;
        fs::rename(&root, dir.path().join("second"))?;
        fs::rename(&old, &root)?;
        let mut manager = first.builder(&root).open()?;
        manager.restore_or_initialize()?;
        first.save(&mut manager, 3)?;
    }
    Ok(())
}

#[test]
fn a_lock_file_that_was_removed_is_taken_anew() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager = run.builder(dir.path()).open()?;
    run.save(&mut manager, 1)?;
    let lock = dir.path().join(".lock");
    fs::remove_file(&lock)?;
    run.save(&mut manager, 2)?;
    assert!(matches!(Run::new().builder(dir.path()).open(), Err(Error::Locked { .. })));
    // If another one was quicker, the directory is theirs.
    fs::remove_file(&lock)?;
    let other = Run::new().builder(dir.path()).open()?;
    let error = run.save(&mut manager, 3).unwrap_err();
    assert!(matches!(error, Error::Locked { .. }), "{error}");
    drop(other);
    run.save(&mut manager, 3)?;
    assert!(is_intact(dir.path().join("ckpt-3")));
    Ok(())
}

#[test]
fn a_save_of_the_managed_checkpoint_itself_needs_the_lock_too() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager = run.builder(dir.path()).open()?;
    run.save(&mut manager, 1)?;
    manager.checkpoint_mut().write(dir.path().join("aside"))?;
    fs::remove_file(dir.path().join(".lock"))?;
    let other = Run::new().builder(dir.path()).open()?;
    let refused = manager.checkpoint_mut().write(dir.path().join("beside"));
    assert!(matches!(refused, Err(Error::Locked { .. })) && !dir.path().join("beside").exists());
    other.close()?;
    manager.checkpoint_mut().write(dir.path().join("beside"))?;
    assert!(is_intact(dir.path().join("beside")));
    Ok(())
}

/// As tools do that move large files into a store and leave links.
#[test]
fn a_checkpoint_whose_files_became_links_is_not_called_damaged_when_it_would_be_removed() -> Outcome {
    let (dir, store) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let run = Run::new();
    let mut manager = run.builder(dir.path()).max_to_keep(1).open()?;
    run.save(&mut manager, 1)?;
    let manifest = dir.path().join("ckpt-1/manifest.json");
    fs::rename(&manifest, store.path().join("manifest.json"))?;
    symlink(store.path().join("manifest.json"), &manifest)?;
    for step in 2..=4 {
        run.save(&mut manager, step)?;
    }
    assert!(manifest.exists() && dir.path().join("ckpt-4").exists() && !dir.path().join("ckpt-2").exists());
    manager.close()?;
    // The link is gone again.
    fs::remove_file(&manifest)?;
    fs::rename(store.path().join("manifest.json"), &manifest)?;
    assert!(is_intact(dir.path().join("ckpt-1")));
    Ok(())
}

#[test]
fn an_archived_checkpoint_behind_a_link_outlives_the_rotation() -> Outcome {
    for recycle in [true, false] {
        let (dir, archive) = (tempfile::tempdir()?, tempfile::tempdir()?);
        let run = Run::new();
        let mut manager = run.builder(dir.path()).recycle(recycle).open()?;
        run.save(&mut manager, 1)?;
        let (link, archived) = (dir.path().join("ckpt-1"), archive.path().join("ckpt-1"));
        fs::rename(&link, &archived)?;
        symlink(&archived, &link)?;
        for step in 2..=6 {
            run.save(&mut manager, step)?;
        }
        manager.close()?;
        assert!(is_intact(&archived), "recycle: {recycle}");
        run.checkpoint().restore(&link)?;
        assert_eq!(run.step.get(), 1);
        assert_eq!(latest_checkpoint(dir.path())?, Some(dir.path().join("ckpt-6").into()));
        // The link too stays.
        assert!(fs::symlink_metadata(&link)?.is_symlink());
        // A link in the trash of a dead process is removed as a link.
        symlink(&archived, dir.path().join(format!(".trash-ckpt-1-{}", "0".repeat(32))))?;
        fs::create_dir(dir.path().join(format!(".trash-ckpt-2-{}", "0".repeat(32))))?;
        symlink(archive.path(), dir.path().join(format!(".trash-ckpt-2-{}/inside", "0".repeat(32))))?;
        drop(run.builder(dir.path()).open()?);
        assert!(is_intact(&archived));
        assert!(fs::read_dir(dir.path())?.all(|entry| !entry.unwrap().file_name().to_string_lossy().starts_with(".t")));
    }
    Ok(())
}

#[test]
fn only_what_is_listed_is_removed() -> Outcome {
    let (dir, elsewhere) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let (run, other) = (Run::new(), Run::new());
    let mut manager = run.builder(dir.path()).open()?;
    run.save(&mut manager, 1)?;
    run.save(&mut manager, 2)?;
    // Another checkpoint takes the place of the one that is to be removed.
    let mut foreign = other.builder(elsewhere.path()).open()?;
    other.save(&mut foreign, 1)?;
    fs::remove_dir_all(dir.path().join("ckpt-1"))?;
    fs::rename(elsewhere.path().join("ckpt-1"), dir.path().join("ckpt-1"))?;
    run.save(&mut manager, 3)?;
    assert!(is_intact(dir.path().join("ckpt-1")));
    // What cannot be identified is moved aside.
    fs::write(dir.path().join("ckpt-2/manifest.json"), "mine")?;
    fs::write(dir.path().join("ckpt-2/notes.txt"), "mine")?;
    let kept = |name: &str| {
        let names = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path().join(name));
        names.filter(|path| path.exists()).count()
    };
    run.save(&mut manager, 4)?;
    run.save(&mut manager, 5)?;
    assert_eq!(kept("notes.txt"), 1);
    Ok(())
}

#[test]
fn names_that_are_not_unicode_go_with_their_checkpoint() -> Outcome {
    use std::os::unix::ffi::OsStrExt;
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager = run.builder(dir.path()).open()?;
    run.save(&mut manager, 1)?;
    let odd = std::ffi::OsStr::from_bytes(b"\xff\xfe");
    fs::write(dir.path().join("ckpt-1").join(odd), "x")?;
    fs::create_dir(dir.path().join("ckpt-1/sub"))?;
    fs::write(dir.path().join("ckpt-1/sub").join(odd), "x")?;
    (2..=4).try_for_each(|step| run.save(&mut manager, step))?;
    manager.close()?;
    assert!(fs::read_dir(dir.path())?.all(|entry| !entry.unwrap().file_name().to_string_lossy().starts_with(".t")));
    Ok(())
}

#[test]
fn a_link_that_leads_nowhere_is_not_an_empty_directory() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = dir.path().join("run");
    symlink(dir.path().join("not mounted/run"), &run)?;
    for path in [run.clone(), run.join("below")] {
        let error = latest_checkpoint(&path).unwrap_err();
        assert!(error.to_string().contains("mounted"), "{error}");
        let error = Run::new().builder(&path).open().unwrap_err();
        assert!(error.to_string().contains("mounted"), "{error}");
        let error = Run::new().checkpoint().save(path.join("ckpt")).unwrap_err();
        assert!(error.to_string().contains("mounted"), "{error}");
    }
    assert_eq!(latest_checkpoint(dir.path().join("nothing"))?, None);
    // A link that leads somewhere is followed.
    fs::create_dir_all(dir.path().join("not mounted/run"))?;
    let saved = Run::new().checkpoint().save(run.join("ckpt"))?;
    assert_eq!(latest_checkpoint(&run)?, Some(saved));
    Ok(())
}

#[test]
fn what_a_killed_save_left_is_removed_by_the_next() -> Outcome {
    let dir = tempfile::tempdir()?;
    let left = dir.path().join(format!(".tmp-ckpt-1-{}", "a".repeat(32)));
    fs::create_dir(&left)?;
    fs::write(left.join("weights.safetensors"), "half")?;
    Run::new().checkpoint().save(dir.path().join("ckpt"))?;
    assert!(!left.exists());
    Ok(())
}

#[test]
fn what_is_mounted_in_a_leftover_is_left_alone() {
    const TEST: &str = "what_is_mounted_in_a_leftover_is_left_alone";
    const LEFTOVER: &str = ".trash-ckpt-1-0123456789abcdef0123456789abcdef/mounted";
    if let Some(dir) = std::env::var_os(CHILD) {
        let dir = Path::new(&dir);
        let run = Run::new();
        let mut manager = run.builder(dir).open().unwrap();
        run.save(&mut manager, 1).unwrap();
        assert!(dir.join(LEFTOVER).join("kept").exists());
        return println!("left alone");
    }
    let dir = tempfile::tempdir().unwrap();
    let script = format!(
        "mkdir -p DIRECTORY/{LEFTOVER} && mount -t tmpfs tmpfs DIRECTORY/{LEFTOVER} \
         || {{ echo NOT MOUNTED; exit 0; }}; touch DIRECTORY/{LEFTOVER}/kept; CHILD"
    );
    let Some(text) = again(TEST, dir.path(), &script) else { return };
    assert!(text.contains("left alone"), "{text}");
}

#[test]
fn a_name_that_could_not_be_removed_later_is_refused_at_once() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let error = run.builder(dir.path()).checkpoint_name("n".repeat(190)).open().unwrap_err();
    assert!(matches!(error, Error::InvalidArgument(_)) && error.to_string().contains("shorter"), "{error}");
    let error = run.checkpoint().save(dir.path().join("n".repeat(216))).unwrap_err();
    assert!(matches!(error, Error::InvalidArgument(_)), "{error}");
    let error = run.checkpoint().write(dir.path().join("é".repeat(106))).unwrap_err();
    assert!(matches!(error, Error::InvalidArgument(_)), "{error}");
    // The longest allowed name is created, saved to, restored from and removed.
    let name = "n".repeat(189);
    let mut manager = run.builder(dir.path()).checkpoint_name(&name).open()?;
    let step = u64::MAX - 10;
    (0..5).try_for_each(|more| run.save(&mut manager, step + more))?;
    assert_eq!(manager.checkpoints().len(), 2);
    let newest = manager.latest_checkpoint().ok_or("none")?;
    let passed_over = manager.pass_over(newest)?;
    manager.close()?;
    assert_eq!(checkpoints(dir.path())?.len(), 1);
    // One that was moved aside can be deleted, too.
    CheckpointDirectory::new(dir.path()).delete(&passed_over)?;
    assert!(!passed_over.exists() && CheckpointDirectory::new(dir.path()).list()?.removed.is_empty());
    Ok(())
}

#[test]
fn a_file_that_others_could_read_is_not_reused() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager = run.builder(dir.path()).open()?;
    for step in 1..=8 {
        run.save(&mut manager, step)?;
        let file = |name: &str| dir.path().join(format!("ckpt-{step}")).join(name);
        let mode = |name: &str| fs::metadata(file(name)).unwrap().mode();
        assert_eq!(mode("weights.safetensors"), mode("manifest.json"));
        fs::set_permissions(file("weights.safetensors"), fs::Permissions::from_mode(0o666))?;
    }
    Ok(())
}

/// An access control list with one more user, as the system stores it.
fn acl(user: u32) -> Vec<u8> {
    let entry =
        |tag: u16, rights: u16, id: u32| [&tag.to_le_bytes()[..], &rights.to_le_bytes(), &id.to_le_bytes()].concat();
    let none = u32::MAX;
    let entries = [entry(1, 6, none), entry(2, 4, user), entry(4, 4, none), entry(16, 4, none), entry(32, 0, none)];
    [&2u32.to_le_bytes()[..], &entries.concat()].concat()
}

#[test]
fn a_file_with_other_rights_under_the_same_mode_is_not_reused() -> Outcome {
    use rustix::fs::{XattrFlags, getxattr, setxattr};
    let dir = tempfile::tempdir()?;
    if setxattr(dir.path(), "system.posix_acl_default", &acl(4321), XattrFlags::empty()).is_err() {
        println!("SKIPPED: no access control lists on this file system");
        return Ok(());
    }
    let run = Run::new();
    let mut manager = run.builder(dir.path()).open()?;
    for step in 1..=8 {
        run.save(&mut manager, step)?;
        let file = dir.path().join(format!("ckpt-{step}/weights.safetensors"));
        let mut list = vec![0; 4096];
        let length = getxattr(&file, "system.posix_acl_access", &mut list[..])?;
        assert!(list[..length] == acl(4321), "step {step}");
        setxattr(&file, "system.posix_acl_access", &acl(1234), XattrFlags::empty())?;
    }
    Ok(())
}

/// Opens whatever a manager moves out of sight, again and again, as a crawler does.
fn crawl(dir: &Path) {
    use std::os::unix::fs::FileExt;
    let mut seen = 0_u64;
    println!("crawling");
    while !dir.join("stop").exists() {
        for entry in fs::read_dir(dir.join("run")).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !name.starts_with(".t") {
                continue;
            }
            for file in fs::read_dir(entry.path()).into_iter().flatten().flatten() {
                let Ok(open) = fs::File::open(file.path()) else { continue };
                let read = || {
                    let mut bytes = vec![0; 64];
                    open.read_exact_at(&mut bytes, 4096).map(|()| bytes)
                };
                // A file that is open under a name in the trash is never written again.
                if let (true, Ok(before)) = (name.starts_with(".trash-"), read()) {
                    seen += 1;
                    std::thread::sleep(std::time::Duration::from_micros(300));
                    assert!(read().is_ok_and(|after| after == before), "overwritten: {}", file.path().display());
                }
            }
        }
    }
    println!("{seen} looked at");
}

#[test]
fn who_opens_what_is_being_reused_neither_ends_the_process_nor_sees_a_change() -> Outcome {
    const TEST: &str = "who_opens_what_is_being_reused_neither_ends_the_process_nor_sees_a_change";
    if let Some(dir) = std::env::var_os(CHILD) {
        crawl(Path::new(&dir));
        return Ok(());
    }
    let temp = tempfile::tempdir()?;
    let start = || {
        let this = std::env::current_exe().unwrap();
        let mut command = Command::new(this);
        command.args(["--exact", TEST, "--nocapture"]).env(CHILD, temp.path());
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn()
    };
    let crawlers = [start()?, start()?];
    let run = Run::new();
    let mut manager = run.builder(&temp.path().join("run")).max_to_keep(1).open()?;
    let begun = std::time::Instant::now();
    let mut step = 0;
    while step < 600 && (step < 100 || begun.elapsed() < std::time::Duration::from_secs(8)) {
        step += 1;
        run.save(&mut manager, step)?;
    }
    fs::write(temp.path().join("stop"), "")?;
    for crawler in crawlers {
        let output = crawler.wait_with_output()?;
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{text}");
        println!("{step} saves, {}", text.lines().find(|line| line.contains("looked at")).unwrap_or_default());
    }
    assert!(is_intact(manager.latest_checkpoint().unwrap()));
    Ok(())
}

#[test]
fn a_leased_file_is_waited_for() -> Outcome {
    use std::os::fd::AsRawFd;
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let path = run.checkpoint().save(dir.path().join("ckpt"))?;
    let file = fs::OpenOptions::new().write(true).open(path.join("weights.safetensors"))?;
    // SAFETY: the descriptor is open, and the calls touch no memory of ours. 10 is F_SETSIG: SIGURG is ignored.
    let leased = unsafe {
        libc::fcntl(file.as_raw_fd(), 10, libc::SIGURG) == 0
            && libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK) == 0
    };
    if !leased {
        println!("SKIPPED: no leases here");
        return Ok(());
    }
    let holder = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(300));
        drop(file);
    });
    assert!(CheckpointReader::open(&path)?.verify().is_intact());
    holder.join().unwrap();
    Ok(())
}

#[test]
fn a_forked_child_neither_keeps_the_lock_nor_may_write() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager = run.builder(dir.path()).open()?;
    run.save(&mut manager, 1)?;
    run.save(&mut manager, 2)?;
    run.save(&mut manager, 3)?;
    // SAFETY: the child uses nothing that another thread of the parent could have locked but the allocator, which the
    // C library sees to, and ends without running anything else.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let refused = matches!(manager.save_at(4), Err(Error::Moved { .. }));
        let aside = manager.checkpoint_mut().write(dir.path().join("aside"));
        let refused = refused && matches!(aside, Err(Error::Moved { .. }));
        drop(manager);
        let there = dir.path().join("ckpt-3").exists() && !dir.path().join("ckpt-4").exists();
        let there = there && !dir.path().join("aside").exists();
        let locked = matches!(Run::new().builder(dir.path()).open(), Err(Error::Locked { .. }));
        // SAFETY: as above.
        unsafe { libc::_exit(i32::from(!(refused && there && locked))) };
    }
    let mut status = 0;
    // SAFETY: the pointer is that of a variable that outlives the call.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0, "the child saved, or took away what is its parent's");
    // A child that lives on.
    // SAFETY: the child only waits, and is killed.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: as above.
        unsafe {
            libc::sleep(60);
            libc::_exit(0)
        };
    }
    run.save(&mut manager, 4)?;
    manager.close()?;
    let reopened = run.builder(dir.path()).open();
    // SAFETY: the child is ours, and not yet waited for.
    unsafe {
        libc::kill(child, libc::SIGKILL);
        libc::waitpid(child, &raw mut status, 0);
    }
    reopened?;
    Ok(())
}

/// In the child, the thread that writes the save is not there and never ends.
#[test]
fn a_forked_child_does_not_wait_for_the_save_of_its_parent() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let (done, ends) = std::sync::mpsc::channel::<()>();
    let ends = std::sync::Mutex::new(ends);
    let builder = run.builder(dir.path()).background(Background::new().when_busy(WhenBusy::Skip));
    let builder = builder.on_saved(move |_| -> Result<(), Error> {
        let _ = ends.lock().map(|ends| ends.recv());
        Ok(())
    });
    let mut manager = builder.open()?;
    run.save(&mut manager, 1)?;
    while !dir.path().join("ckpt-1").exists() {
        std::thread::yield_now();
    }
    // SAFETY: the child uses nothing that another thread of the parent could have locked but the allocator, which the
    // C library sees to, and ends without running anything else.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: it ends the child if a call below does not return.
        unsafe { libc::alarm(30) };
        let is_refused = |result: Result<(), Error>| matches!(result, Err(Error::Moved { .. }));
        let refused = is_refused(manager.wait_timeout(Duration::from_secs(3600)).map(drop))
            && is_refused(manager.save_if_due(2).map(drop))
            && is_refused(manager.pin("ckpt-1", "p", ""))
            && is_refused(manager.wait());
        drop(manager);
        // SAFETY: as above.
        unsafe { libc::_exit(i32::from(!refused)) };
    }
    let mut status = 0;
    // SAFETY: the pointer is that of a variable that outlives the call.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    done.send(())?;
    manager.close()?;
    assert_eq!(status, 0, "the child waited, or took its calls for successful");
    assert!(is_intact(dir.path().join("ckpt-1")));
    Ok(())
}

#[test]
fn many_components_need_few_open_files() {
    const TEST: &str = "many_components_need_few_open_files";
    let many = 2000;
    if let Some(dir) = std::env::var_os(CHILD) {
        let dir = Path::new(&dir);
        let parts: Vec<Memory> = (0..many).map(|i| Memory::seeded(4, i)).collect();
        let mut checkpoint = Checkpoint::new();
        for (i, part) in parts.iter().enumerate() {
            checkpoint.track_mut(&format!("part{i}"), part).unwrap();
        }
        let mut manager = CheckpointManager::builder(checkpoint, dir).max_to_keep(1).open().unwrap();
        for step in 1..=3 {
            manager.save_at(step).unwrap();
        }
        for part in &parts {
            part.bytes().fill(0);
        }
        manager.restore_or_initialize().unwrap();
        assert!(parts.iter().enumerate().all(|(i, part)| *part.bytes() == *Memory::seeded(4, i as u64).bytes()));
        assert!(is_intact(dir.join("ckpt-3")));
        println!("all restored");
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    assert!(again(TEST, temp.path(), "ulimit -n 512; CHILD").unwrap().contains("all restored"));
}

#[test]
fn many_checkpoints_of_many_components_are_listed_with_few_open_files() {
    const TEST: &str = "many_checkpoints_of_many_components_are_listed_with_few_open_files";
    if let Some(dir) = std::env::var_os(CHILD) {
        let directory = CheckpointDirectory::new(Path::new(&dir));
        let list = directory.list().unwrap();
        assert_eq!((directory.checkpoints().unwrap().len(), list.damaged.len()), (3, 0));
        println!("all listed");
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let parts: Vec<Memory> = (0..256).map(|i| Memory::seeded(4, i)).collect();
    let mut checkpoint = Checkpoint::new();
    for (i, part) in parts.iter().enumerate() {
        checkpoint.track_mut(&format!("part{i}"), part).unwrap();
    }
    let mut manager = CheckpointManager::builder(checkpoint, temp.path()).max_to_keep(None).open().unwrap();
    (1..=3).for_each(|step| drop(manager.save_at(step).unwrap()));
    manager.close().unwrap();
    // Fewer than one of them has files: up to eight are examined at a time.
    assert!(again(TEST, temp.path(), "ulimit -n 64; CHILD").unwrap().contains("all listed"));
}

#[test]
fn many_checkpoints_of_many_components_are_open_with_few_open_files() {
    const TEST: &str = "many_checkpoints_of_many_components_are_open_with_few_open_files";
    if let Some(dir) = std::env::var_os(CHILD) {
        let open = || CheckpointReader::open(Path::new(&dir)).unwrap();
        let readers: Vec<CheckpointReader> = (0..5).map(|_| open()).collect();
        let read = |reader: &CheckpointReader| {
            (0..256).all(|i| reader.tensor(&format!("part{i}")).unwrap() == *Memory::seeded(4, i).bytes())
        };
        assert!(readers.iter().all(read));
        drop(readers);
        // Those that were closed count no more. Files that are held are readable after the removal.
        let held = std::env::var("HELD").unwrap().parse().unwrap();
        let readers: Vec<CheckpointReader> = (0..held).map(|_| open()).collect();
        fs::remove_dir_all(&dir).unwrap();
        assert!(readers.iter().all(read));
        println!("all read");
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("many");
    let parts: Vec<Memory> = (0..256).map(|i| Memory::seeded(4, i)).collect();
    let mut checkpoint = Checkpoint::new();
    for (i, part) in parts.iter().enumerate() {
        checkpoint.track_mut(&format!("part{i}"), part).unwrap();
    }
    for how in ["ulimit -n 640; HELD=1 CHILD", "ulimit -n 1200; HELD=3 CHILD"] {
        checkpoint.write(&path).unwrap();
        assert!(again(TEST, &path, how).unwrap().contains("all read"), "{how}");
    }
}

#[test]
fn what_is_mounted_in_a_checkpoint_is_not_emptied_when_that_is_removed() {
    const TEST: &str = "what_is_mounted_in_a_checkpoint_is_not_emptied_when_that_is_removed";
    if let Some(dir) = std::env::var_os(CHILD) {
        let (root, precious) = (Path::new(&dir).join("run"), Path::new(&dir).join("precious"));
        let run = Run::new();
        let mut manager = run.builder(&root).max_to_keep(1).open().unwrap();
        run.save(&mut manager, 1).unwrap();
        let plots = root.join("ckpt-1/plots");
        fs::create_dir_all(precious.join("inner")).unwrap();
        fs::create_dir(&plots).unwrap();
        for file in ["a", "inner/b"] {
            fs::write(precious.join(file), "precious").unwrap();
        }
        assert!(Command::new("mount").arg("--bind").args([&precious, &plots]).status().unwrap().success());
        for step in 2..=4 {
            run.save(&mut manager, step).unwrap();
        }
        manager.close().unwrap();
        run.builder(&root).open().unwrap().close().unwrap();
        assert!(precious.join("a").exists() && precious.join("inner/b").exists());
        // The checkpoint itself is gone.
        let trash = fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().path());
        let trash = trash.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with(".trash-ckpt-1-"));
        let left = trash.flat_map(|path| fs::read_dir(path).unwrap()).map(|entry| entry.unwrap().file_name());
        assert_eq!(left.collect::<Vec<_>>(), ["plots"]);
        println!("all is there");
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs tmpfs DIRECTORY || { echo NOT MOUNTED; exit 0; }; CHILD";
    if let Some(text) = again(TEST, temp.path(), script) {
        assert!(text.contains("all is there"), "{text}");
    }
}

/// In a container, whose image has the checkpoints.
#[test]
fn a_checkpoint_of_a_lower_layer_that_cannot_be_moved_aside_stays_whole() {
    const TEST: &str = "a_checkpoint_of_a_lower_layer_that_cannot_be_moved_aside_stays_whole";
    if let Some(dir) = std::env::var_os(CHILD) {
        let root = Path::new(&dir).join("run");
        if fs::rename(root.join("ckpt-1"), root.join("renamed")).is_ok() {
            println!("SKIPPED: this overlay renames directories of a lower layer");
            return;
        }
        let run = Run::new();
        let mut manager = CheckpointManager::builder(run.checkpoint(), &root).max_to_keep(3).open().unwrap();
        manager.restore_or_initialize().unwrap();
        let aside = || CheckpointDirectory::new(&root).list().unwrap().superseded;
        let mut fails = |is_expected: fn(&Error) -> bool| {
            run.set(30);
            let error = manager.save_at(3).unwrap_err();
            assert!(is_expected(&error), "{error}");
            assert!(is_intact(root.join("ckpt-3")) && aside().is_empty(), "{:?}", aside());
            assert_eq!(CheckpointDirectory::new(&root).latest().unwrap().unwrap().step, Some(3));
        };
        // Room for the new one, and for a part of the copy that the layer above needs.
        let filler = root.join("filler");
        fs::write(&filler, vec![1; 110 << 10]).unwrap();
        fails(Error::is_no_space);
        fs::remove_file(&filler).unwrap();
        // A file can have a second name, a directory cannot.
        fs::create_dir(root.join("ckpt-3/plots")).unwrap();
        fails(|error| matches!(error, Error::Io { .. }));
        fs::remove_dir(root.join("ckpt-3/plots")).unwrap();
        manager.save_at(3).unwrap();
        assert!(is_intact(root.join("ckpt-3")));
        assert!(aside().iter().all(is_intact) && aside().len() == 1, "{:?}", aside());
        drop(manager);
        let run = Run::new();
        let mut manager = CheckpointManager::builder(run.checkpoint(), &root).max_to_keep(3).open().unwrap();
        manager.restore_or_initialize().unwrap();
        assert!(*run.weights.bytes() == *Memory::seeded(20_000, 30).bytes());
        println!("all was tried");
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let run = Run::new();
    let mut manager = run.builder(&temp.path().join("lower")).max_to_keep(3).open().unwrap();
    (1..=3).for_each(|step| run.save(&mut manager, step).unwrap());
    manager.close().unwrap();
    for name in ["upper", "run"] {
        fs::create_dir(temp.path().join(name)).unwrap();
    }
    let script = "cd DIRECTORY && mount -t tmpfs -o size=260k tmpfs upper && mkdir upper/files upper/work && \
                  mount -t overlay -o userxattr,lowerdir=lower,upperdir=upper/files,workdir=upper/work overlay run || \
                  { echo NOT MOUNTED; exit 0; }; CHILD";
    if let Some(text) = again(TEST, temp.path(), script) {
        assert!(text.contains("all was tried") || text.contains("SKIPPED"), "{text}");
    }
}

/// Where a directory cannot be renamed, its files are moved.
#[test]
fn a_process_that_ends_while_it_moves_the_files_of_a_checkpoint_aside_loses_nothing() -> Outcome {
    const NONCE: &str = "0123456789abcdef0123456789abcdef";
    // The files that have their second name, and those that have lost their first.
    for (linked, lost) in [(0, 0), (1, 0), (2, 0), (2, 1), (2, 2)] {
        let dir = tempfile::tempdir()?;
        let run = Run::new();
        let mut manager = run.builder(dir.path()).open()?;
        (1..=2).try_for_each(|step| run.save(&mut manager, step))?;
        manager.close()?;
        let (old, new) = (dir.path().join("ckpt-2"), dir.path().join(format!("superseded-ckpt-2-{NONCE}")));
        fs::create_dir(&new)?;
        fs::create_dir(dir.path().join(format!(".tmp-ckpt-2-{NONCE}")))?;
        let files = ["manifest.json", "weights.safetensors"];
        files[..linked].iter().try_for_each(|file| fs::hard_link(old.join(file), new.join(file)))?;
        files[..lost].iter().try_for_each(|file| fs::remove_file(old.join(file)))?;
        let mut manager = run.builder(dir.path()).open()?;
        let restored = manager.restore_or_initialize()?.restored.and_then(|status| status.step());
        assert_eq!((restored, run.is_at(2)), (Some(2), true), "{linked} linked, {lost} lost");
        assert!(!new.exists() && CheckpointDirectory::new(dir.path()).list()?.damaged.is_empty());
        // What is not what it left is left alone.
        manager.close()?;
        fs::create_dir(&new)?;
        fs::create_dir(dir.path().join(format!(".tmp-ckpt-2-{NONCE}")))?;
        files.iter().try_for_each(|file| fs::copy(old.join(file), new.join(file)).map(drop))?;
        run.builder(dir.path()).open()?.close()?;
        assert!(is_intact(&old) && is_intact(&new));
    }
    Ok(())
}

#[test]
#[cfg_attr(feature = "torch", ignore = "the other user may not read libtorch; it runs without the feature")]
fn two_users_of_a_group_write_in_turn() {
    const TEST: &str = "two_users_of_a_group_write_in_turn";
    if let Some(dir) = std::env::var_os(CHILD) {
        let run = Run::new();
        let mut manager = run.builder(Path::new(&dir)).open().unwrap();
        manager.restore_or_initialize().unwrap();
        run.save(&mut manager, 2).unwrap();
        println!("another user was here");
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let shared = temp.path().join("shared");
    let run = Run::new();
    let mut manager = run.builder(&shared).open().unwrap();
    run.save(&mut manager, 1).unwrap();
    manager.close().unwrap();
    // The lock file has the mode that the first user's umask gave it.
    fs::set_permissions(shared.join(".lock"), fs::Permissions::from_mode(0o644)).unwrap();
    fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o777)).unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", TEST, "--nocapture"]).env(CHILD, &shared);
    std::os::unix::process::CommandExt::uid(&mut command, 65534);
    match command.output() {
        Ok(output) => {
            let text =
                format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            assert!(output.status.success() && text.contains("another user was here"), "{text}");
        }
        Err(e) => println!("SKIPPED: this test cannot become another user: {e}"),
    }
}
