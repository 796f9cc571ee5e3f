//! `ckpt verify`: whether every byte is what was written.

use crate::cli::Verify;
use crate::human;
use crate::output::{Exit, Output};
use crate::problem::{Kind, Problem, text};
use crate::target::{Place, lost_manifest, no_checkpoint_in, what_is};
use serde::Serialize;
use std::path::{Path, PathBuf};
use tch_checkpoint::{CheckpointReader, Error, Listing, interop, verify_checkpoint};

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
    /// Files that the manifest does not list; they do not make it damaged.
    unexpected: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    Intact,
    Damaged,
    Unreadable,
}

/// What was not checked, in a directory of checkpoints.
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
            Ok(Place::LostManifest) => verification.note(path, Found::problem(&lost_manifest(path)), out),
            Ok(Place::Folder(_)) if is_foreign(path) => verification.note(path, foreign_folder(path), out),
            Ok(Place::Folder(listing)) => verification.folder(path, &listing, out),
            Err(error) => verification.note(path, foreign(path, &error), out),
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

/// What is wrong with a checkpoint, and what lies in it that is none of its files.
#[derive(Default)]
struct Found {
    problems: Vec<Problem>,
    unexpected: Vec<PathBuf>,
}

impl Found {
    fn problem(error: &Error) -> Found {
        Found { problems: vec![Problem::of(error)], unexpected: Vec::new() }
    }
}

/// Whether a directory is a checkpoint of another tool.
fn is_foreign(path: &Path) -> bool {
    interop::open(path).is_ok()
}

fn foreign_folder(path: &Path) -> Found {
    foreign(path, &no_checkpoint_in(path))
}

/// Reads all of another tool's checkpoint that has a checksum or a digest in a seal. `error` is what there is to say where there
/// is none.
fn foreign(path: &Path, error: &Error) -> Found {
    match interop::open(path).and_then(|source| source.verify()) {
        Ok(()) => Found::default(),
        Err(Error::NotFound { .. }) => Found::problem(error),
        Err(problem) => Found::problem(&problem),
    }
}

/// Reads a whole checkpoint.
fn check(path: &Path) -> Found {
    // An open checkpoint can be read to its end even when it is removed meanwhile.
    let found = match CheckpointReader::open(path) {
        Ok(reader) => reader.verify(),
        Err(_) => verify_checkpoint(path),
    };
    Found { problems: found.problems.iter().map(Problem::of).collect(), unexpected: found.unexpected }
}

impl Verification {
    /// Checks all of a directory's checkpoints, oldest first.
    fn folder(&mut self, folder: &Path, listing: &Listing, out: &mut Output) {
        let whole = listing.checkpoints.iter().map(|listed| listed.path.as_path());
        let damaged = listing.damaged.iter().map(|(path, _)| path.as_path());
        let mut checked = 0;
        for path in whole.chain(damaged) {
            let found = match what_is(path) {
                Ok(Place::LostManifest) => Found::problem(&lost_manifest(path)),
                _ => check(path),
            };
            checked += 1;
            if !found.problems.is_empty() && !path.exists() {
                self.skip(path, "it was removed meanwhile", out);
                continue;
            }
            self.note(path, found, out);
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
            self.note(folder, Found::problem(&no_checkpoint_in(folder)), out);
        }
    }

    /// Notes the result for a checkpoint.
    fn note(&mut self, path: &Path, Found { problems, unexpected }: Found, out: &mut Output) {
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
        for file in &unexpected {
            let name = text(file.strip_prefix(path).unwrap_or(file));
            out.line(format!("            {name}: unexpected, the manifest does not list it"));
        }
        out.flush();
        self.intact &= state == State::Intact;
        let unexpected = unexpected.iter().map(|file| text(file)).collect();
        self.checkpoints.push(Checked { path: text(path), state, problems, unexpected });
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
