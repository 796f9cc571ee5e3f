//! `ckpt verify`: whether every byte is what was written.

use crate::cli::Verify;
use crate::human::{self, text};
use crate::output::{Exit, Output};
use tch_checkpoint::inspect::{VerifiedCheckpoint, VerifyItem, VerifyReport, VerifyState, verify_with};
use tch_checkpoint::{Error, VerifiedBy};

pub fn run(args: &Verify, out: &mut Output) -> Result<Exit, Error> {
    let report = verify_with(&args.paths, |item| match item {
        VerifyItem::Checkpoint(checkpoint) => print(checkpoint, out),
        VerifyItem::Skipped(skipped) => {
            out.line(format!("{:<10}  {} ({})", "skipped", skipped.path.display(), skipped.reason));
        }
        _ => {}
    });
    sum_up(&report, out);
    out.document(&report);
    Ok(match report.checkpoints.iter().map(|checkpoint| checkpoint.state).max() {
        None | Some(VerifyState::Intact) => Exit::Fine,
        Some(VerifyState::Damaged) => Exit::Finding,
        Some(_) => Exit::Trouble,
    })
}

fn print(checkpoint: &VerifiedCheckpoint, out: &mut Output) {
    let path = &checkpoint.path;
    let word = match checkpoint.state {
        VerifyState::Intact => "intact",
        VerifyState::Damaged => "DAMAGED",
        _ => "UNREADABLE",
    };
    let unverified = match (checkpoint.state, checkpoint.verified_by) {
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
fn sum_up(report: &VerifyReport, out: &mut Output) {
    let of = |state| report.checkpoints.iter().filter(|checkpoint| checkpoint.state == state).count();
    let (damaged, unreadable) = (of(VerifyState::Damaged), of(VerifyState::Unreadable));
    if report.checkpoints.len() > 1 {
        let total = human::count(report.checkpoints.len(), "checkpoint");
        let unread = if unreadable > 0 { format!(", {unreadable} unreadable") } else { String::new() };
        out.line("");
        out.line(format!("{total}: {} intact, {damaged} damaged{unread}", of(VerifyState::Intact)));
    }
}
