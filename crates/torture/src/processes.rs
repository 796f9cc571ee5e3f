//! Eight processes in one directory: four writers, one of which has the lock, and four readers while it saves and
//! prunes. Any of them is killed at any time.

use super::kills::look;
use super::random::Random;
use super::run::{Run, Setup, restore};
use super::system::System;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};
use tch_checkpoint::{Error, Result};

const WRITERS: usize = 4;
const READERS: usize = 4;

/// The result of [`processes`].
#[derive(Debug, Clone, Default)]
pub struct ProcessReport {
    /// The number of killed processes.
    pub killed: u64,
    /// How often a writer took the lock.
    pub opened: u64,
    /// The number of acknowledged saves.
    pub saved: u64,
    /// The number of restores by readers.
    pub restored: u64,
    /// How often a reader chose again because its checkpoint was removed.
    pub again: u64,
    /// The violations.
    pub violations: Vec<String>,
}

fn setup(random: &mut Random) -> Setup {
    Setup { components: 3, frozen: 1, bytes: 70_000, background: random.one_in(2), ..Setup::default() }
}

/// The newest step that was acknowledged, in a file beside the directory.
struct Acknowledged(PathBuf);

impl Acknowledged {
    fn beside(directory: &Path) -> Acknowledged {
        Acknowledged(directory.with_extension("acknowledged"))
    }

    fn step(&self) -> u64 {
        let mut bytes = [0; 8];
        let read = File::open(&self.0).and_then(|file| file.read_exact_at(&mut bytes, 0));
        read.map_or(0, |()| u64::from_le_bytes(bytes))
    }

    /// Requires the lock, so that steps only increase.
    fn note(&self, step: u64) -> io::Result<()> {
        let file = OpenOptions::new().create(true).write(true).truncate(false).open(&self.0)?;
        file.write_all_at(&step.to_le_bytes(), 0)
    }
}

/// One of the processes; `role` is `writer` or `reader`. Says on its standard output what it did and what is wrong.
pub fn process_child(role: &str, directory: &Path, seed: u64) -> Result<()> {
    let mut random = Random::new(seed);
    loop {
        let said = match role {
            "writer" => write(directory, &mut random)?,
            _ => read(directory, &mut random)?,
        };
        if let Some(said) = said {
            say(&said)?;
        }
    }
}

fn failed(path: impl AsRef<Path>, source: std::io::Error) -> Error {
    Error::io("write", path.as_ref(), source)
}

fn say(line: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(|source| failed("standard output", source))
}

/// Takes the lock if it is free, and then restores, saves a few times, and gives it back.
fn write(directory: &Path, random: &mut Random) -> Result<Option<String>> {
    let run = Run::new(&setup(random));
    let mut manager = match run.open(Arc::new(System::default()), directory) {
        Err(Error::Locked { .. }) => {
            std::thread::sleep(Duration::from_millis(2));
            return Ok(None);
        }
        Err(e) => return Ok(Some(format!("BROKEN: it cannot be opened: {e}"))),
        Ok(manager) => manager,
    };
    say("opened")?;
    let acknowledged = Acknowledged::beside(directory);
    let (before, started) = (acknowledged.step(), restore(&mut manager));
    let step = match &started {
        Err(e) => return Ok(Some(format!("BROKEN: it cannot be restored: {e}"))),
        Ok(started) => started.restored.as_ref().and_then(|status| status.step()).unwrap_or(0),
    };
    if let Some(wrong) = wrong(&run, step, before) {
        return Ok(Some(wrong));
    }
    for step in step + 1..=step + 1 + random.below(8) as u64 {
        run.set(step);
        if let Err(e) = manager.save_at(step).and_then(|_| manager.wait()) {
            return Ok(Some(format!("BROKEN: step {step} cannot be saved: {e}")));
        }
        acknowledged.note(step).map_err(|source| failed(directory, source))?;
        say("saved")?;
    }
    manager.close()?;
    Ok(None)
}

/// Restores the newest, as a process that evaluates beside the training would.
fn read(directory: &Path, random: &mut Random) -> Result<Option<String>> {
    let before = Acknowledged::beside(directory).step();
    let listing = tch_checkpoint::list_checkpoints(directory)?;
    if let Some((path, e)) = listing.damaged.first() {
        return Ok(Some(format!("BROKEN: {} is listed as damaged: {e}", path.display())));
    }
    let Some(newest) = listing.checkpoints.last().map(|listed| &listed.path) else {
        return Ok((before > 0).then(|| format!("BROKEN: {before} was acknowledged, there is nothing")));
    };
    let run = Run::new(&setup(random));
    match run.checkpoint(Arc::new(System::default()))?.restore(newest) {
        Ok(status) => {
            let step = status.step().unwrap_or(0);
            Ok(Some(wrong(&run, step, before).unwrap_or_else(|| "restored".into())))
        }
        // Two saves later it is gone; then there is a newer one.
        Err(_) if !newest.exists() && run.is_untouched() => Ok(Some("again".into())),
        Err(e) => Ok(Some(format!("BROKEN: {} cannot be restored: {e}", newest.display()))),
    }
}

/// Returns what is wrong with the restored values.
fn wrong(run: &Run, step: u64, acknowledged: u64) -> Option<String> {
    if step < acknowledged {
        return Some(format!("BROKEN: LOST: {acknowledged} was acknowledged, {step} is restored"));
    }
    let right = if step == 0 { run.is_untouched() } else { run.is_at(step) };
    (!right).then(|| format!("BROKEN: TORN: the values are not those of step {step}"))
}

/// Lets the processes that `command` starts, given role, directory and seed, work in a directory under `scratch` for so
/// long, and kills one of them every now and then.
pub fn processes(
    scratch: &Path,
    lasting: Duration,
    seed: u64,
    mut command: impl FnMut(&str, &Path, u64) -> Command,
) -> io::Result<ProcessReport> {
    let mut report = ProcessReport::default();
    let mut random = Random::new(seed);
    let directory = scratch.join("run");
    let (sender, said) = channel();
    let mut start = |place: usize, seed: u64| {
        let role = if place < WRITERS { "writer" } else { "reader" };
        let child = command(role, &directory, seed).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        child.map(|child| listen(child, role, sender.clone()))
    };
    let mut children = Vec::new();
    for place in 0..WRITERS + READERS {
        children.push(start(place, random.next())?);
    }
    let end = Instant::now() + lasting;
    while Instant::now() < end {
        let until = Instant::now() + Duration::from_millis(5 + random.below(120) as u64);
        while let Ok(line) = said.recv_timeout(until.saturating_duration_since(Instant::now())) {
            report.add(line);
        }
        let place = random.below(children.len());
        // A process that ended by itself has failed.
        if let Some(status) = children[place].try_wait()? {
            report.violations.push(format!("process {place} ended by itself: {status}"));
        }
        children[place].kill()?;
        children[place].wait()?;
        children[place] = start(place, random.next())?;
        report.killed += 1;
    }
    for child in &mut children {
        child.kill()?;
        child.wait()?;
    }
    drop(sender);
    said.into_iter().for_each(|line| report.add(line));
    let newest = Acknowledged::beside(&directory).step();
    report.violations.extend(look(&directory, &scratch.join("copy"), &setup(&mut random), newest, "in the end"));
    Ok(report)
}

fn listen(mut child: Child, role: &'static str, sender: Sender<(&'static str, String)>) -> Child {
    if let Some(output) = child.stdout.take() {
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(io::Result::ok) {
                let _ = sender.send((role, line));
            }
        });
    }
    child
}

impl ProcessReport {
    fn add(&mut self, (role, line): (&str, String)) {
        match line.trim() {
            "opened" => self.opened += 1,
            "saved" => self.saved += 1,
            "restored" => self.restored += 1,
            "again" => self.again += 1,
            _ if line.contains("BROKEN") => self.violations.push(format!("{role}: {line}")),
            // Output of other programs, such as the test harness.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHILD: &str = "TORTURE_PROCESS";

    /// Not a test of its own: one of the processes of [`eight_processes_lose_and_tear_nothing`].
    #[test]
    fn child() {
        let Ok(order) = std::env::var(CHILD) else { return };
        if let [role, seed, directory] = order.splitn(3, ' ').collect::<Vec<_>>()[..] {
            process_child(role, Path::new(directory), seed.parse().unwrap()).unwrap();
        }
    }

    /// Runs a few seconds; the long form is `cargo xtask torture processes`.
    #[test]
    #[cfg_attr(libtorch, ignore = "many processes would load libtorch; it runs without libtorch")]
    fn eight_processes_lose_and_tear_nothing() {
        let scratch = tempfile::tempdir().unwrap();
        let this = std::env::current_exe().unwrap();
        let report = processes(scratch.path(), Duration::from_secs(4), 1, |role, directory, seed| {
            let mut command = Command::new(&this);
            command.args(["--exact", "processes::tests::child", "--nocapture"]);
            command.env(CHILD, format!("{role} {seed} {}", directory.display()));
            command
        });
        let report = report.unwrap();
        println!("{report:?}");
        assert!(report.violations.is_empty(), "{}", report.violations.join("\n"));
        assert!(report.killed > 10 && report.saved > 20 && report.restored > 20, "{report:?}");
    }
}
