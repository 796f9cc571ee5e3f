//! `ckpt bisect`: the first checkpoint in which something holds.

use crate::human;
use crate::output::{Exit, Output};
use crate::table::{Align, Table};
use clap::Args;
use std::path::PathBuf;
use tch_checkpoint::Error;
use tch_checkpoint::inspect::{self, Condition, ExaminedCheckpoint, Search};

/// Prints the first checkpoint of a directory in which a condition holds
///
/// Checkpoints are examined from the oldest to the newest. Conditions compare `step`, `metric("NAME")`, and `norm`,
/// `min`, `max`, `mean` and `zeros` of tensors by pattern with numbers, ask for `nonfinite` values and for `unclean`
/// saves, and are combined with `and`, `or`, `not` and parentheses. Only the tensors that the condition needs are read.
/// Damaged checkpoints are skipped; one of them may be the first, so the exit code is 2.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ckpt bisect checkpoints/pronounce nonfinite
  ckpt bisect checkpoints/pronounce 'norm(\"decoder/*\") > 100 and step > 1000'
  ckpt bisect --halving checkpoints/pronounce 'not max(\"encoder/*\") <= 8'
  ckpt bisect checkpoints/pronounce 'metric(\"loss\") > 2'

Exit codes:
  0  found and printed
  1  it holds in none of them
  2  the condition is wrong, or the directory or a checkpoint could not be read")]
pub struct Bisect {
    /// The directory of checkpoints
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
    /// The condition (docs/ckpt.md)
    #[arg(value_name = "CONDITION")]
    pub condition: String,
    /// Use binary search: reads few checkpoints, and is correct if the condition remains true once it is
    #[arg(long)]
    pub halving: bool,
}

pub fn run(args: &Bisect, out: &mut Output) -> Result<Exit, Error> {
    let condition: Condition = match args.condition.parse() {
        Ok(condition) => condition,
        Err(error) => {
            let error: inspect::ConditionError = error;
            point_at(&args.condition, error.column, out);
            return Err(error.into());
        }
    };
    let search = if args.halving { Search::Halving } else { Search::Forward };
    let report = inspect::bisect(&args.directory, &condition, search, |_| {})?;
    let mut table = Table::new([("CHECKPOINT", Align::Left), ("STEP", Align::Right), ("HOLDS", Align::Left)]);
    for examined in &report.examined {
        table.row([examined.path.display().to_string(), human::number(examined.step), result(examined)]);
    }
    table.print(out);
    out.line("");
    let unread = report.examined.iter().filter(|examined| examined.holds.is_none()).count();
    match &report.first {
        Some(first) => out.line(format!("the first: {}", first.display())),
        None => {
            let of = human::count(report.examined.len() - unread, "checkpoint");
            let beside = if unread > 0 { format!("; {unread} could not be read") } else { String::new() };
            out.line(format!("{condition} holds in none of {of}{beside}"));
        }
    }
    for missing in &report.missing {
        out.note(format!("none of the checkpoints above has what {missing} asks for; `ckpt show` lists names"));
    }
    out.document(&report);
    Ok(match (&report.first, unread > 0) {
        (_, true) => Exit::Trouble,
        (Some(_), false) => Exit::Fine,
        (None, false) => Exit::Finding,
    })
}

fn result(examined: &ExaminedCheckpoint) -> String {
    match (examined.holds, &examined.problem) {
        (Some(true), _) => "yes".to_string(),
        (Some(false), _) => "no".to_string(),
        (None, Some(problem)) => format!("not read: {}", problem.within(&examined.path)),
        (None, None) => "not read".to_string(),
    }
}

/// Prints the condition with a mark below the place that is wrong.
fn point_at(condition: &str, column: usize, out: &mut Output) {
    // If the condition is long, only the part around the place is printed.
    const AROUND: usize = 60;
    let start = column.saturating_sub(AROUND);
    let part: String =
        condition.chars().skip(start).take(2 * AROUND).map(|c| if c.is_control() { ' ' } else { c }).collect();
    out.note(&part);
    out.note(format!("{}^", " ".repeat(column.saturating_sub(start + 1))));
}
