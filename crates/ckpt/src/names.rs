//! `ckpt map`: proposes a map from one checkpoint to the names and layouts of another.

use crate::cli::Map;
use crate::human::{self, text};
use crate::output::{Exit, Output};
use crate::target;
use serde::Serialize;
use std::fs::OpenOptions;
use std::io::Write;
use tch_checkpoint::Error;
use tch_checkpoint::map::{Sureness, propose};

/// The JSON document.
#[derive(Serialize)]
struct Proposed<'a> {
    from: String,
    to: String,
    lines: Vec<Line<'a>>,
    missing: &'a [String],
    unused: &'a [String],
    map: String,
}

#[derive(Serialize)]
struct Line<'a> {
    name: &'a str,
    made_of: &'a str,
    sureness: &'static str,
}

pub fn run(args: &Map, out: &mut Output) -> Result<Exit, Error> {
    let (from, to) = (target::open(&args.from, out)?, target::open(&args.to, out)?);
    // The map itself goes to standard output.
    for overview in [from.overview(), to.overview()].iter().filter(|overview| overview.latest_of.is_some()) {
        out.note(target::title(overview));
    }
    let (from, to) = (from.source(), to.source());
    let proposal = propose(from, to);
    // The proposed map must fit.
    proposal.map().apply(from)?;
    if let Some(path) = &args.output {
        let file = OpenOptions::new().write(true).create_new(true).open(path);
        let written = file.and_then(|mut file| file.write_all(proposal.to_string().as_bytes()));
        written.map_err(|e| Error::io("write", path, e))?;
    }
    let count = |sureness| proposal.lines.iter().filter(|line| line.sureness == sureness).count();
    if args.output.is_none() {
        proposal.to_string().lines().for_each(|line| out.line(line));
    } else {
        out.line(format!(
            "{}: {} sure, {} likely, {} guessed",
            human::count(proposal.lines.len(), "line"),
            count(Sureness::Sure),
            count(Sureness::Likely),
            count(Sureness::Guess)
        ));
    }
    for name in &proposal.missing {
        out.note(format!("nothing fits {name}"));
    }
    let lines = proposal.lines.iter().map(|line| Line {
        name: &line.name,
        made_of: &line.made_of,
        sureness: match line.sureness {
            Sureness::Sure => "sure",
            Sureness::Likely => "likely",
            _ => "guess",
        },
    });
    out.document(&Proposed {
        from: text(from.path()),
        to: text(to.path()),
        lines: lines.collect(),
        missing: &proposal.missing,
        unused: &proposal.unused,
        map: proposal.to_string(),
    });
    Ok(if proposal.missing.is_empty() { Exit::Fine } else { Exit::Finding })
}
