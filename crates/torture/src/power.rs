//! Real power cuts: a process saves into a real file system while its power is cut. What is found afterwards is
//! compared with what the process had acknowledged.

use super::kills::look;
use super::loops::{Cut, FileSystem, Loop, why_not};
use super::random::Random;
use super::run::{Run, Setup, restore};
use super::system::System;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use tch_checkpoint::Durability;

/// The parameters of a run.
#[derive(Debug, Clone)]
pub struct PowerRun {
    /// The file system.
    pub file_system: FileSystem,
    /// The number of power cuts.
    pub cuts: u64,
    /// The seed of the choices. The moments of the cuts are not repeatable.
    pub seed: u64,
    /// The durability of the saves.
    pub durability: Durability,
}

/// The result of [`power`].
#[derive(Debug, Clone, Default)]
pub struct PowerReport {
    /// Why nothing was run.
    pub skipped: Option<String>,
    /// The number of cuts.
    pub cuts: u64,
    /// Of these: the journal written first, and the device itself.
    pub with_journal: u64,
    /// See [`PowerReport::with_journal`].
    pub of_device: u64,
    /// The number of acknowledged saves.
    pub acknowledged: u64,
    /// The number of cuts with a violation.
    pub broken: u64,
    /// Some of them.
    pub violations: Vec<String>,
}

/// The number of cuts for which a run continues in the same directory.
const CUTS_A_RUN: u64 = 8;

/// What the process saves, and how, is a function of this number.
fn setup(seed: u64, durability: Durability) -> Setup {
    let mut random = Random::new(seed);
    Setup {
        components: 1 + random.below(4),
        frozen: random.below(2),
        keep: Some(1 + random.below(3)),
        // Some are written past the page cache.
        bytes: [100, 5000, 70_000, 300_000, 9 << 20][random.below(5)],
        background: random.one_in(2),
        durability,
        ..Setup::default()
    }
}

/// The process: opens, restores, and saves until it ends, saying on its standard output what was saved.
pub fn power_child(directory: &Path, seed: u64, durability: Durability) -> tch_checkpoint::Result<()> {
    let run = Run::new(&setup(seed, durability));
    let mut manager = run.open(Arc::new(System::default()), directory)?;
    let first = restore(&mut manager)?.restored.and_then(|status| status.step()).map_or(1, |step| step + 1);
    for step in first.. {
        run.set(step);
        manager.save_at(step)?;
        manager.wait()?;
        let mut out = io::stdout().lock();
        if writeln!(out, "saved {step}").and_then(|()| out.flush()).is_err() {
            break;
        }
    }
    manager.close()
}

/// Cuts the power of a file system made under `scratch` while the process that `command` starts, given the directory
/// and the seed, works in it. To be run in a mount namespace of its own.
pub fn power(
    scratch: &Path,
    run: &PowerRun,
    mut command: impl FnMut(&Path, u64, Durability) -> Command,
) -> io::Result<PowerReport> {
    let mut report = PowerReport { skipped: why_not(run.file_system), ..PowerReport::default() };
    if report.skipped.is_some() {
        return Ok(report);
    }
    let disk = match Loop::make(run.file_system, scratch) {
        Ok(disk) => disk,
        Err(e) => return Ok(PowerReport { skipped: Some(e.to_string()), ..report }),
    };
    let mut random = Random::new(run.seed);
    let mut name = 0;
    while report.cuts < run.cuts {
        let seed = random.next();
        let setup = setup(seed, run.durability);
        let directory = disk.directory().join(format!("run-{name}"));
        name += 1;
        let mut acknowledged = 0;
        for _ in 0..CUTS_A_RUN.min(run.cuts - report.cuts) {
            let child =
                command(&directory, seed, run.durability).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
            let (cut, saved) = cut_under(&disk, child, &mut random)?;
            report.acknowledged += saved.len() as u64;
            acknowledged = saved.into_iter().fold(acknowledged, u64::max);
            disk.restart(cut)?;
            report.cuts += 1;
            report.with_journal += u64::from(cut == Cut::LogFlush);
            report.of_device += u64::from(cut == Cut::Device);
            let context = format!("{} {cut:?} {setup:?}, cut {}", run.file_system.name(), report.cuts);
            let broken = look(&directory, &scratch.join("copy"), &setup, acknowledged, &context);
            if !broken.is_empty() {
                report.broken += 1;
                report.violations.extend(broken);
                break;
            }
        }
        let _ = std::fs::remove_dir_all(&directory);
    }
    Ok(report)
}

/// Lets the process work for a moment, cuts the power, and ends it. Returns the steps it said were saved.
fn cut_under(disk: &Loop, mut child: Child, random: &mut Random) -> io::Result<(Cut, Vec<u64>)> {
    let said = lines(&mut child);
    let mut saved = Vec::new();
    // Sometimes while it opens the directory, mostly during a save or the removal after it.
    let (wait_for, deadline) = (random.below(7), Instant::now() + Duration::from_secs(120));
    while saved.len() < wait_for {
        match said.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(step) => saved.push(step),
            Err(e) => {
                let _ = child.kill();
                return Err(io::Error::other(format!("the process saves nothing: {e}")));
            }
        }
    }
    std::thread::sleep(Duration::from_micros(random.below(15_000) as u64));
    let cut = disk.cut(random);
    let _ = child.kill();
    child.wait()?;
    saved.extend(said);
    Ok((cut?, saved))
}

/// Reads the steps that a process reports as saved.
pub(super) fn lines(child: &mut Child) -> Receiver<u64> {
    let (sender, receiver) = channel();
    if let Some(output) = child.stdout.take() {
        std::thread::spawn(move || {
            let saved = |line: String| line.split("saved ").nth(1)?.trim().parse().ok();
            for step in BufReader::new(output).lines().map_while(io::Result::ok).filter_map(saved) {
                if sender.send(step).is_err() {
                    break;
                }
            }
        });
    }
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHILD: &str = "TORTURE_POWER";
    const TEST: &str = "power::tests::a_power_cut_loses_nothing_that_was_acknowledged";

    fn level(durability: Durability) -> &'static str {
        if durability == Durability::PowerLoss { "synced" } else { "unsynced" }
    }

    /// This test program again, with this test alone.
    fn again(program: &mut Command, order: &str) -> Command {
        let mut command = std::mem::replace(program, Command::new(""));
        command.args(["--exact", TEST, "--nocapture"]).env(CHILD, order);
        command
    }

    /// Every file system a few times; the long run is `cargo xtask torture power`.
    #[test]
    #[cfg_attr(libtorch, ignore = "many processes would load libtorch; it runs without libtorch")]
    fn a_power_cut_loses_nothing_that_was_acknowledged() {
        let this = std::env::current_exe().unwrap();
        let order = std::env::var(CHILD).unwrap_or_default();
        match order.splitn(3, ' ').collect::<Vec<_>>()[..] {
            ["child", how, directory] => {
                let (seed, level) = how.split_once('-').unwrap();
                let synced = level == "synced";
                let durability = if synced { Durability::PowerLoss } else { Durability::ProcessCrash };
                // It ends with the power of the disk.
                let _ = power_child(Path::new(directory), seed.parse().unwrap(), durability);
            }
            ["inside", directory] => {
                for file_system in FileSystem::ALL {
                    for durability in [Durability::PowerLoss, Durability::ProcessCrash] {
                        let run = PowerRun { file_system, cuts: 8, seed: 5, durability };
                        let scratch =
                            Path::new(directory).join(format!("{}-{}", file_system.name(), level(durability)));
                        let report = power(&scratch, &run, |directory, seed, durability| {
                            let order = format!("child {seed}-{} {}", level(durability), directory.display());
                            again(&mut Command::new(&this), &order)
                        });
                        let report = report.unwrap();
                        match &report.skipped {
                            Some(why) => println!("SKIPPED: {}: {why}", file_system.name()),
                            None => println!("{run:?}: {} cuts broke a promise", report.broken),
                        }
                        let lossless = durability == Durability::PowerLoss || report.skipped.is_some();
                        assert_eq!(report.broken == 0, lossless, "{}", report.violations.join("\n"));
                    }
                }
                println!("looked at all of them");
            }
            _ => {
                let scratch = tempfile::tempdir().unwrap();
                let mut unshare = Command::new("unshare");
                let order = format!("inside {}", scratch.path().display());
                let output = again(unshare.arg("-m").arg(&this), &order).output();
                match output {
                    Ok(output) => {
                        let error = String::from_utf8_lossy(&output.stderr);
                        let text = format!("{}{error}", String::from_utf8_lossy(&output.stdout));
                        println!("{text}");
                        let refused = error.starts_with("unshare:");
                        assert!(refused || output.status.success() && text.contains("looked at all"), "{text}");
                        if refused {
                            println!("SKIPPED: no mount namespace");
                        }
                    }
                    Err(e) => println!("SKIPPED: no mount namespace: {e}"),
                }
            }
        }
    }
}
