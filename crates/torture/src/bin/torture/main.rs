//! `torture`: the crash and fault tests at full length. Each prints its figures and fails if anything was lost.

mod actors;
mod power;
mod processes;
mod stamp;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tch_checkpoint_torture::{
    CrashRun, KillReport, Phase, Programs, broken_histories, crash, damage, faults_everywhere, histories, kill_child,
    kills, mutants,
};

const HELP: &str = "\
usage: torture crash [--seed N] [--images M] [--phase first|second] [--programs saves|marks|again|noted] [--minutes T]
    Every state of a simulated disk after a crash at every operation; `second`: a crash again during recovery;
    `marks`: of a program that also pins, links, gets late metrics, and removes components.
    `again`: of one that saves steps again with another state, or goes back, so that checkpoints are superseded.
    `noted`: of one that gives notes while it saves, and saves pinned checkpoints again for their metadata.
torture faults [--every N]
    Every operation fails in every way, once and for ever; pairs of faults during recovery; failing and lying syncs
    with a crash after them. N: only every N-th.
torture mutants [--images M]
    The protocol with one thing wrong, in every way we know: each must be caught.
torture history [--histories N] [--seed N] [--scratch DIR]
    N random histories of a manager's calls and of what others do in its directory, against a plain list of what should
    be there; and the rules with one of them broken: each must be caught. Best with a scratch directory in memory.
torture damage [--flips N] [--seed N]
    Every bit of a small checkpoint, N random ones of a larger, truncation, extension, zeros, swapped and missing files.
torture kills [--scratch DIR] [--strace yes]
    A real process killed before each of its file operations, or with strace before each of its system calls.
torture power [--cuts N] [--seed N] [--file-system ext4|xfs|btrfs] [--scratch DIR]
    N real power cuts of each file system, as root; and N/6 of a process that does not sync, which must lose something.
torture actors [--operations N] [--seed N] [--scratch DIR]
    N random things that a second process does in and around the directory while a manager saves, rotates and restarts.
torture processes [--minutes T] [--seed N] [--scratch DIR]
    Four processes that write, one at a time, and four that read meanwhile, killed at random for T minutes.
torture stamp [--saves N] [--seed N] [--scratch DIR]
    N saves in the background while everything is overwritten; and some with a mutator that breaks the rules.
";

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let option = |name: &str| args.iter().position(|arg| arg == name).and_then(|at| args.get(at + 1)).cloned();
    let number = |name: &str, default: u64| option(name).and_then(|text| text.parse().ok()).unwrap_or(default);
    let scratch = option("--scratch").map_or_else(std::env::temp_dir, PathBuf::from);
    let scratch = scratch.join(format!("torture-{}", std::process::id()));
    let limit = Duration::from_secs(60 * number("--minutes", 24 * 60));
    let passed = match args.first().map(String::as_str) {
        Some("crash") => {
            let phases = match option("--phase").as_deref() {
                Some("first") => vec![Phase::First],
                Some("second") => vec![Phase::Second],
                _ => vec![Phase::First, Phase::Second],
            };
            let images = number("--images", 10_000_000);
            let programs = match option("--programs").as_deref() {
                Some("saves") => Programs::Saves,
                Some("marks") => Programs::Marks,
                Some("again") => Programs::Again,
                Some("noted") => Programs::Noted,
                _ => Programs::All,
            };
            let seed = number("--seed", 1);
            phases.into_iter().all(|phase| crashes(CrashRun { seed, images, limit, phase, programs }))
        }
        Some("faults") => faults(number("--every", 1)),
        Some("history") => history(&scratch, number("--seed", 1), number("--histories", 1_000_000)),
        Some("mutants") => mutated(number("--images", 100_000)),
        Some("damage") => damaged(number("--flips", 100_000), number("--seed", 1)),
        Some("kills") => killed(&scratch, option("--strace").is_some()),
        Some("power") => {
            let only = option("--file-system");
            power::cut(&args, &scratch, only.as_deref(), number("--cuts", 300), number("--seed", 1))
        }
        Some("power-child") => match &args[1..] {
            [directory, seed, level] => power::child(directory, seed, level),
            _ => false,
        },
        Some("processes") => processes::run(&scratch, number("--minutes", 10), number("--seed", 1)),
        Some("stamp") => stamp::run(&scratch, number("--saves", 10_000), number("--seed", 1)),
        Some("actors") => actors::run(&scratch, number("--operations", 100_000), number("--seed", 1)),
        Some("actor-child") => match &args[1..] {
            [directory, seed] => actors::child(directory, seed),
            _ => false,
        },
        Some("process-child") => match &args[1..] {
            [role, directory, seed] => processes::child(role, directory, seed),
            _ => false,
        },
        Some("kill-child") => match (args.get(1), args.get(2), args.get(3)) {
            (Some(directory), Some(keep), Some(at)) => {
                let number = |text: &String| text.parse().unwrap_or(u64::MAX);
                let result = kill_child(Path::new(directory), number(keep) as usize, number(at));
                result.inspect_err(|e| eprintln!("{e}")).is_ok()
            }
            _ => false,
        },
        _ => {
            eprint!("{HELP}");
            std::process::exit(2);
        }
    };
    std::process::exit(i32::from(!passed));
}

fn crashes(run: CrashRun) -> bool {
    println!("{run:?}");
    let mut shown = 0;
    let report = crash(&run, |report| {
        if report.images / 500_000 > shown {
            shown = report.images / 500_000;
            println!("  {} images, {} distinct, {} violations", report.images, report.distinct, report.violations);
        }
    });
    println!(
        "{:?}: {} settings, {} crash points, {} images, {} distinct, {} violations",
        run.phase, report.setups, report.points, report.images, report.distinct, report.violations
    );
    for example in &report.examples {
        println!("\n{example}");
    }
    report.violations == 0
}

fn history(scratch: &Path, seed: u64, count: u64) -> bool {
    let scratch = scratch.join("history");
    let shown = AtomicUsize::new(0);
    let report = histories(&scratch, seed, count, |report| {
        let before = shown.swap(report.examples.len(), Ordering::Relaxed);
        report.examples.iter().skip(before).for_each(|example| println!("\n{example}"));
        if report.histories.is_multiple_of(10_000) {
            println!("  {} histories, {} violations", report.histories, report.violations);
        }
    });
    let (run, deeds, violations) = (report.histories, report.deeds, report.violations);
    println!("history: {run} histories, {deeds} deeds, {violations} violations (seed {seed})");
    let broken = broken_histories(&scratch, seed, count.min(100_000));
    for (rule, after) in &broken {
        match after {
            Some(after) => println!("  {rule} broken: caught within {after} histories"),
            None => println!("  {rule} broken: NOT CAUGHT"),
        }
    }
    let _ = std::fs::remove_dir_all(&scratch);
    violations == 0 && broken.iter().all(|(_, after)| after.is_some())
}

fn faults(every: u64) -> bool {
    let report = faults_everywhere(every.max(1), |part, report| {
        let (runs, images, violations) = (report.runs, report.images, report.violations.len());
        println!("  {part}: {runs} runs, {images} images, {violations} violations");
    });
    println!(
        "faults: {} runs, {} with a fault that struck, {} without an error all the same, {} images after bad syncs, {} violations",
        report.runs,
        report.struck,
        report.survived,
        report.images,
        report.violations.len()
    );
    for violation in report.violations.iter().take(20) {
        println!("\n{violation}");
    }
    report.violations.is_empty()
}

fn mutated(images: u64) -> bool {
    let reports = mutants(images, true);
    for report in &reports {
        let [weak, journal] = report.broken;
        println!(
            "{:5} {:70} weak {}/{}, journal {}/{}  {}",
            report.name,
            report.wrong,
            weak.0,
            weak.1,
            journal.0,
            journal.1,
            match (&report.harmless, report.as_expected) {
                (None, true) => "caught".to_string(),
                (Some(why), true) => format!("harmless: {why}"),
                (None, false) => "NOT CAUGHT".to_string(),
                (Some(why), false) => format!("NOT HARMLESS, although {why}"),
            }
        );
    }
    reports.iter().all(|report| report.as_expected)
}

fn damaged(flips: u64, seed: u64) -> bool {
    let report = damage(1, flips, seed);
    println!(
        "damage: {} bits of a small checkpoint, {} random bits of a larger one, {} others, {} not found or with wrong consequences",
        report.bits,
        report.random_bits,
        report.others,
        report.violations.len()
    );
    for violation in report.violations.iter().take(10) {
        println!("{violation}");
    }
    report.violations.is_empty()
}

/// The system calls before which strace kills: every one that can change a file or is a sync.
const CALLS: [&str; 13] = [
    "mkdir",
    "openat",
    "write",
    "pwrite64",
    "ftruncate",
    "fsync",
    "rename",
    "renameat2",
    "unlink",
    "rmdir",
    "linkat",
    "flock",
    "close",
];

fn killed(scratch: &Path, strace: bool) -> bool {
    if strace && Command::new("strace").arg("-V").output().is_err() {
        println!("SKIPPED: kills with strace: there is no strace");
        return true;
    }
    let run = || -> std::io::Result<KillReport> {
        std::fs::create_dir_all(scratch)?;
        let this = std::env::current_exe()?;
        if !strace {
            return kills(scratch, |directory, keep, at| {
                let mut command = Command::new(&this);
                command.arg("kill-child").arg(directory).args([keep.to_string(), at.to_string()]);
                command
            });
        }
        let mut all = KillReport::default();
        for call in CALLS {
            // The counters of strace are those of one call.
            let report = kills(scratch, |directory, keep, at| {
                let inject = format!("inject={call}:signal=SIGKILL:when={}", at + 1);
                let mut command = Command::new("strace");
                command.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}"), "-e", &inject]);
                command.arg(&this).arg("kill-child").arg(directory).args([keep.to_string(), u64::MAX.to_string()]);
                command
            })?;
            println!("  before {call}: {} killed, {} violations", report.killed, report.violations.len());
            all.killed += report.killed;
            all.violations.extend(report.violations);
        }
        Ok(all)
    };
    let result = run();
    let _ = std::fs::remove_dir_all(scratch);
    match result {
        Ok(report) => {
            println!("kills: {} processes killed, {} violations", report.killed, report.violations.len());
            for violation in report.violations.iter().take(10) {
                println!("{violation}");
            }
            report.violations.is_empty()
        }
        Err(e) => {
            println!("kills: cannot be run: {e}");
            false
        }
    }
}
