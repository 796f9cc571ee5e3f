//! A run that is asked to end saves, and the next process continues exactly from there.

mod common;

use common::run::Run;
use std::path::Path;
use std::time::Duration;
use tch_checkpoint::save_policy::{SaveContext, SavePolicy};
use tch_checkpoint::{Background, CheckpointDirectory, CheckpointManager, CheckpointManagerBuilder, Error, Preemption};

type Outcome = Result<(), Box<dyn std::error::Error>>;

impl Run {
    fn new() -> Run {
        Run::of(20_000)
    }

    fn builder(&self, dir: &Path) -> Result<CheckpointManagerBuilder, Error> {
        Ok(CheckpointManager::builder(self.checkpoint(), dir).save_every(1_000_000))
    }
}

#[test]
fn a_request_saves_once_and_durably() -> Outcome {
    for background in [false, true] {
        let dir = tempfile::tempdir()?;
        let (run, preemption) = (Run::new(), Preemption::new());
        let builder = run.builder(dir.path())?.preemption(preemption.clone());
        let mut manager = if background { builder.background(Background::new()).open()? } else { builder.open()? };
        assert_eq!(manager.save_if_due(run.train())?, None);
        assert!(!manager.preempted());
        preemption.request();
        // It came after the last call: nothing is saved for it yet, so that the loop goes on.
        assert!(manager.preempted() && !manager.should_stop());
        let path = manager.save_if_due(run.train())?.ok_or("it is not saved")?;
        assert!(path.join("manifest.json").exists(), "durable when the call returns");
        assert!(manager.should_stop());
        assert_eq!(manager.save_if_due(run.train())?, None);
        drop(manager);
        let again = Run::new();
        again.builder(dir.path())?.open()?.restore_or_initialize()?;
        assert!(again.is_at(2));
    }
    Ok(())
}

#[test]
fn the_last_save_computes_metrics_only_where_a_run_that_goes_on_does() -> Outcome {
    for background in [false, true] {
        let dir = tempfile::tempdir()?;
        let (run, preemption) = (Run::new(), Preemption::new());
        let builder = CheckpointManager::builder(run.checkpoint(), dir.path()).save_every(2);
        let builder = builder.preemption(preemption.clone()).max_to_keep(None);
        let mut manager = if background { builder.background(Background::new()).open()? } else { builder.open()? };
        let mut evaluated = Vec::new();
        for request in [false, false, true] {
            if request {
                preemption.request();
            }
            let step = run.train();
            let metrics = || {
                evaluated.push(step);
                [("loss", 0.5)]
            };
            assert_eq!(manager.save_if_due_with_metrics(step, metrics)?.is_some(), step > 1);
        }
        // There may be no time for an evaluation, which could also draw random numbers.
        assert_eq!(evaluated, [2]);
        assert!(manager.should_stop());
        drop(manager);
        let saved = CheckpointDirectory::new(dir.path()).checkpoints()?;
        assert_eq!(saved.iter().map(|info| info.metrics.len()).collect::<Vec<_>>(), [1, 0]);

        // Where it is due all the same, and where it adds to what is there, it has them.
        for same in [false, true] {
            let (again, preemption) = (Run::new(), Preemption::new());
            let builder = CheckpointManager::builder(again.checkpoint(), dir.path()).save_every(2);
            let mut manager = builder.preemption(preemption.clone()).max_to_keep(None).open()?;
            manager.restore_or_initialize()?;
            let last = again.train();
            if same {
                manager.save_at(last)?;
            } else {
                manager.save_if_due(last)?;
            }
            preemption.request();
            let step = if same { last } else { again.train() };
            let path = manager.save_if_due_with_metrics(step, || [("loss", 0.5)])?.ok_or("it is not saved")?;
            let name = path.file_name().and_then(|name| name.to_str()).ok_or("no name")?;
            assert_eq!(CheckpointDirectory::new(dir.path()).get(name)?.metrics["loss"], 0.5, "{same}");
        }
    }
    Ok(())
}

/// Panics at the last call.
#[derive(Debug)]
struct Panics(Preemption);

impl SavePolicy for Panics {
    fn is_due(&self, _context: &SaveContext) -> bool {
        assert!(!self.0.is_requested(), "this policy has a fault");
        false
    }
}

#[test]
fn a_policy_that_panics_does_not_cost_the_last_save() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (run, preemption) = (Run::new(), Preemption::new());
    let builder = run.builder(dir.path())?.save_when(Panics(preemption.clone()));
    let mut manager = builder.preemption(preemption.clone()).open()?;
    assert_eq!(manager.save_if_due(run.train())?, None);
    preemption.request();
    assert!(manager.save_if_due_with_metrics(run.train(), || [("loss", 0.5)])?.is_some());
    assert!(manager.should_stop());
    Ok(())
}

#[test]
fn a_limit_of_time_is_a_request() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let preemption = Preemption::new().after(Duration::from_millis(100));
    let mut manager = run.builder(dir.path())?.preemption(preemption).open()?;
    let mut saved = Vec::new();
    while !manager.should_stop() {
        saved.extend(manager.save_if_due(run.train())?);
    }
    assert_eq!(saved.len(), 1);
    assert_eq!(manager.save_if_due(run.train())?, None);
    Ok(())
}

#[test]
fn the_grace_counts_from_the_request() -> Outcome {
    let (grace, pause) = (Duration::from_secs(60), Duration::from_millis(120));
    let asked = Preemption::new().grace(grace);
    let limited = Preemption::new().grace(grace).after(Duration::from_millis(1));
    assert_eq!(asked.time_left(), None);
    asked.request();
    // There is no request in the meantime.
    std::thread::sleep(pause);
    for preemption in [asked, limited] {
        let left = preemption.time_left().ok_or("it is not requested")?;
        assert!(left + pause <= grace + Duration::from_millis(1), "{left:?}");
    }
    assert_eq!(Preemption::new().after(Duration::ZERO).time_left(), None, "no grace is set");
    Ok(())
}

#[cfg(feature = "signals")]
mod signals {
    use super::*;
    use std::io::{BufRead, BufReader, Write};
    use std::process::{Child, ChildStdout, Command, Stdio};
    use tch_checkpoint::save_policy::OnSignal;
    use tch_checkpoint::{CheckpointDirectory, Signal, latest_checkpoint, verify_checkpoint};

    /// The process that gets a signal in a long step, where the environment says that this is it.
    #[test]
    fn child_in_a_long_step() -> Outcome {
        if std::env::var_os("PREEMPTION_LONG_STEP").is_none() {
            return Ok(());
        }
        let preemption = Preemption::new().grace(Duration::from_secs(60)).on_signals([Signal::Term])?;
        println!("begins");
        std::io::stdin().read_line(&mut String::new())?;
        println!("left {}", preemption.time_left().ok_or("no signal")?.as_millis());
        Ok(())
    }

    #[test]
    fn the_grace_counts_from_the_signal_not_from_the_first_look() -> Outcome {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--exact", "signals::child_in_a_long_step", "--nocapture"]).env("PREEMPTION_LONG_STEP", "1");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut out = BufReader::new(child.stdout.take().ok_or("no output")?);
        wait_for(&mut out, "begins")?;
        signal(&child, "TERM")?;
        std::thread::sleep(Duration::from_millis(500));
        writeln!(child.stdin.take().ok_or("no input")?, "look")?;
        let line = wait_for(&mut out, "left")?;
        let left: u64 = line.trim().rsplit(' ').next().ok_or("nothing")?.parse()?;
        assert!(left <= 59_600, "{left} ms of 60,000 are left 500 ms after the signal");
        assert!(child.wait()?.success());
        Ok(())
    }

    /// The process that is asked to end, where the environment says that this is it: trains until then, or for ever.
    #[test]
    fn child() -> Outcome {
        let Some(dir) = std::env::var_os("PREEMPTION_DIR") else { return Ok(()) };
        let run = Run::new();
        let mut preemption = Preemption::new().on_signals([Signal::Term, Signal::Usr1])?;
        if std::env::var_os("PREEMPTION_TWICE").is_some() {
            // A library and the program do the same, with clones of one request.
            let library = preemption.clone().on_signals([Signal::Hup, Signal::Term, Signal::Hup])?;
            preemption = library.on_signals([Signal::Usr1])?;
        }
        let mut manager = run.builder(Path::new(&dir))?.preemption(preemption).background(Background::new()).open()?;
        manager.restore_or_initialize()?;
        assert!(run.is_at(run.step.get()));
        println!("begins");
        loop {
            manager.save_if_due(run.train())?;
            if manager.should_stop() && std::env::var_os("PREEMPTION_IGNORED").is_none() {
                break;
            }
        }
        println!("ends at {}", run.step.get());
        Ok(manager.close()?)
    }

    fn begin(dir: &Path, ignores: bool, twice: bool) -> Result<(Child, BufReader<ChildStdout>), std::io::Error> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--exact", "signals::child", "--nocapture"]).env("PREEMPTION_DIR", dir);
        if ignores {
            command.env("PREEMPTION_IGNORED", "1");
        }
        if twice {
            command.env("PREEMPTION_TWICE", "1");
        }
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        let mut out = BufReader::new(child.stdout.take().ok_or(std::io::ErrorKind::BrokenPipe)?);
        wait_for(&mut out, "begins")?;
        Ok((child, out))
    }

    /// Reads up to a line that has these words.
    fn wait_for(out: &mut BufReader<ChildStdout>, words: &str) -> Result<String, std::io::Error> {
        let mut line = String::new();
        while !line.contains(words) {
            line.clear();
            if out.read_line(&mut line)? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(line)
    }

    fn signal(child: &Child, name: &str) -> Result<(), std::io::Error> {
        let status = Command::new("kill").arg(format!("-{name}")).arg(child.id().to_string()).status()?;
        assert!(status.success());
        Ok(())
    }

    /// `PREEMPTION_SIGNALS` in the environment sets how many.
    #[test]
    fn a_signal_at_any_moment_ends_with_a_verified_checkpoint() -> Outcome {
        let count = std::env::var("PREEMPTION_SIGNALS").ok().and_then(|count| count.parse().ok()).unwrap_or(6);
        let dir = tempfile::tempdir()?;
        let mut reached = 0;
        for number in 0..count {
            let (mut child, mut out) = begin(dir.path(), false, false)?;
            std::thread::sleep(Duration::from_micros(7_919 * number % 40_000));
            signal(&child, if number % 2 == 0 { "TERM" } else { "USR1" })?;
            let line = wait_for(&mut out, "ends at")?;
            assert!(child.wait()?.success());
            let step: u64 = line.trim().rsplit(' ').next().ok_or("no step")?.parse()?;
            let latest = latest_checkpoint(dir.path())?.ok_or("no checkpoint")?;
            assert!(latest.ends_with(format!("ckpt-{step}")), "{} at {step}", latest.display());
            assert!(verify_checkpoint(&latest).is_intact());
            let again = Run::new();
            again.builder(dir.path())?.open()?.restore_or_initialize()?;
            assert!(again.is_at(step) && step > reached);
            reached = step;
        }
        Ok(())
    }

    #[test]
    fn a_second_signal_ends_at_once() -> Outcome {
        for twice in [false, true] {
            let dir = tempfile::tempdir()?;
            let (mut child, _out) = begin(dir.path(), true, twice)?;
            signal(&child, "TERM")?;
            // Until the first one has been handled: its checkpoint is there.
            while latest_checkpoint(dir.path())?.is_none() {
                assert_eq!(child.try_wait()?, None, "the first one ended it");
                std::thread::sleep(Duration::from_millis(5));
            }
            signal(&child, "TERM")?;
            assert_eq!(child.wait()?.code(), Some(128 + 15));
            let latest = latest_checkpoint(dir.path())?.ok_or("no checkpoint")?;
            assert!(verify_checkpoint(&latest).is_intact());
        }
        Ok(())
    }

    /// With two handlers the first signal would count as the second.
    #[test]
    fn a_signal_that_is_handled_already_is_ignored() -> Outcome {
        for name in ["TERM", "USR1", "HUP"] {
            let dir = tempfile::tempdir()?;
            let (mut child, mut out) = begin(dir.path(), false, true)?;
            signal(&child, name)?;
            let line = wait_for(&mut out, "ends at")?;
            assert!(child.wait()?.success());
            let step = line.trim().rsplit(' ').next().ok_or("no step")?;
            let latest = latest_checkpoint(dir.path())?.ok_or("no checkpoint")?;
            assert!(latest.ends_with(format!("ckpt-{step}")) && verify_checkpoint(&latest).is_intact());
        }
        Ok(())
    }

    /// The process that saves on request and trains on, where the environment says that this is it.
    #[test]
    fn child_that_saves_on_request() -> Outcome {
        let Some(dir) = std::env::var_os("PREEMPTION_REQUESTS") else { return Ok(()) };
        let run = Run::new();
        let builder = run.builder(Path::new(&dir))?.save_when(OnSignal::new(Signal::Usr2)?);
        let mut manager = builder.preemption(Preemption::new().on_signals([Signal::Term])?).open()?;
        println!("begins");
        while !manager.should_stop() {
            if manager.save_if_due(run.train())?.is_some() {
                println!("saved {}", run.step.get());
            }
        }
        Ok(manager.close()?)
    }

    #[test]
    fn on_a_signal_it_saves_once_and_trains_on() -> Outcome {
        let dir = tempfile::tempdir()?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--exact", "signals::child_that_saves_on_request", "--nocapture"]);
        let mut child = command.env("PREEMPTION_REQUESTS", dir.path()).stdout(Stdio::piped()).spawn()?;
        let mut out = BufReader::new(child.stdout.take().ok_or("no output")?);
        wait_for(&mut out, "begins")?;
        let mut steps = Vec::new();
        for name in ["USR2", "USR2", "TERM"] {
            signal(&child, name)?;
            let line = wait_for(&mut out, "saved")?;
            steps.push(line.trim().rsplit(' ').next().ok_or("no step")?.parse::<u64>()?);
        }
        assert!(child.wait()?.success());
        assert!(steps.is_sorted_by(|one, next| one < next), "{steps:?}");
        // No more than were requested.
        let saved = CheckpointDirectory::new(dir.path()).checkpoints()?;
        assert_eq!(saved.iter().filter_map(|info| info.step).collect::<Vec<_>>(), steps);
        for info in &saved {
            assert!(verify_checkpoint(dir.path().join(&info.name)).is_intact());
        }
        Ok(())
    }

    /// It would be answered by the save after the one that is being written, which fails.
    #[test]
    fn a_signal_during_a_save_that_fails_is_answered() -> Outcome {
        let dir = tempfile::tempdir()?;
        let run = Run::new();
        let builder = run.builder(dir.path())?.save_when(OnSignal::new(Signal::Usr2)?);
        let mut manager = builder.background(Background::new()).open()?;
        let mut failed_before_the_call = 0;
        for _ in 0..20 {
            let step = run.train();
            std::fs::write(dir.path().join(format!("ckpt-{step}")), "mine")?;
            manager.save_at(step)?;
            signal_hook::low_level::raise(signal_hook::consts::SIGUSR2)?;
            failed_before_the_call += i32::from(!manager.is_saving());
            assert!(manager.save_if_due(run.train()).is_err());
            assert!(manager.save_if_due(run.train())?.is_some());
            manager.wait()?;
            assert_eq!(manager.save_if_due(run.train())?, None);
        }
        println!("{failed_before_the_call} of 20 had failed before the call");
        Ok(())
    }
}
