//! A training loop that ends by an error or a panic: nothing is lost if nothing has changed since the last call,
//! nothing is saved that may be torn, and the error is never hidden.

mod common;

use common::Memory;
use common::run::names_in;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tch_checkpoint::{
    Asset, Background, BoxError, Checkpoint, CheckpointDirectory, CheckpointManager, CheckpointManagerBuilder,
    CheckpointReader, Child, Collection, Counter, Dtype, Error, Gate, Guarded, Identity, Node, OnUnhealthy, Preemption,
    SavedCheckpoint, TensorBytes, TensorLeaf, TensorPin, TensorSpec, TensorTarget, Trackable, Value, latest_checkpoint,
    verify_checkpoint,
};

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// A tensor of another library that is too large to be copied: it counts its changes, or gives access to its memory.
#[derive(Clone)]
struct Large(Arc<Inner>);

struct Inner {
    bytes: Mutex<Vec<u8>>,
    version: Option<AtomicU64>,
    /// Whether its memory can be examined.
    is_shown: bool,
}

const BYTES: usize = 200_000;

impl Large {
    fn new(counts: bool, is_shown: bool) -> Large {
        let version = counts.then(AtomicU64::default);
        Large(Arc::new(Inner { bytes: Mutex::new(vec![0; BYTES]), version, is_shown }))
    }

    fn fill(&self, value: u8) {
        self.0.bytes.lock().unwrap().fill(value);
        if let Some(version) = &self.0.version {
            version.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn get(&self) -> Vec<u8> {
        self.0.bytes.lock().unwrap().clone()
    }
}

impl Trackable for Large {
    fn node(&self) -> Node {
        Node::tensor(self.clone())
    }
}

impl TensorLeaf for Large {
    fn spec(&self) -> Result<TensorSpec, BoxError> {
        Ok(TensorSpec::new(Dtype::U8, [BYTES as u64]))
    }

    fn identity(&self) -> Option<Identity> {
        let address = Arc::as_ptr(&self.0) as usize;
        Some(Identity::new("large", address, self.spec().ok()?, vec![1]))
    }

    fn bytes(&self) -> Result<Box<dyn TensorBytes>, BoxError> {
        Ok(Box::new(self.get()))
    }

    fn version(&self) -> Option<u64> {
        Some(self.0.version.as_ref()?.load(Ordering::SeqCst))
    }

    fn pin(&self, _spec: &TensorSpec) -> Result<Option<Box<dyn TensorPin>>, BoxError> {
        Ok(self.0.is_shown.then(|| {
            let bytes = self.0.bytes.lock().unwrap();
            Box::new(Shown { address: bytes.as_ptr() as usize, _owner: self.clone() }) as Box<dyn TensorPin>
        }))
    }

    fn target(&self) -> Result<Box<dyn TensorTarget>, BoxError> {
        Ok(Box::new(Target(self.clone(), vec![0; BYTES])))
    }
}

/// The memory of a [`Large`], which is never moved.
struct Shown {
    address: usize,
    _owner: Large,
}

impl TensorPin for Shown {
    fn bytes(&self) -> Result<Box<dyn TensorBytes + '_>, BoxError> {
        Ok(Box::new(self.memory().unwrap_or_default().to_vec()))
    }

    fn memory(&self) -> Option<&[u8]> {
        // SAFETY: the owner lives as long, its vector is never resized, and these tests have one thread.
        Some(unsafe { std::slice::from_raw_parts(self.address as *const u8, BYTES) })
    }
}

struct Target(Large, Vec<u8>);

impl TensorTarget for Target {
    fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.1
    }

    fn finish(self: Box<Self>) -> Result<(), BoxError> {
        *self.0.0.bytes.lock().unwrap() = self.1;
        Ok(())
    }
}

/// A loop: a large tensor, small state that changes in every pass, a counter and a value.
struct Run {
    large: Large,
    random: Memory,
    step: Counter,
    note: Value<String>,
}

impl Run {
    fn new(counts: bool, is_shown: bool) -> Run {
        let (random, step) = (Memory::seeded(100, 0), Counter::new(0));
        Run { large: Large::new(counts, is_shown), random, step, note: Value::new(String::new()) }
    }

    fn builder(&self, dir: &Path) -> Result<CheckpointManagerBuilder, Error> {
        let checkpoint = Checkpoint::new().track("large", &self.large)?.track("random", &self.random)?;
        let checkpoint = checkpoint.track("step", &self.step)?.track("note", &self.note)?;
        Ok(CheckpointManager::builder(checkpoint, dir).save_every(1000))
    }

    /// All that an optimizer's step changes.
    fn update(&self) -> u64 {
        self.large.fill(self.step.increment() as u8);
        self.pass();
        self.step.get()
    }

    /// What a forward pass changes.
    fn pass(&self) {
        let next = u64::from(self.random.bytes()[0]) + 7 * self.step.get() + 1;
        *self.random.bytes() = Memory::seeded(100, next).bytes().clone();
        self.note.set(format!("{}-{next}", self.step.get()));
    }

    fn state(&self) -> (Vec<u8>, Vec<u8>, u64, String) {
        (self.large.get(), self.random.bytes().clone(), self.step.get(), self.note.get())
    }
}

/// Options of an optimizer, which belong to the tensors that its gate guards.
#[derive(Clone, Default)]
struct Options(Counter);

impl Collection for Options {
    fn children(&self) -> Result<Vec<Child>, BoxError> {
        Ok(vec![Child::new("rate", self.0.node())])
    }

    fn guarded(&self) -> Option<Guarded> {
        Some(Guarded::new(Gate::default(), []))
    }
}

#[test]
fn an_option_that_is_set_before_the_step_fails_costs_nothing() -> Outcome {
    for background in [false, true] {
        let dir = tempfile::tempdir()?;
        let (run, options) = (Run::new(true, true), Options::default());
        let checkpoint = Checkpoint::new().track("large", &run.large)?;
        let checkpoint = checkpoint.track("options", Node::collection(options.clone()))?;
        let builder = CheckpointManager::builder(checkpoint, dir.path()).save_every(1000);
        let mut manager = if background { builder.background(Background::new()).open()? } else { builder.open()? };
        let result = manager.guard(|manager| {
            for step in 1..4 {
                options.0.set(step);
                run.large.fill(step as u8);
                manager.save_if_due(step)?;
            }
            options.0.set(4);
            Err::<(), _>(Error::Assertion("no data".into()))
        });
        assert_eq!(result.unwrap_err().to_string(), "no data");
        manager.close()?;
        assert_eq!(names_in(dir.path())?, ["ckpt-3"]);
        let reader = CheckpointReader::open(dir.path().join("ckpt-3"))?;
        assert_eq!(reader.manifest().values["options/rate"], 3);
    }
    Ok(())
}

/// The kinds of tensors of which a change can be told.
const TOLD: [(bool, bool); 3] = [(true, false), (false, true), (true, true)];

#[test]
fn the_state_of_the_last_call_is_saved_by_an_error_and_by_a_panic() -> Outcome {
    for ((counts, is_shown), panics, background) in
        TOLD.iter().flat_map(|&kind| [(kind, false, false), (kind, true, true)])
    {
        let dir = tempfile::tempdir()?;
        let run = Run::new(counts, is_shown);
        let builder = run.builder(dir.path())?;
        let mut manager = if background { builder.background(Background::new()).open()? } else { builder.open()? };
        let mut state = None;
        let guarded = catch_unwind(AssertUnwindSafe(|| {
            manager.guard(|manager| {
                for _ in 0..7 {
                    manager.save_if_due(run.update())?;
                    state = Some(run.state());
                }
                // The next step: counters and random numbers move, tensors do not.
                run.step.increment();
                run.pass();
                if panics { panic!("a bug in the model") } else { Err::<(), _>(Error::Assertion("no data".into())) }
            })
        }));
        match guarded {
            Ok(result) => assert!(!panics && result.unwrap_err().to_string() == "no data"),
            Err(panic) => assert!(panics && panic.downcast_ref::<&str>() == Some(&"a bug in the model")),
        }
        assert_eq!(names_in(dir.path())?, ["ckpt-7"]);
        assert!(verify_checkpoint(dir.path().join("ckpt-7")).is_intact());
        // The objects themselves are left as they are.
        assert_eq!(run.step.get(), 8);
        let again = Run::new(counts, is_shown);
        manager.close()?;
        let mut manager = again.builder(dir.path())?.open()?;
        let started = manager.restore_or_initialize()?;
        assert_eq!(started.restored.and_then(|status| status.step()), Some(7));
        assert!(Some(again.state()) == state);
        // It continues as if nothing had happened.
        manager.save_at(again.update())?;
        assert_eq!(names_in(dir.path())?, ["ckpt-7", "ckpt-8"]);
    }
    Ok(())
}

/// A manager is opened and restored, and its loop fails in the middle of the step after `calls` calls.
fn torn(dir: &Path, kind: (bool, bool), unclean: bool, calls: usize) -> Result<Run, Error> {
    let run = Run::new(kind.0, kind.1);
    let builder = run.builder(dir)?;
    let mut manager = if unclean { builder.unclean_on_failure().open()? } else { builder.open()? };
    manager.restore_or_initialize()?;
    let result = manager.guard(|manager| {
        for _ in 0..calls {
            manager.save_if_due(run.update())?;
        }
        run.large.fill(200);
        Err::<(), _>(Error::Assertion("in the midst of a step".into()))
    });
    assert!(result.is_err());
    manager.close()?;
    Ok(run)
}

#[test]
fn what_may_be_torn_is_not_saved() -> Outcome {
    for kind in TOLD.into_iter().chain([(false, false)]) {
        let dir = tempfile::tempdir()?;
        torn(dir.path(), kind, false, 3)?;
        assert_eq!(names_in(dir.path())?, [""; 0]);
    }
    Ok(())
}

#[test]
fn on_request_it_is_saved_and_marked_and_no_restart_takes_it() -> Outcome {
    let dir = tempfile::tempdir()?;
    let first = Run::new(true, false);
    let mut manager = first.builder(dir.path())?.open()?;
    manager.save_at(first.update())?;
    manager.close()?;
    let run = torn(dir.path(), (true, false), true, 3)?;
    assert_eq!(names_in(dir.path())?, ["ckpt-1", "ckpt-4"]);
    let info = CheckpointDirectory::new(dir.path()).get("ckpt-4")?;
    assert!(info.unclean && !info.is_healthy() && info.step == Some(4));
    // It has the state, for those who want to examine it.
    let looked = Run::new(true, false);
    let mut manager = looked.builder(dir.path())?.restore_unhealthy().open()?;
    manager.restore(dir.path().join("ckpt-4"))?;
    assert!(looked.state() == run.state());
    manager.close()?;
    // No restart uses it, and it is no longer numbered once the run continues.
    let again = Run::new(true, false);
    let mut manager = again.builder(dir.path())?.restore_unhealthy().open()?;
    let started = manager.restore_or_initialize()?;
    assert_eq!(started.restored.and_then(|status| status.step()), Some(1));
    assert!(started.passed_over[0].reason.contains("after an error"), "{}", started.passed_over[0].reason);
    manager.save_at(again.update())?;
    assert_eq!(names_in(dir.path())?, ["ckpt-1", "ckpt-2"]);
    Ok(())
}

#[test]
fn an_unclean_state_never_takes_the_place_of_a_good_one() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new(true, false);
    let mut manager = run.builder(dir.path())?.unclean_on_failure().open()?;
    let good = manager.guard(|manager| {
        manager.save_at(run.update())?;
        run.large.fill(200);
        Err::<(), _>(Error::Assertion("in the midst of a step".into()))
    });
    assert!(good.is_err());
    assert_eq!(names_in(dir.path())?, ["ckpt-1", "ckpt-2"]);
    let directory = CheckpointDirectory::new(dir.path());
    assert!(!directory.get("ckpt-1")?.unclean && directory.get("ckpt-2")?.unclean);
    Ok(())
}

/// Also not after a restore of an older one, as of the best one in the end.
#[test]
fn a_failure_after_going_back_leaves_the_later_ones_alone() -> Outcome {
    for changes in [false, true] {
        let dir = tempfile::tempdir()?;
        let run = Run::new(true, false);
        let mut manager = run.builder(dir.path())?.unclean_on_failure().open()?;
        let result = manager.guard(|manager| {
            for _ in 1..=3 {
                manager.save_at(run.update())?;
            }
            manager.restore(dir.path().join("ckpt-1"))?;
            if changes {
                run.large.fill(200);
            }
            Err::<(), _>(Error::Assertion("the evaluation".into()))
        });
        assert!(result.is_err());
        manager.close()?;
        assert_eq!(names_in(dir.path())?, ["ckpt-1", "ckpt-2", "ckpt-3"]);
        let again = Run::new(true, false);
        let started = again.builder(dir.path())?.open()?.restore_or_initialize()?;
        assert_eq!(started.restored.and_then(|status| status.step()), Some(3));
    }
    Ok(())
}

/// What no restart uses is not in the way.
#[test]
fn a_failure_after_a_start_that_passed_over_one_is_kept() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (weights, step) = (Memory::seeded(100_000, 1), Counter::new(0));
    let open = || -> Result<CheckpointManager, Error> {
        let checkpoint = Checkpoint::new().track("weights", &weights)?.track("step", &step)?;
        CheckpointManager::builder(checkpoint, dir.path()).unclean_on_failure().open()
    };
    let mut manager = open()?;
    manager.save_at(step.increment())?;
    weights.bytes()[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    manager.save_at(step.increment())?;
    manager.close()?;
    let mut manager = open()?;
    assert_eq!(manager.restore_or_initialize()?.restored.and_then(|status| status.step()), Some(1));
    let result = manager.guard(|_| {
        weights.bytes()[..4].copy_from_slice(&3f32.to_le_bytes());
        Err::<(), BoxError>("in the midst of a step".into())
    });
    assert!(result.is_err());
    assert!(CheckpointDirectory::new(dir.path()).latest()?.is_some_and(|info| info.unclean));
    Ok(())
}

/// Files of the user are read when the loop has failed.
#[test]
fn a_changed_asset_is_not_saved_with_the_state_before_it() -> Outcome {
    let (lines, changes) = (Counter::new(1), [("none", true), ("writer", false), ("file", false)]);
    for (changed, is_saved) in changes {
        let dir = tempfile::tempdir()?;
        let (path, log) = (dir.path().join("run"), dir.path().join("log"));
        std::fs::write(&log, "one line")?;
        let run = Run::new(true, false);
        let written = lines.clone();
        let checkpoint = Checkpoint::new().track("step", &run.step)?.asset(Asset::file(&log))?;
        let writer = Asset::writer("lines", move |out| write!(out, "{}", written.get()));
        let checkpoint = checkpoint.asset(writer)?;
        let mut manager = CheckpointManager::builder(checkpoint, &path).save_every(1000).open()?;
        manager.save_at(run.update())?;
        let result = manager.guard(|manager| {
            manager.save_if_due(run.update())?;
            match changed {
                "writer" => drop(lines.increment()),
                "file" => std::fs::write(&log, "one line, and more")?,
                _ => {}
            }
            Err::<(), BoxError>("the data".into())
        });
        assert!(result.is_err());
        assert_eq!(path.join("ckpt-2").exists(), is_saved, "{changed}");
    }
    Ok(())
}

#[test]
fn a_state_that_was_saved_as_unclean_is_not_saved_already() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new(true, false);
    let mut manager = run.builder(dir.path())?.unclean_on_failure().open()?;
    let result = manager.guard(|manager| {
        manager.save_if_due(run.update())?;
        run.large.fill(200);
        Err::<(), _>(Error::Assertion("in the midst of a step".into()))
    });
    assert!(result.is_err());
    let directory = CheckpointDirectory::new(dir.path());
    assert!(directory.get("ckpt-1")?.unclean);
    manager.save_at(1)?;
    assert!(!directory.get("ckpt-1")?.unclean);
    Ok(())
}

#[test]
fn what_is_saved_already_is_not_saved_again_and_an_end_without_error_saves_nothing() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new(true, false);
    let mut manager = run.builder(dir.path())?.background(Background::new()).open()?;
    let result = manager.guard(|manager| {
        manager.save_if_due(run.update())?;
        manager.save_at(run.update())?;
        Err::<(), _>(Error::Assertion("no data".into()))
    });
    assert!(result.is_err());
    let before = latest_checkpoint(dir.path())?.ok_or("nothing is there")?;
    assert!(before.ends_with("ckpt-2"));
    let sequence =
        |path: &Path| -> Result<u64, Error> { Ok(tch_checkpoint::CheckpointReader::open(path)?.manifest().sequence) };
    assert_eq!(sequence(&before)?, 1);
    assert_eq!(manager.guard(|manager| manager.save_if_due(run.update()))?, None);
    assert_eq!(names_in(dir.path())?, ["ckpt-2"]);
    // A restored state that has not changed is saved already.
    manager.close()?;
    let again = Run::new(true, false);
    let mut manager = again.builder(dir.path())?.open()?;
    manager.restore_or_initialize()?;
    assert!(manager.guard(|_| Err::<(), _>("at once")).is_err());
    assert_eq!(names_in(dir.path())?, ["ckpt-2"]);
    Ok(())
}

/// A library guards its loop, and the program guards all of the run.
#[test]
fn a_guard_within_a_guard() -> Outcome {
    let lost = || Err::<(), _>(Error::Assertion("no data".into()));
    // (what the loop does, the names that must be there)
    type Loop<'a> = Box<dyn FnOnce(&mut CheckpointManager, &Run) -> Result<(), Error> + 'a>;
    let within = |manager: &mut CheckpointManager, run: &Run| {
        manager.guard(|manager| manager.save_if_due(run.update()).map(drop))
    };
    let loops: [(Loop<'_>, &[&str]); 6] = [
        // The inner one ends well, and the outer one fails: at once, after a call, and after another guard.
        (Box::new(|manager, run| within(manager, run).and_then(|()| lost())), &["ckpt-1"]),
        (
            Box::new(|manager, run| {
                within(manager, run)?;
                manager.save_if_due(run.update())?;
                lost()
            }),
            &["ckpt-2"],
        ),
        (
            Box::new(|manager, run| {
                manager.save_if_due(run.update())?;
                manager.guard(|_| Ok::<(), Error>(()))?;
                lost()
            }),
            &["ckpt-1"],
        ),
        // The inner one fails: it saves, once, also the state of a call before it.
        (
            Box::new(|manager, run| {
                manager.guard(|manager| {
                    manager.save_if_due(run.update())?;
                    lost()
                })
            }),
            &["ckpt-1"],
        ),
        (
            Box::new(|manager, run| {
                manager.save_if_due(run.update())?;
                manager.guard(|_| lost())
            }),
            &["ckpt-1"],
        ),
        // The program goes on after the inner one has failed.
        (
            Box::new(|manager, run| {
                let _ = manager.guard(|manager| {
                    manager.save_if_due(run.update())?;
                    lost()
                });
                manager.save_if_due(run.update())?;
                lost()
            }),
            &["ckpt-1", "ckpt-2"],
        ),
    ];
    for (number, (train, names)) in loops.into_iter().enumerate() {
        let dir = tempfile::tempdir()?;
        let run = Run::new(true, false);
        let mut manager = run.builder(dir.path())?.unclean_on_failure().open()?;
        assert!(manager.guard(|manager| train(manager, &run)).is_err());
        assert_eq!(names_in(dir.path())?, names, "loop {number}");
        let checkpoints = CheckpointDirectory::new(dir.path()).checkpoints()?;
        assert!(checkpoints.iter().all(|info| !info.unclean), "loop {number}");
        // The last one is over.
        manager.save_if_due(run.update())?;
        assert_eq!(names_in(dir.path())?, names, "loop {number}");
    }
    Ok(())
}

/// A panic goes through both, and a torn state is saved once.
#[test]
fn a_torn_state_within_two_guards_is_saved_once() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new(true, false);
    let mut manager = run.builder(dir.path())?.unclean_on_failure().open()?;
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        manager.guard(|manager| {
            manager.guard(|manager| -> Result<(), Error> {
                manager.save_if_due(run.update())?;
                run.large.fill(200);
                panic!("a bug in the model")
            })
        })
    }));
    assert!(panicked.is_err());
    let checkpoints = CheckpointDirectory::new(dir.path()).checkpoints()?;
    assert_eq!(checkpoints.iter().map(|info| info.unclean).collect::<Vec<_>>(), [true]);
    Ok(())
}

/// Keeps what is logged.
struct Logged(Mutex<Vec<String>>);

impl log::Log for Logged {
    fn enabled(&self, _metadata: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        self.0.lock().unwrap().push(record.args().to_string());
    }

    fn flush(&self) {}
}

static LOGGED: Logged = Logged(Mutex::new(Vec::new()));

/// Keeps what is logged from now on, by all tests.
fn start_log() {
    // Another test may have done so.
    let _ = log::set_logger(&LOGGED);
    log::set_max_level(log::LevelFilter::Warn);
}

/// The last save in the background was skipped after its call, and what was restored is elsewhere.
#[test]
fn a_checkpoint_that_is_not_there_is_never_reported_as_the_state() -> Outcome {
    start_log();
    let dir = tempfile::tempdir()?;
    let tensor = Memory::f32(&[2], [1.0, 2.0]);
    let checkpoint = || Checkpoint::new().track("tensor", &tensor);
    let root = dir.path().join("skipped");
    let builder = CheckpointManager::builder(checkpoint()?, &root).on_unhealthy(OnUnhealthy::Skip);
    let mut manager = builder.background(Background::new()).open()?;
    let result = manager.guard(|manager| {
        manager.save_if_due(1)?;
        tensor.bytes()[..4].copy_from_slice(&f32::NAN.to_le_bytes());
        let path = manager.save_if_due(2)?.unwrap();
        manager.pin(&path, "paper", "")?;
        manager.add_metrics(&path, [("loss", 0.5)])?;
        Err::<(), _>(Error::Assertion("no data".into()))
    });
    assert_eq!(result.unwrap_err().to_string(), "no data");
    assert_eq!(names_in(&root)?, ["ckpt-1"]);
    manager.close()?;
    tensor.bytes()[..4].copy_from_slice(&1f32.to_le_bytes());
    let elsewhere = dir.path().join("elsewhere");
    let mut manager = CheckpointManager::builder(checkpoint()?, &elsewhere).open()?;
    manager.restore(root.join("ckpt-1"))?;
    assert!(manager.guard(|_| Err::<(), _>("at once")).is_err());
    assert_eq!(names_in(&elsewhere)?, [""; 0]);
    let wrong = |line: &&String| {
        let path = line.split_once("its state is in ").map(|(_, path)| Path::new(path));
        path.is_some_and(|path| path.starts_with(dir.path()) && !path.exists())
    };
    let logged = LOGGED.0.lock().unwrap().clone();
    assert_eq!(logged.iter().find(wrong), None);
    let lost = "the save is dropped, and with it the pin \"paper\", the metric \"loss\": ";
    assert!(logged.iter().any(|line| line.starts_with(lost)), "{logged:?}");
    Ok(())
}

/// The error of the loop is what is returned, also when its state cannot be saved.
#[test]
fn a_save_that_fails_hides_nothing() -> Outcome {
    let dir = tempfile::tempdir()?;
    let root = dir.path().join("run");
    let run = Run::new(true, false);
    let mut manager = run.builder(&root)?.on_saved(|_| -> Result<(), BoxError> { panic!("later") }).open()?;
    let result = manager.guard(|manager| {
        manager.save_if_due(run.update())?;
        std::fs::rename(&root, dir.path().join("away")).unwrap();
        Err::<(), _>(Error::Assertion("no data".into()))
    });
    assert_eq!(result.unwrap_err().to_string(), "no data");
    assert!(!root.exists());
    Ok(())
}

/// The calls of `on_saved`, each of which fails.
fn failing(builder: CheckpointManagerBuilder) -> (CheckpointManagerBuilder, Arc<AtomicU64>) {
    let calls = Arc::new(AtomicU64::new(0));
    let counted = calls.clone();
    let fail = move |_: &SavedCheckpoint| {
        counted.fetch_add(1, Ordering::SeqCst);
        Err::<(), _>("no room elsewhere")
    };
    (builder.on_saved(fail), calls)
}

/// Such a checkpoint is durable: another one in its place would lack its metrics.
#[test]
fn a_state_is_not_saved_again_if_only_what_follows_the_save_has_failed() -> Outcome {
    type Loop = fn(&mut CheckpointManager, &Run) -> Result<(), Error>;
    let loops: [(bool, Loop); 4] = [
        (false, |manager, run| manager.save_with_metrics(run.update(), [("loss", 0.5)]).map(drop)),
        (false, |manager, run| manager.save_if_due_with_metrics(run.update(), || [("loss", 0.5)]).map(drop)),
        // The first call saves, and another one returns the error.
        (true, |manager, run| {
            manager.save_if_due_with_metrics(run.update(), || [("loss", 0.5)])?;
            manager.save_at(1).map(drop)
        }),
        (true, |manager, run| {
            manager.save_with_metrics(run.update(), [("loss", 0.5)])?;
            while manager.is_saving() {
                std::thread::yield_now();
            }
            manager.save_if_due(1).map(drop)
        }),
    ];
    for (number, (background, train)) in loops.into_iter().enumerate() {
        let dir = tempfile::tempdir()?;
        let run = Run::new(true, false);
        let (builder, calls) = failing(run.builder(dir.path())?.save_every(1));
        let mut manager = if background { builder.background(Background::new()).open()? } else { builder.open()? };
        let result = manager.guard(|manager| train(manager, &run));
        assert!(matches!(result, Err(Error::Callback { .. })), "loop {number}: {result:?}");
        manager.close()?;
        let names = std::fs::read_dir(dir.path())?.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        assert_eq!(names.filter(|name| name.contains("ckpt")).collect::<Vec<_>>(), ["ckpt-1"], "loop {number}");
        assert_eq!(CheckpointDirectory::new(dir.path()).get("ckpt-1")?.metrics["loss"], 0.5, "loop {number}");
        assert_eq!(calls.load(Ordering::SeqCst), 1, "loop {number}");
    }
    Ok(())
}

/// A call that need not save says nothing about the state: that it was saved, or restored, remains true.
#[test]
fn a_state_that_was_not_due_again_is_not_saved_again() -> Outcome {
    let dir = tempfile::tempdir()?;
    let lost = || Err::<(), _>(Error::Assertion("no data".into()));
    let run = Run::new(true, false);
    let mut manager = run.builder(dir.path())?.open()?;
    let result = manager.guard(|manager| {
        manager.save_with_metrics(run.update(), [("loss", 0.5)])?;
        assert_eq!(manager.save_if_due(1)?, None);
        lost()
    });
    assert_eq!(result.unwrap_err().to_string(), "no data");
    manager.close()?;
    let again = Run::new(true, false);
    let mut manager = again.builder(dir.path())?.open()?;
    manager.restore_or_initialize()?;
    let result = manager.guard(|manager| {
        assert_eq!(manager.save_if_due(1)?, None);
        lost()
    });
    assert_eq!(result.unwrap_err().to_string(), "no data");
    assert_eq!(CheckpointDirectory::new(dir.path()).get("ckpt-1")?.metrics["loss"], 0.5);
    Ok(())
}

/// Also of a state that is not complete, which no call saves again by itself.
#[test]
fn a_last_save_of_some_components_is_not_saved_again_either() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new(true, false);
    let preemption = Preemption::new().save_only(["random", "step"]);
    let (builder, calls) = failing(run.builder(dir.path())?.save_every(1).preemption(preemption.clone()));
    let mut manager = builder.open()?;
    preemption.request();
    let result = manager.guard(|manager| manager.save_if_due_with_metrics(run.update(), || [("loss", 0.5)]));
    assert!(matches!(result, Err(Error::Callback { .. })), "{result:?}");
    let info = CheckpointDirectory::new(dir.path()).get("ckpt-1")?;
    assert_eq!((info.metrics.get("loss"), calls.load(Ordering::SeqCst)), (Some(&0.5), 1));
    assert!(!info.without.is_empty());
    Ok(())
}

/// The state of a call whose save failed is saved by the guard, although an older one of its step is there.
#[test]
fn a_state_that_was_not_saved_is_not_taken_for_an_older_one_of_its_step() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new(true, false);
    let checkpoint = run.builder(dir.path())?.on_unhealthy(OnUnhealthy::Fail);
    let mut manager = checkpoint.background(Background::new()).open()?;
    let loss = Memory::f32(&[1], [1.0]);
    manager.checkpoint_mut().track_mut("loss", &loss)?;
    let result = manager.guard(|manager| {
        manager.save_at(run.update())?;
        *loss.bytes() = f32::NAN.to_le_bytes().to_vec();
        manager.save_at(1)?;
        *loss.bytes() = 2f32.to_le_bytes().to_vec();
        manager.save_at(1)
    });
    assert!(matches!(result, Err(Error::Unhealthy { .. })), "{result:?}");
    manager.close()?;
    *loss.bytes() = vec![0; 4];
    let again = Run::new(true, false);
    let mut manager = again.builder(dir.path())?.open()?;
    manager.checkpoint_mut().track_mut("loss", &loss)?;
    manager.restore_or_initialize()?;
    assert_eq!(*loss.bytes(), 2f32.to_le_bytes());
    Ok(())
}

/// The log says where the state is, although something failed after the guard had saved it.
#[test]
fn what_the_guard_has_saved_is_not_reported_as_lost() -> Outcome {
    start_log();
    for unclean in [false, true] {
        let dir = tempfile::tempdir()?;
        let run = Run::new(true, false);
        let (builder, _) = failing(run.builder(dir.path())?);
        let mut manager = if unclean { builder.unclean_on_failure().open()? } else { builder.open()? };
        let result = manager.guard(|manager| {
            manager.save_if_due(run.update())?;
            if unclean {
                run.large.fill(200);
            }
            Err::<(), _>(Error::Assertion("no data".into()))
        });
        assert_eq!(result.unwrap_err().to_string(), "no data");
        let logged = LOGGED.0.lock().unwrap().clone();
        let path = dir.path().join("ckpt-1").display().to_string();
        let of_it: Vec<_> = logged.iter().filter(|line| line.contains(&path)).collect();
        assert!(of_it.iter().any(|line| line.ends_with(&format!("its state is in {path}"))), "{of_it:?}");
        assert!(of_it.iter().any(|line| line.contains("no room elsewhere")), "{of_it:?}");
        assert!(of_it.iter().all(|line| !line.contains("could not be saved")), "{of_it:?}");
    }
    Ok(())
}

/// Where a panic can interrupt a step, in order.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Moment {
    /// The data are loaded.
    Before,
    /// After the forward pass.
    Passed,
    /// In the update: the tensors belong to no step.
    Torn,
}

/// A panic at any moment: the run goes on from the last call, or from the last checkpoint if the state may be torn, and
/// in the end the state is that of a run that never stopped. `GUARD_PANICS=50` in the environment sets how many.
#[test]
fn a_panic_at_any_moment_costs_nothing_but_a_torn_step() -> Outcome {
    let count: u64 = std::env::var("GUARD_PANICS").ok().and_then(|count| count.parse().ok()).unwrap_or(12);
    let dir = tempfile::tempdir()?;
    let whole = Run::new(true, true);
    let mut states = vec![whole.state()];
    let (mut reached, mut torn) = (0, 0);
    for number in 0..count {
        let random = (number + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 33;
        let kind = TOLD[(number % 3) as usize];
        let moment = [Moment::Before, Moment::Passed, Moment::Torn][(random % 3) as usize];
        let every = 1 + random / 3 % 5;
        let steps = 1 + random / 15 % 17;
        let run = Run::new(kind.0, kind.1);
        let builder = run.builder(dir.path())?.save_every(every);
        let background = random / 255 % 2 == 0;
        let mut manager = if background { builder.background(Background::new()).open()? } else { builder.open()? };
        manager.restore_or_initialize()?;
        assert_eq!(run.step.get(), reached, "panic {number}");
        assert!(run.state() == states[reached as usize], "panic {number}");
        let mut durable = reached;
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            manager.guard(|manager| -> Result<(), Error> {
                for _ in 0..steps {
                    if manager.save_if_due(run.update())?.is_some() {
                        durable = run.step.get();
                    }
                }
                match moment {
                    Moment::Before => {}
                    Moment::Passed => run.pass(),
                    Moment::Torn => run.large.fill(255),
                }
                panic!("a bug in the model")
            })
        }));
        assert!(panicked.is_err());
        while states.len() <= run.step.get() as usize {
            whole.update();
            states.push(whole.state());
        }
        // A step whose call has saved it is not lost, even if the next one was torn.
        reached = if moment == Moment::Torn { durable } else { reached + steps };
        torn += u64::from(moment == Moment::Torn);
        manager.close()?;
        let latest = latest_checkpoint(dir.path())?;
        assert_eq!(latest.is_some(), reached > 0);
        if let Some(latest) = latest {
            assert!(latest.ends_with(format!("ckpt-{reached}")), "{} at {reached}, {moment:?}", latest.display());
            assert!(verify_checkpoint(&latest).is_intact());
        }
    }
    println!("{count} panics, {torn} of them in an update; {reached} steps");
    assert!(torn > 0 && torn < count && reached > count);
    Ok(())
}
