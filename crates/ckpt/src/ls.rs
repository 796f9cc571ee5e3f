//! `ckpt ls`: what is in a directory of checkpoints.

use crate::cli::Ls;
use crate::human;
use crate::output::{Exit, Output};
use crate::problem::{Kind, Problem, text};
use crate::table::{Align, Table};
use crate::target::{Place, folders_below, what_is};
use chrono::{DateTime, Utc};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use tch_checkpoint::format::MANIFEST_FILE;
use tch_checkpoint::{CheckpointReader, Error, Listed, Listing};

/// The JSON document.
#[derive(Serialize)]
struct Folder {
    folder: String,
    /// The name of the newest whole checkpoint.
    latest: Option<String>,
    /// Oldest first.
    checkpoints: Vec<Row>,
    others: Vec<Other>,
}

/// A checkpoint that is whole as far as its manifest and file sizes tell.
#[derive(Serialize)]
struct Row {
    name: String,
    path: String,
    latest: bool,
    /// Kept for good.
    preserved: bool,
    step: Option<u64>,
    sequence: u64,
    run: String,
    saved_at: DateTime<Utc>,
    /// Of all its files, the manifest included.
    bytes: u64,
    tensors: usize,
    values: usize,
    metrics: BTreeMap<String, f64>,
}

/// Anything else that the crate made.
#[derive(Serialize)]
struct Other {
    name: String,
    path: String,
    state: State,
    reason: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    Damaged,
    Unreadable,
    MovedAside,
    UnfinishedSave,
    Removed,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            State::Damaged => "damaged",
            State::Unreadable => "unreadable",
            State::MovedAside => "moved aside",
            State::UnfinishedSave => "unfinished save",
            State::Removed => "removed",
        }
    }
}

pub fn run(args: &Ls, out: &mut Output) -> Result<Exit, Error> {
    let path = &args.folder;
    let listing = listing(path)?;
    let latest = listing.checkpoints.len().checked_sub(1);
    let checkpoints: Vec<Row> =
        listing.checkpoints.iter().enumerate().map(|(i, listed)| row(listed, Some(i) == latest)).collect();
    let folder = Folder {
        folder: text(path),
        latest: checkpoints.last().map(|row| row.name.clone()),
        checkpoints,
        others: others(&listing),
    };
    print(&folder, path, out);
    out.document(&folder);
    Ok(Exit::Fine)
}

/// Looks at the directory; says clearly when there is something else.
fn listing(path: &Path) -> Result<Listing, Error> {
    match what_is(path)? {
        Place::Folder(listing) => Ok(*listing),
        Place::Checkpoint | Place::LostManifest => Err(Error::InvalidArgument(format!(
            "{} is a checkpoint, not a folder of checkpoints; look into it with `ckpt show`",
            path.display()
        ))),
    }
}

fn row(Listed { path, entry, tensors, values, .. }: &Listed, latest: bool) -> Row {
    let manifest = fs::metadata(path.join(MANIFEST_FILE)).map_or(0, |metadata| metadata.len());
    Row {
        name: entry.name.clone(),
        path: text(path),
        latest,
        preserved: entry.preserved,
        step: entry.step,
        sequence: entry.sequence,
        run: entry.run.clone(),
        saved_at: entry.saved_at,
        bytes: entry.bytes.saturating_add(manifest),
        tensors: *tensors,
        values: *values,
        metrics: entry.metrics.clone(),
    }
}

fn others(listing: &Listing) -> Vec<Other> {
    let other = |path: &Path, state, reason: String| Other {
        name: path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
        path: text(path),
        state,
        reason,
    };
    let damaged = listing.damaged.iter().map(|(path, error)| {
        let problem = Problem::of(error);
        let state =
            if matches!(problem.kind, Kind::Damaged | Kind::NotFound) { State::Damaged } else { State::Unreadable };
        other(path, state, problem.within(path))
    });
    let aside = listing.moved_aside.iter().map(|path| {
        let reason = match CheckpointReader::open(path) {
            Ok(_) => "a manager found it damaged; `ckpt verify` on it says where".to_string(),
            Err(error) => Problem::of(&error).within(path),
        };
        other(path, State::MovedAside, reason)
    });
    let saves = listing
        .unfinished_saves
        .iter()
        .map(|path| other(path, State::UnfinishedSave, "under way, or left by a process that died".to_string()));
    let removals = listing
        .removed
        .iter()
        .map(|path| other(path, State::Removed, "its files are overwritten by the next save, or removed".to_string()));
    damaged.chain(aside).chain(saves).chain(removals).collect()
}

fn print(folder: &Folder, path: &Path, out: &mut Output) {
    if folder.checkpoints.is_empty() {
        let below = folders_below(path);
        let below: Vec<String> = below.iter().take(10).map(|folder| folder.display().to_string()).collect();
        let hint = if below.is_empty() { String::new() } else { format!("; look into {}", below.join(", ")) };
        out.line(format!("no whole checkpoint in {}{hint}", path.display()));
    } else {
        let mut table = Table::new([
            ("NAME", Align::Left),
            ("STEP", Align::Right),
            ("SAVED", Align::Left),
            ("SIZE", Align::Right),
            ("TENSORS", Align::Right),
            ("METRICS", Align::Left),
            ("", Align::Left),
        ]);
        for row in &folder.checkpoints {
            let marks = [(row.latest, "latest"), (row.preserved, "kept for good")];
            let marks: Vec<&str> = marks.iter().filter(|(is, _)| *is).map(|(_, mark)| *mark).collect();
            table.row([
                row.name.clone(),
                human::number(row.step),
                human::time(row.saved_at),
                human::bytes(row.bytes),
                row.tensors.to_string(),
                human::metrics(&row.metrics),
                marks.join(", "),
            ]);
        }
        table.print(out);
    }
    if !folder.others.is_empty() {
        out.line("");
        let mut table = Table::new([("NOT WHOLE", Align::Left), ("STATE", Align::Left), ("REASON", Align::Left)]);
        for other in &folder.others {
            table.row([other.name.clone(), other.state.name().to_string(), other.reason.clone()]);
        }
        table.print(out);
    }
}
