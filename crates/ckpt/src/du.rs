//! `ckpt du`: the disk space of checkpoints, and what they share.

use crate::human;
use crate::output::{Exit, Output};
use crate::table::{Align, Table};
use clap::Args;
use std::path::PathBuf;
use tch_checkpoint::Error;
use tch_checkpoint::inspect;

/// Prints the disk space of checkpoints, and what they share
///
/// A file to which several checkpoints link counts once. UNIQUE is the space that removing a checkpoint would free.
/// Tensors with the same digest in different files are reported as duplicates, with the paths that have them.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ckpt du checkpoints/pronounce
  ckpt du checkpoints/one-go checkpoints/resumed     what the two runs share

Exit codes:
  0  printed
  2  there is no checkpoint, or it could not be read")]
pub struct Du {
    /// Directories of checkpoints, or checkpoints
    #[arg(value_name = "DIR", required = true)]
    pub paths: Vec<PathBuf>,
}

/// How many pairs of paths with duplicates are printed.
const PAIRS: usize = 10;

pub fn run(args: &Du, out: &mut Output) -> Result<Exit, Error> {
    let usage = inspect::disk_usage(&args.paths)?;
    for path in &usage.paths {
        let mut table = Table::new([
            ("NAME", Align::Left),
            ("SIZE", Align::Right),
            ("UNIQUE", Align::Right),
            ("SHARED", Align::Right),
        ]);
        for checkpoint in &path.checkpoints {
            let sizes = [checkpoint.bytes, checkpoint.unique_bytes, checkpoint.shared_bytes].map(human::bytes);
            table.row([&[checkpoint.name.clone()][..], &sizes].concat());
        }
        out.line(format!("{}:", path.path.display()));
        table.print(out);
        let (all, disk) = (human::bytes(path.bytes), human::bytes(path.disk_bytes));
        out.line(format!(
            "{disk} on the disk, {all} without links; {} in no other path",
            human::bytes(path.unique_bytes)
        ));
        out.line("");
    }
    let (all, disk) = (human::bytes(usage.bytes), human::bytes(usage.disk_bytes));
    out.line(format!("total: {disk} on the disk, {all} without links"));
    out.line(format!("duplicates: {} of tensors that another file has, too", human::bytes(usage.duplicate_bytes)));
    for pair in usage.duplicates.iter().take(PAIRS) {
        let (a, b, bytes) = (pair.a.display(), pair.b.display(), human::bytes(pair.bytes));
        out.line(if pair.a == pair.b { format!("  {bytes} within {a}") } else { format!("  {bytes} in {a} and {b}") });
    }
    if let Some(more) = usage.duplicates.len().checked_sub(PAIRS).filter(|more| *more > 0) {
        out.line(format!("  and {more} more pairs of paths"));
    }
    out.document(&usage);
    Ok(Exit::Fine)
}
