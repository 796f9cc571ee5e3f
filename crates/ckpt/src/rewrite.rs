//! `ckpt extract`, `rename`, `cast` and `merge`: new checkpoints from old ones, by the maps of `ckpt convert`.

use crate::cli::Destination;
use crate::convert::{Wanted, open, write};
use crate::output::{Exit, Output};
use crate::target::open_stated;
use clap::Args;
use std::path::PathBuf;
use tch_checkpoint::Error;
use tch_checkpoint::inspect::Target;
use tch_checkpoint::map::{Merged, NameMap};

/// Writes some of the tensors and values of a checkpoint as a new one
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ckpt extract checkpoints/pronounce/ckpt-240 encoder 'encoder/*'
  ckpt extract model.pt bias.safetensors '*.bias'

Exit codes:
  0  written
  2  nothing was written")]
pub struct Extract {
    /// A checkpoint of any format, or a directory of checkpoints for its latest
    #[arg(value_name = "SOURCE")]
    pub source: PathBuf,
    /// What to write
    #[arg(value_name = "DEST")]
    pub dest: PathBuf,
    /// The names; `*` matches any text
    #[arg(value_name = "PATTERN", required = true)]
    pub patterns: Vec<String>,
    #[command(flatten)]
    pub destination: Destination,
}

/// Writes a checkpoint under other names
///
/// Everything else keeps its name.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ckpt rename checkpoints/pronounce/ckpt-240 renamed 'encoder/*=frontend/*'
  ckpt rename model.pt model.safetensors 'rnn.*=gru.*' fc.bias=out.bias

Exit codes:
  0  written
  2  nothing was written")]
pub struct Rename {
    /// A checkpoint of any format, or a directory of checkpoints for its latest
    #[arg(value_name = "SOURCE")]
    pub source: PathBuf,
    /// What to write
    #[arg(value_name = "DEST")]
    pub dest: PathBuf,
    /// FROM=TO; each `*` in TO stands for the text that the `*` at the same place in FROM matched
    #[arg(value_name = "FROM=TO", required = true, value_parser = renaming)]
    pub names: Vec<(String, String)>,
    #[command(flatten)]
    pub destination: Destination,
}

fn renaming(text: &str) -> Result<(String, String), String> {
    let parts = text.split_once('=').filter(|(from, to)| !from.is_empty() && !to.is_empty());
    parts.map(|(from, to)| (from.to_string(), to.to_string())).ok_or_else(|| "it has the form FROM=TO".to_string())
}

/// Writes a checkpoint with floats of another type
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ckpt cast checkpoints/pronounce/ckpt-240 half BF16
  ckpt cast model.pt model.safetensors F16 'encoder.*'

Exit codes:
  0  written
  2  nothing was written")]
pub struct Cast {
    /// A checkpoint of any format, or a directory of checkpoints for its latest
    #[arg(value_name = "SOURCE")]
    pub source: PathBuf,
    /// What to write
    #[arg(value_name = "DEST")]
    pub dest: PathBuf,
    /// F16, BF16, F32 or F64
    #[arg(value_name = "DTYPE", ignore_case = true, value_parser = ["F16", "BF16", "F32", "F64"])]
    pub dtype: String,
    /// Only the tensors whose names match; `*` matches any text
    #[arg(value_name = "PATTERN")]
    pub patterns: Vec<String>,
    #[command(flatten)]
    pub destination: Destination,
}

/// Writes the content of several checkpoints as one
///
/// No two of them may have the same name: rename it in one of them, or leave it out with `ckpt extract`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ckpt merge encoder decoder --out both

Exit codes:
  0  written
  2  nothing was written")]
pub struct Merge {
    /// Checkpoints of any format, or directories of checkpoints for their latest
    #[arg(value_name = "SOURCE", required = true)]
    pub sources: Vec<PathBuf>,
    /// What to write
    #[arg(long = "out", value_name = "DEST")]
    pub dest: PathBuf,
    #[command(flatten)]
    pub destination: Destination,
}

pub fn extract(args: &Extract, out: &mut Output) -> Result<Exit, Error> {
    let source = open_stated(&args.source, out)?;
    let map = NameMap::new().include(&args.patterns);
    let wanted = Wanted { map, ..Wanted::of(&args.destination) };
    write(source.source(), std::slice::from_ref(&source), &args.dest, &wanted, out)
}

pub fn rename(args: &Rename, out: &mut Output) -> Result<Exit, Error> {
    let source = open_stated(&args.source, out)?;
    let map = args.names.iter().fold(NameMap::new(), |map, (from, to)| map.rename(from, to));
    let wanted = Wanted { map, ..Wanted::of(&args.destination) };
    write(source.source(), std::slice::from_ref(&source), &args.dest, &wanted, out)
}

pub fn cast(args: &Cast, out: &mut Output) -> Result<Exit, Error> {
    let source = open_stated(&args.source, out)?;
    let dtype = Some(args.dtype.as_str());
    let wanted = Wanted { dtype, cast: &args.patterns, ..Wanted::of(&args.destination) };
    write(source.source(), std::slice::from_ref(&source), &args.dest, &wanted, out)
}

pub fn merge(args: &Merge, out: &mut Output) -> Result<Exit, Error> {
    let sources = open(&args.sources, out)?;
    let merged = Merged::new(sources.iter().map(Target::source))?;
    write(&merged, &sources, &args.dest, &Wanted::of(&args.destination), out)
}
