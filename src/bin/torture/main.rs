//! `torture`: the crash and fault tests at full length. Each prints its figures and fails if anything was lost.

use std::time::Duration;
use tch_checkpoint::torture::{CrashRun, Phase, crash, faults_everywhere};

const HELP: &str = "\
usage: torture crash [--seed N] [--images M] [--phase first|second] [--minutes T]
    Every state of a simulated disk after a crash at every operation; `second`: a crash again during recovery.
torture faults [--every N]
    Every operation fails in every way, once and for ever; pairs of faults during recovery; failing and lying syncs
    with a crash after them. N: only every N-th.
";

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let option = |name: &str| args.iter().position(|arg| arg == name).and_then(|at| args.get(at + 1)).cloned();
    let number = |name: &str, default: u64| option(name).and_then(|text| text.parse().ok()).unwrap_or(default);
    let limit = Duration::from_secs(60 * number("--minutes", 24 * 60));
    let passed = match args.first().map(String::as_str) {
        Some("crash") => {
            let phases = match option("--phase").as_deref() {
                Some("first") => vec![Phase::First],
                Some("second") => vec![Phase::Second],
                _ => vec![Phase::First, Phase::Second],
            };
            let images = number("--images", 10_000_000);
            phases.into_iter().all(|phase| crashes(CrashRun { seed: number("--seed", 1), images, limit, phase }))
        }
        Some("faults") => faults(number("--every", 1)),
        _ => {
            eprint!("{HELP}");
            std::process::exit(2);
        }
    };
    std::process::exit(if passed { 0 } else { 1 });
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

fn faults(every: u64) -> bool {
    let report = faults_everywhere(every.max(1));
    println!(
        "faults: {} runs, {} with a fault that struck, {} without an error all the same, {} images after bad syncs, {} violations",
        report.runs,
        report.struck,
        report.survived,
        report.images,
        report.violations.len()
    );
    for violation in report.violations.iter().take(10) {
        println!("\n{violation}");
    }
    report.violations.is_empty()
}
