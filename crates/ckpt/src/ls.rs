//! `ckpt ls`: what is in a directory of checkpoints.

use crate::cli::Ls;
use crate::columns;
use crate::output::{Exit, Output};
use crate::table::{Align, Table};
use clap::ValueEnum;
use serde::Serialize;
use std::cmp::Ordering;
use std::collections::HashMap;
use std::io::IsTerminal;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;
use tch_checkpoint::Error;
use tch_checkpoint::inspect::{self, CheckpointEntry, DirectoryListing, OtherState};
use tch_checkpoint::retention::{Best, CheckpointInfo, Goal};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Column {
    Name,
    Step,
    Saved,
    Age,
    Size,
    New,
    Tensors,
    Values,
    Metrics,
    Health,
    Pins,
    Notes,
    Stall,
    Took,
    Waited,
    Written,
    Linked,
    Rate,
    Provenance,
    Kept,
    Marks,
}

/// The order of the checkpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sort {
    Sequence,
    Name,
    Step,
    Saved,
    Size,
    New,
    Metric(String),
}

impl FromStr for Sort {
    type Err = String;

    fn from_str(text: &str) -> Result<Sort, String> {
        Ok(match text {
            "sequence" => Sort::Sequence,
            "name" => Sort::Name,
            "step" => Sort::Step,
            "saved" => Sort::Saved,
            "size" => Sort::Size,
            "new" => Sort::New,
            _ => match text.strip_prefix("metric:").filter(|name| !name.is_empty()) {
                Some(name) => Sort::Metric(name.to_string()),
                None => return Err("it is sequence, name, step, saved, size, new or metric:NAME".to_string()),
            },
        })
    }
}

impl Sort {
    fn compare(&self, a: &CheckpointEntry, b: &CheckpointEntry) -> Ordering {
        match self {
            // As the library lists them.
            Sort::Sequence => Ordering::Equal,
            Sort::Name => a.name.cmp(&b.name),
            Sort::Step => a.step.cmp(&b.step),
            Sort::Saved => a.saved_at.cmp(&b.saved_at),
            Sort::Size => a.bytes.cmp(&b.bytes),
            Sort::New => a.new_bytes.cmp(&b.new_bytes),
            Sort::Metric(name) => {
                let value = |entry: &CheckpointEntry| entry.metrics.get(name).copied().unwrap_or(f64::NAN);
                value(a).total_cmp(&value(b))
            }
        }
    }
}

/// The JSON document of several directories.
#[derive(Serialize)]
struct Runs<'a> {
    directories: &'a [DirectoryListing],
}

pub fn run(args: &Ls, out: &mut Output) -> Result<Exit, Error> {
    loop {
        let listings = listings(args)?;
        if args.watch.is_some() && std::io::stdout().is_terminal() && !out.is_json() {
            // Clears the terminal, and begins at its top.
            out.raw(b"\x1b[H\x1b[2J");
        }
        for (n, listing) in listings.iter().enumerate() {
            if args.recursive {
                if n > 0 {
                    out.line("");
                }
                out.line(format!("{}:", listing.directory.display()));
            }
            print_checkpoints(args, listing, out)?;
            print_others(listing, out);
        }
        match (args.recursive, &listings[..]) {
            (false, [listing]) => out.document(listing),
            (_, all) => out.document(&Runs { directories: all }),
        }
        out.flush();
        match args.watch {
            Some(seconds) if !out.has_failed() => std::thread::sleep(Duration::from_secs(seconds)),
            _ => return Ok(Exit::Fine),
        }
    }
}

/// What the directory has, or each directory of checkpoints below it, in the order asked for.
fn listings(args: &Ls) -> Result<Vec<DirectoryListing>, Error> {
    let mut listings = match args.recursive {
        true => inspect::runs_below(&args.directory)?.iter().map(inspect::list).collect::<Result<Vec<_>, _>>()?,
        false => vec![inspect::list(&args.directory)?],
    };
    listings.iter_mut().for_each(|listing| listing.checkpoints.sort_by(|a, b| args.sort.compare(a, b)));
    Ok(listings)
}

/// What keeps each checkpoint whatever the policies, by name.
fn kept(directory: &Path) -> Result<HashMap<String, String>, Error> {
    let report = inspect::explain(directory, &[])?;
    Ok(report.checkpoints.into_iter().map(|entry| (entry.name, entry.kept_by.join("; "))).collect())
}

fn print_checkpoints(args: &Ls, listing: &DirectoryListing, out: &mut Output) -> Result<(), Error> {
    if listing.checkpoints.is_empty() {
        let below: Vec<String> =
            listing.below.iter().take(10).map(|directory| directory.display().to_string()).collect();
        let hint = if below.is_empty() { String::new() } else { format!("; look into {}", below.join(", ")) };
        out.line(format!("no whole checkpoint in {}{hint}", listing.directory.display()));
        return Ok(());
    }
    let kept = match args.columns.contains(&Column::Kept) && !out.is_json() {
        true => kept(&listing.directory)?,
        false => HashMap::new(),
    };
    let best = args.best.as_deref().and_then(|metric| best(listing, metric, args.max));
    let headings: Vec<(&str, Align)> = args.columns.iter().map(|column| columns::heading(*column)).collect();
    let mut table = Table::new(headings);
    for entry in &listing.checkpoints {
        let is_best = best.as_deref() == Some(entry.name.as_str());
        let kept = kept.get(&entry.name).map_or("", String::as_str);
        let cell = |column: &Column| columns::cell(*column, entry, is_best, kept);
        table.row(args.columns.iter().map(cell).collect::<Vec<String>>());
    }
    table.print(out);
    if let Some((first, second)) = &listing.undecided {
        out.line("");
        out.line(format!("{first} and {second} are of different runs, and nothing decides which one is the latest"));
    }
    Ok(())
}

/// The name of the healthy checkpoint with the best finite value of a metric; of two with the same value the one that was
/// saved later.
fn best(listing: &DirectoryListing, metric: &str, max: bool) -> Option<String> {
    let mut entries: Vec<&CheckpointEntry> = listing.checkpoints.iter().collect();
    entries.sort_by_key(|entry| entry.sequence);
    let infos: Vec<CheckpointInfo> = entries.into_iter().map(info).collect();
    let goal = if max { Goal::Maximize } else { Goal::Minimize };
    Best::new(metric, goal, 1).choose(&infos).map(|info| info.name.clone())
}

fn info(entry: &CheckpointEntry) -> CheckpointInfo {
    let mut info = CheckpointInfo::new(&entry.name, entry.saved_at);
    info.metrics.clone_from(&entry.metrics);
    info.non_finite.clone_from(&entry.non_finite);
    info.unclean = entry.unclean;
    info
}

fn print_others(listing: &DirectoryListing, out: &mut Output) {
    if listing.others.is_empty() {
        return;
    }
    out.line("");
    let mut table = Table::new([("NOT WHOLE", Align::Left), ("STATE", Align::Left), ("REASON", Align::Left)]);
    for other in &listing.others {
        table.row([other.name.clone(), state(other.state).to_string(), other.reason.clone()]);
    }
    table.print(out);
}

fn state(state: OtherState) -> &'static str {
    match state {
        OtherState::Damaged => "damaged",
        OtherState::Unreadable => "unreadable",
        OtherState::Link => "link",
        OtherState::MovedAside => "moved aside",
        OtherState::Superseded => "superseded",
        OtherState::UnfinishedSave => "unfinished save",
        OtherState::Removed => "removed",
        _ => "other",
    }
}
