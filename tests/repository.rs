//! What a manager asks of every repository: a directory of a file system, memory, and an object store, with nothing
//! changed above [`Storage`].

mod common;
#[path = "repository/counting.rs"]
mod counting;
#[path = "repository/object_store.rs"]
mod object_store;

use common::Memory;
use counting::Counting;
use object_store::{PART, Store};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tch_checkpoint::format::Follows;
use tch_checkpoint::repository::{self, Aside, OpenOptions, Posix, Repository, Storage};
use tch_checkpoint::{
    Background, Checkpoint, CheckpointDirectory, CheckpointManager, CheckpointReader, CheckpointWatcher, Counter,
    Dtype, Error, Goal, Location, RestoreOptions, SaveOptions, latest_checkpoint, list_checkpoints, verify_checkpoint,
};

type Outcome = Result<(), Box<dyn std::error::Error>>;
type Result<T, E = Error> = std::result::Result<T, E>;

/// What is saved, and where: a step, and tensors that depend on it.
struct Run {
    storage: Arc<dyn Storage>,
    root: Location,
    step: Counter,
    large: Memory,
    small: Memory,
}

/// Bytes of a tensor that takes several parts.
const LARGE: usize = 2 * PART + 1000;

fn tensor(bytes: usize) -> Memory {
    Memory::new(Dtype::U8, &[bytes as u64], vec![0; bytes])
}

impl Run {
    fn new(storage: Arc<dyn Storage>, root: impl Into<Location>) -> Run {
        let (large, small) = (tensor(LARGE), tensor(100));
        Run { storage, root: root.into(), step: Counter::new(0), large, small }
    }

    /// Another process.
    fn again(&self) -> Run {
        Run::new(self.storage.clone(), &self.root)
    }

    fn checkpoint(&self) -> Result<Checkpoint> {
        let checkpoint = Checkpoint::in_storage(self.storage.clone());
        checkpoint.track("step", &self.step)?.track("large", &self.large)?.track("small", &self.small)
    }

    fn open(&self, background: bool) -> Result<CheckpointManager> {
        let options = SaveOptions::new().threads(3).chunk_bytes(1 << 20);
        let builder = CheckpointManager::builder(self.checkpoint()?, &self.root).max_to_keep(2).save_options(options);
        if background { builder.background(Background::new()).open() } else { builder.open() }
    }

    fn set(&self, step: u64) {
        self.step.set(step);
        *self.large.bytes() = vec![step as u8; LARGE];
        *self.small.bytes() = vec![step as u8; 100];
    }

    fn is_at(&self, step: u64) -> bool {
        let is = |memory: &Memory| memory.bytes().iter().all(|&byte| byte == step as u8);
        self.step.get() == step && is(&self.large) && is(&self.small)
    }

    fn repository(&self) -> Arc<dyn Repository> {
        self.storage.repository(&self.root, &OpenOptions::default()).unwrap()
    }

    fn names(&self) -> Vec<String> {
        self.repository().scan().unwrap().checkpoints
    }

    fn aside(&self) -> Vec<String> {
        self.repository().scan().unwrap().aside.into_iter().map(|(_, name)| name).collect()
    }
}

/// Runs a test in each storage.
fn everywhere(test: impl Fn(Run) -> Outcome) -> Outcome {
    let dir = tempfile::tempdir()?;
    test(Run::new(Arc::new(Posix::default()), dir.path().join("run")))?;
    test(Run::new(Arc::new(repository::Memory::default()), "memory/run"))?;
    test(Run::new(Arc::new(Store::default()), "mem://bucket/run"))
}

fn saves_rotates_and_restores(run: &Run, background: bool) -> Outcome {
    let mut manager = run.open(background)?;
    for step in 1..=4 {
        run.set(step);
        manager.save_at(step)?;
    }
    // The state is saved already: metrics are added to the existing checkpoint.
    assert_eq!(manager.save_with_metrics(4, [("loss", 0.5)])?, run.root.join("ckpt-4"));
    manager.wait()?;
    assert_eq!(run.names(), ["ckpt-3", "ckpt-4"]);
    assert!(matches!(run.open(false), Err(Error::Locked { .. })));
    manager.close()?;
    let later = run.again();
    let mut manager = later.open(background)?;
    let restored = manager.restore_or_initialize()?.restored.ok_or("nothing restored")?;
    assert!(restored.path().ends_with("ckpt-4") && later.is_at(4));
    later.set(5);
    manager.save_at(5)?;
    manager.close()?;
    assert_eq!(later.names(), ["ckpt-4", "ckpt-5"]);
    Ok(())
}

#[test]
fn a_manager_saves_rotates_and_restores() -> Outcome {
    everywhere(|run| saves_rotates_and_restores(&run, false))
}

#[test]
fn a_manager_saves_in_the_background() -> Outcome {
    everywhere(|run| saves_rotates_and_restores(&run, true))
}

#[test]
fn going_back_sets_aside_what_came_later() -> Outcome {
    everywhere(|run| {
        let mut manager = run.open(false)?;
        for step in 1..=2 {
            run.set(step);
            manager.save_at(step)?;
        }
        manager.restore(run.root.join("ckpt-1"))?;
        assert!(run.is_at(1));
        // Under the same name, while the old one is still there.
        run.set(2);
        manager.save_at(2)?;
        manager.close()?;
        assert!(run.aside()[0].starts_with("superseded-ckpt-2-"));
        let later = run.again();
        let mut manager = later.open(false)?;
        manager.restore(run.root.join(&run.aside()[0]))?;
        manager.restore_or_initialize()?;
        assert!(later.is_at(2));
        later.set(3);
        manager.save_at(3)?;
        assert!(later.aside().is_empty(), "two newer ones are complete");
        Ok(())
    })
}

#[test]
fn a_name_that_is_taken_is_not_overwritten() -> Outcome {
    everywhere(|run| {
        let mut checkpoint = run.checkpoint()?;
        run.set(1);
        let path = checkpoint.write(run.root.join("one"))?;
        run.set(2);
        assert!(matches!(checkpoint.write(&path), Err(Error::AlreadyExists { .. })));
        // Nor when it is taken between the check and the commit.
        let repository = run.repository();
        let (first, second) = (repository.begin("two", 3)?, repository.begin("two", 3)?);
        for transaction in [&first, &second] {
            let file = transaction.create("a", 3)?;
            file.write_all_at(0, b"abc")?;
            file.finish(3)?;
        }
        first.commit(b"first", 1, &[])?;
        assert!(matches!(second.commit(b"second", 1, &[]), Err(Error::AlreadyExists { .. })));
        let scan = repository.scan()?;
        assert_eq!((scan.checkpoints, scan.leftovers), (vec!["one".to_string(), "two".to_string()], Vec::new()));
        let mut manifest = [0; 5];
        repository.open("two")?.open("manifest.json".as_ref())?.read_exact_at(0, &mut manifest)?;
        assert_eq!(&manifest, b"first");
        checkpoint.restore(&path)?;
        assert!(run.is_at(1));
        Ok(())
    })
}

#[test]
fn a_url_into_another_directory_names_no_checkpoint_of_this_one() -> Result<()> {
    let store = Arc::new(Store::default());
    let step = Counter::new(0);
    let write = |path: &str| Checkpoint::in_storage(store.clone()).track("step", &step)?.write(path);
    for path in ["mem://bucket/run/c1", "mem://bucket/other/c1"] {
        write(path)?;
    }
    let run = CheckpointDirectory::in_storage(store.clone(), "mem://bucket/run");
    for elsewhere in ["mem://bucket/other/c1", "mem://run/c1", "run/c1"] {
        assert!(matches!(run.delete(elsewhere), Err(Error::InvalidArgument(_))), "{elsewhere}");
    }
    run.delete("mem://bucket/run/c1")?;
    assert!(run.get("c1").unwrap_err().is_not_found());
    Ok(())
}

/// A write needs to know the highest sequence of the directory, and not to read all manifests for it.
#[test]
fn a_write_reads_no_manifest_twice() -> Outcome {
    let store = Store::default();
    let step = Counter::new(0);
    let new = || Checkpoint::in_storage(Arc::new(store.clone())).track("step", &step);
    let mut checkpoint = new()?;
    let path = |number: u64| Location::from("mem://bucket/run").join(format!("c{number}"));
    let mut write = |number: u64| -> Result<u64> {
        let before = store.0.reads.load(Ordering::SeqCst);
        checkpoint.write(path(number))?;
        Ok(store.0.reads.load(Ordering::SeqCst) - before)
    };
    let reads = (0..40).map(&mut write).collect::<Result<Vec<u64>>>()?;
    let first = reads[1];
    // What reading a manifest costs: the first write had none to read.
    assert!(first > 0 && reads[1..].iter().all(|&reads| reads == first), "{reads:?}");
    // What others wrote is read and counts, even if it replaced a checkpoint that was known.
    let mut other = new()?;
    other.write(path(100))?;
    let repository = run_of(&store);
    assert!(repository.remove("c7", &id(&store, 7)?, &|_| false)?);
    other.write(path(7))?;
    let reads = write(41)?;
    assert_eq!(reads, 3 * first, "the last of ours, and two others");
    let sequences = [39, 100, 7, 41].map(|number| id(&store, number).map_or(0, |id| id.sequence));
    assert_eq!(sequences, [40, 41, 42, 43]);
    Ok(())
}

fn run_of(store: &Store) -> Arc<dyn Repository> {
    store.repository(&"mem://bucket/run".into(), &OpenOptions::default()).unwrap()
}

fn id(store: &Store, number: u64) -> Result<Follows> {
    let reader = CheckpointReader::open_in(store, Location::from("mem://bucket/run").join(format!("c{number}")))?;
    let manifest = reader.manifest().clone();
    Ok(Follows { run: manifest.run, sequence: manifest.sequence })
}

#[test]
fn a_store_gets_large_parts_and_keeps_nothing_that_is_removed() -> Outcome {
    let store = Store::default();
    let run = Run::new(Arc::new(store.clone()), "mem://bucket/run");
    let mut manager = run.open(false)?;
    for step in 1..=3 {
        run.set(step);
        manager.save_at(step)?;
    }
    assert_eq!(store.0.parts.load(Ordering::SeqCst), 3 * 3, "12 MiB are uploaded in parts");
    manager.close()?;
    assert_eq!(store.0.list("bucket/run/.files/").len(), 2 * 2);
    // A process that died while it wrote.
    store.0.put("bucket/run/.files/0123/small.safetensors", b"half");
    drop(run.again().open(false)?);
    assert_eq!(store.0.list("bucket/run/.files/").len(), 2 * 2);

    // One byte of the newest is wrong.
    let key = format!("{}large.safetensors", store.files(&run.root.join("ckpt-3")).ok_or("no such checkpoint")?);
    let mut bytes = store.0.get(&key).ok_or("no such object")?;
    bytes[10_000_000] ^= 1;
    store.0.put(&key, &bytes);
    let later = run.again();
    let mut manager = later.open(false)?;
    let started = manager.restore_or_initialize()?;
    assert!(later.is_at(2), "the one before is restored");
    assert_eq!(started.passed_over.len(), 1);
    assert!(later.aside()[0].starts_with("damaged-ckpt-3-"));
    Ok(())
}

#[test]
fn a_url_that_the_storage_does_not_serve_is_refused() -> Outcome {
    let dir = tempfile::tempdir()?;
    let step = Counter::new(1);
    let url = "s3://bucket/run";
    let checkpoint = || Checkpoint::new().track("step", &step);
    let is_refusal = |error: Error| {
        let says = error.to_string();
        assert!(matches!(error, Error::InvalidArgument(_)) && says.contains("s3://bucket"), "{error:?}");
    };
    is_refusal(CheckpointManager::builder(checkpoint()?, url).open().unwrap_err());
    is_refusal(CheckpointManager::builder(checkpoint()?, PathBuf::from(url)).open().unwrap_err());
    is_refusal(checkpoint()?.save("s3://bucket/run/ckpt").unwrap_err());
    is_refusal(checkpoint()?.write(Location::from(url)).unwrap_err());
    is_refusal(checkpoint()?.restore(url).unwrap_err());
    is_refusal(CheckpointReader::open(url).unwrap_err());
    is_refusal(list_checkpoints(url).unwrap_err());
    is_refusal(CheckpointDirectory::new(url).checkpoints().unwrap_err());
    is_refusal(verify_checkpoint(url).problems.remove(0));
    // A store that has URLs only refuses a path.
    let mut elsewhere = Checkpoint::in_storage(Arc::new(Store::default())).track("step", &step)?;
    let error = elsewhere.write(dir.path().join("one")).unwrap_err();
    assert!(matches!(&error, Error::InvalidArgument(says) if says.contains("mem://")), "{error:?}");
    assert_eq!(std::fs::read_dir(&dir)?.count(), 0);
    Ok(())
}

/// The requests that an object store charges for.
#[test]
fn a_wrapper_counts_what_a_save_asks_for() -> Outcome {
    let counting = Counting::new(Arc::new(Store::default()));
    let run = Run::new(Arc::new(counting.clone()), "mem://bucket/run");
    let mut manager = run.open(false)?;
    counting.take();
    run.set(1);
    manager.save_at(1)?;
    let counts = counting.take();
    let of = |what| counts.get(what).copied().unwrap_or(0);
    assert_eq!((of("begin"), of("create"), of("commit"), of("put_small"), of("remove")), (1, 2, 1, 1, 0), "{counts:?}");
    assert_eq!((of("quarantine"), of("put_mark")), (0, 0), "{counts:?}");
    for step in 2..=3 {
        run.set(step);
        manager.save_at(step)?;
    }
    assert_eq!(counting.take().get("remove"), Some(&1));
    manager.restore(run.root.join("ckpt-3"))?;
    assert!(run.is_at(3));
    Ok(())
}

/// The save has found another checkpoint to be the best, and its link comes late.
#[test]
fn a_link_that_a_save_updates_late_does_not_hide_a_later_metric() -> Outcome {
    let dir = tempfile::tempdir()?;
    let storage = Counting::new(Arc::new(Posix::default()));
    let run = Run::new(Arc::new(storage.clone()), dir.path());
    let builder = CheckpointManager::builder(run.checkpoint()?, &run.root).link_best("loss", Goal::Minimize);
    let mut manager = builder.background(Background::new()).open()?;
    manager.save_with_metrics(1, [("loss", 0.5)])?;
    manager.wait()?;
    storage.slow_links();
    storage.take();
    manager.save_with_metrics(2, [("loss", 0.4)])?;
    while !storage.take().contains_key("put_link") {
        std::thread::yield_now();
    }
    manager.add_metrics("ckpt-1", [("loss", 0.1)])?;
    manager.close()?;
    assert_eq!(std::fs::read_link(dir.path().join("best"))?.to_str(), Some("ckpt-1"));
    Ok(())
}

/// A failing disk, or directories of another user.
#[test]
fn what_was_passed_over_is_skipped_even_if_it_cannot_be_renamed() -> Outcome {
    let dir = tempfile::tempdir()?;
    let storage = Counting::new(Arc::new(Posix::default()));
    let run = Run::new(Arc::new(storage.clone()), dir.path().join("run"));
    let open = |run: &Run| CheckpointManager::builder(run.checkpoint()?, &run.root).max_to_keep(None).open();
    let mut manager = open(&run)?;
    for step in 6..=9 {
        run.set(step);
        manager.save_at(step)?;
    }
    manager.close()?;
    storage.cannot_read(["ckpt-8", "ckpt-9"]);
    let run = run.again();
    let mut manager = open(&run)?;
    let mut passed_over = Vec::new();
    let start = loop {
        match manager.restore_or_initialize() {
            Err(Error::Io { path, .. }) if passed_over.len() < 5 => passed_over.push(manager.pass_over(path)?),
            start => break start,
        }
    };
    assert_eq!(passed_over, [run.root.join("ckpt-8"), run.root.join("ckpt-9")]);
    assert_eq!(start?.passed_over.len(), 2);
    assert!(run.is_at(7));
    // It stays so when they can be read again, and everything is examined.
    storage.cannot_read([]);
    std::fs::remove_dir_all(run.root.join("ckpt-6"))?;
    manager.restore_or_initialize()?;
    assert!(run.is_at(7));
    // Not so for what this manager saves under such a name when that is free.
    std::fs::remove_dir_all(run.root.join("ckpt-8"))?;
    run.set(8);
    manager.save_at(8)?;
    std::fs::remove_dir_all(run.root.join("ckpt-7"))?;
    run.set(0);
    manager.restore_or_initialize()?;
    assert!(run.is_at(8));
    Ok(())
}

/// Of what has the name of a checkpoint and nothing else: an alias, or the directory of another user.
#[test]
fn what_only_has_a_name_stops_nobody_while_there_is_no_checkpoint_of_that_name() -> Outcome {
    let dir = tempfile::tempdir()?;
    let storage = Counting::new(Arc::new(Posix::default()));
    let run = Run::new(Arc::new(storage.clone()), dir.path());
    let mut manager = run.open(false)?;
    for step in 1..=2 {
        run.set(step);
        manager.save_at(step)?;
    }
    std::fs::create_dir(dir.path().join("exp-7"))?;
    storage.cannot_read(["exp-7"]);
    std::os::unix::fs::symlink("ckpt-1", dir.path().join("epoch-5"))?;
    let beside = CheckpointDirectory::in_storage(Arc::new(storage.clone()), dir.path());
    let latest = || Ok::<_, Error>(beside.latest()?.map(|info| info.name));
    assert_eq!(latest()?.as_deref(), Some("ckpt-2"));
    let watcher = CheckpointWatcher::in_storage(Arc::new(storage.clone()), dir.path());
    assert_eq!(watcher.timeout(Duration::ZERO).next().ok_or("none")??.name, "ckpt-2");
    assert_eq!(latest_checkpoint(dir.path())?, Some(dir.path().join("ckpt-2").into()));
    // They are listed.
    assert_eq!((beside.list()?.damaged.len(), beside.list()?.links.len()), (2, 1));
    // One that may be the newest of its name stops them, and what to do is said.
    std::os::unix::fs::symlink("ckpt-1", dir.path().join("ckpt-5"))?;
    for error in [latest().unwrap_err(), latest_checkpoint(dir.path()).unwrap_err()] {
        assert!(matches!(&error, Error::Link { path, .. } if path.ends_with("ckpt-5")), "{error}");
        assert!(error.to_string().contains("remove the link"), "{error}");
    }
    std::fs::remove_file(dir.path().join("ckpt-5"))?;
    // So does one of a name of which there was one, or is one out of the numbering.
    std::fs::create_dir(dir.path().join("old-3"))?;
    let saved = dir.path().join("ckpt-1");
    std::fs::rename(&saved, dir.path().join(format!("damaged-old-2-{}", "0".repeat(32))))?;
    storage.cannot_read(["exp-7", "old-3"]);
    assert!(matches!(latest(), Err(Error::Io { path, .. }) if path.ends_with("old-3")));
    std::fs::remove_dir(dir.path().join("old-3"))?;
    storage.cannot_read(["exp-7", "ckpt-2"]);
    assert!(matches!(latest(), Err(Error::Io { path, .. }) if path.ends_with("ckpt-2")));
    Ok(())
}

#[test]
fn a_part_is_in_the_storage_of_its_checkpoint() -> Outcome {
    let saved_alone = |run: &Run| -> Outcome {
        run.set(3);
        let checkpoint = run.checkpoint()?;
        let part = checkpoint.get("small").ok_or("it is tracked")?;
        let path = part.write(run.root.join("alone"))?;
        run.set(4);
        part.restore(path)?;
        assert!(run.small.bytes().iter().all(|&byte| byte == 3) && run.large.bytes().iter().all(|&byte| byte == 4));
        Ok(())
    };
    everywhere(|run| saved_alone(&run))?;
    // A storage of paths is not passed by.
    let dir = tempfile::tempdir()?;
    let counting = Counting::new(Arc::new(Posix::default()));
    saved_alone(&Run::new(Arc::new(counting.clone()), dir.path().join("run")))?;
    let counts = counting.take();
    assert!(counts.contains_key("begin") && counts.contains_key("open"), "{counts:?}");
    Ok(())
}

#[test]
fn a_manager_restores_with_exceptions_and_goes_on_from_there() -> Outcome {
    everywhere(|run| {
        let mut manager = run.open(false)?;
        run.set(3);
        manager.save_at(3)?;
        manager.close()?;
        let (later, added) = (run.again(), Counter::new(7));
        let checkpoint = later.checkpoint()?.track("added", &added)?;
        let mut manager = CheckpointManager::builder(checkpoint, &later.root).open()?;
        let path = run.root.join("ckpt-3");
        assert!(matches!(manager.restore(&path), Err(Error::Mismatch { .. })));
        manager.restore_with(&path, &RestoreOptions::new().allow_missing("added"))?;
        assert!(later.is_at(3) && added.get() == 7);
        // The step is that of the checkpoint: the next one is due.
        assert_eq!(manager.save_if_due(4)?, Some(run.root.join("ckpt-4")));
        Ok(())
    })
}

/// Also by a storage behind an `Arc`, and by a wrapper.
#[test]
fn what_was_quarantined_as_damaged_is_discarded_unless_it_stays() -> Outcome {
    let discards = |run: Run| -> Outcome {
        let mut checkpoint = run.checkpoint()?;
        let repository = run.repository();
        for (name, aside, goes) in [("damaged", Aside::Damaged, true), ("abandoned", Aside::Superseded, false)] {
            checkpoint.write(run.root.join(name))?;
            let aside = repository.quarantine(name, aside)?;
            assert!(!repository.discard(&aside, &|_| true)?);
            assert!(run.aside().contains(&aside));
            assert_eq!(repository.discard(&aside, &|_| false)?, goes);
            assert_eq!(run.aside().contains(&aside), !goes);
        }
        Ok(())
    };
    everywhere(discards)?;
    let shared: Arc<dyn Storage> = Arc::new(Store::default());
    discards(Run::new(Arc::new(shared.clone()), "mem://bucket/shared"))?;
    discards(Run::new(Arc::new(Counting::new(shared)), "mem://bucket/wrapped"))
}

/// As the index is by every save.
#[test]
fn a_file_that_is_replaced_is_never_missing() -> Outcome {
    use tch_checkpoint::repository::{Disk, LocalDisk};
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("index"), "0")?;
    let open = LocalDisk.open_dir(dir.path())?;
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| -> Outcome {
        let writer = scope.spawn(|| -> Result<(), std::io::Error> {
            while !done.load(std::sync::atomic::Ordering::SeqCst) {
                std::fs::write(at("next"), "1")?;
                std::fs::rename(at("next"), at("index"))?;
            }
            Ok(())
        });
        let opened = (0..20_000).try_for_each(|_| open.open("index".as_ref()).map(drop));
        done.store(true, std::sync::atomic::Ordering::SeqCst);
        writer.join().expect("the writer panicked")?;
        Ok(opened?)
    })
}

/// An evaluator polls for hours in a directory with thousands of permanent checkpoints.
#[test]
fn a_watcher_reads_what_is_new_and_nothing_twice() -> Outcome {
    const COUNT: u64 = 30;
    let dir = tempfile::tempdir()?;
    let counting = Counting::new(Arc::new(Posix::default()));
    let step = Counter::new(0);
    let checkpoint = Checkpoint::new().track("step", &step)?;
    let mut manager = CheckpointManager::builder(checkpoint, dir.path()).max_to_keep(None).open()?;
    let save = |manager: &mut CheckpointManager| manager.save_at(step.increment());
    for _ in 0..COUNT {
        save(&mut manager)?;
    }
    // As if it had been a while ago: a directory that changed just now is read again.
    let age = || -> Result<(), std::io::Error> {
        let then = std::time::SystemTime::now() - Duration::from_secs(60);
        for entry in std::fs::read_dir(dir.path())?.filter_map(Result::ok).filter(|entry| entry.path().is_dir()) {
            std::fs::File::open(entry.path())?.set_modified(then)?;
        }
        std::fs::File::open(dir.path())?.set_modified(then)
    };
    age()?;
    let watcher = CheckpointWatcher::in_storage(Arc::new(counting.clone()), dir.path());
    let mut watcher = watcher.poll(Duration::from_millis(1)).timeout(Duration::from_millis(200));
    let opened = || counting.take().get("open").copied().unwrap_or(0);
    let newest = |watcher: &mut CheckpointWatcher| watcher.next().transpose().map(|info| info.map(|info| info.name));
    assert_eq!(newest(&mut watcher)?.as_deref(), Some("ckpt-30"));
    let all = opened();
    assert!(all >= COUNT, "{all}");
    // It polls about 200 times.
    assert_eq!(newest(&mut watcher)?, None);
    let counts = counting.take();
    assert_eq!((counts.get("open"), counts.get("scan")), (None, Some(&1)), "{counts:?}");

    save(&mut manager)?;
    assert_eq!(newest(&mut watcher)?.as_deref(), Some("ckpt-31"));
    let one = opened();
    assert!(one > 0 && one <= all.div_ceil(COUNT), "{one} for one, {all} for {COUNT}");

    // One that takes the place of another, under its name and with a mark.
    age()?;
    assert_eq!(newest(&mut watcher)?, None);
    counting.take();
    std::fs::remove_dir_all(dir.path().join("ckpt-31"))?;
    step.set(30);
    save(&mut manager)?;
    CheckpointDirectory::new(dir.path()).annotate("ckpt-31", "note", "another")?;
    let found = watcher.next().ok_or("none")??;
    assert_eq!((found.name.as_str(), found.notes.len()), ("ckpt-31", 1));
    assert!(opened() <= 2 * one);
    Ok(())
}

/// A copy of a directory, as by `cp -r`: only the directory that is filled changes its time.
#[test]
fn a_watcher_yields_what_is_filled_in_place() -> Outcome {
    let (dir, elsewhere) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let step = Counter::new(0);
    let mut checkpoint = Checkpoint::new().track("step", &step)?.track("large", tensor(5000))?;
    checkpoint.write(dir.path().join("ckpt-1"))?;
    let (partial, whole) = (dir.path().join("ckpt-5"), elsewhere.path().join("ckpt-5"));
    checkpoint.write(partial.clone())?;
    std::fs::rename(&partial, &whole)?;
    std::fs::create_dir(&partial)?;
    std::fs::copy(whole.join("large.safetensors"), partial.join("large.safetensors"))?;
    // As if it had begun a while ago.
    let then = std::time::SystemTime::now() - Duration::from_secs(60);
    std::fs::File::open(dir.path())?.set_modified(then)?;
    let watcher = CheckpointWatcher::new(dir.path()).poll(Duration::from_millis(1));
    let mut watcher = watcher.timeout(Duration::from_millis(100)).each();
    let mut next = || watcher.next().transpose().map(|info| info.map(|info| info.name));
    assert_eq!(next()?.as_deref(), Some("ckpt-1"));
    assert_eq!(next()?, None);
    std::fs::copy(whole.join("manifest.json"), partial.join("manifest.json"))?;
    assert_eq!(std::fs::metadata(dir.path())?.modified()?, then);
    assert_eq!(next()?.as_deref(), Some("ckpt-5"));
    assert_eq!(next()?, None);
    Ok(())
}

/// What cannot be removed yet is not examined, and what stays is examined once.
#[test]
fn superseded_checkpoints_cost_a_save_nothing_until_they_may_go() -> Outcome {
    let opened = |keep: Option<usize>, goes_back: bool| -> Result<u64, Box<dyn std::error::Error>> {
        let counting = Counting::new(Arc::new(repository::Memory::default()));
        let step = Counter::new(0);
        let checkpoint = Checkpoint::in_storage(Arc::new(counting.clone())).track("step", &step)?;
        let mut manager = CheckpointManager::builder(checkpoint, "memory/run").max_to_keep(keep).open()?;
        let save = |manager: &mut CheckpointManager| manager.save_at(step.increment());
        if goes_back {
            let first = save(&mut manager)?;
            for _ in 0..5 {
                save(&mut manager)?;
            }
            manager.restore(first)?;
        } else {
            save(&mut manager)?;
        }
        for _ in 0..6 {
            save(&mut manager)?;
        }
        counting.take();
        save(&mut manager)?;
        Ok(counting.take().get("open").copied().unwrap_or(0))
    };
    for keep in [None, Some(20)] {
        assert_eq!(opened(keep, true)?, opened(keep, false)?, "{keep:?}");
    }
    // Seven are newer: this save removes the five after it has examined each of the others once.
    let (with, without) = (opened(Some(7), true)?, opened(Some(7), false)?);
    assert!(without < with && with <= without + 5 + 8, "{with} and {without}");
    Ok(())
}
