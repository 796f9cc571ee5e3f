//! Checkpoints that were named on the command line.

use crate::output::Output;
use std::path::Path;
use tch_checkpoint::Error;
use tch_checkpoint::inspect::{Overview, Problem, Target};

/// Opens the checkpoint at `path`, or the latest in the directory `path`. Reports on standard error what was skipped.
pub fn open(path: &Path, out: &mut Output) -> Result<Target, Error> {
    let target = Target::open_with(path, out.reading())?;
    for (path, error) in target.skipped() {
        out.note(format!("{} was skipped: {}", path.display(), Problem::of(error).within(path)));
    }
    Ok(target)
}

/// Like [`open`]; prints which checkpoint is the latest in a directory.
pub fn open_stated(path: &Path, out: &mut Output) -> Result<Target, Error> {
    let target = open(path, out)?;
    let overview = target.overview();
    if overview.latest_of.is_some() {
        out.line(title(&overview));
    }
    Ok(target)
}

/// The path, and of which directory it is the latest checkpoint.
pub fn title(overview: &Overview) -> String {
    let path = overview.path.display();
    match &overview.latest_of {
        Some(directory) => format!("{path} (the latest in {})", directory.display()),
        None => path.to_string(),
    }
}
