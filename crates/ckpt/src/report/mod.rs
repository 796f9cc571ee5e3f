//! `ckpt report`: a page that shows a run.

mod chart;
mod checkpoints;
mod histogram;
mod html;
mod origin;
mod page;
mod scale;
mod size;
mod spark;
mod summary;
mod tensors;
mod timeline;
mod times;
mod view;

use crate::cli::Report;
use crate::human;
use crate::output::{Exit, Output};
use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use tch_checkpoint::Error;
use tch_checkpoint::inspect::{self, ReportOptions, RunReport};

pub fn run(args: &Report, out: &mut Output) -> Result<Exit, Error> {
    let options = ReportOptions::new().policies(args.policies.values()).samples(args.samples);
    let options = args.tensors.iter().fold(options, |options, pattern| options.tensors(pattern));
    let reports: Vec<RunReport> =
        args.directories.iter().map(|directory| inspect::report(directory, &options)).collect::<Result<_, _>>()?;
    if !out.is_json() {
        let page = page::page(&reports, chrono::Utc::now());
        write(&args.output, page.as_bytes())?;
        out.line(format!("{}: {}", human::text(&args.output), human::bytes(page.len() as u64)));
    }
    out.document(&reports);
    Ok(Exit::Fine)
}

/// Replaces the file atomically.
fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let failed = |e| Error::io("write", path, e);
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // With the mode of an ordinary new file, because users may want to share it.
    let mode = Permissions::from_mode(0o666);
    let mut file = tempfile::Builder::new().permissions(mode).tempfile_in(directory).map_err(failed)?;
    file.write_all(bytes).map_err(failed)?;
    file.persist(path).map_err(|e| failed(e.error))?;
    Ok(())
}
