//! `ckpt repair`: repairs a directory of checkpoints.

use crate::human::text;
use crate::output::{Exit, Output};
use crate::table::{Align, Table};
use clap::Args;
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use tch_checkpoint::inspect::{self, Problem, RepairKind, RepairReport, Salvaged};
use tch_checkpoint::{Error, Location, repository};

/// Sets damaged checkpoints aside, removes leftovers and links to removed checkpoints, and rebuilds the index
///
/// Every byte is read. Without `--yes`, it only reports what would be done. Damaged checkpoints are renamed, as a
/// manager does; none of their files are removed. Takes the writer's lock with `--yes`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ckpt repair checkpoints/pronounce                      what would be done
  ckpt repair --yes checkpoints/pronounce                do it
  ckpt repair --salvage intact checkpoints/pronounce     write the intact components of damaged checkpoints to intact/
  ckpt repair --salvage intact checkpoints/pronounce/ckpt-80     only of this one

Exit codes:
  0  nothing is to be done, or everything was done
  1  without --yes: something is to be done
  2  something could not be done or read, or a training process writes to the directory")]
pub struct Repair {
    /// The directory of checkpoints; with `--salvage` also a single checkpoint
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
    /// Repair instead of only reporting
    #[arg(long)]
    pub yes: bool,
    /// Write the intact components of each damaged checkpoint, including those set aside before, as a new checkpoint of
    /// the same name to this directory
    #[arg(long, value_name = "OUT")]
    pub salvage: Option<PathBuf>,
}

/// The JSON document.
#[derive(Serialize)]
struct Repaired<'a> {
    #[serde(flatten)]
    report: Option<&'a RepairReport>,
    #[serde(flatten)]
    rescue: &'a Rescue,
}

/// What was salvaged, and what could not be.
#[derive(Default, Serialize)]
struct Rescue {
    salvaged: Vec<Salvaged>,
    not_salvaged: Vec<Problem>,
    /// The names in the output directory that are taken.
    #[serde(skip)]
    names: BTreeSet<String>,
}

impl Rescue {
    /// Salvages the checkpoint at `path` under its original name, followed by a number if there are several of that
    /// name.
    fn salvage(&mut self, path: &Path, to: &Path) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let name = repository::before_aside(&name).map_or(name.as_str(), |(_, before)| before);
        let mut unused = (2..).map(|n| format!("{name}.{n}"));
        let mut free = name.to_string();
        while !self.names.insert(free.clone()) {
            free = unused.next().unwrap_or_default();
        }
        match inspect::salvage(path, to.join(free)) {
            Ok(found) => self.salvaged.push(found),
            Err(error) => self.not_salvaged.push(Problem::of(&error)),
        }
    }

    fn print(&self, directory: &Path, out: &mut Output) {
        for found in &self.salvaged {
            let (from, to) = (text(&found.from), text(&found.path));
            out.line(format!("salvaged {} of {from} to {to}", found.components.join(", ")));
            for (component, problem) in &found.lost {
                out.line(format!("  {component} is lost: {}", problem.within(&found.from)));
            }
        }
        for problem in &self.not_salvaged {
            out.note(format!("not salvaged: {}", problem.within(directory)));
        }
    }
}

pub fn run(args: &Repair, out: &mut Output) -> Result<Exit, Error> {
    let mut rescue = Rescue::default();
    // A checkpoint, not a directory of them.
    if let Some(to) = args.salvage.as_ref().filter(|_| args.directory.join("manifest.json").exists()) {
        rescue.salvage(&args.directory, to);
        rescue.print(Path::new(""), out);
        out.document(&Repaired { report: None, rescue: &rescue });
        return Ok(if rescue.not_salvaged.is_empty() { Exit::Fine } else { Exit::Trouble });
    }
    // Checkpoints are salvaged before they are renamed.
    let plan = inspect::repair_plan(&args.directory)?;
    if let Some(to) = &args.salvage {
        let damaged = plan.actions.iter().filter(|action| action.kind == RepairKind::SetAside);
        let damaged: Vec<&Location> = damaged.map(|action| &action.path).chain(&plan.moved_aside).collect();
        damaged.into_iter().for_each(|path| rescue.salvage(path, to));
    }
    let report = if args.yes { inspect::repair(&args.directory)? } else { plan };
    print(&report, args.yes, out);
    rescue.print(&args.directory, out);
    out.document(&Repaired { report: Some(&report), rescue: &rescue });
    let is_trouble = !report.left.is_empty() || !rescue.not_salvaged.is_empty() || args.yes && !report.is_done();
    Ok(match (is_trouble, args.yes || report.actions.is_empty()) {
        (true, _) => Exit::Trouble,
        (false, true) => Exit::Fine,
        (false, false) => Exit::Finding,
    })
}

fn print(report: &RepairReport, yes: bool, out: &mut Output) {
    for problem in &report.left {
        out.note(format!("left as it is: {}", problem.within(&report.directory)));
    }
    if report.actions.is_empty() {
        out.line(format!("nothing to do in {}", report.directory.display()));
        return;
    }
    let mut table = Table::new([("ACTION", Align::Left), ("NAME", Align::Left), ("REASON", Align::Left)]);
    for action in &report.actions {
        let name = text(action.path.strip_prefix(&report.directory).unwrap_or(&action.path));
        let kind = match action.kind {
            RepairKind::SetAside => "set aside",
            RepairKind::Sweep if action.moved_to.is_some() => "give name back",
            RepairKind::Sweep => "remove leftover",
            RepairKind::DropLink => "remove link",
            RepairKind::RebuildIndex => "rebuild index",
            _ => "other",
        };
        let failed = action.failed.as_ref().map_or_else(String::new, |reason| format!("; NOT DONE: {reason}"));
        table.row([kind.to_string(), name, format!("{}{failed}", action.reason)]);
    }
    table.print(out);
    if !yes {
        out.note("nothing was changed: give --yes to do this");
    }
}
