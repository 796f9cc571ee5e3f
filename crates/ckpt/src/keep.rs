//! `ckpt latest`, `best`, `why`, `prune`, `rm`, `pin`, `unpin` and `annotate`: selecting, keeping and removing
//! checkpoints.

use crate::ask::asked;
use crate::cli::{Annotate, BestOf, LatestOf, Pin, Prune, Rm, Unpin, Why};
use crate::human::{self, text};
use crate::output::{Exit, Output};
use serde::Serialize;
use std::path::{Path, PathBuf};
use tch_checkpoint::inspect::{self, FoundCheckpoint, NoteState, PinState, RetentionReport};
use tch_checkpoint::retention::Goal;
use tch_checkpoint::{CheckpointDirectory, Error};

pub fn latest(args: &LatestOf, out: &mut Output) -> Result<Exit, Error> {
    print_found(&inspect::latest(&args.directory)?, out)
}

pub fn best(args: &BestOf, out: &mut Output) -> Result<Exit, Error> {
    let goal = if args.max { Goal::Maximize } else { Goal::Minimize };
    // clap requires exactly one of them (`BestOf`).
    let metric = args.name.as_ref().or(args.metric.as_ref()).map_or("", String::as_str);
    print_found(&inspect::best(&args.directory, metric, goal)?, out)
}

fn print_found(found: &FoundCheckpoint, out: &mut Output) -> Result<Exit, Error> {
    out.line(text(&found.path));
    out.document(found);
    Ok(Exit::Fine)
}

pub fn why(args: &Why, out: &mut Output) -> Result<Exit, Error> {
    let mut report = inspect::explain(&args.directory, &args.policies.values(), &args.components.values())?;
    if let Some(checkpoint) = &args.checkpoint {
        report = report.only(checkpoint)?;
    }
    print_explained(&report, out);
    out.document(&report);
    Ok(Exit::Fine)
}

pub fn prune(args: &Prune, out: &mut Output) -> Result<Exit, Error> {
    let (policies, components) = (args.policies.values(), args.components.values());
    if !args.yes {
        let report = inspect::explain(&args.directory, &policies, &components)?;
        print_explained(&report, out);
        out.note("nothing was removed: give --yes to remove what nothing keeps");
        out.document(&report);
        return Ok(Exit::Fine);
    }
    let report = inspect::prune(&args.directory, &policies, &components)?;
    note_if_none(&report, out);
    report.removed.iter().for_each(|path| out.line(format!("removed {}", path.display())));
    for (path, component) in &report.thinned {
        out.line(format!("removed {component} from {}", path.display()));
    }
    for (path, reason) in &report.spared {
        out.note(format!("{} stays: {reason}", path.display()));
    }
    out.document(&report);
    Ok(if report.spared.is_empty() { Exit::Fine } else { Exit::Trouble })
}

fn print_explained(report: &RetentionReport, out: &mut Output) {
    note_if_none(report, out);
    for entry in &report.checkpoints {
        let lacks = |lacks: &str, components: &[String]| match components {
            [] => String::new(),
            some => format!(" {lacks} {}", some.join(", ")),
        };
        let (without, loses) = (lacks("without", &entry.without), lacks("and loses", &entry.loses));
        out.line(match entry.kept {
            true => format!("{} stays{without}{loses}: {}", entry.name, entry.kept_by.join("; ")),
            false if report.policies.is_empty() => format!("{} stays only if a policy keeps it", entry.name),
            false => format!("{} is removed: no policy keeps it", entry.name),
        });
    }
}

fn note_if_none(report: &RetentionReport, out: &mut Output) {
    if report.checkpoints.is_empty() {
        out.note(format!("{} has no checkpoint whose name has a number", report.directory.display()));
    }
}

pub fn pin(args: &Pin, out: &mut Output) -> Result<Exit, Error> {
    let note = args.note.as_deref().unwrap_or_default();
    directory_of(&args.checkpoint).pin(&args.checkpoint, &args.name, note)?;
    out.document(&PinState::new(&args.checkpoint, &args.name, true));
    Ok(Exit::Fine)
}

pub fn unpin(args: &Unpin, out: &mut Output) -> Result<Exit, Error> {
    let was_pinned = directory_of(&args.checkpoint).unpin(&args.checkpoint, &args.name)?;
    if !was_pinned {
        out.note(format!("{} has no pin {:?}", args.checkpoint.display(), args.name));
    }
    out.document(&PinState::new(&args.checkpoint, &args.name, false));
    Ok(if was_pinned { Exit::Fine } else { Exit::Finding })
}

pub fn annotate(args: &Annotate, out: &mut Output) -> Result<Exit, Error> {
    directory_of(&args.checkpoint).annotate(&args.checkpoint, &args.name, &args.text)?;
    out.document(&NoteState::new(&args.checkpoint, &args.name, &args.text));
    Ok(Exit::Fine)
}

/// The JSON document of `rm`.
#[derive(Serialize)]
struct Removed {
    removed: Vec<String>,
    kept: Vec<Kept>,
}

/// A checkpoint that was not removed.
#[derive(Serialize)]
struct Kept {
    path: String,
    reason: String,
}

pub fn rm(args: &Rm, out: &mut Output) -> Result<Exit, Error> {
    let (mut exit, mut removed, mut kept) = (Exit::Fine, Vec::new(), Vec::new());
    for path in &args.checkpoints {
        let directory = directory_of(path);
        let result = match args.yes {
            true => directory.delete(path),
            // No question is asked about checkpoints that cannot be removed.
            false => match directory.get(path) {
                Ok(found) if !asked(&format!("remove {} ({})?", path.display(), human::bytes(found.bytes))) => {
                    exit = exit.max(Exit::Finding);
                    let reason = "it was not confirmed: answer yes, or give --yes".to_string();
                    out.note(format!("{} was not removed: {reason}", path.display()));
                    kept.push(Kept { path: text(path), reason });
                    continue;
                }
                Ok(_) => directory.delete(path),
                Err(error) => Err(error),
            },
        };
        match result {
            Ok(()) => {
                out.line(format!("removed {}", path.display()));
                removed.push(text(path));
            }
            Err(error) => {
                exit = Exit::Trouble;
                out.note(format!("{} was not removed: {error:#}", path.display()));
                kept.push(Kept { path: text(path), reason: format!("{error:#}") });
            }
        }
    }
    out.document(&Removed { removed, kept });
    Ok(exit)
}

/// The directory that holds a checkpoint.
fn directory_of(checkpoint: &Path) -> CheckpointDirectory {
    let parent = checkpoint.parent().filter(|parent| !parent.as_os_str().is_empty());
    CheckpointDirectory::new(parent.map_or_else(|| PathBuf::from("."), Path::to_path_buf))
}
