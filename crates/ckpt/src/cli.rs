//! What can be typed.

use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  ckpt ls checkpoints/pronounce
  ckpt show checkpoints/pronounce/ckpt-240
  ckpt show --filter 'encoder/*' checkpoints/pronounce
  ckpt verify checkpoints/*
  ckpt diff checkpoints/one-go checkpoints/resumed && echo the same bits

Exit codes:
  0  done; verify: everything is intact; diff: the states are equal
  1  verify: something is damaged; diff: the states differ
  2  the arguments make no sense, or something could not be read; what could be is printed all the same";

/// Looks into checkpoints of training loops: lists, shows, verifies and compares them. Reads only, takes no lock,
/// and is safe to use beside a running training.
#[derive(Debug, Parser)]
#[command(name = "ckpt", version, after_help = EXAMPLES)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    /// Print one JSON document instead of text; its fields are described in docs/ckpt.md
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    Ls(Ls),
    Show(Show),
    Verify(Verify),
    Diff(Diff),
}

/// Lists the checkpoints in a folder, oldest first, and what else a save or a manager left there
///
/// Reads manifests and file sizes, not the tensors: `ckpt verify` does that.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ckpt ls checkpoints/pronounce
  ckpt ls --json checkpoints/pronounce | jq -r .latest

Exit codes:
  0  listed, be it an empty folder or one with damaged checkpoints
  2  there is no such folder, or it could not be read")]
pub struct Ls {
    /// The folder of checkpoints
    #[arg(value_name = "DIR", default_value = ".")]
    pub folder: PathBuf,
}

/// Shows what a checkpoint holds: components, files, tensors, values
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ckpt show checkpoints/pronounce/ckpt-240
  ckpt show checkpoints/pronounce                   the latest in that folder
  ckpt show --filter '*bias' checkpoints/pronounce  the tensors and values of such names

Exit codes:
  0  shown
  1  the checkpoint is damaged: its manifest, or a file is missing or of another length
  2  there is no checkpoint, or it could not be read")]
pub struct Show {
    /// A checkpoint, or a folder of checkpoints for its latest
    #[arg(value_name = "CHECKPOINT")]
    pub path: PathBuf,
    /// Only tensors and values whose name fits; `*` stands for any text, `/` included
    #[arg(long, value_name = "PATTERN")]
    pub filter: Option<String>,
}

/// Reads every byte and checks that it is what was written
///
/// In a folder of checkpoints every checkpoint is checked, but not those that a manager moved aside as damaged,
/// nor unfinished ones: name them to have them checked. Files in a checkpoint that its manifest does not list are shown
/// as unexpected; they are no damage.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ckpt verify checkpoints/pronounce/ckpt-240
  ckpt verify checkpoints/*

Exit codes:
  0  every checkpoint is intact
  1  at least one is damaged: a changed, missing or added byte, or a missing file
  2  at least one could not be read, or a folder holds no checkpoint; others may be damaged")]
pub struct Verify {
    /// Checkpoints, or folders of checkpoints
    #[arg(value_name = "PATH", required = true)]
    pub paths: Vec<PathBuf>,
}

/// Compares the state in two checkpoints: tensors and values
///
/// Tensors are compared by the digests that were written with them; of those that differ the elements are read. Step,
/// time, run, metrics, file layout and the counter of saves are no part of the state. Use `ckpt verify` to
/// learn whether the files still are what was written.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ckpt diff checkpoints/one/ckpt-100 checkpoints/two/ckpt-100
  ckpt diff checkpoints/one checkpoints/two         the latest of each

Exit codes:
  0  the states are equal, bit for bit
  1  they differ
  2  one of them could not be read, or is damaged")]
pub struct Diff {
    /// A checkpoint, or a folder of checkpoints for its latest
    #[arg(value_name = "A")]
    pub a: PathBuf,
    /// Another one
    #[arg(value_name = "B")]
    pub b: PathBuf,
}
