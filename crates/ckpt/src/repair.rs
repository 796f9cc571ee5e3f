//! `ckpt repair`: puts a directory of checkpoints right.

use crate::human::text;
use crate::output::{Exit, Output};
use crate::table::{Align, Table};
use clap::Args;
use serde::Serialize;
use std::path::PathBuf;
use tch_checkpoint::Error;
use tch_checkpoint::inspect::{self, Problem, RepairKind, RepairReport, Salvaged};

/// Sets damaged checkpoints aside, sweeps leftovers, drops links that lead nowhere, and rebuilds the index
///
/// Every byte is read. Without `--yes`, it only reports what would be done. Damaged checkpoints are renamed, as a manager
/// does it; nothing of them is removed. Takes the writer's lock for `--yes`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ckpt repair checkpoints/pronounce                      what would be done
  ckpt repair --yes checkpoints/pronounce                do it
  ckpt repair --salvage intact checkpoints/pronounce     write the intact components of damaged checkpoints to intact/

Exit codes:
  0  nothing is to be done, or everything was done
  1  without --yes: something is to be done
  2  something could not be done or read, or a training process writes to the directory")]
pub struct Repair {
    /// The directory of checkpoints
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
    /// Repair instead of only reporting
    #[arg(long)]
    pub yes: bool,
    /// Write the intact components of each damaged checkpoint as a new checkpoint of its name in this directory
    #[arg(long, value_name = "OUT")]
    pub salvage: Option<PathBuf>,
}

/// The JSON document.
#[derive(Serialize)]
struct Repaired<'a> {
    #[serde(flatten)]
    report: &'a RepairReport,
    salvaged: &'a [Salvaged],
    not_salvaged: &'a [Problem],
}

pub fn run(args: &Repair, out: &mut Output) -> Result<Exit, Error> {
    // What is salvaged is read before it gets another name.
    let plan = inspect::repair_plan(&args.directory)?;
    let (mut salvaged, mut not_salvaged) = (Vec::new(), Vec::new());
    if let Some(directory) = &args.salvage {
        let damaged = plan.actions.iter().filter(|action| action.kind == RepairKind::SetAside);
        for action in damaged {
            let name = action.path.file_name().unwrap_or_default();
            match inspect::salvage(&action.path, directory.join(name)) {
                Ok(found) => salvaged.push(found),
                Err(error) => not_salvaged.push(Problem::of(&error)),
            }
        }
    }
    let report = if args.yes { inspect::repair(&args.directory)? } else { plan };
    print(&report, args.yes, out);
    for found in &salvaged {
        out.line(format!("salvaged {} of {} to {}", found.components.join(", "), text(&found.from), text(&found.path)));
        for (component, problem) in &found.lost {
            out.line(format!("  {component} is lost: {}", problem.within(&found.from)));
        }
    }
    for problem in &not_salvaged {
        out.note(format!("not salvaged: {}", problem.within(&args.directory)));
    }
    out.document(&Repaired { report: &report, salvaged: &salvaged, not_salvaged: &not_salvaged });
    let is_trouble = !report.left.is_empty() || !not_salvaged.is_empty() || args.yes && !report.is_done();
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
