//! `ckpt verify`: whether every byte is what was written.

use crate::cli::Verify;
use crate::human;
use crate::output::{Exit, Output};
use crate::problem::{Kind, Problem, text};
use crate::target::{Place, lost_manifest, no_checkpoint_in, what_is};
use serde::Serialize;
use std::path::Path;
use tch_checkpoint::{CheckpointReader, Error, Listing, verify_checkpoint};

/// The JSON document.
#[derive(Serialize)]
struct Verification {
    /// Whether every checkpoint is intact, and there was nothing that could not be read.
    intact: bool,
    checkpoints: Vec<Checked>,
    skipped: Vec<Skipped>,
}

/// A checkpoint, or a path at which there is none to check.
#[derive(Serialize)]
struct Checked {
    path: String,
    state: State,
    problems: Vec<Problem>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    Intact,
    Damaged,
    Unreadable,
}

/// What was not checked, in a folder of checkpoints.
#[derive(Serialize)]
struct Skipped {
    path: String,
    reason: &'static str,
}

pub fn run(args: &Verify, out: &mut Output) -> Result<Exit, Error> {
    let mut verification = Verification { intact: true, checkpoints: Vec::new(), skipped: Vec::new() };
    for path in &args.paths {
        match what_is(path) {
            Ok(Place::Checkpoint) => verification.note(path, check(path), out),
            Ok(Place::LostManifest) => verification.note(path, vec![Problem::of(&lost_manifest(path))], out),
            Ok(Place::Folder(listing)) => verification.folder(path, &listing, out),
            Err(error) => verification.note(path, vec![Problem::of(&error)], out),
        }
    }
    verification.sum_up(out);
    out.document(&verification);
    Ok(match verification.checkpoints.iter().map(|checked| checked.state).max() {
        None | Some(State::Intact) => Exit::Fine,
        Some(State::Damaged) => Exit::Finding,
        Some(State::Unreadable) => Exit::Trouble,
    })
}

/// Reads a whole checkpoint.
fn check(path: &Path) -> Vec<Problem> {
    // An open checkpoint can be read to its end even when it is removed meanwhile.
    let problems = match CheckpointReader::open(path) {
        Ok(reader) => reader.verify(),
        Err(_) => verify_checkpoint(path),
    };
    problems.iter().map(Problem::of).collect()
}

impl Verification {
    /// Checks all of a folder's checkpoints, oldest first.
    fn folder(&mut self, folder: &Path, listing: &Listing, out: &mut Output) {
        let whole = listing.checkpoints.iter().map(|listed| listed.path.as_path());
        let damaged = listing.damaged.iter().map(|(path, _)| path.as_path());
        let mut checked = 0;
        for path in whole.chain(damaged) {
            let problems = match what_is(path) {
                Ok(Place::LostManifest) => vec![Problem::of(&lost_manifest(path))],
                _ => check(path),
            };
            checked += 1;
            if !problems.is_empty() && !path.exists() {
                self.skip(path, "it was removed meanwhile", out);
                continue;
            }
            self.note(path, problems, out);
        }
        for path in &listing.moved_aside {
            self.skip(path, "moved aside as damaged", out);
        }
        for path in &listing.unfinished_saves {
            self.skip(path, "an unfinished save", out);
        }
        for path in &listing.removed {
            self.skip(path, "removed", out);
        }
        if checked == 0 {
            self.note(folder, vec![Problem::of(&no_checkpoint_in(folder))], out);
        }
    }

    /// Notes the result for a checkpoint.
    fn note(&mut self, path: &Path, problems: Vec<Problem>, out: &mut Output) {
        let state = match problems.iter().any(|problem| problem.kind != Kind::Damaged) {
            true => State::Unreadable,
            false if problems.is_empty() => State::Intact,
            false => State::Damaged,
        };
        let word = match state {
            State::Intact => "intact",
            State::Damaged => "DAMAGED",
            State::Unreadable => "UNREADABLE",
        };
        out.line(format!("{word:<10}  {}", path.display()));
        for problem in &problems {
            out.line(format!("            {}", problem.within(path)));
        }
        out.flush();
        self.intact &= state == State::Intact;
        self.checkpoints.push(Checked { path: text(path), state, problems });
    }

    fn skip(&mut self, path: &Path, reason: &'static str, out: &mut Output) {
        out.line(format!("{:<10}  {} ({reason})", "skipped", path.display()));
        self.skipped.push(Skipped { path: text(path), reason });
    }

    /// A last line, where there is more than one result.
    fn sum_up(&self, out: &mut Output) {
        let of = |state| self.checkpoints.iter().filter(|checked| checked.state == state).count();
        let (damaged, unreadable) = (of(State::Damaged), of(State::Unreadable));
        if self.checkpoints.len() > 1 {
            let total = human::count(self.checkpoints.len(), "checkpoint");
            let unread = if unreadable > 0 { format!(", {unreadable} unreadable") } else { String::new() };
            out.line("");
            out.line(format!("{total}: {} intact, {damaged} damaged{unread}", of(State::Intact)));
        }
    }
}
