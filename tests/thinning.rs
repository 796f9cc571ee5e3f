//! Components that only the newest checkpoints keep.

mod common;

use chrono::{DateTime, Utc};
use common::Memory;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tch_checkpoint::format::{Manifest, Mark, MarkKind};
use tch_checkpoint::inspect;
use tch_checkpoint::map::NameMap;
use tch_checkpoint::repository::{self, Entry, OpenDir, OpenOptions, Posix, ReadFile, Repository, Stat, Storage};
use tch_checkpoint::retention::{Best, CheckpointInfo, EveryNSteps, Explanation, Goal, Reason, RetentionPolicy};
use tch_checkpoint::{
    Checkpoint, CheckpointDirectory, CheckpointManager, CheckpointManagerBuilder, CheckpointReader, Counter,
    Durability, Error, Location, RestoreOptions, SaveOptions, verify_checkpoint,
};

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// A model and an optimizer whose values are a function of the step.
struct Run {
    step: Counter,
    model: Memory,
    optimizer: Memory,
}

impl Run {
    fn new() -> Run {
        Run { step: Counter::new(0), model: Memory::seeded(64, 0), optimizer: Memory::seeded(128, 0) }
    }

    fn checkpoint(&self, checkpoint: Checkpoint) -> Checkpoint {
        let checkpoint = checkpoint.track("step", &self.step).unwrap().track("model", self.model.clone()).unwrap();
        checkpoint.track("optimizer", self.optimizer.clone()).unwrap()
    }

    fn builder(&self, dir: &Path) -> CheckpointManagerBuilder {
        let options = SaveOptions::new().durability(Durability::ProcessCrash);
        CheckpointManager::builder(self.checkpoint(Checkpoint::new()), dir).save_options(options)
    }

    fn set(&self, step: u64) {
        self.step.set(step);
        *self.model.bytes() = Memory::seeded(64, step).bytes().clone();
        *self.optimizer.bytes() = Memory::seeded(128, 1000 + step).bytes().clone();
    }

    fn train(&self, manager: &mut CheckpointManager, steps: std::ops::RangeInclusive<u64>) -> Outcome {
        for step in steps {
            self.set(step);
            manager.save_at(step)?;
        }
        Ok(())
    }

    fn model_is_of(&self, step: u64) -> bool {
        *self.model.bytes() == *Memory::seeded(64, step).bytes()
    }
}

fn has_optimizer(dir: &Path, step: u64) -> bool {
    dir.join(format!("ckpt-{step}/optimizer.safetensors")).exists()
}

/// The steps of the checkpoints that have the optimizer's file, and of those that do not.
fn sorted(dir: &Path) -> Result<(Vec<u64>, Vec<u64>), Error> {
    let steps = CheckpointDirectory::new(dir).checkpoints()?.into_iter().filter_map(|info| info.step);
    Ok(steps.partition(|step| has_optimizer(dir, *step)))
}

#[test]
fn only_the_newest_keep_the_component_and_explanations_say_so_before() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager = run.builder(dir.path()).max_to_keep(4).keep_component("optimizer", 2).open()?;
    for step in 1..=6 {
        let none: [(&str, f64); 0] = [];
        let plan = manager.plan_removal(Some(step), none);
        let of = |which: &dyn Fn(&Explanation) -> bool| -> BTreeSet<String> {
            plan.iter().filter(|it| which(it)).map(|it| it.checkpoint.name.clone()).collect()
        };
        let loses = of(&|it| it.loses == ["optimizer"]);
        let removed = of(&|it| !it.is_kept());
        let before: BTreeSet<String> = names_with_optimizer(dir.path())?;
        run.train(&mut manager, step..=step)?;
        let after = names_with_optimizer(dir.path())?;
        let gone: BTreeSet<String> = before.difference(&after).cloned().collect();
        assert_eq!(gone.difference(&removed).cloned().collect::<BTreeSet<_>>(), loses, "step {step}");
    }
    assert_eq!(sorted(dir.path())?, (vec![5, 6], vec![3, 4]));
    let explained = manager.explain();
    assert_eq!(explained[0].checkpoint.without, ["optimizer"]);
    assert!(explained[0].to_string().starts_with("ckpt-3 stays without optimizer: the newest 4"), "{}", explained[0]);
    assert!(explained[3].checkpoint.is_complete() && explained[3].loses.is_empty());
    let none: [(&str, f64); 0] = [];
    let plan = manager.plan_removal(Some(7), none);
    assert!(plan[2].to_string().contains("ckpt-5 stays and loses optimizer after the next save: "), "{}", plan[2]);
    for step in 3..=6 {
        let found = verify_checkpoint(dir.path().join(format!("ckpt-{step}")));
        assert!(found.is_intact() && found.unexpected.is_empty(), "{found:?}");
    }
    // The sizes that it reports are those of the files.
    let whole = &manager.explain()[3].checkpoint;
    assert_eq!(
        whole.bytes - explained[0].checkpoint.bytes,
        fs::metadata(dir.path().join("ckpt-6/optimizer.safetensors"))?.len()
    );
    Ok(())
}

/// Panics when it is asked what it keeps.
#[derive(Debug)]
struct Broken;

impl RetentionPolicy for Broken {
    fn keep(&self, _: &[CheckpointInfo], _: DateTime<Utc>) -> Vec<Option<Reason>> {
        panic!("a policy that panics")
    }
}

#[test]
fn a_broken_policy_removes_no_component_either() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let builder = run.builder(dir.path()).max_to_keep(1).keep(Broken);
    run.train(&mut builder.keep_component("optimizer", 1).open()?, 1..=3)?;
    assert_eq!(sorted(dir.path())?, (vec![1, 2, 3], vec![]));
    Ok(())
}

fn names_with_optimizer(dir: &Path) -> Result<BTreeSet<String>, Error> {
    let all = CheckpointDirectory::new(dir).checkpoints()?.into_iter().map(|info| info.name);
    Ok(all.filter(|name| dir.join(name).join("optimizer.safetensors").exists()).collect())
}

#[test]
fn weights_are_restored_and_a_resume_is_refused_with_the_reason() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager = run.builder(dir.path()).max_to_keep(3).keep_component("optimizer", 1).open()?;
    run.train(&mut manager, 1..=3)?;
    let thinned = dir.path().join("ckpt-2");
    let before = run.optimizer.bytes().clone();
    let error = manager.restore(&thinned).unwrap_err();
    let text = format!("{error:#}");
    assert!(
        text.contains(
            "the component \"optimizer\" was removed from it (`keep_component`), so that a run cannot be resumed from it"
        ) && text.ends_with("leave the component as it is with `RestoreOptions`: skip(\"optimizer\")"),
        "{text}"
    );
    // By whatever way it is read.
    let mut checkpoint = run.checkpoint(Checkpoint::new());
    let source = tch_checkpoint::interop::open(&thinned)?;
    let mapped = RestoreOptions::new().map(NameMap::new().rename("model", "model"));
    for result in
        [checkpoint.restore_with(&thinned, &mapped), checkpoint.restore_source(&*source, &RestoreOptions::new())]
    {
        let text = result.map(drop).unwrap_err().to_string();
        assert!(text.contains("was removed from it (`keep_component`)"), "{text}");
    }
    assert!(run.model_is_of(3), "nothing has changed");
    manager.restore_with(&thinned, &RestoreOptions::new().skip("optimizer"))?;
    assert!(run.model_is_of(2));
    assert_eq!(*run.optimizer.bytes(), before);
    // A changed byte is still found, and nothing is removed then.
    let file = thinned.join("model.safetensors");
    let mut bytes = fs::read(&file)?;
    *bytes.last_mut().unwrap() ^= 1;
    fs::remove_file(&file)?;
    fs::write(&file, bytes)?;
    run.set(9);
    assert!(manager.restore_with(&thinned, &RestoreOptions::new().skip("optimizer")).unwrap_err().is_damaged());
    assert!(run.model_is_of(9));
    Ok(())
}

#[test]
fn a_component_that_is_removed_after_the_restore_is_not_restored_later() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager = run.builder(dir.path()).max_to_keep(3).keep_component("optimizer", 1).open()?;
    run.train(&mut manager, 1..=1)?;
    let path = dir.path().join("ckpt-1");
    let manifest = fs::File::options().write(true).open(path.join("manifest.json"))?;
    manifest.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(60))?;
    let (model, optimizer) = (Memory::seeded(64, 8), Memory::seeded(128, 9));
    let mut checkpoint = Checkpoint::new();
    checkpoint.restore(&path)?;
    checkpoint.track_mut("model", &model)?;
    run.train(&mut manager, 2..=2)?;
    let error = checkpoint.track_mut("optimizer", &optimizer).unwrap_err().to_string();
    assert!(error.contains("was removed from it (`keep_component`)"), "{error}");
    assert_eq!(*optimizer.bytes(), *Memory::seeded(128, 9).bytes());
    assert_eq!(*model.bytes(), *Memory::seeded(64, 1).bytes());
    Ok(())
}

#[test]
fn a_restart_does_not_take_what_lacks_a_component_unless_told() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager = run.builder(dir.path()).max_to_keep(3).keep_component("optimizer", 1).open()?;
    run.train(&mut manager, 1..=3)?;
    manager.close()?;
    fs::remove_dir_all(dir.path().join("ckpt-3"))?;
    let mut manager = run.builder(dir.path()).open()?;
    let error = format!("{:#}", manager.restore_or_initialize().unwrap_err());
    assert!(error.contains("it lacks the component optimizer, which `keep_component` removed"), "{error}");
    for skipped in ["optimizer", "optimizer/*"] {
        let started = manager.restore_or_initialize_with(&RestoreOptions::new().skip(skipped))?;
        assert_eq!(started.restored.and_then(|status| status.step()), Some(2), "{skipped}");
        assert!(run.model_is_of(2));
    }
    // The same step is saved again in its place, with all components.
    run.set(2);
    manager.save_at(2)?;
    assert!(has_optimizer(dir.path(), 2));
    assert!(verify_checkpoint(dir.path().join("ckpt-2")).is_intact());
    manager.close()?;
    fs::remove_dir_all(dir.path().join("ckpt-2"))?;
    let mut manager = run.builder(dir.path()).restore_incomplete().open()?;
    assert_eq!(manager.restore_or_initialize()?.restored.and_then(|status| status.step()), Some(1));
    Ok(())
}

#[test]
fn the_best_is_restored_in_one_call_also_if_it_is_thinned() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let best = Best::new("loss", Goal::Minimize, 2);
    let mut manager = run.builder(dir.path()).max_to_keep(1).keep(best).keep_component("optimizer", 1).open()?;
    for (step, loss) in [(1, 0.5), (2, 0.2), (3, 0.4), (4, f64::NAN), (5, 0.9)] {
        run.set(step);
        manager.save_with_metrics(step, [("loss", loss)])?;
    }
    assert!(!has_optimizer(dir.path(), 2));
    let optimizer = run.optimizer.bytes().clone();
    assert_eq!(manager.restore_best("loss", Goal::Minimize)?.step(), Some(2));
    assert!(run.model_is_of(2));
    assert_eq!(*run.optimizer.bytes(), optimizer);
    // A metric that another process adds counts at once.
    CheckpointDirectory::new(dir.path()).add_metrics("ckpt-5", [("loss", 0.1)])?;
    assert_eq!(manager.restore_best("loss", Goal::Minimize)?.step(), Some(5));
    assert_eq!(manager.restore_best("loss", Goal::Maximize)?.step(), Some(3));
    assert!(manager.restore_best("accuracy", Goal::Maximize).unwrap_err().is_not_found());
    Ok(())
}

#[test]
fn the_best_that_is_there_is_restored_after_one_was_removed_by_hand() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager = run.builder(dir.path()).max_to_keep(3).open()?;
    for (step, loss) in [(1, 0.5), (2, 0.2), (3, 0.4)] {
        run.set(step);
        manager.save_with_metrics(step, [("loss", loss)])?;
    }
    fs::remove_dir_all(dir.path().join("ckpt-2"))?;
    assert_eq!(manager.restore_best("loss", Goal::Minimize)?.step(), Some(3));
    fs::remove_dir_all(dir.path().join("ckpt-3"))?;
    assert_eq!(manager.restore_best("loss", Goal::Minimize)?.step(), Some(1));
    fs::remove_dir_all(dir.path().join("ckpt-1"))?;
    assert!(manager.restore_best("loss", Goal::Minimize).unwrap_err().is_not_found());
    Ok(())
}

/// Writes the mark as a process does that dies before it removes the files.
fn mark(dir: &Path, step: u64) -> Outcome {
    let checkpoint = dir.join(format!("ckpt-{step}"));
    let of = Manifest::from_bytes(&fs::read(checkpoint.join("manifest.json"))?)?.id();
    let mark = Mark::new(of, MarkKind::Thinned { component: "optimizer".to_string() });
    fs::write(checkpoint.join(mark.file_name()), mark.to_bytes()?)?;
    Ok(())
}

#[test]
fn what_a_dead_process_marked_is_finished_by_the_next_one() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager = run.builder(dir.path()).max_to_keep(4).open()?;
    run.train(&mut manager, 1..=4)?;
    manager.close()?;
    for step in 1..=3 {
        mark(dir.path(), step)?;
    }
    let directory = CheckpointDirectory::new(dir.path());
    assert_eq!(directory.get("ckpt-1")?.without, ["optimizer"], "the mark is the truth");
    assert!(CheckpointReader::open(dir.path().join("ckpt-1"))?.keys().all(|key| key == "model"));
    assert!(verify_checkpoint(dir.path().join("ckpt-1")).unexpected.is_empty());
    directory.pin("ckpt-2", "paper", "")?;
    // A process that died later, when the file was gone already.
    fs::remove_file(dir.path().join("ckpt-3/optimizer.safetensors"))?;
    directory.pin("ckpt-3", "paper", "")?;
    let manager = run.builder(dir.path()).max_to_keep(4).open()?;
    // It was complete when it was pinned.
    assert_eq!(sorted(dir.path())?, (vec![2, 4], vec![1, 3]));
    assert!(directory.get("ckpt-2")?.is_complete());
    assert_eq!(directory.get("ckpt-3")?.without, ["optimizer"]);
    manager.close()?;
    for step in 1..=4 {
        assert!(verify_checkpoint(dir.path().join(format!("ckpt-{step}"))).is_intact());
    }
    Ok(())
}

#[test]
fn pinned_restored_and_unhealthy_ones_stay_whole_and_permanent_ones_do_not() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let builder = || run.builder(dir.path()).max_to_keep(3).keep(EveryNSteps(4)).keep_component("optimizer", 1);
    let mut manager = builder().open()?;
    run.train(&mut manager, 1..=1)?;
    manager.pin("ckpt-1", "paper", "")?;
    run.train(&mut manager, 2..=5)?;
    assert_eq!(sorted(dir.path())?, (vec![1, 5], vec![3, 4]));
    manager.close()?;
    // What the run was restored from stays complete until 3 newer ones exist.
    let mut manager = builder().protect_restored(3).keep_unhealthy(9).open()?;
    manager.restore_or_initialize()?;
    run.train(&mut manager, 6..=7)?;
    assert_eq!(sorted(dir.path())?, (vec![1, 5, 7], vec![4, 6]));
    *run.model.bytes() = Memory::f32(&[64], [f32::NAN; 64]).bytes().clone();
    manager.save_at(8)?;
    assert_eq!(sorted(dir.path())?, (vec![1, 5, 7, 8], vec![4, 6]), "the unhealthy one takes no healthy one's place");
    run.train(&mut manager, 9..=9)?;
    assert_eq!(sorted(dir.path())?, (vec![1, 8, 9], vec![4, 6, 7]));
    manager.unpin("ckpt-1", "paper")?;
    run.train(&mut manager, 10..=10)?;
    assert_eq!(sorted(dir.path())?, (vec![8, 10], vec![4, 7, 9]));
    Ok(())
}

#[test]
fn a_component_that_others_share_stays() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let checkpoint = run.checkpoint(Checkpoint::new()).track("tied", run.optimizer.clone())?;
    let mut manager = CheckpointManager::builder(checkpoint, dir.path())
        .max_to_keep(3)
        .keep_component("optimizer", 1)
        .keep_component("tied", 1)
        .open()?;
    run.train(&mut manager, 1..=3)?;
    assert_eq!(sorted(dir.path())?, (vec![1, 2, 3], vec![]));
    assert!(manager.explain().iter().all(|it| it.checkpoint.components == ["model"]));
    assert!(verify_checkpoint(dir.path().join("ckpt-1")).is_intact());
    Ok(())
}

#[test]
fn readers_see_a_checkpoint_whole_or_thinned() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager = run.builder(dir.path()).max_to_keep(None).keep_component("optimizer", 1).open()?;
    run.train(&mut manager, 1..=1)?;
    let early = CheckpointReader::open(dir.path().join("ckpt-1"))?;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let (mut whole, mut thinned) = (0, 0);
            while !done.load(Ordering::Relaxed) || thinned == 0 {
                let directory = CheckpointDirectory::new(dir.path());
                for info in directory.checkpoints().unwrap() {
                    let reader = CheckpointReader::open(dir.path().join(&info.name)).unwrap();
                    assert!(reader.verify().is_intact());
                    match reader.spec("optimizer") {
                        Some(_) => whole += usize::from(reader.tensor("optimizer").is_ok()),
                        None => thinned += usize::from(reader.manifest().without == ["optimizer"]),
                    }
                }
            }
            (whole, thinned)
        });
        let trained = run.train(&mut manager, 2..=40).map_err(|e| e.to_string());
        done.store(true, Ordering::Relaxed);
        assert_eq!(trained, Ok(()));
        let (whole, thinned) = reader.join().unwrap();
        assert!(whole > 0 && thinned > 0);
    });
    // What was open stays readable.
    assert_eq!(early.tensor("optimizer")?, *Memory::seeded(128, 1001).bytes());
    Ok(())
}

#[test]
fn a_copy_of_a_thinned_checkpoint_says_what_it_lacks() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager = run.builder(&dir.path().join("run")).keep_component("optimizer", 1).open()?;
    run.train(&mut manager, 1..=2)?;
    let reader = CheckpointReader::open(dir.path().join("run/ckpt-1"))?;
    let copy = reader.copy_to(dir.path().join("copy"), &SaveOptions::new(), [])?;
    let copy = CheckpointReader::open(copy)?;
    assert_eq!(copy.manifest().without, ["optimizer"]);
    assert!(copy.verify().is_intact());
    Ok(())
}

#[test]
fn in_memory_too() -> Outcome {
    let memory = Arc::new(repository::Memory::default());
    let run = Run::new();
    let checkpoint = run.checkpoint(Checkpoint::in_storage(memory.clone()));
    let mut manager =
        CheckpointManager::builder(checkpoint, "mem://run").max_to_keep(3).keep_component("optimizer", 2).open()?;
    run.train(&mut manager, 1..=4)?;
    let lacking: Vec<Vec<String>> = manager.explain().into_iter().map(|it| it.checkpoint.without).collect();
    assert_eq!(lacking, [vec!["optimizer".to_string()], vec![], vec![]]);
    let reader = CheckpointReader::open_in(&*memory, "mem://run/ckpt-2")?;
    assert!(reader.verify().is_intact());
    assert_eq!(reader.keys().collect::<Vec<_>>(), ["model"]);
    Ok(())
}

/// A file system that cannot read marks of removed components.
#[derive(Debug)]
struct Failing<T>(T);

impl Storage for Failing<Posix> {
    fn absolute(&self, location: &Location) -> Result<Location, Error> {
        self.0.absolute(location)
    }

    fn repository(&self, root: &Location, options: &OpenOptions) -> Result<Arc<dyn Repository>, Error> {
        self.0.repository(root, options)
    }

    fn open(&self, location: &Location) -> Result<Arc<dyn OpenDir>, Error> {
        Ok(Arc::new(Failing(self.0.open(location)?)))
    }
}

impl OpenDir for Failing<Arc<dyn OpenDir>> {
    fn stat(&self) -> io::Result<Stat> {
        self.0.stat()
    }

    fn stat_of(&self, name: &OsStr) -> io::Result<Option<Stat>> {
        self.0.stat_of(name)
    }

    fn list(&self) -> io::Result<Vec<Entry>> {
        self.0.list()
    }

    fn open(&self, name: &OsStr) -> io::Result<Box<dyn ReadFile>> {
        match name.to_str().is_some_and(|name| name.starts_with("mark-thinned-")) {
            true => Err(io::Error::from_raw_os_error(5)),
            false => self.0.open(name),
        }
    }
}

#[test]
fn a_mark_that_cannot_be_read_does_not_make_a_checkpoint_a_damaged_one() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager = run.builder(dir.path()).max_to_keep(4).keep_component("optimizer", 1).open()?;
    run.train(&mut manager, 1..=3)?;
    manager.close()?;
    let path = dir.path().join("ckpt-2");
    assert!(!has_optimizer(dir.path(), 2) && CheckpointReader::open(&path).is_ok());
    // It may be readable later.
    let error = CheckpointReader::open_in(&Failing(Posix::default()), &path).map(drop).unwrap_err();
    assert!(matches!(&error, Error::Io { path, .. } if path.ends_with("mark-thinned-optimizer.json")), "{error:#}");
    // This version cannot read it: a directory, then another content.
    let mark = path.join("mark-thinned-optimizer.json");
    fs::remove_file(&mark)?;
    for content in [None, Some("{\"version\":9}")] {
        match content {
            None => fs::create_dir(&mark)?,
            Some(content) => {
                fs::remove_dir(&mark)?;
                fs::write(&mark, content)?;
            }
        }
        let error = CheckpointReader::open(&path).map(drop).unwrap_err();
        assert!(matches!(&error, Error::Unsupported { path, .. } if *path == mark), "{error:#}");
        let report = inspect::repair(dir.path())?;
        assert!(report.actions.is_empty() && report.left.len() == 1, "{report:?}");
    }
    // It is known to be older, also after saves.
    for step in 4..=6 {
        let mut manager = run.builder(dir.path()).max_to_keep(4).open()?;
        let restored = manager.restore_or_initialize()?.restored;
        assert_eq!(restored.and_then(|status| status.step()), Some(step - 1));
        run.set(step);
        manager.save_at(step)?;
        manager.close()?;
    }
    assert!(mark.exists());
    // A file with other bytes than were written is damage, whatever the marks say.
    fs::write(path.join("model.safetensors"), "short")?;
    fs::write(path.join("optimizer.safetensors"), "short")?;
    assert!(CheckpointReader::open(&path).is_err_and(|error| error.is_damaged()));
    Ok(())
}

/// In the place of one that another version marked, which is kept in the index because it is older.
#[test]
fn one_that_is_saved_under_the_number_of_an_unreadable_one_is_listed_once() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager = run.builder(dir.path()).max_to_keep(4).keep_component("optimizer", 1).open()?;
    run.train(&mut manager, 1..=3)?;
    manager.close()?;
    fs::write(dir.path().join("ckpt-2/mark-thinned-optimizer.json"), "{\"version\":9}")?;
    let mut manager = run.builder(dir.path()).max_to_keep(4).open()?;
    manager.restore_or_initialize()?;
    let listed = || fs::read_to_string(dir.path().join("checkpoint.json")).map(|text| text.matches("ckpt-2\"").count());
    manager.save_at(4)?;
    assert_eq!(listed()?, 1);
    fs::remove_dir_all(dir.path().join("ckpt-2"))?;
    manager.save_at(2)?;
    assert_eq!(listed()?, 2, "as an entry and as the latest");
    manager.close()?;
    Ok(())
}

#[test]
fn none_at_all_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let error = Run::new().builder(dir.path()).keep_component("optimizer", 0).open().map(drop).unwrap_err();
    assert!(error.to_string().contains("it must be at least 1"), "{error}");
}

/// Once released its bytes do not change, and stay readable. With `UPDATE_GOLDEN=1` in the environment it is written.
#[test]
fn the_mark_is_written_as_the_golden_file_is() -> Outcome {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v5");
    let of = Manifest::from_bytes(&fs::read(golden.join("ckpt-1500/manifest.json"))?)?.id();
    let mark = Mark::new(of, MarkKind::Thinned { component: "my optimizer".to_string() });
    assert_eq!(mark.file_name(), "mark-thinned-my%20optimizer.json");
    let file = golden.join(mark.file_name());
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&file, mark.to_bytes()?)?;
    }
    let bytes = fs::read(&file)?;
    assert_eq!(String::from_utf8_lossy(&bytes), String::from_utf8_lossy(&mark.to_bytes()?));
    assert_eq!(Mark::from_bytes(&bytes)?, mark);
    assert!(String::from_utf8(bytes)?.contains("\"version\":3,"));
    Ok(())
}
