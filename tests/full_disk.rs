//! A full disk, one without inodes, a limit of file sizes, a read-only file system, another user's directory: on real
//! ones, in a mount namespace of the test's own where the system allows that.

mod common;

use common::Memory;
use common::child::{CHILD, again};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use tch_checkpoint::retention::Steps;
use tch_checkpoint::{
    Asset, Background, Checkpoint, CheckpointDirectory, CheckpointManager, CheckpointManagerBuilder, Counter, Error,
    Goal, OnNoSpace, OnSaveError, Preemption, Value, latest_checkpoint,
};

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
            checkpoint.track_mut(&format!("part{i}"), part).unwrap();
        }
        checkpoint
    }

    fn set(&self, step: u64) {
        self.step.set(step);
        for (i, part) in self.parts.iter().enumerate() {
            *part.bytes() = Memory::seeded(2000, step * 10 + i as u64).bytes().clone();
        }
    }

    fn is_at(&self, step: u64) -> bool {
        let right = |(i, part): (usize, &Memory)| *part.bytes() == *Memory::seeded(2000, step * 10 + i as u64).bytes();
        self.step.get() == step && self.parts.iter().enumerate().all(right)
    }
}

#[test]
fn on_a_full_disk_nothing_is_lost_and_the_next_save_works() {
    if let Some(dir) = std::env::var_os(CHILD) {
        return every_size(Path::new(&dir));
    }
    let temp = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs -o size=400k tmpfs DIRECTORY || { echo NOT MOUNTED; exit 0; }; CHILD";
    if let Some(text) = again("on_a_full_disk_nothing_is_lost_and_the_next_save_works", temp.path(), script) {
        println!("{text}");
        assert!(text.contains("sizes tried"));
    }
}

/// Leaves 0, 1, 2 … pages free and saves.
fn every_size(dir: &Path) {
    let (root, filler) = (dir.join("run"), dir.join("filler"));
    let (mut failed, mut saved) = (0, 0);
    let run = Run::new();
    let mut manager = run.open(&root, 1).unwrap();
    run.set(1);
    manager.save_at(1).unwrap();
    let mut newest = 1;
    // Apart from what was removed and will be overwritten: that may go.
    let trash = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with(".trash-");
    let used = || fs::read_dir(&root).unwrap().filter(|entry| !trash(entry.as_ref().unwrap())).count();
    for pages in 0.. {
        // All free space except some pages.
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
    if let Some(dir) = std::env::var_os(CHILD) {
        let dir = Path::new(&dir).join("run");
        let run = Run::new();
        if !dir.exists() {
            run.set(1);
            run.open(&dir, 2).unwrap().save_at(1).unwrap();
            return;
        }
        let error = run.open(&dir, 2).unwrap_err();
        assert!(matches!(error, Error::Io { .. }) && error.to_string().contains("read-only"), "{error}");
        run.checkpoint().restore(latest_checkpoint(&dir).unwrap().unwrap()).unwrap();
        assert!(run.is_at(1));
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs tmpfs DIRECTORY || { echo NOT MOUNTED; exit 0; }; CHILD && mount -o remount,ro DIRECTORY && CHILD";
    again("on_a_read_only_file_system_saving_is_an_error_and_restoring_works", temp.path(), script);
}

#[test]
fn a_limit_of_file_sizes_is_an_error_and_leaves_nothing() {
    if let Some(dir) = std::env::var_os(CHILD) {
        let dir = Path::new(&dir);
        let error = Run::new().open(dir, 2).unwrap().save_at(1).unwrap_err();
        // There is enough room: splitting the files helps.
        assert!(matches!(error, Error::Io { .. }) && error.to_string().contains("max_file_bytes"), "{error}");
        assert_eq!(fs::read_dir(dir).unwrap().count(), 1, "only the lock file");
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let script = "trap '' XFSZ; ulimit -f 8; CHILD";
    again("a_limit_of_file_sizes_is_an_error_and_leaves_nothing", temp.path(), script);
}

#[test]
fn without_inodes_nothing_is_lost_and_the_next_save_works() {
    if let Some(dir) = std::env::var_os(CHILD) {
        return every_number_of_inodes(Path::new(&dir));
    }
    let temp = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs -o nr_inodes=40 tmpfs DIRECTORY || { echo NOT MOUNTED; exit 0; }; CHILD";
    if let Some(text) = again("without_inodes_nothing_is_lost_and_the_next_save_works", temp.path(), script) {
        println!("{text}");
        assert!(text.contains("numbers tried"));
    }
}

/// Leaves 0, 1, 2 … inodes free and saves.
fn every_number_of_inodes(dir: &Path) {
    let (root, fillers) = (dir.join("run"), dir.join("fillers"));
    let run = Run::new();
    let mut manager = CheckpointManager::builder(run.checkpoint(), &root).max_to_keep(1).link_latest().open().unwrap();
    run.set(1);
    manager.save_at(1).unwrap();
    let (mut newest, mut failed, mut saved) = (1, 0, 0);
    let link = root.join("latest");
    for free in 0..12 {
        fs::create_dir(&fillers).unwrap();
        let files = (0..1_000_000).take_while(|i| fs::write(fillers.join(i.to_string()), "").is_ok()).count();
        (0..free.min(files)).for_each(|i| fs::remove_file(fillers.join(i.to_string())).unwrap());
        let (list, counter) = (manager.checkpoints(), manager.checkpoint().save_counter());
        run.set(newest + 1);
        match manager.save_at(newest + 1) {
            Ok(_) => saved += 1,
            Err(error) => {
                failed += 1;
                assert!(matches!(error, Error::NoSpace { .. }), "{error}");
                assert_eq!((list, counter), (manager.checkpoints(), manager.checkpoint().save_counter()));
                let other = Run::new();
                other.checkpoint().restore(latest_checkpoint(&root).unwrap().unwrap()).unwrap();
                assert!(other.is_at(newest));
                fs::remove_dir_all(&fillers).unwrap();
                manager.save_at(newest + 1).unwrap();
            }
        }
        newest += 1;
        let leads_to = fs::read_link(&link).ok();
        assert!(leads_to.is_none() || fs::metadata(&link).is_ok(), "with {free} inodes, {leads_to:?}");
        let _ = fs::remove_dir_all(&fillers);
    }
    println!("{} numbers tried, {failed} too small, {saved} large enough", failed + saved);
    assert!(failed > 3 && saved > 3);
}

#[test]
#[cfg_attr(feature = "torch", ignore = "the other user may not read libtorch; it runs without the feature")]
fn in_the_directory_of_somebody_else_saving_is_an_error_and_restoring_works() {
    const TEST: &str = "in_the_directory_of_somebody_else_saving_is_an_error_and_restoring_works";
    let run = Run::new();
    if let Some(dir) = std::env::var_os(CHILD) {
        let dir = Path::new(&dir);
        let error = run.open(&dir.join("theirs"), 2).unwrap_err();
        assert!(matches!(error, Error::Io { .. }) && error.to_string().contains("right"), "{error}");
        run.checkpoint().restore(latest_checkpoint(dir.join("theirs")).unwrap().unwrap()).unwrap();
        assert!(run.is_at(2));
        // Where we may write next to files of others we save; what cannot be removed is left in the trash, again and
        // again.
        let mut newest = 2;
        for _ in 0..2 {
            let mut manager = run.open(&dir.join("shared"), 1).unwrap();
            manager.restore_or_initialize().unwrap();
            assert!(run.is_at(newest));
            newest += 1;
            run.set(newest);
            manager.save_at(newest).unwrap();
            assert_eq!(manager.checkpoints(), [dir.join(format!("shared/ckpt-{newest}"))]);
            manager.close().unwrap();
        }
        let left = tch_checkpoint::list_checkpoints(dir.join("shared")).unwrap().removed;
        assert_eq!(left.len(), 2, "{left:?}");
        println!("somebody else was here");
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    for name in ["theirs", "shared"] {
        let mut manager = run.open(&temp.path().join(name), 2).unwrap();
        for step in [1, 2] {
            run.set(step);
            manager.save_at(step).unwrap();
        }
        manager.close().unwrap();
    }
    fs::remove_file(temp.path().join("shared/.lock")).unwrap();
    let open_to_all = |path: &Path, mode| fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode));
    open_to_all(temp.path(), 0o755).unwrap();
    open_to_all(&temp.path().join("shared"), 0o777).unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", TEST, "--nocapture"]).env(CHILD, temp.path());
    std::os::unix::process::CommandExt::uid(&mut command, 65534);
    match command.output() {
        Ok(output) => {
            let text =
                format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            assert!(output.status.success() && text.contains("somebody else was here"), "{text}");
        }
        Err(e) => println!("SKIPPED: this test cannot become another user: {e}"),
    }
}

// ------------------------------------------------------------------------------------------ what is done about it

/// What the manager has logged.
static LOGGED: std::sync::Mutex<Vec<String>> = std::sync::Mutex::new(Vec::new());

struct Logger;

impl log::Log for Logger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        LOGGED.lock().unwrap().push(record.args().to_string());
    }

    fn flush(&self) {}
}

#[test]
fn without_room_a_save_is_skipped_or_what_would_go_anyway_goes_first() {
    if let Some(dir) = std::env::var_os(CHILD) {
        return choices(Path::new(&dir));
    }
    let temp = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs -o size=200k tmpfs DIRECTORY || { echo NOT MOUNTED; exit 0; }; CHILD";
    if let Some(text) = again("without_room_a_save_is_skipped_or_what_would_go_anyway_goes_first", temp.path(), script)
    {
        assert!(text.contains("all choices tried"), "{text}");
    }
}

/// A disk with room for three checkpoints of about 40 KB and some blocks more.
fn choices(dir: &Path) {
    log::set_logger(&Logger).unwrap();
    log::set_max_level(log::LevelFilter::Warn);
    let root = dir.join("run");
    let warned = || LOGGED.lock().unwrap().drain(..).any(|line| line.contains("will need"));
    let names = || {
        let found = tch_checkpoint::checkpoints(&root).unwrap().into_iter();
        found.map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect::<Vec<_>>()
    };
    let run = Run::new();
    let builder = |keep: usize| CheckpointManager::builder(run.checkpoint(), &root).max_to_keep(keep).fresh_start();
    drop(builder(2).open().unwrap());
    assert!(!warned());
    let mut manager = builder(10).on_no_space(OnNoSpace::Skip).open().unwrap();
    assert!(warned(), "ten do not fit");
    let mut saved = 0;
    for step in 1..=6 {
        run.set(step);
        saved += u64::from(manager.save_if_due(step).unwrap().is_some());
    }
    assert!((2..6).contains(&saved), "{saved}");
    let there = names();
    assert_eq!(there.len() as u64, saved);
    assert!(matches!(manager.save_at(7), Err(Error::NoSpace { .. })), "calls that save in any case say so");
    drop(manager);

    // The policies would remove nothing: then nothing is.
    let restored =
        |manager: &mut CheckpointManager| manager.restore_or_initialize().unwrap().restored.unwrap().step().unwrap();
    let mut manager = builder(10).on_no_space(OnNoSpace::PruneFirst).open().unwrap();
    let step = restored(&mut manager) + 1;
    run.set(step);
    assert!(matches!(manager.save_at(step), Err(Error::NoSpace { .. })));
    assert_eq!(names(), there);
    drop(manager);

    // Fewer are kept: those that would be removed after the save are removed before it.
    let keep = saved as usize - 1;
    for background in [false, true] {
        let builder = builder(keep).on_no_space(OnNoSpace::PruneFirst);
        let mut manager =
            if background { builder.background(Background::new()).open().unwrap() } else { builder.open().unwrap() };
        let mut step = restored(&mut manager);
        // Until it is full again.
        for _ in 0..4 {
            step += 1;
            run.set(step);
            let result = manager.save_at(step).and_then(|_| manager.wait());
            if let Err(error) = result {
                assert!(background && matches!(error, Error::NoSpace { .. }), "{error}");
                manager.save_at(step).unwrap();
                manager.wait().unwrap();
            }
        }
        assert!(names().len() <= keep && names().contains(&format!("ckpt-{step}")), "{:?}", names());
        manager.close().unwrap();
        let again = Run::new();
        assert_eq!(restored(&mut again.open(&root, keep).unwrap()), step);
        assert!(again.is_at(step));
    }

    // What would stay is damaged, and nothing else is healthy: nothing is removed.
    let mut manager = builder(1).on_no_space(OnNoSpace::PruneFirst).open().unwrap();
    let mut step = restored(&mut manager);
    let newest = root.join(format!("ckpt-{step}/part2.safetensors"));
    let mut bytes = fs::read(&newest).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&newest, bytes).unwrap();
    let filler = dir.join("filler");
    let mut file = fs::File::create(&filler).unwrap();
    while std::io::Write::write_all(&mut file, &[1; 4096]).is_ok() {}
    let before = names();
    step += 1;
    run.set(step);
    assert!(matches!(manager.save_at(step), Err(Error::NoSpace { .. })));
    assert_eq!(names(), before);
    drop(manager);

    // The newest has lost a file: the one before it stands in for it.
    fs::remove_dir_all(&root).unwrap();
    fs::remove_file(&filler).unwrap();
    let mut manager = builder(3).open().unwrap();
    for step in 1..=3 {
        run.set(step);
        manager.save_at(step).unwrap();
    }
    manager.close().unwrap();
    let mut manager = builder(2).on_no_space(OnNoSpace::PruneFirst).open().unwrap();
    assert_eq!(restored(&mut manager), 3);
    fs::remove_file(root.join("ckpt-3/part2.safetensors")).unwrap();
    let mut file = fs::File::create(&filler).unwrap();
    while std::io::Write::write_all(&mut file, &[1; 4096]).is_ok() {}
    run.set(4);
    manager.save_at(4).unwrap();
    assert_eq!(names(), ["ckpt-2", "ckpt-4"]);
    println!("all choices tried");
}

/// Calls `child` with a directory on a separate disk.
fn on_a_disk_of(size: &str, test: &str, child: fn(&Path)) {
    if let Some(dir) = std::env::var_os(CHILD) {
        child(Path::new(&dir));
        println!("all was tried");
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let script = format!("mount -t tmpfs -o size={size} tmpfs DIRECTORY || {{ echo NOT MOUNTED; exit 0; }}; CHILD");
    if let Some(text) = again(test, temp.path(), &script) {
        assert!(text.contains("all was tried"), "{text}");
    }
}

/// Leaves no byte free until it is dropped.
struct Full<'a>(&'a Path);

impl Full<'_> {
    fn new(filler: &Path) -> Full<'_> {
        let mut file = fs::File::create(filler).unwrap();
        while std::io::Write::write_all(&mut file, &[1; 4096]).is_ok() {}
        Full(filler)
    }
}

impl Drop for Full<'_> {
    fn drop(&mut self) {
        fs::remove_file(self.0).unwrap();
    }
}

fn names(root: &Path) -> Vec<String> {
    CheckpointDirectory::new(root).checkpoints().unwrap().into_iter().map(|info| info.name).collect()
}

fn opened(builder: CheckpointManagerBuilder, background: bool) -> CheckpointManager {
    if background { builder.background(Background::new()).open().unwrap() } else { builder.open().unwrap() }
}

#[test]
fn a_last_save_for_which_there_is_no_room_ends_the_loop_with_the_error() {
    let test = "a_last_save_for_which_there_is_no_room_ends_the_loop_with_the_error";
    on_a_disk_of("300k", test, |dir| {
        let (root, filler) = (dir.join("run"), dir.join("filler"));
        let go_on = OnSaveError::Continue { give_up_after: 5 };
        let kinds = [
            (OnNoSpace::Skip, OnSaveError::Return),
            (OnNoSpace::Skip, go_on),
            (OnNoSpace::Fail, go_on),
            (OnNoSpace::PruneFirst, go_on),
        ];
        for (background, (on_no_space, on_save_error)) in
            [false, true].into_iter().flat_map(|background| kinds.map(|kind| (background, kind)))
        {
            let (run, preemption) = (Run::new(), Preemption::new());
            let builder = CheckpointManager::builder(run.checkpoint(), &root).max_to_keep(3).save_every(100);
            let builder = builder.on_no_space(on_no_space).on_save_error(on_save_error).preemption(preemption.clone());
            let mut manager = opened(builder, background);
            run.set(1);
            manager.save_at(1).unwrap();
            manager.wait().unwrap();
            let full = Full::new(&filler);
            preemption.request();
            run.set(2);
            let error = manager.save_if_due(2).unwrap_err();
            assert!(matches!(error, Error::NoSpace { .. }), "{error}");
            assert!(manager.should_stop());
            assert_eq!(names(&root), ["ckpt-1"]);
            drop(full);
            // Another call tries again.
            let path = manager.save_if_due(2).unwrap().unwrap();
            assert!(path.join("manifest.json").exists() && manager.should_stop());
            manager.close().unwrap();
            fs::remove_dir_all(&root).unwrap();
        }
    });
}

#[test]
fn every_kind_of_save_makes_room_where_that_is_asked_for() {
    on_a_disk_of("300k", "every_kind_of_save_makes_room_where_that_is_asked_for", |dir| {
        let (root, filler) = (dir.join("run"), dir.join("filler"));
        let end = |only: bool| {
            move |run: &Run, manager: &mut CheckpointManager, preemption: &Preemption| {
                preemption.request();
                run.set(3);
                let path = manager.save_if_due(3).unwrap().unwrap();
                let info = CheckpointDirectory::new(path.parent().unwrap()).get(&path).unwrap();
                assert_eq!((info.is_complete(), manager.should_stop()), (!only, true));
            }
        };
        let fail = |run: &Run, manager: &mut CheckpointManager, _: &Preemption| {
            let result = manager.guard(|manager| {
                run.set(3);
                assert_eq!(manager.save_if_due(3)?, None);
                Err::<(), _>(Error::Assertion("no data".into()))
            });
            assert_eq!(result.unwrap_err().to_string(), "no data");
        };
        let fail_unclean = |run: &Run, manager: &mut CheckpointManager, _: &Preemption| {
            run.set(3);
            assert!(manager.guard(|_| Err::<(), _>("at once")).is_err());
        };
        type Save<'a> = &'a dyn Fn(&Run, &mut CheckpointManager, &Preemption);
        let (whole, part) = (end(false), end(true));
        let kinds: [(&str, Save<'_>); 4] =
            [("whole", &whole), ("part", &part), ("guarded", &fail), ("unclean", &fail_unclean)];
        for (background, (kind, save)) in [false, true].into_iter().flat_map(|it| kinds.map(|kind| (it, kind))) {
            let run = Run::new();
            let preemption = if kind == "part" { Preemption::new().save_only(["part0"]) } else { Preemption::new() };
            let builder = CheckpointManager::builder(run.checkpoint(), &root).max_to_keep(2).save_every(100);
            let builder = builder.on_no_space(OnNoSpace::PruneFirst).preemption(preemption.clone());
            let mut manager = opened(builder.unclean_on_failure(), background);
            let is_unclean = kind == "unclean";
            for step in 0..3 {
                run.set(step);
                if is_unclean && step == 1 {
                    run.parts[0].bytes()[..4].copy_from_slice(&f32::NAN.to_le_bytes());
                }
                // Without a step, so that the guard knows of none.
                if is_unclean {
                    manager.save().unwrap()
                } else {
                    manager.save_at(step).unwrap()
                };
            }
            manager.wait().unwrap();
            let full = Full::new(&filler);
            save(&run, &mut manager, &preemption);
            // It takes the place of the unhealthy one, and of no healthy one.
            let names = names(&root);
            let expected: &[&str] = if is_unclean { &["ckpt-1", "ckpt-3", "ckpt-4"] } else { &["ckpt-2", "ckpt-3"] };
            assert_eq!(names, expected, "{kind}, background: {background}");
            let info = CheckpointDirectory::new(&root).get(names.last().unwrap()).unwrap();
            assert_eq!(info.unclean, is_unclean);
            drop(full);
            manager.close().unwrap();
            fs::remove_dir_all(&root).unwrap();
        }
    });
}

#[test]
fn after_going_back_the_checkpoint_that_the_run_continues_from_is_not_removed_to_make_room() {
    let test = "after_going_back_the_checkpoint_that_the_run_continues_from_is_not_removed_to_make_room";
    on_a_disk_of("300k", test, |dir| {
        let (root, filler) = (dir.join("run"), dir.join("filler"));
        for background in [false, true] {
            let run = Run::new();
            let builder = |keep| {
                let builder = CheckpointManager::builder(run.checkpoint(), &root).max_to_keep(keep);
                builder.on_no_space(OnNoSpace::PruneFirst)
            };
            let save = |manager: &mut CheckpointManager, steps: &[u64]| {
                for &step in steps {
                    run.set(step);
                    manager.save_at(step).unwrap();
                }
                manager.wait().unwrap();
            };
            // The abandoned ones stay until two newer ones are complete, and the run continues from the only other one.
            let mut manager = opened(builder(2), background);
            save(&mut manager, &[1, 2, 3]);
            manager.restore(root.join("ckpt-2")).unwrap();
            let full = Full::new(&filler);
            run.set(4);
            let result = manager.save_at(4).and_then(|_| manager.wait()).and_then(|()| manager.save_at(4));
            assert!(matches!(result, Err(Error::NoSpace { .. })), "{result:?}");
            assert_eq!(names(&root), ["ckpt-2", "ckpt-3"]);
            drop(full);
            manager.close().unwrap();
            fs::remove_dir_all(&root).unwrap();

            // Here the next save would remove them: then they are removed before it.
            let mut manager = opened(builder(1).keep(Steps::new([1, 2])), background);
            save(&mut manager, &[1, 2, 3]);
            manager.restore(root.join("ckpt-2")).unwrap();
            let full = Full::new(&filler);
            run.set(4);
            let result = manager.save_at(4).and_then(|_| manager.wait());
            if let Err(error) = result {
                assert!(background && matches!(error, Error::NoSpace { .. }), "{error}");
                manager.save_at(4).unwrap();
                manager.wait().unwrap();
            }
            assert_eq!(names(&root), ["ckpt-1", "ckpt-2", "ckpt-4"]);
            assert!(CheckpointDirectory::new(&root).list().unwrap().superseded.is_empty());
            drop(full);
            manager.close().unwrap();
            fs::remove_dir_all(&root).unwrap();

            // If that checkpoint has lost files, it is not moved aside: the abandoned ones would come after it.
            let mut manager = opened(builder(1).keep(Steps::new([1, 2])), background);
            save(&mut manager, &[1, 2, 3]);
            manager.restore(root.join("ckpt-1")).unwrap();
            fs::remove_file(root.join("ckpt-1/part2.safetensors")).unwrap();
            let full = Full::new(&filler);
            run.set(4);
            for _ in 0..2 {
                let result = manager.save_at(4).and_then(|_| manager.wait());
                assert!(matches!(result, Err(Error::NoSpace { .. })), "{result:?}");
                assert_eq!(names(&root), ["ckpt-2", "ckpt-3"]);
                assert!(root.join("ckpt-1").exists());
            }
            drop(full);
            save(&mut manager, &[4]);
            assert_eq!(names(&root), ["ckpt-4"]);
            manager.close().unwrap();
            fs::remove_dir_all(&root).unwrap();
        }
    });
}

/// They cannot be renamed now, and an earlier process superseded them.
#[test]
fn what_was_superseded_stays_out_of_the_numbering_if_it_cannot_be_removed_to_make_room() {
    let test = "what_was_superseded_stays_out_of_the_numbering_if_it_cannot_be_removed_to_make_room";
    on_a_disk_of("400k", test, |dir| {
        let (root, filler) = (dir.join("run"), dir.join("filler"));
        let run = Run::new();
        let save = |manager: &mut CheckpointManager, step| {
            run.set(step);
            manager.save_at(step)
        };
        let mut manager = run.open(&root, 3).unwrap();
        (1..=3).for_each(|step| drop(save(&mut manager, step).unwrap()));
        manager.restore(root.join("ckpt-1")).unwrap();
        save(&mut manager, 4).unwrap();
        manager.close().unwrap();
        let superseded = CheckpointDirectory::new(&root).list().unwrap().superseded;
        assert_eq!(superseded.len(), 2);
        for path in superseded {
            let path = path.as_os_str();
            assert!(Command::new("mount").arg("--bind").args([path, path]).status().unwrap().success());
        }
        let builder = CheckpointManager::builder(run.checkpoint(), &root).max_to_keep(1).keep(Steps::new([1]));
        let mut manager = builder.on_no_space(OnNoSpace::PruneFirst).open().unwrap();
        manager.restore_or_initialize().unwrap();
        let full = Full::new(&filler);
        assert!(matches!(save(&mut manager, 5), Err(Error::NoSpace { .. })));
        let listed = |manager: &CheckpointManager| {
            let paths = manager.checkpoints().into_iter();
            paths.map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect::<Vec<_>>()
        };
        assert_eq!(listed(&manager), ["ckpt-1", "ckpt-4"]);
        drop(full);
        for step in 5..=6 {
            save(&mut manager, step).unwrap();
            assert_eq!(listed(&manager), ["ckpt-1".to_string(), format!("ckpt-{step}")]);
            assert!(root.join("checkpoint.json").exists());
        }
    });
}

/// The policy counts from the oldest one, which goes.
#[test]
fn what_is_kept_for_good_is_marked_before_others_go_to_make_room() {
    let test = "what_is_kept_for_good_is_marked_before_others_go_to_make_room";
    on_a_disk_of("400k", test, |dir| {
        let (root, filler) = (dir.join("run"), dir.join("filler"));
        for recycle in [false, true] {
            let run = Run::new();
            let mut manager = run.open(&root, 10).unwrap();
            for step in 1..=6 {
                run.set(step);
                manager.save_at(step).unwrap();
                std::thread::sleep(Duration::from_millis(30));
            }
            manager.close().unwrap();
            let builder = CheckpointManager::builder(run.checkpoint(), &root).max_to_keep(1);
            let builder = builder.keep_every(Duration::from_millis(70)).recycle(recycle);
            let mut manager = builder.on_no_space(OnNoSpace::PruneFirst).open().unwrap();
            manager.restore_or_initialize().unwrap();
            let full = Full::new(&filler);
            run.set(7);
            let plan = manager.plan_removal::<&str>(Some(7), []).into_iter();
            let mut stay: Vec<String> =
                plan.filter(|planned| planned.is_kept()).map(|planned| planned.checkpoint.name).collect();
            assert!(!stay.is_empty() && !stay.contains(&"ckpt-1".to_string()), "{stay:?}");
            manager.save_at(7).unwrap();
            stay.push("ckpt-7".to_string());
            assert_eq!(names(&root), stay);
            drop(full);
            manager.close().unwrap();
            fs::remove_dir_all(&root).unwrap();
        }
    });
}

/// The save in the background has failed, and another checkpoint was restored without the manager.
#[test]
fn what_was_restored_past_the_manager_is_not_removed_to_make_room() {
    let test = "what_was_restored_past_the_manager_is_not_removed_to_make_room";
    on_a_disk_of("300k", test, |directory| {
        let (root, filler) = (directory.join("run"), directory.join("filler"));
        let run = Run::new();
        let builder = CheckpointManager::builder(run.checkpoint(), &root).max_to_keep(1).keep(Steps::new([1]));
        let mut manager = opened(builder.on_no_space(OnNoSpace::PruneFirst).protect_restored(0), true);
        for step in 1..=2 {
            run.set(step);
            manager.save_at(step).unwrap();
        }
        manager.wait().unwrap();
        // Pinned while it is not the newest.
        let directory = CheckpointDirectory::new(&root);
        directory.pin("ckpt-2", "still", "").unwrap();
        run.set(3);
        manager.save_at(3).unwrap();
        manager.wait().unwrap();
        directory.unpin("ckpt-2", "still").unwrap();
        let full = Full::new(&filler);
        run.set(4);
        manager.save_at(4).unwrap();
        while manager.is_saving() {
            std::thread::yield_now();
        }
        manager.checkpoint_mut().restore(root.join("ckpt-2")).unwrap();
        assert!(run.is_at(2));
        // More than all others together.
        let large = Memory::seeded(60_000, 1);
        manager.checkpoint_mut().track_mut("large", &large).unwrap();
        run.set(5);
        let error = manager.save_if_due(5).and_then(|_| manager.wait()).unwrap_err();
        assert!(matches!(error, Error::NoSpace { .. }), "{error}");
        // What the next save supersedes may have gone for it, and not what the run continues from.
        let names = names(&root);
        assert!(names.starts_with(&["ckpt-1".to_string(), "ckpt-2".to_string()]), "{names:?}");
        drop(full);
    });
}

/// Also if the retry fails, and if there is no room for another link before something is removed.
#[test]
fn links_do_not_lead_to_what_was_removed_to_make_room() {
    let test = "links_do_not_lead_to_what_was_removed_to_make_room";
    on_a_disk_of("300k,nr_inodes=60", test, |directory| {
        for has_inodes in [true, false] {
            let (root, fillers) = (directory.join("run"), directory.join("fillers"));
            let filler = directory.join("filler");
            let run = Run::new();
            let builder = CheckpointManager::builder(run.checkpoint(), &root).max_to_keep(2).recycle(false);
            let builder = builder.link_latest().link_best("loss", Goal::Minimize);
            let mut manager = builder.on_no_space(OnNoSpace::PruneFirst).open().unwrap();
            for (step, loss) in [(1, 0.1), (2, 0.2)] {
                run.set(step);
                manager.save_with_metrics(step, [("loss", loss)]).unwrap();
            }
            let links = || ["best", "latest"].map(|name| fs::read_link(root.join(name)).ok());
            assert_eq!(links(), ["ckpt-1", "ckpt-2"].map(|name| Some(name.into())));
            let full = Full::new(&filler);
            fs::create_dir_all(&fillers).unwrap();
            let made = |i: &u32| fs::write(fillers.join(i.to_string()), "").is_ok();
            let count = if has_inodes { 0 } else { 1_000_000 };
            assert!((0..count).take_while(made).count() < 60);
            // More than all others together.
            let large = Memory::seeded(60_000, 1);
            manager.checkpoint_mut().track_mut("large", &large).unwrap();
            run.set(3);
            assert!(matches!(manager.save_at(3), Err(Error::NoSpace { .. })));
            assert_eq!(names(&root), ["ckpt-2"]);
            assert_eq!(links(), ["ckpt-2"; 2].map(|name| Some(name.into())), "with inodes: {has_inodes}");
            drop((manager, full));
            fs::remove_dir_all(&fillers).unwrap();
            fs::remove_dir_all(&root).unwrap();
        }
    });
}

/// With one that is kept, two fit at any time: the files of a removed one are overwritten, or go.
#[test]
fn assets_and_large_manifests_need_no_more_room_than_one_checkpoint_more() {
    on_a_disk_of("20m", "assets_and_large_manifests_need_no_more_room_than_one_checkpoint_more", |dir| {
        let root = dir.join("run");
        for background in [false, true] {
            let (step, notes) = (Counter::new(0), Value::new(String::new()));
            let weights = Memory::seeded(250_000, 0);
            let of = step.clone();
            let replay = Asset::writer("replay.bin", move |out| out.write_all(&vec![of.get() as u8; 5 << 20]));
            let checkpoint = Checkpoint::new().track("step", &step).unwrap().track("notes", &notes).unwrap();
            let checkpoint = checkpoint.track("weights", &weights).unwrap().asset(replay).unwrap();
            let builder = CheckpointManager::builder(checkpoint, &root).max_to_keep(1);
            let mut manager = opened(builder, background);
            for now in 1..=6 {
                step.set(now);
                *weights.bytes() = Memory::seeded(250_000, now).bytes().clone();
                notes.update(|notes| *notes = now.to_string().repeat(3 << 20));
                let saved = manager.save_at(now).and_then(|_| manager.wait());
                saved.unwrap_or_else(|error| panic!("{now}: {error}"));
                assert!(tch_checkpoint::verify_checkpoint(root.join(format!("ckpt-{now}"))).is_intact());
            }
            manager.close().unwrap();
            fs::remove_dir_all(&root).unwrap();
        }
    });
}

/// How many files there may be is not known before one cannot be created.
#[test]
fn a_save_without_room_removes_what_is_kept_to_be_overwritten() {
    if let Some(dir) = std::env::var_os(CHILD) {
        let (root, fillers) = (Path::new(&dir).join("run"), Path::new(&dir).join("fillers"));
        let step = Counter::new(0);
        let mut checkpoint = Checkpoint::new().track("step", &step).unwrap();
        for i in 0..3 {
            let of = step.clone();
            // So that no file fits in the place of another.
            let bytes = move |step: u64| vec![1; if step.is_multiple_of(2) { 80_000 } else { 800_000 }];
            let asset = Asset::writer(format!("part{i}"), move |out| out.write_all(&bytes(of.get())));
            checkpoint = checkpoint.asset(asset).unwrap();
        }
        let mut manager = CheckpointManager::builder(checkpoint, &root).max_to_keep(1).open().unwrap();
        let mut save = |now: u64| {
            step.set(now);
            manager.save_at(now)
        };
        (1..=3).for_each(|step| drop(save(step).unwrap()));
        fs::create_dir(&fillers).unwrap();
        let files = (0..1000).take_while(|i| fs::write(fillers.join(i.to_string()), "").is_ok()).count();
        (0..4).for_each(|i| fs::remove_file(fillers.join((files - 1 - i).to_string())).unwrap());
        let error = save(5).unwrap_err();
        assert!(matches!(error, Error::NoSpace { .. }), "{error}");
        save(5).unwrap();
        println!("it had room");
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs -o nr_inodes=60 tmpfs DIRECTORY || { echo NOT MOUNTED; exit 0; }; CHILD";
    if let Some(text) = again("a_save_without_room_removes_what_is_kept_to_be_overwritten", temp.path(), script) {
        assert!(text.contains("it had room"), "{text}");
    }
}

/// A user's loop: two stay, and something else takes all the remaining room.
#[test]
fn a_training_that_may_make_room_goes_on() {
    on_a_disk_of("300k", "a_training_that_may_make_room_goes_on", |dir| {
        log::set_logger(&Logger).unwrap();
        log::set_max_level(log::LevelFilter::Warn);
        let (root, filler) = (dir.join("run"), dir.join("filler"));
        for (background, keep) in [(false, 2), (true, 2), (false, 3), (true, 3)] {
            let run = Run::new();
            let builder = CheckpointManager::builder(run.checkpoint(), &root).max_to_keep(keep).save_every(2);
            let mut manager = opened(builder.on_no_space(OnNoSpace::PruneFirst).recycle(false), background);
            let mut train = |steps: std::ops::RangeInclusive<u64>| {
                for step in steps {
                    run.set(step);
                    let saved = manager.save_if_due(step)?;
                    // It is lost with the checkpoint, for which there is no room.
                    if let Some(path) = saved.filter(|_| background && keep == 2 && step == 6) {
                        manager.pin(path, "paper", "")?;
                    }
                    while manager.is_saving() {
                        std::thread::yield_now();
                    }
                }
                Ok(())
            };
            train(1..=4).unwrap();
            let full = Full::new(&filler);
            let result: Result<(), Error> = train(5..=12);
            // A third one is kept only if nothing has to be removed for it.
            match keep {
                2 => result.unwrap(),
                _ => assert!(matches!(result, Err(Error::NoSpace { .. })), "{result:?}"),
            }
            drop(manager);
            let logged = std::mem::take(&mut *LOGGED.lock().unwrap());
            let names_the_pin = logged.iter().any(|line| line.contains("ckpt-6") && line.contains("pin \"paper\""));
            assert_eq!(names_the_pin, background && keep == 2, "{logged:?}");
            let steps: Vec<_> = CheckpointDirectory::new(&root).checkpoints().unwrap();
            let steps: Vec<u64> = steps.into_iter().filter_map(|info| info.step).collect();
            assert_eq!(steps.len(), 2);
            assert_eq!(steps[1] >= 10, keep == 2, "{steps:?}, background: {background}");
            drop(full);
            fs::remove_dir_all(&root).unwrap();
        }
    });
}
