//! `ckpt latest`, `best`, `why`, `prune`, `pin` and `unpin`: which checkpoints are there, and which of them stay.

use crate::cli::{BestOf, LatestOf, Pin, Prune, Unpin, Why};
use crate::output::{Exit, Output};
use crate::problem::text;
use serde::Serialize;
use std::path::{Path, PathBuf};
use tch_checkpoint::retention::{CheckpointInfo, Explanation, Goal};
use tch_checkpoint::{CheckpointDirectory, Error};

/// The JSON document of `latest` and `best`.
#[derive(Serialize)]
struct Found {
    path: String,
    name: String,
    step: Option<u64>,
    /// The value of the metric that was asked for.
    value: Option<f64>,
}

/// The JSON document of `why` and `prune`.
#[derive(Serialize)]
struct Explained {
    directory: String,
    /// Oldest first.
    checkpoints: Vec<Row>,
    /// What was removed; empty unless `prune --yes`.
    removed: Vec<String>,
    /// What was to be removed and was not, with the reason.
    spared: Vec<(String, String)>,
}

#[derive(Serialize)]
struct Row {
    name: String,
    step: Option<u64>,
    kept: bool,
    /// Each with what would end it.
    kept_by: Vec<String>,
}

/// The JSON document of `pin` and `unpin`.
#[derive(Serialize)]
struct Pinned<'a> {
    path: String,
    pin: &'a str,
    /// Whether the pin is there now.
    pinned: bool,
}

pub fn latest(args: &LatestOf, out: &mut Output) -> Result<Exit, Error> {
    let found = CheckpointDirectory::new(&args.directory).latest()?;
    print_found(found, &args.directory, None, "it has no checkpoint", out)
}

pub fn best(args: &BestOf, out: &mut Output) -> Result<Exit, Error> {
    let goal = if args.max { Goal::Maximize } else { Goal::Minimize };
    let found = CheckpointDirectory::new(&args.directory).best(&args.metric, goal)?;
    let value = found.as_ref().and_then(|info| info.metrics.get(&args.metric)).copied();
    let missing = format!("no checkpoint has a finite value of the metric {:?}", args.metric);
    print_found(found, &args.directory, value, &missing, out)
}

fn print_found(
    found: Option<CheckpointInfo>,
    directory: &Path,
    value: Option<f64>,
    missing: &str,
    out: &mut Output,
) -> Result<Exit, Error> {
    let Some(info) = found else {
        return Err(Error::not_found(directory, missing));
    };
    let path = text(&directory.join(&info.name));
    out.line(&path);
    out.document(&Found { path, name: info.name, step: info.step, value });
    Ok(Exit::Fine)
}

pub fn why(args: &Why, out: &mut Output) -> Result<Exit, Error> {
    let explanations = CheckpointDirectory::new(&args.directory).explain(&args.policies.values())?;
    print_explained(&args.directory, &explanations, out);
    out.document(&explained(&args.directory, &explanations));
    Ok(Exit::Fine)
}

pub fn prune(args: &Prune, out: &mut Output) -> Result<Exit, Error> {
    let directory = CheckpointDirectory::new(&args.directory);
    let explanations = directory.explain(&args.policies.values())?;
    let mut document = explained(&args.directory, &explanations);
    if !args.yes {
        print_explained(&args.directory, &explanations, out);
        out.note("nothing was removed: give --yes to remove what nothing keeps");
        out.document(&document);
        return Ok(Exit::Fine);
    }
    let pruned = directory.prune(&args.policies.values())?;
    document.removed = pruned.removed.iter().map(|path| text(path)).collect();
    document.spared = pruned.spared.into_iter().map(|(path, reason)| (text(&path), reason)).collect();
    document.removed.iter().for_each(|path| out.line(format!("removed {path}")));
    for (path, reason) in &document.spared {
        out.note(format!("{path} was not removed: {reason}"));
    }
    out.document(&document);
    Ok(if document.spared.is_empty() { Exit::Fine } else { Exit::Trouble })
}

fn explained(directory: &Path, explanations: &[Explanation]) -> Explained {
    let row = |explanation: &Explanation| Row {
        name: explanation.checkpoint.name.clone(),
        step: explanation.checkpoint.step,
        kept: explanation.is_kept(),
        kept_by: explanation.kept_by.iter().map(ToString::to_string).collect(),
    };
    let checkpoints = explanations.iter().map(row).collect();
    Explained { directory: text(directory), checkpoints, removed: Vec::new(), spared: Vec::new() }
}

fn print_explained(directory: &Path, explanations: &[Explanation], out: &mut Output) {
    if explanations.is_empty() {
        out.note(format!("{} has no checkpoint", directory.display()));
    }
    explanations.iter().for_each(|explanation| out.line(explanation.to_string()));
}

pub fn pin(args: &Pin, out: &mut Output) -> Result<Exit, Error> {
    let note = args.note.as_deref().unwrap_or_default();
    directory_of(&args.checkpoint).pin(&args.checkpoint, &args.name, note)?;
    out.document(&Pinned { path: text(&args.checkpoint), pin: &args.name, pinned: true });
    Ok(Exit::Fine)
}

pub fn unpin(args: &Unpin, out: &mut Output) -> Result<Exit, Error> {
    let was_pinned = directory_of(&args.checkpoint).unpin(&args.checkpoint, &args.name)?;
    if !was_pinned {
        out.note(format!("{} has no pin {:?}", args.checkpoint.display(), args.name));
    }
    out.document(&Pinned { path: text(&args.checkpoint), pin: &args.name, pinned: false });
    Ok(if was_pinned { Exit::Fine } else { Exit::Finding })
}

/// The directory that a checkpoint lies in.
fn directory_of(checkpoint: &Path) -> CheckpointDirectory {
    let parent = checkpoint.parent().filter(|parent| !parent.as_os_str().is_empty());
    CheckpointDirectory::new(parent.map_or_else(|| PathBuf::from("."), Path::to_path_buf))
}
