//! `ckpt verify`: verifies that every byte is what was written.

use crate::cli::Verify;
use crate::human::{self, text};
use crate::output::{Exit, Output};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use tch_checkpoint::inspect::{VerifiedCheckpoint, VerifyItem, VerifyOptions, VerifyReport, VerifyState};
use tch_checkpoint::{Error, Progress, VerifiedBy};

pub fn run(args: &Verify, out: &mut Output) -> Result<Exit, Error> {
    let bar = bar(args.quick);
    let progress = bar.clone();
    let options =
        VerifyOptions::new().quick(args.quick).reading(out.reading().clone()).on_progress(move |so_far: Progress| {
            progress.set_length(so_far.total);
            progress.set_position(so_far.done);
        });
    let report = options.verify(&args.paths, |item| {
        bar.suspend(|| match item {
            VerifyItem::Checkpoint(checkpoint) => print(checkpoint, out),
            VerifyItem::Skipped(skipped) => {
                out.line(format!("{:<10}  {} ({})", "skipped", skipped.path.display(), skipped.reason));
            }
            _ => {}
        });
    });
    bar.finish_and_clear();
    sum_up(&report, args.quick, out);
    out.document(&report);
    Ok(match report.checkpoints.iter().map(|checkpoint| checkpoint.state).max() {
        None | Some(VerifyState::Intact | VerifyState::Complete) => Exit::Fine,
        Some(VerifyState::Damaged) => Exit::Finding,
        Some(_) => Exit::Trouble,
    })
}

/// A bar with the rate and the time left on standard error, if that is a terminal.
fn bar(quick: bool) -> ProgressBar {
    let template = "{bar:30} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
    let style = ProgressStyle::with_template(template);
    match (quick || !std::io::stderr().is_terminal(), style) {
        (false, Ok(style)) => ProgressBar::new(0).with_style(style),
        _ => ProgressBar::hidden(),
    }
}

fn print(checkpoint: &VerifiedCheckpoint, out: &mut Output) {
    let path = &checkpoint.path;
    let word = match checkpoint.state {
        VerifyState::Intact => "intact",
        VerifyState::Complete => "complete",
        VerifyState::Damaged => "DAMAGED",
        _ => "UNREADABLE",
    };
    let unverified = match (checkpoint.state, checkpoint.verified_by) {
        (VerifyState::Complete, _) => " (quick: no tensor was read)",
        (VerifyState::Intact, Some(VerifiedBy::Nothing)) => " (structure only: the format has no checksums)",
        _ => "",
    };
    let without = match checkpoint.without.as_slice() {
        [] => String::new(),
        without => format!(" (without {})", without.join(", ")),
    };
    out.line(format!("{word:<10}  {}{unverified}{without}", path.display()));
    for problem in &checkpoint.problems {
        out.line(format!("            {}", problem.within(path)));
    }
    for file in &checkpoint.unexpected {
        let name = text(file.strip_prefix(path).unwrap_or(file));
        out.line(format!("            {name}: unexpected, the manifest does not list it"));
    }
    out.flush();
}

/// Prints a last line if there is more than one result.
fn sum_up(report: &VerifyReport, quick: bool, out: &mut Output) {
    let of = |state| report.checkpoints.iter().filter(|checkpoint| checkpoint.state == state).count();
    let (damaged, unreadable) = (of(VerifyState::Damaged), of(VerifyState::Unreadable));
    if report.checkpoints.len() > 1 {
        let total = human::count(report.checkpoints.len(), "checkpoint");
        let unread = if unreadable > 0 { format!(", {unreadable} unreadable") } else { String::new() };
        out.line("");
        let (good, word) = if quick { (VerifyState::Complete, "complete") } else { (VerifyState::Intact, "intact") };
        out.line(format!("{total}: {} {word}, {damaged} damaged{unread}", of(good)));
    }
}
