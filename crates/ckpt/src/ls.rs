//! `ckpt ls`: lists a directory of checkpoints.

use crate::cli::Ls;
use crate::output::{Exit, Output};
use crate::table::{Align, Table};
use crate::{columns, human};
use clap::ValueEnum;
use serde::Serialize;
use std::cmp::Ordering;
use std::io::IsTerminal;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;
use tch_checkpoint::Error;
use tch_checkpoint::inspect::{self, CheckpointEntry, DirectoryListing, OtherState, Problem};
use tch_checkpoint::retention::Goal;

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
    Metadata,
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
            // The order of the library.
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
#[derive(Default, Serialize)]
struct Runs {
    directories: Vec<DirectoryListing>,
    failed: Vec<Problem>,
}

pub fn run(args: &Ls, out: &mut Output) -> Result<Exit, Error> {
    loop {
        let mut runs = runs(args)?;
        let mut exit = if runs.failed.is_empty() { Exit::Fine } else { Exit::Trouble };
        if args.watch.is_some() && std::io::stdout().is_terminal() && !out.is_json() {
            // Clears the terminal, and begins at its top.
            out.raw(b"\x1b[H\x1b[2J");
        }
        for (n, listing) in runs.directories.iter_mut().enumerate() {
            exit = exit.max(look_further(args, listing, out));
            if args.recursive {
                if n > 0 {
                    out.line("");
                }
                out.line(format!("{}:", listing.directory.display()));
            }
            print_checkpoints(args, listing, out);
            print_others(listing, out);
        }
        for problem in &runs.failed {
            out.note(format!("not listed: {}", problem.within(Path::new(""))));
        }
        match (args.recursive, &runs.directories[..]) {
            (false, [listing]) => out.document(listing),
            _ => out.document(&runs),
        }
        out.flush();
        match args.watch {
            Some(seconds) if !out.has_failed() => std::thread::sleep(Duration::from_secs(seconds)),
            _ => return Ok(exit),
        }
    }
}

/// Lists the directory, or each directory of checkpoints below it, in the requested order. If one of those below cannot
/// be listed, the others are listed anyway.
fn runs(args: &Ls) -> Result<Runs, Error> {
    let mut runs = Runs::default();
    if args.recursive {
        for directory in inspect::runs_below(&args.directory)? {
            match inspect::list(&directory) {
                Ok(listing) => runs.directories.push(listing),
                Err(error) => runs.failed.push(Problem::of(&error)),
            }
        }
    } else {
        runs.directories.push(inspect::list(&args.directory)?);
    }
    runs.directories.iter_mut().for_each(|listing| listing.checkpoints.sort_by(|a, b| args.sort.compare(a, b)));
    Ok(runs)
}

/// Determines the best checkpoint, and what keeps each one: for JSON always, if that is decided.
fn look_further(args: &Ls, listing: &mut DirectoryListing, out: &mut Output) -> Exit {
    if let Some(metric) = &args.best {
        listing.mark_best(metric, if args.max { Goal::Maximize } else { Goal::Minimize });
    }
    let is_column = args.columns.contains(&Column::Kept);
    if !is_column && !out.is_json() {
        return Exit::Fine;
    }
    match listing.explain() {
        Err(error) if is_column => {
            out.note(format!("what keeps the checkpoints of {} is not known: {error:#}", listing.directory.display()));
            Exit::Trouble
        }
        _ => Exit::Fine,
    }
}

fn print_checkpoints(args: &Ls, listing: &DirectoryListing, out: &mut Output) {
    if listing.checkpoints.is_empty() {
        let below: Vec<String> =
            listing.below.iter().take(10).map(|directory| directory.display().to_string()).collect();
        let hint = if below.is_empty() { String::new() } else { format!("; look into {}", below.join(", ")) };
        out.line(format!("no valid checkpoint in {}{hint}", listing.directory.display()));
        return;
    }
    let now = human::now();
    let headings: Vec<(&str, Align)> = args.columns.iter().map(|column| columns::heading(*column)).collect();
    let mut table = Table::new(headings);
    for entry in &listing.checkpoints {
        let is_best = listing.best.as_ref() == Some(&entry.name);
        let kept = listing.kept_by.as_ref().and_then(|kept| kept.get(&entry.name));
        let kept = kept.map_or_else(String::new, |reasons| reasons.join("; "));
        let cell = |column: &Column| columns::cell(*column, entry, is_best, &kept, now);
        table.row(args.columns.iter().map(cell).collect::<Vec<String>>());
    }
    table.print(out);
    if let Some((first, second)) = &listing.undecided {
        out.line("");
        out.line(format!("{first} and {second} are of different runs, and nothing decides which one is the latest"));
    }
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
