//! `ckpt seal`: writes digests for checkpoints of other tools.

use crate::cli::Seal;
use crate::human::text;
use crate::output::{Exit, Output};
use crate::target;
use serde::Serialize;
use tch_checkpoint::{Error, interop};

/// The JSON document.
#[derive(Serialize)]
struct Sealed {
    seals: Vec<String>,
}

pub fn run(args: &Seal, out: &mut Output) -> Result<Exit, Error> {
    let mut seals = Vec::new();
    for path in &args.paths {
        // The latest in a directory of checkpoints has digests already, which the error says.
        let latest = target::open(path, out)?.overview();
        let path = if latest.latest_of.is_some() { &*latest.path } else { path };
        let seal = interop::seal_with(path, out.reading())?;
        out.line(format!("sealed      {}", path.display()));
        seals.push(text(&seal));
    }
    out.document(&Sealed { seals });
    Ok(Exit::Fine)
}
